"""The smallest real Cosmos from text and from a first frame, conditions for it, and the real class called by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from kind import Kind
from tiny_cosmos import tiny_cosmos
from torch import Tensor, nn

from w2svd_core.backbones import cosmos_keys
from w2svd_core.backbones.cosmos_class import cosmos_class, ready
from w2svd_core.condition import Condition

RAW, TEXT = 32, 16  # widths of a prompt's tokens: before and after the model's own projection
TEXT_TOKENS = 5
FIELDS = {"t2v": "", "i2v": "first"}


def new_cosmos(**changes: Any) -> nn.Module:
    """The smallest `CosmosTransformer3DModel`, always with the same weights."""
    sizes: dict[str, Any] = {
        "in_channels": 17, "out_channels": 16, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2,
        "mlp_ratio": 2.0, "text_embed_dim": TEXT, "adaln_lora_dim": 4, "patch_size": (1, 2, 2),
        "rope_scale": (1.0, 3.0, 3.0), "extra_pos_embed_type": None, "use_crossattn_projection": True,
        "crossattn_proj_in_channels": RAW, "encoder_hidden_states_channels": TEXT,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cosmos_class()(**sizes | changes)
    return ready(model.eval().requires_grad_(False))


def points_of(rows: int = 2, seed: int = 0) -> Tensor:
    """Noised latents `rows 16 3 4 4`: 12 tokens."""
    return torch.randn(rows, 16, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def condition_of(kind: str, rows: int, seed: int = 0, width: int = RAW) -> Condition:
    """Random raw embeddings, with a first frame for i2v."""
    rng = torch.Generator().manual_seed(1000 + seed)
    fields = {"text": torch.randn(rows, TEXT_TOKENS, width, generator=rng)}
    if kind == "i2v":
        fields["first"] = torch.randn(rows, 16, 1, 4, 4, generator=rng)
    return Condition(fields)


def by_hand(model: nn.Module, x_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """The real class called as diffusers' pipeline calls it: a mask of the given frames, and a time for each frame.

    Where none is given, one time says the same.
    """
    b, _, f, h, w = x_t.shape
    given, clean, time = torch.zeros(b, 1, f, 1, 1), torch.zeros_like(x_t), sigma
    if "first" in condition.fields:
        given[:, :, :1] = 1
        clean[:, :, :1] = condition.fields["first"]
        time = given * 0.0001 + (1 - given) * sigma.view(b, 1, 1, 1, 1)
    mask = given.expand(-1, -1, -1, h, w)
    found: Tensor = model(
        hidden_states=mask * clean + (1 - mask) * x_t,
        condition_mask=mask,
        timestep=time,
        encoder_hidden_states=condition.fields["text"],
        padding_mask=torch.zeros(1, 1, 8 * h, 8 * w),
        return_dict=False,
    )[0]
    return found


def lora_pipeline(model: nn.Module) -> Any:
    """A pipeline of nothing but a model, with diffusers' mixin that loads LoRA files; its own needs a VAE."""
    from diffusers import DiffusionPipeline
    from diffusers.loaders import CosmosLoraLoaderMixin

    class Around(DiffusionPipeline, CosmosLoraLoaderMixin):  # type: ignore[misc]
        def __init__(self, transformer: nn.Module) -> None:
            super().__init__()
            self.register_modules(transformer=transformer)

    return Around(model)


COSMOS = tuple(
    Kind(
        family="cosmos",
        name=kind,
        new=new_cosmos,
        points=points_of,
        condition=partial(condition_of, kind),
        by_hand=by_hand,
        telling={"attention_head_dim": 128, "num_attention_heads": 1},
        native=lambda model: cosmos_keys.to_native(model.state_dict()),
        picture=picture,
        held=bool(picture),
        lora_pipeline=lora_pipeline,
        recipe=f"cosmos_{kind}_2b",
        finetune=f"cosmos_{kind}_2b",
        tiny=partial(tiny_cosmos, kind),
        files=True,
    )
    for kind, picture in FIELDS.items()
)
