"""Inferers, which apply a network to a whole preprocessed image.

- ``sliding_window``: class probabilities by sliding windows, as published.
- ``class_map``: class maps on the grid of the file, without holding the probabilities of a whole image.
"""

from .class_map import ClassMapInferer
from .sliding_window import MedNeXtInferer

__all__ = ["ClassMapInferer", "MedNeXtInferer"]
