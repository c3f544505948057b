# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 14 · Tighter bounds
#
# The ELBO leaves a gap below $\log p_\theta(x)$. There is a way to close it that needs no better $q$, no new network and no new idea: take
# more draws, and average their weights *before* the logarithm. With ten draws the gap of our first example shrinks from 0.40 nats to 0.02; with a
# thousand it is 0.0002.
#
# Now ask that nearly perfect bound which way the encoder should move. It gives the wrong direction about every other time. You
# might as well toss a coin.
#
# **What does a tighter bound buy the model, and what does it cost the encoder?**

# %% jupyter={"source_hidden": true} tags=["remove-cell", "setup"]
import importlib.util

from IPython import get_ipython

if (shell := get_ipython()) is not None:
    if importlib.util.find_spec("vi_tutorial") is None:  # on Colab, say
        shell.run_line_magic("pip", "install --quiet git+https://github.com/vi-tutorial/vi_tutorial")
    shell.run_line_magic("matplotlib", "inline")  # figures below their cells, whatever MPLBACKEND says

# %% mystnb={"image": {"alt": "The map of the series, six boxes joined by arrows: KL, ELBO, phi, theta, networks, what breaks. The box of what breaks is lit."}}
import copy
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import integrate, optimize
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import softplus

from vi_tutorial import checks, data, evaluation, families, models, plots, quadrature, training
from vi_tutorial.elbo import cubo, draw, elbo, iwae, iwae_doubly_reparameterised, weigh
from vi_tutorial.exercises import ch14
from vi_tutorial.networks import BernoulliHead, DiagonalNormalHead, mlp

torch.set_default_dtype(torch.float64)  # identities are claimed: no rounding to hide behind
torch.set_num_threads(1)  # the matrices are small: a second thread would mostly wait for the first
_ = torch.manual_seed(0)
plots.chain("breaks")

# %% [markdown]
# *Before this:* [chapter 03](03_gradients_from_samples.ipynb) (pathwise gradients, sticking the landing, the signal-to-noise ratio) and
# [chapter 12](12_how_good_is_the_model.ipynb) (importance sampling and its bias). *Reading time:* 35 minutes.
#
# **You will be able to**
#
# - **place** IWAE, Rényi and χ² bounds in one row, and say which of them a handful of draws can turn upside down;
# - **explain** every $K$-sample gradient by one density, the law of the draw that gets chosen;
# - **predict** how the signal-to-noise ratio of θ and of φ moves with $K$, and mend what falls;
# - **decide** which bound to train with, and what it will do to your encoder.
#
# ## A perfect bound, a blind gradient
#
# The example is chapter 12's: $p(z) = \mathcal{N}(0, 1)$, $p_\theta(x \mid z) = \mathcal{N}(z + \theta, 1)$ with $\theta = 0$, the observation $x = 2$, and
# $q_\phi = \mathcal{N}(m, s^2)$ with $m = \frac12$, $s = 1$. The posterior is $\mathcal{N}(1, \frac12)$: $q$ stands too far left and is too wide. So
# $m$ should go up. A *batch* of equal copies of $(m, \log s, \theta)$, as in chapter 03, gives many independent gradients at once.

# %%
x = torch.tensor(2.0)
place = torch.tensor([0.5, 0.0, 0.0])  # m, log s, theta


def log_joint_of(theta):
    """log p(x, z) as a function of z."""
    return lambda z: Normal(0.0, 1.0).log_prob(z) + Normal(z + theta, 1.0).log_prob(x)


def plain(log_joint, q, num_samples):
    """Differentiate the bound as it stands."""
    return iwae(draw(log_joint, q, num_samples).log_weight)


def slopes(estimator, num_samples, repeats):
    """Independent gradients in (m, log s, theta), shape (repeats, 3)."""
    copies = place.repeat(repeats, 1).requires_grad_()
    m, log_s, theta = copies.unbind(-1)
    bound = estimator(log_joint_of(theta), Normal(m, log_s.exp()), num_samples)
    return torch.autograd.grad(bound.sum(), copies)[0]


# %% mystnb={"image": {"alt": "Two histograms of gradient estimates in m, each divided by its standard deviation. Left, one draw: most of the mass lies to the right of zero. Right, five hundred draws: the histogram is centred at zero, half of it on the wrong side."}}
one, many = slopes(plain, 1, 20_000)[:, 0], slopes(plain, 500, 4_000)[:, 0]
wrong_way = [100 * (g < 0).double().mean().item() for g in (one, many)]
assert wrong_way[0] < 40
assert 46 < wrong_way[1] < 54
with plots.style():
    fig, axes = plt.subplots(1, 2, figsize=(7, 2.7), sharey=True)
    for ax, g, name in zip(axes, (one, many), ("K = 1", "K = 500"), strict=True):
        for part, colour in ((g < 0, plots.COLOURS.muted), (g >= 0, plots.COLOURS.q)):
            ax.hist(
                g[part] / g.std(), np.arange(-4, 4.1, 0.25), weights=torch.ones(int(part.sum())) / len(g), color=colour
            )
        ax.axvline(0, color="black", linewidth=1)
        ax.set(xlabel="∂/∂m, in standard deviations", title=name)
    axes[0].set_ylabel("share")
    fig.suptitle(
        "The tighter bound points the wrong way (grey) half of the time", x=0.01, ha="left", weight="bold", size=12
    )

# %% [markdown]
# With one draw the gradient in $m$ points the right way most of the time. With 500 draws, at 500 times the work, it is as often wrong as right. Nothing is biased here,
# and nothing is a bug. To see what happens, and to mend it, we need the bound first.
#
# ## The log of a mean
#
# The ELBO is the mean of a log. The **importance-weighted bound** (IWAE; Burda, Grosse & Salakhutdinov 2016) is the log of a mean:
#
# $$
# \mathcal{L}_K = \mathbb{E}\Big[ \log \frac1K \sum_{k=1}^K w_k \Big], \qquad w_k = \frac{p_\theta(x, z_k)}{q_\phi(z_k \mid x)}, \quad z_k \sim q_\phi(z \mid x)
# \text{ independent.} \tag{14.1}
# $$
#
# $\mathcal{L}_1$ is $\mathcal{L}$. Each $\mathcal{L}_K$ is a lower bound: the mean of the mean weight is $p_\theta(x)$, and by Jensen's inequality the log loses. It loses less with every draw added. The
# mean of $K + 1$ weights is the mean of its $K + 1$ *leave-one-out* means, each over $K$ weights. The log is concave, so
#
# $$
# \log \frac{1}{K+1} \sum_k w_k = \log \frac{1}{K+1} \sum_{j} \Big( \frac1K \sum_{k \ne j} w_k \Big) \ge \frac{1}{K+1} \sum_j \log \Big( \frac1K \sum_{k \ne j} w_k \Big),
# \tag{14.2}
# $$
#
# and taking means, $\mathcal{L}_{K+1} \ge \mathcal{L}_K$. So $\mathcal{L} = \mathcal{L}_1 \le \mathcal{L}_2 \le \dots \le \log p_\theta(x)$.
#
# To see $\mathcal{L}_K$ without noise we take chapter 12's integral (12.3), which turns the mean of a log into an integral over $t$ of powers of $M(t) = \mathbb{E}_q\, e^{-t\, w / p_\theta(x)}$.


# %%
noise = torch.linspace(-12, 12, 481)  # z = m + s · noise; cells of width 0.05
q_mass = Normal(0.0, 1.0).log_prob(noise).exp() * 0.05


def situation(m=0.5, log_s=0.0, theta=0.0):
    """The cells' z, their weights divided by p(x), and log p(x), at parameters near our place."""
    s = math.exp(log_s)
    z = m + s * noise
    posterior = Normal((x - theta) / 2, math.sqrt(0.5))
    relative = (posterior.log_prob(z) - Normal(m, s).log_prob(z)).exp()
    return z, relative, Normal(theta, math.sqrt(2)).log_prob(x)


log_t = torch.linspace(-35.0, 45.0, 801)


def log_transform(relative, t):
    """log M(t), near t = 0 without cancellation."""
    exponent = -t[:, None] * relative
    short_of_one = (torch.expm1(exponent) @ q_mass).clamp(min=-0.9)
    return torch.where(short_of_one > -0.5, short_of_one.log1p(), (exponent.exp() @ q_mass + 1e-300).log())


def mean_log_of_mean(relative, num_samples):
    """E log of the mean of K weights with mean one, by (12.3)."""
    t = log_t.exp()
    return torch.trapezoid((-t).exp() - (num_samples * log_transform(relative, t / num_samples)).exp(), log_t)


# %% [markdown]
# Is the integral right? For $K = 1$ the gap is a KL between Normals; for $K = 2$ SciPy integrates over both draws. Then (14.1)'s chain, up to $K = 200$. The wrong answers are
# three ways of writing the line: $1/K$ forgotten, $1/K$ left outside of the log, and the mean of the logs, which does not rise at all.

# %%
z, relative, log_evidence = situation()
posterior, q_reference = Normal(1.0, math.sqrt(0.5)), Normal(0.5, 1.0)


