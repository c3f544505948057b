"""Chapter 02: a fixed Gaussian joint."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from vi_tutorial.exercises import Exercise

__all__ = ["block_gap", "block_sweep", "correlation_for", "largest_step"]


def _precision(dim: int, seed: int) -> Tensor:
    """A positive definite matrix with correlations worth noticing."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, dim + 1, generator=generator, dtype=torch.float64)
    return root @ root.mT / dim


def _vector(dim: int, seed: int) -> Tensor:
    return torch.randn(dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _correlation_by_root(share: float) -> float:
    """Where the inverse of a 2 × 2 correlation matrix gives the share, found by root search."""

    def excess(rho: float) -> float:
        precision = np.linalg.inv(np.array([[1.0, rho], [rho, 1.0]]))
        return 1 / math.sqrt(precision[0, 0]) - share

    return float(brentq(excess, 0.0, 1 - 1e-9, xtol=1e-13))


correlation_for = Exercise(
    "02.E1",
    "The correlation at which the best mean-field q reports a given share of the exact standard deviations.",
    _correlation_by_root,
    ((0.5,), (0.1,), (0.95,)),
    {
        "the share of the variance (the square is missing)": lambda share: math.sqrt(1 - share),
        "1 − share²: that is ρ² (take the root)": lambda share: 1 - share**2,
        "1 − share": lambda share: 1 - share,
    },
)


def _normal(covariance: Tensor) -> MultivariateNormal:
    return MultivariateNormal(covariance.new_zeros(len(covariance)), covariance)


def _product_gap(matrix: Tensor) -> Tensor:
    return matrix.diagonal().log().sum() - torch.logdet(matrix)


def _block_triangle(precision: Tensor, h: Tensor, mean: Tensor, blocks: list[list[int]]) -> NDArray[np.float64]:
    """The whole sweep as one linear solve: what is new stands left of the equals sign, what is old right of it."""
    turn = np.empty(len(mean), dtype=int)
    for k, block in enumerate(blocks):
        turn[block] = k
    matrix = precision.numpy()
    new = np.where(turn[None] <= turn[:, None], matrix, 0.0)
    return np.asarray(np.linalg.solve(new, h.numpy() - (matrix - new) @ mean.numpy()))


def _sweep(precision: Tensor, h: Tensor, mean: Tensor, blocks: list[list[int]], sign: float, own: bool) -> Tensor:
    """A sweep that may add the others' pull, or count the block's own mean among the others."""
    mean = mean.clone()
    for block in blocks:
        others = [j for j in range(len(mean)) if own or j not in block]
        pull = precision[block][:, others] @ mean[others]
        mean[block] = torch.linalg.solve(precision[block][:, block], h[block] - sign * pull)
    return mean


def _all_at_once(precision: Tensor, h: Tensor, mean: Tensor, blocks: list[list[int]]) -> Tensor:
    new = mean.clone()
    for block in blocks:
        new[block] += torch.linalg.solve(precision[block][:, block], (h - precision @ mean)[block])
    return new


block_sweep = Exercise(
    "02.E2",
    "The means after one sweep of coordinate ascent, block after block, for a q with a full Normal on each block.",
    _block_triangle,
    tuple(
        (_precision(dim, seed), _vector(dim, seed), _vector(dim, seed + 50), blocks)
        for dim, seed, blocks in ((3, 6, [[0, 1], [2]]), (5, 7, [[4, 1], [0, 3], [2]]), (3, 8, [[0], [1], [2]]))
    ),
    {
        "all blocks updated at once from the old means": _all_at_once,
        "one coordinate after the other, the blocks ignored": lambda precision, h, mean, blocks: _sweep(
            precision, h, mean, [[i] for i in range(len(mean))], 1, False
        ),
        "the block's own mean left in the sum over the others": lambda precision, h, mean, blocks: _sweep(
            precision, h, mean, blocks, 1, True
        ),
        "a plus where the others' pull is subtracted": lambda precision, h, mean, blocks: _sweep(
            precision, h, mean, blocks, -1, False
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
    "The natural-gradient step below which updating all factors at once converges, from converged variances.",
    _by_bisection,
    tuple((_precision(dim, seed),) for dim, seed in ((2, 9), (4, 10), (5, 4), (10, 11))),
    {
        "the scaling by the diagonal forgotten: the limit of plain gradient ascent on the means": lambda precision: (
            2 / torch.linalg.eigvalsh(precision)[-1]
        ),
        "eigvalsh of a matrix that is not symmetric: it reads one triangle only": lambda precision: (
            2 / torch.linalg.eigvalsh(precision / precision.diagonal()[:, None])[-1]
        ),
        "1/λ instead of 2/λ: the step that never overshoots": lambda precision: 1 / _top_scaled(precision),
        "the first eigenvalue in the list, which need not be the largest": lambda precision: (
            2 / torch.linalg.eigvals(precision / precision.diagonal()[:, None])[0].real
        ),
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
