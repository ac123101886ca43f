"""``python -m mednext_monai``: the same as the console script ``mednext``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