def pair(b, a):
    """The integrand for two draws: density times log of the mean of their relative weights."""
    density = math.exp(-(a**2 + b**2) / 2) / (2 * math.pi)
    r = [math.sqrt(2) * math.exp(-((e - 0.5) ** 2) + e**2 / 2) for e in (a, b)]
    return density * math.log((r[0] + r[1]) / 2)


by_scipy = integrate.dblquad(pair, -8, 8, -8, 8, epsabs=1e-9)[0]
exact_gap = kl_divergence(q_reference, posterior)
checks.quadrature(
    "14.1a",
    "the gaps at K = 1 (a KL) and K = 2 (a double integral)",
    -torch.stack([mean_log_of_mean(relative, k) for k in (1, 2)]),
    torch.tensor([exact_gap, -by_scipy]),
    wrong={"1/K of the ELBO's gap": torch.tensor([exact_gap, exact_gap / 2])},
)
K = torch.arange(1, 201)
gap = -torch.stack([mean_log_of_mean(relative, int(k)) for k in K])
checks.inequality(
    "14.1b",
    "𝓛₁ < 𝓛₂ < … < 𝓛₂₀₀ < log p(x)",
    log_evidence - gap,
    torch.cat([log_evidence - gap[1:] - 1e-9, log_evidence[None]]),
    wrong={
        "1/K forgotten": log_evidence - gap + K.log(),
        "1/K outside of the log": (log_evidence - gap + K.log()) / K,
    },
)
print(f"log p(x) {log_evidence:.6f}; gap {gap[0]:.6f} at K = 1, {gap[9]:.4f} at 10, {gap[49]:.4f} at 50")

# %% [markdown]
# ### How fast, and when not
#
# Chapter 12 has the leading term: the gap is about $\operatorname{Var}(w / p_\theta(x)) / 2K$. One more term tells *where* that is good enough. Let $\delta$ be the relative error of the mean of $K$
# weights; with $\sigma^2$ and $\kappa_3$ the variance and third central moment of $w/p_\theta(x)$, $\mathbb{E}\delta^2 = \sigma^2/K$,
# $\mathbb{E}\delta^3 = \kappa_3 / K^2$ and $\mathbb{E}\delta^4 \approx 3 \sigma^4 / K^2$. Put these into $\log(1 + \delta) = \delta - \frac{\delta^2}{2} + \frac{\delta^3}{3} - \frac{\delta^4}{4} + \dots$:
#
# $$
# \log p_\theta(x) - \mathcal{L}_K = \frac{\sigma^2}{2K} + \frac{1}{K^2} \Big( \frac{3\sigma^4}{4} - \frac{\kappa_3}{3} \Big) + O(K^{-3}),
# \tag{14.3}
# $$
#
# as long as enough moments exist for the remainder too (and the mean weight is not too often near zero, where the series of the logarithm is of no use). When do they? The $j$-th moment of the weight under $q = \mathcal{N}(m, s^2)$ exists for a posterior of variance $v$ if $j s^2 > (j - 1) v$. So for $s^2 \le v/2$ even $\sigma^2$ is infinite
# ([chapter 13](13_when_supports_do_not_match.ipynb)). The bound still rises to $\log p_\theta(x)$; the $1/K$ is gone.

# %%
variance = 2 / math.sqrt(3) * math.exp(1 / 6) - 1  # chapter 12, claim 12.3a
third = q_mass @ (relative - 1) ** 3
ratio = -2000 / variance * mean_log_of_mean(relative, 1000)
second = 1 + (1.5 * variance - 2 * third / (3 * variance)) / 1000
checks.quadrature(
    "14.2a",
    "the gap at K = 1,000 over Var/2K is 1 + (3σ²/2 − 2κ₃/3σ²)/K",
    second,
    ratio,
    wrong={
        "Var/2K alone": 1.0,
        "the fourth power left out": second - 1.5 * variance / 1000,
        "the skewness left out": 1 + 1.5 * variance / 1000,
    },
    tolerance=2e-6,
)
print(
    *(f"K = {k:<5} gap {-mean_log_of_mean(relative, k):.4f}   Var/2K {variance / (2 * k):.4f}" for k in (1, 10, 50)),
    sep="\n",
)

# %% mystnb={"image": {"alt": "Gap below the log evidence against K from 1 to 1000, both axes logarithmic. The reference q bends from above into its dashed line Var over 2K. A wide q follows its own dashed line. A narrow q, scale 0.4, falls far less steeply and crosses the others."}}
ks = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
widths = {"reference: s = 1": 0.0, "wide: s = 2": math.log(2), "narrow: s = 0.4": math.log(0.4)}
curves = {}
for name, log_s in widths.items():
    r = situation(log_s=log_s)[1]
    curves[name] = -torch.stack([mean_log_of_mean(r, int(k)) for k in ks])
fall = {name: (c[-4] / c[-1]).item() for name, c in curves.items()}  # for eight times the draws
assert abs(fall["reference: s = 1"] - 8) < 0.2 > abs(fall["wide: s = 2"] - 8)
assert 2 < fall["narrow: s = 0.4"] < 2.3
assert (
    abs(curves["reference: s = 1"][0] / (variance / 2) - 2.2) < 0.1
)  # at K = 1 the law is off by more than a factor of two
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 3))
    for (name, c), colour, mark in zip(
        curves.items(), (plots.COLOURS.p, plots.COLOURS.accent, plots.COLOURS.q), "o^s", strict=True
    ):
        ax.loglog(ks, c, color=colour, marker=mark, label=name)
        if "narrow" not in name:
            ax.loglog(
                ks, q_mass @ (situation(log_s=widths[name])[1] - 1) ** 2 / (2 * ks), "--", color=colour, linewidth=1
            )
    ax.set(xlabel="samples K", ylabel="log p(x) − bound (nats)")
    ax.legend()
    ax.set_title("The gap falls as Var/2K (dashed) where Var is finite")

# %% [markdown]
# At $K = 1$ the law says 0.18 nats, and the gap is 0.40. For eight times the draws (from 128 to 1,024) the first two gaps fall eightfold, the narrow $q$'s about twofold. A proposal that is too wide is safer than one too narrow.
#
# ## What the $K$ draws really are: another $q$
#
# Where do the nats come from, if $q$ has not moved? Look at what happens inside. Draw $K$ codes from $q$, then *choose one of them* with probability $\tilde w_k = w_k / \sum_j w_j$. The chosen code does not have the law $q$. Call its
# density $q_K$. For any function $f$,
#
# $$
# \mathbb{E}\Big[ \sum_k \tilde w_k\, f(z_k) \Big] = \mathbb{E}_{q_K}[f(z)], \qquad
# q_K(z) = p_\theta(x, z)\; \mathbb{E}\bigg[ \frac{K}{w(z) + \sum_{j=2}^{K} w_j} \bigg]. \tag{14.4}
# $$
#
# (The $K$ terms on the left are alike, so take the first $K$ times: $K\, \mathbb{E}_{z \sim q}[ f(z)\, w(z) / (w(z) + \text{the others}) ]$, and $q\,w$ is the joint.) $q_1 = q$; and as $K$ grows the bracket goes to $1 / p_\theta(x)$, so $q_K$ goes to the
# posterior. It is the density that importance *re*sampling really draws from.
#
# And (12.3)'s trick works again. Since $1/S = \int_0^\infty e^{-tS} dt$, the expectation in (14.4) is $K \int_0^\infty e^{-t w(z)}\, M(t)^{K-1} dt$: the whole density $q_K$ from one table, for any $K$.


# %%
def chosen(relative, num_samples):
    """q_K's mass on the cells, by (14.4)."""
    t = log_t.exp()
    others = ((num_samples - 1) * log_transform(relative, t)).exp()
    inside = others[:, None] * torch.exp(-t[:, None] * relative) * t[:, None]  # dt = t d log t
    return num_samples * q_mass * relative * torch.trapezoid(inside, log_t, dim=0)


# %% mystnb={"image": {"alt": "Ten frames. A dashed bell, q, stands left of a narrower solid bell, the posterior. A filled bell starts on q at K = 1 and moves with every doubling of K to the right, becoming narrower, until it covers the posterior at K = 512."}} tags=["nbval-ignore-output"]
def scene(fig, frame):
    num_samples = 2**frame
    ax = fig.subplots()
    ax.fill_between(
        z, chosen(relative, num_samples) / 0.05, color=plots.COLOURS.q, alpha=0.35, label="q_K, the chosen draw"
    )
    ax.plot(z, q_mass / 0.05, "--", color=plots.COLOURS.q, label="q")
    ax.plot(z, q_mass * relative / 0.05, color=plots.COLOURS.p, label="posterior")
    ax.set(xlim=(-3, 4), ylim=(0, 0.62), xlabel="z", ylabel="density")
    ax.legend(loc="upper left")
    ax.set_title(f"K = {num_samples}: the bound is {-mean_log_of_mean(relative, num_samples):.4f} nats below log p(x)")


words = "A filled bell leaves q at K = 1 and has become the posterior at K = 512."
plots.animate(scene, 10, words, name="chosen", figsize=(6.4, 3.2), interval_ms=500)

