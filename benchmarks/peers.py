"""How fast beside the peers? Training steps, evaluation, and posteriors of fixed joints, in one run.

train-step: the VAE 784-400-20-400-784 of pytorch/examples (ReLU, minibatches of 128, Adam at 1e-3) on binarised MNIST.
Ours is the step of ``vi-tutorial train``, ``elbo(draw(model.given(x), q(x), 1).log_weight)``, eager and compiled;
beside it the matrix products alone, a plain hand-written step, Pyro, NumPyro under jit, and pythae. All see the same
rows in the same order, fetched by number in each step; the repetitions are interleaved.

evaluate-5000: log p(x) by 5,000 importance samples for the same images, ours beside pythae's ``get_nll``.

vi-*: seconds from a cold start, as in posteriors.py: ``fit_posterior`` to its end, the peers' full-rank guides until
they are within 0.01 nats of the family's optimum, at the best of three learning rates, or out of time ("reached":
false; then the ratio is an upper bound).

    python -m pip install -c constraints.txt -e '.[bench]'
    python benchmarks/peers.py      # about ten minutes; writes results/peers.json, results/peers.md, results/peers.png
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal
from torch.nn import functional

from vi_tutorial import mnist, runs
from vi_tutorial._atomic import write_atomically
from vi_tutorial.evaluation import importance_sampling
from vi_tutorial.families import standard_normal
from vi_tutorial.models import LatentVariableModel
from vi_tutorial.networks import BernoulliHead, DiagonalNormalHead, mlp
from vi_tutorial.runs.loop import Trainer
from vi_tutorial.runs.pair import Pair
from vi_tutorial.runs.processes import Place

PIXELS, HIDDEN, LATENTS, BATCH, RATE = 784, 400, 20, 128, 1e-3
ROWS, STEPS = 10_240, 60
EVALUATED, SAMPLES = 20, 5000
CLOSE, RATES = 1e-2, (0.003, 0.01, 0.03)
PACKAGES = {"pyro": ["pyro-ppl"], "numpyro": ["numpyro", "jax"], "pythae": ["pythae"]}
RESULTS = Path(__file__).parent / "results"

Step = Callable[[Tensor], object]
"""One training step on the rows with these numbers."""


# --- Training steps ---------------------------------------------------------------------------------------------------


def networks() -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder and decoder."""
    torch.manual_seed(0)
    return (
        mlp(PIXELS, HIDDEN, 2 * LATENTS, activation=nn.ReLU),
        mlp(LATENTS, HIDDEN, PIXELS, activation=nn.ReLU),
    )


def ours(x: Tensor, folder: Path, compiled: bool, stack: ExitStack) -> Step:
    """The step of the package's long runs."""
    np.save(folder / "x.npy", x.numpy())
    config = runs.Config(
        data=str(folder / "x.npy"), hidden=(HIDDEN,), latents=LATENTS, batch_size=BATCH, compile=compiled
    )
    trainer = Trainer(config, folder, Place(0, 1, torch.device("cpu")))
    encoder, decoder = networks()
    model = LatentVariableModel(standard_normal(LATENTS), BernoulliHead(decoder, PIXELS))
    trainer.pair = trainer.forward = Pair(config, model, DiagonalNormalHead(encoder, LATENTS))
    trainer.optimiser = torch.optim.Adam(trainer.pair.parameters(), RATE, fused=True)
    trainer.rows = trainer.rows._replace(train=x)
    climb = stack.enter_context(trainer._quick())
    Distribution.set_default_validate_args(True)
    if compiled and climb == trainer.climb:
        raise RuntimeError("no compiler")

    def step(rows: Tensor) -> None:
        Distribution.set_default_validate_args(not compiled)  # as throughout a run of the one kind or the other
        trainer._take_step(climb, rows, [False, False])
        Distribution.set_default_validate_args(True)

    return step


