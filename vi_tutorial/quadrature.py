r"""Oracles for a latent of one or two dimensions: expectations under q, and the posterior, without sampling.

In few dimensions an integral is a sum over well-chosen points. So the expectation in the ELBO has no noise
(:func:`expected_elbo`), and :math:`\log p_\theta(x)` and the posterior are known for any decoder
(:func:`posterior_on_grid`): what every approximation of a small VAE is held against.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MixtureSameFamily

from vi_tutorial._validation import check_count, check_data, check_positive
from vi_tutorial.distributions import diagonal_normal
from vi_tutorial.elbo import LogJoint, weigh
from vi_tutorial.frozen import is_normal, reparameterise
from vi_tutorial.models import LatentVariableModel

__all__ = ["GridPosterior", "expected_elbo", "gauss_hermite", "posterior_on_grid"]


def gauss_hermite(order: int, dim: int = 1) -> tuple[Tensor, Tensor]:
    r"""Points and weights for expectations under a standard Normal.

    .. math:: \mathbb{E}_{\mathcal{N}(0, I)}[f] \approx \sum_s w_s f(\epsilon_s)

    Exact for polynomials of degree up to ``2 * order - 1`` in each coordinate.

    Args:
        order: Points along each dimension, at least 1.
        dim: Number of dimensions, at least 1.

    Returns:
        Points, shape ``(order**dim, dim)``, and weights that sum to one, shape ``(order**dim,)``, float64.

    Raises:
        TypeError, ValueError: If an argument is not an ``int`` of at least 1, or there would be over a million points.

    Source:
        Abramowitz & Stegun (1964), Handbook of Mathematical Functions, 25.4.46.

    Example:
        >>> points, weights = gauss_hermite(3)
        >>> round((weights @ points**4).item(), 12)  # the kurtosis of a Normal
        3.0
    """
    check_count("order", order)
    check_count("dim", dim)
    if order**dim > 1_000_000:
        raise ValueError(f"order ** dim must be at most a million points; received {order} ** {dim}")
    points, weights = (torch.as_tensor(values) for values in np.polynomial.hermite_e.hermegauss(order))
    weights = weights / weights.sum()
    grid = torch.tensor(list(itertools.product(points.tolist(), repeat=dim)), dtype=torch.float64)
    product = torch.tensor(list(itertools.product(weights.tolist(), repeat=dim)), dtype=torch.float64).prod(-1)
    return grid, product


def expected_elbo(log_joint: LogJoint, q: Distribution, order: int = 10) -> Tensor:
    r"""The ELBO as an expectation, with no draw in it: :math:`\mathcal{L} = \sum_s w_s \log w(z_s; x)`.

    The points :math:`z_s` are those of :func:`gauss_hermite`, carried to q: for a Normal by its mean and covariance,
    for a mixture of Normals by those of each component. Differentiable in q and in θ.

    Args:
        log_joint: As for :func:`vi_tutorial.elbo.draw`.
        q: A Normal, or a mixture of diagonal Normals, ``batch_shape`` ``batch``.
        order: Points along each dimension. Compare with twice as many to see the error.

    Returns:
        One number per datapoint, shape ``batch``, nats.

    Raises:
        TypeError, ValueError: As for :func:`gauss_hermite` and :func:`vi_tutorial.elbo.weigh`, or if q is of another
            kind.

    Example:
        >>> from vi_tutorial.models import conjugate_normal
        >>> model, x = conjugate_normal(1), torch.tensor([2.0]).double()
        >>> gap = model.log_evidence(x) - expected_elbo(model.given(x), model.posterior(x))
        >>> bool(gap.abs() < 1e-12)
        True
    """
    parts: list[tuple[Tensor, Distribution]] = [(torch.ones(()), q)]
    if isinstance(q, MixtureSameFamily) and isinstance(q.component_distribution, Independent):
        each, probabilities = q.component_distribution, q.mixture_distribution.probs
        parts = [
            (probabilities[..., c], diagonal_normal(each.mean[..., c, :], each.stddev[..., c, :]))
            for c in range(probabilities.shape[-1])
        ]
    elif not is_normal(q) or len(q.event_shape) != 1:
        raise ValueError(f"q must be a Normal over vectors, or a mixture of diagonal ones; received {q}")
    points, weights = gauss_hermite(order, q.event_shape[0])
    total: Tensor | float = 0.0
    for probability, part in parts:
        z = reparameterise(part, points.to(part.mean))
        log_weight = weigh(log_joint, q, z).log_weight
        total = total + probability.to(log_weight) * torch.tensordot(weights.to(log_weight), log_weight, 1)
    return torch.as_tensor(total)


class GridPosterior(NamedTuple):
    r"""The posterior of N datapoints on a grid of G cells.

    Attributes:
        z: Centres of the cells, shape ``(G, L)``.
        log_prob: Log of the posterior mass of each cell, shape ``(G, N)``; masses sum to one over the first dimension.
        log_evidence: :math:`\log p_\theta(x)`, shape ``(N,)``, nats.
        spacing: Width of a cell.

    Example:
        >>> mass = torch.tensor([[0.25], [0.75]])
        >>> grid = GridPosterior(torch.tensor([[-1.0], [1.0]]), mass.log(), torch.zeros(1), spacing=2.0)
        >>> grid.mean, grid.covariance
        (tensor([[0.5000]]), tensor([[[0.7500]]]))
    """

    z: Tensor
    log_prob: Tensor
    log_evidence: Tensor
    spacing: float

    @property
    def mean(self) -> Tensor:
        """Posterior means, shape ``(N, L)``."""
        return self.log_prob.exp().mT @ self.z

    @property
    def covariance(self) -> Tensor:
        """Posterior covariances, shape ``(N, L, L)``."""
        apart = self.z[:, None] - self.mean
        return torch.einsum("gn,gni,gnj->nij", self.log_prob.exp(), apart, apart)

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws from the posterior, exact but for the flatness of the density in a cell: ``(num_samples, N, L)``."""
        check_count("num_samples", num_samples)
        cells = torch.multinomial(self.log_prob.exp().mT, num_samples, replacement=True, generator=generator).mT
        inside = torch.rand((*cells.shape, self.z.shape[1]), dtype=self.z.dtype, generator=generator) - 0.5
        return self.z[cells] + self.spacing * inside


