"""Estimates of the evidence against exact ones, k̂ against weights of known tail, the ledger against arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, kl_divergence

from vi_tutorial.distributions import diagonal_normal, full_normal
from vi_tutorial.elbo import draw, iwae
from vi_tutorial.evaluation import (
    GapLedger,
    active_units,
    best_in_family,
    effective_sample_size,
    elbo_surgery,
    gap_ledger,
    importance_sampling,
    pareto_k,
    predictive_check,
    rate_distortion,
)
from vi_tutorial.families import PerDatapoint, standard_normal
from vi_tutorial.models import LatentVariableModel, LinearGaussian
from vi_tutorial.networks import BernoulliHead, DiagonalNormalHead, FullNormalHead, MixtureNormalHead, mlp
from vi_tutorial.quadrature import expected_elbo, posterior_on_grid

pytestmark = pytest.mark.usefixtures("_float64")


def standard() -> Normal:
    return Normal(torch.zeros(()), torch.ones(()))


# --- Importance sampling ---------------------------------------------------------------------------


def test_the_evidence_of_a_batch_within_its_standard_errors() -> None:
    model = LinearGaussian(torch.randn(3, 2), torch.randn(3), torch.tensor(0.8)).requires_grad_(False)
    x = torch.randn(4, 3)
    exact = model.posterior(x)
    loc = (exact.mean + 0.1).requires_grad_()
    q = diagonal_normal(loc, 1.2 * exact.variance.sqrt())
    estimate = importance_sampling(model.given(x), q, num_samples=20_000)
    for field in estimate:
        assert field.shape == (4,)
        assert not field.requires_grad  # though q can learn
    assert estimate.standard_error.max() < 0.03  # or the next line would prove little
    assert ((estimate.log_evidence - model.log_evidence(x)).abs() <= 4.5 * estimate.standard_error).all()
    assert (estimate.effective_sample_size < 20_000).all()
    assert (estimate.effective_sample_size > 2_000).all()
    assert (estimate.pareto_k < 0.7).all()


@pytest.mark.parametrize("mean", [0.3, 1.0])
def test_standard_error_and_ess_of_a_shifted_normal(mean: float) -> None:
    """p = N(0, 1), q = N(μ, 1): Var(w) = e^(μ²) − 1, ESS / K = e^(−μ²)."""
    num_samples = 100_000
    q = Normal(torch.tensor(mean), torch.ones(()))
    estimate = importance_sampling(lambda z: standard().log_prob(z) - 7, q, num_samples)
    assert estimate.log_evidence.item() == pytest.approx(-7, abs=5 * estimate.standard_error.item())
    exact_error = math.sqrt((math.exp(mean**2) - 1) / num_samples)
    assert estimate.standard_error.item() == pytest.approx(exact_error, rel=0.1)
    assert estimate.effective_sample_size.item() / num_samples == pytest.approx(math.exp(-(mean**2)), rel=0.03)


def test_at_the_posterior_there_is_nothing_to_estimate() -> None:
    estimate = importance_sampling(lambda z: standard().log_prob(z) - 2.5, standard(), 50)
    assert estimate.log_evidence.item() == pytest.approx(-2.5, abs=1e-13)
    assert estimate.standard_error.item() == pytest.approx(0, abs=1e-13)
    assert estimate.effective_sample_size.item() == pytest.approx(50, abs=1e-10)
    assert estimate.pareto_k.item() == -math.inf


@pytest.mark.parametrize(("chunk_size", "sizes"), [(1000, [100]), (100, [100]), (40, [40, 40, 20]), (99, [99, 1])])
def test_chunks_add_up_to_the_number_of_samples(chunk_size: int, sizes: list[int]) -> None:
    seen = []

    def log_joint(z: Tensor) -> Tensor:
        seen.append(len(z))
        return -z.square()

    q = Normal(torch.zeros(2), torch.ones(()))
    torch.manual_seed(1)
    estimate = importance_sampling(log_joint, q, 100, chunk_size)
    assert seen == sizes
    torch.manual_seed(1)
    log_weight = torch.cat([draw(log_joint, q, size).log_weight for size in sizes])
    assert torch.allclose(estimate.log_evidence, iwae(log_weight), atol=1e-14)
    weights = log_weight.exp().numpy()
    relative_error = weights.std(0, ddof=1) / weights.mean(0) / math.sqrt(100)
    assert np.allclose(estimate.standard_error, relative_error, atol=1e-13)


def test_a_thousand_samples_at_a_time_is_the_default() -> None:
    seen = []
    importance_sampling(lambda z: (seen.append(len(z)), -z)[1], standard(), 1500)
    assert seen == [1000, 500]


# --- Effective sample size -------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=30)
@given(num_samples=st.integers(1, 9), batch=st.lists(st.integers(1, 3), max_size=2), seed=st.integers(0, 999))
def test_effective_sample_size_is_its_formula(num_samples: int, batch: list[int], seed: int) -> None:
    log_weight = torch.randn(num_samples, *batch, generator=torch.Generator().manual_seed(seed))
    weights = log_weight.exp().numpy()
    size = effective_sample_size(log_weight)
    assert size.shape == tuple(batch)
    assert np.allclose(size, weights.sum(0) ** 2 / (weights**2).sum(0), rtol=1e-12)
    assert torch.allclose(effective_sample_size(log_weight + 5000), size)
    assert (size >= 1 - 1e-12).all()
    assert (size <= num_samples + 1e-9).all()


# --- k̂ ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8, 1.2])
def test_k_of_pareto_weights_is_their_tail_index(k: float) -> None:
    """w = e^(k E), E exponential, has P(w > t) = t^(−1/k). Its s.e. from 600 tail points: (1 + k)/√600."""
    log_weight = k * torch.empty(40_000).exponential_(generator=torch.Generator().manual_seed(3))
    assert pareto_k(log_weight).item() == pytest.approx(k, abs=4 * (1 + k) / math.sqrt(600))


def test_k_sees_the_large_weights_not_the_small_ones() -> None:
    """Weights bounded above with a heavy tail towards zero: no alarm. Their reciprocals: alarm."""
    log_weight = -1.2 * torch.empty(10_000).exponential_(generator=torch.Generator().manual_seed(3))
    assert pareto_k(log_weight).item() < 0.3
    assert pareto_k(-log_weight).item() > 1


def test_k_alarms_for_a_q_with_lighter_tails_than_the_posterior() -> None:
    heavy = torch.distributions.StudentT(torch.tensor(2.0))
    narrow = importance_sampling(heavy.log_prob, standard(), 5000)
    assert narrow.pareto_k.item() > 0.7
    wide = importance_sampling(standard().log_prob, heavy, 5000)
    assert wide.pareto_k.item() < 0.3


@pytest.mark.parametrize("spread", [1e3, 1e5, 1e9])
def test_k_alarms_however_far_apart_the_weights_are(spread: float) -> None:
    """The reference underflows, and returns a small k."""
    log_weight = spread * torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert pareto_k(log_weight).item() > 10


def test_k_is_measured_up_to_a_spread_of_600_nats() -> None:
    """Of 25 weights the tail is the largest five; its second smallest and its largest are compared."""
    log_weight = torch.zeros(25)
    log_weight[-5:] = torch.tensor([0.5, 1.0, 200.0, 400.0, 601.0])
    assert pareto_k(log_weight).isfinite()
    log_weight[-1] += 0.5
    assert pareto_k(log_weight) == math.inf


def test_the_tail_is_a_fifth_of_few_weights() -> None:
    log_weight = torch.cat([torch.linspace(-9, 0, 80), torch.zeros(20)])  # the twenty largest are equal
    assert pareto_k(log_weight) == -math.inf
    log_weight[79] = 3.0
    assert pareto_k(log_weight).isfinite()


def test_k_of_each_column_is_its_own_and_does_not_feel_a_constant() -> None:
    log_weight = torch.randn(500, 2, 3) * torch.tensor([0.1, 1.0, 3.0])
    k = pareto_k(log_weight)
    assert k.shape == (2, 3)
    for row in range(2):
        for column in range(3):
            assert k[row, column].item() == pytest.approx(pareto_k(log_weight[:, row, column]).item(), abs=1e-12)
    assert torch.allclose(pareto_k(log_weight - 300), k, atol=1e-6)


def test_k_where_some_weights_do_not_vary() -> None:
    log_weight = torch.randn(500, 3)
    log_weight[:, 1] = -4.0
    k = pareto_k(log_weight)
    assert k[1].item() == -math.inf
    assert k[[0, 2]].isfinite().all()


def test_k_does_not_take_rounding_for_a_tail() -> None:
    """Log weights of a perfect q, as float64 gives them for a large data set: equal but for the last digits."""
    log_weight = -12_345.678 + 1e-11 * torch.randn(200)
    assert pareto_k(log_weight).item() == -math.inf


def test_k_keeps_the_dtype_and_carries_no_gradient() -> None:
    log_weight = torch.randn(100, dtype=torch.float32, requires_grad=True)
    assert pareto_k(log_weight).dtype == torch.float32
    assert not pareto_k(log_weight).requires_grad


# --- The gap ledger --------------------------------------------------------------------------------


def test_the_ledger_splits_the_evidence_without_remainder() -> None:
    elbo, best, evidence, reference = torch.randn(4, 6)
    ledger = gap_ledger(elbo, best, evidence, reference)
    assert ledger.elbo == pytest.approx(np.mean(elbo.tolist()), abs=1e-14)
    assert ledger.amortisation_gap == pytest.approx(best.mean().item() - elbo.mean().item(), abs=1e-13)
    assert ledger.approximation_gap == pytest.approx(evidence.mean().item() - best.mean().item(), abs=1e-13)
    assert ledger.theta_gap == pytest.approx(reference.mean().item() - evidence.mean().item(), abs=1e-13)
    total = ledger.elbo + ledger.amortisation_gap + ledger.approximation_gap
    assert total == pytest.approx(ledger.log_evidence, abs=1e-13)


def test_the_ledger_of_one_datapoint() -> None:
    ledger = gap_ledger(torch.tensor(-3.0), torch.tensor(-2.5), torch.tensor(-2.0))
    assert ledger == GapLedger(-3.0, 0.5, 0.5, -2.0, None)


def test_the_ledgers_table() -> None:
    assert str(GapLedger(-5.0, 0.5, 1.5, -3.0, -0.25)).splitlines() == [
        "ELBO                     -5.0000",
        "+ amortisation gap        0.5000",
        "+ approximation gap       1.5000",
        "= log evidence           -3.0000",
        "+ what theta loses       -0.2500",
        "= reference              -3.2500",
    ]
    assert "theta" not in str(GapLedger(-5.0, 0.5, 1.5, -3.0, None))


def test_the_table_has_no_minus_zero() -> None:
    assert "-0.0000" not in str(GapLedger(-1.0, -1e-9, -4e-5, -1.0, -1e-12))


def test_the_tests_own_oracle_of_the_shifted_normal() -> None:
    """E_q w² = e^(μ²) at μ = 1, by quadrature."""
    moment, _ = integrate.quad(lambda z: stats.norm.pdf(z) ** 2 / stats.norm.pdf(z, 1.0), -12, 12)
    assert moment == pytest.approx(math.e, rel=1e-6)


# --- The best member of a family ---------------------------------------------------------------------


def _linear(num_data: int = 5) -> tuple[LinearGaussian, Tensor]:
    torch.manual_seed(0)
    model = LinearGaussian(torch.tensor([[2.0, 0.9], [-0.5, 1.0], [1.0, 1.0]]), torch.randn(3), torch.tensor(0.5))
    return model.requires_grad_(False), model.sample(num_data).x


def test_the_best_full_normal_of_a_linear_model_is_the_posterior() -> None:
    model, x = _linear()
    q = PerDatapoint(FullNormalHead(nn.Identity(), 2), torch.zeros(5, 5))
    best = best_in_family(lambda q: model.elbo(x, q), q)
    assert torch.allclose(best, model.log_evidence(x), atol=1e-9)
    assert torch.allclose(q(x).mean, model.posterior(x).mean, atol=1e-5)
    assert torch.allclose(q(x).covariance_matrix, model.posterior(x).covariance_matrix, atol=1e-5)


def test_the_best_diagonal_normal_of_a_linear_model_has_the_precisions_diagonal() -> None:
    model, x = _linear()
    q = PerDatapoint(DiagonalNormalHead(nn.Identity(), 2), 3 * torch.randn(5, 4))
    best = best_in_family(lambda q: model.elbo(x, q), q)
    precision = model.posterior_precision()
    gap = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    assert torch.allclose(best, model.log_evidence(x) - gap, atol=1e-9)
    assert torch.allclose(q(x).variance, precision.diagonal().reciprocal().expand(5, 2), atol=1e-5)


def test_nobody_ends_below_the_start_and_richer_families_end_higher() -> None:
    torch.manual_seed(1)
    model = LatentVariableModel(standard_normal(2), BernoulliHead(mlp(2, 16, 10), 10)).requires_grad_(False)
    for p in model.parameters():
        p.mul_(3)
    x = model.sample(20).x
    exact = posterior_on_grid(model, x).log_evidence

    def objective(q: Distribution) -> Tensor:
        return expected_elbo(model.given(x), q, order=20)

    numbers = torch.randn(20, 4)
    diagonal = PerDatapoint(DiagonalNormalHead(nn.Identity(), 2), numbers)
    start = objective(diagonal(x)).detach()
    best = best_in_family(objective, diagonal)
    assert (best >= start).all()
    (gradient,) = torch.autograd.grad(objective(diagonal(x)).sum(), diagonal.numbers)
    assert gradient.abs().max() < 1e-4
    assert torch.allclose(objective(diagonal(x)).detach(), best, atol=1e-12)
    full = PerDatapoint(
        FullNormalHead(nn.Identity(), 2), torch.cat([diagonal.numbers.detach(), torch.zeros(20, 1)], -1)
    )
    assert (best_in_family(objective, full) >= best).all()
    # Two copies of the diagonal optimum, moved apart a little: a mixture that starts there can only gain.
    loc, log_scale = diagonal.numbers.detach().chunk(2, -1)
    apart = 0.1 * torch.randn(20, 2)
    twice = torch.cat([torch.zeros(20, 2), loc + apart, loc - apart, log_scale, log_scale], -1)
    mixture = PerDatapoint(MixtureNormalHead(nn.Identity(), 2, 2), twice)
    richer = best_in_family(objective, mixture)
    assert (richer > best - 0.02).all()
    assert (richer - best).mean() > 0
    assert (exact - richer > -1e-3).all()


def test_a_datapoint_does_not_see_its_neighbours() -> None:
    model, x = _linear()
    numbers = torch.randn(5, 4)
    together = best_in_family(
        lambda q: model.elbo(x, q), q := PerDatapoint(DiagonalNormalHead(nn.Identity(), 2), numbers)
    )
    for n in range(5):
        row = slice(n, n + 1)
        alone = PerDatapoint(DiagonalNormalHead(nn.Identity(), 2), numbers[row])
        assert torch.allclose(best_in_family(lambda q, r=row: model.elbo(x[r], q), alone), together[row], atol=1e-9)
        assert torch.allclose(alone.numbers, q.numbers[row], atol=1e-4)


def test_best_in_family_refuses_what_is_no_objective() -> None:
    q = PerDatapoint(DiagonalNormalHead(nn.Identity(), 1), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"objective\(q\) must have shape \(3,\)"):
        best_in_family(lambda q: q.mean.sum(), q)
    with pytest.raises(ValueError, match=r"objective\(q\) is NaN at index \(0,\)"):
        best_in_family(lambda q: q.mean.sum(-1) * math.nan, q)
    with pytest.raises(TypeError, match="q must be a PerDatapoint family"):
        best_in_family(lambda q: q.mean.sum(-1), standard_normal(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"num_steps must be .* received -1"):
        best_in_family(lambda q: q.mean.sum(-1), q, num_steps=-1)
    with pytest.raises(ValueError, match=r"tolerance must be .* received 0"):
        best_in_family(lambda q: q.mean.sum(-1), q, tolerance=0.0)


def test_a_flat_objective_is_climbed_to_its_top() -> None:
    """What is left to gain is slope² / (2 curvature): much here, though both are tiny."""
    q = PerDatapoint(DiagonalNormalHead(nn.Identity(), 1), torch.tensor([[1000.0, 0.0]]))
    best = best_in_family(lambda q: -1e-8 * q.mean.square().sum(-1), q)
    assert -1e-9 < best.item() <= 0


def test_one_step_is_damped_newton_for_each_datapoint_by_itself() -> None:
    """Half of Newton's at first; never more than ten times as far as the numbers are large."""
    start = torch.tensor([[1000.0, 0.0], [1e-3, 0.0], [0.0, 0.0]])
    curvature, peak = torch.tensor([1e-6, 1e6, 1.0]), torch.tensor([0.0, 0.0, 1e5])
    q = PerDatapoint(DiagonalNormalHead(nn.Identity(), 1), start)
    value = best_in_family(lambda q: -0.5 * curvature * (q.mean.squeeze(-1) - peak) ** 2, q, num_steps=1)
    assert torch.allclose(q.numbers[:, 0], torch.tensor([500.0, 5e-4, 10.0]), rtol=1e-7)
    assert torch.allclose(value, -0.5 * curvature * (q.numbers[:, 0] - peak) ** 2)


