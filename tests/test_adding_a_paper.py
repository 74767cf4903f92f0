"""The example of docs/adding-a-paper.md does what the page says, as a file that is put beside the others."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from w2svd_core.files import read_safetensors

DOC = Path(__file__).parents[1] / "docs" / "adding-a-paper.md"
BLOCK = re.compile(r"```(?:python|yaml)\n(.*?)```", re.S)

BESIDE = """
import sys
import w2svd_core.objectives as objectives
objectives.__path__.append(sys.argv[1])
"""
TRAIN = """
from w2svd_core import train
from w2svd_core.config import all_settings
assert all_settings()["spread_matching.weight"].high == 100
assert "torch" not in sys.modules
sys.exit(train.main(sys.argv[2:]))
"""
TEST = """
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-o", "addopts=", "--rootdir", sys.argv[1], sys.argv[2]]))
"""


def examples(folder: Path) -> tuple[Path, Path, Path]:
    """The page's three files: the folder of the paper's, its recipe, its test."""
    paper, recipe, test = BLOCK.findall(DOC.read_text(encoding="utf-8"))
    assert len(paper.splitlines()) <= 50
    papers = folder / "papers"
    papers.mkdir()
    (papers / "spread_matching.py").write_text(paper, encoding="utf-8")
    (folder / "portraits_spread.yaml").write_text(recipe.replace("portraits_long", "portraits"), encoding="utf-8")
    (folder / "test_spread_matching.py").write_text(test, encoding="utf-8")
    return papers, folder / "portraits_spread.yaml", folder / "test_spread_matching.py"


def ran(code: str, *words: Path | str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BESIDE + code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_examples_test_passes(tmp_path: Path) -> None:
    papers, _, test = examples(tmp_path)
    done = ran(TEST, papers, test)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout


@pytest.mark.slow
def test_the_example_trains_by_its_recipe(tmp_path: Path) -> None:
    papers, recipe, _ = examples(tmp_path)
    small = ["--train.steps", "2", "--train.batch", "2", "--data.clips", "16", "--evaluate.clips", "0"]
    small += ["--critic.warmup", "1", "--critic.updates", "1", "--train.tracker", "none", "--student.rank", "4"]
    students = []
    for weight in ("0.1", "0"):
        run = tmp_path / f"run {weight}"
        done = ran(TRAIN, papers, recipe, *small, "--spread_matching.weight", weight, "--out", run)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        losses = [line["spread_matching/loss"] for line in lines if "spread_matching/loss" in line]
        assert len(losses) == 2 * (weight != "0") and all(0 < loss < 100 for loss in losses)
        students.append(read_safetensors(run / "student" / "student_diffusers.safetensors")[0])
    moved, plain = students
    assert moved.keys() == plain.keys() and any(not torch.equal(moved[name], plain[name]) for name in plain)
