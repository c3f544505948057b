"""Chapter 12: how good is the model?"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor

from vi_tutorial.exercises import Exercise

__all__ = ["annealed_log_weight", "carve_up_the_kl", "samples_needed", "upper_bound"]


def _normal(*shape: int, seed: int, scale: float = 1.0, loc: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return loc + scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def _log_harmonic_mean(log_weight: Tensor) -> Tensor:
    """SciPy's harmonic mean of the weights, on a scale on which they neither under- nor overflow."""
    centre = log_weight.mean(0)
    return torch.as_tensor(np.log(stats.hmean((log_weight - centre).exp().numpy(), axis=0))) + centre


upper_bound = Exercise(
    "12.E1",
    "From log weights of reverse chains, (num_chains, N): the upper bound −log mean(1/w), one number per datapoint.",
    _log_harmonic_mean,
    (
        (_normal(50, 3, seed=0, scale=2.0, loc=-20.0),),
        (_normal(5, 1, seed=1, loc=-900.0),),
        (_normal(1, 4, seed=2, loc=-60.0),),
    ),
    {
        "the log of the mean weight: the rule for forward chains": lambda w: w.logsumexp(0) - math.log(len(w)),
        "the mean of the log weights: a bound too, but a looser one": lambda w: w.mean(0),
        "the number of chains forgotten": lambda w: -(-w).logsumexp(0),
        "the number of chains on the wrong side of the fraction": lambda w: -(-w).logsumexp(0) - math.log(len(w)),
        "the sign flipped: this estimates −log p(x)": lambda w: (-w).logsumexp(0) - math.log(len(w)),
        "one number for all datapoints: the mean must run over chains only": lambda w: (
            -(-w).flatten().logsumexp(0) + math.log(w.numel())
        ),
        "the exponential of −900: it underflows": lambda w: -(1 / w.exp()).mean(0).log(),
    },
)


def _by_ratios(log_prior: Tensor, log_likelihood: Tensor, beta: Tensor) -> Tensor:
    """A product of ratios of neighbouring densities, each ratio at one state, as the definition has it."""
    total = torch.zeros(log_prior.shape[1:], dtype=log_prior.dtype)
    log_joint = log_prior + log_likelihood
    for t in range(1, len(beta)):
        above = (1 - beta[t]) * log_prior[t - 1] + beta[t] * log_joint[t - 1]
        below = (1 - beta[t - 1]) * log_prior[t - 1] + beta[t - 1] * log_joint[t - 1]
        total = total + above - below
    return total


def _annealing_case(seed: int, num_temperatures: int, num_chains: int) -> tuple[Tensor, Tensor, Tensor]:
    beta = torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64) ** (1 + seed)
    shape = (num_temperatures + 1, num_chains)
    return _normal(*shape, seed=seed, loc=-2.0), _normal(*shape, seed=seed + 10, scale=8.0, loc=-30.0), beta


annealed_log_weight = Exercise(
    "12.E2",
    "The log weight of forward chains, (num_chains,), from log p(z_t) and log p(x | z_t) along them, both "
    "(T + 1, num_chains), and the temperatures β_0 = 0 to β_T = 1.",
    _by_ratios,
    (_annealing_case(0, 4, 3), _annealing_case(1, 7, 2), _annealing_case(2, 1, 5)),
    {
        "each ratio taken after the move, at z_t": lambda p, f, b: (b.diff()[:, None] * f[1:]).sum(0),
        "the trapezoidal rule: a good integral, but a weight must be unbiased": lambda p, f, b: (
            b.diff()[:, None] * (f[1:] + f[:-1]) / 2
        ).sum(0),
        "log p(x, z) for log p(x | z): the prior is in every rung and cancels": lambda p, f, b: (
            b.diff()[:, None] * (p + f)[:-1]
        ).sum(0),
        "the mean over the rungs where their weighted sum belongs": lambda p, f, b: f[:-1].mean(0),
        "the likelihood of the last state alone": lambda p, f, b: f[-1],
    },
)


