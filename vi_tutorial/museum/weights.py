"""Room 5: many samples."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from vi_tutorial.distributions import diagonal_normal
from vi_tutorial.museum._data import Setting, digits_setting, geyser_setting, normal
from vi_tutorial.museum._exhibit import Exhibit, Stage, Version
from vi_tutorial.quadrature import gauss_hermite

__all__ = ["EXHIBITS"]


# Each takes log w, (K, B), and returns the mean bound of the batch.


def _wrong_axis_wrong(log_weight: Tensor) -> Tensor:
    batch_size = log_weight.shape[1]
    return (log_weight.logsumexp(1) - math.log(batch_size)).mean()


def _summed_first_wrong(log_weight: Tensor) -> Tensor:
    num_samples, batch_size = log_weight.shape
    return (log_weight.sum(1).logsumexp(0) - math.log(num_samples)) / batch_size


def _iwae_right(log_weight: Tensor) -> Tensor:
    num_samples = len(log_weight)
    return (log_weight.logsumexp(0) - math.log(num_samples)).mean()


def _weights(setting: Setting, x: Tensor) -> Tensor:
    """log w of any batch at the same four standard draws for every datapoint, (4, B)."""
    here = Setting(setting.model, x, setting.num_data)
    offset = torch.tensor([-1.0, -0.4, 0.4, 1.0], dtype=torch.float64)[:, None, None]
    z = here.loc + here.log_scale.exp() * offset
    return here.model.given(x)(z) - here.q.log_prob(z)


def _batch_bounds(version: Version) -> Tensor:
    """Of eight digits, from 16 draws each of a q that is 1.8 times as wide as the best; 300 times."""
    setting = digits_setting()
    wide = diagonal_normal(setting.loc, 1.5 * setting.log_scale.exp())
    z = wide.sample(torch.Size([300 * 16]))
    log_weight = (setting.model.given(setting.x)(z) - wide.log_prob(z)).detach().reshape(300, 16, -1)
    return torch.stack([version(group) for group in log_weight])


def _iwae_stage(version: Version) -> Stage:
    setting = digits_setting()

    def spread(x: Tensor) -> Tensor:
        """The batch's mean, ascribed to each datapoint: repeating the batch must leave it."""
        return version(_weights(setting, x)).expand(len(x))

    return {
        "batch_repetition_changes_nothing": (spread, setting.x),
        "stays_below_the_evidence": (_batch_bounds(version), setting.log_evidence.mean()),
        "every_parameter_gets_gradient": (version(setting.log_weight(16)), setting),
    }


def _analytic_kl_wrong(log_likelihood: Tensor, log_prior: Tensor, log_q: Tensor, kl: Tensor) -> Tensor:
    return log_likelihood.logsumexp(0) - math.log(len(log_q)) - kl


def _analytic_kl_right(log_likelihood: Tensor, log_prior: Tensor, log_q: Tensor, kl: Tensor) -> Tensor:
    return (log_likelihood + log_prior - log_q).logsumexp(0) - math.log(len(log_q))


def _terms(setting: Setting, z: Tensor) -> tuple[Tensor, ...]:
    log_likelihood = setting.log_likelihood_per_pixel(z).sum(-1)
    return log_likelihood, setting.prior.log_prob(z), setting.q.log_prob(z), setting.kl_per_latent().sum(-1)


def _analytic_estimates(version: Version) -> Tensor:
    setting = digits_setting()
    return torch.stack([version(*_terms(setting, setting.q.sample((64,)))) for _ in range(200)]).detach()


def _analytic_stage(version: Version) -> Stage:
    setting = digits_setting()

    def at_fixed_draws(x: Tensor) -> Tensor:
        here = Setting(setting.model, x, setting.num_data)
        offset = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)[:, None, None]
        return version(*_terms(here, here.loc + here.log_scale.exp() * offset))

    return {
        "stays_below_the_evidence": (_analytic_estimates(version), setting.log_evidence),
        "batch_repetition_changes_nothing": (at_fixed_draws, setting.x),
        "every_parameter_gets_gradient": (version(*_terms(setting, setting.q.rsample((8,)))), setting),
    }


def _weights_of_the_loss_wrong(log_weight: Tensor) -> Tensor:
    loss = -log_weight
    share = loss.softmax(0).detach()
    return -(share * loss).sum(0)


def _weights_not_detached_wrong(log_weight: Tensor) -> Tensor:
    share = log_weight.softmax(0)
    return (share * log_weight).sum(0)


def _weighted_right(log_weight: Tensor) -> Tensor:
    share = log_weight.softmax(0).detach()
    return (share * log_weight).sum(0)


K = 2


