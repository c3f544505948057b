# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 15 · Posterior collapse
#
# You train a VAE. The bound rises, the loss curve is smooth, nothing warns. Then you decode two different digits, and get twice the same grey smear. The encoder has
# learned to say nothing: $q_\phi(z \mid x) = p(z)$ for every $x$. This is **posterior collapse**, and a dozen remedies are on offer.
#
# **Which latents die, who kills them, and which remedy mends what?** For a linear VAE we can answer to ten digits, with a formula. Then we go to digits, and put six remedies on one ledger.

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
# *Before this:* [chapter 06](06_learning_theta_and_phi.ipynb) (probabilistic PCA), [chapter 11](11_the_variance_trap.ipynb) (σ² is a price, and so is β) and [chapter
# 12](12_how_good_is_the_model.ipynb) (rate, distortion, active units). *Reading time:* 25 minutes; the cells run in half a minute.
#
# **You will be able to**
#
# - **predict**, from a spectrum and two numbers, which latents of a linear VAE collapse, and **verify** it;
# - **tell** a collapse that the ELBO itself wants from a bug that looks the same;
# - **say** what β buys, and what it cannot buy without a further assumption;
# - **judge** a remedy by evidence, bound and rate together, since each alone can be bought.

# %%
import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import nn
from torch.distributions import kl_divergence
from torch.nn.functional import mse_loss

from vi_tutorial import checks, data, evaluation, families, models, objectives, quadrature, training
from vi_tutorial.distributions import diagonal_normal
from vi_tutorial.elbo import draw, elbo
from vi_tutorial.exercises import ch15
from vi_tutorial.networks import BernoulliHead, DiagonalNormalHead, NormalHead, mlp

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
_ = torch.manual_seed(0)

# %% [markdown]
# ## A VAE that learns nothing
#
# Digits with grey levels between 0 and 1, eight latents, one hidden layer in each network, a Normal likelihood with $\sigma = 1$: half the squared error plus the KL.
# (Many tutorials leave the half out; that is $\sigma^2 = \tfrac12$.) The objective is the line of this series, with one draw. Before you run it: how many of eight latents will be in use?

# %%
digits = data.digits()
train, test = digits.train / 16, digits.test / 16
D, L, num_samples = train.shape[1], 8, 1


def train_vae(learn_scale, num_steps=1000):
    """A VAE on grey digits; σ starts at 1 and is learned, or not."""
    _ = torch.manual_seed(0)
    q = DiagonalNormalHead(mlp(D, 64, 2 * L), L)
    model = models.LatentVariableModel(
        families.standard_normal(L), NormalHead(mlp(L, 64, D), D, scale=torch.tensor(1.0))
    )
    model.likelihood.log_scale.requires_grad_(learn_scale)
    learned = [p for p in (*model.parameters(), *q.parameters()) if p.requires_grad]
    training.fit(
        lambda x: elbo(draw(model.given(x), q(x), num_samples).log_weight),
        torch.optim.Adam(learned, lr=5e-3),
        train,
        num_steps=num_steps,
        batch_size=100,
        generator=torch.Generator().manual_seed(0),
    )
    return model.requires_grad_(False), q.requires_grad_(False)


# %%
vaes = {"σ = 1": train_vae(learn_scale=False), "σ learned": train_vae(learn_scale=True)}
latent_rates, decoded = {}, {}
for name, (model, q) in vaes.items():
    codes = q(test)
    latent_rates[name] = objectives.kl_per_latent(codes, model.prior()).mean(0)
    decoded[name] = model.likelihood(codes.mean).mean
    active = int(evaluation.active_units(codes).active.sum())
    print(f"{name}: {active} active latents of {L}, a rate of {latent_rates[name].sum():.1f} nats")
print(f"the learned σ: {vaes['σ learned'][0].likelihood.scale.item():.1f}")
spread = {name: images.std(0).max().item() for name, images in decoded.items()}
assert spread["σ = 1"] < 0.1 < 0.3 < spread["σ learned"]
assert latent_rates["σ = 1"].sum() < 0.1 < 1 / 2 < latent_rates["σ learned"].min()

# %% [markdown]
# All eight are dead; with one number learned instead of fixed, all eight live. (The **rate** is the mean of $\mathrm{KL}(q_\phi(z \mid x) \,\|\, p(z))$, what the code says about $x$; a latent is **active** if the mean of
# its posterior has a variance of more than 0.01 over the data.)

# %% mystnb={"image": {"alt": "Left, three rows of eight held-out digits: the data, then what the VAE with sigma fixed at one decodes, eight times the same blurred patch, then what the VAE with learned sigma decodes, recognisable digits. Right, bars of the rate of each of eight latents: all at zero for the first VAE, between one and two and a half nats for the second."}}
with plots.style():
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3), width_ratios=(1.6, 1))
    chosen = test[:8], decoded["σ = 1"][:8], decoded["σ learned"][:8]
    plots.images(
        torch.cat(chosen).clamp(0, 1), left, vmin=0, vmax=1, num_cols=8, row_labels=("data", "σ = 1", "σ learned")
    )
    left.set_title("Fixed σ: one answer to every digit")
    places = np.arange(L)
    right.bar(places - 0.2, latent_rates["σ = 1"], 0.4, color=plots.COLOURS.muted, label="σ = 1")
    right.bar(places + 0.2, latent_rates["σ learned"], 0.4, color=plots.COLOURS.q, label="σ learned")
    right.set(xlabel="latent", ylabel="rate (nats)", xticks=places)
    right.legend(loc="upper right")
    right.set_ylim(0, 1.45 * latent_rates["σ learned"].max())

# %% [markdown]
# The usual suspects: the KL term is too strong, the optimiser fell into a bad minimum, the encoder is lazy. To convict one of them we need a VAE whose optimum we *know*.
#
# ## The linear VAE, solved
#
# Make both networks linear (Lucas, Tucker, Grosse & Norouzi 2019). With centred data,
#
# $$
# p_\theta(x \mid z) = \mathcal{N}(Wz, \sigma^2 I), \qquad q_\phi(z \mid x) = \mathcal{N}(Vx, \operatorname{diag} s). \tag{15.1}
# $$
#
# The model is probabilistic PCA. Put a price β on the rate, and take the expectation over $q$ and over the data, whose covariance is $S$. No draw is needed, since everything is quadratic:
#
# $$
# \mathcal{L}_\beta = -\tfrac D2 \log 2\pi\sigma^2 - \frac{\operatorname{tr}\big[(I - WV) S (I - WV)^\top\big] + \sum_i s_i \lVert w_i \rVert^2}{2\sigma^2}
# - \frac{\beta}{2} \sum_{i=1}^{L} \big(s_i + v_i^\top S v_i - 1 - \log s_i\big). \tag{15.2}
# $$
#
# Look along one eigenvector of $S$, with eigenvalue λ, served by one latent with weights $w$ and $v$. What remains to be minimised is
#
# $$
# \frac{\lambda (1 - wv)^2 + w^2 s}{2\sigma^2} + \frac\beta2 \big(s + \lambda v^2 - 1 - \log s\big). \tag{15.3}
# $$
#
# Given $w$, the best encoder is that of a model with noise $\beta\sigma^2$: $v = w / (w^2 + \beta\sigma^2)$ and $s = \beta\sigma^2 / (w^2 + \beta\sigma^2)$. Put these in, and (15.3) becomes, up to constants,
# $\tfrac\beta2 \big[\log(w^2 + \beta\sigma^2) + \lambda / (w^2 + \beta\sigma^2)\big]$: a function of $w^2 + \beta\sigma^2$ alone, with its minimum where that is λ. But a square is not negative. So
#
# $$
# w_i^2 = \max(\lambda_i - \beta\sigma^2,\; 0), \qquad \text{mean } \mathrm{KL}_i = \max\Big(\tfrac12 \log \frac{\lambda_i}{\beta\sigma^2},\; 0\Big). \tag{15.4}
# $$
#
# **A latent lives if and only if its direction of the data has more variance than βσ².** Think of the spectrum as a coast, and of βσ² as the level of the water. What lies under water is not badly learned: drowning *is* the
# optimum. (We gave each latent an eigenvector. That the best latents do sit on the principal axes is proved by Lucas et al.; below it is L-BFGS that chooses.) Here is (15.2) in code, and L-BFGS on it.

