"""HunyuanVideo's image-to-video prompts: LLaVA reads the first frame and the prompt together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..condition import Condition
from ..data.codec import to_pixels
from ..errors import UserError
from ..hashing import value_hash
from .class_config import bundled_config
from .clip_text import ClipText
from .clip_vision import PREFIX, vision_names, vision_sizes
from .first_frame import FirstFrame
from .hunyuan_text import (
    LAYER,
    PICTURE_TEMPLATE,
    PICTURE_TEMPLATE_TOKENS,
    TOKENS,
    check_tokenizer,
    load_llama,
    tokenized,
)
from .padded_text import filled
from .tokenizing import words_hash
from .weights import Header, Shapes, class_in, from_file, from_folder, frozen, hollow, sampled_hash, strip

CLASS = "LlavaForConditionalGeneration"
PUBLISHED = "llava-llama-3-8b"
PICTURE, PICTURE_AT = "<image>", 5  # the word for a picture, and its place in the template
HEADER_END = "<|end_header_id|>"  # the template has three of them, of system, user and answer
ROLE = 4  # tokens that are left out before the answer: the prompt's end, and the header but for its line feeds
BLACK = 64  # pixels of the black picture's sides; the processor makes it as large as any other
PROJECTOR, TOWER = "multi_modal_projector", "vision_tower"


class Llava:
    """LLaVA's hidden states of a picture and a prompt, as diffusers' HunyuanVideo image-to-video pipeline makes them.

    Args:
        model: a `LlavaModel`; it is frozen here.
        tokenizer, processor: its tokenizer and image processor.
        every: which of the picture's tokens count: every second, every fourth.

    Raises:
        UserError: the tokenizer is another.
    """

    def __init__(
        self, model: Any, tokenizer: Any, processor: Any, every: int, device: torch.device | None = None
    ) -> None:
        text, vision = model.config.text_config, model.config.vision_config
        before = check_tokenizer(tokenizer, text.vocab_size, PICTURE_TEMPLATE, PICTURE_TEMPLATE_TOKENS)
        self.picture = int(model.config.image_token_index)
        if before[PICTURE_AT] != self.picture:
            raise UserError(
                f"the tokenizer's word for a picture is {before[PICTURE_AT]}, the text encoder's {self.picture}; "
                "name the text encoder's own tokenizer in model.tokenizer"
            )
        self.model: Any = frozen(model, device or torch.device("cpu"))
        self.tokenizer, self.processor, self.every = tokenizer, processor, every
        self.width = int(text.hidden_size)
        self.patches = (vision.image_size // vision.patch_size) ** 2
        self._header_end = tokenizer.convert_tokens_to_ids(HEADER_END)

    @torch.no_grad()
    def encode(self, pictures: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`text` (b, tokens, width) and `text_mask` (b, tokens) of pictures `b 3 1 h w` in [-1, 1] and their prompts.

        The picture's tokens stand first, then the prompt's, then zeros; on the CPU.
        """
        rows = [self._encode(pictures[i : i + 1], prompt) for i, prompt in enumerate(prompts)]
        text, mask = (torch.cat(parts) for parts in zip(*rows, strict=True))
        return {"text": text, "text_mask": mask}

    def black(self, prompt: str) -> dict[str, Tensor]:
        """The fields of a black picture, one row."""
        return self.encode(-torch.ones(1, 3, 1, BLACK, BLACK), [prompt])

    def _encode(self, picture: Tensor, prompt: str) -> tuple[Tensor, Tensor]:
        ids, _ = tokenized(self.tokenizer, PICTURE_TEMPLATE, [prompt], PICTURE_TEMPLATE_TOKENS)
        more = self.patches - 1  # tokens that the picture takes beyond the one word for it
        hidden = self._hidden(picture, ids, more)
        headers = (ids[0] == self._header_end).nonzero().flatten()
        answer = int(headers[-1]) + 1 if len(headers) > 2 else ids.shape[1]  # a long prompt was cut before it
        kept = [*range(PICTURE_TEMPLATE_TOKENS, answer - ROLE), *range(answer, ids.shape[1])]
        image = hidden[:, PICTURE_AT : PICTURE_AT + self.patches : self.every]
        words = hidden[:, [place + more for place in kept]]
        text = torch.cat([image, words], dim=1)
        mask = torch.ones(1, text.shape[1], device=text.device)
        return filled(text, mask, image.shape[1] + TOKENS - ROLE)

    def _hidden(self, picture: Tensor, ids: Tensor, more: int) -> Tensor:
        """Of one row without padding, its word for a picture in as many tokens as the picture has."""
        word = ids.new_full((1, more), self.picture)
        expanded = torch.cat([ids[:, :PICTURE_AT], word, ids[:, PICTURE_AT:]], dim=1).to(self.model.device)
        pixels = self.processor(images=list(to_pixels(picture)[:, 0]), return_tensors="pt")["pixel_values"]
        found: Tensor = self.model(
            input_ids=expanded,
            pixel_values=pixels.to(self.model.device),
            attention_mask=torch.ones_like(expanded),
            output_hidden_states=True,
        ).hidden_states[LAYER]
        return found

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        words = value_hash([words_hash(self.tokenizer), self.processor.to_json_string()])
        return sampled_hash(self.model.state_dict(), ["llava", words, PICTURE_TEMPLATE, TOKENS, LAYER, self.every])


