"""Data-Forcing Distillation: what it is where it is off, where the clip is the student's own sample, and in between."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from kind import Programs, Recipes
from torch import Tensor
from two_peaks import TwoPeaks

from w2svd_core import distillation
from w2svd_core.distillation import Distillation
from w2svd_core.errors import UserError
from w2svd_core.objectives.data_forcing import Added, forced_gradient, pair_distance
from w2svd_core.objectives.distribution_matching import matching_gradient, per_sample_mean
from w2svd_core.objectives.ground_truth import ground_truth_gradient
from w2svd_core.terms import StudentStep


def four(rows: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, fake, real, data = torch.randn(4, rows, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    return x, fake, real, data


def weights(program: Distillation) -> dict[str, Tensor]:
    return {
        f"{name}/{n}": p.detach().clone() for name, one in program.learners().items() for n, p in one.parameters.items()
    }


def trained(program: Distillation) -> dict[str, Tensor]:
    for index in range(program.rounds):
        program.round(index)
    return weights(program)


def alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[name]) for name, t in one.items())


@pytest.mark.parametrize("space", ["x0", "score"])
def test_the_two_spaces_differ_by_exactly_the_pull_to_the_clip(space: Any) -> None:
    x, fake, real, data = four()
    size = per_sample_mean((x - real).abs(), None)
    expected = (fake - real) / size + ((data - x) / size if space == "score" else 0)
    torch.testing.assert_close(forced_gradient(x, fake, real, data, space), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 0.95])
def test_score_space_is_the_difference_of_scores(sigma: float) -> None:
    """Equation 8, with the scores written out: s = -(x_t - alpha x0) / sigma^2."""
    x, fake, real, data = (t.double() for t in four())
    eps, alpha = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), 1 - sigma
    student_t, data_t = alpha * x + sigma * eps, alpha * data + sigma * eps
    scores = -(student_t - alpha * fake) / sigma**2 + (data_t - alpha * real) / sigma**2
    found = forced_gradient(x, fake, real, data, "score", floor=1e-8) * per_sample_mean((x - real).abs(), None)
    torch.testing.assert_close(found * alpha / sigma**2, scores)


def test_the_clip_itself_as_target_is_the_ground_truth_term() -> None:
    x, fake, _, data = four()
    assert torch.equal(forced_gradient(x, fake, data, data), ground_truth_gradient(x, fake, data))


def test_where_the_clip_is_the_sample_both_spaces_are_matching() -> None:
    x, fake, real, _ = four()
    for space in ("x0", "score"):
        assert torch.equal(forced_gradient(x, fake, real, x, space), matching_gradient(x, fake, real))  # type: ignore[arg-type]


def test_no_gradient_in_the_mean_where_both_batches_come_from_one_distribution() -> None:
    """Appendix A, on a skewed distribution, where a wrong part has a mean of its own; with one normaliser for all."""
    rng = torch.Generator().manual_seed(0)
    x, data = (TwoPeaks.draw((40_000, 1, 1, 1, 1), rng) for _ in range(2))
    eps, sigma = torch.randn(x.shape, generator=rng), torch.full((40_000,), 0.6)
    fake, real = (TwoPeaks.x0(0.4 * t + 0.6 * eps, sigma) for t in (x, data))

    def error(t: Tensor) -> float:
        """The mean, in its standard errors."""
        return float(t.mean() / t.std()) * len(t) ** 0.5

    for space in ("x0", "score"):
        found = forced_gradient(x, fake, real, data, space, floor=100.0)  # type: ignore[arg-type]
        assert abs(error(found)) < 3 and 100 * float(found.std()) > 0.1
    wrong = (fake, real, fake + real, 2 * fake - real, fake - 0.5 * real, fake - torch.zeros_like(x).add_(0.3 * eps))
    assert all(abs(error(one)) > 30 for one in wrong)


def test_probability_zero_is_matching_bit_for_bit(new_program: Programs, new_recipe: Recipes) -> None:
    plain = trained(new_program(new_recipe()))
    off = trained(new_program(new_recipe({"data_forcing.probability": 0.0, "data_forcing.alpha_weak": 0.7})))
    forced = trained(new_program(new_recipe({"data_forcing.probability": 1.0})))
    assert alike(plain, off) and not alike(plain, forced)
    program = new_program(new_recipe({"data_forcing.probability": 1e-9, "data_forcing.alpha_weak": 0.7}))
    assert "data_forcing" in program.terms and alike(plain, trained(program))  # it is there, and its coin does not fall


@pytest.mark.parametrize("space", ["x0", "score"])
def test_the_students_own_sample_as_clip_is_matching_bit_for_bit(
    new_program: Programs, new_recipe: Recipes, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"matching.guidance_scale": 2.0, "matching.alpha_weak": 0.25}
    plain = trained(new_program(new_recipe(settings)))
    forced = {"data_forcing.probability": 1.0, "data_forcing.alpha_weak": 0.25, "data_forcing.space": space}
    program = new_program(new_recipe(settings | forced))
    term = program.terms["data_forcing"]
    monkeypatch.setattr(term, "_forced", lambda step: (step.x0.detach(), None))
    assert alike(plain, trained(program))


def test_the_coin_falls_as_often_as_it_says_and_alike_on_all_processes(
    new_program: Programs, new_recipe: Recipes
) -> None:
    def coins(rank: int) -> list[float]:
        program = new_program(new_recipe({"data_forcing.probability": 0.3}))
        program.rank = rank
        found, one = [], made_step(program, 0)
        for index in range(200):
            step = replace(one, index=index, logs={})
            program.terms["data_forcing"].question(step)
            found.append(step.logs["data_forcing/forced"])
        return found

    one = coins(0)
    assert one == coins(1) and 0.2 < sum(one) / len(one) < 0.4


def made_step(program: Distillation, index: int) -> StudentStep:
    (rollout,) = program._rollouts(index, 0)
    return program._step(rollout, program._student_x0(rollout), index, {})


def test_both_branches_of_the_teacher_see_the_clip_with_the_same_noise(
    new_program: Programs, new_recipe: Recipes
) -> None:
    changes = {"data_forcing.probability": 1.0, "matching.guidance_scale": 3.0, "matching.batched_scores": False}
    program = new_program(new_recipe(changes | {"critic.warmup": 0}), fresh=False)
    asked: list[tuple[Any, ...]] = []
    predict = program.model.predict_x0

    def watched(role: Any, *given: Any) -> Tensor:
        asked.append((role, *given))
        return predict(role, *given)

    program.model.predict_x0 = watched
    step = made_step(program, 0)
    asked.clear()
    program._loss(step)
    assert [query[0] for query in asked] == ["fake", "real", "real"]
    noised = program.process.noise(step.rollout.data, step.eps, step.sigma)
    assert all(torch.equal(x_t, noised) and alpha == 0 for role, x_t, _, _, alpha in asked if role == "real")
    assert torch.equal(asked[0][1], program.process.noise(step.x0, step.eps, step.sigma))


def test_below_the_lowest_level_rows_are_matched_as_usual(new_program: Programs, new_recipe: Recipes) -> None:
    settings = {"matching.alpha_weak": 0.25, "matching.guidance_scale": 2.0}
    forced = {"data_forcing.probability": 1.0, "data_forcing.lowest_sigma": 0.5}
    plain, program = (new_program(new_recipe(settings | more), fresh=False) for more in ({}, forced))
    gradients = []
    for one in (plain, program):
        step = made_step(one, 3)
        x0 = step.x0.clone().requires_grad_()
        step = StudentStep(3, x0, step.rollout, torch.tensor([0.9, 0.2]), step.eps, step.free)
        one._loss(step).backward()
        gradients.append(x0.grad)
    assert gradients[0] is not None and gradients[1] is not None
    torch.testing.assert_close(gradients[0][1], gradients[1][1], atol=1e-7, rtol=1e-5)
    assert not torch.allclose(gradients[0][0], gradients[1][0], atol=1e-4)


@pytest.mark.parametrize(("levels", "share"), [((0.9, 0.8), 1.0), ((0.9, 0.2), 0.5), ((0.4, 0.2), 0.0)])
def test_logs_count_the_rows_that_are_really_asked_about_their_clips(
    new_program: Programs, new_recipe: Recipes, levels: tuple[float, float], share: float
) -> None:
    forced = {"data_forcing.probability": 1.0, "data_forcing.lowest_sigma": 0.5}
    program = new_program(new_recipe(forced), fresh=False)
    step = replace(made_step(program, 3), sigma=torch.tensor(levels))
    program._loss(step)
    assert step.logs["data_forcing/forced"] == share
    assert ("score/gap" in step.logs) == (not share) and ("data_forcing/gap" in step.logs) == bool(share)
    distances = [value for key, value in step.logs.items() if "pair_distance" in key]
    assert step.rollout.data is not None
    apart = (step.x0.detach() - step.rollout.data).abs()[torch.tensor(levels) >= 0.5]
    assert distances == ([pytest.approx(float(apart.mean()), rel=1e-5)] if share else [])


@pytest.mark.parametrize("changes", [{"space": "score"}, {"clip_share": 0.3}])
def test_settings_of_the_gradient_reach_it(new_program: Programs, new_recipe: Recipes, changes: dict[str, Any]) -> None:
    forced = {f"data_forcing.{key}": value for key, value in changes.items()}
    program = new_program(new_recipe({"data_forcing.probability": 1.0} | forced))
    step = made_step(program, 0)
    data = step.rollout.data
    assert data is not None
    fake, real = torch.randn(2, *step.x0.shape, generator=torch.Generator().manual_seed(2))
    found = program.terms["data_forcing"].gradient(step, fake, real)
    share, space = changes.get("clip_share", 0.0), changes.get("space", "x0")
    target, floor = real + share * (data - real), program.recipe.matching.normaliser_floor
    torch.testing.assert_close(found, forced_gradient(step.x0, fake, target, data, space, floor))
    assert not torch.allclose(found, forced_gradient(step.x0, fake, real, data, "x0", floor))


def test_pair_distances_are_logged_by_the_level_of_the_students_input(
    new_program: Programs, new_recipe: Recipes
) -> None:
    program = new_program(new_recipe({"data_forcing.probability": 1.0, "rollout.source": "noised_data"}))
    for index in range(6):
        step = made_step(program, index)
        program.terms["data_forcing"].question(step)
        assert step.rollout.data is not None
        (name,) = (key for key in step.logs if "pair_distance" in key)
        assert name == f"data_forcing/pair_distance_{step.rollout.sigma:.3g}"
        assert step.logs[name] == pytest.approx(float((step.x0 - step.rollout.data).abs().mean()), rel=1e-5)
    x, _, _, data = four()
    free = torch.ones_like(x)
    free[:, :, 0] = 0  # a given first frame is no distance
    assert pair_distance(x, data, free) == pytest.approx(float((x - data)[:, :, 1:].abs().mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"data_forcing.space": "score", "data_forcing.clip_share": 0.3}, r"takes the clip out of .*\.space to x0"),
        ({"data_forcing.lowest_sigma": 0.99}, r"lies above every score \(matching\.score_max 0\.98\)"),
        ({"data_forcing.alpha_weak": 0.9, "matching.alpha_strong": 0.5}, r"is above matching\.alpha_strong 0\.5"),
        ({"matching.weight": 0.0}, r"matching\.weight is 0"),
    ],
)
def test_what_can_not_act_is_refused(settings: dict[str, Any], fault: str, new_recipe: Recipes) -> None:
    with pytest.raises(UserError, match=fault):
        new_recipe({"data_forcing.probability": 0.5} | settings)


def test_two_terms_that_ask_the_teacher_are_refused(
    new_program: Programs, new_recipe: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    rivals = {"one": Added, "two": Added}
    monkeypatch.setattr(
        distillation, "terms_of", lambda r, stage: {n: kind(r.data_forcing, stage) for n, kind in rivals.items()}
    )
    with pytest.raises(UserError, match="one and two would each make the question of a step; switch all but one off"):
        new_program(new_recipe({"data_forcing.probability": 0.5}))


def test_the_gap_of_forced_steps_has_a_name_of_its_own(new_program: Programs, new_recipe: Recipes) -> None:
    for probability, name in ((0.0, "score"), (1.0, "data_forcing")):
        logs = new_program(new_recipe({"data_forcing.probability": probability}), fresh=False).round(1)
        assert {key for key in logs if key.endswith(("/gap", "/cosine"))} == {f"{name}/gap", f"{name}/cosine"}


def test_without_a_run_to_start_from_it_says_so(new_program: Programs, new_recipe: Recipes) -> None:
    program = new_program(new_recipe({"data_forcing.probability": 1.0}))
    assert "name a run by --from" in program.terms["data_forcing"].remarks()[0]
