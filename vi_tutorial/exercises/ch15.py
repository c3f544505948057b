"""Chapter 15: posterior collapse."""

from __future__ import annotations

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.nn.functional import mse_loss

from vi_tutorial.exercises import Exercise

__all__ = ["best_bound", "numbers_to_know", "rates", "water_level"]

numbers_to_know = Exercise(
    "15.E1",
    "Eigenvalues 4, 1 and 0.25, three latents, σ² = ½: how many latents are active with β = 1; with β = 4; the rate of "
    "the first with β = 1; and the best σ² of a model with one latent.",
    lambda: (2.0, 1.0, math.log(8) / 2, 0.625),
    ((),),
    {
        "σ in the place of σ²": lambda: (2.0, 1.0, math.log(4 / math.sqrt(0.5)) / 2, 0.625),
        "β forgotten in the second": lambda: (2.0, 2.0, math.log(8) / 2, 0.625),
        "a factor ½ lost in the rate": lambda: (2.0, 1.0, math.log(8), 0.625),
        "all three eigenvalues averaged for σ²": lambda: (2.0, 1.0, math.log(8) / 2, 1.75),
        "the sum of the eigenvalues left over for their mean": lambda: (2.0, 1.0, math.log(8) / 2, 1.25),
    },
    tolerance=0.006,
)


def _by_search(eigenvalues: Tensor, beta: float, variance: float) -> Tensor:
    """For each eigenvalue: search the decoder's weight; for a weight the best encoder is the posterior of noise βσ²."""

    def encoder(w: float) -> tuple[float, float]:
        return w / (w**2 + beta * variance), beta * variance / (w**2 + beta * variance)

    def loss(w: float, eigenvalue: float) -> float:
        v, s = encoder(w)
        error = eigenvalue * (1 - w * v) ** 2 + w**2 * s
        return error / (2 * variance) + beta * (s + eigenvalue * v**2 - 1 - math.log(s)) / 2

    found = []
    for eigenvalue in eigenvalues.tolist():
        top = math.sqrt(eigenvalue) + 1
        result = minimize_scalar(loss, bounds=(0, top), args=(eigenvalue,), method="bounded", options={"xatol": 1e-10})
        v, s = encoder(result.x)
        size = v * math.sqrt(eigenvalue)  # the mean square of the posterior means, as one mean
        q, prior = Normal(torch.tensor(size).double(), math.sqrt(s)), Normal(torch.tensor(0.0).double(), 1.0)
        found.append(kl_divergence(q, prior).item())
    return torch.tensor(found, dtype=torch.float64)


_SPECTRA = (
    (torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64), 1.0, 0.5),
    (torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64), 4.0, 0.5),
    (torch.tensor([0.7, 0.4, 0.2, 0.1], dtype=torch.float64), 0.5, 0.3),
)

rates = Exercise(
    "15.E2",
    "Mean rate of each latent of the best linear VAE, from the data's eigenvalues (L,), β and σ²: shape (L,), nats.",
    _by_search,
    _SPECTRA,
    {
        "dead latents with a negative rate: it is zero": lambda e, b, s: (e / (b * s)).log() / 2,
        "the ½ dropped": lambda e, b, s: (e / (b * s)).log().clamp_min(0),
        "β forgotten": lambda e, b, s: (e / s).log().clamp_min(0) / 2,
        "β and σ² divided": lambda e, b, s: (e * b / s).log().clamp_min(0) / 2,
        "the capacity of a Gaussian channel at signal to noise λ/βσ²": lambda e, b, s: (1 + e / (b * s)).log() / 2,
    },
    tolerance=1e-5,
)


