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
from torch.distributions import Distribution

from vi_tutorial.networks import BernoulliHead, DiagonalNormalHead, FullNormalHead, mlp

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
    outputs = torch.zeros(3, head.num_outputs(2))  # type: ignore[operator]
    outputs[1, 0] = math.nan
    with pytest.raises(ValueError, match=r"(loc|logits) must be finite; received nan at index \(1, 0\)"):
        head(nn.Identity(), 2)(outputs)  # type: ignore[call-arg]


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
