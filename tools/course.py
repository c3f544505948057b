"""Notebooks for a class: ``student`` without the solutions, ``assignment`` as a course folder for nbgrader.

In an assignment each exercise is a cell to answer and a locked cell that scores it, 10 points each: the share of the
exercise's cases that come out right. A stub left as it is raises, which is 0 points. The solution moves into the stub's
place, between the marks that nbgrader removes when it makes the release version.

    python tools/course.py student                # build/student/*.ipynb
    python tools/course.py assignment             # build/course, with nbgrader_config.py and source/
    cd build/course && nbgrader generate_assignment 01_the_elbo --create
"""

from __future__ import annotations

import ast
import copy
import importlib
import re
import textwrap
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import nbformat
import typer
from nbformat import NotebookNode

from vi_tutorial._atomic import write_atomically
from vi_tutorial._execute import select

ROOT = Path(__file__).resolve().parents[1]
POINTS = 10
BEGIN, END, STUB = "### BEGIN SOLUTION", "### END SOLUTION", "...  # your code"
CONFIG = f'''"""The course that `nbgrader` finds here."""

c = get_config()
c.CourseDirectory.course_id = "vi_tutorial"
c.ClearSolutions.code_stub = {{"python": "{STUB}"}}
c.ClearSolutions.begin_solution_delimeter = "BEGIN SOLUTION"
c.ClearSolutions.end_solution_delimeter = "END SOLUTION"
c.ExecutePreprocessor.timeout = 600
'''
CHECK = re.compile(r"^(ch\d\d)\.(\w+)\.check\((.*)\)$", re.MULTILINE)

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


class Answer(NamedTuple):
    """A cell that ends by checking an answer."""

    index: int
    module: str
    task: str
    given: str
    """What is checked: a name, or an expression."""

    @property
    def id(self) -> str:
        """The exercise's number, such as ``01.E1``."""
        return str(getattr(importlib.import_module(f"vi_tutorial.exercises.{self.module}"), self.task).id)


def is_solution(cell: NotebookNode) -> bool:
    """Whether a cell gives something away, or is the heading of those that do."""
    return "solution" in cell.metadata.get("tags", []) or cell.source.startswith("## Solutions")


def answers(notebook: NotebookNode, solutions: bool) -> list[Answer]:
    """The cells that check an answer, in order: the stubs, or the solutions."""
    return [
        Answer(index, *match.groups())
        for index, cell in enumerate(notebook.cells)
        if cell.cell_type == "code" and is_solution(cell) == solutions
        for match in CHECK.finditer(cell.source)
    ]


def student_version(notebook: NotebookNode) -> NotebookNode:
    """A copy without solutions and without outputs."""
    made = copy.deepcopy(notebook)
    made.cells = [cell for cell in made.cells if not is_solution(cell)]
    for cell in made.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return made


def assignment_version(notebook: NotebookNode) -> NotebookNode:
    """A copy for nbgrader, with each solution in its stub's place."""
    solved = {(answer.module, answer.task): answer for answer in answers(notebook, solutions=True)}
    replaced: dict[int, list[NotebookNode]] = {}
    for answer in answers(notebook, solutions=False):
        solution = solved[answer.module, answer.task]
        stub = CHECK.sub("", notebook.cells[answer.index].source).strip()
        name = answer.id.lower().replace(".", "-")
        score = f"{answer.module}.{answer.task}.points({answer.given}, out_of={POINTS})"
        source = filled(stub, notebook.cells[solution.index].source, solution)
        replaced[answer.index] = [graded(f"answer-{name}", source), graded(f"points-{name}", score, points=POINTS)]
    made = student_version(notebook)
    kept = [index for index, cell in enumerate(notebook.cells) if not is_solution(cell)]
    made.cells = [new for index, cell in zip(kept, made.cells, strict=True) for new in replaced.get(index, [cell])]
    made.nbformat_minor = max(made.nbformat_minor, 5)
    return made


