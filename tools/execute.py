"""Execute chapters for publication: ``python tools/execute.py 01 06``, or all without a number.

Each notebook is made anew from its twin (see sync.py), executed from clean, and written only if every cell ran:
after a failure the old notebook stands.
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from typing import Annotated

import typer
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode
from PIL import Image
from sync import NOTEBOOKS, choose, merge, notebook_of, save

from vi_tutorial._execute import Execution, execute_all


def publish(execution: Execution) -> None:
    """Write the executed notebook without what differs from run to run, or show what failed."""
    if execution.failure:
        print(f"\n{execution.path.stem} FAILED in {execution.failure}\n{execution.failure.details}", file=sys.stderr)
        return
    assert execution.notebook is not None
    save(_tidied(execution.notebook), notebook_of(execution.path))
    print(f"{execution.path.stem}: {execution.seconds:.1f} s, of which {execution.cell_seconds:.1f} s in cells")


def _tidied(notebook: NotebookNode) -> NotebookNode:
    notebook.metadata.language_info.pop("version")
    for index, cell in enumerate(notebook.cells):  # prints arrive in pieces, as the clock has it
        CoalesceStreamsPreprocessor().preprocess_cell(cell, {}, index)
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _smaller(output.data["image/png"])
    return notebook


def _smaller(png: str) -> str:
    """The same picture (base64) with a palette of 256 colours, a third of the size: the history keeps every copy."""
    file = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    if picture.mode == "P":  # it has one already
        return png
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, format="PNG", optimize=True)
    return min(png, base64.b64encode(file.getvalue()).decode(), key=len)


def main(
    chapters: Annotated[list[str] | None, typer.Argument(help="Numbers or names.", show_default="all")] = None,
    jobs: Annotated[int, typer.Option(help="How many chapters at a time.", min=1)] = 2,
    timeout: Annotated[int, typer.Option(help="Seconds that one cell may take.", min=1)] = 600,
    notebooks: Annotated[Path, typer.Option(help="The folder of the chapters.")] = NOTEBOOKS,
) -> None:
    """Execute chapters from their twins and store the notebooks with their outputs."""
    twins = choose(notebooks, chapters)
    executions = execute_all(twins, folder=notebooks, jobs=jobs, timeout=timeout, finished=publish, read=merge)
    if any(execution.failure for execution in executions):
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
