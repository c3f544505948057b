"""Exercises that check themselves: how a verdict is reached, and what every exercise of every chapter owes."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import pkgutil
import re
from typing import Any

import numpy as np
import pytest
import torch

from vi_tutorial import exercises
from vi_tutorial.exercises import Exercise, Verdict

CHAPTERS = [name for _, name, _ in pkgutil.iter_modules(exercises.__path__) if name.startswith("ch")]
EXERCISES = [
    (chapter, name, value)
    for chapter in CHAPTERS
    for name, value in vars(importlib.import_module(f"vi_tutorial.exercises.{chapter}")).items()
    if isinstance(value, Exercise)
]
every_exercise = pytest.mark.parametrize(
    "exercise", [value for _, _, value in EXERCISES], ids=[f"{chapter}.{name}" for chapter, name, _ in EXERCISES]
)


@functools.cache
def right_answers(position: int) -> tuple[np.ndarray[Any, Any], ...]:
    """The oracle's answers to the cases, asked once: some integrate numerically."""
    exercise = EXERCISES[position][2]
    answers = (exercise.oracle(*case) for case in exercise.cases)
    return tuple(np.asarray(a.detach() if isinstance(a, torch.Tensor) else a, dtype=float) for a in answers)


every_position = pytest.mark.parametrize(
    "position", range(len(EXERCISES)), ids=[f"{chapter}.{name}" for chapter, name, _ in EXERCISES]
)


# --- The machinery, on an exercise of its own -------------------------------------------------------


@pytest.fixture
def exercise() -> Exercise:
    return Exercise(
        "01.E9",
        "Sum the squares.",
        lambda x: float(np.sum(x.numpy() ** 2)),
        ((torch.tensor([1.0, 2.0]),), (torch.tensor([[3.0, -1.0, 0.5]]),)),
        {"the sum of the values": lambda x: x.sum(), "the mean of the squares": lambda x: x.square().mean()},
    )


def test_a_right_answer_is_correct_whatever_the_type_of_number(exercise: Exercise) -> None:
    for answer in (
        lambda x: x.square().sum(),
        lambda x: x.square().sum().item(),
        lambda x: np.float32((x**2).sum()),
        lambda x: (x.requires_grad_() ** 2).sum(),
    ):
        assert exercise.verdict(answer) == Verdict("correct", "correct")


@pytest.mark.parametrize("stub", [None, ..., lambda x: None, lambda x: ...])
def test_an_empty_stub_is_not_answered_yet(exercise: Exercise, stub: object) -> None:
    assert exercise.verdict(stub) == Verdict("unanswered", "not answered yet")


def test_a_likely_mistake_is_named(exercise: Exercise) -> None:
    verdict = exercise.verdict(lambda x: x.square().mean())
    assert verdict == Verdict("wrong", "not yet: this is what one gets with the mean of the squares")


def test_a_mistake_on_one_case_only_is_not_taken_for_it(exercise: Exercise) -> None:
    verdict = exercise.verdict(lambda x: x.sum() if x.ndim == 1 else x.square().sum() + 1)
    assert "this is what one gets" not in verdict.message
    assert verdict.message == "not yet: for arguments ([1., 2.]) the answer is 3, and should be 5"


def test_another_wrong_answer_meets_both_numbers_of_the_first_wrong_case(exercise: Exercise) -> None:
    verdict = exercise.verdict(lambda x: x.square().sum() if x.ndim == 1 else 7.0)
    assert verdict.message == "not yet: for arguments ([[ 3. , -1. ,  0.5]]) the answer is 7, and should be 10.25"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x: x**2, "the answer is of shape (2,), and should have shape ()"),
        (lambda x: "five", "the answer is no array of numbers, and should have shape ()"),
        (lambda x: [[1.0], [1.0, 2.0]], "the answer is no array of numbers"),
        (lambda x: x.foo, "it raises AttributeError"),
        (lambda: 5.0, "it raises TypeError"),
        (5.0, "should be 10.25"),
        (math.nan, "the answer is nan, and should be 5"),
        (math.inf, "the answer is inf, and should be 5"),
    ],
    ids=["shape", "text", "ragged", "error", "signature", "constant", "nan", "infinity"],
)
def test_every_other_answer_is_told_what_is_wrong(exercise: Exercise, answer: object, said: str) -> None:
    verdict = exercise.verdict(answer)
    assert verdict.status == "wrong"
    assert verdict.message.startswith("not yet: ")
    assert said in verdict.message


