r"""Joints :math:`p_\theta(x, z)`: those with an exact posterior and evidence, and the neural one.

Every model is a prior and a likelihood, both modules that return distributions, and
``model.given(x)`` is the log joint as a function of ``z`` alone: the one thing that
:func:`vi_tutorial.elbo.draw` asks for. The models with a closed form also have ``posterior(x)`` and
``log_evidence(x)``, the oracles that every approximation in this series is held against.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    constraints,
    transform_to,
)

from vi_tutorial._validation import check_columns_vary, check_count, check_data, check_positive, check_shape
from vi_tutorial.distributions import covariance, diagonal_normal, full_normal
from vi_tutorial.elbo import LogJoint, elbo_enumerated
from vi_tutorial.families import Fixed

__all__ = [
    "BetaBernoulli",
    "GaussianMixture",
    "LatentVariableModel",
    "LinearGaussian",
    "Simulated",
    "conjugate_normal",
    "factor_analysis",
    "gaussian_mixture",
    "linear_regression",
    "probabilistic_pca",
    "probabilistic_pca_mle",
]


class Simulated(NamedTuple):
    """Latents and the data drawn from them: ``z`` is an exact draw from the posterior given ``x``.

    Example:
        >>> Simulated(torch.zeros(3, 2), torch.zeros(3, 64)).x.shape
        torch.Size([3, 64])
    """

    z: Tensor
    x: Tensor


class LatentVariableModel(nn.Module):
    r"""A joint built from a prior and a likelihood.

    .. math:: \log p_\theta(x, z) = \log p(z) + \log p_\theta(x \mid z)

    Args:
        prior: A module whose ``forward()`` returns :math:`p(z)`.
        likelihood: A module that maps ``z``, shape ``(num_samples, *batch, *latent)``, to
            :math:`p_\theta(x \mid z)`, a distribution with ``batch_shape`` ``(num_samples, *batch)``.

    Raises:
        TypeError: If ``prior`` or ``likelihood`` is not a ``torch.nn.Module``.

    Source:
        Kingma & Welling (2014), Auto-Encoding Variational Bayes, section 2.1.

    Example:
        >>> from vi_tutorial.families import standard_normal
        >>> from vi_tutorial.networks import BernoulliHead, mlp
        >>> model = LatentVariableModel(standard_normal(2), BernoulliHead(mlp(2, 8, 3), 3))
        >>> x = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
        >>> model.given(x)(torch.zeros(10, 2, 2)).shape
        torch.Size([10, 2])
    """

    def __init__(self, prior: nn.Module, likelihood: nn.Module) -> None:
        super().__init__()
        for name, module in (("prior", prior), ("likelihood", likelihood)):
            if not isinstance(module, nn.Module):
                raise TypeError(
                    f"{name} must be a torch.nn.Module that returns a distribution; received "
                    f"{type(module).__name__} (families.Fixed wraps a distribution)"
                )
        self.prior = prior
        self.likelihood = likelihood

    def given(self, x: Tensor) -> LogJoint:
        r"""The log joint at data ``x``, as a function of ``z``.

        Args:
            x: Data, shape ``(*batch, *event)``: one datapoint for each element of q's batch.

        Returns:
            A function from ``z``, shape ``(num_samples, *batch, *latent)``, to
            :math:`\log p_\theta(x, z)` in nats, shape ``(num_samples, *batch)``.

        Raises:
            TypeError: If ``x`` is not a floating-point tensor.
            ValueError: If ``x`` is empty or not finite; when the function is called, if ``x`` does not
                have the shape of the likelihood's data or lies outside its support, or the prior not that of ``z``.
        """
        log_likelihood = self.log_likelihood(x)

        def log_joint(z: Tensor) -> Tensor:
            value = log_likelihood(z)
            prior, latent = self.prior(), z.shape[value.ndim :]
            if prior.event_shape != latent:
                raise ValueError(
                    f"prior must have the event_shape of z {tuple(latent)}; received {tuple(prior.event_shape)}"
                )
            return prior.log_prob(z) + value

        return log_joint

    def log_likelihood(self, x: Tensor) -> LogJoint:
        r"""The log likelihood of data ``x``, as a function of ``z``: the log joint without the prior.

        Args:
            x: As for :meth:`given`.

        Returns:
            A function from ``z``, shape ``(num_samples, *batch, *latent)``, to
            :math:`\log p_\theta(x \mid z)` in nats, shape ``(num_samples, *batch)``.

        Raises:
            TypeError, ValueError: As for :meth:`given`.
        """
        check_data("x", x)

        def log_likelihood(z: Tensor) -> Tensor:
            likelihood = self.likelihood(z)
            check_shape(
                "x",
                x,
                likelihood.batch_shape[1:] + likelihood.event_shape,
                "batch of z, then the likelihood's event",
            )
            return _log_likelihood(likelihood, x)

        return log_likelihood

    def sample(self, num_samples: int) -> Simulated:
        r"""Draw :math:`z \sim p(z)`, then :math:`x \sim p_\theta(x \mid z)`: data, not their means.

        Args:
            num_samples: How many, at least 1.

        Returns:
            :class:`Simulated`, without gradient: ``z`` of shape ``(num_samples, *latent)`` and ``x`` of shape
            ``(num_samples, *event)``.

        Raises:
            TypeError, ValueError: If ``num_samples`` is not an ``int`` of at least 1.
        """
        check_count("num_samples", num_samples)
        with torch.no_grad():
            z = self.prior().sample(torch.Size([num_samples]))
            return Simulated(z, self.likelihood(z).sample())


def _log_likelihood(likelihood: Distribution, x: Tensor) -> Tensor:
    """log p(x | z) in nats; data outside the support meets an error that shows the first such value."""
    if torch.compiler.is_compiling():  # no values to look at
        return likelihood.log_prob(x)
    support: Any = likelihood.support
    while hasattr(support, "base_constraint"):  # look at coordinates, not at whole events
        support = support.base_constraint
    outside = ~support.check(x)
    if outside.any():
        # Limits that come with each sample (a Binomial's total) give ``outside`` leading dimensions that x has not.
        index = tuple(torch.nonzero(outside)[0].tolist()[outside.ndim - x.ndim :])
        advice = (
            " (grey levels? binarise them, or take BinomialHead for counts, ContinuousBernoulliHead for [0, 1])"
            if support is constraints.boolean
            else ""
        )
        raise ValueError(
            f"x must lie in the support of the likelihood, {str(support).splitlines()[0]}; "
            f"received {x[index].tolist()} at index {index}{advice}"
        )
    return likelihood.log_prob(x)


class _LinearNormal(nn.Module):
    """The likelihood N(x | W z + b, diag σ²), with σ learned through its logarithm."""

    def __init__(self, weight: Tensor, loc: Tensor, noise_scale: Tensor) -> None:
        super().__init__()
        # Copies: learning must not write into the caller's tensors.
        # Laid out afresh in memory: L-BFGS takes parameters and gradients as flat views.
        self.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
        self.loc = nn.Parameter(loc.detach().clone())
        self.log_noise_scale = nn.Parameter(noise_scale.log())

    def forward(self, z: Tensor) -> Independent:
        return diagonal_normal(z @ self.weight.mT + self.loc, self.log_noise_scale.exp())


class LinearGaussian(LatentVariableModel):
    r"""A Normal latent seen through a linear map and Normal noise: everything about it is exact.

    .. math:: z \sim \mathcal{N}(m, \operatorname{diag} s^2), \qquad
              x \mid z \sim \mathcal{N}(W z + b, \operatorname{diag} \sigma^2)

    Its posterior and evidence follow by completing the square:

    .. math:: p(z \mid x) = \mathcal{N}\big(\Lambda^{-1} [\operatorname{diag}(s^{-2}) m
              + W^\top \operatorname{diag}(\sigma^{-2}) (x - b)],\; \Lambda^{-1}\big), \quad
              \Lambda = \operatorname{diag}(s^{-2}) + W^\top \operatorname{diag}(\sigma^{-2}) W

    .. math:: p(x) = \mathcal{N}(W m + b,\; W \operatorname{diag}(s^2) W^\top + \operatorname{diag} \sigma^2)

    Bayesian linear regression (:math:`W` the design), the mean of a Normal (:math:`W` a column of ones),
    probabilistic PCA (one :math:`\sigma`) and factor analysis (one :math:`\sigma_d` per coordinate) are
    this model. ``weight``, ``loc`` and ``log_noise_scale`` are parameters of ``likelihood``;
    ``requires_grad_(False)`` freezes them.

    Args:
        weight: :math:`W`, shape ``(D, L)``.
        loc: :math:`b`, shape ``(D,)``.
        noise_scale: :math:`\sigma`, shape ``()`` or ``(D,)``, positive.
        prior_loc: :math:`m`, shape ``(L,)``; zeros if not given.
        prior_scale: :math:`s`, shape ``(L,)``; ones if not given.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If shapes do not fit, a value is not finite, or a scale is not positive.

    Source:
        Bishop (2006), Pattern Recognition and Machine Learning, section 2.3.3 and eq. B.42 to B.46.

    Example:
        >>> model = LinearGaussian(torch.ones(1, 1), torch.zeros(1), torch.tensor(1.0))
        >>> x = torch.tensor([[2.0]])
        >>> model.posterior(x).mean.detach(), model.posterior(x).variance.detach()
        (tensor([[1.]]), tensor([[0.5000]]))
    """

    likelihood: _LinearNormal

    def __init__(
        self,
        weight: Tensor,
        loc: Tensor,
        noise_scale: Tensor,
        prior_loc: Tensor | None = None,
        prior_scale: Tensor | None = None,
    ) -> None:
        check_data("weight", weight, ndim=2)
        data_dim, latent_dim = weight.shape
        prior_loc = weight.new_zeros(latent_dim) if prior_loc is None else prior_loc
        prior_scale = weight.new_ones(latent_dim) if prior_scale is None else prior_scale
        for name, value, size, meaning in (
            ("loc", loc, data_dim, "one per row of weight"),
            ("prior_loc", prior_loc, latent_dim, "one per column of weight"),
            ("prior_scale", prior_scale, latent_dim, "one per column of weight"),
        ):
            check_shape(name, check_data(name, value), (size,), meaning)
        check_data("noise_scale", noise_scale)
        if noise_scale.ndim:
            check_shape("noise_scale", noise_scale, (data_dim,), "one per row of weight, or shape ()")
        for name, value in (("noise_scale", noise_scale), ("prior_scale", prior_scale)):
            if (value <= 0).any():
                raise ValueError(f"{name} must be positive; received a minimum of {value.min().item()}")
        super().__init__(
            Fixed(diagonal_normal, loc=prior_loc, scale=prior_scale), _LinearNormal(weight, loc, noise_scale)
        )

    @property
    def weight(self) -> Tensor:
        """W, shape ``(D, L)``."""
        return self.likelihood.weight

    @property
    def loc(self) -> Tensor:
        """b, shape ``(D,)``."""
        return self.likelihood.loc

    @property
    def noise_scale(self) -> Tensor:
        """σ, shape ``()`` or ``(D,)``."""
        return self.likelihood.log_noise_scale.exp()

    def _noise_precision(self) -> Tensor:
        return self.noise_scale.pow(-2).expand(len(self.loc))

    def posterior_precision(self) -> Tensor:
        """Λ, shape ``(L, L)``: the same for every x."""
        scaled = self.weight * self._noise_precision()[:, None]
        return torch.diag(self.prior().variance.reciprocal()) + self.weight.mT @ scaled

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """The exact posterior p(z | x).

        Args:
            x: Data, shape ``(*batch, D)``.

        Returns:
            A Normal with ``batch_shape`` ``batch`` and ``event_shape`` ``(L,)``.

        Raises:
            TypeError, ValueError: If ``x`` is not a finite, non-empty tensor of that shape.
        """
        self._check(x)
        prior = self.prior()
        linear = prior.mean / prior.variance + ((x - self.loc) * self._noise_precision()) @ self.weight
        factor = torch.linalg.cholesky(self.posterior_precision())
        mean = torch.cholesky_solve(linear.unsqueeze(-1), factor).squeeze(-1)
        return MultivariateNormal(mean, torch.cholesky_inverse(factor))

    def marginal(self) -> LowRankMultivariateNormal:
        """The exact marginal p(x), with ``event_shape`` ``(D,)``."""
        prior = self.prior()
        return LowRankMultivariateNormal(
            self.weight @ prior.mean + self.loc,
            self.weight * prior.variance.sqrt(),
            self.noise_scale.square().expand(len(self.loc)),
        )

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) in nats, exactly.

        Args:
            x: Data, shape ``(*batch, D)``.

        Returns:
            One number per datapoint, shape ``batch``.

        Raises:
            TypeError, ValueError: If ``x`` is not a finite, non-empty tensor of that shape.
        """
        return self.marginal().log_prob(self._check(x))

    def elbo(self, x: Tensor, q: Distribution) -> Tensor:
        r"""The ELBO of a Normal q, exactly: the log joint is quadratic, so q's mean and covariance are enough.

        .. math:: \mathcal{L} = \log p(x, z = \mu) - \tfrac12 \operatorname{tr}(\Lambda \Sigma)
                  + \mathbb{H}[q], \qquad q = \mathcal{N}(\mu, \Sigma)

        Args:
            x: Data, shape ``(*batch, D)``.
            q: A Normal with ``batch_shape`` ``batch`` and ``event_shape`` ``(L,)``: diagonal, full or low-rank.

        Returns:
            One number per datapoint, shape ``batch``, in nats.

        Raises:
            TypeError, ValueError: If ``x`` is not a finite, non-empty tensor of that shape, or ``q`` no Normal of
                those shapes.
        """
        self._check(x)
        spread = covariance(q)
        expected = (*x.shape[:-1], self.weight.shape[1])
        check_shape("q.mean", q.mean, expected, "the batch of x, then one per column of weight")
        at_mean = self.given(x)(q.mean.unsqueeze(0)).squeeze(0)
        return at_mean - 0.5 * (self.posterior_precision() * spread).sum((-2, -1)) + q.entropy()

    def _check(self, x: Tensor) -> Tensor:
        check_data("x", x)
        check_shape("x", x, (*x.shape[:-1], len(self.loc)), "one column per row of weight")
        return x


