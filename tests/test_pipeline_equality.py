"""Our teacher sampler against diffusers' own pipelines: the same noise, the same sigmas, the same latents.

The pipelines run with `FlowMatchEulerDiscreteScheduler`; everything of ours comes from the folder that they came from.
"""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kind import Asked, Kind
from kinds import KINDS
from tiny_wan import FRAMES, picture
from torch import Tensor
from wan_kinds import WAN

from w2svd_core.condition import Condition
from w2svd_core.data.codec import to_signed
from w2svd_core.data.encoder_source import null_condition
from w2svd_core.generation import Way, generate, predictor
from w2svd_core.randomness import noise_of_seeds
from w2svd_core.roles import SharedModel

STEPS, SEEDS, EMBEDDED = 3, (7, 8), 6.0
LONG_TEXTS = ("hunyuan_video15",)  # whose pipelines pad to two thousand tokens, however small the model is
PROMPTS = ("a man with red hair talks", "a woman nods slowly, then smiles")


def ways(kinds: tuple[Kind, ...], files: bool = False) -> list[Any]:
    """Each kind that has a pipeline (single files), from a picture and without where it can do both."""
    found = [(kind, bool(kind.picture)) for kind in kinds if kind.tiny and (kind.files or not files)]
    found += [(kind, False) for kind, _ in found if kind.either and not files]
    return [
        pytest.param(
            (kind, image),
            id=f"{kind}-{'picture' if image else 'text'}",
            marks=[pytest.mark.slow] if str(kind).startswith(LONG_TEXTS) else [],
        )
        for kind, image in found
    ]


@pytest.fixture(autouse=True)
def no_ftfy_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wan's pipelines call ftfy unasked; where it is missing, these prompts are as it would leave them."""
    from diffusers.pipelines.wan import pipeline_wan, pipeline_wan_i2v

    for module in () if importlib.util.find_spec("ftfy") else (pipeline_wan, pipeline_wan_i2v):
        monkeypatch.setattr(module, "ftfy", SimpleNamespace(fix_text=lambda text: text), raising=False)


class Case:
    """A pipeline, and the same model, prompts and first frame in this house."""

    def __init__(self, way: tuple[Kind, bool], native: bool = False) -> None:
        kind, image = way
        assert kind.tiny is not None
        self.kind, self.tiny, self.family = kind, kind.tiny(), kind.backbone
        make = self.tiny.model_of_files if native else self.tiny.model
        settings = make(family=kind.family, first_frame=image, text_precision="fp32")
        self.pipe = self.tiny.pipeline(image=image)
        base = self.family.load(Path(settings.path), torch.float32).eval()
        told = dict.fromkeys(("teacher", "real", "fake", "generator"), EMBEDDED)
        self.model = SharedModel(self.family, base, critic_rank=0, student_rank=1, embedded=told)  # type: ignore[arg-type]
        source = self.family.encoder_source(settings, torch.device("cpu"))
        prompts, codec = source.load_prompts(), source.load_codec()
        self.family.check_fit(base, codec.geometry, prompts.width)
        self.shape = codec.geometry.latent_shape(FRAMES, *self.tiny.size)
        self.null, fields = null_condition(prompts), dict(prompts.encode(PROMPTS).fields)
        self.picture = picture(*self.tiny.size) if image else None
        assert source.starts == image
        if image:
            start = source.load_start(codec)
            assert start is not None
            first = to_signed(np.array(self.picture)[None, None]).expand(len(PROMPTS), -1, -1, -1, -1)
            fields |= start.encode(first, FRAMES, PROMPTS)
        self.condition = Condition(fields)
        self.noise = noise_of_seeds(self.shape, SEEDS, 0)

    def reference(self, guidance: float) -> Tensor:
        """The pipeline's latents."""
        negative = self.family.facts(self.model.base).negative_prompt
        asked = Asked(PROMPTS, negative, self.noise, FRAMES, STEPS, guidance, EMBEDDED, self.picture)
        return self.tiny.reference(self.pipe, asked)

    def sigmas(self) -> tuple[float, ...]:
        """The scheduler's, after the pipeline has set them."""
        return tuple(self.pipe.scheduler.sigmas.double().tolist())

    def ours(self, guidance: float, sigmas: tuple[float, ...], condition: Condition | None = None) -> Tensor:
        way = Way("teacher", sigmas, "euler", guidance)
        found = generate(self.model, way, condition or self.condition, self.null, self.shape, SEEDS)
        return self.family.hold(found, self.condition)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module", params=ways(KINDS))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_teacher_sampler_is_the_pipeline(case: Case, guidance: float) -> None:
    expected = case.reference(guidance)
    sigmas = case.sigmas()
    assert len(sigmas) == STEPS + 1 and sigmas[0] == 1 and sigmas[-1] == 0
    found = case.ours(guidance, sigmas)
    assert found.shape == expected.shape == (2, *case.shape)
    close(found, expected)
    # and it is no accident: the prompts, the noise and the picture all have a say
    assert not torch.allclose(expected[0], expected[1], atol=0.1)
    assert not torch.allclose(case.ours(guidance + 1, sigmas), expected, atol=1e-3)
    if case.picture is not None:
        fields = dict(case.condition.fields)
        fields[case.kind.picture] = fields[case.kind.picture] + 1
        assert not torch.allclose(case.ours(guidance, sigmas, Condition(fields)), expected, atol=1e-3)


@pytest.mark.parametrize("way", ways(KINDS, files=True))
def test_native_files_sample_what_the_pipeline_samples(way: tuple[Kind, bool]) -> None:
    """Transformer, VAE, text encoder and image encoder as ComfyUI has them, with nothing in them but tensors."""
    case = Case(way, native=True)
    expected = case.reference(4.0)
    close(case.ours(4.0, case.sigmas()), expected)


@pytest.mark.parametrize("way", ways(WAN))
def test_the_guided_call_is_that_of_a_pipeline_with_another_solver(way: tuple[Kind, bool]) -> None:
    """UniPC, which the published pipelines run: on its own path, each step's model output is ours."""
    from diffusers import UniPCMultistepScheduler

    case = Case(way)
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
        close(case.family.hold(found, case.condition), case.family.hold(expected, case.condition))