def test_an_answer_that_writes_into_its_arguments_does_not_spoil_the_cases(exercise: Exercise) -> None:
    """Doubling in place, then forgetting to square: right only if the oracle were asked about the doubled x."""

    def in_place(x: torch.Tensor) -> torch.Tensor:
        x *= 2
        return x.square().sum()

    for _ in range(2):
        assert exercise.verdict(in_place).status == "wrong"
    assert exercise.cases[0][0].tolist() == [1, 2]
    assert exercise.verdict(lambda x: x.square().sum()).status == "correct"


def test_the_tolerance_is_relative_above_one_and_absolute_below() -> None:
    for scale, allowed in ((1e-9, 1e-3), (1000.0, 1.0)):
        exercise = Exercise("01.E9", "t", lambda s=scale: s, ((),), {"zero": lambda: -1.0, "one": lambda: -2.0}, 1e-3)
        assert exercise.verdict(scale + 0.9 * allowed).status == "correct"
        assert exercise.verdict(scale - 0.9 * allowed).status == "correct"
        assert exercise.verdict(scale + 1.1 * allowed).status == "wrong"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_mistake_that_is_not_finite_is_named_too(bad: float) -> None:
    """0 log 0, a division by zero: the learner's NaN is just what that mistake gives."""
    exercise = Exercise(
        "01.E9", "t", lambda x: x, ((0.0,), (1.0,)), {"bad": lambda x: x if x else bad, "b": lambda x: 9}
    )
    assert exercise.verdict(lambda x: x if x else bad).message == "not yet: this is what one gets with bad"
    assert exercise.verdict(bad).status == "wrong"
    assert (
        exercise.verdict(lambda x: x if x else 5.0).message
        == "not yet: for arguments (0.0) the answer is 5, and should be 0"
    )


def test_check_shows_one_line(exercise: Exercise, capsys: pytest.CaptureFixture[str]) -> None:
    assert exercise.check(lambda x: x.square().sum()) is None
    exercise.check(None)
    exercise.check(lambda x: x.sum())
    assert capsys.readouterr().out == (
        "01.E9  correct\n01.E9  not answered yet\n01.E9  not yet: this is what one gets with the sum of the values\n"
    )


def test_the_record_of_an_exercise(exercise: Exercise, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr(exercises, "publish", lambda line, **record: sent.append((line, record)))
    exercise.check(None)
    assert sent == [("01.E9  not answered yet", {"exercise": {"id": "01.E9", "status": "unanswered"}})]


def test_large_arguments_are_shown_in_short(exercise: Exercise) -> None:
    large = dataclasses.replace(exercise, cases=((torch.ones(3, 4),),))
    message = large.verdict(0.0).message
    assert message == (
        "not yet: for arguments (an array of shape (3, 4) that begins with 1) the answer is 0, and should be 12"
    )


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        (torch.arange(8.0) / 7, "[0.    , 0.1429, 0.2857, 0.4286, 0.5714, 0.7143, 0.8571, 1.    ]"),
        (torch.arange(9.0) + 3, "an array of shape (9,) that begins with 3"),
    ],
)
def test_up_to_eight_numbers_are_shown_and_of_more_the_first(
    exercise: Exercise, argument: torch.Tensor, shown: str
) -> None:
    message = dataclasses.replace(exercise, cases=((argument,),)).verdict(0.0).message
    assert message.startswith(f"not yet: for arguments ({shown}) ")


def test_an_exercise_that_is_printed_does_not_tell_its_mistakes(exercise: Exercise) -> None:
    assert "Sum the squares." in repr(exercise)
    assert "the sum of the values" not in repr(exercise)


