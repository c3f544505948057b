"""What an exhibit is, and how every checker is run on it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vi_tutorial import checkers
from vi_tutorial.checks import CheckFailedError

__all__ = ["Exhibit", "Stage", "Version", "run_checkers"]

Version = Callable[..., Any]
"""A few lines of code that can be right or wrong; of one exhibit, both take the same arguments."""

Stage = Mapping[str, tuple[Any, ...]]
"""The arguments for each checker that applies, by the checker's name."""


@dataclass(frozen=True)
class Exhibit:
    """A bug that was public once, written anew in a few lines, beside its mend.

    Attributes:
        name: A short name, unique in the museum.
        room: The room it hangs in, 1 to 6.
        title: What the code is for; it does not give the bug away.
        wrong: The code with the bug.
        right: The code without.
        stage: From a version to the arguments for each checker that applies to it, made from real data.
        measure: A number from real data that shows the symptom; from a version.
        unit: What that number is.
        symptom: What one sees, in a sentence.
        checkers: The checkers meant to catch it, the most telling first.
        mend: What to do, in a sentence.
        reference: Where it was reported, or read in public code.
    """

    name: str
    room: int
    title: str
    wrong: Version
    right: Version
    stage: Callable[[Version], Stage]
    measure: Callable[[Version], float]
    unit: str
    symptom: str
    checkers: tuple[str, ...]
    mend: str
    reference: str

    def code(self, version: str = "wrong") -> str:
        """The source of the wrong or the right version, as a function ``f``: its own name would give it away."""
        if version not in ("wrong", "right"):
            raise ValueError(f"version must be 'wrong' or 'right'; received {version!r}")
        source = inspect.getsource(getattr(self, version))
        return re.sub(r"^def \w+\(", "def f(", source.replace("  # noqa: F841", "")).rstrip()

    def measured(self) -> tuple[float, float]:
        """The symptom's number for the wrong and for the right version, in ``unit``; always the same draws."""
        return _seeded(lambda: self.measure(self.wrong)), _seeded(lambda: self.measure(self.right))


def run_checkers(exhibit: Exhibit, version: str = "wrong") -> dict[str, str | None]:
    """Run every checker that applies on the wrong or the right version, with the same draws each time.

    Args:
        exhibit: The exhibit.
        version: ``"wrong"`` or ``"right"``.

    Returns:
        By the checker's name: what it says of the version, the empty string where it has nothing to say, None where it
        does not apply.

    Raises:
        ValueError: If there is no such version.

    Example:
        >>> from vi_tutorial import museum
        >>> run_checkers(museum.exhibit("forgotten-jacobian"), "right")["density_integrates_to_one"]
        ''
    """
    if version not in ("wrong", "right"):
        raise ValueError(f"version must be 'wrong' or 'right'; received {version!r}")
    stage = _seeded(lambda: exhibit.stage(getattr(exhibit, version)))
    found: dict[str, str | None] = {}
    for name in checkers.__all__:
        found[name] = _seeded(lambda n=name: _complaint(n, stage[n])) if name in stage else None  # type: ignore[misc]
    return found


def _complaint(name: str, arguments: tuple[Any, ...]) -> str:
    try:
        getattr(checkers, name)(*arguments)
    except CheckFailedError as error:
        return str(error)
    return ""


def _seeded(function: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return function()
