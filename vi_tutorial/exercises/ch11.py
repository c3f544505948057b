"""Chapter 11: Gaussian likelihoods and the variance trap."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import integrate, optimize, stats
from torch import Tensor
from torch.distributions import Normal

from vi_tutorial.exercises import Exercise

__all__ = ["bits_per_pixel", "cell_log_prob", "learned_variance", "optimal_scale"]


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


def _log_mass(low: float, high: float) -> float:
    """log ∫ of the standard normal density from low to high, by quadrature relative to the highest point."""
    peak = min(max(0.0, low), high)
    reach = 60 / max(1.0, abs(peak)) if peak else 15.0
    ends = max(low, peak - reach), min(high, peak + reach)
    area = integrate.quad(lambda t: math.exp((peak**2 - t**2) / 2), *ends, epsabs=0, epsrel=1e-11, limit=200)[0]
    return math.log(area) - peak**2 / 2 - math.log(2 * math.pi) / 2


def _cells_by_quadrature(x: Tensor, loc: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    lower = torch.where(x == low, -math.inf, (x - 0.5 - loc) / scale)
    upper = torch.where(x == high, math.inf, (x + 0.5 - loc) / scale)
    pairs = zip(lower.flatten().tolist(), upper.flatten().tolist(), strict=True)
    masses = torch.tensor([_log_mass(a, b) for a, b in pairs], dtype=torch.float64)
    return masses.reshape(x.shape).sum(-1)


def _cells(x: Tensor, loc: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    standard = Normal(0.0, 1.0)
    upper = torch.where(x == high, 1.0, standard.cdf((x + 0.5 - loc) / scale))
    lower = torch.where(x == low, 0.0, standard.cdf((x - 0.5 - loc) / scale))
    return (upper - lower).log().sum(-1)


def _cell_case(
    seed: int, num_data: int, dim: int, low: int, high: int, far: float
) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """Cells from 0 to ``far`` standard deviations away from the location, on both sides of it."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(low, high + 1, (num_data, dim), generator=generator).double()
    x[0, 0], x[-1, -1] = low, high
    scale = torch.rand(num_data, dim, generator=generator, dtype=torch.float64) + 0.3
    distance = (2 * torch.rand(num_data, dim, generator=generator, dtype=torch.float64) - 1) * far
    return x, x + distance * scale, scale, low, high


cell_log_prob = Exercise(
    "11.E3",
    "log P(x) of integers low..high under a Normal rounded to the nearest of them, summed over the last dimension, and "
    "finite however many standard deviations away from the location.",
    _cells_by_quadrature,
    (_cell_case(0, 3, 4, 0, 16, 2.0), _cell_case(1, 2, 6, 0, 1, 30.0), _cell_case(2, 4, 3, -2, 2, 12.0)),
    {
        "the logarithm of a difference of two F, which far away are both 1": _cells,
        "the density at the integer: it is no probability": lambda x, m, s, low, high: Normal(m, s).log_prob(x).sum(-1),
        "the tails left out: the probabilities do not sum to one": lambda x, m, s, low, high: _cells_by_quadrature(
            x, m, s, low - 1, high + 1
        ),
        "the variance where the standard deviation belongs": lambda x, m, s, low, high: _cells_by_quadrature(
            x, m, s**2, low, high
        ),
        "the mean over the dimensions where the sum belongs": lambda x, m, s, low, high: (
            _cells_by_quadrature(x, m, s, low, high) / x.shape[-1]
        ),
    },
)


def _profile(variance: float, eigenvalues: Tensor, latent_dim: int, beta: float) -> float:
    """𝓛_β of the linear VAE at this variance, each direction's squared loading searched for on its own."""
    total = -len(eigenvalues) / 2 * math.log(2 * math.pi * variance)
    for i, size in enumerate(eigenvalues.tolist()):

        def direction(log_spread: float, size: float = size) -> float:
            """The best q(z | x) = N(b x, s²) for a loading w, with w² = βσ²(e^t − 1): 𝓛_β is quadratic in b."""
            w = math.sqrt(beta * variance * math.expm1(log_spread))
            b = w / (w**2 + beta * variance)
            s = math.sqrt(beta * variance / (w**2 + beta * variance))
            error = size * (1 - w * b) ** 2 + w**2 * s**2
            kl = (s**2 + size * b**2 - 1) / 2 - math.log(s)
            return error / (2 * variance) + beta * kl

        if i < latent_dim:
            found = optimize.minimize_scalar(direction, bounds=(0, 40), method="bounded", options={"xatol": 1e-10})
            total -= min(float(found.fun), direction(0.0))
        else:
            total -= size / (2 * variance)
    return total


def _variance_by_search(eigenvalues: Tensor, latent_dim: int, beta: float) -> float:
    """Climb 𝓛_β over the variance; the search over log σ² ends where the objective no longer tells values apart."""

    def loss(log_variance: float) -> float:
        return -_profile(math.exp(log_variance), eigenvalues, latent_dim, beta)

    centre = math.log(float(eigenvalues.mean()))
    return math.exp(
        optimize.minimize_scalar(loss, bounds=(centre - 6, centre + 1), method="bounded", options={"xatol": 1e-9}).x
    )


def _in_use(eigenvalues: Tensor, latent_dim: int, beta: float, num_used: int) -> float:
    """(11.10), given how many directions are in use."""
    return float(eigenvalues[num_used:].sum()) / (len(eigenvalues) - beta * num_used)


def _used_at_one(eigenvalues: Tensor, latent_dim: int, beta: float) -> float:
    start = _in_use(eigenvalues, latent_dim, 1.0, latent_dim)
    return _in_use(eigenvalues, latent_dim, beta, int((eigenvalues[:latent_dim] > beta * start).sum()))


_SPECTRUM = torch.tensor([9.0, 4.0, 2.0, 1.0, 0.6, 0.4], dtype=torch.float64)

learned_variance = Exercise(
    "11.E4",
    "The variance σ² at which the linear VAE with KL weight beta ends, for any beta: a direction is in use only while "
    "its eigenvalue (they come in descending order) is above beta times σ².",
    _variance_by_search,
    (
        (_SPECTRUM, 2, 1.0),
        (_SPECTRUM, 3, 1.4),
        (_SPECTRUM, 3, 1.9),
        (_SPECTRUM, 2, 4.0),
        (torch.tensor([5.0, 3.0, 0.5, 0.2], dtype=torch.float64), 3, 0.5),
    ),
    {
        "(11.10) with all directions in use, also where some have dropped out": lambda e, k, b: _in_use(e, k, b, k),
        "β = 1, whatever β is": lambda e, k, b: _in_use(e, k, 1.0, k),
        "the directions counted once, at the variance of β = 1": _used_at_one,
        "the standard deviation where the variance is asked for": lambda e, k, b: math.sqrt(
            _variance_by_search(e, k, b)
        ),
    },
    tolerance=1e-5,
)
