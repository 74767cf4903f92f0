"""The smallest real model of each kind of Wan, conditions for it, and the real class called by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from w2svd_core.assembly import job_of
from w2svd_core.backbones import backbone
from w2svd_core.condition import Condition
from w2svd_core.data.latents import LatentSet
from w2svd_core.roles import SharedModel
from w2svd_core.settings import Recipe
from w2svd_core.trainer import Program

Conditions = Callable[..., Condition]
Models = Callable[..., SharedModel]
Recipes = Callable[..., Recipe]
Programs = Callable[..., Any]

TEXT, IMAGE = 16, 20  # widths of embeddings
IMAGE_TOKENS, TEXT_TOKENS = 7, 5
KINDS: dict[str, dict[str, Any]] = {  # what differs from text-to-video
    "t2v": {},
    "i2v": {"in_channels": 36, "image_dim": IMAGE, "added_kv_proj_dim": 24},
    "ti2v": {"in_channels": 48, "out_channels": 48},
}


def new_wan(kind: str = "t2v", **changes: Any) -> nn.Module:
    """The smallest `WanTransformer3DModel` of a kind, always with the same weights."""
    from diffusers import WanTransformer3DModel

    sizes: dict[str, Any] = {
        "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "text_dim": TEXT, "freq_dim": 16,
        "ffn_dim": 32,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WanTransformer3DModel(**sizes | KINDS[kind] | changes)
    found: nn.Module = model.eval().requires_grad_(False)
    return found


def points_of(kind: str, rows: int = 2, seed: int = 0) -> Tensor:
    """Noised latents `rows c 3 4 4`: 12 tokens."""
    channels = 48 if kind == "ti2v" else 16
    return torch.randn(rows, channels, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def condition_of(kind: str, rows: int, seed: int = 0) -> Condition:
    """Random embeddings, with a first frame for the kinds that take one."""
    rng = torch.Generator().manual_seed(1000 + seed)
    fields = {"text": torch.randn(rows, TEXT_TOKENS, TEXT, generator=rng)}
    if kind != "t2v":
        start = torch.randn(points_of(kind, rows).shape, generator=rng)
        fields["start"] = start[:, :, :1] if kind == "ti2v" else start
    if kind == "i2v":
        fields["image"] = torch.randn(rows, IMAGE_TOKENS, IMAGE, generator=rng)
    return Condition(fields)


def by_hand(model: nn.Module, x_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """The real class called as diffusers' pipelines call it."""
    text, start, image = (condition.fields.get(name) for name in ("text", "start", "image"))
    assert text is not None
    time = 1000 * sigma
    b, _, f, h, w = x_t.shape
    if image is not None and start is not None:
        frames = torch.zeros(b, 1, 4 * (f - 1) + 1, h, w)  # of the video: the first one is given
        frames[:, :, 0] = 1
        first = frames[:, :, :1].repeat_interleave(4, dim=2)
        mask = torch.cat([first, frames[:, :, 1:]], dim=2).view(b, -1, 4, h, w).transpose(1, 2)
        x_t = torch.cat([x_t, mask, start], dim=1)
        text = torch.cat([text, torch.zeros(b, 512 - text.shape[1], text.shape[2])], dim=1)
    elif start is not None:
        free = torch.ones(1, 1, f, h, w)
        free[:, :, 0] = 0
        x_t = (1 - free) * start + free * x_t
        time = torch.stack([(free[0][0][:, ::2, ::2] * t).flatten() for t in time])
    found: Tensor = model(
        x_t, timestep=time, encoder_hidden_states=text, encoder_hidden_states_image=image, return_dict=False
    )[0]
    return found


def with_roles(pristine: nn.Module, fresh: bool = False, **settings: Any) -> SharedModel:
    """A copy of the model with its roles; the adapters do something already unless `fresh`."""
    chosen = {"critic_rank": 4, "student_rank": 4} | settings
    model = SharedModel(backbone("wan"), copy.deepcopy(pristine), **chosen)
    rng = torch.Generator().manual_seed(1)
    for name, parameter in model.base.named_parameters():
        if ".lora_" in name and not fresh:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=rng)
    return model


def program_of(recipe: Recipe, pristine: nn.Module, data: LatentSet, source: Any = None, **settings: Any) -> Program:
    """The program of a recipe on a copy of the model, as `assembly` makes it."""

    matches = recipe.method == "distribution_matching" and recipe.matching.weight > 0
    of_recipe = {
        "critic_rank": recipe.critic.rank if matches and recipe.critic.kind == "lora" else 0,
        "critic_copy": matches and recipe.critic.kind == "full",
        "student_rank": recipe.student.rank if recipe.student.kind == "lora" else 0,
        "alpha_weak": recipe.matching.alpha_weak,
        "alpha_strong": recipe.matching.alpha_strong,
        "checkpointing": recipe.model.gradient_checkpointing,
    }
    model = with_roles(pristine, **{"fresh": True, **of_recipe, **settings})
    return job_of(recipe, model, cast(Any, source), data).program
