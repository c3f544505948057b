# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 17 · Discrete latents
#
# A digit is a seven or it is not. A word is one word out of fifty thousand. Where the latent is a *choice*, the trick that has carried every
# chapter since the third stops: move φ a little, and the draw does not move a little. It stays, or it jumps.
#
# **How does one climb the ELBO when the draw has no derivative?** There are three answers: keep $\mathcal{L}$ and pay in noise, change
# $\mathcal{L}$ into something smooth, or make a derivative up. To judge them we need the truth. So we build a VAE whose latent has only 256 states.
# Everything about it is a sum: the ELBO, $\log p_\theta(x)$, the posterior, and the gradient.

# %% jupyter={"source_hidden": true} tags=["remove-cell", "setup"]
import importlib.util

from IPython import get_ipython

if (shell := get_ipython()) is not None:
    if importlib.util.find_spec("vi_tutorial") is None:  # on Colab, say
        shell.run_line_magic("pip", "install --quiet git+https://github.com/vi-tutorial/vi_tutorial")
    shell.run_line_magic("matplotlib", "inline")  # figures below their cells, whatever MPLBACKEND says

# %% mystnb={"image": {"alt": "The map of the series, six boxes joined by arrows: KL, ELBO, phi, theta, networks, what breaks. The box of what breaks is lit."}}
from vi_tutorial import plots

plots.chain("breaks")

# %% [markdown]
# *Before this:* [chapter 03](03_gradients_from_samples.ipynb) (score function, pathwise, leave-one-out) and [chapter
# 10](10_the_variational_autoencoder.ipynb) (the VAE); of [chapter 12](12_how_good_is_the_model.ipynb) the surgery of the KL term. *Reading time:* 30
# minutes; the cells run in about half a minute.
#
# **You will be able to**
#
# - **compute** everything about a small discrete VAE exactly, by enumeration;
# - **derive** the bias and the noise of a relaxation, and **say** why cold is noisy and warm is wrong;
# - **recognise** an objective that looks like an ELBO and is not a bound;
# - **read** a VQ-VAE's loss as an ELBO: what it is, what it is not, and what an unused code costs.

# %%
import itertools
import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import integrate, optimize, stats
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent, kl_divergence
from torch.nn.functional import one_hot, softplus

from vi_tutorial import checks, data, evaluation, families, models, training
from vi_tutorial.distributions import bernoulli
from vi_tutorial.elbo import draw, elbo, elbo_enumerated, elbo_leave_one_out, elbo_score_function
from vi_tutorial.exercises import ch17
from vi_tutorial.networks import BernoulliHead, mlp
from vi_tutorial.objectives import relaxed_objective
from vi_tutorial.softened import relaxed

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
_ = torch.manual_seed(0)

# %% [markdown]
# ## The line refuses
#
# The model: $L = 8$ fair coins as a prior, $p(z) = 2^{-8}$ for each $z \in \{0, 1\}^8$; a decoder with a hidden layer of 64 and Bernoulli pixels; an encoder
# that gives eight logits, $q_\phi(z \mid x) = \prod_i \mathrm{Bernoulli}(z_i \mid p_i(x))$. Both are heads that you know. Only the latent is new.

# %%
digits = data.digits()
train, test = ((counts >= 8).double() for counts in (digits.train, digits.test))
D, L, num_samples = 64, 8, 4


def new_vae(seed):
    """A decoder for eight bits, and an encoder to eight logits."""
    _ = torch.manual_seed(seed)
    prior = families.Fixed(bernoulli, logits=torch.zeros(L))
    return models.LatentVariableModel(prior, BernoulliHead(mlp(L, 64, D), D)), BernoulliHead(mlp(D, 64, L), L)


model, q = new_vae(0)
x = train[:100]
try:
    draw(model.given(x), q(x), num_samples)
except ValueError as error:
    print(error)

# %% [markdown]
# There is no `rsample`, and there cannot be one: a continuous function of φ whose values are 0 and 1 is constant. The log weight is as well defined as ever,
#
# $$
# \mathcal{L} = \sum_{z} q_\phi(z \mid x) \, \big[ \log p_\theta(x, z) - \log q_\phi(z \mid x) \big], \tag{17.1}
# $$
#
# and it is *smooth* in φ, since $q_\phi(z \mid x)$ is. Only the draw is not. With 256 states we need no draw. Decode every state once; then one matrix
# product scores all digits against all states.

# %%
states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=L)))  # (256, 8)


def log_joint_table(model, x):
    """log p(x, z) for each digit and state, (N, 256)."""
    pixels = model.likelihood.network(states)
    return x @ pixels.T - softplus(pixels).sum(-1) - L * math.log(2)


def log_q_table(logits):
    """log q(z | x) for each digit and state, (N, 256), from logits (N, 8)."""
    return logits @ states.T - softplus(logits).sum(-1, keepdim=True)


def coins_elbo(log_joint, logits):
    """(17.1), from a table of log p(x, z)."""
    log_q = log_q_table(logits)
    return (log_q.exp() * (log_joint - log_q)).sum(-1)


def exact_elbo(model, x, logits):
    return coins_elbo(log_joint_table(model, x), logits)


with torch.no_grad():
    assert torch.allclose(exact_elbo(model, x, q.parameters_at(x)), elbo_enumerated(model.given(x), q(x)))

# %% [markdown]
# `elbo_enumerated` is the package's version, for any $q$ whose states can be listed. Before we lean on this sum, it meets somebody who does it the slow
# way: Python loops over states and pixels, with probabilities in place of logits.

# %%
few = test[:3]
with torch.no_grad():
    logits = q.parameters_at(few)
    p_code = q(few).mean.numpy()
    p_pixel = {z: model.likelihood(torch.tensor(z)).mean.numpy() for z in itertools.product((0.0, 1.0), repeat=L)}


def slowly(n, prior=0.5**L):
    """The ELBO of digit n, by loops and products."""
    total = 0.0
    for z, pixels in p_pixel.items():
        weight = math.prod(p if bit else 1 - p for bit, p in zip(z, p_code[n], strict=True))
        likelihood = sum(math.log(p if on else 1 - p) for on, p in zip(few[n], pixels, strict=True))
        total += weight * (likelihood + math.log(prior) - math.log(weight))
    return total


log_q, log_p = log_q_table(logits), log_joint_table(model, few)
checks.enumeration(
    "17.1a",
    "𝓛 of three digits as a sum over 256 states = loops over states and pixels",
    exact_elbo(model, few, logits),
    [slowly(n) for n in range(3)],
    wrong={
        "the prior forgotten": [slowly(n, prior=1.0) for n in range(3)],
        "a plain mean over the states": (log_p - log_q).mean(-1),
        "the entropy subtracted": (log_q.exp() * (log_p + log_q)).sum(-1),
    },
)

# %% [markdown]
# So the exact ELBO can be trained by Adam, with no estimator at all. This is the standard that everything else will be held against. We take it far
# enough to look at a posterior.

# %%
training.fit(
    lambda x: exact_elbo(model, x, q.parameters_at(x)),
    torch.optim.Adam([*model.parameters(), *q.parameters()], lr=1e-2),
    train,
    num_steps=400,
    batch_size=100,
    generator=torch.Generator().manual_seed(0),
)
_ = model.requires_grad_(False), q.requires_grad_(False)
logits = q.parameters_at(test)
log_joint, log_q = log_joint_table(model, test), log_q_table(logits)
log_evidence = log_joint.logsumexp(-1)
log_posterior = log_joint - log_evidence[:, None]
divergence = (log_q.exp() * (log_q - log_posterior)).sum(-1)  # KL(q ‖ posterior), exact
assert torch.allclose(divergence, log_evidence - exact_elbo(model, test, logits))
print(f"log p(x) held out {log_evidence.mean():.1f} nats; KL(q‖posterior): mean {divergence.mean():.1f}")

# %% [markdown]
# Whose fault is that KL? [Chapter 08](08_one_posterior_per_datapoint.ipynb) split it in two: what even the *best* eight coins for a digit lose is the **approximation gap**; what the
# encoder's coins lose beyond that, the **amortisation gap**. The best coins can be found one by one. With seven held, the best logit of the other is the mean effect of its bit,
#
# $$
# \ell_i = \mathbb{E}_{q_{-i}}\big[ \log p_\theta(x, z_{-i}, z_i = 1) - \log p_\theta(x, z_{-i}, z_i = 0) \big],
# $$
#
# and each such step is exact: the coordinate ascent of [chapter 02](02_a_fixed_gaussian_joint.ipynb). It ends in a local optimum, so we start it in three places.


# %%
def best_coins(log_joint, logits, sweeps=30):
    """The best coins that coordinate ascent finds, from the encoder's and the two likeliest states; logits (N, 8)."""
    ends = []
    for start in (logits, *(8 * states[log_joint.topk(2).indices[:, k]] - 4 for k in (0, 1))):
        coins = start.detach().clone()
        for i in sweeps * [*range(L)]:
            coins[:, i] = 0  # a fair coin: 2 q is then the law of the others
            coins[:, i] = (2 * log_q_table(coins).exp() * log_joint) @ (2 * states[:, i] - 1)
        ends.append(coins)
    best = torch.stack([coins_elbo(log_joint, coins) for coins in ends]).argmax(0)
    return torch.stack(ends)[best, torch.arange(len(best))]


best = best_coins(log_joint, logits)
approximation = log_evidence - coins_elbo(log_joint, best)
amortisation = divergence - approximation
shown = int(approximation.argmax())
marginals = (log_posterior.exp() @ states).logit()


# %%
def lacks(start):
    """What coins for the shown digit lack, after SciPy's climb from somewhere."""
    found = optimize.minimize(
        lambda logits: -coins_elbo(log_joint[shown], torch.from_numpy(logits)[None]).item(), start
    )
    return found.fun


