"""What a result is of, and where it is kept: a subject (a resolved recipe and what it is built on), a cell (a subject
measured in one way), and the folder that holds one JSON for each cell.

A key is a hash of what differs from the settings' defaults, without what changes no number, so that a paper's new
settings, which are off by default, leave old results as they are. The full recipe stands in the result, and one whose
settings disagree with today's is not taken.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from w2svd_core.assembly import ASSETS
from w2svd_core.config import load_recipe
from w2svd_core.data.portraits import DRAWING
from w2svd_core.errors import UserError
from w2svd_core.files import write_text
from w2svd_core.hashing import value_hash
from w2svd_core.options import all_settings, show, value_of
from w2svd_core.run import RunFolder, head_start
from w2svd_core.settings import Recipe
from w2svd_core.student_files import FOLDER, FULL_NATIVE

INERT = (  # settings that change no number of a result, or that a cell has its own of
    "name", "evaluate.", "train.tracker", "train.checkpoint_every", "train.log_every", "train.sample_every",
    "train.max_nonfinite", "data.cache", "data.workers",
)  # fmt: skip
NETWORKS = ("codec", "frame_features", "teacher", "video_features")
WHOLE_MODEL = f"{FOLDER}/{FULL_NATIVE}"
FILLS = {
    "model.path": WHOLE_MODEL,
    "frame_matching.model": WHOLE_MODEL,
    "start": "",
}  # the part of a run that a setting names
OF_A_NEW_MODEL = ("model.heads", "model.head_dim", "model.ffn_dim", "model.layers")  # only with init random


def plain_settings(recipe: Recipe) -> dict[str, Any]:
    """Every setting that a number depends on, by key, as JSON has it."""
    built = OF_A_NEW_MODEL if recipe.model.init != "random" else ()
    looks = ("guard.",) if not recipe.guard.every else ()
    values = {key: value_of(recipe, key) for key in all_settings() if not key.startswith((*INERT, *built, *looks))}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def unusual_settings(recipe: Recipe) -> dict[str, Any]:
    """Those that are not at their default."""
    found = plain_settings(recipe)
    defaults = plain_settings(Recipe())
    return {key: value for key, value in found.items() if key not in defaults or value != defaults[key]}


@cache
def assets_version() -> str:
    """Changes with the networks that every row is made or measured with, and with how portraits are drawn."""
    digest = hashlib.sha256(DRAWING.encode())
    for name in NETWORKS:
        digest.update(name.encode() + (ASSETS / f"portrait_{name}.safetensors").read_bytes())
    return digest.hexdigest()[:16]


def with_files(recipe: Recipe, files: Mapping[str, str | Path]) -> Recipe:
    """The recipe with these files in its settings."""
    for key, value in files.items():
        section, _, name = key.rpartition(".")
        changed = getattr(recipe, section).model_copy(update={name: str(value)}) if section else str(value)
        recipe = recipe.model_copy(update={section or name: changed})
    return recipe


@dataclass(frozen=True)
class Subject:
    """A resolved recipe, and the subjects whose files fill some of its settings ("start", "model.path").

    Attributes:
        recipe: with these settings left at their defaults.
        base: the bundled recipe that it came from.
    """

    recipe: Recipe
    base: str
    needs: Mapping[str, Subject] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """The same for everything that makes the same weights."""
        needs = {setting: subject.key for setting, subject in self.needs.items()}
        return value_hash([unusual_settings(self.recipe), needs, assets_version()])

    def place(self, out: Path) -> Path:
        """Its run folder."""
        return out / "runs" / self.key

    def given(self, out: Path) -> dict[str, str]:
        """The settings that its needs fill."""
        return {setting: str((need.place(out) / FILLS[setting]).resolve()) for setting, need in self.needs.items()}

    def models(self, out: Path) -> dict[str, str]:
        """The teachers trained here that it is built on, by recipe, with the digest of each one's weights."""
        files = {self.needs[key].base: Path(path) for key, path in self.given(out).items() if FILLS[key]}
        return {base: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for base, path in files.items()}

    def whole(self, out: Path) -> Recipe:
        """The recipe with those."""
        return with_files(self.recipe, self.given(out))


