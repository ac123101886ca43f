"""MedNeXt for MONAI: the published network (Roy et al., MICCAI 2023), its recipe, its weights and eight bundles.

- ``networks``: the network, its blocks, the variants S, B, M, L, and optimized implementations of them.
- ``weights``: reading checkpoints, UpKern, conversion from and to other implementations.
- ``upstream``: the authors' own names and arguments, for code that migrates by changing an import.
- ``registry``: short names of the networks for MONAI configs.
- ``data``: data sets on disk: their layouts, folds, images and labels, checks, prepared cases, patches.
- ``preprocessing``: cropping, resampling and normalization of arrays.
- ``transforms``: MONAI transforms: preprocessing and its inverse, patches, the original's augmentation.
- ``losses``: the loss without voxels that are not annotated.
- ``handlers``: ignite event handlers that MONAI lacks.
- ``metrics``: ignite metrics of a run, such as pooled Dice.
- ``evaluation``: metrics of segmentations on disk, and the post-processing chosen from them.
- ``inferers``: sliding-window inference. ``engines``: prediction of many cases.
- ``predictor``: segmentation from Python: a path, an array, a tensor or a nibabel image in, the same kind out.
- ``planning``: measures a data set and decides how to train on it, ``mednext plan``.
- ``bundles``: lists, copies, builds and zips the eight bundles, and makes those of a task.
- ``report``: the page about a run, ``mednext report``; ``curves`` reads its event files.
- ``pictures``: slices and overlays of images and segmentations; ``pages``: what HTML pages share.
- ``nnunet``: trainers and plans for nnU-Net v2.
- ``demo``: the synthetic data set and the run behind ``mednext demo``.
- ``benchmark``: time, memory and exactness compared with other implementations, ``python -m mednext_monai.benchmark``.
- ``cli``: the command line; ``files``: atomic writing; ``environment``: versions and hardware; ``memory``: reused
  memory for large tensors; ``background``: a thread that works on what the caller makes.

Importing this package registers short names for bundle configs (see ``registry``) and imports neither torch nor monai;
the names below are imported when they are first used.
"""

from typing import TYPE_CHECKING

from .registry import register as _register

if TYPE_CHECKING:
    from .networks import MedNeXt, create_mednext
    from .predictor import Predictor, predict

__all__ = ["MedNeXt", "Predictor", "__version__", "create_mednext", "predict"]

__version__ = "0.1.0"

_register()


def __getattr__(name: str) -> object:
    if name in ("MedNeXt", "create_mednext"):
        from . import networks

        return getattr(networks, name)
    if name in ("Predictor", "predict"):
        from . import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
