"""Networks of slices, from the plan to the segmentations: volumes, and pictures in PNG and TIFF."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
from helpers.datasets import make_boxes, make_pictures
from PIL import Image

from mednext_monai import bundles
from mednext_monai.bundles.export import FORMATS, export
from mednext_monai.cli import main
from mednext_monai.data.io import is_ours
from mednext_monai.errors import diagnosis
from mednext_monai.evaluation import evaluate_folder
from mednext_monai.inferers import MedNeXtInferer
from mednext_monai.networks import create_mednext
from mednext_monai.planning import plan
from mednext_monai.predictor import Predictor
from mednext_monai.transforms import Preprocessd, RestoreClassesd
from mednext_monai.upstream import MedNeXt
from mednext_monai.weights import convert, read_settings, read_weights

TINY = {"num_workers": 0, "device": "cpu", "progress_bar": False}
SHORT = {"epochs": 1, "iterations_per_epoch": 3, "val_interval": 1, "pseudo_dice_batches": 1, "seed": 0}


def new_bundle(tmp_path: Path, dataset: Path, name: str = "bundle", kernel_size: int = 3, **options) -> Path:
    """Plan in 2D, and create a bundle with a tiny network."""
    file = tmp_path / f"{name}.json"
    plan(dataset, file, processes=1, progress=False, spatial_dims=2, batch_size=4, **options)
    folder = bundles.new_bundle("S", kernel_size, file, tmp_path / name)
    for config in ("train", "inference"):
        path = folder / "configs" / f"{config}.json"
        content = json.loads(path.read_text())
        content["network_def"]["base_channels"] = 4
        path.write_text(json.dumps(content))
    return folder


@pytest.fixture
def run(monkeypatch, caplog):
    """Run a workflow of a bundle in this process; return what it logged, or the sentence with which it ended."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which a run replaces

    def call(bundle: Path, run_id: str, *configs: str, **options: object) -> str:
        caplog.clear()
        files = [str(bundle / "configs" / f"{name}.json") for name in configs]
        with caplog.at_level(logging.INFO):
            try:
                monai.bundle.run(
                    run_id, config_file=files, logging_file=False, **{"bundle_root": str(bundle), **TINY, **options}
                )
            except Exception as error:
                return diagnosis(error) or repr(error)
        return caplog.text

    return call


def give_weights(bundle: Path, **settings) -> torch.nn.Module:
    """Give a bundle random weights that are clearly not equal for all classes; return the network."""
    from mednext_monai.weights import task_settings, training_settings
    from mednext_monai.weights.settings import attach_settings

    config = json.loads((bundle / "configs" / "train.json").read_text())
    task = task_settings({key: config[key] for key in config if key not in ("dataset_dir", "intensity")})
    torch.manual_seed(0)
    channels = {"in_channels": task["in_channels"], "out_channels": task["out_channels"]}
    network = create_mednext("S", config["kernel_size"], 2, **channels, deep_supervision=True, base_channels=4)
    for tensor in network.parameters():
        tensor.data *= 2
    carried = training_settings(task, "S", config["kernel_size"], 0, [], config["dataset_dir"])
    torch.save(attach_settings(network.state_dict(), carried), bundle / "models" / "model.pt")
    return network.eval()


