"""The fast validation metric of the original: one Dice per class over all voxels of many patches.

Source: the online evaluation of nnU-Net v1, with which MedNeXt was trained and its best checkpoint selected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from monai.handlers import from_engine
from monai.utils import convert_to_tensor

from .by_class import set_by_class

__all__ = ["PooledDice"]


class PooledDice(Metric):
    """
    Ignite metric: Dice of the predicted classes over all voxels of all samples, averaged over the foreground classes.

    True positives (tp), false positives (fp) and false negatives (fn) are summed over all samples and processes; the
    Dice of a class is ``2 tp / (2 tp + fp + fn)``. Classes that occur neither in a label nor in a prediction are
    excluded from the mean; if no class occurs, the value is NaN. MONAI's ``MeanDice`` instead averages over samples, so
    that a patch with three voxels of a class counts as much as one with a million.

    ``update`` takes ``(prediction, label)``: scores ``(B, num_classes, *spatial)``, of which the highest determines the
    class, and class indices ``(B, 1, *spatial)``.

    Args:
        num_classes: number of classes, including background (0).
        output_transform: maps the engine's output to the argument of ``update``. Defaults to its "pred" and "label".
        device: device on which the counts are summed. Defaults to ``"cpu"``.
        ignore_label: label of voxels without annotation, which are not counted. Defaults to ``None``.
        class_names: names of all classes, background first; the Dice of each foreground class is then a metric, see
            :py:func:`~mednext_monai.metrics.by_class.set_by_class`. Defaults to ``None``: only the mean.

    Raises:
        ValueError: for fewer than two classes, or if the ignore label is a class; in ``update``, if shapes do not match
            or a label is not a class.
    """

    def __init__(
        self,
        num_classes: int,
        output_transform: Callable = from_engine(["pred", "label"]),  # noqa: B008 - has no state
        device: str | torch.device = "cpu",
        ignore_label: int | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2 (including background), got {num_classes}.")
        if ignore_label is not None and 0 <= ignore_label < num_classes:
            raise ValueError(f"ignore_label must not be one of the {num_classes} classes, got {ignore_label}.")
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.class_names = class_names
        super().__init__(output_transform, device)

    @reinit__is_reduced
    def reset(self) -> None:
        self._counts = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64, device=self._device)

    @reinit__is_reduced
    def update(self, output: Sequence[torch.Tensor]) -> None:
        prediction, label = (convert_to_tensor(value, track_meta=False).detach() for value in output)
        if prediction.shape != (len(label), self.num_classes, *label.shape[2:]) or label.shape[1] != 1:
            raise ValueError(
                f"expected a prediction (B, {self.num_classes}, *spatial) and a label (B, 1, *spatial), "
                f"got {tuple(prediction.shape)} and {tuple(label.shape)}."
            )
        pairs = label[:, 0].long() * self.num_classes + prediction.argmax(1)
        if self.ignore_label is not None:
            pairs = pairs[label[:, 0] != self.ignore_label]
        counts = torch.bincount(pairs.flatten(), minlength=self._counts.numel())
        if counts.numel() > self._counts.numel():
            largest = int(pairs.max()) // self.num_classes
            raise ValueError(f"label must be in 0 ... {self.num_classes - 1}, got {largest}.")
        self._counts += counts.view_as(self._counts).to(self._device)  # row: label, column: prediction

    def compute(self) -> float:
        """Return the mean Dice over the classes that occur, NaN if none does."""
        return self._dice().nanmean().item()

    def completed(self, engine: Engine, name: str) -> None:
        """Set the metrics of the engine."""
        super().completed(engine, name)
        if self.class_names is not None:
            set_by_class(engine, name, self._dice().tolist(), self.class_names)

    @sync_all_reduce("_counts")
    def _dice(self) -> torch.Tensor:
        """Return the Dice of each foreground class over all processes, NaN for one that does not occur."""
        hits = self._counts.diagonal()[1:].double()
        return 2 * hits / (self._counts.sum(0) + self._counts.sum(1))[1:]  # 2 tp / (tp + fp + tp + fn)
