"""Building the bundles from the commented YAML files in ``configs/``. The same sources give the same bytes."""

from __future__ import annotations

import ast
import json
import re
from itertools import product
from pathlib import Path
from string import Template

import yaml

from .. import __version__
from ..files import write_atomically
from .library import PLACEHOLDER, bundle_name, checkout_root, has_weights
from .record import apply_record

__all__ = ["build", "check", "render"]


def build(output_dir: str | Path | None = None, source_dir: str | Path | None = None) -> list[Path]:
    """
    Write the files of all bundles that have changed; weights and their record in ``models/`` are kept, and applied.

    Args:
        output_dir: folder of the bundles. Defaults to ``bundles/`` in the checkout.
        source_dir: folder of the sources. Defaults to ``configs/`` in the checkout.

    Returns:
        The files whose content changed.

    Raises:
        FileNotFoundError: if there are no sources, as in an installed package.
    """
    changed = []
    for file, content in _rendered(output_dir, source_dir).items():
        if _read(file) != content and not _is_kept(file):
            write_atomically(file, content)
            changed.append(file)
    return changed


def check(output_dir: str | Path | None = None, source_dir: str | Path | None = None) -> list[str]:
    """Return a message for each file that ``build`` would write; the arguments are those of ``build``."""
    differences = _foreign_weights(output_dir)
    for file, content in _rendered(output_dir, source_dir).items():
        if _read(file) is None:
            differences.append(f"{file}: missing; run `mednext bundle build`")
        elif _read(file) != content and not _is_kept(file):
            differences.append(f"{file}: differs from its source in configs/; run `mednext bundle build`")
    return differences


def _foreign_weights(output_dir: str | Path | None) -> list[str]:
    """Return a message for each bundle whose weights are not those of its record."""
    from ..weights.released import is_released

    root = Path(output_dir) if output_dir is not None else checkout_root() / "bundles"
    files = sorted(file.parent / "model.pt" for file in root.glob("*/models/model.json"))
    return [f"{file}: not the weights that model.json beside it describes" for file in files if not is_released(file)]


def render(variant: str, kernel_size: int, source_dir: Path) -> dict[str, bytes]:
    """Return the content of every file of a bundle by its path in the bundle."""
    fields = {
        "name": bundle_name(variant, kernel_size),
        "variant": variant,
        "kernel_size": kernel_size,
        "version": __version__,
    }

    def fill(file: str) -> str:
        return _Template((source_dir / file).read_text()).safe_substitute(fields)

    def load(*files: str) -> dict:
        merged: dict = {}
        for file in files:
            content = _load_yaml(fill(file), file)
            duplicates = sorted(set(merged) & set(content))
            if duplicates:
                raise ValueError(f"configs/{file} defines {duplicates}, which common.yaml defines already.")
            merged.update(content)
        imports = merged.pop("imports", None)
        return merged if imports is None else {"imports": imports, **merged}

    configs = {
        "metadata": load("metadata.yaml"),
        "train": load("common.yaml", "train.yaml"),
        "preprocess": load("preprocess.yaml"),
        "evaluate": load("evaluate.yaml"),
        "inference": load("common.yaml", "inference.yaml"),
        "multi_gpu_train": load("multi_gpu_train.yaml"),
        "multi_gpu_inference": load("multi_gpu_inference.yaml"),
    }
    files = {f"configs/{key}.json": _to_json(value) for key, value in configs.items()}
    files["configs/logging.conf"] = fill("logging.conf").encode()
    files[".gitignore"] = fill("bundle_gitignore").encode()
    files["docs/README.md"] = fill("bundle_readme.md").encode()
    files["LICENSE"] = (source_dir.parent / "LICENSE").read_bytes()
    files["models/model.pt"] = PLACEHOLDER
    return files


class _Template(Template):
    """Replaces ``$name`` only for the names below; every other dollar sign belongs to MONAI's syntax."""

    idpattern = "(?:kernel_size|variant|version|name)"
    flags = re.RegexFlag(0)


class _Loader(yaml.SafeLoader):
    """YAML without duplicate keys."""


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key) for key, _ in node.value]
    duplicates = {key for key in keys if keys.count(key) > 1}
    if duplicates:
        raise ValueError(f"duplicate key(s) {sorted(map(str, duplicates))}{node.start_mark}")
    return dict(zip(keys, (loader.construct_object(value, deep=True) for _, value in node.value)))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def _load_yaml(text: str, file: str) -> dict:
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"configs/{file}: {error}") from error
    _refuse_bad_values(content, file)
    return content


def _refuse_bad_values(item: object, file: str) -> None:
    """Refuse expressions with syntax errors, and numbers that YAML 1.1 reads as strings (``1e-3``)."""
    if isinstance(item, dict):
        for value in item.values():
            _refuse_bad_values(value, file)
    elif isinstance(item, list):
        for value in item:
            _refuse_bad_values(value, file)
    elif isinstance(item, str):
        if item.startswith("$") and not item.startswith(("$import ", "$from ")):
            try:  # MONAI reports a syntax error only when the expression is reached
                ast.parse(item[1:].replace("@", "").replace("::", "_").replace("%", " % "), mode="eval")
            except SyntaxError as error:
                raise ValueError(f"configs/{file}: {item!r} is not a Python expression: {error}") from error
        elif item.replace("e", "", 1).replace("-", "", 1).replace(".", "", 1).isdigit() and "e" in item:
            raise ValueError(f"configs/{file}: {item!r} is read as a string; write the number out.")


def _to_json(content: dict) -> bytes:
    return (json.dumps(content, indent=4, ensure_ascii=False) + "\n").encode()


def _rendered(output_dir: str | Path | None, source_dir: str | Path | None) -> dict[Path, bytes]:
    from ..networks import KERNEL_SIZES, VARIANTS  # imports torch
    from ..weights.released import read_record

    source = Path(source_dir) if source_dir is not None else checkout_root() / "configs"
    output = Path(output_dir) if output_dir is not None else checkout_root() / "bundles"
    if not (source / "common.yaml").is_file():
        raise FileNotFoundError(f"{source} has no common.yaml: bundles are built in a checkout of the project.")
    files = {}
    for variant, kernel_size in product(VARIANTS, KERNEL_SIZES):
        folder = output / bundle_name(variant, kernel_size)
        content, record = render(variant, kernel_size, source), read_record(folder / "models")
        content = apply_record(content, record) if record else content
        files.update({folder / file: data for file, data in content.items()})
    return files


def _read(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _is_kept(file: Path) -> bool:
    """Return whether the file holds trained weights, which are never replaced by the placeholder."""
    return file.name == "model.pt" and has_weights(file.parent.parent)
