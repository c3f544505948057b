"""Exercises that check themselves: an answer meets an independent oracle, and a mistake is named.

Each chapter's exercises stand in a module of its own, ``ch01``, ``ch02``, …; in the notebook a stub comes
first, then ``ch01.kl_between_normals.check(your_function)``. A stub that is still empty is told "not
answered yet", never an error. A wrong answer is compared with the likely mistakes, and the one it
matches is named.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vi_tutorial.checks import publish

__all__ = ["Exercise", "Verdict"]


@dataclass(frozen=True)
class Verdict:
    """What the check of an answer found: ``status`` and the sentence shown to the learner."""

    status: str
    message: str


@dataclass(frozen=True)
class Exercise:
    """A task, an oracle that shares no code with the expected solution, and the mistakes people make.

    Args:
        id: Number, such as ``"01.E1"``.
        task: What to write, in one sentence.
        oracle: The right answer as a function; with ``cases`` ``((),)``, a constant.
        cases: Arguments to try the answer on: several shapes and values.
        mistakes: For at least two likely mistakes, a name (which completes "this is what one gets with
            …") and a function.
        tolerance: Relative above one, absolute below.

    Example:
        >>> double = Exercise("01.E9", "Double x.", lambda x: x + x, ((1.0,), (3.0,)),
        ...     {"the square": lambda x: x * x, "x itself": lambda x: x})
        >>> double.check(lambda x: None)
        01.E9  not answered yet
        >>> double.check(lambda x: 2 * x)
        01.E9  correct
        >>> double.check(lambda x: x**2)
        01.E9  not yet: this is what one gets with the square
        >>> double.check(lambda x: x + 5)
        01.E9  not yet: for arguments (1.0) the answer is 6, and should be 2
    """

    id: str
    task: str
    oracle: Callable[..., Any]
    cases: tuple[tuple[Any, ...], ...]
    mistakes: Mapping[str, Callable[..., Any]] = field(repr=False)
    tolerance: float = 1e-6

    def check(self, answer: Any) -> None:
        """Show the verdict on an answer: a function of the case's arguments, or a constant."""
        verdict = self.verdict(answer)
        publish(f"{self.id}  {verdict.message}", exercise={"id": self.id, "status": verdict.status})

    def points(self, answer: Any, out_of: float = 1.0) -> float:
        """Show the verdict, and score the answer by the share of the cases that come out right, for a grader.

        Args:
            answer: As for :meth:`check`.
            out_of: The points of a right answer.

        Returns:
            From 0 to ``out_of``.

        Raises:
            NotImplementedError: If there is no answer yet, so that a grader which counts a cell that runs as a cell
                that is right gives nothing for it.

        Example:
            >>> double = Exercise("01.E9", "Double x.", lambda x: x + x, ((2.0,), (3.0,)),
            ...     {"the square": lambda x: x * x, "x itself": lambda x: x})
            >>> double.points(lambda x: x**2, out_of=10)
            01.E9  not yet: this is what one gets with the square
            5.0
        """
        verdict = self.verdict(answer)
        if verdict.status == "unanswered":
            raise NotImplementedError(f"{self.id} {verdict.message}")
        publish(f"{self.id}  {verdict.message}", exercise={"id": self.id, "status": verdict.status})
        return out_of * sum(self._right(answer, index) for index in range(len(self.cases))) / len(self.cases)

    def _right(self, answer: Any, index: int) -> bool:
        try:
            result = answer(*copy.deepcopy(self.cases[index])) if callable(answer) else answer
        except Exception:
            return False
        return self._same(result, self.oracle, index)

    def verdict(self, answer: Any) -> Verdict:
        """The verdict on an answer, as :meth:`check` shows it."""
        function = answer if callable(answer) else lambda *_: answer
        results = []
        for case in self.cases:
            try:
                result = function(*copy.deepcopy(case))  # an answer may write into its arguments
            except Exception as error:
                return Verdict("wrong", f"not yet: for arguments {_shown(case)} it raises {error!r}")
            if result is None or result is Ellipsis:
                return Verdict("unanswered", "not answered yet")
            results.append(result)
        wrong_case = next((i for i in range(len(results)) if not self._same(results[i], self.oracle, i)), None)
        if wrong_case is None:
            return Verdict("correct", "correct")
        for name, mistake in self.mistakes.items():
            if all(self._same(result, mistake, i) for i, result in enumerate(results)):
                return Verdict("wrong", f"not yet: this is what one gets with {name}")
        case = self.cases[wrong_case]
        right = self.oracle(*case)
        got, want = _array(results[wrong_case]), _array(right)
        if got is None or want is None or got.shape != want.shape:
            shape = "no array of numbers" if got is None else f"of shape {got.shape}"
            want_shape = None if want is None else want.shape
            message = f"the answer is {shape}, and should have shape {want_shape}"
        else:
            message = f"the answer is {_shown_value(got)}, and should be {_shown_value(want)}"
        return Verdict("wrong", f"not yet: for arguments {_shown(case)} {message}")

    def _same(self, result: Any, rule: Callable[..., Any], index: int) -> bool:
        got, want = _array(result), _array(rule(*self.cases[index]))
        if got is None or want is None or got.shape != want.shape:
            return False
        # A mistake may be known by its NaN or infinity (0 log 0, say); an oracle is finite, so no such answer is right.
        allowed = self.tolerance * np.maximum(1.0, np.abs(np.where(np.isfinite(want), want, 1.0)))
        return bool(np.isclose(got, want, rtol=0, atol=allowed, equal_nan=True).all())


def _array(value: Any) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    try:
        return np.asarray(value.detach() if isinstance(value, torch.Tensor) else value, dtype=np.float64)
    except (TypeError, ValueError):
        return None


def _shown(case: tuple[Any, ...]) -> str:
    arrays = [_array(argument) for argument in case]
    shown = (repr(a) if v is None else _shown_value(v, bare=a) for a, v in zip(case, arrays, strict=True))
    return f"({', '.join(shown)})"


def _shown_value(value: np.ndarray[Any, Any], bare: Any = None) -> str:
    if value.ndim == 0:
        return repr(bare) if isinstance(bare, int | float) else f"{value:.6g}"
    if value.size <= 8:
        return np.array2string(value, precision=4, separator=", ")
    return f"an array of shape {value.shape} that begins with {value.flat[0]:.6g}"
