"""Data sets, folds, plans and decisions in damaged JSON or CSV files: a sentence that names the file, or success."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")

from helpers.datasets import make_decathlon, make_nnunet
from helpers.fuzz import bounded, damaged_bytes, damaged_json, only_ours
from hypothesis import given
from hypothesis import strategies as st

from mednext_monai import bundles
from mednext_monai.bundles import task_bundle
from mednext_monai.bundles.options import OPTIONS, check_option
from mednext_monai.data import inference_cases, read_dataset, read_groups, read_splits, training_cases
from mednext_monai.evaluation import read_labels, read_postprocessing, task_labels
from mednext_monai.options import plain
from mednext_monai.planning import plan
from mednext_monai.transforms import SaveDicomSegd
from mednext_monai.weights import task_settings

pytestmark = pytest.mark.slow
IDS = [f"case_{i:02d}" for i in range(6)]
DECATHLON = {
    "name": "Test",
    "modality": {"0": "T1", "1": "T2"},
    "labels": {"0": "background", "1": "one", "2": "two"},
    "training": [{"image": f"./imagesTr/{i}.nii.gz", "label": f"./labelsTr/{i}.nii.gz"} for i in IDS],
    "test": ["./imagesTr/case_00.nii.gz", {"image": "./imagesTr/case_01.nii.gz"}],
}
NNUNET = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "one": 1, "two": 2},
    "file_ending": ".nii.gz",
    "numTraining": 6,
}
NNUNET_REGIONS = {
    **NNUNET,
    "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
    "regions_class_order": [1, 2],
}
SPLITS = [{"train": IDS[:4], "val": IDS[4:]}, {"train": IDS[2:], "val": IDS[:2]}]
GROUPS = "".join(f"{i},patient_{n // 2}\n" for n, i in enumerate(IDS)).encode()
DECISION = {
    "keep_largest_component": [
        {"classes": [1, 2], "minimum_size_mm3": None},
        {"classes": [1], "minimum_size_mm3": 2.5},
    ],
    "dice": {"one": {"raw": 0.5, "raw_values": 3}},
    "settings": {"strict": False},
}
ORIGINAL = {"for_which_classes": [[1, 2], 1], "min_valid_object_sizes": "{(1, 2): 10.0, 1: np.float64(2.5)}"}
REGIONS = {"whole": [1, 2], "core": [2]}
PLAN_LABELS = {"labels": ["background", "one", "two"], "regions": {"whole": [1, 2]}, "ignore_label": 3}
OF_REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}}


@pytest.fixture(scope="module")
def decathlon(tmp_path_factory) -> Path:
    return make_decathlon(tmp_path_factory.mktemp("fuzz") / "decathlon")


@pytest.fixture(scope="module")
def nnunet(tmp_path_factory) -> Path:
    return make_nnunet(tmp_path_factory.mktemp("fuzz") / "nnunet", 2)


def read_all(directory: Path, content: bytes) -> None:
    (directory / "dataset.json").write_bytes(content)
    names = (str(directory), "dataset.json")
    with only_ours(*names):
        dataset = read_dataset(directory)
        assert len(dataset.labels) >= 2 and dataset.channel_names and dataset.cases
        assert dataset.ignore_label in (None, len(dataset.labels))
        task_labels(dataset.labels, dataset.regions, dataset.ignore_label)
        assert all(case["id"] == Path(case["id"]).name and case["id"] for case in dataset.cases)
        json.dumps(dataset.cases)
        training_cases(str(directory), 0)
    with only_ours(*names):
        inference_cases(str(directory))


@bounded(900)
@given(content=damaged_json(DECATHLON))
def test_dataset_json_of_decathlon(decathlon, content):
    read_all(decathlon, content)


@bounded(900)
@given(content=damaged_json(NNUNET) | damaged_json(NNUNET_REGIONS))
def test_dataset_json_of_nnunet(nnunet, content):
    read_all(nnunet, content)


@contextmanager
def only_ours_of(factory, name: str, content: bytes) -> Iterator[Path]:
    """Write a damaged file, whose name the errors in the block must have."""
    file = factory.getbasetemp() / name
    file.write_bytes(content)
    with only_ours(str(file)):
        yield file


@bounded(900)
@given(content=damaged_json(SPLITS))
def test_splits(tmp_path_factory, content):
    with only_ours_of(tmp_path_factory, "splits_final.json", content) as file:
        for split in read_splits(file, IDS):
            assert split["train"] and split["val"] and set(split["train"] + split["val"]) <= set(IDS)


@bounded(900)
@given(content=damaged_bytes(GROUPS) | st.binary(max_size=40))
def test_groups(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "groups.csv"
    file.write_bytes(content)
    with only_ours(str(file)):
        assert list(read_groups(file, IDS)) == IDS


@bounded(900)
@given(content=damaged_json(DECISION) | damaged_json(ORIGINAL))
def test_postprocessing_decisions(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "postprocessing.json"
    file.write_bytes(content)
    with only_ours(str(file)):
        found = read_postprocessing(file)
        found.describe()
        found.write(file.with_name("again.json"))
        assert read_postprocessing(file.with_name("again.json")).steps == found.steps


@bounded(900)
@given(
    labels=st.none() | st.sampled_from([DECATHLON, NNUNET, PLAN_LABELS, OF_REGIONS]).flatmap(damaged_json),
    regions=st.none() | damaged_json(REGIONS),
)
def test_labels_and_regions(tmp_path_factory, labels, regions):
    files = []
    for name, content in (("labels.json", labels), ("regions.json", regions)):
        files.append(None if content is None else tmp_path_factory.getbasetemp() / name)
        if content is not None:
            files[-1].write_bytes(content)
    with only_ours(*map(str, files)):
        found = read_labels(*files)
        assert all(type(value) is int for values in found.named_values([1, 2]).values() for value in values)


@pytest.fixture(scope="module")
def whole_plan(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("plan")
    plan(make_decathlon(folder / "data"), folder / "task.json", processes=0, progress=False, report=False)
    content = json.loads((folder / "task.json").read_text())
    content["_plan_"] = {"name": "Test", "file_ending": ".nii.gz", "cases": [1, 2]}
    content |= {"regions": {"whole": [1, 2]}, "ignore_label": 3}
    return content


METADATA = {
    "name": "Test",
    "version": "0.1.0",
    "network_data_format": {
        "outputs": {
            "pred": {
                "channel_def": {"0": "background", "1": "one"},
                "segment_codes": {"1": {"category": {"value": "1", "scheme": "SCT", "meaning": "Organ"}}},
            }
        }
    },
}


@bounded(700)
@given(content=damaged_json(METADATA))
def test_metadata(tmp_path_factory, content):
    with only_ours_of(tmp_path_factory, "metadata.json", content) as file:
        saver = SaveDicomSegd("pred", metadata=file)
        assert all(type(segment.name) is str for segment in saver.segments)


@bounded(800)
@given(data=st.data())
def test_plans(tmp_path_factory, whole_plan, data):
    """What a bundle is made of is what its runs accept; the verification by MONAI, which takes seconds, is left out."""
    folder = tmp_path_factory.mktemp("bundle")
    file = folder / "task.json"
    file.write_bytes(data.draw(damaged_json(whole_plan)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_bundle, "_verify", lambda bundle: None)
        with only_ours(str(file)):
            bundle = bundles.new_bundle("S", 3, file, folder / "mine")
            config = json.loads((bundle / "configs" / "train.json").read_text())
            stated = {name: plain(config[name]) for name in OPTIONS if name in config}
            for name, value in stated.items():
                if not (isinstance(value, str) and value.startswith(("$", "@"))):
                    check_option(name, value)
            task_settings({name: stated[name] for name in config["stated"]})
    assert (folder / "mine").exists() or {entry.name for entry in folder.iterdir()} == {"task.json"}
