"""What a run tells whoever started it, and the one thing that it asks: whether to stop. `Terminal` is the shell's."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .data.codec import Video


class Watch(Protocol):
    """Who looks on while a run goes: a terminal, or a node."""

    def __call__(self, what: str, done: int, count: int) -> None:
        """Something is being prepared or measured; `done` of `count`."""
        ...

    def training(self, start: int, rounds: int) -> AbstractContextManager[None]:
        """The rounds from `start` to `rounds` are made inside."""
        ...

    def step(
        self, done: int, rounds: int, values: Mapping[str, float], shown: Mapping[str, str], seconds: float
    ) -> None:
        """A round was made.

        Args:
            done, rounds: how many were made, of how many.
            values: what it measured.
            shown: the keys of `values` that matter most, each with its short name.
            seconds: that it took.
        """
        ...

    def stop(self) -> bool:
        """Asked after each round: save the state and end."""
        ...

    def preview(self, step: int, clips: Video) -> None:
        """Clips of the student as it is after `step` rounds, uint8 `n f h w 3`."""
        ...

    def say(self, line: str) -> None:
        """A line for the user."""
        ...


class Terminal:
    """Progress bars on stderr; Ctrl-C once asks the run to stop after its round, twice stops at once.

    Args:
        quiet: no bars (other processes than the first).
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._what = ""
        self._asked = False

    def __call__(self, what: str, done: int, count: int) -> None:
        from tqdm import tqdm

        if self._quiet:
            return
        if what != self._what:
            self._what, self._bar = what, tqdm(total=count, desc=what, unit="clip", leave=False)
        self._bar.update(done - self._bar.n)
        if done >= count:
            self._bar.close()
            self._what = ""

    @contextlib.contextmanager
    def training(self, start: int, rounds: int) -> Iterator[None]:
        from tqdm import tqdm

        self._asked = False
        with self._interrupts(), tqdm(initial=start, total=rounds, unit="step", disable=self._quiet) as self._bar:
            yield

    def step(
        self, done: int, rounds: int, values: Mapping[str, float], shown: Mapping[str, str], seconds: float
    ) -> None:
        words = ", ".join(f"{name} {values[key]:.4g}" for key, name in shown.items() if key in values)
        self._bar.set_postfix_str(words, refresh=False)
        self._bar.update(done - self._bar.n)

    def stop(self) -> bool:
        return self._asked

    def preview(self, step: int, clips: Video) -> None:
        """A terminal shows no pictures; they are in the run folder."""

    def say(self, line: str) -> None:
        print(line, file=sys.stderr)

    @contextlib.contextmanager
    def _interrupts(self) -> Iterator[None]:
        """Listen to Ctrl-C; other threads than the main one can't."""

        def ask(_number: int, _frame: Any) -> None:
            if self._asked:
                raise KeyboardInterrupt
            self._asked = True

        try:
            before = signal.signal(signal.SIGINT, ask)
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
