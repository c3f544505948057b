"""The bundled data against figures published elsewhere: shapes, units, sums, and nothing missing."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import NoReturn

import pytest
import torch
from scipy import stats
from sklearn import datasets
from torch import Tensor

from vi_tutorial.data import breast_cancer, dequantise, diabetes, digits, eight_schools, old_faithful, wine


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("bundled data must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("load", [diabetes, breast_cancer, wine, digits, old_faithful, eight_schools])
def test_every_tensor_is_finite_and_float64(load: Callable[[], object]) -> None:
    result = load()
    tensors = [result] if isinstance(result, Tensor) else [t for t in result if isinstance(t, Tensor)]  # type: ignore[attr-defined]
    assert tensors
    for tensor in tensors:
        assert tensor.dtype == torch.float64
        assert tensor.isfinite().all()


@pytest.mark.parametrize("load", [diabetes, breast_cancer, wine, digits, old_faithful, eight_schools])
def test_loading_again_gives_fresh_tensors(load: Callable[[], object]) -> None:
    """A chapter that standardises in place must not change the next one's data."""
    first, second = ((r,) if isinstance(r, Tensor) else r for r in (load(), load()))  # type: ignore[union-attr]
    before = second[0].clone()
    first[0].zero_()
    assert torch.equal(second[0], before)
    third = load()
    assert torch.equal(third if isinstance(third, Tensor) else third[0], before)  # type: ignore[index]


@pytest.mark.parametrize(
    ("load", "shape", "classes"),
    [(diabetes, (442, 10), None), (breast_cancer, (569, 30), [212, 357]), (wine, (178, 13), [59, 71, 48])],
)
def test_tables(load: Callable[[], object], shape: tuple[int, int], classes: list[int] | None) -> None:
    table = load()
    assert table.x.shape == shape  # type: ignore[attr-defined]
    assert table.y.shape == shape[:1]  # type: ignore[attr-defined]
    assert len(table.names) == len(set(table.names)) == shape[1]  # type: ignore[attr-defined]
    if classes:
        assert table.y.long().bincount().tolist() == classes  # type: ignore[attr-defined]
        assert len(table.class_names) == len(classes)  # type: ignore[attr-defined]


def test_diabetes_is_in_its_own_units() -> None:
    """Efron et al. give mean age 48.5 and mean response 152.1; scikit-learn's scaled columns have norm one."""
    data = diabetes()
    assert data.x[:, 0].mean().item() == pytest.approx(48.5181, abs=1e-4)
    assert data.y.mean().item() == pytest.approx(152.1335, abs=1e-4)
    centred = data.x - data.x.mean(0)
    scaled, _ = datasets.load_diabetes(return_X_y=True)
    assert torch.allclose(centred / centred.norm(dim=0), torch.tensor(scaled), atol=1e-12)


def test_malignant_is_class_zero() -> None:
    data = breast_cancer()
    assert data.class_names == ("malignant", "benign")
    radius = data.x[:, data.names.index("mean radius")]
    assert radius[data.y == 0].mean() > radius[data.y == 1].mean() + 5


def test_every_sixth_digit_is_held_out_and_none_is_in_both_parts() -> None:
    images = digits()
    x, labels = datasets.load_digits(return_X_y=True)
    assert images.train.shape == (1498, 64)
    assert images.test.shape == (299, 64)
    assert torch.equal(images.test, torch.tensor(x[5::6]))
    assert torch.equal(images.test_labels, torch.tensor(labels[5::6], dtype=torch.float64))
    kept = [i for i in range(len(x)) if i % 6 != 5]
    assert torch.equal(images.train, torch.tensor(x[kept]))
    assert torch.equal(images.train_labels, torch.tensor(labels[kept], dtype=torch.float64))


def test_digits_are_counts_from_0_to_16() -> None:
    values = digits().train.unique()
    assert values.tolist() == list(range(17))


def test_both_parts_hold_every_digit() -> None:
    images = digits()
    for labels in (images.train_labels, images.test_labels):
        counts = labels.long().bincount()
        assert len(counts) == 10
        assert counts.min() > 0.07 * len(labels)


def test_old_faithful_is_rs_table() -> None:
    """R: colMeans(faithful) 3.487783 70.897059; sd 1.141371 13.594974; cor 0.9008112."""
    x = old_faithful()
    assert x.shape == (272, 2)
    assert x.mean(0).tolist() == pytest.approx([3.487783, 70.897059], abs=1e-6)
    assert x.std(0).tolist() == pytest.approx([1.141371, 13.594974], abs=1e-6)
    assert torch.corrcoef(x.T)[0, 1].item() == pytest.approx(0.9008112, abs=1e-7)
    assert x[-1].tolist() == [4.467, 74.0]


def test_eight_schools_are_rubins() -> None:
    schools = eight_schools()
    assert schools.effect.tolist() == [28, 8, -3, 7, -1, 1, 18, 12]
    assert schools.standard_error.tolist() == [15, 10, 16, 11, 9, 11, 10, 18]
    precision = schools.standard_error**-2
    # Complete pooling: 7.7 with standard error 4.1 (Gelman et al.)
    assert ((precision * schools.effect).sum() / precision.sum()).item() == pytest.approx(7.7, abs=0.05)
    assert precision.sum().rsqrt().item() == pytest.approx(4.1, abs=0.05)


def test_dequantise_keeps_the_integers_below_and_fills_the_interval() -> None:
    counts = digits().train
    for dtype in (torch.float32, torch.float64):
        spread = dequantise(counts.to(dtype), torch.Generator().manual_seed(0))
        assert torch.equal(spread.floor(), counts.to(dtype))
        assert stats.kstest((spread - counts).flatten()[:5000].numpy(), "uniform").pvalue > 1e-3
    big = torch.full((100_000,), 2.0**22)  # float32 has one bit left for u
    assert torch.equal(dequantise(big).floor(), big)


def test_dequantise_refuses_what_is_no_integer() -> None:
    with pytest.raises(ValueError, match=r"counts must be integers; received 0.5: already dequantised\?"):
        dequantise(torch.tensor([1.0, 0.5]))
