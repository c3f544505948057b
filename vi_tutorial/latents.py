"""Named latents with constraints, as one unconstrained vector: the map, its Jacobian, and what can be wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from vi_tutorial.elbo import LogJoint

__all__ = ["Latent", "Space", "examine", "unconstrained"]

Values = dict[str, Tensor]
"""Latents by name, each ``(num_samples, *shape)``."""
NUM_TRIALS = 7
"""A number of samples that a data set rarely has: what broadcasts by accident then shows."""


class Latent(NamedTuple):
    """Which values a latent may take, and its shape.

    Attributes:
        constraint: One of ``torch.distributions.constraints``.
        shape: Shape of one value; ``()`` for a number.

    Example:
        >>> Latent(constraints.positive)
        Latent(constraint=GreaterThan(lower_bound=0.0), shape=())
    """

    constraint: Any = constraints.real
    shape: tuple[int, ...] = ()


class Space:
    """The map between named latents and one unconstrained vector, with its log Jacobian.

    Args:
        latents: For each name a constraint of ``torch.distributions.constraints``, or a :class:`Latent`.

    Raises:
        TypeError: If ``latents`` is no mapping, a value is no constraint, or a shape no tuple.
        ValueError: If there is no latent, or one has no bijection to the real line.

    Example:
        >>> space = Space({"a": constraints.real, "scale": constraints.positive})
        >>> space.constrain(torch.zeros(1, 2))
        {'a': tensor([0.]), 'scale': tensor([1.])}
    """

    def __init__(self, latents: Mapping[str, Latent | Any]) -> None:
        if not isinstance(latents, Mapping):
            raise TypeError(
                "latents must be a dictionary from names to constraints, such as {'scale': constraints.positive}; "
                f"received {type(latents).__name__}"
            )
        if not latents:
            raise ValueError("latents must name at least one latent; received none")
        self.latents = {n: v if isinstance(v, Latent) else Latent(v) for n, v in latents.items()}
        self.transforms, self.sizes = {}, {}
        for name, (constraint, shape) in self.latents.items():
            if not isinstance(constraint, constraints.Constraint):
                raise TypeError(
                    f"latents[{name!r}] must be a torch.distributions constraint or a Latent; received {constraint!r}"
                )
            if not isinstance(shape, tuple) or not all(isinstance(size, int) and size > 0 for size in shape):
                raise TypeError(
                    f"the shape of latents[{name!r}] must be a tuple such as () or (8,); received {shape!r}"
                )
            try:
                self.transforms[name] = biject_to(constraint)
            except NotImplementedError:
                raise ValueError(
                    f"latents[{name!r}] must be continuous, with a bijection to the real line; received {constraint}"
                ) from None
            self.sizes[name] = math.prod(self.transforms[name].inverse_shape(torch.Size(shape)))
        self.dim = sum(self.sizes.values())

    def parts(self, u: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Each latent's share of the vector, in the shape its transform takes."""
        for name, part in zip(self.sizes, u.split(list(self.sizes.values()), -1), strict=True):
            shape = self.transforms[name].inverse_shape(torch.Size(self.latents[name].shape))
            yield name, part.reshape(*u.shape[:-1], *shape)

    def constrain(self, u: Tensor) -> Values:
        """The latents at ``u``, shape ``(num_samples, dim)``."""
        return {name: self.transforms[name](part) for name, part in self.parts(u)}

    def log_jacobian(self, u: Tensor, z: Values) -> Tensor:
        """``log |dz/du|``, one number per sample."""
        total = u.new_zeros(u.shape[:-1])
        for name, part in self.parts(u):
            total = total + self.transforms[name].log_abs_det_jacobian(part, z[name]).reshape(len(u), -1).sum(-1)
        return total

    def mask(self, names: Iterable[str]) -> Tensor:
        """Which coordinates of the vector belong to these latents, shape ``(dim,)``, bool."""
        chosen = set(names)
        return torch.cat([torch.full((size,), name in chosen) for name, size in self.sizes.items()])

    def unconstrain(self, values: Mapping[str, Any]) -> Tensor:
        """The vector of a start: zeros, but for the latents that are given."""
        for name in values:
            if name not in self.latents:
                raise ValueError(f"initial must name latents among {list(self.latents)}; received {name!r}")
        parts = []
        for name, (constraint, shape) in self.latents.items():
            if name not in values:
                parts.append(torch.zeros(self.sizes[name], dtype=torch.float64))
                continue
            value = torch.as_tensor(values[name], dtype=torch.float64)
            if value.shape != torch.Size(shape):
                raise ValueError(f"initial[{name!r}] must have shape {tuple(shape)}; received {tuple(value.shape)}")
            inside = bool(constraint.check(value).all())
            u = self.transforms[name].inv(value) if inside else torch.tensor(torch.nan)
            if not u.isfinite().all():
                raise ValueError(f"initial[{name!r}] must lie inside {constraint}; received {value.tolist()}")
            parts.append(u.reshape(-1))
        return torch.cat(parts)


