"""Exercises of chapter 18: from VAEs to diffusion."""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy import stats

from vi_tutorial.exercises import Exercise

__all__ = ["cost_of_a_step", "denoising_sum", "gaussian_denoiser"]


def _alpha_variance(log_snr: float) -> tuple[float, float]:
    return 1 / math.sqrt(1 + math.exp(-log_snr)), 1 / (1 + math.exp(log_snr))


# --- 18.E1: the price of a wrong guess ---


def _kl_of_conditionals(before: float, after: float, x: float, guess: float) -> float:
    """KL of two conditional Normals, each read off a joint covariance matrix of (z_s, z_t)."""
    (a_s, v_s), (a_t, v_t) = _alpha_variance(before), _alpha_variance(after)
    between = a_t / a_s * v_s
    variance = v_s - between**2 / v_t
    means = [a_s * c + between / v_t * (0.3 - a_t * c) for c in (x, guess)]  # at z_t = 0.3; any other would do
    return (means[0] - means[1]) ** 2 / (2 * variance)


cost_of_a_step = Exercise(
    "18.E1",
    "KL(q(z_s|z_t,x)‖q(z_s|z_t,x̂)) of one step, from the two log SNRs, x and its guess.",
    _kl_of_conditionals,
    ((5.0, 4.0, 0.2, 0.5), (1.0, -1.0, -1.0, 1.0), (0.0, -3.0, 2.0, 1.5), (3.0, 2.9, 0.0, 0.1)),
    {
        "the ½ dropped": lambda b, a, x, g: (math.exp(b) - math.exp(a)) * (x - g) ** 2,
        "the difference of the log SNRs": lambda b, a, x, g: 0.5 * (b - a) * (x - g) ** 2,
        "no square": lambda b, a, x, g: 0.5 * (math.exp(b) - math.exp(a)) * abs(x - g),
    },
)


# --- 18.E2: the best guess for Gaussian data ---


def _mean_on_a_grid(z: float, log_snr: float, loc: float, scale: float) -> float:
    """E[x | z] by a fine sum over x."""
    alpha, variance = _alpha_variance(log_snr)
    x = np.linspace(loc - 12 * scale, loc + 12 * scale, 40_001)
    weight = stats.norm.pdf(x, loc, scale) * stats.norm.pdf(z, alpha * x, math.sqrt(variance))
    return float((x * weight).sum() / weight.sum())


gaussian_denoiser = Exercise(
    "18.E2",
    "E[x | z_t] for x ~ N(loc, scale²), from z_t and its log SNR.",
    _mean_on_a_grid,
    ((0.5, 0.0, 0.0, 1.0), (-1.0, 2.0, 0.5, 0.6), (2.0, -3.0, -1.0, 2.0), (0.1, 4.0, 0.5, 0.3)),
    {
        "the noise removed by dividing by α alone": lambda z, a, m, s: z / _alpha_variance(a)[0],
        "the data's mean, whatever z": lambda z, a, m, s: m,
        "the mean of the data forgotten": lambda z, a, m, s: (
            _alpha_variance(a)[0] * s**2 * z / (_alpha_variance(a)[0] ** 2 * s**2 + _alpha_variance(a)[1])
        ),
    },
)


# --- 18.E3: how many steps? ---


def _sum_by_covariances(num_steps: int, scale: float) -> float:
    """Step by step: the conditional variance of x from a 2 × 2 covariance, and the KL at a typical error."""
    log_snr = np.linspace(5.0, -5.0, num_steps + 1)
    total = 0.0
    for before, after in itertools.pairwise(log_snr):
        alpha, variance = _alpha_variance(after)
        joint = np.array([[scale**2, alpha * scale**2], [alpha * scale**2, alpha**2 * scale**2 + variance]])
        error2 = 1 / np.linalg.inv(joint)[0, 0]
        total += _kl_of_conditionals(float(before), float(after), 0.0, math.sqrt(error2))
    return total


def _with(num_steps: int, scale: float, late: bool) -> float:
    snr = np.exp(np.linspace(5.0, -5.0, num_steps + 1))
    at = snr[:-1] if late else snr[1:]
    return float((0.5 * -np.diff(snr) * scale**2 / (1 + scale**2 * at)).sum())


denoising_sum = Exercise(
    "18.E3",
    "The mean denoising term of T steps for x ~ N(0, scale²), λ falling in a line from 5 to −5.",
    _sum_by_covariances,
    ((1, 1.0), (4, 0.6), (16, 1.0), (100, 2.0)),
    {
        "the error at the less noisy end of each step": lambda n, s: _with(n, s, late=True),
        "the limit of infinitely many steps": lambda n, s: (
            0.5 * math.log((1 + s**2 * math.exp(5)) / (1 + s**2 * math.exp(-5)))
        ),
        "the ½ dropped": lambda n, s: 2 * _with(n, s, late=False),
    },
)
