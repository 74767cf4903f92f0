"""Plots of a run: what the metrics did over the steps, and how the rows of the table compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import UserError
from .evaluation import Row
from .files import atomic_write
from .looks import LOGGED, SHARE, Band
from .objectives import terms
from .tables import SHORT_UNITS, number, title

BLUE, ORANGE, GREEN, GREY = "#3566a8", "#c8641b", "#3d8a5f", "#8b929c"
COLOURS = (BLUE, ORANGE, GREEN, "#8a5aa8", "#a83f55", "#5b6b2f")
NO_BAND: Band = {}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "figure.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "grid.color": "#e6e8eb",
    "legend.frameon": False,
    "xtick.color": "#444a52",
    "ytick.color": "#444a52",
}


@dataclass(frozen=True)
class Panel:
    """One picture of a plot: what it shows, its unit, and the metrics."""

    title: str
    unit: str
    curves: tuple[str, ...]
    log: bool = False


PLOTS: dict[str, tuple[Panel, ...]] = {
    "losses": (
        Panel("Loss: student, all its terms", "latent units", ("student/loss",)),
        Panel("Loss: critic", "mean square (latent units)", ("critic/loss",)),
    ),
    "scores": (
        Panel("Direction: real against fake score", "cosine (1 = the same)", ("score/cosine",)),
        Panel("Gap between real and fake score", "relative to the real score's step", ("score/gap",)),
    ),
    "gradients": (
        Panel("Gradient norm: student", "norm before clipping", ("student/gradient_norm",), log=True),
        Panel("Gradient norm: critic", "norm before clipping", ("critic/gradient_norm",), log=True),
    ),
    "student": (
        Panel("Motion of the student's clips", "latent change per latent frame", ("student/motion",)),
        Panel("Spread of the student's clips", "standard deviation (latent units)", ("student/std",)),
        Panel("Diversity of the student's clips", "distance apart (1 = data)", ("student/diversity",)),
    ),
    "terms": (),  # what a run's terms log, see `_of_terms`
    "guard": (
        *(
            Panel(f"{name.capitalize()} in validation", "1 = the teacher's", (f"{LOGGED}{name}{SHARE}",))
            for name in ("motion", "saturation", "diversity")
        ),
        Panel("Score of the looks", "lower is better", (f"{LOGGED}score",)),
    ),
}
BARS = ("frechet_video", "motion", "diversity", "saturation", "flicker")
BAR_UNITS = SHORT_UNITS | {"frechet_video": "lower is better", "diversity": "1 = unrelated data clips"}


def write_plots(
    folder: Path, metrics: Sequence[Mapping[str, float]], rows: Sequence[Row], limits: Band = NO_BAND
) -> list[Path]:
    """Write every plot that there are numbers for, as PNG, and return the files.

    Args:
        folder: where they go.
        metrics: rows of metrics.jsonl.
        rows: of the evaluation; may be empty.
        limits: where the guard's shares should lie, by metric; drawn as dashed lines.
    """
    from matplotlib import rc_context

    with rc_context(STYLE):
        paths = []
        for name, panels in PLOTS.items():
            panels = panels or _of_terms(metrics)
            there = [panel for panel in panels if any(_curve(metrics, key)[0].size for key in panel.curves)]
            if there:
                paths.append(save_figure(_curves(there, metrics, limits=limits), folder / f"{name}.png"))
        if rows:
            paths.append(save_figure(_bars(rows), folder / "evaluation.png"))
    return paths


def draw_curves(curves: Mapping[str, Sequence[float]], columns: int = 3) -> NDArray[np.uint8]:
    """Each curve in a panel of its own, as a picture (h, w, 3).

    Args:
        curves: values by name, one for each round; a name out of metrics.jsonl has its title and unit. Values that are
            not finite are left out.
        columns: panels beside each other.

    Raises:
        UserError: no curve has a finite value.
    """
    from matplotlib import rc_context

    metrics: list[Mapping[str, float]] = [
        {"step": float(step), name: value} for name, values in curves.items() for step, value in enumerate(values, 1)
    ]
    known = {key: panel for panels in PLOTS.values() for panel in panels for key in panel.curves}
    panels = [known.get(name, Panel(_head(name), "", (name,))) for name in curves if _curve(metrics, name)[0].size]
    if not panels:
        raise UserError("There is nothing to plot: no curve holds a finite number; connect the losses of a training")
    with rc_context(STYLE):
        figure = _curves(panels, metrics, columns)
        figure.canvas.draw()
        return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def _of_terms(metrics: Sequence[Mapping[str, float]]) -> tuple[Panel, ...]:
    """A panel for each number that a paper's own part logs, but for those that every learner has."""
    names = dict.fromkeys(key for row in metrics for key in row if key.partition("/")[0] in terms())
    own = [key for key in names if not key.endswith(("/gradient_norm", "/skipped"))]
    return tuple(Panel(key.replace("_", " ").replace("/", ": "), "", (key,)) for key in own)


