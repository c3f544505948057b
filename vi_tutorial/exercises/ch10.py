"""Chapter 10: the variational autoencoder."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.nn import functional

from vi_tutorial.exercises import Exercise

__all__ = ["completion", "implied_beta", "kl_to_prior", "posterior_covariance", "reparameterise"]


def _normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def _kl_by_torch(mean: Tensor, scale_tril: Tensor) -> Tensor:
    """Both as full-covariance normals: torch solves a triangular system for it."""
    prior = MultivariateNormal(torch.zeros_like(mean), torch.eye(mean.shape[-1], dtype=mean.dtype))
    return kl_divergence(MultivariateNormal(mean, scale_tril=scale_tril), prior)


def _kl(mean: Tensor, spread: Tensor, log_det: Tensor) -> Tensor:
    """½ (‖μ‖² + tr Σ − L − log det Σ) from tr Σ and log det Σ."""
    return 0.5 * (mean.square().sum(-1) + spread - mean.shape[-1] - log_det)


def _widths(tril: Tensor) -> Tensor:
    return tril.diagonal(dim1=-2, dim2=-1)


def _squares(tril: Tensor) -> Tensor:
    return tril.square().sum((-2, -1))


def _kl_case(seed: int, num_data: int, latent_dim: int) -> tuple[Tensor, Tensor]:
    tril = _normal(num_data, latent_dim, latent_dim, seed=seed + 50).tril(-1)
    widths = _normal(num_data, latent_dim, seed=seed + 70, scale=0.7).exp()
    return _normal(num_data, latent_dim, seed=seed), tril + torch.diag_embed(widths)


kl_to_prior = Exercise(
    "10.E1",
    "KL(q ‖ p) for q = N(mean, C Cᵀ), C lower triangular, and the prior N(0, I): one number per datapoint.",
    _kl_by_torch,
    (_kl_case(0, 3, 2), _kl_case(1, 1, 5), _kl_case(2, 4, 3)),
    {
        "the entries below the diagonal left out of the trace": lambda m, c: _kl(
            m, _widths(c).square().sum(-1), 2 * _widths(c).log().sum(-1)
        ),
        "log det C where log det C Cᵀ belongs": lambda m, c: _kl(m, _squares(c), _widths(c).log().sum(-1)),
        "the trace of C where the trace of C Cᵀ belongs": lambda m, c: _kl(
            m, _widths(c).sum(-1), 2 * _widths(c).log().sum(-1)
        ),
        "the mean over the latent dimensions where the sum belongs": lambda m, c: (
            _kl(m, _squares(c), 2 * _widths(c).log().sum(-1)) / m.shape[-1]
        ),
        "the sign flipped: a KL is never negative": lambda m, c: -_kl(m, _squares(c), 2 * _widths(c).log().sum(-1)),
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


def _posterior_on_grid(x: Tensor, observed: Tensor, on: Tensor, log_prior: Tensor) -> Tensor:
    """Bayes' rule for one digit: probabilities multiplied pixel by pixel at every grid point, then normalised."""
    weight = log_prior.exp()
    for d in torch.nonzero(observed).reshape(-1).tolist():
        weight = weight * (on[:, d] if x[d] == 1 else 1 - on[:, d])
    return weight / weight.sum()


def _covariance_by_numpy(x: Tensor, z: Tensor, logits: Tensor, log_prior: Tensor) -> Tensor:
    """numpy's covariance of the grid points, each counted with its posterior weight."""
    on, everything = torch.sigmoid(logits), torch.ones(logits.shape[-1])
    weights = [_posterior_on_grid(digit, everything, on, log_prior).numpy() for digit in x]
    return torch.stack([torch.as_tensor(np.cov(z.numpy().T, aweights=weight, ddof=0)) for weight in weights])


def _table(x: Tensor, logits: Tensor, log_prior: Tensor) -> Tensor:
    return x @ logits.T - functional.softplus(logits).sum(-1) + log_prior


