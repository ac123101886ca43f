"""Checkpoints of nnU-Net v2, without nnU-Net: axes and settings are those of its plans, and nothing is executed."""

from __future__ import annotations

import itertools
import os

import pytest
import torch
from helpers.nnunet import DATASET_JSON, make_plans, write_nnunet_checkpoint

from mednext_monai.networks import MedNeXt, create_mednext
from mednext_monai.weights import convert, load_weights, read_settings, read_weights, task_settings
from mednext_monai.weights.nnunet import from_file_axes, resolve_configuration, to_file_axes
from mednext_monai.weights.settings import TASK

UNSTATED = dict.fromkeys(TASK)


def tiny(**kwargs) -> MedNeXt:
    torch.manual_seed(0)
    options = {"base_channels": 4, "block_counts": (1,) * 9, "in_channels": 2, "out_channels": 3}
    return MedNeXt(**{**options, "deep_supervision": True, **kwargs}).eval()


@pytest.mark.parametrize("backward", itertools.permutations(range(3)))
def test_a_converted_network_sees_x_y_z_as_the_trained_one_saw_nnunets_transposed_arrays(tmp_path, backward):
    plans, trained = make_plans(backward), tiny()
    source = write_nnunet_checkpoint(tmp_path / "fold_2" / "checkpoint_final.pth", trained, plans)
    convert(source, tmp_path / "model.pt")
    converted = tiny()
    load_weights(tmp_path / "model.pt", converted)
    file = torch.randn(2, 16, 48, 32)  # (C, x, y, z)
    with torch.no_grad():
        array = file.permute(0, 3, 2, 1)  # as nnU-Net reads it
        transposed = array.permute(0, *(1 + axis for axis in plans["transpose_forward"]))
        expected = trained(transposed[None])[0].permute(0, *(1 + axis for axis in backward)).permute(0, 3, 2, 1)
        torch.testing.assert_close(converted(file[None])[0], expected, rtol=1e-4, atol=1e-5)
    settings = read_settings(tmp_path / "model.pt")
    spacing, patch = [2.0, 1.0, 1.5], [16, 32, 48]
    assert settings["spacing"] == [spacing[backward[2]], spacing[backward[1]], spacing[backward[0]]]
    assert settings["patch_size"] == [patch[backward[2]], patch[backward[1]], patch[backward[0]]]
    state = trained.state_dict()
    back = from_file_axes(to_file_axes(state, plans), plans)
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.items())


def test_weights_carry_the_settings_of_the_plans(tmp_path):
    source = write_nnunet_checkpoint(tmp_path / "checkpoint_final.pth", tiny())
    text = str(convert(source, tmp_path / "model.pt"))
    assert "plans nnUNetPlansMedNeXt, configuration 3d_fullres" in text and "masked_zscore_v2" in text
    settings = task_settings(UNSTATED, tmp_path / "model.pt")
    assert settings == {
        "in_channels": 2,
        "out_channels": 3,
        "spatial_dims": 3,
        "slice_axis": None,
        "spacing": [1.5, 1.0, 2.0],
        "orientation": None,
        "patch_size": [48, 32, 16],
        "normalization": ["masked_zscore_v2", "CT_v2"],
        "intensity": {1: {"mean": 3.0, "sd": 1.5, "p005": -0.5, "p995": 7.5}},
        "regions": None,
        "ignore_label": None,
    }
    trained = read_settings(tmp_path / "model.pt")
    assert (trained["labels"], trained["channel_names"], trained["fold"]) == (
        ["background", "outer", "inner"],
        ["MRI", "CT"],
        2,
    )


def test_a_bundle_takes_the_checkpoint_itself_as_the_converted_one(tmp_path):
    source = write_nnunet_checkpoint(tmp_path / "checkpoint_final.pth", tiny(), make_plans((1, 2, 0)))
    convert(source, tmp_path / "model.pt")
    one, other = tiny(), tiny()
    load_weights(source, one)
    load_weights(tmp_path / "model.pt", other)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))
    assert task_settings(UNSTATED, source) == task_settings(UNSTATED, tmp_path / "model.pt")


def test_a_stated_order_of_axes_converts_the_weights_alone(tmp_path):
    network = tiny()
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    source = write_nnunet_checkpoint(tmp_path / "a.pth", network, dataset={**DATASET_JSON, "labels": labels})
    with pytest.raises(ValueError, match=r"a.pth: it was trained on regions \(whole\)"):
        convert(source, tmp_path / "model.pt")
    convert(source, tmp_path / "model.pt", reverse_axes=False)
    assert read_settings(tmp_path / "model.pt") is None
    state = network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in read_weights(tmp_path / "model.pt").items())


