"""AnimateDiff (arXiv 2307.04725): diffusers' `UNetMotionModel`, an image UNet with motion modules in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..flow import Timesteps
from .base import Architecture
from .unet import NOISE, UNetBackbone
from .weights import class_in, from_folder

ADAPTER = "MotionAdapter"
MAX_FRAMES = 32  # of a model that is trained from scratch


class AnimateDiff(UNetBackbone):
    """AnimateDiff on Stable Diffusion 1.5; its betas are evenly spaced, which the image model's are not."""

    name = "animatediff"
    class_name = "UNetMotionModel"
    not_in_comfyui = "ComfyUI's core has no motion modules; sample it as above, or in diffusers' AnimateDiffPipeline"
    timesteps = Timesteps("linear")

    def sizes(self, architecture: Architecture) -> dict[str, Any]:
        return {
            **super().sizes(architecture),
            "down_block_types": ("CrossAttnDownBlockMotion",) * 2,
            "up_block_types": ("CrossAttnUpBlockMotion",) * 2,
            "num_attention_heads": architecture.heads,
            "motion_num_attention_heads": architecture.heads,
            "motion_max_seq_length": MAX_FRAMES,
        }

    def load_folder(self, path: Path, dtype: torch.dtype) -> nn.Module:
        """A whole `UNetMotionModel`, or a pipeline of an image UNet with its adapter in `motion_adapter`."""
        from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

        unet, adapter = path / "unet", path / "motion_adapter"
        if not (unet.is_dir() and class_in(unet) == "UNet2DConditionModel"):
            return super().load_folder(path, dtype)
        if not (adapter.is_dir() and class_in(adapter) == ADAPTER):
            raise UserError(f"{path} is an image model; put the {ADAPTER} into its folder motion_adapter")
        # its betas may be the image model's, from whose pipeline the folder was made: AnimateDiff has the adapter's own
        self._check_scheduler(path / "scheduler" / "scheduler_config.json", NOISE)
        image = from_folder(UNet2DConditionModel.from_pretrained, unet, "image UNet", alone=True, torch_dtype=dtype)
        motion = from_folder(MotionAdapter.from_pretrained, adapter, ADAPTER, alone=True, torch_dtype=dtype)
        found: nn.Module = UNetMotionModel.from_unet2d(image, motion)
        return found.to(dtype)

    def call(self, model: nn.Module, x_t: Tensor, time: Tensor, text: Tensor) -> Tensor:
        longest = int(model.config["motion_max_seq_length"])  # type: ignore[index]
        if x_t.shape[2] > longest:
            raise UserError(f"this AnimateDiff makes clips of at most {longest} frames; lower data.frames")
        output: Tensor = model(x_t, time, encoder_hidden_states=text, return_dict=False)[0]
        return output


BACKBONE = AnimateDiff()
