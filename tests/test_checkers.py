"""Every checker lets the right thing pass and catches each of the classic mistakes it claims to catch."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Categorical,
    Distribution,
    ExpTransform,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    kl_divergence,
    register_kl,
)

from vi_tutorial.checkers import (
    batch_repetition_changes_nothing,
    bounds_are_ordered,
    density_integrates_to_one,
    every_column_moves_the_posterior,
    every_parameter_gets_gradient,
    gradient_is_unbiased,
    kl_is_a_divergence,
    samples_match_density,
    stays_below_the_evidence,
)
from vi_tutorial.checks import CheckFailedError
from vi_tutorial.distributions import diagonal_normal, full_normal
from vi_tutorial.elbo import draw, elbo, iwae, weigh
from vi_tutorial.models import LinearGaussian
from vi_tutorial.networks import DiagonalNormalHead, mlp

pytestmark = pytest.mark.usefixtures("_float64")

BOX = (-12.0, 12.0)


def normal(dim: int) -> Independent:
    return diagonal_normal(torch.arange(float(dim)), torch.full((), 0.7))


# --- A density integrates to one -------------------------------------------------------------------


def mixture() -> MixtureSameFamily:
    return MixtureSameFamily(
        Categorical(torch.tensor([0.3, 0.7])), diagonal_normal(torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), torch.ones(2))
    )


@pytest.mark.parametrize(
    ("make", "dim"),
    [
        (lambda: normal(1), 1),
        (lambda: normal(2), 2),
        (lambda: full_normal(torch.ones(2), torch.tensor([[1.0, 0.0], [0.9, 0.5]])), 2),
        (mixture, 2),
    ],
    ids=["normal", "two dimensions", "correlated", "mixture"],
)
def test_densities_integrate_to_one(make: Callable[[], Distribution], dim: int) -> None:
    density_integrates_to_one(make().log_prob, [BOX] * dim)


def _mixture_per_dimension(z: Tensor) -> Tensor:
    """The log-sum-exp taken dimension by dimension, then summed: mass where no component lives."""
    q = mixture()
    components = Normal(q.component_distribution.mean, 1.0).log_prob(z[:, None, :])
    return (q.mixture_distribution.logits[:, None] + components).logsumexp(1).sum(-1)


@pytest.mark.parametrize(
    ("log_prob", "bounds", "total"),
    [
        (lambda z: normal(1).log_prob(z / 2), [(-24.0, 24.0)], "2"),
        (lambda z: normal(1).log_prob(z) + 0.5 * math.log(2 * math.pi), [BOX], "2.50663"),
        (lambda z: normal(2).log_prob(z) - 0.5 * math.log(2 * math.pi), [BOX, BOX], "0.398942"),
        (lambda z: normal(2).log_prob(z / 2) - math.log(2), [(-24.0, 24.0)] * 2, "2"),
        (lambda z: -normal(1).log_prob(z).exp().log(), [(-1.0, 1.0)], None),
        (lambda z: normal(1).log_prob(z) * math.nan, [BOX], "nan"),
    ],
    ids=["no Jacobian", "no constant", "constant twice", "one log-determinant for two", "wrong sign", "nan"],
)
def test_what_is_no_density_is_caught(
    log_prob: Callable[[Tensor], Tensor], bounds: list[tuple[float, float]], total: str | None
) -> None:
    with pytest.raises(CheckFailedError, match=rf"integrates to {total or ''}.*, not to 1 \(tolerance 1e-06\)"):
        density_integrates_to_one(log_prob, bounds)


def test_the_same_components_mixed_per_dimension_integrate_to_one_elsewhere() -> None:
    """That mistake yields a density too, of another model: another checker must catch it."""
    density_integrates_to_one(_mixture_per_dimension, [BOX, BOX], tolerance=1e-4)
    z = torch.tensor([[-2.0, 1.0]])
    assert _mixture_per_dimension(z).item() != pytest.approx(mixture().log_prob(z).item(), abs=0.1)


def test_the_tolerance_of_an_integral() -> None:
    off = [lambda z, c=c: normal(1).log_prob(z) + math.log1p(c) for c in (0.9e-3, 1.1e-3)]
    density_integrates_to_one(off[0], [BOX], tolerance=1e-3)
    with pytest.raises(CheckFailedError):
        density_integrates_to_one(off[1], [BOX], tolerance=1e-3)


# --- Samples match the density ---------------------------------------------------------------------


class Missampled(Independent):
    """A diagonal Normal that scores with one scale and samples with another."""

    def __init__(self, factor: float, shift: float = 0.0) -> None:
        self.factor, self.shift = factor, shift
        super().__init__(Normal(torch.ones(2), torch.full((2,), 1.5)), 1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return 1 + self.shift + self.factor * 1.5 * torch.randn(*sample_shape, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Normal(torch.tensor(3.0), torch.tensor(0.1)),
        lambda: normal(3),
        lambda: full_normal(torch.ones(2), torch.tensor([[1.0, 0.0], [0.9, 0.5]])),
        mixture,
        lambda: TransformedDistribution(normal(2), [AffineTransform(1.0, 3.0, event_dim=1)]),
        lambda: Missampled(1.0),
    ],
    ids=["scalar", "vector", "correlated", "mixture", "flow", "the right factor"],
)
def test_samples_that_match(make: Callable[[], Distribution]) -> None:
    samples_match_density(make())


@pytest.mark.parametrize("factor", [math.exp(0.5), math.exp(-0.5), 1.1, 0.9, 1.5, 2.57, 5.0, 0.2])
def test_noise_scaled_in_one_place_only_is_caught(factor: float) -> None:
    """A log variance taken for a log scale has the factor e^(½ log σ)."""
    with pytest.raises(CheckFailedError, match="the samples do not follow log_prob"):
        samples_match_density(Missampled(factor))


def test_a_sampler_that_forgets_the_correlation_is_caught() -> None:
    """Each coordinate by itself is right: N(0, 1). Only the density knows that they belong together."""

    class Uncorrelated(MultivariateNormal):
        def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
            return torch.randn(*sample_shape, 2)

    covariance = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    samples_match_density(MultivariateNormal(torch.zeros(2), covariance))
    with pytest.raises(CheckFailedError, match="the samples do not follow log_prob"):
        samples_match_density(Uncorrelated(torch.zeros(2), covariance))


def test_a_density_that_mixes_every_dimension_by_itself_is_caught() -> None:
    """Each coordinate has the right marginal density; which goes with which is lost."""

    class Factorised(MixtureSameFamily):
        def log_prob(self, value: Tensor) -> Tensor:
            return _mixture_per_dimension(value)

    right = mixture()
    with pytest.raises(CheckFailedError, match="the samples do not follow log_prob"):
        samples_match_density(Factorised(right.mixture_distribution, right.component_distribution))


def test_a_shifted_sampler_is_caught() -> None:
    with pytest.raises(CheckFailedError, match="the samples do not follow log_prob"):
        samples_match_density(Missampled(1.0, shift=0.2))


def test_a_forgotten_jacobian_is_caught() -> None:
    class Forgotten(TransformedDistribution):
        def log_prob(self, value: Tensor) -> Tensor:
            return self.base_dist.log_prob(value.log())

    with pytest.raises(CheckFailedError):
        samples_match_density(Forgotten(Normal(torch.zeros(()), torch.ones(())), [ExpTransform()], validate_args=False))


def test_a_density_of_nan_is_caught() -> None:
    class Broken(Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            return super().log_prob(value) * math.nan

    with pytest.raises(CheckFailedError):
        samples_match_density(Broken(torch.zeros(()), torch.ones(())))


# --- KL is a divergence ----------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (4,)])
def test_kls_that_are_divergences(batch: tuple[int, ...]) -> None:
    q = full_normal(torch.randn(*batch, 2), torch.eye(2))
    kl_is_a_divergence(q, normal(2))
    kl_is_a_divergence(diagonal_normal(torch.randn(*batch, 2), torch.ones(2)), q)


class WrongKL(Normal):
    """A Normal whose KL is the true one put through a mistake."""

    mistake: Callable[[Tensor], Tensor]


@register_kl(WrongKL, WrongKL)
def _wrong_kl(q: WrongKL, p: WrongKL) -> Tensor:
    return q.mistake(kl_divergence(Normal(q.loc, q.scale), Normal(p.loc, p.scale)))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda kl: -kl, "negative"),
        (lambda kl: kl + 0.5, "not zero"),
        (lambda kl: kl.mean(), "one number per datapoint"),
        (lambda kl: kl.sum(-1), "one number per datapoint"),
        (lambda kl: kl * math.nan, "negative"),
    ],
    ids=["sign", "dropped constant", "mean over the batch", "sum over the batch", "nan"],
)
def test_kls_that_are_none(mistake: Callable[[Tensor], Tensor], message: str) -> None:
    q, p = (WrongKL(torch.full((3,), loc), torch.ones(3)) for loc in (1.0, 0.0))
    q.mistake = mistake
    with pytest.raises(CheckFailedError, match=message):
        kl_is_a_divergence(q, p)


def test_a_kl_of_ones_own_is_held_to_the_same() -> None:
    q, p = diagonal_normal(torch.ones(3, 2), torch.full((2,), 0.5)), diagonal_normal(torch.zeros(3, 2), torch.ones(2))
    kl_is_a_divergence(q, p, divergence=lambda a, b: kl_divergence(a, b))
    with pytest.raises(CheckFailedError, match="negative"):
        kl_is_a_divergence(q, p, divergence=lambda a, b: -kl_divergence(a, b))
    with pytest.raises(CheckFailedError, match="one number per datapoint"):
        kl_is_a_divergence(q, p, divergence=lambda a, b: kl_divergence(a, b).sum())


# --- A bound stays below the evidence --------------------------------------------------------------


def test_a_bound_below_the_evidence_and_one_above() -> None:
    """Standard error 0.01: an excess of 0.02 may be chance, one of 0.1 is not."""
    estimates = torch.randn(10_000, 2) + torch.tensor([-1.0, -0.02])
    stays_below_the_evidence(estimates, torch.zeros(2))
    stays_below_the_evidence(torch.full((100,), -2.0), torch.tensor(-2.0))
    for evidence in ([-1.1, 0.0], [0.0, -0.2]):
        with pytest.raises(CheckFailedError, match=r"exceeds log p\(x\) by 0\.\d+ nats"):
            stays_below_the_evidence(estimates, torch.tensor(evidence))
    with pytest.raises(CheckFailedError, match="nan"):
        stays_below_the_evidence(estimates * math.nan, torch.zeros(2))


@pytest.mark.parametrize(("shape", "evidence"), [((99,), ()), ((100, 2), (3,)), ((100, 2), ())])
def test_bounds_and_evidence_that_do_not_fit(shape: tuple[int, ...], evidence: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"n >= 100; received \("):
        stays_below_the_evidence(torch.zeros(shape), torch.zeros(evidence))


def test_what_integrates_to_far_more_than_one_is_told_soon() -> None:
    with pytest.raises(CheckFailedError, match=r"integrates to .*e\+"):
        density_integrates_to_one(lambda z: -normal(2).log_prob(z), [(-5.0, 5.0), (-5.0, 5.0)])


# --- Bounds are ordered ----------------------------------------------------------------------------


def gaussian_weights(batch: tuple[int, ...] = (), size: int = 8192) -> Tensor:
    """log w ~ N(−½, 1): the mean weight is one, the evidence zero, the ELBO −½."""
    return -0.5 + torch.randn(size, *batch)


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_true_bounds_are_ordered(batch: tuple[int, ...]) -> None:
    bounds_are_ordered(gaussian_weights(batch))
    bounds_are_ordered(gaussian_weights(batch), torch.zeros(batch))


def test_weights_without_variance_meet_the_evidence() -> None:
    bounds_are_ordered(torch.full((512,), -2.0), torch.tensor(-2.0))


@pytest.mark.parametrize(
    ("log_weight", "evidence"),
    [
        (lambda: gaussian_weights() + 1, 0.0),
        (lambda: gaussian_weights(), -0.4),
        (lambda: -gaussian_weights(), 0.0),
        (lambda: gaussian_weights() + 0.3, 0.0),
    ],
    ids=["ELBO above the evidence", "evidence too low", "sign", "a term lost"],
)
def test_what_is_no_bound_is_caught(log_weight: Callable[[], Tensor], evidence: float) -> None:
    with pytest.raises(CheckFailedError, match=r"exceeds log p\(x\) by 0\.\d+ nats|exceeds log p\(x\) by 1"):
        bounds_are_ordered(log_weight(), torch.tensor(evidence))


def test_one_bad_datapoint_of_three_is_caught() -> None:
    with pytest.raises(CheckFailedError, match=r"exceeds log p\(x\)"):
        bounds_are_ordered(gaussian_weights((3,)), torch.tensor([0.0, -1.0, 0.0]))


def test_bounds_of_a_real_model_are_ordered() -> None:
    model = LinearGaussian(torch.randn(3, 2), torch.zeros(3), torch.tensor(1.0)).requires_grad_(False)
    x = torch.randn(2, 3)
    exact = model.posterior(x)
    q = diagonal_normal(exact.mean, exact.variance.sqrt())
    log_weight = draw(model.given(x), q, 4096).log_weight
    bounds_are_ordered(log_weight, model.log_evidence(x))
    with pytest.raises(CheckFailedError):
        bounds_are_ordered(log_weight, model.log_evidence(x) - 0.5)


# --- Gradients are unbiased ------------------------------------------------------------------------


def test_an_unbiased_gradient_and_a_biased_one() -> None:
    """Standard error 0.01: a bias of 0.1 is ten of them. And a gradient without any noise is held to rounding."""
    estimates = 1 + torch.randn(10_000, 2)
    gradient_is_unbiased(estimates, torch.ones(2))
    with pytest.raises(CheckFailedError, match=r"the gradient is biased by -0\.\d"):
        gradient_is_unbiased(estimates, torch.tensor([1.0, 1.1]))
    gradient_is_unbiased(torch.zeros(100), torch.tensor(0.0))
    with pytest.raises(CheckFailedError):
        gradient_is_unbiased(torch.zeros(100), torch.tensor(1e-6))


# --- Repeating the batch changes nothing -----------------------------------------------------------


def test_a_bound_per_datapoint_is_left_alone_by_repetition() -> None:
    model = LinearGaussian(torch.randn(3, 2), torch.zeros(3), torch.tensor(1.0)).requires_grad_(False)
    batch_repetition_changes_nothing(model.log_evidence, torch.randn(4, 3))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum(-1) / len(x),
        lambda x: x.sum(-1) - x.sum(-1).mean() + x.numel(),
        lambda x: x.sum(-1).logsumexp(0).expand(len(x)),
        lambda x: x.sum(-1) * math.nan,
        lambda x: x.mean(),
        lambda x: x,
        lambda x: x.sum(-1)[: len(x) // 2],
    ],
    ids=["divided by B", "counted", "log-sum-exp over data", "nan", "mean over the batch", "no sum", "half of them"],
)
def test_a_value_that_depends_on_its_neighbours_is_caught(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(CheckFailedError):
        batch_repetition_changes_nothing(function, torch.randn(4, 2))


# --- Every parameter gets gradient -----------------------------------------------------------------


def _bound(encoder: DiagonalNormalHead, detach: bool = False) -> Tensor:
    q = encoder(torch.randn(5, 3))
    z = q.rsample((2,))
    return elbo(weigh(lambda z: -z.square().sum(-1), q, z.detach() if detach else z).log_weight)


def test_a_bound_that_trains_everything() -> None:
    encoder = DiagonalNormalHead(mlp(3, 4, 4), 2)
    every_parameter_gets_gradient(_bound(encoder), encoder)
    assert all(p.grad is None for p in encoder.parameters())
    encoder.requires_grad_(False)
    encoder.network[0].weight.requires_grad_(True)
    every_parameter_gets_gradient(_bound(encoder), encoder)


def test_parameters_without_gradient_are_named() -> None:
    module = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 1)})
    with pytest.raises(CheckFailedError, match=r"reaches idle\.weight, idle\.bias$"):
        every_parameter_gets_gradient(module["used"](torch.ones(1, 2)), module)
    cancelled = module["used"](torch.ones(1, 2)) + 0 * module["idle"](torch.ones(1, 2))
    with pytest.raises(CheckFailedError, match=r"reaches idle\.weight, idle\.bias$"):
        every_parameter_gets_gradient(cancelled, module)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_none(factor: float) -> None:
    layer = nn.Linear(2, 1)
    with pytest.raises(CheckFailedError, match="weight, bias"):
        every_parameter_gets_gradient(layer(torch.ones(1, 2)) * factor, layer)


def test_a_bound_cut_off_from_everything_names_everything() -> None:
    layer = nn.Linear(2, 1)
    with pytest.raises(CheckFailedError, match="weight, bias"):
        every_parameter_gets_gradient(layer(torch.ones(1, 2)).detach(), layer)


# --- Every column moves the posterior --------------------------------------------------------------


def test_columns_that_move_the_posterior() -> None:
    model = LinearGaussian(torch.randn(3, 2), torch.zeros(3), torch.tensor(1.0))
    every_column_moves_the_posterior(lambda x: model.posterior(x).mean, torch.randn(4, 3))
    with torch.no_grad():
        model.weight[1] = 0
    with pytest.raises(CheckFailedError, match=r"column\(s\) \[1\]"):
        every_column_moves_the_posterior(lambda x: model.posterior(x).mean, torch.randn(4, 3))
    every_column_moves_the_posterior(lambda x: model.posterior(x).mean, torch.randn(4, 3), columns=[0, 2])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.zeros(len(x)),
        lambda x: x.detach().sum(-1),
        lambda x: torch.zeros(len(x), requires_grad=True) * 1,
        lambda x: (x * math.nan).sum(-1),
    ],
    ids=["constant", "detached", "another leaf", "nan"],
)
def test_a_posterior_that_ignores_the_data_is_caught(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(CheckFailedError, match=r"column\(s\) \[0, 1\]"):
        every_column_moves_the_posterior(function, torch.randn(4, 2))


def test_iwae_over_the_wrong_axis_is_no_value_per_datapoint() -> None:
    """The classic one: the log-sum-exp runs over the data, and repeating the batch shows it."""
    weights = torch.randn(6)

    def right(x: Tensor) -> Tensor:
        return iwae(x.sum(-1) * weights[:, None])

    def wrong(x: Tensor) -> Tensor:
        return iwae((x.sum(-1) * weights[:, None]).T).mean().expand(len(x)) + len(x)

    batch_repetition_changes_nothing(right, torch.randn(4, 2))
    with pytest.raises(CheckFailedError, match="changes a datapoint's value"):
        batch_repetition_changes_nothing(wrong, torch.randn(4, 2))
