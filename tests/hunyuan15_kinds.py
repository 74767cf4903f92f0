"""The smallest real HunyuanVideo 1.5 from text and from a first frame, conditions for it, and the class by hand."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from kind import Kind
from tiny_hunyuan15 import tiny_hunyuan15
from torch import Tensor, nn

from w2svd_core.backbones import hunyuan15_keys
from w2svd_core.backbones.hunyuan15_class import ready
from w2svd_core.condition import Condition

TEXT, GLYPHS, PATCH = 16, 12, 8  # widths of tokens: of Qwen2.5-VL, of ByT5, of SigLIP
TOKENS, PATCHES = 5, 3
FIELDS = {"t2v": "", "i2v": "start"}
WIDE = {"attention_head_dim": 128, "num_attention_heads": 1, "rope_axes_dim": (16, 56, 56)}  # the published heads
LAST = "transformer_blocks.1."  # block, whose text nobody reads
IDLE = (f"{LAST}attn.add_q_proj", f"{LAST}attn.to_add_out", f"{LAST}ff_context")


def new_hunyuan15(**changes: Any) -> nn.Module:
    """The smallest `HunyuanVideo15Transformer3DModel`, always with the same weights."""
    from diffusers import HunyuanVideo15Transformer3DModel

    sizes: dict[str, Any] = {
        "in_channels": 65, "out_channels": 32, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2,
        "num_refiner_layers": 1, "mlp_ratio": 2.0, "text_embed_dim": TEXT, "text_embed_2_dim": GLYPHS,
        "image_embed_dim": PATCH, "rope_axes_dim": (2, 6, 8),
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HunyuanVideo15Transformer3DModel(**sizes | changes)
    return ready(model.eval().requires_grad_(False))


def points_of(rows: int = 2, seed: int = 0) -> Tensor:
    """Noised latents `rows 32 3 2 2`: 12 tokens."""
    return torch.randn(rows, 32, 3, 2, 2, generator=torch.Generator().manual_seed(seed))


def condition_of(kind: str, rows: int, seed: int = 0) -> Condition:
    """Random embeddings of prompts of several lengths, with words in quotes or none, and a first frame for i2v."""
    rng = torch.Generator().manual_seed(1000 + seed)
    text_mask, glyphs_mask = torch.ones(rows, TOKENS), torch.ones(rows, TOKENS)
    text_mask[1::2, 3:] = 0
    glyphs_mask[::2] = 0
    fields = {
        "text": torch.randn(rows, TOKENS, TEXT, generator=rng) * text_mask[..., None],
        "text_mask": text_mask,
        "glyphs": torch.randn(rows, TOKENS, GLYPHS, generator=rng) * glyphs_mask[..., None],
        "glyphs_mask": glyphs_mask,
    }
    if kind == "i2v":
        fields["start"] = torch.randn(rows, 32, 1, 2, 2, generator=rng)
        fields["image"] = torch.randn(rows, PATCHES, PATCH, generator=rng)
    return Condition(fields)


def by_hand(model: nn.Module, x_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """The real class called as diffusers' pipelines call it, but for how many zeros stand for no picture."""
    fields = condition.fields
    b, _, f, h, w = x_t.shape
    picture, mask = torch.zeros_like(x_t), x_t.new_zeros(b, 1, f, h, w)
    if "start" in fields:
        picture = fields["start"].repeat(1, 1, f, 1, 1)
        picture[:, :, 1:] = 0
        mask[:, :, 0] = 1
    found: Tensor = model(
        hidden_states=torch.cat([x_t, picture, mask], dim=1),
        timestep=1000 * sigma,
        encoder_hidden_states=fields["text"],
        encoder_attention_mask=fields["text_mask"],
        encoder_hidden_states_2=fields["glyphs"],
        encoder_attention_mask_2=fields["glyphs_mask"],
        image_embeds=fields.get("image", torch.zeros(b, 1, PATCH)),
        return_dict=False,
    )[0]
    return found


def lora_pipeline(model: nn.Module) -> Any:
    """diffusers' pipelines of 1.5 load no LoRA files, but their model does."""
    load = partial(model.load_lora_adapter, prefix="transformer")  # type: ignore[arg-type]
    return SimpleNamespace(load_lora_weights=load)


HUNYUAN15 = tuple(
    Kind(
        family="hunyuan_video15",
        name=kind,
        new=new_hunyuan15,
        points=points_of,
        condition=partial(condition_of, kind),
        by_hand=by_hand,
        telling=WIDE,
        native=lambda model: hunyuan15_keys.to_native(model.state_dict()),
        idle=(*IDLE, *(() if picture else ("image_embedder",))),
        picture=picture,
        lora_pipeline=lora_pipeline,
        recipe=f"hunyuan_video15_{kind}",
        finetune=f"hunyuan_video15_{kind}",
        tiny=partial(tiny_hunyuan15, kind),
        files=True,
    )
    for kind, picture in FIELDS.items()
)
