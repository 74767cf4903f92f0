"""LATENT and CONDITIONING as a training set: normalised latents, and the fields that a native model is called with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..condition import GUIDANCE, Condition
from ..data.latents import LatentSet
from ..data.training_set import TrainingSet, bucket_rows
from ..errors import UserError
from ..hashing import tensors_hash, value_hash
from ..randomness import shuffled_rows
from .comfy_backbone import TEXT, takes_guidance

Conditioning = Sequence[Sequence[Any]]  # ComfyUI's CONDITIONING: [[tensor, {...}], ...]
Latent = Mapping[str, Any]  # ComfyUI's LATENT
Size = tuple[int, int, int, int]
START = "concat_latent_image"  # the first frame in a CONDITIONING
REPLACED = "guiding_frame_index"  # HunyuanVideo's sign that the clip's first latent frame is given in x itself
OF_THE_CLIP = (  # what guidance leaves as it is
    "c_concat", "clip_fea", "reference_latent", "time_dim_concat", "ref_latent", "camera_conditions", "pose_latents",
)  # fmt: skip
ONLY_SAMPLED: dict[str, Any] = {  # of a condition, each with the value that changes nothing
    "control": None, "area": None, "mask": None, "hooks": None,
    "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0,
}  # fmt: skip
OF_LENGTH = (TEXT, "attention_mask", "txt_byt5")  # as many tokens as a prompt has; ComfyUI pads none


@dataclass(frozen=True)
class Prompts:
    """Conditions without clips, all for latents of one size."""

    condition: Condition
    null: Condition
    captions: tuple[str, ...]
    size: Size

    @property
    def empty(self) -> Condition:
        """Never asked for: a MODEL is not fine-tuned."""
        return self.null

    def __len__(self) -> int:
        return len(self.condition)

    def fingerprint(self) -> str:
        return value_hash([*(tensors_hash(dict(one.fields)) for one in (self.condition, self.null)), self.size])

    def rows(self, place: int, count: int, seed: int) -> list[int]:
        return shuffled_rows(len(self), place, count, seed)

    def shape(self, rows: Sequence[int]) -> Size:
        return self.size

    def batch(self, rows: Sequence[int], device: torch.device) -> tuple[None, Condition]:
        return None, self.condition[torch.as_tensor(rows)].to(device)


@dataclass(frozen=True)
class Buckets:
    """Clips of several sizes, one set for each; rows are counted through."""

    sets: tuple[LatentSet, ...]

    @property
    def null(self) -> Condition:
        return self.sets[0].null

    @property
    def empty(self) -> Condition:
        return self.sets[0].empty

    @property
    def captions(self) -> tuple[str, ...]:
        return tuple(caption for one in self.sets for caption in one.captions)

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    def fingerprint(self) -> str:
        return value_hash([one.fingerprint() for one in self.sets])

    def rows(self, place: int, count: int, seed: int) -> list[int]:
        bucket, start, order = bucket_rows([len(one) for one in self.sets], place, count, seed)
        first = sum(len(one) for one in self.sets[:bucket])
        return [first + row for row in shuffled_rows(len(self.sets[bucket]), start, count, order)]

    def shape(self, rows: Sequence[int]) -> Size:
        one, inside = self._own(rows)
        return one.shape(inside)

    def batch(self, rows: Sequence[int], device: torch.device) -> tuple[Tensor, Condition]:
        one, inside = self._own(rows)
        return one.batch(inside, device)

    def _own(self, rows: Sequence[int]) -> tuple[LatentSet, list[int]]:
        first = 0
        for one in self.sets:
            if first <= rows[0] < first + len(one):
                inside = [row - first for row in rows]
                if not all(0 <= row < len(one) for row in inside):
                    raise ValueError("rows of several buckets do not make a batch")
                return one, inside
            first += len(one)
        raise IndexError(rows[0])


def native_data(
    patcher: Any,
    latents: Sequence[Latent],
    conditioning: Sequence[Conditioning],
    negative: Conditioning,
    captions: Sequence[str] = (),
    *,
    shape: Size | None = None,
) -> TrainingSet:
    """What the sockets bring, as a training takes it. Nothing of it is changed; every tensor is copied.

    Args:
        patcher: the MODEL.
        latents: clips in the VAE's own space; a LATENT may hold several. None of them makes a set of prompts alone.
        conditioning: one for each clip (or prompt), or one for all; of each the first entry counts.
        negative: what guidance leads away from.
        captions: what the clips show.
        shape: (c, f, h, w) of the latents that are made of prompts alone.

    Raises:
        UserError: clips and conditions do not fit each other or the model.
    """
    model = patcher.model
    if not conditioning:
        raise UserError("there is no CONDITIONING to train with; connect one for each clip, or one for all")
    clips = [clip for latent in latents for clip in _clips(model, latent)]
    count = len(clips) or len(conditioning)
    if len(conditioning) not in (1, count):
        raise UserError(
            f"there are {count} clips and {len(conditioning)} conditions; connect one condition for each clip, or one "
            "for all"
        )
    entries = [conditioning[row if len(conditioning) > 1 else 0] for row in range(count)]
    named = tuple(captions) if len(captions) == count else tuple(f"clip {row + 1}" for row in range(count))

    def row(entry: Conditioning, like: Tensor) -> Condition:
        return _untold(patcher, encoded(model, entry, like))

    def started(entry: Conditioning, like: Tensor) -> Condition:
        found = row(entry, like)
        if _needs_start(model) and "c_concat" in found.fields and START not in entry[0][1]:
            raise UserError(  # core has put zeros there
                "the MODEL makes a clip from its first frame, and a CONDITIONING gives none; connect what ComfyUI's "
                "image-to-video node for that model (WanImageToVideo, say) puts out, one for each clip"
            )
        return found

    if not clips:
        if shape is None:
            raise UserError("prompts alone do not say how large the clips are to be; give frames, height and width")
        like = torch.zeros(1, *shape)
        rows, empty = _alike([started(entry, like) for entry in entries], row(negative, like))
        return Prompts(Condition.cat(rows), empty, named, shape)
    fields = [started(entry, clip) for entry, clip in zip(entries, clips, strict=True)]
    rows, empty = _alike(fields, row(negative, clips[0]))
    sets = []
    for size in dict.fromkeys(clip.shape for clip in clips):
        own = [row for row, clip in enumerate(clips) if clip.shape == size]
        sets.append(
            LatentSet(
                torch.cat([clips[row] for row in own]),
                Condition.cat([rows[row] for row in own]),
                empty,
                tuple(named[row] for row in own),
            )
        )
    return sets[0] if len(sets) == 1 else Buckets(tuple(sets))


def embedded_guidance(patcher: Any, conditioning: Sequence[Conditioning], like: Tensor) -> float | None:
    """What a model that takes its guidance as an input is told by conditions (Flux Guidance); None for others.

    Args:
        like: latents `1 c f h w` of a clip.

    Raises:
        UserError: they tell several.
    """
    if not takes_guidance(patcher):
        return None
    fields = [encoded(patcher.model, entry, like).fields for entry in conditioning]
    if any(GUIDANCE not in own for own in fields):
        raise UserError("a CONDITIONING has its guidance disabled, and the MODEL is told one in every role; enable it")
    found = {float(own[GUIDANCE]) for own in fields}
    if len(found) > 1:
        raise UserError(
            f"the conditions tell guidances from {min(found):g} to {max(found):g}, and a student learns one; give them "
            "the same"
        )
    return next(iter(found), None)


def encoded(model: Any, conditioning: Conditioning, like: Tensor) -> Condition:
    """The fields that ComfyUI calls a model with, one row, of a CONDITIONING and latents `1 c f h w` of its clip.

    Raises:
        UserError: the condition is empty, or holds what only a sampler can use.
    """
    from comfy.sampler_helpers import convert_cond
    from comfy.samplers import encode_model_conds

    if not conditioning or not isinstance(conditioning[0][0], Tensor):
        raise UserError("a CONDITIONING is empty; connect the output of a text encoder")
    if len(conditioning) > 1:
        raise UserError(
            f"a CONDITIONING holds {len(conditioning)} prompts that a sampler would mix, and a training takes one; "
            "connect it without Conditioning Combine"
        )
    tensor, about = conditioning[0][0], dict(conditioning[0][1])
    if odd := [name for name, usual in ONLY_SAMPLED.items() if about.get(name, usual) not in (None, usual)]:
        raise UserError(f"a CONDITIONING carries {', '.join(odd)}, which only a sampler can use; connect it without")
    entry = [[tensor.detach().clone(), {name: _copied(value) for name, value in about.items()}]]
    (found,) = encode_model_conds(
        model.extra_conds, convert_cond(entry), like.clone(), like.device, "positive",
        latent_image=torch.zeros_like(like), denoise_mask=None, seed=0,
    )  # fmt: skip
    fields = {name: kept.cond for name, kept in found["model_conds"].items()}
    if REPLACED in fields:  # core adds a batch's guidance to the given frame, and 0.33 takes text tokens for its own
        raise UserError(
            "the CONDITIONING gives a first frame by token replacement (v2), which is trained by python -m "
            "w2svd_core.train alone; give it by concatenation (v1) to a model that takes it, or leave it out"
        )
    odd = [name for name, value in fields.items() if not isinstance(value, Tensor) or value.ndim == 0]
    if odd:
        raise UserError(f"the CONDITIONING carries {', '.join(odd)}, which can't be batched; connect one without")
    return Condition({name: _copied(value)[:1].cpu() for name, value in fields.items()})


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _clips(model: Any, latent: Latent) -> list[Tensor]:
    """The clips of a LATENT, each `1 c f h w`, as the model sees them."""
    samples = latent["samples"]
    if not isinstance(samples, Tensor) or samples.ndim != 5:
        raise UserError("a LATENT holds no video (batch, channels, frames, height, width); encode frames by the VAE")
    wanted = int(model.latent_format.latent_channels)
    if samples.shape[1] != wanted:
        raise UserError(
            f"the MODEL takes latents of {wanted} channels, a clip has {samples.shape[1]}; encode the clips by the VAE "
            "that belongs to the MODEL"
        )
    if latent.get("noise_mask") is not None:
        raise UserError("a LATENT has a noise mask, which a training can't use; remove it")
    seen = model.process_latent_in(samples.detach().clone().float()).cpu()
    return list(seen.split(1))


def _needs_start(model: Any) -> bool:
    """Whether core's class is one of those that start from an image; others with channels for one do without, too."""
    return bool(getattr(model, "image_to_video", False)) or "concat_image" in getattr(model, "concat_keys", ())


def _alike(rows: Sequence[Condition], null: Condition) -> tuple[list[Condition], Condition]:
    """Conditions that can be in one batch, and the fields of `null` that take their places where guidance leaves them.

    Raises:
        UserError: they have different fields.
    """
    empty = Condition({name: value for name, value in null.fields.items() if name not in OF_THE_CLIP})
    names = rows[0].fields.keys()
    for row, ours in [*((row, names) for row in rows), (empty, names - set(OF_THE_CLIP))]:
        if (row.fields.keys() ^ ours) - set(OF_LENGTH):
            raise UserError(
                f"some conditions have {', '.join(sorted(ours))}, others {', '.join(sorted(row.fields))}; make all by "
                "the same nodes"
            )
    *found, filled = Condition.filled([*rows, empty], OF_LENGTH)
    return found, filled


def _untold(patcher: Any, condition: Condition) -> Condition:
    """A condition without the guidance that roles tell the model."""
    own = {name: value for name, value in condition.fields.items() if name != GUIDANCE or not takes_guidance(patcher)}
    return Condition(own)
