"""The table of GPU memory is what is measured, and estimates are near what users report."""

from __future__ import annotations

import pytest
from helpers.reference import load_reference

from mednext_monai.networks import KERNEL_SIZES, VARIANTS
from mednext_monai.planning.memory import BYTES_PER_VOXEL, estimate_training_memory, measure


def test_the_table_has_a_row_for_every_variant_and_kernel_size():
    assert list(BYTES_PER_VOXEL) == [(variant, kernel_size) for variant in VARIANTS for kernel_size in KERNEL_SIZES]


@pytest.mark.parametrize("variant, kernel_size", [("S", 3), ("L", 5)])
def test_the_table_is_what_is_measured(variant, kernel_size):
    assert measure(variant, kernel_size, 2) == pytest.approx(BYTES_PER_VOXEL[variant, kernel_size][0] + 2 * 2.29, abs=1)


@pytest.mark.parametrize("name", load_reference("variants"))
def test_parameters_and_their_states_are_counted(name):
    published = load_reference("variants")[name]["parameters"]
    assert estimate_training_memory((0, 0, 0), 1, 3)[name] == 1.1 * 16 * published / 2**30 + 1


def test_the_estimate_is_near_what_users_report():
    # MIC-DKFZ/MedNeXt issue 7: S takes 20 GB at 2 x 80 x 160 x 160
    assert estimate_training_memory((80, 160, 160), 2, 3)["S_k3"] * 2**30 / 1e9 == pytest.approx(20, rel=0.1)
