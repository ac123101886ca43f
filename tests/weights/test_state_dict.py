"""Promises of reading: any checkpoint's tensors are found, nothing in a file is run, every failure names the file."""

from __future__ import annotations

import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from helpers.checkpoints import LAYOUTS

from mednext_monai.weights import read_state_dict, write_checkpoint

TENSORS = {"stem.weight": torch.arange(6.0).reshape(2, 3), "stem.bias": torch.tensor([1.0, -1.0])}


class Hostile:
    """Creates a file when it is unpickled by Python's own pickle."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def assert_same(one: dict, other: dict) -> None:
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_layout_gives_the_same_tensors(tmp_path, layout, zipped):
    path = tmp_path / "model.pt"
    torch.save(LAYOUTS[layout](TENSORS), path, _use_new_zipfile_serialization=zipped)
    assert_same(read_state_dict(path), TENSORS)
    assert_same(read_state_dict(str(path)), TENSORS)


def nnunet_v1_checkpoint(scalar) -> dict:
    """What nnU-Net v1 writes: training state with numpy scalars around the tensors."""
    return {
        "epoch": 2,
        "state_dict": {**TENSORS, "dummy_tensor": torch.ones(1)},
        "optimizer_state_dict": None,
        "plot_stuff": ([scalar(np.float32, 0.5)], [scalar(np.float64, 0.25)], [], [scalar(np.int64, 3)]),
        "best_stuff": (scalar(np.float64, 0.1), None, 1),
        "amp_grad_scaler": {"scale": 65536.0, "growth_interval": 2000},
    }


def test_numpy_scalars_of_an_original_checkpoint_are_read(tmp_path):
    path = tmp_path / "model_final_checkpoint.model"
    torch.save(nnunet_v1_checkpoint(lambda kind, value: kind(value)), path)
    assert_same(read_state_dict(path), TENSORS)


def test_numpy_scalars_written_by_the_other_numpy_generation_are_read(tmp_path):
    one, two = b"numpy.core.multiarray", b"numpy._core.multiarray"  # numpy 1 and 2 name the module differently
    path, other = tmp_path / "one.model", tmp_path / "other.model"
    torch.save(nnunet_v1_checkpoint(lambda kind, value: kind(value)), path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w") as target:
        for entry in source.namelist():
            content = source.read(entry)
            old, new = (one, two) if one in content else (two, one)
            if entry.endswith("data.pkl"):
                assert old in content
            target.writestr(entry, content.replace(b"c" + old + b"\n", b"c" + new + b"\n"))
    assert_same(read_state_dict(other), TENSORS)


def test_the_allowed_types_are_allowed_during_the_reading_only(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save(TENSORS, tmp_path / "model.pt")
    read_state_dict(tmp_path / "model.pt")
    assert set(torch.serialization.get_safe_globals()) == before


def test_missing_file(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
            read_state_dict(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95])
def test_truncated_file_is_an_error_that_names_it(tmp_path, zipped, share):
    path = tmp_path / "model.pt"
    torch.save({"stem.weight": torch.rand(1000)}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        ValueError, match=re.escape(f"{path} cannot be read: it is truncated, corrupt or not a PyTorch")
    ):
        read_state_dict(path)


@pytest.mark.parametrize("content", [b"hello", b"\0" * 100, b"<html>404</html>", b"PK\3\4 no zip", b"\x80\x02.", b"N."])
def test_file_that_is_no_checkpoint_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_state_dict(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["alone", "beside tensors", "as a tensor's name"])
def test_hostile_checkpoint_does_not_run_and_is_an_error_that_says_why(tmp_path, zipped, where):
    path, trap = tmp_path / "model.pt", tmp_path / "trap"
    hostile = Hostile(trap)
    content = {
        "alone": hostile,
        "beside tensors": {"state_dict": TENSORS, "plot_stuff": [hostile]},
        "as a tensor's name": {**TENSORS, "enc": hostile},
    }[where]
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError) as error:
        read_state_dict(path)
    assert not trap.exists()
    message = str(error.value)
    assert str(path) in message and "mkdir" in message and "allowed are tensors" in message
    assert "weights_only" not in message  # no advice to load it unsafely


def test_plain_pickle_that_is_hostile_does_not_run(tmp_path):
    path, trap = tmp_path / "model.pt", tmp_path / "trap"
    path.write_bytes(pickle.dumps(Hostile(trap)))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_state_dict(path)
    assert not trap.exists()
    pickle.loads(path.read_bytes())  # the trap itself works
    assert trap.exists()


def test_numpy_object_that_is_no_number_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"state_dict": TENSORS, "name": np.str_("text")}, path)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_state_dict(path)


@pytest.mark.parametrize(
    "content, found",
    [
        ([1, 2], "an object of type list"),
        ({}, "a dictionary with 0 entries"),
        ({"epoch": 3, "model": {"a": 1}}, "a dictionary with 2 entries: ['epoch', 'model']"),
        ({"weights": TENSORS}, "a dictionary with 1 entries: ['weights']"),
        (torch.ones(3), "an object of type Tensor"),
    ],
)
def test_checkpoint_without_state_dict_is_an_error_that_says_what_was_found(tmp_path, content, found):
    path = tmp_path / "model.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=re.escape(found)) as error:
        read_state_dict(path)
    assert str(path) in str(error.value) and "('model', 'network', 'net', 'state_dict', " in str(error.value)


def test_placeholder_of_a_bundle_says_that_there_are_no_weights_yet(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"cThis bundle has no weights yet.\n")
    with pytest.raises(ValueError, match="has no weights yet.*train the bundle, or convert or copy a checkpoint"):
        read_state_dict(path)


def test_writing_gives_back_the_tensors_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "new" / "model.pt"
    write_checkpoint(TENSORS, path)
    assert_same(read_state_dict(path), TENSORS)
    assert os.listdir(path.parent) == ["model.pt"]


def test_what_is_written_has_the_structure_and_the_attributes_of_the_content(tmp_path):
    state = torch.nn.Sequential(torch.nn.Linear(2, 2)).state_dict()
    content = {"model": state, "steps": [torch.ones(2), 3], "shape": (1, torch.zeros(1)), "name": "x", "none": None}
    write_checkpoint(content, tmp_path / "a.pt")
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    assert list(found) == list(content) and type(found["model"]) is type(state) and found["name"] == "x"
    assert found["model"]._metadata == state._metadata and state._metadata
    assert_same(found["model"], state)
    assert torch.equal(found["steps"][0], torch.ones(2)) and found["steps"][1] == 3
    assert found["shape"] == (1, torch.zeros(1)) and found["none"] is None


def test_failed_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    write_checkpoint(TENSORS, path)

    def fail(content, file):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint({"other": torch.ones(1)}, path)
    assert_same(read_state_dict(path), TENSORS)
    assert os.listdir(tmp_path) == ["model.pt"]


def test_content_that_cannot_be_pickled_leaves_the_old_file_and_nothing_else(tmp_path):
    write_checkpoint(TENSORS, tmp_path / "a.pt")
    with pytest.raises(Exception):  # noqa: B017 - whatever pickle raises
        write_checkpoint({"a": lambda: 0}, tmp_path / "a.pt")
    assert_same(read_state_dict(tmp_path / "a.pt"), TENSORS)
    assert os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("other", ["loss.weight", "module.stem.weight"])
def test_a_prefix_that_not_all_tensors_have_is_kept(tmp_path, other):
    content = {**{f"net.{name}": tensor for name, tensor in TENSORS.items()}, other: torch.ones(1)}
    torch.save({"state_dict": content}, tmp_path / "a.ckpt")
    assert_same(read_state_dict(tmp_path / "a.ckpt"), content)
