"""Inferers, which apply a network to a whole preprocessed image.

- ``sliding_window``: class probabilities by sliding windows, as published.
- ``class_map``: class maps on the grid of the file, without holding the probabilities of a whole image.
- ``ensemble``: class maps of networks that see differently preprocessed images.
"""

from .class_map import ClassMapInferer
from .ensemble import EnsembleInferer, class_map_inferer
from .sliding_window import MedNeXtInferer

__all__ = ["ClassMapInferer", "EnsembleInferer", "MedNeXtInferer", "class_map_inferer"]
