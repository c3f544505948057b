"""Chapter 08: one posterior per datapoint, then one network for all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from vi_tutorial.exercises import Exercise
from vi_tutorial.networks import mlp

__all__ = ["affine_encoder", "amortisation_gap", "blind_gap", "outgrown"]


def _normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _outgrown_by_counting(data_dim: int, hidden: int, latent_dim: int) -> int:
    """Build the encoder, count its parameters, and add rows to a table until there are more."""
    size = sum(p.numel() for p in mlp(data_dim, hidden, 2 * latent_dim).parameters())
    num_data, row = 0, nn.Parameter(torch.zeros(2, latent_dim)).numel()
    while num_data * row <= size:
        num_data += 1
    return num_data


outgrown = Exercise(
    "08.E1",
    "The smallest N for which a table of diagonal Normals has more numbers than an encoder with one hidden layer.",
    _outgrown_by_counting,
    ((64, 64, 2), (784, 200, 50), (3, 2, 1), (10, 5, 10)),
    {
        "the biases left out": lambda d, h, k: (d * h + 2 * k * h) // (2 * k) + 1,
        "a mean and no scale for each latent, in the table": lambda d, h, k: (d * h + h + 2 * k * h + 2 * k) // k + 1,
        "one output for each latent, in the network": lambda d, h, k: (d * h + h + k * h + k) // (2 * k) + 1,
        "the hidden units without their biases": lambda d, h, k: (d * h + 2 * k * h + 2 * k) // (2 * k) + 1,
        "the largest N for which it has not yet": lambda d, h, k: (d * h + h + 2 * k * h + 2 * k) // (2 * k),
    },
)


def _affine_by_conditioning(weight: Tensor, loc: Tensor, noise_scale: Tensor) -> Tensor:
    """From the joint covariance of (z, x): E[z | x] = Cov(z, x) Cov(x)⁻¹ (x − b), a D × D system."""
    w, b, s = weight.numpy(), loc.numpy(), noise_scale.numpy()
    slope = np.linalg.solve(w @ w.T + np.diag(np.broadcast_to(s**2, b.shape)), w).T
    return torch.as_tensor(np.column_stack([slope, -slope @ b]))


def _affine(prior: float = 1.0, power: int = 2, centred: bool = True) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def encoder(weight: Tensor, loc: Tensor, noise_scale: Tensor) -> Tensor:
        scaled = weight.mT / noise_scale**power
        precision = prior * torch.eye(weight.shape[1], dtype=weight.dtype) + scaled @ weight
        slope = torch.linalg.solve(precision, scaled)
        return torch.cat([slope, -(slope @ loc)[:, None] * centred], -1)

    return encoder


def _linear_case(seed: int, data_dim: int, latent_dim: int, shared: bool) -> tuple[Tensor, Tensor, Tensor]:
    noise = _normal(*(() if shared else (data_dim,)), seed=seed + 40, scale=0.4).exp() * 0.7
    return _normal(data_dim, latent_dim, seed=seed), _normal(data_dim, seed=seed + 20), noise


affine_encoder = Exercise(
    "08.E2",
    "For z ~ N(0, I), x | z ~ N(W z + b, diag σ²): the affine map x ↦ E[z | x], as one matrix (A, c), (L, D + 1).",
    _affine_by_conditioning,
    (_linear_case(0, 5, 2, True), _linear_case(1, 3, 1, False), _linear_case(2, 4, 3, False)),
    {
        "the prior's precision left out: this is least squares": _affine(prior=0.0),
        "σ where σ² belongs": _affine(power=1),
        "the data not centred: c is not zero": _affine(centred=False),
        "c = A b, with the wrong sign": lambda w, b, s: _affine()(w, -b, s),
        "the prior's precision subtracted": _affine(prior=-1.0),
    },
)


def _gap_by_torch(mean: Tensor, scale: Tensor, posterior_mean: Tensor, precision: Tensor) -> Tensor:
    """The difference of two KLs to the posterior: of this q, and of the diagonal q with variances 1/Λ_ii."""
    posterior = MultivariateNormal(posterior_mean, precision_matrix=precision)

    def kl(loc: Tensor, widths: Tensor) -> Tensor:
        return kl_divergence(MultivariateNormal(loc, scale_tril=torch.diag_embed(widths)), posterior)

    return kl(mean, scale) - kl(posterior_mean, precision.diagonal(dim1=-2, dim2=-1).rsqrt())


def _gap(distance: Callable[..., Tensor], ratio: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def gap(mean: Tensor, scale: Tensor, posterior_mean: Tensor, precision: Tensor) -> Tensor:
        r = ratio(scale, precision)
        return 0.5 * (distance(mean - posterior_mean, precision) + (r - 1 - r.log()).sum(-1))

    return gap


def _mahalanobis(apart: Tensor, precision: Tensor) -> Tensor:
    return torch.einsum("ni,nij,nj->n", apart, precision, apart)


def _by_precision(scale: Tensor, precision: Tensor) -> Tensor:
    return scale**2 * precision.diagonal(dim1=-2, dim2=-1)


def _gap_case(seed: int, num_data: int, latent_dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    root = _normal(num_data, latent_dim, latent_dim, seed=seed + 30)
    precision = root @ root.mT + torch.eye(latent_dim, dtype=torch.float64)
    mean, posterior_mean = _normal(2, num_data, latent_dim, seed=seed)
    return mean, _normal(num_data, latent_dim, seed=seed + 60, scale=0.3).exp() * 0.6, posterior_mean, precision


amortisation_gap = Exercise(
    "08.E3",
    "The amortisation gap of the diagonal q = N(mean, diag scale²) if the posterior is N(posterior_mean, precision⁻¹).",
    _gap_by_torch,
    (_gap_case(0, 3, 2), _gap_case(1, 1, 4), _gap_case(2, 5, 3)),
    {
        "KL(q ‖ q*): the distance to the best member is not the gap": _gap(
            lambda apart, precision: (apart**2 * precision.diagonal(dim1=-2, dim2=-1)).sum(-1), _by_precision
        ),
        "the posterior's variances where 1/Λ_ii belongs": _gap(
            _mahalanobis,
            lambda scale, precision: scale**2 / torch.linalg.inv(precision).diagonal(dim1=-2, dim2=-1),
        ),
        "the ½ forgotten": lambda m, s, pm, p: 2 * _gap(_mahalanobis, _by_precision)(m, s, pm, p),
        "the whole gap: the family's share has not been taken off": lambda m, s, pm, p: kl_divergence(
            MultivariateNormal(m, scale_tril=torch.diag_embed(s)), MultivariateNormal(pm, precision_matrix=p)
        ),
        "the covariance where the precision belongs": _gap(
            lambda apart, precision: _mahalanobis(apart, torch.linalg.inv(precision)), _by_precision
        ),
    },
)


def _blind_by_conditioning(weight: Tensor, noise_scale: Tensor, visible: Tensor) -> float:
    """½ E (a − m)ᵀ S⁻¹ (a − m): both means as regressions on x, from the joint covariance of (z, x)."""
    w, s, v = weight.numpy(), float(noise_scale), visible.numpy()
    covariance = w @ w.T + s**2 * np.eye(len(w))
    full = np.linalg.solve(covariance, w).T
    blind = np.zeros_like(full)
    blind[:, v] = np.linalg.solve(covariance[np.ix_(v, v)], w[v]).T
    error = (full - blind) @ covariance @ (full - blind).T
    return float(0.5 * np.trace(np.linalg.solve(np.eye(w.shape[1]) - full @ w, error)))


def _precision(weight: Tensor, noise_scale: Tensor) -> Tensor:
    return torch.eye(weight.shape[1], dtype=weight.dtype) + weight.mT @ weight / noise_scale**2


def _ratio(weight: Tensor, noise_scale: Tensor, visible: Tensor) -> Tensor:
    """S⁻¹ S_visible."""
    return torch.linalg.solve(_precision(weight[visible], noise_scale), _precision(weight, noise_scale))


def _blind_case(seed: int, data_dim: int, latent_dim: int, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    visible = torch.arange(data_dim) % 3 != 0
    return _normal(data_dim, latent_dim, seed=seed), torch.tensor(noise, dtype=torch.float64), visible


blind_gap = Exercise(
    "08.E4",
    "z ~ N(0, I), x | z ~ N(W z, σ² I): the mean amortisation gap of the best encoder that sees only x[visible].",
    _blind_by_conditioning,
    (_blind_case(0, 6, 2, 1.0), _blind_case(1, 9, 1, 0.5), _blind_case(2, 7, 3, 2.0)),
    {
        "the ½ forgotten": lambda w, s, v: _ratio(w, s, v).diagonal().sum() - w.shape[1],
        "L not subtracted": lambda w, s, v: 0.5 * _ratio(w, s, v).diagonal().sum(),
        "the KL of two covariances: q keeps S, and only its mean errs": lambda w, s, v: (
            0.5 * (_ratio(w, s, v).diagonal().sum() - w.shape[1] - _ratio(w, s, v).logdet())
        ),
        "q = p(z | what is seen), which is wider than the best q": lambda w, s, v: (
            _ratio(w, s, v).diagonal().sum() - w.shape[1] - 0.5 * _ratio(w, s, v).logdet()
        ),
        "what is seen and what is not exchanged": lambda w, s, v: (
            0.5 * (_ratio(w, s, ~v).diagonal().sum() - w.shape[1])
        ),
    },
)
