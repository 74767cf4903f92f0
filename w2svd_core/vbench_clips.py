"""Clips of a student for VBench: five of each prompt, where and as the official tool looks for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .asking import ask
from .data.codec import Video, decode_pixels
from .data.encoder_source import EncoderSource
from .data.latents import Progress
from .data.video import write_video
from .errors import UserError
from .evaluation import held_out_portraits, own_clips, student_way
from .generation import generate
from .loading import Loaded
from .metrics.vbench import CLIPS, begin, how_to_score, lay_out, write_first_frame
from .settings import Recipe


def subjects(recipe: Recipe, source: EncoderSource, prompts: Sequence[str], progress: Progress) -> dict[str, Video]:
    """Prompts with the picture, `h w 3`, that their clips start from (black for a model that needs none).

    Args:
        prompts: the user's; none takes the captions of the data, with their first frames.

    Raises:
        UserError: prompts of the user's for a model that needs a first frame for each, or neither prompts nor data.
    """
    d = recipe.data
    if prompts:
        if source.starts:
            raise UserError(
                "this model needs a first frame for each prompt; leave --prompts out, and captions and "
                "first frames of the data are taken"
            )
        return dict.fromkeys([prompt.strip() for prompt in prompts], np.zeros((d.height, d.width, 3), np.uint8))
    if not recipe.evaluate.clips:
        raise UserError(
            "clips for VBench need prompts; name a file of them in --prompts, or say with --clips how many "
            "clips of the data give their captions"
        )
    data, captions, *_ = (held_out_portraits if d.folder == "portraits" else own_clips)(recipe, progress)
    return {caption.strip(): clip[0] for caption, clip in zip(captions, data, strict=True)}


def write_vbench(
    folder: Path, recipe: Recipe, loaded: Loaded, source: EncoderSource, subjects: dict[str, Video], progress: Progress
) -> str:
    """Make the clips that are not there yet; returns the commands that score them.

    Args:
        folder: for this model alone.
        subjects: of :func:`subjects`.

    Raises:
        UserError: the folder holds something else, or the disk is full.
    """
    d, way = recipe.data, student_way(recipe)
    prompts = list(subjects)
    made_by = {
        "base": loaded.base, "recipe": recipe.name, "sampler": way.sampler,
        "sigmas": ",".join(f"{sigma:g}" for sigma in way.sigmas), "size": f"{d.frames}x{d.height}x{d.width}",
    }  # fmt: skip
    clips = lay_out(prompts, folder, seed=recipe.evaluate.seed)
    missing = begin(folder, clips, made_by)
    pictures = None
    if source.starts:
        pictures = np.stack([subjects[clip.prompt] for clip in missing]) if missing else None
        for prompt in prompts:
            write_first_frame(folder, prompt, prompts, subjects[prompt])
    if missing:
        asked = ask(source, d, [clip.prompt for clip in missing], pictures)
        for row, clip in enumerate(missing):
            some = slice(row, row + 1)
            latents = generate(loaded.model, way, asked.condition[some], asked.null, asked.shape, [clip.seed], batch=1)
            write_video(clip.path, decode_pixels(asked.codec, latents)[0], d.fps)
            progress(f"clips for VBench ({CLIPS} of each prompt)", row + 1, len(missing))
    return how_to_score(folder)
