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
# line, for as long as we care to wait. No digit is modelled any better.
#
# **A Gaussian decoder puts out a mean and a variance. What does the variance do to the bound, and what keeps it from
# making the bound worthless?**

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
from vi_tutorial.networks import DiagonalNormalHead, DiscretisedLogisticHead, NormalHead, mlp

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
# the means pass through a ReLU, $\max(0, \cdot)$. The encoder is the usual one. Nothing here is unusual or careless.

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


history = training.fit(
    bound,
    adam_for(model, q, scale_rate=0.1),
    train,
    num_steps=800,
    batch_size=100,
    validate=lambda: bound(test),
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
# which has no maximum. Its gradient by $\log \sigma$ is −1, at every σ, for ever. Adam walks 0.1 per step, three pixels make
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


# %%
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

# %% mystnb={"image": {"alt": "Four curves over the logarithm of S over s, from 0 to 100. The analytic lower bound is a straight rising line; the exact mean log evidence lies just above it, the ELBO below, parallel in the end; the held-out mean evidence rises as well."}}
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
# the other half lacks, its curve would lie flat instead. Either way it raises no alarm. (The bound lies
# 0.06 nats below the exact curve, too little to see.)
#
# Play the film: the density of the model, as the spike narrows. Its *area* stays the same, $P(z > 1.25)$ or so. The likelihood looks
# at its height.

# %% mystnb={"image": {"alt": "Animation in sixteen frames. Left, the model's density of minutes on a log axis: a broad hill, on which a spike at 78 becomes narrower and higher while the hill stays. Right, the mean log density of the two halves, which in the end climb with the spike."}} tags=["nbval-ignore-output"]
ks = np.linspace(0, 12, 16)
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


def learn(head, num_numbers, noise=dequantise, num_steps=500):
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


def expected_nll(log_scale, rows=slice(None)):
    return -D * stats.norm.logpdf(x.numpy()[rows], f_z.numpy()[:, rows], np.exp(log_scale)).mean()


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

# %% mystnb={"image": {"alt": "The expected negative log-likelihood over the shared sigma, a valley. Its bottom is at the root of the expected squared error. A dashed line at the root of the error at the posterior mean stands to the left of the bottom, higher on the slope."}}
log_scales = np.log(np.linspace(1.5, 4.5, 25))
curve = [expected_nll(t, slice(0, N, 10)) + search.fun - expected_nll(search.x, slice(0, N, 10)) for t in log_scales]
assert at_posterior_mean < 0.95 * at_draws
assert abs(math.exp(search.x) - at_draws.sqrt()) < 1e-4
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 3))
    ax.plot(np.exp(log_scales), curve, color=plots.COLOURS.theta)
    ax.axvline(at_draws.sqrt(), color=plots.COLOURS.accent, label="root of the expected squared error")
    ax.axvline(at_posterior_mean.sqrt(), color=plots.COLOURS.q, linestyle="--", label="error at the posterior mean")
    ax.set(xlabel="shared σ (counts)", ylabel="expected −log p(x | z) (nats)")
    ax.legend()
    ax.set_title("The best σ counts the wobble of the reconstruction too")

# %% [markdown]
# So the trick saves tuning σ. **Does it mend the trap? No.** Put $\hat\sigma^2$ into the objective and it reads $-\tfrac{D}{2} \log 2\pi e \hat\sigma^2 - \mathrm{KL}$:
# if the decoder can reconstruct the data perfectly, $\hat\sigma \to 0$ and the bound goes to infinity. Only a lack of capacity stands
# in the way. Six digits and five latents are enough, with a *linear* decoder: a plane of five dimensions passes through
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
    print(str(error).split(";")[-1].split(", and ")[-1])

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
# The famous sum of squares plus KL, without the ½, is β = 1 with $\sigma^2 = ½$ ([chapter 09](09_distributions_from_neural_networks.ipynb)); on pixels in
# $[0, 1]$ that is an enormous variance, hence the blur and the collapse, hence the small β that people find by search.
#
# **If σ is learned, β is not free.** The last term of (11.9) depends on σ, so it is no constant any more. Put $\hat\sigma^2$ of (11.8) in: the
# objective is $-\tfrac{D}{2} \log 2\pi e\hat\sigma^2 - \beta\,\mathrm{KL}$, whose reconstruction term is not scaled, and β now is a true change of
# the trade-off between the two terms; for β < 1 it is no bound. In the linear VAE one can say exactly what happens. At given σ the best
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
    [W, B, log_s, log_sigma], max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-9, tolerance_change=1e-14
)
_ = training.fit(weighted_bound, optimiser, covariance, num_steps=3)

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
    tolerance=2e-3,
)

