"""The kinds of Wan: which one a file is, what it is asked, and what a first frame holds. Roles: see `test_roles`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from wan_kinds import KINDS, Recipes, by_hand, condition_of, new_wan, points_of, program_of, with_roles

from w2svd_core import lora_files
from w2svd_core.backbones import backbone, wan_keys, wan_variants
from w2svd_core.backbones.base import Architecture
from w2svd_core.backbones.wan_loading import stays_wide
from w2svd_core.condition import Condition
from w2svd_core.data.latents import LatentSet
from w2svd_core.errors import UserError
from w2svd_core.files import write_safetensors
from w2svd_core.generation import Way, generate
from w2svd_core.geometry import LatentGeometry
from w2svd_core.objectives.distribution_matching import matching_gradient
from w2svd_core.objectives.flow_matching import denoising_loss
from w2svd_core.roles import Query
from w2svd_core.terms import Question

WAN = backbone("wan")
SIGMA = torch.tensor([0.9, 0.35])
WIDE = {"attention_head_dim": 128, "num_attention_heads": 1, "text_dim": 16}  # a head that needs no config to be known
kinds = pytest.mark.parametrize("kind", list(KINDS))
image_kinds = pytest.mark.parametrize("kind", ["i2v", "ti2v"])


def wide_wan(kind: str) -> nn.Module:
    """With one head of Wan's own width; the width of an image embedding's projection goes with it."""
    return new_wan(kind, **WIDE | ({"added_kv_proj_dim": 128} if kind == "i2v" else {}))


def clips_of(kind: str) -> LatentSet:
    null = Condition({"text": condition_of(kind, 1, seed=1).fields["text"]})
    return LatentSet(points_of(kind, 5, seed=2), condition_of(kind, 5), null, tuple("abcde"))


# ---- recognition


def real(variant: wan_variants.Variant, **changes: Any) -> nn.Module:
    """A model of full size, without weights."""
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        found: nn.Module = WanTransformer3DModel(**dict(wan_variants.published_config(variant)) | changes)
    return found


def shapes_of(model: nn.Module) -> dict[str, list[int]]:
    """As they are found in a native file with ComfyUI's prefix."""
    native = wan_keys.to_native(model.state_dict(), prefix="model.diffusion_model.")
    return {name: list(native[key].shape) for name, key in wan_keys.diffusers_names(native).items()}


@pytest.mark.parametrize(
    ("variant", "name", "needs", "latents"),
    [
        (0, "Wan 2.1 T2V 1.3B", ("text",), LatentGeometry(16, 8, 4, 2)),
        (1, "Wan 2.1 T2V 14B (or one expert of Wan 2.2 T2V A14B: its tensors have the same shapes)", ("text",),
         LatentGeometry(16, 8, 4, 2)),
        (2, "Wan 2.1 I2V 14B", ("text", "start", "image"), LatentGeometry(16, 8, 4, 2)),
        (3, "Wan 2.2 TI2V 5B", ("text",), LatentGeometry(48, 16, 4, 2)),
    ],
)  # fmt: skip
def test_a_published_model_is_known_by_its_shapes(
    variant: int, name: str, needs: tuple[str, ...], latents: LatentGeometry
) -> None:
    published = wan_variants.VARIANTS[variant]
    model = real(published)
    assert wan_variants.inferred_config(shapes_of(model), "x") == wan_variants.published_config(published)
    facts = WAN.facts(model)
    assert (facts.name, facts.needs, facts.repository) == (name, needs, published.repository)
    assert facts.gigabytes == pytest.approx(published.gigabytes, abs=0.05)
    assert WAN.latents(model) == latents


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_dim": None, "added_kv_proj_dim": None}, "one expert of Wan 2.2 I2V A14B, whose two experts are not"),
        ({"pos_embed_seq_len": 514}, "Wan FLF2V"),
        ({"in_channels": 52}, "takes 52 channels and gives 16"),
    ],
)
def test_a_model_that_is_not_supported_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    config = wan_variants.inferred_config(shapes_of(real(wan_variants.VARIANTS[2], **changes)), "x.safetensors")
    with pytest.raises(UserError, match=f"^x.safetensors .*{words}.*Wan 2.1 T2V 1.3B"):
        wan_variants.refuse_unsupported(config, "x.safetensors")


def test_vace_and_two_experts_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Wan VACE"):
        wan_variants.inferred_config({"vace_blocks.0.proj_in.weight": [1, 1]}, "x")
    WAN.save_folder(new_wan(), tmp_path / "transformer", torch.float32)
    (tmp_path / "transformer_2").mkdir()
    with pytest.raises(UserError, match=r"Wan 2\.2 A14B, whose two experts are not supported"):
        WAN.load(tmp_path, torch.float32)


