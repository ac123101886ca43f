"""The section ``prediction``: a whole scan, from its file to the file of its segmentation, as a bundle predicts it.

What is measured is what a user waits for and needs: the seconds, the peak memory above that of a process that has
loaded the libraries and built the network, and the time outside the network (reading, resampling, normalization,
averaging of windows, resampling back, writing) as a percentage of the network's. Each round is a process of its own.

The network sees all windows unless ``--scan_windows`` limits them: its last output then stands in for the others, and
the mean time of the windows that were computed counts for each.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import torch
from monai.data import list_data_collate

from mednext_monai.inferers import ClassMapInferer, MedNeXtInferer
from mednext_monai.networks import create_mednext
from mednext_monai.transforms import Preprocessd, SaveImageOnSourceGridd

from .contestants import autocast
from .memory import peak_of
from .timing import OURS, Measurement

__all__ = ["measure_prediction"]

BLOCK = 16  # voxels of a block of the synthetic scan with one value


class Found(NamedTuple):
    """What one prediction took."""

    seconds: float
    network: float  # seconds
    peak: float  # MiB
    windows: int


def measure_prediction(options: Namespace) -> Iterator[Measurement]:
    """Predict a synthetic scan with every variant: its time, its peak memory, and the share of what is not network."""
    shape = "x".join(map(str, options.scan))
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scan.nii.gz"
        _write_scan(scan, options.scan, options.scan_spacing)
        for variant in options.variants:
            rounds = [_in_a_process(options, variant, scan) for _ in range(options.repeats)]
            case = f"{variant.replace('_', ' ')}, {shape} at {options.scan_spacing:g} mm, {options.classes} classes"
            case += f", {options.accumulate}" if options.accumulate != "float32" else ""
            computed = min(options.scan_windows or rounds[0].windows, rounds[0].windows)
            notes = [f"{rounds[0].windows} windows of {options.roi}^3, of which the network computed {computed}."]
            outside = [100 * (found.seconds - found.network) / found.network for found in rounds]
            for what, unit, values in (
                ("", "s", [found.seconds for found in rounds]),
                (", peak memory", "MiB", [found.peak for found in rounds]),
                (", outside the network", "%", outside),
            ):
                yield Measurement("prediction", case + what, unit, {OURS: values}, notes=notes)


def _write_scan(file: Path, shape: tuple[int, ...], spacing: float) -> None:
    """Write a scan of noisy blocks, int16, none of which is constant or zero: nothing is cropped or skipped."""
    random = np.random.default_rng(0)
    blocks = random.integers(-900, 900, [-(-count // BLOCK) for count in shape])
    array = np.empty(shape, np.int16)
    for x in range(shape[0]):
        plane = np.repeat(np.repeat(blocks[x // BLOCK], BLOCK, 0), BLOCK, 1)[: shape[1], : shape[2]]
        array[x] = plane + random.integers(1, 64, shape[1:])
    image = nibabel.Nifti1Image(array, np.diag([spacing] * 3 + [1]))
    nibabel.save(image, file)


def _in_a_process(options: Namespace, variant: str, scan: Path) -> Found:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch and MONAI are imported once
    with ProcessPoolExecutor(1, mp_context=context) as pool:  # raises a RuntimeError if the process is killed
        return pool.submit(_predict, options, variant, scan).result()


def _predict(options: Namespace, variant: str, scan: Path) -> Found:
    """Predict the scan in this process."""
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    letter, kernel_size = variant.split("_k")
    torch.manual_seed(0)
    network = create_mednext(
        letter, int(kernel_size), out_channels=options.classes, base_channels=options.base_channels
    ).to(device)
    network.eval()
    timed = _Timed(network, device, options.scan_windows)
    preprocess = Preprocessd("image", normalization=["zscore"], label_key=None)
    windows = MedNeXtInferer(options.roi, accumulate=options.accumulate, mirror=options.mirror == "on")
    inferer, save = ClassMapInferer(windows), SaveImageOnSourceGridd("pred", scan.parent)
    elapsed = 0.0

    def predict() -> None:
        nonlocal elapsed
        started = time.perf_counter()
        batch = list_data_collate([preprocess({"image": scan, "id": f"{variant}_segmentation"})])
        with torch.no_grad(), autocast(options):
            pred = inferer(batch["image"].to(device), timed)
        save({"pred": pred[0]})
        elapsed = time.perf_counter() - started

    size = min(options.roi, 32)
    with torch.no_grad():
        network(torch.zeros(1, 1, size, size, size, device=device))  # loads libraries and starts threads
    peak = peak_of(predict, device)
    return Found(elapsed + timed.saved, timed.seconds + timed.saved, peak, timed.calls)


class _Timed:
    """A network that measures its time; after some windows its last output stands in for the others."""

    def __init__(self, network: torch.nn.Module, device: torch.device, limit: int | None) -> None:
        self.network, self.device, self.limit = network, device, limit
        self.calls = 0
        self.seconds = 0.0  # of the windows that were computed
        self.last: torch.Tensor | None = None

    @property
    def saved(self) -> float:
        """Seconds that the other windows would have taken."""
        computed = min(self.calls, self.limit or self.calls)
        return self.seconds / computed * (self.calls - computed)

    def __call__(self, window: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.last is not None:
            return self.last
        self._wait()
        started = time.perf_counter()
        output = self.network(window)
        self._wait()
        self.seconds += time.perf_counter() - started
        if self.calls == self.limit:
            self.last = output
        return output

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
