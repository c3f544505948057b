"""A checkpoint: one file of tensors and words, written whole or not at all, read without running any code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from vi_tutorial._atomic import write_atomically

__all__ = ["Checkpoint", "CheckpointError", "read", "restore", "write"]


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged, or of another model.

    Example:
        >>> str(CheckpointError("run/checkpoint.safetensors is cut off"))
        'run/checkpoint.safetensors is cut off'
    """


class Checkpoint(NamedTuple):
    """What a file held.

    Attributes:
        tensors: By name.
        words: By name.

    Example:
        >>> Checkpoint({}, {"step": "7"}).words["step"]
        '7'
    """

    tensors: dict[str, Tensor]
    words: dict[str, str]


def write(
    path: Path | str,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    extra: Mapping[str, Tensor],
    words: Mapping[str, str],
) -> None:
    """Save weights, the optimiser's state and what else a run needs to go on, exactly.

    The file appears under its name only when all of it is on the disk: a full disk, or a power cut, leaves the one
    before.

    Args:
        path: Where.
        module: Its parameters and buffers.
        optimiser: Over parameters of ``module``.
        extra: Other tensors, by name.
        words: Other words, by name.

    Raises:
        OSError: If the file cannot be written; the one before is still whole.

    Example:
        >>> import tempfile
        >>> layer = nn.Linear(1, 1)
        >>> optimiser = torch.optim.Adam(layer.parameters())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(f"{folder}/a.safetensors", layer, optimiser, {}, {"step": "7"})
        ...     restore(read(f"{folder}/a.safetensors"), layer, optimiser)
        ...     read(f"{folder}/a.safetensors").words["step"]
        '7'
    """
    tensors = {f"weights/{name}": value for name, value in module.state_dict().items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{number}/{name}": torch.as_tensor(value) for name, value in state.items()}
    tensors |= {f"extra/{name}": value for name, value in extra.items()}
    content = save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, dict(words))
    write_atomically(Path(path), content)


def read(path: Path | str) -> Checkpoint:
    """Read a checkpoint; whatever the file is, none of it is run.

    Args:
        path: What :func:`write` wrote.

    Returns:
        :class:`Checkpoint`.

    Raises:
        CheckpointError: If there is no such file, or it is no whole checkpoint.
        OSError: If the file may not be read.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not there: expected a checkpoint written by train")
    with path.open("rb"):  # the system's own words, if it may not be read
        pass
    try:
        with safe_open(path, framework="pt") as file:
            return Checkpoint({name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {}))  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint ({error}): put a copy in its place") from error


def restore(checkpoint: Checkpoint, module: nn.Module, optimiser: torch.optim.Optimizer | None = None) -> None:
    """Put the weights, and the optimiser's state, back in place.

    Args:
        checkpoint: From :func:`read`.
        module: With the parameters that it had when the checkpoint was written.
        optimiser: Likewise; left alone if not given.

    Raises:
        CheckpointError: If a tensor is missing, unknown, or of another shape or type; then nothing has been changed.
    """
    held = {n.removeprefix("weights/"): t for n, t in checkpoint.tensors.items() if n.startswith("weights/")}
    wanted = module.state_dict()
    for name in sorted(held.keys() | wanted.keys()):
        found, expected = (
            f"{tuple(t[name].shape)} {t[name].dtype}" if name in t else "nothing" for t in (held, wanted)
        )
        if found != expected:
            raise CheckpointError(f"the checkpoint must fit the model: for {name} it has {found}, expected {expected}")
    if optimiser is not None:
        states = _states(checkpoint, [p for group in optimiser.param_groups for p in group["params"]])
        optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
    module.load_state_dict(held)


def _states(checkpoint: Checkpoint, parameters: list[Tensor]) -> dict[int, dict[str, Tensor]]:
    """The optimiser's state for each parameter: single numbers, and tensors of the parameter's shape."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in checkpoint.tensors.items():
        if not name.startswith("optimiser/"):
            continue
        _, number, *keys = name.split("/")
        if not number.isdecimal() or len(keys) != 1:
            raise CheckpointError(f"the checkpoint must fit the optimiser: received a state of the name {name}")
        states.setdefault(int(number), {})[keys[0]] = value
    if not states.keys() <= set(range(len(parameters))):
        raise CheckpointError(
            f"the checkpoint must fit the optimiser: received {max(states) + 1} parameters, expected {len(parameters)}"
        )
    for index, state in states.items():
        for key, value in state.items():
            if value.numel() != 1 and value.shape != parameters[index].shape:
                raise CheckpointError(
                    f"the checkpoint must fit the optimiser: for {key} of parameter {index} it has "
                    f"{tuple(value.shape)}, expected {tuple(parameters[index].shape)}"
                )
    return states
