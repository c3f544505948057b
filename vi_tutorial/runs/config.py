"""What is asked of a run, and the file that says so."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from vi_tutorial._atomic import write_atomically
from vi_tutorial._validation import check_count, check_number, check_positive

__all__ = ["Config", "RunError", "claim", "read"]

CHOICES = {
    "likelihood": ("bernoulli", "binomial", "continuous-bernoulli", "discretised-logistic", "normal"),
    "binarisation": ("dynamic", "static"),
    "network": ("mlp", "convolutional"),
    "posterior": ("diagonal", "full", "mixture", "flow"),
    "bound": ("elbo", "analytic", "stl", "iwae", "dreg"),
    "schedule": ("constant", "stages"),
    "precision": ("float32", "float64", "bfloat16"),
}
MAY_CHANGE = ("epochs", "minutes", "save_seconds")
"""What a resumed run may be asked for anew."""


class RunError(RuntimeError):
    """A run that cannot start, go on or be read; the message says why, and what to do.

    Example:
        >>> str(RunError("runs/a holds another run"))
        'runs/a holds another run'
    """


@dataclass(frozen=True)
class Config:
    """What is asked of a run.

    Attributes:
        data: ``digits`` (bundled, 8 × 8), ``mnist`` (28 × 28), or a ``.npy`` or ``.npz`` file with one row per
            datapoint, whose last tenth, at most 10,000 rows, is held out.
        likelihood: Of the pixels or columns.
        binarisation: For ``bernoulli`` on bytes: coins tossed at every visit, or once, from the seed.
        network: ``mlp``, or ``convolutional`` for square images.
        hidden: Sizes of the hidden layers of the encoder, and backwards of the decoder; channels if convolutional.
        latents: L.
        posterior: The family of q.
        bound: What is maximised: the ELBO by its log weights, with its KL term in closed form, or with the gradient
            that sticks the landing; the importance-weighted bound, or that with the doubly reparameterised gradient.
        num_samples: K draws per datapoint and step.
        batch_size: B, of all processes together.
        epochs: Passes over the data; 3,280 in Burda, Grosse & Salakhutdinov (2016).
        minutes: Stop after so long, if that is sooner.
        learning_rate: Of Adam, at the start.
        schedule: ``constant``, or the eight ``stages`` of the same authors: stage i, from 0, lasts 3^i epochs, at the
            rate times 10^(−i/7).
        seed: Of the weights, the order and the noise.
        precision: Of the networks' products; ``bfloat16`` keeps weights, densities and sums in float32.
        compile: Whether to try ``torch.compile``.
        device: ``auto``, or a name that torch knows.
        save_seconds: How often a checkpoint is written.

    Raises:
        TypeError, ValueError: If a value is of the wrong kind, unknown or out of range.

    Example:
        >>> Config(bound="iwae", num_samples=5).epochs
        100
    """

    data: str = "digits"
    likelihood: str = "bernoulli"
    binarisation: str = "dynamic"
    network: str = "mlp"
    hidden: tuple[int, ...] = (200, 200)
    latents: int = 50
    posterior: str = "diagonal"
    bound: str = "elbo"
    num_samples: int = 1
    batch_size: int = 100
    epochs: int = 100
    minutes: float | None = None
    learning_rate: float = 1e-3
    schedule: str = "constant"
    seed: int = 0
    precision: str = "float32"
    compile: bool = False
    device: str = "auto"
    save_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; received {getattr(self, name)}")
        for name in ("latents", "num_samples", "batch_size", "epochs"):
            check_count(name, getattr(self, name))
        check_count("seed", self.seed, minimum=0)
        for name, kinds, wanted in (
            ("data", str, "str"),
            ("device", str, "str"),
            ("compile", bool, "bool"),
            ("hidden", (tuple, list), "tuple of sizes"),
        ):
            if not isinstance(getattr(self, name), kinds):
                raise TypeError(f"{name} must be a {wanted}; received {type(getattr(self, name)).__name__}")
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for number in self.hidden:
            check_count("hidden", number)
        if not self.hidden:
            raise ValueError("hidden must hold at least one size; received none")
        check_positive("learning_rate", self.learning_rate)
        if self.minutes is not None:
            check_positive("minutes", self.minutes)
        check_number("save_seconds", self.save_seconds)
        if not self.save_seconds >= 0:
            raise ValueError(f"save_seconds must be at least 0; received {self.save_seconds}")

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.float64 if self.precision == "float64" else torch.float32


def read(folder: Path | str) -> Config:
    """The configuration in a run's folder.

    Args:
        folder: Of a run.

    Returns:
        :class:`Config`.

    Raises:
        RunError: If there is none, or the file is no configuration.
    """
    file = Path(folder) / "config.json"
    try:
        return Config(**json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{folder} holds no run: expected {file}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{file} is not the configuration of a run ({error})") from error


def claim(config: Config, folder: Path, resume: bool) -> None:
    """Make the folder this run's.

    Args:
        config: Of the run.
        folder: Where it is to be.
        resume: Whether it is to go on from what is there.

    Raises:
        RunError: If the folder holds a run and ``resume`` is not set, if it holds none and ``resume`` is, or if the
            run there was asked for otherwise, in more than its length.
    """
    file = folder / "config.json"
    if file.exists():
        if not resume:
            raise RunError(f"{folder} holds a run already: go on with --resume, or choose another folder")
        before = read(folder)
        for field in fields(Config):
            asked, had = getattr(config, field.name), getattr(before, field.name)
            if asked != had and field.name not in MAY_CHANGE:
                raise RunError(f"{field.name} must be that of the run in {folder}, {had}; received {asked}")
    elif resume:
        raise RunError(f"{folder} holds no run to go on with: start one without --resume")
    write_atomically(file, json.dumps(asdict(config), indent=1) + "\n")
