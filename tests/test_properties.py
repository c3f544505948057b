"""What must hold whatever the numbers: hypothesis looks for the ones that break it.

Where there is chance the seeds are fixed and the false-alarm rate stands beside the test: 1e-6 for each test of a
sample against a density, 7e-6 for each mean (4.5 standard errors).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Normal, Uniform, kl_divergence

from vi_tutorial.distributions import (
    bernoulli,
    binomial,
    continuous_bernoulli,
    covariance,
    diagonal_normal,
    discretised_logistic,
    discretised_normal,
    full_normal,
    mixture_normal,
)
from vi_tutorial.elbo import (
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
from vi_tutorial.evaluation import effective_sample_size, importance_sampling
from vi_tutorial.families import MeanFieldNormal, standard_normal
from vi_tutorial.models import GaussianMixture, LatentVariableModel, LinearGaussian
from vi_tutorial.networks import (
    BernoulliHead,
    ContinuousBernoulliHead,
    DiagonalNormalHead,
    DiscretisedLogisticHead,
    FullNormalHead,
    MixtureNormalHead,
    mlp,
)
from vi_tutorial.objectives import kl_per_latent
from vi_tutorial.quadrature import gauss_hermite
from vi_tutorial.softened import defensive_mixture, noised

pytestmark = pytest.mark.usefixtures("_float64")

FEW = settings(derandomize=True, deadline=None, max_examples=25)
FALSE_ALARM = 1e-6
DRAWS = 20_000  # a scale 15 % off is noticed
STANDARD_ERRORS = 4.5

seeds = st.integers(0, 2**31)
scales = st.floats(-3.0, 3.0).map(lambda power: 10.0**power)
locs = st.floats(-50.0, 50.0)
logits = st.floats(-30.0, 30.0)
sizes = st.integers(1, 4)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def factor(seed: int, *batch: int, dim: int) -> Tensor:
    raw = random(seed, *batch, dim, dim)
    return raw.tril(-1) + raw.diagonal(dim1=-2, dim2=-1).exp().diag_embed()


# --- Densities hold a mass of one ------------------------------------------------------------------------------------


def mass(q: Distribution, centre: float, width: float, low: float = -math.inf, high: float = math.inf) -> float:
    """∫ q over one dimension, in pieces that are each a few widths long."""
    edges = np.unique(np.clip(centre + width * np.array([-60, -12, -4, -1, 0, 1, 4, 12, 60]), low, high))

    def density(x: np.ndarray) -> np.ndarray:
        return q.log_prob(torch.as_tensor(x)[:, None]).exp().numpy()

    return sum(integrate.fixed_quad(density, a, b, n=80)[0] for a, b in pairwise(edges))


@given(loc=locs, scale=scales)
@FEW
def test_normals_integrate_to_one(loc: float, scale: float) -> None:
    assert mass(diagonal_normal(column(loc), column(scale)), loc, scale) == pytest.approx(1, abs=1e-9)
    assert mass(full_normal(column(loc), column(scale)[:, None]), loc, scale) == pytest.approx(1, abs=1e-9)


@given(logit=st.floats(-1e4, 1e4))
@FEW
def test_continuous_bernoullis_integrate_to_one(logit: float) -> None:
    end, width = float(logit > 0), 1 / max(1.0, abs(logit))
    assert mass(continuous_bernoulli(column(logit)), end, width, 0, 1) == pytest.approx(1, abs=1e-9)


@given(share=st.floats(-5, 5), loc=st.floats(-3, 3), scale=st.floats(0.3, 3))
@FEW
def test_mixtures_integrate_to_one(share: float, loc: float, scale: float) -> None:
    mixture = mixture_normal(column(0, share), column(loc, 0)[:, None], column(scale, 1)[:, None])
    assert mass(mixture, 0, 1) == pytest.approx(1, abs=1e-9)
    broad = defensive_mixture(diagonal_normal(column(loc), column(scale)), diagonal_normal(column(0), column(3)), 0.1)
    assert mass(broad, 0, 1) == pytest.approx(1, abs=1e-9)


@given(low=st.floats(-3, 0), width=st.floats(0.1, 4), scale=st.floats(0.1, 2))
@FEW
def test_noised_uniforms_integrate_to_one(low: float, width: float, scale: float) -> None:
    softened = noised(Uniform(torch.tensor(low), torch.tensor(low + width)), scale)
    found = integrate.quad(lambda x: softened.log_prob(torch.tensor(x)).exp().item(), low - 40, low + 44, limit=300)[0]
    assert found == pytest.approx(1, abs=1e-6)


@given(loc=locs, scale=scales, low=st.integers(-5, 0), levels=st.integers(1, 40))
@FEW
def test_probabilities_of_all_levels_sum_to_one(loc: float, scale: float, low: int, levels: int) -> None:
    values = torch.arange(low, low + levels + 1, dtype=torch.float64)[:, None]
    for make in (discretised_normal, discretised_logistic):
        log_prob = make(column(loc), column(scale), low, low + levels).log_prob(values)
        assert log_prob.logsumexp(0).item() == pytest.approx(0, abs=1e-9)


@given(logit=st.floats(-1e4, 1e4), count=st.integers(1, 30))
@FEW
def test_probabilities_of_all_counts_sum_to_one(logit: float, count: int) -> None:
    values = torch.arange(count + 1, dtype=torch.float64)[:, None]
    assert binomial(column(logit), count).log_prob(values).logsumexp(0).item() == pytest.approx(0, abs=1e-9)
    assert bernoulli(column(logit)).log_prob(values[:2]).logsumexp(0).item() == pytest.approx(0, abs=1e-9)


# --- Samples follow their densities ----------------------------------------------------------------------------------


def follows(samples: Tensor, distribution_function: Callable[[np.ndarray], np.ndarray]) -> None:
    """Kolmogorov and Smirnov's test, at a false-alarm rate of 1e-6."""
    assert stats.kstest(samples.flatten().numpy(), distribution_function).pvalue > FALSE_ALARM


