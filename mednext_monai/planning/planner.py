"""Planning training on a data set: settings fixed by the recipe, settings derived from the data, and the reasons.

Source: nnU-Net v1's planner with the 1 mm isotropic target as MedNeXt uses it (Roy et al., MICCAI 2023, and the
behavior of the authors' code, MIC-DKFZ/MedNeXt). Two of its decisions are omitted because they are based on a patch
that is then overridden: a larger batch size for small images, and dummy-2D augmentation.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..bundles.record import spacing_text
from ..data.dataset import Dataset, read_dataset
from ..data.folds import FOLDS, make_folds, read_groups, read_splits, some
from ..data.io import file_ending, read_grid
from ..files import write_atomically
from ..networks import SHAPE_FACTOR
from ..options import literal
from ..options import patch_size as check_patch_size
from ..preprocessing.normalization import CT_SCHEMES
from ..preprocessing.resampling import ANISOTROPY_THRESHOLD, filled_spacing, resampled_shape, separate_axis
from .fingerprint import CaseFingerprint, intensity_statistics, scan
from .memory import CARDS_GIB, CHECKPOINTING, estimate_training_memory, fastest_fitting, published_setting
from .slices import Slices, check_are_volumes, plan_slices

__all__ = ["make_plan", "plan"]

TARGET_SPACING = (1.0, 1.0, 1.0)  # mm
PATCH_SIZE = {3: 128, 2: 512}  # voxels per axis, as published, by the number of axes
# In 3D as published. In 2D the original's planner computes it for the memory of its U-Net; 12 patches of 512^2 need the
# graphics cards that 2 of 128^3 need.
BATCH_SIZE = {3: 2, 2: 12}
MASK_BELOW = 3 / 4  # median size reduction below which z-score statistics exclude voxels outside the mask
ESTIMATE = "by an estimate of one training step with mixed precision; computed without a GPU, so allow some margin"
FIRST_STAGE_PATCHES = 4  # a low-resolution stage is planned if the median case is larger than this many patches


def plan(
    dataset_dir: str | Path,
    output: str | Path,
    patch_size: int | Sequence[int] | None = None,
    batch_size: int | None = None,
    groups: str | Path | None = None,
    splits: str | Path | None = None,
    gpu_memory: float | None = None,
    processes: int | None = None,
    report: bool = True,
    progress: bool = True,
    spatial_dims: int = 3,
    slice_axis: int | None = None,
    slice_spacing: str | float | None = None,
) -> dict:
    """
    Check a data set, plan its training, and write the plan as JSON and a report as HTML.

    Nothing is written unless planning succeeds, and files are written atomically.

    Args:
        dataset_dir: directory of a Decathlon, nnU-Net v1 raw or nnU-Net v2 raw data set.
        output: the JSON file to write; the report has the same name with the ending ``.html``.
        patch_size: voxels per axis, one number or one for each axis, multiples of 16. Defaults to ``None``: 128 (in 2D
            512), less along axes where all resampled volumes are smaller.
        batch_size: number of patches per batch. Defaults to ``None``: 2, as published, in 2D 12.
        groups: CSV file with two columns, case id and patient id, to keep each patient in either training or
            validation. Defaults to ``None``.
        splits: file with the user's own folds in nnU-Net's format. Defaults to ``None``: ``splits_final.json`` in the
            directory of the data set if it exists, else the original's five folds.
        gpu_memory: memory of the graphics card in GiB, for which the plan chooses ``gradient_checkpointing``. Defaults
            to ``None``: that of the first available card, if any.
        processes: number of parallel processes, see :py:func:`.fingerprint.scan`. Defaults to ``None``.
        report: whether to write the HTML page. Defaults to ``True``.
        progress: whether to show a progress bar. Defaults to ``True``.
        spatial_dims: 3, or 2 to train on slices. Defaults to 3.
        slice_axis, slice_spacing: in 2D, see :py:func:`.slices.plan_slices`. Default to ``None``.

    Returns:
        the plan: the result of :py:func:`make_plan` and ``splits`` (the folds). If there are less than five cases or
        groups, each is the validation of one fold, and ``fold`` is ``"all"``. In the file, texts that MONAI would
        evaluate are quoted, see :py:func:`~mednext_monai.options.literal`.

    Raises:
        DatasetError: if the data set is invalid. The message lists all problems.
        ValueError: if an argument is invalid.
        OSError: if the output cannot be written.
    """
    from .report import html_report

    output = Path(output)
    _check_output(output)
    _check_sizes(spatial_dims, patch_size, batch_size, slice_axis, slice_spacing)
    if gpu_memory is not None and not gpu_memory > 0:
        raise ValueError(f"gpu_memory must be a positive number of GiB, got {gpu_memory!r}.")
    dataset = read_dataset(dataset_dir)
    ids = [case["id"] for case in dataset.cases]
    case_groups = None if groups is None else read_groups(groups, ids)
    fold_list, folds_from, few = _folds(dataset, ids, case_groups, splits)
    if spatial_dims == 3:
        check_are_volumes(_first_shape(dataset))  # before all cases are read
    cases, warnings = scan(dataset, processes, progress)
    if gpu_memory is None:
        gpu_memory = _gpu_memory()
    result = make_plan(dataset, cases, patch_size, batch_size, gpu_memory, spatial_dims, slice_axis, slice_spacing)
    result["_plan_"]["warnings"] = warnings + result["_plan_"]["warnings"]
    result["_plan_"]["decisions"].append({"what": "folds", "value": f"{len(fold_list)}", "why": folds_from})
    result["_plan_"]["file_ending"] = file_ending(dataset.cases[0]["image"][0])
    result["splits"] = fold_list
    if few:
        result["fold"] = "all"
    if report:
        write_atomically(output.with_suffix(".html"), html_report(dataset, cases, result).encode("utf-8", "replace"))
    # written last, so that a plan exists only if everything succeeded
    write_atomically(output, (json.dumps(literal(result), indent=2) + "\n").encode())
    return result


def make_plan(
    dataset: Dataset,
    cases: Sequence[CaseFingerprint],
    patch_size: int | Sequence[int] | None = None,
    batch_size: int | None = None,
    gpu_memory: float | None = None,
    spatial_dims: int = 3,
    slice_axis: int | None = None,
    slice_spacing: str | float | None = None,
) -> dict:
    """
    Derive the plan from the fingerprint.

    Args:
        dataset: the data set.
        cases: the fingerprint of each case.
        patch_size: as for :py:func:`plan`.
        batch_size: as for :py:func:`plan`.
        gpu_memory: memory of the graphics card in GiB, or ``None`` if there is none.
        spatial_dims, slice_axis, slice_spacing: as for :py:func:`plan`.

    Returns:
        ``dataset_dir``, ``in_channels``, ``out_channels``, ``channel_names``, ``labels`` (names, background first), for
        region-based labels ``regions`` (values of the classes by name), with an ignore label ``ignore_label``, in 2D
        ``spatial_dims`` and ``slice_axis``, ``spacing`` (mm), ``patch_size`` (voxels), ``batch_size``, ``batch_dice``,
        ``normalization`` (of each channel: one of :py:data:`~mednext_monai.preprocessing.normalization.SCHEMES`),
        ``intensity`` (foreground statistics of each channel), ``dummy_2d``, with ``gpu_memory`` also
        ``gradient_checkpointing`` (by variant such as ``"S_k3"``: the fastest setting that fits, ``"block"`` if none
        does), and under ``_plan_`` the fingerprint, the decisions with their reasons, the warnings and the estimated
        memory.

    Raises:
        ValueError: if the patch or batch size is not positive, the patch size is not a multiple of 16, an argument
            is for 2D only, or images have one slice and the plan is 3D.
    """
    _check_sizes(spatial_dims, patch_size, batch_size, slice_axis, slice_spacing)
    slices = None
    if spatial_dims == 2:
        slices = plan_slices(cases, TARGET_SPACING, slice_axis, slice_spacing)
    else:
        check_are_volumes({case.id: case.shape for case in cases})
    batch_size = BATCH_SIZE[spatial_dims] if batch_size is None else batch_size
    spacing = list(TARGET_SPACING) if slices is None else slices.spacing
    shapes = np.array([resampled_shape(case.cropped_shape, case.spacing, spacing) for case in cases])
    extents = np.array(
        [np.array(case.cropped_shape) * case.spacing / filled_spacing(case.spacing, spacing) for case in cases]
    )
    patch, why_patch = _patch_size(shapes if slices is None else np.delete(shapes, slices.axis, 1), patch_size)
    batch_dice, why_batch_dice = _batch_dice(extents) if slices is None else (True, "as the original in 2D")
    schemes, why_schemes = _normalization(dataset.channel_names, cases)
    dummy_2d = slices is None and max(patch) / min(patch) > ANISOTROPY_THRESHOLD
    memory = estimate_training_memory(patch, batch_size, len(dataset.labels))
    fastest = {} if gpu_memory is None else {name: fastest_fitting(row, gpu_memory) for name, row in memory.items()}
    checkpointing = {name: CHECKPOINTING[setting or "block"] for name, setting in fastest.items()}
    why_spacing = f"the published target; {_describe_spacing(cases)}"
    decisions = [
        *_label_decisions(dataset, cases),
        {"what": "spacing", "value": spacing_text(spacing), "why": why_spacing},
        *_slice_decisions(slices),
        {"what": "resampling", "value": _resampling(cases, spacing)[0], "why": _resampling(cases, spacing)[1]},
        *(
            {"what": f"normalization of channel {c}, {name}", "value": scheme, "why": why}
            for c, (name, scheme, why) in enumerate(zip(dataset.channel_names, schemes, why_schemes))
        ),
        {"what": "patch_size", "value": " x ".join(map(str, patch)), "why": why_patch},
        {"what": "batch_size", "value": str(batch_size), "why": _why_batch_size(batch_size, spatial_dims)},
        {"what": "batch_dice", "value": "yes" if batch_dice else "no", "why": why_batch_dice},
        *_dummy_2d_decision(dummy_2d, patch),
        _fits(memory) if gpu_memory is None else _checkpointing(fastest, gpu_memory),
    ]
    return {
        "dataset_dir": str(dataset.directory),
        "in_channels": len(dataset.channel_names),
        "out_channels": len(dataset.labels),
        "channel_names": dataset.channel_names,
        "labels": dataset.labels,
        **({"regions": dataset.regions} if dataset.regions else {}),
        **({} if dataset.ignore_label is None else {"ignore_label": dataset.ignore_label}),
        **({} if slices is None else {"spatial_dims": 2, "slice_axis": slices.axis}),
        "spacing": spacing,
        "patch_size": patch,
        "batch_size": batch_size,
        "batch_dice": batch_dice,
        "normalization": schemes,
        "intensity": intensity_statistics(cases),
        "dummy_2d": dummy_2d,
        **({"gradient_checkpointing": checkpointing} if checkpointing else {}),
        "_plan_": {
            "name": dataset.name,
            "layout": dataset.layout,
            "decisions": decisions,
            "warnings": ([] if slices is None else slices.warnings) + _warnings(dataset, cases, patch, schemes),
            "training_memory_gib": {
                name: {setting: round(gib, 1) for setting, gib in row.items()} for name, row in memory.items()
            },
            "gpu_memory_gib": gpu_memory,
            "fastest_setting": fastest,
            "fingerprint": _summary(cases, shapes, extents),
            "cases": [_case_entry(case) for case in cases],
        },
    }


def _check_output(output: Path) -> None:
    """Check that the plan can be written, before the work starts."""
    if output.suffix.lower() != ".json":
        raise ValueError(f"output must be a .json file, got {str(output)!r}.")
    folder = output.parent
    if not folder.is_dir():
        raise ValueError(f"output: there is no directory {folder}.")
    if output.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"output: {output} cannot be written.")


def _check_sizes(
    spatial_dims: int,
    patch_size: int | Sequence[int] | None,
    batch_size: int | None,
    slice_axis: int | None,
    slice_spacing: str | float | None,
) -> None:
    if isinstance(spatial_dims, bool) or spatial_dims not in PATCH_SIZE:
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims!r}.")
    if patch_size is not None:
        check_patch_size(patch_size, spatial_dims)
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}.")
    for name, value in (("slice_axis", slice_axis), ("slice_spacing", slice_spacing)):
        if spatial_dims == 3 and value is not None:
            raise ValueError(f"{name} is for a plan in 2D, with --spatial_dims 2.")


def _first_shape(dataset: Dataset) -> dict[str, Sequence[int]]:
    """Return the voxels per axis of the first case by its id; nothing if it cannot be read, which the scan reports."""
    case = dataset.cases[0]
    try:
        return {case["id"]: read_grid(case["image"])[0][1:]}
    except (ValueError, OSError):
        return {}


def _folds(
    dataset: Dataset, ids: list[str], groups: dict[str, str] | None, splits: str | Path | None
) -> tuple[list[dict], str, bool]:
    """Return the folds, where they come from, and whether there are too few cases for the five folds."""
    existing = dataset.directory / "splits_final.json" if splits is None else Path(splits)
    if existing.is_file():
        return read_splits(existing, ids, groups), f"read from {existing.name}, which takes precedence", False
    if splits is not None:
        raise ValueError(f"splits: no such file, {splits}.")
    units = len(ids) if groups is None else len(set(groups.values()))
    kind = ("case" if groups is None else "group") + "s" * (units > 1)
    if units < FOLDS:
        why = f"only {units} {kind}, too few for five folds: train with fold 'all'"
        return make_folds(ids, groups) if units > 1 else [], why, True
    what = "sorted case ids" if groups is None else f"{units} groups of the {len(ids)} cases, ordered by first case"
    return make_folds(ids, groups), f"as the original: {what}, KFold(5), shuffled with seed 12345", False


def _gpu_memory() -> float | None:
    """Return the memory of the first available graphics card in GiB, or ``None``."""
    import torch

    if not torch.cuda.is_available():
        return None
    return round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)


def _patch_size(shapes: np.ndarray, patch_size: int | Sequence[int] | None) -> tuple[list[int], str]:
    """Return the patch size and its reason; ``shapes`` are resampled shapes of the crops, ``(cases, 3)`` or slices."""
    dims = shapes.shape[1]
    edge, what = PATCH_SIZE[dims], "volumes" if dims == 3 else "slices"
    published = f"published is {' x '.join([str(edge)] * dims)}"
    if patch_size is not None:
        return check_patch_size(patch_size, dims), f"as requested; {published}"
    largest = shapes.max(0)
    patch = [min(edge, int(-(-n // SHAPE_FACTOR) * SHAPE_FACTOR)) for n in largest]
    if patch == [edge] * dims:
        return patch, "as published"
    extent = " x ".join(map(str, largest))
    return patch, (
        f"{published}; the largest {what} at 1 mm reach {extent} voxels, so the rest would be padding: "
        f"rounded up to multiples of {SHAPE_FACTOR} (patch_size {edge} gives the published one)"
    )


def _batch_dice(extents: np.ndarray) -> tuple[bool, str]:
    """
    Decide whether the Dice loss sums over the batch: in the original, if the plan has a low-resolution stage.

    This stage is planned if the median case has at least four times the voxels of a 128^3 patch. Its spacing is
    increased in steps of 1% until this is no longer the case, and it is kept if it then has less than half of the
    voxels.
    """
    median = np.median(extents, 0)  # not rounded, as in the original; the shapes of the stages are
    patch = PATCH_SIZE[3] ** 3
    ratio = float(median.prod() / patch)
    growth = 1.0
    while (median / growth).prod() > FIRST_STAGE_PATCHES * patch:
        growth *= 1.01
    full, low = np.round(median), np.round(median / growth)
    two_stages = ratio >= FIRST_STAGE_PATCHES and 2 * low.prod() < full.prod()
    numbers = (
        f"the median case at 1 mm, {' x '.join(str(int(n)) for n in full)} voxels, is {ratio:.2g} times a "
        f"{PATCH_SIZE[3]}^3 patch"
    )
    if two_stages:
        return True, f"{numbers}: the original plans a low-resolution stage and therefore sums the Dice over the batch"
    return False, f"{numbers}: the original plans a single stage and therefore computes the Dice of each sample"


def _normalization(channel_names: list[str], cases: Sequence[CaseFingerprint]) -> tuple[list[str], list[str]]:
    """Return the scheme of each channel and its reason: the channel name and, except for CT, the nonzero crop."""
    reduction = float(np.median([case.size_reduction for case in cases]))
    crop = f"the nonzero crop keeps {reduction:.0%} of the voxels of the median case"
    schemes, reasons = [], []
    for name in channel_names:
        if name in ("CT", "ct"):
            masked = name == "ct" and reduction < MASK_BELOW  # the original looks for capital letters before it masks
            schemes.append("masked_CT" if masked else "CT")
            why = f"the name is {name}: clip to the foreground's 0.5 and 99.5 percentiles, use its mean and sd"
            reasons.append(f"{why}; {crop}, less than {MASK_BELOW:.0%}: 0 outside the nonzero mask" if masked else why)
        elif name == "noNorm":
            schemes.append("none")
            reasons.append("the name is noNorm")
        elif "CT" not in name and reduction < MASK_BELOW:
            schemes.append("masked_zscore")
            reasons.append(f"{crop}, less than {MASK_BELOW:.0%}: mean and sd inside the nonzero mask, 0 outside")
        else:
            schemes.append("zscore")
            because = "'CT' in the name forbids the mask" if "CT" in name else f"{crop}, not less than {MASK_BELOW:.0%}"
            reasons.append(f"{because}: mean and sd of the whole crop of each case")
    return schemes, reasons


def _anisotropy(case: CaseFingerprint) -> float:
    return max(case.spacing) / min(case.spacing)


def _describe_spacing(cases: Sequence[CaseFingerprint]) -> str:
    median = np.median([case.spacing for case in cases], 0)
    return f"the data's median is {' x '.join(f'{v:.3g}' for v in median)} mm"


def _label_decisions(dataset: Dataset, cases: Sequence[CaseFingerprint]) -> list[dict[str, str]]:
    """Return how regions and the ignore label are treated, if there are any."""
    decisions = []
    if dataset.regions:
        value = "; ".join(f"{name} = {' + '.join(map(str, values))}" for name, values in dataset.regions.items())
        classes = ", ".join(f"{value} {name}" for value, name in enumerate(dataset.labels) if value)
        why = (
            f"the labels are regions: trained as the exclusive classes {classes}, evaluated as the regions, which are "
            "their unions, as the authors train and evaluate on BraTS (nnU-Net v2 trains the regions)"
        )
        decisions.append({"what": "regions", "value": value, "why": why})
    if dataset.ignore_label is not None:
        voxels = sum(int(np.prod(case.shape)) for case in cases)
        share = sum(case.ignored_voxels for case in cases) / voxels
        why = (
            f"{share:.1%} of the voxels are not annotated: excluded from loss, sampling, statistics, validation and "
            "evaluation, as in nnU-Net v2; predictions have a class everywhere"
        )
        decisions.append({"what": "ignore_label", "value": str(dataset.ignore_label), "why": why})
    return decisions


def _slice_decisions(slices: Slices | None) -> list[dict[str, str]]:
    if slices is None:
        return []
    why = "as requested; the authors' package offers 2D and calls it untested"
    return [{"what": "spatial_dims", "value": "2", "why": why}, *slices.decisions]


def _dummy_2d_decision(dummy_2d: bool, patch: Sequence[int]) -> list[dict[str, str]]:
    if len(patch) == 2:
        return []
    return [{"what": "dummy_2d", "value": "yes" if dummy_2d else "no", "why": _why_dummy_2d(patch)}]


def _resampling(cases: Sequence[CaseFingerprint], spacing: Sequence[float | None]) -> tuple[str, str]:
    """Return how the cases are resampled and the anisotropy that determines it."""
    anisotropy = [_anisotropy(case) for case in cases]
    separate = sum(separate_axis(case.spacing, spacing) is not None for case in cases)
    why = (
        f"coarsest over finest spacing: median {np.median(anisotropy):.2f}, largest {max(anisotropy):.2f}; above "
        f"{ANISOTROPY_THRESHOLD} (here {separate} of {len(cases)} cases) the coarse axis is resampled by nearest "
        "neighbor"
    )
    if not separate:
        return "cubic for images, linear for labels", why
    if separate == len(cases):
        return "in plane cubic and linear, nearest along the coarse axis", why
    return "cubic and linear, nearest along the coarse axis of anisotropic cases", why


def _why_batch_size(batch_size: int, spatial_dims: int) -> str:
    if spatial_dims == 2:
        same = batch_size == BATCH_SIZE[2]
        return (
            f"{'' if same else f'as requested; {BATCH_SIZE[2]} by default: '}at 512 x 512 about the memory of the "
            "published 2 x 128^3 (the original computes it for the memory of its U-Net)"
        )
    if batch_size == BATCH_SIZE[3]:
        return "as published (the original's planner increases it for small images, for a patch it then discards)"
    return f"as requested; published is {BATCH_SIZE[3]}"


def _why_dummy_2d(patch: Sequence[int]) -> str:
    ratio = max(patch) / min(patch)
    than = "more" if ratio > ANISOTROPY_THRESHOLD else "not more"
    return (
        f"longest over shortest edge of the patch is {ratio:.2f}, {than} than {ANISOTROPY_THRESHOLD} (the original "
        "tests this for a patch that it then discards)"
    )


def _fits(memory: dict[str, dict[str, float]]) -> dict[str, str]:
    """Return the decision without a card: the smallest usual one that fits each variant as published."""
    groups: dict[str, list[str]] = {}
    for name, row in memory.items():
        needed = row[published_setting(name)]
        card = next((f"{card} GiB" for card in CARDS_GIB if needed <= card), "none of the usual cards")
        groups.setdefault(card, []).append(name)
    why = (
        f"smallest usual card, {ESTIMATE}; M and L compute blocks again, as published (with gpu_memory, the setting of "
        "each variant is chosen)"
    )
    return {"what": "memory", "value": _grouped(groups), "why": why}


def _checkpointing(fastest: dict[str, str | None], gpu_memory: float) -> dict[str, str]:
    """Return the decision for a card of ``gpu_memory`` GiB, given the fastest setting that fits each variant."""
    groups: dict[str, list[str]] = {}
    for name, setting in fastest.items():
        groups.setdefault(setting or "does not fit", []).append(name)
    why = (
        f"fastest setting that fits the card of {gpu_memory:g} GiB, {ESTIMATE}; off stores all activations, "
        "expansion computes all but the depthwise convolutions again, block whole blocks, with the same results; "
        "published are off for S and B, block for M and L"
    )
    return {"what": "gradient_checkpointing", "value": _grouped(groups), "why": why}


def _grouped(groups: dict[str, list[str]]) -> str:
    return "; ".join(f"{group}: {', '.join(names)}" for group, names in groups.items())


def _warnings(dataset: Dataset, cases: Sequence[CaseFingerprint], patch: list[int], schemes: list[str]) -> list[str]:
    """Return warnings about properties that are valid but often a mistake."""
    warnings = []
    orientations = Counter(case.orientation for case in cases)
    if len(orientations) > 1:
        found = ", ".join(f"{count} x {name}" for name, count in orientations.most_common())
        rare = [case.id for case in cases if case.orientation != orientations.most_common(1)[0][0]]
        warnings.append(
            f"the files have different axis orientations ({found}), for example {', '.join(rare[:3])}; the recipe "
            "keeps the axes of the files, so the network sees them rotated or mirrored"
        )
    for name, scheme in zip(dataset.channel_names, schemes):
        if scheme not in CT_SCHEMES and "ct" in name.lower().replace("_", " ").replace("-", " ").split():
            warnings.append(f"channel {name!r} is normalized as {scheme}; name it exactly 'CT' for the CT scheme")
    cut = [case for case in cases if case.foreground_outside]
    if cut:
        counts = [f"{case.id} ({_foreground_kept(case)})" for case in cut]
        warnings.append(
            f"foreground outside the box of the nonzero voxels is cut off, as in the original, in {len(cut)} "
            f"case{'s' * (len(cut) > 1)}: {some(counts)}; check that image and label belong together"
        )
    if len(cases) < 5:
        warnings.append(f"only {len(cases)} case{'s' * (len(cases) > 1)}: no five folds")
    if max(patch) == SHAPE_FACTOR:
        warnings.append("the patch is so small that the bottleneck is a single voxel; set patch_size")
    return warnings


def _foreground_kept(case: CaseFingerprint) -> str:
    voxels = int(case.class_voxels[1:].sum())
    return f"{voxels - case.foreground_outside} of {voxels} voxels remain"


def _summary(cases: Sequence[CaseFingerprint], shapes: np.ndarray, extents: np.ndarray) -> dict:
    """Return the fingerprint of the data set as a whole."""
    counts = np.array([case.class_voxels for case in cases])
    return {
        "cases": len(cases),
        "median_shape": np.median([case.shape for case in cases], 0).tolist(),
        "median_spacing_mm": np.median([case.spacing for case in cases], 0).tolist(),
        "median_resampled_shape": np.round(np.median(extents, 0)).astype(int).tolist(),
        "largest_resampled_shape": shapes.max(0).tolist(),
        "median_size_reduction": float(np.median([case.size_reduction for case in cases])),
        "orientations": dict(Counter(case.orientation for case in cases).most_common()),
        "class_voxel_share": (counts.sum(0) / counts.sum()).tolist(),
        "class_cases": (counts > 0).sum(0).tolist(),
    }


def _case_entry(case: CaseFingerprint) -> dict:
    return {
        "id": case.id,
        "shape": list(case.shape),
        "spacing": list(case.spacing),
        "orientation": case.orientation,
        "cropped_shape": list(case.cropped_shape),
        "class_voxels": case.class_voxels.tolist(),
    }
