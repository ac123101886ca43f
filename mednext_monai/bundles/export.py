"""Exporting the trained network of a bundle to TorchScript, ONNX or ``torch.export``.

An exported file is compared with the network for several sizes and batches before it is written. It has one output, the
logits of full resolution, takes any batch and any spatial sizes that are multiples of 16 and at least 32, and carries
``metadata.json`` and ``inference.json`` of the bundle, with channels, classes and settings of the checkpoint, so that
programs such as MONAI Deploy need no other file. It has no paths and no case ids.

MONAI's ``ckpt_export`` and ``onnx_export`` do the same for the checkpoint and the configs as they are, without a
comparison; their files contain the paths of the Python files that define the network.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from monai.data import save_net_with_metadata
from monai.networks.utils import convert_to_onnx, convert_to_torchscript

from ..environment import package_versions
from ..files import read_json, sha256, write_atomically
from ..networks import MedNeXt
from ..options import literal
from ..weights import describe, fold_name, load_weights, read_settings, read_state_dict
from ..weights.settings import TASK
from .library import bundle_name, find, path
from .options import OPTIONS
from .record import task_fields

__all__ = ["FORMATS", "export"]

CONFIG, METADATA = "configs/inference.json", "configs/metadata.json"
# Of these sizes, networks of slices take the first two numbers.
SIZES, BATCHES = ((32, 32, 32), (64, 64, 64), (48, 32, 64)), (1, 2)
EXAMPLE = (2, 32, 48, 64)  # batch and sizes from which a graph is made; a dimension of length 1 would be fixed
AXES = {0: "batch", 2: "x", 3: "y", 4: "z"}
INPUT, OUTPUT = "image", "pred"
TOLERANCE = 1e-4  # largest difference, relative to the largest logit
OF_CLASSES = ("image_classes", "label_classes", "pred_classes", "network_data_format")  # fields of the metadata
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Network = Callable[[torch.Tensor], torch.Tensor]


class Documents(NamedTuple):
    """What a file carries beside the network."""

    metadata: dict[str, Any]
    inference: dict[str, Any]

    def texts(self) -> dict[str, str]:
        """Return the JSON texts by the names that MONAI gives them."""
        return {f"{name}.json": json.dumps(content) for name, content in self._asdict().items()}


def export(
    bundle: str | Path,
    format: str,
    output: str | Path | None = None,
    fold: int | str | None = None,
    checkpoint: str | Path | None = None,
    opset: int | None = None,
    overwrite: bool = False,
) -> tuple[Path, float]:
    """
    Write the network of a bundle with its weights to one file, if it computes what the network computes.

    Args:
        bundle: folder of the bundle, or the name of one of the package.
        format: a key of ``FORMATS``.
        output: the file. Defaults to ``None``: beside the checkpoint, with its name and the ending of the format.
        fold: the fold whose weights are exported. Defaults to ``None``: as for an inference.
        checkpoint: the checkpoint. Defaults to ``None``: ``model.pt`` of the fold.
        opset: ONNX operator set. Defaults to ``None``: that which PyTorch recommends.
        overwrite: whether to replace an existing file. Defaults to ``False``.

    Returns:
        the file, and the largest difference that was found, relative to the largest logit.

    Raises:
        ValueError: if an argument is not allowed, a package is missing, bundle and checkpoint contradict each other, or
            the exported network differs from the network. Nothing is written then.
        FileNotFoundError: if there are no weights.
        FileExistsError: if the file exists already.
    """
    _check_request(format, opset)
    folder = find(bundle)
    parser, source = _open(folder, fold, checkpoint)
    target = Path(output) if output is not None else source.with_suffix(FORMATS[format].ending)
    if target.exists() and not overwrite:
        raise FileExistsError(f"output: {target} exists already; --overwrite true replaces it.")
    network, task = _network(parser, source)
    documents = _documents(folder, source, task)
    documents.metadata["export"] = {
        "format": format,
        "checkpoint_sha256": sha256(source),
        "versions": _versions(format),
    }
    with _quiet(), torch.no_grad():
        content = FORMATS[format].write(network, documents, opset)
        error = _largest_difference(network, FORMATS[format].read(content), format)
    write_atomically(target, content)
    return target, error


def _check_request(format: str, opset: int | None) -> None:
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}.")
    if format != "onnx" and opset is not None:
        raise ValueError(f"opset is for the format onnx, got {opset} with {format}.")
    if format == "onnx":
        for name in ONNX_PACKAGES:
            try:
                importlib.import_module(name)
            except ImportError as error:
                hint = 'pip install "mednext-monai[onnx]"'
                raise ValueError(f"ONNX needs the package {name}, which is not installed: {hint}") from error


def _open(folder: Path, fold: int | str | None, checkpoint: str | Path | None) -> tuple[ConfigParser, Path]:
    """Return the config of an inference with the bundle, and its checkpoint."""
    parser = ConfigParser()
    parser.read_config(str(folder / CONFIG))
    options = {"fold": None if fold is None else fold_name(fold), "folds": None, "ensemble": None}
    options |= {"checkpoint": None if checkpoint is None else str(checkpoint), "bundle_root": str(folder)}
    parser.update({name: literal(value) for name, value in options.items()})
    parser.parse(reset=True)
    return parser, Path(parser.get_parsed_content("checkpoint_paths")[0])


def _network(parser: ConfigParser, source: Path) -> tuple[MedNeXt, dict[str, Any]]:
    """Return the network with its weights, and the settings of its task; its tensors say the number of channels."""
    found, config = describe(read_state_dict(source)), parser.get()
    counted = ("in_channels", "out_channels", "spatial_dims")
    parser.update({key: getattr(found, key) for key in counted if config[key] is None})
    parser.parse(reset=True)
    task, network = (parser.get_parsed_content(key) for key in ("task", "network_def"))
    load_weights(source, network)
    return network.float().eval(), task


def _documents(folder: Path, source: Path, task: Mapping[str, Any]) -> Documents:
    """Return metadata and config of the bundle with what the checkpoint says about its task, and without paths."""
    metadata, config = read_json(folder / METADATA), read_json(folder / CONFIG)
    generic = read_json(path(bundle_name(config["variant"], config["kernel_size"])) / CONFIG)
    config |= {key: generic.get(key) for key in config if key in OPTIONS and OPTIONS[key].is_path}
    config |= literal({key: task[key] for key in (*TASK, "regions")})
    stated = metadata["network_data_format"]
    counts = stated["inputs"]["image"]["num_channels"], stated["outputs"]["pred"]["num_channels"]
    names = read_settings(source)
    if names is None and counts != (task["in_channels"], task["out_channels"]):
        channels = [f"channel {i}" for i in range(task["in_channels"])]
        classes = ["background", *(f"class {i}" for i in range(1, task["out_channels"]))]
        names = {"channel_names": channels, "labels": classes}
    if names is not None:
        fields = task_fields(metadata, "", names)
        metadata |= literal({key: fields[key] for key in OF_CLASSES})
    return Documents(metadata, config)


def _versions(format: str) -> dict[str, str]:
    packages = ONNX_PACKAGES if format == "onnx" else ()
    return {**package_versions(), **{name: importlib.import_module(name).__version__ for name in packages}}


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what PyTorch says about packages that are not needed and about arguments that MONAI passes."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _largest_difference(network: MedNeXt, exported: Network, format: str) -> float:
    """Return the largest difference for all sizes and batches, relative to the largest logit of each."""
    random, largest = torch.Generator().manual_seed(0), 0.0
    for batch in BATCHES:
        for size in SIZES:
            image = torch.randn(batch, network.in_channels, *size[: network.spatial_dims], generator=random)
            expected = network(image)
            error = float((exported(image) - expected).abs().max() / expected.abs().max())
            if not error <= TOLERANCE:  # also if it is not a number
                raise ValueError(
                    f"the network exported as {format} differs from the network for an input of shape "
                    f"{tuple(image.shape)}: by {error:.2g} of the largest logit, allowed are {TOLERANCE:g}. Nothing "
                    "was written."
                )
            largest = max(largest, error)
    return largest


def _example(network: MedNeXt) -> torch.Tensor:
    batch, *size = EXAMPLE
    return torch.zeros(batch, network.in_channels, *size[: network.spatial_dims])


def _axes(network: MedNeXt) -> dict[int, str]:
    """Return the names of the axes whose length may vary."""
    return {axis: name for axis, name in AXES.items() if axis < 2 + network.spatial_dims}


def _write_torchscript(network: MedNeXt, documents: Documents, opset: int | None) -> bytes:
    complete, result = io.BytesIO(), io.BytesIO()
    others = {"inference.json": documents.texts()["inference.json"].encode()}
    script = convert_to_torchscript(network)
    save_net_with_metadata(script, complete, False, meta_values=documents.metadata, more_extra_files=others)
    with zipfile.ZipFile(complete) as archive, zipfile.ZipFile(result, "w") as kept:
        for name in archive.namelist():
            if not name.endswith(".debug_pkl"):  # for messages: paths of the Python files, always there
                kept.writestr(zipfile.ZipInfo(name), archive.read(name))
    return result.getvalue()


def _read_torchscript(content: bytes) -> Network:
    return torch.jit.load(io.BytesIO(content))


def _write_torch_export(network: MedNeXt, documents: Documents, opset: int | None) -> bytes:
    factors = {axis: factor for axis, factor in enumerate(network.shape_factor(), start=2)}
    sizes = {
        axis: factors[axis] * torch.export.Dim(name, min=2) if axis in factors else torch.export.Dim(name, min=1)
        for axis, name in _axes(network).items()
    }
    program = torch.export.export(network, (_example(network),), dynamic_shapes=(sizes,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the Python files
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files=documents.texts())
    return stream.getvalue()


def _read_torch_export(content: bytes) -> Network:
    return torch.export.load(io.BytesIO(content)).module()


def _write_onnx(network: MedNeXt, documents: Documents, opset: int | None) -> bytes:
    import onnx

    model = convert_to_onnx(
        network,
        [_example(network)],
        input_names=[INPUT],
        output_names=[OUTPUT],
        opset_version=opset,
        dynamic_axes={INPUT: _axes(network), OUTPUT: _axes(network)},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    (found,) = (item.version for item in model.opset_import if item.domain == "")
    if opset not in (None, found):
        raise ValueError(f"opset: PyTorch {torch.__version__} cannot export opset {opset}; it wrote opset {found}.")
    for node in model.graph.node:
        del node.metadata_props[:]  # paths of the Python files
    documents.metadata["export"]["opset"] = found
    onnx.helper.set_model_props(model, documents.texts())
    return model.SerializeToString()


def _read_onnx(content: bytes) -> Network:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {INPUT: image.numpy()})[0])


class Format(NamedTuple):
    """How a format is written, and how it is read again for the comparison."""

    ending: str
    write: Callable[[MedNeXt, Documents, int | None], bytes]
    read: Callable[[bytes], Network]


FORMATS = {
    "torchscript": Format(".ts", _write_torchscript, _read_torchscript),
    "onnx": Format(".onnx", _write_onnx, _read_onnx),
    "torch_export": Format(".pt2", _write_torch_export, _read_torch_export),
}
