"""AVDM2's frame matching: which frames are judged, what they move and what they leave alone, and both ways of a VAE."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from kind import Programs, Recipes, program_of
from test_distillation import WAN
from torch import Tensor, nn
from wan_kinds import condition_of, new_wan

from w2svd_core.assembly import BUNDLED_CODEC
from w2svd_core.condition import Condition
from w2svd_core.data.codec import load_portrait_codec
from w2svd_core.data.encoder_source import LoadedEncoders
from w2svd_core.data.latents import LatentSet
from w2svd_core.distillation import Distillation
from w2svd_core.errors import UserError
from w2svd_core.job import other_models
from w2svd_core.lora_files import base_hash
from w2svd_core.objectives.distribution_matching import matching_gradient
from w2svd_core.objectives.frame_matching import draw_positions, picked
from w2svd_core.roles import SharedModel

ON = {"frame_matching.weight": 0.5, "frame_matching.rank": 3, "frame_matching.lr": 1e-2, "critic.warmup": 0}
ALONE = {"matching.weight": 0.0, "matching.alpha_weak": 0.0}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(program: Distillation) -> dict[str, Tensor]:
    return {
        f"{name}/{n}": p.detach().clone() for name, one in program.learners().items() for n, p in one.parameters.items()
    }


class Words:
    """What a training asks of the prompt encoder that made `clips`."""

    width = 16


@pytest.fixture(scope="module")
def source() -> LoadedEncoders:
    return LoadedEncoders(load_portrait_codec(BUNDLED_CODEC), cast(Any, Words()))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of other weights than the teacher's, as a folder; its latents are the portraits'."""
    folder = tmp_path_factory.mktemp("image")
    model = new_wan()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=rng(parameter.numel()))
    WAN.save_folder(model, folder, torch.float32)
    return folder


# ---- frames --------------------------------------------------------------------------------------


def test_positions_differ_within_a_row_and_are_alike_likely() -> None:
    found = draw_positions(4000, 5, 3, rng())
    assert found.shape == (4000, 3) and all(len(set(row)) == 3 for row in found.tolist())
    shares = torch.bincount(found.flatten(), minlength=5) / found.numel()
    assert (shares - 0.2).abs().max() < 0.015
    assert sorted(draw_positions(1, 2, 9, rng())[0].tolist()) == [0, 1]


def test_a_frame_keeps_its_row_and_its_gradient() -> None:
    clips = torch.randn(2, 3, 5, 4, 4, generator=rng()).requires_grad_()
    positions = torch.tensor([[4, 0], [2, 3]])
    frames = picked(clips, positions)
    assert frames.shape == (4, 3, 1, 4, 4)
    for place, (row, frame) in enumerate([(0, 4), (0, 0), (1, 2), (1, 3)]):
        assert torch.equal(frames[place, :, 0], clips[row, :, frame])
    frames.sum().backward()
    assert clips.grad is not None
    assert torch.equal(clips.grad[0, 0, :, 0, 0], torch.tensor([1.0, 0, 0, 0, 1]))
    assert torch.equal(clips.grad[1, 0, :, 0, 0], torch.tensor([0.0, 0, 1, 1, 0]))


def made(program: Distillation, index: int = 1) -> tuple[Any, Any]:
    (rollout,) = program._rollouts(index, 0)
    x0 = program._student_x0(rollout).requires_grad_()
    return program._step(rollout, x0, index, {}), rollout


# ---- the image model and its roles ---------------------------------------------------------------


