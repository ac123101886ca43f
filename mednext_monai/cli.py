"""The command line: ``mednext`` or ``python -m mednext_monai``.

Each command is a function in this module, listed in ``COMMANDS``, whose arguments python-fire binds; or a workflow of
the bundles, whose arguments are the options of a config. The functions import what they need when they are called, so
that ``--help`` imports neither torch nor monai.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import os
import re
import shlex
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .bundles.commands import WORKFLOWS, Misuse, Workflow, help_text, run_workflow
from .demo.run import run_demo
from .options import parse_switch

__all__ = ["COMMANDS", "main"]


def bundle_list() -> None:
    """List the bundles, whether they have weights, and their folders."""
    from . import bundles

    for name in bundles.names():
        folder = bundles.path(name)
        print(f"{name}  {'with weights   ' if bundles.has_weights(folder) else 'without weights'}  {folder}")


def bundle_copy(name: str, output_dir: str = ".") -> None:
    """
    Copy a bundle to a folder of yours, to train it there.

    Args:
        name: the bundle, such as mednext_s_k3; `mednext bundle list` shows all.
        output_dir: the folder in which the bundle's folder is created.
    """
    from . import bundles

    print(bundles.copy(name, output_dir))


def bundle_new(variant: str, kernel_size: int, plan: str, output_dir: str) -> None:
    """
    Create a bundle for your own task from a plan.

    The settings of the plan become those of the bundle, so that its commands need no other file; its metadata list
    your channels and classes. The bundle is verified before it appears.

    Args:
        variant: S, B, M or L.
        kernel_size: edge of the depthwise kernels in voxels, 3 or 5.
        plan: the .json file that the command plan wrote.
        output_dir: the bundle's folder, which must be new or empty.
    """
    from . import bundles

    folder = bundles.new_bundle(variant, kernel_size, plan, output_dir)
    print(f"{folder}\n\nTo train it:\n  mednext train {shlex.quote(str(folder))}")
    print("docs/README.md there has the other commands.")


def bundle_build(check: bool = False, zip: bool = False) -> int:
    """
    Build the bundles from configs/, in a checkout of this package.

    Args:
        check: write nothing, list the files that differ and end with exit status 1 if there are any.
        zip: also write bundles/<name>.zip for each bundle, with its weights and the code that it needs.
    """
    from . import bundles

    if check:
        differences = bundles.check()
        print("\n".join(differences) or "the bundles match configs/")
        return 1 if differences else 0
    written = bundles.build()
    print("\n".join(f"wrote {file}" for file in written) or "nothing to do: the bundles are up to date")
    for name in bundles.names() if zip else ():
        print(f"wrote {bundles.zip_bundle(bundles.path(name))}")
    return 0


def bundle_zip(bundle: str, output: str | None = None) -> None:
    """
    Zip a bundle with its weights and the code that it needs.

    Unzipped, it runs where only MONAI is installed.

    Args:
        bundle: a bundle's folder, or the name of one of the bundles.
        output: the zip to write; by default <bundle>.zip in the working directory.
    """
    from . import bundles

    folder = bundles.find(bundle)
    print(bundles.zip_bundle(folder, output or f"{folder.resolve().name}.zip"))
    _report_zip(folder)
    if not bundles.has_weights(folder):
        print(f"mednext: note: {folder} has no weights yet, and neither has the zip", file=sys.stderr)


def bundle_release(
    bundle: str, output_dir: str, half: bool = True, data_license: str | None = None, note: str | None = None
) -> None:
    """
    Write the weights of a trained and evaluated bundle for others.

    The released bundle has the weights in half precision, which it evaluates again, and says in models/model.json, in
    its metadata and on its page how they were trained and how good they are. It has no images and no case ids.

    Args:
        bundle: folder of the bundle, after the commands train and evaluate for fold 0.
        output_dir: a new folder, or a bundle of the same variant and kernel size without weights of yours.
        half: half precision; false: as they are.
        data_license: a text file with source and license of the data, for docs/data_license.txt.
        note: a sentence about the training, for the page.
    """
    from . import bundles

    folder = bundles.release(bundle, output_dir, half, data_license, note)
    print(f"{folder}: models/model.pt, with what is known about it in models/model.json and docs/README.md")


def export(
    bundle: str,
    format: str,
    output: str | None = None,
    fold: str | None = None,
    checkpoint: str | None = None,
    opset: int | None = None,
    overwrite: bool = False,
) -> None:
    """
    Write the network of a trained bundle as TorchScript, ONNX or torch.export.

    The file takes any batch and any sizes that are multiples of 16 and at least 32. It is compared with the network
    before it appears, and contains metadata.json and inference.json with the settings of the checkpoint.

    Args:
        bundle: a bundle's folder, or the name of one of the bundles.
        format: torchscript, onnx (pip install "mednext-monai[onnx]") or torch_export.
        output: the file to write; by default beside the checkpoint, such as models/model.onnx.
        fold: the fold whose weights are exported; by default as for predict.
        checkpoint: a checkpoint; by default model.pt of the fold.
        opset: ONNX operator set; by default the one that PyTorch recommends.
        overwrite: replace an existing file.
    """
    from .bundles.export import export

    file, error = export(bundle, format, output, fold, checkpoint, opset, overwrite)
    print(f"{file}: differs from the network by at most {error:.1e} of the largest logit")


def bundle_zoo(bundle: str, output_dir: str, weights_url: str | None = None) -> None:
    """
    Write the files of a pull request to MONAI's model zoo.

    They are models/<name>/ and a test in the form of its CI, ci/unit_tests/test_<name>.py.

    Args:
        bundle: folder of a bundle with released weights, or the name of one of the bundles.
        output_dir: a new or empty folder.
        weights_url: where models/model.pt can be downloaded, needed above 25 MB.
    """
    from . import bundles

    folder = bundles.find(bundle)
    print(bundles.zoo_folder(folder, output_dir, weights_url))
    _report_dataset_dir(folder)


def bundle_publish(bundle: str, repo: str, private: bool = True, dry_run: bool = False) -> None:
    """
    Publish a bundle on the Hugging Face Hub.

    Writes the model card, README.md of the bundle, and sends it with weights, configs, pages and license: no cache, no
    results, no states of a training, no plans with case ids. Needs huggingface_hub and its login.

    Args:
        bundle: folder of a bundle, best one that the command release wrote.
        repo: the repository, OWNER/NAME, which is created if it does not exist.
        private: whether a new repository is private.
        dry_run: send nothing, only write the card and list the files.
    """
    from . import bundles

    files = bundles.publish(bundle, repo, private, dry_run)
    _report_dataset_dir(Path(bundle))
    for name, size in files.items():
        print(f"{size:>12,}  {name}")
    print(f"{'would send' if dry_run else 'sent'} {len(files)} files, {sum(files.values()) / 1e6:.1f} MB, to {repo}")


def _report_dataset_dir(folder: Path) -> None:
    """Say that a bundle that others get names a folder of this computer."""
    from .files import read_json

    stated = str(read_json(folder / "configs" / "train.json").get("dataset_dir", "$"))
    if not stated.startswith("$"):
        print(
            f"mednext: note: configs/train.json names the folder of the data set, {stated} (dataset_dir); what "
            "`mednext bundle release` writes does not",
            file=sys.stderr,
        )


def _report_zip(folder: Path) -> None:
    """Say what a zip of the bundle does not contain, and what it contains that may not be for others."""
    from . import bundles

    for name, (files, size) in bundles.left_out(folder).items():
        print(f"mednext: left out: {name} ({files} file{'s' * (files > 1)}, {size / 1e6:.1f} MB)", file=sys.stderr)
    private = [name for name in ("task.json", "splits.json") if (folder / "configs" / name).is_file()]
    if private:
        print(
            f"mednext: note: the zip contains the case ids of the data set (configs/{', configs/'.join(private)}) and "
            "its folder (dataset_dir in configs/train.json)",
            file=sys.stderr,
        )


def convert(source: str, output: str, reverse_axes: bool | None = None, to: str = "native") -> None:
    """
    Convert weights of the authors' code, of nnU-Net v2 or of MONAI's MedNeXt S.

    The output is the file that a bundle has at models/model.pt. Variant and kernel size are inferred from the tensors,
    spacing, normalization, channels and classes from the plans in a checkpoint of nnU-Net v2. Nothing in the source is
    executed.

    Args:
        source: an nnU-Net v1 .model file, an nnU-Net v2 .pth file, or any checkpoint that holds a state dict.
        output: the file to write, such as mednext_b_k5/models/model.pt.
        reverse_axes: reverse the spatial axes of the kernels; by default for the authors' weights (z, y, x), and those
            of nnU-Net v2 as their plans say.
        to: native, or monai for the names of MONAI's own MedNeXt (S only).
    """
    from .weights import convert

    print(convert(source, output, reverse_axes=reverse_axes, to=to))


def upkern(source: str, output: str, kernel_size: int = 5) -> None:
    """
    Write weights that start a network of another kernel size.

    They are those of a trained network with interpolated kernels. Training does not need this file: the option
    --upkern_checkpoint of a bundle does the same.

    Args:
        source: the trained checkpoint, of any kernel size.
        output: the file to write, such as mednext_s_k5/models/model.pt.
        kernel_size: edge of the new kernels in voxels, odd.
    """
    from .networks import MedNeXt
    from .weights import describe, read_weights, upkern, write_checkpoint

    if Path(output).exists() and Path(output).samefile(source):
        raise ValueError(f"output must differ from the source, got {output} for both.")
    trained = read_weights(source)
    description = describe(trained)
    kernels = {"encoder_kernel_size": kernel_size, "decoder_kernel_size": kernel_size}
    network = MedNeXt(**{**description.network_arguments(), **kernels})
    report = upkern(trained, network)
    write_checkpoint(network.state_dict(), output)
    print(f"read {source}: {description}\n{report}\nwrote {output}: {describe(network.state_dict())}")


def plan(
    dataset_dir: str,
    output: str,
    patch_size: int | None = None,
    batch_size: int | None = None,
    groups: str | None = None,
    splits: str | None = None,
    gpu_memory: float | None = None,
    processes: int | None = None,
    spatial_dims: int = 3,
    slice_axis: int | None = None,
    slice_spacing: str | None = None,
) -> None:
    """
    Check a data set and plan its training.

    Writes settings for every bundle, --config_file "['configs/train.json','task.json']", and a page that explains them.

    Args:
        dataset_dir: the folder with dataset.json, in Decathlon, nnU-Net v1 raw or nnU-Net v2 raw layout.
        output: the .json file to write; the page is written beside it as .html.
        patch_size: edge of the patches in voxels, a multiple of 16; by default 128 (in 2D 512), less if all volumes are
            smaller.
        batch_size: patches per step; by default 2, in 2D 12.
        groups: a CSV file of case id and patient id, so that no patient is in both parts of a fold.
        splits: your own folds, a JSON file in nnU-Net's format; by default splits_final.json of the data set, or the
            original's five.
        gpu_memory: GPU memory in GiB, for which the plan chooses gradient_checkpointing: for each variant the fastest
            setting that fits; by default that of the installed GPU.
        processes: processes that read files; by default one per core.
        spatial_dims: 3, or 2 to train on slices, which the authors offer and call untested.
        slice_axis: in 2D, the axis of the files across the slices, 0, 1 or 2; by default the last one, as published.
        slice_spacing: in 2D, the distance in mm to which slices are resampled; by default, and as published, keep: as
            they are.
    """
    from .planning import plan, text_report

    made = plan(
        *(dataset_dir, output, patch_size, batch_size, groups, splits, gpu_memory, processes),
        spatial_dims=spatial_dims,
        slice_axis=slice_axis,
        slice_spacing=slice_spacing,
    )
    print(text_report(made))
    print(f"\nwrote {output} and {Path(output).with_suffix('.html')}\n\nTo create a bundle from it:")
    print(f"  mednext bundle new --variant S --kernel_size 3 --plan {shlex.quote(output)} --output_dir my_bundle")


def tune(
    bundle: str | None = None,
    variant: str | None = None,
    kernel_size: int | None = None,
    patch_size: str | None = None,
    batch_size: int | None = None,
    in_channels: int | None = None,
    out_channels: int | None = None,
    amp: bool | None = None,
    gradient_checkpointing: str | None = None,
    device: str = "cuda",
    compile: bool = True,
    timeout: float = 1800,
) -> None:
    """
    Measure whether the Triton kernels are exact and faster on your GPU, and use them where they are.

    Compares them, in processes of their own, with the plain network: outputs and all gradients of a training step, the
    outputs of an inference, both as they are and compiled by PyTorch; then times both. What is exact and faster is
    written to a file in the folder MEDNEXT_CACHE, by default ~/.cache/mednext, for this GPU, driver, PyTorch, network
    and input; training and inference of exactly these use the kernels from then on. A kernel that fails costs a line.

    Args:
        bundle: your bundle, whose network, patches and batch are measured, or the name of one of the package.
        variant: S, B, M or L, instead of a bundle.
        kernel_size: 3 or 5, with the variant.
        patch_size: edge of the patches in voxels, or three such as 128,160,112; by default that of the bundle.
        batch_size: patches per step; with several GPUs those of one. By default that of the bundle.
        in_channels: image channels; by default those of the bundle.
        out_channels: classes, background included; by default those of the bundle.
        amp: mixed precision; false: float32. By default that of the bundle.
        gradient_checkpointing: as for the command train; by default that of the bundle.
        device: the GPU, such as cuda:1.
        compile: measure compiled code, too, which takes some minutes.
        timeout: seconds after which a measurement is given up.
    """
    from .bundles import find
    from .bundles.options import check_option
    from .tuning.run import check_device, tune

    if (bundle is None) == (variant is None) or (variant is None) != (kernel_size is None):
        raise ValueError("give either a bundle, or --variant and --kernel_size.")
    sizes = [int(size) if size.isdigit() else size for size in (patch_size or "").split(",")]
    options: dict[str, Any] = {
        "patch_size": None if patch_size is None else sizes if len(sizes) > 1 else sizes[0],
        "batch_size": batch_size,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "amp": amp,
        "gradient_checkpointing": gradient_checkpointing,
    }
    options = {name: value for name, value in options.items() if value is not None}
    for name, value in {**options, "variant": variant or "S", "kernel_size": kernel_size or 3}.items():
        check_option(name, value)
    check_device(device)
    file = tune(find(bundle or f"mednext_{str(variant).lower()}_k{kernel_size}"), options, device, compile, timeout)
    print(f"wrote {file}" if file else "nothing is known about these kernels here, and nothing was written")


def evaluate_folder(
    prediction_dir: str,
    label_dir: str,
    output_dir: str | None = None,
    labels: str | None = None,
    regions: str | None = None,
    only_regions: bool = False,
    tolerance: float = 1.0,
    tolerance_in_voxels: bool = False,
    format: str = "table",
    allow_missing: bool = False,
    overwrite: bool = False,
    processes: int | None = None,
    part: int = 0,
    parts: int = 1,
) -> int:
    """
    Compare a folder of segmentations with reference labels.

    Writes metrics.csv, a row per case and class, and metrics.json: Dice, surface Dice, HD95 and volumes. A class that
    is neither in the prediction nor in the reference has no value. Ends with exit status 1 if a case cannot be
    evaluated; the others are.

    Args:
        prediction_dir: the folder of the segmentations, paired by name with the labels.
        label_dir: the folder of the labels, on the same grids.
        output_dir: the folder to write to; by default that of the segmentations.
        labels: a dataset.json or a plan with the names of classes and regions and the ignored label; by default the
            values found are the classes.
        regions: a JSON file such as {"whole tumor": [1, 2, 3]}.
        only_regions: evaluate the regions instead of the classes.
        tolerance: of the surface Dice, in mm.
        tolerance_in_voxels: measure the surface Dice in voxels; with the tolerance 1.0 this is the authors' reading.
        format: table, or nnunet to write the summary.json of nnU-Net v1 too.
        allow_missing: leave out labels without a segmentation, as when one fold was predicted.
        overwrite: replace tables of another evaluation, or files that this package did not write.
        processes: processes that work on cases; by default one per core.
        part: 0 to parts - 1, the cases of this run, if several runs share the work; any number of them may run at
            once. Each writes its rows to metrics.part_0.json, ...; the one that finds those of all writes the tables.
        parts: number of parts.
    """
    from . import evaluation

    folder = prediction_dir if output_dir is None else output_dir
    names = evaluation.read_labels(labels, regions, only_regions)
    settings = evaluation.folder_settings(prediction_dir, label_dir, tolerance, tolerance_in_voxels, allow_missing)
    share = evaluation.folder_part(part, parts, prediction_dir, label_dir, names, settings, allow_missing)
    evaluation.check_tables(folder, settings, format, overwrite, share)
    result = evaluation.evaluate_folder(
        prediction_dir, label_dir, names, tolerance, tolerance_in_voxels, allow_missing, processes, share
    )
    whole = evaluation.finish_evaluation(result, folder, format, share, overwrite)
    status = _report_problems((whole or result).problems)
    evaluation.print_missing(share, folder)
    return status


def find_postprocessing(
    prediction_dir: str,
    label_dir: str,
    output: str,
    labels: str | None = None,
    strict: bool = False,
    count_absent_as_one: bool = False,
    minimum_sizes: bool = False,
    allow_missing: bool = False,
    overwrite: bool = False,
    processes: int | None = None,
) -> None:
    """
    Decide where only the largest component is kept.

    As published: first all classes as one, accepted if the mean Dice of a class rises and that of none falls; then each
    class alone. Where a false positive is removed completely, a Dice of 0 becomes no value, so that the mean rises even
    if other cases get worse; the option strict avoids this.

    Args:
        prediction_dir: the folder of the segmentations, best of all cases by the fold that did not train on them.
        label_dir: the folder of the labels.
        output: the .json file to write.
        labels: a dataset.json or a plan with the names of the classes and the ignored label; by default the values
            found are the classes.
        strict: compare means only over the cases that have a value both before and after.
        count_absent_as_one: count the Dice of a class that is in neither of both as 1.
        minimum_sizes: remove only components smaller than the smallest of all cases' largest ones.
        allow_missing: leave out labels without a segmentation, as when one fold was predicted.
        overwrite: replace a file that this package did not write.
        processes: processes that work on cases; by default one per core.
    """
    from . import evaluation

    evaluation.check_decision(output, overwrite)
    names = evaluation.read_labels(labels)
    found = evaluation.find_postprocessing(
        prediction_dir, label_dir, names, strict, count_absent_as_one, minimum_sizes, allow_missing, processes
    )
    found.write(output)
    print(f"{found.describe()}\n\nwrote {output}")


def apply_postprocessing(
    prediction_dir: str, output_dir: str, decision: str, overwrite: bool = False, processes: int | None = None
) -> int:
    """
    Apply the decision of find-postprocessing to a folder.

    The segmentations stay as they are. Ends with exit status 1 if a case cannot be read; the others are written.

    Args:
        prediction_dir: the folder of the segmentations.
        output_dir: another folder, for the results.
        decision: the .json file of find-postprocessing, or the postprocessing.json of nnU-Net v1.
        overwrite: replace files that this package did not write.
        processes: processes that work on cases; by default one per core.
    """
    from . import evaluation

    postprocessing = evaluation.read_postprocessing(decision)
    written, problems = evaluation.apply_to_folder(prediction_dir, output_dir, postprocessing, overwrite, processes)
    print(f"wrote {len(written)} segmentations to {output_dir}")
    return _report_problems(problems)


def report(run_dir: str, output: str | None = None, dataset_dir: str | None = None, overwrite: bool = False) -> None:
    """
    Write one HTML page about what was trained and evaluated in a bundle.

    It has curves, box plots of each class, overlays of the best, median and worst case (if their segmentations were
    saved), settings, versions and hardware. The page needs no other file.

    Args:
        run_dir: the folder of the bundle, with models/ and eval/.
        output: the .html file to write; by default eval/report.html in the bundle.
        dataset_dir: the data set, for the overlays; by default that of the evaluation.
        overwrite: replace a file that this package did not write.
    """
    from .report import write_report

    print(f"wrote {write_report(run_dir, output, dataset_dir, overwrite)}")


def nnunet_path() -> None:
    """Print the folder of the nnU-Net v2 trainers, the value for the environment variable nnUNet_extTrainer."""
    from .nnunet import TRAINER_FOLDER

    print(TRAINER_FOLDER)


def nnunet_trainers() -> None:
    """List the nnU-Net v2 trainers, for nnUNetv2_train -tr."""
    from .nnunet.names import TRAINERS

    for name, (variant, kernel_size, learning_rate) in TRAINERS.items():
        print(f"{name:40} MedNeXt-{variant}, kernel {kernel_size}, learning rate {learning_rate}")


def nnunet_plan(
    dataset: str,
    plans_name: str = "nnUNetPlansMedNeXt",
    patch_size: int = 128,
    batch_size: int = 2,
    processes: int | None = None,
    overwrite: bool = False,
) -> None:
    """
    Write a plans file for nnU-Net v2 with the published spacing, patch and batch size.

    It lies beside nnU-Net's own plans and has the configuration 3d_fullres, at 1 mm. Needs nnunetv2 and its environment
    variables.

    Args:
        dataset: id or name of a data set in nnUNet_raw, such as 4 or Dataset004_Hippocampus.
        plans_name: name of the plans, for -p.
        patch_size: edge of the patches in voxels, a multiple of 16.
        batch_size: patches per step.
        processes: processes that read images; by default one per core.
        overwrite: replace a plans file that this command did not write.
    """
    _need_nnunet()
    from .nnunet.planner import plan

    path, number, name = plan(dataset, plans_name, patch_size, batch_size, processes, overwrite)
    print(
        f"wrote {path}\n\nTo train with it:\n  nnUNetv2_preprocess -d {number} -plans_name {name} -c 3d_fullres\n"
        "  export nnUNet_extTrainer=$(mednext nnunet path)\n"
        f"  nnUNetv2_train {number} 3d_fullres 0 -tr nnUNetTrainerMedNeXt_S_kernel3 -p {name}"
    )


def nnunet_export(source: str, output_dir: str, overwrite: bool = False) -> None:
    """
    Write a model folder of nnU-Net v2 from a bundle, for nnUNetv2_predict_from_modelfolder.

    Other folds can be added to the same folder. The opposite direction is the command convert.

    Args:
        source: a bundle with weights, or a checkpoint of its training.
        output_dir: the folder to write plans.json, dataset.json and fold_0/checkpoint_final.pth to.
        overwrite: replace a checkpoint that is there.
    """
    from .nnunet.model_folder import export

    print(export(source, output_dir, overwrite))


def _need_nnunet() -> None:
    from importlib.util import find_spec

    if find_spec("nnunetv2") is None:
        raise ValueError("this command needs nnU-Net v2, which is not installed: pip install 'mednext-monai[nnunet]'")


def _report_problems(problems: Mapping[str, str]) -> int:
    """Print the cases that failed, and return the exit status."""
    for case, problem in problems.items():
        print(f"mednext: error: {case}: {problem}", file=sys.stderr)
    return 1 if problems else 0


# A dictionary is a group of commands. The first line of a function's docstring is its line in `mednext --help`.
COMMANDS: dict[str, Any] = {
    "demo": run_demo,
    "plan": plan,
    **WORKFLOWS,
    "bundle": {
        "list": bundle_list,
        "copy": bundle_copy,
        "new": bundle_new,
        "build": bundle_build,
        "release": bundle_release,
        "zip": bundle_zip,
        "zoo": bundle_zoo,
        "publish": bundle_publish,
    },
    "tune": tune,
    "evaluate-folder": evaluate_folder,
    "find-postprocessing": find_postprocessing,
    "apply-postprocessing": apply_postprocessing,
    "report": report,
    "export": export,
    "convert": convert,
    "upkern": upkern,
    "nnunet": {
        "path": nnunet_path,
        "trainers": nnunet_trainers,
        "plan": nnunet_plan,
        "export": nnunet_export,
    },
}

HELP = {"--help", "-h"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0, 1 if it failed, 2 if the command or an option does not exist."""
    os.environ["PAGER"] = "cat"  # fire would open the help in a pager
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"mednext: warning: {message}", file=sys.stderr)
            return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:  # the reader of a pipe has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        print(f"mednext: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mednext: interrupted", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:
        print(f"mednext {__version__}")
        return 0
    command, path = COMMANDS, ["mednext"]
    while isinstance(command, dict):
        if not arguments or arguments[0] in HELP:
            print(_overview(command, path))
            return 0
        if arguments[0] not in command:
            return _misused(path, f"there is no command {arguments[0]!r}; the commands are {', '.join(command)}.")
        path.append(arguments.pop(0))
        command = command[path[-1]]
    if HELP & set(arguments):
        print(help_text(path[-1], arguments) if isinstance(command, Workflow) else _help(command, path))
        return 0
    if isinstance(command, Workflow):
        try:
            return run_workflow(path[-1], arguments)
        except Misuse as error:
            return _misused(path, str(error))
    return _call(command, arguments, path)


