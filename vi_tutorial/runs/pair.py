"""What a configuration names: the data, the model and its q."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vi_tutorial import checkpoint, data, elbo, mnist
from vi_tutorial.families import standard_normal
from vi_tutorial.files import memory_mapped
from vi_tutorial.models import LatentVariableModel
from vi_tutorial.networks import (
    BernoulliHead,
    BinomialHead,
    ContinuousBernoulliHead,
    DiagonalNormalHead,
    DiscretisedLogisticHead,
    FullNormalHead,
    Head,
    MixtureNormalHead,
    NormalHead,
    convolutional_decoder,
    convolutional_encoder,
    mlp,
)
from vi_tutorial.runs.config import Config, RunError, read

__all__ = ["Pair", "Rows", "Run", "build", "default_dtype", "load", "prepare", "rows"]

COMPONENTS = 5
ROWS_FOR_MEANS = 10_000
COUNTS = ("binomial", "discretised-logistic")
BOUNDS: dict[str, Callable[[LatentVariableModel, nn.Module, Tensor, int], Tensor]] = {
    "elbo": lambda model, q, x, k: elbo.elbo(elbo.draw(model.given(x), q(x), k).log_weight),
    "analytic": lambda model, q, x, k: elbo.elbo_analytic_kl(model.log_likelihood(x), q(x), model.prior(), k),
    "stl": lambda model, q, x, k: elbo.elbo_sticking_the_landing(model.given(x), q(x), k),
    "iwae": lambda model, q, x, k: elbo.iwae(elbo.draw(model.given(x), q(x), k).log_weight),
    "dreg": lambda model, q, x, k: elbo.iwae_doubly_reparameterised(model.given(x), q(x), k),
}


class Rows(NamedTuple):
    """Data as they lie in memory or on the disk.

    Attributes:
        train: Shape ``(N, D)``.
        test: Held out, with the same columns.
        high: The largest count that they may hold; none for real numbers.

    Example:
        >>> Rows(torch.zeros(2, 3), torch.ones(1, 3), None).test.shape
        torch.Size([1, 3])
    """

    train: Tensor
    test: Tensor
    high: int | None


def rows(config: Config) -> Rows:
    """The data that a configuration names.

    Args:
        config: Of the run.

    Returns:
        :class:`Rows`; of a file, a view of the disk.

    Raises:
        RunError: If the file holds no table, or numbers that the likelihood does not take.
        FileNotFoundError, ValueError, vi_tutorial.mnist.DataFileError: If the data cannot be had.

    Example:
        >>> rows(Config()).train.shape
        torch.Size([1498, 64])
    """
    if config.data == "digits":
        images = data.digits()
        found = Rows(images.train, images.test, 16)
    elif config.data == "mnist":
        greys = mnist.mnist()
        found = Rows(greys.train, greys.test, 255)
    else:
        table = memory_mapped(config.data)
        if table.ndim != 2 or len(table) < 2:
            raise RunError(f"{config.data} must hold at least two rows, shape (N, D); it has {tuple(table.shape)}")
        held_out = max(1, min(len(table) // 10, 10_000))
        found = Rows(table[:-held_out], table[-held_out:], 255 if table.dtype == torch.uint8 else None)
    if found.high is None and config.likelihood in COUNTS:
        raise RunError(f"likelihood {config.likelihood} needs counts; {config.data} holds {found.train.dtype}")
    if config.binarisation == "static" and config.likelihood == "bernoulli" and found.train.dtype == torch.uint8:
        coins = torch.Generator().manual_seed(config.seed)
        train, test = (mnist.binarise(part, coins).to(torch.uint8) * 255 for part in (found.train, found.test))
        found = Rows(train, test, found.high)
    return found


def prepare(config: Config, high: int | None, raw: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Rows as the likelihood takes them: zeros and ones, counts, or reals.

    Args:
        config: Of the run.
        high: The largest count, as in :class:`Rows`.
        raw: Rows as they lie on the disk, shape ``(B, D)``.
        generator: Of the coins for bytes under ``bernoulli``, and of what turns counts into reals under ``normal``.

    Returns:
        A tensor of the same shape, in the precision of the run.

    Example:
        >>> prepare(Config(likelihood="continuous-bernoulli"), 16, torch.tensor([[4.0, 16.0]]))
        tensor([[0.2500, 1.0000]])
    """
    if config.likelihood == "bernoulli" and raw.dtype == torch.uint8:
        return mnist.binarise(raw, generator).to(config.dtype)
    x = raw.to(config.dtype)
    if high is None or config.likelihood in COUNTS:
        return x
    if config.likelihood == "bernoulli":
        return (x > high / 2).to(config.dtype)
    if config.likelihood == "continuous-bernoulli":
        return x / high
    return (x + torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)) / (high + 1)


class Pair(nn.Module):
    """A model and its q; called with data, the bound of each datapoint.

    Args:
        config: Names the bound and K.
        model: The joint.
        q: From data to a distribution over the latent.

    Example:
        >>> config = Config(hidden=(8,), latents=2)
        >>> build(config, rows(config))(torch.zeros(5, 64)).shape
        torch.Size([5])
    """

    def __init__(self, config: Config, model: LatentVariableModel, q: nn.Module) -> None:
        super().__init__()
        self.model, self.q, self.bound, self.num_samples = model, q, BOUNDS[config.bound], config.num_samples

    def forward(self, x: Tensor) -> Tensor:
        """The bound in nats, shape ``(B,)``, for ``x`` of shape ``(B, D)``."""
        return self.bound(self.model, self.q, x, self.num_samples)


class _Scaled(nn.Module):
    """Counts brought to the order of one before a network sees them."""

    def __init__(self, high: int) -> None:
        super().__init__()
        self.high = high

    def forward(self, x: Tensor) -> Tensor:
        return x / self.high


