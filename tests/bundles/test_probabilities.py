"""``--save_probabilities true``: the mean of folds beside each segmentation."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from mednext_monai.inferers import MedNeXtInferer
from mednext_monai.networks import create_mednext
from mednext_monai.preprocessing.geometry import Geometry, restore_image
from mednext_monai.transforms import Preprocessd


@pytest.mark.slow
def test_inference_writes_the_mean_probabilities_of_folds(run_bundle, dataset):
    models, output, networks = run_bundle.bundle / "models", run_bundle.bundle / "eval", []
    for seed, folder in enumerate((models, models / "fold_1")):
        torch.manual_seed(seed)
        networks.append(create_mednext("S", 3, out_channels=3, deep_supervision=True, base_channels=4).eval())
        folder.mkdir(exist_ok=True)
        torch.save(networks[-1].state_dict(), folder / "model.pt")
    output.mkdir()
    np.savez(output / "box_9.npz", probabilities=np.ones(1))
    options = ("--folds", "[0,1]", "--mirror", "false", "--save_probabilities", "true")
    result = run_bundle("inferring", "inference", options=options, check=False)
    assert f"{output / 'box_9.npz'} exists and was not written by this package" in result.stderr
    run_bundle("inferring", "inference", options=(*options, "--overwrite", "true"))
    assert sorted(file.name for file in output.iterdir()) == ["box_9.nii.gz", "box_9.npz"]

    with np.load(output / "box_9.npz") as file:
        found = file["probabilities"]
    labels = np.asarray(nib.load(output / "box_9.nii.gz").dataobj)
    assert (found.dtype, found.shape) == (np.float16, (3, *labels.shape))
    np.testing.assert_array_equal(np.take_along_axis(found, labels[None].astype(int), 0)[0], found.max(0))
    case = Preprocessd()({"image": str(dataset / "imagesTs" / "box_9.nii.gz")})["image"]
    geometry = Geometry.from_dict(case.applied_operations[0]["extra_info"]["geometry"])
    with torch.no_grad():
        mean = sum(MedNeXtInferer(32)(case[None], network)[0] for network in networks) / 2
    expected = restore_image(mean.numpy(), geometry)
    expected[0][expected.sum(0) == 0] = 1
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=2**-11, atol=1e-5)
