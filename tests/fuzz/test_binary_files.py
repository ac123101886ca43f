"""Images, checkpoints and stored cases that are damaged: a sentence that names the file, or success."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis")

from helpers.datasets import CASE_AFFINE, write_case
from helpers.fuzz import bounded, damaged_bytes, damaged_json, only_ours
from hypothesis import given
from hypothesis import strategies as st

from mednext_monai.data import inference_cases, preprocess_dataset, read_image, read_label, store, write_segmentation
from mednext_monai.data.checks import Expected, check_case
from mednext_monai.data.io import is_ours, read_digest, read_grid, read_stored
from mednext_monai.evaluation import apply_to_folder, evaluate_folder
from mednext_monai.evaluation.postprocessing import Postprocessing, Step
from mednext_monai.networks import MedNeXt
from mednext_monai.preprocessing import geometry
from mednext_monai.preprocessing.case import preprocess_case
from mednext_monai.weights import convert, load_weights, read_settings, read_state_dict, upkern
from mednext_monai.weights.settings import attach_settings

pytestmark = pytest.mark.slow
HEADER = 352
MEMORY = 2**24  # bytes that a resampled image may need
SETTINGS = {"spacing": [1, 1, 1], "orientation": None, "normalization": ["zscore"], "intensity": None}


def nifti(dtype=np.float32, shape=(5, 6, 7)) -> bytes:
    values = np.arange(np.prod(shape)).reshape(shape) % 3
    image = nibabel.Nifti1Image(values.astype(dtype), CASE_AFFINE)
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


NIFTI = [
    nifti(),
    nifti(np.uint8),
    nifti(np.int16, (5, 6, 7, 2)),
    nibabel.Nifti2Image(np.ones((3, 4, 5)), CASE_AFFINE).to_bytes(),
]


@bounded(2000)
@given(
    content=st.sampled_from(NIFTI).flatmap(lambda whole: damaged_bytes(whole, HEADER)) | st.binary(max_size=400),
    packed=st.sampled_from(["", ".gz", "damaged"]),
    data=st.data(),
)
def test_nifti(tmp_path_factory, content, packed, data):
    folder = tmp_path_factory.getbasetemp()
    file = folder / f"image.nii{'.gz' if packed else ''}"
    if packed:
        content = gzip.compress(content, 1, mtime=0)
    if packed == "damaged":
        content = data.draw(damaged_bytes(content))
    file.write_bytes(content)
    for read in (read_stored, read_image, read_label, read_grid):
        with only_ours(str(file)), np.errstate(over="ignore"):
            read(file)
    is_ours(file), read_digest(file)
    check, volume = check_case({"id": "a", "image": str(file), "label": str(file)}, Expected(1, 3))
    assert all(str(file) in problem or "a: " in problem for problem in check.problems)
    if volume is None:
        assert check.problems
        return
    with pytest.MonkeyPatch.context() as patch, only_ours(str(file), "spacing", "voxels"):
        patch.setattr(geometry, "_installed_memory", lambda: MEMORY)
        preprocess_case(volume.image, volume.label, volume.affine, SETTINGS)
    with only_ours(str(file), "out.nii.gz"):
        write_segmentation(np.maximum(volume.label, 0), folder / "out.nii.gz", like=file, affine=volume.affine)


def archive(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def legacy(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def network() -> MedNeXt:
    torch.manual_seed(0)
    small = {"base_channels": 2, "expansion_ratio": (2,) * 9, "block_counts": (1,) * 9}
    return MedNeXt(3, 1, 2, encoder_kernel_size=3, decoder_kernel_size=3, deep_supervision=True, **small)


TRAINED = {
    **{
        "in_channels": 1,
        "out_channels": 2,
        "spacing": [1.0, 1.0, 1.0],
        "orientation": None,
        "normalization": ["zscore"],
    },
    **{"intensity": None, "patch_size": [32, 32, 32], "variant": "S", "kernel_size": 3, "channel_names": ["CT"]},
    **{"labels": ["background", "one"], "fold": 0, "training_cases": "1 cases, abc", "training_ids": ["abc"]},
    "package_version": "0.1.0",
}
WEIGHTS = network().state_dict()
FILES = [archive(WEIGHTS), legacy({"state_dict": WEIGHTS}), archive({"model": WEIGHTS, "epoch": 3})]


def read_checkpoint(file: Path) -> None:
    with only_ours(str(file)):
        read_state_dict(file)
    with only_ours(str(file)):
        read_settings(file)
    with only_ours(str(file)):
        load_weights(file, network())
    target = file.with_name("converted.pt")
    target.unlink(missing_ok=True)
    with only_ours(str(file)):
        convert(file, target)
    assert not list(target.parent.glob(".*.pt"))


@bounded(400)
@given(content=st.sampled_from(FILES).flatmap(damaged_bytes) | st.binary(max_size=60))
def test_damaged_checkpoints(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "model.pt"
    file.write_bytes(content)
    read_checkpoint(file)


@bounded(400)
@given(data=st.data())
def test_checkpoints_with_a_damaged_pickle(tmp_path_factory, data):
    """The index of the archive is whole, so that torch unpickles what is there."""
    file = tmp_path_factory.getbasetemp() / "model.pt"
    with zipfile.ZipFile(io.BytesIO(FILES[0])) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, data.draw(damaged_bytes(content, 2000)) if name.endswith("data.pkl") else content)
    read_checkpoint(file)


NAMES = st.sampled_from([*WEIGHTS, "stem.weight", "module.stem.weight", "model", "state_dict", "x"]) | st.text(
    max_size=5
)
TENSORS = st.lists(st.integers(0, 3), max_size=5).map(torch.zeros)
OBJECTS = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | TENSORS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.integers(), inner, max_size=4),
)


@bounded(80)
@given(replaced=st.dictionaries(NAMES, TENSORS | OBJECTS, max_size=4), removed=st.sets(NAMES, max_size=2), inside=NAMES)
def test_checkpoints_with_other_content(tmp_path_factory, replaced, removed, inside):
    file = tmp_path_factory.getbasetemp() / "model.pt"
    content = {name: tensor for name, tensor in {**WEIGHTS, **replaced}.items() if name not in removed}
    for whole in (content, {inside: content}, replaced):
        torch.save(whole, file)
        read_checkpoint(file)


@bounded(80)
@given(key=st.sampled_from([*TRAINED, "x"]), value=OBJECTS, removed=st.booleans())
def test_checkpoints_with_other_settings(tmp_path_factory, key, value, removed):
    file = tmp_path_factory.getbasetemp() / "model.pt"
    settings = {**TRAINED, key: value}
    if removed:
        del settings[key]
    torch.save(attach_settings(WEIGHTS, settings), file)
    read_checkpoint(file)


@bounded(100)
@given(replaced=st.dictionaries(st.sampled_from(list(WEIGHTS)), TENSORS, min_size=1, max_size=2))
def test_upkern_from_other_tensors(replaced):
    with only_ours(*replaced, "MedNeXt"):
        upkern({**WEIGHTS, **replaced}, network())


def damaged_folder(data, folder: Path) -> None:
    """Damage, remove or add files of a folder, and files that are folders."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=3, unique=True)):
        action = data.draw(st.sampled_from(["damage", "damage", "json", "remove", "empty", "folder"]))
        content = file.read_bytes()
        file.unlink()
        if action == "damage":
            file.write_bytes(data.draw(damaged_bytes(content)))
        elif action == "json":
            file.write_bytes(
                data.draw(damaged_json({"id": "a", "files": {"image.npy": 5}, "voxels_per_label": {"1": 2}}))
            )
        elif action == "empty":
            file.touch()
        elif action == "folder":
            file.mkdir()


