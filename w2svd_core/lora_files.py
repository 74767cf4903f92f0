"""LoRA files: native (ComfyUI) and diffusers formats, and the base that a LoRA needs.

In memory a LoRA is `dict[diffusers module name, LoraPair]`; a layer's weight gains alpha / r * up @ down.
Nothing here knows a model family: names are translated by a `KeyMap` (`backbones/wan_keys.py` is one).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .backbones.base import KeyMap
from .backbones.key_parts import Part, Parts, split
from .errors import UserError
from .files import opened_safetensors, read_safetensors, write_safetensors
from .hashing import tensors_hash
from .lora_metadata import LoraMetadata as LoraMetadata
from .lora_metadata import Schedule as Schedule
from .lora_pairs import LoraPair as LoraPair
from .lora_pairs import fused, parted
from .lora_peft import load_into_peft as load_into_peft
from .lora_peft import pairs_from_peft as pairs_from_peft

Format = Literal["native", "diffusers"]
_DIFFUSERS_METADATA = "lora_adapter_metadata"  # the name that diffusers gave to its JSON of rank and alpha
_COMPONENTS = ("transformer.", "unet.")  # of diffusers' pipelines
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", *_COMPONENTS)
_COMPONENT = re.compile("^(" + "|".join(map(re.escape, _COMPONENTS)) + ")")
_KEY = re.compile(r"(?P<module>.+)\.(?:(?P<side>lora_down|lora_up|lora_A|lora_B)(?:\.[^.]+)?\.weight|(?P<alpha>alpha))")
_LORA_PARTS = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"}


# ---- writing -------------------------------------------------------------------------------------


def write_lora(
    path: Path,
    pairs: Mapping[str, LoraPair],
    metadata: LoraMetadata | None,
    *,
    format: Format = "native",
    key_map: KeyMap,
) -> None:
    """Write a LoRA as safetensors, atomically.

    "native" gives `diffusion_model.<native module>.lora_down.weight`, `.lora_up.weight` and `.alpha`, which
    ComfyUI loads as it is; where readers do not honour `.alpha` the scale goes into `up`. "diffusers" gives
    `transformer.<module>.lora_A.weight` (a UNet's begin with `unet.`), `.lora_B.weight`, with rank and alpha in
    diffusers' own metadata.

    Raises:
        UserError: nothing to write, an unknown format or module, or the file can't be written.
    """
    if not pairs:
        raise UserError(f"{path} was not written: the LoRA is empty")
    strings = metadata.to_strings() if metadata else {}
    ranks, alphas = {p.rank for p in pairs.values()}, {p.alpha for p in pairs.values()}
    if len(ranks) == len(alphas) == 1:
        strings |= {"ss_network_dim": str(min(ranks)), "ss_network_alpha": f"{min(alphas):g}"}
    if format == "native":
        tensors = native_tensors(pairs, key_map)
    elif format == "diffusers":
        tensors = {}
        for name, pair in pairs.items():
            stem = f"{key_map.component}.{name}"
            tensors |= {f"{stem}.lora_A.weight": pair.down, f"{stem}.lora_B.weight": pair.up}
        settings = {f"{key_map.component}.{key}": value for key, value in peft_settings(pairs).items()}
        strings[_DIFFUSERS_METADATA] = json.dumps(settings, indent=2, sort_keys=True)
    else:
        raise UserError(f"LoRA format {format!r} is unknown; use native or diffusers")
    write_safetensors(path, tensors, strings)


def native_tensors(pairs: Mapping[str, LoraPair], key_map: KeyMap) -> dict[str, Tensor]:
    """The tensors of a native file, by key; ComfyUI's LORA_MODEL is the same. An unknown module raises `UserError`."""
    layers: dict[str, dict[str, LoraPair]] = {}
    for name, pair in pairs.items():
        layers.setdefault(key_map.native_module(name), {})[name] = pair
    tensors: dict[str, Tensor] = {}
    for native, of_layer in layers.items():
        stem, pair = f"diffusion_model.{native}", fused(key_map.parts(native), of_layer)
        up = pair.up
        if key_map.native_alpha(next(iter(of_layer))):
            tensors[f"{stem}.alpha"] = torch.tensor(pair.alpha, dtype=torch.float32)
        elif pair.alpha != pair.rank:
            up = up * (pair.alpha / pair.rank)
        tensors |= {f"{stem}.lora_down.weight": pair.down, f"{stem}.lora_up.weight": up}
    return tensors


def peft_settings(pairs: Mapping[str, LoraPair]) -> dict[str, Any]:
    """Arguments of `peft.LoraConfig` for exactly these layers, ranks and alphas (JSON-ready)."""
    rank = Counter(pair.rank for pair in pairs.values()).most_common(1)[0][0]
    alpha = Counter(_whole(pair.alpha) for pair in pairs.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(pairs),
        "rank_pattern": {_exactly(name): p.rank for name, p in pairs.items() if p.rank != rank},
        "alpha_pattern": {_exactly(name): _whole(p.alpha) for name, p in pairs.items() if p.alpha != alpha},
    }


def _exactly(name: str) -> str:
    return "^" + re.escape(name)  # peft matches patterns at the end of a name otherwise


def _whole(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


# ---- reading -------------------------------------------------------------------------------------


def read_lora(path: Path, key_map: KeyMap) -> tuple[dict[str, LoraPair], LoraMetadata | None]:
    """Read a LoRA in native names, diffusers names or as peft saves it.

    alpha comes from `.alpha`, else from diffusers' metadata in the file, else from the `adapter_config.json`
    beside a file with peft's names; without any of them it is the rank, as ComfyUI and diffusers read it.

    Returns:
        The layers by diffusers module name, and what this project wrote about them (None for others' files).

    Raises:
        UserError: missing, pickled or truncated; no LoRA inside; keys or layers that are not understood.
    """
    tensors, strings = read_safetensors(path)
    pairs, about, unknown = lora_of(tensors, strings, key_map, path)
    if unknown:
        first = ", ".join(unknown[:3])
        raise UserError(
            f"{path} has {len(unknown)} keys that this model has no place for ({first}); is it for another?"
        )
    return pairs, about


def lora_of(
    tensors: Mapping[str, Tensor], strings: Mapping[str, str], key_map: KeyMap, path: Path
) -> tuple[dict[str, LoraPair], LoraMetadata | None, list[str]]:
    """As `read_lora`, of tensors and metadata that were read already, and the keys that are not understood.

    Args:
        path: what errors call it; peft's `adapter_config.json` is looked for beside it.
    """
    raw: dict[Parts, dict[str, Tensor]] = {}
    odd: list[str] = []
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        parts = _parts(match["module"], key_map) if match else None
        if match is None or parts is None:
            odd.append(key)
            continue
        side = "alpha" if match["alpha"] else "down" if match["side"] in ("lora_down", "lora_A") else "up"
        if side in raw.setdefault(parts, {}):
            raise UserError(f"{path} holds the layer {_told(parts)} twice (key {key}); keep one LoRA in a file")
        raw[parts][side] = tensor
    if not any(".lora_" in key for key in tensors):
        raise UserError(f"{path} holds no LoRA (first key: {next(iter(tensors), 'none')}); choose a LoRA file")
    unknown = [key for key in odd if change_of(key, key_map) is None]
    settings = _settings(path, strings, peft=any(key.startswith("base_model.model.") for key in tensors))
    pairs: dict[str, LoraPair] = {}
    for parts, sides in raw.items():
        try:
            found = parted(parts, _pair(path, _told(parts), sides, settings))
        except UserError as error:
            raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
        if twice := sorted(found.keys() & pairs.keys()):
            raise UserError(f"{path} holds the layer {twice[0]} twice; keep one LoRA in a file")
        pairs |= found
    return pairs, LoraMetadata.from_strings(strings, path), unknown


def read_changes(path: Path, key_map: KeyMap) -> dict[str, Tensor]:
    """What others' files hold beside a LoRA: whole changes of biases (`.diff_b`), norms and tables (`.diff`).

    Returns:
        By diffusers' name, a change of a bias with `.bias` after it.

    Raises:
        UserError: missing, pickled or truncated.
    """
    changes: dict[str, Tensor] = {}
    with opened_safetensors(path) as file:
        for key in file.keys():  # noqa: SIM118 (not a dict)
            if (whose := change_of(key, key_map)) is not None:
                found = split(whose[0], file.get_tensor(key))
                changes |= {name + whose[1]: change for name, change in found.items()}
    return changes


def change_of(key: str, key_map: KeyMap) -> tuple[Parts, str] | None:
    """Whose whole change a key holds: the diffusers modules, and ".bias" or "" after them; None for other keys."""
    for end, leaf in ((".diff_b", ".bias"), (".diff", "")):
        if key.endswith(end):
            parts = _parts(key.removesuffix(end), key_map)
            return None if parts is None else (parts, leaf)
    return None


def has_place(key: str, key_map: KeyMap) -> bool:
    """Whether a family knows what a key of a LoRA file is for."""
    match = _KEY.fullmatch(key)
    return change_of(key, key_map) is not None or bool(match and _parts(match["module"], key_map))


def _told(parts: Parts) -> str:
    return ", ".join(dict.fromkeys(part.module for part in parts))


def _parts(stem: str, key_map: KeyMap) -> Parts | None:
    """The diffusers modules that a key's stem means, or None; a native prefix makes native names win."""
    stem = stem.removeprefix("base_model.model.")
    prefix = next((prefix for prefix in _PREFIXES if stem.startswith(prefix)), "")
    stem = stem[len(prefix) :]

    def native() -> Parts:
        return key_map.parts(stem)

    def ours() -> Parts:
        key_map.native_module(stem)
        return (Part(stem),)

    for reading in (native, ours) if "diffusion_model." in prefix else (ours, native):
        try:
            return reading()
        except UserError:
            continue
    return None


def _settings(path: Path, strings: Mapping[str, str], peft: bool) -> dict[str, Any]:
    """peft's settings, from the file's metadata or the `adapter_config.json` beside it; {} for none."""
    beside = Path(path).with_name("adapter_config.json")
    try:
        if _DIFFUSERS_METADATA in strings:
            found = json.loads(strings[_DIFFUSERS_METADATA])
            settings = {_COMPONENT.sub("", key): value for key, value in found.items()}
        else:
            settings = dict(json.loads(beside.read_text(encoding="utf-8"))) if peft and beside.is_file() else {}
        if settings:
            float(settings["lora_alpha"]), int(settings["r"])
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        where = _DIFFUSERS_METADATA if _DIFFUSERS_METADATA in strings else beside.name
        raise UserError(f"{path}: rank and alpha can't be read from {where}; save the LoRA again") from error
    if settings.get("use_dora"):
        raise UserError(f"{path} is a DoRA, which is more than a LoRA; merge it or use a plain LoRA")
    return settings


def _pair(path: Path, name: str, parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> LoraPair:
    missing = {"down", "up"} - set(parts)
    if missing:
        raise UserError(
            f"{path}: the layer {name} lacks its {' and '.join(sorted(missing))} matrix; copy the file again"
        )
    down, up = parts["down"], parts["up"]
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or down.shape[0] == 0:
        shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
        raise UserError(f"{path}: the layer {name} has shapes {shapes}, which are no pair of a linear layer's LoRA")
    if not (down.isfinite().all() and up.isfinite().all()):
        raise UserError(f"{path}: the layer {name} holds numbers that are not finite; use an earlier checkpoint")
    rank = int(down.shape[0])
    if "alpha" in parts:
        return LoraPair(down, up, float(parts["alpha"].item()))
    if not settings:
        return LoraPair(down, up, float(rank))
    alpha = float(_by_pattern(settings.get("alpha_pattern"), name, settings["lora_alpha"]))
    return LoraPair(down, up, alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha)


def _by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


# ---- the base ------------------------------------------------------------------------------------


def base_hash(state: Mapping[str, Tensor] | nn.Module) -> str:
    """sha256 (hex) over names, dtypes, shapes and bytes of the base weights, in the order of names.

    LoRA tensors are left out and peft's `base_layer` is taken out of names: adapters do not change the hash.
    A base in another precision has another hash.
    """
    tensors = state.state_dict() if isinstance(state, nn.Module) else state
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if not _LORA_PARTS.intersection(parts):
            plain[".".join(part for part in parts if part != "base_layer")] = tensor
    return tensors_hash(plain)


def check_base(metadata: LoraMetadata | None, expected_hash: str, path: Path | str, precision: str = "") -> bool:
    """Compare a LoRA with the base at hand; False when the file does not say what base it is for.

    Args:
        precision: number format of the base at hand, "" where it is not known.

    Raises:
        UserError: it was made for another base, or for this one in another precision.
    """
    if metadata is None or not metadata.base_hash:
        return False
    if metadata.base_hash != expected_hash:
        note = f" ({metadata.note})" if metadata.note else ""
        trained = metadata.base_precision
        if trained and precision and trained != precision:
            raise UserError(
                f"{path} was trained on a base in {trained} and this one is in {precision}, so they can't be compared; "
                f"load the model that it was trained on with --model.precision {trained}"
            )
        raise UserError(
            f"{path} was trained for another base ({metadata.base_class} {metadata.base_hash[:12]}, this one "
            f"is {expected_hash[:12]}); load the model that it was trained on{note}"
        )
    return True
