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

# %% mystnb={"image": {"alt": "The map of the series, six boxes joined by arrows: KL, ELBO, phi with the model known, theta, networks, what breaks. The box of phi is lit."}}
import copy
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
from vi_tutorial.frozen import standardised_noise

torch.set_default_dtype(torch.float64)  # identities are claimed: no rounding to hide behind
_ = torch.manual_seed(0)
plots.chain("phi")

# %% [markdown]
# *Before this:* [chapter 01](01_the_elbo.ipynb) (the ELBO and the log weight),
# [chapter 02](02_a_fixed_gaussian_joint.ipynb) (the diabetes data, $\Lambda$). *Reading time:* 30 minutes; the cells run
# in about twenty seconds.
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

start = torch.zeros(L)
exact_slope = posterior.precision_matrix @ (posterior.mean - start)

q, num_samples = families.Fixed(full_normal, loc=start, scale_tril=posterior.scale_tril), 1_000
estimate = elbo(draw(model.given(x), q(x), num_samples).log_weight)
print(f"log p(x) = {log_evidence.item():.0f} nats; the ELBO of q is about {10 * round(estimate.item() / 10)}")

# %% [markdown]
# The package has both guides. `elbo(draw(...).log_weight)` can be differentiated as it stands; `elbo_score_function` has
# the same value and another gradient. To see the noise we want many independent gradients at once, and there is a
# trick for that, used all through this chapter: give $q$ a *batch* of 2,000 equal copies of $m$. Each copy draws its own
# sample, so after one backward pass each copy holds its own gradient.


# %%
def pathwise(log_joint, q, num_samples):
    return elbo(draw(log_joint, q, num_samples).log_weight)


def slopes_in_m(estimator, at, num_samples, repeats=2_000):
    """Independent estimates of the gradient in the mean of q, shape (repeats, L)."""
    copies = at.repeat(repeats, 1).requires_grad_()
    bound = estimator(model.given(x.expand(repeats, D)), full_normal(copies, posterior.scale_tril), num_samples)
    return torch.autograd.grad(bound.sum(), copies)[0]


def spread(slopes):
    """The standard deviation, to one digit."""
    return f"± {float(f'{slopes.std():.1g}'):g}"


bmi, bp = patients.names.index("bmi"), patients.names.index("bp")
cloud = {name: slopes_in_m(e, start, 1) for name, e in (("first", pathwise), ("second", elbo_score_function))}
print("gradient in the effects of bmi and blood pressure, one sample each")
print(f"  exact        {exact_slope[bmi]:.1f} and {exact_slope[bp]:.1f}")
for name, slopes in cloud.items():
    print(f"  {name:<6} guide {spread(slopes[:, bmi])} and {spread(slopes[:, bp])}")

# %% mystnb={"image": {"alt": "Two scatter plots of 2,000 gradients in the effects of body mass index and blood pressure. Left: the first guide's, on axes from 0 to 10, lie in a small cloud around the exact gradient of 6.8 and 5.1. Right: the second guide's fill a wide cloud that reaches 3,000 in every direction, centred near zero."}}
exact_pair = exact_slope[[bmi, bp]]
ratio = (cloud["second"][:, bmi].var() / cloud["first"][:, bmi].var()).item()
assert 6e6 < ratio < 7.5e6
assert (cloud["first"][:, [bmi, bp]] > 0).all()  # the first guide is never wrong about the direction

with plots.style():
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.4))
    colours = (plots.COLOURS.theta, plots.COLOURS.data)
    for ax, (name, slopes), colour in zip(axes, cloud.items(), colours, strict=True):
        ax.scatter(*slopes[:, [bmi, bp]].T, s=4, alpha=0.35, color=colour, linewidths=0)
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
# know where 2,600 comes from, and mend it with one line.
#
# ## The score function
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
# And the second term of (03.1) is just minus that, since only $\log q$ in $\log w$ knows $\phi$. What remains is the
# **score-function gradient**, also called REINFORCE (Williams 1992):
#
# $$\nabla_\phi \mathcal{L} = \mathbb{E}_q\big[ \log w(z) \, \nabla_\phi \log q_\phi(z) \big]. \tag{03.4}$$
#
# What about θ? The distribution we average over does not depend on it, so its gradient walks through the expectation
# unhindered, in this and in every other estimator of the chapter:
#
# $$\nabla_\theta \mathcal{L} = \mathbb{E}_q\big[ \nabla_\theta \log p_\theta(x, z) \big]. \tag{03.5}$$
#
# First (03.3), on which everything hangs: for a Normal in $(\mu, \log \sigma)$ by integration, and for a coin in its log
# odds by summing its two states.

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
# One step of (03.3) deserves suspicion: we moved $\nabla_\phi$ out of the integral. That is allowed if the *limits* of the
# integral stay put. Take $q_\phi$ uniform on $[0, \phi]$. Its mean is $\phi / 2$, with slope $+\frac12$. But its score
# is $-1/\phi$ for every $z$: its mean is not zero, and the score-function gradient of $\mathbb{E}_q[z]$ comes out as
# $\mathbb{E}_q[z \cdot (-1/\phi)] = -\frac12$. The right size, and the wrong sign, without any noise to warn you.

# %%
width = 3.0
score_gradient = quad(lambda z: (1 / width) * z * (-1 / width), 0, width)[0]
checks.quadrature(
    "03.1c",
    "where the support moves with φ the score function fails: −½ for a slope of +½",
    -0.5,
    score_gradient,
    wrong={"the slope of the mean of U(0, φ)": ((width + 1e-6) / 2 - (width - 1e-6) / 2) / 2e-6},
)

# %% [markdown]
# ### Five lines
#
# In code a gradient estimator is a number whose *derivative* is right; its value need not mean anything. `detach` marks
# what is to be treated as a constant. Below, φ gets its gradient through the factor `log_q` (03.4) and θ through
# `log_joint_z` (03.5).


# %%
def score_function(log_joint, q, num_samples):
    z = q.sample((num_samples,))  # a plain sample: no gradient runs through it
    log_joint_z, log_q = log_joint(z), q.log_prob(z)
    log_weight = (log_joint_z - log_q).detach()  # how good was this sample: the learning signal
    return (log_weight * log_q + log_joint_z).mean(0)


