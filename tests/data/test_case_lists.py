"""Lists of cases that are made when they are first used."""

from __future__ import annotations

import pickle

import pytest

from mednext_monai.data import CaseList, InferenceCases, inference_cases


def test_a_list_is_made_once_and_only_when_it_is_used(tmp_path):
    calls = []

    def make(count: int) -> list[dict]:
        calls.append(count)
        return [{"id": str(number)} for number in range(count)]

    cases = CaseList(make, count=3)
    assert calls == []
    assert (
        [case["id"] for case in cases] == ["0", "1", "2"]
        and len(cases) == 3
        and cases[1:] == [{"id": "1"}, {"id": "2"}]
    )
    assert calls == [3]
    nowhere = InferenceCases(dataset_dir=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        len(nowhere)


def test_the_images_are_those_of_the_function_also_in_another_process(dataset):
    lazy, listed = InferenceCases(dataset_dir=str(dataset)), inference_cases(str(dataset))
    assert list(pickle.loads(pickle.dumps(lazy))) == listed == list(lazy)
