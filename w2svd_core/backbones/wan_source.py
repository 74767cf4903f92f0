"""A Wan's encoders for a preparation: what kind of model it is and where they lie, before anything large is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..data.codec import Codec
from ..data.file_prints import print_of_files
from ..geometry import LatentGeometry
from ..hashing import value_hash
from ..settings import Model
from .pipeline_parts import optional_place_of, place_of
from .wan_encoders import Start, load_codec, load_prompts, load_start
from .wan_places import (
    IMAGE_ENCODER,
    IMAGE_PROCESSOR,
    REPOSITORY,
    TEXT_ENCODER,
    TOKENIZER,
    VAE_2_1,
    VAE_2_2,
)
from .wan_text import TOKENS, Umt5
from .wan_vae import TILE_ABOVE, WanVae
from .wan_variants import facts_of, geometry_of, kind_of


@dataclass(frozen=True)
class WanSource:
    """The encoders of the Wan that a recipe names; see `data.encoder_source.EncoderSource`.

    Args:
        settings: where the model and its encoders are.
        config: of the model (`config_at`).
        first_frame: give a TI2V its first frame; a T2V never has one, an I2V always.
        text_dtype: of the text encoder; the published one takes 11.4 GB in bfloat16.
        device: that they work on.
    """

    settings: Model
    config: Mapping[str, Any]
    first_frame: bool = True
    text_dtype: torch.dtype = torch.bfloat16
    device: torch.device | None = None
    captioned: bool = False  # no Wan reads frame and caption together

    @property
    def geometry(self) -> LatentGeometry:
        """Of the model's latents."""
        return geometry_of(self.config)

    @property
    def width(self) -> int:
        """Of the text embedding that the model takes."""
        return int(self.config["text_dim"])

    @property
    def negative_prompt(self) -> str:
        """Whose embedding is the null condition."""
        return facts_of(self.config, 0).negative_prompt

    @property
    def _image(self) -> bool:
        return self.config.get("image_dim") is not None

    @property
    def starts(self) -> bool:
        """Whether clips are made from a given first frame."""
        kind = kind_of(self.config)
        return kind == "i2v" or (kind == "ti2v" and self.first_frame)

    def fingerprints(self) -> dict[str, str]:
        """Of the encoders' files, and of how they are used.

        Raises:
            UserError: one of them is not there.
        """
        kind = kind_of(self.config)
        vae = print_of_files(place_of(VAE_2_2 if kind == "ti2v" else VAE_2_1, self.settings, REPOSITORY[kind]))
        codec = value_hash(["wan vae", vae, TILE_ABOVE])
        tokenizer = place_of(TOKENIZER, self.settings, REPOSITORY[kind])
        words = print_of_files(tokenizer.parent if tokenizer.is_file() else tokenizer)
        encoder = print_of_files(place_of(TEXT_ENCODER, self.settings, REPOSITORY[kind]))
        text = value_hash(["umt5", encoder, words, self.negative_prompt, str(self.text_dtype), TOKENS])
        if not self.starts:
            return {"codec": codec, "text": text, "start": ""}
        image = ""
        if kind == "i2v" and self._image:
            processor = optional_place_of(IMAGE_PROCESSOR, self.settings)
            image = print_of_files(place_of(IMAGE_ENCODER, self.settings, REPOSITORY[kind]))
            image += print_of_files(processor) if processor else ""
        return {"codec": codec, "text": text, "start": value_hash([f"{kind} start", codec, image])}

    def load_prompts(self) -> Umt5:
        """The text encoder with its tokenizer."""
        kind = kind_of(self.config)
        return load_prompts(self.settings, kind, self.negative_prompt, self.device, self.text_dtype)

    def load_codec(self) -> WanVae:
        """The VAE."""
        return load_codec(self.settings, kind_of(self.config), self.device)

    def load_start(self, codec: Codec) -> Start | None:
        """What makes the fields of a first frame; None where there is none."""
        if not self.starts:
            return None
        return load_start(self.settings, kind_of(self.config), codec, self._image, self.device)
