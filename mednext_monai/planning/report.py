"""The plan for people: a summary for the terminal, and an HTML page with pictures that needs no other file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from textwrap import fill

import numpy as np

from ..data.dataset import Dataset
from ..data.io import read_image
from .fingerprint import CaseFingerprint
from .pictures import class_color, histogram, overlay

__all__ = ["html_report", "text_report"]

OVERLAY_QUANTILES = (0.1, 0.5, 0.9)  # of the cases in order of foreground volume: which ones are pictured
BLUE, GREY = "#3b6fb6", "#9aa3ad"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2329; background: #fff; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p.lead { color: #566069; margin-top: 0; }
table { border-collapse: collapse; min-width: 22rem; } th { text-align: left; color: #566069; font-weight: 600; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #e6e9ec; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.warning { background: #fff6df; border-left: 4px solid #e0a100; padding: .6rem 1rem; }
.row { display: flex; flex-wrap: wrap; gap: .8rem; align-items: center; } .row svg { width: 18.5rem; }
figure { margin: 0 0 1.2rem; } figcaption { color: #566069; } img { background: #000; max-width: 100%; }
svg text { font: 11px system-ui, sans-serif; fill: #566069; } svg text.title { font-weight: 600; fill: #1d2329; }
.swatch { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .4rem; }
summary { cursor: pointer; color: #3b6fb6; }
"""


