"""Operations on whole volumes give what NumPy's give."""

from __future__ import annotations

import numpy as np
import pytest

from mednext_monai.arrays import contiguous, mean_and_sd, value_counts

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(-3, 5, size=(19, 17, 40))


@pytest.mark.parametrize("order", ["F", "C"])
@pytest.mark.parametrize("shape", [(7,), (5, 4), (9, 8, 37), (2, 9, 8, 33)])
def test_arrays_become_contiguous(shape, order):
    array = np.asarray(RANDOM.normal(size=shape) * 100, order=order).astype(np.int16, order="K")
    for source in (array, array[..., ::-1], array[1:]):
        out = contiguous(source, np.float32)
        assert out.flags.c_contiguous and out.dtype == np.float32
        np.testing.assert_array_equal(out, source)


@pytest.mark.parametrize(
    "array",
    [
        *(LABELS.astype(kind) for kind in (np.int8, np.int16, np.int64, np.float32, np.float64)),
        LABELS.astype(np.int8, order="F"),
        np.array([[-128, 127], [127, 127]], np.int8),
        np.array([[0, 255], [7, 7]], np.uint8),
        np.array([[0.0, 1.0], [0.5, 1.0]]),
        np.array([[0.0, np.nan], [np.nan, 1.0]]),
        np.array([[np.inf, -np.inf], [1.0, 1.0]]),
        np.array([[-(2**40), 2**40]]),
        np.array([[True, False, True]]),
        np.zeros((0, 3), np.int16),
        np.array([2**16, 0, 2**16], np.int32),
        np.array(5),
    ],
    ids=lambda array: f"{array.dtype}-{array.size}",
)
def test_values_are_counted_as_numpy_does(array):
    values, counts = value_counts(array)
    expected, expected_counts = np.unique(array, return_counts=True)
    assert values.dtype == array.dtype
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(counts, expected_counts)


def test_mean_and_deviation_are_those_of_float64():
    values = RANDOM.normal(1000, 3, size=700_001).astype(np.float32)
    np.testing.assert_allclose(mean_and_sd(values), (values.mean(dtype=float), values.std(dtype=float)), rtol=1e-12)
    assert np.isnan(mean_and_sd(values[:0])).all()
