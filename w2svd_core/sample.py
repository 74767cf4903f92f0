"""`python -m w2svd_core.sample RUN_OR_LORA --prompt "..."`: clips of a student, or of its teacher."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .config import Parser, add_arguments, load_recipe, parse_arguments, recipe_names
from .errors import UserError, guarded
from .outputs import check_name, write_clip
from .sections import MAX_SEED
from .settings import Recipe

if TYPE_CHECKING:
    from .asking import Asked
    from .data.decoding import Image
    from .data.encoder_source import EncoderSource
    from .generation import Way
    from .loading import Loaded
    from .lora_files import LoraMetadata

USUAL_SHIFT = 5.0  # of a sigma list for a step count that nobody trained


def parser() -> Parser:
    """The door's arguments and every setting."""
    door = Parser(
        prog="python -m w2svd_core.sample",
        description="Sample a few-step student, from the run that trained it or from a LoRA file (model.path "
        "and model.family name its base). The same seed gives the same clip.",
    )
    source = "a run folder, or a LoRA .safetensors"
    door.add_argument("source", nargs="?", type=Path, metavar="RUN_OR_LORA", help=source)
    recipe = "recipe of model and clips for a LoRA file; default: the one in the file, else portraits"
    door.add_argument("--recipe", help=recipe)
    door.add_argument("--prompt", action="append", help="what the clip shows; may be given several times")
    door.add_argument("--prompts", type=Path, metavar="FILE", help="a file of prompts, one in each line")
    image = "first frame of the clips, an image or a video, for a model that starts from one"
    door.add_argument("--image", type=Path, metavar="FILE", help=image)
    lora = "one more LoRA to act beside the student, file or file@strength; may be given several times"
    door.add_argument("--lora", action="append", default=[], metavar="FILE", help=lora)
    seed, count, steps = _whole(0, MAX_SEED), _whole(1, 10_000), _whole(1, 1000)
    door.add_argument("--seed", type=seed, default=0, help="seed of a prompt's first clip; default 0")
    door.add_argument("--count", type=count, default=1, help="clips for each prompt; default 1")
    door.add_argument("--steps", type=steps, help="model steps; default: as the student was trained")
    out = "video (.mp4, .mov, .mkv), latents (.safetensors) or folder of PNG frames; default sample.mp4"
    door.add_argument("--out", type=Path, default=Path("sample.mp4"), help=out)
    door.add_argument("--teacher", action="store_true", help="sample the base instead, by teacher.*")
    add_arguments(door)
    return door


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text) if text.isdecimal() else low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {low} to {high}")
        return value

    return read


@dataclass(frozen=True)
class Wanted:
    """One clip to make."""

    prompt: str
    seed: int
    path: Path


