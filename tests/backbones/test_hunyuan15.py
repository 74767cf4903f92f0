"""HunyuanVideo 1.5 on disk and in words: the published ones, their names, their time, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hunyuan15_kinds import HUNYUAN15, PATCH, by_hand, new_hunyuan15
from test_hunyuan_keys import as_comfyui_calls_it
from torch import Tensor

from w2svd_core.backbones import backbone, hunyuan15_keys
from w2svd_core.backbones.base import Architecture
from w2svd_core.backbones.hunyuan15_source import Hunyuan15Source
from w2svd_core.backbones.hunyuan15_variants import VARIANTS, facts_of, inferred_config
from w2svd_core.backbones.published import Published, published_config
from w2svd_core.condition import Condition
from w2svd_core.config import load_recipe
from w2svd_core.errors import UserError
from w2svd_core.files import write_safetensors
from w2svd_core.job import unusual
from w2svd_core.settings import Model

FAMILY = backbone("hunyuan_video15")
T2V, I2V = HUNYUAN15
SIGMA = torch.tensor([0.9, 0.35])
SHIFTS = {"480p T2V": 5, "480p I2V": 5, "720p T2V": 9, "720p I2V": 7}


# ---- the published ones


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.config)
def test_the_published_ones_are_known_by_their_sizes(variant: Published) -> None:
    from diffusers import HunyuanVideo15Transformer3DModel

    config = published_config(variant)
    with torch.device("meta"):
        model = HunyuanVideo15Transformer3DModel.from_config(dict(config))
    facts = FAMILY.facts(model)
    assert facts.name == variant.name and facts.repository == variant.repository
    assert facts.gigabytes == pytest.approx(variant.gigabytes, abs=0.1)
    assert facts.shift == SHIFTS[variant.name.removeprefix("HunyuanVideo 1.5 ")]
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    told = inferred_config(shapes, "file")
    assert told == {**config, "target_size": 640, "task_type": "i2v"}  # which no shape tells
    native = hunyuan15_keys.to_native(model.state_dict())
    assert len(native) == len(shapes) - 2 * (54 * 4 + 2 * 2)  # q, k and v have one layer
    assert native["double_blocks.53.txt_attn_qkv.weight"].shape == (3 * 2048, 2048)
    assert hunyuan15_keys.diffusers_names(native).keys() == shapes.keys()


@pytest.mark.parametrize(("name", "variant"), [("hunyuan_video15_t2v", 0), ("hunyuan_video15_i2v", 1)])
def test_the_recipes_ask_for_what_the_models_are_made_for(name: str, variant: int) -> None:
    recipe = load_recipe(name)
    facts = facts_of(published_config(VARIANTS[variant]), 8_326_608_160)
    assert recipe.model.family == "hunyuan_video15" and recipe.model.encoders == "own"
    assert recipe.model.first_frame == (variant == 1) and VARIANTS[variant].repository.endswith(recipe.model.path[-8:])
    assert unusual(recipe, facts) == [] and recipe.teacher.shift == facts.shift
    assert recipe.matching.guidance_scale == recipe.teacher.guidance_scale == facts.guidance_scale
    shape = FAMILY.latents(new_hunyuan15()).latent_shape(recipe.data.frames, recipe.data.height, recipe.data.width)
    assert shape == (32, 31, 30, 53)


# ---- names


def apart(native: dict[str, Tensor]) -> dict[str, Tensor]:
    """As Tencent's own files have it: q, k and v of double blocks each for itself."""
    found = {}
    for name, tensor in native.items():
        if "_attn_qkv." in name and name.startswith("double_blocks."):
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                found[name.replace("_attn_qkv.", f"_attn_{letter}.")] = part.clone()
        else:
            found[name] = tensor
    return found


@pytest.mark.parametrize("whose", ["Tencent", "ComfyUI"])
def test_files_of_others_are_the_model(whose: str, tmp_path: Path) -> None:
    model = new_hunyuan15()
    rng = torch.Generator().manual_seed(3)
    for parameter in model.parameters():  # each its own, so that a swap shows
        parameter.data = torch.randn(parameter.shape, generator=rng)
    native = dict(FAMILY.native_state(model))
    state = apart(native) if whose == "Tencent" else {as_comfyui_calls_it(n): t for n, t in native.items()}
    assert state.keys() != native.keys()
    write_safetensors(tmp_path / "model.safetensors", state, FAMILY.native_metadata(model))
    found = FAMILY.load(tmp_path / "model.safetensors", torch.float32).state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in model.state_dict().items())
    swapped = native["final_layer.adaLN_modulation.1.weight"]
    assert torch.equal(torch.cat(swapped.chunk(2)[::-1]), model.state_dict()["norm_out.linear.weight"])


