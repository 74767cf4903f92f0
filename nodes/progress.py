"""Work as a node shows it: the progress bar, with a preview of a run, a line of text, and Cancel."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

EVERY = 0.5  # seconds between two lines of text


class NodeProgress:
    """How far a node is: its bar, its line of text, and Cancel.

    Args:
        node_id: of the node that runs.
    """

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._bar: Any = None
        self._done, self._total = 0, 0
        self._told = 0.0
        self._preview: Any = None
        self.stopped = False

    def __call__(self, what: str, done: int, count: int) -> None:
        import comfy.model_management

        comfy.model_management.throw_exception_if_processing_interrupted()  # what was prepared is kept
        self._show(done, count)
        self._tell(f"{what}: {done} of {count}", always=done == count)

    def stop(self) -> bool:
        import comfy.model_management

        self.stopped = self.stopped or bool(comfy.model_management.processing_interrupted())
        return self.stopped

    def say(self, line: str) -> None:
        self._tell(line, always=True)
        logging.getLogger(__name__).info("%s", line)  # the node's line is soon another one

    def _show(self, done: int, total: int) -> None:
        from comfy.utils import ProgressBar

        self._done = done
        if self._bar is None or total != self._total:
            self._bar, self._total = ProgressBar(total, node_id=self._node_id), total
        if not self.stop():  # the bar's own hook would throw in the middle of things
            self._bar.update_absolute(done, total, self._preview)

    def _tell(self, line: str, always: bool = False) -> None:
        from server import PromptServer

        now = time.monotonic()
        if (always or now - self._told > EVERY) and getattr(PromptServer, "instance", None) is not None:
            self._told = now
            PromptServer.instance.send_progress_text(line, self._node_id)


class NodeWatch(NodeProgress):
    """A `w2svd_core.watch.Watch` for one node.

    Args:
        node_id: of the node that runs.
        folder: of the run; the last clips are kept there.
        fps: of the clips.
    """

    def __init__(self, node_id: str, folder: Path, fps: float) -> None:
        super().__init__(node_id)
        self._folder, self._fps = folder, fps
        self._average = 0.0

    @contextlib.contextmanager
    def training(self, start: int, rounds: int) -> Iterator[None]:
        self._bar = None
        yield

    def step(
        self, done: int, rounds: int, values: Mapping[str, float], shown: Mapping[str, str], seconds: float
    ) -> None:
        self._average = seconds if not self._average else 0.9 * self._average + 0.1 * seconds
        self._show(done, rounds)
        words = [f"{name} {values[key]:.4g}" for key, name in shown.items() if key in values]
        left = round(self._average * (rounds - done))
        parts = [
            f"step {done} of {rounds}",
            *words,
            f"{self._average:.2f} s/step",
            f"{left // 60}:{left % 60:02d} left",
        ]
        self._tell(", ".join([*parts, *_memory()]), always=done == rounds)

    def preview(self, step: int, clips: Any) -> None:
        from PIL import Image

        from ..w2svd_core.data.video import write_video

        self._preview = ("JPEG", Image.fromarray(clips[0][len(clips[0]) // 2]), 512)
        for number, clip in enumerate(clips):
            write_video(self._folder / "samples" / f"student-{number}.mp4", clip, self._fps)
        if self._total:
            self._show(self._done, self._total)


def _memory() -> list[str]:
    """What a GPU holds now."""
    import torch

    return [f"{torch.cuda.memory_allocated() / 2**30:.1f} GB"] if torch.cuda.is_available() else []
