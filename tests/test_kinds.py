"""What every kind of every family must do: its files, its call, its first frame, its training. Roles: `test_roles`."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kind import Kind, Recipes, program_of
from kinds import holding, kinds, pictured, telling
from safetensors.torch import save_file
from torch import Tensor, nn

from w2svd_core.condition import Condition
from w2svd_core.errors import UserError
from w2svd_core.files import write_safetensors
from w2svd_core.generation import Way, generate
from w2svd_core.objectives.distribution_matching import matching_gradient
from w2svd_core.objectives.flow_matching import denoising_loss
from w2svd_core.roles import Query
from w2svd_core.terms import Question

SIGMA = torch.tensor([0.9, 0.35])


def stays_wide(model: nn.Module, name: str) -> bool:
    """Whether diffusers keeps this weight in float32."""
    return not set(getattr(model, "_keep_in_fp32_modules", None) or ()).isdisjoint(name.split("."))


# ---- files


def same(kind: Kind, found: nn.Module, model: nn.Module) -> None:
    """The same weights bit for bit, the same facts, the same answers (where weights lie in memory may round them)."""
    before, after = model.state_dict(), found.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert kind.backbone.facts(found) == kind.backbone.facts(model)
    x_t, condition = kind.points(), kind.condition(2)
    with torch.no_grad():
        answer = kind.backbone.predict(found, x_t, SIGMA, condition)
        torch.testing.assert_close(answer, kind.by_hand(model, x_t, SIGMA, condition), atol=1e-6, rtol=1e-5)


@kinds
@pytest.mark.parametrize("inside", ["", "transformer"])
def test_a_folder_comes_back(kind: Kind, inside: str, tmp_path: Path) -> None:
    model = kind.new()
    kind.backbone.save_folder(model, tmp_path / "model" / inside, torch.float32)
    same(kind, kind.backbone.load(tmp_path / "model", torch.float32).eval(), model)


@kinds
def test_a_native_file_with_a_header_comes_back(kind: Kind, tmp_path: Path) -> None:
    model, path = kind.new(), tmp_path / "model.safetensors"
    write_safetensors(path, kind.backbone.native_state(model), kind.backbone.native_metadata(model))
    same(kind, kind.backbone.load(path, torch.float32).eval(), model)


@telling
@pytest.mark.parametrize("names", ["native", "prefixed", "diffusers"])
def test_a_file_without_a_header_comes_back(kind: Kind, names: str, tmp_path: Path) -> None:
    assert kind.telling is not None and kind.native is not None
    model, path = kind.new(**kind.telling), tmp_path / "model.safetensors"
    prefix = "model.diffusion_model." if names == "prefixed" else ""
    state = model.state_dict() if names == "diffusers" else kind.native(model)
    save_file({f"{prefix}{name}": weight.contiguous() for name, weight in state.items()}, path)
    same(kind, kind.backbone.load(path, torch.float32).eval(), model)


@telling
@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float16])
def test_small_numbers_are_cast_one_by_one(kind: Kind, stored: torch.dtype, tmp_path: Path) -> None:
    assert kind.telling is not None and kind.native is not None
    model, path = kind.new(**kind.telling), tmp_path / "model.safetensors"
    save_file({name: weight.to(stored) for name, weight in kind.native(model).items()}, path)
    found = kind.backbone.load(path, torch.bfloat16).state_dict()
    assert any(weight.dtype == torch.bfloat16 for weight in found.values())
    for name, weight in model.state_dict().items():
        wanted = torch.float32 if stays_wide(model, name) else torch.bfloat16
        assert found[name].dtype == wanted and torch.equal(found[name], weight.to(stored).to(wanted)), name


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_folder_has_its_precision(kind: Kind, dtype: torch.dtype, tmp_path: Path) -> None:
    model = kind.new()
    kind.backbone.save_folder(model, tmp_path, dtype)
    loaded, found = type(model).from_pretrained(  # type: ignore[attr-defined]
        tmp_path, torch_dtype=dtype, output_loading_info=True
    )
    assert not any(found.values())
    ours = kind.backbone.load(tmp_path, dtype).state_dict()
    for name, weight in model.state_dict().items():
        wanted = weight if stays_wide(model, name) else weight.to(dtype)
        for seen in (ours[name], loaded.state_dict()[name]):
            assert seen.dtype == wanted.dtype and torch.equal(seen, wanted), name
    if dtype == torch.bfloat16:
        model, x_t, condition = kind.backbone.load(tmp_path, dtype), kind.points(), kind.condition(2)
        with torch.no_grad():
            answer = kind.backbone.predict(model, x_t, SIGMA, condition)
            torch.testing.assert_close(
                answer.float(), kind.by_hand(kind.new(), x_t, SIGMA, condition), atol=0.1, rtol=0.1
            )


@kinds
def test_what_is_no_model_is_one_sentence(kind: Kind, tmp_path: Path) -> None:
    """Nothing, another family's class, a broken config, a cut file."""
    load, model = kind.backbone.load, kind.new()
    with pytest.raises(UserError, match="nothing is not there"):
        load(tmp_path / "nothing", torch.float32)
    kind.backbone.save_folder(model, tmp_path / "folder", torch.float32)
    config = tmp_path / "folder" / "config.json"
    whole = config.read_text()
    for text, words in [
        (whole.replace(type(model).__name__, "CogVideoXTransformer3DModel"), "folder of a"),
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        (whole.replace('"num_attention_heads": 2', '"num_attention_heads": "two"'), "num_attention_heads as 'two'"),
    ]:
        config.write_text(text)
        with pytest.raises(UserError, match=words):
            load(tmp_path / "folder", torch.float32)
    native = dict(kind.backbone.native_state(model))
    del native[max(native)]
    write_safetensors(tmp_path / "cut.safetensors", native, kind.backbone.native_metadata(model))
    with pytest.raises(UserError, match=r"cut\.safetensors"):
        load(tmp_path / "cut.safetensors", torch.float32)


