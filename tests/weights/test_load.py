"""Loading weights: whatever is read is loaded, and what does not match is an error that leaves the network alone."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.checkpoints import LAYOUTS
from ignite.engine import Engine
from monai.networks.nets.mednext import create_mednext as create_monai_mednext
from torch.nn.parallel import DataParallel

from mednext_monai import cli
from mednext_monai.handlers import UpKernInitializer
from mednext_monai.networks import MedNeXt, create_mednext
from mednext_monai.weights import convert, load_weights, read_weights, upkern

TINY = {"base_channels": 4, "block_counts": (1,) * 9}


def tiny(**kwargs) -> MedNeXt:
    return MedNeXt(**{**TINY, **kwargs})


def assert_equal(network: torch.nn.Module, state: dict) -> None:
    assert list(network.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_loaded_as_convert_would_write_it(tmp_path, layout):
    source, network = tiny(), tiny()
    torch.save(LAYOUTS[layout](source.state_dict()), tmp_path / "a.pt")
    assert load_weights(tmp_path / "a.pt", network).startswith("MedNeXt, not a published variant, kernel 3, 3D")
    convert(tmp_path / "a.pt", tmp_path / "model.pt")
    assert_equal(network, torch.load(tmp_path / "model.pt", weights_only=True))
    if "authors" not in layout:
        assert_equal(network, source.state_dict())


def test_axes_of_the_authors_kernels_are_reversed_with_a_warning_and_those_of_converted_ones_are_kept(tmp_path, caplog):
    source, network = tiny(), tiny()
    torch.save({"state_dict": {**source.state_dict(), "dummy_tensor": torch.ones(1)}}, tmp_path / "a.model")
    load_weights(tmp_path / "a.model", network)
    weight = "enc_block_0.0.conv1.weight"
    assert torch.equal(network.state_dict()[weight], source.state_dict()[weight].permute(0, 1, 4, 3, 2))
    assert "a.model is a checkpoint of the authors' code" in caplog.text and "reversed spatial axes" in caplog.text
    caplog.clear()
    convert(tmp_path / "a.model", tmp_path / "kept.pt", reverse_axes=False)
    load_weights(tmp_path / "kept.pt", network)
    assert_equal(network, source.state_dict())
    assert not caplog.records


def test_upkern_from_a_file_begins_with_the_same_order_of_axes(tmp_path):
    source, asymmetric = tiny(), "enc_block_0.0.conv1.weight"
    torch.save({"state_dict": {**source.state_dict(), "dummy_tensor": torch.ones(1)}}, tmp_path / "a.model")
    assert cli.main(["upkern", str(tmp_path / "a.model"), str(tmp_path / "k5.pt")]) == 0
    convert(tmp_path / "a.model", tmp_path / "model.pt")
    expected = tiny(kernel_size=5)
    upkern(read_weights(tmp_path / "model.pt"), expected)
    found = torch.load(tmp_path / "k5.pt", weights_only=True)
    assert torch.equal(found[asymmetric], expected.state_dict()[asymmetric])
    handled = tiny(kernel_size=5)
    UpKernInitializer(str(tmp_path / "a.model"), handled)(Engine(lambda *_: None))
    assert torch.equal(found[asymmetric], handled.state_dict()[asymmetric])


def test_a_wrapped_network_is_loaded(tmp_path):
    source, network = tiny(), tiny()
    torch.save(source.state_dict(), tmp_path / "a.pt")
    load_weights(tmp_path / "a.pt", DataParallel(network))
    assert_equal(network, source.state_dict())


def test_any_other_network_can_be_loaded(tmp_path):
    source, network = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    torch.save({"model": source.state_dict()}, tmp_path / "a.pt")
    assert load_weights(tmp_path / "a.pt", network) == "not a MedNeXt"
    assert_equal(network, source.state_dict())


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"model": t}], ids=["plain", "model"])
def test_monais_names_are_an_error_that_names_the_command_to_use(tmp_path, wrap):
    torch.save(wrap(create_monai_mednext("S", 3, 1, 2).state_dict()), tmp_path / "monai.pt")
    network = create_mednext("S", 3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"monai.pt does not match(?s:.*)`mednext convert`"):
        load_weights(tmp_path / "monai.pt", network)
    assert_equal(network, before)
    convert(tmp_path / "monai.pt", tmp_path / "ours.pt")
    load_weights(tmp_path / "ours.pt", network)


def test_one_tensor_too_many_or_too_few_is_an_error_that_names_it(tmp_path):
    network = tiny()
    state = network.state_dict()
    torch.save({**state, "loss.weight": torch.ones(1)}, tmp_path / "more.pt")
    with pytest.raises(ValueError, match="only in the checkpoint: loss.weight"):
        load_weights(tmp_path / "more.pt", network)
    torch.save({name: tensor for name, tensor in state.items() if name != "stem.bias"}, tmp_path / "less.pt")
    with pytest.raises(ValueError, match="only in the network: stem.bias"):
        load_weights(tmp_path / "less.pt", network)


def test_checkpoint_of_another_variant(tmp_path):
    torch.save(create_mednext("B", 3).state_dict(), tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"(?s)b.pt does not match.*MedNeXt-B, kernel 3.*MedNeXt-S, kernel 5") as error:
        load_weights(tmp_path / "b.pt", create_mednext("S", 5))
    assert "enc_block_0.0.conv1.weight: (32, 1, 3, 3, 3) in the checkpoint, (32, 1, 5, 5, 5) in the network" in str(
        error.value
    )


def test_truncated_checkpoint(tmp_path):
    network = tiny()
    torch.save(network.state_dict(), tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:5000])
    with pytest.raises(ValueError, match="a.pt cannot be read"):
        load_weights(tmp_path / "a.pt", network)


def test_missing_checkpoint_names_its_neighbors(tmp_path):
    message = re.escape(f"{tmp_path / 'model.pt'} does not exist or is not a file; its folder contains ")
    with pytest.raises(FileNotFoundError, match=message + "no checkpoints"):
        load_weights(tmp_path / "model.pt", tiny())
    (tmp_path / "model_best.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=message + r"\['.*model_best.pt'\]"):
        load_weights(tmp_path / "model.pt", tiny())
