r"""One call that puts a variational posterior on your own model, and says how far to trust it.

You write ``log_joint``, a function from named latents to :math:`\log p(x, z)`; you say which values each latent may
take. :func:`fit_posterior` does the rest without tuning: it maps the latents to the real line with torch's
``biject_to`` and its Jacobian, climbs to the mode, takes the curvature there as a preconditioner, and then maximises
the ELBO over frozen, standardised noise with L-BFGS. :func:`fit_posterior_stochastic` takes fresh noise and, if you
like, minibatches.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import optimize
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal

from vi_tutorial import training
from vi_tutorial._validation import check_count, check_data
from vi_tutorial.distributions import diagonal_normal, full_normal
from vi_tutorial.elbo import LogJoint, draw, elbo, elbo_sticking_the_landing, weigh
from vi_tutorial.evaluation import effective_sample_size, pareto_k
from vi_tutorial.families import FullRankNormal
from vi_tutorial.frozen import Frame, is_normal, noise_dim, reparameterise, standardised_noise
from vi_tutorial.latents import Latent, Space, Values, examine, unconstrained

__all__ = [
    "Latent",
    "Posterior",
    "UntrustworthyWarning",
    "WeightedSample",
    "fit_posterior",
    "fit_posterior_stochastic",
    "laplace",
    "pareto_k_threshold",
]

Family = Callable[[int], nn.Module]

NUM_FRESH = 4000
"""How many fresh draws the reported ELBO and k̂ come from."""
NUM_SCANNED = 1024
"""How many places near, and as many far, are looked at for a second start."""
ROUNDS = 10
"""How many short runs with few draws there are at most before the stages with more."""
PATIENCE = 10
"""The climb to the mode is broken off when so many places have not raised the ELBO."""
SETTLED = 0.015
"""The next stage, with more draws, follows while a parameter may still be off by more standard deviations than this."""
NEGLIGIBLE = 1e-3
"""And while that may still cost more nats than this."""
RUN_AWAY = 10.0
"""A standard error of the ELBO, in nats, that no fit has which found a posterior."""
ELSEWHERE = 0.5
"""A start that ended farther from the best one, in posterior standard deviations, has found another optimum."""
EQUAL_WEIGHTS = 0.95
"""Weights worth this share of their number are so nearly equal that the shape of their tail, k̂, says nothing."""


class WeightedSample(NamedTuple):
    """Draws from q and what they weigh; see :meth:`Posterior.weighted_sample`.

    Attributes:
        z: The named latents in their own units, ``(num_samples, *shape)`` each.
        log_weight: Shape ``(num_samples,)``, nats.

    Example:
        >>> WeightedSample({"a": torch.zeros(2)}, torch.zeros(2)).log_weight.softmax(0)
        tensor([0.5000, 0.5000])
    """

    z: Values
    log_weight: Tensor


class UntrustworthyWarning(UserWarning):
    """The fit's own diagnostics speak against it.

    Example:
        >>> issubclass(UntrustworthyWarning, UserWarning)
        True
    """


# --- The mode and its curvature --------------------------------------------------------------------


def _curvature(log_target: LogJoint, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


def _scaled_inverse(hessian: Tensor) -> tuple[Tensor, bool]:
    """A positive definite stand-in for (−H)⁻¹, and whether it is the thing itself.

    Works in coordinates of unit curvature, so that latents on scales apart by orders of magnitude are alike;
    there negative eigenvalues change sign and tiny ones are raised.
    """
    unit = hessian.diagonal().abs().clamp(min=1e-12).rsqrt()
    values, vectors = torch.linalg.eigh(-unit[:, None] * hessian * unit)
    floor = 1e-9 * values.abs().max().clamp(min=1e-12)
    inverse = (vectors / values.abs().clamp(min=floor)) @ vectors.T
    return unit[:, None] * inverse * unit, bool((values > floor).all())


class _Place(NamedTuple):
    """A point, a positive definite stand-in for the inverse curvature there, and whether it is a mode."""

    at: Tensor
    covariance: Tensor
    is_mode: bool


def _climb(log_target: LogJoint, start: Tensor, most: int = 100) -> Iterator[_Place]:
    """The places that damped Newton steps pass on their way up."""
    u = start
    for _ in range(most):
        value, gradient, hessian = _curvature(log_target, u)
        if not (gradient.isfinite().all() and hessian.isfinite().all()):
            return
        covariance, definite = _scaled_inverse(hessian)
        step = covariance @ gradient
        decrement = (gradient @ step).item()
        if decrement < 1e-8:
            yield _Place(u, covariance, definite)
            return
        trial = _uphill(log_target, u, value, step, decrement)
        yield _Place(u, covariance, trial is None and definite and decrement < 1e-3)
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


# --- Fitting ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Posterior:
    """A fitted approximation of the posterior, and what is known about its quality. ``str`` gives a report.

    Attributes:
        q: The distribution of the unconstrained vector.
        elbo: From fresh draws, nats.
        elbo_standard_error: Of that estimate, nats.
        pareto_k: k̂ of the same draws.
        effective_sample_size: Of the same draws, as a share of their number.
        drift: By how many posterior standard deviations a mean or a log standard deviation moved, at most, between the
            last two stages of the fit; after a stochastic fit also by how many the slope would still move a mean.
        restarts: The fresh ELBO of each start, nats, best first.
        restart_distances: How far each of them ended from the best one, in posterior standard deviations.
        seconds: How long the fit took.
        space: The map between the named latents and the unconstrained vector.
        log_target: The log joint of the unconstrained vector, nats.

    Example:
        >>> from torch.distributions import constraints
        >>> posterior = fit_posterior(lambda z: -0.5 * z["a"] ** 2, {"a": constraints.real})
        >>> abs(posterior.mean()["a"].item()) < 1e-6
        True
    """

    q: Distribution
    elbo: float
    elbo_standard_error: float
    pareto_k: float
    effective_sample_size: float
    drift: float
    restarts: tuple[float, ...]
    restart_distances: tuple[float, ...]
    seconds: float
    space: Space
    log_target: LogJoint

    def sample(self, num_samples: int) -> Values:
        """Draws of the named latents in their own units, ``(num_samples, *shape)`` each."""
        check_count("num_samples", num_samples)
        with torch.no_grad():
            return self.space.constrain(self.q.sample(torch.Size([num_samples])))

    def weighted_sample(self, num_samples: int) -> WeightedSample:
        r"""Draws from q with their log weights, :math:`\log w = \log p(x, u) - \log q(u)`, in nats.

        Weighted by ``log_weight.softmax(0)`` they estimate posterior means, and ``iwae(log_weight)`` the evidence, as
        long as k̂ does not speak against it: the weights mend what q has wrong where it has put draws.
        """
        check_count("num_samples", num_samples)
        with torch.no_grad():
            u, log_weight = _weigh_draws(self.log_target, self.q, num_samples)
            return WeightedSample(self.space.constrain(u), log_weight)

    def _moment(self, function: Callable[[Tensor], Tensor], num_samples: int = 20_000) -> Values:
        noise = standardised_noise(max(num_samples, 2 * noise_dim(self.q)), noise_dim(self.q))
        with torch.no_grad():
            u = reparameterise(self.q, noise if is_normal(self.q) else num_samples)
            return {name: function(value) for name, value in self.space.constrain(u).items()}

    def mean(self) -> Values:
        """Posterior means of the named latents under q, in their own units."""
        return self._moment(lambda value: value.mean(0))

    def stddev(self) -> Values:
        """Posterior standard deviations of the named latents under q, in their own units."""
        return self._moment(lambda value: value.std(0, unbiased=False))

    def problems(self) -> list[str]:
        """What speaks against the fit, in words; empty when nothing does."""
        if not self.elbo_standard_error < RUN_AWAY:
            return [
                "the log weights of q's draws differ by hundreds of nats: q has run away, as happens where log_joint "
                "has no finite integral. Is a prior, or the log Jacobian of a change of variables, missing?"
            ]
        threshold = pareto_k_threshold(NUM_FRESH)
        found = []
        if self.pareto_k > threshold and self.effective_sample_size < EQUAL_WEIGHTS:
            found.append(
                f"k̂ = {self.pareto_k:.2f} is above {threshold:.2f}: q misses a tail of the posterior, so importance "
                "weights, and possibly means and standard deviations, are off. Try a richer family, another "
                "parameterisation, or weights from a proposal with longer tails than q"
            )
        if self.drift > 0.1:
            found.append(
                f"the parameters still moved by {self.drift:.2f} posterior standard deviations in the last stage: the "
                "ELBO may look flat, but the fit has not settled"
            )
        elsewhere = sum(distance > ELSEWHERE for distance in self.restart_distances)
        if elsewhere:
            found.append(
                f"{elsewhere} of {len(self.restarts)} starts ended elsewhere, up to {max(self.restart_distances):.1f} "
                f"posterior standard deviations away, and the ELBOs run from {self.restarts[-1]:.2f} to "
                f"{self.restarts[0]:.2f} nats: there are several optima, q describes one of them, and the best one "
                "seen may not be the best there is"
            )
        return found

    def __str__(self) -> str:
        mean, stddev = self.mean(), self.stddev()
        restarted = len(self.restarts) > 1
        lines = [
            f"ELBO {self.elbo:.3f} ± {self.elbo_standard_error:.3f} nats,  k̂ {self.pareto_k:.2f},  "
            f"weights worth {self.effective_sample_size:.0%} of their number",
            f"drift {self.drift:.2f} sd in the last stage"
            + (
                f",  {len(self.restarts)} starts ended up to {max(self.restart_distances):.2f} sd apart"
                if restarted
                else ""
            ),
        ]
        for name, value in mean.items():
            pairs = zip(value.reshape(-1).tolist(), stddev[name].reshape(-1).tolist(), strict=True)
            for index, (centre, spread) in zip(np.ndindex(*value.shape), pairs, strict=True):
                label = name if value.ndim == 0 else f"{name}[{', '.join(map(str, index))}]"
                lines.append(f"  {label:<16} {_rounded(centre, spread)}")
        verdict = self.problems() or [
            "nothing speaks against this fit. k̂ can alarm but never certify: it sees only where q has put its draws, "
            "so a q that is too narrow, or sits on one of several modes, passes"
        ]
        return "\n".join(lines + [f"* {line}" for line in verdict])


def _rounded(centre: float, spread: float) -> str:
    """A mean and a standard deviation, both to the second digit of the latter."""
    if not 0 < spread < math.inf:
        return f"{centre:>12.6g} ± {spread:.2g}"
    digits = 1 - math.floor(math.log10(float(f"{spread:.1e}")))
    if not -4 < digits < 8:
        return f"{centre:>12.5g} ± {spread:.2g}"
    return f"{round(centre, digits) + 0.0:>12.{max(digits, 0)}f} ± {round(spread, digits):.{max(digits, 0)}f}"


def pareto_k_threshold(num_samples: int) -> float:
    r"""Above which k̂ an importance-sampling estimate is not to be trusted.

    .. math:: \min(1 - 1 / \log_{10} S, \; 0.7)

    Args:
        num_samples: S, at least 25.

    Returns:
        The threshold.

    Raises:
        TypeError, ValueError: If ``num_samples`` is not an ``int`` of at least 25.

    Source:
        Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto Smoothed Importance Sampling, JMLR 25(72).

    Example:
        >>> pareto_k_threshold(100), pareto_k_threshold(10_000)
        (0.5, 0.7)
    """
    check_count("num_samples", num_samples, minimum=25)
    return min(1 - 1 / math.log10(num_samples), 0.7)


def fit_posterior(
    log_joint: Callable[[Values], Tensor],
    latents: Mapping[str, Latent | Any],
    *,
    family: Family = FullRankNormal,
    initial: Mapping[str, Any] | None = None,
    num_draws: int | None = None,
    num_restarts: int = 1,
    seed: int = 0,
) -> Posterior:
    r"""Fit a variational posterior to any model, with frozen noise and L-BFGS; nothing needs tuning.

    .. math:: \max_\phi \; \frac1K \sum_{k=1}^{K} \log p(x, z_k) + \log \Big|\frac{dz}{du}(u_k)\Big|
              - \log q_\phi(u_k), \qquad u_k = u_\phi(\epsilon_k), \; z_k = z(u_k)

    with K frozen draws :math:`\epsilon_k` (see :func:`standardised_noise`), in coordinates whitened by the curvature at
    the mode, or at the best place on the way there. Stages with more draws follow, each in coordinates whitened by the
    one before, until the parameters no longer move; how far they still did is reported. The frozen ELBO is optimistic,
    so the reported one comes from fresh draws.

    Args:
        log_joint: From a dictionary of latents, each ``(S, *shape)`` with S samples first, to
            :math:`\log p(x, z)`, shape ``(S,)``, in nats. float64.
        latents: For each name a constraint such as ``constraints.positive``, or ``Latent(constraint, shape)``.
        family: From a dimension to a module whose ``forward()`` returns the distribution of the whitened,
            unconstrained vector: a class of :mod:`vi_tutorial.families`, or your own.
        initial: Values to start from, by name, in the latents' own units; the others start where their unconstrained
            value is 0, and at the best of some hundred places around.
        num_draws: K of the first stage, even, at least twice the dimension of the noise; chosen if not given.
        num_restarts: How many starts; all but the first are random, by turns far away and as near as the first fit is
            wide.
        seed: For the noise, the jitter and the fresh draws. The global random state is left alone.

    Returns:
        :class:`Posterior`. The fit runs on one thread: at these sizes more only get in each other's way.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``log_joint`` returns another shape, is not finite near the start, mixes samples, or ignores a
            latent; if a constraint does not match the support; if an initial value lies outside it; if ``num_draws``
            is too small for the family.

    Warns:
        UntrustworthyWarning: If k̂, the drift or the restarts speak against the fit.

    Source:
        Giordano, Ingram & Broderick (2024), Black Box Variational Inference with a Deterministic Objective, JMLR 25.

    Example:
        >>> from torch.distributions import Gamma, constraints
        >>> target = Gamma(torch.tensor(50.0, dtype=torch.float64), torch.tensor(5.0, dtype=torch.float64))
        >>> posterior = fit_posterior(lambda z: target.log_prob(z["rate"]), {"rate": constraints.positive})
        >>> round(posterior.mean()["rate"].item(), 2), round(posterior.stddev()["rate"].item(), 1)
        (10.0, 1.4)
    """
    started = time.perf_counter()
    check_count("num_restarts", num_restarts)
    space = Space(latents)
    start = space.unconstrain(initial or {})
    with _one_thread():
        examine(log_joint, space, start)
        log_target = unconstrained(log_joint, space)
        is_given = space.mask(initial or {})
        starts = [start, *_look_around(log_target, start, is_given, seed)]
        fits = [_fit_frozen(log_target, space, starts, family, num_draws, seed)]
        for index, place in enumerate(_other_starts(log_target, fits[0].q, start, num_restarts - 1, seed), start=1):
            # By turns from afar and from nearby; where the user has given the start, from nearby only.
            starts = _look_around(log_target, start, is_given, seed + index) if index % 2 else []
            fits.append(_fit_frozen(log_target, space, starts or [place], family, num_draws, seed))
        return _assess(fits, log_target, space, started, seed)


def laplace(
    log_joint: Callable[[Values], Tensor],
    latents: Mapping[str, Latent | Any],
    *,
    initial: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Posterior:
    r"""The Laplace approximation: a Normal at the mode, as wide as the curvature there says.

    .. math:: q(u) = \mathcal{N}(\hat u, (-\nabla^2 \log p(x, \hat u))^{-1})

    in unconstrained coordinates, on which it depends. It looks at one point only; :func:`fit_posterior` starts from it
    and goes on to look at the mass.

    Args:
        log_joint: As for :func:`fit_posterior`.
        latents: As for :func:`fit_posterior`.
        initial: As for :func:`fit_posterior`.
        seed: For the fresh draws behind the ELBO and k̂.

    Returns:
        :class:`Posterior`, with a drift of 0.

    Raises:
        TypeError: As for :func:`fit_posterior`.
        ValueError: As for :func:`fit_posterior`, and if no mode with negative definite curvature is found.

    Warns:
        UntrustworthyWarning: As for :func:`fit_posterior`.

    Source:
        MacKay (2003), Information Theory, Inference, and Learning Algorithms, chapter 27.

    Example:
        >>> from torch.distributions import constraints
        >>> posterior = laplace(lambda z: -2 * (z["a"] - 1) ** 2, {"a": constraints.real})
        >>> posterior.mean()["a"].round(decimals=6).item(), posterior.stddev()["a"].round(decimals=6).item()
        (1.0, 0.5)
    """
    started = time.perf_counter()
    space = Space(latents)
    start = space.unconstrain(initial or {})
    examine(log_joint, space, start)
    log_target = unconstrained(log_joint, space)
    *_, last = _climb(log_target, start)
    if not last.is_mode:
        raise ValueError("log_joint must have a mode with negative definite curvature; none was found from the start")
    q = full_normal(last.at, torch.linalg.cholesky(last.covariance))
    return _assess([_Fit(q, 0.0)], log_target, space, started, seed)


@contextmanager
def _one_thread() -> Iterator[None]:
    """At these sizes a second thread costs more than it brings: on a busy machine, tens of times more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def _other_starts(log_target: LogJoint, q: Distribution, start: Tensor, count: int, seed: int) -> list[Tensor]:
    """Places around the start, as far apart as the first fit is wide, and as its way from the start is long."""
    with torch.no_grad():
        u = reparameterise(q, standardised_noise(2 * noise_dim(q), noise_dim(q)) if is_normal(q) else 1000)
    reach = torch.maximum((u.mean(0) - start).abs(), 5 * u.std(0)).clamp(min=1.0)
    generator = torch.Generator().manual_seed(seed)
    places = []
    for _ in range(count):
        step = reach * torch.randn(len(start), dtype=torch.float64, generator=generator)
        while not _is_smooth(log_target, start + step):
            step = step / 2  # towards the start, where the log joint is known to be finite
        places.append(start + step)
    return places


