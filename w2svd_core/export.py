"""`python -m w2svd_core.export convert|merge|extract`: LoRAs and checkpoints as other programs want them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .config import Parser
from .errors import UserError, guarded

if TYPE_CHECKING:
    from .backbones.base import Backbone
    from .exporting import Base

MAX_RANK = 8192
FORMATS = ("native", "diffusers")
OTHER_FILES = (".bin", ".ckpt", ".gguf", ".pt", ".pth", ".sft")  # endings that a folder's name hardly has


def parser() -> Parser:
    """The door's three commands and their arguments."""
    door = Parser(
        prog="python -m w2svd_core.export",
        description="A LoRA in other keys or of another rank (convert), LoRAs merged into a checkpoint (merge), or a "
        "full-copy student as a LoRA (extract). Each ends with the largest difference of the model's output before "
        "and after, for a small random input. A model is calculated with in float32: 4 bytes for each of its weights.",
    )
    doors = door.add_subparsers(dest="command", required=True, metavar="convert|merge|extract")

    about = "a LoRA between native (ComfyUI) and diffusers keys, and of another rank"
    one = doors.add_parser("convert", help=about, description=about)
    one.add_argument("lora", type=Path, metavar="LORA", help="a .safetensors file, of ours or of others")
    one.add_argument("--rank", type=_rank, help="the nearest LoRA of this rank; default: as it is")
    _add_format(one)
    base = "base to compare the outputs on; default: the bundled teacher if the LoRA is for it, else only the updates"
    _add_common(one, base + " are compared", "a .safetensors file")

    about = "one or several LoRAs into a checkpoint"
    two = doors.add_parser("merge", help=about, description=about)
    strength = "a .safetensors file, or file@strength such as style.safetensors@0.8; several are added up"
    two.add_argument("loras", nargs="+", metavar="LORA", help=strength)
    names = ("fp32", "bf16", "fp16")
    two.add_argument("--precision", choices=names, default="fp32", help="of the written weights; default fp32")
    _add_any_base(two)
    out = "NAME.safetensors for one native file, any other name for a diffusers folder of the transformer"
    _add_common(two, "base: a model folder, a native file, or bundled (the portrait teacher)", out)

    about = "the LoRA that a full-copy student is, measured from its base"
    three = doors.add_parser("extract", help=about, description=about)
    three.add_argument("source", type=Path, metavar="RUN_OR_MODEL", help="a run folder, model folder or native file")
    three.add_argument("--rank", type=_rank, required=True, help="of the LoRA")
    _add_format(three)
    _add_any_base(three)
    _add_common(three, "base: a model folder, a native file, or bundled; default: the run's own", "a .safetensors file")
    return door


def _add_common(door: argparse.ArgumentParser, base: str, out: str) -> None:
    door.add_argument("--model", metavar="BASE", help=base)
    door.add_argument("--family", default="", help="of the model; default: the one whose layers a LoRA has, else wan")
    door.add_argument("--out", type=Path, required=True, help=f"{out}; it must not be there yet")


def _add_format(door: argparse.ArgumentParser) -> None:
    keys = "whose keys the file has: native (ComfyUI, Wan's own) or diffusers; default native"
    door.add_argument("--to", choices=FORMATS, default="native", help=keys)


def _add_any_base(door: argparse.ArgumentParser) -> None:
    door.add_argument("--any-base", action="store_true", help="also for what was trained on another base")


def _rank(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if not 1 <= value <= MAX_RANK:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 to {MAX_RANK}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door."""
    args = parser().parse_args(argv)
    check_out(args.out, file=args.command != "merge")
    for line in carry_out(args):
        print(line)
    print(f"wrote {args.out}")
    return 0


def check_out(out: Path, file: bool) -> None:
    """Whether an output can have this name, and nothing is in its place.

    Args:
        file: it must be a file, not a folder.

    Raises:
        UserError: it can't, or something is.
    """
    wrong = out.suffix != ".safetensors" if file else out.suffix.lower() in OTHER_FILES
    if wrong or not out.name:
        folder = "" if file else ", or be the name of a folder"
        raise UserError(f"--out {out} must end in .safetensors{folder}")
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} is there already; name another --out, or remove it first")


def carry_out(args: argparse.Namespace) -> list[str]:
    """Do what parsed arguments ask for, and return what there is to tell.

    Raises:
        UserError: the input or the disk does not serve.
    """
    from . import exporting  # torch, and all that is heavy, only for arguments that hold

    family = _family(args)
    base = exporting.Base(args.model, any=getattr(args, "any_base", False)) if args.model else None
    match args.command:
        case "convert":
            return exporting.convert(family, args.lora, args.out, args.to, args.rank, base)
        case "merge":
            return exporting.merge(family, args.loras, args.out, _named(base), args.precision)
        case _:
            return _extract(args, base)


def _family(args: argparse.Namespace) -> Backbone:
    """The family that is named, or whose LoRA the first file is."""
    from .backbones import backbone, family_of_lora, family_of_model
    from .files import opened_safetensors
    from .places import parse_lora

    if args.family:
        return backbone(args.family)
    if args.command == "extract":
        return family_of_model(str(args.source))
    path = args.lora if args.command == "convert" else parse_lora(args.loras[0])[0]
    with opened_safetensors(path) as file:
        return family_of_lora(list(file.keys()), args.model)


def _extract(args: argparse.Namespace, base: Base | None) -> list[str]:
    from . import exporting
    from .backbones import backbone
    from .run import RunFolder

    if RunFolder.is_one(args.source):
        family, source, base = exporting.run_student(args.source, base)
        return exporting.extract(backbone(family), source, args.out, args.to, args.rank, base)
    if not args.source.exists():
        raise UserError(f"{args.source} is not there; name a run folder, a model folder or a native file")
    return exporting.extract(_family(args), args.source, args.out, args.to, args.rank, _named(base))


def _named(base: Base | None) -> Base:
    if base is None:
        raise UserError("--model is missing; name the base: a model folder, a native file, or bundled")
    return base


if __name__ == "__main__":
    raise SystemExit(guarded(lambda: main(sys.argv[1:])))
