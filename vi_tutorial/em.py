r"""Expectation–maximisation: coordinate ascent on the ELBO, first in q, then in θ.

.. math:: q \leftarrow \arg\max_q \mathcal{L}(q, \theta), \qquad
          \theta \leftarrow \arg\max_\theta \mathcal{L}(q, \theta)

:func:`e_step` is the first, :func:`m_step` the second, :func:`em` takes turns. The E-step closes the gap, so that
:math:`\mathcal{L} = \log p_\theta(x)`; the M-step raises :math:`\mathcal{L}`, and :math:`\log p_\theta(x)`, which lies
above it, with it. Each is an argument of :func:`em`: give it another E-step, with a q that is too simple, and it is
variational EM; another M-step, that only climbs, and it is generalised EM.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution

from vi_tutorial._validation import NotFiniteError, check_columns_vary, check_count, check_data, check_number
from vi_tutorial.distributions import covariance
from vi_tutorial.models import GaussianMixture, LinearGaussian

__all__ = ["EMHistory", "ExactModel", "e_step", "em", "m_step"]


class ExactModel(Protocol):
    """What :func:`em` asks of a model: its posterior, its evidence and its ELBO, each without sampling.

    Example:
        >>> from vi_tutorial.models import factor_analysis
        >>> model: ExactModel = factor_analysis(data_dim=3, latent_dim=1)
    """

    def posterior(self, x: Tensor) -> Distribution:
        """p(z | x), with ``batch_shape`` ``(N,)``."""

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) in nats, shape ``(N,)``."""

    def elbo(self, x: Tensor, q: Any) -> Tensor:
        """The ELBO in nats, shape ``(N,)``."""


@dataclass
class EMHistory:
    r"""What happened, as totals over the data set, in nats.

    With :math:`\theta_t` the parameters after t steps and :math:`q_t` the E-step's answer to them, and T steps done:

    Attributes:
        log_evidence: :math:`\sum_n \log p_{\theta_t}(x_n)` for t = 0 to T: the start, then after each step.
        after_e_step: :math:`\mathcal{L}(q_t, \theta_t)` for t = 0 to T − 1: equal to ``log_evidence[t]`` if the E-step
            is exact.
        after_m_step: :math:`\mathcal{L}(q_t, \theta_{t+1})`, of the same length: at most ``log_evidence[t + 1]``.
        converged: Whether the last step gained at most the tolerance.

    Example:
        >>> EMHistory().converged
        False
    """

    log_evidence: list[float] = field(default_factory=list)
    after_e_step: list[float] = field(default_factory=list)
    after_m_step: list[float] = field(default_factory=list)
    converged: bool = False


def e_step(model: ExactModel, x: Tensor) -> Distribution:
    r"""The q that maximises the ELBO at fixed θ: the exact posterior.

    .. math:: \arg\max_q \mathcal{L}(q, \theta) = p_\theta(z \mid x), \qquad
              \text{since} \quad \log p_\theta(x) - \mathcal{L} = \mathrm{KL}(q \,\|\, p_\theta(z \mid x)) \ge 0

    Args:
        model: A model with an exact posterior.
        x: Data, shape ``(N, D)``.

    Returns:
        ``model.posterior(x)`` with ``batch_shape`` ``(N,)``, without gradient: the M-step holds it fixed.

    Raises:
        TypeError, ValueError: If ``x`` is not what the model takes.

    Source:
        Neal & Hinton (1998), A View of the EM Algorithm that Justifies Incremental, Sparse, and Other Variants.

    Example:
        >>> from vi_tutorial.models import GaussianMixture
        >>> model = GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1, 1))
        >>> e_step(model, torch.tensor([[0.0]])).probs
        tensor([[0.5000, 0.5000]])
    """
    with torch.no_grad():
        return model.posterior(x)


