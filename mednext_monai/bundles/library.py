"""The bundles in a checkout or an installed package: their names, their folders, and copies of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

__all__ = [
    "PACKAGE",
    "PLACEHOLDER",
    "RECORD",
    "bundle_name",
    "checkout_root",
    "config_sources",
    "copy",
    "has_weights",
    "names",
    "path",
]

PACKAGE = Path(__file__).resolve().parent.parent

RECORD = "model.json"  # in models/: what is known about weights that a bundle was released with
# models/model.pt of a bundle without weights. Without a file there, `monai.bundle.load` would try to download one.
# It is a readable text; torch's weights-only loader parses it as a reference to an unknown class, refuses it and
# quotes its first line. Nothing in it can be executed.
PLACEHOLDER = (
    b"cThis bundle has no trained weights yet: train it, or put a checkpoint (see `mednext convert --help`) "
    b"at models/model\npt\n.\n"
)


def bundle_name(variant: str, kernel_size: int) -> str:
    """Return the name of the bundle of a variant and kernel size."""
    return f"mednext_{variant.lower()}_k{kernel_size}"


def names() -> list[str]:
    """Return the names of the bundles that have been built: mednext_b_k3, mednext_b_k5, ..., mednext_s_k5."""
    return sorted(_folders())


def checkout_root() -> Path:
    """Return the folder that contains this package, which is the root of the checkout if there is one."""
    return PACKAGE.parent


def config_sources() -> Path:
    """Return the folder of the commented sources of the bundles: ``configs/`` in a checkout, or its copy in a wheel."""
    installed = PACKAGE / "_configs"
    return installed if installed.is_dir() else checkout_root() / "configs"


def path(name: str) -> Path:
    """
    Return the folder of a bundle: in the installed package, or ``bundles/<name>`` in a checkout.

    Raises:
        ValueError: if there is no bundle of this name.
    """
    folders = _folders()
    if name not in folders:
        known = f"the bundles are {', '.join(sorted(folders))}" if folders else "build them: mednext bundle build"
        raise ValueError(f"there is no bundle {name!r}; {known}.")
    return folders[name]


def _folders() -> dict[str, Path]:
    """Return the folders of the bundles by name; those of the installed package take precedence."""
    roots = (checkout_root() / "bundles", PACKAGE / "_bundles")
    return {
        file.parents[1].name: file.parents[1] for root in roots for file in root.glob("mednext_*/configs/train.json")
    }


def has_weights(bundle_dir: str | Path) -> bool:
    """Return whether the bundle has weights at ``models/model.pt``, not the placeholder."""
    file = Path(bundle_dir, "models", "model.pt")
    if not file.is_file():
        return False
    with open(file, "rb") as stream:
        return stream.read(12) != PLACEHOLDER[:12]  # older placeholders start in the same way


def copy(name: str, output_dir: str | Path = ".") -> Path:
    """
    Copy a bundle to ``output_dir/<name>``, completely or not at all, and return that folder.

    Raises:
        ValueError: if there is no bundle of this name.
        FileExistsError: if the folder exists already; its content is not changed.
    """
    source, target = path(name), Path(output_dir, name)
    if target.exists():
        raise FileExistsError(f"{target} exists already; remove it or choose another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}.") as temporary:
        shutil.copytree(source, Path(temporary, name), copy_function=shutil.copyfile)
        os.replace(Path(temporary, name), target)
    return target
