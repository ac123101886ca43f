"""A bundle's workflows, each run as a user runs it: training, resuming, UpKern, evaluation, inference, several GPUs."""

from __future__ import annotations

import csv
import json
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.datasets import make_nnunet, write_box_case
from monai.bundle import ConfigParser

from mednext_monai import bundles
from mednext_monai.bundles.library import PLACEHOLDER
from mednext_monai.cli import main
from mednext_monai.inferers import MedNeXtInferer
from mednext_monai.networks import create_mednext
from mednext_monai.planning import plan
from mednext_monai.transforms import Preprocessd, RestoreClassesd
from mednext_monai.weights import describe, read_state_dict

UNSTATED = ("--out_channels", "None", "--patch_size", "None")
ASIDE = {"pretrained.pt", "pretrained.json"}  # where a training leaves released weights
SHORT = ("--epochs", "2", "--iterations_per_epoch", "3", "--val_interval", "1")


def test_train_evaluate_segment_and_start_a_larger_kernel(run_bundle, dataset, tmp_path):
    models, outputs = run_bundle.bundle / "models", run_bundle.bundle / "eval"
    log = run_bundle("training", "train", options=SHORT).stdout
    assert "mean_train_loss" in log and "val_mean_dice" in log
    assert {"model.pt", "model_best.pt", "last.pt"} <= {file.name for file in models.iterdir()}
    assert list(outputs.glob("events.out.tfevents.*"))
    assert set(torch.load(models / "last.pt", weights_only=True)) == {
        "model",
        "optimizer",
        "lr_scheduler",
        "best",
        "pseudo_dice",
        "sampler",
        "random",
        "trainer",
        "run",
    }

    options = ("--save_predictions", "true", "--format", "nnunet", "--tolerance", "2.5")
    run_bundle("evaluating", "train", "evaluate", options=options)
    with open(outputs / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 and {row["class"] for row in rows} == {"outer", "inner"}  # fold 0 of six cases
    command = ["evaluate-folder", str(outputs / "predictions"), str(dataset / "labelsTr"), "--allow_missing"]
    command += ["--output_dir", str(tmp_path / "tables"), "--labels", str(dataset / "dataset.json"), *options[2:]]
    assert main(command) == 0
    assert (tmp_path / "tables/metrics.csv").read_bytes() == (outputs / "metrics.csv").read_bytes()
    assert (tmp_path / "tables/summary.json").is_file() and (outputs / "summary.json").is_file()

    run_bundle("run", "inference")
    image = nib.load(dataset / "imagesTs" / "box_9.nii.gz")
    prediction = nib.load(outputs / "box_9.nii.gz")
    assert prediction.shape == image.shape
    np.testing.assert_allclose(prediction.affine, image.affine, atol=1e-5)
    assert set(np.unique(prediction.dataobj)) <= {0, 1, 2}

    options = (
        "--kernel_size",
        "5",
        "--upkern_checkpoint",
        str(models / "model.pt"),
        "--ckpt_dir",
        str(tmp_path / "k5"),
    )
    log = run_bundle("training", "train", options=(*SHORT, *options)).stdout
    assert re.search(r"UpKern: \d+ tensors copied, 26 kernels interpolated", log)
    assert describe(read_state_dict(tmp_path / "k5" / "model.pt")).encoder_kernel_size == 5


@pytest.mark.slow
def test_a_plan_is_an_overlay_for_training_evaluation_and_inference(run_bundle, dataset, tmp_path):
    task = tmp_path / "task.json"
    content = json.loads((dataset / "dataset.json").read_text())
    content["modality"] = {"0": "CT"}
    (dataset / "dataset.json").write_text(json.dumps(content))
    plan(dataset, task, processes=1, progress=False, report=False)
    planned = json.loads(task.read_text())
    assert planned["normalization"] == ["CT"] and planned["patch_size"] == [48, 48, 48]
    run_bundle("training", "train", options=SHORT, overlay=task)
    outputs, results = run_bundle.bundle / "eval", {}
    for name, overlay in (("plan", task), ("no plan", None)):  # which the checkpoint makes unnecessary
        options = () if overlay else UNSTATED
        run_bundle("evaluating", "train", "evaluate", options=options, overlay=overlay)
        log = run_bundle("inferring", "inference", options=options, overlay=overlay).stdout
        results[name] = (outputs / "metrics.csv").read_text()
        results[name] += str(np.asarray(nib.load(outputs / "box_9.nii.gz").dataobj).tolist())
        assert "normalization ['CT']" in log and "does not say" not in log
        for file in ("metrics.csv", "box_9.nii.gz"):
            (outputs / file).unlink()
    assert results["plan"] == results["no plan"]
    options = ("--normalization", "['zscore']")
    result = run_bundle("inferring", "inference", options=options, check=False)
    assert "normalization is ['zscore'], but" in result.stderr and "was trained with ['CT']" in result.stderr
    planned["splits"][0]["val"] = ["box_404"]
    task.write_text(json.dumps(planned))
    result = run_bundle("training", "train", options=SHORT, overlay=task, check=False)
    assert "box_404" in result.stderr  # so the plan's folds are the ones used


@pytest.mark.slow
def test_a_fold_has_its_own_folder_and_no_training_or_evaluation_takes_that_of_another(run_bundle):
    models = run_bundle.bundle / "models"
    length = ("--epochs", "1", "--iterations_per_epoch", "1", "--val_interval", "1")
    run_bundle("training", "train", options=(*length, "--fold", "1"))
    trained = models / "fold_1" / "model.pt"
    assert {"model.pt", "model_best.pt", "last.pt"} <= {file.name for file in trained.parent.iterdir()}
    assert {file.name for file in models.iterdir() if file.is_file()} - ASIDE == {"model.pt"}
    assert (models / "model.pt").read_bytes() == PLACEHOLDER
    log = run_bundle("inferring", "inference", options=("--mirror", "false", *UNSTATED)).stdout
    assert f"using {trained}, the only fold that has" in log
    run_bundle("evaluating", "train", "evaluate", options=("--fold", "1", "--validate::inferer::mirror", "false"))
    result = run_bundle("evaluating", "train", "evaluate", options=("--checkpoint", str(trained)), check=False)
    assert f"{trained} was trained on fold 1 and cannot be evaluated on fold 0" in result.stderr
    assert "--fold 1" in result.stderr

    written = {file: file.stat().st_mtime_ns for file in trained.parent.iterdir()}
    cache = ("--cache_dir", str(run_bundle.cwd / "elsewhere"))
    options = (*length, *cache, "--fold", "1")
    result = run_bundle("training", "train", options=options, check=False)
    assert f"{trained.parent / 'last.pt'} exists and would be replaced" in result.stderr
    assert "--resume true" in result.stderr and "--overwrite true" in result.stderr
    result = run_bundle("training", "train", options=(*options, "--resume", "true", "--seed", "1"), check=False)
    assert "last.pt: seed was 0 and is 1" in result.stderr
    (trained.parent / "last.pt").write_bytes(b"cut")
    result = run_bundle("training", "train", options=(*options, "--resume", "true"), check=False)
    assert "last.pt cannot be read: it is truncated" in result.stderr
    assert not (run_bundle.cwd / "elsewhere").exists()  # found before anything was preprocessed
    assert {file: file.stat().st_mtime_ns for file in trained.parent.iterdir()}.keys() == written.keys()


@pytest.mark.slow
def test_channel_files_are_segmented_into_one_file_a_case(run_bundle, tmp_path):
    make_nnunet(tmp_path / "nnunet", 2, cases=2)
    network = create_mednext("S", 3, in_channels=2, out_channels=3, deep_supervision=True, base_channels=4)
    torch.save(network.state_dict(), run_bundle.bundle / "models" / "model.pt")
    folder = tmp_path / "nnunet" / "imagesTr"
    options = ("--in_channels", "2", "--input", str(folder), "--mirror", "false")
    run_bundle("inferring", "inference", options=options)
    predictions = sorted((run_bundle.bundle / "eval").glob("*.nii.gz"))
    assert [file.name for file in predictions] == ["case_00.nii.gz", "case_01.nii.gz"]
    original = nib.load(folder / "case_00_0000.nii.gz")
    assert nib.load(predictions[0]).shape == original.shape
    np.testing.assert_allclose(nib.load(predictions[0]).affine, original.affine, atol=1e-5)
    (folder / "case_01_0001.nii.gz").unlink()
    result = run_bundle("inferring", "inference", options=options, check=False)
    assert "case_01: has no file case_01_0001; in_channels is 2" in result.stderr


@pytest.mark.slow
def test_a_resumed_run_continues_epochs_schedule_best_value_and_its_drawn_seed(run_bundle):
    models, short = run_bundle.bundle / "models", ("--iterations_per_epoch", "2", "--seed", "None")
    log = run_bundle("run", "train", options=("--epochs", "3", "--val_interval", "1", *short)).stdout
    before = torch.load(models / "last.pt", weights_only=True)
    assert f"seed {before['sampler']['seed']}, drawn for this run" in log
    options = ("--epochs", "4", "--val_interval", "9", "--resume", "true", *short)
    log = run_bundle("run", "train", options=options).stdout
    after = torch.load(models / "last.pt", weights_only=True)
    assert "after epoch 3" in log
    assert after["trainer"]["iteration"] == 8
    assert after["lr_scheduler"]["last_epoch"] == before["lr_scheduler"]["last_epoch"] + 1
    assert after["optimizer"]["state"][0]["step"] == before["optimizer"]["state"][0]["step"] + 2
    assert after["best"] == before["best"]
    assert after["sampler"] == {"epoch": 4, "seed": before["sampler"]["seed"]}
    assert f"seed {before['sampler']['seed']}" not in log  # another was drawn, and not used


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_killed_run_resumes_to_the_same_weights_as_one_that_was_not(run_bundle, tmp_path, workers):
    """SIGKILL in the middle of an epoch; equal to the last bit, whatever the number of worker processes."""
    length = ("--epochs", "3", "--iterations_per_epoch", "4", "--val_interval", "2")

    def options(name: str, *more: str) -> tuple[str, ...]:
        return (*length, "--ckpt_dir", str(tmp_path / name), *more)

    run_bundle("training", "train", options=options("whole"))
    whole = read_state_dict(tmp_path / "whole" / "model.pt")
    last = torch.load(tmp_path / "whole" / "last.pt", weights_only=True)
    name = f"killed_{workers}"
    folder, workers = tmp_path / name, ("--num_workers", workers)
    run_bundle("training", "train", options=options(name, *workers), kill_when=folder / "last.pt")
    assert not (folder / "model.pt").exists()
    assert torch.load(folder / "last.pt", weights_only=True)["trainer"]["iteration"] in (4, 8)
    log = run_bundle("training", "train", options=options(name, *workers, "--resume", "true")).stdout
    assert f"resumed from {folder / 'last.pt'}" in log
    resumed = read_state_dict(folder / "model.pt")
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[key], whole[key]) for key in whole)
    again = torch.load(folder / "last.pt", weights_only=True)
    assert torch.equal(again["random"]["torch"], last["random"]["torch"])
    assert again["sampler"] == last["sampler"] == {"epoch": 3, "seed": 0}
    assert again["pseudo_dice"] == last["pseudo_dice"] and 0 <= last["pseudo_dice"]["average"] <= 1


