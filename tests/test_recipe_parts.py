"""Settings that are right each by itself and do not fit together: one sentence that names them."""

from __future__ import annotations

import pytest
from config_parts import fault

from w2svd_core.config import load_recipe


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"critic.rank": "4", "student.rank": "32"}, ("critic.rank 4", "student.rank 32", "at least 32")),
        ({"model.init": "random"}, ("model.init random", "distribution_matching", "flow_matching")),
        ({"matching.score_min": "0.99"}, ("matching.score_min 0.99", "matching.score_max 0.98")),
        (
            {"matching.alpha_weak": "0.5", "matching.alpha_strong": "0.4"},
            ("alpha_weak 0.5", "alpha_strong 0.4"),
        ),
        ({"matching.alpha_weak": "1", "matching.guidance_scale": "1"}, ("alpha_weak 1", "alpha_strong 1")),
        (
            {"method": "flow_matching", "model.init": "random"},
            ("student.kind lora", "set student.kind to full"),
        ),
        (
            {"matching.alpha_weak": "0", "matching.alpha_strong": "0", "matching.guidance_scale": "2"},
            ("alpha_strong 0",),
        ),
        ({"data.prompts": "p.txt", "data_forcing.probability": ".1"}, ("data_forcing needs clips", "prompts alone")),
        ({"data.prompts": "p.txt", "adversarial.weight": ".1"}, ("adversarial needs clips", "prompts alone")),
        (
            {"matching.weight": "0", "adversarial.weight": "1", "adversarial.features": "fake"},
            ("features fake", "matching.weight 0"),
        ),
        ({"evaluate.seed": "511"}, ("evaluate.seed 511", "data.clips 512", "to at least 512")),
        ({"method": "consistency", "matching.ground_truth_weight": "1"}, ("do nothing in method consistency",)),
        ({"method": "consistency", "adversarial.weight": "1"}, ("adversarial", "do nothing in consistency")),
        ({"data_forcing.probability": "1", "matching.weight": "0"}, ("data_forcing", "matching.weight is 0")),
        (
            {
                "data_forcing.probability": "1",
                "data_forcing.alpha_weak": ".5",
                "critic.kind": "full",
                "matching.alpha_weak": "0",
            },
            ("critic.kind full", "data_forcing.alpha_weak 0.5"),
        ),
        (
            {
                "matching.ground_truth_weight": "1",
                "rollout.source": "noised_data",
                "matching.weight": "0",
                "adversarial.weight": "1",
            },
            ("matching.weight 0", "ground-truth"),
        ),
    ],
)
def test_parts_that_do_not_fit(overrides: dict[str, object], parts: tuple[str, ...]) -> None:
    message = fault("portraits", overrides)
    assert message.startswith("The settings in recipe portraits with the settings on the command line do not fit")
    assert all(part in message for part in parts)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("portraits_gan", {"weight": 0.03, "features": "teacher", "depths": (0.5, 0.75, 1.0), "updates": 4, "r1": 0.0}),
        ("portraits_dmd2_gan", {"weight": 0.005, "features": "fake", "depths": (0.5,), "updates": 5, "r1": 0.0}),
        ("portraits_avdm2", {"features": "teacher", "updates": 2, "form": "softplus"}),
    ],
)
def test_adversarial_presets_are_the_papers(name: str, settings: dict[str, object]) -> None:
    """FastGen's (four discriminator updates for each of the student's), DMD2's (arXiv 2405.14867), AVDM2's."""
    adversarial = load_recipe(name).adversarial
    assert {key: getattr(adversarial, key) for key in settings} == settings
    assert load_recipe("portraits_avdm2").frame_matching.updates == 2


def test_a_critic_that_never_learns_leaves_nothing_to_match() -> None:
    still = {"critic.lr": "0", "matching.guidance_scale": "1"}
    assert "critic.lr 0 leaves the critic as the teacher" in fault("portraits", still)
    for enough in ({"matching.guidance_scale": "2"}, {"adversarial.weight": "0.1"}, {"start": "runs/other"}):
        load_recipe("portraits", still | enough)


def test_parts_that_fit() -> None:
    load_recipe("portraits", {"student.kind": "full", "critic.rank": "4"})
    load_recipe("portraits", {"matching.alpha_weak": "1", "matching.guidance_scale": "2"})