# %% [markdown]
# So the bound tightens because it secretly uses a better posterior approximation, one that knows the weights. Its own ELBO is even higher than $\mathcal{L}_K$: choosing is a random step that the bound still pays for. (Cremer, Morris & Duvenaud 2017;
# Domke & Sheldon 2018.) Here it is, in nats. The rival is a sentence that one reads now and then: that $\mathcal{L}_K$ *is* the ELBO of $q_K$. So we ask for a distance of a thousandth of a nat at least, for $K > 1$.

# %%
sizes = (1, 2, 5, 20, 100)
laws = {k: chosen(relative, k) for k in sizes}
assert all(abs(law.sum() - 1) < 1e-9 for law in laws.values())
kl_chosen = torch.stack([(law * (law / (q_mass * relative)).log()).sum() for law in laws.values()])
gap_at = torch.stack([gap[k - 1] for k in sizes])
checks.inequality(
    "14.8",
    "𝓛_K + 0.001 < ELBO of q_K < log p(x), for K = 2, 5, 20, 100",
    torch.stack([0.001 - gap_at, -kl_chosen])[:, 1:],
    torch.stack([-kl_chosen, torch.zeros(5)])[:, 1:],
    wrong={
        "𝓛_K is the ELBO of q_K": torch.stack([0.001 - kl_chosen, -kl_chosen])[:, 1:],
        "1/K forgotten in the bound": torch.stack([torch.tensor(sizes).log() - gap_at, -kl_chosen])[:, 1:],
    },
)
assert abs(kl_chosen[0] - exact_gap) < 1e-9
print(
    *(
        f"K = {k:<3}  gap of the bound {g:.4f}   KL(q_K ‖ posterior) {c:.4f}"
        for k, g, c in zip(sizes, gap_at, kl_chosen, strict=True)
    ),
    sep="\n",
)
assert kl_chosen[2] < 0.15 * gap_at[2]

# %% [markdown]
# ## One row of bounds: Rényi and χ²
#
# Log of the mean, mean of the log: both are logs of **power means**, two members of one family (Li & Turner 2016),
#
# $$
# \mathcal{L}^{(\alpha)} = \frac{1}{1 - \alpha} \log \mathbb{E}_q\big[ w^{1 - \alpha} \big]. \tag{14.5}
# $$
#
# A power mean grows with its exponent, so $\mathcal{L}^{(\alpha)}$ falls with $\alpha$. At $\alpha = 0$ it is $\log \mathbb{E}_q[w] = \log p_\theta(x)$. As $\alpha \to 1$ it tends to $\mathcal{L}$: $w^{\epsilon} = 1 + \epsilon \log w + \dots$ Below zero it is an *upper* bound. With $n = 1 - \alpha = 2$ it is called
# CUBO, the **χ² upper bound** (Dieng et al. 2017):
#
# $$
# \mathcal{L} \;\le\; \log p_\theta(x) \;\le\; \mathrm{CUBO}_2 = \tfrac12 \log \mathbb{E}_q[w^2] = \log p_\theta(x) + \tfrac12 \log \big( 1 + \sigma^2 \big). \tag{14.6}
# $$
#
# (The last step: $\mathbb{E}_q[w^2] = p_\theta(x)^2 (1 + \sigma^2)$, and $\sigma^2$, the variance from (14.3), is the χ² divergence of the posterior from $q$.) For Normals, with $a = 1 - \alpha$, the integral $\int p_\theta(z \mid x)^a\, q(z)^{1-a}\, dz$ is Gaussian with
# precision $P = a/v + (1 - a)/s^2$, here $2 - \alpha$, if that is positive; otherwise it is infinite.


# %%
def renyi_of_normals(alpha, mean=1.0, v=0.5, m=0.5, s2=1.0):
    """The bound minus log p(x), for posterior N(mean, v) and q = N(m, s2), in closed form."""
    a = 1 - alpha
    precision, linear = a / v + (1 - a) / s2, a * mean / v + (1 - a) * m / s2
    squares = a * mean**2 / v + (1 - a) * m**2 / s2 - linear**2 / precision
    return (-a * math.log(v) - (1 - a) * math.log(s2) - math.log(precision) - squares) / (2 * a)


def renyi_by_scipy(alpha):
    def integrand(z):
        log_ratio = 0.5 * math.log(2) - (z - 1) ** 2 + (z - 0.5) ** 2 / 2
        return math.exp((1 - alpha) * log_ratio - (z - 0.5) ** 2 / 2) / math.sqrt(2 * math.pi)

    return math.log(integrate.quad(integrand, -15, 15, epsabs=1e-13)[0]) / (1 - alpha)


alphas = np.array([-3.0, -1.0, -0.5, 0.3, 0.7, 1.3, 1.7])
checks.quadrature(
    "14.6a",
    "the Rényi bounds of Normals in closed form, α from −3 to 1.7",
    [renyi_of_normals(a) for a in alphas],
    [renyi_by_scipy(a) for a in alphas],
    wrong={
        "the normaliser √(2π/P) forgotten": [renyi_of_normals(a) + math.log(2 - a) / (2 - 2 * a) for a in alphas],
        "1/(1 − α) forgotten": [(1 - a) * renyi_of_normals(a) for a in alphas],
    },
)
checks.exact(
    "14.6b",
    "α → 1 is the ELBO, α = 0 is log p(x)",
    [renyi_of_normals(1 - 1e-6), renyi_of_normals(1 + 1e-6), renyi_of_normals(0.0)],
    [-exact_gap, -exact_gap, 0.0],
    wrong={"the two ends exchanged": [0.0, 0.0, -exact_gap]},
    tolerance=1e-5,
)

# %%
cubo_gap = renyi_of_normals(-1.0)
elbo_gap = -(q_mass @ relative.log())
checks.inequality(
    "14.7a",
    "𝓛 ≤ log p(x) ≤ CUBO₂, both by quadrature",
    torch.tensor([-elbo_gap, -renyi_by_scipy(-1.0)]),
    0.0,
    wrong={"the half forgotten: log E[w²]": torch.tensor([-elbo_gap, -log_evidence - 2 * cubo_gap])},
)
checks.exact(
    "14.7b",
    "CUBO₂ lies ½ log(1 + σ²) above log p(x)",
    cubo_gap,
    0.5 * math.log1p(variance),
    wrong={"½ log σ²": 0.5 * math.log(variance), "the square root forgotten": math.log1p(variance)},
)

# %% [markdown]
# ### An upper bound that is not one
#
# A sandwich of $\log p_\theta(x)$ from draws alone: who would not want that? But (14.5) takes its expectation *inside* the log, and we have a mean over $K$ draws there. That is Jensen's loss once more: the estimate is too low on average, for every
# $\alpha < 1$. For a lower bound that is the safe side. For CUBO it is the wrong one. With one draw, $\frac12 \log w^2$ *is* $\log w$: the upper bound's mean is the ELBO.
#
# How many draws until its mean is above $\log p_\theta(x)$? Write $u = w^2 / \mathbb{E}_q[w^2]$; then (12.3) answers.

# %%
relative_square = relative**2 / (q_mass @ relative**2)


def mean_cubo(num_samples):
    """Mean of the K-sample estimate of CUBO₂, minus log p(x)."""
    return cubo_gap + 0.5 * mean_log_of_mean(relative_square, num_samples)


draws = weigh(log_joint_of(0.0), Normal(0.5 * torch.ones(50_000), 1.0), 0.5 + torch.randn(2, 50_000))
checks.monte_carlo(
    "14.7c",
    "the mean of the package's cubo with 2 draws, by the integral (12.3)",
    cubo(draws.log_weight),
    log_evidence + mean_cubo(2),
    wrong={"CUBO itself": log_evidence + cubo_gap, "log p(x)": log_evidence, "the ELBO": log_evidence - exact_gap},
)
first = next(k for k in range(1, 200) if mean_cubo(k) > 0)
print(f"CUBO₂ is {cubo_gap:.3f} above log p(x); the mean of its estimate is above from K = {first} on")
assert abs(mean_cubo(1) + exact_gap) < 1e-6

with torch.random.fork_rng():  # fifteen independent copies of the example: log weights add up
    torch.manual_seed(3)
    e = torch.randn(8, 4_000, 15)
log_square = 2 * (0.5 * math.log(2) - (e - 0.5) ** 2 + e**2 / 2).sum(-1)  # 2 log(w / p(x))
estimates = 0.5 * (log_square.logsumexp(0) - math.log(8))
assert estimates.mean() < -4 * estimates.std() / math.sqrt(4_000)  # below log p(x), with 8 draws

# %% mystnb={"image": {"alt": "Bounds against alpha from minus 2 to 1.9. The exact curve falls from above the log evidence, crosses it at alpha 0, passes the ELBO at alpha 1 and plunges before 2. The mean of a two-draw estimate lies below it for alpha under 1, at alpha minus 1 even below the log evidence, and meets it at alpha 1."}}
alphas = np.array([a for a in np.arange(-2, 1.95, 0.1) if abs(a) > 0.01 and abs(a - 1) > 0.01])
exact_curve = np.array([renyi_of_normals(a) for a in alphas])
estimate_curve = []
for a in alphas:
    power = relative ** (1 - a)
    mean_power = q_mass @ power
    estimate_curve.append(((mean_power.log() + mean_log_of_mean(power / mean_power, 2)) / (1 - a)).item())
