# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · Gradients from samples
#
# Two guides stand on the same hillside in fog. Each takes one sample and points uphill. Both are honest: averaged over
# many samples they point in exactly the same direction. You can follow the first one after a single answer. The second
# you would have to ask *seven million times* to know as much.
#
# Both are in daily use.
#
# **When an expectation has no formula, where does its gradient come from, and what decides how noisy it is?**

# %% jupyter={"source_hidden": true} tags=["remove-cell", "setup"]
import importlib.util

from IPython import get_ipython

if (shell := get_ipython()) is not None:
    if importlib.util.find_spec("vi_tutorial") is None:  # on Colab, say
        shell.run_line_magic("pip", "install --quiet git+https://github.com/vi-tutorial/vi_tutorial")
    shell.run_line_magic("matplotlib", "inline")  # figures below their cells, whatever MPLBACKEND says

# %% mystnb={"image": {"alt": "The map of the series, six boxes joined by arrows: KL, ELBO, phi with the model known, theta, networks, what breaks. The box of phi is lit."}}
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch.distributions import Bernoulli, Normal, kl_divergence

from vi_tutorial import checkers, checks, data, families, models, plots, training
from vi_tutorial.distributions import diagonal_normal, full_normal
from vi_tutorial.elbo import (
    dataset_total,
    draw,
    elbo,
    elbo_leave_one_out,
    elbo_score_function,
    elbo_sticking_the_landing,
    weigh,
)
from vi_tutorial.exercises import ch03
from vi_tutorial.frozen import reparameterise, standardised_noise

torch.set_default_dtype(torch.float64)  # identities are claimed: no rounding to hide behind
_ = torch.manual_seed(0)
plots.chain("phi")

# %% [markdown]
# *Before this:* [chapter 01](01_the_elbo.ipynb) (the ELBO and the log weight),
# [chapter 02](02_a_fixed_gaussian_joint.ipynb) (the diabetes data, $\Lambda$). *Reading time:* 45 minutes; the cells run
# in about fifteen seconds.
#
# **You will be able to**
#
# - **derive** four gradients of one ELBO, and say which term each of them leaves out;
# - **predict** their noise from five numbers: distance, width, dimension, samples, and the log evidence;
# - **choose** between them, and know when to stop sampling and freeze the noise;
# - **catch** a gradient that is biased, even where it looks right.
#
# ## A failure first
#
# We take up the 442 diabetes patients where chapter 02 left them: $x$ is the vector of all scores, $z$ the ten
# coefficients, and $\log p(x, z) = c + h^\top z - \frac12 z^\top \Lambda z$. There every expectation was a formula. From
# now on we pretend that it is not, as for almost any other model. The formulas stay in an envelope, for marking.
#
# Let $q$ have the posterior's shape but stand at the wrong place, with all effects zero:
# $q_\phi = \mathcal{N}(m, \Sigma)$ with $m = 0$. Which way should $m$ move? The envelope says
# $\partial \mathcal{L} / \partial m = h - \Lambda m$.

# %%
patients = data.diabetes()
W = (patients.x - patients.x.mean(0)) / patients.x.std(0, correction=0)
x = patients.y - patients.y.mean()
D, L = W.shape
residuals = x - W @ torch.linalg.lstsq(W, x[:, None]).solution[:, 0]
noise_scale = math.sqrt(residuals.square().sum().item() / (D - L - 1))
model = models.linear_regression(W, prior_scale=50.0, noise_scale=noise_scale)
posterior, log_evidence = model.posterior(x), model.log_evidence(x)
Lambda = posterior.precision_matrix

start = torch.zeros(L)
exact_slope = Lambda @ (posterior.mean - start)

q, num_samples = families.Fixed(full_normal, loc=start, scale_tril=posterior.scale_tril), 10_000
estimate = elbo(draw(model.given(x), q(x), num_samples).log_weight)
print(f"log p(x) = {log_evidence.item():.0f} nats; the ELBO of q is about {estimate.item():.0f}")

# %% [markdown]
# The package has both guides. `elbo(draw(...).log_weight)` can be differentiated as it stands; `elbo_score_function` has
# the same value and another gradient. To see the noise we want many independent gradients at once, and there is a trick
# for that, used all through this chapter: a *batch* of equal copies of $m$. To the package each copy is a datapoint with
# a $q$ of its own, so $x$ is repeated as well. Copy $r$ occurs in bound $r$ only: one backward pass through the *sum* of
# the bounds leaves each copy its own gradient.


# %% mystnb={"image": {"alt": "Two scatter plots of 2,000 gradients in the effects of body mass index and blood pressure. Left: the first guide's, on axes from 0 to 10, lie in a small cloud around the exact gradient of 6.8 and 5.1. Right: the second guide's fill a wide cloud that reaches 3,000 in every direction, centred near zero."}}
def pathwise(log_joint, q, num_samples):
    return elbo(draw(log_joint, q, num_samples).log_weight)


def slopes_in_m(estimator, at, num_samples, repeats=2_000):
    """Independent estimates of the gradient in the mean of q, shape (repeats, L)."""
    copies = at.repeat(repeats, 1).requires_grad_()
    bound = estimator(model.given(x.expand(repeats, D)), full_normal(copies, posterior.scale_tril), num_samples)
    return torch.autograd.grad(bound.sum(), copies)[0]


bmi, bp = patients.names.index("bmi"), patients.names.index("bp")
cloud = {"first": slopes_in_m(pathwise, start, 1), "second": slopes_in_m(elbo_score_function, start, 1, 10_000)}
exact_pair = exact_slope[[bmi, bp]]
ratio = (cloud["second"][:, bmi].var() / cloud["first"][:, bmi].var()).item()
assert 6e6 < ratio < 7.5e6
assert (cloud["first"][:, [bmi, bp]] > 0).all()  # the first guide is never wrong about the direction

with plots.style():
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.4))
    colours = (plots.COLOURS.theta, plots.COLOURS.data)
    for ax, (name, slopes), colour in zip(axes, cloud.items(), colours, strict=True):
        ax.scatter(*slopes[:2_000, [bmi, bp]].T, s=4, alpha=0.35, color=colour, linewidths=0)
        ax.plot(*exact_pair, marker="+", color=plots.COLOURS.evidence, markersize=14, markeredgewidth=2)
        ax.set(xlabel=r"$\partial\mathcal{L}/\partial m$, bmi", title=f"the {name} guide")
    axes[0].set(xlim=(0, 10), ylim=(0, 10), ylabel=r"$\partial\mathcal{L}/\partial m$, blood pressure")
    axes[1].set(xlim=(-3500, 3500), ylim=(-3500, 3500))
    axes[0].annotate("exact", exact_pair, (1.5, 7.5), arrowprops={"arrowstyle": "-", "color": "black"})
    fig.suptitle("One sample each, the same mean: ± 0.4 against ± 1,000", x=0.01, ha="left", weight="bold", size=12)

# %% [markdown]
# Look at the axes: the whole left-hand picture would be a speck of dust in the right-hand one. The standard deviations
# differ by a factor of 2,600, so the second guide needs $2{,}600^2$, nearly *seven million* samples, to be as sure as
# the first is after one.
#
# Nothing is wrong with the code; the second guide is unbiased, and we shall prove it. By the end of this chapter you will
# know where the ± 1,000 comes from and where the ± 0.4 does, and how much of the difference one more line of code removes.
#
# ## The second guide: the score function
#
# We want $\nabla_\phi \mathcal{L}$ with $\mathcal{L} = \int q_\phi(z) \log w(z) \, dz$ and
# $\log w(z) = \log p_\theta(x, z) - \log q_\phi(z)$. There are two $\phi$ in it, one in each factor, so the product rule
# gives two terms:
#
# $$\nabla_\phi \mathcal{L} = \int \nabla_\phi q_\phi(z) \, \log w(z) \, dz
# + \int q_\phi(z) \, \nabla_\phi \log w(z) \, dz. \tag{03.1}$$
#
# The second term is an expectation under $q$. The first is not: $\nabla_\phi q_\phi$ is no density (it integrates to zero,
# and is negative somewhere), and we can only sample from $q$. So we put a $q$ in front by force. Since
# $\nabla \log q = \nabla q / q$,
#
# $$\nabla_\phi q_\phi(z) = q_\phi(z) \, \nabla_\phi \log q_\phi(z). \tag{03.2}$$
#
# This is the only reason why $\nabla_\phi \log q_\phi$, the **score**, appears here: it turns an integral into
# an expectation that one can sample. Its own mean is zero, because $q$ integrates to one for every $\phi$:
#
# $$\mathbb{E}_q[\nabla_\phi \log q_\phi(z)] = \int \nabla_\phi q_\phi(z) \, dz = \nabla_\phi \int q_\phi(z) \, dz
# = \nabla_\phi 1 = 0. \tag{03.3}$$
#
# And the second term of equation (03.1) is just minus that, since only $\log q$ in $\log w$ knows $\phi$. What remains is
# the **score-function gradient**, also called REINFORCE (Williams 1992):
#
# $$\nabla_\phi \mathcal{L} = \mathbb{E}_q\big[ \log w(z) \, \nabla_\phi \log q_\phi(z) \big]. \tag{03.4}$$
#
# What about θ? The distribution we average over does not depend on it, so its gradient walks through the expectation
# unhindered, in this and in every other estimator of the chapter:
#
# $$\nabla_\theta \mathcal{L} = \mathbb{E}_q\big[ \nabla_\theta \log p_\theta(x, z) \big]. \tag{03.5}$$
#
# First equation (03.3), on which everything hangs: for a Normal in $(\mu, \log \sigma)$ by integration, and for a coin in
# its log odds by summing its two states.

# %%
nodes, weights = np.polynomial.hermite_e.hermegauss(40)
weights = torch.tensor(weights / weights.sum())  # means under N(0, 1)
nodes = torch.tensor(nodes)


def scores(mu, log_sigma, z):
    """∇ log q(z) in (mu, log sigma), one row for each z, by automatic differentiation."""
    copies = torch.tensor([mu, log_sigma]).repeat(len(z), 1).requires_grad_()
    log_q = Normal(copies[:, 0], copies[:, 1].exp()).log_prob(z)
    return torch.autograd.grad(log_q.sum(), copies)[0]


mu, log_sigma = 0.7, -0.4
z = mu + math.exp(log_sigma) * nodes
log_q = Normal(mu, math.exp(log_sigma)).log_prob(z)
checks.quadrature(
    "03.1a",
    "E_q ∇log q = 0 for a Normal, in (μ, log σ)",
    torch.zeros(2),
    weights @ scores(mu, log_sigma, z),
    wrong={"E_q[log q ∇log q], the mean of something else": weights @ (log_q[:, None] * scores(mu, log_sigma, z))},
    tolerance=1e-10,
)

eta = torch.tensor([0.6, 0.6], requires_grad=True)
coin_states = torch.tensor([0.0, 1.0])
(coin_scores,) = torch.autograd.grad(Bernoulli(logits=eta).log_prob(coin_states).sum(), eta)
coin_probs = torch.tensor([1 / (1 + math.exp(0.6)), 1 / (1 + math.exp(-0.6))])
checks.enumeration(
    "03.1b",
    "E_q ∇log q = 0 for a coin, in its log odds",
    0.0,
    coin_probs @ coin_scores,
    wrong={"states weighted alike": coin_scores.mean()},
)

