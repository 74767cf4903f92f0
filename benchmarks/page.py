"""`docs/results.md`: every number out of a cell, the papers' beside ours, and what has not run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from cells import course
from claims import CLAIMS, Claim
from lines import Line, lines_of
from pictures import write_pictures
from plan import BEYOND, TEST, VALIDATION, NotYet, Plan
from rows import BUDGETS, FROM_FRAME, GRID, SEEN

from w2svd_core.files import write_text
from w2svd_core.tables import SHORT_UNITS, UNITS, number, title

METRICS = ("frechet_video", "frechet_frame", "motion", "flicker", "saturation", "diversity", "adherence", "identity")
NOT_RUN = "not run"
ONCE = 0.02  # share by which two rows have to differ that were measured once, and so have no spread


def write_page(plan: Plan, page: Path, about: str, command: str) -> None:
    """Write the page, and its plots into a folder of its name beside it.

    Args:
        page: where it goes.
        about: what is distilled, in words.
        command: that wrote it.
    """
    lines = lines_of(plan)
    parts = [heading(plan, lines, about, command), *tables(lines), sweeps(plan), claims(lines), *grid_table(lines)]
    folder = page.with_suffix("")
    pictures = write_pictures(folder, lines, plan)
    parts += [f"![{words}]({folder.name}/{path.name})\n\n{words}" for path, words in pictures]
    parts += [why_not(lines)]
    write_text(page, "\n\n".join(part for part in parts if part) + "\n")


def heading(plan: Plan, lines: Mapping[str, Line], about: str, command: str) -> str:
    """What was done, in words."""
    o = plan.options
    machines = sorted({result["machine"] for line in lines.values() for result in line.results})
    part = "all" if o.sweep_budget == 1 else f"{o.sweep_budget:g} times"
    further = f", and by half or twice as much while the best lay at the edge, {BEYOND} times at most"
    sweep = (
        f"Before that, trained rows had their rates multiplied by {', '.join(f'{f:g}' for f in o.sweep)}"
        f"{further if len(o.sweep) > 1 else ''} (the first seed, {part} the budget, {o.sweep_clips} "
        f"validation portraits from seed {VALIDATION} on); the factor with the least video Fréchet distance there was "
        "taken for all seeds. Variants take the factor of their method and don't compete for the winner: the ablation "
        "and `dmd2_125` that of `dmd2`, `dfd_w2s_score` that of `dfd_w2s`, AVDM2's other two that of `avdm2`. Half "
        "and twice the FLOPs try that of the whole budget, and twice and half of it. The sick row, its cure and the "
        "cure's control have rates of their own."
        if o.sweep
        else "Rates are the recipes' own; no sweep was made."
    )
    from_frame = " (rows from a first frame: of `portraits_image`)"
    return (
        f"# Results\n\n{about}. "
        f"Written by `{command}`; numbers are out of cells that calls of this command made. Measured on "
        f"{'; '.join(machines) or 'no machine yet'}.\n\n"
        f"Seeds {', '.join(map(str, o.seeds))}: mean ± half the distance from the smallest to the largest. {o.clips} "
        f"clips in each cell, held-out portraits from seed {TEST} on, the same captions and noise seeds for all "
        "(teachers: noise of its own for each seed; floors and searched Euler steps: the first seed alone). "
        f"Trained rows have the same training FLOPs: {o.budget:g} times what 120 updates of `portraits_long` take"
        f"{from_frame if any(line.row.group == FROM_FRAME for line in lines.values()) else ''}, counted from executed "
        "operations, the critic's head start included; the trainings of teachers are not counted. "
        "A row that starts from another one shares the budget with it; out of this rule fall the finishes of the sick "
        f'row, which come on top of its own, and the rows under "{BUDGETS}". '
        f"{sweep} Wall time is that of the rounds alone, of the run that a row starts from too; peak memory is the "
        "whole process's, or the GPU's where one is at hand; of both the least of the seeds, since other programs ran "
        f"beside.{elsewhere(lines)}{noted(plan, lines)}{mixed(lines)}\n\n"
        "The Fréchet distances use this project's own networks: they compare with each other, and with no published "
        "number; clips of another length, or from a first frame, compare among themselves. The best Euler "
        "sampler (of three shifts and three guidances, and of more guidance while the best is the most) is chosen on "
        f"the test portraits themselves, in the teacher's favour. {SEEN}"
    )


def sweeps(plan: Plan) -> str:
    """What rates were chosen by, and which row is the winner."""
    if not plan.options.sweep:
        return ""
    known: dict[str, dict[float, float]] = {}
    for row in plan.rows.values():
        with contextlib.suppress(NotYet):
            known |= {row.name: plan.swept(row)} if plan.sweeps(row) else {}
    factors = sorted({factor for found in known.values() for factor in found})
    text = [
        "## The sweeps of rates, and the winner", "",
        "Video Fréchet distance on validation portraits; at an edge the best rate may lie beyond it.", "",
        "| | " + " | ".join(f"× {factor:g}" for factor in factors) + " | taken |",
        "| --- |" + " ---: |" * (len(factors) + 1),
    ]  # fmt: skip
    for name, found in known.items():
        taken = plan.factor(plan.rows[name])
        edge = ", the edge" if taken in (min(found), max(found)) else ""
        values = ["" if f not in found else number(found[f]) if found[f] < math.inf else "diverged" for f in factors]
        text.append("| " + " | ".join([f"{plan.rows[name].title} (`{name}`)", *values, f"{taken:g}{edge}"]) + " |")
    try:
        text += ["", f"The winner is {plan.winner().title} (`{plan.winner().name}`)."]
    except NotYet as reason:
        text += ["", f"There is no winner yet: {reason}."]
    return "\n".join(text) if known else ""


def elsewhere(lines: Mapping[str, Line]) -> str:
    """Which rows have times of another call, in words."""
    names = [name for name, line in lines.items() if any(result.get("adopted") for result in line.results)]
    if not names:
        return ""
    return f" Some trainings of {names_of(names)} were made before; their time is of then."


def noted(plan: Plan, lines: Mapping[str, Line]) -> str:
    """What cells say of themselves, in words."""
    found: dict[str, set[str]] = {}
    for line in lines.values():
        for result in (*line.results, *(cell.read(plan.out) or {} for cell in line.planned.cells)):
            if "note" in result:
                found.setdefault(result["note"], set()).add(result["row"])
    return "".join(f" Some cells of {names_of(sorted(names))}: {note}." for note, names in found.items())


def mixed(lines: Mapping[str, Line]) -> str:
    """Which trained teachers are not the same in all rows, in words."""
    found: dict[str, set[str]] = {}
    for line in lines.values():
        for result in line.results:
            for name, digest in result.get("models", {}).items():
                found.setdefault(name, set()).add(digest)
    apart = [name for name, digests in found.items() if len(digests) > 1]
    return "".join(f" Rows were built on several trainings of {name}: they do not compare." for name in apart)


def names_of(names: Sequence[str]) -> str:
    """Names of rows in a sentence."""
    return ", ".join(f"`{name}`" for name in names)


def tables(lines: Mapping[str, Line]) -> list[str]:
    """A table for each group."""
    parts = []
    shown = [line for line in lines.values() if line.row.group != GRID]
    for group, of_group in groupby(shown, key=lambda line: line.row.group):
        rows = list(of_group)
        metrics = [m for m in METRICS if m != "identity" or group == FROM_FRAME]
        heads = [title(m) + (f" ({SHORT_UNITS[m]})" if m in SHORT_UNITS else "") for m in metrics]
        heads = [
            "",
            "model calls",
            *heads,
            "train TFLOP",
            "updates",
            "rates ×",
            "peak MiB",
            "minutes",
            "paper",
            "order",
        ]
        text = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 3) + " --- | --- |"]
        text += [table_line(line, metrics, lines) for line in rows]
        parts.append(f"## {group}\n\n" + "\n".join(text))
    meanings = [f"- {title(m)}: {UNITS[m]}." for m in METRICS]
    return [*parts, "\n".join(meanings)]


def table_line(line: Line, metrics: Sequence[str], lines: Mapping[str, Line]) -> str:
    """One row, or that it has not run."""
    row = line.row
    if not line.results:
        cells = [NOT_RUN, *[""] * (len(metrics) + 5)]
    else:
        planned = len(line.planned.test)
        some = f" ({len(line.results)} of {planned} seeds)" if len(line.results) < planned else ""
        calls, factor = line.results[0]["model_calls"], line.planned.factor
        trained = row.kind == "student"
        cells = [("" if calls is None else str(calls)) + some]
        cells += [with_spread(line, metric) for metric in metrics]
        cells += [
            shown(line.least("train_flops") if trained else None, 1e12),
            updates(line) if trained else "",
            f"{factor:g}" if trained and factor is not None else "",
            shown(line.least("peak_memory"), 2**20),
            shown(line.least("train_seconds"), 60),
        ]
    held = [verdict(claim, lines) for claim in CLAIMS if row.name in (claim.better, claim.worse)]
    counts = [(sum(one == kind for one in held), word) for kind, word in ORDERS.items()]
    order = ", ".join(f"{count} {word}" for count, word in counts if count)
    name = f"{row.title} (`{row.name}`)"
    return "| " + " | ".join([name, *cells, row.paper, order]) + " |"


def updates(line: Line) -> str:
    """Of the generator; those of what it starts from first."""
    parts = course(line.planned.test[0].subject)
    return " + ".join(str(part.recipe.train.steps) for part in parts)


def shown(value: float | None, unit: float) -> str:
    """A number in a unit, or nothing."""
    return "" if value is None else number(value / unit)


def with_spread(line: Line, metric: str) -> str:
    """Mean and spread."""
    mean = line.mean(metric)
    if mean is None:
        return ""
    several = len(line.values(metric)) > 1
    return number(mean) + (f" ± {number(line.spread(metric))}" if several else "")


# ---- orders

AGREES, DISAGREES, ALIKE = "agrees", "**disagrees**", "can't be told apart"
WAITS = "not all seeds yet"
ORDERS = {AGREES: "agree", DISAGREES: "disagree", ALIKE: "alike"}  # how a row's column counts them


def verdict(claim: Claim, lines: Mapping[str, Line]) -> str:
    """Whether our rows stand in the order of a claim, as far as the seeds' spread tells."""
    better, worse = lines.get(claim.better), lines.get(claim.worse)
    aim = lines[claim.target].mean(claim.metric) if claim.target in lines else None
    if better is None or worse is None or (claim.target and aim is None):
        return NOT_RUN
    own, other = better.mean(claim.metric), worse.mean(claim.metric)
    if own is None or other is None:
        return NOT_RUN
    if not (better.whole and worse.whole):
        return WAITS

    def goodness(value: float) -> float:
        return -abs(value - aim) if aim is not None else value if claim.higher else -value

    ahead = goodness(own) - goodness(other)
    several = any(len(line.values(claim.metric)) > 1 for line in (better, worse))
    spread = better.spread(claim.metric) + worse.spread(claim.metric) if several else ONCE * max(abs(own), abs(other))
    if abs(ahead) <= spread:
        return ALIKE
    return AGREES if ahead > 0 else DISAGREES


