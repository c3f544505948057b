"""The log weights and the bounds, against NumPy, SciPy's quadrature, and sums over every state."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from scipy.special import logsumexp
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    Normal,
    OneHotCategorical,
    kl_divergence,
)

from vi_tutorial.distributions import diagonal_normal, full_normal
from vi_tutorial.elbo import (
    Draws,
    cubo,
    dataset_total,
    draw,
    elbo,
    elbo_analytic_kl,
    elbo_enumerated,
    elbo_leave_one_out,
    elbo_score_function,
    elbo_sticking_the_landing,
    iwae,
    iwae_doubly_reparameterised,
    renyi,
    weigh,
)

pytestmark = pytest.mark.usefixtures("_float64")

# The reference example: z ~ N(0, 1), x | z ~ N(z, 1), x = 2, q = N(0.5, 1). Posterior N(1, 1/2), evidence
# N(2; 0, 2).
LOG_EVIDENCE = float(stats.norm.logpdf(2.0, 0.0, math.sqrt(2.0)))
EXACT_ELBO = -2.668938533204673


def reference_joint(z: Tensor) -> Tensor:
    one = torch.ones((), dtype=z.dtype)
    return Normal(0 * one, one).log_prob(z) + Normal(z, one).log_prob(2 * one)


def reference_q(batch: tuple[int, ...] = ()) -> Normal:
    return Normal(torch.full(batch, 0.5), torch.ones(batch))


def quantile_grid(q: Normal, size: int = 20_000) -> Tensor:
    """Equally weighted points: the mid-points of q's quantiles, so that a mean over them is an integral over q."""
    return q.icdf((torch.arange(size) + 0.5) / size)


def reference_log_weight(z: float) -> float:
    """The same log weight in SciPy."""
    return float(stats.norm.logpdf(z) + stats.norm.logpdf(2, z) - stats.norm.logpdf(z, 0.5))


def expectation(function: object) -> float:
    """E_q by SciPy's quadrature in the reference example."""
    return float(integrate.quad(lambda z: stats.norm.pdf(z, 0.5) * function(z), -12, 13, epsabs=1e-12)[0])  # type: ignore[operator]


# --- Drawing and weighing -------------------------------------------------------------------------


def test_the_log_weight_is_log_joint_minus_log_q() -> None:
    draws = Draws(torch.zeros(2), torch.tensor([-3.0, -5.0]), torch.tensor([-1.0, 2.0]))
    assert draws.log_weight.tolist() == [-2.0, -7.0]


@pytest.mark.parametrize(
    "q",
    [
        reference_q(),
        reference_q((3,)),
        reference_q((3, 2)),
        diagonal_normal(torch.ones(3, 2), torch.ones(2)),
        full_normal(torch.ones(2), torch.eye(2)),
    ],
    ids=["scalar", "batch", "batch of two dimensions", "vector event", "no batch"],
)
def test_draws_hold_the_samples_and_the_two_densities_of_each(q: Distribution) -> None:
    event = tuple(range(-len(q.event_shape), 0))

    def log_joint(z: Tensor) -> Tensor:
        return z.sin().sum(event) if event else z.sin()

    draws = draw(log_joint, q, num_samples=7)
    assert draws.z.shape == (7, *q.batch_shape, *q.event_shape)
    assert draws.log_q.shape == (7, *q.batch_shape)
    assert torch.equal(draws.log_joint, log_joint(draws.z))
    assert torch.equal(draws.log_q, q.log_prob(draws.z))
    assert draws.z.unique().numel() == draws.z.numel()


def test_one_sample_is_the_default() -> None:
    assert draw(reference_joint, reference_q()).z.shape == (1,)


def test_samples_come_from_q() -> None:
    """Mean and standard deviation of 40,000 draws, each within five standard errors."""
    z = draw(lambda z: -z, Normal(torch.tensor(3.0), torch.tensor(2.0)), 40_000).z
    assert z.mean().item() == pytest.approx(3, abs=5 * 2 / 200)
    assert z.std().item() == pytest.approx(2, abs=5 * 2 / math.sqrt(80_000))


