"""Data set layouts, and the lists of cases for training and inference.

The supported layouts are Medical Segmentation Decathlon, nnU-Net v1 raw and nnU-Net v2 raw. In each of them a case
becomes ``{"id": str, "image": [str, ...], "label": str}``, with one image file per channel or one file with all
channels (Decathlon, 4D). Only ``dataset.json`` is read here; ``checks`` reads the images.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from .dicom_files import dicom_cases
from .folds import Split, check_splits, make_folds, read_splits, select_fold, shorten, some
from .io import DICOM_HINT, ENDINGS, file_ending, is_dicom, read_grid, strip_ending, without_pictures
from .label_names import parse_labels
from .picture_files import is_picture

__all__ = [
    "Dataset",
    "DatasetError",
    "cases_digest",
    "class_names",
    "fold_count",
    "inference_cases",
    "named_cases",
    "read_dataset",
    "select_part",
    "training_cases",
]

logger = logging.getLogger(__name__)
MAX_SEARCHED = 1000  # files below a folder without images in which DICOM is looked for
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
        regions: values of the classes that each region of nnU-Net v2 unites, by name. Defaults to no regions.
        ignore_label: value of voxels without annotation, one above the classes. Defaults to ``None``.
    """

    directory: Path
    layout: str
    name: str
    channel_names: list[str]
    labels: list[str]
    cases: list[dict]
    regions: dict[str, list[int]] = field(default_factory=dict)
    ignore_label: int | None = None


def read_dataset(directory: str | Path) -> Dataset:
    """
    Read ``dataset.json`` and list the training cases.

    Missing image and label files are not detected here; ``checks`` reports them with all other problems. Paths in
    ``dataset.json`` are relative to the directory, as in ``./imagesTr/x.nii.gz``; absolute paths and ``../`` are
    allowed. The id of a case is the name of its file only, so that nothing is written outside the folders of a run.

    Args:
        directory: directory of the data set, or its ``dataset.json``.

    Raises:
        DatasetError: if there is no valid ``dataset.json`` of a supported layout, if it declares something that is not
            supported (gaps between label values, an ignore label that is not the highest, duplicate ids), or if there
            are files of a channel that it does not declare.
    """
    directory = Path(directory)
    if directory.name == "dataset.json":
        directory = directory.parent
    directory = Path(os.path.abspath(directory))
    description = _read_json(directory)
    key = "channel_names" if "channel_names" in description else "modality"
    if key not in description or "labels" not in description:
        raise DatasetError(
            directory,
            [
                "dataset.json: needs 'labels' and either 'modality' (Decathlon, nnU-Net v1) or 'channel_names' "
                f"(nnU-Net v2); found the keys {sorted(description)}"
            ],
        )
    channel_names = _channel_names(directory, key, description[key])
    try:
        names = parse_labels(description["labels"], description.get("regions_class_order"))
    except ValueError as error:
        raise DatasetError(directory, [f"dataset.json: {error}"]) from error
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
    name = description.get("name") or directory.name
    if not _is_name(name):
        raise DatasetError(directory, [f"dataset.json: 'name' must be text, got {shorten(name)}"])
    ordered = sorted(cases, key=lambda case: case["id"])
    return Dataset(
        directory, layout, str(name), channel_names, names.classes, ordered, names.regions, names.ignore_label
    )


def training_cases(
    dataset_dir: str, fold: int | str = 0, section: str = "training", splits: str | Path | Sequence[Split] | None = None
) -> list[dict]:
    """
    Return the training or validation cases of a fold.

    MONAI's ``load_decathlon_datalist`` reads only one of the three layouts and neither sorts nor splits.

    Args:
        dataset_dir: a data set in Decathlon, nnU-Net v1 raw or nnU-Net v2 raw layout; see :py:func:`read_dataset`.
        fold: fold index, from 0, or ``"all"`` to train and validate on every case. Defaults to 0.
        section: ``"training"`` or ``"validation"``. Defaults to ``"training"``. For the latter, cases that are in no
            fold, such as those added after planning, are reported by a warning.
        splits: the folds, each ``{"train": ids, "val": ids}``, or the path of a JSON file with their list. Defaults to
            ``None``: the data set's own ``splits_final.json`` if it exists, else the five folds of nnU-Net v1 (fewer
            for less than five cases).

    Returns:
        ``[{"id": str, "image": path or list of one path per channel, "label": path}, ...]``, sorted by id.

    Raises:
        DatasetError: if the data set is invalid, see :py:func:`read_dataset`.
        ValueError: if ``section`` or ``splits`` is invalid, the fold does not exist, or there is an unknown case in it.
    """
    if section not in ("training", "validation"):
        raise ValueError(f"section must be 'training' or 'validation', got {section!r}.")
    dataset = read_dataset(dataset_dir)
    ids = [case["id"] for case in dataset.cases]
    folds, source, hint = _folds_of(dataset, ids, fold, splits)
    if section == "validation" and source:
        _report_unplanned(dataset, ids, folds, fold, source, hint)
    chosen = set(select_fold(folds, fold, ids)["train" if section == "training" else "val"])
    return [{**case, "image": _one_or_all(case["image"])} for case in dataset.cases if case["id"] in chosen]


