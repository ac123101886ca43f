"""Each decision of the plan against the original's rule, and what is written."""

from __future__ import annotations

import json
import subprocess
import sys
from html import unescape
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.datasets import AFFINE, make_case, make_decathlon, make_regions, save

from mednext_monai.cli import main
from mednext_monai.data import make_folds
from mednext_monai.data.checks import Volume
from mednext_monai.data.dataset import Dataset
from mednext_monai.evaluation import read_labels
from mednext_monai.planning import make_plan, plan, text_report
from mednext_monai.planning.fingerprint import CaseFingerprint, measure_case


def make_cases(shape, spacing=(1.0, 1.0, 1.0), cropped=None, count=3) -> list[CaseFingerprint]:
    values = np.arange(30, dtype=np.float32).reshape(1, 30)
    return [
        CaseFingerprint(
            str(i),
            tuple(shape),
            tuple(spacing),
            "RAS",
            tuple(cropped or shape),
            np.array([90, 9, 1]),
            values,
            values,
            values.mean(1),
            values.std(1),
        )
        for i in range(count)
    ]


def make_dataset(*channel_names: str) -> Dataset:
    labels = ["background", "one", "two"]
    return Dataset(Path("data"), "decathlon", "Synthetic", list(channel_names or ("MRI",)), labels, [])


def why(result: dict, what: str) -> str:
    return next(d["why"] for d in result["_plan_"]["decisions"] if d["what"].startswith(what))


@pytest.mark.parametrize(
    "task, median, expected",
    [
        ("BraTS", (138, 170, 138), False),
        ("BTCV", (345, 345, 440), True),
        ("AMOS", (400, 400, 500), True),
        ("KiTS", (400, 400, 460), True),
        ("hippocampus", (35, 50, 35), False),
        ("just below four patches", (256, 256, 127), False),
        ("four to eight patches: the low resolution is not small enough to be kept", (256, 256, 200), False),
        ("above eight patches", (256, 256, 260), True),
    ],
)
def test_batch_dice_follows_the_number_of_stages(task, median, expected):
    result = make_plan(make_dataset(), make_cases(median))
    assert result["batch_dice"] is expected, task
    assert " x ".join(map(str, median)) in why(result, "batch_dice")


@pytest.mark.parametrize(("shape", "spacing"), [((178, 381, 249), (0.9, 0.5, 2.2)), ((156, 256, 215), (0.8, 2.2, 1.1))])
def test_batch_dice_at_the_border_counts_unrounded_voxels_as_the_original_does(shape, spacing):
    assert make_plan(make_dataset(), make_cases(shape, spacing))["batch_dice"] is True  # rounded, it would not be


def test_the_rules_use_the_resampled_crop():
    cases = make_cases((512, 512, 120), (0.5, 0.5, 3), cropped=(400, 512, 100))
    result = make_plan(make_dataset(), cases)
    assert result["_plan_"]["fingerprint"]["largest_resampled_shape"] == [200, 256, 300]
    assert "anisotrop" not in result["_plan_"]["decisions"][1]["value"]
    assert "nearest along the coarse axis" in result["_plan_"]["decisions"][1]["value"]
    assert "largest 6.00; above 3 (here 3 of 3 cases)" in why(result, "resampling")


