"""Chapter 10: the variational autoencoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.nn import functional

from vi_tutorial.exercises import Exercise, Verdict
from vi_tutorial.networks import DiagonalNormalHead, FullNormalHead

__all__ = ["completion", "kl_to_prior", "kl_weight", "numbers_to_know"]


def _normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def _numbers() -> tuple[float, float, float, float]:
    """Asked of the heads themselves, and of torch's KL at two small widths."""
    zero, one, prior = torch.zeros(10).double(), torch.ones(10).double(), Normal(0.0, 1.0)
    at_prior, wide, narrow = (kl_divergence(Normal(zero, s * one), prior).sum().item() for s in (1.0, 1e-6, 5e-7))
    return at_prior, DiagonalNormalHead.num_outputs(10), FullNormalHead.num_outputs(10), narrow - wide


class _Recall(Exercise):
    """An exercise of several numbers, which tells the parts that are wrong and does not give the answers away."""

    def verdict(self, answer: Any) -> Verdict:
        verdict = super().verdict(answer)
        if verdict.status != "wrong" or "this is what one gets" in verdict.message:
            return verdict
        try:
            numbers = [float(number) for number in answer]
        except (TypeError, ValueError):
            return verdict
        right = self.oracle()
        if len(numbers) != len(right):
            return verdict
        parts = [
            part
            for part, number, wanted in zip("abcd", numbers, right, strict=True)
            if not abs(number - wanted) <= self.tolerance * max(1.0, abs(wanted))
        ]
        return Verdict("wrong", "not yet: " + ", ".join(f"({part}) is not right" for part in parts))


numbers_to_know = _Recall(
    "10.E1",
    "KL of an encoder that returns the prior; outputs of a diagonal and of a full encoder, L = 10; "
    "what the KL gains when ten small widths are halved.",
    _numbers,
    ((),),
    {
        "the gain of one latent where there are ten": lambda: (0, 20, 65, math.log(2)),
        "a square matrix where a triangle is enough": lambda: (0, 20, 110, 10 * math.log(2)),
        "the means left out of the count": lambda: (0, 10, 55, 10 * math.log(2)),
        "bits where nats belong": lambda: (0, 20, 65, 10),
        "log σ² where log σ belongs": lambda: (0, 20, 65, 20 * math.log(2)),
    },
    tolerance=1e-3,
)


def _weight_by_gradients(
    scale: float, num_pixels: int, latent_dim: int, pixels_averaged: bool, latents_averaged: bool
) -> float:
    """The VAE's own bound pulls on its two terms in some proportion: the weight must make the loss pull alike."""
    error = torch.full((7, num_pixels), 0.3, dtype=torch.float64, requires_grad=True)
    kl = torch.ones(7, latent_dim, dtype=torch.float64, requires_grad=True)
    pixels, latents = (torch.mean if averaged else torch.sum for averaged in (pixels_averaged, latents_averaged))
    bound = Normal(torch.zeros_like(error), scale).log_prob(error).sum(-1) - kl.sum(-1)
    wanted = torch.autograd.grad(bound.sum(), (error, kl))
    unweighted = torch.autograd.grad((pixels(error.square(), -1) + latents(kl, -1)).sum(), (error, kl))
    on_error, on_kl = (float(a[0, 0] / b[0, 0]) for a, b in zip(wanted, unweighted, strict=True))
    return on_kl / on_error


