"""Image UNets and AnimateDiff: the real classes of diffusers, tiny, in all roles, and on disk."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from w2svd_core.assembly import BUNDLED_CODEC, job_of
from w2svd_core.backbones import backbone
from w2svd_core.backbones.base import Architecture
from w2svd_core.condition import Condition
from w2svd_core.config import check_recipe, load_recipe
from w2svd_core.data.codec import FrameByFrame, load_portrait_codec
from w2svd_core.data.latents import LatentSet
from w2svd_core.errors import UserError
from w2svd_core.files import read_safetensors, write_safetensors
from w2svd_core.generation import Way, generate
from w2svd_core.heads import Taps
from w2svd_core.lora_files import base_hash, pairs_from_peft, read_lora, write_lora
from w2svd_core.roles import Query, SharedModel
from w2svd_core.train import main as train

FAMILIES = ("image_unet", "animatediff")
TEXT = 16
ROLES: tuple[Any, ...] = ("teacher", "real", "fake", "generator")


@cache
def tiny(family: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = backbone(family).build(Architecture(heads=2, head_dim=4, ffn_dim=0, layers=1, text_dim=TEXT))
        for parameter in model.parameters():  # motion modules begin as zeros
            parameter.data += 0.05 * torch.randn(parameter.shape)
    return model.eval().requires_grad_(False)


def test_stable_diffusions_encoder_is_read_at_three_scales() -> None:
    """The depths that docs/avdm2.md names, on Stable Diffusion 1.5's layout of nine blocks."""
    size: dict[str, Any] = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "cross_attention_dim": 8}
    model = UNet2DConditionModel(in_channels=4, out_channels=4, layers_per_block=1, attention_head_dim=4, **size)
    sides: list[int] = []
    for block in Taps(list(backbone("image_unet").blocks(model)), (0.11, 0.22, 0.34)).blocks:
        block.register_forward_hook(lambda _m, _i, out: sides.append(out[0].shape[-1]))
    with torch.no_grad():
        model(torch.zeros(1, 4, 16, 16), torch.tensor([1]), torch.zeros(1, 3, 8))
    assert sides == [8, 4, 2]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clip(rows: int = 2, frames: int = 3) -> tuple[Tensor, Tensor, Condition]:
    x_t = torch.randn(rows, 16, frames, 4, 4, generator=rng())
    text = torch.randn(rows, 5, TEXT, generator=rng(1))
    return x_t, torch.linspace(0.3, 0.95, rows), Condition({"text": text})


def shared(family: str, **settings: Any) -> SharedModel:
    chosen = {"critic_rank": 2, "student_rank": 2} | settings
    model = SharedModel(backbone(family), copy.deepcopy(tiny(family)), **chosen)
    for name, parameter in model.base.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=rng(len(name)))
    return model


def test_a_call_is_diffusers_own() -> None:
    x_t, sigma, condition = clip()
    text = condition.fields["text"]
    image, motion = (backbone(family) for family in FAMILIES)
    model, times = tiny("image_unet"), cast(Any, image).timesteps.nearest(sigma)
    found = image.predict(model, x_t, sigma, condition)
    for row in range(2):
        for frame in range(3):
            alone = model(x_t[row : row + 1, :, frame], times[row], encoder_hidden_states=text[row : row + 1]).sample
            torch.testing.assert_close(found[row : row + 1, :, frame], alone, atol=1e-5, rtol=1e-4)
    model, times = tiny("animatediff"), cast(Any, motion).timesteps.nearest(sigma)
    found = motion.predict(model, x_t, sigma, condition)
    for row in range(2):
        words = text[row : row + 1].repeat_interleave(3, 0)  # as diffusers' pipeline does
        alone = model(x_t[row : row + 1], times[row], encoder_hidden_states=words).sample
        torch.testing.assert_close(found[row : row + 1], alone, atol=1e-5, rtol=1e-4)


def test_frames_of_a_clip_hang_together_only_in_animatediff() -> None:
    x_t, sigma, condition = clip(1)
    other = x_t.clone()
    other[:, :, 2] += 1
    for family in FAMILIES:
        one, two = (backbone(family).predict(tiny(family), x, sigma, condition) for x in (x_t, other))
        assert torch.allclose(one[:, :, 0], two[:, :, 0], atol=1e-6) == (family == "image_unet")


