"""Checks of checks: each kind passes on the truth, fails on a wrong formula, and cannot be written without one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vi_tutorial import checks
from vi_tutorial.checks import (
    CheckFailedError,
    enumeration,
    exact,
    independent,
    inequality,
    monte_carlo,
    publish,
    quadrature,
)

Check = Callable[..., None]


def independently(*arguments: Any, **keywords: Any) -> None:
    independent(*arguments, **{"tolerance": 1e-8, **keywords})


COMPARISONS: dict[str, tuple[Check, float, str]] = {
    "exact": (exact, 1e-10, "exact, 1e-10"),
    "quadrature": (quadrature, 1e-6, "quadrature, 1e-06"),
    "enumeration": (enumeration, 1e-10, "enumeration, 1e-10"),
    "independent": (independently, 1e-8, "independent, 1e-08"),
}
by_comparison = pytest.mark.parametrize(("check", "tolerance", "label"), COMPARISONS.values(), ids=COMPARISONS)

DIE = np.tile([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 1000)  # mean 3.5, s.e. 0.02205


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would travel in the notebook's metadata."""
    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(checks, "publish", lambda line, **record: kept.append({"line": line, **record}))
    return kept


# --- Exact, quadrature, enumeration, independent ---------------------------------------------------


@by_comparison
def test_the_truth_passes_with_one_line(
    check: Check, tolerance: float, label: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check("06.3a", "a half of four is two", 4 / 2, 2.0, wrong={"dropped the ½": 4.0, "flipped": -2.0})
    assert capsys.readouterr().out == f"✓ 06.3a  a half of four is two  [{label}; rejects: dropped the ½, flipped]\n"


@by_comparison
def test_a_wrong_formula_fails_and_says_by_how_much(
    check: Check, tolerance: float, label: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CheckFailedError) as error:
        check("01.2", "the claim", 2.5, 2.0, wrong={"another": 4.0})
    assert str(error.value) == (
        f"01.2 does not hold: the claim. value 2.5, oracle 2, difference 0.5, allowed: tolerance {tolerance:g}"
    )
    assert capsys.readouterr().out == f"✗ 01.2  the claim  [{label}; rejects: another]\n"


@by_comparison
@pytest.mark.parametrize(("oracle", "scale"), [(0.25, 1.0), (-0.25, 1.0), (4000.0, 4000.0), (-4000.0, 4000.0)])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_tolerance_is_absolute_below_one_and_relative_above(
    check: Check, tolerance: float, label: str, oracle: float, scale: float, sign: int, records: list[dict[str, Any]]
) -> None:
    allowed = tolerance * scale
    check("01.1", "s", oracle + sign * 0.9 * allowed, oracle, wrong={"w": oracle + 1})
    with pytest.raises(CheckFailedError, match="does not hold"):
        check("01.1", "s", oracle + sign * 1.1 * allowed, oracle, wrong={"w": oracle + 1})
    assert [record["check"]["ok"] for record in records] == [True, False]


@by_comparison
def test_a_wrong_answer_that_the_tolerance_accepts_is_refused(
    check: Check, tolerance: float, label: str, records: list[dict[str, Any]]
) -> None:
    check("01.1", "s", 2.0, 2.0, wrong={"just far enough": 2 + 2.2 * tolerance})
    with pytest.raises(
        CheckFailedError, match=r"01\.1 cannot fail: it would also accept too close\. value 2, oracle 2"
    ):
        check("01.1", "s", 2.0, 2.0, wrong={"far": 9.0, "too close": 2 + 1.8 * tolerance})
    assert [record["check"]["ok"] for record in records] == [True, False]


@by_comparison
def test_one_bad_element_of_many_fails_and_is_the_one_shown(check: Check, tolerance: float, label: str) -> None:
    value = torch.tensor([[1.0, 2.0], [3.0, 40.0]], dtype=torch.float64)
    with pytest.raises(CheckFailedError, match="value 40, oracle 4, difference 36"):
        check("01.1", "s", value, [[1, 2], [3, 4]], wrong={"w": [[0, 0], [0, 0]]})


@by_comparison
def test_a_wrong_answer_need_only_be_wrong_somewhere(check: Check, tolerance: float, label: str) -> None:
    check("01.1", "s", [1.0, 2.0], [1.0, 2.0], wrong={"second off": [1.0, 3.0]})
    with pytest.raises(CheckFailedError, match="cannot fail"):
        check("01.1", "s", [1.0, 2.0], [1.0, 2.0], wrong={"nowhere off": [1.0, 2.0]})


@by_comparison
@pytest.mark.parametrize(
    ("value", "oracle"),
    [
        (math.nan, 1.0),
        (1.0, math.nan),
        (math.nan, math.nan),
        (math.inf, 1.0),
        (1.0, math.inf),
        (math.inf, math.inf),
        (-math.inf, -math.inf),
    ],
)
def test_nothing_that_is_not_finite_ever_passes(
    check: Check, tolerance: float, label: str, value: float, oracle: float
) -> None:
    """Nor beside sound elements, where a wrong answer can be told apart."""
    with pytest.raises((CheckFailedError, ValueError)):
        check("01.1", "s", value, oracle, wrong={"w": 5.0})
    with pytest.raises((CheckFailedError, ValueError)):
        check("01.1", "s", [2.0, value], [2.0, oracle], wrong={"w": [5.0, 5.0]})


@by_comparison
def test_the_record(check: Check, tolerance: float, label: str, records: list[dict[str, Any]]) -> None:
    kind, shown = label.split(", ")
    check("12.10", "the claim", 1.0, 1.0, wrong={"a": 2.0, "b": 3.0})
    assert records == [
        {
            "line": f"✓ 12.10  the claim  [{label}; rejects: a, b]",
            "check": {
                "id": "12.10",
                "statement": "the claim",
                "kind": kind,
                "tolerance": shown,
                "wrong": ["a", "b"],
                "ok": True,
            },
        }
    ]
    assert type(records[0]["check"]["ok"]) is bool  # JSON has no numpy.bool


def test_independent_has_no_tolerance_of_its_own() -> None:
    with pytest.raises(TypeError, match="tolerance"):
        independent("01.1", "s", 1.0, 1.0, wrong={"w": 2.0})


def test_tensors_with_gradient_are_welcome(records: list[dict[str, Any]]) -> None:
    value = torch.ones(3, dtype=torch.float64, requires_grad=True) * 2
    exact("01.1", "s", value, torch.full((3,), 2.0), wrong={"w": torch.zeros(3, requires_grad=True)})
    assert records[0]["check"]["ok"] is True


# --- Monte Carlo -----------------------------------------------------------------------------------


def test_monte_carlo_passes_within_four_standard_errors(capsys: pytest.CaptureFixture[str]) -> None:
    monte_carlo("01.4", "a die's mean", DIE, 3.5, wrong={"half of six": 3.0})
    assert capsys.readouterr().out == "✓ 01.4  a die's mean  [monte-carlo, 4 s.e.; rejects: half of six]\n"


@pytest.mark.parametrize("sign", [1, -1])
def test_the_four_standard_errors_are_of_the_mean(sign: int, records: list[dict[str, Any]]) -> None:
    error = DIE.std(ddof=1) / math.sqrt(6000)
    monte_carlo("01.4", "s", DIE, 3.5 + sign * 3.99 * error, wrong={"w": 3.0})
    with pytest.raises(CheckFailedError, match=r"value 3.5, .*allowed: 4 standard errors of 0\.022"):
        monte_carlo("01.4", "s", DIE, 3.5 + sign * 4.01 * error, wrong={"w": 3.0})


@pytest.mark.parametrize("sign", [1, -1])
def test_a_wrong_answer_within_eight_standard_errors_is_refused(sign: int, records: list[dict[str, Any]]) -> None:
    error = DIE.std(ddof=1) / math.sqrt(6000)
    monte_carlo("01.4", "s", DIE, 3.5, wrong={"w": 3.5 + sign * 8.01 * error})
    with pytest.raises(CheckFailedError, match=r"01\.4 cannot fail: it would also accept w\."):
        monte_carlo("01.4", "s", DIE, 3.5, wrong={"w": 3.5 + sign * 7.99 * error})


def test_monte_carlo_of_vectors_averages_over_the_first_dimension(records: list[dict[str, Any]]) -> None:
    samples = torch.tensor(np.stack([DIE, 2 * DIE], 1))
    monte_carlo("01.4", "s", samples, [3.5, 7.0], wrong={"second not doubled": [3.5, 3.5]})
    with pytest.raises(CheckFailedError, match=r"value 7, oracle 7\.2"):
        monte_carlo("01.4", "s", samples, [3.5, 7.2], wrong={"w": [3.5, 3.5]})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["samples", "oracle"])