def text_report(plan: dict) -> str:
    """Return the plan as a summary of a few dozen lines for the terminal."""
    details = plan["_plan_"]
    found = details["fingerprint"]
    lines = [
        f"{details['name']}: {_cases_text(found['cases'])}, channels {', '.join(plan['channel_names'])}, "
        f"{plan['out_channels']} classes ({details['layout']})",
        "",
        f"  median shape       {_times(found['median_shape'])} voxels of {_times(found['median_spacing_mm'])} mm",
        f"  at 1 mm            median {_times(found['median_resampled_shape'])}, largest "
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
    lines.append("  " + "  ".join(f"{name} {gib:.1f}" for name, gib in details["training_memory_gib"].items()))
    if details["warnings"]:
        lines += ["", "Warnings", *(_wrap(warning, "  - ") for warning in details["warnings"])]
    return "\n".join(lines)


def html_report(dataset: Dataset, cases: Sequence[CaseFingerprint], plan: dict) -> str:
    """
    Return the plan as an HTML page with histograms and overlays; reads three cases' images again.

    Args:
        dataset: the data set.
        cases: the fingerprint of each case.
        plan: as :py:func:`.planner.plan` returns it.
    """
    details = plan["_plan_"]
    name = escape(details["name"])
    lead = f"{_cases_text(len(cases))} · channels {', '.join(plan['channel_names'])} · {details['layout']}"
    parts = [
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Plan: {name}</title>",
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head><body>",
        f"<h1>MedNeXt plan: {name}</h1><p class='lead'>{escape(lead)}</p>",
    ]
    if details["warnings"]:
        items = "".join(f"<li>{escape(warning)}</li>" for warning in details["warnings"])
        parts.append(f"<div class='warning'><b>Worth a look</b><ul>{items}</ul></div>")
    parts += [
        "<h2>What the labels look like</h2>",
        "<p class='lead'>Is the head up, the left on the right, each class where its name says? A slice is taken where "
        "it shows the most foreground; the volume is turned to the body's axes by the file's header.</p>",
        _legend(plan["labels"]),
        *_overlays(dataset, cases, plan),
        "<h2>Classes</h2>",
        _classes(cases, plan),
        "<h2>Decisions</h2>",
        _table(("", "", ""), ([d["what"], d["value"], d["why"]] for d in details["decisions"])),
        "<h2>Shapes</h2>",
        _row(_axis_histograms([case.shape for case in cases], "shape as stored", "voxels")),
        _row(_axis_histograms([_resampled(case, plan["spacing"]) for case in cases], "cropped, at 1 mm", "voxels")),
        "<h2>Spacing</h2>",
        _row(_axis_histograms([case.spacing for case in cases], "spacing", "mm")),
        "<h2>Intensities</h2>",
        "<p class='lead'>CT in its own units with the two clipping values dashed, everything else in standard "
        "deviations from the mean of its case's nonzero crop.</p>",
        _row(_intensity_histograms(cases, plan)),
        _intensity_table(plan),
        "<h2>Training memory</h2>",
        f"<p class='lead'>Estimate for a batch of {plan['batch_size']} patches of {_times(plan['patch_size'])} voxels "
        "with mixed precision; M and L recompute activations in the backward pass, as published.</p>",
        _memory(details),
        "<h2>Folds</h2>",
        _table(
            ("fold", "training cases", "validation cases"),
            ([i, len(s["train"]), len(s["val"])] for i, s in enumerate(plan.get("splits", []))),
            numbers=(1, 2),
        ),
        f"<details><summary>Case by case</summary>{_cases(cases)}</details>",
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _wrap(text: str, indent: str) -> str:
    return fill(text, 110, initial_indent=indent, subsequent_indent=" " * len(indent))


def _cases_text(count: int) -> str:
    return f"{count} case{'s' * (count != 1)}"


def _times(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _row(items: Iterable[str]) -> str:
    return f"<div class='row'>{''.join(items)}</div>"


def _table(heads: Sequence[str], rows: Iterable[Sequence], numbers: Sequence[int] = ()) -> str:
    """Return a table; cells are escaped, those of the columns in ``numbers`` are aligned as numbers."""

    def cells(values: Sequence, tag: str) -> str:
        kinds = (" class='number'" if column in numbers else "" for column in range(len(values)))
        return "".join(f"<{tag}{kind}>{escape(str(value))}</{tag}>" for kind, value in zip(kinds, values))

    head = f"<tr>{cells(heads, 'th')}</tr>" if any(heads) else ""
    body = "".join(f"<tr>{cells(list(row), 'td')}</tr>" for row in rows)
    return f"<table>{head}{body}</table>"


def _legend(labels: Sequence[str]) -> str:
    items = (
        f"<span><span class='swatch' style='background:{class_color(value)}'></span>{value} {escape(name)}</span>"
        for value, name in enumerate(labels)
        if value
    )
    return _row(items)


def _resampled(case: CaseFingerprint, spacing: Sequence[float]) -> list[int]:
    return [round(n * old / new) for n, old, new in zip(case.cropped_shape, case.spacing, spacing)]


def _overlays(dataset: Dataset, cases: Sequence[CaseFingerprint], plan: dict) -> list[str]:
    """Figures of three cases, with little, usual and much foreground; every channel of the one in the middle."""
    volumes = [float(case.class_voxels[1:].sum() * np.prod(case.spacing)) for case in cases]
    order = np.argsort(volumes, kind="stable")
    chosen = list(dict.fromkeys(int(order[round(q * (len(order) - 1))]) for q in OVERLAY_QUANTILES))
    figures = []
    for i in chosen:
        files = [read_image(path) for path in dataset.cases[i]["image"]]
        image, affine = np.concatenate([array for array, _ in files]), files[0][1]
        label = np.rint(read_image(dataset.cases[i]["label"])[0][0]).astype(np.int16)
        for channel in range(len(image)) if i == chosen[len(chosen) // 2] else range(1):
            window = _window(image[channel], plan["normalization"][channel], plan["intensity"][channel])
            pictures = _row(overlay(image[channel], label, affine, window))
            case = cases[i]
            caption = (
                f"{case.id} · {plan['channel_names'][channel]} · {_times(case.shape)} voxels of "
                f"{_times(case.spacing)} mm, stored as {case.orientation} · foreground {volumes[i] / 1000:.3g} ml"
            )
            figures.append(f"<figure>{pictures}<figcaption>{escape(caption)}</figcaption></figure>")
    return figures


def _window(channel: np.ndarray, scheme: str, intensity: dict) -> tuple[float, float]:
    """Return what to show as black and white: around the foreground for CT, else the case's own range."""
    if scheme == "CT":
        low, high = intensity["p005"], intensity["p995"]
        return low - (high - low) / 2, high + (high - low) / 2
    low, high = np.percentile(channel[channel != 0], (0.5, 99.5))
    return min(float(low), 0.0), float(high)


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
    heads = ("value", "class", "of all voxels", "in cases", "smallest, ml", "median, ml", "largest, ml")
    return _table(heads, rows, numbers=(2, 3, 4, 5, 6))


def _axis_histograms(values: Sequence[Sequence[float]], what: str, unit: str) -> list[str]:
    axes = np.array(values, float).T
    return [histogram([("", BLUE, axis)], f"{what}, axis {i}", unit) for i, axis in enumerate(axes)]


def _intensity_histograms(cases: Sequence[CaseFingerprint], plan: dict) -> list[str]:
    """Histogram of each channel: the whole crop in grey, the foreground in blue, each clipped to its middle 99 %."""
    figures = []
    for c, (name, scheme) in enumerate(zip(plan["channel_names"], plan["normalization"])):
        raw = scheme in ("CT", "none")
        pools = []
        for part in ("preview", "foreground"):
            chunks = [getattr(case, part)[c][:2000].astype(np.float64) for case in cases]
            if not raw:
                chunks = [(x - case.mean[c]) / (case.sd[c] + 1e-8) for x, case in zip(chunks, cases)]
            pools.append(np.concatenate(chunks))
        low, high = (np.percentile(np.concatenate(pools), q) for q in (0.5, 99.5))
        series = [
            (label, color, np.clip(pool, low, high))
            for label, color, pool in zip(("whole crop", "foreground"), (GREY, BLUE), pools)
        ]
        marks = [plan["intensity"][c][k] for k in ("p005", "p995")] if scheme == "CT" else []
        unit = "HU" if scheme == "CT" else "raw" if raw else "sd of the case"
        figures.append(histogram(series, name, unit, marks, bins=48))
    return figures


def _intensity_table(plan: dict) -> str:
    heads = ("foreground, raw", "mean", "sd", "median", "min", "0.5 %", "99.5 %", "max")
    keys = ("mean", "sd", "median", "min", "p005", "p995", "max")
    rows = ([name, *(f"{stats[k]:.5g}" for k in keys)] for name, stats in zip(plan["channel_names"], plan["intensity"]))
    return _table(heads, rows, numbers=range(1, 8))


def _memory(details: dict) -> str:
    card = details["gpu_memory_gib"]
    heads = ("variant", "GiB") if card is None else ("variant", "GiB", f"on a card of {card:g} GiB")
    rows = []
    for name, gib in details["training_memory_gib"].items():
        rows.append([name, f"{gib:.1f}"] + ([] if card is None else ["fits" if gib <= card else "does not fit"]))
    return _table(heads, rows, numbers=(1,))


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
    return _table(("case", "shape", "spacing, mm", "axes", "nonzero crop keeps", "voxels of classes 1, 2, …"), rows)
