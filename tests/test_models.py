"""Exact models against SciPy's densities, grids, enumeration, scikit-learn and a numerical optimiser."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate, stats
from scipy.optimize import minimize
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture as ScikitMixture
from torch import Tensor, nn
from torch.distributions import (
    Beta,
    Binomial,
    Categorical,
    ContinuousBernoulli,
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    Normal,
    kl_divergence,
)

from vi_tutorial.distributions import bernoulli, diagonal_normal, full_normal
from vi_tutorial.elbo import draw, weigh
from vi_tutorial.families import Fixed, standard_normal
from vi_tutorial.models import (
    BetaBernoulli,
    GaussianMixture,
    LatentVariableModel,
    LinearGaussian,
    conjugate_normal,
    factor_analysis,
    gaussian_mixture,
    linear_regression,
    probabilistic_pca,
    probabilistic_pca_mle,
)
from vi_tutorial.networks import BernoulliHead

pytestmark = pytest.mark.usefixtures("_float64")

NOISES = {"one noise scale": (), "factor analysis": (3,)}


class Likelihood(nn.Module):
    """A likelihood over four coordinates, each seeing the one latent, made by a function."""

    def __init__(self, make: object) -> None:
        super().__init__()
        self.make = make

    def forward(self, z: Tensor) -> Distribution:
        return Independent(self.make(z.expand(*z.shape[:-1], 4)), 1)  # type: ignore[operator]


def linear_gaussian(noise: tuple[int, ...] = (), latent_dim: int = 2) -> LinearGaussian:
    """Nothing at its default: every term of the formulas is there to be lost."""
    model = LinearGaussian(
        weight=torch.randn(3, latent_dim),
        loc=torch.randn(3),
        noise_scale=0.4 + torch.rand(noise),
        prior_loc=torch.randn(latent_dim),
        prior_scale=0.5 + torch.rand(latent_dim),
    )
    return model.requires_grad_(False)


def dense(model: LinearGaussian) -> tuple[NDArray[np.float64], ...]:
    """Mean and covariance of the joint vector (z, x), in NumPy."""
    prior = model.prior()
    m, s2 = prior.mean.numpy(), np.diag(prior.variance.numpy())
    w, b = model.weight.numpy(), model.loc.numpy()
    noise = np.diag(np.broadcast_to(model.noise_scale.numpy() ** 2, len(b)))
    mean = np.concatenate([m, w @ m + b])
    covariance = np.block([[s2, s2 @ w.T], [w @ s2, w @ s2 @ w.T + noise]])
    return mean, covariance


# --- The joint: prior times likelihood -------------------------------------------------------------


def test_the_log_joint_is_prior_plus_likelihood() -> None:
    model = LatentVariableModel(standard_normal(2), BernoulliHead(nn.Linear(2, 3), 3))
    x = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    z = torch.randn(5, 2, 2)
    logits = model.likelihood.network(z).detach().numpy()
    expected = stats.norm.logpdf(z).sum(-1) + stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-logits))).sum(-1)
    assert np.allclose(model.given(x)(z).detach(), expected, atol=1e-11)


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_the_log_joint_of_the_linear_gaussian_is_a_joint_normal(noise: tuple[int, ...]) -> None:
    model = linear_gaussian(noise)
    z, x = torch.randn(6, 4, 2), torch.randn(4, 3)
    joint = stats.multivariate_normal(*dense(model))
    expected = joint.logpdf(np.concatenate([z, x.expand(6, 4, 3)], -1))
    assert np.allclose(model.given(x)(z), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "good", "bad"),
    [
        (lambda z: Normal(z, 1.0), 0.5, None),
        (lambda z: Binomial(16, logits=z), 16.0, 17.0),
        (lambda z: ContinuousBernoulli(logits=z), 0.5, 1.5),
        (lambda z: bernoulli(z).base_dist, 1.0, 0.5),
    ],
    ids=["normal", "binomial", "continuous bernoulli", "bernoulli on grey levels"],
)
def test_data_outside_the_support_meets_an_error_that_shows_it(make: object, good: float, bad: float | None) -> None:
    model = LatentVariableModel(standard_normal(1), Likelihood(make))
    x = torch.full((5, 4), good)
    q = diagonal_normal(torch.zeros(5, 1), torch.ones(()))
    assert draw(model.given(x), q, 3).log_weight.isfinite().all()
    if bad is not None:
        x[2, 1] = bad
        with pytest.raises(ValueError, match=rf"x must lie in the support.*received {bad} at index \(2, 1\)"):
            draw(model.given(x), q, 3)


@pytest.mark.parametrize(("prior_dim", "latent_dim"), [(2, 1), (1, 2)], ids=["prior too large", "prior too small"])
def test_a_prior_of_another_dimension_than_the_latent_is_refused(prior_dim: int, latent_dim: int) -> None:
    """torch would broadcast a size of one, and count each coordinate's prior twice."""
    model = LatentVariableModel(standard_normal(prior_dim), Likelihood(lambda z: Normal(z, 1.0)))
    model.likelihood.forward = lambda z: diagonal_normal(
        z.sum(-1, keepdim=True).expand(*z.shape[:-1], 4), torch.ones(())
    )
    q = diagonal_normal(torch.zeros(5, latent_dim), torch.ones(()))
    with pytest.raises(ValueError, match="prior"):
        draw(model.given(torch.zeros(5, 4)), q, 3)