def _by_gradients(weight: float, num_pixels: int, num_latents: int, pixel_mean: bool, latent_mean: bool) -> float:
    """Twice the price of a nat, in squared error: from the gradients of the loss as torch reduces it."""
    error = torch.zeros(1, num_pixels, dtype=torch.float64, requires_grad=True)
    rate = torch.zeros(1, num_latents, dtype=torch.float64, requires_grad=True)
    target = torch.ones_like(error)
    loss = mse_loss(error, target, reduction="mean" if pixel_mean else "sum")
    loss = loss + weight * (rate.mean() if latent_mean else rate.sum())
    by_error, by_rate = torch.autograd.grad(loss, (error, rate))
    one_unit_of_squared_error = by_error[0, 0].item() / -2  # d/de (e - 1)² at 0 is -2
    return by_rate[0, 0].item() / one_unit_of_squared_error / 2


def _level(weight: float, pixels: float, latents: float) -> float:
    return weight * pixels / latents / 2


water_level = Exercise(
    "15.E3",
    "βσ² of the loss MSE + weight · KL, where the squared error is a sum over pixels or their mean, and the KL a sum "
    "over latents or their mean.",
    _by_gradients,
    (
        (1.0, 64, 8, False, False),
        (1.0, 64, 8, True, False),
        (0.00025, 64 * 64 * 3, 128, True, False),
        (1.0, 784, 20, True, True),
        (0.5, 100, 4, False, True),
    ),
    {
        "σ² = 1 for the squared error without a ½": lambda c, d, n, p, m: 2 * _level(c, d if p else 1, n if m else 1),
        "the mean over pixels overlooked": lambda c, d, n, p, m: _level(c, 1, n if m else 1),
        "the mean over latents overlooked": lambda c, d, n, p, m: _level(c, d if p else 1, 1),
        "a mean over pixels that makes the KL cheaper": lambda c, d, n, p, m: _level(
            c, 1 / d if p else 1, n if m else 1
        ),
    },
)


def _by_density(eigenvalues: Tensor, num_latents: int, variance: float) -> Tensor:
    """2 D points on the axes with exactly these eigenvalues, scored by torch under the best covariance of each axis."""
    dim = len(eigenvalues)
    points = torch.diag_embed((dim * eigenvalues).sqrt())
    points = torch.cat([points, -points])
    seen = torch.arange(dim) < num_latents
    covariance = torch.where(seen, eigenvalues.clamp_min(variance), variance).diag()
    return MultivariateNormal(torch.zeros(dim, dtype=torch.float64), covariance).log_prob(points).mean()


def _bound(level: Tensor, eigenvalues: Tensor) -> Tensor:
    return -(math.log(2 * math.pi) + level.log() + eigenvalues / level).sum() / 2


def _levels(eigenvalues: Tensor, num_latents: int, variance: float) -> Tensor:
    level = torch.full_like(eigenvalues, variance)
    level[:num_latents] = eigenvalues[:num_latents].clamp_min(variance)
    return level


def _all_alive(eigenvalues: Tensor, num_latents: int, variance: float) -> Tensor:
    level = torch.full_like(eigenvalues, variance)
    level[:num_latents] = eigenvalues[:num_latents]
    return _bound(level, eigenvalues)


best_bound = Exercise(
    "15.E4",
    "Mean ELBO per datapoint of the best linear VAE with L latents and a fixed σ², from all D eigenvalues in falling "
    "order: a number, in nats.",
    _by_density,
    (
        (torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64), 2, 0.5),
        (torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64), 2, 2.0),
        (torch.tensor([0.7, 0.4, 0.2, 0.1, 0.05], dtype=torch.float64), 4, 0.15),
        (torch.tensor([0.7, 0.4, 0.2], dtype=torch.float64), 1, 0.3),
    ),
    {
        "every latent kept alive, below the threshold too": _all_alive,
        "every direction above σ² used: there are only L latents": lambda e, n, s: _bound(e.clamp_min(s), e),
        "no latent used": lambda e, n, s: _bound(torch.full_like(e, s), e),
        "log 2π once, not D times": lambda e, n, s: (
            _bound(_levels(e, n, s), e) + (len(e) - 1) * math.log(2 * math.pi) / 2
        ),
        "an active latent with variance λ + σ²": lambda e, n, s: _bound(
            torch.where(torch.arange(len(e)) < n, e + s, torch.full_like(e, s)), e
        ),
    },
)
