"""Open the chapters in JupyterLab as copies in ``my_notebooks/``, which are the reader's to change.

What the reader edited is never overwritten. A copy without edits follows its chapter when that changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import nbformat
import typer

from vi_tutorial._atomic import write_atomically
from vi_tutorial._execute import select

ROOT = Path(__file__).resolve().parents[1]


def content(notebook: Path) -> str:
    """A hash of what the cells say: running them is no edit."""
    cells = nbformat.read(notebook, as_version=4).cells
    said = json.dumps([(cell.cell_type, cell.source) for cell in cells])
    return hashlib.sha256(said.encode()).hexdigest()


def prepare(chapters: Path, mine: Path) -> list[str]:
    """Bring ``mine`` up to date with ``chapters``; say which edited copies are older than their chapters."""
    origin_file = mine / ".origin.json"
    origin = json.loads(origin_file.read_text(encoding="utf-8")) if origin_file.exists() else {}
    messages = []
    for chapter in select(chapters, [], ".ipynb"):
        copy, now, then = mine / chapter.name, content(chapter), origin.get(chapter.name)
        if not copy.exists() or (then != now and content(copy) == then):
            mine.mkdir(exist_ok=True)
            shutil.copyfile(chapter, copy)
            origin[chapter.name] = now
        elif then != now:
            messages.append(f"{copy.name}: the chapter has changed since; your edited copy is kept")
    write_atomically(origin_file, json.dumps(origin, indent=1) + "\n")
    return messages


def main(
    prepare_only: Annotated[bool, typer.Option("--prepare-only", help="Copy; do not open.")] = False,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Start the server only.")] = False,
    notebooks: Annotated[Path, typer.Option(help="The folder of the chapters.")] = ROOT / "notebooks",
    mine: Annotated[Path, typer.Option(help="The folder of the copies.")] = ROOT / "my_notebooks",
) -> None:
    """Copy the chapters that are new or changed, then open JupyterLab on the first."""
    for message in prepare(notebooks, mine):
        print(message)
    if not prepare_only:
        first = min(mine.glob("[0-9][0-9]_*.ipynb"))
        options = ["--no-browser"] if no_browser else []
        os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *options, str(first)])


if __name__ == "__main__":
    typer.run(main)