def _look_around(log_target: LogJoint, start: Tensor, is_given: Tensor, seed: int) -> list[Tensor]:
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
        if _is_smooth(log_target, best):
            found.append((value.max().item(), best))
    return [max(found, key=lambda place: place[0])[1]] if found else []


def _is_smooth(log_target: LogJoint, u: Tensor) -> bool:
    try:
        return all(bool(part.isfinite().all()) for part in _curvature(log_target, u))
    except ValueError:
        return False


class _Fit(NamedTuple):
    q: Distribution
    drift: float


def _fit_frozen(
    log_target: LogJoint, space: Space, starts: list[Tensor], family: Family, num_draws: int | None, seed: int
) -> _Fit:
    dim = space.dim
    kind = _make(family, dim)()
    _check_family(kind, dim)
    normal = is_normal(kind)
    least = 2 * noise_dim(kind) if normal else 1
    num_draws = max(64, 2 * least) if num_draws is None else check_count("num_draws", num_draws, minimum=least)

    frame, module = _first_frame(log_target, space, starts, family, num_draws), _make(family, dim)

    def climb(size: int, stage: int, most: int, tolerance: float) -> tuple[Distribution, float]:
        """Maximise over so many draws; then, where that can be said, q is the next frame, in which it is standard."""
        nonlocal frame, module
        noise = standardised_noise(size, noise_dim(kind), seed + stage) if normal else size
        q, gain = _maximise(module, frame, log_target, noise, most, tolerance)
        if isinstance(q, MultivariateNormal):
            frame, module = Frame(q.loc, q.scale_tril), _make(family, dim)
        elif isinstance(q, Independent) and normal:
            frame, module = Frame(q.mean, q.stddev), _make(family, dim)
        return q, gain

    for _ in range(ROUNDS):  # few draws and short runs
        q, gain = climb(num_draws, 0, 50, 1e-4)
        if gain < 0.1:
            break
    drift, size = math.inf, num_draws
    for stage, growth in enumerate((8, 4, 4, 4), start=1):
        earlier, size = q, size * growth
        q, gain = climb(size, stage, 1000, 1e-9)
        drift = _drift(earlier, q)
        # The error that the earlier draws caused, and the nats it cost, less what so many more draws leave of them.
        if drift < SETTLED * math.sqrt(growth) or gain < NEGLIGIBLE * growth:
            break
    return _Fit(q, drift)