# %% [markdown]
# One step of equation (03.3) deserves suspicion: we moved $\nabla_\phi$ out of the integral. That is allowed if the
# *limits* of the integral stay put. Take $q_\phi$ uniform on $[0, \phi]$: the mean of $z$ is $\phi / 2$, with slope
# $+\frac12$, but the score is $-1/\phi$ everywhere, and $\mathbb{E}_q[z \cdot (-1/\phi)] = -\frac12$. What is missing is
# Leibniz's term of the moving limit, $\phi \cdot q_\phi(\phi) = \phi \cdot \frac1\phi = 1$. Half a slope downwards in
# place of half a slope upwards, and no noise to warn you.
#
# ### In code
#
# A gradient estimator is a number whose *derivative* is right; its value need not mean anything (the package adds the
# ELBO back, so that its value does). `detach` marks what is to be treated as a constant. In `score_function` below, φ gets
# its gradient through the factor `log_q`, equation (03.4), and θ through `log_joint_z`, equation (03.5).
#
# We also need a test case without closed form, with φ *and* θ. A latent ability $z \sim \mathcal{N}(0, 1)$, one question
# answered *yes* with probability $\operatorname{sigmoid}(\theta z)$, and $q = \mathcal{N}(\mu, \sigma^2)$. For the exact
# gradient in $(\mu, \log \sigma, \theta)$ SciPy integrates $\mathcal{L}$ and we take differences of it; nobody is
# differentiating anything there. (Among the rejected answers is one that leaves $\log q$ out of the learning signal. It
# loses the entropy of $q$, whose gradient is 1 in $\log \sigma$ and 0 elsewhere; *A mistake people make* returns to it.)


# %%
def log_joint_of(theta):
    """log p(x = yes, z) as a function of z."""
    return lambda z: Normal(0.0, 1.0).log_prob(z) + torch.nn.functional.logsigmoid(theta * z)


def elbo_by_scipy(mu, log_sigma, theta):
    q = norm(mu, math.exp(log_sigma))

    def integrand(z):
        return q.pdf(z) * (norm.logpdf(z) - np.logaddexp(0.0, -theta * z) - q.logpdf(z))

    return quad(integrand, -12, 12, epsabs=1e-13)[0]


place = np.array([0.3, math.log(0.8), 3.0])  # mu, log sigma, theta
steps = 1e-4 * np.eye(3)
exact = torch.tensor([(elbo_by_scipy(*(place + s)) - elbo_by_scipy(*(place - s))) / 2e-4 for s in steps])
entropy_slope = torch.tensor([0.0, 1.0, 0.0])  # of q, in (mu, log sigma, theta)


def estimates(estimator, num_samples, repeats=40_000):
    """Independent gradients in (mu, log sigma, theta), shape (repeats, 3)."""
    copies = torch.tensor(place).repeat(repeats, 1).requires_grad_()
    mu, log_sigma, theta = copies.unbind(-1)
    bound = estimator(log_joint_of(theta), Normal(mu, log_sigma.exp()), num_samples)
    return torch.autograd.grad(bound.sum(), copies)[0]


def same_gradients(ours, theirs, num_samples):
    """Whether two estimators give equal gradients from equal seeds."""
    results = []
    for estimator in (ours, theirs):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            results.append(estimates(estimator, num_samples, repeats=100))
    return torch.allclose(*results, atol=1e-12)


# %%
def score_function(log_joint, q, num_samples):
    z = q.sample((num_samples,))  # a plain sample: no gradient runs through it
    log_joint_z, log_q = log_joint(z), q.log_prob(z)
    log_weight = (log_joint_z - log_q).detach()  # how good was this sample: the learning signal
    return (log_weight * log_q + log_joint_z).mean(0)


assert same_gradients(score_function, elbo_score_function, 3)  # the package agrees
checks.monte_carlo(
    "03.2a",
    "the score-function gradient is unbiased, in φ and in θ",
    estimates(elbo_score_function, 1),
    exact,
    wrong={
        "log q left out of the signal": exact - entropy_slope,
        "the whole signal detached: nothing left for θ": exact * torch.tensor([1.0, 1.0, 0.0]),
        "the sign of a loss": -exact,
    },
)

# %% [markdown]
# ## How noisy is it?
#
# The smallest example that shows everything: let the posterior be $\mathcal{N}(0, 1)$, so that
# $\log p(x, z) = \log p(x) + \log \mathcal{N}(z \mid 0, 1)$, and let $q = \mathcal{N}(\mu, 1)$: right width, wrong by
# $\mu$. Write $z = \mu + \epsilon$ with $\epsilon \sim \mathcal{N}(0, 1)$. The squares cancel:
#
# $$\log w = \underbrace{\log p(x) - \tfrac12 \mu^2}_{\mathcal{L}} - \mu \epsilon, \qquad
# \nabla_\mu \log q = \epsilon, \qquad g = (\mathcal{L} - \mu \epsilon) \, \epsilon. \tag{03.6}$$
#
# With $\mathbb{E}\epsilon^2 = 1$, $\mathbb{E}\epsilon^3 = 0$ and $\mathbb{E}\epsilon^4 = 3$, the mean of $g$ is $-\mu$, as
# it must be, and
#
# $$\operatorname{Var} g = \mathbb{E}[\mathcal{L}^2 \epsilon^2 + \mu^2 \epsilon^4] - \mu^2
# = \mathcal{L}^2 + 2 \mu^2. \tag{03.7}$$
#
# To compare estimators we use one number, the **signal-to-noise ratio** (SNR): the length of the mean gradient over the
# standard deviation of the estimate (for a vector, the root of the sum of its variances). At 1, the noise is as large as
# the signal. Averaging $K$ independent samples multiplies it by $\sqrt{K}$. Here
#
# $$\mathrm{SNR} = \frac{|\mu|}{\sqrt{2\mu^2 + \mathcal{L}^2}}, \qquad\text{and if } \log p(x) = 0: \quad
# \mathrm{SNR} = \frac{1}{\sqrt{2 + \mu^2 / 4}}. \tag{03.8}$$

# %%
mus, heights = np.array([0.5, 1.0, 2.0, 4.0]), np.array([0.0, -7.0])


def snr_by_scipy(mu, log_px):
    """Mean over standard deviation of log w(z) (z − mu), integrated."""

    def moment(n):
        def integrand(z):
            g = (log_px + norm.logpdf(z) - norm.logpdf(z, mu)) * (z - mu)
            return norm.pdf(z, mu) * g**n

        return quad(integrand, mu - 12, mu + 12)[0]

    return abs(moment(1)) / math.sqrt(moment(2) - moment(1) ** 2)


plain = 1 / np.sqrt(2 + mus**2 / 4)
checks.quadrature(
    "03.3",
    "score function, equation (03.6): one sample's SNR is 1/√(2 + μ²/4) if log p(x) = 0, |μ|/√(2μ² + 𝓛²) in general",
    np.stack([plain, mus / np.sqrt(2 * mus**2 + (-7 - mus**2 / 2) ** 2)]),
    [[snr_by_scipy(mu, log_px) for mu in mus] for log_px in heights],
    wrong={
        "log p(x) does not matter": np.stack([plain, plain]),
        "second moment in place of the variance": np.stack([1 / np.sqrt(3 + mus**2 / 4)] * 2),
        "E ε⁴ = 1 in place of 3": np.stack([2 / mus] * 2),
    },
)

# %% [markdown]
# Two bad messages. Even in the best case the noise exceeds the signal (the SNR is at most $1/\sqrt{2} = 0.71$). And the
# noise contains $\mathcal{L}^2$: the *height* of the ELBO, which says nothing about its *slope*.
#
# That height is even arbitrary. A density changes with the unit of its data: leave $z$ alone, relabel only the disease
# score in tenths of a point, and $\log p(x)$ falls by $442 \log 10 = 1{,}018$ nats. The posterior is the same, the gradient is the
# same, and the second guide has become nearly 40 % noisier.
#
# Now the opening: ten dimensions, and a $q$ with the posterior's covariance. With $z = m + T\epsilon$, $T$ the Cholesky
# factor of $\Sigma$, the log weight is again a straight line, $\log w = \mathcal{L} - u^\top \epsilon$, and the score in
# $m_i$ is $a_i^\top \epsilon$, where $a_i$ is row $i$ of $(T^{-1})^\top$ and $\lVert a_i \rVert^2 = \Lambda_{ii}$. So the
# height is *shared*: each coordinate gets the noise of all of them. With
# $\mathbb{E}[(u^\top\epsilon)^2 (a_i^\top\epsilon)^2] = \lVert u \rVert^2 \Lambda_{ii} + 2 (u^\top a_i)^2$ and the mean
# $-u^\top a_i = \partial \mathcal{L} / \partial m_i$, equation (03.7) becomes
#
# $$\operatorname{Var}\Big(\frac{\partial}{\partial m_i}\Big) = \big( \mathcal{L}^2 + r^2 \big) \Lambda_{ii}
# + \Big( \frac{\partial \mathcal{L}}{\partial m_i} \Big)^2, \qquad
# r^2 = \lVert u \rVert^2 = (m - m^*)^\top \Lambda (m - m^*), \tag{03.9}$$
#
# with $m^*$ the posterior mean and $\mathcal{L} = \log p(x) - \frac12 r^2$: $r$ is the distance in posterior standard
# deviations. For the first guide, which we derive below, the variance is $\Lambda_{ii}$ alone.

# %%
away = start - posterior.mean
r_squared = away @ Lambda @ away


def second_guide(height):
    """The variances (03.9) in the opening, one per coefficient, for a given value in the place of 𝓛."""
    return (height**2 + r_squared) * Lambda.diagonal() + exact_slope**2


bound = log_evidence - r_squared / 2
assert (estimate - bound).abs() < 4 * (r_squared / 10_000).sqrt()  # the opening's, from 10,000 samples
in_tenths = bound - D * math.log(10)
assert 1.38 < (second_guide(in_tenths) / second_guide(bound))[bmi].sqrt() < 1.39
checks.monte_carlo(
    "03.9a",
    "diabetes, the opening: the score-function gradient has the variances of equation (03.9)",
    (cloud["second"] - exact_slope) ** 2,
    second_guide(bound),
    wrong={
        "log p(x) in place of 𝓛": second_guide(log_evidence),
        "log p(x) does not matter": second_guide(-r_squared / 2),
        "scores in tenths": second_guide(in_tenths),
    },
)
checks.monte_carlo(
    "03.9b",
    "diabetes, the opening: the pathwise gradient has the variances Λ_ii",
    (cloud["first"] - exact_slope) ** 2,
    Lambda.diagonal(),
    wrong={
        "1/Σ_ii, from the marginal variance": 1 / posterior.variance,
        "growing with the distance": (1 + r_squared) * Lambda.diagonal(),
    },
)
first, second = Lambda[bmi, bmi].sqrt().item(), second_guide(bound)[bmi].sqrt().item()
print(
    f"first guide ± {first:.3f}, second ± {second:.0f}, ratio {second / first:.0f}; 𝓛 = {bound:.0f}, r = {r_squared.sqrt():.1f}"
)

# %% [markdown]
# So 2,600 is nothing deep. It is the ELBO: $-2{,}643$ nats. The second guide multiplies each score by a large number
# that carries no information, and trusts the average to remove it.
#
# ## Baselines: mending the score function
#
# A height that carries no information? Subtract it. By equation (03.3), for any number $b$ that does not depend on the
# sample,
#
# $$\mathbb{E}_q\big[ (\log w(z) - b) \, \nabla_\phi \log q_\phi(z) \big] = \nabla_\phi \mathcal{L}. \tag{03.10}$$
#
# $b$ is called a **baseline**. In the example $b = \mathcal{L}$ leaves $g = -\mu \epsilon^2$, with variance $2\mu^2$ and
# SNR $1/\sqrt2$, from any distance and at any log evidence. (The best $b$ differs from $\mathcal{L}$ in general:
# exercise 2.)
#
# But $\mathcal{L}$ is what we do not know. An average of the $K$ log weights at hand estimates it. *Including* the
# sample's own, though, is a mistake: then $b$ does depend on the sample. So each sample uses the others only, **leave
# one out** (Kool, van Hoof & Welling 2019; today often called RLOO, whose L is for *leave*, not our $L$):
#
# $$g = \frac1K \sum_{k=1}^K \Big( \log w_k - \frac{1}{K-1} \sum_{j \ne k} \log w_j \Big) \nabla_\phi \log q_\phi(z_k).
# \tag{03.11}$$