def save_figure(figure: Any, path: Path) -> Path:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path


def new_figure(columns: int, width: float, height: float, rows: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _curve(metrics: Sequence[Mapping[str, float]], key: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Steps and finite values of a metric."""
    found = [(row["step"], row[key]) for row in metrics if key in row and np.isfinite(row[key])]
    pairs = np.array(found, dtype=float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def smooth(values: NDArray[Any], window: int) -> NDArray[Any]:
    """A mean over the last `window` values, fewer at the start."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def _curves(
    panels: Sequence[Panel], metrics: Sequence[Mapping[str, float]], most_columns: int = 4, limits: Band = NO_BAND
) -> Any:
    columns = min(len(panels), most_columns)
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(columns, 4.8 * columns, 3.2 * rows, rows)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for number_of, (axis, panel) in enumerate(zip(axes, panels, strict=False)):
        for key in panel.curves:
            steps, values = _curve(metrics, key)
            if not steps.size:
                continue
            for limit in limits.get(key.removeprefix(LOGGED).removesuffix(SHARE), ()) if key.startswith(LOGGED) else ():
                if np.isfinite(limit):
                    axis.axhline(limit, color=GREY, linestyle="--", linewidth=1)
            colour = COLOURS[number_of % len(COLOURS)]
            window = max(1, len(steps) // 20)
            look = {"alpha": 0.35} if window > 1 else {"marker": "o", "markersize": 4}
            axis.plot(steps, values, color=colour, linewidth=1.2, **look)
            if window > 1:
                axis.plot(steps, smooth(values, window), color=colour, linewidth=2, label=f"mean of {window}")
                axis.legend(loc="best", fontsize=8)
            if panel.log and (values > 0).all():
                axis.set_yscale("log")
        axis.set(title=panel.title, xlabel="round", ylabel=panel.unit)
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _head(metric: str) -> str:
    name = title(metric)
    return name[:1].upper() + name[1:]


def _bars(rows: Sequence[Row]) -> Any:
    """The main numbers of each row as bars; a dashed line where data are."""
    shown = [metric for metric in BARS if any(metric in row.values for row in rows)]
    figure, axes = new_figure(len(shown), 2.4 + 2.2 * len(shown), 1.1 + 0.42 * len(rows))
    names = [row.name for row in rows]
    for place, (axis, metric) in enumerate(zip(axes, shown, strict=True)):
        values = [row.values.get(metric, np.nan) for row in rows]
        colours = [GREY if row.steps is None else BLUE if row is not rows[-1] else ORANGE for row in rows]
        bars = axis.barh(range(len(rows)), values, color=colours, height=0.62)
        if np.isfinite(values[0]):
            axis.axvline(values[0], color=GREY, linestyle="--", linewidth=1)
        texts = [number(value) if np.isfinite(value) else "" for value in values]
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}
        axis.bar_label(bars, texts, padding=4, fontsize=9, bbox=box)
        axis.set_yticks(range(len(rows)), names if place == 0 else [""] * len(rows))
        axis.tick_params(axis="y", length=0)
        axis.set(title=_head(metric), xlabel=BAR_UNITS.get(metric, ""), ylim=(len(rows) - 0.5, -0.5))
        axis.margins(x=0.25)
        axis.grid(visible=False, axis="y")
    return figure
