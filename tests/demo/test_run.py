"""Promises of the demo: its data set is sound, hard enough and the same every time; its steps are ordinary commands."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mednext_monai.data import check_cases, inference_cases, training_cases
from mednext_monai.demo.run import bundle_command, run_demo
from mednext_monai.demo.synthetic import LABELS, make_case, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("demo") / "dataset", num_training=6, num_test=2, seed=3)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_data_set_passes_the_checks_before_training(dataset, caplog):
    training, validation = (training_cases(str(dataset), 0, section) for section in ("training", "validation"))
    assert [len(training), len(validation)] == [4, 2]
    check_cases(training + validation, in_channels=1, out_channels=len(LABELS))
    check_cases(inference_cases(str(dataset)), in_channels=1)
    assert not caplog.records  # every case has foreground
    assert sorted(files_of(dataset)) == sorted(
        ["dataset.json"]
        + [f"{kind}sTr/synthetic_{i:02d}.nii.gz" for kind in ("image", "label") for i in range(6)]
        + [f"{kind}sTs/synthetic_test_{i:02d}.nii.gz" for kind in ("image", "label") for i in range(2)]
    )


def test_dataset_json_is_of_decathlon_layout(dataset):
    content = json.loads((dataset / "dataset.json").read_text())
    assert content["labels"] == {"0": "background", "1": "organ", "2": "core", "3": "vessel"}
    assert [content["numTraining"], content["numTest"], content["modality"]] == [6, 2, {"0": "synthetic"}]
    assert content["training"][5] == {
        "image": "./imagesTr/synthetic_05.nii.gz",
        "label": "./labelsTr/synthetic_05.nii.gz",
    }
    assert content["test"] == ["./imagesTs/synthetic_test_00.nii.gz", "./imagesTs/synthetic_test_01.nii.gz"]


def test_geometry_is_anisotropic_oblique_off_the_origin_and_differs(dataset):
    files = [nib.load(file) for file in sorted(dataset.glob("images*/*.nii.gz"))]
    spacings = np.array([nib.affines.voxel_sizes(file.affine) for file in files])
    assert spacings[:, :2].min() >= 0.9 and spacings[:, :2].max() <= 1.2
    assert spacings[:, 2].min() >= 1.5 and spacings[:, 2].max() <= 2.5
    assert len(np.unique(spacings.round(3), axis=0)) == len(files)
    extents = spacings * np.array([file.shape for file in files])
    assert extents.min() > 54 and extents.max() < 72  # 56 to 70 mm, rounded to whole voxels
    for file in files:
        cosines = np.abs(file.affine[:3, :3]) / nib.affines.voxel_sizes(file.affine)
        tilt = np.rad2deg(np.arccos(cosines.max(0).min()))
        assert 1 < tilt <= 20
        assert np.abs(file.affine[:3, 3]).max() > 5
        np.testing.assert_allclose(file.get_qform(), file.get_sform(), atol=1e-3)
    assert len({nib.aff2axcodes(file.affine) for file in files}) > 1  # axes run either way


def test_brightness_does_not_tell_the_structures_apart(dataset):
    for image_file in sorted((dataset / "imagesTr").iterdir()):
        image = np.asarray(nib.load(image_file).dataobj)
        label = np.asarray(nib.load(dataset / "labelsTr" / image_file.name).dataobj)
        assert image.dtype == np.int16 and label.dtype == np.uint8
        counts = np.bincount(label.ravel(), minlength=4)
        assert (counts[1:] > 300).all() and counts[0] > 0.85 * label.size
        body, core = image[(label == 0) & (image > 0)], image[label == 2]
        assert 0.8 < core.mean() / np.median(body) < 1.6
        as_bright_as_the_vessel = (image > np.median(image[label == 3]) * 0.75) & (label == 0)
        assert as_bright_as_the_vessel.sum() > 30
        assert (image[label > 0] > 0).all()


def test_same_arguments_give_the_same_bytes_and_cases_do_not_depend_on_their_number(dataset, tmp_path):
    again = files_of(write_dataset(tmp_path / "again", num_training=6, num_test=2, seed=3))
    assert again == files_of(dataset)
    fewer = files_of(write_dataset(tmp_path / "fewer", num_training=1, num_test=1, seed=3))
    del fewer["dataset.json"]
    assert all(again[name] == content for name, content in fewer.items())
    other = files_of(write_dataset(tmp_path / "other", num_training=1, num_test=0, seed=4))
    assert other["imagesTr/synthetic_00.nii.gz"] != again["imagesTr/synthetic_00.nii.gz"]


def test_extent_sets_the_size():
    image, label, affine = make_case(np.random.default_rng(0), extent=(24.0, 24.0))
    np.testing.assert_allclose(image.shape * nib.affines.voxel_sizes(affine), 24, atol=1.3)
    assert image.shape == label.shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_training": 0}, "num_training must be at least 1, num_test and seed at least 0, got 0, 2, 0"),
        ({"num_test": -1}, "got 10, -1, 0"),
        ({"seed": -5}, "got 10, 2, -5"),
        ({"extent": (70.0, 56.0)}, r"16 or more, got (70.0, 56.0)"),
        ({"extent": (4.0, 5.0)}, r"16 or more, got (4.0, 5.0)"),
    ],
)
def test_impossible_data_sets_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        write_dataset(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_command_is_what_a_user_would_type():
    bundle = Path("work", "mednext_s_k3")
    assert bundle_command(bundle, patch_size=[48, 48, 48], amp=False, upkern_checkpoint=Path("a b.pt")) == [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        "training",
        "--config_file",
        "work/mednext_s_k3/configs/train.json",
        "--bundle_root",
        "work/mednext_s_k3",
        "--patch_size",
        "[48,48,48]",
        "--amp",
        "False",
        "--upkern_checkpoint",
        "a b.pt",
    ]
    command = bundle_command(bundle, ("train", "evaluate"), "run")
    assert json.loads(command[command.index("--config_file") + 1]) == [
        "work/mednext_s_k3/configs/train.json",
        "work/mednext_s_k3/configs/evaluate.json",
    ]


# A stand-in for `python -m monai.bundle`, which says what MONAI says and writes what the bundles write.
CHILD = """
import shutil, sys
from pathlib import Path
options = dict(zip(sys.argv[3::2], sys.argv[4::2]))
bundle = Path(options["--bundle_root"])
print("2026-01-01 10:00:00,000 - INFO - > noise: 1")
print("2026-01-01 10:00:00,000 - INFO - Epoch[2] Metrics -- val_mean_dice: 0.8125 ")
if "--upkern_checkpoint" in options:
    print("2026-01-01 10:00:00,000 WARNING some.logger - an odd thing", file=sys.stderr)
