"""Data set layouts, and the lists of cases for training and inference.

The supported layouts are Medical Segmentation Decathlon, nnU-Net v1 raw and nnU-Net v2 raw. In each of them a case
becomes ``{"id": str, "image": [str, ...], "label": str}``, with one image file per channel or one file with all
channels (Decathlon, 4D). Only ``dataset.json`` is read here; ``checks`` reads the images.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .folds import Split, make_folds, read_splits, select_fold
from .io import ENDINGS, file_ending, read_grid, strip_ending

__all__ = ["Dataset", "DatasetError", "cases_digest", "inference_cases", "read_dataset", "training_cases"]

CHANNEL_FILE = re.compile(r"(.+)_(\d{4})")  # nnU-Net's name of a file with one channel, without its ending


class DatasetError(ValueError):
    """
    Error for an invalid data set; the message lists all problems.

    Args:
        directory: directory of the data set.
        problems: one line per problem, each with the file or the key.
    """

    def __init__(self, directory: str | Path, problems: list[str]) -> None:
        self.problems = list(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{directory}: {count} found", *(f"  - {problem}" for problem in problems)]))


@dataclass(frozen=True)
class Dataset:
    """
    The cases of a data set and their description in ``dataset.json``.

    Args:
        directory: directory that contains ``dataset.json``.
        layout: ``"decathlon"``, ``"nnunet_v1"`` or ``"nnunet_v2"``.
        name: name of the data set.
        channel_names: name of each image channel, in order.
        labels: name of each class, background first; the position is the value in the label files.
        cases: ``{"id": str, "image": [path per channel, or one path], "label": path}``, sorted by id.
    """

    directory: Path
    layout: str
    name: str
    channel_names: list[str]
    labels: list[str]
    cases: list[dict]


def read_dataset(directory: str | Path) -> Dataset:
    """
    Read ``dataset.json`` and list the training cases.

    Missing image and label files are not detected here; ``checks`` reports them with all other problems.

    Args:
        directory: directory of the data set, or its ``dataset.json``.

    Raises:
        DatasetError: if there is no valid ``dataset.json`` of a supported layout, if it declares something that is not
            supported (region-based labels, an ignore label, gaps between label values, duplicate ids), or if there are
            files of a channel that it does not declare.
    """
    directory = Path(directory)
    if directory.name == "dataset.json":
        directory = directory.parent
    directory = Path(os.path.abspath(directory))
    description = _read_json(directory)
    names = description.get("channel_names", description.get("modality"))
    if names is None or "labels" not in description:
        raise DatasetError(
            directory,
            [
                "dataset.json: needs 'labels' and either 'modality' (Decathlon, nnU-Net v1) or 'channel_names' "
                f"(nnU-Net v2); found the keys {sorted(description)}"
            ],
        )
    channel_names = _channel_names(directory, names)
    labels = _label_names(directory, description["labels"])
    if "channel_names" in description:
        layout, cases = "nnunet_v2", _nnunet_v2_cases(directory, description, len(channel_names))
    else:
        layout, cases = _listed_cases(directory, description, len(channel_names))
    if not cases:
        raise DatasetError(directory, [_no_cases(description)])
    counts = Counter(case["id"] for case in cases)
    twice = [f"{case}: this case id occurs {n} times; ids must be unique" for case, n in counts.items() if n > 1]
    if twice:
        raise DatasetError(directory, twice)
    name = str(description.get("name", directory.name))
    return Dataset(directory, layout, name, channel_names, labels, sorted(cases, key=lambda case: case["id"]))


def training_cases(
    dataset_dir: str, fold: int | str = 0, section: str = "training", splits: str | Path | Sequence[Split] | None = None
) -> list[dict]:
    """
    Return the training or validation cases of a fold.

    MONAI's ``load_decathlon_datalist`` reads only one of the three layouts and neither sorts nor splits.

    Args:
        dataset_dir: a data set in Decathlon, nnU-Net v1 raw or nnU-Net v2 raw layout; see :py:func:`read_dataset`.
        fold: fold index, from 0, or ``"all"`` to train and validate on every case. Defaults to 0.
        section: ``"training"`` or ``"validation"``. Defaults to ``"training"``.
        splits: the folds, each ``{"train": ids, "val": ids}``, or the path of a JSON file with their list. Defaults to
            ``None``: the data set's own ``splits_final.json`` if it exists, else the five folds of nnU-Net v1.

    Returns:
        ``[{"id": str, "image": path or list of one path per channel, "label": path}, ...]``, sorted by id.

    Raises:
        DatasetError: if the data set is invalid, see :py:func:`read_dataset`.
        ValueError: if ``section`` is invalid, the fold does not exist, or it contains an unknown case.
    """
    if section not in ("training", "validation"):
        raise ValueError(f"section must be 'training' or 'validation', got {section!r}.")
    cases = read_dataset(dataset_dir).cases
    ids = [case["id"] for case in cases]
    own = Path(dataset_dir, "splits_final.json")
    if fold != "all" and isinstance(splits, (str, Path)):
        splits = read_splits(splits, ids)
    if fold != "all" and splits is None:
        splits = read_splits(own, ids) if own.is_file() else make_folds(ids)
    folds = [] if fold == "all" or splits is None or isinstance(splits, (str, Path)) else splits
    chosen = set(select_fold(folds, fold, ids)["train" if section == "training" else "val"])
    unknown = sorted(chosen - set(ids))
    if unknown:
        raise ValueError(f"fold {fold} names {unknown[:5]}, which {dataset_dir} does not have.")
    return [{**case, "image": _one_or_all(case["image"])} for case in cases if case["id"] in chosen]


def cases_digest(cases: Sequence[Mapping]) -> str:
    """Return the number of cases and a short hash of their ids, which tells two lists of cases apart."""
    names = "\n".join(sorted(case["id"] for case in cases))
    return f"{len(cases)} cases, {hashlib.blake2b(names.encode(), digest_size=4).hexdigest()}"


def inference_cases(dataset_dir: str, input_path: str | None = None, in_channels: int = 1) -> list[dict]:
    """
    Return the images to segment.

    Files have one of the ``ENDINGS``. A case with several channels is one file with all channels, or one file per
    channel named as in nnU-Net: ``case_0000.nii.gz``, ``case_0001.nii.gz``, ... With one channel, a final ``_0000`` is
    treated as the channel number if the data set has nnU-Net's layout, or if all files of the folder end in it.

    Args:
        dataset_dir: a data set with ``imagesTs``, or with a ``dataset.json`` whose ``test`` lists images.
        input_path: an image, one of the channel files of a case, or a folder of either; replaces ``dataset_dir``.
            Defaults to ``None``.
        in_channels: number of input channels of the network. Defaults to 1.

    Returns:
        ``[{"id": str, "image": path or list of one path per channel}, ...]``, sorted by id.

    Raises:
        FileNotFoundError: if the given file or folder does not exist.
        ValueError: if there is no image, two images have the same name, or a case lacks a channel.
    """
    if input_path is not None:
        source = Path(input_path)
        cases = _cases_of(_images_under(source, in_channels), source, in_channels)
    else:
        source, cases = _test_cases(Path(dataset_dir), in_channels)
    if not cases:
        raise ValueError(
            f"{source} contains no image to segment: expected files ending in {', '.join(ENDINGS)} there or in the "
            "folder imagesTs, or a 'test' list in dataset.json; --input selects a file or a folder."
        )
    _refuse_duplicates(source, [case["id"] for case in cases])  # their predictions would overwrite each other
    return sorted(cases, key=lambda case: case["id"])


def _no_cases(description: dict) -> str:
    if "channel_names" in description:
        ending = description["file_ending"]
        return f"no training case: imagesTr/ has no file like case_0000{ending}, with the file_ending of dataset.json"
    return "no training case: 'training' in dataset.json is empty"


def _channel_files(path: Path, channels: int) -> list[str]:
    """Return the files that nnU-Net names ``case_0000.nii.gz``, ``case_0001.nii.gz``, ... for ``case.nii.gz``."""
    case = strip_ending(path.name)
    ending = path.name[len(case) :]
    return [os.path.abspath(path.parent / f"{case}_{channel:04d}{ending}") for channel in range(channels)]


def _read_json(directory: Path) -> dict:
    path = directory / "dataset.json"
    if not directory.is_dir():
        raise DatasetError(directory, ["no such directory"])
    if not path.is_file():
        raise DatasetError(
            directory, ["no dataset.json; expected a Decathlon, nnU-Net v1 raw or nnU-Net v2 raw data set directory"]
        )
    try:
        description = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as e:
        raise DatasetError(directory, [f"dataset.json: not valid JSON: {e}"]) from e
    if not isinstance(description, dict):
        raise DatasetError(directory, [f"dataset.json: must contain an object, got {type(description).__name__}"])
    return description


def _channel_names(directory: Path, names: dict | list) -> list[str]:
    """Return the channel names in order, from ``{"0": "CT"}`` or ``["CT"]``."""
    if isinstance(names, list):
        names = {str(i): name for i, name in enumerate(names)}
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))} or not names:
        raise DatasetError(
            directory, [f"dataset.json: channels must be numbered from 0, as in {{'0': 'CT', '1': 'PET'}}, got {names}"]
        )
    return [str(names[str(i)]) for i in range(len(names))]


def _label_names(directory: Path, labels: dict) -> list[str]:
    """Return the class names by value, from ``{"0": "background"}`` (v1, Decathlon) or ``{"background": 0}`` (v2)."""
    if not isinstance(labels, dict):
        raise DatasetError(directory, [f"dataset.json: 'labels' must be an object, got {labels!r}"])
    if any(isinstance(value, (list, tuple)) for value in labels.values()):
        regions = [name for name, value in labels.items() if isinstance(value, (list, tuple))]
        raise DatasetError(
            directory,
            [
                f"dataset.json: region-based labels are not supported (found {regions}); give each class one integer, "
                "as in {'background': 0, 'edema': 1, 'core': 2}; MedNeXt trains a softmax over exclusive classes"
            ],
        )
    if "ignore" in labels:
        raise DatasetError(directory, ["dataset.json: the label 'ignore' of nnU-Net v2 is not supported"])
    by_value = {}
    for key, value in labels.items():
        number, name = (key, value) if str(key).lstrip("-").isdigit() else (value, key)
        try:
            by_value[int(number)] = str(name)
        except (TypeError, ValueError) as e:
            raise DatasetError(directory, [f"dataset.json: label {key!r}: {value!r} has no integer value"]) from e
    if sorted(by_value) != list(range(len(labels))) or len(labels) < 2:
        raise DatasetError(
            directory,
            [
                "dataset.json: 'labels' must be the background as 0 and at least one class, numbered without gaps or "
                f"repetitions; got {labels}"
            ],
        )
    return [by_value[value] for value in range(len(by_value))]


def _listed_cases(directory: Path, description: dict, channels: int) -> tuple[str, list[dict]]:
    """Return layout and cases listed in ``dataset.json``: one file (Decathlon) or one per modality (nnU-Net v1)."""
    entries = description.get("training")
    if not isinstance(entries, list):
        found = type(entries).__name__
        raise DatasetError(directory, [f"dataset.json: 'training' must be a list of cases, got {found}"])
    wrong = [entry for entry in entries if not isinstance(entry, dict) or not {"image", "label"} <= set(entry)]
    if wrong:
        raise DatasetError(
            directory, [f"dataset.json: 'training' entry {e!r} must be {{'image': path, 'label': path}}" for e in wrong]
        )
    split = {str(entry["image"]): _channel_files(directory / entry["image"], channels) for entry in entries}
    # nnU-Net v1 lists a file that does not exist; the actual files have the channel number in their name
    v1 = any(not (directory / image).exists() and any(Path(f).exists() for f in split[image]) for image in split)
    if v1:
        _refuse_undeclared_channels(directory, [directory / image for image in split], channels)
    cases = [
        {
            "id": strip_ending(str(entry["image"])),
            "image": split[str(entry["image"])] if v1 else [os.path.abspath(directory / entry["image"])],
            "label": os.path.abspath(directory / entry["label"]),
        }
        for entry in entries
    ]
    return ("nnunet_v1" if v1 else "decathlon"), cases


def _nnunet_v2_cases(directory: Path, description: dict, channels: int) -> list[dict]:
    """Return the cases in ``imagesTr`` or ``labelsTr``; ``checks`` reports those missing in one of them."""
    ending = description.get("file_ending")
    if not isinstance(ending, str) or not ending.startswith("."):
        raise DatasetError(directory, [f"dataset.json: 'file_ending' must be like '.nii.gz', got {ending!r}"])
    if "dataset" in description:
        raise DatasetError(directory, ["dataset.json: nnU-Net v2's 'dataset' list of file names is not supported"])
    images, labels = directory / "imagesTr", directory / "labelsTr"
    missing = [f"{folder.name}/: no such directory" for folder in (images, labels) if not folder.is_dir()]
    if missing:
        raise DatasetError(directory, missing)
    ids = {strip_ending(path.name, ending)[:-5] for path in images.glob(f"[!.]*_[0-9][0-9][0-9][0-9]{ending}")}
    ids |= {strip_ending(path.name, ending) for path in labels.glob(f"[!.]*{ending}")}
    _refuse_undeclared_channels(directory, [images / f"{case}{ending}" for case in sorted(ids)], channels)
    return [
        {
            "id": case,
            "image": _channel_files(images / f"{case}{ending}", channels),
            "label": str(labels / f"{case}{ending}"),
        }
        for case in sorted(ids)
    ]


def _refuse_undeclared_channels(directory: Path, cases: list[Path], channels: int) -> None:
    """Reject files of a channel that ``dataset.json`` does not declare: they would be silently ignored."""
    following = [Path(_channel_files(case, channels + 1)[channels]) for case in cases]
    named = ", ".join(f"{channel:04d}" for channel in range(channels))
    problems = [
        f"{os.path.relpath(path, directory)}: dataset.json has the channels {named} only; add it or remove its files"
        for path in following
        if path.exists()
    ]
    if problems:
        raise DatasetError(directory, problems)


def _test_cases(directory: Path, in_channels: int) -> tuple[Path, list[dict]]:
    """Return the source of the test cases (the list in dataset.json or the folder imagesTs) and the cases."""
    file = directory / "dataset.json"
    content = _read_json(directory) if file.is_file() else {}
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
    """Return a case listed in dataset.json: one file or, as in nnU-Net v1, one file per channel."""
    files = _channel_files(path, in_channels)
    if not path.exists() and any(Path(file).exists() for file in files):
        return {"id": strip_ending(path), "image": _one_or_all(files)}
    return {"id": strip_ending(path), "image": str(path)}


def _cases_of(files: Sequence[Path], source: Path, in_channels: int, per_channel: bool = False) -> list[dict]:
    """Group files into cases, by their names unless ``per_channel`` says that each file has one channel."""
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
            problems.append(f"{file.name}: the name does not end in a channel number such as _0000")
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
    """Whether one file has all channels, so that a number at the end of its name belongs to the case."""
    try:
        return read_grid(file)[0][0] == in_channels
    except (ValueError, OSError):
        return False  # reported by the check of the cases


def _one_or_all(paths: Sequence[str]) -> str | list[str]:
    return paths[0] if len(paths) == 1 else list(paths)


def _images_under(path: Path, in_channels: int) -> list[Path]:
    """Return the images of a folder, or the given image with the other channel files of its case."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: expected an image or a folder of images.")
    if path.is_dir():
        return [file for file in sorted(path.iterdir()) if file_ending(file) and file.name[0] != "."]
    match = CHANNEL_FILE.fullmatch(strip_ending(path))
    if in_channels == 1 or not match or _has_channels(path, in_channels):
        return [path]
    return [
        Path(file)
        for file in _channel_files(path.with_name(match[1] + file_ending(path)), in_channels)
        if Path(file).exists()
    ]


def _refuse_duplicates(source: Path, ids: list[str]) -> None:
    double = sorted({name for name in ids if ids.count(name) > 1})
    if double:
        raise ValueError(f"{source} lists more than one image named {', '.join(double[:5])}; names must be unique.")
