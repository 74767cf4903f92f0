"""Tiny HunyuanVideo 1.5 pipelines of the real classes, on disk as people have them: a diffusers folder, single files.

Everything is random but always the same, and made once in a session. The tokenizer is trained on the spot in such a way
that what stands before a prompt takes as many tokens as the published one makes of it.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kind import Asked
from tiny_hunyuan import whole_words
from tiny_wan import seeded, shaken
from torch import Tensor, nn

from w2svd_core.backbones import hunyuan15_keys
from w2svd_core.backbones.hunyuan15_text import SYSTEM
from w2svd_core.backbones.hunyuan15_vae import makers_name
from w2svd_core.files import write_safetensors
from w2svd_core.settings import Model

KINDS = ("t2v", "i2v")
TEXT, GLYPHS, PATCH = 128, 12, 72  # widths of tokens: of Qwen2.5-VL, of ByT5, of SigLIP
SIZE = (16, 32)  # pixels: 1 x 2 tokens
TARGET = 23  # pixels each way of a clip of this size, were it square
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT = (  # the shape of Qwen's own: each turn between its marks
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COLOURS = ("<color-0>", "<en-font-0>")  # words that Glyph-SDXL added to ByT5's letters


@dataclass(frozen=True)
class TinyHunyuan15:
    """One pipeline.

    Attributes:
        kind: t2v or i2v.
        folder: of the diffusers pipeline.
        files: the same weights as single files, by the settings that name them.
    """

    kind: str
    folder: Path
    files: Mapping[str, Path]
    size: tuple[int, int] = SIZE

    def model(self, **changes: Any) -> Model:
        """The section of a recipe that names the pipeline."""
        named = {"family": "hunyuan_video15", "path": str(self.folder), "first_frame": self.kind == "i2v"}
        return Model(**{**named, **changes})

    def model_of_files(self, **changes: Any) -> Model:
        """The section of a recipe that names the single files; a tokenizer is always a folder."""
        named = {part: str(path) for part, path in self.files.items() if part != "transformer"}
        named |= {name: str(self.folder / name) for name in ("tokenizer", "tokenizer_2")}
        return self.model(**{"path": str(self.files["transformer"]), **named, **changes})

    def pipeline(self, image: bool | None = None) -> Any:
        """diffusers' own pipeline."""
        from diffusers import HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Pipeline

        made = HunyuanVideo15Pipeline if self.kind == "t2v" else HunyuanVideo15ImageToVideoPipeline
        found = made.from_pretrained(self.folder, local_files_only=True)
        found.set_progress_bar_config(disable=True)
        return found

    def reference(self, pipeline: Any, asked: Asked) -> Tensor:
        """The latents that the pipeline makes; from a picture it takes the clip's size from that."""
        from diffusers import ClassifierFreeGuidance

        pipeline.guider = ClassifierFreeGuidance(guidance_scale=asked.guidance)
        height, width = self.size
        sized = {"height": height, "width": width} if asked.picture is None else {"image": asked.picture}
        found: Tensor = pipeline(
            prompt=list(asked.prompts),
            negative_prompt=[asked.negative] * len(asked.prompts),
            **sized,
            num_frames=asked.frames,
            num_inference_steps=asked.steps,
            latents=asked.noise.clone(),
            output_type="latent",
        ).frames
        return found


