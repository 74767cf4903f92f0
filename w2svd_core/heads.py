"""A discriminator on a frozen model's own features: taps in its blocks, and a small trainable head for each tap."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .numbers import wide

Features = list[Tensor]  # `b n d` of each tap: tokens or places, channels last


class _Read(Exception):
    """All that is read of a pass is there."""


class Taps:
    """What some blocks of a model put out. A pass ends where the last of them has been read.

    Args:
        blocks: all of the model's, in the order in which they run.
        depths: of those that are read, in (0, 1], 1 being the last one; several of one block count once.
    """

    def __init__(self, blocks: Sequence[nn.Module], depths: Sequence[float]) -> None:
        numbers = dict.fromkeys(max(1, int(depth * len(blocks) + 0.5)) - 1 for depth in depths)
        self.blocks = [blocks[number] for number in numbers]
        self.beyond = next(iter(blocks[max(numbers) + 1 :]), None)

    def of(self, call: Callable[[], Any]) -> Features:
        """What they put out while `call` runs the model once; gradients reach whatever the call depends on."""
        found: dict[int, Tensor] = {}

        def keep(place: int) -> Callable[..., None]:
            def hook(_block: nn.Module, _inputs: Any, output: Any) -> None:
                own = output[0] if isinstance(output, tuple) else output
                found.setdefault(place, own.clone())  # ComfyUI's blocks add to it in place

            return hook

        def end(_block: nn.Module, _inputs: Any) -> None:  # the next one: a checkpointed block has to run to its end
            if len(found) == len(self.blocks):
                raise _Read

        hooks = [block.register_forward_hook(keep(place)) for place, block in enumerate(self.blocks)]
        if self.beyond is not None:
            hooks.append(self.beyond.register_forward_pre_hook(end))
        try:
            with contextlib.suppress(_Read):
                call()
        finally:
            for hook in hooks:
                hook.remove()
        return [_as_tokens(found[place]) for place in range(len(self.blocks))]


def _as_tokens(output: Tensor) -> Tensor:
    """`b n d` of a transformer's tokens as they are, or of a convolution's `b d ...`."""
    return wide(output) if output.ndim == 3 else wide(output).flatten(2).transpose(1, 2)


class Heads(nn.Module):
    """A logit for each token of each tap: real clips above zero, a student's below.

    Args:
        widths: channels of each tap.
        hidden: channels between.
        seed: of the first weights.
    """

    def __init__(self, widths: Sequence[int], hidden: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.taps = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, 1))
                for width in widths
            )
        for tap in self.taps:  # it knows nothing yet: every logit is 0 and gives no gradient to a sample
            nn.init.zeros_(tap[-1].weight)  # type: ignore[index]
            nn.init.zeros_(tap[-1].bias)  # type: ignore[index]

    def forward(self, features: Features) -> list[Tensor]:
        """Logits `b n` of each tap."""
        return [tap(one).squeeze(-1) for tap, one in zip(self.taps, features, strict=True)]
