"""What a user types reaches the bundles' objects as it is meant, in options and in overlays."""

from __future__ import annotations

import re

import pytest
import torch
from monai.bundle import ConfigParser

from mednext_monai import bundles
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
