"""The denoising GAN: its losses, whose features it reads, what it moves and what it leaves alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from kind import Programs, Recipes
from torch import Tensor

from w2svd_core.backbones.held_frame import free_after_first
from w2svd_core.condition import Condition
from w2svd_core.distillation import Distillation
from w2svd_core.errors import UserError
from w2svd_core.heads import Heads, Taps
from w2svd_core.objectives.adversarial import discriminator_loss, generator_loss, over_taps, r1_penalty, strength

ON = {"adversarial.weight": 0.5, "adversarial.lr": 1e-2, "critic.warmup": 0}


def test_softplus_is_the_cross_entropy_of_dmd2() -> None:
    real, student = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    chance = torch.sigmoid
    expected = -(chance(real).log().mean() + (1 - chance(student)).log().mean())
    torch.testing.assert_close(discriminator_loss(real, student), expected)
    torch.testing.assert_close(generator_loss(student), -chance(student).log().mean())
    assert discriminator_loss(torch.zeros(2), torch.zeros(2)).item() == pytest.approx(2 * math.log(2))


def test_hinge_stops_beyond_its_margin() -> None:
    assert discriminator_loss(torch.tensor([2.0]), torch.tensor([-3.0]), "hinge") == 0
    assert discriminator_loss(torch.tensor([0.25]), torch.tensor([0.5]), "hinge") == 0.75 + 1.5
    assert generator_loss(torch.tensor([0.5]), "hinge") == -0.5


def test_r1_is_the_square_of_a_slope() -> None:
    x, slope, std = torch.randn(50_000, generator=torch.Generator().manual_seed(0)), 3.0, 0.01
    apart = std * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert float(r1_penalty(slope * x, slope * (x + apart), std)) == pytest.approx(slope**2, rel=0.02)


def test_the_weight_waits_and_rises() -> None:
    found = [strength(update, 4.0, delay=2, ramp=3) for update in range(8)]
    assert found == [0, 0, 1, 2, 3, 4, 4, 4]
    assert strength(0, 4.0, 0, 0) == 4.0


def test_taps_lie_at_their_depths() -> None:
    blocks = [torch.nn.Identity() for _ in range(30)]
    taps = Taps(blocks, (16 / 30, 23 / 30, 1.0)).blocks  # FastGen's 15, 22 and 29 of Wan 1.3B, from 0
    assert [blocks.index(block) for block in taps] == [15, 22, 29]
    assert [Taps(blocks[:n], (0.5,)).blocks for n in (5, 9)] == [blocks[2:3], blocks[4:5]]  # a UNet's middle block
    assert Taps(blocks[:2], (0.1, 0.4, 1.0)).blocks == blocks[:2]


def test_features_are_tokens_whatever_the_block_puts_out() -> None:
    convolution, linear = torch.nn.Conv2d(3, 8, 1), torch.nn.Linear(8, 5)
    image, tokens = torch.randn(2, 3, 4, 4), torch.randn(2, 7, 8)
    one, two = Taps([convolution, linear], (0.5, 1.0)).of(lambda: (convolution(image), linear(tokens)))
    assert one.shape == (2, 16, 8) and two.shape == (2, 7, 5)
    assert torch.equal(two, linear(tokens)) and torch.equal(one[:, 5], convolution(image)[:, :, 1, 1])
    assert [logits.shape for logits in Heads([8, 5], 4, 0)([one, two])] == [(2, 16), (2, 7)]


def test_a_pass_ends_where_the_last_tap_is_read() -> None:
    blocks, ran = [torch.nn.Linear(4, 4) for _ in range(5)], []
    for number, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    model, tokens = torch.nn.Sequential(*blocks), torch.randn(1, 3, 4)
    early, late = Taps(blocks, (0.2, 0.6)).of(lambda: model(tokens))
    assert ran == [0, 1, 2] and torch.equal(late, model[:3](tokens)) and torch.equal(early, model[:1](tokens))
    ran.clear()
    model(tokens)
    assert ran == [0, 1, 2, 3, 4]  # and leaves nothing behind
    first, second = Taps(blocks, (0.2, 0.6)).of(lambda: blocks[2](blocks[0](blocks[3](tokens))))  # in another order
    assert first.shape == second.shape == tokens.shape


def weights(program: Distillation) -> dict[str, Tensor]:
    return {
        f"{name}/{n}": p.detach().clone() for name, one in program.learners().items() for n, p in one.parameters.items()
    }


@pytest.mark.parametrize("form", ["softplus", "hinge"])
@pytest.mark.parametrize("features", ["teacher", "fake", "student"])
def test_a_discriminator_that_knows_nothing_gives_no_gradient(
    new_program: Programs, new_recipe: Recipes, features: str, form: str
) -> None:
    program = new_program(new_recipe(ON | {"adversarial.features": features, "adversarial.form": form}), fresh=False)
    (rollout,) = program._rollouts(1, 0)
    x0 = program._student_x0(rollout).requires_grad_()
    loss = program.terms["adversarial"].loss(program._step(rollout, x0, 1, {}))
    loss.backward()
    assert x0.grad is not None and not x0.grad.any()


@pytest.mark.parametrize("features", ["teacher", "fake", "student"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_is_that_of_the_logits_and_reaches_the_student_alone(
    new_program: Programs, new_recipe: Recipes, features: str, checkpointing: bool
) -> None:
    changes = {"adversarial.features": features, "model.gradient_checkpointing": checkpointing}
    changes |= {"adversarial.depths": "0.1,0.5"}  # a pass that ends before the last block
    program = new_program(new_recipe(ON | changes), fresh=False)
    term = program.terms["adversarial"]
    for head in term.heads.taps:
        torch.nn.init.normal_(head[-1].weight, generator=torch.Generator().manual_seed(0))
    (rollout,) = program._rollouts(1, 0)
    x0 = program._student_x0(rollout).requires_grad_()
    step = program._step(rollout, x0, 1, {})
    term.loss(step).backward()
    assert x0.grad is not None
    for learner in program.learners().values():
        assert all(p.grad is None for p in learner.parameters.values())
    plain = x0.detach().clone().requires_grad_()
    noised = program.process.noise(plain, step.eps, step.sigma)
    assert term.taps.beyond is not None
    term.taps.beyond = None  # the whole pass has the same gradient
    logits = term._logits(term._features(noised, step.sigma, rollout.condition))
    value = torch.stack([generator_loss(one) for one in logits]).mean()
    torch.testing.assert_close(value, generator_loss(torch.cat(logits)))  # taps of as many tokens
    (expected,) = torch.autograd.grad(0.5 * value, plain)
    torch.testing.assert_close(x0.grad, expected, atol=1e-8, rtol=1e-5)
    assert expected.any() and step.logs["adversarial/generator"] == pytest.approx(float(value.detach()))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_float16_keeps_the_gradient_of_a_long_clip(new_program: Programs, new_recipe: Recipes) -> None:
    """Of some hundred thousand logits each has a share in the mean that float16 can't hold."""
    found = []
    for precision in ("fp32", "fp16"):
        program = new_program(new_recipe(ON | {"model.precision": precision}), fresh=False)
        term, many = program.terms["adversarial"], 2**12
        for head in term.heads.taps:
            torch.nn.init.normal_(head[-1].weight, generator=torch.Generator().manual_seed(0))
        logits = term._logits
        term._logits = lambda features, logits=logits, many=many: [
            Repeated.apply(one, many) for one in logits(features)
        ]
        (rollout,) = program._rollouts(1, 0)
        x0 = torch.zeros_like(rollout.x_t, dtype=torch.float32).requires_grad_()
        step = program._step(rollout, x0, 1, {})
        term.loss(step).backward()
        found.append(x0.grad)
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 0.05


