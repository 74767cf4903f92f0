"""A run that starts from another one: its student and its critic, as Data-Forcing Distillation starts from DMD2's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .distillation import Distillation
from .errors import UserError
from .files import read_safetensors
from .guard import take_best
from .learner import Learner, average_age
from .objectives import terms
from .options import show, value_of
from .run import RunFolder, anchored
from .sections import Optimizer
from .settings import Recipe
from .stages import with_trained_teacher

WALKED = ("student.sigmas", "student.sampler", "embedded.student")  # how a student is asked for its steps
ASKED = ("matching.alpha_strong", "embedded.fake")  # how a critic is asked for its score


def with_its_teacher(recipe: Recipe) -> Recipe:
    """The recipe with the fine-tuned teacher of the run that it starts from, if that is of two stages.

    Raises:
        UserError: there is no such run, it has not trained yet, or has another teacher than this recipe's first stage
            would make.
    """
    if not recipe.start:
        return recipe
    run = _opened(recipe.start)
    _newest(run)
    theirs, own = run.recipe(), anchored(recipe)
    same = recipe.first in ("", theirs.first)
    if theirs.first and same and (theirs.model.path, theirs.model.loras) == (own.model.path, own.model.loras):
        return with_trained_teacher(own.model_copy(update={"first": theirs.first}), run.path)
    if recipe.first:
        raise UserError(
            f"first {recipe.first} would make another teacher than start {recipe.start} was distilled from; clear "
            "first, or start"
        )
    return recipe


def other_steps(recipe: Recipe) -> list[str]:
    """Where student and critic go on in another way than in the run that they start from, a sentence each."""
    theirs = _opened(recipe.start).recipe()
    asked = ASKED if recipe.matching.weight else ()
    both = [(key, value_of(theirs, key), value_of(recipe, key)) for key in (*WALKED, *asked)]
    return [
        f"{key} is {show(now)}, and the {'critic' if key in ASKED else 'student'} of start {recipe.start} knows "
        f"{show(then)}; set it to that, or train as long as for a new one"
        for key, then, now in both
        if then != now
    ]


def start_from(program: Distillation, place: str, base: str, models: str = "") -> str:
    """Give a program the newest student and critic of a finished or stopped run; optimizers begin anew.

    The moving average goes along where both runs keep one. This is what DFD's own code does (arXiv 2606.18478:
    generator, critic and average are loaded, optimizer states are not). What a term trains (heads, a critic of frames)
    goes along where the term has the same settings there but for weight and rates, and the same models (ours). Of a run
    that keeps its best look the student is that one.

    Args:
        place: the run's folder.
        base: hash of the frozen base here.
        models: hash of the frozen models that terms bring along; "" = none.

    Returns:
        What was taken.

    Raises:
        UserError: there is no such run, it is of another base, or its student or critic are of another kind or rank.
    """
    run = _opened(place)
    then, now = (recipe.model.precision for recipe in (run.recipe(), program.recipe))
    if then != now:
        raise UserError(
            f"start {place} was trained with model.precision {then}, and here it is {now}; set it to {then}"
        )
    if run.origin().get("base", base) != base:
        theirs = with_trained_teacher(run.recipe(), run.path).model
        raise UserError(
            f"start {place} was trained on another base; set model.path to {theirs.path}"
            f"{f' and model.loras to {show(theirs.loras)}' if theirs.loras else ''}, as it was there"
        )
    checkpoint = _newest(run)
    tensors, _ = read_safetensors(checkpoint)
    same_models = run.origin().get("models", "") == models
    others: dict[bool, list[str]] = {True: [], False: []}  # what goes on, and what begins anew
    for name, learner in program.learners().items():
        if name in ("student", "critic"):
            _take_over(learner, tensors, name, place)
        else:
            term = name.partition("/")[0]
            fits = same_models and _is_alike(term, run.recipe(), program.recipe)
            taken = fits and _take_over_if_alike(learner, tensors, name)
            if not taken and (why := _nothing_to_do(term, program.recipe)):
                raise UserError(f"start {place} has no {name} like this one: {why}")
            others[taken].append(name)
    best = take_best(run, program.student) if run.recipe().guard.keep == "best" else None
    last = int(checkpoint.stem)
    apart = "" if best is None or best.step == last else f" of round {last} (critic.warmup gives it time to fit)"
    student = "student" if best is None else f"student of round {best.step}, the best look,"
    behind = [f"critic{apart}"] if program.critic else []
    anew = f"; new: {', '.join(others[False])}" if others[False] else ""
    return f"the {' and '.join([student, *behind, *others[True]])} of {place}{anew}"


def _opened(place: str) -> RunFolder:
    if Path(place).is_file():
        raise UserError(
            f"start {place} is a file; name the run folder that it lies in, or a student's LoRA in student.init"
        )
    if not RunFolder.is_one(Path(place)):
        raise UserError(
            f"start {place} is not a run folder (it has no recipe.yaml); name the folder that a training made, or put "
            "it back"
        )
    return RunFolder.open(Path(place))


def _newest(run: RunFolder) -> Path:
    checkpoint = run.newest_checkpoint()
    if checkpoint is None:
        raise UserError(f"start {run.path} has no checkpoint yet; let it train, or leave start empty")
    return checkpoint


def _is_alike(term: str, then: Recipe, now: Recipe) -> bool:
    """Whether two recipes have the same settings of a term, but for its weight, its rates, and where its model lies."""
    loose = {*Optimizer.model_fields, "weight", "model"}
    theirs, own = (getattr(recipe, term).model_dump(exclude=loose) for recipe in (then, now))
    return bool(theirs == own)


def _nothing_to_do(term: str, recipe: Recipe) -> str:
    """Why a term could do nothing if it began anew; "" where it can."""
    return str(terms()[term].misfit(getattr(recipe, term), recipe.model_copy(update={"start": ""})))


def _take_over(learner: Learner, tensors: Mapping[str, Tensor], name: str, place: str) -> None:
    if not any(key.startswith(f"{name}/weight/") for key in tensors):
        raise UserError(f"start {place} trained no {name}; name the LoRA file of its student in student.init instead")
    if not _take_over_if_alike(learner, tensors, name):
        raise UserError(
            f"start {place} has no {name} of this kind and rank; set {name}.kind and {name}.rank as they are there"
        )


def _take_over_if_alike(learner: Learner, tensors: Mapping[str, Tensor], name: str) -> bool:
    """Give a learner the weights of that name, if they are there in its shapes; returns whether they are."""
    found = {n: tensors[f"{name}/weight/{n}"] for n in learner.parameters if f"{name}/weight/{n}" in tensors}
    if any(n not in found or found[n].shape != p.shape for n, p in learner.parameters.items()):
        return False
    averages = {n: tensors[f"{name}/average/{n}"] for n in found if f"{name}/average/{n}" in tensors}
    learner.begin_with(found, {**found, **averages}, average_age(tensors[f"{name}/count"]) if averages else 0)
    return True
