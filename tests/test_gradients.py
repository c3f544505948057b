"""Every gradient estimator against the exact gradient, in φ and in θ.

Three oracles: a closed-form ELBO, differentiated; tensor-product Gauss–Hermite quadrature, for the
importance-weighted bound; and, for a discrete latent, the sum over all tuples of samples, which is exact, so
that a bias of 1e-12 would be seen. Where there is chance, one call draws many independent gradients: the
parameters are repeated along the batch, so that each datapoint has a copy of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    TanhTransform,
    TransformedDistribution,
)

from vi_tutorial.distributions import (
    bernoulli,
    binomial,
    continuous_bernoulli,
    diagonal_normal,
    discretised_logistic,
    discretised_normal,
    full_normal,
    mixture_normal,
)
from vi_tutorial.elbo import (
    LogJoint,
    cubo,
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
from vi_tutorial.families import Fixed, standard_normal
from vi_tutorial.models import LatentVariableModel, LinearGaussian
from vi_tutorial.networks import BernoulliHead
from vi_tutorial.objectives import beta_objective, free_bits_objective, relaxed_objective, tempered
from vi_tutorial.quadrature import expected_elbo

pytestmark = pytest.mark.usefixtures("_float64")

Estimator = Callable[[LogJoint, Distribution, int], Tensor]

STANDARD_ERRORS = 4.5  # two-sided false-alarm rate 7e-6 per number, with about 120 numbers below and fixed seeds


def pathwise(log_joint: LogJoint, q: Distribution, num_samples: int) -> Tensor:
    return elbo(draw(log_joint, q, num_samples).log_weight)


def iwae_pathwise(log_joint: LogJoint, q: Distribution, num_samples: int) -> Tensor:
    return iwae(draw(log_joint, q, num_samples).log_weight)


def agrees(gradients: Tensor, exact: Tensor, precision: float) -> None:
    """The mean gradient is the exact one; ``precision`` bounds the standard error, so that a wrong one would show."""
    error = gradients.std(0) / math.sqrt(len(gradients))
    assert (error < precision).all(), f"too noisy to tell: {error}"
    assert ((gradients.mean(0) - exact).abs() <= STANDARD_ERRORS * error + 1e-12).all(), (
        f"mean {gradients.mean(0)}, exact {exact}, standard error {error}"
    )


# --- One latent: z ~ N(0, 1), x | z ~ N(a z + b, s²), q = N(m, e^2r); φ = (m, r), θ = (a, b, log s) ---

X = 1.3
PHI = (0.4, -0.3)
THETA = (1.5, -0.2, -0.4)


def joint(theta: Tensor) -> LogJoint:
    a, b, log_s = theta.unbind(-1)

    def log_joint(z: Tensor) -> Tensor:
        prior = Normal(torch.zeros(()), torch.ones(()))
        return prior.log_prob(z) + Normal(a * z + b, log_s.exp()).log_prob(torch.tensor(X))

    return log_joint


def closed_form_elbo(phi: Tensor, theta: Tensor) -> Tensor:
    m, r = phi.unbind(-1)
    a, b, log_s = theta.unbind(-1)
    prior = -0.5 * math.log(2 * math.pi) - 0.5 * (m**2 + (2 * r).exp())
    squared = (X - b - a * m) ** 2 + a**2 * (2 * r).exp()
    likelihood = -0.5 * math.log(2 * math.pi) - log_s - 0.5 * squared * (-2 * log_s).exp()
    return prior + likelihood + 0.5 * math.log(2 * math.pi * math.e) + r


def leaves(repeats: int | None = None) -> tuple[Tensor, Tensor]:
    """φ and θ; with ``repeats``, that many copies, each with a gradient of its own."""
    pair = (torch.tensor(PHI), torch.tensor(THETA))
    phi, theta = (p if repeats is None else p.repeat(repeats, 1) for p in pair)
    return phi.requires_grad_(), theta.requires_grad_()


def normal(phi: Tensor) -> Normal:
    return Normal(phi[..., 0], phi[..., 1].exp())


def as_independent(phi: Tensor) -> Distribution:
    return diagonal_normal(phi[..., :1], phi[..., 1:].exp())


def as_full(phi: Tensor) -> Distribution:
    return full_normal(phi[..., :1], phi[..., 1:, None].exp())


def as_flow(phi: Tensor) -> Distribution:
    """The same Normal as a flow: a standard Normal, moved and scaled."""
    base = Normal(torch.zeros(phi.shape[:-1]), torch.ones(()))
    return TransformedDistribution(base, [AffineTransform(phi[..., 0], phi[..., 1].exp())])


def scalar_event(make: Callable[[Tensor], Distribution]) -> Callable[[LogJoint], LogJoint]:
    """For a q over vectors of length one: take the event's only coordinate."""
    return (lambda f: f) if make in (normal, as_flow) else (lambda f: lambda z: f(z.squeeze(-1)))


