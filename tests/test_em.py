"""EM against scikit-learn, closed forms, gradients, and what theory says it can never do."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import FactorAnalysis
from sklearn.mixture import GaussianMixture as ScikitMixture
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Normal

from vi_tutorial import data, training
from vi_tutorial.distributions import diagonal_normal, full_normal
from vi_tutorial.elbo import elbo_enumerated
from vi_tutorial.em import e_step, em, m_step
from vi_tutorial.models import (
    BetaBernoulli,
    GaussianMixture,
    LinearGaussian,
    factor_analysis,
    gaussian_mixture,
    probabilistic_pca,
    probabilistic_pca_mle,
)

pytestmark = pytest.mark.usefixtures("_float64")

BEST = -1130.26396
Model = GaussianMixture | LinearGaussian


def faithful(seed: int = 0) -> tuple[GaussianMixture, Tensor]:
    x = data.old_faithful()
    return gaussian_mixture(x, 2, torch.Generator().manual_seed(seed)), x


def factors(size: int = 80, noise_scale: Tensor | None = None) -> tuple[LinearGaussian, Tensor]:
    """A linear-Gaussian model somewhere off its optimum, and data that are not its own."""
    x = torch.randn(size, 5) @ torch.randn(5, 5) + torch.randn(5)
    noise_scale = 0.5 + torch.rand(5) if noise_scale is None else noise_scale
    return LinearGaussian(
        torch.randn(5, 2), torch.randn(5), noise_scale, torch.tensor([0.3, -0.2]), torch.tensor([1.0, 0.7])
    ), x


def mixture_of_three(size: int = 60) -> tuple[GaussianMixture, Tensor]:
    x = torch.randn(size, 3) @ torch.randn(3, 3) + 3 * torch.randint(3, (size, 1))
    return gaussian_mixture(x, 3, torch.Generator().manual_seed(1)), x


CASES = {
    "mixture": mixture_of_three,
    "factor analysis": factors,
    "probabilistic PCA": lambda: factors(noise_scale=torch.tensor(0.8)),
}


def some_q(model: Model, size: int) -> Distribution:
    """No posterior of anything."""
    if isinstance(model, GaussianMixture):
        return Categorical(logits=torch.randn(size, len(model.probs)))
    tril = torch.randn(size, 2, 2).tril(-1) + torch.diag_embed(0.3 + torch.rand(size, 2))
    return full_normal(torch.randn(size, 2), tril)


every_model = pytest.mark.parametrize("make", CASES.values(), ids=CASES)


# --- What EM is ------------------------------------------------------------------------------------


@every_model
def test_the_e_step_closes_the_gap_and_nothing_closes_it_further(make: Any) -> None:
    model, x = make()
    with torch.no_grad():
        evidence = model.log_evidence(x)
        q = e_step(model, x)
        assert torch.allclose(model.elbo(x, q), evidence, atol=1e-9)
        assert (model.elbo(x, some_q(model, len(x))) < evidence).all()


@every_model
@pytest.mark.parametrize("exact", [True, False], ids=["after an E-step", "at any q"])
def test_the_m_step_is_where_the_elbo_has_no_gradient_and_its_maximum(make: Any, exact: bool) -> None:
    model, x = make()
    q = e_step(model, x) if exact else some_q(model, len(x))
    before = model.elbo(x, q).sum().item()
    m_step(model, x, q)
    top = model.elbo(x, q).sum()
    gradients = torch.autograd.grad(top, list(model.parameters()))
    assert max(g.abs().max().item() for g in gradients) < 1e-8
    assert top.item() > before
    best = nn.utils.parameters_to_vector(model.parameters()).detach()
    with torch.no_grad():
        for _ in range(20):
            nn.utils.vector_to_parameters(best + 0.02 * torch.randn_like(best), model.parameters())
            assert model.elbo(x, q).sum() < top


@every_model
def test_what_is_frozen_stays_and_the_rest_is_maximised_given_it(make: Any) -> None:
    names = [name for name, _ in make()[0].named_parameters()]
    for held in names:
        model, x = make()
        q = some_q(model, len(x))
        parameters = dict(model.named_parameters())
        parameters[held].requires_grad_(False)
        before = parameters[held].clone()
        m_step(model, x, q)
        assert torch.equal(parameters[held], before)
        free = [p for p in parameters.values() if p.requires_grad]
        # The weight's optimum does not depend on the noise, nor a mean's on the covariance: each is zero jointly.
        gradients = torch.autograd.grad(model.elbo(x, q).sum(), free)
        assert max(g.abs().max().item() for g in gradients) < 1e-8, held


@every_model
def test_one_can_freeze_the_whole_model_and_then_there_is_nothing_to_do(make: Any) -> None:
    model, x = make()
    q = e_step(model, x)
    with training.frozen(model), pytest.raises(ValueError, match="model must have a parameter to learn"):
        m_step(model, x, q)
    m_step(model, x, q)


@every_model
def test_the_elbos_gradient_is_the_evidences_at_the_posterior(make: Any) -> None:
    """Fisher's identity: q is held fixed on the left, and the posterior moves on the right."""
    model, x = make()
    theta = list(model.parameters())
    left = torch.autograd.grad(model.elbo(x, e_step(model, x)).sum(), theta)
    right = torch.autograd.grad(model.log_evidence(x).sum(), theta)
    elsewhere = torch.autograd.grad(model.elbo(x, some_q(model, len(x))).sum(), theta)
    for ours, theirs, other in zip(left, right, elsewhere, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-9, rtol=1e-9)
        assert not torch.allclose(other, theirs, rtol=1e-2)


