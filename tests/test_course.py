"""For a class: no solution leaks to a student, and a real nbgrader gives full, partial and no points."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import course
import nbformat
import pytest
from nbformat import NotebookNode

from vi_tutorial.exercises import Exercise

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
GRADED = ROOT / "notebooks" / "02_a_fixed_gaussian_joint.ipynb"


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> NotebookNode:
    return nbformat.read(request.param, as_version=4)


def said(cells: list[NotebookNode]) -> set[str]:
    """Lines that say something."""
    return {line.strip() for cell in cells for line in cell.source.splitlines() if len(line.strip()) > 11}


def test_no_solution_leaks_to_a_student(notebook: NotebookNode) -> None:
    made = course.student_version(notebook)
    hidden = said([cell for cell in notebook.cells if course.is_solution(cell)])
    open_to_all = said([cell for cell in notebook.cells if not course.is_solution(cell)])
    assert said(made.cells) & (hidden - open_to_all) == set()
    assert not any("## Solutions" in cell.source for cell in made.cells)
    assert all(not cell.get("outputs") for cell in made.cells)
    assert len(course.answers(made, solutions=False)) == len(course.answers(notebook, solutions=True))


def test_an_assignment_has_every_exercise_solved_in_its_place(notebook: NotebookNode) -> None:
    made = course.assignment_version(notebook)
    nbformat.validate(made)
    stubs = course.answers(notebook, solutions=False)
    marks = [cell.metadata.nbgrader for cell in made.cells if "nbgrader" in cell.metadata]
    assert len({mark.grade_id for mark in marks}) == len(marks) == 2 * len(stubs)
    assert sum(mark.get("points", 0) for mark in marks) == course.POINTS * len(stubs)
    for cell in made.cells:
        if cell.metadata.get("nbgrader", {}).get("solution"):
            compile(cell.source, "answer", "exec")
            assert cell.source.count(course.BEGIN) == cell.source.count(course.END) >= 1
            outside = "".join(part.split(course.BEGIN)[0] for part in cell.source.split(course.END))
            assert "return" not in outside
    assert not any(course.is_solution(cell) for cell in made.cells)


def test_solutions_take_what_the_stubs_promise(notebook: NotebookNode) -> None:
    solved = {(answer.module, answer.task): answer for answer in course.answers(notebook, solutions=True)}
    for answer in course.answers(notebook, solutions=False):
        solution = solved[answer.module, answer.task]
        signatures = []
        for place in (answer, solution):
            tree = ast.parse(notebook.cells[place.index].source)
            found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == place.given]
            signatures.append([ast.unparse(function.args) for function in found])
        assert signatures[0] == signatures[1], answer.id


def test_there_are_seventy_exercises_and_each_names_two_mistakes() -> None:
    found = [answer for path in CHAPTERS for answer in course.answers(nbformat.read(path, as_version=4), False)]
    exercises = [getattr(importlib.import_module(f"vi_tutorial.exercises.{a.module}"), a.task) for a in found]
    assert len({exercise.id for exercise in exercises}) == len(exercises) >= 70
    assert all(isinstance(exercise, Exercise) and len(exercise.mistakes) >= 2 for exercise in exercises)


def nbgrader(folder: Path, *arguments: str) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "nbgrader", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nbgrader_gives_full_partial_and_no_points(tmp_path: Path) -> None:
    from nbgrader.api import Gradebook

    course.assignment([GRADED.stem], ROOT / "notebooks", tmp_path)
    nbgrader(tmp_path, "generate_assignment", GRADED.stem, "--create")
    released = nbformat.read(tmp_path / "release" / GRADED.stem / GRADED.name, as_version=4)
    assert not any("SOLUTION" in cell.source for cell in released.cells)
    stubs = course.answers(nbformat.read(GRADED, as_version=4), solutions=False)
    source = nbformat.read(tmp_path / "source" / GRADED.stem / GRADED.name, as_version=4)
    right = {c.metadata.nbgrader.grade_id: c.source for c in source.cells if "nbgrader" in c.metadata}
    expected = {"right": 10.0 * len(stubs), "wrong": 10.0, "empty": 0.0}
    for name in expected:
        notebook = nbformat.from_dict(released)
        for number, stub in enumerate(stubs):
            grade_id = f"answer-{stub.id.lower().replace('.', '-')}"
            cell = next(c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") == grade_id)
            exercise = getattr(importlib.import_module(f"vi_tutorial.exercises.{stub.module}"), stub.task)
            mistake = next(iter(exercise.mistakes))
            if name == "right" or (name == "wrong" and number == 0):
                cell.source = right[grade_id]
            elif name == "wrong":  # a likely mistake in every other exercise
                cell.source = f"{stub.given} = {stub.module}.{stub.task}.mistakes[{mistake!r}]"
                expected[name] += exercise.points(exercise.mistakes[mistake], out_of=course.POINTS)
        course.write(notebook, tmp_path / "submitted" / name / GRADED.stem / GRADED.name)
    nbgrader(tmp_path, "autograde", GRADED.stem, "--create")
    with Gradebook(f"sqlite:///{tmp_path / 'gradebook.db'}") as gradebook:
        scores = {name: gradebook.find_submission(GRADED.stem, name).score for name in expected}
        assert gradebook.find_assignment(GRADED.stem).max_score == 10 * len(stubs)
    assert scores == pytest.approx(expected)
    assert 0 == scores["empty"] < scores["wrong"] < scores["right"]
