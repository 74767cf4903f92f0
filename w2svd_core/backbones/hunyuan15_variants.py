"""Which HunyuanVideo 1.5 it is: the published variants, what is known of each, and how one is recognised.

Text-to-video and image-to-video are of one class and of the same sizes: what a clip's condition holds decides how a
model is called, and `model.first_frame` what is prepared.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..geometry import LatentGeometry
from ..numbers import in_words
from . import published
from .base import Facts
from .hunyuan15_keys import MEANFLOW
from .published import Published, published_config
from .told_by_shapes import Shapes, Told

HEAD_DIM = 128  # of every published one; no tensor's shape tells it
CELL, TIME = 16, 4  # pixels to a latent cell and frames to a latent frame
MASK = 1  # channel that says which latent frames are given
TEXT = ("text", "text_mask", "glyphs", "glyphs_mask")  # fields of a prompt
PICTURE = ("start", "image")  # fields of a first frame: its latents, and what SigLIP makes of it
TAKES = (*TEXT, *PICTURE)
TOLD_BY = (  # what differs between variants, or tells that it is none of them
    *("num_attention_heads", "attention_head_dim", "num_layers", "in_channels", "out_channels", "patch_size"),
    *("text_embed_dim", "text_embed_2_dim", "image_embed_dim", "target_size", "task_type"),
)
PUBLISHER = "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers"
# sizes and shifts of the settings in diffusers' conversion script; the distilled ones have the same sizes
VARIANTS = tuple(
    Published(f"HunyuanVideo 1.5 {size} {task.upper()}", f"hunyuan15-{size}-{task}", f"{PUBLISHER}-{size}_{task}", 16.7)
    for size in ("480p", "720p")
    for task in ("t2v", "i2v")
)
SHIFTS = {(640, "t2v"): 5.0, (640, "i2v"): 5.0, (960, "t2v"): 9.0, (960, "i2v"): 7.0}  # by target_size and task_type


def recognised(config: Mapping[str, Any]) -> Published | None:
    """The published model with these sizes; None for one of another size."""
    return published.recognised(config, VARIANTS, TOLD_BY)


def where_to_find() -> str:
    """The published models, in words."""
    return published.where_to_find(VARIANTS)


def refuse_unsupported(config: Mapping[str, Any], place: Path | str) -> None:
    """Stop at a HunyuanVideo 1.5 that this program can't train, by its name.

    Raises:
        UserError: it is the step-distilled release, the super-resolution model, or of other channels.
    """
    take = f"take one of {published.names_of(VARIANTS)}"
    if config.get("use_meanflow", False):
        raise UserError(
            f"{place} is a step-distilled HunyuanVideo 1.5 (MeanFlow), which is a few-step student already and takes a "
            f"second time; it is not supported; {take}"
        )
    taken, given = config["in_channels"], config["out_channels"]
    if taken == 3 * given + 2 * MASK:
        raise UserError(f"{place} is HunyuanVideo 1.5's super-resolution model, which is not supported; {take}")
    if taken != 2 * given + MASK:
        raise UserError(f"{place} takes {taken} channels and gives {given}, as no HunyuanVideo 1.5 does; {take}")


def inferred_config(shapes: Shapes, place: Path | str) -> dict[str, Any]:
    """The config of a model, from the shapes of its tensors alone; the rest as of the 480p image-to-video model.

    Raises:
        UserError: a tensor is missing, it is another model, or its number of heads can't be known.
    """
    told = Told(shapes, place, "HunyuanVideo 1.5")
    width, channels, frames, side, _ = told.shape("x_embedder.proj.weight", 5)
    return {
        **published_config(VARIANTS[1]),
        "in_channels": channels,
        "out_channels": told.shape("proj_out.weight", 2)[0] // (frames * side * side),
        "num_attention_heads": told.heads(width, HEAD_DIM),
        "num_layers": told.blocks("transformer_blocks."),
        "num_refiner_layers": told.blocks("context_embedder.token_refiner.refiner_blocks."),
        "mlp_ratio": told.shape("transformer_blocks.0.ff.net.0.proj.weight", 2)[0] / width,
        "patch_size": side,
        "patch_size_t": frames,
        "text_embed_dim": told.shape("context_embedder.proj_in.weight", 2)[1],
        "text_embed_2_dim": told.shape("context_embedder_2.linear_1.weight", 2)[1],
        "image_embed_dim": told.shape("image_embedder.linear_1.weight", 2)[1],
        "use_meanflow": f"{MEANFLOW}.linear_1.weight" in shapes,
    }


def geometry_of(config: Mapping[str, Any]) -> LatentGeometry:
    """The latents of a model: HunyuanVideo 1.5's VAE."""
    return LatentGeometry(config["out_channels"], CELL, time=TIME, patch=config["patch_size"])


def facts_of(config: Mapping[str, Any], parameters: int) -> Facts:
    """What is known of a model; of one of another size, what the 480p ones have.

    121 frames at 24 fps are what diffusers' pipelines make; guidance 6 is of the plain releases, and 1 of the
    guidance-distilled ones, which nothing but their names tells apart.
    """
    variant = recognised(config)
    return Facts(
        name=variant.name if variant else f"HunyuanVideo 1.5 of its own size ({in_words(parameters)} parameters)",
        fps=24,
        frames=121,
        negative_prompt="",
        guidance_scale=6.0,
        shift=SHIFTS.get((config["target_size"], config["task_type"]), 5.0),
        needs=TEXT,
        takes=TAKES,
        repository=variant.repository if variant else "",
        gigabytes=2e-9 * parameters,
    )