def conjugate_normal(
    num_data: int, prior_loc: float = 0.0, prior_scale: float = 1.0, noise_scale: float = 1.0
) -> LinearGaussian:
    r"""The mean of a Normal: :math:`z \sim \mathcal{N}(m, s^2)`, :math:`x_n \mid z \sim \mathcal{N}(z, \sigma^2)`.

    Nothing in it is learned. In float64, since it is there to be exact.

    Args:
        num_data: Number of observations, at least 1. They are one datapoint: they share one latent.
        prior_loc: :math:`m`.
        prior_scale: :math:`s`, positive.
        noise_scale: :math:`\sigma`, positive.

    Returns:
        A :class:`LinearGaussian` for ``x`` of shape ``(num_data,)`` and ``z`` of shape ``(1,)``.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind or out of range.

    Source:
        Murphy (2012), Machine Learning: A Probabilistic Perspective, section 4.4.2.1.

    Example:
        >>> model = conjugate_normal(num_data=3)
        >>> model.posterior(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)).mean
        tensor([2.], dtype=torch.float64)
    """
    check_count("num_data", num_data)
    design = torch.ones(num_data, 1, dtype=torch.float64)
    return linear_regression(design, prior_scale, noise_scale, prior_loc)


def linear_regression(design: Tensor, prior_scale: float, noise_scale: float, prior_loc: float = 0.0) -> LinearGaussian:
    r"""Bayesian linear regression with known noise: :math:`y \mid z \sim \mathcal{N}(X z, \sigma^2 I)`.

    The latent is the vector of coefficients, :math:`z \sim \mathcal{N}(m \mathbf{1}, s^2 I)`; nothing is
    learned. The responses of all rows are one datapoint: they share the coefficients.

    Args:
        design: :math:`X`, shape ``(N, L)``.
        prior_scale: :math:`s`, positive.
        noise_scale: :math:`\sigma`, positive.
        prior_loc: :math:`m`.

    Returns:
        A :class:`LinearGaussian` for ``y`` of shape ``(N,)`` and ``z`` of shape ``(L,)``.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind, shape or range.

    Source:
        Bishop (2006), Pattern Recognition and Machine Learning, eq. 3.48 to 3.54.

    Example:
        >>> model = linear_regression(torch.eye(2), prior_scale=1.0, noise_scale=1.0)
        >>> model.posterior(torch.tensor([2.0, 4.0])).mean
        tensor([1., 2.])
    """
    check_data("design", design, ndim=2)
    check_positive("prior_scale", prior_scale)
    check_positive("noise_scale", noise_scale)
    num_data, latent_dim = design.shape
    model = LinearGaussian(
        design,
        design.new_zeros(num_data),
        design.new_tensor(noise_scale),
        design.new_full((latent_dim,), prior_loc),
        design.new_full((latent_dim,), prior_scale),
    )
    return model.requires_grad_(False)


