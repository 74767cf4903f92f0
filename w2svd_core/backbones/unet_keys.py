"""Names of UNets' layers in LoRA files: diffusers' own, and Stable Diffusion's, which ComfyUI's core has.

Core counts all blocks of a side through, diffusers counts them level by level; of the layers of a transformer both have
the same names. Levels are of two layers on the way down and three on the way up, as in Stable Diffusion 1.5, 2 and XL;
a smaller UNet's names leave gaps. Motion modules have no place in core: AnimateDiff's are named as in diffusers.
"""

from __future__ import annotations

import re

from ..errors import UserError
from .key_parts import Part, Parts

DOWN, UP = 3, 3  # blocks of a level: two layers and the downsampler, three layers
_TOP = re.compile(r"(down_blocks|up_blocks)\.\d+\.|(mid_block|conv_in|conv_out|conv_norm_out|time_embedding)(\.|$)")
_OURS = re.compile(r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.(.+)")
_CORES = re.compile(r"(input|output)_blocks\.(\d+)\.1\.(.+)")
_OUR_MIDDLE, _CORES_MIDDLE = "mid_block.attentions.0.", "middle_block.1."


class UNetKeys:
    """The key map of image UNets and AnimateDiff."""

    component = "unet"

    def native_module(self, name: str, /) -> str:
        if not _TOP.match(name):
            raise UserError(f"{name} is no module of a UNet; take a file that was made for one")
        if name.startswith(_OUR_MIDDLE):
            return _CORES_MIDDLE + name.removeprefix(_OUR_MIDDLE)
        found = _OURS.fullmatch(name)
        if found is None:
            return name
        level, layer, rest = int(found[2]), int(found[3]), found[4]
        if found[1] == "up":
            return f"output_blocks.{UP * level + layer}.1.{rest}"
        return f"input_blocks.{DOWN * level + layer + 1}.1.{rest}"

    def parts(self, name: str, /) -> Parts:
        return (Part(self._diffusers(name)),)

    def _diffusers(self, name: str) -> str:
        if name.startswith(_CORES_MIDDLE):
            return _OUR_MIDDLE + name.removeprefix(_CORES_MIDDLE)
        found = _CORES.fullmatch(name)
        if found is None:
            self.native_module(name)  # or it is none
            return name
        side = "up" if found[1] == "output" else "down"
        level, layer = divmod(int(found[2]) - (side == "down"), UP if side == "up" else DOWN)
        ours = f"{side}_blocks.{level}.attentions.{layer}.{found[3]}"
        if level < 0 or (side == "down" and layer == DOWN - 1):
            raise UserError(f"{name} is no module of a UNet with layers of its own; take a file that was made for one")
        return ours

    def native_alpha(self, name: str, /) -> bool:
        return True