def test_a_missing_model_says_where_they_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing is not there.*Wan-AI/Wan2.1-T2V-1.3B-Diffusers \(.*2.8 GB"):
        WAN.load(tmp_path / "nothing", torch.float32)


# ---- files


@kinds
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusers", "header", "folder"])
def test_a_model_comes_back_from_every_form(kind: str, prefix: str, tmp_path: Path) -> None:
    model, path = wide_wan(kind), tmp_path / "wan.safetensors"
    if prefix == "folder":
        path = tmp_path / "transformer"
        WAN.save_folder(model, path, torch.float32)
        path = tmp_path
    elif prefix == "diffusers":
        save_file(model.state_dict(), path)
    elif prefix == "header":
        model = new_wan(kind)  # whose heads only the header tells
        write_safetensors(path, WAN.native_state(model), WAN.native_metadata(model))
    else:
        save_file(wan_keys.to_native(model.state_dict(), prefix=prefix), path)
    found = WAN.load(path, torch.float32)
    before, after = model.state_dict(), found.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert WAN.facts(found).needs == WAN.facts(model).needs
    x_t, condition = points_of(kind), condition_of(kind, 2)
    with torch.no_grad():
        assert torch.equal(WAN.predict(found, x_t, SIGMA, condition), by_hand(model, x_t, SIGMA, condition))


@kinds
@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float16])
def test_small_numbers_are_cast_one_by_one(kind: str, stored: torch.dtype, tmp_path: Path) -> None:
    model, path = wide_wan(kind), tmp_path / "wan.safetensors"
    small = {name: weight.to(stored) for name, weight in wan_keys.to_native(model.state_dict()).items()}
    save_file(small, path)
    found = WAN.load(path, torch.bfloat16).state_dict()
    assert any(weight.dtype == torch.bfloat16 for weight in found.values())
    for name, weight in wan_keys.from_native(small).items():
        wanted = torch.float32 if stays_wide(name) else torch.bfloat16
        assert found[name].dtype == wanted and torch.equal(found[name], weight.to(wanted)), name


