"""AVDM2's style transfer: an image model of toned pictures moves the student's colours, and the clips go on moving."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from w2svd_core.assembly import bundled_encoders, job_of, load_base, roles_of
from w2svd_core.config import load_recipe
from w2svd_core.data.codec import to_unit
from w2svd_core.data.encoder_source import LoadedEncoders, null_condition
from w2svd_core.data.latents import LatentSet
from w2svd_core.data.portraits import caption, portrait_from_seed, render
from w2svd_core.evaluation import student_way
from w2svd_core.generation import generate
from w2svd_core.settings import Recipe

LUMA = torch.tensor([0.299, 0.587, 0.114])
TINT = torch.tensor([1.15, 0.98, 0.7156])  # of luma 1
TRAINED, HELD_OUT = range(96), range(2_000_000, 2_000_012)


def toned(video: Tensor) -> Tensor:
    """A video `b 3 f h w` in [-1, 1] in shades of brown: brightness as it was, one hue."""
    light = ((video + 1) / 2).movedim(1, -1) @ LUMA
    return (2 * light[..., None] * TINT - 1).clamp(-1, 1).movedim(-1, 1)


def off_tone(video: Tensor) -> float:
    """How far the colours are from the tone, of 1."""
    return float((video - toned(video)).abs().mean() / 2)


def motion(video: Tensor) -> float:
    """Mean change of brightness from frame to frame, of 1."""
    return float((video.movedim(1, -1) @ LUMA).diff(dim=1).abs().mean() / 2)


def videos(seeds: Sequence[int], frames: int, fps: float) -> Tensor:
    return torch.cat([to_unit(render(portrait_from_seed(seed), frames, 32, 32, fps)[None]) for seed in seeds])


def data_of(latents: Tensor, seeds: Sequence[int], source: LoadedEncoders) -> LatentSet:
    captions = tuple(caption(portrait_from_seed(seed)) for seed in seeds)
    return LatentSet(latents, source.prompts.encode(captions), null_condition(source.prompts), captions)


def trained(recipe: Recipe, data: LatentSet, source: LoadedEncoders, rounds: int) -> Any:
    """The job of a recipe after so many rounds."""
    family, base = load_base(recipe.model, source, recipe.seed)
    job = job_of(recipe, roles_of(recipe, family, base), source, data)
    for index in range(rounds):
        job.program.round(index)
    return job


@torch.no_grad()
def sampled(job: Any, recipe: Recipe, source: LoadedEncoders) -> Tensor:
    null = null_condition(source.prompts)
    condition = source.prompts.encode([caption(portrait_from_seed(seed)) for seed in HELD_OUT])
    latents = generate(job.model, student_way(recipe), condition, null, (16, 5, 8, 8), list(HELD_OUT))
    return source.codec.decode(latents)


@pytest.mark.slow
def test_a_toned_image_model_tones_the_student_and_leaves_it_its_motion(tmp_path: Path) -> None:
    source = bundled_encoders()
    stills = toned(videos(TRAINED, 3, 1.0)).transpose(1, 2).flatten(0, 1).unsqueeze(2)  # three of each portrait
    frames = data_of(source.codec.encode(stills), [seed for seed in TRAINED for _ in range(3)], source)
    clips = data_of(source.codec.encode(videos(TRAINED, 17, 8.0)), TRAINED, source)
    image_recipe = load_recipe(
        "portraits_teacher",
        {"model.init": "load", "model.compile": False, "student.lr": 5e-4, "student.ema": 0.0, "train.steps": 150,
         "train.lr_warmup": 10, "train.batch": 16, "evaluate.clips": 0},
    )  # fmt: skip
    image = trained(image_recipe, frames, source, 150)
    image.model.backbone.save_folder(image.model.copy, tmp_path, torch.float32)
    recipe = load_recipe(
        "portraits_avdm2",
        {"adversarial.weight": 0.0, "frame_matching.model": str(tmp_path), "frame_matching.family": "wan",
         "frame_matching.guidance_scale": 1.0, "critic.warmup": 4, "train.steps": 24, "train.batch": 8,
         "student.ema": 0.0, "student.lr": 3e-4, "frame_matching.updates": 3},
    )  # fmt: skip
    before = sampled(trained(recipe, clips, source, 0), recipe, source)
    job = trained(recipe, clips, source, 28)
    after = sampled(job, recipe, source)
    assert off_tone(after) < 0.7 * off_tone(before), (off_tone(before), off_tone(after))
    moves = motion(source.codec.decode(source.codec.encode(videos(HELD_OUT, 17, 8.0))))
    assert 0.7 * moves < motion(after) < 1.5 * moves, (moves, motion(before), motion(after))