def test_a_fresh_critic_is_the_image_model_and_gives_no_gradient(new_program: Programs, new_recipe: Recipes) -> None:
    program = new_program(new_recipe(ON))
    step, _ = made(program)
    loss = program.terms["frame_matching"].loss(step)
    loss.backward()
    assert step.x0.grad is not None and not step.x0.grad.any()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_the_teacher_judges_first_frames_and_moves_the_student_alone(
    new_program: Programs, new_recipe: Recipes, checkpointing: bool, batched: bool
) -> None:
    settings = ON | {
        "model.gradient_checkpointing": checkpointing, "matching.batched_scores": batched,
        "frame_matching.guidance_scale": 2.0,
    }  # fmt: skip
    program = new_program(new_recipe(settings), fresh=False)
    term = program.terms["frame_matching"]
    for _, parameter in term.image.parameters("fake").items():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=rng(parameter.numel()))
    step, rollout = made(program)
    place = (step.index, "frames", rollout.step)
    frames, condition = term._frames(step.x0, rollout.condition, *place)
    assert torch.equal(frames, step.x0[:, :, :1]) and torch.equal(
        condition.fields["text"], rollout.condition.fields["text"]
    )
    term.loss(step).backward()
    assert all(p.grad is None for one in program.learners().values() for p in one.parameters.values())
    sigma, eps = term._noise_level(2, *place), program._noise(frames.shape, *place, "noise")
    x_t, model = program.process.noise(frames.detach(), eps, sigma), program.model
    with torch.no_grad():
        fake = term.image.predict_x0("fake", x_t, sigma, condition)
        real, empty = (model.predict_x0("teacher", x_t, sigma, c) for c in (condition, condition.instead(program.null)))
    expected = 0.5 * matching_gradient(frames, fake, empty + 2 * (real - empty)) / frames.numel()
    assert step.x0.grad is not None and expected.any() and not step.x0.grad[:, :, 1:].any()
    torch.testing.assert_close(step.x0.grad[:, :, :1], expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_critic_beside_others_leaves_them_alone(new_shared: Any, texts: Any, checkpointing: bool) -> None:
    """The base with a third adapter: the first two say what they said, and its gradient is its own."""
    shared: SharedModel = new_shared(checkpointing=checkpointing)
    x_t, sigma, condition = torch.randn(2, 16, 3, 4, 4, generator=rng()), torch.tensor([0.3, 0.8]), texts(2)
    roles: tuple[Any, ...] = ("teacher", "real", "fake", "generator")
    before = [shared.predict(role, x_t, sigma, condition) for role in roles]
    names = {role: set(shared.parameters(role)) for role in ("fake", "generator")}
    frozen = base_hash(shared.base_state())
    twin = shared.with_own_critic("frames", 2, 0.0)
    own = twin.parameters("fake")
    assert own and not own.keys() & (names["fake"] | names["generator"])
    assert base_hash(twin.base_state()) == frozen == base_hash(shared.base_state())
    for role, found in zip(roles, before, strict=True):
        assert torch.equal(shared.predict(role, x_t, sigma, condition), found)
    assert {role: set(shared.parameters(role)) for role in ("fake", "generator")} == names
    assert all(torch.equal(twin.predict(role, x_t, sigma, condition), before[0]) for role in ("teacher", "real"))
    for parameter in own.values():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=rng(parameter.numel()))
    student = shared.predict("generator", x_t, sigma, condition)  # its graph waits while the twin is asked and trained
    twin.predict("fake", x_t, sigma, condition).square().mean().backward()
    grads = {name: p.grad.clone() for name, p in own.items() if p.grad is not None}
    assert len(grads) == len(own)
    assert all(p.grad is None for role in names for p in shared.parameters(role).values())  # type: ignore[arg-type]
    student.square().mean().backward()
    assert all(torch.equal(p.grad, grads[name]) for name, p in own.items() if p.grad is not None)
    assert all(p.grad is None for p in shared.parameters("fake").values())
    assert all(p.grad is not None for p in shared.parameters("generator").values())
    assert torch.equal(shared.predict("teacher", x_t, sigma, condition), before[0])
    assert not torch.equal(twin.predict("fake", x_t, sigma, condition), before[0])