def probabilistic_pca(data_dim: int, latent_dim: int, generator: torch.Generator | None = None) -> LinearGaussian:
    r"""Probabilistic PCA to be learned: :math:`x \mid z \sim \mathcal{N}(W z + b, \sigma^2 I)`, in float64.

    Starts at :math:`b = 0`, :math:`\sigma = 1` and a small random :math:`W`: at :math:`W = 0` the
    gradient in :math:`W` vanishes.

    Args:
        data_dim: :math:`D`, at least 1.
        latent_dim: :math:`L`, at least 1.
        generator: Source of the random start.

    Returns:
        A :class:`LinearGaussian` with learnable parameters.

    Raises:
        TypeError, ValueError: If a size is not an ``int`` of at least 1.

    Source:
        Tipping & Bishop (1999), Probabilistic Principal Component Analysis.

    Example:
        >>> model = probabilistic_pca(data_dim=5, latent_dim=2)
        >>> sorted(name for name, _ in model.likelihood.named_parameters())
        ['loc', 'log_noise_scale', 'weight']
    """
    check_count("data_dim", data_dim)
    check_count("latent_dim", latent_dim)
    weight = 0.1 * torch.randn(data_dim, latent_dim, generator=generator, dtype=torch.float64)
    return LinearGaussian(weight, weight.new_zeros(data_dim), weight.new_ones(()))


