"""What comes into a training of a MODEL and goes out of it: sockets, files, 8 bits, other models than Wan."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from native_tiny import (
    SIGMA,
    Vae,
    asked,
    clips,
    conditioning,
    latent,
    learned,
    loaded,
    lora_of,
    native,
    native_roles,
    new_hunyuan,
    new_twin,
    scaled_twin,
    shaken_adapters,
    small_recipe,
    sockets,
)
from torch import Tensor, nn
from torch.nn.functional import pad
from wan_kinds import by_hand, condition_of, points_of

from w2svd_core.backbones import backbone
from w2svd_core.condition import Condition
from w2svd_core.errors import UserError
from w2svd_core.lora_files import base_hash, read_lora

WORDS = torch.randn(2, 5, 4096, generator=torch.Generator().manual_seed(3))  # tokens of two prompts


def test_sockets_become_the_training_set_of_headless(patcher: Any) -> None:
    data = clips()
    found = sockets(patcher, data)
    latents, condition = found.batch([0, 1, 2, 3], torch.device("cpu"))
    torch.testing.assert_close(latents, data.latents, atol=1e-5, rtol=1e-5)
    assert torch.equal(condition.fields["c_crossattn"], native(data.condition).fields["c_crossattn"])
    assert torch.equal(found.null.fields["c_crossattn"], native(data.null).fields["c_crossattn"])
    assert found.captions == data.captions
    assert not latents.is_inference() and not condition.fields["c_crossattn"].is_inference()


def test_clips_of_two_sizes_make_buckets_and_prompts_alone_a_set(patcher: Any) -> None:
    from w2svd_core.backbones.comfy import native_data

    data = clips()
    both = [latent(patcher, data.latents[:2]), latent(patcher, data.latents[2:, :, :2])]
    (negative,) = conditioning(data.null)
    found = native_data(patcher, both, conditioning(data.condition), negative)
    assert len(found) == 4 and {found.shape([row])[1] for row in range(4)} == {2, 3}
    for place in range(0, 20, 2):
        latents, condition = found.batch(found.rows(place, 2, 0), torch.device("cpu"))
        assert latents is not None and len(latents) == len(condition) == 2
    alone = native_data(patcher, [], conditioning(data.condition), negative, shape=(16, 3, 4, 4))
    assert len(alone) == 4 and alone.shape([0]) == (16, 3, 4, 4) and alone.batch([0], torch.device("cpu"))[0] is None
    one = native_data(patcher, both[:1], conditioning(data.condition)[:1], negative)
    assert len(one) == 2


def test_prompts_of_several_lengths_are_asked_each_at_its_own(patcher: Any) -> None:
    from w2svd_core.backbones.comfy import native_data

    data, x = clips(), points_of("t2v")
    rows = [[[row[None, :length].clone(), {}]] for row, length in zip(WORDS, (3, 5), strict=True)]
    found = native_data(patcher, [latent(patcher, data.latents[:2])], rows, rows[0])
    _, condition = found.batch([0, 1], torch.device("cpu"))
    alone = [Condition({"c_crossattn": WORDS[row : row + 1, :length]}) for row, length in enumerate((3, 5))]
    expected = [asked(patcher, x[row : row + 1], SIGMA[row : row + 1], own) for row, own in enumerate(alone)]
    with native_roles(patcher) as shared, torch.no_grad():
        both = shared.predict_x0("teacher", x, SIGMA, condition)
    torch.testing.assert_close(both, torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_what_a_clip_shows_stays_where_guidance_leaves_the_prompt_out() -> None:
    from w2svd_core.backbones.comfy import native_data

    hunyuan, text, x = new_hunyuan(), torch.ones(1, 5, 24), points_of("t2v")
    about: dict[str, Any] = {"pooled_output": torch.zeros(1, 12)}
    rows = [[[text, about | {"ref_latent": x[row : row + 1]}]] for row in range(2)]
    for empty in (about, about | {"ref_latent": 9 * x[:1]}):
        data = native_data(hunyuan, [latent(hunyuan, x)], rows, [[0 * text, empty]])
        _, condition = data.batch([0, 1], torch.device("cpu"))
        without = condition.instead(data.null)
        assert torch.equal(without.fields["ref_latent"], condition.fields["ref_latent"])
        assert not torch.equal(without.fields["ref_latent"][0], without.fields["ref_latent"][1])
        assert not without.fields["c_crossattn"].any() and "guidance" not in without.fields


def test_a_model_is_told_the_guidance_of_its_conditioning(patcher: Any) -> None:
    from w2svd_core.backbones.comfy import embedded_guidance

    hunyuan, like = new_hunyuan(), clips().latents[:1]
    entry: dict[str, Any] = {"pooled_output": torch.zeros(1, 12)}
    text = torch.zeros(1, 5, 24)
    assert embedded_guidance(patcher, [[[WORDS[:1], {}]]], like) is None  # Wan takes none
    assert embedded_guidance(hunyuan, [[[text, entry]]], like) == 6.0  # ComfyUI's own
    assert embedded_guidance(hunyuan, [[[text, entry | {"guidance": 3.5}]]], like) == 3.5


def test_what_does_not_fit_is_said_in_one_sentence(patcher: Any) -> None:
    from w2svd_core.backbones.comfy import NativeSource, embedded_guidance, native_data, native_job

    data = clips()
    (negative,), all_of = conditioning(data.null), conditioning(data.condition)
    good = latent(patcher, data.latents)
    with pytest.raises(UserError, match="4 clips and 3 conditions"):
        native_data(patcher, [good], all_of[:3], negative)
    with pytest.raises(UserError, match="takes latents of 16 channels, a clip has 8"):
        native_data(patcher, [{"samples": torch.zeros(1, 8, 3, 4, 4)}], all_of[:1], negative)
    with pytest.raises(UserError, match="holds no video"):
        native_data(patcher, [{"samples": torch.zeros(1, 16, 4, 4)}], all_of[:1], negative)
    with pytest.raises(UserError, match="holds 2 prompts that a sampler would mix"):
        native_data(patcher, [good], [[*one, *one] for one in all_of], negative)
    for name, value in (
        ("start_percent", 0.2),
        ("strength", 0.5),
        ("mask", torch.ones(1, 4, 4)),
        ("control", object()),
    ):
        only_sampled = [[[words, about | {name: value}] for words, about in one] for one in all_of]
        with pytest.raises(UserError, match=f"carries {name}, which only a sampler can use"):
            native_data(patcher, [good], only_sampled, negative)
    pooled: dict[str, Any] = {"pooled_output": torch.zeros(1, 12)}
    hunyuan, text = new_hunyuan(), torch.zeros(1, 5, 24)
    with pytest.raises(UserError, match="make all by the same nodes"):
        native_data(hunyuan, [latent(hunyuan, data.latents[:1])], [[[text, pooled]]], [[text, {"pooled_output": None}]])
    with pytest.raises(UserError, match="guidance disabled"):
        embedded_guidance(hunyuan, [[[text, pooled | {"guidance": None}]]], data.latents[:1])
    alone = native_data(patcher, [], all_of, negative, shape=(16, 3, 4, 4))
    noised = small_recipe(**{"rollout.source": "noised_data"})
    with (
        pytest.raises(UserError, match="noised_data needs clips"),
        native_job(patcher, noised, alone, NativeSource(patcher, Vae())),
    ):
        pass
    hunyuan.model.diffusion_model.time_r_in = nn.Linear(2, 2)
    with pytest.raises(UserError, match="step-distilled already"), native_roles(hunyuan):
        pass
    with pytest.raises(UserError, match="by token replacement"):
        native_data(hunyuan, [latent(hunyuan, data.latents[:1])], [[[text, pooled | {"guiding_frame_index": 0}]]], [])
    louder = [[[text, pooled | {"guidance": scale}]] for scale in (3.5, 6.0)]
    with pytest.raises(UserError, match=r"guidances from 3\.5 to 6"):
        embedded_guidance(hunyuan, louder, data.latents[:1])
    with (
        pytest.raises(UserError, match="trains a LoRA"),
        native_job(
            patcher, small_recipe(**{"student.kind": "full"}), sockets(patcher, data), NativeSource(patcher, Vae())
        ),
    ):
        pass


def test_the_lora_loads_in_comfyui_whole_and_acts_as_the_student(
    patcher: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    import comfy.sd

    from w2svd_core.backbones.comfy import NativeSource, native_job

    x, condition = points_of("t2v"), native(condition_of("t2v", 2))
    with native_job(patcher, small_recipe(), sockets(patcher, clips()), NativeSource(patcher, Vae())) as job:
        shaken_adapters(job.model)
        lora = lora_of(job.model)
        with torch.no_grad():
            expected = job.model.predict_x0("generator", x, SIGMA, condition)
    assert len(lora) == 3 * 20 and all(key.startswith("diffusion_model.blocks.") for key in lora)
    with torch.inference_mode():
        with_lora, _ = comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0.0)
    assert len(with_lora.patches) == 20 and "not loaded" not in caplog.text
    torch.testing.assert_close(asked(with_lora, x, SIGMA, condition), expected, atol=1e-4, rtol=1e-4)


def test_a_whole_run_and_its_resume(twin: tuple[nn.Module, Path], patcher: Any, tmp_path: Path) -> None:
    from w2svd_core import job as run
    from w2svd_core.backbones.comfy import NativeSource, native_job, settings_of

    recipe = small_recipe(**settings_of(patcher), **{"train.steps": 2})
    run_folder = tmp_path / "run"

    def go(stop_after: int) -> tuple[int, dict[str, Tensor]]:
        from w2svd_core.watch import Terminal

        class Stopped(Terminal):
            rounds = 0

            def stop(self) -> bool:
                self.rounds += 1
                return self.rounds >= stop_after

        with native_job(patcher, recipe, sockets(patcher, clips()), NativeSource(patcher, Vae())) as job:
            code = run.carry_out(recipe, run_folder, Stopped(quiet=True), make=lambda *_: job)
            return code, {name: p.detach().clone() for name, p in job.model.parameters("generator").items()}

    assert go(1)[0] == 130
    code, resumed = go(99)
    assert code == 0 and (run_folder / "student" / "student_comfyui.safetensors").is_file()
    pairs, metadata = read_lora(run_folder / "student" / "student_comfyui.safetensors", backbone("wan").keys)
    assert len(pairs) == 20 and metadata is not None
    assert metadata.base_hash == base_hash(twin[0])
    run_folder = tmp_path / "at once"
    code, at_once = go(99)
    assert code == 0 and all(torch.equal(resumed[name], at_once[name]) for name in at_once)


@pytest.mark.parametrize("scaled", [False, True])
def test_an_8_bit_base_trains(twin: tuple[nn.Module, Path], scaled: bool) -> None:
    eight = loaded(scaled_twin(twin[1])) if scaled else loaded(twin[1], dtype=torch.float8_e4m3fn)
    x, condition = points_of("t2v"), native(condition_of("t2v", 2))
    before = asked(eight, x, SIGMA, condition)
    for _ in range(2):
        with native_roles(eight, checkpointing=True) as shared:
            with torch.no_grad():
                found = shared.predict_x0("teacher", x, SIGMA, condition)
            torch.testing.assert_close(found, before, atol=1e-5, rtol=1e-5)
            shaken_adapters(shared)
            grads = learned(shared, "generator", x, condition)
            assert len(base_hash(shared.base_state())) == 64
        assert len(grads) == 40 and all(grad.isfinite().all() and grad.any() for grad in grads.values())
        assert torch.equal(asked(eight, x, SIGMA, condition), before)


def test_image_to_video_answers_as_headless(tmp_path: Path) -> None:
    from w2svd_core.backbones.comfy import native_data

    model, path = new_twin(tmp_path, "i2v", image_dim=1280, added_kv_proj_dim=128)
    patcher, x, condition = loaded(path), points_of("i2v"), condition_of("i2v", 2)
    seen = torch.randn(2, 7, 1280, generator=torch.Generator().manual_seed(3))
    condition = Condition({**condition.fields, "image": seen})
    text = pad(native(condition).fields["c_crossattn"], (0, 0, 0, 512 - 5))  # as ComfyUI's text encoder pads it
    entries = []
    with torch.inference_mode():
        given = torch.ones(1, 1, 3, 4, 4)
        given[:, :, 0] = 0
        for row in range(2):
            start = patcher.model.latent_format.process_out(condition.fields["start"][row : row + 1].clone())
            clip = SimpleNamespace(penultimate_hidden_states=seen[row : row + 1].clone())
            about = {"concat_latent_image": start, "concat_mask": given.clone(), "clip_vision_output": clip}
            entries.append([[text[row : row + 1].clone(), about]])
    data = native_data(patcher, [latent(patcher, x)], entries, [[torch.zeros(1, 512, 4096), {}]])
    assert data.null.fields.keys() == {"c_crossattn"}
    plain = [[[text[:1].clone(), {}]]]
    with pytest.raises(UserError, match="makes a clip from its first frame, and a CONDITIONING gives none"):
        native_data(patcher, [latent(patcher, x)], plain, plain[0])
    _, fields = data.batch([0, 1], torch.device("cpu"))
    with native_roles(patcher, checkpointing=True) as shared:
        found = shared.predict("generator", x, SIGMA, fields)
        torch.testing.assert_close(found, by_hand(model, x, SIGMA, condition), atol=1e-4, rtol=1e-4)
        assert len(learned(shared, "generator", x, fields)) == 48
        assert base_hash(shared.base_state()) == base_hash(model)


def test_a_model_with_names_of_its_own_trains_exactly_and_its_lora_loads() -> None:
    import comfy.sd

    from w2svd_core.backbones.comfy import native_data

    patcher, x = new_hunyuan(), points_of("t2v")
    rng = torch.Generator().manual_seed(4)
    entries = [
        [[torch.randn(1, 6, 24, generator=rng), {"pooled_output": torch.randn(1, 12, generator=rng), "guidance": 4.0}]]
        for _ in range(3)
    ]
    data = native_data(patcher, [latent(patcher, x)], entries[:2], entries[2])
    _, condition = data.batch([0, 1], torch.device("cpu"))
    assert condition.fields.keys() == {"c_crossattn", "y"}  # roles tell the guidance
    condition = condition.guided(4.0)
    before = asked(patcher, x, SIGMA, condition)
    plain: dict[str, Tensor] = {}
    for checkpointing in (False, True):
        with native_roles(patcher, checkpointing=checkpointing) as shared:
            shaken_adapters(shared)
            with torch.no_grad():
                teacher = shared.predict_x0("teacher", x, SIGMA, condition)
                student = shared.predict_x0("generator", x, SIGMA, condition)
            torch.testing.assert_close(teacher, before, atol=1e-5, rtol=1e-5)
            found = learned(shared, "generator", x, condition)
            plain = plain or found  # without checkpointing autograd itself minds what was added to in place
            assert all(torch.equal(found[name], plain[name]) for name in plain) and len(plain) == 20
            lora = lora_of(shared)
    with torch.inference_mode():
        with_lora, _ = comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0.0)
    assert len(with_lora.patches) == 10 and len(lora) == 30
    torch.testing.assert_close(asked(with_lora, x, SIGMA, condition), student, atol=1e-4, rtol=1e-4)
    assert torch.equal(asked(patcher, x, SIGMA, condition), before)


def test_a_vae_socket_is_the_codec_of_a_run(patcher: Any) -> None:
    from w2svd_core.backbones.comfy import NativeSource

    latents = clips().latents
    codec = NativeSource(patcher, Vae()).load_codec()
    expected = patcher.model.latent_format.process_out(latents)[:, :3].sigmoid() * 2 - 1
    torch.testing.assert_close(codec.decode(latents), expected)
    assert codec.geometry.channels == 16 and codec.geometry.latent_shape(9, 32, 32) == (16, 3, 4, 4)


def test_a_model_that_is_not_flow_matching_is_refused(patcher: Any) -> None:
    import comfy.model_sampling

    class Noise(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):  # type: ignore[misc, name-defined]
        pass

    other = patcher.clone()
    other.add_object_patch("model_sampling", Noise())
    with pytest.raises(UserError, match="no flow-matching model"), native_roles(other):
        pass


def test_diffusers_and_native_answer_alike_in_the_graph(twin: tuple[nn.Module, Path], patcher: Any) -> None:
    x, condition = points_of("t2v"), condition_of("t2v", 2)
    expected = x - SIGMA.view(-1, 1, 1, 1, 1) * by_hand(twin[0], x, SIGMA, condition)
    torch.testing.assert_close(asked(patcher, x, SIGMA, native(condition)), expected, atol=1e-4, rtol=1e-4)
