# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11 · Gaussian likelihoods and the variance trap
#
# Here is a training curve to be proud of. A VAE with a Gaussian decoder learns to model handwritten digits. Its ELBO
# rises, and so does the ELBO of digits it has never seen, step for step. It passes zero. It goes on rising, in a straight
# line, until the computer runs out of numbers. Of its last 120 nats, two are real.
#
# **A Gaussian decoder puts out a mean and a variance. What does the variance do to the bound, and what keeps it from
# making the bound worthless?**

# %% jupyter={"source_hidden": true} tags=["remove-cell", "setup"]
import importlib.util

from IPython import get_ipython

if (shell := get_ipython()) is not None:
    if importlib.util.find_spec("vi_tutorial") is None:  # on Colab, say
        shell.run_line_magic("pip", "install --quiet git+https://github.com/vi-tutorial/vi_tutorial")
    shell.run_line_magic("matplotlib", "inline")  # figures below their cells, whatever MPLBACKEND says

# %% mystnb={"image": {"alt": "The map of the series, six boxes joined by arrows: KL, ELBO, phi, theta, networks, what breaks. The box of networks is lit."}}
from vi_tutorial import plots

plots.chain("networks")

# %% [markdown]
# *Before this:* [chapter 10](10_the_variational_autoencoder.ipynb), the VAE with a Bernoulli decoder; of [chapter
# 05](05_em_is_coordinate_ascent.ipynb) it helps to remember the mixture component that sat down on one datapoint. *Reading time:*
# 30 minutes; the cells run in about half a minute.
#
# **You will be able to**
#
# - **explain** why a likelihood of real numbers can have no upper bound, and **build** one that has none;
# - **compute** the best shared variance, and say which squared error it is;
# - **translate** a KL weight β into a variance, and say when that does not work;
# - **choose** a remedy, and **compare** models in the same units.

# %%
import copy
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import integrate, optimize, stats
from torch import nn
from torch.distributions import Normal, kl_divergence

from vi_tutorial import checks, data, families, models, training
from vi_tutorial.distributions import diagonal_normal, discretised_logistic, discretised_normal
from vi_tutorial.elbo import draw, elbo
from vi_tutorial.exercises import ch11
from vi_tutorial.networks import (
    DiagonalNormalHead,
    DiscretisedLogisticHead,
    DiscretisedNormalHead,
    NormalHead,
    mlp,
)

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # the matrices are small: a second thread would mostly wait for the first
_ = torch.manual_seed(0)

# %% [markdown]
# ## A curve that is too good
#
# The data are the digits again, now as they come: 64 pixels, each a count of ink from 0 to 16. The decoder says
#
# $$p_\theta(x \mid z) = \mathcal{N}\big(x \mid f(z), \operatorname{diag} g^2\big), \tag{11.1}$$
#
# with a network $f$ for the means and, for each pixel, a standard deviation $g_d$ that is learned. Ink is never negative, so
# the means pass through a ReLU, $\max(0, \cdot)$. The encoder is the usual one. One thing is hurried: σ learns at 20 times the networks' rate, so that the trap closes within 800 steps; at their rate it would take many times as long.

# %%
digits = data.digits()
train, test = digits.train, digits.test  # counts, 0 to 16
N, D, L = len(train), 64, 8
average, spread = train.mean(0), train.std(0)


def new_encoder():
    """q(z | x) for counts; smaller first weights, because counts are larger than one."""
    network = mlp(D, 64, 2 * L)
    with torch.no_grad():
        network[0].weight /= 8
    return DiagonalNormalHead(network, L)


decoder = NormalHead(nn.Sequential(*mlp(L, 64, D), nn.ReLU()), D, scale=spread + 1)
model, q = models.LatentVariableModel(families.standard_normal(L), decoder), new_encoder()


# %%
def bound(x, num_samples=1):
    return elbo(draw(model.given(x), q(x), num_samples).log_weight)


def adam_for(model, q, scale_rate):
    """Adam; the standard deviations have a learning rate of their own."""
    networks = [*model.likelihood.network.parameters(), *q.parameters()]
    return torch.optim.Adam([{"params": networks}, {"params": [decoder.log_scale], "lr": scale_rate}], lr=5e-3)


kept = {}  # the model after so many steps, to be judged later
history = training.fit(
    bound,
    adam_for(model, q, scale_rate=0.1),
    train,
    num_steps=800,
    batch_size=100,
    validate=lambda: bound(test),
    callback=lambda step: kept.update({step: copy.deepcopy((model, q))}) if step in (400, 800) else None,
)

# %% [markdown]
# Before you look: the ELBO is a lower bound of a *log density*. Which of these would surprise you: that it is positive? That
# it still rises after 800 steps? That the held-out digits agree?

# %% mystnb={"image": {"alt": "Left, the ELBO over eight hundred training steps: it climbs along a straight line through zero and far beyond; dots for held-out digits lie on the same line. Right, an eight by eight image of the learned log standard deviations: three pixels at the left and right edges are white, far below all others."}}
held_out = np.array([value for _, value in history.validation])
slope = (held_out[-1] - held_out[3]) / 400  # nats per step, from step 400 to step 800
assert abs(slope - 0.3) < 0.03
sigma = decoder.scale.detach()
print(f"ELBO of held-out digits after 100 steps {held_out[0]:.0f}, after 800 about {round(held_out[-1], -1):.0f} nats")
print(f"rise per step: {slope:.1f} nats")
print("pixels with a standard deviation below 1e-20:", torch.nonzero(sigma < 1e-20).flatten().tolist())
with plots.style():
    fig, (ax, grid) = plt.subplots(1, 2, figsize=(7, 3.3), width_ratios=[2, 1])
    plots.history(history, ax)
    ax.axhline(0, color=plots.COLOURS.muted, linewidth=1)
    ax.set_ylim(-180, 160)
    ax.set_title("Held-out digits rise along")
    picture = grid.imshow(sigma.log10().reshape(8, 8), vmin=-8, vmax=1, cmap="gray_r")
    grid.set(xticks=[], yticks=[])
    grid.grid(False)
    fig.colorbar(picture, ax=grid, label="log10 of σ, cut at −8", shrink=0.7)
    grid.set_title("Three pixels did it")

# %% [markdown]
# Pixels 0, 32 and 39 are corners and edges that no writer's pen ever reached: 0 in every digit, also in those held out. The
# ReLU gives them a mean of exactly 0. What is left of their log density is
#
# $$\log \mathcal{N}(0 \mid 0, \sigma^2) = -\tfrac12 \log 2\pi - \log \sigma, \tag{11.2}$$
#
# which has no maximum. Its gradient by $\log \sigma$ is −1, at every σ that the computer can hold. Adam walks 0.1 per step, three pixels make
# 0.3 nats per step, and that is the slope. **The bound is valid and the curve is honest. It is the quantity that is
# worthless:** a density may be as high as it likes on a set of zero width, and the data lie on such a set.
#
# Held-out data do not protect us, since they lie on the same set. Nor does patience. Let us walk faster, to the end:

# %%
constant = [d for d in range(D) if (train[:, d] == train[0, d]).all()]
assert constant == torch.nonzero(sigma < 1e-20).flatten().tolist()
assert (test[:, constant] == 0).all()

try:
    training.fit(bound, adam_for(model, q, scale_rate=1.0), train, num_steps=3000, batch_size=100)
