"""Tiny pipelines of the real classes, on disk as people have them: a diffusers folder, and native single files.

Everything is random but always the same, and made once in a session.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kind import Asked
from torch import Tensor, nn

from w2svd_core.backbones import wan_keys
from w2svd_core.backbones.wan_vae_keys import native_name
from w2svd_core.files import write_safetensors
from w2svd_core.settings import Model

KINDS = ("t2v", "i2v", "ti2v")
TEXT = 16  # width of a prompt's tokens
IMAGE = 160  # width of CLIP's patches: two heads
SIZES = {"t2v": (16, 32), "i2v": (16, 32), "ti2v": (32, 64)}  # pixels: 1 x 2 tokens
FRAMES = 9  # 3 latent frames
PROMPTS = ("a man with red hair talks", "a woman with glasses & a blue hat nods   slowly,\tthen smiles", "")
CORPUS = [*PROMPTS, "a person with green eyes looks up", "blurry, grey, worst quality"]


@dataclass(frozen=True)
class TinyWan:
    """One pipeline.

    Attributes:
        kind: t2v, i2v or ti2v.
        folder: of the diffusers pipeline.
        files: the same weights as single files, by the names of the pipeline's folders.
    """

    kind: str
    folder: Path
    files: Mapping[str, Path]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a clip of two tokens a frame."""
        return SIZES[self.kind]

    def model(self, **changes: Any) -> Model:
        """The section of a recipe that names the pipeline."""
        return Model(**{"path": str(self.folder), **changes})

    def model_of_files(self, **changes: Any) -> Model:
        """The section of a recipe that names the single files; a tokenizer is always a folder."""
        named = {part: str(path) for part, path in self.files.items() if part != "transformer"}
        named["tokenizer"] = str(self.folder / "tokenizer")
        return Model(**{"path": str(self.files["transformer"]), **named, **changes})

    def pipeline(self, image: bool | None = None) -> Any:
        """diffusers' own pipeline; with `image`, the one that starts from a picture."""
        from diffusers import WanImageToVideoPipeline, WanPipeline

        image = self.kind == "i2v" if image is None else image
        made = WanImageToVideoPipeline if image else WanPipeline
        lacking = {"image_encoder": None, "image_processor": None} if image and self.kind != "i2v" else {}
        found = made.from_pretrained(self.folder, local_files_only=True, **lacking)
        found.set_progress_bar_config(disable=True)
        return found

    def reference(self, pipeline: Any, asked: Asked) -> Tensor:
        """The latents that the pipeline makes."""
        height, width = self.size
        found: Tensor = pipeline(
            prompt=list(asked.prompts),
            negative_prompt=[asked.negative] * len(asked.prompts),
            height=height,
            width=width,
            num_frames=asked.frames,
            num_inference_steps=asked.steps,
            guidance_scale=asked.guidance,
            latents=asked.noise.clone(),
            output_type="latent",
            **({} if asked.picture is None else {"image": asked.picture}),
        ).frames
        return found


@functools.cache
def tiny_wan(kind: str = "t2v") -> TinyWan:
    """The tiny pipeline of a kind; its folder is gone when the program ends."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanPipeline

    root = Path(tempfile.mkdtemp(prefix=f"tiny-wan-{kind}-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    parts: dict[str, Any] = {
        "transformer": new_transformer(kind),
        "vae": new_vae(kind),
        "text_encoder": new_text_encoder(),
        "tokenizer": new_tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
    }
    if kind == "i2v":
        parts |= {"image_encoder": new_image_encoder(), "image_processor": new_image_processor()}
    made = WanImageToVideoPipeline if kind == "i2v" else WanPipeline
    folder = root / "pipeline"
    made(**parts, expand_timesteps=kind == "ti2v").save_pretrained(folder, safe_serialization=True)
    return TinyWan(kind, folder, write_native(parts, root / "files"))


def write_native(parts: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """The models as the single files that ComfyUI reads, without a word on their sizes."""
    states = {
        "transformer": wan_keys.to_native(parts["transformer"].state_dict(), "model.diffusion_model."),
        "vae": native_vae(parts["vae"]),
        "text_encoder": native_text(parts["text_encoder"]),
    }
    if "image_encoder" in parts:
        states["image_encoder"] = native_image(parts["image_encoder"])
    paths = {name: folder / f"{name}.safetensors" for name in states}
    for name, state in states.items():
        write_safetensors(paths[name], state)
    return paths


def native_vae(vae: Any) -> dict[str, Tensor]:
    """Wan's own names."""
    return {native_name(name, vae.config.is_residual): tensor for name, tensor in vae.state_dict().items()}