def _first_frame(log_target: LogJoint, space: Space, starts: list[Tensor], family: Family, num_draws: int) -> Frame:
    """Of all places on the way to the mode, the one where q has the highest ELBO.

    That is the mode itself where the posterior is near Normal, and not where it is a funnel, or has no mode at all.
    """
    module = _make(family, space.dim)
    kind = module()
    noise = standardised_noise(num_draws, noise_dim(kind)) if is_normal(kind) else num_draws
    best, best_value = Frame(starts[0], torch.ones_like(starts[0])), -math.inf
    for start in starts:
        since, highest = 0, -math.inf
        for at, covariance, _ in _climb(log_target, start):
            if isinstance(kind, MultivariateNormal):
                scale = torch.linalg.cholesky(covariance)
            else:  # a diagonal q is as wide as the conditional standard deviations, not the marginal ones
                scale = torch.linalg.inv(covariance).diagonal().clamp(min=1e-300).rsqrt()
            for frame in (Frame(at, scale), Frame(at, 0.1 * scale)):
                value = _frozen_elbo(log_target, frame, module, noise)
                if value > best_value:
                    best, best_value = frame, value
                if value > highest:
                    highest, since = value, 0
            since += 1
            if since > PATIENCE:
                break
    if best_value == -math.inf:
        _refuse(log_target, space, reparameterise(best.place(kind), noise).detach())
    return best


