"""The parts of a Wan pipeline beside its transformer, and where they are published."""

from __future__ import annotations

from .pipeline_parts import Part, tokenizer_part
from .wan_variants import VARIANTS, Kind

VAE_2_1 = Part("VAE", "vae", "vae", gigabytes=0.25)
VAE_2_2 = Part("VAE", "vae", "vae", gigabytes=1.4)
TEXT_ENCODER = Part("text encoder", "text_encoder", "text_encoder", gigabytes=11.4)
TOKENIZER = tokenizer_part()
IMAGE_ENCODER = Part("image encoder", "image_encoder", "image_encoder", gigabytes=1.3)
IMAGE_PROCESSOR = Part("image processor", "image_processor", "", ("preprocessor_config.json",), beside="image_encoder")
REPOSITORY: dict[Kind, str] = {
    "t2v": VARIANTS[0].repository,
    "i2v": VARIANTS[2].repository,
    "ti2v": VARIANTS[3].repository,
}
