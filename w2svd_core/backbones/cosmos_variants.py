"""Which Cosmos it is: the published variants, what is known of each, and how one is recognised from its sizes.

One model makes clips from text and from a first frame alike. Guidance: its makers write c + s(c - u) with s = 7, which
is u + g(c - u) with g = 8 in this house.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..geometry import LatentGeometry
from . import published
from .base import Facts
from .published import Published, published_config
from .told_by_shapes import Shapes, Told

HEAD_DIM = 128  # of every published Cosmos; no tensor's shape tells it
CELL, TIME = 8, 4  # pixels to a latent cell and frames to a latent frame, of Wan 2.1's VAE, which Cosmos shares
NEEDS, TAKES = ("text",), ("text", "first")
# the published pipeline's own (diffusers' Cosmos2_5_PredictBasePipeline)
NEGATIVE = (
    "The video captures a series of frames showing ugly scenes, static with no motion, motion blur, over-saturation, "
    "shaky footage, low resolution, grainy texture, pixelated images, poorly lit areas, underexposed and overexposed "
    "scenes, poor color balance, washed out colors, choppy sequences, jerky movements, low frame rate, artifacting, "
    "color banding, unnatural transitions, outdated special effects, fake elements, unconvincing visuals, poorly "
    "edited content, jump cuts, visual noise, and flickering. Overall, the video is of poor quality."
)
TOLD_BY = (  # what differs between variants
    *("num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "num_layers"),
    *("text_embed_dim", "use_crossattn_projection", "crossattn_proj_in_channels"),
)
BRANCH = "diffusers/base/post-trained"  # of the repositories: diffusers' folders lie there, the main branch has pickles

VARIANTS = (
    Published("Cosmos-Predict2.5 2B", "cosmos-predict2.5-2b", f"nvidia/Cosmos-Predict2.5-2B@{BRANCH}", 4.1),
    Published("Cosmos-Predict2.5 14B", "cosmos-predict2.5-14b", f"nvidia/Cosmos-Predict2.5-14B@{BRANCH}", 28.7),
)
# of both: 93 frames at 16 fps and guidance 7 are the pipeline's (as g: 8), shift 5 is of NVIDIA's training configs
# (cosmos-predict2.5); their own sampler takes Karras' levels instead, from 0.995 down
FPS, FRAMES, GUIDANCE_SCALE, SHIFT = 16.0, 93, 8.0, 5.0


def recognised(config: Mapping[str, Any]) -> Published | None:
    """The published model with these sizes; None for one of another size."""
    return published.recognised(config, VARIANTS, TOLD_BY)


def where_to_find() -> str:
    """The published models, in words."""
    return published.where_to_find(VARIANTS)


def refuse_unsupported(config: Mapping[str, Any], place: Path | str) -> None:
    """Stop at a Cosmos that this program can't train, by its name.

    Raises:
        UserError: it is of another generation than Predict2.5, or a Transfer.
    """
    take = f"take {VARIANTS[0].name} ({VARIANTS[0].repository})"
    if config.get("controlnet_block_every_n") is not None or config.get("img_context_dim_in") is not None:
        raise UserError(f"{place} is a Cosmos-Transfer, which needs a control clip and is not supported; {take}")
    sizes = config["attention_head_dim"], config["text_embed_dim"]  # with no projection, of Predict2's
    older = sizes == (HEAD_DIM, 1024) and not config.get("use_crossattn_projection", False)
    if config.get("extra_pos_embed_type", "learnable") is not None or older:
        raise UserError(
            f"{place} is a Cosmos of an earlier generation (1 or Predict2), whose output means something else, so that "
            f"it is not supported; {take}"
        )
    taken, given = config["in_channels"], config["out_channels"]
    if taken != given + 1 or config["patch_size"][0] != 1:
        raise UserError(
            f"{place} takes {taken} channels and gives {given}, as no Cosmos-Predict2.5 does, which takes one more "
            f"(the mask of given frames); {take}"
        )


def inferred_config(shapes: Shapes, place: Path | str) -> dict[str, Any]:
    """The config of a Predict2.5 model, from the shapes of its tensors alone.

    Raises:
        UserError: a tensor is missing, it is another model, or its number of heads can't be known.
    """
    told = Told(shapes, place, "Cosmos model")
    width, patch = told.shape("patch_embed.proj.weight", 2)
    heads = told.heads(width, HEAD_DIM)
    if "crossattn_proj.0.weight" not in shapes:
        raise UserError(f"{place} has no crossattn_proj, so it is no Cosmos-Predict2.5; take {where_to_find()}")
    given, raw = told.shape("crossattn_proj.0.weight", 2)
    block = "transformer_blocks.0"
    return {
        **published_config(VARIANTS[0]),
        "num_attention_heads": heads,
        "in_channels": patch // 4 - 1,  # 2 x 2 cells to a token; one channel is the padding mask
        "out_channels": told.shape("proj_out.weight", 2)[0] // 4,
        "num_layers": told.blocks("transformer_blocks."),
        "mlp_ratio": told.shape(f"{block}.ff.net.0.proj.weight", 2)[0] / width,
        "text_embed_dim": told.shape(f"{block}.attn2.to_k.weight", 2)[1],
        "adaln_lora_dim": told.shape(f"{block}.norm1.linear_1.weight", 2)[0],
        "crossattn_proj_in_channels": raw,
        "encoder_hidden_states_channels": given,
    }


def geometry_of(config: Mapping[str, Any]) -> LatentGeometry:
    """The latents of a model: Wan 2.1's VAE."""
    return LatentGeometry(config["out_channels"], CELL, time=TIME, patch=config["patch_size"][-1])


def widths_of(config: Mapping[str, Any]) -> tuple[int, ...]:
    """How wide a prompt's tokens may be: as the model's blocks take them, and raw where it projects them itself."""
    if not config.get("use_crossattn_projection", False):
        return (config["text_embed_dim"],)
    return config["text_embed_dim"], config["crossattn_proj_in_channels"]


def facts_of(config: Mapping[str, Any], parameters: int) -> Facts:
    """What is known of a model; of one of another size, what the published ones have."""
    variant = recognised(config)
    own = f"Cosmos of its own size ({parameters / 1e6:,.1f} million parameters)"
    return Facts(
        name=variant.name if variant else own, fps=FPS, frames=FRAMES, negative_prompt=NEGATIVE,
        guidance_scale=GUIDANCE_SCALE, shift=SHIFT, needs=NEEDS, takes=TAKES,
        repository=variant.repository if variant else "", gigabytes=2e-9 * parameters,
    )  # fmt: skip
