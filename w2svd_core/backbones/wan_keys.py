"""Names of a Wan transformer in its two worlds: diffusers' modules and Wan's own (original, ComfyUI).

The mapping is structural: a name is a top-level module, or `blocks.<n>.` / `vace_blocks.<n>.` and a module
of a block. Nothing is replaced inside a string, so a name is either translated whole or refused. Covers
text-to-video, image-to-video (image embedder, added projections, first-last-frame position) and VACE.
The module itself is a `KeyMap` for `lora_files`: `component`, `native_module`, `parts` and `native_alpha`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import UserError
from .key_parts import Part, Parts
from .weights import refuse_scaled

Value = TypeVar("Value")
component = "transformer"

# diffusers name -> native name, of everything outside the blocks
_TOP = {
    "patch_embedding": "patch_embedding",
    "vace_patch_embedding": "vace_patch_embedding",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "condition_embedder.image_embedder.pos_embed": "img_emb.emb_pos",
    "proj_out": "head.head",
    "scale_shift_table": "head.modulation",
}

_ATTENTION = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "norm_added_k": "norm_k_img",
}

# the same inside a block; norm2 and norm3 change places, because diffusers numbers the norms in order of use
_BLOCK = {
    **{f"attn1.{ours}": f"self_attn.{theirs}" for ours, theirs in _ATTENTION.items()},
    **{f"attn2.{ours}": f"cross_attn.{theirs}" for ours, theirs in _ATTENTION.items()},
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm1": "norm1",
    "norm2": "norm3",
    "norm3": "norm2",
    "scale_shift_table": "modulation",
    "proj_in": "before_proj",  # VACE blocks only
    "proj_out": "after_proj",
}

_TOP_BACK = {native: ours for ours, native in _TOP.items()}
_BLOCK_BACK = {native: ours for ours, native in _BLOCK.items()}

# kohya's names: dots are underscores, as they are inside some names, so that only a table tells them apart
_FLAT = re.compile(r"lora_unet_(?:blocks_(?P<block>\d+)_(?P<inside>.+)|(?P<top>.+))")
_FLAT_BLOCK = {native.replace(".", "_"): native for native in _BLOCK_BACK}
_FLAT_TOP = {native.replace(".", "_"): native for native in _TOP_BACK}

_IN_BLOCK = re.compile(r"((?:vace_)?blocks\.\d+\.)(.+)")
_PARAMETER = (".weight", ".bias")
_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_TEXT_WEIGHTS = ("text_embedding.0.weight", "condition_embedder.text_embedder.linear_1.weight")


def native_module(name: str) -> str:
    """The native name of a diffusers module: `blocks.0.attn1.to_q` -> `blocks.0.self_attn.q`.

    Raises:
        UserError: no Wan transformer of diffusers has this module.
    """
    return _module(name, _TOP, _BLOCK, "diffusers'")


def diffusers_module(name: str) -> str:
    """The diffusers name of a native module, without prefix: `blocks.0.self_attn.q` -> `blocks.0.attn1.to_q`.

    kohya's and musubi's LoRA files write the native name without dots: `lora_unet_blocks_0_self_attn_q` is the same.

    Raises:
        UserError: no native Wan transformer has this module.
    """
    flat = _FLAT.fullmatch(name)
    if flat is not None:
        known = _FLAT_BLOCK.get(flat["inside"] or "", "")
        name = f"blocks.{flat['block']}.{known}" if flat["block"] else _FLAT_TOP.get(flat["top"], name)
    return _module(name, _TOP_BACK, _BLOCK_BACK, "the native")


def parts(name: str) -> Parts:
    """What a native module is in diffusers: always one module."""
    return (Part(diffusers_module(name)),)


def native_alpha(name: str) -> bool:
    """Whether readers of native LoRA files honour an `.alpha` beside this diffusers module.

    diffusers' converter knows `.alpha` in the blocks only and fails on any other: elsewhere the scale belongs
    into the weights.
    """
    return name.startswith("blocks.")


def to_native(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Rename a whole diffusers state dict to native names; tensors are passed on, not copied.

    Args:
        state: parameters of a `WanTransformer3DModel` (or its VACE sister) by name.
        prefix: put before each name, for example "model.diffusion_model.".

    Raises:
        UserError: a name that no Wan transformer has.
    """
    return {prefix + _parameter(name, _TOP, _BLOCK, "diffusers'"): tensor for name, tensor in state.items()}


