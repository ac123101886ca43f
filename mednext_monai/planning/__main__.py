"""``python -m mednext_monai.planning DATASET_DIR --output my_task.json``: the planning command."""

from __future__ import annotations

import functools
import sys

import fire

from .planner import plan
from .report import text_report


@functools.wraps(plan)
def run(*args, **kwargs) -> None:
    try:
        result = plan(*args, **kwargs)
    except (OSError, RuntimeError, ValueError) as e:
        print(e, file=sys.stderr)
        sys.exit(1)
    print(text_report(result))


if __name__ == "__main__":
    fire.Fire(run)
