"""Writing of segmentations, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from monai.data import NibabelWriter

__all__ = ["AtomicNibabelWriter"]


class AtomicNibabelWriter(NibabelWriter):
    """
    MONAI's NIfTI writer, by way of a temporary file beside the target that is then renamed.

    Written straight to its name, as the base class does, a file is broken when the process is killed meanwhile.
    """

    def write(self, filename, verbose: bool = False, **kwargs) -> None:
        """Write to ``filename``; the arguments are the base class's."""
        target = Path(filename)
        suffix = "".join(target.suffixes[-2:]) if target.name.endswith(".gz") else target.suffix
        temporary = target.with_name(f".{target.name}.{os.getpid()}{suffix}")
        try:
            super().write(temporary, verbose=verbose, **kwargs)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
