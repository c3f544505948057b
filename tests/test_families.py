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
from vi_tutorial.families import Fixed, FullRankNormal, LowRankNormal, MeanFieldNormal, standard_normal

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