# %%
def leave_one_out(log_joint, q, num_samples):
    z = q.sample((num_samples,))
    log_joint_z, log_q = log_joint(z), q.log_prob(z)
    log_weight = (log_joint_z - log_q).detach()
    baseline = (log_weight.sum(0) - log_weight) / (num_samples - 1)  # the mean of the others
    return ((log_weight - baseline) * log_q + log_joint_z).mean(0)


assert same_gradients(leave_one_out, elbo_leave_one_out, 4)
checks.monte_carlo(
    "03.2b",
    "the leave-one-out gradient is unbiased, in φ and in θ",
    estimates(elbo_leave_one_out, 4),
    exact,
    wrong={
        "the own sample in the baseline (K = 4)": exact * torch.tensor([0.75, 0.75, 1.0]),
        "log q left out of the signal": exact - entropy_slope,
    },
)

# %% [markdown]
# There is a formula inside equation (03.11) that you have known since your first statistics course. Write
# $\ell_k = \log w_k$, $s_k$ for the scores, and bars for means. Then
# $\ell_k - \frac{1}{K-1}\sum_{j \ne k} \ell_j = \frac{K}{K-1} (\ell_k - \bar\ell)$, and
#
# $$g = \frac{1}{K-1} \sum_{k=1}^K (\ell_k - \bar \ell)(s_k - \bar s): \quad
# \textbf{the sample covariance of log weight and score.} \tag{03.12}$$
#
# ($\bar s$ may be subtracted because the $\ell_k - \bar\ell$ sum to zero.) Of course! The score has mean zero, so equation
# (03.4) says that *the gradient of the ELBO is a covariance*,
# $\nabla_\phi \mathcal{L} = \operatorname{Cov}_q(\log w, \nabla_\phi \log q_\phi)$. The plain score function estimates a
# covariance without centring the data. Leave-one-out centres them, and its $K - 1$ is Bessel's.
#
# Nothing in this needs a derivative in $z$, so $z$ may be discrete. There we verify unbiasedness without chance: a coin as
# $q$, and *every* tuple of $K$ throws, weighted by its probability. (`Enumerated` makes the package's own function return
# these tuples in place of random ones.)


# %%
class Enumerated(Bernoulli):
    """A coin whose K samples are, along the batch, all 2^K tuples of states."""

    def sample(self, sample_shape):
        return torch.tensor(list(itertools.product((0.0, 1.0), repeat=sample_shape[0]))).T


log_p = torch.tensor([-4.0, -1.5])  # log p(x, z) of the two states


def exact_mean(estimator, logit, num_samples):
    """The mean gradient over all tuples."""
    copies = torch.full((2**num_samples,), logit, requires_grad=True)
    q = Enumerated(logits=copies)
    probability = q.log_prob(q.sample((num_samples,))).sum(0).exp().detach()
    bound = estimator(lambda z: log_p[z.long()], q, num_samples)
    return torch.autograd.grad((probability * bound).sum(), copies)[0].sum()


def slope_of_coin(logit):
    """𝓛 = p a₁ + (1 − p) a₀ + entropy, differentiated by hand."""
    p = 1 / (1 + math.exp(-logit))
    return p * (1 - p) * (log_p[1] - log_p[0] - logit)


cases = [(logit, num_samples) for logit in (-1.0, 0.3, 2.0) for num_samples in (2, 3, 5)]
by_hand = torch.stack([slope_of_coin(logit) for logit, _ in cases])
shrunk = torch.tensor([(num_samples - 1) / num_samples for _, num_samples in cases])
entropy_lost = torch.tensor([logit / (2 + 2 * math.cosh(logit)) for logit, _ in cases])
checks.enumeration(
    "03.5a",
    "a discrete latent: the leave-one-out gradient's mean over all tuples is exact (K = 2, 3, 5)",
    torch.stack([exact_mean(elbo_leave_one_out, *case) for case in cases]),
    by_hand,
    wrong={
        "the own sample in the baseline: a share 1/K lost": shrunk * by_hand,
        "log q left out of the signal": by_hand + entropy_lost,
    },
)

# %% [markdown]
# ### Is it always an improvement?
#
# A baseline estimated from $K - 1$ samples is noisy itself. In the example $\ell_k - \bar\ell = -\mu(\epsilon_k -
# \bar\epsilon)$, so by equation (03.12) $g$ is $-\mu$ times the sample variance of $K$ standard normals, which has
# variance $2/(K-1)$. Beside the plain score function, with $K$ samples in all:
#
# $$\text{plain: } \frac{2\mu^2 + \mathcal{L}^2}{K}, \qquad \text{leave-one-out: } \frac{2\mu^2}{K - 1}. \tag{03.13}$$
#
# The second is as if somebody had told us $\mathcal{L}$ and taken one sample in payment. It is the smaller one if
#
# $$K > 1 + \frac{2\mu^2}{\mathcal{L}^2}, \qquad\text{and if } \log p(x) = 0: \quad K > 1 + \frac{8}{\mu^2}. \tag{03.14}$$
#
# At $\mu = 1$ and $\log p(x) = 0$ leave-one-out *loses* up to $K = 8$, with a tie at 9. We verify that by integrating over
# all nine samples at once. (It can be done: the squared gradient has degree four in each $\epsilon_k$, so three nodes for
# each are exact, $3^9 = 19{,}683$ points.)


# %%
def all_noise(num_variables, num_nodes):
    """Gauss–Hermite points for independent N(0, 1) variables: exact means up to degree 2 num_nodes − 1 in each."""
    x, w = np.polynomial.hermite_e.hermegauss(num_nodes)
    points = np.stack([g.ravel() for g in np.meshgrid(*[x] * num_variables, indexing="ij")])
    mass = np.stack([g.ravel() for g in np.meshgrid(*[w / w.sum()] * num_variables, indexing="ij")]).prod(0)
    return points, mass


def integrated_variances(mu, log_px, num_samples):
    """Variances of plain, leave-one-out and pathwise gradients in mu, by integrating over all K samples."""
    eps, mass = all_noise(num_samples, 3)
    ell = log_px - (mu + eps) ** 2 / 2 + eps**2 / 2  # log p(x, z) − log q(z)
    others = (ell.sum(0) - ell) / (num_samples - 1)
    votes = [(ell * eps).mean(0), ((ell - others) * eps).mean(0), -(mu + eps).mean(0)]
    return np.array([mass @ g**2 - (mass @ g) ** 2 for g in votes])


few = np.array([2, 4, 8, 9, 10])
integrated = {log_px: np.array([integrated_variances(1.0, log_px, k) for k in few]) for log_px in (0.0, -5.0)}
plain, mended = 2.25 / few, 2 / (few - 1)  # equation (03.13) at μ = 1, 𝓛 = −½
checks.quadrature(
    "03.5b",
    "example (03.6), μ = 1, log p(x) = 0: leave-one-out has more variance up to K = 8, the same at 9, less from 10",
    plain - mended,
    integrated[0.0][:, 0] - integrated[0.0][:, 1],
    wrong={"a baseline for free: 2μ²/K": plain - 2 / few},
)
assert np.sign(np.round(plain - mended, 9)).tolist() == [-1, -1, -1, 0, 1]
checks.quadrature(
    "03.7",
    "example (03.6): variance ∝ 1/K for plain and pathwise averages, ∝ 1/(K − 1) for leave-one-out",
    np.tile([2.25, 2.0, 1.0], (len(few), 1)),
    integrated[0.0] * np.stack([few, few - 1, few], 1),
    wrong={"∝ 1/K for leave-one-out too": integrated[0.0] * few[:, None]},
)

# %% mystnb={"image": {"alt": "Two panels of variance against the number of samples K, both axes logarithmic. Left, log evidence zero: leave-one-out starts above the plain score function, meets it at K = 9 and lies slightly below afterwards. Right, log evidence minus 5: leave-one-out lies far below the plain score function for every K, close to the pathwise line."}}
many, mu = np.arange(2, 65), 1.0
with plots.style():
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.2), sharey=True)
    for ax, log_px in zip(axes, (0.0, -5.0), strict=True):
        height = log_px - mu**2 / 2
        ax.loglog(many, (2 * mu**2 + height**2) / many, color=plots.COLOURS.data, linestyle=":", label="score function")
        ax.loglog(many, 2 * mu**2 / (many - 1), color=plots.COLOURS.q, linestyle="--", label="leave-one-out")
        ax.loglog(many, 1 / many, color=plots.COLOURS.theta, linestyle="-.", label="pathwise (below)")
        for column, colour in enumerate((plots.COLOURS.data, plots.COLOURS.q, plots.COLOURS.theta)):
            ax.scatter(few, integrated[log_px][:, column], color=colour, s=22, zorder=3)
        ax.set_xticks([2, 4, 9, 16, 64], ["2", "4", "9", "16", "64"])
        ax.minorticks_off()
        words = f"log p(x) = {log_px:.0f}, ELBO = {height:.1f}".replace("-", "−")
        ax.set(ylim=(3e-3, 30), xlabel="samples K", title=words)
    axes[0].axvline(9, color=plots.COLOURS.muted, linewidth=1)
    axes[0].set_ylabel(r"variance of $\partial\mathcal{L}/\partial\mu$")
    axes[1].legend(loc="lower left")
    title = "Leave-one-out pays once K > 1 + 2μ²/ELBO²: after nine samples, or at once"
    fig.suptitle(title, x=0.01, ha="left", weight="bold", size=11)

# %% [markdown]
# (Points: integrated. Lines: formulas.) A height near zero would be a coincidence of units. So in practice, with two
# samples or more, leave one out. Back to the opening, then, with one line changed. There equation (03.12) is the sample
# covariance of two jointly normal numbers, $-u^\top\epsilon$ and $a_i^\top\epsilon$, and that has the variance
#
# $$\frac{1}{K-1} \Big( r^2 \Lambda_{ii} + \Big( \frac{\partial \mathcal{L}}{\partial m_i} \Big)^2 \Big).
# \tag{03.15}$$

# %%
mended = slopes_in_m(elbo_leave_one_out, start, 2, repeats=10_000)
predicted = r_squared * Lambda.diagonal() + exact_slope**2  # K − 1 = 1
checks.monte_carlo(
    "03.12a",
    "diabetes, the opening, K = 2: leave-one-out has the variances of equation (03.15)",
    (mended - exact_slope) ** 2,
    predicted,
    wrong={"divided by K": predicted / 2, "𝓛² still in it": predicted + bound**2 * Lambda.diagonal()},
)
at_rest = slopes_in_m(elbo_leave_one_out, posterior.mean, 2, repeats=500)
checks.exact(
    "03.12b",
    "diabetes, at the posterior: the leave-one-out gradient is zero for every pair of samples",
    at_rest,
    torch.zeros(500, L),
    wrong={"the score function's": slopes_in_m(elbo_score_function, posterior.mean, 2, repeats=500)},
    tolerance=1e-8,
)
assert 10.75 < predicted[bmi].sqrt() < 10.85


def spread(slopes):
    """The standard deviation, to one digit."""
    return f"± {float(f'{slopes.std():.1g}'):g}"


print(f"score function  {spread(cloud['second'][:, bmi])}  (one sample)")
print(f"leave-one-out   {spread(mended[:, bmi])}    (two samples)")
print(f"first guide     {spread(cloud['first'][:, bmi])}   (one sample)")

