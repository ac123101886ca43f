"""Promises of the benchmark: the arithmetic is right, contestants agree, nothing is missing from what it writes.

No time is asserted.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mednext_monai.benchmark.__main__ import main
from mednext_monai.benchmark.allocator import TUNED, environment
from mednext_monai.benchmark.contestants import Reference, build, relative_error
from mednext_monai.benchmark.memory import peak_of
from mednext_monai.benchmark.options import SECTIONS, VARIANT_NAMES, Options, parse
from mednext_monai.benchmark.plot import draw
from mednext_monai.benchmark.report import as_markdown, as_text
from mednext_monai.benchmark.timing import Measurement, compare, interleave, ratios
from mednext_monai.networks import MedNeXt

MACHINE = {"cpu": "a processor", "cores": 2, "threads": 2, "torch": "2", "monai": "1", "backend": "auto"}
TINY = ["--variants", "S_k3", "--size", "32", "--base_channels", "2", "--repeats", "2", "--threads", "1"]
TINY += ["--volume", "40x32x32", "--roi", "32", "--patch_size", "16", "--patches", "2", "--workers", "0"]
TINY += ["--case_shape", "24x24x12"]
UPSTREAM = """
from mednext_monai import upstream
def create_mednext_v1(num_input_channels, num_classes, model_id, kernel_size=3, deep_supervision=False):
    network = upstream.create_mednext_v1(num_input_channels, num_classes, model_id, kernel_size, deep_supervision)
    network.register_parameter("dummy_tensor", __import__("torch").nn.Parameter(__import__("torch").ones(1)))
    return network
