"""UNets of Stable Diffusion's kind, over single frames or over clips: what both families have in common.

They put out the noise, their time is one of 1000 whole timesteps, and their prompts are tokens for cross attention.
A file of one is what this project writes: diffusers' names, its config in the header; a subclass may know others.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..condition import Condition
from ..errors import UserError
from ..files import opened_safetensors
from ..flow import Process, Timesteps, VariancePreserving
from ..geometry import LatentGeometry
from ..settings import Model
from .base import Architecture, Facts, KeyMap
from .class_config import config_of
from .fits import OTHER_MODEL
from .unet_keys import UNetKeys
from .weights import Header, Shapes, class_in, from_file, from_folder, hollow, read_json, save_folder

if TYPE_CHECKING:
    from ..data.codec import Codec
    from ..data.encoder_source import EncoderSource, StartEncoder
    from ..lora_pairs import LoraPair

SPACE = 8  # pixels to a cell of Stable Diffusion's VAE
CHANNELS = 16  # of a model that is trained from scratch: the portraits'
NOISE = {"prediction_type": "epsilon"}  # in a scheduler's file
TEXT_TOKENS, SIGMAS = 5, (0.9, 0.35)  # of a probe


class UNetBackbone(ABC):
    """A family of UNets; a subclass says how its class is called and found on disk."""

    name: str
    class_name: str
    files = "a file that this project wrote"  # those that are read, for messages
    frame_by_frame = True
    not_in_comfyui = ""
    timesteps: Timesteps
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    keys: KeyMap = UNetKeys()

    def __init__(self) -> None:
        self.process: Process = VariancePreserving("epsilon", highest=self.timesteps.highest)

    def sizes(self, architecture: Architecture) -> dict[str, Any]:
        """Two levels of `layers` layers, heads x head_dim channels wide and twice that; ffn_dim has no meaning here."""
        a, width = architecture, architecture.heads * architecture.head_dim
        if a.first_frame:
            raise UserError(f"model.first_frame is for Wan, and model.family is {self.name}; set it to false")
        return {
            "sample_size": 8, "in_channels": CHANNELS, "out_channels": CHANNELS, "layers_per_block": a.layers,
            "block_out_channels": (width, 2 * width), "cross_attention_dim": a.text_dim,
            "norm_num_groups": math.gcd(32, width),
        }  # fmt: skip

    def build(self, architecture: Architecture) -> nn.Module:
        return self.new(self.sizes(architecture))

    def new(self, config: Mapping[str, Any]) -> nn.Module:
        """A model of a config, with random weights."""
        import diffusers

        found: nn.Module = getattr(diffusers, self.class_name).from_config(dict(config))
        return found

    def load(self, path: Path, dtype: torch.dtype) -> nn.Module:
        if not path.exists():
            raise UserError(
                f"{path} is not there; it takes a diffusers folder of a {self.class_name} or {self.files} (recipe "
                "portraits_image_unet or portraits_motion_unet makes one)"
            )
        return self.load_folder(path, dtype) if path.is_dir() else self._load_file(path, dtype)

    def config_at(self, path: Path) -> dict[str, Any]:
        """The config of a model on disk, without its weights.

        Raises:
            UserError: it is not there, not JSON, or of another model.
        """
        if path.is_file():
            with opened_safetensors(path) as file:
                shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (not a dict)
                return self.config_in(shapes, file.metadata() or {}, path)
        place = (path / "unet" if (path / "unet").is_dir() else path) / "config.json"
        if not place.is_file():
            raise UserError(f"{place} is not there; model.path takes a diffusers folder of a {self.class_name}")
        return read_json(place.read_bytes(), place)

    def load_folder(self, path: Path, dtype: torch.dtype) -> nn.Module:
        """The model of a pipeline's folder, or of its own."""
        import diffusers

        folder = path / "unet" if (path / "unet").is_dir() else path
        self._check_schedule(path / "scheduler" / "scheduler_config.json")
        if class_in(folder) != self.class_name:
            raise UserError(f"{path} is not a diffusers folder of a {self.class_name}; name one, or another family")
        made = getattr(diffusers, self.class_name)
        model: nn.Module = from_folder(made.from_pretrained, folder, self.class_name, alone=True, torch_dtype=dtype)
        return model

    def _load_file(self, path: Path, dtype: torch.dtype) -> nn.Module:
        def plan(shapes: Shapes, header: Header) -> tuple[nn.Module, Mapping[str, str]]:
            config = self.config_in(shapes, header, path)
            model = hollow(lambda: self.new(config))
            return model, self.names_in(shapes, config)

        model: nn.Module = from_file(path, self.class_name, plan, lambda name: dtype)
        return model

    def config_in(self, shapes: Shapes, header: Header, path: Path) -> dict[str, Any]:
        """The config of the model in a file.

        Raises:
            UserError: it is of another model, or there is none.
        """
        config = read_json(header.get("config", "{}"), f"the config in the header of {path}")
        if config.pop("_class_name", "") != self.class_name:
            raise UserError(
                f"{path} does not say that it holds a {self.class_name}; name its diffusers folder, or {self.files}"
            )
        return config

    def names_in(self, shapes: Shapes, config: dict[str, Any]) -> dict[str, str]:
        """The file's name of each weight, by diffusers'; a file of ours has them all, and no other."""
        return {name: name for name in shapes}

    def _check_schedule(self, place: Path) -> None:
        """That a pipeline's scheduler has the noise levels and the prediction of the family, if there is one."""
        t = self.timesteps
        betas = {"beta_schedule": t.law, "beta_start": t.first, "beta_end": t.last}
        self._check_scheduler(place, {**betas, "num_train_timesteps": t.count, **NOISE})

    def _check_scheduler(self, place: Path, wanted: Mapping[str, object]) -> None:
        """That a scheduler's file, if there is one, says no other than what is wanted."""
        if not place.is_file():
            return
        config = read_json(place.read_bytes(), place)
        for key, value in wanted.items():
            if config.get(key, value) != value:
                raise UserError(
                    f"{place} has {key} {config[key]}, and models of {self.name} are taken with {value} alone; name "
                    "another model"
                )

    def with_first_frame(self, model: nn.Module) -> nn.Module:
        raise UserError(f"model.init first_frame is for Wan, and model.family is {self.name}; set it to load or random")

    def latents(self, model: nn.Module) -> LatentGeometry:
        return geometry_of(config_of(model))

    def facts(self, model: nn.Module) -> Facts:
        count = sum(p.numel() for name, p in model.named_parameters() if ".lora_" not in name)
        return Facts(
            name=f"{self.class_name} of {count / 1e6:.1f} million parameters", fps=8, frames=16, negative_prompt="",
            guidance_scale=7.5, shift=1.0, needs=("text",), takes=("text",), repository="", gigabytes=2e-9 * count,
        )  # fmt: skip

    def encoder_source(self, settings: Model, device: torch.device) -> EncoderSource:
        from .unet_encoders import StableDiffusionSource

        config = self.config_at(Path(settings.path))
        return StableDiffusionSource(settings, geometry_of(config), int(config["cross_attention_dim"]), device)

    def start_encoder(self, settings: Model, codec: Codec) -> StartEncoder | None:
        return None

    def doubts(self, place: str) -> Sequence[str]:
        return ()

    def check_fit(self, model: nn.Module, latents: LatentGeometry, width: int) -> None:
        config = config_of(model)
        if latents.channels != config["in_channels"]:
            raise UserError(
                f"the {self.class_name} takes latents of {config['in_channels']} channels, the codec makes "
                f"{latents.channels}; {OTHER_MODEL}"
            )
        if width != config["cross_attention_dim"]:
            raise UserError(
                f"the {self.class_name} takes prompt embeddings {config['cross_attention_dim']} wide, the prompt "
                f"encoder makes them {width} wide; {OTHER_MODEL}"
            )

    def check_condition(self, model: nn.Module, condition: Condition) -> None:
        if list(condition.fields) != ["text"]:
            raise UserError(
                f"a {self.class_name} takes prompts alone, but the clips were prepared with "
                f"{', '.join(condition.fields)}; prepare them again for this model"
            )

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        parts: Any = model
        return [*parts.down_blocks, parts.mid_block, *parts.up_blocks]

    def predict(self, model: nn.Module, x_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self.check_condition(model, condition)
        dtype, frames = next(model.parameters()).dtype, x_t.shape[2]
        time = self.timesteps.nearest(sigma.to(x_t.device).expand(len(x_t)))
        text = condition.fields["text"].to(dtype).repeat_interleave(frames, 0)
        return self.call(model, x_t.to(dtype), time, text)

    @abstractmethod
    def call(self, model: nn.Module, x_t: Tensor, time: Tensor, text: Tensor) -> Tensor:
        """The noise that the model sees in `b c f h w` at timesteps (b,), text of each frame `(b f) n d`."""

    def hold(self, x0: Tensor, condition: Condition) -> Tensor:
        return x0

    def free(self, condition: Condition, like: Tensor) -> Tensor | None:
        return None

    def probe(self, model: nn.Module) -> tuple[Tensor, Tensor, Condition]:
        rng, config = torch.Generator().manual_seed(0), config_of(model)
        side = 2 ** len(config["block_out_channels"])
        x_t = torch.randn(len(SIGMAS), config["in_channels"], 3, side, side, generator=rng)
        text = torch.randn(len(SIGMAS), TEXT_TOKENS, config["cross_attention_dim"], generator=rng)
        return x_t, torch.tensor(SIGMAS), Condition({"text": text})

    def save_folder(self, model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
        weights = {name: w.to(dtype) for name, w in model.state_dict().items()}
        save_folder(lambda: self.new(config_of(model)), weights, folder)

    def native_state(self, model: nn.Module) -> Mapping[str, Tensor]:
        return model.state_dict()

    def in_diffusers(self, pairs: Mapping[str, LoraPair]) -> Mapping[str, LoraPair]:
        return pairs

    def native_metadata(self, model: nn.Module) -> dict[str, str]:
        """What a native file's header must say so that `load` can read it back."""
        return {"config": json.dumps({"_class_name": self.class_name, **config_of(model)})}


def geometry_of(config: Mapping[str, Any]) -> LatentGeometry:
    """Of a model's latents; the stride is Stable Diffusion's, since a UNet does not know its VAE."""
    return LatentGeometry(config["in_channels"], SPACE, time=1, patch=2 ** (len(config["block_out_channels"]) - 1))
