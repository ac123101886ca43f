"""Segmentation from Python: images in memory or on disk in, class maps or probabilities of the same kind out."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from os import PathLike
from typing import Any

import nibabel
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, list_data_collate
from monai.engines import SupervisedEvaluator
from monai.utils import CommonKeys, ImageMetaKey, MetaKeys
from nibabel.nifti1 import Nifti1Image

from .bundles.library import find
from .bundles.options import OPTIONS, check_option
from .bundles.run_checks import nearest
from .data.checks import Expected, Volume, check_case, check_image
from .data.dataset import inference_cases
from .data.io import image_paths, is_nifti, nifti_like, read_nifti
from .options import literal
from .transforms import KeepComponentsd
from .transforms.preprocess import case_name

__all__ = ["Predictor", "predict"]

# Options that concern files: where images are and results go, how cases are shared and shown; and those of the bundle.
OF_FILES = {
    *("dataset_dir", "input", "datalist", "output_dir", "overwrite", "dicom_seg", "save_probabilities", "save_regions"),
    *("num_workers", "part", "parts", "progress_bar", "bundle_root", "variant", "kernel_size"),
}
OF_A_RUN = {"val_data_loader", "postprocessing", "val_handlers", "progress"}  # arguments of the bundle's evaluator
KINDS = (
    "a path, a list of paths with one per channel, a NumPy array, a tensor, a MetaTensor or a NIfTI image of nibabel"
)
logger = logging.getLogger(__name__)

Image = str | PathLike | Sequence[str | PathLike] | np.ndarray | torch.Tensor | Nifti1Image


class Predictor:
    """
    A trained bundle that segments images from Python, with the same result as ``mednext predict``.

    The weights are loaded once, so one object serves any number of images, one after the other. It consists of the
    items of the bundle's ``inference.json``: checkpoints, preprocessing, network, sliding windows.

    Args:
        bundle: folder of the bundle, or the name of one of the package.
        options: options of ``mednext predict`` that do not concern files, such as ``folds=[0, 1, 2, 3, 4]``,
            ``mirror=False``, ``device="cpu"``, ``checkpoint``, ``overlap`` or ``postprocess``.

    Raises:
        ValueError: if ``bundle`` is not a bundle, there is no such option, its value is not allowed, or checkpoint and
            bundle contradict each other.
        FileNotFoundError: if there are no weights.
    """

    def __init__(self, bundle: str | PathLike, **options: Any) -> None:
        folder = find(bundle)
        parser = ConfigParser()
        parser.read_config(str(folder / "configs" / "inference.json"))
        config: Any = parser.config
        _check_options(options, config)
        parser.update({name: literal(value) for name, value in {**options, "bundle_root": str(folder)}.items()})
        kept = {name: value for name, value in parser["evaluator"].items() if name not in OF_A_RUN}
        parser["evaluator"] = {**kept, "_target_": "SupervisedEvaluator", "val_data_loader": []}
        parser.parse(reset=True)
        if "compiler" in config:  # not in bundles of earlier versions
            parser.get_parsed_content("compiler").check()
        parser.get_parsed_content("weights_loader")()
        self.task: Mapping[str, Any] = parser.get_parsed_content("task")  #: settings that the network was trained with
        self._preprocess = parser.get_parsed_content("preprocessing")
        self._evaluator: SupervisedEvaluator = parser.get_parsed_content("evaluator")
        self._probabilities = parser.get_parsed_content("probabilities")
        self._probabilities.folder, self._probabilities.dtype = tempfile.gettempdir(), np.float32
        decision = parser.get_parsed_content("postprocess")
        self._postprocess = None if decision is None else KeepComponentsd(CommonKeys.PRED, decision)

    def __call__(self, image: Image, *, affine: np.ndarray | None = None, probabilities: bool = False) -> Any:
        """
        Segment an image.

        Args:
            image: one of

                - a path: a file, or a folder with one DICOM series; or a list of paths, one per channel;
                - a ``nibabel`` NIfTI image, 3D, or 4D with the channels last;
                - a ``MetaTensor`` ``(C, X, Y, Z)`` or ``(X, Y, Z)``, with its affine in RAS space;
                - a NumPy array or a tensor of such a shape, with ``affine``.

            affine: ``(4, 4)``, voxel index to mm in RAS space, for an array or tensor only. Without rotation, voxels of
                0.8 x 0.8 x 2.5 mm are ``numpy.diag([0.8, 0.8, 2.5, 1])``. Defaults to ``None``.
            probabilities: whether to return the class probabilities instead of the class map; they are on disk, in the
                folder for temporary files, while they are computed. Defaults to ``False``.

        Returns:
            on the grid of the image and of the same kind:

            - for paths and ``nibabel`` images a ``nibabel`` image with the header of the image: uint8 (int16 for more
              than 256 classes) ``(X, Y, Z)``; probabilities float32 ``(X, Y, Z, K)``;
            - for a ``MetaTensor``, on its device, ``(1, X, Y, Z)`` with its metadata; probabilities ``(K, X, Y, Z)``;
            - for an array or tensor ``(X, Y, Z)``; probabilities ``(K, X, Y, Z)``.

        Raises:
            ValueError: if the image is not one of these, or invalid: other channels than the network has, values that
                are not finite, an affine that cannot be inverted, ...
            FileNotFoundError: if there is no such file.
        """
        volume, source = self._volume(image, affine)
        meta = {ImageMetaKey.FILENAME_OR_OBJ: source}
        tensor = MetaTensor(torch.from_numpy(volume.image), affine=torch.from_numpy(volume.affine), meta=meta)
        self._probabilities.is_kept = probabilities
        result = self._segment(self._preprocess({CommonKeys.IMAGE: tensor, "id": "image"}), probabilities)
        return _like(image, result, source, volume.affine)

    def _segment(self, case: Mapping, probabilities: bool) -> np.ndarray:
        """Return the class map ``(1, X, Y, Z)`` or the probabilities ``(K, X, Y, Z)`` of a preprocessed case."""
        evaluator = self._evaluator
        output: Any = evaluator._iteration(evaluator, list_data_collate([case]))
        pred = output[0][CommonKeys.PRED]  # the evaluator has divided the batch into its images
        evaluator.state.output = None  # not held until the next call
        if probabilities:
            return self._probabilities.take(case_name(pred.meta)).array()
        item: dict[Hashable, Any] = {CommonKeys.IMAGE: case[CommonKeys.IMAGE], CommonKeys.PRED: pred}
        if self._postprocess is not None:
            item = self._postprocess(item)
        return item[CommonKeys.PRED].numpy(force=True)

    def _volume(self, image: Image, affine: np.ndarray | None) -> tuple[Volume, str]:
        """Return the checked image and affine, and its name."""
        task = self.task
        expected = Expected.of_network(task["in_channels"], task["spatial_dims"], task["slice_axis"])
        is_array = isinstance(image, (np.ndarray, torch.Tensor)) and not isinstance(image, MetaTensor)
        if is_array and affine is None:
            raise ValueError(
                "affine: an array or tensor needs one, (4, 4), from voxel index to mm: numpy.diag([x, y, z, 1]) for "
                "voxels of x, y and z mm along its axes."
            )
        if affine is not None and not is_array:
            raise ValueError(f"affine: only for an array or tensor; {_kind(image)} has its own.")
        if isinstance(image, nibabel.Nifti1Image):
            name = image.get_filename() or "image"
            return check_image(name, *read_nifti(image, name), expected), name
        if isinstance(image, (np.ndarray, torch.Tensor)):
            array = image.numpy(force=True) if isinstance(image, torch.Tensor) else image
            grid = image.affine.numpy(force=True) if isinstance(image, MetaTensor) else np.asarray(affine, float)
            if array.ndim not in (3, 4):
                raise ValueError(f"image must have the shape (C, X, Y, Z) or (X, Y, Z), got {tuple(array.shape)}.")
            return check_image("image", array if array.ndim == 4 else array[None], grid, expected), "image"
        case = _case(image, self.task["in_channels"])
        check, volume = check_case(case, expected)
        for note in check.warnings:
            logger.warning(note)
        if volume is None:
            raise ValueError(" ".join(check.problems))
        return volume, os.fspath(image_paths(case["image"])[0])


def predict(
    image: Image,
    bundle: str | PathLike,
    *,
    affine: np.ndarray | None = None,
    probabilities: bool = False,
    **options: Any,
) -> Any:
    """
    Segment one image with a trained bundle. For several, make a :py:class:`Predictor`, which loads the weights once.

    Args:
        image, affine, probabilities: as for :py:meth:`Predictor.__call__`.
        bundle, options: as for :py:class:`Predictor`.

    Returns:
        the class map or the probabilities, as what the image was, see there.

    Raises:
        ValueError, FileNotFoundError: see there.
    """
    return Predictor(bundle, **options)(image, affine=affine, probabilities=probabilities)


def _check_options(options: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    known = [name for name in OPTIONS if name in config and name not in OF_FILES]
    for name, value in options.items():
        if name in OF_FILES:
            raise ValueError(f"{name} does not concern a Predictor, which reads and writes no folders.")
        if name not in known:
            raise ValueError(f"there is no option {name}.{nearest(name, known)} The options are {', '.join(known)}.")
        check_option(name, value)


def _case(image: Any, channels: int) -> dict:
    """Return the one case of a path or a list of paths."""
    if isinstance(image, (str, PathLike)):
        cases = inference_cases("", os.fspath(image), channels)
        if len(cases) > 1:
            raise ValueError(
                f"image: {image} has {len(cases)} images, {cases[0]['id']}, {cases[1]['id']}, ...; give one of them, "
                "or segment all with `mednext predict`."
            )
        return cases[0]
    if isinstance(image, Sequence) and image and all(isinstance(file, (str, PathLike)) for file in image):
        return {"id": "image", "image": list(image)}
    raise ValueError(f"image must be {KINDS}; got {_kind(image)}.")


def _kind(image: Any) -> str:
    if isinstance(image, (str, PathLike)):
        return f"the file {image}"
    return f"{type(image).__module__.split('.')[0]}.{type(image).__name__}"


def _like(image: Image, result: np.ndarray, source: str, affine: np.ndarray) -> Any:
    """Return a result ``(1 or K, X, Y, Z)`` as what the image is."""
    is_map = result.dtype != np.float32
    if isinstance(image, MetaTensor):
        meta = {key: value for key, value in image.meta.items() if key != MetaKeys.AFFINE}
        operations = image.applied_operations
        tensor = torch.from_numpy(result).to(image.device)
        return MetaTensor(tensor, affine=image.affine.clone(), meta=meta, applied_operations=operations)
    if isinstance(image, torch.Tensor):
        return torch.from_numpy(result[0] if is_map else result).to(image.device)
    if isinstance(image, np.ndarray):
        return result[0] if is_map else result
    like: Any = image if isinstance(image, nibabel.Nifti1Image) else source if is_nifti(source) else None
    return nifti_like(result[0] if is_map else np.moveaxis(result, 0, -1), like, affine)