def fold_count(dataset_dir: str, splits: str | Path | Sequence[Split] | None = None) -> int:
    """
    Return the number of folds that :py:func:`training_cases` has.

    Args:
        dataset_dir: see there.
        splits: see there. Defaults to ``None``.

    Raises:
        DatasetError, ValueError: see there.
    """
    dataset = read_dataset(dataset_dir)
    return len(_folds_of(dataset, [case["id"] for case in dataset.cases], 0, splits)[0])


def _folds_of(
    dataset: Dataset, ids: list[str], fold: int | str, splits: str | Path | Sequence[Split] | None
) -> tuple[list[Split], str, str]:
    """Return the folds, their source if the user wrote or planned them, and how to include cases that are in none."""
    if splits and not isinstance(splits, (str, Path)):
        renew = f"mednext plan {shlex.quote(str(dataset.directory))} --output task.json"
        hint = f" If the data set has changed since it was planned, renew the plan: {renew}"
        known = None if fold == "all" else ids  # every case of the data set is used, whatever the folds name
        return check_splits(splits, known, "splits", hint=hint), "the plan", hint
    own = Path(splits) if isinstance(splits, (str, Path)) else dataset.directory / "splits_final.json"
    if fold == "all" or not (isinstance(splits, (str, Path)) or own.is_file()):
        return [] if fold == "all" else make_folds(ids), "", ""
    return read_splits(own, ids), own.name, f" To use them, add them to {own}."


def _report_unplanned(
    dataset: Dataset, ids: list[str], folds: Sequence[Split], fold: int | str, source: str, hint: str
) -> None:
    """Log a warning if the data set has cases that are in no fold: they would be ignored silently."""
    known = {case for split in folds for side in ("train", "val") for case in split[side]}
    new = [case for case in ids if case not in known]
    if new:
        fate = "used, but were not measured by it" if fold == "all" else "NOT used"
        logger.warning(
            f"{len(new)} of {len(ids)} cases in {dataset.directory} are in no fold of {source} and are {fate}: "
            f"{some(new)}.{hint}"
        )


def class_names(dataset_dir: str, out_channels: int) -> list[str]:
    """
    Return the names of the classes by value, background first.

    Args:
        dataset_dir: a data set, see :py:func:`read_dataset`.
        out_channels: number of classes, background included.

    Returns:
        the names in ``dataset.json``, or ``class_0``, ``class_1``, ... if it cannot be read or has another number of
        classes. A name that occurs twice is followed by its value.
    """
    try:
        names = read_dataset(dataset_dir).labels
    except DatasetError:
        names = []
    if len(names) != out_channels:
        return [f"class_{value}" for value in range(out_channels)]
    return [name if names.count(name) == 1 else f"{name}_{value}" for value, name in enumerate(names)]


def named_cases(cases: Sequence[Mapping]) -> list[dict]:
    """
    Return cases that all have an id: that of a case without one is the name of its image file, or of its first channel.

    Args:
        cases: dictionaries with ``image``, and ``id`` or not, such as the lists of MONAI's tools.
    """
    named = []
    for case in cases:
        image = case["image"]
        files = [image] if isinstance(image, (str, PathLike)) else list(image)
        name = strip_ending(files[0])
        match = CHANNEL_FILE.fullmatch(name) if len(files) > 1 else None
        named.append({"id": match[1] if match else name, **case})
    return named