# %% [markdown]
# We need a test case without closed form, with φ *and* θ. A latent ability $z \sim \mathcal{N}(0, 1)$, one question
# answered *yes* with probability $\operatorname{sigmoid}(\theta z)$, and $q = \mathcal{N}(\mu, \sigma^2)$. For the exact
# gradient in $(\mu, \log \sigma, \theta)$ SciPy integrates $\mathcal{L}$ and we take differences of it; nobody is
# differentiating anything there.


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
assert same_gradients(score_function, elbo_score_function, 3)  # the package agrees
checks.monte_carlo(
    "03.2a",
    "the score-function gradient is unbiased, in φ and in θ",
    estimates(elbo_score_function, 1),
    exact,
    wrong={
        "log q left out of the signal": exact - torch.tensor([0.0, 1.0, 0.0]),
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
# To compare estimators we use one number, the **signal-to-noise ratio**: the length of the mean gradient over the standard
# deviation of the estimate (for a vector, the root of the sum of its variances). At 1, the noise is as large as the
# signal. Averaging $K$ independent samples multiplies it by $\sqrt{K}$. Here
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
    "score function: one sample's SNR is 1/√(2 + μ²/4) if log p(x) = 0, and |μ|/√(2μ² + 𝓛²) in general",
    np.stack([plain, mus / np.sqrt(2 * mus**2 + (-7 - mus**2 / 2) ** 2)]),
    [[snr_by_scipy(mu, log_px) for mu in mus] for log_px in heights],
    wrong={
        "log p(x) does not matter": np.stack([plain, plain]),
        "second moment in place of the variance": np.stack([1 / np.sqrt(3 + mus**2 / 4)] * 2),
        "E ε⁴ = 1 in place of 3": np.stack([2 / mus] * 2),
    },
)

# %% [markdown]
# Two bad messages. Even in the best case the noise exceeds the signal (at most $1/\sqrt{2} = 0.71$). And the noise
# contains $\mathcal{L}^2$: the *height* of the ELBO, which says nothing about its *slope*.
#
# That height is even arbitrary. A density changes with the unit of its data: count the disease score in tenths of a point,
# and $\log p(x)$ falls by $442 \log 10 = 1{,}018$ nats. The posterior is the same, the gradient is the same, and the
# second guide has become 38 % noisier.
#
# Now the opening. With a covariance $\Sigma$ of $q$ equal to the posterior's, a change of variables turns our ten
# dimensions into ten copies of the example, and (03.7) becomes
#
# $$\operatorname{Var}\Big(\frac{\partial}{\partial m_i}\Big) = \big( \mathcal{L}^2 + r^2 \big) \Lambda_{ii}
# + \Big( \frac{\partial \mathcal{L}}{\partial m_i} \Big)^2, \qquad
# r^2 = (m - \mu)^\top \Lambda (m - \mu), \tag{03.9}$$
#
# with $\mu$ the posterior mean and $\mathcal{L} = \log p(x) - \frac12 r^2$. (For the first guide, which comes next, it is
# $\Lambda_{ii}$ alone.)

# %%
Lambda = posterior.precision_matrix


def predicted(m, log_px, with_r=1.0, with_slope=1.0):
    """The variances (03.9), one per coefficient."""
    away = m - posterior.mean
    r_squared = away @ Lambda @ away
    height = log_px - r_squared / 2
    return (height**2 + with_r * r_squared) * Lambda.diagonal() + with_slope * (Lambda @ away) ** 2


in_tenths = log_evidence - D * math.log(10)
checks.monte_carlo(
    "03.9a",
    "diabetes: the variance of the score-function gradient in the opening is (03.9)",
    (cloud["second"] - exact_slope) ** 2,
    predicted(start, log_evidence),
    wrong={"log p(x) does not matter": predicted(start, 0.0), "scores in tenths": predicted(start, in_tenths)},
)

near = posterior.mean + posterior.stddev * torch.eye(L)[[bmi, bp]].sum(0)  # one sd off, twice
copies = near.repeat(40_000, 1).requires_grad_()
bound = elbo_score_function(posterior.log_prob, full_normal(copies, posterior.scale_tril), 1)  # log p(x) removed
(slopes,) = torch.autograd.grad(bound.sum(), copies)
checks.monte_carlo(
    "03.9b",
    "the same near the posterior and with log p(x) removed, where all three terms count",
    (slopes - Lambda @ (posterior.mean - near))[:, [bmi, bp]] ** 2,
    predicted(near, 0.0)[[bmi, bp]],
    wrong={
        "r² left out": predicted(near, 0.0, with_r=0.0)[[bmi, bp]],
        "the squared slope left out": predicted(near, 0.0, with_slope=0.0)[[bmi, bp]],
    },
)
first, second = Lambda[bmi, bmi].sqrt().item(), predicted(start, log_evidence)[bmi].sqrt().item()
print(f"predicted: first guide ± {first:.3f}, second guide ± {second:.0f}, ratio {second / first:.0f}")

# %% [markdown]
# So 2,600 is nothing deep. It is the ELBO: $-2{,}643$ nats. The second guide multiplies each score by a large number
# that carries no information, and trusts the average to remove it.
#
# ## The pathwise gradient
#
# The first guide starts from another picture. Instead of asking how the *density* changes with φ, let the *samples* move.
# Write a sample as a function of φ and of noise that knows nothing of φ,
#
# $$z = T_\phi(\epsilon), \qquad \epsilon \sim p(\epsilon), \qquad\text{for a Normal: } z = \mu + \sigma \epsilon.
# \tag{03.10}$$
#
# This **reparameterisation** turns the ELBO into an average over $\epsilon$, $\mathcal{L} = \mathbb{E}_\epsilon[\log w(
# T_\phi(\epsilon))]$. What we average over is fixed now, so the derivative goes inside, like θ's did. It takes the chain
# rule, with one term for $z$ and one for the φ that is left in $\log q_\phi$:
#
# $$\frac{d}{d\phi} \log w = \underbrace{\nabla_z \log w(z) \, \frac{\partial T_\phi(\epsilon)}{\partial \phi}}_{\text{path}}
# \; \underbrace{- \; \nabla_\phi \log q_\phi(z)}_{\text{minus the score}}. \tag{03.11}$$
#
# Autodiff does both when it is allowed to differentiate through the sample, which torch calls `rsample`. This is the plain
# **pathwise** gradient, or total derivative.


# %%
def pathwise_by_hand(log_joint, q, num_samples):
    z = q.rsample((num_samples,))  # mu + sigma * eps: the gradient runs through it
    return (log_joint(z) - q.log_prob(z)).mean(0)


assert same_gradients(pathwise_by_hand, pathwise, 3)
checks.monte_carlo(
    "03.2b",
    "the pathwise gradient is unbiased, in φ and in θ",
    estimates(pathwise, 1),
    exact,
    wrong={
        "z from sample() and not from rsample()": exact * torch.tensor([0.0, 0.0, 1.0]),
        "entropy of q forgotten": exact - torch.tensor([0.0, 1.0, 0.0]),
    },
)

# %% [markdown]
# On the example, $\log q_\mu(\mu + \epsilon)$ does not depend on $\mu$ at all, so the total derivative is that of
# $\log p$: $g = -(\mu + \epsilon)$. Its variance is 1, whatever $\mu$ and whatever $\log p(x)$.
#
# Here is the difference between the two as a picture. Seven samples of $q$ vote on where its mean should go. The
# score function only looks at the **height** of the log joint at each sample, and each sample votes for or against
# *itself*. The pathwise gradient looks at the **slope**.

# %% mystnb={"image": {"alt": "Two panels with the same curve, a log joint that peaks at z = 0 with height minus 4.9, and seven samples of q around z = 1. Left: bars from zero down to the curve, and long arrows at the samples that point in opposite directions, away from the middle of q on both sides. Right: short tangents, and short arrows, nearly all of which point to the left, towards the peak."}}
epsilon = torch.tensor(norm.ppf((np.arange(7) + 0.5) / 7))
samples, curve = 1.0 + epsilon, torch.linspace(-2.2, 3.4, 100)
target = Normal(0.0, 1.0)
votes = {"heights": (target.log_prob(samples) - 4) * epsilon, "slopes": -samples}
assert (votes["heights"] > 0.1).sum() == (votes["heights"] < -0.1).sum() == 3  # two camps, and one undecided
assert (votes["slopes"] < 0).sum() == 6

with plots.style():
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.6), sharey=True)
    for ax, (name, vote) in zip(axes, votes.items(), strict=True):
        height = target.log_prob(samples) - 4
        ax.plot(curve, target.log_prob(curve) - 4, color=plots.COLOURS.p)
        ax.scatter(samples, height, color=plots.COLOURS.q, s=25, zorder=3)
        if name == "heights":
            ax.vlines(samples, height, 0, color=plots.COLOURS.muted, linewidth=1.5)
        else:
            side = torch.tensor([-0.3, 0.3])[:, None]
            ax.plot(samples + side, height - samples * side, color=plots.COLOURS.data, linewidth=3)
        for row, (z_k, v) in enumerate(zip(samples, vote, strict=True)):
            y = -11.6 - 0.55 * row
            ax.annotate("", (z_k + 0.25 * v, y), (z_k, y), arrowprops={"arrowstyle": "->", "color": plots.COLOURS.q})
        ax.text(-4.0, -13.5, "each sample's\nvote", size=10, color=plots.COLOURS.q, va="center")
        ax.axhline(0, color=plots.COLOURS.muted, linewidth=0.8)
        ax.set(xlim=(-4.2, 4.6), ylim=(-15.6, 0.6), xlabel="z", title=f"votes by {name}")
    axes[0].set_ylabel("log p(x, z) (nats)")
    fig.suptitle("Heights shout and contradict each other; slopes agree", x=0.01, ha="left", weight="bold", size=12)

# %% [markdown]
# On the left every height is negative, so every sample wants $q$ to move *away from itself*, and the truth is the small
# difference between two loud camps. Shift the curve down by a thousand, and the shouting grows a hundredfold, while
# the slopes on the right do not notice.
#
# The price: the pathwise gradient needs $\log p_\theta(x, z)$ to be differentiable in $z$ and $q$ to be
# reparameterisable. For a discrete $z$ it does not exist (chapter 17). Its backward pass also runs through the model,
# which makes one sample two to three times dearer. Never seven million times.
#
# ## Sticking the landing
#
# Read (03.11) again. Its second part is a score, and by (03.3) the mean of a score is zero. So one may drop it. That is
# **sticking the landing** (Roeder, Wu & Duvenaud 2017), STL for short:
#
# $$\nabla_\phi \mathcal{L} = \mathbb{E}_\epsilon\Big[ \nabla_z \log w(z) \,
# \frac{\partial T_\phi(\epsilon)}{\partial \phi} \Big]. \tag{03.12}$$
#
# In code: differentiate through the sample, but treat the parameters inside $\log q$ as constants.


# %%
def sticking_the_landing(log_joint, q, num_samples):
    z = q.rsample((num_samples,))
    stopped = Normal(q.loc.detach(), q.scale.detach())  # the same density, deaf to φ
    return (log_joint(z) - stopped.log_prob(z)).mean(0)


assert same_gradients(sticking_the_landing, elbo_sticking_the_landing, 3)
checks.monte_carlo(
    "03.2c",
    "the sticking-the-landing gradient is unbiased, in φ and in θ",
    estimates(elbo_sticking_the_landing, 1),
    exact,
    wrong={
        "log q dropped altogether": exact - torch.tensor([0.0, 1.0, 0.0]),
        "the sample stopped as well": exact * torch.tensor([0.0, 0.0, 1.0]),
    },
)

# %% [markdown]
# What for? At the posterior the log weight is the same number for every $z$ (chapter 01), so
# $\nabla_z \log w = 0$ and the STL gradient is zero *for every single sample*. The total derivative is not: there only
# its second part is left, minus the score. The covariance of the score is known as the **Fisher information**. For
# $\mathcal{N}(\mu, \sigma^2)$ in $(\mu, \log \sigma)$ the score is $(\epsilon / \sigma, \; \epsilon^2 - 1)$, so
#
# $$\operatorname{Cov}\big(\text{total derivative at the posterior}\big) = \operatorname{Cov}(\nabla_\phi \log q_\phi)
# = \begin{pmatrix} 1/\sigma^2 & 0 \\ 0 & 2 \end{pmatrix}. \tag{03.13}$$
#
# Before you run the next cell: what does the *score-function* gradient do at the posterior?

