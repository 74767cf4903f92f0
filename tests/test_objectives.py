"""The gradients of the papers, on numbers that can be worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from w2svd_core.flow import RectifiedFlow, score_times
from w2svd_core.numbers import motion_of
from w2svd_core.objectives.distribution_matching import matching_gradient, matching_loss, relative_diversity, watch
from w2svd_core.objectives.flow_matching import denoising_loss
from w2svd_core.objectives.ground_truth import ground_truth_gradient


def three(rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    x, fake, real = torch.randn(3, rows, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    return x, fake, real


def clean_mean(x_t: Tensor, sigma: Tensor, mean: Tensor, variance: float = 1.0) -> Tensor:
    """E[x0 | x_t] of a 1-D Gaussian under rectified flow: the true score in x0-space."""
    s = sigma.view(-1, 1, 1, 1, 1)
    gain = (1 - s) * variance / ((1 - s) ** 2 * variance + s**2)
    return mean + gain * (x_t - (1 - s) * mean)


def distil_gaussian(inverted: bool, updates: int = 150) -> float:
    """The mean of a 1-D student N(mu, 1) that starts at 0, with a teacher N(2, 1) and the true scores."""
    rng = torch.Generator().manual_seed(0)
    mu = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.SGD([mu], lr=0.05)
    for _ in range(updates):
        x = mu + torch.randn(256, 1, 1, 1, 1, generator=rng)
        sigma = score_times(256, generator=rng)
        noised = RectifiedFlow().noise(x.detach(), torch.randn(x.shape, generator=rng), sigma)
        fake, real = clean_mean(noised, sigma, mu.detach()), clean_mean(noised, sigma, torch.tensor(2.0))
        pair = (real, fake) if inverted else (fake, real)
        optimizer.zero_grad()
        matching_loss(x, matching_gradient(x, *pair)).backward()
        optimizer.step()
    return float(mu.detach())


def test_sign_the_student_of_a_gaussian_follows_the_teacher() -> None:
    assert distil_gaussian(inverted=False) == pytest.approx(2.0, abs=0.1)


def test_sign_inverted_the_student_of_a_gaussian_moves_away() -> None:
    assert distil_gaussian(inverted=True) < -1.0


def test_the_gradient_is_the_formula() -> None:
    x, fake, real = three()
    for row, found in enumerate(matching_gradient(x, fake, real)):
        expected = (fake[row] - real[row]) / (x[row] - real[row]).abs().mean()
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_the_normaliser_is_per_sample() -> None:
    x, fake, real = three()
    scale = torch.tensor([0.3, 40.0]).view(2, 1, 1, 1, 1)  # two samples of very different size
    x, fake, real = x * scale, fake * scale, real * scale
    together = matching_gradient(x, fake, real)
    singles = [matching_gradient(x[i : i + 1], fake[i : i + 1], real[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(singles), atol=0, rtol=0)


def test_the_floor_holds_where_student_and_teacher_agree() -> None:
    x, fake, _ = three()
    found = matching_gradient(x, fake, x, floor=0.05)
    torch.testing.assert_close(found, (fake - x) / 0.05, atol=1e-5, rtol=1e-5)


def test_equal_scores_give_exactly_no_gradient() -> None:
    x, fake, _ = three()
    assert matching_gradient(x, fake, fake.clone()).eq(0).all()


def test_the_loss_has_the_gradient_over_the_number_of_elements() -> None:
    x, fake, real = three()
    x.requires_grad_()
    gradient = matching_gradient(x, fake, real)
    matching_loss(x, gradient).backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, gradient / x.numel(), atol=1e-7, rtol=1e-4)


def test_given_elements_do_not_count_in_the_loss() -> None:
    x, fake, real = three()
    free = torch.ones(1, 1, x.shape[2], 1, 1)
    free[:, :, 0] = 0
    gradient = matching_gradient(x, fake, real, free=free) * free
    torch.testing.assert_close(matching_loss(x, gradient, free), matching_loss(x[:, :, 1:], gradient[:, :, 1:]))


def test_no_gradient_goes_into_the_scores() -> None:
    x, fake, real = (t.requires_grad_() for t in three())
    matching_loss(x, matching_gradient(x, fake, real)).backward()
    assert fake.grad is None and real.grad is None


def test_half_precision_scores_are_compared_in_float32() -> None:
    x, fake, real = (t.bfloat16() for t in three())
    assert matching_gradient(x, fake, real).dtype == torch.float32


def test_nonfinite_elements_stay_and_are_counted() -> None:
    x, fake, real = three()
    fake[0, 0, 0, 0, 0] = torch.nan
    fake[1, 0, 0, 0, :2] = torch.inf
    assert not matching_gradient(x, fake, real).isfinite().all()
    assert watch(x, fake, real).nonfinite == 3


def test_the_watch_reads_one_and_zero_for_equal_scores() -> None:
    x, fake, _ = three()
    gap = watch(x, fake, fake)
    assert gap.cosine == pytest.approx(1.0) and gap.relative == 0.0 and gap.nonfinite == 0


def test_diversity_is_the_distance_between_samples_as_a_share_of_the_clips() -> None:
    x, data, _ = three(rows=4)

    def between_pairs(rows: Tensor) -> float:
        pairs = [(a, b) for a in range(4) for b in range(a)]
        return sum(float((rows[a] - rows[b]).square().mean().sqrt()) for a, b in pairs) / len(pairs)

    assert relative_diversity(x, data) == pytest.approx(between_pairs(x) / between_pairs(data), rel=1e-5)
    assert relative_diversity(data, data) == 1.0
    assert relative_diversity(0.25 * data + 3, data) == pytest.approx(0.25, rel=1e-5)  # where they lie plays no part
    assert relative_diversity(x[:1].expand(4, -1, -1, -1, -1), data) == 0.0
    assert relative_diversity(x[:1], data[:1]) is None  # one sample has no distance
    assert relative_diversity(x, data[:1].expand(4, -1, -1, -1, -1)) is None  # clips of one kind alone
    assert relative_diversity(x.bfloat16(), data) == pytest.approx(between_pairs(x) / between_pairs(data), rel=1e-2)


def test_the_denoising_loss_is_zero_for_the_target_alone() -> None:
    x0, eps, other = three()
    sigma = torch.tensor([0.3, 0.8])
    process = RectifiedFlow()
    assert float(denoising_loss(process, process.target(x0, eps, sigma), x0, eps, sigma)) == 0.0
    expected = float((other - (eps - x0)).square().mean())
    assert float(denoising_loss(process, other, x0, eps, sigma)) == pytest.approx(expected)


def test_the_ground_truth_term_pulls_towards_the_clip() -> None:
    x, fake, data = three()
    found = ground_truth_gradient(x, fake, data)
    expected = (fake - data) / (x - data).abs().flatten(1).mean(1).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_a_single_frame_has_no_motion_to_log() -> None:
    clip = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(2, 3, 4, 5, 5)
    assert motion_of(clip) == {"student/motion": 1.0} and motion_of(clip[:, :, :1]) == {}