checks.independent(
    "17.1f",
    "𝓛 of the best coins for a digit: coordinate ascent from 3 starts = SciPy's best of 12",
    coins_elbo(log_joint, best)[shown],
    -min(lacks(3 * start) for start in np.random.default_rng(0).standard_normal((12, L))),
    wrong={
        "the encoder's coins": coins_elbo(log_joint, logits)[shown],
        "coins with the posterior's marginals": coins_elbo(log_joint, marginals)[shown],
        "log p(x): no gap": log_evidence[shown],
    },
    tolerance=1e-5,
)
weight, centred = log_posterior[shown].exp(), states - marginals[shown].sigmoid()
covariance = centred.T @ (weight[:, None] * centred)
correlation = covariance / covariance.diag().outer(covariance.diag()).sqrt() - torch.eye(L)
assert amortisation.min() > -1e-6
print(f"all digits: approximation gap {approximation.mean():.1f}, amortisation gap {amortisation.mean():.1f} nats")
print(f"this digit: approximation gap {approximation[shown]:.1f}, amortisation gap {amortisation[shown]:.1f} nats")
print(f"its posterior's strongest correlation of two bits: {correlation.abs().max():.1f}")

# %% mystnb={"image": {"alt": "Four panels. A digit of eight by eight pixels. Three squares of 256 cells with the probabilities of the states: the exact posterior, with its mass on a few separate cells, two of them off the columns of the others; the best product of eight coins, rows times columns, which leaves those two out; and the encoder's coins, on the same columns and more spread out over the rows."}}
with plots.style():
    fig, axes = plt.subplots(1, 4, figsize=(7.2, 2.4), width_ratios=(0.7, 1, 1, 1))
    plots.images(test[shown : shown + 1], axes[0], vmin=0, vmax=1, num_cols=1)
    axes[0].set_title("A digit")
    tables = {"Its posterior": log_posterior, "Best coins": log_q_table(best), "Encoder's coins": log_q}
    for ax, (title, table) in zip(axes[1:], tables.items(), strict=True):
        ax.imshow(table[shown].exp().reshape(16, 16).sqrt(), cmap="Purples", vmin=0, vmax=0.7)
        ax.set(xlabel="bits 5 to 8", title=title, xticks=[], yticks=[])
        ax.grid(visible=False)
    axes[1].set_ylabel("bits 1 to 4")

# %% [markdown]
# (256 probabilities as a square; the shade is their square root.) This is the digit with the largest *approximation* gap, not a typical one. From the first square to the second: coins are independent, the bits of this
# posterior are not, and no encoder could mend that. The best coins give up a part of the posterior altogether. From the second to the third: better coins exist, and the encoder does not find them. Over all digits that is the larger part.


# %%
def ledger(model, q, x):
    """The gap ledger of a VAE with eight bits, on data x."""
    table, logits = log_joint_table(model, x).detach(), q.parameters_at(x).detach()
    best = coins_elbo(table, best_coins(table, logits))
    return evaluation.gap_ledger(coins_elbo(table, logits), best, table.logsumexp(-1))


exact_ledger = ledger(model, q, test)
assert exact_ledger.amortisation_gap > 2 * exact_ledger.approximation_gap

# %% [markdown]
# ## First answer: keep 𝓛, pay in noise
#
# With 50,000 states, or $2^{100}$, nobody sums. [Chapter 03](03_gradients_from_samples.ipynb) had an estimator that never differentiates the draw, the **score function** (Williams 1992), and its
# mended form, **leave one out** (RLOO; Kool, van Hoof & Welling 2019), in which each draw is compared with the mean of the others:
#
# $$
# \nabla_\phi \mathcal{L} = \mathbb{E}_q\big[ \log w(z) \, \nabla_\phi \log q_\phi(z \mid x) \big], \qquad
# \hat g = \frac1K \sum_{k=1}^{K} \Big( \log w_k - \frac{1}{K-1} \sum_{j \ne k} \log w_j \Big) \nabla_\phi \log q_\phi(z_k \mid x). \tag{17.2}
# $$
#
# Both were proved unbiased there. The question is now a practical one: how loud are they on a real VAE? For a bit with logit $\ell_i$ the score is $z_i - p_i$. So the gradient in $\ell_i$ is
# $\operatorname{Cov}_q(\log w, z_i)$, and with 256 states it can be written down, as can the *variance* of its estimators.
#
# The laboratory is a VAE after 150 exact steps, and twenty training digits. First the exact gradient. Its oracle differentiates nothing: it moves each logit by $\pm 10^{-5}$ and
# asks the package's ELBO.

# %%
lab_model, lab_q = new_vae(1)
training.fit(
    lambda x: exact_elbo(lab_model, x, lab_q.parameters_at(x)),
    torch.optim.Adam([*lab_model.parameters(), *lab_q.parameters()], lr=1e-2),
    train,
    num_steps=150,
    batch_size=50,
    generator=torch.Generator().manual_seed(1),
)
_ = lab_model.requires_grad_(False)
lab_x = train[:20]
lab_logits = lab_q.parameters_at(lab_x).detach()
probability = lab_logits.sigmoid()
q_all, log_w = (log_q_table(lab_logits).exp(), log_joint_table(lab_model, lab_x) - log_q_table(lab_logits))
score = states - probability[:, None]  # (20, 256, 8)
exact_gradient = torch.einsum("ns,ns,nsi->ni", q_all, log_w, score)

# %%
step = 1e-5
moved = [
    [
        elbo_enumerated(lab_model.given(lab_x), bernoulli(lab_logits + side * step * one_hot(torch.tensor(i), L)))
        for side in (1, -1)
    ]
    for i in range(L)
]
signal_only = torch.einsum("ns,ns,nsi->ni", q_all, log_w + log_q_table(lab_logits), score)
checks.exact(
    "17.1b",
    "∇𝓛 in the logits of 20 digits: the covariance of log w and z = finite differences of 𝓛",
    exact_gradient,
    torch.stack([(up - down) / (2 * step) for up, down in moved], -1),
    wrong={
        "log q left out of the signal": signal_only,
        "the gradient in p for that in the logit": exact_gradient / (probability * (1 - probability)),
        "the mean over states of log w ∇log q": (log_w[..., None] * score).mean(1),
    },
    tolerance=1e-6,
)

# %% [markdown]
# Now the estimators themselves, as the package has them, many times over for one digit. They ask for a log joint that is a function of $z$: ours looks the answer up in the table. We compare
# means with the exact gradient, and for the score function the spread with its exact variance,
# $\mathbb{E}_q[(\log w)^2 (z_i - p_i)^2] - (\partial \mathcal{L} / \partial \ell_i)^2$.

# %%
place = 2.0 ** torch.arange(L - 1, -1, -1)  # z as a binary number is its row in the table


def gradients(estimator, n, num_samples, repeats):
    """Independent estimates of the gradient for digit n, (repeats, 8)."""
    table = log_joint_table(lab_model, lab_x[n : n + 1])[0]
    logits = lab_logits[n].expand(repeats, L).clone().requires_grad_()
    bound = estimator(lambda z: table[(z @ place).long()], bernoulli(logits), num_samples)
    return torch.autograd.grad(bound.sum(), logits)[0]


_ = torch.manual_seed(1)
n = int(exact_gradient.norm(dim=-1).argmax())
exact = exact_gradient[n]
plain = gradients(elbo_score_function, n, num_samples=1, repeats=400_000)
checks.monte_carlo(
    "17.1c",
    "score function, one draw: its mean = the exact gradient",
    plain,
    exact,
    wrong={"log q left out of the signal": signal_only[n], "the sign": -exact},
)

# %%
mended = gradients(elbo_leave_one_out, n, num_samples=4, repeats=100_000)
checks.monte_carlo(
    "17.1d",
    "leave one out, four draws: its mean = the exact gradient",
    mended,
    exact,
    wrong={"the own sample in the baseline": 0.75 * exact, "log q left out of the signal": signal_only[n]},
)
second_moment = torch.einsum("s,s,si->i", q_all[n], log_w[n] ** 2, score[n] ** 2)
checks.monte_carlo(
    "17.1e",
    "score function, one draw: its variance = the sum over 256 states",
    (plain - exact) ** 2,
    second_moment - exact**2,
    wrong={
        "the signal taken as constant, 𝓛² p(1 − p)": (q_all[n] @ log_w[n]) ** 2 * probability[n] * (1 - probability[n]),
        "the variance of log w alone": ((q_all[n] @ log_w[n] ** 2) - (q_all[n] @ log_w[n]) ** 2).expand(L),
    },
)
ratio = (plain.var(0).sum() / 4 / mended.var(0).sum()).item()
assert ratio > 100
assert ((q_all * log_w).sum(-1).mean() + 20).abs() < 5
print("at four draws each the plain score function has more than 100 times the variance of leave one out")

