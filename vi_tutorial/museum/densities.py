"""Room 2: log densities."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn.functional import softplus

from vi_tutorial import data
from vi_tutorial.distributions import continuous_bernoulli, diagonal_normal
from vi_tutorial.museum._data import Pair, geyser
from vi_tutorial.museum._exhibit import Exhibit, Stage, Version

__all__ = ["EXHIBITS"]

BOX = [(-12.0, 12.0), (-12.0, 12.0)]


def _mixture_wrong(z: Tensor, logits: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    component = Normal(loc, scale).log_prob(z[:, None, :])  # (n, C, D)
    return (logits.log_softmax(0)[:, None] + component).logsumexp(1).sum(-1)


def _mixture_right(z: Tensor, logits: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    component = Normal(loc, scale).log_prob(z[:, None, :])  # (n, C, D)
    return (logits.log_softmax(0) + component.sum(-1)).logsumexp(1)


@cache
def _two_clusters() -> tuple[Tensor, Tensor, Tensor]:
    """Short and long eruptions: shares, means and standard deviations."""
    x, long = geyser(), data.old_faithful()[:, 0] >= 3
    parts = [x[~long], x[long]]
    shares = torch.tensor([len(part) / len(x) for part in parts], dtype=torch.float64)
    return shares.log(), torch.stack([p.mean(0) for p in parts]), torch.stack([p.std(0) for p in parts])


def _mixture_stage(version: Version) -> Stage:
    logits, loc, scale = _two_clusters()

    def sampler(num: int) -> Tensor:
        which = torch.multinomial(logits.exp(), num, replacement=True)
        return loc[which] + scale[which] * torch.randn(num, 2, dtype=torch.float64)

    def log_prob(z: Tensor) -> Tensor:
        return version(z, logits, loc, scale)

    return {
        "density_integrates_to_one": (log_prob, [(-6.0, 6.0)] * 2),
        "samples_match_density": (Pair(sampler, log_prob, 2),),
    }


def _mass_elsewhere(version: Version) -> float:
    """The mass where one coordinate is a short eruption's and the other a long one's."""
    axis = torch.linspace(-6, 6, 601, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    _, loc, _ = _two_clusters()
    above = z > loc.mean(0)
    mass = version(z, *_two_clusters()).exp() * (axis[1] - axis[0]) ** 2
    return mass[above[:, 0] != above[:, 1]].sum().item()


def _flow_wrong(u: Tensor, log_det: Tensor) -> Tensor:
    return (Normal(0.0, 1.0).log_prob(u) + log_det[:, None]).sum(-1)


def _flow_right(u: Tensor, log_det: Tensor) -> Tensor:
    return Normal(0.0, 1.0).log_prob(u).sum(-1) + log_det


@cache
def _coupling() -> tuple[float, ...]:
    """Mean and scale of the durations; intercept, slope and residual scale of the waiting times given them."""
    x = data.old_faithful()
    first = (x[:, 0] - x[:, 0].mean()) / x[:, 0].std()
    slope = (first * x[:, 1]).mean() / first.square().mean()
    rest = x[:, 1] - x[:, 1].mean() - slope * first
    values = (x[:, 0].mean(), x[:, 0].std(), x[:, 1].mean(), slope, rest.std())
    return tuple(value.item() for value in values)


def _flow_log_prob(version: Version, x: Tensor) -> Tensor:
    mean, scale, intercept, slope, residual = _coupling()
    first = (x[:, 0] - mean) / scale
    second = (x[:, 1] - intercept - slope * first) / residual
    return version(torch.stack([first, second], -1), torch.full_like(first, -math.log(scale * residual)))


def _flow_stage(version: Version) -> Stage:
    mean, scale, intercept, slope, residual = _coupling()

    def sampler(num: int) -> Tensor:
        first, second = torch.randn(2, num, dtype=torch.float64)
        return torch.stack([mean + scale * first, intercept + slope * first + residual * second], -1)

    def log_prob(x: Tensor) -> Tensor:
        return _flow_log_prob(version, x)

    box = [(mean - 8 * scale, mean + 8 * scale), (intercept - 150, intercept + 150)]
    return {
        "density_integrates_to_one": (log_prob, box),
        "samples_match_density": (Pair(sampler, log_prob, 2),),
        "batch_repetition_changes_nothing": (log_prob, data.old_faithful()[:8]),
    }


def _jacobian_wrong(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return Normal(loc, scale).log_prob(x.log())


def _jacobian_right(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    y = x.log()
    return Normal(loc, scale).log_prob(y) - y


@cache
def _log_duration() -> tuple[Tensor, Tensor]:
    y = data.old_faithful()[:, 0].log()
    return y.mean(), y.std()


def _jacobian_stage(version: Version) -> Stage:
    loc, scale = _log_duration()

    def log_prob(x: Tensor) -> Tensor:
        return version(x[:, 0], loc, scale)

    def sampler(num: int) -> Tensor:
        return (loc + scale * torch.randn(num, 1, dtype=torch.float64)).exp()

    return {
        "density_integrates_to_one": (log_prob, [(1e-3, 60.0)]),
        "samples_match_density": (Pair(sampler, log_prob, 1),),
        "batch_repetition_changes_nothing": (log_prob, data.old_faithful()[:8]),
    }


def _constant_wrong(z: Tensor) -> Tensor:
    num_dims = z.shape[-1]
    return (-0.5 * z**2 - 0.5 * num_dims * math.log(2 * math.pi)).sum(-1)


def _constant_right(z: Tensor) -> Tensor:
    return (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1)


def _constant_stage(version: Version) -> Stage:
    return {
        "density_integrates_to_one": (version, BOX),
        "samples_match_density": (Pair(lambda num: torch.randn(num, 2, dtype=torch.float64), version, 2),),
        "batch_repetition_changes_nothing": (version, geyser()[:8]),
    }


def _grey_wrong(x: Tensor, logits: Tensor) -> Tensor:
    return (x * logits - softplus(logits)).sum(-1)


def _grey_right(x: Tensor, logits: Tensor) -> Tensor:
    return continuous_bernoulli(logits).log_prob(x)


@cache
def _grey_logits() -> Tensor:
    """Log odds of the mean grey of each pixel, kept off 0 and 1."""
    mean = (data.digits().train / 16).mean(0).clamp(0.01, 0.99)
    return mean.logit()


def _grey_stage(version: Version) -> Stage:
    logits = _grey_logits()
    pixel = 28  # in the middle of the image
    return {
        "density_integrates_to_one": (lambda x: version(x, logits[pixel : pixel + 1]), [(0.0, 1.0)]),
        "batch_repetition_changes_nothing": (lambda x: version(x, logits), data.digits().test[:8] / 16),
    }


def _mass_of_an_image(version: Version) -> float:
    """The integral over all grey images: a product of 64 integrals over [0, 1]."""
    grid = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    logits = _grey_logits()
    each = [version(grid[:, None], logits[d : d + 1]).exp().mean().log() for d in range(len(logits))]
    return torch.stack(each).sum().exp().item()


def _squared_error_wrong(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return -((x - mean) ** 2).sum(-1)


def _squared_error_right(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return diagonal_normal(mean, scale).log_prob(x)


@cache
def _waiting() -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the standardised waiting times of long eruptions."""
    waiting = geyser()[data.old_faithful()[:, 0] >= 3, 1:]
    return waiting.mean(0), waiting.std(0)


