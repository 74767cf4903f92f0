"""The loop: rounds, logs, checkpoints, an end on request. It knows no paper and no model family."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from .memory import gpu_peak
from .run import RunFolder
from .settings import Train
from .watch import Terminal, Watch

Look = Callable[[int], tuple[Mapping[str, float], bool]]
"""From the number of rounds done to what to log beside the round, nothing mostly, and whether the run shall end."""


class Program(Protocol):
    """What the loop drives: rounds that are functions of their index and of the tensors.

    Attributes:
        shown: logged values that the progress bar shows, each with its short name, in order.
    """

    @property
    def shown(self) -> Mapping[str, str]: ...

    @property
    def rounds(self) -> int:
        """How many rounds there are."""
        ...

    def round(self, index: int) -> dict[str, float]:
        """Do one; returns what to log."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything that an exact resume needs."""
        ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        ...


class Interrupted(Exception):
    """The user stopped the run; its state is saved. `index` rounds are done."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


def train(
    program: Program,
    run: RunFolder,
    settings: Train,
    *,
    start: int = 0,
    main: bool = True,
    log: Callable[[dict[str, float], int], None] = lambda values, step: None,
    on_sample: Callable[[int], None] = lambda step: None,
    look: Look = lambda step: ({}, False),
    watch: Watch | None = None,
) -> None:
    """Run the rounds from `start` to the end, or until a look ends them.

    Args:
        program: what a round is.
        run: where metrics and checkpoints go.
        main: whether this process is the one that writes.
        log: the trackers; called with values and the number of rounds done.
        on_sample: called every `train.sample_every` rounds.
        look: called after each round, before it is logged and saved; it may end the run, which is then a whole one.
        watch: who looks on, and may ask to stop; a terminal by default.

    Raises:
        Interrupted: the watch asked for it; the state was saved after the round that was under way.
    """
    watch = watch or Terminal(quiet=not main)
    with watch.training(start, program.rounds):
        for index in range(start, program.rounds):
            began = time.perf_counter()
            values = program.round(index)
            done, seconds = index + 1, time.perf_counter() - began
            watch.step(done, program.rounds, values, program.shown, seconds)
            try:
                seen, enough = look(done)
            except Exception:  # too little memory for its clips, say: the round is not lost
                run.save_checkpoint(done, program.tensors, main=main)
                raise
            if main and (seen or done % settings.log_every == 0):
                values |= seen
                values |= {"seconds": seconds, **gpu_peak()}
                run.log(done, values)
                log(values, done)
            stop, last = watch.stop(), enough or done == program.rounds
            if stop or last or _due(done, settings.checkpoint_every):
                run.save_checkpoint(done, program.tensors, main=main)
            if last:
                return
            if stop:
                raise Interrupted(done)
            if _due(done, settings.sample_every):
                on_sample(done)


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
