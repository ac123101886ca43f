"""Weights of MedNeXt: reading and loading checkpoints, describing them, UpKern, and conversion between implementations.

A checkpoint of a bundle's training carries the settings of that training, see ``settings``.

Checkpoints are read with ``torch.load(weights_only=True)``: no code in a file is ever executed.
"""

from .conversion import Conversion, convert, reverse_spatial_axes
from .description import NetworkDescription, describe
from .kernel_interpolation import UpKernReport, upkern
from .load import load_weights, read_weights
from .locate import find_checkpoint, find_checkpoints, fold_folder, fold_name
from .members import Group, Members, find_members
from .released import find_pretrained, set_aside, starting_point
from .settings import carry_settings, check_fold, read_settings, task_settings, training_settings
from .state_dict import read_checkpoint, read_state_dict, write_checkpoint

__all__ = [
    "Conversion",
    "Group",
    "Members",
    "NetworkDescription",
    "UpKernReport",
    "carry_settings",
    "check_fold",
    "convert",
    "describe",
    "find_checkpoint",
    "find_checkpoints",
    "find_members",
    "find_pretrained",
    "fold_folder",
    "fold_name",
    "load_weights",
    "read_checkpoint",
    "read_settings",
    "read_state_dict",
    "read_weights",
    "set_aside",
    "starting_point",
    "reverse_spatial_axes",
    "task_settings",
    "training_settings",
    "upkern",
    "write_checkpoint",
]
