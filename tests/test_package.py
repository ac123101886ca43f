"""Promises of the package itself: importing it is instant, and what a user needs first can be imported from it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mednext_monai
from mednext_monai import networks


@pytest.mark.parametrize("module", ["mednext_monai", "mednext_monai.bundles"])
def test_importing_imports_neither_torch_nor_monai(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'monai', 'numpy', 'ignite') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_network_can_be_imported_from_the_package():
    from mednext_monai import MedNeXt, create_mednext

    assert MedNeXt is networks.MedNeXt and create_mednext is networks.create_mednext
    assert {"MedNeXt", "create_mednext"} <= set(mednext_monai.__all__) & set(dir(mednext_monai))
    with pytest.raises(AttributeError, match="no attribute 'create_mednxt'"):
        _ = mednext_monai.create_mednxt