def wanted(prompts: Sequence[str], seed: int, count: int, out: Path) -> list[Wanted]:
    """The clips of all prompts and seeds, with their files: numbered names when there are several."""
    both = [(prompt, seed + i) for prompt in prompts for i in range(count)]
    if len(both) == 1:
        return [Wanted(*both[0], out)]
    return [Wanted(*one, out.with_name(f"{out.stem}-{i}{out.suffix}")) for i, one in enumerate(both)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door."""
    args, given = parse_arguments(parser(), argv)
    if args.source is None and not args.teacher:
        raise UserError("name a run folder or a LoRA file to sample, or give --teacher to sample the base")
    clips = wanted(prompts_of(args.prompt, args.prompts), args.seed, args.count, args.out)
    for clip in clips:
        check_name(clip.path)
    if args.source is not None and not args.source.exists():
        raise UserError(f"{args.source} is not there; name a run folder or a LoRA file")
    recipe = recipe_of(args.source, args.recipe, given)
    if recipe.model.init == "load":  # a model that can do both starts from a first frame if there is one
        model = recipe.model.model_copy(update={"first_frame": args.image is not None})
        recipe = recipe.model_copy(update={"model": model})
    from .asking import ask
    from .assembly import encoder_source
    from .backbones import backbone
    from .loading import device
    from .lora_algebra import open_lora

    loras = [open_lora(text, backbone(recipe.model.family).keys)[0] for text in args.lora]
    source = encoder_source(recipe.model, device())
    pictures = pictures_of(recipe, source, args.image, len(clips))
    asked = ask(source, recipe.data, [clip.prompt for clip in clips], pictures)
    loaded, way = prepare(recipe, given, source, args.source, args.teacher, args.steps)
    with loaded.acting(way.role, loras):
        write_clips(recipe, asked, loaded, way, clips)
    return 0


def prompts_of(named: Sequence[str] | None, file: Path | None) -> list[str]:
    """The prompts of the command line and of a file.

    Raises:
        UserError: there are none, or the file can't be read.
    """
    from .data.clips import read_prompts

    prompts = [*(named or ()), *(read_prompts(file, "--prompts") if file else ())]
    if not prompts:
        raise UserError(
            '--prompt is missing; say what the clip shows, such as --prompt "talking, red hair", or name a file of '
            "prompts in --prompts"
        )
    return prompts


def recipe_of(source: Path | None, name: str | None, given: Mapping[str, str]) -> Recipe:
    """The run's own recipe for a run folder, else the named one or that of the LoRA; the command line goes over it.

    Raises:
        UserError: as `load_recipe`, or the run's own teacher has not been trained yet.
    """
    if source is None or source.is_file():
        metadata = metadata_in(source)
        known = metadata.recipe if metadata and metadata.recipe in recipe_names() else ""
        if metadata and metadata.recipe and not (name or known):
            warn(
                f"{source} was made by a recipe {metadata.recipe}, which is not bundled; taking portraits, name "
                "another one in --recipe"
            )
        return load_recipe(name or known or "portraits", given)
    from .run import RunFolder
    from .stages import with_trained_teacher

    return with_trained_teacher(load_recipe(RunFolder.open(source).path / "recipe.yaml", given), source)


def metadata_in(lora: Path | None) -> LoraMetadata | None:
    """What a LoRA file says of itself; None where it says nothing."""
    if lora is None:
        return None
    from .files import opened_safetensors
    from .lora_metadata import LoraMetadata

    with opened_safetensors(lora) as file:
        return LoraMetadata.from_strings(dict(file.metadata() or {}), lora)


def pictures_of(recipe: Recipe, source: EncoderSource, image: Path | None, count: int) -> list[Image] | None:
    """The first frame of `count` clips, (H, W, 3) each; None for a model that makes them from text alone.

    Raises:
        UserError: the image is not there or broken, or the model needs one, or takes none.
    """
    from .data.video import read_first_frame

    if not source.starts:
        if image is not None:
            raise UserError(f"this model makes clips from text alone and takes no --image {image}; leave it out")
        return None
    if image is None:
        raise UserError("this model makes a clip from its first frame; name an image or a video in --image")
    return [read_first_frame(image, recipe.data.height, recipe.data.width)] * count


def prepare(
    recipe: Recipe,
    given: Mapping[str, str],
    encoders: EncoderSource,
    source: Path | None,
    teacher: bool,
    steps: int | None,
) -> tuple[Loaded, Way]:
    """Load what is to be sampled, and decide how.

    Args:
        recipe: whose base, teacher settings and geometry count.
        given: settings of the command line, which go over the file's.
        source: run folder or LoRA file.
        teacher: sample the base instead.
        steps: None for the trained schedule.
    """
    from .evaluation import teacher_way
    from .flow import sigma_list
    from .loading import load_adapter, load_run, load_teacher

    if source is None or teacher:
        t = recipe.teacher
        way = replace(teacher_way(recipe), sigmas=sigma_list(steps or t.steps, t.shift))
        return load_teacher(recipe, encoders), way
    if source.is_dir():
        loaded = load_run(recipe, encoders, source)
    else:
        loaded = load_adapter(recipe, encoders, source)
        if loaded.metadata is None:
            warn(f"{source} says neither base nor sigmas; taking model.path and student.sigmas")
        elif (told := loaded.metadata.default.embedded_guidance) is not None and "embedded.student" not in given:
            loaded.model.tell("generator", told)
    return loaded, student_way(recipe, given, loaded.metadata, steps)


def student_way(recipe: Recipe, given: Mapping[str, str], metadata: LoraMetadata | None, steps: int | None) -> Way:
    """How to sample what a run learned; says so on stderr when it was not made for it.

    The file's schedules count (the recipe's, for files of others), and over them what the command line says: the steps,
    student.sigmas, student.sampler, and for a model of flow matching teacher.*, where its schedule came from.
    """
    from .flow import sigma_list
    from .generation import Way
    from .students import schedule_of

    s, t = recipe.student, recipe.teacher
    ordinary = (metadata.method if metadata else recipe.method) == "flow_matching"
    if ordinary and steps is None and "teacher.steps" in given:
        steps = t.steps
    known = metadata.schedules if metadata else (schedule_of(recipe),)
    count = steps or (len(s.sigmas) - 1 if "student.sigmas" in given else None)
    own = next((one for one in known if one.steps == count), known[0])
    shift = t.shift if ordinary and "teacher.shift" in given else own.shift
    sigmas = s.sigmas if "student.sigmas" in given else own.sigmas
    if (steps is not None and steps != len(sigmas) - 1) or shift != own.shift:
        sigmas = sigma_list(steps or own.steps, shift or USUAL_SHIFT)
    sampler = s.sampler if "student.sampler" in given else own.sampler
    scale = t.guidance_scale if ordinary and "teacher.guidance_scale" in given else own.guidance_scale
    way = Way("generator", sigmas, "euler" if sampler == "euler" else "renoise", scale)
    fit = [(one.sigmas, one.sampler) for one in known]
    if ordinary and own.shift:  # it follows the flow's own path, whatever the number of steps
        fit.append((sigma_list(way.steps, own.shift), own.sampler))
    if metadata and (way.sigmas, way.sampler) not in fit:
        trained = " or ".join(str(one.steps) for one in known)
        listed = ", ".join(f"{sigma:.4g}" for sigma in way.sigmas)
        warn(
            f"the {'model is meant' if ordinary else 'student was trained'} for {trained} steps by {own.sampler}, "
            f"not for {way.steps} by {way.sampler} at sigmas {listed}; expect worse clips"
        )
    return way


def warn(text: str) -> None:
    """One line on stderr."""
    print(f"warning: {text}", file=sys.stderr)


def write_clips(recipe: Recipe, asked: Asked, loaded: Loaded, way: Way, clips: Sequence[Wanted]) -> None:
    """Sample, decode and write each clip, and say where it is.

    They are made one by one: in a batch the last bits of a clip would depend on its neighbours.
    """
    from .generation import generate

    for row, clip in enumerate(clips):
        latents = generate(loaded.model, way, asked.condition([row]), asked.null, asked.shape, [clip.seed], batch=1)
        about = {"prompt": clip.prompt, "seed": str(clip.seed), "sigmas": ",".join(f"{s:g}" for s in way.sigmas)}
        write_clip(clip.path, latents, asked.codec, recipe.data.fps, about)
        print(f"{clip.path}: {clip.prompt!r}, seed {clip.seed}, {way.steps} steps")


if __name__ == "__main__":
    raise SystemExit(guarded(lambda: main(sys.argv[1:])))
