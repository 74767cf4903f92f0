"""Consistency distillation: what its parts are by hand, and that it trains every kind of Wan. Resume: `test_resume`."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kind import Kind, Programs, Recipes, program_of
from kinds import kinds
from torch import Tensor
from wan_kinds import condition_of, points_of

from w2svd_core.condition import Condition
from w2svd_core.config import check_recipe, load_recipe
from w2svd_core.data.latents import LatentSet
from w2svd_core.errors import UserError
from w2svd_core.flow import Process, RectifiedFlow, VariancePreserving, sigma_list
from w2svd_core.generation import Way, generate
from w2svd_core.objectives.consistency import grid, neighbour, pseudo_huber, teacher_step, with_boundary
from w2svd_core.report import report_text
from w2svd_core.run import RunFolder
from w2svd_core.sampling import advance
from w2svd_core.students import student_metadata

Velocity = Callable[[Tensor, Tensor], Tensor]

CLIP = (16, 3, 4, 4)  # of the fixture `clips`
LCM = {"method": "consistency", "consistency.target_ema": 0.9, "consistency.guidance_scale": 2.0}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- a path that is a straight line


def to_one_clip(x_t: Tensor, sigma: Tensor) -> Tensor:
    """The exact velocity of a flow whose data are one clip: every path runs straight to it."""
    return (x_t - 0.7) / sigma.view(-1, 1, 1, 1, 1)


def drift(x_t: Tensor, sigma: Tensor) -> Tensor:
    """All paths are parallel lines; each ends somewhere else."""
    return torch.linspace(-2, 3, x_t[0].numel(), dtype=x_t.dtype).view(1, *x_t.shape[1:]).expand_as(x_t)


def loss_of(velocity: Velocity, sigma: float, next_sigma: float) -> float:
    """Of one and the same model as teacher, target and student."""
    flow, high, low = RectifiedFlow(), torch.full((2,), sigma).double(), torch.full((2,), next_sigma).double()
    x_t = noise(2, 3, 2, 4, 4)
    x0 = flow.x0_from_output(x_t, velocity(x_t, high), high)
    further = teacher_step(flow, x_t, x0, high, low)
    seen = flow.x0_from_output(further, velocity(further, low.clamp(min=1e-9)), low)
    return float(pseudo_huber(x0, with_boundary(further, seen, low), 1e-3))


@pytest.mark.parametrize("velocity", [to_one_clip, drift])
def test_the_target_is_stationary_for_straight_paths(velocity: Velocity) -> None:
    for high, low in itertools.combinations(grid(10, 5.0), 2):
        assert loss_of(velocity, high, low) < 1e-12, (high, low)


def test_a_bent_path_leaves_something_to_learn() -> None:
    assert loss_of(lambda x_t, sigma: x_t, 0.9, 0.5) > 0.1


# ---- the parts


def test_the_pseudo_huber_distance_is_square_near_and_straight_far() -> None:
    zero, c = torch.zeros(1, 1, 1, 1, 2).double(), 1e-3
    near, far = torch.full_like(zero, 1e-6), torch.full_like(zero, 50.0)
    assert float(pseudo_huber(zero, zero, c)) == 0
    assert float(pseudo_huber(near, zero, c)) == pytest.approx(1e-12 / (2 * c), rel=1e-4)
    assert float(pseudo_huber(far, zero, c)) == pytest.approx(50.0 - c, rel=1e-9)
    x, target = noise(2, 3, 2, 2, 2), noise(2, 3, 2, 2, 2, seed=1).requires_grad_()
    found = x.clone().requires_grad_()
    loss = pseudo_huber(found, target, 0.3)
    torch.testing.assert_close(loss, torch.hypot(x - target, torch.tensor(0.3)).mean() - 0.3)
    loss.backward()
    assert target.grad is None and found.grad is not None
    assert bool((found.grad.abs() * 48 < 1).all())  # no element pulls with more than 1


def test_what_is_given_does_not_count() -> None:
    x, target, free = noise(2, 3, 3, 2, 2), noise(2, 3, 3, 2, 2, seed=1), torch.ones(2, 1, 3, 1, 1).double()
    free[:, :, 0] = 0
    torch.testing.assert_close(pseudo_huber(x, target, 0.1, free), pseudo_huber(x[:, :, 1:], target[:, :, 1:], 0.1))


@pytest.mark.parametrize("process", [RectifiedFlow(), VariancePreserving(), VariancePreserving("v")])
def test_the_teacher_steps_as_the_euler_sampler(process: Process) -> None:
    x_t, x0 = noise(3, 2, 2, 2, 2), noise(3, 2, 2, 2, 2, seed=1)
    pairs = [(0.99, 0.8), (0.5, 0.45), (0.1, 0.0)]
    sigma, next_sigma = torch.tensor(pairs, dtype=torch.float64).T
    found = teacher_step(process, x_t, x0, sigma, next_sigma)
    for row, (high, low) in enumerate(pairs):
        one = slice(row, row + 1)
        torch.testing.assert_close(found[one], advance(process, x_t[one], x0[one], high, low, "euler", None))


def test_the_step_of_a_flow_is_the_formula() -> None:
    x_t, velocity = noise(1, 2, 2, 2, 2), noise(1, 2, 2, 2, 2, seed=1)
    high, low = torch.tensor([0.9]).double(), torch.tensor([0.6]).double()
    found = teacher_step(RectifiedFlow(), x_t, x_t - 0.9 * velocity, high, low)
    torch.testing.assert_close(found, x_t + (0.6 - 0.9) * velocity)


def test_the_boundary_is_the_point_itself() -> None:
    x_t, output = noise(2, 2, 2, 2, 2), noise(2, 2, 2, 2, 2, seed=1)
    sigma = torch.tensor([0.0, 0.5]).double()
    for process in (RectifiedFlow(), VariancePreserving(), VariancePreserving("v"), VariancePreserving("x0")):
        x0 = process.x0_from_output(x_t, output, sigma)
        found = with_boundary(x_t, x0, sigma)
        assert torch.equal(found[0], x_t[0]) and torch.equal(found[1], x0[1])


def test_the_grid_and_its_neighbours() -> None:
    assert grid(50, 5.0) == sigma_list(50, 5.0) and len(grid(50, 5.0)) == 51
    assert grid(4, 1.0, 0.8) == pytest.approx((0.8, 0.6, 0.4, 0.2, 0.0))
    start = torch.tensor([0, 7, 46, 49])
    assert neighbour(start, 1, 50).tolist() == [1, 8, 47, 50]
    assert neighbour(start, 5, 50).tolist() == [5, 12, 50, 50]


# ---- the program


def asked_of(program: Any) -> list[tuple[str, Tensor, Tensor, Condition]]:
    """What the model is asked from now on: role, x_t, sigma, condition."""
    asked: list[tuple[str, Tensor, Tensor, Condition]] = []
    predict, together = program.model.predict_x0, program.model.predict_x0_together

    def one(role: str, x_t: Tensor, sigma: Any, condition: Condition, alpha: None = None) -> Tensor:
        asked.append((role, x_t, sigma, condition))
        found: Tensor = predict(role, x_t, sigma, condition, alpha)
        return found

    def several(queries: Any) -> Any:
        asked.extend((q.role, q.x_t, q.sigma, q.condition) for q in queries)
        return together(queries)

    program.model.predict_x0, program.model.predict_x0_together = one, several
    return asked


def test_a_round_asks_teacher_target_and_student(new_program: Programs, new_recipe: Recipes) -> None:
    recipe = new_recipe(LCM | {"consistency.skip": 7, "student.sigmas": (1.0, 0.5, 0.0), "train.batch": 4})
    program = new_program(recipe)
    asked = asked_of(program)
    program.round(0)
    (one, x_t, sigma, words), (two, same, _, empty), (three, further, low, _), (four, start, high, _) = asked
    assert (one, two, three, four) == ("teacher", "teacher", "generator", "generator")
    assert torch.equal(x_t, same) and torch.equal(x_t, start) and torch.equal(sigma, high)
    text = empty.fields["text"]
    assert not torch.equal(words.fields["text"], text) and torch.equal(
        text, program.null.fields["text"].expand_as(text)
    )
    levels = grid(50, 5.0, 1.0)
    at = [levels.index(pytest.approx(float(s), abs=1e-6)) for s in sigma]
    assert [levels[min(i + 7, 50)] for i in at] == pytest.approx(low.tolist(), abs=1e-6)
    with torch.no_grad():
        cond, uncond = (program.model.predict_x0("teacher", x_t, sigma, c) for c in (words, empty))
    x0 = uncond + 2.0 * (cond - uncond)
    for row in range(4):
        one_row, steps = slice(row, row + 1), (float(sigma[row]), float(low[row]))
        expected = advance(RectifiedFlow(), x_t[one_row], x0[one_row], *steps, "euler", None)
        torch.testing.assert_close(further[one_row], expected, atol=1e-5, rtol=1e-5)


def test_the_loss_of_a_round_is_the_pseudo_huber_distance_of_its_setting(
    new_program: Programs, new_recipe: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = new_program(new_recipe(LCM | {"consistency.huber": 0.5}), fresh=False)
    targets, said, target = list[Tensor](), list[Tensor](), program._target
    predict = program.model.predict_x0

    def aimed(*given: Any) -> Tensor:
        targets.append(target(*given))
        return targets[-1]

    def saying(*given: Any) -> Tensor:
        said.append(predict(*given))
        return said[-1]

    monkeypatch.setattr(program, "_target", aimed)
    monkeypatch.setattr(program.model, "predict_x0", saying)
    logs = program.round(0)
    apart = (said[-1].detach() - targets[0]).square()
    assert logs["student/loss"] == pytest.approx(float(((apart + 0.25).sqrt() - 0.5).mean()), rel=1e-5)


def test_without_guidance_the_teacher_is_asked_once(new_program: Programs, new_recipe: Recipes) -> None:
    program = new_program(new_recipe(LCM | {"consistency.guidance_scale": 1.0}))
    asked = asked_of(program)
    program.round(0)
    assert [role for role, *_ in asked] == ["teacher", "generator", "generator"]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_target_follows_as_stated(new_program: Programs, new_recipe: Recipes, kind: str) -> None:
    program = new_program(new_recipe(LCM | {"student.kind": kind}))
    expected = {name: weight.detach().clone() for name, weight in program.student.parameters.items()}
    assert all(torch.equal(program.target[name], weight) for name, weight in expected.items())
    for index in range(3):
        program.round(index)
        for name, weight in program.student.parameters.items():
            expected[name] = 0.9 * expected[name] + 0.1 * weight.detach()
            torch.testing.assert_close(program.target[name], expected[name])


def test_the_target_speaks_with_its_own_weights_and_the_student_keeps_its(
    new_program: Programs, new_recipe: Recipes
) -> None:
    program = new_program(new_recipe(LCM))
    for index in range(3):
        program.round(index)
    own = {name: weight.detach().clone() for name, weight in program.student.parameters.items()}
    x_t, sigma, low = points_of("t2v"), torch.tensor([0.9, 0.4]), torch.tensor([0.8, 0.0])
    condition = condition_of("t2v", 2)
    found = program._target(x_t, sigma, low, condition)
    assert all(torch.equal(weight, own[name]) for name, weight in program.student.parameters.items())
    other = new_program(new_recipe(LCM | {"consistency.target_ema": 0.0}))
    assert other.target == {}
    for weights, alike in ((program.target, True), (own, False)):
        with torch.no_grad():
            for name, weight in other.student.parameters.items():
                weight.copy_(weights[name])
        assert torch.equal(other._target(x_t, sigma, low, condition)[:1], found[:1]) == alike


def test_an_update_that_is_skipped_leaves_the_target(new_program: Programs, new_recipe: Recipes) -> None:
    program = new_program(new_recipe(LCM))
    program.round(0)
    before = {name: weight.clone() for name, weight in program.target.items()}
    program.settings = program.settings.model_copy(update={"guidance_scale": float("nan")})
    assert program.round(1)["student/skipped"] == 1
    assert all(torch.equal(weight, before[name]) for name, weight in program.target.items())


@pytest.mark.parametrize("target_ema", [0.0, 0.9])
def test_checkpointing_changes_nothing(new_program: Programs, new_recipe: Recipes, target_ema: float) -> None:
    changes = LCM | {"consistency.target_ema": target_ema}
    plain, saving = (new_program(new_recipe(changes | {"model.gradient_checkpointing": on})) for on in (False, True))
    for index in range(3):
        assert plain.round(index) == saving.round(index)


def jump_of(program: Any, clips: LatentSet) -> float:
    """How far one step of the student ends from where the teacher's guided path ends, over the same noise."""
    ends = []
    for way in (Way("teacher", sigma_list(50, 1.0), "euler", 3.0), Way("generator", (1.0, 0.0), "renoise")):
        ends.append(generate(program.model, way, clips.condition, clips.null, CLIP, range(len(clips))))
    return float((ends[0] - ends[1]).abs().mean())


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"student.lr": 2e-2}, id="lora"),
        pytest.param({"student.kind": "full", "student.lr": 3e-3}, id="full", marks=pytest.mark.slow),
    ],
)
def test_the_student_learns_where_the_guided_path_ends(
    new_program: Programs, new_recipe: Recipes, clips: LatentSet, changes: dict[str, Any]
) -> None:
    fast = {"student.beta1": 0.9, "train.batch": 7, "consistency.skip": 10, "consistency.guidance_scale": 3.0}
    program = new_program(new_recipe(LCM | fast | {"consistency.shift": 1.0, "consistency.target_ema": 0.5} | changes))
    before = jump_of(program, clips)
    losses = [program.round(index)["student/loss"] for index in range(80)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert jump_of(program, clips) < 0.75 * before


@kinds
@pytest.mark.parametrize("student", ["lora", "full"])
def test_it_trains_every_kind(kind: Kind, student: str, new_recipe: Recipes) -> None:
    pristine, data = kind.new(), kind.clips()
    recipe = new_recipe({**LCM, "student.kind": student, "model.family": kind.family})
    program: Any = program_of(recipe, pristine, data)
    names = {name for name, _ in program.model.base.named_parameters()}
    assert not any(".fake." in name for name in names) and program.model.critic_copy is None
    before = copy.deepcopy(program.model.parameters("generator"))
    asked = asked_of(program)
    for index in range(2):  # in the first one only the upper halves of the adapters can move
        logs = program.round(index)
        assert all(value == value for value in logs.values())
    after = program.model.parameters("generator")
    same = (name for name, weight in after.items() if torch.equal(before[name], weight))
    still = {name for name in same if not name.startswith(kind.idle)}
    assert not still or (student == "full" and all("norm" in name or "bias" in name for name in still))
    base = program.model.base_state()
    assert all(torch.equal(base[name], weight) for name, weight in pristine.state_dict().items())
    assert all(condition.fields.keys() == data.condition.fields.keys() for *_, condition in asked)
    if kind.held:
        for role, x_t, sigma, condition in tuple(asked):
            x0 = program.model.predict_x0(role, x_t, sigma, condition)
            assert torch.equal(x0[:, :, :1], condition.fields[kind.picture])


# ---- the recipe, the file, the report


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.prompts": "p.txt", "evaluate.clips": 0}, "method consistency needs clips, and data.prompts gives"),
        ({"consistency.skip": 51}, "consistency.skip 51 goes beyond the 50 levels of consistency.points; lower"),
        ({"consistency.points": 1}, "consistency.points is 1 .*whole number from 2 to 1000"),
        ({"consistency.huber": 0.0}, "consistency.huber is 0"),
        ({"consistency.target_ema": 1.0}, "consistency.target_ema is 1"),
        ({"model.init": "random"}, "model.init random leaves method consistency without a teacher; set model.init"),
        ({"model.compile": True}, "model.compile is only for method flow_matching"),
    ],
)
def test_a_wrong_setting_is_one_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as fault:
        check_recipe({"method": "consistency"} | changes, "in a test")
    assert "\n" not in str(fault.value)


