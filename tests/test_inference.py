"""Fitting a posterior to any log joint: exact where it can be, held against grids where not, clear when misused."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Beta,
    Dirichlet,
    Exponential,
    Gamma,
    HalfCauchy,
    HalfNormal,
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    constraints,
)

from vi_tutorial import data, evaluation, families, frozen, models, posterior
from vi_tutorial.elbo import iwae
from vi_tutorial.inference import UntrustworthyWarning, fit_posterior, fit_posterior_stochastic, laplace
from vi_tutorial.latents import Latent, Space, examine, unconstrained

REAL = constraints.real


@pytest.fixture(scope="module")
def regression() -> tuple[models.LinearGaussian, Tensor]:
    bunch = data.diabetes()
    design = (bunch.x - bunch.x.mean(0)) / bunch.x.std(0)
    return models.linear_regression(design, prior_scale=30.0, noise_scale=54.0), bunch.y - bunch.y.mean()


def quiet(function: Callable, *args: object, **kwargs: object) -> posterior.Posterior:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustworthyWarning)
        return function(*args, **kwargs)


# --- Named latents -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constraint", "shape", "size"),
    [
        (REAL, (), 1),
        (REAL, (2, 3), 6),
        (constraints.positive, (4,), 4),
        (constraints.unit_interval, (), 1),
        (constraints.interval(-1.0, 3.0), (2,), 2),
        (constraints.simplex, (4,), 3),
    ],
    ids=str,
)
def test_a_space_goes_there_and_back(constraint: object, shape: tuple[int, ...], size: int) -> None:
    space = Space({"a": Latent(constraint, shape), "b": REAL})
    assert space.dim == size + 1
    u = torch.randn(5, space.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = space.constrain(u)
    assert z["a"].shape == (5, *shape)
    for row in range(5):
        torch.testing.assert_close(space.unconstrain({name: value[row] for name, value in z.items()}), u[row])


@pytest.mark.parametrize("constraint", [constraints.positive, constraints.unit_interval, constraints.simplex], ids=str)
def test_the_log_jacobian_is_that_of_autodiff(constraint: object) -> None:
    simplex = constraint is constraints.simplex
    space = Space({"a": Latent(constraint, (3,))})
    u = torch.tensor([[0.3, -0.7, 0.2][: space.dim]], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: space.constrain(v[None])["a"][0], u[0])
    # On the simplex the last coordinate follows from the others.
    square = jacobian[:-1] if simplex else jacobian
    torch.testing.assert_close(space.log_jacobian(u, space.constrain(u))[0], square.det().abs().log())


# --- Frozen noise ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_draws", "dim"), [(2, 1), (8, 4), (64, 5), (1024, 30)])
def test_standardised_noise_has_exact_moments(num_draws: int, dim: int) -> None:
    noise = frozen.standardised_noise(num_draws, dim, seed=3)
    torch.testing.assert_close(noise.mean(0), torch.zeros(dim, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(noise.T @ noise / num_draws, torch.eye(dim, dtype=torch.float64), atol=1e-10, rtol=0)
    torch.testing.assert_close(noise[: num_draws // 2], -noise[num_draws // 2 :])


def test_standardised_noise_is_normal() -> None:
    noise = frozen.standardised_noise(8192, 2)
    assert stats.kstest(noise[:, 0].numpy(), "norm").statistic < 0.002  # quasi-random: far closer than chance
    assert abs((noise**4).mean().item() - 3) < 0.02


@pytest.mark.parametrize(("num_draws", "match"), [(9, "at least 10"), (11, "even"), (0, "at least 10")])
def test_too_few_or_odd_draws_are_refused(num_draws: int, match: str) -> None:
    with pytest.raises(ValueError, match=f"num_draws must be .*{match}.*received {num_draws}"):
        frozen.standardised_noise(num_draws, 5)


@pytest.mark.parametrize(
    "family", [families.MeanFieldNormal, families.FullRankNormal, lambda d: families.LowRankNormal(d, 2)]
)
def test_frozen_samples_of_a_normal_have_its_moments_exactly(family: Callable[[int], nn.Module]) -> None:
    module = family(3).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = parameter + 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    full = isinstance(module(), MultivariateNormal)
    scale = torch.tensor([[2.0, 0, 0], [1.0, 0.5, 0], [0.3, 0.2, 4.0]]) if full else torch.tensor([2.0, 0.5, 4.0])
    frame = frozen.Frame(torch.tensor([1.0, 2.0, 3.0]).double(), scale.double())
    q = frame.place(module())
    samples = frozen.reparameterise(q, frozen.standardised_noise(32, frozen.noise_dim(q)))
    covariance = torch.diag(q.variance) if isinstance(q, Independent) else q.covariance_matrix
    torch.testing.assert_close(samples.mean(0), q.mean)
    torch.testing.assert_close(samples.T.cov(correction=0), covariance)
    whole = scale.double() if full else torch.diag(scale.double())
    v = module()
    inner = torch.diag(v.variance) if isinstance(v, Independent) else v.covariance_matrix
    torch.testing.assert_close(covariance, whole @ inner @ whole.T)
    torch.testing.assert_close(q.mean, frame.shift + whole @ v.mean)


# --- Fits that are exact -----------------------------------------------------------------------------


def test_full_rank_on_a_gaussian_posterior_is_exact(regression: tuple[models.LinearGaussian, Tensor]) -> None:
    model, y = regression
    given = model.given(y)
    posterior = fit_posterior(lambda z: given(z["beta"]), {"beta": Latent(REAL, (10,))})
    assert posterior.elbo == pytest.approx(model.log_evidence(y).item(), abs=1e-8)
    exact = model.posterior(y)
    torch.testing.assert_close(posterior.q.mean, exact.mean, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(posterior.q.covariance_matrix, exact.covariance_matrix, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(posterior.mean()["beta"], exact.mean, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(posterior.stddev()["beta"], exact.stddev, atol=1e-6, rtol=1e-5)
    assert posterior.drift < 1e-4
    assert posterior.pareto_k == -math.inf


def test_mean_field_on_a_gaussian_posterior_has_the_conditional_variances(
    regression: tuple[models.LinearGaussian, Tensor],
) -> None:
    model, y = regression
    given = model.given(y)
    with pytest.warns(UntrustworthyWarning, match="above 0.70"):
        posterior = fit_posterior(
            lambda z: given(z["beta"]), {"beta": Latent(REAL, (10,))}, family=families.MeanFieldNormal
        )
    precision = model.posterior_precision()
    torch.testing.assert_close(posterior.q.variance, 1 / precision.diagonal(), rtol=1e-5, atol=0)
    gap = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    assert model.log_evidence(y).item() - posterior.elbo == pytest.approx(
        gap.item(), abs=5 * posterior.elbo_standard_error
    )


def test_low_rank_lies_between(regression: tuple[models.LinearGaussian, Tensor]) -> None:
    model, y = regression
    given = model.given(y)
    elbos = [
        quiet(fit_posterior, lambda z: given(z["beta"]), {"beta": Latent(REAL, (10,))}, family=family).elbo
        for family in (families.MeanFieldNormal, lambda d: families.LowRankNormal(d, 2), families.FullRankNormal)
    ]
    assert elbos[0] + 0.5 < elbos[1] < elbos[2] - 0.1


def test_predictors_that_are_not_centred_and_scales_far_apart_need_no_tuning() -> None:
    generator = torch.Generator().manual_seed(1)
    x = 1000 + 10 * torch.randn(200, generator=generator, dtype=torch.float64)
    w = 0.001 * (5 + torch.randn(200, generator=generator, dtype=torch.float64))
    noise = torch.randn(200, generator=generator, dtype=torch.float64)
    y = 3e3 + 2.5 * x + 4e4 * w + 30 * noise

    def log_joint(z: dict[str, Tensor]) -> Tensor:
        mean = z["a"][:, None] + z["b"][:, None] * x + z["c"][:, None] * w
        prior = (
            Normal(0.0, 1e5).log_prob(z["a"]) + Normal(0.0, 1e3).log_prob(z["b"]) + Normal(0.0, 1e6).log_prob(z["c"])
        )
        # p(sigma) proportional to 1 / sigma: the marginal of each coefficient is then Student's t, nearly.
        return prior - z["sigma"].log() + Normal(mean, z["sigma"][:, None]).log_prob(y).sum(-1)

    posterior = quiet(fit_posterior, log_joint, {"a": REAL, "b": REAL, "c": REAL, "sigma": constraints.positive})
    design = torch.stack([torch.ones_like(x), x, w], 1)
    estimate, residual = (part.squeeze() for part in torch.linalg.lstsq(design, y[:, None], driver="gels")[:2])
    spread = (residual / (len(y) - 3) * torch.linalg.inv(design.T @ design).diagonal()).sqrt()
    assert abs(np.corrcoef(posterior.q.sample((4000,))[:, :2].T.numpy())[0, 1]) > 0.99
    for index, name in enumerate("abc"):
        assert abs(posterior.mean()[name] - estimate[index]) < 0.03 * spread[index]
        assert posterior.stddev()[name] == pytest.approx(spread[index].item(), rel=0.03)
    assert posterior.drift < 0.05


def test_a_density_without_a_mode_is_fitted_where_its_mass_is() -> None:
    """A non-centred random walk: the density has no upper bound where the innovations follow the data exactly."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(2, 25, generator=generator, dtype=torch.float64)
    x = 1000 + 20 * steps[0].cumsum(0) + 100 * steps[1]

    def log_joint(z: dict[str, Tensor]) -> Tensor:
        level = z["level"][:, None] + z["step_scale"][:, None] * z["steps"].cumsum(-1)
        return (
            Normal(1000.0, 1000.0).log_prob(z["level"])
            + HalfNormal(200.0).log_prob(z["step_scale"])
            + HalfNormal(500.0).log_prob(z["noise_scale"])
            + Normal(0.0, 1.0).log_prob(z["steps"]).sum(-1)
            + Normal(level, z["noise_scale"][:, None]).log_prob(x).sum(-1)
        )

    scales = {"step_scale": constraints.positive, "noise_scale": constraints.positive}
    latents = {"level": REAL, **scales, "steps": Latent(REAL, (25,))}
    posterior = quiet(fit_posterior, log_joint, latents)

    # The same posterior with the walk integrated out: its evidence on a grid of the two scales.
    grid = torch.linspace(math.log(0.2), math.log(600.0), 80, dtype=torch.float64).exp()
    tau, sigma = (part.reshape(-1) for part in torch.meshgrid(grid, grid, indexing="ij"))
    walk = torch.minimum(*torch.meshgrid(*[torch.arange(1.0, 26.0, dtype=torch.float64)] * 2, indexing="ij"))
    covariance = tau[:, None, None] ** 2 * walk + sigma[:, None, None] ** 2 * torch.eye(25) + 1000.0**2
    log_joint_scales = (
        MultivariateNormal(torch.full((25,), 1000.0).double(), covariance).log_prob(x)
        + HalfNormal(200.0).log_prob(tau)
        + HalfNormal(500.0).log_prob(sigma)
        + (tau * sigma).log()
    )
    cell = (grid[1] / grid[0]).log().item()
    evidence = log_joint_scales.logsumexp(0).item() + 2 * math.log(cell)
    weight = log_joint_scales.softmax(0)
    assert evidence - 2.0 < posterior.elbo < evidence
    assert posterior.mean()["noise_scale"].item() == pytest.approx((weight * sigma).sum().item(), rel=0.03)


