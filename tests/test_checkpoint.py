"""Checkpoints: what comes back is what was written, bit for bit; what is damaged is refused and nothing is run."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vi_tutorial.checkpoint import CheckpointError, read, restore, write


def trained(steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimiser = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(steps):
        step(module, optimiser)
    return module, optimiser


def step(module: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad()
    module(torch.randn(8, 3)).square().sum().backward()
    optimiser.step()


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name])) for name in a)


@pytest.mark.parametrize("kind", ["Adam", "SGD", "RMSprop"])
def test_training_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    module, _ = trained(0)
    settings = {"momentum": 0.9} if kind == "SGD" else {}
    optimiser = getattr(torch.optim, kind)(module.parameters(), lr=0.01, **settings)
    for _ in range(3):
        step(module, optimiser)
    write(tmp_path / "c", module, optimiser, {"random": torch.get_rng_state()}, {"step": "3"})
    for _ in range(4):
        step(module, optimiser)

    again, _ = trained(0)
    other = getattr(torch.optim, kind)(again.parameters(), lr=0.01, **settings)
    checkpoint = read(tmp_path / "c")
    restore(checkpoint, again, other)
    torch.set_rng_state(checkpoint.tensors["extra/random"])
    for _ in range(4):
        step(again, other)
    assert same(module.state_dict(), again.state_dict())
    assert checkpoint.words == {"step": "3"}


@pytest.mark.parametrize("when", ["write", "sync", "rename"])
def test_a_disk_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    module, optimiser = trained()
    write(tmp_path / "c", module, optimiser, {}, {"step": "3"})
    before = (tmp_path / "c").read_bytes()

    def full(*arguments: object, **settings: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    class FullFile:
        def __init__(self, handle: int, mode: str) -> None:
            os.close(handle)

        def __enter__(self) -> FullFile:
            return self

        def __exit__(self, *arguments: object) -> None:
            pass

        write = full

    target = {"write": ("os.fdopen", FullFile), "sync": ("os.fsync", full), "rename": ("os.replace", full)}[when]
    monkeypatch.setattr(*target)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "c", module, optimiser, {}, {"step": "4"})
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert (tmp_path / "c").read_bytes() == before


class Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (pytest.fail, ("the file was run",))


@pytest.mark.parametrize("damage", ["cut off", "a byte of the header", "a pickle", "torch.save", "empty", "false size"])
def test_what_is_no_whole_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "c.safetensors"
    write(path, *trained(), {}, {})
    content = path.read_bytes()
    if damage == "torch.save":
        torch.save({"weights": Trap()}, path)
    else:
        path.write_bytes(
            {
                "cut off": content[:-5],
                "a byte of the header": content[:9] + b"\xff" + content[10:],
                "a pickle": pickle.dumps(Trap()),
                "empty": b"",
                "false size": (2**40).to_bytes(8, "little") + content[8:],
            }[damage]
        )
    with pytest.raises(CheckpointError, match=r"c.safetensors is not a whole checkpoint .*: put a copy in its place"):
        read(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is not there: expected a checkpoint"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Sequential(nn.Linear(3, 5)), r"for 0.bias it has \(4,\) torch.float32, expected \(5,\) torch.float32"),
        (nn.Sequential(nn.Linear(3, 4)), r"for 1.bias it has .* expected nothing"),
        (nn.Sequential(nn.Linear(3, 4)).double(), "torch.float32, expected .*torch.float64"),
    ],
)
def test_another_model_is_refused_and_left_as_it_was(tmp_path: Path, other: nn.Module, message: str) -> None:
    write(tmp_path / "c", *trained(), {}, {})
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        restore(read(tmp_path / "c"), other)
    assert same(before, other.state_dict())


def test_another_optimiser_is_refused(tmp_path: Path) -> None:
    module, optimiser = trained()
    write(tmp_path / "c", module, optimiser, {}, {})
    few: list[Tensor] = list(module.parameters())[:2]
    with pytest.raises(CheckpointError, match="received 6 parameters, expected 2"):
        restore(read(tmp_path / "c"), module, torch.optim.Adam(few))
