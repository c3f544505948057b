"""Heads around a network that hands its input through: the numbers' order and meaning against SciPy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.distributions import Distribution, Independent, Laplace

from vi_tutorial.networks import (
    BernoulliHead,
    BinomialHead,
    ContinuousBernoulliHead,
    DiagonalNormalHead,
    DiscretisedLogisticHead,
    DiscretisedNormalHead,
    FullNormalHead,
    Head,
    MixtureNormalHead,
    NormalHead,
    convolutional_decoder,
    convolutional_encoder,
    mlp,
)

pytestmark = pytest.mark.usefixtures("_float64")

HEADS = [DiagonalNormalHead, FullNormalHead, BernoulliHead]
batches = st.lists(st.integers(1, 3), max_size=3).map(tuple)


@pytest.mark.parametrize(
    ("head", "counts"), [(DiagonalNormalHead, [2, 4, 6]), (FullNormalHead, [2, 5, 9]), (BernoulliHead, [1, 2, 3])]
)
def test_numbers_of_outputs(head: type[nn.Module], counts: list[int]) -> None:
    assert [head.num_outputs(dim) for dim in (1, 2, 3)] == counts  # type: ignore[operator]


@settings(deadline=None, derandomize=True, max_examples=15)
@given(batch=batches, dim=st.integers(1, 4), seed=st.integers(0, 999))
def test_diagonal_head_reads_means_then_log_scales(batch: tuple[int, ...], dim: int, seed: int) -> None:
    torch.manual_seed(seed)
    outputs, z = torch.randn(*batch, 2 * dim), torch.randn(*batch, dim)
    q = DiagonalNormalHead(nn.Identity(), dim)(outputs)
    assert q.batch_shape == batch
    assert q.event_shape == (dim,)
    expected = stats.norm.logpdf(z, outputs[..., :dim], np.exp(outputs[..., dim:])).sum(-1)
    assert np.allclose(q.log_prob(z), expected, atol=1e-10)


@settings(deadline=None, derandomize=True, max_examples=15)
@given(batch=batches, dim=st.integers(1, 4), seed=st.integers(0, 999))
def test_full_head_reads_means_log_diagonal_then_rows_below_it(batch: tuple[int, ...], dim: int, seed: int) -> None:
    torch.manual_seed(seed)
    outputs = torch.randn(*batch, FullNormalHead.num_outputs(dim))
    q = FullNormalHead(nn.Identity(), dim)(outputs)
    assert q.batch_shape == batch
    assert q.event_shape == (dim,)
    for index in itertools.product(*map(range, batch)):
        numbers = outputs[index].numpy()
        tril = np.diag(np.exp(numbers[dim : 2 * dim]))
        below = iter(numbers[2 * dim :])
        for row in range(dim):
            for column in range(row):
                tril[row, column] = next(below)
        assert np.allclose(q.mean[index], numbers[:dim])
        assert np.allclose(q.covariance_matrix[index], tril @ tril.T, atol=1e-9)


@settings(deadline=None, derandomize=True, max_examples=15)
@given(batch=batches, dim=st.integers(1, 4), seed=st.integers(0, 999))
def test_bernoulli_head_reads_logits(batch: tuple[int, ...], dim: int, seed: int) -> None:
    torch.manual_seed(seed)
    logits, x = torch.randn(*batch, dim), torch.randint(2, (*batch, dim)).double()
    p = BernoulliHead(nn.Identity(), dim)(logits)
    assert p.batch_shape == batch
    expected = stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-logits))).sum(-1)
    assert np.allclose(p.log_prob(x), expected, atol=1e-10)


@pytest.mark.parametrize("head", HEADS)
def test_gradients_reach_every_weight_of_the_network(head: type[nn.Module]) -> None:
    network = mlp(3, 5, head.num_outputs(2))  # type: ignore[operator]
    distribution: Distribution = head(network, 2)(torch.randn(7, 3))  # type: ignore[call-arg]
    distribution.log_prob(torch.ones(7, 2)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


@pytest.mark.parametrize(("logit", "expected"), [(800.0, 0.0), (-800.0, -800.0)])
def test_extreme_logits_stay_exact(logit: float, expected: float) -> None:
    assert BernoulliHead(nn.Identity(), 1)(torch.tensor([logit])).log_prob(torch.ones(1)).item() == expected


@pytest.mark.parametrize("log_scale", [-300.0, 300.0])
def test_extreme_log_scales_stay_finite(log_scale: float) -> None:
    q = DiagonalNormalHead(nn.Identity(), 1)(torch.tensor([0.5, log_scale]))
    expected = -0.5 * math.log(2 * math.pi) - log_scale
    assert q.log_prob(torch.tensor([0.5])).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("log_scale", [-1000.0, 1000.0])
def test_a_scale_beyond_floating_point_is_refused_by_name(log_scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        DiagonalNormalHead(nn.Identity(), 1)(torch.tensor([0.5, log_scale]))


@pytest.mark.parametrize("head", HEADS)
def test_a_network_that_returns_nan_is_found_at_its_datapoint(head: type[nn.Module]) -> None:
    class LogarithmOfOnePlus(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.log1p(x)

    inputs = torch.zeros(3, head.num_outputs(2))  # type: ignore[operator]
    inputs[1, 0] = -2.0
    with pytest.raises(ValueError, match=r"(loc|logits) must be finite; received nan at index \(1, 0\)"):
        head(LogarithmOfOnePlus(), 2)(inputs)  # type: ignore[call-arg]


@pytest.mark.parametrize("head", HEADS)
def test_an_image_of_the_wrong_size_is_told_the_right_one(head: type[nn.Module]) -> None:
    encoder = head(mlp(64, 8, head.num_outputs(2)), 2)  # type: ignore[operator, call-arg]
    with pytest.raises(ValueError, match=r"inputs must have a last dimension of 64.*received shape \(5, 784\)"):
        encoder(torch.zeros(5, 784))
    with pytest.raises(ValueError, match=r"inputs must be finite; received nan at index \(0, 3\)"):
        encoder(torch.tensor([[0.0, 1.0, 0.0, math.nan]]))


# --- The decoder heads, against SciPy --------------------------------------------------------------


def test_normal_head_shares_its_scale_or_has_one_per_dimension() -> None:
    loc, x = torch.randn(4, 3), torch.randn(4, 3)
    for scale in (torch.tensor(0.7), torch.tensor([0.5, 1.0, 2.0])):
        head = NormalHead(nn.Identity(), 3, scale)
        assert np.allclose(head(loc).log_prob(x).detach(), stats.norm.logpdf(x, loc, scale).sum(-1), atol=1e-12)
        assert torch.allclose(head.scale, scale)
        assert [name for name, _ in head.named_parameters()] == ["log_scale"]


def test_normal_head_keeps_its_scale_above_the_floor() -> None:
    head = NormalHead(nn.Identity(), 1, torch.tensor(0.3), min_scale=0.1)
    assert head.scale.item() == pytest.approx(0.3)
    with torch.no_grad():
        head.log_scale.fill_(-50.0)
    assert head.scale.item() == pytest.approx(0.1)
    head.log_scale.requires_grad_(False)
    assert not any(p.requires_grad for p in head.parameters())


@pytest.mark.parametrize("head", [DiagonalNormalHead, DiscretisedNormalHead, DiscretisedLogisticHead])
def test_a_floor_is_added_to_the_networks_scale(head: type[nn.Module]) -> None:
    limits = {} if head is DiagonalNormalHead else {"low": 0, "high": 16}
    floored = head(nn.Identity(), 1, min_scale=0.5, **limits)(torch.tensor([3.0, -1.0]))  # type: ignore[call-arg]
    assert floored.base_dist.scale.item() == pytest.approx(0.5 + math.exp(-1))


def test_discretised_heads_read_locations_then_log_scales() -> None:
    numbers = torch.tensor([4.0, 9.0, -0.5, 0.5])
    x = torch.tensor([3.0, 12.0])
    for head, cdf in ((DiscretisedNormalHead, stats.norm.cdf), (DiscretisedLogisticHead, stats.logistic.cdf)):
        loc, scale = numbers[:2].numpy(), numbers[2:].exp().numpy()
        upper, lower = (x.numpy() + 0.5 - loc) / scale, (x.numpy() - 0.5 - loc) / scale
        expected = np.log(cdf(upper) - cdf(lower)).sum()
        assert head(nn.Identity(), 2, 0, 16)(numbers).log_prob(x).item() == pytest.approx(expected, rel=1e-10)


def test_binomial_head_counts_up_to_its_total() -> None:
    logits, x = torch.randn(5, 3), torch.randint(0, 17, (5, 3)).double()
    p = BinomialHead(nn.Identity(), 3, total_count=16)(logits)
    assert np.allclose(p.log_prob(x), stats.binom.logpmf(x, 16, logits.sigmoid()).sum(-1), atol=1e-10)


def test_continuous_bernoulli_head_is_a_truncated_exponential() -> None:
    logits, x = torch.tensor([[-3.0, 0.5, 8.0]]), torch.tensor([[0.2, 0.9, 0.4]])
    rate = -logits.numpy()
    expected = np.log(np.abs(rate)) - np.log(np.abs(-np.expm1(-rate))) - rate * x.numpy()
    p = ContinuousBernoulliHead(nn.Identity(), 3)(logits)
    assert np.allclose(p.log_prob(x), expected.sum(-1), atol=1e-10)


def test_mixture_head_reads_logits_means_and_log_scales_component_by_component() -> None:
    numbers, z = torch.randn(4, 3 * 5), torch.randn(4, 2)
    q = MixtureNormalHead(nn.Identity(), 2, num_components=3)(numbers)
    assert q.batch_shape == (4,)
    assert q.event_shape == (2,)
    for row in range(4):
        weight = np.exp(numbers[row, :3].numpy())
        weight /= weight.sum()
        density = 0.0
        for c in range(3):
            mean = numbers[row, 3 + 2 * c : 5 + 2 * c].numpy()
            scale = np.exp(numbers[row, 9 + 2 * c : 11 + 2 * c].numpy())
            density += weight[c] * stats.norm.pdf(z[row].numpy(), mean, scale).prod()
        assert q.log_prob(z)[row].item() == pytest.approx(math.log(density), abs=1e-10)


def test_a_head_of_ones_own_needs_two_methods() -> None:
    class LaplaceHead(Head):
        @staticmethod
        def num_outputs(dim: int) -> int:
            return dim

        def distribution(self, numbers: torch.Tensor) -> Distribution:
            return Independent(Laplace(numbers, torch.ones_like(numbers)), 1)

    assert LaplaceHead(mlp(3, 2), 2)(torch.zeros(5, 3)).batch_shape == (5,)
    with pytest.raises(ValueError, match="network must return 2 numbers for LaplaceHead"):
        LaplaceHead(mlp(3, 4), 2)(torch.zeros(5, 3))


# --- The network itself ----------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(2, 3), (2, 4, 3), (2, 4, 5, 3)])
def test_mlp_is_matrix_products_with_a_nonlinearity_between(sizes: tuple[int, ...]) -> None:
    network = mlp(*sizes)
    x = torch.randn(7, 2)
    weights = list(network.parameters())
    values = x
    for i in range(0, len(weights), 2):
        values = values @ weights[i].T + weights[i + 1]
        values = values.tanh() if i + 2 < len(weights) else values
    assert [p.shape[0] for p in weights[::2]] == list(sizes[1:])
    assert torch.allclose(network(x), values, atol=1e-14)


def test_mlp_takes_another_nonlinearity() -> None:
    assert [type(layer) for layer in mlp(1, 2, 3, 1, activation=nn.ReLU)] == [
        nn.Linear,
        nn.ReLU,
        nn.Linear,
        nn.ReLU,
        nn.Linear,
    ]


def test_mlp_keeps_all_leading_dimensions() -> None:
    network = mlp(2, 4, 3)
    x = torch.randn(5, 6, 2)
    assert torch.allclose(network(x)[4, 5], network(x[4, 5]), atol=1e-14)


@pytest.mark.parametrize(("side", "channels"), [(8, (3, 5)), (28, (4, 6)), (16, (2, 3, 4))])
def test_convolutional_networks_take_rows_of_pixels_and_keep_leading_dimensions(
    side: int, channels: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    encoder, decoder = convolutional_encoder(side, 6, channels), convolutional_decoder(3, side, 2 * side**2, channels)
    x = torch.randn(4, 2, side**2)
    numbers = encoder(x)
    assert numbers.shape == (4, 2, 6)
    assert torch.allclose(numbers[1, 1], encoder(x[1, 1]), atol=1e-10)
    z = torch.randn(5, 4, 3)
    assert decoder(z).shape == (5, 4, 2 * side**2)
    assert torch.allclose(decoder(z)[2, 3], decoder(z[2, 3]), atol=1e-10)


def test_a_convolutional_encoder_sees_neighbours_first() -> None:
    """Its first layer, written out in NumPy: a 4 × 4 window, in steps of two, over an image padded by zeros."""
    torch.manual_seed(0)
    encoder = convolutional_encoder(8, 3, (2,))
    x = torch.randn(1, 64)
    layer, last = encoder[0].network[0], encoder[1]
    padded = np.pad(x.reshape(8, 8).numpy(), 1)
    windows = np.array([[padded[2 * i : 2 * i + 4, 2 * j : 2 * j + 4] for j in range(4)] for i in range(4)])
    weight, bias = layer.weight[:, 0].detach().numpy(), layer.bias.detach().numpy()
    hidden = np.maximum(np.einsum("ijab,cab->cij", windows, weight) + bias[:, None, None], 0)
    expected = last.weight.detach().numpy() @ hidden.ravel() + last.bias.detach().numpy()
    assert np.allclose(encoder(x)[0].detach(), expected, atol=1e-6)


def test_two_layers_of_32_and_64_channels_unless_others_are_asked_for() -> None:
    encoder, decoder = convolutional_encoder(8, 3), convolutional_decoder(2, 8, 64)
    for network, channels in ((encoder, [(1, 32), (32, 64)]), (decoder, [(64, 32), (32, 1)])):
        layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
        assert [(layer.in_channels, layer.out_channels) for layer in layers] == channels
    assert MixtureNormalHead.num_outputs(2) == 5  # of one component


def test_convolutional_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"side must be a multiple of 4 for 2 layer\(s\); received 30"):
        convolutional_encoder(30, 2)
    with pytest.raises(ValueError, match=r"num_outputs must be a multiple of side² = 64; received 65"):
        convolutional_decoder(2, 8, 65)
    with pytest.raises(ValueError, match="channels must be at least 1; received 0"):
        convolutional_encoder(8, 2, (0,))
    head = DiagonalNormalHead(convolutional_encoder(8, 4), 2)
    with pytest.raises(ValueError, match=r"inputs must have shape \(3, 64\) \(rows of pixels\); received \(3, 128\)"):
        head(torch.zeros(3, 128))


def test_heads_check_their_own_numbers_as_they_are_made() -> None:
    network, least = mlp(2, 4), -(2**31)
    DiscretisedNormalHead(network, 2, least, least + 1)
    with pytest.raises(ValueError, match="low must be at least"):
        DiscretisedNormalHead(network, 2, least - 1, 3)
    with pytest.raises(TypeError, match="low must be an int"):
        DiscretisedNormalHead(network, 2, 0.5, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="min_scale must be a number"):
        NormalHead(network, 4, torch.ones(()), min_scale="0")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale"):
        NormalHead(network, 4, torch.tensor(0.5), min_scale=0.5)
    with pytest.raises(ValueError, match="min_scale must be finite and at least 0; received inf"):
        NormalHead(network, 4, torch.tensor(0.5), min_scale=math.inf)
