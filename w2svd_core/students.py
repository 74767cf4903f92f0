"""What a run hands out: the student, in the formats that others load."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import cast

from . import __version__
from .assembly import Job
from .config import recipe_to_yaml
from .files import dtype_named, whole_folder, write_safetensors
from .flow import sigma_list
from .lora_files import LoraMetadata, Schedule, base_hash, pairs_from_peft, write_lora
from .lora_metadata import METADATA_KEY
from .objectives import terms
from .options import value_of
from .places import parse_lora, rewritten
from .roles import GENERATOR, SharedModel, swapped_in
from .settings import Recipe
from .stages import FIRST, with_trained_teacher
from .student_files import ABOUT, DIFFUSERS, FOLDER, FULL_FOLDER, FULL_NATIVE, NATIVE


def shift_of(sigmas: Sequence[float]) -> float | None:
    """The sigma shift that a list comes from, None for one that was written by hand."""
    steps = len(sigmas) - 1
    if steps < 2 or sigmas[0] != 1:
        return None
    even = 1 - 1 / steps
    shift = round(sigmas[1] * (1 - even) / (even * (1 - sigmas[1])), 3)
    close = all(abs(a - b) < 1e-4 for a, b in zip(sigmas, sigma_list(steps, shift), strict=True))
    return shift if close else None


def schedule_of(recipe: Recipe) -> Schedule:
    """How what a run learned is to be sampled."""
    if recipe.method == "flow_matching":
        t = recipe.teacher
        return Schedule(sigma_list(t.steps, t.shift), "euler", t.shift, t.guidance_scale)
    return Schedule(recipe.student.sigmas, recipe.student.sampler, shift_of(recipe.student.sigmas))


def told(schedule: Schedule, model: SharedModel) -> Schedule:
    """The schedule with the embedded guidance that the student is told, for a model that takes one."""
    return replace(schedule, embedded_guidance=model.embedded_guidance(GENERATOR))


def teacher_note(recipe: Recipe, run: Path) -> str:
    """What a user of a run's LoRA must load beside it; "" where its base is the plain model."""
    taught = with_trained_teacher(recipe, run).model
    if Path(taught.path).name == FULL_NATIVE:  # of this run's first stage, or of a run's that it starts from
        return f"its base is not the plain model but the fine-tuned one, {_in_its_run(Path(taught.path))}"
    loras = [parse_lora(text) for text in taught.loras]
    names = [f"{_in_its_run(path)} at {strength:g}" for path, strength in loras]
    alike = any(path.name == NATIVE for path, _ in loras)
    rename = f", and rename one of the two, since both are called {NATIVE}" if alike else ""
    return f"its base is the model with {' and '.join(names)} in it: load that beside it{rename}" if names else ""


def mixture(recipe: Recipe) -> str:
    """What a distillation by matching is made of: "w2s", "dmd", "dmd+data_forcing", "frame_matching"."""
    matched = ("w2s" if recipe.matching.alpha_weak else "dmd") if recipe.matching.weight else ""
    added = ["ground_truth"] if recipe.matching.ground_truth_weight else []
    added += [name for name, kind in terms().items() if kind.is_on(getattr(recipe, name))]
    return "+".join(filter(None, [matched, *added]))


def student_metadata(recipe: Recipe, model: SharedModel, note: str = "") -> LoraMetadata:
    """What travels inside the student's file: the schedule, and what it was made from and how."""
    m = recipe.matching
    made: dict[str, tuple[str, float | None, float | None]] = {  # method, alpha_weak, guidance
        "distribution_matching": (mixture(recipe), *((m.alpha_weak, m.guidance_scale) if m.weight else (None, None))),
        "consistency": ("lcm", None, cast(float, value_of(recipe, "consistency.guidance_scale"))),
        "flow_matching": ("flow_matching", None, None),
    }
    method, alpha_weak, guidance = made[recipe.method]
    return LoraMetadata(
        method=method,
        schedules=(told(schedule_of(recipe), model),),
        base_class=type(model.base).__name__,
        base_hash=base_hash(model.base_state()),
        base_precision=recipe.model.precision,
        alpha_weak=alpha_weak,
        teacher_guidance=guidance,
        version=__version__,
        recipe=recipe.name,
        note=note,
    )


def save_student(recipe: Recipe, job: Job, folder: Path) -> list[Path]:
    """Write the learned student (its average where there is one) and return the files.

    An adapter becomes two LoRA files, in ComfyUI's native keys and in those of diffusers, where that has the model. A
    full copy becomes a diffusers folder, with its metadata in `w2svd.json`, and one native file.

    Raises:
        UserError: the disk is full; what was there before is still there.
    """
    model, out = job.model, folder / FOLDER
    with swapped_in(job.student.learned(), model):
        metadata = student_metadata(recipe, model, teacher_note(recipe, folder) if model.copy is None else "")
        if model.copy is None:
            pairs = pairs_from_peft(model.base, GENERATOR)
            keys, theirs = model.backbone.keys, model.backbone.in_diffusers(pairs)
            write_lora(out / NATIVE, pairs, metadata, format="native", key_map=keys)
            if not theirs:
                return [out / NATIVE]
            write_lora(out / DIFFUSERS, theirs, metadata, format="diffusers", key_map=keys)
            return [out / NATIVE, out / DIFFUSERS]
        write_native(out / FULL_NATIVE, model, recipe, metadata)
        write_folder(out / FULL_FOLDER, model, recipe, metadata)
    return [out / FULL_NATIVE, out / FULL_FOLDER]


def write_native(path: Path, model: SharedModel, recipe: Recipe, metadata: LoraMetadata) -> None:
    """The full-copy student as one native file, with its architecture and metadata in the header."""
    assert model.copy is not None
    dtype = dtype_named(recipe.student.save_precision)
    state = {name: tensor.to(dtype) for name, tensor in model.backbone.native_state(model.copy).items()}
    header = {
        "recipe": recipe_to_yaml(without_places(recipe)),
        **model.backbone.native_metadata(model.copy),
        **metadata.to_strings(),
    }
    write_safetensors(path, state, header)


def write_folder(path: Path, model: SharedModel, recipe: Recipe, metadata: LoraMetadata) -> None:
    """The full-copy student as a diffusers folder, with its metadata beside the config."""
    assert model.copy is not None
    about = json.loads(metadata.to_strings()[METADATA_KEY])
    with whole_folder(path) as folder:
        model.backbone.save_folder(model.copy, folder, dtype_named(recipe.student.save_precision))
        (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def without_places(recipe: Recipe) -> Recipe:
    """The recipe as it may travel: of each path on the user's machine only the last name, of the cache nothing."""
    return rewritten(recipe, lambda key, place: "" if key == "data.cache" else _last_name(place))


def _in_its_run(file: Path) -> str:
    """The name of a file, and of a run's student, which are all called alike, its place in the run's folder, too."""
    if file.name not in (NATIVE, FULL_NATIVE):
        return file.name
    return "/".join(file.parts[-4:] if file.parts[-3:-2] == (FIRST,) else file.parts[-3:])


def _last_name(path: str) -> str:
    return PureWindowsPath(path).name  # it takes both kinds of slashes