# %%
centred = train - train.mean(0)
S = centred.T @ centred / len(centred)


def linear_bound(W, V, s, beta, log_variance, S=S):
    """(15.2), in nats per datapoint."""
    D, variance = len(S), log_variance.exp()
    left_over = torch.eye(D) - W @ V
    error = (left_over @ S * left_over).sum() + (s * W.square().sum(0)).sum()
    rate = (s + (V @ S * V).sum(1) - 1 - s.log()).sum() / 2
    return -D / 2 * (math.log(2 * math.pi) + log_variance) - error / (2 * variance) - beta * rate


# %% [markdown]
# L-BFGS climbs it, from a small random start or from a given one, with σ² fixed or learned.


# %%
def climb(variance=1.0, beta=1.0, start=None, latents=10, learn=False, seed=0, S=S):
    """The linear VAE at its optimum: W, V, s, σ² and the objective."""
    generator = torch.Generator().manual_seed(seed)
    W, V = (0.1 * torch.randn(*shape, generator=generator) for shape in ((len(S), latents), (latents, len(S))))
    W, V, s = start or (W, V, torch.ones(latents))
    W, V, log_s = (nn.Parameter(value.clone()) for value in (W, V, s.log()))
    log_variance = torch.tensor(math.log(variance), requires_grad=learn)
    optimiser = torch.optim.LBFGS(
        [W, V, log_s, *([log_variance] if learn else [])],
        max_iter=2000,
        history_size=20,
        tolerance_grad=1e-9,
        tolerance_change=1e-8,
        line_search_fn="strong_wolfe",
    )

    def loss():
        optimiser.zero_grad()
        value = -linear_bound(W, V, log_s.exp(), beta, log_variance, S)
        value.backward()
        return value

    optimiser.step(loss)
    return W.detach(), V.detach(), log_s.exp().detach(), log_variance.exp().detach(), -loss().item()


# %% [markdown]
# First: is (15.2) the objective of our line? A linear VAE is a model and a $q$ like any other, so its ELBO can be drawn. We take weights that are *not* optimal, and one draw for each of the training digits, 150 times.


# %%
def as_a_vae(W, V, s, variance):
    """The same linear VAE as a model and a q of the package."""
    model = models.LinearGaussian(W, torch.zeros(D), variance.sqrt())
    return model.requires_grad_(False), lambda x: diagonal_normal(x @ V.T, s.sqrt())


generator = torch.Generator().manual_seed(1)
W, V = (0.2 * torch.randn(*shape, generator=generator) for shape in ((D, 10), (10, D)))
s, variance = torch.linspace(0.2, 1.5, 10), torch.tensor(0.3)
model, q = as_a_vae(W, V, s, variance)
x = centred
_ = torch.manual_seed(2)
bounds = torch.stack([elbo(draw(model.given(x), q(x), num_samples).log_weight).mean() for _ in range(150)])
exact = linear_bound(W, V, s, 1.0, variance.log())
noise_cost = (s * W.square().sum(0)).sum() / (2 * variance)
checks.monte_carlo(
    "15.1a",
    "the closed form (15.2) at β = 1 = the line, over 150 sweeps of the training digits",
    bounds,
    exact,
    wrong={
        "the decoder fed the mean of q": exact + noise_cost,
        "the log of the variance forgotten": exact - (s.log().sum() / 2),
        "squared error without its ½": linear_bound(W, V, s, 1.0, (variance / 2).log()) - D / 2 * math.log(2),
    },
)

# %% [markdown]
# ### Ten levels of water
#
# Now the prediction. The spectrum comes from scikit-learn's PCA, which has never heard of a VAE; ten latents; ten pairs (β, σ²). We count the latents that the optimiser leaves alive, and compare.

# %%
pca = PCA().fit(train.numpy())
eigenvalues = torch.tensor(pca.explained_variance_ * (len(train) - 1) / len(train))  # divided by N, as S is
settings = [
    (1, 0.1),
    (1, 0.15),
    (1, 0.22),
    (1, 0.5),
    (1, 1.0),
    (4, 0.02),
    (4, 0.1),
    (0.5, 0.5),
    (0.1, 6.0),
    (64, 0.005),
]
fits = [climb(variance, beta) for beta, variance in settings]
water = torch.tensor([beta * variance for beta, variance in settings])
priors = families.standard_normal(10)()

# %% [markdown]
# "Alive" has to be decided from the encoder alone: a latent whose mean rate over the training digits, from the package's `kl_per_latent`, exceeds a thousandth of a nat.

# %%
found_rates = torch.stack(
    [
        objectives.kl_per_latent(diagonal_normal(centred @ V.T, s.sqrt()), priors).mean(0).sort(descending=True).values
        for _, V, s, _, _ in fits
    ]
)
found = (found_rates > 1e-3).sum(1)
top = eigenvalues[:10]
predicted = (top > water.unsqueeze(1)).sum(1)
checks.independent(
    "15.1b",
    "active latents at ten values of βσ² = eigenvalues of the data above βσ²",
    found,
    predicted,
    wrong={
        "σ² alone decides": (top > torch.tensor([v for _, v in settings]).unsqueeze(1)).sum(1),
        "σ in the place of σ²": (top > torch.tensor([b * v**0.5 for b, v in settings]).unsqueeze(1)).sum(1),
        "the standard deviation of the data, not its variance": (top.sqrt() > water.unsqueeze(1)).sum(1),
    },
    tolerance=0.5,
)
print("βσ²     ", *(f"{level:5.2f}" for level in water.tolist()))
print("active  ", *(f"{number:5d}" for number in found.tolist()))

# %% [markdown]
# A count is a coarse witness. The lengths of $W$'s columns and the rates are fine ones: (15.4) claims all of them.