def test_the_critics_gradient_is_right_when_blocks_are_recomputed(new_shared: Any, texts: Any) -> None:
    found = []
    for checkpointing in (False, True):
        twin = new_shared(checkpointing=checkpointing).with_own_critic("frames", 2, 0.0)
        for parameter in twin.parameters("fake").values():
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=rng(parameter.numel()))
        x_t = torch.randn(2, 16, 1, 4, 4, generator=rng())
        twin.predict("fake", x_t, torch.tensor([0.3, 0.8]), texts(2)).square().mean().backward()
        found.append({name: p.grad for name, p in twin.parameters("fake").items()})
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("way", ["latent", "decoded"])
@pytest.mark.parametrize("model", ["teacher", "another"])
def test_a_run_trains_its_critic_and_resumes_bit_for_bit(
    pristine: nn.Module,
    clips: LatentSet,
    new_recipe: Recipes,
    source: LoadedEncoders,
    image: Path,
    model: str,
    way: str,
) -> None:
    named = {"frame_matching.model": str(image), "frame_matching.family": "wan"} if model == "another" else {}
    recipe = new_recipe(ON | ALONE | named | {"frame_matching.way": way, "frame_matching.frames": 2})
    program, stopped, resumed = (cast(Any, program_of(recipe, pristine, clips, source=source)) for _ in range(3))
    start, base = weights(program), base_hash(program.terms["frame_matching"].image.base_state())
    assert (program.terms["frame_matching"].image.base is program.model.base) == (model == "teacher")
    for index in range(4):
        logs = program.round(index)
    assert all(not torch.equal(start[name], t) for name, t in weights(program).items() if "lora_A" not in name)
    assert {"frame_matching/loss", "frame_matching/gap", "frame_matching/cosine"} <= logs.keys()
    assert "critic/loss" not in logs
    for index in range(2):
        stopped.round(index)
    resumed.load_tensors(stopped.tensors())
    for index in range(2, 4):
        resumed.round(index)
    found = weights(resumed)
    assert all(torch.equal(t, found[name]) for name, t in weights(program).items())
    assert base_hash(program.terms["frame_matching"].image.base_state()) == base
    own, same = (other_models(cast(Any, SimpleNamespace(program=one))) for one in (program, resumed))
    assert own == same and own.keys() == ({"models"} if model == "another" else set())


def test_two_updates_of_the_critic_see_other_noise(new_program: Programs, new_recipe: Recipes) -> None:
    program = new_program(new_recipe(ON))
    term = program.terms["frame_matching"]
    seen: list[Tensor] = []
    predict = term.image.predict

    def watched(role: Any, x_t: Tensor, *given: Any) -> Tensor:
        seen.append(x_t)
        return cast(Tensor, predict(role, x_t, *given))

    term.image.predict = watched
    (rollout,) = program._rollouts(1, 0)
    term.learn(1, program._student_x0(rollout), rollout)
    assert len(seen) == 2 and not torch.equal(*seen)


@pytest.mark.parametrize("model", ["teacher", "another"])
def test_settings_of_the_scores_reach_them(
    pristine: nn.Module, clips: LatentSet, new_recipe: Recipes, source: LoadedEncoders, image: Path, model: str
) -> None:
    settings = {"score_min": 0.3, "score_max": 0.6, "alpha_weak": 0.3}
    settings |= {"model": str(image), "family": "wan"} if model == "another" else {}

    def term_of(**more: Any) -> tuple[Any, Any]:
        own = {f"frame_matching.{key}": value for key, value in (settings | more).items()}
        program = cast(Any, program_of(new_recipe(ON | own), pristine, clips, source=source))
        return program, program.terms["frame_matching"]

    program, term = term_of()
    asked, together = list[Any](), term.image.predict_x0_together

    def watched(queries: Any) -> Any:
        asked.extend(queries)
        return together(queries)

    term.image.predict_x0_together = watched
    step, _ = made(program)
    term.loss(step)
    assert {query.role for query in asked} == {"fake", "real"}
    levels = [float(sigma) for query in asked for sigma in query.sigma]
    assert min(levels) > 0.29999 and max(levels) < 0.60001
    strength = {role: list(term.image._adapters(role).values()) for role in ("real", "fake")}
    assert strength == {"real": [0.3], "fake": [1.0]}
    _, shifted = term_of(score_law="shift", score_min=0.01)
    _, more = term_of(score_law="shift", score_shift=0.05, score_min=0.01)
    one, two, three = (each._noise_level(64, 1) for each in (term, shifted, more))
    assert not torch.equal(one, two) and not torch.equal(two, three)


