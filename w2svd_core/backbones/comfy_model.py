"""A native model of ComfyUI with low-rank branches beside its linear layers; it keeps its names and its numbers.

Nothing of it is replaced but tensors that autograd can't use: a branch is added to what a layer puts out, whatever the
layer's weights are (cast as they are needed, 8 bits, GGUF). Everything is taken back by `leave`.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..errors import UserError
from . import wan_keys
from .base import KeyMap
from .comfy_names import family_of, headless_state, names_of

MODULATION = ("mod", "modulation", "adaln")  # parts of names of layers that scale and shift; they take no branch


class Branches(nn.Module):
    """Low-rank branches beside one linear layer, laid out and named as peft's."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.lora_magnitude_vector = nn.ModuleDict()
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.use_rslora: dict[str, bool] = {}
        self._active_adapter: list[str] = []

    def add(self, name: str, rank: int, device: torch.device) -> None:
        """One more branch, float32, up = 0, drawn as peft draws it."""
        down, up = nn.Linear(self.inputs, rank, bias=False), nn.Linear(rank, self.outputs, bias=False)
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)
        self.lora_A[name], self.lora_B[name] = down.to(device), up.to(device)
        self.r[name], self.lora_alpha[name] = rank, float(rank)

    def beside(self, _layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Forward hook of the layer."""
        if not self._active_adapter:
            return None  # the base, bit for bit
        found = output
        for name in self._active_adapter:
            found = found + self.lora_B[name](self.lora_A[name](inputs[0].float()))
        return found.to(output.dtype)


class NativeModel(nn.Module):
    """The base of `roles.SharedModel` in ComfyUI. Its children are the branches, under the names of LoRA files.

    Args:
        patcher: ComfyUI's `ModelPatcher`, on its device, of ordinary tensors (`ordinary`).
    """

    def __init__(self, patcher: Any) -> None:
        super().__init__()
        self._held = (patcher,)  # in a tuple, so that torch does not take the model for a child
        self._undo: list[Callable[[], object]] = []
        layers = linear_layers(self.native)
        if not layers:
            raise UserError("the MODEL has no linear layers in its blocks that an adapter could act on; load another")
        self.keys, self.layers = names_of(self.native, layers)

    @property
    def patcher(self) -> Any:
        """ComfyUI's handle of the model."""
        return self._held[0]

    @property
    def model(self) -> Any:
        """ComfyUI's `BaseModel`: the convention of time, latents and conditions."""
        return self.patcher.model

    @property
    def native(self) -> nn.Module:
        """The network itself."""
        found: nn.Module = self.model.diffusion_model
        return found

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        found: torch.device = self.patcher.load_device
        return found

    def carry(self, ranks: Mapping[str, int]) -> list[Branches]:
        """Put branches beside the layers; see `roles.Carrier`."""
        found = {name: Branches(*_sizes(layer)) for name, layer in self.layers.items()}
        for adapter, rank in ranks.items():
            for branches in found.values():
                branches.add(adapter, rank, self.device)
        for name, branches in found.items():
            _place(self, name, branches)
            self._undo.append(self.layers[name].register_forward_hook(branches.beside).remove)
        for norm in _norms(self.native) if self.keys is not wan_keys else ():
            self._undo.append(norm.register_forward_pre_hook(_keep_input).remove)
        return list(found.values())

    def enable_gradient_checkpointing(self, function: Callable[..., Any]) -> None:
        """Let `function(block, *args)` call each repeated block wherever there are gradients."""
        for block in repeated_blocks(self.native):
            own = "forward" in vars(block)
            before = block.forward
            block.forward = self._checkpointed(before, function)
            self._undo.append(
                lambda block=block, before=before, own=own: (  # type: ignore[misc]
                    setattr(block, "forward", before) if own else delattr(block, "forward")
                )
            )

    def _checkpointed(self, block: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
        def whole(*args: Any, **kwargs: Any) -> Any:
            return block(*map(self._own, args), **{name: self._own(value) for name, value in kwargs.items()})

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return block(*args, **kwargs)
            kept = {name: dict(value) if type(value) is dict else value for name, value in kwargs.items()}
            return function(whole, *args, **kept)  # its options change from block to block: keep this one's

        return forward

    def _own(self, value: Any) -> Any:
        """A tensor that a block may add to in place, as HunyuanVideo's do, though it is needed once more."""
        return value.clone() if self.keys is not wan_keys and isinstance(value, Tensor) else value

    def leave(self) -> None:
        """Take everything back that acts on the native model."""
        while self._undo:
            self._undo.pop()()

    def forward(self, x_t: Tensor, sigma: Tensor, fields: Mapping[str, Any]) -> Tensor:
        """What the network itself puts out when ComfyUI asks it for x0."""
        self._stay_loaded()
        seen: list[Tensor] = []
        hook = self.native.register_forward_hook(lambda _model, _inputs, output: seen.append(output))
        try:
            self.model.apply_model(x_t, sigma, transformer_options=plain_attention(), **fields)
        finally:
            hook.remove()
        return seen[-1]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The branches', and the model's own weights under the names of the headless path where there is one."""
        return {**super().state_dict(*args, **kwargs), **headless_state(self.native, self.keys)}

    def __deepcopy__(self, memo: Any) -> NoReturn:
        raise UserError("a native MODEL trains a LoRA, not a full copy; set student.kind lora")

    def _stay_loaded(self) -> None:
        """Load the model again where another one (a VAE that showed a preview) has pushed it out, or a part of it."""
        import comfy.model_management as management

        if self.patcher not in management.loaded_models() or partly_loaded(self.patcher):
            load(self.patcher)


def partly_loaded(patcher: Any) -> bool:
    """Whether ComfyUI keeps some of a model's weights elsewhere, to cast and patch them as layers ask for them."""
    return bool(getattr(patcher.model, "model_lowvram", False))


def load(patcher: Any) -> None:
    """Bring all of a model to its device, with its patches, in ordinary tensors.

    Raises:
        UserError: ComfyUI leaves some of it elsewhere, whatever is asked.
    """
    import comfy.model_management as management

    with torch.no_grad():
        management.load_models_gpu([patcher], force_full_load=True)
    if partly_loaded(patcher):
        raise UserError(
            "ComfyUI keeps a part of the MODEL off the device, and a training needs it whole; start ComfyUI without "
            "--novram"
        )
    ordinary(patcher.model)
    patcher.model.requires_grad_(False)


def ordinary(model: nn.Module) -> int:
    """Replace inference tensors, which autograd can't use, by ordinary ones, one at a time; returns how many.

    There is never more than one tensor twice, because nothing holds on to the old ones.
    """
    shared = Counter(id(tensor) for module in model.modules() for tensor in _tensors(module).values())
    new: dict[int, Tensor] = {}
    count = 0
    for module in model.modules():
        for name, tensor in _tensors(module).items():
            if not tensor.is_inference():
                continue
            old = id(tensor)
            made = new.get(old)
            if made is None:
                made, count = _in_this_mode(tensor), count + 1
                if shared[old] > 1:
                    new[old] = made
            del tensor
            where = module._parameters if name in module._parameters else module._buffers
            where[name] = made  # type: ignore[assignment]
    return count


@torch.inference_mode()
def give_back(model: nn.Module) -> None:
    """Make quantised weights inference tensors again: ComfyUI can't move them in that mode otherwise."""
    for module in model.modules():
        for name, tensor in _tensors(module).items():
            if hasattr(tensor, "_copy_with") and not tensor.is_inference():
                module._parameters[name] = _in_this_mode(tensor)  # type: ignore[assignment]


def _in_this_mode(tensor: Tensor) -> Tensor:
    """The same numbers as a tensor of the mode, inference or not, that is on now."""
    rewrap = getattr(tensor, "_copy_with", None)  # a quantised one is a wrapper, whose data stay where they are
    made: Tensor = rewrap() if rewrap is not None else _copy(tensor)
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made


def _copy(tensor: Tensor) -> Tensor:
    """A clone, also of a class (packed GGUF weights) whose own `clone` gives back the tensor itself."""
    kind = type(tensor)
    if kind in (Tensor, nn.Parameter):
        return tensor.detach().clone()
    made = tensor.as_subclass(Tensor).detach().clone().as_subclass(kind)
    vars(made).update(vars(tensor))
    return made


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    own = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in own.items() if tensor is not None}


@contextlib.contextmanager
def training_time() -> Iterator[None]:
    """ComfyUI in its manner for training: no shortcuts that have no gradient, and no stop in the middle of a step.

    Its layers look for a cancelled prompt each time that they are called, which would end a round half-way; whoever
    runs the training asks `comfy.model_management.processing_interrupted()` between two rounds instead.
    """
    import comfy.model_management as management

    wanted = {"in_training": True, "throw_exception_if_processing_interrupted": lambda: None}
    before = {name: getattr(management, name) for name in wanted if hasattr(management, name)}
    for name in before:
        setattr(management, name, wanted[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(management, name, value)


def plain_attention() -> dict[str, Any]:
    """Options of a call: torch's attention, because others that a user may have chosen have no gradient."""
    from comfy.ldm.modules.attention import attention_pytorch

    return {"optimized_attention_override": lambda _chosen, *args, **kwargs: attention_pytorch(*args, **kwargs)}


def repeated_blocks(native: nn.Module) -> list[nn.Module]:
    """The network's repeated blocks: the members of its lists that hold linear layers."""
    lists = [child for child in native.children() if isinstance(child, nn.ModuleList)]
    return [block for found in lists for block in found if any(map(_is_linear, block.modules()))]


def linear_layers(native: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of the blocks by native name, in the order of the model; none that only scale and shift."""
    inside = {id(module) for block in repeated_blocks(native) for module in block.modules()}
    return {
        name: module
        for name, module in native.named_modules()
        if id(module) in inside and _is_linear(module) and not _modulates(name)
    }


def family_of_model(model: Any) -> KeyMap | None:
    """The key map of a `BaseModel`'s family; None for one that this project does not know."""
    from comfy import model_base

    if isinstance(model, model_base.WAN21):  # those with layers of their own, too
        return wan_keys
    return family_of(model.diffusion_model, linear_layers(model.diffusion_model))


def _sizes(module: nn.Module) -> tuple[Any, Any]:
    return getattr(module, "in_features", None), getattr(module, "out_features", None)


def _norms(native: nn.Module) -> list[nn.Module]:
    inside = [module for block in repeated_blocks(native) for module in block.modules()]
    return [module for module in inside if "norm" in type(module).__name__.lower() and not list(module.children())]


def _keep_input(_norm: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """A norm's input for its gradient, whatever is added to the original in place later on."""
    if not torch.is_grad_enabled():
        return None
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in inputs)


def _is_linear(module: nn.Module) -> bool:
    return all(isinstance(size, int) for size in _sizes(module))  # quantised ones are no `nn.Linear`


def _modulates(name: str) -> bool:
    return any(part.lower().startswith(MODULATION) or part.lower().endswith("_mod") for part in name.split("."))


def _place(root: nn.Module, name: str, leaf: nn.Module) -> None:
    """Hang a module into a tree under a dotted name."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(last, leaf)
