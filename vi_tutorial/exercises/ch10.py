"""Chapter 10: the variational autoencoder."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import Bernoulli, Normal
from torch.nn import functional

from vi_tutorial.exercises import Exercise

__all__ = ["completion", "implied_beta", "kl_to_prior", "log_evidence", "reparameterise"]


def _normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def _kl_by_quadrature(mean: Tensor, log_scale: Tensor) -> Tensor:
    """One integral per coordinate, summed over the last dimension."""

    def coordinate(loc: float, scale: float) -> float:
        q, p = stats.norm(loc, scale), stats.norm()
        value, _ = integrate.quad(
            lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), loc - 12 * scale, loc + 12 * scale, epsabs=1e-12
        )
        return float(value)

    pairs = zip(mean.reshape(-1).tolist(), log_scale.exp().reshape(-1).tolist(), strict=True)
    values = torch.tensor([coordinate(loc, scale) for loc, scale in pairs], dtype=torch.float64)
    return values.reshape(mean.shape).sum(-1)


def _kl(mean: Tensor, log_scale: Tensor, power: float = 2.0) -> Tensor:
    return 0.5 * (mean**2 + (power * log_scale).exp() - 1 - power * log_scale)


kl_to_prior = Exercise(
    "10.E1",
    "KL(q ‖ p) for q = N(mean, diag exp(log_scale)²) and the prior N(0, I): one number per datapoint.",
    _kl_by_quadrature,
    tuple(
        (_normal(*shape, seed=seed), _normal(*shape, seed=seed + 50, scale=0.7))
        for seed, shape in enumerate(((3, 2), (1, 5), (4, 1)))
    ),
    {
        "the mean over the latent dimensions where the sum belongs": lambda m, s: _kl(m, s).mean(-1),
        "log_scale read as the log variance": lambda m, s: _kl(m, s, power=1.0).sum(-1),
        "the sign flipped: a KL is never negative": lambda m, s: -_kl(m, s).sum(-1),
        "the sum over the batch as well: one number per datapoint is asked": lambda m, s: _kl(m, s).sum(),
    },
)


def _by_quantiles(mean: Tensor, log_variance: Tensor, epsilon: Tensor) -> Tensor:
    """The point of N(mean, exp(log_variance)) that stands at the same quantile as epsilon does in N(0, 1)."""
    quantile = stats.norm.cdf(epsilon.numpy())
    return torch.as_tensor(stats.norm.ppf(quantile, mean.numpy(), log_variance.exp().sqrt().numpy()))


reparameterise = Exercise(
    "10.E2",
    "A draw z from N(mean, diag exp(log_variance)), made from epsilon ~ N(0, I); log_variance is the log VARIANCE.",
    _by_quantiles,
    tuple(
        (_normal(*shape, seed=seed), _normal(*shape, seed=seed + 50), _normal(*shape, seed=seed + 90, scale=0.8))
        for seed, shape in enumerate(((4, 2), (3, 10), (1, 1)))
    ),
    {
        "the variance where the standard deviation belongs": lambda m, v, e: m + v.exp() * e,
        "the log standard deviation where the standard deviation belongs": lambda m, v, e: m + 0.5 * v * e,
        "the mean alone: this is the plain autoencoder": lambda m, v, e: m,
        "the noise alone: this is a draw around zero": lambda m, v, e: (0.5 * v).exp() * e,
    },
)


def _beta_by_gradients(
    weight: float, num_pixels: int, latent_dim: int, pixels_averaged: bool, latents_averaged: bool
) -> float:
    """Write the loss with torch's own reductions, and compare how hard it pulls on the two terms."""
    cross_entropy = torch.ones(7, num_pixels, dtype=torch.float64, requires_grad=True)
    kl = torch.ones(7, latent_dim, dtype=torch.float64, requires_grad=True)
    pixels, latents = (torch.mean if averaged else torch.sum for averaged in (pixels_averaged, latents_averaged))
    loss = (pixels(cross_entropy, -1) + weight * latents(kl, -1)).mean()
    on_pixels, on_kl = torch.autograd.grad(loss, (cross_entropy, kl))
    return float(on_kl[0, 0] / on_pixels[0, 0])


implied_beta = Exercise(
    "10.E3",
    "The β for which −E_q[log p(x|z)] + β KL has the same optima as a loss with these reductions and this KL weight.",
    _beta_by_gradients,
    (
        (1.0, 64, 2, False, False),
        (1.0, 64, 10, True, False),
        (1.0, 64, 10, False, True),
        (0.00025, 12288, 128, True, False),
        (0.5, 784, 20, True, True),
    ),
    {
        "the weight itself, whatever the reductions": lambda w, d, n, a, b: w,
        "the weight divided by the number of pixels, where it is multiplied": lambda w, d, n, a, b: (
            w / (d if a else 1) / (n if b else 1)
        ),
        "the average over latent dimensions forgotten": lambda w, d, n, a, b: w * (d if a else 1),
        "the average over pixels forgotten": lambda w, d, n, a, b: w / (n if b else 1),
    },
)


