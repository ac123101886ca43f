"""nnU-Net v2 trainers of MedNeXt: ``nnUNetTrainerMedNeXt_S_kernel3`` and those of all variants in ``names.TRAINERS``.

Network, optimizer, schedule and deep supervision are those of Roy et al., MICCAI 2023; data, augmentation, loss terms,
sampling and prediction are nnU-Net's. Written against nnunetv2 2.8.1, whose ``nnUNetTrainer`` clips gradients at 12, as
published.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.run import run_training
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch._dynamo import OptimizedModule

from ..networks import MedNeXt, create_mednext
from ..networks.mednext import SHAPE_FACTOR
from ..weights import describe, read_weights, upkern
from ..weights.nnunet import from_file_axes, resolve_configuration
from ..weights.settings import training_record
from ..weights.state_dict import unwrap_parallel
from .names import PREFIX, TRAINERS

__all__ = [PREFIX, *TRAINERS]

HEADS = 5  # resolutions of deep supervision: 1, 1/2, 1/4, 1/8 and 1/16
EPSILON = 1e-4  # of AdamW; with mixed precision 1e-8 can end in NaN, say the authors


class nnUNetTrainerMedNeXt(nnUNetTrainer):  # noqa: N801  # nnU-Net takes names from its users
    """
    The base of the trainers; a subclass states what it trains, as in ``names.TrainerSettings``.

    A subclass may also set what nnU-Net's trainers set, such as ``num_epochs`` after ``super().__init__(...)``.

    Attributes:
        variant: S, B, M or L.
        kernel_size: edge of the depthwise kernels in voxels.
        learning_rate: of AdamW, at the start of the schedule.

    Raises:
        ValueError: if the patch size of the plans is not divisible by 16.
    """

    variant = "S"
    kernel_size = 3
    learning_rate = 1e-3

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int | str,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  # nnU-Net's signature
    ) -> None:
        check_patch_size(plans, configuration)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = self.learning_rate
        self.weight_decay = 3e-5

    @classmethod
    def network_options(cls) -> dict[str, Any]:
        """Return further arguments of ``create_mednext``, for subclasses with another network. By default none."""
        return {}

    @classmethod
    def build_network_architecture(  # type: ignore[override]  # nnU-Net calls it as a static method, which fits
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> MedNeXt:
        """
        Return the network, with all five heads even for prediction: nnU-Net loads checkpoints strictly.

        Args:
            plans_manager: not used; the architecture in the plans is not that of this network.
            configuration_manager: its patch size has the number of spatial dimensions.
            num_input_channels, num_output_channels: channels of the image, and classes or regions.
            enable_deep_supervision: whether the network returns five outputs in training mode. Defaults to ``True``.
        """
        network = create_mednext(
            cls.variant,
            cls.kernel_size,
            spatial_dims=len(configuration_manager.patch_size),
            in_channels=num_input_channels,
            out_channels=num_output_channels,
            deep_supervision=True,
            **cls.network_options(),
        )
        network.deep_supervision = enable_deep_supervision
        return network

    def initialize(self) -> None:
        """Build network, optimizer and loss, and have ``-pretrained_weights`` use UpKern."""
        super().initialize()
        # nnU-Net has no hook for it: maybe_load_checkpoint initializes the trainer and then calls this function.
        run_training.load_pretrained_weights = self.load_pretrained_weights

    def load_pretrained_weights(self, network: torch.nn.Module, fname: str, verbose: bool = False) -> None:
        """
        Initialize the network with UpKern from a trained one of the same variant, of any kernel size.

        Called by nnU-Net for ``-pretrained_weights``, in place of its function, which demands equal kernel sizes.

        Args:
            network: the network of this trainer, wrapped or not; for any other nnU-Net's own function is called.
            fname: a checkpoint of nnU-Net v2, weights of a bundle, or another file that
                :py:func:`mednext_monai.weights.read_weights` takes. Heads are left as initialized if the number of
                classes differs.
            verbose: for nnU-Net's own function. Defaults to ``False``.

        Raises:
            ValueError: if the checkpoint cannot be read or differs in more than kernel size and classes.
        """
        if network is not self.network:
            load_pretrained_weights(network, fname, verbose)
            return
        target = _unwrap(network)
        pretrained = from_file_axes(read_weights(fname), self.plans_manager.plans)
        try:
            skip_heads = describe(pretrained).out_channels != target.out_channels
            report = upkern(pretrained, target, skip_heads=skip_heads)
        except ValueError as error:
            raise ValueError(f"-pretrained_weights {fname}: {error}") from error
        self.print_to_log_file(f"{report} (from {fname})")

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """Return the published optimizer and its polynomial schedule over all epochs, exponent 0.9."""
        optimizer = torch.optim.AdamW(
            self.network.parameters(), self.initial_lr, eps=EPSILON, weight_decay=self.weight_decay
        )
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        """Return the resolutions of the five heads, which nnU-Net takes from the strides of its own network."""
        if not self.enable_deep_supervision:
            return None
        axes = len(self.configuration_manager.patch_size)
        return [[1 / 2**level] * axes for level in range(HEADS)]

    def _build_loss(self) -> torch.nn.Module:
        """Return nnU-Net's loss with the published weights of the heads, 16, 8, 4, 2 and 1, divided by 31."""
        loss = super()._build_loss()
        if isinstance(loss, DeepSupervisionWrapper):  # nnU-Net's weights leave the last head out
            weights = np.array([2.0**-level for level in range(HEADS)])
            loss.weight_factors = tuple((weights / weights.sum()).tolist())
        return loss

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Set whether the network returns five outputs in training mode."""
        _unwrap(self.network).deep_supervision = enabled

    def on_validation_epoch_start(self) -> None:
        """Keep training mode, in which the network returns the outputs that the loss needs. It has no dropout."""
        self.network.train()

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return the cases of the fold; checkpoints get hashes of the training cases, which bundles check."""
        training, validation = super().do_split()
        self.my_init_kwargs.update(training_record([{"id": name} for name in training]))
        return training, validation


def check_patch_size(plans: dict, configuration: str) -> None:
    """
    Check that MedNeXt can take patches of the plans.

    Raises:
        ValueError: naming plans, configuration and patch size, if an axis is not divisible by 16, or if there is no
            such configuration.
    """
    patch: Sequence[int] = resolve_configuration(plans, configuration)["patch_size"]
    if any(size % SHAPE_FACTOR for size in patch):
        raise ValueError(
            f"the plans {plans.get('plans_name')!r} have patches of {list(patch)} voxels in {configuration}, but "
            f"MedNeXt needs sizes divisible by {SHAPE_FACTOR}: make plans with `mednext nnunet plan` and train with "
            "-p, or change patch_size in the plans."
        )


def _unwrap(network: torch.nn.Module) -> Any:
    """Return the network inside DistributedDataParallel and torch.compile."""
    inner = unwrap_parallel(network)
    return inner._orig_mod if isinstance(inner, OptimizedModule) else inner


def _trainer(name: str) -> type[nnUNetTrainerMedNeXt]:
    settings = TRAINERS[name]._asdict()
    doc = "MedNeXt-{variant}, kernel {kernel_size}, learning rate {learning_rate}.".format(**settings)
    return type(name, (nnUNetTrainerMedNeXt,), {**settings, "__doc__": doc, "__module__": __name__})


globals().update({name: _trainer(name) for name in TRAINERS})
