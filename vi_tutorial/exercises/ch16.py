"""Chapter 16: richer posteriors and priors."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from vi_tutorial.exercises import Exercise
from vi_tutorial.quadrature import gauss_hermite

__all__ = ["best_normal_prior", "numbers_to_know", "radial_log_det", "top_layer"]


def _normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


numbers_to_know = Exercise(
    "16.E1",
    "Outputs of a planar encoder with L = 2 and six layers; outputs of a mixture encoder with three components and "
    "L = 10; gain of the best prior when the encoder ignores x and returns p(z); loss of a q on one of four peaks.",
    lambda: (34.0, 63.0, 0.0, math.log(4)),
    ((),),
    {
        "the base forgotten in (a)": lambda: (30.0, 63.0, 0.0, math.log(4)),
        "the weights of the mixture forgotten in (b)": lambda: (34.0, 60.0, 0.0, math.log(4)),
        "a covariance that is full in (b)": lambda: (34.0, 198.0, 0.0, math.log(4)),
        "a share of the mass in the place of its logarithm in (d)": lambda: (34.0, 63.0, 0.0, 0.75),
        "the four peaks of (d) for two": lambda: (34.0, 63.0, 0.0, math.log(2)),
    },
    tolerance=0.006,
)


def _radial(y: Tensor, centre: Tensor, alpha: float, beta: float) -> Tensor:
    return y + beta * (y - centre) / (alpha + torch.linalg.vector_norm(y - centre))


def _by_autodiff(y: Tensor, centre: Tensor, alpha: float, beta: float) -> Tensor:
    jacobian = torch.vmap(torch.func.jacrev(lambda point: _radial(point, centre, alpha, beta)))(y)
    return torch.linalg.slogdet(jacobian).logabsdet


def _pieces(y: Tensor, centre: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    distance = (y - centre).norm(dim=-1)
    h = 1 / (alpha + distance)
    return (1 + beta * h).log(), (1 + beta * h - beta * h**2 * distance).log(), (1 + beta * h + beta * h**2 * distance)


radial_log_det = Exercise(
    "16.E2",
    "log |det ∂f/∂y| of the radial layer f(y) = y + β (y − c) / (α + ‖y − c‖) at points y, (B, L): shape (B,).",
    _by_autodiff,
    (
        (_normal(6, 2, seed=0), _normal(2, seed=1), 1.0, 1.5),
        (_normal(4, 5, seed=2), torch.zeros(5, dtype=torch.float64), 0.5, -0.4),
        (_normal(3, 1, seed=3), _normal(1, seed=4), 2.0, 3.0),
    ),
    {
        "one sideways direction in every dimension: there are L − 1": lambda *a: _pieces(*a)[0] + _pieces(*a)[1],
        "all L directions stretched like the sideways ones": lambda *a: a[0].shape[-1] * _pieces(*a)[0],
        "the sign of the slope of 1 / (α + r)": lambda *a: (a[0].shape[-1] - 1) * _pieces(*a)[0] + _pieces(*a)[2].log(),
        "the radial direction alone": lambda *a: _pieces(*a)[1],
        "the log-determinant of the inverse": lambda *a: -_by_autodiff(*a),
    },
)


def _moments(mean: Tensor, scale: Tensor) -> Tensor:
    """By quadrature over each q, exact for what is quadratic."""
    points, weights = gauss_hermite(3, mean.shape[-1])
    z = mean + scale * points.to(mean).unsqueeze(1)
    mass = weights.to(mean).unsqueeze(1).expand(z.shape[:-1]) / len(mean)
    centre = torch.einsum("sn,sni->i", mass, z)
    return torch.einsum("sn,sni,snj->ij", mass, z - centre, z - centre)


best_normal_prior = Exercise(
    "16.E3",
    "Covariance (L, L) of the Normal prior that maximises the mean ELBO, from the means and standard deviations (N, L) "
    "of diagonal posteriors.",
    _moments,
    (
        (_normal(5, 2, seed=5, scale=2.0), _normal(5, 2, seed=6).exp()),
        (_normal(3, 4, seed=7), _normal(3, 4, seed=8, scale=0.3).exp()),
        (_normal(1, 2, seed=9), _normal(1, 2, seed=10).exp()),
    ),
    {
        "the spread of the means alone: a q is wide, too": lambda m, s: (m - m.mean(0)).T @ (m - m.mean(0)) / len(m),
        "the mean width alone: the means are spread, too": lambda m, s: s.square().mean(0).diag(),
        "the square of the mean scale for the mean square": lambda m, s: (
            s.mean(0).square().diag() + (m - m.mean(0)).T @ (m - m.mean(0)) / len(m)
        ),
        "the means not centred": lambda m, s: s.square().mean(0).diag() + m.T @ m / len(m),
        "a division by N − 1": lambda m, s: (
            s.square().mean(0).diag() + (m - m.mean(0)).T @ (m - m.mean(0)) / (len(m) - 1 or math.nan)
        ),
    },
)


def _by_torch(log_joint: Tensor, log_r: Tensor) -> Tensor:
    return kl_divergence(Categorical(logits=log_r), Categorical(logits=log_joint))


top_layer = Exercise(
    "16.E4",
    "What a top layer costs the bound, KL(r(m) ‖ p(m | z)) for each of N draws z, from log p(m, z) and log r(m | z), "
    "both (N, M): shape (N,).",
    _by_torch,
    (
        (_normal(4, 3, seed=11, scale=2.0) - 5, _normal(4, 3, seed=12).log_softmax(-1)),
        (_normal(1, 6, seed=13) - 800, _normal(1, 6, seed=14, scale=3.0).log_softmax(-1)),
    ),
    {
        "log p(m, z) taken for log p(m | z): divide by its sum": lambda p, r: (r.exp() * (r - p)).sum(-1),
        "the divergence the other way round": lambda p, r: _by_torch(r, p),
        "the entropy of r forgotten": lambda p, r: p.logsumexp(-1) - (r.exp() * p).sum(-1),
        "the sign": lambda p, r: -_by_torch(p, r),
        "a mean over states in the place of a sum": lambda p, r: (r.exp() * (r - p.log_softmax(-1))).mean(-1),
        "the exponential of −800: it underflows": lambda p, r: (p.exp().sum(-1)).log() - (r.exp() * (p - r)).sum(-1),
    },
)
