"""The plan as a text summary for the terminal and as a self-contained HTML page with pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from textwrap import fill

import numpy as np

from ..data.dataset import Dataset
from ..data.io import read_image, read_label
from ..pages import inline_image, lead, legend, page, row, table
from ..pictures import display_window, draw_slices
from ..preprocessing.geometry import reorient, spacing_of
from ..preprocessing.normalization import CT_SCHEMES
from ..preprocessing.resampling import resampled_shape
from .fingerprint import CaseFingerprint
from .histograms import histogram
from .memory import CHECKPOINTING

__all__ = ["html_report", "text_report"]

OVERLAY_QUANTILES = (0.1, 0.5, 0.9)  # cases to draw, as quantiles of the foreground volume
BLUE, GRAY = "#3b6fb6", "#9aa3ad"


def text_report(plan: dict) -> str:
    """Return the plan as a summary of a few dozen lines for the terminal."""
    details = plan["_plan_"]
    found = details["fingerprint"]
    lines = [
        f"{details['name']}: {_cases_text(found['cases'])}, channels {', '.join(plan['channel_names'])}, "
        f"{plan['out_channels']} classes ({details['layout']})",
        "",
        f"  median shape       {_times(found['median_shape'])} voxels of {_times(found['median_spacing_mm'])} mm",
        f"  {_resampled(plan['spacing']):18} median {_times(found['median_resampled_shape'])}, largest "
        f"{_times(found['largest_resampled_shape'])} voxels",
        f"  nonzero crop       keeps {found['median_size_reduction']:.0%} (median)",
        f"  orientation        {', '.join(f'{n} x {name}' for name, n in found['orientations'].items())}",
        "",
        "  class                       voxels     in cases",
    ]
    for name, share, count in zip(plan["labels"], found["class_voxel_share"], found["class_cases"]):
        lines.append(f"  {name[:24]:24} {share:10.3%} {count:7} of {found['cases']}")
    lines += ["", "Decisions"]
    for decision in details["decisions"]:
        lines.append(_wrap(f"{decision['what']}: {decision['value']}", "  "))
        lines.append(_wrap(decision["why"], "      "))
    lines += ["", f"Training memory (estimate, GiB, batch {plan['batch_size']} of {_times(plan['patch_size'])} voxels)"]
    heads, rows = _memory_table(plan)
    lines += ["  " + "".join(f"{cell:>12}" for cell in cells) for cells in (heads, *rows)]
    if details["warnings"]:
        lines += ["", "Warnings", *(_wrap(warning, "  - ") for warning in details["warnings"])]
    return "\n".join(lines)


def html_report(dataset: Dataset, cases: Sequence[CaseFingerprint], plan: dict) -> str:
    """
    Return the plan as an HTML page with histograms and pictures of three cases, whose files are read again.

    Args:
        dataset: the data set.
        cases: fingerprint of each case of the data set, in its order.
        plan: as returned by :py:func:`.planner.make_plan`.
    """
    details = plan["_plan_"]
    summary = f"{_cases_text(len(cases))} · channels {', '.join(plan['channel_names'])} · {details['layout']}"
    decisions = ([decision["what"], decision["value"], decision["why"]] for decision in details["decisions"])
    sections = [
        *([_warnings(details["warnings"])] if details["warnings"] else []),
        *_pictures(dataset, cases, plan),
        "<h2>Classes</h2>",
        *([] if dataset.ignore_label is None else [lead(f"Without voxels labeled {dataset.ignore_label} (ignore).")]),
        _classes(cases, plan),
        "<h2>Decisions</h2>",
        table(("", "", ""), decisions),
        *_shapes(cases, plan["spacing"]),
        *_intensities(cases, plan),
        *_memory(plan),
        "<h2>Folds</h2>",
        _folds(plan.get("splits", [])),
        f"<details><summary>All cases</summary>{_cases(cases)}</details>",
    ]
    return page(f"Plan: {details['name']}", f"MedNeXt plan: {details['name']}", [lead(summary), *sections])


def _wrap(text: str, indent: str) -> str:
    return fill(text, 110, initial_indent=indent, subsequent_indent=" " * len(indent))


def _cases_text(count: int) -> str:
    return f"{count} case{'s' * (count != 1)}"


def _times(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _warnings(warnings: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return f"<div class='warning'><b>Warnings</b><ul>{items}</ul></div>"


def _pictures(dataset: Dataset, cases: Sequence[CaseFingerprint], plan: dict) -> list[str]:
    """Draw cases with little, typical and much foreground; all channels of the typical one."""
    volumes = [float(case.class_voxels[1:].sum() * np.prod(case.spacing)) for case in cases]
    order = np.argsort(volumes, kind="stable")
    chosen = list(dict.fromkeys(int(order[round(q * (len(order) - 1))]) for q in OVERLAY_QUANTILES))
    parts = [
        "<h2>Images and labels</h2>",
        lead(
            "Check orientation (superior at the top, the patient's right on the left) and that each class is at the "
            "location its name suggests. Each slice is the one with the most foreground."
        ),
        legend(plan["labels"]),
    ]
    for i in chosen:
        image, affine = read_image(dataset.cases[i]["image"])
        image, ras_affine = reorient(image, affine, "RAS")
        label, label_affine = read_label(dataset.cases[i]["label"])
        label = reorient(label[None], label_affine, "RAS")[0][0]
        if dataset.ignore_label is not None:
            label = np.where(label == dataset.ignore_label, 0, label)
        case = cases[i]
        for channel in range(len(image)) if i == chosen[len(chosen) // 2] else range(1):
            window = _window(image[channel], plan["normalization"][channel], plan["intensity"][channel])
            slices = draw_slices(image[channel], label, spacing_of(ras_affine), window)
            caption = (
                f"{case.id} · {plan['channel_names'][channel]} · {_times(case.shape)} voxels of "
                f"{_times(case.spacing)} mm, stored as {case.orientation} · foreground {volumes[i] / 1000:.3g} ml"
            )
            images = row(inline_image(picture, name) for name, picture in slices.items())
            parts.append(f"<figure>{images}<figcaption>{escape(caption)}</figcaption></figure>")
    return parts


def _window(channel: np.ndarray, scheme: str, intensity: dict) -> tuple[float, float]:
    """Return the intensities shown as black and white; for CT, twice the range of the foreground of the data set."""
    if scheme not in CT_SCHEMES:
        return display_window(channel)
    low, high = intensity["p005"], intensity["p995"]
    return low - (high - low) / 2, high + (high - low) / 2


def _classes(cases: Sequence[CaseFingerprint], plan: dict) -> str:
    found = plan["_plan_"]["fingerprint"]
    ml = np.array([case.class_voxels * np.prod(case.spacing) / 1000 for case in cases])
    rows = []
    for value, name in enumerate(plan["labels"]):
        present = ml[ml[:, value] > 0, value]
        sizes = (present.min(), np.median(present), present.max()) if len(present) else ()
        size = [f"{v:.0f}" if v >= 100 else f"{v:.3g}" for v in sizes] or ["–"] * 3
        share = f"{found['class_voxel_share'][value]:.3%}"
        rows.append([value, name, share, f"{found['class_cases'][value]} of {len(cases)}", *size])
    heads = ("value", "class", "share of voxels", "in cases", "smallest, ml", "median, ml", "largest, ml")
    return table(heads, rows, numbers=(2, 3, 4, 5, 6))


def _resampled(spacing: Sequence[float | None]) -> str:
    return "at 1 mm" if None not in spacing else "resampled"


def _shapes(cases: Sequence[CaseFingerprint], spacing: Sequence[float | None]) -> list[str]:
    resampled = [resampled_shape(case.cropped_shape, case.spacing, spacing) for case in cases]
    return [
        "<h2>Shapes</h2>",
        _axis_histograms([case.shape for case in cases], "original shape", "voxels"),
        _axis_histograms(resampled, f"cropped, {_resampled(spacing)}", "voxels"),
        "<h2>Spacing</h2>",
        _axis_histograms([case.spacing for case in cases], "spacing", "mm"),
    ]


def _axis_histograms(values: Sequence[Sequence[float]], what: str, unit: str) -> str:
    axes = np.array(values, float).T
    return row(histogram([("", BLUE, axis)], f"{what}, axis {i}", unit) for i, axis in enumerate(axes))


def _intensities(cases: Sequence[CaseFingerprint], plan: dict) -> list[str]:
    return [
        "<h2>Intensities</h2>",
        lead(
            "CT in HU, with dashed clipping values; other channels in standard deviations from the mean of the "
            "nonzero crop of each case."
        ),
        row(_intensity_histograms(cases, plan)),
        _intensity_table(plan),
    ]


def _intensity_histograms(cases: Sequence[CaseFingerprint], plan: dict) -> list[str]:
    """Draw a histogram of each channel: the whole crop in gray, the foreground in blue, clipped to the middle 99%."""
    figures = []
    for c, (name, scheme) in enumerate(zip(plan["channel_names"], plan["normalization"])):
        is_ct = scheme in CT_SCHEMES
        raw = is_ct or scheme == "none"
        pools = []
        for part in ("preview", "foreground"):
            chunks = [getattr(case, part)[c][:2000].astype(np.float64) for case in cases]
            if not raw:
                chunks = [(x - case.mean[c]) / (case.sd[c] + 1e-8) for x, case in zip(chunks, cases)]
            pools.append(np.concatenate(chunks))
        low, high = (np.percentile(np.concatenate(pools), q) for q in (0.5, 99.5))
        series = [
            (label, color, np.clip(pool, low, high))
            for label, color, pool in zip(("whole crop", "foreground"), (GRAY, BLUE), pools)
        ]
        marks = [plan["intensity"][c][k] for k in ("p005", "p995")] if is_ct else []
        unit = "HU" if is_ct else "raw" if raw else "SD of the case"
        figures.append(histogram(series, name, unit, marks, bins=48))
    return figures


def _intensity_table(plan: dict) -> str:
    heads = ("foreground, raw", "mean", "sd", "median", "min", "0.5 %", "99.5 %", "max")
    keys = ("mean", "sd", "median", "min", "p005", "p995", "max")
    rows = ([name, *(f"{stats[k]:.5g}" for k in keys)] for name, stats in zip(plan["channel_names"], plan["intensity"]))
    return table(heads, rows, numbers=range(1, 8))


def _memory(plan: dict) -> list[str]:
    return [
        "<h2>Training memory</h2>",
        lead(
            f"Estimate in GiB for a batch of {plan['batch_size']} patches of {_times(plan['patch_size'])} voxels with "
            "mixed precision, by the option gradient_checkpointing: off stores all activations, expansion computes all "
            "but the depthwise convolutions again, block whole blocks. Results are the same, off is the fastest; "
            "published are off for S and B, block for M and L."
        ),
        table(*_memory_table(plan), numbers=(1, 2, 3)),
    ]


def _memory_table(plan: dict) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows: GiB of each variant by setting, and the setting for the card, if it is known."""
    details = plan["_plan_"]
    card = details["gpu_memory_gib"]
    heads = ["variant", *CHECKPOINTING] + ([] if card is None else [f"for {card:g} GiB"])
    rows = []
    for name, gib in details["training_memory_gib"].items():
        chosen = [] if card is None else [details["fastest_setting"][name] or "does not fit"]
        rows.append([name, *(f"{gib[setting]:.1f}" for setting in CHECKPOINTING), *chosen])
    return heads, rows


def _folds(splits: Sequence[dict]) -> str:
    rows = ([i, len(split["train"]), len(split["val"])] for i, split in enumerate(splits))
    return table(("fold", "training cases", "validation cases"), rows, numbers=(1, 2))


def _cases(cases: Sequence[CaseFingerprint]) -> str:
    rows = (
        [
            case.id,
            _times(case.shape),
            _times(case.spacing),
            case.orientation,
            f"{case.size_reduction:.0%}",
            ", ".join(str(int(n)) for n in case.class_voxels[1:]),
        ]
        for case in cases
    )
    return table(
        ("case", "shape", "spacing, mm", "orientation", "nonzero crop keeps", "voxels of classes 1, 2, …"), rows
    )