def cases_digest(cases: Sequence[Mapping]) -> str:
    """Return the number of cases and a short hash of their ids, which tells two lists of cases apart."""
    names = "\n".join(sorted(case["id"] for case in cases))
    return f"{len(cases)} cases, {hashlib.blake2b(names.encode(), digest_size=4).hexdigest()}"


def select_part(cases: Sequence[dict], part: int, parts: int) -> list[dict]:
    """
    Return every ``parts``-th case from the ``part``-th on: the share of one of several computers.

    Raises:
        ValueError: if ``part`` is not from 0 to ``parts - 1``.
    """
    if not 0 <= part < parts:
        raise ValueError(f"part must be from 0 to {parts - 1} if parts is {parts}, got {part}.")
    return list(cases[part::parts])


def inference_cases(
    dataset_dir: str,
    input_path: str | None = None,
    in_channels: int = 1,
    part: int = 0,
    parts: int = 1,
    rank: int = 0,
    world_size: int = 1,
    datalist: Sequence[str | PathLike | Sequence[str] | Mapping] | None = None,
) -> list[dict]:
    """
    Return the images to segment.

    Files have one of the ``ENDINGS``. A case with several channels is one file with all channels, or one file per
    channel named as in nnU-Net: ``case_0000.nii.gz``, ``case_0001.nii.gz``, ... With one channel, a final ``_0000`` is
    treated as the channel number if the data set has nnU-Net's layout, or if all files of the folder end in it; also
    with several channels, if all files are pictures that hold them. For DICOM, see
    :py:func:`~mednext_monai.data.dicom_files.dicom_cases`.

    Args:
        dataset_dir: a data set with ``imagesTs``, or with a ``dataset.json`` whose ``test`` lists images.
        input_path: an image, one of the channel files of a case, a folder of either, or a folder with series of DICOM
            files in it or below it; replaces ``dataset_dir``. Defaults to ``None``.
        in_channels: number of input channels of the network. Defaults to 1.
        part: which part, from 0 to ``parts - 1``: every ``parts``-th case, sorted by id. Defaults to 0.
        parts: number of parts. Defaults to 1.
        rank: number of this process among those that share the part; each has every ``world_size``-th case of it,
            which may be none. Defaults to 0.
        world_size: number of these processes. Defaults to 1.
        datalist: the images one by one, as MONAI's tools list them: each a path, a list of one path per channel, or
            either of them as ``{"image": ...}``, with an ``id`` or without; replaces ``dataset_dir``. Names of
            channel files are read as those in a folder. Defaults to ``None``.

    Returns:
        ``[{"id": str, "image": path, list of one path per channel, or DICOM series}, ...]``, sorted by id.

    Raises:
        FileNotFoundError: if the given file or folder, or a file of the list, does not exist.
        DatasetError: if ``test`` in ``dataset.json`` is invalid.
        ValueError: if there is no image, two images have the same name, a case lacks a channel, there are DICOM files
            in a data set, or DICOM files and other images; if there is no such part, or it has no case; or if both
            ``input_path`` and ``datalist`` are given.
    """
    if input_path is not None and datalist is not None:
        raise ValueError(f"input is {str(input_path)!r}, but datalist lists images, too; state one of them.")
    if datalist is not None:
        source, cases = Path("datalist"), _given_cases(datalist, in_channels)
    elif input_path is not None:
        source = Path(input_path)
        cases = dicom_cases(source, in_channels) if source.exists() else []
        cases = cases or _cases_of(_images_under(source, in_channels), source, in_channels)
    else:
        source, cases = _test_cases(Path(dataset_dir), in_channels)
    if not cases:
        raise ValueError(
            f"{source} contains no image to segment: expected files ending in {', '.join(ENDINGS)} there or in the "
            "folder imagesTs, or a 'test' list in dataset.json; --input selects a file or a folder."
        )
    _refuse_duplicates(source, [case["id"] for case in cases])  # their predictions would overwrite each other
    selected = select_part(sorted(cases, key=lambda case: case["id"]), part, parts)
    if not selected:
        raise ValueError(f"parts must be at most the number of cases in {source}, {len(cases)}, got {parts}.")
    return select_part(selected, rank, world_size)


