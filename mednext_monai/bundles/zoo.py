"""What a pull request to MONAI's model zoo needs: the bundle under ``models/``, and a test in the form of its CI.

Source: CONTRIBUTING.md, ``ci/verify_bundle.py`` and ``ci/unit_tests`` of Project-MONAI/model-zoo.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from string import Template

import yaml

from ..files import read_json, sha256
from .hub import public_files
from .library import has_weights

__all__ = ["LARGEST", "zoo_folder"]

LARGEST = 25_000_000  # bytes of a file in the repository; larger ones are downloaded from a link
TEST = Path(__file__).with_name("zoo_test.py.txt")


def zoo_folder(bundle: str | Path, output_dir: str | Path, weights_url: str | None = None) -> Path:
    """
    Write the files of a pull request: ``models/<name>/`` and ``ci/unit_tests/test_<name>.py``.

    Args:
        bundle: folder of a bundle with released weights.
        output_dir: a new or empty folder.
        weights_url: where ``models/model.pt`` can be downloaded, for ``large_files.yml``, which replaces a file above
            25 MB. Defaults to ``None``.

    Returns:
        the folder.

    Raises:
        FileExistsError: if the folder is not empty.
        ValueError: if the bundle has no weights, if its version is not in its changelog, or if a file is above 25 MB
            and there is no link, naming the file.
    """
    source, target = Path(bundle).absolute(), Path(output_dir).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"output_dir: {target} exists already and is not empty; choose another folder.")
    if not has_weights(source):
        raise ValueError(f"bundle: {bundle} has no weights, which the zoo asks for; train it and release it first.")
    metadata = read_json(source / "configs" / "metadata.json")
    if metadata["version"] not in metadata["changelog"]:
        raise ValueError(f"version {metadata['version']} is not in the changelog of configs/metadata.json.")
    files = public_files(source)
    large = {name: size for name, size in files.items() if size > LARGEST}
    if large and weights_url is None:
        named = ", ".join(f"{name} ({size / 1e6:.0f} MB)" for name, size in large.items())
        raise ValueError(f"weights_url: {named} is above 25 MB, so the zoo needs a link from which it is downloaded.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        folder = Path(temporary, "zoo")
        copy = folder / "models" / source.name
        for name in sorted(set(files) - set(large) - {".gitignore"}):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, copy / name)
        if large:
            links = [_link(source, name, str(weights_url)) for name in large]
            (copy / "large_files.yml").write_text(yaml.safe_dump({"large_files": links}, sort_keys=False))
        test = folder / "ci" / "unit_tests" / f"test_{source.name}.py"
        test.parent.mkdir(parents=True)
        classes = len(metadata["network_data_format"]["outputs"]["pred"]["channel_def"])
        channels = metadata["network_data_format"]["inputs"]["image"]["num_channels"]
        fields = {"name": json.dumps(source.name), "classes": classes, "channels": channels}
        test.write_text(Template(TEST.read_text(encoding="utf-8")).substitute(fields))
        if target.exists():  # empty
            target.rmdir()
        folder.rename(target)
    return target


def _link(source: Path, name: str, url: str) -> dict[str, str]:
    return {"path": name, "url": url, "hash_val": sha256(source / name), "hash_type": "sha256"}
