"""From a preprocessed image to the class map on the grid of its file, slab by slab."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from monai.data import MetaTensor, decollate_batch
from monai.data.utils import collate_meta_tensor
from monai.inferers import Inferer

from ..background import Background
from ..data.probabilities import DiskProbabilities, ProbabilityStore
from ..transforms.preprocess import case_name, class_map_from_slabs, file_shape, slab_axes
from .sliding_window import MedNeXtInferer

__all__ = ["ClassMapInferer", "restore_while_predicting"]

Result = TypeVar("Result")


class ClassMapInferer(Inferer):
    """
    Inferer that returns the class map on the grid of the image file.

    The result is that of ``inferer`` followed by :py:class:`~mednext_monai.transforms.RestoreClassesd`, which leaves it
    unchanged. But the probabilities are restored as soon as they are complete, in slabs. Their memory grows with the
    cross-section of the image and with the number of classes, not with the length of the image.

    While a GPU computes a slab, the one before is restored in a thread on the CPU, and at most one more waits.

    Args:
        inferer: the sliding windows. With ``windows="monai"`` all probabilities are held.
        probabilities: where the probabilities on the grid of the file are stored for
            :py:class:`~mednext_monai.transforms.SaveProbabilitiesd`, if it keeps any. Defaults to ``None``: nowhere.
        in_thread: whether slabs are restored in a thread. Defaults to ``None``: if they are not on a CPU, where both
            would compete for the cores.
    """

    def __init__(
        self, inferer: MedNeXtInferer, probabilities: ProbabilityStore | None = None, in_thread: bool | None = None
    ) -> None:
        super().__init__()
        self.inferer = inferer
        self.probabilities = probabilities
        self.in_thread = in_thread

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """
        Return class maps ``(B, 1, X, Y, Z)``, uint8 (int16 for more than 256 classes), with the metadata of the files.

        Args:
            inputs: images that :py:class:`~mednext_monai.transforms.Preprocessd` has transformed, ``(B, C, *spatial)``;
                for several images, their files must have one shape.
            network: maps windows ``(N, C, *roi_size)`` to logits.
            args, kwargs: passed to ``network``.

        Raises:
            ValueError: if other invertible transforms were applied to the images; others as for the inferer.
        """
        maps = []
        for image in decollate_batch(inputs):
            maps.append(self._class_map(image, network, args, kwargs))
        return collate_meta_tensor(maps)

    def _class_map(
        self, image: MetaTensor, network: Callable[..., torch.Tensor], args: tuple, kwargs: dict
    ) -> MetaTensor:
        restore = partial(class_map_from_slabs, image, probabilities=self._kept(image))
        return restore_while_predicting(self.inferer, image, network, restore, self.in_thread, *args, **kwargs)

    def _kept(self, image: MetaTensor) -> DiskProbabilities | None:
        """Return where the probabilities of an image are stored, if they are kept."""
        store = self.probabilities
        if store is None or not store.is_kept:
            return None
        kept = DiskProbabilities(store.folder, file_shape(image), store.dtype)
        store.put(case_name(image.meta), kept)
        return kept


def restore_while_predicting(
    inferer: MedNeXtInferer,
    image: MetaTensor,
    network: Callable[..., torch.Tensor],
    restore: Callable[[Iterator[np.ndarray], int], Result],
    in_thread: bool | None = None,
    *args: Any,
    **kwargs: Any,
) -> Result:
    """
    Hand the probabilities of an image, slab by slab, to a function that restores the grid of its file.

    Args:
        inferer: the sliding windows.
        image: an image that :py:class:`~mednext_monai.transforms.Preprocessd` has transformed, ``(C, *spatial)``.
        network: as for the inferer.
        restore: function of an iterator over slabs ``(K, ...)`` and their axis.
        in_thread: as for :py:class:`ClassMapInferer`. Defaults to ``None``.
        args, kwargs: passed to ``network``.

    Returns:
        what ``restore`` returns.
    """
    axis = inferer.slab_axis(image.shape[1:], slab_axes(image))
    if inferer.windows == "monai":
        slabs = iter([inferer(image[None], network, *args, **kwargs)[0]])
    else:
        slabs = inferer.slabs(image[None], network, *args, along=axis, **kwargs)
    on_cpu = torch.device(inferer.device or image.device).type == "cpu"
    if on_cpu if in_thread is None else not in_thread:
        return restore((slab.numpy(force=True) for slab in slabs), axis)

    def restored(arrays: Iterator[np.ndarray]) -> Result:
        return restore(arrays, axis)

    with Background(restored) as restoring:
        for slab in slabs:
            array = slab.numpy(force=True)
            restoring.put(array.copy() if slab.device.type == "cpu" else array)  # the next slab may overwrite it
        return restoring.result()