def test_a_proposal_that_is_no_distribution_is_not_taken() -> None:
    def objective(q: Distribution) -> Tensor:
        if (q.mean > 0.5).any():
            raise ValueError("no distribution")
        return -((q.mean - 0.6).squeeze(-1) ** 2)

    q = PerDatapoint(DiagonalNormalHead(nn.Identity(), 1), torch.tensor([[-3.0, 0.0]]))
    value = best_in_family(objective, q)
    assert 0.45 < q.numbers[0, 0] <= 0.5
    assert -0.0225 < value.item() <= -0.01 + 1e-12


# --- Rate, distortion, active units, surgery ---------------------------------------------------------


def test_rate_and_distortion_are_the_closed_forms_of_a_linear_model() -> None:
    model, x = _linear()
    q = full_normal(torch.randn(5, 2), torch.tensor([[0.5, 0.0], [0.3, 0.8]]).expand(5, 2, 2))
    found = rate_distortion(model, x, q, num_samples=40_000)
    torch.manual_seed(1)
    hundred = rate_distortion(model, x, q, num_samples=100)
    torch.manual_seed(1)
    assert torch.equal(rate_distortion(model, x, q).distortion, hundred.distortion)  # that many by default
    rate = kl_divergence(q, model.prior())
    assert torch.allclose(found.rate, rate, atol=0.05)
    assert torch.allclose(found.rate + found.distortion, -model.elbo(x, q), rtol=0.02)
    residual = x - q.mean @ model.weight.mT - model.loc
    spread = (model.weight @ q.covariance_matrix @ model.weight.mT).diagonal(dim1=-2, dim2=-1).sum(-1)
    distortion = 1.5 * math.log(2 * math.pi * 0.25) + (residual.square().sum(-1) + spread) / 0.5
    assert torch.allclose(found.distortion, distortion, rtol=0.02)


