"""Clips of a student for VBench: five of each prompt, where and as the official tool looks for them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .asking import Asked, ask
from .data.codec import decode_pixels
from .data.decoding import Image
from .data.encoder_source import EncoderSource
from .data.image_folders import IMAGES
from .data.latents import Progress
from .data.video import read_first_frame, write_video
from .errors import UserError
from .evaluation import held_out_portraits, own_clips, student_way
from .generation import generate
from .hashing import tensors_hash
from .loading import Loaded
from .metrics.vbench import CLIPS, begin, file_stems, how_to_score, lay_out, write_first_frame
from .settings import Recipe


@dataclass(frozen=True)
class Subjects:
    """What the clips show.

    Attributes:
        prompts: all different.
        pictures: that they start from, (H, W, 3) each; None for a model that makes clips from text alone.
        asked: the same as models take it, a row for each prompt.
    """

    prompts: Sequence[str]
    pictures: Sequence[Image] | None
    asked: Asked


def subjects(
    recipe: Recipe, source: EncoderSource, prompts: Sequence[str], images: Path | None, progress: Progress
) -> Subjects:
    """Encode what all clips show, before any model takes its memory.

    Args:
        prompts: the user's; none takes the captions of the data, with their first frames.
        images: folder of the prompts' first frames, named by their prompts, as VBench-I2V has them; for a model that
            starts from one.

    Raises:
        UserError: a prompt without its first frame, or neither prompts nor data.
    """
    if prompts:
        different = list(dict.fromkeys(prompt.strip() for prompt in prompts))
        pictures = [_picture_of(prompt, images, recipe) for prompt in different] if source.starts else None
        return Subjects(different, pictures, ask(source, recipe.data, different, pictures))
    if not recipe.evaluate.clips:
        raise UserError(
            "clips for VBench need prompts; name a file of them in --prompts, or say with --clips how many of "
            "the data give their captions"
        )
    data, captions, *_ = (held_out_portraits if recipe.data.folder == "portraits" else own_clips)(recipe, progress)
    first = {caption.strip(): clip[0] for caption, clip in zip(captions, data, strict=True)}
    pictures = list(first.values()) if source.starts else None
    return Subjects(list(first), pictures, ask(source, recipe.data, list(first), pictures))


def _picture_of(prompt: str, images: Path | None, recipe: Recipe) -> Image:
    if images is None:
        raise UserError(
            "this model needs a first frame for each prompt; name their folder in --images, or leave --prompts out for "
            "captions and first frames of the data"
        )
    stem = file_stems([prompt])[prompt]
    found = next((path for ending in IMAGES if (path := images / f"{stem}{ending}").is_file()), None)
    if found is None:
        raise UserError(f"{images} has no picture for the prompt {prompt!r}; name it {stem}.png")
    return read_first_frame(found, recipe.data.height, recipe.data.width)


def write_vbench(folder: Path, recipe: Recipe, loaded: Loaded, wanted: Subjects, progress: Progress) -> str:
    """Make the clips that are not there yet; returns the commands that score them.

    Args:
        folder: for this model alone.

    Raises:
        UserError: the folder holds something else, or the disk is full.
    """
    d, way, asked = recipe.data, student_way(recipe), wanted.asked
    made_by = {
        "base": loaded.base, "student": tensors_hash(loaded.model.parameters("generator")), "recipe": recipe.name,
        "sampler": way.sampler, "sigmas": ",".join(f"{sigma:g}" for sigma in way.sigmas),
        "size": f"{d.frames}x{d.height}x{d.width}", "fps": f"{d.fps:g}",
        "embedded_guidance": str(loaded.model.embedded_guidance("generator") or ""),
    }  # fmt: skip
    pictures = zip(wanted.prompts, wanted.pictures or (), strict=False)
    starts = {prompt: hashlib.sha256(picture.tobytes()).hexdigest()[:16] for prompt, picture in pictures}
    clips = lay_out(wanted.prompts, folder, seed=recipe.evaluate.seed)
    clips = [replace(clip, start=starts.get(clip.prompt, "")) for clip in clips]
    missing = begin(folder, clips, made_by)
    for prompt, picture in zip(wanted.prompts, wanted.pictures or (), strict=False):
        write_first_frame(folder, prompt, wanted.prompts, picture)
    rows = {prompt: row for row, prompt in enumerate(wanted.prompts)}
    for done, clip in enumerate(missing, start=1):
        condition = asked.condition([rows[clip.prompt]])
        latents = generate(loaded.model, way, condition, asked.null, asked.shape, [clip.seed], batch=1)
        write_video(clip.path, decode_pixels(asked.codec, latents)[0], d.fps)
        progress(f"clips for VBench ({CLIPS} of each prompt)", done, len(missing))
    return how_to_score(folder)
