"""Zipping a bundle together with the code that it needs."""

from __future__ import annotations

import shutil
import zipfile
from fnmatch import fnmatch
from pathlib import Path

from ..files import atomic_path
from .library import PACKAGE

__all__ = ["bundle_files", "left_out", "zip_bundle"]

# In models/: large, of another task, or, nonfinite.pt, with images.
STATES = ("last*.pt", "nonfinite.pt", "pretrained.*", ".*")


def zip_bundle(bundle_dir: str | Path, output: str | Path | None = None) -> Path:
    """
    Zip a bundle with its weights and with the modules of this package, so that it runs where only MONAI is installed.

    Unzipped, the folder ``<name>/`` holds ``mednext_monai/`` beside ``configs/``; Python finds it if the working
    directory is the bundle. The same content gives the same bytes. The weights of all folds are included; caches, logs
    and the states of trainings (``last.pt``, ``last.previous.pt``, ``nonfinite.pt``) are not.

    Args:
        bundle_dir: the bundle's folder.
        output: the file to write. Defaults to ``<bundle_dir>.zip``.

    Returns:
        The path of the zip.

    Raises:
        FileNotFoundError: if the folder is not a bundle.
    """
    bundle = Path(bundle_dir).resolve()
    if not (bundle / "configs" / "metadata.json").is_file():
        raise FileNotFoundError(f"{bundle} is not a bundle: it has no configs/metadata.json.")
    target = Path(output) if output is not None else bundle.with_suffix(".zip")
    entries = {f"{bundle.name}/{file.relative_to(bundle)}": file for file in bundle_files(bundle)}
    for file in sorted(PACKAGE.rglob("*.py")):
        relative = file.relative_to(PACKAGE)
        if relative.parts[0] != "_bundles":
            entries[f"{bundle.name}/mednext_monai/{relative}"] = file
    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in sorted(entries.items()):
            info = zipfile.ZipInfo(name)  # its date is always 1980: the same content gives the same bytes
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            with archive.open(info, "w", force_zip64=True) as out, open(file, "rb") as stream:
                shutil.copyfileobj(stream, out)
    return target


def left_out(bundle_dir: str | Path) -> dict[str, tuple[int, int]]:
    """
    Return what a zip of a bundle does not contain.

    Returns:
        the number of files and their bytes by name: a file of the bundle's folder or of ``models/``, or a whole folder,
        which ends in ``/``.
    """
    bundle = Path(bundle_dir).resolve()
    missing: dict[str, tuple[int, int]] = {}
    for file in sorted({file for file in bundle.rglob("*") if file.is_file()} - set(bundle_files(bundle))):
        first, *rest = file.relative_to(bundle).parts
        name = first + "/" * bool(rest) if first != "models" else "/".join((first, *rest))
        files, size = missing.get(name, (0, 0))
        missing[name] = files + 1, size + file.stat().st_size
    return missing


def bundle_files(bundle: Path) -> list[Path]:
    """Return the files of a bundle that are not data, results or states of a training."""
    files = [bundle / ".gitignore", bundle / "LICENSE", *(bundle / "configs").rglob("*"), *(bundle / "docs").rglob("*")]
    models = (bundle / "models").rglob("*")
    files += [file for file in models if not any(fnmatch(file.name, pattern) for pattern in STATES)]
    return [file for file in files if file.is_file()]
