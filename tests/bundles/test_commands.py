"""``mednext preprocess``, ``train``, ``evaluate`` and ``predict``: what is typed, what is run, what is shown."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from mednext_monai import bundles
from mednext_monai.bundles import commands
from mednext_monai.bundles.commands import WORKFLOWS, bundle_command
from mednext_monai.bundles.library import config_sources, names, path
from mednext_monai.bundles.options import OPTIONS, describe_options
from mednext_monai.cli import main

SOURCES = ("common", "train", "preprocess", "evaluate", "inference")


@pytest.fixture
def started(monkeypatch) -> list[list[str]]:
    """The commands that were started; none is."""
    calls: list[list[str]] = []
    monkeypatch.setattr(commands, "run_command", lambda command, name: calls.append(command) or 0)
    return calls


@pytest.fixture
def bundle(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return bundles.copy("mednext_s_k3", ".")


def read_by_monai(command: list[str]) -> dict:
    """The options of a command as a config has them once fire and MONAI have read them."""
    arguments = command[command.index("run") + 2 :]
    typed = {name.removeprefix("--"): DefaultParseValue(value) for name, value in zip(arguments[::2], arguments[1::2])}
    files = typed.pop("config_file")
    parser = ConfigParser(typed)
    return {"config_file": files, **{name: parser.get_parsed_content(name) for name in typed}}


def test_every_option_that_configs_comments_is_checked_and_every_checked_one_is_commented():
    described = {item.name for item in describe_options(*SOURCES)}
    assert described | {"variant"} == set(OPTIONS)
    for source in SOURCES:
        text = (config_sources() / f"{source}.yaml").read_text()
        head = text.split("_target_")[0]
        commented = re.findall(r"^(\w+): [^ #].*?  # ", head, flags=re.MULTILINE)
        assert set(commented) <= set(OPTIONS), source


@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_help_lists_every_option_with_its_default_and_the_comment_of_the_configs(capsys, name):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    described = [
        item for item in describe_options(*WORKFLOWS[name].sources) if item.name in (WORKFLOWS[name].options or OPTIONS)
    ]
    positional = {option for _, option in WORKFLOWS[name].arguments}
    for item in described:
        if item.name not in {"bundle_root", "variant", "kernel_size", *WORKFLOWS[name].hidden}:
            assert item.comment.split(";")[0][:60] in re.sub(r"\s+", " ", text), item
            default = "" if item.name in {"device", "num_workers", "progress_bar"} else " (default: "  # expressions
            shown = re.search(rf"\n  --{item.name}(?: \(default: |\n)", text)
            assert (shown is None) == (item.name in positional), item
            assert shown is None or shown[0].strip().endswith(default.strip()), item
    assert max(map(len, text.splitlines())) <= 110


def test_help_shows_the_defaults_of_the_bundle_that_is_named(capsys, bundle):
    file = bundle / "configs" / "train.json"
    file.write_text(file.read_text().replace('"epochs": 1000', '"epochs": 77'))
    assert main(["train", str(bundle), "--help"]) == 0
    assert "--epochs (default: 77)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--epochs 3 --fold all", {"epochs": 3, "fold": "all"}),
        ("--patch_size 64 64 48", {"patch_size": [64, 64, 48]}),
        ("--patch_size 64,64,48", {"patch_size": [64, 64, 48]}),
        ("--patch-size=[64,64,48]", {"patch_size": [64, 64, 48]}),
        ("--patch_size 64", {"patch_size": 64}),
        ("--normalization CT zscore", {"normalization": ["CT", "zscore"]}),
        ("--normalization CT", {"normalization": ["CT"]}),
        ("--resume", {"resume": True}),
        ("--resume --amp no", {"resume": True, "amp": False}),
        ("--learning_rate 1e-4 --seed null", {"learning_rate": 1e-4, "seed": None}),
        ("--device cpu --dataset_dir 2024", {"device": "cpu", "dataset_dir": "2024"}),
        ("--dataset_dir 'my #1 @home $x'", {"dataset_dir": "my #1 @home $x"}),
        ("--dataset_dir '$x' --cache_dir @y", {"dataset_dir": "$x", "cache_dir": "@y"}),
        ("--train::trainer::amp false", {"train::trainer::amp": False}),
        ("--compile true --gradient_checkpointing expansion", {"compile": True, "gradient_checkpointing": "expansion"}),
        ("--compile --gradient-checkpointing=block", {"compile": True, "gradient_checkpointing": "block"}),
        ("--compile no --gradient_checkpointing off", {"compile": False, "gradient_checkpointing": False}),
        ("--gradient_checkpointing null", {"gradient_checkpointing": None}),
    ],
)
def test_what_is_typed_is_what_monai_reads(started, bundle, typed, expected):
    assert main(["train", str(bundle), *shlex.split(typed)]) == 0
    found = read_by_monai(started[0])
    assert found == {"config_file": f"{bundle}/configs/train.json", "bundle_root": str(bundle), **expected}


def test_preprocessing_needs_a_bundle_or_the_folder_to_fill(started, bundle, capsys, tmp_path):
    plan = tmp_path / "task.json"
    plan.write_text("{}")
    assert main(["preprocess", "--plan", str(plan), "--part", "1", "--parts", "4"]) == 2
    assert "expected BUNDLE" in (error := capsys.readouterr().err) and "Without one, --cache_dir is needed." in error
    assert started == []
    options = ["--plan", str(plan), "--part", "1", "--parts", "4", "--processes", "3"]
    assert main(["preprocess", str(bundle), *options]) == 0
    assert main(["preprocess", *options, "--cache_dir", "store"]) == 0
    typed = {"part": 1, "parts": 4, "processes": 3}
    for command, folder, added in zip(started, (bundle, path(names()[0])), ({}, {"cache_dir": "store"})):
        assert command[command.index("run") + 1] == "preprocessing"
        files = [f"{folder}/configs/train.json", f"{folder}/configs/preprocess.json", str(plan)]
        assert read_by_monai(command) == {"config_file": files, "bundle_root": str(folder), **typed, **added}


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_bundle_whose_config_is_damaged_is_named(started, bundle, capsys, content):
    (bundle / "configs" / "train.json").write_text(content)
    assert main(["train", str(bundle)]) == 1 and started == []
    assert "train.json" in capsys.readouterr().err


def test_the_command_is_shown_before_it_is_started(started, bundle, capsys, tmp_path):
    plan = tmp_path / "my plan.json"
    plan.write_text("{}")
    assert main(["evaluate", str(bundle), "--plan", str(plan), "--fold", "1", "--gpus", "2"]) == 0
    shown = shlex.split(capsys.readouterr().out.splitlines()[0].removeprefix("$ "))
    assert shown[0] == "torchrun" and shown[1:] == started[0][3:]
    configs = [f"{bundle}/configs/{name}.json" for name in ("train", "multi_gpu_train", "evaluate")]
    assert read_by_monai(started[0])["config_file"] == [*configs, str(plan)]


def test_a_plan_that_holds_code_is_refused(started, bundle, tmp_path, capsys):
    (tmp_path / "evil.json").write_text("{\"spacing\": \"$open('pwned', 'w')\"}")
    assert main(["train", str(bundle), "--plan", str(tmp_path / "evil.json")]) == 1
    assert "evil.json: spacing is" in capsys.readouterr().err and not started


def test_predict_takes_input_and_output_by_their_place(started, bundle):
    assert main(["predict", str(bundle), "scans", "2024", "--mirror", "false"]) == 0
    found = read_by_monai(started[0])
    assert (found["input"], found["output_dir"], found["mirror"]) == ("scans", "2024", False)


def test_predict_by_several_processes_has_an_overlay_of_its_own(started, bundle):
    assert main(["predict", str(bundle), "scans", "out", "--gpus", "2", "--part", "1", "--parts", "3"]) == 0
    assert started[0][1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    found = read_by_monai(started[0])
    assert found["config_file"] == [f"{bundle}/configs/{name}.json" for name in ("inference", "multi_gpu_inference")]
    assert (found["part"], found["parts"]) == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["train"], 2, "expected BUNDLE before the options"),
        (["train", "nowhere"], 1, "BUNDLE: nowhere is not a bundle, it has no configs/train.json."),
        (["train", "mednext_b_k5"], 1, "copy it first: mednext bundle copy mednext_b_k5."),
        (["train", "mednext_s_k3", "more"], 2, "expected BUNDLE, got 2"),
        (["train", "mednext_s_k3", "--epoch", "3"], 2, "there is no option --epoch. Did you mean epochs?"),
        (["train", "mednext_s_k3", "--gpu", "3"], 2, "there is no option --gpu. Did you mean gpus?"),
        (["train", "mednext_s_k3", "--variant", "B"], 2, "--variant is the bundle's own"),
        (["train", "mednext_s_k3", "--epochs"], 2, "--epochs needs a value."),
        (["train", "mednext_s_k3", "--epochs", "0"], 1, "epochs must be an integer of at least 1, got 0."),
        (["train", "mednext_s_k3", "--fold", "one"], 1, "fold must be 0, 1, 2, ... or 'all', or null, got 'one'."),
        (["train", "mednext_s_k3", "--plan", "x.json"], 1, "--plan: there is no file 'x.json'."),
        (["train", "mednext_s_k3", "--gpus", "0"], 1, "--gpus must be an integer of at least 1, got 0."),
        (["train", "mednext_s_k3", "--dataset_dir", "a", "b"], 2, "--dataset_dir takes one value, got a b"),
        (["train", "mednext_s_k3", "--compile", "inductor"], 1, "compile must be true or false, got 'inductor'."),
        (
            ["train", "mednext_s_k3", "--gradient_checkpointing", "x"],
            1,
            "gradient_checkpointing must be true, false, 'b",
        ),
        (["predict", "mednext_s_k3"], 2, "expected BUNDLE INPUT OUTPUT, got 1: INPUT, OUTPUT."),
        (["preprocess", "mednext_s_k3", "--gpus", "2"], 2, "there is no option --gpus"),
        (["predict", "mednext_s_k3", "a", "b", "--overlap", "1"], 1, "overlap must be a number of at least 0"),
    ],
)
def test_a_mistake_is_said_before_anything_is_started(started, bundle, capsys, arguments, status, message):
    assert main(arguments) == status
    assert message in capsys.readouterr().err and not started


def test_of_a_run_that_fails_only_the_sentence_is_shown(bundle, capfd):
    untrained = str(bundles.copy("mednext_m_k3", "."))
    assert main(["predict", untrained, "scans", "out"]) == 1
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert re.match(r"mednext: error: \S+/model.pt: this bundle has no weights yet", error.splitlines()[-1])
    assert main(["predict", untrained, "scans", "out", "--traceback"]) == 1
    error = capfd.readouterr().err
    assert "Traceback" in error and error.splitlines()[-1].startswith("mednext: error: ")


def test_a_command_has_the_keys_of_its_overrides_and_one_or_several_configs(tmp_path):
    command = bundle_command(tmp_path, ("train", "evaluate"), "run", **{"a::b": [1.5, "x"]})
    assert command[1:5] == ["-m", "monai.bundle", "run", "run"]
    assert read_by_monai(command) == {
        "config_file": [f"{tmp_path}/configs/train.json", f"{tmp_path}/configs/evaluate.json"],
        "bundle_root": str(tmp_path),
        "a::b": [1.5, "x"],
    }


def test_idle_threads_give_up_their_core_unless_the_user_says_how_they_wait(monkeypatch):
    for name in commands.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "7")
    found = commands.environment({"MORE": "1"})
    assert found["OMP_WAIT_POLICY"] == "PASSIVE" and 0 < int(found["GOMP_SPINCOUNT"]) < 10_000
    assert (found["MALLOC_TRIM_THRESHOLD_"], found["MORE"]) == ("7", "1") and "PATH" in found
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    found = commands.environment({})
    assert found["OMP_WAIT_POLICY"] == "ACTIVE" and "GOMP_SPINCOUNT" not in found


def test_the_command_is_started_with_that_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    code = f"import os; open({str(tmp_path / 'found')!r}, 'w').write(os.environ['GOMP_SPINCOUNT'])"
    assert commands.run_command([sys.executable, "-c", code], "train") == 0
    assert (tmp_path / "found").read_text() == commands.ENVIRONMENT["GOMP_SPINCOUNT"]