def products(x: Tensor) -> Step:
    """The matrix products of one step, forward and backward, and nothing else."""
    sizes = [(PIXELS, HIDDEN), (HIDDEN, 2 * LATENTS), (LATENTS, HIDDEN), (HIDDEN, PIXELS)]
    weights = [torch.randn(outputs, inputs) for inputs, outputs in sizes]
    inputs = [torch.randn(BATCH, number) for number, _ in sizes]
    gradients = [torch.randn(BATCH, number) for _, number in sizes]

    def step(rows: Tensor) -> None:
        inputs[0] = x[rows]
        for z, weight, gradient in zip(inputs, weights, gradients, strict=True):
            z @ weight.mT
            gradient.mT @ z
            if z is not inputs[0]:
                gradient @ weight

    return step


def plain(x: Tensor) -> Step:
    """A VAE written by hand in the shape of pytorch/examples' one, with its defaults."""
    encoder, decoder = networks()
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=RATE)

    def step(rows: Tensor) -> float:
        batch = x[rows]
        optimiser.zero_grad()
        mean, log_variance = encoder(batch).chunk(2, -1)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        reconstruction = torch.sigmoid(decoder(z))
        cross_entropy = functional.binary_cross_entropy(reconstruction, batch, reduction="sum")
        loss = cross_entropy - 0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def pyros(x: Tensor) -> Step:
    """Pyro's SVI with Trace_ELBO and its own distributions."""
    import pyro
    from pyro.distributions import Bernoulli, Normal

    pyro.clear_param_store()
    encoder, decoder = networks()

    def model(batch: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(batch)):
            z = pyro.sample("z", Normal(torch.zeros(len(batch), LATENTS), torch.ones(len(batch), LATENTS)).to_event(1))
            pyro.sample("x", Bernoulli(logits=decoder(z)).to_event(1), obs=batch)

    def guide(batch: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(batch)):
            mean, log_scale = encoder(batch).chunk(2, -1)
            pyro.sample("z", Normal(mean, log_scale.exp()).to_event(1))

    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": RATE}), pyro.infer.Trace_ELBO())
    return lambda rows: svi.step(x[rows])


def numpyros(x: Tensor) -> Step:
    """NumPyro's SVI with Trace_ELBO; the whole step, with the fetching of rows, under jit."""
    import jax
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp
    from numpyro.infer import SVI, Trace_ELBO

    table = jnp.asarray(x.numpy())

    def layer(name: str, inputs: int, outputs: int, values: Any) -> Any:
        bound = 1 / inputs**0.5
        weight = numpyro.param(
            f"{name}_weight", lambda key: jax.random.uniform(key, (inputs, outputs), minval=-bound, maxval=bound)
        )
        bias = numpyro.param(f"{name}_bias", jnp.zeros(outputs))
        return values @ weight + bias

    def model(batch: Any) -> None:
        with numpyro.plate("data", len(batch)):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([LATENTS]).to_event(1))
            hidden = jax.nn.relu(layer("decoder_0", LATENTS, HIDDEN, z))
            numpyro.sample(
                "x", dist.Bernoulli(logits=layer("decoder_1", HIDDEN, PIXELS, hidden)).to_event(1), obs=batch
            )

    def guide(batch: Any) -> None:
        hidden = jax.nn.relu(layer("encoder_0", PIXELS, HIDDEN, batch))
        mean, log_scale = jnp.split(layer("encoder_1", HIDDEN, 2 * LATENTS, hidden), 2, axis=-1)
        with numpyro.plate("data", len(batch)):
            numpyro.sample("z", dist.Normal(mean, jnp.exp(log_scale)).to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(RATE), Trace_ELBO())
    state = [svi.init(jax.random.PRNGKey(0), table[:BATCH])]
    update = jax.jit(lambda state, rows: svi.update(state, table[rows]))

    def step(rows: Tensor) -> None:
        state[0], loss = update(state[0], rows.numpy())
        loss.block_until_ready()

    return step