def test_the_joint_may_be_zero_somewhere_but_never_nan() -> None:
    draws = weigh(lambda z: torch.where(z > 0, -z, -math.inf), reference_q(), torch.tensor([1.0, -1.0]))
    assert draws.log_joint.tolist() == [-1.0, -math.inf]
    with pytest.raises(ValueError, match=r"log_joint is NaN at index \(1,\)"):
        weigh(lambda z: z.sqrt().log(), reference_q(), torch.tensor([1.0, -1.0]))


def test_log_q_is_looked_at_too() -> None:
    class Broken(Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            return super().log_prob(value) * math.nan

    with pytest.raises(ValueError, match=r"log_q is NaN at index \(0,\); look at the parameters of q"):
        weigh(lambda z: -z, Broken(torch.tensor(0.0), torch.tensor(1.0)), torch.zeros(1))


# --- The bounds as reductions ---------------------------------------------------------------------

# Four samples of three datapoints: a reduction over the wrong axis has the wrong shape, and each column
# another spread.
LOG_WEIGHTS = np.array([[-1.0, 0.5, 3.0], [-2.5, 0.5, 0.0], [0.3, 0.5, -4.0], [-1.7, 0.5, 1.0]])


def power_mean(log_weight: np.ndarray, power: float) -> np.ndarray:
    """log of (mean w^p)^(1/p) over the first axis, in plain NumPy."""
    return np.log(np.mean(np.exp(log_weight) ** power, axis=0)) / power


def test_elbo_is_the_mean_of_the_log_weights() -> None:
    assert np.allclose(elbo(torch.tensor(LOG_WEIGHTS)), LOG_WEIGHTS.sum(0) / 4, atol=1e-14)


def test_iwae_is_the_log_of_the_mean_weight() -> None:
    assert np.allclose(iwae(torch.tensor(LOG_WEIGHTS)), np.log(np.exp(LOG_WEIGHTS).sum(0) / 4), atol=1e-14)


@pytest.mark.parametrize("alpha", [-3.0, -1.0, -0.5, 0.0, 0.3, 0.99, 1.5, 2.0, 4.0])
def test_renyi_is_a_power_mean_of_the_weights(alpha: float) -> None:
    assert np.allclose(renyi(torch.tensor(LOG_WEIGHTS), alpha), power_mean(LOG_WEIGHTS, 1 - alpha), atol=1e-12)


@pytest.mark.parametrize("order", [1.0, 1.5, 2.0, 3.0])
def test_cubo_is_a_power_mean_of_the_weights(order: float) -> None:
    assert np.allclose(cubo(torch.tensor(LOG_WEIGHTS), order), power_mean(LOG_WEIGHTS, order), atol=1e-12)


def test_two_is_cubos_default_order() -> None:
    assert np.allclose(cubo(torch.tensor(LOG_WEIGHTS)), power_mean(LOG_WEIGHTS, 2), atol=1e-12)


def test_renyi_at_one_is_the_elbo() -> None:
    assert torch.equal(renyi(torch.tensor(LOG_WEIGHTS), 1), elbo(torch.tensor(LOG_WEIGHTS)))


@pytest.mark.parametrize("distance", [1e-3, -1e-3, 1e-6, -1e-6])
def test_renyi_tends_to_the_elbo_as_alpha_tends_to_one(distance: float) -> None:
    """To first order the difference is (1 − α) Var(log w) / 2; rounding grows as 1 / |1 − α|."""
    expected = LOG_WEIGHTS.mean(0) - distance * LOG_WEIGHTS.var(0) / 2
    slack = 10 * distance**2 + 1e-14 / abs(distance)
    assert np.allclose(renyi(torch.tensor(LOG_WEIGHTS), 1 + distance), expected, rtol=0, atol=slack)


@pytest.mark.parametrize("bound", [elbo, iwae, cubo, lambda w: renyi(w, 0.5), lambda w: renyi(w, 3.0)])
def test_bounds_keep_the_dtype_and_stay_finite_at_extreme_weights(bound: object) -> None:
    """exp(±10,000) is 0 or infinity: only a log-sum-exp survives."""
    for offset in (-1e4, 1e4):
        log_weight = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float32) + offset
        value = bound(log_weight)  # type: ignore[operator]
        assert value.dtype == torch.float32
        assert (value - offset).abs().max() <= 1.01


