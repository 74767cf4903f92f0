"""A tiny real Wan, tiny clips, and everything that a round of training needs, in milliseconds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from w2svd_core.backbones import backbone
from w2svd_core.condition import Condition
from w2svd_core.config import check_recipe
from w2svd_core.data.latents import LatentSet
from w2svd_core.distillation import Distillation
from w2svd_core.learner import Learner, lr_schedule
from w2svd_core.pretraining import FlowMatching
from w2svd_core.roles import SharedModel
from w2svd_core.settings import Recipe

Conditions = Callable[..., Condition]
Models = Callable[..., SharedModel]
Recipes = Callable[..., Recipe]
Programs = Callable[..., Any]

TEXT = 16  # width of a token's embedding
CLIP = (16, 3, 4, 4)  # c f h w: 12 tokens


@pytest.fixture(scope="session")
def pristine() -> nn.Module:
    """The smallest `WanTransformer3DModel`; no adapter ever goes into it."""
    from diffusers import WanTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, num_layers=2, text_dim=TEXT, freq_dim=16, ffn_dim=32
        )
    found: nn.Module = model.eval().requires_grad_(False)
    return found


@pytest.fixture(scope="session")
def new_shared(pristine: nn.Module) -> Models:
    """Makes a base with its roles; the adapters do something already unless `fresh`."""

    def make(fresh: bool = False, **settings: Any) -> SharedModel:
        chosen = {"critic_rank": 4, "student_rank": 4} | settings
        model = SharedModel(backbone("wan"), copy.deepcopy(pristine), **chosen)
        rng = torch.Generator().manual_seed(1)
        for name, parameter in model.base.named_parameters():
            if ".lora_" in name and not fresh:
                parameter.data = 0.2 * torch.randn(parameter.shape, generator=rng)
        return model

    return make


@pytest.fixture(scope="session")
def texts() -> Conditions:
    """Makes conditions of random text embeddings."""

    def make(rows: int, seed: int = 0) -> Condition:
        rng = torch.Generator().manual_seed(1000 + seed)
        return Condition({"text": torch.randn(rows, 5, TEXT, generator=rng)})

    return make


@pytest.fixture(scope="session")
def clips(texts: Conditions) -> LatentSet:
    """Seven clips of random latents; the empty prompt is a real embedding, never zeros."""
    latents = torch.randn(7, *CLIP, generator=torch.Generator().manual_seed(2))
    return LatentSet(latents, texts(7), texts(1, seed=1), tuple(f"clip {i}" for i in range(7)))


@pytest.fixture(scope="session")
def new_recipe() -> Recipes:
    """Makes a small recipe; settings by key, such as `{"student.lr": 0.01}`."""

    def make(changes: dict[str, Any] | None = None) -> Recipe:
        small = {
            "train.batch": 2, "train.steps": 4, "student.rank": 4, "critic.rank": 4, "student.lr": 1e-3,
            "critic.lr": 1e-3, "critic.updates": 2, "critic.warmup": 1, "rollout.pool": 4,
        }  # fmt: skip
        return check_recipe(small | (changes or {}), "in a test")

    return make


@pytest.fixture(scope="session")
def new_program(new_shared: Models, clips: LatentSet) -> Programs:
    """Makes the program of a recipe on a new tiny model, as `assembly` does."""

    def learner(recipe: Recipe, model: SharedModel, role: Any, optimizer: Any, ema: float, updates: int) -> Learner:
        t = recipe.train
        return Learner(
            "student" if role == "generator" else "critic",
            model.parameters(role),
            optimizer,
            schedule=lr_schedule(t.lr_decay, t.lr_warmup, updates),
            clip_norm=t.clip_norm,
            max_nonfinite=t.max_nonfinite,
            ema=ema,
        )

    def make(recipe: Recipe, **model_settings: Any) -> Distillation | FlowMatching:
        distils = recipe.method == "distribution_matching"
        settings = {
            "critic_rank": recipe.critic.rank if distils else 0,
            "student_rank": recipe.student.rank if recipe.student.kind == "lora" else 0,
            "alpha_weak": recipe.matching.alpha_weak,
            "alpha_strong": recipe.matching.alpha_strong,
            "checkpointing": recipe.model.gradient_checkpointing,
        }
        model = new_shared(**{"fresh": True, **settings, **model_settings})
        steps = recipe.train.steps
        student = learner(recipe, model, "generator", recipe.student, recipe.student.ema, steps)
        if not distils:
            return FlowMatching(recipe, model, clips, student)
        rounds = recipe.critic.warmup + steps
        critic = learner(recipe, model, "fake", recipe.critic, 0.0, rounds * recipe.critic.updates)
        return Distillation(recipe, model, clips, student, critic)

    return make