def test_monte_carlo_never_passes_on_what_is_not_finite(bad: float, where: str) -> None:
    samples, oracle = (np.append(DIE, bad), 3.5) if where == "samples" else (DIE, bad)
    with pytest.raises((CheckFailedError, ValueError)):
        monte_carlo("01.4", "s", samples, oracle, wrong={"w": 3.0})


def test_the_variance_of_a_hundred_samples_is_the_unbiased_one(records: list[dict[str, Any]]) -> None:
    samples = np.tile([-1.0, 1.0], 50)
    error = math.sqrt(1 / 99)  # with n − 2 in its place it were half a per cent more
    monte_carlo("01.4", "s", samples, 3.99 * error, wrong={"w": 1.0})
    with pytest.raises(CheckFailedError, match="does not hold"):
        monte_carlo("01.4", "s", samples, 4.01 * error, wrong={"w": 1.0})


@pytest.mark.parametrize("size", [0, 1, 99])
def test_monte_carlo_needs_a_hundred_samples(size: int) -> None:
    with pytest.raises(ValueError, match="samples"):
        monte_carlo("01.4", "s", DIE[:size], 3.5, wrong={"w": 3.0})


def test_samples_without_variance_agree_up_to_rounding(records: list[dict[str, Any]]) -> None:
    """Log weights at the posterior, say: their mean differs from each of them in the last digit."""
    monte_carlo("01.5", "s", np.full(1000, 0.1), 0.1, wrong={"w": 0.2})
    monte_carlo("01.5", "s", np.full(1000, 1e6), 1e6 * (1 + 5e-13), wrong={"w": 2e6})
    monte_carlo("01.5", "s", np.full(128, 1e-12), 0.0, wrong={"w": 1.0})  # the rounding itself
    assert [record["check"]["ok"] for record in records] == [True, True, True]
    for target, away in ((1e6, 2e-12), (1.0, 1.5e-12)):
        with pytest.raises(CheckFailedError, match="does not hold"):
            monte_carlo("01.5", "s", np.full(1000, target), target * (1 + away), wrong={"w": 2 * target})
    with pytest.raises(CheckFailedError, match=r"cannot fail: it would also accept w\."):
        monte_carlo("01.5", "s", np.full(1000, 0.5), 0.5, wrong={"w": 0.5})