def _refuse(log_target: LogJoint, space: Space, u: Tensor) -> None:
    """Say why a log joint that was finite around the start is not where a q around it puts its draws."""
    value = log_target(u)  # raises where the user's function does
    bad = ~value.isfinite()
    if not bad.any():  # finite, and so low that their mean is not
        return
    z = {name: part[0].tolist() for name, part in space.constrain(u[bad]).items()}
    raise ValueError(
        f"log_joint must be finite wherever the constraints allow; received {value[bad][0].item()} at {z}. Is each "
        "latent's constraint the support of its density, such as constraints.interval(0, 10)?"
    )


def _frozen_elbo(log_target: LogJoint, frame: Frame, module: nn.Module, noise: Tensor | int) -> float:
    try:
        with torch.no_grad():
            value = _bound(log_target, frame.place(module()), noise).item()
    except (ValueError, torch.linalg.LinAlgError):
        return -math.inf
    return value if not math.isnan(value) else -math.inf


def _bound(log_target: LogJoint, q: Distribution, noise: Tensor | int) -> Tensor:
    """The ELBO over frozen draws.

    Standardised noise averages the log density of a Normal q exactly, so there the entropy in closed form is the same
    number, and keeps its digits where latents are nearly collinear.
    """
    z = reparameterise(q, noise)
    if is_normal(q):
        return elbo(log_target(z)) + q.entropy()
    return elbo(weigh(log_target, q, z).log_weight)


