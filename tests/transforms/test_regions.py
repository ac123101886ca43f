"""Regions are the unions of their classes, in folders that any file system allows."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from mednext_monai.data.io import is_ours
from mednext_monai.transforms import SaveRegionsd, region_folders

REGIONS = {"whole tumor": [1, 2, 3], "core/../x": [2, 3], "Core/../X": [3], "..": [1]}
FOLDERS = ["regions/whole_tumor", "regions/core_.._x", "regions/Core_.._X_2", "regions/_"]


def test_masks_are_the_unions_of_the_classes_with_the_header_of_the_image(example_files, tmp_path):
    image = nib.load(example_files["image"])
    labels = np.random.RandomState(0).randint(0, 4, image.shape[:3]).astype(np.uint8)
    meta = {"filename_or_obj": example_files["image"], "case_id": "x y"}
    pred = MetaTensor(torch.from_numpy(labels[None]), affine=torch.from_numpy(image.affine), meta=meta)
    save = SaveRegionsd("pred", tmp_path / "out", REGIONS, region_folders(REGIONS))
    assert save({"pred": pred})["pred"] is pred and "saved_to" not in pred.meta
    files = [tmp_path / "out" / folder / "x y.nii.gz" for folder in FOLDERS]
    assert sorted(files) == sorted(file for file in (tmp_path / "out").rglob("*") if file.is_file())
    for file, values in zip(files, REGIONS.values()):
        mask = nib.load(file)
        assert mask.get_data_dtype() == np.uint8 and is_ours(file)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), sum(labels == value for value in values))
        np.testing.assert_array_equal(mask.affine, image.affine)


def test_regions_are_saved_if_there_are_any_unless_told_otherwise():
    assert list(region_folders(REGIONS).values()) == FOLDERS == list(region_folders(REGIONS, "true").values())
    assert region_folders(REGIONS, "false") == region_folders(None) == region_folders({}, False) == {}
    with pytest.raises(ValueError, match="save_regions: the task has no regions"):
        region_folders(None, "true")
