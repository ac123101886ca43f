"""The switch between implementations of the network."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mednext_monai.networks import BACKENDS, get_backend, set_backend, using_backend


def test_a_block_of_code_has_its_backend_and_leaves_the_old_one_behind():
    before = get_backend()
    for name in BACKENDS:
        with using_backend(name):
            assert get_backend() == name
    with pytest.raises(RuntimeError), using_backend("plain"):
        raise RuntimeError
    assert get_backend() == before


def test_an_unknown_backend_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="'auto', 'plain', 'triton'.*'cuda'"):
        set_backend("cuda")


@pytest.mark.parametrize("name, expected", [("plain", "plain"), ("fast", "MEDNEXT_BACKEND must be one of")])
def test_the_environment_variable_sets_the_initial_backend(name, expected):
    code = "from mednext_monai.networks import get_backend; print(get_backend())"
    environment = {**os.environ, "MEDNEXT_BACKEND": name}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert expected in result.stdout + result.stderr
