r"""Heads: modules that turn a network's numbers into a distribution.

A network is a smooth lookup table: a tensor goes in, the parameters of a distribution come out. An
encoder is a head over the latent, :math:`q_\phi(z \mid x)`; a decoder is a head over the data,
:math:`p_\theta(x \mid z)`. Each works on the last dimension and keeps all leading ones, so a decoder
takes samples of shape ``(num_samples, batch, latent)`` as they come.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal

from vi_tutorial._validation import check_count
from vi_tutorial.distributions import bernoulli, diagonal_normal, full_normal

__all__ = ["BernoulliHead", "DiagonalNormalHead", "FullNormalHead", "mlp"]


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


class _Head(nn.Module):
    """A network whose last dimension must have just the size that the distribution's parameters need."""

    def __init__(self, network: nn.Module, dim: int) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be a torch.nn.Module; received {type(network).__name__}")
        self.network = network
        self.dim = check_count("dim", dim)

    @staticmethod
    def num_outputs(dim: int) -> int:
        """How many outputs the network needs for a distribution over ``dim`` dimensions."""
        raise NotImplementedError

    def parameters_at(self, inputs: Tensor) -> Tensor:
        """The network's output, shape ``(*batch, num_outputs(dim))``."""
        outputs = self.network(inputs)
        expected = self.num_outputs(self.dim)
        if outputs.shape[-1] != expected:
            raise ValueError(
                f"network must return {expected} numbers for {type(self).__name__} over {self.dim} "
                f"dimensions; received shape {tuple(outputs.shape)}"
            )
        return outputs


class DiagonalNormalHead(_Head):
    r"""A Normal with a diagonal covariance, whose means and log scales a network gives.

    .. math:: q_\phi(z \mid x) = \mathcal{N}(z \mid h(x), \operatorname{diag} k(x)^2),
              \qquad (h, \log k) = \text{network}(x)

    Args:
        network: A module with ``2 * dim`` outputs: first the means, then the logarithms of the
            standard deviations.
        dim: Dimension of the distribution, at least 1.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind; on call, if the network's output does
            not fit or is not finite.

    Source:
        Kingma & Welling (2014), Auto-Encoding Variational Bayes, appendix C.2, where the outputs are log variances.

    Example:
        >>> encoder = DiagonalNormalHead(mlp(64, 32, DiagonalNormalHead.num_outputs(2)), 2)
        >>> q = encoder(torch.zeros(5, 64))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([2]))
    """

    @staticmethod
    def num_outputs(dim: int) -> int:
        """``2 * dim``: means and log scales."""
        return 2 * dim

    def forward(self, inputs: Tensor) -> Independent:
        """The distribution at ``inputs``, shape ``(*batch, ...)``: ``batch_shape`` ``batch``."""
        loc, log_scale = self.parameters_at(inputs).chunk(2, dim=-1)
        return diagonal_normal(loc, log_scale.exp())


class FullNormalHead(_Head):
    r"""A Normal with a full covariance, whose means and Cholesky factor a network gives.

    .. math:: q_\phi(z \mid x) = \mathcal{N}(z \mid h(x), L(x) L(x)^\top)

    Args:
        network: A module with ``dim + dim * (dim + 1) / 2`` outputs: the means, the logarithms of
            the factor's diagonal, then its entries below the diagonal, row by row.
        dim: Dimension of the distribution, at least 1.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind; on call, if the network's output does
            not fit or is not finite.

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

    def forward(self, inputs: Tensor) -> MultivariateNormal:
        """The distribution at ``inputs``, shape ``(*batch, ...)``: ``batch_shape`` ``batch``."""
        outputs = self.parameters_at(inputs)
        loc, log_diagonal, below = outputs.split([self.dim, self.dim, outputs.shape[-1] - 2 * self.dim], -1)
        row, column = torch.tril_indices(self.dim, self.dim, offset=-1, device=outputs.device)
        scale_tril = torch.diag_embed(log_diagonal.exp())
        scale_tril[..., row, column] = below
        return full_normal(loc, scale_tril)


class BernoulliHead(_Head):
    r"""Independent Bernoulli coordinates, whose logits a network gives: a decoder for binary data.

    .. math:: p_\theta(x \mid z) = \prod_d \mathrm{Bernoulli}(x_d \mid \operatorname{sigmoid}(f_d(z)))

    Args:
        network: A module with ``dim`` outputs, the logits.
        dim: Data dimension, at least 1.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind; on call, if the network's output does
            not fit or is not finite.

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

    def forward(self, inputs: Tensor) -> Independent:
        """The distribution at ``inputs``, shape ``(*batch, ...)``: ``batch_shape`` ``batch``."""
        return bernoulli(self.parameters_at(inputs))
