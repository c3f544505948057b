r"""How good is q, and how good is the model: estimates of :math:`\log p(x)`, diagnostics, the gap ledger."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from arviz_stats.base import array_stats
from torch import Tensor
from torch.distributions import Distribution

from vi_tutorial._validation import (
    check_count,
    check_data,
    check_distribution,
    check_finite,
    check_not_nan,
    check_positive,
    check_shape,
)
from vi_tutorial.elbo import LogJoint, draw, iwae, weigh
from vi_tutorial.families import PerDatapoint
from vi_tutorial.models import LatentVariableModel

__all__ = [
    "ActiveUnits",
    "GapLedger",
    "ImportanceEstimate",
    "PredictiveCheck",
    "RateDistortion",
    "Surgery",
    "active_units",
    "best_in_family",
    "effective_sample_size",
    "elbo_surgery",
    "gap_ledger",
    "importance_sampling",
    "pareto_k",
    "predictive_check",
    "rate_distortion",
]


class ImportanceEstimate(NamedTuple):
    r"""An importance-sampling estimate of the evidence and what to believe of it; every shape ``batch``.

    Attributes:
        log_evidence: The estimate of :math:`\log p(x)` in nats.
        standard_error: Its standard error in nats, from the spread of the weights that were seen.
        effective_sample_size: Between 1 and the number of samples.
        pareto_k: The tail index k̂ of the weights.

    Example:
        >>> ImportanceEstimate(torch.tensor(-2.0), torch.tensor(0.0), torch.tensor(9.0), torch.tensor(0.1))[0]
        tensor(-2.)
    """

    log_evidence: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor
    pareto_k: Tensor


def importance_sampling(
    log_joint: LogJoint, q: Distribution, num_samples: int, chunk_size: int = 1000
) -> ImportanceEstimate:
    r"""Estimate the log evidence by importance sampling with q as the proposal.

    .. math:: \log p(x) = \log \mathbb{E}_q[w] \approx \log \frac1K \sum_{k=1}^{K} w_k

    The estimate is the IWAE bound with many samples: below :math:`\log p(x)` in expectation, by about
    :math:`\operatorname{Var}(w / p(x)) / 2K` where that variance is finite. No gradient is kept.

    Args:
        log_joint: As for :func:`vi_tutorial.elbo.draw`.
        q: As for :func:`vi_tutorial.elbo.draw`; ``rsample`` is not needed.
        num_samples: K, at least 25, so that the tail of the weights can be looked at.
        chunk_size: How many samples to hold in memory at once.

    Returns:
        :class:`ImportanceEstimate`.

    Raises:
        TypeError, ValueError: As for :func:`vi_tutorial.elbo.draw` and :func:`pareto_k`.

    Source:
        Burda, Grosse & Salakhutdinov (2016), Importance Weighted Autoencoders, section 5; Vehtari,
        Simpson, Gelman, Yao & Gabry (2024), Pareto Smoothed Importance Sampling.

    Example:
        >>> from torch.distributions import Normal
        >>> posterior = Normal(torch.tensor(1.0).double(), torch.tensor(2.0).double())
        >>> estimate = importance_sampling(lambda z: posterior.log_prob(z) - 3, posterior, num_samples=100)
        >>> round(estimate.log_evidence.item(), 6), round(estimate.effective_sample_size.item(), 6)
        (-3.0, 100.0)
    """
    check_count("num_samples", num_samples, minimum=25)
    check_count("chunk_size", chunk_size)
    check_distribution("q", q, " (call a family first: q(x), not q)")
    with torch.no_grad():
        sizes = [min(chunk_size, num_samples - done) for done in range(0, num_samples, chunk_size)]
        # Sampled, not reparameterised: no gradient is wanted, and a q without rsample, a mixture say, will do.
        log_weight = torch.cat([weigh(log_joint, q, q.sample(torch.Size([size]))).log_weight for size in sizes])
    log_evidence = iwae(log_weight)
    relative = (log_weight - log_evidence).exp()
    return ImportanceEstimate(
        log_evidence,
        relative.std(0) / math.sqrt(num_samples),
        effective_sample_size(log_weight),
        pareto_k(log_weight),
    )


def effective_sample_size(log_weight: Tensor) -> Tensor:
    r"""How many equally weighted samples the weights are worth.

    .. math:: \mathrm{ESS} = \frac{(\sum_k w_k)^2}{\sum_k w_k^2}

    Args:
        log_weight: Shape ``(num_samples, *batch)``, finite, nats.

    Returns:
        Between 1 and ``num_samples``, shape ``batch``.

    Raises:
        TypeError, ValueError: If ``log_weight`` is not a finite, non-empty tensor with a sample dimension.

    Source:
        Kong (1992), A Note on Importance Sampling Using Standardized Weights.

    Example:
        >>> import math
        >>> effective_sample_size(torch.tensor([math.log(1.0), math.log(1.0), math.log(2.0)]))  # 16 / 6
        tensor(2.6667)
    """
    _check(log_weight)
    return (2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)).exp()


def pareto_k(log_weight: Tensor) -> Tensor:
    r"""The tail index k̂ of the weights, by Pareto-smoothed importance sampling.

    The largest weights are fitted by a generalised Pareto distribution of shape k; moments of order
    :math:`1/k` and above do not exist if :math:`k > 0`. Estimates are unreliable above
    :math:`\min(1 - 1/\log_{10} K, 0.7)`. k̂ can alarm but never certify: it sees only where q has put its samples.
    Where the largest do not vary, up to rounding, there is no tail: k̂ is then :math:`-\infty`. Where they vary so much
    that most of the tail is lost to rounding beside the largest, it is :math:`+\infty`.

    Args:
        log_weight: Shape ``(num_samples, *batch)``, finite, at least 25 samples, nats.

    Returns:
        k̂, shape ``batch``, without gradient.

    Raises:
        TypeError, ValueError: If ``log_weight`` is not a finite, non-empty tensor, or has too few samples.

    Source:
        Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto Smoothed Importance Sampling, JMLR 25(72);
        as implemented in ``arviz-stats``.

    Example:
        >>> quantiles = torch.arange(0.5, 4000, dtype=torch.float64) / 4000
        >>> round(pareto_k(-0.6 * (1 - quantiles).log()).item(), 1)  # weights that are Pareto with k = 0.6
        0.6
        >>> pareto_k(torch.zeros(100))
        tensor(-inf)
    """
    _check(log_weight)
    check_count("num_samples", len(log_weight), minimum=25)
    flat = log_weight.detach().double().cpu().reshape(len(log_weight), -1).numpy()
    rounding = 1e-9 * np.maximum(1.0, np.abs(flat).max(0))
    k = np.full(flat.shape[1], -np.inf)
    # Beside a weight e^600 times larger the lower tail underflows, and the reference would return a small k.
    num_tail = math.ceil(min(0.2 * len(flat), 3 * math.sqrt(len(flat))))
    tail = np.sort(flat, axis=0)[-num_tail:]
    varies = np.ptp(tail, axis=0) > rounding
    underflows = tail[-1] - tail[num_tail // 4] > 600
    k[underflows] = np.inf
    measured = varies & ~underflows
    if measured.any():
        # psislw takes log likelihoods, whose weights for leave-one-out are their reciprocals: hence the sign. It warns
        # where it overflows in smoothing the weights, which are not used.
        with np.errstate(all="ignore"):
            k[measured] = array_stats.psislw(-flat[:, measured].T)[1]
    return torch.as_tensor(k, dtype=log_weight.dtype).reshape(log_weight.shape[1:])


def _check(log_weight: Tensor) -> None:
    check_data("log_weight", log_weight)
    if log_weight.ndim == 0:
        raise ValueError("log_weight must have shape (num_samples, *batch); received shape ()")


@dataclass(frozen=True)
class GapLedger:
    r"""Where the evidence goes, in nats, as means over datapoints.

    .. math:: \log p_\theta(x) = \mathcal{L}(q)
              + \underbrace{[\mathcal{L}(q^*) - \mathcal{L}(q)]}_{\text{amortisation gap}}
              + \underbrace{[\log p_\theta(x) - \mathcal{L}(q^*)]}_{\text{approximation gap}}

    with :math:`q^*` the best member of q's family for each datapoint; and, where a reference
    :math:`\theta^*` is named, what θ loses against it, :math:`\log p_{\theta^*}(x) - \log p_\theta(x)`.
    ``str`` gives it as a table.

    Attributes:
        elbo: :math:`\mathcal{L}(q)`.
        amortisation_gap: What the best member of the family would gain; also what an optimiser has left undone.
        approximation_gap: What the family cannot reach: :math:`\mathrm{KL}(q^* \| p_\theta(z \mid x))`.
        log_evidence: :math:`\log p_\theta(x)`.
        theta_gap: What θ loses against the reference, possibly negative on held-out data; ``None`` without one.

    Example:
        >>> print(GapLedger(-5.0, 0.5, 1.5, -3.0, None))
        ELBO                     -5.0000
        + amortisation gap        0.5000
        + approximation gap       1.5000
        = log evidence           -3.0000
    """

    elbo: float
    amortisation_gap: float
    approximation_gap: float
    log_evidence: float
    theta_gap: float | None

    def __str__(self) -> str:
        rows = [
            ("ELBO", self.elbo),
            ("+ amortisation gap", self.amortisation_gap),
            ("+ approximation gap", self.approximation_gap),
            ("= log evidence", self.log_evidence),
        ]
        if self.theta_gap is not None:
            rows += [
                ("+ what theta loses", self.theta_gap),
                ("= reference", self.log_evidence + self.theta_gap),
            ]
        # Adding zero turns a rounded -0.0 into 0.0.
        return "\n".join(f"{name:<20} {round(value, 4) + 0.0:>11.4f}" for name, value in rows)


def gap_ledger(elbo: Tensor, best_elbo: Tensor, log_evidence: Tensor, reference: Tensor | None = None) -> GapLedger:
    """Split the evidence into the ELBO and its gaps; one number per datapoint in, means out.

    Args:
        elbo: Of the q at hand, shape ``batch``, nats; an expectation, or an estimate with small error.
        best_elbo: Of the best member of q's family for each datapoint, shape ``batch``, nats.
        log_evidence: Exact, or by a far tighter bound, shape ``batch``, nats.
        reference: The log evidence under a named reference θ*, shape ``batch``, nats, or nothing.

    Returns:
        :class:`GapLedger`.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If one is empty or not finite, or if the shapes differ.

    Source:
        Cremer, Li & Duvenaud (2018), Inference Suboptimality in Variational Autoencoders.

    Example:
        >>> gap_ledger(torch.tensor([-5.0, -7.0]), torch.tensor([-4.0, -6.0]), torch.tensor([-3.0, -6.0]))
        GapLedger(elbo=-6.0, amortisation_gap=1.0, approximation_gap=0.5, log_evidence=-4.5, theta_gap=None)
    """
    check_data("elbo", elbo)
    others = {"best_elbo": best_elbo, "log_evidence": log_evidence, "reference": reference}
    for name, value in others.items():
        if value is not None and check_finite(name, value).shape != elbo.shape:
            raise ValueError(f"{name} must have the shape of elbo {tuple(elbo.shape)}; received {tuple(value.shape)}")
    return GapLedger(
        elbo.mean().item(),
        (best_elbo - elbo).mean().item(),
        (log_evidence - best_elbo).mean().item(),
        log_evidence.mean().item(),
        None if reference is None else (reference - log_evidence).mean().item(),
    )


def best_in_family(
    objective: Callable[[Distribution], Tensor], q: PerDatapoint, num_steps: int = 50, tolerance: float = 1e-10
) -> Tensor:
    r"""The best ELBO that a family can give to each datapoint: :math:`\max_{\lambda_n} \mathcal{L}(x_n; \lambda_n)`.

    Climbs from where ``q`` stands, by Newton's method with each datapoint's own damping: a step that does not raise
    its ELBO is not taken, so no datapoint ends below its start. It is a local optimum: start in several places where
    there may be several.

    Args:
        objective: From q, as a distribution over the batch of all N, to the ELBO of each, shape ``(N,)``; without
            fresh noise, such as :func:`vi_tutorial.quadrature.expected_elbo`. One datapoint's value must not depend
            on another's parameters.
        q: The family; its parameters are left at the best that was found.
        num_steps: At most so many steps.
        tolerance: Stops when no ELBO has risen by more, in nats.

    Returns:
        The ELBOs, shape ``(N,)``, without gradient.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``objective`` returns another shape or is NaN at the start, or an argument is out of range.

    Example:
        >>> from torch import nn
        >>> from torch.distributions import kl_divergence
        >>> from vi_tutorial.distributions import diagonal_normal
        >>> from vi_tutorial.networks import DiagonalNormalHead
        >>> posterior = diagonal_normal(torch.tensor([[3.0], [-20.0]]).double(), torch.tensor([[0.1], [5.0]]).double())
        >>> q = PerDatapoint(DiagonalNormalHead(nn.Identity(), 1), torch.zeros(2, 2).double())
        >>> best_in_family(lambda q: -kl_divergence(q, posterior), q).abs().max() < 1e-10
        tensor(True)
        >>> q(torch.zeros(2)).mean.round(decimals=6).flatten().tolist()
        [3.0, -20.0]
    """
    if not isinstance(q, PerDatapoint):
        raise TypeError(f"q must be a PerDatapoint family; received {type(q).__name__}")
    check_count("num_steps", num_steps)
    check_positive("tolerance", tolerance)
    rows = q.numbers.detach()
    damping = torch.ones_like(rows[:, 0])
    with torch.no_grad():
        value = objective(q(rows))
    check_shape("objective(q)", value, (len(rows),), "one ELBO per datapoint")
    check_not_nan("objective(q)", value, "start from other numbers")
    for _ in range(num_steps):
        gradient, curvature = _derivatives(objective, q)
        # Downward curvature is trusted, any other turned downward; damping shortens the step where that misled.
        eigenvalue, basis = torch.linalg.eigh(curvature)
        steepness = eigenvalue.abs()
        steepest = steepness.amax(-1, keepdim=True).clamp_min(1e-12)
        slope = (basis.mT @ gradient.unsqueeze(-1)).squeeze(-1)
        if bool((slope**2 / (2 * steepness.clamp_min(1e-9 * steepest))).sum(-1).amax() <= tolerance):
            break  # nothing left to gain, to second order
        step = (basis @ (slope / (steepness + damping[:, None] * steepest)).unsqueeze(-1)).squeeze(-1)
        step = step * (10 * (1 + rows.abs().amax(-1, keepdim=True)) / step.norm(dim=-1, keepdim=True)).clamp_max(1)
        here = rows.clone()
        rows.add_(step)  # the parameters themselves: q now stands at the proposal
        proposed = _value_or_nothing(objective, q, value)
        better = proposed > value
        rows.copy_(torch.where(better[:, None], rows, here))
        value = torch.where(better, proposed, value)
        damping = torch.where(better, damping / 10, damping * 4).clamp(1e-9, 1e9)
    return value


def _derivatives(objective: Callable[[Distribution], Tensor], q: PerDatapoint) -> tuple[Tensor, Tensor]:
    """Gradient (N, P) and Hessian (N, P, P) of each datapoint's value: the sum's, since no value sees another's row."""
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(objective(q(q.numbers)).sum(), q.numbers, create_graph=True)
        rows = [torch.autograd.grad(column.sum(), q.numbers, retain_graph=True)[0] for column in gradient.unbind(-1)]
    curvature = torch.stack(rows, -2)
    return gradient.detach(), 0.5 * (curvature + curvature.mT)


