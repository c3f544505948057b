# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 13 · When supports do not match
#
# **Where $q$ puts mass and the model has none, or the other way round, something breaks. What exactly: the bound, its gradient,
# or the weights? And which remedy mends which?**

# %% jupyter={"source_hidden": true} tags=["remove-cell", "setup"]
import importlib.util

from IPython import get_ipython

if (shell := get_ipython()) is not None:
    if importlib.util.find_spec("vi_tutorial") is None:  # on Colab, say
        shell.run_line_magic("pip", "install --quiet git+https://github.com/vi-tutorial/vi_tutorial")
    shell.run_line_magic("matplotlib", "inline")  # figures below their cells, whatever MPLBACKEND says

# %% mystnb={"image": {"alt": "The map of the series: six boxes joined by arrows, KL, ELBO, phi, theta, networks, what breaks. The last, what breaks and mends, is lit."}}
from vi_tutorial import plots

plots.chain("breaks")

# %% [markdown]
# You need [chapter 01](01_the_elbo.ipynb) for KL and the ELBO, and [chapter 04](04_vi_on_your_own_model.ipynb) for constrained
# latents. Everything here has one latent, so that an integral by `scipy.integrate.quad` can judge every number. Reading takes 30 minutes.
#
# **Afterwards you can**
#
# - *say* which mismatch makes the ELBO $-\infty$, and *prove* that a finite estimate means nothing;
# - *tell* a large gap from a lost gradient: neither implies the other;
# - *split* a gap into what the optimiser left undone and what the family cannot reach;
# - *choose* the remedy that mends the problem you have.

# %%
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import optimize, special, stats
from scipy.integrate import quad
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, Normal, StudentT, Uniform, constraints

from vi_tutorial import checks, families, models, quadrature, training
from vi_tutorial.elbo import draw, elbo, iwae, weigh
from vi_tutorial.evaluation import gap_ledger
from vi_tutorial.exercises import ch13
from vi_tutorial.latents import Space, unconstrained
from vi_tutorial.objectives import linear_schedule, tempered
from vi_tutorial.softened import defensive_mixture, noised

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
_ = torch.manual_seed(0)

# %% [markdown]
# ## A counter that heard nothing
#
# A Geiger counter has been on for two hours and has not clicked. How large can the rate of clicks be? Call it $z$, per hour, with
# the prior $\mathrm{Exp}(1)$. The chance of silence is $e^{-2z}$. So
#
# $$p_\theta(x, z) = e^{-z} e^{-2z} \;\text{ for } z > 0, \qquad p_\theta(x, z) = 0 \;\text{ for } z \le 0, \tag{13.1}$$
#
# the evidence is $\tfrac13$, and the posterior is $\mathrm{Exp}(3)$. A rate cannot be negative: the joint's **support**, the set where
# it is positive, is half of the line. In code, for any number of clicks $x$:


# %%
class Counter:
    """Clicks are Poisson(hours · z), the rate z is Exp(1): the log joint is −∞ where a rate cannot be."""

    def __init__(self, hours):
        self.hours = hours

    def given(self, x):
        def log_joint(z):
            rate = torch.where(z > 0, z, 1.0)  # where z ≤ 0 any valid number will do: it is not used
            log_likelihood = x * (self.hours * rate).log() - self.hours * rate - torch.lgamma(x + 1)
            return torch.where(z > 0, -rate + log_likelihood, -math.inf)

        return log_joint


x, model, log_evidence = torch.tensor([0.0]), Counter(hours=2.0), -math.log(3)

# %% [markdown]
# For $q$ we take a Gaussian, $\mathcal{N}(0.45, 0.12^2)$, well inside the support: zero lies 3.75 standard deviations below its mean.
# Ten times the usual line, with 100 draws each:

# %%
q, num_samples = families.Fixed(Normal, loc=torch.tensor([0.45]), scale=torch.tensor([0.12])), 100
ten = [elbo(draw(model.given(x), q(x), num_samples).log_weight).item() for _ in range(10)]
print("ten estimates:", *(f"{value:.2f}" for value in ten), f"   log evidence: {log_evidence:.2f}")
many = elbo(draw(model.given(x), q(x), 1_000_000).log_weight).item()
assert max(ten) - min(ten) < 0.3
print("one estimate with a million draws:", many)

# %% [markdown]
# Ten estimates within 0.3 nats of each other: that is the usual sight. They look like an ELBO with a little noise. Then a million draws say $-\infty$. Which is
# right?
#
# **The million.** Here is the proof, for every Gaussian $q = \mathcal{N}(\mu, \sigma^2)$. Two steps, since $\infty - \infty$ lurks.
#
# *The ELBO is always defined.* Split $\log w$ into its positive and its negative part. As $\max(\log w, 0) \le w$,
#
# $$\mathbb{E}_q[\max(\log w, 0)] \le \mathbb{E}_q[w] \le \int p_\theta(x, z)\, dz = p_\theta(x) < \infty. \tag{13.2}$$
#
# The positive part is finite whatever $q$. So $\mathcal{L}$ is a number or $-\infty$; it is never $+\infty$ and never undefined.
#
# *The negative part is infinite.* On $z \le 0$ the log weight is $-\infty$, and $q$ goes there with probability
#
# $$m = \Phi(-\mu/\sigma) > 0. \tag{13.3}$$
#
# A positive probability times $-\infty$ is $-\infty$. No $\mu$ and no $\sigma$ make (13.3) zero, so there is no best Gaussian, no good one, and
# nothing to optimise. $\blacksquare$
#
# Is $m > 0$ also far out, where a computer says 0.0? The logarithm shows it. Our oracle is an integral in which nothing can underflow, with $n$ the standard normal density:
# $\Phi(-t) = n(t) \int_0^\infty e^{-tu - u^2/2} du$.

# %%
distances = np.array([0.5, 3.75, 20.0, 100.0])


def log_mass(t):
    return (
        -0.5 * t**2 - 0.5 * math.log(2 * math.pi) + math.log(quad(lambda u: math.exp(-t * u - u**2 / 2), 0, 40 / t)[0])
    )


checks.quadrature(
    "13.1a",
    "log Φ(−μ/σ) is finite, also at 100 standard deviations: every Gaussian has mass where a rate cannot be",
    special.log_ndtr(-distances),
    [log_mass(t) for t in distances],
    wrong={
        "the density at zero in place of the mass below it": stats.norm.logpdf(distances),
        "the mass of both tails": special.log_ndtr(-distances) + math.log(2),
    },
)
assert stats.norm.cdf(-100) == 0  # the number underflows; its logarithm does not

# %% [markdown]
# If $-\infty$ feels like an artefact, replace it by a floor: give the joint $e^{-M}$ of density, at most, on $-5 < z \le 0$. The ELBO becomes
# finite, and falls along a straight line as $M$ grows, with slope $m$. A limit, no artefact. Monte Carlo with $K$ draws misses all of it with
# probability
#
# $$(1 - m)^K, \tag{13.4}$$
#
# which is 0.915 for the thousand draws of the ten estimates above: about one seed in twelve shows a $-\infty$ among them.

# %%
mass = stats.norm.cdf(-0.45 / 0.12)
density = stats.norm(0.45, 0.12).pdf
assert abs((1 - mass) ** 1000 - 0.915) < 5e-4


def floored(M):
    """The ELBO with log p(x, z) = −M below zero, by quadrature on either side."""
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.12**2)
    below = quad(lambda z: density(z) * -M, -5, 0, points=[-0.1], epsabs=1e-15)[0]
    return entropy + below + quad(lambda z: density(z) * -3 * z, 0, 5, points=[0.45], epsabs=1e-13)[0]


floors = np.array([1e3, 1e5, 1e7])
inside = 0.5 * math.log(2 * math.pi * math.e * 0.12**2) - 3 * ((1 - mass) * 0.45 + 0.12**2 * density(0))
checks.quadrature(
    "13.1b",
    "with a floor −M in place of −∞ the ELBO falls as −M Φ(−μ/σ), without end",
    inside - floors * mass,
    [floored(M) for M in floors],
    wrong={"draws below zero dropped": inside + 0 * floors, "slope of both tails": inside - 2 * floors * mass},
)
runs = draw(model.given(x), q(x), 4000 * 1000).log_weight.reshape(4000, 1000)
checks.monte_carlo(
    "13.1c",
    "an ELBO estimate from K = 1000 draws is finite with probability (1 − m)^K",
    elbo(runs.mT).isfinite().double(),
    (1 - mass) ** 1000,
    wrong={"as if one draw decided": 1 - mass, "1 − 2Km, both tails": 1 - 2000 * mass},
)

# %% mystnb={"image": {"alt": "Left: an exponential density that starts at zero and a narrow Gaussian to the right of it; the part of the line below zero is shaded. Right: three falling curves, the chance that an ELBO estimate is finite against the number of draws on a log axis, one curve each for q 3, 3.75 and 5 standard deviations from zero; the farther, the later it falls."}}
counts = np.logspace(0, 8, 200)
chances = {t: (1 - stats.norm.cdf(-t)) ** counts for t in (3.0, 3.75, 5.0)}
assert all(chance[0] > 0.99 and chance[-1] < 1e-9 for chance in chances.values())
with plots.style():
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3))
    z = np.linspace(-0.4, 1.6, 400)
    left.axvspan(-0.4, 0, color="#DDDDDD")
    left.plot(z, np.where(z > 0, 3 * np.exp(-3 * np.abs(z)), 0), color=plots.COLOURS.p, label="posterior")
    left.plot(z, density(z), color=plots.COLOURS.q, linestyle="--", label="q")
    left.set(xlabel="rate z (per hour)", ylabel="density")
    left.legend()
    for (t, chance), style in zip(chances.items(), (":", "-", "--"), strict=True):
        right.plot(counts, chance, style, color=plots.COLOURS.q)
        right.text(counts[(chance > 0.5).sum()] * 1.3, 0.6, f"{t:g}", size=10)
    right.set(xscale="log", xlabel="draws K", ylabel="chance of a finite estimate")
    right.text(1.2, 0.6, "μ/σ =", size=10)
    fig.suptitle("The ELBO is −∞ for all three; few draws rarely see it", x=0.01, ha="left", weight="bold", size=12)

# %% [markdown]
# ### A mistake people make: drop the infinities
#
# Training meets a $-\infty$ now and then, stops, and someone writes `log_weight[log_weight.isfinite()]`. What is then maximised? With $q_+$ the part
# of $q$ above zero, renormalised,
#
# $$\mathbb{E}_q[\log w \mid z > 0] = \log p_\theta(x) - \log(1 - m) - \mathrm{KL}(q_+ \,\|\, p_\theta(z \mid x)). \tag{13.5}$$
#
# Look at the sign of the middle term. It *pays* $q$ for mass where no mass should be. Before you run the next cell: which $q$ wins?

# %%
scales = np.array([0.5, 1.0, 2.0])
locs = -3 * scales**2  # beyond zero such a Gaussian falls off like Exp(3)
lower = -locs / scales
part = stats.truncnorm(lower, np.inf, loc=locs, scale=scales)
dropped = (
    -3 * part.mean()
    + 0.5 * np.log(2 * math.pi * scales**2)
    + (part.var() + (part.mean() - locs) ** 2) / (2 * scales**2)
)