@pytest.mark.parametrize("axis", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_volume_is_segmented_slice_by_slice_on_its_own_grid(axis, tmp_path, run):
    dataset = make_boxes(tmp_path / "data")
    bundle = new_bundle(tmp_path, dataset, slice_axis=axis, slice_spacing=1.0)
    network = give_weights(bundle)
    out, image = tmp_path / "out", dataset / "imagesTs" / "box_9.nii.gz"
    log = run(bundle, "inferring", "inference", input=str(image), output_dir=str(out), sw_batch_size=4)
    assert "box_9: " in log
    found = nibabel.load(out / "box_9.nii.gz")
    assert found.shape == nibabel.load(image).shape

    case = Preprocessd()({"image": str(image)})
    patch = json.loads((bundle / "configs" / "train.json").read_text())["patch_size"]
    inferer = MedNeXtInferer(patch, mirror=True)
    volume = case["image"].as_tensor()[None]
    with torch.no_grad():
        slices = [inferer(volume.select(2 + axis, i), network) for i in range(volume.shape[2 + axis])]
    case["pred"] = torch.stack(slices, 2 + axis)[0]
    expected = RestoreClassesd()(case)["pred"][0].numpy()
    assert len(np.unique(expected)) > 1
    assert (np.asarray(found.dataobj) != expected).mean() < 1e-4  # ties, up to rounding

    in_python = Predictor(bundle, device="cpu")(image)
    np.testing.assert_array_equal(in_python.dataobj, found.dataobj)


def test_volumes_are_trained_evaluated_and_segmented_in_2d(tmp_path, run):
    dataset = make_boxes(tmp_path / "data")
    bundle = new_bundle(tmp_path, dataset)
    assert "wrote the weights after the last epoch" in run(bundle, "training", "train", **SHORT)
    settings = read_settings(bundle / "models" / "model.pt")
    assert (settings["spatial_dims"], settings["slice_axis"]) == (2, 2)
    assert settings["spacing"] == [1.0, 1.0, None] and settings["patch_size"] == [48, 48]
    assert all(weight.dim() in (1, 4) for weight in read_weights(bundle / "models" / "model.pt").values())
    run(bundle, "evaluating", "train", "evaluate", save_predictions=True)
    assert len(list((bundle / "eval" / "predictions").glob("*.nii.gz"))) == 2
    scores = json.loads((bundle / "eval" / "metrics.json").read_text())
    assert scores["settings"]["mirror"] is True
    assert "box_9: " in run(bundle, "inferring", "inference", output_dir=str(tmp_path / "out"))
    again = run(bundle, "inferring", "inference", output_dir=str(tmp_path / "out"))
    assert "1 of 1 cases are finished" in again
    assert "has completed 1 epochs" in run(bundle, "training", "train", **SHORT, resume=True)
    changed = run(bundle, "training", "train", **{**SHORT, "epochs": 2}, resume=True, slice_axis=0)
    assert "slice_axis was 2 and is 0" in changed


@pytest.mark.parametrize("ending, channels, bits", [(".png", 3, 8), (".tif", 2, 16)])
def test_pictures_are_planned_trained_evaluated_and_segmented(ending, channels, bits, tmp_path, run):
    if ending == ".tif":
        pytest.importorskip("tifffile")
    dataset = make_pictures(tmp_path / "data", ending, channels=channels, bits=bits)
    bundle = new_bundle(tmp_path, dataset)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["data_type"] == {".png": "png", ".tif": "tiff"}[ending]
    assert len(metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]) == 2
    assert "wrote the weights after the last epoch" in run(bundle, "training", "train", **SHORT)
    run(bundle, "evaluating", "train", "evaluate", save_predictions=True)
    metrics = json.loads((bundle / "eval" / "metrics.json").read_text())
    read = evaluate_folder(bundle / "eval" / "predictions", dataset / "labelsTr", allow_missing=True, processes=1)
    assert metrics["cases"] == len({row.case for row in read.scores}) == 2 and not metrics["problems"]
    evaluated = list((bundle / "eval" / "predictions").iterdir())
    assert len(evaluated) == 2 and all(file.suffix == ending and is_ours(file) for file in evaluated)

    out = tmp_path / "out"
    assert f"wrote {out}" in run(bundle, "inferring", "inference", output_dir=str(out))
    assert [file.name for file in out.iterdir()] == [f"case_6{ending}"]
    if ending == ".png":
        with Image.open(dataset / "imagesTs" / "case_6_0000.png") as image, Image.open(out / "case_6.png") as found:
            assert found.size == image.size and found.mode == "L"
            expected = Predictor(bundle, device="cpu")(dataset / "imagesTs" / "case_6_0000.png")
            np.testing.assert_array_equal(np.asarray(found).T, np.asarray(expected.dataobj)[..., 0])
    assert "1 of 1 cases are finished" in run(bundle, "inferring", "inference", output_dir=str(out))
    elsewhere = run(bundle, "inferring", "inference", output_dir=str(out), input=str(out / f"case_6{ending}"))
    assert "would be replaced by its own segmentation" in elsewhere


