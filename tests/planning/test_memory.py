"""The table of GPU memory is what is measured, and estimates are near what users report."""

from __future__ import annotations

import pytest
from helpers.reference import load_reference

from mednext_monai.networks import KERNEL_SIZES, VARIANTS
from mednext_monai.planning.memory import (
    BYTES_PER_VOXEL,
    CHECKPOINTING,
    estimate_training_memory,
    fastest_fitting,
    measure,
    published_setting,
)


def test_the_table_has_a_row_for_every_variant_and_kernel_size():
    assert all(len(row) == len(CHECKPOINTING) == 3 for row in BYTES_PER_VOXEL.values())
    assert list(BYTES_PER_VOXEL) == [(variant, kernel_size) for variant in VARIANTS for kernel_size in KERNEL_SIZES]


@pytest.mark.parametrize("number, setting", enumerate(CHECKPOINTING))
@pytest.mark.parametrize("variant, kernel_size", [("S", 3), ("L", 5)])
def test_the_table_is_what_is_measured(variant, kernel_size, number, setting):
    measured = measure(variant, kernel_size, 2, CHECKPOINTING[setting])
    assert measured == pytest.approx(BYTES_PER_VOXEL[variant, kernel_size][number][0] + 2 * 2.29, abs=1)
    if setting == published_setting(f"{variant}_k{kernel_size}"):
        assert measure(variant, kernel_size, 2) == measured


def test_less_is_stored_the_more_is_computed_again():
    for row in estimate_training_memory((128, 128, 128), 2, 3).values():
        assert list(row) == ["off", "expansion", "block"]
        assert row["block"] < row["expansion"] < 0.55 * row["off"]


@pytest.mark.parametrize(("gpu_memory", "setting"), [(9.5, "off"), (9.4, "expansion"), (4, "expansion"), (3, "block")])
def test_the_fastest_setting_that_fits_is_found(gpu_memory, setting):
    row = {"off": 9.5, "expansion": 4.0, "block": 3.0}
    assert fastest_fitting(row, gpu_memory) == setting and fastest_fitting(row, 2.9) is None


def test_the_count_is_near_what_was_measured_on_a_gpu():
    # mednext-accel, B k3 at 1 x 128^3 with three classes: peaks of 9.4, 3.8 and 3.2 GiB
    for (setting, value), peak in zip(CHECKPOINTING.items(), (9.4, 3.8, 3.2)):
        live = measure("B", 3, 3, value, batch_size=1) * 128**3 / 2**30
        assert live == pytest.approx(peak, rel=0.05), setting


@pytest.mark.parametrize("name", load_reference("variants"))
def test_parameters_and_their_states_are_counted(name):
    published = load_reference("variants")[name]["parameters"]
    row = estimate_training_memory((0, 0, 0), 1, 3)[name]
    assert set(row.values()) == {1.1 * 16 * published / 2**30 + 1}


def test_the_estimate_is_near_what_users_report():
    # MIC-DKFZ/MedNeXt issue 7: S takes 20 GB at 2 x 80 x 160 x 160
    assert estimate_training_memory((80, 160, 160), 2, 3)["S_k3"]["off"] * 2**30 / 1e9 == pytest.approx(20, rel=0.1)