except training.DivergedError as error:
    where = decoder.scale.detach().argsort()[:3].sort().values
    print("DivergedError:", "no single datapoint" if not error.datapoints else "one datapoint", "is to blame")
    print("the three smallest standard deviations belong to pixels", where.tolist())

# %% [markdown]
# Two things can end it. Either one draw of $z$ makes one mean leave 0 by a hair, and that hair is divided by σ; or $\sigma^2$
# becomes zero in the computer, and 0/0 is NaN. `training.fit` says at which step and for which
# datapoints. Here it names no datapoint: all rows are bad at once, so it is a *parameter*. The smallest scales tell which.
#
# The obvious mend is to drop the constant pixels, as [chapter 06](06_learning_theta_and_phi.ipynb) did for factor analysis. Is the trap then gone?
#
# ## No ceiling, in one dimension
#
# It is not. It needs no constant column. It needs *one* number that the data contain, and a decoder that may say "here I am
# quite sure". We take Old Faithful: the minutes between 272 eruptions. They vary from 43 to 96.
#
# The decoder has one latent number and **two hidden units**, each a ramp that is −1 on the left, +1 on the right, and straight
# between (`Hardtanh`). The first unit moves the mean from $m = 71$ to $x_1 = 78$ while $z$ goes from $a = 1$ to $b = 1.25$; the
# second moves the standard deviation from $S = 13.6$ to $s$ while $z$ goes from $b$ to $c = 1.5$.

# %%
minutes = data.old_faithful()[:, 1:]
fit_half, other_half = minutes[::2], minutes[1::2]
m, S, x_1, a, b, c = 71.0, 13.6, 78.0, 1.0, 1.25, 1.5


def spiked_model(s):
    """One latent, two hidden units: N(m, S²) for z < a, and N(x_1, s²) for z > c."""
    network = mlp(1, 2, 2, activation=nn.Hardtanh)
    with torch.no_grad():
        network[0].weight[:] = 8.0  # each ramp is 0.25 wide
        network[0].bias[:] = torch.tensor([-9.0, -11.0])
        network[2].weight[:] = 0.5 * torch.diag(torch.tensor([x_1 - m, math.log(s / S)]))
        network[2].bias[:] = 0.5 * torch.tensor([x_1 + m, math.log(s * S)])
    return models.LatentVariableModel(families.standard_normal(1), DiagonalNormalHead(network, 1)).requires_grad_(False)


# %% [markdown]
# Now bound $\log p_\theta(x)$ from below by throwing most of the integral away. For the datapoints equal to $x_1$ keep only $z > c$:
#
# $$\log p_\theta(x_1) = \log \int p(z)\, p_\theta(x_1 \mid z)\, dz \;\ge\; \log P(z > c) - \tfrac12 \log 2\pi - \log s
#   \;\xrightarrow{\;s \to 0\;}\; \infty. \tag{11.3}$$
#
# For every other datapoint keep only $z < a$, where nothing has happened:
#
# $$\log p_\theta(x_n) \;\ge\; \log P(z < a) + \log \mathcal{N}(x_n \mid m, S^2), \quad\text{whatever } s. \tag{11.4}$$
#
# One datapoint gains without limit, and the others lose at most $-\log P(z < a) = 0.17$ nats each. So the sum has no upper
# bound. Mattei & Frellsen (2018) prove this for deep latent variable models with a flexible Gaussian decoder; ours is a
# small case that one can draw. We compute the exact evidence on a fine grid of $z$ and set (11.3) and (11.4) beside it.

# %%
z_grid = torch.linspace(-8, 8, 16_001)[:, None, None]
log_width = math.log(z_grid[1, 0, 0] - z_grid[0, 0, 0])


def evidence(s, x, every=1):
    """log p(x) by adding up the joint over the grid, or over every so-many-th of its points."""
    z = z_grid[::every]
    return spiked_model(s).given(x)(z.expand(-1, len(x), -1)).logsumexp(0) + log_width + math.log(every)


def floor_below(s, x):
    """(11.3) for the datapoints equal to x_1, (11.4) for the others."""
    x = x[:, 0].numpy()
    sure = stats.norm.logsf(c) - 0.5 * math.log(2 * math.pi) - math.log(s)
    return torch.as_tensor(np.where(x == x_1, sure, stats.norm.logcdf(a) + stats.norm.logpdf(x, m, S)))


log_ratio = np.array([0.5, 1, 2, 3, 5, 8, 12, 20, 40, 70, 100])  # log(S / s)
scales = S * np.exp(-log_ratio)
values, counts = fit_half.unique(return_counts=True)
at_values = torch.stack([evidence(s, values[:, None]) for s in scales])
below = torch.stack([floor_below(s, values[:, None]) for s in scales])

# %%
no_mass = below - stats.norm.logsf(c) * (values == x_1)
variance_for_scale = below - torch.as_tensor(np.log(scales))[:, None] * (values == x_1)
checks.inequality(
    "11.2a",
    "log p(x₁) ≥ log P(z > c) − log s − ½ log 2π → ∞, and the other log p(xₙ) ≥ log P(z < a) + log N(xₙ | m, S²)",
    below,
    at_values,
    wrong={"the mass of the region forgotten": no_mass, "s² in place of s": variance_for_scale},
)
share = (fit_half == x_1).double().mean()
mean_evidence = at_values @ counts.double() / len(fit_half)
rise = (mean_evidence[-1] - mean_evidence[-2]) / (log_ratio[-1] - log_ratio[-2])
checks.quadrature(
    "11.2b",
    "far down, the mean log p rises by the share of the datapoints at x₁, in nats per nat of log(1/s)",
    share,
    rise,
    wrong={"one datapoint's share": 1 / len(fit_half), "two log s, as for a variance": 2 * share},
    tolerance=1e-3,
)

# %% [markdown]
# And the ELBO, with a Normal $q$? A Normal has tails, and this hurts it: if $q(z \mid x_n)$ of *another* datapoint puts any mass on
# $z > c$, that mass is charged $(x_n - x_1)^2 / 2s^2$, which explodes. So each other $q$ must step aside as the spike grows. Take
# $q = \mathcal{N}(0, \tau^2)$ with $\tau = \tfrac12 (1 + \log \tfrac{S}{s})^{-1/2}$ for them, and $\mathcal{N}(3, 0.25^2)$ for $x_1$. The mass above
# $c$ then falls faster than $s^2$, while the KL to the prior grows only like $\log \tfrac{1}{\tau} \approx \tfrac12 \log \log \tfrac1s$. A gain of $\log \tfrac1s$ pays for that with
# ease. Hence the ELBO has no ceiling either.


# %% mystnb={"image": {"alt": "Four curves over the logarithm of S over s, from 0 to 100. The analytic lower bound is a straight rising line; the exact mean log evidence lies just above it, the ELBO below, parallel in the end; the held-out mean evidence rises as well."}}
def elbo_on_grid(s, k):
    """The mean ELBO with these q, by adding up over the grid; k = log(S / s)."""
    is_spike = values == x_1
    q = Normal(torch.where(is_spike, 3.0, 0.0), torch.where(is_spike, 0.25, 0.5 / math.sqrt(1 + k)))
    log_q = q.log_prob(z_grid[..., 0])
    log_weight = spiked_model(s).given(values[:, None])(z_grid.expand(-1, len(values), -1)) - log_q
    return ((log_q + log_width).exp() * log_weight).sum(0) @ counts.double() / len(fit_half)


