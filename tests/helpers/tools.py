"""Other tools in environments of their own, because they need other versions of packages."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mednext_monai import Predictor

__all__ = ["ROOT", "environment_of", "expected_result", "python_path"]

ROOT = Path(__file__).resolve().parents[2]


def environment_of(variable: str, module: str) -> Path:
    """Return the folder of the virtual environment that an environment variable names, or skip the test."""
    folder = Path(os.environ.get(variable, ""))
    python = folder / "bin" / "python"
    if variable not in os.environ:
        pytest.skip(f"{variable} does not name a virtual environment with {module}, see tests/README.md")
    search = f"import importlib.util as i, sys; sys.exit(i.find_spec({module!r}) is None)"
    if not python.is_file() or subprocess.run([python, "-c", search], cwd=folder, check=False).returncode:
        pytest.skip(f"{variable}: {folder} is not a virtual environment with {module}")
    return folder


def python_path(**variables: str) -> dict[str, str]:
    """Return an environment for a process in which this package is found, with further variables."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}


def expected_result(bundle: Path, image: Path) -> np.ndarray:
    """Return the class map ``(X, Y, Z)`` that ``mednext predict`` writes; both classes have voxels."""
    result = np.asarray(Predictor(bundle, device="cpu", mirror=False)(nibabel.load(image)).dataobj)
    assert len(np.unique(result)) == 3
    return result
