"""AVDM2's style transfer (arXiv 2412.05899), shown: `python benchmarks/style.py`, some minutes on a core.

The bundled teacher is distilled into four steps, and an image model is trained on toned stills of portraits. It then
judges the decoded frames of the student, without scores of clips and without a discriminator: the colours go over, and
the clips go on moving. Writes `docs/style.jpg` and prints what was measured.

    python benchmarks/style.py --unets runs/portraits_image_unet runs/portraits_avdm2_unets

shows the same of the paper's own pair, for which both runs have to be there: an image UNet of portraits, which the
toned stills tune, judges the latent frames of AnimateDiff's student. Writes `docs/style_unets.jpg`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cells import with_files
from numpy.typing import NDArray
from torch import Tensor

from w2svd_core.assembly import encoder_source, job_of, load_base, roles_of
from w2svd_core.config import load_recipe
from w2svd_core.data.codec import to_pixels, to_signed
from w2svd_core.data.encoder_source import LoadedEncoders, null_condition
from w2svd_core.data.latents import LatentSet
from w2svd_core.data.portraits import caption, portrait_from_seed, render
from w2svd_core.errors import guarded
from w2svd_core.evaluation import student_way
from w2svd_core.generation import generate
from w2svd_core.metrics.motion import clip_motion
from w2svd_core.pictures import contact_sheet
from w2svd_core.run import RunFolder
from w2svd_core.settings import Recipe
from w2svd_core.student_files import FOLDER, FULL_NATIVE, NATIVE

DOCS = Path(__file__).parents[1] / "docs"
LUMA = torch.tensor([0.299, 0.587, 0.114])
TINT = torch.tensor([1.15, 0.98, 0.7156])  # of luma 1
TRAINED, HELD_OUT = range(96), range(2_000_000, 2_000_024)
FPS, SIDE = 8.0, 32
IMAGE_UPDATES, FIRST_UPDATES, STUDENT_UPDATES, HEAD_START = 150, 60, 24, 4
IMAGE = {
    "model.init": "load", "model.compile": False, "student.lr": 5e-4, "student.ema": 0.0, "train.steps": IMAGE_UPDATES,
    "train.lr_warmup": 10, "train.batch": 16, "evaluate.clips": 0,
}  # fmt: skip
FIRST = {"student.lr": 3e-4, "critic.lr": 1e-3, "critic.warmup": 10, "train.steps": FIRST_UPDATES, "student.ema": 0.0}
STUDENT = {
    "adversarial.weight": 0.0, "frame_matching.family": "wan", "frame_matching.guidance_scale": 1.0,
    "frame_matching.updates": 3, "frame_matching.lr": 5e-4, "critic.warmup": HEAD_START,
    "train.steps": STUDENT_UPDATES, "train.batch": 8, "student.ema": 0.0, "student.lr": 3e-4,
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A video model and the image model that is tuned to judge it.

    Attributes:
        image: recipe of the image model on toned stills.
        first: recipe of the student before.
        updates: of that student; 0 where its recipe begins with a finished one.
        student: recipe of the student after; the image model's folder is put in.
        rounds: of that.
    """

    image: Recipe
    first: Recipe
    updates: int
    student: Recipe
    rounds: int


def bundled() -> Pair:
    """The bundled teacher; its image model is that same model, tuned on stills."""
    first = load_recipe("portraits_long", FIRST)
    return Pair(
        image=load_recipe("portraits_teacher", IMAGE),
        first=first,
        updates=first.critic.warmup + FIRST_UPDATES,
        student=load_recipe("portraits_avdm2", STUDENT),
        rounds=HEAD_START + STUDENT_UPDATES,
    )


def unets(image: Path, student: Path) -> Pair:
    """An image UNet and an AnimateDiff of portraits, of finished runs.

    Args:
        image: the run folder of `portraits_image_unet`.
        student: that of `portraits_avdm2_unets`, whose teacher is the AnimateDiff.
    """
    motion = RunFolder.open(student).recipe().model.path
    judge = str(image / FOLDER / FULL_NATIVE)
    begun = {"model.path": motion, "student.init": str(student / FOLDER / NATIVE), "frame_matching.model": judge}
    first = load_recipe("portraits_avdm2_unets", begun)
    after = STUDENT | begun | {"frame_matching.family": "image_unet"}
    return Pair(
        image=load_recipe("portraits_image_unet", IMAGE | {"model.path": judge}),
        first=first,
        updates=0,
        student=load_recipe("portraits_avdm2_unets", after),
        rounds=HEAD_START + STUDENT_UPDATES,
    )


@dataclass(frozen=True)
class Transfer:
    """Clips `b 3 f h w` in [-1, 1] of the same held-out captions: the data's through the codec, the student's."""

    data: Tensor
    before: Tensor  # the image model has judged it
    after: Tensor

    def columns(self) -> dict[str, Tensor]:
        """By what they are called in the picture."""
        return {"clips": self.data, "student before": self.before, "after the toned image model": self.after}