def right_side(loc, scale, sign=-1):
    kept = special.log_ndtr(loc / scale)
    log_part = lambda z: stats.norm.logpdf(z, loc, scale) - kept  # noqa: E731
    kl = quad(lambda z: math.exp(log_part(z)) * (log_part(z) - math.log(3) + 3 * z), 0, 12, epsabs=1e-13)[0]
    return log_evidence + sign * kept - kl


checks.quadrature(
    "13.12",
    "the mean of the finite log weights is log p(x) − log(1 − m) − KL(q₊‖posterior)",
    dropped,
    [right_side(loc, scale) for loc, scale in zip(locs, scales, strict=True)],
    wrong={
        "log(1 − m) with a plus": [right_side(loc, scale, +1) for loc, scale in zip(locs, scales, strict=True)],
        "the evidence, as if nothing had been dropped": np.full(3, log_evidence),
    },
)
print(
    *(
        f"σ = {s:g}: kept {stats.norm.sf(t):.1e} of the draws, 'ELBO' {v:.1f}"
        for s, t, v in zip(scales, lower, dropped, strict=True)
    ),
    sep="\n",
)

# %% [markdown]
# The winner is a Gaussian that lies almost entirely where the model has nothing. Its "ELBO" has no upper limit, and the evidence is −1.10. An
# infinite log weight is a message. Read it; do not filter it.
#
# ### The remedy: a coordinate without an edge
#
# Move the latent, not the infinity: $u = \log z$ lives on the whole line. The joint of $u$ gets the Jacobian, $\log p_\theta(x, z(u)) + u$, and $q$ is
# Gaussian in $u$. For a posterior $\mathrm{Exp}(\lambda)$,
#
# $$\mathrm{KL} = -\tfrac12 \log 2\pi e \sigma^2 - \log\lambda - \mu + \lambda e^{\mu + \sigma^2/2}. \tag{13.6}$$
#
# The derivative in μ says $\lambda e^{\mu + \sigma^2/2} = 1$, the one in σ then $\sigma^2 = 1$. What is left knows no λ:
#
# $$\mathrm{KL} = \tfrac32 - \tfrac12 \log 2\pi e = 0.0810615. \tag{13.7}$$
#
# From $-\infty$ to a gap of 0.08 nats by one change of variable. `Space` and `unconstrained` do it; L-BFGS finds the best $q$ for silences of ½, 2
# and 299 hours, λ = 1.5, 3, 300; and the oracle is an integral over the *rate* $z$, where no Jacobian occurs.


# %%
def best_in_log_space(hours):
    """The mean and scale of log z of the best Gaussian, by the package's transform and Gauss-Hermite nodes."""
    space = Space({"rate": constraints.positive})
    log_joint = unconstrained(lambda z: Counter(hours).given(x)(z["rate"][:, None])[:, 0], space)
    nodes, weights = quadrature.gauss_hermite(50, 1)
    numbers = nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.LBFGS(
        [numbers], line_search_fn="strong_wolfe", max_iter=100, tolerance_grad=1e-11, tolerance_change=1e-15
    )
    _ = training.fit(
        lambda _: weights @ log_joint(numbers[0] + numbers[1].exp() * nodes) + numbers[1], optimiser, x, num_steps=2
    )
    return numbers[0].item(), numbers[1].exp().item()


def normal_log_pdf(z, loc, scale):
    return -0.5 * ((z - loc) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


def kl_on_the_rate(hours, loc, scale):
    """KL of a lognormal to Exp(1 + hours), over the rate itself."""

    def f(z):
        log_q = normal_log_pdf(math.log(z), loc, scale) - math.log(z)
        return math.exp(log_q) * (log_q - math.log(1 + hours) + (1 + hours) * z)

    cuts = [math.exp(loc + k * scale) for k in (-12, -4, -1, 1, 3, 6, 12)]
    return sum(quad(f, a, b, epsabs=1e-12)[0] for a, b in itertools.pairwise(cuts))


# %%
fits = {hours: best_in_log_space(hours) for hours in (0.5, 2.0, 299.0)}
checks.quadrature(
    "13.2",
    "through the logarithm the best KL is 3/2 − ½ log 2πe = 0.0810615, for every λ",
    np.full(3, 1.5 - 0.5 * math.log(2 * math.pi * math.e)),
    [kl_on_the_rate(hours, *fit) for hours, fit in fits.items()],
    wrong={
        "the ½ of the mean's shift forgotten": np.full(3, 2.0 - 0.5 * math.log(2 * math.pi * math.e)),
        "Laplace's q: the mode of u, not its best mean": [kl_on_the_rate(h, -math.log(1 + h), 1.0) for h in fits],
    },
)
gap = torch.tensor([kl_on_the_rate(2.0, *fits[2.0])])
least = 1.5 - 0.5 * math.log(2 * math.pi * math.e)  # the best of the family, by (13.7)
print(gap_ledger(log_evidence - gap, torch.tensor([log_evidence - least]), torch.tensor([log_evidence])))

# %% [markdown]
# ## The claims on trial
#
# The post that this series follows ends with a warning about supports. In our words, it says five things:
#
# 1. trouble comes when the supports of $p$ and $q$ differ;
# 2. where $p$ has mass and $q$ very little, the bound becomes very large;
# 3. where $q$ is zero, really or in the computer, the bound is infinite;
# 4. as the bound grows, the gradient shrinks;
# 5. so optimisation may fail to converge.
#
# We have an infinite bound already, but it came from the *other* side: $q$ had mass and $p$ had none. Decide for yourself which of the five are true of
# the ELBO before you read on. The verdicts stand at the end of the chapter.
#
# ## Where p has mass and q has none
#
# The extreme first. The posterior is $\mathrm{U}(0, 1)$ and $q$ is $\mathrm{U}(0, \tfrac12)$: on half of the posterior's mass $q$ is exactly zero. Nothing
# infinite happens. Draws come from $q$, so the hole is never visited:
#
# $$\mathrm{KL}(q \,\|\, p) = \log 2, \qquad \text{and in general} \quad q = p \text{ restricted to mass } \pi: \;\; \mathrm{KL}(q \,\|\, p) = -\log \pi.
# \tag{13.8}$$
#
# The ELBO can never become *large* at all: it is at most the evidence. What it charges for *this* kind of hole, where $q$ is $p$ cut down, is modest. What the *other*
# direction charges, $\mathrm{KL}(p \,\|\, q)$, is $+\infty$. And a zero of the computer's? A density that underflows has a finite logarithm; who stays in logarithms never meets it.

# %%
half_box, box = (
    families.Fixed(Uniform, low=torch.zeros(1), high=torch.tensor([0.5])),
    Uniform(torch.zeros(1), torch.ones(1)),
)
in_p = draw(box.log_prob, half_box(), 1000).log_weight
cells = (torch.arange(1000)[:, None] + 0.5) / 1000  # the midpoints of 1000 cells of the box, each of p-mass 1/1000
q_mass = torch.where(cells < 0.5, 2 / 1000, 0.0)
checks.enumeration(
    "13.14",
    "p = U(0,1), q = U(0,½), zero on half of p: 𝓛 = log p(x) − log 2",
    elbo(in_p),
    -torch.xlogy(q_mass, q_mass / (1 / 1000)).sum(0),
    wrong={
        "KL(p‖q), its log 0 cut off at float32's −103": [-0.5 * math.log(0.5) - 0.5 * 103],
        "the mass that is missed counted with p": [-0.5 * math.log(2)],
    },
)
far = Normal(torch.zeros((), dtype=torch.float32), 1.0).log_prob(torch.tensor(15.0, dtype=torch.float32))
assert far.exp() == 0
print(f"float32, 15 standard deviations out: density {far.exp().item():.0f}, log density {far.item():.1f}")

# %% [markdown]
# ### A sensor with a broken sign
#
# Now a posterior with two modes. A sensor reports $z$ with noise, and loses the sign with probability $f$:
#
# $$z \sim \mathcal{N}(0, 5), \qquad x \mid z \sim (1 - f)\, \mathcal{N}(z, \tfrac54) + f\, \mathcal{N}(-z, \tfrac54). \tag{13.9}$$
#
# Each half is conjugate, so the posterior is a mixture of Gaussians with variance 1, at $\pm d$ with $d = 0.8x$, of weights $1 - f$ and $f$. And
# $p_\theta(x) = \mathcal{N}(x \mid 0, \tfrac{25}{4})$ whatever $f$.


# %%
class BrokenSign(nn.Module):
    """The likelihood (13.9)."""

    def __init__(self, flip):
        super().__init__()
        self.register_buffer("shares", torch.tensor([1 - flip, flip]))

    def forward(self, z):
        return MixtureSameFamily(Categorical(self.shares), Normal(torch.stack([z, -z], -1), math.sqrt(1.25)))


def sensor(flip):
    return models.LatentVariableModel(
        families.Fixed(Normal, loc=torch.tensor(0.0), scale=torch.tensor(5.0).sqrt()), BrokenSign(flip)
    )


def exact_posterior(flip, x):
    return MixtureSameFamily(Categorical(torch.tensor([[1 - flip, flip]])), Normal(0.8 * torch.stack([x, -x], -1), 1.0))


x, model, p = torch.tensor([5.0]), sensor(0.2), exact_posterior(0.2, torch.tensor([5.0]))
log_evidence = Normal(0.0, 2.5).log_prob(x)
axis = torch.linspace(-40, 40, 1001)[:, None]  # for smooth integrands a sum over this grid is as good as an integral
step = (axis[1] - axis[0]).item()
joint = lambda z: model.given(x)(torch.tensor([[z]])).exp().item()  # noqa: E731
total, at = quad(joint, -20, 20, points=[-4, 4])[0], torch.tensor([[-4.0], [0.5], [4.0]])
checks.quadrature(
    "13.15",
    "the sensor's evidence is N(x | 0, 25/4), and its posterior the mixture at ±0.8 x",
    [log_evidence.item(), *p.log_prob(at).exp()[:, 0].tolist()],
    [math.log(total), *(joint(z) / total for z in at[:, 0].tolist())],
    wrong={
        "the prior's variance left out of the evidence": [
            Normal(0.0, math.sqrt(1.25)).log_prob(x).item(),
            *p.log_prob(at).exp()[:, 0].tolist(),
        ],
        "equal weights": [log_evidence.item(), *exact_posterior(0.5, x).log_prob(at).exp()[:, 0].tolist()],
    },
)

# %% [markdown]
# Let $f = \tfrac12$, and put $q = \mathcal{N}(d, 1)$ on one of the two modes. It misses half of the posterior. How much does it pay, and how strongly is it
# drawn to the other half? With $\log p$ of the two-mode posterior, the slope at $\mu = d$ is
#
# $$\frac{\partial \mathcal{L}}{\partial \mu} = \mathbb{E}_q\big[d \tanh(dz) - z\big] = -d\, e^{-d^2/2} \int \frac{n(z)}{\cosh(dz)}\, dz
# \;\approx\; -\sqrt{\pi/2}\; e^{-d^2/2}. \tag{13.10}$$
#
# (Write $1 - \tanh$ as a ratio of exponentials, and complete the square.) The approximation is for large $d$, when $1/\cosh$ is a spike of area $\pi/d$. And the gap has a ceiling. For $q$ a part of the mixture, of weight π, $p \ge \pi\, q$ everywhere, so
#
# $$\mathrm{KL}(q \,\|\, p) = \mathbb{E}_q[\log q - \log p] \le -\log \pi. \tag{13.11}$$
#
# That ceiling is for a *part* of the mixture. A needle on the mode, $\mathcal{N}(d, s^2)$ with small $s$, also has next to nothing where $p$ has much, and pays
# $\log\tfrac1s - \tfrac12 - \log \pi$, without end as $s \to 0$ (up to $s^2/2$ and what the other mode adds).

# %%
spots = np.array([2.0, 3.0, 4.0, 6.0])


def on_one_mode(d, flip=0.5):
    """The ELBO's gap and its slope in μ at q = N(d, 1), by the model in code: grid and autograd."""
    model, x, loc = sensor(flip), torch.tensor([d / 0.8]), torch.tensor([d], requires_grad=True)
    eps = torch.linspace(-10, 10, 2001)[:, None]
    weights = Normal(0.0, 1.0).log_prob(eps).exp() * 0.01
    log_weight = weigh(model.given(x), Normal(loc, 1.0), loc + eps).log_weight
    bound = (weights * log_weight).sum()
    (slope,) = torch.autograd.grad(bound, loc)
    return Normal(0.0, 2.5).log_prob(x).item() - bound.item(), slope.item()


gaps, slopes = np.array([on_one_mode(d) for d in spots]).T
formula = [
    -d * math.exp(-(d**2) / 2) * quad(lambda z, d=d: stats.norm.pdf(z) / math.cosh(d * z), -20, 20, points=[0])[0]
    for d in spots
]
checks.quadrature(
    "13.6a",
    "the slope at the missed mode is −d e^{−d²/2} ∫ φ/cosh: relative, for d = 2, 3, 4, 6",
    slopes / np.array(formula),
    np.ones(4),
    wrong={
        "(13.10)'s limit already at d = 2": -math.sqrt(math.pi / 2) * np.exp(-(spots**2) / 2) / formula,
        "e^{−d²}": -spots * np.exp(-(spots**2)) / formula,
    },
)
assert np.all(np.abs(slopes - [-0.137, -0.0125, -3.9e-4, -1.8e-8]) < [5e-4, 5e-5, 5e-6, 5e-10])
print("d          ", *(f"{d:>9g}" for d in spots))
print("gap (nats) ", *(f"{gap:>9.4f}" for gap in gaps), "   log 2 =", f"{math.log(2):.4f}")
print("slope      ", *(f"{slope:>9.2e}" for slope in slopes))

# %%
shares = np.array([[0.2], [0.5], [0.8]])  # of the mode on which q sits
other = 1 - shares
checks.inequality(
    "13.6b",
    "q on a mode of weight π = 0.2, 0.5, 0.8: KL(q‖p) ≤ −log π, however far the other mode",
    [[on_one_mode(d, flip)[0] for d in spots] for flip in other[:, 0]],
    -np.log(shares) + 0 * spots,
    wrong={
        "KL(p‖q), the other direction": 2 * other * spots**2 + shares * np.log(shares) + other * np.log(other),
        "−log(1 − π), the weight of the other mode": -np.log(other) + 0 * spots,
    },
    slack=1e-12,
)


def needle(s):
    """KL(N(4, s²)‖posterior) for weights 0.8 and 0.2, over the standardised draw."""
    log_p = lambda z: np.logaddexp(math.log(0.8) + stats.norm.logpdf(z, 4), math.log(0.2) + stats.norm.logpdf(z, -4))  # noqa: E731
    f = lambda e: stats.norm.pdf(e) * (stats.norm.logpdf(e) - math.log(s) - log_p(4 + s * e))  # noqa: E731
    return quad(f, -10, 10, epsabs=1e-12)[0]


thin = np.array([1e-1, 1e-3, 1e-6])
checks.quadrature(
    "13.16",
    "a needle N(4, s²) on the mode of weight 0.8: KL(q‖p) = log 1/s − ½ + s²/2 − log 0.8, without end",
    -np.log(thin) - 0.5 + thin**2 / 2 - math.log(0.8),
    [needle(s) for s in thin],
    wrong={"the ceiling −log 0.8": np.full(3, -math.log(0.8)), "q's −½ forgotten": -np.log(thin) - math.log(0.8)},
)
print("KL(q‖p) at s = 0.1, 0.001, 0.000001:", *(f"{needle(s):.2f}" for s in thin))

# %% mystnb={"image": {"alt": "Two curves over the mean of q from -7 to 7, for a sensor with equal modes at 4 and -4. The gap, KL(q to p), has two valleys at -4 and 4 that touch the line at log 2 = 0.69, with a hill between. The forward KL above it is one bowl with its lowest point in the middle."}}
means = torch.linspace(-7, 7, 141)
even = exact_posterior(0.5, x)


def kl(a, b):
    log_a = a.log_prob(axis)
    return (log_a.exp() * (log_a - b.log_prob(axis))).sum() * step


reverse = np.array([kl(Normal(m.reshape(1), 1.0), even).item() for m in means])
forward = np.array([kl(even, Normal(m.reshape(1), 1.0)).item() for m in means])
assert abs(reverse.min() - math.log(2)) < 1e-3
assert (np.diff(np.sign(np.diff(reverse))) > 0).sum() == 2  # two valleys
assert (np.diff(np.sign(np.diff(forward))) > 0).sum() == 1  # one bowl
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 3.2))
    ax.plot(means, reverse, color=plots.COLOURS.q, label="KL(q‖p), the ELBO's gap")
    ax.plot(means, forward, color=plots.COLOURS.p, linestyle="--", label="KL(p‖q)")
    ax.axhline(math.log(2), color=plots.COLOURS.muted, linewidth=1)
    ax.text(-6.9, math.log(2) + 0.3, "log 2", size=10)
    ax.set(xlabel="mean μ of q = N(μ, 1); the posterior's modes are at ±4", ylabel="nats", ylim=(0, 16))
    ax.legend(loc="upper center")
    ax.set_title("Two valleys for the ELBO, one bowl for the other direction")

