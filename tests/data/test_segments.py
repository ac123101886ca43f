"""Classes have the names and codes that are stated, and a code that is none is named."""

from __future__ import annotations

import pytest

from mednext_monai.data.segments import BODY_STRUCTURE, ORGAN, Code, Segment, make_segments


def test_every_class_but_the_background_is_an_organ_unless_codes_say_otherwise():
    liver = {"value": "10200004", "scheme": "SCT", "meaning": "Liver"}
    assert make_segments(["background", "liver", "", "a\\b"], {"1": {"type": liver}}) == [
        Segment(1, "liver", BODY_STRUCTURE, Code("10200004", "SCT", "Liver")),
        Segment(3, "a/b", BODY_STRUCTURE, ORGAN),
    ]
    assert make_segments(["background", "x" * 70])[0].name == "x" * 64


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([], "codes must be an object whose keys are classes, 1, 2; got"),
        ({"3": {}}, "codes must be an object whose keys are classes, 1, 2"),
        ({"0": {}}, "codes must be an object whose keys are classes, 1, 2"),
        ({"1": {"kind": {}}}, "class 1: the keys must be category, type and modifier, got"),
        ({"1": {"type": "Liver"}}, "class 1, type: must be value, scheme"),
        ({"1": {"type": {"value": "1", "scheme": "SCT"}}}, "class 1, type: must be value, scheme"),
        ({"2": {"category": {"value": "1" * 17, "scheme": "SCT", "meaning": "m"}}}, "class 2, category: must be"),
    ],
)
def test_codes_that_are_none_are_refused(codes, message):
    with pytest.raises(ValueError, match=message):
        make_segments(["background", "a", "b"], codes)
