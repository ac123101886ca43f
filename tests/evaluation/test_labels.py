"""Classes, regions and the ignored label from every file that names them."""

from __future__ import annotations

import json

import pytest

from mednext_monai.evaluation import Labels, read_labels, task_labels


def write(path, content):
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    "content",
    [
        {"labels": {"0": "background", "1": "liver", "2": "tumor"}},  # Decathlon, nnU-Net v1
        {"labels": {"background": 0, "liver": 1, "tumor": 2}},  # nnU-Net v2
        {"labels": ["background", "liver", "tumor"]},  # plan
    ],
)
def test_class_names_of_every_layout(tmp_path, content):
    labels = read_labels(write(tmp_path / "dataset.json", content))
    assert labels == Labels({"liver": 1, "tumor": 2})
    assert labels.named_values([1, 2, 3]) == {"liver": (1,), "tumor": (2,)}
    assert labels.unexpected([1, 2, 3]) == [3]


def test_region_based_labels_of_nnunet_v2_are_evaluated_as_classes_and_regions(tmp_path):
    brats = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3, "ignore": 4}
    file = write(tmp_path / "dataset.json", {"labels": brats, "regions_class_order": [1, 2, 3]})
    labels, regions = read_labels(file), {"whole tumor": (1, 2, 3), "tumor core": (2, 3), "enhancing tumor": (3,)}
    classes = {"whole tumor without tumor core": (1,), "tumor core without enhancing tumor": (2,)}
    assert labels.named_values() == {**classes, **regions}
    assert labels.ignore == 4 and labels.unexpected([1, 4, 5]) == [5]
    assert read_labels(file, only_regions=True).named_values() == regions
    in_a_bundle = task_labels(["background", *classes, "enhancing tumor"], {**regions}, 4)
    assert labels.named_values() == in_a_bundle.named_values()


def test_regions_of_a_plan_are_evaluated_beside_the_classes(tmp_path):
    plan = {"labels": ["background", "edema", "core"], "regions": {"whole": [1, 2], "core": [2]}, "ignore_label": 3}
    labels = read_labels(write(tmp_path / "task.json", plan))
    assert labels.named_values() == {"edema": (1,), "core": (2,), "whole": (1, 2)}
    assert labels.ignore == 3


def test_a_file_of_regions_with_and_without_classes(tmp_path):
    regions = write(tmp_path / "regions.json", {"both": [1, 2], "second": 2})
    assert read_labels(regions=regions).named_values([1, 2]) == {"1": (1,), "2": (2,), "both": (1, 2), "second": (2,)}
    assert read_labels(regions=regions, only_regions=True).named_values([1]) == {"both": (1, 2), "second": (2,)}
    assert read_labels().named_values([3]) == {"3": (3,)} and read_labels().unexpected([3]) == []


@pytest.mark.parametrize(
    ("labels", "regions", "message"),
    [
        ({"labels": {"background": 0, "a": 1, "b": 1}}, None, "dataset.json: the classes must have different"),
        ({"labels": {"background": 0, "a": -1}}, None, "positive integers up to 32767; got {'a': -1}"),
        ({"labels": {"background": 0, "a": 1.5}}, None, "positive integers up to 32767; got {'a': 1.5}"),
        ({"labels": {"background": 0, "a": 1, "ignore": [2]}}, None, "'ignore' must be one integer"),
        ({"labels": {"background": 0, "a": 1, "ignore": 1}}, None, "without 1"),
        ({"name": "x"}, None, "needs 'labels'"),
        ([], None, "must contain an object, got list"),
        ({"labels": ["background", "a"]}, {"r": [1, 2]}, r"regions.json: the region 'r' contains \[2\]; the classes"),
        ({"labels": ["background", "a", "b"]}, {"a": [1, 2]}, "the region 'a' has the name of the class 1"),
        ({"labels": {"background": 0, "a": 10**9}}, None, "positive integers up to 32767; got {'a': 1000000000}"),
        (None, {"r": []}, "the region 'r' must be a list of different positive integers up to 32767, got"),
        (None, {"r": [1, 1]}, "the region 'r' must be"),
        (None, {"r": [0]}, "the region 'r' must be"),
        (None, {"2": [1]}, "the name of a region must not be a number"),
    ],
)
def test_invalid_files_are_named_with_the_reason(tmp_path, labels, regions, message):
    paths = [
        None if content is None else write(tmp_path / name, content)
        for name, content in (("dataset.json", labels), ("regions.json", regions))
    ]
    with pytest.raises(ValueError, match=message):
        read_labels(*paths)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.json: no such file"):
        read_labels(tmp_path / "absent.json")
    write(tmp_path / "plan.json", {"labels": ["background", "one"], "regions": 1})
    with pytest.raises(ValueError, match="plan.json: regions must be an object"):
        read_labels(tmp_path / "plan.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="broken.json: not valid JSON"):
        read_labels(tmp_path / "broken.json")
    with pytest.raises(ValueError, match="only_regions needs regions"):
        read_labels(only_regions=True)


def test_labels_of_a_task_are_its_classes_by_position():
    labels = task_labels(["background", "liver", "tumor", "ignore"], {"whole": [1, 2], "core": 2}, 3)
    assert labels == Labels({"liver": 1, "tumor": 2}, {"whole": [1, 2], "core": [2]}, 3)
    assert task_labels(["air", "liver"]) == Labels({"liver": 1})