mean_elbo = torch.stack([elbo_on_grid(s, k) for s, k in zip(scales, log_ratio, strict=True)])
mean_below = below @ counts.double() / len(fit_half)
held_share = (other_half == x_1).double().mean()
other_values, other_counts = other_half.unique(return_counts=True)
held_evidence = [evidence(s, other_values[:, None]) @ other_counts.double() / len(other_half) for s in scales]
held_evidence = torch.stack(held_evidence)
assert (mean_elbo < mean_evidence).all()
assert (mean_evidence - mean_below)[5:].max() < 0.1
assert (mean_elbo[5:].diff() > 0).all()
assert (held_evidence[3:].diff() > 0).all()
print(f"share of datapoints at 78 minutes: {100 * share:.1f} %, in the half not used: {100 * held_share:.1f} %")
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 3.4))
    ax.plot(log_ratio, mean_evidence, color=plots.COLOURS.evidence, label="exact mean log p(x)")
    ax.plot(log_ratio, mean_below, ":", color=plots.COLOURS.p, linewidth=3, label="analytic lower bound")
    ax.plot(log_ratio, mean_elbo, "--", color=plots.COLOURS.q, label="ELBO, Normal q")
    ax.plot(log_ratio, held_evidence, "-.", color=plots.COLOURS.accent, label="held-out mean log p(x)")
    ax.set(xlabel="log(S / s): how far the spike has narrowed (nats)", ylabel="nats per datapoint")
    ax.legend()
    ax.set_title("Whatever ceiling you name, some s goes through it")

# %% [markdown]
# The held-out half rises too, because minutes are *rounded*, and 78 is a favourite in both halves. With a spike on a value
# the other half lacks, its curve would lie flat in the end: a gap between the curves, and a warning. Here there is none. (The
# bound lies less than 0.1 nats below the exact curve.)
#
# Play the film: the density of the model, as the spike narrows. However narrow it is, its *area* is at most $P(z > b) = 0.11$. The
# likelihood looks at its height.

# %% mystnb={"image": {"alt": "Animation in thirteen frames. Left, the model's density of minutes on a log axis: a broad hill, on which a spike at 78 becomes narrower and higher while the hill stays. Right, the mean log density of the two halves, which in the end climb with the spike."}} tags=["nbval-ignore-output"]
ks = np.linspace(0, 12, 13)
axis = torch.cat([torch.linspace(40, 100, 121), x_1 + torch.linspace(-1, 1, 81) ** 3]).sort().values
film = [evidence(S * math.exp(-k), axis[:, None], every=10).exp() for k in ks]
climb = np.array([[evidence(S * math.exp(-k), half, every=10).mean() for half in (fit_half, other_half)] for k in ks])


def scene(fig, index):
    left, right = fig.subplots(1, 2)
    left.plot(axis, film[index], color=plots.COLOURS.p)
    left.set(yscale="log", ylim=(1e-5, 3e3), xlabel="minutes", ylabel="density (1 / minute)")
    left.set_title(f"s = {S * math.exp(-ks[index]):.4f} minutes")
    for column, name, line in ((0, "used", "-"), (1, "held out", "--")):
        right.plot(ks[: index + 1], climb[: index + 1, column], line, marker="o", markersize=3, label=name)
    right.set(xlim=(-0.3, 12.3), ylim=(-4.15, -3.5), xlabel="log(S / s)", ylabel="mean log p(x) (nats)")
    right.legend(loc="upper left")


plots.animate(
    scene,
    len(ks),
    "Animation: a spike at 78 minutes grows on the model's density, and the mean log densities of both halves rise with it",
    name="the variance trap",
    figsize=(7, 3.2),
)

# %% [markdown]
# ## Four ways out
#
# The trap has two parts: a likelihood that may be as narrow as it likes, and data known to infinitely many digits. One can
# mend either. Four remedies, each with what it guarantees.
#
# **1. A floor.** Let $\sigma_d \ge \sigma_{\min}$. Then $\log p_\theta(x) \le -\tfrac{D}{2} \log 2\pi \sigma_{\min}^2$: a ceiling. But what we then measure is a
# density whose height depends on the floor.
#
# **2. Noise on the data.** Add fresh $\epsilon \sim \mathcal{N}(0, s^2 I)$ to each $x$, at each visit. For any density $p$, the expected log density is at
# most minus the entropy of what is scored (that is KL ≥ 0), and noise cannot lower an entropy: $h(x + \epsilon) \ge h(x + \epsilon \mid x) = h(\epsilon)$.
# Therefore
#
# $$\mathbb{E} \log p(x + \epsilon) \;\le\; -h(x + \epsilon) \;\le\; -h(\epsilon) = -\tfrac{D}{2} \log 2\pi e s^2. \tag{11.5}$$
#
# Whatever the decoder does, with the true expectation over the noise. No architecture is involved. (For one dimension it is
# $-\tfrac12 \log 2 \pi e s^2$.) Let us try to break it with mixtures of spikes on Old Faithful's numbers, of any width, with and without the
# noise in the score.

# %%
node, weight = np.polynomial.hermite_e.hermegauss(200)
weight = weight / weight.sum()  # the expectation under N(0, 1)
waits = minutes[:, 0].numpy()
wait_values, wait_counts = np.unique(waits, return_counts=True)
wait_probs = wait_counts / len(waits)


def spikes_score(width, noise):
    """E log p(x + noise) for p = a spike of this width on every datapoint."""
    points = wait_values[:, None] + noise * node
    log_p = stats.norm.logpdf(points[..., None], wait_values, width) + np.log(wait_probs)
    return wait_probs @ (torch.as_tensor(log_p).logsumexp(-1).numpy() @ weight)


widths = np.array([0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 2.0])
ceiling = -0.5 * math.log(2 * math.pi * math.e * 0.1**2)
checks.inequality(
    "11.4a",
    "E log p(x + ε) ≤ −½ log 2πe s², for spikes of any width on the data",
    np.array([spikes_score(width, 0.1) for width in widths]),
    ceiling,
    wrong={"the data scored without the noise": np.array([spikes_score(width, 0.0) for width in widths])},
)
entropy = stats.entropy(wait_probs)
checks.quadrature(
    "11.4b",
    "the best p for values far apart has E log p(x + ε) = −H(x) − ½ log 2πe s²",
    ceiling - entropy,
    spikes_score(0.1, 0.1),
    wrong={
        "the entropy of the values forgotten": ceiling,
        "the e forgotten: the height of the noise's peak": ceiling + 0.5 - entropy,
    },
)

# %% [markdown]
# **3. Dequantisation.** The data are counts, so say so. Add $u$, uniform on $[0, 1)$ in each pixel, fresh at each visit. A
# density $p$ of reals gives counts the probability $P(x) = \int_{[0,1)^D} p(x + u)\, du$, and by Jensen's inequality (Theis, van den Oord & Bethge 2016)
#
# $$\mathbb{E}_u \log p(x + u) \;\le\; \log \mathbb{E}_u\, p(x + u) = \log P(x) \;\le\; 0. \tag{11.6}$$
#
# A density of dequantised data is thus a lower bound of a log *probability*, and may be compared with one. It is the ELBO's
# own trick, played on the data.
#
# **4. A discretised likelihood.** Use $P$ itself, pixel by pixel: give each count the mass of its cell,
#
# $$P(x_d = k \mid z) = F\big(\tfrac{k + 1/2 - f_d}{g_d}\big) - F\big(\tfrac{k - 1/2 - f_d}{g_d}\big), \tag{11.7}$$
#
# with $F$ the distribution function of a Normal or a logistic variable, and the cells at 0 and 16 taking the tails. It is a
# probability, so its logarithm is never above 0, in every sample, for every σ.


