"""The plans have the published settings, leave nnU-Net's own alone, and what cannot be planned is named."""

from __future__ import annotations

import json

import pytest
from helpers.nnunet import DATASET, NnunetFolders, needs_nnunet

pytestmark = needs_nnunet
FINGERPRINT = {
    "spacings": [[1.1, 0.9, 1.3]] * 5,
    "shapes_after_crop": [[30, 33, 27]] * 5,
    "foreground_intensity_properties_per_channel": {
        str(channel): {"max": 9, "mean": 3, "median": 3, "min": 0, "percentile_00_5": 0, "percentile_99_5": 9, "std": 2}
        for channel in range(2)
    },
    "median_relative_size_after_cropping": 0.5,
}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A data set whose fingerprint nnU-Net has computed."""
    made = NnunetFolders(tmp_path)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    (made.preprocessed / DATASET).mkdir()
    (made.preprocessed / DATASET / "dataset_fingerprint.json").write_text(json.dumps(FINGERPRINT))
    return made


def change_fingerprint(folders, **changes) -> None:
    path = folders.preprocessed / DATASET / "dataset_fingerprint.json"
    path.write_text(json.dumps(FINGERPRINT | changes))


def plan(*args, **kwargs):
    from mednext_monai.nnunet.planner import plan

    return plan(*args, **kwargs)


@pytest.mark.parametrize("dataset", [901, "901", DATASET])
def test_plans_have_the_published_spacing_patch_and_batch(folders, dataset):
    path, number, name = plan(dataset)
    assert (path, number, name) == (
        folders.preprocessed / DATASET / "nnUNetPlansMedNeXt.json",
        901,
        "nnUNetPlansMedNeXt",
    )
    plans = json.loads(path.read_text())
    assert list(plans["configurations"]) == ["3d_fullres"] and plans["plans_name"] == name
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["spacing"] == [1.0] * 3 and configuration["patch_size"] == [128] * 3
    assert configuration["batch_size"] == 2 and configuration["batch_dice"] is False
    assert configuration["architecture"]["arch_kwargs"]["strides"] == [[1] * 3] + [[2] * 3] * 5
    assert configuration["normalization_schemes"] == ["ZScoreNormalization", "CTNormalization"]
    assert configuration["use_mask_for_norm"] == [True, False]
    assert configuration["data_identifier"] == "nnUNetPlansMedNeXt_3d_fullres"
    assert sorted(path.name for path in path.parent.iterdir()) == [
        "dataset.json",
        "dataset_fingerprint.json",
        "nnUNetPlansMedNeXt.json",
    ]


def test_volumes_of_more_than_four_patches_have_the_dice_of_the_batch(folders):
    """As the authors' planner: their second stage exists if the median volume is four times the patch."""
    change_fingerprint(folders, shapes_after_crop=[[400, 400, 400]] * 5)
    configuration = json.loads(plan(901).path.read_text())["configurations"]["3d_fullres"]
    assert configuration["batch_dice"] is True and "next_stage" not in configuration


def test_our_plans_are_renewed_and_those_of_others_kept(folders):
    own = folders.preprocessed / DATASET / "nnUNetPlans.json"
    own.write_text('{"plans_name": "nnUNetPlans"}')
    first = plan(901, patch_size=32)
    assert (
        json.loads(plan(901, patch_size=64).path.read_text())["configurations"]["3d_fullres"]["patch_size"] == [64] * 3
    )
    with pytest.raises(ValueError, match=r"nnUNetPlans\.json exists and is not of this command"):
        plan(901, plans_name="nnUNetPlans")
    assert own.read_text() == '{"plans_name": "nnUNetPlans"}' and first.path.is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": 902}, "has no single data set 902"),
        ({"dataset": "Boxes"}, "must be an id such as 4 or a name such as Dataset004_Hippocampus, got 'Boxes'"),
        ({"dataset": "Dataset902_None"}, "Dataset902_None has no dataset.json"),
        ({"dataset": 901, "patch_size": 40}, "patch_size must be a positive multiple of 16, got 40"),
        ({"dataset": 901, "batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"dataset": 901, "plans_name": "a/b"}, "plans_name must be a name without a folder, got 'a/b'"),
    ],
)
def test_what_cannot_be_planned_is_named(folders, arguments, message):
    with pytest.raises(ValueError, match=message):
        plan(**arguments)


def test_images_of_one_slice_are_refused(folders):
    change_fingerprint(folders, spacings=[[999.0, 1.0, 1.0]] * 5, shapes_after_crop=[[1, 64, 64]] * 5)
    with pytest.raises(ValueError, match="images of one slice only"):
        plan(901)


def test_an_error_of_nnunet_becomes_one_sentence_with_the_name_of_the_data_set(folders):
    description = folders.raw / DATASET / "dataset.json"
    content = json.loads(description.read_text())
    del content["channel_names"]
    description.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"nnU-Net cannot plan Dataset901_Boxes: KeyError\('modality'\)"):
        plan(901)


def test_a_missing_variable_is_named(folders, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(ValueError, match="the environment variable nnUNet_preprocessed is not set"):
        plan(901)
