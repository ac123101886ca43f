"""The value of a metric for each class, as curves with the names of the classes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from ignite.engine import Engine

__all__ = ["set_by_class"]

NOT_ALLOWED = re.compile(r"[^\w\-. ]")  # in a name of MLflow; a slash would begin another group of TensorBoard's


def set_by_class(engine: Engine, name: str, values: Sequence[float], class_names: Sequence[str]) -> None:
    """
    Add the metric ``name/CLASS`` to ``engine.state.metrics`` for each foreground class that has a value.

    MONAI's handlers for logs, TensorBoard and MLflow find the metrics there. A class whose value is NaN has none.

    Args:
        engine: the engine of the metric.
        name: of the metric.
        values: of the foreground classes.
        class_names: of all classes, background first; if their number is another one, the names are ``class_1``, ....
    """
    if len(class_names) != len(values) + 1:
        class_names = [f"class_{value}" for value in range(len(values) + 1)]
    for value, class_name in zip(values, class_names[1:]):
        key = f"{name}/{NOT_ALLOWED.sub('_', class_name)}"
        if math.isnan(value):
            engine.state.metrics.pop(key, None)
        else:
            engine.state.metrics[key] = value