def test_a_sample_of_zero_weight_breaks_the_elbo_and_not_the_importance_weighted_bound() -> None:
    log_weight = torch.tensor([0.0, -math.inf])
    assert elbo(log_weight).item() == -math.inf
    assert iwae(log_weight).item() == pytest.approx(-math.log(2), abs=1e-15)
    assert cubo(log_weight).item() == pytest.approx(-math.log(2) / 2, abs=1e-15)
    assert renyi(log_weight, 2.0).item() == -math.inf


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    seed=st.integers(0, 2**16),
    num_samples=st.integers(1, 9),
    batch=st.lists(st.integers(1, 3), max_size=2),
    alpha=st.sampled_from([-1.0, 0.0, 0.5, 2.0]),
)
def test_what_holds_for_every_power_mean(seed: int, num_samples: int, batch: list[int], alpha: float) -> None:
    """A constant factor comes out, order and repetition of the samples do not matter, minimum ≤ mean ≤ maximum."""
    torch.manual_seed(seed)
    log_weight = 2 * torch.randn(num_samples, *batch)
    bound = renyi(log_weight, alpha)
    assert bound.shape == tuple(batch)
    assert torch.allclose(renyi(log_weight + 7, alpha), bound + 7)
    assert torch.allclose(renyi(log_weight.flip(0), alpha), bound)
    assert torch.allclose(renyi(torch.cat([log_weight, log_weight]), alpha), bound)
    assert (bound <= log_weight.amax(0) + 1e-12).all()
    assert (bound >= log_weight.amin(0) - 1e-12).all()
    lower, upper = (elbo(log_weight), bound) if alpha < 1 else (bound, elbo(log_weight))
    assert (lower <= upper + 1e-12).all()


@pytest.mark.parametrize("bound", [elbo, iwae, cubo, lambda w: renyi(w, 0.5), lambda w: renyi(w, 3.0)])
def test_the_bounds_derivatives_agree_with_finite_differences(bound: object) -> None:
    assert torch.autograd.gradcheck(bound, torch.tensor(LOG_WEIGHTS, requires_grad=True))


# --- The bounds as integrals: the reference example -----------------------------------------------


def test_reference_values() -> None:
    assert pytest.approx(-2.265512, abs=5e-7) == LOG_EVIDENCE
    gap = LOG_EVIDENCE - EXACT_ELBO
    assert gap == pytest.approx(0.403426, abs=5e-7)
    assert expectation(reference_log_weight) == pytest.approx(EXACT_ELBO, abs=1e-10)


def test_elbo_on_a_grid_of_quantiles_is_the_integral() -> None:
    q = reference_q()
    log_weight = weigh(reference_joint, q, quantile_grid(q)).log_weight
    assert elbo(log_weight).item() == pytest.approx(EXACT_ELBO, abs=1e-3)  # log w is unbounded: the tails cost this
    assert iwae(log_weight).item() == pytest.approx(LOG_EVIDENCE, abs=1e-6)


@pytest.mark.parametrize("order", [1.5, 2.0, 3.0])
def test_cubo_is_the_integral_and_lies_above_the_evidence(order: float) -> None:
    q = reference_q()
    value = cubo(weigh(reference_joint, q, quantile_grid(q)).log_weight, order).item()
    moment = expectation(lambda z: math.exp(order * reference_log_weight(z)))
    assert value == pytest.approx(math.log(moment) / order, abs=1e-6)
    assert value > LOG_EVIDENCE + 0.05


