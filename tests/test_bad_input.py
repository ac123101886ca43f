"""What a user gets for bad input: an error that names the file or argument, before the first training step."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from mednext_monai.data import check_cases, check_folders, checks, inference_cases, preprocessed_cases, training_cases


@pytest.fixture
def cases(dataset):
    return training_cases(dataset, "all")


def rewrite(path: str, change, affine=None) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine if affine is None else affine), path)


def problem(cases: list[dict], in_channels: int = 1, out_channels: int = 3) -> str:
    with pytest.raises(ValueError) as error:
        check_cases(cases, in_channels, out_channels)
    return str(error.value)


def test_good_data_passes(cases, caplog):
    check_cases(cases, 1, 3)
    assert not caplog.records


def test_missing_image(cases, dataset):
    (dataset / "imagesTr" / "box_2.nii.gz").unlink()
    assert "imagesTr/box_2.nii.gz: the file does not exist" in problem(cases)


def test_truncated_image(cases, dataset):
    file = dataset / "imagesTr" / "box_3.nii.gz"
    file.write_bytes(file.read_bytes()[:2000])
    assert "imagesTr/box_3.nii.gz: cannot be read as an image" in problem(cases)


def test_no_image_at_all(cases, dataset):
    (dataset / "labelsTr" / "box_3.nii.gz").write_text("hello")
    assert "labelsTr/box_3.nii.gz: cannot be read as an image" in problem(cases)


def test_all_problems_are_listed_together(cases, dataset):
    (dataset / "imagesTr" / "box_0.nii.gz").unlink()
    (dataset / "labelsTr" / "box_5.nii.gz").unlink()
    message = problem(cases)
    assert "2 problem(s) in 6 cases" in message and "box_0" in message and "box_5" in message


def test_grids_of_different_size(cases):
    rewrite(cases[1]["label"], lambda x: x[:-1])
    message = problem(cases)
    assert "labelsTr/box_1.nii.gz: has (33, 38, 30) voxels, but" in message
    assert "imagesTr/box_1.nii.gz has (34, 38, 30)" in message


def test_grids_at_different_places(cases):
    affine = nib.load(cases[1]["image"]).affine.copy()
    affine[0, 3] += 5
    rewrite(cases[1]["label"], lambda x: x, affine)
    message = problem(cases)
    assert "labelsTr/box_1.nii.gz: lies 5 mm away from" in message and "affines must agree" in message


def test_grids_that_planning_accepts_are_accepted(cases):
    affine = nib.load(cases[1]["image"]).affine.copy()
    affine[0, 3] += 0.08  # less than a tenth of the smallest voxel edge
    rewrite(cases[1]["label"], lambda x: x, affine)
    check_cases(cases, 1, 3)


@pytest.mark.parametrize(("value", "shown"), [(7, "7"), (1.5, "1.5"), (-1, "-1")])
def test_label_value_outside_the_classes(cases, value, shown):
    rewrite(cases[0]["label"], lambda x: np.where(x == 2, np.float32(value), x))
    assert f"holds the label value(s) {shown}; allowed are the whole numbers 0 to 2" in problem(cases)


def test_wrong_number_of_channels(cases):
    assert "has 1 channel(s)" in problem(cases, in_channels=4) and "in_channels is 4" in problem(cases, in_channels=4)


def test_4d_image_where_3d_is_meant(cases):
    rewrite(cases[0]["image"], lambda x: np.stack([x, x], -1))
    assert "has 2 channel(s) (shape (34, 38, 30, 2)); in_channels is 1" in problem(cases)


def test_values_that_are_no_numbers_and_nothing_but_zeros(cases):
    rewrite(cases[0]["image"], lambda x: np.where(x > 15, np.nan, x))
    rewrite(cases[1]["image"], lambda x: x * 0)
    assert "NaN or infinite" in problem(cases) and "every voxel is zero" in problem(cases)


def test_case_without_foreground_is_a_warning(cases, caplog):
    rewrite(cases[4]["label"], lambda x: x * 0)
    check_cases(cases, 1, 3)
    assert "box_4.nii.gz: has no foreground" in caplog.text


def test_of_stored_cases_channels_and_classes_are_checked_without_reading_them(cases, tmp_path, monkeypatch, caplog):
    plan, cache = {"spacing": [2, 2, 2], "normalization": ["zscore"]}, str(tmp_path / "cache")
    rewrite(cases[4]["label"], lambda x: x * 0)
    preprocessed_cases(cases[:5], [], plan, cache)
    caplog.clear()
    read = []
    monkeypatch.setattr(checks, "_read", lambda path, plain=checks._read: (read.append(path), plain(path))[1])
    check_cases(cases, 1, 3, 1, plan, cache)
    assert sorted(read) == [cases[5]["image"], cases[5]["label"]]
    assert "box_4.nii.gz: has no foreground" in caplog.text and len(caplog.records) == 1
    with pytest.raises(ValueError, match=r"box_0: has 1 channel\(s\); in_channels is 2"):
        check_cases(cases[:1], 2, 3, plan=plan, cache_dir=cache)
    with pytest.raises(ValueError, match=r"box_0.nii.gz: holds the label value\(s\) 2; allowed are"):
        check_cases(cases[:1], 1, 2, plan=plan, cache_dir=cache)
    read.clear()
    rewrite(cases[0]["label"], lambda x: x * 9)
    with pytest.raises(ValueError, match=r"box_0.nii.gz: holds the label value\(s\) 9, 18"):
        check_cases(cases, 1, 3, 1, plan, cache)
    check_cases(cases[1:2], 1, 3, plan={**plan, "spacing": [1, 1, 1]}, cache_dir=cache)
    assert read == [cases[0]["image"], cases[0]["label"], *[cases[5][key] for key in ("image", "label")]] + [
        cases[1][key] for key in ("image", "label")
    ]


def test_empty_data_list():
    with pytest.raises(ValueError, match="empty"):
        check_cases([], 1, 2)


@pytest.mark.parametrize("fold", [5, -1, "every", True, 1.0])
def test_fold_that_does_not_exist(dataset, fold):
    with pytest.raises(ValueError, match=r"fold must be one of \[0, 1, 2, 3, 4\] or 'all'"):
        training_cases(dataset, fold)


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
    with pytest.raises(ValueError, match="box_0: this case id comes 2 times"):
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


def test_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to the folder .*file/results"):
        check_folders(output_dir=str(tmp_path / "file" / "results"))
    with pytest.raises(ValueError, match="cache_dir must name a folder, got None"):
        check_folders(cache_dir=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fold", "7"), "fold must be one of"),
        (("--in_channels", "2"), "in_channels is 2"),
        (("--out_channels", "2"), "holds the label value(s) 2"),
        (("--resume", "True"), "cannot resume"),
        (("--upkern_checkpoint", "none.pt"), "none.pt, does not exist"),
    ],
)
def test_a_training_ends_with_the_message_before_its_first_step(run_bundle, options, message):
    result = run_bundle("training", "train", options=("--epochs", "1", *options), check=False)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Iter: 1/" not in result.stdout
    assert not (run_bundle.bundle / "models" / "last.pt").exists()


def test_a_run_without_foreground_in_one_case_and_with_volumes_smaller_than_the_patch_trains(run_bundle, cases):
    rewrite(cases[0]["label"], lambda x: x * 0)
    options = ("--epochs", "1", "--iterations_per_epoch", "8", "--val_interval", "1", "--patch_size", "[48,48,48]")
    result = run_bundle("training", "train", options=(*options, "--batch_size", "1"))
    assert "has no foreground" in result.stdout
    assert (run_bundle.bundle / "models" / "model.pt").is_file()
