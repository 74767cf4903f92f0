"""Which Wan it is: the published variants, what is known of each, and how one is recognised from its sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import UserError
from ..geometry import LatentGeometry
from ..numbers import in_words
from . import published
from .base import Facts
from .published import Published, published_config
from .told_by_shapes import Shapes, Told

Kind = Literal["t2v", "i2v", "ti2v"]

HEAD_DIM = 128  # of every published Wan; no tensor's shape tells it
MASK = 4  # channels that say which frames of an image-to-video model's latents are given: one for each frame of four
TI2V_CHANNELS = 48  # of Wan 2.2's own VAE; its latents are known by them
# Wan's own negative prompt (wan/configs of Wan-Video/Wan2.1 and 2.2); for image-to-video, "camera shake" stands first
NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)
SHAKING = "镜头晃动，"
KINDS = {"t2v": "text-to-video", "i2v": "image-to-video", "ti2v": "text- and image-to-video with 2.2's latents"}
TOLD_BY = (  # what differs between variants
    *("num_attention_heads", "attention_head_dim", "in_channels", "out_channels"),
    *("text_dim", "ffn_dim", "num_layers", "image_dim"),
)


@dataclass(frozen=True)
class Variant(Published):
    """A published Wan.

    Attributes:
        fps, frames: of the clips that it makes.
        guidance_scale, shift: that its makers sample with (wan/configs and the READMEs of Wan-Video/Wan2.1 and 2.2).
    """

    fps: float
    frames: int
    guidance_scale: float
    shift: float


VARIANTS = (
    Variant("Wan 2.1 T2V 1.3B", "wan2.1-t2v-1.3b", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 2.8, 16, 81, 6.0, 8.0),
    Variant("Wan 2.1 T2V 14B", "wan2.1-t2v-14b", "Wan-AI/Wan2.1-T2V-14B-Diffusers", 28.6, 16, 81, 5.0, 5.0),
    Variant("Wan 2.1 I2V 14B", "wan2.1-i2v-14b", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", 32.8, 16, 81, 5.0, 3.0),
    Variant("Wan 2.2 TI2V 5B", "wan2.2-ti2v-5b", "Wan-AI/Wan2.2-TI2V-5B-Diffusers", 10.0, 24, 121, 5.0, 5.0),
)
TWO_EXPERTS = "two experts are not supported yet"
TWIN = "Wan 2.1 T2V 14B"  # the experts of Wan 2.2 T2V A14B have its shapes
TWIN_NAME = f"{TWIN} (or one expert of Wan 2.2 T2V A14B: its tensors have the same shapes)"


ONE_EXPERT = ("high_noise", "low_noise")  # in the names of its files


def doubts(place: str) -> list[str]:
    """What the name of a model's file says against training it where its shapes do not, a sentence each."""
    name = Path(place).name
    if not any(part in name.lower() for part in ONE_EXPERT):
        return []
    return [
        f"{name} is named as one expert of Wan 2.2 A14B, which knows a part of the noise levels and is asked at all of "
        f"them; {TWO_EXPERTS}, take one of {published.names_of(VARIANTS)}"
    ]


def recognised(config: Mapping[str, Any]) -> Variant | None:
    """The published model with these sizes; None for one of another size."""
    return published.recognised(config, VARIANTS, TOLD_BY)


def where_to_find() -> str:
    """The published models, in words."""
    return published.where_to_find(VARIANTS)


def kind_of(config: Mapping[str, Any]) -> Kind:
    """What a model of this config takes beside text; `refuse_unsupported` has let it through."""
    taken, given = config["in_channels"], config["out_channels"]
    if taken == given:
        return "ti2v" if given == TI2V_CHANNELS else "t2v"
    return "i2v"


