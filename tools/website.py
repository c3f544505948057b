"""Make the web site (build/site) from the stored chapters, the package's docstrings and docs; nothing is executed."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
from sphinx.cmd.build import main as sphinx

from vi_tutorial import museum
from vi_tutorial.cli import records

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
PAGES, SITE = BUILD / "site-source", BUILD / "site"

FILTER = """```{{raw}} html
<p hidden><label for="filter">{label}</label> <input id="filter" type="search"> <output id="filter-count"></output></p>
```
"""
# Parts of packages whose own page shows what is public.
NOT_IN_API = re.compile(r"(^|\.)_|^vi_tutorial\.(exercises|museum|runs)\.")


def repository() -> str:
    """The one configured address."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["urls"]["Repository"].removesuffix("/")


def escaped(text: str) -> str:
    """Plain text as Markdown that shows just that text."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text).replace("\n", " ")


def anchor(check: str) -> str:
    return "claim-" + re.sub(r"[^0-9a-z]+", "-", check.lower())


def chapter(path: Path, address: str) -> nbformat.NotebookNode:
    """A chapter with links under its title, and an anchor before each cell that verifies something."""
    notebook = nbformat.read(path, as_version=4)
    where = address.removeprefix("https://github.com/")
    links = (
        f"[Open in Colab](https://colab.research.google.com/github/{where}/blob/main/notebooks/{path.name})",
        f"[Open in Binder](https://mybinder.org/v2/gh/{where}/main?urlpath=lab/tree/notebooks/{path.name})",
        f"{{download}}`Download <../downloads/{path.name}>`",
    )
    title, rest = notebook.cells[0].source.split("\n", 1)
    notebook.cells[0].source = f"{title}\n\n{{.launch}}\n{' '.join(links)}\n{rest}"
    cells = []
    for cell in notebook.cells:
        found = records(nbformat.v4.new_notebook(cells=[cell]), "check")
        if found:
            targets = "\n".join(f"({anchor(check['id'])})=" for check in found)
            cells.append(nbformat.v4.new_markdown_cell(targets))
        cells.append(cell)
    notebook.cells = cells
    return notebook


def chapters_by_part() -> dict[str, list[tuple[str, str, str, str]]]:
    """From the README's table: by part, each chapter's number, title, file and question."""
    parts: dict[str, list[tuple[str, str, str, str]]] = {"": []}
    for line in (ROOT / "README.md").read_text().splitlines():
        if match := re.fullmatch(r"\| \| \*\*(.+)\*\* \|.*", line):
            parts[match[1]] = []
        elif match := re.fullmatch(r"\| (\d\d) \| \[(.+)\]\(notebooks/(.+)\.ipynb\) \| (.+?) \|.*", line):
            parts[list(parts)[-1]].append((match[1], match[2], match[3], match[4]))
    return parts


def front_page() -> str:
    lines = []
    for number, (part, entries) in enumerate(chapters_by_part().items()):
        name = f"Part {'I' * number if number < 4 else 'IV'}: {part[0].lower()}{part[1:]}" if part else "The way in"
        lines += [f"## {name}", "", ":::{container} map", ""]
        lines += [f"- [{n} · {title}](chapters/{file}.ipynb)  \n  {question}" for n, title, file, question in entries]
        lines += ["", ":::", "", "```{toctree}", ":hidden:", f":caption: {name}", ""]
        lines += [*(f"chapters/{file}" for _, _, file, _ in entries), "```", ""]
    return filled("index.md", {"chapters": "\n".join(lines)})


def derivations(notebooks: dict[str, nbformat.NotebookNode]) -> str:
    """Every numbered claim, from the records that the chapters' stored outputs carry."""
    pages: list[str] = []
    total = 0
    for notebook in notebooks.values():
        checks = records(notebook, "check")
        if not checks:
            continue
        total += len(checks)
        title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
        pages += [
            f"## {title}",
            "",
            ":::{container} claims",
            "",
            "| claim | says | proof | rejects |",
            "|---|---|---|---|",
        ]
        pages += [row(check) for check in checks]
        pages += ["", ":::", ""]
    intro = (
        "# Index of verified derivations\n\n"
        f"{total} claims in {len(notebooks)} chapters. Each met an oracle, a second computation that shares no code "
        "with the first, within the tolerance given; and each check was shown the wrong answers on the right, and "
        "rejects them. The number leads to the cell. [Chapter 00](chapters/00_start_here.ipynb) says how to read one.\n"
    )
    return "\n".join([intro, FILTER.format(label="Show claims with"), *pages])


