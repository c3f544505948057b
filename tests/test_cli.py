"""The command line on tiny notebooks, which need no torch."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from typer.testing import CliRunner, Result

from vi_tutorial.cli import app

Write = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "note books"  # a space, as in many a home folder
    path.mkdir()
    return path


@pytest.fixture
def write(folder: Path) -> Write:
    def _write(name: str, *sources: str) -> Path:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in sources])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        path = folder / f"{name}.ipynb"
        nbformat.write(notebook, path)
        return path

    return _write


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Callable[..., Result]:
    def _run(*arguments: str) -> Result:
        places = ["--notebooks", str(folder), "--output", str(tmp_path / "build")]
        return CliRunner().invoke(app, ["run", *arguments, *places])

    return _run


@pytest.fixture
def report(tmp_path: Path) -> Callable[[], dict[str, Any]]:
    return lambda: json.loads((tmp_path / "build" / "report.json").read_text(encoding="utf-8"))


def show(what: str, **record: Any) -> str:
    """A cell that shows one line and carries a record in its output's metadata."""
    return (
        "from IPython.display import display\n"
        f"display({{'text/plain': 'shown'}}, raw=True, metadata={{'vi_tutorial': {{{what!r}: {record!r}}}}})"
    )


def check(name: str, ok: bool = True) -> str:
    return show(
        "check",
        id=name,
        statement="log p(x) = ELBO + KL",
        kind="exact",
        tolerance="1e-10",
        wrong=["sign of KL flipped"],
        ok=ok,
    )


def test_the_report_says_what_ran_and_what_it_verified(write, run, report, folder, tmp_path):
    write("02_second", "x = 1")
    write(
        "01_first",
        check("01.1"),
        check("01.2"),
        show("exercise", id="01.E1", status="not answered yet"),
        show("exercise", id="01.E1", status="right"),
    )
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    result = run()

    assert result.exit_code == 0, result.output
    found = report()
    assert list(found) == ["commit", "seconds", "chapters", "checks", "exercises"]
    assert found["commit"] == "unknown"
    assert [list(chapter) for chapter in found["chapters"]] == [
        ["chapter", "file", "seconds", "cell_seconds", "ok"]
    ] * 2
    assert [(c["chapter"], c["file"], c["ok"]) for c in found["chapters"]] == [
        ("01", "01_first.ipynb", True),
        ("02", "02_second.ipynb", True),
    ]
    assert all(0 < c["seconds"] >= c["cell_seconds"] for c in found["chapters"])
    assert found["checks"][1] == {
        "id": "01.2",
        "chapter": "01",
        "statement": "log p(x) = ELBO + KL",
        "kind": "exact",
        "tolerance": "1e-10",
        "wrong": ["sign of KL flipped"],
        "ok": True,
    }
    assert [c["id"] for c in found["checks"]] == ["01.1", "01.2"]
    assert found["exercises"] == [{"id": "01.E1", "chapter": "01"}]
    assert re.search(r"^01_first +[\d.]+ +2 +0$", result.output, re.MULTILINE)

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    copy = nbformat.read(tmp_path / "build" / "notebooks" / "01_first.ipynb", as_version=4)
    assert [cell.execution_count for cell in copy.cells] == [1, 2, 3, 4]


def test_failures_stay_in_their_chapter(write, run, report, folder, tmp_path):
    write("01_raises", "x = 1", "y = x\nraise ValueError('first\\nthe last line')", "z = 3")
    write("02_hangs", "import time\ntime.sleep(60)")
    write("03_dies", "import os\nos._exit(1)")
    (folder / "04_no_notebook.ipynb").write_text("{", encoding="utf-8")
    write("05_works", "import os\nos.environ['VI_TUTORIAL_PROGRESS'], os.environ['OMP_NUM_THREADS']")

    result = run("--timeout", "3")

    assert result.exit_code == 1
    assert "FAILED 01_raises: cell 1 `y = x`: ValueError: the last line" in result.output
    assert "FAILED 02_hangs: cell 0 `import time`: CellTimeoutError" in result.output
    assert "FAILED 03_dies: cell 0 `import os`: DeadKernelError" in result.output
    assert "FAILED 04_no_notebook: file: NotJSONError" in result.output
    assert "Traceback" not in result.output
    assert [c["ok"] for c in report()["chapters"]] == [False, False, False, False, True]
    partial = nbformat.read(tmp_path / "build" / "notebooks" / "01_raises.ipynb", as_version=4)
    assert [cell.execution_count for cell in partial.cells] == [1, 2, None]
    complete = nbformat.read(tmp_path / "build" / "notebooks" / "05_works.ipynb", as_version=4)
    assert complete.cells[0].outputs[0].data["text/plain"].startswith("('off', ")


