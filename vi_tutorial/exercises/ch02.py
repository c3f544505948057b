"""Chapter 02: a fixed Gaussian joint."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from vi_tutorial.exercises import Exercise

__all__ = ["block_gap", "cavi_sweep", "largest_step", "mean_field_scale"]


def _precision(dim: int, seed: int) -> Tensor:
    """A positive definite matrix with correlations worth noticing."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, dim + 1, generator=generator, dtype=torch.float64)
    return root @ root.mT / dim


def _vector(dim: int, seed: int) -> Tensor:
    return torch.randn(dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _conditional_scale(precision: Tensor) -> Tensor:
    """Standard deviation of each coordinate given all others, from the covariance by Schur complements."""
    covariance = np.linalg.inv(precision.numpy())
    scales = []
    for i in range(len(covariance)):
        rest = np.delete(np.arange(len(covariance)), i)
        explained = covariance[i, rest] @ np.linalg.solve(covariance[np.ix_(rest, rest)], covariance[rest, i])
        scales.append(math.sqrt(covariance[i, i] - explained))
    return torch.tensor(scales, dtype=torch.float64)


mean_field_scale = Exercise(
    "02.E1",
    "The standard deviations of the mean-field q that maximises the ELBO, from the posterior's precision matrix.",
    _conditional_scale,
    tuple((_precision(dim, seed),) for dim, seed in ((1, 0), (2, 1), (5, 2))),
    {
        "the marginal standard deviations of the posterior": lambda precision: precision.inverse().diagonal().sqrt(),
        "the variances (take the root)": lambda precision: 1 / precision.diagonal(),
        "the precisions (invert them)": lambda precision: precision.diagonal(),
        "the roots of the precisions (invert them)": lambda precision: precision.diagonal().sqrt(),
    },
)


def _normal(covariance: Tensor) -> MultivariateNormal:
    return MultivariateNormal(covariance.new_zeros(len(covariance)), covariance)


def _product_gap(matrix: Tensor) -> Tensor:
    return matrix.diagonal().log().sum() - torch.logdet(matrix)


def _gauss_seidel(precision: Tensor, h: Tensor, mean: Tensor) -> NDArray[np.float64]:
    """The whole sweep as one triangular solve."""
    matrix, right = precision.numpy(), h.numpy() - np.triu(precision.numpy(), 1) @ mean.numpy()
    return np.asarray(solve_triangular(np.tril(matrix), right, lower=True))


def _all_at_once(precision: Tensor, h: Tensor, mean: Tensor) -> Tensor:
    return mean + (h - precision @ mean) / precision.diagonal()


def _itself_counted(precision: Tensor, h: Tensor, mean: Tensor) -> Tensor:
    mean = mean.clone()
    for i in range(len(mean)):
        mean[i] = (h[i] - precision[i] @ mean) / precision[i, i]
    return mean


def _plus(precision: Tensor, h: Tensor, mean: Tensor) -> Tensor:
    mean = mean.clone()
    for i in range(len(mean)):
        mean[i] = (h[i] + precision[i] @ mean - precision[i, i] * mean[i]) / precision[i, i]
    return mean


cavi_sweep = Exercise(
    "02.E2",
    "The means of a mean-field q after one sweep of coordinate ascent, factor after factor.",
    _gauss_seidel,
    tuple(
        (_precision(dim, seed), _vector(dim, seed), _vector(dim, seed + 50)) for dim, seed in ((2, 6), (3, 7), (8, 8))
    ),
    {
        "all factors updated at once from the old means": _all_at_once,
        "the factor's own mean left in the sum over the others": _itself_counted,
        "a plus where the others' pull is subtracted": _plus,
        "only the last factor updated": lambda precision, h, mean: torch.cat(
            [mean[:-1], _all_at_once(precision, h, mean)[-1:]]
        ),
    },
)


def _by_bisection(precision: Tensor) -> float:
    """The step at which the iteration matrix's spectral radius passes one, found by halving."""
    matrix = precision.numpy()
    scaled = matrix / np.diag(matrix)[:, None]
    low, high = 0.0, 2.5
    for _ in range(60):
        step = (low + high) / 2
        radius = np.abs(np.linalg.eigvals(np.eye(len(matrix)) - step * scaled)).max()
        low, high = (step, high) if radius < 1 else (low, step)
    return low


def _top_scaled(precision: Tensor) -> Tensor:
    root = precision.diagonal().rsqrt()
    return torch.linalg.eigvalsh(root[:, None] * precision * root)[-1]


largest_step = Exercise(
    "02.E3",
    "The natural-gradient step below which updating all factors at once still converges.",
    _by_bisection,
    tuple((_precision(dim, seed),) for dim, seed in ((2, 9), (4, 10), (10, 11))),
    {
        "the scaling by the diagonal forgotten: the limit of plain gradient ascent on the means": lambda precision: (
            2 / torch.linalg.eigvalsh(precision)[-1]
        ),
        "1/λ instead of 2/λ: the step that never overshoots": lambda precision: 1 / _top_scaled(precision),
        "the smallest eigenvalue instead of the largest": lambda precision: (
            2 / torch.linalg.eigvals(precision / precision.diagonal()[:, None]).real.min()
        ),
    },
)


def _block_gap_by_kl(precision: Tensor, blocks: list[list[int]]) -> Tensor:
    covariance = torch.zeros_like(precision)
    for block in blocks:
        index = torch.tensor(block)
        covariance[index[:, None], index] = precision[index[:, None], index].inverse()
    return kl_divergence(_normal(covariance), _normal(precision.inverse()))


def _block_gap_of_marginals(precision: Tensor, blocks: list[list[int]]) -> Tensor:
    covariance = precision.inverse()
    joined = sum(torch.logdet(covariance[block][:, block]) for block in blocks)
    return 0.5 * (joined - torch.logdet(covariance))


block_gap = Exercise(
    "02.E4",
    "How many nats are lost by the best q that factorises over blocks of coordinates, a full Normal on each.",
    _block_gap_by_kl,
    (
        (_precision(3, 12), [[0, 1], [2]]),
        (_precision(5, 13), [[0, 3], [1, 2, 4]]),
        (_precision(4, 14), [[0], [1], [2], [3]]),
        (_precision(6, 15), [[5, 0], [1], [4, 2, 3]]),
    ),
    {
        "the mean-field gap, whatever the blocks": lambda precision, blocks: 0.5 * _product_gap(precision),
        "½ forgotten": lambda precision, blocks: 2 * _block_gap_by_kl(precision, blocks),
        "blocks of the covariance where blocks of the precision belong": _block_gap_of_marginals,
    },
)