def test_active_units_are_those_whose_mean_varies() -> None:
    mean = torch.tensor([[0.0, 3.0, 0.2], [0.0, 3.0, -0.2], [0.0, 3.0, 0.2], [0.0, 3.0, -0.2]])
    found = active_units(diagonal_normal(mean, torch.ones(3)))
    assert found.active.tolist() == [False, False, True]
    assert torch.allclose(found.variance, torch.tensor([0.0, 0.0, 0.04]), atol=1e-15)
    assert not active_units(diagonal_normal(mean, torch.ones(3)), threshold=0.05).active.any()
    with pytest.raises(ValueError, match="at least two datapoints"):
        active_units(diagonal_normal(torch.zeros(3), torch.ones(3)))


def test_surgery_against_quadrature_in_one_dimension() -> None:
    loc, scale = np.array([-1.0, 0.0, 2.5]), np.array([0.5, 1.0, 0.3])
    q = diagonal_normal(torch.tensor(loc)[:, None], torch.tensor(scale)[:, None])
    torch.manual_seed(0)
    found = elbo_surgery(q, standard_normal(1)(), num_samples=100_000)

    def mixture(z: float) -> float:
        return stats.norm.pdf(z, loc, scale).mean()

    marginal, _ = integrate.quad(lambda z: mixture(z) * (math.log(mixture(z)) - stats.norm.logpdf(z)), -8, 8, limit=200)
    mean_kl = (0.5 * (loc**2 + scale**2 - 1) - np.log(scale)).mean()
    assert found.marginal_kl.item() == pytest.approx(marginal, abs=0.01)
    assert found.mean_kl.item() == pytest.approx(mean_kl, abs=0.02)
    assert found.mutual_information.item() == pytest.approx(mean_kl - marginal, abs=0.01)
    assert (found.mutual_information + found.marginal_kl - found.mean_kl).abs() < 1e-10


