r"""Heads: modules that turn a network's numbers into a distribution.

A network is a smooth lookup table: a tensor goes in, the parameters of a distribution come out. An
encoder is a head over the latent, :math:`q_\phi(z \mid x)`; a decoder is a head over the data,
:math:`p_\theta(x \mid z)`. Each works on the last dimension and keeps all leading ones, so a decoder
takes samples of shape ``(num_samples, batch, latent)`` as they come.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MixtureSameFamily, MultivariateNormal

from vi_tutorial._validation import check_count, check_finite, check_number, check_shape
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

__all__ = [
    "BernoulliHead",
    "BinomialHead",
    "ContinuousBernoulliHead",
    "DiagonalNormalHead",
    "DiscretisedLogisticHead",
    "DiscretisedNormalHead",
    "FullNormalHead",
    "Head",
    "MixtureNormalHead",
    "NormalHead",
    "convolutional_decoder",
    "convolutional_encoder",
    "mlp",
]


def mlp(*sizes: int, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """A multilayer perceptron: linear layers with a non-linearity between them, none after the last.

    Args:
        *sizes: Numbers of inputs, hidden units and outputs: two at least, each at least 1.
        activation: The non-linearity's class.

    Returns:
        A module from ``(*batch, sizes[0])`` to ``(*batch, sizes[-1])``.

    Raises:
        TypeError, ValueError: If there are fewer than two sizes, or one is not an ``int`` of at least 1.

    Example:
        >>> mlp(2, 16, 3)(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """
    if len(sizes) < 2:
        raise ValueError(f"sizes must hold at least an input and an output size; received {sizes}")
    for size in sizes:
        check_count("sizes", size)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def convolutional_encoder(side: int, num_outputs: int, channels: tuple[int, ...] = (32, 64)) -> nn.Sequential:
    """Convolutions that halve a square image's side, one for each entry of ``channels``, then a linear layer.

    Args:
        side: Of the image, in pixels; a multiple of two to the number of layers.
        num_outputs: At least 1.
        channels: Of each layer, from the image inwards.

    Returns:
        A module from ``(*batch, side²)`` to ``(*batch, num_outputs)``: images are rows of pixels, here as everywhere.

    Raises:
        TypeError, ValueError: If ``side`` cannot be halved so often, or a number is not an ``int`` of at least 1.

    Example:
        >>> convolutional_encoder(8, 4)(torch.zeros(5, 64)).shape
        torch.Size([5, 4])
    """
    smallest = _smallest_side(side, channels)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise((1, *channels)):
        layers += [nn.Conv2d(inputs, outputs, kernel_size=4, stride=2, padding=1), nn.ReLU()]
    numbers = nn.Linear(channels[-1] * smallest**2, check_count("num_outputs", num_outputs))
    return nn.Sequential(_Reshaped((1, side, side), nn.Sequential(*layers)), numbers)


def convolutional_decoder(
    latent_dim: int, side: int, num_outputs: int, channels: tuple[int, ...] = (32, 64)
) -> nn.Sequential:
    """The way back: a linear layer, then transposed convolutions that double the side.

    Args:
        latent_dim: L, at least 1.
        side: As for :func:`convolutional_encoder`.
        num_outputs: Of a head over the pixels: ``side²``, or a multiple where each pixel takes several numbers.
        channels: As for :func:`convolutional_encoder`, from the image inwards.

    Returns:
        A module from ``(*batch, latent_dim)`` to ``(*batch, num_outputs)``.

    Raises:
        TypeError, ValueError: As for :func:`convolutional_encoder`, or if ``num_outputs`` is no multiple of ``side²``.

    Example:
        >>> head = BernoulliHead(convolutional_decoder(2, 8, 64), 64)
        >>> head(torch.zeros(7, 5, 2)).batch_shape
        torch.Size([7, 5])
    """
    smallest = _smallest_side(side, channels)
    if check_count("num_outputs", num_outputs) % side**2:
        raise ValueError(f"num_outputs must be a multiple of side² = {side**2}; received {num_outputs}")
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise((*reversed(channels), num_outputs // side**2)):
        layers += [nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, kernel_size=4, stride=2, padding=1)]
    start = nn.Linear(check_count("latent_dim", latent_dim), channels[-1] * smallest**2)
    return nn.Sequential(start, _Reshaped((channels[-1], smallest, smallest), nn.Sequential(*layers)))


def _smallest_side(side: int, channels: tuple[int, ...]) -> int:
    for number in channels:
        check_count("channels", number)
    if not channels:
        raise ValueError("channels must hold at least one number; received none")
    halvings = len(channels)
    if check_count("side", side) % 2**halvings:
        raise ValueError(f"side must be a multiple of {2**halvings} for {halvings} layer(s); received {side}")
    return side // 2**halvings


class _Reshaped(nn.Module):
    """Give each row of numbers a shape, apply a network, and flatten what comes out."""

    def __init__(self, shape: tuple[int, ...], network: nn.Module) -> None:
        super().__init__()
        self.shape, self.network = shape, network

    def forward(self, rows: Tensor) -> Tensor:
        check_shape("inputs", rows, (*rows.shape[:-1], math.prod(self.shape)), "rows of pixels")
        return self.network(rows.reshape(-1, *self.shape)).reshape(*rows.shape[:-1], -1)


class Head(nn.Module):
    """A network and the distribution that its numbers are the parameters of: what all heads share.

    A head is two maps, one after the other: :meth:`parameters_at`, from an input to numbers, and
    :meth:`distribution`, from numbers to a distribution. Calling it does both. Your own head needs
    ``num_outputs`` and ``distribution``.

    Args:
        network: A module with ``num_outputs(dim)`` outputs.
        dim: Dimension of the distribution, at least 1.

    Raises:
        TypeError: If ``network`` is not a ``torch.nn.Module``, ``dim`` not an ``int``, or, on call, the input not a
            floating-point tensor.
        ValueError: If ``dim`` is below 1; on call, if the input is not finite or does not fit the network, or the
            network's output does not fit the distribution.

    Example:
        >>> head = DiagonalNormalHead(nn.Identity(), 1)
        >>> isinstance(head, Head), head(torch.tensor([3.0, 0.0])).mean
        (True, tensor([3.]))
    """

    def __init__(self, network: nn.Module, dim: int) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be a torch.nn.Module; received {type(network).__name__}")
        self.network = network
        self.dim = check_count("dim", dim)

    @staticmethod
    def num_outputs(dim: int) -> int:
        """How many numbers a distribution over ``dim`` dimensions takes."""
        raise NotImplementedError

    def distribution(self, numbers: Tensor) -> Distribution:
        """The distribution that ``numbers``, shape ``(*batch, num_outputs)``, are the parameters of."""
        raise NotImplementedError

    def _num_numbers(self) -> int:
        return self.num_outputs(self.dim)

    def parameters_at(self, inputs: Tensor) -> Tensor:
        """The network's numbers at ``inputs``, shape ``(*batch, ...)``: ``(*batch, num_outputs)``."""
        check_finite("inputs", inputs)
        try:
            numbers = self.network(inputs)
        except RuntimeError as error:  # the network's own words for a size that does not fit
            first = next((layer for layer in self.network.modules() if isinstance(layer, nn.Linear)), None)
            if first is None or inputs.shape[-1:] == (first.in_features,):
                raise
            raise ValueError(
                f"inputs must have a last dimension of {first.in_features}, as the network's first layer takes; "
                f"received shape {tuple(inputs.shape)}"
            ) from error
        if numbers.shape[-1] != self._num_numbers():
            raise ValueError(
                f"network must return {self._num_numbers()} numbers for {type(self).__name__} over {self.dim} "
                f"dimensions; received shape {tuple(numbers.shape)}"
            )
        return numbers

    def forward(self, inputs: Tensor) -> Distribution:
        """The distribution at ``inputs``, shape ``(*batch, ...)``: ``batch_shape`` ``batch``."""
        return self.distribution(self.parameters_at(inputs))


def _check_min_scale(value: float) -> float:
    check_number("min_scale", value)
    if not 0 <= value < float("inf"):
        raise ValueError(f"min_scale must be finite and at least 0; received {value}")
    return float(value)


class NormalHead(Head):
    r"""A Normal whose means a network gives, and whose standard deviations do not depend on the input.

    .. math:: p_\theta(x \mid z) = \mathcal{N}(x \mid f(z), \operatorname{diag} \sigma^2)

    ``scale`` of shape ``()`` is one σ for all dimensions, of shape ``(dim,)`` one for each. It is learned through
    ``log_scale``; ``head.log_scale.requires_grad_(False)`` keeps it as it is.

    Args:
        network: A module with ``dim`` outputs, the means.
        dim: Dimension of the distribution, at least 1.
        scale: Where σ starts, positive, above ``min_scale``: shape ``()`` or ``(dim,)``.
        min_scale: A floor: :math:`\sigma = \text{min\_scale} + e^{\text{log\_scale}}`.

    Raises:
        TypeError, ValueError: As for :class:`Head`, or if ``scale`` has another shape or is not above ``min_scale``.

    Source:
        Rybkin, Daniilidis & Levine (2021), Simple and Effective VAE Training with Calibrated Decoders.

    Example:
        >>> decoder = NormalHead(mlp(2, 8, 64), 64, scale=torch.tensor(0.5))
        >>> decoder(torch.zeros(10, 5, 2)).variance.unique()
        tensor([0.2500], grad_fn=<Unique2Backward0>)
    """

    def __init__(self, network: nn.Module, dim: int, scale: Tensor, min_scale: float = 0.0) -> None:
        super().__init__(network, dim)
        self.min_scale = _check_min_scale(min_scale)
        if check_finite("scale", scale).ndim:
            check_shape("scale", scale, (dim,), "one for each dimension, or shape ()")
        if (scale <= min_scale).any():
            raise ValueError(f"scale must be above min_scale = {min_scale}; received {scale.min().item()}")
        self.log_scale = nn.Parameter((scale.detach() - min_scale).log())

    @staticmethod
    def num_outputs(dim: int) -> int:
        """``dim`` means."""
        return dim

    @property
    def scale(self) -> Tensor:
        """σ, shape ``()`` or ``(dim,)``."""
        return self.min_scale + self.log_scale.exp()

    def distribution(self, numbers: Tensor) -> Independent:
        """The Normal with these means."""
        return diagonal_normal(numbers, self.scale)


class _LocScaleHead(Head):
    """A location and a logarithm of the scale for each dimension, both from the network."""

    def __init__(self, network: nn.Module, dim: int, min_scale: float = 0.0) -> None:
        super().__init__(network, dim)
        self.min_scale = _check_min_scale(min_scale)

    @staticmethod
    def num_outputs(dim: int) -> int:
        """``2 * dim``: locations and log scales."""
        return 2 * dim

    def _loc_scale(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = numbers.chunk(2, dim=-1)
        return loc, self.min_scale + log_scale.exp()


class DiagonalNormalHead(_LocScaleHead):
    r"""A Normal with a diagonal covariance, whose means and log scales a network gives.

    .. math:: q_\phi(z \mid x) = \mathcal{N}(z \mid h(x), \operatorname{diag} k(x)^2),
              \qquad (h, \log k) = \text{network}(x)

    Args:
        network: A module with ``2 * dim`` outputs: first the means, then the logarithms of the
            standard deviations.
        dim: Dimension of the distribution, at least 1.
        min_scale: A floor under the standard deviations, added to each; without one a likelihood for reals has no
            upper bound.

    Raises:
        TypeError, ValueError: As for :class:`Head`, or if ``min_scale`` is negative.

    Source:
        Kingma & Welling (2014), Auto-Encoding Variational Bayes, appendix C.2, where the outputs are log variances.

    Example:
        >>> encoder = DiagonalNormalHead(mlp(64, 32, DiagonalNormalHead.num_outputs(2)), 2)
        >>> q = encoder(torch.zeros(5, 64))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([2]))
    """

    def distribution(self, numbers: Tensor) -> Independent:
        """The Normal with these means and log scales."""
        return diagonal_normal(*self._loc_scale(numbers))


class FullNormalHead(Head):
    r"""A Normal with a full covariance, whose means and Cholesky factor a network gives.

    .. math:: q_\phi(z \mid x) = \mathcal{N}(z \mid h(x), L(x) L(x)^\top)

    Args:
        network: A module with ``dim + dim * (dim + 1) / 2`` outputs: the means, the logarithms of
            the factor's diagonal, then its entries below the diagonal, row by row.
        dim: Dimension of the distribution, at least 1.

    Raises:
        TypeError, ValueError: As for :class:`Head`.

    Source:
        Kingma & Welling (2019), An Introduction to Variational Autoencoders, section 2.5.1.

    Example:
        >>> encoder = FullNormalHead(mlp(64, 32, FullNormalHead.num_outputs(2)), 2)
        >>> encoder(torch.zeros(5, 64)).covariance_matrix.shape
        torch.Size([5, 2, 2])
    """

    @staticmethod
    def num_outputs(dim: int) -> int:
        """``dim`` means and ``dim * (dim + 1) / 2`` entries of the Cholesky factor."""
        return dim + dim * (dim + 1) // 2

    def distribution(self, numbers: Tensor) -> MultivariateNormal:
        """The Normal with these means and these entries of the Cholesky factor."""
        loc, log_diagonal, below = numbers.split([self.dim, self.dim, numbers.shape[-1] - 2 * self.dim], -1)
        row, column = torch.tril_indices(self.dim, self.dim, offset=-1, device=numbers.device)
        scale_tril = torch.diag_embed(log_diagonal.exp())
        scale_tril[..., row, column] = below
        return full_normal(loc, scale_tril)


class MixtureNormalHead(Head):
    r"""A mixture of Normals with diagonal covariances, whose weights, means and log scales a network gives.

    .. math:: q_\phi(z \mid x) = \sum_{c=1}^{C} \pi_c(x)\, \mathcal{N}(z \mid h_c(x), \operatorname{diag} k_c(x)^2)

    Args:
        network: A module with ``num_components * (1 + 2 * dim)`` outputs: the logits of the weights, then all
            means, then all logarithms of the standard deviations, component by component.
        dim: Dimension of the distribution, at least 1.
        num_components: C, at least 1.

    Raises:
        TypeError, ValueError: As for :class:`Head`, or if ``num_components`` is not an ``int`` of at least 1.

    Example:
        >>> encoder = MixtureNormalHead(mlp(64, 32, 3 * (1 + 2 * 2)), 2, num_components=3)
        >>> encoder(torch.zeros(5, 64)).rsample().shape
        torch.Size([5, 2])
    """

    def __init__(self, network: nn.Module, dim: int, num_components: int) -> None:
        super().__init__(network, dim)
        self.num_components = check_count("num_components", num_components)

    @staticmethod
    def num_outputs(dim: int, num_components: int = 1) -> int:
        """``num_components * (1 + 2 * dim)``: logits, means and log scales."""
        return num_components * (1 + 2 * dim)

    def _num_numbers(self) -> int:
        return self.num_outputs(self.dim, self.num_components)

    def distribution(self, numbers: Tensor) -> MixtureSameFamily:
        """The mixture with these logits, means and log scales."""
        count = self.num_components
        logits, loc, log_scale = numbers.split([count, count * self.dim, count * self.dim], -1)
        shape = (*logits.shape, self.dim)
        return mixture_normal(logits, loc.reshape(shape), log_scale.reshape(shape).exp())


class BernoulliHead(Head):
    r"""Independent Bernoulli coordinates, whose logits a network gives: a decoder for binary data.

    .. math:: p_\theta(x \mid z) = \prod_d \mathrm{Bernoulli}(x_d \mid \operatorname{sigmoid}(f_d(z)))

    Args:
        network: A module with ``dim`` outputs, the logits.
        dim: Data dimension, at least 1.

    Raises:
        TypeError, ValueError: As for :class:`Head`.

    Source:
        Kingma & Welling (2014), Auto-Encoding Variational Bayes, appendix C.1.

    Example:
        >>> decoder = BernoulliHead(mlp(2, 32, 64), 64)
        >>> decoder(torch.zeros(10, 5, 2)).batch_shape
        torch.Size([10, 5])
    """

    @staticmethod
    def num_outputs(dim: int) -> int:
        """``dim`` logits."""
        return dim

    def distribution(self, numbers: Tensor) -> Independent:
        """The Bernoulli distributions with these logits."""
        return bernoulli(numbers)


class BinomialHead(Head):
    r"""Independent Binomial coordinates, whose logits a network gives: a decoder for counts with a known maximum.

    .. math:: p_\theta(x \mid z) = \prod_d \mathrm{Binomial}(x_d \mid n, \operatorname{sigmoid}(f_d(z)))

    Args:
        network: A module with ``dim`` outputs, the logits.
        dim: Data dimension, at least 1.
        total_count: n, the greatest count, at least 1.

    Raises:
        TypeError, ValueError: As for :class:`Head`, or if ``total_count`` is not an ``int`` of at least 1.

    Example:
        >>> decoder = BinomialHead(mlp(2, 32, 64), 64, total_count=16)
        >>> decoder(torch.zeros(5, 2)).batch_shape
        torch.Size([5])
    """

    def __init__(self, network: nn.Module, dim: int, total_count: int) -> None:
        super().__init__(network, dim)
        self.total_count = check_count("total_count", total_count)

    @staticmethod
    def num_outputs(dim: int) -> int:
        """``dim`` logits."""
        return dim

    def distribution(self, numbers: Tensor) -> Independent:
        """The Binomial distributions with these logits."""
        return binomial(numbers, self.total_count)


class ContinuousBernoulliHead(Head):
    r"""Independent continuous Bernoulli coordinates, whose logits a network gives: a decoder for greys in [0, 1].

    Args:
        network: A module with ``dim`` outputs, the logits.
        dim: Data dimension, at least 1.

    Raises:
        TypeError, ValueError: As for :class:`Head`.

    Source:
        Loaiza-Ganem & Cunningham (2019), The Continuous Bernoulli: Fixing a Pervasive Error in Variational
        Autoencoders.

    Example:
        >>> decoder = ContinuousBernoulliHead(mlp(2, 32, 64), 64)
        >>> decoder(torch.zeros(5, 2)).log_prob(torch.full((5, 64), 0.3)).shape
        torch.Size([5])
    """

    @staticmethod
    def num_outputs(dim: int) -> int:
        """``dim`` logits."""
        return dim

    def distribution(self, numbers: Tensor) -> Independent:
        """The continuous Bernoulli distributions with these logits."""
        return continuous_bernoulli(numbers)


class _DiscretisedHead(_LocScaleHead):
    """A location and a log scale for each dimension, in the units of the integers."""

    def __init__(self, network: nn.Module, dim: int, low: int, high: int, min_scale: float = 0.0) -> None:
        super().__init__(network, dim, min_scale)
        check_count("low", low, minimum=-(2**31))
        check_count("high", high, minimum=low + 1)
        self.low, self.high = low, high


class DiscretisedNormalHead(_DiscretisedHead):
    r"""Normals rounded to the integers from ``low`` to ``high``, whose means and log scales a network gives.

    Args:
        network: A module with ``2 * dim`` outputs: locations, in units of the integers, then log scales.
        dim: Data dimension, at least 1.
        low: The least integer.
        high: The greatest, above ``low``.
        min_scale: A floor under the scales; not needed for a bound, since a probability is at most 1.

    Raises:
        TypeError, ValueError: As for :class:`Head`, or if ``high <= low`` or ``min_scale`` is negative.

    Example:
        >>> decoder = DiscretisedNormalHead(mlp(2, 32, 128), 64, low=0, high=16)
        >>> bool((decoder(torch.zeros(5, 2)).log_prob(torch.full((5, 64), 7.0)) <= 0).all())
        True
    """

    def distribution(self, numbers: Tensor) -> Independent:
        """The rounded Normals with these locations and log scales."""
        return discretised_normal(*self._loc_scale(numbers), self.low, self.high)


class DiscretisedLogisticHead(_DiscretisedHead):
    r"""Logistic variables rounded to the integers from ``low`` to ``high``; a network gives locations and log scales.

    Args:
        network: A module with ``2 * dim`` outputs: locations, in units of the integers, then log scales.
        dim: Data dimension, at least 1.
        low: The least integer.
        high: The greatest, above ``low``.
        min_scale: A floor under the scales; not needed for a bound, since a probability is at most 1.

    Raises:
        TypeError, ValueError: As for :class:`Head`, or if ``high <= low`` or ``min_scale`` is negative.

    Source:
        Salimans, Karpathy, Chen & Kingma (2017), PixelCNN++, section 2.1.

    Example:
        >>> decoder = DiscretisedLogisticHead(mlp(2, 32, 128), 64, low=0, high=16)
        >>> decoder(torch.zeros(5, 2)).sample().shape
        torch.Size([5, 64])
    """

    def distribution(self, numbers: Tensor) -> Independent:
        """The rounded logistic variables with these locations and log scales."""
        return discretised_logistic(*self._loc_scale(numbers), self.low, self.high)
