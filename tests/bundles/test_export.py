"""Exported networks: what the files compute, take and carry, and what is refused."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
import zipfile
from copy import deepcopy
from pathlib import Path

import monai.data
import nibabel
import numpy as np
import pytest
import torch
from helpers.bundles import make_member
from helpers.documents import read_page
from monai.bundle import ConfigParser

from mednext_monai import bundles
from mednext_monai.bundles import export as module
from mednext_monai.cli import main
from mednext_monai.files import sha256
from mednext_monai.options import literal
from mednext_monai.weights import describe, load_weights, read_settings, read_state_dict
from mednext_monai.weights.settings import TASK, attach_settings

ROOT = Path(__file__).resolve().parents[2]
FORMATS = ["torchscript", "onnx", "torch_export"]
SLOW = ["torchscript", *(pytest.param(name, marks=pytest.mark.slow) for name in FORMATS[1:])]
SECRET = "/home/somebody/data"
SETTINGS = {
    "in_channels": 2,
    "channel_names": ["T1", "$FLAIR"],  # a name that MONAI would evaluate
    "normalization": ["zscore", "CT"],
    "intensity": [None, {"mean": 40.0, "sd": 20.0, "p005": -10.0, "p995": 90.0}],
    "spacing": [1.0, 1.5, 2.0],
    "training_ids": ["case_0123"],
}


def need(*packages: str) -> None:
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed")


def need_for(format: str) -> None:
    need(*(module.ONNX_PACKAGES if format == "onnx" else ()))


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A bundle with half-precision weights of two channels and three classes, and with paths in its config."""
    folder = make_member("mednext_s_k3", tmp_path / SECRET[1:], base_channels=4, **SETTINGS)
    file = folder / "models" / "model.pt"
    half = {name: tensor.half() for name, tensor in read_state_dict(file).items()}
    torch.save(attach_settings(half, read_settings(file)), file)
    config = folder / "configs" / "inference.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dataset_dir": SECRET, "input": SECRET}))
    return folder


def network_of(bundle: Path) -> torch.nn.Module:
    tensors = read_state_dict(bundle / "models" / "model.pt")
    network = module.MedNeXt(**describe(tensors).network_arguments())
    load_weights(bundle / "models" / "model.pt", network)
    return network.eval()


def carried(file: Path) -> dict[str, dict]:
    """Return the JSON objects in an exported file."""
    if file.suffix == ".onnx":
        import onnx

        texts = {item.key: item.value for item in onnx.load(file).metadata_props}
    else:
        with zipfile.ZipFile(file) as archive:
            texts = {Path(name).name: archive.read(name) for name in archive.namelist() if "/extra/" in name}
    return {name: json.loads(text) for name, text in texts.items()}


def content(file: Path) -> bytes:
    """Return all bytes of a file, those of compressed members included."""
    found = file.read_bytes()
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            found += b"".join(archive.read(name) for name in archive.namelist())
    return found


