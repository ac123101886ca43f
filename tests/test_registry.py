"""Promises of the short names: they resolve in bundle configs, build the published networks and shadow nothing."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys

import monai.networks.nets
import pytest
import torch
from monai.bundle import ConfigParser

import mednext_monai
from mednext_monai import networks, registry

CHANNELS = {"spatial_dims": 2, "in_channels": 3, "out_channels": 4}


def parse(target: str, **arguments):
    return ConfigParser({"network": {"_target_": target, **arguments}}).get_parsed_content("network")


@pytest.mark.parametrize("variant", networks.VARIANTS)
def test_short_name_of_a_variant_builds_the_published_network(variant):
    with torch.device("meta"):
        short = parse(f"MedNeXtV1{variant}", kernel_size=5, deep_supervision=True, **CHANNELS)
        expected = networks.create_mednext(variant, kernel_size=5, deep_supervision=True, **CHANNELS)
    assert type(short) is networks.MedNeXt
    shapes = [{name: tensor.shape for name, tensor in net.state_dict().items()} for net in (short, expected)]
    assert shapes[0] == shapes[1]


def test_short_name_of_the_network_takes_its_arguments():
    with torch.device("meta"):
        network = parse("MedNeXtV1", base_channels=8, **CHANNELS)
    assert type(network) is networks.MedNeXt
    assert network.stem.weight.shape == (8, 3, 1, 1)


def test_monais_own_names_stay_monais():
    with torch.device("meta"):
        network = parse("MedNeXt", spatial_dims=2, init_filters=8)
    assert type(network) is monai.networks.nets.MedNeXt
    ours = {name for name, _ in inspect.getmembers(sys.modules[registry.MODULE])}  # what MONAI looks through
    assert ours == {"MedNeXtV1", *(f"MedNeXtV1{variant}" for variant in networks.VARIANTS)}
    assert not ours & set(dir(monai.networks.nets))


def test_a_config_that_imports_the_package_needs_nothing_else():
    code = (
        "from monai.bundle import ConfigParser\n"
        "parser = ConfigParser({'imports': ['$import mednext_monai'],"
        " 'net': {'_target_': 'MedNeXtV1S', 'spatial_dims': 2}})\n"
        "print(type(parser.get_parsed_content('net')).__module__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "mednext_monai.networks.mednext"


def test_registering_twice_changes_nothing():
    before = sys.modules[registry.MODULE]
    mednext_monai.registry.register()
    assert sys.modules[registry.MODULE] is before
    assert importlib.util.find_spec(registry.MODULE) is not None


def test_a_new_variant_has_a_short_name_at_once(monkeypatch):
    monkeypatch.setitem(networks.VARIANTS, "X", networks.VARIANTS["S"]._replace(use_grn=True, base_channels=4))
    module = sys.modules[registry.MODULE]
    try:
        with torch.device("meta"):
            network = parse("MedNeXtV1X", **CHANNELS)
    finally:
        vars(module).pop("MedNeXtV1X", None)
    assert network.stem.out_channels == 4
    assert network.bottleneck[0].use_grn


def test_other_attributes_are_missing_and_import_nothing():
    code = (
        "import sys, mednext_monai; module = sys.modules['monai_mednext_v1']\n"
        "print([hasattr(module, n) for n in ('__file__', '__path__', 'load')], 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[False, False, False] False"
    with pytest.raises(AttributeError, match="'monai_mednext_v1' has no attribute 'MedNeXtV1XL'"):
        _ = sys.modules[registry.MODULE].MedNeXtV1XL
