"""Weights of MedNeXt: reading and loading checkpoints, describing them, UpKern, and conversion between implementations.

Checkpoints are read with ``torch.load(weights_only=True)``: no code in a file is ever executed.
"""

from .conversion import Conversion, convert, reverse_spatial_axes
from .description import NetworkDescription, describe
from .kernel_interpolation import UpKernReport, upkern
from .load import load_weights
from .state_dict import read_checkpoint, read_state_dict, write_checkpoint

__all__ = [
    "Conversion",
    "NetworkDescription",
    "UpKernReport",
    "convert",
    "describe",
    "load_weights",
    "read_checkpoint",
    "read_state_dict",
    "reverse_spatial_axes",
    "upkern",
    "write_checkpoint",
]
