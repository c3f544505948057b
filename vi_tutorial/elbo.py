r"""The log weight, and what one can do with it.

Everything in this series is one quantity, the log weight

.. math:: \log w(z; x) = \log p_\theta(x, z) - \log q_\phi(z \mid x), \qquad z \sim q_\phi(z \mid x).

:func:`draw` draws it; :func:`elbo`, :func:`iwae`, :func:`renyi` and :func:`cubo` reduce it over
samples. The gradient estimators at the end return the same bounds with another gradient: they
differ in what is differentiated, the sample, :math:`\log q`, or both.

Nothing here knows a model, a network or data: only a ``log_joint``, a function of ``z`` that returns
one number per sample and datapoint, and a ``torch.distributions.Distribution``. Samples are the
leading dimension, a bound is one number per datapoint, and everything is in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from vi_tutorial._validation import check_count, check_distribution, check_not_nan, check_number, check_tensor

__all__ = [
    "Draws",
    "LogJoint",
    "cubo",
    "dataset_total",
    "draw",
    "elbo",
    "elbo_analytic_kl",
    "elbo_enumerated",
    "elbo_leave_one_out",
    "elbo_score_function",
    "elbo_sticking_the_landing",
    "iwae",
    "iwae_doubly_reparameterised",
    "renyi",
    "weigh",
]

LogJoint = Callable[[Tensor], Tensor]
"""``log_joint(z)`` with ``z`` of shape ``(num_samples, *batch, *event)`` returns ``(num_samples, *batch)``."""

_MAX_STATES = 2**20


class Draws(NamedTuple):
    r"""Samples from q and the two log densities of each: all that the bounds and diagnostics need.

    Attributes:
        z: The samples, shape ``(num_samples, *batch, *event)``.
        log_joint: :math:`\log p_\theta(x, z)` in nats, shape ``(num_samples, *batch)``.
        log_q: :math:`\log q_\phi(z \mid x)` in nats, shape ``(num_samples, *batch)``.

    Example:
        >>> Draws(torch.zeros(1, 2), torch.tensor([-3.0]), torch.tensor([-1.0])).log_weight
        tensor([-2.])
    """

    z: Tensor
    log_joint: Tensor
    log_q: Tensor

    @property
    def log_weight(self) -> Tensor:
        """log w = log p(x, z) − log q(z | x) in nats, shape ``(num_samples, *batch)``."""
        return self.log_joint - self.log_q


def draw(log_joint: LogJoint, q: Distribution, num_samples: int = 1) -> Draws:
    r"""Draw :math:`z \sim q` and weigh it; gradients flow through the sample and both densities.

    This is the pathwise (reparameterised) way: differentiating ``elbo(draw(...).log_weight)``
    gives the total derivative of the Monte Carlo ELBO.

    Args:
        log_joint: Function of ``z``, shape ``(num_samples, *batch, *event)``, that returns
            :math:`\log p_\theta(x, z)`, shape ``(num_samples, *batch)``.
        q: Distribution with ``batch_shape`` ``batch``, one element per datapoint, and an ``rsample``.
        num_samples: How many samples per datapoint, at least 1.

    Returns:
        :class:`Draws`, in nats.

    Raises:
        TypeError: If ``q`` is not a ``Distribution`` or ``num_samples`` not an ``int``.
        ValueError: If ``num_samples < 1``, if ``q`` has no ``rsample`` or an empty batch, if
            ``log_joint`` returns another shape than ``q.log_prob``, or if a log density is NaN.

    Source:
        Kingma & Welling (2014), Auto-Encoding Variational Bayes, eq. 4 to 6.

    Example:
        >>> from torch.distributions import Normal
        >>> q = Normal(torch.tensor(0.0), torch.tensor(1.0))
        >>> draws = draw(lambda z: q.log_prob(z) - 2, q, num_samples=3)
        >>> draws.log_weight.round(decimals=4)
        tensor([-2., -2., -2.])
    """
    return weigh(log_joint, q, _reparameterised(q, num_samples))


def weigh(log_joint: LogJoint, q: Distribution, z: Tensor) -> Draws:
    r"""The log densities at samples that are already there: a quadrature grid, say, or frozen draws.

    Args:
        log_joint: As for :func:`draw`.
        q: As for :func:`draw`; ``rsample`` is not needed.
        z: Samples, shape ``(num_samples, *batch, *event)``.

    Returns:
        :class:`Draws`, in nats.

    Raises:
        TypeError: If ``q`` is not a ``Distribution``, ``z`` not a tensor, or what ``log_joint`` returns not a
            floating-point tensor.
        ValueError: As for :func:`draw`, and if ``z`` does not fit ``q``.

    Example:
        >>> from torch.distributions import Normal
        >>> q = Normal(torch.tensor(0.0), torch.tensor(1.0))
        >>> grid = torch.tensor([1.0, 2.0, 3.0])
        >>> weigh(lambda z: q.log_prob(z) + z, q, grid).log_weight.round(decimals=4)
        tensor([1., 2., 3.])
    """
    _check_q(q)
    if not isinstance(z, Tensor):
        raise TypeError(f"z must be a torch.Tensor; received {type(z).__name__}")
    shape = q.batch_shape + q.event_shape
    if z.ndim != len(shape) + 1 or z.shape[1:] != shape:
        raise ValueError(
            f"z must have shape (num_samples, *batch, *event) = (K, {str(tuple(shape))[1:]}; received {tuple(z.shape)}"
        )
    log_q = q.log_prob(z)
    log_p = check_tensor("log_joint(z)", log_joint(z))
    if log_p.shape != log_q.shape:
        raise ValueError(
            f"log_joint(z) must return shape {tuple(log_q.shape)} (num_samples, *batch), one number per "
            f"sample and datapoint, as q.log_prob does; received {tuple(log_p.shape)}. Sum over latent "
            "and data dimensions, never over samples or datapoints, and give q an event_shape "
            f"(here {tuple(q.event_shape)}) that holds every latent dimension"
        )
    check_not_nan("log_joint", log_p, "look at the model's log density there")
    check_not_nan("log_q", log_q, "look at the parameters of q there")
    return Draws(z, log_p, log_q)


def _check_q(q: Distribution) -> None:
    check_distribution("q", q, " (call a family first: q(x), not q)")
    if 0 in q.batch_shape:
        raise ValueError(f"q must hold at least one datapoint; received batch_shape {tuple(q.batch_shape)}")


def _reparameterised(q: Distribution, num_samples: int) -> Tensor:
    _check_q(q)
    check_count("num_samples", num_samples)
    if not q.has_rsample:
        raise ValueError(
            f"q must be reparameterisable; received {type(q).__name__}, which has no rsample "
            "(elbo_score_function needs none)"
        )
    return q.rsample((num_samples,))


# --- Bounds: reduce log weights over samples ------------------------------------------------------


def elbo(log_weight: Tensor) -> Tensor:
    r"""The evidence lower bound: the mean log weight.

    .. math:: \mathcal{L} = \mathbb{E}_{q}[\log w] \approx \frac1K \sum_{k=1}^{K} \log w_k \le \log p(x)

    The bound holds for the expectation; one Monte Carlo estimate may lie above :math:`\log p(x)`.

    Args:
        log_weight: Shape ``(num_samples, *batch)``, nats.

    Returns:
        The ELBO in nats, shape ``batch``; larger is better.

    Raises:
        TypeError: If ``log_weight`` is not a floating-point tensor.
        ValueError: If it has no samples, an empty batch, or a NaN.

    Source:
        Jordan, Ghahramani, Jaakkola & Saul (1999), An Introduction to Variational Methods for Graphical Models.

    Example:
        >>> elbo(torch.tensor([[-1.0, -4.0], [-3.0, -6.0]]))
        tensor([-2., -5.])
    """
    return _check_log_weight(log_weight).mean(0)


def elbo_analytic_kl(log_likelihood: LogJoint, q: Distribution, prior: Distribution, num_samples: int = 1) -> Tensor:
    r"""The ELBO with its second term in closed form.

    .. math:: \mathcal{L} = \mathbb{E}_q[\log p_\theta(x \mid z)] - \mathrm{KL}(q_\phi(z \mid x) \,\|\, p(z))

    Args:
        log_likelihood: Function of ``z``, shape ``(num_samples, *batch, *event)``, that returns
            :math:`\log p_\theta(x \mid z)`, shape ``(num_samples, *batch)``.
        q: As for :func:`draw`.
        prior: :math:`p(z)`, with the event shape of ``q``.
        num_samples: How many samples per datapoint, at least 1.

    Returns:
        The ELBO in nats, shape ``batch``.

    Raises:
        NotImplementedError: If no closed form is registered for this pair of distributions.
        TypeError: As for :func:`draw`, and if ``prior`` is not a ``Distribution``.
        ValueError: As for :func:`draw`, and if the shapes of ``q`` and ``prior`` do not fit.

    Source:
        Kingma & Welling (2014), Auto-Encoding Variational Bayes, eq. 7.

    Example:
        >>> from torch.distributions import Normal
        >>> q, prior = (Normal(torch.tensor(m), torch.tensor(1.0)) for m in (2.0, 0.0))
        >>> elbo_analytic_kl(lambda z: torch.zeros_like(z), q, prior)
        tensor(-2.)
    """
    _check_q(q)
    check_distribution("prior", prior)
    if prior.batch_shape not in (torch.Size(), q.batch_shape):
        raise ValueError(
            f"prior must have the batch_shape of q {tuple(q.batch_shape)}, or () when shared; "
            f"received {tuple(prior.batch_shape)}"
        )
    if q.event_shape != prior.event_shape:
        raise ValueError(
            f"prior must have the event_shape of q {tuple(q.event_shape)}; received {tuple(prior.event_shape)}"
        )
    kl = kl_divergence(q, prior.expand(q.batch_shape))  # not all of torch's closed forms broadcast
    return elbo(draw(log_likelihood, q, num_samples).log_joint) - kl


def elbo_enumerated(log_joint: LogJoint, q: Distribution) -> Tensor:
    r"""The ELBO of a discrete latent, exactly: a sum over every state in place of samples.

    .. math:: \mathcal{L} = \sum_z q_\phi(z \mid x) \, [\log p_\theta(x, z) - \log q_\phi(z \mid x)],
              \qquad 0 \log 0 = 0

    Its gradient in φ and θ is exact too.

    Args:
        log_joint: As for :func:`draw`; it is called once, with every state in the place of the samples.
        q: As for :func:`draw`, with finitely many states to enumerate, up to about a million: a ``Categorical``, or
            ``Independent`` coins, whose states are all combinations. ``rsample`` is not needed.

    Returns:
        The ELBO in nats, shape ``batch``.

    Raises:
        TypeError, ValueError: As for :func:`weigh`, and if the states of ``q`` cannot be enumerated.

    Source:
        Neal & Hinton (1998), A View of the EM Algorithm that Justifies Incremental, Sparse, and Other Variants.

    Example:
        >>> from torch.distributions import Bernoulli
        >>> log_joint = lambda z: torch.tensor([3.0, 1.0])[z.long()].log()  # p(x, z = 0) = 3, p(x, z = 1) = 1
        >>> elbo_enumerated(log_joint, Bernoulli(torch.tensor(0.25))).exp()  # at the posterior: p(x)
        tensor(4.)
    """
    _check_q(q)
    draws = weigh(log_joint, q, _states(q))
    # A state without mass counts for nothing, in the gradient too, whatever its weight: masked before the product.
    has_mass = draws.log_q.exp() > 0
    log_weight = torch.where(has_mass, draws.log_weight, 0.0)
    return (torch.where(has_mass, draws.log_q, -math.inf).exp() * log_weight).sum(0)


def _states(q: Distribution) -> Tensor:
    """Every state of q, ``(num_states, *batch, *event)``."""
    each: Distribution = q.base_dist if isinstance(q, Independent) and q.reinterpreted_batch_ndims == 1 else q
    if not each.has_enumerate_support:
        raise ValueError(
            f"q must have finitely many states to enumerate; received {type(each).__name__}"
            " (draw and elbo take samples)"
        )
    if each is q:
        return q.enumerate_support()
    states = each.enumerate_support(expand=False)
    states = states.reshape(len(states), *each.event_shape)
    coordinates = each.batch_shape[-1]
    if len(states) ** coordinates > _MAX_STATES:
        raise ValueError(
            f"q must have at most {_MAX_STATES} states to enumerate; received {len(states)}^{coordinates} "
            "(elbo_leave_one_out takes samples)"
        )
    index = torch.cartesian_prod(*[torch.arange(len(states), device=states.device)] * coordinates)
    combined = states[index.reshape(-1, coordinates)]
    lead = (len(combined), *(1,) * len(q.batch_shape))
    return combined.reshape(*lead, *q.event_shape).expand(len(combined), *q.batch_shape, *q.event_shape)


def iwae(log_weight: Tensor) -> Tensor:
    r"""The importance-weighted bound: the log of the mean weight.

    .. math:: \mathcal{L}_K = \log \frac1K \sum_{k=1}^{K} w_k, \qquad
              \mathbb{E}[\mathcal{L}_1] \le \mathbb{E}[\mathcal{L}_2] \le \dots \le \log p(x)

    With many samples it is the importance-sampling estimate of :math:`\log p(x)`.

    Args:
        log_weight: Shape ``(num_samples, *batch)``, nats.

    Returns:
        The bound in nats, shape ``batch``.

    Raises:
        TypeError, ValueError: As for :func:`elbo`.

    Source:
        Burda, Grosse & Salakhutdinov (2016), Importance Weighted Autoencoders, eq. 8 and theorem 1.

    Example:
        >>> import math
        >>> iwae(torch.tensor([math.log(1.0), math.log(3.0)])).exp().round(decimals=4)
        tensor(2.)
    """
    return renyi(log_weight, 0.0)


def renyi(log_weight: Tensor, alpha: float) -> Tensor:
    r"""The variational Rényi bound: the log of a power mean of the weights.

    .. math:: \mathcal{L}_\alpha = \frac{1}{1-\alpha} \log \mathbb{E}_q\!\left[ w^{1-\alpha} \right]

    Non-increasing in α: the ELBO in the limit :math:`\alpha \to 1` and, if q covers the posterior's support,
    the log evidence at :math:`\alpha = 0` and an upper bound for :math:`\alpha < 0`. These hold for the
    expectation inside the logarithm; the logarithm of its Monte Carlo mean is biased towards the ELBO.

    Args:
        log_weight: Shape ``(num_samples, *batch)``, nats.
        alpha: The order, any finite number.

    Returns:
        The bound in nats, shape ``batch``.

    Raises:
        TypeError: If ``log_weight`` is not a floating-point tensor or ``alpha`` not a number.
        ValueError: As for :func:`elbo`, and if ``alpha`` is not finite.

    Source:
        Li & Turner (2016), Rényi Divergence Variational Inference, eq. 4 and theorem 1.

    Example:
        >>> import math
        >>> renyi(torch.tensor([math.log(1.0), math.log(3.0)]), 2.0).exp().round(decimals=4)  # harmonic mean
        tensor(1.5000)
    """
    _check_log_weight(log_weight)
    check_number("alpha", alpha)
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be finite; received {alpha}")
    if alpha == 1:
        return elbo(log_weight)
    power = 1 - alpha
    if abs(power) < 1e-3 and bool(log_weight.isfinite().all()):
        # Next to the ELBO the logarithm of the mean is a small number: take it without cancellation.
        centre = log_weight.mean(0)
        return centre + (power * (log_weight - centre)).expm1().mean(0).log1p() / power
    return ((power * log_weight).logsumexp(0) - math.log(len(log_weight))) / power


def cubo(log_weight: Tensor, order: float = 2.0) -> Tensor:
    r"""The χ upper bound: the log of the weights' mean of a given order.

    .. math:: \mathrm{CUBO}_n = \frac1n \log \mathbb{E}_q\!\left[ w^n \right] \ge \log p(x), \qquad n \ge 1

    It is the Rényi bound at :math:`\alpha = 1 - n`. The bound holds for the expectation inside the
    logarithm; its Monte Carlo estimate is biased downwards, so it may lie below :math:`\log p(x)`.

    Args:
        log_weight: Shape ``(num_samples, *batch)``, nats.
        order: :math:`n`, at least 1; at 1 it is :func:`iwae`.

    Returns:
        The bound in nats, shape ``batch``.

    Raises:
        TypeError: If ``log_weight`` is not a floating-point tensor or ``order`` not a number.
        ValueError: As for :func:`elbo`, and if ``order`` is below 1 or not finite.

    Source:
        Dieng, Tran, Ranganath, Paisley & Blei (2017), Variational Inference via χ Upper Bound
        Minimization.

    Example:
        >>> import math
        >>> cubo(torch.tensor([math.log(1.0), math.log(7.0)])).exp().round(decimals=4)  # root mean square
        tensor(5.)
    """
    check_number("order", order)
    if not 1 <= order < math.inf:
        raise ValueError(f"order must be a finite number of at least 1; received {order}")
    return renyi(log_weight, 1 - order)


def dataset_total(bound: Tensor, num_data: int) -> Tensor:
    r"""A minibatch's unbiased estimate of the whole data set's total.

    .. math:: \sum_{n=1}^{N} \mathcal{L}(x_n) \approx \frac{N}{B} \sum_{b=1}^{B} \mathcal{L}(x_b)

    Args:
        bound: One number per datapoint of the minibatch, shape ``(B,)``, nats.
        num_data: :math:`N`, the number of datapoints in the whole data set, at least :math:`B`.

    Returns:
        The estimated total in nats, shape ``()``.

    Raises:
        TypeError: If ``bound`` is not a floating-point tensor or ``num_data`` not an ``int``.
        ValueError: If ``bound`` is not a non-empty vector, or longer than ``num_data``.

    Source:
        Kingma & Welling (2014), Auto-Encoding Variational Bayes, eq. 8; Hoffman, Blei, Wang & Paisley (2013),
        Stochastic Variational Inference.

    Example:
        >>> dataset_total(torch.tensor([-1.0, -3.0]), num_data=10)
        tensor(-20.)
    """
    check_tensor("bound", bound)
    if bound.ndim != 1 or len(bound) == 0:
        raise ValueError(f"bound must hold one number per datapoint, shape (B,); received {tuple(bound.shape)}")
    check_count("num_data", num_data, minimum=len(bound))
    return num_data * bound.mean()


def _check_log_weight(log_weight: Tensor) -> Tensor:
    check_tensor("log_weight", log_weight)
    if log_weight.ndim == 0 or log_weight.numel() == 0:
        raise ValueError(
            "log_weight must have shape (num_samples, *batch) with at least one sample and datapoint; "
            f"received {tuple(log_weight.shape)}"
        )
    check_not_nan("log_weight", log_weight, "look at log_joint and log_q there")
    return log_weight


# --- Gradient estimators: the same bounds, differentiated in another way ---------------------------


def _score_term(q: Distribution, z: Tensor, coefficient: Tensor) -> Tensor:
    """Zero, with the gradient coefficient · ∇_φ log q_φ(z) at fixed z."""
    score = q.log_prob(z.detach())
    return coefficient * (score - score.detach())


def elbo_sticking_the_landing(log_joint: LogJoint, q: Distribution, num_samples: int = 1) -> Tensor:
    r"""The ELBO, differentiated through the sample alone: the score of q is left out.

    .. math:: \nabla_\phi \mathcal{L} = \mathbb{E}_\epsilon\!\left[ \nabla_z \log w(z) \,
              \frac{\partial z_\phi(\epsilon)}{\partial \phi} \right]

    The term left out, :math:`\mathbb{E}_q[\nabla_\phi \log q_\phi(z)]`, is zero in expectation but not in
    variance. Where q is the posterior, :math:`\log w` is constant and this gradient is exactly zero.

    Args:
        log_joint: As for :func:`draw`.
        q: As for :func:`draw`.
        num_samples: How many samples per datapoint, at least 1.

    Returns:
        The ELBO in nats, shape ``batch``: the value of ``elbo(draw(...).log_weight)``.

    Raises:
        TypeError, ValueError: As for :func:`draw`.

    Source:
        Roeder, Wu & Duvenaud (2017), Sticking the Landing: Simple, Lower-Variance Gradient Estimators for
        Variational Inference.

    Example:
        >>> from torch.distributions import Normal
        >>> loc = torch.tensor(0.5, requires_grad=True)
        >>> posterior = lambda z: Normal(torch.tensor(0.5), torch.tensor(1.0)).log_prob(z) - 2.0
        >>> elbo_sticking_the_landing(posterior, Normal(loc, torch.tensor(1.0))).backward()
        >>> loc.grad
        tensor(0.)
    """
    return elbo(_log_weight_without_score(log_joint, q, _reparameterised(q, num_samples)))


def _log_weight_without_score(log_joint: LogJoint, q: Distribution, z: Tensor) -> Tensor:
    """log w with the parameters of q held fixed in log q, for every q: adding the score back removes it."""
    log_weight = weigh(log_joint, q, z).log_weight
    return log_weight + _score_term(q, z, torch.ones_like(log_weight))


def elbo_score_function(log_joint: LogJoint, q: Distribution, num_samples: int = 1) -> Tensor:
    r"""The ELBO with the score-function gradient, which needs no derivative of the sample.

    .. math:: \nabla_\phi \mathcal{L} = \mathbb{E}_q\!\left[ \log w(z) \, \nabla_\phi \log q_\phi(z) \right],
              \qquad \nabla_\theta \mathcal{L} = \mathbb{E}_q[\nabla_\theta \log p_\theta(x, z)]

    Works for discrete ``z`` too, at the price of a large variance.

    Args:
        log_joint: As for :func:`draw`.
        q: As for :func:`draw`; ``rsample`` is not needed.
        num_samples: How many samples per datapoint, at least 1.

    Returns:
        The ELBO in nats, shape ``batch``.

    Raises:
        TypeError, ValueError: As for :func:`draw`, and if a log weight is infinite.

    Source:
        Williams (1992), Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement
        Learning; Ranganath, Gerrish & Blei (2014), Black Box Variational Inference.

    Example:
        >>> from torch.distributions import Bernoulli
        >>> logits = torch.tensor(0.0, requires_grad=True)
        >>> q = Bernoulli(logits=logits)
        >>> bound = elbo_score_function(lambda z: q.log_prob(z).detach() - 2.0, q, num_samples=4)
        >>> bound.detach()
        tensor(-2.)
    """
    return _score_function_bound(log_joint, q, num_samples, lambda log_weight: torch.zeros_like(log_weight))


def elbo_leave_one_out(log_joint: LogJoint, q: Distribution, num_samples: int = 2) -> Tensor:
    r"""The ELBO with the score-function gradient and, for each sample, the mean of the others as baseline.

    .. math:: \nabla_\phi \mathcal{L} \approx \frac1K \sum_k
              \Big( \log w_k - \frac{1}{K-1} \sum_{j \ne k} \log w_j \Big) \nabla_\phi \log q_\phi(z_k)

    Unbiased, since each baseline is independent of its own sample.

    Args:
        log_joint: As for :func:`draw`.
        q: As for :func:`draw`; ``rsample`` is not needed.
        num_samples: How many samples per datapoint, at least 2.

    Returns:
        The ELBO in nats, shape ``batch``.

    Raises:
        TypeError, ValueError: As for :func:`elbo_score_function`, and if ``num_samples < 2``.

    Source:
        Kool, van Hoof & Welling (2019), Buy 4 REINFORCE Samples, Get a Baseline for Free!; for control variates
        in general, Salimans & Knowles (2014), On Using Control Variates with Stochastic Approximation for
        Variational Bayes and its Connection to Stochastic Linear Regression.

    Example:
        >>> from torch.distributions import Bernoulli
        >>> logits = torch.tensor(0.3, requires_grad=True)
        >>> q = Bernoulli(logits=logits)
        >>> elbo_leave_one_out(lambda z: q.log_prob(z).detach() - 2.0, q, num_samples=2).backward()
        >>> logits.grad
        tensor(0.)
    """
    check_count("num_samples", num_samples, minimum=2)
    return _score_function_bound(
        log_joint,
        q,
        num_samples,
        lambda log_weight: (log_weight.sum(0) - log_weight) / (num_samples - 1),
    )


def _score_function_bound(
    log_joint: LogJoint, q: Distribution, num_samples: int, baseline: Callable[[Tensor], Tensor]
) -> Tensor:
    _check_q(q)
    check_count("num_samples", num_samples)
    draws = weigh(log_joint, q, q.sample((num_samples,)))
    signal = draws.log_weight.detach()
    if signal.isinf().any():
        raise ValueError(
            "log_joint must be finite at the samples for a score-function gradient; received an infinite "
            "log weight: q puts mass where the joint has none"
        )
    # z is fixed, so log_joint carries the gradient of θ alone; E_q[∇_φ log q_φ] = 0 and is left out.
    value = draws.log_joint - draws.log_q.detach()
    return elbo(value + _score_term(q, draws.z, signal - baseline(signal)))


def iwae_doubly_reparameterised(log_joint: LogJoint, q: Distribution, num_samples: int) -> Tensor:
    r"""The importance-weighted bound with the doubly reparameterised gradient (DReG) in φ.

    .. math:: \nabla_\phi \mathcal{L}_K = \mathbb{E}\!\left[ \sum_k \tilde w_k^2 \,
              \frac{\partial \log w_k}{\partial z_k} \frac{\partial z_k}{\partial \phi} \right], \qquad
              \tilde w_k = \frac{w_k}{\sum_j w_j}

    The gradient in θ is the usual :math:`\sum_k \tilde w_k \nabla_\theta \log p_\theta(x, z_k)`. With one
    sample it is :func:`elbo_sticking_the_landing`.

    Args:
        log_joint: As for :func:`draw`.
        q: As for :func:`draw`.
        num_samples: How many samples per datapoint, at least 1.

    Returns:
        The bound in nats, shape ``batch``: the value of ``iwae(draw(...).log_weight)``.

    Raises:
        TypeError, ValueError: As for :func:`draw`.

    Source:
        Tucker, Lawson, Gu & Maddison (2019), Doubly Reparameterized Gradient Estimators for Monte
        Carlo Objectives.

    Example:
        >>> from torch.distributions import Normal
        >>> loc = torch.tensor(0.5, requires_grad=True)
        >>> posterior = lambda z: Normal(torch.tensor(0.5), torch.tensor(1.0)).log_prob(z) - 2.0
        >>> iwae_doubly_reparameterised(posterior, Normal(loc, torch.tensor(1.0)), 8).backward()
        >>> loc.grad
        tensor(0.)
    """
    z = _reparameterised(q, num_samples)
    log_weight = _log_weight_without_score(log_joint, q, z)
    normalised = log_weight.detach().softmax(0)
    if z.requires_grad:
        # iwae brings the first factor of w̃ to every gradient; the path through z gets a second one.
        second = normalised.reshape(normalised.shape + (1,) * len(q.event_shape))
        z.register_hook(lambda gradient: second * gradient)
    return iwae(log_weight)