# %%
def cell(k, loc, scale):
    """(11.7) for the Normal, in the open."""
    upper = np.where(k == 16, 1.0, stats.norm.cdf((k + 0.5 - loc) / scale))
    lower = np.where(k == 0, 0.0, stats.norm.cdf((k - 0.5 - loc) / scale))
    return upper - lower


k = torch.arange(17.0)[:, None].expand(-1, 3)
loc, scale = torch.tensor([-0.8, 7.3, 15.9]), torch.tensor([2.0, 0.6, 3.5])
P = discretised_normal(loc, scale, low=0, high=16).base_dist.log_prob(k).exp()
assert np.allclose(P, cell(k.numpy(), loc.numpy(), scale.numpy()), atol=1e-12)
inner_only = stats.norm.cdf((16.5 - loc) / scale) - stats.norm.cdf((-0.5 - loc) / scale)
checks.enumeration(
    "11.3a",
    "the probabilities of the counts 0 to 16 sum to one",
    P.sum(0),
    torch.ones(3),
    wrong={
        "the tails left out": inner_only,
        "the density at the counts": Normal(loc, torch.tensor([2.0, 0.2, 3.5])).log_prob(k).exp().sum(0),
    },
)

# %%
tiny = torch.logspace(-150, 2, 39)[:, None, None].expand(-1, 17, 17)  # from 1e-150 to 100 counts
on_count = torch.arange(17.0)[None, :, None].expand_as(tiny)  # the location, at a count
x = torch.arange(17.0).expand_as(tiny)
both = torch.stack(
    [make(on_count, tiny, 0, 16).base_dist.log_prob(x) for make in (discretised_normal, discretised_logistic)]
)
density = Normal(on_count, tiny).log_prob(x)
checks.inequality(
    "11.3b",
    "log P(x) ≤ 0 for the discretised Normal and logistic at every scale from 1e-150 to 100",
    both,
    0.0,
    wrong={"the density in place of the cell's mass": torch.stack([density, density])},
)

# %% [markdown]
# And (11.6): for any Normal, the dequantised score must not exceed the mass of the cell $[k, k + 1)$. Gauss–Legendre nodes take
# the expectation over $u$, SciPy's distribution function the mass. The mistake to exclude is the opening's: to score the count as it is.
# And how much does the bound lose at best? A uniform variable has variance 1/12, and the best Normal for it pays a fixed price.

# %%
u, u_weight = np.polynomial.legendre.leggauss(400)
u, u_weight = (u + 1) / 2, u_weight / 2
locs, widths = np.meshgrid(np.linspace(-1.5, 2.5, 9), [0.05, 0.2, 0.5, 1.0, 3.0])
mass = stats.norm.cdf((1 - locs) / widths) - stats.norm.cdf(-locs / widths)
log_mass = np.log(np.maximum(mass, 1e-300))
seen = mass > 1e-12  # cells whose mass double precision resolves
dequantised_score = stats.norm.logpdf(u, locs[..., None], widths[..., None]) @ u_weight
checks.inequality(
    "11.6",
    "E_u log p(k + u) ≤ log P(k): a dequantised score bounds a log probability from below",
    dequantised_score[seen],
    log_mass[seen],
    wrong={"the count scored as it is": stats.norm.logpdf(0, locs, widths)[seen]},
    slack=1e-12,
)
best = optimize.minimize(lambda t: -stats.norm.logpdf(u, t[0], math.exp(t[1])) @ u_weight, [0.2, 0.0], tol=1e-10)
checks.independent(
    "11.8",
    "the best Normal for one dequantised count has E_u log p(k + u) = −½ log(2πe/12)",
    -0.5 * math.log(2 * math.pi * math.e / 12),
    -best.fun,
    wrong={"zero, as for a cell with all the mass": 0.0, "the e forgotten": -0.5 * math.log(2 * math.pi / 12)},
    tolerance=1e-6,
)

# %% [markdown]
# ## One variance for all, and which error it is
#
# A fifth proposal is popular: let all pixels share *one* variance, and set it to its best value at each step. Since
#
# $$\mathbb{E}_q \log \mathcal{N}\big(x \mid f(z), \sigma^2 I\big) = -\frac{D}{2} \log 2\pi\sigma^2 - \frac{1}{2\sigma^2}\, \mathbb{E}_q \lVert x - f(z) \rVert^2,$$
#
# the derivative by $\sigma^2$ of the mean over the data vanishes at
#
# $$\hat\sigma^2 = \frac1D\, \mathbb{E}_{p_D} \mathbb{E}_{q} \lVert x - f(z) \rVert^2, \qquad
#   \text{where the expected negative log-likelihood is } \frac{D}{2} \log\big(2\pi e\, \hat\sigma^2\big). \tag{11.8}$$
#
# This is the **optimal σ** of Rybkin, Daniilidis & Levine (2021). Mind which error it is: the expectation over $q$ stays
# *outside* the square. The error at the posterior mean leaves out how much the reconstruction wobbles as $z$ varies, and is
# too small. In a linear model one sees this exactly: at the maximum likelihood of probabilistic PCA, $\sigma^2$ is the mean of the
# discarded eigenvalues, and (11.8) has to give the same.

# %%
pca = models.probabilistic_pca_mle(train, latent_dim=L).requires_grad_(False)
posterior, W = pca.posterior(train), pca.weight
at_mean = (train - pca.likelihood(posterior.mean).mean).square().sum(-1).mean()
wobble = torch.trace(W @ posterior.covariance_matrix[0] @ W.T)  # the same for every digit
discarded = np.linalg.eigvalsh(np.cov(train.numpy().T, bias=True))[: D - L]
checks.exact(
    "11.1a",
    "E_q‖x − f(z)‖²/D over the data = the mean discarded eigenvalue, at PPCA's maximum likelihood",
    (at_mean + wobble) / D,
    discarded.mean(),
    wrong={
        "the error at the posterior mean": at_mean / D,
        "the error of plain PCA, divided by D": discarded.sum() / D,
    },
)

# %% [markdown]
# Now a network. From here on we train on dequantised counts, and one helper serves all experiments. It starts the means at
# the average digit, and lowers the learning rate for the last third.


# %%
def dequantise(x):
    """Fresh uniform noise at each call."""
    return x + torch.rand_like(x)


def as_they_are(x):
    return x