# %% [markdown]
# Most of the plain estimator's noise has nothing to do with the digit: $\log w$ is about $-20$ nats whatever $z$ is, and multiplies every score. Leave one out subtracts it. Three more draws buy
# a baseline that would otherwise have to be learned. (Using the other draws as a baseline is older than the name: Mnih & Rezende 2016 do it for the bound with $K$ samples of [chapter 14](14_tighter_bounds.ipynb).) Later work adds control variates on top of RLOO (Shi, Zhou, Hwang, Titsias & Mackey 2022).
#
# ## Second answer: make the bit soft
#
# A biased coin is a comparison. With $u$ uniform, $z = 1$ exactly where $\ell + \log u - \log(1 - u) > 0$: the **Gumbel-max trick** for two states. The jump is in the comparison. So
# replace it by a slope, with a **temperature** $\tau$ (Jang, Gu & Poole 2017; Maddison, Mnih & Teh 2017):
#
# $$
# \tilde z = \operatorname{sigmoid}\!\Big( \frac{\ell + \log u - \log(1 - u)}{\tau} \Big). \tag{17.3}
# $$
#
# Now $\tilde z$ has a derivative, and for $\tau \to 0$ it is the bit. The decoder is fed $\tilde z$. But what does a decoder say at $z = 0.4$? Nothing in the model defines it. Take one bit of one held-out digit, hold the other seven at the
# posterior's mode, and look at $f(z) = \log p_\theta(x \mid z)$ *between* its two values. Beside it a second decoder, $f(z) + c\, z(1 - z)$, which no discrete state can tell from the
# first: the same model, the same ELBO, the same gradient. (All of it is chosen to show what *can* happen: a digit that the encoder serves badly, a bit with a hump, $p = 0.88$, and $c$.)

# %%
humped = int(divergence.argmax())
mode, bit = states[log_posterior[humped].argmax()], 3
c = -14.0


def f(z):
    """log p(x | z) with one bit of the digit's state at z, shape (K,), anywhere between 0 and 1."""
    code = mode + (z - mode[bit])[:, None] * one_hot(torch.tensor(bit), L)
    pixels = model.likelihood.network(code)
    return (test[humped] * pixels - softplus(pixels)).sum(-1)


def f_bent(z):
    return f(z) + c * z * (1 - z)


def slope(function, z):
    z = z.detach().clone().requires_grad_()
    return torch.autograd.grad(function(z).sum(), z)[0]


logit = torch.tensor(2.0)
p = logit.sigmoid()
ends = torch.tensor([0.0, 1.0])
assert torch.equal(f(ends), f_bent(ends))
true_slope = (p * (1 - p) * (f(ends)[1] - f(ends)[0])).item()

# %% [markdown]
# The true gradient of $\mathbb{E} f(z)$ in $\ell$ is $p(1-p)\,[f(1) - f(0)]$: two values, no slope. The relaxed one is an integral. Change variables in (17.3) from the noise to $\tilde z$ itself; with $\rho$ the density of logistic
# noise,
#
# $$
# \frac{\partial}{\partial \ell} \mathbb{E} f(\tilde z) = \int_0^1 f'(z)\, \rho(\tau \operatorname{logit} z - \ell)\, dz. \tag{17.4}
# $$
#
# At $\tau = 0$ the density is the constant $\rho(\ell) = p(1 - p)$ and what is left is the truth. At any other temperature the slopes *inside* are weighted unevenly. Expanding in $\tau$, and doing the same for the second moment,
#
# $$
# \text{bias} \approx \tau\, p(1-p)(2p - 1) \int_0^1 f'(z) \operatorname{logit} z\, dz, \qquad
# \text{variance} \approx \frac{p(1-p)}{\tau} \int_0^1 f'(z)^2\, z (1 - z)\, dz. \tag{17.5}
# $$
#
# **Warm is wrong, cold is noisy.** The bias goes to zero at least as fast as $\tau$ (faster at $p = \tfrac12$, where its first term vanishes), and the variance has no limit. Both formulas meet draws that they do not know: (17.3) on an even grid of $u$, differentiated by autodiff.

# %%
u = (torch.arange(10_000) + 0.5) / 10_000


def soft_gradients(function, temperature):
    """∂f/∂ℓ for each u, by autodiff through (17.3)."""
    many = logit.expand(len(u)).clone().requires_grad_()
    z = ((many + u.log() - torch.log1p(-u)) / temperature).sigmoid()
    return torch.autograd.grad(function(z).sum(), many)[0]


def integral(integrand):
    """Over z from 0 to 1, by SciPy."""
    return integrate.quad(lambda z: integrand(torch.tensor([z])).item(), 0, 1, limit=200)[0]


def density(noise):
    return noise.sigmoid() * (-noise).sigmoid()


temperatures = [2.0, 1.0, 0.5, 0.1]
means = torch.stack([soft_gradients(f, tau).mean() for tau in temperatures])
checks.quadrature(
    "17.2a",
    "mean of the soft gradient at τ = 2, 1, ½, 0.1: an even grid of u = the integral (17.4)",
    means,
    [integral(lambda z, tau=tau: slope(f, z) * density(tau * z.logit() - logit)) for tau in temperatures],
    wrong={
        "the true gradient: no bias": [true_slope] * 4,
        "the noise density at z, not at its logit": [
            integral(lambda z, tau=tau: slope(f, z) * density(tau * z - logit)) for tau in temperatures
        ],
    },
    tolerance=1e-4,
)


# %%
def scaled(temperature):
    """Bias / τ and variance · τ."""
    drawn = soft_gradients(f, temperature)
    return torch.stack([(drawn.mean() - true_slope) / temperature, temperature * drawn.var()])


lean = integral(lambda z: slope(f, z) * z.logit())
energy = integral(lambda z: slope(f, z) ** 2 * z * (1 - z))
spread = (p * (1 - p)).item()
checks.quadrature(
    "17.2b",
    "bias / τ and variance · τ of the soft gradient, from τ = 0.02 and 0.01 to τ → 0: the limits (17.5)",
    2 * scaled(0.01) - scaled(0.02),  # the part of order τ cancels
    [spread * (2 * p.item() - 1) * lean, spread * energy],
    wrong={
        "no bias, no variance at τ = 0": [0.0, 0.0],
        "not extrapolated: τ = 0.02": scaled(0.02),
        "the bias without 2p − 1": [spread * lean, spread * energy],
        "the slopes not squared": [
            spread * (2 * p.item() - 1) * lean,
            spread * integral(lambda z: slope(f, z).abs() * z * (1 - z)),
        ],
    },
    tolerance=2e-3,
)

# %% mystnb={"image": {"alt": "Two panels. Left: two curves of the log likelihood against the value of one bit, equal at 0 and at 1 and different between. Right: the mean soft gradient of each against temperature on a logarithmic axis, with a horizontal line at the true gradient; both curves start near the line when cold and part from it and from each other when warm."}}
grid = torch.linspace(0, 1, 101)
warmth = np.geomspace(0.05, 3, 25)
curves = {name: [soft_gradients(g, tau).mean().item() for tau in warmth] for name, g in (("f", f), ("bent", f_bent))}
assert all(abs(curve[0] - true_slope) < 0.2 * true_slope for curve in curves.values())
at_one = [soft_gradients(g, 1.0).mean().item() for g in (f, f_bent)]
assert abs(at_one[0]) < 0.1 * true_slope
assert abs(at_one[1] - true_slope) < 0.1 * true_slope
print(f"true gradient {true_slope:.2f}; soft, at τ = 1: {at_one[0]:.2f}, and {at_one[1]:.2f} for the twin")

with plots.style():
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2))
    for g, colour, line in ((f, plots.COLOURS.p, "-"), (f_bent, plots.COLOURS.q, "--")):
        left.plot(grid, g(grid), line, color=colour)
    left.plot(ends, f(ends), "o", color=plots.COLOURS.evidence)
    left.set(xlabel="value of the bit", ylabel="log p(x | z) (nats)", title="One model, two decoders")
    for name, colour, line in (("f", plots.COLOURS.p, "-"), ("bent", plots.COLOURS.q, "--")):
        right.semilogx(warmth, curves[name], line, color=colour)
    right.axhline(true_slope, color=plots.COLOURS.evidence, linewidth=1.2)
    right.annotate("the truth", (3, true_slope), xytext=(0, 5), textcoords="offset points", ha="right")
    left.annotate("as trained", (0.5, -17.6), ha="center", va="bottom", color=plots.COLOURS.p)
    left.annotate("its twin", (0.5, -22.2), va="top", color=plots.COLOURS.q)
    left.set_ylim(-25, -16.8)
    right.set(xlabel="temperature τ", ylabel="mean soft gradient", title="Warm, they disagree")

# %% [markdown]
# The gradient of a discrete model depends on two heights. The relaxed gradient depends on a landscape that the model does not have. During training this cuts both ways: the decoder learns to be
# sensible at soft values, because it sees little else, and then it is *used* at hard ones. (17.5) speaks of the cold end only: on the way there the twin's curve crosses the truth and leaves it again.
#
# The film lowers the temperature. On the left the density of $\tilde z$, on the right 300 gradients.

# %% mystnb={"image": {"alt": "Fourteen frames. Left: the density of the soft bit; at high temperature a single hump, at low temperature two spikes at 0 and 1. Right: 300 gradients as dots; at high temperature a narrow cloud whose mean is off the line of the true gradient, at low temperature most dots at zero and a few far away, their mean near the line."}} tags=["nbval-ignore-output"]
film = np.geomspace(3, 0.08, 14)
inside = torch.linspace(0.002, 0.998, 400)
order = torch.randperm(len(u), generator=torch.Generator().manual_seed(0))[:300]
jitter = torch.rand(300, generator=torch.Generator().manual_seed(1))


def scene(fig, index):
    tau = float(film[index])
    left, right = fig.subplots(1, 2)
    soft = relaxed(Bernoulli(logits=logit), tau)
    left.plot(inside, soft.log_prob(inside).exp(), color=plots.COLOURS.q)
    left.set(xlabel="soft bit", ylabel="density", ylim=(0, 8), title=f"τ = {tau:.2f}")
    every = soft_gradients(f, tau)
    right.plot(jitter, every[order], ".", color=plots.COLOURS.q, alpha=0.5)
    right.axhline(true_slope, color=plots.COLOURS.evidence, label="true gradient")
    right.axhline(every.mean(), color=plots.COLOURS.accent, linestyle="--", label="their mean")
    right.set(ylabel="gradient", xticks=[], ylim=(-3, 12), title="300 gradients")
    right.legend(loc="upper right")