def graded(name: str, source: str, points: int | None = None) -> NotebookNode:
    """A cell that nbgrader knows: one to answer, or, with points, one that scores."""
    scores = points is not None
    mark = {"grade": scores, "grade_id": name, "locked": scores, "schema_version": 3, "solution": not scores}
    cell = nbformat.v4.new_code_cell(source, metadata={"nbgrader": {**mark, "task": False}})
    cell.id = name
    if scores:
        cell.metadata.nbgrader["points"] = points
    return cell


def filled(stub: str, code: str, solution: Answer) -> str:
    """The stub with the solution between marks."""
    statements = ast.parse(code).body
    last = next(index for index, node in enumerate(statements) if _checks(node, solution.task))
    before = statements[:last]
    functions = {node.name: node for node in before if isinstance(node, ast.FunctionDef)}
    if solution.given in functions:
        body = functions[solution.given]
        lines = [_text(code, node) for node in before if node is not body] + [_inside(code, body)]
        head = stub[: stub.index("...")].rstrip()  # the stub's signature, with whatever stands before it
        return f"{head}\n{textwrap.indent(_marked(lines), '    ')}"
    start = stub.partition("=")[0].rstrip()
    prelude = [_marked([_text(code, node) for node in before])] if before else []
    return "\n\n".join([*prelude, f"{start} = (\n{textwrap.indent(_marked([solution.given]), '    ')}\n)"])


def _checks(node: ast.stmt, task: str) -> bool:
    return (
        isinstance(node, ast.Expr) and ast.unparse(node.value).endswith(")") and f".{task}.check(" in ast.unparse(node)
    )


def _text(code: str, node: ast.stmt) -> str:
    first = min([node.lineno, *(item.lineno for item in getattr(node, "decorator_list", []))])
    return "\n".join(code.splitlines()[first - 1 : node.end_lineno])


def _inside(code: str, function: ast.FunctionDef) -> str:
    lines = code.splitlines()
    if function.body[0].lineno == function.lineno:  # def f(x): return x
        return ast.unparse(function.body)  # type: ignore[arg-type]
    return textwrap.dedent("\n".join(lines[function.body[0].lineno - 1 : function.end_lineno]))


def _marked(lines: list[str]) -> str:
    return "\n".join([BEGIN, *lines, END])


def write(notebook: NotebookNode, path: Path) -> None:
    """Whole or not at all."""
    nbformat.validate(notebook)
    write_atomically(path, nbformat.writes(notebook) + "\n")


Chapters = Annotated[list[str] | None, typer.Argument(help="Numbers or names, such as 01 06.", show_default="all")]
Notebooks = Annotated[Path, typer.Option(help="The folder of the chapters.", exists=True, file_okay=False)]
Output = Annotated[Path, typer.Option(help="Where they go.", file_okay=False)]


@app.command()
def student(
    chapters: Chapters = None, notebooks: Notebooks = ROOT / "notebooks", output: Output = ROOT / "build" / "student"
) -> None:
    """Write the chapters without their solutions."""
    for path in select(notebooks, chapters or [], ".ipynb"):
        write(student_version(nbformat.read(path, as_version=4)), output / path.name)
        typer.echo(output / path.name)


@app.command()
def assignment(
    chapters: Chapters = None, notebooks: Notebooks = ROOT / "notebooks", output: Output = ROOT / "build" / "course"
) -> None:
    """Write a course folder for nbgrader: one assignment for each chapter that has exercises."""
    write_atomically(output / "nbgrader_config.py", CONFIG)
    for path in select(notebooks, chapters or [], ".ipynb"):
        notebook: Any = nbformat.read(path, as_version=4)
        if answers(notebook, solutions=False):
            write(assignment_version(notebook), output / "source" / path.stem / path.name)
            typer.echo(f"{path.stem}: {len(answers(notebook, solutions=False))} exercises")


if __name__ == "__main__":
    app()
