"""MedNeXt for MONAI: the published network (Roy et al., MICCAI 2023), its recipe, its weights and eight bundles.

What lies where:

- ``networks``: the network, its blocks, the variants S, B, M, L.
- ``weights``: reading checkpoints, UpKern, conversion from and to other implementations.
- ``upstream``: the authors' own names and arguments, for code that migrates by changing an import.
- ``handlers``: ignite event handlers that MONAI lacks.
- ``metrics``: ignite metrics that MONAI lacks.
- ``data``: reading a data set's layout, data lists, folds, and the checks before training.
- ``planning``: measuring a data set and deciding how to train on it, ``mednext plan``.
- ``preprocessing``: crop, resampling, normalisation, the way back to the file's grid, and the store of prepared cases.
- ``transforms``: the original's patch sampling and nine augmentations as MONAI transforms.
- ``bundles``: finding, copying, building and zipping the eight bundles.
- ``pictures``: slices of a volume with its segmentation, as PNG or arrays.
- ``demo``: the synthetic data set and the run behind ``mednext demo``.
- ``benchmark``: time, memory and exactness against the other implementations, ``python -m mednext_monai.benchmark``.

Importing this package registers short names for bundle configs (see ``registry``) and imports neither torch nor monai.
"""

from .registry import register as _register

__version__ = "0.1.0"

_register()
