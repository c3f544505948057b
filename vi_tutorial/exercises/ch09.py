"""Exercises of chapter 09: distributions from neural networks."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize, stats
from torch import Tensor
from torch.distributions import Normal

from vi_tutorial.exercises import Exercise

__all__ = ["beta_binomial", "implied_variance", "quadratic_shape", "table_of_frequencies"]

Array = NDArray[np.float64]


# --- 09.E1: the variance that a loss implies ---


def _variance_by_gradients(num_pixels: int, beta: float) -> float:
    """The σ² for which the loss and the negative ELBO pull the decoder's output and the KL in the same proportion."""
    generator = torch.Generator().manual_seed(num_pixels)
    x, start = torch.rand(2, num_pixels, generator=generator, dtype=torch.float64)

    def pull(log_variance: float) -> float:
        output = start.clone().requires_grad_()
        scale = torch.tensor(math.exp(log_variance / 2), dtype=torch.float64)
        (of_elbo,) = torch.autograd.grad(-Normal(output, scale).log_prob(x).sum(), output)
        (of_loss,) = torch.autograd.grad(torch.nn.functional.mse_loss(output, x), output)
        return float(of_loss.norm() / of_elbo.norm()) - beta  # β nats of KL weigh as one does in the ELBO

    return math.exp(optimize.brentq(pull, -20.0, 20.0, xtol=1e-13))


implied_variance = Exercise(
    "09.E1",
    "The σ² for which mean-squared error (over D pixels) + β · KL has the minimum of a Normal decoder's −ELBO.",
    _variance_by_gradients,
    ((64, 1.0), (64, 0.01), (784, 0.00025), (12, 3.0)),
    {
        "the sum of squares in place of the mean": lambda num_pixels, beta: beta / 2,
        "β left out": lambda num_pixels, beta: num_pixels / 2,
        "the ½ of the Normal's exponent forgotten": lambda num_pixels, beta: num_pixels * beta,
        "β on the wrong side": lambda num_pixels, beta: num_pixels / (2 * beta),
    },
)


# --- 09.E2: a head for counts that spread more than a Binomial's ---


def _beta_binomial(numbers: Tensor, counts: Tensor, total: int) -> Array:
    logits, log_concentration = (part.numpy() for part in numbers.chunk(2, dim=-1))
    mean, concentration = 1 / (1 + np.exp(-logits)), np.exp(log_concentration)
    a, b = concentration * mean, concentration * (1 - mean)
    return np.asarray(stats.betabinom(total, a, b).logpmf(counts.numpy()).sum(-1))


def _without_the_coefficient(numbers: Tensor, counts: Tensor, total: int) -> Array:
    coefficient = torch.lgamma(torch.tensor(total + 1.0, dtype=torch.float64))
    coefficient = coefficient - torch.lgamma(counts + 1) - torch.lgamma(total - counts + 1)
    return _beta_binomial(numbers, counts, total) - coefficient.sum(-1).numpy()


def _pixel_mean(numbers: Tensor, counts: Tensor, total: int) -> Array:
    return _beta_binomial(numbers, counts, total) / counts.shape[-1]


def _a_and_b_directly(numbers: Tensor, counts: Tensor, total: int) -> Array:
    a, b = (part.exp().numpy() for part in numbers.chunk(2, dim=-1))
    return np.asarray(stats.betabinom(total, a, b).logpmf(counts.numpy()).sum(-1))


