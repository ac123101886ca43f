"""The eight MONAI bundles: where they are, copies of them, bundles of the user's own
task made from them and a plan, and their build from the sources in ``configs/``.

Importing it imports neither torch nor monai.
"""

from .build import build, check
from .new import new_bundle
from .package import copy, names, path, zip_bundle

__all__ = ["build", "check", "copy", "names", "new_bundle", "path", "zip_bundle"]
