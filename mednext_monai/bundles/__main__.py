"""``python -m mednext_monai.bundles [--check] [--zip]``: the same as ``mednext bundle build``, from a checkout."""

import sys

from ..cli import main

sys.exit(main(["bundle", "build", *sys.argv[1:]]))
