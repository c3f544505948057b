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
    Categorical,
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    constraints,
    transform_to,
)

from vi_tutorial._validation import check_count, check_data, check_positive
from vi_tutorial.distributions import diagonal_normal, full_normal
from vi_tutorial.elbo import LogJoint, draw, elbo
from vi_tutorial.networks import Head

__all__ = [
    "Fixed",
    "FullRankNormal",
    "LowRankNormal",
    "MeanFieldNormal",
    "PerDatapoint",
    "SemiAmortised",
    "VampPrior",
    "standard_normal",
]


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


class PerDatapoint(nn.Module):
    r"""One posterior for each datapoint, with parameters of its own: :math:`q_{\phi_n}(z_n)`, n = 1 … N.

    The parameters are the numbers that a head's network would give, one row for each datapoint. So any head makes a
    family, and an encoder's answer is a place to start from: ``PerDatapoint(encoder, encoder.parameters_at(x))``.

    Args:
        head: Says what distribution a row of numbers stands for; its network is not used, nor learned.
        numbers: Where the parameters start, shape ``(N, num_outputs)``; copied.

    Raises:
        TypeError: If ``head`` is not a :class:`~vi_tutorial.networks.Head`, or ``numbers`` not a floating-point tensor.
        ValueError: If ``numbers`` does not fit ``head``; on call, if ``x`` does not have N rows.

    Source:
        Hoffman, Blei, Wang & Paisley (2013), Stochastic Variational Inference: local variational parameters.

    Example:
        >>> from vi_tutorial.networks import DiagonalNormalHead
        >>> q = PerDatapoint(DiagonalNormalHead(nn.Identity(), 2), torch.zeros(1000, 4))
        >>> q(torch.zeros(1000, 64)).batch_shape, sum(p.numel() for p in q.parameters())
        (torch.Size([1000]), 4000)
    """

    def __init__(self, head: Head, numbers: Tensor) -> None:
        super().__init__()
        if not isinstance(head, Head):
            raise TypeError(f"head must be a Head, such as DiagonalNormalHead; received {type(head).__name__}")
        check_data("numbers", numbers, ndim=2)
        self._distribution = head.distribution  # a bound method is no submodule: the encoder is not learned here
        self.numbers = nn.Parameter(numbers.detach().clone())
        try:
            self._distribution(self.numbers)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"numbers must be parameters for {type(head).__name__} over {head.dim} dimensions, one row per "
                f"datapoint; received shape {tuple(numbers.shape)}: {str(error).splitlines()[0]}"
            ) from error

    def forward(self, x: Tensor) -> Distribution:
        """The posteriors of all N datapoints; ``x``, shape ``(N, ...)``, only has its rows counted."""
        if len(x) != len(self.numbers):
            raise ValueError(
                f"x must have the {len(self.numbers)} rows that have a posterior each, in their order; received "
                f"{len(x)}: a new datapoint has none until it is optimised"
            )
        return self._distribution(self.numbers)


