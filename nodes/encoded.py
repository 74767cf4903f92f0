"""Clips and prompts that ComfyUI's own nodes encode, as what a native MODEL is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compat import CATEGORY, field, io, schema, setting_values, told, widgets
from .data import clip_choice, clip_place, prompt_lines
from .places import input_stamp
from .shown import shown
from .sockets import DATASET, Encoded

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray

HERE = f"{CATEGORY}/data"
FPS = ("data.fps",)


class EncodeClips(io.ComfyNode):
    """A folder of clips through a VAE, one clip after the other."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="W2SVD_EncodeClips",
            display_name="Encode Clips from Folder",
            category=HERE,
            description="Reads a folder of clips with captions and encodes one after the other, so that their pixels "
            "are never in memory all at once. Both outputs are lists: a text encoder behind captions encodes each.",
            search_aliases=["load videos", "vae encode", "captions"],
            inputs=[
                field(io.Vae, "vae", tooltip="The VAE that belongs to the model."),
                clip_choice(),
                *widgets(["data.frames", "data.height", "data.width", "data.fps", "data.clips"]),
            ],
            outputs=[
                io.Latent.Output(display_name="latents", is_output_list=True, tooltip="A latent for each clip."),
                io.String.Output(display_name="captions", is_output_list=True, tooltip="What each clip shows."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, **_: Any) -> str:
        return input_stamp(folder)

    @classmethod
    @told
    def execute(cls, vae: Any, folder: str, **given: Any) -> io.NodeOutput:
        from ..w2svd_core.config import check_recipe
        from ..w2svd_core.data.clips import list_clips
        from ..w2svd_core.data.latents import clip_folder
        from ..w2svd_core.data.video import read_video
        from ..w2svd_core.errors import UserError
        from .progress import NodeProgress

        progress = NodeProgress(str(cls.hidden.unique_id))
        settings = {"data.folder": clip_place(folder), "evaluate.clips": 0, **setting_values(given)}
        data = check_recipe(settings, "in Encode Clips from Folder").data
        clips = list_clips(clip_folder(data, progress))
        latents, captions, dropped = [], [], []
        for done, clip in enumerate(clips, start=1):
            try:
                frames = read_video(clip.path, data.frames, data.height, data.width, data.fps)
            except UserError as error:  # broken or too short: the others serve
                dropped.append(str(error))
            else:
                latents.append({"samples": encoded(vae, frames, clip.path)})
                captions.append(clip.caption)
            progress("encoding clips", done, len(clips))
        if not latents:
            raise UserError(f"none of {len(clips)} clips can be used; the first: {dropped[0]}")
        text = "\n".join([f"{len(latents)} of {len(clips)} clips", *(f"dropped: {why}" for why in dropped)])
        return io.NodeOutput(latents, captions, ui=shown(cls, text))


def encoded(vae: Any, frames: NDArray[uint8], path: Path) -> Any:
    """The latents `1 c f h w` of a clip.

    Args:
        frames: uint8 `f h w 3`.
        path: of the clip, for errors.

    Raises:
        UserError: the VAE is one for pictures, or in a precision that does not hold its latents.
    """
    import torch

    from ..w2svd_core.errors import UserError

    found = vae.encode(torch.from_numpy(frames).float() / 255)
    if found.ndim != 5:
        raise UserError("this VAE encodes pictures, not clips; connect the VAE that belongs to the video model")
    if not found.isfinite().all():
        raise UserError(f"{path} has latents that are not finite numbers; load the VAE in another precision")
    return found.cpu()


class DatasetFromLatents(io.ComfyNode):
    """Lists of LATENT and CONDITIONING as a dataset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="W2SVD_DatasetFromLatents",
            display_name="Clips from Latents",
            category=HERE,
            description="Encoded clips and their prompts, to distil a model from Load Diffusion Model on.",
            is_input_list=True,
            inputs=[
                field(io.Latent, "latents", tooltip="Encoded clips: a list, or several in one batch."),
                field(io.Conditioning, "conditioning", tooltip="The prompt of each clip, or one for all of them."),
                _negative(),
                _captions("What each clip shows, written beside the samples; without it they are numbered."),
                *widgets(FPS),
            ],
            outputs=[DATASET.Output(display_name="dataset", tooltip="What Train learns on.")],
        )

    @classmethod
    @told
    def execute(
        cls,
        latents: list[Any],
        conditioning: list[Any],
        negative: list[Any],
        data_fps: list[float],
        captions: list[str] | None = None,
    ) -> io.NodeOutput:
        clips, words = tuple(latents), tuple(captions or ())
        return io.NodeOutput(Encoded(data_fps[0], tuple(conditioning), negative[0], latents=clips, captions=words))


class DatasetFromConditioning(io.ComfyNode):
    """A list of CONDITIONING alone as a dataset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="W2SVD_DatasetFromConditioning",
            display_name="Prompts from Conditioning",
            category=HERE,
            description="Encoded prompts without clips, to distil a model from Load Diffusion Model on: the student "
            "walks its own path from noise.",
            is_input_list=True,
            inputs=[
                field(io.Conditioning, "conditioning", tooltip="Encoded prompts: a list, or one."),
                _negative(),
                field(io.Latent, "size", tooltip="An empty latent video, as large as the clips are to be."),
                _captions("The prompts as words, written beside the samples; without them they are numbered."),
                *widgets(FPS),
            ],
            outputs=[DATASET.Output(display_name="dataset", tooltip="What Train learns on.")],
        )

    @classmethod
    @told
    def execute(
        cls,
        conditioning: list[Any],
        negative: list[Any],
        size: list[Any],
        data_fps: list[float],
        captions: list[str] | None = None,
    ) -> io.NodeOutput:
        words = tuple(captions or ())
        return io.NodeOutput(Encoded(data_fps[0], tuple(conditioning), negative[0], size=size[0], captions=words))


class PromptList(io.ComfyNode):
    """Lines of a text as a list, for a text encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="W2SVD_PromptList",
            display_name="Prompt List",
            category=HERE,
            description="Each line of a text as a prompt of its own: a text encoder behind it encodes each of them.",
            search_aliases=["split lines", "list", "prompts"],
            inputs=[
                field(
                    io.String,
                    "prompts",
                    multiline=True,
                    default="a person, talking\na person with red hair, listening",
                    tooltip="A prompt in each line.",
                )
            ],
            outputs=[io.String.Output(display_name="prompts", is_output_list=True, tooltip="The prompts, one by one.")],
        )

    @classmethod
    @told
    def execute(cls, prompts: str) -> io.NodeOutput:
        return io.NodeOutput(list(prompt_lines(prompts)))


def _negative() -> Any:
    return field(io.Conditioning, "negative", tooltip="What guidance leads away from, mostly an empty prompt.")


def _captions(words: str) -> Any:
    return field(io.String, "captions", optional=True, force_input=True, tooltip=words)


NODES: list[type[io.ComfyNode]] = [EncodeClips, DatasetFromLatents, DatasetFromConditioning, PromptList]
