"""Our teacher sampler against diffusers' own pipelines: the same noise, the same sigmas, the same latents.

The pipelines run with `FlowMatchEulerDiscreteScheduler`; everything of ours comes from the folder that they came from.
"""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_wan import FRAMES, TinyWan, picture, tiny_wan
from torch import Tensor

from w2svd_core.backbones import backbone
from w2svd_core.backbones.wan_encoders import load_codec, load_prompts, load_start
from w2svd_core.condition import Condition
from w2svd_core.data.codec import to_unit
from w2svd_core.generation import Way, generate, predictor
from w2svd_core.randomness import noise_of_seeds
from w2svd_core.roles import SharedModel

WAN = backbone("wan")
CASES = [("t2v", False), ("i2v", True), ("ti2v", False), ("ti2v", True)]  # kind, from a picture
STEPS, SEEDS = 4, (7, 8)
PROMPTS = ("a man with red hair talks", "a woman nods slowly, then smiles")
NEGATIVE = "blurry, grey, worst quality"


@pytest.fixture(autouse=True)
def no_ftfy_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' pipelines call ftfy unasked; these prompts are as it would leave them."""
    from diffusers.pipelines.wan import pipeline_wan, pipeline_wan_i2v

    for module in (pipeline_wan, pipeline_wan_i2v):
        monkeypatch.setattr(module, "ftfy", SimpleNamespace(fix_text=lambda text: text), raising=False)


class Case:
    """A pipeline, and the same model, prompts and first frame in this house."""

    def __init__(self, kind: str, image: bool, native: bool = False) -> None:
        self.tiny: TinyWan = tiny_wan(kind)
        settings = self.tiny.model_of_files() if native else self.tiny.model()
        path = self.tiny.files["transformer"] if native else self.tiny.folder
        self.height, self.width = self.tiny.size
        self.pipe = self.tiny.pipeline(image=image)
        self.model = SharedModel(WAN, WAN.load(path, torch.float32).eval(), critic_rank=0, student_rank=1)
        codec, prompts = load_codec(settings, kind), load_prompts(settings, kind, NEGATIVE)
        WAN.check_fit(self.model.base, codec.geometry, prompts.width)
        self.shape = codec.geometry.latent_shape(FRAMES, self.height, self.width)
        self.null, fields = prompts.null(), dict(prompts.encode(PROMPTS).fields)
        self.picture = picture(self.height, self.width) if image else None
        if image:
            start = load_start(settings, kind, codec)
            assert start is not None
            first = to_unit(np.array(self.picture)[None, None]).expand(len(PROMPTS), -1, -1, -1, -1)
            fields |= start.encode(first, FRAMES)
        self.condition = Condition(fields)
        self.noise = noise_of_seeds(self.shape, SEEDS, 0)

    def reference(self, guidance: float, **call: Any) -> Tensor:
        """The pipeline's latents."""
        if self.picture is not None:
            call["image"] = self.picture
        found: Tensor = self.pipe(
            prompt=list(PROMPTS),
            negative_prompt=[NEGATIVE] * len(PROMPTS),
            height=self.height,
            width=self.width,
            num_frames=FRAMES,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            latents=self.noise.clone(),
            output_type="latent",
            **call,
        ).frames
        return found

    def sigmas(self) -> tuple[float, ...]:
        """The scheduler's, after the pipeline has set them."""
        return tuple(self.pipe.scheduler.sigmas.double().tolist())

    def ours(self, guidance: float, sigmas: tuple[float, ...]) -> Tensor:
        way = Way("teacher", sigmas, "euler", guidance)
        found = generate(self.model, way, self.condition, self.null, self.shape, SEEDS)
        return WAN.hold(found, self.condition)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "image"), CASES)
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_teacher_sampler_is_the_pipeline(kind: str, image: bool, guidance: float) -> None:
    case = Case(kind, image)
    expected = case.reference(guidance)
    sigmas = case.sigmas()
    assert len(sigmas) == STEPS + 1 and sigmas[0] == 1 and sigmas[-1] == 0
    found = case.ours(guidance, sigmas)
    assert found.shape == expected.shape == (2, *case.shape)
    close(found, expected)
    # and it is no accident: the prompts, the noise and the picture all have a say
    assert not torch.allclose(expected[0], expected[1], atol=0.1)
    assert not torch.allclose(case.ours(guidance + 1, sigmas), expected, atol=1e-3)
    if image:
        other = case.condition.fields | {"start": case.condition.fields["start"] + 1}
        case.condition = Condition(other)
        assert not torch.allclose(case.ours(guidance, sigmas), expected, atol=1e-3)


@pytest.mark.parametrize(("kind", "image"), CASES[:3])
def test_native_files_sample_what_the_pipeline_samples(kind: str, image: bool) -> None:
    """Transformer, VAE, text encoder and image encoder as ComfyUI has them, with nothing in them but tensors."""
    case = Case(kind, image, native=True)
    expected = case.reference(4.0)
    close(case.ours(4.0, case.sigmas()), expected)


@pytest.mark.parametrize(("kind", "image"), CASES)
def test_the_guided_call_is_that_of_a_pipeline_with_another_solver(kind: str, image: bool) -> None:
    """UniPC, which the published pipelines run: on its own path, each step's model output is ours."""
    from diffusers import UniPCMultistepScheduler

    case = Case(kind, image)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    case.pipe.scheduler = scheduler
    seen: list[tuple[float, float, Tensor, Tensor]] = []  # sigma, time, the pipeline's output and its x_t
    step = scheduler.step

    def watched(output: Tensor, time: Tensor, sample: Tensor, **options: Any) -> Any:
        seen.append((float(scheduler.sigmas[len(seen)]), float(time) / 1000, output.clone(), sample.clone()))
        return step(output, time, sample, **options)

    scheduler.step = watched
    case.reference(4.0)
    assert len(seen) == STEPS and all(high[0] > low[0] for high, low in pairwise(seen))
    predict = predictor(case.model, Way("teacher", (1.0, 0.0), "euler", 4.0), case.condition, case.null)
    for sigma, time, output, sample in seen:
        expected = case.model.backbone.process.x0_from_output(sample, output, sigma)
        with torch.no_grad():
            found = predict(sample, time)
        found = sample + (found - sample) * sigma / time  # UniPC cuts the model's times to whole thousandths of sigma
        close(WAN.hold(found, case.condition), WAN.hold(expected, case.condition))
