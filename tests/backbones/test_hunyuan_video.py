"""HunyuanVideo on disk and in words: what is known of the published ones, and what is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hunyuan_kinds import HUNYUAN, WIDE, new_hunyuan
from kind import Kind, program_of
from safetensors.torch import save_file

from w2svd_core.backbones import backbone
from w2svd_core.backbones.base import Architecture
from w2svd_core.backbones.hunyuan_variants import VARIANTS, facts_of, inferred_config
from w2svd_core.backbones.published import published_config
from w2svd_core.condition import GUIDANCE, Condition
from w2svd_core.config import load_recipe
from w2svd_core.errors import UserError
from w2svd_core.files import read_safetensors, write_safetensors
from w2svd_core.heads import Taps
from w2svd_core.job import unusual
from w2svd_core.roles import Query
from w2svd_core.settings import Model

FAMILY = backbone("hunyuan_video")
BY_NAME = {kind.name: kind for kind in HUNYUAN}
kinds = pytest.mark.parametrize("kind", HUNYUAN, ids=str)
SIGMA = torch.tensor([0.9, 0.35])
RECIPES = {
    "hunyuan_video_t2v": 0, "hunyuan_video_i2v_concat": 1, "hunyuan_video_i2v": 2, "hunyuan_video_portraits": 2,
    "hunyuan_video_gan": 2, "hunyuan_video_dfd": 0,
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.config)
def test_the_published_ones_are_known_by_their_sizes(variant: Any) -> None:
    from diffusers import HunyuanVideoTransformer3DModel

    with torch.device("meta"):
        model = HunyuanVideoTransformer3DModel.from_config(dict(published_config(variant)))
    facts = FAMILY.facts(model)
    assert facts.name == variant.name and facts.repository == variant.repository
    assert facts.gigabytes == pytest.approx(variant.gigabytes, abs=0.1)
    assert (GUIDANCE in facts.takes) == model.config.guidance_embeds and GUIDANCE not in facts.needs
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    told = inferred_config(shapes, "file") | {"image_condition_type": model.config.image_condition_type}
    assert told == dict(published_config(variant))


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_ask_for_what_the_models_are_made_for(name: str) -> None:
    recipe, config = load_recipe(name), published_config(VARIANTS[RECIPES[name]])
    facts = facts_of(config, 12_821_012_544)
    assert recipe.model.family == "hunyuan_video" and recipe.model.encoders == "own"
    assert unusual(recipe, facts) == [] and recipe.teacher.shift == facts.shift
    assert len(recipe.student.sigmas) == 5 and recipe.embedded.teacher == 6
    FAMILY.check_fit(new_hunyuan(text_embed_dim=4096), FAMILY.latents(new_hunyuan()), 4096)
    shape = FAMILY.latents(new_hunyuan()).latent_shape(recipe.data.frames, recipe.data.height, recipe.data.width)
    assert shape == (16, 33, 68, 120)


def test_the_discriminator_reads_the_last_double_block() -> None:
    """W2SVD's figure (arXiv 2503.13319), in the published layout, and as a pass really runs through a small one."""
    from diffusers import HunyuanVideoTransformer3DModel

    (depth,) = load_recipe("hunyuan_video_gan").adversarial.depths
    with torch.device("meta"):
        model: Any = HunyuanVideoTransformer3DModel.from_config(dict(published_config(VARIANTS[2])))
    taps = Taps(list(FAMILY.blocks(model)), (depth,))
    assert taps.blocks == [model.transformer_blocks[-1]] and taps.beyond is model.single_transformer_blocks[0]
    small: Any = new_hunyuan(num_layers=1, num_single_layers=2)
    x_t, sigma, condition = FAMILY.probe(small)
    ran: list[str] = []
    for name, block in small.named_modules():
        block.register_forward_hook(lambda *_, name=name: ran.append(name))
    (tokens,) = Taps(list(FAMILY.blocks(small)), (depth,)).of(lambda: FAMILY.predict(small, x_t, sigma, condition))
    assert tokens.ndim == 3 and tokens.shape[0] == len(x_t) and tokens.any()
    assert "transformer_blocks.0" in ran and not any(name.startswith("single") for name in ran)


# ---- what is on disk


