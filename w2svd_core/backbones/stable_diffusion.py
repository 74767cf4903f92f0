"""Stable Diffusion 1.5 as its fine-tunes are shared: one file, with names that diffusers' classes do not have.

Sizes are read off the shapes; where each weight is, diffusers' converter says. What is beside the UNet in such a file,
its VAE and its text encoder, stays unread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from .told_by_shapes import Shapes, Told

PREFIX = "model.diffusion_model."  # of a whole checkpoint; a UNet alone has none
PARTS = ("input_blocks.", "middle_block.", "output_blocks.", "out.", "time_embed.", "label_emb.")
FIRST, LABELS = "input_blocks.0.0.weight", "label_emb.0.0.weight"
PROJECTION = "input_blocks.1.1.proj_in.weight"  # a convolution; in Stable Diffusion 2 a matrix, in XL not there
LEVELS, LAYERS, HEADS = 4, 2, 8  # that no shape tells
VELOCITY = {"v_pred", "ztsnr"}  # what files of models that predict a velocity, or reach pure noise, are marked with


def is_stable_diffusion(names: Iterable[str]) -> bool:
    """Whether a file has such names."""
    return not {FIRST, PREFIX + FIRST}.isdisjoint(names)


def sizes_of(shapes: Shapes, path: Path) -> dict[str, Any]:
    """The config of diffusers' `UNet2DConditionModel`, from the shapes of a file.

    Raises:
        UserError: it is of another Stable Diffusion (2, XL, one for inpainting), or not whole.
    """
    own = {name.removeprefix(PREFIX): shape for name, shape in shapes.items() if _is_of_unet(name)}
    told = Told(own, path, "UNet2DConditionModel")
    channels, out = told.shape(FIRST, 4)[1], told.shape("out.2.weight", 4)[0]
    if LABELS in own or len(own.get(PROJECTION, ())) != 4 or channels != out:
        raise UserError(f"{path} is no image model of Stable Diffusion 1.5's form; name one, or a diffusers folder")
    text = told.shape("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", 2)[1]
    first = range(1, LEVELS * (LAYERS + 1), LAYERS + 1)  # layers of each level, and what makes it smaller
    return {
        "sample_size": 64, "in_channels": channels, "out_channels": out, "layers_per_block": LAYERS,
        "block_out_channels": tuple(told.shape(f"input_blocks.{n}.0.in_layers.2.weight", 4)[0] for n in first),
        "down_block_types": ("CrossAttnDownBlock2D",) * (LEVELS - 1) + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (LEVELS - 1),
        "attention_head_dim": HEADS,  # diffusers' name of how many there are
        "cross_attention_dim": text,
    }  # fmt: skip


def refuse_velocity(names: Iterable[str], header: Mapping[str, str], path: Path) -> None:
    """Stop at a file that says that its model does not put out the noise; one that says nothing is taken to.

    Raises:
        UserError: it says so.
    """
    said = header.get("modelspec.prediction_type", "epsilon")
    if not VELOCITY.isdisjoint(names) or said not in ("epsilon", "eps"):
        raise UserError(f"{path} does not predict the noise, and image models that do are taken alone; name another")


def names_in(names: Iterable[str], config: dict[str, Any]) -> dict[str, str]:
    """diffusers' name of each of the UNet's weights, and the file's."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    listed = {PREFIX + name.removeprefix(PREFIX): name for name in names if _is_of_unet(name)}
    found: dict[str, str] = convert_ldm_unet_checkpoint(listed, config)  # it only moves what it is given
    return found


def _is_of_unet(name: str) -> bool:
    return name.startswith((PREFIX, *PARTS))
