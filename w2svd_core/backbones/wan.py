"""Wan 2.1 and 2.2: diffusers' `WanTransformer3DModel`, text-to-video and from a first frame.

Two ways to give a first frame. Image-to-video (2.1) reads it beside the noise: 4 channels of mask, then the latents of
the frame followed by grey ones, and an image embedding in the cross attention. TI2V (2.2, 5B) has it IN the noise: the
first latent frame is clean and its tokens have time 0, so that nothing is to be predicted there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..condition import Condition
from ..errors import UserError
from ..geometry import LatentGeometry
from ..settings import Model
from . import wan_keys
from .base import Architecture, KeyMap
from .class_config import config_of
from .fits import check_fields, check_fit
from .held_frame import with_first
from .transformer import Config, Transformer, Words, seen
from .wan_config import config_at
from .wan_loading import hollow_model, load_model, new_model, stays_wide
from .wan_probe import probe_of
from .wan_variants import MASK, TI2V_CHANNELS, doubts, facts_of, geometry_of, kind_of, needs_of, takes_of

NATIVE_TEXT_DIM = 4096  # what native loaders expect of UMT5; narrower prompt embeddings are zero-padded to it
if TYPE_CHECKING:
    from ..data.codec import Codec
    from ..data.encoder_source import EncoderSource, StartEncoder

CHANNELS = 16  # of a model that is trained from scratch
IMAGE_TEXT_TOKENS = 512  # diffusers counts the image's tokens as all before the last 512


def _to_native(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return wan_keys.pad_text_dim(wan_keys.to_native(state), NATIVE_TEXT_DIM)


class WanBackbone(Transformer):
    """Wan. The model predicts eps - x0 and takes its time as 1000 sigma."""

    name = "wan"
    lora_targets: tuple[str, ...] = (
        *("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"),
        *("add_k_proj", "add_v_proj"),  # of image-to-video alone
    )
    keys: KeyMap = wan_keys
    words = Words(new_model, load_model, config_at, geometry_of, facts_of, probe_of, _to_native, stays_wide)
    block_lists = ("blocks",)

    def doubts(self, place: str) -> Sequence[str]:
        return doubts(place)

    def build(self, architecture: Architecture) -> nn.Module:
        a = architecture
        return new_model(
            {
                "patch_size": [1, 2, 2],
                "num_attention_heads": a.heads,
                "attention_head_dim": a.head_dim,
                "in_channels": 2 * CHANNELS + MASK if a.first_frame else CHANNELS,
                "out_channels": CHANNELS,
                "text_dim": a.text_dim,
                "freq_dim": 256,
                "ffn_dim": a.ffn_dim,
                "num_layers": a.layers,
            }
        )

    def with_first_frame(self, model: nn.Module) -> nn.Module:
        config = config_of(model)
        if kind_of(config) != "t2v":
            raise UserError(f"{self.facts(model).name} can't be widened by a first frame; name a text-to-video model")
        weights = model.state_dict()
        old = weights["patch_embedding.weight"]  # width c 1 2 2
        more = old.new_zeros(old.shape[0], MASK + config["out_channels"], *old.shape[2:])
        weights["patch_embedding.weight"] = torch.cat([old, more], dim=1)
        wide = hollow_model({**config, "in_channels": old.shape[1] + more.shape[1]})
        wide.load_state_dict(weights, assign=True)
        return wide

    def source(self, settings: Model, config: Config, text: torch.dtype, device: torch.device) -> EncoderSource:
        from .wan_source import WanSource

        return WanSource(settings, config, settings.first_frame, text, device)

    def start_encoder(self, settings: Model, codec: Codec) -> StartEncoder | None:
        from .wan_image import FrameThenGrey

        match settings.init:
            case "load":
                takes = kind_of(config_at(Path(settings.path))) == "i2v"
            case "random":
                takes = settings.first_frame
            case _:
                takes = True
        return FrameThenGrey(codec, None) if takes else None

    def check_fit(self, model: nn.Module, latents: LatentGeometry, width: int) -> None:
        config = seen(model)
        check_fit(config["out_channels"], [config["text_dim"]], latents, width)

    def check_condition(self, model: nn.Module, condition: Condition) -> None:
        config = seen(model)
        fields = condition.fields
        check_fields(lambda: self.facts(model).name, needs_of(config), takes_of(config), condition)
        if "start" in fields and fields["start"].shape[1] != config["out_channels"]:
            raise UserError(
                f"{self.facts(model).name} takes a first frame of {config['out_channels']} channels, the clips were "
                f"prepared with {fields['start'].shape[1]}; prepare them again for this model"
            )
        if "image" in fields and fields["image"].shape[-1] != config["image_dim"]:
            raise UserError(
                f"{self.facts(model).name} takes image embeddings {config['image_dim']} wide, the image encoder makes "
                f"them {fields['image'].shape[-1]} wide; name this model's own encoder in model.image_encoder"
            )
        if "image" in fields and fields["text"].shape[1] > IMAGE_TEXT_TOKENS:
            raise UserError(
                f"{self.facts(model).name} takes prompts of at most {IMAGE_TEXT_TOKENS} tokens, these have "
                f"{fields['text'].shape[1]}; prepare them again for this model"
            )

    def predict(self, model: nn.Module, x_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self.check_condition(model, condition)
        dtype = model.get_parameter("patch_embedding.weight").dtype  # diffusers keeps some others in float32
        fields = {name: value.to(dtype) for name, value in condition.fields.items()}
        hidden, time = x_t.to(dtype), 1000 * sigma.to(x_t.device).expand(len(x_t))
        text, image = fields["text"], fields.get("image")
        if kind_of(seen(model)) == "i2v":
            hidden = torch.cat([hidden, _mask(fields["start"]), fields["start"]], dim=1)
        elif "start" in fields:
            hidden = with_first(hidden, fields["start"])
            time = _time_of_tokens(time, hidden, *seen(model)["patch_size"])
        if image is not None:
            text = pad(text, (0, 0, 0, IMAGE_TEXT_TOKENS - text.shape[1]))
        output: Tensor = model(
            hidden_states=hidden,
            timestep=time,
            encoder_hidden_states=text,
            encoder_hidden_states_image=image,
            return_dict=False,
        )[0]
        return output

    def held_frame(self, condition: Condition) -> Tensor | None:
        """TI2V's way, known by the channels of its VAE."""
        start = condition.fields.get("start")
        return start if start is not None and start.shape[1] == TI2V_CHANNELS else None


def _mask(start: Tensor) -> Tensor:
    """`b 4 f h w`: 1 for the four channels of the first latent frame, the only one that is given."""
    b, _, f, h, w = start.shape
    mask = start.new_zeros(b, MASK, f, h, w)
    mask[:, :, 0] = 1
    return mask


def _time_of_tokens(time: Tensor, hidden: Tensor, frames: int, rows: int, columns: int) -> Tensor:
    """(b,) -> (b, tokens), frame by frame as the model lays out its patches; 0 on those of the first latent frame."""
    f, h, w = hidden.shape[2] // frames, hidden.shape[3] // rows, hidden.shape[4] // columns
    times = time[:, None].repeat(1, f * h * w)
    times[:, : h * w] = 0
    return times


BACKBONE = WanBackbone()