# --- Inequality ------------------------------------------------------------------------------------


def test_an_inequality_passes_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    inequality("01.1", "KL ≥ 0", 0.0, [0.1][0], wrong={"flipped": 0.3})
    inequality("05.2", "monotone", [1.0, 2.0], [2.0, 2.0], wrong={"a step down": [1.0, 2.1]}, slack=1e-9)
    assert capsys.readouterr().out == (
        "✓ 01.1  KL ≥ 0  [inequality, slack 0; rejects: flipped]\n"
        "✓ 05.2  monotone  [inequality, slack 1e-09; rejects: a step down]\n"
    )


def test_a_broken_inequality_shows_its_worst_element(records: list[dict[str, Any]]) -> None:
    with pytest.raises(
        CheckFailedError, match=r"^01.1 does not hold: s\. value 5, oracle 2, difference 3, allowed: slack 0$"
    ):
        inequality("01.1", "s", [1.0, 5.0, 3.0], [9.0, 2.0, 2.0], wrong={"w": [10.0, 1.0, 1.0]})
    assert records[0]["check"]["ok"] is False
    assert records[0]["check"]["kind"] == "inequality"
    assert records[0]["check"]["tolerance"] == "slack 0"
    with pytest.raises(CheckFailedError, match="value 3, oracle 1, difference 2"):
        inequality("01.1", "s", [8.0, 3.0], [7.0, 1.0], wrong={"w": [9.0, 9.0]})
    with pytest.raises(CheckFailedError, match="value 5, oracle 2, difference 3"):
        inequality("01.1", "s", [-math.inf, 5.0], [-math.inf, 2.0], wrong={"w": [9.0, 9.0]})


