"""Compare every chapter with its stored outputs again, in twenty settings that a reader's machine may have.

``python tools/reproduce.py`` runs strict nbval once in each setting of SETTINGS and writes what agreed to
benchmarks/results/nbval_runs.json, the count of settings in which every cell did to proof.json. An interrupted run goes
on where it was: a chapter is not run again in a setting where it agreed, as long as its code, the package and the
versions are the same. Linux, as root: some settings need another user, a locale made for them, or a network that is
not there. About three minutes a setting on two cores.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import nbformat
import typer
from mutants import RESULTS, ROOT, _copied, _state, _write, merge

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
# The interpreter may lie where nobody else may look; this user may read everything, and write what is everybody's.
NOBODY += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


@dataclass(frozen=True)
class Setting:
    """One way in which machines differ. ``{folder}`` stands for a folder of the setting's own."""

    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = "checkout"
    locale: str | None = None  # is made if the machine lacks it
    prefix: tuple[str, ...] = ()
    read_only: bool = False
    constraints: str | None = None  # other versions of the dependencies, in an environment of their own
    matplotlibrc: str = ""


def processor(*, has_avx2: bool) -> dict[str, str]:
    """An older one, without AVX-512 at least: sums run in another order, and round differently."""
    return {
        "ATEN_CPU_CAPABILITY": "avx2" if has_avx2 else "default",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2" if has_avx2 else "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "AVX2" if has_avx2 else "SSE41",
        "OPENBLAS_CORETYPE": "Haswell" if has_avx2 else "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR" + ("" if has_avx2 else " X86_V3"),
    }


def threads(number: int) -> dict[str, str]:
    """For OpenMP, MKL and OpenBLAS, and so for torch, NumPy and SciPy."""
    return {f"{library}_NUM_THREADS": str(number) for library in ("OMP", "MKL", "OPENBLAS")}


SETTINGS = {
    "as it comes": Setting(),
    "one thread": Setting(threads(1)),
    "two threads": Setting(threads(2)),
    "four threads": Setting(threads(4)),
    "a processor without AVX-512": Setting(processor(has_avx2=True)),
    "a processor without AVX": Setting(processor(has_avx2=False)),
    "hash seed 0": Setting({"PYTHONHASHSEED": "0"}),
    "hash seed 1": Setting({"PYTHONHASHSEED": "1"}),
    "locale C": Setting({"LC_ALL": "C", "PYTHONUTF8": "0"}),
    "German locale, with a decimal comma": Setting(locale="de_DE"),
    "Turkish locale, with a dotless i": Setting(locale="tr_TR"),
    "a day ahead: Kiritimati": Setting({"TZ": "Pacific/Kiritimati"}),
    "matplotlib draws with agg": Setting({"MPLBACKEND": "agg"}),
    "matplotlib draws with svg": Setting({"MPLBACKEND": "svg"}),
    "a path with spaces and other letters": Setting(folder="Künstliche Übung 変分 (1)"),
    "a read-only checkout and home, not root": Setting(
        # Jupyter and Matplotlib are told where they may write, as their messages ask; nothing of ours needs to be.
        {"JUPYTER_RUNTIME_DIR": "{folder}/tmp", "MPLCONFIGDIR": "{folder}/tmp"},
        prefix=tuple(NOBODY),
        read_only=True,
    ),
    "without a network": Setting(prefix=("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")),
    "without the folder of data": Setting({"VI_TUTORIAL_DATA": ""}),
    "the reader's own style of figures": Setting(
        {"MATPLOTLIBRC": "{folder}/home/matplotlibrc"},
        matplotlibrc="figure.dpi: 200\nfont.size: 20\naxes.grid: True\nlines.linewidth: 5\nsavefig.bbox: tight\n",
    ),
    "the oldest versions": Setting(constraints="constraints-oldest.txt"),
}


def prepared(setting: Setting, place: Path) -> tuple[list[str], dict[str, str], Path]:
    """The command's beginning, the environment and the checkout, in an empty folder."""
    checkout, home, temporary = place / setting.folder, place / "home", place / "tmp"
    for folder in (checkout, home, temporary):
        folder.mkdir()
    _copied(checkout)
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON", "MPL"))}
    environment = keep | {"HOME": str(home), "TMPDIR": str(temporary), "VI_TUTORIAL_PROGRESS": "off"}
    environment |= {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {name: value.format(folder=place) for name, value in setting.environment.items()}
    if setting.locale is not None:
        subprocess.run(
            ["localedef", "-i", setting.locale, "-f", "UTF-8", place / f"{setting.locale}.UTF-8"], check=True
        )
        environment |= {"LOCPATH": str(place), "LC_ALL": f"{setting.locale}.UTF-8"}
    if setting.matplotlibrc:
        (home / "matplotlibrc").write_text(setting.matplotlibrc, encoding="utf-8")
    python = sys.executable
    if setting.constraints is not None:
        python = str(place / "environment" / "bin" / "python")
        subprocess.run([sys.executable, "-m", "venv", place / "environment"], check=True)
        # Only what the file names, and the package as it is here; pip tells it from the other copy by its metadata.
        for what in (["-r", ROOT / setting.constraints], ["--no-deps", checkout]):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *what], check=True, env=keep)
    if setting.read_only:
        place.chmod(0o755)
        temporary.chmod(0o1777)
        subprocess.run(["chmod", "-R", "a-w,a+rX", checkout, home], check=True)
    return [*setting.prefix, python], environment, checkout


