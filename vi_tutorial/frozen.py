"""Frozen noise: samples as a deterministic function of q's parameters, in coordinates that make the posterior round."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from vi_tutorial._validation import check_count, check_distribution, check_tensor
from vi_tutorial.distributions import diagonal_normal, full_normal

__all__ = ["Frame", "is_normal", "noise_dim", "reparameterise", "standardised_noise"]


def standardised_noise(num_draws: int, dim: int, seed: int = 0) -> Tensor:
    r"""Normal base draws whose mean is exactly 0 and whose covariance is exactly the identity.

    Antithetic pairs of scrambled Sobol points, then whitened. With them the Monte Carlo ELBO of a Normal q and a
    quadratic log joint is exact. They need :math:`K \ge 2 \cdot \text{dim}`: K antithetic draws span at most
    :math:`K / 2` directions, and in a direction they do not span a full-rank q could grow for nothing.

    Args:
        num_draws: K, even, at least ``2 * dim``.
        dim: Dimension of the noise, at least 1.
        seed: Of the scrambling.

    Returns:
        Shape ``(num_draws, dim)``, float64.

    Raises:
        TypeError: If an argument is not an ``int``.
        ValueError: If ``num_draws`` is odd or below ``2 * dim``.

    Source:
        Giordano, Ingram & Broderick (2024), Black Box Variational Inference with a Deterministic Objective; Burroni,
        Domke & Sheldon (2024), Sample Average Approximation for Black-Box Variational Inference.

    Example:
        >>> noise = standardised_noise(64, 3)
        >>> torch.allclose(noise.mean(0), torch.zeros(3).double())
        True
        >>> torch.allclose(noise.T @ noise / 64, torch.eye(3).double())
        True
    """
    check_count("dim", dim)
    check_count("num_draws", num_draws, minimum=2 * dim)
    if num_draws % 2:
        raise ValueError(f"num_draws must be even, for antithetic pairs; received {num_draws}")
    engine = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed)
    uniform = engine.draw(num_draws // 2, dtype=torch.float64).clamp(1e-10, 1 - 1e-10)
    half = math.sqrt(2) * torch.erfinv(2 * uniform - 1)
    noise = torch.cat([half, -half])
    factor = torch.linalg.cholesky(noise.T @ noise / num_draws)
    return torch.linalg.solve_triangular(factor, noise.T, upper=False).T


def noise_dim(q: Distribution) -> int:
    """How many base draws one sample of a Normal q takes: its dimension, and the rank of a low-rank part.

    Args:
        q: A Normal, ``event_shape`` ``(dim,)``.

    Returns:
        ``dim``, or ``dim + rank``.

    Raises:
        TypeError: If q is no distribution.
        ValueError: If it is not one over vectors.

    Example:
        >>> noise_dim(LowRankMultivariateNormal(torch.zeros(5), torch.ones(5, 2), torch.ones(5)))
        7
    """
    if len(check_distribution("q", q).event_shape) != 1:
        raise ValueError(f"q must have event_shape (dim,); received {tuple(q.event_shape)} of {type(q).__name__}")
    return q.event_shape[0] + (q.cov_factor.shape[-1] if isinstance(q, LowRankMultivariateNormal) else 0)


def is_normal(q: Distribution) -> bool:
    """Whether q is one of the Normals whose samples are linear in base draws.

    Args:
        q: Any distribution.

    Returns:
        True for a diagonal, a full and a low-rank Normal.

    Raises:
        TypeError: If q is no distribution.

    Example:
        >>> is_normal(diagonal_normal(torch.zeros(2), torch.ones(2)))
        True
    """
    check_distribution("q", q)
    if isinstance(q, Independent):
        return isinstance(q.base_dist, Normal)
    return isinstance(q, MultivariateNormal | LowRankMultivariateNormal)


def reparameterise(q: Distribution, noise: Tensor | int) -> Tensor:
    r"""Samples of q as a deterministic, differentiable function of its parameters.

    .. math:: z_k = \mu + L \epsilon_k

    for a Normal; any other q is sampled with a fixed seed, and the global random state is left alone.

    Args:
        q: A distribution with ``rsample`` and ``batch_shape`` ``batch``; each element gets the same noise.
        noise: For a Normal (:func:`is_normal`) its base draws, shape ``(num_draws, noise_dim(q))``; else how many
            samples to draw.

    Returns:
        Shape ``(num_draws, *batch, dim)``.

    Raises:
        TypeError: If q is no distribution, or ``noise`` neither a tensor nor an ``int``.
        ValueError: If base draws are given for a q that is no Normal, or have another shape; if there are none.

    Example:
        >>> q = diagonal_normal(torch.ones(1), torch.tensor([2.0]))
        >>> reparameterise(q, torch.tensor([[-1.0], [1.0]])).flatten()
        tensor([-1.,  3.])
    """
    check_distribution("q", q)
    if isinstance(noise, int):
        check_count("noise", noise)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return q.rsample(torch.Size([noise]))
    check_tensor("noise", noise)
    if not is_normal(q) or noise.ndim != 2 or noise.shape[1] != noise_dim(q):
        raise ValueError(
            f"noise must be base draws (num_draws, noise_dim(q)) of a Normal q; received shape {tuple(noise.shape)} "
            f"for {type(q).__name__} over {tuple(q.event_shape)}"
        )
    noise = noise.reshape(len(noise), *[1] * len(q.batch_shape), -1)
    if isinstance(q, LowRankMultivariateNormal):
        dim = q.event_shape[0]
        return q.loc + _times(q.cov_factor, noise[..., dim:]) + noise[..., :dim] * q.cov_diag.sqrt()
    if isinstance(q, MultivariateNormal):
        return q.loc + _times(q.scale_tril, noise)
    return q.mean + noise * q.stddev


def _times(matrix: Tensor, noise: Tensor) -> Tensor:
    """The matrix of each batch element times each draw."""
    return noise @ matrix.mT if matrix.ndim == 2 else (matrix @ noise.unsqueeze(-1)).squeeze(-1)


class Frame(NamedTuple):
    """Coordinates v in which the posterior is about a standard Normal: ``u = shift + scale v``.

    Attributes:
        shift: Shape ``(dim,)``.
        scale: Shape ``(dim,)``, or lower-triangular ``(dim, dim)``.

    Example:
        >>> frame = Frame(torch.tensor([5.0]), torch.tensor([3.0]))
        >>> q = frame.place(diagonal_normal(torch.ones(1), torch.tensor([2.0])))
        >>> q.mean.item(), q.stddev.item()
        (8.0, 6.0)
    """

    shift: Tensor
    scale: Tensor

    def place(self, v: Distribution) -> Distribution:
        """The distribution of u for that of v, of the same kind."""
        if isinstance(v, MultivariateNormal):
            scale = self.scale if self.scale.ndim == 2 else torch.diag(self.scale)
            return full_normal(self.shift + scale @ v.loc, scale @ v.scale_tril)
        if isinstance(v, LowRankMultivariateNormal):
            loc = self.shift + self.scale * v.loc
            return LowRankMultivariateNormal(loc, self.scale[:, None] * v.cov_factor, self.scale**2 * v.cov_diag)
        if is_normal(v):
            return diagonal_normal(self.shift + self.scale * v.mean, self.scale * v.stddev)
        return TransformedDistribution(v, [AffineTransform(self.shift, self.scale, event_dim=1)])