def learn(head, num_numbers, noise=dequantise, num_steps=400):
    """A VAE with this decoder head on top of a network with one hidden layer; learned and then frozen."""
    _ = torch.manual_seed(1)
    network = mlp(L, 64, num_numbers)
    with torch.no_grad():
        network[-1].bias[:D] = average
        if num_numbers > D:  # log scales
            network[-1].bias[D:] = (spread + 0.3).log()
            network[-1].weight[D:] /= 4
    model, q = models.LatentVariableModel(families.standard_normal(L), head(network)), new_encoder()
    optimiser = torch.optim.Adam([p for p in (*model.parameters(), *q.parameters()) if p.requires_grad], lr=5e-3)

    def slower(step):
        optimiser.param_groups[0]["lr"] = 5e-3 if step < 2 * num_steps / 3 else 1e-3

    objective = lambda x: elbo(draw(model.given(noise(x)), q(x), 1).log_weight)  # noqa: E731
    _ = training.fit(objective, optimiser, train, num_steps=num_steps, batch_size=100, callback=slower)
    return model.requires_grad_(False), q.requires_grad_(False)


model, q = learn(lambda network: NormalHead(network, D, scale=torch.tensor(3.0)), D)

# %% [markdown]
# With the networks learned, hold them still and look at the expected negative log-likelihood as a function of σ alone. The
# oracle is a numerical search with SciPy's density.

# %%
num_samples = 20
x = dequantise(train)
f_z = model.likelihood(q(train).sample((num_samples,))).mean
at_draws = (x - f_z).square().sum(-1).mean() / D
at_posterior_mean = (x - model.likelihood(q(train).mean).mean).square().sum(-1).mean() / D


def expected_nll(log_scale):
    return -D * stats.norm.logpdf(x.numpy(), f_z.numpy(), np.exp(log_scale)).mean()


search = optimize.minimize_scalar(expected_nll, bounds=(-1, 2), method="bounded", options={"xatol": 1e-7})
checks.independent(
    "11.1b",
    "the least expected negative log-likelihood over a shared σ is D/2 · log(2πe σ̂²)",
    D / 2 * torch.log(2 * math.pi * math.e * at_draws),
    search.fun,
    wrong={
        "the error at the posterior mean": D / 2 * torch.log(2 * math.pi * math.e * at_posterior_mean),
        "the e forgotten": D / 2 * torch.log(2 * math.pi * at_draws),
        "the error summed over pixels": D / 2 * torch.log(2 * math.pi * math.e * D * at_draws),
    },
    tolerance=1e-8,
)
assert at_posterior_mean < 0.95 * at_draws

# %% [markdown]
# In this VAE, too, the error at the posterior mean is more than 5 % too small. So the trick saves tuning σ. **Does it mend the trap? No.** Put $\hat\sigma^2$ into the objective and it reads $-\tfrac{D}{2} \log 2\pi e \hat\sigma^2 - \mathrm{KL}$:
# if the decoder can reconstruct the data perfectly, $\hat\sigma \to 0$ and the bound goes to infinity. Only a lack of capacity stands
# in the way. (The KL grows too, but only by one $\log \tfrac1\sigma$ for each latent in use.) Six digits and five latents are enough, with a *linear* decoder: a plane of five dimensions passes through
# any six points. The remaining $D - L = 59$ directions hold nothing but noise to be shrunk, and each halving of σ gains $59 \log 2$ nats.

# %%
six = train[:6]
plane = torch.linalg.svd(six - six.mean(0), full_matrices=False)


def through_six(s):
    """The best loadings for a given σ: probabilistic PCA's, with σ chosen by hand."""
    eigenvalues = plane.S[:5] ** 2 / 6
    weight = plane.Vh[:5].T * (eigenvalues - s**2).sqrt()
    return models.LinearGaussian(weight, six.mean(0), torch.tensor(s)).requires_grad_(False)


gain = through_six(1e-4).log_evidence(six).mean() - through_six(2e-4).log_evidence(six).mean()
checks.independent(
    "11.7",
    "six digits, five latents, one shared σ: each halving of σ raises the mean log p(x) by (D − L) log 2",
    (D - 5) * math.log(2),
    gain,
    wrong={"all D directions": D * math.log(2), "the L latents": 5 * math.log(2)},
    tolerance=1e-6,
)
try:
    models.probabilistic_pca_mle(six, latent_dim=5)
except ValueError as error:
    reason = "the likelihood has no upper bound"
    print("probabilistic_pca_mle refuses these data:", reason if reason in str(error) else error)

# %% [markdown]
# ## β is a variance
#
# Many trainers put a weight β before the KL: $\mathcal{L}_\beta = \mathbb{E}_q \log p_\theta(x \mid z) - \beta\, \mathrm{KL}$. With a Normal of *fixed* variance this is no new
# objective. Divide by β; then $1/2\sigma^2$ becomes $1/2\beta\sigma^2$, which is what a decoder with variance $\beta\sigma^2$ has. Collect the constants:
#
# $$\mathcal{L}_\beta(\sigma^2) = \beta\, \mathcal{L}_1(\beta\sigma^2) + \frac{D}{2} \big[ \beta \log(2\pi\beta\sigma^2) - \log(2\pi\sigma^2) \big]. \tag{11.9}$$
#
# The last term knows neither the networks nor the data. So both sides have the same gradients by the weights, up to
# the factor β: **to tune β at fixed σ is to tune σ at β = 1.** We check it where nothing is linear: one latent, three
# pixels, $f(z) = (\sin z, z, z^2)$. The left side by adaptive quadrature and SciPy, the right by Gauss–Hermite and torch.

# %%
beta, var, x_3, mu, tau = 4.0, 0.3, np.array([0.2, -0.5, 1.5]), 0.7, 0.4


def beta_integrand(z, beta=beta, var=var):
    log_lik = stats.norm.logpdf(x_3, [np.sin(z), z, z**2], math.sqrt(var)).sum()
    log_q = stats.norm.logpdf(z, mu, tau)
    return math.exp(log_q) * (log_lik - beta * (log_q - stats.norm.logpdf(z)))


by_quad = integrate.quad(beta_integrand, mu - 15 * tau, mu + 15 * tau, epsabs=1e-12, limit=200)[0]
q_z = diagonal_normal(torch.tensor([mu]), torch.tensor([tau]))
z = mu + tau * torch.as_tensor(node)


def plain_elbo(var):
    """The ordinary ELBO with this variance."""
    means = torch.stack([z.sin(), z, z**2], -1)
    log_lik = diagonal_normal(means, torch.full((3,), math.sqrt(var))).log_prob(torch.as_tensor(x_3))
    return (torch.as_tensor(weight) * log_lik).sum() - kl_divergence(q_z, families.standard_normal(1)())


def from_beta_one(new_var):
    return beta * plain_elbo(new_var) + 1.5 * (beta * math.log(2 * math.pi * new_var) - math.log(2 * math.pi * var))


checks.quadrature(
    "11.5a",
    "𝓛_β(σ²) = β 𝓛₁(βσ²) + D/2 · [β log 2πβσ² − log 2πσ²]",
    from_beta_one(beta * var),
    by_quad,
    wrong={
        "σ²/β in place of βσ²": from_beta_one(var / beta),
        "the constant forgotten": beta * plain_elbo(beta * var),
        "σ scaled by β, σ² by β²": from_beta_one(beta**2 * var),
    },
)

