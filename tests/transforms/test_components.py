"""Post-processing within a prediction is that of a folder."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.segmentations import GRID, make_component_set, write_pairs
from monai.data import MetaTensor

from mednext_monai.evaluation import apply_to_folder, read_postprocessing
from mednext_monai.transforms import KeepComponentsd


def test_the_result_is_that_of_apply_postprocessing(tmp_path):
    _, pairs = make_component_set(1)
    write_pairs(tmp_path, pairs)
    decision = tmp_path / "decision.json"
    steps = [{"classes": [1, 2], "minimum_size_mm3": None}, {"classes": [2], "minimum_size_mm3": 9.0}]
    decision.write_text(json.dumps({"keep_largest_component": steps}))
    files, _ = apply_to_folder(tmp_path / "pred", tmp_path / "out", read_postprocessing(decision), processes=1)
    transform, changed = KeepComponentsd("pred", decision), 0
    for (prediction, _), file in zip(pairs, files):
        volume = MetaTensor(torch.from_numpy(prediction[None]), affine=GRID, meta={"filename_or_obj": "a"})
        found = transform({"pred": volume})["pred"]
        np.testing.assert_array_equal(found[0].numpy(), np.asarray(nib.load(file).dataobj))
        assert found.dtype == torch.uint8 and found.meta["filename_or_obj"] == "a" and (found.affine == GRID).all()
        assert (volume[0].numpy() == prediction).all()
        changed += int((found[0].numpy() != prediction).any())
    assert changed


def test_a_file_that_is_no_decision_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        KeepComponentsd("pred", tmp_path / "none.json")
