"""The bundled talking portraits as native values: distilled and sampled by core nodes, with nothing to download."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .compat import CATEGORY, field, io, schema, setting_values, told, widgets
from .sockets import MODEL, ModelHandle

if TYPE_CHECKING:
    from torch import Tensor

    from ..w2svd_core.data.codec import PortraitCodec
    from ..w2svd_core.geometry import LatentGeometry

GROUP = f"{CATEGORY}/portraits"


@dataclass(frozen=True)
class PortraitVae:
    """The portrait codec behind the names that ComfyUI's nodes call a VAE by.

    IMAGE is (F, H, W, 3) from 0 to 1; LATENT is (B, 16, 1 + (F - 1) / 4, H / 4, W / 4) in the un-normalised space of
    Wan 2.1's VAE, so that a native Wan model reads from it what the codec made.
    """

    latent_channels = 16
    latent_dim = 3
    not_video = False
    disable_offload = True

    @cached_property
    def codec(self) -> PortraitCodec:
        import torch

        from ..w2svd_core.assembly import BUNDLED_CODEC
        from ..w2svd_core.data.codec import load_portrait_codec

        with torch.inference_mode(False):  # a training may ask it for previews later
            return load_portrait_codec(BUNDLED_CODEC)

    @cached_property
    def space(self) -> Any:
        """Between the codec's normalised latents and LATENT."""
        from comfy.latent_formats import Wan21

        return Wan21()

    @property
    def geometry(self) -> LatentGeometry:
        return self.codec.geometry

    def decode(self, samples: Tensor, *_: Any, **__: Any) -> Tensor:
        """Frames (B, F, H, W, 3) from 0 to 1 of latents."""
        video = self.codec.decode(self.space.process_in(samples.float().cpu()))
        return ((video + 1) / 2).clamp(0, 1).movedim(1, -1).contiguous()

    def encode(self, pixels: Tensor, *_: Any, **__: Any) -> Tensor:
        """Latents of frames (F, H, W, 3) of one clip, or (B, F, H, W, 3) of several.

        What is over at the right and bottom edge (8 px) and at the end (1 + 4 k frames) is left out, as core's VAEs do.
        """
        clips = pixels[..., :3].float().cpu()
        clips = clips[None] if clips.ndim == 4 else clips
        g = self.geometry
        cell = g.space * g.patch
        frames, height, width = clips.shape[1:4]
        cut = clips[:, : (frames - 1) // g.time * g.time + 1, : height // cell * cell, : width // cell * cell]
        latents: Tensor = self.space.process_out(self.codec.encode(cut.movedim(-1, 1) * 2 - 1))
        return latents

    decode_tiled = decode  # it is small: nothing is gained by tiles
    encode_tiled = encode

    def spacial_compression_decode(self) -> int:
        return self.geometry.space

    spacial_compression_encode = spacial_compression_decode

    def temporal_compression_decode(self) -> int:
        return self.geometry.time

    def throw_exception_if_invalid(self) -> None:
        """Core asks this of a VAE from a file."""

    def is_dynamic(self) -> bool:
        return False


def native_teacher() -> Any:
    """The bundled teacher as a native MODEL, in float32: it is small, and the student's numbers are compared."""
    import torch
    from comfy.sd import load_diffusion_model

    from ..w2svd_core.assembly import BUNDLED_TEACHER

    return load_diffusion_model(str(BUNDLED_TEACHER), model_options={"dtype": torch.float32})


class PortraitModel(io.ComfyNode):
    """The bundled teacher and codec."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="W2SVD_PortraitModel",
            display_name="Portrait Model",
            category=GROUP,
            description="The small talking-portrait teacher that comes with this extension: a real Wan model of 2.8 "
            "million weights. Distil and sample it on a CPU, with nothing to download.",
            search_aliases=["bundled", "demo", "load model", "teacher"],
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The teacher as a native model."),
                io.Vae.Output(display_name="vae", tooltip="Its VAE: 4 px and 4 frames to a latent cell."),
                MODEL.Output(display_name="w2svd model", tooltip="The teacher for Train, by name."),
            ],
        )

    @classmethod
    @told
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(native_teacher(), PortraitVae(), ModelHandle(path="bundled"))


class PortraitPrompt(io.ComfyNode):
    """Words as the bundled teacher reads them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="W2SVD_PortraitPrompt",
            display_name="Portrait Prompt",
            category=GROUP,
            description="Words for the portrait teacher, which needs no text encoder. It knows those of its captions: "
            "talking or listening, red / black / brown / blond / grey hair, glasses and the like. An empty prompt is "
            "the negative one.",
            search_aliases=["clip text encode", "conditioning"],
            inputs=[
                field(
                    io.String,
                    "text",
                    default="talking, red hair",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the clip shows, at most 22 words; empty for the negative prompt.",
                )
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="For a guider.")],
        )

    @classmethod
    @told
    def execute(cls, text: str) -> io.NodeOutput:
        from torch.nn.functional import pad

        from ..w2svd_core.backbones.wan import NATIVE_TEXT_DIM
        from ..w2svd_core.data.prompts import HashedWords

        words = HashedWords().encode([text]).fields["text"]
        return io.NodeOutput([[pad(words, (0, NATIVE_TEXT_DIM - words.shape[-1])), {}]])


class PortraitLatent(io.ComfyNode):
    """An empty clip of the bundled teacher's."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="W2SVD_PortraitLatent",
            display_name="Empty Portrait Latent",
            category=GROUP,
            description="Where sampling of portrait clips begins. The teacher was trained on 17 frames of 32 x 32 px.",
            search_aliases=["empty latent video"],
            inputs=[
                *widgets(["data.frames", "data.height", "data.width"]),
                field(io.Int, "batch_size", default=1, min=1, max=4096, tooltip="Clips at a time, 1 to 4096."),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    @told
    def execute(cls, batch_size: int, **sizes: Any) -> io.NodeOutput:
        import torch

        from ..w2svd_core.data.codec import PortraitCodec

        d = setting_values(sizes)
        shape = PortraitCodec.geometry.latent_shape(*(d[f"data.{name}"] for name in ("frames", "height", "width")))
        return io.NodeOutput({"samples": torch.zeros(batch_size, *shape)})


NODES: list[type[io.ComfyNode]] = [PortraitModel, PortraitPrompt, PortraitLatent]
