"""Names of a transformer whose native layers may hold several of diffusers' layers, told by tables of names.

The mapping is structural, as in `wan_keys`: a table for what stands at the top, and one for each kind of numbered
block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from ..errors import UserError
from .key_parts import Part, Parts, split, stack
from .weights import refuse_scaled

Names = tuple[str, ...]  # native names of one module: in checkpoints, in LoRA files, wherever else
Table = Mapping[str, Names]  # diffusers' name -> native ones; modules that share one stand in the order of its rows
Place = tuple[str, str, Table]  # diffusers' place, the native one, what is there

WIDTH_WEIGHT = "x_embedder.proj.weight"  # whose rows are as many as the model is wide
MLP = 4  # the feed-forward layers' width, as a multiple of the model's, in every published model
MLP_IN_LAYER = "proj_mlp"  # the first of them, where it shares a layer with q, k and v
LAST = "norm_out.linear"  # at the top: scale, then shift; native files have the shift first

_NUMBERED = re.compile(r"(\d+)\.(.+)")
_FLAT = "lora_unet_"  # before kohya's names, whose dots are underscores
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.model.")
_LEAVES = (".weight", ".bias")
_SCALE = ".scale"  # what ComfyUI before 0.14 calls the weight of a norm of q or k


class BlockKeys:
    """A family's `KeyMap`, and its names in whole files.

    Args:
        family: as people call it, for messages.
        places: the tables; the first one is that of the top.
        own: diffusers' modules begin so, and native ones do not.
    """

    component = "transformer"

    def __init__(self, family: str, places: Sequence[Place], own: str = "context_embedder.") -> None:
        self.family, self._places, self._own = family, tuple(places), own
        self._back = {native: _parts_of(table, top=not native) for _, native, table in places}
        self._flat_back = {
            native: {name.replace(".", "_"): parts for name, parts in table.items()}
            for native, table in self._back.items()
        }

    def native_module(self, name: str, /) -> str:
        """The native layer in LoRA files that a diffusers module is or is part of.

        Raises:
            UserError: diffusers' class has no such module.
        """
        names = self._names_of(name)
        return names[min(1, len(names) - 1)]

    def parts(self, name: str, /) -> Parts:
        """What a native layer, without prefix, is in diffusers.

        Raises:
            UserError: the native model has no such layer.
        """
        for inside, number, found in self._read(name):
            if inside in found:
                return tuple(Part(number + part.module, part.width, part.skip) for part in found[inside])
        raise UserError(f"{name} is not a module of the native {self.family} transformer; is it for another model?")

    def native_alpha(self, name: str, /) -> bool:
        """Whether readers of native LoRA files honour an `.alpha` beside this diffusers module."""
        return True

    def to_native(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A whole diffusers state dict under native names, with its layers put together as they are there.

        Raises:
            UserError: a name that diffusers' class does not have.
        """
        width = len(state[WIDTH_WEIGHT])
        layers: dict[str, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            module, leaf = _leaf(name)
            layers.setdefault(self._names_of(module)[0] + leaf, {})[module] = tensor
        return {name: stack(self.parts(_leaf(name)[0]), tensors, width) for name, tensors in layers.items()}

    def diffusers_names(self, names: Iterable[str]) -> dict[str, str]:
        """Where a single file keeps what: diffusers' name of each parameter -> the file's own name.

        Several parameters may have the same place: `fitted` takes each one's rows.

        Args:
            names: of a native file or of one with diffusers' names, with or without prefix.

        Raises:
            UserError: a name that no such model has, the same name twice, or scaled weights (fp8_scaled).
        """
        own = list(names)
        refuse_scaled(own)
        theirs = not any(strip_prefix(name).startswith(self._own) for name in own)
        found: dict[str, str] = {}
        for name in own:
            for new in self._parameters(strip_prefix(name), theirs):
                if new in found:
                    raise UserError(f"the checkpoint holds {new} twice, as {found[new]} and as {name}; save it once")
                found[new] = name
        return found

    def fitted(self, name: str, tensor: Tensor, key: str, width: int) -> Tensor:
        """A diffusers parameter from what a file holds in its place (see `diffusers_names`).

        Args:
            key: the file's name of the tensor.
            width: of the model.
        """
        module, _ = _leaf(name)
        place, _ = _leaf(strip_prefix(key))
        return tensor if place == module else split(self.parts(place), tensor, width)[module]

    def as_headless(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a native network, as the same file gives them here: by diffusers' names, layers taken apart.

        Raises:
            UserError: as `diffusers_names`.
        """
        own = self.diffusers_names(state)
        width = len(state[own[WIDTH_WEIGHT]])
        return {name: self.fitted(name, state[key], key, width) for name, key in own.items()}

    def _names_of(self, name: str) -> Names:
        """Native names of a diffusers module, with its block's place before them."""
        for ours, native, table in reversed(self._places):
            if name.startswith(ours):
                block = _NUMBERED.fullmatch(name[len(ours) :]) if ours else None
                number = f"{block[1]}." if block else ""
                found = table.get(block[2] if block else name)
                if found is not None and bool(ours) == bool(block):
                    return tuple(native + number + end for end in found)
        raise UserError(f"{name} is not a module of diffusers' {self.family} transformer; is it for another model?")

    def _read(self, name: str) -> Iterator[tuple[str, str, Mapping[str, Parts]]]:
        """The readings of a native name: what it is inside its block, diffusers' place of the block, and a table."""
        flat = name.startswith(_FLAT)
        text, dot = name.removeprefix(_FLAT), "_" if flat else "."
        for ours, native, _ in reversed(self._places):
            found = (self._flat_back if flat else self._back)[native]
            if not native:
                yield text, "", found
                continue
            place = native.replace(".", dot)
            block = re.fullmatch(rf"(\d+){re.escape(dot)}(.+)", text[len(place) :]) if text.startswith(place) else None
            if block is not None:
                yield block[2], f"{ours}{block[1]}.", found

    def _parameters(self, name: str, native: bool) -> list[str]:
        """diffusers' names of what a file's parameter is."""
        module, leaf = _leaf(name)
        if native:
            return list(dict.fromkeys(part.module + leaf for part in self.parts(module)))
        self._names_of(module)
        return [name]


def strip_prefix(name: str) -> str:
    """Remove what ComfyUI puts before names."""
    return next((name[len(prefix) :] for prefix in _PREFIXES if name.startswith(prefix)), name)


def _parts_of(table: Table, top: bool) -> dict[str, Parts]:
    """Every native name in a table, with the diffusers modules that it stands for."""
    sharing: dict[str, list[str]] = {}
    for ours, names in table.items():
        for name in dict.fromkeys(names):
            sharing.setdefault(name, []).append(ours)
    return {name: _of_layer(modules, top) for name, modules in sharing.items()}


def _of_layer(modules: Sequence[str], top: bool) -> Parts:
    if top and modules == [LAST]:
        return Part(LAST, 1, skip=1), Part(LAST, 1)
    if len(modules) == 1:
        return (Part(modules[0]),)
    return tuple(Part(name, MLP if name == MLP_IN_LAYER else 1) for name in modules)


def _leaf(name: str) -> tuple[str, str]:
    """A parameter's module, and what of it the parameter is."""
    if name.endswith(_SCALE):
        return name.removesuffix(_SCALE), ".weight"
    leaf = next((end for end in _LEAVES if name.endswith(end)), "")
    return name.removesuffix(leaf), leaf
