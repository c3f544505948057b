r"""A diffusion model is a latent-variable model: its latent is a path of ever noisier copies, its q has no parameters.

.. math:: q(z_t \mid x) = \mathcal{N}(\alpha_t x, \sigma_t^2 I), \qquad \alpha_t^2 = \mathrm{sigmoid}(\lambda_t), \quad
          \sigma_t^2 = \mathrm{sigmoid}(-\lambda_t), \qquad \lambda_t = \log \mathrm{SNR}(t)

:class:`Diffusion` works with ``draw`` and ``elbo`` like every other model. :meth:`Diffusion.terms` and
:meth:`Diffusion.terms_continuous` are the same bound, worked out until each step is a denoising error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal, constraints, kl_divergence
from torch.nn.functional import logsigmoid

from vi_tutorial._validation import check_count, check_data, check_number, check_shape
from vi_tutorial.distributions import diagonal_normal
from vi_tutorial.models import LatentVariableModel

__all__ = ["Diffusion", "DiffusionTerms", "LevelsHead", "cosine_log_snr", "linear_log_snr"]

Schedule = Callable[[Tensor], Tensor]
"""``log_snr(t)`` for times between 0 (the data) and 1 (noise): falling, of the shape of ``t``."""

_Shape = torch.Size | list[int] | tuple[int, ...]


def linear_log_snr(high: float = 8.0, low: float = -8.0) -> Schedule:
    r"""The log signal-to-noise ratio falls in a straight line: :math:`\lambda_t = (1 - t) \lambda_0 + t \lambda_1`.

    Args:
        high: :math:`\lambda_0`, at the data.
        low: :math:`\lambda_1`, at the noise.

    Returns:
        The schedule, a function of t.

    Raises:
        ValueError: If ``high`` is not above ``low``.

    Source:
        Kingma, Salimans, Poole & Ho (2021), Variational Diffusion Models.

    Example:
        >>> linear_log_snr(4.0, -4.0)(torch.tensor([0.0, 0.25, 1.0]))
        tensor([ 4.,  2., -4.])
    """
    _check_ends(high, low)
    return lambda t: (1 - t) * high + t * low


def cosine_log_snr(high: float = 8.0, low: float = -8.0) -> Schedule:
    r"""The cosine schedule: :math:`\alpha = \cos(u\pi/2)`, so :math:`\lambda = -2 \log \tan(u\pi/2)`.

    Args:
        high: :math:`\lambda_0`, at the data.
        low: :math:`\lambda_1`, at the noise.

    Returns:
        The schedule, a function of t: u runs in a straight line between the times of the two ends.

    Raises:
        ValueError: If ``high`` is not above ``low``.

    Source:
        Nichol & Dhariwal (2021), Improved Denoising Diffusion Probabilistic Models.

    Example:
        >>> [round(value, 4) for value in cosine_log_snr(4.0, -4.0)(torch.tensor([0.0, 0.5, 1.0])).tolist()]
        [4.0, 0.0, -4.0]
    """
    _check_ends(high, low)
    start, end = (math.atan(math.exp(-value / 2)) for value in (high, low))
    return lambda t: -2 * (start + t * (end - start)).tan().log()


def _check_ends(high: float, low: float) -> None:
    check_number("high", high)
    check_number("low", low)
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"high must be finite and above low; received high={high}, low={low}")


class LevelsHead(nn.Module):
    r"""Which level was it? The likelihood of data of finitely many values, given the least noisy copy.

    .. math:: p(x_d = c \mid z_0) \propto \mathcal{N}(z_{0,d};\, \alpha_0 v_c, \sigma_0^2)

    The posterior of the level under a uniform prior on levels; nothing is learned.

    Args:
        levels: :math:`v_c`, the place of each value c = 0, 1, … on the scale of z, shape ``(C,)``.
        log_snr: :math:`\lambda_0`.

    Raises:
        TypeError, ValueError: If ``levels`` is not a finite vector, or ``log_snr`` not finite.

    Source:
        Kingma, Salimans, Poole & Ho (2021), Variational Diffusion Models.

    Example:
        >>> head = LevelsHead(torch.tensor([-1.0, 0.0, 1.0]), log_snr=4.0)
        >>> path = torch.tensor([[0.1, 0.9], [5.0, 5.0]])  # two times, two pixels; time 0 counts
        >>> head(path).base_dist.probs.argmax(-1)
        tensor([1, 2])
    """

    def __init__(self, levels: Tensor, log_snr: float) -> None:
        super().__init__()
        self.register_buffer("levels", check_data("levels", levels, ndim=1))
        check_number("log_snr", log_snr)
        self.log_snr = float(log_snr)

    def forward(self, path: Tensor) -> Independent:
        """The levels, given a path of shape ``(*batch, num_steps + 1, D)``, the least noisy copy first."""
        alpha, sigma = _alpha_sigma(path.new_tensor(self.log_snr))
        z, levels = path[..., 0, :, None], self.get_buffer("levels")
        return Independent(Categorical(logits=-0.5 * ((z - alpha * levels) / sigma) ** 2), 1)


class DiffusionTerms(NamedTuple):
    r"""The three parts of −ELBO of a diffusion model, in nats, shape ``(N,)``.

    Attributes:
        prior: :math:`\mathrm{KL}(q(z_1 \mid x) \| \mathcal{N}(0, I))`: what is left of x in the noise.
        denoising: The sum, or the integral, over the steps between.
        reconstruction: :math:`-\mathbb{E} \log p(x \mid z_0)`.

    Example:
        >>> DiffusionTerms(torch.tensor([0.25]), torch.tensor([3.0]), torch.tensor([0.5])).elbo
        tensor([-3.7500])
    """

    prior: Tensor
    denoising: Tensor
    reconstruction: Tensor

    @property
    def elbo(self) -> Tensor:
        """The bound: minus the sum of the three."""
        return -(self.prior + self.denoising + self.reconstruction)


class Diffusion(LatentVariableModel):
    r"""A chain of latents, its q fixed in advance, its model a denoiser used at every step.

    .. math:: p_\theta(x, z) = \mathcal{N}(z_T; 0, I) \prod_{i=1}^{T} q\big(z_{i-1} \mid z_i,\,
              x = \hat x_\theta(z_i, \lambda_i)\big)\; p(x \mid z_0)

    ``z`` has shape ``(num_samples, N, num_steps + 1, D)``, from the least noisy copy to the noisiest.
    ``model.noising`` is q, and ``elbo(draw(model.given(x), model.noising(x), num_samples).log_weight)`` the bound.

    Args:
        denoiser: A module; ``denoiser(z, log_snr)``, with ``z`` of shape ``(*batch, D)`` and ``log_snr`` of shape
            ``batch``, returns its guess of the clean data on the scale of z, shape ``(*batch, D)``.
        schedule: :math:`\lambda_t`, for example :func:`linear_log_snr`.
        num_steps: T, at least 1.
        likelihood: A module that maps ``z`` to :math:`p(x \mid z_0)`, for example :class:`LevelsHead`.
        dim: D.
        embed: A function that brings data to the scale of z, where they should be of order 1.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind, or the schedule does not fall.

    Source:
        Ho, Jain & Abbeel (2020), Denoising Diffusion Probabilistic Models; Kingma, Salimans, Poole & Ho (2021),
        Variational Diffusion Models.

    Example:
        >>> from vi_tutorial.elbo import draw, elbo
        >>> class Zero(nn.Module):  # knows nothing: guesses the middle
        ...     def forward(self, z, log_snr):
        ...         return torch.zeros_like(z)
        >>> levels = torch.tensor([-1.0, 1.0])
        >>> model = Diffusion(Zero(), linear_log_snr(), 10, LevelsHead(levels, 8.0), dim=2, embed=lambda x: 2 * x - 1)
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
        >>> elbo(draw(model.given(x), model.noising(x), num_samples=4).log_weight).shape
        torch.Size([3])
        >>> (model.sample(5).x.shape, model.terms(x).elbo.shape)
        (torch.Size([5, 2]), torch.Size([3]))
    """

    def __init__(
        self,
        denoiser: nn.Module,
        schedule: Schedule,
        num_steps: int,
        likelihood: nn.Module,
        dim: int,
        embed: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        check_count("num_steps", num_steps)
        check_count("dim", dim)
        if not isinstance(denoiser, nn.Module):
            raise TypeError(f"denoiser must be a torch.nn.Module; received {type(denoiser).__name__}")
        log_snr = schedule(torch.linspace(0, 1, num_steps + 1))
        if not (log_snr.isfinite().all() and (log_snr.diff() < 0).all()):
            raise ValueError(f"schedule must be finite and fall from t = 0 to 1; received {log_snr.tolist()[:5]} …")
        super().__init__(_DenoisingChain(denoiser, log_snr, dim), likelihood)
        self.schedule, self.num_steps, self.dim, self.embed = schedule, num_steps, dim, embed

    @property
    def denoiser(self) -> nn.Module:
        r""":math:`\hat x_\theta`, the only part with parameters."""
        return self.prior.get_submodule("denoiser")

    def noising(self, x: Tensor) -> Distribution:
        """q: the path of ever noisier copies of each datapoint, ``batch_shape`` ``(N,)``; it has no parameters.

        Args:
            x: Data, shape ``(N, D)``.

        Returns:
            A distribution over paths, ``event_shape`` ``(num_steps + 1, D)``, with ``rsample``.

        Raises:
            TypeError, ValueError: If ``x`` is not such a tensor.
        """
        clean = self._clean(x)
        return _NoisingPath(clean, self.prior.get_buffer("log_snr").to(clean))

    def terms(self, x: Tensor, num_samples: int = 1) -> DiffusionTerms:
        r"""The bound of :math:`T` steps, each KL in closed form.

        .. math:: \frac T2\, \mathbb{E}_{i, \epsilon}\big[(\mathrm{SNR}_{i-1} - \mathrm{SNR}_i)\,
                  \|x - \hat x_\theta(z_i, \lambda_i)\|^2\big]

        is the denoising term; i is uniform on 1 … T, its draws spread evenly over the datapoints.

        Args:
            x: Data, shape ``(N, D)``.
            num_samples: Draws of (i, ε) per datapoint, at least 1.

        Returns:
            :class:`DiffusionTerms`.

        Raises:
            TypeError, ValueError: As for :meth:`noising`, or if ``num_samples`` is below 1.

        Source:
            Kingma, Salimans, Poole & Ho (2021), Variational Diffusion Models.
        """
        clean = self._clean(x)
        step = (self._times(clean, num_samples) * self.num_steps).long().clamp_max(self.num_steps - 1)  # i − 1
        log_snr = self.prior.get_buffer("log_snr").to(clean)
        before, after = log_snr[step], log_snr[step + 1]
        return self._terms(x, clean, after, self.num_steps * (before.exp() - after.exp()))

    def terms_continuous(self, x: Tensor, num_samples: int = 1) -> DiffusionTerms:
        r"""The bound of infinitely many steps.

        .. math:: -\frac12 \int_0^1 \mathrm{SNR}'(t)\; \mathbb{E}_\epsilon \|x - \hat x_\theta(z_t, \lambda_t)\|^2\, dt

        is the denoising term: an integral over :math:`\lambda`, so the schedule counts only through its two ends and
        through the noise of this estimate.

        Args:
            x: Data, shape ``(N, D)``.
            num_samples: Draws of (t, ε) per datapoint, at least 1.

        Returns:
            :class:`DiffusionTerms`.

        Raises:
            TypeError, ValueError: As for :meth:`noising`, or if ``num_samples`` is below 1.

        Source:
            Kingma, Salimans, Poole & Ho (2021), Variational Diffusion Models.
        """
        clean = self._clean(x)
        time = self._times(clean, num_samples)
        with torch.enable_grad():
            leaf = time.clone().requires_grad_()
            log_snr = self.schedule(leaf)
            (slope,) = torch.autograd.grad(log_snr.sum(), leaf)
        log_snr = log_snr.detach()
        return self._terms(x, clean, log_snr, -slope * log_snr.exp())

    def _clean(self, x: Tensor) -> Tensor:
        check_data("x", x, ndim=2)
        check_shape("x", x, (len(x), self.dim), "one row of dim numbers per datapoint")
        return self.embed(x)

    def _times(self, clean: Tensor, num_samples: int) -> Tensor:
        """Uniform on [0, 1), shape ``(num_samples, N)``, evenly spread: one uniform draw moves them all."""
        check_count("num_samples", num_samples)
        count = num_samples * len(clean)
        spread = torch.arange(count, dtype=clean.dtype, device=clean.device) / count
        shuffled = spread[torch.randperm(count, device=clean.device)]
        return ((shuffled + torch.rand((), dtype=clean.dtype, device=clean.device)) % 1).reshape(num_samples, -1)

    def _terms(self, x: Tensor, clean: Tensor, log_snr: Tensor, weight: Tensor) -> DiffusionTerms:
        ends = self.prior.get_buffer("log_snr").to(clean)[[0, -1]]
        z = _noised(clean, log_snr[..., None]).rsample()
        error = (clean - self.denoiser(z, log_snr)).square().sum(-1)
        last = _noised(clean, ends[1])
        first = _noised(clean, ends[0]).rsample(torch.Size([len(log_snr)]))
        return DiffusionTerms(
            kl_divergence(last, Normal(torch.zeros_like(clean), torch.ones_like(clean))).sum(-1),
            (0.5 * weight * error).mean(0),
            -self.log_likelihood(x)(first[..., None, :]).mean(0),
        )


def _alpha_sigma(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    return (0.5 * logsigmoid(log_snr)).exp(), (0.5 * logsigmoid(-log_snr)).exp()


def _noised(clean: Tensor, log_snr: Tensor) -> Normal:
    """q(z_t | x), coordinate by coordinate."""
    alpha, sigma = _alpha_sigma(log_snr)
    loc = alpha * clean
    return Normal(loc, sigma.expand_as(loc))


def _less_noisy(z: Tensor, clean: Tensor, log_snr: Tensor, target: Tensor) -> Independent:
    """q(z_s | z_t, x) for a time s before t: log_snr is λ_t, target is λ_s > λ_t."""
    forgotten = -torch.expm1(log_snr - target)  # 1 − SNR(t)/SNR(s)
    (alpha_s, sigma_s), (alpha_t, _) = _alpha_sigma(target), _alpha_sigma(log_snr)
    # α_t/α_s · σ_s²/σ_t² = SNR(t)/SNR(s) · α_s/α_t
    loc = (1 - forgotten) * alpha_s / alpha_t * z + forgotten * alpha_s * clean
    return diagonal_normal(loc, (forgotten.sqrt() * sigma_s).expand_as(loc))


class _NoisingPath(Distribution):
    """q(z_0, …, z_T | x): each copy is noisier than the last."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, clean: Tensor, log_snr: Tensor) -> None:
        self.clean, self.log_snr = clean, log_snr
        super().__init__(clean.shape[:-1], torch.Size([len(log_snr), clean.shape[-1]]), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, 2)

    def _kept(self) -> tuple[Tensor, Tensor]:
        """α_t/α_s and the standard deviation of the noise added, for each step, shape ``(T,)``."""
        alpha, sigma = _alpha_sigma(self.log_snr)
        forgotten = -torch.expm1(self.log_snr.diff())
        return alpha[1:] / alpha[:-1], forgotten.sqrt() * sigma[1:]

    def rsample(self, sample_shape: _Shape = torch.Size()) -> Tensor:  # noqa: B008
        alpha, sigma = _alpha_sigma(self.log_snr)
        z = [alpha[0] * self.clean + sigma[0] * torch.randn_like(self.clean.expand(*sample_shape, *self.clean.shape))]
        for kept, added in zip(*self._kept(), strict=True):
            z.append(kept * z[-1] + added * torch.randn_like(z[-1]))
        return torch.stack(z, -2)

    def log_prob(self, value: Tensor) -> Tensor:
        alpha, sigma = _alpha_sigma(self.log_snr)
        kept, added = (number[:, None] for number in self._kept())
        first = Normal(alpha[0] * self.clean, sigma[0]).log_prob(value[..., 0, :])
        return first.sum(-1) + Normal(kept * value[..., :-1, :], added).log_prob(value[..., 1:, :]).sum((-1, -2))


