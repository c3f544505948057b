"""Exercises of chapter 14: tighter bounds."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor

from vi_tutorial.exercises import Exercise

__all__ = ["bound_slope", "jackknife", "mean_of_bounds", "wake_slope"]


def _normal(*shape: int, seed: int, scale: float = 1.0, loc: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return loc + scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


# --- 14.E1: the gradient of the bound ---


def _directional_difference(log_weight: Tensor, slopes: Tensor) -> np.ndarray:
    """Walk a little along the slopes, and see how SciPy's log-sum-exp changes."""
    w, g, h = log_weight.numpy(), slopes.numpy(), 1e-5
    return (special.logsumexp(w + h * g, axis=0) - special.logsumexp(w - h * g, axis=0)) / (2 * h)


bound_slope = Exercise(
    "14.E1",
    "From log weights (K, N) and their slopes in a parameter (K, N): the slope of each datapoint's IWAE bound, (N,).",
    _directional_difference,
    (
        (_normal(6, 3, seed=0, loc=-20.0), _normal(6, 3, seed=1)),
        (_normal(4, 2, seed=2, scale=2.0, loc=-900.0), _normal(4, 2, seed=3)),
        (_normal(1, 4, seed=4), _normal(1, 4, seed=5)),
    ),
    {
        "equal weights: the slope of the ELBO": lambda w, g: g.mean(0),
        "a softmax of the loss: the worst draw counts most": lambda w, g: ((-w).softmax(0) * g).sum(0),
        "weights that sum to one over the datapoints": lambda w, g: (w.softmax(1) * g).sum(0),
        "the mean over draws taken once more": lambda w, g: (w.softmax(0) * g).mean(0),
        "squared weights: DReG's, for the path alone": lambda w, g: (w.softmax(0) ** 2 * g).sum(0),
        "the exponential of −900: it underflows": lambda w, g: (w.exp() * g).sum(0) / w.exp().sum(0),
    },
)


# --- 14.E2: the jackknife ---


def _jackknife_by_loops(log_weight: Tensor) -> np.ndarray:
    """One estimate after the other, by SciPy, on weights divided by their largest."""
    columns = []
    for column in log_weight.numpy().T:
        top = column.max()
        weights = np.exp(column - top)
        whole = math.log(weights.mean())
        parts = [math.log(np.delete(weights, k).mean()) for k in range(len(weights))]
        columns.append(top + whole + (len(weights) - 1) * (whole - np.mean(parts)))
    return np.array(columns)


def _left_out(w: Tensor) -> Tensor:
    return torch.stack(
        [torch.cat([w[:k], w[k + 1 :]]).logsumexp(0) - math.log(len(w) - 1) for k in range(len(w))]
    ).mean(0)


def _whole(w: Tensor) -> Tensor:
    return w.logsumexp(0) - math.log(len(w))


jackknife = Exercise(
    "14.E2",
    "From log weights (K, N): the combination of the K-draw estimate of log p(x) and the mean of the leave-one-out "
    "estimates in which the 1/K term of the bias cancels, (N,).",
    _jackknife_by_loops,
    (
        (_normal(5, 3, seed=6, loc=-20.0),),
        (_normal(2, 2, seed=7),),
        (_normal(12, 1, seed=8, scale=1.5, loc=-800.0),),
    ),
    {
        "IWAE itself": _whole,
        "the mean of the leave-one-out estimates alone": _left_out,
        "the two coefficients exchanged": lambda w: len(w) * _left_out(w) - (len(w) - 1) * _whole(w),
        "coefficients for a bias that does not depend on K": lambda w: 2 * _whole(w) - _left_out(w),
        "leave-one-out sums divided by K, not K − 1": lambda w: (
            len(w) * _whole(w) - (len(w) - 1) * (_left_out(w) + math.log((len(w) - 1) / len(w)))
        ),
    },
)


# --- 14.E3: reweighted wake-sleep ---


def _wake_by_differences(log_joint: Tensor, z: Tensor, m: float, s: float) -> np.ndarray:
    """Differences of the weighted log density, by SciPy; the weights stay as they are."""
    log_weight = log_joint.numpy() - stats.norm.logpdf(z, m, s)
    weights = special.softmax(log_weight)

    def value(loc: float, log_scale: float) -> float:
        return float(weights @ stats.norm.logpdf(z, loc, math.exp(log_scale)))

    h, t = 1e-5, math.log(s)
    return np.array([(value(m + h, t) - value(m - h, t)) / (2 * h), (value(m, t + h) - value(m, t - h)) / (2 * h)])


def _wake(log_joint: Tensor, z: Tensor, m: float, s: float, weights: Tensor) -> Tensor:
    e = (z - m) / s
    return torch.stack([weights @ e / s, weights @ (e**2 - 1)])


def _log_weight(log_joint: Tensor, z: Tensor, m: float, s: float) -> Tensor:
    return log_joint + ((z - m) / s) ** 2 / 2


wake_slope = Exercise(
    "14.E3",
    "From log p(x, z) and z of K draws from N(m, s²): the encoder's update of reweighted wake–sleep, in m and log s, "
    "shape (2,).",
    _wake_by_differences,
    (
        (_normal(6, seed=9, loc=-30.0), _normal(6, seed=10, loc=0.5), 0.5, 1.3),
        (_normal(3, seed=11, scale=3.0, loc=-900.0), _normal(3, seed=12, scale=0.4, loc=-1.0), -1.0, 0.4),
    ),
    {
        "weights without log q": lambda p, z, m, s: _wake(p, z, m, s, p.softmax(0)),
        "equal weights": lambda p, z, m, s: _wake(p, z, m, s, torch.full_like(p, 1 / len(p))),
        "the slope in s, not in log s": lambda p, z, m, s: (
            _wake(p, z, m, s, _log_weight(p, z, m, s).softmax(0)) / torch.tensor([1.0, s], dtype=p.dtype)
        ),
        "1/s forgotten in m": lambda p, z, m, s: (
            _wake(p, z, m, s, _log_weight(p, z, m, s).softmax(0)) * torch.tensor([s, 1.0], dtype=p.dtype)
        ),
        "the sign of a loss": lambda p, z, m, s: -_wake(p, z, m, s, _log_weight(p, z, m, s).softmax(0)),
    },
)


# --- 14.E4: the mean of several bounds ---


def _groups_by_loops(log_weight: Tensor, num_groups: int) -> np.ndarray:
    """Group after group, by SciPy, with the 1/K inside of the sum."""
    parts = np.split(log_weight.numpy(), num_groups)
    return np.mean([special.logsumexp(part, axis=0, b=1 / len(part)) for part in parts], axis=0)


mean_of_bounds = Exercise(
    "14.E4",
    "From log weights (M·K, N) and M: the mean over M groups of K neighbouring draws of their IWAE bounds, (N,).",
    _groups_by_loops,
    (
        (_normal(12, 3, seed=13, loc=-20.0), 3),
        (_normal(6, 1, seed=14, scale=2.0, loc=-900.0), 2),
        (_normal(5, 2, seed=15), 5),
    ),
    {
        "one IWAE bound over all draws": lambda w, m: _whole(w),
        "the ELBO": lambda w, m: w.mean(0),
        "groups of M, not M groups": lambda w, m: _whole(w.reshape(m, -1, *w.shape[1:])).mean(0),
        "1/K forgotten in each group": lambda w, m: w.reshape(m, -1, *w.shape[1:]).logsumexp(1).mean(0),
        "1/(MK) in each group": lambda w, m: w.reshape(m, -1, *w.shape[1:]).logsumexp(1).mean(0) - math.log(len(w)),
    },
)