class PicturePrompts:
    """The prompt encoder of image-to-video: of a prompt alone there is `pooled`; the rest is `ReadFrame`'s.

    What guidance leads away from is the empty prompt with a black picture.

    Args:
        llava: loads LLaVA, which is needed for that alone.
        width: of its hidden states.
    """

    def __init__(self, llava: Callable[[], Llava], clip: ClipText, width: int) -> None:
        self.llava, self.clip, self.width = llava, clip, width

    def encode(self, prompts: Sequence[str]) -> Condition:
        """CLIP's `pooled` (B, width of its own)."""
        return self.clip.encode(prompts)

    def null(self) -> Condition:
        """`text`, `text_mask` and `pooled`, one row."""
        return self._null

    def empty(self) -> Condition:
        """The same: of a prompt without a picture there is no text."""
        return self._null

    @cached_property
    def _null(self) -> Condition:
        return Condition({**self.llava().black(""), **self.clip.encode([""]).fields})

    def fingerprint(self) -> str:
        return value_hash([self.llava().fingerprint(), self.clip.fingerprint()])


class ReadFrame:
    """Image-to-video's start: the first frame's latents, and what LLaVA makes of frame and prompt."""

    def __init__(self, frame: FirstFrame, llava: Llava) -> None:
        self.frame, self.llava = frame, llava

    def encode(self, first: Tensor, frames: int, captions: Sequence[str]) -> dict[str, Tensor]:
        """The latents (b, c, 1, h, w), `text` and `text_mask`, of a first frame `b 3 1 h w` in [-1, 1]."""
        return {**self.frame.encode(first, frames, captions), **self.llava.encode(first, captions)}

    def fingerprint(self) -> str:
        return value_hash([self.frame.fingerprint(), self.llava.fingerprint()])


def load_llava(place: Path, image: Path | None, tokenizer: Any, dtype: torch.dtype) -> nn.Module:
    """A `LlavaModel` from a folder, or from two files: LLaMA's and that of what reads pictures (ComfyUI's
    llava_llama3_vision).

    Args:
        image: the second file; None for a folder.
        tokenizer: tells the word for a picture, which no file of weights knows.

    Raises:
        UserError: broken, scaled, or another text encoder.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaModel

    model: nn.Module
    if image is None:
        if class_in(place) != CLASS:
            raise UserError(
                f"{place} is not a folder of a {CLASS}, which image-to-video reads the first frame with; check "
                "model.text_encoder"
            )
        whole = from_folder(LlavaForConditionalGeneration.from_pretrained, place, "LLaVA text encoder", dtype=dtype)
        model = whole.model  # no words are foretold here
        return model
    words = load_llama(place, dtype)
    eyes = from_file(image, "LLaVA image encoder", _plan(words.config.hidden_size), lambda name: dtype)  # type: ignore[union-attr, arg-type]
    parts = {"text_config": words.config.to_dict(), "vision_config": eyes[TOWER].config.to_dict()}  # type: ignore[union-attr, operator]
    word = {"image_token_index": tokenizer.get_vocab().get(PICTURE, -1), "pad_token_id": tokenizer.pad_token_id}
    config = LlavaConfig(**{**bundled_config(PUBLISHED), **parts, **word})
    with torch.device("meta"):
        model = LlavaModel(config)
    model.language_model, model.vision_tower, model.multi_modal_projector = words, eyes[TOWER], eyes[PROJECTOR]
    return model


def _plan(width: int) -> Callable[[Shapes, Header], tuple[nn.Module, Mapping[str, str]]]:
    def plan(shapes: Shapes, header: Header) -> tuple[nn.Module, Mapping[str, str]]:
        from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlavaConfig
        from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

        own = strip(shapes, (f"{TOWER}.{PREFIX}", f"{TOWER}.", PREFIX))
        sizes = vision_sizes(
            {name: shapes[key] for name, key in own.items()}, PUBLISHED, "the image encoder of LLaVA-LLaMA-3"
        )
        vision = CLIPVisionConfig(**sizes)
        config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(hidden_size=width, num_attention_heads=1))
        model = hollow(
            lambda: nn.ModuleDict({TOWER: CLIPVisionModel(vision), PROJECTOR: LlavaMultiModalProjector(config)})
        )
        seen = vision_names((n.removeprefix(f"{TOWER}.") for n in model[TOWER].state_dict()), own)  # type: ignore[index]
        names = {f"{TOWER}.{name}": key for name, key in seen.items()}
        return model, {**names, **{n: own[n] for n in model.state_dict() if n.startswith(PROJECTOR) and n in own}}

    return plan