# %% [markdown]
# The famous sum of squares plus KL, without the ½, is β = 1 with $\sigma^2 = ½$ ([chapter 09](09_distributions_from_networks.ipynb)); on pixels in
# $[0, 1]$ that is wider than the data, and a small β, found by search, is a way to undo it.
#
# **If σ is learned, β is not free.** The last term of (11.9) depends on σ, so it is no constant any more. Put $\hat\sigma^2$ of (11.8) in: the
# objective is $-\tfrac{D}{2} \log 2\pi e\hat\sigma^2 - \beta\,\mathrm{KL}$, whose reconstruction term is not scaled, and β now is a true change of
# the trade-off between the two terms; for β < 1 it need not be a bound. In the linear VAE one can say exactly what happens. At given σ the best
# weights are those of variance $\beta\sigma^2$, whose expected squared error is $\beta\sigma^2$ in each of the $L$ directions in use, and
# $\lambda_i$ in the others. So (11.8) reads
#
# $$D \sigma^2 = L \beta \sigma^2 + \sum_{i > L} \lambda_i \quad\Rightarrow\quad
#   \hat\sigma^2(\beta) = \frac{\sum_{i > L} \lambda_i}{D - \beta L}, \tag{11.10}$$
#
# as long as all $L$ directions stay in use. The oracle climbs $\mathcal{L}_\beta$ over $W$, σ, and a linear encoder, and knows none of this.

# %%
covariance = torch.cov(train.T, correction=0)
few, weight_on_kl = 3, 2.0
_ = torch.manual_seed(2)
W = nn.Parameter(0.5 * torch.randn(D, few))
B = nn.Parameter(0.05 * torch.randn(few, D))
log_s, log_sigma = nn.Parameter(torch.zeros(few)), nn.Parameter(torch.tensor(1.0))


def weighted_bound(cov):
    """L_beta averaged over the data: they enter through their covariance. q(z | x) = N(B (x - mean), diag s²)."""
    residual = torch.eye(D) - W @ B
    error = torch.trace(residual @ cov @ residual.T) + (W.square().sum(0) * (2 * log_s).exp()).sum()
    log_lik = -D / 2 * math.log(2 * math.pi) - D * log_sigma - 0.5 * error * (-2 * log_sigma).exp()
    kl = 0.5 * ((2 * log_s).exp() + torch.diagonal(B @ cov @ B.T) - 1 - 2 * log_s).sum()
    return log_lik - weight_on_kl * kl


optimiser = torch.optim.LBFGS(
    [W, B, log_s, log_sigma],
    max_iter=400,
    history_size=200,
    line_search_fn="strong_wolfe",
    tolerance_grad=1e-9,
    tolerance_change=1e-14,
)
_ = training.fit(weighted_bound, optimiser, covariance, num_steps=1)

# %%
left_over = np.linalg.eigvalsh(covariance.numpy())[: D - few].sum()
checks.independent(
    "11.5b",
    "the linear VAE with learned σ and KL weight β ends at σ² = Σ_{i>L} λ_i / (D − βL)",
    left_over / (D - weight_on_kl * few),
    (2 * log_sigma).exp(),
    wrong={
        "β without influence, as at β = 1": left_over / (D - few),
        "β times the σ² of β = 1": weight_on_kl * left_over / (D - few),
        "the β = 1 solution divided by β": left_over / (D - few) / weight_on_kl,
    },
    tolerance=1e-4,
)

# %% [markdown]
# ## The remedies, measured
#
# Same digits, same encoder, same 400 steps, one seed; only the decoder and what is done to the data differ. What a
# trainer's log would show is the model's **own score**: the held-out ELBO of whatever it was fed. Own scores are in different
# units: densities of counts plus noise, densities of raw counts, probabilities. (Even the unit of a pixel matters: scale
# the counts to $[0, 1]$ by 1/17 and every density is higher by $D \log 17 = 181$ nats. Nothing has been learned.)
#
# One thing can be asked of all of them: the **probability of the held-out counts**. Let the Gaussian decoder draw, and round its draw
# to a count: down, if it was trained on counts + $u$, and to the nearest, if on raw counts. What falls outside goes to 0 or 16. This is
# a model of counts, with cells (11.7) made of the decoder's own $f$ and $g$. No new bound is needed:
#
# $$\log P_\theta(x) \;\ge\; \mathbb{E}_q \sum_d \log P(x_d \mid z) - \mathrm{KL}\big(q_\phi(z \mid x)\,\|\,p(z)\big). \tag{11.11}$$
#
# Two more rows: the opening's model, after 400 and after 800 steps; and a model without a latent, each pixel's own table of
# counts (½ added to each cell). **Rank them before you look**: which has the highest own score? Which is the best model of counts? Which
# do not even beat the tables, which know nothing of shape?
#
# A score is a mean over 20 fresh draws of $z$, and of the noise, for each held-out digit. The second column, (11.11), comes from the same line of
# code: only the likelihood is exchanged, for `Rounded`.


# %%
def fixed(head):
    head.log_scale.requires_grad_(False)
    return head


runs = {  # head, numbers it takes, what is done to the data
    "fixed σ = 1, dequantised": (lambda n: fixed(NormalHead(n, D, scale=torch.tensor(1.0))), D, dequantise),
    "σ per pixel, dequantised": (lambda n: NormalHead(n, D, scale=spread + 0.3), D, dequantise),
    "g(z), dequantised": (lambda n: DiagonalNormalHead(n, D), 2 * D, dequantise),
    "g(z) ≥ 0.3, raw": (lambda n: DiagonalNormalHead(n, D, min_scale=0.3), 2 * D, as_they_are),
    "g(z) ≥ 0.03, raw": (lambda n: DiagonalNormalHead(n, D, min_scale=0.03), 2 * D, as_they_are),
    "discretised Normal": (lambda n: DiscretisedNormalHead(n, D, 0, 16), 2 * D, as_they_are),
    "discretised logistic": (lambda n: DiscretisedLogisticHead(n, D, 0, 16), 2 * D, as_they_are),
}
learned = {f"the opening, step {step}": (*kept[step], as_they_are) for step in (400, 800)}
learned["shared σ, dequantised"] = (model, q, dequantise)
for name, (head, num_numbers, noise) in runs.items():
    learned[name] = (*learn(head, num_numbers, noise), noise)


# %%
class Rounded(nn.Module):
    """What a Gaussian decoder draws, rounded to a count: down for shift ½, to the nearest for 0."""

    def __init__(self, gaussian, shift):
        super().__init__()
        self.gaussian, self.shift = gaussian, shift

    def forward(self, z):
        normal = self.gaussian(z).base_dist
        return discretised_normal(normal.loc - self.shift, normal.scale, 0, 16)


@torch.no_grad()
def score(model, q, noise, x, num_draws=20):
    return torch.stack([elbo(draw(model.given(noise(x)), q(x), 1).log_weight) for _ in range(num_draws)]).mean(0)


own, probability = {}, {}
for name, (model, q, noise) in learned.items():
    own[name] = score(model, q, noise, test)
    shift = 0.5 if noise is dequantise else 0.0
    counts_model = models.LatentVariableModel(model.prior, Rounded(model.likelihood, shift))
    probability[name] = own[name] if "discr" in name else score(counts_model, q, as_they_are, test)

# %%
table = torch.nn.functional.one_hot(train.long(), 17).double().sum(0) + 0.5
log_table = (table / table.sum(-1, keepdim=True)).log()
own["tables, no latent"] = log_table[torch.arange(D), test.long()].sum(-1)
probability["tables, no latent"] = own["tables, no latent"]
order = sorted(own, key=lambda name: probability[name].mean())
print(f"{'nats per held-out digit, on counts':<36}{'own score':>10}{'bound on log P':>16}")
for name in reversed(order):
    print(f"{name:<36}{own[name].mean():>10.0f}{probability[name].mean():>16.0f}")

