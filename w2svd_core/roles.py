"""One frozen base, two adapters, four roles. A role is an argument of a call and leaves nothing behind.

| role      | weights                     | trained by        |
| --------- | --------------------------- | ----------------- |
| teacher   | W                           | nobody            |
| real      | W + alpha_weak   * D_fake   | nobody            |
| fake      | W + alpha_strong * D_fake   | the critic's loss |
| generator | W + D_gen, or a full copy   | the student's     |

The scheme is W2SVD's (arXiv 2503.13319; pipeline figure). alpha multiplies the adapter as it is, never over its rank:
PEFT's lora_alpha equals r here. How it holds: `requires_grad` is set once and never flipped; the adapters that act, and
their strength for each row, are put in place around one forward pass and taken back after it; a checkpointed block puts
them in place again while it is recomputed, whatever ran in between.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .backbones.base import Backbone
from .condition import Condition

Role = Literal["teacher", "real", "fake", "generator"]
Strength = float | Tensor  # for the whole batch, or (B,) for each row
Active = Mapping[str, Strength]  # adapter -> strength

FAKE, GENERATOR = "fake", "generator"


@dataclass(frozen=True)
class Query:
    """What one role is asked: x_t `b c f h w`, sigma (b,), and the condition of each row."""

    role: Role
    x_t: Tensor
    sigma: Tensor
    condition: Condition


@runtime_checkable
class Carrier(Protocol):
    """A base that holds adapters beside its layers, because they are not ours to change.

    Every other base has them put into its layers by peft.
    """

    def carry(self, ranks: Mapping[str, int], /) -> Sequence[Any]:
        """Add float32 adapters, up = 0, by name and rank; returns what holds them, laid out as peft's `LoraLayer`."""
        ...


