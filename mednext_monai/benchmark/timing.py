"""What one comparison yields, and how it is measured: contestants in turn, a clock, ratios within rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

import torch

__all__ = ["OURS", "Measurement", "Step", "compare", "ratios", "seconds", "shown", "spread"]

OURS = "ours"
Step = Callable[[], object]


@dataclass
class Measurement:
    """One comparison: a value per contestant and round; less is better."""

    section: str  # one of options.SECTIONS
    case: str  # what was run, such as "S k3, 64^3"
    unit: str  # "s", "MiB" or "%"
    values: dict[str, list[float]]  # by contestant, one number per round
    agreement: dict[str, dict[str, float]] = field(default_factory=dict)  # by contestant: errors by what is compared
    skipped: dict[str, str] = field(default_factory=dict)  # by contestant: why it is missing
    notes: list[str] = field(default_factory=list)  # sentences for the reader
    work: float = 0.0  # work done by one step, for the throughput; 0 if there is none
    work_unit: str = ""
    allocator: str = "default"

    @property
    def title(self) -> str:
        """The case, and the allocator unless it is the default."""
        return self.case + (f", {self.allocator} allocator" if self.allocator != "default" else "")

    def to_dict(self) -> dict:
        """Return the fields, the spread of the values and the ratios to ours."""
        spreads = {name: spread(values) for name, values in self.values.items()}
        return {**asdict(self), "spread": spreads, "ratios": ratios(self.values)}

    @classmethod
    def from_dict(cls, values: Mapping) -> Measurement:
        """Invert :py:meth:`to_dict`."""
        return cls(**{name: value for name, value in values.items() if name in cls.__dataclass_fields__})


def shown(name: str) -> str:
    """Return a contestant's name as its owners write it."""
    return name.replace("monai", "MONAI")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, smallest and largest value."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def ratios(values: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """
    Divide the values of every other contestant by ours within each round, and return the spread of these ratios.

    Above 1, ours is that many times faster, or smaller. Load from other processes affects both values of a round, so
    these ratios vary less than the ratio of two medians. Empty if ours is 0 in a round.
    """
    own = values[OURS]
    if 0 in own:
        return {}
    return {name: spread([b / a for a, b in zip(own, others)]) for name, others in values.items() if name != OURS}


def seconds(step: Step, device: torch.device | str = "cpu") -> float:
    """Run a step and return its seconds, on a GPU until its last kernel has finished."""
    if torch.device(device).type == "cpu":
        started = time.perf_counter()
        step()
        return time.perf_counter() - started
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record(torch.cuda.current_stream(device))
    step()
    end.record(torch.cuda.current_stream(device))
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1000


def compare(
    steps: Mapping[str, Step],
    measure: Callable[[Step], float],
    rounds: int,
    warmup: int = 0,
    check: Callable[[str, object], dict[str, float]] = lambda name, result: {},
) -> dict[str, dict]:
    """
    Warm up each contestant, then measure them in turn; one other than ours that fails is skipped.

    ``check`` gives a contestant's errors from the result of its first warm-up run. Returns "values", "agreement" and
    "skipped" of a :py:class:`Measurement`.
    """
    values, agreement, skipped = {name: [] for name in steps}, {}, {}
    order = [(name, number) for name in steps for number in range(-warmup, 0)]
    order += [(name, number) for number in range(rounds) for name in steps]
    for name, number in order:
        if name in skipped:
            continue
        try:
            if number >= 0:
                values[name].append(measure(steps[name]))
                continue
            result = steps[name]()
            if number == -warmup:
                agreement[name] = check(name, result)
            del result  # before the next run needs the memory
        except (RuntimeError, ValueError) as error:
            if name == OURS:
                raise
            skipped[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
    values = {name: found for name, found in values.items() if name not in skipped}
    return {"values": values, "agreement": agreement, "skipped": skipped}
