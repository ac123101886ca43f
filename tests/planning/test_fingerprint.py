"""The figures of a case and the pooled intensities against plain computations."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.datasets import make_decathlon

from mednext_monai.data import read_dataset
from mednext_monai.data.checks import Volume
from mednext_monai.planning import scan
from mednext_monai.planning.fingerprint import intensity_statistics, measure_case

OBLIQUE = np.eye(4)


OBLIQUE[:3, :3] = np.array([[0, -0.8, 0.6], [1, 0, 0], [0, 0.6, 0.8]]) @ np.diag([0.5, 0.7, 3])


def make_volume(seed: int) -> Volume:
    generator = np.random.default_rng(seed)
    image = np.zeros((2, 16, 14, 12), np.float32)
    image[0, 2:10, 3:12, 1:7] = generator.uniform(-50, 50, (8, 9, 6))
    image[1, 4:13, 3:9, 2:9] = generator.uniform(1, 9, (9, 6, 7))
    image[:, 5:7, 5:7, 4:5] = 0  # a hole
    label = generator.integers(0, 3, (16, 14, 12)).astype(np.int16)
    return Volume(image, label, OBLIQUE)


def test_the_figures_of_a_case():
    volume = make_volume(0)
    case = measure_case("a", volume, classes=4)
    assert case.shape == (16, 14, 12) and case.cropped_shape == (11, 9, 8)
    np.testing.assert_allclose(case.spacing, (0.5, 0.7, 3))
    assert case.orientation == "ALS"
    assert case.size_reduction == pytest.approx(11 * 9 * 8 / (16 * 14 * 12))
    assert case.class_voxels.tolist() == [*(int((volume.label == c).sum()) for c in range(3)), 0]
    cropped = volume.image[:, 2:13, 3:12, 1:9].astype(np.float64)
    np.testing.assert_allclose(case.mean, cropped.mean((1, 2, 3)))
    np.testing.assert_allclose(case.sd, cropped.std((1, 2, 3)))


def test_intensities_are_every_tenth_foreground_voxel_in_the_originals_order_pooled_over_the_cases():
    volumes = [make_volume(seed) for seed in range(3)]
    statistics = intensity_statistics([measure_case(str(i), v, 3) for i, v in enumerate(volumes)])
    for channel in range(2):
        pool = []
        for volume in volumes:
            seen = []
            for z in range(1, 9):  # the crop, counted off slice by slice as an array in (z, y, x) order is
                for y in range(3, 12):
                    for x in range(2, 13):
                        if volume.label[x, y, z] > 0:
                            seen.append(float(volume.image[channel, x, y, z]))
            pool += seen[::10]
        pool = np.sort(pool)
        expected = {
            "mean": pool.mean(),
            "sd": np.sqrt(((pool - pool.mean()) ** 2).mean()),
            "median": np.median(pool),
            "min": pool[0],
            "max": pool[-1],
            "p005": np.percentile(pool, 0.5),
            "p995": np.percentile(pool, 99.5),
        }
        assert statistics[channel] == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_no_foreground_inside_the_crop_is_an_error():
    volume = make_volume(0)
    with pytest.raises(ValueError, match="no case has any foreground inside"):
        intensity_statistics([measure_case("a", Volume(volume.image, volume.label * 0, OBLIQUE), 3)])


def test_a_sound_data_set_has_no_problems_and_processes_do_not_matter(tmp_path):
    dataset = read_dataset(make_decathlon(tmp_path))
    cases, warnings = scan(dataset, processes=0, progress=False)
    assert warnings == [] and [case.id for case in cases] == [case["id"] for case in dataset.cases]
    parallel, _ = scan(dataset, processes=2, progress=False)
    for one, other in zip(cases, parallel):
        for name, value in vars(one).items():
            np.testing.assert_array_equal(value, getattr(other, name))