def pythae_model() -> Any:
    """pythae's VAE with networks of the same shape."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    first, second = networks()

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = first

        def forward(self, x: Tensor) -> Any:
            mean, log_variance = self.network(x.reshape(len(x), -1)).chunk(2, -1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = second

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=torch.sigmoid(self.network(z)))

    config = VAEConfig(input_dim=(PIXELS,), latent_dim=LATENTS, reconstruction_loss="bce")
    return VAE(config, encoder=Encoder(), decoder=Decoder())


def pythaes(x: Tensor) -> Step:
    """The step of pythae's trainer, without its bookkeeping."""
    from pythae.data.datasets import DatasetOutput

    model = pythae_model()
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)

    def step(rows: Tensor) -> float:
        optimiser.zero_grad()
        loss = model(DatasetOutput(data=x[rows])).loss
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def train_steps(repetitions: int) -> list[dict[str, Any]]:
    """Seconds a step, medians over interleaved repetitions."""
    greys = mnist.mnist().train[:ROWS]
    x = mnist.binarise(greys, torch.Generator().manual_seed(0))
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1)).split(BATCH)
    makers: dict[str, Callable[[], Step]] = {
        "matmul": lambda: products(x),
        "pytorch-examples": lambda: plain(x),
        "pyro": lambda: pyros(x),
        "numpyro": lambda: numpyros(x),
        "pythae": lambda: pythaes(x),
    }
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        makers |= {
            "ours eager": lambda: ours(x, Path(folder), False, stack),
            "ours compiled": lambda: ours(x, Path(folder), True, stack),
        }
        steps = present(makers)
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for repetition in range(repetitions + 1):
            for name, step in steps.items():
                started = time.perf_counter()
                for rows in order[:STEPS]:
                    step(rows)
                if repetition:  # the first warms up
                    seconds[name].append((time.perf_counter() - started) / STEPS)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        row("train-step", mode, peer, median[f"ours {mode}"], median[peer], repetitions)
        for mode in ("eager", "compiled")
        for peer in median
        if f"ours {mode}" in median and not peer.startswith("ours")
    ]


# --- Evaluation -------------------------------------------------------------------------------------------------------


def evaluations(repetitions: int) -> list[dict[str, Any]]:
    """Seconds for log p(x) of some images by importance sampling."""
    x = mnist.binarise(mnist.mnist().test[:EVALUATED], torch.Generator().manual_seed(0))
    encoder, decoder = networks()
    model = LatentVariableModel(standard_normal(LATENTS), BernoulliHead(decoder, PIXELS))
    q = DiagonalNormalHead(encoder, LATENTS)

    def mine() -> None:
        importance_sampling(model.given(x), q(x), SAMPLES, chunk_size=100)

    def theirs() -> Callable[[], None]:
        peer = pythae_model().eval()

        def measure() -> None:
            with torch.no_grad():
                peer.get_nll(x, n_samples=SAMPLES, batch_size=100)

        return measure

    contenders = present({"ours": lambda: mine, "pythae": theirs})
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repetition in range(repetitions + 1):
        for name, call in contenders.items():
            started = time.perf_counter()
            call()
            if repetition:
                seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        row(f"evaluate-{SAMPLES}", "eager", peer, median["ours"], median[peer], repetitions)
        for peer in median
        if peer != "ours"
    ]


# --- Posteriors of fixed joints --------------------------------------------------------------------------------------


