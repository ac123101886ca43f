"""Reading a data set's layout: Medical Segmentation Decathlon, nnU-Net v1 raw and nnU-Net v2 raw.

Whatever the layout, a case becomes ``{"id": str, "image": [str, ...], "label": str}``: one file per channel, or one
file with all channels (Decathlon, 4-D). Nothing is opened here but ``dataset.json``; see ``checks`` for the images.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ENDINGS", "Dataset", "DatasetError", "file_ending", "modality_files", "read_dataset", "strip_ending"]

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".gipl.gz", ".gipl")


class DatasetError(ValueError):
    """
    A data set that cannot be used as it is; its text is the readable list of all that is wrong.

    Args:
        directory: the data set's directory.
        problems: one line per problem, each naming the file or the key.
    """

    def __init__(self, directory: str | Path, problems: list[str]) -> None:
        self.problems = list(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{directory}: {count} found", *(f"  - {problem}" for problem in problems)]))


@dataclass(frozen=True)
class Dataset:
    """
    A data set's cases and what ``dataset.json`` says about them.

    Args:
        directory: the directory with ``dataset.json``.
        layout: ``"decathlon"``, ``"nnunet_v1"`` or ``"nnunet_v2"``.
        name: the data set's name.
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

    A file that is named but missing is not noticed here: ``checks`` reports it with everything else.

    Args:
        directory: the data set's directory, or its ``dataset.json``.

    Raises:
        DatasetError: when there is no readable ``dataset.json`` of one of the three layouts, or it declares what is not
            supported (region-based labels, an ignore label, gaps between label values, an id twice), or there are files
            of a channel that it does not name.
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
    twice = [f"{case}: this case id comes {n} times; ids must be unique" for case, n in counts.items() if n > 1]
    if twice:
        raise DatasetError(directory, twice)
    name = str(description.get("name", directory.name))
    return Dataset(directory, layout, name, channel_names, labels, sorted(cases, key=lambda case: case["id"]))


def strip_ending(filename: str | Path, ending: str | None = None) -> str:
    """Return a file's name without its directory and image ending, ``.nii.gz`` for example: the original's case id."""
    name = Path(filename).name
    for known in ENDINGS if ending is None else (ending,):
        if name.lower().endswith(known.lower()):
            return name[: -len(known)]
    return name


def _no_cases(description: dict) -> str:
    if "channel_names" in description:
        ending = description["file_ending"]
        return f"no training case: imagesTr/ has no file like case_0000{ending}, with the file_ending of dataset.json"
    return "no training case: 'training' in dataset.json is empty"


def modality_files(path: Path, channels: int) -> list[str]:
    """Return the files that nnU-Net names ``case_0000.nii.gz``, ``case_0001.nii.gz``, ... for ``case.nii.gz``."""
    case = strip_ending(path.name)
    ending = path.name[len(case) :]
    return [os.path.abspath(path.parent / f"{case}_{channel:04d}{ending}") for channel in range(channels)]


def file_ending(filename: str | Path) -> str:
    """Return the image ending of a file's name, such as ``.nii.gz``; empty when it has none that is known."""
    return Path(filename).name[len(strip_ending(filename)) :]


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
        raise DatasetError(directory, [f"dataset.json: must hold an object, got {type(description).__name__}"])
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
    """Cases that ``dataset.json`` lists: of Decathlon one file, of nnU-Net v1 ``case_0000.nii.gz`` per modality."""
    entries = description.get("training")
    if not isinstance(entries, list):
        found = type(entries).__name__
        raise DatasetError(directory, [f"dataset.json: 'training' must be a list of cases, got {found}"])
    wrong = [entry for entry in entries if not isinstance(entry, dict) or not {"image", "label"} <= set(entry)]
    if wrong:
        raise DatasetError(
            directory, [f"dataset.json: 'training' entry {e!r} must be {{'image': path, 'label': path}}" for e in wrong]
        )
    split = {str(entry["image"]): modality_files(directory / entry["image"], channels) for entry in entries}
    # nnU-Net v1 names a file that is not there; the files beside it carry the channel's number
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
    """Cases that lie in ``imagesTr`` or ``labelsTr``; what is missing in one of them is found by ``checks``."""
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
            "image": modality_files(images / f"{case}{ending}", channels),
            "label": str(labels / f"{case}{ending}"),
        }
        for case in sorted(ids)
    ]


def _refuse_undeclared_channels(directory: Path, cases: list[Path], channels: int) -> None:
    """Refuse files of a channel after the last that ``dataset.json`` names: they would be left out without a word."""
    following = [Path(modality_files(case, channels + 1)[channels]) for case in cases]
    named = ", ".join(f"{channel:04d}" for channel in range(channels))
    problems = [
        f"{os.path.relpath(path, directory)}: dataset.json has the channels {named} only; add it or remove its files"
        for path in following
        if path.exists()
    ]
    if problems:
        raise DatasetError(directory, problems)
