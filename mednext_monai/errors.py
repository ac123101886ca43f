"""What a user sees when a run fails: our sentence, as the last thing on the screen.

MONAI wraps an error of a component in errors of its own, whose advice is printed below it. The commands of ``mednext``
print the sentence alone; a run that was started through MONAI prints the traceback and below it the sentence.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from pathlib import Path
from types import TracebackType

__all__ = ["ERROR_FILE", "TRACEBACK", "diagnosis", "print_diagnosis_last"]

# Environment variables: the file in which a run leaves its sentence for the command that started it, and does not print
# it; and 1, to print the traceback all the same.
ERROR_FILE = "MEDNEXT_ERROR_FILE"
TRACEBACK = "MEDNEXT_TRACEBACK"

PACKAGE = str(Path(__file__).resolve().parent)
DIAGNOSED = (ValueError, OSError, FloatingPointError, RuntimeError)
START = "Traceback (most recent call last):\n"
RAISED = re.compile(r'.*  File "([^"]+)", line \d+, in [^\n]*\n(?:    [^\n]*\n)*[\w.]*Error: (.*)', re.DOTALL)
CHAINED = re.compile(r"\n\n(?:The above exception was|During handling of)[^\n]*:\n\n$")


def diagnosis(error: BaseException) -> str | None:
    """
    Return the message of the error that this package raised, or ``None`` if none of the chained errors is ours.

    If it is the cause that another error of ours names, the message of that one is returned, which says where.

    An error of a data loader's process is one text that contains the traceback there; the message is found in it.

    Args:
        error: the error that ended a run, as it arrived at the top.
    """
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    for place, item in reversed(list(enumerate(chain))):
        if _is_ours(item):
            while place and chain[place - 1].__cause__ is item and _is_ours(chain[place - 1]):
                place, item = place - 1, chain[place - 1]
            return str(item)
        if START in str(item):
            sentence = _from_text(str(item))
            if sentence is not None:
                return sentence
    return None


def _is_ours(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and isinstance(error, DIAGNOSED) and frames[-1].filename.startswith(PACKAGE + os.sep)


def _from_text(text: str) -> str | None:
    """Return the message of the first error in a printed chain of tracebacks that this package raised."""
    for part in text.split(START)[1:]:
        match = RAISED.match(CHAINED.sub("", part))
        if match and match[1].startswith(PACKAGE + os.sep):
            return match[2].strip()
    return None


def print_diagnosis_last() -> None:
    """Have an error that ends this process print its diagnosis last; an exception hook of another origin is kept."""
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sentence, file = diagnosis(error), os.environ.get(ERROR_FILE)
    is_told = sentence is not None or issubclass(kind, KeyboardInterrupt)
    if file is None or not is_told or os.environ.get(TRACEBACK) == "1":
        sys.__excepthook__(kind, error, trace)
    if sentence is not None and file is None:
        print(f"\nmednext: error: {sentence}", file=sys.stderr)
    elif sentence is not None and file is not None and not os.path.getsize(file):  # the first of several processes
        Path(file).write_text(sentence)