def _given_cases(datalist: Any, in_channels: int) -> list[dict]:
    """Return the cases of a list of images; files without an id are grouped as those of a folder."""
    if isinstance(datalist, (str, Mapping)) or not isinstance(datalist, Sequence):
        raise ValueError(f"datalist must be a list of images, got {shorten(datalist)}.")
    cases, files = [], []
    for number, item in enumerate(datalist):
        entry = item if isinstance(item, Mapping) else {"image": item}
        image = entry.get("image")
        paths = [image] if isinstance(image, (str, PathLike)) else image
        if not paths or not isinstance(paths, Sequence) or not all(isinstance(one, (str, PathLike)) for one in paths):
            raise ValueError(
                f"datalist: item {number} must be a path, a list of one path per channel, or one of them as "
                f"{{'image': ...}}, got {shorten(item)}."
            )
        missing = next((str(one) for one in paths if not Path(one).is_file()), None)
        if missing is not None:
            raise FileNotFoundError(f"datalist: item {number}: {missing} is not a file.")
        absolute = [os.path.abspath(one) for one in paths]
        if entry.get("id") is None and len(absolute) == 1:
            files.append(Path(absolute[0]))
            continue
        first = strip_ending(absolute[0])
        match = CHANNEL_FILE.fullmatch(first)
        name = entry.get("id") or (match[1] if match and len(absolute) > 1 else first)
        cases.append({"id": strip_ending(str(name)), "image": _one_or_all(absolute)})
    return cases + (_cases_of(files, Path("datalist"), in_channels) if files else [])


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
        description = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as e:
        raise DatasetError(directory, [f"dataset.json: not valid JSON in UTF-8: {e}"]) from e
    if not isinstance(description, dict):
        raise DatasetError(directory, [f"dataset.json: must contain an object, got {type(description).__name__}"])
    return description


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict:
    keys = Counter(key for key, _ in pairs)
    if len(keys) < len(pairs):
        raise ValueError(f"the key {next(key for key, n in keys.items() if n > 1)!r} occurs twice in one object")
    return dict(pairs)


def _is_name(value: Any) -> bool:
    """Return whether a value of ``dataset.json`` is the name of something: text, or a number that serves as text."""
    return isinstance(value, (str, int, float)) and not isinstance(value, bool) and str(value).strip() != ""


def _is_path(value: Any) -> bool:
    """Return whether a value of ``dataset.json`` can be the path of a file."""
    if not isinstance(value, str) or strip_ending(value) in ("", ".", "..") or "\0" in value:
        return False
    try:
        return bool(os.fsencode(value))
    except UnicodeEncodeError:  # an unpaired surrogate
        return False


def _channel_names(directory: Path, key: str, names: Any) -> list[str]:
    """Return the channel names in order, from ``{"0": "CT"}`` or ``["CT"]``."""
    if isinstance(names, list):
        names = {str(i): name for i, name in enumerate(names)}
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))} or not names:
        raise DatasetError(
            directory,
            [
                f"dataset.json: '{key}': channels must be numbered from 0, as in {{'0': 'CT', '1': 'PET'}}, got "
                f"{shorten(names)}"
            ],
        )
    wrong = [
        f"dataset.json: '{key}': the name of channel {i} must be text, got {shorten(names[str(i)])}"
        for i in range(len(names))
        if not _is_name(names[str(i)])
    ]
    if wrong:
        raise DatasetError(directory, wrong)
    return [str(names[str(i)]) for i in range(len(names))]


def _listed_cases(directory: Path, description: dict, channels: int) -> tuple[str, list[dict]]:
    """Return layout and cases listed in ``dataset.json``: one file (Decathlon) or one per modality (nnU-Net v1)."""
    entries = description.get("training")
    if not isinstance(entries, list):
        raise DatasetError(directory, [f"dataset.json: 'training' must be a list of cases, got {shorten(entries)}"])
    wrong = [
        f"dataset.json: 'training' entry {number} must be {{'image': path, 'label': path}}, each one file; "
        f"got {shorten(entry)}"
        for number, entry in enumerate(entries)
        if not isinstance(entry, dict) or not all(_is_path(entry.get(key)) for key in ("image", "label"))
    ]
    if wrong:
        raise DatasetError(directory, wrong)
    split = {entry["image"]: _channel_files(directory / entry["image"], channels) for entry in entries}
    # nnU-Net v1 lists a file that does not exist; the actual files have the channel number in their name
    v1 = any(not (directory / image).exists() and any(Path(f).exists() for f in split[image]) for image in split)
    if v1:
        _refuse_undeclared_channels(directory, [directory / image for image in split], channels)
    cases = [
        {
            "id": strip_ending(entry["image"]),
            "image": split[entry["image"]] if v1 else [os.path.abspath(directory / entry["image"])],
            "label": os.path.abspath(directory / entry["label"]),
        }
        for entry in entries
    ]
    return ("nnunet_v1" if v1 else "decathlon"), cases