# %% [markdown]
# Read the printed rows together. Farther apart, the gap hardly moves: it saturates at $\log 2$. The slope dies like $e^{-d^2/2}$. Half of the posterior is gone, the ELBO is 0.69 nats short, and nothing says so.
#
# And look at the picture: each valley is a local optimum, no small step leads out. "Small gradient" is not the point; a *wall* is. That matters when you choose a remedy.
#
# ## The literal version: a growing bound with a shrinking gradient
#
# Is there a case in which the KL grows to infinity *while* its gradient goes to zero? Yes: heavy tails. Let $p$ be a Cauchy density and $q = \mathcal{N}(\mu, 1)$:
#
# $$\mathrm{KL} = \log \pi - \tfrac12 \log 2\pi e + \mathbb{E}_q[\log(1 + z^2)] \approx 2 \log \mu, \qquad
# \frac{\partial\, \mathrm{KL}}{\partial \mu} = \mathbb{E}_q\Big[\frac{2z}{1 + z^2}\Big] \approx \frac{2}{\mu}. \tag{13.12}$$
#
# The slope even has a closed form. As $2z/(1 + z^2)$ is twice the real part of $1/(z - i)$, it is a value of the Faddeeva function $w$:
# $-\sqrt{2\pi}\, \operatorname{Im} w\big((i - \mu)/\sqrt2\big)$. That is our second computation.

# %%
places = np.array([10.0, 100.0, 1000.0])


def over_normal(f, mu):
    return quad(lambda e: stats.norm.pdf(e) * f(mu + e), -12, 12, epsabs=1e-14, points=[0])[0]


constant = math.log(math.pi) - 0.5 * math.log(2 * math.pi * math.e)
cauchy_kl = np.array([constant + over_normal(lambda z: math.log1p(z * z), mu) for mu in places])
slope = -math.sqrt(2 * math.pi) * special.wofz((1j - places) / math.sqrt(2)).imag
checks.quadrature(
    "13.3a",
    "Cauchy target: ∂KL/∂μ = −√(2π) Im w((i − μ)/√2), at μ = 10, 100, 1000",
    slope * places,
    [mu * over_normal(lambda z: 2 * z / (1 + z * z), mu) for mu in places],
    wrong={
        "the Gaussian target's slope μ": places**2,
        "1/μ": np.ones(3),
        "2/μ exactly, without noise in q": 2 * places**2 / (1 + places**2),
    },
    tolerance=1e-8,
)
z = torch.linspace(-12, 12, 4801)[:, None] + torch.as_tensor(places)
by_sum = (
    Normal(torch.as_tensor(places), 1.0).log_prob(z).exp()
    * (Normal(torch.as_tensor(places), 1.0).log_prob(z) - StudentT(1.0).log_prob(z))
).sum(0) * 0.005
checks.quadrature(
    "13.3b",
    "Cauchy target: the KL grows, 4.33, 8.94, 13.54 nats, about 2 log μ",
    by_sum,
    cauchy_kl,
    wrong={
        "the entropy of q forgotten": cauchy_kl + 0.5 * math.log(2 * math.pi * math.e),
        "a Gaussian target": 0.5 * places**2,
    },
)
assert np.allclose(cauchy_kl, [4.33107, 8.93613, 13.54130], atol=1e-5)
assert np.allclose(slope, [0.19996, 0.0200, 0.0020], atol=5e-5)
print("KL   ", *(f"{value:.5f}" for value in cauchy_kl), "\nslope", *(f"{value:.5f}" for value in slope))

# %% [markdown]
# So the post's fourth sentence has its example. It is no law. For a Gaussian target the KL is $\mu^2/2$ and the gradient $\mu$: both grow. A Laplace target marks the border: slope $2\Phi(\mu) - 1 \to 1$. At the missed mode
# the gap *stays* at $\log 2$ while the gradient dies. Size and slope are two things.
#
# And is a small gradient a lost one? What Adam sees is the gradient in units of its noise, the **signal-to-noise ratio** of chapter 03. For one
# reparameterised draw on the Cauchy, the noise falls even faster, as $2/\mu^2$; so the ratio *grows*, as μ. At the missed mode, the draws that know of the
# other mode are too rare. (There we take the gradient without $\log q$'s own noise, sticking-the-landing, to give it its best chance.)
#
# If that is right, plain gradient ascent should crawl on the Cauchy: $\dot\mu = -2/\mu$, so $\mu^2$ falls by 4 a step, and home is $\mu^2/4 = 2{,}500$ steps from $\mu = 100$. Adam, which
# rescales its steps, should walk home in about $\mu = 100$. One draw per step:


# %%
def signal_to_noise(gradient, loc):
    """|mean| over standard deviation of the pathwise gradient of one draw, q = N(loc, 1), by quadrature."""
    mean = over_normal(gradient, loc)
    return abs(mean) / math.sqrt(over_normal(lambda z: (gradient(z) - mean) ** 2, loc))