def transfer(pair: Pair, folder: Path) -> Transfer:
    """Train all three; the image model is written into the folder."""
    source, frames = encoders(pair.first), pair.first.data.frames
    stills = toned(videos(TRAINED, 3, 1.0)).transpose(1, 2).flatten(0, 1).unsqueeze(2)  # three of each portrait
    pictures = data_of(source.codec.encode(stills), [seed for seed in TRAINED for _ in range(3)], source)
    clips = data_of(source.codec.encode(videos(TRAINED, frames, FPS)), TRAINED, source)
    image = trained(pair.image, pictures, source, IMAGE_UPDATES)
    image.model.backbone.save_folder(image.model.copy, folder, torch.float32)
    before = trained(pair.first, clips, source, pair.updates)
    recipe = with_files(pair.student, {"frame_matching.model": folder})
    after = trained(recipe, clips, source, pair.rounds, before)
    return Transfer(
        data=source.codec.decode(source.codec.encode(videos(HELD_OUT, frames, FPS))),
        before=sampled(before, pair.first, source),
        after=sampled(after, recipe, source),
    )


def encoders(recipe: Recipe) -> LoadedEncoders:
    """The bundled ones, as a recipe's model takes them."""
    source = encoder_source(recipe.model, torch.device("cpu"))
    assert isinstance(source, LoadedEncoders)
    return source


def toned(video: Tensor) -> Tensor:
    """A video `b 3 f h w` in [-1, 1] in shades of brown: brightness as it was, one hue."""
    light = ((video + 1) / 2).movedim(1, -1) @ LUMA
    return (2 * light[..., None] * TINT - 1).clamp(-1, 1).movedim(-1, 1)


def off_tone(video: Tensor) -> float:
    """How far the colours are from the tone, of 1."""
    return float((video - toned(video)).abs().mean() / 2)


def motion(video: Tensor) -> float:
    """Mean optical flow, px per frame at 64 px height."""
    return float(clip_motion(to_pixels(video)).mean())


def videos(seeds: Sequence[int], frames: int, fps: float) -> Tensor:
    """Rendered portraits `b 3 f h w` in [-1, 1]."""
    return torch.cat([to_signed(render(portrait_from_seed(seed), frames, SIDE, SIDE, fps)[None]) for seed in seeds])


def data_of(latents: Tensor, seeds: Sequence[int], source: LoadedEncoders) -> LatentSet:
    """Latents with the captions of these portraits."""
    captions = tuple(caption(portrait_from_seed(seed)) for seed in seeds)
    return LatentSet(latents, source.prompts.encode(captions), null_condition(source.prompts), captions)


def trained(recipe: Recipe, data: LatentSet, source: LoadedEncoders, rounds: int, start: Any = None) -> Any:
    """The job of a recipe after so many rounds; where `start` is a job, it begins with the student of that one."""
    family, base = load_base(recipe.model, source, recipe.seed)
    job: Any = job_of(recipe, roles_of(recipe, family, base), source, data)
    if start is not None:
        weights = {name: p.detach().clone() for name, p in start.model.parameters("generator").items()}
        job.program.student.begin_with(weights, {})
    for index in range(rounds):
        job.program.round(index)
    return job


@torch.no_grad()
def sampled(job: Any, recipe: Recipe, source: LoadedEncoders) -> Tensor:
    """The student's clips of the held-out captions, `b 3 f h w` in [-1, 1]."""
    null = null_condition(source.prompts)
    condition = source.prompts.encode([caption(portrait_from_seed(seed)) for seed in HELD_OUT])
    shape = source.codec.geometry.latent_shape(recipe.data.frames, SIDE, SIDE)
    latents = generate(job.model, student_way(recipe), condition, null, shape, list(HELD_OUT))
    return source.codec.decode(latents)


def sheet(found: Mapping[str, Tensor], rows: int = 4) -> NDArray[Any]:
    """Some frames of the first clips of each column."""
    captions = [caption(portrait_from_seed(seed)) for seed in HELD_OUT[:rows]]
    columns = [to_pixels(video[:rows]) for video in found.values()]
    return contact_sheet(columns, list(found), captions, frames=3)


def main() -> int:
    """Measure, print, draw."""
    from PIL import Image

    parser = argparse.ArgumentParser(prog="python benchmarks/style.py", description=__doc__)
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the picture goes; default docs")
    parser.add_argument(
        "--unets", type=Path, nargs=2, metavar=("IMAGE", "STUDENT"), help="runs of the paper's own pair"
    )
    args = parser.parse_args()
    pair = unets(*args.unets) if args.unets else bundled()
    with tempfile.TemporaryDirectory() as folder:
        found = transfer(pair, Path(folder)).columns()
    print(f"{'':28} off the tone  motion, px/frame")
    for name, video in found.items():
        print(f"{name:28} {off_tone(video):12.3f}  {motion(video):16.3f}")
    name = "style_unets" if args.unets else "style"
    Image.fromarray(sheet(found)).save(args.docs / f"{name}.jpg", quality=90)
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