def m_step(model: GaussianMixture | LinearGaussian, x: Tensor, q: Distribution, min_variance: float = 0.0) -> None:
    r"""Put the model's parameters where they maximise the ELBO at fixed q, in closed form.

    .. math:: \theta \leftarrow \arg\max_\theta \sum_n \mathbb{E}_{q(z_n)}[\log p_\theta(x_n, z_n)]

    For a mixture with responsibilities :math:`r_{nk} = q(z_n = k)` and :math:`N_k = \sum_n r_{nk}`:

    .. math:: \pi_k = \frac{N_k}{N}, \qquad \mu_k = \frac{1}{N_k} \sum_n r_{nk} x_n, \qquad
              \Sigma_k = \frac{1}{N_k} \sum_n r_{nk} (x_n - \mu_k)(x_n - \mu_k)^\top

    For a linear-Gaussian model with :math:`q(z_n) = \mathcal{N}(m_n, S_n)`: the regression of x on z, whose second
    moment is :math:`m_n m_n^\top + S_n`, and for the noise the expected squares of what it leaves, one variance per
    coordinate or, where the model has one scale, their mean. The prior stays.

    Parameters without ``requires_grad`` stay too (:func:`vi_tutorial.training.frozen`): the others are maximised given
    them. Any q will do, not only the last E-step's: with a few rows of it renewed at a time, this is incremental EM.

    Args:
        model: The model; its parameters are changed in place.
        x: Data, shape ``(N, D)``.
        q: A Categorical for a mixture, a Normal for a linear-Gaussian model, with ``batch_shape`` ``(N,)``.
        min_variance: A floor in the squared units of ``x``, for the noise variances or for the eigenvalues of each
            component's covariance. The update is then the maximum under that constraint. At 0, nothing is held up:
            where the likelihood has no upper bound, an error says so.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes do not fit or ``min_variance`` is negative; if all parameters are frozen; if a component
            has no datapoints; or, with ``min_variance = 0``, if a component's covariance or the noise has collapsed,
            or a column of ``x`` never varies where its variance is learned. The model is then as it was.

    Source:
        Bishop (2006), Pattern Recognition and Machine Learning, sections 9.2.2, 9.3.1, 12.2.2 and 12.2.4; Dempster,
        Laird & Rubin (1977), Maximum Likelihood from Incomplete Data via the EM Algorithm.

    Example:
        >>> from vi_tutorial.models import GaussianMixture
        >>> model = GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1, 1))
        >>> x = torch.tensor([[0.0], [2.0], [6.0], [8.0]])
        >>> m_step(model, x, Categorical(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])))
        >>> model.loc.flatten().tolist()
        [1.0, 7.0]
    """
    check_data("x", x, ndim=2)
    check_number("min_variance", min_variance)
    if not 0 <= min_variance < math.inf:
        raise ValueError(f"min_variance must be a finite number of at least 0; received {min_variance}")
    if not isinstance(model, (GaussianMixture, LinearGaussian)):
        raise TypeError(
            f"model must be a GaussianMixture or a LinearGaussian; received {type(model).__name__} (write its M-step, "
            "and give it to em)"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model must have a parameter to learn; received one whose parameters are all frozen")
    with torch.no_grad():
        if isinstance(model, GaussianMixture):
            _maximise_mixture(model, x, q, min_variance)
        else:
            _maximise_linear_gaussian(model, x, q, min_variance)


def _maximise_mixture(model: GaussianMixture, x: Tensor, q: Distribution, min_variance: float) -> None:
    if not isinstance(q, Categorical):
        raise TypeError(f"q must be a Categorical over the components; received {type(q).__name__}")
    num_components, data_dim = model.loc.shape
    _check_fit("q.probs", q.probs, (len(x), num_components), x, data_dim)
    count = q.probs.sum(0)  # N_k
    empty = torch.nonzero(count <= torch.finfo(x.dtype).eps * len(x)).flatten().tolist()
    if empty:
        raise ValueError(
            f"component(s) {empty} of the mixture must have datapoints; received responsibilities that sum to "
            f"{count[empty].tolist()}: start elsewhere, or with fewer components"
        )
    share = q.probs / count  # r_nk / N_k, each column summing to one
    loc = share.mT @ x if model.likelihood.loc.requires_grad else model.loc
    scale_tril = None
    if model.likelihood.unconstrained_tril.requires_grad:
        if not min_variance:
            check_columns_vary("x", x, "drop them, or set min_variance above 0")
        deviation = x - loc.unsqueeze(1)  # (K, N, D)
        second = deviation.mT @ (share.mT.unsqueeze(-1) * deviation)
        scale_tril = _factor(second, count, x, min_variance)
    # Nothing is written before everything is known to be sound.
    if model.prior.logits.requires_grad:
        model.prior.logits.copy_((count / len(x)).log())
    model.likelihood.loc.copy_(loc)
    if scale_tril is not None:
        model.likelihood.assign(scale_tril)


def _factor(second: Tensor, count: Tensor, x: Tensor, min_variance: float) -> Tensor:
    """Cholesky factors of the components' covariances; a collapsed one is raised to the floor, or refused."""
    if min_variance:
        # The maximum of -½ (log det Σ + tr Σ⁻¹S) over Σ ⪰ c I keeps the eigenvectors of S and clips its eigenvalues.
        eigenvalues, vectors = torch.linalg.eigh(second)
        second = (vectors * eigenvalues.clamp(min=min_variance).unsqueeze(-2)) @ vectors.mT
        return torch.linalg.cholesky(second)
    # Measured in the data's own units, so that minutes and milliseconds meet the same limit.
    scale = x.std(0, correction=0)
    smallest = torch.linalg.eigvalsh(second / torch.outer(scale, scale))[:, 0]
    collapsed = torch.nonzero(smallest <= 10 * torch.finfo(x.dtype).eps * len(scale)).flatten().tolist()
    if collapsed:
        weights = ", ".join(f"{count[k].item():.3g}" for k in collapsed)
        raise ValueError(
            f"component(s) {collapsed} of the mixture must spread in all {len(scale)} dimensions; received a singular "
            f"covariance (datapoints in it: {weights}), towards which the likelihood has no upper bound: start "
            "elsewhere, take fewer components, or set min_variance above 0"
        )
    return torch.linalg.cholesky(second)


def _maximise_linear_gaussian(model: LinearGaussian, x: Tensor, q: Distribution, min_variance: float) -> None:
    data_dim, latent_dim = model.weight.shape
    spread = covariance(q)
    _check_fit("q.mean", q.mean, (len(x), latent_dim), x, data_dim)
    learn = {name: parameter.requires_grad for name, parameter in model.likelihood.named_parameters()}
    weight, loc = model.weight, model.loc
    # With b free the regression passes through the means; with b fixed, through b.
    x_mid, z_mid = (x.mean(0), q.mean.mean(0)) if learn["loc"] else (model.loc, torch.zeros_like(q.mean[0]))
    if learn["weight"]:
        z = q.mean - z_mid
        weight = torch.linalg.solve(z.mT @ z + spread.sum(0), z.mT @ (x - x_mid)).mT
    if learn["loc"]:
        loc = x_mid - weight @ z_mid
    variance = None
    if learn["log_noise_scale"]:
        per_column = model.noise_scale.ndim == 1
        if per_column and not min_variance:
            check_columns_vary("x", x, "drop them, or set min_variance above 0")
        uncertain = ((weight @ spread.mean(0)) * weight).sum(-1)  # diagonal of W S̄ Wᵀ
        variance = (x - q.mean @ weight.mT - loc).square().mean(0) + uncertain
        total = x.var(0, correction=0)
        if not per_column:
            variance, total = variance.mean(), total.mean()
        variance = variance.clamp(min=min_variance)
        gone = (variance <= torch.finfo(x.dtype).eps * data_dim * total) | (total == 0)
        if gone.any() and not min_variance:
            where = f" of column(s) {torch.nonzero(gone).flatten().tolist()}" if per_column else ""
            raise ValueError(
                f"x must leave variance for the noise; received data whose noise variance{where} has gone to zero, "
                "where the likelihood has no upper bound: take more datapoints, a smaller latent_dim, or min_variance "
                "above 0"
            )
    model.likelihood.weight.copy_(weight)
    model.likelihood.loc.copy_(loc)
    if variance is not None:
        model.likelihood.log_noise_scale.copy_(0.5 * variance.log())


def _check_fit(name: str, value: Tensor, expected: tuple[int, int], x: Tensor, data_dim: int) -> None:
    """One row of q for each of x, and the model's own numbers of columns in both."""
    if value.shape != expected:
        raise ValueError(
            f"{name} must have shape {expected}, a row per datapoint and the model's latent size; "
            f"received {tuple(value.shape)}"
        )
    if x.shape[1] != data_dim:
        raise ValueError(f"x must have the model's {data_dim} column(s); received shape {tuple(x.shape)}")


def em(
    model: ExactModel,
    x: Tensor,
    *,
    num_steps: int = 1000,
    tolerance: float = 1e-9,
    e_step: Callable[[Any, Tensor], Distribution] = e_step,
    m_step: Callable[[Any, Tensor, Any], object] = m_step,
    callback: Callable[[int], object] | None = None,
) -> EMHistory:
    r"""Take turns: an E-step, an M-step, until a step gains next to nothing.

    .. math:: \log p_{\theta_t}(x) = \mathcal{L}(q_t, \theta_t) \le \mathcal{L}(q_t, \theta_{t+1})
              \le \log p_{\theta_{t+1}}(x)

    The equality needs an exact E-step, the first inequality an M-step that does not lower the ELBO.

    Args:
        model: A model with an exact posterior, evidence and ELBO; its parameters are changed in place.
        x: Data, shape ``(N, D)``.
        num_steps: At most so many steps, at least 1.
        tolerance: Stop when a step raises the ELBO, summed over the data set, by at most so many nats. At 0, only when
            it no longer rises at all.
        e_step: From ``(model, x)`` to q, with ``batch_shape`` ``(N,)``.
        m_step: From ``(model, x, q)``; changes the model in place. A floor on variances is
            ``functools.partial(m_step, min_variance=...)``.
        callback: Called after each step with the number of steps done.

    Returns:
        :class:`EMHistory`, in nats.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If one is out of range, if the ELBO is not finite, or as for :func:`m_step`.

    Source:
        Dempster, Laird & Rubin (1977), Maximum Likelihood from Incomplete Data via the EM Algorithm; Neal & Hinton
        (1998), A View of the EM Algorithm that Justifies Incremental, Sparse, and Other Variants.

    Example:
        >>> from vi_tutorial.models import GaussianMixture
        >>> model = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1, 1))
        >>> history = em(model, torch.tensor([[1.0], [3.0]]))  # one component: a Normal's mean and variance
        >>> model.loc.item(), model.covariance_matrix.item(), history.converged
        (2.0, 1.0, True)
    """
    check_data("x", x, ndim=2)
    check_count("num_steps", num_steps)
    check_number("tolerance", tolerance)
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be a finite number of at least 0; received {tolerance}")
    history = EMHistory()

    def total(term: str, evaluate: Callable[..., Tensor], *arguments: Any) -> float:
        with torch.no_grad():
            value = evaluate(*arguments).sum().item()
        if not math.isfinite(value):
            raise NotFiniteError(
                f"{term} must be finite; received {value} after {len(history.after_m_step)} step(s): look at the "
                "model's parameters"
            )
        return value

    history.log_evidence.append(total("log p(x)", model.log_evidence, x))
    for step in range(1, num_steps + 1):
        q = e_step(model, x)
        history.after_e_step.append(total("the ELBO after the E-step", model.elbo, x, q))
        m_step(model, x, q)
        history.after_m_step.append(total("the ELBO after the M-step", model.elbo, x, q))
        history.log_evidence.append(total("log p(x)", model.log_evidence, x))
        if callback is not None:
            callback(step)
        bounds = history.after_m_step
        if step > 1 and bounds[-1] - bounds[-2] <= tolerance:
            history.converged = True
            break
    return history
