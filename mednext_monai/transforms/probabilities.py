"""Saving the class probabilities that the inferer has stored on disk."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..data.probabilities import ProbabilityStore, write_probabilities
from .preprocess import case_name

__all__ = ["SaveProbabilitiesd"]


class SaveProbabilitiesd(MapTransform):
    """
    Write class probabilities as ``<case>.npz``: ``probabilities``, float16 ``(K, X, Y, Z)``, on the grid of the file.

    The probability of the background is 1 outside the nonzero crop. In each voxel the probabilities sum to 1 within
    ``2**-11``, the rounding of float16; nothing is normalized, since the network's sum to 1 and interpolation keeps
    sums. (With ``accumulate="half"`` in the inferer, each may be off by ``2**-12`` times the number of windows.) The
    class map is the argmax before they were rounded, so that the file may have ties.

    Nothing is held in memory but a part of one class: see
    :py:class:`~mednext_monai.data.probabilities.DiskProbabilities`.

    Args:
        keys: keys of the class maps of :py:class:`~mednext_monai.inferers.ClassMapInferer`.
        probabilities: the store of the inferer.
        output_dir: folder to write to; created if needed. Defaults to the working directory.
        allow_missing_keys: whether keys may be missing. Defaults to ``False``.

    Raises:
        ValueError: if the inferer has not stored the probabilities of the case.
    """

    def __init__(
        self,
        keys: KeysCollection,
        probabilities: ProbabilityStore,
        output_dir: str | PathLike = ".",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.probabilities = probabilities
        self.output_dir = Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            name = case_name(d[key].meta, key)
            write_probabilities(self.output_dir / f"{name}.npz", self.probabilities.take(name))
        return d