def test_renyi_falls_with_alpha_from_above_the_evidence_to_below_the_elbo() -> None:
    q = reference_q()
    log_weight = weigh(reference_joint, q, quantile_grid(q)).log_weight
    alphas = [-2.0, -0.5, 0.0, 0.5, 1.0, 1.2]
    values = [renyi(log_weight, alpha).item() for alpha in alphas]
    assert values == sorted(values, reverse=True)
    assert values[1] > LOG_EVIDENCE > values[3]
    assert values[2] == pytest.approx(LOG_EVIDENCE, abs=1e-6)
    moment = expectation(lambda z: math.exp(0.5 * reference_log_weight(z)))
    assert values[3] == pytest.approx(2 * math.log(moment), abs=5e-6)  # the grid's own error


@pytest.mark.parametrize(
    ("num_samples", "gap", "rounding"), [(1, 0.403426, 5e-7), (10, 0.0194, 5e-5), (50, 0.0037, 5e-5)]
)
def test_importance_weighted_gaps(num_samples: int, gap: float, rounding: float) -> None:
    """100,000 / K estimates at each K, within five standard errors and the rounding of the reference.

    K = 10 and K = 50 are wide apart: one taken for the other is off by more than thirty standard errors.
    """
    repeats = 200_000 // num_samples
    bounds = iwae(draw(reference_joint, reference_q((repeats,)), num_samples).log_weight)
    error = bounds.std().item() / math.sqrt(repeats)
    assert error < 0.003
    assert bounds.mean().item() == pytest.approx(LOG_EVIDENCE - gap, abs=5 * error + rounding)


def test_importance_weighted_bounds_rise_with_their_samples_to_the_evidence() -> None:
    """Exactly, for a latent of two states: the expectation of IWAE_K is a sum over 2^K tuples."""
    q = torch.tensor([0.7, 0.3])
    log_weights = torch.tensor([-1.0, 1.5])
    log_evidence = (q * log_weights.exp()).sum().log().item()
    expected = []
    for num_samples in (1, 2, 3, 4, 8):
        states = torch.tensor(list(itertools.product([0, 1], repeat=num_samples))).T
        expected.append((q[states].prod(0) * iwae(log_weights[states])).sum().item())
    assert expected[0] == pytest.approx((q * log_weights).sum().item(), abs=1e-14)
    assert all(low + 1e-3 < high for low, high in itertools.pairwise([*expected, log_evidence]))


# --- The ELBO with a KL in closed form ------------------------------------------------------------


def test_elbo_with_analytic_kl_is_likelihood_minus_kl_on_the_same_draws() -> None:
    q, prior = diagonal_normal(torch.randn(3, 2), torch.full((2,), 0.5)), diagonal_normal(torch.zeros(2), torch.ones(2))

    def log_likelihood(z: Tensor) -> Tensor:
        return z.cos().sum(-1)

    torch.manual_seed(3)
    value = elbo_analytic_kl(log_likelihood, q, prior, num_samples=4)
    torch.manual_seed(3)
    z = q.rsample((4,))
    closed = [
        sum(0.5 * (s**2 + m**2 - 1) - math.log(s) for m, s in zip(means, scales, strict=True))
        for means, scales in zip(q.mean.tolist(), q.stddev.tolist(), strict=True)
    ]
    assert value.shape == (3,)
    assert torch.allclose(value, log_likelihood(z).sum(0) / 4 - torch.tensor(closed), atol=1e-13)


def test_elbo_with_analytic_kl_has_the_exact_elbo_as_its_mean() -> None:
    q = reference_q((40_000,))
    one = torch.ones(())
    values = elbo_analytic_kl(lambda z: Normal(z, one).log_prob(2 * one), q, Normal(0 * one, one))
    error = values.std().item() / 200
    assert error < 0.01  # the KL is 1/8: its sign, its half and its absence are all more than ten errors away
    assert values.mean().item() == pytest.approx(EXACT_ELBO, abs=5 * error)


def test_elbo_with_analytic_kl_for_a_full_covariance_uses_the_registered_divergence() -> None:
    q, prior = (
        full_normal(torch.ones(2), torch.tensor([[1.0, 0.0], [0.5, 2.0]])),
        diagonal_normal(torch.zeros(2), torch.ones(2)),
    )
    value = elbo_analytic_kl(lambda z: torch.zeros(z.shape[:1]), q, prior)
    # ½ (tr Σ + |μ|² − 2 − log det Σ), Σ = [[1, ½], [½, 4¼]], det Σ = 4
    assert value.item() == pytest.approx(-0.5 * (5.25 + 2 - 2 - math.log(4)), abs=1e-13)


