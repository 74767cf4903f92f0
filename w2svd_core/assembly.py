"""From a recipe to the parts of a run: model with roles, data, learners, program. Here everybody meets, once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .backbones import backbone
from .backbones.base import Architecture, Backbone
from .data.codec import Codec, load_portrait_codec
from .data.latents import LatentSet, Progress, load_latents
from .data.prompts import HashedWords, PromptEncoder
from .distillation import Distillation
from .errors import UserError
from .files import dtype_named
from .learner import Learner, lr_schedule
from .pretraining import FlowMatching
from .roles import FAKE, GENERATOR, SharedModel
from .settings import Model, Optimizer, Recipe
from .trainer import Program

ASSETS = Path(__file__).parent / "assets"
BUNDLED_TEACHER = ASSETS / "portrait_teacher.safetensors"
BUNDLED_CODEC = ASSETS / "portrait_codec.safetensors"


@dataclass(frozen=True)
class Encoders:
    """What turns pixels and words into what the model takes."""

    codec: Codec
    prompts: PromptEncoder


@dataclass(frozen=True)
class Job:
    """A run, ready to be driven."""

    model: SharedModel
    encoders: Encoders
    data: LatentSet
    program: Program
    student: Learner


def bundled_encoders() -> Encoders:
    """The portrait codec and the hashed words."""
    return Encoders(load_portrait_codec(BUNDLED_CODEC), HashedWords())


def load_base(settings: Model, encoders: Encoders, seed: int) -> tuple[Backbone, torch.nn.Module]:
    """The family and its model: from `model.path`, or with random weights.

    Raises:
        UserError: the model is not there, broken, or takes other latents or conditions than the encoders make.
    """
    family = backbone(settings.family)
    if settings.init == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width = encoders.prompts.width
            sizes = Architecture(settings.heads, settings.head_dim, settings.ffn_dim, settings.layers, width)
            return family, family.build(sizes)
    path = BUNDLED_TEACHER if settings.path == "bundled" else Path(settings.path)
    model = family.load(path, dtype_named(settings.precision)).eval()
    family.check_fit(model, encoders.codec.geometry, encoders.prompts.encode([""]))
    return family, model


def shared_model(recipe: Recipe, encoders: Encoders, device: torch.device) -> SharedModel:
    """The base with the adapters that the recipe asks for."""
    family, base = load_base(recipe.model, encoders, recipe.seed)
    distils = recipe.method == "distribution_matching"
    model = SharedModel(
        family,
        base.to(device),
        critic_rank=recipe.critic.rank if distils else 0,
        student_rank=recipe.student.rank if recipe.student.kind == "lora" else 0,
        alpha_weak=recipe.matching.alpha_weak,
        alpha_strong=recipe.matching.alpha_strong,
        checkpointing=recipe.model.gradient_checkpointing,
        seed=recipe.seed,
    )
    if recipe.model.compile and model.copy is not None:
        _compile(family.blocks(model.copy))
    return model


def _compile(blocks: Iterable[torch.nn.Module]) -> None:
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++", "cl")):
        raise UserError("model.compile needs a C++ compiler, and none was found; install g++ or set it to false")
    for block in blocks:
        block.compile()


def assemble(recipe: Recipe, accelerator: Any, progress: Progress) -> Job:
    """Load and build everything that the recipe names.

    Args:
        accelerator: accelerate's, for the device and the processes.
        progress: told what is being prepared.
    """
    encoders = bundled_encoders()
    data = load_latents(recipe.data, encoders.codec, encoders.prompts, progress)
    model = shared_model(recipe, encoders, accelerator.device)
    reduce = (lambda grad: accelerator.reduce(grad, "mean")) if accelerator.num_processes > 1 else None
    rank = accelerator.process_index
    student = _learner(recipe, model, GENERATOR, recipe.student, recipe.train.steps, recipe.student.ema, reduce)
    if recipe.method == "flow_matching":
        return Job(model, encoders, data, FlowMatching(recipe, model, data, student, rank), student)
    rounds = recipe.critic.warmup + recipe.train.steps
    critic = _learner(recipe, model, FAKE, recipe.critic, rounds * recipe.critic.updates, 0.0, reduce)
    return Job(model, encoders, data, Distillation(recipe, model, data, student, critic, rank), student)


def _learner(
    recipe: Recipe,
    model: SharedModel,
    role: Any,
    optimizer: Optimizer,
    updates: int,
    ema: float,
    reduce: Callable[[Tensor], Tensor] | None,
) -> Learner:
    t = recipe.train
    return Learner(
        "student" if role == GENERATOR else "critic",
        model.parameters(role),
        optimizer,
        schedule=lr_schedule(t.lr_decay, t.lr_warmup, updates),
        clip_norm=t.clip_norm,
        max_nonfinite=t.max_nonfinite,
        ema=ema,
        reduce=reduce,
        scale_loss=recipe.model.precision == "fp16",
    )
