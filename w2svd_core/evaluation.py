"""The table: data, teacher and student, the models measured on the same captions and seeds with as many clips.

Captions and data are held-out portraits, or the user's own clips where the recipe names a folder of them. The user's
clips are those of the training, and the bundled networks behind the Fréchet distances know nothing but portraits: such
a table has fewer numbers, and nothing in it is held out. Real feature networks, where the recipe names files of them,
tell something of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .asking import Asked, ask
from .data.clips import list_clips
from .data.codec import Video, decode_pixels, to_signed
from .data.encoder_source import EncoderSource
from .data.portraits import caption, portrait_from_seed, render
from .data.video import read_video, write_video
from .errors import UserError
from .flow import sigma_list
from .generation import Way, generate
from .guard_settings import REFERENCE_OFFSET
from .metrics.frechet import FeatureStats
from .metrics.identity import METRIC as IDENTITY
from .metrics.identity import identity
from .metrics.measure import MINIMUM_CLIPS, Reference, measure
from .metrics.networks import load_network
from .metrics.real_networks import RealNetworks
from .roles import SharedModel
from .settings import Recipe

SEEDS_PER_CAPTION = 2  # diversity is measured between the clips of one caption
SHOWN = 6  # clips that the contact sheet shows

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
        judges: the files of real feature networks, by the metric that they made.
    """

    name: str
    steps: int | None
    guided: bool
    values: dict[str, float]
    clips: int
    captions: tuple[str, ...]
    shown: Video = field(repr=False)
    judges: Mapping[str, str] = field(default_factory=dict)

    @property
    def calls(self) -> int | None:
        """Model calls of a clip; None for data."""
        return None if self.steps is None else self.steps * (2 if self.guided else 1)


@dataclass(frozen=True)
class HeldOut:
    """What every row of a table is measured with.

    Attributes:
        captions: one for each clip of a model; runs of SEEDS_PER_CAPTION are alike.
        seeds: noise seed of each clip of a model.
        asked: captions and first frames as models take them.
        reference: statistics of other portraits; None with the user's own clips.
        data: clips to compare with, `n f h w 3`; not always as many as a model's.
        data_captions: one for each of them; a model's captions are the first of these.
        networks: real ones, of the user's files.
        statistics: in them, of what models are compared with: other portraits, or the user's own clips.
        starts: the first frames that the clips of a model start from, `n h w 3`; None where they start from text alone.
    """

    captions: tuple[str, ...]
    seeds: tuple[int, ...]
    asked: Asked
    reference: Reference | None
    data: Video = field(repr=False)
    data_captions: tuple[str, ...]
    networks: RealNetworks = field(default_factory=RealNetworks)
    statistics: Mapping[str, FeatureStats] = field(default_factory=dict, repr=False)
    starts: Video | None = field(default=None, repr=False)


def render_many(seeds: Sequence[int], recipe: Recipe, progress: Progress, what: str) -> Video:
    """Portraits straight from the renderer, `n f h w 3`."""
    d = recipe.data
    clips = []
    for seed in seeds:
        clips.append(render(portrait_from_seed(seed), d.frames, d.height, d.width, d.fps))
        progress(what, len(clips), len(seeds))
    return np.stack(clips)


