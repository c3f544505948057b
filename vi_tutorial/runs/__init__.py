"""A training run is a folder: what was asked for, what happened, a checkpoint to go on from, and a report.

    folder/config.json             what was asked for
    folder/history.csv             one row per epoch, nats per datapoint
    folder/checkpoint.safetensors  weights, optimiser, random states: enough to go on as if nothing had happened
    folder/report.json             what :func:`evaluate` found
    folder/curves.png, samples.png, reconstructions.png

The same code runs in one process and, under ``torchrun``, in many: each takes its share of every minibatch, the
gradients are averaged, and the first process writes.
"""

from vi_tutorial.runs.config import Config, RunError, read
from vi_tutorial.runs.loop import train
from vi_tutorial.runs.pair import Run, load
from vi_tutorial.runs.report import evaluate

__all__ = ["Config", "Run", "RunError", "evaluate", "load", "read", "train"]