def test_restarts_from_afar_find_a_rate_of_a_thousandth() -> None:
    """From a rate of one the climb ends where noise alone explains the data."""
    time = torch.arange(0.0, 3600.0, 300.0, dtype=torch.float64)
    noise = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = 12_000 * (-time / 900).exp() + 2500 + 250 * noise

    def log_joint(z: dict[str, Tensor]) -> Tensor:
        curve = z["height"][:, None] * (-z["rate"][:, None] * time).exp() + z["floor"][:, None]
        prior = sum(HalfNormal(1e5).log_prob(z[name]) for name in ("height", "floor", "noise_scale"))
        likelihood = Normal(curve, z["noise_scale"][:, None]).log_prob(x).sum(-1)
        return prior + HalfNormal(1.0).log_prob(z["rate"]) + likelihood

    latents = dict.fromkeys(("height", "rate", "floor", "noise_scale"), constraints.positive)
    ones = dict.fromkeys(latents, 1.0)
    lost = quiet(fit_posterior, log_joint, latents, initial=ones)
    assert lost.mean()["rate"].item() > 0.1
    with pytest.warns(UntrustworthyWarning, match="starts ended elsewhere"):
        found = fit_posterior(log_joint, latents, num_restarts=8)
    told = quiet(fit_posterior, log_joint, latents, initial={**ones, "height": 1e4, "rate": 1e-3, "floor": 2e3})
    assert told.mean()["rate"].item() == pytest.approx(1 / 900, rel=0.15)
    assert found.mean()["rate"].item() == pytest.approx(told.mean()["rate"].item(), rel=1e-3)
    assert found.elbo > lost.elbo + 10


