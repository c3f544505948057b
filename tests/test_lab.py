"""The chapters where learners run them: JupyterLab in a real browser, and a machine that has only the wheel."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from vi_tutorial.cli import records

CHAPTER = Path(__file__).resolve().parents[1] / "notebooks" / "01_the_elbo.ipynb"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on a copy of a chapter without its outputs and with nobody's settings: its address, and the copy."""
    home = tmp_path_factory.mktemp("lab")
    notebook = nbformat.read(CHAPTER, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    (home / "course").mkdir()
    nbformat.write(notebook, home / "course" / CHAPTER.name)
    folders = {f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    folders |= {f"JUPYTERLAB_{kind}_DIR": str(home / kind.lower()) for kind in ("SETTINGS", "WORKSPACES")}
    environment = {name: value for name, value in os.environ.items() if name != "VI_TUTORIAL_PROGRESS"} | folders
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0"]
    with (home / "log.txt").open("w") as log:
        server = subprocess.Popen(
            [*command, f"--ServerApp.root_dir={home / 'course'}"], env=environment, stdout=log, stderr=log
        )
        try:
            about = None
            while about is None:
                assert server.poll() is None, (home / "log.txt").read_text()
                time.sleep(0.1)
                with suppress(StopIteration, json.JSONDecodeError):  # not there yet, not whole yet
                    about = json.loads(next((home / "runtime").glob("jpserver-*.json")).read_text())
            yield f"{about['url']}lab/tree/{CHAPTER.name}?token={about['token']}", home / "course" / CHAPTER.name
        finally:
            server.terminate()
            server.wait(timeout=30)


@pytest.fixture(scope="module")
def opened(lab, browser):
    """The chapter in the browser, all its cells run and saved; the tab, and the notebook as it was saved."""
    address, file = lab
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(120_000)  # a busy machine is not a fault
    context.route(lambda url: not url.startswith(("http://127.0.0.1", "data:", "blob:")), lambda route: route.abort())
    tab = context.new_page()
    tab.goto(address)
    tab.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    tab.get_by_role("menuitem", name="Run", exact=True).click()
    tab.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    for _ in range(120):
        tab.keyboard.press("Control+s")
        tab.wait_for_timeout(1000)
        with suppress(nbformat.reader.NotJSONError):  # while it is being written
            notebook = nbformat.read(file, as_version=4)
            if all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code"):
                break
    yield tab, notebook
    context.close()


def test_all_cells_run_in_jupyterlab_and_the_last_check_is_seen(opened):
    tab, notebook = opened
    stored = nbformat.read(CHAPTER, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []
    assert records(notebook, "check") == records(stored, "check")
    assert len(records(stored, "check")) > 10
    last = tab.locator(".jp-OutputArea-output").get_by_text(records(stored, "check")[-1]["statement"]).first
    last.scroll_into_view_if_needed()
    seen = pytest.importorskip("playwright.sync_api").expect(last)
    seen.to_be_visible(timeout=60_000)  # the lab draws what has come into view a little later
    seen.to_have_text(re.compile("✓"), use_inner_text=True, timeout=60_000)


def test_a_slider_moved_by_the_keyboard_redraws_the_picture(opened):
    tab, _ = opened
    cell = tab.locator(".jp-CodeCell", has=tab.locator("[role=slider]")).first
    slider, picture = cell.locator("[role=slider]").first, cell.locator(".jp-OutputArea-output img")
    slider.scroll_into_view_if_needed()
    at_first = picture.get_attribute("src")

    def press(key):
        before = picture.get_attribute("src")
        slider.focus()
        slider.press(key)
        for _ in range(60):
            if picture.get_attribute("src") != before:
                break
            tab.wait_for_timeout(500)
        return picture.get_attribute("src")

    assert press("ArrowRight") != at_first
    assert press("ArrowLeft") == at_first  # though later cells have given its names another meaning


def test_a_chapter_runs_far_from_the_checkout_with_the_wheel_alone(wheel, tmp_path):
    """As on Colab: the chapters' folder copied, the package installed."""
    place, chapter = tmp_path / "site", tmp_path / "notebooks" / "05_em_is_coordinate_ascent.ipynb"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", place, wheel]
    subprocess.run(pip, check=True)
    shutil.copytree(CHAPTER.parent, chapter.parent, ignore=shutil.ignore_patterns("src", "*checkpoints"))
    notebook = nbformat.read(chapter, as_version=4)
    stored = records(notebook, "check")
    notebook.cells.append(nbformat.v4.new_code_cell("import vi_tutorial\nvi_tutorial.__file__"))
    client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(chapter.parent)}})
    client.execute(env=os.environ | {"PYTHONPATH": str(place)})
    assert notebook.cells[-1].outputs[0].data["text/plain"] == repr(str(place / "vi_tutorial" / "__init__.py"))
    assert records(notebook, "check") == stored
    assert len(stored) > 10
