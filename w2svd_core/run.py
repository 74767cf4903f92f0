"""A run folder: the resolved recipe, metrics.jsonl, atomic checkpoints; and how to find them again.

recipe.yaml  metrics.jsonl  checkpoints/000050.safetensors  student/  samples/  plots/  report.md
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from .config import load_recipe, recipe_to_yaml, settings_of
from .errors import UserError
from .files import opened_safetensors, read_safetensors, write_new_text, write_safetensors, write_text
from .options import show
from .places import PLACE_KEYS, rewritten
from .settings import Recipe

if TYPE_CHECKING:
    from filelock import BaseFileLock

KEPT_CHECKPOINTS = 2
MAY_CHANGE = (
    "evaluate.", "teacher.", "train.steps", "train.checkpoint_every", "train.log_every", "train.sample_every",
    "train.max_nonfinite", "train.tracker", "name", "guard.every", "guard.keep", "guard.stop_after", "guard.motion",
    "guard.saturation", "guard.diversity", "model.gradient_checkpointing", "matching.batched_scores", "data.workers",
    *(key for key in PLACE_KEYS if key != "first"),
)  # fmt: skip
"""Settings that a run may go on with when they were changed: a longer training, files that have moved (contents are
compared; of the user's clips name, size and time), what is shown and how it is measured, and what saves memory, which
changes numbers by no more than rounding."""
ORIGIN = {
    "base": "another model than model.path and model.loras name",
    "data": "other clips, prompts or encoders than data and model name",
    "models": "another image model than frame_matching.model names",
}
"""What a run was made of beside its recipe, as hashes: the setting that names it, and how to say that it is another."""


def set_in_stone(then: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """The settings, of those that two recipes both have, whose change would make it another run."""
    free = MAY_CHANGE if then.get("guard.every") else (*MAY_CHANGE, "guard.")  # there are no looks to compare with
    both = (key for key in then if key in now)
    return [key for key in both if then[key] != now[key] and not key.startswith(free)]


def place_for(recipe: Recipe, out: Path | None) -> Path:
    """Where a new run goes: `out`, or `./runs/<recipe>-<time>`. Nothing is written yet.

    Raises:
        UserError: there is a run in it already, or what one has left, or safetensors can't read files of that name.
    """
    path = out or Path("runs") / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if (path / "recipe.yaml").exists():
        raise _taken(path)
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{path!r} is no UTF-8 name, and safetensors reads no other; name another --out") from error
    if RunFolder(path).newest_checkpoint():
        raise UserError(f"{path} holds checkpoints and has lost its recipe.yaml; put it back, or name another --out")
    return path


def _taken(path: Path) -> UserError:
    return UserError(f"{path} holds a run already; go on with it by --resume {path}, or name another --out")


def anchored(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths, so that a run goes on from any working folder."""

    def absolute(key: str, place: str) -> str:
        return str(Path(place).resolve()) if key == "data.cache" or Path(place).exists() else place

    return rewritten(recipe, absolute)


class RunFolder:
    """One run on disk.

    Attributes:
        path: the folder.
        made_of: what a checkpoint depends on: the "recipe" as YAML, and the hashes of `ORIGIN`. Written into
            each checkpoint, and compared when one is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.made_of: Mapping[str, str] = {}

    @staticmethod
    def create(recipe: Recipe, out: Path | None) -> RunFolder:
        """A new run folder with its recipe, paths made absolute: `out`, or `./runs/<recipe>-<time>`.

        Raises:
            UserError: there is a run in it already, or it can't be written.
        """
        path = place_for(recipe, out)
        try:
            write_new_text(path / "recipe.yaml", recipe_to_yaml(anchored(recipe)))
        except FileExistsError as error:  # of a run that began in the same second
            raise _taken(path) from error
        return RunFolder(path)

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether there is a run in a folder."""
        return (path / "recipe.yaml").is_file()

    @staticmethod
    def open(path: Path) -> RunFolder:
        """A run that exists.

        Raises:
            UserError: there is none.
        """
        if not RunFolder.is_one(path):
            raise UserError(f"{path} is not a run folder (it has no recipe.yaml); name the folder that a training made")
        return RunFolder(path)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The run for this process alone; a process that dies lets go of it, and what it left half written is deleted.

        A file system without locks holds nothing, or has a mark in their place that a killed process leaves behind.

        Raises:
            UserError: another one trains in it.
        """
        from filelock import FileLock

        lock = FileLock(self.path / "training.lock", timeout=0)
        if self._locked(lock):
            with contextlib.suppress(OSError):
                for half in (self.path / "checkpoints").glob(".*-*.safetensors"):  # `atomic_write`'s, large as a model
                    half.unlink(missing_ok=True)
        try:
            yield
        finally:
            lock.release()

    def _locked(self, lock: BaseFileLock) -> bool:
        """Whether a lock is taken; not where there are no locks, or of a fault that the run's first file will tell.

        Raises:
            UserError: another process has it.
        """
        from filelock import Timeout

        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(
                f"another process trains in {self.path}; wait until it ends, or stop it, or delete {lock.lock_file} if "
                "none does"
            ) from error
        except (OSError, NotImplementedError):
            return False
        return True

    def recipe(self) -> Recipe:
        """The resolved recipe of the run.

        Raises:
            UserError: it is broken, or was never written to its end.
        """
        path = self.path / "recipe.yaml"
        if not path.read_bytes().strip():
            raise UserError(f"{path} is empty; put the run's recipe back, or start a new run")
        return load_recipe(str(path), {})

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
            raise UserError(f"cannot write {path}: {error.strerror}; free some space and resume the run") from error

    def metrics(self) -> list[dict[str, float]]:
        """Every whole line of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        rows = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
            with contextlib.suppress(
                ValueError, KeyError, TypeError
            ):  # a line that was cut off when the machine stopped
                row = json.loads(line)
                rows.append({**row, "step": int(row["step"])})
        return rows

    def save_checkpoint(self, step: int, tensors: Callable[[], Mapping[str, Tensor]], main: bool = True) -> None:
        """Write a checkpoint and drop old ones; a full disk leaves the old ones alone."""
        if not main:
            return
        folder = self.path / "checkpoints"
        write_safetensors(folder / f"{step:06d}.safetensors", tensors(), {"step": str(step), **self.made_of})
        for old in self._checkpoints()[:-KEPT_CHECKPOINTS]:
            old.unlink(missing_ok=True)

    def _check_origin(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Refuse a checkpoint of another recipe, base model or data: going on from it would be another run."""
        then, now = (settings_of(made_of.get("recipe", "")) for made_of in (metadata, self.made_of))
        for key in set_in_stone(then, now):
            raise UserError(
                f"{path} is of a run with {key} {show(then[key])}, {self.path / 'recipe.yaml'} says "
                f"{show(now[key])}; set it back, or start a new run"
            )
        for name, what in ORIGIN.items():
            if metadata.get(name, "") != self.made_of.get(name, ""):
                raise UserError(f"{path} was made with {what} now; put them back, or start a new run")

    def _checkpoints(self) -> list[Path]:
        """Oldest first; by number, since a name of seven digits sorts before one of six."""
        folder = self.path / "checkpoints"
        try:
            paths = [folder / name for name in os.listdir(folder)]
        except FileNotFoundError:
            return []
        except OSError as error:  # not the same as none: the run would begin anew
            raise UserError(f"{folder} can't be read: {error.strerror}; check its permissions") from error
        found = [path for path in paths if path.suffix == ".safetensors" and path.stem.isdecimal()]
        return sorted(found, key=lambda path: int(path.stem))

    def newest_checkpoint(self) -> Path | None:
        """The file of the newest checkpoint; None before the first."""
        return next(iter(reversed(self._checkpoints())), None)

    def newest_step(self) -> int:
        """How many rounds the newest checkpoint has seen; 0 before the first."""
        newest = self.newest_checkpoint()
        return int(newest.stem) if newest else 0

    def kept_steps(self) -> list[int]:
        """How many rounds each checkpoint has seen, oldest first."""
        return [int(path.stem) for path in self._checkpoints()]

    def refuse_fewer_steps(self, recipe: Recipe) -> None:
        """Raise a UserError where more updates are done than a recipe asks for: they can't be taken back."""
        done = self.newest_step() - head_start(recipe)
        if done > recipe.train.steps:
            raise UserError(
                f"{self.path} has {done} updates behind it, and train.steps is {recipe.train.steps}; raise it to "
                f"{done} or more, or train anew in another folder"
            )

    def origin(self) -> dict[str, str]:
        """What the newest checkpoint was `made_of`; {} before the first.

        Raises:
            UserError: the file is broken.
        """
        newest = self.newest_checkpoint()
        if newest is None:
            return {}
        with opened_safetensors(newest) as file:
            about = file.metadata() or {}
        return {name: about[name] for name in ("recipe", *ORIGIN) if name in about}

    def latest_checkpoint(self) -> tuple[int, dict[str, Tensor]]:
        """The newest checkpoint; (0, {}) before the first. Metrics beyond it are cut, they will be made again.

        Raises:
            UserError: the file is broken, or of a run of another recipe, base model or clips, or there was one and it
                is gone.
        """
        found = self._checkpoints()
        step, tensors = 0, dict[str, Tensor]()
        if not found:
            self._refuse_to_begin_anew()
        if found:
            try:
                found[-1].open("rb").close()
            except OSError as error:
                raise UserError(f"{found[-1]} can't be read: {error.strerror}; check its permissions") from error
            try:
                tensors, metadata = read_safetensors(found[-1])
                step = int(metadata["step"])
            except (UserError, KeyError, ValueError) as error:
                older = "remove it, and the run goes on from the one before it"
                raise UserError(
                    f"{found[-1]} is not a whole checkpoint of this program; "
                    f"{older if found[:-1] else 'train anew in another folder'}"
                ) from error
            self._check_origin(found[-1], metadata)
        kept = [json.dumps(row) for row in self.metrics() if row["step"] <= step]
        if (self.path / "metrics.jsonl").is_file():
            write_text(self.path / "metrics.jsonl", "".join(line + "\n" for line in kept))
        return step, tensors

    def _refuse_to_begin_anew(self) -> None:
        """Raise a UserError where a run has come so far that it must have had a checkpoint."""
        rows = self.metrics()
        done, every = int(rows[-1]["step"]) if rows else 0, self.recipe().train.checkpoint_every
        if (self.path / "student").is_dir() or 0 < every < done:
            raise UserError(
                f"{self.path / 'checkpoints'} holds nothing to go on from, and {done} rounds were trained; put it "
                "back, or train anew in another folder"
            )


def head_start(recipe: Recipe) -> int:
    """The rounds of a run before its student's first update: those of the critic alone."""
    return recipe.critic.warmup if recipe.method == "distribution_matching" else 0