on_cauchy = np.array([signal_to_noise(lambda z: 2 * z / (1 + z * z), mu) for mu in places])
with_noise = np.array([signal_to_noise(lambda z, m=m: 2 * z / (1 + z * z) - (z - m), m) for m in places])
on_mode = [signal_to_noise(lambda z, d=d: d * math.tanh(d * z) - z + (z - d), d) for d in spots]
checks.inequality(
    "13.13",
    "Cauchy target: one draw's signal-to-noise ratio is within 1 % of μ, while the gradient vanishes",
    np.abs(on_cauchy / places - 1),
    np.full(3, 0.01),
    wrong={"sticking the landing here too: noise 1": np.abs(with_noise / places - 1)},
)
assert on_mode[-1] < 1e-3
assert np.all(np.diff(on_mode) < 0)

# %% [markdown]
# And the two walks from $\mu = 100$:

# %%
for name, make in {"plain ascent, step 1": torch.optim.SGD, "Adam, step 1": torch.optim.Adam}.items():
    mu = nn.Parameter(torch.tensor([100.0]))
    climber, walk = make([mu], lr=1.0), []
    _ = training.fit(
        lambda _, mu=mu: elbo(draw(StudentT(1.0).log_prob, Normal(mu, 1.0), 1).log_weight),
        climber,
        x,
        num_steps=2800,
        callback=lambda _, mu=mu, walk=walk: walk.append(abs(mu.item())),
    )
    print(
        f"{name:<22}",
        *(f"after {k:,}: {'home' if walk[k] < 5 else f'μ = {walk[k]:.0f}'}  " for k in (200, 400, 2400, 2799)),
    )
    assert [walk[k] < 5 for k in (60, 200, 400, 2400, 2799)] == [False, *(["Adam" in name] * 3), True]
    assert "Adam" in name or abs(walk[400] - math.sqrt(100**2 - 4 * 400)) < 1
print("signal-to-noise, Cauchy at μ = 10, 100, 1000:", *(f"{value:.0f}" for value in on_cauchy))
print("signal-to-noise, missed mode at d = 2, 3, 4, 6:", *(f"{value:.1e}" for value in on_mode))

# %% mystnb={"image": {"alt": "Two panels with logarithmic axes. Left: for a Cauchy target, the KL rises slowly with mu while its slope falls like two over mu. Right: for two modes at plus and minus d, the gap is flat at log 2 while the slope falls off a cliff, to 1e-8 at d equal to 6."}}
mus, ds = np.logspace(0.5, 3, 30), np.linspace(1.5, 6, 30)
rising = [constant + over_normal(lambda z: math.log1p(z * z), mu) for mu in mus]
falling = -math.sqrt(2 * math.pi) * special.wofz((1j - mus) / math.sqrt(2)).imag
flat, cliff = np.abs(np.array([on_one_mode(d) for d in ds])).T
assert (np.diff(rising) > 0).all()
assert (np.diff(falling) < 0).all()
assert (np.diff(cliff) < 0).all()
with plots.style():
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3), sharey=True)
    left.plot(mus, rising, color=plots.COLOURS.q, label="KL (nats)")
    left.plot(mus, falling, "--", color=plots.COLOURS.accent, label="|slope| (nats per unit)")
    left.set(xscale="log", yscale="log", xlabel="μ", ylim=(1e-8, 1e2))
    left.set_title("Cauchy tails", size=11)
    left.legend(loc="lower left")
    right.plot(ds, flat, color=plots.COLOURS.q)
    right.plot(ds, cliff, "--", color=plots.COLOURS.accent)
    right.set(xlabel="d")
    right.set_title("A missed mode", size=11)
    fig.suptitle("A vanishing slope comes with a growing KL, or without", x=0.01, ha="left", weight="bold", size=12)

# %% [markdown]
# ## What does blow up: the weights
#
# Where $q$ is too small the log weight's *mean* pays little. Its *exponential* does not: $w = p/q$ is enormous there, rarely. That is what importance sampling,
# the forward KL and the χ divergences see. Shift a Gaussian, $p = \mathcal{N}(\mu, 1)$, $q = \mathcal{N}(0, 1)$: with $\chi^2 = \int p^2/q - 1$,
#
# $$\chi^2 = e^{\mu^2} - 1, \qquad \frac{\mathrm{ESS}}{K} = \frac{1}{1 + \chi^2} = e^{-\mu^2}, \qquad \mathrm{CUBO}_2 - \log p_\theta(x) = \tfrac12 \log(1 + \chi^2).
# \tag{13.13}$$
#
# **ESS**, the effective sample size, is how many exact draws the $K$ weighted ones are worth. At $\mu = 3$ one in 8,103.
#
# And the width. For $p = \mathcal{N}(0, \sigma_p^2)$ and $q = \mathcal{N}(0, \sigma_q^2)$ the integrand $p^2/q$ is a constant times $\exp\!\big(-z^2 [\,1/\sigma_p^2 -
# 1/(2\sigma_q^2)]\big)$. It has an integral only if the bracket is positive:
#
# $$\int \frac{p^2}{q}\, dz = \frac{\sigma_q^2}{\sigma_p \sqrt{2\sigma_q^2 - \sigma_p^2}} \;\text{ if } 2\sigma_q^2 > \sigma_p^2, \qquad \infty \;\text{ otherwise}.
# \tag{13.14}$$

# %%
shifts = np.array([0.5, 1.0, 2.0, 3.0])
second = [
    quad(
        lambda z, m=m: math.exp(2 * stats.norm.logpdf(z, m) - stats.norm.logpdf(z)),
        2 * m - 12,
        2 * m + 12,
        points=[2 * m],
    )[0]
    for m in shifts
]
checks.quadrature(
    "13.8",
    "N(μ,1) from N(0,1): χ² = e^{μ²} − 1 and ESS/K = e^{−μ²}",
    np.stack([np.exp(shifts**2) - 1, np.exp(-(shifts**2))]),
    np.stack([np.array(second) - 1, 1 / np.array(second)]),
    wrong={
        "e^{μ²/2}": np.stack([np.exp(shifts**2 / 2) - 1, np.exp(-(shifts**2) / 2)]),
        "the −1 forgotten": np.stack([np.exp(shifts**2), np.exp(-(shifts**2))]),
    },
)


# %%
def second_moment(scale_q, reach):
    return quad(
        lambda z: math.exp(2 * stats.norm.logpdf(z) - stats.norm.logpdf(z, 0, scale_q)), -reach, reach, limit=200
    )[0]


wide = np.array([0.75, 0.9, 1.5, 3.0])
checks.quadrature(
    "13.9a",
    "2σ_q² > σ_p²: the weights' second moment is σ_q²/(σ_p √(2σ_q² − σ_p²))",
    wide**2 / np.sqrt(2 * wide**2 - 1),
    [second_moment(s, 60) for s in wide],
    wrong={
        "σ_q for σ_q²": wide / np.sqrt(2 * wide**2 - 1),
        "σ_q² − ½ under the root": wide**2 / np.sqrt(wide**2 - 0.5),
    },
)
edge, reaches = math.sqrt(0.5), np.array([10.0, 20.0, 40.0])
checks.quadrature(
    "13.9b",
    "2σ_q² = σ_p²: the integral up to R is 2R σ_q/(σ_p² √2π), and has no limit",
    2 * reaches * edge / math.sqrt(2 * math.pi),
    [second_moment(edge, R) for R in reaches],
    wrong={
        "a limit": np.full(3, second_moment(edge, 10.0)),
        "the square root's growth": 2 * np.sqrt(reaches) * edge / math.sqrt(2 * math.pi),
    },
)
assert second_moment(0.6, 20) > 1e10  # narrower still: it explodes
assert abs(0.5 * (0.5 - 1 + math.log(2)) - 0.10) < 0.005  # KL(q‖p) at the edge

# %% [markdown]
# The mean of the weights is finite all the while, and the ELBO is harmless: $\mathrm{KL}(q\|p) = 0.10$ nats at $\sigma_q^2 = \tfrac12 \sigma_p^2$. A tight bound is no
# promise about the weights.
#
# ### The remedy: heavier tails, or a defence
#
# Two cures for weights. Give $q$ **heavier tails** than $p$, a Student-t, say. Or mix in something broad: a **defensive mixture** $q_\delta = (1 - \delta)\, q + \delta\,
# p_0$ (Hesterberg 1995). Since $q_\delta \ge \delta\, p_0$,
#
# $$\frac{p}{q_\delta} \le \frac1\delta \sup_z \frac{p}{p_0}, \qquad \text{and with the prior for } p_0{:}\quad w \le \frac1\delta \sup_z p_\theta(x \mid z). \tag{13.15}$$
#
# A bound for every $z$, however bad $q$ is. We test it on the sensor ($f = 0.2$), with $q$ on the *smaller* mode.

# %%
on_small = Normal(torch.tensor([-4.0]), 1.0)
prior = model.prior().expand((1,))
peak = model.log_likelihood(x)(axis).max().item()  # log sup p(x | z) ...
assert (
    abs(peak - Normal(0.0, math.sqrt(1.25)).log_prob(torch.tensor(0.0)).item() - math.log(0.8)) < 1e-3
)  # ... the larger share's peak
shares = [0.01, 0.1, 0.5]
worst = [
    weigh(model.given(x), defensive_mixture(on_small, prior, share), axis).log_weight.max().item() for share in shares
]
checks.inequality(
    "13.10",
    "defensive mixture with the prior: log w ≤ log sup p(x|z) − log δ, everywhere",
    worst,
    np.array([peak - math.log(share) for share in shares]),
    wrong={
        "q alone": np.full(3, weigh(model.given(x), on_small, axis).log_weight.max().item()),
        "logarithms mixed in place of densities": [
            (model.given(x)(axis) - (1 - s) * on_small.log_prob(axis) - s * prior.log_prob(axis)).max().item()
            for s in shares
        ],
    },
    slack=1e-9,
)
# %%
_ = torch.manual_seed(1)
log_w = {}
for name, proposal in {
    "q on the smaller mode": on_small,
    "with a tenth of the prior": defensive_mixture(on_small, prior, 0.1),
}.items():
    log_w[name] = weigh(model.given(x), proposal, proposal.sample((40_000,))).log_weight
    print(f"{name:<26} estimate of log p(x) {iwae(log_w[name]).item():.1f}    (exact: {log_evidence.item():.1f})")
checks.monte_carlo(
    "13.17",
    "with a tenth of the prior the mean weight is p(x) = N(x | 0, 25/4)",
    log_w["with a tenth of the prior"].exp(),
    [stats.norm.pdf(5.0, 0, 2.5)],
    wrong={
        "q alone, as its draws show it: a fifth": [0.2 * stats.norm.pdf(5.0, 0, 2.5)],
        "the defence's own draws left out": [0.9 * 0.2 * stats.norm.pdf(5.0, 0, 2.5)],
    },
)