@torch.no_grad()
def difference(file: Path, format: str, network: torch.nn.Module, *shape: int) -> float:
    image = torch.randn(shape)
    expected = network(image)
    return float((module.FORMATS[format].read(file.read_bytes())(image) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("format", SLOW)
def test_the_file_computes_what_the_network_computes_and_says_what_it_is(bundle, format, tmp_path, capsys):
    need_for(format)
    assert main(["export", str(bundle), "--format", format, "--output", str(tmp_path / "out" / "net")]) == 0
    assert "differs from the network by at most" in capsys.readouterr().out
    file = tmp_path / "out" / "net"
    assert 0 < difference(file, format, network_of(bundle), 3, 2, 32, 80, 48) <= 1e-4  # another one than was checked
    texts = carried(file if format != "onnx" else file.rename(tmp_path / "net.onnx"))
    metadata, config = texts["metadata.json"], texts["inference.json"]
    formats = metadata["network_data_format"]
    assert formats["inputs"]["image"]["channel_def"] == literal({"0": "T1", "1": "$FLAIR"})
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "outer", "2": "inner"}
    assert (formats["inputs"]["image"]["num_channels"], formats["outputs"]["pred"]["num_channels"]) == (2, 3)
    exported = metadata["export"]
    assert exported["format"] == format and exported["checkpoint_sha256"] == sha256(bundle / "models/model.pt")
    assert exported["versions"]["torch"] == torch.__version__
    parser = ConfigParser(config | {"bundle_root": str(tmp_path)})  # without the checkpoint
    task = parser.get_parsed_content("task")
    assert {key: task[key] for key in TASK} == {key: read_settings(bundle / "models/model.pt")[key] for key in TASK}


@pytest.mark.parametrize("format", SLOW)
def test_the_file_names_no_path_no_computer_and_no_case(bundle, format, tmp_path):
    need_for(format)
    file, _ = module.export(bundle, format, fold=0)
    assert file == bundle / "models" / f"model{module.FORMATS[format].ending}"
    found = content(file)
    assert b"inference" in found and b"somebody" in content(bundle / "configs" / "inference.json")
    for secret in (
        str(tmp_path),
        str(ROOT),
        str(Path(torch.__file__).parent),
        "somebody",
        "case_0123",
        "site-packages",
    ):
        assert secret.encode() not in found, secret
    if len(socket.gethostname()) > 5:
        assert socket.gethostname().encode() not in found


def test_monai_loads_the_torchscript_file_with_its_documents(bundle):
    file, _ = module.export(bundle, "torchscript")
    network, metadata, others = monai.data.load_net_with_metadata(str(file), more_extra_files=["inference.json"])
    assert metadata["name"] == "mednext_s_k3" and not network.training
    assert "preprocessing" in json.loads(others["inference.json"])


def test_a_fold_is_exported_beside_its_checkpoint_and_replaced_only_if_asked(bundle):
    (bundle / "models" / "fold_1").mkdir()
    weights = (bundle / "models" / "model.pt").rename(bundle / "models" / "fold_1" / "model.pt")
    file, _ = module.export(bundle, "torchscript", fold="1")
    assert file == weights.with_suffix(".ts")
    file.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="model.ts exists already; --overwrite true replaces it"):
        module.export(bundle, "torchscript")
    assert file.read_bytes() == b"mine"
    module.export(bundle, "torchscript", overwrite=True)
    assert zipfile.is_zipfile(file)


def test_weights_without_settings_are_exported_with_their_channels_and_classes(tmp_path):
    folder = make_member("mednext_s_k5", tmp_path, base_channels=4, in_channels=3, out_channels=5, stated=False)
    formats = carried(module.export(folder, "torchscript")[0])["metadata.json"]["network_data_format"]
    assert formats["inputs"]["image"]["channel_def"] == {"0": "channel 0", "1": "channel 1", "2": "channel 2"}
    assert list(formats["outputs"]["pred"]["channel_def"].values()) == [
        "background",
        *(f"class {i}" for i in range(1, 5)),
    ]


def test_a_file_that_differs_from_the_network_is_not_written(bundle, monkeypatch):
    def write_another(network, documents, opset):
        changed = deepcopy(network)
        changed.dec_block_0[1].conv3.weight.data[0] += 0.01
        return module._write_torchscript(changed, documents, opset)

    right = module.FORMATS["torchscript"]
    monkeypatch.setitem(module.FORMATS, "torchscript", right._replace(write=write_another))
    before = sorted(bundle.rglob("*"))
    with pytest.raises(ValueError, match=r"exported as torchscript differs .* shape \(1, 2, 32, 32, 32\).*Nothing was"):
        module.export(bundle, "torchscript")
    monkeypatch.setitem(module.FORMATS, "torchscript", right)
    broken = read_state_dict(bundle / "models" / "model.pt")
    broken["stem.weight"] = broken["stem.weight"] * float("nan")
    torch.save(attach_settings(broken, read_settings(bundle / "models" / "model.pt")), bundle / "models" / "model.pt")
    with pytest.raises(ValueError, match="by nan of the largest logit"):
        module.export(bundle, "torchscript")
    assert sorted(bundle.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "tflite"}, "format must be one of torchscript, onnx, torch_export, got 'tflite'"),
        ({"format": "torchscript", "opset": 18}, "opset is for the format onnx, got 18 with torchscript"),
        ({"format": "torchscript", "fold": "one"}, "fold must be one of 0, 1, 2"),
        ({"format": "torchscript", "bundle": "nowhere"}, "bundle: nowhere is not a bundle"),
        ({"format": "torchscript", "bundle": "mednext_l_k3"}, "has no weights yet"),
        ({"format": "onnx"}, 'ONNX needs the package onnx, which is not installed: pip install "mednext-monai.onnx'),
    ],
)
def test_a_mistake_is_named(bundle, monkeypatch, arguments, message):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=message):
        module.export(**{"bundle": bundle, **arguments})


