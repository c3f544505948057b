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
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy import optimize
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal

from vi_tutorial import training
from vi_tutorial._climb import climb, look_around, one_thread, other_starts
from vi_tutorial._validation import check_count, check_data
from vi_tutorial.distributions import full_normal
from vi_tutorial.elbo import LogJoint, elbo, elbo_sticking_the_landing, weigh
from vi_tutorial.families import FullRankNormal
from vi_tutorial.frozen import Frame, is_normal, noise_dim, reparameterise, standardised_noise
from vi_tutorial.latents import Latent, Space, Values, examine, unconstrained
from vi_tutorial.posterior import Fit, Posterior, UntrustworthyWarning, assess, drift_between

__all__ = [
    "Latent",
    "Posterior",
    "UntrustworthyWarning",
    "fit_posterior",
    "fit_posterior_stochastic",
    "laplace",
]

Family = Callable[[int], nn.Module]

ROUNDS = 10
"""How many short runs with few draws there are at most before the stages with more."""
PATIENCE = 10
"""The climb to the mode is broken off when so many places have not raised the ELBO."""
STAGES, GROWTH = 5, 4
"""How many stages follow at most, and how many times the draws of the one before each of them has."""
SETTLED = 0.015
"""The next stage, with more draws, follows while a parameter may still be off by more standard deviations than this."""
NEGLIGIBLE = 1e-3
"""And while that may still cost more nats than this."""


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
    with one_thread():
        examine(log_joint, space, start)
        log_target = unconstrained(log_joint, space)
        is_given = space.mask(initial or {})
        starts = [start, *look_around(log_target, start, is_given, seed)]
        fits = [_fit_frozen(log_target, space, starts, family, num_draws, seed)]
        for index, place in enumerate(other_starts(log_target, fits[0].q, start, num_restarts - 1, seed), start=1):
            # By turns from afar and from nearby; where the user has given the start, from nearby only.
            starts = look_around(log_target, start, is_given, seed + index) if index % 2 else []
            fits.append(_fit_frozen(log_target, space, starts or [place], family, num_draws, seed))
        return assess(fits, log_target, space, started, seed)


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
    *_, last = climb(log_target, start)
    if not last.is_mode:
        raise ValueError("log_joint must have a mode with negative definite curvature; none was found from the start")
    q = full_normal(last.at, torch.linalg.cholesky(last.covariance))
    return assess([Fit(q, 0.0)], log_target, space, started, seed)


def _fit_frozen(
    log_target: LogJoint, space: Space, starts: list[Tensor], family: Family, num_draws: int | None, seed: int
) -> Fit:
    dim = space.dim
    kind = _make(family, dim)()
    _check_family(kind, dim)
    normal = is_normal(kind)
    least = 2 * noise_dim(kind) if normal else 1
    num_draws = max(64, 2 * least) if num_draws is None else check_count("num_draws", num_draws, minimum=least)

    frame, module = _first_frame(log_target, space, starts, family, num_draws), _make(family, dim)

    def ascend(size: int, stage: int, most: int, tolerance: float) -> tuple[Distribution, float]:
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
        q, gain = ascend(num_draws, 0, 50, 1e-4)
        if gain < 0.1:
            break
    drift, size = math.inf, num_draws
    for stage in range(1, STAGES + 1):
        earlier, size = q, GROWTH * size
        q, gain = ascend(size, stage, 1000, 1e-9)
        drift = drift_between(earlier, q)
        # The error that the earlier draws caused, and the nats it cost, less what so many more draws leave of them.
        if drift < SETTLED * math.sqrt(GROWTH) or gain < NEGLIGIBLE * GROWTH:
            break
    return Fit(q, drift)


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
        for at, covariance, _ in climb(log_target, start):
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
    drift = max(drift_between(halfway[0], q), _pull(whole, q, seed))
    return assess([Fit(q, drift)], whole, space, started, seed)