# --- Fits held against grids -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "constraint"),
    [
        (Gamma(torch.tensor(50.0).double(), torch.tensor(3.0).double()), constraints.positive),
        (Beta(torch.tensor(40.0).double(), torch.tensor(60.0).double()), constraints.unit_interval),
        (Normal(torch.tensor(-7.0).double(), torch.tensor(1e-4).double()), REAL),
        (Normal(torch.tensor(1e6).double(), torch.tensor(1e5).double()), REAL),
    ],
    ids=["gamma", "beta", "narrow", "far"],
)
def test_one_latent_against_its_own_moments(target: torch.distributions.Distribution, constraint: object) -> None:
    posterior = fit_posterior(lambda z: target.log_prob(z["a"]), {"a": constraint})
    assert posterior.mean()["a"].item() == pytest.approx(target.mean.item(), abs=0.01 * target.stddev.item())
    assert posterior.stddev()["a"].item() == pytest.approx(target.stddev.item(), rel=0.02)
    assert -0.005 < posterior.elbo <= 4 * posterior.elbo_standard_error + 1e-6  # the evidence is 1


def test_the_kl_of_an_exponential_through_its_bijector_is_the_known_one() -> None:
    target = Exponential(torch.tensor(4.0).double())
    posterior = quiet(fit_posterior, lambda z: target.log_prob(z["a"]), {"a": constraints.positive})
    exact = 1.5 - 0.5 * math.log(2 * math.pi * math.e)
    # The optimum itself, by quadrature over q, rather than by fresh draws.
    m, s = posterior.q.mean.item(), posterior.q.covariance_matrix.item() ** 0.5
    log_ratio = lambda u: stats.norm.logpdf(u, m, s) - math.log(4) + 4 * math.exp(u) - u  # noqa: E731
    kl, _ = integrate.quad(lambda u: stats.norm.pdf(u, m, s) * log_ratio(u), m - 12 * s, m + 12 * s)
    assert kl == pytest.approx(exact, abs=1e-3)
    assert kl >= exact - 1e-9