@pytest.mark.parametrize(
    ("native", "ours"),
    [
        ("double_blocks.7.img_attn_qkv", ["to_q", "to_k", "to_v"]),
        ("double_blocks.7.txt_attn.qkv", ["add_q_proj", "add_k_proj", "add_v_proj"]),
        ("lora_unet_double_blocks_7_img_attn_qkv", ["to_q", "to_k", "to_v"]),
        ("lora_unet_double_blocks_7_txt_attn_k", ["add_k_proj"]),  # musubi, which keeps Tencent's layers
        ("double_blocks.7.img_attn_v", ["to_v"]),
    ],
)
def test_layers_of_loras_of_others_are_known(native: str, ours: list[str]) -> None:
    parts = hunyuan15_keys.parts(native)
    assert [part.module for part in parts] == [f"transformer_blocks.7.attn.{name}" for name in ours]
    assert hunyuan15_keys.native_module(parts[0].module).startswith("double_blocks.7.")


def test_what_hunyuan_video_has_alone_is_no_module_of_it() -> None:
    for name in ("vector_in.in_layer", "guidance_in.mlp.0", "single_blocks.0.linear1"):
        with pytest.raises(UserError, match=rf"{name} is not a module of the native HunyuanVideo 1\.5"):
            hunyuan15_keys.parts(name)
    with pytest.raises(UserError, match=r"not a module of diffusers' HunyuanVideo 1\.5"):
        hunyuan15_keys.native_module("single_transformer_blocks.0.attn.to_q")


# ---- time


def test_the_time_stays_exact_in_few_bits() -> None:
    """diffusers' own embedding needs the time in the weights' type, where 937.5 is 936 and 999 is 1000."""
    from diffusers import HunyuanVideo15Transformer3DModel

    whole, ours = new_hunyuan15(), new_hunyuan15().bfloat16()
    theirs = HunyuanVideo15Transformer3DModel.from_config(whole.config).bfloat16().eval()
    theirs.load_state_dict(ours.state_dict())
    times = torch.tensor([937.5, 833.3333, 625.0, 999.0])
    rounded = times.bfloat16()
    assert rounded.tolist() == [936, 832, 624, 1000]
    with torch.no_grad():
        exact = whole.time_embed(times)
        scale = exact.abs().max()
        assert (ours.time_embed(times).float() - exact).abs().max() < 0.02 * scale
        assert (theirs.time_embed(rounded).float() - exact).abs().max() > 0.02 * scale
        assert torch.equal(ours.time_embed(rounded.float()), theirs.time_embed(rounded))
        with pytest.raises(RuntimeError, match="dtype"):
            theirs.time_embed(times)


# ---- what it is asked


@pytest.mark.parametrize("count", [1, 729])
def test_zeros_for_a_picture_are_left_out_however_many(count: int) -> None:
    """The pipeline gives 729 of them."""
    model, condition, x_t = new_hunyuan15(), T2V.condition(2), T2V.points()
    zeros = Condition({**condition.fields, "image": torch.zeros(2, count, PATCH)})
    with torch.no_grad():
        found = FAMILY.predict(model, x_t, SIGMA, condition)
        torch.testing.assert_close(found, by_hand(model, x_t, SIGMA, zeros))


def test_clips_with_and_without_a_picture_in_one_batch_are_one_sentence() -> None:
    model, fields = new_hunyuan15(), dict(I2V.condition(2).fields)
    fields["image"] = fields["image"].clone()
    fields["image"][1] = 0
    with pytest.raises(UserError, match="with and without a first frame in one batch"):
        FAMILY.predict(model, I2V.points(), SIGMA, Condition(fields))
    for lacking in ("start", "image"):
        half = {name: value for name, value in fields.items() if name != lacking}
        with pytest.raises(UserError, match=f"needs {lacking} of each clip"):
            FAMILY.predict(model, I2V.points(), SIGMA, Condition(half))


