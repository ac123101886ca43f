"""Lists of cases for training, validation and inference, from a data set or a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from .dataset import read_dataset
from .folds import make_folds, read_splits, select_fold

__all__ = ["IMAGE_SUFFIXES", "case_id", "inference_cases", "training_cases"]

IMAGE_SUFFIXES = (".nii.gz", ".nii")


def case_id(path: str | Path) -> str:
    """Return the file name without its image suffix: ``imagesTr/heart_01.nii.gz`` -> ``heart_01``."""
    name = Path(path).name
    return next((name[: -len(suffix)] for suffix in IMAGE_SUFFIXES if name.endswith(suffix)), name)


def training_cases(
    dataset_dir: str, fold: int | str = 0, section: str = "training", splits: Sequence[Mapping] | None = None
) -> list[dict]:
    """
    Return the cases of one side of one fold.

    (MONAI's ``load_decathlon_datalist`` reads one layout of three and neither sorts nor splits.)

    Args:
        dataset_dir: a data set in Decathlon, nnU-Net v1 raw or nnU-Net v2 raw layout; see :py:func:`read_dataset`.
        fold: a number from 0, or ``"all"`` to train and validate on every case.
        section: ``"training"`` or ``"validation"``.
        splits: the folds, each ``{"train": ids, "val": ids}``. Defaults to ``None``: the data set's own
            ``splits_final.json``, or the five of nnU-Net v1.

    Returns:
        ``[{"id": name, "image": path, or one per channel, "label": path}, ...]``, sorted by name.

    Raises:
        DatasetError: a ``ValueError``, when there is no ``dataset.json``, or it lists no case, or one twice.
        ValueError: when there is no such fold, or it names a case that is not there.
    """
    if section not in ("training", "validation"):
        raise ValueError(f"section must be 'training' or 'validation', got {section!r}.")
    cases = read_dataset(dataset_dir).cases
    ids = [case["id"] for case in cases]
    own = Path(dataset_dir, "splits_final.json")
    if fold != "all" and splits is None:
        splits = read_splits(own, ids) if own.is_file() else make_folds(ids)
    chosen = set(select_fold(splits or [], fold, ids)["train" if section == "training" else "val"])
    unknown = sorted(chosen - set(ids))
    if unknown:
        raise ValueError(f"fold {fold} names {unknown[:5]}, which {dataset_dir} does not have.")
    return [{**case, "image": _one_or_all(case["image"])} for case in cases if case["id"] in chosen]


def inference_cases(dataset_dir: str, input_path: str | None = None) -> list[dict]:
    """
    Return the images to segment.

    Args:
        dataset_dir: folder with a ``dataset.json`` whose ``test`` lists images, or with a sub-folder ``imagesTs``.
        input_path: an image, or a folder of images; when given, ``dataset_dir`` is not looked at.

    Returns:
        ``[{"id": name, "image": path}, ...]``, sorted by name.

    Raises:
        FileNotFoundError: when the given file or folder does not exist.
        ValueError: when there is no image.
    """
    if input_path is not None:
        paths, source = _images_under(Path(input_path)), Path(input_path)
    elif Path(dataset_dir, "dataset.json").is_file():
        source, content = _read_dataset_json(dataset_dir)
        tests = [entry["image"] if isinstance(entry, Mapping) else entry for entry in content.get("test") or []]
        paths = [Path(dataset_dir, entry) for entry in tests]
    else:
        source = Path(dataset_dir, "imagesTs")
        paths = _images_under(source)
    if not paths:
        raise ValueError(
            f"{source} holds no image to segment: expected files ending in {' or '.join(IMAGE_SUFFIXES)}, "
            "or a 'test' list in dataset.json; --input names a file or a folder."
        )
    ids = [case_id(path) for path in paths]
    _refuse_duplicates(source, ids)  # their predictions would overwrite each other
    return sorted(({"id": name, "image": str(path)} for name, path in zip(ids, paths)), key=lambda case: case["id"])


def _one_or_all(paths: Sequence[str]) -> str | list[str]:
    return paths[0] if len(paths) == 1 else list(paths)


def _read_dataset_json(dataset_dir: str) -> tuple[Path, dict]:
    file = Path(dataset_dir, "dataset.json")
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist: dataset_dir must be a folder in Medical Segmentation Decathlon layout "
            "(dataset.json, imagesTr, labelsTr)."
        )
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object, got {type(content).__name__}.")
    return file, content


def _images_under(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist: expected an image or a folder of images.")
    return [file for file in sorted(path.iterdir()) if file.name.endswith(IMAGE_SUFFIXES) and file.name[0] != "."]


def _refuse_duplicates(source: Path, ids: list[str]) -> None:
    double = sorted({name for name in ids if ids.count(name) > 1})
    if double:
        raise ValueError(f"{source} lists more than one image named {', '.join(double[:5])}; names must be unique.")