def posteriors(repetitions: int, budget: float) -> list[dict[str, Any]]:
    """Seconds from a cold start to the family's optimum."""
    problems = importlib.import_module("posteriors")
    torch.set_default_dtype(torch.float64)
    rows = []
    for make in (problems.diabetes, problems.eight_schools, problems.breast_cancer):
        problem = make()
        fits = present(
            {
                "pyro": lambda problem=problem: partial(problems.pyros, problem, budget=budget),
                "numpyro": lambda problem=problem: partial(numpyro_fit, problem, budget=budget),
            }
        )
        best = {}
        for name, fit in fits.items():
            tried = [fit(rate) for rate in RATES]
            best[name] = min(tried, key=lambda run: run["seconds"] if run["reached"] else budget + run["gap"])
        mine: list[float] = []
        theirs: dict[str, list[dict[str, Any]]] = {name: [] for name in fits}
        for _ in range(repetitions):
            mine.append(problems.ours(problem, 1)["seconds"])
            for name, fit in fits.items():
                theirs[name].append(fit(best[name]["learning_rate"]))
        for name, tried in theirs.items():
            seconds = statistics.median(run["seconds"] for run in tried)
            work = f"vi-{problem.name.replace(' ', '-')}"
            extra = {"reached": all(run["reached"] for run in tried), "peer_gap": max(run["gap"] for run in tried)}
            rows.append(row(work, "eager", name, statistics.median(mine), seconds, repetitions) | extra)
    torch.set_default_dtype(torch.float32)
    return rows


def numpyro_fit(problem: Any, rate: float, budget: float) -> dict[str, Any]:
    """NumPyro's AutoMultivariateNormal, in scanned chunks of steps under jit; the time to compile is not counted."""
    import jax
    import numpyro
    from jax import numpy as jnp
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoMultivariateNormal

    numpyro.enable_x64()
    model = numpyro_models()[problem.name]
    guide = AutoMultivariateNormal(model, init_loc_fn=numpyro.infer.init_to_median)
    svi = SVI(model, guide, numpyro.optim.Adam(rate), Trace_ELBO())
    state = svi.init(jax.random.PRNGKey(0))
    chunk = jax.jit(lambda state: jax.lax.scan(lambda s, _: (svi.update(s)[0], None), state, None, length=500)[0])
    jax.block_until_ready(chunk(state))  # compiled; its result is not kept
    spent, gap, steps = 0.0, float("inf"), 0
    while spent < budget and gap > CLOSE:
        started = time.perf_counter()
        state = jax.block_until_ready(chunk(state))
        spent += time.perf_counter() - started
        steps += 500
        values = {name: torch.from_numpy(np.array(jnp.asarray(v))) for name, v in svi.get_params(state).items()}
        gap = problem.gap(MultivariateNormal(values["auto_loc"], scale_tril=values["auto_scale_tril"]))
    return {"learning_rate": rate, "seconds": spent, "steps": steps, "gap": gap, "reached": gap <= CLOSE}


def numpyro_models() -> dict[str, Callable[[], None]]:
    """The three joints of posteriors.py; the latents' names sort in the order in which ours stand."""
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp

    from vi_tutorial import data

    diabetes, schools, cancer = data.diabetes(), data.eight_schools(), data.breast_cancer()

    def standardised(x: Tensor) -> Any:
        return jnp.asarray(((x - x.mean(0)) / x.std(0)).numpy())

    slopes, response = standardised(diabetes.x), jnp.asarray((diabetes.y - diabetes.y.mean()).numpy())
    effect, error = jnp.asarray(schools.effect.numpy()), jnp.asarray(schools.standard_error.numpy())
    design, malignant = standardised(cancer.x), jnp.asarray(cancer.y.numpy())

    def regression() -> None:
        z = numpyro.sample("z", dist.Normal(0, 30).expand([10]).to_event(1))
        numpyro.sample("x", dist.Normal(slopes @ z, 54.0).to_event(1), obs=response)

    def hierarchy() -> None:
        mu = numpyro.sample("a_mu", dist.Normal(0, 5))
        tau = numpyro.sample("b_tau", dist.HalfCauchy(5))
        z = numpyro.sample("c_standardised", dist.Normal(0, 1).expand([8]).to_event(1))
        numpyro.sample("x", dist.Normal(mu + tau * z, error).to_event(1), obs=effect)

    def logistic() -> None:
        intercept = numpyro.sample("a_intercept", dist.Normal(0, 1))
        slope = numpyro.sample("b_slope", dist.Normal(0, 1).expand([30]).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=intercept + design @ slope).to_event(1), obs=malignant)

    return {"diabetes": regression, "eight schools": hierarchy, "breast cancer": logistic}


