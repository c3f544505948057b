"""Exercises of chapter 06: learning θ and φ together."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from sklearn.decomposition import PCA
from torch import Tensor

from vi_tutorial.data import digits, wine
from vi_tutorial.exercises import Exercise

__all__ = ["chosen_latent_dim", "diagonal_gap", "m_step_weight"]

Array = NDArray[np.float64]


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- 06.E1: the M-step ---


def _by_least_squares(x: Tensor, means: Tensor, covariance: Tensor) -> Array:
    """The spread of q as extra rows: pseudo-latents √N·L with pseudo-data zero."""
    extra = np.sqrt(len(x)) * np.linalg.cholesky(covariance.numpy()).T
    latents = np.concatenate([means.numpy(), extra])
    targets = np.concatenate([x.numpy(), np.zeros((len(extra), x.shape[1]))])
    return np.linalg.lstsq(latents, targets, rcond=None)[0].T


def _m_step_case(num_data: int, data_dim: int, latent_dim: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    root = _random(latent_dim, latent_dim, seed=seed + 2)
    covariance = root @ root.mT / latent_dim + 0.2 * torch.eye(latent_dim, dtype=torch.float64)
    return _random(num_data, data_dim, seed=seed), _random(num_data, latent_dim, seed=seed + 1), covariance


def _m_step(x: Tensor, means: Tensor, spread: Tensor) -> Tensor:
    return torch.linalg.solve(means.mT @ means + spread, means.mT @ x).mT


m_step_weight = Exercise(
    "06.E1",
    "The W that maximises the ELBO of centred data, given the means and the one covariance of q.",
    _by_least_squares,
    (_m_step_case(20, 4, 2, 0), _m_step_case(50, 6, 3, 10), _m_step_case(8, 3, 1, 20)),
    {
        "a regression on the means, the spread of q forgotten": lambda x, m, s: _m_step(x, m, torch.zeros_like(s)),
        "the spread of q counted once instead of once for each datapoint": lambda x, m, s: _m_step(x, m, s),
        "the right answer, transposed": lambda x, m, s: _m_step(x, m, len(x) * s).mT,
    },
)


# --- 06.E2: what a diagonal encoder costs in factor analysis ---


def _gap_by_search(weight: Tensor, noise_scale: Tensor) -> float:
    """KL from the best diagonal normal to the exact posterior: L-BFGS over its log variances."""
    size = weight.shape[1]
    scaled = weight / noise_scale[:, None]
    posterior = torch.distributions.MultivariateNormal(
        torch.zeros(size, dtype=torch.float64),
        precision_matrix=torch.eye(size, dtype=torch.float64) + scaled.mT @ scaled,
    )

    def loss(log_variance: Array) -> tuple[float, Array]:
        leaf = torch.tensor(log_variance, requires_grad=True)
        q = torch.distributions.MultivariateNormal(posterior.loc, torch.diag(leaf.exp()))
        divergence = torch.distributions.kl_divergence(q, posterior)
        (gradient,) = torch.autograd.grad(divergence, leaf)
        return divergence.item(), gradient.numpy()

    return float(optimize.minimize(loss, np.zeros(size), jac=True, method="L-BFGS-B", options={"ftol": 1e-14}).fun)


def _gap_of(matrix: Tensor) -> float:
    return (0.5 * (matrix.diagonal().log().sum() - torch.logdet(matrix))).item()


def _precision(weight: Tensor, noise_scale: Tensor, prior: float = 1.0) -> Tensor:
    return prior * torch.eye(weight.shape[1], dtype=weight.dtype) + weight.mT @ (weight / noise_scale[:, None].square())


diagonal_gap = Exercise(
    "06.E2",
    "The approximation gap of the best diagonal q in factor analysis, from W and the pixels' σ.",
    _gap_by_search,
    (
        (_random(5, 2, seed=1), torch.linspace(0.4, 1.2, 5, dtype=torch.float64)),
        (_random(9, 3, seed=2), torch.linspace(2.0, 0.7, 9, dtype=torch.float64)),
        (_random(4, 2, seed=3), torch.tensor([1.0, 0.1, 3.0, 0.5], dtype=torch.float64)),
    ),
    {
        "one σ² for all, the mean of the σ_d²": lambda w, s: _gap_of(
            _precision(w, s.square().mean().sqrt().expand(len(s)))
        ),
        "the prior's I forgotten in the precision": lambda w, s: _gap_of(_precision(w, s, prior=0.0)),
        "σ where σ² belongs": lambda w, s: _gap_of(_precision(w, s.sqrt())),
        "the factor ½ left out": lambda w, s: 2 * _gap_of(_precision(w, s)),
        "the posterior's covariance in place of its precision": lambda w, s: _gap_of(
            torch.linalg.inv(_precision(w, s))
        ),
    },
)


# --- 06.E3: how many latent dimensions? ---


def _choose_by_sklearn(
    train: Tensor, held_out: Tensor, candidates: tuple[int, ...], unbiased: bool = False, on_train: bool = False
) -> int:
    """scikit-learn's PCA and its density, with its n − 1 turned into n."""
    scores = []
    for latent_dim in candidates:
        pca = PCA(latent_dim, svd_solver="full").fit(train.numpy())
        if not unbiased:
            factor = (len(train) - 1) / len(train)
            pca.explained_variance_ *= factor
            pca.noise_variance_ *= factor
        scores.append(pca.score((train if on_train else held_out).numpy()))
    return candidates[int(np.argmax(scores))]


def _study_cases() -> tuple[tuple[Any, ...], ...]:
    images, wines = digits(), wine().x
    scaled = (wines - wines.mean(0)) / wines.std(0)
    return (
        (images.train[:100], images.test, (1, 2, 4, 6, 8, 12, 16, 24)),
        (images.train[100:250], images.test, (1, 2, 4, 8, 16, 32)),
        (scaled[::3], scaled[1::3], (1, 2, 3, 4, 6, 8)),
    )


chosen_latent_dim = Exercise(
    "06.E3",
    "The number of latent dimensions with the highest held-out log-likelihood.",
    _choose_by_sklearn,
    _study_cases(),
    {
        "the training data's own likelihood, which always prefers the largest model": (
            lambda train, held_out, candidates: _choose_by_sklearn(train, held_out, candidates, on_train=True)
        ),
        "the two parts swapped: fitted on the held-out data, scored on the training data": (
            lambda train, held_out, candidates: _choose_by_sklearn(held_out, train, candidates)
        ),
    },
)
