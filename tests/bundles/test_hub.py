"""Publishing on the Hugging Face Hub: what is sent, what the card says, and that it loads back."""

from __future__ import annotations

import json
import shutil

import monai.bundle
import pytest
import torch
import yaml
from helpers.release import make_released, make_trained_and_evaluated

from mednext_monai import bundles
from mednext_monai.bundles.hub import model_card
from mednext_monai.cli import main
from mednext_monai.weights import read_state_dict

FILES = {
    *(".gitignore", "LICENSE", "README.md", "models/model.pt", "models/model.json"),
    "models/labels.csv",
    *("docs/README.md", "docs/learning_curve.svg", "docs/data_license.txt"),
    *(f"configs/{name}.json" for name in ("train", "preprocess", "evaluate", "inference", "metadata")),
    *("configs/multi_gpu_train.json", "configs/multi_gpu_inference.json", "configs/inference_trt.json"),
    "configs/logging.conf",
}


def test_a_dry_run_lists_exactly_what_would_be_sent_and_writes_the_card(tmp_path, capsys):
    folder = make_released(tmp_path)
    assert main(["bundle", "publish", str(folder), "somebody/boxes", "--dry_run"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert "dataset_dir" not in printed.err
    assert {line.split()[1] for line in lines[:-1]} == FILES
    sizes = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in lines[:-1]}
    assert all((folder / name).stat().st_size == size for name, size in sizes.items())
    assert lines[-1].startswith(f"would send {len(FILES)} files, ") and lines[-1].endswith("to somebody/boxes")


def test_the_folder_of_the_data_set_is_named_if_others_would_see_it(tmp_path, capsys):
    folder = bundles.copy("mednext_s_k3", tmp_path)
    config = folder / "configs" / "train.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dataset_dir": "/data/clinic"}))
    assert main(["bundle", "publish", str(folder), "somebody/boxes", "--dry_run"]) == 0
    assert "configs/train.json names the folder of the data set, /data/clinic" in capsys.readouterr().err
    assert main(["bundle", "zoo", str(folder), str(tmp_path / "zoo")]) == 0
    assert "configs/train.json names the folder of the data set, /data/clinic" in capsys.readouterr().err


def test_results_states_and_case_ids_stay_here(tmp_path, capsys):
    folder = make_trained_and_evaluated(tmp_path)
    for name in ("cache/v1/a.npy", "models/pretrained.pt", "models/nonfinite.pt", "configs/splits.json", "task.html"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("private")
    sent = bundles.publish(folder, "somebody/boxes", dry_run=True)
    assert {name for name in sent if name.startswith("models/")} == {
        "models/model.pt",
        "models/model.json",
        "models/labels.csv",
    }
    assert not any(name.startswith(("cache", "eval")) or "task" in name or "splits" in name for name in sent)


def test_the_card_states_library_license_and_results_before_the_page(tmp_path):
    folder = make_released(tmp_path)
    text = model_card(folder)
    _, head, page = text.split("---\n", 2)
    data = yaml.safe_load(head)
    assert data["library_name"] == "monai" and data["license"] == "apache-2.0" and "mednext" in data["tags"]
    (result,) = data["model-index"][0]["results"]
    assert {metric["name"]: metric["value"] for metric in result["metrics"]} == {
        **{"Dice, outer": 0.75, "Dice, inner": 0.25},
        "mean Dice": 0.5,
    }
    assert "](docs/learning_curve.svg)" in page
    assert page.replace("docs/learning_curve", "learning_curve") == (folder / "docs" / "README.md").read_text()


def test_a_bundle_without_results_has_a_card_too():
    data = yaml.safe_load(model_card(bundles.path("mednext_l_k5")).split("---\n")[1])
    assert "model-index" not in data and data["pipeline_tag"] == "image-segmentation"


def test_a_snapshot_of_what_is_sent_loads_with_all_weights(tmp_path, monkeypatch):
    folder, snapshot = make_released(tmp_path), tmp_path / "hub" / "boxes"
    for name in bundles.publish(folder, "somebody/boxes", dry_run=True):
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, snapshot / name)
    monkeypatch.chdir(tmp_path)
    network = monai.bundle.load("boxes", bundle_dir="hub", device="cpu", net_override={"base_channels": 4})
    stored = read_state_dict(snapshot / "models" / "model.pt")
    assert all(torch.equal(tensor, stored[key].float()) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("repo", ["boxes", "a/b/c", "/boxes", "a/", ""])
def test_a_wrong_name_of_the_repository_is_refused_before_anything_is_written(tmp_path, repo):
    folder = bundles.copy("mednext_s_k5", tmp_path)
    with pytest.raises(ValueError, match="repo must be OWNER/NAME, got"):
        bundles.publish(folder, repo)
    assert not (folder / "README.md").exists()


def test_what_is_no_bundle_is_refused(tmp_path, capsys):
    assert main(["bundle", "publish", str(tmp_path), "a/b", "--dry_run"]) == 1
    assert "is not a bundle, it has no configs/metadata.json" in capsys.readouterr().err
    assert json.dumps(list(tmp_path.iterdir())) == "[]"


def test_a_commit_holds_these_files_and_is_tagged(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    folder, calls = make_released(tmp_path), []

    class Api:
        def __getattr__(self, name):
            return lambda **arguments: calls.append((name, arguments)) or type("Refs", (), {"tags": []})()

    monkeypatch.setattr(hub, "HfApi", Api)
    bundles.publish(folder, "somebody/boxes")
    upload = dict(calls)["upload_folder"]
    assert set(upload["allow_patterns"]) == FILES and upload["folder_path"] == str(folder)
    tags = [arguments["tag"] for name, arguments in calls if name == "create_tag"]
    assert tags == [json.loads((folder / "configs/metadata.json").read_text())["version"], "latest_version"]
