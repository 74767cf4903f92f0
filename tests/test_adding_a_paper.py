"""The example of docs/adding-a-paper.md does what the page says, as a file that is put beside the others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOC = Path(__file__).parents[1] / "docs" / "adding-a-paper.md"
BLOCK = re.compile(r"```(?:python|yaml)\n(.*?)```", re.S)

PROBE = """
import sys
from pathlib import Path
import w2svd_core.objectives as objectives
objectives.__path__.append(sys.argv[1])
from w2svd_core import train
from w2svd_core.config import all_settings
assert all_settings()["spread_matching.weight"].high == 100
assert "torch" not in sys.modules
sys.exit(train.main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_the_example_trains_by_its_recipe(tmp_path: Path) -> None:
    paper, recipe = BLOCK.findall(DOC.read_text(encoding="utf-8"))
    assert len(paper.splitlines()) <= 50
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "spread_matching.py").write_text(paper, encoding="utf-8")
    (tmp_path / "portraits_spread.yaml").write_text(recipe.replace("portraits_long", "portraits"), encoding="utf-8")
    small = ["--train.steps", "2", "--train.batch", "2", "--data.clips", "16", "--evaluate.clips", "0"]
    small += ["--critic.warmup", "1", "--critic.updates", "1", "--train.tracker", "none", "--student.rank", "4"]
    command = [sys.executable, "-c", PROBE, str(folder), str(tmp_path / "portraits_spread.yaml"), *small]
    done = subprocess.run([*command, "--out", str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "spread_matching/loss" in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
