"""A HunyuanVideo 1.5's encoders: where they lie; each loads when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.codec import Codec
from ..data.file_prints import print_of_files
from ..errors import UserError
from ..geometry import LatentGeometry
from ..hashing import value_hash
from ..settings import Model
from .first_frame import FirstFrame
from .hunyuan15_glyphs import TOKENS as LETTERS
from .hunyuan15_glyphs import Glyphs, load_byt5
from .hunyuan15_image import FrameAndPatches, Siglip, load_siglip
from .hunyuan15_places import BYT5, BYT5_TOKENIZER, IMAGE_PROCESSOR, QWEN, SIGLIP, TOKENIZER, VAE
from .hunyuan15_text import SYSTEM, TOKENS, Qwen, TwoTexts, load_qwen
from .hunyuan15_vae import TILE_ABOVE, Hunyuan15Vae, load_vae
from .hunyuan15_variants import VARIANTS, geometry_of, recognised
from .pipeline_parts import Part, folder_of, optional_place_of, place_of
from .tokenizing import load_siglip_processor, load_tokenizer


@dataclass(frozen=True)
class Hunyuan15Source:
    """The encoders of the HunyuanVideo 1.5 that a recipe names; see `data.encoder_source.EncoderSource`.

    Args:
        settings: where the model and its encoders are, and whether clips start from a first frame.
        config: of the model (`config_at`).
        text_dtype: of the text encoders; Qwen2.5-VL takes 14.1 GB in bfloat16.
        device: that they work on.

    Raises:
        UserError: clips are to start from a first frame, and the model is for text alone.
    """

    settings: Model
    config: Mapping[str, Any]
    text_dtype: torch.dtype = torch.bfloat16
    device: torch.device | None = None

    captioned = False  # what is shown of the first frame does not depend on the caption

    def __post_init__(self) -> None:
        if self.starts and self.config["task_type"] == "t2v":
            raise UserError(
                f"{self.settings.path} makes clips from text alone, as its config says (task_type t2v); give it no "
                f"image and set model.first_frame to false, or take {VARIANTS[1].repository}"
            )

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
        return self.settings.first_frame

    @property
    def _repository(self) -> str:
        return (recognised(self.config) or VARIANTS[int(self.starts)]).repository

    def fingerprints(self) -> dict[str, str]:
        """Of the encoders' files, and of how they are used.

        Raises:
            UserError: one of them is not there.
        """
        codec = value_hash(["hunyuan 1.5 vae", print_of_files(self._place(VAE)), TILE_ABOVE])
        places = [folder_of(self._place(part)) for part in (TOKENIZER, BYT5_TOKENIZER)]
        prints = [print_of_files(place) for place in (*places, self._place(QWEN), self._place(BYT5))]
        text = value_hash(["qwen, byt5", prints, str(self.text_dtype), SYSTEM, TOKENS, LETTERS])
        if not self.starts:
            return {"codec": codec, "text": text, "start": ""}
        processor = optional_place_of(IMAGE_PROCESSOR, self.settings)
        image = print_of_files(self._place(SIGLIP)) + (print_of_files(processor) if processor else "")
        return {"codec": codec, "text": text, "start": value_hash(["frame and patches", codec, image])}

    def load_codec(self) -> Hunyuan15Vae:
        """The VAE, in float32.

        Raises:
            UserError: it is not there, broken, or no VAE of HunyuanVideo 1.5.
        """
        return Hunyuan15Vae(load_vae(self._place(VAE), torch.float32), self.device)

    def load_prompts(self) -> TwoTexts:
        """The text encoders with their tokenizers.

        Raises:
            UserError: one of them is not there, broken, or another.
        """
        letters = load_tokenizer(self._place(BYT5_TOKENIZER))
        glyphs = Glyphs(load_byt5(self._place(BYT5), self.text_dtype), letters, self.device)
        words = load_tokenizer(self._place(TOKENIZER))
        return TwoTexts(Qwen(load_qwen(self._place(QWEN), self.text_dtype), words, self.device), glyphs)

    def load_start(self, codec: Codec) -> FrameAndPatches | None:
        """What makes the fields of a first frame; None where clips start from text alone.

        Raises:
            UserError: the image encoder is not there, broken, or another.
        """
        if not self.starts:
            return None
        model: Any = load_siglip(self._place(SIGLIP), torch.float32)
        processor = load_siglip_processor(optional_place_of(IMAGE_PROCESSOR, self.settings), model.config.image_size)
        return FrameAndPatches(FirstFrame(codec), Siglip(model, processor, self.device))

    def _place(self, part: Part) -> Path:
        return place_of(part, self.settings, self._repository)
