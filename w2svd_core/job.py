"""A whole run: assemble, train, save the student, evaluate, report. The doors and the nodes call this."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from .assembly import Job, assemble
from .backbones.base import Facts
from .config import recipe_to_yaml
from .data.codec import Video, decode_pixels
from .data.latents import Progress
from .data.video import write_video
from .distillation import Distillation
from .errors import UserError, out_of_memory
from .evaluation import (
    SHOWN,
    Row,
    check_own_clips,
    codec_row,
    data_row,
    few_step_way,
    held_out,
    model_row,
    student_way,
    teacher_way,
)
from .files import opened_safetensors
from .generation import Way, generate
from .guard import QualityGuard, take_best
from .lora_files import base_hash
from .memory import free_memory
from .metrics.real_networks import check_real_networks
from .pictures import side_by_side
from .report import leavings, write_report
from .roles import swapped_in
from .run import RunFolder
from .settings import Recipe
from .stages import FIRST, first_stage, is_trained, with_trained_teacher
from .starting import other_steps, start_from, with_its_teacher
from .students import save_student
from .trainer import Interrupted, train
from .watch import Terminal, Watch

Maker = Callable[[Recipe, Any, Progress], Job]  # `assembly.assemble`, or a stand-in for a model that is there already


def accelerator_for(recipe: Recipe, folder: Path) -> Any:
    """accelerate's Accelerator with the recipe's tracker, which `start_tracker` starts."""
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("several processes in one run are not supported yet; start the training with plain python")
    tracker = recipe.train.tracker
    with _tracker_faults(tracker):
        return Accelerator(
            log_with=None if tracker == "none" else tracker,
            project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder)),
        )


def start_tracker(accelerator: Any, recipe: Recipe) -> None:
    """Let the recipe's tracker open its files."""
    tracker = recipe.train.tracker
    with _tracker_faults(tracker):
        if tracker != "none":
            accelerator.init_trackers("tensorboard" if tracker == "tensorboard" else "w2svd")


@contextlib.contextmanager
def _tracker_faults(tracker: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each tracker has its own: not installed, no account, no network, no disk
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"train.tracker {tracker} can't be used ({reason}); mend that, or set train.tracker none"
        ) from error


def carry_out(recipe: Recipe, folder: Path, watch: Watch | None = None, make: Maker = assemble) -> int:
    """Do a run, or what is left of it, in a folder, after the fine-tune that it names.

    Args:
        watch: who looks on; a terminal by default.
        make: puts the parts together, for a model that is in memory already.

    Returns:
        The exit code: 0, or 130 for a run that was stopped and has saved its state.

    Raises:
        UserError: something in the recipe, the data or the disk does not serve.
    """
    watch = watch or Terminal()
    if not RunFolder(folder).newest_checkpoint():
        plain, recipe = recipe, with_its_teacher(recipe)
        if recipe is not plain:
            watch.say(f"the teacher is the one that was fine-tuned in start {recipe.start}")
    first = folder / FIRST
    if recipe.first and not is_trained(folder):
        check_second_stage(recipe, folder)
        fine = RunFolder.open(first).recipe() if RunFolder.is_one(first) else first_stage(recipe)
        if not RunFolder.is_one(folder):
            RunFolder.create(recipe, folder)
        watch.say(f"first stage: fine-tuning the teacher by {recipe.first}")
        code = one_stage(fine, first, folder, watch, make)
        if code:
            return code
        free_memory()  # of the first teacher, before the second is loaded
    return one_stage(recipe, folder, folder, watch, make)


def one_stage(recipe: Recipe, folder: Path, resume: Path, watch: Watch, make: Maker) -> int:
    """One training with all that follows it; `resume` is the folder that a user goes on with."""
    accelerator = accelerator_for(recipe, folder)
    there = RunFolder.is_one(folder)
    check_places(recipe)
    job = make(with_trained_teacher(begun(recipe, folder), folder), accelerator, watch)
    before = base_hash(job.model.base_state())
    if recipe.start and isinstance(job.program, Distillation) and not RunFolder(folder).newest_checkpoint():
        models = other_models(job).get("models", "")
        taken = start_from(job.program, recipe.start, before, models)  # refused before there is a run
        watch.say(f"starting from {taken}")
        for line in other_steps(recipe):
            watch.say(f"warning: {line}")
    run = RunFolder.open(folder) if there else RunFolder.create(recipe, folder)
    with run.held() if accelerator.is_main_process else contextlib.nullcontext():
        return trained(run, job, before, accelerator, resume, watch)


