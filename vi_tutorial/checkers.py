"""Checkers for the field's classic mistakes: put any density, bound, estimator or module through them.

Each returns nothing when all is well and raises :class:`vi_tutorial.checks.CheckFailedError` with what it
found. None of them knows the thing it checks: they use what must hold for every one of its kind.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import integrate
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from vi_tutorial._validation import check_count, check_data, check_distribution, check_finite, check_tensor
from vi_tutorial.checks import STANDARD_ERRORS, Array, CheckFailedError
from vi_tutorial.elbo import elbo, iwae

__all__ = [
    "batch_repetition_changes_nothing",
    "bounds_are_ordered",
    "density_integrates_to_one",
    "every_column_moves_the_posterior",
    "every_parameter_gets_gradient",
    "gradient_is_unbiased",
    "kl_is_a_divergence",
    "samples_match_density",
    "stays_below_the_evidence",
]


def density_integrates_to_one(
    log_prob: Callable[[Tensor], Tensor], bounds: list[tuple[float, float]], tolerance: float = 1e-6
) -> None:
    r"""Check :math:`\int p(z) \, dz = 1` by quadrature, in one or two dimensions.

    Catches a log-determinant that was forgotten or broadcast, a log-sum-exp over the wrong axis, a missing
    constant, and a "likelihood" that is none.

    Args:
        log_prob: From points of shape ``(n, d)`` to log densities of shape ``(n,)``, nats.
        bounds: A box that holds all the mass but for the tolerance: one pair per dimension.
        tolerance: Absolute.

    Raises:
        CheckFailedError: If the integral is not one.
        ValueError: If there are not one or two dimensions.

    Example:
        >>> from vi_tutorial.distributions import diagonal_normal
        >>> normal = diagonal_normal(torch.zeros(1, dtype=torch.float64), torch.ones((), dtype=torch.float64))
        >>> density_integrates_to_one(normal.log_prob, [(-10, 10)])
        >>> density_integrates_to_one(lambda z: normal.log_prob(z / 2), [(-20, 20)])
        Traceback (most recent call last):
        ...
        vi_tutorial.checks.CheckFailedError: the density integrates to 2, not to 1 (tolerance 1e-06)
    """
    if len(bounds) not in (1, 2):
        raise ValueError(f"bounds must hold one pair for each of one or two dimensions; received {len(bounds)}")

    def density(*point: Array) -> Array:
        columns = np.stack([np.ravel(p) for p in np.broadcast_arrays(*point)], axis=-1)
        return log_prob(torch.as_tensor(columns)).exp().detach().numpy()

    if len(bounds) == 1:
        total = float(
            integrate.quad_vec(
                lambda z: density(np.asarray(z))[0], *bounds[0], epsabs=tolerance / 10, epsrel=tolerance / 10
            )[0]
        )
    else:
        total = float(
            integrate.cubature(
                lambda points: density(points[:, 0], points[:, 1]),
                [low for low, _ in bounds],
                [high for _, high in bounds],
                atol=tolerance / 10,
                rtol=tolerance / 10,  # what is far from one need not be known better
            ).estimate
        )
    if not abs(total - 1) <= tolerance:
        raise CheckFailedError(f"the density integrates to {total:.6g}, not to 1 (tolerance {tolerance:g})")


def samples_match_density(q: Distribution, num_samples: int = 20_000) -> None:
    r"""Check that ``q`` draws from the density it scores.

    Uses Stein's identity, coordinate by coordinate and for several bumps g around the samples' centre, functions of the
    coordinate itself and of its sum and difference with the next one:

    .. math:: \mathbb{E}_{z \sim q}\!\left[
              \frac{\partial g(z)}{\partial z_i} + g(z) \, \frac{\partial \log q(z)}{\partial z_i} \right] = 0

    It holds only if the samples follow the density that is differentiated, whatever its normalisation: for that there
    is :func:`density_integrates_to_one`. Catches a log-variance used as a log standard deviation, noise that is scaled
    in one place only, and a density on a transformed variable without its Jacobian.

    Args:
        q: A continuous distribution of numbers or vectors, ``batch_shape`` ``()``, with a density that is
            differentiable and vanishes at the edges of its support.
        num_samples: At least 1,000.

    Raises:
        CheckFailedError: If a mean is more than five standard errors from zero.
        ValueError: If ``num_samples`` is too small or ``q`` has a batch.

    Source:
        Stein (1981), Estimation of the Mean of a Multivariate Normal Distribution; Gorham & Mackey (2015), Measuring
        Sample Quality with Stein's Method.

    Example:
        >>> from vi_tutorial.distributions import diagonal_normal
        >>> _ = torch.manual_seed(0)
        >>> samples_match_density(diagonal_normal(torch.zeros(2).double(), torch.ones(()).double()))
    """
    check_count("num_samples", num_samples, minimum=1000)
    if q.batch_shape:
        raise ValueError(f"q must have batch_shape (); received {tuple(q.batch_shape)}")
    z = q.sample(torch.Size([num_samples])).requires_grad_(True)
    (score,) = torch.autograd.grad(q.log_prob(z).sum(), z)
    flat, score = z.detach().reshape(num_samples, -1), score.reshape(num_samples, -1)
    centred, spread = flat - flat.mean(0), flat.std(0)
    standard, following = centred / spread, (centred / spread).roll(-1, dims=1)
    # A bump of one coordinate sees only that coordinate; what belongs together is seen along the diagonals.
    directions = [(standard, 1.0)]
    if flat.shape[1] > 1:
        directions += [((standard + sign * following) / math.sqrt(2), math.sqrt(0.5)) for sign in (1, -1)]
    places = ((-0.4, 0.4), (0.0, 0.4), (0.4, 0.4), (0.0, 1.5))  # in standard deviations
    for (along, slant), (place, size) in itertools.product(directions, places):
        u, width = (along - place) / size, size * spread / slant
        bump = (-0.5 * u**2).exp()
        for g, slope in ((bump, -u * bump), (u * bump, (1 - u**2) * bump)):
            stein = slope / width + g * score
            error = stein.std(0) / math.sqrt(num_samples)
            off = (stein.mean(0) / error).abs()
            # The bumps are placed by the samples themselves, and there are several: hence five.
            if not (off <= 5).all():
                raise CheckFailedError(
                    f"the samples do not follow log_prob: in coordinate {int(off.argmax())} a mean that is 0 came out "
                    f"{off.max().item():.1f} standard errors away"
                )


def kl_is_a_divergence(
    q: Distribution,
    p: Distribution,
    tolerance: float = 1e-8,
    divergence: Callable[[Distribution, Distribution], Tensor] = kl_divergence,
) -> None:
    r"""Check :math:`\mathrm{KL}(q \| p) \ge 0`, zero for equal arguments, and one number per datapoint.

    Catches a flipped sign, a dropped constant, and a sum or mean over the wrong axis.

    Args:
        q: A distribution with a registered KL to ``p`` and to itself.
        p: Another, of the same ``event_shape``.
        tolerance: Absolute.
        divergence: The function of two distributions to check, in nats; torch's unless another is given.

    Raises:
        CheckFailedError: If one of the three does not hold.
        TypeError: If q or p is no distribution.

    Example:
        >>> from torch.distributions import Normal
        >>> kl_is_a_divergence(Normal(torch.zeros(3), torch.ones(3)), Normal(torch.ones(3), torch.ones(3)))
    """
    check_distribution("q", q)
    check_distribution("p", p)
    between, itself = divergence(q, p), divergence(q, q)
    if between.shape != torch.broadcast_shapes(q.batch_shape, p.batch_shape):
        raise CheckFailedError(f"KL must have one number per datapoint; received shape {tuple(between.shape)}")
    if not (between >= -tolerance).all():
        raise CheckFailedError(f"KL(q || p) is negative: {between.min().item():.6g}")
    if not (itself.abs() <= tolerance).all():
        raise CheckFailedError(f"KL(q || q) is not zero: {itself.abs().max().item():.6g}")


def bounds_are_ordered(log_weight: Tensor, log_evidence: Tensor | None = None) -> None:
    r"""Check :math:`\mathcal{L} \le \mathcal{L}_2 \le \mathcal{L}_4 \le \dots \le \log p(x)` in expectation.

    Each bound is estimated without bias from disjoint groups of the same log weights, and a step down by more
    than four standard errors of the paired difference is an error. Catches weights of the wrong sign, a
    log-sum-exp over the data axis, and an evidence that is none.

    Args:
        log_weight: Shape ``(num_samples, *batch)`` with at least 512 samples, nats.
        log_evidence: Exact, shape ``batch``, nats; the last step is left out if not given.

    Raises:
        CheckFailedError: If the order is broken.
        ValueError: If there are too few samples or the shapes do not fit.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> bounds_are_ordered(-0.5 + torch.randn(4096), log_evidence=torch.tensor(0.0))
    """
    check_data("log_weight", log_weight)
    num_samples = len(log_weight)
    if num_samples < 512:
        raise ValueError(f"log_weight must hold at least 512 samples; received {num_samples}")
    groups = log_weight[: num_samples // 16 * 16].reshape(-1, 16, *log_weight.shape[1:]).movedim(1, 0)
    names = ["ELBO", "IWAE_2", "IWAE_4", "IWAE_8", "IWAE_16"]
    estimates = [elbo(groups)]
    for size in (2, 4, 8, 16):
        estimates.append(iwae(groups.reshape(size, 16 // size, *groups.shape[1:])).mean(0))
    if log_evidence is not None:
        if check_finite("log_evidence", log_evidence).shape != log_weight.shape[1:]:
            raise ValueError(
                f"log_evidence must have shape {tuple(log_weight.shape[1:])}; received {tuple(log_evidence.shape)}"
            )
        names.append("log p(x)")
        estimates.append(log_evidence.expand(groups.shape[1:]))
    for (lower, low), (upper, high) in itertools.pairwise(zip(names, estimates, strict=True)):
        step = high - low
        error = step.std(0) / math.sqrt(len(step))
        if (step.mean(0) < -STANDARD_ERRORS * error - 1e-9).any():
            raise CheckFailedError(f"{lower} exceeds {upper} by {-step.mean(0).min().item():.4g} nats in expectation")


def stays_below_the_evidence(estimates: Tensor, log_evidence: Tensor) -> None:
    r"""Check that what is called a lower bound is one in expectation, for each datapoint.

    For a bound of which only values are to be had, not log weights; :func:`bounds_are_ordered` asks more. Catches a
    KL that is averaged or divided, a likelihood that is averaged, and a sign.

    Args:
        estimates: Independent estimates of the bound, shape ``(num_estimates, *batch)``, at least 100 of them, nats.
        log_evidence: Exact, shape ``batch``, nats.

    Raises:
        CheckFailedError: If a mean exceeds the evidence by more than four standard errors, or is NaN.
        ValueError: If there are too few estimates or the shapes do not fit.

    Example:
        >>> estimates = torch.tensor([-2.0, -1.0]).repeat(100)
        >>> stays_below_the_evidence(estimates, torch.tensor(-1.4))
        >>> stays_below_the_evidence(estimates, torch.tensor(-2.5))
        Traceback (most recent call last):
        ...
        vi_tutorial.checks.CheckFailedError: the bound exceeds log p(x) by 1 nats in expectation
    """
    check_tensor("estimates", estimates)
    check_finite("log_evidence", log_evidence)
    if len(estimates) < 100 or estimates.shape[1:] != log_evidence.shape:
        raise ValueError(
            f"estimates must have shape (n, {str(tuple(log_evidence.shape))[1:]} with n >= 100; "
            f"received {tuple(estimates.shape)}"
        )
    excess = estimates.mean(0) - log_evidence
    error = estimates.std(0) / math.sqrt(len(estimates))
    if not (excess <= STANDARD_ERRORS * error + 1e-9).all():
        raise CheckFailedError(f"the bound exceeds log p(x) by {excess.max().item():.4g} nats in expectation")


def gradient_is_unbiased(estimates: Tensor, exact_gradient: Tensor) -> None:
    """Check that independent gradient estimates have the exact gradient as their mean.

    Args:
        estimates: Shape ``(num_estimates, *shape)``, at least 100 of them.
        exact_gradient: Shape ``shape``.

    Raises:
        CheckFailedError: If an element's mean is more than four standard errors off.
        ValueError: If there are too few estimates or the shapes do not fit.

    Example:
        >>> estimates = torch.tensor([0.9, 1.1]).repeat(100)
        >>> gradient_is_unbiased(estimates, torch.tensor(1.0))
    """
    check_data("estimates", estimates)
    check_finite("exact_gradient", exact_gradient)
    if len(estimates) < 100 or estimates.shape[1:] != exact_gradient.shape:
        raise ValueError(
            f"estimates must have shape (n, {str(tuple(exact_gradient.shape))[1:]} with n >= 100; "
            f"received {tuple(estimates.shape)}"
        )
    error = estimates.std(0) / math.sqrt(len(estimates))
    bias = estimates.mean(0) - exact_gradient
    excess = bias.abs() - STANDARD_ERRORS * error - 1e-9 * exact_gradient.abs().clamp(min=1.0)
    if (excess > 0).any():
        raise CheckFailedError(f"the gradient is biased by {bias.flatten()[excess.argmax()].item():.4g}")


def batch_repetition_changes_nothing(
    per_datapoint: Callable[[Tensor], Tensor], x: Tensor, tolerance: float = 1e-6
) -> None:
    """Check that repeating the batch leaves each datapoint's value alone.

    Catches a mean or a sum over the batch, and a log-sum-exp over the data axis.

    Args:
        per_datapoint: A deterministic function from data ``(B, ...)`` to one number per datapoint ``(B,)``.
        x: Data, shape ``(B, ...)``.
        tolerance: Relative above one, absolute below.

    Raises:
        CheckFailedError: If a value changes, or if there is not one number per datapoint.

    Example:
        >>> batch_repetition_changes_nothing(lambda x: x.sum(-1), torch.ones(3, 2))
    """
    check_data("x", x)
    once, twice = per_datapoint(x), per_datapoint(torch.cat([x, x]))
    if once.shape != x.shape[:1] or len(twice) != 2 * len(x):
        raise CheckFailedError(
            f"there must be one number per datapoint, shape ({len(x)},); received {tuple(once.shape)}"
        )
    change = (twice - torch.cat([once, once])).abs() / once.abs().max().clamp(min=1.0)
    if not (change <= tolerance).all():
        raise CheckFailedError(f"repeating the batch changes a datapoint's value by {change.max().item():.3g}")


def every_parameter_gets_gradient(bound: Tensor, module: nn.Module) -> None:
    """Check that a bound moves with every trainable parameter tensor of a module.

    Catches a detached sample, an output that is computed and never used, and a frozen part.

    Args:
        bound: Computed with ``module``, any shape.
        module: Its trainable parameters are looked at; their ``grad`` is left alone.

    Raises:
        CheckFailedError: If a parameter's gradient is missing, zero or not finite; names them all.
        ValueError: If the module has no trainable parameter.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> every_parameter_gets_gradient(layer(torch.ones(4, 2)), layer)
    """
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not named:
        raise ValueError("module must have a trainable parameter; received none with requires_grad")
    gradients: Sequence[Tensor | None] = [None] * len(named)
    if bound.requires_grad:
        gradients = torch.autograd.grad(bound.sum(), list(named.values()), retain_graph=True, allow_unused=True)
    idle = [
        name
        for name, gradient in zip(named, gradients, strict=True)
        if gradient is None or not gradient.isfinite().all() or not gradient.any()
    ]
    if idle:
        raise CheckFailedError(f"no finite, non-zero gradient reaches {', '.join(idle)}")


def every_column_moves_the_posterior(
    posterior_mean: Callable[[Tensor], Tensor], x: Tensor, columns: list[int] | None = None
) -> None:
    """Check that each column of the data has a say in the posterior.

    Catches a predictor or a parameter that is computed and never used by the likelihood.

    Args:
        posterior_mean: A differentiable function of the data.
        x: Data, shape ``(N, D)``.
        columns: Which columns to look at; all if not given (leave out those that never vary).

    Raises:
        CheckFailedError: If the posterior does not depend on a column; names them all.

    Example:
        >>> every_column_moves_the_posterior(lambda x: x.sum(-1), torch.ones(3, 2))
    """
    check_data("x", x, ndim=2)
    leaf = x.detach().clone().requires_grad_(True)
    mean = posterior_mean(leaf)
    weights = torch.linspace(1.0, 2.0, mean.numel(), dtype=mean.dtype).reshape(mean.shape)
    gradient = None
    if mean.requires_grad:
        (gradient,) = torch.autograd.grad((mean * weights).sum(), leaf, allow_unused=True)
    looked_at = range(x.shape[1]) if columns is None else columns
    idle = [d for d in looked_at if gradient is None or not gradient[:, d].isfinite().all() or not gradient[:, d].any()]
    if idle:
        raise CheckFailedError(f"the posterior does not depend on column(s) {idle}")
