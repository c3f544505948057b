"""Variational families: their densities against SciPy at parameters set by hand, and what they promise as modules."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import Beta, Normal

from vi_tutorial.distributions import diagonal_normal
from vi_tutorial.elbo import draw, elbo
from vi_tutorial.families import (
    Fixed,
    FullRankNormal,
    LowRankNormal,
    MeanFieldNormal,
    PerDatapoint,
    SemiAmortised,
    VampPrior,
    standard_normal,
)
from vi_tutorial.models import LinearGaussian
from vi_tutorial.networks import DiagonalNormalHead, FullNormalHead, MixtureNormalHead, mlp

pytestmark = pytest.mark.usefixtures("_float64")

LEARNABLE: list[Callable[..., nn.Module]] = [MeanFieldNormal, FullRankNormal, LowRankNormal]


def randomise(family: nn.Module) -> None:
    with torch.no_grad():
        for parameter in family.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape))


@pytest.mark.parametrize("dim", [1, 3])
def test_mean_field_is_a_product_of_normals(dim: int) -> None:
    q = MeanFieldNormal(dim)
    randomise(q)
    z = torch.randn(4, dim)
    expected = stats.norm.logpdf(z, q.loc.detach(), q.log_scale.detach().exp()).sum(-1)
    assert np.allclose(q().log_prob(z).detach(), expected, atol=1e-12)


@pytest.mark.parametrize("dim", [1, 3])
def test_full_rank_is_scipys_multivariate_normal_with_a_log_diagonal(dim: int) -> None:
    q = FullRankNormal(dim)
    randomise(q)
    raw = q.unconstrained_tril.detach().numpy()
    tril = np.tril(raw, -1) + np.diag(np.exp(np.diag(raw)))
    z = torch.randn(4, dim)
    expected = np.atleast_1d(stats.multivariate_normal(q.loc.detach(), tril @ tril.T).logpdf(z))
    assert np.allclose(q.scale_tril.detach(), tril, atol=1e-14)
    assert np.allclose(q().log_prob(z).detach(), expected, atol=1e-11)


@pytest.mark.parametrize(("dim", "rank"), [(1, 1), (4, 1), (4, 3)])
def test_low_rank_is_scipys_multivariate_normal(dim: int, rank: int) -> None:
    q = LowRankNormal(dim, rank)
    randomise(q)
    assert q.factor.shape == (dim, rank)
    factor, scale = q.factor.detach().numpy(), q.log_scale.detach().exp().numpy()
    z = torch.randn(4, dim)
    expected = stats.multivariate_normal(q.loc.detach(), factor @ factor.T + np.diag(scale**2)).logpdf(z)
    assert np.allclose(q().log_prob(z).detach(), expected, atol=1e-11)


@pytest.mark.parametrize("make", [MeanFieldNormal, FullRankNormal, standard_normal])
def test_the_start_is_the_standard_normal(make: Callable[..., nn.Module]) -> None:
    z = torch.randn(5, 3)
    assert np.allclose(make(3)().log_prob(z).detach(), stats.norm.logpdf(z).sum(-1), atol=1e-12)


def test_low_rank_starts_near_the_standard_normal() -> None:
    covariance = LowRankNormal(4, 2)().covariance_matrix.detach()
    assert torch.allclose(covariance, torch.eye(4), atol=0.03)
    assert covariance.sub(torch.eye(4)).abs().max() > 1e-4


@pytest.mark.parametrize("make", LEARNABLE)
def test_every_parameter_gets_gradient_at_the_start(make: Callable[..., nn.Module]) -> None:
    q = make(3)
    distribution = q()
    z = distribution.rsample((64,))
    (z.sum(-1).square() - distribution.log_prob(z)).mean().backward()
    for name, parameter in q.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("make", [*LEARNABLE, standard_normal])
def test_families_do_not_look_at_the_data(make: Callable[..., nn.Module]) -> None:
    q = make(2)
    assert torch.equal(q(torch.randn(7, 3)).mean, q().mean)
    assert q().batch_shape == ()
    assert q().event_shape == (2,)


@pytest.mark.parametrize("make", [*LEARNABLE, standard_normal])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_the_one_asked_for(make: Callable[..., nn.Module], dtype: torch.dtype) -> None:
    assert make(2, dtype=dtype)().sample().dtype == dtype
    assert make(2)().sample().dtype == torch.get_default_dtype()


@pytest.mark.parametrize("make", [*LEARNABLE, standard_normal])
def test_families_move_and_are_saved_like_any_module(make: Callable[..., nn.Module]) -> None:
    q, other = make(2, dtype=torch.float64), make(2, dtype=torch.float64)
    randomise(q)
    other.load_state_dict(q.state_dict())
    z = torch.randn(3, 2)
    assert torch.equal(other().log_prob(z), q().log_prob(z))
    assert q.to(torch.float32)().sample().dtype == torch.float32


def test_a_fixed_distribution_has_nothing_to_learn() -> None:
    prior = Fixed(Beta, concentration1=torch.tensor(2.0), concentration0=torch.tensor(3.0))
    assert not list(prior.parameters())
    assert set(prior.state_dict()) == {"concentration1", "concentration0"}
    z = torch.tensor(0.3)
    assert prior().log_prob(z).item() == pytest.approx(stats.beta(2, 3).logpdf(0.3), abs=1e-12)


def test_fixed_keeps_the_names_of_its_parameters_apart() -> None:
    prior = Fixed(Normal, loc=torch.tensor(1.0), scale=torch.tensor(3.0))
    assert prior().mean.item() == 1
    assert prior().stddev.item() == 3


def test_a_fixed_distribution_does_not_follow_the_tensor_it_was_given() -> None:
    loc = torch.zeros(2, requires_grad=True)
    prior = Fixed(diagonal_normal, loc=loc, scale=torch.ones(2))
    with torch.no_grad():
        loc.add_(5)
    assert prior().mean.tolist() == [0, 0]
    assert not prior().mean.requires_grad


def test_a_bad_fixed_parameter_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="scale"):
        Fixed(diagonal_normal, loc=torch.zeros(2), scale=torch.tensor([1.0, -1.0]))


def test_the_entropy_of_full_rank_follows_its_factor() -> None:
    q = FullRankNormal(2)
    with torch.no_grad():
        q.unconstrained_tril.copy_(torch.tensor([[0.3, 9.0], [1.0, -0.5]]))  # 9: above the diagonal, without effect
    expected = math.log(2 * math.pi * math.e) + 0.3 - 0.5
    assert q().entropy().item() == pytest.approx(expected, abs=1e-12)


# --- One posterior per datapoint, and an encoder whose answer is refined ----------------------------


def test_per_datapoint_starts_at_the_encoders_answer_and_leaves_the_encoder_alone() -> None:
    encoder, x = DiagonalNormalHead(mlp(6, 8, 4), 2), torch.randn(5, 6)
    q = PerDatapoint(encoder, encoder.parameters_at(x))
    assert torch.equal(q(x).mean, encoder(x).mean)
    assert torch.equal(q(x).stddev, encoder(x).stddev)
    assert [name for name, _ in q.named_parameters()] == ["numbers"]
    with torch.no_grad():
        q.numbers[2].add_(1)
    moved = (q(x).mean != encoder(x).mean).any(-1)
    assert moved.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("head", [DiagonalNormalHead(nn.Identity(), 2), FullNormalHead(nn.Identity(), 2)])
def test_per_datapoint_rows_are_what_the_head_reads(head: DiagonalNormalHead) -> None:
    numbers = torch.randn(7, head.num_outputs(2))
    q, z = PerDatapoint(head, numbers), torch.randn(7, 2)
    for n in range(7):
        assert q(numbers).log_prob(z)[n].item() == pytest.approx(head(numbers[n]).log_prob(z[n]).item(), abs=1e-12)


def test_a_full_row_with_zeros_below_is_the_diagonal_one() -> None:
    numbers, z = torch.randn(4, 6), torch.randn(4, 3)
    diagonal = PerDatapoint(DiagonalNormalHead(nn.Identity(), 3), numbers)
    full = PerDatapoint(FullNormalHead(nn.Identity(), 3), torch.cat([numbers, torch.zeros(4, 3)], -1))
    assert torch.allclose(diagonal(z).log_prob(z), full(z).log_prob(z), atol=1e-12)


def test_per_datapoint_has_nothing_for_a_new_datapoint() -> None:
    q = PerDatapoint(DiagonalNormalHead(nn.Identity(), 2), torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"x must have the 5 rows.*received 3"):
        q(torch.zeros(3, 64))
    with pytest.raises(ValueError, match=r"numbers must be parameters for MixtureNormalHead over 2.*\(5, 4\)"):
        PerDatapoint(MixtureNormalHead(nn.Identity(), 2, 3), torch.zeros(5, 4))
    with pytest.raises(TypeError, match="head must be a Head"):
        PerDatapoint(nn.Linear(2, 2), torch.zeros(5, 4))  # type: ignore[arg-type]


def _linear() -> tuple[LinearGaussian, torch.Tensor]:
    torch.manual_seed(0)
    model = LinearGaussian(torch.tensor([[1.0, 0.3], [-0.5, 1.0], [1.0, 0.2]]), torch.zeros(3), torch.tensor(0.7))
    return model.requires_grad_(False), model.sample(6).x


def test_semi_amortised_without_steps_is_the_encoder() -> None:
    model, x = _linear()
    encoder = DiagonalNormalHead(mlp(3, 4), 2)
    q = SemiAmortised(encoder, model.given, num_steps=0, step_size=0.1)
    assert torch.equal(q(x).mean, encoder(x).mean)
    with torch.no_grad():
        assert not q(x).mean.requires_grad


def test_one_refining_step_is_gradient_ascent_on_the_same_draws() -> None:
    model, x = _linear()
    encoder = DiagonalNormalHead(mlp(3, 4), 2)
    torch.manual_seed(1)
    found = SemiAmortised(encoder, model.given, num_steps=1, step_size=0.05, num_samples=3)(x)
    torch.manual_seed(1)
    numbers = encoder.parameters_at(x).detach().requires_grad_()
    elbo(draw(model.given(x), encoder.distribution(numbers), 3).log_weight).sum().backward()
    assert numbers.grad is not None
    expected = encoder.distribution(numbers + 0.05 * numbers.grad)
    assert torch.allclose(found.mean, expected.mean, atol=1e-12)
    assert torch.allclose(found.stddev, expected.stddev, atol=1e-12)


def test_refining_raises_the_exact_bound_and_can_be_learned_through() -> None:
    model, x = _linear()
    encoder = DiagonalNormalHead(mlp(3, 4), 2)
    q = SemiAmortised(encoder, model.given, num_steps=60, step_size=0.05, num_samples=20)
    with torch.no_grad():
        refined, raw = model.elbo(x, q(x)), model.elbo(x, encoder(x))
    assert (refined > raw).all()
    assert not refined.requires_grad

    def bound(weight: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(2)
        two = SemiAmortised(DiagonalNormalHead(_Affine(weight), 2), model.given, num_steps=2, step_size=0.05)
        return model.elbo(x, two(x))

    weight = (0.1 * torch.randn(3, 4)).requires_grad_()
    assert torch.autograd.gradcheck(bound, (weight,))


class _Affine(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def test_defaults_and_starts() -> None:
    q = LowRankNormal(3)
    assert q.factor.shape == (3, 1)
    assert torch.equal(q().mean, torch.zeros(3))
    model = LinearGaussian(torch.ones(1, 1), torch.zeros(1), torch.ones(()))
    encoder = DiagonalNormalHead(mlp(1, 2), 1)
    assert SemiAmortised(encoder, model.given, num_steps=1, step_size=0.1).num_samples == 1
    with pytest.raises(ValueError, match="numbers must have 2 dimension"):
        PerDatapoint(encoder, torch.zeros(2))


def test_pseudo_inputs_may_have_one_column() -> None:
    prior = VampPrior(DiagonalNormalHead(mlp(1, 4), 2), torch.rand(5, 1))
    assert prior().event_shape == (2,)
    assert torch.allclose(prior().mixture_distribution.probs, torch.full((5,), 0.2))
