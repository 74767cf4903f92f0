"""The table: data, teacher and student, measured on the same held-out captions and seeds with as many clips."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .assembly import Encoders
from .condition import Condition
from .data.codec import Video, decode_pixels, to_unit
from .data.portraits import caption, portrait_from_seed, render
from .errors import UserError
from .flow import sigma_list
from .generation import Way, generate
from .metrics.measure import MINIMUM_CLIPS, Reference, measure
from .roles import SharedModel
from .settings import Recipe

SEEDS_PER_CAPTION = 2  # diversity is measured between the clips of one caption
SHOWN = 6  # clips that the contact sheet shows
REFERENCE_OFFSET = 500_000  # held-out seeds of the reference clips lie this far from those of the captions

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what made the clips.
        steps: model steps of a clip; None for data.
        guided: whether each step costs two model calls.
        values: numbers by metric.
        shown: the first clips, `n f h w 3`.
    """

    name: str
    steps: int | None
    guided: bool
    values: dict[str, float]
    shown: Video = field(repr=False)


@dataclass(frozen=True)
class HeldOut:
    """What every row of a table is measured with.

    Attributes:
        captions: one for each clip; runs of SEEDS_PER_CAPTION are alike.
        seeds: noise seed of each clip.
        condition, null: the captions' and the empty prompt's embeddings.
        shape: (c, f, h, w) of a latent.
        reference: statistics of data clips.
        data: clips of the captions' own portraits, `n f h w 3`.
    """

    captions: tuple[str, ...]
    seeds: tuple[int, ...]
    condition: Condition
    null: Condition
    shape: tuple[int, int, int, int]
    reference: Reference
    data: Video = field(repr=False)


def render_many(seeds: Sequence[int], recipe: Recipe, progress: Progress, what: str) -> Video:
    """Portraits straight from the renderer, `n f h w 3`."""
    d = recipe.data
    clips = []
    for seed in seeds:
        clips.append(render(portrait_from_seed(seed), d.frames, d.height, d.width, d.fps))
        progress(what, len(clips), len(seeds))
    return np.stack(clips)


def held_out(recipe: Recipe, encoders: Encoders, progress: Progress) -> HeldOut:
    """Captions, seeds and reference from held-out portraits, the same for every run of equal `evaluate` settings.

    Raises:
        UserError: fewer clips than a Fréchet distance needs.
    """
    count, first = recipe.evaluate.clips, recipe.evaluate.seed
    if count < MINIMUM_CLIPS or count % SEEDS_PER_CAPTION:
        least = math.ceil(MINIMUM_CLIPS / SEEDS_PER_CAPTION) * SEEDS_PER_CAPTION
        raise UserError(f"evaluate.clips is {count}, but the table needs an even number from {least} up; or 0 for none")
    portraits = [first + i for i in range(count)]
    data = render_many(portraits, recipe, progress, "drawing held-out portraits")
    other = render_many([s + REFERENCE_OFFSET for s in portraits], recipe, progress, "drawing the reference")
    captions = [caption(portrait_from_seed(first + i // SEEDS_PER_CAPTION)) for i in range(count)]
    return HeldOut(
        tuple(captions),
        tuple(portraits),
        Condition({"text": encoders.prompts.encode(captions)}),
        Condition({"text": encoders.prompts.encode([""])}),
        encoders.codec.geometry.latent_shape(recipe.data.frames, recipe.data.height, recipe.data.width),
        Reference.of(other),
        data,
    )


def own_captions(test: HeldOut, first: int) -> list[str]:
    """The captions of the data row: each portrait's own."""
    return [caption(portrait_from_seed(first + i)) for i in range(len(test.data))]


def data_row(recipe: Recipe, test: HeldOut) -> Row:
    """First floor: data against other data."""
    values = measure(test.data, own_captions(test, recipe.evaluate.seed), test.reference, 1)
    return Row("data", None, False, values, test.data[:SHOWN])


def codec_row(recipe: Recipe, encoders: Encoders, test: HeldOut, folder: Path) -> Row:
    """Second floor: data that went through mp4 and the codec, which is the best that a model here can draw."""
    from .data.video import read_video, write_video

    d = recipe.data
    path = folder / "through-mp4.mp4"
    parts = []
    for clip in test.data:
        write_video(path, clip, d.fps)
        again = read_video(path, d.frames, d.height, d.width, d.fps)
        with torch.no_grad():
            parts.append(encoders.codec.encode(to_unit(again[None])))
    path.unlink()
    clips = decode_pixels(encoders.codec, torch.cat(parts))
    values = measure(clips, own_captions(test, recipe.evaluate.seed), test.reference, 1)
    return Row("data through mp4 and codec", None, False, values, clips[:SHOWN])


def model_row(
    name: str,
    model: SharedModel,
    way: Way,
    recipe: Recipe,
    encoders: Encoders,
    test: HeldOut,
    progress: Progress,
) -> Row:
    """Clips of a role along a way, measured."""
    latents = generate(
        model, way, test.condition, test.null, test.shape, test.seeds, batch=recipe.evaluate.batch,
        progress=lambda done, count: progress(f"sampling {name}", done, count),
    )  # fmt: skip
    clips = decode_pixels(encoders.codec, latents)
    values = measure(clips, list(test.captions), test.reference, SEEDS_PER_CAPTION)
    shown = clips[: SHOWN * SEEDS_PER_CAPTION : SEEDS_PER_CAPTION]  # the first captions, a clip of each
    return Row(name, way.steps, way.guidance_scale != 1.0, values, shown)


def teacher_way(recipe: Recipe) -> Way:
    """The reference sampler."""
    t = recipe.teacher
    return Way("teacher", sigma_list(t.steps, t.shift), "euler", t.guidance_scale)


def few_step_way(recipe: Recipe) -> Way:
    """The untrained teacher by as many Euler steps as the student takes."""
    e = recipe.evaluate
    return Way("teacher", sigma_list(len(recipe.student.sigmas) - 1, e.few_step_shift), "euler", e.few_step_guidance)


def student_way(recipe: Recipe) -> Way:
    """The student as it was trained."""
    return Way("generator", recipe.student.sigmas, recipe.student.sampler)