# --- What is written --------------------------------------------------------------------------------------------------


def present(makers: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Those whose library is there; a missing one is said, and is no failure."""
    made = {}
    for name, make in makers.items():
        try:
            made[name] = make()
        except (ImportError, RuntimeError) as error:
            print(f"not measured: {name} ({error})", flush=True)
    return made


def row(work: str, mode: str, peer: str, mine: float, theirs: float, repetitions: int) -> dict[str, Any]:
    """One comparison; the ratio is ours / peer, of medians."""
    found = {
        "work": work,
        "device": "cpu",
        "mode": mode,
        "peer": peer,
        "ours_median_s": round(mine, 6),
        "peer_median_s": round(theirs, 6),
        "ratio": round(mine / theirs, 4),
        "repetitions": repetitions,
        "versions": {name: metadata.version(name) for name in ["torch", *PACKAGES.get(peer, [])]},
    }
    print(f"{work:18} {mode:9} {peer:17} {mine:9.5f} s {theirs:9.5f} s  ratio {mine / theirs:.2f}", flush=True)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| work | device | ours | peer | ours, s | peer, s | ratio |", "|---|---|---|---|---|---|---|"]
    for entry in rows:
        bound = "" if entry.get("reached", True) else "≤ "
        version = entry["versions"].get(PACKAGES.get(entry["peer"], [""])[0], "")
        lines.append(
            f"| {entry['work']} | {entry['device']} | {entry['mode']} | {entry['peer']} {version} | "
            f"{entry['ours_median_s']:.4f} | {entry['peer_median_s']:.4f} | {bound}{entry['ratio']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """The ratios, on a logarithmic axis."""
    from matplotlib.figure import Figure

    from vi_tutorial import plots

    with plots.style():
        figure = Figure(figsize=(8, 0.3 * len(rows) + 1.2), layout="constrained")
        ax = figure.subplots()
        for height, entry in enumerate(reversed(rows)):
            ax.plot([1, entry["ratio"]], [height, height], color=plots.COLOURS.q, lw=2)
            ax.plot(entry["ratio"], height, "o" if entry.get("reached", True) else "<", color=plots.COLOURS.q)
        labels = [f"{entry['work']}, {entry['mode']}: {entry['peer']}" for entry in reversed(rows)]
        ax.set_yticks(range(len(rows)), labels)
        ax.axvline(1, color="0.5", lw=1)
        ax.set(xscale="log", xlabel="seconds, ours / peer", title="Left of the line, ours is faster")
        figure.savefig(path, dpi=120)


def main() -> None:
    """Measure everything and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of a peer's own steps for one posterior")
    parser.add_argument("--only", choices=["train", "evaluate", "vi"], nargs="+", default=["train", "evaluate", "vi"])
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    rows: list[dict[str, Any]] = []
    if "train" in options.only:
        rows += train_steps(options.repetitions)
    if "evaluate" in options.only:
        rows += evaluations(3)
    if "vi" in options.only:
        torch.set_num_threads(1)
        rows += posteriors(3, options.budget)
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    stored = RESULTS / "peers.json"
    before = json.loads(stored.read_text(encoding="utf-8"))["rows"] if stored.exists() else []
    rows = rows + [old for old in before if old["work"] not in {new["work"] for new in rows}]  # not measured now
    report = {"commit": git.stdout.strip(), "machine": machine, "rows": rows}
    write_atomically(stored, json.dumps(report, indent=1) + "\n")
    write_atomically(RESULTS / "peers.md", table(rows))
    picture(rows, RESULTS / "peers.png")


if __name__ == "__main__":
    main()