# %% mystnb={"image": {"alt": "Log weights over the latent z from -10 to 10 for q on the smaller mode at -4: without a defence the curve rises steeply to the right, to about 30 nats; with a tenth of the prior it stays below a horizontal line, the bound."}}
near = axis[:, 0].abs() <= 10
alone = weigh(model.given(x), on_small, axis).log_weight[:, 0]
assert alone[near].max() > 25


def ceiling(fig, share):
    """The log weights without a defence, and with this share of the prior."""
    defended = weigh(model.given(x), defensive_mixture(on_small, prior, share), axis).log_weight[:, 0]
    bound = peak - math.log(share)
    assert defended.max() <= bound
    ax = fig.subplots()
    ax.plot(axis[near], alone[near], "--", color=plots.COLOURS.q, label="q on the smaller mode")
    ax.plot(axis[near], defended[near], color=plots.COLOURS.accent, label=f"with {100 * share:.0f} % of the prior")
    ax.axhline(bound, color=plots.COLOURS.muted, linewidth=1)
    ax.text(-9.9, bound + 1, "bound (13.15)", size=10)
    ax.set(xlabel="z", ylabel="log w (nats)", ylim=(-30, 35))
    ax.legend(loc="lower center")
    ax.set_title(
        f"{100 * share:.0f} % of the prior put a ceiling of {bound:.1f} nats on every weight".replace("-", "−")
    )


plots.slider(ceiling, figsize=(7, 3), share=(0.01, 0.5, 0.1))

# %% [markdown]
# (When you run this, a slider moves the share. What does each halving cost at the ceiling, and what does it give where $q$ is good?)
#
# Back to the two estimates above the figure. Forty thousand draws, and without the defence the estimate of $\log p_\theta(x)$ is $-\log 0.2 = 1.61$ nats too low. It is unbiased *in theory* (for $p_\theta(x)$); but
# the draws that matter never come. With a tenth of the prior mixed in it is right, within its standard error.
#
# ## Two distributions that never meet
#
# Sometimes neither contains the other: two boxes side by side, two points. That is the case of a generator without noise. Then $\mathrm{KL} = \infty$ whatever the distance, and
# an infinite constant has no gradient. The **spread divergence** (Zhang, Hayes, Bird, Habib & Barber 2020) adds the same noise to both and compares the results:
#
# $$\widetilde{\mathrm{KL}}(q \,\|\, p) = \mathrm{KL}\big(q * \mathcal{N}(0, s^2) \,\big\|\, p * \mathcal{N}(0, s^2)\big). \tag{13.16}$$
#
# With Gaussian noise it is zero only for $q = p$, since a Gaussian's Fourier transform has no zero: the noise can be divided out. For two points at distance $t$ it is the KL of two Gaussians,
# $t^2/2s^2$. For two boxes, $\mathrm{U}(0,1)$ and $\mathrm{U}(t, t+1)$:


# %%
def spread(shift, scale):
    """The package's spread KL on a grid; differentiable in the shift."""
    a, b = noised(Uniform(shift, shift + 1), scale), noised(Uniform(torch.zeros(()), torch.ones(())), scale)
    z = torch.linspace(-12, 17, 2901)
    log_a = a.log_prob(z)
    return (log_a.exp() * (log_a - b.log_prob(z))).sum() * 0.01


nodes, shares = np.polynomial.legendre.leggauss(30)


def box_log_density(z, low):  # a box under noise as a mixture of 30 Gaussians: no Φ anywhere
    return special.logsumexp(stats.norm.logpdf(z, low + (nodes + 1) / 2), b=shares / 2)


def spread_oracle(t):
    f = lambda z: math.exp(box_log_density(z, t)) * (box_log_density(z, t) - box_log_density(z, 0.0))  # noqa: E731
    return quad(f, t - 8, t + 9, epsabs=1e-10)[0]


# %%
shift = torch.tensor([0.5, 1.0, 2.0, 4.0], requires_grad=True)
values = torch.stack([spread(t, 1.0) for t in shift])
(pull,) = torch.autograd.grad(values.sum(), shift)
checks.quadrature(
    "13.4a",
    "boxes at distance ½, 1, 2, 4 under N(0,1) noise: spread KL = .115401, .461794, 1.850057, 7.439646",
    values,
    [spread_oracle(t) for t in shift.tolist()],
    wrong={
        "Gaussians of the same variance": shift.detach() ** 2 / (2 * (1 + 1 / 12)),
        "points in place of boxes": shift.detach() ** 2 / 2,
    },
)
checks.quadrature(
    "13.4b",
    "… and its gradient is finite: the same by differences of the integral",
    pull,
    [(spread_oracle(t + 1e-3) - spread_oracle(t - 1e-3)) / 2e-3 for t in shift.tolist()],
    wrong={"Gaussians of the same variance": shift.detach() / (1 + 1 / 12), "points in place of boxes": shift.detach()},
    tolerance=1e-5,
)
assert np.allclose(values.detach(), [0.115401, 0.461794, 1.850057, 7.439646], atol=2e-6)

# %%
distance, scale_s = np.array([0.5, 2.0, 2.0, 6.0]), np.array([1.0, 1.0, 0.5, 2.0])


def two_points(t, s):
    f = lambda z: stats.norm.pdf(z, t, s) * (stats.norm.logpdf(z, t, s) - stats.norm.logpdf(z, 0, s))  # noqa: E731
    return quad(f, t - 12 * s, t + 12 * s, points=[t])[0]


checks.quadrature(
    "13.5",
    "two points under noise of scale s: spread KL = t²/2s²",
    distance**2 / (2 * scale_s**2),
    [two_points(t, s) for t, s in zip(distance, scale_s, strict=True)],
    wrong={
        "noise on one of them, the other's variance added": distance**2 / (4 * scale_s**2),
        "s taken for the variance": distance**2 / (2 * scale_s),
    },
)

# %% [markdown]
# ### The other famous escape
#
# Compare *moments* or *transport* instead. The **maximum mean discrepancy** with a Gaussian kernel, and the **Wasserstein distance**, are finite for any two distributions. For two
# points at distance $t$:
#
# $$\mathrm{MMD}^2 = 2 - 2 e^{-t^2/2\ell^2}, \qquad \frac{\partial}{\partial t} \mathrm{MMD}^2 = \frac{2t}{\ell^2} e^{-t^2/2\ell^2}, \qquad W_1 = t. \tag{13.17}$$
#
# Finite, yes. But MMD's gradient vanishes too, and fast: a few kernel widths away it is as blind as the missed mode. It is the post's fourth sentence once more, with a *bounded*
# objective. A wider kernel or one without a scale (the energy distance, $-|a - b|$) sees farther.


# %%
def squared_mmd(a, b, width):
    """Between two samples, from their kernel matrices."""
    k = lambda u, v: torch.exp(-((u[:, None] - v[None]) ** 2) / (2 * width**2)).mean()  # noqa: E731
    return k(a, a) + k(b, b) - 2 * k(a, b)


at, width = np.array([0.5, 1.0, 3.0, 6.0]), 1.5
point = torch.tensor(at, requires_grad=True)
total = torch.stack([squared_mmd(t.reshape(1), torch.zeros(1), width) for t in point])
(mmd_slope,) = torch.autograd.grad(total.sum(), point)
checks.exact(
    "13.11a",
    "two points: ∂MMD²/∂t = (2t/ℓ²) e^{−t²/2ℓ²}, from kernel matrices by autograd",
    2 * at / width**2 * np.exp(-(at**2) / (2 * width**2)),
    mmd_slope,
    wrong={
        "the cross term counted once": at / width**2 * np.exp(-(at**2) / (2 * width**2)),
        "ℓ for ℓ²": 2 * at / width * np.exp(-(at**2) / (2 * width)),
    },
)
checks.independent(
    "13.11b",
    "two boxes at distance t: W₁ = t, by SciPy from 400 points of each",
    at,
    [stats.wasserstein_distance((np.arange(400) + 0.5) / 400, t + (np.arange(400) + 0.5) / 400) for t in at],
    wrong={"the gap between the boxes": np.maximum(at - 1, 0), "squared": at**2},
    tolerance=1e-9,
)

# %% mystnb={"image": {"alt": "The pull towards the target against the distance between two points from 0 to 8: the spread divergence's grows as a straight line, Wasserstein's is constant, the maximum mean discrepancy's rises to a peak near 1.5 and falls to zero by 6; a shaded band at the bottom marks no pull."}}
t = np.linspace(0.05, 8, 200)
pulls = {
    "spread KL, s = 1.5": t / width**2,
    "Wasserstein": np.ones_like(t),
    "MMD², ℓ = 1.5": 2 * t / width**2 * np.exp(-(t**2) / (2 * width**2)),
}
assert abs(t[pulls["MMD², ℓ = 1.5"].argmax()] - width) < 0.05
assert pulls["MMD², ℓ = 1.5"][-1] < 1e-5
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 3))
    for (name, pull_t), style, colour in zip(
        pulls.items(), ("-", ":", "--"), (plots.COLOURS.accent, plots.COLOURS.p, plots.COLOURS.q), strict=True
    ):
        ax.plot(t, pull_t, style, color=colour, label=name)
    ax.axhline(0, color=plots.COLOURS.muted, linewidth=1)
    ax.set(xlabel="distance t between two points", ylabel="slope in t", ylim=(-0.1, 3))
    ax.legend(loc="upper left")
    ax.set_title("Finite is not enough: MMD's pull dies with distance")

# %% [markdown]
# There is a catch, and it decides what VI can use. MMD, Wasserstein, the forward KL: all want **draws from $p$**, and the posterior's draws are what we lack. The spread KL between boxes
# was easy because we knew both boxes. For a posterior, $p * \mathcal{N}(0, s^2)$ is an integral over the joint.
#
# ## Annealing: what it can do, and what it cannot
#
# The sensor again, $f = 0.2$: weights 0.8 at $+4$ and 0.2 at $-4$. A Gaussian $q$ that starts on the smaller mode pays $-\log 0.2 = 1.61$ nats and stays. The best
# Gaussian sits on the larger and pays $-\log 0.8 = 0.22$. So the gap has two parts, the ledger's:
#
# - 1.39 nats that the **optimiser** left undone;
# - 0.22 nats that the **family** cannot reach.
#
# **Annealing** starts near the prior and lets the data in: $p(z)\, p_\theta(x \mid z)^\beta$ with β from 0 to 1 (`objectives.tempered`, `linear_schedule`). How many places are there at which a Gaussian
# can rest? For each μ take the best σ, and count the stationary points of the profile.

# %%
fine_means, log_scales = torch.linspace(-6, 6, 241) + 1e-3, torch.linspace(-0.6, 1.6, 111)
log_prior, log_likelihood = model.prior().log_prob(axis)[:, 0], model.log_likelihood(x)(axis)[:, 0]
parts = [
    (Normal(fine_means[:, None], s).log_prob(axis[:, 0]).exp() @ torch.stack([log_prior, log_likelihood], -1)) * step
    for s in log_scales.exp()
]
expected = torch.stack(parts, 1)  # E_q of the log prior and of the log likelihood, for every mean and scale