def _weigh_draws(log_target: LogJoint, q: Distribution, num_draws: int) -> tuple[Tensor, Tensor]:
    """Fresh draws and log weights; of a correlated Normal where it is standard, to keep the digits of log q."""
    if isinstance(q, LowRankMultivariateNormal):
        q = full_normal(q.loc, torch.linalg.cholesky(q.covariance_matrix))
    if not isinstance(q, MultivariateNormal):
        draws = draw(log_target, q, num_draws)
        return draws.z, draws.log_weight
    log_volume = q.scale_tril.diagonal().log().sum()
    standard = diagonal_normal(torch.zeros_like(q.loc), torch.ones_like(q.loc))
    draws = draw(lambda v: log_target(reparameterise(q, v)) + log_volume, standard, num_draws)
    return reparameterise(q, draws.z), draws.log_weight


def _make(family: Family, dim: int) -> nn.Module:
    module = None if isinstance(family, nn.Module) or not callable(family) else family(dim)
    if not isinstance(module, nn.Module):
        raise TypeError(
            "family must be a function from a dimension to a torch.nn.Module, such as the class MeanFieldNormal "
            f"itself; received {family!r}"
        )
    return module.double()


def _check_family(kind: object, dim: int) -> None:
    if not isinstance(kind, Distribution) or not kind.has_rsample or kind.batch_shape or kind.event_shape != (dim,):
        raise ValueError(
            "family must make a module whose forward() returns a reparameterisable distribution with batch_shape () "
            f"and event_shape ({dim},); received {kind!r}"
        )


