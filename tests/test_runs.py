"""Long runs: resumed bit for bit whatever stopped them, alike in one process and in two, measured as in chapters."""

from __future__ import annotations

import csv
import dataclasses
import functools
import inspect
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import Tensor
from torch.distributions import Distribution, kl_divergence
from typer.testing import CliRunner

from vi_tutorial import checkpoint, cli, quadrature, runs
from vi_tutorial.runs.config import CHOICES
from vi_tutorial.runs.loop import Trainer
from vi_tutorial.runs.pair import BOUNDS, Pair, prepare, rows
from vi_tutorial.runs.processes import Place

SMALL = runs.Config(hidden=(8,), latents=2, epochs=4)
ALONE = Place(0, 1, torch.device("cpu"))


def weights(folder: Path) -> dict[str, Tensor]:
    """Everything that training decides: parameters, optimiser, random state."""
    return checkpoint.read(folder / "checkpoint.safetensors").tensors


def same(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def history(folder: Path, *columns: str) -> list[tuple[str, ...]]:
    with (folder / "history.csv").open(encoding="utf-8", newline="") as file:
        return [tuple(row[name] for name in columns) for row in csv.DictReader(file)]


def killed_at(step: int, config: runs.Config, folder: Path, resume: bool) -> None:
    """In a process of its own: it ends, without any warning, in the middle of a step."""
    take = Trainer._take_step

    def _take(self: Trainer, *args: Any) -> Any:
        if self.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return take(self, *args)

    Trainer._take_step = _take  # type: ignore[method-assign]
    runs.train(config, folder, resume)


def test_killed_ten_times_at_random_steps_and_resumed_it_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, epochs=8, save_seconds=0.0)
    runs.train(config, tmp_path / "whole")
    generator = torch.Generator().manual_seed(0)
    steps = torch.randperm(8 * 15, generator=generator)[:10].sort().values.tolist()
    context = multiprocessing.get_context("fork")
    for number, step in enumerate(steps):
        process = context.Process(target=killed_at, args=(step, config, tmp_path / "killed", number > 0))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    runs.train(config, tmp_path / "killed", resume=True)
    assert same(tmp_path / "whole", tmp_path / "killed")
    columns = ("epoch", "step", "bound", "held_out_bound", "rate", "distortion")
    assert history(tmp_path / "whole", *columns) == history(tmp_path / "killed", *columns)


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=killed_at, args=(3, SMALL, tmp_path / "a", False))
    process.start()
    process.join(60)
    assert not (tmp_path / "a" / "checkpoint.safetensors").exists()
    runs.train(SMALL, tmp_path / "a", resume=True)
    runs.train(SMALL, tmp_path / "b")
    assert same(tmp_path / "a", tmp_path / "b")


