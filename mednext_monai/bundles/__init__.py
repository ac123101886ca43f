"""The MONAI bundles: finding and copying them, building them from ``configs/``, creating one for a task,
running, releasing, zipping and publishing one.

Importing this package imports neither torch nor monai.
"""

from .archive import left_out, zip_bundle
from .builder import build, check
from .hub import publish
from .library import copy, find, has_weights, names, path
from .release import release
from .task_bundle import new_bundle
from .zoo import zoo_folder

__all__ = [
    "build",
    "check",
    "copy",
    "find",
    "has_weights",
    "left_out",
    "names",
    "new_bundle",
    "path",
    "publish",
    "release",
    "zip_bundle",
    "zoo_folder",
]