def resting_places(beta):
    """Means at which the tempered ELBO, maximised over the scale, is stationary."""
    objective = expected[..., 0] + beta * expected[..., 1] + log_scales
    k = objective.argmax(1).clamp(1, len(log_scales) - 2)[:, None]
    low, mid, high = (objective.gather(1, k + i)[:, 0] for i in (-1, 0, 1))
    profile = mid - (high - low) ** 2 / (8 * (low - 2 * mid + high))  # the parabola's top
    sign = profile.diff().sign()
    return fine_means[1:-1][sign[1:] != sign[:-1]]


found = {beta: resting_places(beta) for beta in (0.3, 1.0)}


# %%
def ends_of_ascent(beta):
    """Means at which SciPy's ascent over mean and scale ends, from 13 starts: the maxima."""
    eps = np.linspace(-9, 9, 1801)
    weights = stats.norm.pdf(eps) * 0.01

    def loss(v):
        z = v[0] + math.exp(v[1]) * eps
        log_likelihood = np.logaddexp(math.log(0.8) - (5 - z) ** 2 / 2.5, math.log(0.2) - (5 + z) ** 2 / 2.5)
        return -(weights @ (beta * log_likelihood - z**2 / 10)) - v[1]

    return {round(float(optimize.minimize(loss, [start, 0.0]).x[0]), 1) for start in np.linspace(-6, 6, 13)}


checks.enumeration(
    "13.7a",
    "a Gaussian can rest in one place at β = 0.3 and in three at β = 1: two maxima and the pass between",
    [len(found[beta]) for beta in found],
    [2 * len(ends_of_ascent(beta)) - 1 for beta in found],  # on a line maxima and minima alternate
    wrong={"the maxima only": [1, 2], "a landscape that does not change": [3, 3]},
)
print({beta: [round(v, 1) + 0.0 for v in found[beta].tolist()] for beta in found})

# %% [markdown]
# That is annealing's whole case: at $\beta = 0.3$ no wrong place can hold you. The tempered posterior has two hills even there; a wide Gaussian lies across both. And its whole limit: at $\beta = 1$ the landscape is what it always was. Annealing chooses *where you end*, among
# the same three places.
#
# Now watch it. A family of one or two Gaussians, the exact ELBO on a grid, 120 small steps of Adam so that $q$ *walks* and does not leap, then L-BFGS to finish. Both start on the smaller mode. What
# will two components do?


# %%
class Normals(nn.Module):
    """A mixture of Gaussians that stays on the grid: means within ±15, scales between 0.3 and 8."""

    def __init__(self, locs):
        super().__init__()
        self.raw_loc = nn.Parameter(15 * torch.atanh(torch.tensor([locs]) / 15))
        self.raw_scale = nn.Parameter(torch.full((1, len(locs)), -math.log(10)))  # a scale of 1
        self.logits = nn.Parameter(torch.zeros(1, len(locs)))

    def forward(self, x=None):
        normals = Normal(15 * torch.tanh(self.raw_loc / 15), 0.3 + 7.7 * self.raw_scale.sigmoid())
        return MixtureSameFamily(Categorical(logits=self.logits), normals)


progress = linear_schedule(100)


def climb(family, objective, keep=None):
    """Raise objective(q, progress): Adam while progress goes from 0 to 1, then L-BFGS at 1."""
    state = {"step": 0}

    def watch(step):
        state["step"] = step
        if keep is not None:
            keep.append(family())

    data = torch.zeros(1)
    walk = torch.optim.Adam(family.parameters(), lr=0.1)
    _ = training.fit(lambda _: objective(family(), progress(state["step"])), walk, data, num_steps=120, callback=watch)
    finish = torch.optim.LBFGS(
        family.parameters(), line_search_fn="strong_wolfe", max_iter=40, tolerance_grad=1e-9, tolerance_change=1e-13
    )
    _ = training.fit(lambda _: objective(family(), 1.0), finish, data, num_steps=1)
    return family()


# %%
def exact_elbo(q, progress=1.0):
    draws = weigh(model.given(x), q, axis)
    return (draws.log_q.exp() * draws.log_weight).sum() * step


def annealed_elbo(q, progress):
    beta = 0.02 + 0.98 * progress
    draws = weigh(tempered(model.given(x), prior, beta), q, axis)
    return (draws.log_q.exp() * draws.log_weight).sum() * step


one, two, paths = [-4.0], [-4.3, -3.7], {"one": [], "two": []}
plain_one = climb(Normals(one), exact_elbo)
annealed_one = climb(Normals(one), annealed_elbo, paths["one"])
plain_two = climb(Normals(two), exact_elbo)
annealed_two = climb(Normals(two), annealed_elbo, paths["two"])
for name, q_found in {
    "one, plain": plain_one,
    "one, annealed": annealed_one,
    "two, plain": plain_two,
    "two, annealed": annealed_two,
}.items():
    print(f"{name:<14} gap {(log_evidence - exact_elbo(q_found)).abs().item():.1f} nats")

# %% [markdown]
# One Gaussian: 1.61 without annealing, 0.22 with it, and 0.22 is the end: what is left is the family's. Two components reach the posterior, if annealed. Without, from this start and after the same number of steps, they are still together on the smaller mode: a richer
# family did not help here.
#
# The oracle for the two ends is `quad` on the fitted densities:


# %%
def kl_by_quad(q):
    """KL(q‖p) with SciPy, from the fitted numbers and the closed-form posterior."""
    loc, scale = q.component_distribution.loc.detach().numpy()[0], q.component_distribution.scale.detach().numpy()[0]
    share = q.mixture_distribution.probs.detach().numpy()[0]

    def f(z):
        log_q = special.logsumexp(stats.norm.logpdf(z, loc, scale), b=share)
        log_p = np.logaddexp(math.log(0.8) + stats.norm.logpdf(z, 4), math.log(0.2) + stats.norm.logpdf(z, -4))
        return math.exp(log_q) * (log_q - log_p)

    return sum(quad(f, a, b, epsabs=1e-12, limit=200)[0] for a, b in ((-30, -4), (-4, 0), (0, 4), (4, 30)))


fitted = [plain_one, annealed_one, annealed_two]
checks.quadrature(
    "13.7b",
    "one Gaussian: −log 0.2 plain, −log 0.8 annealed, to 1e-3; two components, annealed: 0",
    [-math.log(0.2), -math.log(0.8), 0.0],
    [kl_by_quad(q) for q in fitted],
    wrong={
        "annealing saves one Gaussian": [-math.log(0.2), 0.0, 0.0],
        "annealing changes nothing": [-math.log(0.2), -math.log(0.2), 0.0],
    },
    tolerance=1e-3,
)

# %% mystnb={"image": {"alt": "Fourteen frames of annealing: the tempered posterior, one broad hill in the first frame, has two in all the others, which part into a large peak at 4 and a small one at -4; a single Gaussian ends on the large peak, and of a mixture of two each component takes one peak."}} tags=["nbval-ignore-output"]
shown = [*np.linspace(0, 119, 13).astype(int), 120]
paths = {"one": [*paths["one"], annealed_one], "two": [*paths["two"], annealed_two]}  # the last: after L-BFGS
z = torch.linspace(-9, 9, 361)


def tempered_density(beta):
    log_p = tempered(model.given(x), prior, beta)(z[:, None])[:, 0]
    return (log_p - log_p.logsumexp(0)).exp() / 0.05


betas = [0.02 + 0.98 * progress(int(k)) for k in shown]
hills = [int((tempered_density(beta).diff().sign().diff() < 0).sum()) for beta in betas]
rests = [len(resting_places(beta)) for beta in betas]
assert hills == [1] + [2] * 13
assert rests == [1] * 4 + [3, 5] + [3] * 8


def frame(fig, n):
    k, density = shown[n], tempered_density(betas[n])
    for ax, name, title in zip(
        fig.subplots(1, 2, sharey=True), ("one", "two"), ("one Gaussian", "two Gaussians"), strict=True
    ):
        ax.fill_between(z, density, color="#D8D4EA")
        ax.plot(z, density, color=plots.COLOURS.p, linewidth=1.5)
        ax.plot(z, paths[name][k].log_prob(z[:, None]).exp().detach(), "--", color=plots.COLOURS.q)
        ax.set(xlabel="z", ylim=(0, 0.45), xlim=(-9, 9))
        ax.set_title(title, size=11)
    fig.suptitle(
        f"β = {betas[n]:.2f}: {('one hill', 'two hills')[hills[n] - 1]}, {rests[n]} resting place{'s' * (rests[n] > 1)} for one Gaussian",
        x=0.01,
        ha="left",
        weight="bold",
    )


alt = "The tempered posterior, one hill at first, then two; one Gaussian ends on the larger, two Gaussians take both."
plots.animate(frame, len(shown), alt, name="annealing", figsize=(7, 3), interval_ms=300)

# %% [markdown]
# ## Every remedy, one ledger
#
# Now all of them on the same problem, from the same bad start, the smaller mode. For each: the ELBO, its gap split as above, the forward $\mathrm{KL}(p \,\|\, q)$, and ESS/K, what weighted draws would be worth.
#
# - **spread KL**: both noised by $s = 2$. **Shrinking noise**: $s$ from 4 to 0 on the way, then the ELBO; annealing by blurring.
# - **reverse diffusive KL** (He, Chen, Zhang, Barber & Hernández-Lobato 2025): the mean of $\mathrm{KL}(q_s \| p_s)$ over noise levels along a diffusion. As read, they train samplers with it and estimate the scores of the noised
#   densities; our version in one dimension has plain noise of scale 1, 2, 4, 8, weights $\propto s^2$, and exact integrals.
# - **forward KL**, **χ²** (the ELBO's place is taken by $-\mathrm{CUBO}_2$), **MMD** with $\ell = 1$, **Wasserstein**: each with exact integrals over $p$, which no practitioner has.
# - **defensive**: the ELBO of $0.9\, q + 0.1$ prior.

# %%
log_p = p.log_prob(axis)
coarse = axis[::2]
kernel = torch.exp(-0.5 * (coarse - coarse.mT) ** 2)


def defended_q(q):
    return defensive_mixture(q, prior, 0.1)


def mmd_objective(q, progress):
    difference = (p.log_prob(coarse).exp() - q.log_prob(coarse).exp())[:, 0]
    return -(difference @ kernel @ difference) * (2 * step) ** 2


def wasserstein(q, progress):
    difference = (p.log_prob(axis).exp() - q.log_prob(axis).exp()).cumsum(0) * step
    return -(difference**2 + 1e-5).sqrt().sum() * step  # |·| with its corner rounded, for L-BFGS


def diffusive(q, progress):
    levels = (1.0, 2.0, 4.0, 8.0)
    return -sum(s**2 * kl(noised(q, s), noised(p, s)) for s in levels) / sum(s**2 for s in levels)


def shrinking(q, progress):
    return exact_elbo(q) if progress == 1 else -kl(noised(q, 4 * (1 - progress)), noised(p, 4 * (1 - progress)))