def _maximise(
    module: nn.Module, frame: Frame, log_target: LogJoint, noise: Tensor | int, most: int, tolerance: float
) -> tuple[Distribution, float]:
    """The frozen ELBO's maximum over the module's parameters, by L-BFGS, and how many nats that gained.

    ``tolerance``: stop where a step gains fewer nats than this.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    at_start, worst = [math.nan], [1.0]

    def loss(flat: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, np.ndarray[Any, np.dtype[np.float64]]]:
        nn.utils.vector_to_parameters(torch.from_numpy(flat), parameters)
        try:
            bound = _bound(log_target, frame.place(module()), noise)
        except (ValueError, torch.linalg.LinAlgError) as error:  # the latter from a covariance out of reach
            if "log_joint must return" in str(error) or math.isnan(at_start[0]):
                raise
            bound = torch.tensor(-torch.inf)
        if not bound.isfinite():  # a trial step went too far: send the line search back
            return worst[0] * 1e3 + 1e6, np.zeros_like(flat)
        gradient = torch.autograd.grad(bound, parameters)
        if math.isnan(at_start[0]):
            at_start[0] = bound.item()
        lost = at_start[0] - bound.item()  # counted from the start, so that the optimiser's tolerance is in nats
        worst[0] = max(worst[0], lost)
        return lost, -nn.utils.parameters_to_vector(gradient).numpy()

    begin = nn.utils.parameters_to_vector(parameters).detach().numpy().copy()
    options = {"maxiter": most, "maxcor": 30, "ftol": tolerance, "gtol": math.sqrt(tolerance)}
    found = optimize.minimize(loss, begin, jac=True, method="L-BFGS-B", options=options)
    better = np.isfinite(found.x).all() and found.fun < 0
    nn.utils.vector_to_parameters(torch.from_numpy(found.x if better else begin), parameters)
    with torch.no_grad():
        return frame.place(module()), -found.fun if better else 0.0


def _drift(before: Distribution, after: Distribution) -> float:
    """The largest move of a mean, in standard deviations, or of a log standard deviation."""
    with torch.no_grad():
        if is_normal(after):
            means, scales = (before.mean, after.mean), (before.stddev, after.stddev)
        else:
            draws = [reparameterise(q, 2000) for q in (before, after)]
            means, scales = (draws[0].mean(0), draws[1].mean(0)), (draws[0].std(0), draws[1].std(0))
        moved = ((means[1] - means[0]) / scales[1]).abs().max()
        widened = (scales[1] / scales[0]).log().abs().max()
    return max(moved.item(), widened.item())


def _pull(log_target: LogJoint, q: Distribution, seed: int) -> float:
    """How far, in standard deviations, the ELBO's slope would still move a mean of a Normal posterior as wide as q.

    A falling learning rate brings the parameters to rest anywhere; this looks at the slope instead.
    """
    size = max(1024, 2 * q.event_shape[0])
    noise = standardised_noise(size, noise_dim(q), seed) if is_normal(q) else size
    z = reparameterise(q, noise).detach()
    scale = q.stddev if is_normal(q) else z.std(0)
    move = torch.zeros_like(scale, requires_grad=True)
    bound = elbo(weigh(log_target, q, z + scale * move).log_weight)
    return torch.autograd.grad(bound, move)[0].abs().max().item()


def _assess(fits: list[_Fit], log_target: LogJoint, space: Space, started: float, seed: int) -> Posterior:
    """The best fit by fresh draws, with its diagnostics."""
    judged = []
    for fit in fits:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            log_weight = _weigh_draws(log_target, fit.q, NUM_FRESH)[1]
        judged.append((elbo(log_weight).item(), log_weight, fit))
    judged.sort(key=lambda row: -row[0])
    value, log_weight, fit = judged[0]
    sound = bool(log_weight.isfinite().all())
    posterior = Posterior(
        q=fit.q,
        elbo=value,
        elbo_standard_error=log_weight.std().item() / math.sqrt(NUM_FRESH),
        pareto_k=pareto_k(log_weight).item() if sound else math.inf,
        effective_sample_size=effective_sample_size(log_weight).item() / NUM_FRESH if sound else 0.0,
        drift=fit.drift,
        restarts=tuple(row[0] for row in judged),
        restart_distances=tuple(_drift(row[2].q, fit.q) for row in judged),
        seconds=time.perf_counter() - started,
        space=space,
        log_target=log_target,
    )
    if problems := posterior.problems():
        warnings.warn("; ".join(problems), UntrustworthyWarning, stacklevel=3)
    return posterior


def fit_posterior_stochastic(
    log_joint: Callable[..., Tensor],
    latents: Mapping[str, Latent | Any],
    *,
    family: Family = FullRankNormal,
    initial: Mapping[str, Any] | None = None,
    data: Tensor | None = None,
    batch_size: int | None = None,
    num_data: int | None = None,
    num_steps: int = 3000,
    learning_rate: float = 0.02,
    num_samples: int = 16,
    seed: int = 0,
) -> Posterior:
    r"""Fit a variational posterior by stochastic gradients: fresh noise at each step and, on request, minibatches.

    Adam on the sticking-the-landing ELBO, with a learning rate that falls to a hundredth along a cosine. For data that
    do not fit :func:`fit_posterior`; where they do, that is faster and more exact.

    With minibatches ``log_joint(z, batch, scale)`` is called with rows of ``data`` and
    :math:`\text{scale} = N / B`, by which it must multiply the sum of its likelihood terms, and nothing else.

    Args:
        log_joint: As for :func:`fit_posterior`; with ``data``, also of a minibatch and its scale.
        latents: As for :func:`fit_posterior`.
        family: As for :func:`fit_posterior`; the vector is unconstrained, and not whitened.
        initial: As for :func:`fit_posterior`.
        data: Rows to draw minibatches from, shape ``(num_data, ...)``.
        batch_size: B, with ``data``.
        num_data: N, with ``data``: said explicitly, and checked against the number of rows.
        num_steps: How many steps.
        learning_rate: Of Adam, at the start.
        num_samples: How many samples per step.
        seed: For everything random. The global random state is left alone.

    Returns:
        :class:`Posterior`.

    Raises:
        TypeError, ValueError: As for :func:`fit_posterior`, and if ``data``, ``batch_size`` and ``num_data`` are not
            given together or do not fit.
        vi_tutorial.training.DivergedError: If the ELBO diverges.

    Source:
        Kucukelbir, Tran, Ranganath, Gelman & Blei (2017), Automatic Differentiation Variational Inference; Hoffman,
        Blei, Wang & Paisley (2013), Stochastic Variational Inference.

    Example:
        >>> from torch.distributions import constraints
        >>> posterior = fit_posterior_stochastic(
        ...     lambda z: -0.5 * (z["a"] - 1) ** 2, {"a": constraints.real}, num_steps=300, learning_rate=0.1)
        >>> round(posterior.mean()["a"].item(), 1)
        1.0
    """
    started = time.perf_counter()
    given = (data is not None, batch_size is not None, num_data is not None)
    if any(given) and not all(given):
        raise ValueError(
            "data, batch_size and num_data must be given together, or none of them; received "
            f"data {given[0]}, batch_size {batch_size}, num_data {num_data}"
        )
    space = Space(latents)
    start = space.unconstrain(initial or {})
    if data is None:
        rows, whole = torch.zeros(1, 1), unconstrained(log_joint, space)
        examine(log_joint, space, start)

        def target(batch: Tensor) -> LogJoint:
            return whole

    else:
        rows = check_data("data", data)
        if len(rows) != num_data:
            raise ValueError(f"num_data must be the number of rows of data, {len(rows)}; received {num_data}")
        check_count("batch_size", batch_size)

        def complete(z: Values) -> Tensor:
            return log_joint(z, rows, 1.0)

        whole = unconstrained(complete, space)
        examine(complete, space, start)

        def target(batch: Tensor) -> LogJoint:
            return unconstrained(lambda z: log_joint(z, batch, len(rows) / len(batch)), space)

    module = _make(family, space.dim)
    _check_family(module(), space.dim)
    frame = Frame(start, torch.ones_like(start))
    # A short memory of squared gradients: the first ones are larger than all that follow by orders of magnitude.
    optimiser = torch.optim.Adam(module.parameters(), lr=learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, num_steps, eta_min=learning_rate / 100)
    halfway: list[Distribution] = []

    def after(step: int) -> None:
        schedule.step()
        if step == math.ceil(0.8 * num_steps):
            with torch.no_grad():
                halfway.append(frame.place(module()))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        training.fit(
            lambda batch: elbo_sticking_the_landing(target(batch), frame.place(module()), num_samples),
            optimiser,
            rows,
            num_steps=num_steps,
            batch_size=batch_size,
            callback=after,
        )
    with torch.no_grad():
        q = frame.place(module())
    drift = max(_drift(halfway[0], q), _pull(whole, q, seed))
    return _assess([_Fit(q, drift)], whole, space, started, seed)
