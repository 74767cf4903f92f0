"""What HunyuanVideo 1.5 is shown of a first frame: its latents, and what SigLIP makes of each of its patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.codec import to_pixels
from ..errors import UserError
from ..hashing import value_hash
from .class_config import bundled_config
from .first_frame import FirstFrame
from .weights import Header, Shapes, class_in, from_file, from_folder, frozen, hollow, sampled_hash, strip

CLASSES = ("SiglipVisionModel", "SiglipModel")
PUBLISHED = "siglip-so400m"
PREFIX = "vision_model."  # of transformers 4's names; transformers 5 names them without
LAYERS = "encoder.layers."
LAST = "channels_last"  # how pixels lie


class Siglip:
    """SigLIP's embedding of a picture: what its last layer makes of every patch, normalised.

    Args:
        model: a `SiglipVisionModel`; it is frozen here.
        processor: its image processor, which resizes and normalises.
    """

    def __init__(self, model: Any, processor: Any, device: torch.device | None = None) -> None:
        self.model: Any = frozen(model, device or torch.device("cpu"))
        self.processor = processor

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """(b, patches, width) float32 of pictures `b 3 1 h w` in [-1, 1], where they are."""
        read = self.processor(images=list(to_pixels(pictures)[:, 0]), return_tensors="pt", input_data_format=LAST)
        hidden = self.model(read["pixel_values"].to(self.model.device, self.model.dtype)).last_hidden_state
        return torch.as_tensor(hidden, dtype=torch.float32, device=pictures.device)

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return sampled_hash(self.model.state_dict(), ["siglip", value_hash(self.processor.to_json_string())])


class FrameAndPatches:
    """Image-to-video's start: the latents of the first frame alone, and SigLIP's patches of it."""

    def __init__(self, frame: FirstFrame, images: Siglip) -> None:
        self.frame, self.images = frame, images

    def encode(self, first: Tensor, frames: int, captions: Sequence[str]) -> dict[str, Tensor]:
        """`start` (b, c, 1, h, w) and `image` (b, patches, width), of a first frame `b 3 1 h w` in [-1, 1]."""
        return {**self.frame.encode(first, frames, captions), "image": self.images.encode(first)}

    def fingerprint(self) -> str:
        return value_hash([self.frame.fingerprint(), self.images.fingerprint()])


def load_siglip(place: Path, dtype: torch.dtype) -> nn.Module:
    """A `SiglipVisionModel` from a folder, or from one file with transformers' names (ComfyUI's sigclip_vision).

    Raises:
        UserError: broken, or another image encoder.
    """
    from transformers import SiglipVisionModel

    what = "SigLIP vision model"
    model: nn.Module
    if place.is_dir():
        if class_in(place) not in CLASSES:
            raise UserError(f"{place} is not a folder of a {CLASSES[0]}; check model.image_encoder")
        model = from_folder(SiglipVisionModel.from_pretrained, place, what, dtype=dtype)
    else:
        model = from_file(place, what, _plan, lambda name: dtype)
    return model


def _plan(shapes: Shapes, header: Header) -> tuple[nn.Module, Mapping[str, str]]:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    own = strip(shapes, (PREFIX,))
    config = SiglipVisionConfig(**siglip_sizes({name: shapes[key] for name, key in own.items()}))
    model = hollow(lambda: SiglipVisionModel(config))
    wanted = {name: name.removeprefix(PREFIX) for name in model.state_dict()}
    return model, {name: own[there] for name, there in wanted.items() if there in own}


def siglip_sizes(shapes: Shapes) -> dict[str, Any]:
    """The arguments of a `SiglipVisionConfig`, from the shapes of its tensors; the rest as published (so400m, 384).

    Raises:
        UserError: it is no SigLIP vision model of this kind.
    """
    usual = bundled_config(PUBLISHED)
    head = usual["hidden_size"] // usual["num_attention_heads"]
    patches = shapes.get("embeddings.patch_embedding.weight")
    if patches is None or patches[0] % head or "head.probe" not in shapes:
        raise UserError(
            "it is not the SigLIP vision model that HunyuanVideo 1.5 was trained with; name the model's own"
        )
    width, _, patch, _ = patches
    return {
        **usual,
        "hidden_size": width,
        "num_attention_heads": width // head,
        "intermediate_size": shapes[f"{LAYERS}0.mlp.fc1.weight"][0],
        "num_hidden_layers": 1 + max(int(n.split(".")[2]) for n in shapes if n.startswith(LAYERS)),
        "patch_size": patch,
        "image_size": round(shapes["embeddings.position_embedding.weight"][0] ** 0.5) * patch,
    }
