r"""What people maximise in place of the ELBO, made of the same pieces: β, free bits, relaxation, tempering.

None of them is a bound on :math:`\log p_\theta(x)` of the model they train, but for β ≥ 1, and their values are
not comparable with one: report the ELBO. Each is one number per datapoint, larger is better, in nats.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from vi_tutorial._validation import check_count, check_number
from vi_tutorial.elbo import LogJoint, draw, elbo, weigh
from vi_tutorial.models import LatentVariableModel
from vi_tutorial.softened import relaxed

__all__ = [
    "beta_objective",
    "free_bits_objective",
    "kl_per_latent",
    "linear_schedule",
    "relaxed_objective",
    "tempered",
]


def beta_objective(model: LatentVariableModel, x: Tensor, q: Distribution, beta: float, num_samples: int = 1) -> Tensor:
    r"""The ELBO with another price on the rate.

    .. math:: \mathbb{E}_q[\log p_\theta(x \mid z)] - \beta\, \mathbb{E}_q[\log q_\phi(z \mid x) - \log p(z)]

    With β = 1 it is the ELBO, draw for draw; with β > 1 it lies below, with β < 1 it may lie above the evidence.

    Args:
        model: The joint.
        x: Data, shape ``(N, *event)``.
        q: The posteriors, ``batch_shape`` ``(N,)``.
        beta: :math:`\beta \ge 0`; 0 leaves the reconstruction alone.
        num_samples: Draws per datapoint, at least 1.

    Returns:
        One number per datapoint, shape ``(N,)``.

    Raises:
        TypeError, ValueError: As for :func:`vi_tutorial.elbo.draw`, or if ``beta`` is negative.

    Source:
        Higgins et al. (2017), beta-VAE; with β below 1 rising to 1, Bowman et al. (2016), Generating Sentences from a
        Continuous Space.

    Example:
        >>> import torch
        >>> from vi_tutorial.models import conjugate_normal
        >>> model, x = conjugate_normal(1), torch.tensor([[2.0]]).double()
        >>> prior = model.prior().expand((1,))  # a rate of 0: nothing to price
        >>> with torch.random.fork_rng():
        ...     _ = torch.manual_seed(0)
        ...     first = beta_objective(model, x, prior, beta=0.5)
        ...     _ = torch.manual_seed(0)
        ...     bool(first == beta_objective(model, x, prior, beta=4.0))
        True
    """
    check_number("beta", beta)
    if not 0 <= beta < float("inf"):
        raise ValueError(f"beta must be finite and at least 0; received {beta}")
    draws = draw(model.given(x), q, num_samples)
    log_prior = model.prior().log_prob(draws.z)
    return (draws.log_joint - log_prior - beta * (draws.log_q - log_prior)).mean(0)


def free_bits_objective(
    model: LatentVariableModel, x: Tensor, q: Distribution, min_nats: float, num_samples: int = 1
) -> Tensor:
    r"""The ELBO in which each latent's rate, as a mean over the minibatch, is free up to a floor.

    .. math:: \mathbb{E}_q[\log p_\theta(x \mid z)]
              - \sum_{i=1}^{L} \max\Big(\lambda,\; \frac1B \sum_b \mathrm{KL}_i(x_b)\Big)

    Below the floor a latent's rate has no gradient, so nothing pulls it to zero.

    Args:
        model: The joint, with a prior of independent coordinates.
        x: Data, shape ``(B, *event)``.
        q: The posteriors, ``batch_shape`` ``(B,)``, of independent coordinates.
        min_nats: :math:`\lambda`, at least 0, for each latent; with 0 it is the ELBO in expectation.
        num_samples: Draws per datapoint, at least 1.

    Returns:
        One number per datapoint, shape ``(B,)``; the second term is the same for all.

    Raises:
        TypeError: As for :func:`kl_per_latent`.
        ValueError: As for :func:`vi_tutorial.elbo.draw`, or if ``min_nats`` is negative.

    Source:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling (2016), Improved Variational Inference with Inverse
        Autoregressive Flow.

    Example:
        >>> import torch
        >>> from vi_tutorial.models import conjugate_normal
        >>> model, x = conjugate_normal(1), torch.tensor([[2.0]]).double()
        >>> prior = model.prior().expand((1,))
        >>> with torch.random.fork_rng():
        ...     _ = torch.manual_seed(0)
        ...     none = free_bits_objective(model, x, prior, min_nats=0.0)
        ...     _ = torch.manual_seed(0)
        ...     round((none - free_bits_objective(model, x, prior, min_nats=0.25)).item(), 6)
        0.25
    """
    check_number("min_nats", min_nats)
    if not 0 <= min_nats < float("inf"):
        raise ValueError(f"min_nats must be finite and at least 0; received {min_nats}")
    rate = kl_per_latent(q, model.prior()).mean(0)
    return elbo(draw(model.log_likelihood(x), q, num_samples).log_joint) - rate.clamp_min(min_nats).sum()


def kl_per_latent(q: Distribution, prior: Distribution) -> Tensor:
    r"""The rate of each latent: :math:`\mathrm{KL}(q_\phi(z_i \mid x) \| p(z_i))`, in closed form.

    Args:
        q: Independent coordinates, ``batch_shape`` ``(N,)`` and ``event_shape`` ``(L,)``.
        prior: Independent coordinates, ``event_shape`` ``(L,)``.

    Returns:
        Shape ``(N, L)``, nats; its sum over the latents is the rate.

    Raises:
        TypeError: If the coordinates of one are not independent: then the rate is not a sum over latents.
        NotImplementedError: If torch knows no closed form.

    Example:
        >>> import torch
        >>> from vi_tutorial.distributions import diagonal_normal
        >>> prior = diagonal_normal(torch.zeros(2), torch.ones(2))
        >>> kl_per_latent(diagonal_normal(torch.tensor([[2.0, 0.0]]), torch.ones(2)), prior)
        tensor([[2., 0.]])
    """
    coordinates = []
    for name, value in (("q", q), ("prior", prior)):
        if not isinstance(value, Independent) or value.reinterpreted_batch_ndims != 1:
            raise TypeError(f"{name} must have independent coordinates; received {type(value).__name__}")
        coordinates.append(value.base_dist)
    return kl_divergence(*coordinates)


def linear_schedule(num_steps: int, start: float = 0.0, end: float = 1.0) -> Callable[[int], float]:
    r"""From ``start`` to ``end`` in ``num_steps`` equal steps, and ``end`` after that.

    For β (KL annealing) or an inverse temperature. It changes the path, not what is maximised at its end.

    Args:
        num_steps: At least 1.
        start: The value at step 0.
        end: The value from step ``num_steps`` on.

    Returns:
        A function of the number of steps done.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind, or ``num_steps`` below 1.

    Example:
        >>> beta = linear_schedule(100)
        >>> beta(0), beta(50), beta(1000)
        (0.0, 0.5, 1.0)
    """
    check_count("num_steps", num_steps)
    check_number("start", start)
    check_number("end", end)

    def value(step: int) -> float:
        done = min(max(step, 0) / num_steps, 1.0)
        return (1 - done) * start + done * end

    return value


def relaxed_objective(
    model: LatentVariableModel, x: Tensor, q: Distribution, temperature: float, num_samples: int = 1
) -> Tensor:
    r"""The ELBO of discrete latents with the decoder fed soft ones: Gumbel–softmax.

    .. math:: \mathbb{E}_{\tilde z \sim q_\tau}[\log p_\theta(x \mid \tilde z)]
              - \mathrm{KL}(q_\phi(z \mid x) \| p(z))

    The soft draws have a pathwise gradient, and the decoder sees values that it never will again. The value and its
    gradient are biased for every temperature :math:`\tau > 0`; as :math:`\tau \to 0` the bias goes, and the gradient's
    variance has no limit. To report a number, take the ELBO.

    Args:
        model: The joint, its prior over the discrete states.
        x: Data, shape ``(N, *event)``.
        q: The posteriors over discrete states, as for :func:`vi_tutorial.distributions.relaxed`.
        temperature: :math:`\tau > 0`.
        num_samples: Draws per datapoint, at least 1.

    Returns:
        One number per datapoint, shape ``(N,)``; no bound.

    Raises:
        TypeError, ValueError: As for :func:`vi_tutorial.distributions.relaxed` and :func:`vi_tutorial.elbo.draw`.

    Source:
        Jang, Gu & Poole (2017), Categorical Reparameterization with Gumbel-Softmax; Maddison, Mnih & Teh (2017), The
        Concrete Distribution.

    Example:
        >>> import torch
        >>> from vi_tutorial.distributions import bernoulli
        >>> from vi_tutorial.families import Fixed
        >>> from vi_tutorial.networks import BernoulliHead
        >>> decoder = BernoulliHead(torch.nn.Linear(2, 3), 3)
        >>> _ = torch.nn.init.zeros_(decoder.network.weight), torch.nn.init.zeros_(decoder.network.bias)
        >>> model = LatentVariableModel(Fixed(bernoulli, logits=torch.zeros(2)), decoder)
        >>> q = bernoulli(torch.zeros(1, 2))  # the prior, and a decoder that looks away: 3 fair coins
        >>> relaxed_objective(model, torch.ones(1, 3), q, temperature=0.5)
        tensor([-2.0794], grad_fn=<SubBackward0>)
    """
    log_likelihood = elbo(draw(model.log_likelihood(x), relaxed(q, temperature), num_samples).log_joint)
    return log_likelihood - kl_divergence(q, model.prior().expand(q.batch_shape))  # torch's does not broadcast coins


def tempered(log_joint: LogJoint, initial: Distribution, beta: float | Tensor) -> LogJoint:
    r"""The log density on the way from a distribution to the joint: the geometric path.

    .. math:: \log f_\beta(z) = (1 - \beta) \log q_0(z) + \beta \log p_\theta(x, z)

    With :math:`q_0` the prior only the likelihood is tempered: :math:`p(z)\, p_\theta(x \mid z)^\beta`.

    Args:
        log_joint: As for :func:`vi_tutorial.elbo.draw`.
        initial: :math:`q_0`, with the batch of ``log_joint``.
        beta: Between 0 and 1.

    Returns:
        A log joint, not normalised.

    Raises:
        ValueError: If ``beta`` is not between 0 and 1; when called, as for :func:`vi_tutorial.elbo.weigh`.

    Source:
        Neal (2001), Annealed Importance Sampling.

    Example:
        >>> import torch
        >>> from torch.distributions import Normal
        >>> start, end = Normal(torch.tensor(0.0), torch.tensor(1.0)), Normal(torch.tensor(4.0), torch.tensor(1.0))
        >>> half = tempered(end.log_prob, start, 0.5)
        >>> half(torch.tensor([1.0, 2.0, 3.0])).argmax()  # half way
        tensor(1)
    """
    if not 0 <= float(beta) <= 1:
        raise ValueError(f"beta must lie between 0 and 1; received {float(beta)}")

    def between(z: Tensor) -> Tensor:
        draws = weigh(log_joint, initial, z)
        return (1 - beta) * draws.log_q + beta * draws.log_joint

    return between
