"""HunyuanVideo 1.5's VAE as a codec: 32 channels, 16 pixels and 4 frames to a cell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from .video_vae import ScaledVae
from .weights import Header, Shapes, class_in, from_file, from_folder, hollow, strip

CLASS = "AutoencoderKLHunyuanVideo15"
TILE_ABOVE = 256 * 256  # pixels of a frame, a tile of diffusers; larger ones are done in overlapping tiles
CHANNELS = 32
PATCH = 1  # of every HunyuanVideo 1.5 transformer
PREFIXES = ("vae.", "first_stage_model.")
# diffusers' names -> its makers' (diffusers' conversion script)
_MAKERS = (
    (r"\.(down|up)_blocks\.(\d+)\.resnets\.(\d+)\.", r".\1.\2.block.\3."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", r".up.\1.upsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
)


class Hunyuan15Vae(ScaledVae):
    """A codec of diffusers' `AutoencoderKLHunyuanVideo15`."""

    patch, tiles_from = PATCH, TILE_ABOVE


def load_vae(place: Path, dtype: torch.dtype) -> nn.Module:
    """An `AutoencoderKLHunyuanVideo15` from a diffusers folder, or from one file with its makers' or diffusers' names.

    Raises:
        UserError: broken, scaled, or not a VAE of HunyuanVideo 1.5.
    """
    from diffusers import AutoencoderKLHunyuanVideo15

    what = "HunyuanVideo 1.5 VAE"
    model: nn.Module
    if place.is_dir():
        if class_in(place) != CLASS:
            raise UserError(f"{place} is not a diffusers folder of an {CLASS}; check model.vae")
        model = from_folder(AutoencoderKLHunyuanVideo15.from_pretrained, place, what, torch_dtype=dtype)
    else:
        model = from_file(place, what, _plan, lambda name: dtype)
    return model


def _plan(shapes: Shapes, header: Header) -> tuple[nn.Module, Mapping[str, str]]:
    from diffusers import AutoencoderKLHunyuanVideo15

    own = strip(shapes, PREFIXES)
    config = vae_config({name: shapes[key] for name, key in own.items()})
    model = hollow(lambda: AutoencoderKLHunyuanVideo15.from_config(config))
    names = {name: _either(own, name) for name in model.state_dict()}
    return model, {name: own[there] for name, there in names.items() if there in own}


def makers_name(name: str) -> str:
    """Tencent's name, which ComfyUI's files have, too, of a parameter of diffusers' class."""
    for pattern, instead in _MAKERS:
        name = re.sub(pattern, instead, name)
    return name


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """The arguments of the class, from the shapes of its tensors under either names; the rest are its defaults.

    Raises:
        UserError: it is no VAE of HunyuanVideo 1.5.
    """
    last, inside = shapes.get("decoder.conv_in.conv.weight"), "encoder.mid_block.attentions.0.norm.gamma"
    if last is None or _either(shapes, inside) not in shapes:
        raise UserError("it is not a VAE of HunyuanVideo 1.5; name the model's own in model.vae")
    if last[1] != CHANNELS:
        raise UserError(
            f"a VAE of {last[1]} latent channels is not HunyuanVideo 1.5's ({CHANNELS}); name the model's own"
        )

    def first_of(block: int, resnet: int = 0) -> str:
        return _either(shapes, f"encoder.down_blocks.{block}.resnets.{resnet}.conv2.conv.weight")

    blocks = next(block for block in range(len(shapes)) if first_of(block) not in shapes)
    layers = next(resnet for resnet in range(len(shapes)) if first_of(0, resnet) not in shapes)
    return {"block_out_channels": [shapes[first_of(block)][0] for block in range(blocks)], "layers_per_block": layers}


def _either(names: Iterable[str], name: str) -> str:
    return name if name in names else makers_name(name)