def test_theta_is_found_as_parameters_of_the_model() -> None:
    model = LinearGaussian(torch.ones(3, 2), torch.zeros(3), torch.tensor(1.0))
    assert {name for name, _ in model.named_parameters()} == {
        "likelihood.weight",
        "likelihood.loc",
        "likelihood.log_noise_scale",
    }


def test_learning_does_not_write_into_the_tensors_that_were_given() -> None:
    given_tensors = (torch.ones(3, 2), torch.zeros(3), torch.tensor(1.0), torch.zeros(2), torch.ones(2))
    model = LinearGaussian(*given_tensors)
    with torch.no_grad():
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            tensor.add_(1)
    assert [t.flatten()[0].item() for t in given_tensors] == [1, 0, 1, 0, 1]


# --- Linear-Gaussian: posterior and evidence -------------------------------------------------------


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("latent_dim", [1, 2, 4])
def test_posterior_is_the_joint_normal_conditioned(noise: tuple[int, ...], latent_dim: int) -> None:
    """By the Schur complement on the covariance, where the model works with precisions; L = 4 exceeds D = 3."""
    model = linear_gaussian(noise, latent_dim)
    x = torch.randn(5, 3)
    mean, covariance = dense(model)
    zz, zx, xx = (
        covariance[:latent_dim, :latent_dim],
        covariance[:latent_dim, latent_dim:],
        covariance[latent_dim:, latent_dim:],
    )
    gain = zx @ np.linalg.inv(xx)
    posterior = model.posterior(x)
    assert posterior.batch_shape == (5,)
    assert np.allclose(posterior.mean, mean[:latent_dim] + (x.numpy() - mean[latent_dim:]) @ gain.T, atol=1e-10)
    assert np.allclose(
        posterior.covariance_matrix, np.broadcast_to(zz - gain @ zx.T, (5, latent_dim, latent_dim)), atol=1e-10
    )
    assert np.allclose(model.posterior_precision(), np.linalg.inv(zz - gain @ zx.T), atol=1e-8)


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("latent_dim", [1, 2, 4])
def test_evidence_is_scipys_normal_density(noise: tuple[int, ...], latent_dim: int) -> None:
    model = linear_gaussian(noise, latent_dim)
    x = torch.randn(5, 3)
    mean, covariance = dense(model)
    expected = stats.multivariate_normal(mean[latent_dim:], covariance[latent_dim:, latent_dim:]).logpdf(x)
    assert np.allclose(model.log_evidence(x), expected, atol=1e-10)
    assert np.allclose(model.marginal().covariance_matrix, covariance[latent_dim:, latent_dim:], atol=1e-12)


