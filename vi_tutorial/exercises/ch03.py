"""Chapter 03: gradients from samples."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from vi_tutorial.exercises import Exercise

__all__ = ["best_baseline", "landing_share", "samples_needed"]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- E1: how many samples ---------------------------------------------------------------------------


def _by_quadrature(mu: float, log_evidence: float, target: float) -> float:
    """Moments of the one-sample gradient log w(z) (z - mu), from two densities summed over a fine grid."""
    z, step = np.linspace(mu - 12, mu + 12, 4001, retstep=True)
    gradient = (log_evidence + norm.logpdf(z) - norm.logpdf(z, loc=mu)) * (z - mu)
    mass = norm.pdf(z, loc=mu) * step
    mean = float(mass @ gradient)
    return target**2 * (float(mass @ gradient**2) - mean**2) / mean**2


def _variance(mu: float, log_evidence: float) -> float:
    return (log_evidence - mu**2 / 2) ** 2 + 2 * mu**2


samples_needed = Exercise(
    "03.E1",
    "How many samples K the score-function gradient in the mean needs for a given signal-to-noise ratio.",
    _by_quadrature,
    ((1.0, 0.0, 1.0), (0.5, -3.0, 2.0), (-2.0, 1.0, 0.5), (0.1, -20.0, 3.0)),
    {
        "log p(x) in the place of the ELBO": lambda mu, log_evidence, target: (
            target**2 * (log_evidence**2 + 2 * mu**2) / mu**2
        ),
        "the target not squared": lambda mu, log_evidence, target: target * _variance(mu, log_evidence) / mu**2,
        "the log evidence left out": lambda mu, log_evidence, target: target**2 * _variance(mu, 0.0) / mu**2,
        "the second moment in place of the variance": lambda mu, log_evidence, target: (
            target**2 * (_variance(mu, log_evidence) + mu**2) / mu**2
        ),
        "the signal not squared": lambda mu, log_evidence, target: target**2 * _variance(mu, log_evidence) / abs(mu),
    },
)


# --- E2: the best constant baseline -----------------------------------------------------------------


def _vertex(probs: Tensor, log_weight: Tensor, score: Tensor) -> float:
    """The variance is a parabola in the baseline: its lowest point from three values of it."""
    p, signal, s = probs.numpy(), log_weight.numpy(), score.numpy()

    def variance(baseline: float) -> float:
        estimates = (signal - baseline) * s
        return float(p @ (estimates - p @ estimates) ** 2)

    left, middle, right = variance(-1.0), variance(0.0), variance(1.0)
    return (left - right) / (2 * (left - 2 * middle + right))


def _states(num_states: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, log weights, and the score of the first logit, over the states of a discrete latent."""
    generator = _generator(seed)
    logits = torch.randn(num_states, generator=generator, dtype=torch.float64)
    probs = logits.softmax(0)
    score = torch.eye(num_states, dtype=torch.float64)[0] - probs[0]
    return probs, 3 * torch.randn(num_states, generator=generator, dtype=torch.float64) - 5, score


best_baseline = Exercise(
    "03.E2",
    "The constant baseline that gives the score-function gradient the least variance.",
    _vertex,
    (_states(2, 3), _states(3, 4), _states(10, 5)),
    {
        "the mean log weight, which is the ELBO": lambda probs, log_weight, score: probs @ log_weight,
        "the probabilities left out": lambda probs, log_weight, score: (log_weight * score**2).sum() / (score**2).sum(),
        "the score not squared in the numerator": lambda probs, log_weight, score: (
            (probs @ (log_weight * score)) / (probs @ score**2)
        ),
        "the denominator forgotten": lambda probs, log_weight, score: probs @ (log_weight * score**2),
    },
)


# --- E3: no landing without a landing strip ---------------------------------------------------------


def _precision(dim: int, seed: int) -> Tensor:
    root = torch.randn(dim, dim + 1, generator=_generator(seed), dtype=torch.float64)
    return root @ root.mT / dim


def _noise(precision: Tensor, target: Normal | None = None) -> Tensor:
    """The gradient is linear in z, so one standard deviation along each axis tells its variance."""
    posterior = MultivariateNormal(precision.new_zeros(len(precision)), precision_matrix=precision)
    scale = precision.diagonal().rsqrt()
    z = torch.diag(scale).requires_grad_()
    log_density = posterior.log_prob(z) - (target.log_prob(z).sum(-1) if target else 0.0)
    (slopes,) = torch.autograd.grad(log_density.sum(), z)
    return slopes.square().sum(0)


def _share_by_sigma_points(precision: Tensor) -> Tensor:
    """Slopes of log w (STL) over those of log p (pathwise: in a Normal's mean the two gradients of log q cancel)."""
    q = Normal(precision.new_zeros(len(precision)), precision.diagonal().rsqrt())
    return _noise(precision, q) / _noise(precision)


def _kept(precision: Tensor) -> Tensor:
    rest = precision - torch.diag(precision.diagonal())
    return (rest**2) @ (1 / precision.diagonal())


def _with_the_posterior(precision: Tensor) -> Tensor:
    rest = precision - torch.diag(precision.diagonal())
    return (rest @ precision.inverse() @ rest).diagonal() / precision.diagonal()


landing_share = Exercise(
    "03.E3",
    "The share of the pathwise variance that sticking the landing keeps in each mean, at the best mean-field q.",
    _share_by_sigma_points,
    tuple((_precision(dim, seed),) for dim, seed in ((2, 6), (3, 7), (6, 8))),
    {
        "the variance itself, not a share": _kept,
        "what STL saves, not what it keeps": lambda precision: 1 - _share_by_sigma_points(precision),
        "zero, as if the family held the posterior": lambda precision: torch.zeros(len(precision)),
        "the exact posterior's covariance in place of q's": _with_the_posterior,
        "standard deviations": lambda precision: _share_by_sigma_points(precision).sqrt(),
    },
)
