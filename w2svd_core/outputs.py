"""What a sampled clip is written as, told by the name that the user gives: a video, a folder of PNG frames, latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from .data.codec import Codec

LATENTS = ".safetensors"


def check_name(path: Path) -> None:
    """Whether there is a form for this name, and nothing in its place that would be lost.

    Raises:
        UserError: its ending is another, or it is a folder that holds something.
    """
    from .data.video import CONTAINERS

    if path.suffix.lower() not in (*CONTAINERS, LATENTS, ""):
        raise UserError(
            f"--out {path} must end in one of {', '.join(CONTAINERS)} for a video, in {LATENTS} for latents, "
            "or in nothing for a folder of PNG frames"
        )
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"--out {path} is a folder with files in it; name another, or empty it")


def write_clip(path: Path, latents: Tensor, codec: Codec, fps: float, about: Mapping[str, str]) -> None:
    """Write one clip in the form that its name asks for.

    Args:
        path: as `check_name` takes it.
        latents: `1 c f h w`, unit scale.
        fps: frames a second.
        about: what a latents file says of itself: prompt, seed and the like.

    Raises:
        UserError: the disk does not serve.
    """
    from .data.codec import decode_pixels
    from .data.video import write_png, write_video
    from .files import whole_folder, write_safetensors

    suffix = path.suffix.lower()
    if suffix == LATENTS:
        write_safetensors(path, {"latents": latents.contiguous()}, {**about, "fps": f"{fps:g}"})
        return
    frames = decode_pixels(codec, latents)[0]
    if suffix:
        write_video(path, frames, fps)
        return
    with whole_folder(path) as folder:
        for number, frame in enumerate(frames):
            write_png(folder / f"{number:05d}.png", frame)
