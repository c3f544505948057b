"""What every chapter is held to, read from the stored notebooks; nbval executes them."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
import sync
from nbformat import NotebookNode

from vi_tutorial._execute import CHAPTER_NAME
from vi_tutorial.cli import records

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
CHAPTERS = sorted(FOLDER.glob("*.ipynb"))
# How many numbered claims a chapter verifies at least.
CLAIMS = {
    "01": 8,
    "02": 8,
    "03": 8,
    "04": 5,
    "05": 5,
    "06": 6,
    "07": 4,
    "08": 7,
    "09": 5,
    "10": 5,
    "11": 9,
    "12": 6,
    "13": 11,
    "14": 11,
    "15": 6,
    "16": 6,
    "17": 8,
    "18": 6,
    "19": 4,
    "20": 5,
}
ELBO_LINE = "elbo(draw(model.given(x), q(x), num_samples).log_weight)"
MAX_BYTES = 700_000
MAX_IGNORED_OUTPUTS = 4
MAX_LINES = 40
MAX_CODE_CELLS_IN_A_ROW = 3
MIN_ALT = 40

NEGATIVE_ZERO = re.compile(r"(?<![\w.])-0\.0+(?![0-9e])")
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}")
ABSOLUTE_PATH = re.compile(r"(?<![\w.)\]$/<>:-])(/[A-Za-z_][\w.-]*/[\w.-]+|[A-Z]:\\\w)")
BASE64 = re.compile(r"[A-Za-z0-9+/=]{200,}")
LOADED_FROM_A_SITE = re.compile(
    r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)\s*=\s*["']?(?:https?:)?//"""
    r"""|@import\s+(?:url\()?\s*["']?(?:https?:)?//|url\(\s*["']?(?:https?:)?//""",
    re.IGNORECASE,
)
FILE_PATH = re.compile(r"\S+\.(png|svg|jpe?g|gif|pdf)")
MATH = re.compile(r"\$\$.*?\$\$|\$[^$\n]+(?:\n[^$\n]+)*\$|\\begin\{(\w+\*?)\}.*?\\end\{\1\}", re.DOTALL)
SYMBOLS = [*"xzKNBDL", r"\theta", r"\phi", r"\mathcal{L}", "p(z)", "p_D(x)"]
SYMBOLS += [r"p_\theta(x,z)", r"p_\theta(x|z)", r"q_\phi(z|x)"]
OTHER_NOTATION = {
    r"\\(text|mathrm|operatorname)\{ELBO\}": r"\mathcal{L}",
    r"p_\{\\theta\}": r"p_\theta",
    r"q_\{\\phi\}": r"q_\phi",
    r"\\varphi|q_\\lambda|q_\{\\lambda\}": r"\phi",
    r"p_\{?\\(text|mathrm|mathcal)\{(D|data)\}|p_\{D\}": r"p_D",
}