# %%
landed = slopes_in_m(elbo_sticking_the_landing, posterior.mean, 1)
circling = slopes_in_m(pathwise, posterior.mean, 1)
checks.exact(
    "03.4a",
    "diabetes: at the posterior each of 2,000 STL gradients is zero",
    landed,
    torch.zeros(2_000, L),
    wrong={"the total derivative": circling},
    tolerance=1e-9,
)


def at_nodes(posterior, mu, sigma, stick=False):
    """Total derivative, or STL gradient, in (mu, log sigma) at the integration nodes, shape (40, 2)."""
    phi = torch.tensor([mu, math.log(sigma)]).repeat(len(nodes), 1).requires_grad_()
    mu, sigma = phi[:, 0], phi[:, 1].exp()
    z = mu + sigma * nodes
    q = Normal(mu.detach(), sigma.detach()) if stick else Normal(mu, sigma)
    return torch.autograd.grad((posterior.log_prob(z) - q.log_prob(z)).sum(), phi)[0]


totals = at_nodes(Normal(1.5, 0.6), 1.5, 0.6)
checks.quadrature(
    "03.4b",
    "at the posterior the total derivative's covariance is the Fisher information diag(1/σ², 2)",
    torch.tensor([[1 / 0.6**2, 0.0], [0.0, 2.0]]),
    (weights[:, None] * totals).T @ totals,
    wrong={
        "sticking the landing": torch.zeros(2, 2),
        "parameters (μ, σ)": torch.diag(torch.tensor([1.0, 2.0]) / 0.6**2),
        "parameters (μ, log σ²)": torch.diag(torch.tensor([1 / 0.6**2, 0.5])),
    },
)
noises = {"STL": landed, "pathwise": circling, "score function": slopes_in_m(elbo_score_function, posterior.mean, 1)}
for name, slopes in noises.items():
    print(f"{name:>15}: {spread(slopes[:, bmi]) if slopes.std() > 1e-9 else 'zero'}")

# %% [markdown]
# The landing is perfect where the target is Gaussian and $q$ may equal it. It is also perfect *on the way*: with the
# posterior's covariance in $q$, $\nabla_z \log w$ is the same vector $\Lambda(\mu - m)$ everywhere, and STL has no noise
# in the mean from any distance. Sticking the landing looks like a free lunch.
#
# Is it always the better one? Say $q = \mathcal{N}(\mu, \sigma^2)$ for the posterior $\mathcal{N}(0, 1)$. With
# $z = \mu + \sigma \epsilon$ both gradients are polynomials in $\epsilon$:
#
# | | in $\mu$ | variance | in $\log \sigma$ | variance |
# |---|---|---|---|---|
# | total | $-\mu - \sigma\epsilon$ | $\sigma^2$ | $1 - \mu\sigma\epsilon - \sigma^2\epsilon^2$ | $\mu^2\sigma^2 + 2\sigma^4$ |
# | STL | $-\mu + (\frac1\sigma - \sigma)\epsilon$ | $(\frac1\sigma - \sigma)^2$ | $-\mu\sigma\epsilon + (1 - \sigma^2)\epsilon^2$ | $\mu^2\sigma^2 + 2(1 - \sigma^2)^2$ |
#
# Compare the two rows. In *both* columns STL wins exactly if $|1 - \sigma^2| < \sigma^2$, that is
#
# $$\text{STL is less noisy} \iff \sigma^2 > \tfrac12: \text{ if } q \text{ has more than half the posterior's variance.}
# \tag{03.14}$$

# %% mystnb={"image": {"alt": "Variance of the gradient in mu on a logarithmic axis against the width sigma of q, from 0.2 to 2. The total derivative's grows steadily with sigma. That of sticking the landing falls from 23 at the left to zero at sigma 1 and rises again. The curves cross at sigma 0.71, marked by a vertical line."}}
sigmas = torch.tensor([0.3, math.sqrt(0.5), 0.9, 1.0, 2.0])
m = 0.7
total_rule = torch.stack([sigmas**2, m**2 * sigmas**2 + 2 * sigmas**4])
stl_rule = torch.stack([(1 / sigmas - sigmas) ** 2, m**2 * sigmas**2 + 2 * (1 - sigmas**2) ** 2])
integrated = []
for stick in (False, True):
    gradients = torch.stack([at_nodes(Normal(0.0, 1.0), m, sigma, stick) for sigma in sigmas.tolist()])
    integrated.append((weights @ gradients**2 - (weights @ gradients) ** 2).T)
checks.quadrature(
    "03.10",
    "the variances in the table, total derivative and STL, in μ and in log σ, for five widths",
    torch.stack([total_rule, stl_rule]),
    torch.stack(integrated),
    wrong={"STL is never worse": torch.stack([total_rule, torch.minimum(total_rule, stl_rule)])},
)
assert torch.equal((stl_rule < total_rule - 1e-9).all(0), sigmas > math.sqrt(0.5) + 1e-9)
assert (stl_rule - total_rule)[:, 1].abs().max() < 1e-12  # a tie at σ² = ½

grid = torch.linspace(0.2, 2.0, 200)
with plots.style():
    fig, ax = plt.subplots(figsize=(6.4, 3.1))
    ax.semilogy(grid, grid**2, color=plots.COLOURS.theta, linestyle="-.", label="total derivative")
    ax.semilogy(grid, (1 / grid - grid) ** 2, color=plots.COLOURS.accent, label="sticking the landing")
    ax.axvline(math.sqrt(0.5), color=plots.COLOURS.muted, linewidth=1)
    ax.text(0.73, 12, "half the posterior's variance", size=10, color=plots.COLOURS.data)
    ax.set(ylim=(1e-3, 40), xlabel="σ of q (posterior: 1)", ylabel=r"variance of $\partial\mathcal{L}/\partial\mu$")
    ax.set_title("Sticking the landing pays unless q is too narrow")
    ax.legend(loc="lower right")

# %% [markdown]
# So it is a landing gear: useful near the ground. A $q$ that starts far too narrow (people like to start with a small
# $\sigma$) meets a variance of $1/\sigma^2$, and a fixed step may explode. And where the family does not
# contain the posterior there is nothing to land on (exercise 4).
#
# ## Baselines: mending the score function
#
# The score function is still needed, for discrete $z$ and for models that one cannot differentiate. Its trouble was a
# height that carries no information. So subtract it. By (03.3), for any number $b$ that does not depend on the sample,
#
# $$\mathbb{E}_q\big[ (\log w(z) - b) \, \nabla_\phi \log q_\phi(z) \big] = \nabla_\phi \mathcal{L}. \tag{03.15}$$
#
# $b$ is called a **baseline**. In the example $b = \mathcal{L}$ leaves $g = -\mu \epsilon^2$, with variance $2\mu^2$ and
# SNR $1/\sqrt2$, from any distance and at any log evidence. (The best $b$ differs a little from $\mathcal{L}$ in general:
# exercise 3.)
#
# But $\mathcal{L}$ is what we do not know. An average of the $K$ log weights at hand estimates it. *Including* the
# sample's own, though, is a mistake: then $b$ does depend on the sample. So each sample uses the others only, **leave
# one out** (Kool, van Hoof & Welling 2019, who call the result RLOO; the L is for *leave*, not for our $L$):
#
# $$g = \frac1K \sum_{k=1}^K \Big( \log w_k - \frac{1}{K-1} \sum_{j \ne k} \log w_j \Big) \nabla_\phi \log q_\phi(z_k).
# \tag{03.16}$$


# %%
def leave_one_out(log_joint, q, num_samples):
    z = q.sample((num_samples,))
    log_joint_z, log_q = log_joint(z), q.log_prob(z)
    log_weight = (log_joint_z - log_q).detach()
    baseline = (log_weight.sum(0) - log_weight) / (num_samples - 1)  # the mean of the others
    return ((log_weight - baseline) * log_q + log_joint_z).mean(0)


assert same_gradients(leave_one_out, elbo_leave_one_out, 4)
checks.monte_carlo(
    "03.2d",
    "the leave-one-out gradient is unbiased, in φ and in θ",
    estimates(elbo_leave_one_out, 4),
    exact,
    wrong={
        "the own sample in the baseline (K = 4)": exact * torch.tensor([0.75, 0.75, 1.0]),
        "log q left out of the signal": exact - torch.tensor([0.0, 1.0, 0.0]),
    },
)

# %% [markdown]
# There is a formula inside (03.16) that you have known since your first statistics course. Write $\ell_k = \log w_k$, $s_k$
# for the scores, and bars for means. Then $\ell_k - \frac{1}{K-1}\sum_{j \ne k} \ell_j = \frac{K}{K-1} (\ell_k - \bar\ell)$,
# and
#
# $$g = \frac{1}{K-1} \sum_{k=1}^K (\ell_k - \bar \ell)(s_k - \bar s): \quad
# \textbf{the sample covariance of log weight and score.} \tag{03.17}$$
#
# ($\bar s$ may be subtracted because the $\ell_k - \bar\ell$ sum to zero.) Of course! The score has mean zero, so (03.4)
# says that *the gradient of the ELBO is a covariance*, $\nabla_\phi \mathcal{L} = \operatorname{Cov}_q(\log w, \nabla_\phi \log
# q_\phi)$. The plain score function estimates a covariance without centring the data. Leave-one-out centres them, and its
# $K - 1$ is Bessel's.

