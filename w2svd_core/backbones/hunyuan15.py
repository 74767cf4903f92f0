"""HunyuanVideo 1.5: diffusers' `HunyuanVideo15Transformer3DModel`, from text, and from a first frame beside it.

It reads two texts (Qwen2.5-VL's tokens of the prompt, ByT5's of the words in quotes), and of a first frame its latents,
beside the noise, and SigLIP's patches. Without a first frame these are zeros, by which the class itself knows it: of a
whole batch, so that clips with and without one never go in the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor, nn

from ..condition import Condition
from ..errors import UserError
from ..geometry import LatentGeometry
from ..settings import Model
from . import hunyuan15_keys
from .base import Architecture, KeyMap
from .beside import beside
from .fits import check_fields, check_fit, check_one_frame
from .hunyuan15_class import new_model, time_of
from .hunyuan15_config import config_at
from .hunyuan15_loading import load_model
from .hunyuan15_probe import probe_of
from .hunyuan15_variants import PICTURE, TAKES, TEXT, facts_of, geometry_of
from .transformer import Config, Transformer, Words, seen

if TYPE_CHECKING:
    from ..data.codec import Codec
    from ..data.encoder_source import EncoderSource, StartEncoder

BLOCK = "transformer_blocks.*."


class HunyuanVideo15Backbone(Transformer):
    """HunyuanVideo 1.5. The model predicts eps - x0 and takes its time as 1000 sigma."""

    name = "hunyuan_video15"
    lora_targets: tuple[str, ...] = (
        *(f"{BLOCK}attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
        *(f"{BLOCK}attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
        *(f"{BLOCK}{name}" for name in ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")),
    )
    keys: KeyMap = hunyuan15_keys
    words = Words(new_model, load_model, config_at, geometry_of, facts_of, probe_of, hunyuan15_keys.to_native)

    def build(self, architecture: Architecture) -> nn.Module:
        _own_encoders_alone("be trained from scratch")

    def with_first_frame(self, model: nn.Module) -> nn.Module:
        raise UserError(
            f"{self.facts(model).name} takes a first frame as it is; set model.init to load and model.first_frame to "
            "true"
        )

    def source(self, settings: Model, config: Config, text: torch.dtype, device: torch.device) -> EncoderSource:
        from .hunyuan15_source import Hunyuan15Source

        return Hunyuan15Source(settings, config, text, device)

    def start_encoder(self, settings: Model, codec: Codec) -> StartEncoder | None:
        _own_encoders_alone("learn from the bundled encoders")

    def check_fit(self, model: nn.Module, latents: LatentGeometry, width: int) -> None:
        config = seen(model)
        check_fit(config["out_channels"], [config["text_embed_dim"]], latents, width)

    def check_condition(self, model: nn.Module, condition: Condition) -> None:
        config, fields = seen(model), condition.fields

        def name() -> str:
            return self.facts(model).name

        pictured = any(field in fields for field in PICTURE)
        check_fields(name, TAKES if pictured else TEXT, TAKES, condition)
        sizes = {"text": "text_embed_dim", "glyphs": "text_embed_2_dim", "image": "image_embed_dim"}
        for field, size in sizes.items():
            if field in fields and fields[field].shape[-1] != config[size]:
                raise UserError(
                    f"{name()} takes the field {field} {config[size]} wide, the clips were prepared with "
                    f"{fields[field].shape[-1]}; prepare them again for this model"
                )
        for field in ("text", "glyphs"):
            mask = fields[f"{field}_mask"]
            if mask.shape != fields[field].shape[:2]:
                raise UserError(
                    f"the clips were prepared with {fields[field].shape[1]} tokens of {field} and a mask for "
                    f"{mask.shape[-1]}; prepare them again"
                )
        if pictured:
            check_one_frame(name, fields["start"], config["out_channels"])

    def predict(self, model: nn.Module, x_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self.check_condition(model, condition)
        dtype = model.get_parameter("x_embedder.proj.weight").dtype
        fields = {name: value.to(dtype) for name, value in condition.fields.items()}
        hidden = x_t.to(dtype)
        output: Tensor = model(
            hidden_states=torch.cat([hidden, *beside(fields.get("start"), hidden)], dim=1),
            timestep=time_of(sigma, len(x_t), x_t.device),
            encoder_hidden_states=fields["text"],
            encoder_attention_mask=fields["text_mask"],
            encoder_hidden_states_2=fields["glyphs"],
            encoder_attention_mask_2=fields["glyphs_mask"],
            image_embeds=self._patches(model, fields),
            return_dict=False,
        )[0]
        return output

    def _patches(self, model: nn.Module, fields: Mapping[str, Tensor]) -> Tensor:
        """SigLIP's patches (b, n, width), or one of zeros, which the class leaves out as it does the pipeline's 729.

        Raises:
            UserError: some clips have zeros for a picture.
        """
        text, image = fields["text"], fields.get("image")
        if image is None:
            return text.new_zeros(len(text), 1, seen(model)["image_embed_dim"])
        if not image.flatten(1).any(dim=1).all():
            raise UserError(
                f"{self.facts(model).name} can't make clips with and without a first frame in one batch, and some of "
                "these have an empty picture; prepare them again, all from a first frame or none"
            )
        return image


def _own_encoders_alone(what: str) -> NoReturn:
    raise UserError(
        f"a HunyuanVideo 1.5 can't {what} here, because it reads its prompts through two encoders of its own; give "
        "model.path a published one, with model.init load and model.encoders own"
    )


BACKBONE = HunyuanVideo15Backbone()