def test_a_critic_that_never_learns_is_refused(new_recipe: Recipes) -> None:
    with pytest.raises(UserError, match=r"frame_matching\.lr 0 leaves its critic as the image model"):
        new_recipe(ON | {"frame_matching.lr": 0.0})
    new_recipe(ON | {"frame_matching.lr": 0.0, "frame_matching.guidance_scale": 2.0})


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_goes_with_full_copies(new_program: Programs, new_recipe: Recipes, checkpointing: bool) -> None:
    """DMD2's student and critic are models of their own; the frames' critic is still an adapter, on the base alone."""
    full = {"student.kind": "full", "critic.kind": "full", "matching.alpha_weak": 0.0}
    program = new_program(new_recipe(ON | full | {"model.gradient_checkpointing": checkpointing}))
    start = weights(program)
    for index in range(3):
        program.round(index)
    assert {name.partition("/")[0] for name in start} == {"student", "critic", "frame_matching"}
    assert all(".frames." in name for name in start if name.startswith("frame_matching"))
    assert not any(".lora_" in name for name in start if not name.startswith("frame_matching"))
    assert all(not torch.equal(start[name], t) for name, t in weights(program).items() if ".lora_B" in name)


# ---- frames of a causal VAE ----------------------------------------------------------------------


def test_decoded_frames_are_pictures_of_their_own_and_the_gradient_comes_back(
    pristine: nn.Module, clips: LatentSet, new_recipe: Recipes, source: LoadedEncoders
) -> None:
    """The codec's part of the gradient, against differences of the surrogate along a direction."""
    recipe = new_recipe(ON | {"frame_matching.way": "decoded", "frame_matching.frames": 3})
    program = cast(Any, program_of(recipe, pristine, clips, source=source))
    term, (step, rollout) = program.terms["frame_matching"], made(program)
    place = (step.index, "frames", rollout.step)
    for codec in term.codecs:
        codec.double()
    x0 = (0.3 * step.x0.detach().double()).requires_grad_()
    frames, condition = term._frames(x0, rollout.condition, *place)
    video = source.codec.decode(x0.detach().float())
    positions = draw_positions(2, video.shape[2], 3, program._rng(*place, "positions"))
    assert video.shape[2] == 9 and frames.shape == (6, 16, 1, 4, 4) and len(condition) == 6
    for number, (row, frame) in enumerate((b, int(at)) for b in range(2) for at in positions[b]):
        alone = source.codec.encode(video[row : row + 1, :, frame : frame + 1])
        torch.testing.assert_close(frames[number : number + 1].float(), alone, atol=1e-5, rtol=1e-5)
        assert torch.equal(condition.fields["text"][number], rollout.condition.fields["text"][row])
    wanted = torch.randn(frames.shape, generator=rng(5))
    (frames * wanted).sum().backward()
    assert x0.grad is not None and all(x0.grad[:, :, k].any() for k in range(3))
    way, h = torch.randn(x0.shape, generator=rng(6)), 1e-5
    with torch.no_grad():
        high, low = (term._frames(x0 + t * way, rollout.condition, *place)[0] for t in (h, -h))
    slope = float(((high - low) * wanted).double().sum() / (2 * h))
    assert float((x0.grad * way).double().sum()) == pytest.approx(slope, rel=1e-4)
    assert all(p.grad is None for p in term.codecs[0].parameters())


