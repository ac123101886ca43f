"""The evaluation of a network: the metrics of every case, and their tables at the end.

MONAI's ``MetricsSaver`` names its columns ``class0``, ``class1``, ... by position, knows neither regions nor an ignored
label, and its metrics have other values where a class is absent. The metrics and tables here are those of
``mednext_monai.evaluation``.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from ignite.engine import Events
from monai.utils import ImageMetaKey, MetaKeys

from ..distributed import gather
from ..evaluation import Evaluation, Labels, Part, finish_evaluation, score_case, summarize
from ..evaluation.cases import Pair
from ..evaluation.folder import surface_settings
from ..options import switch
from ..preprocessing.geometry import spacing_of
from .case_names import case_names

if TYPE_CHECKING:
    from ignite.engine import Engine

    from ..evaluation import ClassScores

__all__ = ["MetricsReport"]

SHOWN = {"dice": "mean_dice", "surface_dice": "mean_surface_dice", "hd95_mm": "mean_hd95_mm"}


class MetricsReport:
    """
    Compare the segmentations of an evaluator with their labels and write the tables of ``mednext evaluate-folder``.

    The output of the evaluator, after its postprocessing, must be a list of dictionaries with ``"pred"`` and
    ``"label"``, ``MetaTensor`` ``(1, X, Y, Z)`` of class indices on one grid. In a distributed run the first process
    writes the tables of the cases of all processes; of a part of an evaluation the rows, and the tables if it is the
    last part. The means over classes (over regions, if only these are evaluated) are the metrics of the evaluator:
    ``mean_dice``, ``mean_surface_dice`` and ``mean_hd95_mm``.

    Args:
        output_dir: folder of the tables.
        labels: what is evaluated, with its classes.
        settings: what is evaluated, written to ``metrics.json``.
        tolerance: of the surface Dice, in mm. Defaults to 1.0.
        tolerance_in_voxels: see :py:func:`~mednext_monai.evaluation.score_case`. Defaults to ``False``.
        format: see :py:func:`~mednext_monai.evaluation.finish_evaluation`. Defaults to ``"table"``.
        part: see there. Defaults to ``None``: all cases.
        overwrite: see there. Defaults to ``False``.
    """

    def __init__(
        self,
        output_dir: str | PathLike,
        labels: Labels,
        settings: Mapping[str, Any],
        tolerance: float = 1.0,
        tolerance_in_voxels: bool | str = False,
        format: str = "table",
        part: Part | None = None,
        overwrite: bool | str = False,
    ) -> None:
        self.output_dir = output_dir
        self.labels = labels
        self.settings = dict(settings)
        self.tolerance = tolerance
        self.tolerance_in_voxels = bool(switch(tolerance_in_voxels=tolerance_in_voxels))
        self.format = format
        self.part = part
        self.overwrite = bool(switch(overwrite=overwrite))
        self._cases: list[tuple[str, Pair, list[ClassScores]]] = []

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the evaluator.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, lambda _: self._cases.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _score(self, engine: Engine) -> None:
        for name, sample in zip(case_names(engine.state.batch), engine.state.output):
            prediction, label = sample["pred"], sample["label"]
            scores = score_case(
                name,
                prediction.numpy(force=True)[0],
                label.numpy(force=True)[0],
                tuple(float(edge) for edge in spacing_of(label.affine.numpy())),
                self.labels,
                self.tolerance,
                self.tolerance_in_voxels,
            )
            files = Pair(prediction.meta.get(MetaKeys.SAVED_TO, ""), label.meta.get(ImageMetaKey.FILENAME_OR_OBJ, ""))
            self._cases.append((name, files, scores))

    def __call__(self, engine: Engine) -> None:
        """
        Write the tables, print the summary and set the metrics.

        Args:
            engine: the evaluator.
        """
        cases = sorted((case for part in gather(self._cases) for case in part), key=lambda case: case[0])
        evaluation = Evaluation(
            scores=[row for _, _, rows in cases for row in rows],
            labels=self.labels,
            files={name: files for name, files, _ in cases},
            problems={},
            settings={**self.settings, **surface_settings(self.tolerance, self.tolerance_in_voxels)},
        )
        summary = summarize(evaluation.scores, self.labels)
        means = summary["mean_over_regions" if self.labels.only_regions else "mean_over_classes"]
        found = {shown: means[name] for name, shown in SHOWN.items() if means[name] is not None}
        engine.state.metrics.update(found)
        if dist.is_initialized() and dist.get_rank() != 0:
            return
        print()
        finish_evaluation(evaluation, self.output_dir, self.format, self.part, self.overwrite)
