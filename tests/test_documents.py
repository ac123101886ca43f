"""
What the pages for users tell them to type can be typed: each command, option and Python block, taken from the page.

A command is parsed by what would run it, so that a name that does not exist fails. Each command of ``mednext`` on a
page is also run: by the chain below, or by the test that ``RUN_ELSEWHERE`` names.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import monai.bundle
import pytest
import torch
from fire.parser import DefaultParseValue
from helpers.bundles import make_trained
from helpers.datasets import make_boxes, make_case, save
from helpers.documents import PAGES, ROOT, read_page
from monai.bundle import ConfigWorkflow
from torch.distributed.run import parse_args

from mednext_monai import bundles, cli
from mednext_monai.benchmark.options import parse
from mednext_monai.bundles import commands, cross_validation
from mednext_monai.bundles.commands import Workflow
from mednext_monai.bundles.options import OPTIONS
from mednext_monai.bundles.run_checks import check_run
from mednext_monai.cli import COMMANDS, main
from mednext_monai.networks import create_mednext

USERS = ("README", "bundle", "task", "benchmark", "nnunet")

# Run in this order, each as it begins on its page, with what makes it small.
TINY = "--epochs 1 --iterations_per_epoch 2 --val_interval 1 --pseudo_dice_batches 1 --num_workers 0 --mirror false"
SMALL = TINY.removesuffix(" --mirror false")
CHAIN = (
    ("README", "mednext plan DATASET --output task.json", "--patch_size 32 --processes 1"),
    ("README", "mednext bundle new --variant S --kernel_size 3 --plan task.json --output_dir my_bundle", ""),
    ("README", "mednext train my_bundle", SMALL),
    ("README", "mednext evaluate my_bundle", "--save_predictions true --mirror false --num_workers 0"),
    ("README", "mednext predict my_bundle IMAGE_OR_FOLDER OUTPUT", "--mirror false"),
    ("task", "mednext cross-validate .", f"{TINY} --folds 0 1"),
    ("task", "mednext report .", ""),
    ("README", "mednext evaluate-folder PREDICTIONS LABELS", "--allow_missing true --output_dir tables"),
    ("bundle", "mednext find-postprocessing PREDICTIONS LABELS --output postprocessing.json", "--allow_missing true"),
    ("bundle", "mednext apply-postprocessing PREDICTIONS OUTPUT --decision postprocessing.json", ""),
    ("bundle", "python -m monai.bundle ckpt_export network_def", ""),
)
# What is there afterwards, in the folder in which the README's commands are typed.
WRITTEN = """
task.json task.html my_bundle/models/model.pt my_bundle/eval/metrics.csv my_bundle/eval/predictions out/box_9.nii.gz
my_bundle/eval/cross_validation/postprocessing.json my_bundle/eval/report.html tables/metrics.json
my_bundle/postprocessing.json my_bundle/out/postprocessing.json my_bundle/models/model.ts
""".split()

# The tests that run the other commands of the pages, and what they call.
RUN_ELSEWHERE = {
    "bundle build": ("test_cli.py", "test_a_build_can_zip_every_bundle", '"bundle", "build"'),
    "bundle copy": ("test_cli.py", "test_bundles_are_listed_copied_and_zipped", '"bundle", "copy"'),
    "bundle list": ("test_cli.py", "test_bundles_are_listed_copied_and_zipped", '"bundle", "list"'),
    "bundle release": (
        "bundles/test_release.py",
        "test_what_does_not_belong_together_is_not_released",
        '"bundle", "release"',
    ),
    "bundle publish": (
        "bundles/test_hub.py",
        "test_a_dry_run_lists_exactly_what_would_be_sent_and_writes_the_card",
        '"bundle", "publish"',
    ),
    "bundle zoo": ("bundles/test_zoo.py", "test_it_has_the_bundle_and_a_test", '"bundle", "zoo"'),
    "bundle zip": ("test_cli.py", "test_bundles_are_listed_copied_and_zipped", '"bundle", "zip"'),
    "convert": ("test_cli.py", "test_convert_writes_a_state_dict_and_says_what_it_found", '"convert"'),
    "export": (
        "bundles/test_export.py",
        "test_the_file_computes_what_the_network_computes_and_says_what_it_is",
        '"export"',
    ),
    "demo": ("demo/test_run.py", "test_run_leaves_logs_predictions_and_pictures_and_reports_dice", "run_demo("),
    "preprocess": (
        "bundles/test_workflows.py",
        "test_a_training_begins_at_once_after_the_command_that_preprocesses",
        '"preprocess"',
    ),
    "nnunet export": ("nnunet/test_model_folder.py", "test_the_command_writes_the_folder", '"nnunet", "export"'),
    "nnunet path": ("test_cli.py", "test_folder_and_names_of_nnunets_trainers_need_no_nnunet", '"nnunet", "path"'),
    "nnunet plan": (
        "nnunet/test_trainer.py",
        "test_train_upkern_predict_and_deploy_as_a_user_types_it",
        '"nnunet", "plan"',
    ),
    "nnunet trainers": (
        "test_cli.py",
        "test_folder_and_names_of_nnunets_trainers_need_no_nnunet",
        '"nnunet", "trainers"',
    ),
    "upkern": ("test_cli.py", "test_upkern_writes_weights_that_the_larger_network_loads", '"upkern"'),
}

# What stands for something else on the pages; all other words mean themselves.
PLACEHOLDERS = {
    "IMAGE_OR_FOLDER": "IN",
    "EXPORT": "IN",
    "FOLD": "1",
    "fold_FOLD": "fold_1",
    "FILE": "postprocessing.json",
    "FIRST_COMPUTER": "127.0.0.1",
}
ARGUMENTS = {  # what each command needs beside the options, where a page writes "..." or nothing
    "plan": "DATASET --output task.json",
    "bundle copy": "mednext_s_k3",
    "bundle new": "--variant S --kernel_size 3 --plan task.json --output_dir other",
    "bundle release": "my_bundle released",
    "bundle publish": "my_bundle USER/NAME",
    "bundle zoo": "my_bundle zoo",
    "bundle zip": "my_bundle",
    "predict": "my_bundle IN OUT",
    "preprocess": "my_bundle",
    "train": "my_bundle",
    "evaluate": "my_bundle",
    "cross-validate": "my_bundle",
    "evaluate-folder": "PREDICTIONS LABELS",
    "find-postprocessing": "PREDICTIONS LABELS --output postprocessing.json",
    "apply-postprocessing": "PREDICTIONS OUTPUT --decision postprocessing.json",
    "report": "my_bundle",
    "export": "my_bundle --format onnx",
    "convert": "model.model model.pt",
    "upkern": "k3.pt k5.pt",
    "nnunet plan": "4",
}
OTHER_PROGRAMS = {"pytest", "tensorboard", "mlflow"}
OTHER_PROGRAMS |= {f"nnUNetv2_{name}" for name in ("preprocess", "train", "predict", "predict_from_modelfolder")}
TORCHRUN = {"node_rank"}


class _Checked(ConfigWorkflow):
    """A workflow that ends after the first step of ``initialize``, which checks keys, run id and options."""

    def initialize(self) -> None:
        self.parser.parse(reset=True)
        check_run()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder in which the files exist that the pages name."""
    root = tmp_path_factory.mktemp("pages")
    for name in ("my_bundle", "mednext_s_k3", "mednext_s_k3/my_bundle", "mednext_s_k3/mednext_s_k3"):
        shutil.copytree(bundles.path("mednext_s_k3"), root / name)
    for plan in (root / "task.json", root / "mednext_s_k3/task.json", root / "mednext_s_k3/configs/task.json"):
        plan.write_text("{}")
    return root