def factor_analysis(data_dim: int, latent_dim: int, generator: torch.Generator | None = None) -> LinearGaussian:
    r"""Factor analysis to be learned: :func:`probabilistic_pca` with a noise scale for each coordinate, in float64.

    .. math:: x \mid z \sim \mathcal{N}(W z + b, \operatorname{diag} \sigma^2)

    It starts where probabilistic PCA does. Its maximum likelihood has no
    closed form, and none at all where a column of the data never varies.

    Args:
        data_dim: :math:`D`, at least 1.
        latent_dim: :math:`L`, at least 1.
        generator: Source of the random start.

    Returns:
        A :class:`LinearGaussian` with learnable parameters.

    Raises:
        TypeError, ValueError: If a size is not an ``int`` of at least 1.

    Source:
        Rubin & Thayer (1982), EM Algorithms for ML Factor Analysis; Bishop (2006), Pattern Recognition and Machine
        Learning, section 12.2.4.

    Example:
        >>> factor_analysis(data_dim=5, latent_dim=2).noise_scale.detach()
        tensor([1., 1., 1., 1., 1.], dtype=torch.float64)
    """
    start = probabilistic_pca(data_dim, latent_dim, generator)
    return LinearGaussian(start.weight, start.loc, torch.ones_like(start.loc))