def row(check: dict[str, Any]) -> str:
    wrong = "; ".join(map(escaped, check["wrong"]))
    proof = f"{escaped(check['kind'])}, {escaped(check['tolerance'])}"
    return f"| [{check['id']}](#{anchor(check['id'])}) | {escaped(check['statement'])} | {proof} | {wrong} |"


def bug_museum() -> str:
    """Every exhibit of the museum's catalogue."""
    lines = [
        "# The bug museum",
        "",
        f"{len(museum.EXHIBITS)} mistakes that stood in public code, written anew in a few lines, each beside its mend "
        "and what catches it. [Chapter 20](chapters/20_the_bug_museum.ipynb) is the guided tour.",
        "",
        FILTER.format(label="Show exhibits with"),
    ]
    for number, room in museum.ROOMS.items():
        lines += [f"## Room {number}: {room}", ""]
        for code, item in ((code, museum.exhibit(code)) for code in museum.NUMBERS if code.startswith(str(number))):
            catches = ", ".join(f"`{name}`" for name in item.checkers)
            lines += ["::::{container} exhibit", "", f"**{code} {escaped(item.name)}**: {escaped(item.title)}", ""]
            lines += [escaped(item.symptom), ""]
            for version, label in (("wrong", "Wrong"), ("right", "Right")):
                lines += [f"{label}:", "", "```python", item.code(version), "```", ""]
            lines += [f"*Mend.* {escaped(item.mend)} *Caught by* {catches}.", ""]
            lines += [f"*Reported.* {escaped(item.reference)}.", "", "::::", ""]
    return "\n".join(lines)


def table(header: str, rows: list[list[str]]) -> str:
    names = header.split(" | ")
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [names, ["---"] * len(names), *rows]) if rows else "None."


def proof() -> str:
    """What was broken on purpose and who noticed; where the chapters gave the same outputs; what was refused."""
    numbers, mutants, runs = (
        json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
        for name in ("proof", "mutants", "nbval_runs")
    )
    modules, survived, equivalent, domain = [], [], [], []
    for module, part in sorted(numbers["mutants"].items()):
        counts = [str(part[name]) for name in ("total", "equivalent", "killed", "timeout")]
        share = part["killed"] / (part["total"] - part["equivalent"])
        modules.append([f"`{module}`", *counts, f"{share:.1%}"])
    for entry in mutants["survivors"]:
        cells = [f"`{entry['module']}`, {escaped(entry['function'])}", change(entry)]
        if entry["outcome"] == "equivalent":
            equivalent.append([*cells, escaped(entry["reason"])])
        else:
            survived.append(cells)
    for entry in mutants["domain"]:
        domain.append([escaped(entry["name"]), f"`{entry['module']}`", change(entry), caught(entry)])
    agreed = [
        [escaped(name), *(str(sum(run[what] for run in chapters.values())) for what in ("passed", "cells"))]
        for name, chapters in runs.items()
    ]
    totals = numbers["domain_mutants"]
    parts = {
        "commit": numbers["commit"],
        "mutants": table("module | changes | equivalent | noticed | ran out of time | noticed of the others", modules),
        "survived": table("where | change", survived),
        "equivalent": table("where | change | why it cannot be noticed", equivalent),
        "totals": f"Of {totals['total']} mistakes that people make with these formulas, the unit tests notice "
        f"{totals['killed_by_tests']}; the chapters, without the tests, {totals['killed_by_chapters']}.",
        "filter": FILTER.format(label="Show mistakes with"),
        "domain": table("mistake | module | change | noticed in chapter", domain),
        "runs": table("setting | chapters | cells that agree", agreed),
        "cases": f"{numbers['bad_input_cases']} cases of bad input: each ends in an error of the type that was "
        f"stated, whose message names the argument, what came and what was expected. {numbers['faults']} faults, such "
        "as a full disk, a folder without permission, a damaged or hostile file, a process killed: after each, "
        "nothing is lost and nothing strange was executed.",
    }
    return filled("proof.md", parts)