@pytest.fixture
def checked(folder, monkeypatch):
    """Check a command as it would be run in a bundle's folder or, for the README, in the folder that holds it."""
    monkeypatch.setattr(commands, "run_command", lambda command, name: 0)
    monkeypatch.setattr(cross_validation, "_folds", lambda *_: [])
    monkeypatch.setattr(cross_validation, "_collect", lambda *_: 0)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):  # set by torchrun
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(cli, "COMMANDS", _without_effect(COMMANDS))
    monkeypatch.setattr(sys, "excepthook", lambda *_: None)  # the check of a run would set another one

    def check(text: str, page: str) -> str:
        monkeypatch.chdir(folder / "mednext_s_k3" if page in ("bundle", "task") else folder)
        return _check(text)

    return check


def _without_effect(group: dict) -> dict:
    """Return the commands with functions that do nothing, but have the same arguments."""

    def replaced(item):
        if isinstance(item, dict):
            return _without_effect(item)
        return item if isinstance(item, Workflow) else functools.wraps(item)(lambda *_, **__: 0)

    return {name: replaced(item) for name, item in group.items()}


def _check(text: str) -> str:
    """Have a command parsed by what would run it; return the name of the command of ``mednext``, if it is one."""
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(text.replace("fold_FOLD", "fold_1"))]
    if "&&" in words:
        cut = words.index("&&")
        return _check(shlex.join(words[:cut])) or _check(shlex.join(words[cut + 1 :]))
    if words[:3] in (["python", "-m", "mednext_monai"], ["python", "-m", "mednext_monai.bundles"]):
        words = ["mednext", *(["bundle", "build"] if words[2].endswith("bundles") else []), *words[3:]]
    if words[0] == "export":  # NAME=$(COMMAND)
        return _check(re.search(r"\$\((.*)\)", text)[1])
    if words[0] == "mednext":
        return _check_ours(words[1:], text)
    if words[:3] == ["python", "-m", "mednext_monai.benchmark"]:
        parse(words[3:])
    elif words[:3] == ["python", "-m", "monai.bundle"]:
        _check_monai(words[3:])
    elif words[0] == "torchrun":
        typed = parse_args(words[1:])
        assert typed.module and typed.training_script == "monai.bundle"
        _check_monai(typed.training_script_args)
    elif words[:2] == ["pip", "install"]:
        for extra in re.findall(r"\[(\w+)\]", text):
            assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(), text
    elif words[:2] != ["python", "app.py"]:  # a block of the bundle's page, run by tests/bundles/test_deploy.py
        assert words[0] in OTHER_PROGRAMS, f"{text}: nothing checks this command"
    return ""


