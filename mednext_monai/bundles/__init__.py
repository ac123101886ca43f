"""The eight MONAI bundles: where they are, copies of them, and their build from the sources in ``configs/``.

Imports neither torch nor monai.
"""

from .build import build, check
from .package import copy, names, path, zip_bundle

__all__ = ["build", "check", "copy", "names", "path", "zip_bundle"]
