"""What a run was worth: the numbers and the pictures."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from vi_tutorial import plots
from vi_tutorial._atomic import write_atomically
from vi_tutorial._validation import check_count
from vi_tutorial.evaluation import importance_sampling, rate_distortion
from vi_tutorial.runs.pair import Run, default_dtype, load, prepare

__all__ = ["evaluate"]

ROWS_AT_ONCE, DRAWS_AT_ONCE = 100, 50
IMAGES = 10


@torch.no_grad()
def evaluate(folder: Path | str, num_samples: int = 5000, num_rows: int | None = None, seed: int = 0) -> dict[str, Any]:
    """What the model of a run is worth on its held-out rows.

    The report goes to ``report.json``; the curves of the history, and for images samples and reconstructions, to
    pictures beside it.

    Args:
        folder: What :func:`vi_tutorial.runs.train` wrote.
        num_samples: Importance samples per datapoint, at least 25.
        num_rows: How many held-out rows, from the first; all if not given.
        seed: Of the binarisation, which is done once, and of the samples.

    Returns:
        Means over the rows in nats, each with its standard error over them (``…_stderr``): ``nll``, the negative
        importance-sampled log p(x), ``elbo``, ``rate``, ``distortion``; ``active_latents``, whose posterior mean varies
        over the rows by more than 0.01; the share of rows whose k̂ is above 0.7, where ``nll`` is not to be trusted; and
        what was asked for.

    Raises:
        RunError: If the folder holds no run.
        TypeError, ValueError: If a number is no count.
        vi_tutorial.checkpoint.CheckpointError: If its checkpoint is missing, damaged, or of another model.

    Source:
        Burda, Grosse & Salakhutdinov (2016), Importance Weighted Autoencoders, section 5.

    Example:
        >>> import tempfile
        >>> from vi_tutorial.runs import Config, train
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = train(Config(hidden=(8,), latents=2, epochs=1), folder)
        ...     report = evaluate(folder, num_samples=100, num_rows=20)
        >>> report["nll"] < -report["elbo"], report["test_rows"]
        (True, 20)
    """
    check_count("num_samples", num_samples, minimum=25)
    if num_rows is not None:
        check_count("num_rows", num_rows)
    folder = Path(folder)
    run = load(folder)
    started = time.perf_counter()
    parts: dict[str, list[Tensor]] = {name: [] for name in ("nll", "elbo", "rate", "distortion", "k", "mean")}
    with torch.random.fork_rng(), default_dtype(run.config.dtype):
        torch.manual_seed(seed)
        raw = run.rows.test[:num_rows]
        x = prepare(run.config, run.rows.high, raw, torch.Generator().manual_seed(seed))
        for batch in tqdm(x.split(ROWS_AT_ONCE), disable=os.environ.get("VI_TUTORIAL_PROGRESS") == "off"):
            q = run.q(batch)
            estimate = importance_sampling(run.model.given(batch), q, num_samples, chunk_size=DRAWS_AT_ONCE)
            rate, distortion = rate_distortion(run.model, batch, q, DRAWS_AT_ONCE)
            values = (-estimate.log_evidence, -rate - distortion, rate, distortion, estimate.pareto_k)
            for name, value in zip(parts, (*values, q.sample((DRAWS_AT_ONCE,)).mean(0)), strict=True):
                parts[name].append(value.double())
        _pictures(run, x[:IMAGES], folder)
    columns = {name: torch.cat(values) for name, values in parts.items()}
    report: dict[str, Any] = {}
    for name in ("nll", "elbo", "rate", "distortion"):
        error = columns[name].std(correction=0) / math.sqrt(len(x))
        report |= {name: columns[name].mean().item(), f"{name}_stderr": error.item()}
    report |= {
        "active_latents": int((columns["mean"].var(0, correction=0) > 0.01).sum()),
        "share_with_k_above_0.7": (columns["k"] > 0.7).double().mean().item(),
        "importance_samples": num_samples,
        "test_rows": len(x),
        "seed": seed,
        "seconds": time.perf_counter() - started,
        "config": asdict(run.config) | {"hidden": list(run.config.hidden)},
    }
    write_atomically(folder / "report.json", json.dumps(report, indent=1) + "\n")
    return report


def _pictures(run: Run, x: Tensor, folder: Path) -> None:
    with plots.style():
        _save(_curves(folder), folder / "curves.png")
        if math.isqrt(x.shape[1]) ** 2 == x.shape[1] and run.rows.high is not None:
            shown = run.model.likelihood(run.model.prior().sample((5 * IMAGES,)))
            _save(_sheet(shown.mean, ["mean images"] + [""] * 4), folder / "samples.png")
            back = run.model.likelihood(run.q(x).sample()).mean
            _save(_sheet(torch.cat([x, back]), ["held out", "mean after q"]), folder / "reconstructions.png")


def _curves(folder: Path) -> Figure:
    with (folder / "history.csv").open(encoding="utf-8", newline="") as file:
        history = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    epochs = [row["epoch"] for row in history]
    for name, style in (("bound", "-"), ("held_out_bound", "--")):
        ax.plot(epochs, [row[name] for row in history], style, color=plots.COLOURS.q, label=name.replace("_", " "))
    ax.set(xlabel="epoch", ylabel="bound (nats per row)", title="The bound, in training and held out")
    ax.legend()
    return figure


def _sheet(images: Tensor, labels: list[str]) -> Figure:
    figure = Figure(figsize=(8, 0.8 * len(labels)), layout="constrained")
    low, high = images.min().item(), images.max().item()
    ax = figure.subplots()
    plots.images(images, ax, vmin=min(low, 0.0), vmax=max(high, 1.0), num_cols=IMAGES, row_labels=labels)
    return figure


def _save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(path, content.getvalue())