def probabilistic_pca_mle(x: Tensor, latent_dim: int) -> LinearGaussian:
    r"""Probabilistic PCA at its maximum likelihood, in closed form.

    With eigenvalues :math:`\lambda_1 \ge \dots \ge \lambda_D` and eigenvectors :math:`U` of the
    maximum-likelihood covariance (divided by :math:`N`, not :math:`N - 1`),

    .. math:: \hat b = \bar x, \qquad \hat\sigma^2 = \frac{1}{D - L} \sum_{i > L} \lambda_i, \qquad
              \hat W = U_L (\operatorname{diag}(\lambda_1, \dots, \lambda_L) - \hat\sigma^2 I)^{1/2}

    up to a rotation of the latent. The parameters can be trained further; ``requires_grad_(False)``
    freezes them.

    Args:
        x: Data, shape ``(N, D)``.
        latent_dim: :math:`L`, at least 1 and below :math:`D`.

    Returns:
        A :class:`LinearGaussian`.

    Raises:
        TypeError: If ``x`` is not a floating-point tensor or ``latent_dim`` not an ``int``.
        ValueError: If ``latent_dim`` is out of range, or if no variance is left for the noise: with too
            few datapoints or too many dependent columns the likelihood has no upper bound.

    Source:
        Tipping & Bishop (1999), Probabilistic Principal Component Analysis.

    Example:
        >>> x = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> round(probabilistic_pca_mle(x, latent_dim=1).noise_scale.item() ** 2, 6)  # 2 / 4
        0.5
    """
    check_data("x", x, ndim=2)
    data_dim = x.shape[1]
    check_count("latent_dim", latent_dim)
    if latent_dim >= data_dim:
        raise ValueError(f"latent_dim must be below the data's dimension {data_dim}; received {latent_dim}")
    mean = x.mean(0)
    eigenvalues, eigenvectors = torch.linalg.eigh((x - mean).mT @ (x - mean) / len(x))
    noise_variance = eigenvalues[:-latent_dim].mean()
    if noise_variance <= torch.finfo(x.dtype).eps * data_dim * eigenvalues[-1]:
        raise ValueError(
            f"x must vary in more than latent_dim = {latent_dim} directions; the variance left for the noise "
            f"is {noise_variance.item():.1e}, and the likelihood has no upper bound"
        )
    spread = (eigenvalues[-latent_dim:] - noise_variance).flip(0).sqrt()
    return LinearGaussian(eigenvectors[:, -latent_dim:].flip(1) * spread, mean, noise_variance.sqrt())


