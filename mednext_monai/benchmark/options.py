"""The command line of the benchmark, checked before anything is measured."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

__all__ = ["parse"]

SECTIONS = ("forward", "training", "memory", "window", "augmentation", "preprocessing", "prediction")
CONTESTANTS = ("ours", "plain", "monai", "original")
QUICK = "--variants S_k3 --size 32 --repeats 3 --volume 48x32x32 --roi 32 --mirror off".split()
QUICK += "--patch_size 48 --patches 16 --case_shape 96x96x24 --scan 64x48x48".split()


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; a ``ValueError`` names the option that is invalid and what it allows."""
    parser = _parser()
    options = parser.parse_args(arguments)
    from mednext_monai.networks import KERNEL_SIZES, VARIANTS  # imports torch, for which --help does not wait

    if options.quick:
        options = parser.parse_args([*QUICK, *arguments])  # the last value of an option counts
    published = tuple(f"{letter}_k{kernel}" for letter in VARIANTS for kernel in KERNEL_SIZES)
    options.variants = published if options.variants == "all" else _names(options, "variants", published)
    options.sections = _names(options, "sections", SECTIONS)
    options.contestants = _names(options, "contestants", CONTESTANTS)
    options.size = _integers(options, "size", ",")
    options.volume = _integers(options, "volume", "x", 3)
    options.case_shape = _integers(options, "case_shape", "x", 3)
    options.scan = _integers(options, "scan", "x", 3)
    _check(options)
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mednext_monai.benchmark",
        description="Time, memory and accuracy of MedNeXt: ours against MONAI's, the authors' and the plain modules.",
    )

    def add(name: str, default: object, text: str, **kwargs) -> None:
        kwargs = kwargs or ({"type": int} if isinstance(default, int) else {})
        parser.add_argument(f"--{name}", default=default, help=f"{text}; default %(default)s", **kwargs)

    parser.add_argument("--quick", action="store_true", help="a run of under a minute; other options take precedence")
    add("sections", ",".join(SECTIONS), "which parts to run, separated by commas")
    add("variants", "S_k3,S_k5,B_k3,B_k5", "published networks, separated by commas, or all")
    add("size", "64", "edges of the input cubes in voxels, multiples of 16, separated by commas")
    add("batch", 1, "batch size")
    add("contestants", ",".join(CONTESTANTS), "must include ours; monai has S only; original needs --upstream")
    parser.add_argument("--upstream", help="checkout of MIC-DKFZ/MedNeXt, for the contestant original")
    parser.add_argument("--compile", action="store_true", help="run the others under torch.compile as well")
    text = "turn off the gradient checkpointing of M and L in ours and plain"
    parser.add_argument("--no_checkpoint", dest="checkpoint", action="store_false", help=text)
    add("repeats", 5, "rounds")
    add("warmup", 1, "runs of each contestant before the first round, at least 1; use more on a GPU")
    add("device", "cpu", "cpu, cuda or cuda:N")
    add("dtype", "float32", "bf16 and fp16 use autocast", choices=("float32", "bf16", "fp16"))
    text = "that of the others, if they are to differ from ours; default: that of ours"
    parser.add_argument("--others_dtype", choices=("float32", "bf16", "fp16"), help=text)
    add("reference", "float32", "type of the plain run that defines the errors", choices=("float32", "float64"))
    add("load", 0, "processes of one thread that keep a core busy beside the benchmark")
    parser.add_argument("--threads", type=int, help="number of torch threads; default: torch's own choice")
    add("allocator", "default", "settings of glibc's malloc, or both in turn", choices=("default", "tuned", "both"))
    add("volume", "80x80x48", "size in voxels of the volume for the sliding window")
    add("roi", 48, "edge of the window in voxels, a multiple of 16")
    add("mirror", "both", "mirror images in the sliding window", choices=("off", "on", "both"))
    add("patch_size", 128, "edge of the augmented patches in voxels")
    add("channels", 2, "channels of the augmented patches")
    add("patches", 48, "augmented patches in a round, an even number")
    add("workers", 2, "worker processes of the augmentation")
    add("case_shape", "160x160x40", "size in voxels of the case to preprocess")
    add("scan", "128x128x96", "size in voxels of the scan that is predicted from file to file")
    add("scan_spacing", 0.8, "edge of its voxels in mm", type=float)
    add("classes", 15, "classes of this prediction, background included")
    add("accumulate", "float32", "of its probabilities", choices=("float32", "half"))
    text = "windows that its network computes; their mean time counts for the others; default: all"
    parser.add_argument("--scan_windows", type=int, help=text)
    add("output", "mednext_benchmark", "folder for benchmark.json and benchmark.png")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument("--base_channels", type=int, default=32, help=argparse.SUPPRESS)  # for tests
    return parser


def _names(options: argparse.Namespace, option: str, allowed: Sequence[str]) -> tuple[str, ...]:
    names = [name.strip() for name in getattr(options, option).split(",")]
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise ValueError(f"--{option} must be among {','.join(allowed)}, got {','.join(unknown)!r}.")
    return tuple(name for name in allowed if name in names)


def _integers(options: argparse.Namespace, option: str, separator: str, count: int | None = None) -> tuple[int, ...]:
    parts = [part.strip() for part in getattr(options, option).split(separator)]
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or count not in (None, len(parts)):
        form = separator.join(["N"] * (count or 2))
        raise ValueError(f"--{option} must be positive integers such as {form}, got {getattr(options, option)!r}.")
    return tuple(map(int, parts))


def _check(options: argparse.Namespace) -> None:
    from mednext_monai.networks import SHAPE_FACTOR  # imports torch

    positive = (
        "batch",
        "repeats",
        "warmup",
        "roi",
        "patch_size",
        "channels",
        "patches",
        "threads",
        "scan_windows",
        "base_channels",
    )
    for name in (*positive, "base_channels"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}.")
    for name, sizes in (("size", options.size), ("roi", (options.roi,))):
        if any(size % SHAPE_FACTOR for size in sizes):
            raise ValueError(f"--{name} must be a multiple of {SHAPE_FACTOR}, got {','.join(map(str, sizes))}.")
    if options.patches % 2:
        raise ValueError(f"--patches must be even, got {options.patches}.")
    if options.classes < 2:
        raise ValueError(f"--classes must be at least 2, got {options.classes}.")
    if not 0 < options.scan_spacing < float("inf"):
        raise ValueError(f"--scan_spacing must be above 0, got {options.scan_spacing}.")
    for name in ("workers", "load"):
        if getattr(options, name) < 0:
            raise ValueError(f"--{name} must be at least 0, got {getattr(options, name)}.")
    if "ours" not in options.contestants:
        raise ValueError(f"--contestants must include ours, got {','.join(options.contestants)}.")