class Repeated(torch.autograd.Function):
    """The logits of a clip so many times as long, of which only the first part has a gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, times: int) -> Tensor:
        ctx.count = len(logits)
        return logits.repeat(times)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][: ctx.count], None


def test_a_delay_that_leaves_the_student_without_a_loss_is_refused(new_recipe: Recipes) -> None:
    new_recipe(ON | {"adversarial.delay": 3})
    with pytest.raises(UserError, match=r"adversarial\.delay 4 is not below train\.steps 4"):
        new_recipe(ON | {"adversarial.delay": 4})
    with pytest.raises(UserError, match=r"adversarial\.delay 1 leaves the student without any loss until it is over"):
        new_recipe(ON | {"matching.weight": 0.0, "adversarial.delay": 1})
    new_recipe(ON | {"matching.weight": 0.0, "adversarial.delay": 1, "frame_matching.weight": 1.0})
    with pytest.raises(UserError, match=r"adversarial\.lr 0 leaves its heads as they begin"):
        new_recipe(ON | {"adversarial.lr": 0.0})


def test_the_logged_loss_is_the_discriminators_own(new_program: Programs, new_recipe: Recipes) -> None:
    program = new_program(new_recipe(ON | {"matching.weight": 0.0, "adversarial.weight": 0.5}), fresh=False)
    program.round(0)  # of heads that know nothing
    logs = program.round(1)
    assert logs["student/loss"] == pytest.approx(0.5 * logs["adversarial/generator"], rel=1e-5)
    assert logs["student/gradient_norm"] > 0


@pytest.mark.parametrize("form", ["softplus", "hinge"])
def test_an_update_of_the_heads_is_the_formula_and_there_are_as_many_as_asked_for(
    new_program: Programs, new_recipe: Recipes, form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"form": form, "updates": 3, "r1": 0.7, "r1_std": 0.1, "delay": 1, "ramp": 1, "weight": 2.0}
    program = new_program(new_recipe(ON | {f"adversarial.{key}": value for key, value in settings.items()}))
    term = program.terms["adversarial"]
    for head in term.heads.taps:
        torch.nn.init.normal_(head[-1].weight, generator=torch.Generator().manual_seed(0))
    read, losses = list[list[Tensor]](), list[Tensor]()
    logits, update = term._logits, term.learners["heads"].update

    def reading(features: Any) -> list[Tensor]:
        read.append(logits(features))
        return read[-1]

    def updating(loss: Tensor) -> Any:
        losses.append(loss.detach())
        return update(loss)

    monkeypatch.setattr(term, "_logits", reading)
    monkeypatch.setattr(term.learners["heads"], "update", updating)
    (rollout,) = program._rollouts(1, 0)
    x0 = program._student_x0(rollout)
    term.learn(1, x0, rollout)
    assert len(losses) == 3 and len(read) == 9  # clip, sample, disturbed clip
    for k, loss in enumerate(losses):
        real, student, apart = (torch.stack(one).detach() for one in read[3 * k : 3 * k + 3])  # taps n
        expected = discriminator_loss(real, student, form) + 0.7 * r1_penalty(real, apart, 0.1)
        torch.testing.assert_close(loss, expected)
    steps = [program._step(rollout, x0.detach().requires_grad_(), index, {}) for index in range(4)]
    assert term.loss(steps[0]) is None
    shares = [float(term.loss(step).detach()) / step.logs["adversarial/generator"] for step in steps[1:]]
    assert shares == pytest.approx([1.0, 2.0, 2.0])


def test_a_coarse_scale_weighs_as_much_as_a_fine_one() -> None:
    fine, coarse = torch.full((64,), 2.0), torch.full((4,), -1.0)
    assert over_taps(one.mean() for one in (fine, coarse)) == pytest.approx(0.5)


@pytest.mark.parametrize("form", ["softplus", "hinge"])
def test_sign_the_student_goes_where_the_discriminator_sees_clips(
    new_program: Programs, new_recipe: Recipes, form: Any
) -> None:
    program = new_program(new_recipe(ON | {"adversarial.form": form}), fresh=False)
    term = program.terms["adversarial"]
    (rollout,) = program._rollouts(1, 0)
    x0 = program._student_x0(rollout)
    for _ in range(30):  # heads alone, on the same samples
        logs = term.learn(1, x0, rollout)
    assert logs["adversarial/right"] > 0.9
    moved = x0.clone().requires_grad_()
    step = program._step(rollout, moved, 1, {})
    term.loss(step).backward()
    assert moved.grad is not None

    def value(sample: Tensor) -> float:
        noised = program.process.noise(sample, step.eps, step.sigma)
        logits = term._logits(term._features(noised, step.sigma, rollout.condition))
        return sum(float(generator_loss(one.detach(), form)) for one in logits)

    assert value(x0 - 20.0 * moved.grad) < value(x0)


def test_frames_that_are_given_get_no_gradient(new_program: Programs, new_recipe: Recipes) -> None:
    program = new_program(new_recipe(ON), fresh=False)
    term = program.terms["adversarial"]
    for head in term.heads.taps:
        torch.nn.init.normal_(head[-1].weight, generator=torch.Generator().manual_seed(0))
    (rollout,) = program._rollouts(1, 0)
    found = []
    for held in (False, True):
        x0 = program._student_x0(rollout).requires_grad_()
        step = program._step(rollout, x0, 1, {})
        term.loss(replace(step, free=free_after_first(x0)) if held else step).backward()
        assert x0.grad is not None
        found.append(x0.grad)
    whole, held_back = found
    assert whole[:, :, :1].any() and not held_back[:, :, :1].any()
    assert torch.equal(held_back[:, :, 1:], whole[:, :, 1:])


@pytest.mark.parametrize("matched", [1.0, 0.0])
def test_a_run_trains_its_heads_and_resumes_bit_for_bit(
    new_program: Programs, new_recipe: Recipes, matched: float
) -> None:
    recipe = new_recipe(ON | {"adversarial.r1": 0.1, "adversarial.updates": 2, "matching.weight": matched})
    program, stopped, resumed = (new_program(recipe) for _ in range(3))
    start = weights(program)
    for index in range(4):
        logs = program.round(index)
    assert all(not torch.equal(start[name], t) for name, t in weights(program).items() if "lora_A" not in name)
    assert {"adversarial/loss", "adversarial/right", "adversarial/generator"} <= logs.keys()
    assert ("critic/loss" in logs) == bool(matched)
    for index in range(2):
        stopped.round(index)
    resumed.load_tensors(stopped.tensors())
    for index in range(2, 4):
        resumed.round(index)
    found = weights(resumed)
    assert all(torch.equal(t, found[name]) for name, t in weights(program).items())


def test_off_is_plain_matching_bit_for_bit(new_program: Programs, new_recipe: Recipes) -> None:
    plain, delayed = (
        new_program(new_recipe({"train.steps": 100})),
        new_program(new_recipe(ON | {"critic.warmup": 1, "adversarial.delay": 99, "train.steps": 100})),
    )
    for index in range(3):
        plain.round(index)
        delayed.round(index)
    found = weights(delayed)
    assert all(torch.equal(t, found[name]) for name, t in weights(plain).items())


def test_it_reads_clips_and_samples_with_the_same_noise(new_program: Programs, new_recipe: Recipes) -> None:
    program = new_program(new_recipe(ON), fresh=False)
    term = program.terms["adversarial"]
    seen: list[tuple[Tensor, Tensor]] = []
    features = term._features

    def watched(x_t: Tensor, sigma: Tensor, condition: Condition) -> Any:
        seen.append((x_t, sigma))
        return features(x_t, sigma, condition)

    term._features = watched
    (rollout,) = program._rollouts(1, 0)
    x0 = program._student_x0(rollout)
    term.learn(1, x0, rollout)
    (clip, sigma), (sample, same) = seen
    assert torch.equal(sigma, same)
    s = sigma.view(-1, 1, 1, 1, 1)
    torch.testing.assert_close((clip - (1 - s) * rollout.data) / s, (sample - (1 - s) * x0) / s, atol=1e-4, rtol=1e-3)
