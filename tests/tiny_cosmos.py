"""A tiny Cosmos-Predict2.5 pipeline of the real classes, on disk as people have it: a diffusers folder.

Everything is random but always the same, and made once in a session. The VAE is Wan's, and so is how it is made.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from kind import Asked
from tiny_wan import CORPUS, new_vae, seeded, shaken
from torch import Tensor

from w2svd_core.backbones import cosmos_keys
from w2svd_core.backbones.cosmos_class import new_model
from w2svd_core.files import write_safetensors
from w2svd_core.settings import Model

KINDS = ("t2v", "i2v")  # the same weights: one of them is given the first frame
LAYERS, HIDDEN = 2, 12  # of the text encoder
RAW, TEXT = LAYERS * HIDDEN, 16  # widths of a prompt's tokens, before and after the model's projection
SIZE = (16, 32)  # pixels: 1 x 2 tokens
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>")
CHAT = (  # the shape of Qwen's own: each turn between its marks
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
)


@dataclass(frozen=True)
class TinyCosmos:
    """One pipeline.

    Attributes:
        kind: t2v or i2v.
        folder: of the diffusers pipeline.
        files: the same transformer as a single file with NVIDIA's names, and nothing in it but tensors.
    """

    kind: str
    folder: Path
    files: Mapping[str, Path]
    size: tuple[int, int] = SIZE

    def model(self, **changes: Any) -> Model:
        """The section of a recipe that names the pipeline."""
        named = {"family": "cosmos", "path": str(self.folder), "first_frame": self.kind == "i2v"}
        return Model(**{**named, **changes})

    def model_of_files(self, **changes: Any) -> Model:
        """The section of a recipe that names the single file; everything else is a folder."""
        parts = {part: str(self.folder / part) for part in ("vae", "text_encoder", "tokenizer")}
        return self.model(**{"path": str(self.files["transformer"]), **parts, **changes})

    def pipeline(self, image: bool | None = None) -> Any:
        """diffusers' own pipeline, round parts that are read from the folder.

        Its safety checker can't be had without a package and gigabytes of its own, and it refuses to be built without
        one; this one finds everything safe. It makes clips from text and from a picture alike.
        """
        from diffusers import (
            AutoencoderKLWan,
            Cosmos2_5_PredictBasePipeline,
            CosmosTransformer3DModel,
            FlowMatchEulerDiscreteScheduler,
        )
        from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

        made = {
            "transformer": CosmosTransformer3DModel,
            "vae": AutoencoderKLWan,
            "text_encoder": Qwen2_5_VLForConditionalGeneration,
            "tokenizer": AutoTokenizer,
        }
        parts = {name: kind.from_pretrained(self.folder / name) for name, kind in made.items()}
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(self.folder / "scheduler")
        pipe = Cosmos2_5_PredictBasePipeline(**parts, scheduler=scheduler, safety_checker=AllSafe())
        pipe.set_progress_bar_config(disable=True)
        _lend_torchvision(sys.modules[type(pipe).__module__])
        return pipe

    def reference(self, pipeline: Any, asked: Asked) -> Tensor:
        """The latents that the pipeline makes; its guidance is c + s(c - u), and none up to s = 1."""
        assert asked.guidance == 1 or asked.guidance > 2
        height, width = self.size
        found: Tensor = pipeline(
            prompt=list(asked.prompts),
            negative_prompt=[asked.negative] * len(asked.prompts),
            height=height,
            width=width,
            num_frames=asked.frames,
            num_inference_steps=asked.steps,
            guidance_scale=asked.guidance - 1,
            latents=asked.noise.clone(),
            output_type="latent",
            image=asked.picture,
        ).frames
        return found


class AllSafe:
    """Stands where the pipeline wants its safety checker."""

    def to(self, *_: Any) -> AllSafe:
        return self

    def check_text_safety(self, _: str) -> bool:
        return True


def _lend_torchvision(pipeline: Any) -> None:
    """The one thing that the pipeline asks torchvision for, by torch: a picture as `c h w` in 0..1."""
    import numpy as np

    if hasattr(pipeline, "torchvision"):
        return

    def to_tensor(image: Any) -> Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

    functional = SimpleNamespace(to_tensor=to_tensor)
    pipeline.torchvision = SimpleNamespace(transforms=SimpleNamespace(functional=functional))


@functools.cache
def tiny_cosmos(kind: str = "t2v") -> TinyCosmos:
    """The tiny pipeline of a kind; its folder is gone when the program ends."""
    root = _on_disk()
    return TinyCosmos(kind, root / "pipeline", {"transformer": root / "files" / "transformer.safetensors"})


@functools.cache
def _on_disk() -> Path:
    """Part by part, as the pipeline object itself can't be saved with a stand-in for its safety checker."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    root = Path(tempfile.mkdtemp(prefix="tiny-cosmos-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    parts: dict[str, Any] = {
        "transformer": new_transformer(),
        "vae": new_vae("t2v"),
        "text_encoder": new_text_encoder(),
        "tokenizer": new_tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
    }
    for name, part in parts.items():
        part.save_pretrained(root / "pipeline" / name)
    state = cosmos_keys.to_native(parts["transformer"].state_dict(), "net.")
    write_safetensors(root / "files" / "transformer.safetensors", state)
    return root


def new_transformer(**changes: Any) -> Any:
    """One head of 128 channels, as wide as the published ones', so that a file needs not say its sizes."""
    sizes: dict[str, Any] = {
        "in_channels": 17, "out_channels": 16, "num_attention_heads": 1, "attention_head_dim": 128, "num_layers": 2,
        "mlp_ratio": 0.5, "text_embed_dim": TEXT, "adaln_lora_dim": 8, "patch_size": [1, 2, 2],
        "rope_scale": [1.0, 3.0, 3.0], "extra_pos_embed_type": None, "use_crossattn_projection": True,
        "crossattn_proj_in_channels": RAW, "encoder_hidden_states_channels": TEXT,
    }  # fmt: skip
    with seeded(1):
        return shaken(new_model(sizes | changes))


def new_text_encoder() -> Any:
    """Qwen2.5-VL with eyes that nobody looks through."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    words: dict[str, Any] = {
        "vocab_size": 512, "hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": LAYERS,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1024,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]}, "bos_token_id": 0, "eos_token_id": 2,
    }  # fmt: skip
    eyes = {
        "depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": HIDDEN,
        "fullatt_block_indexes": [0], "window_size": 28, "patch_size": 14,
    }  # fmt: skip
    marks = {"image_token_id": 500, "video_token_id": 501, "vision_start_token_id": 502, "vision_end_token_id": 503}
    with seeded(3):
        return shaken(
            Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=words, vision_config=eyes, **marks))
        )


def new_tokenizer() -> Any:
    """Trained on the spot: pieces of bytes, as Qwen's, with a chat template."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(CORPUS * 4, vocab_size=400, special_tokens=list(SPECIAL), show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, pad_token=SPECIAL[0], eos_token=SPECIAL[2], unk_token=SPECIAL[3],
        chat_template=CHAT, padding_side="right",
    )  # fmt: skip


def published_scheduler() -> Any:
    """As the published pipeline's: Karras' levels, made into those of a flow."""
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(
        use_karras_sigmas=True, use_flow_sigmas=True, prediction_type="flow_prediction", sigma_max=200.0,
        sigma_min=0.01,
    )  # fmt: skip