# %% [markdown]
# Three things should hold if the columns are what we say. For a dequantised decoder the own score lies below the probability, digit by digit, by
# (11.6). For raw counts nothing of the kind holds: that is the trap. And differences between rows mean something only against their scatter over
# the digits.


# %%
def better(first, second):
    """By how many nats per digit the first row's probability is higher, less four standard errors."""
    gain = probability[first] - probability[second]
    return gain.mean() - 4 * gain.std() / len(gain) ** 0.5


noisy = [name for name in own if "dequantised" in name]
checks.inequality(
    "11.9",
    "on every held-out digit: the ELBO of counts + u ≤ the bound on log P from the same f, g and q",
    torch.stack([own[name] for name in noisy]),
    torch.stack([probability[name] for name in noisy]),
    wrong={"the density of raw counts": own["the opening, step 800"].expand(len(noisy), -1)},
)
steps = [f"the opening, step {step}" for step in (400, 800)]
assert (own[steps[1]] - own[steps[0]]).mean() > 110
assert (probability[steps[1]] - probability[steps[0]]).mean() < 3
assert (own["g(z) ≥ 0.03, raw"] - own["g(z) ≥ 0.3, raw"]).mean() > 20  # the lower the floor, the higher the score,
assert better("g(z) ≥ 0.3, raw", "g(z) ≥ 0.03, raw") > 0  # and the worse the model
assert better("discretised Normal", "g(z), dequantised") > 3
assert better("discretised Normal", "tables, no latent") > 3
assert better("g(z), dequantised", "σ per pixel, dequantised") > 3
assert better("tables, no latent", "σ per pixel, dequantised") > 3
assert better("shared σ, dequantised", "fixed σ = 1, dequantised") > 80

# %% mystnb={"image": {"alt": "One line per model, from its own score, an open circle, to the bound on the log probability of the counts, a dot. The opening's circle lies far to the right at plus 110, its dot among the others at minus 115. Dequantised models have their circle to the left of the dot. The dots of the discretised models are furthest right."}}
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 3.8))
    for row, name in enumerate(order):
        ax.plot([own[name].mean(), probability[name].mean()], [row, row], color=plots.COLOURS.muted, linewidth=1)
    dots = {"mfc": "white", "color": plots.COLOURS.q, "markersize": 8, "label": "own score"}
    ax.plot([own[name].mean() for name in order], range(len(order)), "o", **dots)
    dots = {"color": plots.COLOURS.evidence, "markersize": 5, "label": "bound on log P(counts)"}
    ax.plot([probability[name].mean() for name in order], range(len(order)), "o", **dots)
    ax.set_yticks(range(len(order)), order)
    ax.set(xlim=(-280, 130), xlabel="nats per held-out digit")
    ax.legend(loc="lower right")
    ax.set_title("The highest score is not the best model")

# %% [markdown]
# **The opening.** Between step 400 and step 800 its score rose by 124 nats. As a statement about counts it
# gained two.
#
# **A floor.** Lower it tenfold, and the model's own score rises by 31 nats while the probability it gives to the counts falls.
# *With a floor the score reports the floor.* The models need not be bad: rounded, the one with 0.3 stands among the best. It is
# their score that cannot be set beside another.
#
# **Dequantisation** is honest: the score is a bound, and it costs. For $g(z)$ it lies 21 nats below the probability. By check 11.8 no
# Normal scores above −0.18 nats on a dequantised count, even one that it knows for certain: 64 pixels cost 11.
#
# **A discretised likelihood** is scored by what it was trained on, and is the best here: 7 nats above the same $f$ and $g$ learned through
# noise.
#
# **The variance itself** is the largest effect of all. A fixed $\sigma = 1$ where the data ask for 3 costs more than 100 nats. And with one variance
# for all pixels, or one for each pixel, eight latents and two networks are beaten by 64 tables; it takes a variance that depends on $z$ to draw level with
# them. This is one seed and small networks: read the large differences, not the small ones.
#
# What does $g(z)$ say, where it is learned on honest data?

# %% mystnb={"image": {"alt": "Left, four held-out digits in a row, below them the decoder's means, smoother, and its standard deviations: grey inside, white at blank borders. Right, a two-dimensional histogram of standard deviation against mean for all pixels of all held-out digits: a dense spot at no ink and 0.3, an arch that rises to about 4.7 at half ink and falls to 2.5 at full ink. A line follows the arch."}}
model, q, _ = learned["g(z), dequantised"]
decoded = model.likelihood(q(test).mean)
sigma, ink = decoded.stddev, decoded.mean - 0.5  # minus the noise's mean
edges = [-1, 0.5, 2, 5, 8, 11, 14, 17]
bins = list(itertools.pairwise(edges))
typical = [sigma[(ink >= low) & (ink < high)].median() for low, high in bins]
assert typical[0] < 0.35
assert min(typical[3:5]) > 4 > 3 > typical[-1]
assert sigma[:, constant].max() < 0.6 < sigma.median()  # a uniform's standard deviation is 0.29
with plots.style():
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3), width_ratios=[1, 1.2])
    sheet = torch.cat([test[:4], decoded.mean[:4], 3 * sigma[:4]])
    plots.images(sheet, left, vmin=0, vmax=16, num_cols=4, row_labels=["digit", "mean", "3 σ"])
    right.hexbin(ink.flatten(), sigma.flatten(), gridsize=30, bins="log", cmap="Greys", extent=(-1, 17, 0, 7))
    right.plot([(low + high) / 2 for low, high in bins], typical, "o-", color=plots.COLOURS.theta, label="median")
    right.set(xlabel="decoder's mean (counts)", ylabel="decoder's σ (counts)", ylim=(0, 7))
    right.legend(loc="lower right")
    right.set_title("Sure of blank paper, unsure of grey")

# %% [markdown]
# An arch. Where the decoder expects no ink, $\sigma \approx 0.3$: the standard deviation of the uniform noise itself, $1/\sqrt{12}$. This is the natural floor,
# and no one had to choose it. Where it expects half the ink, σ is near 5: nearly as little is known as if any ink from 0 to 16
# were equally likely (4.9). One number for all pixels cannot say both.
#
# ## A mistake people make: the noise added once
#
# (11.5) and (11.6) need *fresh* noise. If the noise is added in the preprocessing and stored, the data are a finite set of real numbers
# once more, all different, and (11.3) applies to each of them. On Old Faithful: add $u$ once; give the spike to one of these numbers; compare
# with the same model, scored with fresh noise.

# %%
stored = dequantise(minutes)


def log_p(x, s):
    """The two-part model: mostly N(m, S²), and a spike of width s on the first stored number."""
    spike = stats.norm.logsf(c) + Normal(stored[0, 0], s).log_prob(x)
    return torch.logaddexp(spike, stats.norm.logcdf(a) + Normal(m, S).log_prob(x)).mean().item()


deep = 1e-150  # the width of the spike
print(f"narrow spike minus none, noise stored: {log_p(stored, deep) - log_p(stored, S):+.1f} nats per datapoint")
fresh = np.mean([log_p(dequantise(minutes), deep) - log_p(dequantise(minutes), S) for _ in range(200)])
print(f"narrow spike minus none, noise fresh:  {fresh:+.1f} nats per datapoint")