# --- Every exercise of every chapter ---------------------------------------------------------------


def test_ids_are_unique() -> None:
    ids = [value.id for _, _, value in EXERCISES]
    assert sorted(set(ids)) == sorted(ids)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapters_exercises_are_exported_and_numbered_from_one(chapter: str) -> None:
    module = importlib.import_module(f"vi_tutorial.exercises.{chapter}")
    mine = {name: value for c, name, value in EXERCISES if c == chapter}
    assert sorted(module.__all__) == sorted(mine)
    assert {value.id for value in mine.values()} == {f"{chapter[2:]}.E{i + 1}" for i in range(len(mine))}
    assert len(mine) >= 3


@every_exercise
def test_the_task_is_said_in_a_sentence(exercise: Exercise) -> None:
    assert re.fullmatch(r"\d\d\.E\d+", exercise.id)
    assert re.fullmatch(r"\S.{20,}\.", exercise.task)


@every_exercise
def test_the_oracle_itself_is_accepted(exercise: Exercise) -> None:
    assert exercise.verdict(exercise.oracle) == Verdict("correct", "correct")


@every_position
def test_the_oracle_is_finite_on_every_case(position: int) -> None:
    assert all(np.isfinite(answer).all() for answer in right_answers(position))


@every_exercise
def test_each_of_two_or_more_mistakes_is_rejected_by_its_own_name(exercise: Exercise) -> None:
    assert len(exercise.mistakes) >= 2
    for name, mistake in exercise.mistakes.items():
        verdict = exercise.verdict(mistake)
        assert verdict == Verdict("wrong", f"not yet: this is what one gets with {name}"), name


@every_exercise
@pytest.mark.parametrize("stub", [None, ...], ids=["None", "Ellipsis"])
def test_an_empty_stub_of_every_exercise_is_not_answered_yet(exercise: Exercise, stub: Any) -> None:
    for answer in (stub, lambda *_: stub):
        assert exercise.verdict(answer) == Verdict("unanswered", "not answered yet")


@every_position
def test_an_answer_of_another_shape_is_told_so(position: int) -> None:
    answers = iter(right_answers(position))
    verdict = EXERCISES[position][2].verdict(lambda *_: next(answers)[None, None])
    assert verdict.status == "wrong"
    assert "the answer is of shape (1, 1" in verdict.message
    assert "should have shape" in verdict.message


@every_position
def test_a_slip_in_the_third_digit_is_not_accepted(position: int) -> None:
    answers = iter(right_answers(position))
    assert EXERCISES[position][2].verdict(lambda *_: 1.01 * next(answers) + 0.01).status == "wrong"


@every_exercise
def test_an_answer_that_raises_is_told_what(exercise: Exercise) -> None:
    def raises(*_: Any) -> None:
        raise RuntimeError("my own mistake")

    verdict = exercise.verdict(raises)
    assert verdict.status == "wrong"
    assert "it raises RuntimeError('my own mistake')" in verdict.message


@every_position
def test_an_oracle_gives_the_same_answers_twice(position: int) -> None:
    """Nothing in it may depend on a seed that is not its own, or on who asked before."""
    torch.manual_seed(position)
    exercise = EXERCISES[position][2]
    answers = iter(right_answers(position))
    verdict = exercise.verdict(lambda *_: next(answers))
    assert verdict.status == "correct"


def test_points_are_the_share_of_the_cases_that_come_out_right() -> None:
    double = Exercise(
        "01.E9", "Double x.", lambda x: x + x, ((1.0,), (3.0,)), {"the square": lambda x: x**2, "x": lambda x: x}
    )

    def raises_at_three(x: float) -> float:
        if x == 3:
            raise ZeroDivisionError
        return 2 * x

    assert double.points(lambda x: 2 * x) == 1
    assert double.points(lambda x: 2 * x, out_of=10) == 10
    assert double.points(raises_at_three, out_of=10) == 5
    assert double.points(lambda x: 7.0, out_of=10) == 0
