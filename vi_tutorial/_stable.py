"""Logarithms that keep their digits, and their gradients, far in the tail."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_ndtr(t: Tensor) -> Tensor:
    """log Φ(t). torch's own gradient cancels far on the left; there Φ(t) = φ(t) / |t| (1 − 1/t² + 3/t⁴ − 15/t⁶ + …)."""
    far = t < -50
    left = torch.where(far, t, -50.0)
    correction = torch.log1p(-(left**-2) + 3 * left**-4 - 15 * left**-6)
    series = -0.5 * left**2 - (-left).log() - 0.5 * math.log(2 * math.pi) + correction
    return torch.where(far, series, torch.special.log_ndtr(torch.where(far, -50.0, t)))


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − eˣ) for x < 0 without cancellation (Mächler, 2012)."""
    near = x > -0.6931
    return torch.where(
        near, (-torch.expm1(torch.where(near, x, -1.0))).log(), torch.log1p(-torch.where(near, -1.0, x).exp())
    )
