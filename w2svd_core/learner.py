"""One set of trainable weights with everything that moves them: AdamW, clipping, the non-finite guard, the average."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError

FIRST_SCALE = 2.0**12  # of the loss in float16
Schedule = Callable[[int], float]  # update -> factor on the learning rate


def lr_schedule(decay: str, warmup: int, total: int) -> Schedule:
    """A linear rise over `warmup` updates, then constant or a half cosine that ends at 0 after `total` updates."""

    def factor(update: int) -> float:
        rise = min(1.0, (update + 1) / warmup) if warmup else 1.0
        if decay == "constant":
            return rise
        return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, update / max(1, total))))

    return factor


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it, as several learners share a checkpoint."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


class Learner:
    """Updates the weights of one role.

    Args:
        name: for messages and checkpoints.
        parameters: float32 weights by name.
        optimizer: AdamW's settings (lr, betas as beta1 and beta2, weight_decay).
        schedule: factor on the learning rate of each update.
        clip_norm: gradients are scaled down to this norm; 0 is off.
        max_nonfinite: so many non-finite updates in a row end the run.
        ema: decay of the moving average; 0 keeps none.
        reduce: averages a gradient over the processes of the run.
        scale_loss: scale the loss up before the backward pass, as float16 activations need it; the scale halves after
            an overflow and doubles after 2000 sound updates.
    """

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, nn.Parameter],
        optimizer: Any,
        *,
        schedule: Schedule,
        clip_norm: float,
        max_nonfinite: int,
        ema: float = 0.0,
        reduce: Callable[[Tensor], Tensor] | None = None,
        scale_loss: bool = False,
    ) -> None:
        self.name = name
        self.parameters = dict(parameters)
        self.lr, self.schedule = optimizer.lr, schedule
        self.clip_norm, self.max_nonfinite = clip_norm, max_nonfinite
        self.adam = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=optimizer.lr,
            betas=(optimizer.beta1, optimizer.beta2),
            weight_decay=optimizer.weight_decay,
        )
        self.ema_decay = ema
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()} if ema else {}
        self.reduce = reduce
        kind = next(iter(self.parameters.values())).device.type
        self.scaler = torch.amp.GradScaler(kind, init_scale=FIRST_SCALE, enabled=scale_loss)
        self.updates = 0
        self.age = 0  # updates that the moving average has seen, those of the run that it came from too
        self.nonfinite_in_a_row = 0

    def update(self, losses: Tensor | Iterable[Tensor]) -> dict[str, float]:
        """One optimizer step down the gradient of a scalar loss, or of the sum of several.

        Args:
            losses: of several, each is taken back through its graph before the next is made.

        Returns:
            loss, gradient norm, and 1 if the step was skipped because something was not finite.

        Raises:
            UserError: `max_nonfinite` updates in a row were skipped.
        """
        total = 0.0
        for loss in [losses] if isinstance(losses, Tensor) else losses:
            torch.autograd.backward(self.scaler.scale(loss))
            total += float(loss.detach())
        weights = list(self.parameters.values())
        if self.reduce is not None:
            for weight in weights:
                if weight.grad is not None:
                    weight.grad = self.reduce(weight.grad)
        self.scaler.unscale_(self.adam)
        norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        sound = bool(torch.isfinite(norm)) and math.isfinite(total)
        if sound:
            self._step(weights, norm)
        self.scaler.update()
        self.adam.zero_grad(set_to_none=True)
        self._count(sound)
        return {
            f"{self.name}/loss": total,
            f"{self.name}/gradient_norm": float(norm),
            f"{self.name}/skipped": float(not sound),
        }

    def _step(self, weights: list[nn.Parameter], norm: Tensor) -> None:
        if self.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(weights, self.clip_norm, norm)
        for group in self.adam.param_groups:
            group["lr"] = self.lr * self.schedule(self.updates)
        self.adam.step()
        self.updates += 1
        self.age += 1
        # a young average leans on the newest weights, or it would hold on to the first ones for 1 / (1 - decay) updates
        decay = min(self.ema_decay, (1 + self.age) / (10 + self.age))
        for name, mean in self.average.items():
            mean.lerp_(self.parameters[name].detach(), 1 - decay)

    def _count(self, sound: bool) -> None:
        self.nonfinite_in_a_row = 0 if sound else self.nonfinite_in_a_row + 1
        if self.nonfinite_in_a_row >= self.max_nonfinite:
            raise UserError(
                f"the {self.name} had {self.nonfinite_in_a_row} non-finite updates in a row after update "
                f"{self.updates}; start again with a lower {self.name}.lr or with model.precision fp32"
            )

    def begin_with(self, weights: Mapping[str, Tensor], averages: Mapping[str, Tensor], age: int = 0) -> None:
        """Take over weights, and the moving average where one is kept; nothing of an optimizer.

        Args:
            age: updates that the averages have seen; 0 for weights in their place.
        """
        self.age = age
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
            for name, mean in self.average.items():
                mean.copy_(averages[name])

    def learned(self) -> dict[str, Tensor]:
        """What is worth keeping: the moving average where there is one, else the weights."""
        return self.average or {name: p.detach() for name, p in self.parameters.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Everything that an exact resume needs, by name."""
        out = {f"weight/{n}": p.detach() for n, p in self.parameters.items()}
        out |= {f"average/{n}": t for n, t in self.average.items()}
        for name, parameter in self.parameters.items():
            state = self.adam.state.get(parameter, {})
            out |= {f"adam/{key}/{name}": torch.as_tensor(value) for key, value in state.items()}
        if self.scaler.is_enabled():
            scaler = self.scaler.state_dict()
            out["scale"] = torch.tensor([scaler["scale"], scaler["_growth_tracker"]], dtype=torch.float64)
        out["count"] = torch.tensor([self.updates, self.nonfinite_in_a_row, self.age])
        return out

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"weight/{name}"])
                state = {
                    key: tensors[f"adam/{key}/{name}"].clone()
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"adam/{key}/{name}" in tensors
                }
                if state:
                    moved = {k: v if k == "step" else v.to(parameter.device) for k, v in state.items()}
                    self.adam.state[parameter] = moved
            for name, mean in self.average.items():
                mean.copy_(tensors[f"average/{name}"])
        if self.scaler.is_enabled():
            scale, sound = tensors["scale"].tolist()
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": scale, "_growth_tracker": int(sound)})
        self.updates, self.nonfinite_in_a_row = (int(n) for n in tensors["count"][:2])
        self.age = average_age(tensors["count"])


def average_age(count: Tensor) -> int:
    """How many updates the moving average behind a "count" of `Learner.tensors` has seen."""
    updates, _, *age = count.tolist()
    return int(age[0] if age else updates)  # older versions had no averages that came along
