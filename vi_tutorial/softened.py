"""Softer versions of a distribution: a broad one mixed in, noise added, its corners rounded.

Each mends a way in which two distributions fail to meet. A q that misses a part of the posterior has unbounded
weights; two distributions without common support have an infinite divergence; a discrete draw has no derivative.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
    Uniform,
    constraints,
)

from vi_tutorial._stable import log1mexp, log_ndtr
from vi_tutorial._validation import check_distribution, check_number, check_positive

__all__ = ["defensive_mixture", "noised", "relaxed"]

_Shape = torch.Size | list[int] | tuple[int, ...]


def defensive_mixture(q: Distribution, broad: Distribution, share: float) -> Distribution:
    r"""A proposal that cannot miss much: now and then a draw comes from a broad distribution instead of q.

    .. math:: q_\delta(z) = (1 - \delta)\, q(z) + \delta\, p_0(z)

    With :math:`p_0` the prior the importance weights are bounded by the likelihood:
    :math:`p(x, z) / q_\delta(z) \le p(x \mid z) / \delta`.

    Args:
        q: Any distribution.
        broad: :math:`p_0`, of the same shapes.
        share: :math:`\delta`, between 0 and 1.

    Returns:
        A distribution with ``log_prob`` and ``sample``.

    Raises:
        TypeError: If ``q`` or ``broad`` is not a ``Distribution``.
        ValueError: If their shapes differ, or ``share`` is not between 0 and 1.

    Source:
        Hesterberg (1995), Weighted Average Importance Sampling and Defensive Mixture Distributions.

    Example:
        >>> q, prior = Normal(torch.tensor(9.0), torch.tensor(0.1)), Normal(torch.tensor(0.0), torch.tensor(1.0))
        >>> (defensive_mixture(q, prior, 0.5).log_prob(torch.tensor(0.0)) - prior.log_prob(torch.tensor(0.0))).exp()
        tensor(0.5000)
    """
    for name, value in (("q", q), ("broad", broad)):
        check_distribution(name, value)
    if (broad.batch_shape, broad.event_shape) != (q.batch_shape, q.event_shape):
        raise ValueError(
            f"broad must have the shapes of q, {tuple(q.batch_shape)} and {tuple(q.event_shape)}; received "
            f"{tuple(broad.batch_shape)} and {tuple(broad.event_shape)}"
        )
    check_number("share", share)
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1; received {share}")
    return _DefensiveMixture(q, broad, float(share))


def noised(distribution: Distribution, scale: float) -> Distribution:
    r"""The distribution of :math:`z + s \epsilon`, :math:`\epsilon \sim \mathcal{N}(0, I)`: smoothed by a Normal.

    Two distributions that share no point still share their noised versions' support. The KL between those is a
    **spread divergence**: zero only if the two are equal, and finite, with a gradient, where their own KL is infinite.

    Args:
        distribution: A Normal, over numbers or vectors; a mixture of Normals; or a Uniform, over numbers or vectors.
        scale: s, positive.

    Returns:
        A distribution of the same shapes, with ``log_prob``, and with ``rsample`` but for mixtures over numbers.

    Raises:
        TypeError: If ``distribution`` is of another kind.
        ValueError: If ``scale`` is not positive.

    Source:
        Zhang, Hayes, Bird, Habib & Barber (2020), Spread Divergence.

    Example:
        >>> noised(Normal(torch.tensor(1.0), torch.tensor(3.0)), 4.0).stddev
        tensor(5.)
        >>> noised(Uniform(torch.tensor(0.0), torch.tensor(1.0)), 0.01).log_prob(torch.tensor(0.5)).abs() < 1e-6
        tensor(True)
    """
    check_positive("scale", scale)
    d = distribution
    if isinstance(d, Normal):
        return Normal(d.loc, (d.scale**2 + scale**2).sqrt())
    if isinstance(d, Uniform):
        return _NoisedUniform(d.low, d.high, scale)
    if isinstance(d, Independent) and isinstance(d.base_dist, Normal | Uniform):
        return Independent(noised(d.base_dist, scale), d.reinterpreted_batch_ndims)
    if isinstance(d, MultivariateNormal):
        return MultivariateNormal(
            d.loc, d.covariance_matrix + scale**2 * torch.eye(d.event_shape[0], dtype=d.loc.dtype)
        )
    if isinstance(d, MixtureSameFamily):
        return type(d)(d.mixture_distribution, noised(d.component_distribution, scale))
    raise TypeError(f"distribution must be a Normal, a mixture of Normals or a Uniform; received {d}")


def relaxed(discrete: Distribution, temperature: float) -> Distribution:
    r"""Coins or dice with soft outcomes: reparameterised draws between the corners, which they near as τ → 0.

    .. math:: \tilde z = \mathrm{softmax}\big((\mathrm{logits} + g) / \tau\big), \qquad
              g_c = -\log(-\log u_c), \quad u_c \sim \mathrm{U}(0, 1)

    and for coins :math:`\tilde z = \sigma((\mathrm{logit} + \log u - \log(1 - u)) / \tau)`. Rounded to its
    nearest corner a draw has the law of ``discrete``, at any temperature.

    Args:
        discrete: ``Bernoulli`` or ``OneHotCategorical``, or ``Independent`` ones.
        temperature: :math:`\tau > 0`.

    Returns:
        torch's ``RelaxedBernoulli`` or ``RelaxedOneHotCategorical``, with the shapes of ``discrete``. Its
        ``log_prob`` is the density on the cube or simplex, not a probability.

    Raises:
        TypeError: If ``discrete`` is none of these.
        ValueError: If ``temperature`` is not finite and above 0.

    Source:
        Maddison, Mnih & Teh (2017), The Concrete Distribution; Jang, Gu & Poole (2017), Categorical
        Reparameterization with Gumbel-Softmax.

    Example:
        >>> from vi_tutorial.distributions import bernoulli
        >>> soft = relaxed(bernoulli(torch.tensor([[2.0, -2.0]])), temperature=0.5)
        >>> soft.batch_shape, soft.event_shape, soft.has_rsample
        (torch.Size([1]), torch.Size([2]), True)
    """
    check_number("temperature", temperature)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be finite and above 0; received {temperature}")
    if isinstance(discrete, Independent):
        return Independent(relaxed(discrete.base_dist, temperature), discrete.reinterpreted_batch_ndims)
    if isinstance(discrete, Bernoulli):
        return RelaxedBernoulli(discrete.logits.new_tensor(temperature), logits=discrete.logits)
    if isinstance(discrete, OneHotCategorical):
        return RelaxedOneHotCategorical(discrete.logits.new_tensor(temperature), logits=discrete.logits)
    raise TypeError(
        f"discrete must be Bernoulli or OneHotCategorical, or Independent ones; received {type(discrete).__name__}"
    )


class _DefensiveMixture(Distribution):
    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    def __init__(self, q: Distribution, broad: Distribution, share: float) -> None:
        self.q, self.broad, self.share = q, broad, share
        super().__init__(q.batch_shape, q.event_shape, validate_args=False)

    def expand(self, batch_shape: _Shape, _instance: Any = None) -> _DefensiveMixture:
        return _DefensiveMixture(self.q.expand(batch_shape), self.broad.expand(batch_shape), self.share)

    @property
    def mean(self) -> Tensor:
        return (1 - self.share) * self.q.mean + self.share * self.broad.mean

    def log_prob(self, value: Tensor) -> Tensor:
        near, far = self.q.log_prob(value), self.broad.log_prob(value)
        return torch.logaddexp(near + math.log1p(-self.share), far + math.log(self.share))

    def sample(self, sample_shape: _Shape = torch.Size()) -> Tensor:  # noqa: B008
        near, far = self.q.sample(sample_shape), self.broad.sample(sample_shape)
        choice = torch.rand(near.shape[: near.ndim - len(self.event_shape)], device=near.device) < self.share
        return torch.where(choice.reshape(*choice.shape, *[1] * len(self.event_shape)), far, near)


class _NoisedUniform(Distribution):
    """Uniform on [low, high] plus Normal noise: its density is a difference of two values of Φ."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    support = constraints.real
    has_rsample = True

    def __init__(self, low: Tensor, high: Tensor, scale: float) -> None:
        self.low, self.high, self.scale = low, high, scale
        super().__init__(low.shape, validate_args=False)

    def expand(self, batch_shape: _Shape, _instance: Any = None) -> _NoisedUniform:
        return _NoisedUniform(self.low.expand(batch_shape), self.high.expand(batch_shape), self.scale)

    @property
    def mean(self) -> Tensor:
        return (self.low + self.high) / 2

    @property
    def variance(self) -> Tensor:
        return (self.high - self.low) ** 2 / 12 + self.scale**2

    def log_prob(self, value: Tensor) -> Tensor:
        # On the left of the middle both values of Φ are exact to the last digit; the right is its mirror image.
        middle, half = self.mean, (self.high - self.low) / 2
        left = -(value - middle).abs()
        inner, outer = ((left + side) / self.scale for side in (half, -half))
        log_inner, log_outer = log_ndtr(inner), log_ndtr(outer)
        return log_inner + log1mexp(log_outer - log_inner) - (2 * half).log()

    def rsample(self, sample_shape: _Shape = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(sample_shape)
        u, noise = torch.rand(shape, dtype=self.low.dtype), torch.randn(shape, dtype=self.low.dtype)
        return self.low + (self.high - self.low) * u + self.scale * noise
