"""The loop: rounds, progress, logs, checkpoints, Ctrl-C. It knows no paper and no model family."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor

from .run import RunFolder
from .settings import Train


class Program(Protocol):
    """What the loop drives: rounds that are functions of their index and of the tensors.

    Attributes:
        shown: logged values that the progress bar shows, each with its short name, in order.
    """

    shown: Mapping[str, str]

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
) -> None:
    """Run the rounds from `start` to the end.

    Args:
        program: what a round is.
        run: where metrics and checkpoints go.
        main: whether this process is the one that writes.
        log: the trackers; called with values and the number of rounds done.
        on_sample: called every `train.sample_every` rounds.

    Raises:
        Interrupted: Ctrl-C; the state was saved after the round that was under way.
    """
    from tqdm import tqdm

    bar = tqdm(range(start, program.rounds), initial=start, total=program.rounds, unit="step", disable=not main)
    with _interrupts() as stop:
        for index in bar:
            began = time.perf_counter()
            values = program.round(index)
            done = index + 1
            bar.set_postfix_str(_postfix(values, program.shown))
            if done % settings.log_every == 0 and main:
                values["seconds"] = time.perf_counter() - began
                run.log(done, values)
                log(values, done)
            if stop.asked or _due(done, settings.checkpoint_every) or done == program.rounds:
                run.save_checkpoint(done, program.tensors, main=main)
            if stop.asked and done < program.rounds:
                bar.close()
                raise Interrupted(done)
            if _due(done, settings.sample_every) and done < program.rounds:
                on_sample(done)


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _postfix(values: Mapping[str, float], shown: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {values[key]:.4g}" for key, name in shown.items() if key in values)


class _Stop:
    asked = False


@contextlib.contextmanager
def _interrupts() -> Iterator[_Stop]:
    """Ctrl-C once asks the loop to stop after its round; twice stops at once. Other threads than the main one can't."""
    stop = _Stop()

    def ask(_number: int, _frame: Any) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        before = signal.signal(signal.SIGINT, ask)
    except ValueError:
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