# ---- what a model is asked


@kinds
def test_a_condition_that_lacks_a_field_or_has_one_too_many_is_one_sentence(kind: Kind) -> None:
    model, fields = kind.new(), dict(kind.condition(2).fields)
    facts = kind.backbone.facts(model)
    assert {*facts.needs, *fields} <= {*facts.takes}
    for name in facts.needs:
        with pytest.raises(UserError, match=rf"needs .*{name}"):
            lacking = {key: value for key, value in fields.items() if key != name}
            kind.backbone.predict(model, kind.points(), SIGMA, Condition(lacking or {"image": torch.zeros(2, 1, 1)}))
    with pytest.raises(UserError, match=r"takes no .*melody"):
        kind.backbone.predict(model, kind.points(), SIGMA, Condition({**fields, "melody": torch.zeros(2, 1)}))


@kinds
def test_a_probe_asks_all_that_a_model_takes(kind: Kind) -> None:
    model = kind.new()
    x_t, sigma, condition = kind.backbone.probe(model)
    kind.backbone.check_condition(model, condition)
    with torch.no_grad():
        found = kind.backbone.predict(model, x_t, sigma, condition)
        assert found.shape == x_t.shape and found.isfinite().all()
        assert torch.equal(found, kind.by_hand(model, x_t, sigma, condition))
    again = kind.backbone.probe(model)
    assert torch.equal(again[0], x_t) and again[2].fields.keys() == condition.fields.keys()


@kinds
def test_a_score_of_a_row_does_not_depend_on_the_others(kind: Kind) -> None:
    model, x_t, condition = kind.new(), kind.points(), kind.condition(2)
    with torch.no_grad():
        together = kind.backbone.predict(model, x_t, SIGMA, condition)
        alone = [kind.backbone.predict(model, x_t[i : i + 1], SIGMA[i : i + 1], condition[i : i + 1]) for i in (0, 1)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=1e-5)


# ---- a first frame in the latents


@holding
def test_a_given_frame_is_held_whatever_the_noise_is_there(kind: Kind) -> None:
    shared, condition = kind.with_roles(), kind.condition(2)
    x_t, start = kind.points(), condition.fields[kind.picture]
    other = torch.cat([torch.randn_like(start), x_t[:, :, 1:]], dim=2)
    with torch.no_grad():
        queries = [Query(role, x, SIGMA, condition) for role in ("teacher", "real", "fake") for x in (x_t, other)]
        for query, x0 in zip(queries, shared.predict_x0_together(queries), strict=True):
            assert torch.equal(x0[:, :, :1], start)
            alone = shared.predict_x0(query.role, query.x_t, SIGMA, condition)
            torch.testing.assert_close(x0, alone, atol=1e-6, rtol=1e-6)
        assert torch.equal(*(shared.predict("fake", x, SIGMA, condition)[:, :, 1:] for x in (x_t, other)))


@holding
def test_a_given_frame_gets_no_gradient_and_does_not_count_in_the_mean(kind: Kind, new_recipe: Recipes) -> None:
    recipe = new_recipe(
        {"model.family": kind.family, "matching.guidance_scale": 3.0, "matching.normaliser_floor": 1e-6}
    )
    program: Any = program_of(recipe, kind.new(), kind.clips(), fresh=False)
    condition, x_t = kind.clips().condition[:2], kind.points()
    x0 = program.model.predict_x0("generator", x_t, SIGMA, condition)
    points = kind.points(seed=7)
    fake, real = program._scores(points, Question(points), SIGMA, condition)
    found = matching_gradient(x0, fake, real, 1e-6, kind.backbone.free(condition, x0))
    assert not found[:, :, 0].any() and found[:, :, 1:].count_nonzero() > 0.9 * found[:, :, 1:].numel()
    alone = matching_gradient(x0[:, :, 1:], fake[:, :, 1:], real[:, :, 1:], 1e-6)
    torch.testing.assert_close(found[:, :, 1:], alone)