@pytest.fixture(scope="module")
def cached(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("cached")
    cases = [write_case(folder / "data", f"case_{i}", i) for i in range(2)]
    preprocess_dataset(cases, SETTINGS, folder / "cache", 0, False)
    return folder / "cache", cases


@bounded(400)
@given(data=st.data())
def test_tampered_caches(tmp_path_factory, cached, data):
    """What is damaged is noticed and made again, or is an error; changed values in a file of the same size are not."""
    whole, cases = cached
    cache = tmp_path_factory.getbasetemp() / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    shutil.copytree(whole, cache)
    damaged_folder(data, cache)
    for case in cases:
        found = store.stored_content(case, SETTINGS, cache)
        assert found is None or (type(found[0]) is int and 0 in found[1])
    with only_ours(str(cache), "case_0", "case_1"):
        for paths in preprocess_dataset(cases, SETTINGS, cache, 0, False):
            assert Path(paths["image"]).is_relative_to(cache)
            assert np.load(paths["image"], mmap_mode="r").shape == (1, 12, 12, 18)
            assert np.load(paths["label"], mmap_mode="r").shape == (1, 12, 12, 18)
            with np.load(paths["foreground"]) as file:
                assert file.files == ["1"]


@bounded(400)
@given(data=st.data())
def test_folders_of_segmentations(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("folders")
    for name in ("pred", "ref"):
        for case in ("a", "b"):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / f"{case}.nii.gz").write_bytes(gzip.compress(NIFTI[1], 1, mtime=0))
    damaged_folder(data, folder)
    (folder / "out").mkdir()
    with only_ours(str(folder)):
        result = evaluate_folder(folder / "pred", folder / "ref", processes=1)
        assert all(str(folder) in problem for problem in result.problems.values())
    decision = Postprocessing((Step((1,)),))
    with only_ours(str(folder)):
        written, problems = apply_to_folder(folder / "pred", folder / "out", decision, processes=1)
        assert all(str(folder) in problem for problem in problems.values())
        assert all(file.is_file() for file in written)
    assert not list((folder / "out").glob(".*"))
    with only_ours(str(folder)):
        inference_cases(str(folder), str(folder / "pred"))
    shutil.rmtree(folder)
    assert not os.path.exists(folder)
