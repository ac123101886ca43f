"""A bundle becomes a model folder of nnU-Net v2, and what comes back is what went out."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.nnunet import NnunetFolders, make_plans, needs_nnunet, write_nnunet_checkpoint

from mednext_monai import bundles, cli
from mednext_monai.networks import create_mednext
from mednext_monai.nnunet.model_folder import export
from mednext_monai.weights import convert, read_settings, read_weights, write_checkpoint
from mednext_monai.weights.settings import attach_settings

SETTINGS = {
    "in_channels": 2,
    "out_channels": 3,
    "spacing": [1.5, 1.0, 2.0],
    "orientation": None,
    "patch_size": [48, 32, 16],
    "normalization": ["masked_zscore_v2", "CT_v2"],
    "intensity": {1: {"mean": 3.0, "sd": 1.5, "p005": -0.5, "p995": 7.5}},
    "regions": None,
    "ignore_label": None,
    "channel_names": ["MRI", "CT"],
    "labels": ["background", "outer", "inner"],
    "fold": 1,
    "training_cases": "2 cases, 01234567",
    "training_ids": ["0123456789ab", "ba9876543210"],
}


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return create_mednext("S", 3, in_channels=2, out_channels=3, deep_supervision=True).eval()


def write(path, network, **changes):
    write_checkpoint(attach_settings(network.state_dict(), SETTINGS | changes), path)
    return path


def test_conversion_to_nnunet_and_back_changes_nothing(tmp_path, network):
    source = write(tmp_path / "model.pt", network)
    written = export(source, tmp_path / "model")
    assert written.checkpoint == tmp_path / "model/fold_1/checkpoint_final.pth" and len(written.notes) == 1
    assert written.trainer == "nnUNetTrainerMedNeXt_S_kernel3"
    convert(written.checkpoint, tmp_path / "back.pt")
    one, other = read_weights(source), read_weights(tmp_path / "back.pt")
    assert list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
    back = read_settings(tmp_path / "back.pt")
    assert {key: back[key] for key in SETTINGS} == SETTINGS
    weight = "enc_block_0.0.conv1.weight"
    stored = torch.load(written.checkpoint, weights_only=True)
    assert torch.equal(stored["network_weights"][weight], one[weight].permute(0, 1, 4, 3, 2))
    plans = json.loads((tmp_path / "model/plans.json").read_text())
    assert plans == stored["init_args"]["plans"]
    assert plans["configurations"]["3d_fullres"]["spacing"] == [2.0, 1.0, 1.5]


def test_schemes_after_resampling_become_those_of_nnunet_with_a_note(tmp_path, network):
    source = write(tmp_path / "model.pt", network, normalization=["masked_zscore", "none"], intensity={})
    assert "after it: the results may differ slightly" in str(export(source, tmp_path / "model"))
    configuration = json.loads((tmp_path / "model/plans.json").read_text())["configurations"]["3d_fullres"]
    assert configuration["normalization_schemes"] == ["ZScoreNormalization", "NoNormalization"]
    assert configuration["use_mask_for_norm"] == [True, False]


def test_the_command_writes_the_folder(tmp_path, network, capsys):
    bundle = bundles.copy("mednext_s_k3", tmp_path)
    (bundle / "models/model.pt").unlink()  # released weights
    write(bundle / "models/fold_1/model.pt", network)
    assert cli.main(["nnunet", "export", str(bundle), str(tmp_path / "model")]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"wrote {tmp_path}/model/fold_1/checkpoint_final.pth, for the trainer nnUNetTrainerMedNeXt_S")
    assert cli.main(["nnunet", "export", str(bundle), str(tmp_path / "model")]) == 1
    assert "--overwrite true replaces it" in capsys.readouterr().err


def test_folds_share_a_folder_and_another_model_is_not_mixed_in(tmp_path, network):
    first, second = write(tmp_path / "a.pt", network), write(tmp_path / "b.pt", network, fold=2)
    other = write(tmp_path / "c.pt", network, spacing=[1.0, 1.0, 1.0])
    export(first, tmp_path / "model")
    export(second, tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"plans.json", "dataset.json", "fold_1", "fold_2"}
    with pytest.raises(ValueError, match=r"plans\.json is that of another model"):
        export(other, tmp_path / "model")
    with pytest.raises(ValueError, match=r"checkpoint_final\.pth exists; --overwrite true replaces it"):
        export(first, tmp_path / "model")
    export(first, tmp_path / "model", overwrite=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"normalization": ["masked_CT", "CT_v2"], "intensity": [SETTINGS["intensity"][1]] * 2},
            "no normalization masked",
        ),
        ({"spacing": [1.0, 1.0, None]}, r"resamples all axes, and the spacing is \[1.0, 1.0, None\]"),
        ({"orientation": "LPS"}, "orients images to RAS or not at all, not to LPS"),
        ({"labels": ["background"]}, r"the names of the 3 classes are \['background'\]"),
    ],
)
def test_what_nnunet_cannot_do_is_refused(tmp_path, network, changes, message):
    with pytest.raises(ValueError, match=rf"model\.pt: .*{message}"):
        export(write(tmp_path / "model.pt", network, **changes), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_weights_without_settings_heads_or_trainer_are_refused(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt does not carry the settings"):
        export(tmp_path / "a.pt", tmp_path / "model")
    without = create_mednext("S", 3, in_channels=2, out_channels=3)
    with pytest.raises(ValueError, match="no deep supervision heads"):
        export(write(tmp_path / "b.pt", without), tmp_path / "model")
    narrow = create_mednext("S", 3, in_channels=2, out_channels=3, deep_supervision=True, base_channels=4)
    with pytest.raises(ValueError, match="there is no trainer of it"):
        export(write(tmp_path / "c.pt", narrow), tmp_path / "model")


@needs_nnunet
@pytest.mark.slow
def test_nnunet_segments_with_an_exported_bundle_as_the_bundle_does(tmp_path, network):
    """
    In one window, without mirror images and resampling.

    nnU-Net averages and interpolates the outputs, bundles the probabilities; nnU-Net rounds them to half precision.
    """
    folders = NnunetFolders(tmp_path)
    bundle = bundles.copy("mednext_s_k3", tmp_path / "bundles")
    settings = {"spacing": [1.3, 0.9, 1.1], "patch_size": [48] * 3, "fold": 0}
    settings["intensity"] = {1: {"mean": 16.0, "sd": 78.0, "p005": -98.0, "p995": 286.0}}
    write(bundle / "models/model.pt", network, **settings)
    folders.run("mednext", "nnunet", "export", bundle, tmp_path / "model")
    arguments = ["-i", folders.images, "-o", tmp_path / "theirs", "-m", tmp_path / "model", "-f", "0", "--disable_tta"]
    folders.run("nnUNetv2_predict_from_modelfolder", *arguments, "-device", "cpu", "-npp", 1, "-nps", 1)
    folders.run(
        "mednext", "predict", bundle, folders.images, tmp_path / "ours", "--mirror", "false", "--num_workers", 0
    )
    theirs, ours = (np.asarray(nib.load(tmp_path / f"{name}/case_5.nii.gz").dataobj) for name in ("theirs", "ours"))
    assert ours.shape == theirs.shape and len(np.unique(ours)) > 1
    assert np.mean(ours != theirs) < 1e-3 and set(np.unique(theirs)) == {0, 1, 2}


def test_a_checkpoint_of_nnunet_itself_is_exported_too(tmp_path, network):
    source = write_nnunet_checkpoint(tmp_path / "a.pth", network, make_plans((2, 0, 1)), optimizer_state={})
    export(source, tmp_path / "model")
    one, other = read_weights(source), read_weights(tmp_path / "model/fold_2/checkpoint_final.pth")
    assert all(torch.equal(one[name], other[name]) for name in one)