class SharedModel:
    """The base and its roles.

    Args:
        backbone: the model's family.
        base: the model, or a `Carrier`; it is frozen here.
        critic_rank: rank of the critic's adapter; 0 for a model that is only sampled from or fine-tuned.
        student_rank: rank of the student's adapter; 0 makes the student a full trainable copy (the papers' figure).
        alpha_weak, alpha_strong: strength of the critic's adapter in the real and the fake score.
        checkpointing: recompute activations in the backward pass.
        seed: of the adapters' first weights.
    """

    def __init__(
        self,
        backbone: Backbone,
        base: nn.Module,
        *,
        critic_rank: int,
        student_rank: int,
        alpha_weak: float = 0.25,
        alpha_strong: float = 1.0,
        checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        self.backbone = backbone
        self.base = base.requires_grad_(False)
        self.alpha_weak, self.alpha_strong = alpha_weak, alpha_strong
        self.copy = None if student_rank else copy.deepcopy(base).requires_grad_(True)
        ranks = {name: r for name, r in {FAKE: critic_rank, GENERATOR: student_rank}.items() if r}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if isinstance(base, Carrier):
                self._layers = list(base.carry(ranks))
            else:
                self._layers = _inject(base, backbone.lora_targets, ranks)
        self._active: Active = {}
        for layer in self._layers:
            layer._active_adapter = []
            for name, up in layer.lora_B.items():
                up.register_forward_hook(self._scale(name))
        if checkpointing:
            for model in filter(None, (self.base, self.copy)):
                model.enable_gradient_checkpointing(self._checkpoint)  # type: ignore[operator]

    @property
    def device(self) -> torch.device:
        """Where the base lives."""
        return next(self.base.parameters()).device

    def parameters(self, role: Literal["fake", "generator"]) -> dict[str, nn.Parameter]:
        """The trainable weights of a role, by name."""
        if role == GENERATOR and self.copy is not None:
            return dict(self.copy.named_parameters())
        return {name: p for name, p in self.base.named_parameters() if f".{role}." in name}

    def base_state(self) -> dict[str, Tensor]:
        """The frozen weights alone, under the names that they had before adapters were put in."""
        state = self.base.state_dict()
        return {n.replace(".base_layer.", "."): t for n, t in state.items() if ".lora_" not in n}

    def predict(self, role: Role, x_t: Tensor, sigma: Tensor | float, condition: Condition) -> Tensor:
        """The model's raw output in a role, with gradient where gradients are on. x_t `b c f h w`, sigma () or (b,)."""
        model = self.copy if role == GENERATOR and self.copy is not None else self.base
        levels = torch.as_tensor(sigma, dtype=torch.float32, device=x_t.device).expand(len(x_t))
        with self._using(self._adapters(role)):
            return self.backbone.predict(model, x_t, levels, condition)

    def predict_x0(self, role: Role, x_t: Tensor, sigma: Tensor | float, condition: Condition) -> Tensor:
        """The clean sample that a role sees in x_t; frames that the condition gives are in it as they are."""
        x0 = self.backbone.process.x0_from_output(x_t, self.predict(role, x_t, sigma, condition), sigma)
        return self.backbone.hold(x0, condition)

    def predict_x0_together(self, queries: Sequence[Query]) -> list[Tensor]:
        """Several roles' clean samples from ONE forward pass, each row with its own adapter strengths.

        The student is not among them when it is a full copy, because then its weights are others.
        """
        if any(q.role == GENERATOR for q in queries) and self.copy is not None:
            raise ValueError("a full-copy student can't share a batch with the base")
        x_t = torch.cat([q.x_t for q in queries])
        sigma = torch.cat([q.sigma for q in queries])
        condition = Condition.cat([q.condition for q in queries])
        with self._using(self._row_strengths(queries, x_t.device)):
            output = self.backbone.predict(self.base, x_t, sigma, condition)
        x0 = self.backbone.hold(self.backbone.process.x0_from_output(x_t, output, sigma), condition)
        return list(x0.split([len(q.x_t) for q in queries]))

    def _adapters(self, role: Role) -> dict[str, Strength]:
        """What acts in a role; a strength of 0 is left out, so that it is the base bit for bit."""
        if role == GENERATOR:
            return {} if self.copy is not None else {GENERATOR: 1.0}
        strength = {"teacher": 0.0, "real": self.alpha_weak, "fake": self.alpha_strong}[role]
        return {FAKE: strength} if strength else {}

    def _row_strengths(self, queries: Sequence[Query], device: torch.device) -> Active:
        rows = [self._adapters(q.role) for q in queries]
        names = sorted({name for row in rows for name in row})
        return {
            name: torch.cat(
                [
                    torch.full((len(q.x_t),), float(row.get(name, 0.0)), device=device)
                    for q, row in zip(queries, rows, strict=True)
                ]
            )
            for name in names
        }

    @contextlib.contextmanager
    def _using(self, active: Active) -> Iterator[None]:
        before = self._active
        self._put(active)
        try:
            yield
        finally:
            self._put(before)

    def _put(self, active: Active) -> None:
        names = list(active)
        self._active = active
        for layer in self._layers:  # a cached list: walking the whole model costs 30 times as much
            layer._active_adapter = names

    def _scale(self, adapter: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            strength = self._active[adapter]
            if isinstance(strength, Tensor):
                return output * _rows_like(strength, output)
            return output if strength == 1.0 else output * strength

        return hook

    def _checkpoint(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """`torch.utils.checkpoint` that recomputes with the adapters of the forward pass, not of the moment."""
        active = self._active

        def contexts() -> tuple[Any, Any]:
            return contextlib.nullcontext(), self._using(active)

        return checkpoint(function, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _rows_like(strength: Tensor, output: Tensor) -> Tensor:
    """(B,) viewed against an output of any rank whose first dimension is B, or B times folded frames."""
    folded = output.shape[0] // strength.shape[0]
    rows = strength.repeat_interleave(folded) if folded > 1 else strength
    return rows.to(output.dtype).view(-1, *[1] * (output.ndim - 1))


def _inject(base: nn.Module, targets: Sequence[str], ranks: Mapping[str, int]) -> list[Any]:
    """Put float32 adapters into the base, up = 0, and list the layers that hold them."""
    if not ranks:
        return []
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # a second adapter is what we want
        for name, rank in ranks.items():
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets)), base, name)
    for name, parameter in base.named_parameters():
        trained = ".lora_" in name
        parameter.requires_grad_(trained)
        if trained:
            parameter.data = parameter.data.float()
    return [module for module in base.modules() if isinstance(module, LoraLayer)]
