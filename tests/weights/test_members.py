"""Which networks an ensemble has, what each of them sees, and what cannot be averaged."""

from __future__ import annotations

import json
import os
import re

import pytest
import torch
from helpers.bundles import make_member

from mednext_monai import bundles
from mednext_monai.weights import find_checkpoints, find_members, task_settings

CT = {"normalization": ["CT"], "intensity": [{"mean": 1.0, "sd": 2.0, "p005": 0.0, "p995": 9.0}]}


def members_of(bundle, *others, **options):
    checkpoints = find_checkpoints(None, bundle / "models")
    return find_members(checkpoints, task_settings({}, checkpoints), bundle, list(map(str, others)), **options)


def edit(bundle, **changes):
    file = bundle / "configs" / "inference.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_members_that_see_the_same_are_a_group(tmp_path):
    own = make_member("mednext_s_k3", tmp_path / "a")
    others = [
        make_member("mednext_s_k5", tmp_path / "b", spacing=[2, 1, 1]),
        make_member(
            "mednext_b_k3", tmp_path / "c", base_channels=2, normalization=["zscore"], spacing=[1.0000001, 1, 1]
        ),
        make_member("mednext_s_k3", tmp_path / "d", spacing=[2, 1, 1], patch_size=[16, 16, 32]),
        make_member("mednext_s_k3", tmp_path / "e", **CT),
        make_member("mednext_s_k3", tmp_path / "f", orientation="RAS"),
        make_member("mednext_s_k3", tmp_path / "g", spacing=[2, 1, 1]),
    ]
    found = members_of(own, *others)
    assert found.checkpoints == [str(bundle / "models" / "model.pt") for bundle in (own, *others)]
    groups = [(group.key, group.members, group.patch_size) for group in found.groups]
    assert groups == [
        ("image", [0, 2], [32, 32, 32]),
        ("image_1", [1, 6], [32, 32, 32]),
        ("image_1", [3], [16, 16, 32]),
        ("image_2", [4], [32, 32, 32]),
        ("image_3", [5], [32, 32, 32]),
    ]
    assert found.other_keys == ["image_1", "image_1", "image_2", "image_3"] and found.member_numbers[0] == [0, 2]
    images = found.other_images
    assert images["image_1"]["spacing"] == [2, 1, 1] and images["image_3"]["orientation"] == "RAS"
    assert images["image_2"]["intensity"] == {0: CT["intensity"][0]} and "image" not in images
    networks = found.other_networks(torch.device("cpu"), torch.channels_last_3d)
    assert [network.stem.weight.shape[0] for network in networks] == [4, 2, 4, 4, 4, 4]


def test_a_bundle_counts_once(tmp_path, monkeypatch):
    own, other = make_member("mednext_s_k3", tmp_path / "a"), make_member("mednext_s_k5", tmp_path / "b")
    os.symlink(own, tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    again = (tmp_path / "link", "a/mednext_s_k3/", other, "b/../b/mednext_s_k5", own)
    expected = [str(bundle / "models" / "model.pt") for bundle in (own, other)]
    assert members_of(own, *again).checkpoints == expected
    alone = members_of(own)
    assert alone.checkpoints == expected[:1] and alone.other_keys == [] and alone.other_images == {}


def test_what_a_checkpoint_does_not_say_is_that_of_its_config_and_its_tensors(tmp_path):
    own = make_member("mednext_s_k3", tmp_path / "a")
    other = make_member("mednext_s_k3", tmp_path / "b", stated=False)
    edit(other, spacing=[3.0, 3.0, 1.0], patch_size=64, normalization=["none"])
    (group,) = members_of(own, other).groups[1:]
    assert (group.preprocessing["spacing"], group.preprocessing["normalization"]) == ([3, 3, 1], ["none"])
    assert group.patch_size == [64, 64, 64]
    edit(other, spacing="$[1.0] * 3")
    with pytest.raises(ValueError, match=r"ensemble: .*b/mednext_s_k3: spacing in .* is the expression"):
        members_of(own, other)
    edit(other, spacing=None, out_channels=4)
    with pytest.raises(
        ValueError, match=r"b/mednext_s_k3: .*model.pt is a MedNeXt.* 3 classes.*, but out_channels is 4"
    ):
        members_of(own, other)


DISAGREEMENTS = {
    "classes": ({"out_channels": 4}, "{other} has out_channels 4, {own} has 3: their probabilities cannot be averaged"),
    "channels": ({"in_channels": 2}, "{other} has in_channels 2, {own} has 1"),
    "names": (
        {"labels": ["background", "inner", "outer"]},
        "{other} was trained with the classes ['background', 'inner', 'outer'], {own} with ['background', 'outer'",
    ),
}


@pytest.mark.parametrize("kind", DISAGREEMENTS)
def test_bundles_that_disagree_are_named(tmp_path, kind):
    change, message = DISAGREEMENTS[kind]
    own, other = make_member("mednext_s_k3", tmp_path / "a"), make_member("mednext_s_k5", tmp_path / "b", **change)
    with pytest.raises(ValueError, match=re.escape("ensemble: " + message.format(own=own, other=other))):
        members_of(own, other)


def test_channels_may_have_other_names_but_no_other_order(tmp_path):
    def member(folder, *names):
        return make_member("mednext_s_k3", tmp_path / folder, in_channels=2, channel_names=list(names))

    own, renamed, swapped = member("a", "T1", "T2"), member("b", "t1w", "t2w"), member("c", "T2", "T1")
    assert len(members_of(own, renamed).checkpoints) == 2
    with pytest.raises(ValueError, match=r"with the channels \['T2', 'T1'\]"):
        members_of(own, swapped)


def test_folders_that_are_no_trained_bundles_are_named(tmp_path):
    own, untrained = make_member("mednext_s_k3", tmp_path / "a"), bundles.copy("mednext_l_k5", tmp_path)
    with pytest.raises(ValueError, match=f"ensemble: {tmp_path} is not the folder of a bundle"):
        members_of(own, tmp_path)
    with pytest.raises(FileNotFoundError, match=f"ensemble: {untrained} has no weights at {untrained}/models/model.pt"):
        members_of(own, untrained)
    with pytest.raises(FileNotFoundError, match=f"ensemble: {untrained} has no weights at .*fold_3/model.pt"):
        members_of(own, untrained, fold=3)
    (untrained / "models" / "model.pt").write_bytes(b"cut")
    with pytest.raises(ValueError, match=f"ensemble: {untrained}: .*model.pt cannot be read"):
        members_of(own, untrained)
    torch.save({"weight": torch.zeros(1)}, untrained / "models" / "model.pt")
    with pytest.raises(ValueError, match=f"ensemble: {untrained}: these are not the tensors of a MedNeXt"):
        members_of(own, untrained)
