"""The smallest real model of each kind of HunyuanVideo, conditions for it, and the real class called by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from kind import Kind
from tiny_hunyuan import TYPES, tiny_hunyuan
from torch import Tensor, nn

from w2svd_core.backbones import hunyuan_keys
from w2svd_core.condition import Condition

TEXT, POOLED = 16, 12  # widths of embeddings
TEXT_TOKENS = 5
FIELDS = {"t2v": "", "concat": "start", "replace": "first"}
RECIPES = {"t2v": "hunyuan_video_t2v", "concat": "hunyuan_video_i2v_concat", "replace": "hunyuan_video_i2v"}
WIDE = {"attention_head_dim": 128, "num_attention_heads": 1, "rope_axes_dim": (16, 56, 56)}  # HunyuanVideo's own heads


def new_hunyuan(kind: str = "t2v", **changes: Any) -> nn.Module:
    """The smallest `HunyuanVideoTransformer3DModel` of a kind, always with the same weights."""
    from diffusers import HunyuanVideoTransformer3DModel

    sizes: dict[str, Any] = {
        "in_channels": 33 if kind == "concat" else 16, "out_channels": 16, "num_attention_heads": 2,
        "attention_head_dim": 10, "num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "mlp_ratio": 2.0,
        "guidance_embeds": kind != "concat", "text_embed_dim": TEXT, "pooled_projection_dim": POOLED,
        "rope_axes_dim": (2, 4, 4), "image_condition_type": TYPES[kind],
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HunyuanVideoTransformer3DModel(**sizes | changes)
    found: nn.Module = model.eval().requires_grad_(False)
    return found


def points_of(rows: int = 2, seed: int = 0) -> Tensor:
    """Noised latents `rows 16 3 4 4`: 12 tokens."""
    return torch.randn(rows, 16, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def condition_of(kind: str, rows: int, seed: int = 0) -> Condition:
    """Random embeddings of prompts of several lengths, with a first frame and a guidance where a kind takes them."""
    rng = torch.Generator().manual_seed(1000 + seed)
    mask = torch.ones(rows, TEXT_TOKENS)
    mask[1::2, 3:] = 0
    fields = {
        "text": torch.randn(rows, TEXT_TOKENS, TEXT, generator=rng) * mask[..., None],
        "text_mask": mask,
        "pooled": torch.randn(rows, POOLED, generator=rng),
    }
    if kind != "t2v":
        fields[FIELDS[kind]] = torch.randn(rows, 16, 1, 4, 4, generator=rng)
    if kind != "concat":
        fields["guidance"] = torch.full((rows,), 6.0)
    return Condition(fields)


def by_hand(model: nn.Module, x_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """The real class called as diffusers' pipelines call it."""
    fields, hidden = condition.fields, x_t
    b, _, f, h, w = x_t.shape
    if "start" in fields:  # beside the noise: the frame, repeated by nothing, and where it is
        mask = x_t.new_ones(b, 1, f, h, w)
        mask[:, :, 1:] = 0
        picture = fields["start"].repeat(1, 1, f, 1, 1)
        picture[:, :, 1:] = 0
        hidden = torch.cat([x_t, picture, mask], dim=1)
    elif "first" in fields:
        hidden = torch.cat([fields["first"], x_t[:, :, 1:]], dim=2)
    found: Tensor = model(
        hidden_states=hidden,
        timestep=1000 * sigma,
        encoder_hidden_states=fields["text"],
        encoder_attention_mask=fields["text_mask"],
        pooled_projections=fields["pooled"],
        guidance=1000 * fields["guidance"] if "guidance" in fields else None,
        return_dict=False,
    )[0]
    return found


def lora_pipeline(kind: str, model: nn.Module) -> Any:
    """diffusers' pipeline round a model, with nothing else in it."""
    from diffusers import HunyuanVideoImageToVideoPipeline, HunyuanVideoPipeline

    parts = ("text_encoder", "tokenizer", "vae", "scheduler", "text_encoder_2", "tokenizer_2")
    others: dict[str, Any] = dict.fromkeys(parts)
    if kind == "t2v":
        return HunyuanVideoPipeline(transformer=model, **others)
    return HunyuanVideoImageToVideoPipeline(transformer=model, image_processor=None, **others)


HUNYUAN = tuple(
    Kind(
        family="hunyuan_video",
        name=kind,
        new=partial(new_hunyuan, kind),
        points=points_of,
        condition=partial(condition_of, kind),
        by_hand=by_hand,
        telling=None if kind == "replace" else WIDE,  # by its shapes it is text-to-video
        native=lambda model: hunyuan_keys.to_native(model.state_dict()),
        picture=picture,
        held=kind == "replace",
        lora_pipeline=partial(lora_pipeline, kind),
        recipe=RECIPES[kind],
        finetune="hunyuan_video_finetune",
        tiny=partial(tiny_hunyuan, kind),
        files=True,
    )
    for kind, picture in FIELDS.items()
)
