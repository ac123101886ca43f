"""An evaluation in parts ends with the tables of an undivided one, and never holds rows of another evaluation."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import save
from helpers.processes import spawn
from helpers.segmentations import GRID, make_component_set, write_pairs

from mednext_monai.cli import main
from mednext_monai.evaluation import (
    Labels,
    check_tables,
    evaluate_folder,
    evaluation_part,
    finish_evaluation,
    folder_part,
    folder_settings,
)

CASES = 7


@pytest.fixture
def folders(tmp_path) -> list[str]:
    """Cases with other classes each; one prediction is damaged, one label has no prediction, one case is empty."""
    pairs = [pair for seed in (1, 2) for pair in make_component_set(seed)[1]][:CASES]
    pairs[4] = (np.zeros_like(pairs[4][0]), np.zeros_like(pairs[4][0]))
    found = write_pairs(tmp_path, pairs)
    (tmp_path / "pred/case_2.nii.gz").write_bytes(b"damaged")
    (tmp_path / "pred/case_5.nii.gz").unlink()
    return found


def run(folders: list[str], output: Path, *options: object) -> int:
    return main(["evaluate-folder", *folders, "--output_dir", str(output), "--processes", "1", *map(str, options)])


def tables(folder: Path) -> dict[str, object]:
    summary = folder / "summary.json"
    found: dict[str, object] = {name: (folder / name).read_bytes() for name in ("metrics.csv", "metrics.json")}
    if summary.is_file():  # all but the time
        content = json.loads(summary.read_text(), parse_constant=lambda _: None)
        found["summary.json"] = content["results"]
    return found


@pytest.mark.parametrize("options", [(), ("--format", "nnunet"), ("--tolerance", "2", "--tolerance_in_voxels", "true")])
def test_parts_in_any_order_end_with_the_tables_of_an_undivided_evaluation(folders, tmp_path, capsys, options):
    assert run(folders, tmp_path / "whole", *options) == 1  # two cases cannot be evaluated
    shown = capsys.readouterr()
    for order in itertools.permutations(range(3)):
        output = tmp_path / "parts"
        for done, part in enumerate(order, 1):
            assert not (output / "metrics.csv").exists()
            run(folders, output, "--part", part, "--parts", 3, *options)
            out = capsys.readouterr()
            if done < 3:
                left = ", ".join(map(str, sorted(order[done:])))
                kind = "parts" if done == 1 else "part"
                last = f"part {part} of 3 is done; still missing: {kind} {left}"
                assert out.out.splitlines()[-1] == last
        assert tables(output) == tables(tmp_path / "whole") and len(tables(output)) == 2 + ("nnunet" in options)
        assert out.out.split("\n\nwrote")[0] == shown.out.split("\n\nwrote")[0]
        assert out.err == shown.err and "case_2.nii.gz: cannot be read" in out.err  # of whichever part it was
        shutil.rmtree(output)


def test_named_classes_regions_and_the_ignored_label(folders, tmp_path):
    labels = tmp_path / "labels.json"
    content = {"labels": ["background", "a", "b", "c"], "regions": {"any": [1, 2, 3]}, "ignore_label": 9}
    labels.write_text(json.dumps(content))
    run(folders, tmp_path / "whole", "--labels", labels)
    for part in (1, 0):
        run(folders, tmp_path / "parts", "--labels", labels, "--part", part, "--parts", 2)
    assert tables(tmp_path / "parts") == tables(tmp_path / "whole")


def test_two_that_end_at_once_write_the_same_tables(folders, tmp_path):
    run(folders, tmp_path / "whole")
    settings = folder_settings(*folders, 1.0, False, False)
    shares = [folder_part(i, 2, *folders, Labels(), settings) for i in range(2)]
    found = [evaluate_folder(*folders, processes=1, part=share) for share in shares]
    start = threading.Barrier(2)

    def finish(i: int):
        start.wait()
        return finish_evaluation(found[i], tmp_path / "parts", part=shares[i])

    with ThreadPoolExecutor(2) as pool:
        assert any(list(pool.map(finish, range(2))))
    assert tables(tmp_path / "parts") == tables(tmp_path / "whole")
    assert not [file for file in (tmp_path / "parts").iterdir() if file.name.startswith(".")]


@pytest.mark.slow
def test_two_at_once_in_processes(folders, tmp_path):
    run(folders, tmp_path / "whole")
    spawn(evaluate_share, folders, str(tmp_path / "parts"), processes=2)
    assert tables(tmp_path / "parts") == tables(tmp_path / "whole")


def evaluate_share(rank: int, folders: list[str], output: str) -> None:
    run(folders, Path(output), "--part", rank, "--parts", 2)


def test_a_part_can_be_repeated(folders, tmp_path, capsys):
    output = tmp_path / "parts"
    for part in range(3):
        run(folders, output, "--part", part, "--parts", 3)
    before = tables(output)
    (output / "metrics.csv").unlink()
    assert run(folders, output, "--part", 1, "--parts", 3) == 1
    assert tables(output) == before
    (output / "metrics.part_0.json").write_text('{"part": 0, "eval')  # cut, by whatever is not this package
    capsys.readouterr()
    assert run(folders, output, "--part", 1, "--parts", 3) == 1
    assert "metrics.part_0.json belongs to another evaluation (not written by this" in capsys.readouterr().err
    run(folders, output, "--part", 0, "--parts", 3, "--overwrite", "true")
    assert tables(output) == before


def test_parts_of_another_evaluation_are_named_and_never_mixed_in(folders, tmp_path, capsys):
    output = tmp_path / "parts"
    run(folders, output, "--part", 0, "--parts", 2, "--tolerance", 3)
    old = (output / "metrics.part_0.json").read_bytes()
    capsys.readouterr()
    for part in (0, 1):  # also a part whose own file is not there
        assert run(folders, output, "--part", part, "--parts", 2) == 1
        error = capsys.readouterr().err
        assert f"{output}/metrics.part_0.json belongs to another evaluation (other surface_dice_tolerance)" in error
        assert "--overwrite true" in error
    assert (output / "metrics.part_0.json").read_bytes() == old
    run(folders, output, "--part", 1, "--parts", 2, "--overwrite", "true")
    last = capsys.readouterr().out.splitlines()[-1]
    expected = f"still missing: part 0 ({output}/metrics.part_0.json: of another evaluation, not used)"
    assert last.endswith(expected) and not (output / "metrics.csv").exists()
    run(folders, output, "--part", 0, "--parts", 2, "--overwrite", "true")
    run(folders, tmp_path / "whole")
    assert tables(output) == tables(tmp_path / "whole")


@pytest.mark.parametrize("change", ["prediction", "label", "case", "classes", "parts"])
def test_what_makes_it_another_evaluation(folders, tmp_path, capsys, change):
    output, options = tmp_path / "parts", ["--part", 1, "--parts", 2]
    run(folders, output, "--part", 0, "--parts", 2)
    if change in ("prediction", "label"):
        file = Path(folders[change == "label"], "case_0.nii.gz")
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    elif change == "case":
        Path(folders[0], "case_6.nii.gz").unlink()
    elif change == "classes":
        (tmp_path / "labels.json").write_text('{"labels": ["background", "a", "b", "c"]}')
        options += ["--labels", tmp_path / "labels.json"]
    else:
        options = ["--part", 1, "--parts", 3]
    capsys.readouterr()
    assert run(folders, output, *options) == 1
    named = {"classes": "other classes and regions", "parts": "other number of parts"}.get(change, "other cases")
    assert named in capsys.readouterr().err
    assert [file.name for file in output.iterdir()] == ["metrics.part_0.json"]


def test_fewer_parts_replace_more_of_another_evaluation(folders, tmp_path):
    output = tmp_path / "parts"
    for part in range(4):
        run(folders, output, "--part", part, "--parts", 4)
    for part in range(2):
        run(folders, output, "--part", part, "--parts", 2, "--overwrite", "true")
    assert sorted(file.name for file in output.glob("metrics.part*")) == ["metrics.part_0.json", "metrics.part_1.json"]
    assert run(folders, output, "--part", 0, "--parts", 2) == 1 and run(folders, output) == 1  # needs no leave


def test_a_part_without_a_valid_case_does_not_stop_the_others(folders, tmp_path, capsys):
    for part in range(CASES):
        run(folders, tmp_path / "parts", "--part", part, "--parts", CASES)
    run(folders, tmp_path / "whole")
    assert tables(tmp_path / "parts") == tables(tmp_path / "whole")
    for case in range(CASES):
        (Path(folders[0]) / f"case_{case}.nii.gz").write_bytes(b"damaged")
    for part in range(2):
        assert run(folders, tmp_path / "none", "--part", part, "--parts", 2) == 1
    assert "no case could be evaluated:\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--part", 2, "--parts", 2), "part must be from 0 to 1 if parts is 2, got 2."),
        (("--part", 1), "part must be from 0 to 0 if parts is 1, got 1."),
        (("--parts", 0), "parts must be an integer of at least 1, got 0."),
        (("--part", 8, "--parts", 9), f"parts must be at most the number of cases, {CASES}, got 9."),
    ],
)
def test_parts_that_do_not_exist_are_refused(folders, tmp_path, capsys, options, message):
    assert run(folders, tmp_path / "parts", *options) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "parts").exists()


def test_the_content_of_the_checkpoint_counts_not_its_path(tmp_path):
    labels, cases = Labels({"a": 1}), [{"id": "x"}, {"id": "y"}]
    torch.save({"a": torch.zeros(2)}, tmp_path / "one.pt")
    shutil.copy(tmp_path / "one.pt", tmp_path / "two.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "three.pt")

    def part(name: str, **settings: object):
        settings = {"checkpoint": name, "mirror": True, **settings}
        return evaluation_part(0, 2, cases, labels, settings, tmp_path / name)

    assert part("one.pt") == part("two.pt") and part("one.pt").cases == ("x",)
    assert part("one.pt") != part("three.pt") and part("one.pt") != part("one.pt", mirror=False)
    assert evaluation_part(0, 1, cases, labels, {}, tmp_path / "absent.pt").cases == ("x", "y")


def test_another_evaluation_that_wrote_in_the_meantime_is_not_replaced(folders, tmp_path):
    shares = [folder_part(0, 2, *folders, Labels(), {"tolerance": value}) for value in (1, 2)]
    for share in shares:
        check_tables(tmp_path / "parts", {}, part=share)
    found = evaluate_folder(*folders, processes=1, part=shares[0])
    assert all(math.isnan(row.dice) or row.case in shares[0].cases for row in found.scores)
    assert finish_evaluation(found, tmp_path / "parts", part=shares[0]) is None
    with pytest.raises(ValueError, match="metrics.part_0.json belongs to another evaluation"):
        finish_evaluation(found, tmp_path / "parts", part=shares[1])


def test_a_case_id_that_looks_like_code_is_data(tmp_path):
    box = np.zeros((6, 6, 6), np.uint8)
    box[1:4, 1:4, 1:4] = 1
    for name in ("$a", "@b", "c,d"):
        for kind in ("pred", "ref"):
            save(tmp_path / kind / f"{name}.nii.gz", box, GRID)
    folders = [str(tmp_path / "pred"), str(tmp_path / "ref")]
    for part in range(3):
        assert run(folders, tmp_path / "parts", "--part", part, "--parts", 3) == 0
    assert run(folders, tmp_path / "whole") == 0 and tables(tmp_path / "parts") == tables(tmp_path / "whole")