@dataclass(frozen=True)
class Cell:
    """A subject measured in one way.

    Attributes:
        row: the name of its row, or of several that are alike; no part of the key.
        kind: data, codec, teacher, euler (best of nine) or student.
        clips, seed: of the evaluation.
        cost: FLOPs of the training, that of what it starts from included; no part of the key.
    """

    row: str
    subject: Subject
    kind: str
    clips: int
    seed: int
    cost: float = 0.0

    @property
    def key(self) -> str:
        """The name of its JSON."""
        return value_hash([self.subject.key, self.kind, self.clips, self.seed])

    def place(self, out: Path) -> Path:
        """Its JSON."""
        return out / "cells" / f"{self.key}.json"

    def trainings(self) -> list[Subject]:
        """What has to be trained, in order."""
        return [*before(self.subject), *([self.subject] if self.kind == "student" else [])]

    def about(self) -> dict[str, Any]:
        """What stands in the JSON beside the numbers."""
        r = self.subject.recipe
        return {
            "row": self.row,
            "kind": self.kind,
            "seed": r.seed,
            "clips": self.clips,
            "evaluate_seed": self.seed,
            "assets": assets_version(),
            "steps": r.train.steps,
            "train_flops": self.cost,
            "recipe": plain_settings(r),
            "needs": {setting: need.key for setting, need in self.subject.needs.items()},
        }

    def read(self, out: Path) -> dict[str, Any] | None:
        """The finished result; None where there is none, or one of settings that meant something else."""
        path = self.place(out)
        if not path.is_file():
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        now = plain_settings(self.subject.recipe)
        then = found["recipe"]
        return found if all(then[key] == now[key] for key in then.keys() & now.keys()) else None


def before(subject: Subject) -> list[Subject]:
    """The trainings that a subject needs, in order."""
    return [one for need in subject.needs.values() for one in (*before(need), need)]


def course(subject: Subject) -> list[Subject]:
    """A training and those that it started from, one after the other; models that it is built on are others' work."""
    return [*(course(subject.needs["start"]) if "start" in subject.needs else []), subject]


# ---- trainings on disk


def usage(subject: Subject, out: Path) -> dict[str, Any]:
    """What is known of a training: "finished", "adopted", "peak_memory" in bytes; {} before the first start."""
    path = usage_file(subject, out)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def usage_file(subject: Subject, out: Path) -> Path:
    """Beside the run folder, since a training makes that itself."""
    return out / "runs" / f"{subject.key}.json"


def is_trained(subject: Subject, out: Path) -> bool:
    """Whether a training is done, with the settings that its name stands for now."""
    there = RunFolder.is_one(subject.place(out))
    return there and bool(usage(subject, out).get("finished")) and not stale(subject, out)


def may_start(subject: Subject, out: Path) -> bool:
    """Whether what a training starts from, if anything, has the checkpoint that it needs: older calls dropped it."""
    source = subject.needs.get("start")
    return source is None or any((source.place(out) / "checkpoints").glob("*.safetensors"))


def has_diverged(subject: Subject, out: Path) -> bool:
    """Whether a training ended because its updates were not finite."""
    return bool(usage(subject, out).get("diverged"))


def which_diverged(out: Path) -> list[str]:
    """The keys of all trainings that ended so."""
    known = sorted((out / "runs").glob("*.json"))
    return [path.stem for path in known if json.loads(path.read_text(encoding="utf-8")).get("diverged")]


def note_diverged(keys: Sequence[str], out: Path) -> None:
    """Note that these did on another machine, where they have not been tried on this one."""
    for key in keys:
        path = out / "runs" / f"{key}.json"
        if not path.is_file():
            write_text(path, json.dumps({"finished": False, "diverged": True}) + "\n")


def stale(subject: Subject, out: Path) -> str:
    """The first setting of a training on disk that a default meant otherwise when it ran; "" where none did."""
    path = subject.place(out) / "recipe.yaml"
    if not path.is_file():
        return ""
    then, now = _settings_at(path, path.stat().st_mtime_ns), plain_settings(subject.recipe)
    own = (key for key in then.keys() & now.keys() if key not in subject.needs)
    return next((key for key in sorted(own) if then[key] != now[key]), "")


@cache
def _settings_at(path: Path, _changed: int) -> dict[str, Any]:
    return plain_settings(load_recipe(path))


def note_usage(
    subject: Subject, out: Path, peak: int | None, finished: bool, adopted: bool = False, diverged: bool = False
) -> None:
    """Keep the peak memory of all its parts, whether it is done or can't be, and whether another call has done it."""
    before = usage(subject, out).get("peak_memory")
    peaks = [one for one in (before, peak) if one]
    known = {"base": subject.base, "seed": subject.recipe.seed, "finished": finished, "adopted": adopted}
    known |= {"diverged": True} if diverged else {}
    text = json.dumps(known | {"peak_memory": max(peaks, default=None)}, indent=2)
    write_text(usage_file(subject, out), text + "\n")


