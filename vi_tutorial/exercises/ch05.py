"""Exercises of chapter 05: EM is coordinate ascent on the ELBO."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import integrate, optimize, stats
from torch import Tensor

from vi_tutorial.exercises import Exercise

__all__ = ["em_rate", "genetic_linkage", "responsibilities", "shared_covariance"]

Array = NDArray[np.float64]


# --- 05.E1: the E-step, where densities underflow too ---


def _by_odds(x: Tensor, probs: Tensor, loc: Tensor, scale: Tensor) -> Array:
    """One datapoint and one component at a time: 1 over the sum of the odds against it, by SciPy's densities."""
    log_joint = np.log(probs.numpy()) + stats.norm.logpdf(x.numpy()[:, None], loc.numpy(), scale.numpy())
    with np.errstate(over="ignore"):
        return np.array([[1 / np.exp(row - row[k]).sum() for k in range(len(row))] for row in log_joint])


def _densities(x: Tensor, probs: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return probs * torch.exp(-0.5 * ((x[:, None] - loc) / scale) ** 2) / scale


def _normalised(joint: Tensor, dim: int = 1) -> Tensor:
    return joint / joint.sum(dim, keepdim=True)


_far: tuple[Tensor, ...] = (
    torch.tensor([-1.0, 0.3, 60.0]),
    torch.tensor([0.7, 0.3]),
    torch.tensor([0.0, 1.0]),
    torch.tensor([1.0, 0.5]),
)
_near: tuple[Tensor, ...] = (
    torch.tensor([0.0, 1.0, 2.5, 4.0]),
    torch.tensor([0.2, 0.5, 0.3]),
    torch.tensor([0.0, 1.5, 3.0]),
    torch.tensor([1.0, 2.0, 0.5]),
)

responsibilities = Exercise(
    "05.E1",
    "The responsibilities of a mixture of normals in one dimension, for data far from every component too.",
    _by_odds,
    (tuple(t.double() for t in _near), tuple(t.double() for t in _far)),
    {
        "densities in place of log densities: far away they underflow to 0/0": lambda *c: _normalised(_densities(*c)),
        "the weights π left out": lambda x, p, m, s: _by_odds(x, torch.ones_like(p) / len(p), m, s),
        "columns that sum to one in place of rows": lambda *c: _normalised(_densities(*c), dim=0),
        "the standard deviation missing from the density's normalisation": lambda x, p, m, s: _by_odds(x, p * s, m, s),
    },
)


# --- 05.E2: an M-step of another model ---


def _total_less_between(x: Tensor, r: Tensor) -> Array:
    """The law of total variance: what is within is the whole less what is between the means."""
    data, weight = x.numpy(), r.numpy().sum(0) / len(x)
    means = np.array([np.average(data, axis=0, weights=column) for column in r.numpy().T])
    between = np.cov(means.T, aweights=weight, ddof=0)
    return np.cov(data.T, ddof=0) - between


def _component_covariances(x: Tensor, r: Tensor) -> Array:
    return np.array([np.cov(x.numpy().T, aweights=column, ddof=0) for column in r.numpy().T])


def _shared_case(num_data: int, data_dim: int, num_components: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_data, data_dim, generator=generator, dtype=torch.float64).cumsum(1)
    r = (2 * torch.randn(num_data, num_components, generator=generator, dtype=torch.float64)).softmax(1)
    return x + 2 * r[:, :1], r


shared_covariance = Exercise(
    "05.E2",
    "The M-step for one covariance matrix that all components share.",
    _total_less_between,
    (_shared_case(30, 2, 2, 0), _shared_case(50, 3, 4, 1), _shared_case(12, 2, 3, 2)),
    {
        "the plain mean of the components' covariances, whatever their size": lambda x, r: _component_covariances(
            x, r
        ).mean(0),
        "the covariance of all data, the means forgotten": lambda x, r: np.cov(x.numpy().T, ddof=0),
        "a division by N minus the number of components": lambda x, r: (
            _total_less_between(x, r) * len(x) / (len(x) - r.shape[1])
        ),
    },
)


# --- 05.E3: EM for a model that is no mixture of normals ---


def _linkage_by_search(counts: Sequence[int]) -> float:
    """Where the derivative of the log-likelihood is zero: no latent variable in sight."""
    a, b, c, d = counts

    def slope(theta: float) -> float:
        return a / (2 + theta) - (b + c) / (1 - theta) + d / theta

    return float(optimize.brentq(slope, 1e-9, 1 - 1e-9, xtol=1e-14))


def _linkage_step(counts: Sequence[int], theta: float) -> float:
    a, b, c, d = counts
    hidden = a * theta / (2 + theta)
    return (hidden + d) / (hidden + b + c + d)


genetic_linkage = Exercise(
    "05.E3",
    "The maximum of the likelihood of four counts in genetic linkage, by EM.",
    _linkage_by_search,
    (((125, 18, 20, 34),), ((14, 0, 1, 5),), ((60, 30, 25, 12),)),
    {
        "a single step from θ = ½": lambda counts: _linkage_step(counts, 0.5),
        "the first cell left out": lambda counts: counts[3] / sum(counts[1:]),
        "the whole first cell counted for θ": lambda counts: (counts[0] + counts[3]) / sum(counts),
    },
)


# --- 05.E4: how fast? ---


def _missing_share(distance: float) -> float:
    """1 − observed/complete information; the observed one is the mean square of the score, the complete one is 1."""

    def squared_score(x: float) -> float:
        density = 0.5 * stats.norm.pdf(x, distance) + 0.5 * stats.norm.pdf(x, -distance)
        return float((x * np.tanh(distance * x) - distance) ** 2 * density)

    reach = distance + 12
    observed, _ = integrate.quad(squared_score, 0, reach, epsabs=1e-12, limit=200, points=[distance])
    return 1 - 2 * observed


em_rate = Exercise(
    "05.E4",
    "The share of the error in the mean that each step of EM leaves, for two normals at a given distance from zero.",
    _missing_share,
    ((0.5,), (1.0,), (2.0,), (3.0,)),
    {
        "the share that a step takes away": lambda d: 1 - _missing_share(d),
        "the share of the gap in nats, which is the square": lambda d: _missing_share(d) ** 2,
        "the share of datapoints on the wrong side of zero": lambda d: float(stats.norm.cdf(-d)),
    },
    tolerance=1e-4,
)
