"""Image models of Stable Diffusion's kind: diffusers' `UNet2DConditionModel`. Each frame of a clip is an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..flow import Timesteps
from .base import Architecture
from .stable_diffusion import is_stable_diffusion, names_in, refuse_velocity, sizes_of
from .unet import UNetBackbone
from .weights import Header, Shapes


class ImageUNet(UNetBackbone):
    """Stable Diffusion 1.5 and models of its form and schedule."""

    name = "image_unet"
    class_name = "UNet2DConditionModel"
    files = "a file of Stable Diffusion 1.5's form or one that this project wrote"
    timesteps = Timesteps("scaled_linear")

    def sizes(self, architecture: Architecture) -> dict[str, Any]:
        return {
            **super().sizes(architecture),
            "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2,
            "attention_head_dim": architecture.heads,  # diffusers' name of how many there are
        }

    def config_in(self, shapes: Shapes, header: Header, path: Path) -> dict[str, Any]:
        if not is_stable_diffusion(shapes):
            return super().config_in(shapes, header, path)
        refuse_velocity(shapes, header, path)
        return sizes_of(shapes, path)

    def names_in(self, shapes: Shapes, config: dict[str, Any]) -> dict[str, str]:
        return names_in(shapes, config) if is_stable_diffusion(shapes) else super().names_in(shapes, config)

    def call(self, model: nn.Module, x_t: Tensor, time: Tensor, text: Tensor) -> Tensor:
        b, _, f, _, _ = x_t.shape
        images = x_t.transpose(1, 2).flatten(0, 1)
        output: Tensor = model(images, time.repeat_interleave(f), encoder_hidden_states=text, return_dict=False)[0]
        frames: Tensor = output.unflatten(0, (b, f))
        return frames.transpose(1, 2)


BACKBONE = ImageUNet()
