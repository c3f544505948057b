"""Room 3: draws."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from vi_tutorial.museum._data import NUM_SAMPLES, Pair, Setting, digits_setting, geyser, geyser_setting
from vi_tutorial.museum._exhibit import Exhibit, Stage, Version

__all__ = ["EXHIBITS"]


def _log_variance_wrong(mean: Tensor, log_variance: Tensor, epsilon: Tensor) -> Tensor:
    std = log_variance.exp()
    return mean + std * epsilon


def _small_noise_wrong(mean: Tensor, log_variance: Tensor, epsilon: Tensor) -> Tensor:
    epsilon_std = 0.01
    return mean + (0.5 * log_variance).exp() * epsilon_std * epsilon


def _sample_right(mean: Tensor, log_variance: Tensor, epsilon: Tensor) -> Tensor:
    return mean + (0.5 * log_variance).exp() * epsilon


def _draws(version: Version, setting: Setting, num_samples: int = NUM_SAMPLES) -> Tensor:
    epsilon = torch.randn(num_samples, *setting.loc.shape, dtype=torch.float64)
    return version(setting.loc, 2 * setting.log_scale, epsilon)


def _estimates(version: Version, setting: Setting, num_samples: int = NUM_SAMPLES) -> Tensor:
    """The reconstruction at the draws, minus the KL in closed form, as these programs have it."""
    reconstruction = setting.log_likelihood_per_pixel(_draws(version, setting, num_samples)).sum(-1)
    return reconstruction - setting.kl_per_latent().sum(-1)


def _noise_stage(version: Version) -> Stage:
    setting = digits_setting()
    loc, log_variance = setting.loc[0].detach(), 2 * setting.log_scale[0].detach()

    def sampler(num: int) -> Tensor:
        return version(loc, log_variance, torch.randn(num, len(loc), dtype=torch.float64))

    z = _draws(version, setting).detach()
    log_weight = setting.model.given(setting.x)(z) - setting.q.log_prob(z).detach()
    return {
        "samples_match_density": (Pair(sampler, lambda z: _first(setting).log_prob(z), len(loc)),),
        "stays_below_the_evidence": (_estimates(version, setting).detach(), setting.log_evidence),
        "bounds_are_ordered": (log_weight, setting.log_evidence),
        "every_parameter_gets_gradient": (_estimates(version, setting, 10), setting),
    }


def _first(setting: Setting) -> Distribution:
    q = setting.q
    return type(q)(type(q.base_dist)(q.base_dist.loc[0].detach(), q.base_dist.scale[0].detach()), 1)


def _bound(version: Version) -> float:
    return _estimates(version, digits_setting()).mean().item()


def _means_wrong(likelihood: Distribution) -> Tensor:
    return likelihood.mean


def _means_right(likelihood: Distribution) -> Tensor:
    return likelihood.sample()


def _new_data(version: Version, num: int) -> Tensor:
    model = geyser_setting().model
    with torch.no_grad():
        return version(model.likelihood(torch.randn(num, 1, dtype=torch.float64)))


def _means_stage(version: Version) -> Stage:
    marginal = geyser_setting().model.marginal()
    return {"samples_match_density": (Pair(lambda num: _new_data(version, num), marginal.log_prob, 2),)}


def _spread(version: Version) -> float:
    x = _new_data(version, 20_000)
    narrow = torch.linalg.eigvalsh(x.T.cov())[0].clamp(min=0)  # the variance across the main direction
    return (narrow / torch.linalg.eigvalsh(geyser().T.cov())[0]).sqrt().item()


EXHIBITS = (
    Exhibit(
        "log-variance-as-log-scale",
        3,
        "the reparameterised draw",
        _log_variance_wrong,
        _sample_right,
        _noise_stage,
        _bound,
        "“ELBO” of eight digits, nats per digit",
        "The draws follow one Normal and the KL scores another; where σ < 1, the decoder sees too little noise.",
        ("samples_match_density",),
        "exp(½ log σ²) is the standard deviation.",
        "rachtsingh/ibp_vae issue 3; keras-team/keras issue 3283",
    ),
    Exhibit(
        "noise-scaled-once",
        3,
        "the reparameterised draw, with an adjustable noise",
        _small_noise_wrong,
        _sample_right,
        _noise_stage,
        _bound,
        "“ELBO” of eight digits, nats per digit",
        "A bound too good to be true: on MNIST it was about 60 where 90 to 100 is right, says the report.",
        ("samples_match_density", "stays_below_the_evidence"),
        "Draw with the scale that the KL scores.",
        "keras-team/keras pull request 4211",
    ),
    Exhibit(
        "means-for-samples",
        3,
        "new data from the model",
        _means_wrong,
        _means_right,
        _means_stage,
        _spread,
        "spread across the main direction, as a share of the data's",
        "Smooth pictures called samples: what the decoder is unsure of is not in them.",
        ("samples_match_density",),
        "Draw from the likelihood; where you show its means, say so.",
        "read in the VAE example of pytorch/examples",
    ),
)