def _misused(path: list[str], message: str) -> int:
    print(f"mednext: error: {message}\nSee {' '.join(path)} --help.", file=sys.stderr)
    return 2


def _call(function: Callable[..., Any], arguments: list[str], path: list[str]) -> int:
    """
    Have fire bind the arguments, and call the function only if none is left over.

    Fire by itself calls first and reports leftover arguments afterwards: a misspelled option after the training.
    """
    import fire

    calls: list[tuple[tuple, dict[str, Any]]] = []
    messages = io.StringIO()

    @functools.wraps(function)  # fire sees the signature of the function
    def record(*args: Any, **kwargs: Any) -> None:
        calls.append((args, kwargs))

    kinds = {name: str(p.annotation).split(" | ")[0] for name, p in inspect.signature(function).parameters.items()}
    parsers = {name: functools.partial(PARSERS[kind], name) for name, kind in kinds.items()}
    try:
        with contextlib.redirect_stderr(messages):
            fire.Fire(fire.decorators.SetParseFns(**parsers)(record), command=arguments, name=" ".join(path))
    except fire.core.FireExit as stop:
        if stop.code != 0:
            return _misused(path, stop.trace.elements[-1].ErrorAsStr())
        print(messages.getvalue())  # fire's own flags, such as `-- --trace`
        return 0
    except SystemExit:  # of the parser of these flags
        return _misused(path, messages.getvalue().strip().rpartition("error: ")[2])
    args, kwargs = calls[0]
    result = function(*args, **kwargs)
    return result if isinstance(result, int) else 0


