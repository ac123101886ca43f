"""Pictures of validation cases in TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.handlers import TensorBoardHandler
from monai.utils import CommonKeys, convert_to_numpy

from ..pictures import draw_overlay
from ..preprocessing.geometry import Geometry, reorient, spacing_of
from .case_names import case_names

if TYPE_CHECKING:
    from ignite.engine import Engine

__all__ = ["TensorBoardOverlay"]


class TensorBoardOverlay(TensorBoardHandler):
    """
    Ignite handler that shows image, label and prediction of the first cases of each validation, in three planes.

    Each case is one picture, under the tag ``validation/<case>``, with the trainer's epoch as step: slices through the
    label's center of mass, so that all epochs show the same place. MONAI's ``TensorBoardImageHandler`` shows the last
    case, each channel as an animation of all slices (a one-hot prediction starts with the background), without
    overlays.

    Args:
        log_dir: folder of the event files.
        cases: number of cases to draw. Defaults to 3.
    """

    def __init__(self, log_dir: str, cases: int = 3) -> None:
        super().__init__(log_dir=log_dir)
        self.cases = cases

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the evaluator, which decollates batches of one case; prediction and label are one-hot or classes.
        """
        engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=lambda _, i: i <= self.cases), self)
        engine.add_event_handler(Events.COMPLETED, self._writer.flush)

    def __call__(self, engine: Engine) -> None:
        for name, sample, output in zip(case_names(engine.state.batch), engine.state.batch, engine.state.output):
            affine = _affine(sample, output[CommonKeys.IMAGE])
            volumes = (
                output[CommonKeys.IMAGE][0],
                _classes(output[CommonKeys.LABEL]),
                _classes(output[CommonKeys.PRED]),
            )
            turned = [reorient(convert_to_numpy(volume)[None], affine, "RAS") for volume in volumes]
            (image, label, prediction), spacing = (array[0] for array, _ in turned), spacing_of(turned[0][1])
            picture = draw_overlay(image, {"label": label, "prediction": prediction}, spacing, name)
            self._writer.add_image(f"validation/{name}", np.asarray(picture), engine.state.epoch, dataformats="HWC")


def _affine(sample: Mapping, image: torch.Tensor) -> np.ndarray:
    """Return the affine from voxel indices to mm: for a stored case from its info file, otherwise the image's own."""
    if "info" in sample:
        return Geometry.from_dict(json.loads(Path(sample["info"]).read_text())["geometry"]).resampled_affine
    return image.affine.numpy() if isinstance(image, MetaTensor) else np.eye(4)


def _classes(segmentation: torch.Tensor) -> torch.Tensor:
    """Return the class map ``(X, Y, Z)`` of a segmentation ``(C, X, Y, Z)`` that is one-hot or has one channel."""
    return segmentation.argmax(0) if len(segmentation) > 1 else segmentation[0]
