"""Chapter 01: the ELBO."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize, special, stats
from torch import Tensor
from torch.distributions import Categorical, Gamma, kl_divergence

from vi_tutorial.exercises import Exercise

__all__ = ["flat_weights", "kl_categorical", "log_density_of_exp", "pick_or_cover", "poisson_elbo"]


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _scalars(*values: float) -> tuple[Tensor, ...]:
    """Tensors of shape (), so that an answer may call torch.log on them."""
    return tuple(torch.tensor(value, dtype=torch.float64) for value in values)


def _kl_terms(q: Tensor, p: Tensor) -> Tensor:
    return torch.where(q > 0, q * (q.clamp(min=1e-300) / p).log(), 0.0)


kl_categorical = Exercise(
    "01.E1",
    "KL(q‖p) in nats between two distributions over the same few outcomes, given as vectors of probabilities.",
    lambda q, p: kl_divergence(Categorical(probs=q), Categorical(probs=p)),
    (
        (_vector(0.75, 0.25), _vector(0.5, 0.5)),
        (_vector(0.2, 0.3, 0.5), _vector(0.6, 0.3, 0.1)),
        (_vector(0.0, 0.5, 0.25, 0.25), _vector(0.1, 0.2, 0.3, 0.4)),
    ),
    {
        "the arguments exchanged": lambda q, p: torch.where(
            q > 0, p * (p / q.clamp(min=1e-300)).log(), torch.inf
        ).sum(),
        "logarithms to base 2: that is in bits": lambda q, p: _kl_terms(q, p).sum() / math.log(2),
        "a mean over the outcomes where a sum belongs": lambda q, p: _kl_terms(q, p).mean(),
        "the cross-entropy: E_q[log q] is missing": lambda q, p: -(q * p.log()).sum(),
        "an outcome that q never produces, where 0 · log 0 should count as 0": lambda q, p: (q * (q / p).log()).sum(),
    },
)


def _poisson_log_joint(x: Tensor, a: Tensor, b: Tensor, u: NDArray[np.float64]) -> NDArray[np.float64]:
    """log p(x, z) at z = exp(u), with SciPy's densities."""
    z = np.exp(u)
    return np.asarray(
        stats.poisson.logpmf(x.numpy()[:, None], z).sum(0) + stats.gamma(float(a), scale=1 / float(b)).logpdf(z)
    )


