"""Reading the curves that a training run writes to its TensorBoard event files, while it runs or afterwards."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent

__all__ = ["Curves"]


class Curves:
    """
    Curves in a folder of event files; each call reads only what is new in them.

    Args:
        folder: folder of event files; it may not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[Path, EventAccumulator] = {}

    def tags(self) -> list[str]:
        """Return the names of the curves, sorted."""
        self._reload()
        return sorted({tag for file in self._files.values() for tag in file.Tags()["scalars"]})

    def __call__(self, tag: str) -> list[ScalarEvent]:
        """Return the points of a curve, with ``step``, ``value`` and ``wall_time``; an unknown curve has none."""
        self._reload()
        curves = [file.Scalars(tag) for file in self._files.values() if tag in file.Tags()["scalars"]]
        return [point for curve in curves for point in curve]

    def _reload(self) -> None:
        for path in sorted(self.folder.glob("events.out.tfevents.*")):
            self._files.setdefault(path, EventAccumulator(str(path))).Reload()
