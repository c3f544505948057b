"""Densities against SciPy, and the two closed-form KLs against dense linear algebra and quadrature."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

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

pytestmark = pytest.mark.usefixtures("_float64")

shapes = st.tuples(st.lists(st.integers(1, 3), max_size=2).map(tuple), st.integers(1, 4), st.integers(0, 2**16))


def _tril(batch: tuple[int, ...], dim: int) -> Tensor:
    """Lower-triangular factors with a diagonal between 0.5 and 1.5."""
    return torch.randn(*batch, dim, dim).tril(-1) + torch.diag_embed(0.5 + torch.rand(*batch, dim))


# --- Densities ------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=25)
@given(shapes)
def test_diagonal_normal_sums_scipys_log_densities_over_the_event(case: tuple[tuple[int, ...], int, int]) -> None:
    batch, dim, seed = case
    torch.manual_seed(seed)
    loc, scale, x = torch.randn(*batch, dim), 0.2 + torch.rand(*batch, dim), torch.randn(*batch, dim)
    p = diagonal_normal(loc, scale)
    assert p.batch_shape == batch
    assert p.event_shape == (dim,)
    assert np.allclose(p.log_prob(x), stats.norm.logpdf(x, loc, scale).sum(-1), rtol=1e-12, atol=1e-12)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(shapes)
def test_full_normal_is_scipys_multivariate_normal(case: tuple[tuple[int, ...], int, int]) -> None:
    batch, dim, seed = case
    torch.manual_seed(seed)
    loc, tril, x = torch.randn(*batch, dim), _tril(batch, dim), torch.randn(*batch, dim)
    p = full_normal(loc, tril)
    assert p.batch_shape == batch
    assert p.event_shape == (dim,)
    covariance = (tril @ tril.mT).reshape(-1, dim, dim).numpy()
    rows = zip(x.reshape(-1, dim), loc.reshape(-1, dim), covariance, strict=True)
    expected = [stats.multivariate_normal(m, c).logpdf(v) for v, m, c in rows]
    assert np.allclose(p.log_prob(x).reshape(-1), expected, rtol=1e-10, atol=1e-10)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(shapes)
def test_bernoulli_sums_scipys_log_probabilities_over_the_event(case: tuple[tuple[int, ...], int, int]) -> None:
    batch, dim, seed = case
    torch.manual_seed(seed)
    logits = 2 * torch.randn(*batch, dim)
    x = torch.randint(2, (*batch, dim)).double()
    p = bernoulli(logits)
    assert p.batch_shape == batch
    assert p.event_shape == (dim,)
    expected = stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-logits.numpy()))).sum(-1)
    assert np.allclose(p.log_prob(x), expected, rtol=1e-10, atol=1e-12)


def test_bernoulli_probabilities_of_all_states_sum_to_one() -> None:
    p = bernoulli(torch.tensor([0.3, -2.0, 1.5]))
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
    assert p.log_prob(states).exp().sum().item() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize(("logit", "x", "expected"), [(1e4, 0.0, -1e4), (1e4, 1.0, 0.0), (-1e4, 1.0, -1e4)])
def test_bernoulli_stays_exact_at_extreme_logits(logit: float, x: float, expected: float) -> None:
    assert bernoulli(torch.tensor([logit])).log_prob(torch.tensor([x])).item() == expected


@pytest.mark.parametrize("scale_shape", [(5, 3), (3,), ()])
def test_a_shared_scale_is_the_scale_of_every_row(scale_shape: tuple[int, ...]) -> None:
    scale = 0.5 + torch.rand(scale_shape)
    p = diagonal_normal(torch.zeros(5, 3), scale)
    assert torch.equal(p.stddev, scale.expand(5, 3))


def test_a_shared_factor_is_the_factor_of_every_row() -> None:
    tril = _tril((), 3)
    p = full_normal(torch.zeros(5, 3), tril)
    assert p.batch_shape == (5,)
    assert torch.allclose(p.covariance_matrix, (tril @ tril.mT).expand(5, 3, 3), atol=1e-14)


def test_the_second_argument_is_a_standard_deviation() -> None:
    """Not a variance, not a log variance: σ = 3 has variance 9, by density and by sample."""
    p = diagonal_normal(torch.zeros(1), torch.full((1,), 3.0))
    assert p.variance.item() == 9
    # The sample variance of 50,000 draws has a relative s.e. of 0.6 %; five of them.
    assert p.sample((50_000,)).var().item() == pytest.approx(9, rel=0.032)


@pytest.mark.parametrize(
    "make", [lambda a, b: diagonal_normal(a, b[0].exp()), lambda a, b: full_normal(a, b.exp().tril())]
)
def test_samples_carry_the_gradient_of_location_and_scale(make: object) -> None:
    loc, raw = torch.zeros(2, requires_grad=True), torch.zeros(2, 2, requires_grad=True)
    q = make(loc, raw)  # type: ignore[operator]
    q.rsample((3,)).square().sum().backward()
    assert loc.grad is not None
    assert raw.grad is not None
    assert loc.grad.ne(0).all()
    assert raw.grad.any()


# --- KL between a diagonal and a full covariance --------------------------------------------------


def _dense_kl(
    m0: NDArray[np.float64], s0: NDArray[np.float64], m1: NDArray[np.float64], s1: NDArray[np.float64]
) -> float:
    """KL(N(m0, s0) || N(m1, s1)) with inverses and determinants, in NumPy."""
    inverse = np.linalg.inv(s1)
    gap = m1 - m0
    log_dets = np.linalg.slogdet(s1)[1] - np.linalg.slogdet(s0)[1]
    return float(0.5 * (np.trace(inverse @ s0) + gap @ inverse @ gap - len(m0) + log_dets))


def _pair(batch: tuple[int, ...], dim: int) -> tuple[MultivariateNormal, Independent]:
    return (
        full_normal(torch.randn(*batch, dim), _tril(batch, dim)),
        diagonal_normal(torch.randn(*batch, dim), 0.5 + torch.rand(*batch, dim)),
    )


def _dense(p: Distribution) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    dim = p.event_shape[0]
    covariance = p.covariance_matrix if isinstance(p, MultivariateNormal) else torch.diag_embed(p.variance)
    return p.mean.reshape(-1, dim).numpy(), covariance.reshape(-1, dim, dim).numpy()


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("full_first", [True, False])
def test_kl_agrees_with_dense_linear_algebra(batch: tuple[int, ...], dim: int, full_first: bool) -> None:
    full, diagonal = _pair(batch, dim)
    q, p = (full, diagonal) if full_first else (diagonal, full)
    divergence = kl_divergence(q, p)
    assert divergence.shape == batch
    expected = [_dense_kl(*arrays) for arrays in zip(*_dense(q), *_dense(p), strict=True)]
    assert np.allclose(divergence.reshape(-1), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("full_first", [True, False])
def test_kl_agrees_with_quadrature(full_first: bool) -> None:
    full, diagonal = (
        full_normal(torch.tensor([0.3]), torch.tensor([[0.7]])),
        diagonal_normal(torch.ones(1), torch.ones(1)),
    )
    q, p = (full, diagonal) if full_first else (diagonal, full)

    def integrand(z: float) -> float:
        point = torch.tensor([z])
        return float(q.log_prob(point).exp() * (q.log_prob(point) - p.log_prob(point)))

    assert kl_divergence(q, p).item() == pytest.approx(integrate.quad(integrand, -12, 12)[0], abs=1e-9)


@pytest.mark.parametrize("full_first", [True, False])
def test_kl_is_zero_between_equals_in_two_forms(full_first: bool) -> None:
    scale = torch.tensor([0.5, 2.0])
    full, diagonal = full_normal(torch.ones(2), torch.diag(scale)), diagonal_normal(torch.ones(2), scale)
    q, p = (full, diagonal) if full_first else (diagonal, full)
    assert kl_divergence(q, p).item() == pytest.approx(0, abs=1e-14)


def test_kl_broadcasts_a_shared_prior_over_the_batch() -> None:
    full, _ = _pair((4,), 3)
    prior = diagonal_normal(torch.zeros(3), torch.ones(3))
    one_by_one = [kl_divergence(full_normal(m, t), prior) for m, t in zip(full.loc, full.scale_tril, strict=True)]
    assert torch.allclose(kl_divergence(full, prior), torch.stack(one_by_one), atol=1e-13)


@pytest.mark.parametrize("full_first", [True, False])
def test_kl_gradient_agrees_with_finite_differences(full_first: bool) -> None:
    diagonal = diagonal_normal(torch.zeros(2), torch.tensor([0.5, 2.0]))

    def divergence(loc: Tensor, log_scale: Tensor) -> Tensor:
        full = full_normal(loc, torch.diag_embed(log_scale.exp()) + torch.tensor([[0.0, 0.0], [0.4, 0.0]]))
        return kl_divergence(full, diagonal) if full_first else kl_divergence(diagonal, full)

    arguments = (torch.randn(2, requires_grad=True), torch.randn(2, requires_grad=True))
    assert torch.autograd.gradcheck(divergence, arguments)


@pytest.mark.parametrize("full_first", [True, False])
@pytest.mark.parametrize(
    "other",
    [
        lambda: bernoulli(torch.zeros(2)),
        lambda: Independent(Normal(torch.zeros(2, 2), torch.ones(2, 2)), 2),
        lambda: Independent(Bernoulli(logits=torch.zeros(2)), 1),
    ],
    ids=["bernoulli", "two event dimensions", "torch bernoulli"],
)
def test_kl_says_so_where_there_is_no_closed_form(full_first: bool, other: object) -> None:
    pair = (full_normal(torch.zeros(2), torch.eye(2)), other())  # type: ignore[operator]
    with pytest.raises(NotImplementedError, match="no closed-form KL"):
        kl_divergence(*(pair if full_first else pair[::-1]))


@pytest.mark.parametrize("full_first", [True, False])
def test_kl_refuses_events_of_different_size(full_first: bool) -> None:
    """A one-dimensional prior would broadcast against three latent dimensions and count its constants once."""
    pair = (full_normal(torch.zeros(3), torch.eye(3)), diagonal_normal(torch.zeros(1), torch.ones(1)))
    with pytest.raises(ValueError, match="event"):
        kl_divergence(*(pair if full_first else pair[::-1]))


def test_entropy_of_a_diagonal_normal_is_summed_over_the_event() -> None:
    scale = torch.tensor([0.5, 2.0, 3.0])
    expected = sum(0.5 * math.log(2 * math.pi * math.e * s**2) for s in scale.tolist())
    assert diagonal_normal(torch.zeros(3), scale).entropy().item() == pytest.approx(expected, abs=1e-12)


# --- Moments --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_the_covariance_of_every_kind_of_normal(batch: tuple[int, ...]) -> None:
    loc, scale, tril = torch.randn(*batch, 4), 0.5 + torch.rand(*batch, 4), _tril(batch, 4)
    factor = torch.randn(*batch, 4, 2)
    diagonal = np.zeros((*batch, 4, 4))
    diagonal[..., range(4), range(4)] = scale.numpy() ** 2
    assert np.allclose(covariance(diagonal_normal(loc, scale)), diagonal, atol=1e-14)
    assert np.allclose(covariance(full_normal(loc, tril)), tril @ tril.mT, atol=1e-12)
    low_rank = LowRankMultivariateNormal(loc, factor, scale**2)
    assert np.allclose(covariance(low_rank), factor @ factor.mT + diagonal, atol=1e-12)


@pytest.mark.parametrize(
    "other",
    [Normal(0.0, 1.0), Independent(Normal(torch.zeros(2, 2), torch.ones(2, 2)), 2), bernoulli(torch.zeros(3))],
    ids=["a scalar", "a matrix", "not normal"],
)
def test_other_distributions_have_no_covariance_here(other: Distribution) -> None:
    with pytest.raises(TypeError, match=r"normal must be a multivariate Normal.*received"):
        covariance(other)


# --- Counts, greys, integers ------------------------------------------------------------------------


@pytest.mark.parametrize("logit", [-1e4, -300.0, -40.0, -3.0, -0.11, -0.09, -1e-9, 0.0, 1e-5, 0.5, 20.0, 900.0, 1e4])
def test_continuous_bernoulli_integrates_to_one_with_the_right_mean_and_variance(logit: float) -> None:
    p = continuous_bernoulli(torch.tensor([logit]))
    width = min(1.0, 60 / max(abs(logit), 1.0))  # all but e^-60 of the mass lies so near the peak
    start = 1 - width if logit > 0 else 0.0
    x = torch.tensor(start + width * np.polynomial.legendre.leggauss(80)[0].reshape(-1, 1) * 0.5 + 0.5 * width)
    weight = torch.tensor(np.polynomial.legendre.leggauss(80)[1]) * width / 2
    density = p.log_prob(x.clamp(0, 1)).exp() * weight
    peak = 1.0 if logit > 0 else 0.0
    mean = (density * (x[:, 0] - peak)).sum()
    assert density.sum().item() == pytest.approx(1, abs=1e-9)
    assert (p.mean - peak).item() == pytest.approx(mean.item(), rel=1e-6)
    assert p.variance.item() == pytest.approx((density * (x[:, 0] - peak - mean) ** 2).sum().item(), rel=1e-5)


@pytest.mark.parametrize("logit", [-50.0, -1.0, -1e-6, 0.0, 0.05, 4.0, 1000.0])
def test_continuous_bernoulli_samples_follow_its_distribution_function(logit: float) -> None:
    torch.manual_seed(1)
    x = continuous_bernoulli(torch.tensor([logit])).sample(torch.Size([4000])).flatten().numpy()

    def cdf(value: NDArray[np.float64]) -> NDArray[np.float64]:
        if abs(logit) < 1e-5:
            return value
        return stats.truncexpon.cdf(value if logit < 0 else 1 - value, abs(logit), scale=1 / abs(logit))

    below = cdf(x) if logit <= 1e-5 else 1 - cdf(x)
    assert stats.kstest(below, "uniform").pvalue > 1e-3


def test_continuous_bernoulli_gradients_hold_across_its_two_formulas() -> None:
    logits = torch.tensor([-5.0, -0.0999, -0.05, 0.03, 0.1001, 2.0, 40.0], requires_grad=True)
    x = torch.linspace(0.1, 0.9, 7)
    assert torch.autograd.gradcheck(lambda value: continuous_bernoulli(value).log_prob(x), (logits,))

    def drawn(value: Tensor) -> Tensor:
        torch.manual_seed(0)
        return continuous_bernoulli(value).rsample(torch.Size([5]))

    assert torch.autograd.gradcheck(drawn, (logits,))


def test_torchs_continuous_bernoulli_is_not_a_density_far_out() -> None:
    """Why there is one here: if this fails torch has mended it, and ours can go."""
    x, weight = np.polynomial.legendre.leggauss(200)
    near_one = torch.tensor(1 - 0.005 * (x + 1) / 2)
    theirs = torch.distributions.ContinuousBernoulli(logits=torch.tensor(1e4)).log_prob(near_one)
    assert (theirs.exp() * torch.tensor(weight) * 0.0025).sum() < 0.01


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    loc=st.floats(-30, 30),
    log_scale=st.floats(-4, 6),
    low=st.integers(-5, 3),
    count=st.integers(2, 20),
    kind=st.sampled_from([(discretised_normal, stats.norm), (discretised_logistic, stats.logistic)]),
)
def test_discretised_probabilities_are_differences_of_scipys_distribution_function(
    loc: float, log_scale: float, low: int, count: int, kind: tuple[object, object]
) -> None:
    make, reference = kind
    high = low + count - 1
    p = make(torch.tensor([loc]), torch.tensor(math.exp(log_scale)), low, high)  # type: ignore[operator]
    k = torch.arange(low, high + 1).double()[:, None]
    edges = np.concatenate([[-np.inf], np.arange(low, high) + 0.5, [np.inf]])
    cdf = reference.cdf(edges, loc, math.exp(log_scale))  # type: ignore[attr-defined]
    survival = reference.sf(edges, loc, math.exp(log_scale))  # type: ignore[attr-defined]
    expected = np.where(cdf[1:] < 0.5, np.diff(cdf), -np.diff(survival))
    found = p.log_prob(k).exp()
    assert np.allclose(found, expected, rtol=1e-8, atol=1e-280)
    assert found.sum().item() == pytest.approx(1, abs=1e-9)
    assert p.mean.item() == pytest.approx((expected * k[:, 0].numpy()).sum(), abs=1e-7)


@pytest.mark.parametrize("make", [discretised_normal, discretised_logistic])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e3, 2e4, 1e10, 1e30])
@pytest.mark.parametrize("loc", [-40.0, 0.0, 3.2, 7.5, 16.0, 40.0])
def test_discretised_log_probabilities_stay_finite_and_below_zero(make: object, scale: float, loc: float) -> None:
    where = torch.tensor([loc], requires_grad=True)
    width = torch.tensor([scale], requires_grad=True)
    log_prob = make(where, width, 0, 16).log_prob(torch.arange(17.0)[:, None])  # type: ignore[operator]
    assert log_prob.isfinite().all()
    assert (log_prob <= 0).all()
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-6)
    log_prob.sum().backward()
    assert where.grad is not None
    assert width.grad is not None
    assert where.grad.isfinite().all()
    assert width.grad.isfinite().all()


@pytest.mark.parametrize("make", [discretised_normal, discretised_logistic])
def test_discretised_gradients(make: object) -> None:
    loc = torch.tensor([2.3, 9.1, -3.0], requires_grad=True)
    scale = torch.tensor([0.6, 4.0, 2.0e4], requires_grad=True)
    for x in ([2.0, 0.0, 5.0], [0.0, 16.0, 16.0], [16.0, 3.0, 0.0]):
        value = torch.tensor(x)
        assert torch.autograd.gradcheck(lambda m, s, v=value: make(m, s, 0, 16).log_prob(v), (loc, scale))  # type: ignore[operator]


@pytest.mark.parametrize("make", [discretised_normal, discretised_logistic])
def test_discretised_samples_have_their_probabilities(make: object) -> None:
    torch.manual_seed(2)
    p = make(torch.tensor([5.3]), torch.tensor(4.0), 0, 8)  # type: ignore[operator]
    counts = torch.bincount(p.sample(torch.Size([20000])).flatten().long(), minlength=9)
    expected = p.log_prob(torch.arange(9.0)[:, None]).exp() * 20000
    assert stats.chisquare(counts.numpy(), expected.numpy() * 20000 / expected.sum().item()).pvalue > 1e-3


def test_binomial_with_one_trial_is_bernoulli() -> None:
    logits, x = torch.randn(3, 5), torch.randint(0, 2, (3, 5)).double()
    assert torch.allclose(binomial(logits, 1).log_prob(x), bernoulli(logits).log_prob(x), atol=1e-12)


# --- Mixtures whose samples carry a gradient ------------------------------------------------------


def _mixture(batch: tuple[int, ...], count: int, dim: int) -> list[Tensor]:
    torch.manual_seed(3)
    return [torch.randn(*batch, count), 1.5 * torch.randn(*batch, count, dim), 0.3 + torch.rand(*batch, count, dim)]


def test_mixture_normal_is_torchs_mixture() -> None:
    logits, loc, scale = _mixture((4,), 3, 2)
    q, z = mixture_normal(logits, loc, scale), torch.randn(6, 4, 2)
    each = stats.norm.logpdf(z.numpy()[..., None, :], loc, scale).sum(-1)
    expected = np.log((np.exp(each) * logits.softmax(-1).numpy()).sum(-1))
    assert np.allclose(q.log_prob(z), expected, atol=1e-10)
    assert q.rsample(torch.Size([5])).shape == (5, 4, 2)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_mixture_samples_carry_the_gradient_of_an_expectation(dim: int) -> None:
    """d/dλ E f(z) against the exact one: for f a sine, each component's expectation is closed form."""
    parameters = [p.requires_grad_() for p in _mixture((), 3, dim)]
    frequency = torch.linspace(0.5, 1.1, dim)

    def exact(logits: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        # E sin(a·z + 0.3) under a Normal is sin(a·μ + 0.3) exp(−Σ a² σ² / 2).
        each = torch.sin(loc @ frequency + 0.3) * torch.exp(-0.5 * (scale**2 @ frequency**2))
        return (logits.softmax(-1) * each).sum()

    q = mixture_normal(*parameters)
    z = q.rsample(torch.Size([200_000]))
    drawn = torch.sin(z @ frequency + 0.3)
    for parameter, truth in zip(parameters, torch.autograd.grad(exact(*parameters), parameters), strict=True):
        (estimate,) = torch.autograd.grad(drawn.mean(), parameter, retain_graph=True)
        assert torch.allclose(estimate, truth, atol=0.012), (estimate, truth)


def test_one_component_gives_the_ordinary_pathwise_gradient() -> None:
    loc, scale = torch.tensor([[0.4, -1.0]], requires_grad=True), torch.tensor([[0.5, 2.0]], requires_grad=True)
    q = mixture_normal(torch.zeros(1), loc, scale)
    z = q.rsample(torch.Size([7]))
    noise = ((z - loc) / scale).detach()
    by_loc, by_scale = torch.autograd.grad(z.sum(), (loc, scale))
    assert torch.allclose(by_loc, torch.full((1, 2), 7.0), atol=1e-10)
    assert torch.allclose(by_scale, noise.sum(0, keepdim=True), atol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: binomial(torch.zeros(2), 0), "total_count must be at least 1; received 0"),
        (lambda: binomial(torch.tensor(0.0), 3), "logits must have at least one dimension"),
        (lambda: continuous_bernoulli(torch.tensor([math.inf])), "logits must be finite; received inf"),
        (lambda: discretised_normal(torch.zeros(2), torch.ones(3), 0, 1), r"scale must have the shape of loc \(2,\)"),
        (lambda: discretised_normal(torch.zeros(2), torch.ones(2), 4, 4), "high must be at least 5; received 4"),
        (lambda: discretised_logistic(torch.zeros(2), torch.zeros(2), 0, 4), "scale"),
        (
            lambda: mixture_normal(torch.zeros(3), torch.zeros(2, 1), torch.ones(2, 1)),
            r"loc must have shape \(3, 'D'\)",
        ),
        (
            lambda: mixture_normal(torch.zeros(3), torch.zeros(3, 2), torch.ones(3, 1)),
            r"scale must have shape \(3, 2\)",
        ),
        (lambda: mixture_normal(torch.zeros(3), torch.zeros(3, 2), -torch.ones(3, 2)), "scale"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


# --- Near a logit of zero the continuous Bernoulli's formulas cancel ------------------------------


def near_zero(logit: float) -> tuple[float, float, float]:
    """log (sinh(ℓ/2) / (ℓ/2)) and its first two derivatives, from a power series whose terms all have one sign."""
    half, terms = logit / 2, range(1, 12)
    s = sum(half ** (2 * k) / math.factorial(2 * k + 1) for k in terms)
    first = sum(k * half ** (2 * k - 1) / math.factorial(2 * k + 1) for k in terms)
    second = sum(k * (2 * k - 1) / 2 * half ** (2 * k - 2) / math.factorial(2 * k + 1) for k in terms)
    slope = first / (1 + s)
    return math.log1p(s), slope, second / (1 + s) - slope**2


@pytest.mark.parametrize("logit", [1e-9, 0.03, 0.099999, -0.099999, 0.11, -0.3, 0.9])
def test_the_continuous_bernoulli_near_a_logit_of_zero_to_the_last_digits(logit: float) -> None:
    log_normaliser, slope, curvature = near_zero(logit)
    ell = torch.tensor([logit], dtype=torch.float64, requires_grad=True)
    p = continuous_bernoulli(ell)
    for x in (0.0, 0.3, 1.0):
        log_p = p.log_prob(torch.tensor([x], dtype=torch.float64))
        assert log_p.item() == pytest.approx(logit * (x - 0.5) - log_normaliser, abs=5e-15)
        (gradient,) = torch.autograd.grad(log_p, ell)
        assert gradient.item() == pytest.approx(x - 0.5 - slope, abs=1e-10)
    cancelled = 0 if abs(logit) < 0.1 else 1e-13 / logit**2
    assert p.mean.item() == pytest.approx(0.5 + slope, abs=2e-13 + cancelled)
    assert p.variance.item() == pytest.approx(curvature, abs=7e-12 + cancelled)
    assert torch.autograd.grad(p.mean.sum(), ell)[0].item() == pytest.approx(curvature, abs=1e-8)


def test_the_continuous_bernoullis_mean_has_a_gradient_at_zero() -> None:
    ell = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(continuous_bernoulli(ell).mean.sum(), ell)[0].item() == pytest.approx(1 / 12)


@pytest.mark.parametrize("logit", [5e-5, -5e-5, 2e-4, 0.5, -2.0])
def test_the_continuous_bernoullis_samples_are_quantiles_of_uniform_numbers(logit: float) -> None:
    ell = torch.full((1,), logit, dtype=torch.float64, requires_grad=True)
    p = continuous_bernoulli(ell)
    assert p.has_rsample
    torch.manual_seed(1)
    x = p.rsample(torch.Size([1000]))
    torch.manual_seed(1)
    u = torch.rand(1000, 1, dtype=torch.float64)
    below = torch.expm1(logit * x.detach()) / math.expm1(logit)
    assert torch.allclose(below, 1 - u if logit > 0 else u, rtol=0, atol=1e-9)
    # With F(x; ℓ) held, dx/dℓ = −(∂F/∂ℓ) / p(x): next to zero it is x (1 − x) / 2.
    (gradient,) = torch.autograd.grad(x.sum(), ell)
    if abs(logit) < 1e-3:
        assert gradient.item() == pytest.approx((x * (1 - x) / 2).sum().item(), rel=1e-3)


def test_samples_at_a_logit_of_zero_have_a_gradient() -> None:
    ell = torch.zeros(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(continuous_bernoulli(ell).rsample(torch.Size([5])).sum(), ell)
    assert gradient.isfinite().all()


def test_a_value_off_the_unit_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="support"):
        continuous_bernoulli(torch.zeros(2)).log_prob(torch.tensor([0.5, 1.5]))


def test_what_makes_no_event_or_no_number_is_refused_by_name() -> None:
    one = torch.ones(())
    for make in (discretised_logistic, discretised_normal):
        with pytest.raises(ValueError, match="loc must have at least one dimension"):
            make(torch.zeros(()), one, 0, 3)
        with pytest.raises(ValueError, match="scale must have the shape of loc"):
            make(torch.zeros(4), torch.ones(3, 1), 0, 3)
    with pytest.raises(ValueError, match="logits must have at least one dimension"):
        mixture_normal(torch.zeros(()), torch.zeros(2, 1), torch.ones(2, 1))
    with pytest.raises(TypeError, match="loc must be a floating-point tensor"):
        mixture_normal(torch.zeros(2), torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1))
    with pytest.raises(ValueError, match="loc must be finite"):
        mixture_normal(torch.zeros(2), torch.full((2, 1), math.nan), torch.ones(2, 1))


@pytest.mark.parametrize("make", [discretised_normal, discretised_logistic])
def test_a_discretised_value_off_its_integers_is_refused(make: Callable[..., Distribution]) -> None:
    pixel = make(torch.zeros(1), torch.ones(()), -100, 3)
    for value in (4.0, -101.0, 0.5):
        with pytest.raises(ValueError, match="support"):
            pixel.log_prob(torch.tensor([value]))


def test_integers_go_down_to_two_to_the_31() -> None:
    least = -(2**31)
    assert tuple(discretised_normal(torch.zeros(2), torch.ones(()), least, least + 1).event_shape) == (2,)
    with pytest.raises(ValueError, match="low must be at least"):
        discretised_normal(torch.zeros(2), torch.ones(()), least - 1, least)


def test_a_cell_whose_two_edges_round_to_one_number_keeps_a_finite_log_probability() -> None:
    """Next to 4e7 float32 goes in steps of four: the logistic's log F is t there, at either edge."""
    pixel = discretised_logistic(
        torch.full((1,), 4e7, dtype=torch.float32), torch.ones((), dtype=torch.float32), 0, 255
    )
    assert pixel.log_prob(torch.full((1,), 10.0, dtype=torch.float32)).item() == pytest.approx(-4e7, rel=1e-5)


@pytest.mark.parametrize("make", [discretised_normal, discretised_logistic])
def test_the_moments_of_a_discretised_variable_are_sums_over_its_integers(make: Callable[..., Distribution]) -> None:
    pixel = make(torch.tensor([0.3, 5.0, -2.0]), torch.tensor([0.4, 2.0, 30.0]), -1, 3)
    base = pixel.base_dist  # type: ignore[attr-defined]
    k = base.enumerate_support()
    assert k.shape == (5, 3)
    assert base.enumerate_support(expand=False).shape == (5, 1)
    mass = base.log_prob(k).exp()
    assert torch.allclose(mass.sum(0), torch.ones(3), atol=1e-12)
    first, second = (k * mass).sum(0), (k**2 * mass).sum(0)
    assert torch.allclose(pixel.mean, first, atol=1e-12)
    assert torch.allclose(pixel.variance, second - first**2, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "density"),
    [(discretised_normal, stats.norm), (discretised_logistic, stats.logistic)],
    ids=["normal", "logistic"],
)
@pytest.mark.parametrize("value", [-3000.0, 0.0, 20_000.0])
def test_a_cell_far_narrower_than_the_scale_is_its_density(
    make: Callable[..., Distribution], density: Any, value: float
) -> None:
    pixel = make(torch.zeros(1), torch.full((1,), 2e4), -50_000, 50_000)
    assert pixel.log_prob(torch.tensor([value])).item() == pytest.approx(density.logpdf(value, 0, 2e4), abs=1e-8)