def broken(change: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file as people have it that can't be read."""
    name = "blocks.0.self_attn.q.weight"
    if change == "scaled":
        return state | {"scaled_fp8": torch.zeros(2), "blocks.0.self_attn.q.scale_weight": torch.ones(1)}
    if change == "int8":
        return state | {name: state[name].to(torch.int8)}
    if change == "cut":
        return {key: value for key, value in state.items() if key != name}
    if change == "bare":
        return {key: value for key, value in state.items() if key != "head.head.weight"}
    return state | {name: state[name][:, :64].clone()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("scaled", r"scaled weights \(key .*scale.*\).*use the bf16, fp16 or plain fp8 file"),
        ("int8", "quantised weights .*in I8.*use the bf16"),
        ("cut", "does not hold the Wan model"),
        ("bare", "has no whole proj_out.weight"),
        ("shape", "does not hold the Wan model"),
    ],
)
def test_a_file_that_can_not_be_read_is_one_sentence(change: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "wan.safetensors"
    save_file(broken(change, wan_keys.to_native(wide_wan("t2v").state_dict())), path)
    with pytest.raises(UserError, match=f"^{path}.*{words}"):
        WAN.load(path, torch.float32)


# ---- a call


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predict_is_the_call_of_the_pipeline(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = new_wan(kind)
    WAN.save_folder(model, tmp_path, dtype)
    model, x_t, condition = WAN.load(tmp_path, dtype), points_of(kind), condition_of(kind, 2)
    with torch.no_grad():
        found = WAN.predict(model, x_t, SIGMA, condition)
        if dtype == torch.float32:
            assert torch.equal(found, by_hand(model, x_t, SIGMA, condition))
        else:
            exact = by_hand(new_wan(kind), x_t, SIGMA, condition)
            torch.testing.assert_close(found.float(), exact, atol=0.1, rtol=0.1)


def test_text_to_video_of_ti2v_has_one_time_for_all_tokens() -> None:
    model, x_t = new_wan("ti2v"), points_of("ti2v")
    text = Condition({"text": condition_of("ti2v", 2).fields["text"]})
    with torch.no_grad():
        found = WAN.predict(model, x_t, SIGMA, text)
        times = (1000 * SIGMA)[:, None].expand(2, 12)
        expected = model(x_t, timestep=times, encoder_hidden_states=text.fields["text"], return_dict=False)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert WAN.hold(x_t, text) is x_t and WAN.free(text, x_t) is None


@pytest.mark.parametrize(
    ("model", "condition", "words"),
    [
        ("i2v", "t2v", "image-to-video .* needs start and image of each clip, but the clips were prepared with text;"),
        ("t2v", "i2v", "text-to-video .* takes no start and image, but"),
        ("ti2v", "i2v", "takes no image"),
        ("t2v", "ti2v", "takes no start"),
    ],
)
def test_a_condition_of_another_kind_is_one_sentence(model: str, condition: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        WAN.predict(new_wan(model), points_of(model), SIGMA, condition_of(condition, 2))


@pytest.mark.parametrize(
    ("field", "cut", "words"),
    [
        ("image", lambda v: v[..., :4], "image embeddings 20 wide, the image encoder makes them 4 wide"),
        ("start", lambda v: v[:, :4], "first frame of 16 channels, the clips were prepared with 4"),
        ("text", lambda v: v.repeat(1, 103, 1), "at most 512 tokens, these have 515"),
    ],
)
def test_a_field_of_another_size_is_one_sentence(field: str, cut: Callable[[Tensor], Tensor], words: str) -> None:
    fields = dict(condition_of("i2v", 2).fields)
    fields[field] = cut(fields[field])
    with pytest.raises(UserError, match=words):
        WAN.predict(new_wan("i2v"), points_of("i2v"), SIGMA, Condition(fields))


def test_a_new_model_with_a_first_frame_needs_no_image_encoder() -> None:
    sizes = Architecture(heads=2, head_dim=12, ffn_dim=32, layers=2, text_dim=16)
    model = WAN.build(Architecture(**vars(sizes) | {"first_frame": True})).eval()
    assert WAN.facts(model).needs == ("text", "start") and WAN.latents(model) == WAN.latents(WAN.build(sizes))
    fields = condition_of("i2v", 2).fields
    condition = Condition({name: fields[name] for name in ("text", "start")})
    other = Condition({**condition.fields, "start": -condition.fields["start"]})
    with torch.no_grad():
        found, changed = (WAN.predict(model, points_of("i2v"), SIGMA, c) for c in (condition, other))
    assert found.shape == points_of("i2v").shape and not torch.allclose(found, changed)


# ---- a first frame in the latents


def test_a_given_frame_is_held_whatever_the_noise_is_there() -> None:
    shared, condition = with_roles(new_wan("ti2v")), condition_of("ti2v", 2)
    x_t, start = points_of("ti2v"), condition.fields["start"]
    other = torch.cat([torch.randn_like(start), x_t[:, :, 1:]], dim=2)
    with torch.no_grad():
        queries = [Query(role, x, SIGMA, condition) for role in ("teacher", "real", "fake") for x in (x_t, other)]
        for query, x0 in zip(queries, shared.predict_x0_together(queries), strict=True):
            assert torch.equal(x0[:, :, :1], start)
            alone = shared.predict_x0(query.role, query.x_t, SIGMA, condition)
            torch.testing.assert_close(x0, alone, atol=1e-6, rtol=1e-6)
        assert torch.equal(*(shared.predict("fake", x, SIGMA, condition) for x in (x_t, other)))


def test_a_given_frame_gets_no_gradient_and_does_not_count_in_the_mean(new_recipe: Recipes) -> None:
    recipe = new_recipe({"matching.guidance_scale": 3.0, "matching.normaliser_floor": 1e-6})
    program: Any = program_of(recipe, new_wan("ti2v"), clips_of("ti2v"), fresh=False)
    condition, x_t = condition_of("ti2v", 2), points_of("ti2v")
    x0 = program.model.predict_x0("generator", x_t, SIGMA, condition)
    points = points_of("ti2v", seed=7)
    fake, real = program._scores(points, Question(points), SIGMA, condition)
    found = matching_gradient(x0, fake, real, 1e-6, WAN.free(condition, x0))
    assert not found[:, :, 0].any() and found[:, :, 1:].count_nonzero() > 0.9 * found[:, :, 1:].numel()
    alone = matching_gradient(x0[:, :, 1:], fake[:, :, 1:], real[:, :, 1:], 1e-6)
    torch.testing.assert_close(found[:, :, 1:], alone)


def test_the_denoising_loss_is_the_mean_over_what_is_free() -> None:
    x0, eps = points_of("ti2v"), points_of("ti2v", seed=1)
    output = points_of("ti2v", seed=2).requires_grad_()
    free = WAN.free(condition_of("ti2v", 2), x0)
    loss = denoising_loss(WAN.process, output, x0, eps, SIGMA, free)
    alone = denoising_loss(WAN.process, output[:, :, 1:], x0[:, :, 1:], eps[:, :, 1:], SIGMA)
    torch.testing.assert_close(loss, alone)
    loss.backward()
    assert output.grad is not None and not output.grad[:, :, 0].any() and output.grad[:, :, 1:].all()


def test_a_clip_that_is_all_given_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"raise data\.frames"):
        WAN.free(condition_of("ti2v", 2), points_of("ti2v")[:, :, :1])


# ---- the null condition


@image_kinds
def test_guidance_leaves_out_the_words_alone(kind: str) -> None:
    condition, null = condition_of(kind, 3), clips_of(kind).null
    found = condition.instead(null)
    assert found.fields.keys() == condition.fields.keys()
    assert torch.equal(found.fields["text"], null.fields["text"].expand(3, -1, -1))
    assert all(found.fields[name] is value for name, value in condition.fields.items() if name != "text")


@image_kinds
@pytest.mark.parametrize("role", ["teacher", "generator"])
def test_a_guided_clip_starts_from_its_frame(kind: str, role: Any) -> None:
    shared, data = with_roles(new_wan(kind)), clips_of(kind)
    way = Way(role, (1.0, 0.9, 0.6, 0.0), "euler", guidance_scale=3.0)

    def made(condition: Condition) -> Tensor:
        return generate(shared, way, condition, data.null, points_of(kind).shape[1:], [1, 2], batch=2)

    condition = data.condition[:2]
    other = Condition({**condition.fields, "start": -condition.fields["start"]})
    found, changed = made(condition), made(other)
    assert found.isfinite().all() and not torch.allclose(found, changed)
    if kind == "ti2v":
        assert torch.equal(found[:, :, :1], condition.fields["start"])


# ---- training


@kinds
@pytest.mark.parametrize(
    "changes",
    [
        {"method": "flow_matching", "train.condition_dropout": 1.0},
        {"rollout.source": "backward_simulation", "matching.guidance_scale": 3.0, "model.gradient_checkpointing": True},
        {"rollout.source": "noised_data", "matching.guidance_scale": 3.0, "matching.batched_scores": False},
    ],
    ids=["flow matching", "simulation", "noised data"],
)
def test_every_method_trains_every_kind(kind: str, changes: dict[str, Any], new_recipe: Recipes) -> None:
    pristine, data = new_wan(kind), clips_of(kind)
    program: Any = program_of(new_recipe(changes | {"critic.warmup": 0}), pristine, data)
    before = copy.deepcopy(program.model.parameters("generator"))
    seen: list[Condition] = []
    predict = program.model.predict

    def watched(role: Any, x_t: Tensor, sigma: Any, condition: Condition, alpha: float | None = None) -> Tensor:
        seen.append(condition)
        found: Tensor = predict(role, x_t, sigma, condition, alpha)
        return found

    program.model.predict = watched
    for index in range(2):  # in the first one only the upper halves of the adapters can move
        logs = program.round(index)
        assert all(value == value for value in logs.values())
    after = program.model.parameters("generator")
    assert all(not torch.equal(before[name], weight) for name, weight in after.items())
    base = program.model.base_state()
    assert all(torch.equal(base[name], weight) for name, weight in pristine.state_dict().items())
    assert seen and all(condition.fields.keys() == data.condition.fields.keys() for condition in seen)
    if "method" in changes:
        assert all(torch.equal(c.fields["text"], data.null.fields["text"].expand(len(c), -1, -1)) for c in seen)
    elif kind == "ti2v":
        held = [t for name, t in program.pools.tensors().items() if name.endswith("x0")]
        starts = [t for name, t in program.pools.tensors().items() if name.endswith("start")]
        assert held and all(torch.equal(x0[:, :, :1], start) for x0, start in zip(held, starts, strict=True))


@kinds
def test_base_and_lora_in_native_files_give_the_trained_output_in_diffusers(kind: str, tmp_path: Path) -> None:
    from diffusers import WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel

    model, x_t, condition = with_roles(wide_wan(kind)), points_of(kind), condition_of(kind, 2)
    (tmp_path / "config").mkdir()
    model.base.save_config(tmp_path / "config")  # type: ignore[operator]
    base = {f"model.diffusion_model.{n}": w for n, w in wan_keys.to_native(model.base_state()).items()}
    save_file(base, tmp_path / "base.safetensors")
    pairs = lora_files.pairs_from_peft(model.base, "generator")
    assert any("add_k_proj" in name for name in pairs) == (kind == "i2v")
    lora_files.write_lora(tmp_path / "lora.safetensors", pairs, None, format="native", key_map=wan_keys)

    read = WanTransformer3DModel.from_single_file(tmp_path / "base.safetensors", config=str(tmp_path / "config"))
    others: dict[str, Any] = dict(tokenizer=None, text_encoder=None, vae=None, scheduler=None)
    if kind == "i2v":
        others |= dict(image_encoder=None, image_processor=None)
    pipeline = (WanImageToVideoPipeline if kind == "i2v" else WanPipeline)(transformer=read, **others)
    pipeline.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    with torch.no_grad():
        found = by_hand(read, x_t, SIGMA, condition)
        torch.testing.assert_close(found, model.predict("generator", x_t, SIGMA, condition), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(found, model.predict("teacher", x_t, SIGMA, condition), atol=1e-2)
