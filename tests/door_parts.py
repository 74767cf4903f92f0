"""What the tests of the doors share: a tiny teacher as a file, settings of a run of a second, and how a fault looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from w2svd_core import plots
from w2svd_core.backbones import backbone
from w2svd_core.backbones.base import Architecture
from w2svd_core.files import write_safetensors

ALL_PANELS = dict(plots.PLOTS)
Door = Callable[..., tuple[int, str, str]]
SIZE = ["--data.frames", "5", "--data.height", "32", "--data.width", "32", "--data.fps", "8"]


def write_teacher(path: Path, seed: int) -> Path:
    """A random Wan transformer of a few thousand weights, as a native file."""
    family = backbone("wan")
    torch.manual_seed(seed)
    model = family.build(Architecture(heads=1, head_dim=16, ffn_dim=32, layers=1, text_dim=64))
    torch.nn.init.normal_(model.get_parameter("proj_out.weight"), std=0.1)
    write_safetensors(path, family.native_state(model), family.native_metadata(model))
    return path


def tiny(place: Path) -> list[str]:
    """Settings of a run that takes a second."""
    return [
        *SIZE,
        *["--model.path", str(place / "teacher.safetensors"), "--data.folder", str(place / "clips")],
        *["--data.cache", str(place / "cache"), "--student.rank", "2", "--critic.rank", "2"],
        *["--critic.warmup", "1", "--critic.updates", "2", "--train.steps", "2", "--train.batch", "2"],
        *["--student.lr", "0.01", "--train.lr_decay", "constant", "--student.ema", "0"],
        *["--train.checkpoint_every", "1", "--teacher.steps", "3"],
        *["--evaluate.clips", "0", "--train.tracker", "none"],
    ]


def refused(result: tuple[int, str, str]) -> str:
    """The one line of a fault."""
    code, _, err = result
    lines = err.splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


def student(run: Path, kind: str = "comfyui") -> Path:
    """A run's LoRA file."""
    return run / "student" / f"student_{kind}.safetensors"


def base(place: Path, name: str = "teacher") -> list[str]:
    return [*SIZE, "--model.path", str(place / f"{name}.safetensors")]


@contextmanager
def panels_drawn(panels: Mapping[str, Any] = ALL_PANELS) -> Iterator[None]:
    """Let reports have these panels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "PLOTS", panels)
        yield