@every_model
def test_the_history_is_a_staircase(make: Any) -> None:
    model, x = make()
    start = model.log_evidence(x).sum().item()
    done: list[int] = []
    history = em(model, x, num_steps=30, tolerance=0.0, callback=done.append)
    evidence, after_e, after_m = (
        np.array(v) for v in (history.log_evidence, history.after_e_step, history.after_m_step)
    )
    assert done == list(range(1, len(after_m) + 1))
    assert (len(after_e), len(evidence)) == (len(after_m), len(after_m) + 1)
    assert evidence[0] == pytest.approx(start, abs=1e-9)
    assert evidence[-1] == pytest.approx(model.log_evidence(x).sum().item(), abs=1e-9)
    assert np.allclose(after_e, evidence[:-1], atol=1e-9)  # the E-step closes the gap
    assert (after_m >= after_e - 1e-9).all()  # the M-step raises the bound
    assert (evidence[1:] >= after_m - 1e-9).all()  # and the evidence lies above it
    assert (after_m - after_e)[0] > 1
    assert (evidence[1:] - after_m)[0] > 0.1


def test_it_stops_when_a_step_gains_next_to_nothing() -> None:
    model, x = faithful()
    history = em(model, x, tolerance=1e-3)
    gains = np.diff(history.after_m_step)
    assert history.converged
    assert gains[-1] <= 1e-3 < gains[:-1].min()
    assert not em(faithful()[0], x, num_steps=3).converged


# --- The mixture: Old Faithful ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_old_faithful_by_em(seed: int) -> None:
    model, x = faithful(seed)
    assert em(model, x).log_evidence[-1] == pytest.approx(BEST, abs=1e-5)


def test_scikit_learn_ends_at_the_same_place() -> None:
    model, x = faithful()
    em(model, x, tolerance=0.0)
    theirs = ScikitMixture(2, reg_covar=0, tol=1e-13, max_iter=5000, random_state=0).fit(x.numpy())
    assert theirs.score(x.numpy()) * len(x) == pytest.approx(BEST, abs=1e-5)
    order = theirs.means_[:, 0].argsort()
    ours = model.loc[:, 0].argsort()
    assert np.allclose(model.probs[ours].detach(), theirs.weights_[order], atol=1e-6)
    assert np.allclose(model.loc[ours].detach(), theirs.means_[order], atol=1e-5)
    assert np.allclose(model.covariance_matrix[ours].detach(), theirs.covariances_[order], atol=1e-4)
    responsibilities = e_step(model, x).probs[:, ours]
    assert np.allclose(responsibilities, theirs.predict_proba(x.numpy())[:, order], atol=1e-6)