def _value_or_nothing(objective: Callable[[Distribution], Tensor], q: PerDatapoint, like: Tensor) -> Tensor:
    """The objective at the proposal; −∞, which is never taken, where the proposal is no distribution."""
    try:
        with torch.no_grad():
            return objective(q(q.numbers)).nan_to_num(nan=-math.inf)
    except ValueError:
        return torch.full_like(like, -math.inf)


class RateDistortion(NamedTuple):
    r"""The two terms of the ELBO of each datapoint, in nats, shape ``(N,)``: their sum is −ELBO.

    Attributes:
        rate: :math:`\mathrm{KL}(q_\phi(z \mid x) \| p(z))`: what the code says of the datapoint.
        distortion: :math:`-\mathbb{E}_q \log p_\theta(x \mid z)`: what the decoder still has to be told.

    Example:
        >>> sum(RateDistortion(torch.tensor([3.0]), torch.tensor([20.0])))  # −ELBO
        tensor([23.])
    """

    rate: Tensor
    distortion: Tensor


def rate_distortion(model: LatentVariableModel, x: Tensor, q: Distribution, num_samples: int = 100) -> RateDistortion:
    """Split −ELBO into rate and distortion, by the same draws.

    Args:
        model: The joint.
        x: Data, shape ``(N, *event)``.
        q: The posteriors, ``batch_shape`` ``(N,)``.
        num_samples: Draws per datapoint, at least 1.

    Returns:
        :class:`RateDistortion`, without gradient.

    Raises:
        TypeError, ValueError: As for :func:`vi_tutorial.elbo.draw`.

    Source:
        Alemi, Poole, Fischer, Dillon, Saurous & Murphy (2018), Fixing a Broken ELBO.

    Example:
        >>> from vi_tutorial.models import conjugate_normal
        >>> model, x = conjugate_normal(1), torch.zeros(1, 1).double()
        >>> prior = model.prior().expand((1,))
        >>> rate_distortion(model, x, prior).rate  # the prior itself says nothing
        tensor([0.], dtype=torch.float64)
    """
    with torch.no_grad():
        draws = draw(model.given(x), q, num_samples)
        log_prior = model.prior().log_prob(draws.z)
        return RateDistortion((draws.log_q - log_prior).mean(0), (log_prior - draws.log_joint).mean(0))