# %% [markdown]
# Stored noise is a slower trap: a spike lifts one datapoint of $N$, by one nat for each nat of $\log \tfrac1s$. What catches it: curves of training
# and held-out data that part, or one look at the smallest scale that the decoder puts out.
#
# ## Exercises
#
# **11.E1 (recall).** `reconstructions` holds $f(z_k)$ for $K$ draws from each $q(z \mid x_n)$, shape $(K, N, D)$; `x` has shape $(N, D)$. Give the best shared
# standard deviation.
#
# <details><summary>Hint</summary>
#
# Square first, average afterwards, over everything.
#
# </details>


# %%
def optimal_scale(x, reconstructions): ...  # your code


ch11.optimal_scale.check(optimal_scale)

# %% [markdown]
# **11.E2 (units).** A colleague scales images to $[0, 1]$: `scaled` = (counts + u) / width, shape $(N, D)$, and models them with
# $\mathcal{N}$(`loc`, `scale`²). Report her result in bits per pixel *on counts*, one number per image.
#
# <details><summary>Hint</summary>
#
# If $y = x / w$ in one dimension, then $p_x(x) = p_y(y) / w$. A bit is $\log 2$ nats, and bits count what must be paid: minus the log.
#
# </details>


# %%
def bits_per_pixel(scaled, loc, scale, width): ...  # your code


ch11.bits_per_pixel.check(bits_per_pixel)

# %% [markdown]
# **11.E3 (code).** The function `cell` of this chapter fails where a training begins: ten standard deviations above the location both $F$ are 1, and
# the logarithm of their difference is $-\infty$. Write $\log P(x)$ of the same cells, for integers from `low` to `high`, summed over the last dimension and
# finite at any distance.
#
# <details><summary>Hint</summary>
#
# A Normal is symmetric: a cell on the right of `loc` has the mass of its mirror image on the left, and there `torch.special.log_ndtr` is accurate.
# Then $\log(e^a - e^b) = a + \log(1 - e^{b-a})$.
#
# </details>


# %%
def cell_log_prob(x, loc, scale, low, high): ...  # your code


ch11.cell_log_prob.check(cell_log_prob)

# %% [markdown]
# **11.E4 (a small study).** (11.10) holds while all $L$ directions stay in use. One drops out when its eigenvalue is below $\beta\sigma^2$. Write
# `learned_variance` for *any* β, from all eigenvalues of the covariance in descending order. Then use it on the digits with $L = 3$: at which β has the linear VAE
# collapsed, with no direction in use?
#
# <details><summary>Hint</summary>
#
# A direction in use leaves an error of $\beta\sigma^2$, one out of use its whole $\lambda_i$. In one expression: $\min(\lambda_i, \beta\sigma^2)$. Then (11.8) is one
# equation in one unknown.
#
# </details>


# %%
def learned_variance(eigenvalues, latent_dim, beta): ...  # your code


ch11.learned_variance.check(learned_variance)

# %% [markdown]
# ## Summary
#
# - A likelihood of real numbers has **no upper bound** when the decoder may choose its variance: one spike on one number, (11.3). The ELBO follows
#   it, with a Normal $q$ too, and held-out data need not object.
# - A shared variance has its optimum at the **expected** squared error, and the likelihood is then $-\tfrac{D}{2} \log 2\pi e\hat\sigma^2$. That saves tuning. It does not
#   bound anything: with enough capacity $\hat\sigma \to 0$.
# - At fixed variance **β is a variance**, $\beta\sigma^2$. With a learned variance it is not.
# - A floor bounds the score, and then the score reports the floor. Fresh noise bounds it at minus the noise's entropy; dequantisation makes it a lower
#   bound of a log probability; a discretised likelihood is one, never above 0. Ask every model for the probability of the counts, (11.11): then
#   they can be compared.
#
# **The answer.** The variance sets the exchange rate between reconstruction and KL, and on data of finite precision it must be kept from claiming
# infinite precision. Say what your numbers are (counts, say), and score them as that.
#
# ## Sources
#
# P.-A. Mattei & J. Frellsen (2018), *Leveraging the Exact Likelihood of Deep Latent Variable Models*, NeurIPS: the unbounded likelihood. O. Rybkin,
# K. Daniilidis & S. Levine (2021), *Simple and Effective VAE Training with Calibrated Decoders*, ICML: the optimal σ. L. Theis, A. van den Oord & M.
# Bethge (2016), *A Note on the Evaluation of Generative Models*, ICLR: dequantisation as a bound. T. Salimans, A. Karpathy, X. Chen & D. P. Kingma
# (2017), *PixelCNN++*: the discretised logistic. J. Lucas, G. Tucker, R. Grosse & M. Norouzi (2019), *Don't Blame the ELBO!*: the linear VAE and its variance.
#
# **Next.** We have compared models by their ELBOs. But the ELBO is $\log p_\theta(x)$ less a gap, and the gap differs from model to model.
# *How good is the model itself?* That is [chapter 12](12_how_good_is_the_model.ipynb).

# %% [markdown] jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
# ## Solutions


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def optimal_scale(x, reconstructions):
    return (x - reconstructions).square().mean().sqrt()


ch11.optimal_scale.check(optimal_scale)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def bits_per_pixel(scaled, loc, scale, width):
    nats_on_counts = Normal(loc, scale).log_prob(scaled) - math.log(width)
    return -nats_on_counts.mean(-1) / math.log(2)


ch11.bits_per_pixel.check(bits_per_pixel)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def cell_log_prob(x, loc, scale, low, high):
    upper = torch.where(x == high, math.inf, (x + 0.5 - loc) / scale)
    lower = torch.where(x == low, -math.inf, (x - 0.5 - loc) / scale)
    right = x > loc  # mirror these
    upper, lower = torch.where(right, -lower, upper), torch.where(right, -upper, lower)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return (log_upper + torch.log1p(-(log_lower - log_upper).exp())).sum(-1)


ch11.cell_log_prob.check(cell_log_prob)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def learned_variance(eigenvalues, latent_dim, beta):
    def excess(variance):
        in_front, behind = eigenvalues[:latent_dim], eigenvalues[latent_dim:]
        return in_front.clamp(max=beta * variance).sum() + behind.sum() - len(eigenvalues) * variance

    return optimize.brentq(excess, 1e-9, eigenvalues.max())


ch11.learned_variance.check(learned_variance)
spectrum = torch.linalg.eigvalsh(covariance).flip(0)
critical = spectrum[0] / spectrum.mean()
for beta in (0.99 * critical, 1.01 * critical):
    variance = learned_variance(spectrum, 3, beta)
    print(f"β = {beta:.1f}: directions in use {(spectrum[:3] > beta * variance).sum()}")

# %% [markdown] jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
# <details><summary>What the study shows</summary>
#
# With no direction in use σ² is the mean of all eigenvalues, and this is consistent once $\lambda_1 \le \beta \sigma^2$. So the collapse comes at
# $\beta = \lambda_1 D / \sum_i \lambda_i$, for the digits near 9.8, however many latents there are. With a *fixed* σ it comes at $\lambda_1 / \sigma^2$, which one
# can put anywhere by choosing σ. Between 1 and that β each direction that drops out raises σ², which pushes at the next.
#
# </details>