def test_bayes_theorem_on_a_grid_in_one_dimension() -> None:
    model = linear_gaussian(latent_dim=1)
    x = torch.randn(3)
    z = torch.linspace(-15, 15, 20_001)
    joint = model.given(x)(z[:, None]).exp().numpy()
    evidence = integrate.simpson(joint, x=z.numpy())
    assert model.log_evidence(x).item() == pytest.approx(math.log(evidence), abs=1e-8)
    posterior = model.posterior(x).log_prob(z[:, None]).exp()
    assert np.allclose(posterior, joint / evidence, atol=1e-8)


def test_bayes_theorem_on_a_grid_in_two_dimensions() -> None:
    model = linear_gaussian((3,))
    x = torch.randn(3)
    axis = torch.linspace(-8, 8, 801)
    grid = torch.cartesian_prod(axis, axis)
    joint = model.given(x)(grid).exp()
    area = (axis[1] - axis[0]) ** 2
    evidence = joint.sum() * area
    mean = (joint[:, None] * grid).sum(0) * area / evidence
    assert model.log_evidence(x).item() == pytest.approx(evidence.log().item(), abs=1e-8)
    assert torch.allclose(model.posterior(x).mean, mean, atol=1e-8)
    second = (joint[:, None, None] * grid[:, :, None] * grid[:, None, :]).sum(0) * area / evidence
    assert torch.allclose(model.posterior(x).covariance_matrix, second - torch.outer(mean, mean), atol=1e-7)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(batch=st.lists(st.integers(1, 3), max_size=2).map(tuple), seed=st.integers(0, 999), latent_dim=st.integers(1, 3))
def test_log_weights_at_the_posterior_are_the_evidence(batch: tuple[int, ...], seed: int, latent_dim: int) -> None:
    """p(x, z) / p(z | x) = p(x) for every z: prior, likelihood, posterior and evidence at once, for every batch."""
    torch.manual_seed(seed)
    model = linear_gaussian((3,), latent_dim)
    x = torch.randn(*batch, 3)
    evidence = model.log_evidence(x)
    assert evidence.shape == batch
    log_weight = weigh(model.given(x), model.posterior(x), torch.randn(4, *batch, latent_dim)).log_weight
    assert torch.allclose(log_weight, evidence.expand(4, *batch), atol=1e-8)


def test_the_defaults_are_the_standard_normal_prior() -> None:
    prior = LinearGaussian(torch.ones(3, 2), torch.zeros(3), torch.tensor(1.0)).prior()
    assert prior.mean.tolist() == [0, 0]
    assert prior.stddev.tolist() == [1, 1]


def test_evidence_has_the_gradient_of_finite_differences() -> None:
    x = torch.randn(2, 3)

    def evidence(weight: Tensor, loc: Tensor, log_noise_scale: Tensor) -> Tensor:
        model = LinearGaussian(torch.ones(3, 2), torch.zeros(3), torch.tensor(1.0))
        values = {"likelihood.weight": weight, "likelihood.loc": loc, "likelihood.log_noise_scale": log_noise_scale}
        return torch.func.functional_call(_Evidence(model), {f"model.{k}": v for k, v in values.items()}, (x,))

    leaves = (torch.randn(3, 2), torch.randn(3), torch.tensor(-0.3))
    assert torch.autograd.gradcheck(evidence, tuple(leaf.requires_grad_() for leaf in leaves))


class _Evidence(nn.Module):
    def __init__(self, model: LinearGaussian) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.log_evidence(x)


def test_samples_of_the_model_have_its_marginal_covariance() -> None:
    """40,000 draws of z then x: each entry of the covariance within five standard errors."""
    model = linear_gaussian((3,))
    x = model.likelihood(model.prior().sample((40_000,))).sample()
    exact = model.marginal().covariance_matrix
    deviations = x - model.marginal().mean
    products = deviations[:, :, None] * deviations[:, None, :]
    assert ((products.mean(0) - exact).abs() <= 5 * products.std(0) / 200).all()