def native_text(encoder: nn.Module) -> dict[str, Tensor]:
    """transformers' names, the table of words once, and the tokenizer's bytes, as in ComfyUI's files."""
    state = {name: tensor for name, tensor in encoder.state_dict().items() if name != "encoder.embed_tokens.weight"}
    return {**state, "spiece_model": torch.zeros(8, dtype=torch.uint8)}


def native_image(encoder: nn.Module) -> dict[str, Tensor]:
    """The names that transformers 4 gave it, and the projection that Wan does not use."""
    state = {f"vision_model.{n.removeprefix('vision_model.')}": t for n, t in encoder.state_dict().items()}
    return {**state, "visual_projection.weight": torch.zeros(8, IMAGE)}


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def shaken(model: nn.Module) -> Any:
    """The model with norms and biases off their rest, so that no two of them can be mistaken for each other."""
    for parameter in model.parameters():
        if parameter.ndim == 1 or min(parameter.shape) == 1 or parameter.shape[0] == parameter.numel():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def new_transformer(kind: str) -> Any:
    from diffusers import WanTransformer3DModel

    channels = {"t2v": (16, 16), "i2v": (36, 16), "ti2v": (48, 48)}[kind]
    image = {"image_dim": IMAGE, "added_kv_proj_dim": 128} if kind == "i2v" else {}
    with seeded(1):
        return shaken(
            WanTransformer3DModel(
                num_attention_heads=1, attention_head_dim=128, num_layers=2, text_dim=TEXT, freq_dim=32, ffn_dim=64,
                in_channels=channels[0], out_channels=channels[1], **image,
            )
        )  # fmt: skip


def new_vae(kind: str) -> Any:
    from diffusers import AutoencoderKLWan

    from w2svd_core.backbones.class_config import bundled_config

    name = "wan2.2-vae" if kind == "ti2v" else "wan2.1-vae"
    with seeded(2):
        return shaken(AutoencoderKLWan(**{**bundled_config(name), "base_dim": 2, "decoder_base_dim": 3}))


def new_text_encoder() -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    with seeded(3):
        return shaken(
            UMT5EncoderModel(UMT5Config(vocab_size=256, d_model=TEXT, d_kv=4, d_ff=24, num_layers=2, num_heads=3))
        )


def new_tokenizer() -> Any:
    """Trained on the spot: pieces of words with their scores, wrapped as UMT5's own is."""
    from tokenizers import SentencePieceUnigramTokenizer
    from transformers import T5Tokenizer

    trained = SentencePieceUnigramTokenizer()
    special = ["<pad>", "</s>", "<unk>"]
    trained.train_from_iterator(CORPUS * 4, vocab_size=120, special_tokens=special, unk_token="<unk>")
    words = trained.get_vocab()
    pieces = sorted(set(words) - set(special))  # the trainer's order is not always the same
    scores = [(piece, -float(len(pieces)) / (1 + len(piece))) for piece in pieces]
    return T5Tokenizer(vocab=[(word, 0.0) for word in special] + scores, extra_ids=0)


def new_image_encoder() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": IMAGE, "num_attention_heads": 2, "intermediate_size": 48, "num_hidden_layers": 3}
    with seeded(4):
        return shaken(CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=28, patch_size=14, hidden_act="gelu")))


def new_image_processor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})


def picture(height: int, width: int, seed: int = 0) -> Any:
    """A PIL picture: a smooth one with some noise."""
    from PIL import Image

    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 4, generator=rng)
    smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0]
    pixels = (255 * (0.9 * smooth + 0.1 * torch.rand(3, height, width, generator=rng))).byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def video_of(tiny: TinyWan, frames: int = FRAMES, rows: int = 1, seed: int = 0) -> Tensor:
    """Moving smooth colours, `rows 3 frames h w` in [-1, 1]."""
    coarse = torch.rand(rows, 3, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return 2 * nn.functional.interpolate(coarse, size=(frames, *tiny.size), mode="trilinear") - 1