class ActiveUnits(NamedTuple):
    """Which latents tell one datapoint from another, by :func:`active_units`; shape ``(L,)`` each.

    Example:
        >>> ActiveUnits(torch.tensor([0.9, 0.0]), torch.tensor([True, False])).active.sum()
        tensor(1)
    """

    variance: Tensor
    active: Tensor


def active_units(q: Distribution, threshold: float = 0.01) -> ActiveUnits:
    r"""Latents whose posterior mean varies over the data: :math:`\operatorname{Var}_x \mathbb{E}_q[z_i] > 0.01`.

    Args:
        q: The posteriors of N datapoints, ``batch_shape`` ``(N,)``, N at least 2.
        threshold: Positive, in the units of z squared.

    Returns:
        :class:`ActiveUnits`.

    Raises:
        ValueError: If ``q`` does not have a batch of at least two, or ``threshold`` is not positive.

    Source:
        Burda, Grosse & Salakhutdinov (2016), Importance Weighted Autoencoders, section 5.2.

    Example:
        >>> from vi_tutorial.distributions import diagonal_normal
        >>> q = diagonal_normal(torch.tensor([[1.0, 0.05], [-1.0, -0.05]]), torch.ones(2, 2))
        >>> active_units(q).active
        tensor([ True, False])
    """
    check_positive("threshold", threshold)
    mean = q.mean.detach()
    if mean.ndim != 2 or len(mean) < 2:
        raise ValueError(
            f"q must have the posteriors of at least two datapoints; received batch {tuple(q.batch_shape)}"
        )
    variance = mean.var(0, correction=0)
    return ActiveUnits(variance, variance > threshold)


