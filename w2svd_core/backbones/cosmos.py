"""Cosmos-Predict2.5: diffusers' `CosmosTransformer3DModel`, from text and from a first frame with the same weights.

It predicts eps - x0, and its time is sigma itself. It is told which latent frames are given (a mask channel). A given
first frame stands clean IN the noise, with a time of 1e-4 of its own, and nothing is to be predicted there: the
published pipeline puts the true velocity in place of the output, which is `hold` in x0-space.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..condition import Condition
from ..errors import UserError
from ..geometry import LatentGeometry
from ..settings import Model
from . import cosmos_keys
from .base import Architecture, KeyMap
from .cosmos_class import new_model, stays_wide
from .cosmos_config import config_at
from .cosmos_loading import load_model
from .cosmos_probe import probe_of
from .cosmos_variants import NEEDS, TAKES, facts_of, geometry_of, widths_of
from .fits import check_fields, check_fit, check_one_frame
from .held_frame import with_first
from .transformer import Config, Transformer, Words, seen

if TYPE_CHECKING:
    from ..data.codec import Codec
    from ..data.encoder_source import EncoderSource, StartEncoder

CHANNELS = 16  # of a model that is trained from scratch
ADALN = 256  # width of its modulation layers, as of the published models
LEAST_HEAD = 12  # channels; positions along three axes need so many
GIVEN_TIME = 1e-4  # of frames that are given (`conditional_frame_timestep` of the published pipeline)


class CosmosBackbone(Transformer):
    """Cosmos-Predict2.5. The model predicts eps - x0 and takes its time as sigma."""

    name = "cosmos"
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    keys: KeyMap = cosmos_keys
    words = Words(new_model, load_model, config_at, geometry_of, facts_of, probe_of, cosmos_keys.to_native, stays_wide)
    held = "first"
    not_in_comfyui = "no ComfyUI of today reads Cosmos-Predict2.5's prompts by itself; sample it as above"

    def build(self, architecture: Architecture) -> nn.Module:
        a = architecture
        if a.head_dim < LEAST_HEAD or a.head_dim % 2:
            raise UserError(f"model.head_dim is {a.head_dim}, but a Cosmos takes even numbers from {LEAST_HEAD} up")
        width = a.heads * a.head_dim
        return new_model(
            {
                "in_channels": CHANNELS + 1,
                "out_channels": CHANNELS,
                "num_attention_heads": a.heads,
                "attention_head_dim": a.head_dim,
                "num_layers": a.layers,
                "mlp_ratio": math.nextafter(a.ffn_dim / width, math.inf),  # diffusers rounds the product down
                "text_embed_dim": a.text_dim,
                "adaln_lora_dim": min(ADALN, width),
                "patch_size": [1, 2, 2],
                "rope_scale": [1.0, 1.0, 1.0],
                "extra_pos_embed_type": None,
            }
        )

    def with_first_frame(self, model: nn.Module) -> nn.Module:
        raise UserError(
            f"{self.facts(model).name} starts from a first frame as it is; set model.init to load and "
            "model.first_frame to true"
        )

    def source(self, settings: Model, config: Config, text: torch.dtype, device: torch.device) -> EncoderSource:
        from .cosmos_source import CosmosSource

        return CosmosSource(settings, config, text, device)

    def start_encoder(self, settings: Model, codec: Codec) -> StartEncoder | None:
        from .first_frame import FirstFrame

        return FirstFrame(codec, "first") if settings.first_frame else None

    def check_fit(self, model: nn.Module, latents: LatentGeometry, width: int) -> None:
        config = seen(model)
        check_fit(config["out_channels"], widths_of(config), latents, width)

    def check_condition(self, model: nn.Module, condition: Condition) -> None:
        def name() -> str:
            return self.facts(model).name

        check_fields(name, NEEDS, TAKES, condition)
        if "first" in condition.fields:
            check_one_frame(name, condition.fields["first"], seen(model)["out_channels"])

    def predict(self, model: nn.Module, x_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self.check_condition(model, condition)
        dtype = model.get_parameter("patch_embed.proj.weight").dtype
        first, time = condition.fields.get("first"), sigma.to(x_t.device).expand(len(x_t))
        hidden = x_t.to(dtype)
        b, _, f, h, w = hidden.shape
        mask = hidden.new_zeros(b, 1, f, h, w)  # 1 where a frame is given
        if first is not None:
            hidden, time = with_first(hidden, first), _time_of_frames(time, f)
            mask[:, :, 0] = 1
        output: Tensor = model(
            hidden_states=hidden,
            timestep=time,
            encoder_hidden_states=condition.fields["text"].to(dtype),
            condition_mask=mask,
            padding_mask=hidden.new_zeros(1, 1, h, w),  # 0: nothing is padding
            return_dict=False,
        )[0]
        return output


def _time_of_frames(time: Tensor, frames: int) -> Tensor:
    """(b,) -> (b, 1, f, 1, 1), as the model takes a time for each latent frame; the first one is given."""
    times = time[:, None].repeat(1, frames)
    times[:, 0] = GIVEN_TIME
    return times[:, None, :, None, None]


BACKBONE = CosmosBackbone()