def normals(batch: tuple[int, ...], dim: int) -> dict[str, Distribution]:
    """A Normal of every kind, none of them a posterior."""
    loc, scale = torch.randn(*batch, dim), 0.5 + torch.rand(*batch, dim)
    return {
        "diagonal": diagonal_normal(loc, scale),
        "full": full_normal(loc, torch.randn(*batch, dim, dim).tril(-1) + torch.diag_embed(scale)),
        "low rank": LowRankMultivariateNormal(loc, torch.randn(*batch, dim, 1), scale**2),
    }


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
def test_the_exact_elbo_is_the_evidence_less_the_divergence_to_the_posterior(
    noise: tuple[int, ...], batch: tuple[int, ...]
) -> None:
    model, x = linear_gaussian(noise), torch.randn(*batch, 3)
    for q in normals(batch, 2).values():
        same = q if isinstance(q, Independent) else full_normal(q.mean, torch.linalg.cholesky(q.covariance_matrix))
        kl = kl_divergence(same, model.posterior(x))
        assert model.elbo(x, q).shape == batch
        assert torch.allclose(model.elbo(x, q), model.log_evidence(x) - kl, atol=1e-9)
    assert torch.allclose(model.elbo(x, model.posterior(x)), model.log_evidence(x), atol=1e-9)


def test_the_exact_elbo_is_what_samples_estimate() -> None:
    model, x = linear_gaussian((3,)), torch.randn(4, 3)
    for q in normals((4,), 2).values():
        log_weight = draw(model.given(x), q, 20_000).log_weight
        error = log_weight.std(0) / math.sqrt(20_000)
        assert ((model.elbo(x, q) - log_weight.mean(0)).abs() < 4 * error).all()


# --- Its special cases -----------------------------------------------------------------------------


def test_conjugate_normal_is_the_textbook_update() -> None:
    x = torch.tensor([1.0, -0.5, 3.0, 2.0])
    m, s, sigma = 0.7, 1.3, 0.6
    model = conjugate_normal(4, prior_loc=m, prior_scale=s, noise_scale=sigma)
    variance = 1 / (1 / s**2 + 4 / sigma**2)
    assert model.posterior(x).variance.item() == pytest.approx(variance, abs=1e-13)
    assert model.posterior(x).mean.item() == pytest.approx(variance * (m / s**2 + x.sum().item() / sigma**2), abs=1e-12)

    def joint(z: float) -> float:
        return float(stats.norm.pdf(z, m, s) * stats.norm.pdf(x, z, sigma).prod())

    evidence = integrate.quad(joint, -4, 6, epsabs=1e-16)[0]
    assert model.log_evidence(x).item() == pytest.approx(math.log(evidence), abs=1e-9)
    assert not any(p.requires_grad for p in model.parameters())


def test_conjugate_normal_of_nothing_said_is_standard() -> None:
    model = conjugate_normal(1)
    # z ~ N(0, 1), x | z ~ N(z, 1): the reference example of the importance-weighted bound
    assert model.log_evidence(torch.tensor([2.0])).item() == pytest.approx(-2.265512, abs=5e-7)


def test_linear_regression_is_ridge_regression_with_a_normal_evidence() -> None:
    design, y = torch.randn(20, 3), torch.randn(20)
    s, sigma, m = 1.7, 0.8, 0.3
    model = linear_regression(design, prior_scale=s, noise_scale=sigma, prior_loc=m)
    ridge = torch.linalg.solve(design.T @ design + (sigma / s) ** 2 * torch.eye(3), design.T @ (y - m * design.sum(1)))
    assert torch.allclose(model.posterior(y).mean, m + ridge, atol=1e-11)
    covariance = s**2 * design @ design.T + sigma**2 * torch.eye(20)
    expected = stats.multivariate_normal(m * design.sum(1), covariance).logpdf(y)
    assert model.log_evidence(y).item() == pytest.approx(expected, abs=1e-9)
    assert not any(p.requires_grad for p in model.parameters())


