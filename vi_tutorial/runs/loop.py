"""The loop of a long run: in one process or many, stopped and resumed as if nothing had happened."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.distributions import Distribution
from torch.func import functional_call, grad_and_value
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from vi_tutorial import checkpoint
from vi_tutorial._atomic import write_atomically
from vi_tutorial._validation import NotFiniteError
from vi_tutorial.evaluation import rate_distortion
from vi_tutorial.runs.config import Config, RunError, claim
from vi_tutorial.runs.pair import Rows, build, default_dtype, prepare, rows
from vi_tutorial.runs.processes import Place, asked_to_stop, placed

__all__ = ["COLUMNS", "Trainer", "train"]

COLUMNS = ("epoch", "step", "seconds", "bound", "held_out_bound", "rate", "distortion", "rows_per_second")
STAGES = 8
HELD_OUT = 1000


def train(config: Config, folder: Path | str, resume: bool = False) -> dict[str, float]:
    """Train, and keep everything in a folder.

    Args:
        config: What is asked for.
        folder: Where; made if not there.
        resume: Go on from the folder's checkpoint as if nothing had happened: the parameters are those of an
            uninterrupted run, bit for bit on one machine. ``epochs``, ``minutes`` and ``save_seconds`` may be new;
            with another number of processes the noise is new too.

    Returns:
        The last row of the history: the mean bound over the epoch, and on the first 1,000 held-out rows the bound, the
        rate and the distortion, in nats.

    Raises:
        TypeError: If ``config`` is no :class:`Config`.
        RunError: If the folder holds a run and ``resume`` is not set, another process is at work in it, the
            configuration is another, training meets a NaN, or one of the processes has died; the message says what to
            do.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, when the checkpoint is written.

    Example:
        >>> import tempfile
        >>> config = Config(hidden=(8,), latents=2, epochs=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     last = train(config, folder)
        ...     sorted(path.name for path in Path(folder).glob("[a-z]*"))
        ['checkpoint.safetensors', 'config.json', 'history.csv']
        >>> last["epoch"], last["step"]
        (2, 30)
    """
    if not isinstance(config, Config):
        raise TypeError(f"config must be a Config; received {type(config).__name__}")
    folder = Path(folder)
    with ExitStack() as stack:
        place = stack.enter_context(placed(config.device))
        if place.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(FileLock(folder / ".lock", blocking=False))
            except Timeout:
                raise RunError(f"{folder} is in use by another run: wait, or choose another folder") from None
            claim(config, folder, resume)
        stack.enter_context(default_dtype(config.dtype))
        stopped = stack.enter_context(asked_to_stop())
        with torch.random.fork_rng():
            trainer = Trainer(config, folder, place)
            if resume:
                trainer.load()
            return trainer.run(stopped)


class Trainer:
    """The state of a run: networks, optimiser, data, and how far it has come.

    Args:
        config: What is asked for.
        folder: Where the run is kept.
        place: Of this process among all.

    Example:
        >>> trainer = Trainer(Config(hidden=(8,), latents=2), Path("unused"), Place(0, 1, torch.device("cpu")))
        >>> len(list(trainer.minibatches(epoch=0)))
        15
    """

    def __init__(self, config: Config, folder: Path, place: Place) -> None:
        self.config, self.folder, self.place = config, folder, place
        self.rows = rows(config)
        if config.data in ("digits", "mnist"):  # they fit; a file may not
            train, test, high = self.rows
            self.rows = Rows(train.to(place.device), test.to(place.device), high)
        self.pair = build(config, self.rows).to(place.device)
        self.optimiser = torch.optim.Adam(
            self.pair.parameters(), config.learning_rate, eps=1e-4 if config.schedule == "stages" else 1e-8, fused=True
        )
        self.forward: Callable[[Tensor], Tensor] = self.pair
        if place.world > 1:
            ids = [place.device] if place.device.type == "cuda" else None
            self.forward = DistributedDataParallel(self.pair, device_ids=ids)
        self.epoch = self.done = self.step = 0  # done: minibatches of this epoch
        self.seconds = 0.0
        self.total = torch.zeros((), device=place.device)  # of the bound, over the rows of this epoch
        self.history: list[dict[str, float]] = []
        torch.manual_seed(1_000_003 * config.seed + place.rank)  # the weights came from the seed alone

    def minibatches(self, epoch: int) -> Iterator[Tensor]:
        """Row numbers, in an order that the seed and the epoch alone decide, the same in every process."""
        generator = torch.Generator().manual_seed((1_000_003 * self.config.seed + epoch) ^ (1 << 40))  # not the noise's
        num_rows, size = len(self.rows.train), self.config.batch_size
        order = torch.randperm(num_rows, generator=generator, dtype=torch.int32)
        for number in range(self.num_minibatches()):
            last = number == self.num_minibatches() - 1
            yield order[number * size : None if last else (number + 1) * size].long()

    def num_minibatches(self) -> int:
        """In an epoch; a rest that leaves a process without a row goes with the one before."""
        whole, rest = divmod(len(self.rows.train), self.config.batch_size)
        return max(1, whole + (rest >= self.place.world and rest > 0))

    def learning_rate(self, step: int) -> float:
        """Of this step."""
        if self.config.schedule == "constant":
            return self.config.learning_rate
        epoch = step // self.num_minibatches()
        stage = next((i for i in range(STAGES) if epoch < (3 ** (i + 1) - 1) // 2), STAGES - 1)
        return self.config.learning_rate * 10 ** (-stage / (STAGES - 1))

    def run(self, stopped: Callable[[], bool]) -> dict[str, float]:
        """From here to the end of the last epoch, unless ``stopped()`` or out of time."""
        if self.config.batch_size < self.place.world:
            raise RunError(f"batch_size must be at least {self.place.world}, one row for each process")
        with self._quick() as climb, self._bar() as bar:
            started = time.perf_counter() - self.seconds
            saved = time.perf_counter()
            while self.epoch < self.config.epochs:
                before, first = time.perf_counter(), self.done
                for number, batch in enumerate(self.minibatches(self.epoch)):
                    if number < self.done:  # before the checkpoint
                        continue
                    out_of_time = self.config.minutes is not None and self.seconds > 60 * self.config.minutes
                    wishes = [stopped() or out_of_time, time.perf_counter() - saved > self.config.save_seconds]
                    stop, save = self._take_step(climb, batch, wishes)
                    self.seconds = time.perf_counter() - started
                    bar.update()
                    if stop or save:
                        self.save()
                        saved = time.perf_counter()
                    if stop:
                        if not out_of_time:
                            raise KeyboardInterrupt
                        return self.last()
                speed = self.config.batch_size * (self.done - first) / (time.perf_counter() - before)
                self._record(speed, bar)
            self.save()
        return self.last()

    def climb(self, x: Tensor, weight: float = 1.0, forward: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Leave the gradient of the weighted loss, the negative mean bound, in the parameters; return the loss."""
        loss = -(forward or self.forward)(x).mean()
        (loss if weight == 1 else loss * weight).backward()
        return loss.detach()

    def _take_step(self, climb: Callable[[Tensor, float], Tensor], batch: Tensor, wishes: list[bool]) -> list[bool]:
        """One step on this process's share of a minibatch; what any process wishes, all then do."""
        share = batch.tensor_split(self.place.world)[self.place.rank]
        raw = self.rows.train[share.to(self.rows.train.device)].to(self.place.device)
        x = prepare(self.config, self.rows.high, raw)
        whole = len(batch) == self.config.batch_size
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.optimiser.zero_grad(set_to_none=True)
        try:
            # The processes' gradients are averaged: weighted so that all rows of the minibatch count alike.
            weight = len(x) * self.place.world / len(batch)
            loss = (climb if whole else self.climb)(x, weight)
            self.optimiser.step()
            bound = -loss * len(x)
            if self.place.world == 1:
                self.total += bound
            else:
                told = self.place.summed(torch.stack([bound, *(bound.new_tensor(float(wish)) for wish in wishes)]))
                self.total += told[0]
                wishes = [bool(number > 0) for number in told[1:]]
        except NotFiniteError as error:
            raise self._diverged(str(error)) from error
        except RuntimeError as error:
            if self.place.world == 1 or isinstance(error, torch.OutOfMemoryError):
                raise
            raise RunError(
                f"a process of this run has stopped ({str(error).splitlines()[0]}): go on from the last checkpoint "
                "with --resume"
            ) from error
        self.done, self.step = self.done + 1, self.step + 1
        return wishes

    @contextmanager
    def _quick(self) -> Iterator[Callable[[Tensor, float], Tensor]]:
        """:meth:`climb` for whole minibatches: compiled, where asked for and where it can be.

        Looking at values would cut what is compiled into pieces, so the first minibatch is checked as everywhere, and
        the later ones by their total.
        """
        if not self.config.compile:
            yield self.climb
            return
        validated = Distribution._validate_args
        climb: Callable[[Tensor, float], Tensor] = self.climb
        reason = ""
        with torch.random.fork_rng():
            raw = self.rows.train[: self.config.batch_size].to(self.place.device)
            x = prepare(self.config, self.rows.high, raw).tensor_split(self.place.world)[self.place.rank]
            self.pair(x)
            Distribution.set_default_validate_args(False)
            for make in (self._in_one_graph, self._in_two_graphs):
                try:
                    compiled = make()
                    compiled(x, 1.0)
                    climb, reason = compiled, ""
                    break
                except Exception as error:  # whatever a compiler may say
                    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if reason:
                Distribution.set_default_validate_args(validated)
                warnings.warn(f"training goes on without torch.compile: {reason}", RuntimeWarning, stacklevel=4)
        try:
            yield climb
        finally:
            Distribution.set_default_validate_args(validated)

    def _in_one_graph(self) -> Callable[[Tensor, float], Tensor]:
        """Bound and gradient compiled together; for one process, since nobody else is told of the gradient."""
        if self.place.world > 1:
            raise RuntimeError("one graph is for one process")
        parameters: dict[str, Tensor] = dict(self.pair.named_parameters())

        def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            return -functional_call(self.pair, parameters, (x,)).mean()

        compiled = torch.compile(grad_and_value(loss), dynamic=False)

        def climb(x: Tensor, _weight: float) -> Tensor:
            with torch.no_grad():
                gradients, value = compiled(parameters, x)
            for name, parameter in parameters.items():
                parameter.grad = gradients[name]
            return value  # the weight of the only share is one

        return climb

    def _in_two_graphs(self) -> Callable[[Tensor, float], Tensor]:
        """The bound compiled, and its gradient after it."""
        return partial(self.climb, forward=torch.compile(self.forward, dynamic=False))

    def _bar(self) -> tqdm:
        hidden = self.place.rank != 0 or os.environ.get("VI_TUTORIAL_PROGRESS") == "off"
        total = self.config.epochs * self.num_minibatches()
        return tqdm(total=total, initial=min(self.step, total), disable=hidden, unit="step", mininterval=0.5)

    @torch.no_grad()
    def _record(self, speed: float, bar: tqdm) -> None:
        """A row of history; a bound that is not finite ends the run."""
        bound = self.total.item() / len(self.rows.train)
        if not math.isfinite(bound):
            raise self._diverged(f"the mean bound is {bound}")
        with torch.random.fork_rng():  # what is looked at must not change what is learned
            torch.manual_seed(self.config.seed)
            x = prepare(self.config, self.rows.high, self.rows.test[:HELD_OUT].to(self.place.device))
            held_out = self.pair(x).mean().item()
            parts = rate_distortion(self.pair.model, x, self.pair.q(x), 1)
        rate, distortion = (values.mean().item() for values in parts)
        numbers = (self.epoch + 1, self.step, self.seconds, bound, held_out, rate, distortion, speed)
        self.history.append(dict(zip(COLUMNS, numbers, strict=True)))
        bar.set_postfix(bound=f"{bound:.2f}", held_out=f"{held_out:.2f}", rate=f"{rate:.1f}", refresh=False)
        self.epoch, self.done = self.epoch + 1, 0
        self.total.zero_()

    def _diverged(self, reason: str) -> RunError:
        return RunError(
            f"training met a NaN or an infinity in epoch {self.epoch + 1}: {reason}. Start anew with a smaller "
            f"learning rate; the last checkpoint in {self.folder} is from before it"
        )

    def last(self) -> dict[str, float]:
        """The last row of the history."""
        return dict(self.history[-1]) if self.history else {"epoch": 0, "step": self.step}

    def save(self) -> None:
        """The checkpoint and the history, by the first process; every process sends it its random state."""
        if not all(bool(number.isfinite().all()) for number in (self.total, *self.pair.parameters())):
            raise self._diverged("a parameter is not finite")
        states = self.place.gathered(torch.get_rng_state().to(self.place.device))
        extra = {f"random/{rank}": value for rank, value in enumerate(states)} | {"total": self.total}
        if self.place.device.type == "cuda":
            states = self.place.gathered(torch.cuda.get_rng_state(self.place.device).to(self.place.device))
            extra |= {f"random/cuda/{rank}": value for rank, value in enumerate(states)}
        if self.place.rank:
            return
        table = io.StringIO()
        writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        words = {name: str(getattr(self, name)) for name in ("epoch", "done", "step", "seconds")}
        words |= {"world": str(self.place.world), "history": json.dumps(self.history)}
        checkpoint.write(self.folder / "checkpoint.safetensors", self.pair, self.optimiser, extra, words)
        write_atomically(self.folder / "history.csv", table.getvalue())

    def load(self) -> None:
        """Go back to where the checkpoint was written; to the start, if the run was stopped before the first."""
        file = self.folder / "checkpoint.safetensors"
        if not file.exists():
            return
        found = checkpoint.read(file)
        checkpoint.restore(found, self.pair, self.optimiser)
        try:
            self.epoch, self.done, self.step, world = (int(found.words[n]) for n in ("epoch", "done", "step", "world"))
            self.seconds, self.history = float(found.words["seconds"]), json.loads(found.words["history"])
            self.total = found.tensors["extra/total"].to(self.place.device)
            states = {name: value for name, value in found.tensors.items() if name.startswith("extra/random/")}
            if world == self.place.world:
                torch.set_rng_state(states[f"extra/random/{self.place.rank}"])
                if self.place.device.type == "cuda":
                    torch.cuda.set_rng_state(states[f"extra/random/cuda/{self.place.rank}"], self.place.device)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:  # torch's, of a random state that is none
            raise checkpoint.CheckpointError(f"{file} is not the checkpoint of a run: {error}") from error
        if world != self.place.world and self.place.rank == 0:
            warnings.warn(
                f"the run had {world} process(es) and goes on with {self.place.world}: the noise from here on is new",
                RuntimeWarning,
                stacklevel=3,
            )