def _nnunet_v2_cases(directory: Path, description: dict, channels: int) -> list[dict]:
    """Return the cases in ``imagesTr`` or ``labelsTr``; ``checks`` reports those missing in one of them."""
    ending = description.get("file_ending")
    if not isinstance(ending, str) or ending.lower() not in ENDINGS:
        known = ", ".join(ENDINGS)
        raise DatasetError(directory, [f"dataset.json: 'file_ending' must be one of {known}, got {shorten(ending)}"])
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
            "image": _own_files(_channel_files(images / f"{case}{ending}", channels)),
            "label": str(labels / f"{case}{ending}"),
        }
        for case in sorted(ids)
    ]


def _own_files(files: list[str]) -> list[str]:
    """Return the files of a case; of a picture with several channels, such as colors, there is only the first."""
    is_one = is_picture(files[0]) and Path(files[0]).exists() and not any(Path(file).exists() for file in files[1:])
    return files[:1] if is_one else files


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
    listed = None if version_2 else content.get("test")
    if listed:
        return file, [_listed_case(directory / image, in_channels) for image in _test_images(directory, listed)]
    folder = directory / "imagesTs"
    if content and not folder.is_dir():
        return file, []
    _refuse_dicom(folder)
    ending = content.get("file_ending") if version_2 else None
    ending = ending if isinstance(ending, str) else ""
    files = [path for path in _images_under(folder, in_channels) if path.name.endswith(ending)]
    return folder, _cases_of(files, folder, in_channels, per_channel=version_2)


def _test_images(directory: Path, listed: Any) -> list[str]:
    """Return the paths in the list ``test`` of dataset.json, whose entries are paths or ``{"image": path}``."""
    if not isinstance(listed, list):
        raise DatasetError(directory, [f"dataset.json: 'test' must be a list of images, got {shorten(listed)}"])
    images: list = [entry.get("image") if isinstance(entry, dict) else entry for entry in listed]
    wrong = [
        f"dataset.json: 'test' entry {number} must be a path or {{'image': path}}, got {shorten(listed[number])}"
        for number, image in enumerate(images)
        if not _is_path(image)
    ]
    if wrong:
        raise DatasetError(directory, wrong)
    return images


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
    names = [match[1] for match, file in numbered if match and match[2] == "0000" and is_picture(file)]
    if in_channels > 1 and len(names) == len(files) and _has_channels(files[0], in_channels):  # all colors in a file
        return [{"id": name, "image": str(file)} for name, file in zip(names, files)]
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
        return without_pictures([file for file in sorted(path.iterdir()) if file_ending(file) and file.name[0] != "."])
    match = CHANNEL_FILE.fullmatch(strip_ending(path))
    if in_channels == 1 or not match or _has_channels(path, in_channels):
        return [path]
    return [
        Path(file)
        for file in _channel_files(path.with_name(match[1] + file_ending(path)), in_channels)
        if Path(file).exists()
    ]


def _refuse_dicom(path: Path) -> None:
    """Refuse a DICOM file, and a folder with DICOM files in it or, if it has no images, below it."""
    if not path.is_dir():
        candidates = [path]
    else:
        files = sorted(file for file in path.iterdir() if file.is_file())
        candidates = [file for file in files if not file_ending(file)]
        if len(candidates) == len(files):  # no images
            candidates += islice((file for file in path.glob("*/**/*") if file.is_file()), MAX_SEARCHED)
    found = next((file for file in candidates if is_dicom(file)), None)
    if found is not None:
        raise ValueError(f"{path}: {found.name} is a DICOM file; {DICOM_HINT}.")


def _refuse_duplicates(source: Path, ids: list[str]) -> None:
    double = sorted({name for name in ids if ids.count(name) > 1})
    if double:
        raise ValueError(f"{source} lists more than one image named {', '.join(double[:5])}; names must be unique.")
