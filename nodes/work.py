"""The two kinds of model that Train takes: one by name, loaded as the command line does, and a native MODEL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .sockets import Dataset, Encoded, ModelHandle

if TYPE_CHECKING:
    from ..w2svd_core.assembly import Job
    from ..w2svd_core.job import Maker
    from ..w2svd_core.settings import Recipe
    from ..w2svd_core.watch import Watch

BUNDLED = "portraits"  # whose other settings a training of the bundled teacher has
TOLD_ROLES = ("teacher", "real", "fake", "student")  # those that tell a model a guidance
SOCKETS = "what the sockets of Train were given"  # where a recipe names a file


class Work(Protocol):
    """What a run is made of.

    Attributes:
        base: the recipe whose settings it has where nothing else says.
        prompts: to be written beside the recipe.
    """

    base: str
    prompts: tuple[str, ...]

    def settings(self, given: Mapping[str, object]) -> Mapping[str, object]:
        """Those that model and data decide, by key, unless other inputs say otherwise.

        Args:
            given: what those say.
        """
        ...

    def ready(self, recipe: Recipe, watch: Watch) -> Any:
        """A context in which the run can be made; it gives the `Maker`.

        Raises:
            UserError: model, data and recipe do not fit.
        """
        ...

    def files(self) -> str:
        """A fingerprint of the files that the model is read from; "" for one in memory, whose weights are compared."""
        ...

    def origin(self, recipe: Recipe, make: Maker, watch: Watch) -> Mapping[str, str]:
        """What a run that is there already must have been made of, as `RunFolder.made_of`, as far as it is not in the
        recipe."""
        ...


def work_of(model: Any, dataset: Dataset | Encoded, vae: Any) -> Work:
    """What the node's sockets bring.

    Raises:
        UserError: they do not belong together.
    """
    from ..w2svd_core.errors import UserError

    if isinstance(model, ModelHandle):
        if isinstance(dataset, Encoded):
            raise UserError(
                "the clips are encoded already, for a MODEL from Load Diffusion Model; connect Clips from Folder or "
                "Prompts Only to a model by name"
            )
        return NamedWork(model, dataset)
    if isinstance(dataset, Dataset):
        raise UserError(
            "a MODEL takes clips or prompts that are encoded; connect Clips from Latents or Prompts from Conditioning"
        )
    if vae is None:
        raise UserError("a MODEL needs its VAE to show samples; connect it to Train's vae")
    return NativeWork(model, dataset, vae)


@dataclass(frozen=True)
class NamedWork:
    """A model by name, and clips or prompts by name."""

    model: ModelHandle
    dataset: Dataset

    @property
    def encoders(self) -> str:
        return str(self.model.settings.get("model.encoders", "bundled"))

    @property
    def base(self) -> str:
        from ..w2svd_core.backbones import RECIPES, USUAL

        if self.encoders == "bundled":
            return BUNDLED
        return RECIPES.get(str(self.model.settings.get("model.family", "")), RECIPES[USUAL])

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.dataset.prompts

    def settings(self, given: Mapping[str, object]) -> Mapping[str, object]:
        return {"model.path": self.model.path, **self.model.settings, **self.dataset.settings}

    @contextmanager
    def ready(self, recipe: Recipe, watch: Watch) -> Iterator[Maker]:
        import comfy.model_management as management

        from ..w2svd_core.assembly import assemble, encoder_source
        from ..w2svd_core.data.prepare import prepare
        from ..w2svd_core.memory import free_memory

        device = management.get_torch_device()
        management.unload_all_models()
        management.soft_empty_cache()
        if self.encoders == "own":  # what they make is kept on disk
            prepare(recipe.data, encoder_source(recipe.model, device), watch)
        try:
            yield partial(assemble, device=device)
        finally:
            free_memory()  # nodes behind this one need it in the same prompt
            management.soft_empty_cache()

    def files(self) -> str:
        from ..w2svd_core.assembly import BUNDLED_TEACHER
        from ..w2svd_core.data.file_prints import print_of_files

        path = BUNDLED_TEACHER if self.model.path == "bundled" else Path(self.model.path)
        return print_of_files(path / "transformer" if (path / "transformer").is_dir() else path)

    def origin(self, recipe: Recipe, make: Maker, watch: Watch) -> Mapping[str, str]:
        import comfy.model_management as management

        from ..w2svd_core.assembly import encoder_source, training_set

        source = encoder_source(recipe.model, management.get_torch_device())
        return {"data": training_set(recipe, source, watch).fingerprint()}


@dataclass(frozen=True)
class NativeWork:
    """A MODEL in memory, and what other nodes have encoded for it."""

    model: Any
    dataset: Encoded
    vae: Any
    prompts = ()

    @cached_property
    def base(self) -> str:
        from ..w2svd_core.backbones import RECIPES, USUAL
        from ..w2svd_core.backbones.comfy import family_name

        return RECIPES.get(family_name(self.model), RECIPES[USUAL])

    @cached_property
    def shape(self) -> tuple[int, int, int, int]:
        """(c, f, h, w) of the clips, of the first where they differ."""
        from ..w2svd_core.errors import UserError

        found = (*self.dataset.latents, self.dataset.size)
        samples = found[0]["samples"] if found[0] is not None else None
        if samples is None or samples.ndim != 5:
            raise UserError("a LATENT holds no video (batch, channels, frames, height, width); encode clips by the VAE")
        c, f, h, w = samples.shape[1:]
        return c, f, h, w

    def told(self, given: Mapping[str, object]) -> Mapping[str, object]:
        """The guidance that the prompts tell a model, as that of every role; nothing where roles have their own."""
        import torch

        from ..w2svd_core.backbones.comfy import embedded_guidance

        keys = [f"embedded.{role}" for role in TOLD_ROLES]
        if all(key in given for key in keys):
            return {}
        value = embedded_guidance(self.model, self.dataset.conditioning, torch.zeros(1, *self.shape))
        return {} if value is None else dict.fromkeys(keys, value)

    def settings(self, given: Mapping[str, object]) -> Mapping[str, object]:
        from ..w2svd_core.backbones.comfy import settings_of

        _, frames, height, width = self.shape
        space, time = self.vae.spacial_compression_decode(), self.vae.temporal_compression_decode() or 1
        size = {"frames": (frames - 1) * time + 1, "height": height * space, "width": width * space}
        return {
            "model.path": SOCKETS, "data.folder": SOCKETS, "data.fps": self.dataset.fps,
            **{f"data.{name}": value for name, value in size.items()}, **settings_of(self.model),
            **self.told(given),
        }  # fmt: skip

    @contextmanager
    def ready(self, recipe: Recipe, watch: Watch) -> Iterator[Maker]:
        from ..w2svd_core.backbones import comfy as native

        d = self.dataset
        shape = None if d.latents else self.shape
        data = native.native_data(self.model, d.latents, d.conditioning, d.negative, d.captions, shape=shape)
        with native.native_job(self.model, recipe, data, native.NativeSource(self.model, self.vae)) as job:
            yield given(job)

    def files(self) -> str:
        return ""

    def origin(self, recipe: Recipe, make: Maker, watch: Watch) -> Mapping[str, str]:
        from ..w2svd_core.lora_files import base_hash

        job = make(recipe, None, watch)
        return {"base": base_hash(job.model.base_state()), "data": job.data.fingerprint()}


def given(job: Job) -> Callable[..., Job]:
    """A `Maker` of what is there already."""
    return lambda *_: job
