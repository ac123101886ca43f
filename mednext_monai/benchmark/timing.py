"""Taking turns, reading the clock, medians and ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

import torch

__all__ = ["OURS", "Measurement", "clock_for", "compare", "interleave", "ratios", "shown", "spread"]

OURS = "ours"
Step = Callable[[], object]


@dataclass
class Measurement:
    """One comparison: what was measured of each contestant, round by round; less is better."""

    section: str  # one of options.SECTIONS
    case: str  # what was run, such as "S k3, 64^3"
    unit: str  # "s" or "MiB"
    values: dict[str, list[float]]  # by contestant, one number per round
    agreement: dict[str, dict[str, float]] = field(default_factory=dict)  # by contestant: error of what, how large
    skipped: dict[str, str] = field(default_factory=dict)  # by contestant: why it is missing
    notes: list[str] = field(default_factory=list)  # sentences for the reader
    work: float = 0.0  # done by one step, for the throughput; 0 when there is none
    work_unit: str = ""
    allocator: str = "default"

    def to_dict(self) -> dict:
        """The fields as plain numbers, with the spread of the values and the ratios to ours."""
        spreads = {name: spread(values) for name, values in self.values.items()}
        return {**asdict(self), "spread": spreads, "ratios": ratios(self.values)}

    @classmethod
    def from_dict(cls, values: Mapping) -> Measurement:
        """The reverse of :py:meth:`to_dict`, also after a round trip through JSON."""
        return cls(**{name: value for name, value in values.items() if name in cls.__dataclass_fields__})


def shown(name: str) -> str:
    """Return a contestant's name as its owners write it."""
    return name.replace("monai", "MONAI")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, smallest and largest value."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def ratios(values: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """
    Compare every contestant with ours: its value over ours within each round, then the spread of these ratios.

    Above 1, ours is that many times faster, or smaller. Pairs within a round share what the machine did meanwhile, so
    these are steadier than the ratio of two medians.

    Args:
        values: one number per round and contestant, among them "ours".

    Returns:
        the spread for every other contestant; none where ours is 0 in a round.
    """
    own = values[OURS]
    if 0 in own:
        return {}
    others = {name: theirs for name, theirs in values.items() if name != OURS}
    return {name: spread([b / a for a, b in zip(own, theirs)]) for name, theirs in others.items()}


def clock_for(device: torch.device) -> Callable[[Step], float]:
    """Return a function that runs a step and returns its seconds; on a GPU until its last kernel has ended."""

    def cpu(step: Step) -> float:
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    def cuda(step: Step) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record(torch.cuda.current_stream(device))
        step()
        end.record(torch.cuda.current_stream(device))
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000

    return cuda if device.type == "cuda" else cpu


def interleave(steps: Mapping[str, Step], rounds: int, clock: Callable[[Step], float]) -> dict[str, list[float]]:
    """Run the steps in turn, A B C A B C, and return the seconds of each, one per round."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(clock(step))
    return seconds


def compare(
    steps: Mapping[str, Step],
    check: Callable[[str, object], dict[str, float]],
    rounds: int,
    warmup: int = 1,
    device: torch.device | str = "cpu",
) -> dict[str, dict]:
    """
    Warm up and check each contestant, then time them in turn.

    Args:
        steps: by contestant, what is timed.
        check: from contestant and result of its first run to the errors to show.
        rounds: turns.
        warmup: runs of each before them, the checked one included. Defaults to 1.
        device: where the steps run.

    Returns:
        "values", "agreement" and "skipped" of a :py:class:`Measurement`. Another contestant than ours that fails, for
        lack of memory or of a compiler or at a size that it refuses, is skipped, with the first line of its error.
    """
    agreement, skipped = {}, {}
    for name, step in steps.items():
        try:
            agreement[name] = check(name, step())
            for _ in range(warmup - 1):
                step()
        except (RuntimeError, ValueError) as error:
            if name == OURS:
                raise
            skipped[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
    remaining = {name: step for name, step in steps.items() if name not in skipped}
    values = interleave(remaining, rounds, clock_for(torch.device(device)))
    return {"values": values, "agreement": agreement, "skipped": skipped}