def claims(lines: Mapping[str, Line]) -> str:
    """The orders that papers report, with theirs and ours."""
    text = [
        "## The papers' orders",
        "",
        f"{ALIKE[0].upper()}{ALIKE[1:]}: the difference is no larger than the spreads of the two rows' seeds together. "
        "A teacher's seeds are of its noise. Floors and searched Euler steps are measured once and have no spread: "
        f"two such rows are alike within {ONCE:.0%} (ours). "
        "The papers' numbers are of other models, clips and metrics.",
        "",
        "| before | after | source | theirs | our metric | ours | order |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for claim in CLAIMS:
        if claim.better not in lines or claim.worse not in lines:
            continue  # the larger table has fewer rows
        ours = [lines[claim.better], lines[claim.worse]]
        numbers = [with_spread(line, claim.metric) or NOT_RUN for line in ours]
        aim = f", nearer to {claim.target}" if claim.target else ", higher" if claim.higher else ", lower"
        words = [
            *(f"{line.row.title} (`{line.row.name}`)" for line in ours),
            claim.source,
            claim.theirs,
            title(claim.metric) + aim,
        ]
        found = verdict(claim, lines)
        found += f" ([why]({claim.page}))" if found == DISAGREES else ""
        text.append("| " + " | ".join([*words, " against ".join(numbers), found]) + " |")
    return "\n".join(text)


def grid_table(lines: Mapping[str, Line]) -> list[str]:
    """alpha_weak against guidance, and what was foreseen of it."""
    cells = [line for line in lines.values() if line.row.group == GRID]
    if not cells:
        return []
    of: Callable[[Line, str], float] = lambda line, key: float(line.row.settings[f"matching.{key}"])  # noqa: E731
    alphas = sorted({of(line, "alpha_weak") for line in cells})
    scales = sorted({of(line, "guidance_scale") for line in cells})
    at = {(of(line, "alpha_weak"), of(line, "guidance_scale")): line for line in cells}
    parts = [f"## {GRID}", ""]
    parts += [
        "Linearised (methods of W2SVD, our reading), the shift damps the matching by 1 - alpha_weak and leaves the "
        "guidance as it is: rows with the same (guidance - 1) / (1 - alpha_weak) should be alike. One seed, at the "
        "recipe's own rates."
    ]
    for metric in ("frechet_video", "saturation"):
        heads = " | ".join(f"guidance {scale:g}" for scale in scales)
        parts += ["", f"| {title(metric)} | {heads} |", "| --- |" + " ---: |" * len(scales)]
        for alpha in alphas:
            found = [with_spread(at[alpha, scale], metric) or NOT_RUN for scale in scales]
            parts.append(f"| alpha_weak {alpha:g} | " + " | ".join(found) + " |")
    return ["\n".join(parts)]


def why_not(lines: Mapping[str, Line]) -> str:
    """Why rows have not run, where it is known."""
    found = [(line.row, line.planned.why) for line in lines.values() if line.planned.why]
    if not found:
        return ""
    return "\n".join(["## Not run yet, and why", "", *[f"- {row.title} (`{row.name}`): {why}." for row, why in found]])