def run(setting: Setting, chapters: list[str]) -> dict[str, int]:
    """Strict nbval of the chapters in this setting: the number of cells of each that agree."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        python, environment, checkout = prepared(setting, Path(folder).resolve())
        notebooks = [f"notebooks/{notebook(chapter).name}" for chapter in chapters]
        found = Path(environment["TMPDIR"], "found.xml")
        quick = ["-q", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadscope", f"--junitxml={found}"]
        command = [*python, "-m", "pytest", "--nbval", *notebooks, *quick]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            print((done.stdout + done.stderr)[-6000:], flush=True)
        if setting.read_only:
            subprocess.run(["chmod", "-R", "u+w", folder], check=True)
        return agreed(found.read_text(encoding="utf-8"), chapters)


def agreed(junit: str, chapters: list[str]) -> dict[str, int]:
    """The number of passed cells of each chapter in pytest's report: those with no failure, error or skip."""
    cells = ElementTree.fromstring(junit).iter("testcase")
    passed = [cell.get("classname", "") for cell in cells if not len(cell)]
    return {chapter: sum(f".{chapter}_" in name for name in passed) for chapter in chapters}


def notebook(chapter: str) -> Path:
    """Where a chapter's notebook is."""
    return next((ROOT / "notebooks").glob(f"{chapter}_*.ipynb"))


def digest(chapter: str, setting: Setting) -> str:
    """Of all that decides the outcome: the chapter's code and its outputs, the package, and the versions."""
    cells = nbformat.read(notebook(chapter), as_version=4).cells
    code = [[cell.source, cell.outputs] for cell in cells if cell.cell_type == "code"]
    files = [*sorted((ROOT / "vi_tutorial").rglob("*.py")), ROOT / (setting.constraints or "constraints.txt")]
    parts = [json.dumps(code, sort_keys=True).encode(), *(path.read_bytes() for path in files)]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def cells_of(chapter: str) -> int:
    """How many cells nbval compares."""
    return sum(cell.cell_type == "code" for cell in nbformat.read(notebook(chapter), as_version=4).cells)


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Settings.", show_default="all")] = None,
    chapters: Annotated[str, typer.Option(help="Their numbers, separated by spaces. Default: all.")] = "",
) -> None:
    """Strict nbval in settings that differ as readers' machines do."""
    unknown = set(names or []) - set(SETTINGS)
    if unknown:
        raise typer.BadParameter(f"no such setting: {', '.join(sorted(unknown))}; there are: {'; '.join(SETTINGS)}")
    every = sorted(path.name[:2] for path in (ROOT / "notebooks").glob("*.ipynb"))
    path = RESULTS / "nbval_runs.json"
    for name in names or SETTINGS:
        runs = {setting: _state(path).get(setting, {}) for setting in SETTINGS}
        same = {
            chapter
            for chapter, entry in runs[name].items()
            if entry["passed"] and entry["of"] == digest(chapter, SETTINGS[name])
        }
        todo = [chapter for chapter in chapters.split() or every if chapter not in same]
        of = {chapter: digest(chapter, SETTINGS[name]) for chapter in todo}
        start = time.perf_counter()
        cells = run(SETTINGS[name], todo) if todo else {}
        for chapter, number in cells.items():
            runs[name][chapter] = {"of": of[chapter], "cells": number, "passed": number == cells_of(chapter)}
        failed = [chapter for chapter in every if not runs[name].get(chapter, {"passed": False})["passed"]]
        story = f"not yet, or not in agreement: {' '.join(failed)}" if failed else "agrees"
        print(f"{name}: {story} ({time.perf_counter() - start:.0f} s)", flush=True)
        _write(path, runs)
        report(path, every)


def report(path: Path, every: list[str]) -> None:
    """Count the settings in which every chapter, as it is now, agrees."""
    runs = _state(path)
    passed = sum(
        all(c in runs[name] and runs[name][c]["passed"] and runs[name][c]["of"] == digest(c, setting) for c in every)
        for name, setting in SETTINGS.items()
    )
    merge(path.with_name("proof.json"), {"nbval_runs": {"passed": passed, "total": len(SETTINGS)}})


if __name__ == "__main__":
    typer.run(main)