def test_gradient_ascent_on_theta_with_q_at_its_optimum_ends_there_too() -> None:
    model, x = faithful()
    optimiser = torch.optim.LBFGS(
        model.parameters(), max_iter=400, line_search_fn="strong_wolfe", tolerance_grad=1e-10, tolerance_change=1e-14
    )
    training.fit(lambda batch: model.elbo(batch, e_step(model, batch)), optimiser, x, num_steps=2)
    assert model.log_evidence(x).sum().item() == pytest.approx(BEST, abs=1e-4)


def test_joint_ascent_on_theta_and_the_responsibilities_logits_ends_there_too() -> None:
    """Short steps first: a long one can saturate a datapoint's logits on the wrong side, where no gradient is left.

    For the same reason the last thousandths of a nat of the gap stay: they belong to datapoints that are nearly sure.
    """
    model, x = faithful()
    phi = nn.Parameter(e_step(model, x).logits.clone())
    everything = [phi, *model.parameters()]

    def bound(batch: Tensor) -> Tensor:
        return elbo_enumerated(model.given(batch), Categorical(logits=phi))

    training.fit(bound, torch.optim.Adam(everything, lr=0.05), x, num_steps=500)
    optimiser = torch.optim.LBFGS(
        everything, max_iter=1000, line_search_fn="strong_wolfe", tolerance_grad=1e-10, tolerance_change=1e-14
    )
    training.fit(bound, optimiser, x, num_steps=1)
    assert model.log_evidence(x).sum().item() == pytest.approx(BEST, abs=1e-4)
    assert BEST - 0.01 < bound(x).sum().item() < BEST
    assert torch.allclose(phi.softmax(-1), e_step(model, x).probs, atol=1e-2)


def test_incremental_em_renews_a_few_rows_of_q_at_a_time_and_never_falls() -> None:
    model, x = faithful()
    responsibilities = e_step(model, x).probs.clone()
    bounds = []
    for turn in range(120):
        rows = torch.arange(turn % 4, len(x), 4)
        responsibilities[rows] = e_step(model, x[rows]).probs
        q = Categorical(responsibilities)
        m_step(model, x, q)
        bounds.append(model.elbo(x, q).sum().item())
    assert min(np.diff(bounds)) > -1e-8
    assert bounds[-1] == pytest.approx(BEST, abs=1e-5)


def test_generalised_em_only_climbs_in_theta_and_never_falls() -> None:
    model, x = mixture_of_three()

    def climb(model: GaussianMixture, x: Tensor, q: Distribution) -> None:
        theta = list(model.parameters())
        gradients = torch.autograd.grad(model.elbo(x, q).mean(), theta)
        with torch.no_grad():
            for parameter, gradient in zip(theta, gradients, strict=True):
                parameter += 0.02 * gradient

    history = em(model, x, num_steps=50, m_step=climb)
    assert min(np.diff(history.log_evidence)) > 0
    exact = em(mixture_of_three()[0], x, num_steps=1)
    assert history.log_evidence[1] < exact.log_evidence[1]