def spent(subject: Subject, out: Path) -> dict[str, Any]:
    """What a training and those before it took.

    "train_seconds" of all rounds, without loading (a stopped training that went on has counted them all), the highest
    "peak_memory" where it is known, "adopted" where one of them was made by another call.
    """
    parts = course(subject)
    return {
        "train_seconds": sum(seconds_of(part, out) for part in parts),
        "peak_memory": max((peak for part in parts if (peak := peak_of(part, out))), default=None),
        "adopted": any(usage(part, out).get("adopted") for part in parts),
    }


def peak_of(subject: Subject, out: Path) -> int | None:
    """Bytes that one training took at most: of the GPU where it ran on one, else of its process, if that is known."""
    rows = RunFolder(subject.place(out)).metrics()
    on_gpu = max((row.get("gpu_gib", 0.0) for row in rows), default=0.0)
    peak: int | None = usage(subject, out).get("peak_memory")
    return round(on_gpu * 2**30) or peak


def seconds_of(subject: Subject, out: Path) -> float:
    """Of the rounds of one training."""
    every = subject.recipe.train.log_every
    return every * sum(row.get("seconds", 0.0) for row in RunFolder(subject.place(out)).metrics())


def arguments_of(subject: Subject, out: Path) -> list[str]:
    """What `python -m w2svd_core.train` is called with."""
    place = subject.place(out)
    if RunFolder.is_one(place):
        return ["--resume", str(place)]
    bundled, recipe = load_recipe(subject.base), subject.whole(out)
    changed = {key for key in all_settings() if value_of(bundled, key) != value_of(recipe, key)}
    changed.discard("evaluate.clips")  # a cell is measured apart
    settings = [part for key in sorted(changed) for part in (f"--{key}", show(value_of(recipe, key)))]
    return [subject.base, *settings, "--evaluate.clips", "0", "--out", str(place)]


def move_aside(subject: Subject, out: Path) -> None:
    """Make room for the same training once more, which is not done before its end; what is there stays beside it."""
    note_usage(subject, out, None, False)
    place = subject.place(out)
    old = place.with_name(f"{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    place.rename(old)


def thin(subject: Subject, out: Path) -> None:
    """Drop the checkpoints of a finished training, all but the last: another one may start from it some day."""
    for path in sorted((subject.place(out) / "checkpoints").glob("*.safetensors"))[:-1]:
        path.unlink()


# ---- runs from elsewhere


def adopt(folder: Path, wanted: Mapping[str, Subject], out: Path) -> list[str]:
    """Take finished runs below a folder as the trainings that they are equal to; returns what was taken.

    Args:
        folder: holds run folders, or is one.
        wanted: trainings by key.
        out: where they are copied to, without their older checkpoints.

    Raises:
        UserError: there is no run.
    """
    runs = sorted(path.parent for path in folder.rglob("recipe.yaml") if (path.parent / FOLDER).is_dir())
    if not runs:
        raise UserError(f"--adopt {folder} holds no finished run; name the folder that the run folders lie in")
    taken: list[str] = []
    for _ in range(2):  # the second time for those that are built on a first one
        for run in runs:
            own = adopted_settings(run)
            for subject in wanted.values():
                if is_trained(subject, out) or not _equal(own, subject, out):
                    continue
                last = sorted((run / "checkpoints").glob("*.safetensors"))[:-1]
                names = [*(path.name for path in last), "tensorboard", "teacher"]
                shutil.copytree(run, subject.place(out), ignore=shutil.ignore_patterns(*names), dirs_exist_ok=True)
                note_usage(subject, out, None, True, adopted=True)
                taken.append(f"{run} is {subject.base}, seed {subject.recipe.seed}")
    return taken


def adopted_settings(run: Path) -> dict[str, Any]:
    """Every setting of a run that a number depends on; today's default for those that it did not have."""
    recipe = RunFolder.open(run).recipe()
    rows = RunFolder(run).metrics()
    done = rows[-1]["step"] if rows else 0
    return {} if done < head_start(recipe) + recipe.train.steps else plain_settings(recipe)


def _equal(own: Mapping[str, Any], subject: Subject, out: Path) -> bool:
    wanted = plain_settings(subject.recipe)
    for setting, place in subject.given(out).items():
        theirs, ours = Path(str(own.get(setting, ""))), Path(place)
        if not (theirs.is_file() and ours.is_file() and theirs.read_bytes() == ours.read_bytes()):
            return False
        wanted[setting] = own[setting]
    return dict(own) == wanted