@functools.cache
def tiny_hunyuan15(kind: str = "t2v") -> TinyHunyuan15:
    """The tiny pipeline of a kind; its folder is gone when the program ends."""
    from diffusers import (
        ClassifierFreeGuidance,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideo15ImageToVideoPipeline,
        HunyuanVideo15Pipeline,
    )

    root = Path(tempfile.mkdtemp(prefix=f"tiny-hunyuan15-{kind}-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    words, letters = new_tokenizer(), new_letters()
    parts: dict[str, Any] = {
        "transformer": new_transformer(kind),
        "vae": new_vae(),
        "text_encoder": new_qwen(len(words)),
        "tokenizer": words,
        "text_encoder_2": new_byt5(len(letters)),
        "tokenizer_2": letters,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
        "guider": ClassifierFreeGuidance(guidance_scale=6.0),
    }
    if kind == "i2v":
        parts |= {"image_encoder": new_siglip(), "feature_extractor": new_image_processor()}
    made = HunyuanVideo15Pipeline if kind == "t2v" else HunyuanVideo15ImageToVideoPipeline
    made(**parts).save_pretrained(root / "pipeline", safe_serialization=True)
    return TinyHunyuan15(kind, root / "pipeline", write_native(parts, root / "files"))


def write_native(parts: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """The models as the single files that ComfyUI reads, without a word on their sizes."""
    states: dict[str, Mapping[str, Tensor]] = {
        "transformer": hunyuan15_keys.to_native(parts["transformer"].state_dict()),
        "vae": {makers_name(name): tensor for name, tensor in parts["vae"].state_dict().items()},
        "text_encoder": native_qwen(parts["text_encoder"]),
        "text_encoder_2": {
            name: tensor
            for name, tensor in parts["text_encoder_2"].state_dict().items()
            if name != "encoder.embed_tokens.weight"  # one table under two names
        },
    }
    if "image_encoder" in parts:
        siglip = parts["image_encoder"].state_dict()
        states["image_encoder"] = {f"vision_model.{n.removeprefix('vision_model.')}": t for n, t in siglip.items()}
    paths = {name: folder / f"{name}.safetensors" for name in states}
    for name, state in states.items():
        write_safetensors(paths[name], state)
    return paths


def native_qwen(encoder: nn.Module) -> dict[str, Tensor]:
    """As a whole Qwen2.5-VL's file has it, with some of its eyes and its head."""
    state = {f"model.{name}": tensor for name, tensor in encoder.state_dict().items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    state["visual.merger.ln_q.weight"] = state["model.norm.weight"].clone()
    return state


def new_transformer(kind: str) -> Any:
    """One head of 128 channels, as wide as the published ones', so that a file needs not say its sizes."""
    from diffusers import HunyuanVideo15Transformer3DModel

    with seeded(1):
        return shaken(
            HunyuanVideo15Transformer3DModel(
                in_channels=65, out_channels=32, num_attention_heads=1, attention_head_dim=128, num_layers=2,
                num_refiner_layers=1, mlp_ratio=1.0, text_embed_dim=TEXT, text_embed_2_dim=GLYPHS,
                image_embed_dim=PATCH, target_size=TARGET, task_type=kind,
            )
        )  # fmt: skip


def new_vae() -> Any:
    from diffusers import AutoencoderKLHunyuanVideo15

    with seeded(2):
        return shaken(AutoencoderKLHunyuanVideo15(block_out_channels=(16, 16, 32, 64, 64), layers_per_block=1))


def new_qwen(words: int) -> Any:
    from transformers import Qwen2_5_VLTextModel
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig

    config = Qwen2_5_VLTextConfig(
        vocab_size=words, hidden_size=TEXT, intermediate_size=24, num_hidden_layers=4, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=128000, initializer_range=0.3,
        rope_parameters={"rope_theta": 1000000.0, "rope_type": "default", "mrope_section": [16, 24, 24]},
    )  # fmt: skip
    with seeded(3):
        return shaken(Qwen2_5_VLTextModel(config))


def new_byt5(words: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=words, d_model=GLYPHS, d_kv=8, d_ff=16, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    with seeded(4):
        return shaken(T5EncoderModel(config))


def new_siglip() -> Any:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=PATCH, num_attention_heads=1, intermediate_size=48, num_hidden_layers=2, image_size=28,
        patch_size=14,
    )  # fmt: skip
    with seeded(5):
        return shaken(SiglipVisionModel(config))


def new_tokenizer() -> Any:
    """Qwen's way, knowing the words of the chat as wholes and all others by their letters."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=whole_words(["system", "user", "assistant", f"\n{SYSTEM}"], SPECIAL), pad_token=SPECIAL[0],
        eos_token=SPECIAL[2], chat_template=CHAT, padding_side="right",
    )  # fmt: skip


def new_letters() -> Any:
    """ByT5's, with some of the words that were added to it."""
    from transformers import ByT5Tokenizer

    made = ByT5Tokenizer()
    made.add_tokens(list(COLOURS), special_tokens=True)
    return made


def new_image_processor() -> Any:
    from transformers import SiglipImageProcessor

    return SiglipImageProcessor(size={"height": 28, "width": 28})
