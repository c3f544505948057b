"""Exercises of chapter 19: at scale."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from vi_tutorial.exercises import Exercise

__all__ = ["bytes_of_a_checkpoint", "log_mean_weight", "mean_gradient", "rate_at"]

Array = NDArray[np.float64]


# --- 19.E1: gradients from many machines ---


def _of_all_rows(gradients: Array, sizes: Array) -> Array:
    """Every row spelled out with its share's mean, and all rows averaged."""
    rows = np.concatenate([np.tile(gradient, (int(size), 1)) for gradient, size in zip(gradients, sizes, strict=True)])
    return np.asarray(rows.mean(0))


_GENERATOR = np.random.default_rng(0)

mean_gradient = Exercise(
    "19.E1",
    "The minibatch's mean gradient (D,) from the shares' mean gradients (R, D) and sizes (R,).",
    _of_all_rows,
    tuple(
        (_GENERATOR.normal(size=(len(sizes), dim)), np.array(sizes, dtype=float))
        for sizes, dim in (([51, 50], 3), ([7, 1, 4], 2), ([1, 1, 1, 9], 5))
    ),
    {
        "shares weighted alike": lambda g, n: g.mean(0),
        "a sum over rows in place of a mean": lambda g, n: n @ g,
        "the inverse weights": lambda g, n: (g / n[:, None]).sum(0) / (1 / n).sum(),
    },
)


# --- 19.E2: the score in pieces ---


def _log_mean(pieces: list[Array]) -> float:
    everything = np.concatenate(pieces)
    return float(logsumexp(everything) - math.log(len(everything)))


log_mean_weight = Exercise(
    "19.E2",
    "log of the mean weight over all draws, from a list of arrays of log weights that come one after another.",
    _log_mean,
    tuple(
        ([_GENERATOR.normal(shift, 3.0, size=size) for size in sizes],)
        for sizes, shift in (((50, 50, 20), -90.0), ((10, 1), -1200.0), ((5, 100, 5, 7), 800.0))
    ),
    {
        "the mean of the pieces' log means": lambda pieces: float(
            np.mean([logsumexp(piece) - math.log(len(piece)) for piece in pieces])
        ),
        "the mean of the log weights: the ELBO": lambda pieces: float(np.concatenate(pieces).mean()),
        "the number of draws forgotten": lambda pieces: float(logsumexp(np.concatenate(pieces))),
        "pieces of unequal length weighted alike": lambda pieces: float(
            logsumexp([logsumexp(piece) - math.log(len(piece)) for piece in pieces]) - math.log(len(pieces))
        ),
    },
)


# --- 19.E3: a falling rate ---


def _rate_by_counting(epoch: int) -> float:
    stages = list(itertools.chain.from_iterable([stage] * 3**stage for stage in range(8)))
    return 1e-3 * 10.0 ** (-stages[epoch] / 7)


rate_at = Exercise(
    "19.E3",
    "The learning rate in epoch 0, 1, …, 3279: stage i, from 0 to 7, lasts 3^i epochs at 10^(−3 − i/7).",
    _rate_by_counting,
    tuple((epoch,) for epoch in (0, 1, 3, 4, 12, 13, 39, 40, 1092, 1093, 3279)),
    {
        "stages that end at epoch 3^i": lambda epoch: 1e-3 * 10 ** (-math.ceil(math.log(epoch + 1, 3)) / 7),
        "stages counted from 1": lambda epoch: _rate_by_counting(epoch) * 10 ** (-1 / 7),
        "a factor of e for ten": lambda epoch: 1e-3 * math.exp(math.log10(_rate_by_counting(epoch) / 1e-3)),
    },
    tolerance=1e-9,
)


# --- 19.E4: what to save ---


def _by_hand(sizes: tuple[int, ...]) -> int:
    """Layer by layer, number by number: weights, biases, and Adam's two means of each; 4 bytes a number."""
    numbers = 0
    for inputs, outputs in itertools.pairwise(sizes):
        for _ in ("value", "mean of the gradient", "mean of its square"):
            numbers += inputs * outputs + outputs
    return 4 * numbers


def _once(sizes: tuple[int, ...]) -> int:
    return _by_hand(sizes) // 3


bytes_of_a_checkpoint = Exercise(
    "19.E4",
    "Bytes in float32 of a perceptron with layers of these sizes, and of what Adam remembers of it.",
    _by_hand,
    (((2, 3),), ((784, 200, 200, 100),), ((50, 200, 784),)),
    {
        "the weights alone": _once,
        "one running mean in place of two": lambda sizes: 2 * _once(sizes),
        "the biases forgotten": lambda sizes: 12 * sum(a * b for a, b in itertools.pairwise(sizes)),
    },
)