@given(seed=seeds, loc=locs, scale=scales)
@FEW
def test_normal_samples_follow_their_density(seed: int, loc: float, scale: float) -> None:
    torch.manual_seed(seed)
    follows(diagonal_normal(column(loc), column(scale)).sample((DRAWS,)), stats.norm(loc, scale).cdf)


@given(seed=seeds, dim=st.integers(1, 5))
@FEW
def test_full_normal_samples_are_chi_square_when_whitened(seed: int, dim: int) -> None:
    torch.manual_seed(seed)
    tril = factor(seed, dim=dim)
    z = full_normal(random(seed + 1, dim), tril).sample((DRAWS,)) - random(seed + 1, dim)
    white = torch.linalg.solve_triangular(tril, z.T, upper=False)
    follows(white.square().sum(0), stats.chi2(dim).cdf)
    follows(white[-1], stats.norm.cdf)


@given(seed=seeds, logit=logits)
@FEW
def test_continuous_bernoulli_samples_follow_their_density(seed: int, logit: float) -> None:
    torch.manual_seed(seed)
    q = continuous_bernoulli(column(logit))
    end, width = float(logit > 0), 1 / max(1.0, abs(logit))
    edges = np.unique(np.clip(end + width * np.linspace(-30, 30, 4001), 0, 1))
    density = q.log_prob(torch.as_tensor(edges)[:, None]).exp().numpy()
    cumulated = integrate.cumulative_simpson(density, x=edges, initial=0)
    follows(q.sample((DRAWS,)), lambda x: np.interp(x, edges, cumulated))


@given(seed=seeds, share=st.floats(-4, 4), loc=st.floats(-8, 8), scale=st.floats(0.01, 5))
@FEW
def test_mixture_samples_follow_their_density(seed: int, share: float, loc: float, scale: float) -> None:
    torch.manual_seed(seed)
    q = mixture_normal(column(0, share), column(loc, 0)[:, None], column(scale, 1)[:, None])
    first, second = column(0, share).softmax(0).tolist()
    follows(q.rsample((DRAWS,)), lambda x: first * stats.norm.cdf(x, loc, scale) + second * stats.norm.cdf(x))


