"""What is Cosmos' alone: which one a file is, projected prompts, no torchvision, its guidance. Else `test_kinds`."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cosmos_kinds import COSMOS as KINDS
from cosmos_kinds import RAW, TEXT, condition_of, new_cosmos, points_of
from kind import Recipes, program_of, with_roles
from safetensors.torch import save_file
from tiny_cosmos import tiny_cosmos
from torch import Tensor, nn
from torch.nn.functional import interpolate

from w2svd_core.assembly import encoder_source, load_base
from w2svd_core.backbones import backbone, cosmos_keys, cosmos_loading, cosmos_variants
from w2svd_core.backbones.base import Architecture
from w2svd_core.backbones.class_config import config_of
from w2svd_core.backbones.cosmos_class import cosmos_class, new_model
from w2svd_core.condition import Condition
from w2svd_core.config import load_recipe
from w2svd_core.errors import UserError
from w2svd_core.geometry import LatentGeometry
from w2svd_core.settings import Model

COSMOS = backbone("cosmos")
SIGMA = torch.tensor([0.9, 0.35])
EARLIER: list[tuple[dict[str, Any], str]] = [  # of diffusers' conversion script
    ({"extra_pos_embed_type": "learnable", "rope_scale": (2.0, 1.0, 1.0)}, "earlier generation"),
    ({"use_crossattn_projection": False}, "earlier generation"),
    ({"in_channels": 16, "use_crossattn_projection": False}, "earlier generation"),
    ({"controlnet_block_every_n": 7}, "Cosmos-Transfer"),
    ({"img_context_dim_in": 1152}, "Cosmos-Transfer"),
    ({"in_channels": 33}, "takes 33 channels and gives 16"),
]


def real(variant: cosmos_variants.Variant, **changes: Any) -> nn.Module:
    """A model of full size, without weights."""
    with torch.device("meta"):
        return new_model({**cosmos_variants.published_config(variant), **changes})


def save_config(model: nn.Module, folder: Path) -> Path:
    """A diffusers folder without weights."""
    model.save_config(folder / "transformer")  # type: ignore[operator]
    return folder


# ---- recognition


@pytest.mark.parametrize(("variant", "name"), [(0, "Cosmos-Predict2.5 2B"), (1, "Cosmos-Predict2.5 14B")])
def test_a_published_model_is_known_by_its_shapes(variant: int, name: str, tmp_path: Path) -> None:
    published = cosmos_variants.VARIANTS[variant]
    model = real(published)
    native = cosmos_keys.to_native(model.state_dict(), "net.")
    shapes = {ours: list(native[key].shape) for ours, key in cosmos_keys.diffusers_names(native).items()}
    assert cosmos_variants.inferred_config(shapes, tmp_path) == dict(cosmos_variants.published_config(published))
    facts = COSMOS.facts(model)
    assert (facts.name, facts.needs, facts.takes) == (name, ("text",), ("text", "first"))
    assert (facts.frames, facts.fps, facts.guidance_scale, facts.shift) == (93, 16, 8, 5)
    assert facts.gigabytes == pytest.approx(published.gigabytes, abs=0.05)
    assert COSMOS.latents(model) == LatentGeometry(16, 8, 4, 2)
    COSMOS.check_fit(model, LatentGeometry(16, 8, 4, 2), 1024)


@pytest.mark.parametrize(("changes", "words"), EARLIER)
def test_other_models_of_this_class_are_refused_by_name(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = save_config(real(cosmos_variants.VARIANTS[0], num_layers=1, **changes), tmp_path)
    with pytest.raises(UserError, match=rf"{words}.*Cosmos-Predict2\.5 2B"):
        COSMOS.load(folder, torch.float32)


@pytest.mark.parametrize(
    ("key", "value"), [("rope_scale", [1.0, "three", 3.0]), ("rope_scale", [1.0, 3.0]), ("max_size", [128, 0, 240])]
)
def test_a_config_with_other_numbers_is_one_sentence(key: str, value: Any, tmp_path: Path) -> None:
    folder = save_config(new_cosmos(), tmp_path)
    place = folder / "transformer" / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {key: value}))
    with pytest.raises(UserError, match=rf"config\.json gives {key} as "):
        COSMOS.load(folder, torch.float32)


def test_a_file_of_predict2_is_refused(tmp_path: Path) -> None:
    state = new_cosmos(num_attention_heads=1, attention_head_dim=128, use_crossattn_projection=False).state_dict()
    save_file(cosmos_keys.to_native(state, "net."), tmp_path / "predict2.safetensors")
    with pytest.raises(UserError, match=r"predict2\.safetensors has no crossattn_proj, so it is no Cosmos-Predict2\.5"):
        COSMOS.load(tmp_path / "predict2.safetensors", torch.float32)


def test_what_nvidias_files_carry_along_is_left_out(tmp_path: Path) -> None:
    model = new_cosmos(num_attention_heads=1, attention_head_dim=128)
    state = cosmos_keys.to_native(model.state_dict(), "net.")
    beside = {"accum_iteration": 1, "pos_embedder.seq": 3, "blocks.0.self_attn.attn_op._extra_state": 2}
    state |= {f"net.{name}": torch.zeros(size) for name, size in beside.items()}
    save_file(state, tmp_path / "model.safetensors")
    found = COSMOS.load(tmp_path / "model.safetensors", torch.float32).state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in model.state_dict().items())


def test_a_size_that_no_file_tells_is_asked_for(tmp_path: Path) -> None:
    save_file(cosmos_keys.to_native(new_cosmos().state_dict()), tmp_path / "small.safetensors")
    with pytest.raises(UserError, match=r"24 is no multiple of the usual head of 128"):
        COSMOS.load(tmp_path / "small.safetensors", torch.float32)


# ---- a model of its own size


def test_a_new_model_has_the_sizes_that_are_asked_for() -> None:
    model = COSMOS.build(Architecture(heads=3, head_dim=14, ffn_dim=100, layers=2, text_dim=9, first_frame=True))
    config = config_of(model)
    assert (config["in_channels"], config["num_layers"], config["text_embed_dim"]) == (17, 2, 9)
    assert model.get_parameter("transformer_blocks.1.ff.net.0.proj.weight").shape == (100, 42)
    x_t, condition = points_of(), Condition({"text": torch.randn(2, 5, 9), "first": torch.randn(2, 16, 1, 4, 4)})
    with torch.no_grad():
        assert COSMOS.predict(model, x_t, SIGMA, condition).shape == x_t.shape
    COSMOS.check_fit(model, LatentGeometry(16, 8, 4, 2), 9)


def test_a_new_model_learns_from_the_bundled_encoders() -> None:
    """No model of the family is bundled, and none is asked for."""
    settings = Model(family="cosmos", init="random", heads=1, head_dim=24, ffn_dim=48, layers=1, first_frame=True)
    source = encoder_source(settings, torch.device("cpu"))
    family, model = load_base(settings, source, seed=0)
    start = source.load_start(source.load_codec())
    assert start is not None and list(start.encode(torch.zeros(1, 3, 1, 32, 32), 17, [""])) == ["first"]
    family.check_fit(model, source.geometry, source.width)
    with pytest.raises(UserError, match="no bundled model of the family cosmos"):
        encoder_source(Model(family="cosmos"), torch.device("cpu"))


@pytest.mark.parametrize("head", [8, 13])
def test_a_head_that_positions_do_not_fit_is_one_sentence(head: int) -> None:
    with pytest.raises(UserError, match=rf"model\.head_dim is {head}, but a Cosmos takes even numbers from 12 up"):
        COSMOS.build(Architecture(heads=1, head_dim=head, ffn_dim=32, layers=1, text_dim=9))


def test_it_needs_no_widening() -> None:
    with pytest.raises(UserError, match=r"set model\.init to load and model\.first_frame to true"):
        COSMOS.with_first_frame(new_cosmos())


# ---- the call


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_the_padding_mask_is_one_more_channel_of_zeros(kind: str) -> None:
    """The class itself without its call of torchvision: a twin that is handed the channel."""
    model, x_t, condition = new_cosmos(), points_of(), condition_of(kind, 2)
    twin = cosmos_class()(**config_of(model) | {"in_channels": 18, "concat_padding_mask": False}).eval()
    twin.load_state_dict(model.state_dict())
    b, _, f, h, w = x_t.shape
    given, time = torch.zeros(b, 1, f, h, w), SIGMA[:, None].repeat(1, f)
    if "first" in condition.fields:
        given[:, :, 0], time[:, 0] = 1, 1e-4
        x_t[:, :, :1] = condition.fields["first"]
    with torch.no_grad():
        expected = twin(
            torch.cat([x_t, given, torch.zeros(b, 1, f, h, w)], dim=1), timestep=time.view(b, 1, f, 1, 1),
            encoder_hidden_states=condition.fields["text"], return_dict=False,
        )[0]  # fmt: skip
        found = COSMOS.predict(model, points_of(), SIGMA, condition)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_the_stand_in_resizes_any_mask() -> None:
    cosmos_class()
    if importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is installed, and does it itself")
    transforms: Any = sys.modules["diffusers.models.transformers.transformer_cosmos"].transforms  # type: ignore[attr-defined]
    mask = torch.rand(1, 1, 16, 32)
    found = transforms.functional.resize(mask, [2, 4], interpolation=transforms.InterpolationMode.NEAREST)
    assert torch.equal(found, interpolate(mask, size=(2, 4), mode="nearest"))


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_projected_prompts_say_the_same_as_raw_ones(kind: str) -> None:
    model, raw = new_cosmos(), condition_of(kind, 2)
    with torch.no_grad():
        text = model.crossattn_proj(raw.fields["text"])  # type: ignore[operator]
        assert (raw.fields["text"].shape[-1], text.shape[-1]) == (RAW, TEXT)
        short = Condition({**raw.fields, "text": text})
        assert torch.equal(*(COSMOS.predict(model, points_of(), SIGMA, asked) for asked in (raw, short)))
    for width in (RAW, TEXT):
        COSMOS.check_fit(model, LatentGeometry(16, 8, 4, 2), width)
    with pytest.raises(UserError, match="takes prompt embeddings 16 wide, the prompt encoder makes them 20 wide"):
        COSMOS.check_fit(model, LatentGeometry(16, 8, 4, 2), 20)


def test_a_full_copy_learns_from_projected_prompts() -> None:
    """Its projection stays, since prompts do not come through it; everything else has a gradient."""
    shared = with_roles(new_cosmos(), family="cosmos", student_rank=0)
    condition = condition_of("i2v", 2, width=TEXT)
    shared.predict("generator", points_of(), SIGMA, condition).square().mean().backward()
    lacking = [name for name, weight in shared.parameters("generator").items() if weight.grad is None]
    assert lacking == ["crossattn_proj.0.weight", "crossattn_proj.0.bias"]


def test_a_first_frame_of_other_latents_is_one_sentence() -> None:
    condition = Condition({**condition_of("t2v", 2).fields, "first": torch.zeros(2, 16, 3, 4, 4)})
    with pytest.raises(UserError, match="takes one first frame of 16 channels, the clips were prepared with 3 of 16"):
        COSMOS.predict(new_cosmos(), points_of(), SIGMA, condition)


def test_other_frames_do_not_change_with_the_time_of_the_given_one() -> None:
    """It has a time of its own: the noise level says nothing about it."""
    model, condition = new_cosmos(), condition_of("i2v", 1)
    seen: list[Tensor] = []
    model.time_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))  # type: ignore[operator, union-attr]
    with torch.no_grad():
        COSMOS.predict(model, points_of(1), SIGMA[:1], condition)
        COSMOS.predict(model, points_of(1), SIGMA[:1], condition_of("t2v", 1))
    torch.testing.assert_close(seen[0], torch.tensor([1e-4, 0.9, 0.9]))
    torch.testing.assert_close(seen[1], torch.tensor([0.9]))


def test_a_teacher_that_is_given_a_frame_judges_no_single_ones(new_recipe: Recipes) -> None:
    on = {"frame_matching.weight": 0.5, "frame_matching.rank": 3, "frame_matching.model": "teacher"}
    kind = next(kind for kind in KINDS if kind.picture)
    with pytest.raises(UserError, match="from a given first frame and so can't judge single frames"):
        program_of(new_recipe({"model.family": "cosmos", **on}), kind.new(), kind.clips())


# ---- what is said


def test_what_is_left_out_is_said_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of NVIDIA's models, not of a small one of the user's own."""
    cosmos_loading._say_once.cache_clear()
    COSMOS.load(tiny_cosmos().folder, torch.float32)
    assert "guardrail" not in capsys.readouterr().err
    monkeypatch.setattr(cosmos_loading, "recognised", lambda config: cosmos_variants.VARIANTS[0])
    for _ in range(2):
        COSMOS.load(tiny_cosmos().folder, torch.float32)
    found = capsys.readouterr()
    assert found.err.count("guardrail (") == 1 and "NVIDIA Open Model License" in found.err and not found.out


@pytest.mark.parametrize("name", ["cosmos_t2v_2b", "cosmos_i2v_2b", "cosmos_i2v_2b_dfd"])
def test_the_recipes_know_their_model(name: str) -> None:
    recipe = load_recipe(name)
    facts = COSMOS.facts(real(cosmos_variants.VARIANTS[0]))
    assert recipe.model.family == "cosmos" and recipe.model.encoders == "own"
    assert recipe.model.first_frame == ("i2v" in name)
    assert (recipe.teacher.guidance_scale, recipe.teacher.shift) == (facts.guidance_scale, facts.shift)
    assert (recipe.matching.guidance_scale, recipe.student.sampler) == (
        3,
        "euler",
    )  # FastGen's, in its convention and ours
    assert (recipe.data_forcing.probability > 0) == name.endswith("dfd")
    COSMOS.latents(real(cosmos_variants.VARIANTS[0])).latent_shape(
        recipe.data.frames, recipe.data.height, recipe.data.width
    )