"""


def run(folder: Path, *arguments: str) -> list[dict]:
    """Run the benchmark and return its measurements as JSON has them."""
    assert main([*TINY, "--output", str(folder), *arguments]) == 0
    return json.loads((folder / "benchmark.json").read_text())["measurements"]


def test_ratios_pair_the_rounds_and_are_above_1_where_ours_is_less():
    # by hand: 4/2, 3/1, 10/4 = 2, 3, 2.5; the ratio of the medians would be 2
    found = ratios({"ours": [2.0, 1.0, 4.0], "peer": [4.0, 3.0, 10.0], "same": [2.0, 1.0, 4.0]})
    assert found == {
        "peer": {"median": 2.5, "min": 2.0, "max": 3.0},
        "same": {"median": 1.0, "min": 1.0, "max": 1.0},
    }
    assert ratios({"ours": [0.0], "peer": [1.0]}) == {}


def test_contestants_take_turns_after_warm_up_and_a_peer_that_fails_is_skipped():
    order = []

    def fails() -> None:
        raise RuntimeError("out of memory\nand much more")

    steps = {"ours": lambda: order.append("A"), "peer": lambda: order.append("B"), "broken": fails}
    result = compare(steps, lambda name, _: {"output": 0.5}, rounds=3, warmup=2)
    assert "".join(order) == "AABB" + "AB" * 3
    assert result["skipped"] == {"broken": "RuntimeError: out of memory"}
    assert result["agreement"] == {"ours": {"output": 0.5}, "peer": {"output": 0.5}}
    assert [len(values) for values in result["values"].values()] == [3, 3]
    with pytest.raises(RuntimeError, match="out of memory"):
        compare({"ours": fails}, lambda *_: {}, rounds=1)


def test_every_value_is_that_of_its_step():
    ticks = iter([1.0, 10.0, 2.0, 20.0])
    values = interleave({"a": lambda: None, "b": lambda: None}, 2, lambda step: next(ticks))
    assert values == {"a": [1.0, 2.0], "b": [10.0, 20.0]}


def test_relative_error_is_over_all_tensors_and_shows_nan():
    expected = [torch.tensor([1.0, -4.0]), torch.tensor([2.0])]
    assert relative_error([torch.tensor([1.0, -4.0]), torch.tensor([3.0])], expected) == 0.25
    assert np.isnan(relative_error([torch.tensor([1.0, np.nan]), torch.tensor([2.0])], expected))


def test_peak_memory_is_that_of_the_step_and_not_of_what_came_before():
    torch.ones(64 * 2**18).sum()  # 64 MiB, gone
    peak = peak_of(lambda: torch.ones(32 * 2**18).sum(), torch.device("cpu"))
    assert 31 < peak < 48


def test_all_contestants_compute_the_same_with_the_same_weights(tmp_path):
    measurements = run(tmp_path, "--sections", "forward,training,window")
    assert [m["section"] for m in measurements] == ["forward", "training", "window", "window"]
    for m in measurements:
        assert set(m["values"]) == {"ours", "plain", "monai"} and not m["skipped"]
        assert all(len(values) == 2 and min(values) > 0 for values in m["values"].values())
        assert set(m["ratios"]) == {"plain", "monai"}
        keys = {"output", "gradient"} if m["section"] == "training" else {"output"}
        for errors in m["agreement"].values():
            assert set(errors) == keys and all(error < 1e-5 for error in errors.values())
    assert [m["case"].split(", ")[-1] for m in measurements[2:]] == ["mirror off", "mirror on"]


def test_a_wrong_contestant_shows_in_its_agreement():
    options = parse(TINY)
    (plain,) = build(options, VARIANT_NAMES["S_k3"], ["plain"], training=False)
    x = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reference = Reference(list(plain(x)), {})
        plain.network.out_0.conv_out.bias += 1
        assert reference.errors(plain, plain(x))["output"] > 0.1


def test_data_sections_and_memory_name_peers_that_are_missing(tmp_path, capsys):
    memory, other, augmentation, preprocessing = run(
        tmp_path, "--sections", "memory,augmentation,preprocessing", "--contestants", "ours"
    )
    assert [memory["case"], other["case"]] == ["forward S k3, 32^3", "training S k3, 32^3"]
    assert memory["unit"] == "MiB" and other["values"]["ours"][0] > memory["values"]["ours"][0] > 0
    assert len(augmentation["values"]["ours"]) == 2 and augmentation["work_unit"] == "patches/s"
    assert {"ours", "monai"} <= set(preprocessing["values"])
    text = capsys.readouterr().out
    for peer, found in (("batchgeneratorsv2", augmentation), ("scikit-image", preprocessing)):
        installed = importlib.util.find_spec({"scikit-image": "skimage"}.get(peer, peer)) is not None
        assert (peer in found["values"]) == installed == (f"{peer} skipped: not installed" not in text)
        if installed and found is preprocessing:
            assert found["agreement"][peer]["output"] < 1e-5 and found["agreement"][peer]["labels"] < 1e-2


def test_the_original_is_found_in_its_checkout(tmp_path, monkeypatch):
    folder = tmp_path / "nnunet_mednext" / "network_architecture" / "mednextv1"
    folder.mkdir(parents=True)
    (folder / "create_mednext_v1.py").write_text(UPSTREAM)
    monkeypatch.setattr(sys, "path", list(sys.path))
    options = Options(upstream=str(tmp_path))
    for variant, training in (("S_k3", True), ("B_k5", False)):
        contestants = build(options, VARIANT_NAMES[variant], ["ours", "original"], training)
        ours, original = contestants
        assert original.network.training == training and original.network.do_ds == training
        for name, tensor in ours.network.state_dict().items():
            assert torch.equal(original.network.state_dict()[name], tensor)
        names = set(dict(ours.network.named_parameters()))
        assert set(original.gradients()) == names and "dummy_tensor" in dict(original.network.named_parameters())
    sys.modules.pop("nnunet_mednext.network_architecture.mednextv1.create_mednext_v1")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--variants", "S_k3,XL_k3"], "--variants must be among S_k3,.*L_k5, got 'XL_k3'"),
        (["--sections", "speed"], "--sections must be among forward,.*, got 'speed'"),
        (["--size", "64,40"], "--size must be a multiple of 16, got 64,40"),
        (["--size", "big"], "--size must be whole numbers above 0 such as N,N, got 'big'"),
        (["--volume", "64x64"], "--volume must be whole numbers above 0 such as NxNxN, got '64x64'"),
        (["--roi", "40"], "--roi must be a multiple of 16, got 40"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--patches", "3"], "--patches must be even, got 3"),
        (["--contestants", "monai"], "--contestants must name ours, got monai"),
        (["--upstream", "/nowhere"], "--upstream must be a checkout of MIC-DKFZ/MedNeXt, but /nowhere/.* not exist"),
        (["--device", "meta"], "--device must be cpu or cuda, got 'meta'"),
    ],
)
def test_bad_options_are_errors_that_name_the_option(capsys, arguments, message):
    assert main(["--quick", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("benchmark: error: --") and re.search(message, error)


def test_a_checkout_that_cannot_be_imported_is_an_error(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "nnunet_mednext" / "network_architecture" / "mednextv1"
    folder.mkdir(parents=True)
    (folder / "create_mednext_v1.py").write_text("import a_package_that_nobody_has")
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["--upstream", str(tmp_path)]) == 1
    assert "cannot be imported: No module named 'a_package_that_nobody_has'" in capsys.readouterr().err


def test_quick_is_a_set_of_defaults_over_which_other_options_win():
    options = parse(["--quick", "--size", "16,48", "--variants", "all"])
    assert options.size == (16, 48) and options.repeats == 3 and options.sections == SECTIONS
    assert len(options.variants) == 8 and str(options.variants[3]) == "B k5"


def test_the_allocator_s_settings_are_set_and_unset(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "7")
    assert not set(TUNED) & set(environment("default"))
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    assert {name: environment("tuned")[name] for name in TUNED} == TUNED
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert main(["--allocator", "both"]) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are those of glibc")
def test_another_allocator_is_another_process(tmp_path):
    arguments = ["--sections", "forward", "--contestants", "ours,plain", "--allocator", "tuned"]
    (found,) = run(tmp_path, *arguments)
    assert found["allocator"] == "tuned" and set(found["values"]) == {"ours", "plain"}


def test_both_allocators_end_in_one_file(tmp_path, monkeypatch):
    def run_again(arguments: list[str], allocator: str) -> dict:
        return {"measurements": [{**measurements()[0].to_dict(), "allocator": allocator}]}

    monkeypatch.setattr("mednext_monai.benchmark.allocator.environment", lambda allocator: {})
    monkeypatch.setattr("mednext_monai.benchmark.allocator.run_again", run_again)
    assert [m["allocator"] for m in run(tmp_path, "--allocator", "both")] == ["default", "tuned"]


def measurements() -> list[Measurement]:
    values = {"ours": [1.0, 1.25], "plain": [2.0, 2.5], "monai": [4.0, 4.5]}
    agreement = {"ours": {"output": 1e-6}, "plain": {"output": 0.0}, "monai": {"output": 3e-6}}
    forward = Measurement("forward", "S k3, 64^3", "s", values, agreement, work=0.5, work_unit="Mvoxel/s")
    memory = Measurement("memory", "forward S k3, 64^3", "MiB", {"ours": [100.0], "monai": [250.0]}, allocator="tuned")
    return [forward, memory]


def test_the_tables_show_what_was_measured():
    text = as_text(MACHINE, measurements())
    assert "forward: S k3, 64^3" in text and "memory: forward S k3, 64^3, tuned allocator" in text
    (line,) = (line for line in text.splitlines() if line.split()[:2] == ["monai", "4.25"])
    assert line.split() == "monai 4.25 4.00 4.50 0.118 3.80 3.60 4.00 output 3.0e-06".split()
    page = as_markdown(MACHINE, ["--size", "64"], measurements())
    assert "|  | ours | plain / ours | MONAI / ours | largest error |" in page
    assert "| forward S k3, 64^3 | 1.12 s | 2.00 | 3.80 (3.60 to 4.00) | 3e-06 |" in page
    assert "| memory forward S k3, 64^3, tuned allocator | 100 MiB |  | 2.50 |  |" in page
    assert "`python -m mednext_monai.benchmark --size 64`" in page


def test_a_measurement_survives_json():
    for measurement in measurements():
        assert Measurement.from_dict(json.loads(json.dumps(measurement.to_dict()))) == measurement


def test_the_longest_bar_of_the_picture_is_the_largest_ratio(tmp_path):
    draw(tmp_path / "plot.png", MACHINE, measurements())
    pixels = np.asarray(Image.open(tmp_path / "plot.png"))
    counts = {}
    for name, colour in (("plain", "#999999"), ("monai", "#0072b2")):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        rows = (pixels == rgb).all(2)[200:].sum(1)
        counts[name] = rows.max()
    assert abs(counts["monai"] / counts["plain"] - 3.8 / 2) < 0.02


def test_help_waits_for_neither_torch_nor_monai():
    code = "import sys; from mednext_monai.benchmark.__main__ import main\n"
    code += "try: main(['--help'])\nexcept SystemExit: print(sorted({'torch', 'monai', 'numpy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--upstream" in result.stdout and result.stdout.splitlines()[-1] == "[]"


def test_monai_s_network_is_its_own_mednext_s():
    from monai.networks.nets import MedNeXtS

    options = Options(contestants=("ours", "monai"))
    (monai,) = build(options, VARIANT_NAMES["S_k5"], ["monai"], training=False)
    expected = MedNeXtS(spatial_dims=3, in_channels=1, out_channels=3, kernel_size=5, deep_supervision=True)
    assert not isinstance(monai.network, MedNeXt)
    shapes = [{n: t.shape for n, t in net.state_dict().items()} for net in (monai.network, expected)]
    assert shapes[0] == shapes[1]
