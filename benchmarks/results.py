"""The results table: every paper's method on the portraits, with the same training FLOPs, on several seeds.

    python benchmarks/results.py
    python benchmarks/results.py --rows teacher euler_4 dmd2 w2s --minutes 60
    python benchmarks/results.py --size large --rows teacher dmd2 w2s
    python benchmarks/results.py --list

Each row and seed is a cell with a JSON of its own: a finished one is not run again, a stopped training goes on, and
what has not run says so. Writes `docs/results.md`, its plots, a page of its own for another `--budget`, and
`docs/results.json`, which holds all cells: what stands there is not run again, on another machine either. With
`--docs` and `--out` elsewhere everything is measured anew. Where a CUDA GPU is at hand the table is a larger one,
`docs/results_large.md`, with a teacher that is trained first. Settings go over every row's, those of
such teachers, too.
"""

from __future__ import annotations

import difflib
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from cells import Cell, adopt
from page import write_page
from plan import Costs, Options, Plan, adoptable, trainings
from record import give, take
from rows import Row
from sizes import SIZES
from work import INTERRUPTED, ROOT, Workers

from w2svd_core.errors import UserError, guarded
from w2svd_core.options import Parser, add_arguments, parse_arguments


def parser() -> Parser:
    """The command's arguments and every setting."""
    door = Parser(prog="python benchmarks/results.py", description=__doc__)
    own = Options()
    door.add_argument("--out", type=Path, default=Path("bench"), help="where cells and runs are; default bench")
    door.add_argument("--docs", type=Path, default=ROOT / "docs", help="where page, record and plots are; default docs")
    door.add_argument("--size", choices=SIZES, help="default: large with a CUDA GPU, small without one")
    door.add_argument("--rows", nargs="+", metavar="NAME", help="rows to run; default all of them (see --list)")
    door.add_argument("--list", action="store_true", help="list the rows and end")
    door.add_argument("--seeds", type=int, nargs="+", default=list(own.seeds), help="of the trainings; default 0 1 2")
    door.add_argument("--clips", type=int, default=own.clips, help="clips of a cell; default 512")
    door.add_argument("--jobs", type=int, default=2, help="processes at a time, a core each; default 2")
    door.add_argument("--minutes", type=float, help="begin no cell after so many minutes")
    door.add_argument("--budget", type=float, default=own.budget, help="FLOPs of a training; 1 = portraits_long's own")
    door.add_argument("--sweep", type=float, nargs="*", default=list(own.sweep), help="factors on the rates; none = 1")
    door.add_argument("--sweep-clips", type=int, default=own.sweep_clips, help="clips of a sweep cell; default 128")
    door.add_argument("--sweep-budget", type=float, default=own.sweep_budget, help="share of the budget; default 1")
    door.add_argument("--winner", default="", metavar="NAME", help="row to take as the winner; default: by validation")
    door.add_argument(
        "--adopt", type=Path, nargs="+", default=[], metavar="FOLDER", help="take equal runs of this version from here"
    )
    add_arguments(door)
    return door


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is left, and write the page."""
    args, settings = parse_arguments(parser(), argv)
    name = args.size or ("large" if torch.cuda.is_available() else "small")
    size, out = SIZES[name], args.out / name
    if args.list:
        print("\n".join(f"{row.name:18} {row.group}: {row.title}" for row in size.rows))
        return 0
    wanted = chosen(size.rows, args.rows)
    chosen(
        [row for row in size.rows if row.kind == "student" and not row.winner], [args.winner] if args.winner else None
    )
    options = Options(
        seeds=tuple(args.seeds), clips=args.clips, budget=args.budget, sweep=tuple(args.sweep),
        sweep_clips=args.sweep_clips, sweep_budget=args.sweep_budget, winner=args.winner,
        settings={**size.settings, **settings},
    )  # fmt: skip
    costs = Costs(out / "flops.json")
    record = args.docs / f"{size.page}.json"
    if count := take(record, out, costs):
        print(f"{count} cells are known from {record}")
    plan = Plan(size.rows, options, out, costs)
    if args.adopt:
        candidates = trainings(adoptable(plan, wanted))
        for line in [line for folder in args.adopt for line in adopt(folder, candidates, out)]:
            print(f"adopted: {line}")
    until = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    workers = Workers(out, args.jobs, until)

    with stopped_by_ctrl_c(workers):
        workers.run(lambda: planned(plan, wanted))
    costs.counting = False  # what was not counted has no cell
    give(record, out, costs)
    left = sum(cell.read(out) is None for cell in planned(plan, wanted))
    page = args.docs / f"{size.page}{'' if options.budget == 1 else f'_x{options.budget:g}'}.md"
    write_page(plan, page, size.about, command(argv, name))
    print(f"wrote {page}" + (f"; at least {left} cells have not run" if left else ""))
    for key, log in workers.failed.items():
        print(f"failed: {key}, see {log}", file=sys.stderr)
    return INTERRUPTED if workers.stopping else 1 if workers.failed else 0


def chosen(rows: Iterable[Row], names: Sequence[str] | None) -> list[Row]:
    """Rows by name; all without names.

    Raises:
        UserError: there is none of that name, or it has no line of its own.
    """
    known = {row.name: row for row in rows}
    for name in names or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            sizes = [size for size, one in SIZES.items() if name in {row.name for row in one.rows}]
            hint = f"did you mean {near[0]}" if near else f"--size {sizes[0]} may have it" if sizes else "see --list"
            raise UserError(f"There is no row {name} here; {hint}.")
        on = [row.name for row in known.values() if name in (row.teacher, row.image) and row.kind == "student"]
        if known[name].kind == "model":
            raise UserError(f"{name} has no line of its own; name a row that is built on it, such as {on[0]}.")
    return list(known.values()) if names is None else [known[name] for name in names]


def planned(plan: Plan, rows: Iterable[Row]) -> list[Cell]:
    """The cells of some rows, each once: what is not trained, then row by row as they were named."""
    cells = {cell.key: cell for row in rows for cell in plan.of(row).cells}
    return sorted(cells.values(), key=lambda cell: cell.kind == "student")


@contextmanager
def stopped_by_ctrl_c(workers: Workers) -> Iterator[None]:
    """Ctrl-C, a plain kill, or a terminal that closes lets trainings save and end; a second one ends them at once."""
    asked = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
    before = [signal.signal(number, lambda _number, _frame: workers.stop()) for number in asked]
    try:
        yield
    finally:
        for number, handler in zip(asked, before, strict=True):
            signal.signal(number, handler)


def command(argv: Sequence[str] | None, size: str) -> str:
    """What was called, without places of this machine, and with the size that it took by itself."""
    words = list(sys.argv[1:] if argv is None else argv)
    hidden = ("--out", "--docs", "--adopt", "--data.cache", "--size", "--minutes", "--jobs")
    kept: list[str] = []
    skipping = False
    for word in words:
        skipping = word in hidden if word.startswith("--") else skipping
        kept += [] if skipping or word.partition("=")[0] in hidden else [word]
    return " ".join(["python benchmarks/results.py", "--size", size, *kept])


if __name__ == "__main__":
    raise SystemExit(guarded(main))
