"""The engine of a prediction of many cases, and the data set that it reads.

- ``case_dataset``: the cases of a run; finished ones are skipped, and one that cannot be read does not stop the others.
- ``case_evaluator``: the evaluator that writes one case while the network works on the next.
- ``failures``: what is said about the cases that failed, and which errors concern more than their case.
"""

from .case_dataset import CaseDataset
from .case_evaluator import CaseEvaluator
from .failures import CasesFailed

__all__ = ["CaseDataset", "CaseEvaluator", "CasesFailed"]
