"""The stand-ins for the ELBO against closed forms of a linear-Gaussian model."""

from __future__ import annotations

import pytest
import torch
from scipy import integrate, special
from torch import Tensor, nn
from torch.distributions import Independent, Laplace, Normal, kl_divergence

from vi_tutorial.distributions import bernoulli, diagonal_normal, full_normal
from vi_tutorial.elbo import draw, elbo, elbo_enumerated
from vi_tutorial.families import Fixed, VampPrior, standard_normal
from vi_tutorial.models import LatentVariableModel, LinearGaussian
from vi_tutorial.networks import BernoulliHead, DiagonalNormalHead, mlp
from vi_tutorial.objectives import (
    beta_objective,
    free_bits_objective,
    kl_per_latent,
    linear_schedule,
    relaxed_objective,
    tempered,
)

pytestmark = pytest.mark.usefixtures("_float64")


@pytest.fixture
def case() -> tuple[LinearGaussian, Tensor, Independent]:
    torch.manual_seed(0)
    model = LinearGaussian(torch.tensor([[2.0, 0.9], [-0.5, 1.0], [1.0, 1.0]]), torch.randn(3), torch.tensor(0.5))
    model.requires_grad_(False)
    return model, model.sample(4).x, diagonal_normal(torch.randn(4, 2), 0.3 + torch.rand(4, 2))


def test_beta_one_is_the_elbo_draw_for_draw(case: tuple[LinearGaussian, Tensor, Independent]) -> None:
    model, x, q = case
    torch.manual_seed(1)
    found = beta_objective(model, x, q, 1.0, num_samples=7)
    torch.manual_seed(1)
    assert torch.allclose(found, elbo(draw(model.given(x), q, 7).log_weight), atol=1e-10)


@pytest.mark.parametrize("beta", [0.0, 0.3, 4.0])
def test_beta_prices_the_rate(case: tuple[LinearGaussian, Tensor, Independent], beta: float) -> None:
    model, x, q = case
    found = beta_objective(model, x, q, beta, num_samples=60_000)
    expected = model.elbo(x, q) + (1 - beta) * kl_divergence(q, model.prior())
    assert torch.allclose(found, expected, rtol=0.02)


def test_free_bits_are_the_elbo_below_and_flat_above_the_floor(
    case: tuple[LinearGaussian, Tensor, Independent],
) -> None:
    model, x, q = case
    rate = kl_per_latent(q, model.prior()).mean(0)
    reconstruction = model.elbo(x, q) + kl_divergence(q, model.prior())
    for floor in (0.0, rate.mean().item(), 50.0):
        found = free_bits_objective(model, x, q, floor, num_samples=60_000)
        expected = reconstruction - sum(max(floor, value.item()) for value in rate)
        assert torch.allclose(found, expected, rtol=0.02)


def test_a_latent_under_its_floor_has_no_pull_to_the_prior() -> None:
    model = LinearGaussian(torch.zeros(3, 2), torch.zeros(3), torch.tensor(1.0)).requires_grad_(False)
    loc = torch.tensor([[0.1, 3.0]], requires_grad=True)  # rates 0.005 and 4.5 nats; the decoder ignores both
    free_bits_objective(model, torch.zeros(1, 3), diagonal_normal(loc, torch.ones(2)), min_nats=0.5).sum().backward()
    assert loc.grad is not None
    assert torch.allclose(loc.grad, torch.tensor([[0.0, -3.0]]), atol=1e-12)


def test_rates_per_latent_are_those_of_each_coordinate(case: tuple[LinearGaussian, Tensor, Independent]) -> None:
    model, _, q = case
    found = kl_per_latent(q, model.prior())
    assert torch.allclose(found.sum(-1), kl_divergence(q, model.prior()), atol=1e-12)
    for i in range(2):
        one = Normal(q.mean[:, i], q.stddev[:, i])
        assert torch.allclose(found[:, i], kl_divergence(one, Normal(torch.zeros(4), torch.ones(4))), atol=1e-12)
    with pytest.raises(TypeError, match="q must have independent coordinates; received MultivariateNormal"):
        kl_per_latent(full_normal(torch.zeros(1, 2), torch.eye(2)), model.prior())


def test_linear_schedule_rises_and_stays() -> None:
    temperature = linear_schedule(4, start=2.0, end=0.0)
    assert [temperature(step) for step in range(6)] == [2.0, 1.5, 1.0, 0.5, 0.0, 0.0]
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        linear_schedule(0)