# %%
generator = torch.Generator().manual_seed(3)
ell, s = torch.randn(2, 6, generator=generator)
checks.independent(
    "03.11",
    "leave-one-out = NumPy's sample covariance of log weight and score",
    ((ell - (ell.sum() - ell) / 5) * s).mean(),
    np.cov(ell, s)[0, 1],
    wrong={"no baseline": (ell * s).mean(), "division by K": np.cov(ell, s, ddof=0)[0, 1]},
    tolerance=1e-12,
)

# %% [markdown]
# Unbiasedness we verify without chance: a coin as $q$, and *every* tuple of $K$ throws, weighted by its probability. The
# package's own function is made to return these tuples in place of random ones.


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
checks.enumeration(
    "03.5a",
    "a discrete latent: the leave-one-out gradient's mean over all tuples is exact (K = 2, 3, 5)",
    torch.stack([exact_mean(elbo_leave_one_out, *case) for case in cases]),
    by_hand,
    wrong={
        "the own sample in the baseline: a share 1/K lost": shrunk * by_hand,
        "log q left out of the signal": by_hand
        + torch.tensor([logit / (2 + 2 * math.cosh(logit)) for logit, _ in cases]),
    },
)

# %% [markdown]
# ### Is it always an improvement?
#
# A baseline estimated from $K - 1$ samples is noisy itself. On the example the variances are, for $K$ samples in all,
#
# $$\text{plain: } \frac{2\mu^2 + \mathcal{L}^2}{K}, \qquad \text{leave-one-out: } \frac{2\mu^2}{K - 1}. \tag{03.18}$$
#
# The second is as if somebody had told us $\mathcal{L}$ and taken one sample in payment. It is the smaller one if
#
# $$K > 1 + \frac{2\mu^2}{\mathcal{L}^2}, \qquad\text{and if } \log p(x) = 0: \quad K > 1 + \frac{8}{\mu^2}. \tag{03.19}$$
#
# With a log evidence of $-5$, two samples are enough at any distance. With a log evidence of zero (there is no height to
# remove near the optimum) leave-one-out *loses* at small $K$: at $\mu = 1$ up to $K = 8$, with a tie at 9.
#
# The tie at $\mu = 2$ comes at $K = 3$. That is few enough to integrate over all three samples at once.


# %%
def all_noise(num_variables, num_nodes=8):
    """Gauss–Hermite points for independent N(0, 1) variables: exact means of polynomials of degree ≤ 15 in each."""
    x, w = np.polynomial.hermite_e.hermegauss(num_nodes)
    points = np.stack([g.ravel() for g in np.meshgrid(*[x] * num_variables, indexing="ij")])
    mass = np.stack([g.ravel() for g in np.meshgrid(*[w / w.sum()] * num_variables, indexing="ij")]).prod(0)
    return points, mass


def integrated_variances(mu, log_px, num_samples):
    """Variances of plain, leave-one-out and pathwise gradients in mu, by integrating over all K samples."""
    eps, mass = all_noise(num_samples)
    ell = log_px + norm.logpdf(mu + eps) - norm.logpdf(eps)
    others = (ell.sum(0) - ell) / max(num_samples - 1, 1)
    votes = [(ell * eps).mean(0), ((ell - others) * eps).mean(0), -(mu + eps).mean(0)]
    return np.array([mass @ g**2 - (mass @ g) ** 2 for g in votes])


few = np.array([2, 3, 4])
integrated = np.array([integrated_variances(2.0, 0.0, k) for k in few])
table = np.stack([12 / few, 8 / (few - 1), 1 / few], 1)  # (03.18) at μ = 2, 𝓛 = −2
checks.quadrature(
    "03.5b",
    "μ = 2, log p(x) = 0: leave-one-out has the larger variance at K = 2, the same at 3, the smaller at 4",
    table[:, 0] - table[:, 1],
    integrated[:, 0] - integrated[:, 1],
    wrong={"a baseline for free: 2μ²/K": table[:, 0] - 8 / few},
)
assert np.sign(np.round(table[:, 0] - table[:, 1], 9)).tolist() == [-1, 0, 1]
checks.quadrature(
    "03.7",
    "variance ∝ 1/K for plain and pathwise averages, ∝ 1/(K − 1) for leave-one-out (K = 2, 3, 4)",
    np.tile([12.0, 8.0, 1.0], (3, 1)),
    integrated * np.stack([few, few - 1, few], 1),
    wrong={"∝ 1/K for leave-one-out too": integrated * few[:, None]},
)

# %% mystnb={"image": {"alt": "Two panels of variance against the number of samples K, both axes logarithmic. Left, log evidence zero: leave-one-out starts above the plain score function, meets it at K = 9 and lies slightly below afterwards. Right, log evidence minus 5: leave-one-out lies far below the plain score function for every K, close to the pathwise line."}}
many, mu = np.arange(2, 65), 1.0
with plots.style():
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.2), sharey=True)
    for ax, log_px in zip(axes, (0.0, -5.0), strict=True):
        bound = log_px - mu**2 / 2
        ax.loglog(many, (2 * mu**2 + bound**2) / many, color=plots.COLOURS.data, linestyle=":", label="score function")
        ax.loglog(many, 2 * mu**2 / (many - 1), color=plots.COLOURS.q, linestyle="--", label="leave-one-out")
        ax.loglog(many, 1 / many, color=plots.COLOURS.theta, linestyle="-.", label="pathwise")
        measured = np.array([integrated_variances(mu, log_px, k) for k in few])
        for column, colour in enumerate((plots.COLOURS.data, plots.COLOURS.q, plots.COLOURS.theta)):
            ax.scatter(few, measured[:, column], color=colour, s=22, zorder=3)
        ax.set_xticks([2, 4, 9, 16, 64], ["2", "4", "9", "16", "64"])
        ax.minorticks_off()
        ax.set(ylim=(3e-3, 30), xlabel="samples K", title=f"log p(x) = {log_px:.0f}".replace("-", "−"))
    axes[0].axvline(9, color=plots.COLOURS.muted, linewidth=1)
    axes[0].set_ylabel(r"variance of $\partial\mathcal{L}/\partial\mu$")
    axes[1].legend(loc="lower left")
    fig.suptitle("A baseline pays as soon as there is a height to remove", x=0.01, ha="left", weight="bold", size=12)

# %% [markdown]
# (Points: integrated. Lines: formulas.) Real models have log evidences like $-2{,}413$, so in practice the answer is: with
# two samples or more, leave one out. Back to the opening, with one line changed.

# %%
mended = {k: slopes_in_m(elbo_leave_one_out, start, k, repeats=500) for k in (2, 20)}
print(f"score function, K = 1   {spread(cloud['second'][:, bmi])}")
for k, slopes in mended.items():
    print(f"leave-one-out,  K = {k:<3} {spread(slopes[:, bmi])}")
print(f"pathwise,       K = 1   {spread(cloud['first'][:, bmi])}")

at_rest = slopes_in_m(elbo_leave_one_out, posterior.mean, 2, repeats=500)
checks.exact(
    "03.12",
    "at the posterior the leave-one-out gradient, too, is zero for every pair of samples",
    at_rest,
    torch.zeros(500, L),
    wrong={"the total derivative": circling[:500]},
    tolerance=1e-8,
)

# %% [markdown]
# And a surprise at the end: leave-one-out, of the "noisy" family, *lands*. At the posterior all log weights are equal, so
# each one is exactly its own baseline.
#
# ## The gradient laboratory
#
# Let us measure all of it at once: $L$ dimensions, posterior $\mathcal{N}(0, I)$, and $q = \mathcal{N}(\mu, \sigma^2 I)$ with
# every $\mu_i = d$. The signal is $\lVert \mu \rVert = d \sqrt{L}$. The noise, the sum of the variances of the $L$
# gradients in $\mu$, follows from moments of $\epsilon$ up to the sixth. With $A = \log p(x) + L \log \sigma -
# \frac12 \lVert \mu \rVert^2$ and $C = \frac12 (1 - \sigma^2)$:
#
# | | noise (sum of variances) |
# |---|---|
# | pathwise | $L \sigma^2 / K$ |
# | sticking the landing | $L (\frac1\sigma - \sigma)^2 / K$ |
# | score function | $\frac1K \big[ \frac{L}{\sigma^2} \big( A^2 + 2AC(L+2) + C^2(L+2)(L+4) \big) + (L+1) \lVert\mu\rVert^2 \big]$ |
# | leave-one-out | $\frac{L+1}{K-1} \lVert\mu\rVert^2 + \frac{L C^2}{\sigma^2 K} \big( 2L + 8 + \frac{2L}{K-1} \big)$ |
#
# <details><summary>Where the last two rows come from</summary>
#
# The log weight is $A + C\lVert\epsilon\rVert^2 - \sigma \mu^\top\epsilon$ and the score $\epsilon / \sigma$. For the score
# function take the second moment of their product: $\mathbb{E}[\lVert\epsilon\rVert^2] = L$,
# $\mathbb{E}[\lVert\epsilon\rVert^4] = L(L+2)$, $\mathbb{E}[\lVert\epsilon\rVert^6] = L(L+2)(L+4)$,
# $\mathbb{E}[(\mu^\top\epsilon)^2 \lVert\epsilon\rVert^2] = (L+2)\lVert\mu\rVert^2$; odd moments vanish. Leave-one-out
# is a sample covariance, and the variance of that is textbook knowledge: with $\ell$ and $s$ centred,
# $\frac1K \big( \mathbb{E}[\ell^2 s^2] - \operatorname{Cov}^2 \big) + \frac{1}{K(K-1)} \big( \operatorname{Var} \ell
# \operatorname{Var} s + \operatorname{Cov}^2 \big)$.
#
# </details>


