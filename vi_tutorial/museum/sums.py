"""Room 1: objectives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from vi_tutorial.distributions import diagonal_normal
from vi_tutorial.museum._data import NUM_SAMPLES, Setting, digits_setting, encoder_gradients, exact_encoder_gradient
from vi_tutorial.museum._exhibit import Exhibit, Stage, Version

__all__ = ["EXHIBITS"]

# Each takes log p(x_d | z) of every pixel, (K, B, D), the KL of every latent, (B, L), and N.


def _kl_averaged_wrong(log_likelihood: Tensor, kl: Tensor, num_data: int) -> Tensor:
    return log_likelihood.sum(-1) - kl.mean(-1)


def _kl_per_pixel_wrong(log_likelihood: Tensor, kl: Tensor, num_data: int) -> Tensor:
    num_pixels = log_likelihood.shape[-1]
    return log_likelihood.sum(-1) - kl.sum(-1) / num_pixels


def _pixels_averaged_wrong(log_likelihood: Tensor, kl: Tensor, num_data: int) -> Tensor:
    return log_likelihood.mean(-1) - kl.sum(-1)


def _batch_weight_wrong(log_likelihood: Tensor, kl: Tensor, num_data: int) -> Tensor:
    weight = len(kl) / num_data
    return log_likelihood.mean(-1) - weight * kl.sum(-1)


def _bound_right(log_likelihood: Tensor, kl: Tensor, num_data: int) -> Tensor:
    return log_likelihood.sum(-1) - kl.sum(-1)


def _estimates(version: Version, setting: Setting, num_samples: int = NUM_SAMPLES) -> Tensor:
    z = setting.q.rsample((num_samples,))
    return version(setting.log_likelihood_per_pixel(z), setting.kl_per_latent(), setting.num_data)


def _kl_part(version: Version, setting: Setting, q: Independent, p: Independent) -> Tensor:
    """What the version makes of the KL: minus the bound, where the likelihood says nothing."""
    kl = kl_divergence(q.base_dist, p.base_dist)
    silent = torch.zeros(1, *setting.x.shape, dtype=torch.float64)
    return -version(silent, kl, setting.num_data)[0]


def _bound_stage(version: Version) -> Stage:
    setting = digits_setting()

    def at_the_mean(x: Tensor) -> Tensor:
        here = Setting(setting.model, x, setting.num_data)
        return version(here.log_likelihood_per_pixel(here.loc[None]), here.kl_per_latent(), here.num_data)[0]

    def divergence(q: Distribution, p: Distribution) -> Tensor:
        assert isinstance(q, Independent)
        assert isinstance(p, Independent)
        return _kl_part(version, setting, q, p)

    prior = diagonal_normal(torch.zeros(8, 5, dtype=torch.float64), torch.ones(5, dtype=torch.float64))
    return {
        "stays_below_the_evidence": (_estimates(version, setting).detach(), setting.log_evidence),
        "batch_repetition_changes_nothing": (at_the_mean, setting.x),
        "kl_is_a_divergence": (setting.q, prior, 1e-8, divergence),
        "every_parameter_gets_gradient": (_estimates(version, setting, 10), setting),
    }


def _bound(version: Version) -> float:
    return _estimates(version, digits_setting()).mean().item()


UNIT = "“ELBO” of eight digits, nats per digit"


def _double_scale_wrong(log_p: Tensor, log_q: Tensor, num_data: int) -> Tensor:
    scale = num_data / len(log_q)
    log_p, log_q = scale * log_p, scale * log_q
    return ((log_p - log_q).detach() * log_q).sum()


def _double_scale_right(log_p: Tensor, log_q: Tensor, num_data: int) -> Tensor:
    scale = num_data / len(log_q)
    return scale * ((log_p - log_q).detach() * log_q).sum()


def _gradient_stage(version: Version) -> Stage:
    return {"gradient_is_unbiased": (encoder_gradients(version, 4000), exact_encoder_gradient())}


EXHIBITS = (
    Exhibit(
        "kl-averaged",
        1,
        "the bound from a reconstruction term and a KL",
        _kl_averaged_wrong,
        _bound_right,
        _bound_stage,
        _bound,
        UNIT,
        "The “bound” lies above the log evidence it is meant to bound, and training cares too little about the prior.",
        ("stays_below_the_evidence",),
        "Sum the KL over the latent dimensions; average over datapoints only.",
        "keras-team/keras-io issue 270; mkusner/grammarVAE issue 2; maxhodak/keras-molecules issue 59",
    ),
    Exhibit(
        "kl-per-pixel",
        1,
        "the bound from a reconstruction term and a KL, normalised",
        _kl_per_pixel_wrong,
        _bound_right,
        _bound_stage,
        _bound,
        UNIT,
        "The KL all but disappears: reconstructions sharpen, and draws from the prior decode to noise.",
        ("stays_below_the_evidence",),
        "Divide both terms by the number of pixels, or neither.",
        "discussed in pytorch/examples issue 290 and pull request 296 (there the reconstruction was a mean as well)",
    ),
    Exhibit(
        "pixels-averaged",
        1,
        "the bound from a loss over pixels and a KL",
        _pixels_averaged_wrong,
        _bound_right,
        _bound_stage,
        _bound,
        UNIT,
        "The KL weighs 64 times too much: the cheapest code is none, and the posterior collapses to the prior.",
        ("stays_below_the_evidence",),
        "Sum the log-likelihood over the pixels.",
        "warned of in the README of orybkin/sigma-vae-pytorch; pytorch/examples issue 817",
    ),
    Exhibit(
        "kl-times-batch",
        1,
        "the bound with a minibatch correction",
        _batch_weight_wrong,
        _bound_right,
        _bound_stage,
        _bound,
        UNIT,
        "Two wrong scales that partly cancel: change the batch size and you have changed the model.",
        ("batch_repetition_changes_nothing", "stays_below_the_evidence"),
        "The KL of a datapoint's own latent belongs to that datapoint: no factor. Only a global latent is shared by N.",
        "AntixK/PyTorch-VAE issues 11, 40 and 56",
    ),
    Exhibit(
        "scale-twice",
        1,
        "the score-function surrogate for a minibatch",
        _double_scale_wrong,
        _double_scale_right,
        _gradient_stage,
        lambda version: encoder_gradients(version, 4000).mean().item(),
        "mean gradient of the encoder's slope",
        "The gradient is too large by N / B, 34 here, and an adaptive optimiser hides it.",
        ("gradient_is_unbiased",),
        "Scale the product once, not both of its factors.",
        "pyro-ppl/pyro issue 531",
    ),
)
