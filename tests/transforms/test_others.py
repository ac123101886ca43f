"""Images for other networks are those of ``Preprocessd`` with their settings, from the same files."""

from __future__ import annotations

import pytest
import torch

from mednext_monai.transforms import Preprocessd, PreprocessOthersd


def test_images_are_added_and_the_source_stays(example_files):
    settings = {"spacing": (2.0, 2.0, 2.0), "normalization": ["none", "zscore"], "orientation": "PSR"}
    data = {"id": "a b", "image": example_files["image"]}
    found = PreprocessOthersd("image", {"image_1": settings, "image_2": {"normalization": ["none"] * 2}})(data)
    assert found["image"] == data["image"] and set(found) == {"id", "image", "image_1", "image_2"}
    for key, other in (("image_1", settings), ("image_2", {"normalization": ["none"] * 2})):
        expected = Preprocessd("image", **other)(data)["image"]
        assert torch.equal(found[key], expected) and found[key].meta["case_id"] == "a b"
        assert found[key].applied_operations[0]["extra_info"] == expected.applied_operations[0]["extra_info"]
    assert PreprocessOthersd("image", {"x": settings}, allow_missing_keys=True)({"id": 1}) == {"id": 1}


def test_settings_are_checked_when_the_transform_is_made(example_files):
    with pytest.raises(ValueError, match="intensity of channel 0"):
        PreprocessOthersd("image", {"image_1": {"normalization": ["CT"]}})