def test_a_rival_that_is_equal_keeps_the_inequality_and_is_refused(records: list[dict[str, Any]]) -> None:
    with pytest.raises(CheckFailedError, match=r"cannot fail: it would also accept w\."):
        inequality("01.1", "s", 1.0, 2.0, wrong={"w": 2.0})


def test_equality_is_an_inequality(records: list[dict[str, Any]]) -> None:
    inequality("01.1", "s", 2.0, 2.0, wrong={"w": 2.0 + 1e-12})


def test_the_slack_is_allowed_and_no_more(records: list[dict[str, Any]]) -> None:
    inequality("01.1", "s", 2.09, 2.0, wrong={"w": 2.11}, slack=0.1)
    with pytest.raises(CheckFailedError, match=r"allowed: slack 0\.1"):
        inequality("01.1", "s", 2.11, 2.0, wrong={"w": 3.0}, slack=0.1)
    with pytest.raises(CheckFailedError, match="cannot fail"):
        inequality("01.1", "s", 1.0, 2.0, wrong={"w": 2.09}, slack=0.1)


def test_one_number_may_bound_many(records: list[dict[str, Any]]) -> None:
    inequality("01.1", "s", [1.0, 2.0], 2.0, wrong={"w": [1.0, 3.0]})
    with pytest.raises(CheckFailedError, match="value 3, oracle 2"):
        inequality("01.1", "s", [1.0, 3.0], 2.0, wrong={"w": [3.0, 3.0]})


@pytest.mark.parametrize(("smaller", "larger"), [(math.nan, 1.0), (1.0, math.nan), (math.nan, math.nan)])
def test_an_inequality_with_nan_never_passes(smaller: float, larger: float) -> None:
    with pytest.raises(CheckFailedError):
        inequality("01.1", "s", smaller, larger, wrong={"w": 5.0})
    with pytest.raises(CheckFailedError):
        inequality("01.1", "s", [0.0, smaller], [1.0, larger], wrong={"w": [5.0, 5.0]})


def test_minus_infinity_is_below_everything(records: list[dict[str, Any]]) -> None:
    """An ELBO where q puts mass outside the support."""
    inequality("01.1", "s", -math.inf, -2.0, wrong={"w": -1.0})
    inequality("01.1", "s", [-math.inf, -3.0], [-math.inf, -2.0], wrong={"w": [-9.0, -3.0]})
    assert all(record["check"]["ok"] for record in records)


# --- What no check of any kind accepts -------------------------------------------------------------

EVERY = {
    **{name: (check, 2.0, 2.0) for name, (check, _, _) in COMPARISONS.items()},
    "monte carlo": (monte_carlo, DIE, 3.5),
    "inequality": (inequality, 1.0, 2.0),
}
by_kind = pytest.mark.parametrize(("check", "value", "oracle"), EVERY.values(), ids=EVERY)


@by_kind
def test_no_check_without_a_wrong_answer(check: Check, value: Any, oracle: Any) -> None:
    with pytest.raises(TypeError, match="wrong"):
        check("01.1", "s", value, oracle)
    with pytest.raises(ValueError, match="wrong must name at least one wrong answer"):
        check("01.1", "s", value, oracle, wrong={})


