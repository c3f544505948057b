"""Room 6: what learns."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

from vi_tutorial import data
from vi_tutorial.museum._data import encoder_gradients, exact_encoder_gradient, normal
from vi_tutorial.museum._exhibit import Exhibit, Stage, Version

__all__ = ["EXHIBITS"]


def _signal_wrong(log_p: Tensor, log_q: Tensor, num_data: int) -> Tensor:
    scale = num_data / len(log_q)
    return scale * (log_p.detach() * log_q).sum()


def _signal_right(log_p: Tensor, log_q: Tensor, num_data: int) -> Tensor:
    scale = num_data / len(log_q)
    return scale * ((log_p - log_q).detach() * log_q).sum()


WIDTH, POINTS = 0.6, 40


def _scale_gradients(version: Version, num: int = 20_000) -> Tensor:
    """Gradients with respect to log σ of q = N(0.2, σ²), for p(z, x) = N(z; 0, 1) N(x; z, 0.8²) at x = 1."""
    log_scale = torch.full((num,), WIDTH, dtype=torch.float64).log().requires_grad_()
    z = (0.2 + log_scale.exp() * torch.randn(num, dtype=torch.float64)).detach()
    log_p = normal(0.0, 1.0).log_prob(z) + normal(1.0, 0.8).log_prob(z)
    log_q = torch.distributions.Normal(0.2, log_scale.exp()).log_prob(z)
    return torch.autograd.grad(version(log_p, log_q, num), log_scale)[0]


def _exact_scale_gradient() -> Tensor:
    """d/d log σ of −½σ² − ½σ²/0.64 + log σ: the two quadratic terms and the entropy."""
    return torch.tensor(-(WIDTH**2) - WIDTH**2 / 0.64 + 1, dtype=torch.float64)


def _signal_stage(version: Version) -> Stage:
    slope = encoder_gradients(version, 4000)
    exact = exact_encoder_gradient()
    width = _scale_gradients(version)[:4000]
    return {"gradient_is_unbiased": (torch.stack([slope, width], 1), torch.stack([exact, _exact_scale_gradient()]))}


def _unused_wrong(design: Tensor, slope: Tensor, effect: Tensor) -> Tensor:
    shift = effect * design[:, 1]  # noqa: F841
    return slope * design[:, 0]


def _unused_right(design: Tensor, slope: Tensor, effect: Tensor) -> Tensor:
    shift = effect * design[:, 1]
    return slope * design[:, 0] + shift


def _wine() -> tuple[Tensor, Tensor]:
    """Colour intensity and proline as predictors of alcohol, all standardised."""
    wine = data.wine()
    x = (wine.x - wine.x.mean(0)) / wine.x.std(0)
    columns = [wine.names.index(name) for name in ("color_intensity", "proline")]
    return x[:, columns], x[:, wine.names.index("alcohol")]


def _log_joint(version: Version, design: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Slopes z ~ N(0, I), y | z ~ N(mean, 0.7²)."""
    mean = version(design, z[0], z[1])
    return normal(0.0, 1.0).log_prob(z).sum() + normal(0.0, 0.7).log_prob(y - mean).sum()


def _posterior_mean(version: Version, design: Tensor) -> Tensor:
    """The log joint is quadratic in z, so one Newton step from zero ends at the posterior's mean."""
    y, zero = _wine()[1], torch.zeros(2, dtype=torch.float64)

    def log_joint(z: Tensor) -> Tensor:
        return _log_joint(version, design, y, z)

    gradient = torch.func.grad(log_joint)(zero)
    return -torch.linalg.solve(torch.func.hessian(log_joint)(zero), gradient)


def _unused_stage(version: Version) -> Stage:
    design, y = _wine()
    coefficients = nn.ParameterDict({name: nn.Parameter(torch.tensor(0.3).double()) for name in ("slope", "effect")})
    z = torch.stack([coefficients["slope"], coefficients["effect"]])
    return {
        "every_column_moves_the_posterior": (lambda x: _posterior_mean(version, x), design),
        "every_parameter_gets_gradient": (_log_joint(version, design, y, z), coefficients),
    }


def _unbounded_wrong(raw: Tensor) -> Tensor:
    return raw.exp()


def _unbounded_right(raw: Tensor) -> Tensor:
    return 0.5 + raw.exp()


class _Width(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros((), dtype=torch.float64))


@cache
def _first_pixel() -> Tensor:
    return data.digits().train[:, 0].double()


def _log_likelihood(version: Version, raw: Tensor) -> Tensor:
    """Of the digits' first pixel, a count, in every image, around its mean: (N,)."""
    counts, scale = _first_pixel(), version(raw)
    return -scale.log() - 0.5 * ((counts - counts.mean()) / scale) ** 2 - 0.5 * math.log(2 * math.pi)


def _climbed(version: Version, num_steps: int) -> _Width:
    """Plain gradient ascent on the mean log-likelihood with steps of size one."""
    width = _Width()
    for _ in range(num_steps):
        (slope,) = torch.autograd.grad(_log_likelihood(version, width.raw).mean(), width.raw)
        width.raw.data += slope
    return width


def _unbounded_stage(version: Version) -> Stage:
    early, late = _climbed(version, 100), _climbed(version, 1000)
    certain = torch.zeros((), dtype=torch.float64)  # a count has a probability, and log 1 is the most that one can have
    return {
        "stays_below_the_evidence": (_log_likelihood(version, early.raw).detach(), certain),
        "every_parameter_gets_gradient": (_log_likelihood(version, late.raw).mean(), late),
    }


EXHIBITS = (
    Exhibit(
        "signal-without-log-q",
        6,
        "the score-function surrogate",
        _signal_wrong,
        _signal_right,
        _signal_stage,
        lambda version: _scale_gradients(version).mean().item(),
        "mean gradient of log σ",
        "Nobody pays for the entropy: q is told to shrink onto a mode.",
        ("gradient_is_unbiased",),
        "The learning signal is the whole log weight, log p − log q.",
        "read in the text of a University of Amsterdam tutorial (phlippe/uvadlc_notebooks)",
    ),
    Exhibit(
        "unused-predictor",
        6,
        "the mean of a regression with two predictors",
        _unused_wrong,
        _unused_right,
        _unused_stage,
        lambda version: _posterior_mean(version, _wine()[0])[1].item(),
        "posterior mean of proline's effect on alcohol",
        "A posterior that is the prior, with a neat interval around zero.",
        ("every_column_moves_the_posterior",),
        "Use what was computed; and ask of every column whether the posterior would notice its loss.",
        "read in a stored version of a PyMC example notebook on Pathfinder",
    ),
    Exhibit(
        "unbounded-scale",
        6,
        "a decoder's standard deviation",
        _unbounded_wrong,
        _unbounded_right,
        _unbounded_stage,
        lambda version: _log_likelihood(version, _climbed(version, 500).raw).mean().item(),
        "log-likelihood of a pixel that is always empty, after 500 steps, nats",
        "The log-likelihood rises past any probability, and after some 700 steps it is NaN.",
        ("stays_below_the_evidence", "every_parameter_gets_gradient"),
        "Give σ a floor of the size of the data's own steps; then log p is bounded.",
        "Mattei & Frellsen (2018) on decoders; vanderschaarlab/synthcity issue 331, where an encoder's σ explodes",
    ),
)