@given(seed=seeds, loc=st.floats(-3, 12), scale=st.floats(0.1, 20), logit=st.floats(-4, 4))
@FEW
def test_discrete_samples_have_their_probabilities(seed: int, loc: float, scale: float, logit: float) -> None:
    """Pearson's χ², over the levels where at least five are expected and the rest together."""
    torch.manual_seed(seed)
    values = torch.arange(9.0)[:, None]
    for q in (
        discretised_normal(column(loc), column(scale), 0, 8),
        discretised_logistic(column(loc), column(scale), 0, 8),
        binomial(column(logit), 8),
    ):
        expected = 4000 * q.log_prob(values).exp().numpy()
        found = np.bincount(q.sample((4000,)).flatten().long().numpy(), minlength=9)
        rare = expected < 5
        assert found[rare].sum() <= stats.poisson.isf(FALSE_ALARM, max(expected[rare].sum(), 1e-12))
        if (~rare).sum() > 1:
            often = expected[~rare] * found[~rare].sum() / expected[~rare].sum()
            assert stats.chisquare(found[~rare], often).pvalue > FALSE_ALARM


def energy(x: Tensor, y: Tensor) -> float:
    between, of_x, of_y = torch.cdist(x, y).mean(), torch.cdist(x, x).mean(), torch.cdist(y, y).mean()
    return (2 * between - of_x - of_y).item()


def test_mixtures_in_two_dimensions_pass_an_energy_test_and_a_shift_does_not() -> None:
    """Against an independent sampler, among 300 random relabellings: false alarm at most 1 in 301."""
    q = mixture_normal(column(0.5, -0.5), random(1, 2, 2) * 2, random(2, 2, 2).exp())
    choice = torch.multinomial(column(0.5, -0.5).softmax(0), 200, replacement=True)
    other = (random(1, 2, 2) * 2)[choice] + random(2, 2, 2).exp()[choice] * torch.randn(200, 2)

    def rank(x: Tensor, y: Tensor) -> int:
        both = torch.cat([x, y])
        orders = [torch.randperm(len(both)) for _ in range(300)]
        return sum(energy(both[o[: len(x)]], both[o[len(x) :]]) >= energy(x, y) for o in orders)

    samples = q.sample((200,))
    assert rank(samples, other) > 0
    assert rank(samples + 0.7, other) == 0


# --- Divergences -----------------------------------------------------------------------------------------------------


@given(seed=seeds, dim=st.integers(1, 3), first=st.booleans(), second=st.booleans())
@FEW
def test_kls_are_at_least_zero_and_what_quadrature_says(seed: int, dim: int, first: bool, second: bool) -> None:
    def normal(seed: int, full: bool) -> Distribution:
        loc = random(seed, dim)
        return full_normal(loc, factor(seed, dim=dim)) if full else diagonal_normal(loc, random(seed + 9, dim).exp())

    q, p = normal(seed, first), normal(seed + 1, second)
    nodes, weights = gauss_hermite(4, dim)  # exact: the log ratio is a quadratic
    z = q.mean + nodes @ torch.linalg.cholesky(covariance(q)).mT
    by_quadrature = (weights * (q.log_prob(z) - p.log_prob(z))).sum()
    kl = kl_divergence(q, p)
    assert kl >= 0
    assert kl.item() == pytest.approx(by_quadrature.item(), rel=1e-8, abs=1e-8)
    assert kl_divergence(q, q).item() == pytest.approx(0, abs=1e-9)
    if not first and not second:
        assert (kl_per_latent(q, p) >= -1e-12).all()
        assert kl_per_latent(q, p).sum().item() == pytest.approx(kl.item(), rel=1e-10, abs=1e-10)


# --- Bounds ----------------------------------------------------------------------------------------------------------


