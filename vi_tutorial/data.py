"""Real data, bundled: nothing is downloaded.

Each function returns float64 tensors as the source gives them, in their own units; what a chapter does to
them (standardise, binarise) stands in the chapter. The sets come with scikit-learn, but for Old Faithful,
whose 272 rows are shipped here, and the eight schools, which are sixteen numbers.
"""

from __future__ import annotations

import csv
from importlib import resources
from typing import NamedTuple

import torch
from sklearn import datasets
from sklearn.utils import Bunch
from torch import Tensor

from vi_tutorial._validation import check_data

__all__ = [
    "Classes",
    "Images",
    "Regression",
    "Schools",
    "breast_cancer",
    "dequantise",
    "diabetes",
    "digits",
    "eight_schools",
    "old_faithful",
    "wine",
]


class Regression(NamedTuple):
    """Predictors ``x`` of shape ``(N, D)``, responses ``y`` of shape ``(N,)``, and the D columns' names.

    Example:
        >>> Regression(torch.zeros(1, 1), torch.zeros(1), ("age",)).names
        ('age',)
    """

    x: Tensor
    y: Tensor
    names: tuple[str, ...]


class Classes(NamedTuple):
    """Predictors ``x`` of shape ``(N, D)``, class labels ``y`` of shape ``(N,)``, columns' and classes' names.

    Example:
        >>> Classes(torch.zeros(1, 1), torch.zeros(1), ("size",), ("benign",)).class_names
        ('benign',)
    """

    x: Tensor
    y: Tensor
    names: tuple[str, ...]
    class_names: tuple[str, ...]


class Images(NamedTuple):
    """Images as rows of grey counts, training and test, ``(N, 64)`` each, with their labels ``(N,)``.

    Example:
        >>> Images(*(torch.zeros(1) for _ in range(4))).test_labels
        tensor([0.])
    """

    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor


class Schools(NamedTuple):
    """Estimated ``effect`` of coaching and its ``standard_error``, shape ``(8,)`` each.

    Example:
        >>> Schools(torch.zeros(8), torch.ones(8)).effect.shape
        torch.Size([8])
    """

    effect: Tensor
    standard_error: Tensor


def diabetes() -> Regression:
    """Disease progression of 442 patients, and ten measurements of each a year before.

    Returns:
        :class:`Regression`, not standardised: age in years, body mass index, blood pressure and six blood
        serum measurements in their own units.

    Source:
        Efron, Hastie, Johnstone & Tibshirani (2004), Least Angle Regression, Annals of Statistics 32(2);
        as shipped with scikit-learn.

    Example:
        >>> data = diabetes()
        >>> data.x.shape, data.y[:3].tolist(), data.names[:3]
        (torch.Size([442, 10]), [151.0, 75.0, 141.0], ('age', 'sex', 'bmi'))
    """
    bunch = datasets.load_diabetes(scaled=False)
    return Regression(_tensor(bunch.data), _tensor(bunch.target), tuple(bunch.feature_names))


def breast_cancer() -> Classes:
    """Thirty measurements of the cell nuclei in 569 biopsies; class 0 malignant, class 1 benign.

    Returns:
        :class:`Classes`, not standardised.

    Source:
        Street, Wolberg & Mangasarian (1993), Nuclear Feature Extraction for Breast Tumor Diagnosis; UCI
        Machine Learning Repository, CC BY 4.0; as shipped with scikit-learn.

    Example:
        >>> data = breast_cancer()
        >>> data.x.shape, int(data.y.sum()), data.class_names
        (torch.Size([569, 30]), 357, ('malignant', 'benign'))
    """
    return _classes(datasets.load_breast_cancer())


def wine() -> Classes:
    """Thirteen chemical measurements of 178 wines from three cultivars.

    Returns:
        :class:`Classes`, not standardised.

    Source:
        Aeberhard & Forina (1992), Wine; UCI Machine Learning Repository, CC BY 4.0; as shipped with
        scikit-learn.

    Example:
        >>> wine().x.shape, wine().y.unique().tolist()
        (torch.Size([178, 13]), [0.0, 1.0, 2.0])
    """
    return _classes(datasets.load_wine())


