"""Slides for a lecture, made from the chapters: ``build/slides/NN_name.html``, one idea on each.

    make slides CHAPTERS="05 10"     or all of them
    python -m http.server -d build/slides

A section of a chapter gives a slide with its opening words, then in the notebook's order one for each displayed formula
with the sentence that leads to it, each prediction that the reader is asked for, each figure or film, and a list of
what was verified. The section's text is in the speaker's notes (key S). The pages load nothing from elsewhere:
reveal.js, which npm puts under build/npm, and MathJax are copied beside them.
"""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NamedTuple

import nbformat
import typer
from course import is_solution
from nbconvert.filters import markdown2html
from nbformat import NotebookNode

from vi_tutorial._atomic import write_atomically
from vi_tutorial._execute import select
from vi_tutorial.cli import records

ROOT = Path(__file__).resolve().parents[1]
REVEAL = ROOT / "build" / "npm" / "node_modules" / "reveal.js" / "dist"
SKIPPED = ("Exercises", "Solutions", "Sources", "Next")
VERIFIED_ON_A_SLIDE, CODE_ON_A_SLIDE = 5, 16
SENTENCE_END = re.compile(r"(?<=[.!?:])[*_]*\s+(?=[A-Z*_$“\"(])")
LINK = re.compile(r"\[([^\]]*)\]\([^)\s]*\.ipynb[^)\s]*\)")

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="reveal/reveal.css">
<link rel="stylesheet" href="slides.css">
<script>
window.MathJax = {{tex: {{inlineMath: [["$", "$"]]}}, options: {{enableMenu: false}}, startup: {{typeset: false}}}};
</script>
<script src="tex-svg-full.js"></script>
<script src="reveal/reveal.js"></script>
<script src="reveal/plugin/notes.js"></script>
</head>
<body>
<div class="reveal"><div class="slides">
{slides}
</div></div>
<script>
// What does not fit is set smaller, before reveal.js places the slides.
function fit(slide) {{
  slide.style.display = "block";
  slide.style.fontSize = "34px";
  slide.querySelectorAll("mjx-container[display], pre, table").forEach(wide => {{
    const whole = parseFloat(getComputedStyle(wide).fontSize);
    for (let share = 1; share > 0.4; share -= 0.05) {{
      wide.style.fontSize = share * whole / 34 + "em";
      if (wide.scrollWidth <= wide.clientWidth + 1 && wide.scrollWidth <= 1200) break;
    }}
  }});
  for (let size = 34; size >= 14; size -= 1) {{
    slide.style.fontSize = size + "px";
    if (slide.scrollHeight <= 690) break;
  }}
  slide.style.display = "";
}}
const slides = document.querySelector(".slides");
const deck = new Reveal({{
  hash: true, width: 1280, height: 720, margin: 0.04, center: true, controls: false, slideNumber: "c/t",
  transition: "none", plugins: [RevealNotes]
}});
MathJax.startup.promise.then(() => MathJax.typesetPromise()).then(() => {{
  slides.style.width = "1280px";
  slides.querySelectorAll("section").forEach(fit);
  return deck.initialize();
}}).then(() => {{ document.body.dataset.ready = "yes"; }});
</script>
</body>
</html>
"""

STYLE = """
:root { --ink: #1b1b1b; --paper: #fdfdfb; --quiet: #5a5f66; --accent: #0b6e8a; }
html, body { background: var(--paper); color: var(--ink); }
.reveal .slides { text-align: left; }
.reveal .slides section {
  font: 34px/1.4 system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; box-sizing: border-box;
  padding: 10px 40px;
}
.reveal .place { color: var(--quiet); font-size: 20px; margin: 0 0 1.2em; }
.reveal h1 { font-size: 1.8em; line-height: 1.15; margin: 0 0 0.6em; }
.reveal h2 { font-size: 1.5em; line-height: 1.2; margin: 0 0 0.6em; }
.reveal p, .reveal ul, .reveal ol { margin: 0 0 0.6em; }
.reveal li { margin-bottom: 0.3em; }
.reveal .figure { display: block; width: 1150px; max-height: 590px; object-fit: contain; margin: 0 auto; }
.reveal .map { display: block; width: 800px; margin: 2em 0 0; }
.reveal .film .vi-animation { max-width: none !important; font-size: 22px; }
.reveal .film img { width: 1150px !important; height: 510px !important; object-fit: contain; margin: 0; }
.reveal .predict { border-left: 8px solid var(--accent); padding-left: 26px; font-size: 1.15em; }
.reveal .verified { list-style: none; padding: 0; }
.reveal .verified li { padding-left: 1.4em; text-indent: -1.4em; }
.reveal .verified b { color: var(--accent); }
.reveal pre { font-size: 0.7em; line-height: 1.45; background: #f1f1ec; padding: 18px 24px; margin: 0; }
.reveal table { font-size: 0.8em; border-collapse: collapse; }
.reveal th, .reveal td { padding: 4px 16px; border-bottom: 1px solid #ccc; }
.reveal aside.notes { display: none; }
.reveal mjx-assistive-mml { height: 1px !important; } /* it is unseen, but would push a slide off the centre */
.reveal .slide-number { background: none; color: var(--quiet); font-size: 18px; }
"""


class Section(NamedTuple):
    """A heading, and the cells below it up to the next."""

    title: str
    cells: list[NotebookNode]


def sections(notebook: NotebookNode) -> list[Section]:
    """What stands before the first heading, under the chapter's title, then every ``##`` and ``###``."""
    found: list[Section] = []
    for cell in notebook.cells:
        if is_solution(cell) or "remove-cell" in cell.metadata.get("tags", []):
            continue
        if cell.cell_type == "code":
            found[-1].cells.append(cell)
            continue
        for part in re.split(r"^(?=#{1,3} )", cell.source, flags=re.MULTILINE):
            if match := re.match(r"#{1,3} (.*)\n?", part):
                found.append(Section(match[1], []))
                part = part[match.end() :]
            if part.strip():
                found[-1].cells.append(nbformat.v4.new_markdown_cell(part.strip()))
    return found


def blocks(text: str) -> list[str]:
    """Paragraphs, lists and displayed formulas of a markdown text, without what is folded away."""
    text = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    return [part.strip() for part in re.split(r"(\$\$.*?\$\$)|\n\s*\n", text, flags=re.DOTALL) if part and part.strip()]


def is_prose(block: str) -> bool:
    """A paragraph: no formula, list, table, quotation or picture."""
    return not re.match(r"\$\$|[-*|>!<]\s|\d+\. ", block)


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph; a formula inside a line is not cut."""
    hidden = re.split(r"(\$[^$]*\$)", " ".join(paragraph.split()))
    kept = ["\0" * len(part) if part.startswith("$") else part for part in hidden]
    whole, text, found, start = "".join(hidden), "".join(kept), [], 0
    for match in SENTENCE_END.finditer(text):
        found.append(whole[start : match.start()] + match[0].rstrip())
        start = match.end()
    return [sentence for sentence in (*found, whole[start:]) if sentence]


def rendered(text: str) -> str:
    """Markdown as HTML, links to other notebooks as plain words."""
    return str(markdown2html(LINK.sub(r"\1", text)))


def figure(cell: NotebookNode) -> str | None:
    """The figure that a cell shows, or its film."""
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            alt = html.escape(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", ""), quote=True)
            if "text/html" in data:
                return f'<div class="film">{data["text/html"]}</div>'
            return f'<img class="figure" alt="{alt}" src="data:image/png;base64,{"".join(data["image/png"].split())}">'
    return None


def is_short_definition(cell: NotebookNode) -> bool:
    """Whether a code cell is a formula in the open: it defines something, in few lines, and draws nothing."""
    lines = cell.source.splitlines()
    defines = any(line.startswith(("def ", "class ")) for line in lines) or "elbo(draw(" in cell.source
    return (
        defines and len(lines) <= CODE_ON_A_SLIDE and "plots." not in cell.source and "# your code" not in cell.source
    )


def shown_code(cell: NotebookNode) -> str:
    """The code that a lecture reads together: a short definition, or an exhibit of the museum that the cell prints."""
    if cell.source.startswith("museum.show("):
        return "".join(output.get("text", "") for output in cell.outputs).strip()
    return cell.source if is_short_definition(cell) else ""


def of_text(text: str) -> Iterator[str]:
    """The slides that a markdown cell gives: its formulas and its predictions."""
    parts = blocks(text)
    for index, part in enumerate(parts):
        if part.startswith("$$"):
            before = parts[index - 1] if index and is_prose(parts[index - 1]) else ""
            after = parts[index + 1] if index + 1 < len(parts) and is_prose(parts[index + 1]) else ""
            lead = sentences(before)[-1] if before else ""
            follow = sentences(after)[0] if after else ""
            follow = follow if follow.count("(") == follow.count(")") else ""  # an aside, cut short
            yield rendered("\n\n".join(filter(None, (lead, part, follow))))
        elif is_prose(part) and (asked := [s for s in sentences(part) if re.match(r"[*_]*Predict", s)]):
            said = sentences(part)
            start = said.index(asked[0])
            yield f'<div class="predict">{rendered(" ".join(said[start : start + 2]))}</div>'


def of_section(section: Section) -> Iterator[str]:
    """The slides of a section, in the notebook's order; the verified statements after the cell that proves them."""
    place = f'<p class="place">{rendered_inline(section.title)}</p>'
    texts = [cell.source for cell in section.cells if cell.cell_type == "markdown"]
    told = rendered("\n\n".join(texts))
    first = next((part for text in texts for part in blocks(text) if is_prose(part)), "")
    opening = " ".join(sentence for sentence in sentences(first)[:2] if sentence[-1:] not in ",:;")
    yield f"<h2>{rendered_inline(section.title)}</h2>{rendered(opening)}<aside class='notes'>{told}</aside>"
    verified: list[str] = []
    for cell in section.cells:
        if cell.cell_type == "markdown":
            yield from (place + slide for slide in of_text(cell.source))
            continue
        verified += [
            f"<li><b>✓ {check['id']}</b> {html.escape(check['statement'])}</li>"
            for check in records(nbformat.v4.new_notebook(cells=[cell]), "check")
        ]
        if code := shown_code(cell):
            yield f"{place}<pre><code>{html.escape(code)}</code></pre>"
        if shown := figure(cell):
            yield place + shown
    for start in range(0, len(verified), VERIFIED_ON_A_SLIDE):
        items = "".join(verified[start : start + VERIFIED_ON_A_SLIDE])
        yield f'{place}<p>Verified in this section:</p><ul class="verified">{items}</ul>'


def rendered_inline(text: str) -> str:
    """As :func:`rendered`, without the paragraph around it."""
    return re.sub(r"^<p>(.*)</p>\s*$", r"\1", rendered(text), flags=re.DOTALL)


def deck(notebook: NotebookNode) -> list[str]:
    """All slides of a chapter."""
    first, *rest = sections(notebook)
    texts = [part for cell in first.cells if cell.cell_type == "markdown" for part in blocks(cell.source)]
    question = next((part for part in texts if part.startswith("**") and "?" in part), "")
    goals = next((part for part in texts if part.startswith("- ")), "")
    shown = [drawn for cell in first.cells if cell.cell_type == "code" and (drawn := figure(cell))]
    chain, shown = "".join(shown[:1]).replace('class="figure"', 'class="map"'), shown[1:]
    made = [f"<h1>{rendered_inline(first.title)}</h1>{rendered(question)}{chain}"]
    made += [slide for text in texts for slide in of_text(text)] + shown
    if goals:
        made.append(f'<p class="place">You will be able to</p><div>{rendered(goals)}</div>')
    for section in rest:
        if section.title.startswith("Summary"):
            made += _summary(section)
        elif not section.title.startswith(SKIPPED):
            made += of_section(section)
    return made


def _summary(section: Section) -> Iterator[str]:
    place = f'<p class="place">{section.title}</p>'
    for cell in section.cells:
        if cell.cell_type == "markdown":
            for part in blocks(cell.source):
                yield f"{place}<div>{rendered(part)}</div>"


def page(notebook: NotebookNode) -> str:
    """The HTML of a chapter's slides."""
    slides = "\n".join(f"<section>{slide}</section>" for slide in deck(notebook))
    return PAGE.format(title=html.escape(sections(notebook)[0].title), slides=slides)


def main(
    chapters: Annotated[list[str] | None, typer.Argument(help="Numbers or names.", show_default="all")] = None,
    notebooks: Annotated[Path, typer.Option(help="The folder of the chapters.")] = ROOT / "notebooks",
    output: Annotated[Path, typer.Option(help="Where the slides go.")] = ROOT / "build" / "slides",
    reveal: Annotated[Path, typer.Option(help="The folder dist of reveal.js.")] = REVEAL,
) -> None:
    """Write the slides of chapters."""
    if not (reveal / "reveal.js").is_file():
        raise typer.BadParameter(
            f"reveal must be a folder with reveal.js, as `make slides` makes it; received {reveal}"
        )
    output.mkdir(parents=True, exist_ok=True)
    shutil.copytree(reveal, output / "reveal", dirs_exist_ok=True)
    mathjax = Path(find_spec("sphinx-mathjax-offline").submodule_search_locations[0]) / "static" / "mathjax"
    shutil.copy(mathjax / "tex-svg-full.js", output)
    write_atomically(output / "slides.css", STYLE.lstrip())
    for path in select(notebooks, chapters or [], ".ipynb"):
        write_atomically(output / f"{path.stem}.html", page(nbformat.read(path, as_version=4)))
        print(output / f"{path.stem}.html")


if __name__ == "__main__":
    typer.run(main)