@given(seed=seeds, num_samples=st.integers(1, 40), spread=st.floats(0, 100))
@FEW
def test_bounds_are_ordered_and_bound(seed: int, num_samples: int, spread: float) -> None:
    w = spread * random(seed, num_samples, 3)
    ladder = [renyi(w, 5.0), renyi(w, 2.0), elbo(w), renyi(w, 0.5), iwae(w), cubo(w, 1.5), cubo(w), cubo(w, 4.0)]
    for lower, upper in pairwise(ladder):
        assert (lower <= upper + 1e-9 * (1 + spread)).all()
    assert (ladder[-1] <= w.amax(0) + 1e-9).all()
    assert (effective_sample_size(w) >= 1 - 1e-9).all()
    assert (effective_sample_size(w) <= num_samples + 1e-9).all()


@given(seed=seeds, half=st.integers(1, 8))
@FEW
def test_more_samples_never_lower_the_mean_of_the_importance_weighted_bound(seed: int, half: int) -> None:
    """Exactly: of all pairs of halves. Log is concave, so the bound of the whole is above the mean of the halves'."""
    w = 3 * random(seed, 2 * half)
    assert iwae(w) >= (iwae(w[:half]) + iwae(w[half:])) / 2 - 1e-12


@given(seed=seeds)
@FEW
def test_an_exact_elbo_is_below_the_evidence_by_the_kl(seed: int) -> None:
    model = LinearGaussian(random(seed, 3, 2), random(seed + 1, 3), random(seed + 2).exp())
    x = random(seed + 3, 4, 3)
    q = full_normal(random(seed + 4, 4, 2), factor(seed + 5, 4, dim=2))
    gap = model.log_evidence(x) - model.elbo(x, q)
    assert (gap >= -1e-9).all()
    assert torch.allclose(gap, kl_divergence(q, model.posterior(x)), rtol=1e-7, atol=1e-7)


