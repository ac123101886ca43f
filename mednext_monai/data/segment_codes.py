"""DICOM codes of classes by their names.

The codes are those of SNOMED CT in the context groups of DICOM PS3.16. A name that is not listed here has no code: none
is guessed from a part of a name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

__all__ = ["known_codes"]

BODY_STRUCTURE = ("123037004", "Body structure")
ALTERED_STRUCTURE = ("49755003", "Morphologically Altered Structure")
SIDES = {"left": ("7771000", "Left"), "right": ("24028007", "Right")}
STRUCTURES = {
    "adrenal gland": "23451007",
    "amygdala": "4958002",
    "aorta": "15825003",
    "brain": "12738006",
    "brain stem": "119238007",
    "breast": "76752008",
    "cerebellum": "113305005",
    "clavicle": "51299004",
    "colon": "71854001",
    "duodenum": "38848004",
    "esophagus": "32849002",
    "eye": "81745001",
    "femur": "71341001",
    "gallbladder": "28231008",
    "heart": "80891009",
    "hepatic vein": "8993003",
    "hip": "29836001",
    "hippocampus": "5366008",
    "humerus": "85050009",
    "inferior vena cava": "64131007",
    "kidney": "64033007",
    "left atrium": "82471001",
    "left ventricle": "87878005",
    "liver": "10200004",
    "lung": "39607008",
    "mandible": "91609006",
    "myocardium": "74281007",
    "optic nerve": "18234004",
    "ovary": "15497006",
    "pancreas": "15776009",
    "parotid gland": "45289007",
    "patella": "64234005",
    "portal vein": "32764006",
    "prostate": "41216001",
    "pulmonary artery": "81040000",
    "rectum": "34402009",
    "rib": "113197003",
    "right atrium": "73829009",
    "right ventricle": "53085002",
    "sacrum": "54735007",
    "scapula": "79601000",
    "skull": "89546000",
    "small intestine": "30315005",
    "spinal cord": "2748008",
    "spleen": "78961009",
    "stomach": "69695003",
    "superior vena cava": "48345005",
    "thalamus": "42695009",
    "thyroid": "69748006",
    "tibia": "12611008",
    "trachea": "44567001",
    "urinary bladder": "89837001",
    "uterus": "35039007",
    "vertebra": "51282000",
}
ALTERATIONS = {
    "cyst": "367643001",
    "edema": "79654002",
    "hemorrhage": "50960005",
    "lesion": "52988006",
    "necrosis": "6574001",
    "neoplasm": "108369006",
    "thrombus": "396339007",
}
SYNONYMS = {
    "bladder": "urinary bladder",
    "brainstem": "brain stem",
    "cancer": "neoplasm",
    "gall bladder": "gallbladder",
    "oedema": "edema",
    "oesophagus": "esophagus",
    "small bowel": "small intestine",
    "thyroid gland": "thyroid",
    "tumor": "neoplasm",
    "tumour": "neoplasm",
}


def known_codes(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """
    Return the codes of the classes whose names are known, as ``segment_codes`` of the metadata states them.

    A name is compared without case and punctuation, and without a ``left`` or ``right`` at its beginning or end, which
    becomes the modifier.

    Args:
        names: name of each class by its value, background first.

    Returns:
        by the value of the class, as text, ``category``, ``type`` and, for a side, ``modifier``; see
        :py:func:`~mednext_monai.data.segments.make_segments`.
    """
    found = {str(value): _codes(name) for value, name in enumerate(names) if value}
    return {value: codes for value, codes in found.items() if codes}


def _codes(name: str) -> dict[str, Any]:
    words = re.findall(r"[a-z0-9]+", name.lower())
    side = None
    if " ".join(words) not in STRUCTURES:
        side = next((word for word in (words[:1] + words[-1:]) if word in SIDES), None)
        words = [word for word in words if word != side]
    text = " ".join(words)
    text = SYNONYMS.get(text, text)
    category = BODY_STRUCTURE if text in STRUCTURES else ALTERED_STRUCTURE
    value = STRUCTURES.get(text, ALTERATIONS.get(text))
    if value is None:
        return {}
    codes = {"category": _code(*category), "type": _code(value, text.capitalize())}
    return codes if side is None else {**codes, "modifier": _code(*SIDES[side])}


def _code(value: str, meaning: str) -> dict[str, str]:
    return {"value": value, "scheme": "SCT", "meaning": meaning}
