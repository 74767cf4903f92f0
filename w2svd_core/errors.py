"""The one exception that users see, and the guard that every command-line door runs in."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input or a broken surrounding, told in one sentence: what is wrong, where, what to do."""


def guarded(door: Callable[[], int]) -> int:
    """Run a door and return its exit code.

    A `UserError`, and whatever the system refuses, becomes one line on stderr and exit code 2; an interrupt that no run
    caught becomes 130.
    """
    try:
        return door()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        reason = error.strerror or str(error)
        print(f"error: the system refused{place}: {reason}; check path, permissions and free space", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
