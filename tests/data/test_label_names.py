"""Classes, regions and the ignore label from the labels of dataset.json, by nnU-Net v2's rules."""

from __future__ import annotations

import pytest

from mednext_monai.data.label_names import parse_labels

BRATS = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing": 3}


def test_the_classes_of_brats_are_named_after_its_regions():
    names = parse_labels({**BRATS, "ignore": 4}, [1, 2, 3])
    assert names.classes == [
        "background",
        "whole tumor without tumor core",
        "tumor core without enhancing",
        "enhancing",
    ]
    assert names.regions == {"whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing": [3]}
    assert names.ignore_label == 4 and parse_labels(BRATS).ignore_label is None


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ({"A": [1, 2], "B": [2, 3]}, ["A without B", "A and B", "B without A"]),
        ({"A": [1, 2]}, ["A (1)", "A (2)"]),
        ({"A": [1, 2], "B": [1, 2], "C": 3}, ["A and B (1)", "A and B (2)", "C"]),
        ({"A": [1, 2], "one": 1, "first": [1]}, ["one", "A without one and first"]),
        ({"A": [1, 2], "A (1)": [3, 4]}, ["A (1) (1)", "A (2)", "A (1) (3)", "A (1) (4)"]),
    ],
)
def test_names_are_unique_and_no_class_has_the_name_of_another_region(labels, classes):
    names = parse_labels({"background": 0, **labels})
    assert names.classes[1:] == classes
    others = {name for name, united in names.regions.items() if len(united) > 1}
    assert len(set(classes)) == len(classes) and not others & set(classes)


def test_the_order_of_the_regions_in_the_file_changes_no_name():
    assert parse_labels(dict(reversed(BRATS.items()))).classes == parse_labels(BRATS).classes


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "background", "1": "liver", "2": "tumor", "3": "ignore"},  # Decathlon, nnU-Net v1
        {"background": 0, "liver": 1, "tumor": 2, "ignore": 3},  # nnU-Net v2
        {"background": 0, "liver": [1], "tumor": [2], "ignore": [3]},
    ],
)
def test_plain_classes_with_an_ignore_label(labels):
    assert parse_labels(labels) == (["background", "liver", "tumor"], {}, 3)


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        ({**BRATS, "tumor core": [3]}, None, None),
        ({"background": 0, "whole": [1, 4], "core": 2}, None, r"the label\(s\) 3 are in no region"),
        (
            {"background": 0, "whole": [1, 2**60], "core": 3},
            None,
            r"the label\(s\) 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, ... are in no region",
        ),
        ({"background": 0, "whole": [1, "x"]}, None, r"label 'whole': \[1, 'x'\] has no integer value"),
        ({"background": 0, "whole": [1, 1.5]}, None, "label 'whole': .* has no integer value"),
        ({"background": 0, "whole": [1, 1]}, None, "label 'whole': .* contains a value twice"),
        ({"background": 0, "whole": []}, None, "label 'whole'"),
        ({"whole": [1, 2]}, None, "need the background, 0, as a label of its own"),
        ({"background": 0, "whole": [0, 1]}, None, "need the background, 0, as a label of its own"),
        ({**BRATS, "ignore": 3}, None, "'ignore' must be the highest, above 3, as in nnU-Net v2; got 3"),
        ({**BRATS, "ignore": 0}, None, "'ignore' must be the highest, above 3"),
        ({**BRATS, "ignore": 9}, None, "'ignore' must be the highest, 4, one above the classes; got 9"),
        ({**BRATS, "ignore": [4, 5]}, None, "'ignore' must be one integer"),
        (BRATS, [1, 2], "'regions_class_order' must list 3 integers, one for each region"),
        ({"background": 0, "ignore": 1}, None, "at least one class"),
        ({"background": 0, "one": 1, "three": 3}, None, "numbered without gaps"),
        ([0, 1], None, "'labels' must be an object"),
    ],
)
def test_labels_that_break_the_rules_are_named(labels, order, message):
    if message is None:
        assert parse_labels(labels, order).classes[2] == "whole tumor without tumor core and enhancing (2)"
        return
    with pytest.raises(ValueError, match=message):
        parse_labels(labels, order)