def test_no_closed_form_is_said() -> None:
    class Unknown(Distribution):
        arg_constraints: dict = {}  # noqa: RUF012
        has_rsample = True

        def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
            return torch.zeros(sample_shape)

    with pytest.raises(NotImplementedError):
        elbo_analytic_kl(lambda z: z, Unknown(), Normal(torch.tensor(0.0), torch.tensor(1.0)))


@pytest.mark.parametrize("prior_batch", [(3, 1), (2,), (2, 3)], ids=str)
def test_a_prior_with_another_batch_is_refused(prior_batch: tuple[int, ...]) -> None:
    """Broadcasting it would return a bound for datapoints that are not there."""
    prior = Normal(torch.zeros(prior_batch), torch.ones(prior_batch))
    with pytest.raises(ValueError, match="prior"):
        elbo_analytic_kl(lambda z: -z, reference_q((3,)), prior)


# --- The data set's total -------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_the_minibatch_total_is_unbiased_over_all_minibatches(batch_size: int) -> None:
    bound = torch.tensor([-1.0, 4.0, 0.5, -7.0, 2.0])
    totals = [dataset_total(bound[list(rows)], 5) for rows in itertools.combinations(range(5), batch_size)]
    assert torch.stack(totals).mean().item() == pytest.approx(bound.sum().item(), abs=1e-13)


# --- The same values, whatever the gradient -------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "reduce", "num_samples"),
    [
        (elbo_sticking_the_landing, elbo, 5),
        (elbo_score_function, elbo, 5),
        (elbo_leave_one_out, elbo, 5),
        (iwae_doubly_reparameterised, iwae, 5),
        (elbo_sticking_the_landing, elbo, 1),
        (iwae_doubly_reparameterised, iwae, 1),
    ],
)
@pytest.mark.parametrize("batch", [(), (3,)])
def test_an_estimators_value_is_the_bound_of_the_same_draws(
    estimator: object, reduce: object, num_samples: int, batch: tuple[int, ...]
) -> None:
    q = reference_q(batch)
    torch.manual_seed(11)
    value = estimator(reference_joint, q, num_samples)  # type: ignore[operator]
    torch.manual_seed(11)
    expected = reduce(draw(reference_joint, q, num_samples).log_weight)  # type: ignore[operator]
    assert value.shape == batch
    assert torch.allclose(value, expected, atol=1e-14)


@pytest.mark.parametrize(
    ("estimator", "expected"), [(elbo_sticking_the_landing, 1), (elbo_score_function, 1), (elbo_leave_one_out, 2)]
)
def test_default_numbers_of_samples(estimator: object, expected: int) -> None:
    seen = []

    def log_joint(z: Tensor) -> Tensor:
        seen.append(len(z))
        return reference_joint(z)

    estimator(log_joint, reference_q())  # type: ignore[operator]
    assert seen == [expected]


def test_score_function_estimators_take_discrete_latents() -> None:
    q = Bernoulli(logits=torch.zeros(3))
    assert elbo_score_function(lambda z: q.log_prob(z) - 1, q, 4).tolist() == pytest.approx([-1, -1, -1])


# --- A sum over every state -----------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_the_enumerated_elbo_is_the_sum_written_out(batch: tuple[int, ...]) -> None:
    q, log_p = Categorical(logits=torch.randn(*batch, 4)), torch.randn(4)
    probs = q.probs.numpy()
    expected = (probs * (log_p.numpy() - np.log(probs))).sum(-1)
    bound = elbo_enumerated(lambda z: log_p[z], q)
    assert bound.shape == batch
    assert np.allclose(bound, expected, atol=1e-13)
    assert (bound < np.logaddexp.reduce(log_p.numpy())).all()