def _poisson_elbo(x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> float:
    """∫ q log w dz, by the trapezoid rule over log z."""
    reach = 10 / math.sqrt(c)
    u = math.log(c / d) + np.linspace(-3 * reach, reach, 4001)
    log_q = stats.gamma(float(c), scale=1 / float(d)).logpdf(np.exp(u))
    return float(np.trapezoid(np.exp(log_q + u) * (_poisson_log_joint(x, a, b, u) - log_q), u))


def _log_factorials(x: Tensor) -> float:
    return float(special.gammaln(x.numpy() + 1).sum())


_COUNTS = _vector(3, 5, 4, 7)

poisson_elbo = Exercise(
    "01.E2",
    "The ELBO in nats of x_d ~ Poisson(z), z ~ Gamma(a, rate b), for q(z) = Gamma(c, rate d), in closed form.",
    _poisson_elbo,
    (
        (_COUNTS, *_scalars(2.0, 1.0, 6.0, 1.5)),
        (_COUNTS, *_scalars(2.0, 1.0, 21.0, 5.0)),
        (_vector(0, 1, 0, 0, 2, 0, 1, 0), *_scalars(1.5, 2.0, 3.0, 4.0)),
        (_vector(12), *_scalars(3.0, 0.5, 10.0, 1.0)),
    ),
    {
        "log x! left out": lambda x, a, b, c, d: _poisson_elbo(x, a, b, c, d) + _log_factorials(x),
        "log E[z] where E[log z] belongs": lambda x, a, b, c, d: (
            _poisson_elbo(x, a, b, c, d) + (x.sum().item() + a - 1) * (c.log() - c.digamma()).item()
        ),
        "the entropy of q left out": lambda x, a, b, c, d: _poisson_elbo(x, a, b, c, d) - Gamma(c, d).entropy().item(),
        "the entropy of q subtracted": lambda x, a, b, c, d: (
            _poisson_elbo(x, a, b, c, d) - 2 * Gamma(c, d).entropy().item()
        ),
        "the KL added to the expected log-likelihood": lambda x, a, b, c, d: (
            _poisson_elbo(x, a, b, c, d) + 2 * kl_divergence(Gamma(c, d), Gamma(a, b)).item()
        ),
        "the sign of the whole flipped: that is a loss": lambda x, a, b, c, d: -_poisson_elbo(x, a, b, c, d),
    },
)


def _posterior_by_moments(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The posterior's mean and variance by quadrature over log z, matched by a Gamma."""
    u = np.linspace(-8, 6, 40_001)
    z = np.exp(u)
    log_joint = _poisson_log_joint(x, a, b, u) + u
    mass = np.exp(log_joint - log_joint.max())
    mass /= mass.sum()
    mean = mass @ z
    variance = mass @ (z - mean) ** 2
    return _vector(mean**2 / variance, mean / variance)


flat_weights = Exercise(
    "01.E3",
    "The pair (c, d) for which all log weights of the Poisson model of E2 are the same number.",
    _posterior_by_moments,
    (
        (_COUNTS, *_scalars(2.0, 1.0)),
        (_vector(0, 1, 0, 0, 2, 0, 1, 0), *_scalars(1.5, 2.0)),
        (_vector(12), *_scalars(3.0, 0.5)),
    ),
    {
        "the prior: its log weights are the log-likelihood, which is not flat": lambda x, a, b: _vector(a, b),
        "the mean of x where its sum belongs": lambda x, a, b: _vector(a + x.mean().item(), b + 1),
        "the second parameter taken for a scale": lambda x, a, b: _vector(a + x.sum().item(), 1 / (b + len(x))),
        "the largest log joint matched, not its shape: the −1 of the exponent counted twice": lambda x, a, b: _vector(
            a + x.sum().item() - 1, b + len(x)
        ),
        "the prior's rate forgotten": lambda x, a, b: _vector(a + x.sum().item(), len(x)),
    },
    tolerance=1e-4,
)


def _normal(u: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return -0.5 * ((u - loc) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


log_density_of_exp = Exercise(
    "01.E4",
    "The log density of z = exp(u) at given z, in nats, where u ~ N(loc, scale²).",
    lambda z, loc, scale: stats.lognorm(s=float(scale), scale=math.exp(loc)).logpdf(z.numpy()),
    (
        (_vector(0.5, 2.0, 3.0), *_scalars(0.0, 1.0)),
        (_vector(0.1, 7.0), *_scalars(1.2, 0.4)),
        (_vector(4.0), *_scalars(-0.5, 2.0)),
    ),
    {
        "the Jacobian forgotten": lambda z, loc, scale: _normal(z.log(), loc, scale),
        "the Jacobian's sign flipped": lambda z, loc, scale: _normal(z.log(), loc, scale) + z.log(),
        "1/z where its logarithm belongs": lambda z, loc, scale: _normal(z.log(), loc, scale) - 1 / z,
        "u = exp(z): the inverse of the map is log": lambda z, loc, scale: _normal(z.exp(), loc, scale) - z.log(),
        "the normal density at z itself": lambda z, loc, scale: _normal(z, loc, scale),
    },
)


_GRID = np.linspace(-16, 16, 1601)


def _reverse_kl(half_distance: float, loc: float, log_scale: float) -> float:
    """KL(q‖p) on a grid, for p = ½ N(−d, 1) + ½ N(d, 1) and q = N(loc, scale²)."""
    log_q = stats.norm(loc, math.exp(log_scale)).logpdf(_GRID)
    log_p = np.logaddexp(stats.norm(-half_distance).logpdf(_GRID), stats.norm(half_distance).logpdf(_GRID))
    return float(np.trapezoid(np.exp(log_q) * (log_q - log_p + math.log(2)), _GRID))


@lru_cache
def _separation() -> float:
    def middle_minus_side(half_distance: float) -> float:
        start = ([0.0, math.log(half_distance)], [half_distance, 0.0])
        middle, side = (optimize.minimize(lambda t: _reverse_kl(half_distance, *t), s).fun for s in start)
        return float(middle - side)

    return float(optimize.brentq(middle_minus_side, 2.6, 3.0, xtol=1e-5))


pick_or_cover = Exercise(
    "01.E5",
    "The half distance d between two equal modes of sd 1 at which covering both and picking one cost q the same.",
    _separation,
    ((),),
    {
        "the whole distance, 2d": lambda: 2 * _separation(),
        "the d at which p first has two modes": lambda: 1.0,
        "the d at which q first can settle on one mode, though that still costs more": lambda: 2.413,
        "log 2 for the price of one mode: it is a little less, since the other reaches over": lambda: 2.812,
    },
    tolerance=2e-3,
)
