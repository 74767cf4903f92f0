"""The Fréchet distance between two sets of features, each seen as a Gaussian (Dowson and Landau 1982).

    d^2 = |m_a - m_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a^(1/2) C_b C_a^(1/2))^(1/2))

This is the number that is reported (squared, as FID papers do), in float64. With n samples it is biased
upwards by about tr(C) times dimensions / n: compare only numbers of equal counts, and read them against data
against data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError


@dataclass(frozen=True)
class FeatureStats:
    """Mean (D,) and covariance (D, D) of features, float64, and the number of samples that they come from."""

    mean: Tensor
    covariance: Tensor
    count: int

    @classmethod
    def of(cls, features: Tensor) -> FeatureStats:
        """Statistics of features (N, D); the covariance is the unbiased one.

        Raises:
            UserError: N is not larger than D (the covariance would be singular), or a feature is not finite.
        """
        count, dims = features.shape
        if count <= dims:
            raise UserError(
                f"a Fréchet distance in {dims} features needs more than {dims} samples, but there are "
                f"{count}; evaluate more clips"
            )
        if not bool(torch.isfinite(features).all()):
            raise UserError("some features of the clips are not finite; check the clips for broken values")
        x = features.double()
        mean = x.mean(0)
        centred = x - mean
        return cls(mean, centred.t() @ centred / (count - 1), count)

    @property
    def total_variance(self) -> float:
        """The trace of the covariance."""
        return float(self.covariance.diagonal().sum())


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """The squared Fréchet distance, at least 0.

    Raises:
        UserError: the two have different numbers of features.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(
            f"a Fréchet distance needs features of one network, but these have {len(a.mean)} and {len(b.mean)} values"
        )
    root = symmetric_root(a.covariance)
    cross = symmetric_root(root @ b.covariance @ root)
    gap = (a.mean - b.mean).square().sum()
    distance = gap + a.covariance.trace() + b.covariance.trace() - 2 * cross.trace()
    return max(0.0, float(distance))


def symmetric_root(matrix: Tensor) -> Tensor:
    """The square root of a symmetric positive semi-definite matrix (D, D).

    Eigenvalues below 0 are rounding and taken as 0.
    """
    values, vectors = torch.linalg.eigh((matrix + matrix.t()) / 2)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.t()
    return root
