"""One process, or one of many that ``torchrun`` has started; and how they are asked to stop."""

from __future__ import annotations

import importlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Place", "asked_to_stop", "placed"]


class Place(NamedTuple):
    """Where this process stands among all of them.

    Attributes:
        rank: From 0, the process that writes.
        world: How many there are.
        device: On which this one works.

    Example:
        >>> Place(0, 1, torch.device("cpu")).summed(torch.tensor([3.0]))
        tensor([3.])
    """

    rank: int
    world: int
    device: torch.device

    def summed(self, value: Tensor) -> Tensor:
        """The sum over the processes, the same in each."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def gathered(self, value: Tensor) -> list[Tensor]:
        """What each process has, in order."""
        if self.world == 1:
            return [value]
        values = [torch.empty_like(value) for _ in range(self.world)]
        dist.all_gather(values, value)
        return values


@contextmanager
def placed(device: str) -> Iterator[Place]:
    """Join the others, if there are any, for as long as the block lasts.

    Args:
        device: A name that torch knows, or ``auto``: the GPU if there is one.

    Raises:
        TypeError, ValueError: If ``device`` is no name, or torch does not know it.
        RuntimeError: If the others cannot be reached.

    Example:
        >>> with placed("cpu") as place:
        ...     place.rank, place.world
        (0, 1)
    """
    if device != "auto":
        try:
            torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"device must be auto or a name that torch knows; received {device}") from error
    gpu = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Place(0, 1, torch.device(device if device != "auto" else "cuda" if gpu else "cpu"))
        return
    # DistributedDataParallel imports this module; if the group is there by then, the default arguments in it keep the
    # group, and with it threads that can abort the process as it ends.
    importlib.import_module("torch.distributed.nn")
    own = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        yield Place(int(os.environ["RANK"]), world, own)
        # gloo's threads have done the last sum but may still hold its tensors, and need Python's lock to let go of
        # them; whoever ends the group holds that lock while waiting for them.
        time.sleep(0.3)
    finally:
        dist.destroy_process_group()


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM are noted, to be heeded between two steps, so that what is saved is whole.

    Example:
        >>> with asked_to_stop() as stopped:
        ...     signal.raise_signal(signal.SIGINT)
        ...     stopped()
        True
    """
    asked: list[int] = []
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                before[number] = signal.signal(number, lambda received, _frame: asked.append(received))
            except ValueError:  # not the main thread: whoever owns that decides
                break
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