words = "The temperature falls: the soft bit becomes hard, the gradients lose their bias and gain noise."
plots.animate(scene, len(film), words, name="temperature", figsize=(6.4, 3.2), interval_ms=450)

# %% [markdown]
# The first two answers can be combined. **REBAR** (Tucker et al. 2017) subtracts the relaxed estimator from the score function's and adds its mean back, reparameterised: softness takes noise out, and no bias comes in. **RELAX** (Grathwohl et al. 2018) learns the
# soft function instead. The price is more evaluations of the decoder in each step.
#
# ## Third answer: make a derivative up
#
# **Straight-through** (Bengio, Léonard & Courville 2013) draws the hard bit, and on the way back pretends that it was $p$: $\partial z / \partial p := 1$. (They copy the gradient to the argument of the sigmoid; through $p$, as here, is a common form.) No temperature, and the decoder sees real states. In code it is a bit with an
# `rsample`. And so the line runs.


# %%
class StraightThrough(Bernoulli):
    """A hard bit with a made-up derivative: ∂z/∂p = 1."""

    has_rsample = True

    def made_up(self, z):
        return torch.ones_like(z)

    def rsample(self, sample_shape=()):
        z = self.sample(torch.Size(sample_shape))
        p = self.probs.expand_as(z)
        return z + self.made_up(z) * (p - p.detach())  # the value of z, a slope in p


class StraightThroughHead(BernoulliHead):
    def distribution(self, numbers):
        return Independent(StraightThrough(logits=numbers), 1)


q_coins, q = q, StraightThroughHead(q.network, L)
x, num_samples = test, 200
value = elbo(draw(model.given(x), q(x), num_samples).log_weight)
away = (value.mean() - exact_elbo(model, x, q.parameters_at(x)).mean()).abs()
assert away < 0.1
print(f"held-out 𝓛 by the line: {value.mean():.1f} nats; by enumeration: {exact_ledger.elbo:.1f}")
q, num_samples = q_coins, 4

# %% [markdown]
# The *value* of the line is an honest estimate, as ever: its draws are draws of $q$. But for the first time the *gradient* of this line is not, in its mean, the gradient of what the line estimates. How wrong is it? For one bit the truth is $p(1-p)\,[f(1) - f(0)]$ and
# straight-through gives, in the mean,
#
# $$
# p(1-p) \, \big[ (1 - p) f'(0) + p f'(1) \big]. \tag{17.6}
# $$
#
# It replaces a difference of heights by a mean of the slopes at the ends, *each weighted by how often we are there*. For a straight $f$ it is exact. For a parabola the difference is the plain average of the end slopes (the trapezoid rule), and so (17.6) is right only at
# $p = \tfrac12$. This suggests the mend: weight the two ends evenly, by dividing by $2\,q(z)$,
#
# $$
# \frac{\partial z}{\partial p} := \frac{1}{2\, q(z)}, \qquad \text{which gives} \quad p(1-p)\, \tfrac12 \big[ f'(0) + f'(1) \big]. \tag{17.7}
# $$
#
# For one bit this is what **ReinMax** (Liu, Dong, Liu, Yu & Gao 2023) amounts to. They derive it for any number of states as a second-order rule for an ODE, with straight-through as the first-order one.


# %%
class ReinMax(StraightThrough):
    """The same, with both ends weighted evenly (17.7)."""

    def made_up(self, z):
        p = self.probs.detach()
        return 0.5 / torch.where(z == 1, p, 1 - p)


by_ends = slope(f, ends)
by_through, by_reinmax = (
    p * (1 - p) * (weight @ by_ends) for weight in (torch.stack([1 - p, p]), torch.full((2,), 0.5))
)
assert by_through < 0 < true_slope
print(
    f"the bit of the film: p = {p:.2f}, end slopes {by_ends[0]:.0f} and {by_ends[1]:.0f}, true gradient {true_slope:.2f}"
)
print(f"straight-through {by_through:.2f}, ReinMax {by_reinmax:.2f}")

# %% [markdown]
# On the bit with the hump straight-through has the wrong sign. How wrong is it in general? With few bits its mean needs no draws: visit every state, weight it by its probability.


# %%
def mean_gradient(bit, log_joint, logits, states, signal):
    """The exact mean of a made-up gradient: every state, weighted by its probability."""

    class EveryState(bit):
        def sample(self, sample_shape=()):
            return states[:, None].expand(-1, *self.batch_shape)

    logits = logits.clone().requires_grad_()
    draws = draw(log_joint, Independent(EveryState(logits=logits), 1), len(states))
    total = (draws.log_q.exp().detach() * signal(draws)).sum()
    return torch.autograd.grad(total, logits)[0]


# %% [markdown]
# To verify (17.6) and (17.7), random *quadratic* functions of five bits, $f(z) = z^\top A z + b^\top z$. As $z_i^2 = z_i$, the expectation is a polynomial in $p$ that one can differentiate by hand:
# $\partial\, \mathbb{E} f / \partial p_i = 2 \sum_{j \ne i} A_{ij} p_j + A_{ii} + b_i$. Straight-through gets $2 A_{ii} p_i$ in the place of $A_{ii}$, so it should miss by $A_{ii} (2 p_i - 1)$.

# %%
generator = torch.Generator().manual_seed(3)
root, b = torch.randn(5, 5, generator=generator), torch.randn(5, generator=generator)
A, five = (root + root.T) / 2, torch.randn(6, 5, generator=generator)  # six settings of the logits
small_states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=5)))


def quadratic(z):
    return torch.einsum("...i,ij,...j->...", z, A, z) + z @ b


p_five = five.sigmoid()
chain = p_five * (1 - p_five)
by_hand = chain * (2 * p_five @ (A - A.diag().diag()) + A.diag() + b)
through, reinmax = (
    mean_gradient(bit, quadratic, five, small_states, lambda draws: draws.log_joint)
    for bit in (StraightThrough, ReinMax)
)
at_the_mean = chain * (2 * p_five @ A + b)
checks.enumeration(
    "17.4a",
    "ReinMax on quadratics of five bits: its mean over 32 states = the gradient by hand",
    reinmax,
    by_hand,
    wrong={"straight-through": through, "the slope at the mean code": at_the_mean},
)
checks.enumeration(
    "17.4b",
    "straight-through on the same: it misses by p(1 − p) Aᵢᵢ (2p − 1)",
    through - by_hand,
    chain * A.diag() * (2 * p_five - 1),
    wrong={"unbiased": torch.zeros_like(chain), "the other sign": chain * A.diag() * (1 - 2 * p_five)},
)

# %% [markdown]
# ## All of them, on one VAE
#
# Back to the laboratory: twenty digits, four draws for each, the exact gradient known. The **bias** is the distance of an estimator's mean from the truth, the **noise** its standard deviation, both over all 160 logits and relative to the length of the true gradient. A decoder network is no
# parabola, so ReinMax need not be unbiased here. Predict the order.


# %%
def price(model, logits):
    """KL(q ‖ prior) of coins with these logits, in closed form, (N,)."""
    return kl_divergence(bernoulli(logits), model.prior().expand(logits.shape[:1]))


estimators = {
    "score function": lambda model, x, logits: elbo_score_function(model.given(x), bernoulli(logits), 4),
    "leave one out": lambda model, x, logits: elbo_leave_one_out(model.given(x), bernoulli(logits), 4),
}
for name, made_up in (("straight-through", StraightThrough), ("ReinMax", ReinMax)):
    estimators[name] = lambda model, x, logits, made_up=made_up: (
        elbo(draw(model.log_likelihood(x), Independent(made_up(logits=logits), 1), 4).log_joint) - price(model, logits)
    )
soft_names = {f"Gumbel, τ = {tau:g}": tau for tau in (2, 1, 0.5, 0.25, 0.1)}
for name, tau in soft_names.items():
    estimators[name] = lambda model, x, logits, tau=tau: relaxed_objective(model, x, bernoulli(logits), float(tau), 4)

repeats = 400
many_x = lab_x.expand(repeats, -1, -1).reshape(-1, D)


def lab(estimator):
    """Estimates of the gradient in all 160 logits, (repeats, 160)."""
    _ = torch.manual_seed(2)
    logits = lab_logits.expand(repeats, -1, -1).reshape(-1, L).clone().requires_grad_()
    (sample,) = torch.autograd.grad(estimator(lab_model, many_x, logits).sum(), logits)
    return sample.reshape(repeats, -1)


def relative_noise(sample):
    return (sample.var(0).sum().sqrt() / exact_gradient.norm()).item()


# %%
bias, noise = {"score function": 0.0, "leave one out": 0.0}, {}
for name, made_up in (("straight-through", StraightThrough), ("ReinMax", ReinMax)):  # by enumeration
    mean = mean_gradient(made_up, lab_model.log_likelihood(lab_x), lab_logits, states, lambda draws: draws.log_joint)
    mean = mean - probability * (1 - probability) * lab_logits  # the gradient of the KL
    bias[name] = ((mean - exact_gradient).norm() / exact_gradient.norm()).item()
for name, estimator in estimators.items():
    sample = lab(estimator)
    noise[name] = relative_noise(sample)
    off = (sample.mean(0) - exact_gradient.flatten()).square() - sample.var(0) / repeats  # less its Monte Carlo error
    bias.setdefault(name, (off.sum().clamp_min(0).sqrt() / exact_gradient.norm()).item())
