"""The bug museum: public bugs written anew, each beside its mend and the checker that catches it.

An :class:`Exhibit` has a wrong and a right version of a few lines, a stage that puts either of them on real data, and a
number that shows the symptom. :func:`run_checkers` runs every checker of :mod:`vi_tutorial.checkers` that applies.
The wrong versions are ours; where the bug was reported stands in ``reference``.
"""

from __future__ import annotations

from vi_tutorial import checkers
from vi_tutorial.checks import publish
from vi_tutorial.museum import densities, gradients, noise, signs, sums, weights
from vi_tutorial.museum._exhibit import Exhibit, Stage, Version, run_checkers

__all__ = ["EXHIBITS", "ROOMS", "Exhibit", "Stage", "Version", "exhibit", "guess", "run_checkers", "show"]

ROOMS = {
    1: "Sums that became means",
    2: "Densities that are none",
    3: "Noise of the wrong size",
    4: "Signs, logarithms and names",
    5: "Many samples",
    6: "What does not move, or moves for ever",
}
"""The rooms, by number."""

EXHIBITS: tuple[Exhibit, ...] = (
    *sums.EXHIBITS,
    *densities.EXHIBITS,
    *noise.EXHIBITS,
    *signs.EXHIBITS,
    *weights.EXHIBITS,
    *gradients.EXHIBITS,
)
"""All exhibits, in the order of the tour."""


def exhibit(name: str) -> Exhibit:
    """The exhibit of a name.

    Args:
        name: One of the names in :data:`EXHIBITS`.

    Returns:
        The :class:`Exhibit`.

    Raises:
        KeyError: If there is none.

    Example:
        >>> exhibit("nll-sign").title
        'the negative log-likelihood by importance sampling'
    """
    for candidate in EXHIBITS:
        if candidate.name == name:
            return candidate
    raise KeyError(f"name must be one of {', '.join(e.name for e in EXHIBITS)}; received {name!r}")


def show(name: str, version: str = "wrong") -> None:
    """Print what the code is for, and the code: the wrong version, or the ``"right"`` one.

    Args:
        name: The exhibit's name.
        version: ``"wrong"`` or ``"right"``.

    Raises:
        KeyError: If there is no such exhibit.
        ValueError: If there is no such version.

    Example:
        >>> show("constant-squared", "right")
        # the log density of a standard Normal
        def f(z: Tensor) -> Tensor:
            return (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1)
    """
    item = exhibit(name)
    print(f"# {item.title}\n{item.code(version)}")


def guess(name: str, checker: str | None = None) -> None:
    """Say which checker you expect to catch an exhibit; then all that apply are run, and the verdicts shown.

    Args:
        name: The exhibit's name.
        checker: One of ``vi_tutorial.checkers.__all__``. Without it nothing is run and nothing given away.

    Raises:
        KeyError: If there is no such exhibit.
        ValueError: If there is no such checker.

    Example:
        >>> guess("constant-squared")
        constant-squared: no guess yet
        >>> guess("constant-squared", "samples_match_density")
        constant-squared: your guess, samples_match_density, is silent
          caught  density_integrates_to_one: the density integrates to 0.159155, not to 1 (tolerance 1e-06)
          silent  batch_repetition_changes_nothing
          silent  samples_match_density
    """
    item = exhibit(name)
    if checker is None:
        publish(f"{name}: no guess yet", guess={"exhibit": name, "status": "unanswered"})
        return
    if checker not in checkers.__all__:
        raise ValueError(f"checker must be one of {', '.join(checkers.__all__)}; received {checker!r}")
    found = run_checkers(item)
    verdict = found[checker]
    said = "does not apply here" if verdict is None else "barks" if verdict else "is silent"
    lines = [f"{name}: your guess, {checker}, {said}"]
    lines += [f"  caught  {key}: {words}" for key, words in found.items() if words]
    lines += [f"  silent  {key}" for key, words in found.items() if words == ""]
    publish("\n".join(lines), guess={"exhibit": name, "status": "right" if verdict else "wrong"})