# %% [markdown]
# From ± 1,000 to ± 10 with one line (10.8, by the equation). The 2,643 is gone. What is left is the distance, $r = 21.5$ posterior standard
# deviations: **a baseline removes the height, not the distance.** And a surprise: leave-one-out, of the "noisy" family,
# *lands*. At the posterior all log weights are equal, so each equals the mean of the others, and the noise is zero.
#
# ## The first guide: the pathwise gradient
#
# How does the first guide get by with ± 0.4, from any distance? It starts from another picture. Instead of asking how the
# *density* changes with φ, let the *samples* move. Write a sample as a function of φ and of noise that knows nothing of φ,
#
# $$z = T_\phi(\epsilon), \qquad \epsilon \sim p(\epsilon), \qquad\text{for a Normal: } z = \mu + \sigma \epsilon.
# \tag{03.16}$$
#
# This **reparameterisation** turns the ELBO into an average over $\epsilon$, $\mathcal{L} = \mathbb{E}_\epsilon[\log w(
# T_\phi(\epsilon))]$. What we average over is fixed now, so the derivative goes inside, like θ's did. It takes the chain
# rule, with one term for $z$ and one for the φ that is left in $\log q_\phi$:
#
# $$\frac{d}{d\phi} \log w = \underbrace{\nabla_z \log w(z) \, \frac{\partial T_\phi(\epsilon)}{\partial \phi}}_{\text{path}}
# \; \underbrace{- \; \nabla_\phi \log q_\phi(z)}_{\text{minus the score}}. \tag{03.17}$$
#
# Autodiff does both when it is allowed to differentiate through the sample, which torch calls `rsample`. Careful with
# names: the **pathwise** gradient is *both* terms. (With `sample` in place of `rsample` only minus the score is left for
# φ. It has mean zero: no error message, and $q$ walks at random.)
#
# The figure below shows the difference in the example, where $\log w$ is a straight line with the slope $-\mu$. Seven
# samples of $q$ vote on where its mean should go. The score function looks at the **height** of $\log w$ at each sample,
# and each sample votes for or against *itself*. The pathwise gradient looks at the **slope**.


# %%
def pathwise_by_hand(log_joint, q, num_samples):
    z = q.rsample((num_samples,))  # mu + sigma * eps: the gradient runs through it
    return (log_joint(z) - q.log_prob(z)).mean(0)


assert same_gradients(pathwise_by_hand, pathwise, 3)
checks.monte_carlo(
    "03.2c",
    "the pathwise gradient is unbiased, in φ and in θ",
    estimates(pathwise, 1),
    exact,
    wrong={
        "z from sample() and not from rsample()": exact * torch.tensor([0.0, 0.0, 1.0]),
        "entropy of q forgotten": exact - entropy_slope,
    },
)

# %% mystnb={"image": {"alt": "Three panels with the same straight line, the log weight, falling from left to right below zero, and seven samples of q around z = 1. Left, heights: bars from zero down to the line, and long arrows; the samples left of the middle of q vote for the right and those right of it for the left, each away from itself. Middle, slopes minus the score: shorter arrows, six of seven to the left. Right, slopes alone: seven equal arrows to the left, towards the posterior."}}
mu, log_px = 1.0, -4.0
height = log_px - mu**2 / 2
epsilon = torch.tensor(norm.ppf((np.arange(7) + 0.5) / 7))
samples, log_weights = mu + epsilon, height - mu * epsilon
votes = {
    "score function:\nheight × score": log_weights * epsilon,
    "pathwise:\nslope − score": -mu - epsilon,
    "the path alone:\nslope": torch.full((7,), -mu),
}
by_height, both, path = votes.values()
assert (by_height > 0.1).sum() == (by_height < -0.1).sum() == 3  # two camps, and one undecided
assert (both < 0).sum() == 6
assert both.abs().max() < by_height.abs().max() / 3
assert 200 < math.sqrt(((height - 1000) ** 2 + 2 * mu**2) / (height**2 + 2 * mu**2)) < 220

line = torch.tensor([-2.2, 4.2])
with plots.style():
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 3.6), sharey=True)
    for ax, (name, vote) in zip(axes, votes.items(), strict=True):
        ax.plot(line, height - mu * (line - mu), color=plots.COLOURS.p)
        ax.scatter(samples, log_weights, color=plots.COLOURS.q, s=25, zorder=3)
        if ax is axes[0]:
            ax.vlines(samples, log_weights, 0, color=plots.COLOURS.muted, linewidth=1.5)
        for row, (z_k, v) in enumerate(zip(samples, vote, strict=True)):
            y = -9.2 - 0.55 * row
            ax.annotate("", (z_k + 0.4 * v, y), (z_k, y), arrowprops={"arrowstyle": "->", "color": plots.COLOURS.q})
        ax.axhline(0, color=plots.COLOURS.muted, linewidth=0.8)
        ax.set(xlim=(-3.4, 4.6), ylim=(-13, 0.6), xlabel="z", title=name)
        ax.title.set_size(10.5)
    axes[0].set_ylabel("log w (nats); votes (arrows)")
    fig.suptitle("Heights shout and contradict each other; slopes agree", x=0.01, ha="left", weight="bold", size=12)

# %% [markdown]
# (An arrow's length is 0.4 of the vote.) On the left every height is negative, so every sample wants $q$ to move *away from
# itself*, and the truth, one step to the left, is the small difference between two loud camps. Shift the line down by a
# thousand, and the shouting grows two hundredfold, while slopes do not notice. In the middle $g = -\mu - \epsilon$, whose
# variance is 1 whatever $\mu$ and whatever $\log p(x)$: that is check 03.9b in one dimension.
#
# The price: the pathwise gradient needs $\log p_\theta(x, z)$ to be differentiable in $z$ and $q$ to be
# reparameterisable. For a discrete $z$ it does not exist (chapter 17). Its backward pass runs through the model to $z$; if
# you learn θ you pay for that pass anyway.
#
# ## Sticking the landing
#
# The right-hand panel is better still: seven equal votes. And the term that spoils it in the middle is a score, which by
# equation (03.3) has mean zero. So drop it. That is **sticking the landing** (Roeder, Wu & Duvenaud 2017), STL for short:
#
# $$\nabla_\phi \mathcal{L} = \mathbb{E}_\epsilon\Big[ \nabla_z \log w(z) \,
# \frac{\partial T_\phi(\epsilon)}{\partial \phi} \Big]. \tag{03.18}$$
#
# In code: differentiate through the sample, but treat the parameters inside $\log q$ as constants.


# %%
def sticking_the_landing(log_joint, q, num_samples):
    z = q.rsample((num_samples,))
    stopped = Normal(q.loc.detach(), q.scale.detach())  # the same density, deaf to φ
    return (log_joint(z) - stopped.log_prob(z)).mean(0)


assert same_gradients(sticking_the_landing, elbo_sticking_the_landing, 3)
checks.monte_carlo(
    "03.2d",
    "the sticking-the-landing gradient is unbiased, in φ and in θ",
    estimates(elbo_sticking_the_landing, 1),
    exact,
    wrong={
        "log q dropped altogether": exact - entropy_slope,
        "the sample stopped as well": exact * torch.tensor([0.0, 0.0, 1.0]),
    },
)

# %% [markdown]
# Its name comes from what happens at the posterior. There the log weight is the same number for every $z$ (chapter 01), so
# $\nabla_z \log w = 0$ and the STL gradient is zero *for every single sample*. The pathwise gradient is not: there only
# its second part is left, minus the score. The covariance of the score is known as the **Fisher information**. For
# $\mathcal{N}(\mu, \sigma^2)$ in $(\mu, \log \sigma)$ the score is $(\epsilon / \sigma, \; \epsilon^2 - 1)$, so
#
# $$\operatorname{Cov}\big(\text{pathwise gradient at the posterior}\big) = \operatorname{Cov}(\nabla_\phi \log q_\phi)
# = \begin{pmatrix} 1/\sigma^2 & 0 \\ 0 & 2 \end{pmatrix}. \tag{03.19}$$
#
# Before you run the next cell: what does the *score function* do at the posterior?

# %%
landed = slopes_in_m(elbo_sticking_the_landing, posterior.mean, 1)
circling = slopes_in_m(pathwise, posterior.mean, 1)
checks.exact(
    "03.4a",
    "diabetes: at the posterior each of 2,000 STL gradients is zero",
    landed,
    torch.zeros(2_000, L),
    wrong={"the pathwise gradients": circling},
    tolerance=1e-9,
)


def at_nodes(posterior, mu, sigma, stick=False):
    """Pathwise or STL gradient in (mu, log sigma) at the integration nodes, shape (40, 2)."""
    phi = torch.tensor([mu, math.log(sigma)]).repeat(len(nodes), 1).requires_grad_()
    mu, sigma = phi[:, 0], phi[:, 1].exp()
    z = mu + sigma * nodes
    q = Normal(mu.detach(), sigma.detach()) if stick else Normal(mu, sigma)
    return torch.autograd.grad((posterior.log_prob(z) - q.log_prob(z)).sum(), phi)[0]


both_terms = at_nodes(Normal(1.5, 0.6), 1.5, 0.6)
checks.quadrature(
    "03.4b",
    "at the posterior the pathwise gradient's covariance is the Fisher information diag(1/σ², 2)",
    torch.tensor([[1 / 0.6**2, 0.0], [0.0, 2.0]]),
    (weights[:, None] * both_terms).T @ both_terms,
    wrong={
        "sticking the landing": torch.zeros(2, 2),
        "parameters (μ, σ)": torch.diag(torch.tensor([1.0, 2.0]) / 0.6**2),
        "parameters (μ, log σ²)": torch.diag(torch.tensor([1 / 0.6**2, 0.5])),
    },
)
heights_only = slopes_in_m(elbo_score_function, posterior.mean, 1, 10_000)
print(f"STL: zero   pathwise: {spread(circling[:, bmi])}   score function: {spread(heights_only[:, bmi])}")

# %% [markdown]
# (At the posterior $\log w$ is constant but not zero: the score function multiplies each score, ± 0.39, by $-2{,}413$.)
#
# STL looks like a free lunch. Is it always the better one? Take a Gaussian posterior with precision $\Lambda$ and a
# mean-field $q$ with standard deviations $\sigma_i$. With $z = m + \sigma \odot \epsilon$ the pathwise gradient is
# $-\Lambda(z - m^*)$, and in $m_i$ its noise is $-\sum_j \Lambda_{ij} \sigma_j \epsilon_j$. STL adds the score
# $\epsilon_i / \sigma_i$ back. So only the coefficient of $\epsilon_i$ differs, $\Lambda_{ii}\sigma_i$ against
# $\Lambda_{ii}\sigma_i - 1/\sigma_i$, and
#
# $$\operatorname{Var}_{\text{pathwise}} - \operatorname{Var}_{\text{STL}} = 2 \Lambda_{ii} - \frac{1}{\sigma_i^2}:
# \qquad \text{STL is less noisy} \iff \sigma_i^2 > \frac12 \cdot \frac{1}{\Lambda_{ii}}. \tag{03.20}$$
#
# Half the *conditional* variance: half of what the best mean-field $q$ has (chapter 02), and for correlated coefficients
# far less than half the marginal variance. In one dimension, with the posterior $\mathcal{N}(0, 1)$, the variances in
# $\mu$ are $\sigma^2$ and $(\frac1\sigma - \sigma)^2$, and they cross at $\sigma = \sqrt{1/2} = 0.71$.
#
# <details><summary>And in log σ?</summary>
#
# In one dimension the gradients in $\log\sigma$ are $1 - \mu\sigma\epsilon - \sigma^2\epsilon^2$ (pathwise) and
# $-\mu\sigma\epsilon + (1 - \sigma^2)\epsilon^2$ (STL), with the variances $\mu^2\sigma^2 + 2\sigma^4$ and
# $\mu^2\sigma^2 + 2(1 - \sigma^2)^2$. They cross at the same place.
#
# </details>

