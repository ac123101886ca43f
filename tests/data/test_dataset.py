"""The three layouts give the same cases; what is not supported says so."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import describe, make_case, make_decathlon, make_nnunet, make_regions, save
from monai.utils import ensure_tuple

from mednext_monai.data import check_cases, class_names, inference_cases, make_folds, training_cases
from mednext_monai.data.dataset import DatasetError, read_dataset


def names(paths: list[str]) -> list[str]:
    return [path.rsplit("/", 1)[1] for path in paths]


def test_decathlon_has_one_file_with_all_channels(tmp_path):
    dataset = read_dataset(make_decathlon(tmp_path / "Task", cases=3, channels=("T1", "T2")))
    assert (dataset.layout, dataset.name) == ("decathlon", "Synthetic")
    assert dataset.channel_names == ["T1", "T2"]
    assert dataset.labels == ["background", "one", "two"]
    assert [case["id"] for case in dataset.cases] == ["case_00", "case_01", "case_02"]
    assert names(dataset.cases[1]["image"]) == ["case_01.nii.gz"]
    assert dataset.cases[1]["label"] == str(tmp_path / "Task" / "labelsTr" / "case_01.nii.gz")


@pytest.mark.parametrize("version, ending", [(1, ".nii.gz"), (1, ".nii"), (2, ".nii.gz"), (2, ".nii")])
def test_nnunet_has_one_file_per_channel(tmp_path, version, ending):
    dataset = read_dataset(make_nnunet(tmp_path, version, cases=3, ending=ending))
    assert dataset.layout == f"nnunet_v{version}"
    assert dataset.channel_names == ["T1", "T2"]
    assert dataset.labels == ["background", "one", "two"]
    assert [case["id"] for case in dataset.cases] == ["case_00", "case_01", "case_02"]
    assert names(dataset.cases[2]["image"]) == [f"case_02_0000{ending}", f"case_02_0001{ending}"]
    assert names([dataset.cases[2]["label"]]) == [f"case_02{ending}"]


def test_nnunet_v2_lists_a_case_of_which_files_are_missing(tmp_path):
    make_nnunet(tmp_path, 2, cases=3)
    (tmp_path / "imagesTr/case_01_0000.nii.gz").unlink()
    (tmp_path / "labelsTr/case_02.nii.gz").unlink()
    (tmp_path / "imagesTr/._case_02_0000.nii.gz").write_bytes(b"of macOS")
    assert [case["id"] for case in read_dataset(tmp_path).cases] == ["case_00", "case_01", "case_02"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"labels": {"background": 0, "whole": [1, 3], "core": 3}}, r"json: the label\(s\) 2 are in no region"),
        ({"labels": {"background": 0, "one": 2, "ignore": 1}}, "'ignore' must be the highest, above 2, .*; got 1"),
        ({"labels": {"background": 0, "one": 1, "two": 4}}, "numbered without gaps"),
        ({"labels": {"background": 0}}, "at least one class"),
        ({"labels": {"background": 0, "one": "first"}}, "no integer value"),
        ({"channel_names": {"1": "T1"}}, "numbered from 0"),
        ({"file_ending": "nii"}, "'file_ending' must be one of .nii.gz, .nii, .* got 'nii'"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, changes, message):
    make_nnunet(tmp_path, 2, cases=1)
    describe(tmp_path, **changes)
    with pytest.raises(DatasetError, match=message):
        read_dataset(tmp_path)


def test_an_unusable_description_is_named(tmp_path):
    with pytest.raises(DatasetError, match="no such directory"):
        read_dataset(tmp_path / "nothing")
    with pytest.raises(DatasetError, match="no dataset.json"):
        read_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DatasetError, match="not valid JSON"):
        read_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text('{"name": "x"}')
    with pytest.raises(DatasetError, match="either 'modality'.*or 'channel_names'"):
        read_dataset(tmp_path)


def test_an_empty_list_and_an_id_twice_are_named(tmp_path):
    make_decathlon(tmp_path, cases=2)
    entry = {"image": "imagesTr/case_00.nii.gz", "label": "labelsTr/case_00.nii.gz"}
    describe(tmp_path, training=[entry, entry])
    with pytest.raises(DatasetError, match="case_00: this case id occurs 2 times"):
        read_dataset(tmp_path)
    describe(tmp_path, training=[])
    with pytest.raises(DatasetError, match="no training case"):
        read_dataset(tmp_path)
    describe(tmp_path, training=["imagesTr/case_00.nii.gz"])
    with pytest.raises(DatasetError, match="must be {'image': path, 'label': path}"):
        read_dataset(tmp_path)


def test_a_file_ending_that_no_file_has_is_named(tmp_path):
    make_nnunet(tmp_path, 2, cases=2)
    describe(tmp_path, file_ending=".nii")
    with pytest.raises(DatasetError, match="imagesTr/ has no file like case_0000.nii, with the file_ending"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_a_channel_that_is_not_declared_are_named(tmp_path, version):
    make_nnunet(tmp_path, version, cases=2)
    save(tmp_path / "imagesTr/case_01_0002.nii.gz", make_case(1)[0][..., 0])
    with pytest.raises(DatasetError) as error:
        read_dataset(tmp_path)
    image = f"imagesTr{os.sep}case_01_0002.nii.gz"
    assert error.value.problems == [
        f"{image}: dataset.json has the channels 0000, 0001 only; add it or remove its files"
    ]


def test_training_and_validation_share_no_case_and_lose_none(dataset):
    everything = [case["id"] for case in training_cases(dataset, "all")]
    validated = []
    for fold in range(5):
        training = [case["id"] for case in training_cases(dataset, fold, "training")]
        validation = [case["id"] for case in training_cases(dataset, fold, "validation")]
        assert sorted(training + validation) == everything
        validated += validation
    assert sorted(validated) == everything == [f"box_{i}" for i in range(6)]


def test_the_users_own_folds_win(dataset):
    own = [{"train": ["box_0", "box_1"], "val": ["box_5"]}]
    assert [case["id"] for case in training_cases(dataset, 0, "validation", own)] == ["box_5"]
    (dataset / "splits_final.json").write_text(
        json.dumps([{"train": [f"box_{i}" for i in range(5)], "val": ["box_5"]}])
    )
    assert [case["id"] for case in training_cases(dataset, 0, "validation")] == ["box_5"]


def test_a_case_of_the_plan_that_is_gone_is_an_error_that_says_how_to_renew_the_plan(dataset):
    with pytest.raises(ValueError, match="fold 0 names cases that the data set lacks: box_77.*mednext plan"):
        training_cases(dataset, 0, "validation", [{"train": ["box_0"], "val": ["box_77"]}])


def test_cases_that_are_newer_than_the_plan_are_reported_once_for_training_and_validation(dataset, caplog):
    planned = [{"train": ["box_0", "box_1"], "val": ["box_2"]}, {"train": ["box_1", "box_2"], "val": ["box_0"]}]
    training_cases(dataset, 1, "training", planned)
    training_cases(dataset, 1, "validation", planned)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "3 of 6 cases in " in record.message and "NOT used: box_3, box_4, box_5." in record.message
    assert f"mednext plan {dataset} --output task.json" in record.message
    caplog.clear()
    training_cases(dataset, "all", "validation", planned)
    assert "are used, but were not measured by it: box_3, box_4, box_5." in caplog.text
    caplog.clear()
    (dataset / "splits_final.json").write_text(json.dumps(planned))
    training_cases(dataset, 0, "validation")
    assert "in no fold of splits_final.json and are NOT used" in caplog.text
    caplog.clear()
    training_cases(dataset, 0, "validation", make_folds([f"box_{i}" for i in range(6)]))
    assert not caplog.records


def test_splits_may_be_the_path_of_a_json_file(dataset, tmp_path):
    file = tmp_path / "my_folds.json"
    file.write_text(json.dumps([{"train": ["box_0", "box_1"], "val": ["box_4"]}]))
    found = {section: training_cases(dataset, 0, section, str(file)) for section in ("training", "validation")}
    assert [[case["id"] for case in cases] for cases in found.values()] == [["box_0", "box_1"], ["box_4"]]
    file.write_text("[")
    with pytest.raises(ValueError, match="my_folds.json: not valid JSON"):
        training_cases(dataset, 0, "training", str(file))


@pytest.mark.parametrize("splits", [3, {"train": ["box_0"]}, [["box_0"]], [{"train": "box_0", "val": ["box_1"]}]])
@pytest.mark.parametrize("fold", [0, "all"])
def test_folds_of_a_wrong_shape_are_named(dataset, splits, fold):
    with pytest.raises(ValueError, match="splits: "):
        training_cases(dataset, fold, "training", splits)


def test_three_cases_have_three_folds_and_one_case_has_none(tmp_path):
    make_decathlon(tmp_path, cases=3)
    validated = [case["id"] for fold in range(3) for case in training_cases(str(tmp_path), fold, "validation")]
    assert sorted(validated) == ["case_00", "case_01", "case_02"]
    with pytest.raises(ValueError, match=r"fold must be one of \[0, 1, 2\] or 'all', got 3"):
        training_cases(str(tmp_path), 3)
    describe(tmp_path, training=[{"image": "./imagesTr/case_00.nii.gz", "label": "./labelsTr/case_00.nii.gz"}])
    with pytest.raises(ValueError, match="1 case cannot be split into folds.*--fold all"):
        training_cases(str(tmp_path), 0)
    assert len(training_cases(str(tmp_path), "all", "validation")) == 1


def test_one_file_per_channel_is_checked_and_listed(dataset):
    """nnU-Net v2 layout."""
    for image in (dataset / "imagesTr").iterdir():
        stem = image.name.removesuffix(".nii.gz")
        (dataset / "imagesTr" / f"{stem}_0001.nii.gz").write_bytes(image.read_bytes())
        image.rename(dataset / "imagesTr" / f"{stem}_0000.nii.gz")
    description = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "outer": 1, "inner": 2}}
    (dataset / "dataset.json").write_text(json.dumps({**description, "numTraining": 6, "file_ending": ".nii.gz"}))
    cases = training_cases(dataset, "all")
    assert [len(case["image"]) for case in cases] == [2] * 6
    check_cases(cases, 2, 3)
    with pytest.raises(ValueError, match=r"box_0: has 2 channel files, expected 1 \(in_channels\)"):
        check_cases(cases, 1, 3)


def test_parts_of_the_images_to_segment(dataset):
    images = dataset / "imagesTr"
    parts = [[case["id"] for case in inference_cases("nowhere", images, 1, part, 4)] for part in range(4)]
    assert parts == [["box_0", "box_4"], ["box_1", "box_5"], ["box_2"], ["box_3"]]
    with pytest.raises(ValueError, match="part must be from 0 to 3 if parts is 4, got 4"):
        inference_cases("nowhere", images, 1, 4, 4)
    with pytest.raises(ValueError, match="parts must be at most the number of cases in .*imagesTr, 6, got 7"):
        inference_cases("nowhere", images, 1, 6, 7)


def test_images_to_segment_come_from_the_list_a_folder_or_a_file(dataset):
    assert [case["id"] for case in inference_cases(dataset)] == ["box_9"]
    assert len(inference_cases("nowhere", dataset / "imagesTr")) == 6
    assert [case["id"] for case in inference_cases("nowhere", dataset / "imagesTr" / "box_1.nii.gz")] == ["box_1"]
    (dataset / "dataset.json").unlink()
    assert [case["id"] for case in inference_cases(dataset)] == ["box_9"]


def listed(cases: list[dict]) -> dict[str, list[str]]:
    """File names by id."""
    return {case["id"]: [Path(path).name for path in ensure_tuple(case["image"])] for case in cases}


def test_channel_files_of_a_folder_make_one_case(images):
    folder = images("b_0001.nii.gz", "b_0000.nii.gz", "a_0000.nii.gz", "a_0001.nii.gz")
    (folder / "._a_0000.nii.gz").write_bytes(b"of macOS")
    (folder / "notes.txt").write_text("no image")
    both = {"a": ["a_0000.nii.gz", "a_0001.nii.gz"], "b": ["b_0000.nii.gz", "b_0001.nii.gz"]}
    assert listed(inference_cases("nowhere", folder, 2)) == both
    assert listed(inference_cases("nowhere", folder / "b_0001.nii.gz", 2)) == {"b": both["b"]}
    assert len(listed(inference_cases("nowhere", folder, 1))) == 4  # of one channel each: nothing says otherwise
    check_cases(inference_cases("nowhere", folder, 2), 2)


def test_files_that_all_are_channel_0_are_named_after_their_case(images):
    assert listed(inference_cases("nowhere", images("a_0000.nii.gz", "b_0000.nii"))) == {
        "a": ["a_0000.nii.gz"],
        "b": ["b_0000.nii"],
    }
    assert list(listed(inference_cases("nowhere", images("c.nii.gz")))) == ["a_0000", "b_0000", "c"]


def test_a_number_may_be_that_of_a_case_where_one_file_has_all_channels(images):
    folder = images("case_0000.nii.gz", "case_0001.nii.gz", channels=2)
    assert list(listed(inference_cases("nowhere", folder, 2))) == ["case_0000", "case_0001"]
    assert list(listed(inference_cases("nowhere", folder / "case_0001.nii.gz", 2))) == ["case_0001"]


def test_missing_and_superfluous_channels_are_named_in_one_list(images):
    folder = images("a_0000.nii.gz", "a_0002.nii.gz", "b_0001.nii.gz", "c.nii.gz", "a_0000.nii")
    with pytest.raises(ValueError, match=r"images: 5 problem\(s\)") as error:
        inference_cases("nowhere", folder, 2)
    for line in (
        "a_0000.nii.gz: case a has two files of this channel",
        "a_0002.nii.gz: is channel 2, counted from 0; in_channels is 2",
        "c.nii.gz: the name does not end in a channel number such as _0000",
        "a: has no file a_0001; in_channels is 2",
        "b: has no file b_0000; in_channels is 2",
    ):
        assert line in str(error.value)
    with pytest.raises(ValueError, match="b: has no file b_0000; in_channels is 2"):
        inference_cases("nowhere", folder / "b_0001.nii.gz", 2)


@pytest.mark.parametrize("version", [1, 2])
def test_the_test_images_of_an_nnunet_data_set_are_grouped(tmp_path, version):
    make_nnunet(tmp_path, version, cases=2)
    (tmp_path / "imagesTr").rename(tmp_path / "imagesTs")
    both = {f"case_0{i}": [f"case_0{i}_{c:04d}.nii.gz" for c in range(2)] for i in range(2)}
    assert listed(inference_cases(tmp_path, in_channels=2)) == both  # the folder
    describe(tmp_path, test=["./imagesTs/case_01.nii.gz"])
    expected = both if version == 2 else {"case_01": both["case_01"]}  # nnU-Net v2 knows no such list
    assert listed(inference_cases(tmp_path, in_channels=2)) == expected
    (tmp_path / "imagesTs" / "case_01_0001.nii.gz").unlink()
    if version == 2:
        with pytest.raises(ValueError, match="case_01: has no file case_01_0001"):
            inference_cases(tmp_path, in_channels=2)
    else:
        with pytest.raises(ValueError, match="case_01_0001.nii.gz: no such file"):
            check_cases(inference_cases(tmp_path, in_channels=2), 2)


def test_one_channel_of_an_nnunet_data_set_is_checked_as_well(tmp_path):
    make_nnunet(tmp_path, 2, cases=2, channels=("CT",))
    (tmp_path / "imagesTr").rename(tmp_path / "imagesTs")
    assert list(listed(inference_cases(tmp_path))) == ["case_00", "case_01"]
    save(tmp_path / "imagesTs" / "case_00_0001.nii.gz", np.ones((4, 5, 6), np.float32))
    with pytest.raises(ValueError, match="case_00_0001.nii.gz: is channel 1, counted from 0; in_channels is 1"):
        inference_cases(tmp_path)


@pytest.mark.parametrize("fold", [5, -1, "every", True, 1.0])
def test_fold_that_does_not_exist(dataset, fold):
    with pytest.raises(ValueError, match=r"fold must be one of \[0, 1, 2, 3, 4\] or 'all'"):
        training_cases(dataset, fold)


VALUES = [None, 7, True, [], ["x"], {}, {"x": "y"}, "", "a\0b", "\ud800.nii.gz", 1.5]


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("key", ["image", "label"])
def test_a_training_entry_that_holds_no_path_is_one_line(tmp_path, key, value):
    entry = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    describe(tmp_path, modality={"0": "CT"}, labels={"0": "b", "1": "a"}, training=[entry, {**entry, key: value}])
    with pytest.raises(DatasetError) as error:
        read_dataset(tmp_path)
    (problem,) = error.value.problems
    assert problem.startswith(
        "dataset.json: 'training' entry 1 must be {'image': path, 'label': path}, each one file; got"
    )


@pytest.mark.parametrize("value", [entry for entry in VALUES if entry != {"x": "y"}] + [{"image": None}], ids=repr)
def test_a_test_entry_that_holds_no_path_is_one_line(dataset, value):
    describe(dataset, test=["./imagesTs/box_9.nii.gz", value])
    with pytest.raises(
        DatasetError, match="dataset.json: 'test' entry 1 must be a path or {'image': path}, got "
    ) as error:
        inference_cases(dataset)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize("value", [7, True, {"x": "y"}, "imagesTs/a.nii.gz"], ids=repr)
def test_a_list_of_test_images_that_is_none_is_one_line(dataset, value):
    describe(dataset, test=value)
    with pytest.raises(DatasetError, match="dataset.json: 'test' must be a list of images, got"):
        inference_cases(dataset)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"training": value}, "'training' must be a list of cases, got") for value in (None, 7, "x", {"a": 1})),
        *(({"modality": value}, "'modality': channels must be numbered") for value in (None, 7, "CT", [], {})),
        *(
            ({"modality": [value]}, "'modality': the name of channel 0 must be text, got")
            for value in (None, [], {}, "")
        ),
        *(({"labels": value}, "'labels' must be an object, got") for value in (None, 7, "x", ["background", "a"])),
        *(({"labels": {"0": "b", "1": value}}, "label '1': .* or no name") for value in (None, {}, True)),
        *(({"labels": {"b": 0, "a": value}}, "label 'a': .* no integer value") for value in (None, 1.5, True, {}, "x")),
        *(({"name": value}, "'name' must be text, got") for value in ([1], {"a": 1})),
    ],
)
def test_a_value_of_a_wrong_type_is_one_line(tmp_path, changes, message):
    make_decathlon(tmp_path, cases=1)
    describe(tmp_path, **changes)
    with pytest.raises(DatasetError, match=f"dataset.json: {message}") as error:
        read_dataset(tmp_path)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize("value", [None, 7, ["x"], "", "nii", ".jpg", ".nii.gz/../x", ".*"], ids=repr)
def test_a_file_ending_that_is_not_known_is_one_line(tmp_path, value):
    make_nnunet(tmp_path, 2, cases=1)
    describe(tmp_path, file_ending=value)
    with pytest.raises(DatasetError, match="dataset.json: 'file_ending' must be one of .nii.gz, .nii,"):
        read_dataset(tmp_path)


def test_a_description_that_is_no_utf8_or_names_a_key_twice_is_refused(tmp_path):
    for content in ('{"name": "ä"}'.encode("latin-1"), b"[" * 100_000, b'{"name": "a", "name": "b"}'):
        (tmp_path / "dataset.json").write_bytes(content)
        with pytest.raises(DatasetError, match="dataset.json: not valid JSON in UTF-8: "):
            read_dataset(tmp_path)


def test_a_name_that_is_null_is_that_of_the_folder(tmp_path):
    make_decathlon(tmp_path / "Task", cases=1)
    describe(tmp_path / "Task", name=None)
    assert read_dataset(tmp_path / "Task").name == "Task"


def test_a_path_may_lead_out_of_the_data_set_and_its_id_does_not(tmp_path):
    make_decathlon(tmp_path / "shared", cases=1)
    image = {"image": "../shared/imagesTr/case_00.nii.gz", "label": str(tmp_path / "shared/labelsTr/case_00.nii.gz")}
    describe(tmp_path / "Task", modality={"0": "CT"}, labels={"0": "b", "1": "one", "2": "two"}, training=[image])
    (case,) = training_cases(tmp_path / "Task", "all")
    assert case == {
        "id": "case_00",
        "image": str(tmp_path / "shared/imagesTr/case_00.nii.gz"),
        "label": str(tmp_path / "shared/labelsTr/case_00.nii.gz"),
    }
    describe(tmp_path / "Task", training=[{"image": "..", "label": "x.nii.gz"}])
    with pytest.raises(DatasetError, match="'training' entry 0 must be"):
        read_dataset(tmp_path / "Task")


def test_classes_have_the_names_of_the_data_set_or_their_values(dataset):
    assert class_names(dataset, 3) == ["background", "outer", "inner"]
    assert class_names(dataset, 4) == ["class_0", "class_1", "class_2", "class_3"]
    assert class_names("nowhere", 2) == ["class_0", "class_1"]
    describe(dataset, labels={"0": "background", "1": "a", "2": "a"})
    assert class_names(dataset, 3) == ["background", "a_1", "a_2"]


def dicom(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 20)
    return path


@pytest.mark.parametrize("name", ["slice.dcm", "IM0001", "1.2.840.113619"])
def test_dicom_is_refused_in_a_data_set(tmp_path, name):
    for place in ("imagesTs", "imagesTs/study/series"):
        file = dicom(tmp_path / place / name)
        with pytest.raises(ValueError, match=f"{name} is a DICOM file; .*NIfTI file first, for example with dcm2niix"):
            inference_cases(tmp_path)
        file.unlink()
    dicom(tmp_path / "imagesTs" / name)
    save(tmp_path / "imagesTs" / "a.nii.gz", make_case(0)[0][..., 0])
    with pytest.raises(ValueError, match="is a DICOM file"):
        inference_cases(tmp_path)


def test_dicom_is_refused_as_the_image_of_a_training_case(tmp_path):
    make_decathlon(tmp_path, cases=2)
    dicom(tmp_path / "imagesTr" / "a.dcm")
    describe(tmp_path, training=[{"image": "imagesTr/a.dcm", "label": "labelsTr/case_00.nii.gz"}])
    with pytest.raises(ValueError, match="a.dcm: DICOM is not supported"):
        check_cases(training_cases(tmp_path, "all"), 1, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "dataset.json"),
        ("[]", "dataset.json"),
        ("{}", "needs 'labels' and either 'modality'"),
        ('{"modality": {"0": "CT"}, "labels": {"0": "b", "1": "a"}, "training": []}', "no training case"),
        (
            '{"modality": {"0": "CT"}, "labels": {"0": "b", "1": "a"}, "training": [{"image": "a.nii"}]}',
            "must be {'image': path, 'label': path}",
        ),
    ],
)
def test_broken_dataset_json(dataset, content, message):
    (dataset / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        training_cases(dataset, 0)


def test_case_listed_twice(dataset):
    content = json.loads((dataset / "dataset.json").read_text())
    content["training"].append(content["training"][0])
    (dataset / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="box_0: this case id occurs 2 times"):
        training_cases(dataset, 0)


def test_folder_without_data_set(tmp_path):
    with pytest.raises(ValueError, match="dataset.json"):
        training_cases(tmp_path, 0)


def test_nothing_to_segment(tmp_path, dataset):
    with pytest.raises(FileNotFoundError, match="no_such"):
        inference_cases(dataset, tmp_path / "no_such")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image to segment"):
        inference_cases(dataset, tmp_path / "empty")


def test_region_based_labels_are_classes_and_their_unions(tmp_path):
    dataset = read_dataset(make_regions(tmp_path / "d", 2))
    assert dataset.labels == ["background", "whole without core", "core without center", "center"]
    assert dataset.regions == {"whole": [1, 2, 3], "core": [2, 3], "center": [3]} and dataset.ignore_label == 4
    assert class_names(str(dataset.directory), 4) == dataset.labels


def test_images_are_listed_one_by_one(images):
    folder = images("a.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz", "c_0000.nii.gz", "c_0001.nii.gz")
    paths = {file.name.removesuffix(".nii.gz"): str(file) for file in folder.iterdir()}
    assert inference_cases("nowhere", datalist=[paths["a"], {"image": paths["b_0000"], "id": "../x"}]) == [
        {"id": "a", "image": paths["a"]},
        {"id": "x", "image": paths["b_0000"]},
    ]
    b, c = [paths["b_0000"], paths["b_0001"]], [paths["c_0000"], paths["c_0001"]]
    expected = [{"id": "b", "image": b}, {"id": "c", "image": c}]
    assert inference_cases("nowhere", in_channels=2, datalist=[b, *c]) == expected
    assert inference_cases("nowhere", in_channels=2, datalist=[{"image": c}, {"image": b}]) == expected


def test_a_list_of_images_that_is_none_is_an_error_that_names_the_item(images):
    file = str(images("a.nii.gz") / "a.nii.gz")
    for datalist, message in (
        (file, "datalist must be a list of images, got"),
        ([file, 3], "datalist: item 1 must be a path, a list of one path per channel"),
        ([{"label": file}], "datalist: item 0 must be a path"),
        ([], "datalist contains no image to segment"),
        ([file, file], "datalist lists more than one image named a"),
    ):
        with pytest.raises(ValueError, match=message):
            inference_cases("nowhere", datalist=datalist)
    with pytest.raises(FileNotFoundError, match="datalist: item 0: nothing.nii is not a file"):
        inference_cases("nowhere", datalist=["nothing.nii"])
    with pytest.raises(ValueError, match="state one of them"):
        inference_cases("nowhere", file, datalist=[file])
