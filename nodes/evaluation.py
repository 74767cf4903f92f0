"""Clips beside each other, their numbers, and the curves of a training."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compat import CATEGORY, InputImpl, Types, field, io, schema, told, ui
from .shown import shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Clips = NDArray[np.uint8]  # n f h w 3

HERE = f"{CATEGORY}/evaluation"
CLIPS = "Number of clips in each input, one after another as VAE Decode gives a batch: it divides their frames."


def clips_of(images: Any, count: int, name: str) -> Clips:
    """An IMAGE of `count` clips, one after another, as uint8 `n f h w 3`.

    Raises:
        UserError: the frames can't be cut into so many clips.
    """
    from ..w2svd_core.errors import UserError

    frames = images.shape[0]
    if frames % count:
        raise UserError(
            f"Input {name} has {frames} frames, which are not {count} clips of one length; set clips right."
        )
    pixels = (images[..., :3].float() * 255).round().clamp(0, 255).byte().cpu()
    return pixels.reshape(count, frames // count, *pixels.shape[1:]).numpy()


def image_of(pictures: Any) -> Any:
    """uint8 `f h w 3` as an IMAGE."""
    import torch

    return torch.from_numpy(pictures).float() / 255


def preview_video(frames: Any, fps: float) -> ui.PreviewVideo:
    """uint8 `f h w 3`, even sides, to a file in ComfyUI's temporary folder, played on the node."""
    import folder_paths

    from ..w2svd_core.data.video import write_video

    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    name = f"w2svd_{uuid.uuid4().hex}.mp4"
    write_video(folder / name, frames, fps)
    return ui.PreviewVideo([ui.SavedResult(name, "", io.FolderType.temp)])


class SideBySide(io.ComfyNode):
    """Columns of clips as one labelled video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        column = "Clips of a column: the same number, length and size as in the first."
        return schema(
            node_id="W2SVD_SideBySide",
            display_name="Side by Side",
            category=HERE,
            description="Puts clips beside each other in one labelled video, such as teacher against student.",
            search_aliases=["compare videos", "grid of videos"],
            is_output_node=True,
            inputs=[
                field(
                    io.Image, "first", tooltip="Clips of the first column, frame after frame as VAE Decode gives them."
                ),
                field(io.Image, "second", tooltip=column, optional=True),
                field(io.Image, "third", tooltip=column, optional=True),
                field(io.Image, "fourth", tooltip=column, optional=True),
                field(
                    io.String, "names", default="teacher, student", tooltip="Names of the columns, a comma between two."
                ),
                field(
                    io.String,
                    "captions",
                    default="",
                    multiline=True,
                    tooltip="A line over each row, that is over each clip of a column; may be empty.",
                ),
                field(io.Int, "clips", default=1, min=1, max=64, tooltip=CLIPS),
                field(io.Float, "fps", default=16.0, min=1.0, max=120.0, step=0.5, tooltip="Frame rate, frames/s."),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="The labelled video, for Save Video."),
                io.Image.Output(display_name="frames", tooltip="The same as frames."),
            ],
        )

    @classmethod
    @told
    def execute(
        cls,
        first: Any,
        names: str,
        captions: str,
        clips: int,
        fps: float,
        second: Any = None,
        third: Any = None,
        fourth: Any = None,
    ) -> io.NodeOutput:
        from ..w2svd_core.pictures import side_by_side

        given = {"first": first, "second": second, "third": third, "fourth": fourth}
        columns = {name: clips_of(images, clips, name) for name, images in given.items() if images is not None}
        check_alike(columns)
        texts = padded([line.strip() for line in captions.strip().splitlines()], clips)
        heads = padded([name.strip() for name in names.split(",")], len(columns))
        video = side_by_side(list(columns.values()), heads, texts)
        frames = image_of(video)
        parts = Types.VideoComponents(images=frames, audio=None, frame_rate=Fraction(fps).limit_denominator(1001))
        return io.NodeOutput(InputImpl.VideoFromComponents(parts), frames, ui=preview_video(video, fps))


def check_alike(columns: Mapping[str, Clips]) -> None:
    """Refuse columns of different sizes or lengths."""
    from ..w2svd_core.errors import UserError

    (first, model), *others = columns.items()
    for name, column in others:
        if column.shape != model.shape:
            raise UserError(
                f"Clips of input {name} are {size_of(column)}, but those of input {first} are {size_of(model)}; "
                "make them alike."
            )


def size_of(clips: Clips) -> str:
    """The size of clips in words: "17 frames of 64x64"."""
    _, frames, height, width, _ = clips.shape
    return f"{frames} frames of {width}x{height}"


def padded(texts: Sequence[str], count: int) -> list[str]:
    """The first `count` texts, empty ones where there are fewer."""
    return [*texts[:count], *[""] * (count - len(texts))]


class Metrics(io.ComfyNode):
    """What few-step students lose first, in numbers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="W2SVD_Metrics",
            display_name="Video Metrics",
            category=HERE,
            description="Measures motion, flicker, colour, sharpness and diversity of clips, beside a reference.",
            search_aliases=["measure video", "motion score"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(io.Image, "images", tooltip="The clips to measure, frame after frame; at least 4 frames each."),
                field(
                    io.Image,
                    "reference",
                    optional=True,
                    tooltip="Clips to compare with, such as the teacher's: the same number of clips.",
                ),
                field(io.Int, "clips", default=1, min=1, max=1024, tooltip=CLIPS),
            ],
            outputs=[io.String.Output(display_name="text", tooltip="A line for each number, with its unit.")],
        )

    @classmethod
    @told
    def execute(cls, images: Any, clips: int, reference: Any = None) -> io.NodeOutput:
        videos = clips_of(images, clips, "images")
        others = None if reference is None else clips_of(reference, clips, "reference")
        text = "\n".join(lines_of(numbers_of(videos, others), {} if others is None else numbers_of(others, None)))
        return io.NodeOutput(text, ui=shown(cls, text))


