"""Promises of reused memory: nobody notices, and no more is held than was in use at one time."""

from __future__ import annotations

import gc
import os

import pytest
import torch

from mednext_monai import memory


def test_memory_is_used_again_only_when_nothing_shares_it(monkeypatch):
    monkeypatch.setattr(memory, "SMALLEST", 256)
    memory.release()
    first = memory.empty((40, 50), torch.float32).fill_(1)
    view, address = first[3:].t(), first.data_ptr()
    del first
    gc.collect()
    second = memory.empty((40, 50), torch.float32).fill_(2)
    assert second.data_ptr() != address
    assert view.unique().tolist() == [1]
    del view
    gc.collect()
    assert memory.empty((40, 50), torch.float32).data_ptr() == address
    assert address % memory.ALIGNMENT == 0


def test_unused_memory_is_dropped_before_more_is_taken(monkeypatch):
    monkeypatch.setattr(memory, "SMALLEST", 256)
    memory.release()
    tensors = [memory.empty((100, 100), torch.float64) for _ in range(4)]
    tensors.clear()
    gc.collect()
    assert len(memory._unused) == 4
    kept = memory.empty((300, 100), torch.float64)
    assert len(memory._unused) == 1  # three of 80 kB went for one of 240 kB
    del kept
    memory.release()
    assert len(memory._unused) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.int16])
def test_a_smaller_tensor_takes_the_memory_of_a_larger_one_up_to_twice_its_size(dtype):
    memory.release()
    count = memory.SMALLEST // dtype.itemsize
    first = memory.empty((2 * count,), dtype)
    address = first.data_ptr()
    del first
    half = memory.empty((2, count // 2), dtype).fill_(3)
    assert half.data_ptr() == address
    assert (half.dtype, half.shape, half.is_contiguous()) == (dtype, (2, count // 2), True)
    del half
    assert [block.nbytes for block in memory._unused.values()] == [2 * memory.SMALLEST + memory.ALIGNMENT]
    assert memory._take(memory.SMALLEST // 2).nbytes == memory.SMALLEST // 2  # far smaller: it gets memory of its own
    memory.release()


def test_of_several_that_suffice_the_smallest_is_taken(monkeypatch):
    monkeypatch.setattr(memory, "SMALLEST", 256)
    memory.release()
    tensors = [memory.empty((size,)) for size in (1900, 1500, 1000)]
    addresses = [tensor.data_ptr() for tensor in tensors]
    del tensors
    gc.collect()
    assert memory.empty((1200,)).data_ptr() == addresses[1]
    memory.release()


def test_unused_memory_is_freed_with_its_owner(monkeypatch):
    monkeypatch.setattr(memory, "SMALLEST", 256)
    owner = torch.nn.Identity()
    for _ in range(2):
        memory.release_with(owner)
    del_me = memory.empty((1000,))
    del del_me
    gc.collect()
    assert len(memory._unused) > 0
    del owner
    gc.collect()
    assert len(memory._unused) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_starts_without_the_memory_and_the_lock_of_its_parent():
    memory.release()
    memory.empty((memory.SMALLEST,))
    assert len(memory._unused) == 1
    with memory._lock:
        child = os.fork()
        if child == 0:
            fine = not memory._unused and memory._lock.acquire(blocking=False)
            os._exit(0 if fine else 1)
    assert os.waitpid(child, 0)[1] == 0
