"""The bug museum: public bugs written anew, each beside its mend and the checker that catches it.

An :class:`Exhibit` has a wrong and a right version of a few lines, a stage that puts either of them on real data, and a
number that shows the symptom. :func:`run_checkers` runs every checker of :mod:`vi_tutorial.checkers` that applies.
The wrong versions are ours; where the bug was reported stands in ``reference``.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_lowercase
from textwrap import fill
from types import MappingProxyType

from vi_tutorial import checkers
from vi_tutorial.checks import publish
from vi_tutorial.museum import densities, gradients, noise, signs, sums, weights
from vi_tutorial.museum._exhibit import Exhibit, Stage, Version, run_checkers

__all__ = [
    "EXHIBITS",
    "NUMBERS",
    "ROOMS",
    "Exhibit",
    "Stage",
    "Version",
    "exhibit",
    "guess",
    "reveal",
    "run_checkers",
    "show",
]

ROOMS = {
    1: "Objectives",
    2: "Log densities",
    3: "Draws",
    4: "Formulas and reports",
    5: "Many samples",
    6: "What learns",
}
"""The rooms, by number. Their names tell the kind of code, not what is wrong with it."""

EXHIBITS: tuple[Exhibit, ...] = (
    *sums.EXHIBITS,
    *densities.EXHIBITS,
    *noise.EXHIBITS,
    *signs.EXHIBITS,
    *weights.EXHIBITS,
    *gradients.EXHIBITS,
)
"""All exhibits, in the order of the tour."""

NUMBERS: Mapping[str, str] = MappingProxyType(
    {
        f"{room}{letter}": item.name
        for room in ROOMS
        for letter, item in zip(ascii_lowercase, [e for e in EXHIBITS if e.room == room], strict=False)
    }
)
"""The name behind each number, 1a to 6c. A name is a diagnosis; a number gives nothing away."""


def exhibit(name: str) -> Exhibit:
    """The exhibit of a number or a name.

    Args:
        name: A number, as in :data:`NUMBERS`, or the name of one of the :data:`EXHIBITS`.

    Returns:
        The :class:`Exhibit`.

    Raises:
        KeyError: If there is none.

    Example:
        >>> exhibit("4b").title, exhibit("4b").name
        ('the negative log-likelihood by importance sampling', 'nll-sign')
    """
    for candidate in EXHIBITS:
        if candidate.name == NUMBERS.get(name, name):
            return candidate
    raise KeyError(f"name must be one of {', '.join(NUMBERS)}, or a name behind these numbers; received {name!r}")


def show(name: str, version: str = "wrong") -> None:
    """Print what the code is for, and the code: the wrong version, or the ``"right"`` one.

    Args:
        name: The exhibit's number or name.
        version: ``"wrong"`` or ``"right"``.

    Raises:
        KeyError: If there is no such exhibit.
        ValueError: If there is no such version.

    Example:
        >>> show("2d", "right")
        # 2d: the log density of a standard Normal
        def f(z: Tensor) -> Tensor:
            return (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1)
    """
    item = exhibit(name)
    print(f"# {_number(item)}: {item.title}\n{item.code(version)}")


def guess(name: str, checker: str | None = None) -> None:
    """Say which checker you expect to catch an exhibit; then all that apply are run, and the verdicts shown.

    Args:
        name: The exhibit's number or name.
        checker: One of ``vi_tutorial.checkers.__all__``. Without it nothing is run and nothing given away.

    Raises:
        KeyError: If there is no such exhibit.
        ValueError: If there is no such checker.

    Example:
        >>> guess("2d")
        2d: no guess yet
        >>> guess("2d", "samples_match_density")
        2d: your guess, samples_match_density, is silent
          caught  density_integrates_to_one: the density integrates to 0.159155, not to 1 (tolerance 1e-06)
          silent  batch_repetition_changes_nothing
          silent  samples_match_density
    """
    item = exhibit(name)
    number = _number(item)
    if checker is None:
        publish(f"{number}: no guess yet", guess={"exhibit": item.name, "status": "unanswered"})
        return
    if checker not in checkers.__all__:
        raise ValueError(f"checker must be one of {', '.join(checkers.__all__)}; received {checker!r}")
    found = run_checkers(item)
    verdict = found[checker]
    said = "does not apply here" if verdict is None else "barks" if verdict else "is silent"
    lines = [f"{number}: your guess, {checker}, {said}", *_verdicts(found)]
    publish("\n".join(lines), guess={"exhibit": item.name, "status": "right" if verdict else "wrong"})


def reveal(name: str) -> None:
    """Print an exhibit's label: its name, every verdict, the symptom with its number, the mend, and where it was found.

    Args:
        name: The exhibit's number or name.

    Raises:
        KeyError: If there is no such exhibit.

    Example:
        >>> reveal("2d")
        2d is constant-squared
          caught  density_integrates_to_one: the density integrates to 0.159155, not to 1 (tolerance 1e-06)
          silent  batch_repetition_changes_nothing
          silent  samples_match_density
        symptom: -4.672 where right code has -2.834 (mean log density of Old Faithful, nats). Nothing, while
          prior and posterior make the same mistake; a wrong number where one of them stands alone.
        mend: The constant is ½ log 2π per dimension; the sum over dimensions multiplies it by D already.
        seen: read in the code of intro_dgm
    """
    item = exhibit(name)
    wrong, right = item.measured()
    print(f"{_number(item)} is {item.name}", *_verdicts(run_checkers(item)), sep="\n")
    symptom = f"symptom: {wrong:.4g} where right code has {right:.4g} ({item.unit}). {item.symptom}"
    for line in (symptom, f"mend: {item.mend}", f"seen: {item.reference}"):
        print(fill(line, width=100, subsequent_indent="  "))


def _number(item: Exhibit) -> str:
    return next(number for number, name in NUMBERS.items() if name == item.name)


def _verdicts(found: Mapping[str, str | None]) -> list[str]:
    """Those that caught something first; those that do not apply not at all."""
    lines = [f"  caught  {key}: {words}" for key, words in found.items() if words]
    return lines + [f"  silent  {key}" for key, words in found.items() if words == ""]