objectives = {
    "ELBO": exact_elbo,
    "ELBO, annealed": annealed_elbo,
    "spread KL, s = 2": lambda q, _: -kl(noised(q, 2.0), noised(p, 2.0)),
    "shrinking noise": shrinking,
    "reverse diffusive KL": diffusive,
    "forward KL": lambda q, _: -kl(p, q),
    "χ² (CUBO)": lambda q, _: -0.5 * ((2 * log_p - q.log_prob(axis)).logsumexp(0) + math.log(step)).sum(),
    "MMD": mmd_objective,
    "Wasserstein": wasserstein,
    "ELBO, defensive": lambda q, _: exact_elbo(defended_q(q)),
}

# %%
best_one = exact_elbo(climb(Normals([4.0]), exact_elbo)).reshape(1)
best_defended = exact_elbo(defended_q(climb(Normals([4.0]), objectives["ELBO, defensive"]))).reshape(1)


def row(q, best):
    """Ledger, KL(p‖q) and ESS/K of a q for the sensor."""
    ledger = gap_ledger(exact_elbo(q).detach().reshape(1), best.detach(), log_evidence)
    forward_kl = (log_p.exp() * (log_p - q.log_prob(axis))).sum().item() * step
    second = (2 * log_p - q.log_prob(axis)).exp().sum().item() * step
    return ledger, forward_kl, 1 / second


rows = {}
for name, objective in objectives.items():
    q_found = climb(Normals(one), objective)
    defend = name == "ELBO, defensive"
    rows[name] = row(defended_q(q_found) if defend else q_found, best_defended if defend else best_one)
rows["two, ELBO annealed"] = row(annealed_two, log_evidence)
rows["two, diffusive"] = row(climb(Normals(two), diffusive), log_evidence)

# %% [markdown]
# The other two problems go into the same table. For the silent counter, a Gaussian in $\log z$, and that with a tenth of the prior mixed in. For a Cauchy posterior, the best Gaussian, and the best Student-t with 1.5 degrees of
# freedom. (Why 1.5? With tails $|z|^{-\nu - 1}$ the integral of $p^2/q$ is finite only if $\nu_q < 2 \nu_p$, here below 2. A $q$ need not have *heavier* tails than $p$; it must not have much lighter ones.) (A dash under *undone*: that $q$ is the family's best by construction.) One line's ESS/K will say 0.00 although nothing seems wrong with it. Guess which: after the transform to $\log z$, how good are the weights?


# %%
def by_quad(log_p, log_q, edges, evidence, best=None, finite_weights=True):
    """Ledger, KL(p‖q) and ESS/K of a one-dimensional q, piece by piece."""

    def total(f):
        return sum(quad(f, a, b, limit=200)[0] for a, b in itertools.pairwise(edges))

    gap = total(lambda z: math.exp(log_q(z)) * (log_q(z) - log_p(z)))
    forward_kl = total(lambda z: math.exp(log_p(z)) * (log_p(z) - log_q(z)))
    best = gap if best is None else best  # without one the column "undone" is no measurement
    ledger = gap_ledger(*(torch.tensor([v]) for v in (evidence - gap, evidence - best, evidence)))
    return ledger, forward_kl, 1 / total(lambda z: math.exp(2 * log_p(z) - log_q(z))) if finite_weights else 0.0


loc_u, scale_u = fits[2.0]
silence = lambda z: math.log(3) - 3 * z  # noqa: E731
lognormal = lambda z: normal_log_pdf(math.log(z), loc_u, scale_u) - math.log(z)  # noqa: E731
mixed = lambda z: math.log(0.9 * math.exp(lognormal(z)) + 0.1 * math.exp(-z))  # noqa: E731
fine = np.exp(np.linspace(-20, 3, 4001))  # the rate, in equal steps of its logarithm


def mixed_gap(v):
    """KL(q‖posterior) of 0.9 lognormal(v) + 0.1 prior, by a sum."""
    q_z = 0.9 * stats.lognorm.pdf(fine, math.exp(v[1]), scale=math.exp(v[0])) + 0.1 * np.exp(-fine)
    return np.sum(fine * q_z * (np.log(q_z) - math.log(3) + 3 * fine)) * 23 / 4000


least_mixed = optimize.minimize(mixed_gap, [loc_u, 0.0], method="Nelder-Mead").fun
edges = (1e-9, 1e-4, 0.01, 0.2, 1.0, 4.0, 12.0)
others = {
    "through the log": by_quad(silence, lognormal, edges, -math.log(3), least, finite_weights=False),
    "… and defensive": by_quad(silence, mixed, edges, -math.log(3), least_mixed),
}

# %%
cauchy = lambda z: -math.log(math.pi) - math.log1p(z * z)  # noqa: E731
tails = (-1e6, -1e4, -100, -5, 0, 5, 100, 1e4, 1e6)


def student(scale, dof=1.5):
    constant = math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2) - 0.5 * math.log(dof * math.pi) - math.log(scale)
    return lambda z: constant - (dof + 1) / 2 * math.log1p((z / scale) ** 2 / dof)


def best_gap(make):
    """The smallest KL(q‖Cauchy) over the scale, and where it is."""

    def loss(scale):
        return 2 * sum(
            quad(lambda z: math.exp(make(scale)(z)) * (make(scale)(z) - cauchy(z)), a, b)[0]
            for a, b in ((0, 5), (5, 100), (100, 1e4))
        )

    result = optimize.minimize_scalar(loss, bounds=(0.5, 3.0), method="bounded", options={"xatol": 1e-5})
    return result.fun, result.x


gaussian_gap, _ = best_gap(lambda scale: lambda z: normal_log_pdf(z, 0.0, scale))
best_scale = best_gap(student)[1]
others["Student-t, ν = 1.5"] = by_quad(cauchy, student(best_scale), tails, 0.0)
# E_p[z²] of the Cauchy up to R: the forward KL to any Gaussian, and by Jensen log ∫p²/q too, are at least half of it
second_moments = [2 * quad(lambda z: z * z * math.exp(cauchy(z)), 0, R, limit=200)[0] for R in (10, 100, 1000)]
assert np.allclose(np.diff(second_moments), 2 / math.pi * np.array([90, 900]), rtol=0.01)  # 2R/π, without end
# What the integral of p²/q does as it reaches farther out: finite, or not?
reach = {
    u: quad(
        lambda v: math.exp(2 * (math.log(3) + v - 3 * math.exp(v)) - normal_log_pdf(v, loc_u, scale_u)),
        -u,
        3,
        limit=200,
    )[0]
    for u in (5, 10, 15)
}

# %%
lines = {"COUNTER  Gaussian": ("−∞", "—", "∞", "—", "—")}
show = lambda ledger, fkl, ess: (ledger.elbo, ledger.amortisation_gap, ledger.approximation_gap, fkl, ess)  # noqa: E731
lines["         through the log"] = (*show(*others["through the log"])[:4], 0.0)  # its p²/q has no integral: see below
lines["         … and defensive"] = show(*others["… and defensive"])
lines["CAUCHY   Gaussian"] = (-gaussian_gap, "—", gaussian_gap, "∞", 0.0)
student_line = show(*others["Student-t, ν = 1.5"])
lines["         Student-t, ν = 1.5"] = (student_line[0], "—", *student_line[2:])
for name, numbers in rows.items():
    lines[("SENSOR   " if name == "ELBO" else "         ") + name] = show(*numbers)
print(f"{'':<30}{'ELBO':>7}{'undone':>8}{'family':>8}{'KL(p‖q)':>9}{'ESS/K':>7}")
for name, numbers in lines.items():
    cells_shown = [v if isinstance(v, str) else f"{round(v, 2) + 0.0:.2f}" for v in numbers]
    print(f"{name:<30}" + "".join(f"{v:>{w}}" for v, w in zip(cells_shown, (7, 8, 8, 9, 7), strict=True)))
assert reach[10] > 1e6 * reach[5]
assert reach[15] > 1e6 * reach[10]
assert rows["ELBO"][2] < 1e-27 < 0.015 < rows["ELBO, defensive"][2] < 0.025
assert rows["ELBO, annealed"][0].amortisation_gap < 0.01 < 0.2 < rows["ELBO, annealed"][0].approximation_gap
assert rows["two, ELBO annealed"][0].approximation_gap < 0.01
assert rows["forward KL"][2] > 0.4 > 0.01 > rows["ELBO, annealed"][2]
covering = [rows[name] for name in ("reverse diffusive KL", "forward KL", "χ² (CUBO)")]
assert all(0.355 < ess < 0.425 and ledger.elbo < rows["ELBO"][0].elbo for ledger, _, ess in covering)
assert all(ledger.approximation_gap > -1e-6 for ledger, _, _ in [*rows.values(), *others.values()])

# %% [markdown]
# A table is easy to print and hard to doubt. So one line of each block again, by another way: the closed form (13.7), moments, and quantiles.

# %%
u = (np.arange(100_000) + 0.5) / 100_000
t_quantiles, c_quantiles = stats.t(1.5, scale=best_scale).ppf(u), stats.cauchy.ppf(u)
log_ratio = lambda z: stats.t.logpdf(z, 1.5, 0, best_scale) - stats.cauchy.logpdf(z)  # noqa: E731
p_at = lambda z: 0.8 * stats.norm.pdf(z, 4) + 0.2 * stats.norm.pdf(z, -4)  # noqa: E731
broad = stats.norm(2.4, math.sqrt(11.24))  # the posterior's mean and variance: the best Gaussian for KL(p‖q)
forward_entropy = 0.5 * math.log(11.24) + 0.5 * math.log(2 * math.pi * math.e)
p_entropy = -quad(lambda z: p_at(z) * math.log(p_at(z)), -14, 14, points=[-4, 0, 4])[0]
of_table = [others["through the log"][0].approximation_gap, *rows["forward KL"][1:]]
of_table += [others["Student-t, ν = 1.5"][0].approximation_gap, others["Student-t, ν = 1.5"][1]]
other_way = [least, forward_entropy - p_entropy]
other_way += [1 / quad(lambda z: p_at(z) ** 2 / broad.pdf(z), -14, 14, points=[-4, 0, 4])[0]]
other_way += [log_ratio(t_quantiles).mean(), -log_ratio(c_quantiles).mean()]
swapped = [*other_way[:3], -other_way[4], -other_way[3]]
checks.independent(
    "13.18",
    "a line of each block again: (13.7), moments matched to the posterior, quantiles of the Student-t",
    of_table,
    other_way,
    wrong={
        "p's entropy left out of KL(p‖q)": [other_way[0], forward_entropy, *other_way[2:]],
        "q and p exchanged in the mean": swapped,
        "ESS/K as e^{−KL(p‖q)}": [*other_way[:2], math.exp(-other_way[1]), *other_way[3:]],
    },
    tolerance=1e-3,
)

