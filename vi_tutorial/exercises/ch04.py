"""Chapter 04: VI on your own model, and when to trust it."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torch.distributions import HalfCauchy, Normal

from vi_tutorial.exercises import Exercise

__all__ = ["between", "reweighted", "tail_index"]


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _by_moments(q_sd: Tensor, p_sd: Tensor) -> float:
    """One over the largest order of a finite moment of p/q under q, found by halving.

    The integrand p^r q^(1 − r) is a Gaussian bell, with a finite integral, while its precision is positive.
    """

    def finite(order: float) -> bool:
        return bool((order / p_sd**2 + (1 - order) / q_sd**2 > 0).all())

    low, high = 1.0, 1e9
    if finite(high):
        return 0.0
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if finite(middle) else (low, middle)
    return 1 / low


tail_index = Exercise(
    "04.E1",
    "The exact tail index of the weights p/q of two mean-field Normals with a common mean.",
    _by_moments,
    (
        (_vector(0.6), _vector(1.0)),
        (_vector(0.6, 0.6, 0.6), _vector(1.0, 1.0, 1.0)),
        (_vector(2.0, 1.5, 0.3), _vector(1.0, 3.0, 0.4)),
        (_vector(2.0, 1.5), _vector(1.0, 1.0)),
    ),
    {
        "the ratio not squared": lambda q_sd, p_sd: (1 - q_sd / p_sd).max().clamp(min=0),
        "the mean over dimensions, where the worst one decides": lambda q_sd, p_sd: (
            (1 - (q_sd / p_sd) ** 2).mean().clamp(min=0)
        ),
        "the sum over dimensions, where the worst one decides": lambda q_sd, p_sd: (
            (1 - (q_sd / p_sd) ** 2).clamp(min=0).sum()
        ),
        "p and q exchanged": lambda q_sd, p_sd: (1 - (p_sd / q_sd) ** 2).max().clamp(min=0),
        "negative indices left in": lambda q_sd, p_sd: (1 - (q_sd / p_sd) ** 2).max(),
    },
)


def _draws(num_samples: int, dim: int, seed: int, shift: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    log_weight = 2 * torch.randn(num_samples, generator=generator, dtype=torch.float64) + shift
    return log_weight, 3 + torch.randn(num_samples, dim, generator=generator, dtype=torch.float64)


def _by_autodiff(log_weight: Tensor, values: Tensor) -> NDArray[np.float64]:
    """NumPy's weighted averages; the root of the sum of squared derivatives by each log weight."""

    def mean(shifts: Tensor) -> Tensor:
        weight = (log_weight - log_weight.median() + shifts).exp()
        return weight @ values / weight.sum()

    influence = torch.autograd.functional.jacobian(mean, torch.zeros_like(log_weight))  # (M, K)
    weight = np.exp((log_weight - log_weight.median()).numpy())
    return np.stack([np.average(values.numpy(), axis=0, weights=weight), np.linalg.norm(influence.numpy(), axis=1)])


def _around(w: Tensor, values: Tensor) -> Tensor:
    return values - w @ values


reweighted = Exercise(
    "04.E2",
    "Self-normalised means and their standard errors, from log weights and values.",
    _by_autodiff,
    (_draws(50, 2, 0, 0.0), _draws(200, 1, 1, -1000.0), _draws(30, 3, 2, 700.0)),
    {
        "all draws weighed alike": lambda log_weight, values: torch.stack(
            [values.mean(0), values.std(0) / math.sqrt(len(values))]
        ),
        "the posterior's standard deviations for standard errors": lambda log_weight, values: torch.stack(
            [
                log_weight.softmax(0) @ values,
                (log_weight.softmax(0) @ _around(log_weight.softmax(0), values) ** 2).sqrt(),
            ]
        ),
        "the number of draws K, though few of them count": lambda log_weight, values: torch.stack(
            [
                log_weight.softmax(0) @ values,
                (log_weight.softmax(0) @ _around(log_weight.softmax(0), values) ** 2 / len(values)).sqrt(),
            ]
        ),
        "a denominator that does not move": lambda log_weight, values: torch.stack(
            [
                log_weight.softmax(0) @ values,
                (log_weight.softmax(0)[:, None] * values).square().sum(0).sqrt(),
            ]
        ),
    },
)


def _schools(
    num_samples: int, num_schools: int, seed: int, c: float
) -> tuple[Tensor, Tensor, Tensor, float, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mu, lam = torch.randn(2, num_samples, generator=generator, dtype=torch.float64)
    b, x = (torch.randn(n, num_schools, generator=generator, dtype=torch.float64) for n in (num_samples, 1))
    return mu, lam, b, c, 8 * x[0], 9 + torch.arange(num_schools, dtype=torch.float64)


def _by_change_of_variables(mu: Tensor, lam: Tensor, b: Tensor, c: float, x: Tensor, s: Tensor) -> NDArray[np.float64]:
    """The centred joint of (μ, τ, a), by SciPy, at the images; plus the log determinant of the map by autodiff."""

    def image(u: Tensor) -> Tensor:
        effects = u[0] + u[1].exp() ** c * u[2:]
        return torch.cat([u[:1], u[1:2].exp(), effects])

    values = []
    for u in torch.cat([mu[:, None], lam[:, None], b], 1):
        m, tau, a = image(u)[0].item(), image(u)[1].item(), image(u)[2:].numpy()
        log_joint = stats.norm.logpdf(m, 0, 5) + stats.halfcauchy.logpdf(tau, scale=5)
        log_joint += stats.norm.logpdf(a, m, tau).sum() + stats.norm.logpdf(x.numpy(), a, s.numpy()).sum()
        jacobian = torch.autograd.functional.jacobian(image, u)
        values.append(log_joint + torch.linalg.slogdet(jacobian).logabsdet.item())
    return np.array(values)


def _between(
    mu: Tensor, lam: Tensor, b: Tensor, c: float, x: Tensor, s: Tensor, prior_sd: Tensor, log_jacobian: Tensor
) -> Tensor:
    effects = mu[:, None] + (c * lam).exp()[:, None] * b
    log_prior = Normal(0.0, 5.0).log_prob(mu) + HalfCauchy(5.0).log_prob(lam.exp()) + log_jacobian
    return log_prior + Normal(0.0, prior_sd[:, None]).log_prob(b).sum(-1) + Normal(effects, s).log_prob(x).sum(-1)


between = Exercise(
    "04.E3",
    "The log joint of a hierarchical model, spelled between centred and non-centred.",
    _by_change_of_variables,
    (_schools(3, 8, 0, 1.0), _schools(2, 5, 1, 0.0), _schools(4, 3, 2, 0.5)),
    {
        "the Jacobian of λ = log τ forgotten": lambda mu, lam, b, c, x, s: _between(
            mu, lam, b, c, x, s, ((1 - c) * lam).exp(), torch.zeros_like(lam)
        ),
        "a second Jacobian, for b, which is a latent itself": lambda mu, lam, b, c, x, s: _between(
            mu, lam, b, c, x, s, ((1 - c) * lam).exp(), lam + c * b.shape[1] * lam
        ),
        "a standard normal prior for b, whatever c": lambda mu, lam, b, c, x, s: _between(
            mu, lam, b, c, x, s, torch.ones_like(lam), lam
        ),
        "the variance τ^(2(1 − c)) read as a standard deviation": lambda mu, lam, b, c, x, s: _between(
            mu, lam, b, c, x, s, (2 * (1 - c) * lam).exp(), lam
        ),
    },
)
