"""The mutation tests themselves: the operators, the tables, and that a mutant is really there when tests run."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import mutants
import pytest
import reproduce

SOURCE = '''\
"""About x - 1."""

def mean(x: int | float, *, centred: bool = True):
    """Half of x + 1."""
    if x < 0:
        raise ValueError(f"x must be {1 + 1}")
    check(x)
    return -x.sum().detach() / 2
'''


def run(tree: ast.Module) -> dict:
    space: dict = {"check": lambda x: None}
    exec(compile(tree, "mutant", "exec"), space)
    return space


def test_each_mutant_differs_in_one_place_that_runs() -> None:
    changes = {(m.was, m.becomes) for m in mutants.generate(SOURCE)}
    last, test, head = "return -x.sum().detach() / 2", "if x < 0:", "def mean(x: int | float, *, centred: bool=True):"
    assert changes == {
        (head, head.replace("True", "False")),
        (test, "if x <= 0:"),
        (test, "if x < 1:"),
        ("check(x)", "pass"),
        (last, "return -x.sum().detach() * 2"),
        (last, "return -x.sum().detach() / 3"),
        (last, "return x.sum().detach() / 2"),
        (last, "return -x.sum() / 2"),
        (last, "return -x.mean().detach() / 2"),
    }


def test_mutants_have_names_of_their_own_lines_and_code() -> None:
    found = mutants.generate(SOURCE * 2)
    assert len({m.id for m in found}) == len(found)
    (turned,) = [m for m in mutants.generate(SOURCE) if m.becomes.startswith("return x.sum")]
    assert (turned.function, turned.lines) == ("mean", (8, 8))
    (less,) = [m for m in mutants.generate("def f(x):\n    return x - 1\n") if "+" in m.becomes]
    assert run(less.tree)["f"](1) == 2


def test_names_survive_a_move() -> None:
    before = [m.id for m in mutants.generate(SOURCE)]
    assert [m.id for m in mutants.generate('"""A line more."""\n\n\n' + SOURCE)] == before


def test_samples_are_seeded_and_the_first_modules_whole() -> None:
    sample = [m.id for m in mutants.chosen("models")]
    assert sample == [m.id for m in mutants.chosen("models")]
    assert len(set(sample)) == mutants.SAMPLE
    for module in mutants.WHOLE:
        every = mutants.generate(mutants.path_of(module).read_text(encoding="utf-8"))
        assert [m.id for m in mutants.chosen(module)] == [m.id for m in every]


@pytest.mark.parametrize("entry", mutants.domain(), ids=lambda entry: entry["name"])
def test_each_mistake_of_the_table_fits_its_module(entry: dict) -> None:
    path = mutants.path_of(entry["module"])
    text, (first, last) = mutants.changed_source(entry, path.read_text(encoding="utf-8"))
    assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(path.read_text(encoding="utf-8")))
    assert 1 <= first <= last
    chapters = {twin.name[:2] for twin in (mutants.ROOT / "notebooks" / "src").glob("*.py")}
    assert set(entry["chapters"].split()) <= chapters


def test_names_in_the_table_are_unique() -> None:
    names = [entry["name"] for entry in mutants.domain()]
    assert len(set(names)) == len(names) >= 60


def test_a_text_that_is_not_there_exactly_once_is_refused() -> None:
    entry = {"name": "a sign", "module": "elbo", "was": "x", "becomes": "y"}
    for source in ("", "x x"):
        with pytest.raises(ValueError, match="a sign: found"):
            mutants.changed_source(entry, source)


def test_what_is_called_equivalent_exists_and_has_a_reason() -> None:
    ids = {m.id for module in mutants.TESTS for m in mutants.chosen(module)}
    for name, reason in mutants.equivalent().items():
        assert name in ids, f"{name} names no mutant (any more)"
        assert len(reason) > 20


def test_a_child_tells_its_status_and_a_slow_one_is_ended() -> None:
    def tells(tell: object) -> int:
        tell("done")  # type: ignore[operator]
        return 3

    assert mutants.in_fork(tells, 20)[:2] == (3, "done")
    assert mutants.in_fork(lambda tell: 1 / 0, 20)[:2] == (1, "ZeroDivisionError: division by zero")  # type: ignore[arg-type,return-value]

    def sleeps(tell: object) -> int:
        time.sleep(60)
        return 0

    assert mutants.in_fork(sleeps, 0.2)[0] is None


def test_results_are_merged_and_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    path.write_text('{"faults": 3, "mutants": {"elbo": {}}}')
    mutants.merge(path, {"mutants": {}, "commit": "abc"})
    assert json.loads(path.read_text()) == {"faults": 3, "mutants": {}, "commit": "abc"}


SMALL = """
import sys, mutants
from pathlib import Path
mutants.ROOT = Path.cwd()
sys.path.insert(0, ".")
path = mutants.path_of("one", Path.cwd())
tests = {"tests/test_one.py::test_one": {"seconds": 0.1, "lines": [2]}}
for text in (path.read_text(), path.read_text().replace("1", "2")):
    code = compile(text, str(path), "exec")
    print(mutants.against_tests("one", code, (2, 2), tests)["outcome"])