soft_bias, soft_noise = ([values[name] for name in soft_names] for values in (bias, noise))
checks.inequality(
    "17.2c",
    "eight bits, τ = 2, 1, ½, ¼, 0.1: the bias falls from each to the next, the noise rises",
    [*soft_bias[1:], *soft_noise[:-1]],
    [*soft_bias[:-1], *soft_noise[1:]],
    wrong={"bias and noise exchanged": [*soft_noise[1:], *soft_bias[:-1]]},
)
assert bias["ReinMax"] < 0.5 < 1 < bias["straight-through"] == max(bias.values())
assert noise["score function"] > 10 * noise["leave one out"]
quieter = [name for name in noise if noise[name] < noise["leave one out"]]
assert len(quieter) == 4
assert min(bias[name] for name in quieter) > 0.7
for name in noise:
    print(f"{name:<17} bias {100 * bias[name]:4.0f} %   noise {100 * noise[name]:6.0f} %")

# %% [markdown]
# A choice is hidden in this table: **which KL term?** Where the gradient is pathwise we took its closed form. A sampled $-\log q_\phi(z \mid x)$ is linear in each bit, so straight-through is exact on it and the bias would be the same; only noise comes in. Leave one out and the score function
# take the whole $\log w$ from samples, as in (17.2). There it is the other way round, since $\log p$ and $\log q$ rise and fall together, and their difference varies less than either.


# %%
def leave_one_out_closed_form(model, x, logits):
    z = bernoulli(logits).sample((4,))
    signal = model.log_likelihood(x)(z).detach()
    others = (signal.sum(0) - signal) / 3
    return ((signal - others) * bernoulli(logits).log_prob(z)).mean(0) - price(model, logits)


def sampled(made_up):
    return lambda model, x, logits: elbo(draw(model.given(x), Independent(made_up(logits=logits), 1), 4).log_weight)


other_way = {
    "straight-through": relative_noise(lab(sampled(StraightThrough))),
    "ReinMax": relative_noise(lab(sampled(ReinMax))),
    "leave one out": relative_noise(lab(leave_one_out_closed_form)),
}
assert other_way["straight-through"] > 1.5 * noise["straight-through"]
assert other_way["leave one out"] > 1.5 * noise["leave one out"]
for name, forms in (("straight-through", "sampled"), ("ReinMax", "sampled"), ("leave one out", "closed form")):
    print(f"{name:<17} noise {100 * noise[name]:4.0f} %; with the KL {forms} {100 * other_way[name]:4.0f} %")

# %% mystnb={"image": {"alt": "Bar chart in two panels with nine estimators as rows. Left, bias as a percentage of the true gradient: none for the score function and leave one out, the longest bar for straight-through, a short one for ReinMax, and falling bars for Gumbel from temperature 2 to 0.1. Right, noise on a logarithmic axis: by far the longest bar for the score function, and rising bars for Gumbel as the temperature falls."}}
with plots.style():
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.6), sharey=True)
    rows = np.arange(len(bias))
    left.barh(rows, [100 * value for value in bias.values()], color=plots.COLOURS.q)
    right.barh(rows, [100 * value for value in noise.values()], color=plots.COLOURS.p)
    right.set_xscale("log")
    left.set(yticks=rows, yticklabels=bias, xlabel="bias (% of the gradient)", title="The bias stays")
    right.set(xlabel="noise (% of the gradient)", title="The noise averages out")
    left.invert_yaxis()

# %% [markdown]
# Did you expect straight-through to be *worse than a gradient of zero*? A bias above 100 % is just that, on these digits and at this moment of training. The bit with the hump has shown how: with $p = 0.88$ it looks mostly at the end where the slope points down. On the other hand leave one out, the
# plainest idea of all, has no bias, and each of the four that are quieter than it is off by more than 70 %. Two warnings. A ranking at one moment of one model is no law. And bias need not be fatal: Adam only needs to be led roughly uphill. So train.
#
# Seven VAEs from the same start, all with the same digits in the same order, the same number of steps and four draws a step; the first with the exact gradient. Every one is then *judged by enumeration*, on held-out digits. One seed here, and a second for the mistake that follows; five seeds and longer runs below, in the table.


# %%
def train_with(objective, seed, num_steps=200):
    """A VAE trained with an objective of (model, x, logits); returns the model and its encoder."""
    model, q = new_vae(seed)
    training.fit(
        lambda x: objective(model, x, q.parameters_at(x)),
        torch.optim.Adam([*model.parameters(), *q.parameters()], lr=1e-2),
        train,
        num_steps=num_steps,
        batch_size=50,
        generator=torch.Generator().manual_seed(seed),
    )
    _ = model.requires_grad_(False), q.requires_grad_(False)
    return model, q


competitors = {"exact": exact_elbo} | {
    name: estimators[name]
    for name in ("score function", "leave one out", "straight-through", "ReinMax", "Gumbel, τ = 1", "Gumbel, τ = 0.1")
}
runs = [*((name, 0) for name in competitors), ("Gumbel, τ = 1", 1)]
trained = {(name, seed): train_with(competitors[name], seed) for name, seed in runs}

# %% [markdown]
# ## A mistake people make: reporting an objective that is no bound
#
# Before the table, a look at what the relaxed runs *reported*. `relaxed_objective` is the usual implementation: the log likelihood at soft draws, minus the KL divergence of the *hard* distributions (there it has a closed form). Its value is in nats, it goes up during training, it looks like an ELBO.

# %%
scores, reported = {}, {}
for (name, seed), (model, q) in trained.items():
    logits = q.parameters_at(test)
    scores[name, seed] = exact_elbo(model, test, logits), log_joint_table(model, test).logsumexp(-1)
    if name in soft_names:
        _ = torch.manual_seed(0)
        reported[name, seed] = relaxed_objective(model, test, q(test), float(soft_names[name]), 200)
warm = torch.stack([reported["Gumbel, τ = 1", seed] for seed in (0, 1)])
ours, evidence = (torch.stack([scores["Gumbel, τ = 1", seed][part] for seed in (0, 1)]) for part in (0, 1))
checks.inequality(
    "17.5",
    "trained at τ = 1, two seeds, 299 held-out digits: 𝓛 ≤ log p(x) for each",
    ours,
    evidence,
    wrong={"the relaxed objective reported as 𝓛": warm},
    slack=1e-9,
)
above = (warm > evidence).double().mean().item()
assert (warm.mean(-1) > evidence.mean(-1)).all()
assert above > 0.6
print("τ = 1, mean over digits and seeds:")
print(f"ELBO {ours.mean():.1f}, log p(x) {evidence.mean():.1f}, relaxed objective {warm.mean():.1f} nats")

# %% [markdown]
# The relaxed objective stands *above* $\log p_\theta(x)$, and above the ELBO by more than a nat. No bound does that in its mean. How can it? Rounding a soft bit gives the hard bit, so a soft bit carries at least as much about $x$; but the KL term charges for the hard one. The soft bit's own
# price has a closed form. Its logit is $(\ell + \text{logistic noise}) / \tau$, and a KL does not mind the $\tau$, so it is that of two shifted logistic densities,
#
# $$
# \mathrm{KL}(\text{soft bit} \,\|\, \text{soft fair bit}) = \ell \coth(\ell / 2) - 2 \quad \text{at any temperature,}
# $$
#
# without limit in $\ell$, where the hard bit's stops at $\log 2$.


# %%
def soft_kl(logit):
    return logit / torch.tanh(logit / 2) - 2


def by_density(logit, tau):
    soft, fair = (relaxed(Bernoulli(logits=torch.as_tensor(number)), tau) for number in (logit, 0.0))
    return integral(lambda z: soft.log_prob(z).exp() * (soft.log_prob(z) - fair.log_prob(z)))


some_logits = torch.tensor([0.5, 2.0, 6.0])
hard_kl = kl_divergence(Bernoulli(logits=some_logits), Bernoulli(logits=torch.zeros(3)))
checks.quadrature(
    "17.7",
    "KL of a soft bit to a soft fair one, τ = ½ and 2: ℓ coth(ℓ/2) − 2 = the integral of its density",
    soft_kl(some_logits).repeat(2),
    [by_density(number, tau) for tau in (0.5, 2.0) for number in some_logits.tolist()],
    wrong={
        "the KL of the hard bits": hard_kl.repeat(2),
        "divided by the temperature": torch.cat([soft_kl(some_logits) / 0.5, soft_kl(some_logits) / 2]),
        "ℓ² / 6, its limit for small ℓ": (some_logits**2 / 6).repeat(2),
    },
)
assert (soft_kl(some_logits) > hard_kl).all()
at_own_price = []
for seed in (0, 1):
    model, q = trained["Gumbel, τ = 1", seed]
    logits = q.parameters_at(test)
    at_own_price.append(reported["Gumbel, τ = 1", seed] + price(model, logits) - soft_kl(logits).sum(-1))
at_own_price = torch.stack(at_own_price)
assert (at_own_price.mean(-1) < ours.mean(-1)).all()
print(f"τ = 1: as reported {warm.mean():.1f} nats, with the soft bits' own KL {at_own_price.mean():.0f}")

