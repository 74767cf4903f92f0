"""The Fréchet distance between two sets of features, each seen as a Gaussian (Dowson and Landau 1982).

    d^2 = |m_a - m_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a^(1/2) C_b C_a^(1/2))^(1/2))

This is the number that is reported (squared, as FID papers do), in float64. With n samples it is biased
upwards by about tr(C) times dimensions / n: compare only numbers of equal counts, and read them against data
against data.

With no more samples than dimensions C is singular and the bias large; the distance is still defined, and computed from
the samples themselves: the last trace above is the sum of the singular values of A B^T for any A and B with
C_a = A^T A and C_b = B^T B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError


@dataclass(frozen=True)
class FeatureStats:
    """Mean (D,) and covariance (D, D) of features, float64, and the number of samples that they come from.

    `rows` (N, D) is a root of a singular covariance, `rows^T rows`; None where there are more samples than features.
    """

    mean: Tensor
    covariance: Tensor
    count: int
    rows: Tensor | None = None

    @classmethod
    def of(cls, features: Tensor, singular: bool = False) -> FeatureStats:
        """Statistics of features (N, D); the covariance is the unbiased one.

        Args:
            singular: take N <= D, too, from 2 up; published FIDs and FVDs do.

        Raises:
            UserError: N is not larger than D (the covariance would be singular), or a feature is not finite.
        """
        count, dims = features.shape
        if singular and count < 2:
            raise UserError("a Fréchet distance needs at least 2 samples, but there is 1; evaluate more clips")
        if not singular and count <= dims:
            raise UserError(
                f"a Fréchet distance in {dims} features needs more than {dims} samples, but there are "
                f"{count}; evaluate more clips"
            )
        if not bool(torch.isfinite(features).all()):
            raise UserError("some features of the clips are not finite; check the clips for broken values")
        x = features.double()
        mean = x.mean(0)
        rows = (x - mean) / math.sqrt(count - 1)
        return cls(mean, rows.t() @ rows, count, rows if count <= dims else None)

    def root(self) -> Tensor:
        """A matrix whose transpose times itself is the covariance."""
        return symmetric_root(self.covariance) if self.rows is None else self.rows

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
    gap = (a.mean - b.mean).square().sum()
    distance = gap + a.covariance.trace() + b.covariance.trace() - 2 * _shared(a, b)
    return max(0.0, float(distance))


def _shared(a: FeatureStats, b: FeatureStats) -> Tensor:
    """tr((C_a^(1/2) C_b C_a^(1/2))^(1/2))."""
    root = a.root()
    if a.rows is None and b.rows is None:
        return symmetric_root(root @ b.covariance @ root).trace()
    shared: Tensor = torch.linalg.svdvals(root @ b.root().t()).sum()
    return shared


def symmetric_root(matrix: Tensor) -> Tensor:
    """The square root of a symmetric positive semi-definite matrix (D, D).

    Eigenvalues below 0 are rounding and taken as 0.
    """
    values, vectors = torch.linalg.eigh((matrix + matrix.t()) / 2)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.t()
    return root
