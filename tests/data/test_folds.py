"""The folds are the original's; the user's own win; groups stay on one side."""

from __future__ import annotations

import json

import pytest
from helpers.reference import load_reference

from mednext_monai.data.folds import make_folds, read_groups, read_splits, select_fold


@pytest.mark.parametrize("count, expected", load_reference("folds").items())
def test_folds_are_the_originals(count, expected):
    ids = [f"case_{i:04d}" for i in range(int(count))]
    splits = make_folds(reversed(ids))
    assert [split["val"] for split in splits] == [[ids[i] for i in fold] for fold in expected]
    for split in splits:
        assert split["train"] == sorted(set(ids) - set(split["val"]))


def test_groups_of_one_case_change_nothing_and_larger_groups_stay_together():
    ids = [f"case_{i:02d}" for i in range(23)]
    assert make_folds(ids, groups={case: f"patient {99 - i}" for i, case in enumerate(ids)}) == make_folds(ids)
    groups = {case: f"patient {i % 9}" for i, case in enumerate(ids)}
    splits = make_folds(ids, groups)
    assert sorted(case for split in splits for case in split["val"]) == ids
    for split in splits:
        assert {groups[case] for case in split["train"]}.isdisjoint(groups[case] for case in split["val"])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="unique, got more than once: a"):
        make_folds(["a", "a", "b", "c", "d", "e"])
    with pytest.raises(ValueError, match="at most the number of cases, 3; got 5"):
        make_folds(["a", "b", "c"], folds=5)
    with pytest.raises(ValueError, match="at most the number of groups, 2; got 5"):
        make_folds(list("abcdef"), {case: "x" if case < "c" else "y" for case in "abcdef"}, folds=5)
    with pytest.raises(ValueError, match="without a group: b"):
        make_folds(["a", "b"], {"a": "x"}, folds=2)


def test_few_cases_have_as_many_folds_as_cases_and_a_single_one_has_none():
    splits = make_folds(["c", "a", "b"])
    assert sorted(split["val"] for split in splits) == [["a"], ["b"], ["c"]]
    assert all(sorted(split["train"] + split["val"]) == ["a", "b", "c"] for split in splits)
    assert len(make_folds(list("abcdef"), {case: "x" if case < "c" else "y" for case in "abcdef"})) == 2
    with pytest.raises(ValueError, match="1 case cannot be split.*--fold all"):
        make_folds(["a"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"train": "abc", "val": ["d"]}]', r"fold 0: \"train\" must be a list of case ids.*got 'abc'"),
        (b'[{"train": ["a"], "val": null}]', r'fold 0: "val" must be a list of case ids that is not empty, got None'),
        (b'[{"train": ["a"], "val": [null]}]', r'fold 0: "val" must contain case ids only, got None'),
        (b'[{"train": [["a"]], "val": ["b"]}]', r"fold 0: \"train\" must contain case ids only, got \['a'\]"),
        (b"[7]", r"fold 0 must be .*, got 7"),
        (b'{"train": ["a"], "val": ["b"]}', r"must be a list of .*, got {'train'"),
        (b'[{"train": ["\xe4"], "val": ["b"]}]', "not valid JSON in UTF-8"),
        (b"[" * 100_000, "not valid JSON in UTF-8"),
    ],
)
def test_a_wrong_value_in_own_splits_is_one_line(tmp_path, content, message):
    (tmp_path / "splits_final.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"splits_final.json: {message}") as error:
        read_splits(tmp_path / "splits_final.json", ["a", "b"])
    assert "\n" not in str(error.value)


def test_own_splits_are_read_and_checked(tmp_path):
    path = tmp_path / "splits_final.json"
    own = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["b", "c"], "val": ["a"]}]
    path.write_text(json.dumps(own))
    assert read_splits(path, ["a", "b", "c"]) == own
    with pytest.raises(ValueError, match="fold 0 names cases that the data set lacks: c"):
        read_splits(path, ["a", "b"])
    with pytest.raises(ValueError, match="fold 1 has groups in both train and val: p"):
        read_splits(path, ["a", "b", "c"], {"a": "p", "b": "p", "c": "q"})
    path.write_text(json.dumps([{"train": ["a", "b"], "val": ["b"]}]))
    with pytest.raises(ValueError, match="fold 0 has cases in both train and val: b"):
        read_splits(path, ["a", "b", "c"])
    for text in ("[]", "{}", '[{"train": ["a"]}]', "["):
        path.write_text(text)
        with pytest.raises(ValueError, match="splits_final.json: "):
            read_splits(path, ["a"])


def test_groups_are_read_with_and_without_heading(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text("case,patient\na,1\nb, 1\n\nother,2\n")
    assert read_groups(path, ["a", "b"]) == {"a": "1", "b": "1"}
    path.write_text("a,1\nb,2\n")
    assert read_groups(path, ["a", "b"]) == {"a": "1", "b": "2"}
    with pytest.raises(ValueError, match="no group for 1 of 3 cases: c"):
        read_groups(path, ["a", "b", "c"])
    path.write_text("a,1\na,2\n")
    with pytest.raises(ValueError, match="case a has two groups, 1 and 2"):
        read_groups(path, ["a"])
    path.write_text("a\n")
    with pytest.raises(ValueError, match="must be 'case id,group id', got 'a'"):
        read_groups(path, ["a"])
    with pytest.raises(ValueError, match="cannot be read"):
        read_groups(tmp_path / "none.csv", ["a"])


def test_a_fold_is_selected_by_number_or_all():
    splits = make_folds(list("abcde"))
    assert select_fold(splits, 2, list("abcde")) == select_fold(splits, "2", list("abcde")) == splits[2]
    assert select_fold(splits, "all", list("edcba")) == {"train": list("abcde"), "val": list("abcde")}
    for fold in (5, -1, "none"):
        with pytest.raises(ValueError, match=r"one of \[0, 1, 2, 3, 4\] or 'all', got"):
            select_fold(splits, fold, list("abcde"))