estimate_curve = np.array(estimate_curve)
assert (np.diff(exact_curve) < 0).all()
assert (estimate_curve[alphas < 1] < exact_curve[alphas < 1]).all()
assert (estimate_curve[alphas > 1] > exact_curve[alphas > 1]).all()
assert estimate_curve[np.isclose(alphas, -1)] < 0 < exact_curve[np.isclose(alphas, -1)]
assert 0 < estimate_curve[0] < 0.05
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 3))
    ax.axhline(0, color=plots.COLOURS.evidence, linewidth=1.5)
    ax.plot(alphas, exact_curve, color=plots.COLOURS.q, label="the bound (14.5)")
    ax.plot(alphas, estimate_curve, "--", color=plots.COLOURS.theta, label="mean of its estimate, 2 draws")
    for a, y, words, right in (
        (1.0, -exact_gap, "ELBO", 0.08),
        (-1.0, cubo_gap, "CUBO₂", 0.05),
        (0.0, 0.0, "log p(x)", 0.08),
    ):
        ax.plot(a, y, "o", color="black")
        ax.text(a + right, y + 0.05, words)
    ax.set(xlabel="α", ylabel="nats from log p(x)", ylim=(-1.2, 0.35))
    ax.legend(loc="lower left")
    ax.set_title("From two draws, CUBO₂ is below log p(x) on average")

# %% [markdown]
# The dashed curve is a lower bound of $\log p_\theta(x)$ for $0 \le \alpha < 1$ whatever $K$, and a good name for it exists: the VR-IWAE bound of Daudel, Benton, Shi & Doucet (2023), with $K$ draws honestly part of the definition, so that its gradients are unbiased. For $\alpha < 0$ it is nothing
# one can rely on: at $\alpha = -1$ it is below the evidence, at $-2$ just above. Here three draws are enough for CUBO₂. With fifteen independent copies of the example, eight are not (the last assert before the figure): do not count
# on a handful. From $\alpha = 2$ on the exact curve is at $-\infty$ here, and the estimate does not show it.
#
# ## What a $K$-sample gradient is
#
# Differentiate (14.1). The chain rule through log and mean gives each draw its share of the weight:
#
# $$
# \nabla \log \frac1K \sum_k w_k = \frac{\sum_k \nabla w_k}{\sum_j w_j} = \sum_k \tilde w_k\, \nabla \log w_k. \tag{14.7}
# $$
#
# Compare with (14.4): for θ, it is the gradient that one would get from *one* draw of $q_K$,
# $\nabla_\theta \mathcal{L}_K = \mathbb{E}_{q_K}[\nabla_\theta \log p_\theta(x, z)]$. As $q_K$ tends to the posterior, this tends to $\nabla_\theta \log p_\theta(x)$, Fisher's identity from [chapter 05](05_em_is_coordinate_ascent.ipynb). That is what the tighter bound buys.
#
# For φ a draw has two dependences, through the sample and through $\log q$ (chapter 03):
#
# $$
# \nabla_\phi \mathcal{L}_K = \mathbb{E}_{q_K}\big[\, g(z) - h(z) \,\big], \qquad g = \nabla_z \log w\; \frac{\partial z}{\partial \phi}, \qquad h = \nabla_\phi \log q_\phi(z). \tag{14.8}
# $$
#
# First (14.7), draw by draw, against slopes by hand. Then the means under $q_K$ against differences of the exact bound, where nobody differentiates anything. One classic bug is among the rivals: a softmax of the *loss*, which favours the worst draws.

# %%
with torch.random.fork_rng():
    torch.manual_seed(1)
    automatic = slopes(plain, 5, 4)
    torch.manual_seed(1)
    e = torch.randn(5, 4)
z_drawn = 0.5 + e
log_w = -(z_drawn**2) / 2 - (2 - z_drawn) ** 2 / 2 + e**2 / 2
by_hand = torch.stack([2 - 2 * z_drawn, (2 - 2 * z_drawn) * e + 1, 2 - z_drawn], -1)


def weighted(weights):
    return (weights[..., None] * by_hand).sum(0)


checks.exact(
    "14.3a",
    "autodiff through iwae = Σ w̃ ∇log w, slopes by hand, in m, log s and θ",
    automatic,
    weighted(log_w.exp() / log_w.exp().sum(0)),
    wrong={
        "equal weights: the ELBO's gradient": weighted(torch.full((5, 4), 0.2)),
        "a softmax of the loss": weighted((-log_w).softmax(0)),
        "weights over the batch": weighted(log_w.softmax(1)),
    },
)

# %%
path = torch.stack([2 - 2 * z + noise, (2 - 2 * z + noise) * noise], -1)  # g: through the sample, m and log s
score = torch.stack([noise, noise**2 - 1], -1)  # h
h = 1e-4


def exact_bound(at, num_samples):
    _, relative, log_evidence = situation(*at.tolist())
    return log_evidence + mean_log_of_mean(relative, num_samples)


def exact_slopes(num_samples):
    """Differences of the exact bound in m, log s and theta."""
    steps = h * torch.eye(3)
    return torch.stack([exact_bound(place + d, num_samples) - exact_bound(place - d, num_samples) for d in steps]) / (
        2 * h
    )


law = chosen(relative, 8)
target = exact_slopes(8)
under_law = torch.cat([law @ (path - score), (law @ (2 - z))[None]])
checks.quadrature(
    "14.3b",
    "the gradient of 𝓛₈ in m, log s, θ = means under q₈",
    under_law,
    target,
    wrong={
        "log q's own slope forgotten": torch.cat([law @ path, under_law[2:]]),
        "the mean under q: the ELBO's": torch.cat([q_mass @ (path - score), (q_mass @ (2 - z))[None]]),
    },
)
print("gradient of the bound in (m, log s, θ) at K = 1, 8, 64, 512:")
for k in (1, 8, 64, 512):
    print(*(f"{value:8.4f}" for value in exact_slopes(k)))

# %% [markdown]
# The picture is all in this table. The gradient in θ settles at 1.0, the gradient of $\log p_\theta(x)$. The gradient in φ goes to zero, and it must: at $K = \infty$ the bound is $\log p_\theta(x)$ *whatever* $q$ is. A bound that no longer depends on $q$ has nothing to say to $q$.
#
# ### Signal and noise
#
# A vanishing signal would be harmless if the noise vanished as fast. By (14.3) the signal in φ is $O(1/K)$. The noise of (14.7), a weighted average of $K$ draws, is $O(1/\sqrt K)$. So for the **signal-to-noise ratio**, mean over standard deviation (Rainforth et al. 2018):
#
# $$
# \mathrm{SNR}_\theta = \frac{O(1)}{O(1/\sqrt K)} = O(\sqrt K), \qquad \mathrm{SNR}_\phi = \frac{O(1/K)}{O(1/\sqrt K)} = O(1/\sqrt K). \tag{14.9}
# $$
#
# More draws make the model's gradient clearer and the encoder's, relative to its signal, noisier, in the same backward pass. Both rates need weights of finite variance, and a $K$ large enough for (14.3). Our example has them; chapter 12's digits
# did not follow (12.2), so there (14.9) says where things tend, not at which rate.
#
# ### The second reparameterisation
#
# Which part of (14.8) is noisy? $h$, the score. Its mean under $q$ is zero. In (14.8) it is weighted, so it may not be dropped as sticking-the-landing does. But it may be *rewritten*. The mean of $\tilde w_k h(z_k)$ over $z_k \sim q$ is a score-function gradient of $\tilde w_k$,
# looked at as a function of $z_k$, and chapter 03's two guides agree on average: the pathwise guide gives the same mean,
#
# $$
# \mathbb{E}\big[ \tilde w_k\, \nabla_\phi \log q_\phi(z_k) \big] = \mathbb{E}\Big[ \frac{\partial \tilde w_k}{\partial z_k} \frac{\partial z_k}{\partial \phi} \Big]
# = \mathbb{E}\big[ (\tilde w_k - \tilde w_k^2)\; g(z_k) \big], \tag{14.10}
# $$
#
# since $\partial \tilde w_k = \tilde w_k (1 - \tilde w_k)\, \partial \log w_k$. Put it into (14.8): $\tilde w g - (\tilde w - \tilde w^2) g$, and what remains is the **doubly reparameterised** gradient (DReG; Tucker, Lawson, Gu & Maddison 2019):
#
# $$
# \nabla_\phi \mathcal{L}_K = \mathbb{E}\Big[ \sum_k \tilde w_k^2\; \nabla_z \log w(z_k)\, \frac{\partial z_k}{\partial \phi} \Big]. \tag{14.11}
# $$
#
# Now each term is of the size $1/K^2$; the noise of $K$ of them is $O(K^{-3/2})$, the signal $O(1/K)$ as before, so that the SNR *grows* as $\sqrt K$. In code: hold φ fixed in $\log q$, and multiply what flows back through the sample by $\tilde w$ once more.