FAMILIES = [normal, as_independent, as_full, as_flow]
REPARAMETERISED = [pathwise, elbo_sticking_the_landing]
SCORE = [elbo_score_function, elbo_leave_one_out]


def gradients_of(
    estimator: Estimator, num_samples: int, repeats: int, make: Callable[[Tensor], Distribution] = normal
) -> tuple[Tensor, Tensor]:
    phi, theta = leaves(repeats)
    bound = estimator(scalar_event(make)(joint(theta)), make(phi), num_samples)
    assert bound.shape == (repeats,)
    return torch.autograd.grad(bound.sum(), (phi, theta))


def exact_gradients(bound: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    leaf = leaves()
    return torch.autograd.grad(bound(*leaf), leaf)


def expected_bound(phi: Tensor, theta: Tensor, num_samples: int) -> Tensor:
    """E[IWAE_K] by Gauss–Hermite quadrature over the K standard normals, with exact derivatives."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    grid = torch.tensor(list(itertools.product(nodes, repeat=num_samples))).T
    mass = torch.tensor(np.array(list(itertools.product(weights, repeat=num_samples))).prod(1))
    mass = mass / mass.sum()
    m, r = phi.unbind(-1)
    z = m + r.exp() * grid
    log_weight = joint(theta)(z) + grid**2 / 2 + 0.5 * math.log(2 * math.pi) + r
    return (mass * (log_weight.logsumexp(0) - math.log(num_samples))).sum()


def test_the_two_oracles_agree() -> None:
    quadrature = exact_gradients(lambda phi, theta: expected_bound(phi, theta, 1))
    for by_hand, by_grid in zip(exact_gradients(closed_form_elbo), quadrature, strict=True):
        assert torch.allclose(by_hand, by_grid, atol=1e-10)


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("estimator", [*REPARAMETERISED, *SCORE])
@pytest.mark.parametrize("num_samples", [2, 5])
def test_gradients_of_the_elbo_are_unbiased(
    estimator: Estimator, num_samples: int, make: Callable[[Tensor], Distribution]
) -> None:
    """The exact gradient in φ is (2.6, −2.3): a sign, a half or a term lost is more than ten errors away."""
    phi, theta = gradients_of(estimator, num_samples, 20_000, make)
    exact_phi, exact_theta = exact_gradients(closed_form_elbo)
    agrees(phi, exact_phi, precision=0.07)
    agrees(theta, exact_theta, precision=0.07)


@pytest.mark.parametrize("estimator", [*REPARAMETERISED, elbo_score_function])
def test_gradients_of_the_elbo_are_unbiased_with_one_sample(estimator: Estimator) -> None:
    phi, theta = gradients_of(estimator, 1, 60_000)
    exact_phi, exact_theta = exact_gradients(closed_form_elbo)
    agrees(phi, exact_phi, precision=0.06)
    agrees(theta, exact_theta, precision=0.06)


def test_gradients_with_the_kl_in_closed_form_are_unbiased() -> None:
    phi, theta = leaves(40_000)
    a, b, log_s = theta.unbind(-1)
    prior = Normal(torch.zeros(()), torch.ones(()))

    def log_likelihood(z: Tensor) -> Tensor:
        return Normal(a * z + b, log_s.exp()).log_prob(torch.tensor(X))

    bound = elbo_analytic_kl(log_likelihood, normal(phi), prior, 2)
    gradients = torch.autograd.grad(bound.sum(), (phi, theta))
    for gradient, exact in zip(gradients, exact_gradients(closed_form_elbo), strict=True):
        agrees(gradient, exact, precision=0.04)


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("estimator", [iwae_pathwise, iwae_doubly_reparameterised])
@pytest.mark.parametrize("num_samples", [1, 2, 3])
def test_gradients_of_the_importance_weighted_bound_are_unbiased(
    estimator: Estimator, num_samples: int, make: Callable[[Tensor], Distribution]
) -> None:
    phi, theta = gradients_of(estimator, num_samples, 20_000, make)
    exact_phi, exact_theta = exact_gradients(lambda phi, theta: expected_bound(phi, theta, num_samples))
    agrees(phi, exact_phi, precision=0.05)
    agrees(theta, exact_theta, precision=0.05)


def test_the_expected_gradient_moves_with_the_number_of_samples() -> None:
    """Or the test above could not tell K = 2 from K = 3: they are several of its standard errors apart."""
    by_samples = [exact_gradients(lambda p, t, k=k: expected_bound(p, t, k))[0] for k in (1, 2, 3)]
    for fewer, more in itertools.pairwise(by_samples):
        assert (fewer - more).abs().max() > 0.2


# --- The definitions, sample by sample --------------------------------------------------------------


def frozen_weights(phi: Tensor, theta: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z, log joint and log q written out for given noise, in graph."""
    m, r = phi.unbind(-1)
    z = m + r.exp() * noise
    log_q = -0.5 * ((z - m) / r.exp()) ** 2 - r - 0.5 * math.log(2 * math.pi)
    return z, joint(theta)(z), log_q


def noise_of(seed: int, num_samples: int) -> Tensor:
    torch.manual_seed(seed)
    return draw(lambda z: z, Normal(torch.zeros(()), torch.ones(())), num_samples).z


def seeded_gradients(estimator: Estimator, num_samples: int) -> tuple[Tensor, Tensor]:
    phi, theta = leaves()
    torch.manual_seed(5)
    return torch.autograd.grad(estimator(joint(theta), normal(phi), num_samples), (phi, theta))


@pytest.mark.parametrize("num_samples", [1, 2, 6])
def test_sticking_the_landing_is_the_path_derivative(num_samples: int) -> None:
    """Mean over samples of ∂log w/∂z · ∂z/∂φ, each factor by itself."""
    phi, theta = leaves()
    noise = noise_of(5, num_samples)
    by_hand = torch.zeros(2)
    for epsilon in noise:
        z, log_p, log_q = frozen_weights(phi, theta, epsilon)
        (slope,) = torch.autograd.grad(log_p - log_q, z)
        by_hand += slope * torch.tensor([1.0, (phi[1].exp() * epsilon).item()]) / num_samples
    gradient, theta_gradient = seeded_gradients(elbo_sticking_the_landing, num_samples)
    assert torch.allclose(gradient, by_hand, atol=1e-12)
    assert torch.allclose(theta_gradient, seeded_gradients(pathwise, num_samples)[1], atol=1e-12)


@pytest.mark.parametrize("num_samples", [1, 2, 6])
def test_doubly_reparameterised_squares_the_normalised_weights(num_samples: int) -> None:
    """Sum over samples of w̃² ∂log w/∂z · ∂z/∂φ; the gradient in θ is that of the bound itself."""
    phi, theta = leaves()
    noise = noise_of(5, num_samples)
    slopes, weights = [], []
    for epsilon in noise:
        z, log_p, log_q = frozen_weights(phi, theta, epsilon)
        weights.append((log_p - log_q).exp().item())
        slopes.append(torch.autograd.grad(log_p - log_q, z)[0].item())
    normalised = np.array(weights) / sum(weights)
    paths = np.stack([np.ones(num_samples), math.exp(PHI[1]) * noise.numpy()])
    gradient, theta_gradient = seeded_gradients(iwae_doubly_reparameterised, num_samples)
    assert np.allclose(gradient, paths @ (normalised**2 * slopes), atol=1e-12)
    assert torch.allclose(theta_gradient, seeded_gradients(iwae_pathwise, num_samples)[1], atol=1e-12)


@pytest.mark.parametrize("make", FAMILIES)
def test_with_one_sample_doubly_reparameterised_is_sticking_the_landing(make: Callable[[Tensor], Distribution]) -> None:
    results = []
    for estimator in (iwae_doubly_reparameterised, elbo_sticking_the_landing):
        torch.manual_seed(8)
        results.append(gradients_of(estimator, 1, 50, make))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("estimator", [pathwise, iwae_pathwise])
def test_pathwise_gradients_agree_with_finite_differences_of_frozen_noise(estimator: Estimator) -> None:
    noise = torch.randn(4)

    def bound(phi: Tensor, theta: Tensor) -> Tensor:
        q = normal(phi)
        log_weight = weigh(joint(theta), q, q.loc + q.scale * noise).log_weight
        return elbo(log_weight) if estimator is pathwise else iwae(log_weight)

    assert torch.autograd.gradcheck(bound, leaves())


@pytest.mark.parametrize("estimator", [iwae_doubly_reparameterised, elbo_sticking_the_landing, pathwise])
def test_each_datapoint_keeps_its_own_gradient_for_vector_latents(estimator: Estimator) -> None:
    """Three datapoints with two latent dimensions: as one batch, and one at a time on the same noise."""
    loc, log_scale = torch.randn(3, 2), 0.3 * torch.randn(3, 2)
    noise = torch.randn(4, 3, 2)

    class Frozen(Independent):
        """A diagonal Normal whose noise is given."""

        def __init__(self, loc: Tensor, scale: Tensor, noise: Tensor) -> None:
            self.noise = noise
            super().__init__(Normal(loc, scale), 1)

        def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
            return self.base_dist.loc + self.base_dist.scale * self.noise

    def gradient(rows: list[int]) -> Tensor:
        leaf = torch.cat([loc[rows], log_scale[rows]], -1).requires_grad_()
        q = Frozen(leaf[:, :2], leaf[:, 2:].exp(), noise[:, rows])
        bound = estimator(lambda z: -((z - 1) ** 4).sum(-1) + z[..., 0] * z[..., 1], q, 4)
        return torch.autograd.grad(bound.sum(), leaf)[0]

    together = gradient([0, 1, 2])
    assert torch.allclose(together, torch.cat([gradient([i]) for i in range(3)]), atol=1e-12)
    assert together.abs().min() > 1e-6


# --- At the posterior --------------------------------------------------------------------------------


def _posterior_gradients(estimator: Estimator, num_samples: int) -> Tensor:
    """1,000 gradients in mean and Cholesky factor at the exact posterior of a model with correlated latents."""
    model = LinearGaussian(torch.tensor([[1.0, 0.5], [0.3, 2.0], [1.0, 1.0]]), torch.zeros(3), torch.tensor(0.7))
    x = torch.tensor([1.0, -2.0, 0.5])
    exact = model.posterior(x)
    loc = exact.loc.detach().repeat(1000, 1).requires_grad_()
    tril = exact.scale_tril.detach().repeat(1000, 1, 1).requires_grad_()
    bound = estimator(model.given(x.expand(1000, 3)), full_normal(loc, tril), num_samples)
    by_loc, by_tril = torch.autograd.grad(bound.sum(), (loc, tril))
    return torch.cat([by_loc, by_tril.tril().flatten(1)], 1)


@pytest.mark.parametrize(
    ("estimator", "num_samples"),
    [(elbo_sticking_the_landing, 1), (elbo_sticking_the_landing, 3), (iwae_doubly_reparameterised, 3)],
)
def test_at_the_posterior_the_path_gradient_has_no_variance(estimator: Estimator, num_samples: int) -> None:
    assert _posterior_gradients(estimator, num_samples).abs().max() < 1e-11


@pytest.mark.parametrize("estimator", [elbo_leave_one_out])
def test_at_the_posterior_leave_one_out_has_no_variance_either(estimator: Estimator) -> None:
    """All log weights are equal there, so each sample's baseline is its own log weight."""
    assert _posterior_gradients(estimator, 3).abs().max() < 1e-11


def test_at_the_posterior_the_total_derivative_has_the_fisher_information_as_variance() -> None:
    """The score is all that is left of it: in the mean its covariance is the posterior precision Λ."""
    weight = torch.tensor([[1.0, 0.5], [0.3, 2.0], [1.0, 1.0]])
    precision = torch.eye(2) + weight.T @ weight / 0.49
    scores = _posterior_gradients(pathwise, 1)[:, :2]
    assert torch.allclose(scores.T.cov(), precision, rtol=0.25, atol=0.4)


# --- A curved flow -----------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [*REPARAMETERISED, *SCORE, iwae_doubly_reparameterised])
def test_gradients_through_a_nonlinear_flow_are_unbiased(estimator: Estimator) -> None:
    """z = tanh(m + e^r ε); exact gradients by quadrature over ε, with the flow's Jacobian written out."""
    num_samples = 2
    is_iwae = estimator is iwae_doubly_reparameterised
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    if is_iwae:
        grid = torch.tensor(list(itertools.product(nodes, repeat=2))).T
        mass = torch.tensor(np.outer(weights, weights).ravel())
    else:
        grid, mass = torch.tensor(nodes)[None], torch.tensor(weights)

    def log_joint(z: Tensor) -> Tensor:
        return -3 * (z - 0.5) ** 2 + z

    def exact_bound(phi: Tensor) -> Tensor:
        y = phi[0] + phi[1].exp() * grid
        log_q = -(grid**2) / 2 - 0.5 * math.log(2 * math.pi) - phi[1] - torch.log1p(-(y.tanh() ** 2))
        log_weight = log_joint(y.tanh()) - log_q
        return (mass * (log_weight.logsumexp(0) - math.log(len(grid)))).sum() / mass.sum()

    leaf = torch.tensor([0.3, -0.7], requires_grad=True)
    (exact,) = torch.autograd.grad(exact_bound(leaf), leaf)
    phi = leaf.detach().repeat(20_000, 1).requires_grad_()
    q = TransformedDistribution(normal(phi), [TanhTransform()])
    (gradients,) = torch.autograd.grad(estimator(log_joint, q, num_samples).sum(), phi)
    agrees(gradients, exact, precision=0.02)


# --- A full covariance in two dimensions -------------------------------------------------------------


@pytest.mark.parametrize("estimator", [*REPARAMETERISED, *SCORE])
def test_gradients_of_a_full_covariance_are_unbiased(estimator: Estimator) -> None:
    """E_q of a quadratic log joint in closed form: log joint at the mean − ½ tr ΛΣ, plus the entropy."""
    model = LinearGaussian(torch.tensor([[1.0, 0.5], [0.3, 1.0]]), torch.zeros(2), torch.tensor(1.0))
    x = torch.tensor([1.0, -2.0])
    precision = model.posterior_precision().detach()
    loc, tril = torch.tensor([0.5, -1.0]), torch.tensor([[0.8, 0.0], [0.3, 0.6]])
    leaf = (loc.clone().requires_grad_(), tril.clone().requires_grad_())
    covariance = leaf[1].tril() @ leaf[1].tril().T
    exact_bound = (
        model.given(x)(leaf[0][None])[0] - 0.5 * (precision @ covariance).trace() + leaf[1].diagonal().log().sum()
    )
    exact_loc, exact_tril = torch.autograd.grad(exact_bound, leaf)
    repeats = 20_000
    locs, trils = loc.repeat(repeats, 1).requires_grad_(), tril.repeat(repeats, 1, 1).requires_grad_()
    bound = estimator(model.given(x.expand(repeats, 2)), full_normal(locs, trils), 3)
    by_loc, by_tril = torch.autograd.grad(bound.sum(), (locs, trils))
    agrees(by_loc, exact_loc, precision=0.05)
    agrees(by_tril.tril().flatten(1), exact_tril.tril().flatten(), precision=0.05)


# --- A discrete latent: every tuple of samples -------------------------------------------------------


class EveryPair(Bernoulli):
    """A Bernoulli whose "samples" are all 2^K tuples, one tuple per element of the batch."""

    def __init__(self, logits: Tensor, num_samples: int) -> None:
        self.tuples = torch.tensor(list(itertools.product([0.0, 1.0], repeat=num_samples))).T
        super().__init__(logits=logits)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.tuples


LOGIT = 0.8
TABLE = (-1.3, 0.4)  # log joint at z = 0 and z = 1: θ


def _every_tuple(estimator: Estimator, num_samples: int) -> tuple[Tensor, Tensor, Tensor, EveryPair]:
    """The probability of each tuple, and its gradients in φ and θ."""
    logits = torch.full((2**num_samples,), LOGIT, requires_grad=True)
    table = torch.tensor(TABLE).repeat(2**num_samples, 1).requires_grad_()
    q = EveryPair(logits, num_samples)
    bound = estimator(lambda z: torch.where(z == 1, table[:, 1], table[:, 0]), q, num_samples)
    by_phi, by_theta = torch.autograd.grad(bound.sum(), (logits, table))
    return q.log_prob(q.tuples).sum(0).exp().detach(), by_phi, by_theta, q


@pytest.mark.parametrize(
    ("estimator", "num_samples"),
    [
        (elbo_score_function, 1),
        (elbo_score_function, 2),
        (elbo_leave_one_out, 2),
        (elbo_leave_one_out, 3),
        (elbo_leave_one_out, 5),
    ],
)
def test_the_expectation_over_every_tuple_is_the_exact_gradient(estimator: Estimator, num_samples: int) -> None:
    logit, table = torch.tensor(LOGIT, requires_grad=True), torch.tensor(TABLE, requires_grad=True)
    q = torch.stack([torch.sigmoid(-logit), torch.sigmoid(logit)])
    exact_phi, exact_theta = torch.autograd.grad((q * (table - q.log())).sum(), (logit, table))
    probability, by_phi, by_theta, _ = _every_tuple(estimator, num_samples)
    assert (probability * by_phi).sum().item() == pytest.approx(exact_phi.item(), abs=1e-13)
    assert (probability[:, None] * by_theta).sum(0).tolist() == pytest.approx(exact_theta.tolist(), abs=1e-13)


@pytest.mark.parametrize("num_samples", [2, 3, 5])
def test_leave_one_out_takes_the_mean_of_the_others_from_each(num_samples: int) -> None:
    """In every tuple, by loops: an unbiased estimator with another baseline would pass the test above."""
    _, by_phi, _, q = _every_tuple(elbo_leave_one_out, num_samples)
    heads = 1 / (1 + math.exp(-LOGIT))
    log_weight = {0.0: TABLE[0] - math.log(1 - heads), 1.0: TABLE[1] - math.log(heads)}
    for gradient, states in zip(by_phi.tolist(), q.tuples.T.tolist(), strict=True):
        total = 0.0
        for k, state in enumerate(states):
            others = [log_weight[s] for j, s in enumerate(states) if j != k]
            total += (log_weight[state] - sum(others) / len(others)) * (state - heads)
        assert gradient == pytest.approx(total / num_samples, abs=1e-13)


@pytest.mark.parametrize("num_samples", [1, 3])
def test_score_function_weighs_each_score_by_its_log_weight(num_samples: int) -> None:
    _, by_phi, _, q = _every_tuple(elbo_score_function, num_samples)
    heads = 1 / (1 + math.exp(-LOGIT))
    log_weight = {0.0: TABLE[0] - math.log(1 - heads), 1.0: TABLE[1] - math.log(heads)}
    for gradient, states in zip(by_phi.tolist(), q.tuples.T.tolist(), strict=True):
        expected = sum(log_weight[s] * (s - heads) for s in states) / num_samples
        assert gradient == pytest.approx(expected, abs=1e-13)


def test_leave_one_out_does_not_feel_a_constant_in_the_log_joint() -> None:
    """The evidence of another data set's size, say: the plain score function's noise grows with it."""
    shifted = []
    for constant in (0.0, 1000.0):
        logits = torch.full((50,), LOGIT, requires_grad=True)
        torch.manual_seed(2)
        bound = elbo_leave_one_out(lambda z, c=constant: 0.7 * z + c, Bernoulli(logits=logits), 4)
        shifted.append(torch.autograd.grad(bound.sum(), logits)[0])
    assert torch.allclose(*shifted, atol=1e-10)


@pytest.mark.parametrize("estimator", SCORE)
def test_integer_latents_are_welcome(estimator: Estimator) -> None:
    logits = torch.tensor([0.2, -0.5, 1.0])
    table = torch.tensor([1.0, -1.0, 0.5])
    leaf = logits.clone().requires_grad_()
    q = leaf.softmax(0)
    (exact,) = torch.autograd.grad((q * (table - q.log())).sum(), leaf)
    repeated = logits.repeat(20_000, 1).requires_grad_()
    bound = estimator(lambda z: table[z], Categorical(logits=repeated), 2)
    (gradients,) = torch.autograd.grad(bound.sum(), repeated)
    agrees(gradients, exact, precision=0.01)


def test_a_sample_where_the_joint_is_zero_is_refused_by_the_score_function() -> None:
    q = Bernoulli(logits=torch.zeros(200))
    with pytest.raises(ValueError, match="q puts mass where the joint has none"):
        elbo_score_function(lambda z: torch.where(z == 1, 0.0, -math.inf), q, 2)


# --- Reference value: signal-to-noise of the score function -------------------------------------------


@pytest.mark.parametrize("mean", [0.5, 2.0, 6.0])
def test_signal_to_noise_of_the_score_function(mean: float) -> None:
    """p = N(0, 1), q = N(μ, 1): |E g| / sd g = 1 / √(2 + μ²/4). Its s.e. over 100,000 draws is below 0.5 %."""
    loc = torch.full((100_000,), mean, requires_grad=True)
    standard = Normal(torch.zeros(()), torch.ones(()))
    (g,) = torch.autograd.grad(elbo_score_function(standard.log_prob, Normal(loc, torch.ones(())), 1).sum(), loc)
    assert -g.mean().item() / g.std().item() == pytest.approx(1 / math.sqrt(2 + mean**2 / 4), rel=0.03)


# --- What the estimators leave alone ------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [*REPARAMETERISED, *SCORE, iwae_pathwise, iwae_doubly_reparameterised])
def test_a_frozen_q_still_lets_theta_learn(estimator: Estimator) -> None:
    _, theta = leaves()
    q = Normal(torch.tensor(PHI[0]), torch.tensor(1.0))
    (gradient,) = torch.autograd.grad(estimator(joint(theta), q, 3), theta)
    assert gradient.abs().min() > 0


@pytest.mark.parametrize("estimator", [*REPARAMETERISED, *SCORE, iwae_pathwise, iwae_doubly_reparameterised])
def test_without_gradients_there_is_just_the_value(estimator: Estimator) -> None:
    phi, theta = leaves()
    with torch.no_grad():
        assert not estimator(joint(theta), normal(phi), 3).requires_grad


def test_multivariate_normal_of_torch_is_a_q_too() -> None:
    loc = torch.zeros(2, requires_grad=True)
    q = MultivariateNormal(loc, covariance_matrix=torch.eye(2))
    (gradient,) = torch.autograd.grad(elbo_sticking_the_landing(lambda z: -z.square().sum(-1) / 2, q, 2), loc)
    assert gradient.tolist() == pytest.approx([0, 0], abs=1e-15)


# --- First and second derivatives against finite differences --------------------------------------------------------

POWER_MEANS = {
    "elbo": (elbo, 0.0),
    "iwae": (iwae, 1.0),
    "renyi 0.5": (lambda w: renyi(w, 0.5), 0.5),
    "renyi 3": (lambda w: renyi(w, 3.0), -2.0),
    "renyi next to 1": (lambda w: renyi(w, 1.0001), -0.0001),
    "cubo": (cubo, 2.0),
    "cubo 3": (lambda w: cubo(w, 3.0), 3.0),
}
"""Each bound, and the power c of the mean of w^c that it is the logarithm of, divided by c."""


@pytest.mark.parametrize(("bound", "power"), POWER_MEANS.values(), ids=POWER_MEANS)
def test_a_bounds_gradient_is_the_normalised_weights_and_its_hessian_their_covariance(
    bound: Callable[[Tensor], Tensor], power: float
) -> None:
    """∂/∂log w_k = p_k, p = softmax(c log w); the second derivatives are c (diag p − p pᵀ)."""
    log_weight = torch.tensor([-0.3, 1.2, 0.4, -2.0], requires_grad=True)
    share = (power * log_weight.detach()).softmax(0)
    (gradient,) = torch.autograd.grad(bound(log_weight), log_weight)
    assert torch.allclose(gradient, share, atol=1e-9)
    hessian = torch.autograd.functional.hessian(bound, log_weight.detach())
    assert torch.allclose(hessian, power * (share.diag() - torch.outer(share, share)), atol=1e-7)
    assert torch.autograd.gradgradcheck(bound, log_weight)


DENSITIES = {
    "diagonal_normal": (lambda a, b: diagonal_normal(a, b.exp()), (3,), 2 * [(3,)]),
    "full_normal": (lambda a, b: full_normal(a, b.tril(-1) + b.diag().exp().diag_embed()), (2,), [(2,), (2, 2)]),
    "bernoulli": (bernoulli, None, [(3,)]),
    "binomial": (lambda a: binomial(a, 4), None, [(3,)]),
    "continuous_bernoulli": (continuous_bernoulli, "unit", [(3,)]),
    "discretised_normal": (lambda a, b: discretised_normal(a, b.exp(), 0, 4), None, 2 * [(3,)]),
    "discretised_logistic": (lambda a, b: discretised_logistic(a, b.exp(), 0, 4), None, 2 * [(3,)]),
    "mixture_normal": (lambda a, b, c: mixture_normal(a, b, c.exp()), (2,), [(3,), (3, 2), (3, 2)]),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_have_first_and_second_derivatives(name: str) -> None:
    make, values, shapes = DENSITIES[name]
    parameters = tuple(torch.randn(shape).requires_grad_() for shape in shapes)
    value = (
        torch.tensor([1.0, 0.0, 1.0]) if values is None else torch.rand(3) if values == "unit" else torch.randn(values)
    )

    def log_prob(*arguments: Tensor) -> Tensor:
        return make(*arguments).log_prob(value)

    assert torch.autograd.gradcheck(log_prob, parameters)
    assert torch.autograd.gradgradcheck(log_prob, parameters)


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("estimator", [pathwise, iwae_pathwise])
def test_with_frozen_noise_the_pathwise_bounds_have_first_and_second_derivatives(
    estimator: Estimator, make: Callable[[Tensor], Distribution]
) -> None:
    def bound(phi: Tensor, theta: Tensor) -> Tensor:
        torch.manual_seed(3)
        return estimator(scalar_event(make)(joint(theta)), make(phi), 3)

    assert torch.autograd.gradcheck(bound, leaves())
    assert torch.autograd.gradgradcheck(bound, leaves())


def test_the_enumerated_elbo_has_first_and_second_derivatives() -> None:
    def bound(logits: Tensor, table: Tensor) -> Tensor:
        return elbo_enumerated(lambda z: table[z], Categorical(logits=logits))

    leaf = tuple(torch.randn(3).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(bound, leaf)
    assert torch.autograd.gradgradcheck(bound, leaf)


def test_quadrature_and_closed_forms_have_first_and_second_derivatives() -> None:
    model = LinearGaussian(torch.tensor([[1.0, -0.5], [0.3, 0.8], [0.0, 1.0]]), torch.zeros(3), torch.tensor(0.7))
    x = torch.tensor([[0.5, -1.0, 0.2]])

    def by_quadrature(loc: Tensor, log_scale: Tensor) -> Tensor:
        return expected_elbo(model.given(x), diagonal_normal(loc, log_scale.exp()), order=5)

    def closed(loc: Tensor, log_scale: Tensor) -> Tensor:
        return model.elbo(x, diagonal_normal(loc, log_scale.exp()))

    leaf = tuple(torch.randn(1, 2).requires_grad_() for _ in range(2))
    gradients = [torch.autograd.grad(bound(*leaf).sum(), leaf) for bound in (by_quadrature, closed)]
    for first, second in zip(*gradients, strict=True):
        assert torch.allclose(first, second, atol=1e-10)
    for bound in (by_quadrature, closed):
        assert torch.autograd.gradcheck(bound, leaf)
        assert torch.autograd.gradgradcheck(bound, leaf)
    assert torch.autograd.gradcheck(model.log_evidence, x.clone().requires_grad_())
    assert torch.autograd.gradgradcheck(model.log_evidence, x.clone().requires_grad_())


@pytest.mark.parametrize("objective", ["beta", "free bits", "relaxed", "tempered", "analytic KL"])
def test_objectives_agree_with_finite_differences_of_frozen_noise(objective: str) -> None:
    model = LatentVariableModel(standard_normal(2), BernoulliHead(torch.nn.Linear(2, 3), 3)).double()
    x = torch.tensor([[1.0, 0.0, 1.0]])

    def bound(first: Tensor, second: Tensor) -> Tensor:
        torch.manual_seed(5)
        q = bernoulli(first) if objective == "relaxed" else diagonal_normal(first, second.exp())
        if objective == "beta":
            return beta_objective(model, x, q, 0.3, 2)
        if objective == "free bits":
            return free_bits_objective(model, x, q, 0.1, 2)
        if objective == "relaxed":
            coins = LatentVariableModel(Fixed(bernoulli, logits=torch.zeros(2)), model.likelihood)
            return relaxed_objective(coins, x, q, 0.7, 2) + 0 * second.sum()
        if objective == "tempered":
            return pathwise(tempered(model.given(x), model.prior().expand((1,)), 0.4), q, 2)
        return elbo_analytic_kl(model.log_likelihood(x), q, model.prior().expand((1,)), 2)

    leaf = tuple(torch.randn(1, 2).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(bound, leaf)