# %%
lengths = torch.stack([torch.linalg.svdvals(W).square() for W, *_ in fits])
below = top - water.unsqueeze(1)
checks.independent(
    "15.1c",
    "squared singular values of the found W = max(λᵢ − βσ², 0), PCA's eigenvalues",
    lengths,
    below.clamp_min(0),
    wrong={
        "w² = λ, the weight of plain PCA": top.expand_as(below),
        "β forgotten": (top - torch.tensor([v for _, v in settings]).unsqueeze(1)).clamp_min(0),
        "dead latents with a weight": below.abs(),
    },
    tolerance=5e-4,
)
checks.independent(
    "15.2",
    "mean KL of each latent over the training digits = max(½ log(λᵢ / βσ²), 0)",
    found_rates,
    ((top / water.unsqueeze(1)).log() / 2).clamp_min(0),
    wrong={
        "½ forgotten": (top / water.unsqueeze(1)).log().clamp_min(0),
        "½ log(1 + λ / βσ²): no threshold": (1 + top / water.unsqueeze(1)).log() / 2,
        "the mean over latents, not one by one": found_rates.mean(1, keepdim=True).expand(-1, 10),
    },
    tolerance=5e-4,
)

# %% [markdown]
# And our collapsed VAE? The highest peak of the digits' spectrum is 0.72, and with $\sigma = 1$ the water stands at 1. In the linear case no latent can live there. No optimiser, no encoder is to blame: *the likelihood says that a
# reconstruction error of one unit of grey, from white to black, is just noise.* Watch the water rise.

# %% mystnb={"image": {"alt": "Animation in eleven frames. Left, the twelve largest eigenvalues of the digits as bars and the level beta sigma squared as a line that rises from 0.02 to 0.85; what stands above it is coloured, ten bars at most. Right, the rate of each of ten latents, which shrink to zero one by one from the last to the first; in the end none is left."}} tags=["nbval-ignore-output"]
levels = np.geomspace(0.02, 0.85, 11)
spectrum = eigenvalues[:12].numpy()
assert (spectrum[:10] < levels[-1]).all()


def flood(fig, index):
    level, names = levels[index], np.arange(1, 13)
    left, right = fig.subplots(1, 2)
    left.bar(names, np.minimum(spectrum, level), color="#D8D8D8")
    left.bar(
        names[:10], np.maximum(spectrum - level, 0)[:10], bottom=np.minimum(spectrum, level)[:10], color=plots.COLOURS.q
    )
    left.axhline(level, color=plots.COLOURS.p)
    left.set(
        xlabel="direction of the data", ylabel="variance", xticks=names[::3], ylim=(0, 0.9), title=f"βσ² = {level:.2f}"
    )
    alive = np.maximum(np.log(spectrum[:10] / level) / 2, 0)
    right.bar(names[:10], alive, color=plots.COLOURS.q)
    right.set(
        xlabel="latent",
        ylabel="rate (nats)",
        xticks=names[:10:3],
        xlim=(0.2, 10.8),
        ylim=(0, 1.9),
        title=f"{(alive > 0).sum()} latents alive",
    )


plots.animate(
    flood,
    len(levels),
    "Animation: the level of βσ² rises over the spectrum of the digits, and latents drown one by one",
    name="the flood",
    figsize=(7, 3),
)

# %% [markdown]
# The rate of a drowning latent goes to zero continuously; its *slope* in $\log \sigma^2$ jumps, from $-\tfrac12$ to 0. One may call this a phase transition, and people do (Li, Zhang, Zhang & Chen 2025 derive a threshold of this kind, decoder variance against the largest
# eigenvalue, beyond linear VAEs, and speak of a discontinuity of the KL; in the linear VAE the KL is continuous, and its slope is not; Hirn 2026 reads β-VAEs as pruning a spectrum). Here are the ten fits on the curves that (15.4) draws for the first, third, fifth and tenth latent.

# %% mystnb={"image": {"alt": "Line chart, logarithmic horizontal axis: rate of four latents in nats against beta sigma squared. Each predicted curve falls in a straight line to zero and then stays there, the tenth latent first, the first one last, at 0.72. Dots, the optimiser's results at ten levels, lie on the curves."}}
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 3.2))
    axis = np.geomspace(0.07, 1.3, 200)
    styles = {0: "-", 2: "--", 4: "-.", 9: ":"}
    for index, line in styles.items():
        curve = np.maximum(np.log(top[index].item() / axis) / 2, 0)
        ax.semilogx(axis, curve, line, color=plots.COLOURS.p, label=f"latent {index + 1}, λ = {top[index]:.2f}")
        ax.plot(water, found_rates[:, index], "o", color=plots.COLOURS.q, markersize=5)
    ax.axvline(1.0, ymax=0.25, color=plots.COLOURS.muted, linewidth=1)
    ax.text(1.0, 0.31, "σ = 1, β = 1", ha="center")
    ax.set(xlabel="βσ²: the level of the water", ylabel="rate (nats)")
    ax.legend(loc="upper right", bbox_to_anchor=(1.0, 1.0))
    ax.set_title("Dots: found by L-BFGS; lines: predicted from PCA")

# %% [markdown]
# And what does the decoder still draw? The best linear VAE sends a digit to $\sum_i \max(1 - \beta\sigma^2 / \lambda_i, 0)\, u_i u_i^\top x$, with PCA's directions $u_i$: from (15.4),
# $w_i v_i = (\lambda_i - \beta\sigma^2) / \lambda_i$. Move the level. Before you do: which of these five digits will go last?

# %% mystnb={"image": {"alt": "Two rows of five images of 8 by 8 pixels. Above, five held-out digits; below, their reconstructions at the level 0.1, by ten latents at most: blurred, but to be read."}}
directions = torch.as_tensor(pca.components_, dtype=S.dtype)[:10]


def still_drawn(fig, log10_level):
    """Five digits, and what the surviving latents of the best linear VAE make of them."""
    level = 10**log10_level
    kept = (1 - level / top).clamp_min(0)
    some = test[:5] - train.mean(0)
    rebuilt = some @ directions.T * kept @ directions
    axes = fig.subplots(2, 5)
    for row, images in zip(axes, (some, rebuilt), strict=True):
        for ax, image in zip(row, images + train.mean(0), strict=True):
            ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
    fig.suptitle(f"βσ² = {level:.2f}: {int((kept > 0).sum())} latents draw", x=0.01, ha="left", weight="bold", size=12)


plots.slider(still_drawn, figsize=(7, 3.2), log10_level=(-2.0, 0.0, -1.0))

# %% [markdown]
# ### The exact posterior collapses, too
#
# Could a better $q$ revive a drowned latent? Take the model that training has found at $\sigma^2 = 0.22$, six latents alive, four dead, and ask *Bayes' rule* for its posterior, without any $q$. If the exact posterior is the prior, there is
# nothing for a $q$ to find. (Nor would a richer $q$ have led θ elsewhere: at β = 1 the optimum (15.4) is also the maximum of the exact evidence; Tipping & Bishop 1999.)

# %%
W, V, s, variance, _ = fits[2]
_, _, axes = torch.linalg.svd(W)
turned = W @ axes.T  # one latent per principal axis, the largest first; the same p(x)
model, _ = as_a_vae(turned, V, s, variance)
with torch.no_grad():
    posterior = model.posterior(centred[:200])