# %%
def frozen_weights(log_joint, q, num_samples):
    """Samples that carry φ, and log weights in which log q does not."""
    z = q.rsample((num_samples,))
    return z, log_joint(z) - Normal(q.mean.detach(), q.stddev.detach()).log_prob(z)


def doubly(log_joint, q, num_samples):
    z, log_weight = frozen_weights(log_joint, q, num_samples)
    normalised = log_weight.detach().softmax(0)
    z.register_hook(lambda slope: normalised * slope)  # the second factor
    return iwae(log_weight)


def sticking(log_joint, q, num_samples):
    """Multi-sample sticking-the-landing: the score dropped, nothing put in its place."""
    return iwae(frozen_weights(log_joint, q, num_samples)[1])


results = {}
for estimator in (doubly, iwae_doubly_reparameterised, plain):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        results[estimator] = slopes(estimator, 6, 50)
assert torch.allclose(results[doubly], results[iwae_doubly_reparameterised], atol=1e-12)  # the package agrees
assert torch.allclose(results[doubly][:, 2], results[plain][:, 2], atol=1e-12)  # and in theta nothing has changed

# %% [markdown]
# θ needs no mending: its SNR rises anyway, and DReG leaves its gradient as it is, draw by draw (the last assert). For φ: is (14.11) unbiased, and is *sticking* not? Then the variances. That the variance falls is a statement about this place, not a theorem: at $K = 1$ DReG is sticking-the-landing, and chapter 03 shows where that one is noisier.

# %%
checks.monte_carlo(
    "14.4a",
    "DReG is unbiased: its mean at K = 8 is the gradient of 𝓛₈, in m and log s",
    slopes(iwae_doubly_reparameterised, 8, 40_000)[:, :2],
    target[:2],
    wrong={
        "multi-sample sticking-the-landing": law @ path,
        "the ELBO's gradient": q_mass @ (path - score),
        "the sign of the correction": law @ (path + score),
    },
)
checks.monte_carlo(
    "14.9a",
    "multi-sample sticking-the-landing has another mean: E_{q₈}[g]",
    slopes(sticking, 8, 40_000)[:, :2],
    law @ path,
    wrong={"the gradient of 𝓛₈": target[:2]},
)
sizes = [16, 64, 256, 1024]
found = {
    name: [slopes(estimator, k, max(2500, 200_000 // k)) for k in sizes]
    for name, estimator in (("plain", plain), ("DReG", iwae_doubly_reparameterised), ("STL", sticking))
}
spread = {name: torch.stack([g.std(0) for g in runs]) for name, runs in found.items()}
checks.inequality(
    "14.4b",
    "DReG's standard deviation in m and log s is below a quarter of the plain one's, K = 16 to 1,024",
    spread["DReG"][:, :2],
    spread["plain"][:, :2] / 4,
    wrong={"one factor of w̃ only": spread["STL"][:, :2]},
)

# %% [markdown]
# Now the slopes of (14.9). The signal comes from quadrature: an empirical mean would not do, for where the SNR is far below one, its own noise would pose as signal. The noise comes from 2,500 or more repetitions. We fit a line through $\log \mathrm{SNR}$ over $\log K$ and allow 0.06 for the noise and for $K$ not being infinite.

# %%
signal = torch.stack([exact_slopes(k).abs() for k in sizes])
snr = {
    "θ": signal[:, 2] / spread["plain"][:, 2],
    "φ": signal[:, 0] / spread["plain"][:, 0],
    "φ, DReG": signal[:, 0] / spread["DReG"][:, 0],
}
in_scale = {name: signal[:, 1] / spread[name][:, 1] for name in ("plain", "DReG")}  # the same in log s
slope, scale_slope = (
    {name: np.polyfit(np.log(sizes), values.log().numpy(), 1)[0] for name, values in rows.items()}
    for rows in (snr, in_scale)
)
checks.quadrature(
    "14.5",
    "SNR slopes in log K, ± 0.06: θ ½; φ −½ in m and in log s; with DReG ½ in both",
    [slope["θ"], slope["φ"], scale_slope["plain"], slope["φ, DReG"], scale_slope["DReG"]],
    [0.5, -0.5, -0.5, 0.5, 0.5],
    wrong={
        "averaging always helps: ½": [0.5, 0.5, 0.5, 0.5, 0.5],
        "signal 1/K, noise forgotten": [0.0, -1.0, -1.0, -1.0, -1.0],
        "DReG merely stops the fall": [0.5, -0.5, -0.5, 0.0, 0.0],
    },
    tolerance=0.06,
)

# %% mystnb={"image": {"alt": "Signal-to-noise ratio against K from 16 to 1024 on logarithmic axes. The line for theta rises from about 6 to 45. DReG's line for phi rises in parallel below it. The plain gradient's line for phi falls from a tenth to a hundredth."}}
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 3))
    colours = (plots.COLOURS.theta, plots.COLOURS.q, plots.COLOURS.accent)
    for (name, values), colour, mark in zip(snr.items(), colours, "os^", strict=True):
        ax.loglog(sizes, values, color=colour, marker=mark, label=name)
        ax.annotate(
            f"{name}: slope " + f"{slope[name]:+.1f}".replace("-", "−"),
            (sizes[-1], values[-1]),
            (-6, {"θ": 9, "φ": 12, "φ, DReG": -20}[name]),
            textcoords="offset points",
            ha="right",
            color=colour,
        )
    ax.axhline(1, color=plots.COLOURS.muted, linewidth=1)
    ax.set(xlabel="samples K", ylabel="signal-to-noise ratio", ylim=(0.005, 150))
    ax.set_xticks(sizes, [str(k) for k in sizes])
    ax.set_title("More draws: clearer for θ, blind for φ, clear again with DReG")

# %% [markdown]
# ## The third way: leave the bound
#
# Sticking-the-landing with many draws is biased. Towards what? Its mean is $\mathbb{E}_{q_K}[g]$, and for large $K$ that is $\mathbb{E}_{p_\theta(z \mid x)}[g]$. Write the posterior as $q \cdot w / p_\theta(x)$ and use the two guides as in (14.10), now for the function $w / p_\theta(x)$:
#
# $$
# \mathbb{E}_{q}\Big[ \frac{w}{p_\theta(x)}\, g \Big] = \mathbb{E}_q\Big[ \frac{\partial}{\partial z} \frac{w}{p_\theta(x)}\; \frac{\partial z}{\partial \phi} \Big]
# = \mathbb{E}_{q}\Big[ \frac{w}{p_\theta(x)} \nabla_\phi \log q_\phi(z) \Big] = - \nabla_\phi \mathrm{KL}\big( p_\theta(z \mid x) \,\|\, q_\phi(z \mid x) \big). \tag{14.12}
# $$
#
# It is no gradient of the bound at all. It is the gradient of the KL *the other way round*. And the third expression shows how to have it without any pathwise derivative: take plain samples, and raise $\log q$ at each in proportion to its weight. That is the encoder's *wake-phase* update in **reweighted wake–sleep** (RWS; Bornschein & Bengio 2015; its sleep phase, which we leave out, trains $q$ on codes and data drawn from the model):
#
# $$
# \nabla_\theta: \ \sum_k \tilde w_k\, \nabla_\theta \log p_\theta(x, z_k), \qquad \nabla_\phi: \ \sum_k \tilde w_k\, \nabla_\phi \log q_\phi(z_k \mid x), \qquad z_k \text{ held fixed.} \tag{14.13}
# $$
#
# The θ half is IWAE's (14.7). The φ half needs no `rsample`, so discrete latents are welcome ([chapter 17](17_discrete_latents.ipynb)); and it has a target of its own that does not fade. There is no bound that both halves climb: this is training without the ELBO.


# %%
def reweighted_wake_sleep(log_joint, q, num_samples):
    """The value of the bound, with the two gradients of (14.13)."""
    draws = weigh(log_joint, q, q.sample((num_samples,)))
    normalised = draws.log_weight.detach().softmax(0)
    climb = (normalised * (draws.log_joint + draws.log_q)).sum(0)
    return iwae(draws.log_weight.detach()) + climb - climb.detach()


reversed_kl_slope = torch.tensor([(1 - 0.5) / 1.0, (0.5 + 0.5**2) / 1.0 - 1])  # of −KL(N(1, ½) ‖ N(m, s²)) in m, log s
large = chosen(relative, 1000)
checks.quadrature(
    "14.9b",
    "at K = 1,000 STL and RWS both follow −∇KL(p ‖ q), in m and log s, to 0.002",
    torch.stack([large @ path, large @ score]),
    torch.stack([reversed_kl_slope, reversed_kl_slope]),
    wrong={
        "the gradient of the bound": exact_slopes(1000)[:2].expand(2, 2),
        "−∇KL(q ‖ p), the ELBO's": (q_mass @ (path - score)).expand(2, 2),
    },
    tolerance=0.002,
)
checks.monte_carlo(
    "14.9c",
    "the RWS gradient at K = 8 has the mean E_{q₈}[∇log q], and IWAE's gradient in θ",
    slopes(reweighted_wake_sleep, 8, 40_000),
    torch.cat([law @ score, target[2:]]),
    wrong={
        "the gradient of 𝓛₈": target,
        "unweighted: the score's mean, zero": torch.cat([torch.zeros(2), target[2:]]),
    },
)

# %% [markdown]
# At $K = 1$ the weight is always one, and RWS pushes φ nowhere on average: it needs draws to compare. At finite $K$ it is biased too, towards $q$ itself, since $q_K$ is still on its way from $q$ to the posterior. The bias falls with $K$, as one would like: more draws make *both* halves better.
#
# ### Three bounds, three encoders
#
# So the objective decides not only how well φ is told, but also *what*. Where the family holds the posterior, all three agree. Where it does not, the ELBO asks for the smallest $\mathrm{KL}(q \,\|\, p)$, RWS for the smallest $\mathrm{KL}(p \,\|\, q)$, and IWAE at large $K$, by (14.3), for the smallest $\sigma^2$, which is $\chi^2(p \,\|\, q)$. Take a correlated Gaussian posterior
# with unit variances and correlation $\rho$, and $q = \mathcal{N}(0, \tau^2 I)$. The precision has the eigenvalues $a = 1/(1+\rho)$, $b = 1/(1-\rho)$; with $c = 1/\tau^2$, up to constants,
#
# $$
# \mathrm{KL}(q \| p) = \frac{a + b}{2c} + \log c, \qquad \mathrm{KL}(p \| q) = c - \log c, \qquad \log(1 + \chi^2) = -\tfrac12 \log\big( c^2 (2a - c)(2b - c) \big). \tag{14.14}
# $$
#
# Which is widest? Guess before you look. (Set the derivatives to zero; the third gives $2 c^2 - 3(a+b) c + 4ab = 0$.)


# %%
def scales_at(rho):
    """The best τ of each objective, from (14.14)."""
    a, b = 1 / (1 + rho), 1 / (1 - rho)
    precision_chi = (3 * (a + b) - math.sqrt(9 * (a + b) ** 2 - 32 * a * b)) / 4
    return {"ELBO": math.sqrt(2 / (a + b)), "RWS": 1.0, "IWAE, K → ∞": precision_chi**-0.5}


# %% [markdown]
# The oracle sums each divergence over a grid in the plane and searches the best $\tau$ by itself; it knows nothing of (14.14).

# %%
rho = 0.9
a, b = 1 / (1 + rho), 1 / (1 - rho)
best_scale = scales_at(rho)
axis = np.linspace(-14, 14, 561)
u, v = np.meshgrid(axis, axis)  # along the eigenvectors
log_p = -0.5 * (a * u**2 + b * v**2) + 0.5 * math.log(a * b) - math.log(2 * math.pi)


def divergences(log_tau):
    log_q = -0.5 * (u**2 + v**2) / math.exp(2 * log_tau) - 2 * log_tau - math.log(2 * math.pi)
    cell = 0.05**2
    parts = np.exp(log_q) * (log_q - log_p), np.exp(log_p) * (log_p - log_q), np.exp(2 * log_p - log_q)
    return [part.sum() * cell for part in parts]


numeric = [
    math.exp(
        optimize.minimize_scalar(
            lambda t, i=i: divergences(t)[i], bounds=limits, method="bounded", options={"xatol": 1e-9}
        ).x
    )
    for i, limits in enumerate([(-1.5, 0.5), (-1.0, 0.8), (-0.1, 0.4)])
]
checks.quadrature(
    "14.10a",
    "the best scales for KL(q ‖ p), KL(p ‖ q) and χ²(p ‖ q), ρ = 0.9, against a grid",
    list(best_scale.values()),
    numeric,
    wrong={
        "the two KLs exchanged": [best_scale["RWS"], best_scale["ELBO"], best_scale["IWAE, K → ∞"]],
        "all of them the marginal scale": [1.0, 1.0, 1.0],
    },
    tolerance=1e-5,
)
print(*(f"{name:<12} scale {tau:.3f}" for name, tau in best_scale.items()), sep="\n")


# %% mystnb={"image": {"alt": "A narrow tilted ellipse, the posterior, and three circles around its centre. The ELBO's circle is the smallest, wider than the ellipse is narrow and far shorter than it is long, the circle of RWS reaches the posterior's marginal width, and the circle of IWAE with many draws is the widest."}}
def circles(fig, rho):
    """The posterior at this correlation, and the best q of each objective."""
    ax = fig.subplots()
    plots.normal_ellipse(
        np.zeros(2), np.array([[1, rho], [rho, 1]]), ax, [2.0], colour=plots.COLOURS.p, label="posterior"
    )
    colours = (plots.COLOURS.q, plots.COLOURS.theta, plots.COLOURS.accent)
    for (name, tau), line, colour in zip(scales_at(rho).items(), ("-", "--", ":"), colours, strict=True):
        plots.normal_ellipse(np.zeros(2), tau**2 * np.eye(2), ax, [2.0], colour=colour, linestyle=line, label=name)
    ax.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal", xlabel="$z_1$", ylabel="$z_2$")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.set_title(f"ρ = {rho:.2f}: each objective wants another q")


plots.slider(circles, figsize=(6.4, 3.4), rho=(0.0, 0.99, 0.9))

# %% [markdown]
# (When you run this, a slider moves ρ. Which of the three circles never moves, and why?)
#
# Widest is IWAE's. A proposal must cover, and the χ² punishes a place where the posterior is and $q$ is not by the *square* of the density. (In [chapter 07](07_when_q_is_too_simple.ipynb) you saw $q$ widen with $K$ on the way there.) A good *proposal* is not a good *posterior*: keep that for the ledger.
#
# ## What it buys and what it costs, on digits
#
# Chapter 12's 64-pixel digits, two latents so that $\log p_\theta(x)$ is a sum over a grid. A comparison must be at equal work, and the work is in the decoder. **Every step decodes 1,000 codes**: 1,000 digits once, or 200 digits five times, or 20 digits fifty times. Same start, same 320 steps of Adam, same falling learning rate.
# So draws are paid for in digits. To keep these two apart there is a control: the ELBO with the 20 digits, and fifty draws averaged *outside* of the log.
#
# Predict three columns before you run it, held out: which objective has the highest ELBO, the highest $\log p_\theta(x)$, the smallest $\mathrm{KL}(q \,\|\, p_\theta(z \mid x))$?


# %%
def average_of_logs(log_joint, q, num_samples):
    return elbo(draw(log_joint, q, num_samples).log_weight)


digits = data.digits()
train, test = ((counts >= 8).double() for counts in (digits.train, digits.test))
D = train.shape[1]
_ = torch.manual_seed(0)
decoder = BernoulliHead(mlp(2, 32, D), D)
start = models.LatentVariableModel(families.standard_normal(2), decoder), DiagonalNormalHead(mlp(D, 32, 4), 2)


def train_with(bound, num_samples, num_steps=320):
    model, q = copy.deepcopy(start)
    optimiser = torch.optim.Adam([*model.parameters(), *q.parameters()], lr=2e-2)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, num_steps)
    training.fit(
        lambda x: bound(model.given(x), q(x), num_samples),
        optimiser,
        train,
        num_steps=num_steps,
        batch_size=1000 // num_samples,
        generator=torch.Generator().manual_seed(0),
        callback=lambda _: falling.step(),
    )
    return model.requires_grad_(False), q.requires_grad_(False)


