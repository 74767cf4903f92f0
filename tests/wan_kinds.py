"""The smallest real model of each kind of Wan, conditions for it, and the real class called by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from kind import Kind
from tiny_wan import tiny_wan
from torch import Tensor, nn

from w2svd_core.backbones import wan_keys
from w2svd_core.condition import Condition

TEXT, IMAGE = 16, 20  # widths of embeddings
IMAGE_TOKENS, TEXT_TOKENS = 7, 5
CHANGES: dict[str, dict[str, Any]] = {  # what differs from text-to-video
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
        model = WanTransformer3DModel(**sizes | CHANGES[kind] | changes)
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


def lora_pipeline(kind: str, model: nn.Module) -> Any:
    """diffusers' pipeline round a model, with nothing else in it."""
    from diffusers import WanImageToVideoPipeline, WanPipeline

    others: dict[str, Any] = dict(tokenizer=None, text_encoder=None, vae=None, scheduler=None)
    if kind == "i2v":
        others |= dict(image_encoder=None, image_processor=None)
    return (WanImageToVideoPipeline if kind == "i2v" else WanPipeline)(transformer=model, **others)


WIDE: dict[str, Any] = {"attention_head_dim": 128, "num_attention_heads": 1, "text_dim": TEXT}  # Wan's own heads
TELLING = {kind: WIDE | ({"added_kv_proj_dim": 128} if kind == "i2v" else {}) for kind in CHANGES}
WAN = tuple(
    Kind(
        family="wan",
        name=kind,
        new=partial(new_wan, kind),
        points=partial(points_of, kind),
        condition=partial(condition_of, kind),
        by_hand=by_hand,
        telling=TELLING[kind],
        native=lambda model: wan_keys.to_native(model.state_dict()),
        picture="" if kind == "t2v" else "start",
        held=kind == "ti2v",
        either=kind == "ti2v",
        lora_pipeline=partial(lora_pipeline, kind),
        native_loras=True,
        recipe="wan_t2v_1_3b",
        finetune="wan_finetune",
        tiny=partial(tiny_wan, kind),
        files=True,
    )
    for kind in CHANGES
)
