"""Under which names a native model of ComfyUI is known to LoRA files and fingerprints: its family's, or its own."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ..errors import UserError
from ..lora_pairs import LoraPair, parted
from . import hunyuan15_keys, hunyuan15_loading, hunyuan_keys, hunyuan_loading, wan_keys, wan_loading
from .base import KeyMap
from .key_parts import Part, Parts, is_whole

# families whose native files have names of their own: a key map, and what brings a native state dict into the shape
# that the same file has when it is loaded headless (`as_headless`)
KNOWN: tuple[tuple[ModuleType, ModuleType], ...] = (
    (wan_keys, wan_loading),
    (hunyuan_keys, hunyuan_loading),
    (hunyuan15_keys, hunyuan15_loading),
)


class OwnNames:
    """The names of a model that only ComfyUI has: they stay as they are."""

    component = "transformer"

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def native_module(self, name: str, /) -> str:
        if name not in self._names:
            raise UserError(f"{name} is not a layer of this model; is it for another?")
        return name

    def parts(self, name: str, /) -> Parts:
        return (Part(self.native_module(name)),)

    def native_alpha(self, name: str, /) -> bool:
        return True


class NativeNames:
    """A family's native layers as they are, where some are several of diffusers': by the names of its LoRA files.

    Args:
        keys: the family's.
    """

    component = "transformer"

    def __init__(self, keys: KeyMap) -> None:
        self.keys = keys

    def usual(self, name: str) -> str:
        """The name in LoRA files of a native layer, whoever's name is given.

        Raises:
            UserError: the family has no such layer.
        """
        return self.keys.native_module(self.keys.parts(name)[0].module)

    def native_module(self, name: str, /) -> str:
        if self.usual(name) != name:
            raise UserError(f"{name} is not what a layer of this model is called; is it for another?")
        return name

    def parts(self, name: str, /) -> Parts:
        return (Part(self.usual(name)),)

    def native_alpha(self, name: str, /) -> bool:
        return self.keys.native_alpha(self.keys.parts(name)[0].module)


def in_diffusers(keys: KeyMap, pairs: Mapping[str, LoraPair]) -> dict[str, LoraPair]:
    """An adapter of a native model by diffusers' layers; {} where diffusers has no such model."""
    if isinstance(keys, OwnNames):
        return {}
    if not isinstance(keys, NativeNames):
        return dict(pairs)
    return {own: part for name, pair in pairs.items() for own, part in parted(keys.keys.parts(name), pair).items()}


def names_of(network: nn.Module, layers: Mapping[str, nn.Module]) -> tuple[KeyMap, dict[str, nn.Module]]:
    """A network's names in LoRA files, and its layers under the names that this house uses.

    They are diffusers' where each layer is one of diffusers', as Wan's are.

    Args:
        layers: that take an adapter, by the network's own names.
    """
    keys = family_of(network, layers)
    if keys is None:
        return OwnNames(frozenset(layers)), dict(layers)
    if all(is_whole(keys.parts(name)) for name in layers):
        return keys, {keys.parts(name)[0].module: layer for name, layer in layers.items()}
    native = NativeNames(keys)
    return native, {native.usual(name): layer for name, layer in layers.items()}


def family_of(network: nn.Module, layers: Mapping[str, nn.Module]) -> KeyMap | None:
    """The key map of a network's family; None for one that this project does not know.

    Wan's is told by its layers; a family that shares layers' names with others (HunyuanVideo with Flux), by all of the
    network's.
    """
    weighted = [name for name, module in network.named_modules() if isinstance(getattr(module, "weight", None), Tensor)]
    for keys, _ in KNOWN:
        found: Any = keys
        if _knows(found, layers if keys is wan_keys else weighted):
            return found  # type: ignore[no-any-return]
    return None


def headless_state(network: nn.Module, keys: KeyMap) -> dict[str, Tensor]:
    """A network's weights by the names, in the shapes and types, that the same file has when it is loaded headless.

    As they are where that is not known: of another family, scaled, or with modules that only ComfyUI has.
    """
    state = {name: tensor for name, tensor in network.state_dict().items() if isinstance(tensor, Tensor)}
    own = keys.keys if isinstance(keys, NativeNames) else keys
    for known, loading in KNOWN:
        if own is known:
            try:
                found: dict[str, Tensor] = loading.as_headless(state)
            except UserError:
                break
            return found
    return state


def _knows(keys: KeyMap, names: Any) -> bool:
    try:
        return bool([keys.parts(name) for name in names])
    except UserError:
        return False