def test_slices_of_nifti_are_segmented_as_nifti(tmp_path, run):
    dataset = make_pictures(tmp_path / "data", ".nii.gz")
    bundle = new_bundle(tmp_path, dataset)
    config = json.loads((bundle / "configs" / "train.json").read_text())
    assert (config["slice_axis"], config["spacing"]) == (2, [1.0, 1.0, None])
    give_weights(bundle)
    assert "case_6: " in run(bundle, "inferring", "inference", output_dir=str(tmp_path / "out"))
    assert nibabel.load(tmp_path / "out" / "case_6.nii.gz").shape == (40, 44, 1)


def test_what_does_not_fit_together_ends_with_a_sentence_that_says_what_to_do(tmp_path, run):
    pictures, boxes = make_pictures(tmp_path / "pictures"), make_boxes(tmp_path / "boxes")
    with pytest.raises(ValueError, match="case_0 is one slice, and the plan is 3D; .* --spatial_dims 2"):
        plan(pictures, tmp_path / "no.json", processes=1, progress=False)
    assert not (tmp_path / "no.json").exists()
    plan(boxes, tmp_path / "3d.json", processes=1, progress=False)
    in_3d = bundles.new_bundle("S", 3, tmp_path / "3d.json", tmp_path / "in_3d")
    folds = [{"train": ["case_0", "case_1"], "val": ["case_2"]}]
    trained = run(in_3d, "training", "train", dataset_dir=str(pictures), splits=folds)
    assert "is one slice of 40 x 44 x 1 voxels, and the network is 3D; plan and train in 2D" in trained
    for options, expected in (
        ({"spatial_dims": 2}, "patch_size must be one or two positive multiples of 16 for spatial_dims 2"),
        ({"slice_axis": 1}, "slice_axis must be null, since spatial_dims is 3"),
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3"),
    ):
        assert expected in run(in_3d, "training", "train", **options)

    in_2d = new_bundle(tmp_path, boxes, slice_axis=1)
    give_weights(in_2d)
    refused = run(in_2d, "inferring", "inference", spatial_dims=3, output_dir=str(tmp_path / "out"))
    assert "spatial_dims is 3, but" in refused and "was trained with 2" in refused
    across = run(in_2d, "inferring", "inference", input=str(pictures / "imagesTs"), output_dir=str(tmp_path / "out"))
    assert "is one slice of 40 x 44 x 1 voxels across axis 2" in across and "across axis 1 (slice_axis)" in across


