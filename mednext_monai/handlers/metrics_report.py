"""The tables of an evaluation: the metrics of each case and their summary, by the names of the classes.

MONAI's ``MetricsSaver`` names the columns ``class0``, ``class1``, ... by their position, so that ``class0`` is label 1
if the background is not evaluated.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ignite.distributed as idist
from monai.handlers import MetricsSaver
from monai.handlers.utils import write_metrics_reports
from monai.utils import string_list_all_gather

if TYPE_CHECKING:
    from ignite.engine import Engine

__all__ = ["MetricsReport"]

TAKEN = ("filename", "mean")  # columns that MONAI adds


class MetricsReport(MetricsSaver):
    """
    MONAI's ``MetricsSaver`` for all metrics of an evaluation, with a column of its name for each class.

    It writes ``metrics.csv``, and for each metric ``<name>_raw.csv``, with a row for each case, and
    ``<name>_summary.csv``, with a row for each class.

    Args:
        save_dir: folder of the tables.
        class_names: names of the classes by value, background first. A metric has a column for each of them, or for
            each but the background.
    """

    def __init__(self, save_dir: str, class_names: Sequence[str]) -> None:
        super().__init__(
            save_dir,
            metric_details="*",
            batch_transform=lambda batch: [case["image"].meta for case in batch],
            summary_ops="*",
        )
        self.class_names = list(class_names)

    def __call__(self, engine: Engine) -> None:
        """
        Args:
            engine: the evaluator.
        """
        distributed = idist.get_world_size() > 1
        images = string_list_all_gather(strings=self._filenames) if distributed else self._filenames
        if idist.get_rank() != self.save_rank:
            return
        os.makedirs(self.save_dir, exist_ok=True)
        write_metrics_reports(self.save_dir, None, engine.state.metrics, None, None)
        for name, values in engine.state.metric_details.items():
            columns = values.shape[1] if values.ndim > 1 else 1
            write_metrics_reports(
                self.save_dir,
                [_cell(image) for image in images],
                None,
                {name: values},
                self.summary_ops,
                class_labels=self._labels(columns),
            )

    def _labels(self, columns: int) -> list[str] | None:
        """Return the names of the columns, or ``None`` if they are neither all classes nor all but the background."""
        count = len(self.class_names)
        if columns not in (count, count - 1):
            return None
        names = [f"{name}_{value}" if name in TAKEN else name for value, name in enumerate(self.class_names)]
        return [_cell(name) for name in names[count - columns :]]


def _cell(text: str) -> str:
    """Return a text as a cell of a CSV file, in quotes if it contains a comma, a quote or a line break."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([text])
    return line.getvalue()