def _name(words: list[str]) -> str:
    return " ".join(words[: 2 if isinstance(COMMANDS.get(words[0]), dict) else 1])


def _check_ours(words: list[str], text: str) -> str:
    name = _name(words)
    given = words[len(name.split()) :]
    if not given or given[0] == "...":
        given = [*ARGUMENTS.get(name, "").split(), *given[1:]]
    assert main([*name.split(), *given]) == 0, text
    return name


def _check_monai(words: list[str]) -> None:
    command, *words = words
    if words[-1] == "...":
        words[-1:] = ["--config_file", "configs/inference.json"]
    positional = [] if words[0].startswith("--") else [words.pop(0)]
    options = {name.removeprefix("--"): DefaultParseValue(value) for name, value in zip(words[::2], words[1::2])}
    assert len(words) % 2 == 0 and all(name.startswith("--") for name in words[::2])
    if command == "run":
        files = options.pop("config_file")
        tracking = options.pop("tracking", None)
        _Checked(
            files, logging_file=False, run_id=(positional or ["run"])[0], tracking=tracking, **options
        ).initialize()
        return
    function = inspect.signature(getattr(monai.bundle, command))
    function.bind(*positional, **options)
    names = set(function.parameters)
    if command == "push_to_hf_hub":  # hands the others to huggingface_hub
        names |= {"allow_patterns", "ignore_patterns"}
    assert set(options) <= names, command
    assert all(Path(options[key]).is_file() for key in ("config_file", "meta_file") if key in options)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_can_be_typed(checked, page):
    found = read_page(page)
    for text in [*found.commands, *found.spans]:
        if not text.endswith(" --help"):
            checked(text, page)
        else:
            assert main(text.split()[1:]) == 0


@pytest.mark.parametrize("page", USERS)
def test_every_option_that_is_named_is_one(checked, page, capsys):
    for text in read_page(page).options:
        names = [word.removeprefix("--") for word in text.split() if word.startswith("--")]
        if page == "benchmark":
            parse([word for word in text.split() if word != "--help"])
        elif any(name in ("config_file", "bundle_root", *TORCHRUN) for name in names):
            continue
        elif len(text.split()) == len(names):  # named, without a value
            own = {name for item in COMMANDS.values() if isinstance(item, Workflow) for name, _ in item.own}
            assert set(names) <= {*OPTIONS, *own, *commands.OF_MONAI, "traceback", "gpus", "check"}, text
        else:
            accepted = [name for name in ARGUMENTS if _is_accepted(checked, f"mednext {name} ... {text}", page)]
            assert accepted, f"{text}: no command takes this. {capsys.readouterr().err}"


def _is_accepted(checked, text: str, page: str) -> bool:
    try:
        checked(text, page)
    except AssertionError:
        return False
    return True


def test_a_command_that_does_not_exist_would_be_found(checked):
    for text in (
        "mednext trian .",
        "mednext train . --epoch 3",
        "mednext report . --title x",
        "mednext evaluate . --format pdf",
        "python -m monai.bundle run training --config_file configs/trains.json",
        "python -m monai.bundle run training --config_file configs/train.json --epoch 3",
        "python -m monai.bundle run predicting --config_file configs/inference.json",
        "python -m monai.bundle ckpt_export network_def --filename x",
        'pip install ".[everything]"',
        "nnUNet_train 3d_fullres",
    ):
        with pytest.raises((AssertionError, ValueError, OSError, TypeError)):
            checked(text, "bundle")


def test_every_command_on_a_page_is_run_by_a_test(checked):
    named = set()
    for page in USERS:
        found = read_page(page)
        named |= {checked(text, page) for text in [*found.commands, *found.spans] if not text.endswith("--help")}
    named.discard("")
    chained = {_name(command.split()[1:]) for _, command, _ in CHAIN if command.startswith("mednext ")}
    assert named == {*chained, *RUN_ELSEWHERE}
    for file, test, call in RUN_ELSEWHERE.values():
        body = (ROOT / "tests" / file).read_text().split(f"def {test}(", 1)[1].split("\ndef ", 1)[0]
        assert call in body, test


