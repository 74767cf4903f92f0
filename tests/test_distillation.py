"""A round of distillation: the papers' identities on the real wiring, and what a round may touch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kind import Programs, Recipes
from plain_dmd import PlainDMD, Tape
from torch import Tensor, nn

from w2svd_core.backbones import backbone
from w2svd_core.distillation import Distillation
from w2svd_core.errors import UserError
from w2svd_core.lora_files import base_hash
from w2svd_core.terms import Question

WAN = backbone("wan")


def trained(program: Distillation) -> dict[str, Tensor]:
    """Copies of the weights of both learners."""
    both = {"student": program.student, "critic": program.critic}
    return {f"{who}/{name}": p.detach().clone() for who, one in both.items() for name, p in one.parameters.items()}


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).abs().max().detach()) for name in found)


def run_both(pristine: nn.Module, program: Distillation) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    tape, plain = Tape(program), PlainDMD(pristine, program)
    start = trained(program)
    for index in range(program.rounds):
        program.round(index)
        rollout = tape.rollouts[-1]
        text, null = rollout.condition.fields["text"], program.null.expand(len(rollout.x_t)).fields["text"]
        plain.round(index, rollout.step, text, null, iter(tape.noises), iter(tape.sigmas))
        tape.noises.clear()
        tape.sigmas.clear()
    assert all(bool((start[name] != t).any()) for name, t in trained(program).items())  # everything has moved
    return trained(program), plain.weights()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_alpha_weak_zero_is_dmd_bit_for_bit(
    pristine: nn.Module, new_program: Programs, new_recipe: Recipes, guidance: float, checkpointing: bool, kind: str
) -> None:
    recipe = new_recipe(
        {
            "student.kind": kind,
            "critic.kind": kind,
            "train.steps": 3,
            "matching.alpha_weak": 0.0,
            "matching.guidance_scale": guidance,
            "matching.batched_scores": False,
            "model.gradient_checkpointing": checkpointing,
            "rollout.reuse": "exit",
        }
    )
    found, expected = run_both(pristine, new_program(recipe))
    assert furthest(found, expected) == 0.0


def test_alpha_weak_zero_is_dmd_with_batched_scores(
    pristine: nn.Module, new_program: Programs, new_recipe: Recipes
) -> None:
    """The scores themselves, after some training; Adam would blow a last bit up to a whole step."""
    recipe = new_recipe({"matching.alpha_weak": 0.0, "matching.guidance_scale": 3.0, "rollout.reuse": "exit"})
    program = new_program(recipe, fresh=False)
    plain = PlainDMD(pristine, program)
    data, condition = program.data.batch([0, 1], torch.device("cpu"))
    sigma, text = torch.tensor([0.8, 0.3]), condition.fields["text"]
    fake, real = program._scores(data, Question(data), sigma, condition)
    with torch.no_grad():
        cond = plain.x0(pristine, data, sigma, text)
        uncond = plain.x0(pristine, data, sigma, program.null.expand(2).fields["text"])
        torch.testing.assert_close(fake, plain.x0(plain.critic, data, sigma, text), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(real, uncond + 3 * (cond - uncond), atol=1e-6, rtol=1e-6)


def test_alpha_weak_is_not_dmd_otherwise(pristine: nn.Module, new_program: Programs, new_recipe: Recipes) -> None:
    recipe = new_recipe({"matching.alpha_weak": 0.25, "matching.batched_scores": False, "rollout.reuse": "exit"})
    found, expected = run_both(pristine, new_program(recipe))
    assert furthest(found, expected) > 0.0


def student_gradients(program: Distillation, index: int) -> dict[str, Tensor]:
    """The gradients of the student's update of a round."""
    found: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        found.update({n: p.grad.clone() for n, p in program.student.parameters.items() if p.grad is not None})

    with_hook = program.student.adam.register_step_pre_hook(keep)
    program.round(index)
    with_hook.remove()
    assert found.keys() == program.student.parameters.keys()
    return found


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_equal_alphas_without_guidance_give_exactly_no_gradient(
    new_program: Programs, new_recipe: Recipes, batched: bool, kind: str
) -> None:
    recipe = new_recipe({"matching.batched_scores": batched, "student.kind": kind})
    program = new_program(recipe, fresh=False, alpha_weak=1.0, alpha_strong=1.0)
    for index in (1, 2):
        assert all(not t.any() for t in student_gradients(program, index).values())


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("alpha_weak", [0.0, 0.25])
def test_fresh_adapters_without_guidance_give_exactly_no_gradient(
    new_program: Programs, new_recipe: Recipes, batched: bool, alpha_weak: float
) -> None:
    recipe = new_recipe({"matching.batched_scores": batched, "matching.alpha_weak": alpha_weak, "critic.warmup": 0})
    assert all(not t.any() for t in student_gradients(new_program(recipe), 0).values())


