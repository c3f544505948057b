"""Exercises of chapter 07: when q is too simple, θ is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor

from vi_tutorial.exercises import Exercise

__all__ = ["learned_noise", "learned_scales", "learned_strength"]

Array = NDArray[np.float64]


def _fixed_point(update: Callable[[float], float], upper: float) -> float:
    """Where an M-step changes nothing any more."""
    return float(optimize.brentq(lambda theta: update(theta) - theta, 1e-9, upper, xtol=1e-13))


# --- 07.E1: more causes ---


def _strength_by_em(mean_square: float, num_causes: int) -> float:
    """Variational EM: q's moments by hand, the loading by least squares, and the place where it stays."""

    def update(loading: float) -> float:
        gain = loading / (1 + num_causes * loading**2)
        cross = num_causes * gain * mean_square
        second = (num_causes * gain) ** 2 * mean_square + num_causes / (1 + loading**2)
        return float(cross / second)

    return _fixed_point(update, 10 * math.sqrt(mean_square)) ** 2


learned_strength = Exercise(
    "07.E1",
    "The strength θ that a mean-field ELBO learns when L equal causes are added.",
    _strength_by_em,
    ((9.0, 2), (9.0, 3), (4.0, 5), (101.0, 10)),
    {
        "maximum likelihood": lambda v, n: (v - 1) / n,
        "the formula for two causes, whatever their number": lambda v, n: (v - 4 + math.sqrt(v**2 + 8 * v)) / 8,
        "the total strength Lθ instead of that of one cause": lambda v, n: n * _strength_by_em(v, n),
    },
)


# --- 07.E2: unknown noise ---


def _noise_by_em(mean_square: float, spreads: int = 2) -> float:
    """Variational EM for the noise: the mean squared error that q expects, and the place where it stays."""

    def update(noise: float) -> float:
        missed = mean_square * (1 - 2 / (2 + noise)) ** 2
        return missed + spreads * noise / (1 + noise)

    return float(optimize.brentq(lambda v: update(v) / v - 1, 1e-9, 10 * mean_square + 10, xtol=1e-13))


def _noise_with_twice_the_penalty(mean_square: float) -> float:
    def loss(log_noise: float) -> float:
        v = math.exp(log_noise)
        evidence = -0.5 * (math.log(2 + v) + mean_square / (2 + v))
        return -evidence + 2 * math.log(1 + 1 / v) - math.log(1 + 2 / v)

    return math.exp(optimize.minimize_scalar(loss, bounds=(-5.0, 8.0), method="bounded", options={"xatol": 1e-10}).x)


learned_noise = Exercise(
    "07.E2",
    "The noise variance that a mean-field ELBO learns when the two causes are known to have variance 1.",
    _noise_by_em,
    ((3.0,), (2.5,), (8.0,), (40.0,)),
    {
        "maximum likelihood": lambda v: v - 2,
        "a penalty twice too large: its ½ was forgotten": _noise_with_twice_the_penalty,
        "maximum likelihood, with the variance of one cause only": lambda v: v - 1,
    },
)


# --- 07.E3: blocks in a regression ---


def _scales_by_profile(design: Tensor, y: Tensor, blocks: list[list[int]]) -> Array:
    """The maximum of the profile: the evidence less the penalty of the blocks."""
    x, target = design.numpy(), y.numpy()
    num_data, size = x.shape

    def loss(logs: Array) -> float:
        prior, noise = np.exp(2 * logs)
        precision = x.T @ x / noise + np.eye(size) / prior
        covariance = prior * x @ x.T + noise * np.eye(num_data)
        evidence = -0.5 * (np.linalg.slogdet(covariance)[1] + target @ np.linalg.solve(covariance, target))
        each = sum(np.linalg.slogdet(precision[np.ix_(block, block)])[1] for block in blocks)
        return float(0.5 * (each - np.linalg.slogdet(precision)[1]) - evidence)

    start = np.array([0.0, math.log(target.std())])
    options = {"xatol": 1e-8, "fatol": 1e-12, "maxiter": 5000}
    return np.exp(optimize.minimize(loss, start, method="Nelder-Mead", options=options).x)


def _regression(num_data: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Columns that share a common part, so that their coefficients are hard to tell apart."""
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randn(num_data, size, generator=generator, dtype=torch.float64)
    design = columns + 1.5 * torch.randn(num_data, 1, generator=generator, dtype=torch.float64)
    y = design @ torch.linspace(-1, 2, size, dtype=torch.float64)
    return design, y + torch.randn(num_data, generator=generator, dtype=torch.float64)


def _one_block(design: Tensor) -> list[list[int]]:
    return [list(range(design.shape[1]))]


def _singles(design: Tensor) -> list[list[int]]:
    return [[i] for i in range(design.shape[1])]


learned_scales = Exercise(
    "07.E3",
    "Prior scale and noise scale of a regression, learned by the ELBO of a q with given blocks.",
    _scales_by_profile,
    (
        (*_regression(40, 4, 0), [[0, 1], [2, 3]]),
        (*_regression(25, 5, 1), [[0], [1, 2, 3], [4]]),
        (*_regression(60, 3, 2), [[0], [1, 2]]),
    ),
    {
        "maximum likelihood, one block for all": lambda x, y, blocks: _scales_by_profile(x, y, _one_block(x)),
        "mean-field, whatever the blocks": lambda x, y, blocks: _scales_by_profile(x, y, _singles(x)),
        "variances in place of scales": lambda x, y, blocks: _scales_by_profile(x, y, blocks) ** 2,
    },
    tolerance=1e-4,
)
