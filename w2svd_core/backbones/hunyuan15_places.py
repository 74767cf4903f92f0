"""The parts of a HunyuanVideo 1.5 pipeline beside its transformer, and where they are published."""

from __future__ import annotations

from .pipeline_parts import Part, tokenizer_part

VAE = Part("VAE", "vae", "vae", gigabytes=2.5)
QWEN = Part("text encoder", "text_encoder", "text_encoder", gigabytes=14.1)
TOKENIZER = tokenizer_part()
BYT5 = Part("second text encoder", "text_encoder_2", "text_encoder_2", gigabytes=0.44)
BYT5_TOKENIZER = Part(
    "second tokenizer", "tokenizer_2", "tokenizer_2", ("tokenizer_config.json",), beside="text_encoder_2"
)
SIGLIP = Part("image encoder", "image_encoder", "image_encoder", gigabytes=0.86)
IMAGE_PROCESSOR = Part(
    "image processor", "feature_extractor", "", ("preprocessor_config.json",), beside="image_encoder"
)
