"""One cell, measured in a process of its own: `python benchmarks/measure.py CELL.json`, and the job on standard input.

The rows are those of `python -m w2svd_core.evaluate`: the same captions, noise seeds, held-out portraits and networks.
A teacher, in which nothing is trained, has noise of its own for each seed, so that it has a spread, too.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from w2svd_core import __version__
from w2svd_core.assembly import encoder_source
from w2svd_core.config import load_recipe
from w2svd_core.data.encoder_source import EncoderSource
from w2svd_core.errors import guarded
from w2svd_core.evaluate import Bench, best_euler
from w2svd_core.evaluation import Row, codec_row, data_row, few_step_way, held_out, student_way, teacher_way
from w2svd_core.files import write_text
from w2svd_core.loading import device, load_run, load_teacher
from w2svd_core.settings import Recipe
from w2svd_core.tables import plain
from w2svd_core.watch import Terminal

NOISE_APART = 10_000_000  # between the noise seeds of two seeds of a teacher


def measured(kind: str, recipe: Recipe, run: Path) -> tuple[Row, list[dict[str, float | str]]]:
    """A row, and what a search for the best Euler sampler saw."""
    quiet = Terminal(quiet=True)
    source: EncoderSource = encoder_source(recipe.model, device())
    test = held_out(recipe, source, quiet)
    bench = Bench(test, quiet, kind == "euler")
    if kind == "data":
        return data_row(test), []
    if kind == "codec":
        with tempfile.TemporaryDirectory() as folder:
            return codec_row(recipe, test, Path(folder)), []
    if kind == "student":
        return bench.row("student", load_run(recipe, source, run), student_way(recipe), recipe), []
    teacher = load_teacher(recipe, source)
    if kind == "teacher":
        bench = replace(bench, test=replace(test, seeds=tuple(s + NOISE_APART * recipe.seed for s in test.seeds)))
        return bench.row("teacher", teacher, teacher_way(recipe), recipe), []
    searched: list[dict[str, float | str]] = []
    return best_euler("Euler", bench, teacher, few_step_way(recipe), recipe, searched), searched


def machine() -> str:
    """What it ran on."""
    own = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return f"{own}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def main(place: str) -> int:
    """Measure the cell that standard input describes, and write it."""
    job: dict[str, Any] = json.load(sys.stdin)
    began = time.perf_counter()
    run = Path(job.pop("run"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        write_text(path, job.pop("yaml"))
        recipe = load_recipe(path)
    row, searched = measured(job["kind"], recipe, run)
    values = plain(row)
    found = {
        **job,
        "name": values.pop("name"),
        "model_calls": row.calls,
        "values": {key: value for key, value in values.items() if key in row.values},
        "searched": searched,
        "measure_seconds": time.perf_counter() - began,
        "machine": machine(),
        "version": __version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    write_text(Path(place), json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(lambda: main(sys.argv[1])))
