"""Roles are arguments of a call: exact forward, exact gradients, whatever else the model does in between.

Every test runs on every kind of every family. The reference is the plain way: an untouched base, or a copy of it with
one ordinary PEFT adapter.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, Literal

import pytest
import torch
from kind import Conditions, Kind, Models
from kinds import KINDS
from torch import Tensor, nn

from w2svd_core.condition import Condition
from w2svd_core.roles import Query, Role, SharedModel, matching

Trained = Literal["fake", "generator"]
SIGMA = torch.tensor([0.9, 0.35])


@pytest.fixture(scope="module", params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Every test of a role runs on every kind."""
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def pristine(kind: Kind) -> nn.Module:
    return kind.new()


@pytest.fixture(scope="module")
def new_shared(kind: Kind, pristine: nn.Module) -> Models:
    return partial(kind.with_roles, pristine)


@pytest.fixture(scope="module")
def texts(kind: Kind) -> Conditions:
    return kind.condition


def plain_adapter(kind: Kind, pristine: nn.Module, shared: SharedModel, role: Trained) -> nn.Module:
    """A copy of the untouched base with one PEFT adapter, the weights of `role` in it, and none of our roles."""
    from peft import LoraConfig, inject_adapter_in_model

    weights = shared.parameters(role)
    rank = next(p.shape[0] for name, p in weights.items() if ".lora_A." in name)
    model = copy.deepcopy(pristine)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=matching(kind.backbone.lora_targets).pattern)
    inject_adapter_in_model(config, model, role)
    mine = dict(model.named_parameters())
    assert {name for name in mine if ".lora_" in name} == set(weights)
    with torch.no_grad():
        for name, weight in weights.items():
            mine[name].copy_(weight)
    return model