# %% [markdown]
# The line is *through the log*. The gap is 0.08 nats, and the weights have infinite variance: towards $z \to 0$ the posterior of $u = \log z$ falls like $e^{u}$, a Gaussian like $e^{-u^2/2}$, and the integral of $p^2/q$ explodes. The transform mended the
# support and left a tail. A tenth of the prior mends that.
#
# For the sensor, read by column.
#
# - *Undone* goes to zero with annealing and with shrinking noise: they mend the **optimiser's** part. *Family* stays at 0.22 for every single Gaussian.
# - Only **two components** bring the family's part down.
# - The reverse diffusive KL, the forward KL and χ² pay *more* ELBO than where they started, on purpose: they cover both modes, and their ESS/K, 0.36 to 0.42, says what for. "Undone" is their choice, no failure. They are no way to a tight bound; they are a way to weights.
# - The defensive $q$, still on the smaller mode, is worth 2 exact draws in a hundred. Little; but without the defence it was $4 \cdot 10^{-28}$.
# - Best ELBO and best weights exclude each other here: with one Gaussian you choose.
#
# (The picture below calls the undone part by its name in the ledger, the amortisation gap.) For the **boxes**, which have no ELBO, the ledger is the distance. L-BFGS on the spread KL:

# %%
t = nn.Parameter(torch.tensor(4.0))
optimiser = torch.optim.LBFGS([t], line_search_fn="strong_wolfe", max_iter=50)
_ = training.fit(lambda _: -spread(t, 1.0), optimiser, torch.zeros(1), num_steps=1)
assert abs(t.item()) < 1e-3
print(f"boxes: t = 4.00 → {abs(t.item()):.2f}")

# %% mystnb={"image": {"alt": "Five ledger bars for the sensor. From the top: plain ELBO, with a large optimiser's gap and a small family gap; annealed, with the family gap only; reverse diffusive KL and forward KL, with larger gaps; two Gaussians annealed, whose bar reaches the evidence."}}
picked = {
    "ELBO": "ELBO",
    "ELBO, annealed": "annealed",
    "reverse diffusive KL": "diffusive",
    "forward KL": "forward KL",
    "two, ELBO annealed": "two Gaussians,\nannealed",
}
assert all(
    abs(sum([led.elbo, led.amortisation_gap, led.approximation_gap]) - log_evidence.item()) < 1e-6
    for led, _, _ in rows.values()
)
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 5.2))
    plots.ledger_bars([rows[name][0] for name in picked], list(picked.values()), ax)
    ax.set_title("Annealing mends the optimiser's part, a mixture the family's")

# %% [markdown]
# ## The verdicts
#
# | the post's sentence, in our words | of the ELBO | the number that decides |
# |---|---|---|
# | 1. Trouble comes when supports differ. | **holds with a condition**: it matters who sticks out | $q$ outside $p$: $-\infty$, for a mass of $9 \cdot 10^{-5}$ as for any; $p$ outside $q$: $\log 2$ for half of it (check 13.14) |
# | 2. Where $p$ has mass and $q$ very little, the bound becomes very large. | **holds with a condition**: not if $q$ is $p$ cut down, or a part of it; yes if $q$ is a needle; also for $\mathrm{KL}(p \Vert q)$ and the weights | at most $-\log \pi$, 0.69 for half (check 13.6b); 6.63 nats for a needle of width $10^{-3}$, 13.54 for $10^{-6}$ (check 13.16); $\chi^2 = 8{,}102$ at a shift of 3 (check 13.8) |
# | 3. Where $q$ is zero, really or numerically, the bound is infinite. | **does not hold**; it holds for $\mathrm{KL}(p \Vert q)$, and for the ELBO the other way round | $\log 2$ with $q = 0$ on half of $p$ (check 13.14); a density of 0 in float32 has the logarithm −113.4; $-\infty$ where $p = 0 < q$ (check 13.1a) |
# | 4. As the bound grows, the gradient shrinks. | **holds with a condition**: the slope of $\log p$ dies along $q$'s way, as in heavy tails | Cauchy: KL 4.3 → 13.5, slope 0.2 → 0.002 (check 13.3); Gaussian target: both grow; missed mode: gap fixed, slope $10^{-8}$ (check 13.6a) |
# | 5. So optimisation may not converge. | **holds**: for plain ascent as said; at a missed mode with another reason | Cauchy from $\mu = 100$: about $\mu^2/4 = 2{,}500$ plain steps, about 100 of Adam's; missed mode: 1.39 nats undone at a *local optimum* (check 13.7b) |
#
# In one sentence: the ELBO is blind where $q$ is not, and merciless where $p$ is not.
#
# ## Exercises
#
# **13.E1 (recall).** A posterior $p$ is a mixture of separate parts with given `weights` (an array that sums to one). $q$ is $p$ restricted to the parts where `kept` is true, renormalised. What is $\mathrm{KL}(q \| p)$?
#
# <details><summary>Hint</summary>
#
# On the kept parts $q/p$ is a constant.
#
# </details>


# %%
def kl_of_the_kept(weights, kept): ...  # your code


ch13.kl_of_the_kept.check(kl_of_the_kept)

# %% [markdown]
# **13.E2 (a derivation).** Now the counter has clicked: the posterior of the rate is $\mathrm{Gamma}(a, b)$ with shape $a$ and rate $b$. What is the KL of the best Gaussian in $\log z$? How does it change with $a$, and with $b$?
#
# <details><summary>Hint</summary>
#
# The target density of $u$ is $b^a e^{au - b e^u} / \Gamma(a)$. Differentiate in μ and σ as for (13.6). You will meet an old acquaintance, Stirling.
#
# </details>


# %%
def kl_through_the_logarithm(shape, rate): ...  # your code


ch13.kl_through_the_logarithm.check(kl_through_the_logarithm)

# %% [markdown]
# **13.E3 (code).** Write the spread KL between $\mathrm{U}(t, t + 1)$ and $\mathrm{U}(0, 1)$ under Normal noise of scale $s$, to six digits.
#
# <details><summary>Hint</summary>
#
# A box under noise has density $\Phi(z/s) - \Phi((z - 1)/s)$. `softened.noised` knows it in logarithms; integrate on a grid, or with `quad`.
#
# </details>


# %%
def spread_kl(shift, scale): ...  # your code


ch13.spread_kl.check(spread_kl)

# %% [markdown]
# **13.E4 (a small study).** The sensor at $x$ with flip probability $f$, and $q = (1 - \delta)\, \mathcal{N}(0.8x, 1) + \delta\, \mathcal{N}(0, 5)$. Write ESS/K as a function of $x$, $f$, δ. Then: which δ is best for $x = 5$, $f = 0.2$? Is it small?
#
# <details><summary>Hint</summary>
#
# $\mathrm{ESS}/K = 1 / \int p^2/q\, dz$, with the normalised posterior $p$.
#
# </details>


# %%
def effective_share(x, flip, defence): ...  # your code


ch13.effective_share.check(effective_share)

# %% [markdown]
# ## Summary
#
# - *Which mismatch.* $q$ with mass where the joint has none: $\mathcal{L} = -\infty$, however small the mass, and a finite estimate means only that the draws missed it. Never drop infinite log weights. The other way round costs at most $-\log \pi$ if $q$ is $p$ cut down to mass π, or a component of that weight; in general there is no ceiling: a needle of width $s$ pays like $\log \tfrac1s$.
# - *Gap and gradient.* They are separate. Cauchy tails: growing gap, a small clean gradient, slow only for steps that do not rescale it. Missed mode: small gap, no usable gradient, and a wall.
# - *Two parts of a gap.* What the optimiser left undone (annealing, shrinking noise) and what the family cannot reach (mixtures).
# - *Remedies.* Edges: a transform. Weights: tails not much lighter than $p$'s, or a defensive share of the prior. Distributions that never meet: noise on both. Cover all modes: the forward KL, χ² or the reverse diffusive KL, paid for in ELBO.
#
# **Sources.** T. Hesterberg (1995), Weighted average importance sampling and defensive mixture distributions. M. Zhang, P. Hayes, T. Bird, R. Habib & D. Barber (2020), Spread divergence, ICML. J. He, W. Chen, M. Zhang, D. Barber &
# J. M. Hernández-Lobato (2025), Training neural samplers with reverse diffusive KL divergence, AISTATS (PMLR 258). C. M. Bishop (2006), *Pattern Recognition and Machine Learning*, figure 10.3: two modes and one Gaussian. R. M. Neal (2001), Annealed
# importance sampling: the tempered path. A. B. Dieng et al. (2017), Variational inference via χ upper bound minimization. A. Gretton, K. Borgwardt, M. Rasch, B. Schölkopf & A. Smola (2012), A kernel two-sample test, JMLR 13: MMD.
#
# **Next.** The weights saw what the ELBO did not: their mean is $p_\theta(x)$, mode and all. Can a bound be built from many weights at once, and what does it cost the encoder? [Chapter 14](14_tighter_bounds.ipynb): *Tighter bounds*.

# %% [markdown]
# ## Solutions


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def kl_of_the_kept_solution(weights, kept):
    return -math.log(weights[kept].sum())


ch13.kl_of_the_kept.check(kl_of_the_kept_solution)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def kl_through_the_logarithm_solution(shape, rate):
    return math.lgamma(shape) - (shape - 0.5) * math.log(shape) + shape - 0.5 * math.log(2 * math.pi)


ch13.kl_through_the_logarithm.check(kl_through_the_logarithm_solution)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def spread_kl_solution(shift, scale):
    q, p = (
        noised(Uniform(torch.tensor(shift), torch.tensor(shift + 1)), scale),
        noised(Uniform(torch.tensor(0.0), torch.tensor(1.0)), scale),
    )
    z = torch.linspace(-10 * scale, 1 + shift + 10 * scale, 8001)
    return torch.trapezoid(q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z)), z).item()


ch13.spread_kl.check(spread_kl_solution)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def effective_share_solution(x, flip, defence):
    def f(z):
        a, b = math.log(1 - flip) + stats.norm.logpdf(z, 0.8 * x), math.log(flip) + stats.norm.logpdf(z, -0.8 * x)
        proposal = [
            math.log(1 - defence) + stats.norm.logpdf(z, 0.8 * x),
            math.log(defence) + stats.norm.logpdf(z, 0, math.sqrt(5)),
        ]
        return math.exp(2 * np.logaddexp(a, b) - np.logaddexp(*proposal))

    cuts = (-20, -0.8 * x, 0, 0.8 * x, 20)
    return 1 / sum(quad(f, a, b, epsabs=1e-12)[0] for a, b in itertools.pairwise(cuts))


ch13.effective_share.check(effective_share_solution)
grid = np.arange(0.05, 1.0, 0.05)
study = [effective_share_solution(5.0, 0.2, d) for d in grid]
print(f"best δ ≈ {grid[int(np.argmax(study))]:.2f}, ESS/K = {max(study):.2f}; at δ = 0.05: {study[0]:.2f}")

# %% [markdown] jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
# <details><summary>13.E1 to 13.E4, in words</summary>
#
# *E1.* $-\log$ of the mass that is kept: the general form of (13.8).
#
# *E2.* $\log \Gamma(a) - [(a - \tfrac12) \log a - a + \tfrac12 \log 2\pi]$: the error of Stirling's formula, about $1/12a$, whatever $b$. Each click makes the posterior of $\log z$ more Gaussian.
#
# *E3.* Close to, but not, the KL of two Gaussians of variance $s^2 + \tfrac1{12}$.
#
# *E4.* Not small: the prior has to carry the whole missing fifth of the posterior, at a place where its own density is low.
#
# </details>