def test_a_tempered_normal_is_between(case: tuple[LinearGaussian, Tensor, Independent]) -> None:
    model, x, _ = case
    prior = model.prior().expand((4,))
    grid = torch.cartesian_prod(torch.linspace(-4, 4, 81), torch.linspace(-4, 4, 81))[:, None].expand(-1, 4, 2)
    weight = tempered(model.given(x), prior, 0.4)(grid).softmax(0)
    # N(z; 0, I)^0.6 [N(z; 0, I) N(x; Wz + b, σ²)]^0.4 is the posterior under a noise variance of σ² / 0.4.
    softer = LinearGaussian(model.weight, model.loc, model.noise_scale / 0.4**0.5).posterior(x)
    assert torch.allclose((weight.unsqueeze(-1) * grid).sum(0), softer.mean, atol=1e-3)
    assert torch.equal(tempered(model.given(x), prior, 1.0)(grid), model.given(x)(grid))
    assert torch.equal(tempered(model.given(x), prior, 0)(grid), prior.log_prob(grid))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x, q: beta_objective(m, x, q, -1.0), "beta must be finite and at least 0; received -1.0"),
        (lambda m, x, q: free_bits_objective(m, x, q, -0.5), "min_nats must be finite and at least 0; received -0.5"),
        (lambda m, x, q: tempered(m.given(x), q, 1.5), "beta must lie between 0 and 1; received 1.5"),
        (lambda m, x, q: beta_objective(m, x[:2], q, 1.0), r"x must have shape \(4, 3\)"),
    ],
)
def test_bad_settings_are_refused(case: tuple[LinearGaussian, Tensor, Independent], call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*case)  # type: ignore[operator]


# --- The VampPrior -----------------------------------------------------------------------------------


def test_a_vamp_prior_over_all_the_data_is_the_aggregate_posterior() -> None:
    torch.manual_seed(0)
    encoder, x = DiagonalNormalHead(mlp(5, 8, 4), 2), torch.randn(7, 5)
    prior, z = VampPrior(encoder, x), torch.randn(10, 3, 2)
    expected = torch.stack([encoder(row).log_prob(z).exp() for row in x]).mean(0).log()
    assert torch.allclose(prior().log_prob(z), expected, atol=1e-12)


def test_a_vamp_prior_learns_its_inputs_and_its_encoder() -> None:
    torch.manual_seed(0)
    encoder, x = DiagonalNormalHead(mlp(5, 8, 4), 2), (torch.rand(7, 5) > 0.5).double()
    model = LatentVariableModel(VampPrior(encoder, x[:3]), BernoulliHead(mlp(2, 8, 5), 5))
    elbo(draw(model.given(x), encoder(x), 2).log_weight).mean().backward()
    names = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert "prior.pseudo_inputs" in names
    assert any(name.startswith("prior.encoder") for name in names)
    assert model.sample(4).x.shape == (4, 5)


def test_pseudo_inputs_that_do_not_fit_are_refused() -> None:
    encoder = DiagonalNormalHead(mlp(5, 8, 4), 2)
    with pytest.raises(ValueError, match="inputs must have a last dimension of 5"):
        VampPrior(encoder, torch.zeros(3, 6))
    with pytest.raises(TypeError, match="encoder must be a torch"):
        VampPrior(standard_normal(2)(), torch.zeros(3, 6))  # type: ignore[arg-type]


def test_another_familys_prior_needs_only_log_prob() -> None:
    class LaplacePrior(nn.Module):
        def forward(self) -> Independent:
            return Independent(Laplace(torch.zeros(2), torch.ones(2)), 1)

    torch.manual_seed(0)
    model = LatentVariableModel(LaplacePrior(), BernoulliHead(mlp(2, 8, 5), 5))
    q, x = diagonal_normal(torch.zeros(3, 2), torch.ones(3, 2)), torch.zeros(3, 5)
    assert beta_objective(model, x, q, 2.0).shape == (3,)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_relaxed_objective_has_the_mean_that_quadrature_finds(temperature: float) -> None:
    """One coin z, a decoder of one pixel with logit 3 z − 1, x = 1."""
    decoder = BernoulliHead(nn.Linear(1, 1), 1)
    with torch.no_grad():
        decoder.network.weight.fill_(3.0)
        decoder.network.bias.fill_(-1.0)
    model = LatentVariableModel(Fixed(bernoulli, logits=torch.tensor([0.4])), decoder)
    x, q = torch.ones(1, 1), bernoulli(torch.tensor([[0.8]]))
    torch.manual_seed(0)
    found = relaxed_objective(model, x, q, temperature, num_samples=200_000).item()

    def log_likelihood(u: float) -> float:
        soft = special.expit((0.8 + special.logit(u)) / temperature)
        return float(special.log_expit(3 * soft - 1))

    expected = integrate.quad(log_likelihood, 0, 1, points=[special.expit(-0.8)], limit=200)[0]
    kl = sum(special.rel_entr(special.expit(s * 0.8), special.expit(s * 0.4)) for s in (1, -1))
    assert found == pytest.approx(expected - kl, abs=5e-3)
    exact = elbo_enumerated(model.given(x), q).item()
    assert abs(found - exact) > 0.02  # biased


def test_the_relaxed_objective_nears_the_elbo_as_it_cools() -> None:
    torch.manual_seed(0)
    model = LatentVariableModel(Fixed(bernoulli, logits=torch.zeros(3)), BernoulliHead(mlp(3, 8, 5), 5))
    x, q = torch.randint(0, 2, (4, 5)).double(), bernoulli(torch.randn(4, 3))
    exact = elbo_enumerated(model.given(x), q)
    gap = [(relaxed_objective(model, x, q, t, num_samples=20_000) - exact).abs().max().item() for t in (2.0, 0.5, 0.02)]
    assert gap[0] > gap[1] > gap[2]
    assert gap[2] < 0.03