@pytest.mark.parametrize("family", FAMILIES)
def test_roles_are_what_they_say_and_batched_scores_are_the_same(family: str) -> None:
    model = shared(family)
    x_t, sigma, condition = clip()
    process = model.backbone.process
    plain = process.x0_from_output(x_t, backbone(family).predict(tiny(family), x_t, sigma, condition), sigma)
    alone = {role: model.predict_x0(role, x_t, sigma, condition) for role in ROLES}
    torch.testing.assert_close(alone["teacher"], plain, atol=1e-5, rtol=1e-4)
    assert all(not torch.allclose(alone[role], plain, atol=1e-3) for role in ROLES[1:])
    together = model.predict_x0_together([Query(role, x_t, sigma, condition) for role in ROLES])
    for role, found in zip(ROLES, together, strict=True):
        torch.testing.assert_close(found, alone[role], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recomputed_block_has_the_same_gradient(family: str) -> None:
    found = []
    for checkpointing in (False, True):
        model = shared(family, checkpointing=checkpointing)
        x_t, sigma, condition = clip()
        output = model.predict("generator", x_t, sigma, condition)
        model.predict("fake", x_t, sigma, condition)  # between forward and backward
        output.square().mean().backward()
        assert all(p.grad is None for p in model.parameters("fake").values())
        found.append({name: p.grad for name, p in model.parameters("generator").items()})
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("format", ["native", "diffusers"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_goes_through_a_file(family: str, format: Any, tmp_path: Path) -> None:
    model = shared(family)
    pairs = pairs_from_peft(model.base, "generator")
    kinds = {name.rpartition("transformer_blocks.0.")[2] for name in pairs}
    assert {"attn1.to_q", "attn1.to_out.0", "attn2.to_v", "ff.net.0.proj", "ff.net.2"} <= kinds
    assert any("motion_modules" in name for name in pairs) == (family == "animatediff")
    write_lora(tmp_path / "lora.safetensors", pairs, None, format=format, key_map=model.backbone.keys)
    again, _ = read_lora(tmp_path / "lora.safetensors", model.backbone.keys)
    assert again.keys() == pairs.keys()
    assert all(torch.equal(again[name].delta(), pair.delta()) for name, pair in pairs.items())
    written = read_safetensors(tmp_path / "lora.safetensors")[0]
    prefix = "unet.down_blocks.0.attentions.0." if format == "diffusers" else "diffusion_model.input_blocks.1.1."
    assert any(key.startswith(f"{prefix}transformer_blocks.0.attn1.to_q.") for key in written)
    for name in ("blocks.0.attn1.to_q", "input_blocks.3.1.proj_in"):  # the third of a level is the downsampler
        with pytest.raises(UserError, match="no module of a UNet"):
            model.backbone.keys.parts(name)


def test_names_of_stable_diffusion_are_cores() -> None:
    """Counted through, with two layers to a level down and three up; every layer has one name and comes back."""
    keys, seen = backbone("image_unet").keys, set()
    layers = [("down", i, j) for i in range(3) for j in range(2)] + [
        ("up", i, j) for i in range(1, 4) for j in range(3)
    ]
    for side, level, layer in layers:
        ours = f"{side}_blocks.{level}.attentions.{layer}.transformer_blocks.0.attn2.to_out.0"
        native = keys.native_module(ours)
        seen.add(native.split(".transformer")[0])
        assert [part.module for part in keys.parts(native)] == [ours]
    ins, outs = (1, 2, 4, 5, 7, 8), range(3, 12)
    assert seen == {f"input_blocks.{n}.1" for n in ins} | {f"output_blocks.{n}.1" for n in outs}
    assert keys.native_module("mid_block.attentions.0.proj_in") == "middle_block.1.proj_in"
    motion = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q"
    assert keys.native_module(motion) == motion


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_comes_back_from_folder_and_file(family: str, tmp_path: Path) -> None:
    family_of, model = backbone(family), tiny(family)
    family_of.save_folder(model, tmp_path / "folder", torch.float16)
    path = tmp_path / "model.safetensors"
    write_safetensors(path, family_of.native_state(model), family_of.native_metadata(model))
    assert base_hash(family_of.load(path, torch.float32)) == base_hash(model)
    loaded = family_of.load(tmp_path / "folder", torch.float16)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.half())
    other = backbone(FAMILIES[family == FAMILIES[0]])
    with pytest.raises(UserError, match="diffusers folder"):
        other.load(tmp_path / "folder", torch.float32)
    with pytest.raises(UserError, match="does not say"):
        other.load(path, torch.float32)
    with pytest.raises(UserError, match="not there"):
        other.load(tmp_path / "nowhere", torch.float32)


def test_animatediff_is_put_together_from_a_pipeline(tmp_path: Path) -> None:
    from diffusers import DDIMScheduler, MotionAdapter, UNetMotionModel

    motion, image = backbone("animatediff"), tiny("image_unet")
    image.save_pretrained(tmp_path / "unet")
    with pytest.raises(UserError, match="motion_adapter"):
        motion.load(tmp_path, torch.float32)
    adapter = MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_num_attention_heads=2, motion_norm_num_groups=8
    )
    adapter.save_pretrained(tmp_path / "motion_adapter")
    found = motion.load(tmp_path, torch.float32)
    theirs = UNetMotionModel.from_unet2d(copy.deepcopy(image), adapter)
    assert base_hash(found) == base_hash(theirs)
    image_models = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    DDIMScheduler(**image_models).save_pretrained(tmp_path / "scheduler")  # as it lies beside the image model
    assert base_hash(motion.load(tmp_path, torch.float32)) == base_hash(theirs)
    backbone("image_unet").load(tmp_path, torch.float32)
    DDIMScheduler(**image_models, prediction_type="v_prediction").save_pretrained(tmp_path / "scheduler")
    with pytest.raises(UserError, match="v_prediction"):
        motion.load(tmp_path, torch.float32)
    theirs.save_pretrained(tmp_path / "whole" / "unet")
    DDIMScheduler(**image_models).save_pretrained(tmp_path / "whole" / "scheduler")
    with pytest.raises(UserError, match="scaled_linear"):
        motion.load(tmp_path / "whole", torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_does_not_fit_is_refused(family: str) -> None:
    from dataclasses import replace

    family_of, model = backbone(family), tiny(family)
    latents = family_of.latents(model)
    assert (latents.channels, latents.time, latents.patch) == (16, 1, 2)
    family_of.check_fit(model, latents, TEXT)
    with pytest.raises(UserError, match="16 channels"):
        family_of.check_fit(model, replace(latents, channels=4), TEXT)
    with pytest.raises(UserError, match="16 wide"):
        family_of.check_fit(model, latents, 64)
    with pytest.raises(UserError, match="prompts alone"):
        family_of.check_condition(model, Condition({"text": torch.zeros(1), "start": torch.zeros(1)}))
    with pytest.raises(UserError, match="for Wan"):
        family_of.with_first_frame(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_are_diffusers_ddims(family: str) -> None:
    """The whole way: a real tiny model, the scheduler of its pipeline, 8 steps."""
    from diffusers import DDIMScheduler

    model, x_t, condition = shared(family), torch.randn(1, 16, 3, 4, 4, generator=rng(3)), clip(1)[2]
    steps = cast(Any, model.backbone).timesteps
    scheduler = DDIMScheduler(
        beta_start=steps.first, beta_end=steps.last, beta_schedule=steps.law, clip_sample=False,
        timestep_spacing="leading",
    )  # fmt: skip
    scheduler.set_timesteps(8)
    sigmas = (*steps.levels[scheduler.timesteps].tolist(), 0.0)
    way = Way("teacher", sigmas, "euler")
    found = generate(model, way, condition, condition, (16, 3, 4, 4), [5])
    from w2svd_core.randomness import noise_of_seeds

    theirs, text = noise_of_seeds((16, 3, 4, 4), [5], 0), condition.fields["text"].repeat_interleave(3, 0)
    plain = tiny(family)
    for time in scheduler.timesteps:
        with torch.no_grad():
            if family == "animatediff":
                output = plain(theirs, time, encoder_hidden_states=text).sample
            else:
                images = theirs.transpose(1, 2).flatten(0, 1)
                output = plain(images, time, encoder_hidden_states=text).sample.unflatten(0, (1, 3)).transpose(1, 2)
        theirs = scheduler.step(output, time, theirs).prev_sample
    assert x_t.shape == found.shape
    torch.testing.assert_close(found, theirs, atol=1e-4, rtol=1e-4)


def test_frames_are_encoded_and_decoded_each_by_itself() -> None:
    plain = load_portrait_codec(BUNDLED_CODEC)
    codec = FrameByFrame(plain)
    video = torch.rand(2, 3, 4, 16, 24, generator=rng()) * 2 - 1
    latents = codec.encode(video)
    assert latents.shape == (2, *codec.geometry.latent_shape(4, 16, 24)) == (2, 16, 4, 4, 6)
    assert torch.allclose(latents[1:, :, 2:3], plain.encode(video[1:, :, 2:3]), atol=1e-5)
    again = codec.decode(latents)
    assert again.shape == video.shape
    assert torch.allclose(again[:1, :, 3:], plain.decode(latents[:1, :, 3:]), atol=1e-5)
    assert codec.fingerprint() != plain.fingerprint()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_learns_to_see_the_noise(family: str) -> None:
    """flow_matching's program is the pre-training of a noise model: its loss falls from that of saying nothing."""
    changes = {"method": "flow_matching", "model.family": family, "model.init": "random", "student.kind": "full",
               "student.lr": 1e-2, "train.batch": 4, "train.steps": 60, "train.condition_dropout": 0.1}  # fmt: skip
    recipe = check_recipe(changes | {"evaluate.clips": 0, "student.beta1": 0.9}, "in a test")
    one = torch.randn(1, 16, 3, 4, 4, generator=rng(7))
    _, _, condition = clip(4)
    data = LatentSet(one.expand(4, -1, -1, -1, -1), condition, condition[:1], ("one",) * 4)
    model = shared(family, critic_rank=0, student_rank=0)
    program = cast(Any, job_of(recipe, model, cast(Any, None), data).program)
    losses = [program.round(index)["student/loss"] for index in range(60)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


@pytest.mark.parametrize("image", ["teacher", "image_unet"])
def test_avdm2_runs_on_animatediff(image: str, tmp_path: Path) -> None:
    """Discriminator on the frozen teacher's encoder, frames judged by an image model of the same latents."""
    from w2svd_core.data.encoder_source import LoadedEncoders

    class Words:
        width = TEXT

    backbone("image_unet").save_folder(tiny("image_unet"), tmp_path, torch.float32)
    named = str(tmp_path) if image != "teacher" else image
    changes = {
        "model.family": "animatediff", "train.batch": 2, "train.steps": 2, "student.rank": 2, "critic.rank": 2,
        "critic.warmup": 0, "matching.weight": 0.0, "matching.alpha_weak": 0.0, "rollout.grad_steps": "last",
        "adversarial.weight": 0.1, "adversarial.updates": 2, "adversarial.depths": (0.2, 0.4), "adversarial.hidden": 4,
        "frame_matching.weight": 1.0, "frame_matching.model": named, "frame_matching.frames": 2,
        "frame_matching.rank": 2, "evaluate.clips": 0,
    }  # fmt: skip
    recipe = check_recipe(changes, "in a test")
    x0, _, condition = clip(4)
    source = LoadedEncoders(FrameByFrame(load_portrait_codec(BUNDLED_CODEC)), cast(Any, Words()))
    model = shared("animatediff", critic_rank=0)
    before = base_hash(model.base_state())
    program = cast(Any, job_of(recipe, model, source, LatentSet(x0, condition, condition[:1], ("clip",) * 4)).program)
    assert not program.terms["frame_matching"].remarks()
    start = {n: p.detach().clone() for name, one in program.learners().items() for n, p in one.parameters.items()}
    for index in range(2):
        logs = program.round(index)
    assert {"frame_matching/loss", "adversarial/loss", "student/loss"} <= logs.keys() and "critic/loss" not in logs
    now = {n: p for name, one in program.learners().items() for n, p in one.parameters.items()}
    assert all(not torch.equal(p, start[n]) for n, p in now.items() if "lora_B" in n)
    assert base_hash(model.base_state()) == before


def test_the_recipe_of_animatediff_asks_for_what_the_models_are_made_for() -> None:
    """Levels are those of four evenly spaced timesteps, and noise goes to .98 of all, of both models' betas."""
    from diffusers import UNetMotionModel

    from w2svd_core.flow import score_times
    from w2svd_core.heads import Taps

    recipe, small = (cast(Any, load_recipe(name)) for name in ("animatediff_avdm2", "portraits_avdm2_unets"))
    levels = {family: cast(Any, backbone(family)).timesteps.levels for family in FAMILIES}
    even = [*levels["animatediff"][[999, 749, 499, 249]].tolist(), 0.0]
    for own in (recipe, small):
        assert own.student.sigmas == pytest.approx(even, abs=1e-4)
        for section, family in ((own.matching, "animatediff"), (own.frame_matching, "image_unet")):
            least, most = (float(levels[family][t]) for t in (19, 979))
            assert (section.score_min, section.score_max) == pytest.approx((least, most), abs=4e-4)
            law = {"law": section.score_law, "shift": section.score_shift, "lowest": least, "highest": most}
            drawn = score_times(4096, **law, generator=torch.Generator().manual_seed(0))
            high = float((levels[family] > 0.9).double().mean())  # of timesteps
            assert abs(float((drawn > 0.9).double().mean()) - high) < 0.2
    assert recipe.model.encoders == "own" and recipe.frame_matching.way == "latent"
    with torch.device("meta"):
        model: Any = UNetMotionModel()  # as Stable Diffusion 1.5 is laid out
    facts = backbone("animatediff").facts(model)
    assert (recipe.teacher.guidance_scale, recipe.teacher.shift) == (facts.guidance_scale, facts.shift)
    assert (recipe.data.fps, recipe.data.frames) == (facts.fps, facts.frames)
    taps = Taps(list(backbone("animatediff").blocks(model)), recipe.adversarial.depths)
    assert taps.blocks == list(model.down_blocks[:3]) and taps.beyond is model.down_blocks[3]


def test_a_model_that_is_not_there_is_named_before_clips_are_drawn(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    given = ["--model.path", str(tmp_path / "none.safetensors"), "--data.cache", str(cache), "--train.tracker", "none"]
    with pytest.raises(UserError, match=r"none\.safetensors is not there"):
        train(["portraits_avdm2_unets", *given, "--out", str(tmp_path / "run")])
    assert not cache.exists() and not (tmp_path / "run").exists()