def test_the_enumerated_elbo_is_the_evidence_at_the_posterior() -> None:
    log_p = torch.randn(5)
    assert elbo_enumerated(lambda z: log_p[z], Categorical(logits=log_p)).item() == pytest.approx(
        log_p.logsumexp(0).item(), abs=1e-13
    )


def test_the_enumerated_elbo_is_what_samples_estimate() -> None:
    q, log_p = Categorical(logits=torch.randn(4)), torch.randn(4)
    log_weight = weigh(lambda z: log_p[z], q, q.sample((100_000,))).log_weight
    error = 4 * log_weight.std().item() / math.sqrt(100_000)
    assert elbo_enumerated(lambda z: log_p[z], q).item() == pytest.approx(log_weight.mean().item(), abs=error)
    assert error < 0.02


@pytest.mark.parametrize(
    ("q", "log_joint"),
    [
        (Bernoulli(torch.tensor([0.2, 0.9]).double()), lambda z: -z - 1),
        (OneHotCategorical(torch.tensor([[0.2, 0.8], [0.9, 0.1]]).double()), lambda z: -z[..., 0] - 1),
    ],
    ids=["coins", "one-hot"],
)
def test_the_enumerated_elbo_takes_every_q_whose_states_can_be_listed(q: Distribution, log_joint: object) -> None:
    p = np.array([0.2, 0.9])
    expected = -1 - p - p * np.log(p) - (1 - p) * np.log(1 - p)
    assert np.allclose(elbo_enumerated(log_joint, q), expected, atol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_independent_coins_are_enumerated_together(batch: tuple[int, ...]) -> None:
    """Three coins, eight states: the sum over each, with the joint a product of nothing."""
    torch.manual_seed(0)
    logits, table = torch.randn(*batch, 3), torch.randn(2, 2, 2)
    q = Independent(Bernoulli(logits=logits), 1)
    found = elbo_enumerated(lambda z: table[tuple(z.long().unbind(-1))], q)
    expected, heads = torch.zeros(batch), logits.sigmoid()
    for state in itertools.product((0, 1), repeat=3):
        probs = [heads[..., i] if on else 1 - heads[..., i] for i, on in enumerate(state)]
        mass = probs[0] * probs[1] * probs[2]
        expected = expected + mass * (table[state] - mass.log())
    assert found.shape == batch
    assert torch.allclose(found, expected, atol=1e-12)


def test_independent_dice_are_enumerated_together() -> None:
    torch.manual_seed(0)
    q = Independent(OneHotCategorical(logits=torch.randn(4, 2, 3)), 1)
    factors = torch.randn(2, 3)  # a joint of two factors: the sum splits
    found = elbo_enumerated(lambda z: (z * factors).sum((-1, -2)), q)
    probs = q.mean
    assert torch.allclose(found, (probs * (factors - probs.log())).sum((-1, -2)), atol=1e-12)
    with pytest.raises(ValueError, match=r"q must have at most 1048576 states to enumerate; received 2\^40"):
        elbo_enumerated(lambda z: z.sum(-1), Independent(Bernoulli(logits=torch.zeros(40)), 1))


def test_the_enumerated_elbos_gradient_is_exact_in_phi_and_theta() -> None:
    def bound(phi: Tensor, theta: Tensor) -> Tensor:
        return elbo_enumerated(lambda z: theta[z], Categorical(logits=phi))

    leaves = (torch.randn(3, 4, requires_grad=True), torch.randn(4, requires_grad=True))
    assert torch.autograd.gradcheck(bound, leaves)


@pytest.mark.parametrize("lost", [-math.inf, -2000.0], ids=["no mass", "mass that underflows"])
@pytest.mark.parametrize("log_joint", [-math.inf, -3.0, 1e300])
def test_a_state_without_mass_counts_for_nothing(lost: float, log_joint: float) -> None:
    """0 log 0 = 0, in the value and in the gradient."""
    phi = torch.tensor([0.0, lost, 0.0], requires_grad=True)
    log_p = torch.tensor([-1.0, log_joint, -3.0])
    bound = elbo_enumerated(lambda z: log_p[z], Categorical(logits=phi))
    bound.backward()
    assert bound.item() == pytest.approx(-2 + math.log(2), abs=1e-14)
    assert torch.allclose(phi.grad, torch.tensor([0.5, 0.0, -0.5]), atol=1e-14)


def test_a_state_with_mass_where_the_joint_has_none_sends_the_enumerated_elbo_to_minus_infinity() -> None:
    log_p = torch.tensor([0.0, -math.inf])
    assert elbo_enumerated(lambda z: log_p[z], Categorical(torch.tensor([0.99, 0.01]))).item() == -math.inf


def test_log_sum_exp_of_the_tests_own_oracle() -> None:
    """The oracle above exponentiates; SciPy's log-sum-exp says the same."""
    assert np.allclose(power_mean(LOG_WEIGHTS, 2), (logsumexp(2 * LOG_WEIGHTS, axis=0) - math.log(4)) / 2, atol=1e-14)
    assert kl_divergence(reference_q(), Normal(torch.tensor(0.0), torch.tensor(1.0))).item() == pytest.approx(1 / 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [1e-8, 1e-6, -1e-6, 1e-4, 9.9e-4, 1.01e-3, -1e-2])
def test_renyi_next_to_the_elbo_loses_no_digits(dtype: torch.dtype, power: float) -> None:
    log_weight = torch.tensor([-3.0, -1.0, 0.5, 2.0], dtype=dtype)
    first, second = log_weight.double().mean(), log_weight.double().var(correction=0)
    third = ((log_weight.double() - first) ** 3).mean()
    expansion = first + power * second / 2 + power**2 * third / 6  # the cumulants of log w
    tolerance = 2e-4 if dtype is torch.float32 else 1e-6
    assert renyi(log_weight, 1 - power).item() == pytest.approx(expansion.item(), abs=tolerance)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 1 - 5e-4])
