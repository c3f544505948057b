r"""Batch and match: fit a full-covariance Normal by its score, without the ELBO's gradient.

If q is the posterior, the slopes of their log densities agree everywhere, :math:`\nabla \log q = \nabla \log p`,
and the unknown evidence has no part in it. Each step draws a *batch* from q, looks at the posterior's scores
there, and moves q to the Normal that *matches* them best while staying near the last one. The move has a closed form.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from vi_tutorial._validation import check_count, check_data, check_finite, check_positive, check_shape
from vi_tutorial.distributions import full_normal
from vi_tutorial.elbo import LogJoint

__all__ = ["batch_and_match", "match"]


def batch_and_match(
    log_joint: LogJoint,
    q: MultivariateNormal,
    num_steps: int,
    *,
    batch_size: int | None = None,
    step_size: float | None = None,
) -> list[MultivariateNormal]:
    r"""Fit a full-covariance Normal to a posterior by batch and match.

    Args:
        log_joint: As for :func:`vi_tutorial.elbo.draw`, for one latent vector: ``batch_shape`` ``()``. Differentiable.
        q: Where to start.
        num_steps: At least 1.
        batch_size: Draws per step; at least 2, and ``max(10, 2 * dim)`` if not given.
        step_size: :math:`\lambda` of :func:`match`, the same at each step; if not given it is the published
            ``batch_size * dim / (step + 1)``, which falls, so that noise averages out.

    Returns:
        q after each step, from the start: ``num_steps + 1`` Normals.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range, or ``log_joint`` returns another shape or a score that is not
            finite.

    Source:
        Cai, Modi, Pillaud-Vivien, Margossian, Gower, Blei & Saul (2024), Batch and Match: Black-Box Variational
        Inference with a Score-Based Divergence, ICML.

    Example:
        >>> covariance = torch.tensor([[4.0, 1.9], [1.9, 1.0]]).double()
        >>> target = MultivariateNormal(torch.tensor([5.0, -3.0]).double(), covariance)
        >>> start = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
        >>> q = batch_and_match(lambda z: target.log_prob(z) - 7, start, num_steps=60)[-1]
        >>> torch.allclose(q.covariance_matrix, covariance, atol=1e-6)
        True
    """
    _check_normal(q)
    dim = q.event_shape[0]
    check_count("num_steps", num_steps)
    batch_size = max(10, 2 * dim) if batch_size is None else check_count("batch_size", batch_size, minimum=2)
    path = [full_normal(q.loc.detach(), q.scale_tril.detach())]
    for step in range(num_steps):
        z = path[-1].sample(torch.Size([batch_size])).requires_grad_()
        log_p = log_joint(z)
        check_shape("log_joint(z)", log_p, (batch_size,), "one number per sample")
        (score,) = torch.autograd.grad(log_p.sum(), z)
        rate = batch_size * dim / (step + 1) if step_size is None else step_size
        path.append(match(path[-1], z.detach(), score, rate))
    return path


def match(q: MultivariateNormal, z: Tensor, score: Tensor, step_size: float) -> MultivariateNormal:
    r"""The Normal that matches the scores of a batch best, and stays near the last.

    .. math:: q' = \arg\min_{q'} \frac1B \sum_b \big\lVert \nabla \log q'(z_b) - s_b \big\rVert^2_{\Sigma'}
              + \frac{2}{\lambda} \mathrm{KL}(q \| q')

    With means :math:`\bar z`, :math:`\bar s` and covariances (over B) C, Γ of draws and scores, and
    :math:`a = \lambda / (1 + \lambda)`,

    .. math:: \Sigma' U \Sigma' + \Sigma' = V, \quad U = \lambda \Gamma + a\, \bar s \bar s^\top, \quad
              V = \Sigma + \lambda C + a (\mu - \bar z)(\mu - \bar z)^\top, \quad
              \mu' = (1 - a) \mu + a (\Sigma' \bar s + \bar z).

    Args:
        q: The last Normal: μ and Σ, ``event_shape`` ``(dim,)``.
        z: The batch, shape ``(B, dim)``, finite.
        score: :math:`s_b = \nabla \log p(x, z_b)`, shape ``(B, dim)``, finite.
        step_size: :math:`\lambda`, positive: large trusts the batch, small the last q.

    Returns:
        :math:`q' = \mathcal{N}(\mu', \Sigma')`.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind or shape, not finite, or ``step_size`` not positive.

    Source:
        Cai et al. (2024), as for :func:`batch_and_match`.

    Example:
        >>> q = MultivariateNormal(torch.zeros(1).double(), torch.eye(1).double())
        >>> z = torch.tensor([[-1.0], [1.0]]).double()
        >>> match(q, z, -(z - 3) / 4, step_size=1e9).mean  # of N(3, 4)
        tensor([3.0000], dtype=torch.float64)
    """
    _check_normal(q)
    check_data("z", z, ndim=2)
    check_shape("z", z, (len(z), q.event_shape[0]), "one row per draw")
    check_shape("score", check_finite("score", score), tuple(z.shape), "one row per draw")
    check_positive("step_size", step_size)
    share = step_size / (1 + step_size)
    z_mean, score_mean = z.mean(0), score.mean(0)
    z_covariance, score_covariance = (m.mT.cov(correction=0).reshape(2 * q.event_shape) for m in (z, score))
    u = step_size * score_covariance + share * torch.outer(score_mean, score_mean)
    v = q.covariance_matrix + step_size * z_covariance + share * torch.outer(q.loc - z_mean, q.loc - z_mean)
    covariance = _solve(u, v)
    loc = (1 - share) * q.loc + share * (covariance @ score_mean + z_mean)
    return full_normal(loc, torch.linalg.cholesky(covariance))


def _check_normal(q: object) -> None:
    if not isinstance(q, MultivariateNormal) or q.batch_shape:
        raise TypeError(f"q must be one MultivariateNormal; received {q}")


def _solve(u: Tensor, v: Tensor) -> Tensor:
    """The positive definite S with S U S + S = V: with V = R Rᵀ and M = Rᵀ U R it is 2 R (I + √(I + 4 M))⁻¹ Rᵀ."""
    root = torch.linalg.cholesky(v)
    eigenvalue, basis = torch.linalg.eigh(root.mT @ u @ root)
    inner = 2 / (1 + (1 + 4 * eigenvalue.clamp_min(0)).sqrt())
    half = root @ basis
    return (half * inner) @ half.mT
