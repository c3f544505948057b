"""The diffusion bound, its chain of latents and its schedules, against dense Normals and quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from vi_tutorial.diffusion import Diffusion, LevelsHead, cosine_log_snr, linear_log_snr
from vi_tutorial.elbo import draw, elbo

pytestmark = pytest.mark.usefixtures("_float64")

MEAN, SPREAD = torch.tensor([0.5, -1.0]).double(), torch.tensor([0.6, 1.2]).double()
X = torch.tensor([[0.2, -1.0], [1.5, 1.0], [-0.6, 0.3]]).double()


class NormalDenoiser(nn.Module):
    """E[x | z_t] for x ~ N(MEAN, diag SPREAD²), by conditioning."""

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        alpha, variance = log_snr.sigmoid().sqrt()[..., None], (-log_snr).sigmoid()[..., None]
        gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + variance)
        return MEAN + gain * (z - alpha * MEAN)


class Constant(nn.Module):
    def __init__(self, guess: Tensor) -> None:
        super().__init__()
        self.guess = guess

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return self.guess.expand_as(z)


class Readout(nn.Module):
    """p(x | z_0) = N(z_0 / α_0, σ_0² / α_0²)."""

    def __init__(self, log_snr: float) -> None:
        super().__init__()
        self.alpha = (1 / (1 + math.exp(-log_snr))) ** 0.5
        self.scale = math.exp(-log_snr / 2)

    def forward(self, path: Tensor) -> Independent:
        loc = path[..., 0, :] / self.alpha
        return Independent(Normal(loc, torch.full_like(loc, self.scale)), 1)


def model(num_steps: int, denoiser: nn.Module | None = None, schedule: object = None) -> Diffusion:
    return Diffusion(
        denoiser or NormalDenoiser(),
        schedule or linear_log_snr(5.0, -5.0),
        num_steps,
        Readout(5.0),
        dim=2,  # type: ignore[arg-type]
    )


def squared_error(log_snr: float) -> np.ndarray:
    """E_ε ‖x − x̂(z_t)‖² for each row of X, by hand."""
    alpha2, variance = 1 / (1 + math.exp(-log_snr)), 1 / (1 + math.exp(log_snr))
    spread2 = SPREAD.numpy() ** 2
    shrink = variance / (alpha2 * spread2 + variance)  # of x − MEAN: the part not recovered
    gain2 = alpha2 * spread2**2 / (alpha2 * spread2 + variance) ** 2
    return (shrink**2 * (X - MEAN).numpy() ** 2 + gain2 * variance).sum(-1)


@pytest.mark.parametrize("schedule", [linear_log_snr, cosine_log_snr])
def test_schedules_fall_between_their_ends(schedule: object) -> None:
    log_snr = schedule(6.0, -3.0)(torch.linspace(0, 1, 50))  # type: ignore[operator]
    assert log_snr[0].item() == pytest.approx(6)
    assert log_snr[-1].item() == pytest.approx(-3)
    assert (log_snr.diff() < 0).all()
    with pytest.raises(ValueError, match=r"high must be finite and above low; received high=1.0, low=2.0"):
        schedule(1.0, 2.0)  # type: ignore[operator]


def test_the_cosine_schedule_is_a_cosine() -> None:
    """α = cos of an angle that grows in a straight line."""
    alpha = cosine_log_snr(6.0, -3.0)(torch.linspace(0, 1, 5)).sigmoid().sqrt()
    assert torch.allclose(alpha.acos().diff().diff(), torch.zeros(3), atol=1e-12)


def test_the_noising_path_is_the_dense_normal_of_its_copies() -> None:
    torch.manual_seed(0)
    few = model(3)
    q = few.noising(X)
    assert (q.batch_shape, q.event_shape) == ((3,), (4, 2))
    path = q.rsample(torch.Size([200_000]))
    log_snr = np.linspace(5, -5, 4)
    alpha, variance = (1 / (1 + np.exp(-log_snr))) ** 0.5, 1 / (1 + np.exp(log_snr))
    covariance = np.array(
        [[alpha[max(i, j)] / alpha[min(i, j)] * variance[min(i, j)] for j in range(4)] for i in range(4)]
    )
    for n, x in enumerate(X.numpy()):
        expected = sum(
            stats.multivariate_normal(alpha * x[d], covariance).logpdf(path[:5, n, :, d].numpy()) for d in range(2)
        )
        assert np.allclose(q.log_prob(path[:5])[:, n], expected, atol=1e-9)
        assert np.allclose(path[:, n, :, 0].mean(0), alpha * x[0], atol=0.01)
        assert np.allclose(np.cov(path[:, n, :, 1].numpy().T), covariance, atol=0.015)


def test_with_the_data_known_the_model_walks_q_backwards() -> None:
    """A denoiser that always guesses c: p(path) = q(path | c) N(z_T; 0, I) / q(z_T | c)."""
    torch.manual_seed(0)
    c = torch.tensor([0.3, -0.8])
    known = model(4, Constant(c))
    q = known.noising(c.expand(6, 2))
    path = q.rsample()
    alpha, sigma = (1 / (1 + math.exp(5))) ** 0.5, (1 / (1 + math.exp(-5))) ** 0.5
    last = path[:, -1]
    expected = (
        q.log_prob(path)
        + Normal(torch.zeros(2), torch.ones(2)).log_prob(last).sum(-1)
        - Normal(alpha * c, torch.full((2,), sigma)).log_prob(last).sum(-1)
    )
    assert torch.allclose(known.prior().log_prob(path), expected, atol=1e-9)
    drawn = known.prior().sample(torch.Size([20_000]))
    assert torch.allclose(drawn[:, 0].mean(0), (1 / (1 + math.exp(-5))) ** 0.5 * c, atol=0.01)


@pytest.mark.parametrize("num_steps", [1, 4, 16])
def test_the_sum_of_denoising_errors_is_the_elbo(num_steps: int) -> None:
    """The closed-form terms, written out in NumPy, against the log weights of whole paths and against ``terms``."""
    torch.manual_seed(0)
    chain = model(num_steps)
    snr = np.exp(np.linspace(5, -5, num_steps + 1))
    denoising = sum(0.5 * (snr[i] - snr[i + 1]) * squared_error(math.log(snr[i + 1])) for i in range(num_steps))
    alpha2, variance = 1 / (1 + math.exp(5)), 1 / (1 + math.exp(-5))
    prior = 0.5 * (alpha2 * X.numpy() ** 2 + variance - 1 - math.log(variance)).sum(-1)
    reconstruction = 2 * (0.5 * math.log(2 * math.pi) - 5 / 2 + 0.5)
    found = chain.terms(X, num_samples=40_000)
    assert np.allclose(found.prior, prior, atol=1e-12)
    assert np.allclose(found.denoising.detach(), denoising, rtol=0.02)
    assert np.allclose(found.reconstruction, reconstruction, atol=0.03)
    log_weight = draw(chain.given(X), chain.noising(X), 40_000).log_weight
    error = log_weight.std(0).numpy() / 200
    assert (np.abs(elbo(log_weight).numpy() + prior + denoising + reconstruction) < 4.5 * error).all()
    assert (error < 0.02 * np.abs(denoising)).all()


def test_in_continuous_time_the_schedule_does_not_count() -> None:
    torch.manual_seed(0)
    expected = np.array(
        [integrate.quad(lambda v, n=n: 0.5 * math.exp(v) * squared_error(v)[n], -5, 5)[0] for n in range(3)]
    )
    for schedule in (linear_log_snr(5.0, -5.0), cosine_log_snr(5.0, -5.0)):
        found = model(10, schedule=schedule).terms_continuous(X, num_samples=60_000)
        assert np.allclose(found.denoising, expected, rtol=0.02)
    coarse = model(4).terms(X, num_samples=60_000).denoising.numpy()
    fine = model(4000).terms(X, num_samples=60_000).denoising.numpy()
    assert (coarse > 1.1 * fine).all()
    assert np.allclose(fine, expected, rtol=0.02)


def test_levels_are_read_off_by_their_distance() -> None:
    torch.manual_seed(0)
    head = LevelsHead(torch.tensor([-1.0, 0.0, 1.0]), log_snr=2.0)
    z = torch.randn(5, 3, 2)
    probs = head(z).base_dist.probs
    alpha, sigma = (1 / (1 + math.exp(-2))) ** 0.5, (1 / (1 + math.exp(2))) ** 0.5
    density = stats.norm.pdf(z[:, 0, :, None].numpy(), alpha * np.array([-1.0, 0.0, 1.0]), sigma)
    assert np.allclose(probs, density / density.sum(-1, keepdims=True), atol=1e-12)


def test_a_learned_denoiser_gets_gradient_from_every_form_of_the_bound() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
            return self.layer(torch.cat([z, log_snr[..., None]], -1))

    torch.manual_seed(0)
    levels = torch.tensor([-1.0, 1.0])
    learned = Diffusion(Linear(), linear_log_snr(), 5, LevelsHead(levels, 8.0), dim=2, embed=lambda x: 2 * x - 1)
    assert len(list(learned.parameters())) == 2
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    for bound in (
        learned.terms(x).elbo,
        learned.terms_continuous(x).elbo,
        elbo(draw(learned.given(x), learned.noising(x), 2).log_weight),
    ):
        assert bound.shape == (2,)
        learned.zero_grad()
        bound.sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learned.parameters())
    drawn = learned.sample(7)
    assert drawn.x.shape == (7, 2)
    assert drawn.z.shape == (7, 6, 2)
    assert set(drawn.x.unique().tolist()) <= {0, 1}


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x must have shape \(1, 2\) .*received \(1, 3\)"):
        model(3).terms(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="x must have 2 dimension"):
        model(3).noising(torch.zeros(2))
    with pytest.raises(ValueError, match="num_samples must be at least 1; received 0"):
        model(3).terms(X, 0)
    with pytest.raises(ValueError, match="schedule must be finite and fall"):
        model(3, schedule=lambda t: t)
    with pytest.raises(TypeError, match=r"denoiser must be a torch.nn.Module; received function"):
        Diffusion(lambda z, t: z, linear_log_snr(), 3, Readout(5.0), 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_steps must be"):
        model(0)