# %%
recipes = {
    "ELBO, 1,000 × 1": (average_of_logs, 1),
    "ELBO, 20 × 50": (average_of_logs, 50),
    "IWAE, 200 × 5": (plain, 5),
    "IWAE, 20 × 50": (plain, 50),
    "DReG, 20 × 50": (iwae_doubly_reparameterised, 50),
    "RWS, 20 × 50": (reweighted_wake_sleep, 50),
}
machines = {name: train_with(*recipe) for name, recipe in recipes.items()}

# %% [markdown]
# And the judge: $\log p_\theta(x)$ by a grid as in chapter 12, the ELBO by Gauss–Hermite. The line that estimates the ELBO is the one of chapter 01 for all six.

# %%
side = torch.linspace(-6, 6, 161)
cells = torch.cartesian_prod(side, side)


def on_grid(model, x):
    """log p(x, z) of each image in each cell, (N, G), and log p(x), (N,)."""
    logits = model.likelihood.network(cells)
    log_joint = x @ logits.T + (model.prior().log_prob(cells) - softplus(logits).sum(-1))
    return log_joint, log_joint.logsumexp(-1) + 2 * math.log(12 / 160)


x, num_samples = test, 50
table = {}
for name, (model, q) in machines.items():
    estimate = elbo(draw(model.given(x), q(x), num_samples).log_weight)
    bound = quadrature.expected_elbo(model.given(x), q(x), order=20)
    assert (estimate - bound).mean().abs() < 0.3  # the line and the quadrature agree
    iwae_50 = iwae(draw(model.given(x), q(x), num_samples).log_weight)
    table[name] = bound, iwae_50, on_grid(model, x)[1]