class SemiAmortised(nn.Module):
    r"""An encoder whose answer is refined by a few steps up each datapoint's own ELBO.

    .. math:: \lambda_0 = \text{encoder}(x), \qquad
              \lambda_{t+1} = \lambda_t + \eta\, \nabla_\lambda \mathcal{L}(x; \theta, \lambda_t)

    Gradients flow through the steps to the encoder and to θ, so the whole can be trained.

    Args:
        encoder: Gives the parameters to start from.
        log_joint: From data ``x`` to the log joint as a function of ``z``: ``model.given``.
        num_steps: How many steps, at least 0.
        step_size: :math:`\eta`, positive.
        num_samples: Draws per datapoint and step.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind or out of range.

    Source:
        Kim, Wiseman, Miller, Sontag & Rush (2018), Semi-Amortized Variational Autoencoders.

    Example:
        >>> from vi_tutorial.models import conjugate_normal
        >>> from vi_tutorial.networks import DiagonalNormalHead
        >>> model, x = conjugate_normal(1), torch.tensor([[2.0]]).double()  # the posterior is N(1, 1/2)
        >>> encoder = DiagonalNormalHead(nn.Linear(1, 2).double(), 1)
        >>> q = SemiAmortised(encoder, model.given, num_steps=200, step_size=0.1, num_samples=100)
        >>> bool((q(x).mean - 1).abs() < 0.1)
        True
    """

    def __init__(
        self,
        encoder: Head,
        log_joint: Callable[[Tensor], LogJoint],
        num_steps: int,
        step_size: float,
        num_samples: int = 1,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, Head):
            raise TypeError(f"encoder must be a Head, such as DiagonalNormalHead; received {type(encoder).__name__}")
        if not callable(log_joint):
            raise TypeError(f"log_joint must be callable, such as model.given; received {type(log_joint).__name__}")
        self.encoder = encoder
        self._log_joint = log_joint
        self.num_steps = check_count("num_steps", num_steps, minimum=0)
        self.step_size = check_positive("step_size", step_size)
        self.num_samples = check_count("num_samples", num_samples)

    def forward(self, x: Tensor) -> Distribution:
        """q at data ``x``, shape ``(*batch, ...)``, after the steps."""
        learning = torch.is_grad_enabled()
        with torch.enable_grad():
            numbers = self.encoder.parameters_at(x)
            for _ in range(self.num_steps):
                if not numbers.requires_grad:
                    numbers = numbers.requires_grad_()
                bound = elbo(draw(self._log_joint(x), self.encoder.distribution(numbers), self.num_samples).log_weight)
                (uphill,) = torch.autograd.grad(bound.sum(), numbers, create_graph=learning)
                numbers = numbers + self.step_size * uphill
                if not learning:
                    numbers = numbers.detach()
        return self.encoder.distribution(numbers if learning else numbers.detach())


class VampPrior(nn.Module):
    r"""A prior that is a mixture of posteriors: those of M pseudo-inputs, which are learned.

    .. math:: p(z) = \frac1M \sum_{m=1}^{M} q_\phi(z \mid u_m)

    With all datapoints for pseudo-inputs it is the aggregate posterior, the prior that maximises the mean ELBO. The
    encoder is the q of the same model: its parameters then have a say in the prior too.

    Args:
        encoder: A module that maps inputs to distributions, ``batch_shape`` ``(M,)`` for M inputs.
        pseudo_inputs: Where they start, shape ``(M, D)``; copied.

    Raises:
        TypeError: If ``encoder`` is not a ``torch.nn.Module``, or ``pseudo_inputs`` not a floating-point tensor.
        ValueError: If ``pseudo_inputs`` does not fit ``encoder``.

    Source:
        Tomczak & Welling (2018), VAE with a VampPrior.

    Example:
        >>> from vi_tutorial.networks import DiagonalNormalHead, mlp
        >>> prior = VampPrior(DiagonalNormalHead(mlp(64, 16, 4), 2), torch.rand(10, 64))
        >>> prior().sample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(self, encoder: nn.Module, pseudo_inputs: Tensor) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"encoder must be a torch.nn.Module; received {type(encoder).__name__}")
        check_data("pseudo_inputs", pseudo_inputs, ndim=2)
        self.encoder = encoder
        self.pseudo_inputs = nn.Parameter(pseudo_inputs.detach().clone())
        with torch.no_grad():  # inputs that do not fit are refused here
            q = encoder(self.pseudo_inputs)
        if not isinstance(q, Distribution):
            raise TypeError(f"encoder must return a torch.distributions.Distribution; received {type(q).__name__}")

    def forward(self, x: Tensor | None = None) -> MixtureSameFamily:
        """The prior; ``x`` is not looked at."""
        return MixtureSameFamily(
            Categorical(logits=torch.zeros_like(self.pseudo_inputs[:, 0])), self.encoder(self.pseudo_inputs)
        )
