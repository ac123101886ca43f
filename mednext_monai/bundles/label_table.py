"""``models/labels.csv``: the classes of a bundle, as 3D Slicer reads them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..data.segments import Code, Segment

__all__ = ["label_table"]

GENERIC = ["background", "foreground"]  # of a bundle that is for any task
SEQUENCES = (
    "SegmentedPropertyCategoryCodeSequence",
    "SegmentedPropertyTypeCodeSequence",
    "SegmentedPropertyTypeModifierCodeSequence",
    "AnatomicRegionSequence",
    "AnatomicRegionModifierSequence",
)
FIELDS = ("CodingSchemeDesignator", "CodeValue", "CodeMeaning")


def label_table(metadata: Mapping[str, Any]) -> bytes | None:
    """
    Return the table of the classes that the metadata of a bundle name.

    The columns are those of 3D Slicer's MONAIAuto3DSeg, which names the segments of a result by the file: the value in
    the segmentation, the name, and its DICOM codes, which are those of DICOM-SEG.

    Args:
        metadata: with ``channel_def`` and, optionally, ``segment_codes`` of the output ``pred``.

    Returns:
        the content of the file, UTF-8, or ``None`` if the metadata are those of a bundle for any task.
    """
    from ..data.segments import make_segments  # imports numpy

    pred = metadata["network_data_format"]["outputs"]["pred"]
    described = {int(value): str(name) for value, name in pred["channel_def"].items()}
    names = [described[value] for value in sorted(described)]
    if names == GENERIC:
        return None
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["LabelValue", "Name", *(f"{sequence}.{field}" for sequence in SEQUENCES for field in FIELDS)])
    rows.writerows(_row(segment) for segment in make_segments(names, pred.get("segment_codes")))
    return text.getvalue().encode("utf-8", "replace")  # a name may have half a pair of surrogates


def _row(segment: Segment) -> list:
    codes = (segment.category, segment.type, segment.modifier, None, None)
    return [segment.value, segment.name, *(text for code in codes for text in _texts(code))]


def _texts(code: Code | None) -> tuple[str, str, str]:
    return ("", "", "") if code is None else (code.scheme, code.value, code.meaning)
