"""One optimisation loop for every chapter: it raises an objective, and knows no ELBO."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from vi_tutorial._validation import NotFiniteError, check_count, check_data

__all__ = ["DivergedError", "History", "fit", "frozen"]

Objective = Callable[[Tensor], Tensor]

COLLAPSE = 1e6
"""A mean bound this many times its first size below its first value counts as divergence."""


class DivergedError(RuntimeError):
    """Training met a NaN, an infinity or a collapse. The last good parameters are back in place.

    Attributes:
        step: At which step, from 0.
        datapoints: Which rows of the data are to blame, as far as it can be told; the first few.
        history: What came before.

    Example:
        >>> DivergedError("log_joint is NaN", 7, [3], History()).step
        7
    """

    def __init__(self, reason: str, step: int, datapoints: list[int], history: History) -> None:
        self.step = step
        self.datapoints = datapoints
        self.history = history
        where = f", datapoint(s) {', '.join(map(str, datapoints))}" if datapoints else ""
        super().__init__(
            f"training diverged at step {step}{where}: {reason}. The last good parameters are back in place; "
            "a smaller learning rate, or a look at those datapoints, is the usual way on"
        )


@dataclass
class History:
    """What happened: ``plots.history`` draws it.

    Attributes:
        bound: The objective's mean over the minibatch at each step, before the step, in nats.
        validation: Pairs of a number of steps and the mean validation objective after them.
        seconds: How long it took.
        stopped_early: Whether patience ran out.

    Example:
        >>> History().bound
        []
    """

    bound: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    stopped_early: bool = False


def fit(
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    data: Tensor,
    *,
    num_steps: int,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    validate: Callable[[], Tensor] | None = None,
    validate_every: int = 100,
    patience: int | None = None,
    callback: Callable[[int], object] | None = None,
) -> History:
    r"""Maximise the mean of an objective over data.

    .. math:: \max_{\phi, \theta} \; \mathbb{E}_{p_D(x)}[\mathcal{L}(x; \theta, \phi)]

    The minus sign that turns a bound into a loss stands here and nowhere else.

    Args:
        objective: From a minibatch ``(B, ...)`` to one number per datapoint, ``(B,)``, larger is better; or to
            a single number ``()`` when the whole of ``data`` is one datapoint, as with one latent for all.
        optimiser: Any of ``torch.optim`` over the parameters to learn; :func:`frozen` holds some of them still.
            L-BFGS evaluates the objective several times a step, so give it one
            without fresh noise.
        data: Shape ``(N, ...)``.
        num_steps: How many steps, at least 1.
        batch_size: Rows per step, in a fresh random order each epoch; all of them, in order, if not given.
        generator: Source of that order; torch's global one if not given.
        validate: Returns held-out values of the objective, one per datapoint; called without gradient.
        validate_every: After how many steps each.
        patience: Stop after so many validations without a new best, and go back to the best parameters.
        callback: Called after each step with the number of steps done.

    Returns:
        :class:`History`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range, if the objective returns another shape, or if nothing is to
            be learned.
        DivergedError: At a NaN, an infinity or a collapse in the objective or its gradient. Says what, at which
            step, for which datapoints, and puts the last good parameters back.

    Example:
        >>> level = torch.nn.Parameter(torch.tensor(0.0))
        >>> data = torch.tensor([1.0, 3.0])
        >>> history = fit(lambda x: -((x - level) ** 2), torch.optim.SGD([level], lr=0.5), data, num_steps=1)
        >>> level.item(), history.bound
        (2.0, [-5.0])
    """
    check_data("data", data)
    if data.ndim == 0:
        raise ValueError("data must have shape (N, ...); received shape ()")
    check_count("num_steps", num_steps)
    check_count("validate_every", validate_every)
    if patience is not None:
        check_count("patience", patience)
        if validate is None:
            raise ValueError("patience needs validate, the held-out objective; received validate=None")
    parameters = [p for group in optimiser.param_groups for p in group["params"] if p.requires_grad]
    if not parameters:
        raise ValueError("optimiser must hold a parameter to learn; received none with requires_grad")
    history = History()
    good = [p.detach().clone() for p in parameters]
    best, best_value, waited = good, -math.inf, 0
    started = time.perf_counter()
    steps = tqdm(range(num_steps), disable=os.environ.get("VI_TUTORIAL_PROGRESS") == "off")
    for step, rows in zip(steps, _minibatches(len(data), batch_size, generator), strict=False):
        batch = data if batch_size is None else data[rows]
        evaluate = _Evaluation(objective, optimiser, batch, parameters, good, history)
        try:
            optimiser.step(evaluate)
            # Each evaluation looks at what the step before it left; after the last step nobody else would.
            if step + 1 == num_steps and not all(bool(p.isfinite().all()) for p in parameters):
                raise _BadValueError("a parameter is not finite after the last step")
        except _BadValueError as bad:
            blamed = _blame(objective, data, rows, parameters)
            _restore(parameters, good)
            history.seconds = time.perf_counter() - started
            raise DivergedError(str(bad), step, blamed, history) from bad
        if callback is not None:
            callback(step + 1)
        if validate is not None and (step + 1) % validate_every == 0:
            with torch.no_grad():
                value = validate().mean().item()
            history.validation.append((step + 1, value))
            if value > best_value:
                best, best_value, waited = [p.detach().clone() for p in parameters], value, 0
            else:
                waited += 1
            if patience is not None and waited >= patience:
                history.stopped_early = True
                _restore(parameters, best)
                break
        if step % 50 == 0:
            steps.set_postfix(bound=f"{history.bound[-1]:.4g}", refresh=False)
    steps.close()
    history.seconds = time.perf_counter() - started
    return history


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    r"""Hold θ, φ, or any other modules' parameters still for as long as the block lasts.

    Inside it their ``requires_grad`` is off: :func:`fit` and :func:`vi_tutorial.em.m_step` leave them alone, while
    gradients still flow through them to what comes before. After it, also after an error, each parameter's switch is
    back where it was.

    Args:
        *modules: At least one.

    Raises:
        TypeError: If an argument is not a ``torch.nn.Module``.
        ValueError: If there is none.

    Example:
        >>> decoder = torch.nn.Linear(1, 1)
        >>> with frozen(decoder):
        ...     decoder.weight.requires_grad
        False
        >>> decoder.weight.requires_grad
        True
    """
    if not modules:
        raise ValueError("modules must name at least one module to freeze; received none")
    for module in modules:
        if not isinstance(module, nn.Module):
            raise TypeError(f"modules must be torch.nn.Module; received {type(module).__name__}")
    learnable = [p for module in modules for p in module.parameters() if p.requires_grad]
    try:
        for parameter in learnable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learnable:
            parameter.requires_grad_(True)


class _BadValueError(Exception):
    """What is wrong with the objective or its gradient, in words."""


class _Evaluation:
    """The optimiser's closure for one step: the loss with its gradient, or a :class:`_BadValueError`.

    The first evaluation is at the parameters the step starts from. If it is sound they are the last good ones.
    """

    def __init__(
        self,
        objective: Objective,
        optimiser: torch.optim.Optimizer,
        batch: Tensor,
        parameters: list[Tensor],
        good: list[Tensor],
        history: History,
    ) -> None:
        self.objective = objective
        self.optimiser = optimiser
        self.batch = batch
        self.parameters = parameters
        self.good = good
        self.history = history
        self.first = True

    def __call__(self) -> float:
        with torch.enable_grad():
            self.optimiser.zero_grad()
            bound = self._bound()
            if bound.shape not in ((), self.batch.shape[:1]):
                raise ValueError(
                    f"objective must return one number per datapoint, shape ({len(self.batch)},), or a single "
                    f"one, shape (); received {tuple(bound.shape)}"
                )
            loss = -bound.mean()
        value = -loss.item()
        if not math.isfinite(value):
            raise _BadValueError(f"the objective is {value}")
        if self.history.bound and value < self.history.bound[0] - COLLAPSE * (1 + abs(self.history.bound[0])):
            raise _BadValueError(f"the objective has collapsed from {self.history.bound[0]:.4g} to {value:.4g}")
        if loss.requires_grad:
            loss.backward()
        if all(p.grad is None for p in self.parameters):
            raise ValueError("objective must depend on a parameter that optimiser holds; received one without gradient")
        if not all(p.grad is None or bool(p.grad.isfinite().all()) for p in self.parameters):
            raise _BadValueError("the gradient is not finite")
        if self.first:
            self.history.bound.append(value)
            for kept, parameter in zip(self.good, self.parameters, strict=True):
                kept.copy_(parameter.detach())
            self.first = False
        return loss.item()

    def _bound(self) -> Tensor:
        try:
            bound = self.objective(self.batch)
        except ValueError as error:
            # Bad parameters are refused, by name, by whoever meets them first. Before the first step nothing
            # can have gone bad yet: then it is the caller's mistake.
            if self.history.bound or isinstance(error, NotFiniteError):
                raise _BadValueError(str(error).splitlines()[0]) from error
            raise
        if not isinstance(bound, Tensor):
            raise TypeError(f"objective must return a torch.Tensor; received {type(bound).__name__}")
        return bound


def _blame(objective: Objective, data: Tensor, rows: Tensor, parameters: list[Tensor], most: int = 5) -> list[int]:
    """The first few rows whose own objective or gradient is bad.

    Nothing where the datapoints cannot be taken one at a time, or where all are bad: then it is the parameters.
    """
    blamed: list[int] = []
    for count, row in enumerate(rows.tolist(), start=1):
        try:
            with torch.enable_grad():
                bound = objective(data[row : row + 1])
                if bound.ndim == 0:
                    return []
                numbers = [bound]
                if bound.requires_grad:
                    numbers += [
                        g for g in torch.autograd.grad(bound.sum(), parameters, allow_unused=True) if g is not None
                    ]
            bad = not all(bool(value.isfinite().all()) for value in numbers)
        except ValueError:
            bad = True
        if bad:
            blamed.append(row)
        if most <= len(blamed) < count:
            break
    return [] if len(blamed) == len(rows) > 1 else blamed[:most]


def _restore(parameters: list[Tensor], values: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _minibatches(num_data: int, batch_size: int | None, generator: torch.Generator | None) -> Iterator[Tensor]:
    """Row numbers without end: epoch after epoch, each row once an epoch."""
    if batch_size is None:
        batch_size = num_data
    if not 1 <= check_count("batch_size", batch_size) <= num_data:
        raise ValueError(f"batch_size must be at most the number of rows {num_data}; received {batch_size}")
    everything = torch.arange(num_data)
    while True:
        order = everything if batch_size == num_data else torch.randperm(num_data, generator=generator)
        yield from order.split(batch_size)
