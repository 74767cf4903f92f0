"""The encoders of a Wan: its VAE, its text encoder, and what it is shown of a first frame. Each loads by itself.

All encoders of a pipeline together are larger than many machines, so that one can be loaded, used, and dropped before
the next. Nothing is downloaded.
"""

from __future__ import annotations

import torch

from ..data.codec import Codec
from ..settings import Model
from .first_frame import FirstFrame
from .pipeline_parts import optional_place_of, place_of
from .tokenizing import load_image_processor, load_tokenizer
from .wan_image import ClipVision, FrameThenGrey, load_image_encoder
from .wan_places import (
    IMAGE_ENCODER,
    IMAGE_PROCESSOR,
    REPOSITORY,
    TEXT_ENCODER,
    TOKENIZER,
    VAE_2_1,
    VAE_2_2,
)
from .wan_text import Umt5, load_text_encoder
from .wan_vae import WanVae, load_vae
from .wan_variants import Kind

Start = FirstFrame | FrameThenGrey


def load_codec(
    settings: Model, kind: Kind, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> WanVae:
    """The VAE alone.

    Args:
        settings: where it is.
        kind: of the model.
        dtype: float32 is what Wan's makers use.

    Raises:
        UserError: it is not there, broken, or no VAE of Wan.
    """
    place = place_of(VAE_2_2 if kind == "ti2v" else VAE_2_1, settings, REPOSITORY[kind])
    return WanVae(load_vae(place, dtype), device)


def load_prompts(
    settings: Model,
    kind: Kind,
    negative_prompt: str = "",
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Umt5:
    """The text encoder with its tokenizer.

    Args:
        negative_prompt: whose embedding is the null condition; the family's is in its `Facts`.
        dtype: the published encoder takes 11.4 GB in bfloat16, and twice that in float32.

    Raises:
        UserError: one of them is not there, broken, or another.
    """
    tokenizer = load_tokenizer(place_of(TOKENIZER, settings, REPOSITORY[kind]))
    encoder = load_text_encoder(place_of(TEXT_ENCODER, settings, REPOSITORY[kind]), dtype)
    return Umt5(encoder, tokenizer, negative_prompt, device)


def load_start(
    settings: Model,
    kind: Kind,
    codec: Codec,
    image: bool = True,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Start | None:
    """What makes the condition's fields of a first frame; None for a text-to-video model.

    Args:
        codec: the model's VAE.
        image: the model takes an image embedding, too (only of kind i2v).

    Raises:
        UserError: the image encoder is not there, broken, or another.
    """
    if kind == "t2v":
        return None
    if kind == "ti2v":
        return FirstFrame(codec)
    if not image:
        return FrameThenGrey(codec, None)
    encoder = load_image_encoder(place_of(IMAGE_ENCODER, settings, REPOSITORY[kind]), dtype)
    size = int(encoder.config.image_size)  # type: ignore[union-attr, arg-type]
    processor = load_image_processor(optional_place_of(IMAGE_PROCESSOR, settings), size)
    return FrameThenGrey(codec, ClipVision(encoder, processor, device))
