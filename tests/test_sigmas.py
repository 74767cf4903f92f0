"""One rule for every sigma list, and everybody who takes a list obeys it."""

from __future__ import annotations

import itertools
import math

import pytest
from torch import Tensor

from w2svd_core.config import check_recipe
from w2svd_core.errors import UserError
from w2svd_core.flow import RectifiedFlow, sigma_list
from w2svd_core.lora_metadata import Schedule
from w2svd_core.sampling import sample, walk
from w2svd_core.sigmas import check_sigmas, parse_sigmas, split_sigmas

BAD = [
    (),
    (0.0,),
    (1.0, 0.5),
    (1.0, 0.5, 0.5, 0.0),
    (0.5, 1.0, 0.0),
    (1.5, 0.0),
    (1.0, -0.5, 0.0),
    (math.inf, 0.0),
    (math.nan, 0.0),
    (1.0, math.nan, 0.0),
    (1.0, 0.5, math.nan),
]


def test_every_sigma_list_of_a_shift_passes() -> None:
    for steps, shift in itertools.product((1, 4, 28), (0.5, 1.0, 12.0)):
        check_sigmas(sigma_list(steps, shift))
    check_sigmas([0.7, 0.2, 0])  # a list may begin below pure noise


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_list_that_does_not_fall_to_zero_is_refused_by_all(bad: tuple[float, ...]) -> None:
    def no_noise(step: int) -> Tensor:
        pytest.fail("sampling began")

    with pytest.raises(ValueError, match="must fall from at most 1 to a last 0"):
        check_sigmas(bad)
    with pytest.raises(UserError, match="must fall from at most 1 to a last 0"):
        Schedule(bad)
    with pytest.raises(UserError, match=r"student\.sigmas .* a descending list"):
        check_recipe({"student.sigmas": bad}, "in a test")
    for walked in (walk, sample):
        with pytest.raises(ValueError, match="must fall"):
            walked(lambda x_t, sigma: x_t, RectifiedFlow(), no_noise, bad, "euler")


def test_more_than_a_thousand_steps_are_refused_in_a_recipe() -> None:
    check_recipe({"student.sigmas": sigma_list(1000)}, "in a test")
    with pytest.raises(UserError, match="2 to 1001 sigmas"):
        check_recipe({"student.sigmas": sigma_list(1001)}, "in a test")


def test_a_student_starts_from_pure_noise() -> None:
    """Half-way down core would start it from another amplitude than the training does."""
    check_recipe({"student.sigmas": (0.9992, 0.5, 0.0)}, "in a test")  # the last timestep of Stable Diffusion
    with pytest.raises(UserError, match=r"from 1 \(at least 0\.99\)"):
        check_recipe({"student.sigmas": (0.9, 0.5, 0.0)}, "in a test")


def test_a_written_list_is_read_with_commas_or_blanks() -> None:
    assert parse_sigmas(" [1, .75;0.5\n0] ") == (1.0, 0.75, 0.5, 0.0)
    with pytest.raises(ValueError, match="'x' in the sigmas '1, x, 0' is no number"):
        parse_sigmas("1, x, 0")
    for bad in ("", "1, 0.5", "0.5, 1, 0", "nan, 0"):
        with pytest.raises(ValueError, match="must fall"):
            parse_sigmas(bad)


def test_a_list_is_split_by_noise_level_and_not_by_step() -> None:
    """At shift 5 two of four steps begin above 0.875, at shift 8 three do (Wan 2.2)."""
    for shift, high in ((5.0, 2), (8.0, 3)):
        sigmas = sigma_list(4, shift)
        parts = split_sigmas(sigmas, 0.875)
        assert [len(part) - 1 for part in parts] == [high, 4 - high]
        assert parts[0] + parts[1][1:] == sigmas and parts[0][-1] == parts[1][0]
    assert split_sigmas((1.0, 0.5, 0.0), 0.0) == ((1.0, 0.5, 0.0), ())
    assert split_sigmas((0.5, 0.0), 0.9) == ((), (0.5, 0.0))