def posterior_on_grid(
    model: LatentVariableModel, x: Tensor, side: int = 161, bound: float = 5.0, max_edge: float = 1e-3
) -> GridPosterior:
    r"""The exact posterior and evidence of a model whose latent has one or two dimensions, by summing over a grid.

    .. math:: p_\theta(x) \approx h^L \sum_g p(z_g)\, p_\theta(x \mid z_g)

    For smooth integrands that vanish towards the border the error falls faster than any power of the spacing h. No
    gradient is kept.

    Args:
        model: With a prior over :math:`\mathbb{R}^L`, L = 1 or 2.
        x: Data, shape ``(N, *event)``.
        side: Points along each dimension, at least 3. Compare with twice as many to see the error.
        bound: The grid reaches from −bound to bound.
        max_edge: How much posterior mass may lie in the outermost cells.

    Returns:
        :class:`GridPosterior`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the latent has more than two dimensions, if ``x`` does not fit the model, or if a posterior
            reaches the border: then ``bound`` is too small.

    Example:
        >>> from vi_tutorial.models import conjugate_normal
        >>> model, x = conjugate_normal(1), torch.tensor([[2.0]]).double()
        >>> bool((posterior_on_grid(model, x, bound=8.0).log_evidence - model.log_evidence(x)).abs() < 1e-12)
        True
    """
    if not isinstance(model, LatentVariableModel):
        raise TypeError(f"model must be a LatentVariableModel; received {type(model).__name__}")
    check_data("x", x)
    check_count("side", side, minimum=3)
    check_positive("bound", bound)
    dim = model.prior().event_shape.numel()
    if dim > 2:
        raise ValueError(f"model must have a latent of one or two dimensions for a grid; received {dim}")
    line = torch.linspace(-bound, bound, side, dtype=x.dtype, device=x.device)
    z = torch.cartesian_prod(*[line] * dim).reshape(-1, dim)
    spacing = 2 * bound / (side - 1)
    per_chunk = max(1, 2_000_000 // x.numel())
    with torch.no_grad():
        model.given(x)(z[:1].expand(len(x), dim).unsqueeze(0))  # data that do not fit are refused here, by name
        log_joint = torch.cat([_table(model, x, part) for part in z.split(per_chunk)])
        log_evidence = log_joint.logsumexp(0) + dim * math.log(spacing)
        log_prob = log_joint - log_joint.logsumexp(0)
        edge = (z.abs().amax(-1) >= bound - spacing / 2).to(z.dtype) @ log_prob.exp()
    if (edge > max_edge).any():
        row = int(edge.argmax())
        raise ValueError(
            f"bound must enclose the posteriors; received {bound}, and {100 * edge[row]:.2g} % of the posterior of row "
            f"{row} lies at the border"
        )
    return GridPosterior(z, log_prob, log_evidence, spacing)


def _table(model: LatentVariableModel, x: Tensor, z: Tensor) -> Tensor:
    """log p(x_n, z_g) for all pairs: each point is decoded once, and meets all the data."""
    likelihood = model.likelihood(z)
    everywhere = likelihood.expand((len(x), len(z)))
    given = everywhere.log_prob(x[:, None].expand(len(x), len(z), *x.shape[1:]))
    return (model.prior().log_prob(z) + given).mT