def _squared_error_stage(version: Version) -> Stage:
    mean, scale = _waiting()

    def log_prob(x: Tensor) -> Tensor:
        return version(x, mean, scale)

    def sampler(num: int) -> Tensor:
        return mean + scale * torch.randn(num, 1, dtype=torch.float64)

    return {
        "density_integrates_to_one": (log_prob, BOX[:1]),
        "samples_match_density": (Pair(sampler, log_prob, 1),),
        "batch_repetition_changes_nothing": (log_prob, geyser()[:8, 1:]),
    }


def _integral(version: Version) -> float:
    grid = torch.linspace(-12, 12, 4801, dtype=torch.float64)[:, None]
    return (version(grid, *_waiting()).exp().sum() * 0.005).item()


def _mean_log_density(version: Version) -> float:
    return _flow_log_prob(version, data.old_faithful()).mean().item()


EXHIBITS = (
    Exhibit(
        "mixture-per-dimension",
        2,
        "the log density of a mixture prior",
        _mixture_wrong,
        _mixture_right,
        _mixture_stage,
        _mass_elsewhere,
        "probability of a short eruption with a long wait, or the reverse",
        "Mass where no component lives: every dimension chooses a component of its own.",
        ("samples_match_density",),
        "Sum over dimensions first, then take the log-sum-exp over components.",
        "scverse/scvi-tools issue 3188 and pull request 3189; read in the code of intro_dgm",
    ),
    Exhibit(
        "log-determinant-broadcast",
        2,
        "the log density of a flow",
        _flow_wrong,
        _flow_right,
        _flow_stage,
        _mean_log_density,
        "mean log density of Old Faithful, nats",
        "The log-determinant counts once per dimension, so a model can buy likelihood by stretching.",
        ("density_integrates_to_one",),
        "Sum the base density over dimensions before the log-determinant joins it.",
        "read in the flow prior of intro_dgm",
    ),
    Exhibit(
        "forgotten-jacobian",
        2,
        "the log density of a positive quantity",
        _jacobian_wrong,
        _jacobian_right,
        _jacobian_stage,
        lambda version: version(data.old_faithful()[:, 0], *_log_duration()).mean().item(),
        "mean log density of the durations, nats",
        "Log-likelihoods that are too good, and that change with the unit of measurement.",
        ("density_integrates_to_one", "samples_match_density"),
        "Add the log-determinant of the transform: here −log x.",
        "phlippe/uvadlc_notebooks issue 57; abdulfatir/normalizing-flows issue 2",
    ),
    Exhibit(
        "constant-squared",
        2,
        "the log density of a standard Normal",
        _constant_wrong,
        _constant_right,
        _constant_stage,
        lambda version: version(geyser()).mean().item(),
        "mean log density of Old Faithful, nats",
        "Nothing, while prior and posterior make the same mistake; a wrong number where one of them stands alone.",
        ("density_integrates_to_one",),
        "The constant is ½ log 2π per dimension; the sum over dimensions multiplies it by D already.",
        "read in the code of intro_dgm",
    ),
    Exhibit(
        "bernoulli-on-grey",
        2,
        "the log-likelihood of grey pixels",
        _grey_wrong,
        _grey_right,
        _grey_stage,
        _mass_of_an_image,
        "mass of all grey images under the “likelihood”",
        "Scores that look like log-likelihoods and are comparable to nothing.",
        ("density_integrates_to_one",),
        "Make the pixels binary, or use a likelihood for [0, 1], such as the continuous Bernoulli.",
        "pytorch/examples issue 460; pyro-ppl/pyro issue 529",
    ),
    Exhibit(
        "squared-error",
        2,
        "the log-likelihood of a Gaussian decoder",
        _squared_error_wrong,
        _squared_error_right,
        _squared_error_stage,
        _integral,
        "integral of the “density” of the waiting times",
        "Silently σ² = ½: the noise that the data have plays no part, and the KL gets a weight nobody chose.",
        ("density_integrates_to_one", "samples_match_density"),
        "Write the Normal with its σ and its constant, and learn σ.",
        "very common; discussed in ethanluoyc/pytorch-vae issue 3",
    ),
)
