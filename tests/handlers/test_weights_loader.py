"""The loader of a bundle's inference: every layout, once, whether a check or the start of the run calls it."""

from __future__ import annotations

import pytest
import torch
from helpers.checkpoints import LAYOUTS
from ignite.engine import Engine
from monai.bundle import ConfigParser

from mednext_monai import bundles
from mednext_monai.handlers import SharedCheckpointLoader, WeightsLoader
from mednext_monai.networks import Ensemble, create_mednext
from mednext_monai.weights import read_state_dict, reverse_spatial_axes

NARROW = {"deep_supervision": True, "base_channels": 2}


def loader_of(config: str, checkpoint) -> WeightsLoader:
    """Build the loader of a bundle's config with a narrow network."""
    parser = ConfigParser()
    folder = bundles.path("mednext_s_k3") / "configs"
    parser.read_config([folder / f"{name}.json" for name in (["train"] if config == "evaluate" else []) + [config]])
    parser["network_def"]["base_channels"] = NARROW["base_channels"]
    parser["checkpoint"] = str(checkpoint)
    loader = parser.get_parsed_content("weights_loader")
    handlers = parser["handlers"] if config == "inference" else parser["validate"]["handlers"]
    first = "$@weights_loader.check()" if config == "inference" else "$@weights_loader()"
    shared = {"_target_": "mednext_monai.handlers.SharedCheckpointLoader", "loader": "@weights_loader"}
    assert handlers[0] == ("@weights_loader" if config == "inference" else shared) and parser["checks"][1] == first
    assert loader.network is parser.get_parsed_content("network_def")
    return loader


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_loader_of_the_inference_loads_every_layout(tmp_path, layout):
    source = create_mednext("S", 3, **NARROW)
    torch.save(LAYOUTS[layout](source.state_dict()), tmp_path / "model.pt")
    loader = loader_of("inference", tmp_path / "model.pt")
    loader()
    expected = source.state_dict()
    expected = reverse_spatial_axes(expected) if "authors" in layout else expected
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loader.network.state_dict().items())


@pytest.mark.parametrize("config", ["inference", "evaluate"])
@pytest.mark.parametrize("checked", [True, False])
def test_it_loads_once_in_the_check_or_at_the_start(tmp_path, config, checked, caplog):
    caplog.set_level("INFO")
    source = create_mednext("S", 3, **NARROW)
    torch.save(source.state_dict(), tmp_path / "model.pt")
    loader = loader_of(config, tmp_path / "model.pt")
    engine = Engine(lambda e, b: None)
    (loader if config == "inference" else SharedCheckpointLoader(loader)).attach(engine)
    if checked:
        loader()
        (tmp_path / "model.pt").unlink()  # is not read again
    engine.run([0])
    engine.run([0], max_epochs=2)
    assert torch.equal(loader.network.stem.weight, source.stem.weight)
    assert caplog.text.count(f"loaded {tmp_path / 'model.pt'}: MedNeXt") == 1


def test_a_checkpoint_that_does_not_match_is_not_loaded_at_the_next_call_either(tmp_path):
    network = create_mednext("S", 3, base_channels=2)
    torch.save(create_mednext("S", 5, base_channels=2).state_dict(), tmp_path / "model.pt")
    loader = WeightsLoader(tmp_path / "model.pt", network)
    for _ in range(2):
        with pytest.raises(ValueError, match="model.pt does not match the network"):
            loader()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    loader()
    assert read_state_dict(tmp_path / "model.pt").keys() == network.state_dict().keys()


def test_the_check_loads_nothing_and_reports_what_cannot_be_read(tmp_path):
    network = create_mednext("S", 3, base_channels=2)
    before = network.stem.weight.clone()
    torch.save(create_mednext("S", 3, base_channels=2).state_dict(), tmp_path / "model.pt")
    WeightsLoader(tmp_path / "model.pt", network).check()
    assert torch.equal(network.stem.weight, before)
    (tmp_path / "cut.pt").write_bytes(b"cut")
    for name, error in (("cut.pt", ValueError), ("none.pt", FileNotFoundError)):
        with pytest.raises(error, match=name):
            WeightsLoader([tmp_path / "model.pt", tmp_path / name], Ensemble([network, network])).check()


def test_a_path_that_is_none_is_refused_when_the_handler_is_made():
    with pytest.raises(ValueError, match="load_path must be the path of a checkpoint, or a list of them, got None"):
        WeightsLoader(None, torch.nn.Linear(1, 1))