class _Half(nn.Module):
    """A network whose products are in bfloat16, and whose inputs, weights and outputs are not."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.network(x).float()


class _Flow(nn.Module):
    """A spline flow whose context is an encoder's output; drawn and weighed in two passes each."""

    def __init__(self, network: nn.Module, num_context: int, latents: int) -> None:
        super().__init__()
        validated = Distribution._validate_args
        import zuko

        Distribution.set_default_validate_args(validated)  # zuko turns it off as it is imported
        self.network = network
        self.flow = zuko.flows.NSF(latents, context=num_context, transforms=2, passes=2, hidden_features=(64,))

    def forward(self, x: Tensor) -> Distribution:
        return self.flow(self.network(x))


def build(config: Config, found: Rows) -> Pair:
    """The networks that a configuration names, their weights drawn from its seed.

    Args:
        config: Of the run.
        found: Its data, from :func:`rows`.

    Returns:
        :class:`Pair`. The global random state is left alone.

    Raises:
        RunError: If the networks do not fit the data.
    """
    with torch.random.fork_rng(), default_dtype(config.dtype):
        torch.manual_seed(config.seed)
        return Pair(config, _model(config, found), _posterior(config, found))


def _model(config: Config, found: Rows) -> LatentVariableModel:
    dim = found.train.shape[1]
    heads: dict[str, tuple[type[Head], tuple[Any, ...]]] = {
        "bernoulli": (BernoulliHead, ()),
        "binomial": (BinomialHead, (found.high,)),
        "continuous-bernoulli": (ContinuousBernoulliHead, ()),
        "discretised-logistic": (DiscretisedLogisticHead, (0, found.high)),
        "normal": (NormalHead, (torch.tensor(0.1, dtype=config.dtype),)),
    }
    head, arguments = heads[config.likelihood]
    if config.network == "convolutional":
        network = convolutional_decoder(config.latents, _side(config, dim), head.num_outputs(dim), config.hidden)
    else:
        network = mlp(config.latents, *reversed(config.hidden), head.num_outputs(dim))
        if config.likelihood == "bernoulli":
            _start_at_the_mean(network[-1], config, found)
    return LatentVariableModel(standard_normal(config.latents), head(_in_precision(config, network), dim, *arguments))


def _start_at_the_mean(layer: nn.Module, config: Config, found: Rows) -> None:
    """The logits of the pixels' means as biases, from the first rows, as Burda et al. (2016) start."""
    assert isinstance(layer, nn.Linear)
    x = prepare(config, found.high, found.train[:ROWS_FOR_MEANS], torch.Generator().manual_seed(config.seed))
    layer.bias.data = x.double().mean(0).clamp(0.001, 0.999).logit().to(config.dtype)


def _posterior(config: Config, found: Rows) -> nn.Module:
    dim = found.train.shape[1]

    def encoder(num_outputs: int) -> nn.Module:
        if config.network == "convolutional":
            network = convolutional_encoder(_side(config, dim), num_outputs, config.hidden)
        else:
            network = mlp(dim, *config.hidden, num_outputs)
        if found.high is not None and config.likelihood in COUNTS:
            network = nn.Sequential(_Scaled(found.high), network)
        return _in_precision(config, network)

    if config.posterior == "flow":
        return _Flow(encoder(64), 64, config.latents)
    if config.posterior == "mixture":
        outputs = MixtureNormalHead.num_outputs(config.latents, COMPONENTS)
        return MixtureNormalHead(encoder(outputs), config.latents, COMPONENTS)
    head: type[DiagonalNormalHead | FullNormalHead] = (
        DiagonalNormalHead if config.posterior == "diagonal" else FullNormalHead
    )
    return head(encoder(head.num_outputs(config.latents)), config.latents)


def _in_precision(config: Config, network: nn.Module) -> nn.Module:
    return _Half(network) if config.precision == "bfloat16" else network


def _side(config: Config, dim: int) -> int:
    side = math.isqrt(dim)
    if side * side != dim or side % 2 ** len(config.hidden):
        raise RunError(
            f"network convolutional needs square images whose side {len(config.hidden)} layers can halve; "
            f"received rows of {dim} numbers"
        )
    return side


class Run(NamedTuple):
    """A trained pair and its data, ready to be looked at.

    Attributes:
        config: What was asked for.
        rows: The data.
        model: The joint, its parameters fixed.
        q: From data to a distribution over the latent, its parameters fixed.

    Example:
        >>> config = Config(hidden=(8,), latents=2)
        >>> found = rows(config)
        >>> pair = build(config, found)
        >>> Run(config, found, pair.model, pair.q).model.sample(3).x.shape
        torch.Size([3, 64])
    """

    config: Config
    rows: Rows
    model: LatentVariableModel
    q: nn.Module


def load(folder: Path | str) -> Run:
    """The networks of a run, as its last checkpoint has them; no code in the folder is run.

    Args:
        folder: What :func:`vi_tutorial.runs.train` wrote.

    Returns:
        :class:`Run`.

    Raises:
        RunError: If the folder holds no run.
        vi_tutorial.checkpoint.CheckpointError: If its checkpoint is missing, damaged, or of another model.
    """
    config = read(folder)
    found = rows(config)
    pair = build(config, found)
    checkpoint.restore(checkpoint.read(Path(folder) / "checkpoint.safetensors"), pair)
    pair.requires_grad_(False)
    return Run(config, found, pair.model, pair.q)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Torch's default type of numbers, for as long as the block lasts.

    Args:
        dtype: Of floating-point numbers.

    Example:
        >>> with default_dtype(torch.float64):
        ...     torch.zeros(1).dtype
        torch.float64
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