@pytest.mark.slow
def test_cases_are_preprocessed_once_for_all_folds_and_kernels(run_bundle):
    store = run_bundle.bundle / "cache"
    length = ("--epochs", "1", "--iterations_per_epoch", "1", "--val_interval", "1")
    log = run_bundle("training", "train", options=length).stdout
    assert "6 cases to preprocess into" in log and "6 cases are preprocessed in" in log
    markers = {file: file.stat().st_mtime_ns for file in store.glob("v*/*/*/case.json")}
    assert len(markers) == 6
    log = run_bundle("training", "train", options=(*length, "--fold", "1", "--kernel_size", "5")).stdout
    assert "cases to preprocess" not in log and "6 cases are preprocessed in" in log
    assert {file: file.stat().st_mtime_ns for file in store.glob("v*/*/*/case.json")} == markers


@pytest.mark.slow
def test_a_training_begins_at_once_after_the_command_that_preprocesses(run_bundle, dataset, tmp_path, capfd):
    file, cache = tmp_path / "task.json", run_bundle.bundle / "cache"
    plan(dataset, file, processes=0, progress=False, report=False)
    for part in range(2):
        arguments = ["preprocess", "--plan", str(file), "--part", str(part), "--parts", "2", "--cache_dir", str(cache)]
        assert main(arguments) == 0
        assert f"part {part} of 2: 3 cases are stored in {cache}" in capfd.readouterr().out
    (dataset / "imagesTr" / "box_3.nii.gz").write_bytes(b"")
    assert main(["preprocess", str(run_bundle.bundle), "--plan", str(file)]) == 1
    *_, last = capfd.readouterr().err.strip().split("mednext: error: ")
    assert last.startswith("1 of 6 cases cannot be preprocessed; the other 5 are stored:\n  box_3: ")
    write_box_case(dataset, "box_3", 3)
    overlay = ("--epochs", "1", "--iterations_per_epoch", "1", "--val_interval", "1")
    log = run_bundle("training", "train", options=overlay, overlay=file).stdout
    assert "6 cases are preprocessed in" in log and "cases to preprocess" not in log


