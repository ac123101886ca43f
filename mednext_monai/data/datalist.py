"""Lists of cases for training, validation and inference, from a data set or a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..preprocessing.files import read_grid
from .dataset import ENDINGS, file_ending, modality_files, read_dataset, strip_ending
from .folds import make_folds, read_splits, select_fold

__all__ = ["inference_cases", "training_cases"]

CHANNEL_FILE = re.compile(r"(.+)_(\d{4})")  # nnU-Net's name of a file with one channel, without its ending


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


def inference_cases(dataset_dir: str, input_path: str | None = None, in_channels: int = 1) -> list[dict]:
    """
    Return the images to segment.

    A file ends in one of ``ENDINGS``. Where images have several channels, a case is one file with all of them or, as
    in nnU-Net, one file for each, named ``case_0000.nii.gz``, ``case_0001.nii.gz``, ... Names of one channel are taken
    for nnU-Net's when the data set is one, or all of a folder's end in ``_0000``.

    Args:
        dataset_dir: a data set with ``imagesTs``, or with a ``dataset.json`` whose ``test`` lists images.
        input_path: an image, one of a case's channel files, or a folder of either; when given, ``dataset_dir`` is not
            looked at.
        in_channels: the channels that the network takes. Defaults to 1.

    Returns:
        ``[{"id": name, "image": path, or one per channel}, ...]``, sorted by name.

    Raises:
        FileNotFoundError: when the given file or folder does not exist.
        ValueError: when there is no image, two have one name, or naming the channels that a case lacks.
    """
    if input_path is not None:
        source = Path(input_path)
        cases = _cases_of(_images_under(source, in_channels), source, in_channels)
    else:
        source, cases = _test_cases(Path(dataset_dir), in_channels)
    if not cases:
        raise ValueError(
            f"{source} holds no image to segment: expected files ending in {', '.join(ENDINGS)} there or in the "
            "folder imagesTs, or a 'test' list in dataset.json; --input names a file or a folder."
        )
    _refuse_duplicates(source, [case["id"] for case in cases])  # their predictions would overwrite each other
    return sorted(cases, key=lambda case: case["id"])


def _test_cases(directory: Path, in_channels: int) -> tuple[Path, list[dict]]:
    """Return the test cases of a data set and where they are from: the list in dataset.json or the folder imagesTs."""
    file, content = directory / "dataset.json", {}
    if file.is_file():
        content = _read_dataset_json(file)
    version_2 = "channel_names" in content
    listed = [] if version_2 else content.get("test") or []
    if listed:
        paths = [directory / (entry["image"] if isinstance(entry, Mapping) else entry) for entry in listed]
        return file, [_listed_case(path, in_channels) for path in paths]
    folder = directory / "imagesTs"
    if content and not folder.is_dir():
        return file, []
    ending = content.get("file_ending", "") if version_2 else ""
    files = [path for path in _images_under(folder, in_channels) if path.name.endswith(ending)]
    return folder, _cases_of(files, folder, in_channels, per_channel=version_2)


def _listed_case(path: Path, in_channels: int) -> dict:
    """A case of the list in dataset.json: one file or, as nnU-Net v1 has them, those beside it with its channels."""
    files = modality_files(path, in_channels)
    if not path.exists() and any(Path(file).exists() for file in files):
        return {"id": strip_ending(path), "image": _one_or_all(files)}
    return {"id": strip_ending(path), "image": str(path)}


def _cases_of(files: Sequence[Path], source: Path, in_channels: int, per_channel: bool = False) -> list[dict]:
    """Group files into cases; ``per_channel`` when it is known that each holds one channel, else by their names."""
    numbered = [(CHANNEL_FILE.fullmatch(strip_ending(file)), file) for file in files]
    marked = [file for match, file in numbered if match and int(match[2]) < in_channels]
    if in_channels == 1:
        per_channel = per_channel or len(marked) == len(files)
    elif not per_channel:
        per_channel = bool(marked) and not _has_channels(marked[0], in_channels)
    if not per_channel:
        return [{"id": strip_ending(file), "image": str(file)} for file in files]
    groups: dict[str, dict[int, str]] = {}
    problems = []
    for match, file in numbered:
        if match is None:
            problems.append(f"{file.name}: its name does not end in the number of a channel, such as _0000")
        elif int(match[2]) >= in_channels:
            problems.append(f"{file.name}: is channel {int(match[2])}, counted from 0; in_channels is {in_channels}")
        elif int(match[2]) in groups.setdefault(match[1], {}):
            problems.append(f"{file.name}: case {match[1]} has two files of this channel")
        else:
            groups[match[1]][int(match[2])] = str(file)
    for name, channels in groups.items():
        lacking = [f"{name}_{channel:04d}" for channel in range(in_channels) if channel not in channels]
        if lacking:
            problems.append(f"{name}: has no file {' and no file '.join(lacking)}; in_channels is {in_channels}")
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(f"{source}: {len(problems)} problem(s) with channel files:{listed}")
    return [
        {"id": name, "image": _one_or_all([channels[channel] for channel in range(in_channels)])}
        for name, channels in groups.items()
    ]


def _has_channels(file: Path, in_channels: int) -> bool:
    """Whether one file has all channels: a number at the end of its name is then that of the case."""
    try:
        return read_grid(file)[0][0] == in_channels
    except ValueError:
        return False  # the check of the cases says more about it


def _one_or_all(paths: Sequence[str]) -> str | list[str]:
    return paths[0] if len(paths) == 1 else list(paths)


def _read_dataset_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object, got {type(content).__name__}.")
    return content


def _images_under(path: Path, in_channels: int) -> list[Path]:
    """Return the images of a folder, or the given one with the other channel files of its case."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: expected an image or a folder of images.")
    if path.is_dir():
        return [file for file in sorted(path.iterdir()) if file_ending(file) and file.name[0] != "."]
    match = CHANNEL_FILE.fullmatch(strip_ending(path))
    if in_channels == 1 or not match or _has_channels(path, in_channels):
        return [path]
    return [
        Path(file)
        for file in modality_files(path.with_name(match[1] + file_ending(path)), in_channels)
        if Path(file).exists()
    ]


def _refuse_duplicates(source: Path, ids: list[str]) -> None:
    double = sorted({name for name in ids if ids.count(name) > 1})
    if double:
        raise ValueError(f"{source} lists more than one image named {', '.join(double[:5])}; names must be unique.")
