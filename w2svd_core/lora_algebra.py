"""What can be done with LoRAs as matrices: add them up, give them another rank, put them into weights, take them out.

A LoRA is `dict[diffusers module name, LoraPair]`, as in `lora_files`. Nothing here changes what it is given but
`merge_into` and `merge_files`, and what is made is float32 on the CPU unless said.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from .backbones.base import KeyMap
from .errors import UserError
from .lora_files import LoraMetadata, LoraPair, read_changes, read_lora
from .places import parse_lora as parse_lora

SKETCHED = 1024  # smallest side of a matrix from which a few singular values are drawn instead of all worked out
SPARE, ROUNDS = 16, 6  # more directions than asked for, and refinements: the error is within 0.3 % of the least one


@dataclass(frozen=True)
class Lora:
    """A LoRA and how much of it is to act.

    Attributes:
        pairs: its layers by diffusers module name.
        strength: multiplies all of them.
        source: what an error calls it: its file.
        changes: what others' files hold beside it, of biases, norms and tables, by `lora_files.read_changes`' names.
    """

    pairs: Mapping[str, LoraPair]
    strength: float = 1.0
    source: str = "the LoRA"
    changes: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """A change of weights as a LoRA.

    Attributes:
        pairs: of the linear layers that changed.
        error: what of their change the LoRA lacks, as Frobenius norms over all layers together, 0 to 1.
        outside: how much of the whole change lies in other parameters (biases, norms, tables), likewise.
    """

    pairs: dict[str, LoraPair]
    error: float
    outside: float


# ---- files


def open_lora(text: str, keys: KeyMap) -> tuple[Lora, LoraMetadata | None]:
    """The LoRA that "path" or "path@strength" names, and what its file says of it (None for others' files).

    Raises:
        UserError: as `parse_lora` and `lora_files.read_lora`.
    """
    path, strength = parse_lora(text)
    pairs, metadata = read_lora(path, keys)
    return Lora(pairs, strength, str(path), read_changes(path, keys)), metadata


def merge_files(model: nn.Module, texts: Sequence[str], keys: KeyMap) -> None:
    """Put the LoRAs that are named ("path" or "path@strength") into a model's weights.

    Raises:
        UserError: as `open_lora` and `merge_into`; it names the file, and nothing was changed then.
    """
    merge_into(model, [open_lora(text, keys)[0] for text in texts])


def read_at_rank(path: Path, keys: KeyMap, rank: int) -> dict[str, LoraPair]:
    """A LoRA file for an adapter of a rank: layers of more are brought down to it, others stay as they are.

    They are not filled up with zeros, which could never learn: `lora_files.load_into_peft` leaves the adapter's own
    first weights in the rows that are over.

    Raises:
        UserError: as `lora_files.read_lora`, or a rank below 1.
    """
    pairs, _ = read_lora(path, keys)
    lower, _ = at_rank({name: pair for name, pair in pairs.items() if pair.rank > rank}, rank)
    return {**pairs, **lower}


# ---- factors


def scaled(pairs: Mapping[str, LoraPair], strength: float) -> dict[str, LoraPair]:
    """The LoRA times a number; its matrices are passed on."""
    return {name: replace(pair, alpha=pair.alpha * strength) for name, pair in pairs.items()}


def stacked(loras: Sequence[Mapping[str, LoraPair]]) -> dict[str, LoraPair]:
    """The sum of LoRAs, exact: one whose rank at each layer is the sum of theirs, and whose alpha is its rank."""
    parts: dict[str, list[LoraPair]] = {}
    for pairs in loras:
        for name, pair in pairs.items():
            parts.setdefault(name, []).append(pair)
    return {name: _side_by_side(of_layer) for name, of_layer in parts.items()}


def _side_by_side(pairs: Sequence[LoraPair]) -> LoraPair:
    down = torch.cat([pair.down.float() for pair in pairs])
    up = torch.cat([_scaled_up(pair) for pair in pairs], dim=1)
    return LoraPair(down, up, float(len(down)))


def _scaled_up(pair: LoraPair) -> Tensor:
    """up with alpha / r in it, (out, r), so that the update is this @ down."""
    return (pair.up.double() * (pair.alpha / pair.rank)).float()


def at_rank(pairs: Mapping[str, LoraPair], rank: int) -> tuple[dict[str, LoraPair], float]:
    """The nearest LoRA of another rank, layer by layer; its alpha is its rank.

    A layer of this rank or less stays exactly what it does, with zeros in the rows that are over; one of more keeps
    its largest singular values, half of each (as a square root) on either side.

    Returns:
        The LoRA, and what it lacks of the given one: the Frobenius norm of that over the given one's, over all layers.

    Raises:
        UserError: a rank below 1.
    """
    if rank < 1:
        raise UserError(f"a LoRA can't have rank {rank}; ask for 1 or more")
    found: dict[str, LoraPair] = {}
    lost = whole = 0.0
    for name, pair in pairs.items():
        if pair.rank <= rank:
            over = rank - pair.rank
            found[name] = LoraPair(
                pad(pair.down.float(), (0, 0, 0, over)), pad(_scaled_up(pair), (0, over)), float(rank)
            )
            whole += _square(_triangles(pair)[1])
            continue
        left, core, right = _triangles(pair)
        u, s, v = torch.linalg.svd(core)
        down, up = _halves(left @ u, s, v @ right.T, rank)
        over = rank - len(down)  # of a layer that is narrower than the rank
        found[name] = LoraPair(pad(down, (0, 0, 0, over)), pad(up, (0, over)), float(rank))
        lost, whole = lost + _square(s[rank:]), whole + _square(s)
    return found, _share(lost, whole)


def _triangles(pair: LoraPair) -> tuple[Tensor, Tensor, Tensor]:
    """left (out, k), core (k, l), right (in, l) in float64: left @ core @ right^T, orthonormal sides."""
    left, above = torch.linalg.qr(pair.up.double() * (pair.alpha / pair.rank))
    right, below = torch.linalg.qr(pair.down.double().T)
    return left, above @ below.T, right


def _halves(u: Tensor, s: Tensor, v: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """down (r, in) and up (out, r) of the `rank` largest of u (out, k), s (k,), v (k, in)."""
    root = s[:rank].sqrt()
    return (root[:, None] * v[: len(root)]).float(), (u[:, : len(root)] * root).float()


def _square(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def _share(part: float, whole: float) -> float:
    return math.sqrt(part / whole) if whole else 0.0


# ---- weights


def difference(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], names: Sequence[str], rank: int
) -> Difference:
    """The change from one set of weights to another as a LoRA of linear layers.

    Args:
        before, after: parameters by name, the same names and shapes in both.
        names: modules that may have a LoRA; their weights are (out, in).
        rank: of each layer, or the layer's smaller side where that is less; alpha is the rank.

    Raises:
        UserError: a rank below 1, or the two sets are not of one model.
    """
    if rank < 1:
        raise UserError(f"a LoRA can't have rank {rank}; ask for 1 or more")
    _same_shapes(before, after)
    pairs: dict[str, LoraPair] = {}
    lost = held = 0.0
    linears = {f"{name}.weight": name for name in names}
    for key, name in linears.items():
        change = after[key].float() - before[key].float()
        if not change.any():
            continue
        pairs[name], residue = _nearest(change, rank)
        lost, held = lost + residue, held + _square(change)
    others = sum(_square(after[key].float() - before[key].float()) for key in before if key not in linears)
    return Difference(pairs, _share(lost, held), _share(others, others + held))


def _same_shapes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    odd = sorted(before.keys() ^ after.keys())
    if odd:
        raise UserError(
            f"only one of the two models has {odd[0]}; compare a full copy with the base that it comes from"
        )
    for name, tensor in before.items():
        if tensor.shape != after[name].shape:
            raise UserError(
                f"{name} is {tuple(tensor.shape)} in the one model and {tuple(after[name].shape)} in the other; "
                "compare a full copy with the base that it comes from"
            )


def _nearest(change: Tensor, rank: int) -> tuple[LoraPair, float]:
    """The nearest LoRA of a change (out, in), and the square norm of what it lacks."""
    side = min(change.shape)
    if side >= SKETCHED and 4 * (rank + SPARE) <= side:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, columns = torch.svd_lowrank(change, q=rank + SPARE, niter=ROUNDS)
        v = columns.T
    else:
        u, s, v = torch.linalg.svd(change.double(), full_matrices=False)
    down, up = _halves(u, s, v, rank)
    return LoraPair(down, up, float(len(down))), _square(change - up @ down)


def merged(weights: Mapping[str, Tensor], pairs: Mapping[str, LoraPair]) -> dict[str, Tensor]:
    """The weights with a LoRA in them: `<layer>.weight` + alpha / r up @ down in float32, cast to its type once.

    Raises:
        UserError: the weights have no such layer, it is of another shape, or its type can't hold the sum.
    """
    lora = Lora(pairs)
    found = dict(weights)
    for name in pairs:
        _check_layer(lora, name, weights.get(f"{name}.weight"))
    for name in pairs:
        found[f"{name}.weight"] = _with_updates(weights[f"{name}.weight"], name, [lora])
    return found


def merge_into(model: nn.Module, loras: Sequence[Lora]) -> None:
    """Put LoRAs into the weights of a model without adapters, in place; summed in float32, cast to its type once.

    Raises:
        UserError: a LoRA has a layer that the model lacks or that is of another shape (nothing was changed then), or
            the weights' type can't hold the sum.
    """
    layers, changes = _layers_of(model, loras), _changes_of(model, loras)
    with torch.no_grad():
        for name, layer in layers.items():
            layer.weight.copy_(_with_updates(layer.weight, name, loras))
        for parameter, change in changes:
            parameter.copy_(parameter.float() + change)


@contextlib.contextmanager
def acting(model: nn.Module, loras: Sequence[Lora]) -> Iterator[None]:
    """Let LoRAs act beside a model's layers for a while; its weights stay as they are.

    Raises:
        UserError: a LoRA has a layer that the model lacks or that is of another shape.
    """
    layers, changes = _layers_of(model, loras), _changes_of(model, loras)
    before = [parameter.detach().clone() for parameter, _ in changes]
    hooks = [
        layers[name].register_forward_hook(_addition(pair, lora.strength, layers[name].weight.device))
        for lora in loras
        for name, pair in lora.pairs.items()
    ]
    with torch.no_grad():
        for parameter, change in changes:
            parameter.copy_(parameter.float() + change)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for (parameter, _), old in reversed(list(zip(changes, before, strict=True))):
                parameter.copy_(old)


def _addition(pair: LoraPair, strength: float, device: torch.device) -> Any:
    scale = strength * pair.alpha / pair.rank
    down, up = pair.down.to(device).float(), pair.up.to(device).float()

    def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        added = linear(linear(inputs[0].float(), down), up) * scale
        return (output.float() + added).to(output.dtype)

    return hook


def _layers_of(model: nn.Module, loras: Sequence[Lora]) -> dict[str, nn.Linear]:
    """The model's layers that LoRAs are for, by name."""
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    modules = {name.removesuffix(".base_layer"): module for name, module in linears.items()}  # beside an adapter
    found: dict[str, nn.Linear] = {}
    for lora in loras:
        for name in lora.pairs:
            layer = modules.get(name)
            _check_layer(lora, name, None if layer is None else layer.weight)
            found[name] = modules[name]
    return found


def _changes_of(model: nn.Module, loras: Sequence[Lora]) -> list[tuple[nn.Parameter, Tensor]]:
    """The model's parameters that LoRA files change beside the LoRA, each with the sum of its changes, in float32."""
    own = {name.replace(".base_layer.", "."): parameter for name, parameter in model.named_parameters()}
    total: dict[str, Tensor] = {}
    for lora in loras:
        for name, change in lora.changes.items():
            key = name if name in own else f"{name}.weight"
            if key not in own or own[key].numel() != change.numel():
                raise UserError(
                    f"{lora.source} changes {name}, which this model lacks or has in another size; take a LoRA of this "
                    "model's kind"
                )
            added = lora.strength * change.to(own[key].device).float().reshape(own[key].shape)
            total[key] = total[key] + added if key in total else added
    return [(own[key], change) for key, change in total.items()]


def _check_layer(lora: Lora, name: str, weight: Tensor | None) -> None:
    if weight is None:
        raise UserError(f"{lora.source} has the layer {name}, which this model lacks; take a LoRA of this model's kind")
    pair = lora.pairs[name]
    own, wanted = (pair.up.shape[0], pair.down.shape[1]), tuple(weight.shape)
    if own != wanted:
        raise UserError(
            f"{lora.source} has the layer {name} {own[1]} -> {own[0]} wide, this model {wanted[-1]} -> {wanted[0]}; "
            "take a LoRA of this model's kind"
        )


def _with_updates(weight: Tensor, name: str, loras: Sequence[Lora]) -> Tensor:
    """W (out, in) plus the updates of a layer, summed in float32, in W's type and place."""
    total = torch.zeros(weight.shape, device=weight.device)
    for lora in loras:
        if name in lora.pairs:
            pair = lora.pairs[name]
            up, down = pair.up.to(weight.device).float(), pair.down.to(weight.device).float()
            total.addmm_(up, down, alpha=lora.strength * pair.alpha / pair.rank)
    found = (weight.detach().float() + total).to(weight.dtype)
    if not found.isfinite().all():
        files = " and ".join(lora.source for lora in loras if name in lora.pairs)
        raise UserError(
            f"with {files} in it the layer {name} does not fit into {weight.dtype}; use less strength, or bf16 or fp32"
        )
    return found