def numbers_of(videos: Clips, others: Clips | None) -> dict[str, float]:
    """What the core measures of any clips; the difference only where the reference has the same shape."""
    from ..w2svd_core.metrics.measure import measure
    from ..w2svd_core.metrics.pixels import pixel_difference, pixel_diversity

    numbers = measure(videos, [""] * len(videos), None, 1)
    if len(videos) > 1:
        numbers["pixel_diversity"] = pixel_diversity(videos)
    if others is not None and others.shape == videos.shape:
        numbers["pixel_difference"] = pixel_difference(videos, others)
    return numbers


def lines_of(numbers: Mapping[str, float], reference: Mapping[str, float]) -> list[str]:
    """A line for each number: "motion 0.21, reference 0.35 (px per frame at 64 px height)"."""
    from ..w2svd_core.metrics.pixels import PIXEL_UNITS
    from ..w2svd_core.tables import UNITS, number, title

    units = {**UNITS, **PIXEL_UNITS}
    lines = []
    for name, value in numbers.items():
        against = f", reference {number(reference[name])}" if name in reference else ""
        lines.append(f"{title(name)} {number(value)}{against} ({units[name]})")
    return lines


class PlotLoss(io.ComfyNode):
    """The curves of a training as a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="W2SVD_PlotLoss",
            display_name="Plot Training Curves",
            category=HERE,
            description="Draws the losses and metrics of a training, each in a panel of its own.",
            search_aliases=["plot loss", "loss graph"],
            is_output_node=True,
            inputs=[
                field(io.LossMap, "losses", tooltip="Curves of Distil, or the loss of core's Train LoRA."),
                field(io.Int, "columns", default=3, min=1, max=6, tooltip="Panels beside each other.", advanced=True),
            ],
            outputs=[io.Image.Output(display_name="plot", tooltip="The picture.")],
        )

    @classmethod
    @told
    def execute(cls, losses: Mapping[str, Sequence[float]], columns: int) -> io.NodeOutput:
        from ..w2svd_core.plots import draw_curves

        picture = image_of(draw_curves(losses, columns))[None]
        return io.NodeOutput(picture, ui=ui.PreviewImage(picture, cls=cls))


NODES: list[type[io.ComfyNode]] = [SideBySide, Metrics, PlotLoss]