def test_ignore_label_reorienting_reader_and_plain_names(tmp_path):
    labels = {"background": 0, "one": [1], "two": 2, "ignore": 3}
    dataset = {"modality": {"0": "T1", "1": "T2"}, "labels": labels}
    schemes = {"normalization_schemes": ["ZScoreNormalization", "NoNormalization"], "use_mask_for_norm": [False, False]}
    plans = {**make_plans(**schemes), "image_reader_writer": "NibabelIOWithReorient"}
    settings = read_settings(write_nnunet_checkpoint(tmp_path / "a.pth", tiny(), plans, dataset))
    assert (settings["ignore_label"], settings["orientation"], settings["normalization"]) == (
        3,
        "RAS",
        ["zscore_v2", "none"],
    )
    assert settings["labels"] == ["background", "one", "two"] and settings["intensity"] == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalization_schemes": ["RescaleTo01Normalization"] * 2}, "normalization RescaleTo01Normalization is none"),
        ({"previous_stage": "3d_lowres"}, "previous_stage is '3d_lowres'"),
        ({"patch_size": [32, 32], "spacing": [1, 1]}, "number of axes of patch_size is 2"),
        ({"resampling_fn_data": "resample_torch_fornnunet"}, "resampling_fn_data is 'resample_torch_fornnunet'"),
        ({"resampling_fn_data_kwargs": {"order": 1}}, "order of resampling_fn_data_kwargs is 1"),
        ({"preprocessor_name": "NoResampling"}, "preprocessor_name is 'NoResampling'"),
        ({"spacing": [1.0]}, "number of axes of spacing is 1"),
        ({"use_mask_for_norm": [True]}, "use_mask_for_norm must have an item for each of the 2 channels"),
    ],
)
def test_what_a_bundle_cannot_do_is_refused_by_name(tmp_path, changes, message):
    source = write_nnunet_checkpoint(tmp_path / "a.pth", tiny(), make_plans(**changes))
    with pytest.raises(ValueError, match=rf"a\.pth: .*{message}"):
        convert(source, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=rf"a\.pth: .*{message}"):
        read_settings(source)
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"init_args": {}}, "init_args have no plans"),
        ({"init_args": None}, "init_args have no plans"),
        ({"init_args": {"plans": {}}}, "lacks 'configuration'"),
        ({"init_args": {"plans": make_plans(), "configuration": "2d"}}, r"'2d' of the plans .* is none of"),
        ({"init_args": {"plans": make_plans(), "configuration": "3d_fullres"}}, "lacks 'dataset_json'"),
        ({"init_args": {"plans": make_plans((0, 0, 1)), "configuration": "3d_fullres"}}, "dataset_json|transpose"),
    ],
)
def test_an_incomplete_checkpoint_is_named(tmp_path, entries, message):
    source = write_nnunet_checkpoint(tmp_path / "a.pth", tiny(), **entries)
    with pytest.raises(ValueError, match=rf"a\.pth: .*({message})"):
        convert(source, tmp_path / "model.pt")


def test_configurations_inherit_as_in_nnunet():
    plans = make_plans()
    plans["configurations"] |= {"a": {"inherits_from": "3d_fullres", "batch_size": 4}, "b": {"inherits_from": "a"}}
    found = resolve_configuration(plans, "b")
    assert found["batch_size"] == 4 and found["patch_size"] == [16, 32, 48]
    plans["configurations"] |= {"c": {"inherits_from": "d"}, "d": {"inherits_from": "c"}}
    with pytest.raises(ValueError, match="'c' of the plans 'nnUNetPlansMedNeXt' inherits from itself"):
        resolve_configuration(plans, "c")


def test_fewer_mirror_axes_are_said(tmp_path):
    source = write_nnunet_checkpoint(tmp_path / "a.pth", tiny(), inference_allowed_mirroring_axes=(1, 2))
    assert "predict with `--mirror false`" in str(convert(source, tmp_path / "model.pt"))


def test_hostile_checkpoint_does_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trap"),)

    source = write_nnunet_checkpoint(tmp_path / "bad.pth", tiny(), logging=Hostile())
    with pytest.raises(ValueError, match=r"bad\.pth.*could run code"):
        convert(source, tmp_path / "model.pt")
    assert not (tmp_path / "trap").exists()


def test_variant_of_a_published_trainer(tmp_path):
    network = create_mednext("S", in_channels=2, out_channels=3, deep_supervision=True)
    settings = read_settings(write_nnunet_checkpoint(tmp_path / "a.pth", network, optimizer_state={}))
    assert (settings["variant"], settings["kernel_size"]) == ("S", 3)