@by_kind
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_wrong_answer_must_be_finite(check: Check, value: Any, oracle: Any, bad: float) -> None:
    with pytest.raises(ValueError, match=r"wrong\['broken'\] must be finite"):
        check("01.1", "s", value, oracle, wrong={"fine": 9.0, "broken": bad})
    many = np.stack([value, value], -1)
    with pytest.raises(ValueError, match=r"wrong\['broken'\] must be finite"):
        check("01.1", "s", many, np.stack([oracle, oracle]), wrong={"broken": [9.0, bad]})


@by_kind
def test_a_wrong_answer_must_have_the_shape_of_the_right_one(check: Check, value: Any, oracle: Any) -> None:
    with pytest.raises(ValueError, match=r"wrong\['a sum'\] must have shape \(\); received \(2,\)"):
        check("01.1", "s", value, oracle, wrong={"a sum": [9.0, 9.0]})


@by_kind
def test_nothing_is_broadcast(check: Check, value: Any, oracle: Any) -> None:
    column = np.asarray(oracle) + np.zeros((3, 1))
    flat = np.asarray(value)[..., None] + np.zeros(3)
    with pytest.raises(ValueError, match="must have shape"):
        check("01.1", "s", flat, column, wrong={"w": np.zeros(3)})


@by_kind
@pytest.mark.parametrize("claim", ["1.2", "01.", "0102", "01.2ab", "E1", "01.2 ", "", "01.A"])
def test_a_claim_has_a_number(check: Check, value: Any, oracle: Any, claim: str) -> None:
    with pytest.raises(ValueError, match="claim must be a number such as"):
        check(claim, "s", value, oracle, wrong={"w": 9.0})


@by_kind
def test_nothing_is_not_an_answer(check: Check, value: Any, oracle: Any) -> None:
    with pytest.raises(ValueError, match=r"must not be empty|must be at least 100"):
        check("01.1", "s", [], [], wrong={"w": []})


@pytest.mark.parametrize("tolerance", [0.0, -1e-3, math.inf, math.nan])
def test_a_tolerance_is_a_finite_positive_number(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance must be a finite positive number"):
        exact("01.1", "s", 1.0, 1.0, wrong={"w": 2.0}, tolerance=tolerance)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(value=st.floats(-10, 10), oracle=st.floats(-10, 10), rival=st.floats(-10, 10), tolerance=st.floats(1e-12, 5))
def test_a_check_passes_only_if_it_accepts_the_value_and_rejects_the_rival(
    value: float, oracle: float, rival: float, tolerance: float
) -> None:
    allowed = tolerance * max(1, abs(oracle))
    holds, blind = abs(value - oracle) <= allowed, abs(rival - oracle) <= allowed
    if holds and not blind:
        exact("01.1", "s", value, oracle, wrong={"rival": rival}, tolerance=tolerance)
    else:
        with pytest.raises(CheckFailedError, match="cannot fail" if holds else "does not hold"):
            exact("01.1", "s", value, oracle, wrong={"rival": rival}, tolerance=tolerance)


# --- Where the record travels ----------------------------------------------------------------------


def test_in_a_notebook_the_record_travels_in_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []

    class Shell:
        class display_pub:  # noqa: N801
            @staticmethod
            def publish(data: dict[str, str], metadata: dict[str, Any]) -> None:
                sent.append((data, metadata))

    monkeypatch.setattr(checks, "_notebook_shell", lambda: Shell)
    publish("✓ done", check={"id": "01.1"})
    assert sent == [({"text/plain": "✓ done"}, {"vi_tutorial": {"check": {"id": "01.1"}}})]


def test_elsewhere_the_line_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    publish("✓ done", check={"id": "01.1"})
    assert capsys.readouterr().out == "✓ done\n"


def test_a_failed_check_is_an_assertion_error() -> None:
    assert issubclass(CheckFailedError, AssertionError)