# %% mystnb={"image": {"alt": "Variance of the gradient in mu on a logarithmic axis against the width sigma of q, from 0.2 to 2. That of the pathwise gradient grows steadily with sigma. That of sticking the landing falls from 23 at the left to zero at sigma 1 and rises again. The curves cross at sigma 0.71, marked by a vertical line."}}
s2, m2 = torch.tensor([0.3, math.sqrt(0.5), 0.9, 1.0, 2.0]) ** 2, 0.7**2  # σ² and μ²
rule = torch.stack([s2, m2 * s2 + 2 * s2**2, 1 / s2 - 2 + s2, m2 * s2 + 2 * (1 - s2) ** 2]).reshape(2, 2, 5)
integrated = torch.stack(
    [torch.stack([at_nodes(Normal(0.0, 1.0), 0.7, sigma, stick) for sigma in s2.sqrt().tolist()]) for stick in (0, 1)]
)
checks.quadrature(
    "03.10",
    "posterior N(0, 1): the variances of the pathwise and STL gradients in μ and in log σ, for five widths",
    rule,
    torch.einsum("n,ewnp->epw", weights, integrated**2) - torch.einsum("n,ewnp->epw", weights, integrated) ** 2,
    wrong={"STL is never worse": torch.stack([rule[0], torch.minimum(*rule)])},
)
correlated = full_normal(torch.zeros(2), torch.linalg.cholesky(torch.tensor([[1.0, 0.9], [0.9, 1.0]])))
widths, powers = torch.tensor([0.3, 0.35]), []
for estimator in (pathwise, elbo_sticking_the_landing):
    copies = torch.zeros(40_000, 2, requires_grad=True)  # at the posterior's mean, where the mean gradient is zero
    bounds = estimator(correlated.log_prob, diagonal_normal(copies, widths), 1)
    powers.append(torch.autograd.grad(bounds.sum(), copies)[0].square())
checks.monte_carlo(
    "03.11",
    "correlated posterior, mean-field q: the pathwise gradient has 2Λ_ii − 1/σ_i² more variance than STL",
    powers[0] - powers[1],
    2 * correlated.precision_matrix.diagonal() - widths**-2,
    wrong={"from the marginal variance: 2/Σ_ii − 1/σ_i²": 2 - widths**-2},
)
grid = torch.linspace(0.2, 2.0, 200)
with plots.style():
    fig, ax = plt.subplots(figsize=(6.4, 3.0))
    ax.semilogy(grid, grid**2, color=plots.COLOURS.theta, linestyle="-.", label="pathwise")
    ax.semilogy(grid, (1 / grid - grid) ** 2, color=plots.COLOURS.accent, label="sticking the landing")
    ax.axvline(math.sqrt(0.5), color=plots.COLOURS.muted, linewidth=1)
    ax.text(0.73, 12, "half the posterior's variance", size=10, color=plots.COLOURS.data)
    ax.set(ylim=(1e-3, 40), xlabel="σ of q (posterior: 1)", ylabel=r"variance of $\partial\mathcal{L}/\partial\mu$")
    ax.set_title("Sticking the landing pays unless q is too narrow")
    ax.legend(loc="lower right")

# %% [markdown]
# So it is a landing gear: useful near the ground. A $q$ that starts far too narrow (people like to start with a small
# $\sigma$) meets a variance of $1/\sigma^2$, and a fixed step may explode. And where the family does not
# contain the posterior there is nothing to land on (exercise 3).
#
# ## The gradient laboratory
#
# Four gradients of one ELBO: two move the density, two the samples, and each pair differs in what it leaves out.
#
# | | $z$ drawn by | left out, because its mean is zero | at the posterior |
# |---|---|---|---|
# | score function | `sample` | $\nabla_\phi \log w$ (minus the score) | noise $\lvert\log p(x)\rvert$ times the score's |
# | leave-one-out | `sample` | the same, and the others' mean height | **zero** |
# | pathwise | `rsample` | nothing | the score's noise (Fisher) |
# | sticking the landing | `rsample` | minus the score in $\log q$ | **zero** |
#
# Let us measure them all: $L$ dimensions, posterior $\mathcal{N}(0, I)$, and $q = \mathcal{N}(\mu, \sigma^2 I)$ with
# every $\mu_i = d$. The signal in $\mu$ is $\lVert \mu \rVert = d \sqrt{L}$. The **noise power**, the sum of the
# variances of the $L$ gradients in $\mu$, has a formula for each; `noise_power` holds them. For equal widths, $\sigma = 1$,
# they read: pathwise $L/K$, STL $0$, score function $(L \mathcal{L}^2 + (L+1)\lVert\mu\rVert^2)/K$, and leave-one-out
# $(L+1)\lVert\mu\rVert^2 / (K-1)$.
#
# <details><summary>The formulas for every σ</summary>
#
# With $a = \log p(x) + L \log\sigma - \frac12\lVert\mu\rVert^2$ and $c = \frac12(1 - \sigma^2)$ the log weight is
# $a + c\lVert\epsilon\rVert^2 - \sigma\mu^\top\epsilon$, and the score is $\epsilon/\sigma$. Pathwise: $L\sigma^2/K$. STL:
# $L(\frac1\sigma - \sigma)^2/K$. Score function: take the second moment of the product, with
# $\mathbb{E}\lVert\epsilon\rVert^2 = L$, $M_4 = \mathbb{E}\lVert\epsilon\rVert^4 = L(L+2)$,
# $M_6 = \mathbb{E}\lVert\epsilon\rVert^6 = L(L+2)(L+4)$ and
# $\mathbb{E}[(\mu^\top\epsilon)^2\lVert\epsilon\rVert^2] = (L+2)\lVert\mu\rVert^2$ (odd moments vanish):
# $\frac1K[\frac{1}{\sigma^2}(a^2 L + 2 a c M_4 + c^2 M_6) + (L+1)\lVert\mu\rVert^2]$. Leave-one-out is a sample covariance. The
# variance of one is $\frac1K(\mathbb{E}[\ell^2 s^2] - \operatorname{Cov}^2) + \frac{1}{K(K-1)}(\operatorname{Var}\ell
# \operatorname{Var} s + \operatorname{Cov}^2)$ for centred $\ell$ and $s$: as if $\mathcal{L}$ were known, plus the price of
# estimating it. Summed over coordinates that is
# $\frac1K[\frac{c^2}{\sigma^2}(M_6 - 2LM_4 + L^3) + (L+1)\lVert\mu\rVert^2] + \frac{1}{K(K-1)}[\frac{2L^2c^2}{\sigma^2} +
# (L+1)\lVert\mu\rVert^2]$.
#
# </details>


# %%
def noise_power(name, d, sigma, L, K, log_px, pairs=1.0, m4=None, m6=None):
    """The sum of the variances of the gradient in mu; the last three arguments are there to be got wrong."""
    mu2, c = L * d**2, (1 - sigma**2) / 2
    a = log_px + L * math.log(sigma) - mu2 / 2
    m4, m6 = m4 or L * (L + 2), m6 or L * (L + 2) * (L + 4)
    if name in ("pathwise", "sticking the landing"):
        return L * (sigma if name == "pathwise" else 1 / sigma - sigma) ** 2 / K
    if name == "score function":
        return ((a**2 * L + 2 * a * c * m4 + c**2 * m6) / sigma**2 + (L + 1) * mu2) / K
    known = c**2 / sigma**2 * (m6 - 2 * L * m4 + L**3) + (L + 1) * mu2
    return known / K + pairs * (2 * L**2 * c**2 / sigma**2 + (L + 1) * mu2) / (K * (K - 1))


def integrated_noise(d, sigma, L, K, log_px):
    """The same by integrating over all K · L noise variables (degree 6 in each: four nodes are exact)."""
    points, mass = all_noise(K * L, 4)
    eps = points.reshape(K, L, -1)
    z, s = d + sigma * eps, eps / sigma
    ell = log_px + (eps**2 / 2 - z**2 / 2).sum(1) + L * math.log(sigma)
    others = (ell.sum(0) - ell) / (K - 1)
    means = [g.mean(0) for g in (-z, -z + s, ell[:, None] * s, (ell - others)[:, None] * s)]
    return [(g**2 @ mass - (g @ mass) ** 2).sum() for g in means]


names = ["pathwise", "sticking the landing", "score function", "leave-one-out"]
settings = [(0.5, 0.7, 4, 2, -3.0), (1.0, 0.8, 3, 3, 1.0), (0.4, 1.3, 2, 4, -2.0)]  # d, σ, L, K, log p(x)
table = [[noise_power(name, *setting) for name in names] for setting in settings]
mistakes = {
    "the baselines taken as known": lambda L: {"pairs": 0.0},
    "E‖ε‖⁴ = L²": lambda L: {"m4": L**2},
    "E‖ε‖⁶ = L³": lambda L: {"m6": L**3},
}
checks.quadrature(
    "03.13",
    "noise power of the four estimators = integrals over all samples, at (L, K) = (4, 2), (3, 3), (2, 4)",
    table,
    [integrated_noise(*s) for s in settings],
    wrong={k: [[noise_power(n, *s, **slip(s[2])) for n in names] for s in settings] for k, slip in mistakes.items()},
)

# %% [markdown]
# The measurements use the package's functions: 2,000 gradients for each point, at $\sigma = 0.9$ and $\log p(x) = -10$, and
# $d = 1$, $L = 4$, $K = 4$ where they do not vary. A fifth estimator takes part that is wrong on purpose:
# leave-one-out with the own sample left in. **Predict** before you look. As the dimension grows at a fixed $d$, whose SNR
# holds? As $q$ comes near ($d \to 0$), whose? And is pathwise always better than leave-one-out?


# %%
def own_sample_left_in(log_joint, q, num_samples):
    z = q.sample((num_samples,))
    log_joint_z, log_q = log_joint(z), q.log_prob(z)
    log_weight = (log_joint_z - log_q).detach()
    return ((log_weight - log_weight.mean(0)) * log_q + log_joint_z).mean(0)


ESTIMATORS = {
    "pathwise": pathwise,
    "sticking the landing": elbo_sticking_the_landing,
    "score function": elbo_score_function,
    "leave-one-out": elbo_leave_one_out,
    "own sample left in": own_sample_left_in,
}
SIGMA, LOG_PX = 0.9, -10.0


def measure(name, d, L, K, repeats=2_000):
    """Relative bias along the exact gradient, its standard error, and the SNR."""
    copies = torch.full((repeats, L), float(d), requires_grad=True)
    prior = diagonal_normal(torch.zeros(L), torch.ones(()))
    q = diagonal_normal(copies, torch.tensor(SIGMA))
    bound = ESTIMATORS[name](lambda z: LOG_PX + prior.log_prob(z), q, K)
    (slopes,) = torch.autograd.grad(bound.sum(), copies)
    along = slopes.mean(1) / -d - 1  # the exact gradient is −d in each coordinate
    snr = d * math.sqrt(L) / slopes.var(0).sum().sqrt().item()
    return along.mean().item(), along.std().item() / math.sqrt(repeats), snr


SWEEPS = {"K": [2, 4, 16, 64], "L": [1, 4, 16, 64], "d": [0.03, 0.1, 0.3, 1, 3]}


def setting(varied, value):
    return {"d": 1.0, "L": 4, "K": 4} | {varied: value}


measured = {
    varied: {name: np.array([measure(name, **setting(varied, v)) for v in values]) for name in ESTIMATORS}
    for varied, values in SWEEPS.items()
}


# %%
def snr_by_rule(name, d, L, K):
    return d * math.sqrt(L) / math.sqrt(noise_power(name, d, SIGMA, L, K, LOG_PX))


for varied, values in SWEEPS.items():
    for name in names:  # all four: no bias anywhere, and the SNR of the formula
        bias, error, snr = measured[varied][name].T
        assert (np.abs(bias) < 4.5 * error).all()
        assert (np.abs(np.log(snr / [snr_by_rule(name, **setting(varied, v)) for v in values])) < 0.12).all()
    bias, error, _ = measured[varied]["own sample left in"].T
    assert (np.abs(bias + [1 / setting(varied, v)["K"] for v in values]) < 4.5 * error).all()

