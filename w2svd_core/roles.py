"""One frozen base, two adapters, four roles. A role is an argument of a call and leaves nothing behind.

| role      | weights                     | trained by        |
| --------- | --------------------------- | ----------------- |
| teacher   | W                           | nobody            |
| real      | W + alpha_weak   * D_fake   | nobody            |
| fake      | W + alpha_strong * D_fake, or a full copy | the critic's loss |
| generator | W + D_gen, or a full copy   | the student's     |

The scheme is W2SVD's (arXiv 2503.13319; pipeline figure). alpha multiplies the adapter as it is, never over its rank:
PEFT's lora_alpha equals r here. How it holds: `requires_grad` is set once and never flipped; the adapters that act, and
their strength for each row, are put in place around one forward pass and taken back after it; a checkpointed block puts
them in place again while it is recomputed, whatever ran in between.
"""

from __future__ import annotations

import contextlib
import copy
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .backbones.base import Backbone
from .condition import GUIDANCE, Condition
from .errors import UserError

Role = Literal["teacher", "real", "fake", "generator"]
Strength = float | Tensor  # for the whole batch, or (B,) for each row
Active = Mapping[str, Strength]  # adapter -> strength

FAKE: Final = "fake"
GENERATOR: Final = "generator"


@dataclass(frozen=True)
class Query:
    """What one role is asked: x_t `b c f h w`, sigma (b,), and the condition of each row.

    `alpha` is the strength of the critic's adapter, one or (b,); None = the role's own.
    """

    role: Role
    x_t: Tensor
    sigma: Tensor
    condition: Condition
    alpha: Strength | None = None


