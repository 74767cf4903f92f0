"""The one exception that users see, and the guard that every command-line door runs in."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

SPINS = "10000"  # of a thread that waits for the others, before it sleeps: some microseconds


class UserError(Exception):
    """Bad input or a broken surrounding, told in one sentence: what is wrong, where, what to do."""


def out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's or the machine's memory was too small; torch is not imported to ask."""
    name, told = type(error).__name__, str(error)  # TorchScript wraps another's error, with its words
    words = any(said in told for said in ("DefaultCPUAllocator", "CUDA out of memory"))
    return isinstance(error, MemoryError) or name == "OutOfMemoryError" or words


def guarded(door: Callable[[], int]) -> int:
    """Run a door and return its exit code.

    A `UserError`, too little memory, and whatever the system refuses, becomes one line on stderr and exit code 2; an
    interrupt that no run caught becomes 130.

    Doors import torch inside of it: how long GNU OpenMP's threads wait for each other is read when torch is loaded. By
    default that is as long as it takes, and as soon as another program wants a core, each small operation waits until
    it has had its turn: on two busy cores a step of `portraits` took ten times as long; so it takes twice as long, and
    no longer than before on quiet ones.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a console without an accent must not cost a table
    try:
        return door()
    except UserError as error:
        return _told(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if out_of_memory(error):
            return _told(
                "there is not enough memory; lower data.frames, data.height, data.width, train.batch, evaluate.batch "
                "or both ranks, or set model.gradient_checkpointing to true"
            )
        if not isinstance(error, OSError):
            raise
        place = f" {error.filename}" if error.filename else ""
        reason = error.strerror or str(error)
        return _told(f"the system refused{place}: {reason}; check path, permissions and free space")


def _told(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2