class Surgery(NamedTuple):
    r"""The mean rate, cut in two; numbers in nats.

    .. math:: \frac1N \sum_n \mathrm{KL}(q(z \mid x_n) \| p(z))
              = \underbrace{\mathbb{I}[n; z]}_{\le \log N} + \mathrm{KL}(\bar q(z) \| p(z)), \qquad
              \bar q(z) = \frac1N \sum_n q(z \mid x_n)

    Attributes:
        mean_kl: Mean of the rates.
        mutual_information: Between the datapoint's index and its code, under q.
        marginal_kl: From the aggregate posterior to the prior: what no sample from the prior makes good.

    Example:
        >>> cut = Surgery(torch.tensor(5.0), torch.tensor(4.5), torch.tensor(0.5))
        >>> cut.mean_kl == cut.mutual_information + cut.marginal_kl
        tensor(True)
    """

    mean_kl: Tensor
    mutual_information: Tensor
    marginal_kl: Tensor


def elbo_surgery(q: Distribution, prior: Distribution, num_samples: int = 10) -> Surgery:
    """Cut the mean rate into what codes say of datapoints and how far all codes together are from the prior.

    Costs ``num_samples`` · N² densities; the three numbers come from the same draws, and add up exactly.

    Args:
        q: The posteriors of all N datapoints, ``batch_shape`` ``(N,)``, N at least 2.
        prior: :math:`p(z)`, ``batch_shape`` ``()``.
        num_samples: Draws per datapoint, at least 1.

    Returns:
        :class:`Surgery`.

    Raises:
        TypeError, ValueError: If ``q`` does not have a batch of at least two, ``prior`` is not one distribution over
            the same latents, or ``num_samples`` is no count.

    Source:
        Hoffman & Johnson (2016), ELBO Surgery: Yet Another Way to Carve Up the Variational Evidence Lower Bound.

    Example:
        >>> from vi_tutorial.distributions import diagonal_normal
        >>> far_apart = diagonal_normal(torch.tensor([[-50.0], [50.0]]).double(), torch.ones(2, 1).double())
        >>> prior = diagonal_normal(torch.zeros(1).double(), torch.tensor([50.0]).double())
        >>> round(elbo_surgery(far_apart, prior).mutual_information.item(), 4)  # which of the two: log 2
        0.6931
    """
    check_count("num_samples", num_samples)
    if len(q.batch_shape) != 1 or q.batch_shape[0] < 2:
        raise ValueError(
            f"q must have the posteriors of at least two datapoints; received batch {tuple(q.batch_shape)}"
        )
    check_distribution("prior", prior, " (call the module: model.prior())")
    if prior.batch_shape or prior.event_shape != q.event_shape:
        raise ValueError(
            f"prior must have the event_shape of q {tuple(q.event_shape)} and no batch; received "
            f"{tuple(prior.event_shape)} and {tuple(prior.batch_shape)}"
        )
    num_data = q.batch_shape[0]
    with torch.no_grad():
        z = q.sample(torch.Size([num_samples]))
        log_q, log_prior = q.log_prob(z), prior.log_prob(z)
        codes = z.reshape(num_samples * num_data, 1, -1)
        per_chunk = max(1, 4_000_000 // (num_data * z.shape[-1]))
        log_marginal = torch.cat([q.log_prob(part).logsumexp(-1) for part in codes.split(per_chunk)])
        log_marginal = log_marginal.reshape(num_samples, num_data) - math.log(num_data)
    return Surgery((log_q - log_prior).mean(), (log_q - log_marginal).mean(), (log_marginal - log_prior).mean())


class PredictiveCheck(NamedTuple):
    r"""A statistic of the data beside the same statistic of data that the model has made.

    Attributes:
        observed: T(x), shape ``()``.
        replicated: T of each replicate, shape ``(R,)``.
        p_value: The share of replicates with T at least as large. Near 0 or 1: the model does not make such data.

    Example:
        >>> PredictiveCheck(torch.tensor(5.0), torch.tensor([1.0, 6.0]), torch.tensor(0.5)).p_value
        tensor(0.5000)
    """

    observed: Tensor
    replicated: Tensor
    p_value: Tensor


def predictive_check(statistic: Callable[[Tensor], Tensor], x: Tensor, replicates: Tensor) -> PredictiveCheck:
    r"""Compare data with data sets of the same size drawn from the model, by one statistic.

    .. math:: \Pr\big(T(x^{\text{rep}}) \ge T(x)\big)

    Replicates are *sampled* data; a decoder's means have less variance than any data. Data used to learn the model
    make the check milder; held-out data do not.

    Args:
        statistic: T, from a data set, shape ``(N, *event)``, to one number, shape ``()``.
        x: The data.
        replicates: R data sets from the model, shape ``(R, N, *event)``.

    Returns:
        :class:`PredictiveCheck`.

    Raises:
        TypeError: If ``x`` or ``replicates`` is not a floating-point tensor, or ``statistic`` not callable.
        ValueError: If the shapes do not fit, or ``statistic`` does not return one finite number.

    Source:
        Gelman et al. (2013), Bayesian Data Analysis, section 6.3.

    Example:
        >>> x, replicates = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([[1.0, 2.0, 3.0], [8.0, 9.0, 10.0]])
        >>> predictive_check(torch.max, x, replicates).p_value
        tensor(0.5000)
    """
    check_data("x", x)
    check_data("replicates", replicates)
    check_shape("replicates", replicates, (len(replicates), *x.shape), "data sets of the shape of x")
    observed, replicated = statistic(x), torch.stack([torch.as_tensor(statistic(each)) for each in replicates])
    check_shape("statistic(x)", torch.as_tensor(observed), (), "one number for a data set")
    check_finite("statistic(x)", torch.as_tensor(observed))
    check_finite("statistic(replicate)", replicated)
    return PredictiveCheck(torch.as_tensor(observed), replicated, (replicated >= observed).to(x.dtype).mean())