dead = slice(int(found[2]), 10)
checks.independent(
    "15.1d",
    "σ² = 0.22: the exact posterior of each drowned latent has mean 0 and variance 1, for 200 digits",
    torch.stack([posterior.mean[:, dead], posterior.variance.expand(200, 10)[:, dead]]),
    torch.stack([torch.zeros(200, 10 - dead.start), torch.ones(200, 10 - dead.start)]),
    wrong={
        "as if PCA's own weights √λ had been learned": torch.stack(
            [torch.zeros(200, 10 - dead.start), (variance / (variance + top[dead])).expand(200, -1)]
        ),
    },
    tolerance=1e-2,
)
print(f"{dead.start} latents alive; the exact posterior of the other {10 - dead.start} is their prior")

# %% [markdown]
# This is the view of Wang, Blei & Cunningham (2021): a posterior equals its prior *exactly* when the likelihood does not depend on that latent, when $p_\theta(x \mid z) = p_\theta(x)$. Collapse is then a property of the **model** at
# this θ, non-identifiability, and not of the inference. Whether learning *goes* to such a θ is another question. In the linear VAE the answer is a threshold.
#
# ## Is it the optimiser? Annealing
#
# **KL annealing** (Bowman et al. 2016) starts with a cheap rate, $\beta = 0$, and raises β to 1 during training, so that the latents are in use before the KL can kill them. In the linear VAE we can ask whether this *changes where we end*.
#
# Lucas et al. (2019) prove that the linear ELBO adds no local maxima to those of the likelihood. But a gradient can vanish elsewhere, too, and first of all at $W = 0, V = 0$. What is this point, a hilltop or a saddle? Near it, (15.3) is a
# quadratic form in $(w, v)$ with matrix
#
# $$
# \begin{pmatrix} -1/\sigma^2 & \lambda/\sigma^2 \\ \lambda/\sigma^2 & -\beta\lambda \end{pmatrix}, \tag{15.5}
# $$
#
# (of $\mathcal{L}_\beta$, at $s = 1$), whose determinant $(\lambda/\sigma^2)(\beta - \lambda/\sigma^2)$ is negative exactly when $\lambda > \beta\sigma^2$. So above the water the collapsed point is a saddle, which one leaves; below it is a maximum, to which one returns. The oracle is
# autodiff: the whole Hessian of (15.2) at the collapsed point, for one latent and all $2D + 1$ parameters.


# %%
def hessian_at_collapse(beta, variance):
    def objective(flat):
        W, V, log_s = flat[:D].reshape(D, 1), flat[D : 2 * D].reshape(1, D), flat[2 * D :]
        return linear_bound(W, V, log_s.exp(), beta, torch.tensor(variance).log())

    return torch.func.hessian(objective)(torch.zeros(2 * D + 1))


def steepest(beta, variance):
    """The larger eigenvalue of (15.5) at the first eigenvalue of the data."""
    a, b, c = -1 / variance, eigenvalues[0] / variance, -beta * eigenvalues[0]
    return (a + c) / 2 + ((a - c) ** 2 / 4 + b**2).sqrt()


around = [*settings, (1, 0.70), (1, 0.73)]  # two more, on either side of λ₁ = 0.72
levels = torch.tensor([beta * variance for beta, variance in around])
by_autodiff = torch.stack([torch.linalg.eigvalsh(hessian_at_collapse(*pair))[-1] for pair in around])
curvature = torch.stack([steepest(*pair) for pair in around])
saddle = levels < eigenvalues[0]
checks.exact(
    "15.3a",
    "the collapsed point has a way up exactly where λ₁ > βσ², as steep as (15.5) says",
    torch.where(saddle, by_autodiff, (by_autodiff > 1e-9).double()),
    torch.where(saddle, curvature, torch.zeros(len(around))),
    wrong={
        "β in the wrong corner": torch.stack([steepest(1, b * v) for b, v in around]),
        "always a saddle": torch.ones(len(around)),
        "always a maximum": torch.zeros(len(around)),
    },
    tolerance=1e-8,
)
print("a saddle at βσ² =", *(f"{level:.2f}" for level in levels[saddle].sort().values.tolist()))
print("no way up at βσ² =", *(f"{level:.2f}" for level in levels[~saddle].sort().values.tolist()))

# %% [markdown]
# So above the water there is nothing to be trapped by: no other local *maxima*, only saddles, this one and one for each subset of the axes, which a random start leaves. Annealing should change the *path* only. We follow both paths by Adam on (15.2), at $\sigma^2 = 0.15$, from the same start. Guess: which of the two has the larger rate after 200 steps, and which after 1,500?

# %%
num_steps, noise = 1500, torch.tensor(0.15)
ramp = objectives.linear_schedule(num_steps // 3)
true_bound = lambda W, V, s: linear_bound(W, V, s, 1.0, noise.log())  # noqa: E731


def follow(beta_at, seed=0, scale=0.1):
    """Adam on (15.2) with a β that may change; the rate on the way, and the end."""
    generator = torch.Generator().manual_seed(seed)
    W, V = (nn.Parameter(scale * torch.randn(*shape, generator=generator)) for shape in ((D, 10), (10, D)))
    log_s, rate = nn.Parameter(torch.zeros(10)), []
    optimiser = torch.optim.Adam([W, V, log_s], lr=0.01)
    for step in range(num_steps):
        optimiser.zero_grad()
        (-linear_bound(W, V, log_s.exp(), beta_at(step), noise.log())).backward()
        optimiser.step()
        with torch.no_grad():
            rate.append((log_s.exp() + (V @ S * V).sum(1) - 1 - log_s).sum().item() / 2)
    return rate, (W.detach(), V.detach(), log_s.exp().detach())


plain_path, plain = follow(lambda step: 1.0)
annealed_path, annealed = follow(ramp)

# %% [markdown]
# What should the end be worth? At the optimum of a linear VAE with β = 1 the gap is zero, so the best ELBO is the log evidence of probabilistic PCA, a Normal with covariance $WW^\top + \sigma^2 I$. We get it from `torch`'s density of the
# digits, with $W$ built from PCA's eigenvectors. Then L-BFGS, from three random starts.

# %%
basis = torch.tensor(pca.components_[:10].T)
best_weight = basis * (top - noise).clamp_min(0).sqrt()
covariance = best_weight @ best_weight.T + noise * torch.eye(D)
evidence = torch.distributions.MultivariateNormal(torch.zeros(D), covariance).log_prob(centred).mean()
checks.independent(
    "15.3b",
    "linear VAE: L-BFGS ends at the best log evidence from three random starts",
    [climb(0.15, seed=seed)[-1] for seed in range(3)],
    evidence.expand(3),
    wrong={
        "eight latents, not nine": torch.distributions.MultivariateNormal(
            torch.zeros(D), best_weight[:, :8] @ best_weight[:, :8].T + noise * torch.eye(D)
        )
        .log_prob(centred)
        .mean()
        .expand(3),
        "collapsed": true_bound(torch.zeros(D, 10), torch.zeros(10, D), torch.ones(10)).expand(3),
    },
    tolerance=1e-5,
)

# %% [markdown]
# And the ends of the two paths, as Adam has left them:

# %%
inflated = noise + 0.05  # the model's variance along the tenth axis, if a weight of √0.05 stays there
checks.independent(
    "15.3c",
    "so do Adam's two paths, with β = 1 throughout and with annealing",
    torch.stack([true_bound(*plain), true_bound(*annealed)]),
    evidence.expand(2),
    wrong={
        "a latent below the water is kept alive": evidence.expand(2)
        - ((inflated / noise).log() + top[9] / inflated - top[9] / noise) / 2,
        "annealing ends 0.1 nats short": evidence - torch.tensor([0.0, 0.1]),
    },
    tolerance=1e-4,
)
at_200 = plain_path[199], annealed_path[199]
target_rate = ((top / noise).log() / 2).clamp_min(0).sum().item()
assert at_200[1] > 2 * target_rate > at_200[0]
assert max(abs(path[-1] - target_rate) for path in (plain_path, annealed_path)) < 0.05
stuck = climb(0.15, start=(torch.zeros(D, 10), torch.zeros(10, D), torch.ones(10)))
assert stuck[0].abs().max() == 0
print(
    f"predicted rate {target_rate:.1f} nats; at the ends {plain_path[-1]:.1f} (plain), {annealed_path[-1]:.1f} (annealed)"
)

# %% mystnb={"image": {"alt": "Line chart: rate in nats against steps of Adam. The annealed run shoots up to several times the predicted rate and comes down as beta rises; the plain run approaches from below. Both end on the horizontal line of the prediction."}}
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 3))
    ax.plot(annealed_path, color=plots.COLOURS.accent, label="β from 0 to 1 in 500 steps")
    ax.plot(plain_path, "--", color=plots.COLOURS.q, label="β = 1 throughout")
    ax.axhline(target_rate, color=plots.COLOURS.p, linewidth=1)
    ax.text(num_steps, target_rate * 1.15, "predicted", ha="right")
    ax.set(xlabel="steps of Adam", ylabel="rate (nats)", yscale="log", ylim=(0.05, 200))
    ax.legend(loc="upper right")
    ax.set_title("Annealing changes the path, not the end")

