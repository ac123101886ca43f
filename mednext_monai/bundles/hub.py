"""Publishing a bundle on the Hugging Face Hub: exactly its public files, with a model card made from its metadata.

MONAI's ``push_to_hf_hub`` sends a folder with whatever is in it, and its card states tags and license only. This uses
the same calls of ``huggingface_hub``; ``monai.bundle.load(..., source="huggingface_hub")`` reads the result.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..files import read_json, write_atomically
from ..options import plain
from .archive import bundle_files
from .record import CURVE, PAGE
from .task_bundle import PLAN_COPY, SPLITS

__all__ = ["model_card", "public_files", "publish"]

CARD = "README.md"
PRIVATE = {f"configs/{PLAN_COPY}", f"configs/{SPLITS}"}  # case ids
LICENSES = {"apache-2.0": ("Apache License", "Version 2.0")}  # identifier of the hub, and what the text contains


def public_files(bundle: str | Path) -> dict[str, int]:
    """Return the bytes of the files of a bundle that are published, by path: weights, configs, pages and license."""
    folder = Path(bundle).absolute()
    found = {file.relative_to(folder).as_posix(): file.stat().st_size for file in bundle_files(folder)}
    return dict(sorted(item for item in found.items() if item[0] not in PRIVATE))


def model_card(bundle: str | Path) -> str:
    """
    Return the card of a bundle for the hub: its metadata, and its page.

    Args:
        bundle: folder of the bundle.

    Raises:
        ValueError: if it is not a bundle.
    """
    folder = Path(bundle)
    if not (folder / "configs" / "metadata.json").is_file():
        raise ValueError(f"bundle: {bundle} is not a bundle, it has no configs/metadata.json.")
    metadata = plain(read_json(folder / "configs" / "metadata.json"))
    page = (folder / PAGE).read_text(encoding="utf-8").replace(f"]({Path(CURVE).name})", f"]({CURVE})")
    head = yaml.safe_dump(_card_data(folder, metadata), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n{page}"


def publish(bundle: str | Path, repo: str, private: bool = True, dry_run: bool = False) -> dict[str, int]:
    """
    Write the model card of a bundle, ``README.md``, and send its public files to the Hugging Face Hub.

    The commit gets the version of the metadata as a tag, and the tag ``latest_version``, which MONAI loads.

    Args:
        bundle: folder of the bundle.
        repo: owner and name of the repository, ``owner/name``, which is created if it does not exist.
        private: whether a new repository is private. Defaults to ``True``, as with MONAI.
        dry_run: whether to send nothing. Defaults to ``False``.

    Returns:
        the bytes of the files by path, the card included.

    Raises:
        ValueError: if ``bundle`` is not a bundle or ``repo`` not of that form.
        ImportError: if ``huggingface_hub`` is not installed.
    """
    folder = Path(bundle)
    if len([part for part in repo.split("/") if part]) != 2 or repo.count("/") != 1:
        raise ValueError(f"repo must be OWNER/NAME, got {repo!r}.")
    write_atomically(folder / CARD, model_card(folder).encode())
    files = {CARD: (folder / CARD).stat().st_size, **public_files(folder)}
    if not dry_run:
        _send(folder, repo, private, list(files))
    return files


def _send(folder: Path, repo: str, private: bool, files: list[str]) -> None:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ImportError("publishing needs huggingface_hub: pip install huggingface_hub.") from error
    api, version = HfApi(), str(read_json(folder / "configs" / "metadata.json")["version"])
    api.create_repo(repo_id=repo, private=private, exist_ok=True)
    api.upload_folder(repo_id=repo, folder_path=str(folder), allow_patterns=files, commit_message=f"version {version}")
    api.create_tag(repo_id=repo, tag=version, exist_ok=True)
    api.delete_tag(repo_id=repo, tag="latest_version") if _has_tag(api, repo, "latest_version") else None
    api.create_tag(repo_id=repo, tag="latest_version")


def _has_tag(api: Any, repo: str, tag: str) -> bool:
    return any(reference.name == tag for reference in api.list_repo_refs(repo_id=repo).tags)


def _card_data(folder: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the card that the hub indexes."""
    text = (folder / "LICENSE").read_text(encoding="utf-8") if (folder / "LICENSE").is_file() else ""
    license_name = next((name for name, parts in LICENSES.items() if all(p in text for p in parts)), "other")
    data: dict[str, Any] = {
        "library_name": "monai",
        "license": license_name,
        "pipeline_tag": "image-segmentation",
        "tags": ["monai", "medical", "mednext", "3d-segmentation", metadata["name"]],
    }
    metrics, weights = metadata.get("eval_metrics", {}), metadata.get("weights", {})
    if metrics and weights:
        source = weights["data"]
        task = {"type": "image-segmentation", "name": metadata["task"]}
        dataset = {"type": "other", "name": f"{source['name']}, validation cases of fold {source['fold']}"}
        values = [
            {"type": "dice", "name": f"Dice, {name}", "value": value} for name, value in metrics["dice"].items()
        ] + [{"type": "dice", "name": "mean Dice", "value": metrics["mean_dice"]}]
        results = [{"task": task, "dataset": dataset, "metrics": values}]
        data["model-index"] = [{"name": metadata["name"], "results": results}]
    return data