@cache
def load(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def notebook(path: Path) -> NotebookNode:
    return load(path)


@pytest.fixture
def number(path: Path) -> str:
    """The chapter's number. Chapter 00 is the way in: it need not have figures, exercises and the like."""
    return path.stem[:2]


def cells(notebook: NotebookNode, kind: str) -> Iterator[tuple[int, NotebookNode]]:
    return ((index, cell) for index, cell in enumerate(notebook.cells) if cell.cell_type == kind)


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def outputs(notebook: NotebookNode, mime: str) -> Iterator[tuple[int, str]]:
    for index, cell in cells(notebook, "code"):
        for output in cell.outputs:
            if mime in output.get("data", {}):
                yield index, output.data[mime]


def texts(notebook: NotebookNode) -> Iterator[tuple[int, str]]:
    """What the outputs say, pictures left out."""
    for index, cell in cells(notebook, "code"):
        for output in cell.outputs:
            if output.output_type == "stream":
                yield index, output.text
    for mime in ("text/plain", "text/html", "text/markdown", "text/latex"):
        for index, text in outputs(notebook, mime):
            yield index, BASE64.sub("", text)


def exercise_cells(notebook: NotebookNode) -> Iterator[tuple[int, NotebookNode, dict[str, Any]]]:
    for index, cell in cells(notebook, "code"):
        for record in records(nbformat.v4.new_notebook(cells=[cell]), "exercise"):
            yield index, cell, record


def test_there_are_chapters():
    assert CHAPTERS, "no notebook in notebooks/"


def test_names_and_numbers():
    assert [path.name for path in CHAPTERS if not CHAPTER_NAME.fullmatch(path.stem)] == []
    numbers = Counter(path.stem[:2] for path in CHAPTERS)
    assert [number for number, times in numbers.items() if times > 1] == []


def test_the_twin_says_the_same(path):
    assert sync.twin_of(path).exists(), f"{path.name} has no twin in notebooks/src"
    assert sync.difference(path) == "", "run python tools/sync.py, or tools/execute.py"


def test_it_was_executed_from_clean_in_order(notebook):
    code = [cell for _, cell in cells(notebook, "code")]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any(cell.outputs for cell in code)


def test_a_chapter_installs_the_package_where_it_is_missing(notebook):
    address = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert cell.metadata["jupyter"]["source_hidden"]
    source = cell.source.replace("from IPython import get_ipython\n", "")
    calls = []
    shell = SimpleNamespace(run_line_magic=lambda *call: calls.append(call))
    exec(source, {"get_ipython": lambda: shell})
    assert calls == [inline := ("matplotlib", "inline")]
    exec(source.replace('find_spec("vi_tutorial")', 'find_spec("not_there")'), {"get_ipython": lambda: shell})
    assert calls[1:] == [("pip", f"install --quiet git+{address}"), inline]
    exec(source, {"get_ipython": lambda: None})  # the twin as a script


def test_nothing_failed(notebook):
    failed = [i for i, cell in cells(notebook, "code") for out in cell.outputs if out.output_type == "error"]
    assert failed == []


def test_nothing_is_left_out_of_the_comparison(notebook):
    marked = {
        kind: [
            index
            for index, cell in cells(notebook, "code")
            if kind in tags(cell) or kind.upper().replace("-", "_") in cell.source
        ]
        for kind in ("nbval-skip", "nbval-ignore-output", "nbval-raises-exception", "raises-exception")
    }
    assert len(marked.pop("nbval-ignore-output")) <= MAX_IGNORED_OUTPUTS
    assert not any(marked.values()), marked


def test_the_file_is_small(path):
    assert path.stat().st_size < MAX_BYTES


def test_every_picture_says_what_is_seen(notebook):
    problems = []
    for index in dict.fromkeys(index for index, _ in outputs(notebook, "image/png")):
        alt = notebook.cells[index].metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if len(alt) < MIN_ALT or FILE_PATH.fullmatch(alt.strip()):
            problems.append(f"cell {index}: alt text {alt!r}")
    assert problems == []


def test_text_stands_between_the_code(notebook):
    problems, in_a_row = [], 0
    for index, cell in enumerate(notebook.cells):
        if "solution" in tags(cell):
            continue
        in_a_row = in_a_row + 1 if cell.cell_type == "code" else 0
        if in_a_row > MAX_CODE_CELLS_IN_A_ROW:
            problems.append(f"cell {index}: the {in_a_row}th code cell in a row")
        if cell.cell_type == "code" and (lines := len(cell.source.splitlines())) > MAX_LINES:
            problems.append(f"cell {index}: {lines} lines")
    assert problems == []


def test_figures_and_what_moves(notebook, number):
    if number == "00":
        pytest.skip("the way in")
    figures = {index for index, _ in outputs(notebook, "image/png")}
    animations = [index for index, html in outputs(notebook, "text/html") if 'class="vi-animation"' in html]
    assert len(figures) >= 3
    assert animations


def test_claims_are_verified(notebook, number):
    checks = records(notebook, "check")
    assert [check["id"] for check in checks if not check["ok"]] == []
    verified = {re.sub(r"[a-z]+$", "", check["id"]) for check in checks}
    expected = {f"{number}.{claim}" for claim in range(1, CLAIMS.get(number, 0) + 1)}
    assert expected - verified == set()


def test_check_ids(notebook, number):
    ids = [check["id"] for check in records(notebook, "check")]
    assert [name for name, times in Counter(ids).items() if times > 1] == []
    assert [name for name in ids if not re.fullmatch(rf"{number}\.\d+[a-z]?", name)] == []


def test_exercises_come_with_solutions(notebook, number):
    found = list(exercise_cells(notebook))
    stubs = {record["id"] for _, cell, record in found if "solution" not in tags(cell)}
    solved = {record["id"] for _, cell, record in found if "solution" in tags(cell) and record["status"] == "correct"}
    assert [name for name in stubs if not re.fullmatch(rf"{number}\.E\d+", name)] == []
    assert len(stubs) >= (0 if number == "00" else 3)
    assert stubs == solved


def test_solutions_stand_folded_at_the_end(notebook):
    solutions = [(index, cell) for index, cell in enumerate(notebook.cells) if "solution" in tags(cell)]
    open_cells = [
        index
        for index, cell in solutions
        if cell.cell_type == "code"
        and not ("hide-cell" in tags(cell) and cell.metadata.get("jupyter", {}).get("source_hidden"))
    ]
    assert open_cells == [], 'needs tags=["solution", "hide-cell"] jupyter={"source_hidden": true}'
    stubs = [index for index, cell, _ in exercise_cells(notebook) if "solution" not in tags(cell)]
    early = [index for index, _ in solutions if stubs and index < max(stubs)]
    assert early == [], f"the last exercise is cell {max(stubs, default=0)}"


def test_outputs_are_the_same_on_every_machine(notebook):
    problems = []
    for index, text in texts(notebook):
        if "nbval-ignore-output" in tags(notebook.cells[index]):
            continue
        for what, pattern in (("-0.0", NEGATIVE_ZERO), ("address", ADDRESS)):
            problems += [f"cell {index}: {what}: {m.group()}" for m in pattern.finditer(text)]
    assert problems == []


def test_outputs_say_nothing_about_this_machine(notebook):
    home = str(Path.home())
    problems = [
        f"cell {index}: {text[:80]!r}"
        for index, text in texts(notebook)
        if ABSOLUTE_PATH.search(text) or (len(home) > 1 and home in text)
    ]
    assert problems == []


def test_outputs_load_nothing_from_another_site(notebook):
    found = [(index, m.group()) for index, html in texts(notebook) for m in LOADED_FROM_A_SITE.finditer(html)]
    assert found == []


def test_the_line_that_computes_the_elbo_is_the_same(notebook, number):
    if number == "00":
        pytest.skip("the way in")
    assert any(ELBO_LINE in cell.source for _, cell in cells(notebook, "code"))


def test_one_notation(notebook, number):
    problems, written = [], ""
    for index, cell in cells(notebook, "markdown"):
        for match in MATH.finditer(cell.source):
            written += match.group()
            problems += [
                f"cell {index}: {match.group()} has {other.group()}; we write {ours}"
                for pattern, ours in OTHER_NOTATION.items()
                for other in re.finditer(pattern, match.group())
            ]
    assert problems == []
    assert r"\mathcal{L}" in written


def test_chapter_00_has_the_table_of_notation():
    (start,) = [path for path in CHAPTERS if path.stem.startswith("00_")]
    text = "\n\n".join(cell.source for _, cell in cells(load(start), "markdown"))
    section = re.split(r"^#+ .*Notation.*$", text, flags=re.MULTILINE)[1]
    section = re.split(r"^#+ ", section, flags=re.MULTILINE)[0]
    rows = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    spans = {re.sub(r"\\[,;]|\s", "", m.replace(r"\mid", "|")) for m in re.findall(r"\$([^$]+)\$", rows)}
    assert [symbol for symbol in SYMBOLS if symbol not in spans] == []
