"""``python -m mednext_monai.benchmark``; ``--help`` lists the options."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .options import parse

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status: 0, 1 after an error, 2 for unknown options, 130 if interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = parse(arguments)
        from .run import run  # imports torch and MONAI, for which --help does not wait

        run(options, arguments)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"benchmark: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmark: interrupted; what was measured is in benchmark.json", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