@kinds
def test_a_native_file_without_a_header_says_what_it_is_taken_for(kind: Kind, tmp_path: Path, capsys: Any) -> None:
    model, path = kind.new(**WIDE), tmp_path / "model.safetensors"
    write_safetensors(path, FAMILY.native_state(model))
    found = FAMILY.load(path, torch.float32)
    told = capsys.readouterr().err
    if kind.name == "concat":
        assert found.config.image_condition_type == "latent_concat" and not told
    else:
        assert found.config.image_condition_type is None
        assert "taken for text-to-video" in told and str(path) in told
    write_safetensors(path, FAMILY.native_state(model), FAMILY.native_metadata(model))
    assert FAMILY.load(path, torch.float32).config.image_condition_type == model.config.image_condition_type
    assert not capsys.readouterr().err


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"image_condition_type": "first_frame"}, r"image_condition_type as 'first_frame', which no HunyuanVideo has"),
    ({"image_condition_type": 3}, r"image_condition_type as 3"),
    ({"image_condition_type": ["latent_concat"]}, r"image_condition_type as \['latent_concat'\]"),
    ({"image_condition_type": "latent_concat"}, r"takes 16 channels and gives 16, as no HunyuanVideo"),
    ({"in_channels": 32}, r"is a SkyReels V1 image-to-video model, which is not supported"),
    ({"in_channels": 20}, r"takes 20 channels and gives 16"),
    ({"rope_axes_dim": [2, 4]}, r"gives rope_axes_dim as \[2, 4\]"),
    ({"guidance_embeds": 1}, r"gives guidance_embeds as 1"),
    ({"byt5": True}, r"keys that a HunyuanVideoTransformer3DModel does not take \(byt5\)"),
    ({"num_layers": 2}, r"does not hold the HunyuanVideo|could not be read"),
    ({"text_embed_dim": None}, r"lacks text_embed_dim"),
]