# %% [markdown]
# (Started *exactly* at $W = 0, V = 0$, L-BFGS never moves: the gradient there is zero. Start away from it, as every random initialisation does.) In a nonlinear VAE this argument has a hole: Dai, Wang & Wipf (2020) show that deeper networks, even slightly nonlinear
# decoders, do have bad local optima, where annealing may help. There one has to measure. We will.
#
# ## Learn σ², and nobody drowns
#
# With σ² learned, the optimum is $\hat\sigma^2 = \frac{1}{D - L} \sum_{i > L} \lambda_i$, the *mean* of the eigenvalues without a latent (Tipping & Bishop 1999). A mean of what is left is at most $\lambda_L$, and below it unless all are equal: with β = 1 the water sinks until all $L$ latents stand clear. In
# the opening failure one number was frozen. scikit-learn's PCA computes its own noise variance.

# %%
learned = climb(variance=1.0, latents=5, learn=True)
pca_noise = PCA(5).fit(train.numpy()).noise_variance_ * (len(train) - 1) / len(train)
checks.independent(
    "15.6",
    "σ² learned with the linear VAE, 5 latents = scikit-learn's noise variance; all latents active",
    [learned[3].item(), (torch.linalg.svdvals(learned[0]) > 0.1).sum().item()],
    [pca_noise, 5],
    wrong={
        "divided by D, not D − L": [pca_noise * (D - 5) / D, 5],
        "the largest eigenvalue without a latent, not the mean": [eigenvalues[5].item(), 5],
        "σ = 1, as in the failure": [1.0, 0],
    },
    tolerance=1e-5,
)
print(f"learned σ² = {learned[3]:.3f}, the fifth eigenvalue is {top[4]:.3f}")

# %% [markdown]
# ## What β buys, and what it does not
#
# In (15.4) β and σ² stand only as a product. At a fixed σ², another β is another variance: it moves the water, and no more. The β-VAE (Higgins et al. 2017) raises β above 1 for another reason: a dearer rate should force each latent
# to code one **factor** of the data, such as size or slant, and no two. Latents that do so are called **disentangled**.
#
# Can an objective that sees only $x$ do that? Take any decoder $f$ and *twist* its latent: rotate each $z$ by an angle that depends on its length,
#
# $$
# g(z) = R(\lVert z \rVert)\, z, \qquad z \sim \mathcal{N}(0, I) \;\Rightarrow\; g(z) \sim \mathcal{N}(0, I). \tag{15.6}
# $$
#
# Each circle is turned as a whole, so areas and the prior stay; but every coordinate of $g(z)$ mixes both of $z$. The decoder $f \circ g$ has the same prior, the same $p_\theta(x)$ for every $x$, and other codes. No likelihood can prefer one to the other, and Locatello et al. (2019) prove it in
# general: without inductive biases on models *and* data, unsupervised disentanglement is impossible.


