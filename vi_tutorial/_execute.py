"""Executes notebooks from clean, several at a time: what ``vi-tutorial run`` and the authors' tools share.

One event loop holds all the kernels. Whatever goes wrong in a chapter (a cell's error, a cell that takes too
long, a kernel that does not start or that dies, a file that is no notebook) is that chapter's failure and
leaves the others alone; Ctrl-C shuts every kernel down.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, CellExecutionError, DeadKernelError
from nbclient.util import ensure_async
from nbformat import NotebookNode
from tqdm import tqdm

CHAPTER_NAME = re.compile(r"\d\d_[a-z0-9]+(_[a-z0-9]+)*")


class Failure(NamedTuple):
    """Why a chapter stopped: the cell (or the kernel), the error's last line, and the whole story."""

    where: str
    error: str
    details: str

    def __str__(self) -> str:
        return f"{self.where}: {self.error}"


class Execution(NamedTuple):
    """What became of a chapter. ``notebook`` is partial after a failure, ``None`` if it could not be read."""

    path: Path
    notebook: NotebookNode | None
    seconds: float  # with the kernel's start and end
    cell_seconds: float  # in code cells
    failure: Failure | None


def select(folder: Path, names: Iterable[str], suffix: str) -> list[Path]:
    """The chapters in ``folder``, sorted: all, or those named by number (``01``), by name or by file.

    Raises:
        ValueError: if a name fits no chapter, or there is none at all.
    """
    paths = sorted(path for path in folder.glob(f"*{suffix}") if CHAPTER_NAME.fullmatch(path.stem))
    if not paths:
        raise ValueError(f"no chapter in '{folder}'; expected files named NN_snake_case{suffix}")
    wanted = {Path(name).stem for name in names}
    known = {key for path in paths for key in (path.stem, path.stem[:2])}
    if unknown := sorted(wanted - known):
        numbers = ", ".join(path.stem[:2] for path in paths)
        raise ValueError(f"unknown chapter {', '.join(unknown)}; expected one of {numbers}")
    return [path for path in paths if not wanted or wanted & {path.stem, path.stem[:2]}]


def execute_all(
    paths: Sequence[Path],
    *,
    folder: Path,
    jobs: int,
    timeout: int,
    finished: Callable[[Execution], None],
    read: Callable[[Path], NotebookNode] = lambda path: nbformat.read(path, as_version=4),
) -> list[Execution]:
    """Execute the notebooks that ``read`` makes of ``paths``, ``jobs`` at a time, each in its own kernel.

    Args:
        paths: one per chapter.
        folder: the kernels' working directory.
        jobs: how many kernels at a time.
        timeout: seconds that one cell may take.
        finished: called with each chapter's result as soon as there is one.
        read: gives the notebook to execute; its stored outputs are dropped.

    Returns:
        One result per path, in the order of ``paths``.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when the kernels are shut down.
    """
    environment = kernel_environment(jobs)
    bar = tqdm(total=len(paths), unit="chapter", disable=os.environ.get("VI_TUTORIAL_PROGRESS") == "off")
    running: list[str] = []

    async def chapter(path: Path, free: asyncio.Semaphore) -> Execution:
        async with free:
            running.append(path.stem[:2])
            bar.set_description_str(", ".join(running))
            execution = await _execute(path, read, folder, environment, timeout)
            running.remove(path.stem[:2])
            bar.set_description_str(", ".join(running))
            bar.update()
        finished(execution)
        return execution

    async def chapters() -> list[Execution]:
        free = asyncio.Semaphore(jobs)
        return await asyncio.gather(*(chapter(path, free) for path in paths))

    with bar, asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(chapters())


def kernel_environment(jobs: int) -> dict[str, str]:
    """The kernels' environment: no progress bars; threads are shared out between the ``jobs`` unless set."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    return {"OMP_NUM_THREADS": str(threads), **os.environ, "VI_TUTORIAL_PROGRESS": "off"}


class _Loop(asyncio.SelectorEventLoop):
    """A loop in which Ctrl-C cancels all chapters: nbclient alone would shut down the kernel started last."""

    def add_signal_handler(self, *args: object) -> NoReturn:
        raise RuntimeError("Ctrl-C belongs to asyncio.Runner")


class _Client(NotebookClient):
    """Knows which cell it is in, and how long its code cells have taken."""

    current_cell: int | None = None
    cell_seconds = 0.0

    async def async_execute_cell(self, cell: NotebookNode, cell_index: int, *args: Any, **kwargs: Any) -> NotebookNode:
        self.current_cell = cell_index
        start = time.perf_counter()
        try:
            return await super().async_execute_cell(cell, cell_index, *args, **kwargs)
        except DeadKernelError:
            task = asyncio.current_task()
            if task is not None and task.cancelling() and self.km is not None and self.km.provisioner:
                # nbclient takes a cancelled cell for a dead kernel. It is busy: it would not hear a request.
                await self.km.provisioner.kill()
                await self.km.provisioner.wait()
                raise asyncio.CancelledError from None
            raise
        finally:
            if cell.cell_type == "code":
                self.cell_seconds += time.perf_counter() - start


async def _execute(
    path: Path,
    read: Callable[[Path], NotebookNode],
    folder: Path,
    environment: dict[str, str],
    timeout: int,
) -> Execution:
    start = time.perf_counter()
    client = failure = None
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:  # what the kernel itself says
        try:
            client = _Client(_cleared(read(path)), timeout=timeout, record_timing=False, store_widget_state=False)
            await client.async_execute(cwd=str(folder), env=environment, stderr=log)
        except Exception as error:  # whatever it is, it must not stop the other chapters
            log.seek(0)
            failure = _failure(error, client, log.read())
        finally:
            if client is not None and client.km is not None and client.km.has_kernel:
                await ensure_async(client.km.shutdown_kernel(now=True))
    return Execution(
        path=path,
        notebook=client.nb if client else None,
        seconds=time.perf_counter() - start,
        cell_seconds=client.cell_seconds if client else 0.0,
        failure=failure,
    )


def _cleared(notebook: NotebookNode) -> NotebookNode:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def _failure(error: Exception, client: _Client | None, log: str) -> Failure:
    details = f"{error}\n{log}"
    if client is None:
        where = "file"
    elif client.current_cell is None:
        where = "kernel"
    else:
        source = client.nb.cells[client.current_cell].source.strip() or "(empty)"
        where = f"cell {client.current_cell} `{source.splitlines()[0]}`"
    if isinstance(error, CellExecutionError):
        return Failure(where, f"{error.ename}: {_last_line(error.evalue)}", details)
    if isinstance(error, CellControlSignal):  # a time-out, whose message goes on to quote the cell
        return Failure(where, f"{type(error).__name__}: {str(error).splitlines()[0]}", details)
    return Failure(where, f"{type(error).__name__}: {_last_line(str(error))}", details)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""
