"""Verified derivations: each claim meets an independent oracle, and a wrong formula would fail.

A derivation is *verified* when two computations that share no code agree, and a wrong formula would
not have: every check is given at least one wrong answer and fails unless its own tolerance
rejects it, so a check that cannot fail cannot be written. There is one function per kind of proof,
strongest first: :func:`exact`, :func:`quadrature`, :func:`enumeration`, :func:`independent`,
:func:`monte_carlo`, :func:`inequality`. Each shows one line that is the same on every machine. Its record
travels in the output's metadata, from which the report and the index of verified derivations are made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vi_tutorial._validation import check_positive

__all__ = [
    "CheckFailedError",
    "enumeration",
    "exact",
    "independent",
    "inequality",
    "monte_carlo",
    "publish",
    "quadrature",
]

Array = NDArray[np.float64]
STANDARD_ERRORS = 4.0
"""Monte Carlo agreement: the mean lies within this many standard errors."""


class CheckFailedError(AssertionError):
    """A derivation was not verified, or a checker found what it looks for."""


def exact(
    claim: str,
    statement: str,
    value: ArrayLike | Tensor,
    oracle: ArrayLike | Tensor,
    *,
    wrong: Mapping[str, ArrayLike | Tensor],
    tolerance: float = 1e-10,
) -> None:
    r"""Verify a value against a closed form, in float64.

    Passes when :math:`|v - o| \le \text{tolerance} \cdot \max(1, |o|)` for every element, and this rule
    rejects every wrong answer.

    Args:
        claim: The claim's number, such as ``"01.2"`` or ``"06.3a"``.
        statement: The claim in a line.
        value: What is claimed.
        oracle: The same by a computation that shares no code with it, of the same shape.
        wrong: For at least one likely mistake, its name and the value it would have given.
        tolerance: Relative for oracles above one, absolute below.

    Raises:
        CheckFailedError: If the values differ, or if a wrong answer would have passed. Says both values,
            their difference and the tolerance.
        ValueError: If the claim's number is malformed, ``wrong`` is empty, the oracle or a wrong answer is
            not finite, or shapes differ.

    Example:
        >>> exact("01.9", "1 + 1 = 2", 1 + 1, 2.0, wrong={"dropped a term": 1.0})
        ✓ 01.9  1 + 1 = 2  [exact, 1e-10; rejects: dropped a term]
    """
    _verify("exact", claim, statement, value, oracle, wrong, tolerance)


def quadrature(
    claim: str,
    statement: str,
    value: ArrayLike | Tensor,
    oracle: ArrayLike | Tensor,
    *,
    wrong: Mapping[str, ArrayLike | Tensor],
    tolerance: float = 1e-6,
) -> None:
    """Verify a value against numerical integration. Arguments and errors as for :func:`exact`.

    Example:
        >>> from scipy.integrate import quad
        >>> area, _ = quad(lambda x: x**2, 0, 3)
        >>> quadrature("01.9", "the integral of x² up to 3 is 9", 9.0, area, wrong={"no factor 1/3": 27.0})
        ✓ 01.9  the integral of x² up to 3 is 9  [quadrature, 1e-06; rejects: no factor 1/3]
    """
    _verify("quadrature", claim, statement, value, oracle, wrong, tolerance)


def enumeration(
    claim: str,
    statement: str,
    value: ArrayLike | Tensor,
    oracle: ArrayLike | Tensor,
    *,
    wrong: Mapping[str, ArrayLike | Tensor],
    tolerance: float = 1e-10,
) -> None:
    """Verify a value by summing or visiting every state. Arguments and errors as for :func:`exact`.

    Example:
        >>> enumeration("01.9", "two coins have 4 states", 2**2, sum(1 for _ in "HT" for _ in "HT"), wrong={"2n": 5})
        ✓ 01.9  two coins have 4 states  [enumeration, 1e-10; rejects: 2n]
    """
    _verify("enumeration", claim, statement, value, oracle, wrong, tolerance)


def independent(
    claim: str,
    statement: str,
    value: ArrayLike | Tensor,
    oracle: ArrayLike | Tensor,
    *,
    wrong: Mapping[str, ArrayLike | Tensor],
    tolerance: float,
) -> None:
    """Verify a value against somebody else's implementation. Arguments and errors as for :func:`exact`.

    The tolerance is that of the other implementation, and has no default.

    Example:
        >>> independent("01.9", "the mean", 2.0, np.mean([1, 3]), wrong={"the sum": 4.0}, tolerance=1e-12)
        ✓ 01.9  the mean  [independent, 1e-12; rejects: the sum]
    """
    _verify("independent", claim, statement, value, oracle, wrong, tolerance)


def monte_carlo(
    claim: str,
    statement: str,
    samples: ArrayLike | Tensor,
    oracle: ArrayLike | Tensor,
    *,
    wrong: Mapping[str, ArrayLike | Tensor],
) -> None:
    r"""Verify the expectation of independent samples against its exact value.

    Passes when the mean lies within four standard errors, :math:`4 s / \sqrt{K}`, of the oracle, and not
    within eight of any wrong answer: the samples must be many enough to tell.

    Args:
        claim: As for :func:`exact`.
        statement: As for :func:`exact`.
        samples: Independent samples, shape ``(K, *shape)`` with ``K`` at least 100.
        oracle: The exact expectation, shape ``shape``.
        wrong: As for :func:`exact`.

    Raises:
        CheckFailedError, ValueError: As for :func:`exact`, and ``ValueError`` if there are too few samples.

    Example:
        >>> throws = np.tile([1, 2, 3, 4, 5, 6], 1000)
        >>> monte_carlo("01.9", "a die's mean is 3.5", throws, 3.5, wrong={"half of six": 3.0})
        ✓ 01.9  a die's mean is 3.5  [monte-carlo, 4 s.e.; rejects: half of six]
    """
    draws = _array("samples", samples)
    if draws.ndim == 0 or len(draws) < 100:
        raise ValueError(f"samples must be at least 100, along the first dimension; received shape {draws.shape}")
    with np.errstate(invalid="ignore"):  # an infinite sample makes a NaN, and that fails below
        mean, target = draws.mean(0), _oracle(oracle)
        error = draws.std(0, ddof=1) / math.sqrt(len(draws))
    _same_shape("oracle", target, mean)
    rounding = 1e-12 * np.maximum(1.0, np.abs(target))  # of the mean, where the samples do not vary
    rivals = _wrong_answers(wrong, mean)
    blind = [n for n, rival in rivals.items() if (np.abs(mean - rival) <= 2 * STANDARD_ERRORS * error + rounding).all()]
    _conclude(
        ("monte-carlo", claim, statement, f"{STANDARD_ERRORS:.0f} s.e.", wrong),
        (np.abs(mean - target) <= STANDARD_ERRORS * error + rounding).all(),
        _difference(mean, target, f"{STANDARD_ERRORS:.0f} standard errors of {np.max(error):.3g}"),
        blind,
    )


def inequality(
    claim: str,
    statement: str,
    smaller: ArrayLike | Tensor,
    larger: ArrayLike | Tensor,
    *,
    wrong: Mapping[str, ArrayLike | Tensor],
    slack: float = 0.0,
) -> None:
    """Verify that ``smaller <= larger + slack`` for every element; a monotone sequence is one such pair.

    Args:
        claim: As for :func:`exact`.
        statement: As for :func:`exact`.
        smaller: The left-hand side.
        larger: The right-hand side, of the same shape, or one number.
        wrong: For at least one likely mistake, its name and the left-hand side it would have given:
            one that breaks the inequality.
        slack: By how much rounding may break the inequality.

    Raises:
        CheckFailedError, ValueError: As for :func:`exact`.

    Example:
        >>> inequality("01.9", "the ELBO is a bound", -2.5, -2.0, wrong={"entropy counted twice": -1.1})
        ✓ 01.9  the ELBO is a bound  [inequality, slack 0; rejects: entropy counted twice]
    """
    left, right = _array("smaller", smaller), _array("larger", larger)
    if right.ndim:
        _same_shape("larger", right, left)
    rivals = _wrong_answers(wrong, left)
    with np.errstate(invalid="ignore"):  # where both are minus infinity they are equal
        worst = np.unravel_index(np.argmax(np.where(left <= right, -np.inf, left - right)), left.shape)
    _conclude(
        ("inequality", claim, statement, f"slack {slack:.0e}" if slack else "slack 0", wrong),
        (left <= right + slack).all(),
        _difference(left[worst], np.broadcast_to(right, left.shape)[worst], f"slack {slack:g}"),
        [name for name, rival in rivals.items() if (rival <= right + slack).all()],
    )


def publish(line: str, **record: Any) -> None:
    """Show a line and let its machine-readable record travel in the output's metadata.

    In a notebook the record becomes ``output.metadata["vi_tutorial"]``, which readers do not see and
    comparisons of outputs leave out; elsewhere the line is printed.

    Args:
        line: What is shown.
        **record: What travels along, JSON values.

    Example:
        >>> publish("✓ done", check={"id": "01.1"})
        ✓ done
    """
    shell = _notebook_shell()
    if shell is None:
        print(line)
    else:
        # An object whose repr is the line, so that the output is text like any other.
        shell.display_pub.publish({"text/plain": line}, metadata={"vi_tutorial": record})


def _notebook_shell() -> Any:
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return None
    return get_ipython()


def _verify(
    kind: str,
    claim: str,
    statement: str,
    value: ArrayLike | Tensor,
    oracle: ArrayLike | Tensor,
    wrong: Mapping[str, ArrayLike | Tensor],
    tolerance: float,
) -> None:
    check_positive("tolerance", tolerance)
    claimed, target = _array("value", value), _oracle(oracle)
    _same_shape("oracle", target, claimed)
    allowed = tolerance * np.maximum(1.0, np.abs(target))
    _conclude(
        (kind, claim, statement, f"{tolerance:.0e}", wrong),
        (np.abs(claimed - target) <= allowed).all(),
        _difference(claimed, target, f"tolerance {tolerance:g}"),
        [n for n, w in _wrong_answers(wrong, target).items() if (np.abs(w - target) <= allowed).all()],
    )


def _conclude(
    about: tuple[str, str, str, str, Mapping[str, Any]],
    holds: np.bool_ | bool,
    difference: str,
    blind: list[str],
) -> None:
    """Publish the verdict; raise unless the claim holds and every wrong answer is rejected."""
    kind, claim, statement, tolerance, wrong = about
    if not re.fullmatch(r"\d\d\.\d+[a-z]?", claim):
        raise ValueError(f"claim must be a number such as '01.2' or '06.3a'; received {claim!r}")
    ok = bool(holds) and not blind
    publish(
        f"{'✓' if ok else '✗'} {claim}  {statement}  [{kind}, {tolerance}; rejects: {', '.join(wrong)}]",
        check={
            "id": claim,
            "statement": statement,
            "kind": kind,
            "tolerance": tolerance,
            "wrong": list(wrong),
            "ok": ok,
        },
    )
    if not holds:
        raise CheckFailedError(f"{claim} does not hold: {statement}. {difference}")
    if blind:
        raise CheckFailedError(f"{claim} cannot fail: it would also accept {', '.join(blind)}. {difference}")


def _array(name: str, value: ArrayLike | Tensor) -> Array:
    array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)
    if array.size == 0:
        raise ValueError(f"{name} must not be empty; received shape {array.shape}")
    return array


def _oracle(oracle: ArrayLike | Tensor) -> Array:
    """A relative tolerance of infinity would accept anything, so an oracle is finite."""
    target = _array("oracle", oracle)
    if not np.isfinite(target).all():
        raise ValueError(f"oracle must be finite; received {target}")
    return target


def _same_shape(name: str, array: Array, other: Array) -> None:
    if array.shape != other.shape:
        raise ValueError(f"{name} must have shape {other.shape}; received {array.shape}")


def _wrong_answers(wrong: Mapping[str, ArrayLike | Tensor], value: Array) -> dict[str, Array]:
    if not wrong:
        raise ValueError("wrong must name at least one wrong answer that the check rejects; received none")
    answers = {name: _array(f"wrong[{name!r}]", answer) for name, answer in wrong.items()}
    for name, answer in answers.items():
        _same_shape(f"wrong[{name!r}]", answer, value)
        if not np.isfinite(answer).all():
            raise ValueError(f"wrong[{name!r}] must be finite, or rejecting it proves nothing; received {answer}")
    return answers


def _difference(value: ArrayLike, oracle: ArrayLike, allowed: str) -> str:
    """Both values, their difference and the tolerance, at the element where they differ most."""
    value, oracle = np.asarray(value), np.asarray(oracle)
    with np.errstate(invalid="ignore"):
        gap = np.abs(value - oracle)
    worst = np.unravel_index(np.argmax(np.where(np.isnan(gap), np.inf, gap)), gap.shape)
    return f"value {value[worst]:.12g}, oracle {oracle[worst]:.12g}, difference {gap[worst]:.3g}, allowed: {allowed}"
