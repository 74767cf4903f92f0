"""`python -m w2svd_core.evaluate RUN [RUN ...]`: one table for several runs, all measured alike."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from .config import Parser, add_arguments, load_recipe, parse_arguments
from .errors import UserError, guarded
from .guard_settings import USUAL_TABLE
from .options import show, value_of
from .settings import Recipe

if TYPE_CHECKING:
    from .data.encoder_source import EncoderSource
    from .evaluation import HeldOut, Row
    from .generation import Way
    from .loading import Loaded
    from .watch import Terminal

LEAST_TABLE = 50  # clips of a row; a large model takes hours for them
SEARCHED_SHIFTS = (2.0, 3.0, 5.0)
SEARCHED_GUIDANCE = (1.5, 2.5, 3.5)
FURTHER_GUIDANCE = (5.0, 7.0, 10.0)  # one after the other, while the best lies at the edge
ALIKE = ("method", "data.folder", "data.frames", "data.height", "data.width", "data.fps", "evaluate.seed")


def parser() -> Parser:
    """The door's arguments and every setting."""
    door = Parser(
        prog="python -m w2svd_core.evaluate",
        description="One table for several runs: data and codec once, each teacher once, the student of each "
        "run; the same captions, seeds and number of clips for all. With clips of your own the captions are theirs, "
        "and there is no Fréchet distance. Settings given here go over every run's.",
    )
    door.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    clips = f"clips for each row of a model, as --evaluate.clips; default {USUAL_TABLE}, of own clips {LEAST_TABLE}"
    door.add_argument("--clips", help=clips)
    out = "table to write, with a .json beside it; default table.md"
    door.add_argument("--out", type=Path, default=Path("table.md"), help=out)
    search = "the few-step Euler row takes its best of three shifts (2, 3, 5) and guidances (1.5, 2.5, 3.5; "
    search += "more while the best is the last)"
    door.add_argument("--euler-search", action="store_true", help=search)
    vbench = "also make five clips of each prompt with every run's student, laid out for VBench in FOLDER/<run>"
    door.add_argument("--vbench", type=Path, metavar="FOLDER", help=f"{vbench}; --clips 0 makes no table then")
    prompts = "a file of prompts for VBench, one in each line; default: the captions of the data"
    door.add_argument("--prompts", type=Path, metavar="FILE", help=prompts)
    images = "folder of the first frames of --prompts, named by their prompts, for a model that starts from one"
    door.add_argument("--images", type=Path, metavar="FOLDER", help=images)
    add_arguments(door)
    return door


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door."""
    args, given = parse_arguments(parser(), argv)
    if args.out.suffix != ".md":
        raise UserError(f"--out {args.out} must end in .md; the numbers go to a .json beside it")
    asked = {} if args.clips is None else {"evaluate.clips": args.clips}
    recipes = recipes_of(args.runs, {"evaluate.clips": str(usual_clips(args.runs[0], given)), **given, **asked})
    first = next(iter(recipes.values()))
    if args.euler_search and first.data.folder != "portraits":
        raise UserError(
            f"--euler-search needs the Fréchet distance, which clips of your own ({first.data.folder}) do not have; "
            "leave it out"
        )
    if args.vbench:
        clips_for_vbench(args.vbench, recipes, args.prompts, args.images)
        if not first.evaluate.clips:
            return 0
    from .files import write_text
    from .tables import about_clips, markdown_table, plain

    table = measure_runs(recipes, args.euler_search)
    settings = first.evaluate
    numbers = {
        "clips": settings.clips,
        "data": {"folder": first.data.folder, "clips": table.floors[0].clips},
        "seed": settings.seed,
        "runs": [str(path) for path in recipes],
        "rows": [plain(row) for row in table.rows],
        "euler_search": table.searched,
    }
    text = markdown_table(table.rows)
    about = about_clips(table.rows, first.data.folder)
    beside = args.out.with_suffix(".json")
    try:
        write_text(args.out, f"{text}\n\n{about}\n")
        write_text(beside, json.dumps(numbers, indent=2) + "\n")
    finally:
        print(text)  # whatever the disk says: hours of sampling are in it
    print(f"\nwrote {args.out} and {beside}")
    return 0


def usual_clips(run: Path, settings: Mapping[str, str]) -> int:
    """How many clips a row of a table has where nobody says.

    Raises:
        UserError: it is no run.
    """
    from .run import RunFolder

    folder = load_recipe(RunFolder.open(run).path / "recipe.yaml", settings).data.folder
    return USUAL_TABLE if folder == "portraits" else LEAST_TABLE


def recipes_of(runs: Sequence[Path], settings: Mapping[str, str]) -> dict[Path, Recipe]:
    """The recipes of runs that fit into one table.

    Raises:
        UserError: not a run, a run twice, or runs of another method, folder, geometry or evaluation seed.
    """
    from .run import RunFolder

    found: dict[Path, Recipe] = {}
    for path in runs:
        if path in found:
            raise UserError(f"{path} is named twice; name each run once")
        recipe = load_recipe(RunFolder.open(path).path / "recipe.yaml", settings)
        for key in ALIKE:
            own, first = value_of(recipe, key), value_of(found.get(runs[0], recipe), key)
            if own != first:
                raise UserError(f"{path} has {key} {show(own)}, {runs[0]} has {show(first)}; one table can't hold both")
        found[path] = recipe
    return found


def clips_for_vbench(folder: Path, recipes: Mapping[Path, Recipe], prompts: Path | None, images: Path | None) -> None:
    """Make the clips of every run, and print how they are scored.

    Raises:
        UserError: the prompts, a run or the folder does not serve.
    """
    from .data.clips import read_prompts
    from .loading import load_run
    from .memory import free_memory
    from .vbench_clips import subjects, write_vbench
    from .watch import Terminal

    source = one_source(recipes)
    wanted = subjects(
        next(iter(recipes.values())), source, read_prompts(prompts, "--prompts") if prompts else (), images, Terminal()
    )
    for path, recipe in recipes.items():
        loaded = load_run(recipe, source, path)
        print(write_vbench(folder / path.name, recipe, loaded, wanted, Terminal()))
        del loaded
        free_memory()


@dataclass
class Table:
    """The rows so far, and what the searches for the best Euler row saw."""

    floors: list[Row] = field(default_factory=list)
    teachers: list[Row] = field(default_factory=list)
    students: list[Row] = field(default_factory=list)
    searched: list[dict[str, float | str]] = field(default_factory=list)
    seen: set[tuple[str, float | None, Way]] = field(default_factory=set)  # base, told guidance and way of each teacher

    @property
    def rows(self) -> list[Row]:
        """In the order that people read."""
        return [*self.floors, *self.teachers, *self.students]


@dataclass(frozen=True)
class Bench:
    """What every row of a table is measured with."""

    test: HeldOut
    bars: Terminal
    euler_search: bool

    def row(self, name: str, loaded: Loaded, way: Way, recipe: Recipe) -> Row:
        """A row of a model."""
        from .evaluation import model_row

        return model_row(name, loaded.model, way, recipe, self.test, self.bars)


def measure_runs(recipes: Mapping[Path, Recipe], euler_search: bool) -> Table:
    """Measure every run; a teacher that several runs share is measured once."""
    from .evaluation import codec_row, data_row, held_out
    from .loading import load_run
    from .memory import free_memory
    from .watch import Terminal

    first = next(iter(recipes.values()))
    source = one_source(recipes)
    for path, recipe in recipes.items():
        load_run(recipe, source, path)  # a broken run is told before hours of sampling
        free_memory()
    bench = Bench(held_out(first, source, Terminal()), Terminal(), euler_search)
    table = Table()
    with tempfile.TemporaryDirectory() as folder:
        table.floors = [data_row(bench.test), codec_row(first, bench.test, Path(folder))]
    for path, recipe in recipes.items():
        add_run(table, bench, recipe, path, load_run(recipe, source, path))
        free_memory()
    return table


def one_source(recipes: Mapping[Path, Recipe]) -> EncoderSource:
    """The encoders that all runs share.

    Raises:
        UserError: they differ, in what their models are shown of a first frame, say.
    """
    from .assembly import encoder_source
    from .loading import device
    from .stages import with_trained_teacher

    sources = {p: encoder_source(with_trained_teacher(recipe, p).model, device()) for p, recipe in recipes.items()}
    (one, source), *others = sources.items()
    for path, other in others:
        if other.fingerprints() != source.fingerprints():
            raise UserError(
                f"{path} and {one} have other encoders, or only one of them is given first frames; "
                "measure them in tables of their own"
            )
    return source


def add_run(table: Table, bench: Bench, recipe: Recipe, path: Path, loaded: Loaded) -> None:
    """Measure the rows of a run that the table does not have yet."""
    from .evaluation import few_step_way
    from .job import ways_of

    for name, way in ways_of(recipe):
        if way.role == "generator":
            table.students.append(bench.row(f"{path.name}: {name}", loaded, way, recipe))
        elif (teacher := (loaded.base, loaded.model.embedded_guidance("teacher"), way)) not in table.seen:
            table.seen.add(teacher)
            same_name = any(row.name == name or row.name.startswith(f"{name} (") for row in table.teachers)
            label = f"{path.name}: {name}" if same_name else name
            if bench.euler_search and way == few_step_way(recipe):
                row = best_euler(label, bench, loaded, way, recipe, table.searched)
            else:
                row = bench.row(label, loaded, way, recipe)
            table.teachers.append(row)


def best_euler(
    name: str, bench: Bench, loaded: Loaded, way: Way, recipe: Recipe, searched: list[dict[str, float | str]]
) -> Row:
    """The few-step Euler row with the lowest video Fréchet distance of all; each is noted in `searched`."""
    from .flow import sigma_list

    rows: dict[tuple[float, float], Row] = {}  # by shift and guidance

    def draw(shift: float, scale: float) -> None:
        one = replace(way, sigmas=sigma_list(way.steps, shift), guidance_scale=scale)
        rows[shift, scale] = bench.row(name, loaded, one, recipe)
        distance = rows[shift, scale].values["frechet_video"]
        searched.append({"row": name, "shift": shift, "guidance": scale, "frechet_video": distance})

    def best() -> tuple[float, float]:
        return min(rows, key=lambda place: rows[place].values["frechet_video"])

    for place in product(SEARCHED_SHIFTS, SEARCHED_GUIDANCE):
        draw(*place)
    for scale in FURTHER_GUIDANCE:
        shift, last = best()
        if last < max(tried for _, tried in rows):
            break
        draw(shift, scale)
    shift, scale = best()
    return replace(rows[shift, scale], name=f"{name} (best of {len(rows)}: shift {shift:g}, guidance {scale:g})")


if __name__ == "__main__":
    raise SystemExit(guarded(lambda: main(sys.argv[1:])))
