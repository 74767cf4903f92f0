"""`docs/results.json`: every cell that the page was written from; a table goes on where another machine left it.

A folder of cells takes what the record has and it lacks, then gives all that it has. Settings that are at their
defaults stand there once. Trainings that diverged are named, so that nobody tries them again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cells import note_diverged, plain_settings, which_diverged
from plan import Costs

from w2svd_core.errors import UserError
from w2svd_core.files import write_text
from w2svd_core.settings import Recipe


def take(path: Path, out: Path, costs: Costs) -> int:
    """Lay the cells of a record into a folder, where it has none of that name or an older one; returns how many.

    Args:
        path: of the record, which need not be there.
        out: the folder of the cells.
        costs: counted FLOPs, which come along.

    Raises:
        UserError: the record is broken.
    """
    if not path.is_file():
        return 0
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        cells = {key: {**cell, "recipe": record["defaults"] | cell["recipe"]} for key, cell in record["cells"].items()}
        costs.learn(record["costs"])
        note_diverged(record["diverged"], out)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no record of results; take the one of the checkout, or move it away") from error
    new = {key: cell for key, cell in cells.items() if _is_newer(cell, out / "cells" / f"{key}.json")}
    for key, cell in new.items():
        write_text(out / "cells" / f"{key}.json", json.dumps(cell, indent=2) + "\n")
    return len(new)


def _is_newer(cell: dict[str, Any], place: Path) -> bool:
    """A day's own cells stay."""
    own = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    return not own or str(cell.get("date", "")) > str(own.get("date", ""))


def give(path: Path, out: Path, costs: Costs) -> None:
    """Write all cells of a folder, and the counted FLOPs, as the record; what it got meanwhile is taken first.

    Raises:
        UserError: the record is broken.
    """
    take(path, out, costs)
    defaults = plain_settings(Recipe())
    cells: dict[str, dict[str, Any]] = {}
    for place in sorted((out / "cells").glob("*.json")):
        cell = json.loads(place.read_text(encoding="utf-8"))
        own = {k: v for k, v in cell["recipe"].items() if k not in defaults or v != defaults[k]}
        cells[place.stem] = {**cell, "recipe": own}
    record = {"defaults": defaults, "costs": costs.known, "diverged": which_diverged(out), "cells": cells}
    write_text(path, json.dumps(record, indent=1, sort_keys=True) + "\n")  # small changes for git
