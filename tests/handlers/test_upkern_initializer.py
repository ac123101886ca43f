"""Promises of the handler: once, at the start of a new training only, before what would resume."""

from __future__ import annotations

import logging
import re

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.handlers import CheckpointLoader
from torch.nn.parallel import DataParallel, DistributedDataParallel

from mednext_monai.handlers import UpKernInitializer
from mednext_monai.networks import MedNeXt

TINY = dict(base_channels=4, block_counts=(1,) * 9)


def tiny(**kwargs) -> MedNeXt:
    return MedNeXt(**{**TINY, **kwargs})


@pytest.fixture
def pretrained(tmp_path):
    """A trained k3 network and its checkpoint."""
    network = tiny()
    torch.save({"model": network.state_dict(), "trainer": {"epoch": 3}}, tmp_path / "k3.pt")
    return network, str(tmp_path / "k3.pt")


def trainer() -> Engine:
    return Engine(lambda engine, batch: None)


def test_initialises_at_the_start_and_only_once(pretrained, caplog):
    source, path = pretrained
    network, engine = tiny(kernel_size=5), trainer()
    seen = []
    UpKernInitializer(path, network).attach(engine)
    engine.add_event_handler(Events.EPOCH_STARTED, lambda: seen.append(network.stem.weight.detach().clone()))
    assert not torch.equal(network.stem.weight, source.stem.weight)
    with caplog.at_level(logging.INFO):
        engine.run([0, 1], max_epochs=1)
    assert torch.equal(seen[0], source.stem.weight)
    assert re.search(r"UpKern: \d+ tensors copied, 17 kernels interpolated \(from .*k3.pt\)", caplog.text)
    torch.nn.init.zeros_(network.stem.weight)  # trained on
    engine.run([0, 1], max_epochs=1)
    engine.run([0, 1], max_epochs=3)
    assert network.stem.weight.abs().max() == 0


def test_logger_can_be_named(pretrained, caplog):
    _, path = pretrained
    engine = trainer()
    UpKernInitializer(path, tiny(kernel_size=5), name="my_logger").attach(engine)
    with caplog.at_level(logging.INFO, "my_logger"):
        engine.run([0])
    assert [record.name for record in caplog.records if "UpKern" in record.message] == ["my_logger"]


def test_without_a_path_it_does_nothing():
    network, engine = tiny(), trainer()
    before = network.stem.weight.detach().clone()
    UpKernInitializer(None, network).attach(engine)
    engine.run([0])
    assert torch.equal(network.stem.weight, before)


@pytest.mark.parametrize("how", ["resume", "resume without the file", "iteration"])
def test_resumed_training_is_left_alone(pretrained, how, tmp_path):
    _, path = pretrained
    network, engine = tiny(kernel_size=5), trainer()
    before = network.stem.weight.detach().clone()
    path = str(tmp_path / "gone.pt") if how == "resume without the file" else path
    UpKernInitializer(path, network, resume=how != "iteration").attach(engine)
    if how == "iteration":
        engine.load_state_dict({"iteration": 4, "epoch_length": 2, "max_epochs": 3})
        engine.run([0, 1])
    else:
        engine.run([0, 1], max_epochs=1)
    engine.run([0, 1], max_epochs=4)
    assert torch.equal(network.stem.weight, before)


def test_a_checkpoint_loader_after_it_wins(pretrained, tmp_path):
    _, path = pretrained
    network, trained, engine = tiny(kernel_size=5), tiny(kernel_size=5), trainer()
    torch.save(trained.state_dict(), tmp_path / "k5.pt")
    UpKernInitializer(path, network).attach(engine)
    CheckpointLoader(str(tmp_path / "k5.pt"), {"model": network}).attach(engine)
    engine.run([0])
    assert torch.equal(network.stem.weight, trained.stem.weight)


def test_parallel_network_is_initialized(pretrained, tmp_path):
    source, path = pretrained
    for_data_parallel, for_ddp = tiny(kernel_size=5), tiny(kernel_size=5)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        for network, wrapper in ((for_data_parallel, DataParallel), (for_ddp, DistributedDataParallel)):
            engine = trainer()
            UpKernInitializer(path, wrapper(network)).attach(engine)
            engine.run([0])
            assert torch.equal(network.stem.weight, source.stem.weight)
    finally:
        dist.destroy_process_group()


def test_heads_and_stem_can_be_skipped(pretrained):
    source, path = pretrained
    network, engine = tiny(kernel_size=5, in_channels=4, out_channels=6), trainer()
    UpKernInitializer(path, network, skip_heads=True, skip_stem=True).attach(engine)
    engine.run([0])
    assert torch.equal(network.down_0.res_conv.weight, source.down_0.res_conv.weight)


def test_missing_checkpoint_is_an_error_when_the_handler_is_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="the checkpoint to start from, .*none.pt, does not exist"):
        UpKernInitializer(str(tmp_path / "none.pt"), tiny())


def test_checkpoint_of_another_variant_is_an_error_that_names_the_file(pretrained):
    _, path = pretrained
    engine = trainer()
    engine.logger.setLevel(logging.CRITICAL)
    UpKernInitializer(path, tiny(kernel_size=5, expansion_ratio=3)).attach(engine)
    with pytest.raises(ValueError, match=f"{re.escape(path)}: the checkpoint .* does not match the network"):
        engine.run([0])


def test_truncated_checkpoint_is_an_error_that_names_the_file(pretrained):
    _, path = pretrained
    with open(path, "r+b") as file:
        file.truncate(5000)
    engine = trainer()
    engine.logger.setLevel(logging.CRITICAL)
    UpKernInitializer(path, tiny(kernel_size=5)).attach(engine)
    with pytest.raises(ValueError, match=re.escape(path)):
        engine.run([0])


def test_check_finds_a_checkpoint_of_another_network_and_changes_nothing(pretrained, tmp_path):
    _, path = pretrained
    network = tiny(kernel_size=5, out_channels=4)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match="out_0.conv_out.weight: .*2, 1, 1, 1.* in the checkpoint"):
        UpKernInitializer(path, network).check()
    handler = UpKernInitializer(path, network, skip_heads=True, skip_stem=None)
    handler.check()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    engine = trainer()
    handler.attach(engine)
    tmp_path.joinpath("k3.pt").unlink()  # read by the check
    engine.run([0])
    assert not torch.equal(network.stem.weight, before["stem.weight"])
    assert torch.equal(network.out_0.conv_out.weight, before["out_0.conv_out.weight"])


def test_check_of_a_resumed_training_needs_no_file(tmp_path):
    UpKernInitializer(str(tmp_path / "none.pt"), tiny(), resume=True).check()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_stem_is_skipped_only_if_the_number_of_channels_differs(pretrained, channels):
    source, path = pretrained
    network, engine = tiny(in_channels=channels), trainer()
    UpKernInitializer(path, network, skip_heads=True, skip_stem=None).attach(engine)
    engine.run([0])
    assert torch.equal(network.enc_block_0[0].conv1.weight, source.enc_block_0[0].conv1.weight)
    assert (channels == 1) == torch.equal(network.stem.weight, source.stem.weight)