def test_more_epochs_later_are_more_epochs_at_once(tmp_path: Path) -> None:
    runs.train(SMALL, tmp_path / "a")
    runs.train(dataclasses.replace(SMALL, epochs=6), tmp_path / "a", resume=True)
    runs.train(dataclasses.replace(SMALL, epochs=6), tmp_path / "b")
    assert same(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_saves_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    take = Trainer._take_step

    def _take(self: Trainer, *args: Any) -> Any:
        if self.step == 20:
            signal.raise_signal(number)
        return take(self, *args)

    monkeypatch.setattr(Trainer, "_take_step", _take)
    with pytest.raises(KeyboardInterrupt):
        runs.train(SMALL, tmp_path / "a")
    assert checkpoint.read(tmp_path / "a" / "checkpoint.safetensors").words["step"] in ("21", "22")
    monkeypatch.undo()
    runs.train(SMALL, tmp_path / "a", resume=True)
    runs.train(SMALL, tmp_path / "b")
    assert same(tmp_path / "a", tmp_path / "b")


def test_out_of_time_it_stops_and_can_go_on(tmp_path: Path) -> None:
    last = runs.train(dataclasses.replace(SMALL, minutes=1e-9), tmp_path)
    assert last["step"] < 15
    assert runs.train(dataclasses.replace(SMALL, minutes=None), tmp_path, resume=True)["epoch"] == 4


def test_training_leaves_the_global_state_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    runs.train(dataclasses.replace(SMALL, precision="float64", epochs=1), tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_default_dtype() == torch.float32


# --- Many processes ---------------------------------------------------------------------------------------------------


def noiseless(model: Any, q: Any, x: Tensor, num_samples: int) -> Tensor:
    """The analytic ELBO with z at q's mean: a function of the parameters alone, whichever process computes it."""
    log_likelihood = model.log_likelihood(x)(q(x).mean[None])[0]
    return log_likelihood - kl_divergence(q(x), model.prior().expand(q(x).batch_shape))


def one_step(rank: int, world: int, folder: Path) -> None:
    from vi_tutorial.runs.processes import placed

    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {name: str(value) for name, value in environment.items()} | {"MASTER_PORT": "29531"}
    torch.set_num_threads(1)
    config = dataclasses.replace(SMALL, batch_size=101)  # an odd number: shares of 51 and 50
    with placed("cpu") as place:
        trainer = Trainer(config, folder, place)
        trainer.pair.bound = noiseless
        trainer._take_step(trainer.climb, next(trainer.minibatches(0)), [False, rank == world - 1])
        gradients = {name: p.grad for name, p in trainer.pair.named_parameters()}
        torch.save({"gradients": gradients, "total": trainer.total}, folder / f"{world}-{rank}.pt")
        del trainer
    threads = Path("/proc/self/task")
    if threads.exists():  # a thread that outlives the group may abort the process as it ends
        names = [(thread / "comm").read_text() for thread in threads.iterdir()]
        assert not [name for name in names if "gloo" in name]


def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=one_step, args=(*who, tmp_path)) for who in ((0, 1), (0, 2), (1, 2))]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for name, gradient in alone["gradients"].items():
        assert torch.allclose(gradient, first["gradients"][name], rtol=0, atol=1e-6)
        assert torch.equal(first["gradients"][name], second["gradients"][name])
    assert torch.allclose(alone["total"], first["total"])


@pytest.mark.parametrize(("batch_size", "world"), [(100, 1), (100, 2), (7, 4), (1497, 2), (2000, 3)])
def test_shards_are_disjoint_and_together_everything(batch_size: int, world: int) -> None:
    config = dataclasses.replace(SMALL, batch_size=batch_size)
    trainer = Trainer(config, Path("unused"), Place(0, 1, torch.device("cpu")))
    trainer.place = Place(0, world, torch.device("cpu"))
    batches = list(trainer.minibatches(3))
    assert len(batches) == trainer.num_minibatches()
    shares = [batch.tensor_split(world)[rank] for batch in batches for rank in range(world)]
    assert all(len(share) for share in shares)
    assert torch.cat(shares).sort().values.tolist() == list(range(len(trainer.rows.train)))
    assert not torch.equal(torch.cat(batches), torch.cat(list(trainer.minibatches(4))))


def torchrun(folder: Path, *options: str) -> list[str]:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--module", "vi_tutorial"]
    small = ["--hidden", "8", "--latents", "2", "--save-seconds", "0.1"]
    return [sys.executable, "-m", *launcher, "train", str(folder), *small, *options]


