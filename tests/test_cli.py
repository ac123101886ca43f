"""Promises of the command line: instant help, errors without a traceback, exit status 0, 1 or 2, no step on a typo."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.nnunet import write_nnunet_checkpoint
from helpers.segmentations import write_pairs

import mednext_monai
from mednext_monai import bundles, cli
from mednext_monai.bundles.commands import WORKFLOWS
from mednext_monai.networks import create_mednext
from mednext_monai.weights import describe, read_state_dict


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Return exit status, stdout and stderr of a command."""
    status = cli.main(arguments)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, captured.out, captured.err


def leaves(group: dict, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [
        leaf
        for name, item in group.items()
        for leaf in (leaves(item, (*path, name)) if isinstance(item, dict) else [(*path, name)])
    ]


FUNCTIONS = [path for path in leaves(cli.COMMANDS) if path[0] not in WORKFLOWS]  # the others: tests/bundles


@pytest.mark.parametrize("command", FUNCTIONS, ids=" ".join)
def test_help_names_every_argument_and_its_meaning(capsys, command):
    status, out, err = run(capsys, *command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"NAME\n    mednext {' '.join(command)} - ")
    for section in out.split("    Default: ")[1:]:
        assert len(section.splitlines()[1].strip()) > 5  # a description follows the default
    assert "`" not in out.replace("`mednext bundle list`", "") and "Optional" not in out
    assert run(capsys, *command, "-h")[1] == out


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_overview_lists_every_command(capsys, arguments):
    status, out, err = run(capsys, *arguments)
    assert (status, err) == (0, "")
    for command in leaves(cli.COMMANDS):
        assert f"\n  {' '.join(command)}  " in out
    assert max(map(len, out.splitlines())) <= 80


def test_group_without_a_command_lists_its_own(capsys):
    status, out, _ = run(capsys, "bundle")
    assert status == 0
    assert "usage: mednext bundle COMMAND" in out and "\n  copy  " in out and "upkern" not in out


def test_help_is_instant_for_it_imports_neither_torch_nor_monai_and_opens_no_pager():
    code = (
        "import sys\n"
        "from mednext_monai import cli\n"
        "for arguments in (['--help'], ['demo', '--help'], ['convert', '--help'], ['bundle', 'zip', '--help'],\n"
        "                  ['nnunet', 'plan', '--help'], ['nnunet', 'path'], ['nnunet', 'trainers']):\n"
        "    assert cli.main(arguments) == 0\n"
        "heavy = ('torch', 'monai', 'numpy', 'nibabel', 'scipy', 'ignite', 'PIL', 'nnunetv2')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PAGER": "false", **_environment()},
    )
    assert result.stdout.endswith("[]\n") and result.stderr == ""


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": str(Path(mednext_monai.__file__).parent.parent)}


def test_module_runs_as_a_program():
    def execute(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "mednext_monai", *arguments], capture_output=True, text=True)

    result = execute("--version")
    assert (result.returncode, result.stdout) == (0, f"mednext {mednext_monai.__version__}\n")
    assert execute("nonsense").returncode == 2
    result = execute("bundle", "copy", "mednext_x_k3")
    assert result.returncode == 1
    assert result.stderr.startswith("mednext: error: there is no bundle 'mednext_x_k3'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nonsense"],
            "'nonsense'; the commands are demo, plan, preprocess, train, evaluate, predict, cross-validate, bundle",
        ),
        (
            ["bundle", "nonsense"],
            "no command 'nonsense'; the commands are list, copy, new, build, release, zip, zoo, publish",
        ),
        (["bundle", "copy"], "required argument: name"),
        (["bundle", "copy", "mednext_s_k3", "there", "too much"], "too much"),
        (["demo", "--epohcs", "3"], "--epohcs"),
        (["--nonsense"], "there is no command '--nonsense'"),
        (["demo", "--", "--=0"], "ambiguous option: --=0"),
    ],
)
def test_misuse_ends_with_status_2_before_anything_is_done(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("mednext: error: ") and message in err and "--help" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--epochs", "three"], "--epochs must be an integer, got 'three'"),
        (["demo", "--learning_rate", "fast"], "--learning_rate must be a number, got 'fast'"),
        (["bundle", "build", "--check=perhaps"], "--check must be true or false, got 'perhaps'"),
        (["upkern", "absent.pt", "out.pt"], "absent.pt does not exist"),
        (["convert", "absent.model", "out.pt"], "absent.model does not exist"),
        (["bundle", "zip", "absent"], "absent is not a bundle"),
        (
            ["bundle", "new", "S", "3", "absent.json", "out"],
            "plan: the file absent.json does not exist; create one with",
        ),
        (
            ["bundle", "new", "S", "4", "absent.json", "out"],
            "kernel_size one of 3, 5; got variant 'S' and kernel_size 4",
        ),
    ],
)
def test_user_errors_are_one_message_and_status_1(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, *arguments)
    assert status == 1
    assert err.startswith("mednext: error: ") and message in err
    assert not list(tmp_path.iterdir())


