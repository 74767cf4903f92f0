"""What a recipe wants prepared, known by its fingerprints, and where that lies or will lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..geometry import LatentGeometry
from ..hashing import value_hash
from ..settings import Data
from .buckets import Plan
from .clips import Clip, list_clips, read_prompts
from .encoder_source import EncoderSource
from .latents import Progress, cache_folder, clip_folder
from .shard_sets import INDEX, Index, PromptSet, ShardSet, differences
from .shards import LAYOUT, caption_key, clip_key, hash_of_all
from .training_set import TrainingSet


@dataclass(frozen=True)
class Wanted:
    """What is to be prepared, and where it goes.

    Attributes:
        clips: in the order of their names; none for prompts alone.
        keys: of the clips, and of their captions where the model's start depends on them.
        prompts: of each clip, or all of the file's.
        made_of: fingerprints by part (`shard_sets.PARTS`).
        text, latents, folder: of the text shards, the clip shards, and the index.
    """

    clips: Sequence[Clip]
    keys: Sequence[str]
    prompts: Sequence[str]
    made_of: Mapping[str, str]
    text: Path
    latents: Path
    folder: Path


def wanted(settings: Data, source: EncoderSource, progress: Progress) -> Wanted:
    """List what the recipe names and fingerprint it; nothing is decoded, and nothing large loaded.

    Raises:
        UserError: the folder, the file, a caption or the size does not serve.
    """
    own = source.fingerprints()
    text = {"text": own["text"]}
    cache = cache_folder(settings)
    text_folder = cache / f"text-{value_hash([LAYOUT, text])}"
    if settings.prompts:
        if own["start"]:
            raise UserError(
                "data.prompts gives prompts alone, and this model needs the first frame of each clip; clear it and "
                "name clips in data.folder"
            )
        source.geometry.latent_shape(settings.frames, settings.height, settings.width)
        prompts = read_prompts(Path(settings.prompts))
        made_of = {"prompts": hash_of_all(prompts), **text}
        return Wanted((), (), prompts, made_of, text_folder, text_folder, cache / _name(made_of))
    Plan.of(settings, source.geometry)  # a size that does not fit is told before anything long begins
    clips = list_clips(clip_folder(settings, progress))
    files = [clip_key(clip) for clip in clips]
    captions = [clip.caption for clip in clips]
    keys = list(map(caption_key, files, captions)) if source.captioned else files
    shape = [settings.frames, settings.height, settings.width, settings.buckets, settings.min_frames, settings.fps]
    pixels = {"size": value_hash(shape), "codec": own["codec"], "start": own["start"]}
    named = {"clips": hash_of_all(files), "captions": hash_of_all(captions)}
    made_of = {**named, **pixels, **text}
    return Wanted(
        clips,
        keys,
        captions,
        made_of,
        text_folder,
        cache / f"clips-{value_hash([LAYOUT, pixels])}",
        cache / _name(made_of),
    )


def _name(made_of: Mapping[str, str]) -> str:
    return f"prepared-{value_hash([LAYOUT, dict(made_of)])}"


def prepared_folder(want: Wanted) -> Path:
    """The folder of a finished preparation.

    Raises:
        UserError: there is none; the sentence says what is there of the same clips, and what differs.
    """
    if (want.folder / INDEX).is_file():
        return want.folder
    what = "clips" if want.clips else "prompts"
    for path in sorted(want.folder.parent.glob(f"prepared-*/{INDEX}")):
        then = Index.read(path.parent).made_of
        if then.get(what) == want.made_of[what]:
            other = " and ".join(differences(then, want.made_of))
            raise UserError(
                f"these {what} are prepared in {path.parent} with another {other} than this recipe has; prepare them "
                "for it by python -m w2svd_core.prepare with this recipe and its settings"
            )
    raise UserError(
        f"these {what} are not prepared for this recipe yet; run python -m w2svd_core.prepare with this recipe and "
        "its settings"
    )


def prepared_set(settings: Data, source: EncoderSource, geometry: LatentGeometry, progress: Progress) -> TrainingSet:
    """What `python -m w2svd_core.prepare` made for a recipe; no encoder is loaded.

    Args:
        source: the model's encoders, for their fingerprints.
        geometry: of the model's latents.

    Raises:
        UserError: it is not there, broken, or made of something else; the sentence says which.
    """
    want = wanted(settings, source, progress)
    folder = prepared_folder(want)
    if want.clips:
        return ShardSet(folder, want.made_of)
    return PromptSet(folder, geometry.latent_shape(settings.frames, settings.height, settings.width), want.made_of)
