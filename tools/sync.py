"""Keep the twins equal: ``notebooks/src/NN_name.py`` is what people edit, ``notebooks/NN_name.ipynb`` follows.

    python tools/sync.py 01          write the notebook from its twin, without executing it
    python tools/sync.py --check     say which notebooks differ from their twins

A cell keeps its id for life, through edits too; a cell whose code changed loses its outputs. The twin is put in
jupytext's own words (its header, the order of a cell's metadata), so that the two can be compared as text.
"""

from __future__ import annotations

import difflib
import hashlib
import sys
from pathlib import Path
from typing import Annotated

import jupytext
import nbformat
import typer
from jupytext.combine import map_outputs_to_inputs
from nbformat import NotebookNode

from vi_tutorial._atomic import write_atomically
from vi_tutorial._execute import select

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
METADATA = {
    "jupytext": {"notebook_metadata_filter": "kernelspec,-jupytext"},  # the shortest header in the twin
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
}


def notebook_of(twin: Path) -> Path:
    """``notebooks/src/01_a.py`` -> ``notebooks/01_a.ipynb``."""
    return twin.parents[1] / f"{twin.stem}.ipynb"


def twin_of(notebook: Path) -> Path:
    """``notebooks/01_a.ipynb`` -> ``notebooks/src/01_a.py``."""
    return notebook.parent / "src" / f"{notebook.stem}.py"


def merge(twin: Path) -> NotebookNode:
    """The twin's cells and metadata, with the present notebook's ids, and its outputs where the code is the same.

    The twin is rewritten if jupytext would say the same in other words.
    """
    merged = jupytext.read(twin, fmt="py:percent")
    path = notebook_of(twin)
    present = nbformat.read(path, as_version=4) if path.exists() else nbformat.v4.new_notebook()
    taken = {cell.id for cell in present.cells}
    language = present.metadata.get("language_info", {"name": "python"})
    merged.metadata = nbformat.from_dict({**METADATA, "language_info": language})
    merged.nbformat, merged.nbformat_minor = 4, 5
    for cell, match in zip(merged.cells, map_outputs_to_inputs(merged.cells, present.cells), strict=True):
        if match is None:
            cell.id = _new_id(cell.source, taken)
            continue
        old = present.cells[match]
        cell.id = old.id
        if cell.cell_type == "code" and cell.source == old.source:
            cell.outputs, cell.execution_count = old.outputs, old.execution_count
    merged = nbformat.reads(nbformat.writes(merged), as_version=4)  # a file's order of keys
    if (text := jupytext.writes(merged, fmt="py:percent")) != twin.read_text(encoding="utf-8"):
        write_atomically(twin, text)
    return merged


def save(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook the way Jupyter does."""
    nbformat.validate(notebook)
    write_atomically(path, nbformat.writes(notebook) + "\n")


def difference(notebook: Path) -> str:
    """What would have to change in the twin to say what the notebook says: empty when they agree."""
    twin = twin_of(notebook)
    said = jupytext.writes(nbformat.read(notebook, as_version=4), fmt="py:percent")
    written = twin.read_text(encoding="utf-8")
    return "".join(
        difflib.unified_diff(
            written.splitlines(keepends=True), said.splitlines(keepends=True), str(twin), str(notebook), n=1
        )
    )


def drifted(notebooks: Path) -> list[str]:
    """One message for every chapter whose notebook and twin do not agree."""
    found = {path.stem for path in [*notebooks.glob("*.ipynb"), *notebooks.glob("src/*.py")]}
    messages = []
    for name in sorted(found):
        notebook = notebooks / f"{name}.ipynb"
        for path in (notebook, twin_of(notebook)):
            if not path.exists():
                messages.append(f"{path} is missing")
                break
        else:
            if text := difference(notebook):
                messages.append(f"{notebook} differs from its twin:\n{text}")
    return messages


def choose(notebooks: Path, chapters: list[str] | None) -> list[Path]:
    """The twins of the named chapters, or of all."""
    try:
        return select(notebooks / "src", chapters or [], ".py")
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="'CHAPTERS'") from None


def _new_id(source: str, taken: set[str]) -> str:
    """An id that depends on the content only, so that a new notebook is the same on every machine."""
    copy = 0
    while (name := hashlib.sha256(f"{copy}{source}".encode()).hexdigest()[:8]) in taken:
        copy += 1
    taken.add(name)
    return name


def main(
    chapters: Annotated[list[str] | None, typer.Argument(help="Numbers or names.", show_default="all")] = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if a pair differs.")] = False,
    notebooks: Annotated[Path, typer.Option(help="The folder of the chapters.")] = NOTEBOOKS,
) -> None:
    """Write notebooks from their twins, or --check that they agree."""
    if check:
        messages = drifted(notebooks)
        sys.exit("\n".join(messages) if messages else 0)
    for twin in choose(notebooks, chapters):
        save(merge(twin), notebook_of(twin))


if __name__ == "__main__":
    typer.run(main)
