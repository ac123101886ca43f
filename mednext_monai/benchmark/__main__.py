"""``python -m mednext_monai.benchmark``; ``--help`` says the rest."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .options import Options, parse

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status: 0, 1 for what went wrong, 2 for options that are not understood."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _run(parse(arguments), arguments)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"benchmark: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmark: interrupted; what was measured is in benchmark.json", file=sys.stderr)
        return 130
    return 0


def _run(options: Options, arguments: list[str]) -> None:
    from .allocator import environment, is_active, run_again
    from .machine import describe_machine
    from .plot import draw
    from .report import as_markdown, as_text, write_json
    from .timing import Measurement

    _prepare(options)
    allocators = ["default", "tuned"] if options.allocator == "both" else [options.allocator]
    for allocator in allocators:
        environment(allocator)  # fails where there is none, before the first hour
    output, machine, measurements = Path(options.output), describe_machine(options.device), []
    for allocator in allocators:
        if len(allocators) == 1 and is_active(allocator):
            for measurement in _measure(options):
                measurement.allocator = allocator
                measurements.append(measurement)
                write_json(output / "benchmark.json", machine, arguments, measurements)
        else:
            found = run_again(arguments, allocator)["measurements"]
            measurements += [Measurement.from_dict(values) for values in found]
            write_json(output / "benchmark.json", machine, arguments, measurements)
    draw(output / "benchmark.png", machine, measurements)
    print(as_markdown(machine, arguments, measurements) if options.markdown else as_text(machine, measurements))
    print(f"wrote {output / 'benchmark.json'} and {output / 'benchmark.png'}", file=sys.stderr)


def _prepare(options: Options) -> None:
    """Set threads and device, and fail early where the run would fail late."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {options.device!r}.")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("--device cuda: torch sees no GPU.")
        torch.backends.cudnn.benchmark = True  # as the bundles train
    if options.upstream:
        from .contestants import build

        build(options, options.variants[0], ["original"], training=False)


def _measure(options: Options) -> Iterator:
    """Run the sections one after the other, saying on the error output what is done."""
    from .augmentation import measure_augmentation
    from .memory import measure_memory
    from .network import measure_networks
    from .preprocessing import measure_preprocessing
    from .window import measure_window

    run = {
        "forward": lambda: measure_networks(options, "forward"),
        "training": lambda: measure_networks(options, "training"),
        "memory": lambda: measure_memory(options),
        "window": lambda: measure_window(options),
        "augmentation": lambda: measure_augmentation(options),
        "preprocessing": lambda: measure_preprocessing(options),
    }
    for section in options.sections:
        print(f"{section} ...", file=sys.stderr, flush=True)
        for measurement in run[section]():
            print(f"  {measurement.case}", file=sys.stderr, flush=True)
            yield measurement


if __name__ == "__main__":
    sys.exit(main())
