"""Chapter 03: gradients from samples."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from vi_tutorial.exercises import Exercise

__all__ = ["best_baseline", "landing_noise", "leave_one_out", "samples_needed"]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- E1: how many samples ---------------------------------------------------------------------------


def _by_quadrature(mu: float, log_evidence: float, target: float) -> float:
    """Moments of the one-sample gradient log w(z) (z - mu), from two densities and SciPy's integrator."""

    def moment(order: int) -> float:
        def integrand(z: float) -> float:
            log_weight = log_evidence + norm.logpdf(z) - norm.logpdf(z, loc=mu)
            return float(norm.pdf(z, loc=mu) * (log_weight * (z - mu)) ** order)

        return float(quad(integrand, mu - 12, mu + 12, epsabs=1e-12, epsrel=1e-12, limit=200)[0])

    return target**2 * (moment(2) - moment(1) ** 2) / moment(1) ** 2


def _variance(mu: float, log_evidence: float) -> float:
    return (log_evidence - mu**2 / 2) ** 2 + 2 * mu**2


samples_needed = Exercise(
    "03.E1",
    "How many samples K the score-function gradient in the mean needs for a given signal-to-noise ratio.",
    _by_quadrature,
    ((1.0, 0.0, 1.0), (0.5, -3.0, 2.0), (-2.0, 1.0, 0.5), (0.1, -20.0, 3.0)),
    {
        "the target not squared": lambda mu, log_evidence, target: target * _variance(mu, log_evidence) / mu**2,
        "the log evidence left out": lambda mu, log_evidence, target: target**2 * _variance(mu, 0.0) / mu**2,
        "the second moment in place of the variance": lambda mu, log_evidence, target: (
            target**2 * (_variance(mu, log_evidence) + mu**2) / mu**2
        ),
        "the signal not squared": lambda mu, log_evidence, target: target**2 * _variance(mu, log_evidence) / abs(mu),
    },
)


# --- E2: leave one out ------------------------------------------------------------------------------


def _sample_covariance(log_weight: Tensor, score: Tensor) -> NDArray[np.float64]:
    return np.array([np.cov(log_weight.numpy(), column.numpy())[0, 1] for column in score.T])


def _samples(num_samples: int, num_parameters: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = _generator(seed)
    log_weight = torch.randn(num_samples, generator=generator, dtype=torch.float64) - 4
    return log_weight, torch.randn(num_samples, num_parameters, generator=generator, dtype=torch.float64)


leave_one_out = Exercise(
    "03.E2",
    "The leave-one-out gradient from K log weights and the K scores that belong to them.",
    _sample_covariance,
    (_samples(2, 1, 0), _samples(5, 3, 1), _samples(64, 2, 2)),
    {
        "no baseline": lambda log_weight, score: (log_weight[:, None] * score).mean(0),
        "a baseline that includes the sample's own log weight": lambda log_weight, score: (
            (log_weight - log_weight.mean())[:, None] * score
        ).mean(0),
        "a sum over samples where a mean belongs": lambda log_weight, score: (
            len(log_weight) * torch.as_tensor(_sample_covariance(log_weight, score))
        ),
        "the sum of the other log weights, not their mean": lambda log_weight, score: (
            (2 * log_weight - log_weight.sum())[:, None] * score
        ).mean(0),
    },
)


# --- E3: the best constant baseline -----------------------------------------------------------------


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
    "03.E3",
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


# --- E4: no landing without a landing strip ---------------------------------------------------------


def _precision(dim: int, seed: int) -> Tensor:
    root = torch.randn(dim, dim + 1, generator=_generator(seed), dtype=torch.float64)
    return root @ root.mT / dim


def _by_sigma_points(precision: Tensor) -> Tensor:
    """The gradient is linear in z, so one standard deviation along each axis tells its variance."""
    dim = len(precision)
    posterior = MultivariateNormal(precision.new_zeros(dim), precision_matrix=precision)
    scale = precision.diagonal().rsqrt()
    z = torch.diag(scale).requires_grad_()
    log_weight = posterior.log_prob(z) - Normal(torch.zeros_like(scale), scale).log_prob(z).sum(-1)
    (slopes,) = torch.autograd.grad(log_weight.sum(), z)
    return slopes.square().sum(0)


def _total_noise(precision: Tensor) -> Tensor:
    return ((precision / precision.diagonal()) @ precision).diagonal()


landing_noise = Exercise(
    "03.E4",
    "The variance of the sticking-the-landing gradient in each mean, at the best mean-field q of a Gaussian posterior.",
    _by_sigma_points,
    tuple((_precision(dim, seed),) for dim, seed in ((2, 6), (3, 7), (6, 8))),
    {
        "the total derivative's variance": _total_noise,
        "zero, as if the family held the posterior": lambda precision: torch.zeros(len(precision)),
        "the exact posterior's covariance in place of q's": lambda precision: (
            (precision - torch.diag(precision.diagonal()))
            @ precision.inverse()
            @ (precision - torch.diag(precision.diagonal()))
        ).diagonal(),
        "standard deviations": lambda precision: _by_sigma_points(precision).sqrt(),
    },
)
