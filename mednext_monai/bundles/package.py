"""Finding the bundles of a checkout or an installed package, copying one, and zipping one with the package's code."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from ..files import atomic_path

__all__ = ["PLACEHOLDER", "bundle_name", "copy", "has_weights", "names", "path", "zip_bundle"]

PACKAGE = Path(__file__).resolve().parent.parent

# models/model.pt of a bundle without weights. Without a file there, `monai.bundle.load` would try to download one.
# As text it reads as what it is; torch's weights-only loader takes it for a reference to an unknown class, refuses
# it and quotes its first line. Nothing in it can be executed.
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
    """Return the root of the checkout that this package lies in, whether it is one or not."""
    return PACKAGE.parent


def path(name: str) -> Path:
    """
    Return the folder of a bundle: that of the installed package, or in a checkout ``bundles/<name>``.

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
    """Return whether the bundle has weights at ``models/model.pt`` and not the placeholder."""
    file = Path(bundle_dir, "models", "model.pt")
    if not file.is_file():
        return False
    with open(file, "rb") as stream:
        return stream.read(12) != PLACEHOLDER[:12]  # an older placeholder is one, too


def copy(name: str, output_dir: str | Path = ".") -> Path:
    """
    Copy a bundle to ``output_dir/<name>`` and return that folder; all of it appears there or nothing.

    Raises:
        ValueError: when there is no bundle of this name.
        FileExistsError: when the folder exists already; nothing in it is touched.
    """
    source, target = path(name), Path(output_dir, name)
    if target.exists():
        raise FileExistsError(f"{target} exists already; remove it or name another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}.") as temporary:
        shutil.copytree(source, Path(temporary, name), copy_function=shutil.copyfile)
        os.replace(Path(temporary, name), target)
    return target


def zip_bundle(bundle_dir: str | Path, output: str | Path | None = None) -> Path:
    """
    Zip a bundle with its weights and with this package's modules, so that it runs where only MONAI is installed.

    Unzipped, the folder ``<name>/`` holds ``mednext_monai/`` beside ``configs/``; Python finds it when the working
    directory is the bundle. The same content gives the same bytes. Left out are caches, logs and ``last.pt``.

    Args:
        bundle_dir: the bundle's folder.
        output: the file to write. Defaults to ``<bundle_dir>.zip``.

    Raises:
        FileNotFoundError: when the folder is no bundle.
    """
    bundle = Path(bundle_dir).resolve()
    if not (bundle / "configs" / "metadata.json").is_file():
        raise FileNotFoundError(f"{bundle} is no bundle: it has no configs/metadata.json.")
    target = Path(output) if output is not None else bundle.with_suffix(".zip")
    entries = {f"{bundle.name}/{file.relative_to(bundle)}": file for file in _bundle_files(bundle)}
    for file in sorted(PACKAGE.rglob("*.py")):
        relative = file.relative_to(PACKAGE)
        if relative.parts[0] != "_bundles":
            entries[f"{bundle.name}/mednext_monai/{relative}"] = file
    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in sorted(entries.items()):
            info = zipfile.ZipInfo(name)  # dated 1980: the same content, the same bytes
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            with archive.open(info, "w", force_zip64=True) as out, open(file, "rb") as stream:
                shutil.copyfileobj(stream, out)
    return target


def _bundle_files(bundle: Path) -> list[Path]:
    files = [bundle / "LICENSE", *(bundle / "configs").rglob("*"), *(bundle / "docs").rglob("*")]
    files += [file for file in (bundle / "models").glob("*") if file.name != "last.pt" and file.name[0] != "."]
    return [file for file in files if file.is_file()]
