"""Codes of classes with well-known names."""

from __future__ import annotations

import pytest

from mednext_monai.data.segment_codes import ALTERATIONS, STRUCTURES, SYNONYMS, known_codes
from mednext_monai.data.segments import make_segments


def test_a_known_name_has_the_code_of_dicom_and_any_other_has_none():
    codes = known_codes(
        ["background", "Liver", "left_kidney", "Kidney, right", "left atrium", "Tumour", "blob", "liver 2"]
    )
    types = {value: code["type"]["value"] for value, code in codes.items()}
    assert types == {"1": "10200004", "2": "64033007", "3": "64033007", "4": "82471001", "5": "108369006"}
    sides = {value: code["modifier"]["meaning"] for value, code in codes.items() if "modifier" in code}
    assert sides == {"2": "Left", "3": "Right"}
    assert codes["5"]["category"]["value"] == "49755003"
    assert known_codes(["liver"]) == {}


def test_the_codes_are_those_that_a_segmentation_takes():
    names = ["background", *STRUCTURES, *ALTERATIONS, *SYNONYMS]
    segments = make_segments(names, known_codes(names))
    assert len(segments) == len(names) - 1 and all(one.type.scheme == "SCT" for one in segments)
    assert all(one.type.meaning != "Organ" for one in segments)


def test_the_codes_agree_with_the_dictionary_of_pydicom():
    codes = pytest.importorskip("pydicom.sr.codedict").codes
    for name, value in {**STRUCTURES, **ALTERATIONS}.items():
        keyword = {"urinary bladder": "Bladder"}.get(name, "".join(word.capitalize() for word in name.split()))
        if name != "myocardium":  # not in its dictionary
            assert getattr(codes.SCT, keyword).value == value, name