# %% [markdown]
# ## The remedies, measured
#
# Same digits, same encoder, same 500 steps, one seed; only the decoder's likelihood differs. Everything is in **nats per
# digit, on counts**. Units matter: in pixels scaled to $[0, 1]$ by 1/17, every density is higher by $D \log 17 = 181$ nats, and
# nothing has been learned. Beside the VAEs stands a model without a latent: each pixel's own table of counts (½ added to each cell).
#
# Predict the order. Two of the decoders give a variance for each pixel and each $z$ and see the counts raw, as they are, with
# a floor of 0.3 or 0.03 counts. Their scores will be high. Will they be the best models? And will the dequantised Gaussian VAE
# beat the tables, which know nothing of shape?

# %%
runs = {  # head, numbers it takes, what is done to the data
    "fixed σ = 1, dequantised": (lambda n: fixed(NormalHead(n, D, scale=torch.tensor(1.0))), D, dequantise),
    "g(z), dequantised": (lambda n: DiagonalNormalHead(n, D), 2 * D, dequantise),
    "discretised logistic": (lambda n: DiscretisedLogisticHead(n, D, 0, 16), 2 * D, as_they_are),
    "g(z) ≥ 0.3, raw": (lambda n: DiagonalNormalHead(n, D, min_scale=0.3), 2 * D, as_they_are),
    "g(z) ≥ 0.03, raw": (lambda n: DiagonalNormalHead(n, D, min_scale=0.03), 2 * D, as_they_are),
}


def fixed(head):
    head.log_scale.requires_grad_(False)
    return head


learned = {"shared σ, dequantised": (model, q, dequantise)}
for name, (head, num_numbers, noise) in runs.items():
    learned[name] = (*learn(head, num_numbers, noise), noise)

# %% [markdown]
# A score is a mean over 40 fresh draws of $z$ (and of the noise). The last column asks each density for what can be compared:
# a bound on the log *probability* of held-out counts, by (11.6) whatever it was trained on. For the discretised model that
# is the score itself.


# %%
def score(model, q, noise, x, num_draws=40):
    draws = [elbo(draw(model.given(noise(x)), q(x), 1).log_weight).mean() for _ in range(num_draws)]
    return torch.stack(draws).mean().item()


table = torch.nn.functional.one_hot(train.long(), 17).double().sum(0) + 0.5
log_table = (table / table.sum(-1, keepdim=True)).log()
by_tables = [log_table[torch.arange(D), x.long()].sum(-1).mean().item() for x in (train, test)]
rows = {"tables of counts, no latent": (*by_tables, by_tables[1])}
for name, (model, q, noise) in learned.items():
    comparable = as_they_are if name == "discretised logistic" else dequantise
    rows[name] = tuple(score(model, q, n, x) for n, x in ((noise, train), (noise, test), (comparable, test)))
print(f"{'nats per digit, on counts':<30}{'training':>9}{'held out':>9}{'bound on log P, held out':>27}")
for name, (seen, unseen, bounded) in rows.items():
    shown = f"{bounded:.0f}" if bounded > -1000 else "below -1,000"
    print(f"{name:<30}{seen:>9.0f}{unseen:>9.0f}{shown:>27}")

# %% mystnb={"image": {"alt": "Horizontal bars of the bound on the log probability of held-out digits: discretised logistic best, then the tables of counts, dequantised g of z, raw with floor 0.3, shared sigma, fixed sigma; open circles show the raw scores, of which the floored models' lie far right of their bars."}}
fair = {name: row[2] for name, row in rows.items()}
assert rows["g(z) ≥ 0.03, raw"][1] > rows["g(z) ≥ 0.3, raw"][1] + 15  # the lower the floor, the higher the score,
assert fair["g(z) ≥ 0.03, raw"] < fair["g(z) ≥ 0.3, raw"] - 500  # and the worse the model
assert fair["discretised logistic"] > fair["tables of counts, no latent"] + 5 > fair["g(z), dequantised"] + 10
assert fair["g(z), dequantised"] > fair["shared σ, dequantised"] + 20 > fair["fixed σ = 1, dequantised"] + 40
order = sorted(rows, key=lambda name: fair[name])
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 3.4))
    ax.barh(order, [max(fair[name], -290) + 290 for name in order], left=-290, color=plots.COLOURS.q, height=0.55)
    ax.plot(
        [rows[name][1] for name in order],
        order,
        "o",
        color=plots.COLOURS.p,
        mfc="white",
        label="its own score, held out",
    )
    ax.text(-288, 0.42, "off the scale, below −1,000", size=10, va="center")
    ax.set(xlim=(-290, -50), xlabel="bound on log P of held-out counts (nats per digit)")
    ax.legend(loc="lower right")
    ax.set_title("The highest score belongs to the worst model")

