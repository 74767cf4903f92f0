"""The rows of an evaluation as a markdown table, as plain numbers, and as sentences about the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .evaluation import Row
from .metrics.identity import IDENTITY_UNITS
from .metrics.measure import UNITS as PORTRAIT_UNITS
from .metrics.real_networks import REAL_TITLES, REAL_UNITS

UNITS: Mapping[str, str] = PORTRAIT_UNITS | IDENTITY_UNITS | REAL_UNITS  # in the order of the columns

SHORT_UNITS = {"motion": "px/frame", "flicker": "of 255", "saturation": "of 255", "sharpness": "of 255"}
HIGHEST = {"adherence", "diversity", "identity", "clip_text"}  # better when higher
LOWEST = {"frechet_video", "frechet_frame", "frozen_share", "fid_inception", "fvd_i3d"}  # better when lower
# of the others (motion, flicker, saturation, sharpness) the best is the one nearest to data
REAL_DISTANCES = ("fvd_i3d", "fid_inception")
HEADLINES = {"frechet_video": "video Fréchet distance", **{metric: REAL_TITLES[metric] for metric in REAL_DISTANCES}}
"""What the headline is about: the first of these that teacher and student have."""


def number(value: float) -> str:
    """About three digits: 123, 12.3, 1.23, 0.123, 0.00012, 0."""
    size = abs(value)
    if size < 0.001:
        return f"{value:.2g}"
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:.{digits}f}"


def title(metric: str) -> str:
    """A metric's name for people."""
    return REAL_TITLES.get(metric) or metric.replace("_", " ").replace("frechet", "Fréchet")


def measured(rows: Sequence[Row]) -> list[str]:
    """The metrics that at least one row has, in the order of `UNITS`."""
    return [metric for metric in UNITS if any(metric in row.values for row in rows)]


def best_rows(rows: Sequence[Row], metric: str) -> set[int]:
    """Numbers of the model rows that no other model row beats in a metric; none when all are alike."""
    models = {i: row.values[metric] for i, row in enumerate(rows) if row.steps and metric in row.values}
    if len({number(value) for value in models.values()}) < 2:
        return set()
    if metric in HIGHEST:
        return {i for i, value in models.items() if value == max(models.values())}
    if metric in LOWEST:
        return {i for i, value in models.items() if value == min(models.values())}
    data = next((row.values[metric] for row in rows if row.steps is None and metric in row.values), None)
    if data is None:
        return set()
    distances = {i: abs(value - data) for i, value in models.items()}
    return {i for i, distance in distances.items() if distance == min(distances.values())}


def markdown_table(rows: Sequence[Row]) -> str:
    """A table with a line for each row, the best models in bold, and what each column means below."""
    metrics = measured(rows)
    heads = [title(m) + (f" ({SHORT_UNITS[m]})" if m in SHORT_UNITS else "") for m in metrics]
    lines = [
        "| " + " | ".join(["clips from", "model calls", *heads]) + " |",
        "|" + " --- |" + " ---: |" * (len(heads) + 1),
    ]
    best = {metric: best_rows(rows, metric) for metric in metrics}
    for index, row in enumerate(rows):
        cells = [row.name, "" if row.calls is None else str(row.calls)]
        for metric in metrics:
            text = number(row.values[metric]) if metric in row.values else ""
            cells.append(f"**{text}**" if text and index in best[metric] else text)
        lines.append("| " + " | ".join(cells) + " |")
    files = judges(rows)
    by = {metric: f"; by {files[metric]}" if metric in files else "" for metric in metrics}
    meanings = [f"- {title(metric)}: {UNITS[metric]}{by[metric]}." for metric in metrics]
    note = "Bold: the best model; for motion, flicker, saturation and sharpness the one nearest to data."
    return "\n".join([*lines, "", note, "", *meanings])


def judges(rows: Sequence[Row]) -> dict[str, str]:
    """The files of real feature networks that made numbers of these rows: {metric: file and hash}."""
    found: dict[str, str] = {}
    for row in rows:
        found |= row.judges
    return found


def plain(row: Row) -> dict[str, object]:
    """A row as JSON takes it."""
    return {"name": row.name, "steps": row.steps, "guided": row.guided, **row.values}


def about_clips(rows: Sequence[Row], folder: str) -> str:
    """How many clips there are in each row, where they come from, and what own clips leave out.

    Args:
        rows: of a table, data first and models last.
        folder: the setting `data.folder`.
    """
    alike = "all models with the same captions and seeds"
    if folder == "portraits":
        return f"{rows[-1].clips} clips in each row, {alike}."
    distances = [title(metric) for metric in REAL_DISTANCES if any(metric in row.values for row in rows)]
    lacking = "no diversity" if distances else "no Fréchet distance, no diversity"
    text = (
        f"{rows[-1].clips} clips in each row of a model, {alike}; {rows[0].clips} in the rows of data. "
        f"Clips and captions are your own, from {folder}. They are not held out: a run with this `data.folder` is "
        f"trained on them. There is {lacking} and no adherence, because the networks behind "
        "these numbers know nothing but this project's portraits."
    )
    if distances:
        text += (
            f" {' and '.join(distances)}: distances from these same clips, so that the row of data has none and the "
            "row of the codec says what the codec alone loses."
        )
    return text


def findings(rows: Sequence[Row]) -> tuple[str, list[str]]:
    """The headline about a student, and single comparisons with its teacher and with data.

    Args:
        rows: of one run of distillation: data first, then codec, teacher, few-step teacher, student.

    Returns:
        A sentence, and the lines below it; nothing without a student. The sentence is about the Fréchet distance,
        or about why there is none: then the clips are the user's own.
    """
    models = [row for row in rows if row.steps is not None]
    if len(models) < 3:
        return "", []
    teacher, few, student = models[:3]
    headline = _headline(teacher, few, student)
    lines = [
        _share("Motion", "motion", student, teacher, "the teacher's"),
        _share("Diversity", "diversity", student, teacher, "the teacher's"),
        _share("Flicker", "flicker", student, teacher, "the teacher's"),
        _share("Saturation", "saturation", student, rows[0], "the data's"),
    ]
    return headline, [line for line in lines if line]


def _headline(teacher: Row, few: Row, student: Row) -> str:
    metric = next((one for one in HEADLINES if all(one in row.values for row in (teacher, few, student))), None)
    if metric is None:
        return (
            f"There is no Fréchet distance for the {student.steps}-step student, because the clips are your own and "
            "the networks behind it know portraits alone; it was trained on these clips, so nothing here is held out."
        )
    good, poor, own = (row.values[metric] for row in (teacher, few, student))
    numbers = (
        f"its {HEADLINES[metric]} is {number(own)}, that of {_words(few)} {number(poor)}, "
        f"that of {_words(teacher)} {number(good)}"
    )
    if own >= poor:
        return f"The {student.steps}-step student is no better than {_words(few)}: {numbers}."
    if poor <= good:
        return f"The {student.steps}-step student beats its teacher: {numbers}."
    closed = (poor - own) / (poor - good)
    return f"The {student.steps}-step student closes {closed:.0%} of the gap that few steps open: {numbers}."


def _words(row: Row) -> str:
    return "the " + row.name.replace(",", " with", 1)


def _share(word: str, metric: str, row: Row, other: Row, whose: str) -> str:
    if metric not in row.values or not other.values.get(metric):
        return ""
    own, theirs = row.values[metric], other.values[metric]
    return f"{word}: {own / theirs:.0%} of {whose} ({number(own)} and {number(theirs)})."
