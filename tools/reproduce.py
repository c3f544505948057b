"""Compare every chapter with its stored outputs again, in twenty settings that a reader's machine may have.

``python tools/reproduce.py`` runs strict nbval once in each setting of SETTINGS and counts those where every cell
agrees. Progress is kept in build/reproduce.json, so that an interrupted run goes on where it was; when the last one is
done (or with ``--report``) the count goes to benchmarks/results/proof.json. Linux, as root: some settings need another
user, a locale made for them, or a network that is not there. About five minutes a setting on two cores.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

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


def threads(number: int) -> dict[str, str]:
    """For OpenMP, MKL and OpenBLAS, and so for torch, NumPy and SciPy."""
    return {f"{library}_NUM_THREADS": str(number) for library in ("OMP", "MKL", "OPENBLAS")}


SETTINGS = {
    "as it comes": Setting(),
    "one thread": Setting(threads(1)),
    "two threads": Setting(threads(2)),
    "four threads": Setting(threads(4)),
    "hash seed 0": Setting({"PYTHONHASHSEED": "0"}),
    "hash seed 1": Setting({"PYTHONHASHSEED": "1"}),
    "hash seed 4294967295": Setting({"PYTHONHASHSEED": "4294967295"}),
    "locale C": Setting({"LC_ALL": "C", "PYTHONUTF8": "0"}),
    "German locale, with a decimal comma": Setting(locale="de_DE"),
    "Turkish locale, with a dotless i": Setting(locale="tr_TR"),
    "a day ahead: Kiritimati": Setting({"TZ": "Pacific/Kiritimati"}),
    "half an hour off: St John's": Setting({"TZ": "America/St_Johns"}),
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


def run(setting: Setting, chapters: list[str]) -> dict[str, Any]:
    """Strict nbval of the chapters in this setting."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        python, environment, checkout = prepared(setting, Path(folder).resolve())
        notebooks = [next((checkout / "notebooks").glob(f"{chapter}_*.ipynb")) for chapter in chapters]
        quick = ["-q", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadscope"]
        command = [*python, "-m", "pytest", "--nbval", *(notebooks or [checkout / "notebooks"]), *quick]
        start = time.perf_counter()
        done = subprocess.run(
            [str(part) for part in command], cwd=checkout, env=environment, capture_output=True, text=True, check=False
        )
        if setting.read_only:
            subprocess.run(["chmod", "-R", "u+w", folder], check=True)
    lines = done.stdout.strip().splitlines()
    result = {"passed": done.returncode == 0, "seconds": round(time.perf_counter() - start)}
    result["said"] = lines[-1].strip("= ") if lines else ""
    if done.returncode:
        result["story"] = (done.stdout + done.stderr)[-6000:]
    return result


def digest() -> str:
    """Of all that decides the outcome: chapters, package and versions."""
    files = [*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "vi_tutorial").rglob("*.py"), ROOT / "constraints.txt"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()[:12]


def report(state: Mapping[str, Any]) -> None:
    """Write the count, and each setting with what pytest said of it."""
    passed = sum(result["passed"] for result in state["runs"].values())
    rows = {name: {"passed": r["passed"], "said": r["said"]} for name, r in state["runs"].items()}
    merge(RESULTS / "proof.json", {"nbval_runs": {"passed": passed, "total": len(SETTINGS)}})
    _write(RESULTS / "nbval_runs.json", {name: rows[name] for name in SETTINGS if name in rows})
    print(f"{passed} of {len(SETTINGS)} runs agree with the stored outputs")


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Settings.", show_default="all")] = None,
    chapters: Annotated[str, typer.Option(help="Numbers; a part is tried and not counted. Default: all.")] = "",
    only_report: Annotated[bool, typer.Option("--report", help="Write the results found so far.")] = False,
    path: Annotated[Path, typer.Option("--state", help="Where the progress is kept.")] = ROOT / "build/reproduce.json",
) -> None:
    """Strict nbval in settings that differ as readers' machines do."""
    unknown = set(names or []) - set(SETTINGS)
    if unknown:
        raise typer.BadParameter(f"no such setting: {', '.join(sorted(unknown))}; there are: {'; '.join(SETTINGS)}")
    state = _state(path)
    if state.get("digest") != digest():
        state = {"digest": digest(), "runs": {}}
    if not only_report:
        for name in names or SETTINGS:
            if chapters or not state["runs"].get(name, {}).get("passed"):
                result = run(SETTINGS[name], chapters.split())
                print(f"{'agrees' if result['passed'] else 'FAILED'}: {name}: {result['said']}", flush=True)
                if not result["passed"]:
                    print(result["story"], flush=True)
                if not chapters:
                    state["runs"][name] = result
                    _write(path, state)
    if not chapters and (only_report or len(state["runs"]) == len(SETTINGS)):
        report(state)


if __name__ == "__main__":
    typer.run(main)