def test_renyi_of_log_weights_far_apart_or_far_from_zero(alpha: float) -> None:
    """exp(1,500) is infinite, and so is exp(5e-4 · 3e6): neither may come up."""
    apart = renyi(torch.tensor([0.0, 3000.0]), alpha).item()
    if alpha < 0.5:
        assert apart == pytest.approx(3000 - math.log(2) / (1 - alpha), rel=1e-12)
    far = renyi(torch.tensor(LOG_WEIGHTS) + 1e6, alpha) - 1e6
    assert torch.allclose(far, renyi(torch.tensor(LOG_WEIGHTS), alpha), atol=1e-5)


def test_renyi_next_to_the_elbo_of_a_sample_without_weight() -> None:
    """((1 + 0) / 2)^(1 / power): finite above the ELBO, which is −∞."""
    value = renyi(torch.tensor([0.0, -math.inf]), 1 - 5e-4).item()
    assert value == pytest.approx(-math.log(2) / 5e-4, rel=1e-9)


def test_one_sample_is_the_default_with_an_analytic_kl_too() -> None:
    drawn = []
    q, prior = reference_q((3,)), Normal(torch.tensor(0.0), torch.tensor(1.0))
    elbo_analytic_kl(lambda z: drawn.append(z.shape) or -z, q, prior)  # type: ignore[func-returns-value]
    assert drawn == [(1, 3)]


def test_arguments_that_are_no_distribution_or_no_floating_point_tensor_are_refused_as_such() -> None:
    with pytest.raises(TypeError, match="q must be"):
        elbo_analytic_kl(lambda z: -z, "q", reference_q())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="bound must be"):
        dataset_total(torch.tensor([1, 2]), 4)


def test_as_many_states_as_allowed_are_enumerated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vi_tutorial.elbo._MAX_STATES", 8)
    q = Independent(Bernoulli(torch.full((3,), 0.5)), 1)
    assert elbo_enumerated(q.log_prob, q).item() == pytest.approx(0, abs=1e-15)
    four = Independent(Bernoulli(torch.full((4,), 0.5)), 1)
    with pytest.raises(ValueError, match=r"at most 8 states to enumerate; received 2\^4"):
        elbo_enumerated(four.log_prob, four)