def test_arguments_arrive_with_the_type_of_their_annotation(capsys, monkeypatch):
    def command(path: str, count: int = 1, rate: float = 1.0, flag: bool = False, maybe: bool | None = None) -> int:
        """Show."""
        print([path, count, rate, flag, maybe])
        return 5

    command.__annotations__ = {"path": "str", "count": "int", "rate": "float", "flag": "bool", "maybe": "bool | None"}
    monkeypatch.setitem(cli.COMMANDS, "show", command)
    status, out, _ = run(capsys, "show", "2024", "--count=3", "--rate", "1e-3", "--flag", "--maybe", "false")
    assert (status, out) == (5, "['2024', 3, 0.001, True, False]\n")
    assert run(capsys, "show", "[1,2]", "--noflag")[1] == "['[1,2]', 1, 1.0, False, None]\n"


def test_interruption_and_a_closed_pipe_are_no_traceback(capsys, monkeypatch):
    def interrupted() -> None:
        """Wait."""
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "wait", interrupted)
    assert run(capsys, "wait")[0] == 130


def test_warnings_are_one_line(capsys, monkeypatch):
    def warning() -> None:
        """Warn."""
        import warnings

        warnings.warn("this is odd", stacklevel=1)

    monkeypatch.setitem(cli.COMMANDS, "warn", warning)
    assert run(capsys, "warn") == (0, "", "mednext: warning: this is odd\n")


