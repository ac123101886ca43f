"""Images for other networks are those of ``Preprocessd`` with their settings, from the same files."""

from __future__ import annotations

import pytest
import torch

from mednext_monai.data.io import read_image
from mednext_monai.transforms import Preprocessd, PreprocessOthersd, preprocess


def test_images_are_those_of_their_settings_from_files_that_are_read_once(example_files, monkeypatch):
    settings = {"spacing": (2.0, 2.0, 2.0), "normalization": ["none", "zscore"], "orientation": "PSR"}
    all_settings = {"image_1": settings, "image_2": {"normalization": ["none"] * 2}}
    own = Preprocessd("image", normalization=["zscore"] * 2, label_key=None)
    data = {"id": "a b", "image": example_files["image"]}
    expected = {key: Preprocessd("image", **other)(data)["image"] for key, other in all_settings.items()}
    expected["image"] = own(data)["image"]
    read = []
    monkeypatch.setattr(preprocess, "read_image", lambda paths: (read.append(paths), read_image(paths))[1])
    found = own(PreprocessOthersd("image", all_settings)(data))
    assert read == [example_files["image"]] and set(found) == {"id", *expected}
    for key, image in expected.items():
        assert torch.equal(found[key], image) and torch.equal(found[key].affine, image.affine)
        assert found[key].applied_operations[0]["extra_info"] == image.applied_operations[0]["extra_info"]
        assert set(found[key].meta) == set(image.meta) and found[key].meta["case_id"] == "a b"
        assert found[key].meta["filename_or_obj"] == example_files["image"]
    assert PreprocessOthersd("image", all_settings, allow_missing_keys=True)({"id": 1}) == {"id": 1}


def test_settings_are_checked_when_the_transform_is_made(example_files):
    with pytest.raises(ValueError, match="intensity of channel 0"):
        PreprocessOthersd("image", {"image_1": {"normalization": ["CT"]}})
