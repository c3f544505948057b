"""Softened distributions: convolutions, rounding laws and weights against quadrature and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Bernoulli, Categorical, Independent, OneHotCategorical, Uniform

from vi_tutorial.distributions import bernoulli, diagonal_normal, full_normal, mixture_normal
from vi_tutorial.softened import defensive_mixture, noised, relaxed

pytestmark = pytest.mark.usefixtures("_float64")


def test_a_defensive_mixture_is_the_mixture_and_bounds_the_weights() -> None:
    torch.manual_seed(0)
    q, prior = (
        diagonal_normal(torch.full((3, 2), 4.0), torch.tensor(0.2)),
        diagonal_normal(torch.zeros(3, 2), torch.ones(2)),
    )
    safe = defensive_mixture(q, prior, 0.1)
    z = 3 * torch.randn(50, 3, 2)
    assert torch.allclose(
        safe.log_prob(z), (0.9 * q.log_prob(z).exp() + 0.1 * prior.log_prob(z).exp()).log(), atol=1e-9
    )
    assert (prior.log_prob(z) - safe.log_prob(z) <= math.log(10) + 1e-12).all()
    drawn = safe.sample(torch.Size([20_000]))
    assert drawn.shape == (20_000, 3, 2)
    share = (drawn.norm(dim=-1) < 4).double().mean(0)  # q lives beyond
    assert torch.allclose(share, torch.full((3,), 0.1), atol=0.01)


@pytest.mark.parametrize("scale", [0.01, 0.5, 3.0])
def test_noised_uniform_is_the_convolution(scale: float) -> None:
    p = noised(Uniform(torch.tensor(1.0), torch.tensor(3.0)), scale)
    for y in (-5.0, 0.9, 1.0, 2.0, 2.99, 3.4, 12.0):
        expected, _ = integrate.quad(lambda z, y=y: 0.5 * stats.norm.pdf(y, z, scale), 1, 3, points=[min(max(y, 1), 3)])
        if expected > 1e-12:  # further out the quadrature is the worse of the two
            assert p.log_prob(torch.tensor(y)).item() == pytest.approx(math.log(expected), abs=1e-6)
    assert p.log_prob(torch.tensor(1e3)).isfinite()
    torch.manual_seed(0)
    y = p.rsample(torch.Size([4000]))
    total = stats.norm.cdf
    below = [integrate.quad(lambda z, v=v: 0.5 * total((v - z) / scale), 1, 3)[0] for v in (1.5, 2.0, 2.7)]
    for v, share in zip((1.5, 2.0, 2.7), below, strict=True):
        assert (y < v).double().mean().item() == pytest.approx(share, abs=0.035)
    assert p.variance.item() == pytest.approx(4 / 12 + scale**2)


@pytest.mark.parametrize(("shift", "expected"), [(0.5, 0.115401), (1.0, 0.461794), (2.0, 1.850057), (4.0, 7.439646)])
def test_the_spread_kl_of_disjoint_uniforms(shift: float, expected: float) -> None:
    q, p = (noised(Uniform(torch.tensor(a), torch.tensor(a + 1)), 1.0) for a in (0.0, shift))
    y = torch.linspace(-12, 18, 30001)
    kl = (q.log_prob(y).exp() * (q.log_prob(y) - p.log_prob(y))).sum() * 0.001
    assert kl.item() == pytest.approx(expected, abs=1e-6)


def test_noised_normals_add_their_variances() -> None:
    torch.manual_seed(0)
    loc, tril = torch.randn(2), torch.tensor([[1.0, 0.0], [0.5, 0.4]])
    full = noised(full_normal(loc, tril), 0.7)
    assert torch.allclose(full.covariance_matrix, tril @ tril.T + 0.49 * torch.eye(2))  # type: ignore[attr-defined]
    diagonal = noised(diagonal_normal(loc, torch.tensor(0.3)), 0.4)
    assert torch.allclose(diagonal.stddev, torch.full((2,), 0.5))
    mixture = mixture_normal(torch.randn(3), torch.randn(3, 2), torch.rand(3, 2) + 0.1)
    assert torch.allclose(noised(mixture, 2.0).variance, mixture.variance + 4.0)
    assert noised(mixture, 2.0).has_rsample
    with pytest.raises(TypeError, match="distribution must be a Normal"):
        noised(Bernoulli(torch.tensor(0.5)), 1.0)
    with pytest.raises(ValueError, match="scale must be a finite positive number; received 0"):
        noised(full_normal(loc, tril), 0.0)


def test_a_defensive_mixture_refuses_what_does_not_fit() -> None:
    q = diagonal_normal(torch.zeros(3, 2), torch.ones(2))
    with pytest.raises(ValueError, match=r"broad must have the shapes of q, \(3,\) and \(2,\); received \(\)"):
        defensive_mixture(q, diagonal_normal(torch.zeros(2), torch.ones(2)), 0.1)
    with pytest.raises(ValueError, match="share must lie between 0 and 1; received 0"):
        defensive_mixture(q, q, 0)
    with pytest.raises(TypeError, match="broad must be a"):
        defensive_mixture(q, q.log_prob, 0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.1, 0.66, 3.0])
def test_a_relaxed_coin_rounds_to_the_coin_and_has_a_density(temperature: float) -> None:
    torch.manual_seed(0)
    coins = bernoulli(torch.tensor([[-2.0, 0.3], [1.0, 0.0]]))
    soft = relaxed(coins, temperature)
    assert (soft.batch_shape, soft.event_shape) == (coins.batch_shape, coins.event_shape)
    heads = (soft.rsample(torch.Size([40_000])) > 0.5).double().mean(0)
    assert torch.allclose(heads, coins.mean, atol=0.012)
    if temperature < 0.5:  # so many draws are at a corner, up to rounding, that the density cannot be integrated
        return
    one = relaxed(Bernoulli(logits=torch.tensor(0.7)), temperature)
    y = torch.linspace(-40, 40, 80_001)  # the logit of the draw
    mass = (one.log_prob(y.sigmoid()).exp() * y.sigmoid() * (-y).sigmoid()).sum() * 1e-3
    assert mass.item() == pytest.approx(1, abs=1e-6)


def test_a_relaxed_die_rounds_to_the_die() -> None:
    torch.manual_seed(0)
    die = Independent(OneHotCategorical(logits=torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 0.0]])), 1)
    soft = relaxed(die, 0.5)
    assert soft.event_shape == (2, 3)
    drawn = soft.rsample(torch.Size([40_000]))
    assert torch.allclose(drawn.sum(-1), torch.ones(40_000, 2))
    found = torch.nn.functional.one_hot(drawn.argmax(-1), 3).double().mean(0)
    assert torch.allclose(found, die.mean, atol=0.012)


def test_relaxed_refuses_what_it_cannot_soften() -> None:
    with pytest.raises(TypeError, match=r"discrete must be Bernoulli or OneHotCategorical.*received Categorical"):
        relaxed(Categorical(logits=torch.zeros(3)), 0.5)
    with pytest.raises(ValueError, match="temperature must be finite and above 0; received 0"):
        relaxed(bernoulli(torch.zeros(3)), 0)
