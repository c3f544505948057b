"""What authors run, on tiny chapters in a temporary folder."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import execute
import lab
import nbformat
import numpy as np
import pytest
import sync
import typer
from matplotlib.figure import Figure
from nbformat import NotebookNode
from PIL import Image

TOOLS = Path(__file__).resolve().parents[1] / "tools"
TWIN = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A title
#
# An equation $p_\\theta(x)$.

# %% mystnb={"image": {"alt": "a curve that rises"}} tags=["nbval-ignore-output"]
print("first")

# %%
print("second")


# %%
def double(x):
    return 2 * x


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
double(21)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "note books"
    (path / "src").mkdir(parents=True)
    (path / "src" / "01_a.py").write_text(TWIN, encoding="utf-8")
    return path


def write(folder: Path) -> None:
    sync.main(notebooks=folder)


def publish(folder: Path) -> None:
    execute.main(jobs=1, timeout=60, notebooks=folder)


def read(folder: Path) -> NotebookNode:
    return nbformat.read(folder / "01_a.ipynb", as_version=4)


def rewrite(folder: Path, old: str, new: str) -> None:
    twin = folder / "src" / "01_a.py"
    text = twin.read_text(encoding="utf-8")
    assert old in text
    twin.write_text(text.replace(old, new), encoding="utf-8")


def test_a_stored_picture_is_small_and_looks_the_same():
    figure = Figure()
    figure.subplots().plot(np.random.default_rng(0).normal(size=20), color="#D55E00")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    before = base64.b64encode(file.getvalue()).decode()
    after = execute._smaller(before)
    assert len(after) < 0.7 * len(before)
    shades = [np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), int) for png in (before, after)]
    assert np.abs(shades[0] - shades[1]).mean() < 0.5  # of 255
    assert execute._smaller(after) == after


def test_execute_stores_outputs_and_nothing_of_this_machine(folder):
    publish(folder)
    notebook = read(folder)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4]
    assert code[0].outputs[0].text == "first\n"
    assert code[0].metadata == {
        "tags": ["nbval-ignore-output"],
        "mystnb": {"image": {"alt": "a curve that rises"}},
    }
    assert code[3].metadata == {"tags": ["solution", "hide-cell"], "jupyter": {"source_hidden": True}}
    assert notebook.metadata.kernelspec.display_name == "Python 3"
    assert "version" not in notebook.metadata.language_info

    first = (folder / "01_a.ipynb").read_bytes()
    publish(folder)
    assert (folder / "01_a.ipynb").read_bytes() == first


def test_the_tools_run_as_scripts(folder):
    for arguments in (["execute.py", "01"], ["lab.py", "--help"]):
        command = [sys.executable, TOOLS / arguments[0], *arguments[1:], "--notebooks", folder]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


def test_new_notebooks_are_the_same_everywhere(folder):
    write(folder)
    first = (folder / "01_a.ipynb").read_bytes()
    (folder / "01_a.ipynb").unlink()
    write(folder)
    assert (folder / "01_a.ipynb").read_bytes() == first


def test_ids_live_through_edits_and_outputs_through_what_does_not_touch_them(folder):
    publish(folder)
    before = read(folder).cells
    rewrite(folder, 'print("second")', 'print("second, edited")')
    rewrite(folder, "# # A title", "# # Another title")
    rewrite(folder, "a curve that rises", "a curve that falls")
    rewrite(folder, "# %%\ndef", "# %%\nnew = 1\n\n\n# %%\ndef")

    write(folder)

    after = read(folder).cells
    assert [cell.id for cell in after[:3] + after[4:]] == [cell.id for cell in before]
    assert after[3].id not in {cell.id for cell in before}
    assert after[0].source.startswith("# Another title")
    assert after[1].outputs == before[1].outputs
    assert after[1].metadata.mystnb.image.alt == "a curve that falls"
    assert after[2].outputs == []
    assert after[2].execution_count is None
    assert after[5].outputs == before[4].outputs


def test_check_names_the_notebook_that_drifted(folder):
    assert "01_a.ipynb is missing" in sync.drifted(folder)[0]
    write(folder)
    assert sync.drifted(folder) == []

    rewrite(folder, 'print("second")', 'print("changed")')

    (message,) = sync.drifted(folder)
    assert "01_a.ipynb differs from its twin" in message
    assert '-print("changed")' in message
    with pytest.raises(SystemExit, match="differs"):
        sync.main(check=True, notebooks=folder)

    (folder / "src" / "01_a.py").unlink()
    assert "01_a.py is missing" in sync.drifted(folder)[0]


def test_the_twin_is_what_jupytext_makes_of_the_notebook(folder):
    write(folder)
    command = [sys.executable, "-m", "jupytext", "--quiet", "--to", "py:percent", "--output", "-"]
    result = subprocess.run([*command, folder / "01_a.ipynb"], capture_output=True, text=True, check=True)
    assert result.stdout == TWIN


def test_a_twin_in_other_words_is_put_in_jupytexts(folder):
    _, body = TWIN.split("# ---\n\n")
    tags, alt = 'tags=["nbval-ignore-output"]', 'mystnb={"image": {"alt": "a curve that rises"}}'
    assert f"{alt} {tags}" in body
    other = body.replace(f"{alt} {tags}", f"{tags} {alt}")  # and no header
    (folder / "src" / "01_a.py").write_text(other, encoding="utf-8")
    write(folder)
    assert (folder / "src" / "01_a.py").read_text(encoding="utf-8") == TWIN
    assert sync.drifted(folder) == []


def test_a_failed_execution_leaves_the_old_notebook(folder, capsys):
    write(folder)
    before = (folder / "01_a.ipynb").read_bytes()
    rewrite(folder, 'print("second")', "raise ValueError('too bad')")

    with pytest.raises(SystemExit):
        publish(folder)

    message = "01_a FAILED in cell 2 `raise ValueError('too bad')`: ValueError: too bad"
    assert message in capsys.readouterr().err
    assert (folder / "01_a.ipynb").read_bytes() == before


def test_an_unknown_chapter(folder):
    with pytest.raises(typer.BadParameter, match="unknown chapter 07; expected one of 01"):
        sync.main(chapters=["07"], notebooks=folder)


def test_lab_keeps_edits_and_refreshes_the_rest(folder, tmp_path):
    mine = tmp_path / "my_notebooks"
    chapter, copy = folder / "01_a.ipynb", mine / "01_a.ipynb"
    write(folder)
    assert lab.prepare(folder, mine) == []
    assert copy.read_bytes() == chapter.read_bytes()

    notebook = nbformat.read(copy, as_version=4)
    notebook.cells[1].execution_count = 7  # run, not edited
    nbformat.write(notebook, copy)
    rewrite(folder, "second", "changed")
    write(folder)
    assert lab.prepare(folder, mine) == []
    assert copy.read_bytes() == chapter.read_bytes()

    notebook.cells[1].source = "mine = 1"
    nbformat.write(notebook, copy)
    assert lab.prepare(folder, mine) == []
    rewrite(folder, "changed", "changed again")
    write(folder)
    assert lab.prepare(folder, mine) == ["01_a.ipynb: the chapter has changed since; your edited copy is kept"]
    assert nbformat.read(copy, as_version=4).cells[1].source == "mine = 1"
    assert list(json.loads((mine / ".origin.json").read_text(encoding="utf-8"))) == ["01_a.ipynb"]
