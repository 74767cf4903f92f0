"""What is shipped: requirements, the registry's fields, pictures, and nothing that its scanner flags."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FLAGGED = "|".join(
    (
        r"\bsubprocess\b|\bos\.(system|popen|exec\w*|spawn\w*)\b|(?<![.\w])(eval|exec|compile)\(",  # commands, code
        r"\bpickle\.|\byaml\.load\(|\btorch\.load\(|\bmarshal\b",  # files that can be programs
        r"\b__import__\b|\bimportlib\.import_module\b|\bsys\.modules\b",  # imports by name
        r"\.bind\(|\.connect\(|\bsocket\.socket\(|\b(import|from) (socket|requests|urllib|aiohttp|http)\b",  # net
        r"\b(curl|wget|ffmpeg|ffprobe|sudo|su|doas|runas)\b|raw\.githubusercontent\.com",  # words alone
    )
)
SHIPPED = ("__init__.py", "nodes", "w2svd_core", "locales", "web", "workflows", "docs")
IGNORED = {"tests/", "tools/", "benchmarks/", ".github/", ".ci/", "CONTRIBUTING.md"}


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


def test_the_registry_reads_the_project_without_a_warning() -> None:
    """What comfy-cli checks of `[project]`: three numbers of a version, a license, classifiers that it knows."""
    version = re.findall(
        r'^__version__ = "(.+)"$', (ROOT / PROJECT["tool"]["comfy"]["version"]["path"]).read_text(), re.M
    )
    assert len(version) == 1 and re.fullmatch(r"\d+\.\d+\.\d+(-\w+)?", version[0])
    assert isinstance(PROJECT["project"]["license"], str)
    classifiers = PROJECT["project"]["classifiers"]
    assert "Operating System :: OS Independent" in classifiers and "Environment :: GPU :: NVIDIA CUDA" in classifiers


def test_nothing_in_the_archive_would_be_flagged() -> None:
    sources = [ROOT / "__init__.py", *(ROOT / "nodes").rglob("*.py"), *(ROOT / "w2svd_core").rglob("*.py")]
    for path in sources:
        found = re.search(FLAGGED, path.read_text(encoding="utf-8"))
        assert found is None, f"{path.relative_to(ROOT)}: {found}"


def test_the_checks_of_comfy_node_validate_find_nothing() -> None:
    """exec, eval, several statements on a line: what comfy-cli asks ruff for."""
    pytest.importorskip("ruff")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", ".", "-q", "--no-cache", "--select", "S102,S307,E702"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_archive_is_small_and_holds_no_script_of_the_page() -> None:
    ignored = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    assert set(ignored) >= IGNORED
    files = [
        path for name in SHIPPED for path in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"))
    ]
    shipped = [
        path for path in files if path.is_file() and "__pycache__" not in path.parts and not left_out(path, ignored)
    ]
    assert not [path for path in shipped if path.suffix in (".js", ".sh", ".bat", ".pt", ".pth", ".ckpt", ".bin")]
    assert sum(path.stat().st_size for path in shipped) < 16e6


def left_out(path: Path, ignored: list[str]) -> bool:
    """Whether .comfyignore names a file, or a folder that it is in."""
    name = path.relative_to(ROOT).as_posix()
    return any(fnmatch(name, line) or (line.endswith("/") and name.startswith(line)) for line in ignored)


def test_nodes_import_the_core_relatively() -> None:
    """Inside ComfyUI an absolute import finds another copy of it, or none."""
    for path in (ROOT / "nodes").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) (w2svd_core|nodes)\b", text, re.MULTILINE), path.name