def test_units_change_the_evidence_by_their_jacobian_and_nothing_else() -> None:
    """Far from the origin and in other units: the moments are taken about the means."""
    model, x = faithful()
    scale = torch.tensor([60.0, 1e-3])
    other = GaussianMixture(
        model.probs.detach(),
        model.loc.detach() * scale + 1e5,
        model.covariance_matrix.detach() * torch.outer(scale, scale),
    )
    ours, theirs = em(model, x), em(other, x * scale + 1e5)
    assert theirs.log_evidence[-1] == pytest.approx(ours.log_evidence[-1] - len(x) * scale.log().sum().item(), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    x = data.old_faithful().to(dtype)
    model = gaussian_mixture(x, 2, torch.Generator().manual_seed(0))
    history = em(model, x, tolerance=1e-2)
    assert all(p.dtype == dtype for p in model.parameters())
    assert history.log_evidence[-1] == pytest.approx(BEST, abs=0.05)


# --- Where the likelihood has no upper bound -------------------------------------------------------


def on_one_point(x: Tensor) -> GaussianMixture:
    """The second component starts narrow, on the first datapoint."""
    overall = torch.cov(x.mT, correction=0)
    return GaussianMixture(
        torch.tensor([0.99, 0.01]), torch.stack([x.mean(0), x[0]]), torch.stack([overall, 1e-5 * overall])
    )


def test_a_component_on_one_point_is_refused_by_its_number_and_the_model_is_as_it_was() -> None:
    x = data.old_faithful()
    model = on_one_point(x)
    seen: list[float] = []
    with pytest.raises(ValueError, match=r"component\(s\) \[1\] of the mixture must spread.*min_variance"):
        em(model, x, callback=lambda _: seen.append(model.log_evidence(x).sum().item()))
    assert all(p.isfinite().all() for p in model.parameters())
    assert model.log_evidence(x).isfinite().all()


def test_the_narrower_the_component_on_a_point_the_higher_the_likelihood() -> None:
    x = data.old_faithful()
    overall = torch.cov(x.mT, correction=0)

    def evidence(width: float) -> float:
        covariance = torch.stack([overall, width**2 * overall])
        mixture = GaussianMixture(torch.tensor([0.99, 0.01]), torch.stack([x.mean(0), x[0]]), covariance)
        return mixture.log_evidence(x).sum().item()

    heights = [evidence(width) for width in (1e-20, 1e-40, 1e-60, 1e-80)]
    # In two dimensions the density at the point gains 2 log(10^20) a turn.
    assert np.allclose(np.diff(heights), 40 * math.log(10), atol=1e-6)


def test_a_floor_keeps_it_up_and_em_still_never_falls() -> None:
    x = data.old_faithful()
    model = on_one_point(x)
    history = em(model, x, num_steps=300, m_step=partial(m_step, min_variance=0.01))
    assert min(np.diff(history.log_evidence[1:])) > -1e-8
    eigenvalues = torch.linalg.eigvalsh(model.covariance_matrix.detach())
    assert eigenvalues.min().item() == pytest.approx(0.01, rel=1e-6)


def test_the_floor_is_the_maximum_under_the_constraint() -> None:
    """Against covariances that respect the floor too, of every shape."""
    model, x = mixture_of_three()
    q = some_q(model, len(x))
    m_step(model, x, q)
    floor = torch.linalg.eigvalsh(model.covariance_matrix.detach())[:, 1].mean().item()
    m_step(model, x, q, min_variance=floor)
    top = model.elbo(x, q).sum().item()
    best = model.covariance_matrix.detach()
    assert torch.linalg.eigvalsh(best).min().item() >= floor * (1 - 1e-9)
    for _ in range(50):
        step = 0.1 * torch.randn(3, 3, 3)
        values, vectors = torch.linalg.eigh(best + step + step.mT)
        feasible = (vectors * values.clamp(min=floor).unsqueeze(-2)) @ vectors.mT
        model.likelihood.assign(torch.linalg.cholesky(feasible))
        assert model.elbo(x, q).sum().item() <= top + 1e-9


@pytest.mark.parametrize(
    "learn",
    [
        lambda x: gaussian_mixture(x, 2),
        lambda x: em(GaussianMixture(torch.ones(1), torch.zeros(1, 4), torch.eye(4)[None]), x),
        lambda x: em(factor_analysis(4, 1), x),
    ],
    ids=["a mixture's start", "a mixture", "factor analysis"],
)
def test_constant_columns_are_named(learn: Any) -> None:
    x = torch.randn(20, 4)
    x[:, [1, 3]] = 0.1
    with pytest.raises(ValueError, match=r"x must vary in every column.*column\(s\) 1, 3.*drop them"):
        learn(x)


def test_constant_columns_are_no_trouble_with_one_noise_scale_or_a_floor_or_frozen_noise() -> None:
    x = torch.randn(50, 4) @ torch.randn(4, 4)
    x[:, 1] = 0.1
    start = torch.Generator().manual_seed(0)
    history = em(probabilistic_pca(4, 1, start), x)
    assert history.log_evidence[-1] == pytest.approx(probabilistic_pca_mle(x, 1).log_evidence(x).sum().item(), abs=1e-5)
    model = factor_analysis(4, 1, start)
    em(model, x, num_steps=50, m_step=partial(m_step, min_variance=1e-2))
    assert model.noise_scale.square().min().item() == pytest.approx(1e-2)
    model = factor_analysis(4, 1, start)
    model.likelihood.log_noise_scale.requires_grad_(False)
    em(model, x, num_steps=5)
    assert model.noise_scale.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("make", [factor_analysis, probabilistic_pca])
@pytest.mark.parametrize("rows", [1, 2])
def test_too_few_datapoints_leave_no_variance_for_the_noise(make: Any, rows: int) -> None:
    x = torch.randn(rows, 5)
    with pytest.raises(ValueError, match=r"x must (leave variance for the noise|vary in every column)"):
        em(make(5, 2, torch.Generator().manual_seed(0)), x, num_steps=100_000)


def test_an_empty_component_is_named() -> None:
    model, x = mixture_of_three()
    q = Categorical(torch.tensor([0.5, 0.0, 0.5]).expand(len(x), 3))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"component\(s\) \[1\] of the mixture must have datapoints"):
        m_step(model, x, q)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_fewer_datapoints_than_dimensions_cannot_carry_a_covariance(rows: int) -> None:
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 3), torch.eye(3)[None])
    with pytest.raises(ValueError, match=r"component\(s\) \[0\]|x must vary in every column"):
        em(model, torch.randn(rows, 3))