def _parse_number(kind: type, name: str, text: str) -> float:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"--{name} must be {'an integer' if kind is int else 'a number'}, got {text!r}.") from None


# By annotation. By default fire converts a path such as 2024 to a number and keeps `false` as a string.
PARSERS: dict[str, Callable[[str, str], Any]] = {
    "str": lambda name, text: text,
    "bool": lambda name, text: parse_switch(f"--{name}", text),
    "int": functools.partial(_parse_number, int),
    "float": functools.partial(_parse_number, float),
}


def _overview(group: dict[str, Any], path: list[str]) -> str:
    """Return the help of a group of commands."""
    prefix, is_root = " ".join(path), path == ["mednext"]
    commands = _flat(group)
    width = max(map(len, commands)) + 2
    lines = [f"usage: {prefix} COMMAND [ARGUMENTS]", ""]
    lines += [f"MedNeXt for MONAI, version {__version__}.", ""] if is_root else []
    lines += ["commands:"]
    for name, item in commands.items():
        lines += textwrap.wrap(
            _first_line(item), 80, initial_indent=f"  {name:{width}}", subsequent_indent=" " * (width + 2)
        )
    lines += ["", f"`{prefix} COMMAND --help` describes a command."]
    lines += ["`mednext --version` prints the version."] if is_root else []
    return "\n".join(lines)


def _flat(group: dict[str, Any]) -> dict[str, Any]:
    commands = {}
    for name, item in group.items():
        nested = _flat(item) if isinstance(item, dict) else {"": item}
        commands.update({f"{name} {rest}".strip(): function for rest, function in nested.items()})
    return commands


def _first_line(command: Callable[..., Any] | Workflow) -> str:
    if isinstance(command, Workflow):
        return command.summary
    return (inspect.getdoc(command) or "").partition("\n")[0].rstrip(".")


def _help(function: Callable[..., Any], path: list[str]) -> str:
    """Return fire's help for a command."""
    from fire import helptext
    from fire.trace import FireTrace

    trace = FireTrace(function, name=path[0])
    for name in path[1:]:
        trace.AddAccessedProperty(function, name, [name], None, None)
    text = helptext.HelpText(function, trace=trace)
    return re.sub(r"Type: (?:Optional\[)?'(\w+)(?: \| None)?'\]?", r"Type: \1", text)
