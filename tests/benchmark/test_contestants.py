"""Promises of the contestants: the same weights, and each network is the one that its name says."""

from __future__ import annotations

import sys

import torch
from monai.networks.nets import MedNeXtS

from mednext_monai.benchmark.__main__ import main
from mednext_monai.benchmark.contestants import build
from mednext_monai.benchmark.options import parse
from mednext_monai.networks import MedNeXt

UPSTREAM = """
from mednext_monai import upstream
def create_mednext_v1(num_input_channels, num_classes, model_id, kernel_size=3, deep_supervision=False):
    network = upstream.create_mednext_v1(num_input_channels, num_classes, model_id, kernel_size, deep_supervision)
    network.register_parameter("dummy_tensor", __import__("torch").nn.Parameter(__import__("torch").ones(1)))
    return network
"""


def test_the_original_is_found_in_its_checkout(tmp_path, monkeypatch):
    folder = tmp_path / "nnunet_mednext" / "network_architecture" / "mednextv1"
    folder.mkdir(parents=True)
    (folder / "create_mednext_v1.py").write_text(UPSTREAM)
    monkeypatch.setattr(sys, "path", list(sys.path))
    options = parse(["--upstream", str(tmp_path)])
    for variant, training in (("S_k3", True), ("B_k5", False)):
        ours, original = build(options, variant, ["ours", "original"], training).values()
        assert original.network.training == training and original.network.do_ds == training
        for name, tensor in ours.network.state_dict().items():
            assert torch.equal(original.network.state_dict()[name], tensor)
        names = set(dict(ours.network.named_parameters()))
        assert set(original.gradients()) == names and "dummy_tensor" in dict(original.network.named_parameters())
    sys.modules.pop("nnunet_mednext.network_architecture.mednextv1.create_mednext_v1")


def test_a_checkout_that_cannot_be_imported_is_an_error(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "nnunet_mednext" / "network_architecture" / "mednextv1"
    folder.mkdir(parents=True)
    (folder / "create_mednext_v1.py").write_text("import a_package_that_nobody_has")
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["--upstream", str(tmp_path)]) == 1
    assert "cannot be imported: No module named 'a_package_that_nobody_has'" in capsys.readouterr().err


def test_monai_s_network_is_its_own_mednext_s():
    monai = build(parse([]), "S_k5", ["monai"], training=False)["monai"]
    expected = MedNeXtS(spatial_dims=3, in_channels=1, out_channels=3, kernel_size=5, deep_supervision=True)
    assert not isinstance(monai.network, MedNeXt)
    shapes = [{n: t.shape for n, t in net.state_dict().items()} for net in (monai.network, expected)]
    assert shapes[0] == shapes[1]