def test_an_elbo_that_is_not_finite_stops_em() -> None:
    model, x = mixture_of_three()

    def break_it(model: GaussianMixture, x: Tensor, q: Distribution) -> None:
        with torch.no_grad():
            model.likelihood.loc.fill_(1e200)

    with pytest.raises(ValueError, match="M-step must be finite"):
        em(model, x, m_step=break_it)


def test_a_model_without_its_m_step_is_refused_with_the_way_on() -> None:
    with pytest.raises(TypeError, match=r"received BetaBernoulli.*write its M-step"):
        m_step(BetaBernoulli(2), torch.ones(1, 2), Normal(0.0, 1.0))  # type: ignore[arg-type]


# --- Linear-Gaussian models ------------------------------------------------------------------------


def varying_digits() -> Tensor:
    """The pixels that vary, as fractions of full ink."""
    x = data.digits().train / 16
    return x[:, x.amax(0) > x.amin(0)]


def test_factor_analysis_on_the_digits_agrees_with_scikit_learn() -> None:
    x = varying_digits()
    model = factor_analysis(x.shape[1], 2, torch.Generator().manual_seed(0))
    history = em(model, x, tolerance=1e-8)
    theirs = FactorAnalysis(2, svd_method="lapack", tol=1e-12, max_iter=5000).fit(x.numpy())
    assert history.converged
    assert history.log_evidence[-1] == pytest.approx(theirs.score(x.numpy()) * len(x), abs=1e-5)  # of 54,632 nats
    assert np.allclose(model.noise_scale.detach() ** 2, theirs.noise_variance_, atol=1e-6)
    assert np.allclose(model.marginal().covariance_matrix.detach(), theirs.get_covariance(), atol=1e-5)


def test_em_for_probabilistic_pca_ends_at_its_closed_form() -> None:
    x = varying_digits()
    model = probabilistic_pca(x.shape[1], 2, torch.Generator().manual_seed(0))
    history = em(model, x, tolerance=1e-8)
    best = probabilistic_pca_mle(x, 2)
    assert history.log_evidence[-1] == pytest.approx(best.log_evidence(x).sum().item(), abs=1e-5)
    assert np.allclose(
        model.marginal().covariance_matrix.detach(), best.marginal().covariance_matrix.detach(), atol=1e-7
    )


def mean_field(model: LinearGaussian, x: Tensor) -> Distribution:
    """The best factorised q: the posterior's mean, and variances 1 / Λ_ii."""
    with torch.no_grad():
        return diagonal_normal(model.posterior(x).mean, model.posterior_precision().diagonal().rsqrt())


def test_variational_em_loses_nothing_where_a_rotation_of_the_weights_absorbs_the_restriction() -> None:
    x = torch.randn(200, 5) @ torch.randn(5, 5)
    model = probabilistic_pca(5, 2, torch.Generator().manual_seed(0))
    history = em(model, x, e_step=mean_field, num_steps=5000, tolerance=1e-10)
    best = probabilistic_pca_mle(x, 2).log_evidence(x).sum().item()
    assert min(np.diff(history.after_m_step)) > -1e-8
    assert history.after_e_step[0] < history.log_evidence[0] - 1e-6
    assert history.after_m_step[-1] == pytest.approx(best, abs=1e-4)