@pytest.mark.parametrize(
    "shape, expected, dummy_2d",
    [
        ((200, 200, 200), [128, 128, 128], False),
        ((128, 127, 113), [128, 128, 128], False),
        ((43, 59, 47), [48, 64, 48], False),
        ((330, 330, 90), [128, 128, 96], False),
        ((300, 300, 48), [128, 128, 48], False),
        ((300, 300, 32), [128, 128, 32], True),
        ((300, 300, 5), [128, 128, 16], True),
    ],
)
def test_the_patch_shrinks_to_the_largest_volume_and_dummy_2d_follows_it(shape, expected, dummy_2d):
    small = make_cases([max(1, n // 2) for n in shape])
    result = make_plan(make_dataset(), small + make_cases(shape, count=1))
    assert (result["patch_size"], result["dummy_2d"]) == (expected, dummy_2d)
    assert result["spacing"] == [1.0, 1.0, 1.0] and result["batch_size"] == 2
    assert f"{max(expected) / min(expected):.2f}" in why(result, "dummy_2d")


def test_the_patch_can_be_asked_for():
    cases = make_cases((43, 59, 47))
    assert make_plan(make_dataset(), cases, patch_size=128)["patch_size"] == [128, 128, 128]
    assert make_plan(make_dataset(), cases, patch_size=(48, 96, 64))["patch_size"] == [48, 96, 64]
    for patch_size in (100, 0, (64, 64), (64, 64, 60), "64", 64.0):
        with pytest.raises(ValueError, match="patch_size must be one or three positive multiples of 16, got"):
            make_plan(make_dataset(), cases, patch_size=patch_size)
    for batch_size in (0, 1.5, True):
        with pytest.raises(ValueError, match="batch_size must be a positive integer"):
            make_plan(make_dataset(), cases, batch_size=batch_size)


@pytest.mark.parametrize(
    "name, kept, expected",
    [
        ("CT", 0.5, "CT"),
        ("ct", 0.5, "masked_CT"),
        ("ct", 0.75, "CT"),
        ("noNorm", 0.5, "none"),
        ("T1", 0.74, "masked_zscore"),
        ("T1", 0.75, "zscore"),
        ("T1", 1.0, "zscore"),
        ("CT perfusion", 0.5, "zscore"),
    ],
)
def test_normalization_follows_the_name_and_the_crop(name, kept, expected):
    cases = make_cases((100, 10, 10), cropped=(int(100 * kept), 10, 10))
    result = make_plan(make_dataset(name), cases)
    assert result["normalization"] == [expected]
    assert any("name it exactly 'CT'" in w for w in result["_plan_"]["warnings"]) is (name == "CT perfusion")


def test_mixed_orientations_are_a_warning():
    cases = make_cases((40, 40, 40))
    other = CaseFingerprint(**{**vars(cases[0]), "id": "turned", "orientation": "LPS"})
    warnings = make_plan(make_dataset(), [*cases, other])["_plan_"]["warnings"]
    assert any("3 x RAS, 1 x LPS" in w and "turned" in w for w in warnings)


def test_the_plan_is_written_with_report_and_folds(tmp_path):
    directory = make_decathlon(tmp_path / "data", cases=7, channels=("T1", "T2"))
    result = plan(directory, tmp_path / "my.json", processes=0, progress=False)
    assert json.loads((tmp_path / "my.json").read_text()) == result
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "my.html", "my.json"]
    assert {k: v for k, v in result.items() if k not in ("_plan_", "intensity", "splits")} == {
        "dataset_dir": str(directory),
        "in_channels": 2,
        "out_channels": 3,
        "channel_names": ["T1", "T2"],
        "labels": ["background", "one", "two"],
        "spacing": [1.0, 1.0, 1.0],
        "patch_size": [32, 32, 32],
        "batch_size": 2,
        "batch_dice": False,
        "normalization": ["zscore", "zscore"],
        "dummy_2d": False,
    }
    assert len(result["intensity"]) == 2 and result["intensity"][0]["sd"] > 0
    assert result["splits"] == make_folds([f"case_{i:02d}" for i in range(7)])


def test_own_splits_win_and_few_cases_are_trained_together(tmp_path):
    directory = make_decathlon(tmp_path / "data", cases=4)
    arguments = {"processes": 0, "progress": False, "report": False}
    result = plan(directory, tmp_path / "my.json", **arguments)
    assert result["splits"] == make_folds([f"case_0{i}" for i in range(4)]) and result["fold"] == "all"
    assert any("only 4 cases" in w for w in result["_plan_"]["warnings"])
    own = [{"train": ["case_00", "case_01"], "val": ["case_02", "case_03"]}]
    (directory / "splits_final.json").write_text(json.dumps(own))
    assert plan(directory, tmp_path / "my.json", **arguments)["splits"] == own
    (tmp_path / "groups.csv").write_text("".join(f"case_0{i},{'p' if i else 'q'}\n" for i in range(4)))
    with pytest.raises(ValueError, match="groups in both train and val: p"):
        plan(directory, tmp_path / "my.json", groups=tmp_path / "groups.csv", **arguments)
    with pytest.raises(ValueError, match="splits: no such file"):
        plan(directory, tmp_path / "my.json", splits=tmp_path / "none.json", **arguments)


def test_a_plan_that_fails_leaves_the_old_one_and_no_litter(tmp_path, monkeypatch):
    directory = make_decathlon(tmp_path / "data", cases=2)
    (tmp_path / "my.json").write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        plan(directory, tmp_path / "my.json", processes=0, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "my.json"]
    assert (tmp_path / "my.json").read_text() == "old"


def test_a_ct_with_air_gives_ct_statistics(tmp_path):
    directory = make_decathlon(tmp_path / "data", cases=2, channels=("CT",))
    for i in range(2):
        image, label = make_case(i)
        save(directory / f"imagesTr/case_{i:02d}.nii.gz", np.where(label == 1, 40 + i, -1000).astype(np.int16), AFFINE)
    result = plan(directory, tmp_path / "my.json", processes=0, progress=False, report=False)
    assert result["normalization"] == ["CT"]
    assert (result["intensity"][0]["min"], result["intensity"][0]["max"]) == (-1000, 41)


def test_a_plan_says_which_cards_the_published_settings_need():
    result = make_plan(make_dataset(), make_cases((200, 200, 200)))
    fits = next(d["value"] for d in result["_plan_"]["decisions"] if d["what"] == "memory")
    assert fits == "24 GiB: S_k3, S_k5, B_k3, B_k5; 11 GiB: M_k3, M_k5; 16 GiB: L_k3, L_k5"
    assert "gradient_checkpointing" not in result


def test_a_plan_chooses_for_each_variant_the_fastest_setting_that_fits_the_card():
    result = make_plan(make_dataset(), make_cases((200, 200, 200)), gpu_memory=12)
    assert result["_plan_"]["training_memory_gib"]["M_k3"] == {"off": 29.3, "expansion": 11.0, "block": 8.7}
    assert result["gradient_checkpointing"] == {
        **dict.fromkeys(("S_k3", "S_k5", "B_k3", "B_k5", "M_k3", "M_k5"), "expansion"),
        **dict.fromkeys(("L_k3", "L_k5"), "block"),
    }
    roomy = make_plan(make_dataset(), make_cases((200, 200, 200)), gpu_memory=80)
    assert set(roomy["gradient_checkpointing"].values()) == {False}
    assert "fastest setting that fits the card of 80 GiB" in why(roomy, "gradient_checkpointing")
    tight = make_plan(make_dataset(), make_cases((200, 200, 200)), gpu_memory=8)
    assert next(d["value"] for d in tight["_plan_"]["decisions"] if d["what"] == "gradient_checkpointing") == (
        "block: S_k3, S_k5; does not fit: B_k3, B_k5, M_k3, M_k5, L_k3, L_k5"
    )
    assert set(tight["gradient_checkpointing"].values()) == {"block"}


def test_the_memory_of_every_setting_is_in_text_and_page(tmp_path):
    directory = make_decathlon(tmp_path / "data", cases=5)
    arguments = ["--output", str(tmp_path / "my.json"), "--processes", "1", "--patch_size", "128", "--gpu_memory", "11"]
    assert main(["plan", str(directory), *arguments]) == 0
    result = json.loads((tmp_path / "my.json").read_text())
    assert result["gradient_checkpointing"]["B_k3"] == "expansion"
    text, page = text_report(result), (tmp_path / "my.html").read_text()
    assert "     variant         off   expansion       block  for 11 GiB\n" in text
    assert "        B_k3        21.0         9.7         8.0   expansion\n" in text
    assert "        L_k5" in text and "does not fit" in text
    cells = "".join(f"<td class='number'>{value}</td>" for value in ("21.0", "9.7", "8.0"))
    assert f"<tr><td>B_k3</td>{cells}<td>expansion</td></tr>" in page


LABEL = make_case(0)[1]


def test_the_command_prints_the_list_fails_and_writes_nothing(tmp_path):
    make_decathlon(tmp_path / "data", cases=3)
    save(tmp_path / "data/labelsTr/case_02.nii.gz", LABEL + 3)
    (tmp_path / "data/imagesTr/case_01.nii.gz").unlink()
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-m", "mednext_monai", "plan", str(tmp_path / "data")]
    done = subprocess.run([*command, "--output", str(tmp_path / "out/my.json")], capture_output=True, text=True)
    assert done.returncode == 1
    assert "2 problems found" in done.stderr and "Traceback" not in done.stderr
    assert f"case_01: {tmp_path}/data/imagesTr/case_01.nii.gz: no such file" in done.stderr
    assert f"case_02: {tmp_path}/data/labelsTr/case_02.nii.gz: contains the label value(s)" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_an_output_that_cannot_be_written_is_found_before_the_work(tmp_path):
    make_decathlon(tmp_path / "data", cases=1)
    with pytest.raises(ValueError, match="no directory .*nowhere"):
        plan(tmp_path / "data", tmp_path / "nowhere" / "my.json")
    with pytest.raises(ValueError, match="must be a .json file, got"):
        plan(tmp_path / "data", tmp_path / "my.yaml")
    with pytest.raises(ValueError, match="batch_size must be a positive integer, got 0"):
        plan(tmp_path / "data", tmp_path / "my.json", batch_size=0)
    with pytest.raises(ValueError, match="gpu_memory must be a positive number of GiB, got -1"):
        plan(tmp_path / "data", tmp_path / "my.json", gpu_memory=-1)
    with pytest.raises(ValueError, match="processes must be 0 or more, got -1"):
        plan(tmp_path / "data", tmp_path / "my.json", processes=-1)


def test_foreground_outside_the_nonzero_box_is_a_warning_in_text_and_page(tmp_path):
    directory = make_decathlon(tmp_path / "data", cases=5)
    image = nib.load(directory / "imagesTr/case_01.nii.gz")
    values = np.asarray(image.dataobj).copy()
    values[:5] = 0  # the box of class 1 begins at 3: two of its six slices are cut off
    nib.save(nib.Nifti1Image(values, image.affine), directory / "imagesTr/case_01.nii.gz")
    label = np.asarray(nib.load(directory / "labelsTr/case_01.nii.gz").dataobj)
    total, kept = int((label > 0).sum()), int((label[5:] > 0).sum())
    assert total - kept == 2 * 6 * 4
    result = plan(directory, tmp_path / "my.json", processes=0, progress=False)
    (warning,) = (w for w in result["_plan_"]["warnings"] if "outside the box" in w)
    assert f"in 1 case: case_01 ({kept} of {total} voxels remain)" in warning
    assert warning in (tmp_path / "my.html").read_text(encoding="utf-8")
    assert f"case_01 ({kept} of {total} voxels remain)" in " ".join(text_report(result).split())


def test_regions_are_planned_as_classes_and_the_plan_says_so_in_text_and_page(tmp_path):
    directory = make_regions(tmp_path / "data")
    result = plan(directory, tmp_path / "task.json", processes=0, progress=False)
    assert result["out_channels"] == 4 and result["ignore_label"] == 4
    assert result["labels"] == ["background", "whole without core", "core without center", "center"]
    assert result["regions"] == {"whole": [1, 2, 3], "core": [2, 3], "center": [3]}
    page = unescape((tmp_path / "task.html").read_text())
    text = " ".join(text_report(result).split())
    for place in (page, text):
        assert "whole = 1 + 2 + 3; core = 2 + 3; center = 3" in place
        assert "trained as the exclusive classes 1 whole without core, 2 core without center, 3 center" in place
        assert "33.3% of the voxels are not annotated: excluded from loss, sampling" in place  # 10 of 30 slices
    assert read_labels(tmp_path / "task.json").named_values()["whole"] == (1, 2, 3)


def test_ignored_voxels_are_in_no_statistic(tmp_path):
    image, label = make_case(0)
    image = np.moveaxis(image, -1, 0)
    sparse = np.where(np.arange(label.shape[0])[:, None, None] < 11, label, 3).astype(np.int8)
    case = measure_case("x", Volume(image, sparse, np.eye(4)), 3, ignore_label=3)
    values, counts = np.unique(label[:11], return_counts=True)
    assert case.class_voxels.tolist() == counts.tolist() and values.tolist() == [0, 1, 2]
    assert case.ignored_voxels == label[11:].size
    expected = np.where(sparse == 3, 0, sparse)  # as if there were nothing
    other = measure_case("x", Volume(image, expected, np.eye(4)), 3)
    np.testing.assert_array_equal(case.foreground, other.foreground)
    assert case.foreground_outside == other.foreground_outside == 0 and case.cropped_shape == other.cropped_shape
