"""``--ensemble``: the mean of the probabilities of several bundles, whatever their networks and preprocessing are."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bundles import make_member
from monai.bundle import ConfigParser

from mednext_monai import Predictor
from mednext_monai.cli import main
from mednext_monai.data.io import read_image
from mednext_monai.options import literal
from mednext_monai.preprocessing.geometry import Geometry, restore_image
from mednext_monai.transforms import Preprocessd


def config(bundle: Path, dataset: Path, output: Path, **options) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.update({"bundle_root": str(bundle), "output_dir": str(output), "input": str(dataset / "imagesTs")})
    parser.update({"device": "cpu", "mirror": False, "num_workers": 0, "progress_bar": False, **options})
    return parser


def predict(*arguments, **options) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and class map of the test image."""
    config(*arguments, save_probabilities=True, **options).get_parsed_content("evaluator").run()
    with np.load(arguments[2] / "box_9.npz") as file:
        return file["probabilities"], np.asarray(nib.load(arguments[2] / "box_9.nii.gz").dataobj)


def check_is_argmax(labels: np.ndarray, probabilities: np.ndarray) -> None:
    largest = np.take_along_axis(probabilities, labels[None].astype(int), 0)[0]
    np.testing.assert_array_equal(largest, probabilities.max(0))
    assert len(np.unique(labels)) > 1


def test_networks_of_one_preprocessing_are_averaged_before_they_are_resampled(dataset, tmp_path):
    """Another kernel, another variant and another width, without settings in the config or on the command line."""
    one = make_member("mednext_s_k3", tmp_path / "a", 1)
    others = [make_member("mednext_s_k5", tmp_path / "b", 2), make_member("mednext_b_k3", tmp_path / "c", 3, 2)]
    parser = config(one, dataset, tmp_path / "out", ensemble=list(map(str, others)))
    parser.get_parsed_content("weights_loader")()
    network, inferer = parser.get_parsed_content("network"), parser.get_parsed_content("inferer")
    kernels = [member.enc_block_0[0].conv1.weight.shape[-1] for member in network.members]
    assert kernels == [3, 5, 3] and len(network.members[2].enc_block_1) == 2 and network.groups == [[0, 1, 2]]
    case = Preprocessd()({"image": str(dataset / "imagesTs" / "box_9.nii.gz")})["image"]
    with torch.no_grad():
        mean = sum(inferer(case[None], member.eval())[0] for member in network.members) / 3
    expected = restore_image(mean.numpy(), Geometry.from_dict(case.applied_operations[0]["extra_info"]["geometry"]))
    found, labels = predict(one, dataset, tmp_path / "out", ensemble=list(map(str, others)))
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=2**-11, atol=1e-5)
    check_is_argmax(labels, found)


DIFFERENT = {
    "spacing": {"spacing": [1.5, 1.5, 1.5]},
    "separate axis": {"spacing": [0.9, 1.0, 4.0]},
    "orientation": {"orientation": "PSR"},
    "normalization and window": {"normalization": ["none"], "patch_size": [16, 32, 48]},
    "window": {"patch_size": [16, 16, 16]},
}


@pytest.mark.parametrize("difference", DIFFERENT)
def test_networks_of_different_preprocessing_are_averaged_on_the_grid_of_the_image(dataset, tmp_path, difference):
    one = make_member("mednext_s_k3", tmp_path / "a", 1)
    other = make_member("mednext_s_k3", tmp_path / "b", 2, **DIFFERENT[difference])
    third = make_member("mednext_s_k5", tmp_path / "c", 3)
    each = [predict(bundle, dataset, tmp_path / f"out_{i}")[0] for i, bundle in enumerate((one, other, third))]
    found, labels = predict(one, dataset, tmp_path / "mean", ensemble=f"[{other}, {third}]")
    expected = sum(part.astype(np.float64) for part in each) / 3
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=2**-10, atol=1e-5)
    assert abs(each[0].astype(float) - each[1].astype(float)).max() > 0.01
    check_is_argmax(labels, found)