print(
    f"{'digits × draws':<17} {'ELBO':>7} {'IWAE-50':>8} {'log p(x)':>9} {'KL(q ‖ post.)':>14}   nats per held-out digit"
)
for name, (bound, iwae_50, exact) in table.items():
    print(f"{name:<17} {bound.mean():7.1f} {iwae_50.mean():8.1f} {exact.mean():9.1f} {(exact - bound).mean():14.1f}")

# %% [markdown]
# Read it in pairs.
#
# - **Rows 2 and 4.** The same 20 digits, the same 50 draws, the average moved inside of the log. The model hardly changes; the encoder's KL goes from a tenth of a nat to three nats.
# - **Rows 4 and 5.** The same bound, the gradient mended: the KL falls to a tenth. At any place the mean gradient in φ is the same, so what hurt was its noise (and Adam, which divides by the root mean square of the gradient, makes short steps of a noisy one).
#   The model looks better too, but not by four standard errors.
# - **Row 6.** The method without a bound has the smallest KL of rows 3 to 6, and a model within a tenth of a nat of DReG's.
# - **Rows 1 and 4.** Fifty draws at the price of 980 digits per step was a bad bargain, for the model as well. $K$ is not free.
# - **Rows 1 and 3.** Five draws: a model that looks better, and an encoder twice as far from its posteriors, so that the two ELBOs cannot tell them apart: chapter 12's league table once more.
#
# Which of this is more than noise over the 299 digits? We ask for four standard errors of the paired difference. And over starts? With the seeds 1, 2 and 3 the four comparisons of the next cell stood; IWAE-50's KL was between 1.8 and 3.3. In $\log p_\theta(x)$ the comparison of rows 1 and 3 turned round with one of them, and with another rows 4 and 5
# had the same model. Do not build on either.
#
# And over longer training? We tried 1,280 steps, seed 0, twice. At a quarter of the learning rate the KLs of rows 4 to 6 were 1.7, 0.5 and 0.3. At the *same* rate all six models came out two to three nats better, and all six encoders worse: 5.9 for IWAE-50, 4.2
# for DReG, 1.6 for RWS, 0.5 for the control of row 2. The order of these four stood. The tenth did not: DReG mends the signal, and not whatever else keeps an encoder from following its model. (Seed 1, at the same rate, told the same story. The KLs of five draws and of one were 3.2 standard errors apart with seed 0, and 7.6 with seed 1.)

# %%
elbo_of, iwae_of, log_p_of = ({name: row[i] for name, row in table.items()} for i in range(3))
kl_of = {name: log_p_of[name] - elbo_of[name] for name in table}
own_gap = {name: log_p_of[name] - iwae_of[name] for name in table}
one, control, five, fifty, mended, wake = recipes
pairs = {"five draws": (five, one), "fifty": (fifty, control), "DReG": (fifty, mended), "RWS": (fifty, wake)}


def short_of_four(gaps):
    """Four, minus the number of standard errors of each paired difference: negative is well established."""
    leads = torch.stack([gaps[worse] - gaps[better] for worse, better in pairs.values()])
    return 4 - leads.mean(1) / leads.std(1) * math.sqrt(leads.shape[1])


checks.inequality(
    "14.11",
    "KL(q ‖ posterior), held out: IWAE above the ELBO at 5 and 50 draws, DReG and RWS below IWAE-50, each > 4 s.e.",
    short_of_four(kl_of),
    0.0,
    wrong={"the gap of the IWAE-50 bound taken for the encoder's": short_of_four(own_gap)},
)

# %% mystnb={"image": {"alt": "Four bars, one for each of ELBO with one draw, IWAE with 50, DReG with 50 and RWS with 50, from the ELBO up to the log evidence. The wide part of IWAE's bar is its amortisation gap; that of the others is short."}}
ledgers, few = [], slice(None, None, 10)
for name in (one, fifty, mended, wake):
    model, q = machines[name]
    own = families.PerDatapoint(q, q.parameters_at(test[few]))
    best = evaluation.best_in_family(
        lambda d, model=model: quadrature.expected_elbo(model.given(test[few]), d, order=8), own, num_steps=25
    )
    ledgers.append(
        evaluation.gap_ledger(elbo_of[name][few], torch.maximum(best, elbo_of[name][few]), log_p_of[name][few])
    )
shares = [ledger.amortisation_gap / (ledger.amortisation_gap + ledger.approximation_gap) for ledger in ledgers]
assert shares[1] > 0.8
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 3.2))
    plots.ledger_bars(ledgers, [one, fifty, mended, wake], ax)
    ax.set_title("What the tighter bound costs is the encoder, not the family")

# %% [markdown]
# (Every tenth held-out digit.) The wide part of IWAE's bar is an *amortisation* gap: normal distributions far closer to these posteriors exist, and the encoder does not give them. Is it off the mark, or too wide? The grid knows the posterior's covariance, so we can compare areas, for all 299 digits.


# %%
def posterior_area(model, x):
    """√det of the covariance of each posterior, by sums over the grid."""
    mass = on_grid(model, x)[0].softmax(-1)
    mean, second = mass @ cells, mass @ (cells[:, :, None] * cells[:, None]).flatten(1)
    return (second.unflatten(1, (2, 2)) - mean[:, :, None] * mean[:, None]).det().sqrt()


area = {}
for name in (one, wake, mended, fifty):
    model, q = machines[name]
    area[name] = (q(test).stddev.prod(-1) / posterior_area(model, test)).median()
    print(f"{name:<17} area of q over the posterior's, median {area[name]:.1f}")
assert area[one] < 1 < area[wake] < area[mended] < area[fifty] / 2

