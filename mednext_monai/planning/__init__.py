"""Planning a training on the user's own data set, from its directory to the JSON that a bundle takes.

What lies where, each file one concept, in the order in which :py:func:`plan` goes through them (the data
set's layout, the reading of a file and the folds are in ``mednext_monai.data``, since training needs them as well):

- ``fingerprint``: reading, checking and measuring every case once, in parallel.
- ``memory``: GPU memory of the eight variants.
- ``planner``: the decisions.
- ``report``: the plan as text and as an HTML page; ``histograms``: its histograms.

``mednext plan DATASET_DIR --output my_task.json`` does it all.
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