def test_a_simplex_and_the_jacobian_of_stick_breaking() -> None:
    target = Dirichlet(torch.tensor([30.0, 50.0, 80.0]).double())
    posterior = fit_posterior(lambda z: target.log_prob(z["p"]), {"p": Latent(constraints.simplex, (3,))})
    torch.testing.assert_close(posterior.mean()["p"], target.mean, atol=1e-3, rtol=0)
    assert abs(posterior.elbo) < 0.005


def test_a_funnel_in_centred_coordinates_is_survived() -> None:
    schools = data.eight_schools()

    def log_joint(z: dict[str, Tensor]) -> Tensor:
        spread = Normal(z["mu"][:, None], z["tau"][:, None]).log_prob(z["theta"]).sum(-1)
        prior = Normal(0.0, 5.0).log_prob(z["mu"]) - (1 + (z["tau"] / 5) ** 2).log()
        return prior + spread + Normal(z["theta"], schools.standard_error).log_prob(schools.effect).sum(-1)

    latents = {"mu": REAL, "tau": constraints.positive, "theta": Latent(REAL, (8,))}
    posterior = quiet(fit_posterior, log_joint, latents)
    assert posterior.pareto_k > 0.7
    assert 3 < posterior.mean()["tau"] < 6
    with pytest.raises(ValueError, match="log_joint must have a mode"):
        laplace(log_joint, latents)


def test_a_users_own_module_is_fitted_and_its_scale_is_right() -> None:
    class Flow(nn.Module):
        """A Normal pushed through a learned shift and scale: no Normal to this package, but one in truth."""

        def __init__(self, dim: int) -> None:
            super().__init__()
            self.dim = dim
            self.shift = nn.Parameter(torch.zeros(dim))
            self.log_scale = nn.Parameter(torch.zeros(dim))

        def forward(self, x: Tensor | None = None) -> TransformedDistribution:
            base = Independent(Normal(torch.zeros_like(self.shift), torch.ones_like(self.shift)), 1)
            return TransformedDistribution(base, [AffineTransform(self.shift, self.log_scale.exp(), event_dim=1)])

    target = Normal(torch.tensor([3.0, -2.0]).double(), torch.tensor([0.1, 20.0]).double())
    posterior = quiet(fit_posterior, lambda z: target.log_prob(z["a"]).sum(-1), {"a": Latent(REAL, (2,))}, family=Flow)
    assert posterior.elbo == pytest.approx(0.0, abs=0.02)
    torch.testing.assert_close(posterior.stddev()["a"], target.stddev, rtol=0.06, atol=0)