def test_the_recipe_is_lcms() -> None:
    recipe = load_recipe("portraits_lcm")
    assert (recipe.method, recipe.student.sampler, recipe.distils) == ("consistency", "renoise", True)
    assert not load_recipe("portraits_teacher").distils and load_recipe("portraits").distils


def test_the_file_says_how_it_was_made(new_program: Programs, new_recipe: Recipes) -> None:
    recipe = new_recipe(LCM | {"student.sigmas": (1.0, 0.6, 0.0)})
    found = student_metadata(recipe, new_program(recipe).model)
    assert (found.method, found.alpha_weak, found.teacher_guidance) == ("lcm", None, 2.0)
    assert (found.default.sigmas, found.default.sampler) == ((1.0, 0.6, 0.0), "renoise")
    critic = student_metadata(new_recipe(), new_program(new_recipe()).model)
    assert (critic.method, critic.alpha_weak, critic.teacher_guidance) == ("w2s", 0.25, 1.0)


def test_the_report_tells_its_settings_and_how_to_sample_it(new_recipe: Recipes, tmp_path: Path) -> None:
    recipe = new_recipe(LCM)
    text = report_text(RunFolder.create(recipe, tmp_path / "run"), recipe, [], [], [])
    assert "| consistency.target_ema | 0.9 |" in text and "critic." not in text and "matching." not in text
    assert "- `KSamplerSelect`: `lcm`;" in text
