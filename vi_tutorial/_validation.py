"""What bad input meets: one place for the errors that every module raises.

Each error names the argument, says what was received and what was expected. While ``torch.compile`` traces there are no
values to look at: then shapes and types are checked, and values are not.
"""

from __future__ import annotations

import numbers

import torch
from torch import Tensor
from torch.distributions import Distribution


class NotFiniteError(ValueError):
    """A NaN or an infinity where there must be none; the message says what, and where it was first seen."""


def check_tensor(name: str, value: object) -> Tensor:
    """A floating-point tensor, or a ``TypeError``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; received {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor; received dtype {value.dtype}")
    return value


def check_finite(name: str, value: object) -> Tensor:
    """A floating-point tensor without NaN or infinity, or an error that says where the first one stands."""
    tensor = check_tensor(name, value)
    if torch.compiler.is_compiling():
        return tensor
    bad = ~torch.isfinite(tensor)
    if bad.any():
        index = tuple(torch.nonzero(bad)[0].tolist())
        raise NotFiniteError(f"{name} must be finite; received {tensor[index].item()} at index {index}")
    return tensor


def check_distribution(name: str, value: object, advice: str = "") -> Distribution:
    """A distribution, or a ``TypeError``."""
    if not isinstance(value, Distribution):
        raise TypeError(f"{name} must be a torch.distributions.Distribution; received {type(value).__name__}{advice}")
    return value


def check_data(name: str, value: object, ndim: int | None = None) -> Tensor:
    """Finite, non-empty data, with ``ndim`` dimensions where that is known."""
    tensor = check_finite(name, value)
    if tensor.numel() == 0:
        raise ValueError(f"{name} must not be empty; received shape {tuple(tensor.shape)}")
    if ndim is not None and tensor.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s); received shape {tuple(tensor.shape)}")
    return tensor


def check_shape(name: str, value: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    """Exactly this shape: nothing is broadcast by accident."""
    if tuple(value.shape) != tuple(expected):
        raise ValueError(f"{name} must have shape {tuple(expected)} ({meaning}); received {tuple(value.shape)}")


def check_columns_vary(name: str, value: Tensor, advice: str) -> None:
    """No column of one value only: a variance learned for it would go to zero, and the likelihood to infinity."""
    constant = torch.nonzero(value.amax(0) == value.amin(0)).flatten().tolist()
    if constant:
        columns = ", ".join(map(str, constant[:10])) + (", …" if len(constant) > 10 else "")
        raise ValueError(
            f"{name} must vary in every column; received the same value in all {len(value)} row(s) of column(s) "
            f"{columns}, where the likelihood has no upper bound: {advice}"
        )


def check_not_nan(term: str, value: Tensor, advice: str) -> None:
    """No NaN in a computed quantity; minus infinity is allowed, since a log density may be there."""
    if torch.compiler.is_compiling():
        return
    bad = torch.isnan(value)
    if bad.any():
        index = tuple(torch.nonzero(bad)[0].tolist())
        raise NotFiniteError(f"{term} is NaN at index {index}; {advice}")


def check_count(name: str, value: object, minimum: int = 1) -> int:
    """An ``int`` that is at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int; received {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}; received {value}")
    return value


def check_number(name: str, value: object) -> None:
    """A real number, or a ``TypeError``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number; received {type(value).__name__}")


def check_positive(name: str, value: float) -> float:
    """A finite number above zero."""
    check_number(name, value)
    if not (0 < value < float("inf")):
        raise ValueError(f"{name} must be a finite positive number; received {value}")
    return value
