"""The plots of the results page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lines import Line
from plan import Plan
from rows import ALPHAS, BUDGETS, GRID, WINNER_STEPS, slug

from w2svd_core.plots import BLUE, COLOURS, GREY, ORANGE, STYLE, new_figure, save_figure
from w2svd_core.tables import number, title

Lines = Mapping[str, Line]


def write_pictures(folder: Path, lines: Lines, plan: Plan) -> list[tuple[Path, str]]:
    """Every plot that there are numbers for, with its words."""
    from matplotlib import rc_context

    drawn = {
        "alpha_weak": (alpha_curve, "Motion and distance over alpha_weak, with and without the ground-truth term"),
        "steps": (
            steps_curve,
            "Video Fréchet distance over the number of steps: the teacher's Euler, and a winner that ran",
        ),
        "flops": (
            flops_curve,
            "Video Fréchet distance over training FLOPs",
        ),
        "grid": (grid_map, "alpha_weak against guidance: distance, and saturation over the foreseen combination"),
    }
    found = []
    for name, (draw, words) in drawn.items():
        with rc_context(STYLE):
            figure = draw(lines, plan)
            if figure is not None:
                found.append((save_figure(figure, folder / f"{name}.png"), words))
    return found


def points(axis: Any, xs: Sequence[float], own: Sequence[Line], metric: str, **look: Any) -> bool:
    """Means with their spreads, where there are any; returns whether there are."""
    there = [(x, line) for x, line in zip(xs, own, strict=True) if line.results]
    if there:
        means = [line.mean(metric) for _, line in there]
        spreads = [line.spread(metric) for _, line in there]
        axis.errorbar([x for x, _ in there], means, yerr=spreads, marker="o", capsize=3, **look)
    return bool(there)


def alpha_curve(lines: Lines, plan: Plan) -> Any:
    """The paper's ablation."""
    metrics = ("frechet_video", "motion", "frechet_frame")
    names = {"": ("without ground truth", BLUE), "_gt": ("with ground truth", ORANGE)}
    if not all(f"w2s_{slug(a)}{end}" in lines for a in ALPHAS for end in names):
        return None
    if max(sum(bool(lines[f"w2s_{slug(a)}{end}"].results) for a in ALPHAS) for end in names) < 2:
        return None  # a point is no curve
    figure, axes = new_figure(3, 14.4, 3.4)
    any_at_all = False
    for axis, metric in zip(axes, metrics, strict=True):
        for end, (label, colour) in names.items():
            own = [lines[f"w2s_{slug(alpha)}{end}"] for alpha in ALPHAS]
            any_at_all |= points(axis, ALPHAS, own, metric, color=colour, label=label)
        axis.set(title=title(metric), xlabel="alpha_weak")
        if any_at_all:
            axis.legend(fontsize=8)
    return figure if any_at_all else None


def steps_curve(lines: Lines, plan: Plan) -> Any:
    """Quality against steps."""
    figure, (axis, *_) = new_figure(1, 6.4, 3.6)
    any_at_all = False
    for start, label, colour in (("winner_", "the winner, trained for each", BLUE), ("euler_", "teacher, Euler", GREY)):
        own = {int(name.removeprefix(start)): line for name, line in lines.items() if name.startswith(start)}
        any_at_all |= points(axis, list(own), list(own.values()), "frechet_video", color=colour, label=label)
    if not any_at_all:
        return None
    if "teacher" in lines and (mean := lines["teacher"].mean("frechet_video")) is not None:
        axis.axhline(mean, color=ORANGE, linestyle="--", linewidth=1, label="teacher, 28 steps")
    axis.set(title=title("frechet_video"), xlabel="steps", xticks=WINNER_STEPS, xlim=(0.5, max(WINNER_STEPS) + 0.5))
    axis.legend(fontsize=8)
    return figure


def flops_curve(lines: Lines, plan: Plan) -> Any:
    """Quality against training FLOPs, of the rows that are trained with several budgets."""
    found: dict[str, list[Line]] = {}
    for line in lines.values():
        whole = lines.get(line.row.rates)
        if line.row.group == BUDGETS and line.results and whole is not None:
            found.setdefault(whole.row.name, [whole] if whole.results else []).append(line)
    several = {name: sorted(own, key=_tflop) for name, own in found.items() if len(own) > 1}
    if not several:
        return None
    figure, (axis, *_) = new_figure(1, 6.4, 3.6)
    for index, (name, own) in enumerate(several.items()):
        look = {"color": COLOURS[index % len(COLOURS)], "label": lines[name].row.title}
        points(axis, [_tflop(line) for line in own], own, "frechet_video", **look)
    for name, words, style in (("teacher", "teacher, 28 steps", "--"), ("euler_4", "its best 4 Euler steps", ":")):
        if name in lines and (mean := lines[name].mean("frechet_video")) is not None:
            axis.axhline(mean, color=GREY, linestyle=style, linewidth=1, label=words)
    axis.set(title=title("frechet_video"), xlabel="training FLOPs (TFLOP)", xscale="log")
    ticks = sorted({float(f"{_tflop(line):.2g}") for own in several.values() for line in own})
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.legend(fontsize=7)
    return figure


def _tflop(line: Line) -> float:
    return float(line.results[0]["train_flops"]) / 1e12


def grid_map(lines: Lines, plan: Plan) -> Any:
    """The grid as a map, and saturation over (guidance - 1) / (1 - alpha_weak)."""
    import numpy as np

    cells = [line for line in lines.values() if line.row.group == GRID and line.results]
    if len(cells) < 2:
        return None  # a cell is no map
    found = {}
    for line in cells:
        alpha, scale = (float(line.row.settings[f"matching.{key}"]) for key in ("alpha_weak", "guidance_scale"))
        found[alpha, scale] = line
    alphas, scales = (sorted({pair[place] for pair in found}) for place in (0, 1))
    figure, (left, right) = new_figure(2, 10.5, 3.8)
    distance = np.full((len(alphas), len(scales)), np.nan)
    for (alpha, scale), line in found.items():
        distance[alphas.index(alpha), scales.index(scale)] = line.mean("frechet_video")
    dark = np.nanmean([np.nanmin(distance), np.nanmax(distance)])  # from here on
    left.imshow(distance, cmap="viridis_r", aspect="auto")
    for (row, column), value in np.ndenumerate(distance):
        if np.isfinite(value):
            left.text(column, row, number(value), ha="center", va="center", color="white" if value > dark else "black")
    left.set(title=title("frechet_video"), xlabel="guidance", ylabel="alpha_weak")
    left.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
    left.set_yticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    left.grid(visible=False)
    for index, alpha in enumerate(alphas):
        pairs = sorted((scale, line) for (a, scale), line in found.items() if a == alpha)
        xs = [(scale - 1) / (1 - alpha) for scale, _ in pairs]
        ys = [line.mean("saturation") for _, line in pairs]
        right.plot(xs, ys, marker="o", color=COLOURS[index], label=f"alpha_weak {alpha:g}")
    right.set(title="Saturation", xlabel="(guidance - 1) / (1 - alpha_weak)")
    right.legend(fontsize=8)
    return figure
