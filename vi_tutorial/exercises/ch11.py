"""Chapter 11: Gaussian likelihoods and the variance trap."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import integrate, optimize, stats
from torch import Tensor
from torch.distributions import Normal

from vi_tutorial.distributions import discretised_normal
from vi_tutorial.exercises import Exercise

__all__ = ["bits_per_pixel", "cell_log_prob", "noise_ceiling", "optimal_scale"]


def _normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def _scale_by_search(x: Tensor, reconstructions: Tensor) -> float:
    """Maximise SciPy's normal log density over one standard deviation."""
    data, means = x.numpy(), reconstructions.numpy()

    def loss(log_scale: float) -> float:
        return -float(stats.norm.logpdf(data, means, np.exp(log_scale)).mean())

    return float(np.exp(optimize.minimize_scalar(loss, bracket=(-3, 3), tol=1e-12).x))


def _case(seed: int, num_samples: int, num_data: int, dim: int) -> tuple[Tensor, Tensor]:
    x = _normal(num_data, dim, seed=seed, scale=2.0)
    return x, x + 0.5 + _normal(num_samples, num_data, dim, seed=seed + 1, scale=0.7)


optimal_scale = Exercise(
    "11.E1",
    "The shared standard deviation that maximises E_q log N(x | f(z), σ²), from K reconstructions of each datapoint.",
    _scale_by_search,
    (_case(0, 5, 4, 3), _case(2, 20, 7, 10), _case(4, 2, 1, 64)),
    {
        "the error of the average reconstruction: the spread of q is lost": lambda x, f: (
            ((x - f.mean(0)) ** 2).mean().sqrt()
        ),
        "the variance where the standard deviation is asked for": lambda x, f: ((x - f) ** 2).mean(),
        "the squared error summed over the dimensions": lambda x, f: ((x - f) ** 2).sum(-1).mean().sqrt(),
        "the mean absolute error: that is a Laplace likelihood's scale": lambda x, f: (x - f).abs().mean(),
    },
)


def _bits_on_counts(scaled: Tensor, loc: Tensor, scale: Tensor, width: float) -> Tensor:
    """Move the Normal to the units of the counts, and score the counts there."""
    density = Normal(loc * width, scale * width)
    return -density.log_prob(scaled * width).mean(-1) / math.log(2)


def _bits(scaled: Tensor, loc: Tensor, scale: Tensor, correction: float) -> Tensor:
    return (correction - Normal(loc, scale).log_prob(scaled).mean(-1)) / math.log(2)


def _bits_case(seed: int, num_data: int, dim: int, width: float) -> tuple[Tensor, Tensor, Tensor, float]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(num_data, dim, generator=generator, dtype=torch.float64)
    return x, x + _normal(num_data, dim, seed=seed, scale=0.1), _normal(dim, seed=seed).mul(0.3).sub(2).exp(), width


bits_per_pixel = Exercise(
    "11.E2",
    "Bits per pixel, in units of the counts, of x = (counts + u) / width under N(loc, scale²) on the unit interval.",
    _bits_on_counts,
    (_bits_case(0, 3, 5, 17.0), _bits_case(1, 2, 12, 256.0), _bits_case(2, 4, 1, 17.0)),
    {
        "the change of units forgotten": lambda x, m, s, w: _bits(x, m, s, 0.0),
        "the change of units with the wrong sign": lambda x, m, s, w: _bits(x, m, s, -math.log(w)),
        "the change of units counted once per image, not once per pixel": lambda x, m, s, w: _bits(
            x, m, s, math.log(w) / x.shape[-1]
        ),
        "nats where bits are asked for": lambda x, m, s, w: _bits(x, m, s, math.log(w)) * math.log(2),
    },
)


def _cells(x: Tensor, loc: Tensor, scale: Tensor, low: int, high: int, fold: bool = True) -> Tensor:
    standard = Normal(0.0, 1.0)
    upper, lower = standard.cdf((x + 0.5 - loc) / scale), standard.cdf((x - 0.5 - loc) / scale)
    if fold:
        upper = torch.where(x == high, torch.ones_like(upper), upper)
        lower = torch.where(x == low, torch.zeros_like(lower), lower)
    return (upper - lower).log().sum(-1)


def _cell_case(seed: int, num_data: int, dim: int, low: int, high: int) -> tuple[Tensor, Tensor, Tensor, int, int]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(low, high + 1, (num_data, dim), generator=generator).double()
    x[0, 0], x[-1, -1] = low, high
    scale = torch.rand(num_data, dim, generator=generator, dtype=torch.float64) + 0.8
    return x, x + _normal(num_data, dim, seed=seed), scale, low, high


cell_log_prob = Exercise(
    "11.E3",
    "log P(x) of integers low..high under a Normal whose cells k ± ½ are summed, the two outer cells taking the tails.",
    lambda x, loc, scale, low, high: discretised_normal(loc, scale, low, high).log_prob(x),
    (_cell_case(0, 3, 4, 0, 16), _cell_case(1, 2, 6, 0, 1), _cell_case(2, 4, 3, -2, 2)),
    {
        "the density at the integer: it is no probability": lambda x, m, s, low, high: Normal(m, s).log_prob(x).sum(-1),
        "the tails left out: the probabilities do not sum to one": lambda x, m, s, low, high: _cells(
            x, m, s, low, high, fold=False
        ),
        "the variance where the standard deviation belongs": lambda x, m, s, low, high: _cells(x, m, s**2, low, high),
        "the mean over the dimensions where the sum belongs": lambda x, m, s, low, high: (
            _cells(x, m, s, low, high) / x.shape[-1]
        ),
    },
)


def _ceiling_by_quadrature(probs: Tensor, noise_scale: float) -> float:
    """E log p under p itself: the density of value + noise, with the values 100 standard deviations apart."""
    places = 100 * noise_scale * np.arange(len(probs))

    def integrand(x: float) -> float:
        density = float((probs.numpy() * stats.norm.pdf(x, places, noise_scale)).sum())
        return density * math.log(density)

    near = 12 * noise_scale
    return sum(integrate.quad(integrand, c - near, c + near, epsabs=1e-11, limit=200)[0] for c in places)


def _ceiling(probs: Tensor, noise_scale: float, entropy: float = 1.0, e: float = 1.0) -> float:
    own = -float(torch.special.entr(probs).sum())
    return entropy * own - 0.5 * (math.log(2 * math.pi * noise_scale**2) + e)


noise_ceiling = Exercise(
    "11.E4",
    "The highest E log p(x + noise) that any density p can reach, for a few far-apart values with these "
    "probabilities and noise N(0, noise_scale²).",
    _ceiling_by_quadrature,
    (
        (torch.tensor([0.5, 0.5], dtype=torch.float64), 0.1),
        (torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), 1.0),
        (torch.tensor([0.9, 0.05, 0.03, 0.02], dtype=torch.float64), 0.01),
    ),
    {
        "the noise alone: the entropy of the values still lowers it": lambda p, s: _ceiling(p, s, entropy=0.0),
        "the entropy of the values added where it is subtracted": lambda p, s: _ceiling(p, s, entropy=-1.0),
        "the density at its peak, log N(0 | 0, s²): the e is missing": lambda p, s: _ceiling(p, s, e=0.0),
        "the variance where the standard deviation belongs": lambda p, s: _ceiling(p, math.sqrt(s)),
    },
    tolerance=1e-5,
)
