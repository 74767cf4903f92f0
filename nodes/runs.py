"""A run folder as the Train node meets it: whether it may go on, whether it is finished, and what it hands out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..w2svd_core.student_files import FOLDER, NATIVE
from .compat import blocked
from .places import run_folder

if TYPE_CHECKING:
    from ..w2svd_core.run import RunFolder
    from ..w2svd_core.settings import Recipe

CURVES = {  # of a LOSS_MAP, by what they are called in metrics.jsonl
    "loss": "student/loss", "motion": "student/motion", "spread": "student/std", "diversity": "student/diversity",
}  # fmt: skip
PROMPTS, FILES = "prompts.txt", "model_files.txt"
OTHER_NAME = "give this one another name, or set them back"
FINISHED: set[Path] = set()  # runs whose results ComfyUI keeps
DELETED: Counter[Path] = Counter()


def times_deleted(name: str) -> int:
    """How often a finished run was deleted since ComfyUI started; what ComfyUI keeps of it is then out of date."""
    from ..w2svd_core.errors import UserError

    try:
        folder = run_folder(name)
    except UserError:  # told when the node runs
        return 0
    if folder in FINISHED and not folder.exists():
        FINISHED.discard(folder)
        DELETED[folder] += 1
    return DELETED[folder]


def is_of_recipe(run: RunFolder, recipe: Recipe) -> bool:
    """Whether a run was made by this very recipe; if not, it can go on with it (more steps, say).

    Raises:
        UserError: it can't.
    """
    from ..w2svd_core.config import recipe_to_yaml, settings_of
    from ..w2svd_core.errors import UserError
    from ..w2svd_core.options import show
    from ..w2svd_core.run import anchored, set_in_stone

    then, now = (settings_of(recipe_to_yaml(one)) for one in (run.recipe(), anchored(recipe)))
    for key in set_in_stone(then, now):
        raise UserError(
            f"the run {run.path.name} was made with {key} {show(then[key])}, and the inputs say {show(now[key])}; "
            f"{OTHER_NAME}"
        )
    return then == now


def is_finished(folder: Path) -> bool:
    """Whether a run has its student of this recipe, and clips of that very one; ended elsewhere it lacks one."""
    student = folder / FOLDER / NATIVE
    whole = student.is_file() and student.stat().st_mtime >= (folder / "recipe.yaml").stat().st_mtime
    return whole and bool(samples_of(folder))


def samples_of(folder: Path) -> list[Path]:
    """The clips of a run's student; those of an older one, or of a preview on the way, are not."""
    written = (folder / FOLDER / NATIVE).stat().st_mtime
    return [clip for clip in sorted((folder / "samples").glob("student-*.mp4")) if clip.stat().st_mtime >= written]


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Let a run go on with a recipe that `is_of_recipe` let pass."""
    from ..w2svd_core.config import recipe_to_yaml
    from ..w2svd_core.files import write_text
    from ..w2svd_core.run import anchored

    write_text(folder / "recipe.yaml", recipe_to_yaml(anchored(recipe)))


def refuse_another_origin(run: RunFolder, origin: Mapping[str, str]) -> None:
    """Raise a UserError where a run was made of another model or of other data."""
    from ..w2svd_core.errors import UserError

    then = run.origin()
    for key, what in (("base", "another MODEL"), ("data", "other clips or prompts")):
        if then and key in origin and then.get(key) != origin[key]:
            raise UserError(f"the run {run.path.name} was made with {what}; {OTHER_NAME}")


def write_prompts(folder: Path, prompts: tuple[str, ...]) -> None:
    """Put the prompts where the recipe looks for them, unless a run of others is there."""
    from ..w2svd_core.errors import UserError
    from ..w2svd_core.files import write_text
    from ..w2svd_core.run import RunFolder

    path, text = folder / PROMPTS, "".join(f"{prompt}\n" for prompt in prompts)
    if RunFolder.is_one(folder) and path.is_file() and path.read_text(encoding="utf-8") != text:
        raise UserError(f"the run {folder.name} was made with other prompts; {OTHER_NAME}")
    write_text(path, text)


def made(folder: Path) -> tuple[Any, Any, Mapping[str, list[float]], Any]:
    """What a finished run hands out: LORA_MODEL, SIGMAS, LOSS_MAP and the last samples as IMAGE, if there are any."""
    import torch

    from ..w2svd_core.data.video import read_video
    from ..w2svd_core.files import read_safetensors
    from ..w2svd_core.lora_files import LoraMetadata
    from ..w2svd_core.run import RunFolder
    from .native_lora import LoraModel

    path = folder / FOLDER / NATIVE
    tensors, header = read_safetensors(path)
    about = LoraMetadata.from_strings(header, path)
    run = RunFolder.open(folder)
    sigmas = torch.tensor(about.default.sigmas if about else run.recipe().student.sigmas, dtype=torch.float32)
    rows = run.metrics()
    curves = {name: [row[key] for row in rows if key in row] for name, key in CURVES.items()}
    if len(set(curves["loss"])) < 2:  # core's plot divides by their range
        curves["loss"] += [0.0, 1e-9]
    clips = [torch.from_numpy(read_video(file)).float() / 255 for file in samples_of(folder)]
    return (
        LoraModel(tensors, about),
        sigmas,
        {name: values for name, values in curves.items() if values},
        torch.cat(clips) if clips else blocked(f"the run {folder.name} is finished, but no sample clips could be made"),
    )