kl_weight = Exercise(
    "10.E2",
    "The weight w for which squared error + w KL, so reduced, trains a VAE whose decoder is N(f(z), scale² I).",
    _weight_by_gradients,
    (
        (1.0, 64, 2, False, False),
        (0.1, 12288, 128, True, False),
        (0.5, 784, 20, False, True),
        (0.2, 784, 20, True, True),
    ),
    {
        "the factor 2 forgotten": lambda s, d, n, a, b: s**2 * (n if b else 1) / (d if a else 1),
        "the scale where the variance belongs": lambda s, d, n, a, b: 2 * s * (n if b else 1) / (d if a else 1),
        "the inverse of the weight: it multiplies the KL, not the squared error": lambda s, d, n, a, b: (
            (d if a else 1) / (2 * s**2 * (n if b else 1))
        ),
        "the pixels multiplied by, where they divide": lambda s, d, n, a, b: (
            2 * s**2 * (n if b else 1) * (d if a else 1)
        ),
        "the average over pixels forgotten": lambda s, d, n, a, b: 2 * s**2 * (n if b else 1),
        "the average over latent dimensions forgotten": lambda s, d, n, a, b: 2 * s**2 / (d if a else 1),
        "the latent dimensions divided by, where they multiply": lambda s, d, n, a, b: (
            2 * s**2 / (n if b else 1) / (d if a else 1)
        ),
    },
)


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
    "10.E3",
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


def _posterior_on_grid(x: Tensor, observed: Tensor, on: Tensor, log_prior: Tensor) -> Tensor:
    """Bayes' rule for one digit: probabilities multiplied pixel by pixel at every grid point, then normalised."""
    weight = log_prior.exp()
    for d in torch.nonzero(observed).reshape(-1).tolist():
        weight = weight * (on[:, d] if x[d] == 1 else 1 - on[:, d])
    return weight / weight.sum()


def _table(x: Tensor, logits: Tensor, log_prior: Tensor) -> Tensor:
    return x @ logits.T - functional.softplus(logits).sum(-1) + log_prior


def _grid_case(seed: int, num_data: int, data_dim: int, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Binary data and a small random decoder on a grid that covers the plane."""
    axis = torch.linspace(-6, 6, side, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    logits = torch.tanh(z @ _normal(2, 5, seed=seed)) @ _normal(5, data_dim, seed=seed + 1)
    x = (_normal(num_data, data_dim, seed=seed + 2) > 0).double()
    log_prior = Normal(0.0, 1.0).log_prob(z).sum(-1)
    return x, z, logits, log_prior


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
    axis: int = -1,
    normalised: bool = True,
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def complete(x: Tensor, observed: Tensor, logits: Tensor, log_prior: Tensor) -> Tensor:
        seen = mask(observed)
        table = _table((x * observed)[:, seen], logits[:, seen], prior * log_prior)
        if not normalised:
            table = table + functional.softplus(logits[:, seen]).sum(-1)
        weight = functional.one_hot(table.argmax(-1), len(logits)).double() if mode else table.softmax(axis)
        on = torch.sigmoid(weight @ logits) if logits_averaged else weight @ torch.sigmoid(logits)
        return torch.where(observed, x, on) if known else on

    return complete


def _completion_inverted(x: Tensor, observed: Tensor, logits: Tensor, log_prior: Tensor) -> Tensor:
    """Seen and hidden pixels exchanged from the beginning to the end."""
    return _completion()(x, ~observed, logits, log_prior)


def _completion_case(seed: int, num_data: int, data_dim: int, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, _, logits, log_prior = _grid_case(seed, num_data, data_dim, side)
    return x, torch.rand(data_dim, generator=torch.Generator().manual_seed(seed)) < 0.5, logits, log_prior


completion = Exercise(
    "10.E4",
    "p(x_d = 1 | the observed pixels) for every pixel, by the exact posterior on the grid.",
    _completion_by_bayes,
    (_completion_case(3, 2, 8, 21), _completion_case(4, 3, 10, 25), _completion_case(5, 4, 9, 21)),
    {
        "the observed pixels predicted too: they are known": _completion(known=False),
        "the missing pixels taken for observed zeros": _completion(mask=torch.ones_like),
        "the single best z instead of the average over the posterior": _completion(mode=True),
        "the prior left out": _completion(prior=0.0),
        "the logits averaged, and squashed afterwards": _completion(logits_averaged=True),
        "−log(1 + e^f) left out of the likelihood": _completion(normalised=False),
        "the softmax over the images, where it belongs over the grid": _completion(axis=0),
        "the mask inverted": _completion_inverted,
        "the prior alone: the observed pixels are not used": _completion(mask=torch.zeros_like),
    },
)