# %% [markdown]
# Read the two rows with a floor. Lower the floor tenfold and the model's own score rises by tens of nats. As a
# statement about *counts* it collapses: it is sure of the integers and has no mass between them, so that counts with noise are impossible.
# **With a floor the score reports the floor.** The model may still draw fine images; the number cannot be set beside another.
#
# And the surprise: the dequantised Gaussian VAE, with eight latents and two networks, is beaten by 64 tables. A part of
# its loss can be computed. A Normal that knows a count for certain still has to cover the uniform noise, and the best it can do is
# $-\tfrac12 \log \tfrac{2\pi e}{12} = -0.18$ nats per pixel, 11 nats per digit. The discretised logistic pays nothing for a count it is sure of: its cell can
# take all the mass. It is the only VAE here that beats the tables. One seed and small networks: the order, not the
# decimals, is what to take away.
#
# What does $g(z)$ say, where it is learned on honest data? Where a stroke may end, the decoder is unsure; inside and outside
# it is sure.

# %% mystnb={"image": {"alt": "Three rows of ten images: held-out digits; the decoder's means, smoother; and its standard deviations, dark along the edges of the strokes and pale at the image's left and right borders."}}
model, q, _ = learned["g(z), dequantised"]
decoded = model.likelihood(q(test[:10]).mean)
sigma = decoded.stddev
assert sigma[:, constant].max() < 0.6 < sigma.median()  # a uniform's standard deviation is 0.29
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 2.5))
    sheet = torch.cat([test[:10], decoded.mean, 16 * sigma / sigma.max()])
    plots.images(sheet, ax, vmin=0, vmax=16, num_cols=10, row_labels=["digit", "mean", "σ"])
    ax.set_title("Where the decoder is unsure: at the edges of strokes")

# %% [markdown]
# The constant pixels now have $\sigma \approx 0.3$: the standard deviation of the uniform noise itself, $1/\sqrt{12}$. This is the natural floor,
# and no one had to choose it.
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
# Stored noise is a slower trap, and it is the usual one: with large data each spike is worth only $1/N$ of a nat per nat. What catches it: train
# and held-out curves that part, or one look at the smallest scale that the decoder puts out.
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
# **11.E3 (code).** Write the discretised Normal for integers from `low` to `high`: $\log P(x)$, summed over the last dimension.
#
# <details><summary>Hint</summary>
#
# `Normal(0.0, 1.0).cdf`, and `torch.where` for the two outer cells.
#
# </details>


# %%
def cell_log_prob(x, loc, scale, low, high): ...  # your code


ch11.cell_log_prob.check(cell_log_prob)

# %% [markdown]
# **11.E4 (a small study).** Data take a few values, far apart, with probabilities `probs`; noise $\mathcal{N}(0, s^2)$ is added, fresh. Which
# $\mathbb{E} \log p(x + \epsilon)$ can *no* density exceed, and one density reach? Then say: as $s \to 0$, does a model that reaches it become better?
#
# <details><summary>Hint</summary>
#
# The first inequality of (11.5) is an equality at $p$ = the density of $x + \epsilon$ itself. If the bumps do not overlap, knowing $x + \epsilon$ is knowing both.
#
# </details>


# %%
def noise_ceiling(probs, noise_scale): ...  # your code


ch11.noise_ceiling.check(noise_ceiling)

# %% [markdown]
# ## Summary
#
# - A likelihood of real numbers has **no upper bound** when the decoder may choose its variance: one spike on one number, (11.3). The ELBO follows
#   it, with a Normal $q$ too, and held-out data need not object.
# - A shared variance has its optimum at the **expected** squared error, and the likelihood is then $-\tfrac{D}{2} \log 2\pi e\hat\sigma^2$. That saves tuning. It does not
#   bound anything: with enough capacity $\hat\sigma \to 0$.
# - At fixed variance **β is a variance**, $\beta\sigma^2$. With a learned variance it is not.
# - A floor bounds the score and then *is* the score. Fresh noise bounds it at the noise's entropy; dequantisation makes it a bound on a log probability; a
#   discretised likelihood is one, never above 0. Compare models only in the same units.
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
    cdf = Normal(0.0, 1.0).cdf
    upper = torch.where(x == high, 1.0, cdf((x + 0.5 - loc) / scale))
    lower = torch.where(x == low, 0.0, cdf((x - 0.5 - loc) / scale))
    return (upper - lower).log().sum(-1)


ch11.cell_log_prob.check(cell_log_prob)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def noise_ceiling(probs, noise_scale):
    entropy_of_values = -(probs * probs.log()).sum()
    return -entropy_of_values - 0.5 * math.log(2 * math.pi * math.e * noise_scale**2)


ch11.noise_ceiling.check(noise_ceiling)

# %% [markdown] jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
# <details><summary>What the study shows</summary>
#
# The score $-H(x) - \tfrac12 \log 2\pi e s^2$ rises without limit as $s \to 0$, but only through its second term, which knows the noise and
# not the model. What a model can be good or bad at is the first term, and that is the same for all $s$. Subtract the noise's own
# $-h(\epsilon)$ and the trap is gone: what remains is minus the entropy of the *values*, at most 0.
#
# </details>
