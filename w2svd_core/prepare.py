"""`python -m w2svd_core.prepare RECIPE`: encode the recipe's clips or prompts once, for every training on them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .config import Parser, add_arguments, load_recipe, parse_arguments, recipe_names
from .errors import guarded
from .settings import Recipe

if TYPE_CHECKING:
    from .data.encoder_source import EncoderSource


def parser() -> Parser:
    """The door's arguments and every setting."""
    door = Parser(
        prog="python -m w2svd_core.prepare",
        description="Encode a recipe's clips (data.folder), or prompts alone (data.prompts), by the model's own "
        "encoders into data.cache. The same command goes on where it was stopped, and encodes only what is new.",
    )
    door.add_argument(
        "recipe",
        nargs="?",
        help=f"a recipe's name ({', '.join(recipe_names())}) or a YAML file; default portraits",
    )
    add_arguments(door)
    return door


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door."""
    args, given = parse_arguments(parser(), argv)
    recipe = load_recipe(args.recipe or "portraits", given)
    from .assembly import encoder_source  # torch, and all that is heavy, only for arguments that hold
    from .loading import device

    return carry_out(recipe, encoder_source(recipe.model, device()))


def carry_out(recipe: Recipe, source: EncoderSource) -> int:
    """Prepare a recipe's data by some encoders, and say where to look; returns the exit code.

    Raises:
        UserError: the input, an encoder or the disk does not serve.
    """
    from .data.buckets import Plan
    from .data.prepare import Stopped, prepare
    from .data.prepare_report import write_report
    from .watch import Terminal

    try:
        prepared = prepare(recipe.data, source, Terminal())
    except Stopped:
        print("\nstopped, what was encoded is kept; go on with the same command", file=sys.stderr)
        return 130
    report = write_report(prepared, recipe.data, Plan.of(recipe.data, source.geometry))
    if not prepared.want.clips:
        print(f"{len(prepared.want.prompts)} prompts are ready. Look at {report}")
        return 0
    count, dropped = len(prepared.want.clips), len(prepared.dropped)
    print(f"{count - dropped} of {count} clips are ready, {dropped} were dropped. Look at {report}")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(lambda: main(sys.argv[1:])))
