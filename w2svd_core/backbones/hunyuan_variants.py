"""Which HunyuanVideo it is: the published variants, what is known of each, and how one is recognised from its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..condition import GUIDANCE
from ..errors import UserError
from ..geometry import LatentGeometry
from ..numbers import in_words
from . import published
from .base import Facts
from .published import Published, published_config
from .told_by_shapes import Shapes, Told

Kind = Literal["t2v", "concat", "replace"]

HEAD_DIM = 128  # of every published HunyuanVideo; no tensor's shape tells it
MASK = 1  # channel that says which latent frames of an image-to-video model by concatenation are given
KIND_OF: Mapping[str | None, Kind] = {None: "t2v", "latent_concat": "concat", "token_replace": "replace"}
KINDS = {
    "t2v": "text-to-video",
    "concat": "image-to-video by concatenation",
    "replace": "image-to-video by token replacement",
}
TEXT = ("text", "text_mask", "pooled")  # fields of a prompt
FIRST = {"t2v": (), "concat": ("start",), "replace": ("first",)}  # fields of a first frame
TOLD_BY = (  # what differs between variants
    *("num_attention_heads", "attention_head_dim", "num_layers", "num_single_layers", "text_embed_dim"),
    *("in_channels", "out_channels", "pooled_projection_dim", "guidance_embeds", "image_condition_type"),
)

PUBLISHER = "hunyuanvideo-community"
VARIANTS = (
    Published("HunyuanVideo T2V 13B", "hunyuan-t2v", f"{PUBLISHER}/HunyuanVideo", 25.6),
    Published(
        "HunyuanVideo I2V 13B by concatenation (33 channels)",
        "hunyuan-i2v-concat",
        f"{PUBLISHER}/HunyuanVideo-I2V-33ch",
        25.6,
    ),
    Published(
        "HunyuanVideo I2V 13B by token replacement", "hunyuan-i2v-replace", f"{PUBLISHER}/HunyuanVideo-I2V", 25.6
    ),
)
TWIN = VARIANTS[0].name  # the image-to-video model by token replacement has its shapes


def recognised(config: Mapping[str, Any]) -> Published | None:
    """The published model with these sizes; None for one of another size."""
    return published.recognised(config, VARIANTS, TOLD_BY)


def where_to_find() -> str:
    """The published models, in words."""
    return published.where_to_find(VARIANTS)


def kind_of(config: Mapping[str, Any]) -> Kind:
    """What a model of this config takes beside text; `refuse_unsupported` has let it through."""
    return KIND_OF[config.get("image_condition_type")]


def refuse_unsupported(config: Mapping[str, Any], place: Path | str) -> None:
    """Stop at a HunyuanVideo that this program can't train, by its name.

    Raises:
        UserError: it is of another kind than text-to-video and the two kinds of image-to-video.
    """
    taken, given = config["in_channels"], config["out_channels"]
    known = published.names_of(VARIANTS)
    way = config.get("image_condition_type")
    if way not in tuple(KIND_OF):  # it may be anything
        raise UserError(
            f"{place} gives image_condition_type as {way!r}, which no HunyuanVideo has; take one of {known}"
        )
    if way is None and taken == 2 * given:
        raise UserError(f"{place} is a SkyReels V1 image-to-video model, which is not supported; take one of {known}")
    if taken != (2 * given + MASK if way == "latent_concat" else given):
        raise UserError(
            f"{place} takes {taken} channels and gives {given}, as no HunyuanVideo that this program knows; take one "
            f"of {known}"
        )


def inferred_config(shapes: Shapes, place: Path | str) -> dict[str, Any]:
    """The config of a model, from the shapes of its tensors alone.

    An image-to-video model by token replacement has the shapes of a text-to-video one, and is taken for that.

    Raises:
        UserError: a tensor is missing, it is another model, or its number of heads can't be known.
    """

    told = Told(shapes, place, "HunyuanVideo")
    shape, blocks = told.shape, told.blocks
    width, channels, frames, side, _ = shape("x_embedder.proj.weight", 5)
    given = shape("proj_out.weight", 2)[0] // (frames * side * side)
    config = {
        "in_channels": channels,
        "out_channels": given,
        "num_attention_heads": told.heads(width, HEAD_DIM),
        "attention_head_dim": HEAD_DIM,
        "num_layers": blocks("transformer_blocks."),
        "num_single_layers": blocks("single_transformer_blocks."),
        "num_refiner_layers": blocks("context_embedder.token_refiner.refiner_blocks."),
        "mlp_ratio": shape("transformer_blocks.0.ff.net.0.proj.weight", 2)[0] / width,
        "patch_size": side,
        "patch_size_t": frames,
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in shapes,
        "text_embed_dim": shape("context_embedder.proj_in.weight", 2)[1],
        "pooled_projection_dim": shape("time_text_embed.text_embedder.linear_1.weight", 2)[1],
        "image_condition_type": "latent_concat" if channels == 2 * given + MASK else None,
    }
    variant = recognised(config)
    return {**published_config(variant), **config} if variant else config


def geometry_of(config: Mapping[str, Any]) -> LatentGeometry:
    """The latents of a model: HunyuanVideo's VAE."""
    return LatentGeometry(config["out_channels"], space=8, time=4, patch=config["patch_size"])


def needs_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The condition's fields of a clip without which a model can't be called."""
    return (*TEXT, *FIRST[kind_of(config)])


def takes_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """All fields of a condition that a model understands; its guidance is a role's, not a clip's."""
    return (*needs_of(config), GUIDANCE) if config["guidance_embeds"] else needs_of(config)


def facts_of(config: Mapping[str, Any], parameters: int) -> Facts:
    """What is known of a model; of one of another size, what its kind has.

    129 frames at 24 fps, shift 7 and no guidance but the embedded one (6) are what its makers sample with
    (READMEs of Tencent-Hunyuan's HunyuanVideo and HunyuanVideo-I2V, diffusers' pipelines).
    """
    kind, variant = kind_of(config), recognised(config)
    own = f"HunyuanVideo {KINDS[kind]} of its own size ({in_words(parameters)} parameters)"
    return Facts(
        name=variant.name if variant else own,
        fps=24,
        frames=129,
        negative_prompt="",
        guidance_scale=1.0,
        shift=7.0,
        needs=needs_of(config),
        takes=takes_of(config),
        repository=variant.repository if variant else "",
        gigabytes=2e-9 * parameters,
    )