def _covariance(weight: Tensor, z: Tensor, centred: bool = True) -> Tensor:
    second = torch.einsum("bg,gi,gj->bij", weight, z, z)
    mean = weight @ z
    return second - mean[:, :, None] * mean[:, None, :] if centred else second


def _grid_case(seed: int, num_data: int, data_dim: int, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Binary data and a small random decoder on a grid that covers the plane."""
    axis = torch.linspace(-6, 6, side, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    logits = torch.tanh(z @ _normal(2, 5, seed=seed)) @ _normal(5, data_dim, seed=seed + 1)
    x = (_normal(num_data, data_dim, seed=seed + 2) > 0).double()
    log_prior = Normal(0.0, 1.0).log_prob(z).sum(-1)
    return x, z, logits, log_prior


posterior_covariance = Exercise(
    "10.E4",
    "The covariance matrix of the exact posterior p(z|x) of each digit, from the decoder's logits on a grid.",
    _covariance_by_numpy,
    (_grid_case(0, 3, 6, 21), _grid_case(1, 1, 12, 31), _grid_case(2, 5, 4, 25)),
    {
        "the normaliser Σ softplus(logits) left out": lambda x, z, t, p: _covariance((x @ t.T + p).softmax(-1), z),
        "the prior left out": lambda x, z, t, p: _covariance(_table(x, t, 0 * p).softmax(-1), z),
        "the second moment: the mean has not been subtracted": lambda x, z, t, p: _covariance(
            _table(x, t, p).softmax(-1), z, centred=False
        ),
        "the prior alone: the digit is not used": lambda x, z, t, p: _covariance(p.softmax(-1).expand(len(x), -1), z),
    },
)


def _completion_by_bayes(x: Tensor, observed: Tensor, logits: Tensor, log_prior: Tensor) -> Tensor:
    """p(x_d = 1 | observed pixels): a pixel that is seen is known; the others by Bayes' rule on the grid."""
    on = torch.sigmoid(logits)
    rows = [(_posterior_on_grid(digit, observed, on, log_prior)[:, None] * on).sum(0) for digit in x]
    return torch.where(observed, x, torch.stack(rows))


def _completion(
    mask: Callable[[Tensor], Tensor] = lambda observed: observed,
    mode: bool = False,
    prior: float = 1.0,
    logits_averaged: bool = False,
    known: bool = True,
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def complete(x: Tensor, observed: Tensor, logits: Tensor, log_prior: Tensor) -> Tensor:
        seen = mask(observed)
        table = _table((x * observed)[:, seen], logits[:, seen], prior * log_prior)
        weight = functional.one_hot(table.argmax(-1), len(logits)).double() if mode else table.softmax(-1)
        on = torch.sigmoid(weight @ logits) if logits_averaged else weight @ torch.sigmoid(logits)
        return torch.where(observed, x, on) if known else on

    return complete


def _completion_case(seed: int, num_data: int, data_dim: int, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, _, logits, log_prior = _grid_case(seed, num_data, data_dim, side)
    return x, torch.rand(data_dim, generator=torch.Generator().manual_seed(seed)) < 0.5, logits, log_prior


completion = Exercise(
    "10.E5",
    "p(x_d = 1 | the observed pixels) for every pixel, by the exact posterior on the grid.",
    _completion_by_bayes,
    (_completion_case(3, 2, 8, 21), _completion_case(4, 3, 10, 25), _completion_case(5, 4, 9, 21)),
    {
        "the observed pixels predicted too: they are known": _completion(known=False),
        "the missing pixels taken for observed zeros": _completion(mask=torch.ones_like),
        "the single best z instead of the average over the posterior": _completion(mode=True),
        "the prior left out": _completion(prior=0.0),
        "the logits averaged, and squashed afterwards": _completion(logits_averaged=True),
        "the prior alone: the observed pixels are not used": _completion(mask=torch.zeros_like),
    },
)
