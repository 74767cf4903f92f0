"""What is shipped: requirements, the registry's fields, pictures, and nothing that its scanner flags."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FLAGGED = (
    r"\bsubprocess\b|\bos\.system\b|\bpickle\.|\b__import__\b|\byaml\.load\(|(?<![.\w])(eval|exec)\(|\btorch\.load\("
)


def test_requirements_are_those_of_the_package_without_torch() -> None:
    """ComfyUI's own build of torch has to stay."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    asked = [line for line in lines if line and not line.startswith("#")]
    assert asked == [one for one in PROJECT["project"]["dependencies"] if not re.match(r"torch\b", one)]


def test_the_registry_finds_its_fields() -> None:
    comfy = PROJECT["tool"]["comfy"]
    assert {"PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui", "includes"} <= set(comfy)
    assert comfy["requires-comfyui"] == ">=0.3.64"
    assert (ROOT / comfy["version"]["path"]).is_file()
    assert "comfyui" not in PROJECT["project"]["name"]


def test_icon_and_banner_have_the_sizes_that_are_asked_for() -> None:
    with Image.open(ROOT / "docs" / "icon.png") as icon, Image.open(ROOT / "docs" / "banner.png") as banner:
        assert icon.width == icon.height <= 400
        assert banner.width * 9 == banner.height * 21


def test_the_python_package_is_the_core_alone() -> None:
    assert PROJECT["tool"]["setuptools"]["packages"]["find"]["include"] == ["w2svd_core", "w2svd_core.*"]


def test_nothing_in_the_archive_would_be_flagged() -> None:
    for path in [ROOT / "__init__.py", *(ROOT / "nodes").rglob("*.py"), *(ROOT / "w2svd_core").rglob("*.py")]:
        found = re.search(FLAGGED, path.read_text(encoding="utf-8"))
        assert found is None, f"{path.relative_to(ROOT)}: {found}"
    ignored = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    assert {"tests/", "tools/", "benchmarks/", ".github/"} <= set(ignored)


def test_nodes_import_the_core_relatively() -> None:
    """Inside ComfyUI an absolute import finds another copy of it, or none."""
    for path in (ROOT / "nodes").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) (w2svd_core|nodes)\b", text, re.MULTILINE), path.name
