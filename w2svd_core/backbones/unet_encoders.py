"""The encoders of a Stable Diffusion pipeline, as diffusers' AnimateDiff uses them: its VAE and CLIP's text encoder.

The VAE knows single frames alone. Folders of diffusers and transformers only; nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.codec import Codec, by_frame
from ..data.encoder_source import StartEncoder
from ..data.file_prints import print_of_files
from ..errors import UserError
from ..files import dtype_named
from ..geometry import LatentGeometry
from ..hashing import value_hash
from ..settings import Model
from .clip_text import ClipText, load_clip_text
from .tokenizing import load_tokenizer
from .weights import class_in, from_folder, frozen, sampled_hash

TEXT = "model.text_encoder"


class FrameVae:
    """A codec of diffusers' `AutoencoderKL`: the mode of the posterior, times its scaling factor.

    Args:
        vae: an `AutoencoderKL`; it is frozen here.
        patch: latent cells that the model's sizes are multiples of.
    """

    def __init__(self, vae: Any, patch: int, device: torch.device | None = None) -> None:
        space = 2 ** (len(vae.config.block_out_channels) - 1)
        self.geometry = LatentGeometry(vae.config.latent_channels, space, time=1, patch=patch)
        self.vae: Any = frozen(vae, device or torch.device("cpu"))
        self.vae.enable_slicing()  # frame by frame: memory does not grow with the clip

    def encode(self, video: Tensor) -> Tensor:
        """Float32 latents `b c f h w` of unit scale, of a video `b 3 f h w` in [-1, 1], where the video is."""
        self.geometry.latent_shape(*video.shape[2:])
        return by_frame(self._encode, video)

    def decode(self, latents: Tensor) -> Tensor:
        """A float32 video `b 3 f h w` in [-1, 1], where the latents are."""
        return by_frame(self._decode, latents).clamp(-1, 1)

    def _encode(self, frames: Tensor) -> Tensor:
        pixels = frames.squeeze(2).to(self.vae.device, self.vae.dtype)
        found: Tensor = self.vae.encode(pixels).latent_dist.mode().float() * self.vae.config.scaling_factor
        return found.unsqueeze(2).to(frames.device)

    def _decode(self, latents: Tensor) -> Tensor:
        z = latents.squeeze(2).to(self.vae.device, torch.float32) / self.vae.config.scaling_factor
        found: Tensor = self.vae.decode(z.to(self.vae.dtype)).sample.float()
        return found.unsqueeze(2).to(latents.device)

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        seen = {n: w for n, w in self.vae.state_dict().items() if n.startswith(("encoder.", "quant_conv."))}
        return sampled_hash(seen, ["frame vae", self.vae.config.scaling_factor])


@dataclass(frozen=True)
class StableDiffusionSource:
    """The encoders of a pipeline, not loaded yet; see `data.encoder_source.EncoderSource`.

    Attributes:
        settings: where the model and its encoders are.
        geometry: of the latents.
        width: of a prompt's tokens.
        device: that they work on.
    """

    settings: Model
    geometry: LatentGeometry
    width: int
    device: torch.device | None = None
    starts: bool = False
    captioned: bool = False

    def fingerprints(self) -> dict[str, str]:
        """Of the encoders' files.

        Raises:
            UserError: one of them is not there.
        """
        vae, text, words = (print_of_files(self._place(part)) for part in ("vae", "text_encoder", "tokenizer"))
        named = value_hash(["clip text", text, words, self.settings.text_precision])
        return {"codec": value_hash(["frame vae", vae]), "text": named, "start": ""}

    def load_codec(self) -> FrameVae:
        from diffusers import AutoencoderKL

        vae = self._load("vae", "AutoencoderKL", AutoencoderKL.from_pretrained, torch_dtype=torch.float32)
        return FrameVae(vae, self.geometry.patch, self.device)

    def load_prompts(self) -> ClipText:
        model = load_clip_text(self._place("text_encoder"), dtype_named(self.settings.text_precision), TEXT)
        return ClipText(model, load_tokenizer(self._place("tokenizer")), self.device)

    def load_start(self, codec: Codec) -> StartEncoder | None:
        return None

    def _load(self, part: str, class_name: str, load: Any, **arguments: Any) -> Any:
        place = self._place(part)
        if class_in(place) != class_name:
            raise UserError(f"{place} is not a folder of a {class_name}; check model.{part}")
        return from_folder(load, place, class_name, **arguments)

    def _place(self, part: str) -> Path:
        """The folder of a part: what its own setting names, else the one in the pipeline's folder."""
        named, base = getattr(self.settings, part), Path(self.settings.path)
        inside = base.parent if base.name == "unet" or base.is_file() else base
        place = Path(named) if named else inside / part
        if not place.is_dir():
            raise UserError(
                f"{place} is no folder; put diffusers' folder of the {part.replace('_', ' ')} there, or, for the model "
                f"that is trained, name it in model.{part}"
            )
        return place