def test_surgery_of_posteriors_that_are_all_the_same_has_no_information() -> None:
    q = diagonal_normal(torch.ones(4, 2), torch.ones(2))
    found = elbo_surgery(q, standard_normal(2)(), num_samples=5)
    assert abs(found.mutual_information.item()) < 1e-12
    with pytest.raises(ValueError, match="at least two datapoints"):
        elbo_surgery(standard_normal(2)(), standard_normal(2)())
    with pytest.raises(ValueError, match=r"num_samples must be .* received 0"):
        elbo_surgery(q, standard_normal(2)(), num_samples=0)


def test_surgery_takes_ten_draws_of_each_and_few_pairs_at_a_time() -> None:
    q, sizes = diagonal_normal(torch.randn(20, 2000), torch.ones(2000)), []
    torch.manual_seed(0)
    ten = elbo_surgery(q, standard_normal(2000)(), num_samples=10)
    log_prob = q.log_prob

    def counted(z: Tensor) -> Tensor:
        sizes.append(z.numel() * 20)
        return log_prob(z)

    q.log_prob = counted  # type: ignore[method-assign]
    torch.manual_seed(0)
    assert elbo_surgery(q, standard_normal(2000)()) == ten
    assert sizes[1:] == [4_000_000, 4_000_000]  # after the draws' own densities: 10 × 20 codes × 20 posteriors × 2000