def test_laplace_is_the_curvature_at_the_mode() -> None:
    target = Gamma(torch.tensor(5.0).double(), torch.tensor(2.0).double())
    posterior = quiet(laplace, lambda z: target.log_prob(z["a"]), {"a": constraints.positive})
    # In u = log a the log density is 5 u − 2 e^u + const: the mode is log 5/2, the curvature there −5.
    assert posterior.q.mean.item() == pytest.approx(math.log(2.5), abs=1e-6)
    assert posterior.q.variance.item() == pytest.approx(1 / 5, abs=1e-6)


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    target = Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    fits = [fit_posterior(lambda z: target.log_prob(z["a"]), {"a": REAL}) for _ in range(2)]
    fit_posterior_stochastic(lambda z: target.log_prob(z["a"]), {"a": REAL}, num_steps=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert fits[0].elbo == fits[1].elbo


# --- Restarts, stochastic fits, verdicts -------------------------------------------------------------


def test_restarts_find_both_modes_and_say_so() -> None:
    def log_joint(z: dict[str, Tensor]) -> Tensor:
        low = math.log(0.1) + Normal(-6.0, 1.0).log_prob(z["a"])
        high = math.log(0.9) + Normal(6.0, 1.0).log_prob(z["a"])
        return torch.logaddexp(low, high)

    with pytest.warns(UntrustworthyWarning, match="several optima"):
        posterior = fit_posterior(log_joint, {"a": REAL}, initial={"a": -1.0}, num_restarts=8)
    assert posterior.mean()["a"].item() == pytest.approx(6.0, abs=0.1)
    assert posterior.restarts == tuple(sorted(posterior.restarts, reverse=True))
    assert posterior.restarts[-1] == pytest.approx(math.log(0.1), abs=0.01)
    assert posterior.restart_distances[0] == 0
    assert posterior.restart_distances[-1] == pytest.approx(12.0, abs=0.1)
    assert posterior.pareto_k < 0.7  # k-hat is blind to the mode that q does not visit


def test_restarts_compare_places_where_the_elbos_are_alike() -> None:
    def log_joint(z: dict[str, Tensor]) -> Tensor:
        return Normal(0.0, 10.0).log_prob(z["a"]) + Normal(z["a"].abs(), 0.1).log_prob(torch.tensor(4.0))

    with pytest.warns(UntrustworthyWarning, match=r"of 6 starts ended elsewhere, up to 8\d\.\d posterior standard"):
        posterior = fit_posterior(log_joint, {"a": REAL}, initial={"a": 0.5}, num_restarts=6)
    assert posterior.restarts[0] - posterior.restarts[-1] < 1e-6


def test_a_restart_where_the_log_joint_breaks_down_moves_towards_the_start() -> None:
    def log_joint(z: dict[str, Tensor]) -> Tensor:
        if z["a"].abs().max() > 4.0:
            raise RuntimeError("out of range")
        return -2.0 * (z["a"] - 0.1) ** 2

    posterior = quiet(fit_posterior, log_joint, {"a": REAL}, family=families.MeanFieldNormal, num_restarts=20)
    assert posterior.mean()["a"].item() == pytest.approx(0.1, abs=1e-6)
    assert max(posterior.restart_distances) < 1e-4


def test_restarts_that_agree_say_nothing() -> None:
    target = Gamma(torch.tensor(50.0).double(), torch.tensor(5.0).double())
    posterior = quiet(fit_posterior, lambda z: target.log_prob(z["a"]), {"a": constraints.positive}, num_restarts=4)
    assert max(posterior.restart_distances) < 0.01
    assert posterior.problems() == []


def test_stochastic_fit_with_minibatches_reaches_the_exact_posterior() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 2 + torch.randn(500, generator=generator, dtype=torch.float64)

    def log_joint(z: dict[str, Tensor], batch: Tensor, scale: float) -> Tensor:
        return Normal(0.0, 10.0).log_prob(z["a"]) + scale * Normal(z["a"][:, None], 1.0).log_prob(batch).sum(-1)

    posterior = quiet(
        fit_posterior_stochastic, log_joint, {"a": REAL}, data=x, batch_size=50, num_data=500, num_steps=2000
    )
    exact = 1 / (500 + 0.01)
    assert posterior.mean()["a"].item() == pytest.approx(exact * x.sum().item(), abs=0.5 * exact**0.5)
    assert posterior.stddev()["a"].item() == pytest.approx(exact**0.5, rel=0.1)


def test_a_fit_that_has_not_settled_says_so() -> None:
    target = Normal(torch.tensor(100.0).double(), torch.tensor(1.0).double())
    with pytest.warns(UntrustworthyWarning, match="has not settled"):
        fit_posterior_stochastic(lambda z: target.log_prob(z["a"]), {"a": REAL}, num_steps=200)


def test_a_posterior_that_does_not_exist_is_noticed() -> None:
    """A Half-Cauchy scale on the logarithmic axis without its log Jacobian: constant towards minus infinity."""
    with pytest.warns(UntrustworthyWarning, match="run away.*no finite integral.*log Jacobian"):
        fit_posterior(lambda z: HalfCauchy(5.0).log_prob(z["log_scale"].exp()), {"log_scale": REAL})


def test_a_log_joint_without_curvature_is_met_calmly() -> None:
    with pytest.warns(UntrustworthyWarning, match="run away"):
        fit_posterior(lambda z: -z["a"], {"a": REAL})  # improper
    exponential = quiet(fit_posterior, lambda z: -2 * z["a"], {"a": constraints.positive})
    assert exponential.mean()["a"].item() == pytest.approx(0.5, abs=0.02)


def test_a_covariance_that_cannot_be_factorised_sends_the_line_search_back() -> None:
    calls = [0]

    class Fragile(families.MeanFieldNormal):
        def forward(self, x: Tensor | None = None) -> Independent:
            calls[0] += 1
            if calls[0] == 4:
                raise torch.linalg.LinAlgError("not positive definite")
            return super().forward(x)

    target = Gamma(torch.tensor(3.0).double(), torch.tensor(2.0).double())
    latents = {"a": constraints.positive}
    posterior = quiet(fit_posterior, lambda z: target.log_prob(z["a"]), latents, family=Fragile)
    assert calls[0] > 4
    assert posterior.mean()["a"].item() == pytest.approx(1.5, abs=0.05)


def test_the_report_names_latents_and_the_limits_of_its_verdict() -> None:
    target = Normal(torch.tensor([1.0, 2.0]).double(), torch.tensor([1.0, 3.0]).double())
    report = str(fit_posterior(lambda z: target.log_prob(z["a"]).sum(-1), {"a": Latent(REAL, (2,))}))
    assert "a[0]" in report
    assert "a[1]" in report
    assert "never certify" in report


@pytest.mark.parametrize(
    ("centre", "spread", "shown"),
    [
        (4.41832, 3.3201, "4.4 ± 3.3"),
        (1951.2344, 0.0417, "1951.234 ± 0.042"),
        (-0.04, 12.4, "0 ± 12"),
        (123456.7, 999.7, "123500 ± 1000"),
        (2.0, 0.00997, "2.000 ± 0.010"),
        (1.0, 0.0, "1 ± 0"),
        (3.5e-12, 1.2e-13, "3.5e-12 ± 1.2e-13"),
    ],
)
def test_means_are_shown_to_the_digits_that_their_spread_allows(centre: float, spread: float, shown: str) -> None:
    assert posterior._rounded(centre, spread).strip() == shown


def test_threads_are_put_back() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="log_joint"):
            fit_posterior(lambda z: 1.0, {"a": REAL})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_a_narrow_q_passes_k_hat() -> None:
    """The sentence in the report, tried: 40 % too small, and no alarm."""
    torch.manual_seed(0)
    z = 0.6 * torch.randn(posterior.NUM_FRESH, dtype=torch.float64)
    log_weight = Normal(0.0, 1.0).log_prob(z) - Normal(0.0, 0.6).log_prob(z)
    assert evaluation.pareto_k(log_weight) < posterior.pareto_k_threshold(posterior.NUM_FRESH)