def test_a_worker_that_dies_ends_the_run_with_a_clear_error_and_the_run_resumes(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VI_TUTORIAL_PROGRESS": "off"}
    call = functools.partial(subprocess.run, env=environment, capture_output=True, text=True, timeout=120)
    assert call(torchrun(tmp_path / "whole", "--epochs", "60")).returncode == 0
    with subprocess.Popen(
        torchrun(tmp_path / "killed", "--epochs", "60"), env=environment, stderr=subprocess.PIPE, text=True
    ) as launched:
        while not (tmp_path / "killed" / "checkpoint.safetensors").exists():
            assert launched.poll() is None
            time.sleep(0.05)
        children = Path(f"/proc/{launched.pid}/task/{launched.pid}/children")
        if not children.exists():
            launched.kill()
            pytest.skip("needs Linux's list of a process's children")
        os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
        said = launched.communicate(timeout=120)[1]
    assert launched.returncode != 0
    assert "--resume" in said
    resumed = call(torchrun(tmp_path / "killed", "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    assert same(tmp_path / "whole", tmp_path / "killed")


# --- What can be asked for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", CHOICES["likelihood"])
@pytest.mark.parametrize("posterior", CHOICES["posterior"])
@pytest.mark.parametrize("network", CHOICES["network"])
def test_everything_that_can_be_asked_for_learns(likelihood: str, posterior: str, network: str) -> None:
    config = runs.Config(
        likelihood=likelihood, posterior=posterior, network=network, hidden=(8,), latents=3, learning_rate=1e-2
    )
    trainer = Trainer(config, Path("unused"), ALONE)
    x = prepare(config, 16, trainer.rows.test)
    torch.manual_seed(0)
    before = trainer.pair(x).mean()
    for epoch in range(4):
        for batch in trainer.minibatches(epoch):
            trainer._take_step(trainer.climb, batch, [False, False])
    torch.manual_seed(0)
    assert trainer.pair(x).mean() > before + 0.5


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("posterior", CHOICES["posterior"])
def test_every_bound_learns(bound: str, posterior: str) -> None:
    config = runs.Config(bound=bound, posterior=posterior, num_samples=3, hidden=(8,), latents=3, learning_rate=1e-2)
    trainer = Trainer(config, Path("unused"), ALONE)
    if bound == "analytic" and posterior in ("mixture", "flow"):
        with pytest.raises(NotImplementedError):
            trainer.pair(prepare(config, 16, trainer.rows.test))
        return
    totals = [trainer._take_step(trainer.climb, batch, [False, False]) for batch in trainer.minibatches(0)]
    assert len(totals) == 15
    assert trainer.total.isfinite()


def test_bfloat16_is_only_in_the_products() -> None:
    config = dataclasses.replace(SMALL, precision="bfloat16", bound="analytic", hidden=(64,))
    half, single = (
        Trainer(c, Path("unused"), ALONE) for c in (config, dataclasses.replace(config, precision="float32"))
    )
    assert {p.dtype for p in half.pair.parameters()} == {torch.float32}
    x = prepare(config, 16, half.rows.test)
    torch.manual_seed(0)
    coarse = half.pair(x)
    torch.manual_seed(0)
    fine = single.pair(x)
    assert coarse.dtype == torch.float32
    assert 0 < (coarse - fine).abs().max() < 0.01 * fine.abs().max()


def test_the_stages_are_those_of_the_paper() -> None:
    config = dataclasses.replace(SMALL, schedule="stages", epochs=3280, batch_size=1498)  # one step an epoch
    trainer = Trainer(config, Path("unused"), ALONE)
    rates = torch.tensor([trainer.learning_rate(step) for step in range(3280)])
    values, lengths = rates.unique_consecutive(return_counts=True)
    assert lengths.tolist() == [3**i for i in range(8)]
    assert torch.allclose(values, torch.tensor([1e-3 * 10 ** (-i / 7) for i in range(8)]))
    assert trainer.optimiser.defaults["eps"] == 1e-4


def test_a_bernoulli_decoder_starts_at_the_pixels_means() -> None:
    trainer = Trainer(SMALL, Path("unused"), ALONE)
    probs = trainer.pair.model.likelihood.network[-1].bias.sigmoid()
    means = prepare(SMALL, 16, trainer.rows.train).mean(0)
    assert torch.allclose(probs, means.clamp(0.001, 0.999), atol=1e-6)


def test_bytes_of_a_file_are_binarised_anew_or_once(tmp_path: Path) -> None:
    np.save(tmp_path / "greys.npy", np.full((200, 4), 128, dtype=np.uint8))
    dynamic = dataclasses.replace(SMALL, data=str(tmp_path / "greys.npy"))
    static = dataclasses.replace(dynamic, binarisation="static")
    visits = [prepare(dynamic, 255, rows(dynamic).train) for _ in range(2)]
    assert not torch.equal(*visits)
    assert 0.4 < visits[0].mean() < 0.6
    visits = [prepare(static, 255, rows(static).train) for _ in range(2)]
    assert torch.equal(*visits)
    assert torch.equal(visits[0], prepare(static, 255, rows(static).train))
    assert visits[0].unique().tolist() == [0, 1]


def test_a_file_of_reals_is_learned_up_to_its_entropy(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
    np.savez(tmp_path / "reals.npz", x=values)
    config = dataclasses.replace(SMALL, data=str(tmp_path / "reals.npz"), likelihood="normal", epochs=40, batch_size=10)
    config = dataclasses.replace(config, learning_rate=5e-3)
    trainer = Trainer(config, Path("unused"), ALONE)
    assert np.array_equal(trainer.rows.train.numpy(), values[:450])
    last = runs.train(config, tmp_path / "run")
    assert last["bound"] == pytest.approx(-6 * (0.5 * math.log(2 * math.pi) + 0.5), abs=1.0)


# --- Compiled --------------------------------------------------------------------------------------------------------


def test_without_a_compiler_it_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def _fail(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("no C++ compiler was found\nmore words")

    monkeypatch.setattr(torch, "compile", _fail)
    with pytest.warns(RuntimeWarning, match="goes on without torch.compile: no C\\+\\+ compiler was found$"):
        runs.train(dataclasses.replace(SMALL, compile=True), tmp_path / "a")
    assert Distribution._validate_args
    runs.train(SMALL, tmp_path / "b")
    assert same(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("bound", BOUNDS)
def test_compiled_in_one_piece_it_is_the_same_bound_and_gradient(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(dataclasses.replace(SMALL, bound=bound, num_samples=3, compile=True), Path("unused"), ALONE)
    x = prepare(SMALL, 16, trainer.rows.train[: SMALL.batch_size])
    torch.manual_seed(0)
    eager = trainer.climb(x)
    wanted = [parameter.grad.clone() for parameter in trainer.pair.parameters()]
    # Traced, and run without a compiler: then the random numbers are the same.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    with trainer._quick() as quick:
        assert quick != trainer.climb
        torch.manual_seed(0)
        compiled = quick(x, 1.0)
    assert Distribution._validate_args
    assert torch.allclose(eager, compiled, atol=1e-4)
    for parameter, gradient in zip(trainer.pair.parameters(), wanted, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-4)


# --- What it was worth ----------------------------------------------------------------------------------------------


def test_the_report_agrees_with_quadrature(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, precision="float64", epochs=30, learning_rate=1e-2)
    runs.train(config, tmp_path)
    report = runs.evaluate(tmp_path, num_samples=2000, num_rows=100)
    run = runs.load(tmp_path)
    x = prepare(config, 16, run.rows.test[:100])
    exact = quadrature.posterior_on_grid(run.model, x).log_evidence
    assert report["nll"] == pytest.approx(-exact.mean().item(), abs=0.01)
    assert report["nll_stderr"] == pytest.approx(exact.std(correction=0).item() / 10, abs=0.01)
    assert report["elbo"] == pytest.approx(
        quadrature.expected_elbo(run.model.given(x), run.q(x)).mean().item(), abs=0.05
    )
    assert report["elbo"] == pytest.approx(-report["rate"] - report["distortion"])
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in ("curves", "samples", "reconstructions"))
    again = runs.evaluate(tmp_path, num_samples=2000, num_rows=100)
    assert again | {"seconds": 0} == report | {"seconds": 0}


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bound": "elob"}, "bound must be one of elbo, analytic, stl, iwae, dreg; received elob"),
        ({"latents": 0}, "latents must be at least 1; received 0"),
        ({"seed": -1}, "seed must be at least 0; received -1"),
        ({"hidden": ()}, "hidden must hold at least one size"),
        ({"hidden": (8, 0)}, "hidden must be at least 1; received 0"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite positive number; received 0.0"),
        ({"minutes": math.nan}, "minutes must be a finite positive number; received nan"),
        ({"save_seconds": -1}, "save_seconds must be at least 0; received -1"),
    ],
)
def test_a_bad_configuration_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        runs.Config(**values)


def test_one_folder_holds_one_run(tmp_path: Path) -> None:
    with pytest.raises(runs.RunError, match="holds no run to go on with"):
        runs.train(SMALL, tmp_path, resume=True)
    runs.train(SMALL, tmp_path)
    with pytest.raises(runs.RunError, match="holds a run already: go on with --resume"):
        runs.train(SMALL, tmp_path)
    with pytest.raises(runs.RunError, match=r"latents must be that of the run in .*, 2; received 3"):
        runs.train(dataclasses.replace(SMALL, latents=3), tmp_path, resume=True)
    with FileLock(tmp_path / ".lock"), pytest.raises(runs.RunError, match="in use by another run"):
        runs.train(SMALL, tmp_path, resume=True)


def test_a_nan_ends_the_run_and_the_checkpoint_from_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.train(SMALL, tmp_path)
    before = weights(tmp_path)
    bound = Pair.forward
    monkeypatch.setattr(Pair, "forward", lambda self, x: bound(self, x) * math.nan)
    with pytest.raises(runs.RunError, match="training met a NaN or an infinity in epoch 5"):
        runs.train(dataclasses.replace(SMALL, epochs=6), tmp_path, resume=True)
    assert all(torch.equal(before[name], value) for name, value in weights(tmp_path).items())


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda folder: (folder / "checkpoint.safetensors").unlink(), checkpoint.CheckpointError, "is not there"),
        (
            lambda folder: (folder / "checkpoint.safetensors").write_bytes(b"\x80\x04."),
            checkpoint.CheckpointError,
            "is not a whole checkpoint",
        ),
        (lambda folder: (folder / "config.json").unlink(), runs.RunError, "holds no run"),
        (lambda folder: (folder / "config.json").write_text("{"), runs.RunError, "is not the configuration of a run"),
        (lambda folder: (folder / "config.json").write_text('{"a": 1}'), runs.RunError, "is not the configuration"),
        (lambda folder: (folder / "config.json").write_text('{"latents": 3}'), checkpoint.CheckpointError, "must fit"),
    ],
)
def test_a_damaged_run_is_refused(
    tmp_path: Path, damage: Callable[[Path], object], error: type[Exception], message: str
) -> None:
    runs.train(dataclasses.replace(SMALL, epochs=1), tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=message):
        runs.load(tmp_path)


@pytest.mark.parametrize(
    ("array", "values", "message"),
    [
        (np.zeros(5, dtype=np.float32), {}, r"must hold at least two rows, shape \(N, D\); it has \(5,\)"),
        (np.zeros((5, 4), dtype=np.float32), {"likelihood": "binomial"}, "likelihood binomial needs counts"),
        (np.zeros((5, 6), dtype=np.uint8), {"network": "convolutional"}, "needs square images"),
    ],
)
def test_data_that_do_not_fit_are_refused(tmp_path: Path, array: Any, values: dict[str, Any], message: str) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(runs.RunError, match=message):
        runs.train(dataclasses.replace(SMALL, data=str(tmp_path / "x.npy"), **values), tmp_path / "run")


def test_a_full_disk_leaves_the_checkpoint_from_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.train(SMALL, tmp_path)
    before = weights(tmp_path)

    def _full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(OSError, match="No space left"):
        runs.train(dataclasses.replace(SMALL, epochs=5), tmp_path, resume=True)
    assert all(torch.equal(before[name], value) for name, value in weights(tmp_path).items())


# --- The command line ------------------------------------------------------------------------------------------------


def test_every_setting_is_an_option_with_its_default_said() -> None:
    parameters = inspect.signature(cli.train, eval_str=True).parameters
    options = {name: p.annotation.__metadata__[0].show_default for name, p in parameters.items()}
    del options["folder"], options["resume"]
    defaults = {field.name: field.default for field in dataclasses.fields(runs.Config)}
    words = {"hidden": "200,200", "minutes": "no limit", "compile": "no-compile", "save_seconds": "60"}
    assert options == {name: str(value) for name, value in defaults.items()} | words


def test_the_commands(tmp_path: Path) -> None:
    def call(*arguments: str) -> Any:
        return CliRunner().invoke(cli.app, list(arguments))

    folder = str(tmp_path / "run")
    small = ["--hidden", "8", "--latents", "2", "--epochs", "2"]
    trained = call("train", folder, *small)
    assert trained.exit_code == 0, trained.output
    assert "nll" in trained.output
    assert "2 active latents" in trained.output or "1 active latents" in trained.output
    longer = call("train", folder, "--resume", "--epochs", "3")
    assert longer.exit_code == 0, longer.output
    assert [row[0] for row in history(tmp_path / "run", "epoch")] == ["1", "2", "3"]
    report = call("evaluate", folder, "--num-samples", "50", "--num-rows", "10")
    assert report.exit_code == 0
    assert "50 importance samples" in report.output
    for arguments, words in (
        (["train", folder], "holds a run already"),
        (["train", str(tmp_path / "b"), "--bound", "iwea"], "bound must be one of"),
        (["train", str(tmp_path / "b"), "--data", "nowhere.npy"], "nowhere.npy, which is not there"),
        (["train", str(tmp_path / "b"), "--hidden", "8;8"], "hidden"),
        (["evaluate", str(tmp_path)], "holds no run"),
    ):
        refused = call(*arguments)
        assert refused.exit_code == 1
        assert words in refused.output
        assert "Traceback" not in refused.output
    assert not (tmp_path / "b" / "checkpoint.safetensors").exists()
