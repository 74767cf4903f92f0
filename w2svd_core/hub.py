"""Models from the Hugging Face hub, for a recipe that names one: `hub:owner/name`, with a branch after an @ where it is
not the main one. Nothing else is ever downloaded.
"""

from __future__ import annotations

from .errors import UserError
from .settings import Model

PREFIX = "hub:"
FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")  # never a pickle
FOLDERS = {  # of a pipeline's repository, by the setting that names it; none for all of it
    "path": (),
    "vae": ("vae",),
    "text_encoder": ("text_encoder",),
    "tokenizer": ("tokenizer",),
    "text_encoder_2": ("text_encoder_2",),
    "tokenizer_2": ("tokenizer_2",),
    "image_encoder": ("image_encoder", "image_processor", "feature_extractor"),
}


def fetched(settings: Model) -> Model:
    """The same model with the folders of the hub's own cache in place of the repositories that it names.

    Raises:
        UserError: a repository is not there, or there is no network.
    """
    named = {part: getattr(settings, part) for part in FOLDERS}
    wanted = {part: text.removeprefix(PREFIX) for part, text in named.items() if text.startswith(PREFIX)}
    return settings.model_copy(update={part: _fetch(part, name) for part, name in wanted.items()})


def _fetch(part: str, repository: str) -> str:
    from huggingface_hub import snapshot_download

    try:
        inside = [f"{folder}/{kind}" for folder in FOLDERS[part] for kind in FILES]
        name, _, branch = repository.partition("@")
        return snapshot_download(name, revision=branch or None, allow_patterns=inside or list(FILES))
    except Exception as error:  # the hub has many kinds: no network, no such repository, no permission, a bad name
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise UserError(
            f"model.{part} {PREFIX}{repository} could not be fetched ({reason}); check the name and the network, or "
            "download it yourself and name its folder"
        ) from error
