"""Planning training on a data set: from its directory to the JSON file that configures a bundle.

In the order of use by :py:func:`plan` (layouts, image files and folds are in ``mednext_monai.data``, since training
needs them as well):

- ``fingerprint``: reads, checks and measures each case once, in parallel.
- ``memory``: estimates the GPU memory of the eight variants.
- ``planner``: derives the plan.
- ``report``: the plan as text and as an HTML page; ``histograms``: its histograms.

The command is ``mednext plan DATASET_DIR --output my_task.json``.
"""

from .fingerprint import scan
from .planner import make_plan, plan
from .report import html_report, text_report

__all__ = [
    "html_report",
    "make_plan",
    "plan",
    "scan",
    "text_report",
]