def test_linear_response_is_exact_for_a_normal_posterior(regression: tuple[models.LinearGaussian, Tensor]) -> None:
    model, x = regression
    given = model.given(x)
    dim = model.weight.shape[1]
    fit = quiet(fit_posterior, lambda z: given(z["z"]), {"z": Latent(REAL, (dim,))}, family=families.MeanFieldNormal)
    exact = model.posterior(x).stddev
    assert (fit.stddev()["z"] < 0.9 * exact).any()
    torch.testing.assert_close(posterior.linear_response(fit)["z"], exact, rtol=1e-6, atol=0)


def test_linear_response_in_the_latents_own_units() -> None:
    """Two positive latents whose logarithms are Normal with correlation 0.9: the exact sds are a log-normal's."""
    covariance = 0.04 * torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    target = MultivariateNormal(torch.zeros(2, dtype=torch.float64), covariance)

    def log_joint(z: dict[str, Tensor]) -> Tensor:
        log = z["a"].log()
        return target.log_prob(log) - log.sum(-1)

    fit = quiet(fit_posterior, log_joint, {"a": Latent(constraints.positive, (2,))}, family=families.MeanFieldNormal)
    exact = math.exp(0.02) * math.sqrt(math.expm1(0.04))
    assert fit.stddev()["a"][0].item() < 0.5 * exact
    assert posterior.linear_response(fit)["a"][0].item() == pytest.approx(exact, rel=0.03)


