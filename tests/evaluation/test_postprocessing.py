"""Post-processing by largest components: the original's decisions, its trap, and the application to folders."""

from __future__ import annotations

import json
import zlib

import nibabel as nib
import numpy as np
import pytest
from helpers.reference import load_reference
from helpers.segmentations import GRID, SPACING, make_component_set, write_pairs

from mednext_monai.evaluation import (
    Labels,
    Postprocessing,
    apply_postprocessing,
    apply_to_folder,
    find_postprocessing,
    read_postprocessing,
)
from mednext_monai.evaluation.postprocessing import Step

RECORDED = load_reference("postprocessing")["sets"]
TWO = Labels({"one": 1, "two": 2})


def volume(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Return a volume with boxes ``(value, start, stop, width)``: along the first axis, and along the two others."""
    array = np.zeros((20, 5, 5), np.uint8)
    for value, start, stop, width in boxes:
        array[start:stop, :width, :width] = value
    return array


def decide(tmp_path, pairs, labels=TWO, **options) -> Postprocessing:
    return find_postprocessing(*write_pairs(tmp_path, pairs), labels, processes=1, **options)


def steps(found: Postprocessing) -> list[tuple[int, ...]]:
    return [step.classes for step in found.steps]


@pytest.mark.parametrize("mode", ["published", "minimum_sizes"])
@pytest.mark.parametrize("seed", RECORDED)
def test_the_decision_is_the_original_s(tmp_path, seed, mode):
    classes, pairs = make_component_set(int(seed))
    expected = RECORDED[seed][mode]
    labels = Labels({str(value): value for value in range(1, classes + 1)})
    found = decide(tmp_path, pairs, labels, minimum_sizes=mode == "minimum_sizes")
    assert steps(found) == [tuple(c) if isinstance(c, list) else (c,) for c in expected["for_which_classes"]]
    for ours, theirs in (
        ("raw", "dc_per_class_raw"),
        ("all_classes_joined", "dc_per_class_pp_all"),
        ("each_class_alone", "dc_per_class_pp_per_class"),
    ):
        assert {name: dice[ours] for name, dice in found.dice.items() if ours in dice} == expected[theirs]
    (tmp_path / "original.json").write_text(json.dumps(expected))
    for decision in (found, read_postprocessing(tmp_path / "original.json")):
        assert decision.steps == found.steps
        results = [apply_postprocessing(prediction, decision, SPACING) for prediction, _ in pairs]
        assert [zlib.crc32(result.tobytes()) for result in results] == expected["final_crc32"]


def test_recorded_decisions_are_of_every_kind():
    kinds = {str(recorded["published"]["for_which_classes"]) for recorded in RECORDED.values()}
    assert {"[]", "[[1]]", "[2]", "[1, 2]", "[[1, 2], 1]", "[[1, 2, 3], 3]"} <= kinds


def test_the_joint_step_is_accepted_if_a_class_rises_and_none_falls(tmp_path):
    reference = volume((1, 2, 6, 4), (2, 6, 10, 4))
    found = decide(tmp_path, [(volume((1, 2, 6, 4), (2, 6, 10, 4), (1, 14, 16, 2)), reference)])
    assert steps(found) == [(1, 2)]
    assert found.dice["one"] == {
        "raw": 2 * 64 / (64 + 72),
        "raw_values": 1,
        "all_classes_joined": 1.0,
        "all_classes_joined_values": 1,
        "each_class_alone": 1.0,
        "each_class_alone_values": 1,
    }
    assert found.settings["cases"] == 1 and found.settings["classes"] == {"one": 1, "two": 2}


def test_the_joint_step_is_refused_if_a_class_falls(tmp_path):
    reference = volume((1, 2, 6, 4), (2, 12, 14, 4))  # two is not connected to one
    prediction = volume((1, 2, 6, 4), (2, 12, 14, 4), (1, 17, 19, 1))
    found = decide(tmp_path, [(prediction, reference)])
    assert found.dice["two"]["all_classes_joined"] == 0 and found.dice["one"]["all_classes_joined"] == 1
    assert steps(found) == [(1,)]  # alone, it rises from the raw result


def test_a_class_alone_is_compared_with_the_result_of_the_joint_step(tmp_path):
    reference = volume((1, 2, 6, 4), (2, 6, 10, 4))
    prediction = volume((1, 2, 6, 4), (2, 6, 10, 4), (1, 10, 11, 2), (1, 14, 16, 2))
    found = decide(tmp_path, [(prediction, reference)])
    assert steps(found) == [(1, 2), (1,)]  # first the far piece, then the one that touches class two
    dice = found.dice["one"]
    assert dice["raw"] < dice["all_classes_joined"] < dice["each_class_alone"] == 1
    assert (apply_postprocessing(prediction, found) == reference).all()


def test_a_class_that_is_only_equal_is_not_accepted(tmp_path):
    reference = volume((1, 2, 6, 4), (2, 6, 10, 4))
    assert steps(decide(tmp_path, [(reference, reference)])) == []
    assert "none: nothing raises the Dice" in decide(tmp_path, [(reference, reference)]).describe()


def test_all_components_of_the_same_largest_size_stay():
    prediction = volume((1, 0, 2, 3), (1, 4, 6, 3), (1, 8, 9, 3))
    result = apply_postprocessing(prediction, Postprocessing((Step((1,)),)))
    assert (result == volume((1, 0, 2, 3), (1, 4, 6, 3))).all()
    assert prediction[8].any()  # the argument is not changed


def test_neighbors_share_a_face():
    prediction = np.zeros((6, 6, 6), np.uint8)
    prediction[0:2, 0:2, 0:2] = 1
    prediction[2, 2, 2] = 1  # shares a corner
    prediction[2, 1, 0] = 1  # shares a face
    result = apply_postprocessing(prediction, Postprocessing((Step((1,)),)))
    assert result[2, 2, 2] == 0 and result[2, 1, 0] == 1


def test_components_of_a_minimum_size_stay():
    prediction = volume((1, 0, 3, 3), (1, 5, 7, 2), (1, 9, 10, 2))  # 27, 8 and 4 voxels of 3 mm³
    sized = Postprocessing((Step((1,), 24.0),))
    assert (apply_postprocessing(prediction, sized, SPACING) == volume((1, 0, 3, 3), (1, 5, 7, 2))).all()
    with pytest.raises(ValueError, match="the spacing is needed"):
        apply_postprocessing(prediction, sized)


def test_the_minimum_size_is_the_smallest_of_the_largest_components(tmp_path):
    reference = volume((1, 0, 3, 3))
    pairs = [(volume((1, 0, 3, 3), (1, 9, 10, 2)), reference), (volume((1, 0, 2, 2)), reference)]
    found = decide(tmp_path, pairs, Labels({"one": 1}), minimum_sizes=True)
    assert found.steps == (Step((1,), 24.0),)
    assert "and all of at least 24 mm³" in found.describe()


def trap() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return cases in which removing the smaller piece deletes a false positive, and a true part elsewhere."""
    split = volume((1, 0, 4, 3), (1, 8, 11, 3))  # both pieces are right
    absent = (volume((2, 0, 4, 4), (1, 8, 9, 1)), volume((2, 0, 4, 4)))
    return [(split, split), absent]


def test_the_trap_is_sprung_as_published_and_avoided_by_strict(tmp_path):
    found = decide(tmp_path, trap())
    assert found.dice["one"]["raw"] == 0.5 and found.dice["one"]["raw_values"] == 2
    assert found.dice["one"]["all_classes_joined"] == pytest.approx(8 / 11)  # worse in the only case that has it
    assert found.dice["one"]["all_classes_joined_values"] == 1
    assert steps(found) == [(1, 2)]
    assert "the means of one are over different numbers of cases" in found.describe()
    assert "--strict" in found.describe()
    strict = decide(tmp_path, trap(), strict=True)
    assert steps(strict) == [] and strict.settings["strict"] is True


def test_absent_classes_may_count_as_one(tmp_path):
    found = decide(tmp_path, trap(), count_absent_as_one=True)
    assert found.dice["one"]["all_classes_joined"] == pytest.approx((8 / 11 + 1) / 2)
    assert found.dice["one"]["all_classes_joined_values"] == found.dice["one"]["raw_values"] == 2
    assert "different numbers" not in found.describe()


def test_ignored_voxels_do_not_decide(tmp_path):
    reference = volume((1, 2, 6, 4), (9, 12, 20, 5))
    pair = (volume((1, 2, 6, 4), (1, 14, 16, 2)), reference)
    assert steps(decide(tmp_path, [pair], Labels({"one": 1}, ignore=9))) == []
    assert steps(decide(tmp_path, [pair], Labels({"one": 1, "nine": 9}))) == [(1, 9)]
    assert decide(tmp_path, [pair], Labels(ignore=9)).settings["classes"] == {"1": 1}


def test_a_decision_needs_all_cases(tmp_path):
    box = volume((1, 2, 6, 4))
    folders = write_pairs(tmp_path, [(box, box)] * 3)
    (tmp_path / "pred/case_1.nii.gz").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"a decision needs all of them:\n  .*case_1.nii.gz: cannot be read"):
        find_postprocessing(*folders, processes=1)
    (tmp_path / "pred/case_1.nii.gz").unlink()
    with pytest.raises(ValueError, match="no prediction in"):
        find_postprocessing(*folders, processes=1)
    assert find_postprocessing(*folders, processes=1, allow_missing=True).settings["cases"] == 2
    with pytest.raises(ValueError, match=r"contains the label value\(s\) \[1\]; the classes are \[2\]"):
        find_postprocessing(*folders, Labels({"two": 2}), processes=1, allow_missing=True)
    empty = write_pairs(tmp_path / "empty", [(box * 0, box * 0)])
    with pytest.raises(ValueError, match="no foreground: there is nothing to decide"):
        find_postprocessing(*empty, processes=1)


