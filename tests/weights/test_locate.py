"""Where the checkpoints of a fold are, and which one an inference finds."""

from __future__ import annotations

import pytest
import torch

from mednext_monai.bundles.library import PLACEHOLDER
from mednext_monai.weights import find_checkpoint, find_checkpoints, fold_folder, fold_name


def weights(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"w": torch.zeros(1)}, path)
    return str(path)


def test_fold_0_has_the_folder_and_every_other_one_a_folder_in_it():
    assert fold_folder("models", 0) == fold_folder("models", "0") == "models"
    assert fold_folder("models", 1) == fold_folder("models", "1") == "models/fold_1"
    assert fold_folder("models", "all") == "models/fold_all"


@pytest.mark.parametrize("fold", ["one", "../x", -1, 1.5, True, None])
def test_what_is_no_fold_is_refused(fold):
    with pytest.raises(ValueError, match=r"fold must be one of 0, 1, 2, \.\.\. or 'all', got"):
        fold_name(fold)


def test_a_named_checkpoint_takes_precedence_over_the_fold(tmp_path):
    weights(tmp_path / "model.pt")
    assert find_checkpoint("mine.pt", tmp_path, 1) == "mine.pt"
    assert find_checkpoint(2024, tmp_path) == "2024"


def test_the_weights_of_fold_0_are_found_first_and_those_of_a_fold_that_is_named(tmp_path):
    first, second = weights(tmp_path / "model.pt"), weights(tmp_path / "fold_1" / "model.pt")
    assert find_checkpoint(None, tmp_path) == find_checkpoint(None, tmp_path, 0) == first
    assert find_checkpoint(None, tmp_path, 1) == second
    assert find_checkpoint(None, tmp_path, 2) == f"{tmp_path}/fold_2/model.pt"  # loading it reports that it is absent


@pytest.mark.parametrize("placeholder", [True, False])
def test_the_only_fold_with_weights_is_found_and_the_log_says_so(tmp_path, placeholder, caplog):
    if placeholder:
        (tmp_path / "model.pt").write_bytes(PLACEHOLDER)
    assert find_checkpoint(None, tmp_path) == str(tmp_path / "model.pt")
    found = weights(tmp_path / "fold_2" / "model.pt")
    (tmp_path / "fold_3").mkdir()
    with caplog.at_level("INFO"):
        assert find_checkpoint(None, tmp_path) == found
    assert f"{tmp_path / 'model.pt'} has no weights: using {found}, the only fold that has" in caplog.text


def test_several_folds_with_weights_are_an_error_that_lists_them(tmp_path):
    one, two = weights(tmp_path / "fold_1" / "model.pt"), weights(tmp_path / "fold_all" / "model.pt")
    with pytest.raises(
        ValueError, match=f"fold: .*model.pt has no weights, but several folds do: {one}, {two}; choose"
    ):
        find_checkpoint(None, tmp_path)


def test_checkpoints_of_several_folds(tmp_path):
    for folder in (tmp_path, tmp_path / "fold_1", tmp_path / "fold_all"):
        folder.mkdir(exist_ok=True)
        torch.save({}, folder / "model.pt")
    expected = [str(tmp_path / "fold_1" / "model.pt"), str(tmp_path / "model.pt")]
    assert find_checkpoints(None, tmp_path, folds=[1, 0]) == expected
    assert find_checkpoints(None, tmp_path, fold=1) == expected[:1] == find_checkpoints(expected[0], tmp_path)
    with pytest.raises(FileNotFoundError, match=r"folds: no weights of fold 2 \(.*fold_2/model.pt\), 3 \("):
        find_checkpoints(None, tmp_path, folds=[0, 2, 3])
    for wrong in ([], [0, 0], [0, "0"]):
        with pytest.raises(ValueError, match="folds must name one or more folds, each once"):
            find_checkpoints(None, tmp_path, folds=wrong)
    with pytest.raises(ValueError, match="cannot be used together with fold, which is 1"):
        find_checkpoints(None, tmp_path, fold=1, folds=[0])
