"""What a user types reaches the bundles' objects as it is meant, in options and in overlays."""

from __future__ import annotations

import re

import pytest
import torch
from monai.bundle import ConfigParser

from mednext_monai import bundles
from mednext_monai.bundles.options import check_option
from mednext_monai.networks import create_mednext


def config(name: str, **options) -> ConfigParser:
    """The built config of a bundle with options as python-fire leaves them."""
    parser = ConfigParser()
    parser.read_config(str(bundles.path("mednext_s_k3") / "configs" / f"{name}.json"))
    parser.update(options)
    return parser


@pytest.mark.parametrize(
    ("typed", "meant"), [("false", False), ("no", False), (0, False), ("true", True), (True, True)]
)
def test_on_off_options_of_inference(typed, meant):
    parser = config("inference", mirror=typed, progress_bar=typed)
    assert parser.get_parsed_content("inferer").mirror is meant
    assert parser.get_parsed_content("show_progress") is meant


@pytest.mark.parametrize(("typed", "meant"), [("false", False), ("True", True)])
def test_on_off_options_of_training(typed, meant):
    parser = config("train", batch_dice=typed, resume=typed, amp=typed, gradient_checkpointing=typed)
    assert parser.get_parsed_content("loss").loss.dice.batch is meant
    assert parser.get_parsed_content("is_resumed") is meant and parser.get_parsed_content("use_amp") is meant
    assert parser.get_parsed_content("network_def").enc_block_0[0].use_checkpoint is meant


@pytest.mark.parametrize(
    ("typed", "meant"),
    [(None, False), ("null", False), ("block", True), ("off", False), (False, False), ("Expansion", "expansion")]
    + [({"S_k3": "expansion", "S_k5": True}, "expansion"), ({"S_k5": True}, False)],  # of a plan
)
@pytest.mark.parametrize("name", ["train", "inference"])
def test_gradient_checkpointing_is_what_is_typed_or_as_published(name, typed, meant):
    network = config(name, gradient_checkpointing=typed).get_parsed_content("network_def")
    assert network.enc_block_0[0].use_checkpoint == meant
    check_option("gradient_checkpointing", typed)


@pytest.mark.parametrize("value", ["expand", 2, {"S_k7": True}, {"S": True}, {"S_k3": "on"}, ["block"]])
def test_what_gradient_checkpointing_may_be_is_said(value):
    allowed = "true, false, 'block' or 'expansion', or a dictionary of them by variant, or null"
    with pytest.raises(ValueError, match=f"gradient_checkpointing must be {allowed}, got "):
        check_option("gradient_checkpointing", value)


@pytest.mark.parametrize(
    ("typed", "meant"), [("false", False), (0, False), ("true", True), (True, True), ("Yes", True)]
)
@pytest.mark.parametrize("name", ["train", "inference"])
def test_the_network_of_a_run_is_compiled_if_that_is_typed_and_its_checkpoints_are_the_same(name, typed, meant):
    parser = config(name, compile=typed)
    parser.update({"compiler::backend": "eager"})
    network, inner = parser.get_parsed_content("network"), parser.get_parsed_content("network_def")
    assert network is inner and (network._compiled_call_impl is not None) is meant
    assert not any(key.startswith("_orig_mod") for key in network.state_dict())


def test_mirroring_of_an_evaluation_is_switched_by_its_path():
    parser = config("train")
    parser.update({"validate::inferer::mirror": "false"})
    assert parser.get_parsed_content("validate::inferer").mirror is False


def test_short_forms():
    parser = config("inference", patch_size=64, device="cpu")
    assert parser.get_parsed_content("inferer").roi_size == [64, 64, 64]
    assert parser.get_parsed_content("torch_device") == torch.device("cpu")
    assert parser.get_parsed_content("amp_here") is False


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2024", "2024.10", "2024_10", "None_1,2"])
def test_folders_that_python_fire_reads_as_numbers_are_used(run_bundle, dataset, tmp_path, name):
    (dataset / "imagesTs").rename(tmp_path / name)
    network = create_mednext("S", 3, out_channels=3, deep_supervision=True, base_channels=4)
    torch.save(network.state_dict(), run_bundle.bundle / "models" / "model.pt")
    (run_bundle.bundle / "models").rename(tmp_path / f"{name}9")
    options = ("--input", name, "--ckpt_dir", f"{name}9", "--output_dir", f"{name}8", "--mirror", "false")
    run_bundle("inferring", "inference", options=options)
    assert [file.name for file in (tmp_path / f"{name}8").iterdir()] == ["box_9.nii.gz"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("mirror", "off", "mirror must be true or false, got 'off'"),
        ("patch_size", 100, "patch_size must be one or three positive multiples of 16, got 100"),
        ("patch_size", [64, 64], "patch_size must be one or three positive multiples of 16, got \\[64, 64\\]"),
        ("device", "gpu", "gpu"),
    ],
)
def test_what_is_no_value_of_an_option_ends_the_checks_at_their_first_item(option, value, message):
    parser = config("inference", **{option: value}, dataset_dir="nowhere")
    with pytest.raises(Exception) as error:  # MONAI wraps what a component raises
        parser.get_parsed_content("checks::0")
    chain, texts = error.value, []
    while chain is not None:
        texts.append(str(chain))
        chain = chain.__cause__ or chain.__context__
    assert any(re.search(message, text) for text in texts), texts