# %%
def noise_power(name, d, sigma, L, K, log_px):
    """The sum of the variances of the gradient in mu, by the table."""
    mu2, C = L * d**2, (1 - sigma**2) / 2
    A = log_px + L * math.log(sigma) - mu2 / 2
    if name == "pathwise":
        return L * sigma**2 / K
    if name == "sticking the landing":
        return L * (1 / sigma - sigma) ** 2 / K
    if name == "score function":
        return (L / sigma**2 * (A**2 + 2 * A * C * (L + 2) + C**2 * (L + 2) * (L + 4)) + (L + 1) * mu2) / K
    return (L + 1) * mu2 / (K - 1) + L * C**2 / (sigma**2 * K) * (2 * L + 8 + 2 * L / (K - 1))


def integrated_noise(d, sigma, L, K, log_px):
    """The same by integrating over all K · L noise variables."""
    points, mass = all_noise(K * L, 7)
    eps = points.reshape(K, L, -1)
    z, s = d + sigma * eps, eps / sigma
    ell = log_px + norm.logpdf(z).sum(1) - (norm.logpdf(eps) - math.log(sigma)).sum(1)
    others = (ell.sum(0) - ell) / (K - 1)
    gradients = [-z, -z + s, ell[:, None] * s, (ell - others)[:, None] * s]
    return [((g.mean(0) ** 2 @ mass) - (g.mean(0) @ mass) ** 2).sum() for g in gradients]


names = ["pathwise", "sticking the landing", "score function", "leave-one-out"]
settings = [(1.0, 1.0, 1, 2, 0.0), (0.5, 0.7, 1, 3, -3.0), (0.4, 1.3, 2, 2, -2.0)]
table = np.array([[noise_power(name, *setting) for name in names] for setting in settings])
checks.quadrature(
    "03.13",
    "the table of noises = integrals over all samples, for three settings of (d, σ, L, K, log p(x))",
    table,
    np.array([integrated_noise(*setting) for setting in settings]),
    wrong={
        "log p(x) = 0 everywhere": np.array(
            [[noise_power(n, *setting[:4], 0.0) for n in names] for setting in settings]
        ),
        "σ = 1 everywhere": np.array([[noise_power(n, s[0], 1.0, *s[2:]) for n in names] for s in settings]),
    },
)

# %% [markdown]
# Now the measurements, with the package's functions: 2,000 gradients for each point, at $\sigma = 0.9$ and $\log p(x) =
# -10$. In the upper row the *bias*, relative to the exact gradient (bars: two standard errors); in the lower row the SNR, with
# the table's formulas as lines. $d = 1$, $L = 4$ and $K = 4$ where they do not vary.
# A fifth estimator takes part that is wrong on purpose: leave-one-out with the own sample left in.
#
# Predict three things before you look. As the dimension grows at a fixed $d$, whose SNR holds? As $q$ comes near ($d \to 0$),
# whose? And is the pathwise gradient always better than leave-one-out?

