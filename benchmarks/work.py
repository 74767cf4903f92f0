"""Doing what a plan asks for: processes of one thread each, so many at a time, and an end on request."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cells import (
    Cell,
    Subject,
    arguments_of,
    has_diverged,
    is_trained,
    may_start,
    move_aside,
    note_usage,
    spent,
    stale,
    thin,
)

from w2svd_core.config import recipe_to_yaml

ROOT = Path(__file__).resolve().parents[1]
INTERRUPTED = 130
DIVERGED = "non-finite updates in a row"  # in the sentence that `Learner` ends such a run with
Job = Subject | Cell  # something to train, or something to measure


@dataclass
class Workers:
    """Runs jobs.

    Attributes:
        out: where results go.
        jobs: processes at a time.
        until: the time (`time.monotonic`) after which nothing new begins; None = no end.
        failed: keys of jobs that broke, each with its log.
    """

    out: Path
    jobs: int
    until: float | None = None
    failed: dict[str, Path] = field(default_factory=dict)
    stopping: bool = False
    _children: dict[int, subprocess.Popen[str]] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)  # a second signal may interrupt `stop`

    def run(self, cells: Callable[[], Sequence[Cell]]) -> None:
        """Do what is left of the cells, which are asked for again whenever a job has ended."""
        busy: dict[Future[None], str] = {}
        with ThreadPoolExecutor(self.jobs) as pool:
            while True:
                while len(busy) < self.jobs and self.may_begin():
                    job = self.next_job(cells(), set(busy.values()))
                    if job is None:
                        break
                    busy[pool.submit(self.do, job)] = job.key
                if not busy:
                    return
                done, _ = wait(busy, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in done:
                    del busy[future]
                    future.result()

    def may_begin(self) -> bool:
        """Whether a new job may begin."""
        return not self.stopping and (self.until is None or time.monotonic() < self.until)

    def next_job(self, cells: Sequence[Cell], busy: set[str]) -> Job | None:
        """The first thing that can be done now."""
        for cell in cells:
            if cell.key in busy or cell.key in self.failed or cell.read(self.out) is not None:
                continue
            if any(has_diverged(subject, self.out) for subject in cell.trainings()):
                continue
            left = [subject for subject in cell.trainings() if not is_trained(subject, self.out)]
            if not left:
                return cell
            if not may_start(left[0], self.out):
                left = [left[0].needs["start"]]  # the same again: nothing in a training is left to chance
            if left[0].key not in busy and left[0].key not in self.failed:
                return left[0]
        return None

    def do(self, job: Job) -> None:
        """Train or measure, in a process of its own; a fault is noted and the others go on."""
        if isinstance(job, Subject):
            self.train(job)
        else:
            self.measure(job)

    def train(self, subject: Subject) -> None:
        """Train, or go on with a training that was stopped."""
        if key := stale(subject, self.out):
            self.failed[subject.key] = subject.place(self.out) / "recipe.yaml"
            print(
                f"{subject.place(self.out)} was trained with another {key}; move it away", file=sys.stderr, flush=True
            )
            return
        if is_trained(subject, self.out):  # its checkpoint is gone, which a training that starts from it needs
            move_aside(subject, self.out)
        command = [sys.executable, "-m", "w2svd_core.train", *arguments_of(subject, self.out)]
        said = len(self.said(subject.key))
        code, peak = self.process(subject.key, command, "")
        diverged = code != 0 and DIVERGED in self.said(subject.key)[said:]
        if subject.place(self.out).is_dir():
            note_usage(subject, self.out, peak, code == 0, diverged=diverged)
        if code == 0:
            thin(subject, self.out)

    def measure(self, cell: Cell) -> None:
        """Measure a cell; it writes its own JSON."""
        recipe = cell.subject.whole(self.out)
        own = recipe.evaluate.model_copy(update={"clips": cell.clips, "seed": cell.seed})
        trained = cell.kind == "student"
        job: dict[str, Any] = {
            **cell.about(),
            "yaml": recipe_to_yaml(recipe.model_copy(update={"evaluate": own})),
            "run": str(cell.subject.place(self.out)),
            "models": cell.subject.models(self.out),
            **(spent(cell.subject, self.out) if trained else {}),
        }
        command = [sys.executable, str(ROOT / "benchmarks" / "measure.py"), str(cell.place(self.out))]
        self.process(cell.key, command, json.dumps(job))

    def process(self, key: str, command: Sequence[str], given: str) -> tuple[int, int | None]:
        """Run a command; returns its exit code and its peak memory in bytes, where the system tells it."""
        log = self.log(key)
        log.parent.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        print("$", " ".join(command[1:]), flush=True)
        with log.open("a") as stream:
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.STDOUT, env=env, text=True,
                start_new_session=True,  # Ctrl-C reaches it through `stop` alone, once
            )  # fmt: skip
            with self._lock:
                self._children[child.pid] = child
                if self.stopping:
                    child.send_signal(signal.SIGINT)
            assert child.stdin is not None
            try:
                child.stdin.write(given)
                child.stdin.close()
            except BrokenPipeError:
                pass  # it has ended; its log says why
            peak = self.wait_for(child)
            with self._lock:
                del self._children[child.pid]
        if child.returncode and not self.stopping:
            self.failed[key] = log
            print(f"failed: {log}", file=sys.stderr, flush=True)
        return child.returncode, peak

    def log(self, key: str) -> Path:
        """Where a job's words go, of all calls."""
        return self.out / "logs" / f"{key}.log"

    def said(self, key: str) -> str:
        """What stands there."""
        log = self.log(key)
        return log.read_text(errors="replace") if log.is_file() else ""

    def wait_for(self, child: subprocess.Popen[str]) -> int | None:
        """Wait; returns the peak of its memory in bytes."""
        if not hasattr(os, "wait4"):
            child.wait()
            return None
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def stop(self) -> None:
        """Begin nothing new, and ask what runs to save and end; asked again, end it at once."""
        again, self.stopping = self.stopping, True
        with self._lock:
            for child in self._children.values():
                child.send_signal(signal.SIGKILL if again and hasattr(signal, "SIGKILL") else signal.SIGINT)
