"""`python -m w2svd_core.train [RECIPE]`: distil a teacher (or train a model), evaluate it, and say where to look."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

from .config import Parser, add_arguments, load_recipe, parse_arguments, recipe_names
from .errors import UserError, guarded


def parser() -> Parser:
    """The door's arguments and every setting."""
    door = Parser(
        prog="python -m w2svd_core.train",
        description="Distil a video diffusion model into a few steps: one frozen copy, two small adapters.",
    )
    door.add_argument(
        "recipe",
        nargs="?",
        help=f"a recipe's name ({', '.join(recipe_names())}) or a YAML file; default portraits",
    )
    door.add_argument("--out", type=named, help="run folder; default ./runs/<recipe>-<time>")
    door.add_argument("--resume", type=Path, metavar="RUN", help="go on with this run folder, bit for bit")
    door.add_argument(
        "--from", type=named, metavar="RUN", dest="start", help="start from this run's student and critic (= --start)"
    )
    add_arguments(door)
    return door


def named(text: str) -> Path:
    """A place on the command line, which an empty variable is not.

    Raises:
        ArgumentTypeError: it is empty.
    """
    if not text:
        raise ArgumentTypeError("it is empty; name a folder")
    return Path(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door."""
    args, given = parse_arguments(parser(), argv)
    if args.start is not None and "start" in given:
        raise UserError("--from and --start are the same setting; give one of them")
    if args.start is not None:
        given = {**given, "start": str(args.start)}
    if args.resume is None:
        recipe = load_recipe(args.recipe or "portraits", given)
    elif given or args.out is not None or args.recipe is not None:
        raise UserError("--resume takes everything from the run's own recipe.yaml; leave out other arguments")
    from .job import carry_out  # torch, and all that is heavy, only for arguments that hold
    from .run import RunFolder, place_for

    if args.resume is not None:
        recipe = RunFolder.open(args.resume).recipe()
    folder = args.resume or place_for(recipe, args.out)
    try:
        return carry_out(recipe, folder)
    except KeyboardInterrupt:  # beside the rounds, which tell it themselves
        if RunFolder.is_one(folder):
            print(f"\nstopped, and what was trained is saved; go on with --resume {folder}")
        raise


if __name__ == "__main__":
    raise SystemExit(guarded(lambda: main(sys.argv[1:])))