# %%
ESTIMATORS = {
    "pathwise": pathwise,
    "sticking the landing": elbo_sticking_the_landing,
    "score function": elbo_score_function,
    "leave-one-out": elbo_leave_one_out,
    "own sample left in": lambda log_joint, q, K: (K - 1) / K * elbo_leave_one_out(log_joint, q, K),
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
LOOKS = {  # colour, line, marker
    "pathwise": (plots.COLOURS.theta, "-.", "^"),
    "sticking the landing": (plots.COLOURS.accent, "-", "D"),
    "score function": (plots.COLOURS.data, ":", "o"),
    "leave-one-out": (plots.COLOURS.q, "--", "s"),
    "own sample left in": (plots.COLOURS.p, "-", "x"),
}
AXES = {"K": "samples K", "L": "dimension L", "d": "distance d"}


def snr_by_rule(name, d, L, K):
    return d * math.sqrt(L) / math.sqrt(noise_power(name, d, SIGMA, L, K, LOG_PX))


for varied, values in SWEEPS.items():
    for name in names:
        bias, error, snr = measured[varied][name].T
        assert (np.abs(bias) < 4.5 * error).all()
        assert (np.abs(np.log(snr / [snr_by_rule(name, **setting(varied, v)) for v in values])) < 0.25).all()
    bias, error, _ = measured[varied]["own sample left in"].T
    assert (np.abs(bias + [1 / setting(varied, v)["K"] for v in values]) < 4.5 * error).all()

near, far = (0.1, 4, 4), (1.0, 4, 4)
assert snr_by_rule("leave-one-out", *near) > 1.5 * snr_by_rule("pathwise", *near)
assert snr_by_rule("pathwise", *far) > 2 * snr_by_rule("leave-one-out", *far)

# %% mystnb={"image": {"alt": "Six panels. Upper row: relative bias of five estimators against samples, dimension and distance; four lie at zero within their error bars, the one with the own sample left in lies at minus one over K, so minus 50 percent at K = 2 and minus 25 percent at K = 4. Lower row: signal-to-noise ratio with formulas as lines. Over K all rise in parallel. Over the dimension pathwise and sticking the landing are flat, leave-one-out falls, score function falls faster. Over distance pathwise and sticking the landing rise in proportion, score function too at first, leave-one-out is nearly flat from 0.3 on."}}
with plots.style():
    fig, axes = plt.subplots(2, 3, figsize=(7.2, 5.4), sharey="row", height_ratios=[1, 1.7])
    for column, (varied, values) in enumerate(SWEEPS.items()):
        top, bottom = axes[:, column]
        fine = np.geomspace(values[0], values[-1], 60)
        for index, (name, (colour, line, marker)) in enumerate(LOOKS.items()):
            bias, error, snr = measured[varied][name].T
            shifted = np.array(values) * (1 + 0.06 * (index - 2))
            top.errorbar(shifted, 100 * bias, 200 * error, color=colour, fmt=marker, ms=4, lw=1)
            if name in names:
                rule = [snr_by_rule(name, **setting(varied, v)) for v in fine]
                bottom.plot(fine, rule, color=colour, linestyle=line, linewidth=1.5)
                bottom.scatter(values, snr, color=colour, marker=marker, s=22, label=name)
        for ax in (top, bottom):
            ax.set_xscale("log")
            ax.set_xticks(values, [f"{v:g}" for v in values], size=9)
            ax.minorticks_off()
        top.axhline(0, color=plots.COLOURS.evidence, linewidth=1)
        top.set(ylim=(-80, 60))
        bottom.set(yscale="log", xlabel=AXES[varied])
    top.plot([], [], color=plots.COLOURS.p, marker="x", linestyle="", label="own sample left in")
    axes[0, 0].set_ylabel("bias (%)")
    axes[1, 0].set_ylabel("SNR")
    handles = [*bottom.get_legend_handles_labels()[0], top.get_lines()[-1]]
    fig.legend(handles, list(LOOKS), loc="outside lower center", ncols=3)
    fig.suptitle("Four are unbiased, and orders of magnitude apart", x=0.01, ha="left", weight="bold", size=12)

# %% [markdown]
# - **Samples.** All lines rise together: more samples never change the ranking, except for $K$ against $K-1$. Fifty times
#   more work buys a factor of seven.
# - **Dimension.** At a fixed distance *per coordinate*, pathwise and STL do not notice dimension: each coordinate feels
#   its own slope. The score function multiplies each score by the fluctuations of *all* coordinates, and its SNR falls as
#   $1/\sqrt{L}$ with the baseline and, once $A$ grows with $L$, as $1/L$ without.
# - **Distance.** As $q$ comes near, the signal of the pathwise gradient falls in proportion and its noise stays. The
#   noise of leave-one-out falls *with* the signal. So below $d \approx 0.3$ the two exchange ranks: *pathwise always has
#   less noise* is folklore, and false. (With $\sigma$ equal to 1, leave-one-out would hold its SNR all the way down.)
#
# In JupyterLab, with `ipywidgets` installed, the next figure has sliders. Move $\log p(x)$ and see who cares; move
# $\sigma$ through 1 and through 0.71.


# %% mystnb={"image": {"alt": "Signal-to-noise ratio of four estimators against the distance per coordinate, logarithmic axes, for log evidence minus 50, sigma 0.9, five dimensions and four samples. Sticking the landing is on top, pathwise below it and parallel, leave-one-out is flat at large distances, and the score function lies far below all others."}}
def draw_snr(fig, log_px, sigma):
    ax = fig.subplots()
    far = np.geomspace(0.01, 10, 80)
    for name in names:
        colour, line, _ = LOOKS[name]
        noise = [max(noise_power(name, d, sigma, 5, 4, log_px), 1e-12) ** 0.5 for d in far]
        ax.loglog(far, far * math.sqrt(5) / noise, color=colour, linestyle=line, label=name)
    ax.axhline(1, color=plots.COLOURS.muted, linewidth=1)
    ax.set(ylim=(1e-4, 1e3), xlabel="distance d (posterior sd)", ylabel="SNR (L = 5, K = 4)")
    height = f"{log_px:.0f}".replace("-", "−")
    ax.set_title(f"Only the score function feels log p(x) = {height} (σ = {sigma:.2f})")
    ax.legend(loc="lower right")


plots.slider(draw_snr, figsize=(6.4, 3.3), log_px=(-100.0, 0.0, -50.0), sigma=(0.4, 1.6, 0.9))

# %% [markdown]
# ## The same climb, four ways
#
# Noise matters for what it does to an optimiser. Below, 20 climbers start at the same wrong place,
# $\mu = -2.5$, $\sigma = 0.5$, for the posterior $\mathcal{N}(0, 1)$ with $\log p(x) = -4$. Each climbs by plain
# gradient ascent with a step of 0.08 and $K = 4$ samples a step. (Both coordinates are clipped to lie between −6 and
# 3; only climbers with the plain score function ever get there.) The contours are the exact
# $\mathcal{L} = \log p(x) - \frac12 (\mu^2 + \sigma^2 - 1) + \log \sigma$. Before you press Play: which two swarms will
# shrink to a point?


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


tracks = {
    name: swarm(ESTIMATORS[name]) for name in ("score function", "leave-one-out", "pathwise", "sticking the landing")
}
scatter = {name: track[-1].std(0).norm().item() for name, track in tracks.items()}
for name, value in scatter.items():
    print(f"{name:>21}: scattered by {'less than 0.01' if value < 0.01 else f'about {value:.1g}'}")
assert max(scatter["leave-one-out"], scatter["sticking the landing"]) < 0.01
assert 0.05 < scatter["pathwise"] < 0.5 < scatter["score function"]

# %% mystnb={"image": {"alt": "Animation of 13 frames, four panels with contours of the ELBO over mu and log sigma and 20 dots each. All dots start at the lower left. The score function's scatter over the whole panel and stay scattered; leave-one-out's spread at first and then gather in one point at the top; pathwise dots form a small cloud around the top and stay one; sticking the landing's gather in the point."}} tags=["nbval-ignore-output"]
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

# %% [markdown]
# Leave-one-out and STL land: their noise dies with the distance. The pathwise swarm circles for ever at a radius set by
# the step (that is why one lowers step sizes late in training). The plain score function never arrives.
#
# ### On the real data
#
# Ten coefficients, 442 patients, Adam. To see noise and nothing else we first remove the collinearity
# that chapter 02 struggled with: write $W = QR$ with orthogonal columns in $Q$ and learn the coefficients of $\sigma Q$,
# which have posterior standard deviations of about one and no correlation. Then even a mean-field $q$ holds the
# posterior. Start at $\mathcal{N}(0, I)$, with $K = 10$ samples and a step of 0.2. Expect the swarms' story once
# more, in 20 parameters.

# %%
Q = torch.linalg.qr(W).Q * noise_scale
straight = models.linear_regression(Q, prior_scale=20.0, noise_scale=noise_scale)
truth = straight.posterior(x)


def climb(estimator, num_steps=250):
    """The gap log p(x) − 𝓛 after each step, exact, in nats."""
    q, gaps = families.MeanFieldNormal(L), []
    optimiser = torch.optim.Adam(q.parameters(), lr=0.2, betas=(0.9, 0.99))

    @torch.no_grad()
    def note(step):
        gaps.append(kl_divergence(q(), truth).item())

    with torch.random.fork_rng():
        torch.manual_seed(1)
        training.fit(lambda x: estimator(straight.given(x), q(x), 10), optimiser, x, num_steps=num_steps, callback=note)
    return np.array(gaps)


gaps = {name: climb(ESTIMATORS[name]) for name in names}
for name in names:
    last = np.median(gaps[name][-50:])
    verdict = "less than 0.01" if last < 0.01 else "less than 1" if last < 1 else "more than 100"
    print(f"{name:>21}: in the last 50 steps {verdict} nats missing")

# %% mystnb={"image": {"alt": "Missing ELBO in nats on a logarithmic axis over 250 Adam steps. The score function stays near 200 or above. Pathwise falls to about 0.2 in 120 steps and stays there, jagged. Leave-one-out falls more slowly and goes on falling, to below a thousandth. Sticking the landing falls fastest and lowest."}}
late = {name: np.median(gap[-50:]) for name, gap in gaps.items()}
assert late["sticking the landing"] < 1e-2 > late["leave-one-out"]
assert late["score function"] > 100 > 1 > late["pathwise"] > 0.05
with plots.style():
    fig, ax = plt.subplots(figsize=(6.8, 3.4))
    for name in names:
        colour, line, _ = LOOKS[name]
        ax.semilogy(np.arange(1, 251), np.maximum(gaps[name], 1e-9), color=colour, linestyle=line, lw=1.5, label=name)
    ax.set(ylim=(1e-7, 1e4), xlabel="step (K = 10 samples each)", ylabel=r"$\log p(x) - \mathcal{L}$ (nats)")
    ax.set_title("Diabetes: two estimators land, one circles, one is lost")
    ax.legend(loc="lower left")

# %% [markdown]
# The ranking at the end is not the ranking at the start: far away the pathwise gradient beats leave-one-out, and near the
# top it loses to it. (The bump in the lowest curve is Adam's: its steps do not shrink with the gradient.) If your model is differentiable, start pathwise or with STL; if it is not, leave one out.
#
# ## Minibatches: a second source of noise
#
# So far each step looked at all $N$ patients. With millions one takes a random minibatch of $B$ rows and scales up. When
# the log joint is a sum over datapoints, $\log p(x, z) = \log p(z) + \sum_{n=1}^N \log p(x_n \mid z)$, the unbiased
# estimate is
#
# $$\widehat{\log p}(x, z) = \log p(z) + \frac{N}{B} \sum_{b=1}^{B} \log p(x_b \mid z), \tag{03.20}$$
#
# because each row is in a share $B/N$ of all minibatches. What is *not* a sum over the data, the prior and $\log q$,
# must not be scaled. (In a VAE each datapoint has its own $z$; then the whole ELBO is a sum over data, and all of it is
# scaled: `dataset_total` is the same.)
#
# Real and small: eight schools measured the effect of coaching, $x_n$, with known standard errors $s_n$. One common effect
# $z \sim \mathcal{N}(0, 10^2)$, $q = \mathcal{N}(\mu, \sigma^2)$, and all expectations are closed forms, so that the
# minibatch is the only chance left. We visit *all* of them.

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
by_hand = torch.stack(
    [
        (precisions * (schools.effect - 2.0)).sum() - 2.0 / 100,
        1 - math.exp(3.0) * (precisions.sum() + 1 / 100),
    ]
)
checks.enumeration(
    "03.6",
    "N/B scaling: the mean gradient over all 56 minibatches of 3 schools is that of all 8",
    over_all_minibatches(3).mean(0),
    by_hand,
    wrong={
        "scaled twice": over_all_minibatches(3, data_scale=8 / 3).mean(0),
        "the prior and log q scaled as well": over_all_minibatches(3, other_scale=8 / 3).mean(0),
        "not scaled": over_all_minibatches(3, data_scale=3 / 8).mean(0),
    },
)

# %% [markdown]
# The first rejected answer is a real bug of a well-known library, which counted the scale twice at one site. The data then
# weigh $N/B$ times too much; the posterior comes out too narrow, and no error appears.
#
# How much noise does a minibatch add? Rows are drawn without replacement, so it is the variance of a survey: with $S^2$
# the sample variance of the $N$ per-row gradients,
#
# $$\operatorname{Var}_{\text{batch}} = \frac{N^2}{B} \Big( 1 - \frac{B}{N} \Big) S^2. \tag{03.21}$$

# %%
phi = torch.tensor([2.0, 1.5])
rows = torch.autograd.functional.jacobian(per_school, phi)  # one gradient per school
sizes = torch.arange(1, N)
S2 = rows.var(0)
checks.enumeration(
    "03.14",
    "the variance over all minibatches of B = 1 … 7 schools is N²/B · (1 − B/N) · S²",
    (N**2 / sizes * (1 - sizes / N))[:, None] * S2,
    torch.stack([over_all_minibatches(b).var(0, correction=0) for b in sizes.tolist()]),
    wrong={
        "rows drawn with replacement": (N**2 / sizes)[:, None] * S2,
        "division by N in S²": (N**2 / sizes * (1 - sizes / N))[:, None] * rows.var(0, correction=0),
    },
)

# %% [markdown]
# Back to the 442 patients. By the law of total variance the noise of a minibatch gradient is the noise of the full-data
# gradient *plus* (03.21), averaged over $z$. At the posterior both have a natural unit: the full-data pathwise gradient has
# the covariance $\Lambda$ (Fisher), and for a model that fits, the per-row gradients also have a covariance of about $\Lambda /
# N$ (the information identity). So
#
# $$\frac{\text{minibatch noise}}{\text{sampling noise at } K = 1} \approx \frac{N}{B} - 1. \tag{03.22}$$
#
# With a tenth of the data in a batch, that is *nine times* the noise of sampling $z$. What will that do to
# sticking the landing?


# %%
def per_unit(gradients):
    """Noise power in units of the Fisher information: tr(Σ Cov)/L, which is 1 for the total derivative at the posterior."""
    centred = gradients - gradients.mean(0)
    return torch.einsum("ri,ij,rj->", centred, posterior.covariance_matrix, centred).item() / (L * (len(centred) - 1))


def with_minibatches(estimator, batch_size, repeats=1_000):
    """Gradients in m at the posterior, each from its own minibatch and one sample."""
    rows = torch.rand(repeats, D).argsort(1)[:, :batch_size]
    copies = posterior.mean.repeat(repeats, 1).requires_grad_()

    def log_joint(z):  # z: (1, repeats, L)
        fitted = torch.einsum("krl,rbl->krb", z, W[rows])
        return model.prior().log_prob(z) + D / batch_size * Normal(fitted, noise_scale).log_prob(x[rows]).sum(-1)

    bound = estimator(log_joint, full_normal(copies, posterior.scale_tril), 1)
    return torch.autograd.grad(bound.sum(), copies)[0]


batch_sizes = [4, 16, 44, 147, 442]
power = {
    name: np.array([per_unit(with_minibatches(ESTIMATORS[name], b)) for b in batch_sizes])
    for name in ("pathwise", "sticking the landing")
}
for b, total, landing in zip(batch_sizes, *power.values(), strict=True):
    print(f"B = {b:>3}: N/B − 1 = {D / b - 1:6.1f}   pathwise {total:6.1f}   STL {landing:6.1f}")
rule = np.array([D / b - 1 for b in batch_sizes])
assert (np.abs(power["pathwise"] - rule - 1) < 0.2 * (rule + 1)).all()
assert (np.abs(power["sticking the landing"] - rule) < 0.2 * rule + 0.02).all()

# %% [markdown]
# Two lessons. With one $z$ shared by all data and pathwise gradients, raising $K$ is wasted effort as long as $B$ is well
# below $N$: it divides only the smaller part. And an estimator that lands on the full data does not land on minibatches:
# their noise is the same for both.
#
# ## Or freeze the noise
#
# All this trouble comes from drawing *fresh* noise at each step. Draw $\epsilon_1, \dots, \epsilon_K$ once and keep them:
#
# $$\mathcal{L}_{\text{frozen}}(\phi) = \frac1K \sum_{k=1}^K \log w\big( T_\phi(\epsilon_k) \big). \tag{03.23}$$
#
# That is an ordinary smooth function of φ. It can be given to L-BFGS, which has a line search, a stopping rule, and no
# learning rate. This is deterministic ADVI (Giordano, Ingram & Broderick 2024; Burroni, Domke & Sheldon 2024). The
# price: its maximum is not quite that of $\mathcal{L}$, because $K$ draws are not the distribution.
#
# Not quite? Suppose the log joint is a quadratic and $q$ a Normal. Then the average in (03.23) sees the draws only
# through their mean and covariance. So *give* them mean exactly 0 and covariance exactly $I$: take pairs
# $\pm\epsilon$, then whiten. Those are `standardised_noise`, and with them the Monte Carlo ELBO has no error at all.

# %%
noise = standardised_noise(64, L)
assert noise.mean(0).abs().max() < 1e-12
assert (noise.T @ noise / 64 - torch.eye(L)).abs().max() < 1e-12


def frozen(q, noise):
    """The Monte Carlo ELBO (03.23) of a full-rank q."""
    return elbo(weigh(model.given(x), q, q.loc + noise @ q.scale_tril.mT).log_weight)


raw = torch.randn(64, L, generator=torch.Generator().manual_seed(2))
some_q = full_normal(posterior.mean + torch.randn(L), torch.randn(L, L).tril(-1) + 4 * torch.eye(L))
checks.exact(
    "03.8a",
    "64 standardised draws: the Monte Carlo ELBO of an arbitrary full-rank q is the exact one",
    frozen(some_q, noise),
    log_evidence - kl_divergence(some_q, posterior),
    wrong={"64 raw draws": frozen(some_q, raw)},
)


# %%
def lbfgs(q, noise, num_steps=5):
    """Raise the frozen ELBO; each step is up to 20 iterations."""
    optimiser = torch.optim.LBFGS(
        q.parameters(), line_search_fn="strong_wolfe", tolerance_grad=1e-9, tolerance_change=1e-12
    )
    training.fit(lambda x: frozen(q(x), noise), optimiser, x, num_steps=num_steps)
    return q


q = lbfgs(families.FullRankNormal(L), noise)
mean_field_gap = 0.5 * (Lambda.diagonal().log().sum() - torch.logdet(Lambda))
checks.exact(
    "03.8b",
    "L-BFGS on the frozen ELBO, from N(0, I) on the collinear columns, arrives at log p(x)",
    frozen(q(), noise).detach(),
    log_evidence,
    wrong={"the best mean-field q": log_evidence - mean_field_gap},
)
assert kl_divergence(q(), posterior) < 1e-8

# %% [markdown]
# No learning rate, no noise, no QR trick; about a hundred evaluations, and every digit of the evidence. (For a log joint that is not quadratic the draws do
# leave an error; chapter 04 watches it.)
#
# ### The trap of too few draws
#
# Without whitening, what does freezing cost? Let the raw draws have mean $\bar\epsilon$ and covariance $\hat C$ (divided by
# $K$). L-BFGS will happily adapt $q$ to *them*: it moves and stretches $q$ until the $K$ points $T_\phi(\epsilon_k)$ have the
# posterior's mean and covariance. Put that into (03.23) and into the true ELBO, and two old friends appear:
#
# $$\max_\phi \mathcal{L}_{\text{frozen}} = \log p(x) + \mathrm{KL}\big( \mathcal{N}(\bar\epsilon, \hat C) \,\|\,
# \mathcal{N}(0, I) \big), \qquad
# \mathcal{L} \text{ there} = \log p(x) - \mathrm{KL}\big( \mathcal{N}(0, I) \,\|\, \mathcal{N}(\bar\epsilon, \hat C) \big).
# \tag{03.24}$$
#
# The frozen "bound" lies *above* the evidence by one KL, and the true ELBO below it by the other. You pay for the
# difference between your draws and the noise they stand for, in both directions.
#
# <details><summary>Why</summary>
#
# With $z_k = m + T \epsilon_k$ the frozen average is, up to constants, $-\frac12 \operatorname{tr}(\Lambda T \hat C T^\top)
# - \frac12 \lVert m + T\bar\epsilon - \mu \rVert_\Lambda^2 + \log \det T$. Its maximum is at $T \hat C T^\top = \Sigma$ and
# $m = \mu - T \bar\epsilon$. There the posterior's own draws would have been $T^{-1}(z - m) \sim \mathcal{N}(\bar\epsilon,
# \hat C)$, and a KL does not change under an affine map: $\mathrm{KL}(q \,\|\, p(z \mid x)) = \mathrm{KL}(\mathcal{N}(0, I)
# \,\|\, \mathcal{N}(\bar\epsilon, \hat C))$. For the frozen value, note that $\log w = \log p(x) + \log
# \mathcal{N}(\epsilon \mid \bar\epsilon, \hat C) - \log \mathcal{N}(\epsilon \mid 0, I)$, a quadratic in $\epsilon$; so its
# average over the draws is its mean under $\mathcal{N}(\bar\epsilon, \hat C)$.
#
# </details>


# %%
def of_draws(noise):
    """The Normal with the draws' own mean and covariance."""
    centred = noise - noise.mean(0)
    return full_normal(noise.mean(0), torch.linalg.cholesky(centred.T @ centred / len(noise)))


unit = full_normal(torch.zeros(L), torch.eye(L))
reached, twins = [], []
for k in (32, 64):
    draws = torch.randn(k, L, generator=torch.Generator().manual_seed(5))
    fitted = lbfgs(copy.deepcopy(q), draws, num_steps=8)  # from where we are
    reached += [frozen(fitted(), draws).detach() - log_evidence, -kl_divergence(fitted(), posterior).detach()]
    twins += [kl_divergence(of_draws(draws), unit), -kl_divergence(unit, of_draws(draws))]
    print(f"K = {k}: frozen {twins[-2].item():+.2f}, true {twins[-1].item():+.2f} nats from log p(x)")
reached, twins = torch.stack(reached), torch.stack(twins)
checks.independent(
    "03.15",
    "raw draws: frozen maximum − log p(x) = KL(draws‖N(0, I)), true ELBO − log p(x) = −KL(N(0, I)‖draws)",
    reached,
    twins,
    wrong={"directions exchanged": -twins[[1, 0, 3, 2]], "a bound stays below": -twins.abs()},
    tolerance=1e-4,
)

# %% [markdown]
# Now read (03.24) with *fewer* draws. $K$ points span at most $K - 1$ directions around their mean ($K/2$ if they come in
# pairs). With fewer than $L$, $\hat C$ is singular, and both KLs are infinite. In a direction that no draw looks into, $q$ can
# grow wider and wider: the frozen average never sees the cost, and collects the entropy. Ten coefficients, eight draws:

# %% mystnb={"image": {"alt": "Distance to the log evidence in nats on a symmetric logarithmic axis over 30 steps of L-BFGS with 8 raw draws. The frozen ELBO rises past the log evidence after a few steps and keeps climbing, to more than ten nats above it. The true ELBO comes up to some tens of nats below the evidence and then falls, to thousands of nats below."}}
draws = torch.randn(8, L, generator=torch.Generator().manual_seed(2))
greedy, trace = families.FullRankNormal(L), []


@torch.no_grad()
def note(step):
    trace.append([(frozen(greedy(), draws) - log_evidence).item(), -kl_divergence(greedy(), posterior).item()])


optimiser = torch.optim.LBFGS(greedy.parameters(), line_search_fn="strong_wolfe", max_iter=4)
_ = training.fit(lambda x: frozen(greedy(x), draws), optimiser, x, num_steps=30, callback=note)
seen, true = np.array(trace).T
assert seen[-1] > 5 > 0 > -500 > true[-1]
assert (np.diff(seen) > -1e-6).all()

with plots.style():
    fig, ax = plt.subplots(figsize=(6.4, 3.4))
    ax.plot(np.arange(1, 31), seen, color=plots.COLOURS.q, linestyle="--", label="frozen ELBO, what L-BFGS sees")
    ax.plot(np.arange(1, 31), true, color=plots.COLOURS.q, label="true ELBO")
    ax.axhline(0, color=plots.COLOURS.evidence, linewidth=1.5)
    ax.text(30, 0.6, "log p(x)", ha="right", va="bottom", weight="bold", size=10)
    ax.set_yscale("symlog", linthresh=5)
    ax.set_yticks([-1000, -100, -10, 0, 10], ["−1000", "−100", "−10", "0", "+10"])
    ax.set(xlabel="step of L-BFGS (4 iterations each)", ylabel="nats from log p(x)", ylim=(-20_000, 60))
    ax.set_title("Eight draws, ten dimensions: the “bound” has no ceiling")
    ax.legend(loc="lower left")

# %% [markdown]
# The optimiser reports steady progress all the way. A bound above the evidence would give it away, if one knew the evidence.
# So the package refuses fewer than $2 L$ draws (they come in pairs), and a frozen ELBO should never be *reported*: evaluate
# the final $q$ with fresh draws.

# %%
try:
    standardised_noise(8, L)
except ValueError as error:
    print(error)

fresh = draw(model.given(x), greedy(), 4_000).log_weight.detach()
checks.monte_carlo(
    "03.8c",
    "too few raw draws: fresh draws tell what the frozen ELBO hides",
    fresh,
    (log_evidence - kl_divergence(greedy(), posterior)).detach(),
    wrong={"the frozen ELBO": frozen(greedy(), draws).detach(), "the log evidence": log_evidence},
)

# %% [markdown]
# ## A mistake people make
#
# "The score has mean zero, and $\log q$ only enters through it. So in the learning signal of (03.4) I may use
# $\log p_\theta(x, z)$ alone." This has been taught, and it sounds like (03.3). But (03.3) says that the mean of
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
# = \nabla_\phi \mathcal{L} - \begin{pmatrix} 0 \\ 1 \end{pmatrix}. \tag{03.25}$$
#
# Always towards a narrower $q$. One that follows this gradient climbs to the mode of the log joint and shrinks to a *point*. It
# finds a decent mean; only the uncertainty is gone.

# %%
mu, sigma = place[0], math.exp(place[1])
z = mu + sigma * nodes
learning_signal = log_joint_of(torch.tensor(place[2]))(z)
without = weights @ (learning_signal[:, None] * scores(mu, place[1], z))
checks.quadrature(
    "03.16",
    "without log q in the signal the gradient is off by (0, −1) in (μ, log σ)",
    exact[:2] - torch.tensor([0.0, 1.0]),
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
# The moral is in `gradient_is_unbiased`: compare with an exact gradient on a small model, in *every* parameter.
#
# ## Exercises
#
# Each stub checks itself. Tensors are float64; the oracles use other formulas than you will.
#
# **Exercise 1 (recall).** On the example of (03.6), how many samples $K$ (a real number) does the score-function gradient
# in $\mu$ need for a given SNR?
#
# <details><summary>Hint</summary>
#
# The SNR of one sample is (03.8), and $K$ samples multiply it by $\sqrt{K}$.
#
# </details>


# %%
def samples_needed(mu, log_evidence, target): ...  # your code


ch03.samples_needed.check(samples_needed)

# %% [markdown]
# **Exercise 2 (code).** Write the leave-one-out gradient from `log_weight`, shape `(K,)`, and `score`, shape `(K, P)`: the
# scores of the $P$ parameters. Return shape `(P,)`.
#
# <details><summary>Hint</summary>
#
# (03.16). The sum of the others is the sum of all minus your own.
#
# </details>


# %%
def leave_one_out_gradient(log_weight, score): ...  # your code


ch03.leave_one_out.check(leave_one_out_gradient)

# %% [markdown]
# **Exercise 3 (think).** $\mathcal{L}$ is a good baseline, but not the best constant. Find the $b$ that minimises the variance
# of $(\log w - b) \, s$, where $s$ is one component of the score. The latent is discrete: `probs`, `log_weight` and `score`
# hold one number per state.
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
# **Exercise 4 (a small study).** No landing without a landing strip: on a correlated Gaussian posterior the best mean-field
# $q$ has the right mean and variances $1/\Lambda_{ii}$ (chapter 02), and is *not* the posterior. Write the variance of the
# one-sample STL gradient in each mean there, as a function of the precision matrix. Then find out, for the ten
# diabetes columns, how much STL still saves against the total derivative, and for which coefficient it saves least.
#
# <details><summary>Hint</summary>
#
# $\nabla_z \log w = -(\Lambda - \operatorname{diag} \Lambda)(z - m)$, and $z - m$ has the covariance
# $(\operatorname{diag} \Lambda)^{-1}$ under $q$. The total derivative has $\Lambda$ in place of the difference.
#
# </details>


# %%
def landing_noise(precision): ...  # your code


ch03.landing_noise.check(landing_noise)

# %% [markdown]
# ## Summary
#
# *When an expectation has no formula, where does its gradient come from, and what decides how noisy it is?*
#
# - **Derive.** The score function moves the density, and needs only heights. The pathwise gradient moves the samples, and
#   needs slopes. STL drops a score from the pathwise gradient, leave-one-out a height from the score function; both terms
#   have mean zero, so all four are unbiased.
# - **Predict.** The score function's noise contains $\mathcal{L}^2$, so it depends on the unit of your data: ± 1,000 where the
#   pathwise gradient has ± 0.4. Leave-one-out is a sample covariance, removes the height, and costs one sample. At the
#   posterior the total derivative has the Fisher information as covariance; STL and leave-one-out have zero.
# - **Choose.** Differentiable and reparameterisable: pathwise, or STL unless $q$ is narrower than $\sqrt{1/2}$ of the posterior.
#   Otherwise leave-one-out. With minibatches $K = 1$ will do. Where all data fit, freeze standardised noise, at least
#   $2L$ draws, and use L-BFGS.
# - **Catch.** Compare with an exact gradient on a small model, in every parameter: without $\log q$ in the signal only the
#   scale is wrong, and $q$ collapses.
#
# ### Sources
#
# - Williams (1992), *Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning*; Ranganath,
#   Gerrish & Blei (2014), *Black Box Variational Inference* (score function).
# - Kingma & Welling (2014), *Auto-Encoding Variational Bayes*, eq. 4 to 8, and Rezende, Mohamed & Wierstra (2014),
#   arXiv:1401.4082 (pathwise gradients; minibatches).
# - Roeder, Wu & Duvenaud (2017), *Sticking the Landing*.
# - Kool, van Hoof & Welling (2019), *Buy 4 REINFORCE Samples, Get a Baseline for Free!*; Salimans & Knowles (2014), *On Using
#   Control Variates with Stochastic Approximation for Variational Bayes*; Richter, Boustati, Nüsken, Ruiz & Akyildiz (2020),
#   *VarGrad* (leave-one-out as the gradient of a variance).
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
def leave_one_out_gradient(log_weight, score):
    baseline = (log_weight.sum() - log_weight) / (len(log_weight) - 1)
    return ((log_weight - baseline)[:, None] * score).mean(0)


ch03.leave_one_out.check(leave_one_out_gradient)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def best_baseline(probs, log_weight, score):
    return (probs @ (log_weight * score**2)) / (probs @ score**2)


ch03.best_baseline.check(best_baseline)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def landing_noise(precision):
    variances = 1 / precision.diagonal()
    rest = precision - torch.diag(precision.diagonal())
    return (rest**2) @ variances


ch03.landing_noise.check(landing_noise)

share = landing_noise(Lambda) / (Lambda**2 @ (1 / Lambda.diagonal()))  # of the total derivative's variance
least, most = share.argmin(), share.argmax()
print(
    f"STL keeps from {100 * share[least]:.0f} % ({patients.names[least]}) to {100 * share[most]:.0f} % ({patients.names[most]}) of the noise"
)

# %% [markdown] jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
# <details><summary>What the study shows</summary>
#
# The total derivative's variance is $\Lambda_{ii}$ more than that of STL: $\Lambda \Delta^{-1} \Lambda$ and
# $(\Lambda - \Delta) \Delta^{-1} (\Lambda - \Delta)$, with $\Delta = \operatorname{diag} \Lambda$, differ on the diagonal
# by exactly $\Delta$. What stays is caused by correlation: the sum of the squared correlations with the other columns.
# For columns that stand alone STL removes most of the noise; for the serum columns, whose posterior mean-field
# gets most wrong, it removes least.
#
# </details>
