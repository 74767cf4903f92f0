"""Which cells a table needs: equal FLOPs, a small sweep of rates on validation portraits, then the seeds of the test.

What a row needs depends on what has been measured: the rates of its test cells on its sweep, a winner on all sweeps.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from budget import Cost, cost_of, untrained_file
from cells import Cell, Subject, assets_version, has_diverged, unusual_settings, with_files
from rows import STUDENTS, Row

from w2svd_core.config import load_recipe, recipe_names
from w2svd_core.errors import UserError
from w2svd_core.files import write_text
from w2svd_core.flow import sigma_list
from w2svd_core.hashing import value_hash
from w2svd_core.options import all_settings, show, value_of
from w2svd_core.settings import Recipe

VALIDATION, TEST = 1_100_000, 1_000_000  # first held-out portraits; no training sees either
METRIC = "frechet_video"  # what rates and the winner are chosen by
BEYOND = 4  # factors that a sweep tries beyond its edges, as long as the best one lies there
WINNER_SHIFT = 2.0  # of the sigmas of a winner in another number of steps: the portraits' own


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        seeds: of the trainings, and of a teacher's noise.
        clips: of a test cell.
        budget: FLOPs of each training, in units of the row's `unit`.
        sweep: factors on the rates, with which a sweep begins (`Plan.factors`); empty = 1 for all.
        sweep_clips, sweep_budget: of a sweep cell; the latter a share of the budget. A whole one by default: half of it
            likes rates that are too high for the whole, and with it the first seed of the best is trained already.
        winner: the row that is taken as the winner; "" = the best on validation.
        settings: that go over every row's.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    clips: int = 512
    budget: float = 1.0
    sweep: tuple[float, ...] = (0.5, 1.0, 2.0)
    sweep_clips: int = 128
    sweep_budget: float = 1.0
    winner: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)


class NotYet(Exception):
    """Why a row has no cells: a recipe that is not there, or results that have to come first."""


class Diverged(NotYet):
    """No rates that were tried train a row."""


class Costs:
    """FLOPs of recipes, counted once and kept in a file.

    Attributes:
        counting: whether a recipe that is not known yet may be counted.
        known: FLOPs before the first update and of each, by recipe.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counting = True
        self.known: dict[str, list[float]] = json.loads(path.read_text()) if path.is_file() else {}

    def learn(self, known: Mapping[str, list[float]]) -> None:
        """Take what was counted elsewhere."""
        self.known = {**known, **self.known}

    def of(self, recipe: Recipe, models: Mapping[str, Recipe] | None = None) -> Cost:
        """The cost of a recipe at any number of updates.

        Args:
            models: by setting, those of others that it is built on; they need not be trained.

        Raises:
            NotYet: it is not known, and nothing may be counted.
        """
        rates = ("seed", "train.steps", "matching.alpha_weak", "data.clips")
        own = {k: v for k, v in unusual_settings(recipe).items() if not k.endswith(".lr") and k not in rates}
        built_on = {setting: unusual_settings(model) for setting, model in (models or {}).items()}
        key = value_hash([own, recipe.matching.alpha_weak == 0, assets_version(), *([built_on] if built_on else [])])
        if key not in self.known:
            if not self.counting:
                raise NotYet("nobody asked for it yet")
            found = cost_of(with_files(recipe, self.untrained(models or {})))
            self.known[key] = [found.head_start, found.update]
            write_text(self.path, json.dumps(self.known, indent=1) + "\n")
        return Cost(*self.known[key])

    def untrained(self, models: Mapping[str, Recipe]) -> dict[str, Path]:
        """Files of models of the same shape, by setting."""
        folder = self.path.parent / "untrained"
        return {setting: untrained_file(model, folder) for setting, model in models.items()}


@dataclass
class Planned:
    """The cells of a row so far.

    Attributes:
        cells: all of them, in the order in which they are to run.
        test: those of the table.
        factor: on the rates of the test cells; None before it is chosen, and for a row that is not trained.
        why: why there are no test cells.
    """

    cells: list[Cell] = field(default_factory=list)
    test: list[Cell] = field(default_factory=list)
    factor: float | None = None
    why: str = ""


