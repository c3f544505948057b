r"""Annealed importance sampling: the log evidence from below, and, given a posterior draw, from above.

A chain walks from a distribution that is easy to sample to the posterior, through densities in between,

.. math:: f_t(z) = q_0(z)^{1 - \beta_t}\, p_\theta(x, z)^{\beta_t}, \qquad 0 = \beta_0 < \dots < \beta_T = 1,

and collects a weight on its way,

.. math:: \log w = \sum_{t=1}^{T} (\beta_t - \beta_{t-1}) [\log p_\theta(x, z_{t-1}) - \log q_0(z_{t-1})],

whose expectation is :math:`p_\theta(x)`. With T = 1 it is importance sampling. :func:`forward` walks so;
:func:`reverse` walks the same way back from an exact posterior draw, and there
:math:`\mathbb{E}[1 / w] = 1 / p_\theta(x)`. By Jensen's inequality the logarithm of the one mean lies below
:math:`\log p_\theta(x)` in expectation, and minus that of the other above.

The steps between are Hamiltonian Monte Carlo; with one leapfrog step, Langevin. Their sizes are found by
:func:`tune` in a pilot run whose weights are thrown away: sizes that learned from the run they are used in would
bias it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from vi_tutorial._validation import check_count, check_data, check_distribution, check_positive, check_shape
from vi_tutorial.elbo import Draws, LogJoint, iwae, weigh
from vi_tutorial.objectives import tempered

__all__ = ["AnnealedEstimate", "Ladder", "forward", "reverse", "tune"]


class Ladder(NamedTuple):
    r"""The way from :math:`q_0` to the posterior, and how to walk it.

    Attributes:
        beta: :math:`\beta_0 = 0, \dots, \beta_T = 1`, shape ``(T + 1,)``.
        step_size: Of the leapfrog steps under each :math:`f_t`, shape ``(T, *batch)``.
        num_leapfrog: How many of them make a proposal.

    Example:
        >>> Ladder(torch.linspace(0, 1, 3), torch.full((2, 5), 0.1), 10).num_leapfrog
        10
    """

    beta: Tensor
    step_size: Tensor
    num_leapfrog: int


class AnnealedEstimate(NamedTuple):
    r"""What the chains found; every shape is ``batch`` but where it says more.

    Attributes:
        log_weight: Of each chain, shape ``(num_chains, *batch)``, nats.
        log_evidence: The estimate of :math:`\log p_\theta(x)`, nats: from below for :func:`forward`, from above for
            :func:`reverse`, both in expectation only.
        standard_error: Its standard error from the spread of the weights that were seen, nats; NaN for one chain. Where
            the weights have a heavy tail, as 1/w has on a long path from a broad start, it is too small.
        acceptance: The mean acceptance probability of the proposals.
        z: Where the chains ended, shape ``(num_chains, *batch, latent)``.

    Example:
        >>> AnnealedEstimate(*(torch.zeros(1) for _ in range(5))).acceptance
        tensor([0.])
    """

    log_weight: Tensor
    log_evidence: Tensor
    standard_error: Tensor
    acceptance: Tensor
    z: Tensor


def tune(
    log_joint: LogJoint,
    initial: Distribution,
    num_temperatures: int,
    *,
    num_chains: int = 10,
    num_leapfrog: int = 10,
    target_acceptance: float = 0.65,
    first_step_size: float = 0.1,
) -> Ladder:
    r"""Find a step size for each temperature and datapoint, in a pilot run.

    The temperatures lie closer at both ends, where little changes fast:
    :math:`\beta_t \propto \operatorname{sigmoid}(4 (2 t / T - 1))`, shifted and scaled to run from 0 to 1.

    Args:
        log_joint: As for :func:`vi_tutorial.elbo.draw`, differentiable in ``z``.
        initial: :math:`q_0` with ``batch_shape`` ``batch``: the prior, expanded, or an encoder's q. Its tails must not
            be lighter than the posterior's.
        num_temperatures: T, at least 1.
        num_chains: Of the pilot run, at least 1.
        num_leapfrog: Leapfrog steps in a proposal, at least 1.
        target_acceptance: Between 0 and 1.
        first_step_size: Where the search starts, positive.

    Returns:
        :class:`Ladder`.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind or out of range, or as for
            :func:`vi_tutorial.elbo.draw`.

    Source:
        Wu, Burda, Salakhutdinov & Grosse (2017), On the Quantitative Analysis of Decoder-Based Generative Models:
        sigmoid-spaced temperatures, Hamiltonian steps with adapted sizes.

    Example:
        >>> from torch.distributions import Normal
        >>> from vi_tutorial.distributions import diagonal_normal
        >>> q0 = diagonal_normal(torch.zeros(2, 1), torch.ones(2, 1))
        >>> ladder = tune(lambda z: Normal(1.0, 0.5).log_prob(z).sum(-1), q0, num_temperatures=20)
        >>> ladder.beta[0].item(), ladder.beta[-1].item(), ladder.step_size.shape
        (0.0, 1.0, torch.Size([20, 2]))
    """
    check_count("num_temperatures", num_temperatures)
    check_count("num_leapfrog", num_leapfrog)
    check_positive("first_step_size", first_step_size)
    if not 0 < target_acceptance < 1:
        raise ValueError(f"target_acceptance must lie between 0 and 1; received {target_acceptance}")
    with torch.no_grad():
        start = _start(log_joint, initial, num_chains)
    z = start.z
    position = torch.linspace(-1, 1, num_temperatures + 1, dtype=z.dtype, device=z.device)
    beta = (4 * position).sigmoid()
    beta = (beta - beta[0]) / (beta[-1] - beta[0])
    log_size = torch.full_like(start.log_q[0], math.log(first_step_size))
    sizes = []
    for t in range(1, num_temperatures + 1):
        for _ in range(2):
            z, acceptance = _hamiltonian_step(log_joint, initial, beta[t], z, log_size.exp(), num_leapfrog)
            log_size = log_size + 0.5 * (acceptance.mean(0) - target_acceptance)
        sizes.append(log_size.exp())
    return Ladder(beta, torch.stack(sizes), num_leapfrog)


def forward(log_joint: LogJoint, initial: Distribution, ladder: Ladder, num_chains: int) -> AnnealedEstimate:
    r"""Walk from :math:`q_0` to the posterior: an unbiased estimate of :math:`p_\theta(x)`, a lower bound on its log.

    Args:
        log_joint: As for :func:`tune`.
        initial: As for :func:`tune`.
        ladder: From :func:`tune`.
        num_chains: At least 2, for a standard error.

    Returns:
        :class:`AnnealedEstimate`, without gradient.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind or shape, or as for :func:`vi_tutorial.elbo.draw`.

    Source:
        Neal (2001), Annealed Importance Sampling.

    Example:
        >>> from vi_tutorial.distributions import diagonal_normal
        >>> q0 = diagonal_normal(torch.zeros(1, 1), torch.ones(1, 1))
        >>> flat = Ladder(torch.tensor([0.0, 1.0]), torch.tensor([[0.5]]), 1)
        >>> forward(lambda z: q0.log_prob(z) - 3, q0, flat, num_chains=5).log_evidence
        tensor([-3.])
    """
    check_count("num_chains", num_chains, minimum=2)
    with torch.no_grad():
        start = _start(log_joint, initial, num_chains)
    _check_ladder(ladder, start.log_q)
    z, log_weight = start.z, torch.zeros_like(start.log_q)
    acceptances = []
    for t in range(1, len(ladder.beta)):
        with torch.no_grad():
            log_weight = log_weight + (ladder.beta[t] - ladder.beta[t - 1]) * weigh(log_joint, initial, z).log_weight
        z, acceptance = _hamiltonian_step(
            log_joint, initial, ladder.beta[t], z, ladder.step_size[t - 1], ladder.num_leapfrog
        )
        acceptances.append(acceptance.mean(0))
    return AnnealedEstimate(
        log_weight, iwae(log_weight), _standard_error(log_weight), torch.stack(acceptances).mean(0), z
    )


def reverse(log_joint: LogJoint, initial: Distribution, ladder: Ladder, z: Tensor) -> AnnealedEstimate:
    r"""Walk back from posterior draws to :math:`q_0`: an upper bound on :math:`\log p_\theta(x)` in expectation.

    .. math:: \log p_\theta(x) = -\log \mathbb{E}[1 / w] \approx -\log \frac1C \sum_{c=1}^{C} \frac{1}{w_c}

    Args:
        log_joint: As for :func:`tune`.
        initial: As for :func:`tune`.
        ladder: The one that :func:`forward` used.
        z: Exact draws from the posterior, one for each chain, shape ``(num_chains, *batch, latent)``: for data
            simulated from the model, the z that made them; for a latent of two dimensions, draws from a grid. From
            any other start it is no bound.

    Returns:
        :class:`AnnealedEstimate`, without gradient.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind or shape, or as for :func:`vi_tutorial.elbo.weigh`.

    Source:
        Grosse, Ghahramani & Adams (2015), Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo.

    Example:
        >>> from vi_tutorial.distributions import diagonal_normal
        >>> q0 = diagonal_normal(torch.zeros(1, 1), torch.ones(1, 1))
        >>> flat = Ladder(torch.tensor([0.0, 1.0]), torch.tensor([[0.5]]), 1)
        >>> reverse(lambda z: q0.log_prob(z) - 3, q0, flat, q0.sample((5,))).log_evidence
        tensor([-3.])
    """
    check_data("z", z)
    with torch.no_grad():
        start = weigh(log_joint, initial, z)
    _check_ladder(ladder, start.log_q)
    log_weight = torch.zeros_like(start.log_q)
    acceptances = []
    for t in range(len(ladder.beta) - 1, 0, -1):
        z, acceptance = _hamiltonian_step(
            log_joint, initial, ladder.beta[t], z, ladder.step_size[t - 1], ladder.num_leapfrog
        )
        acceptances.append(acceptance.mean(0))
        with torch.no_grad():
            log_weight = log_weight + (ladder.beta[t] - ladder.beta[t - 1]) * weigh(log_joint, initial, z).log_weight
    return AnnealedEstimate(
        log_weight, -iwae(-log_weight), _standard_error(-log_weight), torch.stack(acceptances).mean(0), z
    )


def _start(log_joint: LogJoint, initial: Distribution, num_chains: int) -> Draws:
    check_count("num_chains", num_chains)
    check_distribution("initial", initial)
    return weigh(log_joint, initial, initial.sample(torch.Size([num_chains])))


def _standard_error(log_weight: Tensor) -> Tensor:
    """Of the log of the mean weight, to first order."""
    if len(log_weight) == 1:
        return torch.full_like(log_weight[0], math.nan)
    relative = (log_weight - iwae(log_weight)).exp()
    return relative.std(0) / math.sqrt(len(log_weight))


def _check_ladder(ladder: Ladder, log_q: Tensor) -> None:
    if not isinstance(ladder, Ladder):
        raise TypeError(f"ladder must be a Ladder, from tune; received {type(ladder).__name__}")
    expected = (len(ladder.beta) - 1, *log_q.shape[1:])
    check_shape("ladder.step_size", ladder.step_size, expected, "one per temperature, then the batch of initial")


def _hamiltonian_step(
    log_joint: LogJoint, initial: Distribution, beta: Tensor, z: Tensor, step_size: Tensor, num_leapfrog: int
) -> tuple[Tensor, Tensor]:
    """One Metropolis-corrected Hamiltonian step that leaves f_t as it is: where it ends, and its acceptance."""

    between = tempered(log_joint, initial, beta)

    def density(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            log_f = between(z)
            return log_f.detach(), torch.autograd.grad(log_f.sum(), z)[0]

    size = step_size.unsqueeze(-1)
    momentum = torch.randn_like(z)
    log_f, force = density(z)
    end, there, end_force = z, momentum, force
    for _ in range(num_leapfrog):
        there = there + 0.5 * size * end_force
        end = end + size * there
        lost = ~end.isfinite().all(-1, keepdim=True)  # ran away: back to the start, to be refused
        end = torch.where(lost, z, end)
        log_f_end, end_force = density(end)
        there = torch.where(lost, torch.full_like(there, math.inf), there + 0.5 * size * end_force)
    energy_drop = (log_f_end - 0.5 * (there**2).sum(-1)) - (log_f - 0.5 * (momentum**2).sum(-1))
    acceptance = energy_drop.nan_to_num(nan=-math.inf).clamp_max(0).exp()
    taken = torch.rand_like(acceptance) < acceptance
    return torch.where(taken.unsqueeze(-1), end, z), acceptance