# %% [markdown]
# At their full price the same runs report far less than they had. (That is a bound again, on the evidence of *another* model, one with continuous latents: Maddison et al. relax the prior as well and train it.) So: train with what works, and **report (17.1), or its estimate by hard draws**.
#
# ## A codebook: the VQ-VAE
#
# The discrete latent that most people meet is another one. In a **VQ-VAE** (van den Oord, Vinyals & Kavukcuoglu 2017) the encoder gives a point $h(x)$, and the latent is the *nearest* entry in a **codebook** of $M$ vectors, $k(x) = \arg\min_m \lVert h(x) - e_m \rVert$. The decoder gets $e_{k(x)}$.
# The gradient is copied from $e_k$ to $h$, straight through, and two squared distances keep codes and points together:
#
# $$
# \log p_\theta(x \mid e_k) - \lVert \mathrm{sg}[h] - e_k \rVert^2 - \beta \, \lVert h - \mathrm{sg}[e_k] \rVert^2, \tag{17.8}
# $$
#
# where $\mathrm{sg}$ stops the gradient. Where is the ELBO? Take $p(z) = 1/M$ on the codes and a $q$ with all its mass on $k(x)$. Its entropy is 0, its KL to the prior $\log M$ for every $x$, and so
#
# $$
# \mathcal{L} = \log p_\theta(x \mid e_{k(x)}) - \log M \;\le\; \log p_\theta(x) = \log \tfrac1M \sum_m p_\theta(x \mid e_m). \tag{17.9}
# $$
#
# The first term of (17.8) is an ELBO up to a constant. A constant has no gradient, so people leave it out, and what is left is *no bound*. The squared distances are not in nats: they are part of how it is trained, not of what it is. And a decoder that is fed one of $M$ vectors is a mixture of $M$ components with shared weights: training it with hard assignments is
# a relative of the EM of [chapter 05](05_em_is_coordinate_ascent.ipynb).
#
# We take $M = 256$, as many states as eight bits have, codes in the plane so that we can look at them, and two starts: all codes in a small box around the origin, a common default, or on the encoder's points for 256 training digits.


# %%
M, commitment = 256, 0.25


class Codebook(nn.Module):
    """Code number z, (K, N), to Bernoulli pixels: what makes a VQ-VAE a LatentVariableModel."""

    def __init__(self, codes):
        super().__init__()
        self.codes, self.decoder = nn.Parameter(codes), mlp(2, 64, D)

    def forward(self, z):
        return bernoulli(self.decoder(self.codes[z.long()]))


def new_vq(seed, start):
    _ = torch.manual_seed(seed)
    encoder = mlp(D, 64, 2)
    some = encoder(train[torch.randperm(len(train))[:M]]).detach()
    codes = some if start == "digits" else (2 * torch.rand(M, 2) - 1) / M
    return models.LatentVariableModel(families.Fixed(Categorical, logits=torch.zeros(M)), Codebook(codes)), encoder


def nearest(model, encoder, x):
    return torch.cdist(encoder(x), model.likelihood.codes).argmin(-1)


# %%
def vq_objective(model, encoder, x):
    """(17.8) − log M, for each digit."""
    book = model.likelihood
    h, e = encoder(x), book.codes[nearest(model, encoder, x)]
    pixels = book.decoder(h + (e - h).detach())  # the value of e, the gradient to h
    log_likelihood = (x * pixels - softplus(pixels)).sum(-1)
    pull = (h.detach() - e).square().sum(-1) + commitment * (h - e.detach()).square().sum(-1)
    return log_likelihood - math.log(M) - pull


def train_vq(seed, start, num_steps=200):
    model, encoder = new_vq(seed, start)
    training.fit(
        lambda x: vq_objective(model, encoder, x),
        torch.optim.Adam([*model.parameters(), *encoder.parameters()], lr=1e-2),
        train,
        num_steps=num_steps,
        batch_size=50,
        generator=torch.Generator().manual_seed(seed),
    )
    _ = model.requires_grad_(False), encoder.requires_grad_(False)
    return model, encoder


books = {(start, seed): train_vq(seed, start) for start in ("box", "digits") for seed in (0, 1)}

# %% [markdown]
# First, is (17.9) what the package would say? It is given the codebook as a model and a one-hot `Categorical` as $q$, and sums over all 256 codes. Then the inequality, with the "ELBO" of those who drop a constant.


# %%
def vq_log_joint(model, x):
    """log p(x, z = m) for each digit and code, (N, M)."""
    pixels = model.likelihood.decoder(model.likelihood.codes)
    return x @ pixels.T - softplus(pixels).sum(-1) - math.log(M)


book, encoder = books["digits", 0]
code = nearest(book, encoder, test)
reconstruction = book.log_likelihood(test)(code[None])[0]
one_q = Categorical(probs=one_hot(code, M).double())
some = 60
checks.enumeration(
    "17.6a",
    "VQ-VAE: log p(x | e_k) − log M = 𝓛 of a one-hot q, as a sum over 256 codes",
    (reconstruction - math.log(M))[:some],
    elbo_enumerated(book.given(test[:some]), Categorical(probs=one_q.probs[:some])),
    wrong={
        "the KL, log M, left out": reconstruction[:some],
        "its loss (17.8) taken for 𝓛": vq_objective(book, encoder, test[:some]),
        "log M in bits": (reconstruction - math.log2(M))[:some],
    },
)
vq_evidence = vq_log_joint(book, test).logsumexp(-1)
checks.inequality(
    "17.6b",
    "VQ-VAE, 299 held-out digits: log p(x | e_k) − log M ≤ log p(x) for each",
    reconstruction - math.log(M),
    vq_evidence,
    wrong={"the constant log M dropped": reconstruction},
    slack=1e-9,
)

# %% [markdown]
# ### The price of a code that nobody uses
#
# Each digit pays $\log 256 = 5.5$ nats, whether 256 codes are in use or three. Let $\pi_m$ be the share of training digits that choose code $m$. The usual measure of use is the **perplexity**, $e^{H(\pi)}$ with the entropy $H(\pi) = -\sum_m \pi_m \log \pi_m$: the number of equally used codes with the same entropy. It has an exact meaning in nats. In [chapter 16](16_richer_posteriors_and_priors.ipynb) the best
# prior was the aggregate posterior, and here that is $\pi$. So replacing the uniform prior by $\pi$, with all else fixed, gains on the training digits
#
# $$
# \mathrm{KL}(\bar q \,\|\, p) = \log M - H(\pi) = \log \frac{M}{\text{perplexity}}. \tag{17.10}
# $$

# %%
used, perplexity, gains, held_out, unseen = {}, {}, {}, {}, {}


def mean_elbo(book, encoder, prior, x):
    """The mean ELBO with another prior over the codes, by enumeration."""
    joint = vq_log_joint(book, x) + math.log(M) + Categorical(probs=prior).logits
    one_hot_q = Categorical(probs=one_hot(nearest(book, encoder, x), M).double())
    return elbo_enumerated(lambda z: joint.gather(1, z.long().T).T, one_hot_q).mean().item()


for key, (book, encoder) in books.items():
    count = torch.bincount(nearest(book, encoder, train), minlength=M).double()
    pi, uniform, smooth = count / count.sum(), torch.ones(M) / M, (count + 0.1) / (count + 0.1).sum()
    used[key] = int((pi > 0).sum())
    perplexity[key] = (-torch.special.xlogy(pi, pi)).sum().exp().item()
    gains[key] = mean_elbo(book, encoder, pi, train) - mean_elbo(book, encoder, uniform, train)
    held_out[key] = mean_elbo(book, encoder, smooth, test) - mean_elbo(book, encoder, uniform, test)
    unseen[key] = int((count[nearest(book, encoder, test)] == 0).sum())

# %%
counts = {key: np.bincount(nearest(*books[key], train).numpy(), minlength=M) for key in books}
checks.independent(
    "17.3a",
    "codebooks, two starts, two seeds: perplexity = exp of SciPy's entropy of the counts",
    list(perplexity.values()),
    [math.exp(stats.entropy(count)) for count in counts.values()],
    wrong={
        "the number of codes in use": list(used.values()),
        "two to the entropy in nats": [2 ** stats.entropy(count) for count in counts.values()],
    },
    tolerance=1e-8,
)
checks.independent(
    "17.3b",
    "mean training 𝓛 with the prior π, minus with 1/M, by sums over 256 codes = log M − H(π)",
    list(gains.values()),
    [stats.entropy(count, np.ones(M)) for count in counts.values()],
    wrong={
        "log of M over the codes in use": [math.log(M / number) for number in used.values()],
        "the entropy itself": [stats.entropy(count) for count in counts.values()],
    },
    tolerance=1e-8,
)
assert all(used["box", seed] < used["digits", seed] < M for seed in (0, 1))
for start in ("box", "digits"):
    print(
        f"start {start}:",
        "; ".join(
            f"{used[start, s]} of {M} used, perplexity {perplexity[start, s]:.0f}, {gains[start, s]:.1f} nats to gain"
            for s in (0, 1)
        ),
    )
assert min(held_out.values()) > 0
assert min(unseen["digits", s] for s in (0, 1)) > 0
print("held-out digits on a code that no training digit chose:", list(unseen.values()))
print("gain held out, each count raised by 0.1:", ", ".join(f"{gain:.1f}" for gain in held_out.values()), "nats")

# %% [markdown]
# On the digits held out beware: some of them choose a code that no training digit chose. Its $\pi_m$ is 0, and their $\mathcal{L}$ is $-\infty$. Add a little to each count first, here 0.1. Now the picture of the codes.

# %% mystnb={"image": {"alt": "Two scatter plots of the plane of codes, one for each start. Small grey points are the encoder's outputs for the training digits; filled circles, larger where more digits use them, are codes in use; small crosses are codes that no digit uses. With the start in a box many crosses sit together in one place; with the start on digits more codes are in use and spread among the points."}}
with plots.style():
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.6))
    for ax, start in zip(axes, ("box", "digits"), strict=True):
        book, encoder = books[start, 0]
        codes, count = book.likelihood.codes, counts[start, 0]
        ax.plot(*encoder(train).T, ".", color=plots.COLOURS.muted, markersize=2, alpha=0.5)
        ax.scatter(*codes[count > 0].T, s=0.8 * count[count > 0], color=plots.COLOURS.p, alpha=0.7)
        ax.plot(*codes[count == 0].T, "x", color=plots.COLOURS.q, markersize=4)
        title = f"{start}: {used[start, 0]} of {M} in use"
        ax.set(xlabel="first coordinate", xlim=(-4, 4), ylim=(-4, 4), title=title)
    axes[0].set_ylabel("second coordinate")
    fig.suptitle("Codes that nobody chooses")

