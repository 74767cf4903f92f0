"""docs/adding-a-model.md names every file of the family that it shows, and the rest of the house names no family."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from kinds import KINDS

from w2svd_core.backbones import FAMILIES

ROOT = Path(__file__).parents[1]
CORE = ROOT / "w2svd_core"
BUNDLED = ROOT / "nodes" / "portraits.py"  # the portraits' own teacher in ComfyUI, which is a Wan
PAGE = (ROOT / "docs" / "adding-a-model.md").read_text(encoding="utf-8")
PLACES = (ROOT, CORE, CORE / "backbones", CORE / "recipes", ROOT / "tests")
OF_A_FAMILY = re.compile(rf"(.*\.)?({'|'.join(name.split('_')[0] for name in FAMILIES)}|unet)\d*(_\w+)?")


def test_every_file_that_is_named_is_there() -> None:
    named = {name for name in re.findall(r"`([\w./-]+\.(?:py|yaml|json|md))", PAGE)}
    assert len(named) > 30
    assert {name for name in named if not any((place / name).is_file() for place in PLACES)} == set()


def test_no_file_of_cosmos_is_left_out() -> None:
    found = [*CORE.rglob("*cosmos*"), *(ROOT / "tests").rglob("*cosmos*.py")]
    files = {path.name for path in found if path.is_file() and path.suffix in (".py", ".yaml", ".json")}
    assert len(files) > 15 and {name for name in files if name not in PAGE} == set()


def known(path: Path) -> list[str]:
    """Families that a file's code knows: modules of theirs that it imports, names that it asks for or looks up."""
    found = []
    for one in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(one, ast.ImportFrom) and "backbones" in (one.module or ""):
            names = [one.module or "", *(alias.name for alias in one.names)]
            found += [name for name in names if OF_A_FAMILY.fullmatch(name)]
        elif isinstance(one, ast.Compare | ast.match_case | ast.Dict):
            parts = [key for key in one.keys if key] if isinstance(one, ast.Dict) else [*ast.walk(one)]
            found += [str(part.value) for part in parts if isinstance(part, ast.Constant) and part.value in FAMILIES]
    return found


@pytest.mark.parametrize("folder", [CORE, ROOT / "nodes"], ids=["core", "nodes"])
def test_no_other_file_knows_a_family(folder: Path) -> None:
    files = [path for path in folder.rglob("*.py") if CORE / "backbones" not in path.parents]
    files = [path for path in files if path != BUNDLED]
    assert len(files) > 10
    assert {str(path): names for path in files if (names := known(path))} == {}


def test_every_family_of_clips_is_tested_by_its_kinds() -> None:
    assert {kind.family for kind in KINDS} == FAMILIES.keys() - {"animatediff", "image_unet"}
