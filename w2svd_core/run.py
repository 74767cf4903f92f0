"""A run folder: the resolved recipe, metrics.jsonl, atomic checkpoints; and how to find them again.

recipe.yaml  metrics.jsonl  checkpoints/000050.safetensors  student/  samples/  plots/  report.md
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from .config import load_recipe, recipe_to_yaml
from .errors import UserError
from .files import read_safetensors, write_safetensors, write_text
from .settings import Recipe

KEPT_CHECKPOINTS = 2


class RunFolder:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def create(recipe: Recipe, out: Path | None) -> RunFolder:
        """A new run folder: `out`, or `./runs/<recipe>-<time>`.

        Raises:
            UserError: there is a run in it already, or it can't be written.
        """
        path = out or Path("runs") / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        if (path / "recipe.yaml").exists():
            raise UserError(f"{path} holds a run already; go on with it by --resume {path}, or name another --out")
        write_text(path / "recipe.yaml", recipe_to_yaml(recipe))
        return RunFolder(path)

    @staticmethod
    def open(path: Path) -> RunFolder:
        """A run that exists.

        Raises:
            UserError: there is none.
        """
        if not (path / "recipe.yaml").is_file():
            raise UserError(f"{path} is not a run folder (it has no recipe.yaml); name the folder that a training made")
        return RunFolder(path)

    def recipe(self) -> Recipe:
        """The resolved recipe of the run."""
        return load_recipe(str(self.path / "recipe.yaml"), {})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line to metrics.jsonl.

        Raises:
            UserError: the disk is full.
        """
        line = json.dumps({"step": step, **{name: float(value) for name, value in values.items()}})
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror}; free some space and go on with --resume {self.path}"
            ) from error

    def metrics(self) -> list[dict[str, float]]:
        """Every whole line of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            with contextlib.suppress(json.JSONDecodeError):  # a line that was cut off when the machine stopped
                rows.append(json.loads(line))
        return rows

    def save_checkpoint(self, step: int, tensors: Callable[[], Mapping[str, Tensor]], main: bool = True) -> None:
        """Write a checkpoint and drop old ones; a full disk leaves the old ones alone."""
        if not main:
            return
        folder = self.path / "checkpoints"
        write_safetensors(folder / f"{step:06d}.safetensors", tensors(), {"step": str(step)})
        for old in self._checkpoints()[:-KEPT_CHECKPOINTS]:
            old.unlink(missing_ok=True)

    def _checkpoints(self) -> list[Path]:
        """Oldest first; by number, since a name of seven digits sorts before one of six."""
        found = [p for p in (self.path / "checkpoints").glob("*.safetensors") if p.stem.isdecimal()]
        return sorted(found, key=lambda path: int(path.stem))

    def latest_checkpoint(self) -> tuple[int, dict[str, Tensor]]:
        """The newest checkpoint; (0, {}) before the first. Metrics beyond it are cut, they will be made again.

        Raises:
            UserError: the file is broken.
        """
        found = self._checkpoints()
        step, tensors = 0, dict[str, Tensor]()
        if found:
            tensors, metadata = read_safetensors(found[-1])
            if not metadata.get("step", "").isdigit():
                raise UserError(f"{found[-1]} is not a checkpoint of this program; remove it, the one before it serves")
            step = int(metadata["step"])
        kept = [json.dumps(row) for row in self.metrics() if row["step"] <= step]
        if (self.path / "metrics.jsonl").is_file():
            write_text(self.path / "metrics.jsonl", "".join(line + "\n" for line in kept))
        return step, tensors