# %% [markdown]
# (The plane is cut at ±4; some grey points lie outside.) Crosses are codes without a digit. A code moves only when it is chosen, so one that is never the nearest stays where it is. In both seeds more codes are in use from the second start. Whether that makes a better model is another question, for the table. Van den Oord et al. learn a prior over the codes after training, and for one code per image (17.10) is what that can gain. Other answers change the quantiser.
# Finite scalar quantisation rounds each of a few numbers to a fixed grid and has no codebook to waste (Mentzer, Minnen, Agustsson & Tschannen 2024); the rotation trick sends a better gradient through the choice (Fifty et al. 2025).
#
# ## One table
#
# `benchmarks/discrete.py` ran all of them from five seeds, 256 states each, 800 steps of 50 digits, at three rates of Adam, and looked after 200 and after 800. First, is what is stored what you have just trained? Seed 0 after 200 steps, held out, by enumeration.

# %%
path = Path("../benchmarks/results/discrete.json")
stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
if stored is None:
    print(
        "benchmarks/results/discrete.json is not beside this notebook: the cells that show stored results stay empty."
    )
else:
    found = {(row["rate"], row["steps"], row["method"], row["seed"]): row for row in stored["rows"]}
    again = ["exact", "leave one out", "straight-through", "Gumbel, τ = 1"]
    checks.independent(
        "17.8",
        "exact, leave one out, straight-through, Gumbel, seed 0: held-out 𝓛 as trained here = as stored",
        torch.stack([scores[name, 0][0].mean() for name in again]),
        [found[0.01, 200, name, 0]["elbo"] for name in again],
        wrong={
            "another seed": [found[0.01, 200, name, 1]["elbo"] for name in again],
            "log p(x) for 𝓛": [found[0.01, 200, name, 0]["log_evidence"] for name in again],
        },
        tolerance=2e-3,
    )

# %% [markdown]
# Then the table: means over the 299 held-out digits, mean ± standard deviation over five seeds. "− exact" is the difference to the exact gradient *of the same seed*. "With π" is the same codebook with its usage as prior, each count raised by 0.1. The rate is 0.01, the best of the three, or within 0.1 nats of the best, for each.

# %%
if stored:
    table = {(row["steps"], row["method"]): row for row in stored["summary"] if row["rate"] == 0.01}

    def cell(row, quantity):
        return f"{row[quantity]['mean']:7.2f} ± {row[quantity]['sd']:.2f}"

    print(f"{'held out, nats':<20}{'ELBO, 200 steps':^16}{'ELBO, 800':^15}{'− exact':^16}{'log p(x), 800':^15}")
    for name in dict.fromkeys(name for _, name in table):
        for suffix, words in (("", ""), ("_usage", ", with π")):
            early, late = table[200, name], table[800, name]
            if f"elbo{suffix}" in late:
                row = [cell(early, f"elbo{suffix}"), cell(late, f"elbo{suffix}")]
                row += [cell(late, f"elbo{suffix}_minus_exact") if name != "exact" else " " * 14]
                print(f"{name + words:<20}", *row, cell(late, f"log_evidence{suffix}"))

# %%
if stored:
    names, seeds, rates = list(competitors), range(5), (0.003, 0.01, 0.03)

    def better(first, second, steps=800, rate=0.01, what="elbo"):
        """In how many of the five seeds is the first ahead?"""
        return sum(found[rate, steps, first, s][what] > found[rate, steps, second, s][what] for s in seeds)

    assert [better("leave one out", "ReinMax", rate=rate) for rate in rates] == [4, 5, 5]
    assert [better("leave one out", "Gumbel, τ = 0.1", rate=rate) for rate in rates] == [4, 4, 5]
    assert all(better("ReinMax", "Gumbel, τ = 1", rate=rate) == 5 for rate in rates)
    assert all(better("Gumbel, τ = 1", "straight-through", rate=rate) == 5 for rate in rates)
    assert all(better("straight-through", "score function", rate=rate) == 5 for rate in rates)
    front = ["leave one out", "ReinMax", "Gumbel, τ = 0.1"]
    pairs = itertools.combinations(front, 2)
    assert all(0 < better(*pair, steps=200) < 5 for pair in pairs)
    change = {
        (steps, name): [found[0.01, steps, name, s]["elbo"] - found[0.01, steps, "exact", s]["elbo"] for s in seeds]
        for steps in (200, 800)
        for name in names[1:]
    }
    assert -0.5 < min(change[800, "leave one out"]) < max(change[800, "leave one out"]) < 0.1
    assert all(max(change[800, name]) < -0.4 for name in names[1:] if name != "leave one out")
    assert cell(table[800, "leave one out"], "elbo_minus_exact").strip() == "-0.27 ± 0.19"
    behind = [
        table[800, name]["elbo_minus_exact"]["mean"] for name in ("ReinMax", "Gumbel, τ = 0.1", "straight-through")
    ]
    assert [round(number, 1) for number in behind] == [-0.6, -0.6, -2.0]
    means = {(row["rate"], row["method"]): row["elbo"]["mean"] for row in stored["summary"] if row["steps"] == 800}
    assert all(means[0.01, name] > max(means[rate, name] for rate in rates) - 0.1 for name in names)

# %% mystnb={"image": {"alt": "Strip plot of six estimators as rows: held-out ELBO minus that of the exact gradient, five triangles for 200 steps and five dots for 800. At 800 steps leave one out lies just left of zero, ReinMax and Gumbel at temperature 0.1 around minus 0.6, Gumbel at 1 around minus 1.2, straight-through around minus 2, the score function around minus 3; at 200 steps the first ones overlap."}}
if stored:
    with plots.style():
        fig, ax = plt.subplots(figsize=(7, 3.4))
        for steps, shift, mark, colour in ((200, -0.15, "^", plots.COLOURS.muted), (800, 0.15, "o", plots.COLOURS.q)):
            for place, name in enumerate(names[1:]):
                dots = change[steps, name]
                ax.plot(dots, [place + shift] * 5, mark, color=colour, label=f"{steps} steps" if place == 0 else None)
        ax.axvline(0, color=plots.COLOURS.evidence, linewidth=1.2)
        ax.set(yticks=range(6), yticklabels=names[1:], xlabel="held-out ELBO − exact gradient's (nats), five seeds")
        ax.set_title("200 steps order little, 800 order more")
        ax.invert_yaxis()
        ax.legend(loc="lower left")

# %% [markdown]
# Where do the nats go? The ledger of seed 0 after 200 steps, for VAEs and a VQ-VAE with either prior.

# %% mystnb={"image": {"alt": "Five horizontal bars: exact training, straight-through, Gumbel at temperature 1, a VQ-VAE with the uniform prior and the same with the prior of usage: from the ELBO on the left, through the amortisation gap and the approximation gap, to the log evidence. The VQ-VAE's bars end furthest left; with the prior of usage its approximation gap is about half as wide."}}
ledgers = {name: ledger(*trained[name, 0], test) for name in ("exact", "straight-through", "Gumbel, τ = 1")}
book, encoder = books["digits", 0]
code, uniform_table = nearest(book, encoder, test), vq_log_joint(book, test)
smooth = torch.bincount(nearest(book, encoder, train), minlength=M) + 0.1
for name, log_prior in (("VQ, digits", 0.0), ("VQ, with π", (smooth / smooth.sum()).log() + math.log(M))):
    joint = uniform_table + log_prior
    value = joint.gather(1, code[:, None])[:, 0]
    ledgers[name] = evaluation.gap_ledger(value, joint.amax(-1), joint.logsumexp(-1))
gaps = {name: ledgers[name].approximation_gap for name in ("exact", "VQ, digits", "VQ, with π")}
assert gaps["VQ, digits"] > 1.5 * gaps["VQ, with π"] > 3 * gaps["exact"]
print(", ".join(f"{name}: approximation gap {gap:.1f}" for name, gap in gaps.items()))
on_unused = uniform_table.softmax(-1)[:, smooth < 1].sum(-1).mean()
assert 0.15 < on_unused < 0.25
print(f"under 1/M, mean posterior probability of the codes that no training digit uses: {on_unused:.1f}")

with plots.style():
    fig, ax = plt.subplots(figsize=(7, 4.6))
    plots.ledger_bars(list(ledgers.values()), list(ledgers), ax)
    ax.set_title("Five ledgers of 256 states")

# %%
if stored:
    for steps in (200, 800):
        row = {name: table[steps, name] for name in ("VQ, box", "VQ, digits")}
        assert all(r["approximation_gap"]["mean"] > 1.25 * r["approximation_gap_usage"]["mean"] for r in row.values())
        assert better("VQ, digits", "VQ, box", steps, what="used") == 5
        assert better("VQ, digits", "VQ, box", steps, what="approximation_gap_usage") == 5
        assert 0 < better("VQ, digits", "VQ, box", steps, what="elbo_usage") < 5
    given_back = [
        table[800, f"VQ, {s}"]["elbo_usage"]["mean"] - table[800, f"VQ, {s}"]["elbo"]["mean"] for s in ("box", "digits")
    ]
    assert [round(number, 1) for number in given_back] == [1.5, 1.0]
    reports = [found[0.01, 800, "Gumbel, τ = 1", s] for s in seeds]
    excess = [row["reported"] - found[0.01, 800, "exact", s]["elbo"] for s, row in enumerate(reports)]
    assert all(row["reported"] > row["log_evidence"] + 1 for row in reports)
    assert min(excess) > 1
    for name in ("VQ, box", "VQ, digits"):
        late = table[800, name]
        print(f"{name}: {late['used']['mean']:.0f} codes in use, approximation gap", end=" ")
        print(f"{late['approximation_gap']['mean']:.1f}, with π {late['approximation_gap_usage']['mean']:.1f} nats")