def test_a_real_wan_vae_lets_the_gradient_through() -> None:
    from tiny_wan import new_vae

    from w2svd_core.backbones.wan_vae import WanVae

    codec = WanVae(new_vae("t2v").double())
    x0 = (0.3 * torch.randn(1, 16, 3, 2, 4, generator=rng())).requires_grad_()
    video = codec.decode(x0)
    frames = codec.encode(picked(video, torch.tensor([[0, 6]])))
    assert video.shape[2] == 9 and frames.shape == (2, 16, 1, 2, 4)
    wanted = torch.randn(frames.shape, generator=rng(5))
    (frames * wanted).sum().backward()
    assert x0.grad is not None and all(x0.grad[:, :, k].any() for k in range(3))
    way, h = torch.randn(x0.shape, generator=rng(6)), 1e-3
    with torch.no_grad():
        ends = [codec.encode(picked(codec.decode(x0 + t * way), torch.tensor([[0, 6]]))) for t in (h, -h)]
    slope = float(((ends[0] - ends[1]) * wanted).double().sum() / (2 * h))
    assert float((x0.grad * way).double().sum()) == pytest.approx(slope, rel=0.03)
    assert all(p.grad is None for p in codec.vae.parameters())


def test_what_can_not_be_judged_is_refused(new_recipe: Recipes, source: LoadedEncoders, image: Path) -> None:
    for kind in ("i2v", "ti2v"):
        base = new_wan(kind)
        condition = condition_of(kind, 4)
        channels = 48 if kind == "ti2v" else 16
        latents = torch.randn(4, channels, 3, 4, 4, generator=rng())
        null = Condition({"text": condition.fields["text"][:1]})
        data = LatentSet(latents, condition, null, ("clip",) * 4)
        with pytest.raises(UserError, match="name an image model"):
            program_of(new_recipe(ON), copy.deepcopy(base), data, source=source)
        named = {"frame_matching.model": str(image), "frame_matching.family": "wan"}
        with pytest.raises(UserError, match="use decoded"):
            program_of(new_recipe(ON | named), copy.deepcopy(base), data, source=source)


@pytest.mark.parametrize(
    ("named", "fault"),
    [
        ({"family": "wam"}, r"^frame_matching\.family 'wam' is not known"),
        ({"model": "bundled", "family": "image_unet"}, r"name one in frame_matching\.model$"),
    ],
)
def test_a_fault_of_the_image_model_names_its_own_settings(
    new_recipe: Recipes,
    pristine: nn.Module,
    clips: LatentSet,
    source: LoadedEncoders,
    named: dict[str, str],
    fault: str,
) -> None:
    settings = ON | {"frame_matching.model": "bundled"} | {f"frame_matching.{key}": text for key, text in named.items()}
    with pytest.raises(UserError, match=fault):
        program_of(new_recipe(settings), pristine, clips, source=source)


def test_a_run_says_what_is_left_out(new_program: Programs, new_recipe: Recipes) -> None:
    first, path = new_program(new_recipe(ON)).terms["frame_matching"].remarks()
    assert "first latent frame alone" in first and "grad_steps last" in path
    assert len(new_program(new_recipe(ON | {"rollout.grad_steps": "last"})).terms["frame_matching"].remarks()) == 1


def test_off_is_plain_matching_bit_for_bit(new_program: Programs, new_recipe: Recipes) -> None:
    """A term that judges nothing yet, its critic fresh and its learning rate 0, changes no weight of the others."""
    plain = new_program(new_recipe({"critic.warmup": 0}))
    beside = new_program(new_recipe(ON | {"frame_matching.lr": 0.0, "start": "a run"}))  # without one it is refused
    for index in range(3):
        plain.round(index)
        beside.round(index)
    found = weights(beside)
    assert all(torch.equal(t, found[name]) for name, t in weights(plain).items())