by_samples, by_dim, by_d = (lambda name, v, varied=varied: snr_by_rule(name, **setting(varied, v)) for varied in SWEEPS)
assert 7.5 < by_samples("leave-one-out", 64) / by_samples("leave-one-out", 2) < 8
assert 1.9 < by_dim("leave-one-out", 16) / by_dim("leave-one-out", 64) < 2.1
assert 2.3 < by_dim("score function", 16) / by_dim("score function", 64) < 4
assert by_d("leave-one-out", 0.03) > 1.8 * by_d("pathwise", 0.03)
assert by_d("pathwise", 1.0) > 2 * by_d("leave-one-out", 1.0)
print("all 13 points agree with the formulas")

# %% mystnb={"image": {"alt": "Four panels. Upper left: bias against the samples K; leave-one-out lies at zero within its error bars, the estimator with the own sample left in follows the line minus one over K, from minus 50 percent at K = 2. The other three: signal-to-noise ratio of four estimators, with formulas as lines. Over K all rise in parallel. Over the dimension pathwise and sticking the landing are flat, leave-one-out falls, score function falls faster. Over the distance pathwise and sticking the landing rise in proportion; leave-one-out is above pathwise and parallel to it below 0.3, and bends flat beyond; the score function is lowest at small distances."}}
LOOKS = {  # colour, line, marker
    "pathwise": (plots.COLOURS.theta, "-.", "^"),
    "sticking the landing": (plots.COLOURS.accent, "-", "D"),
    "score function": (plots.COLOURS.data, ":", "o"),
    "leave-one-out": (plots.COLOURS.q, "--", "s"),
    "own sample left in": (plots.COLOURS.p, "-", "x"),
}
AXES = {"K": "samples K", "L": "dimension L", "d": "distance d"}

with plots.style():
    fig, axes = plt.subplots(2, 2, figsize=(7.2, 6.2))
    for name, factor in (("leave-one-out", 0.94), ("own sample left in", 1.06)):
        bias, error, _ = measured["K"][name].T
        shifted = factor * np.array(SWEEPS["K"])
        axes[0, 0].errorbar(shifted, 100 * bias, 200 * error, color=LOOKS[name][0], fmt=LOOKS[name][2], ms=5, lw=1.5)
    fine = np.geomspace(2, 64, 60)
    axes[0, 0].plot(fine, -100 / fine, color=plots.COLOURS.p, linewidth=1, label="own sample left in: −1/K")
    axes[0, 0].axhline(0, color=plots.COLOURS.evidence, linewidth=1)
    axes[0, 0].set(ylabel="bias (% of the gradient)", title="bias (± 2 standard errors)")
    axes[0, 0].legend(loc="lower right")
    for ax, (varied, values) in zip(axes.flat[1:], SWEEPS.items(), strict=True):
        fine = np.geomspace(values[0], values[-1], 60)
        for name in names:
            colour, line, marker = LOOKS[name]
            rule = [snr_by_rule(name, **setting(varied, v)) for v in fine]
            ax.plot(fine, rule, color=colour, linestyle=line, linewidth=1.5)
            ax.scatter(values, measured[varied][name][:, 2], color=colour, marker=marker, s=22, label=name)
        ax.set(yscale="log", ylabel="SNR", title=f"SNR over {AXES[varied]}")
    for ax, varied in zip(axes.flat, ("K", *SWEEPS), strict=True):
        ax.set(xscale="log", xlabel=AXES[varied])
        ax.set_xticks(SWEEPS[varied], [f"{v:g}" for v in SWEEPS[varied]])
        ax.minorticks_off()
        ax.title.set_size(10.5)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    fig.suptitle("Four are unbiased, and orders of magnitude apart", x=0.01, ha="left", weight="bold", size=12)

# %% [markdown]
# - **Bias.** (One of the four is drawn; that the other three have none either is asserted.) The mistake loses a share $1/K$ of φ's gradient. It is leave-one-out times $(K-1)/K$: the same direction and
#   the same ratio of mean to noise, so nobody notices; φ merely takes shorter steps than θ beside it.
# - **Samples.** 32 times the work buys a factor of $\sqrt{32} = 5.7$ (nearly 8 for leave-one-out, whose $K - 1$ grows
#   faster). No ranking changes.
# - **Dimension.** At a fixed distance *per coordinate*, pathwise and STL do not notice dimension: each coordinate feels
#   its own slope (the coordinates are independent here; see equation (03.20)). The others multiply each score by one height that all coordinates share: leave-one-out loses SNR as
#   $1/\sqrt{L}$, and the score function faster, because $\mathcal{L}$ itself falls as $L$ grows.
# - **Distance.** Pathwise loses in proportion as $q$ comes near: its signal falls and its noise stays. Leave-one-out's
#   noise falls *with* the signal, so its SNR holds down to $d \approx 0.3$ and it overtakes. Nearer than that only a floor
#   is left, which the different widths cause ($\sigma = 0.9$), and both lose in proportion, leave-one-out about twice as high.
#   At $\sigma = 0.9$ nobody's SNR holds for ever; with equal widths leave-one-out's would, and STL would have no noise at
#   all. That *reparameterised gradients always have less noise than score functions* is folklore: plain pathwise loses
#   here (Mohamed et al. 2020 discuss more cases).
#
# ## The same climb, four ways
#
# Noise matters for what it does to an optimiser. Below, 20 climbers start at the same wrong place,
# $\mu = -2.5$, $\sigma = 0.5$ (narrow enough for STL to be the noisier at first), for the posterior $\mathcal{N}(0, 1)$ with $\log p(x) = -4$. Each climbs by plain
# gradient ascent with a step of 0.08 and $K = 4$ samples a step, with both coordinates clipped to lie between −6 and
# 3. The contours are the exact $\mathcal{L} = \log p(x) - \frac12 (\mu^2 + \sigma^2 - 1) + \log \sigma$. Before you press
# Play: which two swarms will shrink to a point?


# %%
def swarm(estimator, num_steps=90, step=0.08, num_climbers=20):
    """Positions (mu, log sigma) of all climbers after each step."""
    phi = torch.tensor([-2.5, math.log(0.5)]).repeat(num_climbers, 1)
    track = [phi]
    for _ in range(num_steps):
        leaf = phi.clone().requires_grad_()
        bound = estimator(lambda z: -4.0 + Normal(0.0, 1.0).log_prob(z), Normal(leaf[:, 0], leaf[:, 1].exp()), 4)
        (slope,) = torch.autograd.grad(bound.sum(), leaf)
        phi = (phi + step * slope).clamp(-6, 3)
        track.append(phi)
    return torch.stack(track)


order = ("score function", "leave-one-out", "pathwise", "sticking the landing")
thousands = {name: swarm(ESTIMATORS[name], num_climbers=1000) for name in order}
tracks = {name: track[:, :20] for name, track in thousands.items()}

# %% mystnb={"image": {"alt": "Animation of 13 frames, four panels with contours of the ELBO over mu and log sigma and 20 dots each. All dots start at the lower left. The score function's fly apart; in the last frame most surround the top in a wide cloud and a few are far away. Leave-one-out's spread at first and then gather in one point at the top; pathwise dots form a small cloud around the top and stay one; sticking the landing's gather in the point."}} tags=["nbval-ignore-output"]
ms, ls = np.meshgrid(np.linspace(-4, 2.5, 40), np.linspace(-2.2, 1.3, 40))
surface = -4 - 0.5 * (ms**2 + np.exp(2 * ls) - 1) + ls
WHEN = [0, 2, 4, 7, 10, 14, 18, 24, 30, 40, 50, 70, 90]


def frame(fig, k):
    fig.set_layout_engine("none")
    place = {"left": 0.09, "right": 0.99, "bottom": 0.2, "top": 0.8, "wspace": 0.07}
    axes = fig.subplots(1, 4, sharey=True, gridspec_kw=place)
    for ax, (name, track) in zip(axes, tracks.items(), strict=True):
        ax.contour(ms, ls, surface, levels=[-12, -7, -5, -4.3], colors="#BBBBBB", linewidths=0.8, linestyles="-")
        ax.plot(0, 0, "+", color=plots.COLOURS.evidence, markersize=9)
        ax.scatter(*track[WHEN[k]].T, s=9, color=LOOKS[name][0], marker=LOOKS[name][2])
        ax.set(xlim=(-4, 2.5), ylim=(-2.2, 1.3), xlabel="μ", xticks=[-2, 0, 2], yticks=[-2, -1, 0, 1])
        ax.set_title(name, size=9.5)
        ax.grid(False)
    axes[0].set_ylabel("log σ")
    fig.text(0.01, 0.93, f"step {WHEN[k]}", size=11, weight="bold")


alt = "Twenty climbers under each of four gradient estimators; two swarms shrink to a point at the top, two do not."
plots.animate(frame, len(WHEN), alt, name="four swarms", figsize=(7.0, 2.3), interval_ms=400)

# %%
for name, track in thousands.items():
    clipped = ((track == -6) | (track == 3)).any(0).any(-1).double().mean().item()
    distance = track[-1].norm(dim=-1)
    typical, far = distance.median().item(), (distance > 2).double().mean().item()
    if name == "score function":
        assert 0.35 < clipped < 0.5
        assert 0.07 < far < 0.2
        assert 0.5 < typical < 1.1
    else:
        assert clipped < 0.01
        assert far < 0.01
        assert 0.05 < typical < 0.3 if name == "pathwise" else typical < 0.005
    about = f"about {typical:.1g}" if typical > 0.01 else "less than 0.01"
    print(f"{name:>21}: after 90 steps the typical climber is {about} from the top")

# %% [markdown]
# (Twenty climbers are drawn, a thousand were measured.) Leave-one-out and STL land: their noise dies with the distance.
# The pathwise swarm circles for ever at a radius set by the step (that is why one lowers step sizes late in training). The
# plain score function gets most of its climbers near the top, but they never come to rest: four in ten were thrown
# against the clip on the way, and at any time about one in eight is far away. If your model is differentiable, start
# pathwise or with STL; if it is not, leave one out.
#
# ## A mistake people make
#
# "The score has mean zero, and $\log q$ only enters through it. So in the learning signal of equation (03.4) I may use
# $\log p_\theta(x, z)$ alone." One hears it, and it sounds like equation (03.3). But that says that the mean of
# $\nabla \log q$ vanishes, not that of $\log q \, \nabla \log q$: check 03.1a *rejected* that one.
#
# Worse, a quick test may pass.


# %%
def without_log_q(log_joint, q, num_samples):
    z = q.sample((num_samples,))
    return (log_joint(z).detach() * q.log_prob(z)).mean(0)


suspect = estimates(without_log_q, 1)
for parameter, column in (("mu", 0), ("log sigma", 1)):
    try:
        checkers.gradient_is_unbiased(suspect[:, [column]], exact[[column]])
        print(f"{parameter:>9}: no bias found")
    except checks.CheckFailedError as error:
        print(f"{parameter:>9}: {str(error).split(' by ')[0]}")

# %% [markdown]
# In $\mu$ it is right! The entropy of a Normal does not depend on its mean, so there nothing is lost. What is lost is the
# gradient of the entropy, and it lives in $\log \sigma$:
#
# $$\mathbb{E}_q[\log p \, \nabla_\phi \log q_\phi] = \nabla_\phi \mathbb{E}_q[\log p]
# = \nabla_\phi \mathcal{L} - \nabla_\phi \underbrace{\big( \log \sigma + \tfrac12 \log 2 \pi e \big)}_{\text{entropy}}
# = \nabla_\phi \mathcal{L} - \begin{pmatrix} 0 \\ 1 \end{pmatrix}. \tag{03.21}$$
#
# Always towards a narrower $q$. One that follows this gradient climbs to the mode of the log joint and shrinks to a *point*. It
# finds a decent mean; only the uncertainty is gone. The moral is in `gradient_is_unbiased`: compare with an exact gradient
# on a small model, in *every* parameter.

