"""``python -m mednext_monai.bundles [--check] [--zip]``: build the eight bundles from ``configs/``."""

from __future__ import annotations

import argparse
import sys

from . import build, check, names, path, zip_bundle


def main() -> int:
    """Build, check or zip; return the exit status: 1 when ``--check`` finds a difference."""
    parser = argparse.ArgumentParser(prog="python -m mednext_monai.bundles", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; list the files that differ")
    parser.add_argument("--zip", action="store_true", help="also write bundles/<name>.zip, with weights and code")
    arguments = parser.parse_args()
    if arguments.check:
        differences = check()
        print("\n".join(differences) or "the bundles are what configs/ makes them")
        return 1 if differences else 0
    changed = build()
    print("\n".join(f"wrote {file}" for file in changed) or "nothing to do: the bundles are up to date")
    if arguments.zip:
        for name in names():
            print(f"wrote {zip_bundle(path(name))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