@cache
def _one_eruption() -> tuple[float, float, float, float]:
    """A waiting time x and σ, for z ~ N(0, 1), x | z ~ N(z, σ²); an encoder's mean and scale, off on purpose."""
    return geyser_setting().x[0, 1].item(), 0.5, 0.0, 0.8


def _log_weight(mean: Tensor, epsilon: Tensor) -> Tensor:
    x, sigma, _, scale = _one_eruption()
    z = mean + scale * epsilon
    log_joint = normal(0.0, 1.0).log_prob(z) + normal(0.0, sigma).log_prob(x - z)
    return log_joint - normal(0.0, scale).log_prob(z - mean)


def _gradients(version: Version, num: int = 20_000) -> Tensor:
    """One gradient with respect to the encoder's mean from each of many pairs of draws."""
    mean = torch.full((num,), _one_eruption()[2], dtype=torch.float64, requires_grad=True)
    surrogate = version(_log_weight(mean, torch.randn(K, num, dtype=torch.float64)))
    return torch.autograd.grad(surrogate.sum(), mean)[0]


def _exact_gradient() -> Tensor:
    """The same of the expected bound: log ½(w₁ + w₂) by quadrature over both draws."""
    points, weights = gauss_hermite(60, K)
    mean = torch.tensor(_one_eruption()[2], dtype=torch.float64, requires_grad=True)
    first, second = _log_weight(mean, points.T)
    bound = weights @ (torch.logaddexp(first, second) - math.log(2))
    return torch.autograd.grad(bound, mean)[0]


def _weighted_stage(version: Version) -> Stage:
    setting = digits_setting()
    return {
        "gradient_is_unbiased": (_gradients(version), _exact_gradient()),
        "batch_repetition_changes_nothing": (lambda x: version(_weights(setting, x)), setting.x),
        "every_parameter_gets_gradient": (version(setting.log_weight(16)), setting),
    }


EXHIBITS = (
    Exhibit(
        "wrong-axis",
        5,
        "the importance-weighted bound of a batch",
        _wrong_axis_wrong,
        _iwae_right,
        _iwae_stage,
        lambda version: _batch_bounds(version).mean().item(),
        "“IWAE” of eight digits, nats per digit",
        "The easiest digits of the batch set the score of all of them: it is above the mean log evidence.",
        ("stays_below_the_evidence",),
        "Reduce over samples, the axis 0, and leave one number per datapoint.",
        "a relative of pyro-ppl/pyro issue 2220; the two axes are easily exchanged where samples are flattened",
    ),
    Exhibit(
        "summed-first",
        5,
        "the importance-weighted bound of a batch",
        _summed_first_wrong,
        _iwae_right,
        _iwae_stage,
        lambda version: _batch_bounds(version).mean().item(),
        "“IWAE” of eight digits, nats per digit",
        "A true bound, but one draw must be good for all data at once: it is looser than the one that was meant.",
        ("batch_repetition_changes_nothing",),
        "Log-sum-exp over samples for each datapoint, then sum over datapoints.",
        "pyro-ppl/pyro issues 3104 and 2220",
    ),
    Exhibit(
        "iwae-with-analytic-kl",
        5,
        "the importance-weighted bound with the KL in closed form",
        _analytic_kl_wrong,
        _analytic_kl_right,
        _analytic_stage,
        lambda version: _analytic_estimates(version).mean().item(),
        "“IWAE” of eight digits, nats per digit, K = 64",
        "A “bound” that climbs past the log evidence as K grows.",
        ("stays_below_the_evidence",),
        "For K > 1 the weight needs log q at the draw itself; no closed form stands in for it.",
        "AntixK/PyTorch-VAE issue 34 and pull request 53 (its first point)",
    ),
    Exhibit(
        "weights-of-the-loss",
        5,
        "the surrogate for the gradient of the importance-weighted bound",
        _weights_of_the_loss_wrong,
        _weighted_right,
        _weighted_stage,
        lambda version: _gradients(version).mean().item(),
        "mean gradient of the encoder's mean",
        "The worst draws teach the encoder most.",
        ("gradient_is_unbiased",),
        "The weights are the softmax of log w; the loss has the other sign.",
        "read in models/iwae.py of AntixK/PyTorch-VAE, where what is called a log weight is a loss",
    ),
    Exhibit(
        "weights-not-detached",
        5,
        "the surrogate for the gradient of the importance-weighted bound",
        _weights_not_detached_wrong,
        _weighted_right,
        _weighted_stage,
        lambda version: _gradients(version).mean().item(),
        "mean gradient of the encoder's mean",
        "The gradient of something, but not of the bound: the weights are moved as well.",
        ("gradient_is_unbiased",),
        "Detach the weights; or differentiate the log-mean-exp itself.",
        "AntixK/PyTorch-VAE issue 34 and pull request 53",
    ),
)
