"""What the tests of the benchmark share: its modules, plans, cells and results."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from w2svd_core.config import load_recipe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MODULES = (
    "flops", "cost", "budget", "cells", "claims", "plan", "rows", "work", "lines", "page", "pictures", "record",
    "sizes", "results",
)  # fmt: skip
TINY = {"critic.warmup": "1", "train.steps": "3", "data.clips": "64", "train.batch": "4"}


def modules() -> Iterator[Any]:
    """Those beside the command, by name, for as long as a fixture lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
        for name in MODULES:
            sys.modules.pop(name, None)


def plan_of(bench: Any, out: Path, costs: Any, rows: Any = None, **options: Any) -> Any:
    return bench.plan.Plan(rows or bench.rows.ROWS, bench.plan.Options(**options), out, costs)


def cell_of(bench: Any, changes: dict[str, object] | None = None, **own: Any) -> Any:
    subject = bench.cells.Subject(load_recipe("portraits_long", changes or {}), "portraits_long")
    return bench.cells.Cell(**{"row": "w2s", "subject": subject, "kind": "student", "clips": 50, "seed": 1} | own)


def finish(cell: Any, out: Path, **values: float) -> None:
    """A result as `measure.py` writes it."""
    path = cell.place(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"model_calls": 4, "machine": "a test", "train_seconds": 60.0, "peak_memory": 2**30}
    path.write_text(json.dumps({**cell.about(), **about, "values": {"frechet_video": 1.0, **values}}))


def command(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The table's own command, with tiny trainings."""
    settings = [part for key, value in TINY.items() for part in (f"--{key}", value)]
    words = [
        "--size",
        "small",
        "--out",
        str(out),
        "--docs",
        str(out / "docs"),
        "--data.cache",
        str(out.parent / "cache"),
        *settings,
    ]
    env = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent), "OMP_NUM_THREADS": "1"}
    full = [sys.executable, str(BENCHMARKS / "results.py"), *words, *more]
    return subprocess.run(full, capture_output=True, text=True, env=env, check=False)