# --- Probabilistic PCA -----------------------------------------------------------------------------


def correlated_data(size: int = 60, dim: int = 5) -> Tensor:
    return torch.randn(size, dim) @ torch.randn(dim, dim) + torch.randn(dim)


@pytest.mark.parametrize("latent_dim", [1, 2, 4])
def test_the_closed_form_agrees_with_scikit_learn(latent_dim: int) -> None:
    """scikit-learn divides by N − 1; the likelihood's maximum divides by N."""
    x = correlated_data()
    model = probabilistic_pca_mle(x, latent_dim)
    pca = PCA(latent_dim).fit(x.numpy())
    shrink = (len(x) - 1) / len(x)
    assert np.allclose(model.loc.detach(), pca.mean_, atol=1e-12)
    assert model.noise_scale.item() ** 2 == pytest.approx(shrink * pca.noise_variance_, rel=1e-10)
    assert np.allclose(model.marginal().covariance_matrix.detach(), shrink * pca.get_covariance(), atol=1e-10)
    # columns of W: principal axes, longest first
    lengths = model.weight.detach().square().sum(0)
    assert np.allclose(lengths, shrink * (pca.explained_variance_ - pca.noise_variance_), atol=1e-9)
    axes = (model.weight.detach() / lengths.sqrt()).T.numpy()
    assert np.allclose(np.abs((axes * pca.components_).sum(1)), 1, atol=1e-9)


def test_the_closed_form_is_where_a_numerical_optimiser_ends() -> None:
    x = correlated_data(40, 3)
    best = probabilistic_pca_mle(x, 1).log_evidence(x).mean().item()
    model = probabilistic_pca(3, 1, torch.Generator().manual_seed(0))
    parameters = list(model.parameters())

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        torch.nn.utils.vector_to_parameters(torch.tensor(flat), parameters)
        value = -model.log_evidence(x).mean()
        gradients = torch.autograd.grad(value, parameters)
        return value.item(), torch.cat([g.flatten() for g in gradients]).numpy()

    start = torch.nn.utils.parameters_to_vector(parameters).detach().numpy()
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 1000})
    assert -found.fun == pytest.approx(best, abs=1e-9)


def test_the_gradient_vanishes_at_the_closed_form() -> None:
    x = correlated_data()
    model = probabilistic_pca_mle(x, 2)
    gradients = torch.autograd.grad(model.log_evidence(x).mean(), list(model.parameters()))
    assert max(g.abs().max().item() for g in gradients) < 1e-10


def test_the_closed_form_can_be_trained_further_with_lbfgs() -> None:
    """L-BFGS takes flat views of parameters and gradients: W, made of flipped eigenvectors, must allow that."""
    x = correlated_data()
    model = probabilistic_pca_mle(x, 2)
    optimiser = torch.optim.LBFGS(model.parameters())

    def closure() -> float:
        optimiser.zero_grad()
        loss = -model.log_evidence(x).mean()
        loss.backward()
        return loss.item()

    optimiser.step(closure)
    assert model.log_evidence(x).mean().item() == pytest.approx(
        probabilistic_pca_mle(x, 2).log_evidence(x).mean().item()
    )


@pytest.mark.parametrize("copies", [1e-8, 1.0])
def test_directions_of_equal_variance_are_no_trouble(copies: float) -> None:
    """Isotropic data: λ_L − σ² is zero up to rounding, and its root must not be NaN."""
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3))) * copies
    model = probabilistic_pca_mle(corners, 2)
    assert model.weight.isfinite().all()
    assert model.noise_scale.item() == pytest.approx(copies, rel=1e-6)


