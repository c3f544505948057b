"""The slides: what a lecture needs from a chapter is on them, and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
import slides

from vi_tutorial.cli import records

CHAPTERS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module", params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request):
    notebook = nbformat.read(request.param, as_version=4)
    return notebook, slides.deck(notebook)


def test_one_idea_on_each(chapter):
    _, deck = chapter
    assert 10 <= len(deck) <= 75
    for slide in deck:
        assert len(re.findall("<img class|class=.film", slide)) <= 1
        assert slide.count("<h1>") + slide.count("<h2>") + slide.count('class="place"') == 1


def test_every_figure_and_every_film(chapter):
    notebook, deck = chapter
    shown = [cell for cell in notebook.cells if cell.cell_type == "code" and slides.figure(cell)]
    shown = [cell for cell in shown if "solution" not in cell.metadata.get("tags", [])]
    outside = [s for s in slides.sections(notebook) if s.title.startswith(slides.SKIPPED)]
    skipped = sum(slides.figure(c) is not None for s in outside for c in s.cells if c.cell_type == "code")
    assert len(re.findall("<img class|class=.film", "".join(deck))) == len(shown) - skipped


def test_every_statement_that_is_verified(chapter):
    notebook, deck = chapter
    text = "".join(deck)
    for check in records(notebook, "check"):
        if f"{check['id']}</b>" not in text:
            assert any(
                check["id"] in str(cell.get("outputs")) and slides.is_solution(cell) for cell in notebook.cells
            ), check["id"]


def test_no_solution_and_nothing_from_elsewhere(chapter):
    notebook, _ = chapter
    made = slides.page(notebook)
    for cell in notebook.cells:
        if slides.is_solution(cell) and cell.cell_type == "code" and len(cell.source) > 60:
            assert cell.source[:60] not in made
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//|url\(["']?https?:|@import""", made.split("<body>")[0])
    assert not re.search(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["'](?:https?:)?//""", made)


def test_sentences_do_not_cut_formulas():
    assert slides.sentences("One $a. B$ two. *Three* is 3.5 nats. Four") == [
        "One $a. B$ two.",
        "*Three* is 3.5 nats.",
        "Four",
    ]


def test_blocks():
    text = "A line\n$$\nx\n$$\nafter.\n\n- a\n- b\n\n<details>hidden</details>"
    assert slides.blocks(text) == ["A line", "$$\nx\n$$", "after.", "- a\n- b"]


def test_a_prediction_has_a_slide_of_its_own():
    (slide,) = slides.of_text("Two guides stand in fog. Predict: which is lower? Say it aloud. Then look.")
    assert "which is lower? Say" not in slide.split("Predict")[0]
    assert "fog" not in slide


OVERFLOW = """() => [...document.querySelectorAll(".slides > section")].flatMap((slide, number) => {
  slide.style.display = "block";
  const size = [slide.scrollWidth, slide.scrollHeight];
  slide.style.display = "";
  return size[0] > 1281 || size[1] > 721 ? [[number + 1, ...size]] : [];
})"""


def test_every_deck_in_a_browser(browser_tab, serve):
    if shutil.which("npm") is None:
        pytest.skip("no npm on this machine")
    root = CHAPTERS[0].parents[1]
    made = subprocess.run(["make", "slides"], cwd=root, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    address = serve(root / "build" / "slides")
    for chapter in CHAPTERS:
        page = browser_tab(f"{address}{chapter.stem}.html", {"width": 1280, "height": 720})
        page.wait_for_selector("body[data-ready]", state="attached")
        assert not page.troubles, chapter.stem
        assert page.evaluate("document.querySelectorAll('mjx-merror').length") == 0, chapter.stem
        assert page.evaluate(OVERFLOW) == [], f"{chapter.stem}: slides that do not fit, with their sizes"
        page.close()
