"""The quality guard: it looks at the student while it learns, and says when it leaves its teacher's band.

Few-step students freeze, burn and forget modes before anything else tells. A look is clips of the student as it would
be saved, by its own few steps, on captions and noise that the teacher's reference sampler was given once, too. What its
numbers mean stands in `looks.py`.

guard/teacher.json  guard/best-000040.safetensors   in the run folder; the looks themselves are rows of metrics.jsonl
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .condition import Condition
from .data.codec import decode_pixels
from .errors import UserError
from .evaluation import SEEDS_PER_CAPTION, Progress, held_out, student_way, teacher_way
from .files import opened_safetensors, read_safetensors, write_safetensors, write_text
from .generation import Way, generate
from .guard_settings import Guard, on_portraits
from .hashing import tensors_hash
from .learner import Learner
from .looks import LOGGED, Look, Values, band, change, looks_in, out_in_a_row, score
from .metrics.diversity import caption_diversity
from .metrics.measure import Reference, measure
from .roles import swapped_in
from .run import RunFolder
from .settings import Recipe
from .watch import Watch

if TYPE_CHECKING:
    from .assembly import Job

FOLDER, TEACHER = "guard", "teacher.json"


# ---- what is looked at


@dataclass(frozen=True)
class Questions:
    """What teacher and student are asked alike.

    Attributes:
        captions: one for each clip; two in a row are alike.
        condition: a row for each clip, on the CPU.
        null: one row.
        shape: (c, f, h, w) of a clip's latents.
        seeds: of the noise.
        reference: statistics of validation portraits; None with other clips.
    """

    captions: tuple[str, ...]
    condition: Condition
    null: Condition
    shape: tuple[int, int, int, int]
    seeds: tuple[int, ...]
    reference: Reference | None

    def fingerprint(self) -> str:
        """Changes with anything that a model would be asked."""
        null = {f"null/{name}": value for name, value in self.null.fields.items()}
        return tensors_hash({**self.condition.fields, **null})


def questions(recipe: Recipe, job: Job, progress: Progress) -> Questions:
    """Held-out portraits; or, with clips of the user's own or prompts alone, the first captions of the training."""
    g = recipe.guard
    if not on_portraits(recipe):
        return training_questions(g, job)
    networks = {"fid_network": "", "fvd_network": "", "clip_model": ""}
    measured = recipe.evaluate.model_copy(update={"clips": g.clips, "seed": g.seed, **networks})
    test = held_out(recipe.model_copy(update={"evaluate": measured}), job.source, progress)
    condition = test.asked.condition(range(len(test.seeds)))
    return Questions(test.captions, condition, test.asked.null, test.asked.shape, test.seeds, test.reference)