@pytest.mark.slow
def test_the_operator_set_is_the_one_that_was_asked_for(bundle):
    need_for("onnx")
    file, _ = module.export(bundle, "onnx", opset=18)
    assert carried(file)["metadata.json"]["export"]["opset"] == 18
    with pytest.raises(ValueError, match="cannot export opset 99; it wrote opset"):
        module.export(bundle, "onnx", opset=99, overwrite=True)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", bundles.names())
def test_every_bundle_is_exported(name, format, tmp_path):
    need_for(format)
    folder = make_member(name, tmp_path, base_channels=4, out_channels=4, labels=["background", "a", "b", "c"])
    file, error = module.export(folder, format)
    assert 0 < error <= 1e-4 and difference(file, format, network_of(folder), 1, 1, 96, 32, 48) <= 1e-4


@pytest.mark.slow
def test_the_onnx_file_of_the_documented_monai_command_takes_any_size(tmp_path):
    need_for("onnx")
    folder = make_member("mednext_s_k3", tmp_path, base_channels=4)
    (typed,) = (text for text in read_page("bundle").commands if " onnx_export " in text)
    subprocess.run([sys.executable, *shlex.split(typed)[1:]], cwd=folder, check=True, capture_output=True, timeout=300)
    network = network_of(folder)
    for shape in ((1, 1, 32, 32, 32), (2, 1, 64, 64, 64), (1, 1, 48, 32, 64)):
        assert difference(folder / "models" / "model.onnx", "onnx", network, *shape) <= 1e-4


def with_tensorrt(bundle: Path, **options: object) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / f"{name}.json") for name in ("inference", "inference_trt")])
    parser.update({"bundle_root": str(bundle), "device": "cpu", **options})
    return parser


def test_an_engine_is_for_weights_window_and_precision(bundle):
    parser = with_tensorrt(bundle, sw_batch_size=2, patch_size=[32, 48, 64])
    assert isinstance(parser.get_parsed_content("network"), module.MedNeXt)
    assert parser.get_parsed_content("trt_path") == f"{bundle}/models/model.pt.fp16.2x32x48x64"
    arguments = parser.get_parsed_content("trt_args")
    assert arguments["dynamic_batchsize"] == [1, 2, 2]
    assert arguments["timestamp"] == int((bundle / "models" / "model.pt").stat().st_mtime)


@pytest.mark.slow
def test_without_tensorrt_the_documented_command_computes_in_pytorch(tmp_path, dataset):
    folder = make_member("mednext_s_k3", tmp_path)
    scans, command = str(dataset / "imagesTs"), [sys.executable, "-m", "mednext_monai", "predict"]
    small = ["--mirror", "false", "--num_workers", "0", "--device", "cpu"]
    overlay = ["--config", str(folder / "configs" / "inference_trt.json")]
    for name, added in (("plain", []), ("trt", overlay)):
        typed = [*command, str(folder), scans, str(tmp_path / name), *small, *added]
        result = subprocess.run(typed, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr[-3000:]
    assert "trt_compile() has no effect" in result.stdout + result.stderr
    plain, trt = (nibabel.load(tmp_path / name / "box_9.nii.gz") for name in ("plain", "trt"))
    np.testing.assert_array_equal(plain.dataobj, trt.dataobj)
    assert plain.header["descrip"] != trt.header["descrip"]  # which says with which settings the file was made


@pytest.mark.slow
def test_the_steps_before_tensorrt_give_it_the_network(bundle, monkeypatch, tmp_path):
    """MONAI's compiler as far as a computer without a GPU can run it: up to the ONNX file that TensorRT reads."""
    need_for("onnx")
    from monai.networks.trt_compiler import TrtCompiler

    parser = with_tensorrt(bundle, sw_batch_size=2)
    parser.get_parsed_content("weights_loader")()
    network, read = parser.get_parsed_content("network").eval(), []
    monkeypatch.setattr(
        TrtCompiler, "_onnx_to_trt", lambda self, path: read.append(module._read_onnx(path)) or b"engine"
    )
    monkeypatch.setattr(module, "INPUT", "x")  # MONAI names it as the argument of `forward`
    plan = tmp_path / "model.plan"
    compiler = TrtCompiler(network, str(plan), **parser.get_parsed_content("trt_args"))
    compiler._build_and_save(deepcopy(network), {"x": torch.rand(1, 2, 32, 48, 32)})
    assert plan.read_bytes() == b"engine"
    for batch in (1, 2):
        image = torch.rand(batch, 2, 32, 48, 32)
        with torch.no_grad():
            torch.testing.assert_close(read[0](image), network(image), rtol=1e-3, atol=1e-3)
