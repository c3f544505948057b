"""Ways up a log density: places on the way to a mode, and places to start from. What :mod:`inference` begins with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.distributions import Distribution

from vi_tutorial.elbo import LogJoint
from vi_tutorial.frozen import is_normal, noise_dim, reparameterise, standardised_noise

NUM_SCANNED = 1024
"""How many places near, and as many far, are looked at for a second start."""


@contextmanager
def one_thread() -> Iterator[None]:
    """At these sizes a second thread costs more than it brings: on a busy machine, tens of times more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def curvature(log_target: LogJoint, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient and Hessian of the log target at one point, by one batched double backward pass."""
    dim = len(u)
    rows = u.detach().expand(dim, dim).clone().requires_grad_(True)
    value = log_target(rows)
    (gradient,) = torch.autograd.grad(value.sum(), rows, create_graph=True)
    hessian = None
    if gradient.requires_grad:  # it does not where the log target is linear
        (hessian,) = torch.autograd.grad(gradient.diagonal().sum(), rows, allow_unused=True)
    hessian = torch.zeros_like(rows) if hessian is None else hessian
    return value[0].detach(), gradient[0].detach(), (hessian + hessian.T) / 2


def scaled_inverse(hessian: Tensor) -> tuple[Tensor, bool]:
    """A positive definite stand-in for (−H)⁻¹, and whether it is the thing itself.

    Works in coordinates of unit curvature, so that latents on scales apart by orders of magnitude are alike;
    there negative eigenvalues change sign and tiny ones are raised.
    """
    unit = hessian.diagonal().abs().clamp(min=1e-12).rsqrt()
    values, vectors = torch.linalg.eigh(-unit[:, None] * hessian * unit)
    floor = 1e-9 * values.abs().max().clamp(min=1e-12)
    inverse = (vectors / values.abs().clamp(min=floor)) @ vectors.T
    return unit[:, None] * inverse * unit, bool((values > floor).all())


class Place(NamedTuple):
    """A point, a positive definite stand-in for the inverse curvature there, and whether it is a mode."""

    at: Tensor
    covariance: Tensor
    is_mode: bool


def climb(log_target: LogJoint, start: Tensor, most: int = 100) -> Iterator[Place]:
    """The places that damped Newton steps pass on their way up."""
    u = start
    for _ in range(most):
        value, gradient, hessian = curvature(log_target, u)
        if not (gradient.isfinite().all() and hessian.isfinite().all()):
            return
        covariance, definite = scaled_inverse(hessian)
        step = covariance @ gradient
        decrement = (gradient @ step).item()
        if decrement < 1e-8:
            yield Place(u, covariance, definite)
            return
        trial = _uphill(log_target, u, value, step, decrement)
        yield Place(u, covariance, trial is None and definite and decrement < 1e-3)
        if trial is None:
            return
        u = trial


def _uphill(log_target: LogJoint, u: Tensor, value: Tensor, step: Tensor, decrement: float) -> Tensor | None:
    """The first point, in halving distances along the step, that lies high enough."""
    for halvings in range(40):
        length = 0.5**halvings
        if _quietly(log_target, u + length * step) >= value + 1e-4 * length * decrement:
            return u + length * step
    return None


def _quietly(log_target: LogJoint, u: Tensor) -> Tensor:
    """The log target at one point; minus infinity where it cannot be had."""
    try:
        with torch.no_grad():
            value = log_target(u[None])[0]
    except ValueError as error:
        if "log_joint must return" in str(error):
            raise
        return torch.tensor(-torch.inf)
    return value if not value.isnan() else torch.tensor(-torch.inf)


def is_smooth(log_target: LogJoint, u: Tensor) -> bool:
    try:
        return all(bool(part.isfinite().all()) for part in curvature(log_target, u))
    except ValueError:
        return False


def look_around(log_target: LogJoint, start: Tensor, is_given: Tensor, seed: int) -> list[Tensor]:
    """The highest of some hundred places, near and far; latents whose start the user has given stay there.

    From zero a climb can end where the data are explained by noise alone, as when a rate is a thousandth.
    """
    if is_given.all():
        return []
    engine = torch.quasirandom.SobolEngine(len(start), scramble=True, seed=seed)
    uniform = engine.draw(NUM_SCANNED, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    found = []
    for steps in (math.sqrt(2) * torch.erfinv(2 * uniform - 1), 20 * (uniform - 0.5)):  # of size 1, and up to 10
        u = start + torch.where(is_given, 0.0, steps)
        try:
            with torch.no_grad():
                value = log_target(u).nan_to_num(-torch.inf, posinf=-torch.inf)
        except ValueError:  # some of them are out of the user's reach
            continue
        best = u[value.argmax()]
        if is_smooth(log_target, best):
            found.append((value.max().item(), best))
    return [max(found, key=lambda place: place[0])[1]] if found else []


def other_starts(log_target: LogJoint, q: Distribution, start: Tensor, count: int, seed: int) -> list[Tensor]:
    """Places around the start, as far apart as the first fit is wide, and as its way from the start is long."""
    with torch.no_grad():
        u = reparameterise(q, standardised_noise(2 * noise_dim(q), noise_dim(q)) if is_normal(q) else 1000)
    reach = torch.maximum((u.mean(0) - start).abs(), 5 * u.std(0)).clamp(min=1.0)
    generator = torch.Generator().manual_seed(seed)
    places = []
    for _ in range(count):
        step = reach * torch.randn(len(start), dtype=torch.float64, generator=generator)
        while not is_smooth(log_target, start + step):
            step = step / 2  # towards the start, where the log joint is known to be finite
        places.append(start + step)
    return places