def _carved(table: Tensor, prior: Tensor) -> np.ndarray:
    """By SciPy, the mutual information from three entropies: H(z) + H(n) − H(n, z)."""
    average = table.mean(0).numpy()
    joint = stats.entropy(table.numpy().ravel() / len(table))
    information = stats.entropy(average) + math.log(len(table)) - joint
    return np.array(
        [
            special.rel_entr(table.numpy(), prior.numpy()).sum(-1).mean(),
            information,
            stats.entropy(average, prior.numpy()),
        ]
    )


def _kl(q: Tensor, p: Tensor) -> Tensor:
    return (q * (q / p).log()).sum(-1)


def _table(seed: int, num_data: int, num_states: int) -> tuple[Tensor, Tensor]:
    return (
        (3 * _normal(num_data, num_states, seed=seed)).softmax(-1),
        _normal(num_states, seed=seed + 20).softmax(-1),
    )


carve_up_the_kl = Exercise(
    "12.E3",
    "From q(z | x_n) over finitely many states, (N, S), and the prior, (S,): mean KL, mutual information and marginal "
    "KL, shape (3,), nats.",
    _carved,
    (_table(0, 4, 3), _table(1, 10, 2), _table(2, 1, 5)),
    {
        "the mean KL in the place of the marginal one": lambda q, p: torch.stack(
            [_kl(q, p).mean(), _kl(q, q.mean(0)).mean(), _kl(q, p).mean()]
        ),
        "the mutual information measured from the prior": lambda q, p: torch.stack(
            [_kl(q, p).mean(), _kl(q, p).mean(), _kl(q.mean(0), p)]
        ),
        "the marginal KL the wrong way round": lambda q, p: torch.stack(
            [_kl(q, p).mean(), _kl(q, q.mean(0)).mean(), _kl(p, q.mean(0))]
        ),
        "sums over datapoints where means belong": lambda q, p: torch.stack(
            [_kl(q, p).sum(), _kl(q, q.mean(0)).sum(), _kl(q.sum(0), p)]
        ),
        "bits": lambda q, p: torch.stack([_kl(q, p).mean(), _kl(q, q.mean(0)).mean(), _kl(q.mean(0), p)]) / math.log(2),
    },
)


def _needed(log_weight: Tensor, tolerance: float) -> np.ndarray:
    """In extended precision, from NumPy's own variance of the weights divided by their mean."""
    scaled = np.exp((log_weight - log_weight.amax(0)).numpy().astype(np.longdouble))
    return np.ceil((np.var(scaled / scaled.mean(0), axis=0) / (2 * tolerance)).astype(np.float64))


def _relative(log_weight: Tensor) -> Tensor:
    return (log_weight - log_weight.logsumexp(0) + math.log(len(log_weight))).exp()


samples_needed = Exercise(
    "12.E4",
    "From log weights (K, N): how many samples bring the bias of importance sampling down to `tolerance` nats by the "
    "law Var(w/p)/2K, rounded up, shape (N,). Take the variance over K, not over K − 1.",
    _needed,
    (
        (_normal(400, 3, seed=3, scale=1.2, loc=-20.0), 0.01),
        (_normal(100, 1, seed=4, scale=0.5, loc=-800.0), 0.001),
        (_normal(50, 5, seed=5, scale=2.0, loc=-100.0), 0.1),
    ),
    {
        "the 2 forgotten": lambda w, t: (_relative(w).var(0, correction=0) / t).ceil(),
        "the variance of the log weights": lambda w, t: (w.var(0, correction=0) / (2 * t)).ceil(),
        "the standard deviation for the variance": lambda w, t: (_relative(w).std(0, correction=0) / (2 * t)).ceil(),
        "the law for the standard error, which falls as 1/√K": lambda w, t: (
            _relative(w).var(0, correction=0) / t**2
        ).ceil(),
        "weights that are not divided by their mean": lambda w, t: (w.exp().var(0, correction=0) / (2 * t)).ceil(),
    },
    tolerance=1e-9,
)