# --- Predictive checks --------------------------------------------------------------------------------


def test_a_true_models_p_values_are_uniform_and_a_wrong_ones_are_not() -> None:
    torch.manual_seed(3)
    p_values = [predictive_check(torch.std, torch.randn(30), torch.randn(99, 30)).p_value.item() for _ in range(300)]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3
    assert predictive_check(torch.std, torch.randn(100), 2 * torch.randn(99, 100)).p_value == 1
    assert predictive_check(torch.std, torch.randn(100), 0.5 * torch.randn(99, 100)).p_value == 0


def test_predictive_check_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"replicates must have shape \(7, 3\)"):
        predictive_check(torch.max, torch.zeros(3), torch.zeros(7, 4))
    with pytest.raises(ValueError, match=r"statistic\(x\) must have shape \(\)"):
        predictive_check(lambda x: x, torch.zeros(3), torch.zeros(7, 3))
    with pytest.raises(TypeError, match="x must be a floating-point tensor"):
        predictive_check(lambda x: x.sum(), torch.zeros(3, dtype=torch.long), torch.zeros(7, 3))
    with pytest.raises(TypeError, match="replicates must be a floating-point tensor"):
        predictive_check(lambda x: x.sum(), torch.zeros(3), torch.zeros(7, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"statistic\(replicate\) must be finite; received nan at index \(4,\)"):
        predictive_check(lambda x: x.mean().log(), torch.ones(3), torch.tensor([[1.0]] * 4 + [[-1.0]]).expand(5, 3))