@dataclass
class _Acting:
    """Which adapters act in a base at the moment: one for all that share it."""

    adapters: Active = field(default_factory=dict)


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
        critic_rank: rank of the critic's adapter; 0 for a model that has none.
        critic_copy: the fake score is a full trainable copy instead (DMD2, arXiv 2405.14867).
        student_rank: rank of the student's adapter; 0 makes the student a full trainable copy (the papers' figure),
            None is a model without a student.
        alpha_weak, alpha_strong: strength of the critic's adapter in the real and the fake score.
        checkpointing: recompute activations in the backward pass.
        seed: of the adapters' first weights.
        embedded: the guidance that each role tells a model that takes one as an input.
    """

    def __init__(
        self,
        backbone: Backbone,
        base: nn.Module,
        *,
        critic_rank: int,
        student_rank: int | None,
        critic_copy: bool = False,
        alpha_weak: float = 0.25,
        alpha_strong: float = 1.0,
        checkpointing: bool = False,
        seed: int = 0,
        embedded: Mapping[Role, float] | None = None,
    ) -> None:
        self.backbone = backbone
        self.base = base.requires_grad_(False)
        self.alpha_weak, self.alpha_strong = alpha_weak, alpha_strong
        self._embedded = embedded if embedded and GUIDANCE in backbone.facts(base).takes else {}
        self.copy = copy.deepcopy(base).requires_grad_(True) if student_rank == 0 else None
        self.critic_copy = copy.deepcopy(base).requires_grad_(True) if critic_copy else None
        ranks = {name: r for name, r in {FAKE: critic_rank, GENERATOR: student_rank}.items() if r}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if isinstance(base, Carrier):
                self._layers = list(base.carry(ranks))
            else:
                self._layers = _inject(base, backbone.lora_targets, ranks)
        self._critic: str = FAKE
        self._acting = _Acting()
        self._wire(ranks)
        if checkpointing:
            for model in filter(None, (self.base, self.copy, self.critic_copy)):
                model.enable_gradient_checkpointing(self._checkpoint)  # type: ignore[operator]

    def with_own_critic(self, adapter: str, rank: int, alpha_weak: float, seed: int = 0) -> SharedModel:
        """The same base once more, with a fake score of its own: another adapter beside those that are there.

        Args:
            adapter: its name.
            rank, seed: as of `critic_rank` and the adapters' first weights.
            alpha_weak: its strength in the real score of what is returned.

        Raises:
            UserError: the base is none whose layers take a further adapter.
        """
        if isinstance(self.base, Carrier):
            raise UserError("a MODEL of ComfyUI takes no further adapter; name the model on disk in model.path")
        twin = copy.copy(self)
        twin.copy = twin.critic_copy = None
        twin.alpha_weak, twin.alpha_strong, twin._critic = alpha_weak, 1.0, adapter
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._layers[:] = _inject(self.base, self.backbone.lora_targets, {adapter: rank})
        twin._wire([adapter])
        return twin

    @property
    def device(self) -> torch.device:
        """Where the base lives."""
        return next(self.base.parameters()).device

    def parameters(self, role: Literal["fake", "generator"]) -> dict[str, nn.Parameter]:
        """The trainable weights of a role, by name."""
        own = self._own_copy(role)
        if own is not None:
            return dict(own.named_parameters())
        adapter = self._critic if role == FAKE else role
        return {name: p for name, p in self.base.named_parameters() if f".{adapter}." in name}

    def base_state(self) -> dict[str, Tensor]:
        """The frozen weights alone, under the names that they had before adapters were put in."""
        state = self.base.state_dict()
        return {n.replace(".base_layer.", "."): t for n, t in state.items() if ".lora_" not in n}

    def predict(
        self,
        role: Role,
        x_t: Tensor,
        sigma: Tensor | float,
        condition: Condition,
        alpha: Strength | None = None,
        embedded: float | None = None,
    ) -> Tensor:
        """The model's raw output in a role, with gradient where gradients are on.

        Args:
            x_t: `b c f h w`.
            sigma: () or (b,).
            alpha: strength of the critic's adapter, one or (b,); None = the role's own.
            embedded: guidance that the model is told, where it takes one; None = the role's own.
        """
        levels = torch.as_tensor(sigma, dtype=torch.float32, device=x_t.device).expand(len(x_t))
        told = self._told(role, condition, embedded)
        return self._ask(self.network(role), x_t, levels, told, self._adapters(role, alpha))

    def predict_x0(
        self, role: Role, x_t: Tensor, sigma: Tensor | float, condition: Condition, alpha: Strength | None = None
    ) -> Tensor:
        """The clean sample that a role sees in x_t; frames that the condition gives are in it as they are."""
        x0 = self.backbone.process.x0_from_output(x_t, self.predict(role, x_t, sigma, condition, alpha), sigma)
        return self.backbone.hold(x0, condition)

    def predict_x0_together(self, queries: Sequence[Query]) -> list[Tensor]:
        """Several roles' clean samples from ONE forward pass, each row with its own adapter strengths.

        A role that is a full copy has other weights and is asked by itself.
        """
        found: dict[int, Tensor] = {}
        shared = [number for number, q in enumerate(queries) if self._own_copy(q.role) is None]
        for number, q in enumerate(queries):
            if number not in shared:
                found[number] = self.predict_x0(q.role, q.x_t, q.sigma, q.condition)
        if shared:
            found |= zip(shared, self._on_the_base([queries[number] for number in shared]), strict=True)
        return [found[number] for number in range(len(queries))]

    def _on_the_base(self, queries: Sequence[Query]) -> list[Tensor]:
        x_t = torch.cat([q.x_t for q in queries])
        sigma = torch.cat([q.sigma for q in queries])
        condition = Condition.cat([self._told(q.role, q.condition) for q in queries])
        output = self._ask(self.base, x_t, sigma, condition, self._row_strengths(queries, x_t.device))
        x0 = self.backbone.hold(self.backbone.process.x0_from_output(x_t, output, sigma), condition)
        return list(x0.split([len(q.x_t) for q in queries]))

    def _ask(self, model: nn.Module, x_t: Tensor, sigma: Tensor, condition: Condition, active: Active) -> Tensor:
        """What a network puts out; a call for each length of prompts, where it can't be told what is filler."""
        if not condition.ragged:
            with self._using(active):
                return self.backbone.predict(model, x_t, sigma, condition)
        output, order = [], []
        for rows, own in condition.alike():
            with self._using(_of_rows(active, rows)):
                output.append(self.backbone.predict(model, x_t[rows], sigma[rows], own))
            order.append(rows)
        return torch.cat(output)[torch.cat(order).argsort()]

    def embedded_guidance(self, role: Role) -> float | None:
        """What a role tells the model; None where the model takes no guidance as an input."""
        return self._embedded.get(role)

    def tell(self, role: Role, guidance: float) -> None:
        """Give a role another embedded guidance; a model that takes none stays as it is."""
        if role in self._embedded:
            self._embedded = {**self._embedded, role: guidance}

    def network(self, role: Role) -> nn.Module:
        """The module that a role calls: the base, or its own copy."""
        return self._own_copy(role) or self.base

    def _told(self, role: Role, condition: Condition, embedded: float | None = None) -> Condition:
        """The condition with the role's embedded guidance, or another one, for a model that takes one."""
        if role not in self._embedded:
            return condition
        return condition.guided(self._embedded[role] if embedded is None else embedded)

    def _own_copy(self, role: Role) -> nn.Module | None:
        """The trainable copy that a role is, where it is one."""
        return {GENERATOR: self.copy, FAKE: self.critic_copy}.get(role)

    def _adapters(self, role: Role, alpha: Strength | None = None) -> dict[str, Strength]:
        """What acts in a role; a strength of 0 is left out, so that it is the base bit for bit."""
        if self._own_copy(role) is not None:
            return {}
        if role == GENERATOR:
            return {GENERATOR: 1.0}
        strength = (
            {"teacher": 0.0, "real": self.alpha_weak, "fake": self.alpha_strong}[role] if alpha is None else alpha
        )
        return {self._critic: strength} if isinstance(strength, Tensor) or strength else {}

    def _row_strengths(self, queries: Sequence[Query], device: torch.device) -> Active:
        rows = [self._adapters(q.role, q.alpha) for q in queries]
        names = sorted({name for row in rows for name in row})
        return {
            name: torch.cat(
                [
                    torch.as_tensor(row.get(name, 0.0), dtype=torch.float32, device=device).expand(len(q.x_t))
                    for q, row in zip(queries, rows, strict=True)
                ]
            )
            for name in names
        }

    @contextlib.contextmanager
    def _using(self, active: Active) -> Iterator[None]:
        before = self._acting.adapters
        self._put(active)
        try:
            yield
        finally:
            self._put(before)

    def _put(self, active: Active) -> None:
        names = list(active)
        self._acting.adapters = active
        for layer in self._layers:  # a cached list: walking the whole model costs 30 times as much
            layer._active_adapter = names

    def _wire(self, adapters: Iterable[str]) -> None:
        """Let adapters that were just put in act only while they are asked for."""
        for layer in self._layers:
            layer._active_adapter = []
            for name in adapters:
                if name in layer.lora_B:
                    layer.lora_B[name].register_forward_hook(self._scale(name))

    def _scale(self, adapter: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            strength = self._acting.adapters[adapter]
            if isinstance(strength, Tensor):
                return output * _rows_like(strength, output)
            return output if strength == 1.0 else output * strength

        return hook

    def _checkpoint(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """`torch.utils.checkpoint` that recomputes with the adapters of the forward pass, not of the moment."""
        active = self._acting.adapters

        def contexts() -> tuple[Any, Any]:
            return contextlib.nullcontext(), self._using(active)

        return checkpoint(function, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextlib.contextmanager
def swapped_in(weights: Mapping[str, Tensor], model: SharedModel) -> Iterator[None]:
    """Let the generator role use these weights (its moving average, say) for a while."""
    own = model.parameters(GENERATOR)
    before = {name: parameter.detach().clone() for name, parameter in own.items()}
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(before[name])


def _of_rows(active: Active, rows: Tensor) -> Active:
    """The strengths of some rows of a batch."""
    return {name: s[rows] if isinstance(s, Tensor) and s.ndim else s for name, s in active.items()}


def _rows_like(strength: Tensor, output: Tensor) -> Tensor:
    """(B,) viewed against an output of any rank whose first dimension is B, or B times folded frames."""
    folded = output.shape[0] // strength.shape[0]
    rows = strength.repeat_interleave(folded) if folded > 1 else strength
    return rows.to(output.dtype).view(-1, *[1] * (output.ndim - 1))


def matching(targets: Sequence[str]) -> re.Pattern[str]:
    """What fully matches the names of modules that end in one of the targets (see `Backbone.lora_targets`)."""
    endings = "|".join(re.escape(target).replace(r"\*", r"[^.]+") for target in targets)
    return re.compile(rf"(?:.*\.)?(?:{endings})")


def _inject(base: nn.Module, targets: Sequence[str], ranks: Mapping[str, int]) -> list[Any]:
    """Put float32 adapters into the base, up = 0, and list the layers that hold them."""
    if not ranks:
        return []
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    layers = matching(targets).pattern
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # a second adapter is what we want
        for name, rank in ranks.items():
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), base, name)
    for name, parameter in base.named_parameters():
        trained = ".lora_" in name
        parameter.requires_grad_(trained)
        if trained:
            parameter.data = parameter.data.float()
    return [module for module in base.modules() if isinstance(module, LoraLayer)]
