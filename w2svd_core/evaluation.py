"""The table: data, teacher and student, the models measured on the same captions and seeds with as many clips.

Captions and data are held-out portraits, or the user's own clips where the recipe names a folder of them. The user's
clips are those of the training, and the networks behind the Fréchet distances know nothing but portraits: such a table
has fewer numbers, and nothing in it is held out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .assembly import Encoders
from .condition import Condition
from .data.clips import list_clips
from .data.codec import Video, decode_pixels, to_unit
from .data.portraits import caption, portrait_from_seed, render
from .data.video import read_video, write_video
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
        clips: how many were measured.
        captions: of the shown clips.
        shown: the first clips, `n f h w 3`.
    """

    name: str
    steps: int | None
    guided: bool
    values: dict[str, float]
    clips: int
    captions: tuple[str, ...]
    shown: Video = field(repr=False)


@dataclass(frozen=True)
class HeldOut:
    """What every row of a table is measured with.

    Attributes:
        captions: one for each clip of a model; runs of SEEDS_PER_CAPTION are alike.
        seeds: noise seed of each clip of a model.
        condition, null: the captions' and the empty prompt's embeddings.
        shape: (c, f, h, w) of a latent.
        reference: statistics of other portraits; None with the user's own clips.
        data: clips to compare with, `n f h w 3`; not always as many as a model's.
        data_captions: one for each of them; a model's captions are the first of these.
    """

    captions: tuple[str, ...]
    seeds: tuple[int, ...]
    condition: Condition
    null: Condition
    shape: tuple[int, int, int, int]
    reference: Reference | None
    data: Video = field(repr=False)
    data_captions: tuple[str, ...]


def render_many(seeds: Sequence[int], recipe: Recipe, progress: Progress, what: str) -> Video:
    """Portraits straight from the renderer, `n f h w 3`."""
    d = recipe.data
    clips = []
    for seed in seeds:
        clips.append(render(portrait_from_seed(seed), d.frames, d.height, d.width, d.fps))
        progress(what, len(clips), len(seeds))
    return np.stack(clips)


def held_out(recipe: Recipe, encoders: Encoders, progress: Progress) -> HeldOut:
    """What a table is measured with, the same for every run of equal `data` and `evaluate` settings.

    Raises:
        UserError: fewer clips than a Fréchet distance needs, or a folder or clip that does not serve.
    """
    d, count = recipe.data, recipe.evaluate.clips
    if count < MINIMUM_CLIPS or count % SEEDS_PER_CAPTION:
        least = math.ceil(MINIMUM_CLIPS / SEEDS_PER_CAPTION) * SEEDS_PER_CAPTION
        raise UserError(f"evaluate.clips is {count}, but the table needs an even number from {least} up; or 0 for none")
    data, own, reference = (held_out_portraits if d.folder == "portraits" else own_clips)(recipe, progress)
    captions = [own[i // SEEDS_PER_CAPTION % len(own)] for i in range(count)]
    return HeldOut(
        captions=tuple(captions),
        seeds=tuple(recipe.evaluate.seed + i for i in range(count)),
        condition=encoders.prompts.encode(captions),
        null=encoders.prompts.encode([""]),
        shape=encoders.codec.geometry.latent_shape(d.frames, d.height, d.width),
        reference=reference,
        data=data,
        data_captions=tuple(own),
    )


def held_out_portraits(recipe: Recipe, progress: Progress) -> tuple[Video, list[str], Reference]:
    """Portraits that no training saw, their captions, and the statistics of as many others."""
    first, count = recipe.evaluate.seed, recipe.evaluate.clips
    seeds = range(first, first + count)
    data = render_many(seeds, recipe, progress, "drawing held-out portraits")
    other = render_many([seed + REFERENCE_OFFSET for seed in seeds], recipe, progress, "drawing the reference")
    return data, [caption(portrait_from_seed(seed)) for seed in seeds], Reference.of(other)


def own_clips(recipe: Recipe, progress: Progress) -> tuple[Video, list[str], None]:
    """The first clips of the user's folder, at most `evaluate.clips`, and their captions."""
    d = recipe.data
    clips = list_clips(Path(d.folder))[: recipe.evaluate.clips]
    videos = []
    for clip in clips:
        videos.append(read_video(clip.path, d.frames, d.height, d.width, d.fps))
        progress("reading your clips", len(videos), len(clips))
    return np.stack(videos), [clip.caption for clip in clips], None


def data_row(test: HeldOut) -> Row:
    """First floor: the data themselves; portraits are measured against other portraits."""
    return _floor("data", test.data, test)


def codec_row(recipe: Recipe, encoders: Encoders, test: HeldOut, folder: Path) -> Row:
    """Second floor: data that went through mp4 and the codec, which is the best that a model here can draw."""
    d = recipe.data
    path = folder / "through-mp4.mp4"
    parts = []
    for clip in test.data:
        write_video(path, clip, d.fps)
        again = read_video(path, d.frames, d.height, d.width, d.fps)
        with torch.no_grad():
            parts.append(encoders.codec.encode(to_unit(again[None])))
    path.unlink()
    return _floor("data through mp4 and codec", decode_pixels(encoders.codec, torch.cat(parts)), test)


def _floor(name: str, clips: Video, test: HeldOut) -> Row:
    values = measure(clips, test.data_captions, test.reference, 1)
    return Row(name, None, False, values, len(clips), test.data_captions[:SHOWN], clips[:SHOWN])


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
    values = measure(clips, test.captions, test.reference, SEEDS_PER_CAPTION)
    count = min(SHOWN, len(test.data))
    first = slice(0, count * SEEDS_PER_CAPTION, SEEDS_PER_CAPTION)  # a clip of each caption that data are shown of
    return Row(name, way.steps, way.guidance_scale != 1.0, values, len(clips), test.captions[first], clips[first])


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
