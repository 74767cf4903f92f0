"""What a run leaves for people: samples beside each other, plots, and `report.md` that leads to all of it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from .backbones import backbone
from .evaluation import Row
from .files import opened_safetensors, write_text
from .guard import kept_looks, kept_teacher
from .guard_settings import on_portraits
from .looks import Look, band, looks_in, out_in_a_row, out_of_band, score
from .lora_metadata import LoraMetadata
from .objectives import terms
from .options import all_settings, show, value_of
from .pictures import contact_sheet, side_by_side
from .plots import write_plots
from .run import RunFolder
from .settings import Recipe
from .student_files import DIFFUSERS, FULL_FOLDER, FULL_NATIVE, NATIVE
from .tables import about_clips, findings, markdown_table, number

TALLEST = 240  # px of a frame in the side-by-side video; each clip is written whole beside it
LOOPS = 3  # times that a clip is played in the side-by-side video
SAMPLER_IN_COMFYUI = {"renoise": "lcm", "euler": "euler"}
PLOT_WORDS = {
    "losses": "Losses",
    "scores": "Direction and size of the difference between the two scores",
    "gradients": "Gradient norms",
    "student": "Motion, spread and diversity of the student's samples while it learns",
    "terms": "What the other terms logged",
    "guard": "The student beside its teacher while it learned; dashed: the band",
    "evaluation": "The table's rows side by side",
}


def slug(name: str) -> str:
    """A row's name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write_report(run: RunFolder, recipe: Recipe, rows: Sequence[Row], files: Sequence[Path]) -> Path:
    """Write samples, plots and `report.md` into the run folder and return the report.

    Args:
        run: where everything goes; its metrics are read.
        recipe: of the run.
        rows: of the evaluation, data first; empty when there was none.
        files: the student's.

    Raises:
        UserError: the disk does not serve.
    """
    if rows:
        write_samples(run.path / "samples", recipe, rows)
    plots = write_plots(run.path / "plots", run.metrics(), rows, band(recipe.guard))
    report = run.path / "report.md"
    write_text(report, report_text(run, recipe, rows, files, plots))
    return report


def compared(rows: Sequence[Row]) -> list[Row]:
    """The columns of a comparison: data, then every model; data through the codec look like data."""
    return [rows[0], *[row for row in rows[1:] if row.steps is not None]]


def write_samples(folder: Path, recipe: Recipe, rows: Sequence[Row]) -> None:
    """The shown clips of every row one by one, and all of them side by side as a video and as a sheet."""
    from .data.video import write_png, write_video

    for row in rows:
        for index, clip in enumerate(row.shown):
            write_video(folder / f"{slug(row.name)}-{index}.mp4", clip, recipe.data.fps)
    columns = compared(rows)
    captions = rows[0].captions
    clips, heads = [row.shown for row in columns], [row.name for row in columns]
    once = side_by_side(clips, heads, captions, tallest=TALLEST)
    write_video(folder / "side-by-side.mp4", once, recipe.data.fps, loops=LOOPS)
    write_png(folder / "contact_sheet.png", contact_sheet(clips, heads, captions))


def report_text(
    run: RunFolder, recipe: Recipe, rows: Sequence[Row], files: Sequence[Path], plots: Sequence[Path]
) -> str:
    """The whole report as markdown."""
    parts = [f"# {recipe.name}", *_evaluation(recipe, rows), *_guard(run, recipe), *_pictures(run, rows, plots)]
    parts += [*_use(run, recipe, files), *_settings(recipe)]
    return "\n\n".join(parts) + "\n"


def leavings(recipe: Recipe, rows: Sequence[Row]) -> list[str]:
    """Where the student of a run's rows lies out of its teacher's band, a sentence each; nothing without a student."""
    models = [row for row in rows if row.steps is not None]
    if not recipe.distils or len(models) < 3:
        return []
    teacher, _few, student = models[:3]
    return out_of_band(student.values, teacher.values, band(recipe.guard))


