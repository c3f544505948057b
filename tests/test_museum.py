"""Every checker on every exhibit and on its mend: each bug is caught, and nothing else is."""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import cache
from pathlib import Path

import nbformat
import pytest
import torch

from vi_tutorial import checkers
from vi_tutorial.museum import EXHIBITS, NUMBERS, ROOMS, Exhibit, exhibit, guess, reveal, run_checkers, show

exhibits = pytest.mark.parametrize("item", EXHIBITS, ids=lambda item: item.name)


@cache
def verdicts(name: str, version: str) -> dict[str, str | None]:
    return run_checkers(exhibit(name), version)


@exhibits
def test_the_bug_is_caught_by_the_checkers_that_are_named(item: Exhibit) -> None:
    found = verdicts(item.name, "wrong")
    assert item.checkers
    assert [name for name in item.checkers if not found[name]] == []


@exhibits
def test_the_mend_is_caught_by_none(item: Exhibit) -> None:
    found = verdicts(item.name, "right")
    assert {name: words for name, words in found.items() if words} == {}


@exhibits
def test_both_versions_meet_the_same_checkers(item: Exhibit) -> None:
    applied = [
        {name for name, words in verdicts(item.name, v).items() if words is not None} for v in ("wrong", "right")
    ]
    assert applied[0] == applied[1]
    assert set(verdicts(item.name, "wrong")) == set(checkers.__all__)


@exhibits
def test_the_symptom_shows(item: Exhibit) -> None:
    wrong, right = item.measured()
    assert math.isfinite(wrong)
    assert math.isfinite(right)
    scale = max(abs(wrong), abs(right))
    assert abs(wrong - right) > 0.005 * scale


@exhibits
def test_the_same_draws_every_time_and_none_taken_from_the_reader(item: Exhibit) -> None:
    state = torch.get_rng_state()
    assert item.measured() == item.measured()
    assert torch.equal(torch.get_rng_state(), state)


@exhibits
def test_what_is_on_the_label(item: Exhibit) -> None:
    assert item.room in ROOMS
    for text in (item.title, item.unit, item.symptom, item.mend, item.reference):
        assert len(text) > 10
    for text in (item.symptom, item.mend):
        assert text.endswith(".")
    wrong, right = item.code("wrong"), item.code("right")
    assert wrong != right
    for code in (wrong, right):
        assert code.startswith("def f(")
        assert len(code.splitlines()) <= 8


def test_the_museum_is_large_enough_and_every_checker_has_work() -> None:
    assert len(EXHIBITS) >= 20
    assert [name for name, times in Counter(item.name for item in EXHIBITS).items() if times > 1] == []
    assert {item.room for item in EXHIBITS} == set(ROOMS)
    busy = {name for item in EXHIBITS for name, words in verdicts(item.name, "wrong").items() if words}
    assert set(checkers.__all__) - busy == set()


def test_no_checker_catches_everything() -> None:
    for name in checkers.__all__:
        assert any(not verdicts(item.name, "wrong")[name] for item in EXHIBITS), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_default_dtype_plays_no_part(dtype: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        for item in EXHIBITS:
            assert run_checkers(item) == verdicts(item.name, "wrong")
    finally:
        torch.set_default_dtype(before)


def test_a_guess(capsys: pytest.CaptureFixture[str]) -> None:
    guess("kl-averaged")
    guess("kl-averaged", "kl_is_a_divergence")
    guess("kl-averaged", "stays_below_the_evidence")
    guess("kl-averaged", "gradient_is_unbiased")
    said = capsys.readouterr().out
    for words in ("no guess yet", "kl_is_a_divergence, is silent", "evidence, barks", "unbiased, does not apply here"):
        assert words in said
    with pytest.raises(ValueError, match="checker must be one of"):
        guess("kl-averaged", "nobody")
    with pytest.raises(KeyError, match="name must be one of"):
        guess("nothing")
    with pytest.raises(ValueError, match="'wrong' or 'right'"):
        exhibit("kl-averaged").code("left")
    with pytest.raises(ValueError, match="'wrong' or 'right'"):
        run_checkers(exhibit("kl-averaged"), "left")


def test_every_exhibit_has_a_number_which_gives_nothing_away(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(NUMBERS.values()) == [item.name for item in EXHIBITS]
    for number, name in NUMBERS.items():
        assert exhibit(number) is exhibit(name)
        assert number[0] == str(exhibit(name).room)
        show(number)
        guess(number)
        said = capsys.readouterr().out
        assert said.startswith(f"# {number}: {exhibit(name).title}\ndef f(")
        assert said.endswith(f"{number}: no guess yet\n")
        assert "wrong" not in said
        assert name not in said


def test_the_label_is_the_guess_with_the_mend(capsys: pytest.CaptureFixture[str]) -> None:
    for number in ("1a", "6c"):
        reveal(number)
        said = " ".join(capsys.readouterr().out.split())
        item = exhibit(number)
        for words in (f"{number} is {item.name}", item.symptom, item.mend, item.reference, *item.checkers):
            assert words in said
    with pytest.raises(KeyError, match="one of 1a, 1b"):
        reveal("7a")


def test_the_chapter_shows_before_it_asks_and_asks_before_it_reveals() -> None:
    path = Path(__file__).resolve().parents[1] / "notebooks" / "20_the_bug_museum.ipynb"
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    places = {
        (verb, number): place
        for place, source in enumerate(cells)
        for verb, number in re.findall(r"^museum\.(show|guess|reveal)\(\"(\w+)\"\)", source, re.MULTILINE)
    }
    asked = [number for verb, number in places if verb == "guess"]
    assert len(asked) >= 12
    for number in asked:
        assert number in NUMBERS, "a name would be a diagnosis"
        assert places["show", number] < places["guess", number] < places["reveal", number]