def _evidence_by_torch(x: Tensor, logits: Tensor, log_prior: Tensor, cell: float) -> Tensor:
    """Every digit against every grid point, through the whole broadcast."""
    likelihood = Bernoulli(logits=logits).log_prob(x[:, None, :]).sum(-1)
    return torch.stack([(row + log_prior).exp().mul(cell).sum().log() for row in likelihood])


def _table(x: Tensor, logits: Tensor, log_prior: Tensor) -> Tensor:
    return x @ logits.T - functional.softplus(logits).sum(-1) + log_prior


def _grid_case(seed: int, num_data: int, data_dim: int, side: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Binary data and a small random decoder on a grid that covers the plane."""
    axis = torch.linspace(-6, 6, side, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    logits = torch.tanh(z @ _normal(2, 5, seed=seed)) @ _normal(5, data_dim, seed=seed + 1)
    x = (_normal(num_data, data_dim, seed=seed + 2) > 0).double()
    log_prior = Normal(0.0, 1.0).log_prob(z).sum(-1)
    return x, logits, log_prior, float((axis[1] - axis[0]) ** 2)


log_evidence = Exercise(
    "10.E4",
    "log p(x) of each digit from the decoder's logits and the log prior on a grid of cells.",
    _evidence_by_torch,
    (_grid_case(0, 3, 6, 21), _grid_case(1, 1, 12, 31), _grid_case(2, 5, 4, 25)),
    {
        "the normaliser Σ softplus(logits) left out": lambda x, t, p, c: (x @ t.T + p).logsumexp(-1) + math.log(c),
        "the prior left out": lambda x, t, p, c: _table(x, t, 0 * p).logsumexp(-1) + math.log(c),
        "the area of a cell left out": lambda x, t, p, c: _table(x, t, p).logsumexp(-1),
        "the largest summand instead of the sum": lambda x, t, p, c: _table(x, t, p).amax(-1) + math.log(c),
        "the mean of the logs instead of the log of the sum": lambda x, t, p, c: _table(x, t, p).mean(-1),
    },
)


def _completion_by_bayes(x: Tensor, observed: Tensor, logits: Tensor, log_prior: Tensor) -> Tensor:
    """p(x_d = 1 | observed pixels): probabilities multiplied pixel by pixel, then Bayes' rule on the grid."""
    on = torch.sigmoid(logits)
    rows = []
    for digit in x:
        weight = log_prior.exp()
        for d in torch.nonzero(observed).reshape(-1).tolist():
            weight = weight * (on[:, d] if digit[d] == 1 else 1 - on[:, d])
        rows.append((weight[:, None] * on).sum(0) / weight.sum())
    return torch.stack(rows)


def _completion(
    mask: Callable[[Tensor], Tensor] = lambda observed: observed, mode: bool = False, prior: float = 1.0
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def complete(x: Tensor, observed: Tensor, logits: Tensor, log_prior: Tensor) -> Tensor:
        seen = mask(observed)
        table = _table(x[:, seen], logits[:, seen], prior * log_prior)
        weight = functional.one_hot(table.argmax(-1), len(logits)).double() if mode else table.softmax(-1)
        return weight @ torch.sigmoid(logits)

    return complete


def _completion_case(seed: int, num_data: int, data_dim: int, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, logits, log_prior, _ = _grid_case(seed, num_data, data_dim, side)
    return x, torch.arange(data_dim) < data_dim // 2, logits, log_prior


completion = Exercise(
    "10.E5",
    "p(x_d = 1 | the observed pixels) for every pixel, by the exact posterior on the grid.",
    _completion_by_bayes,
    (_completion_case(3, 2, 8, 21), _completion_case(4, 3, 10, 25)),
    {
        "the missing pixels taken for observed zeros": lambda x, seen, t, p: _completion(mask=torch.ones_like)(
            x * seen, seen, t, p
        ),
        "the single best z instead of the average over the posterior": _completion(mode=True),
        "the prior left out": _completion(prior=0.0),
        "the logits averaged, and squashed afterwards": lambda x, seen, t, p: torch.sigmoid(
            _table(x[:, seen], t[:, seen], p).softmax(-1) @ t
        ),
        "the prior alone: the observed pixels are not used": lambda x, seen, t, p: (
            p.softmax(-1) @ torch.sigmoid(t)
        ).expand(len(x), -1),
    },
)
