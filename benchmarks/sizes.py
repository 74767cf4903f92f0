"""The table's sizes: a small one for CPU cores, and a larger one where a CUDA GPU is at hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from rows import ABLATION, BUDGETS, FLOORS, GRID, ROWS, STUDENTS, TEACHER, WINNERS, Row


@dataclass(frozen=True)
class Size:
    """What a table is of.

    Attributes:
        about: what is distilled, in words.
        page: the name of its page, record and plots.
        rows: of the table.
        settings: that go over every row's.
    """

    about: str
    page: str
    rows: tuple[Row, ...]
    settings: Mapping[str, str] = field(default_factory=dict)


GROUPS = (FLOORS, TEACHER, STUDENTS, ABLATION, WINNERS, BUDGETS, GRID)  # of the larger table: from text
LARGE_TEACHER = Row(
    "large_teacher", "the larger teacher", TEACHER, "portraits_teacher", kind="model",
    settings={
        "model.heads": "8", "model.head_dim": "64", "model.ffn_dim": "2048", "model.layers": "8", "student.lr": "5e-4",
        "train.steps": "8000",
    },
)  # fmt: skip


def on_large(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Rows built on the larger teacher."""
    return tuple(row if row.kind in ("data", "codec") else replace(row, teacher=LARGE_TEACHER.name) for row in rows)


SIZES = {
    "small": Size("Portraits of 17 frames, 32 x 32; the bundled teacher of 2.8 million weights", "results", ROWS),
    "large": Size(
        "Portraits of 17 frames, 64 x 64; a teacher of 36 million weights, trained by the same command, once",
        "results_large",
        (LARGE_TEACHER, *on_large(row for row in ROWS if row.group in GROUPS and not row.image)),
        {"data.height": "64", "data.width": "64"},
    ),
}
