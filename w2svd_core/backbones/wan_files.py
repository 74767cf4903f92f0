"""Weights of encoders from disk: a folder as its library reads it, or one file under any of its usual names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..files import opened_safetensors
from ..hashing import tensors_hash, value_hash
from .wan_keys import _refuse_scaled as refuse_scaled
from .wan_loading import PLAIN
from .wan_variants import CONFIGS

Shapes = Mapping[str, Sequence[int]]  # a file's name of a tensor -> its shape
Plan = Callable[[Shapes], tuple[nn.Module, Mapping[str, str]]]  # the model; its name of a parameter -> the file's
SAMPLE = 4096  # numbers of each tensor that a fingerprint looks at


def bundled_config(name: str) -> dict[str, Any]:
    """The arguments that a published model was made with, from `configs/`."""
    text = (CONFIGS / f"{name}.json").read_text(encoding="utf-8")
    return {key: value for key, value in json.loads(text).items() if not key.startswith("_")}


def class_in(folder: Path) -> str:
    """The class that a folder's config.json names; "" where it names none.

    Raises:
        UserError: the config is not a JSON object.
    """
    place = folder / "config.json"
    try:
        config = json.loads(place.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON ({error}); copy the model again") from error
    if not isinstance(config, dict):
        raise UserError(f"{place} is not a JSON object; copy the model again")
    named = config.get("_class_name") or config.get("architectures") or ""
    return str(named if isinstance(named, str) else next(iter(named), ""))


def from_folder(load: Callable[..., Any], folder: Path, what: str, **arguments: Any) -> Any:
    """What a library's `from_pretrained` reads from a folder, offline, with every weight in its place.

    Raises:
        UserError: it can't be read, or a weight is missing.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]  # it would count tensors, for a moment
    try:
        model, found = load(folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **arguments)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"{folder} could not be read as {what} ({error}); copy it again") from error
    if found["missing_keys"] or found.get("mismatched_keys"):
        raise UserError(f"{folder} does not hold the {what} that its config.json describes; copy it again")
    return model


def from_file(path: Path, what: str, plan: Plan, dtype_of: Callable[[str], torch.dtype]) -> Any:
    """A model from one safetensors file, tensor by tensor, so that there is never a second copy of it.

    Args:
        what: the model's kind, for messages.
        plan: from the shapes of the file's tensors, the model without weights, and where each of them is.
        dtype_of: of each parameter, by the model's name of it.

    Raises:
        UserError: it is not there, scaled, quantised, of another kind, or not whole.
    """
    with opened_safetensors(path) as file:
        parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        try:
            refuse_scaled(parts)
            model, own = plan({key: part.get_shape() for key, part in parts.items()})
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except (KeyError, IndexError, ValueError) as error:
            raise UserError(f"{path} does not hold a whole {what} (no {error}); name the model's own") from error
        for key in own.values():
            kind = parts[key].get_dtype()
            if kind not in PLAIN:
                raise UserError(
                    f"{path} holds quantised weights ({key} in {kind}); "
                    f"use the bf16, fp16 or plain fp8 file of the same {what}"
                )
        weights = {name: file.get_tensor(key).to(dtype_of(name), copy=True) for name, key in own.items()}
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(f"{path} does not hold a whole {what}; copy it again") from error
    return model


def hollow(make: Callable[[], nn.Module]) -> nn.Module:
    """A model without weights, ready for `load_state_dict(..., assign=True)`; its tables of positions are made."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return make()


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
