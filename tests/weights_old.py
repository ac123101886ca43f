"""What a user gets for bad input: an error that names the file or argument, before the first training step."""

from __future__ import annotations

import pytest
import torch

from mednext_monai.networks import create_mednext
from mednext_monai.weights import check_checkpoint


def test_checkpoint_of_another_variant(tmp_path):
    torch.save(create_mednext("B", 3).state_dict(), tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"(?s)b.pt does not fit.*MedNeXt-B, kernel 3.*MedNeXt-S, kernel 5") as error:
        check_checkpoint(tmp_path / "b.pt", create_mednext("S", 5))
    assert "enc_block_0.0.conv1.weight: (32, 1, 3, 3, 3) in the checkpoint, (32, 1, 5, 5, 5) in the network" in str(
        error.value
    )


def test_truncated_checkpoint(tmp_path):
    network = create_mednext("S", base_channels=2)
    torch.save(network.state_dict(), tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:5000])
    with pytest.raises(ValueError, match="a.pt is not read"):
        check_checkpoint(tmp_path / "a.pt", network)


def test_missing_checkpoint_names_its_neighbours(tmp_path):
    (tmp_path / "model_best.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="model_best.pt"):
        check_checkpoint(tmp_path / "model.pt", create_mednext("S", base_channels=2))
