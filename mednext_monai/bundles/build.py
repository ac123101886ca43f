"""Building the bundles from the commented YAML in ``configs/``: the same sources give the same bytes."""

from __future__ import annotations

import ast
import json
from itertools import product
from pathlib import Path
from string import Template

import yaml

from .. import __version__
from ..files import write_atomically
from .package import PLACEHOLDER, bundle_name, checkout_root, has_weights

__all__ = ["build", "check", "render"]


def build(output_dir: str | Path | None = None, source_dir: str | Path | None = None) -> list[Path]:
    """
    Write all bundles, file by file, leaving weights in ``models/`` alone.

    Args:
        output_dir: folder of the bundles. Defaults to ``bundles/`` of the checkout.
        source_dir: folder of the sources. Defaults to ``configs/`` of the checkout.

    Returns:
        The files whose content changed.

    Raises:
        FileNotFoundError: when run from an installed package, which has the bundles but not their sources.
    """
    changed = []
    for file, content in _rendered(output_dir, source_dir).items():
        if _read(file) != content and not _is_kept(file):
            write_atomically(file, content)
            changed.append(file)
    return changed


def check(output_dir: str | Path | None = None, source_dir: str | Path | None = None) -> list[str]:
    """Return a line for each file that is not what ``build`` would write; the arguments are those of ``build``."""
    differences = []
    for file, content in _rendered(output_dir, source_dir).items():
        if _read(file) is None:
            differences.append(f"{file}: missing; run python -m mednext_monai.bundles")
        elif _read(file) != content and not _is_kept(file):
            differences.append(f"{file}: differs from its source in configs/; run python -m mednext_monai.bundles")
    return differences


def render(variant: str, kernel_size: int, source_dir: Path) -> dict[str, bytes]:
    """Return the content of every file of one bundle by its path within the bundle."""
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
            double = sorted(set(merged) & set(content))
            if double:
                raise ValueError(f"configs/{file} defines {double} a second time; see common.yaml.")
            merged.update(content)
        imports = merged.pop("imports", None)
        return merged if imports is None else {"imports": imports, **merged}

    configs = {
        "metadata": load("metadata.yaml"),
        "train": load("common.yaml", "train.yaml"),
        "evaluate": load("evaluate.yaml"),
        "inference": load("common.yaml", "inference.yaml"),
        "multi_gpu_train": load("multi_gpu_train.yaml"),
    }
    files = {f"configs/{key}.json": _to_json(value) for key, value in configs.items()}
    files["configs/logging.conf"] = fill("logging.conf").encode()
    files["docs/README.md"] = fill("bundle_readme.md").encode()
    files["LICENSE"] = (source_dir.parent / "LICENSE").read_bytes()
    files["models/model.pt"] = PLACEHOLDER
    return files


class _Template(Template):
    """``$name`` only where the name is one of ours; every other dollar sign is MONAI's."""

    idpattern = "(?:kernel_size|variant|version|name)"
    flags = 0


class _Loader(yaml.SafeLoader):
    """YAML without duplicate keys and without numbers that YAML 1.1 reads as strings (``1e-3``)."""


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key) for key, _ in node.value]
    double = {key for key in keys if keys.count(key) > 1}
    if double:
        raise ValueError(f"duplicate key(s) {sorted(map(str, double))}{node.start_mark}")
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
                raise ValueError(f"configs/{file}: {item!r} is no Python expression: {error}") from error
        elif item.replace("e", "", 1).replace("-", "", 1).replace(".", "", 1).isdigit() and "e" in item:
            raise ValueError(f"configs/{file}: {item!r} is read as a string; write the number out.")


def _to_json(content: dict) -> bytes:
    return (json.dumps(content, indent=4, ensure_ascii=False) + "\n").encode()


def _rendered(output_dir: str | Path | None, source_dir: str | Path | None) -> dict[Path, bytes]:
    from ..networks import KERNEL_SIZES, VARIANTS  # imports torch

    source = Path(source_dir) if source_dir is not None else checkout_root() / "configs"
    output = Path(output_dir) if output_dir is not None else checkout_root() / "bundles"
    if not (source / "common.yaml").is_file():
        raise FileNotFoundError(f"{source} holds no common.yaml: bundles are built in a checkout of the project.")
    files = {}
    for variant, kernel_size in product(VARIANTS, KERNEL_SIZES):
        folder = output / bundle_name(variant, kernel_size)
        files.update({folder / file: data for file, data in render(variant, kernel_size, source).items()})
    return files


def _read(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _is_kept(file: Path) -> bool:
    """Whether the file holds trained weights, which a build never replaces by the placeholder."""
    return file.name == "model.pt" and has_weights(file.parent.parent)
