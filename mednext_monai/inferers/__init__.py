"""Inferers, which apply a network to a patch or to a whole preprocessed image.

- ``autocast``: a patch, also in bfloat16 on a CPU.
- ``sliding_window``: class probabilities by sliding windows, as published.
- ``class_map``: class maps on the grid of the file, without holding the probabilities of a whole image.
- ``ensemble``: class maps of networks that see differently preprocessed images.
"""

from .autocast import AutocastInferer
from .class_map import ClassMapInferer
from .ensemble import EnsembleInferer, class_map_inferer
from .sliding_window import MedNeXtInferer

__all__ = ["AutocastInferer", "ClassMapInferer", "EnsembleInferer", "MedNeXtInferer", "class_map_inferer"]
