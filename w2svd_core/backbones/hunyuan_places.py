"""The parts of a HunyuanVideo pipeline beside its transformer, and where they are published."""

from __future__ import annotations

from .pipeline_parts import Part, tokenizer_part

VAE = Part("VAE", "vae", "vae", gigabytes=0.5)
LLAMA = Part("text encoder", "text_encoder", "text_encoder", gigabytes=15)
LLAVA = Part("text encoder", "text_encoder", "text_encoder", gigabytes=16.7)
TOKENIZER = tokenizer_part()
CLIP = Part("second text encoder", "text_encoder_2", "text_encoder_2", gigabytes=0.25)
CLIP_TOKENIZER = Part(
    "second tokenizer", "tokenizer_2", "tokenizer_2", ("tokenizer.json", "vocab.json"), beside="text_encoder_2"
)
IMAGE_PROCESSOR = Part("image processor", "image_processor", "", ("preprocessor_config.json",), beside="text_encoder")
# LLaVA's eyes in a file of their own, which only ComfyUI's files need; a folder of LLaVA has them inside
IMAGE_ENCODER = Part("image encoder", "split_files/clip_vision", "image_encoder", gigabytes=0.65)
COMFY = "Comfy-Org/HunyuanVideo_repackaged"
