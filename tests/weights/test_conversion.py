"""Conversion: originals and MONAI's MedNeXt S to our files and back; what cannot be converted; nothing is executed."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict

import monai.networks.nets as monai_nets
import numpy as np
import pytest
import torch
from monai.networks.nets.mednext import create_mednext as create_monai_mednext

from mednext_monai.networks import MedNeXt, create_mednext
from mednext_monai.weights import convert, read_state_dict, reverse_spatial_axes

TINY = {"base_channels": 4, "expansion_ratio": 2, "block_counts": (1,) * 9}


def write_original(path, network, prefix="", trainer=None):
    """Write what nnU-Net v1 does: the state dict among training state with numpy scalars, a pickle beside it."""
    state = OrderedDict((prefix + name, tensor) for name, tensor in network.state_dict().items())
    state[prefix + "dummy_tensor"] = torch.ones(1)
    history = [[np.float32(0.5), np.float64(0.25)], [], [], []]
    torch.save(
        {
            "epoch": 1000,
            "state_dict": state,
            "optimizer_state_dict": None,
            "lr_scheduler_state_dict": None,
            "plot_stuff": history,
            "best_stuff": (np.float64(0.9), None, None),
        },
        path,
    )
    if trainer is not None:
        path.with_name(path.name + ".pkl").write_bytes(pickle.dumps({"name": trainer, "plans": {"num_classes": 1}}))
    return path


def random_network(**kwargs) -> MedNeXt:
    torch.manual_seed(0)
    return MedNeXt(**{**TINY, **kwargs}).eval()


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_converted_original_computes_the_same_from_reversed_axes(tmp_path, prefix, deep_supervision):
    original = random_network(deep_supervision=deep_supervision)
    source = write_original(tmp_path / "model_final_checkpoint.model", original, prefix)
    convert(source, tmp_path / "model.pt")
    converted = random_network(deep_supervision=deep_supervision)
    converted.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    x = torch.randn(1, 1, 16, 32, 48)
    with torch.no_grad():
        expected = original(x.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
        torch.testing.assert_close(converted(x), expected, rtol=1e-4, atol=1e-5)
        assert (original(x) - expected).abs().max() > 1e-3  # reversing is not for nothing


def test_axes_can_be_kept_and_reversing_twice_changes_nothing(tmp_path):
    network = random_network()
    source = write_original(tmp_path / "a.model", network)
    convert(source, tmp_path / "kept.pt", reverse_axes=False)
    state = network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in read_state_dict(tmp_path / "kept.pt").items())
    twice = reverse_spatial_axes(reverse_spatial_axes(state))
    assert all(torch.equal(state[name], tensor) for name, tensor in twice.items())


def test_variant_kernel_and_trainer_are_said(tmp_path):
    network = create_mednext("B", 5, out_channels=4, deep_supervision=True)
    source = write_original(tmp_path / "b.model", network, trainer="nnUNetTrainerV2_MedNeXt_B_kernel5_lr_1e_4")
    text = str(convert(source, tmp_path / "model.pt"))
    assert "MedNeXt-B, kernel 5, 3D, 1 input channel, 4 classes, with deep supervision heads" in text
    assert "nnUNetTrainerV2_MedNeXt_B_kernel5" in text and "not unpickled" in text


def test_trainer_that_disagrees_with_the_tensors_is_a_warning(tmp_path):
    source = write_original(tmp_path / "s.model", create_mednext("S"), trainer="nnUNetTrainerV2_MedNeXt_L_kernel5")
    with pytest.warns(UserWarning, match="MedNeXt_L_kernel5, but the tensors are of MedNeXt-S, kernel 3"):
        convert(source, tmp_path / "model.pt")


def test_hostile_pickle_beside_the_weights_does_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trap"),)

    source = write_original(tmp_path / "s.model", random_network())
    (tmp_path / "s.model.pkl").write_bytes(pickle.dumps(Hostile()))
    convert(source, tmp_path / "model.pt")
    assert not (tmp_path / "trap").exists() and (tmp_path / "model.pt").is_file()


def test_hostile_checkpoint_does_not_run_and_leaves_the_old_output(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trap"),)

    torch.save({"state_dict": random_network().state_dict(), "plot_stuff": Hostile()}, tmp_path / "bad.model")
    (tmp_path / "model.pt").write_bytes(b"old")
    with pytest.raises(ValueError, match="bad.model.*could run code"):
        convert(tmp_path / "bad.model", tmp_path / "model.pt")
    assert not (tmp_path / "trap").exists() and (tmp_path / "model.pt").read_bytes() == b"old"


def monai_small(kernel_size: int) -> torch.nn.Module:
    torch.manual_seed(1)
    return create_monai_mednext("S", 3, 1, 3, kernel_size=kernel_size, deep_supervision=True)


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_monai_s_round_trip_and_same_outputs(tmp_path, kernel_size):
    theirs = monai_small(kernel_size).eval()
    torch.save(theirs.state_dict(), tmp_path / "monai.pt")
    text = str(convert(tmp_path / "monai.pt", tmp_path / "ours.pt"))
    assert f"MedNeXt-S, kernel {kernel_size}" in text and "kept" in text
    ours = create_mednext("S", kernel_size, out_channels=3, deep_supervision=True).eval()
    ours.load_state_dict(read_state_dict(tmp_path / "ours.pt"), strict=True)
    x = torch.randn(1, 1, 16, 16, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    convert(tmp_path / "ours.pt", tmp_path / "back.pt", to="monai")
    back, state = torch.load(tmp_path / "back.pt", weights_only=True), theirs.state_dict()
    assert set(back) == set(state) and all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("variant", ["B", "M", "L"])
def test_monai_b_m_and_l_are_refused_with_the_reason(tmp_path, variant):
    with torch.device("meta"):
        shapes = create_monai_mednext(variant, 3, 1, 2).state_dict()
    torch.save(
        {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in shapes.items()}, tmp_path / "m.pt"
    )
    with pytest.raises(ValueError, match="m.pt: MONAI's MedNeXt is the published network for S only"):
        convert(tmp_path / "m.pt", tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


def test_ours_b_cannot_become_monais(tmp_path):
    torch.save(create_mednext("B").state_dict(), tmp_path / "b.pt")
    with pytest.raises(ValueError, match="for S only"):
        convert(tmp_path / "b.pt", tmp_path / "out.pt", to="monai")


def test_another_network_and_a_bad_target_are_errors(tmp_path):
    torch.save(monai_nets.BasicUNet(features=(4,) * 6).state_dict(), tmp_path / "unet.pt")
    with pytest.raises(ValueError, match="unet.pt: these are not the tensors of a MedNeXt"):
        convert(tmp_path / "unet.pt", tmp_path / "model.pt")
    torch.save(random_network().state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="to must be one of"):
        convert(tmp_path / "a.pt", tmp_path / "model.pt", to="nnunet")
    with pytest.raises(ValueError, match="must differ from the source"):
        convert(tmp_path / "a.pt", tmp_path / "a.pt")
