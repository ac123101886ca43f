"""Why a case failed, in one text, and whether the next ones would fail, too."""

from __future__ import annotations

import errno
import pickle

import pytest
import torch
from monai.transforms import Compose

from mednext_monai.engines import CasesFailed
from mednext_monai.engines.failures import concerns_all, is_of_a_worker, reason
from mednext_monai.options import parse_switch


def caught(run) -> BaseException:
    with pytest.raises(Exception) as error:
        run()
    return error.value


def raising(error: BaseException):
    def run(data):
        raise error

    return run


def test_the_reason_is_our_sentence_or_the_cause_below_the_errors_of_monai():
    assert reason(caught(lambda: Compose([lambda x: parse_switch("mirror", "off")])(1))) == (
        "mirror must be true or false, got 'off'."
    )
    assert reason(caught(lambda: Compose([raising(IndexError("too far"))])(1))) == "IndexError: too far"
    assert reason(AssertionError()) == "AssertionError"
    assert reason(MemoryError()) == "not enough memory for this case."
    assert reason(torch.OutOfMemoryError("tried 2 GiB")) == "not enough memory for this case: tried 2 GiB"


@pytest.mark.parametrize(
    ("error", "all_of_them"),
    [
        (OSError(errno.ENOSPC, "full"), True),
        (OSError(errno.EDQUOT, "quota"), True),
        (OSError(errno.EACCES, "no permission"), False),
        (torch.AcceleratorError("CUDA error"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "), True),
        (RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly"), True),
        (RuntimeError("size mismatch"), False),
        (ValueError("no image"), False),
    ],
)
def test_what_meets_all_cases_is_told_from_what_meets_one(error, all_of_them):
    assert concerns_all(error) == all_of_them
    assert concerns_all(caught(lambda: Compose([raising(error)])(1))) == all_of_them
    assert is_of_a_worker(error) == ("worker" in str(error))


def test_the_error_survives_the_way_between_processes():
    error = CasesFailed({"b": "cut", "a": "odd"}, 7)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "2 of 7 cases could not be segmented:\n  a: odd\n  b: cut"
    assert again.failures == {"a": "odd", "b": "cut"} and again.total == 7
