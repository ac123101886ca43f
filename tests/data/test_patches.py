"""Cases, slots and seeds of the sequence of patches, which any number of processes and a resumed run continue."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from helpers.patches import binomial_band
from monai.data import DataLoader

from mednext_monai.data.patches import EpochSampler, PatchDataset, is_forced_slot
from mednext_monai.transforms import training_augmentation


@pytest.mark.parametrize(
    "batch_size, forced", [(1, [False]), (2, [False, True]), (3, [False] * 2 + [True]), (9, [False] * 6 + [True] * 3)]
)
def test_slot_rule_is_the_original_s(batch_size, forced):
    assert [is_forced_slot(slot, batch_size) for slot in range(batch_size)] == forced


def test_cases_are_drawn_uniformly_with_replacement_and_slots_alternate():
    dataset = PatchDataset([{"n": i} for i in range(5)], transform=lambda d: d, batch_size=2)
    assert len(dataset) == 500
    drawn = [dataset[i] for i in range(2000)]
    low, high = binomial_band(2000, 0.2)
    counts = Counter(d["n"] for d in drawn)
    assert len(counts) == 5 and all(low < count < high for count in counts.values())
    assert [d["force_foreground"] for d in drawn[:6]] == [False, True] * 3
    # with replacement: neighboring draws repeat as often as expected by chance
    low, high = binomial_band(1999, 0.2)
    assert low < sum(a["n"] == b["n"] for a, b in zip(drawn, drawn[1:])) < high


def test_epoch_length_does_not_depend_on_the_number_of_cases():
    for cases in (1, 7):
        assert len(PatchDataset([{}] * cases, lambda d: d, batch_size=2)) == 500
        assert len(EpochSampler(PatchDataset([{}] * cases, lambda d: d, batch_size=9))) == 2250


def test_epochs_continue_and_resume():
    dataset = PatchDataset([{}], lambda d: d, batch_size=2, batches_per_epoch=3)
    sampler = EpochSampler(dataset)
    assert list(sampler) == [0, 1, 2, 3, 4, 5]
    state = sampler.state_dict()
    second = list(sampler)
    assert second == [6, 7, 8, 9, 10, 11]
    resumed = EpochSampler(dataset)
    resumed.load_state_dict(state)
    assert list(resumed) == second


def test_processes_share_the_slots_of_a_batch():
    dataset = PatchDataset([{}], lambda d: d, batch_size=2, batches_per_epoch=4)
    parts = [list(EpochSampler(dataset, rank, 2)) for rank in range(2)]
    assert parts == [[0, 2, 4, 6], [1, 3, 5, 7]]
    with pytest.raises(ValueError, match="multiple of world_size 3"):
        EpochSampler(dataset, 0, 3)


def test_same_seed_same_patches_with_any_number_of_workers(stored):
    """Random transforms of MONAI in the pipeline included."""
    runs = []
    for workers, seed in ((0, 1), (2, 1), (0, 2)):
        dataset = PatchDataset([stored], training_augmentation(16), batch_size=2, batches_per_epoch=4, seed=seed)
        loader = DataLoader(dataset, batch_size=2, sampler=EpochSampler(dataset), num_workers=workers)
        runs.append([batch["image"].as_tensor().clone() for batch in loader])
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1]))
    assert not any(torch.equal(a, b) for a, b in zip(runs[0], runs[2]))
