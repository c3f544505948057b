"""Quadrature against closed forms, SciPy's adaptive integrals, and draws."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate
from torch import Tensor, nn
from torch.distributions import Laplace, MultivariateNormal

from vi_tutorial.distributions import diagonal_normal, full_normal, mixture_normal
from vi_tutorial.elbo import draw
from vi_tutorial.families import standard_normal
from vi_tutorial.models import LatentVariableModel, LinearGaussian
from vi_tutorial.networks import BernoulliHead, BinomialHead, NormalHead, mlp
from vi_tutorial.quadrature import GridPosterior, expected_elbo, gauss_hermite, posterior_on_grid

pytestmark = pytest.mark.usefixtures("_float64")


@pytest.fixture
def linear() -> tuple[LinearGaussian, Tensor]:
    torch.manual_seed(0)
    model = LinearGaussian(torch.tensor([[2.0, 0.3], [-0.5, 1.0], [1.0, 1.0]]), torch.randn(3), torch.tensor(0.5))
    return model, model.sample(4).x


@pytest.fixture
def decoder() -> tuple[LatentVariableModel, Tensor]:
    torch.manual_seed(1)
    model = LatentVariableModel(standard_normal(2), BernoulliHead(mlp(2, 16, 10), 10))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    return model, model.sample(5).x


@pytest.mark.parametrize("order", [1, 2, 5, 20])
def test_gauss_hermite_has_a_normals_moments_up_to_its_degree(order: int) -> None:
    points, weights = gauss_hermite(order, 2)
    assert points.shape == (order**2, 2)
    for i in range(0, 2 * order, 2):  # E ε^i = (i − 1)!!
        moment = (weights * points[:, 0] ** i * points[:, 1] ** (2 * order - 2)).sum()
        expected = math.prod(range(i - 1, 0, -2)) * math.prod(range(2 * order - 3, 0, -2))
        assert moment.item() == pytest.approx(expected, rel=1e-9)
    assert abs((weights * points[:, 1] ** 3).sum()) < 1e-10


def test_expected_elbo_is_the_closed_form_of_a_linear_model(linear: tuple[LinearGaussian, Tensor]) -> None:
    model, x = linear
    diagonal = diagonal_normal(torch.randn(4, 2), 0.2 + torch.rand(4, 2))
    full = full_normal(
        torch.randn(4, 2), 0.5 * torch.randn(4, 2, 2).tril(-1) + torch.diag_embed(0.2 + torch.rand(4, 2))
    )
    for q in (diagonal, full, model.posterior(x)):
        assert torch.allclose(expected_elbo(model.given(x), q, order=3), model.elbo(x, q), atol=1e-10)


@pytest.mark.parametrize("kind", ["diagonal", "full", "mixture"])
def test_expected_elbo_is_the_mean_of_many_draws(decoder: tuple[LatentVariableModel, Tensor], kind: str) -> None:
    model, x = decoder
    torch.manual_seed(2)
    loc, scale = 0.5 * torch.randn(5, 3, 2), 0.3 + 0.3 * torch.rand(5, 3, 2)
    q = {
        "diagonal": diagonal_normal(loc[:, 0], scale[:, 0]),
        "full": full_normal(loc[:, 0], torch.diag_embed(scale[:, 0]) + torch.tensor([[0.0, 0.0], [0.4, 0.0]])),
        "mixture": mixture_normal(torch.randn(5, 3), loc, scale),
    }[kind]
    log_weight = draw(model.given(x), q, 20_000).log_weight.detach()
    found = expected_elbo(model.given(x), q, order=16)
    assert ((log_weight.mean(0) - found).abs() < 4 * log_weight.std(0) / math.sqrt(20_000)).all()
    if kind != "mixture":  # a mixture's log q is not smooth to few points
        assert torch.allclose(found, expected_elbo(model.given(x), q, order=32), atol=1e-4)


def test_expected_elbo_can_be_differentiated(linear: tuple[LinearGaussian, Tensor]) -> None:
    model, x = linear
    loc, scale = torch.randn(4, 2, requires_grad=True), torch.rand(4, 2).add(0.3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda m, s: expected_elbo(model.given(x), diagonal_normal(m, s), order=3), (loc, scale)
    )


def test_the_grid_has_the_evidence_and_posterior_of_a_linear_model(linear: tuple[LinearGaussian, Tensor]) -> None:
    model, x = linear
    grid = posterior_on_grid(model, x, bound=6.0)
    posterior = model.posterior(x)
    assert torch.allclose(grid.log_evidence, model.log_evidence(x), atol=1e-9)
    assert torch.allclose(grid.mean, posterior.mean, atol=1e-8)
    assert torch.allclose(grid.covariance, posterior.covariance_matrix, atol=1e-8)
    assert torch.allclose(grid.log_prob.logsumexp(0), torch.zeros(4), atol=1e-12)


def test_the_grid_agrees_with_scipys_adaptive_integral(decoder: tuple[LatentVariableModel, Tensor]) -> None:
    model, x = decoder
    found = posterior_on_grid(model, x[:1], side=241, bound=6.0).log_evidence

    def joint(b: float, a: float) -> float:
        with torch.no_grad():
            return model.given(x[:1])(torch.tensor([[[a, b]]])).exp().item()

    value, _ = integrate.dblquad(joint, -6, 6, -6, 6, epsabs=1e-10, epsrel=1e-5)
    assert found.item() == pytest.approx(math.log(value), abs=1e-4)


def test_the_grid_takes_counts_reals_and_one_dimension() -> None:
    torch.manual_seed(3)
    for head in (BinomialHead(mlp(1, 8, 4), 4, 16), NormalHead(mlp(1, 8, 4), 4, torch.tensor(0.5))):
        model = LatentVariableModel(standard_normal(1), head)
        x = model.sample(3).x
        few, many = (posterior_on_grid(model, x, side=side, bound=6.0).log_evidence for side in (161, 641))
        assert torch.allclose(few, many, atol=1e-7)
        assert few.shape == (3,)


def test_draws_from_the_grid_have_its_mean_and_covariance(linear: tuple[LinearGaussian, Tensor]) -> None:
    model, x = linear
    torch.manual_seed(4)
    z = posterior_on_grid(model, x).sample(20_000)
    posterior = model.posterior(x)
    assert z.shape == (20_000, 4, 2)
    assert ((z.mean(0) - posterior.mean).abs() < 4.5 * posterior.stddev / math.sqrt(20_000)).all()
    for n in range(4):
        assert torch.allclose(z[:, n].T.cov(), posterior.covariance_matrix[n], rtol=0.06, atol=2e-3)


def test_a_posterior_that_reaches_the_border_is_refused() -> None:
    model = LinearGaussian(torch.ones(1, 1), torch.zeros(1), torch.tensor(0.1))
    with pytest.raises(ValueError, match=r"bound must enclose the posteriors; received 5.0.*row 1"):
        posterior_on_grid(model, torch.tensor([[0.0], [5.0]]))


def test_what_does_not_fit_is_refused(linear: tuple[LinearGaussian, Tensor]) -> None:
    model, x = linear
    three = LatentVariableModel(standard_normal(3), BernoulliHead(mlp(3, 4), 4))
    grey = LatentVariableModel(standard_normal(2), BernoulliHead(mlp(2, 3), 3))
    laplace = Laplace(torch.zeros(4, 2), torch.ones(4, 2))
    with pytest.raises(ValueError, match="one or two dimensions for a grid; received 3"):
        posterior_on_grid(three, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"x must lie in the support.*binarise them"):
        posterior_on_grid(grey, torch.full((2, 3), 0.5))
    with pytest.raises(TypeError, match="model must be a LatentVariableModel; received Linear"):
        posterior_on_grid(nn.Linear(1, 1), x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="q must be a Normal over vectors"):
        expected_elbo(model.given(x), laplace)
    with pytest.raises(ValueError, match="at most a million points"):
        gauss_hermite(100, 4)


def test_the_attributes_fit_each_other() -> None:
    z = torch.cartesian_prod(torch.tensor([-1.0, 1.0]), torch.tensor([-1.0, 1.0]))
    grid = GridPosterior(z, torch.full((4, 1), 0.25).log(), torch.zeros(1), 2.0)
    reference = MultivariateNormal(torch.zeros(2), torch.eye(2))
    assert torch.allclose(grid.mean[0], reference.mean)
    assert torch.allclose(grid.covariance[0], reference.covariance_matrix)
