"""Disks that fill, folders that refuse, files that lie, processes that are killed: a clear error, and nothing lost.

Some faults are tested beside what they fail: full disks under a checkpoint, and what is no checkpoint, in
test_checkpoint.py; runs killed at random steps in test_runs.py; downloads cut off in test_mnist.py; chapters that
raise, hang or die in test_cli.py. Here are those that need a process of their own, and files that were made to do harm.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import json
import multiprocessing
import os
import pickle
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from vi_tutorial import checkpoint, cli, mnist, runs
from vi_tutorial.files import memory_mapped
from vi_tutorial.runs import loop

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks, signals and limits of POSIX")

SMALL = runs.Config(hidden=(8,), latents=2, epochs=1)
NOBODY = 65534


class Trap:
    """Whoever unpickles it is caught."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (pytest.fail, ("the file was run",))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


def in_child(function: Callable[[], object], before: Callable[[], object] = lambda: None) -> str:
    """The error that a call meets in a process of its own, after ``before`` has made the process as it is to be."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        try:
            before()
            function()
        except BaseException as error:
            sender.send(f"{type(error).__name__}: {error}")
        else:
            sender.send("")

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    said = receiver.recv() if receiver.poll(60) else "silence"
    child.join(60)
    return str(said)


def full_disk() -> None:
    """No file of this process may grow beyond 200 bytes: the system itself refuses the rest."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))


def not_root() -> None:
    if os.geteuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that others can enter; pytest's own are for their owner alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o755)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    runs.train(SMALL, folder)
    return folder


@pytest.fixture
def run(finished: Path, open_folder: Path) -> Path:
    """A finished run that a test may damage."""
    for name, content in contents(finished).items():
        (open_folder / name).write_bytes(content)
        (open_folder / name).chmod(0o644)
    return open_folder


def layer() -> tuple[nn.Module, torch.optim.Optimizer]:
    module = nn.Linear(20, 20)
    optimiser = torch.optim.Adam(module.parameters())
    module(torch.ones(3, 20)).sum().backward()
    optimiser.step()
    return module, optimiser


# --- Disks that are full, as the system says it -----------------------------------------------------------------------


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "c", *layer(), {}, {"step": "1"})
    before = contents(tmp_path)
    said = in_child(lambda: checkpoint.write(tmp_path / "c", *layer(), {}, {"step": "2"}), full_disk)
    assert said.startswith(f"OSError: [Errno {errno.EFBIG}]")
    assert contents(tmp_path) == before


def test_a_first_checkpoint_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    assert in_child(lambda: checkpoint.write(tmp_path / "c", *layer(), {}, {}), full_disk).startswith("OSError")
    assert contents(tmp_path) == {}


def test_training_on_a_full_disk_leaves_the_run_as_it_was(run: Path) -> None:
    before = contents(run)
    longer = dataclasses.replace(SMALL, epochs=2)
    assert in_child(lambda: runs.train(longer, run, resume=True), full_disk).startswith("OSError")
    after = contents(run)
    assert after["checkpoint.safetensors"] == before["checkpoint.safetensors"]
    assert after["history.csv"] == before["history.csv"]
    assert runs.train(longer, run, resume=True)["epoch"] == 2


def test_a_report_that_does_not_fit_leaves_the_one_before(run: Path) -> None:
    (run / "report.json").write_text('{"nll": 1}')
    said = in_child(lambda: runs.evaluate(run, num_samples=25, num_rows=2), full_disk)
    assert said.startswith("OSError")
    assert (run / "report.json").read_text() == '{"nll": 1}'


@pytest.mark.parametrize("place", ["notebooks", "report.json"])
def test_chapters_on_a_full_disk_end_with_a_plain_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The chapters still run to their end; what could be written is whole."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in ("01_first", "02_second"):
        cell = nbformat.v4.new_code_cell(f"_ = open({str(tmp_path / name)!r}, 'w').write('ran')")
        notebook = nbformat.v4.new_notebook(cells=[cell])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, folder / f"{name}.ipynb")
    write = cli.write_atomically

    def full(path: Path, content: str) -> None:
        if place in path.relative_to(tmp_path / "build").parts:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(cli, "write_atomically", full)
    arguments = ["run", "--notebooks", str(folder), "--output", str(tmp_path / "build")]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 1
    assert "No space left" in result.output
    assert isinstance(result.exception, SystemExit), "a traceback"
    assert [(tmp_path / name).read_text() for name in ("01_first", "02_second")] == ["ran", "ran"]


# --- Folders that refuse ----------------------------------------------------------------------------------------------