@holding
def test_the_denoising_loss_is_the_mean_over_what_is_free(kind: Kind) -> None:
    x0, eps, process = kind.points(), kind.points(seed=1), kind.backbone.process
    output = kind.points(seed=2).requires_grad_()
    free = kind.backbone.free(kind.condition(2), x0)
    loss = denoising_loss(process, output, x0, eps, SIGMA, free)
    alone = denoising_loss(process, output[:, :, 1:], x0[:, :, 1:], eps[:, :, 1:], SIGMA)
    torch.testing.assert_close(loss, alone)
    loss.backward()
    assert output.grad is not None and not output.grad[:, :, 0].any() and output.grad[:, :, 1:].all()


@holding
def test_a_clip_that_is_all_given_is_one_sentence(kind: Kind) -> None:
    with pytest.raises(UserError, match=r"raise data\.frames"):
        kind.backbone.free(kind.condition(2), kind.points()[:, :, :1])


@kinds
def test_what_is_not_held_is_all_free(kind: Kind) -> None:
    words = kind.backbone.free(kind.null().expand(2), kind.points())
    assert words is None and kind.backbone.hold(kind.points(), kind.null()).equal(kind.points())
    assert (kind.backbone.free(kind.condition(2), kind.points()) is not None) == kind.held


# ---- the null condition


@pictured
def test_guidance_leaves_out_the_words_alone(kind: Kind) -> None:
    condition, null = kind.condition(3), kind.null()
    found = condition.instead(null)
    assert found.fields.keys() == condition.fields.keys()
    for name, value in found.fields.items():
        if name in null.fields:
            assert torch.equal(value, null.fields[name].expand(3, *value.shape[1:])), name
        else:
            assert value is condition.fields[name]


@pictured
@pytest.mark.parametrize("role", ["teacher", "generator"])
def test_a_guided_clip_starts_from_its_frame(kind: Kind, role: Any) -> None:
    shared, data = kind.with_roles(), kind.clips()
    way = Way(role, (1.0, 0.9, 0.6, 0.0), "euler", guidance_scale=3.0)

    def made(condition: Condition) -> Tensor:
        return generate(shared, way, condition, data.null, kind.points().shape[1:], [1, 2], batch=2)

    condition = kind.condition(5)[:2]
    other = Condition({**condition.fields, kind.picture: -condition.fields[kind.picture]})
    found, changed = made(condition), made(other)
    assert found.isfinite().all() and not torch.allclose(found, changed)
    if kind.held:
        assert torch.equal(found[:, :, :1], condition.fields[kind.picture])


# ---- training


@kinds
@pytest.mark.parametrize(
    "changes",
    [
        {"method": "flow_matching", "train.condition_dropout": 1.0},
        {"rollout.source": "backward_simulation", "matching.guidance_scale": 3.0, "model.gradient_checkpointing": True},
        {"rollout.source": "noised_data", "matching.guidance_scale": 3.0, "matching.batched_scores": False},
        pytest.param(
            {"adversarial.weight": 0.1, "data_forcing.probability": 1.0, "matching.guidance_scale": 3.0},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["flow matching", "simulation", "noised data", "mixture"],
)
def test_every_method_trains_every_kind(kind: Kind, changes: dict[str, Any], new_recipe: Recipes) -> None:
    pristine, data = kind.new(), kind.clips()
    empty = {name: value if "mask" in name else value / 2 for name, value in data.null.fields.items()}
    data = replace(data, unnamed=Condition(empty))
    recipe = new_recipe({**changes, "critic.warmup": 0, "model.family": kind.family})
    program: Any = program_of(recipe, pristine, data)
    before = copy.deepcopy(program.model.parameters("generator"))
    seen: list[Condition] = []
    predict = program.model.predict

    def watched(role: Any, x_t: Tensor, sigma: Any, condition: Condition, *more: Any, **named: Any) -> Tensor:
        seen.append(condition)
        found: Tensor = predict(role, x_t, sigma, condition, *more, **named)
        return found

    program.model.predict = watched
    for index in range(2):  # in the first one only the upper halves of the adapters can move
        logs = program.round(index)
        assert all(value == value for value in logs.values())
    after = program.model.parameters("generator")
    assert all(torch.equal(before[name], weight) == name.startswith(kind.idle) for name, weight in after.items())
    base = program.model.base_state()
    assert all(torch.equal(base[name], weight) for name, weight in pristine.state_dict().items())
    assert seen and all(condition.fields.keys() == data.condition.fields.keys() for condition in seen)
    if "method" in changes:
        for name, empty in data.empty.fields.items():  # and never the negative prompt
            assert all(torch.equal(c.fields[name], empty.expand(len(c), *empty.shape[1:])) for c in seen)
    elif kind.held:
        held = [t for name, t in program.pools.tensors().items() if name.endswith("x0")]
        starts = [t for name, t in program.pools.tensors().items() if name.endswith(kind.picture)]
        assert held and all(torch.equal(x0[:, :, :1], start) for x0, start in zip(held, starts, strict=True))
