"""The command line: ``run`` executes the chapters and reports what they verified; ``train`` and ``evaluate`` VAEs."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from vi_tutorial._atomic import write_atomically

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from vi_tutorial._execute import Execution

app = typer.Typer(
    help="From variational inference to variational autoencoders: executable chapters.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


CHECK_FIELDS = ("id", "statement", "kind", "tolerance", "wrong", "ok")


def _at_least_one(value: int) -> int:
    if value < 1:
        raise typer.BadParameter(f"received {value}; expected at least 1")
    return value


class Verdict(NamedTuple):
    """What one executed chapter says about itself."""

    execution: Execution
    checks: list[dict[str, Any]]  # without duplicates, in order of appearance
    exercises: list[str]
    failures: list[str]


@app.command()
def run(
    chapters: Annotated[
        list[str] | None, typer.Argument(help="Numbers or names, such as 01 06.", show_default="all")
    ] = None,
    notebooks: Annotated[Path, typer.Option(help="The folder of the chapters.", exists=True, file_okay=False)] = Path(
        "notebooks"
    ),
    output: Annotated[Path, typer.Option(help="Where report.json and the executed copies go.", file_okay=False)] = Path(
        "build"
    ),
    jobs: Annotated[int, typer.Option(help="How many chapters at a time.", callback=_at_least_one)] = 2,
    timeout: Annotated[int, typer.Option(help="Seconds that one cell may take.", callback=_at_least_one)] = 600,
) -> None:
    """Execute the chapters from clean; report seconds, verified checks and failures."""
    import nbformat

    from vi_tutorial._execute import execute_all, select

    try:
        paths = select(notebooks, chapters or [], ".ipynb")
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="'CHAPTERS'") from None

    unwritten: list[str] = []

    def save(path: Path, content: str) -> None:
        try:
            write_atomically(path, content + "\n")
        except OSError as error:  # a full disk must not stop the chapters
            unwritten.append(f"Error: {path} could not be written: {error.strerror or error}")

    def keep(execution: Execution) -> None:
        if execution.notebook is not None:
            save(output / "notebooks" / execution.path.name, nbformat.writes(execution.notebook))

    start = time.perf_counter()
    try:
        executions = execute_all(paths, folder=notebooks, jobs=jobs, timeout=timeout, finished=keep)
    except KeyboardInterrupt:
        typer.echo("Interrupted; the kernels are shut down.", err=True)
        raise typer.Exit(130) from None
    seconds = time.perf_counter() - start

    verdicts = [judge(execution) for execution in executions]
    report = {"commit": _commit(notebooks), "seconds": round(seconds, 1), **_report(verdicts)}
    save(output / "report.json", json.dumps(report, indent=1, ensure_ascii=False))
    typer.echo(_table(verdicts))
    typer.echo(f"{len(verdicts)} chapters in {seconds:.1f} s; see {output / 'report.json'}")
    for line in unwritten:
        typer.echo(line, err=True)
    if unwritten or any(verdict.failures for verdict in verdicts):
        raise typer.Exit(1)


@app.command()
def train(
    folder: Annotated[Path, typer.Argument(help="Where the run is kept.", file_okay=False)],
    data: Annotated[
        str | None, typer.Option(help="digits, mnist, or a .npy or .npz file.", show_default="digits")
    ] = None,
    likelihood: Annotated[
        str | None,
        typer.Option(
            help="bernoulli, binomial, continuous-bernoulli, discretised-logistic or normal.", show_default="bernoulli"
        ),
    ] = None,
    binarisation: Annotated[
        str | None, typer.Option(help="Of bytes: dynamic, at every visit, or static.", show_default="dynamic")
    ] = None,
    network: Annotated[str | None, typer.Option(help="mlp or convolutional.", show_default="mlp")] = None,
    hidden: Annotated[
        str | None, typer.Option(help="Sizes of the hidden layers, or channels.", show_default="200,200")
    ] = None,
    latents: Annotated[int | None, typer.Option(help="L.", show_default="50")] = None,
    posterior: Annotated[
        str | None, typer.Option(help="diagonal, full, mixture or flow.", show_default="diagonal")
    ] = None,
    bound: Annotated[str | None, typer.Option(help="elbo, analytic, stl, iwae or dreg.", show_default="elbo")] = None,
    num_samples: Annotated[int | None, typer.Option(help="K.", show_default="1")] = None,
    batch_size: Annotated[int | None, typer.Option(help="B, of all processes together.", show_default="100")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.", show_default="100")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after so long.", show_default="no limit")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of Adam.", show_default="0.001")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="constant, or stages, as in Burda et al. (2016).", show_default="constant")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and noise.", show_default="0")] = None,
    precision: Annotated[str | None, typer.Option(help="float32, float64 or bfloat16.", show_default="float32")] = None,
    compile: Annotated[bool | None, typer.Option(help="Try torch.compile.", show_default="no-compile")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, ….", show_default="auto")] = None,
    save_seconds: Annotated[float | None, typer.Option(help="Between two checkpoints.", show_default="60")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's checkpoint.")] = False,
) -> None:
    """Train a VAE, keep everything in a folder, and report what it is worth.

    In many processes: torchrun --nproc-per-node 2 --module vi_tutorial train FOLDER …
    """
    asked = {name: value for name, value in locals().items() if value is not None and name not in ("folder", "resume")}
    with _said_plainly():
        from vi_tutorial import runs

        if hidden is not None:
            asked["hidden"] = _sizes(hidden)
        before = runs.read(folder) if resume else runs.Config()
        runs.train(dataclasses.replace(before, **asked), folder, resume)
        if os.environ.get("RANK", "0") == "0":
            _show(runs.evaluate(folder, num_samples=100))


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="Of a run.", exists=True, file_okay=False)],
    num_samples: Annotated[int, typer.Option(help="Importance samples for each row.")] = 5000,
    num_rows: Annotated[int | None, typer.Option(help="Held-out rows, from the first.", show_default="all")] = None,
    seed: Annotated[int, typer.Option(help="Of the binarisation and the samples.")] = 0,
) -> None:
    """Measure a trained VAE on its held-out rows: log p(x) by importance sampling, ELBO, rate, distortion."""
    with _said_plainly():
        from vi_tutorial import runs

        _show(runs.evaluate(folder, num_samples, num_rows, seed))


def _sizes(words: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in words.split(","))
    except ValueError:
        raise ValueError(f"hidden must be sizes such as 200,200; received {words}") from None


@contextmanager
def _said_plainly() -> Iterator[None]:
    """An error that the package words itself ends the command with its message; others keep their traceback."""
    from vi_tutorial import runs
    from vi_tutorial.checkpoint import CheckpointError
    from vi_tutorial.mnist import DataFileError

    try:
        yield
    except KeyboardInterrupt:
        typer.echo("Interrupted; the last checkpoint is whole, go on with --resume.", err=True)
        raise typer.Exit(130) from None
    except (runs.RunError, CheckpointError, DataFileError, ValueError, TypeError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None


def _show(report: dict[str, Any]) -> None:
    for name in ("nll", "elbo", "rate", "distortion"):
        typer.echo(f"{name:10}  {report[name]:9.2f} ± {report[f'{name}_stderr']:.2f} nats")
    typer.echo(f"{report['active_latents']} active latents; {report['importance_samples']} importance samples")


def records(notebook: NotebookNode, kind: str) -> list[dict[str, Any]]:
    """What the chapter's outputs say in their metadata about each ``"check"`` or ``"exercise"``, in order."""
    metadata = [output.get("metadata", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    return [entry["vi_tutorial"][kind] for entry in metadata if kind in entry.get("vi_tutorial", {})]


def judge(execution: Execution) -> Verdict:
    """A chapter passes if every cell ran, and every check is complete, written once, and holds."""
    failures = [str(execution.failure)] if execution.failure else []
    checks: dict[str, dict[str, Any]] = {}
    found = records(execution.notebook, "check") if execution.notebook else []
    for check in found:
        name = check.get("id", "(no id)")
        if missing := [field for field in CHECK_FIELDS if field not in check]:
            failures.append(f"check {name}: its record lacks {', '.join(missing)}")
        elif name in checks:
            failures.append(f"check {name} is written twice")
        else:
            checks[name] = check
            failures += [] if check["ok"] else [f"check {name} does not hold"]
    exercises = records(execution.notebook, "exercise") if execution.notebook else []
    ids = list(dict.fromkeys(exercise["id"] for exercise in exercises))
    return Verdict(execution, list(checks.values()), ids, failures)


def _report(verdicts: list[Verdict]) -> dict[str, list[dict[str, Any]]]:
    report: dict[str, list[dict[str, Any]]] = {"chapters": [], "checks": [], "exercises": []}
    for execution, checks, exercises, failures in verdicts:
        chapter = execution.path.name[:2]
        report["chapters"].append(
            {
                "chapter": chapter,
                "file": execution.path.name,
                "seconds": round(execution.seconds, 1),
                "cell_seconds": round(execution.cell_seconds, 1),
                "ok": not failures,
            }
        )
        report["checks"] += [
            {"id": check["id"], "chapter": chapter} | {field: check[field] for field in CHECK_FIELDS}
            for check in checks
        ]
        report["exercises"] += [{"id": name, "chapter": chapter} for name in exercises]
    return report


def _table(verdicts: list[Verdict]) -> str:
    width = max(len("chapter"), *(len(verdict.execution.path.stem) for verdict in verdicts))
    lines = [f"{'chapter':{width}}  seconds  checks  failures"]
    for execution, checks, _, failures in verdicts:
        held = sum(check["ok"] for check in checks)
        name = execution.path.stem
        lines.append(f"{name:{width}}  {execution.seconds:7.1f}  {held:6d}  {len(failures):8d}")
    for execution, _, _, failures in verdicts:
        lines += [f"FAILED {execution.path.stem}: {failure}" for failure in failures]
    return "\n".join(lines)


def _commit(folder: Path) -> str:
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return git.stdout.strip()