def training_questions(settings: Guard, job: Job) -> Questions:
    """The first rows of the training that have the shape of the very first, each asked with two seeds."""
    data, shape = job.data, job.data.shape([0])
    alike = (row for row in range(len(data)) if data.shape([row]) == shape)
    rows = list(islice(alike, settings.clips // SEEDS_PER_CAPTION))
    _, condition = data.batch(rows, torch.device("cpu"))
    places = [i // SEEDS_PER_CAPTION % len(rows) for i in range(settings.clips)]
    seeds = tuple(settings.seed + i for i in range(settings.clips))
    null = data.null.to(torch.device("cpu"))
    return Questions(tuple(f"row {rows[place]}" for place in places), condition[places], null, shape, seeds, None)


def measured(way: Way, asked: Questions, recipe: Recipe, job: Job, progress: Progress) -> dict[str, float]:
    """The numbers of a role's clips."""
    latents = generate(
        job.model, way, asked.condition, asked.null, asked.shape, asked.seeds, batch=recipe.evaluate.batch,
        progress=lambda done, count: progress("sampling the guard's teacher", done, count),
    )  # fmt: skip
    clips = decode_pixels(job.source.load_codec(), latents)
    values = measure(clips, asked.captions, asked.reference, SEEDS_PER_CAPTION)
    if asked.reference is None:
        values["diversity"] = caption_diversity(clips, SEEDS_PER_CAPTION)
    return values


def teacher_values(asked: Questions, recipe: Recipe, run: RunFolder, job: Job, progress: Progress) -> Values:
    """The teacher's numbers by its reference sampler, measured once for each run and kept in its folder."""
    path, way = run.path / FOLDER / TEACHER, teacher_way(recipe)
    made_of: dict[str, Any] = {
        "base": run.made_of.get("base", ""),
        "asked": asked.fingerprint(),
        "guard": {"clips": recipe.guard.clips, "seed": recipe.guard.seed},
        "size": {"shape": list(asked.shape), "fps": recipe.data.fps},
        "codec": job.source.fingerprints()["codec"],
        "sampler": {"sigmas": list(way.sigmas), "name": way.sampler, "guidance_scale": way.guidance_scale},
    }
    kept = _read(path)
    if kept.get("made_of") != made_of or not isinstance(kept.get("values"), dict):
        kept = {"made_of": made_of, "values": measured(way, asked, recipe, job, progress)}
        write_text(path, json.dumps(kept, indent=2) + "\n")
    values: Values = kept["values"]
    return values


def kept_teacher(run: RunFolder) -> Values:
    """The teacher's numbers that a run's guard has measured; none before that."""
    values: Values = _read(run.path / FOLDER / TEACHER).get("values", {})
    return values


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or broken: it is measured again
        return {}
    return found if isinstance(found, dict) else {}


# ---- the best look


@dataclass(frozen=True)
class Best:
    """The learned weights of a look, kept as a file.

    Attributes:
        path: the file.
        step: rounds that were done.
        values: the look's numbers.
    """

    path: Path
    step: int
    values: Values

    @staticmethod
    def read(path: Path) -> Best:
        """What the file's header says.

        Raises:
            UserError: it is broken, or no file of the guard's.
        """
        try:
            with opened_safetensors(path) as file:
                about = file.metadata() or {}
            return Best(path, int(about["step"]), json.loads(about["values"]))
        except (UserError, KeyError, ValueError) as error:
            raise UserError(
                f"{path} is not a whole look that the guard has kept; remove it, and set guard.keep last in the run's "
                "recipe.yaml"
            ) from error


def kept_looks(run: RunFolder) -> list[Best]:
    """The looks that are kept, oldest first: the last one is the best."""
    found = {path.stem.removeprefix("best-"): path for path in (run.path / FOLDER).glob("best-*.safetensors")}
    return [Best.read(found[step]) for step in sorted((step for step in found if step.isdecimal()), key=int)]


def keep_look(run: RunFolder, look: Look, student: Learner) -> Best:
    """Keep the student's learned weights as the best; of older ones only the last that each checkpoint has seen stays.

    A run that goes on from one of its checkpoints so finds the best that it had then.
    """
    path = run.path / FOLDER / f"best-{look.step:06d}.safetensors"
    header = {"step": str(look.step), "score": repr(look.score), "values": json.dumps(dict(look.values))}
    write_safetensors(path, student.learned(), header)
    older = [best for best in kept_looks(run) if best.step < look.step]
    seen = [[best.step for best in older if best.step <= done] for done in run.kept_steps()]
    safe = {steps[-1] for steps in seen if steps}
    for best in older:
        if best.step not in safe:
            best.path.unlink(missing_ok=True)
    return Best(path, look.step, look.values)


def take_best(run: RunFolder, student: Learner) -> Best | None:
    """Give the student the weights of the best look, for good; None where there was no look.

    Raises:
        UserError: the file is broken, or gone.
    """
    refuse_a_lost_look(run)
    for best in kept_looks(run)[-1:]:
        tensors, _ = read_safetensors(best.path)
        student.begin_with(tensors, tensors)
        return best
    return None


def refuse_a_lost_look(run: RunFolder) -> None:
    """Raise a UserError where a run has logged looks and none of them is kept."""
    if not kept_looks(run) and any(f"{LOGGED}score" in row for row in run.metrics()):
        raise UserError(
            f"{run.path / FOLDER} has lost its best look, which guard.keep best hands out; put it back, or set "
            f"guard.keep last in {run.path / 'recipe.yaml'}"
        )


# ---- in a run


class QualityGuard:
    """Looks at the student of a run; `look` is the trainer's callback.

    Args:
        recipe: of the run.
        run: its folder, with the metrics of the rounds that are done.
        job: its parts, as they are after those rounds.
        start: how many rounds are done; looks that were kept after them are made again.
        watch: told what is being prepared, and when the student leaves the band or comes back.

    Attributes:
        teacher: its numbers.
        looks: all so far.
        best: the one that is kept; None before the first.

    Raises:
        UserError: the clips can't be measured, or the run folder can't be written.
    """

    def __init__(self, recipe: Recipe, run: RunFolder, job: Job, start: int, watch: Watch) -> None:
        self.recipe, self.run, self.job, self.watch = recipe, run, job, watch
        self.band = band(recipe.guard)
        self.asked = questions(recipe, job, watch)
        self.teacher = teacher_values(self.asked, recipe, run, job, watch)
        self.looks = [look for look in looks_in(run.metrics(), self.teacher, self.band) if look.step <= start]
        for late in [best for best in kept_looks(run) if best.step > start]:
            late.path.unlink()
        if recipe.guard.keep == "best":
            refuse_a_lost_look(run)
        self.best = next(iter(kept_looks(run)[-1:]), None)

    @property
    def enough(self) -> bool:
        """Whether so many looks in a row were out of the band that the run is to end."""
        return 0 < self.recipe.guard.stop_after <= out_in_a_row(self.looks)

    def lacks(self, done: int) -> bool:
        """Whether a look was due after so many rounds and has not been made: its clips failed."""
        return self._due(done) and all(look.step != done for look in self.looks)

    def look(self, done: int) -> tuple[dict[str, float], bool]:
        """After `done` rounds: what to log, and whether the run is to end."""
        if not self._due(done):
            return {}, False
        with swapped_in(self.job.student.learned(), self.job.model):
            values = measured(student_way(self.recipe), self.asked, self.recipe, self.job, lambda *_: None)
        now = Look.of(done, values, self.teacher, self.band)
        if line := change(self.looks[-1] if self.looks else None, now, self.band):
            self.watch.say(line)
        self.looks.append(now)
        if self.best is None or now.score < score(self.best.values, self.teacher):
            self.best = keep_look(self.run, now, self.job.student)
        if self.enough:
            self.watch.say(
                f"guard, round {done}: {out_in_a_row(self.looks)} looks in a row out of the band end the run"
            )
        return now.logs(), self.enough

    def _due(self, done: int) -> bool:
        """Every so many updates of the student, whose first rounds may be the critic's alone, and at the end."""
        rounds = self.job.program.rounds
        updates = done - (rounds - self.recipe.train.steps)
        return updates > 0 and (updates % self.recipe.guard.every == 0 or done == rounds)