# %%
class Twist(nn.Module):
    """A decoder that sees g(z): z turned by an angle of 2‖z‖."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def turn(self, z):
        angle = 2 * z.norm(dim=-1)
        first, second = z.unbind(-1)
        return torch.stack([angle.cos() * first - angle.sin() * second, angle.sin() * first + angle.cos() * second], -1)

    def forward(self, z):
        return self.decoder(self.turn(z))


# %% [markdown]
# A small decoder with random weights will do, and sums over the plane of latents for $\log p_\theta(x)$. The rival is a map that is smooth and one-to-one, too, but does not keep the prior: $z$ doubled.

# %%
bits = (digits.test[:12] >= 8).double()
_ = torch.manual_seed(3)
decoder = BernoulliHead(mlp(2, 16, D), D)
for weight in decoder.network[0].parameters():
    weight.data.mul_(3)
straight = models.LatentVariableModel(families.standard_normal(2), decoder).requires_grad_(False)
twisted = models.LatentVariableModel(families.standard_normal(2), Twist(decoder)).requires_grad_(False)
first, second = (quadrature.posterior_on_grid(m, bits, side=121, bound=6.0) for m in (straight, twisted))
stretched = models.LatentVariableModel(families.standard_normal(2), Twist(decoder)).requires_grad_(False)
stretched.likelihood.turn = lambda z: 2 * z
apart = (first.mean - second.mean).abs().max()
checks.quadrature(
    "15.4a",
    "a decoder and its twist have the same log p(x), for 12 digits; their codes differ",
    torch.cat([second.log_evidence, (apart > 0.3).reshape(1)]),
    torch.cat([first.log_evidence, torch.ones(1)]),
    wrong={
        "any smooth map would do: z doubled": torch.cat(
            [quadrature.posterior_on_grid(stretched, bits, side=121, bound=6.0).log_evidence, torch.ones(1)]
        ),
        "the same p(x) means the same codes": torch.cat([first.log_evidence, torch.zeros(1)]),
    },
    tolerance=1e-5,
)

# %% [markdown]
# And the β-objective, which *does* prefer some axes, through its diagonal $q$? It prefers those of *variance*. Two independent factors, uniform, shine on three pixels along directions that are not orthogonal. The linear β-VAE has to choose its axes. Do they become the factors?

# %%
generator = torch.Generator().manual_seed(5)
factors = (2 * torch.rand(4000, 2, generator=generator) - 1) * math.sqrt(3)  # variance 1
mixing = torch.tensor([[1.0, 0.6], [0.2, 0.9], [0.0, 0.5]])
scene = factors @ mixing.T
scene = scene - scene.mean(0)


def codes_of(beta, seed=0, variance=0.05):
    """Codes of the factors by a linear β-VAE with two latents, trained on (15.2)."""
    _, V, *_, value = climb(variance, beta, latents=2, seed=seed, S=scene.T @ scene / len(scene))
    return scene @ V.T, value


def alignment(codes):
    """For each factor, the largest |correlation| with a latent; the smaller of the two."""
    table = torch.corrcoef(torch.cat([factors, codes], 1).T)[:2, 2:].abs()
    return table.max(1).values.min()


betas = (1.0, 2.0, 4.0, 6.0)
aligned = torch.stack([alignment(codes_of(beta)[0]) for beta in betas])
_, axes = torch.linalg.eigh(scene.T @ scene / len(scene))
by_pca = alignment(scene @ axes[:, 1:])
turned_axes = torch.tensor([[0.75**0.5, -0.5], [0.5, 0.75**0.5]])
checks.independent(
    "15.4b",
    "linear β-VAE: for β = 1, 2, 4, 6 its latents are as near to the factors as PCA's axes, no nearer",
    aligned,
    by_pca.expand(4),
    wrong={
        "disentangled": torch.ones(4),
        "any axes would do: PCA's, turned by 30°": alignment(scene @ axes[:, 1:] @ turned_axes).expand(4),
    },
    tolerance=1e-4,
)
print(f"|correlation| of the worse factor with its nearest latent: {by_pca:.2f} at every β")

# %% [markdown]
# The axes are those of PCA at every β that leaves both latents above water. They are the factors only where the factors *are* the axes of largest variance, orthogonal, and of different variances (equal ones leave the rotation free): an inductive bias, kind to some data (Rolínek, Zietlow & Martius 2019). That is the caveat on every picture of a
# "disentangled" β-VAE. A nonlinear decoder brings other biases; the theorem says that some bias has to do the work.
#
# ## A collapse that is a bug
#
# A tutorial's loss reads `mse_loss(output, x) + kl.sum(1).mean()`. The default of `mse_loss` is a *mean*, over pixels too; the KL is a sum. The author set out to train at $\sigma^2 = 0.05$, say, and wrote `mse_loss(output, x) / (2 * 0.05)`. Where does the water stand?
#
# The squared error has been divided by $D$. Multiply the loss by $D$, which moves no optimum, and the error is what it should be, with $D \cdot \mathrm{KL}$ beside it: **β = D**, without anybody having said so. On 64 pixels the water stands 64 times too high. With the
# package's `beta_objective`, on a decoder and an encoder with random weights:

# %%
_ = torch.manual_seed(4)
some, wanted = test[:50], 0.05
q = DiagonalNormalHead(mlp(D, 16, 2 * L), L).requires_grad_(False)
model = models.LatentVariableModel(
    families.standard_normal(L), NormalHead(mlp(L, 16, D), D, scale=torch.tensor(wanted**0.5))
).requires_grad_(False)
sweeps = 400
codes = q(some)
z = codes.sample((sweeps,))
rate = kl_divergence(codes, model.prior().expand((50,))).mean()
errors = torch.stack([mse_loss(model.likelihood(one).mean, some) for one in z])  # a mean over digits and pixels
buggy = errors / (2 * wanted) + rate
constant = D / 2 * math.log(2 * math.pi * wanted)
_ = torch.manual_seed(6)
checks.monte_carlo(
    "15.5a",
    "−D · (pixel-mean loss) = the β-objective with β = D, up to the constant of σ²",
    -D * buggy - constant,
    torch.stack(
        [objectives.beta_objective(model, some, codes, beta=D, num_samples=100).mean() for _ in range(60)]
    ).mean(),
    wrong={
        "it is the ELBO": (-D * errors / (2 * wanted) - rate - constant).mean(),
        "β = 1 / D": (-D * errors / (2 * wanted) - rate / D - constant).mean(),
    },
)

# %% [markdown]
# From outside, this collapse and that of the first section are twins: smooth curves, a rate of zero, one grey smear. How do we tell them apart? By asking *the line*, which knows no reductions. Start at the collapsed point, move a hair away, and climb the **true** ELBO at the σ² that
# was meant. If it rises, the collapsed point was no maximum of the ELBO: a weight, a reduction or an unfinished climb held it there. If it returns, the ELBO itself holds it there. In the linear VAE such a
# point is the best there is: the model wants no latent. A nonlinear decoder could still have a better one far away, where no climb from here arrives; runs from other starts may find it.

# %%
suspects = {"mean over pixels, σ² = 0.05": (D, 0.05), "written right, σ² = 1": (1, 1.0)}
verdicts = []
for name, (implied, noise_variance) in suspects.items():
    W, V, s, _, _ = climb(noise_variance, beta=implied)
    before = linear_bound(W, V, s, 1.0, torch.tensor(noise_variance).log()).item()
    generator = torch.Generator().manual_seed(7)
    nudged = (*(w + 0.01 * torch.randn(w.shape, generator=generator) for w in (W, V)), s)
    revived, *_, after = climb(noise_variance, start=nudged)
    alive = [int((torch.linalg.svdvals(w) > 0.05).sum()) for w in (W, revived)]
    verdicts.append([*alive, after > before + 1e-6])
    gain = max(after - before, 0.0)
    print(f"{name}: {alive[0]} latents alive; after climbing the true ELBO {alive[1]}, {gain:.1f} nats gained")

checks.independent(
    "15.5b",
    "both have collapsed; from a hair away the true ELBO revives the bug's ten latents, and not the other's",
    np.array(verdicts, dtype=float),
    [[(top > D * 0.05).sum(), (top > 0.05).sum(), 1], [(top > 1.0).sum(), (top > 1.0).sum(), 0]],
    wrong={
        "both are the optimum": [[0, 0, 0], [0, 0, 0]],
        "both are bugs": [[0, 10, 1], [0, 10, 1]],
    },
    tolerance=0.5,
)

# %% [markdown]
# A third diagnosis needs no climbing: compute the level of the water that your code *implies* (exercise 15.E3), and hold it against the largest eigenvalue of your data. The same question explains the *effect* of KL weights like 0.00025 in public code, whatever their authors meant by them: they undo a mean over pixels, approximately.
#
# ## Six remedies, one ledger
#
# Two collapses of digits, with the networks of the first section. In the first, σ is fixed at 1 on grey levels: the water. In the second the pixels are binary, and the decoder *also sees all earlier pixels*: it can do without a latent, because it has another
# way to learn the dependence between pixels. Against each we set the remedies:
#
# - **annealing**, β from 0 to 1 in the first half of the training;
# - **free bits** (Kingma et al. 2016): each latent's mean rate costs nothing up to 0.25 nats;
# - **normalised means** (BN-VAE; Zhu et al. 2020): the encoder's means are batch-normalised to a standard deviation γ, so that a latent's mean rate cannot fall below $\gamma^2 / 2$ on the training batches, here 0.25;
# - **β below 1**, 0.05 and ½;
# - the **model**: a learned σ in the first, a decoder that sees no earlier pixels in the second;
# - and a control that every such table should have: **no latent at all**.
#
# What do you expect for $\log p_\theta(x)$? `benchmarks/collapse.py` has trained each from five seeds, on the same minibatches; all are judged by the ELBO at β = 1, with importance sampling (1,000 draws) for the evidence. The last column says how often a nearest-neighbour rule tells the digit from one draw of its code (one
# in ten by chance).

# %%
path = Path("../benchmarks/results/collapse.json")
stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
if stored is None:
    print(
        "benchmarks/results/collapse.json is not beside this notebook: the cells that show stored results stay empty."
    )
for problem, kinds in (stored["summary"] if stored else {}).items():
    of = {(row["kind"], row["seed"]): row for row in stored["rows"] if row["problem"] == problem}
    title = "σ fixed, grey pixels" if problem == "variance" else "strong decoder, binary pixels"
    print(f"{title:30s} rate  ELBO: seen, held out   log p(x)  − no latent      digit told")
    for kind, row in kinds.items():
        r, t, e, p, a = (row[n]["mean"] for n in ("rate", "elbo_training", "elbo", "log_evidence", "accuracy"))
        seeds = [seed for name, seed in of if name == kind]
        change = [of[kind, seed]["log_evidence"] - of["no latent", seed]["log_evidence"] for seed in seeds]
        paired = f"{np.mean(change) + 0.0:+6.2f} ± {np.std(change, ddof=1):4.2f}"
        print(f"  {kind:28s} {r:4.1f}    {t:6.2f}  {e:6.2f}     {p:6.2f}   {paired}        {100 * a:3.0f} %")
alone = torch.distributions.Normal(train.mean(0), train.var(0, correction=0).mean().sqrt())
print(f"one control more: σ learned, but no latent: log p(x) = {alone.log_prob(test).sum(-1).mean():.2f}")

# %% [markdown]
# (Held-out digits; only the first ELBO is of the training digits. "− no latent": the difference of $\log p_\theta(x)$ to the control of the same seed, mean ± standard deviation over seeds.) Three questions for the table. Which remedy raised the *rate*? Which raised $\log p_\theta(x)$? And what does the model without any latent have to say to both?

# %% mystnb={"image": {"alt": "Two scatter panels: nats per held-out digit against rate. For each remedy a filled dot for log p(x) and an open one for the ELBO below it, joined by a line. Left, sigma fixed at one: with the rate the dots fall, from minus 61 without a latent to minus 65; the learned sigma lies far above the panel, as a note says. Right, strong decoder: the filled dots of the plain run, annealing, free bits and normalised means lie level with the model without a latent, that of beta one half lies a little lower, that of the weak decoder clearly lower; the open ones fall with the rate."}}
if stored:
    with plots.style():
        fig, panels = plt.subplots(1, 2, figsize=(7, 3.4))
        for ax, kinds in zip(panels, stored["summary"].values(), strict=True):
            for kind, row in kinds.items():
                r, e, p = (row[name]["mean"] for name in ("rate", "elbo", "log_evidence"))
                if kind == "σ learned":
                    ax.text(
                        0.97,
                        0.93,
                        f"σ learned: log p(x) = {p:.0f}\nat a rate of {r:.0f}",
                        ha="right",
                        va="top",
                        transform=ax.transAxes,
                        fontsize=9,
                    )
                    continue
                ax.plot([r, r], [e, p], color=plots.COLOURS.muted, linewidth=1)
                ax.plot(r, e, "o", markerfacecolor="white", color=plots.COLOURS.q)
                ax.plot(r, p, "o", color=plots.COLOURS.evidence)
                if r > 1:
                    shift = {"free bits": 3, "normalised means": -17}.get(kind, -1)
                    ax.annotate(kind, (r, e), xytext=(5, shift), textcoords="offset points", fontsize=9)
            base = kinds["no latent"]["log_evidence"]["mean"]
            ax.axhline(base, color=plots.COLOURS.evidence, linestyle=":", linewidth=1)
            ax.set(xlabel="rate (nats)", xlim=(-0.6, 13))
        fig.suptitle("The objectives bought rate; evidence they did not raise", fontweight="bold", x=0.02, ha="left")
        panels[0].set(ylabel="nats per held-out digit", ylim=(-70, -58), title="σ = 1")
        panels[1].set(title="Strong decoder", ylim=(-19.8, -17.2))

# %% [markdown]
# (Filled: $\log p_\theta(x)$; open: the ELBO; dotted: the model without a latent. Where β = 0.05 the weights are so uneven, an effective sample size near 7 of 1,000, that its filled dot is likely to stand too low. With 30 to 50, for β = ½ and the learned σ, a little of this may remain.)
#
# **The water.** Annealing ends where the plain run ends, at a rate of 0.02 nats. Free bits, normalised means and β = 0.05 do what they promise, rates of 1.8, 2.2 and 8.4 nats; a digit is told from its code in 45, 45 and 91 % of the cases. None reaches the $\log p_\theta(x)$ of the model
# *without any latent*, −61.20. They moved the solution away from the optimum of a bad likelihood. The learned σ changed the likelihood: 24.2 nats, 85 nats more, with 93 % told. The last line of the table says to whom they are due: 54 to σ alone, without any latent; 32 to the latents, which pay under the right σ. (Codes of β = 0.05 tell nearly as much. By (15.4) it lowers the water as a smaller σ² would; but it reports, and samples from, a model with σ = 1.)
#
# **The strong decoder.** The plain run collapses almost wholly (0.2 nats), and loses 0.03 nats by it. Against the control of the same seed annealing and normalised means cannot be told from nothing, free bits lie 0.04 below in every seed. All three have a *lower ELBO* than the
# collapsed run, by 0.2 to 0.4 nats, and codes that tell the digit in 53, 37 and 40 % of cases instead of 11. β = ½ tells 80 % and pays 0.2 nats of evidence; the weak decoder, a change of the model, tells 76 % and pays 0.7. Here the objective was the cheaper way to a code.
# And all these strong decoders overfit, by 2.5 to 3 nats between the digits seen and held out: ten times what separates the remedies. With more data the order might be another.
#
# **A surprise:** annealing, which could not change the end in the linear VAE, does end elsewhere here, at 3.5 nats. Either there are several optima, as Dai, Wang & Wipf warn, or 1,000 steps are too few to come back; this table cannot say which. What it can say: by the ELBO, the place is worse.
#
# So *what do you want?* If it is the density, mend the likelihood, and count a latent that nothing needs as no loss. If it is a code, the ELBO never promised you one: it is indifferent between two models with one $p_\theta(x)$ and unequal codes. Then raise the rate, say so, and judge the code by what
# it is for.
#
# Recent work draws the same picture of thresholds in wider settings: Wang & Ziyin (2022) for general linear latent-variable models, Ichikawa & Hukushima (2023) for linear VAEs in high dimension, with a β beyond which no amount of data helps, Li et al. (2025) and Hirn (2026) as above.

# %% [markdown]
# ## Exercises
#
# **15.E1 (recall).** Data with eigenvalues 4, 1 and ¼; three latents, $\sigma^2 = \tfrac12$. Four numbers: (a) how many latents are active with β = 1; (b) how many with β = 4; (c) the rate of the first at β = 1; (d) the σ² that a model with *one* latent learns.
#
# <details><summary>Hint</summary>Where does the water stand in (b)? For (d), what is left over?</details>

# %%
answer = None  # your numbers: (a, b, c, d)

ch15.numbers_to_know.check(answer)

# %% [markdown]
# **15.E2 · A spectrum's rates.** Return the mean rate of each latent, in nats, from `eigenvalues` (L,), `beta` and `variance`. What is the slope of the *total* rate in $\log \sigma^2$, when $k$ latents are alive?
#
# <details><summary>Hint</summary>A logarithm of something below one is negative; a rate is not.</details>


# %%
def rates(eigenvalues, beta, variance): ...  # your code


ch15.rates.check(rates)

# %% [markdown]
# **15.E3 · Read the level from the code.** A loss is `mse + weight * kl`. The squared error is a sum over `num_pixels`, or their mean if `pixel_mean`; the KL a sum over `num_latents`, or their mean if `latent_mean`. Return the βσ² that it implies. Then find out what the weight 0.00025 does to a mean over 64 × 64 × 3 pixels.
#
# <details><summary>Hint</summary>Bring the loss to the form (sum of squares) / (2βσ²) + (sum of KL), up to one factor.</details>


# %%
def water_level(weight, num_pixels, num_latents, pixel_mean, latent_mean): ...  # your code


ch15.water_level.check(water_level)

# %% [markdown]
# **15.E4 · A study: what is a latent worth?** From *all* $D$ eigenvalues in falling order, `num_latents` and a fixed `variance`, return the mean ELBO per datapoint of the best linear VAE at β = 1. Then plot it against the number of latents for the digits at σ² = 0.15: where does it stop rising, and what does the last useful latent bring?
#
# <details><summary>Hint</summary>At the optimum the ELBO is the log evidence, and the covariance of the model has the data's eigenvectors. Which variance has it along each?</details>


# %%
def best_bound(eigenvalues, num_latents, variance): ...  # your code


ch15.best_bound.check(best_bound)

# %% [markdown]
# ## Summary
#
# Which latents die? In the linear VAE those whose variance in the data is below βσ². Who kills them? Not the optimiser, nor the encoder: there the collapsed point is then the best point of the objective. Which remedy mends what? No objective raised the evidence, all that raised the rate bought it from the ELBO; of the two changes of the *model*, the learned σ raised the evidence and the weak decoder lowered it.
#
# - You can **predict** the survivors and their rates, $\max(\tfrac12 \log \lambda_i / \beta\sigma^2, 0)$, and **verified** them at ten levels against PCA.
# - You can **tell** a collapse that the ELBO holds in place from a bug: from a hair away, climb the ELBO of the line. It gained 21 nats where a mean over pixels had set β = D, and nothing where σ = 1 had been meant.
# - You can **say** what β buys: another level of water. It bought no factors: a twist of the latent leaves $p_\theta(x)$ as it is, and the linear β-VAE found PCA's axes at every β.
# - You can **judge** a remedy: beside the rate, print the ELBO, $\log p_\theta(x)$, and a control without latents.
#
# What this does not say: 8 × 8 digits, small networks, 1,000 steps. Where text or large images bring decoders of great depth, local optima may matter more than here.
#
# ### Sources
#
# - Lucas, Tucker, Grosse & Norouzi (2019), *Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse*, NeurIPS. Tipping & Bishop (1999), *Probabilistic Principal Component Analysis*.
# - Dai, Wang & Wipf (2020), *The Usual Suspects? Reassessing Blame for VAE Posterior Collapse*, ICML; arXiv:1912.10702.
# - Wang, Blei & Cunningham (2021), *Posterior Collapse and Latent Variable Non-identifiability*, NeurIPS; arXiv:2301.00537.
# - Bowman et al. (2016), *Generating Sentences from a Continuous Space*. Kingma et al. (2016), *Improved Variational Inference with Inverse Autoregressive Flow*: free bits. Zhu, Bi, Liu, Ma, Li & Wu (2020), *A Batch Normalized Inference Network Keeps the KL Vanishing Away*, ACL.
# - Higgins et al. (2017), *beta-VAE*. Locatello et al. (2019), *Challenging Common Assumptions in the Unsupervised Learning of Disentangled Representations*, ICML; arXiv:1811.12359.
# - Rolínek, Zietlow & Martius (2019), *Variational Autoencoders Pursue PCA Directions (by Accident)*, CVPR; arXiv:1812.06775.
# - Wang & Ziyin (2022), *Posterior Collapse of a Linear Latent Variable Model*, NeurIPS; arXiv:2205.04009. Ichikawa & Hukushima (2023), *High-dimensional Asymptotics of VAEs*, arXiv:2309.07663. Li, Zhang, Zhang & Chen (2025), *Posterior Collapse as a Phase Transition in Variational Autoencoders*, arXiv:2510.01621. Hirn (2026), *Posterior Collapse as Automatic Spectral Pruning*, arXiv:2605.22691.
#
# ### Next
#
# A learned σ mended the likelihood. What would a richer $q$ mend, or a richer prior? [Chapter 16](16_richer_posteriors_and_priors.ipynb).

# %% [markdown] jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
# ## Solutions
#
# <details><summary>15.E1 in words</summary>
#
# (a) The water stands at ½: two. (b) At 2: one. (c) $\tfrac12 \log (4 / \tfrac12) = 1.04$ nats. (d) The mean of what is left: $(1 + \tfrac14)/2 = 0.625$.
#
# </details>

# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
ch15.numbers_to_know.check((2, 1, math.log(8) / 2, 0.625))


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def rates(eigenvalues, beta, variance):
    return (eigenvalues / (beta * variance)).log().clamp_min(0) / 2


ch15.rates.check(rates)

# %% [markdown] jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
# <details><summary>The slope</summary>
#
# Each living latent contributes $-\tfrac12$: the slope is $-k/2$, and each death makes it flatter by ½.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def water_level(weight, num_pixels, num_latents, pixel_mean, latent_mean):
    return weight * (num_pixels if pixel_mean else 1) / (num_latents if latent_mean else 1) / 2


ch15.water_level.check(water_level)
print(f"0.00025 beside a mean over 64 × 64 × 3 pixels: βσ² = {water_level(0.00025, 64 * 64 * 3, 128, True, False):.2f}")

# %% [markdown] jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
# <details><summary>What the weight does</summary>
#
# Without it the water would stand at 6144. With it, at about 1.5, in squared units of a pixel: as if σ = 1.24 with β = 1, for that size of image and no other.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def best_bound(eigenvalues, num_latents, variance):
    model = torch.full_like(eigenvalues, variance)
    model[:num_latents] = eigenvalues[:num_latents].clamp_min(variance)
    return -(math.log(2 * math.pi) + model.log() + eigenvalues / model).sum() / 2


ch15.best_bound.check(best_bound)
worth = [best_bound(eigenvalues, number, 0.15).item() for number in range(13)]
assert abs(worth[10] - evidence) < 1e-8
assert worth[9] == worth[12] > worth[8]
print("nats gained by latents 1, 5 and 9:", *(f"{worth[n] - worth[n - 1]:.3f}" for n in (1, 5, 9)))