# %%
z = place[0] + math.exp(place[1]) * nodes
without = weights @ (log_joint_of(place[2])(z)[:, None] * scores(place[0], place[1], z))
checks.quadrature(
    "03.16",
    "without log q in the signal the gradient is off by (0, −1) in (μ, log σ)",
    exact[:2] - entropy_slope[:2],
    without,
    wrong={"no bias, since E ∇log q = 0": exact[:2], "a bias in μ too": exact[:2] - 1},
    tolerance=1e-5,
)

phi = torch.zeros(2)
for _ in range(300):  # follow the biased gradient's exact mean
    z = phi[0] + phi[1].exp() * nodes
    phi = phi + 0.1 * (weights @ (log_joint_of(3.0)(z)[:, None] * scores(phi[0].item(), phi[1].item(), z)))
print(f"followed for 300 steps, σ is {phi[1].exp().item():.2f} and falling")

# %% [markdown]
# ## Minibatches: a second source of noise
#
# So far each step looked at all $N$ patients. With millions one takes a random minibatch of $B$ rows and scales up. When
# the log joint is a sum over datapoints, $\log p(x, z) = \log p(z) + \sum_{n=1}^N \log p(x_n \mid z)$, the unbiased
# estimate is
#
# $$\widehat{\log p}(x, z) = \log p(z) + \frac{N}{B} \sum_{b=1}^{B} \log p(x_b \mid z), \tag{03.22}$$
#
# because each row is in a share $B/N$ of all minibatches. What is *not* a sum over the data, the prior and $\log q$,
# must not be scaled. (In a VAE each datapoint has its own $z$; then the whole ELBO is a sum over data, and all of it is
# scaled: `dataset_total` is the same.)
#
# Real and small: eight schools measured the effect of coaching, $x_n$, each with a known standard error. One common
# effect $z \sim \mathcal{N}(0, 10^2)$, $q = \mathcal{N}(\mu, \sigma^2)$, and all expectations are closed forms (the ELBO in
# chapter 01's second reading: `data_term - kl`), so that the minibatch is the only chance left. We visit *all* of them.

# %%
schools = data.eight_schools()
N = 8


def per_school(phi):
    """E_q[log p(x_n | z)], one number per school, nats."""
    likelihood = Normal(phi[0], schools.standard_error)
    return likelihood.log_prob(schools.effect) - 0.5 * (2 * phi[1]).exp() / schools.standard_error**2


def minibatch_gradient(rows, data_scale=1.0, other_scale=1.0):
    """The gradient in (mu, log sigma); scales other than 1 are mistakes."""
    phi = torch.tensor([2.0, 1.5], requires_grad=True)
    kl = kl_divergence(Normal(phi[0], phi[1].exp()), Normal(0.0, 10.0))
    data_term = dataset_total(per_school(phi)[torch.tensor(rows)], num_data=N)  # N/B times the sum
    return torch.autograd.grad(data_scale * data_term - other_scale * kl, phi)[0]


def over_all_minibatches(size, **mistake):
    return torch.stack([minibatch_gradient(rows, **mistake) for rows in itertools.combinations(range(N), size)])


precisions = schools.standard_error**-2
slope_in_mu = (precisions * (schools.effect - 2.0)).sum() - 2.0 / 100
slope_in_log_sigma = 1 - math.exp(3.0) * (precisions.sum() + 1 / 100)
checks.enumeration(
    "03.6",
    "N/B scaling: the mean gradient over all 56 minibatches of 3 schools is that of all 8",
    over_all_minibatches(3).mean(0),
    torch.stack([slope_in_mu, slope_in_log_sigma]),
    wrong={
        "scaled twice": over_all_minibatches(3, data_scale=8 / 3).mean(0),
        "the prior and log q scaled as well": over_all_minibatches(3, other_scale=8 / 3).mean(0),
        "not scaled": over_all_minibatches(3, data_scale=3 / 8).mean(0),
    },
)

# %% [markdown]
# The first rejected answer lets the data weigh $N/B$ times too much; the posterior comes out too narrow, and no error
# appears. (Counting a scale twice does happen: Pyro once did, in the score term of subsampled sites that cannot be
# reparameterised; its issue 531.)
#
# How much noise does a minibatch add? Rows are drawn without replacement, so its noise power is that of a survey: with
# $S^2$ the sample variance of the $N$ per-row gradients,
#
# $$\operatorname{Var}_{\text{batch}} = \frac{N^2}{B} \Big( 1 - \frac{B}{N} \Big) S^2. \tag{03.23}$$
#
# By the law of total variance a minibatch gradient has the noise power of the full-data gradient *plus* this, averaged over
# $z$. At the posterior both have a natural unit, the Fisher information $\Lambda$: we multiply covariances by $\Sigma =
# \Lambda^{-1}$ and take the trace over $L$. The full-data pathwise gradient has the covariance $\Lambda$ there, so noise
# power 1. And if the model fits, the scatter of one row's gradient is as large as its share of the curvature, $\Lambda/N$
# (the *information identity*). With $S^2 \approx \Lambda/N$
#
# $$\frac{\text{minibatch noise power}}{\text{sampling noise power at } K = 1} \approx \frac{N}{B} - 1. \tag{03.24}$$
#
# With a tenth of the 442 patients in a batch, that is *nine times*. What will that do to sticking the landing?

# %%
phi, sizes = torch.tensor([2.0, 1.5]), torch.arange(1, N)
S2 = torch.autograd.functional.jacobian(per_school, phi).var(0)  # of one gradient per school
survey = (N**2 / sizes * (1 - sizes / N))[:, None] * S2
checks.enumeration(
    "03.14",
    "eight schools: the variance over all minibatches of B = 1 … 7 is N²/B · (1 − B/N) · S²",
    survey,
    torch.stack([over_all_minibatches(b).var(0, correction=0) for b in sizes.tolist()]),
    wrong={
        "the finite-population factor forgotten": (N**2 / sizes)[:, None] * S2,
        "rows drawn with replacement": (N * (N - 1) / sizes)[:, None] * S2,
        "division by N in S²": survey * (N - 1) / N,
    },
)


def in_fisher_units(estimator, batch_size, repeats=1_000):
    """Noise power of gradients in m at the posterior, each from its own minibatch and one sample, shape (repeats,)."""
    rows = torch.rand(repeats, D).argsort(1)[:, :batch_size]
    copies = posterior.mean.repeat(repeats, 1).requires_grad_()

    def log_joint(z):  # z: (1, repeats, L)
        fitted = torch.einsum("krl,rbl->krb", z, W[rows])
        return model.prior().log_prob(z) + D / batch_size * Normal(fitted, noise_scale).log_prob(x[rows]).sum(-1)

    bounds = estimator(log_joint, full_normal(copies, posterior.scale_tril), 1)
    slopes = torch.autograd.grad(bounds.sum(), copies)[0]  # their mean is zero here
    return torch.einsum("ri,ij,rj->r", slopes, posterior.covariance_matrix, slopes) / L


# %%
errors = x - W @ posterior.mean
products = errors.outer(errors) + W @ posterior.covariance_matrix @ W.T  # E over z of residual × residual
alike = W @ posterior.covariance_matrix @ W.T / noise_scale**4  # inner products of the rows' gradients
spread_of_rows = ((products * alike).trace() - (products * alike).sum() / D) / (D - 1) / L  # tr(Σ E S²)/L


def total_noise(batch_size, population=1.0):
    return 1 + D**2 / batch_size * (1 - population * batch_size / D) * spread_of_rows


one_third = in_fisher_units(pathwise, 147, repeats=2_000)
checks.monte_carlo(
    "03.15",
    "diabetes, at the posterior, B = 147: noise power = sampling noise + the survey's, equation (03.23) averaged over z",
    one_third,
    total_noise(147),
    wrong={"the finite-population factor forgotten": total_noise(147, 0.0), "the batch alone": total_noise(147) - 1},
)
print(f"S² is {D * spread_of_rows.item():.2f} of Λ/N")
for b in (4, 44, 442):
    measured_at = {name: in_fisher_units(ESTIMATORS[name], b).mean().item() for name in names[:2]}
    expected = total_noise(b).item()
    assert abs(measured_at["pathwise"] / expected - 1) < 0.15
    assert abs(measured_at["sticking the landing"] - (expected - 1)) < 0.15 * expected * (b < D) + 1e-9
    print(f"B = {b:>3}: N/B − 1 = {D / b - 1:6.1f}; exact: pathwise {expected:6.1f}, STL {expected - 1:6.1f}")

# %% [markdown]
# (The rule is about the minibatch's part, the column STL: at $B = 4$ it says 109.5. The truth is a little less, since
# $S^2$ is not quite $\Lambda/N$: the model fits only roughly, and part of $\Lambda$ is the prior's.) Two lessons. With one $z$ shared by all data and pathwise gradients, raising $K$ is wasted effort as long as
# $B$ is well below $N$: it divides only the smaller part. And an estimator that lands on the full data does not land on
# minibatches: their noise is the same for both.
#
# ## Or freeze the noise
#
# All this trouble comes from drawing *fresh* noise at each step. Draw $\epsilon_1, \dots, \epsilon_K$ once and keep them:
#
# $$\mathcal{L}_{\text{frozen}}(\phi) = \frac1K \sum_{k=1}^K \log w\big( T_\phi(\epsilon_k) \big). \tag{03.25}$$
#
# That is an ordinary smooth function of φ. It can be given to L-BFGS, which has a line search, a stopping rule, and no
# learning rate. Giordano, Ingram & Broderick (2024) do this for mean-field $q$ (*deterministic ADVI*), Burroni, Domke &
# Sheldon (2024) for full-rank $q$ with growing sets of draws. The price: its maximum is not quite that of $\mathcal{L}$,
# because $K$ draws are not the distribution.
#
# Not quite? Suppose the log joint is a quadratic and $q$ a Normal. Then the average in equation (03.25) sees the draws
# only through their mean and covariance. So *give* them mean exactly 0 and covariance exactly $I$: take pairs
# $\pm\epsilon$, then *whiten* (multiply by the inverse root of their covariance). Those, with Sobol points for $\epsilon$, are
# `standardised_noise`, and with them the Monte Carlo ELBO has no error at all. (Below, `reparameterise(q, noise)` is $m + T\epsilon_k$, and `weigh` is
# `draw` with the samples given.)

# %%
noise = standardised_noise(64, L)
assert noise.mean(0).abs().max() < 1e-12
assert (noise.T @ noise / 64 - torch.eye(L)).abs().max() < 1e-12


def frozen(q, noise):
    """The Monte Carlo ELBO (03.25) of a Normal q."""
    return elbo(weigh(model.given(x), q, reparameterise(q, noise)).log_weight)


raw = torch.randn(64, L, generator=torch.Generator().manual_seed(2))
some_q = full_normal(posterior.mean + torch.randn(L), torch.randn(L, L).tril(-1) + 4 * torch.eye(L))
checks.exact(
    "03.8a",
    "64 standardised draws: the Monte Carlo ELBO of an arbitrary full-rank q is the exact one",
    frozen(some_q, noise),
    log_evidence - kl_divergence(some_q, posterior),
    wrong={"64 raw draws": frozen(some_q, raw)},
)


def lbfgs(q, noise, num_steps=5):
    """Raise the frozen ELBO; each step is up to 20 iterations."""
    tolerances = {"tolerance_grad": 1e-9, "tolerance_change": 1e-12}
    optimiser = torch.optim.LBFGS(q.parameters(), line_search_fn="strong_wolfe", **tolerances)
    training.fit(lambda x: frozen(q(x), noise), optimiser, x, num_steps=num_steps)
    return q()


fitted = lbfgs(families.FullRankNormal(L), noise)
mean_field_gap = 0.5 * (Lambda.diagonal().log().sum() - torch.logdet(Lambda))
checks.exact(
    "03.8b",
    "L-BFGS on the frozen ELBO, from N(0, I) on the collinear columns, arrives at log p(x)",
    frozen(fitted, noise).detach(),
    log_evidence,
    wrong={"the best mean-field q": log_evidence - mean_field_gap},
)
assert kl_divergence(fitted, posterior) < 1e-8