class _Proportions(nn.Module):
    """The prior over components, learned through its logits."""

    def __init__(self, probs: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(probs.detach().log())

    def forward(self) -> Categorical:
        return Categorical(logits=self.logits)


class _Components(nn.Module):
    """The likelihood N(x | μ_z, Σ_z) of a component number z; Σ learned through its Cholesky factor."""

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(loc.detach().clone(memory_format=torch.contiguous_format))
        self.unconstrained_tril = nn.Parameter(torch.empty_like(scale_tril, memory_format=torch.contiguous_format))
        self.assign(scale_tril)

    @property
    def scale_tril(self) -> Tensor:
        return transform_to(constraints.lower_cholesky)(self.unconstrained_tril)

    @torch.no_grad()
    def assign(self, scale_tril: Tensor) -> None:
        self.unconstrained_tril.copy_(transform_to(constraints.lower_cholesky).inv(scale_tril))

    def forward(self, z: Tensor) -> MultivariateNormal:
        if z.is_floating_point() or z.is_complex() or z.dtype == torch.bool:
            raise TypeError(f"z must hold the components' numbers, as a Categorical q gives them; received {z.dtype}")
        if ((z < 0) | (z >= len(self.loc))).any():
            raise ValueError(
                f"z must number the components, 0 to {len(self.loc) - 1}; received {z.min().item()} to {z.max().item()}"
            )
        return MultivariateNormal(self.loc[z], scale_tril=self.scale_tril[z])


class GaussianMixture(LatentVariableModel):
    r"""A mixture of Normals: the latent is the number of the component that a datapoint comes from.

    .. math:: z \sim \mathrm{Categorical}(\pi), \qquad x \mid z \sim \mathcal{N}(\mu_z, \Sigma_z)

    Its posterior, the responsibilities, and its evidence are sums over K states:

    .. math:: p(z = k \mid x) = \frac{\pi_k \, \mathcal{N}(x \mid \mu_k, \Sigma_k)}{p(x)}, \qquad
              p(x) = \sum_{k=1}^{K} \pi_k \, \mathcal{N}(x \mid \mu_k, \Sigma_k)

    The parameters are unconstrained, for gradient ascent: ``prior.logits``, ``likelihood.loc`` and
    ``likelihood.unconstrained_tril``, a Cholesky factor with the logarithm of its diagonal. Components are numbered
    from 0, and z has ``event_shape`` ``()``.

    Args:
        probs: :math:`\pi`, shape ``(K,)``, positive, summing to one.
        loc: :math:`\mu`, shape ``(K, D)``.
        covariance_matrix: :math:`\Sigma`, shape ``(K, D, D)``, positive definite.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If shapes do not fit, a value is not finite, ``probs`` is no distribution, or a covariance is not
            symmetric and positive definite; the message names the component.

    Source:
        Bishop (2006), Pattern Recognition and Machine Learning, section 9.2.

    Example:
        >>> model = GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1, 1))
        >>> model.posterior(torch.tensor([[0.0]])).probs.detach()
        tensor([[0.5000, 0.5000]])
    """

    prior: _Proportions
    likelihood: _Components

    def __init__(self, probs: Tensor, loc: Tensor, covariance_matrix: Tensor) -> None:
        num_components, data_dim = check_data("loc", loc, ndim=2).shape
        check_shape("probs", check_data("probs", probs), (num_components,), "one per row of loc")
        check_data("covariance_matrix", covariance_matrix)
        expected = (num_components, data_dim, data_dim)
        check_shape("covariance_matrix", covariance_matrix, expected, "one square matrix per row of loc")
        if (probs <= 0).any() or abs(probs.sum().item() - 1) > 1e-6:
            raise ValueError(f"probs must be positive and sum to one; received {probs.tolist()}")
        if not torch.allclose(covariance_matrix, covariance_matrix.mT):
            raise ValueError("covariance_matrix must be symmetric; received one that is not its transpose")
        scale_tril, failed = torch.linalg.cholesky_ex(covariance_matrix.detach())
        if failed.any():
            raise ValueError(
                f"covariance_matrix must be positive definite; received one that is not for component(s) "
                f"{torch.nonzero(failed).flatten().tolist()}"
            )
        super().__init__(_Proportions(probs), _Components(loc, scale_tril))

    @property
    def probs(self) -> Tensor:
        """π, shape ``(K,)``."""
        return self.prior().probs

    @property
    def loc(self) -> Tensor:
        """μ, shape ``(K, D)``."""
        return self.likelihood.loc

    @property
    def covariance_matrix(self) -> Tensor:
        """Σ, shape ``(K, D, D)``."""
        return self.likelihood.scale_tril @ self.likelihood.scale_tril.mT

    def posterior(self, x: Tensor) -> Categorical:
        """The exact posterior p(z | x), whose ``probs`` are the responsibilities.

        Args:
            x: Data, shape ``(*batch, D)``.

        Returns:
            A Categorical over K components with ``batch_shape`` ``batch``.

        Raises:
            TypeError, ValueError: If ``x`` is not a finite, non-empty tensor of that shape.
        """
        components = full_normal(self.loc, self.likelihood.scale_tril)
        log_joint = self.prior().logits + components.log_prob(self._check(x).unsqueeze(-2))
        # Laid out afresh in memory: taken as the start of a q to be learned, L-BFGS wants a flat view of it.
        return Categorical(logits=log_joint.contiguous())

    def marginal(self) -> MixtureSameFamily:
        """The exact marginal p(x), with ``event_shape`` ``(D,)``."""
        return MixtureSameFamily(self.prior(), full_normal(self.loc, self.likelihood.scale_tril))

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) in nats, exactly.

        Args:
            x: Data, shape ``(*batch, D)``.

        Returns:
            One number per datapoint, shape ``batch``.

        Raises:
            TypeError, ValueError: If ``x`` is not a finite, non-empty tensor of that shape.
        """
        return self.marginal().log_prob(self._check(x))

    def elbo(self, x: Tensor, q: Distribution) -> Tensor:
        """The ELBO, exactly: :func:`vi_tutorial.elbo.elbo_enumerated` at ``x``.

        Args:
            x: Data, shape ``(*batch, D)``.
            q: A Categorical over K components with ``batch_shape`` ``batch``.

        Returns:
            One number per datapoint, shape ``batch``, in nats.

        Raises:
            TypeError, ValueError: As for :func:`vi_tutorial.elbo.elbo_enumerated`, and if ``x`` is bad.
        """
        return elbo_enumerated(self.given(self._check(x)), q)

    def _check(self, x: Tensor) -> Tensor:
        check_data("x", x)
        check_shape("x", x, (*x.shape[:-1], self.loc.shape[1]), "one column per coordinate of loc")
        return x


def gaussian_mixture(x: Tensor, num_components: int, generator: torch.Generator | None = None) -> GaussianMixture:
    """A Gaussian mixture to be learned: means at random datapoints, all with the data's covariance and equal weight.

    Args:
        x: Data, shape ``(N, D)``.
        num_components: K, at least 1.
        generator: Source of the choice of datapoints.

    Returns:
        A :class:`GaussianMixture` with learnable parameters, in the dtype of ``x``.

    Raises:
        TypeError: If ``x`` is not a floating-point tensor or ``num_components`` not an ``int``.
        ValueError: If ``x`` is not a finite matrix, if a column never varies or some are linearly dependent, or if
            there are fewer different datapoints than components.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [5.0]])
        >>> model = gaussian_mixture(x, 3)
        >>> sorted(model.loc.flatten().tolist())
        [0.0, 1.0, 5.0]
    """
    check_data("x", x, ndim=2)
    check_count("num_components", num_components)
    different = x.unique(dim=0)  # two components that start alike stay alike
    if len(different) < num_components:
        raise ValueError(
            f"x must hold at least num_components = {num_components} different datapoints; received {len(different)}"
        )
    check_columns_vary("x", x, "drop them")
    overall = torch.cov(x.mT, correction=0).reshape(x.shape[1], x.shape[1])
    scale = overall.diagonal().sqrt()
    smallest = torch.linalg.eigvalsh(overall / torch.outer(scale, scale))[0].item()
    if smallest <= torch.finfo(x.dtype).eps * len(scale):
        raise ValueError(
            f"x must have a covariance that is positive definite; received {len(x)} datapoints in {len(scale)} columns "
            f"that are linearly dependent (smallest eigenvalue of their correlation {smallest:.1e})"
        )
    chosen = torch.randperm(len(different), generator=generator)[:num_components]
    probs = x.new_full((num_components,), 1 / num_components)
    return GaussianMixture(probs, different[chosen], overall.expand(num_components, -1, -1))


class _Flips(nn.Module):
    """num_data flips of one coin whose probability of heads is the latent."""

    def __init__(self, num_data: int) -> None:
        super().__init__()
        self.num_data = num_data

    def forward(self, z: Tensor) -> Independent:
        return Independent(Bernoulli(probs=z.unsqueeze(-1).expand(*z.shape, self.num_data)), 1)


class BetaBernoulli(LatentVariableModel):
    r"""A coin of unknown bias: :math:`z \sim \mathrm{Beta}(a, b)`, :math:`x_n \mid z \sim \mathrm{Bernoulli}(z)`.

    .. math:: p(z \mid x) = \mathrm{Beta}(a + h, b + N - h), \qquad
              p(x) = \frac{B(a + h, b + N - h)}{B(a, b)}, \qquad h = \sum_n x_n

    In float64. The latent is a scalar: ``event_shape`` ``()``. The flips share it, so they are one
    datapoint.

    Args:
        num_data: :math:`N`, at least 1.
        a: First parameter of the prior, positive.
        b: Second parameter of the prior, positive.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind or out of range.

    Source:
        Murphy (2012), Machine Learning: A Probabilistic Perspective, section 3.3.

    Example:
        >>> coin = BetaBernoulli(num_data=2)
        >>> flips = torch.tensor([1.0, 1.0], dtype=torch.float64)
        >>> coin.posterior(flips).mean, coin.log_evidence(flips).exp()
        (tensor(0.7500, dtype=torch.float64), tensor(0.3333, dtype=torch.float64))
    """

    def __init__(self, num_data: int, a: float = 1.0, b: float = 1.0) -> None:
        check_count("num_data", num_data)
        check_positive("a", a)
        check_positive("b", b)
        self.num_data = num_data
        super().__init__(
            Fixed(
                Beta,
                concentration1=torch.tensor(a, dtype=torch.float64),
                concentration0=torch.tensor(b, dtype=torch.float64),
            ),
            _Flips(num_data),
        )

    def posterior(self, x: Tensor) -> Beta:
        """The exact posterior p(z | x).

        Args:
            x: Flips, 0 or 1, shape ``(*batch, N)``.

        Returns:
            A Beta with ``batch_shape`` ``batch``.

        Raises:
            TypeError, ValueError: If ``x`` is not a tensor of zeros and ones of that shape.
        """
        check_data("x", x)
        check_shape("x", x, (*x.shape[:-1], self.num_data), "one number per flip")
        if not ((x == 0) | (x == 1)).all():
            raise ValueError("x must hold zeros and ones; received other values")
        heads = x.sum(-1)
        prior = self.prior()
        return Beta(prior.concentration1 + heads, prior.concentration0 + self.num_data - heads)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) in nats, exactly: of this sequence of flips, not of its count.

        Args:
            x: Flips, 0 or 1, shape ``(*batch, N)``.

        Returns:
            One number per datapoint, shape ``batch``.

        Raises:
            TypeError, ValueError: If ``x`` is not a tensor of zeros and ones of that shape.
        """
        return _log_beta(self.posterior(x)) - _log_beta(self.prior())


def _log_beta(p: Beta) -> Tensor:
    a, b = p.concentration1, p.concentration0
    return a.lgamma() + b.lgamma() - (a + b).lgamma()