def test_fresh_adapters_with_guidance_do_have_a_gradient(new_program: Programs, new_recipe: Recipes) -> None:
    recipe = new_recipe({"matching.guidance_scale": 3.0, "critic.warmup": 0})
    assert any(bool(t.any()) for t in student_gradients(new_program(recipe), 0).values())


# ---- what a round touches


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_base_is_bit_identical_after_training(
    pristine: nn.Module, new_program: Programs, new_recipe: Recipes, kind: str, checkpointing: bool
) -> None:
    recipe = new_recipe({"student.kind": kind, "model.gradient_checkpointing": checkpointing})
    program = new_program(recipe)
    flags = {name: p.requires_grad for name, p in program.model.base.named_parameters()}
    start = trained(program)
    for index in range(program.rounds):
        program.round(index)
    assert base_hash(program.model.base) == base_hash(program.model.base_state()) == base_hash(pristine)
    assert flags == {name: p.requires_grad for name, p in program.model.base.named_parameters()}
    assert all(p.grad is None for p in program.model.base.parameters())
    assert all(bool((start[name] != t).any()) for name, t in trained(program).items())


def test_a_full_copy_student_trains_its_copy_and_has_no_adapter(
    pristine: nn.Module, new_program: Programs, new_recipe: Recipes
) -> None:
    program = new_program(new_recipe({"student.kind": "full"}))
    model = program.model
    assert not any(".generator." in name for name, _ in model.base.named_parameters())
    assert {name for name, _ in model.copy.named_parameters()} == set(pristine.state_dict())
    assert base_hash(model.copy) == base_hash(pristine)  # it starts as the teacher
    for index in range(program.rounds):
        program.round(index)
    assert base_hash(model.copy) != base_hash(pristine)
    assert not {id(p) for p in model.copy.parameters()} & {id(p) for p in model.base.parameters()}


def test_the_head_start_trains_the_critic_alone(new_program: Programs, new_recipe: Recipes) -> None:
    program = new_program(new_recipe({"critic.warmup": 2}))
    before = trained(program)
    logs = [program.round(index) for index in range(2)]
    after = trained(program)
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("student/"))
    assert program.critic.updates == 4 and program.student.updates == 0 and "student/loss" not in logs[0]
    assert "student/loss" in program.round(2)
    assert program.student.updates == 1 and program.rounds == 6


def count_calls(program: Distillation, index: int) -> tuple[list[int], dict[str, float]]:
    """The batch of every model call of a round."""
    calls: list[int] = []
    hooks = [
        model.register_forward_hook(
            lambda _m, _a, kwargs, _o: calls.append(len(kwargs["hidden_states"])), with_kwargs=True
        )
        for model in (program.model.base, program.model.copy)
        if model is not None
    ]
    logs = program.round(index)
    for hook in hooks:
        hook.remove()
    return calls, logs


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("source", ["backward_simulation", "noised_data"])
@pytest.mark.parametrize("reuse", ["visited", "exit", "fresh"])
def test_a_round_calls_the_model_as_often_as_it_must(
    new_program: Programs, new_recipe: Recipes, kind: str, source: str, reuse: str
) -> None:
    recipe = new_recipe(
        {
            "student.kind": kind,
            "rollout.source": source,
            "rollout.reuse": reuse,
            "matching.guidance_scale": 2.0,
        }
    )
    program = new_program(recipe)
    tape = Tape(program)
    for index in (1, 2):
        tape.rollouts.clear()
        calls, logs = count_calls(program, index)
        walks = [r.step if source == "backward_simulation" else 0 for r in tape.rollouts]
        again = [2] * (sum(walks[1:]) + 2) if reuse == "fresh" else []  # the fresh x0 of both critic updates
        assert sorted(calls) == sorted([2] * walks[0] + [2] + [6] + [2, 2] + again)  # walk, train, scores, critic
        assert len(tape.rollouts) == (3 if reuse == "fresh" else 1)
        assert logs["student/exit"] == tape.rollouts[0].step