# %% [markdown]
# No learning rate and no noise; about a hundred evaluations, and every digit of the evidence. (For a log joint that is not
# quadratic the draws do leave an error; chapter 04 watches it.)
#
# ### The trap of too few draws
#
# $K$ points span at most $K - 1$ directions around their mean ($K/2$ if they come in pairs). Take eight raw draws in ten
# dimensions. In a direction $v$ that no draw looks into, a *full-rank* $q$ can grow wider and wider: no point $z_k$ moves,
# the frozen average never sees the cost, and it collects the entropy. Start at the posterior itself and stretch $q$
# towards such a direction until its *volume* is $t$-fold (add $s v^\top$ to the last row of $T$, so that its last diagonal element becomes $t$ times
# as large, and move $m$ to keep the points in place). Each factor of $e$ is one nat of profit:
# $\mathcal{L}_{\text{frozen}} = \log p(x) + \log t$, without end, while the true ELBO falls as $-t^2$.
#
# A *mean-field* $q$ cannot do that here: its axes are the coordinates, and the draws look along each of them. There eight
# draws cost accuracy only.

# %% mystnb={"image": {"alt": "Distance to the log evidence in nats, on a symmetric logarithmic axis, against the volume of q, grown in a direction that no draw looks into, from 1 to 1,000 on a logarithmic axis. The frozen ELBO starts at zero and rises in a straight line above the log evidence, to seven nats. The true ELBO starts at zero and plunges, to more than a million nats below."}}
draws = torch.randn(8, L, generator=torch.Generator().manual_seed(2))
directions = torch.linalg.svd(draws - draws.mean(0)).Vh[7:]  # what the eight draws do not span around their mean
v = directions.T @ directions[:, -1]  # of these, the one with most of the last coordinate
T, last = posterior.scale_tril, torch.eye(L)[-1]


def widened(t):
    """The posterior at t times its volume, none of it gained where a draw looks; all points m + T ε_k stay."""
    row = (t - 1) * T[-1, -1] / v[-1] * v
    return full_normal(posterior.mean - row @ draws.mean(0) * last, T + last.outer(row))


factors = torch.logspace(0, 3, 31)
seen = torch.stack([frozen(widened(t), draws) - log_evidence for t in factors])
true = torch.stack([-kl_divergence(widened(t), posterior) for t in factors])
checks.exact(
    "03.8c",
    "full-rank q, Gaussian posterior, 8 raw draws: t times the volume, where no draw looks, gains log t, frozen",
    seen,
    factors.log(),
    wrong={"the true ELBO": true, "no gain: the points have not moved": torch.zeros(31)},
    tolerance=1e-8,
)
assert true[-1] < -1e6
assert 1.9 < (true[-1] / true[-11]).log10() < 2.1  # tenfold the volume, a hundredfold worse
with plots.style():
    fig, ax = plt.subplots(figsize=(6.4, 3.2))
    ax.semilogx(factors, seen, color=plots.COLOURS.q, linestyle="--", label="frozen ELBO: log t")
    ax.semilogx(factors, true, color=plots.COLOURS.q, label="true ELBO")
    ax.axhline(0, color=plots.COLOURS.evidence, linewidth=1.5)
    ax.text(900, -1.5, "log p(x)", ha="right", va="top", weight="bold", size=10)
    ax.set_yscale("symlog", linthresh=10)
    ax.set_yticks([-10_000, -100, -10, 0, 5], ["−10,000", "−100", "−10", "0", "+5"])
    ax.set(
        xlabel="volume of q, grown where no draw looks (posterior: 1)",
        ylabel="nats from log p(x)",
        ylim=(true[-1] * 3, 12),
    )
    ax.set_title("Eight draws, ten dimensions: the “bound” has no ceiling")
    ax.legend(loc="lower left")

# %%
greedy = lbfgs(families.FullRankNormal(L), draws, num_steps=6)
careful = lbfgs(families.MeanFieldNormal(L), draws, num_steps=6)
for name, end in (("full rank", greedy), ("mean-field", careful)):
    above, below = (frozen(end, draws) - log_evidence).item(), -kl_divergence(end, posterior).item()
    truth = "more than 500 below log p(x)" if below < -500 else f"{-below:.1f} below"
    print(f"L-BFGS, {name:>10}: frozen {'more than 5 above' if above > 5 else f'{-above:.1f} below'}, true {truth}")
print(f"the best mean-field q is {mean_field_gap:.1f} below")

centred = draws - draws.mean(0)
seen_curvature = Lambda * (centred.T @ centred / 8)  # element by element
assert torch.linalg.eigvalsh(seen_curvature)[0] > 0  # so that a maximum exists
checks.exact(
    "03.17",
    "mean-field q, the same 8 draws of covariance Ĉ: L-BFGS arrives at σ_i Σ_j Λ_ij Ĉ_ij σ_j = 1",
    (careful.stddev * (seen_curvature @ careful.stddev)).detach(),
    torch.ones(L),
    wrong={
        "the widths of the best mean-field q": (seen_curvature @ Lambda.diagonal().rsqrt()) / Lambda.diagonal().sqrt()
    },
    tolerance=1e-4,
)
try:
    standardised_noise(8, L)
except ValueError as error:
    print(error)

# %% [markdown]
# The optimiser reports steady progress all the way up. A bound above the evidence would give it away, if one knew the
# evidence. So the package refuses fewer than $2L$ draws (they come in pairs), and a frozen ELBO should never be
# *reported*: evaluate the final $q$ with fresh draws.
#
# ## Exercises
#
# Each stub checks itself. Tensors are float64; the oracles use other formulas than you will.
#
# **Exercise 1 (recall).** In the example of equation (03.6), how many samples $K$ (a real number) does the score-function
# gradient in $\mu$ need for a given SNR?
#
# <details><summary>Hint</summary>
#
# $K$ samples multiply the SNR of one by $\sqrt{K}$. Mind what stands in the place of the height.
#
# </details>


# %%
def samples_needed(mu, log_evidence, target): ...  # your code


ch03.samples_needed.check(samples_needed)

# %% [markdown]
# **Exercise 2 (think and code).** $\mathcal{L}$ is a good baseline, but not the best constant. Find the $b$ that minimises
# the variance of $(\log w - b) \, s$, where $s$ is one component of the score. The latent is discrete: `probs`,
# `log_weight` and `score` hold one number per state.
#
# <details><summary>Hint</summary>
#
# The mean does not depend on $b$, so minimise the second moment, a parabola in $b$.
#
# </details>


# %%
def best_baseline(probs, log_weight, score): ...  # your code


ch03.best_baseline.check(best_baseline)

# %% [markdown]
# **Exercise 3 (a small study).** No landing without a landing strip: on a correlated Gaussian posterior the best mean-field
# $q$ has the right mean and variances $1/\Lambda_{ii}$ (chapter 02), and is *not* the posterior. Which *share* of the
# pathwise gradient's variance does STL keep there, in each mean? Write it as a function of the precision matrix. Then
# guess for which of the ten diabetes columns STL helps least, and print the shares: `landing_share(Lambda)`, beside
# `patients.names`.
#
# <details><summary>Hint</summary>
#
# At that $q$, what is $\nabla_z \log w$? It is linear in $z - m$.
#
# </details>
#
# <details><summary>Second hint</summary>
#
# $\nabla_z \log w = -(\Lambda - \operatorname{diag} \Lambda)(z - m)$, and $z - m$ has the covariance
# $(\operatorname{diag} \Lambda)^{-1}$ under $q$. The pathwise gradient has $\Lambda$ in place of the difference.
#
# </details>


# %%
def landing_share(precision): ...  # your code


ch03.landing_share.check(landing_share)

# %% [markdown]
# ## Summary
#
# *When an expectation has no formula, where does its gradient come from, and what decides how noisy it is?*
#
# - **Derive.** The score function moves the density, and needs only heights. The pathwise gradient moves the samples, and
#   needs slopes. STL drops a score from the pathwise gradient, leave-one-out a height from the score function; both terms
#   have mean zero, so all four are unbiased.
# - **Predict.** The score function's noise contains $\mathcal{L}^2$, so it depends on the unit of your data: ± 1,000 where the
#   pathwise gradient has ± 0.4. Leave-one-out is a sample covariance: it removes the height for the price of one sample, and
#   keeps the distance. At the posterior the pathwise gradient has the Fisher information as covariance; STL and
#   leave-one-out have zero.
# - **Choose.** Differentiable and reparameterisable: pathwise, or STL unless $q$ is far narrower than the mean-field optimum
#   ($\sigma_i^2 < 1/(2\Lambda_{ii})$). Otherwise leave-one-out. With one $z$ shared by all data, pathwise gradients and
#   $B \ll N$, $K = 1$ will do. Where all data fit into one step, freeze standardised noise (for a full-rank $q$ at least $2L$ draws) and
#   use L-BFGS.
# - **Catch.** Compare with an exact gradient on a small model, in every parameter: without $\log q$ in the signal only the
#   scale is wrong, and $q$ collapses.
#
# ### Sources
#
# - Williams (1992), *Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning*; Ranganath,
#   Gerrish & Blei (2014), *Black Box Variational Inference* (score function).
# - Kingma & Welling (2014), *Auto-Encoding Variational Bayes*, eq. 4 to 8, and Rezende, Mohamed & Wierstra (2014),
#   arXiv:1401.4082 (pathwise gradients; minibatches).
# - Roeder, Wu & Duvenaud (2017), *Sticking the Landing* (its claim is about the neighbourhood of the posterior).
# - Kool, van Hoof & Welling (2019), *Buy 4 REINFORCE Samples, Get a Baseline for Free!* (leave-one-out).
# - Salimans & Knowles (2014), arXiv:1401.1022 (control variates, of which baselines are the simplest).
# - Mohamed, Rosca, Figurnov & Mnih (2020), *Monte Carlo Gradient Estimation in Machine Learning*, JMLR 21 (a survey).
# - Hoffman, Blei, Wang & Paisley (2013), *Stochastic Variational Inference* (minibatches).
# - Giordano, Ingram & Broderick (2024), *Black Box Variational Inference with a Deterministic Objective*, JMLR 25(18);
#   Burroni, Domke & Sheldon (2024), *Sample Average Approximation for Black-Box Variational Inference* (frozen noise).
#
# ### Next
#
# We can now climb the ELBO of any model that can be written down. But this chapter always held the exact answer in an
# envelope. Without one, how do you know that the $q$ you arrived at is any good? That is
# [chapter 04](04_vi_on_your_own_model.ipynb).

# %% [markdown]
# ## Solutions


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def samples_needed(mu, log_evidence, target):
    variance = 2 * mu**2 + (log_evidence - mu**2 / 2) ** 2
    return target**2 * variance / mu**2


ch03.samples_needed.check(samples_needed)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def best_baseline(probs, log_weight, score):
    return (probs @ (log_weight * score**2)) / (probs @ score**2)


ch03.best_baseline.check(best_baseline)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def landing_share(precision):
    variances = 1 / precision.diagonal()
    rest = precision - torch.diag(precision.diagonal())
    return (rest**2 @ variances) / (precision**2 @ variances)


ch03.landing_share.check(landing_share)

share = landing_share(Lambda)
least, most = share.argmin(), share.argmax()
low, high = (f"{100 * share[i]:.0f} % ({patients.names[i]})" for i in (least, most))
print(f"STL keeps from {low} to {high} of the noise power")

# %% [markdown] jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
# <details><summary>What the study shows</summary>
#
# The pathwise gradient's variance is $\Lambda_{ii}$ more than that of STL: equation (03.20) with
# $\sigma_i^2 = 1/\Lambda_{ii}$, the same amount for all ten standardised columns. What stays is caused by correlation: the
# sum of the squared correlations with the other columns. For columns that stand alone STL removes most of the noise; for
# the six serum columns, which are correlated with many others, it removes least.
#
# </details>
