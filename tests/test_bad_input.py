"""Bad input meets an error that names the argument, says what came, and says what was expected.

One table: a call, the type of its error, and three patterns that its message must hold, in that order: the
argument, what was received, what was expected. Each row is a way in which a reader's first attempt goes wrong.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Normal, constraints

import vi_tutorial
from vi_tutorial import annealed, checkers, checkpoint, checks, museum, plots, runs, training
from vi_tutorial.batch_and_match import batch_and_match, match
from vi_tutorial.data import dequantise
from vi_tutorial.diffusion import Diffusion, LevelsHead, cosine_log_snr, linear_log_snr
from vi_tutorial.distributions import (
    bernoulli,
    binomial,
    continuous_bernoulli,
    covariance,
    diagonal_normal,
    discretised_logistic,
    discretised_normal,
    full_normal,
    mixture_normal,
)
from vi_tutorial.elbo import (
    cubo,
    dataset_total,
    draw,
    elbo,
    elbo_analytic_kl,
    elbo_enumerated,
    elbo_leave_one_out,
    elbo_score_function,
    elbo_sticking_the_landing,
    iwae,
    iwae_doubly_reparameterised,
    renyi,
    weigh,
)
from vi_tutorial.em import e_step, em, m_step
from vi_tutorial.evaluation import (
    active_units,
    best_in_family,
    effective_sample_size,
    elbo_surgery,
    gap_ledger,
    importance_sampling,
    pareto_k,
    predictive_check,
    rate_distortion,
)
from vi_tutorial.families import (
    Fixed,
    FullRankNormal,
    LowRankNormal,
    MeanFieldNormal,
    PerDatapoint,
    SemiAmortised,
    VampPrior,
    standard_normal,
)
from vi_tutorial.files import memory_mapped
from vi_tutorial.frozen import is_normal, noise_dim, reparameterise, standardised_noise
from vi_tutorial.inference import fit_posterior, fit_posterior_stochastic, laplace
from vi_tutorial.latents import Space, examine, unconstrained
from vi_tutorial.mnist import DataFileError, binarise, mnist
from vi_tutorial.models import (
    BetaBernoulli,
    GaussianMixture,
    LatentVariableModel,
    LinearGaussian,
    conjugate_normal,
    factor_analysis,
    gaussian_mixture,
    linear_regression,
    probabilistic_pca,
    probabilistic_pca_mle,
)
from vi_tutorial.networks import (
    BernoulliHead,
    BinomialHead,
    ContinuousBernoulliHead,
    DiagonalNormalHead,
    DiscretisedLogisticHead,
    DiscretisedNormalHead,
    FullNormalHead,
    MixtureNormalHead,
    NormalHead,
    convolutional_decoder,
    convolutional_encoder,
    mlp,
)
from vi_tutorial.objectives import (
    beta_objective,
    free_bits_objective,
    kl_per_latent,
    linear_schedule,
    relaxed_objective,
    tempered,
)
from vi_tutorial.posterior import drift_between, linear_response, pareto_k_threshold, weigh_draws
from vi_tutorial.quadrature import expected_elbo, gauss_hermite, posterior_on_grid
from vi_tutorial.runs.config import claim
from vi_tutorial.runs.pair import rows
from vi_tutorial.runs.processes import placed
from vi_tutorial.softened import defensive_mixture, noised, relaxed

pytestmark = pytest.mark.usefixtures("_float64")

NAN, INF = math.nan, math.inf
REAL, POSITIVE = constraints.real, constraints.positive
ESTIMATORS = (
    draw,
    elbo_sticking_the_landing,
    elbo_score_function,
    elbo_leave_one_out,
    iwae_doubly_reparameterised,
    importance_sampling,
)


class Case(NamedTuple):
    call: Callable[[], Any]
    error: type[Exception]
    argument: str
    received: str
    expected: str


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def q(*batch: int) -> Normal:
    return Normal(torch.zeros(batch), torch.ones(batch))


def joint(z: Tensor) -> Tensor:
    return -z.square()


def level() -> nn.Parameter:
    return nn.Parameter(torch.tensor(0.0))


def fit(**changed: Any) -> training.History:
    """A sound call of ``training.fit``, but for one argument."""
    parameter = level()
    arguments: dict[str, Any] = {
        "objective": lambda x: -((x - parameter) ** 2),
        "optimiser": torch.optim.SGD([parameter], lr=0.1),
        "data": torch.ones(3),
        "num_steps": 2,
    }
    return training.fit(**{**arguments, **changed})


def linear_gaussian(**changed: Any) -> LinearGaussian:
    arguments: dict[str, Any] = {"weight": torch.ones(3, 2), "loc": torch.zeros(3), "noise_scale": torch.tensor(1.0)}
    return LinearGaussian(**{**arguments, **changed})


def mixture(**changed: Any) -> GaussianMixture:
    arguments: dict[str, Any] = {
        "probs": f64(0.5, 0.5),
        "loc": torch.tensor([[0.0, 0.0], [2.0, 1.0]]),
        "covariance_matrix": torch.eye(2).repeat(2, 1, 1),
    }
    return GaussianMixture(**{**arguments, **changed})


def vae(head: Any, *arguments: Any) -> LatentVariableModel:
    """Two latents, three pixels, this likelihood."""
    return LatentVariableModel(standard_normal(2), head(mlp(2, 4, head.num_outputs(3)), 3, *arguments))


class Zero(nn.Module):
    """A denoiser that guesses zero."""

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return 0 * z


def chain() -> Diffusion:
    return Diffusion(Zero(), linear_log_snr(), 3, LevelsHead(torch.tensor([-1.0, 1.0]), 8.0), 2)


def ladder(batch: int) -> annealed.Ladder:
    return annealed.Ladder(torch.tensor([0.0, 1.0]), torch.ones(1, batch), 2)


def table() -> Tensor:
    """Eight datapoints in two columns."""
    return torch.tensor(
        [[0.0, 1.0], [1.0, 0.0], [1.0, 3.0], [2.0, 2.0], [5.0, 1.0], [4.0, 7.0], [6.0, 5.0], [3.0, 4.0]]
    )


def halves(size: int = 8) -> Categorical:
    return Categorical(torch.full((size, 2), 0.5))


def normal(*shape: int) -> Any:
    return diagonal_normal(torch.zeros(shape), torch.ones(()))


def image_model() -> LatentVariableModel:
    return LatentVariableModel(standard_normal(2), BernoulliHead(nn.Linear(2, 3), 3))


def quadratic(z: dict[str, Tensor]) -> Tensor:
    return -0.5 * z["a"].square()


def ax() -> Axes:
    return Figure().subplots()


CASES: dict[str, Case] = {
    # --- distributions ---
    "diagonal_normal: a list": Case(lambda: diagonal_normal([0.0], f64(1)), TypeError, "loc", "list", r"torch\.Tensor"),
    "diagonal_normal: integers": Case(
        lambda: diagonal_normal(torch.zeros(2, dtype=torch.long), f64(1, 1)),
        TypeError,
        "loc",
        "int64",
        "floating-point",
    ),
    "diagonal_normal: a number for a scale": Case(
        lambda: diagonal_normal(torch.zeros(2), 1.0), TypeError, "scale", "float", r"torch\.Tensor"
    ),
    "diagonal_normal: nan": Case(
        lambda: diagonal_normal(f64(0, NAN), f64(1, 1)), ValueError, "loc", r"nan at index \(1,\)", "finite"
    ),
    "diagonal_normal: infinite scale": Case(
        lambda: diagonal_normal(f64(0, 0), f64(1, INF)), ValueError, "scale", r"inf at index \(1,\)", "finite"
    ),
    "diagonal_normal: zero scale": Case(
        lambda: diagonal_normal(f64(0, 0), f64(1, 0)), ValueError, "scale", "", "GreaterThan|positive"
    ),
    "diagonal_normal: negative scale": Case(
        lambda: diagonal_normal(f64(0, 0), f64(1, -2)), ValueError, "scale", "", "GreaterThan|positive"
    ),
    "diagonal_normal: no event": Case(
        lambda: diagonal_normal(torch.tensor(0.0), torch.tensor(1.0)), ValueError, "loc", r"\(\)", "one dimension"
    ),
    "diagonal_normal: a column of scales": Case(
        lambda: diagonal_normal(torch.zeros(5, 3), torch.ones(5, 1)), ValueError, "scale", r"\(5, 1\)", r"\(5, 3\)"
    ),
    "diagonal_normal: scales that would make a batch": Case(
        lambda: diagonal_normal(torch.zeros(3), torch.ones(5, 3)), ValueError, "scale", r"\(5, 3\)", r"\(3,\)"
    ),
    "full_normal: not lower-triangular": Case(
        lambda: full_normal(f64(0, 0), torch.ones(2, 2)), ValueError, "scale_tril", "", "LowerCholesky|lower"
    ),
    "full_normal: negative diagonal": Case(
        lambda: full_normal(f64(0, 0), -torch.eye(2)), ValueError, "scale_tril", "", "LowerCholesky|positive"
    ),
    "full_normal: not square": Case(
        lambda: full_normal(f64(0, 0), torch.ones(2, 3)), ValueError, "scale_tril", r"\(2, 3\)", r"\(2, 2\)"
    ),
    "full_normal: another dimension": Case(
        lambda: full_normal(torch.zeros(4, 2), torch.eye(3)), ValueError, "scale_tril", r"\(3, 3\)", r"\(4, 2, 2\)"
    ),
    "full_normal: nan": Case(
        lambda: full_normal(f64(0, 0), torch.eye(2) * NAN), ValueError, "scale_tril", "nan", "finite"
    ),
    "full_normal: no event": Case(
        lambda: full_normal(torch.tensor(0.0), torch.eye(1)), ValueError, "loc", r"\(\)", "one dimension"
    ),
    "bernoulli: no event": Case(lambda: bernoulli(torch.tensor(0.0)), ValueError, "logits", r"\(\)", "one dimension"),
    "bernoulli: nan": Case(lambda: bernoulli(f64(NAN)), ValueError, "logits", "nan", "finite"),
    "bernoulli: an array of NumPy": Case(
        lambda: bernoulli(np.zeros(3)), TypeError, "logits", "ndarray", r"torch\.Tensor"
    ),
    "bernoulli: grey levels": Case(
        lambda: bernoulli(f64(0, 0)).log_prob(f64(0.5, 1)), ValueError, "value", r"0\.5", "Boolean"
    ),
    # --- elbo: drawing ---
    **{
        f"{f.__name__}: {number} samples": Case(
            lambda f=f, number=number: f(joint, q(3), number), ValueError, "num_samples", str(number), "at least"
        )
        for f in ESTIMATORS
        for number in (0, -1)
    },
    **{
        f"{f.__name__}: {number!r} samples": Case(
            lambda f=f, number=number: f(joint, q(3), number),
            TypeError,
            "num_samples",
            type(number).__name__,
            "int",
        )
        for f in ESTIMATORS
        for number in (2.0, "3", True)
    },
    **{
        f"{f.__name__}: a family that was not called": Case(
            lambda f=f: f(joint, MeanFieldNormal(2), 50), TypeError, "q", "MeanFieldNormal", r"torch\.distributions"
        )
        for f in ESTIMATORS
    },
    **{
        f"{f.__name__}: an empty batch": Case(
            lambda f=f: f(joint, q(0), 50), ValueError, "q", r"\(0,\)", "at least one datapoint"
        )
        for f in ESTIMATORS
    },
    **{
        f"{f.__name__}: a column where a vector belongs": Case(
            lambda f=f: f(lambda z: joint(z)[..., None], q(4), 50),
            ValueError,
            "log_joint",
            r"\(50, 4, 1\)",
            r"\(50, 4\)",
        )
        for f in ESTIMATORS
    },
    **{
        f"{f.__name__}: summed over the batch": Case(
            lambda f=f: f(lambda z: joint(z).sum(-1), q(4), 50), ValueError, "log_joint", r"\(50,\)", r"\(50, 4\)"
        )
        for f in ESTIMATORS
    },
    **{
        f"{f.__name__}: averaged over the samples": Case(
            lambda f=f: f(lambda z: joint(z).mean(0), q(4), 50), ValueError, "log_joint", r"\(4,\)", r"\(50, 4\)"
        )
        for f in ESTIMATORS
    },
    **{
        f"{f.__name__}: nan": Case(
            lambda f=f: f(lambda z: joint(z) * NAN, q(4), 50),
            ValueError,
            "log_joint",
            r"NaN at index \(0, 0\)",
            "look at",
        )
        for f in ESTIMATORS
    },
    **{
        f"{f.__name__}: a joint that returns a float": Case(
            lambda f=f: f(lambda z: 1.0, q(4), 50), TypeError, "log_joint", "float", r"torch\.Tensor"
        )
        for f in ESTIMATORS
    },
    **{
        f"{f.__name__}: no rsample": Case(
            lambda f=f: f(joint, Bernoulli(logits=torch.zeros(3)), 50), ValueError, "q", "Bernoulli", "rsample"
        )
        for f in (draw, elbo_sticking_the_landing, iwae_doubly_reparameterised)
    },
    "elbo_leave_one_out: one sample": Case(
        lambda: elbo_leave_one_out(joint, q(3), 1), ValueError, "num_samples", "1", "at least 2"
    ),
    "draw: a q without an event": Case(
        lambda: draw(lambda z: joint(z).sum(-1), q(5, 2), 3), ValueError, "log_joint", r"\(3, 5\)", "event_shape"
    ),
    "weigh: a string for q": Case(
        lambda: weigh(joint, "q", torch.zeros(2, 3)), TypeError, "q", "str", r"torch\.distributions"
    ),
    "weigh: a list for z": Case(lambda: weigh(joint, q(3), [0.0]), TypeError, "z", "list", r"torch\.Tensor"),
    "weigh: a column for z": Case(
        lambda: weigh(joint, q(3), torch.zeros(5, 3, 1)), ValueError, "z", r"\(5, 3, 1\)", r"\(K, 3,\)"
    ),
    "weigh: no sample dimension": Case(
        lambda: weigh(joint, q(3), torch.zeros(3)), ValueError, "z", r"\(3,\)", r"num_samples, \*batch"
    ),
    "weigh: z of another size": Case(
        lambda: weigh(joint, q(3), torch.zeros(5, 1)), ValueError, "z", r"\(5, 1\)", r"\(K, 3,\)"
    ),
    "elbo_analytic_kl: a tensor for the prior": Case(
        lambda: elbo_analytic_kl(joint, q(3), torch.zeros(3)), TypeError, "prior", "Tensor", r"torch\.distributions"
    ),
    "elbo_analytic_kl: a column of priors": Case(
        lambda: elbo_analytic_kl(joint, q(3), q(3, 1)), ValueError, "prior", r"\(3, 1\)", r"\(3,\)"
    ),
    "elbo_analytic_kl: another event": Case(
        lambda: elbo_analytic_kl(joint, q(3), diagonal_normal(f64(0), f64(1))), ValueError, "prior", r"\(1,\)", r"\(\)"
    ),
    "elbo_enumerated: a continuous latent": Case(
        lambda: elbo_enumerated(joint, q(3)), ValueError, "q", "Normal", "finitely many states"
    ),
    "elbo_enumerated: a family": Case(
        lambda: elbo_enumerated(joint, nn.Identity()), TypeError, "q", "Identity", "Distribution"
    ),
    "elbo_enumerated: a joint summed over the states": Case(
        lambda: elbo_enumerated(lambda z: z.double().sum(0), halves()), ValueError, "log_joint", r"\(8,\)", r"\(2, 8\)"
    ),
    "elbo_enumerated: nan": Case(
        lambda: elbo_enumerated(lambda z: z * NAN, halves()), ValueError, "log_joint", "NaN at index", "log density"
    ),
    # --- elbo: reducing ---
    **{
        f"{f.__name__}: a list": Case(lambda f=f: f([0.0]), TypeError, "log_weight", "list", r"torch\.Tensor")
        for f in (elbo, iwae, cubo)
    },
    **{
        f"{f.__name__}: one number": Case(
            lambda f=f: f(torch.tensor(0.0)), ValueError, "log_weight", r"\(\)", r"\(num_samples, \*batch\)"
        )
        for f in (elbo, iwae, cubo)
    },
    **{
        f"{f.__name__}: no samples": Case(
            lambda f=f: f(torch.zeros(0, 3)), ValueError, "log_weight", r"\(0, 3\)", "at least one sample"
        )
        for f in (elbo, iwae, cubo)
    },
    **{
        f"{f.__name__}: no datapoints": Case(
            lambda f=f: f(torch.zeros(3, 0)), ValueError, "log_weight", r"\(3, 0\)", "at least one sample and datapoint"
        )
        for f in (elbo, iwae, cubo)
    },
    **{
        f"{f.__name__}: nan": Case(
            lambda f=f: f(torch.tensor([[0.0], [NAN]])), ValueError, "log_weight", r"NaN at index \(1, 0\)", "look at"
        )
        for f in (elbo, iwae, cubo)
    },
    "renyi: infinite order": Case(lambda: renyi(torch.zeros(2), INF), ValueError, "alpha", "inf", "finite"),
    "renyi: nan for an order": Case(lambda: renyi(torch.zeros(2), NAN), ValueError, "alpha", "nan", "finite"),
    "renyi: a string": Case(lambda: renyi(torch.zeros(2), "1"), TypeError, "alpha", "str", "number"),
    "cubo: order below one": Case(lambda: cubo(torch.zeros(2), 0.5), ValueError, "order", r"0\.5", "at least 1"),
    "cubo: infinite order": Case(lambda: cubo(torch.zeros(2), INF), ValueError, "order", "inf", "finite"),
    "cubo: nan for an order": Case(lambda: cubo(torch.zeros(2), NAN), ValueError, "order", "nan", "at least 1"),
    "cubo: a string": Case(lambda: cubo(torch.zeros(2), "2"), TypeError, "order", "str", "number"),
    "dataset_total: fewer data than the batch": Case(
        lambda: dataset_total(torch.zeros(5), 4), ValueError, "num_data", "4", "at least 5"
    ),
    "dataset_total: a fraction of data": Case(
        lambda: dataset_total(torch.zeros(5), 10.0), TypeError, "num_data", "float", "int"
    ),
    "dataset_total: a bound that was already averaged": Case(
        lambda: dataset_total(torch.tensor(-1.0), 10), ValueError, "bound", r"\(\)", r"\(B,\)"
    ),
    "dataset_total: samples still there": Case(
        lambda: dataset_total(torch.zeros(2, 5), 10), ValueError, "bound", r"\(2, 5\)", r"\(B,\)"
    ),
    "dataset_total: an empty batch": Case(
        lambda: dataset_total(torch.zeros(0), 10), ValueError, "bound", r"\(0,\)", r"\(B,\)"
    ),
    # --- families and networks ---
    **{
        f"{f.__name__}: dimension {dim!r}": Case(lambda f=f, dim=dim: f(dim), error, "dim", received, expected)
        for f in (standard_normal, MeanFieldNormal, FullRankNormal, LowRankNormal)
        for dim, error, received, expected in ((0, ValueError, "0", "at least 1"), (2.0, TypeError, "float", "int"))
    },
    "LowRankNormal: rank zero": Case(lambda: LowRankNormal(3, 0), ValueError, "rank", "0", "at least 1"),
    "Fixed: not a constructor": Case(lambda: Fixed(q(2)), TypeError, "make", "Normal", "constructor"),
    "Fixed: a number for a parameter": Case(
        lambda: Fixed(Normal, loc=0.0, scale=torch.tensor(1.0)), TypeError, "loc", "float", r"torch\.Tensor"
    ),
    "Fixed: nan": Case(lambda: Fixed(Normal, loc=f64(NAN), scale=f64(1)), ValueError, "loc", "nan", "finite"),
    "Fixed: an empty parameter": Case(
        lambda: Fixed(Normal, loc=torch.zeros(0), scale=torch.ones(0)), ValueError, "loc", r"\(0,\)", "not be empty"
    ),
    "mlp: one size": Case(lambda: mlp(3), ValueError, "sizes", r"\(3,\)", "input and an output"),
    "mlp: no units": Case(lambda: mlp(3, 0, 1), ValueError, "sizes", "0", "at least 1"),
    "mlp: a fraction of a unit": Case(lambda: mlp(3, 1.5), TypeError, "sizes", "float", "int"),
    "head: a function for a network": Case(
        lambda: DiagonalNormalHead(lambda x: x, 2), TypeError, "network", "function", r"torch\.nn\.Module"
    ),
    "head: no dimension": Case(lambda: BernoulliHead(nn.Identity(), 0), ValueError, "dim", "0", "at least 1"),
    "head: means without scales": Case(
        lambda: DiagonalNormalHead(nn.Identity(), 3)(torch.zeros(5, 3)), ValueError, "network", r"\(5, 3\)", "6 numbers"
    ),
    "head: a diagonal where a factor belongs": Case(
        lambda: FullNormalHead(nn.Identity(), 2)(torch.zeros(5, 4)), ValueError, "network", r"\(5, 4\)", "5 numbers"
    ),
    "head: too many logits": Case(
        lambda: BernoulliHead(nn.Identity(), 2)(torch.zeros(5, 3)), ValueError, "network", r"\(5, 3\)", "2 numbers"
    ),
    # --- models ---
    "LatentVariableModel: a distribution for a prior": Case(
        lambda: LatentVariableModel(q(), nn.Identity()), TypeError, "prior", "Normal", r"torch\.nn\.Module.*Fixed"
    ),
    "LatentVariableModel: a function for a likelihood": Case(
        lambda: LatentVariableModel(standard_normal(1), lambda z: z), TypeError, "likelihood", "function", "Module"
    ),
    "given: a list": Case(lambda: image_model().given([0.0]), TypeError, "x", "list", r"torch\.Tensor"),
    "given: integers": Case(
        lambda: image_model().given(torch.zeros(2, 3, dtype=torch.long)), TypeError, "x", "int64", "floating-point"
    ),
    "given: nan": Case(
        lambda: image_model().given(torch.full((2, 3), NAN)), ValueError, "x", r"nan at index \(0, 0\)", "finite"
    ),
    "given: an empty batch": Case(
        lambda: image_model().given(torch.zeros(0, 3)), ValueError, "x", r"\(0, 3\)", "not be empty"
    ),
    "given: one image too many": Case(
        lambda: image_model().given(torch.zeros(3, 3))(torch.zeros(5, 2, 2)), ValueError, "x", r"\(3, 3\)", r"\(2, 3\)"
    ),
    "given: one image for a batch": Case(
        lambda: image_model().given(torch.zeros(3))(torch.zeros(5, 2, 2)), ValueError, "x", r"\(3,\)", r"\(2, 3\)"
    ),
    "given: a column of pixels": Case(
        lambda: image_model().given(torch.zeros(2, 1))(torch.zeros(5, 2, 2)), ValueError, "x", r"\(2, 1\)", r"\(2, 3\)"
    ),
    "given: grey levels": Case(
        lambda: image_model().given(torch.full((2, 3), 0.5))(torch.zeros(5, 2, 2)),
        ValueError,
        "x",
        r"0\.5 at index \(0, 0\)",
        "support of the likelihood",
    ),
    "LinearGaussian: a vector of weights": Case(
        lambda: linear_gaussian(weight=torch.ones(3)), ValueError, "weight", r"\(3,\)", "2 dimension"
    ),
    "LinearGaussian: an offset per latent": Case(
        lambda: linear_gaussian(loc=torch.zeros(2)), ValueError, "loc", r"\(2,\)", r"\(3,\)"
    ),
    "LinearGaussian: a column of noises": Case(
        lambda: linear_gaussian(noise_scale=torch.ones(3, 1)), ValueError, "noise_scale", r"\(3, 1\)", r"\(3,\)"
    ),
    "LinearGaussian: a number for a noise": Case(
        lambda: linear_gaussian(noise_scale=1.0), TypeError, "noise_scale", "float", r"torch\.Tensor"
    ),
    "LinearGaussian: no noise": Case(
        lambda: linear_gaussian(noise_scale=torch.tensor(0.0)), ValueError, "noise_scale", r"0\.0", "positive"
    ),
    "LinearGaussian: negative prior scale": Case(
        lambda: linear_gaussian(prior_scale=f64(1, -1)), ValueError, "prior_scale", r"-1\.0", "positive"
    ),
    "LinearGaussian: a prior of another dimension": Case(
        lambda: linear_gaussian(prior_loc=f64(1, 1, 1)), ValueError, "prior_loc", r"\(3,\)", r"\(2,\)"
    ),
    "LinearGaussian: nan": Case(
        lambda: linear_gaussian(weight=torch.full((3, 2), NAN)), ValueError, "weight", "nan", "finite"
    ),
    "posterior: data of another dimension": Case(
        lambda: linear_gaussian().posterior(torch.zeros(5, 2)), ValueError, "x", r"\(5, 2\)", r"\(5, 3\)"
    ),
    "posterior: a column": Case(
        lambda: linear_gaussian().posterior(torch.zeros(3, 1)), ValueError, "x", r"\(3, 1\)", r"\(3, 3\)"
    ),
    "posterior: nan": Case(
        lambda: linear_gaussian().posterior(f64(0, NAN, 0)), ValueError, "x", r"nan at index \(1,\)", "finite"
    ),
    "log_evidence: a list": Case(
        lambda: linear_gaussian().log_evidence([0.0, 0.0, 0.0]), TypeError, "x", "list", r"torch\.Tensor"
    ),
    "log_evidence: an empty batch": Case(
        lambda: linear_gaussian().log_evidence(torch.zeros(0, 3)), ValueError, "x", r"\(0, 3\)", "not be empty"
    ),
    "conjugate_normal: no data": Case(lambda: conjugate_normal(0), ValueError, "num_data", "0", "at least 1"),
    "conjugate_normal: no noise": Case(
        lambda: conjugate_normal(1, noise_scale=0.0), ValueError, "noise_scale", r"0\.0", "positive"
    ),
    "conjugate_normal: nan": Case(lambda: conjugate_normal(1, prior_loc=NAN), ValueError, "prior_loc", "nan", "finite"),
    "linear_regression: a string": Case(
        lambda: linear_regression(torch.eye(2), "1", 1.0), TypeError, "prior_scale", "str", "number"
    ),
    "linear_regression: infinite prior": Case(
        lambda: linear_regression(torch.eye(2), INF, 1.0), ValueError, "prior_scale", "inf", "finite positive"
    ),
    "linear_regression: one column as a vector": Case(
        lambda: linear_regression(torch.ones(5), 1.0, 1.0), ValueError, "design", r"\(5,\)", "2 dimension"
    ),
    "linear_regression: a column of responses": Case(
        lambda: linear_regression(torch.ones(5, 2), 1.0, 1.0).log_evidence(torch.zeros(5, 1)),
        ValueError,
        "x",
        r"\(5, 1\)",
        r"\(5, 5\)",
    ),
    "probabilistic_pca: no latents": Case(lambda: probabilistic_pca(3, 0), ValueError, "latent_dim", "0", "at least 1"),
    "probabilistic_pca_mle: as many latents as data": Case(
        lambda: probabilistic_pca_mle(torch.randn(9, 3), 3), ValueError, "latent_dim", "3", "below.* 3"
    ),
    "probabilistic_pca_mle: a vector": Case(
        lambda: probabilistic_pca_mle(torch.randn(9), 1), ValueError, "x", r"\(9,\)", "2 dimension"
    ),
    "probabilistic_pca_mle: nan": Case(
        lambda: probabilistic_pca_mle(torch.full((9, 3), NAN), 1), ValueError, "x", "nan", "finite"
    ),
    "probabilistic_pca_mle: constant data": Case(
        lambda: probabilistic_pca_mle(torch.ones(9, 3), 1), ValueError, "x", r"0\.0e", "vary in more than"
    ),
    "BetaBernoulli: no flips": Case(lambda: BetaBernoulli(0), ValueError, "num_data", "0", "at least 1"),
    "BetaBernoulli: no pseudo-count": Case(lambda: BetaBernoulli(3, a=0.0), ValueError, "a", r"0\.0", "positive"),
    "BetaBernoulli: a string": Case(lambda: BetaBernoulli(3, b="1"), TypeError, "b", "str", "number"),
    "BetaBernoulli: half a head": Case(
        lambda: BetaBernoulli(2).posterior(f64(0.5, 1)), ValueError, "x", "other values", "zeros and ones"
    ),
    "BetaBernoulli: three flips for two": Case(
        lambda: BetaBernoulli(2).log_evidence(f64(0, 1, 1)), ValueError, "x", r"\(3,\)", r"\(2,\)"
    ),
    "BetaBernoulli: booleans": Case(
        lambda: BetaBernoulli(2).log_evidence(torch.tensor([True, False])), TypeError, "x", "bool", "floating-point"
    ),
    "LinearGaussian.elbo: a q that is not normal": Case(
        lambda: linear_gaussian().elbo(torch.zeros(5, 3), halves(5)), TypeError, "normal", "Categorical", "multivariate"
    ),
    "LinearGaussian.elbo: a q of another latent": Case(
        lambda: linear_gaussian().elbo(torch.zeros(5, 3), normal(5, 3)), ValueError, "q.mean", r"\(5, 3\)", r"\(5, 2\)"
    ),
    "LinearGaussian.elbo: one q for all": Case(
        lambda: linear_gaussian().elbo(torch.zeros(5, 3), normal(2)), ValueError, "q.mean", r"\(2,\)", r"\(5, 2\)"
    ),
    "LinearGaussian.elbo: nan": Case(
        lambda: linear_gaussian().elbo(torch.full((5, 3), NAN), normal(5, 2)), ValueError, "x", "nan", "finite"
    ),
    "factor_analysis: no latents": Case(lambda: factor_analysis(3, 0), ValueError, "latent_dim", "0", "at least 1"),
    "GaussianMixture: a vector of means": Case(
        lambda: mixture(loc=f64(0, 1)), ValueError, "loc", r"\(2,\)", "2 dimension"
    ),
    "GaussianMixture: a weight too many": Case(
        lambda: mixture(probs=f64(0.5, 0.2, 0.3)), ValueError, "probs", r"\(3,\)", r"\(2,\)"
    ),
    "GaussianMixture: weights that do not sum to one": Case(
        lambda: mixture(probs=f64(0.5, 0.6)), ValueError, "probs", "0.6", "sum to one"
    ),
    "GaussianMixture: an empty component": Case(
        lambda: mixture(probs=f64(0, 1)), ValueError, "probs", "0.0", "positive"
    ),
    "GaussianMixture: one covariance for all": Case(
        lambda: mixture(covariance_matrix=torch.eye(2)), ValueError, "covariance_matrix", r"\(2, 2\)", r"\(2, 2, 2\)"
    ),
    "GaussianMixture: a singular covariance": Case(
        lambda: mixture(covariance_matrix=torch.stack([torch.eye(2), torch.ones(2, 2)])),
        ValueError,
        "covariance_matrix",
        r"component\(s\) \[1\]",
        "positive definite",
    ),
    "GaussianMixture: a Cholesky factor for a covariance": Case(
        lambda: mixture(covariance_matrix=torch.ones(2, 2).tril().repeat(2, 1, 1)),
        ValueError,
        "covariance_matrix",
        "transpose",
        "symmetric",
    ),
    "GaussianMixture: nan in the means": Case(
        lambda: mixture(loc=torch.full((2, 2), NAN)), ValueError, "loc", "nan", "finite"
    ),
    "GaussianMixture: a column too many": Case(
        lambda: mixture().posterior(torch.zeros(5, 3)), ValueError, "x", r"\(5, 3\)", r"\(5, 2\)"
    ),
    "GaussianMixture: nan": Case(lambda: mixture().log_evidence(f64(0, NAN)), ValueError, "x", "nan", "finite"),
    "GaussianMixture: a continuous latent": Case(
        lambda: draw(mixture().given(table()), q(8)), TypeError, "z", "float64", "components' numbers"
    ),
    "GaussianMixture: a component it does not have": Case(
        lambda: mixture().elbo(table(), Categorical(torch.ones(8, 3))), ValueError, "z", "0 to 2", "0 to 1"
    ),
    "GaussianMixture: responsibilities of other datapoints": Case(
        lambda: mixture().elbo(table(), halves(5)), ValueError, "x", r"\(8, 2\)", r"\(5, 2\)"
    ),
    "gaussian_mixture: fewer datapoints than components": Case(
        lambda: gaussian_mixture(table(), 9), ValueError, "x", "received 8", "num_components = 9"
    ),
    "gaussian_mixture: copies": Case(
        lambda: gaussian_mixture(torch.ones(8, 2), 2), ValueError, "x", "received 1", "different datapoints"
    ),
    "gaussian_mixture: a single datapoint": Case(
        lambda: gaussian_mixture(torch.ones(1, 2), 1), ValueError, "x", r"column\(s\) 0, 1", "vary"
    ),
    "gaussian_mixture: a constant column": Case(
        lambda: gaussian_mixture(table() * f64(1, 0), 2), ValueError, "x", r"column\(s\) 1", "vary in every column"
    ),
    "gaussian_mixture: a column twice": Case(
        lambda: gaussian_mixture(table()[:, [0, 0]], 2), ValueError, "x", "linearly dependent", "positive definite"
    ),
    "gaussian_mixture: nan": Case(lambda: gaussian_mixture(table() * NAN, 2), ValueError, "x", "nan", "finite"),
    "gaussian_mixture: no components": Case(
        lambda: gaussian_mixture(table(), 0), ValueError, "num_components", "0", "at least 1"
    ),
    # --- em ---
    "em: a vector": Case(lambda: em(mixture(), f64(1, 2)), ValueError, "x", r"\(2,\)", "2 dimension"),
    "em: nan": Case(lambda: em(mixture(), table() * NAN), ValueError, "x", "nan", "finite"),
    "em: a column too many": Case(lambda: em(mixture(), torch.zeros(5, 3)), ValueError, "x", r"\(5, 3\)", r"\(5, 2\)"),
    "em: no steps": Case(lambda: em(mixture(), table(), num_steps=0), ValueError, "num_steps", "0", "at least 1"),
    "em: a negative tolerance": Case(
        lambda: em(mixture(), table(), tolerance=-1.0), ValueError, "tolerance", "-1", "at least 0"
    ),
    "em: constant columns": Case(
        lambda: em(factor_analysis(2, 1), table() * f64(0, 1)), ValueError, "x", r"column\(s\) 0,", "drop them"
    ),
    "m_step: a negative floor": Case(
        lambda: m_step(mixture(), table(), halves(), min_variance=-1.0), ValueError, "min_variance", "-1", "at least 0"
    ),
    "m_step: another model's q": Case(
        lambda: m_step(mixture(), table(), normal(8, 2)), TypeError, "q", "Independent", "Categorical"
    ),
    "m_step: a q that is not normal": Case(
        lambda: m_step(factor_analysis(2, 1), table(), halves()), TypeError, "normal", "Categorical", "multivariate"
    ),
    "m_step: responsibilities of other datapoints": Case(
        lambda: m_step(mixture(), table(), halves(5)), ValueError, "q.probs", r"\(5, 2\)", r"\(8, 2\)"
    ),
    "m_step: a q of another latent": Case(
        lambda: m_step(factor_analysis(2, 1), table(), normal(8, 2)), ValueError, "q.mean", r"\(8, 2\)", r"\(8, 1\)"
    ),
    "m_step: an empty component": Case(
        lambda: m_step(mixture(), table(), Categorical(f64(1, 0).expand(8, 2))),
        ValueError,
        "component",
        r"\[1\].*sum to \[0.0\]",
        "must have datapoints",
    ),
    "m_step: a component on one point": Case(
        lambda: m_step(mixture(), table(), Categorical(torch.eye(2)[torch.tensor([1, 0, 0, 0, 0, 0, 0, 0])])),
        ValueError,
        "component",
        r"\[1\].*singular covariance",
        "min_variance",
    ),
    "m_step: no model": Case(
        lambda: m_step(nn.Identity(), table(), halves()),  # type: ignore[arg-type]
        TypeError,
        "model",
        "Identity",
        "GaussianMixture or a LinearGaussian",
    ),
    # --- training ---
    "frozen: a parameter": Case(
        lambda: training.frozen(level()).__enter__(),  # type: ignore[arg-type]
        TypeError,
        "modules",
        "Parameter",
        r"torch\.nn\.Module",
    ),
    "frozen: nothing": Case(lambda: training.frozen().__enter__(), ValueError, "modules", "none", "at least one"),
    "fit: a list": Case(lambda: fit(data=[1.0]), TypeError, "data", "list", r"torch\.Tensor"),
    "fit: nan": Case(lambda: fit(data=f64(1, NAN)), ValueError, "data", r"nan at index \(1,\)", "finite"),
    "fit: no rows": Case(lambda: fit(data=torch.zeros(0, 2)), ValueError, "data", r"\(0, 2\)", "not be empty"),
    "fit: one number": Case(lambda: fit(data=torch.tensor(1.0)), ValueError, "data", r"\(\)", r"\(N, \.\.\.\)"),
    "fit: no steps": Case(lambda: fit(num_steps=0), ValueError, "num_steps", "0", "at least 1"),
    "fit: half a step": Case(lambda: fit(num_steps=0.5), TypeError, "num_steps", "float", "int"),
    "fit: an empty batch": Case(lambda: fit(batch_size=0), ValueError, "batch_size", "0", "at least 1"),
    "fit: a batch larger than the data": Case(lambda: fit(batch_size=4), ValueError, "batch_size", "4", "at most.* 3"),
    "fit: half a batch": Case(lambda: fit(batch_size=1.5), TypeError, "batch_size", "float", "int"),
    "fit: patience without validation": Case(lambda: fit(patience=3), ValueError, "patience", "None", "validate"),
    "fit: no patience": Case(
        lambda: fit(patience=0, validate=lambda: f64(0)), ValueError, "patience", "0", "at least 1"
    ),
    "fit: validation at no step": Case(lambda: fit(validate_every=0), ValueError, "validate_every", "0", "at least 1"),
    "fit: everything frozen": Case(
        lambda: fit(optimiser=torch.optim.SGD([torch.zeros(1)], lr=0.1)),
        ValueError,
        "optimiser",
        "none with requires_grad",
        "parameter to learn",
    ),
    "fit: an objective that returns a float": Case(
        lambda: fit(objective=lambda x: 1.0), TypeError, "objective", "float", r"torch\.Tensor"
    ),
    "fit: a column of bounds": Case(
        lambda: fit(objective=lambda x: x[:, None]), ValueError, "objective", r"\(3, 1\)", r"\(3,\)"
    ),
    # --- evaluation ---
    "importance_sampling: too few samples": Case(
        lambda: importance_sampling(joint, q(), 24), ValueError, "num_samples", "24", "at least 25"
    ),
    "importance_sampling: empty chunks": Case(
        lambda: importance_sampling(joint, q(), 50, chunk_size=0), ValueError, "chunk_size", "0", "at least 1"
    ),
    "effective_sample_size: infinite": Case(
        lambda: effective_sample_size(f64(0, -INF)), ValueError, "log_weight", r"-inf at index \(1,\)", "finite"
    ),
    "effective_sample_size: one number": Case(
        lambda: effective_sample_size(torch.tensor(0.0)), ValueError, "log_weight", r"\(\)", "num_samples"
    ),
    "pareto_k: too few samples": Case(
        lambda: pareto_k(torch.zeros(24)), ValueError, "num_samples", "24", "at least 25"
    ),
    "pareto_k: a list": Case(lambda: pareto_k([0.0] * 30), TypeError, "log_weight", "list", r"torch\.Tensor"),
    "gap_ledger: means": Case(lambda: gap_ledger(-1.0, f64(0), f64(0)), TypeError, "elbo", "float", r"torch\.Tensor"),
    "gap_ledger: a column": Case(
        lambda: gap_ledger(f64(0, 0), torch.zeros(2, 1), f64(0, 0)), ValueError, "best_elbo", r"\(2, 1\)", r"\(2,\)"
    ),
    "gap_ledger: one evidence for all": Case(
        lambda: gap_ledger(f64(0, 0), f64(0, 0), f64(0)), ValueError, "log_evidence", r"\(1,\)", r"\(2,\)"
    ),
    "gap_ledger: nan": Case(
        lambda: gap_ledger(f64(0), f64(0), f64(0), f64(NAN)), ValueError, "reference", "nan", "finite"
    ),
    # --- checks and checkers ---
    "exact: shapes differ": Case(
        lambda: checks.exact("01.1", "s", f64(1, 2), 1.0, wrong={"w": 3.0}), ValueError, "oracle", r"\(\)", r"\(2,\)"
    ),
    "exact: infinite oracle": Case(
        lambda: checks.exact("01.1", "s", 1.0, INF, wrong={"w": 3.0}), ValueError, "oracle", "inf", "finite"
    ),
    "exact: a string for a tolerance": Case(
        lambda: checks.exact("01.1", "s", 1.0, 1.0, wrong={"w": 3.0}, tolerance="1"),
        TypeError,
        "tolerance",
        "str",
        "number",
    ),
    "monte_carlo: too few samples": Case(
        lambda: checks.monte_carlo("01.1", "s", torch.zeros(99), 0.0, wrong={"w": 3.0}),
        ValueError,
        "samples",
        r"\(99,\)",
        "at least 100",
    ),
    "inequality: shapes differ": Case(
        lambda: checks.inequality("01.1", "s", f64(1, 2), f64(1, 2, 3), wrong={"w": f64(5, 5)}),
        ValueError,
        "larger",
        r"\(3,\)",
        r"\(2,\)",
    ),
    "density_integrates_to_one: three dimensions": Case(
        lambda: checkers.density_integrates_to_one(joint, [(0, 1)] * 3), ValueError, "bounds", "3", "one or two"
    ),
    "samples_match_density: a batch": Case(
        lambda: checkers.samples_match_density(q(3)), ValueError, "q", r"\(3,\)", r"batch_shape \(\)"
    ),
    "samples_match_density: too few samples": Case(
        lambda: checkers.samples_match_density(q(), 999), ValueError, "num_samples", "999", "at least 1000"
    ),
    "bounds_are_ordered: too few samples": Case(
        lambda: checkers.bounds_are_ordered(torch.zeros(511)), ValueError, "log_weight", "511", "at least 512"
    ),
    "bounds_are_ordered: an evidence for all": Case(
        lambda: checkers.bounds_are_ordered(torch.zeros(512, 3), f64(0)),
        ValueError,
        "log_evidence",
        r"\(1,\)",
        r"\(3,\)",
    ),
    "bounds_are_ordered: an evidence of nan": Case(
        lambda: checkers.bounds_are_ordered(torch.zeros(512), torch.tensor(NAN)),
        ValueError,
        "log_evidence",
        "nan",
        "finite",
    ),
    "gradient_is_unbiased: too few estimates": Case(
        lambda: checkers.gradient_is_unbiased(torch.zeros(99), torch.tensor(0.0)),
        ValueError,
        "estimates",
        r"\(99,\)",
        ">= 100",
    ),
    "gradient_is_unbiased: another shape": Case(
        lambda: checkers.gradient_is_unbiased(torch.zeros(100, 2), torch.zeros(3)),
        ValueError,
        "estimates",
        r"\(100, 2\)",
        r"\(n, 3,\)",
    ),
    "gradient_is_unbiased: an exact gradient of nan": Case(
        lambda: checkers.gradient_is_unbiased(torch.zeros(100), torch.tensor(NAN)),
        ValueError,
        "exact_gradient",
        "nan",
        "finite",
    ),
    "batch_repetition_changes_nothing: nan": Case(
        lambda: checkers.batch_repetition_changes_nothing(lambda x: x, f64(NAN)), ValueError, "x", "nan", "finite"
    ),
    "every_parameter_gets_gradient: nothing to learn": Case(
        lambda: checkers.every_parameter_gets_gradient(torch.ones(1), nn.ReLU()),
        ValueError,
        "module",
        "none with requires_grad",
        "trainable",
    ),
    "every_column_moves_the_posterior: a vector": Case(
        lambda: checkers.every_column_moves_the_posterior(lambda x: x, f64(1)),
        ValueError,
        "x",
        r"\(1,\)",
        "2 dimension",
    ),
    # --- heads, families and what is measured with them ---
    "BernoulliHead: an image of another size": Case(
        lambda: BernoulliHead(mlp(64, 8, 3), 3)(torch.zeros(2, 63)), ValueError, "inputs", "63", "64"
    ),
    "BernoulliHead: nan": Case(
        lambda: BernoulliHead(mlp(2, 8, 3), 3)(torch.tensor([[0.0, NAN]])), ValueError, "inputs", "nan", "finite"
    ),
    "DiagonalNormalHead: an encoder's outputs do not fit": Case(
        lambda: DiagonalNormalHead(mlp(64, 8, 5), 3)(torch.zeros(2, 64)),
        ValueError,
        "network",
        r"\(2, 5\)",
        "6 numbers",
    ),
    "MixtureNormalHead: outputs for fewer components": Case(
        lambda: MixtureNormalHead(mlp(4, 10), 2, 3)(torch.zeros(2, 4)),
        ValueError,
        "network",
        r"\(2, 10\)",
        "15 numbers",
    ),
    "MixtureNormalHead: no components": Case(
        lambda: MixtureNormalHead(nn.Identity(), 2, 0), ValueError, "num_components", "0", "at least 1"
    ),
    "BinomialHead: no trials": Case(
        lambda: BinomialHead(nn.Identity(), 2, 0), ValueError, "total_count", "0", "at least 1"
    ),
    "DiscretisedNormalHead: levels the wrong way round": Case(
        lambda: DiscretisedNormalHead(nn.Identity(), 2, 16, 0), ValueError, "high", "0", "at least 17"
    ),
    "DiagonalNormalHead: a negative floor": Case(
        lambda: DiagonalNormalHead(nn.Identity(), 2, min_scale=-1.0), ValueError, "min_scale", "-1", "at least 0"
    ),
    "NormalHead: a negative scale": Case(
        lambda: NormalHead(nn.Identity(), 2, torch.tensor(-1.0)), ValueError, "scale", "-1", "above min_scale"
    ),
    "NormalHead: scales for other pixels": Case(
        lambda: NormalHead(nn.Identity(), 2, torch.ones(3)), ValueError, "scale", r"\(3,\)", r"\(2,\)"
    ),
    "given: grey levels to a Bernoulli": Case(
        lambda: vae(BernoulliHead).given(torch.full((2, 3), 0.5))(torch.zeros(1, 2, 2)),
        ValueError,
        "x",
        r"0\.5 at index \(0, 0\)",
        "ContinuousBernoulliHead",
    ),
    "given: a count above its total": Case(
        lambda: vae(BinomialHead, 16).given(torch.tensor([[0.0, 17.0, 2.0]]))(torch.zeros(1, 1, 2)),
        ValueError,
        "x",
        r"17\.0 at index",
        "support",
    ),
    "given: a grey level above one": Case(
        lambda: vae(ContinuousBernoulliHead).given(torch.tensor([[0.0, 1.5, 0.2]]))(torch.zeros(1, 1, 2)),
        ValueError,
        "x",
        r"1\.5 at index",
        "support",
    ),
    "given: half a level": Case(
        lambda: vae(DiscretisedNormalHead, 0, 16).given(torch.tensor([[0.0, 1.5, 0.2]]))(torch.zeros(1, 1, 2)),
        ValueError,
        "x",
        r"1\.5 at index",
        "support",
    ),
    "given: images of another size": Case(
        lambda: vae(BernoulliHead).given(torch.zeros(2, 4))(torch.zeros(1, 2, 2)),
        ValueError,
        "x",
        r"\(2, 4\)",
        r"\(2, 3\)",
    ),
    "sample: no samples": Case(lambda: vae(BernoulliHead).sample(0), ValueError, "num_samples", "0", "at least 1"),
    "continuous_bernoulli: a logit of nan": Case(
        lambda: continuous_bernoulli(f64(NAN)), ValueError, "logits", "nan", "finite"
    ),
    "binomial: half a trial": Case(lambda: binomial(f64(0.0), 1.5), TypeError, "total_count", "float", "int"),
    "discretised_normal: one level": Case(
        lambda: discretised_normal(f64(0.0), f64(1.0), 3, 3), ValueError, "high", "3", "at least 4"
    ),
    "mixture_normal: another number of components": Case(
        lambda: mixture_normal(torch.zeros(3), torch.zeros(2, 4), torch.ones(2, 4)), ValueError, "loc", r"\(2, 4\)", "3"
    ),
    "PerDatapoint: other datapoints": Case(
        lambda: PerDatapoint(DiagonalNormalHead(nn.Identity(), 2), torch.zeros(3, 4))(torch.zeros(2, 5)),
        ValueError,
        "x",
        "2",
        "3",
    ),
    "PerDatapoint: numbers of another head": Case(
        lambda: PerDatapoint(DiagonalNormalHead(nn.Identity(), 2), torch.zeros(3, 5)),
        ValueError,
        "numbers",
        r"\(3, 5\)",
        "over 2 dimensions",
    ),
    "PerDatapoint: no head": Case(
        lambda: PerDatapoint(nn.Identity(), torch.zeros(3, 5)), TypeError, "head", "Identity", "Head"
    ),
    "SemiAmortised: no step": Case(
        lambda: SemiAmortised(DiagonalNormalHead(nn.Identity(), 2), vae(BernoulliHead).given, -1, 0.1),
        ValueError,
        "num_steps",
        "-1",
        "at least",
    ),
    "SemiAmortised: a negative step": Case(
        lambda: SemiAmortised(DiagonalNormalHead(nn.Identity(), 2), vae(BernoulliHead).given, 1, -0.1),
        ValueError,
        "step_size",
        r"-0\.1",
        "positive",
    ),
    "VampPrior: no encoder": Case(
        lambda: VampPrior(nn.Identity(), torch.zeros(3, 4)), TypeError, "encoder", "Parameter", "Distribution"
    ),
    "VampPrior: nan for a pseudo-input": Case(
        lambda: VampPrior(DiagonalNormalHead(nn.Linear(4, 4), 2), torch.full((3, 4), NAN)),
        ValueError,
        "pseudo_inputs",
        "nan",
        "finite",
    ),
    "gauss_hermite: no points": Case(lambda: gauss_hermite(0), ValueError, "order", "0", "at least 1"),
    "gauss_hermite: too many": Case(lambda: gauss_hermite(50, 8), ValueError, "order", "50", "at most"),
    "expected_elbo: another family": Case(
        lambda: expected_elbo(joint, q(3)), ValueError, "q", "Normal", "Normal over vectors"
    ),
    "posterior_on_grid: a coarse grid": Case(
        lambda: posterior_on_grid(vae(BernoulliHead), torch.zeros(1, 3), side=1), ValueError, "side", "1", "at least"
    ),
    "posterior_on_grid: a grid that cuts off": Case(
        lambda: posterior_on_grid(vae(BernoulliHead), torch.zeros(1, 3), side=21, bound=0.5),
        ValueError,
        "bound",
        r"0\.5",
        "enclose",
    ),
    "posterior_on_grid: nan": Case(
        lambda: posterior_on_grid(vae(BernoulliHead), torch.tensor([[0.0, NAN, 1.0]])), ValueError, "x", "nan", "finite"
    ),
    "tune: no temperature": Case(
        lambda: annealed.tune(joint, q(3), 0), ValueError, "num_temperatures", "0", "at least 1"
    ),
    "forward: no chain": Case(
        lambda: annealed.forward(joint, q(3), ladder(3), 0), ValueError, "num_chains", "0", "at least 2"
    ),
    "forward: a ladder for another batch": Case(
        lambda: annealed.forward(joint, q(4), ladder(3), 5), ValueError, "step_size", r"\(1, 3\)", r"\(1, 4\)"
    ),
    "forward: no ladder": Case(
        lambda: annealed.forward(joint, q(3), [0.0, 1.0], 5), TypeError, "ladder", "list", "Ladder"
    ),
    "forward: a family that was not called": Case(
        lambda: annealed.forward(joint, MeanFieldNormal(2), ladder(3), 5),
        TypeError,
        "initial",
        "MeanFieldNormal",
        "Distribution",
    ),
    "reverse: draws of another batch": Case(
        lambda: annealed.reverse(joint, q(3), ladder(3), torch.zeros(5, 4)), ValueError, "z", r"\(5, 4\)", "3"
    ),
    "best_in_family: a family without numbers": Case(
        lambda: best_in_family(lambda q: q.mean, standard_normal(2)), TypeError, "q", "Fixed", "PerDatapoint"
    ),
    "best_in_family: one number for all": Case(
        lambda: best_in_family(
            lambda q: q.mean.sum(), PerDatapoint(DiagonalNormalHead(nn.Identity(), 2), torch.zeros(3, 4))
        ),
        ValueError,
        "objective",
        r"\(\)",
        r"\(3,\)",
    ),
    "active_units: one datapoint": Case(lambda: active_units(normal(1, 2)), ValueError, "q", r"\(1,\)", "at least two"),
    "active_units: a negative threshold": Case(
        lambda: active_units(normal(3, 2), -1.0), ValueError, "threshold", "-1", "positive"
    ),
    "elbo_surgery: another event": Case(
        lambda: elbo_surgery(normal(3, 2), normal(3)), ValueError, "prior", r"\(3,\)", r"\(2,\)"
    ),
    "elbo_surgery: no samples": Case(
        lambda: elbo_surgery(normal(3, 2), normal(2), 0), ValueError, "num_samples", "0", "at least 1"
    ),
    "predictive_check: replicates of another shape": Case(
        lambda: predictive_check(torch.mean, torch.zeros(3, 2), torch.zeros(10, 3, 4)),
        ValueError,
        "replicates",
        r"\(10, 3, 4\)",
        "3, 2",
    ),
    "predictive_check: a vector for a statistic": Case(
        lambda: predictive_check(lambda x: x, torch.zeros(3), torch.zeros(10, 3)),
        ValueError,
        "statistic",
        r"\(3,\)",
        "one number",
    ),
    "rate_distortion: no samples": Case(
        lambda: rate_distortion(vae(BernoulliHead), torch.zeros(1, 3), normal(1, 2), 0),
        ValueError,
        "num_samples",
        "0",
        "at least 1",
    ),
    "beta_objective: a negative price": Case(
        lambda: beta_objective(vae(BernoulliHead), torch.zeros(1, 3), normal(1, 2), -1.0),
        ValueError,
        "beta",
        "-1",
        "at least 0",
    ),
    "free_bits_objective: a negative floor": Case(
        lambda: free_bits_objective(vae(BernoulliHead), torch.zeros(1, 3), normal(1, 2), -1.0),
        ValueError,
        "min_nats",
        "-1",
        "at least 0",
    ),
    "kl_per_latent: correlated latents": Case(
        lambda: kl_per_latent(full_normal(torch.zeros(1, 2), torch.eye(2)), normal(2)),
        TypeError,
        "q",
        "MultivariateNormal",
        "independent",
    ),
    "linear_schedule: no steps": Case(lambda: linear_schedule(0), ValueError, "num_steps", "0", "at least 1"),
    "relaxed_objective: a continuous q": Case(
        lambda: relaxed_objective(vae(BernoulliHead), torch.zeros(1, 3), normal(1, 2), 0.5),
        TypeError,
        "discrete",
        "Normal",
        "Bernoulli",
    ),
    "relaxed: frozen": Case(lambda: relaxed(bernoulli(f64(0.0)), 0.0), ValueError, "temperature", "0", "above 0"),
    "tempered: beyond the joint": Case(
        lambda: tempered(joint, q(), 1.5), ValueError, "beta", r"1\.5", "between 0 and 1"
    ),
    "noised: coins": Case(
        lambda: noised(Bernoulli(torch.tensor(0.5)), 1.0), TypeError, "distribution", "Bernoulli", "Normal"
    ),
    "defensive_mixture: no share": Case(
        lambda: defensive_mixture(q(), q(), 0.0), ValueError, "share", "0", "between 0 and 1"
    ),
    "batch_and_match: a diagonal q": Case(
        lambda: batch_and_match(joint, normal(2), 3), TypeError, "q", "Independent", "MultivariateNormal"
    ),
    "batch_and_match: no steps": Case(
        lambda: batch_and_match(joint, full_normal(torch.zeros(2), torch.eye(2)), -1),
        ValueError,
        "num_steps",
        "-1",
        "at least",
    ),
    "dequantise: nan": Case(lambda: dequantise(f64(NAN)), ValueError, "counts", "nan", "finite"),
    "dequantise: greys": Case(lambda: dequantise(f64(0.5)), ValueError, "counts", r"0\.5", "integers"),
    "elbo_enumerated: too many coins": Case(
        lambda: elbo_enumerated(joint, bernoulli(torch.zeros(40))), ValueError, "q", r"2\^40", "1048576"
    ),
    "elbo_enumerated: Normals together": Case(
        lambda: elbo_enumerated(joint, normal(3, 2)), ValueError, "q", "Normal", "enumerate"
    ),
    "Diffusion: images of another size": Case(
        lambda: chain().terms(torch.zeros(2, 3)), ValueError, "x", r"\(2, 3\)", r"\(2, 2\)"
    ),
    "Diffusion: a schedule that rises": Case(
        lambda: Diffusion(nn.Identity(), lambda t: t, 3, nn.Identity(), 2), ValueError, "schedule", r"0\.0", "fall"
    ),
    "Diffusion: no step": Case(
        lambda: Diffusion(nn.Identity(), linear_log_snr(), 0, nn.Identity(), 2),
        ValueError,
        "num_steps",
        "0",
        "at least 1",
    ),
    "Diffusion: a level beyond the last": Case(
        lambda: chain().terms(torch.full((1, 2), 2.0)), ValueError, "x", r"2\.0 at index", "support"
    ),
    "LevelsHead: nan": Case(lambda: LevelsHead(f64(0.0, NAN), 1.0), ValueError, "levels", "nan", "finite"),
    "linear_log_snr: ends the wrong way round": Case(
        lambda: linear_log_snr(-1.0, 1.0), ValueError, "high", "-1", "above low"
    ),
    # --- what the first table leaves: one row at least for everything public ---
    "covariance: a Bernoulli": Case(
        lambda: covariance(bernoulli(f64(0))), TypeError, "normal", "Independent|Bernoulli", "multivariate|Normal"
    ),
    "covariance: a tensor": Case(lambda: covariance(f64(0)), TypeError, "normal", r"tensor\(", "Normal"),
    "discretised_logistic: one level": Case(
        lambda: discretised_logistic(f64(0), f64(1), 3, 3), ValueError, "high", "3", "at least 4"
    ),
    "discretised_logistic: zero scale": Case(
        lambda: discretised_logistic(f64(0), f64(0), 0, 3), ValueError, "scale", r"0\.\]", "GreaterThan|positive"
    ),
    "discretised_logistic: half a level": Case(
        lambda: discretised_logistic(f64(0), f64(1), 0.5, 3), TypeError, "low", "float", "int"
    ),
    "discretised_normal: nan": Case(
        lambda: discretised_normal(f64(NAN), f64(1), 0, 3), ValueError, "loc", "nan", "finite"
    ),
    "binomial: integers": Case(
        lambda: binomial(torch.zeros(2, dtype=torch.long), 3), TypeError, "logits", "int64", "floating-point"
    ),
    "mixture_normal: negative scale": Case(
        lambda: mixture_normal(f64(0, 0), torch.zeros(2, 4), -torch.ones(2, 4)),
        ValueError,
        "scale",
        "",
        "GreaterThan|positive",
    ),
    "kl_is_a_divergence: a tensor": Case(
        lambda: checkers.kl_is_a_divergence(f64(0), q()), TypeError, "q", "Tensor", "Distribution"
    ),
    "kl_is_a_divergence: a string for p": Case(
        lambda: checkers.kl_is_a_divergence(q(), "p"), TypeError, "p", "str", "Distribution"
    ),
    "stays_below_the_evidence: a list": Case(
        lambda: checkers.stays_below_the_evidence([0.0] * 200, f64(0)), TypeError, "estimates", "list", r"torch\.Tensor"
    ),
    "stays_below_the_evidence: too few estimates": Case(
        lambda: checkers.stays_below_the_evidence(torch.zeros(5), torch.tensor(0.0)),
        ValueError,
        "estimates",
        r"\(5,\)",
        ">= 100",
    ),
    "stays_below_the_evidence: an evidence of nan": Case(
        lambda: checkers.stays_below_the_evidence(torch.zeros(500), torch.tensor(NAN)),
        ValueError,
        "log_evidence",
        "nan",
        "finite",
    ),
    "enumeration: infinite": Case(
        lambda: checks.enumeration("01.1", "s", 1.0, INF, wrong={"w": 3.0}), ValueError, "oracle", "inf", "finite"
    ),
    "quadrature: shapes differ": Case(
        lambda: checks.quadrature("01.1", "s", f64(1, 2), 1.0, wrong={"w": 3.0}),
        ValueError,
        "oracle",
        r"\(\)",
        r"\(2,\)",
    ),
    "independent: a negative tolerance": Case(
        lambda: checks.independent("01.1", "s", 1.0, 1.0, wrong={"w": 3.0}, tolerance=-1.0),
        ValueError,
        "tolerance",
        "-1",
        "positive|at least",
    ),
    "exact: nothing wrong": Case(
        lambda: checks.exact("01.1", "s", 1.0, 1.0, wrong={}), ValueError, "wrong", "", "at least one"
    ),
    "exact: no number for a claim": Case(
        lambda: checks.exact("first", "s", 1.0, 1.0, wrong={"w": 3.0}), ValueError, "claim", "first", ""
    ),
    "cosine_log_snr: ends the wrong way round": Case(
        lambda: cosine_log_snr(-1.0, 1.0), ValueError, "high", "-1", "above low"
    ),
    "cosine_log_snr: nan": Case(lambda: cosine_log_snr(NAN, 1.0), ValueError, "high", "nan", "finite"),
    "Diffusion: a function for a denoiser": Case(
        lambda: Diffusion(lambda z, s: z, linear_log_snr(), 3, nn.Identity(), 2),
        TypeError,
        "denoiser",
        "function",
        r"torch\.nn\.Module",
    ),
    "Diffusion.terms: no samples": Case(
        lambda: chain().terms(torch.zeros(1, 2), 0), ValueError, "num_samples", "0", "at least 1"
    ),
    "Diffusion.terms_continuous: nan": Case(
        lambda: chain().terms_continuous(torch.full((1, 2), NAN)), ValueError, "x", "nan", "finite"
    ),
    "Diffusion.noising: an empty batch": Case(
        lambda: chain().noising(torch.zeros(0, 2)), ValueError, "x", r"\(0, 2\)", "not be empty"
    ),
    "e_step: nan": Case(lambda: e_step(mixture(), table() * NAN), ValueError, "x", "nan", "finite"),
    "memory_mapped: no such file": Case(
        lambda: memory_mapped("nowhere.npy"), FileNotFoundError, "path", r"nowhere\.npy", "not there"
    ),
    "memory_mapped: a number": Case(lambda: memory_mapped(3), TypeError, "path", "int", "Path|str"),
    "standardised_noise: an odd number": Case(lambda: standardised_noise(7, 2), ValueError, "num_draws", "7", "even"),
    "standardised_noise: too few": Case(lambda: standardised_noise(4, 3), ValueError, "num_draws", "4", "at least 6"),
    "standardised_noise: no dimension": Case(lambda: standardised_noise(4, 0), ValueError, "dim", "0", "at least 1"),
    "reparameterise: draws of another dimension": Case(
        lambda: reparameterise(normal(2), torch.zeros(4, 3)), ValueError, "noise", r"\(4, 3\)", "num_draws"
    ),
    "reparameterise: a list": Case(lambda: reparameterise(normal(2), [0.0]), TypeError, "noise", "list", "Tensor"),
    "reparameterise: no draws": Case(lambda: reparameterise(normal(2), 0), ValueError, "noise", "0", "at least 1"),
    "reparameterise: a tensor for q": Case(
        lambda: reparameterise(f64(0), torch.zeros(4, 3)), TypeError, "q", "Tensor", "Distribution"
    ),
    "noise_dim: a tensor": Case(lambda: noise_dim(f64(0)), TypeError, "q", "Tensor", "Distribution"),
    "noise_dim: coins": Case(lambda: noise_dim(q()), ValueError, "q", r"\(\)", "event"),
    "is_normal: a tensor": Case(lambda: is_normal(f64(0)), TypeError, "q", "Tensor", "Distribution"),
    "Space: a string for a constraint": Case(
        lambda: Space({"a": "positive"}), TypeError, "latents", "positive", "constraint"
    ),
    "Space: no latents": Case(lambda: Space({}), ValueError, "latents", "none", "at least one"),
    "Space: a list": Case(lambda: Space([REAL]), TypeError, "latents", "list", "dict|mapping|Mapping"),
    "Space.unconstrain: an unknown latent": Case(
        lambda: Space({"a": REAL}).unconstrain({"b": 0.0}), ValueError, "initial", "'b'", "among"
    ),
    "Space.unconstrain: outside": Case(
        lambda: Space({"a": POSITIVE}).unconstrain({"a": -1.0}), ValueError, "initial", r"-1\.0", "inside"
    ),
    "Space.unconstrain: another shape": Case(
        lambda: Space({"a": REAL}).unconstrain({"a": [0.0, 1.0]}), ValueError, "initial", r"\(2,\)", r"\(\)"
    ),
    "examine: a column": Case(
        lambda: examine(lambda z: z["a"][:, None], Space({"a": REAL}), f64(0)),
        ValueError,
        "log_joint",
        r"1\)",
        "num_samples|shape",
    ),
    "examine: a joint that returns a float": Case(
        lambda: examine(lambda z: 1.0, Space({"a": REAL}), f64(0)), ValueError, "log_joint", "float", r"shape \(\d+,\)"
    ),
    "unconstrained: a list for a joint": Case(
        lambda: unconstrained([0.0], Space({"a": REAL})), TypeError, "log_joint", "list", "callable"
    ),
    "fit_posterior: too few draws": Case(
        lambda: fit_posterior(quadratic, {"a": REAL}, num_draws=1), ValueError, "num_draws", "1", "at least|even"
    ),
    "fit_posterior: an unknown starting value": Case(
        lambda: fit_posterior(quadratic, {"a": REAL}, initial={"b": 0.0}), ValueError, "initial", "'b'", "among"
    ),
    "fit_posterior: a joint of one number": Case(
        lambda: fit_posterior(lambda z: z["a"].sum(), {"a": REAL}), ValueError, "log_joint", r"\(\)", "shape"
    ),
    "fit_posterior: a list for a joint": Case(
        lambda: fit_posterior([0.0], {"a": REAL}), TypeError, "log_joint", "list", "callable"
    ),
    "fit_posterior_stochastic: data without a batch": Case(
        lambda: fit_posterior_stochastic(lambda z, b, s: quadratic(z), {"a": REAL}, data=table()),
        ValueError,
        "data",
        "",
        "together",
    ),
    "fit_posterior_stochastic: data of nan": Case(
        lambda: fit_posterior_stochastic(
            lambda z, b, s: quadratic(z), {"a": REAL}, data=table() * NAN, batch_size=2, num_data=8
        ),
        ValueError,
        "data",
        "nan",
        "finite",
    ),
    "laplace: no mode": Case(
        lambda: laplace(lambda z: z["a"] ** 2, {"a": REAL}), ValueError, "log_joint", "none", "mode"
    ),
    "laplace: no latents": Case(lambda: laplace(quadratic, {}), ValueError, "latents", "none", "at least one"),
    "binarise: floats": Case(lambda: binarise(torch.zeros(2)), TypeError, "greys", "float64", "uint8"),
    "binarise: a list": Case(lambda: binarise([0]), TypeError, "greys", "list", "uint8"),
    "mnist: an empty folder": Case(
        lambda: mnist("no such folder", download=False),
        DataFileError,
        "train-images-idx3-ubyte",
        "no such folder",
        "put the right file",
    ),
    "LatentVariableModel.log_likelihood: nan": Case(
        lambda: image_model().log_likelihood(torch.full((2, 3), NAN)), ValueError, "x", "nan", "finite"
    ),
    "exhibit: an unknown name": Case(lambda: museum.exhibit("nothing"), KeyError, "name", "nothing", "one of|expected"),
    "guess: an unknown name": Case(lambda: museum.guess("nothing"), KeyError, "name", "nothing", "one of|expected"),
    "reveal: an unknown number": Case(lambda: museum.reveal("7a"), KeyError, "name", "7a", "one of"),
    "show: an unknown version": Case(
        lambda: museum.show(museum.EXHIBITS[0].name, "middling"), ValueError, "version", "middling", "wrong"
    ),
    "FullNormalHead: nan": Case(
        lambda: FullNormalHead(nn.Linear(2, 5), 2)(torch.tensor([[0.0, NAN]])), ValueError, "inputs", "nan", "finite"
    ),
    "ContinuousBernoulliHead: no dimension": Case(
        lambda: ContinuousBernoulliHead(nn.Identity(), 0), ValueError, "dim", "0", "at least 1"
    ),
    "DiscretisedLogisticHead: levels the wrong way round": Case(
        lambda: DiscretisedLogisticHead(nn.Identity(), 2, 16, 0), ValueError, "high", "0", "at least 17"
    ),
    "BernoulliHead: integers": Case(
        lambda: BernoulliHead(nn.Linear(2, 3), 3)(torch.zeros(1, 2, dtype=torch.long)),
        TypeError,
        "inputs",
        "int64",
        "floating-point",
    ),
    "convolutional_encoder: an odd side": Case(
        lambda: convolutional_encoder(7, 4), ValueError, "side", "7", "multiple of 4"
    ),
    "convolutional_encoder: no outputs": Case(
        lambda: convolutional_encoder(8, 0), ValueError, "num_outputs", "0", "at least 1"
    ),
    "convolutional_encoder: no channels": Case(
        lambda: convolutional_encoder(8, 4, ()), ValueError, "channels", r"\(\)|none", "at least"
    ),
    "convolutional_decoder: pixels of another side": Case(
        lambda: convolutional_decoder(2, 8, 63), ValueError, "num_outputs", "63", "multiple"
    ),
    "convolutional_decoder: no latents": Case(
        lambda: convolutional_decoder(0, 8, 64), ValueError, "latent_dim", "0", "at least 1"
    ),
    "match: a diagonal q": Case(
        lambda: match(normal(2), torch.zeros(5, 2), torch.zeros(5, 2), 1.0),
        TypeError,
        "q",
        "Independent",
        "MultivariateNormal",
    ),
    "match: scores of another shape": Case(
        lambda: match(full_normal(f64(0, 0), torch.eye(2)), torch.zeros(5, 2), torch.zeros(4, 2), 1.0),
        ValueError,
        "score",
        r"\(4, 2\)",
        r"\(5, 2\)",
    ),
    "match: nan": Case(
        lambda: match(full_normal(f64(0, 0), torch.eye(2)), torch.zeros(5, 2) * NAN, torch.zeros(5, 2), 1.0),
        ValueError,
        "z",
        "nan",
        "finite",
    ),
    "match: a negative step": Case(
        lambda: match(full_normal(f64(0, 0), torch.eye(2)), torch.zeros(5, 2), torch.zeros(5, 2), -1.0),
        ValueError,
        "step_size",
        "-1",
        "positive",
    ),
    "GridPosterior.sample: no samples": Case(
        lambda: posterior_on_grid(vae(BernoulliHead), torch.zeros(1, 3), side=41).sample(0),
        ValueError,
        "num_samples",
        "0",
        "at least 1",
    ),
    "chain: an unknown link": Case(lambda: plots.chain("psi"), ValueError, "current", "psi", "one of"),
    "images: a line": Case(
        lambda: plots.images(np.zeros(4), ax(), vmin=0, vmax=1), ValueError, "x", r"\(4,\)", r"\(N, H, W\)"
    ),
    "images: limits the wrong way round": Case(
        lambda: plots.images(np.zeros((1, 2, 2)), ax(), vmin=1, vmax=0), ValueError, "vmin", "1 and 0", "below vmax"
    ),
    "history: an empty history": Case(
        lambda: plots.history(training.History(), ax()), ValueError, "history", r"\(0,\)|none", "not empty|at least"
    ),
    "normal_ellipse: three dimensions": Case(
        lambda: plots.normal_ellipse(np.zeros(3), np.eye(3), ax()), ValueError, "loc", r"\(3,\)", r"\(2,\)"
    ),
    "normal_ellipse: not positive definite": Case(
        lambda: plots.normal_ellipse(np.zeros(2), -np.eye(2), ax()), ValueError, "covariance", "-1", "positive definite"
    ),
    "density_contours: nan": Case(
        lambda: plots.density_contours(np.full((3, 3), NAN), np.arange(3.0), np.arange(3.0), ax()),
        ValueError,
        "log_density",
        "nan",
        "finite|NaN",
    ),
    "density_contours: a mass of two": Case(
        lambda: plots.density_contours(
            -np.square(np.linspace(-4, 4, 41))[:, None] - np.square(np.linspace(-4, 4, 41)),
            np.linspace(-4, 4, 41),
            np.linspace(-4, 4, 41),
            ax(),
            (2.0,),
        ),
        ValueError,
        "masses",
        "2",
        "between 0 and 1",
    ),
    "ledger_bars: no ledgers": Case(
        lambda: plots.ledger_bars([], [], ax()), ValueError, "ledgers", "0", "at least one"
    ),
    "slider: no default inside": Case(
        lambda: plots.slider(print, mean=(1, 0, 2)), ValueError, "mean", r"\(1, 0, 2\)", "lowest"
    ),
    "animate: no frames": Case(
        lambda: plots.animate(lambda f, i: None, 0, "a", name="a"), ValueError, "num_frames", "0", "at least"
    ),
    "linear_response: no posterior": Case(lambda: linear_response(q()), TypeError, "posterior", "Normal", "Posterior"),
    "pareto_k_threshold: one sample": Case(lambda: pareto_k_threshold(1), ValueError, "num_samples", "1", "at least"),
    "weigh_draws: no draws": Case(lambda: weigh_draws(joint, q(), 0), ValueError, "num_draws", "0", "at least"),
    "drift_between: a tensor": Case(lambda: drift_between(f64(0), q()), TypeError, "before", "Tensor", "Distribution"),
    **{
        f"Config: {name} = {value!r}": Case(
            lambda name=name, value=value: runs.Config(**{name: value}),
            error,
            name,
            str(value) if received is None else received,
            expected,
        )
        for name, value, error, received, expected in (
            ("bound", "elob", ValueError, None, "one of"),
            ("likelihood", "normale", ValueError, None, "one of"),
            ("latents", 0, ValueError, None, "at least 1"),
            ("latents", 2.0, TypeError, "float", "int"),
            ("num_samples", 0, ValueError, None, "at least 1"),
            ("batch_size", -3, ValueError, None, "at least 1"),
            ("epochs", "7", TypeError, "str", "int"),
            ("hidden", (), ValueError, "none", "at least one"),
            ("hidden", (8, 0), ValueError, "0", "at least 1"),
            ("hidden", 8, TypeError, "int", "tuple|sizes"),
            ("learning_rate", NAN, ValueError, "nan", "positive"),
            ("learning_rate", "fast", TypeError, "str", "number"),
            ("minutes", 0.0, ValueError, None, "positive"),
            ("seed", -1, ValueError, None, "at least 0"),
            ("save_seconds", -1, ValueError, None, "at least 0"),
            ("device", 3, TypeError, "int", "str"),
            ("compile", "yes", TypeError, "str", "bool"),
            ("data", 3, TypeError, "int", "str"),
        )
    },
    "evaluate: too few samples": Case(
        lambda: runs.evaluate("nowhere", 24), ValueError, "num_samples", "24", "at least 25"
    ),
    "evaluate: no rows": Case(lambda: runs.evaluate("nowhere", 25, 0), ValueError, "num_rows", "0", "at least 1"),
    "evaluate: no run": Case(lambda: runs.evaluate("nowhere", 25), runs.RunError, "nowhere", "no run", "expected"),
    "load: no run": Case(lambda: runs.load("nowhere"), runs.RunError, "nowhere", "no run", "expected"),
    "read: no run": Case(lambda: runs.read("nowhere"), runs.RunError, "nowhere", "no run", "expected"),
    "claim: nothing to go on with": Case(
        lambda: claim(runs.Config(), Path("nowhere"), resume=True),
        runs.RunError,
        "nowhere",
        "no run",
        "without --resume",
    ),
    "placed: an unknown device": Case(
        lambda: placed("abacus").__enter__(), ValueError, "device", "abacus", "auto or a name that torch knows"
    ),
    "restore: another model": Case(
        lambda: checkpoint.restore(checkpoint.Checkpoint({}, {}), nn.Linear(1, 1)),
        checkpoint.CheckpointError,
        "checkpoint",
        "nothing",
        r"expected \(1,\)",
    ),
    "train: a number for a configuration": Case(lambda: runs.train(3, "nowhere"), TypeError, "config", "int", "Config"),
    "train: an unknown device": Case(
        lambda: runs.train(runs.Config(device="abacus"), "/dev/null/run"),
        ValueError,
        "device",
        "abacus",
        "a name that torch knows",
    ),
    "rows: a file that is not there": Case(
        lambda: rows(runs.Config(data="nowhere.npy")), FileNotFoundError, "path", r"nowhere\.npy", "not there"
    ),
    "checkpoint.read: no such file": Case(
        lambda: checkpoint.read("nowhere"), checkpoint.CheckpointError, "nowhere", "not there", "expected"
    ),
}


OTHERS = {
    "Animation": "made by animate",
    "EMHistory": "made by em",
    "Exercise": "an answer of any kind meets a verdict, never an error: tests/test_exercises.py",
    "Exhibit": "made by the museum",
    "GapLedger": "made by gap_ledger",
    "Head": "abstract: its heads have rows",
    "History": "made by fit",
    "Pair": "made by build",
    "Posterior": "made by the fits",
    "Trainer": "takes a Config, which says what is wrong with it as it is made",
    "Verdict": "made by Exercise",
    "assess": "takes what the fits have made",
    "build": "takes a Config and its rows",
    "default_dtype": "takes a Config's dtype",
    "prepare": "takes a Config and its rows",
    "publish": "writes the line that a check has made",
    "run_checkers": "takes the museum's own exhibits",
    "write": "takes a module and its optimiser; disks that refuse are in tests/test_faults.py",
}
"""What is public and has no row, and why."""


def public() -> Iterator[tuple[str, Any]]:
    """Whatever a module's ``__all__`` names and can be called with an argument that may be wrong."""
    for found in pkgutil.walk_packages(vi_tutorial.__path__, "vi_tutorial."):
        private = any(part.startswith("_") for part in found.name.split("."))
        module = None if private else importlib.import_module(found.name)
        for name in getattr(module, "__all__", []):
            value = getattr(module, name)
            made = inspect.isclass(value) and issubclass(value, tuple | BaseException)
            alias = not (inspect.isroutine(value) or inspect.isclass(value)) or getattr(value, "_is_protocol", False)
            if not made and not alias and inspect.signature(value).parameters:
                yield name, value