def test_a_checkpoint_in_a_folder_that_refuses_leaves_the_one_before(open_folder: Path) -> None:
    checkpoint.write(open_folder / "c", *layer(), {}, {"step": "1"})
    before = contents(open_folder)
    open_folder.chmod(0o555)
    said = in_child(lambda: checkpoint.write(open_folder / "c", *layer(), {}, {}), not_root)
    assert said.startswith(f"PermissionError: [Errno {errno.EACCES}]")
    assert str(open_folder) in said
    assert contents(open_folder) == before


def test_a_run_that_may_not_make_its_folder_says_which(open_folder: Path) -> None:
    open_folder.chmod(0o555)
    said = in_child(lambda: runs.train(SMALL, open_folder / "run"), not_root)
    assert said.startswith("PermissionError")
    assert str(open_folder / "run") in said
    assert contents(open_folder) == {}


def test_a_run_that_may_not_be_changed_stays_as_it_was(run: Path) -> None:
    before = contents(run)
    run.chmod(0o555)
    said = in_child(lambda: runs.train(dataclasses.replace(SMALL, epochs=2), run, resume=True), not_root)
    assert said.startswith("PermissionError")
    assert contents(run) == before


def test_a_report_in_a_folder_that_refuses_is_said(run: Path) -> None:
    before = contents(run)
    run.chmod(0o555)
    assert in_child(lambda: runs.evaluate(run, 25, 2), not_root).startswith("PermissionError")
    assert contents(run) == before


def test_a_checkpoint_that_may_not_be_read_is_said(run: Path) -> None:
    (run / "checkpoint.safetensors").chmod(0o000)
    said = in_child(lambda: checkpoint.read(run / "checkpoint.safetensors"), not_root)
    assert said.startswith("PermissionError")
    assert "checkpoint.safetensors" in said


def test_a_cache_that_refuses_is_said(open_folder: Path) -> None:
    importlib.import_module("pooch")  # nobody may not be allowed to
    open_folder.chmod(0o555)
    said = in_child(lambda: mnist.mnist(open_folder / "mnist"), not_root)
    assert said.startswith("DataFileError")
    assert "Permission denied" in said
    assert "set VI_TUTORIAL_DATA" in said
    assert contents(open_folder) == {}


# --- Files that lie ---------------------------------------------------------------------------------------------------


def lie(path: Path, header: dict[str, Any], data: bytes = b"\0" * 16) -> None:
    """A file of safetensors with this header."""
    words = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(words)) + words + data)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [2**63, 2**63], "data_offsets": [0, 16]}},
        {
            "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
            "b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        },
        {"a": {"dtype": "object", "shape": [4], "data_offsets": [0, 16]}},
    ],
    ids=["beyond the end", "false size", "negative size", "overflow", "overlapping", "objects"],
)
def test_a_checkpoint_whose_header_lies_is_refused(tmp_path: Path, header: dict[str, Any]) -> None:
    path = tmp_path / "c.safetensors"
    lie(path, header)
    before = path.read_bytes()
    with pytest.raises(checkpoint.CheckpointError, match=r"c\.safetensors is not a whole checkpoint"):
        checkpoint.read(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "name", ["optimiser/0/exp_avg/more", "optimiser/0", "optimiser/zero/exp_avg", "optimiser/-1/exp_avg"]
)
def test_a_checkpoint_with_names_of_its_own_is_refused_and_changes_nothing(tmp_path: Path, name: str) -> None:
    module, optimiser = layer()
    checkpoint.write(tmp_path / "c", module, optimiser, {}, {})
    found = checkpoint.read(tmp_path / "c")
    found.tensors[name] = torch.zeros(2)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(checkpoint.CheckpointError, match="must fit the optimiser"):
        checkpoint.restore(found, module, optimiser)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_an_optimiser_state_of_another_shape_is_refused_at_once(tmp_path: Path) -> None:
    """Not when the next step meets it."""
    module, optimiser = layer()
    checkpoint.write(tmp_path / "c", module, optimiser, {}, {})
    found = checkpoint.read(tmp_path / "c")
    found.tensors["optimiser/0/exp_avg"] = torch.zeros(3, 3)
    with pytest.raises(checkpoint.CheckpointError, match=r"exp_avg.*\(3, 3\), expected \(20, 20\)"):
        checkpoint.restore(found, module, optimiser)