@pytest.mark.parametrize("field", ["text", "glyphs"])
def test_what_follows_the_last_token_does_not_matter(field: str) -> None:
    model, fields = new_hunyuan15(), dict(I2V.condition(2).fields)
    mask = fields[f"{field}_mask"]
    assert (mask == 0).any()
    other = {**fields, field: torch.where(mask[..., None] == 0, 7.0, fields[field])}
    with torch.no_grad():
        one, two = (FAMILY.predict(model, I2V.points(), SIGMA, Condition(some)) for some in (fields, other))
    torch.testing.assert_close(one, two)


def test_conditions_of_other_sizes_are_one_sentence() -> None:
    model, fields = new_hunyuan15(), dict(I2V.condition(2).fields)
    for change, words in [
        ({"text": torch.zeros(2, 5, 9)}, "takes the field text 16 wide, the clips were prepared with 9"),
        ({"glyphs": torch.zeros(2, 5, 9)}, "takes the field glyphs 12 wide"),
        ({"image": torch.zeros(2, 3, 9)}, "takes the field image 8 wide"),
        ({"glyphs_mask": torch.ones(2, 4)}, "5 tokens of glyphs and a mask for 4"),
        ({"start": torch.zeros(2, 32, 2, 2, 2)}, "takes one first frame of 32 channels"),
        ({"first": torch.zeros(2, 32, 1, 2, 2)}, "takes no first"),
    ]:
        with pytest.raises(UserError, match=words):
            FAMILY.check_condition(model, Condition({**fields, **change}))


# ---- what is refused

BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"use_meanflow": True}, r"is a step-distilled HunyuanVideo 1\.5 \(MeanFlow\)"),
    ({"in_channels": 98}, r"is HunyuanVideo 1\.5's super-resolution model"),
    ({"in_channels": 33}, r"takes 33 channels and gives 32"),
    ({"guidance_embeds": True}, r"keys that a HunyuanVideo15Transformer3DModel does not take \(guidance_embeds\)"),
    ({"target_size": None}, r"lacks target_size"),
    ({"task_type": 3}, r"gives task_type as 3"),
]


@pytest.mark.parametrize("native", [False, True], ids=["folder", "file"])
@pytest.mark.parametrize(("changes", "words"), BROKEN, ids=str)
def test_another_config_is_one_sentence(native: bool, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    model, path = new_hunyuan15(), tmp_path / "folder"
    FAMILY.save_folder(model, path, torch.float32)
    place = path / "config.json"
    config = {k: v for k, v in (json.loads(place.read_text()) | changes).items() if changes.get(k, 0) is not None}
    place.write_text(json.dumps(config))
    if native:
        path = tmp_path / "model.safetensors"
        write_safetensors(path, FAMILY.native_state(model), {"config": json.dumps(config)})
    with pytest.raises(UserError, match=rf"{path}.*({words})"):
        FAMILY.load(path, torch.float32)


def test_a_step_distilled_file_is_known_without_a_header(tmp_path: Path) -> None:
    model = new_hunyuan15(attention_head_dim=128, num_attention_heads=1, rope_axes_dim=(16, 56, 56))
    state = dict(FAMILY.native_state(model))
    for part in ("mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"):
        state[f"time_r_in.{part}"] = state[f"time_in.{part}"].clone()
    write_safetensors(tmp_path / "model.safetensors", state)
    with pytest.raises(UserError, match=r"model\.safetensors is a step-distilled HunyuanVideo 1\.5"):
        FAMILY.load(tmp_path / "model.safetensors", torch.float32)


def test_a_model_for_text_alone_takes_no_first_frame() -> None:
    settings = Model(family="hunyuan_video15", path="there", first_frame=True)
    with pytest.raises(UserError, match=r"there makes clips from text alone, .* model\.first_frame to false"):
        Hunyuan15Source(settings, published_config(VARIANTS[0]))
    assert Hunyuan15Source(settings, published_config(VARIANTS[1])).starts


def test_what_needs_the_bundled_encoders_is_one_sentence() -> None:
    sizes = Architecture(heads=2, head_dim=16, ffn_dim=40, layers=1, text_dim=16)
    for refused, words in (
        (lambda: FAMILY.build(sizes), r"model\.init load and model\.encoders own"),
        (lambda: FAMILY.with_first_frame(new_hunyuan15()), r"model\.init to load and model\.first_frame to true"),
        (lambda: FAMILY.start_encoder(Model(family="hunyuan_video15"), None), r"model\.encoders own"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError, match=words):
            refused()