class Plan:
    """From rows to cells.

    Args:
        rows: all that may be named, by others too.
        options: of the command line.
        out: where results are.
        costs: of recipes.
    """

    def __init__(self, rows: Iterable[Row], options: Options, out: Path, costs: Costs) -> None:
        self.rows = {row.name: row for row in rows}
        self.options, self.out, self.costs = options, out, costs
        self._resolved: dict[tuple[str, str, int, float], Recipe] = {}
        self._distances: dict[tuple[str, float], float] = {}

    def of(self, row: Row) -> Planned:
        """The cells of a row, as far as results decide them."""
        found = Planned()
        try:
            for other in self.before(row):
                found.cells += self.sweep_cells(other)
            if row.winner:
                row = self.in_steps(self.winner(), row)
            if row.kind == "model":
                raise NotYet("it is the teacher of other rows and has no line of its own")
            if row.kind != "student":
                seeds = self.options.seeds[: row.seeds] if row.kind == "teacher" else self.options.seeds[:1]
                found.cells = found.test = [self.test_cell(row, seed, 1.0) for seed in seeds]
                return found
            if self.sweeps(row):
                found.cells += self.sweep_cells(row)
            found.factor = self.factor(row)
            seeds = self.options.seeds[: row.seeds]
            found.test = [self.test_cell(row, seed, found.factor) for seed in seeds]
            found.cells += found.test
        except NotYet as reason:
            found.why = str(reason)
        return found

    def before(self, row: Row) -> list[Row]:
        """The rows whose sweeps decide something of this one."""
        if row.winner and self.options.winner:
            own = self.rows[self.options.winner]
            return [*self.before(own), *([own] if self.sweeps(own) else [])]
        if row.winner:
            return [one for one in self.rows.values() if self.may_win(one)]
        named = [self.rows[name] for name in (row.start, row.rates) if name]
        return [one for other in named for one in (*self.before(other), other) if self.sweeps(one)]

    # ---- rates

    def sweep_cells(self, row: Row) -> list[Cell]:
        """One for each factor: the first seed, validation portraits."""
        return [self.sweep_cell(row, factor) for factor in self.factors(row)]

    def sweep_cell(self, row: Row, factor: float) -> Cell:
        """One of them."""
        o = self.options
        return self.cell(row, o.seeds[0], factor, o.sweep_budget, o.sweep_clips, VALIDATION)

    def factors(self, row: Row) -> list[float]:
        """Those of the sweep; while the best of several lies at an edge, half or twice as much, too.

        Raises:
            NotYet: the sweep that they are shares of is not done.
        """
        if row.tried:
            return sorted(share * self.factor(self.rows[row.rates]) for share in row.tried)
        found = sorted(self.options.sweep)
        for _ in range(BEYOND if len(found) > 1 else 0):
            distances = [self.distance(row, factor) for factor in found]
            if None in distances:
                break
            best = distances.index(min(one for one in distances if one is not None))
            if 0 < best < len(found) - 1:
                break
            found = sorted([*found, found[0] / 2 if best == 0 else found[-1] * 2])
        return found

    def distance(self, row: Row, factor: float) -> float | None:
        """Of a factor's clips on validation; infinity where the training diverged, None where it is not measured."""
        if (row.name, factor) not in self._distances:  # planning asks for it thousands of times
            cell = self.sweep_cell(row, factor)
            result = cell.read(self.out)
            if result is not None:
                self._distances[row.name, factor] = float(result["values"][METRIC])
            elif any(has_diverged(subject, self.out) for subject in cell.trainings()):
                self._distances[row.name, factor] = math.inf
        return self._distances.get((row.name, factor))

    def factor(self, row: Row) -> float:
        """The best one on validation.

        Raises:
            NotYet: the sweep is not done.
        """
        if not row.swept or not self.options.sweep:
            return 1.0
        if row.winner:
            return self.factor(self.winner())
        if row.rates and not row.tried:
            return self.factor(self.rows[row.rates])
        return min(self.swept(row).items(), key=lambda pair: pair[1])[0]

    def swept(self, row: Row) -> dict[float, float]:
        """The validation distance of each factor; infinity where the training diverged.

        Raises:
            NotYet: one is missing.
        """
        found = {}
        for factor in self.factors(row):
            distance = self.distance(row, factor)
            if distance is None:
                raise NotYet(f"the sweep of the rates of {row.name} is not done")
            found[factor] = distance
        if min(found.values()) == math.inf:
            raise Diverged(f"{row.name} diverged with every factor on its rates")
        return found

    # ---- the winner

    def winner(self) -> Row:
        """The trained row from text that is best on validation, of those that have a sweep of their own.

        Raises:
            NotYet: not every sweep is done.
        """
        if self.options.winner:
            return self.rows[self.options.winner]
        if not self.options.sweep:
            raise NotYet("without a sweep no row can be the winner; name it by --winner")
        best: dict[str, float] = {}
        for row in self.rows.values():
            with contextlib.suppress(Diverged):
                best |= {row.name: min(self.swept(row).values())} if self.may_win(row) else {}
        if not best:
            raise NotYet("every row diverged")
        return self.rows[min(best, key=best.__getitem__)]

    def may_win(self, row: Row) -> bool:
        """Whether a row takes part."""
        return self.sweeps(row) and row.group == STUDENTS and row.recipe in recipe_names()

    def sweeps(self, row: Row) -> bool:
        """Whether a row has a sweep of its own."""
        return row.kind == "student" and row.swept and not row.winner and bool(row.tried or not row.rates)

    def in_steps(self, source: Row, row: Row) -> Row:
        """A row in another number of steps; in its own it is the very same cell."""
        own = len(self.resolved(source, 0).student.sigmas) - 1
        few = {"student.sigmas": ",".join(f"{s:.7g}" for s in sigma_list(row.winner, WINNER_SHIFT))}
        settings = {**source.settings, **({} if row.winner == own else few)}
        return replace(source, name=row.name, settings=settings, winner=row.winner)

    # ---- recipes

    def resolved(self, row: Row, seed: int, factor: float = 1.0) -> Recipe:
        """The recipe of a row before its number of updates is known.

        Raises:
            NotYet: its recipe, or a setting that it names, is not there.
        """
        if row.recipe not in recipe_names():
            raise NotYet(f"there is no recipe {row.recipe} yet")
        settings = {**row.settings, **self.options.settings, "seed": str(seed)}
        known = (row.recipe, json.dumps(settings, sort_keys=True), seed, factor)
        if known not in self._resolved:
            try:
                recipe = load_recipe(row.recipe, settings)
                rates = {} if factor == 1 else scaled_rates(recipe, factor)
                self._resolved[known] = load_recipe(row.recipe, {**settings, **rates}) if rates else recipe
            except UserError as error:
                raise NotYet(str(error).rstrip(".")) from error
        return self._resolved[known]

    def subject(self, row: Row, seed: int, factor: float, share: float) -> tuple[Subject, float]:
        """What a row trains with a share of the budget, and the FLOPs of it with what it starts from."""
        recipe, needs, before = self.resolved(row, seed, factor), dict[str, Subject](), 0.0
        for setting, other in self.models(row).items():
            needs[setting] = Subject(self.resolved(other, 0), other.recipe)
        if row.kind != "student":
            return Subject(recipe, row.recipe, needs), 0.0
        if row.start:
            start = self.rows[row.start]
            sigmas = {key: value for key, value in row.settings.items() if key == "student.sigmas"}
            start = replace(start, settings={**start.settings, **sigmas})
            factor = self.factor(self.rows[row.start])  # of its sweep, in the steps that it was swept in
            rest = 1 - row.share if row.start_share is None else row.start_share
            source, before = self.subject(start, seed, factor, share * rest)
            needs["start"] = source
        cost = self.cost(recipe, row)
        try:
            steps = cost.steps(share * row.share * self.budget(row.unit))
        except UserError as error:
            raise NotYet(str(error)) from error
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": steps})})
        return Subject(recipe, row.recipe, needs), before + cost.of(steps)

    def models(self, row: Row) -> dict[str, Row]:
        """The rows whose models a row is built on, by the setting that names them."""
        named = {"model.path": row.teacher, "frame_matching.model": row.image}
        return {setting: self.rows[name] for setting, name in named.items() if name}

    def cost(self, recipe: Recipe, row: Row) -> Cost:
        """Of a recipe of a row, whose models need not be trained yet."""
        return self.costs.of(recipe, {setting: self.resolved(other, 0) for setting, other in self.models(row).items()})

    def budget(self, unit: str) -> float:
        """FLOPs that each row of a unit may spend."""
        own = [row for row in self.rows.values() if row.recipe == unit and row.kind == "student"]
        row = own[0] if own else Row("", "", "", unit)
        recipe = self.resolved(replace(row, settings={"first": ""} if row.teacher else {}), 0)
        return self.options.budget * self.cost(recipe, row).of(recipe.train.steps)

    def cell(self, row: Row, seed: int, factor: float, share: float, clips: int, first: int) -> Cell:
        """A row with a seed, measured on so many held-out portraits from `first` on."""
        subject, cost = self.subject(row, seed, factor, share)
        return Cell(row.name, subject, row.kind, clips, first, cost)

    def test_cell(self, row: Row, seed: int, factor: float) -> Cell:
        """A cell of the table."""
        return self.cell(row, seed, factor, 1.0, self.options.clips, TEST)


def scaled_rates(recipe: Recipe, factor: float) -> dict[str, str]:
    """Every learning rate of a recipe times a factor."""
    keys = [key for key in all_settings() if key.endswith(".lr")]
    return {key: show(float(str(value_of(recipe, key))) * factor) for key in keys}


def adoptable(plan: Plan, rows: Iterable[Row]) -> list[Cell]:
    """The cells of some rows so far, and those of the table that would be if the recipes' own rates turn out best."""
    found = []
    for row in rows:
        found += plan.of(row).cells
        if row.kind == "student" and not row.winner:
            with contextlib.suppress(NotYet):
                found += [plan.test_cell(row, seed, 1.0) for seed in plan.options.seeds]
    return found


def trainings(cells: Iterable[Cell]) -> dict[str, Subject]:
    """All trainings of some cells, by key."""
    return {subject.key: subject for cell in cells for subject in cell.trainings()}
