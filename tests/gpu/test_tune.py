"""``mednext tune`` on the GPU of this computer; elsewhere ``tests/tuning`` has its faults and its decisions."""

from __future__ import annotations

import json

import pytest
from helpers.bundles import make_trained

from mednext_monai.cli import main
from mednext_monai.networks.backends.triton import operators, table


@pytest.mark.skipif(not operators.installed, reason="the package triton is not installed")
@pytest.mark.parametrize("compile", ["false", "true"])
def test_it_measures_and_writes_what_is_exact_and_faster(gpu, tmp_path, monkeypatch, capsys, compile):
    monkeypatch.setenv("MEDNEXT_CACHE", str(tmp_path))
    bundle = make_trained("mednext_s_k3", tmp_path, base_channels=32)
    assert main(["tune", str(bundle), "--patch_size", "64", "--batch_size", "1", "--compile", compile]) == 0
    *lines, last = capsys.readouterr().out.strip().splitlines()
    print("\n".join(lines))
    assert len(lines) == (4 if compile == "true" else 2)
    assert last == f"wrote {table.cache_file()}"
    for line in lines:  # faster or not: the kernels are exact
        assert ": exact; " in line, line
    entries = json.loads(table.cache_file().read_text())["entries"]
    assert len(entries) == sum(": used: " in line for line in lines)