if "inference" in options["--config_file"]:
    labels = Path(options["--dataset_dir"], "labelsTs")
    shutil.copytree(labels, options["--output_dir"])
"""


@pytest.fixture
def child(monkeypatch, tmp_path):
    """Have the run start the stand-in."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)

    def command(*args, **kwargs):
        python, _, _, *rest = bundle_command(*args, **kwargs)
        return [python, str(script), *rest]

    monkeypatch.setattr("mednext_monai.demo.run.bundle_command", command)


def test_run_leaves_logs_predictions_and_pictures_and_reports_dice(child, tmp_path, capsys):
    root = tmp_path / "demo"
    result = run_demo(str(root))
    assert result.dice_k3 == result.dice_k5 == {2: 0.8125}
    assert result.dice_evaluation == 0.8125
    assert result.dice_test == {"synthetic_test_00": 1.0, "synthetic_test_01": 1.0}
    assert [file.name for file in result.predictions] == ["synthetic_test_00.nii.gz", "synthetic_test_01.nii.gz"]
    assert all(file.is_file() for file in result.predictions + result.overlays)
    logs = sorted((root / "logs").iterdir())
    assert [log.name for log in logs] == ["1_train_k3.log", "2_train_k5.log", "3_evaluate.log", "4_inference.log"]
    assert "> noise: 1" in logs[0].read_text() and "an odd thing" in logs[1].read_text()
    screen = capsys.readouterr().out
    assert "noise" not in screen
    assert "  WARNING an odd thing\n" in screen
    assert "  Epoch[2] Metrics -- val_mean_dice: 0.8125" in screen
    commands = [line for line in screen.splitlines() if line.startswith("$ ")]
    assert len(commands) == 4
    assert f"--upkern_checkpoint {root}/mednext_s_k3/models/model.pt" in commands[1]


def test_failing_step_names_its_command_and_log_and_ends_the_run(monkeypatch, tmp_path):
    def failing(bundle, *args, **kwargs):
        return [sys.executable, "-c", "print('why'); raise SystemExit(7)"]

    monkeypatch.setattr("mednext_monai.demo.run.bundle_command", failing)
    root = tmp_path / "demo"
    with pytest.raises(ChildProcessError, match="exit status 7") as error:
        run_demo(str(root))
    assert "SystemExit(7)" in str(error.value)
    assert f"log: {root / 'logs' / '1_train_k3.log'}" in str(error.value)
    assert (root / "logs" / "1_train_k3.log").read_text() == "why\n"
    assert not (root / "logs" / "2_train_k5.log").exists()


def test_run_does_not_touch_a_folder_that_holds_something(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=re.escape(str(tmp_path))):
        run_demo(str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("patch_size", [0, 40])
def test_run_refuses_a_patch_size_that_the_network_cannot_take(tmp_path, patch_size):
    with pytest.raises(ValueError, match=f"multiple of 16, got {patch_size}"):
        run_demo(str(tmp_path / "demo"), patch_size=patch_size)
    assert not (tmp_path / "demo").exists()