@pytest.mark.parametrize("source", ["backward_simulation", "noised_data"])
def test_visited_samples_go_into_the_pool_under_their_own_steps(
    new_program: Programs, new_recipe: Recipes, source: str
) -> None:
    program = new_program(new_recipe({"rollout.source": source, "critic.updates": 1}))
    tape = Tape(program)
    program.round(0)
    rollout = tape.rollouts[0]
    held = program.pools.of(rollout.x_t).tensors()
    steps = {int(name.split("/")[0]) for name in held}
    assert steps == (set(range(rollout.step + 1)) if source == "backward_simulation" else {rollout.step})
    for step, x0 in enumerate(rollout.visited):
        assert torch.equal(held[f"{step}/x0"], x0)
    assert all(torch.equal(held[f"{s}/condition/text"], rollout.condition.fields["text"]) for s in steps)


@pytest.mark.parametrize("reuse", ["visited", "fresh"])
def test_diversity_is_logged_against_the_clips_of_the_same_rows(
    new_program: Programs, new_recipe: Recipes, reuse: str
) -> None:
    program = new_program(new_recipe({"rollout.reuse": reuse, "train.batch": 3}))
    tape = Tape(program)
    assert "student/diversity" not in program.round(0)  # the critic's head start makes no update
    for index in (1, 2):
        tape.rollouts.clear()
        with torch.no_grad():  # the student as it is before its update
            samples = program._student_x0(program._rollouts(index, 0)[0])
        wanted = samples.flatten(1)
        texts = tape.rollouts[0].condition.fields["text"]
        rows = [int((program.data.condition.fields["text"] == text).all(2).all(1).nonzero()) for text in texts]
        clips = program.data.latents[rows].flatten(1)
        found = program.round(index)["student/diversity"]
        assert found == pytest.approx(float(torch.pdist(wanted).mean() / torch.pdist(clips).mean()), rel=1e-5)
    one = new_program(new_recipe({"train.batch": 1, "critic.warmup": 0}))
    assert "student/diversity" not in one.round(0)


def test_the_ground_truth_term_acts_and_is_off_by_default(new_program: Programs, new_recipe: Recipes) -> None:
    def after(weight: float) -> dict[str, Tensor]:
        settings = {"rollout.source": "noised_data", "matching.ground_truth_weight": weight}
        program = new_program(new_recipe(settings))
        for index in range(2):
            program.round(index)
        return trained(program)

    assert new_recipe().matching.ground_truth_weight == 0.0
    assert furthest(after(0.5), after(0.0)) > 0.0


def test_the_same_seed_is_the_same_run_and_another_seed_is_not(new_program: Programs, new_recipe: Recipes) -> None:
    def after(seed: int) -> dict[str, Tensor]:
        program = new_program(new_recipe({"seed": seed}))
        for index in range(2):
            torch.rand(3)  # the global state plays no part
            program.round(index)
        return trained(program)

    first = after(0)
    assert furthest(after(0), first) == 0.0 and furthest(after(1), first) > 0.0


def test_a_broken_score_is_counted_and_then_ends_the_run(new_program: Programs, new_recipe: Recipes) -> None:
    program = new_program(new_recipe({"train.max_nonfinite": 2, "rollout.reuse": "exit"}))
    program.round(0)
    last = next(p for name, p in program.critic.parameters.items() if "1.ffn.net.2.lora_B" in name)
    with torch.no_grad():  # (torch's attention on a CPU swallows a NaN in a query; this one reaches the output)
        last.fill_(torch.nan)
    before = {name: p.detach().clone() for name, p in program.student.parameters.items()}
    with pytest.raises(UserError, match="non-finite"):
        program.round(1)
    assert program.student.nonfinite_in_a_row == 1
    assert all(torch.equal(before[name], p) for name, p in program.student.parameters.items())
