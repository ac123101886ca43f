"""The run behind ``mednext demo --pretrained``: the released weights segment one image, in seconds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from .. import bundles
from ..bundles.commands import bundle_command
from .steps import run_step

__all__ = ["Segmentation", "segment_with_released_weights"]

BUNDLE = "mednext_s_k3"
USUAL_EXTENT = 100  # mm; the volumes of the training are about 35 x 50 x 36 mm
PICTURE_WIDTH = 640  # pixels


class Segmentation(NamedTuple):
    """The files of the run, and the volume of each class in ml."""

    image: Path
    prediction: Path
    overlay: Path
    volumes: dict[str, float]


def segment_with_released_weights(image: str | None, root: Path, seed: int = 0) -> Segmentation:
    """
    Segment an image with the weights of mednext_s_k3, and draw the result.

    Args:
        image: the file. ``None``: a synthetic one, which is written to ``root``.
        root: output folder.
        seed: random seed of the synthetic image. Defaults to 0.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the bundle was installed without its weights.
        ChildProcessError: if the segmentation fails, with its command and the end of its log.
    """
    started, bundle = time.monotonic(), bundles.path(BUNDLE)
    if not bundles.has_weights(bundle):
        raise ValueError(f"pretrained: {bundle} has no weights; install the package again.")
    file, reference = (Path(image), None) if image is not None else _draw(root, seed)
    if not file.is_file():
        raise FileNotFoundError(f"pretrained: there is no file {file}; name an MR of a hippocampus, or none.")
    (root / "logs").mkdir(parents=True, exist_ok=True)
    command = bundle_command(bundle, ("inference",), "inferring", input=file, output_dir=root / "predictions")
    run_step(f"Segment {file} with the weights of {BUNDLE}", command, root / "logs" / "inference.log")
    (prediction,) = (root / "predictions").glob("*.nii.gz")
    result = _draw_result(file, prediction, reference, root)
    lines = [f"\nFinished in {time.monotonic() - started:.0f} s."]
    lines += [f"  {name}: {volume:.2f} ml" for name, volume in result.volumes.items()]
    lines += [f"Segmentation: {result.prediction}", f"Picture: {result.overlay}"]
    print("\n".join([*lines, *_notes(file)]), flush=True)
    return result


def _draw(root: Path, seed: int) -> tuple[Path, Path]:
    """Write a synthetic image and its label; return both files."""
    import numpy as np

    from .synthetic import make_hippocampus, write_volume

    image, label, affine = make_hippocampus(np.random.default_rng(seed))
    files = (root / "hippocampus.nii.gz", root / "reference" / "hippocampus.nii.gz")
    for file, array in zip(files, (image, label)):
        write_volume(array, affine, file)
    print(f"Drew a synthetic MR of a hippocampus: {files[0]}", flush=True)
    return files


def _draw_result(image: Path, prediction: Path, reference: Path | None, root: Path) -> Segmentation:
    import numpy as np

    from ..data.io import read_label
    from ..pictures import save_overlay
    from ..preprocessing.geometry import spacing_of
    from ..weights.released import read_record

    names = dict(enumerate(read_record(bundles.path(BUNDLE) / "models")["task"]["labels"]))
    label, affine = read_label(prediction)
    voxel = float(np.prod(spacing_of(affine))) / 1000
    volumes = {name: float((label == value).sum()) * voxel for value, name in names.items() if value}
    overlay = root / "overlays" / f"{prediction.name.removesuffix('.nii.gz')}.png"
    save_overlay(image, prediction, overlay, reference, names, PICTURE_WIDTH)
    return Segmentation(image, prediction, overlay, volumes)


def _notes(file: Path) -> list[str]:
    """Return what a user should know about an image that is unlike those of the training."""
    from ..data.io import read_image
    from ..preprocessing.geometry import spacing_of

    volume, affine = read_image(file)
    extent = [count * step for count, step in zip(volume.shape[1:], spacing_of(affine))]
    if max(extent) <= USUAL_EXTENT:
        return []
    shown = " x ".join(f"{length:.0f}" for length in extent)
    return [
        f"Note: the image is {shown} mm. The weights know volumes of about 35 x 50 x 36 mm around one hippocampus; "
        "crop it first."
    ]