@pytest.mark.slow
def test_the_commands_of_the_pages_in_their_order(tmp_path, monkeypatch, capfd):
    make_boxes(tmp_path / "data")
    bundle = tmp_path / "my_bundle"
    for page, beginning, added in CHAIN:
        found = read_page(page)
        typed = next(text for text in [*found.commands, *found.spans] if text.startswith(beginning))
        names = {
            "PREDICTIONS": str(bundle / "eval/cross_validation/predictions"),
            "LABELS": f"{tmp_path}/data/labelsTr",
        }
        names |= {"DATASET": "data", "IMAGE_OR_FOLDER": "data/imagesTs", "OUTPUT": "out"}
        words = [names.get(word, word) for word in shlex.split(typed)] + added.split()
        monkeypatch.chdir(tmp_path if page == "README" else bundle)
        if words[0] == "mednext":
            assert main(words[1:]) == 0, f"{typed}\n{capfd.readouterr().err}"
        else:
            subprocess.run([sys.executable, *words[1:]], check=True)
        if beginning.startswith("mednext bundle new"):
            _narrow(bundle)
    assert not [name for name in WRITTEN if not (tmp_path / name).exists()]
    (block,) = [code for code in read_page("task").python if "monai.bundle.load" in code]
    (tmp_path / "block.py").write_text(block.replace("FOLDER_OF_THIS_FOLDER", str(tmp_path)))
    loaded = runpy.run_path(str(tmp_path / "block.py"))["net"].eval()
    exported = torch.jit.load(bundle / "models/model.ts").eval()
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(exported(image), loaded(image), rtol=1e-4, atol=1e-4)


def _narrow(bundle: Path) -> None:
    """Give the network of a bundle fewer channels, for speed."""
    for file in (bundle / "configs/train.json", bundle / "configs/inference.json"):
        content = json.loads(file.read_text())
        content["network_def"]["base_channels"] = 4
        file.write_text(json.dumps(content))


def test_every_command_of_the_authors_package_has_its_equivalent():
    """Those in the ``setup.py`` of MIC-DKFZ/MedNeXt; four of them, about weights that do not exist, share a row."""
    page = (ROOT / "configs" / "bundle_readme.md").read_text(encoding="utf-8")
    table = page.split("## Coming from the authors' code", 1)[1]
    for name in (
        *("convert_decathlon_task", "plan_and_preprocess", "train", "train_DP", "train_DDP", "predict", "ensemble"),
        *("find_best_configuration", "determine_postprocessing", "evaluate_folder", "region_based_evaluation"),
        *("export_model_to_zip", "install_pretrained_model_from_zip", "change_trainer_class", "plot_task_pngs"),
        "download_pretrained_model",
    ):
        assert re.search(rf"^\| .*`mednextv1_{name}\b[^|]*\| [^|]*\w", table, re.MULTILINE), name


def test_blocks_of_data_are_valid():
    blocks = [block for page in USERS for block in read_page(page).data]
    assert len(blocks) == 1 and all(json.loads(f"{{{block}}}") for block in blocks)


def test_python_blocks_run(tmp_path, monkeypatch):
    """Those that load a bundle, on one of the same name with weights of three classes and a narrower network."""
    pages = [page for page in USERS if page != "nnunet" or find_spec("nnunetv2")]  # which its block needs
    blocks = [(page, block) for page in pages for block in read_page(page).python if "monai.deploy" not in block]
    assert len(blocks) >= 4  # tests/bundles/test_deploy.py runs the one left out
    trained = make_trained("mednext_s_k3", tmp_path, base_channels=4)
    network = create_mednext("S", 3, out_channels=3, deep_supervision=True, base_channels=4)
    torch.save(network.state_dict(), trained / "models/model.pt")
    task = shutil.copytree(trained, trained.parent / "my_bundle")
    for config in (task / "configs/train.json", task / "configs/inference.json"):
        config.write_text(config.read_text().replace('"out_channels": null', '"out_channels": 3'))
    save(trained.parent / "scan.nii.gz", make_case(0)[0][..., 0])
    monkeypatch.chdir(trained.parent)
    for number, (page, block) in enumerate(blocks):
        file = tmp_path / f"block_{number}.py"
        file.write_text(block.replace("FOLDER_OF_THIS_FOLDER", str(trained.parent)))
        found = runpy.run_path(str(file))
        network = found.get("net") or found.get("network")
        if network is not None:
            with torch.inference_mode():
                assert network.eval()(torch.zeros(1, 1, 32, 32, 32)).shape == (1, 3, 32, 32, 32), page
    assert (trained.parent / "segmentation.nii.gz").is_file()


@pytest.mark.parametrize("page", USERS)
def test_dotted_names_exist(page):
    for name in read_page(page).names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute) or importlib.import_module(name), name
