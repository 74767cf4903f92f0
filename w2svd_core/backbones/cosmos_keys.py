"""Names of a Cosmos-Predict2.5 transformer in its two worlds: diffusers' modules and NVIDIA's own (ComfyUI's, too).

The mapping is structural: a name is a top-level module, or `transformer_blocks.<n>.` (theirs: `blocks.<n>.`) and a
module of a block. Nothing is replaced inside a string, so a name is either translated whole or refused.
The module itself is a `KeyMap` for `lora_files`: `component`, `native_module`, `parts` and `native_alpha`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from ..errors import UserError
from .key_parts import Part, Parts
from .weights import refuse_scaled

Value = TypeVar("Value")
component = "transformer"

# diffusers name -> NVIDIA's (the names in the released checkpoints), of everything outside the blocks
_TOP = {
    "patch_embed.proj": "x_embedder.proj.1",
    "time_embed.t_embedder.linear_1": "t_embedder.1.linear_1",
    "time_embed.t_embedder.linear_2": "t_embedder.1.linear_2",
    "time_embed.norm": "t_embedding_norm",
    "norm_out.linear_1": "final_layer.adaln_modulation.1",
    "norm_out.linear_2": "final_layer.adaln_modulation.2",
    "proj_out": "final_layer.linear",
    "crossattn_proj.0": "crossattn_proj.0",
}
_ATTENTION = {
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "to_out.0": "output_proj",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
}
_NORMS = {"norm1": "self_attn", "norm2": "cross_attn", "norm3": "mlp"}
_BLOCK = {
    **{f"attn1.{ours}": f"self_attn.{theirs}" for ours, theirs in _ATTENTION.items()},
    **{f"attn2.{ours}": f"cross_attn.{theirs}" for ours, theirs in _ATTENTION.items()},
    **{f"{norm}.linear_{n}": f"adaln_modulation_{of}.{n}" for norm, of in _NORMS.items() for n in (1, 2)},
    "ff.net.0.proj": "mlp.layer1",
    "ff.net.2": "mlp.layer2",
}
_TOP_BACK = {native: ours for ours, native in _TOP.items()}
_BLOCK_BACK = {native: ours for ours, native in _BLOCK.items()}

_OURS, _THEIRS = "transformer_blocks.", "blocks."
_NUMBERED = re.compile(r"(\d+)\.(.+)")
_PARAMETER = (".weight", ".bias")
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "net.")
# counters and tables that NVIDIA's files carry along; no weight of the model
_BESIDE = re.compile(r"accum_.*|pos_embedder\..*|.*\._extra_state")


def native_module(name: str) -> str:
    """NVIDIA's name of a diffusers module: `transformer_blocks.0.attn1.to_q` -> `blocks.0.self_attn.q_proj`.

    Raises:
        UserError: no Cosmos transformer of diffusers has this module.
    """
    found = _translate(name, _TOP, _BLOCK, _OURS, _THEIRS)
    if found is None:
        raise UserError(f"{name} is not a module of diffusers' Cosmos transformer; is it for another model?")
    return found


def diffusers_module(name: str) -> str:
    """The diffusers name of NVIDIA's module, without prefix: `blocks.0.mlp.layer1` -> `...0.ff.net.0.proj`.

    Raises:
        UserError: no Cosmos transformer of NVIDIA's has this module.
    """
    found = _translate(name, _TOP_BACK, _BLOCK_BACK, _THEIRS, _OURS)
    if found is None:
        raise UserError(f"{name} is not a module of NVIDIA's Cosmos transformer; is it for another model?")
    return found


def parts(name: str) -> Parts:
    """What one of NVIDIA's modules is in diffusers: always one module."""
    return (Part(diffusers_module(name)),)


def native_alpha(name: str) -> bool:
    """Whether readers of native LoRA files honour an `.alpha` beside this module: ComfyUI does everywhere."""
    return True


def to_native(state: Mapping[str, Value], prefix: str = "") -> dict[str, Value]:
    """Rename a whole diffusers state dict to NVIDIA's names; tensors are passed on, not copied.

    Args:
        prefix: put before each name: "net." as NVIDIA writes it, "model.diffusion_model." as ComfyUI does.

    Raises:
        UserError: a name that no Cosmos transformer has.
    """
    return {prefix + _leaf(name, native_module): value for name, value in state.items()}


def diffusers_names(names: Iterable[str]) -> dict[str, str]:
    """Where a single file keeps what: diffusers' name of each parameter -> the file's own name.

    Args:
        names: of a file with NVIDIA's names or diffusers', with or without prefix.

    Raises:
        UserError: a name that no Cosmos transformer has, the same name twice, or scaled weights (fp8_scaled).
    """
    kept = {name: strip_prefix(name) for name in names}
    refuse_scaled(kept)
    kept = {name: short for name, short in kept.items() if not _BESIDE.fullmatch(short)}
    ours = any(short.startswith(_OURS) for short in kept.values())
    found: dict[str, str] = {}
    for name, short in kept.items():
        new = short if ours else _leaf(short, diffusers_module)
        if ours:
            _leaf(short, native_module)  # refuses what is not there
        if new in found:
            raise UserError(f"the checkpoint holds {short} twice, with and without a prefix; save it once")
        found[new] = name
    return found


def strip_prefix(name: str) -> str:
    """Remove `model.diffusion_model.`, `diffusion_model.` or `net.` from the front of a name."""
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    return name[len(prefix) :]


def _leaf(name: str, module: Callable[[str], str]) -> str:
    """A parameter's new name, by the new name of its module."""
    end = next((end for end in _PARAMETER if name.endswith(end)), "")
    return module(name.removesuffix(end)) + end


def _translate(name: str, top: Mapping[str, str], block: Mapping[str, str], before: str, after: str) -> str | None:
    if not name.startswith(before):
        return top.get(name)
    inside = _NUMBERED.fullmatch(name.removeprefix(before))
    new = None if inside is None else block.get(inside[2])
    return None if inside is None or new is None else f"{after}{inside[1]}.{new}"
