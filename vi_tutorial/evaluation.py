r"""How good is q, and how good is the model: estimates of :math:`\log p(x)`, diagnostics, the gap ledger."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from arviz_stats.base import array_stats
from torch import Tensor
from torch.distributions import Distribution

from vi_tutorial._validation import check_count, check_data, check_finite
from vi_tutorial.elbo import LogJoint, draw, iwae

__all__ = [
    "GapLedger",
    "ImportanceEstimate",
    "effective_sample_size",
    "gap_ledger",
    "importance_sampling",
    "pareto_k",
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
        q: As for :func:`vi_tutorial.elbo.draw`.
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
    with torch.no_grad():
        sizes = [min(chunk_size, num_samples - done) for done in range(0, num_samples, chunk_size)]
        log_weight = torch.cat([draw(log_joint, q, size).log_weight for size in sizes])
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
    Weights that do not vary, up to rounding, have no tail: k̂ is then :math:`-\infty`. Where they vary so much that most
    of the tail is lost to rounding beside the largest, it is :math:`+\infty`.

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
    varies = np.ptp(flat, axis=0) > rounding
    k = np.full(flat.shape[1], -np.inf)
    # Beside a weight e^600 times larger the lower tail underflows, and the reference would return a small k.
    num_tail = math.ceil(min(0.2 * len(flat), 3 * math.sqrt(len(flat))))
    underflows = flat.max(0) - np.sort(flat, axis=0)[-num_tail + num_tail // 4] > 600
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
