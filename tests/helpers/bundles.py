"""Running a bundle as a user does: ``python -m monai.bundle run`` in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from helpers.checkpoints import TRAINED
from mednext_monai import bundles
from mednext_monai.networks import create_mednext
from mednext_monai.weights.settings import attach_settings

__all__ = ["TINY", "BundleRunner", "make_member", "make_trained"]

TINY = [
    "--patch_size",
    "[32,32,32]",
    "--network_def::base_channels",
    "4",
    "--num_workers",
    "0",
    "--seed",
    "0",
    "--pseudo_dice_batches",
    "2",
]
SILENT = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


class BundleRunner:
    """
    Run a bundle on a data set with a tiny network.

    Args:
        bundle: the bundle's folder.
        dataset: the data set's folder.
        cwd: the working directory of the runs.
    """

    def __init__(self, bundle: Path, dataset: Path, cwd: Path) -> None:
        self.bundle, self.dataset, self.cwd = bundle, dataset, cwd

    def __call__(
        self,
        run_id: str,
        *configs: str,
        options: tuple[str, ...] = (),
        launcher: tuple[str, ...] = (),
        check: bool = True,
        overlay: Path | None = None,
        kill_when: Path | None = None,
    ) -> subprocess.CompletedProcess | None:
        """Run ``run_id`` of the configs; with ``kill_when`` kill the process as soon as that file is there."""
        paths = [self.bundle / "configs" / f"{name}.json" for name in configs] + [overlay] * (overlay is not None)
        files = "[" + ",".join(f"'{path}'" for path in paths) + "]"
        command = [sys.executable, *(launcher or ("-m",)), "monai.bundle", "run", run_id, "--config_file", files]
        command += ["--bundle_root", str(self.bundle), "--dataset_dir", str(self.dataset), "--out_channels", "3"]
        command += [*TINY, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if kill_when is not None:
            return _kill_as_soon_as(kill_when, subprocess.Popen(command, cwd=self.cwd, env=environment, **SILENT))
        result = subprocess.run(command, cwd=self.cwd, env=environment, capture_output=True, text=True, timeout=300)
        if check:
            assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
        return result


def make_trained(name: str, directory: Path, base_channels: int = 8) -> Path:
    """Copy a bundle to a folder, with a narrower network, for speed, and with weights; return the bundle's folder."""
    folder = bundles.copy(name, directory / "bundles")
    variant, kernel_size = name.split("_")[1].upper(), int(name[-1])
    network = create_mednext(variant, kernel_size, deep_supervision=True, base_channels=base_channels)
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    for file in (folder / "configs" / "train.json", folder / "configs" / "inference.json"):
        content = {**json.loads(file.read_text()), "released_task": None}
        content["network_def"]["base_channels"] = base_channels
        file.write_text(json.dumps(content))
    return folder


def make_member(name: str, directory: Path, seed: int = 0, base_channels: int = 4, **settings: Any) -> Path:
    """
    Copy a bundle and give it random weights for three classes that say how they were trained; return its folder.

    Args:
        name: the bundle.
        directory: the folder of the copy.
        seed: of the weights.
        base_channels: of the network.
        settings: those that differ from the published ones, with windows of 32 voxels. ``stated=False``: the
            checkpoint has none.
    """
    folder = bundles.copy(name, directory)
    torch.manual_seed(seed)
    channels = {"in_channels": settings.get("in_channels", 1), "out_channels": settings.get("out_channels", 3)}
    variant, kernel_size = name.split("_")[1].upper(), int(name[-1])
    network = create_mednext(variant, kernel_size, **channels, deep_supervision=True, base_channels=base_channels)
    for tensor in network.parameters():
        tensor.data *= 2  # for different classes
    content = {**TRAINED, **channels, "variant": variant, "kernel_size": kernel_size, **settings}
    state = network.state_dict()
    torch.save(attach_settings(state, content) if settings.get("stated", True) else state, folder / "models/model.pt")
    file = folder / "configs" / "inference.json"
    config = json.loads(file.read_text())
    config["network_def"]["base_channels"] = base_channels
    file.write_text(json.dumps(config))
    return folder


def _kill_as_soon_as(file: Path, process: subprocess.Popen) -> None:
    """SIGKILL the process when the file is there, which must come before its end."""
    try:
        while not file.is_file() and process.poll() is None:
            time.sleep(0.005)
        assert process.poll() is None, f"the process ended by itself, {file.name} there: {file.is_file()}"
    finally:
        process.kill()
        process.wait()