def test_several_processes_share_the_batch_that_one_process_has(run_bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517", "-m")
    options = (*SHORT, "--batch_dice", "false")  # a Dice over the whole batch is not the mean of its parts
    run_bundle("training", "train", "multi_gpu_train", options=options, launcher=launcher)
    models = run_bundle.bundle / "models"
    assert {"model.pt", "model_best.pt", "last.pt"} <= {file.name for file in models.iterdir()}
    run_bundle("training", "train", options=(*options, "--ckpt_dir", str(tmp_path / "one")))
    several, one = (read_state_dict(folder / "model.pt") for folder in (models, tmp_path / "one"))
    assert several.keys() == one.keys()  # and so no "module."
    for name in one:
        torch.testing.assert_close(several[name], one[name], rtol=0, atol=1e-5)
    mirror = ("--mirror", "false")
    run_bundle("evaluating", "train", "multi_gpu_train", "evaluate", options=mirror, launcher=launcher)
    options = (*mirror, "--output_dir", str(tmp_path / "alone"))
    run_bundle("evaluating", "train", "evaluate", options=options)
    assert (run_bundle.bundle / "eval/metrics.csv").read_text() == (tmp_path / "alone/metrics.csv").read_text()


@pytest.mark.slow
def test_training_learns_to_segment(run_bundle):
    options = (
        "--epochs",
        "3",
        "--iterations_per_epoch",
        "60",
        "--val_interval",
        "3",
        "--network_def::base_channels",
        "8",
    )
    log = run_bundle("training", "train", options=options).stdout
    assert float(re.findall(r"val_mean_dice: ([0-9.]+)", log)[-1]) > 0.8


def test_inference_averages_the_probabilities_of_folds(run_bundle, dataset):
    models, networks = run_bundle.bundle / "models", []
    for seed, folder in enumerate((models, models / "fold_1")):
        torch.manual_seed(seed)
        networks.append(create_mednext("S", 3, out_channels=3, deep_supervision=True, base_channels=4).eval())
        folder.mkdir(exist_ok=True)
        torch.save(networks[-1].state_dict(), folder / "model.pt")
    run_bundle("inferring", "inference", options=("--folds", "[0,1]", "--mirror", "false"))
    found = np.asarray(nib.load(run_bundle.bundle / "eval" / "box_9.nii.gz").dataobj)
    case = Preprocessd()({"image": str(dataset / "imagesTs" / "box_9.nii.gz")})["image"]
    inferer = MedNeXtInferer(32)
    with torch.no_grad():
        each = [inferer(case[None], network)[0] for network in networks]
    expected, *single = (
        RestoreClassesd("pred")({"image": case, "pred": pred})["pred"][0].numpy() for pred in (sum(each), *each)
    )
    assert (found != expected).mean() < 1e-4
    assert all((found != one).mean() > 0.01 for one in single)


def test_parts_of_an_inference_are_all_of_its_images(dataset):
    parts = []
    for part in range(2):
        parser = ConfigParser()
        parser.read_config(str(bundles.path("mednext_s_k3") / "configs" / "inference.json"))
        parser.update({"input": str(dataset / "imagesTr"), "part": part, "parts": 2})
        parts.append([case["id"] for case in parser.get_parsed_content("dataset::data")])
    assert parts == [["box_0", "box_2", "box_4"], ["box_1", "box_3", "box_5"]]


def test_processes_share_the_part_of_their_computer(dataset):
    shares = []
    for rank in range(4):
        parser = ConfigParser()
        parser.read_config(str(bundles.path("mednext_s_k3") / "configs" / "inference.json"))
        parser.update({"input": str(dataset / "imagesTr"), "part": 1, "parts": 2})
        parser.update({"dataset::data::rank": rank, "dataset::data::world_size": 4})
        shares.append([case["id"] for case in parser.get_parsed_content("dataset::data")])
    assert shares == [["box_1"], ["box_3"], ["box_5"], []]
