"""What a fit found, how far to trust it, and a report of both in words."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal

from vi_tutorial._validation import check_count, check_distribution
from vi_tutorial.distributions import diagonal_normal, full_normal
from vi_tutorial.elbo import LogJoint, draw, elbo
from vi_tutorial.evaluation import effective_sample_size, pareto_k
from vi_tutorial.frozen import is_normal, noise_dim, reparameterise, standardised_noise
from vi_tutorial.latents import Space, Values

__all__ = [
    "Fit",
    "Posterior",
    "UntrustworthyWarning",
    "WeightedSample",
    "assess",
    "drift_between",
    "linear_response",
    "pareto_k_threshold",
    "weigh_draws",
]

NUM_FRESH = 4000
"""How many fresh draws the reported ELBO and k̂ come from."""
RUN_AWAY = 10.0
"""A standard error of the ELBO, in nats, that no fit has which found a posterior."""
ELSEWHERE = 0.5
"""A start that ended farther from the best one, in posterior standard deviations, has found another optimum."""
EQUAL_WEIGHTS = 0.95
"""Weights worth this share of their number are so nearly equal that the shape of their tail, k̂, says nothing."""


class UntrustworthyWarning(UserWarning):
    """The fit's own diagnostics speak against it.

    Example:
        >>> issubclass(UntrustworthyWarning, UserWarning)
        True
    """


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
        >>> from vi_tutorial.inference import fit_posterior
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
            u, log_weight = weigh_draws(self.log_target, self.q, num_samples)
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
        if self.drift > 0.1:
            found.append(
                f"the parameters still moved by {self.drift:.2f} posterior standard deviations in the last stage: the "
                "ELBO may look flat, but the fit has not settled"
            )
        if self.pareto_k > threshold and self.effective_sample_size < EQUAL_WEIGHTS:
            found.append(
                f"k̂ = {self.pareto_k:.2f} is above {threshold:.2f}: q misses a tail of the posterior, so importance "
                "weights, and possibly means and standard deviations, are off. Try a richer family, another "
                "parameterisation, or weights from a proposal with longer tails than q"
            )
        elsewhere = sum(distance > ELSEWHERE for distance in self.restart_distances)
        if elsewhere:
            lowest, highest = f"{self.restarts[-1]:.2f}", f"{self.restarts[0]:.2f}"
            alike = lowest == highest
            elbos = f"all with an ELBO of {highest} nats" if alike else f"with ELBOs from {lowest} to {highest} nats"
            found.append(
                f"{elsewhere} of {len(self.restarts)} starts ended elsewhere, up to {max(self.restart_distances):.1f} "
                f"posterior standard deviations away, {elbos}: there are several optima, q describes one of them, and "
                "the best one seen may not be the best there is"
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


def linear_response(posterior: Posterior, num_draws: int = 1024) -> Values:
    r"""Standard deviations of the named latents that a mean-field fit has no room for, from how its means respond.

    .. math:: \operatorname{Cov}(z) \approx J (-H)^{-1} J^\top, \qquad
              J = \frac{\partial \, \mathbb{E}_{q_\phi}[z]}{\partial \phi}, \quad H = \nabla^2_\phi \mathcal{L}

    A posterior's covariance is how its means move when the log joint is tilted a little by :math:`t^\top z`. A fit's
    means move too, and where they are right as the tilt changes, so are these. Exact for a Normal posterior; both sides
    over frozen, standardised noise.

    Args:
        posterior: A fit with :class:`vi_tutorial.families.MeanFieldNormal`.
        num_draws: How many frozen draws, even, at least twice the dimension.

    Returns:
        By name, in the latents' own units, as :meth:`Posterior.stddev`.

    Raises:
        TypeError: If ``posterior`` is no :class:`Posterior`.
        ValueError: If its q is not mean-field, or not at a maximum of the ELBO.

    Source:
        Giordano, Broderick & Jordan (2018), Covariances, Robustness, and Variational Bayes, JMLR 19(51).

    Example:
        >>> from torch.distributions import constraints
        >>> from vi_tutorial.families import MeanFieldNormal
        >>> from vi_tutorial.inference import fit_posterior
        >>> latents = {"a": constraints.real, "b": constraints.real}  # correlated at 0.6, each of variance 1
        >>> fit = fit_posterior(
        ...     lambda z: -(z["a"] ** 2 - 1.2 * z["a"] * z["b"] + z["b"] ** 2) / 1.28, latents, family=MeanFieldNormal)
        >>> round(fit.stddev()["a"].item(), 4), round(linear_response(fit)["a"].item(), 4)
        (0.8, 1.0)
    """
    if not isinstance(posterior, Posterior):
        raise TypeError(f"posterior must be a Posterior; received {type(posterior).__name__}")
    q, space = posterior.q, posterior.space
    if not isinstance(q, Independent):
        raise ValueError(f"posterior must have a mean-field q, such as MeanFieldNormal; received {type(q).__name__}")
    noise = standardised_noise(num_draws, space.dim)

    def at(phi: Tensor) -> Distribution:
        loc, log_scale = phi.chunk(2)
        return diagonal_normal(loc, log_scale.exp())

    def bound(phi: Tensor) -> Tensor:
        return elbo(posterior.log_target(reparameterise(at(phi), noise))) + at(phi).entropy()

    def means(phi: Tensor) -> Tensor:
        z = space.constrain(reparameterise(at(phi), noise))
        return torch.cat([value.mean(0).reshape(-1) for value in z.values()])

    phi = torch.cat([q.mean, q.stddev.log()]).detach()
    jacobian = torch.autograd.functional.jacobian(means, phi)
    factor, failed = torch.linalg.cholesky_ex(-torch.autograd.functional.hessian(bound, phi))
    if failed:
        raise ValueError(
            "posterior must be at a maximum of the ELBO; received one whose Hessian is not negative definite"
        )
    variance = torch.linalg.solve_triangular(factor, jacobian.mT, upper=False).square().sum(0)
    shapes = [value.shape[1:] for value in space.constrain(q.mean[None]).values()]
    parts = variance.sqrt().split([math.prod(shape) for shape in shapes])
    return {name: part.reshape(shape) for name, part, shape in zip(space.latents, parts, shapes, strict=True)}


class Fit(NamedTuple):
    """What one start led to.

    Attributes:
        q: Over the unconstrained vector.
        drift: As in :class:`Posterior`.

    Example:
        >>> Fit(diagonal_normal(torch.zeros(1), torch.ones(1)), drift=0.0).drift
        0.0
    """

    q: Distribution
    drift: float


def assess(fits: list[Fit], log_target: LogJoint, space: Space, started: float, seed: int) -> Posterior:
    """The best of some fits by fresh draws, with its diagnostics.

    Args:
        fits: At least one.
        log_target: Of the unconstrained vector, nats.
        space: The latents.
        started: When the fitting began, by ``time.perf_counter()``.
        seed: For the fresh draws. The global random state is left alone.

    Returns:
        :class:`Posterior`.

    Warns:
        UntrustworthyWarning: If k̂, the drift or the restarts speak against the fit.

    Example:
        >>> from torch.distributions import constraints
        >>> q = diagonal_normal(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
        >>> posterior = assess([Fit(q, 0.0)], q.log_prob, Space({"a": constraints.real}), time.perf_counter(), seed=0)
        >>> round(posterior.elbo, 6), round(posterior.effective_sample_size, 6)
        (0.0, 1.0)
    """
    judged = []
    for fit in fits:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            log_weight = weigh_draws(log_target, fit.q, NUM_FRESH)[1]
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
        restart_distances=tuple(drift_between(row[2].q, fit.q) for row in judged),
        seconds=time.perf_counter() - started,
        space=space,
        log_target=log_target,
    )
    if problems := posterior.problems():
        warnings.warn("; ".join(problems), UntrustworthyWarning, stacklevel=3)
    return posterior


def weigh_draws(log_target: LogJoint, q: Distribution, num_draws: int) -> tuple[Tensor, Tensor]:
    """Fresh draws and their log weights; of a correlated Normal where it is standard, to keep the digits of log q.

    Args:
        log_target: Of the unconstrained vector, nats.
        q: A distribution with ``batch_shape`` ``()`` and ``event_shape`` ``(dim,)``.
        num_draws: How many.

    Returns:
        The draws, ``(num_draws, dim)``, and log weights, ``(num_draws,)``, in nats.

    Raises:
        TypeError, ValueError: If q is no distribution, or ``num_draws`` no ``int`` of at least 1.

    Example:
        >>> q = full_normal(torch.zeros(2), torch.tensor([[1.0, 0.0], [3.0, 1.0]]))
        >>> u, log_weight = weigh_draws(lambda u: q.log_prob(u) + 5, q, 3)
        >>> log_weight.round(decimals=3)
        tensor([5., 5., 5.])
    """
    check_distribution("q", q)
    check_count("num_draws", num_draws)
    if isinstance(q, LowRankMultivariateNormal):
        q = full_normal(q.loc, torch.linalg.cholesky(q.covariance_matrix))
    if not isinstance(q, MultivariateNormal):
        draws = draw(log_target, q, num_draws)
        return draws.z, draws.log_weight
    log_volume = q.scale_tril.diagonal().log().sum()
    standard = diagonal_normal(torch.zeros_like(q.loc), torch.ones_like(q.loc))
    draws = draw(lambda v: log_target(reparameterise(q, v)) + log_volume, standard, num_draws)
    return reparameterise(q, draws.z), draws.log_weight


def drift_between(before: Distribution, after: Distribution) -> float:
    """The largest move of a mean, in standard deviations, or of a log standard deviation.

    Args:
        before: A distribution with ``event_shape`` ``(dim,)``.
        after: Another; its standard deviations are the measure.

    Returns:
        A number of at least 0.

    Raises:
        TypeError: If one is no distribution.

    Example:
        >>> one, two = (diagonal_normal(torch.tensor([0.0]), torch.tensor([sd])) for sd in (1.0, 2.0))
        >>> round(drift_between(one, two), 4)  # log 2
        0.6931
    """
    check_distribution("before", before)
    check_distribution("after", after)
    with torch.no_grad():
        if is_normal(after):
            means, scales = (before.mean, after.mean), (before.stddev, after.stddev)
        else:
            draws = [reparameterise(q, 2000) for q in (before, after)]
            means, scales = (draws[0].mean(0), draws[1].mean(0)), (draws[0].std(0), draws[1].std(0))
        moved = ((means[1] - means[0]) / scales[1]).abs().max()
        widened = (scales[1] / scales[0]).log().abs().max()
    return max(moved.item(), widened.item())
