"""HunyuanVideo: diffusers' `HunyuanVideoTransformer3DModel`, text-to-video and from a first frame.

Its guidance is a number among its inputs (not of the image-to-video model by concatenation), which a role tells it.
Two ways to give a first frame. By concatenation the model reads it beside the noise: the latents of the frame followed
by zeros, then a channel that says which frames are given. By token replacement it is IN the noise: the first latent
frame is clean and its tokens have time 0, so that nothing is to be predicted there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor, nn

from ..condition import GUIDANCE, Condition
from ..errors import UserError
from ..geometry import LatentGeometry
from ..settings import Model
from . import hunyuan_keys
from .base import Architecture, KeyMap
from .beside import beside
from .fits import check_fields, check_fit, check_one_frame
from .held_frame import with_first
from .hunyuan_config import config_at
from .hunyuan_loading import load_model, new_model
from .hunyuan_probe import probe_of
from .hunyuan_variants import FIRST, facts_of, geometry_of, kind_of, needs_of, takes_of
from .transformer import Config, Transformer, Words, seen

if TYPE_CHECKING:
    from ..data.codec import Codec
    from ..data.encoder_source import EncoderSource, StartEncoder

DOUBLE, SINGLE = "transformer_blocks.*.", "single_transformer_blocks.*."


class HunyuanVideoBackbone(Transformer):
    """HunyuanVideo. The model predicts eps - x0 and takes its time as 1000 sigma, its guidance as 1000 times it."""

    name = "hunyuan_video"
    lora_targets: tuple[str, ...] = (
        *(f"{DOUBLE}attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
        *(f"{DOUBLE}attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
        *(f"{DOUBLE}{name}" for name in ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")),
        *(f"{SINGLE}{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out")),
    )
    keys: KeyMap = hunyuan_keys
    words = Words(new_model, load_model, config_at, geometry_of, facts_of, probe_of, hunyuan_keys.to_native)
    block_lists = ("transformer_blocks", "single_transformer_blocks")
    held = "first"

    def build(self, architecture: Architecture) -> nn.Module:
        _own_encoders_alone("be trained from scratch")

    def with_first_frame(self, model: nn.Module) -> nn.Module:
        _own_encoders_alone("be widened by a first frame")

    def source(self, settings: Model, config: Config, text: torch.dtype, device: torch.device) -> EncoderSource:
        from .hunyuan_source import HunyuanSource

        return HunyuanSource(settings, config, text, device)

    def start_encoder(self, settings: Model, codec: Codec) -> StartEncoder | None:
        _own_encoders_alone("learn from the bundled encoders")

    def check_fit(self, model: nn.Module, latents: LatentGeometry, width: int) -> None:
        config = seen(model)
        check_fit(config["out_channels"], [config["text_embed_dim"]], latents, width)

    def check_condition(self, model: nn.Module, condition: Condition) -> None:
        config, fields = seen(model), condition.fields
        check_fields(lambda: self.facts(model).name, needs_of(config), takes_of(config), condition)
        sizes = {"text": config["text_embed_dim"], "pooled": config["pooled_projection_dim"]}
        for name, wanted in sizes.items():
            if fields[name].shape[-1] != wanted:
                raise UserError(
                    f"{self.facts(model).name} takes the field {name} {wanted} wide, the clips were prepared with "
                    f"{fields[name].shape[-1]}; prepare them again for this model"
                )
        if fields["text_mask"].shape != fields["text"].shape[:2]:
            raise UserError(
                f"the clips were prepared with prompts of {fields['text'].shape[1]} tokens and masks for "
                f"{fields['text_mask'].shape[-1]}; prepare them again"
            )
        for name in FIRST[kind_of(config)]:
            check_one_frame(lambda: self.facts(model).name, fields[name], config["out_channels"])

    def predict(self, model: nn.Module, x_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self.check_condition(model, condition)
        dtype = model.get_parameter("x_embedder.proj.weight").dtype
        fields = {name: value.to(dtype) for name, value in condition.fields.items()}
        guidance = fields.get(GUIDANCE)
        if guidance is None and seen(model)["guidance_embeds"]:
            raise UserError(f"{self.facts(model).name} takes its guidance as an input, and nobody told it one")
        hidden = x_t.to(dtype)
        if "start" in fields:
            hidden = torch.cat([hidden, *beside(fields["start"], hidden)], dim=1)
        elif self.held in fields:
            hidden = with_first(hidden, fields[self.held])
        output: Tensor = model(
            hidden_states=hidden,
            timestep=1000 * sigma.to(x_t.device).expand(len(x_t)),
            encoder_hidden_states=fields["text"],
            encoder_attention_mask=fields["text_mask"],
            pooled_projections=fields["pooled"],
            guidance=None if guidance is None else 1000 * guidance,
            return_dict=False,
        )[0]
        return output


def _own_encoders_alone(what: str) -> NoReturn:
    raise UserError(
        f"a HunyuanVideo can't {what} here, because it reads its prompts through two encoders of its own; give "
        "model.path a published one, with model.init load and model.encoders own"
    )


BACKBONE = HunyuanVideoBackbone()
