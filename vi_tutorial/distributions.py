"""Distributions whose ``log_prob`` is one number per datapoint, by construction.

``torch.distributions.Normal(loc, scale)`` over an image of 64 pixels is 64 distributions: its
``log_prob`` has 64 numbers, and a mean where a sum belongs is one keystroke away. The constructors
here put the last dimension into ``event_shape``, so that densities are summed over it and never
averaged. The closed-form Kullback–Leibler divergences that torch lacks between a Normal with a
diagonal and one with a full covariance are registered too, so
``torch.distributions.kl_divergence`` finds them. Everything is in nats.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    constraints,
    kl_divergence,
    register_kl,
)
from torch.nn.functional import logsigmoid

from vi_tutorial._stable import log1mexp, log_ndtr
from vi_tutorial._validation import check_count, check_finite, check_shape

__all__ = [
    "bernoulli",
    "binomial",
    "continuous_bernoulli",
    "covariance",
    "diagonal_normal",
    "discretised_logistic",
    "discretised_normal",
    "full_normal",
    "mixture_normal",
]

_Shape = torch.Size | list[int] | tuple[int, ...]


def _check_event(name: str, value: Tensor) -> None:
    """Finite, with a last dimension to be the event."""
    check_finite(name, value)
    if value.ndim == 0:
        raise ValueError(f"{name} must have at least one dimension (the event); received shape ()")


def _check_scale(loc: Tensor, scale: Tensor) -> None:
    """Of the shape of ``loc``, or shared on purpose: nothing is broadcast by accident."""
    check_finite("scale", scale)
    if scale.shape not in (loc.shape, loc.shape[-1:], torch.Size()):
        raise ValueError(
            f"scale must have the shape of loc {tuple(loc.shape)}, or be shared as "
            f"{tuple(loc.shape[-1:])} or (); received {tuple(scale.shape)}"
        )


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
    _check_event("loc", loc)
    _check_scale(loc, scale)
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
    _check_event("loc", loc)
    check_finite("scale_tril", scale_tril)
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
    _check_event("logits", logits)
    return Independent(Bernoulli(logits=logits), 1)


def binomial(logits: Tensor, total_count: int) -> Independent:
    r"""Independent Binomial coordinates: how many of ``total_count`` grains of ink are there, for each pixel.

    .. math:: \log p(x) = \sum_{d=1}^{D} \log \binom{n}{x_d} + x_d \ell_d - n \log(1 + e^{\ell_d}),
              \qquad x_d \in \{0, \dots, n\}

    Args:
        logits: Log odds of each grain, shape ``(*batch, D)``.
        total_count: n, at least 1; with 1 it is :func:`bernoulli`.

    Returns:
        A distribution with ``batch_shape`` ``batch`` and ``event_shape`` ``(D,)``.

    Raises:
        TypeError: If ``logits`` is not a floating-point tensor or ``total_count`` not an ``int``.
        ValueError: If ``logits`` has no dimension or is not finite, or ``total_count`` is below 1.

    Example:
        >>> binomial(torch.zeros(2), total_count=16).log_prob(torch.tensor([0.0, 16.0])).exp2().log2() < -22
        tensor(True)
    """
    _check_event("logits", logits)
    check_count("total_count", total_count)
    return Independent(Binomial(total_count, logits=logits), 1)


def continuous_bernoulli(logits: Tensor) -> Independent:
    r"""Independent coordinates on [0, 1] whose log density is linear: the Bernoulli's formula made a density.

    .. math:: \log p(x) = \sum_{d=1}^{D} x_d \ell_d - \log \frac{e^{\ell_d} - 1}{\ell_d}, \qquad x_d \in [0, 1]

    An exponential distribution, of rate :math:`\ell`, cut to the unit interval. The normaliser is exact for every
    finite logit; ``torch.distributions.ContinuousBernoulli`` clamps the probability, and its density no longer
    integrates to one where :math:`|\ell|` exceeds about 16 (float32) or 36 (float64).

    Args:
        logits: :math:`\ell`, shape ``(*batch, D)``.

    Returns:
        A distribution with ``batch_shape`` ``batch`` and ``event_shape`` ``(D,)``, and with an ``rsample``.

    Raises:
        TypeError: If ``logits`` is not a floating-point tensor.
        ValueError: If ``logits`` has no dimension or is not finite.

    Source:
        Loaiza-Ganem & Cunningham (2019), The Continuous Bernoulli: Fixing a Pervasive Error in Variational
        Autoencoders.

    Example:
        >>> grey = continuous_bernoulli(torch.zeros(3))  # flat
        >>> grey.log_prob(torch.tensor([0.0, 0.2, 1.0])).item(), grey.mean[0].item()
        (0.0, 0.5)
    """
    _check_event("logits", logits)
    return Independent(_ContinuousBernoulli(logits), 1)


def discretised_normal(loc: Tensor, scale: Tensor, low: int, high: int) -> Independent:
    r"""Independent Normals, each rounded to the nearest integer from ``low`` to ``high``: for grey levels.

    .. math:: P(x_d = k) = \Phi\Big(\frac{k + \frac12 - \mu_d}{\sigma_d}\Big)
              - \Phi\Big(\frac{k - \frac12 - \mu_d}{\sigma_d}\Big), \qquad k \in \{\text{low}, \dots, \text{high}\}

    where the cells at both ends take the tails. Probabilities, so ``log_prob`` is never above 0, however small the
    scale.

    Args:
        loc: :math:`\mu`, shape ``(*batch, D)``, in the integers' units.
        scale: :math:`\sigma`, positive, shape ``(*batch, D)``, or ``(D,)`` or ``()`` when shared.
        low: The least integer.
        high: The greatest, above ``low``.

    Returns:
        A distribution with ``batch_shape`` ``batch`` and ``event_shape`` ``(D,)``.

    Raises:
        TypeError: If ``loc`` or ``scale`` is not a floating-point tensor, ``low`` or ``high`` not an ``int``.
        ValueError: If the shapes do not fit, a value is not finite, a scale is not positive, or ``high <= low``.

    Example:
        >>> pixel = discretised_normal(torch.zeros(1), torch.tensor(0.5), low=-1, high=1)
        >>> pixel.log_prob(torch.zeros(1)).exp()  # within one standard deviation
        tensor(0.6827)
    """
    _check_event("loc", loc)
    _check_scale(loc, scale)
    return Independent(_DiscretisedNormal(loc, scale, low, high), 1)


def discretised_logistic(loc: Tensor, scale: Tensor, low: int, high: int) -> Independent:
    r"""Independent logistic variables, each rounded to the nearest integer from ``low`` to ``high``.

    As :func:`discretised_normal` with the logistic distribution's :math:`F(t) = 1 / (1 + e^{-t})` for :math:`\Phi`:
    its tails are heavier, so one misjudged pixel costs less.

    Args:
        loc: Shape ``(*batch, D)``, in the integers' units.
        scale: Positive, shape ``(*batch, D)``, or ``(D,)`` or ``()`` when shared; the standard deviation is
            :math:`\pi / \sqrt 3` times as large.
        low: The least integer.
        high: The greatest, above ``low``.

    Returns:
        A distribution with ``batch_shape`` ``batch`` and ``event_shape`` ``(D,)``.

    Raises:
        TypeError: If ``loc`` or ``scale`` is not a floating-point tensor, ``low`` or ``high`` not an ``int``.
        ValueError: If the shapes do not fit, a value is not finite, a scale is not positive, or ``high <= low``.

    Source:
        Salimans, Karpathy, Chen & Kingma (2017), PixelCNN++, section 2.1.

    Example:
        >>> pixel = discretised_logistic(torch.zeros(1), torch.ones(()), low=0, high=1)
        >>> pixel.log_prob(torch.zeros(1)).exp()  # F(1/2)
        tensor(0.6225)
    """
    _check_event("loc", loc)
    _check_scale(loc, scale)
    return Independent(_DiscretisedLogistic(loc, scale, low, high), 1)


def mixture_normal(logits: Tensor, loc: Tensor, scale: Tensor) -> MixtureSameFamily:
    r"""A mixture of C Normals with diagonal covariances, whose samples carry a gradient.

    .. math:: p(z) = \sum_{c=1}^{C} \pi_c \prod_{i=1}^{D} \mathcal{N}(z_i \mid \mu_{ci}, \sigma_{ci}^2),
              \qquad \pi = \operatorname{softmax}(\text{logits})

    ``rsample`` draws a component, then a point of it. The choice cannot be differentiated, but the point can be:
    each coordinate's conditional distribution function, held at its value, tells how the point moves when a
    parameter does (implicit reparameterisation).

    Args:
        logits: Shape ``(*batch, C)``; unnormalised log weights.
        loc: Shape ``(*batch, C, D)``.
        scale: Standard deviations, shape ``(*batch, C, D)``.

    Returns:
        A distribution with ``batch_shape`` ``batch`` and ``event_shape`` ``(D,)``.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If the shapes do not fit, a value is not finite, or a scale is not positive.

    Source:
        Figurnov, Mohamed & Mnih (2018), Implicit Reparameterization Gradients.

    Example:
        >>> q = mixture_normal(torch.zeros(2), torch.tensor([[-3.0], [3.0]]), torch.ones(2, 1))
        >>> q.mean, q.variance, q.has_rsample
        (tensor([0.]), tensor([10.]), True)
    """
    _check_event("logits", logits)
    check_finite("loc", loc)
    if loc.ndim < 2 or loc.shape[:-1] != logits.shape:
        raise ValueError(f"loc must have shape {(*logits.shape, 'D')} (one row per logit); received {tuple(loc.shape)}")
    check_shape("scale", check_finite("scale", scale), tuple(loc.shape), "the shape of loc")
    return _MixtureNormal(Categorical(logits=logits), Independent(Normal(loc, scale), 1))


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


class _ContinuousBernoulli(Distribution):
    """An exponential distribution of rate ℓ cut to [0, 1]; near ℓ = 0, where the formulas cancel, by their series."""

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: _Shape, _instance: Any = None) -> _ContinuousBernoulli:
        return _ContinuousBernoulli(self.logits.expand(batch_shape), validate_args=False)

    def _cases(self) -> tuple[Tensor, Tensor, Tensor]:
        """Whether ℓ is too near zero; ℓ for the series; |ℓ| for the exact formula: each harmless where unused."""
        small = self.logits.abs() < 0.1
        near = torch.where(small, self.logits, torch.zeros_like(self.logits))
        return small, near, torch.where(small, torch.ones_like(self.logits), self.logits.abs())

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        small, near, a = self._cases()
        series = near**2 / 24 - near**4 / 2880 + near**6 / 181440  # log of sinh(ℓ/2) / (ℓ/2)
        from_peak = torch.where(self.logits > 0, 1 - value, value)
        exact = a.log() - (-torch.expm1(-a)).log() - a * from_peak
        return torch.where(small, near * (value - 0.5) - series, exact)

    @property
    def mean(self) -> Tensor:
        small, near, a = self._cases()
        offset = 0.5 / torch.tanh(a / 2) - 1 / a
        series = near / 12 - near**3 / 720 + near**5 / 30240
        return 0.5 + torch.where(small, series, offset * self.logits.sign())

    @property
    def variance(self) -> Tensor:
        small, near, a = self._cases()
        series = 1 / 12 - near**2 / 240 + near**4 / 6048
        return torch.where(small, series, a**-2 - 0.25 / torch.sinh(a / 2) ** 2)

    def rsample(self, sample_shape: _Shape = torch.Size()) -> Tensor:  # noqa: B008
        logits = self.logits.double()
        a = logits.abs()
        u = torch.rand(self._extended_shape(sample_shape), dtype=torch.float64, device=logits.device)
        tiny = a < 1e-4
        safe = torch.where(tiny, torch.ones_like(a), a)
        from_peak = torch.where(tiny, u - a * u * (1 - u) / 2, -torch.log1p(u * torch.expm1(-safe)) / safe)
        return torch.where(logits > 0, 1 - from_peak, from_peak).to(self.logits.dtype)


class _Discretised(Distribution):
    """A variable loc + scale · t, with t symmetric around 0, rounded to the nearest integer from low to high."""

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012

    def __init__(self, loc: Tensor, scale: Tensor, low: int, high: int, validate_args: bool | None = None) -> None:
        check_count("low", low, minimum=-(2**31))
        check_count("high", high, minimum=low + 1)
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.low, self.high = low, high
        super().__init__(self.loc.shape, validate_args=validate_args)

    @staticmethod
    def _log_cdf(t: Tensor) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def _log_density(t: Tensor) -> Tensor:
        raise NotImplementedError

    def _standard(self, shape: torch.Size) -> Tensor:
        """Draws of t."""
        raise NotImplementedError

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(self.low, self.high)

    def expand(self, batch_shape: _Shape, _instance: Any = None) -> _Discretised:
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return type(self)(loc, scale, self.low, self.high, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # On the left of loc both values of F are small, and their logarithms exact: cells on the right are mirrored.
        left = torch.where(value > self.loc, -1.0, 1.0).to(self.loc.dtype)
        middle = left * (value - self.loc)
        outer_open = torch.where(left > 0, value <= self.low, value >= self.high)
        inner_open = torch.where(left > 0, value >= self.high, value <= self.low)
        log_inner = self._log_cdf((middle + 0.5) / self.scale)
        log_outer = self._log_cdf((middle - 0.5) / self.scale)
        ratio = log_outer - log_inner
        # A cell far narrower than the scale is its density times its width: the two values of F would cancel.
        narrow = self.scale > 1e4
        resolved = (ratio < 0) & ~narrow & ratio.isfinite()
        cell = log_inner + torch.where(resolved, log1mexp(torch.where(resolved, ratio, -1.0)), 0.0)
        cell = torch.where(narrow, self._log_density(middle / self.scale) - self.scale.log(), cell)
        cell = torch.where(outer_open, log_inner, cell)
        # The tail beyond the inner edge: all but what lies outside the outer one.
        tail = self._log_cdf(-(middle - 0.5) / self.scale)
        return torch.where(inner_open, tail, cell)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = torch.arange(self.low, self.high + 1, dtype=self.loc.dtype, device=self.loc.device)
        values = values.reshape(-1, *[1] * self.loc.ndim)
        return values.expand(-1, *self.loc.shape) if expand else values

    @property
    def mean(self) -> Tensor:
        k = self.enumerate_support()
        return (k * self.log_prob(k).exp()).sum(0)

    @property
    def variance(self) -> Tensor:
        k = self.enumerate_support()
        return ((k - self.mean) ** 2 * self.log_prob(k).exp()).sum(0)

    def sample(self, sample_shape: _Shape = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            drawn = self.loc + self.scale * self._standard(self._extended_shape(sample_shape))
            return drawn.round().clamp(self.low, self.high)


class _DiscretisedNormal(_Discretised):
    @staticmethod
    def _log_cdf(t: Tensor) -> Tensor:
        return log_ndtr(t)

    @staticmethod
    def _log_density(t: Tensor) -> Tensor:
        return Normal(torch.zeros_like(t), torch.ones_like(t)).log_prob(t)

    def _standard(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)


class _DiscretisedLogistic(_Discretised):
    @staticmethod
    def _log_cdf(t: Tensor) -> Tensor:
        return logsigmoid(t)

    @staticmethod
    def _log_density(t: Tensor) -> Tensor:
        return logsigmoid(t) + logsigmoid(-t)

    def _standard(self, shape: torch.Size) -> Tensor:
        return torch.logit(torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device), eps=1e-12)


class _MixtureNormal(MixtureSameFamily):
    """A mixture of diagonal Normals whose samples move with its parameters."""

    has_rsample = True

    def rsample(self, sample_shape: _Shape = torch.Size()) -> Tensor:  # noqa: B008
        drawn = self.sample(sample_shape)
        normal = self.component_distribution.base_dist  # type: ignore[attr-defined]
        log_weight = self.mixture_distribution.logits  # of each component, given the coordinates so far
        moving: list[Tensor] = []
        for i in range(drawn.shape[-1]):
            coordinate = Normal(normal.loc[..., i], normal.scale[..., i])
            here = drawn[..., i, None]
            # F(z_i | z_<i): its gradient by the parameters, through z_<i too, divided by −p(z_i | z_<i).
            cdf = (log_weight.softmax(-1) * coordinate.cdf(here)).sum(-1)
            density = (log_weight.softmax(-1) * coordinate.log_prob(here).exp()).sum(-1)
            moving.append(drawn[..., i] - (cdf - cdf.detach()) / density.detach())
            log_weight = log_weight + coordinate.log_prob(moving[-1].unsqueeze(-1))
        return torch.stack(moving, -1)


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
