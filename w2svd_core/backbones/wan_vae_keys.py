"""Names of Wan's VAE in its two worlds: diffusers' `AutoencoderKLWan` and Wan's own (original, ComfyUI).

diffusers' own converter knows 2.1 alone. Structural like `wan_keys`: each name of a model is translated whole. Wan's
own names number the parts of a stage in one row: two residual blocks and a resampling in the encoder, three and one in
the decoder. 2.1 numbers all stages in one row, too; 2.2 numbers the stages, and the parts within each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ..errors import UserError
from .weights import strip

_TOP = {
    "quant_conv": "conv1",
    "post_quant_conv": "conv2",
    "conv_in": "conv1",
    "norm_out": "head.0",
    "conv_out": "head.2",
    "mid_block.resnets.0": "middle.0",
    "mid_block.attentions.0": "middle.1",
    "mid_block.resnets.1": "middle.2",
}
_RESIDUAL = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
_STAGE = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(?:resnets\.(\d+)\.|(downsampler|upsamplers?)(?:\.0)?\.)?(.+)")
_ROW = {"down_blocks": "downsamples", "up_blocks": "upsamples"}
_PREFIXES = ("first_stage_model.", "vae.", "model.")
RESIDUALS = 2  # residual blocks of a stage of the encoder; the decoder has one more


def native_name(name: str, residual: bool) -> str:
    """Wan's own name of a parameter of diffusers' VAE.

    Args:
        residual: it is 2.2's VAE.
    """
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return f"{_TOP[side]}.{rest}"
    stage = _STAGE.fullmatch(rest)
    if stage is not None:
        return f"{side}.{_in_stage(stage, residual)}"
    for ours, theirs in _TOP.items():
        if rest.startswith(ours + "."):
            return f"{side}.{theirs}.{_in_part(rest[len(ours) + 1 :])}"
    raise KeyError(name)


def _in_stage(name: re.Match[str], residual: bool) -> str:
    kind, index, block, resampling, rest = name.groups()
    row, stage = _ROW[kind], int(index)
    blocks = RESIDUALS + (kind == "up_blocks")
    if block is None and resampling is None:  # 2.1's encoder is in one row already
        return f"{row}.{stage}.{_in_part(rest)}"
    part = blocks if block is None else int(block)
    place = f"{stage}.{row}.{part}" if residual else f"{stage * (blocks + 1) + part}"
    return f"{row}.{place}.{_in_part(rest)}"


def _in_part(rest: str) -> str:
    """A name inside a residual block; attention and resampling have the same names in both worlds."""
    module, dot, leaf = rest.partition(".")
    return _RESIDUAL.get(module, module) + dot + leaf


def diffusers_names(names: Sequence[str], wanted: Iterable[str], residual: bool) -> Mapping[str, str]:
    """Where a file keeps what: diffusers' name of each parameter -> the file's own name.

    Args:
        names: of a file, in either world, with or without prefix.
        wanted: all parameters of diffusers' model.

    Raises:
        UserError: the file lacks one of them.
    """
    own = strip(names, _PREFIXES)
    found = {}
    for name in wanted:
        key = name if name in own else native_name(name, residual)
        if key not in own:
            raise UserError(f"the file has no {key}, so it does not hold a whole Wan VAE; copy it again")
        found[name] = own[key]
    return found


def shape_names(names: Sequence[str]) -> dict[str, str]:
    """The few tensors whose shapes tell which VAE it is: diffusers' name -> the file's own name.

    Raises:
        UserError: no VAE of Wan has these names.
    """
    own = strip(names, _PREFIXES)
    found = {}
    for name in ("post_quant_conv.weight", "encoder.conv_in.weight", "decoder.norm_out.gamma"):
        key = next((key for key in (name, native_name(name, False)) if key in own), None)
        if key is None:
            raise UserError(f"there is no {native_name(name, False)}, so it is not a VAE of Wan; name the model's own")
        found[name] = own[key]
    return found