# %% mystnb={"image": {"alt": "Three panels on the latent plane, each with one digit's posterior and the ellipse of an encoder. IWAE's ellipse is several times larger than the posterior. Those of DReG and of RWS have about the posterior's size."}}
digit = int(kl_of[fifty].argsort()[len(test) // 2])
with plots.style():
    fig, axes = plt.subplots(1, 3, figsize=(7, 2.9), layout="constrained")
    for ax, name in zip(axes, (fifty, mended, wake), strict=True):
        model, q = machines[name]
        log_joint, _ = on_grid(model, test[digit : digit + 1])
        plots.density_contours(log_joint.reshape(161, 161).T, side, side, ax, masses=[0.86])
        here = q(test[digit : digit + 1])
        plots.normal_ellipse(here.mean[0], here.variance[0].diag(), ax, [2.0])
        u, v = here.mean[0].tolist()
        ax.set(xlim=(u - 2.4, u + 2.4), ylim=(v - 2.4, v + 2.4), aspect="equal", xlabel="$z_1$")
        ax.set_title(name.replace(",", ":"), size=11)
    axes[0].set_ylabel("$z_2$")
    fig.suptitle("One digit: IWAE's plain gradient leaves q far too wide", x=0.01, ha="left", weight="bold", size=12)

# %% [markdown]
# Violet holds 86 % of the posterior, as two standard deviations of a round normal do; the digit is the median of IWAE-50's KLs. The order of the areas is that of (14.14): the ELBO's $q$ narrower than the posterior, RWS's a little wider, that of IWAE's objective (as DReG climbs it) wider still. Wide is right for a proposal. But IWAE's *own* gradient leaves $q$ with more than twice DReG's area, at the same objective. (In the two longer trainings it was 2.6 against 1.5, and 5.7 against 3.3.)
#
# ## A mistake people make
#
# Reporting is the first: "our IWAE reaches −20 nats", where the competitor's ELBO is −21. They are two different bounds; chapter 12 has the rule. The second is in code. Averages belong *inside* the log, over the sample axis. Here is what the two other axes and orders give on a batch.

# %%
model, q = machines[five]
log_weight = draw(model.given(test), q(test), 50).log_weight  # (50, 299)
right = iwae(log_weight).mean()
data_axis = (log_weight.logsumexp(1) - math.log(299)).mean()  # over the digits
data_first = (log_weight.sum(1).logsumexp(0) - math.log(50)) / 299  # digits summed, then the log of the mean
print(
    f"log p(x) {table[five][2].mean():.1f}; IWAE-50 {right:.1f}; over the data axis {data_axis:.1f}; data summed first {data_first:.1f}"
)
assert data_axis > table[five][2].mean() + 1  # no bound at all
assert data_first < right - 0.3  # a bound, and a loose one

# %% [markdown]
# The first slip gives a number *above* $\log p_\theta(x)$: no bound. The second is a bound, for one joint importance sampler over all 299 digits at once, and a looser one. `vi_tutorial` reduces over samples only, and returns one number per datapoint, so neither can happen by accident.
#
# ## More recent answers
#
# As read, not measured here:
#
# - Rainforth et al. (2018) propose to spend $M K$ draws as the mean of $M$ bounds with $K$ each (MIWAE), or different bounds for θ and φ (PIWAE). Exercise 14.E4 measures the first.
# - Le, Kosiorek, Siddharth, Teh & Wood (2019) revisit RWS, and report that, unlike IWAE, both its model and its inference network improve with $K$, for discrete latents and, in their first version, continuous ones too.
# - Finke & Thiéry (2019) derive IWAE-STL and DReG as special cases of adaptive importance sampling: (14.12) is the reason that STL belongs there.
# - Geffner & Domke (2021) show for several α-divergences that the SNR of *unbiased* gradients worsens exponentially with the dimension, and in a second paper that biased ones drift to the minimiser of $\mathrm{KL}(q \,\|\, p)$, unless the number of draws becomes impractical.
# - Bauer & Mnih (2021) extend DReG to hierarchical models and to the parameters of the prior.
# - Daudel, Benton, Shi & Doucet (2023) put α and $K$ into one bound, and analyse where raising $K$ helps and where not.
# - Vaitl, Nicoli, Nakajima & Kessel (2022) give *path gradients*, as sticking-the-landing is called there, of both KLs for normalising flows; Vaitl, Winkler, Richter & Kessel (2024) make them cheap.
#
# ## Exercises
#
# **14.E1 (recall).** `log_weight` (K, N) and `slopes` (K, N), the $\nabla \log w_k$ in one parameter. Return the gradient of each datapoint's IWAE bound, (N,). Log weights may be near −900.
#
# <details><summary>Hint</summary>Equation (14.7). Which axis do the weights sum to one over, and where does $e^{-900}$ go?</details>


# %%
def bound_slope(log_weight, slopes): ...  # your code


ch14.bound_slope.check(bound_slope)

# %% [markdown]
# **14.E2 · Cancel the leading term.** By (14.3), $\mathcal{L}_K = \log p_\theta(x) - \sigma^2/2K - \dots$ From `log_weight` (K, N), K ≥ 2, form the combination of the estimate with all $K$ draws and the mean of the $K$ leave-one-out estimates (each with $K - 1$) in which the $1/K$ term cancels (the *jackknife*; Nowozin 2018). Return (N,). It is no bound any more: why?
#
# <details><summary>Hint</summary>Find $A, B$ with $A + B = 1$ and $A/K + B/(K-1) = 0$.</details>


# %%
def jackknife(log_weight): ...  # your code


ch14.jackknife.check(jackknife)

# %% [markdown]
# **14.E3 · RWS by hand.** For $q = \mathcal{N}(m, s^2)$ in one dimension: from `log_joint` (K,) and `z` (K,), `m` and `s`, return the φ half of (14.13) as one tensor, in $m$ and $\log s$.
#
# <details><summary>Hint</summary>The weights need $\log q$ as well. The slope of $\log q$ in $\log s$ is not the one in $s$.</details>


# %%
def wake_slope(log_joint, z, m, s): ...  # your code


ch14.wake_slope.check(wake_slope)

# %% [markdown]
# **14.E4 · A study: how to spend 64 draws.** `log_weight` (M·K, N) and `num_groups` M: split the draws into M groups of K neighbours, and return the mean of the groups' IWAE bounds, (N,). Then predict from (14.9) how the SNR in $m$ of the *plain* gradient depends on M at $MK = 64$, and measure it in our example with `slopes`.
#
# <details><summary>Hint</summary>Averaging M independent gradients multiplies the SNR by √M. `reshape` keeps neighbours together only in one order of the axes.</details>


# %%
def mean_of_bounds(log_weight, num_groups): ...  # your code


ch14.mean_of_bounds.check(mean_of_bounds)

# %% [markdown]
# ## Summary
#
# *What does a tighter bound buy the model, and what does it cost the encoder?* It buys a gradient for θ that tends to the gradient of $\log p_\theta(x)$. It costs the encoder its voice: where the weights have a finite variance, the gradient in φ fades as $1/K$, and the plain estimator's noise only as $1/\sqrt K$.
#
# - You **placed** the bounds in one row of power means: Rényi's $\alpha$ from $-1$ (CUBO) through 0 ($\log p_\theta(x)$) to 1 (the ELBO). Estimated from few draws, an upper one may fall below the evidence, as CUBO₂ does from two.
# - You **explained** the $K$-sample gradients by $q_K$, the law of the chosen draw: IWAE's θ, IWAE's φ, STL's and RWS's are means of different functions under it.
# - You **predicted** the SNR: $\sqrt K$ for θ, $1/\sqrt K$ for φ, $\sqrt K$ again with DReG, which θ does not need.
# - **Decide** by what you need. For an encoder that is to be used as a posterior: the ELBO or RWS. For many draws: RWS or DReG rather than the plain gradient; on the digits RWS was the safer of the two. And whether draws are worth their price in data, measure, $\log p_\theta(x)$ *and* the KL, at equal work.
#
# ### Sources
#
# - Burda, Grosse & Salakhutdinov (2016), *Importance Weighted Autoencoders*: eq. 8 the bound, theorem 1 its chain, eq. 14 the gradient.
# - Cremer, Morris & Duvenaud (2017), *Reinterpreting Importance-Weighted Autoencoders*, arXiv:1704.02916; Domke & Sheldon (2018), *Importance Weighting and Variational Inference*.
# - Li & Turner (2016), *Rényi Divergence Variational Inference*, eq. 4 and theorem 1; Dieng et al. (2017), *Variational Inference via χ Upper Bound Minimization*; Daudel, Benton, Shi & Doucet (2023), *Alpha-divergence Variational Inference Meets Importance Weighted Auto-Encoders*, JMLR 24, arXiv:2210.06226.
# - Rainforth et al. (2018), *Tighter Variational Bounds Are Not Necessarily Better*; Tucker, Lawson, Gu & Maddison (2019), *Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives*; Roeder, Wu & Duvenaud (2017), *Sticking the Landing*.
# - Bornschein & Bengio (2015), *Reweighted Wake-Sleep*, arXiv:1406.2751; Le, Kosiorek, Siddharth, Teh & Wood (2019), *Revisiting Reweighted Wake-Sleep for Models with Stochastic Control Flow*, UAI, arXiv:1805.10469; Finke & Thiéry (2019), *On importance-weighted autoencoders*; Nowozin (2018), *Debiasing Evidence Approximations*.
# - Geffner & Domke (2021), *On the Difficulty of Unbiased Alpha Divergence Minimization*, ICML, and *Empirical Evaluation of Biased Methods for Alpha Divergence Minimization*; Bauer & Mnih (2021), *Generalized Doubly-Reparameterized Gradient Estimators*, ICML;
#   Vaitl, Nicoli, Nakajima & Kessel (2022), *Gradients should stay on Path*, arXiv:2207.08219; Vaitl, Winkler, Richter & Kessel (2024), *Fast and unified path gradient estimators for normalizing flows*, arXiv:2403.15881.
#
# ### Next
#
# Here the encoder was told too little about a posterior that was there. In [chapter 15](15_posterior_collapse.ipynb) a latent is told nothing at all, because the best thing that it can do is to be the prior.

# %% [markdown] jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
# ## Solutions
#
# <details><summary>14.E2 in words</summary>
#
# $A = K$, $B = -(K - 1)$. It is no bound: a combination with a negative coefficient of two lower bounds may lie on either side of $\log p_\theta(x)$, on average too.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def bound_slope(log_weight, slopes):
    return (log_weight.softmax(0) * slopes).sum(0)


ch14.bound_slope.check(bound_slope)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def jackknife(log_weight):
    K = len(log_weight)
    rows = log_weight.expand(K, *log_weight.shape).clone()
    rows[range(K), range(K)] = -math.inf
    left_out = (rows.logsumexp(1) - math.log(K - 1)).mean(0)
    return K * iwae(log_weight) - (K - 1) * left_out


ch14.jackknife.check(jackknife)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def wake_slope(log_joint, z, m, s):
    e = (z - m) / s
    weights = (log_joint + e**2 / 2).softmax(0)
    return torch.stack([weights @ e / s, weights @ (e**2 - 1)])


ch14.wake_slope.check(wake_slope)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def mean_of_bounds(log_weight, num_groups):
    groups = log_weight.reshape(num_groups, -1, *log_weight.shape[1:])
    return (groups.logsumexp(1) - math.log(groups.shape[1])).mean(0)


ch14.mean_of_bounds.check(mean_of_bounds)

x = torch.tensor(2.0)  # back to the example
for num_groups in (64, 16, 4, 1):

    def grouped(log_joint, q, num_samples, num_groups=num_groups):
        return mean_of_bounds(draw(log_joint, q, num_samples).log_weight, num_groups)

    noise_here = slopes(grouped, 64, 4_000).std(0)
    mean_here = exact_slopes(64 // num_groups)
    ratio = mean_here / noise_here
    print(
        f"M = {num_groups:<2} K = {64 // num_groups:<2} SNR in m {ratio[0]:.2f}, in θ {ratio[2]:.0f}"
        f"   mean slope in θ {mean_here[2]:.3f}"
    )

# %% [markdown] jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
# <details><summary>What the study shows</summary>
#
# By (14.9) SNR ∝ √M / √K = 8 / K, at large $K$: a quarter for each row, as the last two show (the signal falls faster at first). For φ's plain gradient the best use of 64 draws is 64 ELBOs. For θ's the SNR is 10 to 12 however they are split, as $\sqrt{MK}$ says; what one $\mathcal{L}_{64}$ has is the smallest bias: the slope of $\log p_\theta(x)$ is 1.
# A compromise in between serves two masters; DReG or RWS serve both.
#
# </details>
