"""A Cosmos' encoders for a preparation: what model it is and where they lie, before anything large is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.codec import Codec
from ..data.file_prints import print_of_files
from ..errors import UserError
from ..files import opened_safetensors
from ..geometry import LatentGeometry
from ..hashing import value_hash
from ..places import parse_lora
from ..settings import Model
from .cosmos_class import PROJECTION
from .cosmos_loading import load_projection
from .cosmos_text import TOKENS, CosmosReason, load_text_encoder
from .cosmos_variants import NEGATIVE, VARIANTS, geometry_of, recognised
from .first_frame import FirstFrame
from .pipeline_parts import Part, folder_of, place_of, tokenizer_part
from .tokenizing import load_tokenizer
from .wan_vae import TILE_ABOVE, WanVae, load_vae
from .weights import sampled_hash

VAE = Part("VAE", "vae", "vae", gigabytes=0.25)
TEXT_ENCODER = Part("text encoder", "text_encoder", "text_encoder", gigabytes=16.6)
TOKENIZER = tokenizer_part()


@dataclass(frozen=True)
class CosmosSource:
    """The encoders of the Cosmos that a recipe names; see `data.encoder_source.EncoderSource`.

    Args:
        settings: where the model and its encoders are, and whether clips start from a first frame.
        config: of the model (`config_at`).
        text_dtype: of the text encoder; the published one takes 16.6 GB in bfloat16.
        device: that they work on.
    """

    settings: Model
    config: Mapping[str, Any]
    text_dtype: torch.dtype = torch.bfloat16
    device: torch.device | None = None

    captioned = False  # the first frame's latents do not depend on the caption
    negative_prompt = NEGATIVE

    @property
    def geometry(self) -> LatentGeometry:
        """Of the model's latents."""
        return geometry_of(self.config)

    @property
    def width(self) -> int:
        """Of the projected text embedding that the model's blocks take."""
        return int(self.config["text_embed_dim"])

    @property
    def starts(self) -> bool:
        """Whether clips are made from a given first frame."""
        return self.settings.first_frame

    @property
    def _repository(self) -> str:
        return (recognised(self.config) or VARIANTS[0]).repository

    def fingerprints(self) -> dict[str, str]:
        """Of the encoders' files, and of how they are used.

        Raises:
            UserError: one of them is not there, or a LoRA would change the projection.
        """
        self._refuse_projecting_loras()
        codec = value_hash(["wan vae", print_of_files(self._place(VAE)), TILE_ABOVE])
        words = print_of_files(folder_of(self._place(TOKENIZER)))
        encoder = print_of_files(self._place(TEXT_ENCODER))
        projection = load_projection(Path(self.settings.path), self.text_dtype)
        projected = "" if projection is None else sampled_hash(projection.state_dict())
        how = [self.negative_prompt, str(self.text_dtype), TOKENS]
        text = value_hash(["cosmos reason", encoder, words, projected, *how])
        return {"codec": codec, "text": text, "start": value_hash(["first", codec]) if self.starts else ""}

    def load_prompts(self) -> CosmosReason:
        """The text encoder with its tokenizer and the model's projection.

        Raises:
            UserError: one of them is not there, broken, or another; or a LoRA would change the projection.
        """
        self._refuse_projecting_loras()
        tokenizer = load_tokenizer(self._place(TOKENIZER))
        projection = load_projection(Path(self.settings.path), self.text_dtype)
        encoder = load_text_encoder(self._place(TEXT_ENCODER), self.text_dtype)
        return CosmosReason(encoder, tokenizer, projection, self.negative_prompt, self.device)

    def load_codec(self) -> WanVae:
        """The VAE: Wan 2.1's, in float32."""
        return WanVae(load_vae(self._place(VAE), torch.float32), self.device)

    def load_start(self, codec: Codec) -> FirstFrame | None:
        """What makes the latents of a first frame; None where clips start from text alone."""
        return FirstFrame(codec, "first") if self.starts else None

    def _refuse_projecting_loras(self) -> None:
        for lora in self.settings.loras:
            _refuse_projecting(parse_lora(lora)[0])

    def _place(self, part: Part) -> Path:
        return place_of(part, self.settings, self._repository)


def _refuse_projecting(path: Path) -> None:
    """Stop at a LoRA of the layer that prompts have gone through when they are kept.

    Raises:
        UserError: it is one, or can't be read.
    """
    with opened_safetensors(path) as file:
        if any(f"{PROJECTION}." in key for key in file.keys()):  # noqa: SIM118 (not a dict)
            raise UserError(
                f"{path} changes {PROJECTION}, which this program applies to prompts beforehand, without it; take a "
                "LoRA that leaves it alone"
            )
