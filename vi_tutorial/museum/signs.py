"""Room 4: formulas and reports."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from vi_tutorial.distributions import diagonal_normal
from vi_tutorial.museum._data import Setting, digits_setting, geyser, geyser_setting
from vi_tutorial.museum._exhibit import Exhibit, Stage, Version
from vi_tutorial.quadrature import gauss_hermite

__all__ = ["EXHIBITS"]


def _kl_log_scale_wrong(mean: Tensor, log_sigma: Tensor) -> Tensor:
    return -0.5 * (1 + log_sigma - mean**2 - (2 * log_sigma).exp()).sum(-1)


def _kl_log_scale_right(mean: Tensor, log_sigma: Tensor) -> Tensor:
    return -0.5 * (1 + 2 * log_sigma - mean**2 - (2 * log_sigma).exp()).sum(-1)


def _kl_stage(version: Version) -> Stage:
    setting = digits_setting()
    q = setting.q

    def divergence(q: Distribution, p: Distribution) -> Tensor:
        """Of any two: a KL is the same after an affine map, and one such map makes p standard Normal."""
        assert isinstance(q, Independent)
        assert isinstance(p, Independent)
        return version((q.mean - p.mean) / p.stddev, (q.stddev / p.stddev).log())

    estimates = setting.log_likelihood_per_pixel(q.rsample((4000,))).sum(-1) - version(setting.loc, setting.log_scale)
    narrower = diagonal_normal(setting.loc, setting.log_scale.exp() / 1.2)  # the digits' best diagonal posteriors

    def of_rows(numbers: Tensor) -> Tensor:
        return version(*numbers.chunk(2, dim=-1))

    return {
        "kl_is_a_divergence": (narrower, q, 1e-8, divergence),
        "stays_below_the_evidence": (estimates.detach(), setting.log_evidence),
        "batch_repetition_changes_nothing": (
            of_rows,
            torch.cat([setting.loc, setting.log_scale], -1).detach(),
        ),
        "every_parameter_gets_gradient": (estimates[:10], setting),
    }


def _kl(version: Version) -> float:
    setting = digits_setting()
    return version(setting.loc, setting.log_scale).mean().item()


def _nll_wrong(log_weight: Tensor) -> Tensor:
    return log_weight.logsumexp(0) - math.log(len(log_weight))


def _nll_right(log_weight: Tensor) -> Tensor:
    return -(log_weight.logsumexp(0) - math.log(len(log_weight)))


def _posterior_weights(x: Tensor) -> Tensor:
    """log w at a few draws from the exact posterior, where it is log p(x): (3, B)."""
    model = geyser_setting().model
    posterior = model.posterior(x)
    z = posterior.mean + torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)[:, None, None]
    return model.given(x)(z) - posterior.log_prob(z)


def _nll_stage(version: Version) -> Stage:
    setting = geyser_setting()
    log_weight = setting.log_weight(128 * 64).detach().reshape(64, 128, -1)
    return {
        "density_integrates_to_one": (lambda x: -version(_posterior_weights(x)), [(-6.0, 6.0)] * 2),
        "stays_below_the_evidence": (-version(log_weight), setting.log_evidence),
        "batch_repetition_changes_nothing": (lambda x: version(_posterior_weights(x)), geyser()[:8]),
    }


def _elbo_field_wrong(log_weight: Tensor) -> dict[str, Tensor]:
    loss = -log_weight.mean(0)
    return {"elbo": loss}


def _elbo_field_right(log_weight: Tensor) -> dict[str, Tensor]:
    elbo = log_weight.mean(0)
    return {"elbo": elbo}


def _field_stage(version: Version) -> Stage:
    setting = digits_setting()
    groups = setting.log_weight().reshape(20, 200, -1)
    return {
        "stays_below_the_evidence": (version(groups)["elbo"].detach(), setting.log_evidence),
        "batch_repetition_changes_nothing": (lambda x: version(_digit_weights(x))["elbo"], setting.x),
        "every_parameter_gets_gradient": (version(setting.log_weight(20))["elbo"], setting),
    }


def _digit_weights(x: Tensor) -> Tensor:
    setting = digits_setting()
    here = Setting(setting.model, x, setting.num_data)
    z = here.loc + torch.tensor([-0.3, 0.0, 0.3], dtype=torch.float64)[:, None, None]
    return here.model.given(x)(z) - here.q.log_prob(z)


def _elbo_as_likelihood_wrong(log_weight: Tensor, share: Tensor) -> Tensor:
    return share @ log_weight


def _elbo_as_likelihood_right(log_weight: Tensor, share: Tensor) -> Tensor:
    return (share.log()[:, None] + log_weight).logsumexp(0)


def _spread_out(x: Tensor) -> tuple[Tensor, Tensor]:
    """log w under an encoder half as wide again as the posterior, at quadrature points, and the share of each."""
    model = geyser_setting().model
    points, weights = gauss_hermite(60)
    exact = model.posterior(x)
    q = diagonal_normal(exact.mean, 1.5 * exact.stddev)
    z = q.mean + q.stddev * points[:, None]
    return model.given(x)(z) - q.log_prob(z), weights


def _likelihood_stage(version: Version) -> Stage:
    log_weight, share = _spread_out(geyser_setting().x)
    return {
        "density_integrates_to_one": (lambda x: version(*_spread_out(x)), [(-6.0, 6.0)] * 2),
        "stays_below_the_evidence": (version(log_weight, share).expand(100, -1), geyser_setting().log_evidence),
        "batch_repetition_changes_nothing": (lambda x: version(*_spread_out(x)), geyser()[:8]),
    }


EXHIBITS = (
    Exhibit(
        "half-a-logarithm",
        4,
        "the KL from N(mean, σ²) to N(0, 1)",
        _kl_log_scale_wrong,
        _kl_log_scale_right,
        _kl_stage,
        _kl,
        "“KL” of eight digits, nats per digit",
        "A “KL” below zero where σ is a little under one; its smallest value is not at the prior.",
        ("kl_is_a_divergence", "stays_below_the_evidence"),
        "log σ² = 2 log σ: decide once which of the two the network gives, and name it so.",
        "keras-team/keras pull request 3300 (its fourth point); keras-team/keras issue 3283",
    ),
    Exhibit(
        "nll-sign",
        4,
        "the negative log-likelihood by importance sampling",
        _nll_wrong,
        _nll_right,
        _nll_stage,
        lambda version: version(geyser_setting().log_weight(1000)).mean().item(),
        "“NLL” of six eruptions, nats each",
        "Better models get the larger numbers, and a table sorted by it is upside down. A test had enforced the sign.",
        ("density_integrates_to_one", "stays_below_the_evidence"),
        "A name says its sign: nll = −log p.",
        "read in get_nll of pythae (clementchadebec/benchmark_VAE)",
    ),
    Exhibit(
        "elbo-that-is-a-loss",
        4,
        "what a step of inference reports",
        _elbo_field_wrong,
        _elbo_field_right,
        _field_stage,
        lambda version: version(digits_setting().log_weight(500))["elbo"].mean().item(),
        "field “elbo”, eight digits, nats per digit",
        "A field called elbo that falls as things get better, and lies far above the log evidence.",
        ("stays_below_the_evidence",),
        "Call a loss a loss; write the minus once, in the training step.",
        "read in MFVIInfo.elbo of blackjax and a docstring of Pyro's Trace_ELBO; AntixK/PyTorch-VAE issue 68",
    ),
    Exhibit(
        "elbo-as-likelihood",
        4,
        "the held-out log-likelihood",
        _elbo_as_likelihood_wrong,
        _elbo_as_likelihood_right,
        _likelihood_stage,
        lambda version: version(*_spread_out(geyser())).mean().item(),
        "“log-likelihood” of Old Faithful, nats per eruption",
        "A score that punishes a poor encoder as if it were a poor model.",
        ("density_integrates_to_one",),
        "Estimate log p(x): average the weights before the logarithm, with many samples; or call the number an ELBO.",
        "read in the VAE example of pytorch/examples and in intro_dgm",
    ),
)
