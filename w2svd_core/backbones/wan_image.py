"""What Wan is shown of a clip's first frame: its latents, and for 2.1's image-to-video a CLIP embedding, too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.codec import Codec, to_pixels
from ..errors import UserError
from ..hashing import value_hash
from .clip_vision import PREFIX, vision_names, vision_sizes
from .weights import Header, Shapes, class_in, from_file, from_folder, frozen, hollow, sampled_hash, strip

CLASSES = ("CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel")


class ClipVision:
    """CLIP's embedding of a picture as Wan 2.1 reads it: what the last layer but one makes of every patch.

    Args:
        model: a `CLIPVisionModel`; it is frozen here.
        processor: its image processor, which resizes, crops and normalises.
    """

    def __init__(self, model: Any, processor: Any, device: torch.device | None = None) -> None:
        self.model: Any = frozen(model, device or torch.device("cpu"))
        self.processor = processor

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """(b, 1 + patches, width) float32 of pictures `b 3 1 h w` in [-1, 1], where they are."""
        pixels = self.processor(images=list(to_pixels(pictures)[:, 0]), return_tensors="pt")["pixel_values"]
        hidden = self.model(pixels.to(self.model.device, self.model.dtype), output_hidden_states=True).hidden_states
        return torch.as_tensor(hidden[-2], dtype=torch.float32, device=pictures.device)

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return sampled_hash(self.model.state_dict(), ["image", value_hash(self.processor.to_json_string())])


class FrameThenGrey:
    """Image-to-video's start (Wan 2.1): the latents of a clip that is grey after its first frame, and CLIP's embedding.

    Args:
        codec: the model's VAE.
        images: its image encoder; None for a model without an image embedding.
    """

    def __init__(self, codec: Codec, images: ClipVision | None) -> None:
        self.codec, self.images = codec, images

    def encode(self, first: Tensor, frames: int, captions: Sequence[str]) -> dict[str, Tensor]:
        """Fields of the condition, of a first frame `b 3 1 h w` in [-1, 1]: `start` (b, c, f, h, w) and `image`.

        Args:
            frames: of the clip, in pixels' time.
        """
        grey = first.new_zeros(*first.shape[:2], frames - 1, *first.shape[3:])
        fields = {"start": self.codec.encode(torch.cat([first, grey], dim=2))}
        return fields if self.images is None else {**fields, "image": self.images.encode(first)}

    def fingerprint(self) -> str:
        images = "" if self.images is None else self.images.fingerprint()
        return value_hash(["frame then grey", self.codec.fingerprint(), images])


def load_image_encoder(place: Path, dtype: torch.dtype) -> nn.Module:
    """A `CLIPVisionModel` from a folder, or from one file with transformers' names (ComfyUI's clip_vision_h).

    Raises:
        UserError: broken, or another image encoder.
    """
    from transformers import CLIPVisionModel

    model: nn.Module
    if place.is_dir():
        if class_in(place) not in CLASSES:
            raise UserError(f"{place} is not a folder of a {CLASSES[0]}; check model.image_encoder")
        model = from_folder(CLIPVisionModel.from_pretrained, place, "CLIP vision model", dtype=dtype)
    else:
        model = from_file(place, "CLIP vision model", _plan, lambda name: dtype)
    return model


def _plan(shapes: Shapes, header: Header) -> tuple[nn.Module, dict[str, str]]:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    own = strip(shapes, (PREFIX,))
    config = CLIPVisionConfig(**clip_sizes({name: shapes[key] for name, key in own.items()}))
    model = hollow(lambda: CLIPVisionModel(config))
    return model, vision_names(model.state_dict(), own)


def clip_sizes(shapes: Shapes) -> dict[str, Any]:
    """The arguments of a `CLIPVisionConfig`, from the shapes of its tensors; the rest as published (ViT-H/14).

    Raises:
        UserError: it is no CLIP vision model of this kind.
    """
    return vision_sizes(shapes, "clip-vision-h", "the CLIP ViT-H vision model that Wan was trained with")
