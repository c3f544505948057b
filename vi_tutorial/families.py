"""Variational families: modules whose ``forward`` returns a ``torch.distributions.Distribution``.

A family and a likelihood are the same kind of thing, a module that maps a tensor to a distribution.
So a prior, an encoder (:mod:`vi_tutorial.networks`), a flow from a library and your own module are
all used in the same way: ``q(x)``. The families here have one posterior for the whole data set and
do not look at ``x``; the argument stands there so that the line that computes the ELBO need not
change when an encoder takes their place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    constraints,
    transform_to,
)

from vi_tutorial._validation import check_count, check_data
from vi_tutorial.distributions import diagonal_normal, full_normal

__all__ = ["Fixed", "FullRankNormal", "LowRankNormal", "MeanFieldNormal", "standard_normal"]


class Fixed(nn.Module):
    r"""A distribution with nothing to learn: a prior, or an exact posterior used as q.

    Its parameters are buffers, so they move with ``.to(...)``.

    Args:
        make: A distribution's constructor.
        **parameters: The tensors given to it, by name.

    Raises:
        TypeError: If ``make`` is not callable or a parameter not a tensor.
        ValueError: If ``make`` refuses the parameters.

    Example:
        >>> from torch.distributions import Beta
        >>> prior = Fixed(Beta, concentration1=torch.tensor(2.0), concentration0=torch.tensor(2.0))
        >>> prior().mean
        tensor(0.5000)
    """

    def __init__(self, make: Callable[..., Distribution], **parameters: Tensor) -> None:
        super().__init__()
        if not callable(make):
            raise TypeError(f"make must be a distribution's constructor; received {type(make).__name__}")
        self._make = make
        self._names = tuple(parameters)
        for name, value in parameters.items():
            self.register_buffer(name, check_data(name, value).detach().clone())
        self()  # a bad parameter is refused here, not at first use

    def forward(self, x: Tensor | None = None) -> Distribution:
        """The distribution; ``x`` is not looked at."""
        return self._make(**{name: getattr(self, name) for name in self._names})


def standard_normal(dim: int, dtype: torch.dtype | None = None) -> Fixed:
    r"""The prior :math:`p(z) = \mathcal{N}(0, I)` in ``dim`` dimensions.

    Args:
        dim: Latent dimension, at least 1.
        dtype: Floating-point type; torch's default if not given.

    Returns:
        A family whose distribution has ``event_shape`` ``(dim,)``.

    Raises:
        TypeError, ValueError: If ``dim`` is not an ``int`` of at least 1.

    Example:
        >>> standard_normal(2)().variance
        tensor([1., 1.])
    """
    check_count("dim", dim)
    return Fixed(diagonal_normal, loc=torch.zeros(dim, dtype=dtype), scale=torch.ones(dim, dtype=dtype))


class MeanFieldNormal(nn.Module):
    r"""Independent Normals: :math:`q_\phi(z) = \prod_i \mathcal{N}(z_i \mid \mu_i, \sigma_i^2)`.

    Starts at :math:`\mathcal{N}(0, I)`. The scale is kept positive by learning its logarithm.

    Args:
        dim: Latent dimension, at least 1.
        dtype: Floating-point type; torch's default if not given.

    Raises:
        TypeError, ValueError: If ``dim`` is not an ``int`` of at least 1.

    Example:
        >>> q = MeanFieldNormal(3)
        >>> q().event_shape
        torch.Size([3])
    """

    def __init__(self, dim: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        check_count("dim", dim)
        self.loc = nn.Parameter(torch.zeros(dim, dtype=dtype))
        self.log_scale = nn.Parameter(torch.zeros(dim, dtype=dtype))

    def forward(self, x: Tensor | None = None) -> Independent:
        """q as a distribution with ``event_shape`` ``(dim,)``; ``x`` is not looked at."""
        return diagonal_normal(self.loc, self.log_scale.exp())


class FullRankNormal(nn.Module):
    r"""A Normal with a full covariance: :math:`q_\phi(z) = \mathcal{N}(z \mid \mu, L L^\top)`.

    Starts at :math:`\mathcal{N}(0, I)`. The Cholesky factor is learned below its diagonal as it is, and on
    its diagonal through the logarithm.

    Args:
        dim: Latent dimension, at least 1.
        dtype: Floating-point type; torch's default if not given.

    Raises:
        TypeError, ValueError: If ``dim`` is not an ``int`` of at least 1.

    Example:
        >>> q = FullRankNormal(2)
        >>> q().covariance_matrix.detach()
        tensor([[1., 0.],
                [0., 1.]])
    """

    def __init__(self, dim: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        check_count("dim", dim)
        self.loc = nn.Parameter(torch.zeros(dim, dtype=dtype))
        self.unconstrained_tril = nn.Parameter(torch.zeros(dim, dim, dtype=dtype))

    @property
    def scale_tril(self) -> Tensor:
        """The Cholesky factor L of the covariance, shape ``(dim, dim)``."""
        return transform_to(constraints.lower_cholesky)(self.unconstrained_tril)

    def forward(self, x: Tensor | None = None) -> MultivariateNormal:
        """q as a distribution with ``event_shape`` ``(dim,)``; ``x`` is not looked at."""
        return full_normal(self.loc, self.scale_tril)


class LowRankNormal(nn.Module):
    r"""A Normal whose covariance is low rank plus diagonal: :math:`\Sigma = F F^\top + \operatorname{diag} \sigma^2`.

    Between mean-field (rank 0) and full rank: ``rank`` directions of correlation for ``dim * (rank + 2)`` numbers.
    Starts near :math:`\mathcal{N}(0, I)`, with a small fixed :math:`F`: at :math:`F = 0` its gradient vanishes.

    Args:
        dim: Latent dimension, at least 1.
        rank: Number of columns of :math:`F`, at least 1.
        dtype: Floating-point type; torch's default if not given.

    Raises:
        TypeError, ValueError: If ``dim`` or ``rank`` is not an ``int`` of at least 1.

    Source:
        Ong, Nott & Smith (2018), Gaussian Variational Approximation with a Factor Covariance Structure.

    Example:
        >>> LowRankNormal(5, rank=2)().covariance_matrix.shape
        torch.Size([5, 5])
    """

    def __init__(self, dim: int, rank: int = 1, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("rank", rank)
        self.loc = nn.Parameter(torch.zeros(dim, dtype=dtype))
        self.log_scale = nn.Parameter(torch.zeros(dim, dtype=dtype))
        angles = torch.outer(torch.arange(1, dim + 1, dtype=dtype), torch.arange(1, rank + 1, dtype=dtype))
        self.factor = nn.Parameter(0.1 * torch.cos(angles.to(self.loc.dtype)))

    def forward(self, x: Tensor | None = None) -> LowRankMultivariateNormal:
        """q as a distribution with ``event_shape`` ``(dim,)``; ``x`` is not looked at."""
        return LowRankMultivariateNormal(self.loc, self.factor, (2 * self.log_scale).exp())
