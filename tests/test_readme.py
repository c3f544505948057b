"""The README's example runs, and prints what stands below it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_prints_what_the_readme_shows(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = re.search(r"```python\n(import torch\n.*?)```\n\n```text\n(.*?)```", README, re.DOTALL).groups()
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    for line, expected in zip(printed.splitlines(), shown.splitlines(), strict=True):
        assert line.startswith(expected.removesuffix("..."))


def test_readme_and_the_first_chapter_list_the_same_chapters() -> None:
    chapters = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    start = (ROOT / "notebooks" / "src" / "00_start_here.py").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d\d \| \[([^|]+)\]\(notebooks/([^|]+)\.ipynb\) \| ([^|]+) \|", README, re.MULTILINE)
    assert [stem for _, stem, _ in rows] == chapters
    for title, stem, question in rows[1:]:
        assert f"# | {stem[:2]} | [{title}]({stem}.ipynb) | {question} |\n" in start
