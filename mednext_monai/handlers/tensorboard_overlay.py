"""Pictures of a validation in TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.handlers import TensorBoardHandler
from monai.utils import CommonKeys, convert_to_numpy

from ..pictures import draw_overlay
from ..preprocessing.geometry import Geometry
from .case_names import case_names

if TYPE_CHECKING:
    from ignite.engine import Engine

__all__ = ["TensorBoardOverlay"]


class TensorBoardOverlay(TensorBoardHandler):
    """
    Ignite handler that shows image, label and prediction of the first cases of each validation, in three planes.

    Each case is one picture, under the tag ``validation/<case>``, step by step of the trainer's epoch: slices through
    the label's centre of mass, so that the epochs show the same place. MONAI's ``TensorBoardImageHandler`` shows the
    last case, each channel as an animation of all slices (a one-hot prediction starts with the background), and lays
    nothing over the image.

    Args:
        log_dir: folder of the event files.
        cases: how many cases to draw. Defaults to 3.
    """

    def __init__(self, log_dir: str, cases: int = 3) -> None:
        super().__init__(log_dir=log_dir)
        self.cases = cases

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the evaluator, decollating, with one case a batch; prediction and label are one-hot or classes.
        """
        engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=lambda _, i: i <= self.cases), self)
        engine.add_event_handler(Events.COMPLETED, self._writer.flush)

    def __call__(self, engine: Engine) -> None:
        for name, sample, output in zip(case_names(engine.state.batch), engine.state.batch, engine.state.output):
            affine = _affine(sample, output[CommonKeys.IMAGE])
            orientation = nib.io_orientation(affine)  # of each axis: which of right, front, top; in which direction
            spacing = nib.affines.voxel_sizes(affine)[np.argsort(orientation[:, 0])]
            image, label, prediction = (
                nib.apply_orientation(convert_to_numpy(volume), orientation)
                for volume in (
                    output[CommonKeys.IMAGE][0],
                    _classes(output[CommonKeys.LABEL]),
                    _classes(output[CommonKeys.PRED]),
                )
            )
            picture = draw_overlay(image, {"label": label, "prediction": prediction}, spacing, name)
            self._writer.add_image(f"validation/{name}", np.asarray(picture), engine.state.epoch, dataformats="HWC")


def _affine(sample: Mapping, image: torch.Tensor) -> np.ndarray:
    """Return voxel indices to mm: of a stored case from its marker, otherwise the image's own."""
    if "info" in sample:
        return Geometry.from_dict(json.loads(Path(sample["info"]).read_text())["geometry"]).resampled_affine
    return image.affine.numpy() if isinstance(image, MetaTensor) else np.eye(4)


def _classes(segmentation: torch.Tensor) -> torch.Tensor:
    """``(C, X, Y, Z)``, one-hot or with one channel, as ``(X, Y, Z)``."""
    return segmentation.argmax(0) if len(segmentation) > 1 else segmentation[0]
