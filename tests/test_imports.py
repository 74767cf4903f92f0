"""What must stay light stays light, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "peft", "accelerate", "transformers", "cv2", "av", "matplotlib")


@pytest.mark.parametrize("module", ["w2svd_core", "w2svd_core.config"])
def test_an_import_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