def test_upkern_starts_a_network_of_slices_with_larger_kernels(tmp_path, run):
    dataset = make_pictures(tmp_path / "data")
    small, large = (new_bundle(tmp_path, dataset, f"k{size}", size) for size in (3, 5))
    trained = give_weights(small)
    log = run(large, "training", "train", **SHORT, upkern_checkpoint=str(small / "models" / "model.pt"))
    assert "wrote the weights after the last epoch" in log
    start = create_mednext("S", 5, 2, 1, 3, deep_supervision=True, base_channels=4)
    from mednext_monai.weights import upkern

    upkern(trained.state_dict(), start)
    name = "enc_block_0.0.conv1.weight"
    expected = torch.nn.functional.interpolate(trained.state_dict()[name], (5, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(start.state_dict()[name], expected)


def test_slices_and_volumes_are_averaged(tmp_path, run):
    dataset = make_boxes(tmp_path / "data")
    plan(dataset, tmp_path / "3d.json", processes=1, progress=False)
    in_3d = bundles.new_bundle("S", 3, tmp_path / "3d.json", tmp_path / "in_3d")
    path = in_3d / "configs" / "inference.json"
    content = json.loads(path.read_text())
    content["network_def"]["base_channels"] = 4
    path.write_text(json.dumps(content))
    torch.manual_seed(1)
    network = create_mednext("S", 3, 3, 1, 3, deep_supervision=True, base_channels=4)
    torch.save(network.state_dict(), in_3d / "models" / "model.pt")
    in_2d = new_bundle(tmp_path, dataset)
    give_weights(in_2d)
    options = {"output_dir": str(tmp_path / "out"), "save_probabilities": True, "mirror": False}
    arrays = []
    for bundle, others in ((in_2d, None), (in_3d, None), (in_2d, [str(in_3d)])):
        log = run(bundle, "inferring", "inference", **options, ensemble=others, overwrite=True)
        assert "box_9: " in log
        arrays.append(np.load(tmp_path / "out" / "box_9.npz")["probabilities"].astype(np.float32))
    np.testing.assert_allclose(arrays[2], (arrays[0] + arrays[1]) / 2, atol=2e-3)


def test_weights_of_the_authors_2d_network_are_converted_with_their_axes_reversed(tmp_path):
    theirs = MedNeXt(
        1, 32, 3, exp_r=2, kernel_size=3, deep_supervision=True, do_res=True, do_res_up_down=True, dim="2d"
    )
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "model_final_checkpoint.model")
    convert(tmp_path / "model_final_checkpoint.model", tmp_path / "model.pt", reverse_axes=True)
    network = create_mednext("S", 3, 2, 1, 3, deep_supervision=True)
    network.load_state_dict(read_weights(tmp_path / "model.pt"))
    image = torch.randn(1, 1, 32, 48)
    with torch.no_grad():
        expected = theirs.eval()(image.mT)
        expected = expected[0] if isinstance(expected, (list, tuple)) else expected
        torch.testing.assert_close(network.eval()(image), expected.mT, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_network_of_slices_learns_from_pictures_and_is_cross_validated_and_reported(tmp_path, run, monkeypatch):
    dataset = make_pictures(tmp_path / "data", channels=3, cases=10)
    bundle = new_bundle(tmp_path, dataset)
    learning = {"epochs": 2, "iterations_per_epoch": 40, "val_interval": 9, "pseudo_dice_batches": 1, "seed": 0}
    assert "wrote the weights after the last epoch" in run(bundle, "training", "train", **learning)
    run(bundle, "evaluating", "train", "evaluate", save_predictions=True)
    classes = json.loads((bundle / "eval" / "metrics.json").read_text())["classes"]
    assert classes["disc"]["dice"]["mean"] > 0.9 and classes["core"]["dice"]["mean"] > 0.8, classes

    monkeypatch.chdir(tmp_path)
    options = ["--num_workers", "0", "--device", "cpu", "--epochs", "1", "--iterations_per_epoch", "2"]
    assert main(["cross-validate", str(bundle), "--folds", "0", "1", *options, "--pseudo_dice_batches", "0"]) == 0
    together = bundle / "eval" / "cross_validation"
    assert len(list(together.rglob("*.png"))) >= 4 and (together / "postprocessing.json").is_file()
    assert main(["report", str(bundle)]) == 0
    assert (bundle / "eval" / "report.html").read_text().count("data:image") >= 3
    decision = str(together / "postprocessing.json")
    assert main(["apply-postprocessing", str(bundle / "eval/predictions"), "kept", "--decision", decision]) == 0
    assert {file.suffix for file in (tmp_path / "kept").iterdir()} == {".png", ".json"}


@pytest.mark.parametrize("format", ["torchscript", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_network_of_slices_is_exported_for_any_size_of_slices(format, tmp_path):
    for package in ("onnx", "onnxruntime", "onnxscript") if format == "onnx" else ():
        pytest.importorskip(package)
    bundle = new_bundle(tmp_path, make_pictures(tmp_path / "data"))
    network = give_weights(bundle)
    file, error = export(bundle, format)
    assert error <= 1e-4
    image = torch.randn(3, 1, 32, 80)
    with torch.no_grad():
        expected = network(image)
    found = FORMATS[format].read(file.read_bytes())(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    if format == "torchscript":
        extra = {"metadata.json": ""}
        torch.jit.load(str(file), _extra_files=extra)
        inputs = json.loads(extra["metadata.json"])["network_data_format"]["inputs"]
        assert len(inputs["image"]["spatial_shape"]) == 2