def _head_case(batch: int, dim: int, total: int, seed: int) -> tuple[Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(seed)
    numbers = 1.5 * torch.randn(batch, 2 * dim, generator=generator, dtype=torch.float64)
    counts = torch.randint(0, total + 1, (batch, dim), generator=generator).double()
    return numbers, counts, total


beta_binomial = Exercise(
    "09.E2",
    "log p(x) of Beta–binomial counts from a network's numbers: the logits of the mean, then log concentrations.",
    _beta_binomial,
    (_head_case(1, 1, 16, 0), _head_case(3, 4, 16, 1), _head_case(5, 2, 7, 2)),
    {
        "the binomial coefficient left out": _without_the_coefficient,
        "the mean over pixels instead of the sum": _pixel_mean,
        "the two numbers read as log a and log b": _a_and_b_directly,
    },
)


# --- 09.E3: the shape of a curved decoder's data ---


def _shape_by_quadrature(slope: float, curvature: float, noise: float) -> Array:
    """Moments of slope·z + curvature·z² + noise·ε by Gauss–Hermite sums over z and ε."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(30)
    weights = weights / weights.sum()
    x = (slope * nodes + curvature * nodes**2)[:, None] + noise * nodes
    mass = np.outer(weights, weights)
    centred = x - (mass * x).sum()
    variance = (mass * centred**2).sum()
    return np.array([(mass * centred**3).sum() / variance**1.5, (mass * centred**4).sum() / variance**2])


def _shape_without_noise(slope: float, curvature: float, noise: float) -> Array:
    return _shape_by_quadrature(slope, curvature, 0.0)


def _excess(slope: float, curvature: float, noise: float) -> Array:
    return _shape_by_quadrature(slope, curvature, noise) - np.array([0.0, 3.0])


def _shape_of_the_curve_alone(slope: float, curvature: float, noise: float) -> Array:
    return _shape_by_quadrature(0.0, curvature, noise)


quadratic_shape = Exercise(
    "09.E3",
    "Skewness and kurtosis of x = a z + b z² + σ ε, with z and ε standard normal.",
    _shape_by_quadrature,
    ((1.0, 0.5, 0.3), (0.2, -1.0, 0.5), (2.0, 0.1, 1.0), (1.0, 0.0, 0.4)),
    {
        "the noise left out of the variance": _shape_without_noise,
        "the kurtosis in excess of a Normal's 3": _excess,
        "the linear term left out": _shape_of_the_curve_alone,
    },
)


# --- 09.E4: the table that has no form ---


def _frequencies(
    counts: Tensor, labels: Tensor, new_counts: Tensor, new_labels: Tensor, levels: int, pseudo: float, divide: int = 1
) -> float:
    """Held-out mean log probability by counting, image by image."""
    total = 0.0
    for image, label in zip(new_counts.numpy(), new_labels.numpy(), strict=True):
        alike = counts.numpy()[labels.numpy() == label]
        hits = (alike == image).sum(0)
        total += float(np.log((hits + pseudo) / (len(alike) + pseudo * levels)).sum())
    return total / len(new_counts) / divide


def _frequencies_case(size: int, dim: int, levels: int, pseudo: float, seed: int) -> tuple[object, ...]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(2 * size) % 3
    skew = torch.rand(2 * size, dim, generator=generator, dtype=torch.float64) ** (labels[:, None] + 1)
    counts = (levels * skew).floor()
    return counts[:size], labels[:size], counts[size:], labels[size:], levels, pseudo


def _one_table_for_all(
    counts: Tensor, labels: Tensor, new_counts: Tensor, new_labels: Tensor, levels: int, pseudo: float
) -> float:
    return _frequencies(counts, 0 * labels, new_counts, 0 * new_labels, levels, pseudo)


def _smoothing_not_normalised(
    counts: Tensor, labels: Tensor, new_counts: Tensor, new_labels: Tensor, levels: int, pseudo: float
) -> float:
    total = 0.0
    for image, label in zip(new_counts.numpy(), new_labels.numpy(), strict=True):
        alike = counts.numpy()[labels.numpy() == label]
        total += float(np.log(((alike == image).sum(0) + pseudo) / len(alike)).sum())
    return total / len(new_counts)


def _mean_over_pixels(
    counts: Tensor, labels: Tensor, new_counts: Tensor, new_labels: Tensor, levels: int, pseudo: float
) -> float:
    return _frequencies(counts, labels, new_counts, new_labels, levels, pseudo, divide=counts.shape[1])


table_of_frequencies = Exercise(
    "09.E4",
    "Mean held-out log p(x | label) of a table of smoothed frequencies of every level, pixel and label.",
    _frequencies,
    (_frequencies_case(30, 4, 3, 1.0, 0), _frequencies_case(60, 2, 5, 0.1, 1), _frequencies_case(21, 1, 2, 0.5, 2)),
    {
        "the label ignored": _one_table_for_all,
        "pseudo-counts added above but not below the fraction": _smoothing_not_normalised,
        "the mean over pixels instead of the sum": _mean_over_pixels,
    },
)
