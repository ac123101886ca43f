"""Planning a training on the user's own data set, from its directory to the JSON that a bundle takes.

What lies where, each file one concept, in the order in which :py:func:`plan` goes through them:

- ``dataset``: the three layouts, Decathlon, nnU-Net v1 and nnU-Net v2.
- ``folds``: which cases train and which validate.
- ``reading``: one image file.
- ``checks``: what is wrong with a case, or with all of them together.
- ``fingerprint``: the figures of a case.
- ``scan``: reading, checking and measuring every case once, in parallel.
- ``memory``: GPU memory of the eight variants.
- ``planner``: the decisions.
- ``pictures``, ``report``: the plan for people.

``python -m mednext_monai.planning DATASET_DIR --output my_task.json`` does it all.
"""

from .dataset import Dataset, DatasetError, read_dataset
from .folds import make_folds, read_groups, read_splits, select_fold
from .planner import make_plan, plan
from .report import html_report, text_report
from .scan import scan

__all__ = [
    "Dataset",
    "DatasetError",
    "html_report",
    "make_folds",
    "make_plan",
    "plan",
    "read_dataset",
    "read_groups",
    "read_splits",
    "scan",
    "select_fold",
    "text_report",
]
