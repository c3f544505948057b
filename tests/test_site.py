"""The web site: complete, whole without a network, and as it should be in a real browser."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup

from vi_tutorial import museum
from vi_tutorial.cli import records

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "site"
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
OTHER_HOST = re.compile(r"^(https?:)?//")
# As many pages of each kind as time allows; their colours come from the same style sheets.
COLOURS = ["index", "chapters/05_em_is_coordinate_ascent", "museum", "api/vi_tutorial.elbo"]


@pytest.fixture(scope="module", autouse=True)
def site():
    """The site as it stands, made anew if anything that it is made of is younger."""
    index = SITE / "index.html"
    folders = {"docs": "*", "notebooks": "*.ipynb", "vi_tutorial": "*.py", "tools": "website.py"}
    sources = [path for folder, pattern in folders.items() for path in (ROOT / folder).rglob(pattern) if path.is_file()]
    if not index.exists() or index.stat().st_mtime < max(path.stat().st_mtime for path in sources):
        made = subprocess.run([sys.executable, ROOT / "tools" / "website.py"], capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
    return SITE


@pytest.fixture(scope="module")
def pages(site):
    return {path: BeautifulSoup(path.read_text(), "html.parser") for path in sorted(site.rglob("*.html"))}


def test_every_chapter_has_a_page_with_its_links_and_neighbours(pages):
    for number, chapter in enumerate(CHAPTERS):
        page = pages[SITE / "chapters" / f"{chapter.stem}.html"]
        launch = [link["href"] for link in page.select(".launch a")]
        assert [urlsplit(href).netloc for href in launch] == ["colab.research.google.com", "mybinder.org", ""]
        downloaded = SITE / "chapters" / launch[2]
        assert downloaded.read_bytes() == chapter.read_bytes()
        near = [link["href"] for link in page.select(".related-pages a")]
        assert number + 1 == len(CHAPTERS) or f"{CHAPTERS[number + 1].stem}.html" in near
        assert number == 0 or f"{CHAPTERS[number - 1].stem}.html" in near
        assert "run_line_magic" not in page.select_one("article").text, "a cell that is to be removed is shown"


def test_nothing_is_loaded_from_another_host(pages):
    for path, page in pages.items():
        for tag, attribute in (
            ("script", "src"),
            ("link", "href"),
            ("img", "src"),
            ("iframe", "src"),
            ("source", "src"),
        ):
            loads = [element[attribute] for element in page.find_all(tag, **{attribute: True})]
            assert not [where for where in loads if OTHER_HOST.match(where)], path
        assert not re.search(r"https?://", " ".join(script.text for script in page.find_all("script"))), path
    for path in SITE.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)]*", path.read_text()), path
    for path in SITE.rglob("*.js"):
        assert not re.findall(r"https?://[a-z.]*(?:cdn|unpkg|jsdelivr|googleapis)[a-z.]*", path.read_text()), path


def test_internal_links_and_their_anchors_resolve(pages):
    anchors = {path: {element["id"] for element in page.find_all(id=True)} for path, page in pages.items()}
    broken = []
    for path, page in pages.items():
        for link in page.find_all("a", href=True):
            if urlsplit(link["href"]).scheme or OTHER_HOST.match(link["href"]):
                continue
            where, fragment = urldefrag(urljoin(path.as_uri(), link["href"]))
            target = Path(unquote(urlsplit(where).path))
            if not target.is_file() or (fragment and target in anchors and unquote(fragment) not in anchors[target]):
                broken.append((path.name, link["href"]))
    assert not [link for link in broken if link[1] != "#"]


def test_every_image_says_what_is_seen(pages):
    for path, page in pages.items():
        for image in page.find_all("img"):
            alt = image.get("alt", "")
            assert len(alt) > 10, f"{path.name}: {str(image)[:80]}"
            assert not re.search(r"\.(png|svg)$", alt), path.name


def test_the_index_lists_every_claim_of_every_chapter(pages):
    rows = {row.td.text: row for row in pages[SITE / "derivations.html"].select(".claims tbody tr")}
    for chapter in CHAPTERS:
        for check in records(nbformat.read(chapter, as_version=4), "check"):
            row = rows.pop(check["id"])
            cells = [cell.text for cell in row.find_all("td")]
            proof = f"{check['kind']}, {check['tolerance']}"
            assert cells == [check["id"], check["statement"], proof, "; ".join(check["wrong"])]
            assert row.a["href"].startswith(f"chapters/{chapter.stem}.html#")
    assert not rows


def test_the_museum_shows_every_exhibit(pages):
    exhibits = pages[SITE / "museum.html"].select(".exhibit")
    assert len(exhibits) == len(museum.EXHIBITS)


def test_the_proof_names_every_mistake_and_leads_to_the_check_that_caught_it(pages):
    results = json.loads((ROOT / "benchmarks/results/mutants.json").read_text(encoding="utf-8"))
    rows = {row.td.text: row for row in pages[SITE / "proof.html"].select(".claims tbody tr")}
    assert set(rows) == {entry["name"] for entry in results["domain"]}
    for entry in results["domain"]:
        by = entry["caught_by"]
        if by and by["error"] == "CheckFailedError":
            link = rows[entry["name"]].a
            assert by["message"].startswith(f"{link.text} ")
            assert link["href"].startswith(f"chapters/{by['chapter']}_")
    shown = pages[SITE / "proof.html"].get_text()
    assert all(entry["function"] in shown for entry in results["survivors"])


@pytest.fixture
def tab(browser_tab, serve, site):
    """A function that opens a page of the site, its formulas typeset."""
    address = serve(site)

    def open_page(name, size=DESK, scheme="light"):
        page = browser_tab(f"{address}{name}.html", size, scheme)
        page.evaluate("() => window.MathJax && MathJax.startup && MathJax.startup.promise")
        return page

    return open_page


def test_every_page_loads_is_typeset_and_fits_a_phone(tab, pages):
    for path in pages:
        name = str(path.relative_to(SITE).with_suffix(""))
        page = tab(name, PHONE)
        assert not page.troubles, name
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], name
        raw, wrong = page.evaluate(
            "[[...document.querySelectorAll('.math')].filter(e => !e.querySelector('mjx-container')).length,"
            " document.querySelectorAll('mjx-merror').length]"
        )
        assert (raw, wrong) == (0, 0), f"{name}: formulas not typeset, or with errors"
        page.close()


def test_an_animation_plays_and_scrubs(tab):
    page = tab("chapters/01_the_elbo")
    film = page.locator(".vi-animation").first
    film.scroll_into_view_if_needed()
    image, slider = film.locator("img"), film.locator("input")
    slider.fill("1")
    first = image.get_attribute("src")
    film.locator("button").click()
    page.wait_for_function("([a, b]) => a.value !== '1'", arg=[slider.element_handle(), None])
    assert image.get_attribute("src") != first


def test_search_finds_a_derivation(tab):
    page = tab("search")
    page.goto(page.url.split("?")[0] + "?q=lowers")
    for title in ("Learning", "verified derivations"):
        page.locator("#search-results li a", has_text=title).first.wait_for()


def test_the_index_can_be_filtered(tab):
    page = tab("derivations")
    page.fill("#filter", "06.5a")
    assert page.locator(".claims tbody tr:visible").count() == 1


def test_hidden_solutions_unfold(tab):
    page = tab("chapters/06_learning_theta_and_phi")
    folded = page.locator("details.hide:not([open])")
    assert folded.count() >= 3
    folded.first.locator("summary").click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(tab, scheme):
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None:
        pytest.skip("axe-playwright-python is not installed")
    axe = Path(found.origin).with_name("axe.min.js").read_text()
    faint = set()
    for name in COLOURS:
        page = tab(name, DESK, scheme)
        page.evaluate(axe)
        for violation in page.evaluate("axe.run({runOnly: ['color-contrast']}).then(found => found.violations)"):
            faint |= {(name, node["html"][:120], node["any"][0]["message"]) for node in violation["nodes"]}
        page.close()
    assert not faint
