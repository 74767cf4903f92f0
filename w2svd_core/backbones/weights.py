"""Weights from disk: a folder as its library reads it, or one file under any of its usual names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, out_of_memory
from ..files import opened_safetensors
from ..hashing import tensors_hash, value_hash

Shapes = Mapping[str, Sequence[int]]  # a file's name of a tensor -> its shape
Header = Mapping[str, str]
# from shapes and header: the model without weights, and its name of each parameter -> the file's
Plan = Callable[[Shapes, Header], tuple[nn.Module, Mapping[str, str]]]
# parts of a name that only files with scaled weights have; read as plain weights they are silently wrong
QUANTISED = ("scaled_fp8", "scale_weight", "scale_input", "weight_scale", "input_scale", "comfy_quant")
PLAIN = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # safetensors' names of numbers that can be cast
SAMPLE = 4096  # numbers of each tensor that a fingerprint looks at


def class_in(folder: Path) -> str:
    """The class that a folder's config.json names; "" where it names none.

    Raises:
        UserError: there is no config, or it is not a JSON object.
    """
    place = folder / "config.json"
    if not place.is_file():
        raise UserError(f"{folder} has no config.json; name a model's own folder as diffusers writes it, or its file")
    config = read_json(place.read_bytes(), place)
    named = config.get("_class_name") or config.get("architectures") or ""
    return str(named if isinstance(named, str) else next(iter(named), ""))


def read_json(text: str | bytes, place: Path | str) -> dict[str, Any]:
    """A config as it stands there.

    Raises:
        UserError: it is not JSON, or not an object.
    """
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON ({error}); copy the model again") from error
    if not isinstance(config, dict):
        raise UserError(f"{place} is not a JSON object; copy the model again")
    return config


def from_folder(load: Callable[..., Any], folder: Path, what: str, *, alone: bool = False, **arguments: Any) -> Any:
    """What a library's `from_pretrained` reads from a folder, offline, with every weight in its place.

    Args:
        what: the model's kind, for messages.
        alone: the folder may hold nothing but this model; a text encoder's may hold a decoder, too.

    Raises:
        UserError: it can't be read, or a weight is missing, or over.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]  # it would count tensors, for a moment
    try:
        model, found = load(folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **arguments)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        if out_of_memory(error):
            raise
        raise UserError(f"{folder} could not be read as a {what} ({error}); copy it again") from error
    if found["missing_keys"] or found.get("mismatched_keys") or (alone and found["unexpected_keys"]):
        raise UserError(f"{folder} does not hold the {what} that its config.json describes; copy it again")
    return model


def as_it_is(name: str, tensor: Tensor) -> Tensor:
    """A weight that needs no fitting."""
    return tensor


def from_file(
    path: Path,
    what: str,
    plan: Plan,
    dtype_of: Callable[[str], torch.dtype],
    fitted: Callable[[str, Tensor], Tensor] = as_it_is,
) -> Any:
    """A model from one safetensors file, tensor by tensor, so that there is never a second copy of it.

    Args:
        what: the model's kind, for messages.
        plan: from the shapes of the file's tensors and its header, the model without weights, and where each is.
        dtype_of: of each parameter, by the model's name of it.
        fitted: each parameter as the model has it, by the model's name and as the file has it.

    Raises:
        UserError: it is not there, scaled, quantised, of another kind, or not whole.
    """
    with opened_safetensors(path) as file:
        parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        try:
            refuse_scaled(parts)
            model, own = plan({key: part.get_shape() for key, part in parts.items()}, dict(file.metadata() or {}))
        except UserError as error:
            named = str(path) in str(error)
            raise UserError(str(error) if named else f"{path}: {error}") from error
        except (KeyError, IndexError, ValueError) as error:
            raise UserError(f"{path} does not hold a whole {what} (no {error}); name the model's own") from error
        for key in own.values():
            kind = parts[key].get_dtype()
            if kind not in PLAIN:
                raise UserError(
                    f"{path} holds quantised weights ({key} in {kind}); "
                    f"use the bf16, fp16 or plain fp8 file of the same {what}"
                )
        weights = {name: fitted(name, file.get_tensor(key)).to(dtype_of(name), copy=True) for name, key in own.items()}
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(f"{path} does not hold the {what} that its sizes describe; copy it again") from error
    return model


def refuse_scaled(names: Iterable[str]) -> None:
    """Stop at a file of scaled weights.

    Raises:
        UserError: one of its names belongs to such weights.
    """
    scaled = [name for name in names if any(part in QUANTISED for part in name.split("."))]
    if scaled:
        raise UserError(
            f"the checkpoint holds scaled weights (key {scaled[0]}), which can't be read as plain ones; "
            "use the bf16, fp16 or plain fp8 file of the same model"
        )


def hollow(make: Callable[[], nn.Module]) -> nn.Module:
    """A model without weights, ready for `load_state_dict(..., assign=True)`; its tables of positions are made."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return make()


def save_folder(make: Callable[[], Any], weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write a diffusers folder of a model with these weights; the model that they come from keeps its own numbers.

    Args:
        make: a new model of the same config.
    """
    with torch.device("meta"):
        twin = make()
    twin.load_state_dict(weights, assign=True)
    twin.save_pretrained(folder, safe_serialization=True)


def frozen(model: nn.Module, device: torch.device) -> Any:
    """The model on the device, without dropout and gradients."""
    return model.eval().requires_grad_(False).to(device)


def strip(names: Iterable[str], prefixes: Sequence[str]) -> dict[str, str]:
    """Names without the first of the prefixes that they have: name -> the file's own."""
    short: dict[str, str] = {}
    for name in names:
        prefix = next((p for p in prefixes if name.startswith(p)), "")
        short[name[len(prefix) :]] = name
    return short


def sampled_hash(tensors: Mapping[str, Tensor], about: Any = None) -> str:
    """A fingerprint in a second, of billions of weights: names, shapes, dtypes, and evenly spaced numbers of each."""
    some = {name: _some(value.detach().reshape(-1)) for name, value in tensors.items()}
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    return value_hash([tensors_hash(some), shapes, about])


def _some(flat: Tensor) -> Tensor:
    return flat[:: max(1, len(flat) // SAMPLE)]
