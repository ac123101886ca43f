"""Weights of MedNeXt: reading checkpoints, saying what they are, UpKern, conversion from and to other implementations.

Nothing in here runs code that a file holds: checkpoints are read with ``torch.load(weights_only=True)``.
"""

from .check import check_checkpoint
from .convert import Conversion, convert, reverse_spatial_axes
from .describe import NetworkDescription, describe
from .state_dict import read_state_dict, write_state_dict
from .upkern import UpKernReport, upkern

__all__ = [
    "Conversion",
    "NetworkDescription",
    "UpKernReport",
    "check_checkpoint",
    "convert",
    "describe",
    "read_state_dict",
    "reverse_spatial_axes",
    "upkern",
    "write_state_dict",
]
