"""Chapter 17: discrete latents."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from vi_tutorial.exercises import Exercise

__all__ = ["leave_one_out_gradient", "numbers_to_know", "perplexity", "soft_bit_gradient"]


def _normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


numbers_to_know = Exercise(
    "17.E1",
    "States of ten dice with three faces each; the KL term of a VQ-VAE with 512 codes, one code per image and a "
    "uniform prior; perplexity of a codebook used in the shares 1/2, 1/4, 1/4, 0; mean straight-through slope, in p, "
    "of f(z) = z² for a bit with p = 0.2.",
    lambda: (3.0**10, math.log(512), 2.0**1.5, 0.4),
    ((),),
    {
        "the dice added up in (a), where their states multiply": lambda: (30.0, math.log(512), 2.0**1.5, 0.4),
        "bits for nats in (b)": lambda: (3.0**10, 9.0, 2.0**1.5, 0.4),
        "a KL of 0 in (b): q is one-hot, the prior is not": lambda: (3.0**10, 0.0, 2.0**1.5, 0.4),
        "the number of used codes in (c)": lambda: (3.0**10, math.log(512), 3.0, 0.4),
        "the entropy in (c), not its exponential": lambda: (3.0**10, math.log(512), 1.5 * math.log(2), 0.4),
        "the true slope f(1) − f(0) in (d)": lambda: (3.0**10, math.log(512), 2.0**1.5, 1.0),
    },
    tolerance=0.006,
)


def _covariance(log_weight: Tensor, score: Tensor) -> np.ndarray:
    """The leave-one-out gradient is a sample covariance."""
    rows = np.vstack([log_weight.numpy(), score.numpy().T])
    return np.cov(rows)[0, 1:]


def _with_baseline(log_weight: Tensor, score: Tensor, baseline: Tensor) -> Tensor:
    return ((log_weight - baseline)[:, None] * score).mean(0)


leave_one_out_gradient = Exercise(
    "17.E2",
    "The leave-one-out gradient (L,) from the log weights (K,) and the scores (K, L) of K draws.",
    _covariance,
    (
        (_normal(4, seed=0) - 20, _normal(4, 3, seed=1)),
        (_normal(2, seed=2, scale=3.0), _normal(2, 8, seed=3)),
        (_normal(9, seed=4) - 300, _normal(9, 1, seed=5)),
    ),
    {
        "no baseline: the plain score function": lambda a, s: _with_baseline(a, s, torch.zeros_like(a)),
        "the own sample in the baseline": lambda a, s: _with_baseline(a, s, a.mean().expand(len(a))),
        "a sum over draws in the place of a mean": lambda a, s: len(a) * torch.from_numpy(_covariance(a, s)),
        "the baseline added": lambda a, s: _with_baseline(a, s, -(a.sum() - a) / (len(a) - 1)),
        "the sum of the others, not their mean": lambda a, s: _with_baseline(a, s, a.sum() - a),
    },
)


def _scipy_perplexity(index: Tensor, num_codes: int) -> float:
    return math.exp(stats.entropy(np.bincount(index.numpy(), minlength=num_codes)))


def _shares(index: Tensor, num_codes: int) -> Tensor:
    return torch.stack([(index == code).double().mean() for code in range(num_codes)])


perplexity = Exercise(
    "17.E3",
    "The perplexity of a codebook of M codes, from the code (N,) that each of N images uses: one number.",
    _scipy_perplexity,
    (
        (torch.tensor([0, 0, 1, 2]), 4),
        (torch.tensor([3, 3, 3]), 5),
        (torch.arange(60) % 7, 16),
        (torch.tensor([0, 1, 1, 1, 1, 1, 2, 2]), 3),
    ),
    {
        "the number of codes in use": lambda i, m: len(i.unique()),
        "the size of the codebook": lambda i, m: m,
        "the entropy, not its exponential": lambda i, m: math.log(_scipy_perplexity(i, m)),
        "0 log 0 taken as a number: it is 0 by its limit": lambda i, m: (
            (-_shares(i, m) * _shares(i, m).log()).sum().exp()
        ),
        "the inverse of Σ share², another count of codes": lambda i, m: 1 / _shares(i, m).square().sum(),
    },
)


def _soft_loss(logit: Tensor, u: Tensor, temperature: float) -> Tensor:
    """(z − 0.45)² at the soft bit; its slope is what is asked for."""
    z = 1 / (1 + ((torch.log1p(-u) - u.log() - logit) / temperature).exp())
    return (z - 0.45) ** 2


def _by_difference(logit: Tensor, u: Tensor, temperature: float, step: float = 1e-5) -> Tensor:
    up, down = (_soft_loss(logit + side * step, u, temperature) for side in (1, -1))
    return (up - down) / (2 * step)


def _soft(logit: Tensor, u: Tensor, temperature: float) -> Tensor:
    return torch.sigmoid((logit + torch.logit(u)) / temperature)


_U = torch.tensor([0.02, 0.3, 0.55, 0.8, 0.97], dtype=torch.float64)

soft_bit_gradient = Exercise(
    "17.E4",
    "The gradient, in the logit, of (z − 0.45)² at soft bits z = sigmoid((logit + log u − log(1 − u)) / τ), for "
    "uniform numbers u (K,): shape (K,), one for each u, not averaged.",
    _by_difference,
    (
        (torch.tensor(0.3, dtype=torch.float64), _U, 1.0),
        (torch.tensor(-1.0, dtype=torch.float64), _U, 0.5),
        (torch.tensor(0.0, dtype=torch.float64), _U, 2.0),
    ),
    {
        "the factor 1/τ forgotten": lambda a, u, t: 2 * (_soft(a, u, t) - 0.45) * _soft(a, u, t) * (1 - _soft(a, u, t)),
        "the slope of f alone": lambda a, u, t: 2 * (_soft(a, u, t) - 0.45),
        "the slope of the sigmoid at the probability, not at the draw": lambda a, u, t: (
            2 * (_soft(a, u, t) - 0.45) * torch.sigmoid(a) * (1 - torch.sigmoid(a))
        ),
        "u in the place of its logit": lambda a, u, t: (
            2 * (torch.sigmoid((a + u) / t) - 0.45) * torch.sigmoid((a + u) / t) * (1 - torch.sigmoid((a + u) / t)) / t
        ),
        "a mean over draws: each draw is asked for": lambda a, u, t: _by_difference(a, u, t).mean().expand(len(u)),
    },
)
