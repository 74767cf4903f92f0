from __future__ import annotations

import pytest
import torch

from w2svd_core.errors import UserError
from w2svd_core.metrics.frechet import FeatureStats, frechet_distance, symmetric_root


def test_distance_of_known_gaussians() -> None:
    """With commuting covariances d^2 = |m_a - m_b|^2 + sum (s_a - s_b)^2."""
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    a_std = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.0], dtype=torch.float64)
    b_std = torch.tensor([2.0, 2.0, 1.5, 1.0, 0.1], dtype=torch.float64)
    gap = torch.tensor([1.0, -2.0, 0.0, 0.5, 0.0], dtype=torch.float64)
    a = FeatureStats(torch.zeros(5, dtype=torch.float64), rotation @ torch.diag(a_std**2) @ rotation.t(), 100)
    b = FeatureStats(gap, rotation @ torch.diag(b_std**2) @ rotation.t(), 100)
    expected = float(gap.square().sum() + (a_std - b_std).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected, abs=1e-6)


def test_distance_agrees_with_the_eigenvalues_of_the_product() -> None:
    """tr((A^1/2 B A^1/2)^1/2) is the sum of the roots of the eigenvalues of A B."""
    generator = torch.Generator().manual_seed(1)
    a, b = (FeatureStats.of(torch.randn(50, 6, generator=generator) * (1 + k)) for k in range(2))
    roots = torch.linalg.eigvals(a.covariance @ b.covariance).real.clamp_min(0).sqrt().sum()
    expected = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * roots
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)


def test_distance_to_itself_is_zero() -> None:
    features = torch.randn(200, 48, generator=torch.Generator().manual_seed(2))
    features[:, 40:] = features[:, :8]  # a singular covariance
    stats = FeatureStats.of(features)
    assert frechet_distance(stats, stats) == pytest.approx(0, abs=1e-5)
    assert stats.mean.dtype == stats.covariance.dtype == torch.float64


def test_statistics_are_those_of_the_sample() -> None:
    features = torch.randn(100, 4, generator=torch.Generator().manual_seed(3))
    stats = FeatureStats.of(features)
    torch.testing.assert_close(stats.covariance, torch.cov(features.double().t()))
    assert stats.count == 100
    assert stats.total_variance == pytest.approx(float(features.double().var(0).sum()))


def test_the_root_squares_back() -> None:
    x = torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    matrix = x @ x.t()
    root = symmetric_root(matrix)
    torch.testing.assert_close(root @ root, matrix)


def test_bad_features_are_refused() -> None:
    with pytest.raises(UserError, match="needs more than 48 samples, but there are 48"):
        FeatureStats.of(torch.randn(48, 48))
    broken = torch.randn(10, 2)
    broken[3, 1] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        FeatureStats.of(broken)
    with pytest.raises(UserError, match="3 and 2 values"):
        frechet_distance(FeatureStats.of(torch.randn(9, 3)), FeatureStats.of(torch.randn(9, 2)))
