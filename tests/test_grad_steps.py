"""Which steps of the student's path an update supervises, and what a critic of its own is."""

from __future__ import annotations

import weakref
from itertools import pairwise

import pytest
import torch
from kind import Programs, Recipes
from torch import Tensor

from w2svd_core.distillation import Distillation
from w2svd_core.errors import UserError


def gradients(program: Distillation, index: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        found.update({n: p.grad.clone() for n, p in program.student.parameters.items() if p.grad is not None})

    hook = program.student.adam.register_step_pre_hook(keep)
    program.round(index)
    hook.remove()
    return found


def test_the_last_step_alone(new_program: Programs, new_recipe: Recipes) -> None:
    program = new_program(new_recipe({"rollout.grad_steps": "last"}))
    assert {program.round(index)["student/exit"] for index in range(1, 4)} == {3.0}


@pytest.mark.parametrize("source", ["backward_simulation", "noised_data"])
def test_all_steps_are_the_mean_of_each(new_program: Programs, new_recipe: Recipes, source: str) -> None:
    settings = {"rollout.grad_steps": "all", "rollout.source": source, "train.clip_norm": 0.0}
    program, twin = (new_program(new_recipe(settings), fresh=False) for _ in range(2))
    found = gradients(program, 1)
    rollouts = twin._rollouts(1, 0)
    assert [rollout.step for rollout in rollouts] == [0, 1, 2, 3]
    parameters = list(twin.student.parameters.values())
    total = [torch.zeros_like(p) for p in parameters]
    for rollout in rollouts:
        x0 = twin.model.predict_x0("generator", rollout.x_t, rollout.sigma, rollout.condition)
        loss = twin._loss(twin._step(rollout, x0, 1, {}))
        for sum_, grad in zip(total, torch.autograd.grad(loss, parameters), strict=True):
            sum_ += grad / 4
    for name, expected in zip(twin.student.parameters, total, strict=True):
        torch.testing.assert_close(found[name], expected, atol=1e-7, rtol=1e-4)


def test_of_all_steps_one_graph_lives_at_a_time(new_program: Programs, new_recipe: Recipes) -> None:
    class Held:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    peaks = {}
    for which in ("last", "all"):
        program, live, peak = new_program(new_recipe({"rollout.grad_steps": which})), weakref.WeakSet[Held](), 0

        def pack(tensor: Tensor, live: weakref.WeakSet[Held] = live) -> Held:
            nonlocal peak
            held = Held(tensor)
            live.add(held)
            peak = max(peak, len(live))
            return held

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
            program.round(1)
        peaks[which] = peak
    assert peaks["last"] > 50 and peaks["all"] == peaks["last"]


def test_all_steps_are_logged_by_their_mean(new_program: Programs, new_recipe: Recipes) -> None:
    program, twin = (new_program(new_recipe({"rollout.grad_steps": "all"}), fresh=False) for _ in range(2))
    gaps = []
    for rollout in twin._rollouts(1, 0):
        logs: dict[str, float] = {}
        twin._loss(twin._step(rollout, twin._student_x0(rollout), 1, logs))
        gaps.append(logs["score/gap"])
    assert len(set(gaps)) == 4
    assert program.round(1)["score/gap"] == pytest.approx(sum(gaps) / 4, rel=1e-4)


def test_noised_clips_of_the_last_step_alone_are_remarked_on(new_program: Programs, new_recipe: Recipes) -> None:
    odd = new_program(new_recipe({"rollout.grad_steps": "last", "rollout.source": "noised_data"})).remarks()
    assert len(odd) == 1 and f"noise level {0.625:g} alone" in odd[0]
    one = {"rollout.grad_steps": "last", "rollout.source": "noised_data", "student.sigmas": (1.0, 0.0)}
    for settings in ({"rollout.grad_steps": "last"}, {"rollout.source": "noised_data"}, one):
        assert new_program(new_recipe(settings)).remarks() == []


def test_all_steps_lie_on_one_path_and_each_goes_into_the_pool(new_program: Programs, new_recipe: Recipes) -> None:
    recipe = new_recipe({"rollout.grad_steps": "all", "student.sampler": "euler"})
    program = new_program(recipe, fresh=False)
    rollouts = program._rollouts(2, 0)
    for before, after in pairwise(rollouts):
        x0 = program._student_x0(before)
        eps = program.process.eps_from_x0(before.x_t, x0, before.sigma)
        torch.testing.assert_close(program.process.noise(x0, eps, after.sigma), after.x_t, atol=1e-5, rtol=1e-4)
    program.round(2)
    held = {name.split("/")[1] for name in program.pools.tensors() if name.endswith("x0")}
    assert held == {"0", "1", "2", "3"}


def test_the_critic_learns_the_last_step_alone_where_the_generator_does(
    new_program: Programs, new_recipe: Recipes
) -> None:
    program = new_program(new_recipe({"rollout.grad_steps": "last"}), fresh=False)
    program.round(2)
    assert {name.split("/")[1] for name in program.pools.tensors() if name.endswith("x0")} == {"3"}


@pytest.mark.parametrize("reuse", ["exit", "fresh"])
def test_the_critic_sees_every_step_that_the_generator_is_scored_at(
    new_program: Programs, new_recipe: Recipes, reuse: str
) -> None:
    recipe = new_recipe({"rollout.grad_steps": "all", "rollout.reuse": reuse})
    program = new_program(recipe, fresh=False)
    seen = []
    for k in range(24):
        rollouts = program._rollouts(1, 0 if reuse == "exit" else k + 1)
        x0s = [program._student_x0(rollout) for rollout in rollouts]
        found, _ = program._critic_samples(1, k, rollouts, x0s)
        seen += [rollout.step for rollout, x0 in zip(rollouts, x0s, strict=True) if torch.equal(x0, found)]
    assert len(seen) == 24 and set(seen) == {0, 1, 2, 3}


def test_without_matching_there_must_be_another_loss(new_program: Programs, new_recipe: Recipes) -> None:
    settings = {"matching.weight": 0.0, "rollout.source": "noised_data"}
    with pytest.raises(UserError, match="nothing to learn from"):
        new_program(new_recipe(settings))
