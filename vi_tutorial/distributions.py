"""Distributions whose ``log_prob`` is one number per datapoint, by construction.

``torch.distributions.Normal(loc, scale)`` over an image of 64 pixels is 64 distributions: its
``log_prob`` has 64 numbers, and a mean where a sum belongs is one keystroke away. The constructors
here put the last dimension into ``event_shape``, so that densities are summed over it and never
averaged. The closed-form Kullback–Leibler divergences that torch lacks between a Normal with a
diagonal and one with a full covariance are registered too, so
``torch.distributions.kl_divergence`` finds them. Everything is in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
    register_kl,
)

from vi_tutorial._validation import check_finite

__all__ = ["bernoulli", "covariance", "diagonal_normal", "full_normal"]


def diagonal_normal(loc: Tensor, scale: Tensor) -> Independent:
    r"""Normal with a diagonal covariance: independent coordinates, one log density per datapoint.

    .. math:: \log p(x) = \sum_{d=1}^{D} \log \mathcal{N}(x_d \mid \mu_d, \sigma_d^2)

    Args:
        loc: Means, shape ``(*batch, D)``.
        scale: Standard deviations (not variances), shape ``(*batch, D)``, or ``(D,)`` or ``()``
            when shared.

    Returns:
        A distribution with ``batch_shape`` ``batch`` and ``event_shape`` ``(D,)``.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If ``loc`` has no dimension, if ``scale`` has a shape that would broadcast by
            accident, or if a value is not finite or a scale not positive.

    Example:
        >>> import math
        >>> x = diagonal_normal(torch.zeros(5, 3), torch.ones(()))
        >>> tuple(x.batch_shape), tuple(x.event_shape)
        ((5,), (3,))
        >>> round(x.log_prob(torch.zeros(5, 3))[0].item() / -math.log(2 * math.pi), 6)
        1.5
    """
    check_finite("loc", loc)
    check_finite("scale", scale)
    if loc.ndim == 0:
        raise ValueError("loc must have at least one dimension (the event); received shape ()")
    if scale.shape not in (loc.shape, loc.shape[-1:], torch.Size()):
        raise ValueError(
            f"scale must have the shape of loc {tuple(loc.shape)}, or be shared as "
            f"{tuple(loc.shape[-1:])} or (); received {tuple(scale.shape)}"
        )
    return Independent(Normal(loc, scale), 1)


def full_normal(loc: Tensor, scale_tril: Tensor) -> MultivariateNormal:
    r"""Normal with a full covariance :math:`\Sigma = L L^\top`, given by its Cholesky factor.

    .. math:: \log p(x) = -\tfrac12 \lVert L^{-1}(x-\mu) \rVert^2 - \sum_d \log L_{dd}
              - \tfrac{D}{2} \log 2\pi

    Args:
        loc: Means, shape ``(*batch, D)``.
        scale_tril: Lower-triangular factors with a positive diagonal, shape ``(*batch, D, D)``, or
            ``(D, D)`` when shared.

    Returns:
        A distribution with ``batch_shape`` ``batch`` and ``event_shape`` ``(D,)``.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If the shapes do not fit, a value is not finite, or ``scale_tril`` is not
            lower-triangular with a positive diagonal.

    Example:
        >>> q = full_normal(torch.zeros(2), torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
        >>> q.covariance_matrix
        tensor([[ 1.,  3.],
                [ 3., 13.]])
    """
    check_finite("loc", loc)
    check_finite("scale_tril", scale_tril)
    if loc.ndim == 0:
        raise ValueError("loc must have at least one dimension (the event); received shape ()")
    square = loc.shape[-1:] * 2
    if scale_tril.shape not in (loc.shape[:-1] + square, square):
        raise ValueError(
            f"scale_tril must have shape {tuple(loc.shape[:-1] + square)} to fit loc "
            f"{tuple(loc.shape)}, or {tuple(square)} when shared; received {tuple(scale_tril.shape)}"
        )
    return MultivariateNormal(loc, scale_tril=scale_tril)


def bernoulli(logits: Tensor) -> Independent:
    r"""Independent Bernoulli coordinates, given by their logits; one log probability per datapoint.

    .. math:: \log p(x) = \sum_{d=1}^{D} x_d \ell_d - \log(1 + e^{\ell_d}), \qquad x_d \in \{0, 1\}

    Values other than 0 and 1 are outside the support and refused: on grey levels this formula is
    not a log probability.

    Args:
        logits: Log odds, shape ``(*batch, D)``.

    Returns:
        A distribution with ``batch_shape`` ``batch`` and ``event_shape`` ``(D,)``.

    Raises:
        TypeError: If ``logits`` is not a floating-point tensor.
        ValueError: If ``logits`` has no dimension or is not finite.

    Example:
        >>> import math
        >>> pixels = bernoulli(torch.zeros(64))
        >>> round(pixels.log_prob(torch.ones(64)).item() / math.log(2), 5)
        -64.0
    """
    check_finite("logits", logits)
    if logits.ndim == 0:
        raise ValueError("logits must have at least one dimension (the event); received shape ()")
    return Independent(Bernoulli(logits=logits), 1)


def covariance(normal: Distribution) -> Tensor:
    r"""The covariance matrix of a multivariate Normal, whichever way it was made.

    Args:
        normal: From :func:`diagonal_normal` or :func:`full_normal`, or torch's low-rank Normal.

    Returns:
        :math:`\Sigma`, shape ``(*batch, D, D)``.

    Raises:
        TypeError: If ``normal`` is another kind of distribution.

    Example:
        >>> covariance(diagonal_normal(torch.zeros(2), torch.tensor([1.0, 3.0])))
        tensor([[1., 0.],
                [0., 9.]])
    """
    if isinstance(normal, (MultivariateNormal, LowRankMultivariateNormal)):
        return normal.covariance_matrix
    if isinstance(normal, Independent) and isinstance(normal.base_dist, Normal) and len(normal.event_shape) == 1:
        return torch.diag_embed(normal.variance)
    raise TypeError(f"normal must be a multivariate Normal, diagonal, full or low-rank; received {normal}")


def _coordinates(p: Independent) -> Normal:
    """The coordinates of a diagonal Normal; only that kind of ``Independent`` has a closed form here."""
    if not isinstance(p.base_dist, Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(f"no closed-form KL between MultivariateNormal and {p}")
    return p.base_dist


@register_kl(MultivariateNormal, Independent)
def _kl_full_diagonal(q: MultivariateNormal, p: Independent) -> Tensor:
    """½ [ Σ_i (Σ_ii + (μ_i − m_i)²)/s_i² − D + Σ_i log s_i² − log det Σ ], one number per batch element."""
    normal = _coordinates(p)
    if q.event_shape != p.event_shape:
        raise ValueError(f"KL needs equal event shapes; received {tuple(q.event_shape)} and {tuple(p.event_shape)}")
    squared = (q.variance + (q.loc - normal.loc) ** 2) / normal.scale**2
    log_det_p = 2 * normal.scale.log().sum(-1)
    log_det_q = 2 * q.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return 0.5 * (squared.sum(-1) - q.event_shape[0] + log_det_p - log_det_q)


@register_kl(Independent, MultivariateNormal)
def _kl_diagonal_full(q: Independent, p: MultivariateNormal) -> Tensor:
    """The diagonal one is a full Normal whose Cholesky factor is diagonal: torch knows the rest."""
    normal = _coordinates(q)
    return kl_divergence(MultivariateNormal(normal.loc, scale_tril=torch.diag_embed(normal.scale)), p)
