"""The command line of the benchmark: everything is checked before torch is imported and the first minute is spent."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["ALLOCATORS", "SECTIONS", "Options", "VariantName", "parse"]

SECTIONS = ("forward", "training", "memory", "window", "augmentation", "preprocessing")
CONTESTANTS = ("ours", "plain", "monai", "original")
ALLOCATORS = ("default", "tuned", "both")
DTYPES = ("float32", "bf16", "fp16")
FACTOR = 16  # what the network divides its input by


class VariantName(NamedTuple):
    """A published network: letter and kernel size."""

    letter: str
    kernel_size: int

    def __str__(self) -> str:
        return f"{self.letter} k{self.kernel_size}"


VARIANT_NAMES = {f"{letter}_k{kernel}": VariantName(letter, kernel) for letter in "SBML" for kernel in (3, 5)}


@dataclass(frozen=True)
class Options:
    """What the command line says; the names are those of its options."""

    sections: tuple[str, ...] = SECTIONS
    variants: tuple[VariantName, ...] = tuple(VARIANT_NAMES[name] for name in ("S_k3", "S_k5", "B_k3", "B_k5"))
    size: tuple[int, ...] = (64,)
    batch: int = 1
    contestants: tuple[str, ...] = CONTESTANTS
    upstream: str | None = None
    compile: bool = False
    checkpoint: bool = True
    repeats: int = 5
    warmup: int = 1
    device: str = "cpu"
    dtype: str = "float32"
    reference: str = "float32"
    threads: int | None = None
    allocator: str = "default"
    volume: tuple[int, ...] = (80, 80, 48)
    roi: int = 48
    mirror: str = "both"
    patch_size: int = 128
    patches: int = 48
    workers: int = 2
    case_shape: tuple[int, ...] = (160, 160, 40)
    output: str = "mednext_benchmark"
    markdown: bool = False
    base_channels: int = 32  # not published: for tests


QUICK = {
    "variants": (VARIANT_NAMES["S_k3"],),
    "size": (32,),
    "repeats": 3,
    "volume": (48, 32, 32),
    "roi": 32,
    "mirror": "off",
    "patch_size": 48,
    "patches": 16,
    "case_shape": (96, 96, 24),
}


def parse(arguments: Sequence[str] | None = None) -> Options:
    """
    Read the command line.

    Args:
        arguments: those after the program's name. Defaults to ``None``, the process's own.

    Raises:
        ValueError: when a value is not among those allowed, naming it and them.
        SystemExit: when an option is unknown or help was asked for.
    """
    given = vars(_parser().parse_args(arguments))
    quick = given.pop("quick", False)
    checks = {
        "sections": lambda value: _words("sections", value, SECTIONS),
        "contestants": lambda value: _words("contestants", value, CONTESTANTS),
        "variants": lambda value: tuple(VARIANT_NAMES[n] for n in _words("variants", value, tuple(VARIANT_NAMES))),
        "size": lambda value: _numbers("size", value, ","),
        "volume": lambda value: _numbers("volume", value, "x", 3),
        "case_shape": lambda value: _numbers("case_shape", value, "x", 3),
    }
    given = {name: checks[name](value) if name in checks else value for name, value in given.items()}
    options = Options(**{**(QUICK if quick else {}), **given})
    _check(options)
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mednext_monai.benchmark",
        description="Time, memory and exactness of MedNeXt: ours against MONAI's, the authors' and the plain path.",
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    default = Options()
    add("--quick", action="store_true", help="a small run, under a minute on two cores; other options win over it")
    add("--sections", help=f"which of {','.join(SECTIONS)}, separated by commas; default all")
    add("--variants", help=f"which of {','.join(VARIANT_NAMES)}, or all; default S_k3,S_k5,B_k3,B_k5")
    add("--size", help="edges of the input cubes in voxels, multiples of 16, separated by commas; default 64")
    add("--batch", type=int, help="cubes in a batch; default 1")
    add("--contestants", help="which of ours,plain,monai,original; ours is needed; monai has S only; default all")
    add("--upstream", help="checkout of MIC-DKFZ/MedNeXt, for the contestant original; without it there is none")
    add("--compile", action="store_true", help="the others also under torch.compile")
    add("--no_checkpoint", dest="checkpoint", action="store_false", help="ours and plain M and L keep activations")
    add("--repeats", type=int, help=f"rounds; default {default.repeats}")
    add("--warmup", type=int, help="runs of each contestant before them, at least 1; default 1; more pays on a GPU")
    add("--device", help="cpu, cuda or cuda:N; default cpu")
    add("--dtype", choices=DTYPES, help="bf16 and fp16 by autocast; default float32")
    add("--reference", choices=("float32", "float64"), help="type of the plain run that all are compared with")
    add("--threads", type=int, help="threads of torch; default its own choice")
    add("--allocator", choices=ALLOCATORS, help="the C library's memory: as it comes, tuned (Linux), or both in turn")
    add("--volume", help="volume for the sliding window, such as 256x256x200; default 80x80x48")
    add("--roi", type=int, help=f"edge of the window, a multiple of 16; default {default.roi}")
    add("--mirror", choices=("off", "on", "both"), help="mirror images in the sliding window; default both")
    add("--patch_size", type=int, help=f"edge of the augmented patches; default {default.patch_size}")
    add("--patches", type=int, help=f"augmented patches in a round, even; default {default.patches}")
    add("--workers", type=int, help=f"processes that augment; default {default.workers}")
    add("--case_shape", help="voxels of the case to preprocess; default 160x160x40")
    add("--output", help=f"folder for benchmark.json and benchmark.png; default {default.output}")
    add("--markdown", action="store_true", help="print the table in Markdown")
    add("--base_channels", type=int, help=argparse.SUPPRESS)
    return parser


def _words(name: str, text: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(","))
    if name == "variants" and words == ("all",):
        return allowed
    unknown = [word for word in words if word not in allowed]
    if unknown:
        raise ValueError(f"--{name} must be among {','.join(allowed)}, got {','.join(unknown)!r}.")
    return tuple(word for word in allowed if word in words)


def _numbers(name: str, text: str, separator: str, count: int | None = None) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(separator))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1 or count not in (None, len(numbers)):
        form = separator.join(["N"] * (count or 2))
        raise ValueError(f"--{name} must be whole numbers above 0 such as {form}, got {text!r}.")
    return numbers


def _check(options: Options) -> None:
    for name in ("size", "roi"):
        sizes = getattr(options, name) if name == "size" else (options.roi,)
        if any(size < FACTOR or size % FACTOR for size in sizes):
            raise ValueError(f"--{name} must be a multiple of {FACTOR}, got {','.join(map(str, sizes))}.")
    for name in ("batch", "repeats", "warmup", "patch_size", "patches", "threads", "base_channels"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}.")
    if options.patches % 2:
        raise ValueError(f"--patches must be even, got {options.patches}.")
    if options.workers < 0:
        raise ValueError(f"--workers must be at least 0, got {options.workers}.")
    if "ours" not in options.contestants:
        raise ValueError(f"--contestants must name ours, got {','.join(options.contestants)}.")
    if options.upstream and options.base_channels != 32:
        raise ValueError(f"--upstream has 32 base channels only, got {options.base_channels}.")
