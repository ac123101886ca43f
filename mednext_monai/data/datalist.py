"""Lists of cases for training, validation and inference, read from a Decathlon-style ``dataset.json`` or a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from .folds import kfold_indices

__all__ = ["IMAGE_SUFFIXES", "case_id", "inference_cases", "training_cases"]

IMAGE_SUFFIXES = (".nii.gz", ".nii")
FOLDS = 5


def case_id(path: str | Path) -> str:
    """Return the file name without its image suffix: ``imagesTr/heart_01.nii.gz`` -> ``heart_01``."""
    name = Path(path).name
    return next((name[: -len(suffix)] for suffix in IMAGE_SUFFIXES if name.endswith(suffix)), name)


def training_cases(dataset_dir: str, fold: int | str = 0, section: str = "training") -> list[dict]:
    """
    Return the cases of one side of one fold of a Medical Segmentation Decathlon data set.

    Cases are sorted by their image's name and split into five folds as nnU-Net v1 does (``kfold_indices``).
    (MONAI's ``load_decathlon_datalist`` reads the same file but neither sorts nor splits.)

    Args:
        dataset_dir: folder with a ``dataset.json`` that lists ``training: [{"image": ..., "label": ...}, ...]``,
            paths relative to the folder.
        fold: 0 to 4, or ``"all"`` to train and validate on every case.
        section: ``"training"`` or ``"validation"``.

    Returns:
        ``[{"id": name, "image": path, "label": path}, ...]``.

    Raises:
        FileNotFoundError: when there is no ``dataset.json``.
        ValueError: when it lists no training case, lists one twice, or there is no such fold.
    """
    if section not in ("training", "validation"):
        raise ValueError(f"section must be 'training' or 'validation', got {section!r}.")
    file, content = _read_dataset_json(dataset_dir)
    entries = content.get("training")
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{file} lists no training cases: 'training' must be a list of {{'image', 'label'}}.")
    cases = []
    for entry in entries:
        if not isinstance(entry, Mapping) or not {"image", "label"} <= set(entry):
            raise ValueError(f"{file}: every entry of 'training' needs 'image' and 'label', got {entry!r}.")
        image, label = (str(Path(dataset_dir, entry[key])) for key in ("image", "label"))
        cases.append({"id": case_id(image), "image": image, "label": label})
    cases.sort(key=lambda case: case["id"])
    _refuse_duplicates(file, [case["id"] for case in cases])
    if fold == "all":
        return cases
    if not isinstance(fold, int) or isinstance(fold, bool) or not 0 <= fold < FOLDS:
        raise ValueError(f"fold must be one of {list(range(FOLDS))} or 'all', got {fold!r}.")
    validation = set(kfold_indices(len(cases), FOLDS)[fold])
    return [case for index, case in enumerate(cases) if (index in validation) == (section == "validation")]


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