def test_linear_response_asks_for_a_mean_field_fit() -> None:
    full = fit_posterior(lambda z: -(z["a"] ** 2), {"a": REAL})
    with pytest.raises(ValueError, match=r"mean-field q.*received MultivariateNormal"):
        posterior.linear_response(full)
    with pytest.raises(TypeError, match="posterior must be a Posterior; received MultivariateNormal"):
        posterior.linear_response(full.q)


# --- Misuse ------------------------------------------------------------------------------------------

X = torch.arange(4.0, dtype=torch.float64)
MISUSE = {
    "another shape": (lambda z: z["a"].repeat(2), {"a": REAL}, {}, r"log_joint must return one number per sample"),
    "summed over samples": (lambda z: -(z["a"] ** 2).sum(), {"a": REAL}, {}, r"received \(\).*never over samples"),
    "no sum over the data": (
        lambda z: Normal(z["a"][:, None], 1.0).log_prob(X),
        {"a": REAL},
        {},
        r"log_joint must return one number per sample, shape \(7,\); received \(7, 4\)",
    ),
    "no tensor": (lambda z: 1.0, {"a": REAL}, {}, r"received float"),
    "nan": (lambda z: -z["a"].log(), {"a": REAL}, {}, r"log_joint must be finite near the start"),
    "ignored": (lambda z: -(z["a"] ** 2), {"a": REAL, "b": REAL}, {}, r"ignores 'b'"),
    "detached": (lambda z: -(z["a"] ** 2) - z["b"].detach() ** 2, {"a": REAL, "b": REAL}, {}, r"ignores 'b'"),
    "mixed samples": (
        lambda z: -((z["a"] - z["a"].mean()) ** 2) - z["a"] ** 2,
        {"a": REAL},
        {},
        r"log_joint must treat samples separately",
    ),
    "a scale that may be negative": (
        lambda z: Normal(0.0, z["s"]).log_prob(torch.tensor(1.0).double()),
        {"s": REAL},
        {},
        r"log_joint refuses values that the constraints .*s.*allow.*positive",
    ),
    "a latent that latents lacks": (
        lambda z: -(z["a"] ** 2) - z["tau"] ** 2,
        {"a": REAL},
        {},
        r"asks for 'tau', which latents does not name; received latents \['a'\]",
    ),
    "samples against a row of data": (
        lambda z: Normal(z["a"], 1.0).log_prob(X).sum(-1),
        {"a": REAL},
        {},
        r"cannot be computed: .*broadcast.*'a': \(7,\).*z\['a'\]\[:, None\]",
    ),
    "samples times a row of data": (
        lambda z: -(z["a"] * X).sum(-1),
        {"a": REAL},
        {},
        r"cannot be computed: The size of tensor.*z\['a'\]\[:, None\]",
    ),
    "as many data as a trial would have samples": (
        lambda z: Normal(z["a"], 1.0).log_prob(X[:3]),
        {"a": REAL},
        {},
        r"cannot be computed",
    ),
    "a function of another library": (
        lambda z: -(torch.tensor(math.log(z["a"])) ** 2),
        {"a": constraints.positive},
        {},
        r"cannot be computed: .*torch's functions for NumPy's and math's",
    ),
    "cut off from autograd": (lambda z: torch.tensor((-(z["a"] ** 2)).tolist()), {"a": REAL}, {}, r"ignores 'a'"),
    "data that are no numbers": (
        lambda z: Normal(z["a"][:, None], 1.0).log_prob(X * torch.nan).sum(-1),
        {"a": REAL},
        {},
        r"If it is the data that are refused, look there: NaN",
    ),
    "a constraint that is too wide, far from the start": (
        lambda z: torch.distributions.Uniform(0.0, 10.0).log_prob(z["u"]) + z["u"] * 5,
        {"u": constraints.positive},
        {},
        r"refuses values that the constraints|must be finite wherever",
    ),
    "data of another precision": (
        lambda z: Normal(z["b"] @ torch.ones(2, 4), 1.0).log_prob(X).sum(-1),
        {"b": Latent(REAL, (2,))},
        {},
        r"cannot be computed: .*dtype.*give the data as float64",
    ),
    "no latents": (lambda z: None, {}, {}, r"latents must name at least one latent"),
    "discrete": (lambda z: z["k"], {"k": constraints.nonnegative_integer}, {}, r"latents\['k'\] must be continuous"),
    "start outside": (
        lambda z: -z["s"],
        {"s": constraints.positive},
        {"initial": {"s": -1.0}},
        r"initial\['s'\] must lie inside .*received -1.0",
    ),
    "start on the edge": (lambda z: -z["s"], {"s": constraints.positive}, {"initial": {"s": 0.0}}, r"initial\['s'\]"),
    "start of another shape": (
        lambda z: -(z["a"] ** 2).sum(-1),
        {"a": Latent(REAL, (2,))},
        {"initial": {"a": 1.0}},
        r"initial\['a'\] must have shape \(2,\); received \(\)",
    ),
    "start of nobody": (lambda z: -(z["a"] ** 2), {"a": REAL}, {"initial": {"b": 1.0}}, r"initial must name latents"),
    "too few draws": (
        lambda z: -(z["a"] ** 2).sum(-1),
        {"a": Latent(REAL, (5,))},
        {"num_draws": 8},
        r"num_draws must be at least 10; received 8",
    ),
    "a family of another dimension": (
        lambda z: -(z["a"] ** 2),
        {"a": REAL},
        {"family": lambda dim: families.MeanFieldNormal(dim + 1)},
        r"family must make a module .*event_shape \(1,\)",
    ),
    "no restarts": (lambda z: -(z["a"] ** 2), {"a": REAL}, {"num_restarts": 0}, r"num_restarts must be at least 1"),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_meets_an_error_that_names_the_mend(case: str) -> None:
    log_joint, latents, options, message = MISUSE[case]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        fit_posterior(log_joint, latents, **options)


@pytest.mark.parametrize(
    ("latents", "options", "message"),
    [
        (["a", "b"], {}, r"latents must be a dictionary .*received list"),
        ({"a": Latent(REAL, 8)}, {}, r"shape of latents\['a'\] must be a tuple such as \(\) or \(8,\); received 8"),
        ({"a": REAL}, {"family": families.MeanFieldNormal(1)}, r"family must be .*the class MeanFieldNormal itself"),
        ({"a": REAL}, {"family": "full rank"}, r"family must be .*received 'full rank'"),
    ],
)
def test_the_wrong_kind_of_argument(latents: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        fit_posterior(lambda z: -(z["a"] ** 2), latents, **options)


def test_weighted_draws_mend_what_q_has_wrong() -> None:
    target = Gamma(torch.tensor(4.0).double(), torch.tensor(2.0).double())
    posterior = quiet(fit_posterior, lambda z: 3.0 + target.log_prob(z["a"]), {"a": constraints.positive})
    torch.manual_seed(0)
    z, log_weight = posterior.weighted_sample(20_000)
    weight = log_weight.softmax(0)
    assert (weight * z["a"]).sum().item() == pytest.approx(2.0, abs=0.03)
    assert (weight * z["a"] ** 2).sum().item() - 4.0 == pytest.approx(1.0, abs=0.1)
    assert iwae(log_weight).item() == pytest.approx(3.0, abs=0.01)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        posterior.weighted_sample(0)


def test_a_constraint_must_be_one() -> None:
    with pytest.raises(
        TypeError, match=r"latents\['a'\] must be a torch.distributions constraint.*received 'positive'"
    ):
        fit_posterior(lambda z: z["a"], {"a": "positive"})


@pytest.mark.parametrize("given", [{"data": X}, {"num_data": 4}, {"data": X, "batch_size": 2}])
def test_minibatches_are_described_completely(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="data, batch_size and num_data must be given together"):
        fit_posterior_stochastic(lambda z, batch, scale: z["a"], {"a": REAL}, **given)


def test_num_data_must_be_the_number_of_rows() -> None:
    with pytest.raises(ValueError, match="num_data must be the number of rows of data, 4; received 400"):
        fit_posterior_stochastic(lambda z, b, s: z["a"], {"a": REAL}, data=X, batch_size=2, num_data=400)


def test_examine_accepts_what_is_right() -> None:
    space = Space({"a": REAL, "s": constraints.positive})

    def log_joint(z: dict[str, Tensor]) -> Tensor:
        return Normal(z["a"][:, None], z["s"][:, None]).log_prob(X).sum(-1) - z["s"]

    examine(log_joint, space, space.unconstrain({}))
    u = torch.zeros(2, 2, dtype=torch.float64)
    expected = stats.norm(0, 1).logpdf(X).sum() - 1  # at log s = 0 the log Jacobian is 0
    torch.testing.assert_close(unconstrained(log_joint, space)(u), torch.full((2,), expected, dtype=torch.float64))