@pytest.mark.parametrize("spacing", [[1.0, 1.0, 1.0], [1.5, 1.5, 1.5]])
def test_a_predictor_averages_bundles_as_the_command_does(dataset, tmp_path, spacing):
    one = make_member("mednext_s_k3", tmp_path / "a", 1)
    other = make_member("mednext_s_k5", tmp_path / "b #1", 2, spacing=spacing)
    expected, labels = predict(one, dataset, tmp_path / "out", ensemble=literal([str(other)]))
    predictor = Predictor(one, ensemble=[str(other)], mirror=False, device="cpu")
    file = dataset / "imagesTs" / "box_9.nii.gz"
    image, affine = read_image(file)
    for _ in range(2):
        found = predictor(image, affine=affine, probabilities=True)
        np.testing.assert_allclose(found, expected.astype(np.float32), rtol=2**-11, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(predictor(file).dataobj), labels)


def test_the_order_of_the_bundles_does_not_matter(dataset, tmp_path):
    one = make_member("mednext_s_k3", tmp_path / "a", 1)
    other = make_member("mednext_s_k5", tmp_path / "b", 2, spacing=[2.0, 1.0, 1.0])
    first, _ = predict(one, dataset, tmp_path / "1", ensemble=str(other))
    second, _ = predict(other, dataset, tmp_path / "2", ensemble=str(one))
    np.testing.assert_allclose(first.astype(float), second.astype(float), rtol=2**-10, atol=1e-6)


def test_folds_are_those_of_every_bundle(dataset, tmp_path):
    members = [make_member("mednext_s_k3", tmp_path / "a"), make_member("mednext_s_k5", tmp_path / "b")]
    for bundle in members:
        (bundle / "models" / "fold_2").mkdir()
        shutil.copy(bundle / "models" / "model.pt", bundle / "models" / "fold_2" / "model.pt")
    for options, folders in (({"folds": [2, 0]}, ("fold_2/", "")), ({"fold": 2}, ("fold_2/",)), ({}, ("",))):
        parser = config(members[0], dataset, tmp_path, ensemble=str(members[1]), **options)
        expected = [f"{bundle}/models/{folder}model.pt" for bundle in members for folder in folders]
        assert parser.get_parsed_content("members").checkpoints == expected
    (members[1] / "models" / "fold_2" / "model.pt").unlink()
    parser = config(members[0], dataset, tmp_path, ensemble=str(members[1]), folds=[0, 2])
    with pytest.raises(Exception) as error:
        parser.get_parsed_content("members")
    assert f"ensemble: {members[1]}: folds: no weights of fold 2" in str(error.value.__cause__)


def test_the_command_averages_bundles_and_knows_when_they_have_changed(dataset, tmp_path, capfd):
    one = make_member("mednext_s_k3", tmp_path / "a", 1, regions={"whole": [1, 2]})
    other = make_member("mednext_s_k5", tmp_path / "b,c #1", 2, spacing=[1.5, 1.5, 1.5])
    again = tmp_path / "a" / ".." / "a" / one.name
    command = ["predict", str(one), str(dataset / "imagesTs"), str(tmp_path / "out"), "--mirror", "false"]
    command += ["--num_workers", "0", "--device", "cpu", "--ensemble", str(other), str(again)]
    assert main(command) == 0, capfd.readouterr().err
    assert "".join(capfd.readouterr()).count("loaded ") == 2
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["box_9.nii.gz", "regions"]
    labels, mask = (
        np.asarray(nib.load(tmp_path / "out" / folder / "box_9.nii.gz").dataobj) for folder in ("", "regions/whole")
    )
    np.testing.assert_array_equal(mask, labels > 0)

    options = {"ensemble": literal([str(other)])}
    _, expected = predict(one, dataset, tmp_path / "expected", **options)
    _, alone = predict(one, dataset, tmp_path / "alone")
    np.testing.assert_array_equal(labels, expected)
    assert (labels != alone).mean() > 0.01

    def finished() -> set[str]:
        parser = config(one, dataset, tmp_path / "out", **options)
        return parser.get_parsed_content("results").finished(parser.get_parsed_content("dataset::data"))

    assert finished() == {"box_9"}
    new = make_member("mednext_s_k5", tmp_path / "new", 4, spacing=[1.5, 1.5, 1.5])
    shutil.copy(new / "models" / "model.pt", other / "models" / "model.pt")
    assert finished() == set()
    options["ensemble"] = None
    assert finished() == set()