def test_bundles_are_listed_copied_and_zipped(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, out, _ = run(capsys, "bundle", "list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == bundles.names()
    for line in out.splitlines():
        name, weights = line.split()[0], "with weights" in line
        assert weights == bundles.has_weights(bundles.path(name)) and weights != ("without weights" in line)
    assert run(capsys, "bundle", "copy", "mednext_m_k3", "2024")[:2] == (0, "2024/mednext_m_k3\n")
    assert (tmp_path / "2024/mednext_m_k3/configs/train.json").is_file()
    status, _, err = run(capsys, "bundle", "copy", "mednext_m_k3", "2024")
    assert status == 1 and "exists already" in err
    for source in ("2024/mednext_m_k3", "mednext_l_k5"):
        status, out, err = run(capsys, "bundle", "zip", source)
        assert (status, out) == (0, f"{Path(source).name}.zip\n")
        assert "no weights yet" in err
        with zipfile.ZipFile(tmp_path / out.strip()) as archive:
            assert f"{Path(source).name}/mednext_monai/cli.py" in archive.namelist()


def test_a_zip_says_what_it_leaves_out_and_that_it_contains_case_ids(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = bundles.copy("mednext_s_k3", tmp_path)
    for name in ("cache/v1/a.npy", "cache/v1/b.npy", "task.json", "models/last.pt", "models/fold_1/model.pt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * 100_000)
    status, _, err = run(capsys, "bundle", "zip", "mednext_s_k3")
    assert status == 0 and "case ids" not in err
    left_out = [line.removeprefix("mednext: left out: ") for line in err.splitlines() if "left out" in line]
    assert left_out == ["cache/ (2 files, 0.2 MB)", "models/last.pt (1 file, 0.1 MB)", "task.json (1 file, 0.1 MB)"]
    (folder / "configs" / "splits.json").write_text("[]")
    err = run(capsys, "bundle", "zip", "mednext_s_k3")[2]
    assert "the zip contains the case ids of the data set (configs/splits.json) and its folder (dataset_dir in" in err


def test_a_build_can_zip_every_bundle(capsys, monkeypatch):
    monkeypatch.setattr(bundles, "build", lambda: [])
    monkeypatch.setattr(bundles, "zip_bundle", lambda folder: folder.with_suffix(".zip"))
    status, out, _ = run(capsys, "bundle", "build", "--zip")
    assert status == 0
    first, *zips = out.splitlines()
    assert first == "nothing to do: the bundles are up to date"
    assert [Path(line).name for line in zips] == [f"{name}.zip" for name in bundles.names()]


def test_upkern_writes_weights_that_the_larger_network_loads(capsys, tmp_path):
    torch.manual_seed(0)
    source, output = tmp_path / "k3.pt", tmp_path / "models" / "model.pt"
    torch.save({"model": create_mednext("S", 3, spatial_dims=2, out_channels=3).state_dict()}, source)
    status, out, _ = run(capsys, "upkern", str(source), str(output))
    assert status == 0
    assert "kernel 3" in out and "kernel 5" in out and "26 kernels interpolated" in out
    description = describe(read_state_dict(output))
    assert (description.variant, description.encoder_kernel_size, description.out_channels) == ("S", 5, 3)
    create_mednext("S", 5, spatial_dims=2, out_channels=3).load_state_dict(read_state_dict(output))
    assert run(capsys, "upkern", str(source), str(output), "--kernel_size", "7")[0] == 0
    assert describe(read_state_dict(output)).decoder_kernel_size == 7
    status, _, err = run(capsys, "upkern", str(source), str(source))
    assert status == 1 and "must differ from the source" in err
    assert run(capsys, "upkern", str(source), str(output), "--kernel_size=4")[0] == 1


def test_convert_writes_a_state_dict_and_says_what_it_found(capsys, tmp_path):
    state_dict = create_mednext("S", 3, spatial_dims=2).state_dict()
    source, output = tmp_path / "model_final.model", tmp_path / "model.pt"
    torch.save({"state_dict": {**state_dict, "dummy_tensor": torch.ones(1)}}, source)
    status, out, _ = run(capsys, "convert", str(source), str(output))
    assert status == 0
    assert "MedNeXt-S" in out and "reversed" in out
    weight = "enc_block_0.0.conv1.weight"
    torch.testing.assert_close(read_state_dict(output)[weight], state_dict[weight].transpose(2, 3))
    assert run(capsys, "convert", str(source), str(output), "--reverse_axes=false")[0] == 0
    torch.testing.assert_close(read_state_dict(output)[weight], state_dict[weight])
    source.write_bytes(source.read_bytes()[:1000])
    status, _, err = run(capsys, "convert", str(source), str(output))
    assert status == 1 and "model_final.model" in err


def test_folder_and_names_of_nnunets_trainers_need_no_nnunet(capsys):
    status, out, err = run(capsys, "nnunet", "path")
    assert (status, err) == (0, "") and [file.name for file in Path(out.strip()).glob("*.py")] == [
        "mednext_monai_nnunet_trainers.py"
    ]
    status, out, _ = run(capsys, "nnunet", "trainers")
    assert status == 0 and len(out.splitlines()) == 19
    assert re.search(r"^nnUNetTrainerMedNeXt_L_kernel5_lr_1e_4 +MedNeXt-L, kernel 5, learning rate 0.0001$", out, re.M)


@pytest.mark.skipif(find_spec("nnunetv2") is not None, reason="nnunetv2 is installed")
def test_plans_for_nnunet_without_it_are_one_sentence(capsys):
    status, out, err = run(capsys, "nnunet", "plan", "4")
    assert (status, out) == (1, "")
    assert err == (
        "mednext: error: this command needs nnU-Net v2, which is not installed: pip install 'mednext-monai[nnunet]'\n"
    )


def test_convert_takes_a_checkpoint_of_nnunet(capsys, tmp_path):
    network = create_mednext("S", 3, in_channels=2, out_channels=3, base_channels=4)
    source = write_nnunet_checkpoint(tmp_path / "checkpoint_final.pth", network)
    status, out, _ = run(capsys, "convert", str(source), str(tmp_path / "model.pt"))
    assert status == 0 and "a checkpoint of nnU-Net v2" in out and "spacing [1.5, 1.0, 2.0]" in out
    status, _, err = run(capsys, "convert", str(source), str(source))
    assert status == 1 and "must differ from the source" in err


@pytest.fixture
def folders(tmp_path) -> list[str]:
    """Two cases; the class 2 of the second one is predicted, but absent; the class 1 has a small piece too many."""
    reference = np.zeros((12, 6, 6), np.uint8)
    reference[1:5, :4, :4] = 1
    second = reference.copy()
    reference[5:8, :4, :4] = 2
    prediction = reference.copy()
    prediction[10] = 1
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1, "tumor": 2}}')
    return write_pairs(tmp_path, [(prediction, reference), (prediction, second)])


def test_evaluate_folder_prints_a_table_and_writes_the_files(capsys, tmp_path, folders):
    labels = f"--labels={tmp_path / 'dataset.json'}"
    status, out, err = run(capsys, "evaluate-folder", *folders, labels, "--processes", "1")
    assert (status, err) == (0, "")
    dice = {"liver": 128 / (64 + 64 + 36), "tumor": 0.5}
    assert all(re.search(rf"^{name} +{value:.4f} ", out, re.MULTILINE) for name, value in dice.items())
    assert "lowest Dice:\n  case_1  tumor  0.0000  (absent in the reference)\n" in out
    assert out.endswith(f"wrote {folders[0]}/metrics.csv\nwrote {folders[0]}/metrics.json\n")
    content = json.loads(Path(folders[0], "metrics.json").read_text())
    assert content["classes"]["tumor"]["hd95_mm"]["without_value"] == {"case_1": "absent in the reference"}
    assert content["settings"]["surface_dice_tolerance"] == 1.0 and content["settings"]["surface_dice_unit"] == "mm"


def test_evaluate_folder_takes_regions_and_writes_the_original_s_summary(capsys, tmp_path, folders):
    (tmp_path / "regions.json").write_text('{"whole": [1, 2]}')
    options = ["--regions", str(tmp_path / "regions.json"), "--only_regions", "--tolerance", "2", "--format", "nnunet"]
    options += ["--tolerance_in_voxels", "--output_dir", str(tmp_path / "out")]
    status, out, _ = run(capsys, "evaluate-folder", *folders, *options)
    assert status == 0 and re.search(r"^whole +0\.\d{4} ", out, re.MULTILINE) and "tumor" not in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["metrics.csv", "metrics.json", "summary.json"]
    assert list(json.loads((tmp_path / "out/summary.json").read_text())["results"]["mean"]) == ["whole"]


def test_evaluate_folder_ends_with_status_1_if_a_case_is_bad_and_writes_the_others(capsys, folders):
    Path(folders[0], "case_0.nii.gz").write_bytes(b"damaged")
    status, out, err = run(capsys, "evaluate-folder", *folders)
    assert status == 1 and f"mednext: error: case_0: {folders[0]}/case_0.nii.gz: cannot be read as an image" in err
    assert "case_1,1," in Path(folders[0], "metrics.csv").read_text() and "1 of 1" in out
    status, _, err = run(capsys, "evaluate-folder", *folders, "--format", "xml")
    assert status == 1 and "format must be table or nnunet, got 'xml'" in err


def test_postprocessing_is_found_and_applied(capsys, tmp_path, folders):
    decision, output = str(tmp_path / "postprocessing.json"), str(tmp_path / "final")
    status, out, err = run(capsys, "find-postprocessing", *folders, "--output", decision)
    assert (status, err) == (0, "")
    assert "  keep the largest component of the joined classes 1, 2\n" in out and out.endswith(f"wrote {decision}\n")
    raw = {path.name: path.read_bytes() for path in Path(folders[0]).iterdir()}
    status, out, err = run(capsys, "apply-postprocessing", folders[0], output, "--decision", decision)
    assert (status, out, err) == (0, f"wrote 2 segmentations to {output}\n", "")
    assert {path.name: path.read_bytes() for path in Path(folders[0]).iterdir()} == raw
    assert not np.asarray(nib.load(f"{output}/case_0.nii.gz").dataobj)[10].any()
    status, _, err = run(capsys, "apply-postprocessing", folders[0], folders[0], "--decision", decision)
    assert status == 1 and "would be replaced by its own segmentation" in err
    Path(folders[0], "case_0.nii.gz").write_bytes(b"damaged")
    assert run(capsys, "apply-postprocessing", folders[0], output, "--decision", decision)[0] == 1
    status, _, err = run(capsys, "find-postprocessing", *folders, "--output", decision, "--strict")
    assert status == 1 and "a decision needs all of them" in err