def test_everything_public_has_a_row_or_a_reason() -> None:
    rows_for = {part for name in CASES for part in name.split(":")[0].split(".")}
    names = {name for name, _ in public()}
    assert names - rows_for - set(OTHERS) == set()
    assert set(OTHERS) <= names - rows_for, "a reason for what has a row, or is not there"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input_is_named(case: Case) -> None:
    with pytest.raises(case.error) as error:
        case.call()
    message = str(error.value)
    assert re.search(rf"\b{case.argument}\b", message), f"does not name {case.argument}: {message}"
    assert re.search(case.received, message), f"does not say what came: {message}"
    assert re.search(case.expected, message), f"does not say what was expected: {message}"


def test_the_table_has_no_duplicate_of_a_good_call() -> None:
    """The helpers' unchanged calls are sound, so that each row fails for its own reason."""
    fit()
    linear_gaussian().log_evidence(torch.zeros(5, 3))
    image_model().given(torch.zeros(2, 3))(torch.zeros(5, 2, 2))
    em(mixture(), table(), num_steps=1)
    m_step(mixture(), table(), halves())
    for estimator in ESTIMATORS:
        estimator(joint, q(3), 50)


def test_errors_of_bad_input_come_before_any_work() -> None:
    """A wrong count is found before the log joint, perhaps an expensive one, is called."""

    def never(z: Tensor) -> Tensor:
        raise AssertionError("the log joint was called")

    for estimator in ESTIMATORS:
        with pytest.raises(ValueError, match="num_samples"):
            estimator(never, q(3), 0)
