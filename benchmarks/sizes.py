"""The table's sizes: a small one for CPU cores, and a larger one where a CUDA GPU is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rows import ABLATION, ROWS, STUDENTS, WINNERS, Row


@dataclass(frozen=True)
class Size:
    """What a table is of.

    Attributes:
        rows: that may be named.
        page: the name of its page, record and plots.
        settings: that go over every row's.
    """

    rows: tuple[Row, ...]
    page: str
    settings: Mapping[str, str] = field(default_factory=dict)


GROUPS = ("Floors", "Teacher", STUDENTS, ABLATION, WINNERS)  # of the larger table: what is made from text alone
LARGE_TEACHER = Row(
    "large_teacher", "the larger teacher", "Teacher", "portraits_teacher", kind="model",
    settings={
        "model.heads": "8", "model.head_dim": "64", "model.ffn_dim": "2048", "model.layers": "8", "student.lr": "5e-4",
        "train.steps": "8000",
    },  # 36 million parameters
)  # fmt: skip


def large_rows() -> tuple[Row, ...]:
    """The rows from text, built on the larger teacher."""
    found = [row for row in ROWS if row.group in GROUPS and not row.image]
    built_on = [row if row.kind in ("data", "codec") else replace(row, teacher=LARGE_TEACHER.name) for row in found]
    return (LARGE_TEACHER, *built_on)


SIZES = {
    "small": Size(ROWS, "results"),
    "large": Size(large_rows(), "results_large", {"data.height": "64", "data.width": "64"}),
}
