"""Exercises of chapter 13: when supports do not match."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from vi_tutorial.exercises import Exercise

__all__ = ["effective_share", "kl_of_the_kept", "kl_through_the_logarithm", "spread_kl"]

Array = NDArray[np.float64]


# --- 13.E1: what the ELBO charges for what it leaves out ---


def _kept_on_a_grid(weights: Array, kept: Array) -> float:
    """Boxes of width one side by side; q is p on the kept ones: KL as a sum over cells."""
    cells = 50
    p = np.repeat(weights, cells) / cells
    q = np.where(np.repeat(kept, cells), p, 0.0)
    q = q / q.sum()
    return float(sum(a * math.log(a / b) for a, b in zip(q, p, strict=True) if a > 0))


_THREE, _FOUR = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.3, 0.4])

kl_of_the_kept = Exercise(
    "13.E1",
    "KL(q‖p) where q is a mixture p of separate parts, restricted to some of them.",
    _kept_on_a_grid,
    (
        (_THREE, np.array([True, False, False])),
        (_THREE, np.array([False, True, True])),
        (_FOUR, np.array([True, False, True, False])),
        (_FOUR, np.array([True, True, True, False])),
    ),
    {
        "the mass that is left out in place of the mass that is kept": lambda w, k: -math.log(w[~k].sum()),
        "a logarithm for each kept part, added up": lambda w, k: -np.log(w[k]).sum(),
        "the other direction, which is infinite": lambda w, k: math.inf,
    },
)


# --- 13.E2: through the logarithm, for a counter that has clicked ---


def _best_lognormal(shape: float, rate: float) -> float:
    """The smallest KL(LogNormal‖Gamma), by Gauss-Hermite and a simplex: no closed form is used."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    target = stats.gamma(shape, scale=1 / rate)

    def kl(numbers: Array) -> float:
        loc, scale = numbers[0], math.exp(numbers[1])
        z = np.exp(loc + scale * nodes)
        return float(weights @ (stats.lognorm(scale, scale=math.exp(loc)).logpdf(z) - target.logpdf(z)))

    start = np.array([math.log(shape / rate), -0.5 * math.log(shape)])
    options = {"xatol": 1e-9, "fatol": 1e-13, "maxiter": 2000}
    return float(optimize.minimize(kl, start, method="Nelder-Mead", options=options).fun)


def _stirling(shape: float) -> float:
    return math.lgamma(shape) - (shape - 0.5) * math.log(shape) + shape - 0.5 * math.log(2 * math.pi)


kl_through_the_logarithm = Exercise(
    "13.E2",
    "The KL of the best LogNormal to a Gamma(shape, rate).",
    _best_lognormal,
    ((1.0, 3.0), (2.0, 3.0), (6.0, 0.5), (30.0, 10.0)),
    {
        "the shape of the prior: the clicks were forgotten": lambda a, b: _stirling(1.0),
        "the Jacobian of the logarithm forgotten in the target": lambda a, b: (
            _stirling(a) - math.log(a / b) + 1 / (2 * a)
        ),
        "the first term of Stirling's series only": lambda a, b: 1 / (12 * a),
        "σ² = 1, which is best for shape 1 only": lambda a, b: _stirling(a) + 0.5 * (a - 1 - math.log(a)),
    },
)


# --- 13.E3: two boxes under noise ---


def _spread_by_mixtures(shift: float, scale: float, noise_on_q: bool = True) -> float:
    """Each noised box as a mixture of many Normals (Gauss-Legendre), and a sum over a fine grid."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    places, shares = (nodes + 1) / 2, weights / 2
    z = np.linspace(-9 * scale, 1 + shift + 9 * scale, 12_001)

    def log_density(at: float) -> Array:
        logs = stats.norm(at + places, scale).logpdf(z[:, None]) + np.log(shares)
        top = logs.max(-1)
        return np.asarray(top + np.log(np.exp(logs - top[:, None]).sum(-1)))

    log_p, log_q = log_density(0.0), log_density(shift)
    q = np.exp(log_q) if noise_on_q else ((z >= shift) & (z <= shift + 1)).astype(float)
    return float((q * (log_q - log_p)).sum() * (z[1] - z[0]))


spread_kl = Exercise(
    "13.E3",
    "The spread KL between U(t, t + 1) and U(0, 1) under Normal noise of scale s.",
    _spread_by_mixtures,
    ((0.5, 1.0), (2.0, 1.0), (4.0, 1.0), (1.0, 0.5), (3.0, 2.0)),
    {
        "Normals with the same means and variances": lambda t, s: t**2 / (2 * (s**2 + 1 / 12)),
        "two points in place of two boxes": lambda t, s: t**2 / (2 * s**2),
        "s for the variance of the noise": lambda t, s: _spread_by_mixtures(t, math.sqrt(s)),
        "the mean taken over q without noise": lambda t, s: _spread_by_mixtures(t, s, noise_on_q=False),
    },
)


# --- 13.E4: how defensive? ---


def _share(x: float, flip: float, defence: float, under_q: bool = False, swapped: bool = False) -> float:
    """1 over the mean of p²/q for the sensor of this chapter, by a fine sum."""
    z = np.linspace(-30, 30, 60_001)
    at = 0.8 * x
    p = (1 - flip) * stats.norm.pdf(z, at) + flip * stats.norm.pdf(z, -at)
    mode = stats.norm.pdf(z, at)
    defence = 1 - defence if swapped else defence
    q = (1 - defence) * mode + defence * stats.norm.pdf(z, 0, math.sqrt(5))
    weight = p / q
    over = mode if under_q else q
    return float((over * weight).sum() ** 2 / (over * weight**2).sum() * (z[1] - z[0]))


def _of_log_weights() -> Callable[..., float]:
    """Share by the spread of the log weights, as if they were Normal."""

    def share(x: float, flip: float, defence: float) -> float:
        z = np.linspace(-30, 30, 60_001)
        at, step = 0.8 * x, z[1] - z[0]
        p = (1 - flip) * stats.norm.pdf(z, at) + flip * stats.norm.pdf(z, -at)
        q = (1 - defence) * stats.norm.pdf(z, at) + defence * stats.norm.pdf(z, 0, math.sqrt(5))
        log_weight = np.log(p + 1e-300) - np.log(q + 1e-300)
        mean = (q * log_weight).sum() * step
        return float(math.exp(-(q * (log_weight - mean) ** 2).sum() * step))

    return share


effective_share = Exercise(
    "13.E4",
    "ESS/K of a Normal on the sensor's larger mode, with the prior mixed in.",
    _share,
    ((5.0, 0.2, 0.1), (5.0, 0.2, 0.5), (5.0, 0.5, 0.3), (3.75, 0.2, 0.05)),
    {
        "the two shares exchanged": lambda x, f, d: _share(x, f, d, swapped=True),
        "the means taken over the mode alone, not over the mixture": lambda x, f, d: _share(x, f, d, under_q=True),
        "the variance of log w in place of that of w": _of_log_weights(),
    },
)