# %% [markdown]
# Read it as a sceptic.
#
# - **Leave one out stays close to the exact gradient**: after 800 steps 0.27 ± 0.19 nats behind, with four draws of 256 states. It has no temperature to tune, and asks nothing of the decoder between the states. ReinMax and the cold Gumbel come next, and the lead is small: at the rate shown, ahead of ReinMax in all
#   five seeds and of the cold Gumbel in four.
# - **After 200 steps there was no such order.** For any two of those three, some seeds put one first and some the other. A ranking from two seeds of 200 steps would have been one of the seeds.
# - **The plain score function comes last** of the VAEs, at every seed and rate: unbiased, and too loud to use. "Unbiased" is not the same as "good".
# - **Straight-through is next to last** after 800 steps, at every seed and rate: here 2 nats behind the exact gradient. In the laboratory it was quieter than leave one out, and had the largest bias of all.
# - **The relaxed runs look best in their own currency.** At $\tau = 1$ the reported objective beats the exact VAE's ELBO by more than a nat in all five seeds. By enumeration it is more than a nat behind in the mean.
# - **The VQ-VAE with the prior $1/M$ comes last of all in the mean**, and 1 to 1½ nats of that are the price of uneven use: another prior over the codes, the same networks. A part of its approximation gap goes with it: under $1/M$ the posterior puts some of its mass, a fifth for the codebook of the ledger, on codes that no training digit uses.
# - **More codes in use was not a better model here.** With $\pi$, the start on digits uses more codes in all five seeds and has the wider approximation gap; in the ELBO five seeds do not tell the two starts apart.
#
# The comparison of VAE and VQ-VAE is loose: its codes live in a plane, so its decoder is another one, and nobody would use one code for a whole image. What the table does not say: 800 steps are still few, five seeds are five, three rates are three, the same for all methods; eight bits are few enough for four draws to cover a lot. With hundreds of bits
# leave one out gets noisier, and a bias may be the lesser evil. What carries over is the way to find out: shrink the latent until it can be summed, and look.

# %% [markdown]
# ## Exercises
#
# **17.E1 (recall).** Four numbers: (a) the states of ten dice with three faces each; (b) the KL term, in nats, of a VQ-VAE with 512 codes, one code per image and a uniform prior; (c) the perplexity of a codebook used in the shares ½, ¼, ¼, 0; (d) the mean of the straight-through slope *in p* of $f(z) = z^2$ for a bit with $p = 0.2$.
# What is the true slope in (d)?
#
# <details><summary>Hint</summary>For (d), straight-through averages f′(0) and f′(1) with weights 1 − p and p.</details>

# %%
answer = None  # your numbers: (a, b, c, d)

ch17.numbers_to_know.check(answer)

# %% [markdown]
# **17.E2 · Leave one out by hand.** From the log weights (K,) of $K$ draws and their scores (K, L), return the gradient estimate (L,) of (17.2).
#
# <details><summary>Hint</summary>The mean of the others is (sum − own) / (K − 1).</details>


# %%
def leave_one_out_gradient(log_weight, score): ...  # your code


ch17.leave_one_out_gradient.check(leave_one_out_gradient)

# %% [markdown]
# **17.E3 · Perplexity.** From the code (N,) that each image uses and the size $M$ of the codebook, return the perplexity, one number. Unused codes must do no harm.
#
# <details><summary>Hint</summary>Count with torch.bincount. 0 log 0 = 0: torch.special.xlogy knows.</details>


# %%
def perplexity_of(index, num_codes): ...  # your code


ch17.perplexity.check(perplexity_of)

# %% [markdown]
# **17.E4 · A study: one soft bit.** For the loss $f(z) = (z - 0.45)^2$, the toy problem of Tucker et al. (2017), and the soft bit (17.3), return the gradient in the logit for each of the uniform numbers `u` (K,), without autodiff. Then find the temperature at which the *total* error of one draw, bias² + variance, is smallest for a logit of 0.3, and compare
# that error with the true gradient $p(1 - p)\,[f(1) - f(0)]$.
#
# <details><summary>Hint</summary>The chain rule: f′(z), times the slope z (1 − z) of the sigmoid, divided by τ.</details>


# %%
def soft_bit_gradient(logit, u, temperature): ...  # your code


ch17.soft_bit_gradient.check(soft_bit_gradient)

# %% [markdown]
# ## Summary
#
# How does one climb the ELBO when the draw has no derivative? By weighing draws against each other, by softening the draw, or by inventing a slope. On a VAE small enough to know the truth, after 800 steps from five seeds, the first lost a few tenths of a nat in the mean, the best of the others about twice that, plain straight-through two nats; after 200 steps the seeds did not tell the best three apart.
#
# - You **computed** the ELBO, the evidence, the posterior and the gradient of a VAE with 256 states by summing, and held every estimator against them.
# - You **derived** that a relaxation's bias is at most of order $\tau$ when it is cold, and its variance of order $1/\tau$, and saw why: it asks the decoder about states that do not exist.
# - You can **recognise** an objective that is no bound: the relaxed one stood above $\log p_\theta(x)$, since it is charged for hard bits and uses soft ones. The value to report is (17.1), or hard draws.
# - You can **read** a VQ-VAE: $\log p_\theta(x \mid e_k) - \log M$ is its ELBO, the squared distances are not part of it, and uneven use of the codes costs $\log(M / \text{perplexity})$, which another prior gives back.
#
# ### Sources
#
# - Williams (1992), *Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning*. Kool, van Hoof & Welling (2019), *Buy 4 REINFORCE Samples, Get a Baseline for Free!*, ICLR workshop. Mnih & Rezende (2016), *Variational Inference for Monte Carlo Objectives*, ICML; arXiv:1602.06725.
# - Tucker, Mnih, Maddison, Lawson & Sohl-Dickstein (2017), *REBAR: Low-Variance, Unbiased Gradient Estimates for Discrete Latent Variable Models*, NeurIPS; arXiv:1703.07370. Grathwohl, Choi, Wu, Roeder & Duvenaud (2018), *Backpropagation through the Void*, ICLR; arXiv:1711.00123.
# - Shi, Zhou, Hwang, Titsias & Mackey (2022), *Gradient Estimation with Discrete Stein Operators*, NeurIPS; arXiv:2202.09497.
# - Jang, Gu & Poole (2017), *Categorical Reparameterization with Gumbel-Softmax*, ICLR. Maddison, Mnih & Teh (2017), *The Concrete Distribution*, ICLR; arXiv:1611.00712.
# - Bengio, Léonard & Courville (2013), *Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation*; arXiv:1308.3432.
# - Liu, Dong, Liu, Yu & Gao (2023), *Bridging Discrete and Backpropagation: Straight-Through and Beyond*, NeurIPS; arXiv:2304.08612.
# - van den Oord, Vinyals & Kavukcuoglu (2017), *Neural Discrete Representation Learning*; arXiv:1711.00937. Mentzer, Minnen, Agustsson & Tschannen (2024), *Finite Scalar Quantization: VQ-VAE Made Simple*, ICLR; arXiv:2309.15505.
#   Fifty, Junkins, Duan, Iyengar, Liu, Amid, Thrun & Ré (2025), *Restructuring Vector Quantization with the Rotation Trick*, ICLR; arXiv:2410.06424.
#
# ### Next
#
# One layer of latents, continuous or discrete, and an encoder that has to be learned. What if there are a thousand layers, and the encoder is given? [Chapter 18](18_from_vaes_to_diffusion.ipynb).

# %% [markdown] jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
# ## Solutions
#
# <details><summary>17.E1 in words</summary>
#
# (a) $3^{10} = 59049$: states multiply. (b) $\log 512 = 6.24$: the entropy of a one-hot $q$ is 0, so the KL is the cross entropy. (c) $H = 1.5 \log 2$, so $2^{1.5} = 2.83$. (d) $0.8 \cdot 0 + 0.2 \cdot 2 = 0.4$; the true slope is $f(1) - f(0) = 1$.
#
# </details>

# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
ch17.numbers_to_know.check((3**10, math.log(512), 2**1.5, 0.4))


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def leave_one_out_gradient(log_weight, score):
    others = (log_weight.sum() - log_weight) / (len(log_weight) - 1)
    return ((log_weight - others)[:, None] * score).mean(0)


ch17.leave_one_out_gradient.check(leave_one_out_gradient)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def perplexity_of(index, num_codes):
    pi = torch.bincount(index, minlength=num_codes) / len(index)
    return (-torch.special.xlogy(pi, pi)).sum().exp()


ch17.perplexity.check(perplexity_of)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def soft_bit_gradient(logit, u, temperature):
    z = ((logit + u.log() - torch.log1p(-u)) / temperature).sigmoid()
    return 2 * (z - 0.45) * z * (1 - z) / temperature


ch17.soft_bit_gradient.check(soft_bit_gradient)

p = torch.tensor(0.3).sigmoid()
truth = p * (1 - p) * (0.55**2 - 0.45**2)
candidates = np.geomspace(0.05, 10, 30)
error = [(soft_bit_gradient(torch.tensor(0.3), u, tau) - truth).square().mean().sqrt() for tau in candidates]
best_tau, least = candidates[int(np.argmin(error))], min(error)
assert best_tau > 3
assert 0.5 * truth < least < truth
print("the least total error is found at the warm end, and is of the size of the gradient itself")

# %% [markdown] jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
# <details><summary>What the study shows</summary>
#
# On this loss a very warm bit hardly moves, so its gradient is small, and a gradient of nearly zero has an error of about the true gradient. One draw of anything else is worse. That is what minimising the error of *one* draw rewards: silence. Averaged over many draws the variance goes and the bias stays, and the best temperature falls.
#
# </details>