def unconstrained(log_joint: Callable[[Values], Tensor], space: Space) -> LogJoint:
    r"""The log joint of the unconstrained vector u: the user's, plus the log Jacobian.

    .. math:: \log p(x, u) = \log p(x, z(u)) + \log \left| \frac{dz}{du} \right|

    Args:
        log_joint: From named latents, each with the samples first, to one number per sample, in nats.
        space: The map from u to the latents.

    Returns:
        A function from ``(num_samples, dim)`` to ``(num_samples,)``, in nats. It raises ``ValueError`` where
        ``log_joint`` fails, with its error in words that lead to the mend, or does not return one number per sample.

    Raises:
        TypeError: If ``log_joint`` cannot be called.

    Example:
        >>> space = Space({"scale": constraints.positive})
        >>> unconstrained(lambda z: -z["scale"], space)(torch.zeros(1, 1))  # at u = 0: −1 + log e⁰
        tensor([-1.])
    """

    if not callable(log_joint):
        raise TypeError(f"log_joint must be callable; received {type(log_joint).__name__}")

    def log_target(u: Tensor) -> Tensor:
        z = space.constrain(u)
        try:
            value = log_joint(z)
        except (KeyError, ValueError, RuntimeError, IndexError, TypeError, AttributeError) as error:
            raise _explained(error, space, z) from error
        if not isinstance(value, Tensor) or value.shape != u.shape[:1]:
            received = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"log_joint must return one number per sample, shape ({len(u)},); received {received}. Each latent "
                "comes with the samples as its first dimension: sum over data and over the latents' own dimensions, "
                "with .sum(-1), never over samples"
            )
        return value + space.log_jacobian(u, z)

    return log_target


def _explained(error: Exception, space: Space, z: Values) -> ValueError:
    """What stopped a user's log joint, in words that lead to the mend."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, KeyError):
        return ValueError(f"log_joint asks for {text}, which latents does not name; received latents {list(z)}")
    if text.startswith("Expected "):  # torch's own words on a parameter or a value outside its support
        shown = {name: str(latent.constraint) for name, latent in space.latents.items()}
        return ValueError(
            f"log_joint refuses values that the constraints {shown} allow: {text} Give each latent the constraint of "
            "its support, such as constraints.positive for a scale. If it is the data that are refused, look there: "
            "NaN, a value that is no count, another type"
        )
    shapes = {name: tuple(value.shape) for name, value in z.items()}
    return ValueError(
        f"log_joint cannot be computed: {text}. It received float64 tensors of shapes {shapes}, samples first (in the "
        f"trial, {NUM_TRIALS} of them): write z['a'][:, None] where a number meets a row of data, z['b'] @ design.mT "
        "where a vector meets a design matrix, torch's functions for NumPy's and math's, and give the data as float64 "
        "tensors"
    )


def examine(log_joint: Callable[[Values], Tensor], space: Space, start: Tensor) -> None:
    """Try a log joint around the start, and say what is wrong with it before anything is fitted.

    Args:
        log_joint: As for :func:`unconstrained`.
        space: As for :func:`unconstrained`.
        start: An unconstrained vector, shape ``(dim,)``.

    Raises:
        ValueError: If ``log_joint`` cannot be computed, asks for a latent that is not there, returns another shape,
            refuses values that the constraints allow, is not finite, mixes samples, or ignores a latent.

    Example:
        >>> space = Space({"a": constraints.real, "b": constraints.real})
        >>> examine(lambda z: -z["a"] ** 2 - z["b"] ** 2, space, torch.zeros(2))
    """
    generator = torch.Generator().manual_seed(0)
    u = start + 0.1 * torch.randn(NUM_TRIALS, space.dim, dtype=torch.float64, generator=generator)
    u[0] = start
    u.requires_grad_(True)
    log_target = unconstrained(log_joint, space)
    value = log_target(u)
    z = {name: v[:1].tolist() for name, v in space.constrain(u.detach()).items()}
    if torch.isnan(value).any() or value.isinf().any():
        raise ValueError(
            f"log_joint must be finite near the start; received {value.tolist()} around {z}. Is each latent's "
            "constraint the support of its density, such as constraints.unit_interval for a probability? If so, pass "
            "initial={...}, a point of positive density"
        )
    singly = torch.cat([log_target(row[None]) for row in u])
    if not torch.allclose(singly, value, rtol=1e-6, atol=1e-6):
        raise ValueError(
            "log_joint must treat samples separately: one sample alone gives another number than among others. Look "
            "for shapes that broadcast by accident, such as (S,) against (S, N): write z['a'][:, None]"
        )
    jacobian = space.log_jacobian(u, space.constrain(u))
    attached = value.requires_grad and (value - jacobian).requires_grad
    (gradient,) = torch.autograd.grad((value - jacobian).sum(), u, allow_unused=True) if attached else (None,)
    gradient = torch.zeros_like(u) if gradient is None else gradient
    for name, part in space.parts(gradient):
        if not part.any():
            raise ValueError(
                f"log_joint must depend on every latent; received one that ignores {name!r}: is its prior or its use "
                "in the likelihood missing, or is it detached?"
            )