def from_native(state: Mapping[str, Value]) -> dict[str, Value]:
    """Rename a whole native state dict to diffusers names; tensors (or whatever there is) are passed on, not copied.

    Args:
        state: names as in the original or ComfyUI files, with or without `model.diffusion_model.` or
            `diffusion_model.` before them.

    Raises:
        UserError: a name that no Wan transformer has, the same name twice, or scaled weights (fp8_scaled).
    """
    refuse_scaled(state)
    renamed: dict[str, Value] = {}
    for name, tensor in state.items():
        new = _parameter(strip_prefix(name), _TOP_BACK, _BLOCK_BACK, "the native")
        if new in renamed:
            raise UserError(f"the checkpoint holds {strip_prefix(name)} twice, with and without a prefix; save it once")
        renamed[new] = tensor
    return renamed


def diffusers_names(names: Iterable[str]) -> dict[str, str]:
    """Where a single file keeps what: diffusers' name of each parameter -> the file's own name.

    Args:
        names: of a native file or of one with diffusers' names, with or without prefix.

    Raises:
        UserError: a name that no Wan transformer has, the same name twice, or scaled weights (fp8_scaled).
    """
    own = {name: name for name in names}
    if not any(strip_prefix(name).startswith("condition_embedder.") for name in own):
        return from_native(own)
    refuse_scaled(own)
    kept = [name for name in own if ".norm_added_q." not in name]  # older converters wrote it; no model has it
    return {_known(strip_prefix(name)): name for name in kept}


def _known(name: str) -> str:
    _parameter(name, _TOP, _BLOCK, "diffusers'")
    return name


def strip_prefix(name: str) -> str:
    """Remove `model.diffusion_model.` or `diffusion_model.` from the front of a name."""
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def pad_text_dim(state: Mapping[str, Tensor], text_dim: int = 4096) -> dict[str, Tensor]:
    """Widen the text projection to `text_dim` inputs with zero columns.

    The model then takes prompt embeddings that are zero-padded to `text_dim`, and gives the same output.
    ComfyUI fixes Wan's text width at 4096.

    Args:
        state: native (with or without prefix) or diffusers names; the weight is (hidden, inputs).

    Raises:
        UserError: no text projection in the state, or it is wider already.
    """
    padded = dict(state)
    found = [name for name in state if strip_prefix(name) in _TEXT_WEIGHTS]
    if not found:
        raise UserError(f"the checkpoint has no text projection ({_TEXT_WEIGHTS[0]}); is it a Wan transformer?")
    for name in found:
        weight = state[name]
        missing = text_dim - weight.shape[1]
        if missing < 0:
            raise UserError(f"{name} takes {weight.shape[1]} text channels, more than {text_dim}; ask for more")
        if missing:
            padded[name] = torch.cat([weight, weight.new_zeros(weight.shape[0], missing)], dim=1)
    return padded


def _translate(name: str, top: Mapping[str, str], block: Mapping[str, str]) -> str | None:
    inside = _IN_BLOCK.fullmatch(name)
    if inside is None:
        return top.get(name)
    new = block.get(inside[2])
    return None if new is None else inside[1] + new


def _module(name: str, top: Mapping[str, str], block: Mapping[str, str], world: str) -> str:
    new = _translate(name, top, block)
    if new is None:
        raise UserError(f"{name} is not a module of {world} Wan transformer; is it for another model?")
    return new


def _parameter(name: str, top: Mapping[str, str], block: Mapping[str, str], world: str) -> str:
    stem, leaf = name, ""
    for end in _PARAMETER:
        if name.endswith(end):
            stem, leaf = name[: -len(end)], end
    new = _translate(stem, top, block)
    if new is None:
        raise UserError(f"{name} is not a parameter of {world} Wan transformer; is it for another model?")
    return new + leaf
