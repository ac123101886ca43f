"""Class maps of networks that see differently preprocessed images, from the mean of their probabilities."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor, decollate_batch
from monai.data.utils import collate_meta_tensor
from monai.inferers import Inferer

from ..data.probabilities import DiskProbabilities, ProbabilityStore
from ..transforms.preprocess import add_slabs, case_name, class_map_from_disk, file_shape
from ..weights import Group
from .class_map import ClassMapInferer, restore_while_predicting
from .sliding_window import MedNeXtInferer

__all__ = ["EnsembleInferer", "class_map_inferer"]


class EnsembleInferer(Inferer):
    """
    Inferer that returns the most probable classes, on the grid of the image file, of the mean over groups of networks.

    The networks of a group see one image, so that their mean is resampled once, as for several folds. The means of the
    groups are resampled one after the other and added on disk, weighted by their number of networks. The memory is that
    of :py:class:`ClassMapInferer` for one network, and the preprocessed image of each group.

    Args:
        inferer: the sliding windows of the first group; those of another group only differ in their size.
        groups: the groups. Their network is that of the first argument for their number, as in
            :py:class:`~mednext_monai.networks.Ensemble`.
        probabilities: where the sums are stored; if it keeps them, for
            :py:class:`~mednext_monai.transforms.SaveProbabilitiesd`.
        in_thread: as for :py:class:`ClassMapInferer`. Defaults to ``None``.
    """

    def __init__(
        self,
        inferer: MedNeXtInferer,
        groups: Sequence[Group],
        probabilities: ProbabilityStore,
        in_thread: bool | None = None,
    ) -> None:
        super().__init__()
        self.inferers = [inferer]
        for group in groups[1:]:
            other = copy.copy(inferer)
            other.roi_size, other.slice_axis = list(group.patch_size), group.slice_axis
            self.inferers.append(other)
        self.weights = [len(group.members) for group in groups]
        self.probabilities = probabilities
        self.in_thread = in_thread

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *others: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """
        Return class maps ``(B, 1, X, Y, Z)``, uint8 (int16 for more than 256 classes), with the metadata of the files.

        Args:
            inputs: images that :py:class:`~mednext_monai.transforms.Preprocessd` has transformed for the first group,
                ``(B, C, *spatial)``; for several images, their files must have one shape.
            network: maps windows ``(N, C, *roi_size)`` and the number of their group, ``group``, to logits.
            others: the same images, preprocessed for each of the other groups.
            kwargs: passed to ``network``.

        Raises:
            ValueError: if the number of images is not that of the groups; others as for :py:class:`ClassMapInferer`.
        """
        if len(others) + 1 != len(self.inferers):
            raise ValueError(f"there must be {len(self.inferers)} images, one for each group, got {len(others) + 1}.")
        cases = zip(*(decollate_batch(images) for images in (inputs, *others)))
        return collate_meta_tensor([self._class_map(images, network, kwargs) for images in cases])

    def _class_map(
        self, images: Sequence[MetaTensor], network: Callable[..., torch.Tensor], kwargs: dict
    ) -> MetaTensor:
        shape, total = file_shape(images[0]), sum(self.weights)
        sums = DiskProbabilities(self.probabilities.folder, shape, np.float32, total)
        for group, (image, inferer, weight) in enumerate(zip(images, self.inferers, self.weights)):
            add = partial(add_slabs, image, sums=sums, weight=weight, is_first=group == 0)
            restore_while_predicting(inferer, image, network, add, self.in_thread, group=group, **kwargs)
        if self.probabilities.is_kept:
            self.probabilities.put(case_name(images[0].meta), sums)
        return class_map_from_disk(images[0], sums)


def class_map_inferer(
    inferer: MedNeXtInferer, groups: Sequence[Group], probabilities: ProbabilityStore
) -> ClassMapInferer | EnsembleInferer:
    """
    Return the inferer of a prediction: :py:class:`ClassMapInferer` for one group, else :py:class:`EnsembleInferer`.

    Args:
        inferer, groups, probabilities: as for :py:class:`EnsembleInferer`.
    """
    if len(groups) == 1:
        return ClassMapInferer(inferer, probabilities)
    return EnsembleInferer(inferer, groups, probabilities)
