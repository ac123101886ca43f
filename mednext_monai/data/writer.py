"""Writing of segmentations, whole or not at all."""

from __future__ import annotations

from monai.data import NibabelWriter

from ..files import atomic_path

__all__ = ["AtomicNibabelWriter"]


class AtomicNibabelWriter(NibabelWriter):
    """
    MONAI's NIfTI writer, by way of a temporary file beside the target that is then renamed.

    Written straight to its name, as the base class does, a file is broken when the process is killed meanwhile.
    """

    def write(self, filename, verbose: bool = False, **kwargs) -> None:
        """Write to ``filename``; the arguments are the base class's."""
        with atomic_path(filename) as temporary:
            super().write(temporary, verbose=verbose, **kwargs)
