"""Real data and models with exact answers, on which the exhibits are shown."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, constraints, kl_divergence

from vi_tutorial import data
from vi_tutorial.distributions import diagonal_normal
from vi_tutorial.models import LinearGaussian, probabilistic_pca_mle
from vi_tutorial.quadrature import gauss_hermite

NUM_SAMPLES = 4000


class Setting(nn.Module):
    """A linear-Gaussian model, a few data, and a diagonal q that is a little too wide: all that a bound needs.

    Its parameters are those of q: means and log scales, one row per datapoint. Everything about the model is exact.
    """

    def __init__(self, model: LinearGaussian, x: Tensor, num_data: int) -> None:
        super().__init__()
        self.model, self.x, self.num_data = model.requires_grad_(False), x, num_data
        self.log_evidence = model.log_evidence(x)
        exact = model.posterior(x)
        self.loc = nn.Parameter(exact.mean.clone())
        self.log_scale = nn.Parameter((1.2 / exact.precision_matrix.diagonal(dim1=-2, dim2=-1).sqrt()).log().clone())

    @property
    def q(self) -> Independent:
        return diagonal_normal(self.loc, self.log_scale.exp())

    @property
    def prior(self) -> Independent:
        return diagonal_normal(torch.zeros_like(self.loc), torch.ones_like(self.log_scale))

    def kl_per_latent(self) -> Tensor:
        """Shape ``(B, L)``."""
        q, p = self.q, self.prior
        return kl_divergence(q.base_dist, p.base_dist)

    def log_likelihood_per_pixel(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """Shape ``(K, B, D)``."""
        likelihood = self.model.likelihood(z)
        return likelihood.base_dist.log_prob(self.x if x is None else x)

    def log_weight(self, num_samples: int = NUM_SAMPLES) -> Tensor:
        """Shape ``(K, B)``."""
        z = self.q.rsample((num_samples,))
        return self.model.given(self.x)(z) - self.q.log_prob(z)

    def fresh(self) -> Setting:
        """The same with parameters of its own, so that no gradient is shared."""
        return Setting(self.model, self.x, self.num_data)


class Pair(Distribution):
    """Draws that come from one place and a log density that comes from another."""

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(self, sampler: Callable[[int], Tensor], log_prob: Callable[[Tensor], Tensor], dim: int) -> None:
        super().__init__(event_shape=torch.Size([dim]), validate_args=False)
        self._sampler, self._log_prob = sampler, log_prob

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:  # noqa: B008
        return self._sampler(torch.Size(sample_shape).numel())

    def log_prob(self, value: Tensor) -> Tensor:
        return self._log_prob(value)


@cache
def _digits() -> tuple[LinearGaussian, Tensor, int]:
    x = data.digits().train
    return probabilistic_pca_mle(x, 5), x[:8], len(x)


def digits_setting() -> Setting:
    """Eight digits (counts, D = 64) under probabilistic PCA with L = 5, fitted to all of them."""
    return Setting(*_digits())


@cache
def geyser() -> Tensor:
    """Old Faithful, both columns standardised, (272, 2)."""
    x = data.old_faithful()
    return (x - x.mean(0)) / x.std(0)


@cache
def _geyser_model() -> LinearGaussian:
    return probabilistic_pca_mle(geyser(), 1)


def geyser_setting() -> Setting:
    """Six eruptions (D = 2) under probabilistic PCA with L = 1."""
    return Setting(_geyser_model(), geyser()[:6], len(geyser()))


def normal(loc: float, scale: float) -> Normal:
    return Normal(torch.tensor(loc, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))


# A minibatch of Old Faithful, z | x by an encoder N(slope · x, scale²): the score-function estimate of the gradient
# with respect to its slope. SIGMA is the noise of x | z ~ N(z, SIGMA²).
SLOPE, SCALE, SIGMA, BATCH = 0.4, 0.6, 0.8, 8


def _waiting() -> Tensor:
    return geyser()[:, 1]


def encoder_gradients(surrogate: Callable[[Tensor, Tensor, int], Tensor], num_estimates: int) -> Tensor:
    """The slope's gradient from independent minibatches and draws, (num_estimates,)."""
    x = _waiting()
    x = x[torch.randint(len(x), (BATCH, num_estimates))]
    slope = torch.full((num_estimates,), SLOPE, dtype=torch.float64, requires_grad=True)  # one for each estimate
    mean = slope * x
    z = (mean + SCALE * torch.randn(x.shape, dtype=torch.float64)).detach()
    log_p = normal(0.0, 1.0).log_prob(z) + normal(0.0, SIGMA).log_prob(x - z)
    log_q = normal(0.0, SCALE).log_prob(z - mean)
    return torch.autograd.grad(surrogate(log_p, log_q, len(_waiting())), slope)[0]


def exact_encoder_gradient() -> Tensor:
    """The same of the whole data set's ELBO, by Gauss–Hermite quadrature through the sample."""
    slope = torch.tensor(SLOPE, dtype=torch.float64, requires_grad=True)
    points, weights = gauss_hermite(10)
    x, z = _waiting(), slope * _waiting() + SCALE * points
    total = weights @ (normal(0.0, 1.0).log_prob(z) + normal(0.0, SIGMA).log_prob(x - z)).sum(-1)
    return torch.autograd.grad(total, slope)[0]  # the entropy of q does not depend on the slope