def held_out(recipe: Recipe, source: EncoderSource, progress: Progress) -> HeldOut:
    """What a table is measured with, the same for every run of equal `data` and `evaluate` settings.

    Raises:
        UserError: fewer clips than a Fréchet distance needs, or a folder or clip that does not serve.
    """
    d, count = recipe.data, recipe.evaluate.clips
    if count < MINIMUM_CLIPS or count % SEEDS_PER_CAPTION:
        least = math.ceil(MINIMUM_CLIPS / SEEDS_PER_CAPTION) * SEEDS_PER_CAPTION
        raise UserError(f"evaluate.clips is {count}, but the table needs an even number from {least} up; or 0 for none")
    e = recipe.evaluate
    networks = RealNetworks.load(e.fid_network, e.fvd_network, e.clip_model, progress=progress)
    data, own, other, reference = (held_out_portraits if d.folder == "portraits" else own_clips)(recipe, progress)
    numbers = [i // SEEDS_PER_CAPTION % len(own) for i in range(count)]  # of the clip whose caption is taken
    captions = [own[number] for number in numbers]
    starts = data[numbers, 0] if source.starts else None
    asked = ask(source, d, captions, starts if starts is None else list(starts))
    return HeldOut(
        captions=tuple(captions),
        seeds=tuple(recipe.evaluate.seed + i for i in range(count)),
        asked=asked,
        reference=reference,
        data=data,
        data_captions=tuple(own),
        networks=networks,
        statistics=networks.statistics(other),
        starts=starts,
    )


def held_out_portraits(recipe: Recipe, progress: Progress) -> tuple[Video, list[str], Video, Reference]:
    """Portraits that no training saw, their captions, as many others, and the statistics of those."""
    first, count = recipe.evaluate.seed, recipe.evaluate.clips
    seeds = range(first, first + count)
    data = render_many(seeds, recipe, progress, "drawing held-out portraits")
    other = render_many([seed + REFERENCE_OFFSET for seed in seeds], recipe, progress, "drawing the reference")
    return data, [caption(portrait_from_seed(seed)) for seed in seeds], other, Reference.of(other)


def own_clips(recipe: Recipe, progress: Progress) -> tuple[Video, list[str], Video, None]:
    """Clips from all over the user's folder, at most `evaluate.clips`, their captions, and the same clips once more.

    Clips that are broken or too short are left out, as a preparation leaves them out. The first half is as spread over
    the folder as the whole: those are the captions that models are given, of what may be sorted by subject.

    Raises:
        UserError: none can be used; it is the first one's fault.
    """
    d = recipe.data
    clips = list_clips(Path(d.folder))
    count = min(len(clips), recipe.evaluate.clips)
    found: dict[int, Video] = {}
    faults = []
    for place in _spread_out(len(clips), count):
        try:
            found[place] = read_video(clips[place].path, d.frames, d.height, d.width, d.fps)
        except UserError as error:
            faults.append(error)
            continue
        progress("reading your clips", len(found), count)
        if len(found) == count:
            break
    if not found:
        raise faults[0]
    kept = sorted(found)
    if len(kept) * SEEDS_PER_CAPTION > recipe.evaluate.clips:  # not all captions are asked for
        kept = [*kept[::2], *kept[1::2]]
    data = np.stack([found[place] for place in kept])
    return data, [clips[place].caption for place in kept], data, None


def _spread_out(total: int, count: int) -> list[int]:
    """All places from 0 to `total`, `count` ones from all over them first."""
    first = [place * total // count for place in range(count)]
    return [*first, *sorted(set(range(total)) - set(first))]


def check_own_clips(recipe: Recipe) -> None:
    """Raise the first clip's UserError where a table is wanted and none of the user's clips is long enough for it.

    A training may take shorter ones (`data.min_frames`), and would be over before it was told.
    """
    d = recipe.data
    if not recipe.evaluate.clips or d.folder == "portraits":
        return
    fault = None
    for clip in list_clips(Path(d.folder)):
        try:
            read_video(clip.path, d.frames, d.height, d.width, d.fps)
            return
        except UserError as error:
            fault = fault or error
    raise UserError(f"evaluate.clips has nothing to measure ({fault}); set it to 0, or lower data.frames") from fault


def data_row(test: HeldOut) -> Row:
    """First floor: the data themselves; portraits are measured against other portraits."""
    same = test.reference is None  # own clips: they are what would be compared with
    return _floor("data", test.data, test, {} if same else test.statistics)


def codec_row(recipe: Recipe, test: HeldOut, folder: Path) -> Row:
    """Second floor: data that went through mp4 and the codec, which is the best that a model here can draw."""
    d = recipe.data
    path = folder / "through-mp4.mp4"
    parts = []
    for clip in test.data:
        write_video(path, clip, d.fps)
        again = read_video(path, d.frames, d.height, d.width, d.fps)
        with torch.no_grad():
            parts.append(test.asked.codec.encode(to_signed(again[None])))
    path.unlink()
    clips = decode_pixels(test.asked.codec, torch.cat(parts))
    return _floor("data through mp4 and codec", clips, test, test.statistics)


def _floor(name: str, clips: Video, test: HeldOut, statistics: Mapping[str, FeatureStats]) -> Row:
    starts = None if test.starts is None else test.data[:, 0]
    values = _measured(clips, test.data_captions, 1, test, statistics, starts)
    shown = clips[:SHOWN].copy()  # a view would hold all of them
    return Row(name, None, False, values, len(clips), test.data_captions[:SHOWN], shown, _judges(values, test))


def _measured(
    clips: Video,
    captions: tuple[str, ...],
    group_size: int,
    test: HeldOut,
    statistics: Mapping[str, FeatureStats],
    starts: Video | None,
) -> dict[str, float]:
    """The numbers of every network that knows something of the clips."""
    values = measure(clips, captions, test.reference, group_size)
    values |= test.networks.measure(clips, captions, statistics)
    if starts is not None and test.reference is not None:
        likeness = identity(clips, starts, test.reference.frame.mean, load_network("frame"))
        values[IDENTITY] = float(likeness.mean())
    return values


def _judges(values: Mapping[str, float], test: HeldOut) -> dict[str, str]:
    return {metric: words for metric, words in test.networks.files().items() if metric in values}


def model_row(
    name: str,
    model: SharedModel,
    way: Way,
    recipe: Recipe,
    test: HeldOut,
    progress: Progress,
) -> Row:
    """Clips of a role along a way, measured."""
    conditions = test.asked.condition(range(len(test.seeds)))
    latents = generate(
        model, way, conditions, test.asked.null, test.asked.shape, test.seeds, batch=recipe.evaluate.batch,
        progress=lambda done, count: progress(f"sampling {name}", done, count),
    )  # fmt: skip
    clips = decode_pixels(test.asked.codec, latents)
    values = _measured(clips, test.captions, SEEDS_PER_CAPTION, test, test.statistics, test.starts)
    count = min(SHOWN, len(test.data))
    first = slice(0, count * SEEDS_PER_CAPTION, SEEDS_PER_CAPTION)  # a clip of each caption that data are shown of
    guided = way.guidance_scale != 1.0
    judges = _judges(values, test)
    return Row(name, way.steps, guided, values, len(clips), test.captions[first], clips[first].copy(), judges)


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
