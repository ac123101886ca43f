"""Writing of segmentations: named after their case, whole or not at all."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from monai.config import KeysCollection
from monai.data import MetaTensor, NibabelWriter
from monai.transforms import MapTransform

from ..files import atomic_path

__all__ = ["AtomicNibabelWriter", "NameByCased"]


class AtomicNibabelWriter(NibabelWriter):
    """
    MONAI's NIfTI writer, by way of a temporary file beside the target that is then renamed.

    Written straight to its name, as the base class does, a file is broken when the process is killed meanwhile.
    """

    def write(self, filename, verbose: bool = False, **kwargs) -> None:
        """Write to ``filename``; the arguments are the base class's."""
        with atomic_path(filename) as temporary:
            super().write(temporary, verbose=verbose, **kwargs)


class NameByCased(MapTransform):
    """
    Name predictions after their case instead of its first file, which for channel files is ``case_0000.nii.gz``.

    The name that ``SaveImaged`` takes, in the metadata, becomes the case's ``id`` with the ending ``.nii.gz``.

    Args:
        keys: predictions with metadata, of one case with an ``id``.
        allow_missing_keys: whether keys may be missing. Defaults to ``False``.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        d = dict(data)
        for key in self.key_iterator(d):
            meta = {**d[key].meta, "filename_or_obj": f"{d['id']}.nii.gz"}
            d[key] = MetaTensor(d[key], meta=meta, applied_operations=d[key].applied_operations)
        return d
