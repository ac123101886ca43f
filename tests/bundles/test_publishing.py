"""What leaves the computer when a bundle is published: no images, no case ids, no states of a training."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers.datasets import make_decathlon

from mednext_monai import bundles
from mednext_monai.planning import plan

PRIVATE = (
    "cache/v2-0123/case_00/image.npy",
    "eval/case_00.nii.gz",
    "eval/metrics.csv",
    "eval/mlruns.db",
    "logs/train.log",
    "mlruns/0/meta.yaml",
    "dataset/imagesTr/case_00.nii.gz",
    "predictions/case_00.nii.gz",
    "task.json",
    "task.html",
    "models/last.pt",
    "models/last.previous.pt",
    "models/fold_1/last.pt",
    "models/nonfinite.pt",
    "models/model.pt.fp16.1x128x128x128.plan",
    "models/pretrained.pt",
    "models/pretrained.json",
    "models/.123.last.pt",
)
PUBLIC = {
    ".gitignore",
    "LICENSE",
    "README.md",
    "configs/evaluate.json",
    "configs/inference.json",
    "configs/inference_trt.json",
    "configs/logging.conf",
    "configs/metadata.json",
    "configs/multi_gpu_inference.json",
    "configs/multi_gpu_train.json",
    "configs/preprocess.json",
    "configs/train.json",
    "docs/README.md",
    "models/fold_1/model.pt",
    "models/labels.csv",
    "models/model.pt",
    "models/model_best.pt",
}


@pytest.fixture
def used_bundle(tmp_path) -> Path:
    """The bundle of a task after training, evaluation and inference, with the page that MONAI copies."""
    data = make_decathlon(tmp_path / "data", cases=5)
    plan(data, tmp_path / "task.json", processes=0, progress=False, report=False)
    folder = bundles.new_bundle("S", 3, tmp_path / "task.json", tmp_path / "mine")
    for name in (*PRIVATE, "models/fold_1/model.pt", "models/model_best.pt", "README.md"):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return folder


def git_keeps(folder: Path, names: list[str]) -> list[str]:
    """Return the names that the ``.gitignore`` of a folder does not exclude."""
    try:
        subprocess.run(["git", "init", "-q", folder], check=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    command = ["git", "-C", folder, "-c", "core.excludesFile=", "check-ignore", "--no-index", "--stdin"]
    ignored = subprocess.run(command, input="\n".join(names), capture_output=True, text=True).stdout.splitlines()
    return [name for name in names if name not in ignored]


def files_of(folder: Path) -> list[str]:
    return [str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file() and ".git" not in f.parts]


def test_the_ignore_file_keeps_what_is_private(used_bundle):
    kept = git_keeps(used_bundle, files_of(used_bundle))
    assert set(kept) == PUBLIC
    case_id = re.compile(r"case_0\d\b")
    assert not [name for name in kept if name != "models/model.pt" and case_id.search((used_bundle / name).read_text())]


def test_every_bundle_has_the_ignore_file_and_copies_and_zips_keep_it(tmp_path):
    for name in bundles.names():
        assert (bundles.path(name) / ".gitignore").is_file()
    folder = bundles.copy("mednext_s_k3", tmp_path)
    assert (folder / ".gitignore").read_bytes() == (bundles.path("mednext_s_k3") / ".gitignore").read_bytes()
    shown = set(git_keeps(folder, files_of(folder)))
    assert shown == {name for name in files_of(folder)}  # nothing of the bundle itself is lost


@contextmanager
def hub(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve what ``upload_folder`` asks a hub; yield the address and the list that receives the committed files."""
    committed: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if "/preupload/" in self.path:  # the hub decides, by the .gitignore that it is sent
                asked = json.loads(body)
                names = [file["path"] for file in asked["files"]]
                ignoring = folder.with_name("hub")
                ignoring.mkdir(exist_ok=True)
                (ignoring / ".gitignore").write_text(asked.get("gitIgnore", ""))
                kept = git_keeps(ignoring, names)
                modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": n not in kept} for n in names]
                self.answer({"files": modes})
            elif "/commit/" not in self.path:  # the check of the page's metadata
                self.answer({"errors": [], "warnings": []})
            else:
                lines = [json.loads(line) for line in body.splitlines()]
                committed.extend(line["value"]["path"] for line in lines if line["key"] == "file")
                address = f"http://{self.headers['Host']}"
                self.answer({"commitUrl": f"{address}/a/b/commit/1", "commitOid": "1", "success": True})

        def do_GET(self) -> None:
            self.answer({"id": "a/b", "sha": "0" * 40, "siblings": []})

        def answer(self, content: dict) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", committed
    finally:
        server.shutdown()


def test_huggingface_hub_obeys_the_ignore_file(used_bundle):
    api = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub, which MONAI's push_to_hf_hub uses")
    with hub(used_bundle) as (address, committed):
        api.HfApi(endpoint=address, token="hf_test").upload_folder(repo_id="a/b", folder_path=used_bundle)
    assert set(committed) == PUBLIC


def published_patterns() -> dict[str, list[str]]:
    """The patterns in the command of the bundles' page."""
    page = (bundles.path("mednext_s_k3") / "docs" / "README.md").read_text()
    (command,) = re.findall(r"^python -m monai.bundle push_to_hf_hub .*$", page, re.MULTILINE)
    found = dict(re.findall(r'--(allow_patterns|ignore_patterns) "(\[.*?\])"', command))
    return {name: json.loads(text.replace("'", '"')) for name, text in found.items()}


def test_the_command_of_the_page_does_not_even_name_what_is_private(used_bundle):
    """The ignore file is applied by the hub, which is sent the names and the first bytes of all files before."""
    utils = pytest.importorskip("huggingface_hub.utils", reason="needs huggingface_hub")
    patterns = published_patterns()
    assert set(utils.filter_repo_objects(files_of(used_bundle), **patterns)) == PUBLIC
