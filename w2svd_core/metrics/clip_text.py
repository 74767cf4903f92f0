"""Does the clip show what its caption says, by a CLIP model that the user has as a transformers folder?

The number is the cosine of caption and frame in CLIP's common space, in [-1, 1]; published CLIP scores are often 100
times or 2.5 times as much. It depends on the model: compare numbers of one model only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .networks import FRAME_STRIDE, Videos, check_videos
from .torchscript import FRAMES_AT_A_TIME, Progress, file_hash, silent

METRIC = "clip_text"
SETTING = "evaluate.clip_model"
INSTEAD = "name the folder of a CLIP model, such as a copy of openai/clip-vit-large-patch14"
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # either will do
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's own training; preprocessor_config.json may say others
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipText:
    """A CLIP model with its tokenizer, frozen, on a device."""

    path: Path
    digest: str
    model: Any
    tokenizer: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def words(self) -> str:
        """The folder's name and the beginning of the SHA-256 of its weights."""
        return f"{self.path.name} (SHA-256 {self.digest[:12]})"

    def score(self, videos: Videos, captions: Sequence[str], progress: Progress = silent) -> float:
        """Mean cosine of captions and every fourth frame of their clips, uint8 (N, F, H, W, 3); in [-1, 1].

        Captions are cut at the model's length (77 tokens in those of OpenAI).

        Raises:
            UserError: not clips, or captions that don't fit.
        """
        check_videos(videos)
        if len(captions) != len(videos):
            raise UserError(f"there are {len(videos)} clips but {len(captions)} captions; give one for each clip")
        n, f = videos[:, ::FRAME_STRIDE].shape[:2]
        at_a_time = max(1, FRAMES_AT_A_TIME // f)
        total = 0.0
        for start in range(0, n, at_a_time):
            rows = slice(start, start + at_a_time)
            frames = self.embed_frames(videos[rows, ::FRAME_STRIDE].reshape(-1, *videos.shape[2:]))
            texts = self.embed_texts(captions[rows]).repeat_interleave(f, 0)
            total += float((frames * texts).sum()) / f
            progress("reading with CLIP", min(start + at_a_time, n), n)
        return total / len(videos)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors, float64 (N, D) on the CPU."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        ids, mask = (tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
        pooled = self.model.text_model(input_ids=ids, attention_mask=mask).pooler_output
        return F.normalize(self.model.text_projection(pooled).double(), dim=-1).cpu()

    @torch.inference_mode()
    def embed_frames(self, frames: Videos) -> Tensor:
        """Unit vectors, float64 (N, D) on the CPU, of frames uint8 (N, H, W, 3)."""
        side = self.model.config.vision_config.image_size
        x = to_clip_input(frames, side, self.mean, self.std).to(self.model.device)
        pooled = self.model.vision_model(pixel_values=x).pooler_output
        return F.normalize(self.model.visual_projection(pooled).double(), dim=-1).cpu()


def to_clip_input(frames: Videos, side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Frames uint8 (N, H, W, 3) as CLIP was trained on them: the shorter side resized (bicubic, antialiased), cropped
    around the centre to a square, normalised; float `n 3 side side`.
    """
    x = torch.tensor(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    h, w = x.shape[-2:]
    size = (side, max(side, int(side * w / h))) if h <= w else (max(side, int(side * h / w)), side)
    if size != (h, w):
        x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 255)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    x = x[..., top : top + side, left : left + side] / 255
    return (x - x.new_tensor(mean).view(3, 1, 1)) / x.new_tensor(std).view(3, 1, 1)


def check_clip(folder: Path) -> list[Path]:
    """See that a folder holds a CLIP model; gives its weight files.

    Raises:
        UserError: no folder, another model, pickled weights, or no tokenizer.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} ({SETTING}) is not a folder; {INSTEAD}")
    kind = _json(folder / "config.json").get("model_type")
    if kind != "clip":
        raise UserError(f"{folder} ({SETTING}) holds a model of type {kind}, not clip; {INSTEAD}")
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights:
        pickled = next(iter(sorted(folder.glob("pytorch_model*.bin"))), None)
        why = f"its weights are pickled ({pickled.name})" if pickled else "it has no model.safetensors"
        raise UserError(f"{folder} ({SETTING}) can't be used: {why}; only safetensors is read, copy that file, too")
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
        raise UserError(f"{folder} ({SETTING}) has no tokenizer.json; copy the tokenizer's files, too")
    return weights


def load_clip(folder: Path, device: torch.device) -> ClipText:
    """Read a CLIP model from its folder alone; nothing is downloaded.

    Raises:
        UserError: see `check_clip`; or transformers is missing, or a file is broken or lacks weights.
    """
    weights = check_clip(folder)
    try:
        from transformers import AutoTokenizer, CLIPModel
    except ImportError as error:
        raise UserError(f"{SETTING} needs transformers ({error}); install it with: pip install transformers") from error
    known = folder / "preprocessor_config.json"
    seen = _json(known) if known.is_file() else {}
    try:
        load: Any = CLIPModel.from_pretrained
        model, info = load(str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers, safetensors and tokenizers each have their own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{folder} ({SETTING}) can't be loaded ({reason}); copy or download it again") from error
    if info["missing_keys"]:
        raise UserError(
            f"{folder} ({SETTING}) lacks {len(info['missing_keys'])} of its weights, such as "
            f"{min(info['missing_keys'])}; copy or download it again"
        )
    model = model.float().to(device).eval().requires_grad_(False)
    mean, std = tuple(seen.get("image_mean", MEAN)), tuple(seen.get("image_std", STD))
    return ClipText(folder, file_hash(*weights), model, tokenizer, mean, std)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} ({SETTING}) has no {path.name}; {INSTEAD}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} ({SETTING}) can't be read ({error}); copy or download it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} ({SETTING}) does not describe a model; copy or download it again")
    return found