def digits() -> Images:
    """1,797 handwritten digits of 8 × 8 pixels, each a count from 0 to 16.

    Every sixth image (rows 5, 11, 17, …) is held out: 1,498 for training, 299 for testing. Writers are the
    same in both parts, so held-out scores tell of new images, not of new hands.

    Returns:
        :class:`Images`: counts as floats, shape ``(N, 64)``, and labels 0 to 9.

    Source:
        Alpaydin & Kaynak (1998), Optical Recognition of Handwritten Digits (test part); UCI Machine
        Learning Repository, CC BY 4.0; as shipped with scikit-learn.

    Example:
        >>> images = digits()
        >>> len(images.train), len(images.test), images.train.max().item()
        (1498, 299, 16.0)
    """
    bunch = datasets.load_digits()
    x, labels = _tensor(bunch.data), _tensor(bunch.target)
    held_out = torch.arange(len(x)) % 6 == 5
    return Images(x[~held_out], x[held_out], labels[~held_out], labels[held_out])


def dequantise(counts: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Spread each integer evenly over the unit interval above it: ``counts`` + u, u uniform on [0, 1).

    A density of the result bounds a probability of the counts:
    :math:`\mathbb{E}_u \log p(x + u) \le \log \int_{[0, 1)^D} p(x + u)\, du`.

    Args:
        counts: Integers as floats, any shape.
        generator: Source of u; torch's global one if not given.

    Returns:
        Of the same shape and type.

    Raises:
        TypeError: If ``counts`` is not a floating-point tensor.
        ValueError: If one is not a finite integer.

    Source:
        Theis, van den Oord & Bethge (2016), A Note on the Evaluation of Generative Models, section 3.1.

    Example:
        >>> dequantise(torch.tensor([0.0, 16.0])).floor()
        tensor([ 0., 16.])
    """
    check_data("counts", counts)
    odd = counts != counts.floor()
    if odd.any():
        raise ValueError(f"counts must be integers; received {counts[odd][0].item()}: already dequantised?")
    noise = torch.rand(counts.shape, dtype=counts.dtype, device=counts.device, generator=generator)
    return torch.minimum(counts + noise, torch.nextafter(counts + 1, counts))  # rounding must not reach the next


def old_faithful() -> Tensor:
    """272 eruptions of the Old Faithful geyser: duration and waiting time to the next, in minutes.

    Returns:
        Shape ``(272, 2)``.

    Source:
        Härdle (1991), Smoothing Techniques with Implementation in S; R ships this table as ``faithful``. Azzalini
        & Bowman (1990), A Look at Some Data on the Old Faithful Geyser, Applied Statistics 39(3), use a longer one.

    Example:
        >>> old_faithful().shape, old_faithful()[0].tolist()
        (torch.Size([272, 2]), [3.6, 79.0])
    """
    table = resources.files("vi_tutorial") / "datasets" / "old_faithful.csv"
    with table.open(encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    return torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)


def eight_schools() -> Schools:
    """What coaching did to test scores in eight schools, with standard errors.

    Returns:
        :class:`Schools`, in points of the SAT-V test.

    Source:
        Rubin (1981), Estimation in Parallel Randomized Experiments; Gelman et al. (2013), Bayesian Data
        Analysis.

    Example:
        >>> eight_schools().effect.tolist()
        [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
    """
    effect = [28, 8, -3, 7, -1, 1, 18, 12]
    standard_error = [15, 10, 16, 11, 9, 11, 10, 18]
    return Schools(torch.tensor(effect, dtype=torch.float64), torch.tensor(standard_error, dtype=torch.float64))


def _tensor(array: object) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float64)


def _classes(bunch: Bunch) -> Classes:
    return Classes(
        _tensor(bunch.data),
        _tensor(bunch.target),
        tuple(str(name) for name in bunch.feature_names),
        tuple(str(name) for name in bunch.target_names),
    )
