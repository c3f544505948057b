"""Annealed importance sampling on posteriors whose evidence is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vi_tutorial import annealed
from vi_tutorial.annealed import Ladder
from vi_tutorial.distributions import diagonal_normal
from vi_tutorial.models import LinearGaussian

pytestmark = pytest.mark.usefixtures("_float64")


@pytest.fixture
def case() -> tuple[LinearGaussian, Tensor]:
    torch.manual_seed(0)
    model = LinearGaussian(torch.tensor([[2.0, 0.3], [-0.5, 1.0], [1.0, 1.0]]), torch.zeros(3), torch.tensor(1.2))
    return model, model.sample(4).x


@pytest.mark.parametrize("num_leapfrog", [1, 5])
def test_both_directions_sandwich_the_exact_evidence(case: tuple[LinearGaussian, Tensor], num_leapfrog: int) -> None:
    model, x = case
    exact = model.log_evidence(x).detach()
    prior = model.prior().expand((4,))
    ladder = annealed.tune(model.given(x), prior, 20, num_leapfrog=num_leapfrog)
    lower = annealed.forward(model.given(x), prior, ladder, 2000)
    upper = annealed.reverse(model.given(x), prior, ladder, model.posterior(x).sample((2000,)))
    for estimate in (lower, upper):
        assert ((estimate.log_evidence - exact).abs() < 4 * estimate.standard_error).all()
        assert (estimate.standard_error < 0.1).all()
        assert (estimate.acceptance > 0.4).all()
    # Per chain the two sides are far apart, many standard errors: the one below, the other above.
    for estimate, sign in ((lower, 1), (upper, -1)):
        gap = sign * (exact - estimate.log_weight.mean(0))
        assert (gap > 4 * estimate.log_weight.std(0) / math.sqrt(2000)).all()


def test_the_weights_are_unbiased_with_few_and_bad_steps(case: tuple[LinearGaussian, Tensor]) -> None:
    """Step sizes far from good cost variance, never bias: E[w] = p(x), and E[1/w] = 1/p(x) in reverse."""
    model, x = case
    exact = model.log_evidence(x).detach()
    prior = model.prior().expand((4,))
    # Coarse, but fine enough for the reverse weights to have a variance: one rung is the harmonic mean, which has none.
    ladder = Ladder(torch.tensor([0.0, 0.05, 0.15, 0.3, 0.5, 0.75, 1.0]), torch.full((6, 4), 0.9), 2)
    ratio = (annealed.forward(model.given(x), prior, ladder, 40_000).log_weight - exact).exp()
    assert ((ratio.mean(0) - 1).abs() < 4 * ratio.std(0) / 200).all()
    start = model.posterior(x).sample((40_000,))
    ratio = (exact - annealed.reverse(model.given(x), prior, ladder, start).log_weight).exp()
    assert ((ratio.mean(0) - 1).abs() < 4 * ratio.std(0) / 200).all()


def test_one_temperature_is_importance_sampling(case: tuple[LinearGaussian, Tensor]) -> None:
    model, x = case
    q = diagonal_normal(model.posterior(x).mean.detach(), torch.tensor(0.6))
    ladder = Ladder(torch.tensor([0.0, 1.0]), torch.full((1, 4), 0.1), 1)
    torch.manual_seed(1)
    found = annealed.forward(model.given(x), q, ladder, 50).log_weight
    torch.manual_seed(1)
    z = q.rsample(torch.Size([50]))
    assert torch.allclose(found, (model.given(x)(z) - q.log_prob(z)).detach(), atol=1e-12)


def test_chains_end_in_the_posterior(case: tuple[LinearGaussian, Tensor]) -> None:
    model, x = case
    prior = model.prior().expand((4,))
    ladder = annealed.tune(model.given(x), prior, 40)
    estimate = annealed.forward(model.given(x), prior, ladder, 4000)
    weight = estimate.log_weight.softmax(0).unsqueeze(-1)
    mean = (weight * estimate.z).sum(0)
    spread = (weight * (estimate.z - mean) ** 2).sum(0).sqrt()
    posterior = model.posterior(x)
    assert ((mean - posterior.mean).abs() < 0.1 * posterior.stddev).all()
    assert ((spread / posterior.stddev - 1).abs() < 0.1).all()


def test_tuning_reaches_its_target(case: tuple[LinearGaussian, Tensor]) -> None:
    model, x = case
    prior = model.prior().expand((4,))
    for target in (0.5, 0.9):
        ladder = annealed.tune(model.given(x), prior, 60, num_chains=50, target_acceptance=target)
        assert annealed.forward(model.given(x), prior, ladder, 500).acceptance.mean().item() == pytest.approx(
            target, abs=0.06
        )


def test_a_step_far_too_large_is_refused_not_followed(case: tuple[LinearGaussian, Tensor]) -> None:
    model, x = case
    prior = model.prior().expand((4,))
    ladder = Ladder(torch.tensor([0.0, 1.0]), torch.full((1, 4), 1e200), 3)
    estimate = annealed.forward(model.given(x), prior, ladder, 10)
    assert estimate.z.isfinite().all()
    assert estimate.acceptance.sum() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_temperatures": 0}, "num_temperatures must be at least 1; received 0"),
        ({"num_leapfrog": 0}, "num_leapfrog must be at least 1; received 0"),
        ({"target_acceptance": 1.0}, "target_acceptance must lie between 0 and 1; received 1.0"),
        ({"first_step_size": -1.0}, "first_step_size must be a finite positive number; received -1.0"),
    ],
)
def test_bad_settings_are_refused(case: tuple[LinearGaussian, Tensor], change: dict[str, float], message: str) -> None:
    model, x = case
    settings: dict[str, float] = {"num_temperatures": 5, **change}
    with pytest.raises(ValueError, match=message):
        annealed.tune(model.given(x), model.prior().expand((4,)), **settings)  # type: ignore[arg-type]


def test_a_ladder_for_other_data_is_refused(case: tuple[LinearGaussian, Tensor]) -> None:
    model, x = case
    prior = model.prior().expand((4,))
    ladder = Ladder(torch.tensor([0.0, 1.0]), torch.full((1, 3), 0.1), 1)
    with pytest.raises(ValueError, match=r"ladder.step_size must have shape \(1, 4\).*received \(1, 3\)"):
        annealed.forward(model.given(x), prior, ladder, 5)
    with pytest.raises(TypeError, match="ladder must be a Ladder"):
        annealed.forward(model.given(x), prior, (1, 2, 3), 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_chains must be at least 2"):
        annealed.forward(model.given(x), prior, ladder, 1)
    with pytest.raises(ValueError, match="z must be finite"):
        annealed.reverse(model.given(x), prior, ladder, torch.full((2, 4, 2), math.nan))


def test_one_chain_walks_back_but_has_no_standard_error(case: tuple[LinearGaussian, Tensor]) -> None:
    """Simulated data bring one exact posterior draw each; a warning here would fail the test."""
    model, x = case
    prior = model.prior().expand((4,))
    ladder = annealed.tune(model.given(x), prior, 5)
    upper = annealed.reverse(model.given(x), prior, ladder, model.posterior(x).sample((1,)))
    assert upper.log_evidence.isfinite().all()
    assert upper.standard_error.isnan().all()