def test_a_kernel_that_does_not_start(write, run, report, folder):
    write("01_works", "x = 1")
    path = write("02_no_kernel", "x = 1")
    path.write_text(path.read_text(encoding="utf-8").replace("python3", "no_such_kernel"), encoding="utf-8")

    result = run()

    assert result.exit_code == 1
    assert "FAILED 02_no_kernel: kernel: NoSuchKernel" in result.output
    assert [c["ok"] for c in report()["chapters"]] == [True, False]


def test_a_check_must_hold_be_complete_and_be_written_once(write, run, report):
    incomplete = show("check", id="01.4", ok=True)
    write("01_checks", check("01.1"), check("01.1"), check("01.2", ok=False), check("01.3"), incomplete)

    result = run()

    assert result.exit_code == 1
    assert "FAILED 01_checks: check 01.1 is written twice" in result.output
    assert "FAILED 01_checks: check 01.2 does not hold" in result.output
    assert "check 01.4: its record lacks statement, kind, tolerance, wrong" in result.output
    assert [(c["id"], c["ok"]) for c in report()["checks"]] == [
        ("01.1", True),
        ("01.2", False),
        ("01.3", True),
    ]
    assert not report()["chapters"][0]["ok"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["01", "07"], "'CHAPTERS': unknown chapter 07; expected one of 01, 02"),
        (["--jobs", "0"], "'--jobs': received 0; expected at least 1"),
        (["--timeout", "-1"], "'--timeout': received -1; expected at least 1"),
    ],
)
def test_bad_arguments_meet_a_clear_error(write, run, arguments, message):
    write("01_first", "x = 1")
    write("02_second", "x = 1")
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_no_notebooks(run, tmp_path):
    assert "expected files named NN_snake_case.ipynb" in run().output
    result = CliRunner().invoke(app, ["run", "--notebooks", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert "'--notebooks'" in result.output
    assert "nowhere" in result.output


@pytest.mark.parametrize("name", ["02", "02_second", "notebooks/02_second.ipynb"])
def test_a_chapter_is_chosen_by_number_name_or_file(write, run, report, name):
    write("01_first", "raise ValueError")
    write("02_second", "x = 1")
    assert run(name).exit_code == 0
    assert [c["chapter"] for c in report()["chapters"]] == ["02"]


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
def test_ctrl_c_shuts_the_kernels_down(write, folder, tmp_path):
    for name in ("01_first", "02_second"):
        say = f"open({str(tmp_path / name)!r}, 'w').write(str(os.getpid()))"
        write(name, f"import os, time\n_ = {say}\ntime.sleep(60)")
    command = [sys.executable, "-m", "vi_tutorial", "run", "--notebooks", folder, "--output", tmp_path / "b"]
    # A shell's background jobs ignore the signal, and so would what they start.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    pids = [_wait_for_number(tmp_path / name) for name in ("01_first", "02_second")]

    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)

    assert process.returncode == 130
    assert "Traceback" not in errors
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def _wait_for_number(path: Path) -> int:
    for _ in range(300):
        if path.exists() and (text := path.read_text()):
            return int(text)
        time.sleep(0.1)
    raise TimeoutError(path)


def test_help_is_quick_because_it_imports_nothing_heavy():
    code = (
        "import sys\nfrom vi_tutorial.cli import app\n"
        "try:\n    app(['run', '--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({'torch', 'matplotlib', 'nbclient', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--notebooks" in result.stdout
    assert result.stdout.endswith("[]\n")