@pytest.mark.parametrize(
    "x",
    [
        torch.full((7, 3), 0.1),
        torch.tensor([[0.1, 0.7, 1e6]]).repeat(9, 1),
        torch.linspace(0, 1, 9)[:, None] * torch.tensor([[1.0, 2.0, -3.0]]),
        torch.linspace(0, 1, 9)[:, None] * torch.tensor([[1.0, 2.0, -3.0]]) + 1e4,
        torch.tensor([[1.0, 2.0, 3.0]]),
        torch.tensor([[1.0, 2.0, 3.0], [2.0, 0.0, 1.0]]),
    ],
    ids=["constant", "constant columns", "one direction", "one direction far out", "one row", "two rows"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_data_without_variance_for_the_noise_is_refused(x: Tensor, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="the likelihood has no upper bound"):
        probabilistic_pca_mle(x.to(dtype), 1)


def test_the_random_start_is_small_reproducible_and_not_zero() -> None:
    starts = [probabilistic_pca(5, 2, torch.Generator().manual_seed(seed)).weight for seed in (1, 1, 2)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    assert 0 < starts[0].abs().max() < 0.5
    model = probabilistic_pca(5, 2)
    assert model.loc.abs().max() == 0
    assert model.noise_scale.item() == 1
    assert all(p.requires_grad and p.dtype == torch.float64 for p in model.parameters())


def test_factor_analysis_starts_as_probabilistic_pca_with_a_noise_scale_per_coordinate() -> None:
    seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
    ours, theirs = factor_analysis(5, 2, seeds[0]), probabilistic_pca(5, 2, seeds[1])
    assert torch.equal(ours.weight, theirs.weight)
    assert ours.noise_scale.tolist() == [1.0] * 5
    assert all(p.requires_grad and p.dtype == torch.float64 for p in ours.parameters())


# --- Gaussian mixture ------------------------------------------------------------------------------


def mixture(num_components: int = 3, dim: int = 2) -> GaussianMixture:
    tril = torch.randn(num_components, dim, dim).tril(-1) + torch.diag_embed(0.5 + torch.rand(num_components, dim))
    return GaussianMixture(torch.rand(num_components).softmax(0), torch.randn(num_components, dim), tril @ tril.mT)


def by_scipy(model: GaussianMixture, x: Tensor) -> NDArray[np.float64]:
    """log p(x, z = k), one column per component."""
    parts = zip(model.probs.tolist(), model.loc.tolist(), model.covariance_matrix.tolist(), strict=True)
    return np.stack([math.log(p) + stats.multivariate_normal(m, c).logpdf(x.numpy()) for p, m, c in parts], -1)


def test_what_a_mixture_is_made_of_comes_back() -> None:
    probs, loc, covariance = torch.tensor([0.2, 0.8]), torch.randn(2, 2), torch.tensor([[[2.0, 0.5], [0.5, 1.0]]] * 2)
    model = GaussianMixture(probs, loc, covariance)
    assert torch.allclose(model.probs, probs, atol=1e-14)
    assert torch.equal(model.loc, loc)
    assert torch.allclose(model.covariance_matrix, covariance, atol=1e-14)
    assert {name for name, _ in model.named_parameters()} == {
        "prior.logits",
        "likelihood.loc",
        "likelihood.unconstrained_tril",
    }
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert probs.tolist() == [0.2, 0.8]
    assert covariance[0, 0, 0] == 2


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)], ids=str)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_mixtures_joint_posterior_and_evidence_are_scipys(batch: tuple[int, ...], dim: int) -> None:
    model, x = mixture(dim=dim).requires_grad_(False), torch.randn(*batch, dim)
    log_joint = by_scipy(model, x.reshape(-1, dim)).reshape(*batch, 3)
    evidence = np.logaddexp.reduce(log_joint, -1)
    q = model.posterior(x)
    assert q.batch_shape == batch
    assert model.log_evidence(x).shape == batch
    assert np.allclose(np.moveaxis(model.given(x)(q.enumerate_support()).numpy(), 0, -1), log_joint, atol=1e-10)
    assert np.allclose(model.log_evidence(x), evidence, atol=1e-10)
    assert np.allclose(q.probs, np.exp(log_joint - evidence[..., None]), atol=1e-10)
    states = weigh(model.given(x), q, q.enumerate_support())
    assert torch.allclose(states.log_weight, model.log_evidence(x).expand(3, *batch), atol=1e-9)
    assert torch.allclose(model.elbo(x, q), model.log_evidence(x), atol=1e-9)
    other = Categorical(logits=torch.randn(*batch, 3))
    assert torch.allclose(model.elbo(x, other), model.log_evidence(x) - kl_divergence(other, q), atol=1e-9)