def _evaluation(recipe: Recipe, rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["There was no evaluation (`evaluate.clips` is 0)."]
    headline, lines = findings(rows) if recipe.distils else ("", [])
    lines = [*lines, *leavings(recipe, rows)]
    t, e = recipe.teacher, recipe.evaluate
    few = len(recipe.student.sigmas) - 1
    about = (
        f"{about_clips(rows, recipe.data.folder)} Noise seeds from {e.seed} on. "
        f"Reference sampler: {t.steps} Euler steps, shift {t.shift:g}, {_guidance(t.guidance_scale)}. "
        f"Few Euler steps: {few}, shift {e.few_step_shift:g}, {_guidance(e.few_step_guidance)}. "
        "A guided step makes two model calls."
    )
    if recipe.data.folder == "portraits":
        about += (
            " The video and frame Fréchet distances use features of this project's own networks; they can be compared "
            "with each other and with nothing else."
        )
    found = [headline] if headline else []
    if lines:
        found.append("\n".join(f"- {line}" for line in lines))
    return [*found, "## Evaluation", markdown_table(rows), about]


def _guard(run: RunFolder, recipe: Recipe) -> list[str]:
    """What the quality guard saw; nothing where it was off."""
    g, teacher = recipe.guard, kept_teacher(run)
    looks = looks_in(run.metrics(), teacher, band(g))
    if not looks:
        return []
    asked = "the first clips of the training, which are not held out"
    measure = "mean distance of motion, saturation, sharpness and diversity from the teacher's, relative to it"
    if on_portraits(recipe):
        asked, measure = "validation portraits", "video Fréchet distance to validation portraits"
    about = (
        f"Looks at the student: {len(looks)} (`guard.every` {g.every}), each at {g.clips} clips with the captions of "
        f"{asked}, beside the teacher's by {recipe.teacher.steps} steps from the same noise seeds."
    )
    last = looks[-1]
    at_the_end = ", ".join(f"{name} {number(value)}" for name, value in last.shares.items())
    found = [_left(looks), f"In the last look (round {last.step}): {at_the_end} of the teacher's."]
    for best in kept_looks(run)[-1:]:
        saved = "that look's" if g.keep == "best" else "the last round's (`guard.keep best` saves that look's)"
        value = number(score(best.values, teacher))
        found += [
            f"Best score: {value} in round {best.step} ({measure}; lower is better). The saved student is {saved}."
        ]
    in_a_row = out_in_a_row(looks)
    if 0 < g.stop_after <= in_a_row:
        found.append(f"The run was ended after round {last.step}: {in_a_row} looks in a row were out of the band.")
    return ["## Quality guard", about, "\n".join(f"- {line}" for line in found)]


def _left(looks: Sequence[Look]) -> str:
    """Which numbers left the band, where, and how far."""
    parts = []
    for name in looks[0].shares:
        out = [look for look in looks if name in look.out]
        if out:
            furthest = max((look.shares[name] for look in out), key=lambda share: abs(share - 1))
            rounds = ", ".join(str(look.step) for look in out[:5]) + (", ..." if len(out) > 5 else "")
            parts.append(f"{name} in {len(out)} of {len(looks)} looks (after {rounds}; furthest {number(furthest)})")
    return f"Out of the teacher's band: {'; '.join(parts)}." if parts else "No look was out of the teacher's band."


def _guidance(scale: float) -> str:
    return "no guidance" if scale == 1 else f"guidance_scale {scale:g}"


def _pictures(run: RunFolder, rows: Sequence[Row], plots: Sequence[Path]) -> list[str]:
    found = []
    if rows:
        found += [
            "## Samples",
            "![frames of the samples](samples/contact_sheet.png)",
            "As a video: [side-by-side.mp4](samples/side-by-side.mp4). Single clips: [samples](samples).",
        ]
    if plots:
        found.append("## Plots")
        found += [f"![{PLOT_WORDS[path.stem]}]({path.relative_to(run.path).as_posix()})" for path in plots]
    return found


def _use(run: RunFolder, recipe: Recipe, files: Sequence[Path]) -> list[str]:
    from .students import teacher_note

    about = {
        NATIVE: "LoRA in native keys, for ComfyUI",
        DIFFUSERS: "the same LoRA in diffusers' keys",
        FULL_NATIVE: "the whole model in native keys, for ComfyUI",
        FULL_FOLDER: "the same model as a diffusers folder",
    }
    inside = {file.relative_to(run.path).as_posix(): about.get(file.name, "the student") for file in files}
    listed = "\n".join(f"- [{path}]({path}): {words}" for path, words in inside.items())
    folder = shlex.quote(str(run.path))
    command = f'python -m w2svd_core.sample {folder} --prompt "..." --seed 0 --out clip.mp4'
    found = ["## The student", listed, "To sample it:", f"```sh\n{command}\n```"]
    if recipe.student.kind == "lora" and (note := teacher_note(recipe, run.path)):
        found.insert(2, f"Outside this program, mind: {note}.")
    return found + (_comfyui(recipe, _told(files)) if recipe.distils else [])


def _told(files: Sequence[Path]) -> float | None:
    """The embedded guidance in the header of the student's file; None for a model that takes none."""
    for file in files:
        if file.is_file():
            with opened_safetensors(file) as opened:
                about = LoraMetadata.from_strings(opened.metadata() or {}, file)
            return about.default.embedded_guidance if about else None
    return None


def _comfyui(recipe: Recipe, told: float | None) -> list[str]:
    s = recipe.student
    if reason := backbone(recipe.model.family).not_in_comfyui:
        return [f"Not in ComfyUI: {reason}."]
    load = (
        "`LoraLoaderModelOnly` at strength 1.0 on the model that it was trained on"
        if s.kind == "lora"
        else "`Load Diffusion Model`"
    )
    lines = [
        f"- load the file in native keys with {load};",
        f"- `ManualSigmas`: `{', '.join(f'{sigma:.7g}' for sigma in s.sigmas)}`;",
        f"- `KSamplerSelect`: `{SAMPLER_IN_COMFYUI[s.sampler]}`;",
        "- `SamplerCustom`: cfg 1.0, because the student needs no guidance.",
    ]
    if told is not None:
        lines.insert(1, f"- `FluxGuidance` on the prompt: {told:g}, which the student was told in its training;")
    return ["In ComfyUI:", "\n".join(lines)]


def _settings(recipe: Recipe) -> list[str]:
    keys = ["method", "seed", "model.path", "model.precision", "student.kind", "student.rank"]
    keys += ["student.sigmas", "student.sampler", "student.lr", "student.ema"]
    if recipe.method == "distribution_matching":
        keys += ["critic.kind", "critic.rank", "critic.lr", "critic.updates", "critic.warmup", "matching.alpha_weak"]
        keys += ["matching.guidance_scale", "rollout.source", "rollout.grad_steps", "rollout.reuse"]
        if not recipe.matching.weight:  # without a critic
            keys = [key for key in keys if not key.startswith(("critic.", "matching."))]
        keys += ["start"] if recipe.start else []
        keys += ["matching.ground_truth_weight"] if recipe.matching.ground_truth_weight else []
        on = [name for name, kind in terms().items() if kind.is_on(getattr(recipe, name))]
        keys += [key for key in all_settings() if key.partition(".")[0] in on]
    elif recipe.method == "consistency":
        keys += [key for key in all_settings() if key.startswith("consistency.")]
    keys += ["data.folder", "data.frames", "data.height", "data.width", "data.fps"]
    keys += ["train.steps", "train.batch"]
    lines = [f"| {key} | {show(value_of(recipe, key))} |" for key in keys]
    table = "\n".join(["| setting | value |", "| --- | --- |", *lines])
    return ["## Settings", table, "Every setting: [recipe.yaml](recipe.yaml). Every number: `metrics.jsonl`."]