def check_places(recipe: Recipe) -> None:
    """Raise a UserError where a file of the user's is not there, or does not serve, that is read late."""
    if recipe.evaluate.clips:
        check_real_networks(recipe.evaluate.fid_network, recipe.evaluate.fvd_network, recipe.evaluate.clip_model)
        check_own_clips(recipe)


def check_second_stage(recipe: Recipe, folder: Path) -> None:
    """Raise a UserError before the hours of a fine-tune for what the distillation behind it names and is not there."""
    accelerator_for(recipe, folder)
    check_places(recipe)
    if recipe.student.init:
        with opened_safetensors(Path(recipe.student.init)):
            pass  # it is a file that can be read


def begun(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe as a run goes on with it: the LoRA that the student began with is in its checkpoints."""
    if not RunFolder(folder).newest_checkpoint():
        return recipe
    return recipe.model_copy(update={"student": recipe.student.model_copy(update={"init": ""})})


def trained(run: RunFolder, job: Job, before: str, accelerator: Any, resume: Path, watch: Watch) -> int:
    """Train from the newest checkpoint on, and hand out; `before` is the hash of the frozen base."""
    recipe = run.recipe()
    run.made_of = {"recipe": recipe_to_yaml(recipe), "base": before, "data": job.data.fingerprint()} | other_models(job)
    run.refuse_fewer_steps(recipe)
    start, tensors = run.latest_checkpoint()
    start_tracker(accelerator, recipe)
    if recipe.model.init == "load" and recipe.model.path != "bundled":
        facts = job.model.backbone.facts(job.model.base)
        watch.say(f"model.path {recipe.model.path}: {facts.name}")
        for line in [*unusual(recipe, facts), *job.model.backbone.doubts(recipe.model.path)]:
            watch.say(f"warning: {line}")
    elif recipe.distils and is_plain_portraits(recipe) and recipe.data.folder != "portraits":
        watch.say(
            f"warning: model.path bundled is the small teacher of drawn portraits, which {recipe.data.folder} does not "
            "change; to distil a model of your own name its recipe, such as wan_t2v_1_3b"
        )
    if isinstance(job.program, Distillation):
        for line in job.program.remarks():
            watch.say(f"warning: {line}")
    if tensors:
        job.program.load_tensors(tensors)
        tensors.clear()  # else they stay beside the weights to the end
        watch.say(f"going on after step {start} of {job.program.rounds}")
    try:
        guard = QualityGuard(recipe, run, job, start, watch) if recipe.guard.every else None
        if guard and guard.lacks(start):
            run.log(start, guard.look(start)[0])
        if guard and guard.enough and start < job.program.rounds:
            watch.say("guard.stop_after has ended this run; to train longer, raise it, or set it to 0")
        else:
            train(
                job.program, run, recipe.train, start=start, main=accelerator.is_main_process,
                log=lambda values, step: accelerator.log(values, step=step),
                on_sample=lambda step: show(recipe, run, job, step, watch),
                look=guard.look if guard else lambda step: ({}, False), watch=watch,
            )  # fmt: skip
    except Interrupted as stopped:
        print(f"\nstopped after step {stopped.index}, everything is saved; go on with --resume {resume}")
        return 130
    finally:
        end_tracker(accelerator, watch)
    if base_hash(job.model.base_state()) != before:
        raise UserError(f"the frozen base changed during the run {run.path}; please report this, it must never happen")
    if accelerator.is_main_process:
        finish(recipe, run, job, watch)
    return 0


def is_plain_portraits(recipe: Recipe) -> bool:
    """Whether the teacher is the bundled one as it is."""
    return recipe.model.path == "bundled" and not (recipe.first or recipe.model.loras)


def other_models(job: Job) -> dict[str, str]:
    """The hash of the frozen models that terms bring along; nothing without any."""
    terms = job.program.terms if isinstance(job.program, Distillation) else {}
    held = {f"{name}/{key}": tensor for name, term in terms.items() for key, tensor in term.models().items()}
    return {"models": base_hash(held)} if held else {}


def unusual(recipe: Recipe, facts: Facts) -> list[str]:
    """Where a recipe asks a published model for what it is not made for."""
    found = []
    if facts.guidance_scale == 1 < recipe.matching.guidance_scale:
        found.append(
            f"matching.guidance_scale is {recipe.matching.guidance_scale:g}, and {facts.name} is guided as it is; 1 "
            "takes half as long"
        )
    if not facts.repository:  # of another size: nothing more is known
        return found
    if recipe.data.fps != facts.fps:
        found.append(f"data.fps is {recipe.data.fps:g}, and {facts.name} makes clips of {facts.fps:g} frames a second")
    if recipe.data.frames > facts.frames:
        found.append(f"data.frames is {recipe.data.frames}, and {facts.name} makes clips of up to {facts.frames}")
    if recipe.teacher.guidance_scale == 1 != facts.guidance_scale:
        found.append(f"teacher.guidance_scale is 1, and {facts.name} is sampled with {facts.guidance_scale:g}")
    return found


def end_tracker(accelerator: Any, watch: Watch) -> None:
    """Close the tracker; its own trouble (a full disk, say) must not hide how the training ended."""
    try:
        accelerator.end_training()
    except Exception as error:
        watch.say(f"warning: the tracker could not be closed ({error})")


def preview(recipe: Recipe, run: RunFolder, job: Job, step: int) -> Video:
    """Clips of the student as it is now, into `samples/step-<step>.mp4`: the same captions and seeds every time."""
    way = student_way(recipe) if recipe.distils else ways_of(recipe)[0][1]
    shape = job.data.shape([0])
    rows = [row for row in range(min(SHOWN, len(job.data))) if job.data.shape([row]) == shape]
    _, condition = job.data.batch(rows, job.model.device)
    with swapped_in(job.student.learned(), job.model):
        batch = recipe.evaluate.batch
        latents = generate(job.model, way, condition, job.data.null, shape, rows, batch=batch)
    clips = decode_pixels(job.source.load_codec(), latents)
    video = side_by_side([clips], [f"step {step}"], [job.data.captions[row] for row in rows])
    write_video(run.path / "samples" / f"step-{step:06d}.mp4", video, recipe.data.fps)
    return clips


def show(recipe: Recipe, run: RunFolder, job: Job, step: int, watch: Watch) -> None:
    """A preview for whoever looks on; too little memory or a full disk for it is told, and ends no training."""
    try:
        watch.preview(step, preview(recipe, run, job, step))
    except Exception as error:
        if not (isinstance(error, UserError) or out_of_memory(error)):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        watch.say(f"warning: the student's clips of round {step} could not be shown ({reason}); nothing else is lost")


def finish(recipe: Recipe, run: RunFolder, job: Job, watch: Watch) -> None:
    """Save the student, measure it beside its teacher, write the report, and say where everything is."""
    step = run.newest_step()
    if recipe.guard.keep == "best" and (best := take_best(run, job.student)):
        step = best.step
        watch.say(f"guard: the student of round {step}, the best look, is the one that is saved")
    files = save_student(recipe, job, run.path)
    if not recipe.evaluate.clips:  # the only pictures of the end
        show(recipe, run, job, step, watch)
    rows = evaluate_job(recipe, job, run.path, watch) if recipe.evaluate.clips else []
    for line in leavings(recipe, rows):
        watch.say(f"warning: {line}")
    report = write_report(run, recipe, rows, files)
    print(f"\nDone. Look at {report}")
    for file in files:
        print(f"  student: {file}")


def evaluate_job(recipe: Recipe, job: Job, folder: Path, watch: Watch) -> list[Row]:
    """The rows of a run's own table."""
    test = held_out(recipe, job.source, watch)
    rows = [data_row(test), codec_row(recipe, test, folder)]
    with swapped_in(job.student.learned(), job.model):
        for name, way in ways_of(recipe):
            rows.append(model_row(name, job.model, way, recipe, test, watch))
    return rows


def ways_of(recipe: Recipe) -> list[tuple[str, Way]]:
    """The model rows of a table: teacher, few-step teacher, student; or a trained model by both samplers."""
    if not recipe.distils:
        return [
            ("model, reference sampler", replace(teacher_way(recipe), role="generator")),
            ("model, few Euler steps", replace(few_step_way(recipe), role="generator")),
        ]
    steps = student_way(recipe).steps
    return [
        (f"teacher, {recipe.teacher.steps} steps", teacher_way(recipe)),
        (f"teacher, {steps} Euler steps", few_step_way(recipe)),
        (f"student, {steps} steps", student_way(recipe)),
    ]