def test_the_mixtures_density_integrates_to_one_and_generates_its_moments() -> None:
    model = mixture(dim=1).requires_grad_(False)
    grid = torch.linspace(-20, 20, 8001)
    density = model.log_evidence(grid[:, None]).exp().numpy()
    assert integrate.simpson(density, x=grid.numpy()) == pytest.approx(1, abs=1e-9)
    z = model.prior().sample((40_000,))
    x = model.likelihood(z).sample().squeeze(-1)
    mean = integrate.simpson(density * grid.numpy(), x=grid.numpy())
    assert x.mean().item() == pytest.approx(mean, abs=5 * x.std().item() / 200)
    assert model.marginal().mean.item() == pytest.approx(mean, abs=1e-9)


def test_scikit_learn_scores_the_same_mixture_the_same() -> None:
    model, x = mixture().requires_grad_(False), torch.randn(7, 2)
    theirs = ScikitMixture(3)
    theirs.weights_, theirs.means_ = model.probs.numpy(), model.loc.numpy()
    theirs.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(model.covariance_matrix.numpy()))
    assert np.allclose(model.log_evidence(x), theirs.score_samples(x.numpy()), atol=1e-10)
    assert np.allclose(model.posterior(x).probs, theirs.predict_proba(x.numpy()), atol=1e-10)


def test_a_datapoint_far_from_every_component_has_finite_responsibilities() -> None:
    q = mixture().requires_grad_(False).posterior(torch.full((1, 2), 1e6))
    assert q.probs.sum().item() == pytest.approx(1)
    assert q.logits.isfinite().all()


