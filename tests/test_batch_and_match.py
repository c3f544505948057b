"""The closed-form match against a numerical minimiser, and the whole against posteriors that are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from vi_tutorial.batch_and_match import batch_and_match, match
from vi_tutorial.distributions import full_normal
from vi_tutorial.models import linear_regression

pytestmark = pytest.mark.usefixtures("_float64")


def _normal(seed: int, dim: int, scale: float = 1.0) -> MultivariateNormal:
    generator = torch.Generator().manual_seed(seed)
    tril = torch.randn(dim, dim, generator=generator).tril(-1) * 0.6 + torch.diag(
        0.5 + torch.rand(dim, generator=generator)
    )
    return full_normal(torch.randn(dim, generator=generator), scale * tril)


@pytest.mark.parametrize("step_size", [0.1, 3.0, 100.0])
def test_the_match_minimises_its_objective(step_size: float) -> None:
    torch.manual_seed(0)
    q, target = _normal(1, 2), _normal(2, 2, scale=2.0)
    z = q.sample(torch.Size([6]))
    score = -torch.linalg.solve(target.covariance_matrix, (z - target.loc).T).T + 0.3 * torch.randn(6, 2)

    def objective(loc: Tensor, tril: Tensor) -> Tensor:
        candidate = full_normal(loc, tril.tril(-1) + torch.diag(tril.diagonal().exp()))
        apart = -torch.linalg.solve(candidate.covariance_matrix, (z - loc).T).T - score
        weighted = ((apart @ candidate.covariance_matrix) * apart).sum(-1)
        return weighted.mean() + 2 / step_size * kl_divergence(q, candidate)

    loc, tril = torch.zeros(2, requires_grad=True), torch.zeros(2, 2, requires_grad=True)
    optimiser = torch.optim.LBFGS([loc, tril], max_iter=2000, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = objective(loc, tril)
        loss.backward()
        return loss

    for _ in range(5):
        optimiser.step(closure)  # type: ignore[arg-type]
    found = match(q, z, score, step_size)
    scale_tril = (tril.tril(-1) + torch.diag(tril.diagonal().exp())).detach()
    assert torch.allclose(found.loc, loc.detach(), atol=1e-5)
    assert torch.allclose(found.covariance_matrix, scale_tril @ scale_tril.T, atol=3e-4)


@pytest.mark.parametrize("dim", [1, 3, 8])
def test_a_normal_target_is_reached_from_far_away(dim: int) -> None:
    torch.manual_seed(1)
    target = _normal(3, dim, scale=4.0)
    start = full_normal(torch.full((dim,), -20.0), 0.1 * torch.eye(dim))
    path = batch_and_match(lambda z: target.log_prob(z) + 11, start, num_steps=80)
    assert len(path) == 81
    assert kl_divergence(path[-1], target) < 1e-8
    assert kl_divergence(path[40], target) < kl_divergence(path[5], target)


def test_an_uncentred_regression_is_no_harder() -> None:
    torch.manual_seed(2)
    design = torch.cat([torch.ones(40, 1), 100 + torch.randn(40, 1)], 1)
    model = linear_regression(design, prior_scale=10.0, noise_scale=1.0)
    y = design @ torch.tensor([1.0, 0.5]) + torch.randn(40)
    start = full_normal(torch.zeros(2), torch.eye(2))
    q = batch_and_match(lambda z: model.given(y)(z), start, num_steps=200)[-1]
    assert kl_divergence(q, model.posterior(y)) < 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: match(_normal(1, 2), torch.zeros(3, 2), torch.zeros(3, 1), 1.0), r"score must have shape \(3, 2\)"),
        (lambda: match(_normal(1, 2), torch.zeros(3, 1), torch.zeros(3, 1), 1.0), r"z must have shape \(3, 2\)"),
        (
            lambda: match(_normal(1, 1), torch.zeros(3, 1), torch.zeros(3, 1), 0.0),
            "step_size must be a finite positive",
        ),
        (lambda: match(_normal(1, 1), torch.zeros(3, 1), torch.full((3, 1), math.nan), 1.0), "score must be finite"),
        (lambda: batch_and_match(lambda z: z.sum(), _normal(1, 2), 1), r"log_joint\(z\) must have shape \(10,\)"),
        (lambda: batch_and_match(lambda z: z.sum(-1), _normal(1, 2), 0), "num_steps must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_q_must_be_one_full_normal() -> None:
    with pytest.raises(TypeError, match="q must be one MultivariateNormal"):
        batch_and_match(lambda z: z.sum(-1), MultivariateNormal(torch.zeros(3, 2), torch.eye(2)), 1)