@pytest.mark.parametrize("native", [False, True], ids=["folder", "file"])
@pytest.mark.parametrize(("changes", "words"), BROKEN, ids=str)
def test_a_broken_config_is_one_sentence(native: bool, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    model = new_hunyuan()
    FAMILY.save_folder(model, tmp_path / "folder", torch.float32)
    place = tmp_path / "folder" / "config.json"
    config = {k: v for k, v in (json.loads(place.read_text()) | changes).items() if changes.get(k, 0) is not None}
    place.write_text(json.dumps(config))
    path = tmp_path / "folder"
    if native:
        path = tmp_path / "model.safetensors"
        write_safetensors(path, FAMILY.native_state(model), {"config": json.dumps(config)})
    with pytest.raises(UserError, match=rf"{path}.*({words})"):
        FAMILY.load(path, torch.float32)


def test_files_of_others_are_one_sentence(tmp_path: Path) -> None:
    path, state = tmp_path / "model.safetensors", dict(FAMILY.native_state(new_hunyuan()))
    write_safetensors(path, state)
    with pytest.raises(UserError, match=r"20 is no multiple of the usual head of 128"):
        FAMILY.load(path, torch.float32)
    write_safetensors(path, {**state, "byt5_in.fc1.weight": torch.zeros(2, 2)})  # HunyuanVideo 1.5
    with pytest.raises(UserError, match=rf"{path}: byt5_in\.fc1 is not a module of the native HunyuanVideo"):
        FAMILY.load(path, torch.float32)
    write_safetensors(path, {**state, "double_blocks.0.img_attn_qkv.scale_weight": torch.ones(1)})
    with pytest.raises(UserError, match="scaled weights"):
        FAMILY.load(path, torch.float32)
    del state["img_in.proj.weight"]
    write_safetensors(path, state)
    with pytest.raises(UserError, match=r"has no whole x_embedder\.proj\.weight"):
        FAMILY.load(path, torch.float32)
    FAMILY.save_folder(new_hunyuan(), tmp_path / "folder", torch.float32)
    weights, _ = read_safetensors(tmp_path / "folder" / "diffusion_pytorch_model.safetensors")
    weights["proj_out.bias"] = torch.zeros(3)
    save_file(weights, tmp_path / "folder" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match=r"folder .*copy it again"):
        FAMILY.load(tmp_path / "folder", torch.float32)


# ---- what it is asked


def test_conditions_of_other_sizes_are_one_sentence() -> None:
    replace, concat = BY_NAME["replace"], BY_NAME["concat"]
    fields = dict(replace.condition(2).fields)
    for change, words in [
        ({"text": torch.zeros(2, 5, 9)}, "takes the field text 16 wide, the clips were prepared with 9"),
        ({"pooled": torch.zeros(2, 9)}, "takes the field pooled 12 wide"),
        ({"text_mask": torch.ones(2, 4)}, "prompts of 5 tokens and masks for 4"),
        ({"first": torch.zeros(2, 16, 2, 4, 4)}, "takes one first frame of 16 channels"),
        ({"start": torch.zeros(2, 16, 1, 4, 4)}, "takes no start"),
    ]:
        with pytest.raises(UserError, match=words):
            FAMILY.check_condition(replace.new(), Condition({**fields, **change}))
    with pytest.raises(UserError, match="needs start of each clip"):
        FAMILY.check_condition(concat.new(), Condition({**fields}))


@kinds
def test_a_model_that_takes_guidance_must_be_told_one(kind: Kind) -> None:
    model, fields = kind.new(), kind.condition(2).fields
    bare = Condition({name: value for name, value in fields.items() if name != GUIDANCE})
    FAMILY.check_condition(model, bare)  # data never hold it
    if kind.name == "concat":
        assert bare.fields.keys() == fields.keys()
        return
    with pytest.raises(UserError, match="takes its guidance as an input, and nobody told it one"):
        FAMILY.predict(model, kind.points(), SIGMA, bare)
    with torch.no_grad():
        low, high = (FAMILY.predict(model, kind.points(), SIGMA, bare.guided(scale)) for scale in (1.0, 6.0))
        assert not torch.allclose(low, high)
        assert torch.equal(high, FAMILY.predict(model, kind.points(), SIGMA, Condition(fields)))


def test_what_follows_the_last_token_of_a_prompt_does_not_matter() -> None:
    kind = BY_NAME["t2v"]
    model, condition = kind.new(), kind.condition(2)
    text = condition.fields["text"].clone()
    text[1, 3:] = 7.0  # where the mask is 0
    with torch.no_grad():
        one = FAMILY.predict(model, kind.points(), SIGMA, condition)
        two = FAMILY.predict(model, kind.points(), SIGMA, Condition({**condition.fields, "text": text}))
    torch.testing.assert_close(one, two)


def test_what_needs_the_bundled_encoders_is_one_sentence() -> None:
    sizes = Architecture(heads=2, head_dim=10, ffn_dim=40, layers=1, text_dim=16)
    for refused in (
        lambda: FAMILY.build(sizes),
        lambda: FAMILY.with_first_frame(new_hunyuan()),
        lambda: FAMILY.start_encoder(Model(family="hunyuan_video"), None),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError, match=r"model\.init load and model\.encoders own"):
            refused()


# ---- guidance as an input


def told(model: Any, ask: Any, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the network is told while something is asked."""
    seen: list[float] = []
    predict = model.backbone.predict

    def watched(network: Any, x_t: Any, sigma: Any, condition: Condition) -> Any:
        seen.extend(condition.fields[GUIDANCE].tolist())
        return predict(network, x_t, sigma, condition)

    monkeypatch.setattr(model.backbone, "predict", watched)
    ask()
    monkeypatch.undo()
    return seen


def test_each_role_tells_its_own_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = HUNYUAN[0]
    model = kind.with_roles(embedded={"teacher": 6.0, "real": 5.0, "fake": 4.0, "generator": 3.0})
    x_t, sigma = kind.points(), torch.tensor([0.9, 0.35])
    data = Condition({name: v for name, v in kind.condition(2).fields.items() if name != GUIDANCE})
    roles: tuple[Any, ...] = ("teacher", "real", "fake", "generator")
    for role, scale in zip(roles, (6.0, 5.0, 4.0, 3.0), strict=True):
        assert told(model, lambda role=role: model.predict(role, x_t, sigma, data), monkeypatch) == [scale] * 2
    queries = [Query(role, x_t, sigma, data) for role in ("real", "fake")]
    assert told(model, lambda: model.predict_x0_together(queries), monkeypatch) == [5.0, 5.0, 4.0, 4.0]
    model.tell("generator", 1.5)
    assert told(model, lambda: model.predict("generator", x_t, sigma, data), monkeypatch) == [1.5] * 2
    assert model.embedded_guidance("generator") == 1.5


def test_what_learns_from_clips_is_told_no_guidance(new_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = HUNYUAN[0]
    recipe = new_recipe({"method": "flow_matching", "model.family": kind.family, "student.kind": "lora"})
    program: Any = program_of(recipe, kind.new(), kind.clips())
    assert set(told(program.model, lambda: program.round(0), monkeypatch)) == {1.0}
    assert program.model.embedded_guidance("generator") == 6.0  # it is sampled as the teacher is
