"""LoRAs and native MODELs: any file's keys become the ones that ComfyUI knows, and nothing is dropped in silence.

ComfyUI leaves keys that it does not know out, says so in the log only, and renders as if there were no LoRA.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..w2svd_core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from ..w2svd_core.backbones.base import KeyMap
    from ..w2svd_core.lora_metadata import LoraMetadata

PREFIX = "diffusion_model."  # of every parameter of a native model
_UP = re.compile(r"(?P<layer>.+)\.lora_(?:up|B)(?P<adapter>\.[^.]+)?\.weight")


class LoraModel(dict[str, "Tensor"]):
    """A LORA_MODEL: tensors by native key, as core takes them, and what is known of the LoRA beside them."""

    about: LoraMetadata | None

    def __init__(self, tensors: Mapping[str, Tensor], about: LoraMetadata | None = None) -> None:
        super().__init__(tensors)
        self.about = about


@dataclass(frozen=True)
class NativeLora:
    """A LoRA with keys for ComfyUI.

    Attributes:
        tensors: by native key.
        unknown: keys of the file that mean nothing for the model's family.
        source: what errors and reports call it.
        about: what this project wrote about it; None for others' files.
    """

    tensors: Mapping[str, Tensor]
    unknown: tuple[str, ...] = ()
    source: str = "the LoRA"
    about: LoraMetadata | None = None


@dataclass(frozen=True)
class Fit:
    """How a LoRA fitted a model.

    Attributes:
        layers: of the model that it changes.
        unmatched: its layers (or keys that are not understood) that the model has no place for.
    """

    layers: int
    unmatched: tuple[str, ...]

    def told(self) -> str:
        """One line for the node."""
        if not self.unmatched:
            return f"all {self.layers} layers of the LoRA matched"
        shown = ", ".join(self.unmatched[:3]) + (", ..." if len(self.unmatched) > 3 else "")
        return f"{self.layers} layers matched, {len(self.unmatched)} did not: {shown}"


# ---- reading


def family_keys(model: Any) -> KeyMap | None:
    """The names of a native MODEL's family; None for a family that this project does not know."""
    from ..w2svd_core.backbones.comfy_model import family_of_model

    return family_of_model(model.model)


def read_native(path: Path, keys: KeyMap | None, source: str) -> NativeLora:
    """A LoRA file in native, diffusers', peft's or kohya's keys.

    Args:
        keys: of the family that it is for; None takes the file's own keys, for core to understand.

    Raises:
        UserError: as `w2svd_core.lora_files.read_lora`.
    """
    from ..w2svd_core.files import read_safetensors

    tensors, strings = read_safetensors(path)
    return as_native(tensors, strings, keys, path, source)


def as_native(
    tensors: Mapping[str, Tensor], strings: Mapping[str, str], keys: KeyMap | None, path: Path, source: str
) -> NativeLora:
    """As `read_native`, of tensors and metadata that were read already."""
    from ..w2svd_core.lora_files import LoraMetadata, change_of, lora_of, native_tensors

    if keys is None:
        return NativeLora(tensors, (), source, LoraMetadata.from_strings(strings, source))
    pairs, about, unknown = lora_of(tensors, strings, keys, path)
    found = native_tensors(pairs, keys)
    for key, tensor in tensors.items():
        whose = change_of(key, keys)
        if whose is None:
            continue
        native = keys.native_module(whose[0][0].module)
        if keys.parts(native) == whose[0]:
            found[f"{PREFIX}{native}.{'diff_b' if whose[1] else 'diff'}"] = tensor
        else:  # of one part of a native layer
            unknown.append(key)
    return NativeLora(found, tuple(unknown), source, about)


def of_socket(lora: Mapping[str, Tensor], keys: KeyMap | None, source: str = "the LORA_MODEL") -> NativeLora:
    """A LORA_MODEL that came in over a socket.

    Raises:
        UserError: as `read_native`.
    """
    found = as_native(lora, {}, keys, Path(source), source)
    return replace(found, about=getattr(lora, "about", None))


# ---- applying


def put_on(model: Any, lora: NativeLora, strength: float) -> tuple[Any, Fit]:
    """A copy of a MODEL with a LoRA on it; the MODEL itself stays as it is.

    Raises:
        UserError: no layer of it is the model's, or one is of another width.
    """
    from comfy.lora import load_lora, model_lora_keys_unet

    places: dict[str, Any] = model_lora_keys_unet(model.model, {})
    weights: Mapping[str, Tensor] = model.model.state_dict()
    known = {key: _layer_of(key, places) for key in lora.tensors}
    lost = sorted({_stem(key) for key, layer in known.items() if layer is None})
    if all(layer is None for layer in known.values()):
        first = (*lora.unknown, *lost, "none")[0]
        raise UserError(
            f"{lora.source} has no layer of this {type(model.model).__name__} model (its first key: {first}); "
            "choose a LoRA that was made for it"
        )
    _check_widths(lora, places, weights)
    patches = load_lora(dict(lora.tensors), places, log_missing=False)
    clone = model.clone()
    clone.add_patches(patches, strength)
    layers = {_name(places[layer]) for layer in known.values() if layer is not None}
    return clone, Fit(len(layers), (*lost, *lora.unknown))


def _layer_of(key: str, places: Mapping[str, Any]) -> str | None:
    """What of a key names a layer of the model: all but its last one to three parts."""
    parts = key.split(".")
    stems = (".".join(parts[:-cut]) for cut in (1, 2, 3))
    return next((stem for stem in stems if stem in places), None)


def _stem(key: str) -> str:
    return re.sub(r"\.(lora_(up|down|A|B)(\.[^.]+)?\.weight|alpha|dora_scale|diff|diff_b)$", "", key)


def _name(place: Any) -> str:
    """Of a parameter, or of a part of one (a tuple: the parameter, then where in it)."""
    return place if isinstance(place, str) else f"{place[0]} {place[1:]}"


def _check_widths(lora: NativeLora, places: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """ComfyUI itself finds a wrong width only while it samples, and goes on without the layer."""
    for key, up in lora.tensors.items():
        match = _UP.fullmatch(key)
        if match is None:
            continue
        layer, sides = match["layer"], {"up": "down", "B": "A"}
        other = f"{layer}.lora_{sides[key[len(layer) + 6 :].split('.')[0]]}{match['adapter'] or ''}.weight"
        down, place = lora.tensors.get(other), places.get(layer)
        weight = weights.get(place) if isinstance(place, str) else None
        if down is None or weight is None or f"{layer}.reshape_weight" in lora.tensors:
            continue
        own, wanted = (up.shape[0], down[0].numel()), (weight.shape[0], weight[0].numel())
        if own != wanted:
            raise UserError(
                f"{lora.source} has the layer {layer.removeprefix(PREFIX)} {own[1]} -> {own[0]} wide, this model "
                f"{wanted[1]} -> {wanted[0]}; choose a LoRA of this model's size"
            )
