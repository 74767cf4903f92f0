"""A HunyuanVideo's encoders: what kind of model it is and where they lie; each loads when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.codec import Codec
from ..data.file_prints import print_of_files
from ..geometry import LatentGeometry
from ..hashing import value_hash
from ..settings import Model
from .clip_text import ClipText, load_clip_text
from .first_frame import FirstFrame
from .hunyuan_image import Llava, PicturePrompts, ReadFrame, load_llava
from .hunyuan_places import (
    CLIP,
    CLIP_TOKENIZER,
    COMFY,
    IMAGE_ENCODER,
    IMAGE_PROCESSOR,
    LLAMA,
    LLAVA,
    TOKENIZER,
    VAE,
)
from .hunyuan_text import PICTURE_TEMPLATE, TEMPLATE, TOKENS, Llama, TextPrompts, load_llama
from .hunyuan_vae import TILE_ABOVE, HunyuanVae, load_vae
from .hunyuan_variants import FIRST, VARIANTS, geometry_of, kind_of
from .pipeline_parts import Part, folder_of, optional_place_of, place_of
from .tokenizing import load_image_processor, load_tokenizer, load_tokenizer_as_written

EVERY = {"concat": 2, "replace": 4}  # which of the picture's tokens count (diffusers' pipeline)
REPOSITORY = {kind: variant.repository for kind, variant in zip(FIRST, VARIANTS, strict=True)}


@dataclass(frozen=True)
class HunyuanSource:
    """The encoders of the HunyuanVideo that a recipe names; see `data.encoder_source.EncoderSource`.

    Args:
        settings: where the model and its encoders are.
        config: of the model (`config_at`).
        text_dtype: of the text encoders; LLaMA takes 15 GB in bfloat16.
        device: that they work on.
    """

    settings: Model
    config: Mapping[str, Any]
    text_dtype: torch.dtype = torch.bfloat16
    device: torch.device | None = None

    @property
    def geometry(self) -> LatentGeometry:
        """Of the model's latents."""
        return geometry_of(self.config)

    @property
    def width(self) -> int:
        """Of a prompt's tokens."""
        return int(self.config["text_embed_dim"])

    @property
    def starts(self) -> bool:
        """Whether clips are made from a given first frame."""
        return kind_of(self.config) != "t2v"

    @property
    def captioned(self) -> bool:
        """LLaVA reads the first frame together with the caption."""
        return self.starts

    def fingerprints(self) -> dict[str, str]:
        """Of the encoders' files, and of how they are used.

        Raises:
            UserError: one of them is not there.
        """
        codec = value_hash(["hunyuan vae", print_of_files(self._place(VAE)), TILE_ABOVE])
        words = [folder_of(self._place(part)) for part in (TOKENIZER, CLIP_TOKENIZER)]
        encoders = [self._place(part) for part in (LLAVA if self.starts else LLAMA, CLIP)]
        prints = [print_of_files(place) for place in (*words, *encoders)]
        used = [str(self.text_dtype), TOKENS]
        if not self.starts:
            return {"codec": codec, "text": value_hash(["llama, clip", prints, used, TEMPLATE]), "start": ""}
        image = [place for place in (self._image_file(), optional_place_of(IMAGE_PROCESSOR, self.settings)) if place]
        prints += [print_of_files(place) for place in image]
        kind = kind_of(self.config)
        text = value_hash(["llava, clip", prints, used, PICTURE_TEMPLATE, EVERY[kind]])
        return {"codec": codec, "text": text, "start": value_hash([f"{kind} start", codec, text])}

    def load_codec(self) -> HunyuanVae:
        """The VAE, in float32.

        Raises:
            UserError: it is not there, broken, or no VAE of HunyuanVideo.
        """
        return HunyuanVae(load_vae(self._place(VAE), torch.float32), self.device)

    def load_prompts(self) -> TextPrompts | PicturePrompts:
        """The text encoders with their tokenizers; LLaVA, which reads pictures too, only when it is needed.

        Raises:
            UserError: one of them is not there, broken, or another.
        """
        encoder = load_clip_text(self._place(CLIP), self.text_dtype, f"model.{CLIP.setting}")
        words = load_tokenizer(self._place(CLIP_TOKENIZER))
        clip = ClipText(encoder, words, self.device, "pooled", f"model.{CLIP_TOKENIZER.setting}")
        if self.starts:
            return PicturePrompts(self._load_llava, clip, self.width)
        llama = load_llama(self._place(LLAMA), self.text_dtype)
        return TextPrompts(Llama(llama, load_tokenizer_as_written(self._place(TOKENIZER)), self.device), clip)

    def load_start(self, codec: Codec) -> ReadFrame | None:
        """What makes the fields of a first frame and its caption; None where there is none.

        Raises:
            UserError: LLaVA is not there, broken, or another.
        """
        kind = kind_of(self.config)
        return ReadFrame(FirstFrame(codec, *FIRST[kind]), self._load_llava()) if self.starts else None

    def _load_llava(self) -> Llava:
        words = load_tokenizer_as_written(self._place(TOKENIZER))
        model: Any = load_llava(self._place(LLAVA), self._image_file(), words, self.text_dtype)
        size = model.config.vision_config.image_size
        processor = load_image_processor(optional_place_of(IMAGE_PROCESSOR, self.settings), size)
        return Llava(model, words, processor, EVERY[kind_of(self.config)], self.device)

    def _image_file(self) -> Path | None:
        """The file of what reads pictures, beside a text encoder in one file; a folder of LLaVA holds all."""
        return place_of(IMAGE_ENCODER, self.settings, COMFY) if self._place(LLAVA).is_file() else None

    def _place(self, part: Part) -> Path:
        return place_of(part, self.settings, REPOSITORY[kind_of(self.config)])
