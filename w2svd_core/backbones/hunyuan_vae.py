"""HunyuanVideo's VAE as a codec: 16 channels, 8 pixels and 4 frames to a cell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .class_config import bundled_config
from .video_vae import ScaledVae
from .weights import Header, Shapes, class_in, from_file, from_folder, hollow, strip

CLASS = "AutoencoderKLHunyuanVideo"
PATCH = 2  # of every HunyuanVideo transformer
TILE_ABOVE = 256 * 256  # pixels of a frame, a tile of its makers; larger ones are done in overlapping tiles
CHANNELS = 16
PREFIXES = ("vae.", "first_stage_model.")
FIRST = "encoder.conv_in.conv.weight"
# the makers' names are diffusers'; ComfyUI's own saves carry those of the first latent diffusion models
_OTHER = (
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"^(en|de)coder\.conv_norm_out\.", r"\1coder.norm_out."),
    (r"\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r".down.\1.block.\2."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.conv\.", r".down.\1.downsample.conv."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
)
_UP = re.compile(r"\.up_blocks\.(\d+)\.(?:resnets\.(\d+)|upsamplers\.0\.conv)\.")


class HunyuanVae(ScaledVae):
    """A codec of diffusers' `AutoencoderKLHunyuanVideo`.

    Long clips go through it in overlapping pieces of 16 frames, as diffusers has it.
    """

    patch, tiles_from = PATCH, TILE_ABOVE


def load_vae(place: Path, dtype: torch.dtype) -> nn.Module:
    """An `AutoencoderKLHunyuanVideo` from a diffusers folder, or from one file with its makers' or ComfyUI's names.

    Raises:
        UserError: broken, scaled, or not a VAE of HunyuanVideo.
    """
    from diffusers import AutoencoderKLHunyuanVideo

    model: nn.Module
    if place.is_dir():
        if class_in(place) != CLASS:
            raise UserError(f"{place} is not a diffusers folder of an {CLASS}; check model.vae")
        model = from_folder(AutoencoderKLHunyuanVideo.from_pretrained, place, "HunyuanVideo VAE", torch_dtype=dtype)
    else:
        model = from_file(place, "HunyuanVideo VAE", _plan, lambda name: dtype, _fitted)
    return model


def _plan(shapes: Shapes, header: Header) -> tuple[nn.Module, Mapping[str, str]]:
    from diffusers import AutoencoderKLHunyuanVideo

    own = strip(shapes, PREFIXES)
    config = vae_config({name: shapes[key] for name, key in own.items()})
    model = hollow(lambda: AutoencoderKLHunyuanVideo.from_config(config))
    names = {name: name if name in own else other_name(name) for name in model.state_dict()}
    return model, {name: own[there] for name, there in names.items() if there in own}


def _fitted(name: str, tensor: Tensor) -> Tensor:
    """ComfyUI keeps the attention's matrices as convolutions of one cell."""
    return tensor.flatten(1) if ".attentions.0.to_" in name and tensor.ndim > 2 else tensor


def other_name(name: str, blocks: int = 4) -> str:
    """ComfyUI's name of a parameter, whose upward blocks count from the last."""
    for pattern, instead in _OTHER:
        name = re.sub(pattern, instead, name)

    def up(found: re.Match[str]) -> str:
        inside = "upsample.conv" if found[2] is None else f"block.{found[2]}"
        return f".up.{blocks - 1 - int(found[1])}.{inside}."

    return _UP.sub(up, name)


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """The arguments of the class, from the shapes of its tensors under either names; the rest as published.

    Raises:
        UserError: it is no VAE of HunyuanVideo.
    """
    last = shapes.get("post_quant_conv.weight", shapes.get("decoder.conv_in.conv.weight"))
    if FIRST not in shapes or last is None:
        raise UserError("it is not a VAE of HunyuanVideo; name the model's own in model.vae")
    if last[1] != CHANNELS:
        raise UserError(f"a VAE of {last[1]} latent channels is not HunyuanVideo's ({CHANNELS}); name the model's own")
    published = bundled_config("hunyuan-video-vae")
    count = len(published["block_out_channels"])
    widths = [shapes[_either(shapes, f"encoder.down_blocks.{i}.resnets.0.conv2.conv.weight")][0] for i in range(count)]
    layers = sum(_present(shapes, f"encoder.down_blocks.0.resnets.{i}.conv2.conv.weight") for i in range(16))
    return {**published, "block_out_channels": widths, "layers_per_block": layers}


def _either(names: Iterable[str], name: str) -> str:
    return name if name in names else other_name(name)


def _present(names: Iterable[str], name: str) -> bool:
    return _either(names, name) in names