"""


def test_a_broken_module_is_noticed_and_the_same_one_is_not(tmp_path: Path) -> None:
    """In a small repository, in a clean process: what is forked there is what is forked for every mutant."""
    for name, text in {
        "vi_tutorial/__init__.py": "",
        "vi_tutorial/one.py": "def one():\n    return 1\n",
        "tests/test_one.py": "from vi_tutorial.one import one\n\ndef test_one():\n    assert one() == 1\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(mutants.ROOT / "tools"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SMALL], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["survived", "killed"], done.stderr


def test_twenty_settings_each_prepared_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(reproduce.SETTINGS) == 20
    assert len({repr(setting) for setting in reproduce.SETTINGS.values()}) == 20
    monkeypatch.setattr(reproduce, "_copied", lambda folder: (folder / "notebooks").mkdir())
    setting = reproduce.SETTINGS["a path with spaces and other letters"]
    command, environment, checkout = reproduce.prepared(setting, tmp_path)
    assert command == [sys.executable]
    assert environment["HOME"] == str(tmp_path / "home")
    assert environment["PYTHONPATH"] == str(checkout) == str(tmp_path / setting.folder)


def test_only_cells_that_agree_are_counted() -> None:
    cell = '<testcase classname="notebooks.{}_a.ipynb" name="Cell">{}</testcase>'
    said = [("02", ""), ("02", "<failure/>"), ("02", "<skipped/>"), ("03", ""), ("03", ""), ("04", "<error/>")]
    junit = f"<testsuites><testsuite>{''.join(cell.format(*part) for part in said)}</testsuite></testsuites>"
    assert reproduce.agreed(junit, ["02", "03", "04"]) == {"02": 1, "03": 2, "04": 0}


def test_a_setting_counts_when_every_chapter_agrees_as_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    ran: list[list[str]] = []

    def run(setting: reproduce.Setting, chapters: list[str]) -> dict[str, int]:
        ran.append(chapters)
        return {c: reproduce.cells_of(c) - (c == "05" and setting.locale == "tr_TR") for c in chapters}

    monkeypatch.setattr(reproduce, "run", run)

    def count() -> int:
        reproduce.main()
        return json.loads((tmp_path / "proof.json").read_text())["nbval_runs"]["passed"]

    assert count() == 19  # one cell of chapter 05 does not agree in Turkish
    assert len(ran) == 20
    assert count() == 19
    assert ran[20:] == [["05"]]  # what agreed is not run again …
    old = reproduce.digest
    monkeypatch.setattr(
        reproduce, "digest", lambda chapter, setting: "changed" if chapter == "07" else old(chapter, setting)
    )
    reproduce.main(["locale C"])  # … unless it changed
    assert ran[21:] == [["07"]]
    assert json.loads((tmp_path / "proof.json").read_text())["nbval_runs"] == {"passed": 1, "total": 20}