def filled(name: str, parts: dict[str, str]) -> str:
    """A page of docs with each ``<!-- part -->`` in its place."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    for part, content in parts.items():
        if text.count(f"<!-- {part} -->") != 1:
            raise ValueError(f"docs/{name} must have one place for {part}")
        text = text.replace(f"<!-- {part} -->", content)
    return text


def change(entry: dict[str, str]) -> str:
    """What was there and, below it, what came in its place, as a cell of a table."""
    was, becomes = (textwrap.shorten(entry[name], 160, placeholder=" …") for name in ("was", "becomes"))
    return " <br> ".join(f"`` {text} ``".replace("|", "\\|") for text in (was, f"→ {becomes}"))


def caught(entry: dict[str, Any]) -> str:
    """The check that caught a mistake, with a link; or that no chapter did."""
    if entry["caught_by"] is None:
        return "not by " + ", ".join(entry["chapters_run"]) if entry["chapters_run"] else "not run"
    by = entry["caught_by"]
    if match := re.match(r"(\d\d\.[0-9]+[a-z]?) ", by["message"]):
        return f"[{match[1]}](#{anchor(match[1])})"
    (path,) = (ROOT / "notebooks").glob(f"{by['chapter']}_*.ipynb")
    return f"[{by['chapter']}](chapters/{path.name}), {by['error']}"


def glossary(start_here: nbformat.NotebookNode) -> str:
    """The terms, with chapter 00's table of notation."""
    notation = next(cell.source for cell in start_here.cells if cell.source.startswith("## Notation"))
    return filled("glossary.md", {"notation": notation})


def api() -> dict[str, str]:
    """One page for each public module, and their list."""
    names = []
    for path in sorted((ROOT / "vi_tutorial").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name != "vi_tutorial" and not NOT_IN_API.search(name):
            names.append(name)
    pages = {
        f"{name}.rst": f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n   :members:\n   :show-inheritance:\n"
        for name in names
    }
    toctree = "\n".join(names)
    pages["index.md"] = (
        "# The package\n\nStart with [`vi_tutorial.elbo`](vi_tutorial.elbo.rst): everything else replaces the model or "
        f"the approximation.\n\n```{{toctree}}\n:maxdepth: 1\n\n{toctree}\n```\n"
    )
    return pages


def lay_out() -> None:
    """Write the pages that Sphinx reads."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES, ignore=shutil.ignore_patterns("*.png", "index.md"))
    mathjax = Path(find_spec("sphinx-mathjax-offline").submodule_search_locations[0]) / "static/mathjax"
    for part in ("tex-chtml.js", "output/chtml/fonts", "input/tex/extensions"):
        copy = shutil.copytree if (mathjax / part).is_dir() else shutil.copy
        (PAGES / "_static/mathjax" / part).parent.mkdir(parents=True, exist_ok=True)
        copy(mathjax / part, PAGES / "_static/mathjax" / part)
    script = PAGES / "_static/mathjax/tex-chtml.js"  # it names hosts for the parts that are not used here
    script.write_text(re.sub(r"https://cdn\.[a-z.]+/", "./", script.read_text()))
    address = repository()
    notebooks = {}
    for folder in ("chapters", "downloads", "api"):
        (PAGES / folder).mkdir()
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        notebooks[path.stem] = nbformat.read(path, as_version=4)
        nbformat.write(chapter(path, address), PAGES / "chapters" / path.name)
        shutil.copy(path, PAGES / "downloads")
    pages = {"index.md": front_page(), "derivations.md": derivations(notebooks), "museum.md": bug_museum()}
    pages["proof.md"] = proof()
    pages["glossary.md"] = glossary(notebooks["00_start_here"])
    pages |= {f"api/{name}": text for name, text in api().items()}
    pages["teaching.md"] = (ROOT / "docs/teaching.md").read_text().replace("](../notebooks/", "](chapters/")
    for name, text in pages.items():
        (PAGES / name).write_text(text)


def main() -> int:
    shutil.rmtree(SITE, ignore_errors=True)
    lay_out()
    options = ["-W", "--keep-going", "-q", "-j", "2", "-E", "-d", str(BUILD / "site-doctrees")]
    status = sphinx(["-b", "html", *options, str(PAGES), str(SITE)])
    print(f"See {(SITE / 'index.html').relative_to(ROOT)}" if status == 0 else "The site was not built.")
    return status


if __name__ == "__main__":
    sys.exit(main())
