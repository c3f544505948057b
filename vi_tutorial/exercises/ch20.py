"""Chapter 20: the bug museum."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import LinearConstraint, milp
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from vi_tutorial.exercises import Exercise

__all__ = ["averaged_kl", "mixture_log_prob", "smallest_set", "stein_score"]


def _normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _averaged_by_torch(mean: Tensor, log_sigma: Tensor) -> Tensor:
    each = kl_divergence(Normal(mean, log_sigma.exp()), Normal(torch.zeros_like(mean), 1.0))
    return each.sum(-1) - each.mean(-1)


def _kl(mean: Tensor, log_sigma: Tensor) -> Tensor:
    return 0.5 * (mean**2 + (2 * log_sigma).exp() - 1) - log_sigma


averaged_kl = Exercise(
    "20.E1",
    "By how many nats a “bound” with the KL averaged over latents exceeds the ELBO, for q = N(mean, diag σ²).",
    _averaged_by_torch,
    (
        (_normal(3, 2, seed=0), _normal(3, 2, seed=1, scale=0.5)),
        (_normal(1, 5, seed=2), _normal(1, 5, seed=3, scale=0.5)),
        (_normal(4, 3, seed=4), _normal(4, 3, seed=5, scale=0.5)),
    ),
    {
        "the averaged KL: that is what is left, not what is lost": lambda m, s: _kl(m, s).mean(-1),
        "the whole KL": lambda m, s: _kl(m, s).sum(-1),
        "the wrong sign": lambda m, s: _kl(m, s).mean(-1) - _kl(m, s).sum(-1),
        "log σ where log σ² belongs": lambda m, s: 0.5 * (m**2 + (2 * s).exp() - 1 - s).sum(-1) * (1 - 1 / m.shape[-1]),
    },
)


def _mixture_by_torch(z: Tensor, logits: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return MixtureSameFamily(Categorical(logits=logits), Independent(Normal(loc, scale), 1)).log_prob(z)


def _mixture(dims_first: bool = True, weighted: bool = True) -> Callable[..., Tensor]:
    def log_prob(z: Tensor, logits: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        each = Normal(loc, scale).log_prob(z[:, None, :])
        share = logits.log_softmax(0) if weighted else -torch.full_like(logits, float(len(logits))).log()
        if dims_first:
            return (share + each.sum(-1)).logsumexp(1)
        return (share[:, None] + each).logsumexp(1).sum(-1)

    return log_prob


def _mixture_case(seed: int, num_points: int, num_components: int, dim: int) -> tuple[Tensor, ...]:
    scale = _normal(num_components, dim, seed=seed + 30, scale=0.3).exp()
    return (
        _normal(num_points, dim, seed=seed),
        _normal(num_components, seed=seed + 10),
        _normal(num_components, dim, seed=seed + 20, scale=2.0),
        scale,
    )


mixture_log_prob = Exercise(
    "20.E2",
    "The log density of a mixture of diagonal Normals at z (n, D); logits (C,), loc and scale (C, D).",
    _mixture_by_torch,
    (_mixture_case(0, 4, 2, 2), _mixture_case(1, 3, 5, 3), _mixture_case(2, 6, 3, 4)),
    {
        "the log-sum-exp in each dimension: components are chosen anew in each": _mixture(dims_first=False),
        "equal shares": _mixture(weighted=False),
        "a mean of log densities": lambda z, w, m, s: Normal(m, s).log_prob(z[:, None, :]).sum(-1) @ w.softmax(0),
        "logits that are not normalised": lambda z, w, m, s: (w + Normal(m, s).log_prob(z[:, None]).sum(-1)).logsumexp(
            1
        ),
    },
)


def _stein_by_numpy(z: Tensor, score: Tensor) -> float:
    products = np.multiply(z.numpy(), score.numpy()).astype(float).tolist()
    n = len(products)
    centre = sum(products) / n
    variance = sum((value - centre) ** 2 for value in products) / (n - 1)
    return (centre + 1) / (variance / n) ** 0.5


def _stein(shift: float = 1.0, per_root: bool = True) -> Callable[[Tensor, Tensor], Tensor]:
    def violation(z: Tensor, score: Tensor) -> Tensor:
        error = (z * score).std() / (len(z) ** 0.5 if per_root else 1)
        return ((z * score).mean() + shift) / error

    return violation


def _stein_case(seed: int, num: int, sampled: float, scored: float) -> tuple[Tensor, Tensor]:
    z = _normal(num, seed=seed, scale=sampled)
    return z, -z / scored**2


stein_score = Exercise(
    "20.E3",
    "By how many standard errors the mean of z · d log q(z)/dz misses −1, from draws z and scores (n,).",
    _stein_by_numpy,
    (_stein_case(0, 100, 1.0, 1.0), _stein_case(1, 50, 0.5, 0.25), _stein_case(2, 200, 2.0, 1.5)),
    {
        "the −1 left out": _stein(shift=0.0),
        "+1 where −1 belongs": _stein(shift=-1.0),
        "the standard deviation in place of the standard error": _stein(per_root=False),
        "the mean of the scores alone, which misses a wrong scale": lambda z, s: s.mean() / (s.std() / len(s) ** 0.5),
    },
)


def _cover_by_programming(caught: Tensor) -> int:
    """Integer programming: as few columns as possible, at least one of them in every row."""
    matrix = caught.numpy().astype(float)
    columns = matrix.shape[1]
    rows = LinearConstraint(matrix, lb=np.ones(len(matrix)))
    found = milp(np.ones(columns), constraints=rows, integrality=np.ones(columns), bounds=(0, 1))
    return round(found.fun)


def _greedy(caught: Tensor) -> int:
    left, chosen = caught.bool().clone(), 0
    while left.any():
        left = left[~left[:, left.sum(0).argmax()]]
        chosen += 1
    return chosen


def _cover_case(*rows: str) -> tuple[Tensor]:
    return (torch.tensor([[int(mark) for mark in row] for row in rows]).bool(),)


smallest_set = Exercise(
    "20.E4",
    "The size of the smallest set of checkers that catches every bug; caught (bugs, checkers) is boolean.",
    _cover_by_programming,
    (
        _cover_case("110", "011", "010"),
        # The greedy choice takes column 0, four of six, and then needs two more.
        _cover_case("110", "110", "101", "101", "010", "001"),
        _cover_case("1000", "0100", "0011", "0110"),
        _cover_case("10010", "01010", "00110", "00101", "10001", "01001"),
    ),
    {
        "one greedy choice after the other": _greedy,
        "every checker that catches something": lambda caught: int(caught.any(0).sum()),
        "the checkers that nothing can replace": lambda caught: int(caught[caught.sum(1) == 1].any(0).sum()),
    },
)