def test_a_decision_survives_its_file(tmp_path):
    found = decide(tmp_path, make_component_set(4)[1], Labels({"a": 1, "b": 2}), minimum_sizes=True)
    found.write(tmp_path / "postprocessing.json")
    assert read_postprocessing(tmp_path / "postprocessing.json") == found
    assert found.steps[0].classes == (1, 2) and found.steps[0].minimum_size_mm3 == 12.0


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "{}", "3", "\\xff", '{"keep_largest_component": [{"classes": [0]}]}', '{"for_which_classes": 1}'),
        '{"keep_largest_component": [{"classes": [1], "minimum_size_mm3": "2"}]}',
        '{"keep_largest_component": [{"classes": [], "minimum_size_mm3": null}]}',
        '{"keep_largest_component": [], "dice": null}',
        '{"keep_largest_component": [], "dice": {"a": {"raw": "high"}}}',
        '{"keep_largest_component": [], "settings": [1e999]}',
        '{"for_which_classes": [1], "min_valid_object_sizes": "(((((" }',
    ],
)
def test_files_that_are_no_decision_are_named(tmp_path, text):
    (tmp_path / "pp.json").write_text(text)
    with pytest.raises(ValueError, match="pp.json: (is not a decision about post-processing|not valid JSON)"):
        read_postprocessing(tmp_path / "pp.json")
    with pytest.raises(FileNotFoundError, match="absent.json: no such file"):
        read_postprocessing(tmp_path / "absent.json")


def test_a_folder_is_processed_and_the_raw_results_stay(tmp_path):
    raw = volume((1, 2, 6, 4), (1, 14, 16, 2))
    write_pairs(tmp_path, [(raw, raw)] * 2)
    (tmp_path / "pred/case_1.nii.gz").write_bytes(b"damaged")
    decision = Postprocessing((Step((1,)),))
    written, problems = apply_to_folder(tmp_path / "pred", tmp_path / "out", decision, processes=1)
    assert written == [tmp_path / "out/case_0.nii.gz"] and list(problems) == ["case_1"]
    result = nib.load(written[0])
    assert (np.asarray(result.dataobj) == volume((1, 2, 6, 4))).all() and np.allclose(result.affine, GRID)
    assert (np.asarray(nib.load(tmp_path / "pred/case_0.nii.gz").dataobj) == raw).all()
    assert read_postprocessing(tmp_path / "out/postprocessing.json").steps == decision.steps
    with pytest.raises(ValueError, match="choose another folder than that of the images"):
        apply_to_folder(tmp_path / "pred", tmp_path / "pred", decision)