def refuse_unsupported(config: Mapping[str, Any], place: Path | str) -> None:
    """Stop at a Wan that this program can't train, by its name.

    Raises:
        UserError: it is of another kind than text-to-video, image-to-video and 2.2's TI2V.
    """
    taken, given = config["in_channels"], config["out_channels"]
    known = published.names_of(VARIANTS)
    if config.get("pos_embed_seq_len") is not None:
        raise UserError(f"{place} is a Wan FLF2V (first and last frame), which is not supported; take one of {known}")
    if taken not in (given, 2 * given + MASK):
        raise UserError(
            f"{place} takes {taken} channels and gives {given}, as no Wan that this program knows; take one of {known}"
        )
    width = config["num_attention_heads"] * config["attention_head_dim"]
    if taken != given and config.get("image_dim") is None and width == 40 * HEAD_DIM:
        raise UserError(f"{place} is one expert of Wan 2.2 I2V A14B, whose {TWO_EXPERTS}; take one of {known}")


def inferred_config(shapes: Shapes, place: Path | str) -> dict[str, Any]:
    """The config of a model, from the shapes of its tensors alone.

    Raises:
        UserError: a tensor is missing, it is another model, or its number of heads can't be known.
    """
    if any(name.startswith("vace_") for name in shapes):
        known = published.names_of(VARIANTS)
        raise UserError(f"{place} is a Wan VACE, which is not supported; take one of {known}")

    told = Told(shapes, place, "Wan model")
    shape = told.shape
    width, channels, *patch = shape("patch_embedding.weight", 5)
    image = "condition_embedder.image_embedder"
    with_image = f"{image}.norm1.weight" in shapes
    position = f"{image}.pos_embed"
    config = {
        "patch_size": list(patch),
        "num_attention_heads": told.heads(width, HEAD_DIM),
        "attention_head_dim": HEAD_DIM,
        "in_channels": channels,
        "out_channels": shape("proj_out.weight", 2)[0] // math.prod(patch),
        "text_dim": shape("condition_embedder.text_embedder.linear_1.weight", 2)[1],
        "freq_dim": shape("condition_embedder.time_embedder.linear_1.weight", 2)[1],
        "ffn_dim": shape("blocks.0.ffn.net.0.proj.weight", 2)[0],
        "num_layers": told.blocks("blocks."),
        "cross_attn_norm": "blocks.0.norm2.weight" in shapes,
        "image_dim": shape(f"{image}.norm1.weight", 1)[0] if with_image else None,
        "added_kv_proj_dim": shape("blocks.0.attn2.add_k_proj.weight", 2)[1] if with_image else None,
        "pos_embed_seq_len": shape(position, 3)[1] if position in shapes else None,
    }
    variant = recognised(config)
    return {**published_config(variant), **config} if variant else config


def geometry_of(config: Mapping[str, Any]) -> LatentGeometry:
    """The latents of a model: Wan 2.1's VAE, or 2.2's with twice the stride."""
    space = 16 if kind_of(config) == "ti2v" else 8
    return LatentGeometry(config["out_channels"], space, time=4, patch=config["patch_size"][-1])


def needs_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The condition's fields without which a model can't be called."""
    if kind_of(config) != "i2v":
        return ("text",)
    return ("text", "start") if config.get("image_dim") is None else ("text", "start", "image")


def takes_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """All fields of a condition that a model understands."""
    return ("text", "start") if kind_of(config) == "ti2v" else needs_of(config)


def facts_of(config: Mapping[str, Any], parameters: int) -> Facts:
    """What is known of a model; of one of another size, what its kind has."""
    kind, variant = kind_of(config), recognised(config)
    usual = variant or {"t2v": VARIANTS[0], "i2v": VARIANTS[2], "ti2v": VARIANTS[3]}[kind]
    own = f"Wan {KINDS[kind]} of its own size ({in_words(parameters)} parameters)"
    name = own if variant is None else TWIN_NAME if variant.name == TWIN else variant.name
    return Facts(
        name=name,
        fps=usual.fps,
        frames=usual.frames,
        negative_prompt=SHAKING + NEGATIVE if kind == "i2v" else NEGATIVE,
        guidance_scale=usual.guidance_scale,
        shift=usual.shift,
        needs=needs_of(config),
        takes=takes_of(config),
        repository=variant.repository if variant else "",
        gigabytes=2e-9 * parameters,
    )