@pytest.mark.parametrize(
    ("tensor", "word"),
    [
        ({"extra/random/0": torch.zeros(3, dtype=torch.uint8)}, {}),
        ({"extra/random/0": torch.zeros(5056)}, {}),
        ({}, {"step": "many"}),
        ({}, {"history": "[" * 100_000}),
    ],
    ids=["a short random state", "a random state of reals", "no number", "a deep nest"],
)
def test_a_run_whose_checkpoint_was_tampered_with_does_not_go_on(
    run: Path, tensor: dict[str, torch.Tensor], word: dict[str, str]
) -> None:
    path = run / "checkpoint.safetensors"
    found = checkpoint.read(path)
    save_file(found.tensors | tensor, path, found.words | word)
    with pytest.raises(checkpoint.CheckpointError, match="is not the checkpoint of a run"):
        runs.train(dataclasses.replace(SMALL, epochs=2), run, resume=True)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b"[]", b'{"hidden": {"a": 1}}', pickle.dumps(Trap())])
def test_a_configuration_that_is_none_is_refused(run: Path, content: bytes) -> None:
    (run / "config.json").write_bytes(content)
    with pytest.raises(runs.RunError, match=r"config\.json is not the configuration of a run"):
        runs.load(run)


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 784)}", b"\0" * 64),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -8)}", b"\0" * 64),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps(Trap())),
        npy("{'descr': __import__('os').abort(), 'fortran_order': False, 'shape': (1,)}"),
        npy("{'descr': '<f4', 'fortran_order': False}"),
        pickle.dumps(Trap()),
    ],
    ids=["false size", "negative sizes", "objects", "code in the header", "no shape", "a pickle"],
)
def test_a_table_whose_header_lies_is_refused_and_nothing_is_run(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"path must .*x\.npy"):
        memory_mapped(tmp_path / "x.npy")


def test_an_archive_of_objects_is_refused_and_nothing_is_run_or_unpacked(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.array([Trap()], dtype=object))
    with pytest.raises(ValueError, match=r"x\.npz holds object"):
        memory_mapped(tmp_path / "x.npz")
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive:
        archive.writestr("../escaped.npy", npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"))
    with pytest.raises(ValueError, match=r"y\.npz"):
        memory_mapped(tmp_path / "y.npz")
    assert not (tmp_path.parent / "escaped.npy").exists()


@pytest.mark.parametrize("count", [2**32 - 1, 0, 60_000])
def test_images_whose_header_lies_are_refused_and_kept(tmp_path: Path, count: int) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + b"\0" * 784)
    before = path.read_bytes()
    with pytest.raises(mnist.DataFileError, match="is not the published file: its 800 bytes"):
        mnist.mnist(tmp_path, download=False)
    assert path.read_bytes() == before


# --- Processes that end early -----------------------------------------------------------------------------------------


def child_of(function: Callable[[], object]) -> Any:
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    return process


@pytest.mark.parametrize("when", ["fsync", "replace"])
def test_killed_while_it_writes_a_checkpoint_the_one_before_is_whole(run: Path, when: str) -> None:
    before = contents(run)["checkpoint.safetensors"]

    def work() -> None:
        setattr(os, when, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        loop.write_atomically = lambda *_: None  # only the checkpoint is in danger
        checkpoint.write(run / "checkpoint.safetensors", *layer(), {}, {})

    process = child_of(work)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert (run / "checkpoint.safetensors").read_bytes() == before
    assert runs.train(dataclasses.replace(SMALL, epochs=2), run, resume=True)["epoch"] == 2


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise TimeoutError


def test_interrupted_the_command_keeps_its_last_checkpoint_and_two_runs_do_not_mix(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = dataclasses.replace(SMALL, epochs=100_000, save_seconds=0.0)

    def work() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            runs.train(config, folder)
        except KeyboardInterrupt:
            os._exit(130)

    process = child_of(work)
    try:
        wait_until(lambda: (folder / "checkpoint.safetensors").exists())
        with pytest.raises(runs.RunError, match="in use by another run"):
            runs.train(config, folder, resume=True)
        with pytest.raises(runs.RunError, match="in use by another run"):
            runs.train(SMALL, folder)
    finally:
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
    assert process.exitcode == 130
    words = checkpoint.read(folder / "checkpoint.safetensors").words
    assert int(words["step"]) > 0
    last = runs.train(dataclasses.replace(config, epochs=int(words["epoch"]) + 1), folder, resume=True)
    assert last["epoch"] == int(words["epoch"]) + 1


def test_a_folder_is_free_again_when_its_run_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = child_of(lambda: runs.train(dataclasses.replace(SMALL, epochs=100_000, save_seconds=0.0), folder))
    try:
        wait_until(lambda: (folder / "checkpoint.safetensors").exists())
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
    epoch = int(checkpoint.read(folder / "checkpoint.safetensors").words["epoch"])
    last = runs.train(dataclasses.replace(SMALL, epochs=epoch + 1, save_seconds=0.0), folder, resume=True)
    assert last["epoch"] == epoch + 1
