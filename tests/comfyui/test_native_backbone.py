"""A native MODEL in training: the same numbers as headless, exact roles, and a MODEL that is as it was afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from kind import program_of
from native_tiny import (
    SIGMA,
    Vae,
    asked,
    clips,
    gradients,
    headless_roles,
    learned,
    native,
    native_roles,
    same_rounds,
    shaken_adapters,
    small_recipe,
    sockets,
)
from torch import Tensor, nn
from wan_kinds import condition_of, points_of

from w2svd_core.lora_files import base_hash
from w2svd_core.roles import Query

# ---- the same numbers as headless


def test_roles_answer_and_learn_as_headless(twin: tuple[nn.Module, Path], patcher: Any) -> None:
    x, condition = points_of("t2v"), condition_of("t2v", 2)
    headless = headless_roles(twin[0])
    with native_roles(patcher) as shared:
        mine, theirs = (model.parameters("generator") for model in (shared, headless))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert base_hash(shared.base_state()) == base_hash(headless.base_state())
        shaken_adapters(shared, headless)
        for role in ("teacher", "real", "fake", "generator"):
            with torch.no_grad():
                found = shared.predict(role, x, SIGMA, native(condition))  # type: ignore[arg-type]
                expected = headless.predict(role, x, SIGMA, condition)  # type: ignore[arg-type]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        for role in ("fake", "generator"):
            mine, theirs = learned(shared, role, x, native(condition)), learned(headless, role, x, condition)
            assert mine.keys() == theirs.keys()
            for name, expected in theirs.items():
                torch.testing.assert_close(mine[name], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"method": "flow_matching"}, {"matching.batched_scores": False}])
def test_rounds_of_training_have_the_losses_of_headless(
    twin: tuple[nn.Module, Path], patcher: Any, changes: dict[str, Any]
) -> None:
    from w2svd_core.backbones.comfy import NativeSource, native_job

    recipe, data = small_recipe(**changes), clips()
    expected = program_of(recipe, twin[0], data)
    with native_job(patcher, recipe, sockets(patcher, data), NativeSource(patcher, Vae())) as job:
        same_rounds(job.program, expected)


# ---- roles


def test_the_teacher_is_the_models_own_answer_bit_for_bit(patcher: Any) -> None:
    x, condition = points_of("t2v"), native(condition_of("t2v", 2))
    before = asked(patcher, x, SIGMA, condition)
    with native_roles(patcher) as shared, torch.no_grad():
        shaken_adapters(shared)
        shared.predict("fake", x, SIGMA, condition)
        found = shared.predict_x0("teacher", x, SIGMA, condition)
        torch.testing.assert_close(found, before, atol=1e-5, rtol=1e-5)
        bare = shared.base(x, SIGMA, condition.fields)
        assert torch.equal(bare, shared.predict("teacher", x, SIGMA, condition))


def test_roles_in_one_batch_are_the_roles_one_by_one(patcher: Any) -> None:
    x, condition = points_of("t2v"), native(condition_of("t2v", 2))
    with native_roles(patcher) as shared, torch.no_grad():
        shaken_adapters(shared)
        queries = [Query(role, x, SIGMA, condition) for role in ("fake", "real", "teacher", "generator")]
        together = shared.predict_x0_together(queries)
        for query, found in zip(queries, together, strict=True):
            torch.testing.assert_close(found, shared.predict_x0(query.role, x, SIGMA, condition), atol=1e-6, rtol=1e-5)


def test_gradients_are_exact_with_checkpointing_and_other_roles_in_between(patcher: Any) -> None:
    x, condition = points_of("t2v"), native(condition_of("t2v", 2))

    def found(checkpointing: bool, between: bool) -> dict[str, Tensor]:
        with native_roles(patcher, checkpointing=checkpointing) as shared:
            shaken_adapters(shared)
            answer = shared.predict("generator", x, SIGMA, condition)
            critic = shared.predict("fake", x, SIGMA, condition)
            if between:
                with torch.no_grad():
                    shared.predict_x0_together([Query("real", x[:1], SIGMA[:1], condition[:1])] * 3)
            total = answer.square().sum() + critic.square().sum()
            return gradients(lambda: total.sqrt(), shared.parameters("generator") | shared.parameters("fake"))

    plain = found(checkpointing=False, between=False)
    again = found(checkpointing=True, between=True)
    assert plain.keys() == again.keys() and len(plain) == 80
    assert all(torch.equal(plain[name], again[name]) for name in plain)


# ---- the MODEL afterwards


def test_the_model_is_as_it_was_and_trains_again(patcher: Any) -> None:
    x, condition = points_of("t2v"), native(condition_of("t2v", 2))
    before, state = asked(patcher, x, SIGMA, condition), patcher.model.diffusion_model.state_dict()
    state = {name: tensor.clone() for name, tensor in state.items()}
    for _ in range(2):
        with native_roles(patcher, checkpointing=True) as shared:
            shaken_adapters(shared)
            learned(shared, "generator", x, condition)
    after = patcher.model.diffusion_model
    assert after.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in after.state_dict().items())
    assert not any(module._forward_hooks for module in after.modules())
    assert not any("forward" in vars(module) for module in after.modules())
    assert not any(parameter.requires_grad for parameter in after.parameters())
    assert torch.equal(asked(patcher, x, SIGMA, condition), before)


def test_a_failing_training_leaves_the_model_and_comfyui_as_they_were(patcher: Any) -> None:
    import comfy.model_management as management

    before = (getattr(management, "in_training", None), management.throw_exception_if_processing_interrupted)
    with pytest.raises(ZeroDivisionError), native_roles(patcher):
        raise ZeroDivisionError
    after = (getattr(management, "in_training", None), management.throw_exception_if_processing_interrupted)
    assert before == after
    assert not any(module._forward_hooks for module in patcher.model.modules())


def test_a_cancel_does_not_break_a_round_and_is_still_known_after_it(patcher: Any) -> None:
    import comfy.model_management as management

    x, condition = points_of("t2v"), native(condition_of("t2v", 2))
    try:
        with native_roles(patcher, checkpointing=True) as shared:
            management.interrupt_current_processing(True)
            learned(shared, "generator", x, condition)
            assert management.processing_interrupted()
    finally:
        management.interrupt_current_processing(False)


def test_a_lora_on_the_model_belongs_to_the_base_and_is_off_again_elsewhere(
    twin: tuple[nn.Module, Path], patcher: Any
) -> None:
    x, condition = points_of("t2v"), native(condition_of("t2v", 2))
    plain = asked(patcher, x, SIGMA, condition)
    patched = patcher.clone()
    change = torch.randn(128, 128, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        patched.add_patches({"diffusion_model.blocks.0.self_attn.q.weight": ("diff", (change.clone(),))}, 0.1)
    with_patch = asked(patched, x, SIGMA, condition)
    assert not torch.allclose(with_patch, plain, atol=1e-3)
    with native_roles(patched) as shared:
        shaken_adapters(shared)
        with torch.no_grad():
            found = shared.predict_x0("teacher", x, SIGMA, condition)
        learned(shared, "generator", x, condition)
    torch.testing.assert_close(found, with_patch, atol=1e-5, rtol=1e-5)
    assert torch.equal(asked(patcher, x, SIGMA, condition), plain)


def test_a_model_that_was_pushed_out_in_part_is_whole_again(patcher: Any) -> None:
    """As the VAE of a preview does it on a GPU that is nearly full; patches lie on some layers only then."""
    from comfy import model_management as management

    from w2svd_core.backbones.comfy_model import partly_loaded

    x, condition = points_of("t2v"), native(condition_of("t2v", 2))
    patched = patcher.clone()
    change = torch.randn(128, 128, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        patched.add_patches({"diffusion_model.blocks.0.self_attn.q.weight": ("diff", (change.clone(),))}, 0.1)
    with native_roles(patched) as shared:
        shaken_adapters(shared)
        before = base_hash(shared.base_state())
        with torch.no_grad():
            found = shared.predict_x0("teacher", x, SIGMA, condition)
        (loaded,) = [one for one in management.current_loaded_models if one.model.model is shared.base.model]
        with torch.inference_mode():
            loaded.model.partially_unload(torch.device("cpu"), 1e12)
        assert partly_loaded(loaded.model) and loaded.model in management.loaded_models()
        learned(shared, "generator", x, condition)
        assert not partly_loaded(loaded.model) and base_hash(shared.base_state()) == before
        with torch.no_grad():
            torch.testing.assert_close(shared.predict_x0("teacher", x, SIGMA, condition), found, atol=1e-6, rtol=1e-6)


def test_weights_become_ordinary_without_a_second_copy() -> None:
    """Peak memory of a whole process, measured by the kernel."""
    code = """
import sys, torch
from torch import nn
from w2svd_core.backbones.comfy_model import ordinary
with torch.inference_mode():
    model = nn.Sequential(*[nn.Linear(1024, 1024, bias=False) for _ in range(64)])  # 256 MiB
def at(key):
    return int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1]) / 1024
open("/proc/self/clear_refs", "w").write("5")
before = at("VmRSS")
assert ordinary(model) == 64 and not any(p.is_inference() for p in model.parameters())
print(at("VmHWM") - before)
"""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from Linux's /proc")
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 25.6