def gradients(kind: Kind, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Takes the gradients out of the parameters; each must have one, but for those of layers that the model drops."""
    found = {}
    for name, parameter in parameters.items():
        assert parameter.grad is not None or name.startswith(kind.idle), name
        if parameter.grad is not None:
            found[name], parameter.grad = parameter.grad, None
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert any(bool(t.any()) for t in expected.values())
    assert max(float((found[name] - expected[name]).abs().max()) for name in found) == 0.0


def reference_gradients(
    kind: Kind, pristine: nn.Module, shared: SharedModel, role: Trained, x_t: Tensor, condition: Condition
) -> dict[str, Tensor]:
    model = plain_adapter(kind, pristine, shared, role)
    kind.by_hand(model, x_t, SIGMA, condition).square().sum().backward()
    return gradients(kind, {name: p for name, p in model.named_parameters() if ".lora_" in name})


# ---- forward


def test_the_teacher_is_the_untouched_base_bit_for_bit(
    kind: Kind, pristine: nn.Module, new_shared: Models, texts: Conditions
) -> None:
    with torch.no_grad():
        found = new_shared().predict("teacher", kind.points(), SIGMA, texts(2))
        assert torch.equal(found, kind.by_hand(pristine, kind.points(), SIGMA, texts(2)))


@pytest.mark.parametrize("role", ["fake", "generator"])
def test_a_role_is_plain_peft_bit_for_bit(
    kind: Kind, pristine: nn.Module, new_shared: Models, texts: Conditions, role: Trained
) -> None:
    shared = new_shared()
    with torch.no_grad():
        expected = kind.by_hand(plain_adapter(kind, pristine, shared, role), kind.points(), SIGMA, texts(2))
        assert torch.equal(shared.predict(role, kind.points(), SIGMA, texts(2)), expected)
        assert not torch.allclose(expected, kind.by_hand(pristine, kind.points(), SIGMA, texts(2)), atol=1e-3)


def test_alpha_is_the_share_of_the_adapter_not_alpha_over_rank(
    kind: Kind, pristine: nn.Module, new_shared: Models, texts: Conditions
) -> None:
    shared = new_shared(alpha_weak=0.25, critic_rank=8)
    merged, state = copy.deepcopy(pristine), shared.base.state_dict()
    with torch.no_grad():
        for name, module in merged.named_modules():
            if f"{name}.lora_A.fake.weight" in state:
                delta = state[f"{name}.lora_B.fake.weight"] @ state[f"{name}.lora_A.fake.weight"]
                module.weight += 0.25 * delta  # W + alpha_weak D
        expected = kind.by_hand(merged, kind.points(), SIGMA, texts(2))
        found = shared.predict("real", kind.points(), SIGMA, texts(2))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_alpha_weak_zero_makes_the_real_score_the_base_bit_for_bit(
    kind: Kind, pristine: nn.Module, new_shared: Models, texts: Conditions
) -> None:
    with torch.no_grad():
        found = new_shared(alpha_weak=0.0).predict("real", kind.points(), SIGMA, texts(2))
        assert torch.equal(found, kind.by_hand(pristine, kind.points(), SIGMA, texts(2)))


def test_batched_scores_equal_separate_ones(kind: Kind, new_shared: Models, texts: Conditions) -> None:
    shared, null = new_shared(), texts(1, seed=9).expand(2)
    queries = [
        Query("fake", kind.points(), SIGMA, texts(2)),
        Query("real", kind.points(), SIGMA, texts(2)),
        Query("real", kind.points(), SIGMA, null),  # guidance's rows
        Query("teacher", kind.points(2, seed=3), SIGMA.flip(0), texts(2)),
        Query("generator", kind.points(1, seed=4), SIGMA[:1], texts(1)),  # another adapter, another number of rows
    ]
    with torch.no_grad():
        together = shared.predict_x0_together(queries)
        separate = [shared.predict_x0(q.role, q.x_t, q.sigma, q.condition) for q in queries]
    for found, expected in zip(together, separate, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("settings", [{"student_rank": 0}, {"critic_rank": 0, "critic_copy": True}])
def test_a_full_copy_is_asked_by_itself_among_others(
    kind: Kind, new_shared: Models, texts: Conditions, settings: dict[str, Any]
) -> None:
    model = new_shared(**settings)
    role = "fake" if model.critic_copy is not None else "generator"
    with torch.no_grad():
        for parameter in model.parameters(role).values():
            parameter.add_(0.01)
        queries = [Query(one, kind.points(), SIGMA, texts(2)) for one in (role, "teacher", "real")]
        copied, teacher, real = model.predict_x0_together(queries)
        assert torch.equal(copied, model.predict_x0(role, kind.points(), SIGMA, texts(2)))
        assert not torch.allclose(copied, teacher, atol=1e-3)
        torch.testing.assert_close(teacher, model.predict_x0("teacher", kind.points(), SIGMA, texts(2)))
        torch.testing.assert_close(real, model.predict_x0("real", kind.points(), SIGMA, texts(2)))


# ---- gradients


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("between", ["teacher", "real", "fake"])
def test_another_role_between_forward_and_backward_leaves_the_gradients_exact(
    kind: Kind, pristine: nn.Module, new_shared: Models, texts: Conditions, between: Role, checkpointing: bool
) -> None:
    shared = new_shared(checkpointing=checkpointing)
    loss = shared.predict("generator", kind.points(), SIGMA, texts(2)).square().sum()
    with torch.no_grad():
        shared.predict(between, kind.points(2, seed=5), SIGMA, texts(2, seed=5))
        shared.predict_x0_together([Query(between, kind.points(3), SIGMA[:1].expand(3), texts(3))])
    loss.backward()
    found = gradients(kind, shared.parameters("generator"))
    assert_same(found, reference_gradients(kind, pristine, shared, "generator", kind.points(), texts(2)))
    assert all(p.grad is None for p in shared.parameters("fake").values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_live_graphs_have_exact_gradients(
    kind: Kind, pristine: nn.Module, new_shared: Models, texts: Conditions, checkpointing: bool
) -> None:
    shared = new_shared(checkpointing=checkpointing)
    student = shared.predict("generator", kind.points(), SIGMA, texts(2)).square().sum()
    critic = shared.predict("fake", kind.points(), SIGMA, texts(2)).square().sum()
    (student + critic).backward()
    for role in ("generator", "fake"):
        expected = reference_gradients(kind, pristine, shared, role, kind.points(), texts(2))
        assert_same(gradients(kind, shared.parameters(role)), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_full_copy_has_exact_gradients_with_scores_in_between(
    kind: Kind, pristine: nn.Module, new_shared: Models, texts: Conditions, checkpointing: bool
) -> None:
    shared = new_shared(student_rank=0, checkpointing=checkpointing)
    loss = shared.predict("generator", kind.points(), SIGMA, texts(2)).square().sum()
    with torch.no_grad():
        shared.predict("real", kind.points(), SIGMA, texts(2))
    loss.backward()
    model = copy.deepcopy(pristine).requires_grad_(True)
    kind.by_hand(model, kind.points(), SIGMA, texts(2)).square().sum().backward()
    assert_same(gradients(kind, shared.parameters("generator")), gradients(kind, dict(model.named_parameters())))


def test_strengths_of_rows_have_exact_gradients_under_checkpointing(
    kind: Kind, new_shared: Models, texts: Conditions
) -> None:
    def found(checkpointing: bool) -> dict[str, Tensor]:
        shared = new_shared(checkpointing=checkpointing)
        queries = [Query(role, kind.points(), SIGMA, texts(2)) for role in ("fake", "real", "teacher")]
        together = shared.predict_x0_together(queries)
        with torch.no_grad():
            shared.predict("generator", kind.points(), SIGMA, texts(2))
        sum(x0.square().sum() for x0 in together).backward()  # type: ignore[union-attr]
        return gradients(kind, shared.parameters("fake"))

    assert_same(found(checkpointing=True), found(checkpointing=False))


def test_a_critic_learns_the_same_from_a_batch_of_roles(kind: Kind, new_shared: Models, texts: Conditions) -> None:
    shared = new_shared()
    queries = [Query(role, kind.points(), SIGMA, texts(2)) for role in ("fake", "real")]
    sum(x0.square().mean() for x0 in shared.predict_x0_together(queries)).backward()  # type: ignore[union-attr]
    together = gradients(kind, shared.parameters("fake"))
    for q in queries:
        shared.predict_x0(q.role, q.x_t, q.sigma, q.condition).square().mean().backward()
    separate = gradients(kind, shared.parameters("fake"))
    for name, expected in separate.items():
        torch.testing.assert_close(together[name], expected, atol=1e-6, rtol=1e-5)


# ---- what a call leaves behind


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("student_rank", [0, 4])
def test_requires_grad_never_flips(
    kind: Kind, new_shared: Models, texts: Conditions, checkpointing: bool, student_rank: int
) -> None:
    shared = new_shared(checkpointing=checkpointing, student_rank=student_rank)
    parameters = dict(shared.base.named_parameters())
    before = {name: p.requires_grad for name, p in parameters.items()}
    assert before == {name: ".lora_" in name for name in parameters}
    seen: list[bool] = []

    def look(*_: Any) -> None:
        seen.append(before == {name: p.requires_grad for name, p in parameters.items()})

    list(kind.backbone.blocks(shared.base))[1].register_forward_hook(look)
    roles: tuple[Role, ...] = ("teacher", "real", "fake", "generator")
    total = sum(shared.predict(role, kind.points(), SIGMA, texts(2)).sum() for role in roles)
    total.backward()  # type: ignore[union-attr]
    look()
    assert len(seen) >= 4 and all(seen)


def test_a_failing_call_leaves_no_role_behind(
    kind: Kind, pristine: nn.Module, new_shared: Models, texts: Conditions
) -> None:
    shared = new_shared()
    with pytest.raises(RuntimeError):
        shared.predict("fake", kind.points()[:, :3], SIGMA, texts(2))  # 3 channels
    with torch.no_grad():  # a plain call of the base has no adapter
        found = kind.by_hand(shared.base, kind.points(), SIGMA, texts(2))
        assert torch.equal(found, kind.by_hand(pristine, kind.points(), SIGMA, texts(2)))


def test_the_base_state_is_the_untouched_base(pristine: nn.Module, new_shared: Models) -> None:
    found, expected = new_shared().base_state(), pristine.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_adapters_start_from_their_seed_alone(new_shared: Models) -> None:
    torch.manual_seed(11)
    first = new_shared(fresh=True, seed=5).parameters("fake")
    torch.manual_seed(12)
    state = torch.get_rng_state()
    again = new_shared(fresh=True, seed=5).parameters("fake")
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(not p.any() for name, p in first.items() if ".lora_B." in name)


def test_adapters_of_a_bf16_base_stay_in_float32(kind: Kind, pristine: nn.Module) -> None:
    base = copy.deepcopy(pristine).to(torch.bfloat16)
    shared = SharedModel(kind.backbone, base, critic_rank=2, student_rank=2)
    for role in ("fake", "generator"):
        assert {p.dtype for p in shared.parameters(role).values()} == {torch.float32}


def test_conditions_of_other_fields_are_not_stacked() -> None:
    text = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match="other fields"):
        Condition.cat([Condition({"text": text}), Condition({"text": text, "first": text})])