ESTIMATORS: dict[str, Callable[..., Tensor]] = {
    "pathwise": lambda f, q, k: elbo(draw(f, q, k).log_weight),
    "sticking the landing": elbo_sticking_the_landing,
    "score function": elbo_score_function,
    "leave one out": elbo_leave_one_out,
    "weighed": lambda f, q, k: elbo(weigh(f, q, q.sample((k,))).log_weight),
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("num_samples", [2, 7])
def test_estimators_of_the_elbo_are_unbiased(name: str, num_samples: int) -> None:
    """20,000 estimates within 4.5 standard errors; one without its entropy, 0.9 nats, is 300 away."""
    model = LinearGaussian(column(1.0, 0.5)[:, None], torch.zeros(2), torch.tensor(0.8))
    x = column(0.3, -1.0).expand(20_000, 2)
    q = diagonal_normal(column(0.2).expand(20_000, 1), column(0.6).expand(20_000, 1))
    values = ESTIMATORS[name](model.given(x), q, num_samples)
    exact = model.elbo(x[:1], diagonal_normal(column(0.2)[None], column(0.6)[None])).item()
    error = values.std().item() / math.sqrt(len(values))
    assert error < 0.003
    assert abs(values.mean().item() - exact) < STANDARD_ERRORS * error


@pytest.mark.parametrize("num_samples", [1, 4])
def test_mean_weights_are_unbiased_for_the_evidence(num_samples: int) -> None:
    model = LinearGaussian(column(1.0, 0.5)[:, None], torch.zeros(2), torch.tensor(0.8))
    x = column(0.3, -1.0).expand(40_000, 2)
    wide = diagonal_normal(torch.zeros(40_000, 1), torch.full((40_000, 1), 1.2))
    for bound in (
        iwae(draw(model.given(x), wide, num_samples).log_weight),
        iwae_doubly_reparameterised(model.given(x), wide, num_samples),
    ):
        ratio = (bound - model.log_evidence(x)).detach().exp()
        error = ratio.std().item() / math.sqrt(len(ratio))
        assert error < 0.02
        assert abs(ratio.mean().item() - 1) < STANDARD_ERRORS * error


@given(seed=seeds, num_data=st.integers(2, 6))
@FEW
def test_the_scaled_minibatch_is_unbiased_over_all_minibatches(seed: int, num_data: int) -> None:
    bound = random(seed, num_data)
    totals = [dataset_total(bound[[i, j]], num_data) for i in range(num_data) for j in range(num_data) if i != j]
    assert torch.stack(totals).mean().item() == pytest.approx(bound.sum().item(), abs=1e-9)


# --- Each datapoint for itself ---------------------------------------------------------------------------------------


def per_datapoint() -> Iterator[tuple[str, Callable[[Tensor], Tensor], int]]:
    """Names, functions from data to one number (or row) per datapoint, and the data's dimension."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        linear = LinearGaussian(random(0, 3, 2), random(1, 3), column(0.5, 1.0, 2.0))
        mixture = GaussianMixture(column(0.3, 0.7), random(2, 2, 3), torch.eye(3, dtype=torch.float64).repeat(2, 1, 1))
        heads = [
            head(mlp(3, 5, head.num_outputs(2), activation=nn.Tanh).double(), 2)
            for head in (BernoulliHead, ContinuousBernoulliHead, DiagonalNormalHead, FullNormalHead)
        ]
        heads.append(MixtureNormalHead(mlp(3, 5, MixtureNormalHead.num_outputs(2, 3)).double(), 2, 3))
        heads.append(DiscretisedLogisticHead(mlp(3, 5, DiscretisedLogisticHead.num_outputs(2)).double(), 2, 0, 4))
    yield "linear evidence", linear.log_evidence, 3
    yield "linear posterior", lambda x: linear.posterior(x).mean, 3
    yield "mixture evidence", mixture.log_evidence, 3
    yield "mixture posterior", lambda x: mixture.posterior(x).probs, 3
    yield "enumerated", lambda x: elbo_enumerated(mixture.given(x), mixture.posterior(x)), 3
    yield "linear elbo", lambda x: linear.elbo(x, diagonal_normal(x[:, :2], x[:, :2].exp())), 3
    for head in heads:
        yield type(head).__name__, lambda x, head=head: head(x).log_prob(torch.zeros(len(x), 2, dtype=torch.float64)), 3


@pytest.mark.parametrize(
    ("function", "dim"), [case[1:] for case in per_datapoint()], ids=[case[0] for case in per_datapoint()]
)
@given(seed=seeds, num_data=st.integers(1, 6), repeats=st.integers(1, 3))
@settings(FEW, max_examples=10)
def test_datapoints_do_not_feel_each_other(
    function: Callable[[Tensor], Tensor], dim: int, seed: int, num_data: int, repeats: int
) -> None:
    """Repeated or permuted, alone or among others: each keeps its number."""
    x = random(seed, num_data, dim)
    whole = function(x)
    assert len(whole) == num_data
    assert torch.allclose(function(x.repeat(repeats, 1)), torch.cat([whole] * repeats), atol=1e-10)
    order = torch.randperm(num_data, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(function(x[order]), whole[order], atol=1e-10)
    assert torch.allclose(torch.cat([function(row[None]) for row in x]), whole, atol=1e-10)


@given(seed=seeds, num_samples=st.integers(2, 6))
@FEW
def test_the_order_of_samples_means_nothing(seed: int, num_samples: int) -> None:
    w = random(seed, num_samples, 3)
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed))
    for bound in (elbo, iwae, cubo, lambda w: renyi(w, 0.3), effective_sample_size):
        assert torch.allclose(bound(w), bound(w[order]), atol=1e-12)


# --- Nothing is broadcast by accident --------------------------------------------------------------------------------


@given(loc=st.lists(sizes, min_size=1, max_size=3), scale=st.lists(sizes, min_size=1, max_size=3))
@settings(FEW, max_examples=100)
def test_shapes_that_only_broadcast_are_refused(loc: list[int], scale: list[int]) -> None:
    """A scale may be shared by all rows, ``(D,)``, and nothing else."""
    shared = loc == scale or scale == loc[-1:]
    if shared:
        assert diagonal_normal(torch.zeros(loc), torch.ones(scale)).batch_shape == torch.Size(loc[:-1])
    else:
        with pytest.raises(ValueError, match="scale must"):
            diagonal_normal(torch.zeros(loc), torch.ones(scale))


@given(batch=st.lists(sizes, max_size=2), shape=st.lists(sizes, max_size=3), num_samples=sizes)
@settings(FEW, max_examples=100)
def test_joints_of_another_shape_are_refused(batch: list[int], shape: list[int], num_samples: int) -> None:
    q = diagonal_normal(torch.zeros(*batch, 2), torch.ones(2))
    for estimator in (draw, elbo_sticking_the_landing, elbo_score_function):
        if shape == [num_samples, *batch]:
            estimator(lambda z: torch.zeros(shape) + 0 * z.sum(), q, num_samples)
        else:
            with pytest.raises(ValueError, match="log_joint"):
                estimator(lambda z: torch.zeros(shape), q, num_samples)


@given(rows=st.integers(2, 5), wrong=st.sampled_from([(1, 3), (3,), (5, 1), (7, 3), (5, 1, 3)]))
@FEW
def test_data_of_another_batch_are_refused(rows: int, wrong: tuple[int, ...]) -> None:
    model = LinearGaussian(torch.ones(3, 2), torch.zeros(3), torch.tensor(1.0))
    with pytest.raises(ValueError, match="x must"):
        model.given(torch.zeros(wrong))(torch.zeros(4, rows if rows != wrong[0] else 6, 2))


# --- Types and threads -----------------------------------------------------------------------------------------------


@given(seed=seeds)
@FEW
def test_float32_stays_float32_and_near_float64(seed: int) -> None:
    loc, scale = random(seed, 4, 3), random(seed + 1, 4, 3).exp()
    tril, x = factor(seed + 2, dim=3), random(seed + 3, 4, 3)

    def values(dtype: torch.dtype) -> list[Tensor]:
        a, b, c, value = (t.to(dtype) for t in (loc, scale, tril, x))
        w = 3 * (a - value)
        return [
            diagonal_normal(a, b).log_prob(value),
            full_normal(a, c).log_prob(value),
            continuous_bernoulli(a).log_prob(value.sigmoid()),
            bernoulli(a).log_prob((value > 0).to(dtype)),
            binomial(a, 5).log_prob((value > 0).to(dtype)),
            discretised_normal(a, b, 0, 3).log_prob((value > 0).to(dtype)),
            discretised_logistic(a, b, 0, 3).log_prob((value > 0).to(dtype)),
            mixture_normal(a[:, :2], a[:, :2, None], b[:, :2, None]).log_prob(value[:, :1]),
            kl_divergence(diagonal_normal(a, b), full_normal(a[0], c)),
            elbo(w), iwae(w), cubo(w), renyi(w, 0.5),
        ]  # fmt: skip

    for single, double in zip(values(torch.float32), values(torch.float64), strict=True):
        assert single.dtype == torch.float32
        assert torch.allclose(single.double(), double, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("num_threads", [2, 3])
def test_the_number_of_threads_changes_rounding_alone(num_threads: int) -> None:
    def values() -> list[Tensor]:
        torch.manual_seed(0)
        model = LatentVariableModel(standard_normal(2), BernoulliHead(mlp(2, 64, 200), 200)).double()
        x = (torch.rand(100, 200) < 0.5).double()
        q = diagonal_normal(torch.zeros(100, 2), torch.ones(2))
        draws = draw(model.given(x), q, 20)
        return [draws.z, draws.log_weight, iwae(draws.log_weight), cubo(draws.log_weight)]

    before, alone = torch.get_num_threads(), values()
    torch.set_num_threads(num_threads)
    try:
        together = values()
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone[0], together[0])
    for one, many in zip(alone, together, strict=True):
        assert torch.allclose(one, many, rtol=1e-12, atol=1e-10)


# --- Extremes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [-30, -15, 0, 15, 30])
def test_scales_from_1e_minus_30_to_1e30(power: int) -> None:
    """Densities at their own samples, divergences and gradients are finite; the density is scipy's."""
    scale = column(10.0**power).requires_grad_()
    for q in (
        diagonal_normal(column(0.0), scale),
        full_normal(column(0.0), scale[:, None]),
        mixture_normal(column(0, 1), torch.zeros(2, 1), scale.expand(2)[:, None]),
    ):
        z = q.rsample((10,))
        expected = stats.norm.logpdf(z.detach().numpy()[:, 0] / 10.0**power) - power * math.log(10)
        assert q.log_prob(z).detach().numpy() == pytest.approx(expected, rel=1e-9, abs=1e-9)
        (gradient,) = torch.autograd.grad(q.log_prob(z.detach()).sum(), scale)
        assert gradient.isfinite().all()
    assert kl_divergence(diagonal_normal(column(0.0), scale), diagonal_normal(column(0.0), 2 * scale)).item() == (
        pytest.approx(math.log(2) - 0.5 + 0.125, rel=1e-9)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", [-1e4, -89.0, 89.0, 1e4])
@pytest.mark.parametrize("make", [bernoulli, continuous_bernoulli, lambda a: binomial(a, 16)])
def test_logits_of_ten_thousand(make: Callable[[Tensor], Distribution], logit: float, dtype: torch.dtype) -> None:
    leaf = torch.tensor([logit], dtype=dtype, requires_grad=True)
    q = make(leaf)
    for value in (torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype), q.sample()):
        (gradient,) = torch.autograd.grad(make(leaf).log_prob(value), leaf)
        assert q.log_prob(value).isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("spread", [1.0, 1e4])
def test_a_hundred_thousand_samples(spread: float) -> None:
    w = spread * random(0, 100_000)
    expected = np.logaddexp.reduce(w.numpy()) - math.log(100_000)
    assert iwae(w).item() == pytest.approx(expected, rel=1e-10)
    assert cubo(w).item() == pytest.approx((np.logaddexp.reduce(2 * w.numpy()) - math.log(100_000)) / 2, rel=1e-10)
    normal = Normal(torch.zeros(()), torch.ones(()))
    estimate = importance_sampling(
        lambda z: normal.log_prob(z) - 2, Normal(torch.tensor(0.1), torch.tensor(1.1)), 100_000
    )
    assert estimate.log_evidence.item() == pytest.approx(-2, abs=0.01)


@pytest.mark.parametrize("dim", [1, 2, 64, 512])
def test_latents_of_1_to_512_dimensions(dim: int) -> None:
    """At the posterior every log weight is the evidence, in any dimension."""
    model = LinearGaussian(random(0, 3, dim) / math.sqrt(dim), torch.zeros(3), torch.tensor(1.0))
    x = random(1, 2, 3)
    log_weight = draw(model.given(x), model.posterior(x), 5).log_weight
    assert torch.allclose(log_weight, model.log_evidence(x).expand(5, 2), atol=1e-7)
    q = MeanFieldNormal(dim)()
    assert q.event_shape == (dim,)
    assert (kl_divergence(q.expand((2,)), model.posterior(x)) >= 0).all()


EMPTY: dict[str, Callable[[], Any]] = {
    "draw": lambda: draw(lambda z: z.sum(-1), diagonal_normal(torch.zeros(0, 2), torch.ones(2)), 3),
    "score function": lambda: elbo_score_function(lambda z: z.double(), Categorical(torch.ones(0, 2)), 3),
    "analytic KL": lambda: elbo_analytic_kl(
        lambda z: z.sum(-1),
        diagonal_normal(torch.zeros(0, 2), torch.ones(2)),
        diagonal_normal(torch.zeros(2), torch.ones(2)),
    ),
    "enumerated": lambda: elbo_enumerated(lambda z: z.double(), Categorical(torch.ones(0, 2))),
    "elbo": lambda: elbo(torch.zeros(3, 0)),
    "total": lambda: dataset_total(torch.zeros(0), 3),
    "evidence": lambda: LinearGaussian(torch.ones(3, 2), torch.zeros(3), torch.tensor(1.0)).log_evidence(
        torch.zeros(0, 3)
    ),
    "posterior": lambda: LinearGaussian(torch.ones(3, 2), torch.zeros(3), torch.tensor(1.0)).posterior(
        torch.zeros(0, 3)
    ),
    "sample size": lambda: effective_sample_size(torch.zeros(3, 0)),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_batch_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"empty|at least one|shape \(B,\)"):
        EMPTY[name]()