class _DenoisingPath(Distribution):
    """p(z_0, …, z_T): from pure noise, one guess of the clean data at a time."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, denoiser: nn.Module, log_snr: Tensor, dim: int) -> None:
        self.denoiser, self.log_snr = denoiser, log_snr
        super().__init__(torch.Size(), torch.Size([len(log_snr), dim]), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, 2)

    def log_prob(self, value: Tensor) -> Tensor:
        earlier, later, log_snr = value[..., :-1, :], value[..., 1:, :], self.log_snr.to(value)
        guess = self.denoiser(later, log_snr[1:].expand(later.shape[:-1]))
        step = _less_noisy(later, guess, log_snr[1:, None], log_snr[:-1, None])
        return step.log_prob(earlier).sum(-1) + Normal(0.0, 1.0).log_prob(value[..., -1, :]).sum(-1)

    def sample(self, sample_shape: _Shape = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            z = [torch.randn(*sample_shape, self.event_shape[-1], dtype=self.log_snr.dtype, device=self.log_snr.device)]
            for log_snr, target in zip(self.log_snr[1:].flip(0), self.log_snr[:-1].flip(0), strict=True):
                guess = self.denoiser(z[-1], log_snr.expand(z[-1].shape[:-1]))
                z.append(_less_noisy(z[-1], guess, log_snr, target).sample())
        return torch.stack(z[::-1], -2)


class _DenoisingChain(nn.Module):
    """The prior over paths, as a module: θ is the denoiser's."""

    def __init__(self, denoiser: nn.Module, log_snr: Tensor, dim: int) -> None:
        super().__init__()
        self.denoiser, self.dim = denoiser, dim
        self.register_buffer("log_snr", log_snr)

    def forward(self) -> _DenoisingPath:
        return _DenoisingPath(self.denoiser, self.get_buffer("log_snr"), self.dim)