def test_the_mixtures_evidence_has_the_gradient_of_finite_differences() -> None:
    model, x = mixture(2), torch.randn(4, 2)
    names = [name for name, _ in model.named_parameters()]

    def evidence(*values: Tensor) -> Tensor:
        parameters = {f"model.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(_MixtureEvidence(model), parameters, (x,))

    assert torch.autograd.gradcheck(evidence, tuple(p.detach().clone().requires_grad_() for p in model.parameters()))


class _MixtureEvidence(nn.Module):
    def __init__(self, model: GaussianMixture) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.log_evidence(x)


def test_responsibilities_can_be_learned_with_lbfgs() -> None:
    """They are a parameter of their own then, and L-BFGS takes flat views."""
    model, x = mixture(), torch.randn(6, 2)
    phi = nn.Parameter(model.posterior(x).logits.detach().clone())
    optimiser = torch.optim.LBFGS([phi, *model.parameters()])

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -model.elbo(x, Categorical(logits=phi)).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert phi.isfinite().all()


def test_a_mixture_starts_at_different_datapoints_with_the_datas_covariance() -> None:
    x = torch.randn(6, 2).repeat(5, 1)  # each datapoint five times
    starts = [gaussian_mixture(x, 6, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(starts[0].loc, starts[1].loc)
    assert not torch.equal(starts[0].loc, starts[2].loc)
    assert torch.equal(starts[0].loc.unique(dim=0), x.unique(dim=0))
    assert np.allclose(starts[0].covariance_matrix[3].detach(), np.cov(x.T.numpy(), bias=True), atol=1e-12)
    assert np.allclose(starts[0].probs.detach(), 1 / 6)
    assert gaussian_mixture(x.float(), 2).loc.dtype == torch.float32


@pytest.mark.parametrize("seed", range(20))
def test_a_column_that_is_a_sum_of_others_is_refused_whatever_rounding_makes_of_it(seed: int) -> None:
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with pytest.raises(ValueError, match="linearly dependent"):
        gaussian_mixture(torch.cat([x, x[:, :4].sum(1, keepdim=True)], 1), 2)


# --- Beta–Bernoulli --------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (2.5, 0.7)])
def test_the_evidence_of_every_sequence_sums_to_one_and_counts_to_betabinom(a: float, b: float) -> None:
    coin = BetaBernoulli(4, a, b)
    sequences = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))
    probability = coin.log_evidence(sequences).exp()
    assert probability.shape == (16,)
    assert probability.sum().item() == pytest.approx(1, abs=1e-13)
    for heads in range(5):
        of_count = probability[sequences.sum(1) == heads].sum().item()
        assert of_count == pytest.approx(stats.betabinom(4, a, b).pmf(heads), abs=1e-12)


@pytest.mark.parametrize("heads", [0, 2, 5])
def test_the_coins_posterior_and_evidence_by_quadrature(heads: int) -> None:
    coin = BetaBernoulli(5, 2.0, 3.0)
    x = (torch.arange(5) < heads).double()

    def joint(z: float) -> float:
        return float(stats.beta(2, 3).pdf(z) * z**heads * (1 - z) ** (5 - heads))

    evidence, mean = (integrate.quad(f, 0, 1)[0] for f in (joint, lambda z: z * joint(z)))
    assert coin.log_evidence(x).item() == pytest.approx(math.log(evidence), abs=1e-10)
    assert coin.posterior(x).mean.item() == pytest.approx(mean / evidence, abs=1e-10)
    z = torch.tensor([0.2, 0.9])
    assert np.allclose(coin.given(x)(z).exp(), [joint(v) for v in z.tolist()], atol=1e-12)


def test_the_coins_log_weights_at_the_posterior_are_the_evidence_for_a_batch() -> None:
    coin = BetaBernoulli(3, 0.5, 4.0)
    x = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    log_weight = draw(coin.given(x), coin.posterior(x), 5).log_weight
    assert torch.allclose(log_weight, coin.log_evidence(x).expand(5, 2), atol=1e-10)


def test_a_prior_may_be_any_fixed_distribution() -> None:
    """The coin again, put together from its parts."""
    model = LatentVariableModel(
        Fixed(Beta, concentration1=torch.tensor(2.0), concentration0=torch.tensor(3.0)), BetaBernoulli(2).likelihood
    )
    x, z = torch.tensor([1.0, 0.0]), torch.tensor([0.4])
    assert model.given(x)(z).item() == pytest.approx(stats.beta(2, 3).logpdf(0.4) + math.log(0.4 * 0.6), abs=1e-12)


# --- Simulated data ---------------------------------------------------------------------------------


def test_simulated_data_have_the_models_marginal_and_their_latents_the_posterior() -> None:
    torch.manual_seed(0)
    model = LinearGaussian(torch.tensor([[2.0], [-1.0]]), torch.tensor([1.0, 0.0]), torch.tensor(0.5))
    z, x = model.sample(50_000)
    assert z.shape == (50_000, 1)
    assert torch.allclose(x.mean(0), model.loc, atol=0.05)
    assert torch.allclose(x.T.cov(), model.marginal().covariance_matrix, atol=0.08)
    pull = (z - model.posterior(x).mean) / model.posterior(x).stddev
    assert abs(pull.mean().item()) < 0.02
    assert pull.std().item() == pytest.approx(1, abs=0.02)
    assert not x.requires_grad


def test_a_covariance_that_is_not_finite_and_an_empty_size_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="covariance_matrix must be finite"):
        GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.full((1, 2, 2), math.nan))
    with pytest.raises(ValueError, match="data_dim must be at least 1"):
        probabilistic_pca(0, 1)
