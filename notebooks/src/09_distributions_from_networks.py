# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 09 · Distributions from neural networks
#
# Train a network on wine with squared error: flavanoids in, colour out. For a wine with few flavanoids it says *eight*; for
# one with more it says *three*. It says both in the same tone of voice. Yet wines of the first kind range from two to
# thirteen, and wines of the second stay between one and five.
#
# A point is not an answer when the question is "what may come?" Variational autoencoders need networks that answer with a
# *distribution*. **How does a network describe a distribution, and which one should it be?**

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
# *Before this:* [chapter 01](01_the_elbo.ipynb) (the ELBO $\mathcal{L}$), [chapter 06](06_learning_theta_and_phi.ipynb) (learning θ
# and φ together; probabilistic PCA) and [chapter 08](08_one_posterior_per_datapoint.ipynb) (encoders). *Reading time:* 30 minutes.
#
# **You will be able to**
#
# - **build** a head that turns any network's numbers into the parameters of a distribution;
# - **choose** a likelihood for binary pixels, counts, greys and real numbers, and **test** that it is one;
# - **say** which distribution a loss function has silently chosen for you;
# - **tell** exactly when a decoder leaves the Gaussian world, and compute the density it arrives at.

# %%
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import integrate, stats
from torch import nn
from torch.distributions import Bernoulli, ContinuousBernoulli, Normal
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss, one_hot

from vi_tutorial import checkers, checks, data, families, models, training
from vi_tutorial.distributions import bernoulli, binomial, continuous_bernoulli, diagonal_normal, discretised_normal
from vi_tutorial.elbo import draw, elbo, elbo_analytic_kl
from vi_tutorial.exercises import ch09
from vi_tutorial.networks import (
    BernoulliHead,
    BinomialHead,
    DiagonalNormalHead,
    DiscretisedNormalHead,
    FullNormalHead,
    NormalHead,
    mlp,
)

torch.set_default_dtype(torch.float64)  # identities are claimed: no rounding to hide behind
torch.set_num_threads(1)
_ = torch.manual_seed(0)

# %% [markdown]
# ## Two networks instead of one
#
# Keep the network for the centre, call it $f$, and let a second one, $g$, give the spread (one network with two outputs
# serves as both):
#
# $$p_\theta(y \mid x) = \mathcal{N}\big(y \mid f_\theta(x),\; g_\theta(x)^2\big). \tag{09.1}$$
#
# Here $g$ is a standard deviation; some texts write the variance there. Nothing is
# hidden in this model yet: no latent, so θ is learned by plain maximum likelihood. A network puts out any real numbers,
# and a standard deviation is positive. So let the second output be its logarithm. That is the entire trick, and
# the function below is all of it; the package's heads check shapes and sizes, and do no more.
#
# The rival is the usual regression: a network for the mean and one constant $\sigma$ for all, also learned. We
# leave out every fifth wine in turn and score the left-out ones, in nats per wine. *Your guess: what is it worth to know
# where wines of one kind differ? In how many of five splits does it help?*


# %%
def two_number_head(network, x):
    """(09.1): any network with two outputs becomes a Normal distribution for each row of x."""
    loc, log_scale = network(x).chunk(2, dim=-1)
    return diagonal_normal(loc, log_scale.exp())


wine = data.wine()
flavanoids, colour = (wine.x[:, [wine.names.index(name)]] for name in ("flavanoids", "color_intensity"))
network = mlp(1, 6, 2)  # one number in, six hidden units with a tanh, two numbers out
head = DiagonalNormalHead(network, 1)  # the package's version
here = torch.tensor([[-1.0], [2.0]])
assert torch.equal(two_number_head(network, here).log_prob(here), head(here).log_prob(here))
print(head(here))


# %%
def split(fold):
    """Every fifth wine held out; standardised by the others alone."""
    out = torch.arange(len(colour)) % 5 == fold
    a, b = ((v - v[~out].mean(0)) / v[~out].std(0) for v in (flavanoids, colour))
    return a[~out], b[~out], a[out], b[out]


def learn(head, x, y):
    _ = torch.manual_seed(0)
    for layer in (head.network[0], head.network[2]):
        layer.reset_parameters()
    optimiser = torch.optim.Adam(head.parameters(), lr=0.03)
    training.fit(lambda xy: head(xy[:, :1]).log_prob(xy[:, 1:]), optimiser, torch.cat([x, y], -1), num_steps=200)
    return head.requires_grad_(False)


pairs = []
for fold in range(5):
    x, y, _, _ = split(fold)
    constant = learn(NormalHead(mlp(1, 6, 1), 1, scale=torch.tensor(1.0)), x, y)
    pairs.append((constant, learn(DiagonalNormalHead(mlp(1, 6, 2), 1), x, y)))

# %% [markdown]
# Now the wines that none of them has seen. Besides the nats, count how many fall outside the band $f \pm 1.645\,\sigma$, which
# holds 90 % of a Normal.

# %%
held_out = torch.zeros(5, 2)
missed = []  # held-out wines outside the central 90 %: with few flavanoids or not, constant or not
for fold, pair in enumerate(pairs):
    _, _, new_x, new_y = split(fold)
    few = flavanoids[torch.arange(len(colour)) % 5 == fold] < 1.5
    for k, head in enumerate(pair):
        p = head(new_x)
        held_out[fold, k] = p.log_prob(new_y).mean()
        missed += [
            (k, poor, outside) for poor, outside in zip(few, (new_y - p.mean).abs() > 1.645 * p.stddev, strict=True)
        ]
gain = held_out[:, 1] - held_out[:, 0]
assert (gain > 0).all()
print(f"held out, one σ for all: {held_out[:, 0].mean():.2f} nats per wine; with g(x): {held_out[:, 1].mean():.2f}")
print(f"g(x) is ahead in {(gain > 0).sum()} of 5 splits")
for k, words in enumerate(("one σ", "g(x)")):
    few, many = (np.mean([outside for i, poor, outside in missed if i == k and poor == want]) for want in (True, False))
    print(f"{words:<5} wines outside its 90 % band: few flavanoids {100 * few:2.0f} %, others {100 * many:2.0f} %")

# %% mystnb={"image": {"alt": "Two panels of colour intensity against flavanoids for 178 wines, each with a curve for the mean and a band of 90 per cent. Left, constant spread: the band is equally wide everywhere, too narrow for the wines on the left and much too wide in the middle. Right, the spread from a network: the band is wide on the left, narrow in the middle and widens a little after."}}
out = torch.arange(len(colour)) % 5 == 0
grid = torch.linspace(flavanoids.min(), 4.0, 200)[:, None]
inputs = (grid - flavanoids[~out].mean(0)) / flavanoids[~out].std(0)
level, unit = colour[~out].mean(), colour[~out].std()
few, more = colour[(flavanoids - 0.9).abs() < 0.5], colour[(flavanoids - 1.9).abs() < 0.2]
assert (few.min().round(), few.max()) == (2, 13)
assert more.min() > 1
assert more.max() < 5
two_wines = (torch.tensor([[0.9], [1.9]]) - flavanoids[~out].mean(0)) / flavanoids[~out].std(0)
assert (level + unit * pairs[0][0](two_wines).mean).round().flatten().tolist() == [8, 3]
with plots.style():
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.3), sharey=True)
    for ax, head, words in zip(
        axes, pairs[0], ["One σ for all is wrong twice", "g(x) says where like wines differ"], strict=True
    ):
        p = head(inputs)
        mean, half = (level + unit * p.mean)[:, 0], 1.645 * unit * p.stddev[:, 0]
        ax.fill_between(grid[:, 0], mean - half, mean + half, color=plots.COLOURS.p, alpha=0.2, lw=0)
        ax.plot(grid, mean, color=plots.COLOURS.p)
        ax.scatter(flavanoids, colour, s=9, color=plots.COLOURS.data)
        ax.set(xlabel="flavanoids", title=words, xlim=(0.3, 4.0), ylim=(-1.5, 13.5))
    axes[0].set_ylabel("colour intensity")

# %% [markdown]
# Same data, same hidden units. A 90 % band should miss one wine in ten. The constant band is wrong twice: it misses a fifth of
# the wines with few flavanoids, and nearly none of the others. The second network has learned *where wines with the same flavanoids differ*. The
# squared error could not ask for that, since it has no place for a spread. Take care what the band does not say: right of 3.6 flavanoids there is hardly a wine, and it does not widen.
# $g$ is the spread of the data, not the network's ignorance.
#
# ## A lookup table, and where the likeness ends
#
# A phrase one often hears: the networks act a bit like lookup tables, an input goes in
# and the parameters of a distribution come out. How far does it go?
#
# - A **table** has $C$ cells. An input $x$ opens cell $c(x)$, and there lie a mean and a standard deviation that
#   belong to this cell alone.
# - It *is* a network: a linear layer without hidden units, fed the cell's number as a **one-hot** vector (zeros and a
#   single one). The vector picks a row of weights. The row *is* the entry.
#
# So its maximum likelihood needs no gradient: in each cell, the mean and standard deviation of what fell there. Ascent
# on the one-hot layer has to find the same numbers.

# %%
x, y, new_x, new_y = split(0)
edges = torch.quantile(x[:, 0], torch.linspace(0, 1, 9)[1:-1])  # eight cells with equally many wines


def cells_of(x, edges):
    return torch.bucketize(x[:, 0].contiguous(), edges)


entries = DiagonalNormalHead(nn.Linear(8, 2, bias=False), 1)
inputs = one_hot(cells_of(x, edges), 8).double()
options = {"max_iter": 200, "tolerance_grad": 1e-10, "tolerance_change": 1e-14}
optimiser = torch.optim.LBFGS(entries.parameters(), line_search_fn="strong_wolfe", **options)
training.fit(lambda r: entries(r[:, :8]).log_prob(r[:, 8:]), optimiser, torch.cat([inputs, y], -1), num_steps=3)
learned = entries(torch.eye(8))

columns = [y[cells_of(x, edges) == c, 0].numpy() for c in range(8)]
checks.independent(
    "09.6",
    "a linear layer on one-hot inputs is a lookup table: its ML entries are the cells' means and sds",
    torch.cat([learned.mean, learned.stddev], -1),
    np.array([[np.mean(column), np.std(column)] for column in columns]),
    wrong={
        "sds with n − 1": np.array([[np.mean(column), np.std(column, ddof=1)] for column in columns]),
        "log σ read as log σ²": torch.cat([learned.mean, learned.stddev.sqrt()], -1),
    },
    tolerance=1e-5,
)

# %% [markdown]
# A smooth network differs in two ways, and both are one: its answers hang together. It has an answer *between* any two
# inputs that it has seen, and a wine here changes the answer for its neighbours, since all share the same weights. A
# table's cells know nothing of each other. With fewer cells it blurs, with more it starves, and an empty cell has nothing
# of its own to say. Below, tables of 1 to 48 cells, on the same five splits. *Which number of
# cells will beat the network?* (Their σ gets a floor of 0.05: a cell whose wines agree would claim certainty, and its
# likelihood would be infinite. Chapter 11 is about that trap. An empty cell repeats the answer for all wines.)


# %% mystnb={"image": {"alt": "Nats per wine against the number of cells of the table, from 1 to 48. The score on training wines climbs almost all the way. The held-out score rises first, comes close to the horizontal line of the network between 3 and 16 cells, and then falls steeply out of the picture."}}
def table_scores(num_cells, fold):
    """Training and held-out nats per wine of a table with this many equally filled cells."""
    x, y, new_x, new_y = split(fold)
    edges = torch.quantile(x[:, 0], torch.linspace(0, 1, num_cells + 1)[1:-1])
    cell, new_cell = cells_of(x, edges), cells_of(new_x, edges)
    own = [y[cell == c] if (cell == c).any() else y for c in range(num_cells)]  # an empty cell repeats all wines
    loc = torch.stack([values.mean() for values in own])[:, None]
    scale = torch.stack([values.std(correction=0) for values in own])[:, None].clamp(min=0.05)
    p, new_p = diagonal_normal(loc[cell], scale[cell]), diagonal_normal(loc[new_cell], scale[new_cell])
    return p.log_prob(y).mean(), new_p.log_prob(new_y).mean()


sizes = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48]
scores = torch.tensor([[table_scores(size, fold) for fold in range(5)] for size in sizes]).mean(1)
smooth = held_out[:, 1].mean()
assert scores[:, 0].argmax() == len(sizes) - 1
assert (scores[:, 1].max() - smooth).abs() < 0.08
assert scores[0, 1] < smooth - 0.2
assert scores[-1, 1] < smooth - 0.8
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 3.1))
    ax.plot(sizes, scores[:, 0], "o--", color=plots.COLOURS.muted, label="table, training wines")
    ax.plot(sizes, scores[:, 1], "o-", color=plots.COLOURS.q, label="table, held out")
    ax.axhline(smooth, color=plots.COLOURS.p, label="network, held out")
    ax.set_xscale("log")
    ax.set_xticks(sizes, sizes)
    ax.minorticks_off()
    ax.set(xlabel="cells in the table", ylabel="nats per wine", ylim=(-4.2, 0.4))
    ax.legend(loc="lower left")
    ax.set_title("A finer table knows its own wines better, not new ones")

# %% [markdown]
# None does, to speak of: a table of the right size, chosen with hindsight, is as good as the network. What the network saved us is the choice, and the cliff
# on the right. Smoothness is its assumption, and a useful one where neighbours are alike. It can be false: for inputs without a
# neighbourhood, such as a customer's number, a table of $n$ entries is the honest model.
#
# Keep this in mind for the posterior. "Each $x$ has its own mean and variance" is a table with one entry for each
# datapoint; the encoder of a VAE is its smooth version, which also answers for images it never saw. What that costs,
# [chapter 08](08_one_posterior_per_datapoint.ipynb) has counted.
#
# ## One recipe, many heads
#
# Nothing was special about the Normal. A **head** is always the same three steps: list the numbers that the distribution
# needs; map real numbers onto their range, smoothly; *sum* log-probabilities over the dimensions of one datapoint.
#
# | data $x_d$ | distribution | numbers per dimension | onto the range by |
# |---|---|---|---|
# | 0 or 1 | Bernoulli | logit $\ell$ | nothing: any $\ell$ is a log odds |
# | counts 0 … n | Binomial | logit $\ell$ | nothing |
# | counts 0 … n | Normal, rounded | centre, log σ | exp |
# | real | Normal | centre, log σ | exp |
# | real, correlated | Normal with full covariance | centre, Cholesky factor | exp on its diagonal |
# | in [0, 1] | continuous Bernoulli | logit $\ell$ | nothing |
#
# The **Cholesky factor** is the only entry that asks for a thought. A covariance matrix must be positive definite, and one
# cannot fill a matrix with a network's numbers and hope. But $\Sigma = L L^\top$ is positive definite for *every* lower-triangular $L$
# with a positive diagonal, and every positive definite Σ has exactly one such $L$. So the numbers go into $L$:
# logarithms on the diagonal, anything below it. That is $D + D(D+1)/2$ outputs, means included, and the determinant comes
# for free, $\log\det\Sigma = 2 \sum_d \log L_{dd}$.

# %%
numbers = torch.randn(7, FullNormalHead.num_outputs(3))  # what a network may say about three correlated variables
p = FullNormalHead(nn.Identity(), 3)(numbers)
points = torch.randn(7, 3)


def factor(row, diagonal=np.exp):
    """L in NumPy, from the last six of nine numbers."""
    L = np.diag(diagonal(row[3:6]))
    L[1, 0], L[2, 0], L[2, 1] = row[6:]
    return L


def by_scipy(factors, transposed=False):
    covariances = [L.T @ L if transposed else L @ L.T for L in factors]
    rows = zip(numbers.numpy(), covariances, points.numpy(), strict=True)
    return [stats.multivariate_normal(row[:3], covariance).logpdf(point) for row, covariance, point in rows]


checks.independent(
    "09.7",
    "FullNormalHead's Normal is SciPy's with Σ = L Lᵀ, L written out from the nine numbers",
    p.log_prob(points),
    by_scipy([factor(row) for row in numbers.numpy()]),
    wrong={
        "the diagonal not exponentiated": by_scipy([factor(row, diagonal=np.abs) for row in numbers.numpy()]),
        "Σ = Lᵀ L": by_scipy([factor(row) for row in numbers.numpy()], transposed=True),
    },
    tolerance=1e-8,
)

# %% [markdown]
# ## Binary pixels: the cross entropy is a likelihood
#
# Now images. A pixel that is black or white takes one number, the **logit** $\ell = \log\frac{p}{1-p}$, and
#
# $$\log p_\theta(x \mid z) = \sum_{d=1}^{D} x_d \log p_d + (1 - x_d) \log (1 - p_d)
#   = \sum_{d=1}^{D} x_d\, \ell_d - \log(1 + e^{\ell_d}). \tag{09.2}$$
#
# With a minus in front programmers call it the **binary cross entropy** (BCE). Note the sum. Deep-learning
# libraries take the *mean* over pixels by default, and the mean is not the logarithm of any probability of the image. To see it,
# ask what every log-probability must pass: do the probabilities of all images add up to one? With four pixels
# there are sixteen images.

# %%
logits = torch.tensor([1.3, -0.4, 2.0, 0.1])
every_image = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
bce = binary_cross_entropy_with_logits(logits.expand(16, 4), every_image, reduction="none")
checks.enumeration(
    "09.1a",
    "exp(−summed BCE) over all 16 images adds up to 1",
    (-bce.sum(-1)).exp().sum(),
    1.0,
    wrong={"the mean over pixels": (-bce.mean(-1)).exp().sum(), "the mean over all": 16 * (-bce.mean()).exp()},
)

digits = data.digits()
binary = (digits.train[:200] >= 8).double()
logits = torch.linspace(-4, 4, 64)
chance = 1 / (1 + np.exp(-logits.numpy()))
product = np.where(binary.numpy() == 1, chance, 1 - chance).prod(-1)  # one small number per image
checks.exact(
    "09.1b",
    "the package's Bernoulli log-likelihood of a digit = log of the product of 64 probabilities",
    bernoulli(logits.expand(200, 64)).log_prob(binary),
    np.log(product),
    wrong={
        "ink and paper exchanged": np.log(np.where(binary.numpy() == 1, 1 - chance, chance).prod(-1)),
        "the mean over pixels": np.log(product) / 64,
    },
)

# %% [markdown]
# ## Grey pixels: the cross entropy is not
#
# The digits are grey, though. The tutorial habit is to scale greys to [0, 1] and use BCE all the same. It runs;
# the pictures look good. But is it a likelihood? Give $x$ any value in [0, 1] and ask the same question as before, with an
# integral for the sum:
#
# $$M(\ell) = \int_0^1 e^{x \ell - \log(1 + e^\ell)}\, dx = \frac{e^\ell - 1}{\ell\,(1 + e^\ell)}
#   = \frac{\tanh(\ell/2)}{\ell}. \tag{09.3}$$
#
# A density has $M = 1$. This has $M = \frac12$ at $\ell = 0$ (the limit) and *less* everywhere else, down to $1/|\ell|$ for a confident
# pixel. A missing constant would do the fit no harm. Here the "constant" depends on what the network says.
#
# The mend is to divide by the mass. What results is the **continuous Bernoulli** (Loaiza-Ganem & Cunningham 2019): the same
# exponential in $x$, with a normaliser of its own,
#
# $$p(x \mid \ell) = C(\ell)\, e^{x \ell}, \qquad \log C(\ell) = -\log \int_0^1 e^{x\ell} dx = -\log \frac{e^\ell - 1}{\ell}. \tag{09.4}$$
#
# At $x = 0$ its log density *is* $\log C(\ell)$, which we can hold against the integral.

# %%
ell = np.array([-200.0, -30.0, -5.0, -1.0, 1e-6, 0.5, 3.0, 12.0])


def by_quadrature(log_density):
    """The integral over [0, 1] for each logit."""
    return [integrate.quad(lambda x, v=v: math.exp(log_density(x, v)), 0, 1, points=[0.03])[0] for v in ell]


def grey_bce(x, v):
    return Bernoulli(logits=torch.tensor(v), validate_args=False).log_prob(torch.tensor(x)).item()


checks.quadrature(
    "09.2a",
    "BCE on greys has total mass tanh(ℓ/2)/ℓ: never 1",
    np.tanh(ell / 2) / ell,
    by_quadrature(grey_bce),
    wrong={"a density": np.ones(8), "one missing factor for all logits": np.full(8, 0.5)},
)
checks.quadrature(
    "09.2b",
    "the continuous Bernoulli's log constant, from ℓ = −200 to 12",
    continuous_bernoulli(torch.tensor(ell)[:, None]).log_prob(torch.zeros(8, 1)),
    -np.log(by_quadrature(lambda x, v: x * v)),
    wrong={
        "the Bernoulli's": -np.logaddexp(0, ell),
        "the Bernoulli's, and the ½ made good everywhere": math.log(2) - np.logaddexp(0, ell),
    },
)

# %% mystnb={"image": {"alt": "Two panels. Left, total mass against the logit from minus 20 to 20: a peak of one half at zero that falls to 0.05 on both sides, far below the line at 1, which is the continuous Bernoulli. Right, against grey x from 0 to 1, the curve of grey BCE at logit 4, with a small area under it, and the continuous Bernoulli's, of the same shape and about four times as high."}}
wide = np.linspace(-20, 20, 400)
mass = np.tanh(wide / 2) / wide
assert mass.max() < 0.5
assert mass.min() < 0.051
assert 0.23 < np.tanh(2) / 4 < 0.25
grey = torch.linspace(0, 1, 200)
with plots.style():
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.1))
    left.plot(wide, mass, color=plots.COLOURS.q, label="grey BCE")
    left.axhline(1, color=plots.COLOURS.p, ls="--", label="continuous Bernoulli")
    left.set(xlabel="logit ℓ", ylabel="mass on [0, 1]", ylim=(0, 1.45), title="BCE on greys: mass is missing")
    left.legend(loc="upper right")
    curve = (4 * grey - math.log1p(math.exp(4))).exp()
    right.fill_between(grey, curve, color=plots.COLOURS.q, alpha=0.25, lw=0)
    right.plot(grey, curve, color=plots.COLOURS.q)
    right.plot(
        grey, continuous_bernoulli(torch.tensor([4.0])).log_prob(grey[:, None]).exp(), color=plots.COLOURS.p, ls="--"
    )
    right.set(xlabel="grey x", ylabel="density", title="At ℓ = 4, a quarter of a density")

# %% [markdown]
# Does it matter? Take the plainest lookup table there is, the digit's label in and 64 logits out, and greys in the open
# interval, $(\text{count} + \frac12)/17$. For both formulas the derivative of the mean score is (mean grey) − (mean of the distribution), so the best entry is the logit whose *mean* is the mean grey of that
# label's images. But the means differ: the Bernoulli's is $\operatorname{sigmoid}(\ell)$, the continuous one's is not. *Guess before you run: after
# division by its mass, is the BCE's table a good density?*

# %%
greys, new_greys = (digits.train + 0.5) / 17, (digits.test + 0.5) / 17
labels, new_labels = digits.train_labels.long(), digits.test_labels.long()
mean_grey = torch.stack([greys[labels == k].mean(0) for k in range(10)])  # (10, 64)

low, high = torch.full((10, 64), -60.0), torch.full((10, 64), 60.0)
for _ in range(60):  # bisection: the continuous Bernoulli's mean rises with its logit
    middle = (low + high) / 2
    too_dark = continuous_bernoulli(middle).mean > mean_grey
    low, high = torch.where(too_dark, low, middle), torch.where(too_dark, middle, high)
bce_logits, own_logits = mean_grey.logit(), (low + high) / 2


def mean_score(logits, normalised):
    score = new_greys * logits[new_labels] - torch.nn.functional.softplus(logits[new_labels])
    log_mass = (torch.tanh(logits / 2) / logits).abs().log()[new_labels]
    return (score - log_mass if normalised else score).sum(-1).mean()


raw, divided, own = mean_score(bce_logits, False), mean_score(bce_logits, True), mean_score(own_logits, True)
assert divided - raw > 64 * math.log(2)
assert 37 < own - divided < 39
print(f"grey BCE, called a log-likelihood           {raw:7.1f} nats per digit")
print(f"the same logits, divided by their mass      {divided:7.1f}")
print(f"continuous Bernoulli at its own best logits {own:7.1f}")
believed = continuous_bernoulli(torch.tensor([0.1]).logit()).mean.item()
print(f"a pixel of mean grey 0.10: the density with the BCE's logit believes {believed:.2f}")

# %% [markdown]
# No. The first number is no log density at all: over all grey images its mass is at most $2^{-64}$. Divided by the mass, the same
# logits make a density nearly forty nats poorer than the best entries do, since their pixels believe in another mean.
#
# Be fair: as a *regression* loss BCE on greys is sound. Its minimum is at the mean grey, as that of the squared error is. What it
# cannot do is stand inside an ELBO as $\log p_\theta(x \mid z)$. The bound would be on no one's log evidence, and its
# balance with the KL would be arbitrary. So the package refuses greys, as
# we shall see among the mistakes.
#
# One debt remains: why $(\text{count} + \frac12)/17$? A density wants real numbers, and the fair way to them is to **dequantise**:
# add $u$, uniform on [0, 1), to the count $k$, and divide by 17. A density of $(k + u)/17$ gives the count a probability,
# $P(k) = \int_0^1 p\big(\frac{k + u}{17}\big) \frac{du}{17}$, and by Jensen's inequality
#
# $$\mathbb{E}_u \log p\Big(\frac{k + u}{17}\Big) - \log 17 \;\le\; \log P(k). \tag{09.5}$$
#
# The continuous Bernoulli's log density is a straight line in $x$. So its mean over $u$ is its value in the middle: our
# $(k + \frac12)/17$ *is* dequantisation, with the noise averaged out exactly. And (09.5) turns the nats of a density into nats of
# integers, which can be compared with those of any model of counts.

# %%
logit, k = own_logits[3].numpy(), np.arange(17)[:, None]  # the table's entry for the label 3
node, weight = np.polynomial.legendre.leggauss(20)
on_line = np.log(logit / np.expm1(logit)) + logit * (k[..., None] + (node[:, None] + 1) / 2) / 17  # (17, 20, 64)


def at(x):
    return torch.stack(
        [continuous_bernoulli(own_logits[3][:, None]).log_prob(v.expand(64, 1)) for v in torch.tensor(x)]
    )


checks.quadrature(
    "09.9a",
    "continuous Bernoulli: the log density averaged over the dequantising noise = its value at (k + ½)/17",
    at((k + 0.5) / 17),
    (weight[:, None] * on_line).sum(1) / 2,
    wrong={"at k/16, as greys are usually scaled": at(k / 16), "at k/17": at(k / 17)},
)


def log_cell(logits, k):
    return logits * (k / 17) + (torch.expm1(logits / 17) / torch.expm1(logits)).log()


assert torch.allclose(sum(log_cell(own_logits, k).exp() for k in range(17)), torch.ones(10, 64))
log_mass = log_cell(own_logits[new_labels], digits.test).sum(-1)  # log P of each held-out digit's counts
line = continuous_bernoulli(own_logits[new_labels]).log_prob(new_greys)
checks.inequality(
    "09.9b",
    "dequantised log density − 64 log 17 ≤ log P(counts), for every held-out digit",
    line - 64 * math.log(17),
    log_mass,
    wrong={"the density's own nats": line, "log 17 once for the image": line - math.log(17)},
)
print(
    f"the table as a model of counts: {log_mass.mean():.1f} nats per digit; (09.5) says at least {(line - 64 * math.log(17)).mean():.1f}"
)

# %% [markdown]
# ## Counts: sixteen grains of ink
#
# Look at how the digits were made: each pixel counts the inked dots in a 4 × 4 square. So it *is* a count, from 0 to 16,
# and the textbook's choice for a count is the Binomial,
#
# $$p_\theta(x \mid z) = \prod_{d=1}^{D} \binom{16}{x_d}\, p_d^{x_d} (1 - p_d)^{16 - x_d}. \tag{09.6}$$
#
# Its rival has no such story. It takes a Normal and *rounds* it to the nearest integer, with everything beyond the ends
# swept into 0 and 16: $P(x_d = k) = \Phi\big(\frac{k + 1/2 - \mu_d}{\sigma_d}\big) - \Phi\big(\frac{k - 1/2 - \mu_d}{\sigma_d}\big)$ inside. Both give
# *probabilities of the same integers*, so their nats may be compared, which those of a density and of a probability may
# not.
#
# First the test that they do sum to one. Then two variational autoencoders, alike but for the head. The latent has two
# dimensions; the decoder gives 64 logits, or 64 centres and 64 log scales. The bound is the line that opened the series. Each
# head starts from the pixels' means (and spreads). *Which head gives a new digit the higher
# probability: the one with the story, or the one without? By how much?*
#
# ELBOs could mislead: one encoder may be worse than the other. With two latents we need not trust them. Put a fine grid on
# the plane of $z$, tabulate the 17 probabilities of each pixel at each grid point, and sum: that is $p_\theta(x)$ itself.

# %%
levels = torch.arange(17.0)
several = torch.tensor([[-40.0], [-1.0], [3.0]])  # logits, or centres
spreads = torch.tensor([[0.01], [0.7], [30.0]])


def sum_over_levels(log_prob):
    return torch.stack([log_prob(torch.full((3, 1), k)).exp() for k in levels.tolist()]).sum(0)


rounded = discretised_normal(several, spreads, 0, 16)
plain = sum_over_levels(diagonal_normal(several, spreads).log_prob)
cells = [stats.norm(m, s).cdf(16.5) - stats.norm(m, s).cdf(-0.5) for m, s in torch.cat([several, spreads], -1).tolist()]
checks.enumeration(
    "09.8",
    "Binomial and rounded Normal: the probabilities of 0 … 16 add up to 1",
    torch.stack([sum_over_levels(binomial(several, 16).log_prob), sum_over_levels(rounded.log_prob)]),
    np.ones((2, 3)),
    wrong={
        "the density at the integers": torch.stack([plain, plain]),
        "tails beyond the ends left out": np.array([cells, cells]),
    },
)


# %%
def train_vae(head, biases, num_epochs=30):
    _ = torch.manual_seed(1)
    model = models.LatentVariableModel(families.standard_normal(2), head)
    q = DiagonalNormalHead(mlp(64, 64, DiagonalNormalHead.num_outputs(2)), 2)
    with torch.no_grad():
        q.network[0].weight.mul_(0.2)  # the inputs go up to 16
        head.network[-1].bias.copy_(biases)
    num_samples = 1

    def bound(x):
        return elbo(draw(model.given(x), q(x), num_samples).log_weight)

    optimiser = torch.optim.Adam([*model.parameters(), *q.parameters()], lr=5e-3)
    training.fit(bound, optimiser, digits.train, num_steps=15 * num_epochs, batch_size=100)
    return model.requires_grad_(False), q.requires_grad_(False)


mean, sd = digits.train.mean(0), digits.train.std(0)
story = BinomialHead(mlp(2, 64, 64), 64, total_count=16)
rounding = DiscretisedNormalHead(mlp(2, 64, 128), 64, low=0, high=16)
machines = {
    "Binomial": train_vae(story, ((mean + 0.05) / 16.1).logit()),
    "rounded Normal": train_vae(rounding, torch.cat([mean, (sd + 0.3).log()])),
}


# %%
def log_evidence(model, x, side=41):
    """log Σ_z p(z) p(x | z) over a grid on [−5, 5]², for counts x of shape (N, 64): shape (N,)."""
    axis = torch.linspace(-5, 5, side)
    z = torch.cartesian_prod(axis, axis)
    p = model.likelihood(z).base_dist
    table = torch.stack([p.log_prob(torch.full((64,), k)) for k in levels.tolist()], -1)  # (G, 64, 17)
    log_likelihood = table.flatten(1) @ one_hot(x.long(), 17).double().flatten(1).T  # (G, N)
    log_prior = model.prior().log_prob(z).log_softmax(0)
    return (log_prior[:, None] + log_likelihood).logsumexp(0)


exact, bounds = {}, {}
for name, (model, q) in machines.items():
    x, num_samples = digits.test, 50
    exact[name] = log_evidence(model, x)
    bounds[name] = elbo(draw(model.given(x), q(x), num_samples).log_weight)
    assert (exact[name].mean() - log_evidence(model, x, side=35).mean()).abs() < 0.3  # the grid is fine enough
    assert exact[name].mean() > bounds[name].mean()
    print(f"{name:<15} held out: log p(x) {exact[name].mean():7.0f} nats per digit")
advantage = exact["rounded Normal"] - exact["Binomial"]
assert 50 < advantage.mean() < 60
assert log_mass.mean() - math.log(10) > exact["Binomial"].mean() + 30
print(f"the rounded Normal is ahead for {100 * (advantage > 0).double().mean():.0f} % of the held-out digits")
model, q = machines["Binomial"]
p = model.likelihood(q(digits.test).mean)
print(
    f"squared error / Binomial variance: {((digits.test - p.mean) ** 2).sum() / p.variance.sum():.1f}, and should be 1"
)

# %% [markdown]
# The story loses, by more than fifty nats a digit, or 0.8 per pixel. It even loses to the
# table above, which knows a label and nothing else (the label is worth at most $\log 10 = 2.3$ nats).
#
# Look at the last line. The Binomial has one number per pixel, and that number fixes the spread too: a standard deviation of at
# most $\sqrt{16}/2 = 2$ grains, reached at $p = \frac12$. It assumes that, given $z$, the sixteen dots are inked
# *independently*. Around the mean that the encoder's code stands for, the squared errors are five times what it
# expects. The rounded Normal has a second number, and may say "0 or 16, I cannot tell". (Whether it is this second number that wins, we have not tested on its own.)

# %% mystnb={"image": {"alt": "Three rows of images: held-out digits in grey; samples of the Binomial VAE, smooth greys; samples of the rounded-Normal VAE, with more contrast and more noise. Below, bars of one pixel's probabilities at one z: the Binomial is a hump at low counts, the rounded Normal is spread evenly from 0 to 16 with high bars at both ends."}}
with torch.no_grad():
    _ = torch.manual_seed(3)
    z = torch.randn(14, 2)
    sheet = torch.cat([digits.test[:14], *(model.likelihood(z).sample() for model, _ in machines.values())])
    pmfs = {
        name: torch.stack([m.likelihood(z[:1]).base_dist.log_prob(torch.full((64,), k))[0].exp() for k in levels])
        for name, (m, _) in machines.items()
    }  # (17, 64) each
sd = {name: ((p * levels[:, None] ** 2).sum(0) - (p * levels[:, None]).sum(0) ** 2).sqrt() for name, p in pmfs.items()}
pixel = int(sd["rounded Normal"].argmax())
assert sd["Binomial"].max() <= 2
assert sd["rounded Normal"][pixel] > 4
with plots.style():
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(7, 4.2), height_ratios=[1.2, 1])
    plots.images(sheet, top, vmin=0, vmax=16, num_cols=14, row_labels=["digits", "Binomial", "rounded N."])
    top.set_title("The head with the noisier samples is the better distribution")
    for shift, (name, chances), colour_ in zip(
        (-0.2, 0.2), pmfs.items(), (plots.COLOURS.q, plots.COLOURS.p), strict=True
    ):
        bottom.bar(levels + shift, chances[:, pixel], width=0.4, color=colour_, label=name)
    bottom.set_xticks(range(0, 17, 2))
    bottom.set(xlabel="count of the pixel where the rounded Normal is widest, given one z", ylabel="probability")
    bottom.legend()

# %% [markdown]
# Which one looks better? Many would say the smooth Binomial: its samples are almost means. Which one is the better
# *distribution* is not a matter of looks: it is measured in nats. Exercises 09.E2 and 09.E4 go on: a count
# with a spread of its own, and a table of frequencies without any form.
#
# ## Real numbers: what squared error has chosen
#
# The other habit of tutorials: "reconstruction" by squared error, summed over the pixels, plus the KL. Which likelihood is
# that? For a Normal decoder with a fixed variance,
#
# $$-\log \mathcal{N}(x \mid f(z), \sigma^2 I) = \frac{\lVert x - f(z) \rVert^2}{2 \sigma^2} + \frac D2 \log(2\pi\sigma^2). \tag{09.7}$$
#
# The factor before the square is one exactly when $\sigma^2 = \frac12$. Then
#
# $$-\mathcal{L} = \mathbb{E}_q\lVert x - f(z)\rVert^2 + \mathrm{KL}(q_\phi(z \mid x) \,\|\, p(z)) + \frac D2 \log \pi, \tag{09.8}$$
#
# a loss plus a constant: same gradients, same optimum. For $D = 64$ the constant is 36.6 nats, and a loss reported without it is
# not a bound. So there is no such thing as "no assumption": a standard deviation of 0.71 for every pixel, on data whose
# range is 1.

# %%
x = greys[:20]
network = mlp(2, 16, 64)
q = DiagonalNormalHead(mlp(64, 16, 4), 2)
decoder = NormalHead(network, 64, scale=torch.tensor(math.sqrt(0.5)))

_ = torch.manual_seed(0)
bound = elbo_analytic_kl(lambda z: decoder(z).log_prob(x), q(x), families.standard_normal(2)(), num_samples=1)
_ = torch.manual_seed(0)
mean, sd = q(x).mean, q(x).stddev
z = mean + sd * torch.randn(1, 20, 2)[0]
kl = 0.5 * (mean**2 + sd**2 - 1 - 2 * sd.log()).sum(-1)
square = mse_loss(network(z), x, reduction="none")
constant = 32 * math.log(math.pi)
checks.exact(
    "09.3",
    "a Normal decoder with σ² = ½: −𝓛 = summed squared error + KL + (D/2) log π",
    -bound,
    square.sum(-1) + kl + constant,
    wrong={
        "the constant dropped": square.sum(-1) + kl,
        "σ² = 1": square.sum(-1) + kl + 32 * math.log(2 * math.pi),
        "the mean over pixels": square.mean(-1) + kl + constant,
    },
)

# %% [markdown]
# With the *mean* over pixels the square's factor is $1/D$, so $\sigma^2 = D/2$: for 64 pixels a standard deviation of 5.7, on
# data whose range is 1. A decoder that expects so little of itself has every reason to ignore its latent. Exercise 09.E1 gives the
# KL a weight as well, and chapter 11 learns σ instead of choosing it.
#
# ## Leaving the Gaussian world
#
# Heads give $p_\theta(x \mid z)$, one simple distribution for each $z$. The data see the average over $z$:
# $p_\theta(x) = \int p(z)\,p_\theta(x \mid z)\,dz$. What can that be? The post says: with hidden layers and non-linearities $f$ and $g$ are
# *likely* to be far from linear, and the joint is no longer a Gaussian. What exactly is true? For a standard normal prior and
# $x \mid z \sim \mathcal{N}(f(z), g(z))$ with $g$ the covariance,
#
# > the joint $p_\theta(x, z)$ is Gaussian **if and only if** $f$ is affine and $g$ is constant (but for a set of $z$ without
# > probability).
#
# *If*: then $x = Wz + b + \text{noise}$ is a linear map of normal variables. *Only if*: in a Gaussian joint the conditional mean
# of $x$ given $z$ is affine in $z$, and the conditional covariance the same for all $z$; but these *are* $f$ and $g$.
#
# So the "likely" belongs to the weights alone. A hidden layer *can* still be affine: two ReLU units make
# $\max(z, 0) - \max(-z, 0) = z$. But for one hidden layer of tanh or ReLU units, the weights that do so are a set of measure zero.
#
# Begin with the affine case, in numbers: real eruptions, the linear decoder of
# [chapter 06](06_learning_theta_and_phi.ipynb) at its maximum likelihood, $p_\theta(x)$ once by the integral over $z$ and once as the
# Normal that it has to be.

# %%
geyser = data.old_faithful()
every_other = geyser[::2]
u, new_u = ((part - every_other.mean(0)) / every_other.std(0) for part in (every_other, geyser[1::2]))
nodes = torch.linspace(-7, 7, 281)[:, None]  # z, finely
log_weights = Normal(0.0, 1.0).log_prob(nodes[:, 0]).log_softmax(0)


def log_density(head, x):
    """log p(x) = log Σ_z p(z) p(x | z): for x of shape (N, 2), shape (N,)."""
    return (log_weights + head(nodes).log_prob(x[:, None, :])).logsumexp(-1)


straight = models.probabilistic_pca_mle(u, 1).requires_grad_(False)
W, b, variance = straight.weight.numpy(), straight.loc.numpy(), straight.noise_scale.square().mean().item()
places = u.numpy()
checks.quadrature(
    "09.4a",
    "linear mean, constant variance: ∫ p(z) p(x|z) dz = N(x | b, W Wᵀ + σ² I)",
    log_density(straight.likelihood, u),
    stats.multivariate_normal(b, W @ W.T + variance * np.eye(2)).logpdf(places),
    wrong={
        "σ in place of σ²": stats.multivariate_normal(b, W @ W.T + math.sqrt(variance) * np.eye(2)).logpdf(places),
        "only the diagonal of W Wᵀ": stats.multivariate_normal(b, np.diag((W**2)[:, 0]) + variance * np.eye(2)).logpdf(
            places
        ),
    },
)

# %% [markdown]
# Now the smallest network with a bend: one ReLU unit, $x = a \max(z, 0) + \sigma\epsilon$. For half of all $z$ it says zero; for the other half it
# is a line. So the density is half a Normal at zero, and half a piece that leans to the right:
#
# $$p_\theta(x) = \tfrac12\, \mathcal{N}(x \mid 0, \sigma^2) + \mathcal{N}(x \mid 0, a^2 + \sigma^2)\;
#   \Phi\!\Big(\frac{a\, x}{\sigma \sqrt{a^2 + \sigma^2}}\Big). \tag{09.9}$$
#
# The second term: over all $z$ the line would give $\mathcal{N}(x \mid 0, a^2 + \sigma^2)$, and the last factor is the posterior
# probability that $z > 0$, by Bayes.
#
# A third decoder, for the sceptic. The theorem speaks of the *joint*. Can a bent decoder have a joint that is not Gaussian, and data
# that *are*? Fold the line like a Z: between the quartiles of $z$, let $f$ run up, back down, and up again, each three times
# as fast on the scale of probabilities, so that $f(z)$ is once more exactly standard normal. Then $x = f(z) + \sigma\epsilon$ is
# exactly $\mathcal{N}(0, 1 + \sigma^2)$. No amount of data $x$ can tell it from a straight decoder.
#
# And a fourth, for $g$: let $f = 0$ be as straight as can be, and let only the spread move, $x \mid z \sim \mathcal{N}(0, e^{z}/4)$. Its
# **kurtosis**, the mean fourth power of the standardised variable, is $3e \approx 8.2$. That of every Normal is 3.

# %%
a, noise = 1.8, 0.3
total = math.hypot(a, noise)


def relu_density(x):
    return 0.5 * stats.norm.pdf(x, 0, noise) + stats.norm.pdf(x, 0, total) * stats.norm.cdf(a * x / (noise * total))


def integral(x, f, kinks):
    """p(x) for one x: the average of p(x | z) over the prior, with SciPy's quadrature between the kinks of f."""

    def integrand(z):
        return stats.norm.pdf(z) * stats.norm.pdf(x, f(torch.tensor(z)).item(), noise)

    return sum(integrate.quad(integrand, *ends, epsabs=1e-11)[0] for ends in itertools.pairwise([-8, *kinks, 8]))


at = np.array([-2.0, -0.5, 0.0, 0.3, 1.4])
mean, sd = a / math.sqrt(2 * math.pi), math.sqrt(a**2 * (0.5 - 0.5 / math.pi) + noise**2)  # of relu(z): 1/√2π, ½ − 1/2π
checks.quadrature(
    "09.4b",
    "one ReLU unit: the density (09.9) = the integral over z",
    relu_density(at),
    [integral(x, lambda z: a * z.relu(), [0.0]) for x in at],
    wrong={
        "the Normal of the same mean and variance": stats.norm.pdf(at, mean, sd),
        "two whole Normals": 0.5 * stats.norm.pdf(at, 0, noise) + 0.5 * stats.norm.pdf(at, 0, total),
    },
)


# %%
def zigzag(z):
    """Continuous, not affine, and standard normal when z is: each third of the middle half covers it once."""
    u = Normal(0.0, 1.0).cdf(z)
    v = 2 * (u - 0.25)
    folded = torch.where(v < 1 / 3, 3 * v, torch.where(v < 2 / 3, 2 - 3 * v, 3 * v - 2))
    u = torch.where((v > 0) & (v < 1), 0.25 + folded / 2, u)
    return Normal(0.0, 1.0).icdf(u)


kinks = stats.norm.ppf([0.25, 5 / 12, 7 / 12, 0.75])
checks.quadrature(
    "09.4c",
    "the Z-shaped decoder: not affine, and its data exactly N(0, 1 + σ²)",
    stats.norm.pdf(at, 0, math.sqrt(1 + noise**2)),
    [integral(x, zigzag, kinks) for x in at],
    wrong={
        "a clipped line instead of the Z": [integral(x, lambda z: z.clamp(kinks[0], kinks[3]), kinks) for x in at],
        "the noise not added": stats.norm.pdf(at),
    },
)
fine_z, fine_x = np.linspace(-9, 9, 181)[:, None], np.linspace(-160, 160, 8001)
funnel = (stats.norm.pdf(fine_z) * stats.norm.pdf(fine_x, 0, 0.5 * np.exp(fine_z / 2))).sum(0)
second, fourth = ((funnel * fine_x**k).sum() / funnel.sum() for k in (2, 4))
checks.quadrature(
    "09.4d",
    "f = 0 and g moving: the kurtosis is 3e",
    3 * math.e,
    fourth / second**2,
    wrong={"a Normal's": 3.0, "e^z/4 read as a standard deviation": 3 * math.exp(4)},
)

# %% mystnb={"image": {"alt": "Four panels above, densities over the plane of z and x: a straight slanted ellipse; a band that is flat for negative z and rises after, like a hockey stick; a band folded like the letter Z; a funnel that opens to the right. Below each, the density of x: a Normal; a sharp peak at zero with a long right tail, far from the dashed Normal of equal mean and variance; again exactly a Normal; a sharp peak with two long tails."}}
zs, xs = torch.linspace(-3, 3, 241), torch.linspace(-3, 4, 281)
flat = torch.full_like(zs, noise)
decoders = {
    "straight": (zs, flat),
    "one ReLU unit": (a * zs.relu(), flat),
    "a fold": (zigzag(zs), flat),
    "only g moves": (0 * zs, 0.5 * (zs / 2).exp()),
}
prior = Normal(0.0, 1.0).log_prob(zs).softmax(0)
with plots.style():
    fig, axes = plt.subplots(2, 4, figsize=(7.4, 4.6), height_ratios=[1.7, 1], sharex="row", sharey="row")
    for (upper, lower), (name, (f, g)) in zip(axes.T, decoders.items(), strict=True):
        given_z = Normal(f, g).log_prob(xs[:, None]).exp()
        joint = given_z * Normal(0.0, 1.0).log_prob(zs).exp()
        upper.contourf(zs, xs, joint, levels=np.linspace(0.01, 0.54, 9), cmap="Purples", extend="max")
        upper.plot(zs, f, color=plots.COLOURS.accent, lw=1)
        upper.set(xlabel="z", title=name, ylim=(-3, 4))
        marginal = given_z @ prior
        mean = prior @ f
        same = Normal(mean, (prior @ ((f - mean) ** 2 + g**2)).sqrt()).log_prob(xs).exp()
        lower.fill_between(xs, marginal, color=plots.COLOURS.p, alpha=0.25, lw=0)
        lower.plot(xs, marginal, color=plots.COLOURS.p)
        lower.plot(xs, same, color=plots.COLOURS.evidence, ls="--", lw=1.3)
        lower.set(xlabel="x", ylim=(0, 1.05), xticks=[-2, 0, 2, 4])
        assert marginal.max() < 1.05
        far = (marginal - same).abs().max()
        assert far < 0.01 if name in ("straight", "a fold") else far > 0.2
    axes[0, 0].set_ylabel("x")
    axes[1, 0].set_ylabel("density of x")
    title = "Only the straight decoder's joint is Gaussian; the data's density may still be"
    fig.suptitle(title, x=0.01, ha="left", weight="bold", size=12)

# %% [markdown]
# Green is $f$, purple the joint; below, the density of the data, and dashed the Normal with its mean and variance. A bent $f$
# or a moving $g$ makes the *joint* non-Gaussian, whatever else. Whether the *data* look it depends on how it is bent. In practice
# one bends to fit data, so let data speak.
#
# ### The curve that erupts
#
# Old Faithful again, from [chapter 05](05_em_is_coordinate_ascent.ipynb): how long an eruption lasts and how long one waits for the next,
# standardised. Half of the 272 eruptions train, half are held out. One latent number, a decoder of eight hidden units for the
# mean, one σ for both coordinates. The integral over one $z$ is a sum over a grid, so we can maximise $\log p_\theta(x)$
# itself: no encoder, no bound, no gap. *One curve through two clouds: better than a straight line?*
#
# Then ask whether the curved density is one at all: sum it over a fine grid of the
# data's plane. And take its shape from that grid, in two numbers. **Skewness** is the mean of the cubed
# standardised variable, 0 for every Normal; and the kurtosis, 3 for every Normal. For the waiting times they must be those
# that follow from $f$'s central moments $c_k$ under the prior: the noise adds nothing to the third, and $6 c_2 \sigma^2 + 3\sigma^4$ to
# the fourth.

# %%
_ = torch.manual_seed(1)
curved = NormalHead(mlp(1, 8, 2), 2, scale=torch.tensor(0.7))
optimiser = torch.optim.Adam(curved.parameters(), lr=0.03)
_ = training.fit(lambda x: log_density(curved, x), optimiser, u, num_steps=300)
_ = curved.requires_grad_(False)

line, curve = (log_density(head, new_u).mean().item() for head in (straight.likelihood, curved))
assert curve - line > 0.5
print(f"held out: straight decoder {line:.1f} nats per eruption, curved {curve:.1f}")
side = torch.linspace(-4, 4, 161)
plane = torch.cartesian_prod(side, side)
cell = (side[1] - side[0]).item() ** 2
on_plane = (log_density(curved, plane).exp() * cell).numpy()
waiting = plane[:, 1].numpy()
mean = (on_plane * waiting).sum()
moments = [(on_plane * (waiting - mean) ** k).sum() for k in (2, 3, 4)]

prior, out = log_weights.exp().numpy(), curved(nodes).mean[:, 1].numpy()
c2, c3, c4 = ((prior * (out - (prior * out).sum()) ** k).sum() for k in (2, 3, 4))
s2 = curved.scale.item() ** 2
var = c2 + s2
checks.quadrature(
    "09.4e",
    "the curved decoder's density integrates to 1; skewness, kurtosis: on the plane = from f's moments",
    [on_plane.sum(), moments[1] / moments[0] ** 1.5, moments[2] / moments[0] ** 2],
    [1.0, c3 / var**1.5, (c4 + 6 * c2 * s2 + 3 * s2**2) / var**2],
    wrong={"a Gaussian's": [1.0, 0.0, 3.0], "noise left out": [1.0, c3 / c2**1.5, c4 / c2**2]},
)
print(f"kurtosis of the waiting times: {moments[2] / moments[0] ** 2:.1f} (two humps: far below a Normal's 3)")
assert moments[2] / moments[0] ** 2 < 2

# %% [markdown]
# Half a nat per eruption, on eruptions it never saw, from one latent number.
#
# Now turn the non-linearity on, slowly. Take $f_t = (1 - t)\, f_{\text{straight}} + t\, f_{\text{curved}}$, and the noise between
# the two in the same way. At $t = 0$ the density is exactly the Normal of check 09.4a. Play it.

# %% mystnb={"image": {"alt": "Thirteen frames. Left, the plane of standardised duration and waiting time with 272 eruptions in two clouds; a straight line with an elliptical density around it bends into an S-shaped curve, and the density breaks into two islands that cover the clouds. Right, the density of the waiting time turns from one hump, equal to the dashed Normal, into two."}} tags=["nbval-ignore-output"]
f0, f1 = straight.likelihood(nodes), curved(nodes)
scale0, scale1 = math.sqrt(variance), curved.scale.item()
if (f0.mean[-1, 0] - f0.mean[0, 0]) * (f1.mean[-1, 0] - f1.mean[0, 0]) < 0:  # z and −z are the same under the prior
    f0 = straight.likelihood(-nodes)
speed = (f1.mean.diff(dim=0) / (nodes[1] - nodes[0])).norm(dim=-1)
in_gap, likely = f1.mean[1:, 0].abs() < 0.5, nodes[1:, 0].abs() < 2
assert speed[in_gap].min() > 2 * speed[likely & ~in_gap].median()  # quick through the gap, slow in the clouds
pane_x, pane_y = torch.linspace(-3, 3, 71), torch.linspace(-3, 3, 71)
all_u = torch.cat([u, new_u])


def scene(fig, frame):
    t = frame / 12
    f, s = (1 - t) * f0.mean + t * f1.mean, (1 - t) * scale0 + t * scale1
    across, up = (Normal(f[:, d], s).log_prob(v[:, None]).exp() for d, v in ((0, pane_x), (1, pane_y)))
    density = (up * log_weights.exp()) @ across.T
    left, right = fig.subplots(1, 2, width_ratios=[1.15, 1])
    left.contourf(pane_x, pane_y, density, levels=[0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.7], cmap="Purples", extend="max")
    left.scatter(*all_u.T, s=5, color=plots.COLOURS.data, linewidths=0)
    seen = (nodes[:, 0].abs() < 2.5).numpy()
    left.plot(*f[seen].T, color=plots.COLOURS.accent)
    left.set(xlabel="duration (sd)", ylabel="waiting (sd)", title=f"t = {t:.2f}", xlim=(-3, 3), ylim=(-3, 3))
    marginal = up @ log_weights.exp()
    right.fill_between(pane_y, marginal, color=plots.COLOURS.p, alpha=0.25, lw=0)
    right.plot(pane_y, marginal, color=plots.COLOURS.p)
    mean = (f[:, 1] * log_weights.exp()).sum()
    sd = (((f[:, 1] - mean) ** 2 * log_weights.exp()).sum() + s**2).sqrt()
    right.plot(pane_y, Normal(mean, sd).log_prob(pane_y).exp(), "--", color=plots.COLOURS.evidence, lw=1.3)
    right.set(xlabel="waiting (sd)", ylabel="density", xlim=(-3, 3), ylim=(0, 0.75), title="of which the waiting times")


words = (
    "A straight decoder bends into a curve through the two clouds of eruptions; its density leaves the Gaussian world."
)
plots.animate(scene, 13, words, name="the non-linearity turned on", figsize=(6.8, 3.4), interval_ms=350)

# %% [markdown]
# The ellipse breaks in two. No parameter anywhere says "two clouds"; the decoder runs quickly through the gap, lingers
# in the clouds, and where it lingers there is mass.
#
# ## Numbers at the edge
#
# A network can say *anything*: early in training, or after a step too long, a logit of ten thousand or a log scale of −69.
# A head must answer with a finite number, or one bad pixel turns the whole loss into NaN. Compare three ways to write the
# Bernoulli at $\ell = \pm 10^4$: through the probability; through the probability, clamped away from 0 and 1, a common
# remedy; and through the logit, as in the right half of (09.2).
#
# Then the same for the other heads, over sixty orders of magnitude of the scale.

# %%
ell = torch.tensor([-1e4, -1e4, 1e4, 1e4])
bit = torch.tensor([0.0, 1.0, 0.0, 1.0])
p = ell.sigmoid()
naive = bit * p.log() + (1 - bit) * (1 - p).log()
clamped = p.clamp(1e-7, 1 - 1e-7)
by_clamp = bit * clamped.log() + (1 - bit) * (1 - clamped).log()
v = torch.tensor([1e4], requires_grad=True)
(slope,) = torch.autograd.grad((1 - v.sigmoid().clamp(1e-7, 1 - 1e-7)).log(), v)
assert slope.item() == 0  # clamped: no gradient where it is most wrong
print("through p:     ", naive.tolist())
print("clamped:       ", [round(v, 1) + 0.0 for v in by_clamp.tolist()])
print("through logit: ", [v + 0.0 for v in bernoulli(ell[:, None]).log_prob(bit[:, None]).tolist()])

# %%
sizes = torch.logspace(-30, 30, 7)[:, None]
on_one = [
    bernoulli(ell[:1, None]).log_prob(torch.ones(1, 1)),
    binomial(ell[2:3, None], 16).log_prob(torch.full((1, 1), 8.0)),
    continuous_bernoulli(ell[2:3, None]).log_prob(torch.ones(1, 1)),
]
value = torch.cat(
    [*on_one, diagonal_normal(torch.zeros(7, 1), sizes).log_prob(sizes)]
)  # one standard deviation from the mean
normals = [-0.5 - k * math.log(10) - 0.5 * math.log(2 * math.pi) for k in range(-30, 31, 10)]
checks.exact(
    "09.5a",
    "logits of ±10⁴ and scales from 10⁻³⁰ to 10³⁰: finite, and right",
    value,
    [-1e4, math.log(math.comb(16, 8)) - 8e4, math.log(1e4), *normals],
    wrong={
        "probabilities clamped at 1e-7": [
            math.log(1e-7),
            math.log(12870) + 8 * math.log(1e-7),
            math.log(16.1),
            *normals,
        ],
        "scales clamped at 1e-6": [
            -1e4,
            math.log(12870) - 8e4,
            math.log(1e4),
            *[
                -0.5 * 10.0 ** (2 * min(k + 6, 0)) - max(k, -6) * math.log(10) - 0.5 * math.log(2 * math.pi)
                for k in range(-30, 31, 10)
            ],
        ],
    },
)

# %%
edge = discretised_normal(torch.full((7, 1), 8.3), sizes, 0, 16)
log_probs = torch.stack([edge.log_prob(torch.full((7, 1), k)) for k in levels.tolist()])
assert log_probs.isfinite().all()
assert (log_probs <= 0).all()
differences = np.array([stats.norm.cdf(16.5, 8.3, s) - stats.norm.cdf(-0.5, 8.3, s) for s in sizes[:, 0].numpy()])
checks.enumeration(
    "09.5b",
    "the rounded Normal's probabilities add up to 1 at every scale from 10⁻³⁰ to 10³⁰",
    log_probs.exp().sum(0),
    np.ones(7),
    wrong={"Φ(b) − Φ(a) without the tails": differences},
)
for name, make, value in (
    ("Bernoulli", bernoulli, 1.0),
    ("Binomial", lambda v: binomial(v, 16), 5.0),
    ("continuous Bernoulli", continuous_bernoulli, 0.3),
):
    v = torch.tensor([[-1e4], [0.0], [1e4]], requires_grad=True)
    (slope,) = torch.autograd.grad(make(v).log_prob(torch.full((3, 1), value)).sum(), v)
    assert slope.isfinite().all()
    print(f"{name:<21} slope at ℓ = −10⁴, 0, 10⁴:", [round(s, 2) + 0.0 for s in slope[:, 0].tolist()])

# %% [markdown]
# The first way gives NaN or infinity. The second is finite and wrong by 9,984 nats, and its gradient is zero: the network never
# learns of its error. The third is right. So are the other heads. The last lines are their *slopes*: a value can be finite and its slope NaN,
# since autograd also differentiates the branches that a `where` discards.
#
# Two warnings. First, *finite is not right*. `torch.distributions` has a
# `ContinuousBernoulli`. It keeps its probability away from 0 and 1 so that nothing overflows, in the normaliser but not in the
# exponential. For a confident pixel the two no longer belong together. Second, all of this holds in float64. A Normal squares its scale on the
# way, and float32 has no number as small as $10^{-60}$.


# %%
def total_mass(log_prob, v):
    """∫ over [0, 1]: nearly all of it lies within 60/ℓ of x = 1."""
    return integrate.quad(lambda s: math.exp(log_prob(torch.tensor([1 - s])).item()), 0, min(1, 60 / v), epsabs=1e-11)[
        0
    ]


confident = [10.0, 40.0, 100.0, 1e4]
torchs = [total_mass(ContinuousBernoulli(logits=torch.tensor([v])).log_prob, v) for v in confident]
checks.quadrature(
    "09.5c",
    "the package's continuous Bernoulli integrates to 1 at ℓ = 10, 40, 100, 10⁴",
    [total_mass(continuous_bernoulli(torch.tensor([v])).log_prob, v) for v in confident],
    np.ones(4),
    wrong={"torch's, whose normaliser is clamped": torchs},
)
print("torch's total mass at ℓ = 10, 40, 100, 10⁴:", ", ".join(f"{m:.3g}" for m in torchs))
single = Normal(torch.tensor(0.0, dtype=torch.float32), torch.tensor(1e-30, dtype=torch.float32))
print(
    "float32, scale 1e-30, at one standard deviation:", single.log_prob(torch.tensor(1e-30, dtype=torch.float32)).item()
)

# %% [markdown]
# No data need a scale of $10^{-30}$; a network that asks for one is running away. Give the head a floor (`min_scale`) where
# that can happen.
#
# ## A mistake people make
#
# Some code puts out $\log \sigma$, some $\log \sigma^2$ (as the original VAE paper does). Either is fine. Then somebody combines
# the two: draws with `exp(logvar)` as the standard deviation and scores, or takes the KL, with `exp(logvar / 2)`. Nothing crashes, and the loss goes down.
# The density that is scored is not the one that is sampled, and the "ELBO" is a bound on nothing. The checker
# `samples_match_density` needs only the distribution.
#
# Its companions have been in this chapter already: the mean over pixels where the sum belongs (the wrong answers of checks 09.1a and 09.3), and the
# cross entropy on greys (of check 09.2a). For that one the checker is `density_integrates_to_one`, and the model itself refuses.


# %%
class ExpLogvar(Normal):
    """Scores with σ, draws with σ²: what `exp(logvar)` as a standard deviation amounts to."""

    def sample(self, sample_shape=()):
        return self.loc + self.scale**2 * torch.randn(self._extended_shape(torch.Size(sample_shape)))


def caught(checker, *arguments):
    try:
        checker(*arguments)
    except (checks.CheckFailedError, ValueError) as error:
        return str(error).split(": in coordinate")[0]


_ = torch.manual_seed(0)
sd = torch.tensor(-1.0).exp().sqrt()  # a network said log σ² = −1
assert caught(checkers.samples_match_density, Normal(torch.tensor(0.0), sd)) is None
print("1.", caught(checkers.samples_match_density, ExpLogvar(torch.tensor(0.0), sd)))

grey_bce = Bernoulli(logits=torch.tensor(2.0), validate_args=False)
print("2.", caught(checkers.density_integrates_to_one, lambda x: grey_bce.log_prob(x[:, 0]), [(0.0, 1.0)]))

decoder = models.LatentVariableModel(families.standard_normal(2), BernoulliHead(mlp(2, 8, 64), 64))
print("3.", caught(decoder.given(digits.train[:5] / 16), torch.zeros(1, 5, 2)))

# %% [markdown]
# ## Exercises
#
# **09.E1 · What does this loss assume?** (recall) A repository minimises the squared error, *averaged* over $D$ pixels, plus
# $\beta$ times the KL. Up to a factor and a constant this is the negative ELBO of a decoder $\mathcal{N}(f(z), \sigma^2 I)$. Which
# $\sigma^2$?
#
# <details><summary>Hint</summary>Divide the loss by β, so that the KL stands alone, and compare with (09.7).</details>


# %%
def implied_variance(num_pixels, beta): ...  # your code


ch09.implied_variance.check(implied_variance)

# %% [markdown]
# **09.E2 · A count with a spread of its own.** (code) Mend the Binomial: let each pixel's $p$ be drawn from
# $\mathrm{Beta}(a, b)$ before the grains are. The count is then **Beta–binomial**,
# $P(k) = \binom{n}{k} B(k + a, n - k + b) / B(a, b)$, with $B$ the Beta function. A network gives two numbers per pixel: the
# logit of the mean $m = a/(a + b)$, then the log of the concentration $a + b$ (first all logits, then all log
# concentrations). Return $\log p(x)$, one number per row.
#
# <details><summary>Hint</summary>`torch.lgamma`: log B(a, b) = lgamma(a) + lgamma(b) − lgamma(a + b). The binomial coefficient
# is three of them too.</details>


# %%
def beta_binomial(numbers, counts, total):
    """numbers (N, 2 D), counts (N, D) from 0 to total: log probabilities in nats, (N,)."""
    ...  # your code


ch09.beta_binomial.check(beta_binomial)

# %% [markdown]
# **09.E3 · The shape of a parabola.** (derive) For the decoder $x = a z + b z^2 + \sigma\epsilon$, give the skewness and the kurtosis
# (that of a Normal is 3) as a pair. For which $b$ is the joint Gaussian? Is there a $b \neq 0$ for which the skewness is zero?
#
# <details><summary>Hint</summary>E z² = 1, E z⁴ = 3, E z⁶ = 15, E z⁸ = 105. Take b (z² − 1) instead of b z²: the mean is then 0 and
# nothing else has changed.</details>


# %%
def quadratic_shape(slope, curvature, noise): ...  # your code


ch09.quadratic_shape.check(quadratic_shape)

# %% [markdown]
# **09.E4 · The table without a form.** (a small study) Make a lookup table of frequencies: for each label, each pixel and each of the
# levels $0 \dots n$, how often it occurs among the training images, plus a pseudo-count. Return the mean held-out
# $\log p(x \mid \text{label})$ in nats per image. Then run it on the digits with pseudo-counts 1, 0.3, 0.1 and 0.03. The Binomial
# table for the same labels scores about −175, the continuous Bernoulli's in the text −103. How far is a free form ahead, with sixteen times the entries?
#
# <details><summary>Hint</summary>(hits + pseudo) / (images with this label + pseudo × levels).</details>


# %%
def table_of_frequencies(counts, labels, new_counts, new_labels, levels, pseudo): ...  # your code


ch09.table_of_frequencies.check(table_of_frequencies)

# %% [markdown]
# ## Summary
#
# *How does a network describe a distribution, and which one should it be?* It puts out real numbers; a head maps them onto the
# parameters' range; and the distribution should be one over the data *as they are*.
#
# - **Build.** List the numbers, map them smoothly, sum the log-probabilities. A network is a lookup table whose entries hang
#   together: that is why it answers between entries, and why it can be wrong where neighbours differ.
# - **Choose, and test.** Binary: Bernoulli. Counts: compare, in nats of the same integers; the Binomial's one number lost fifty nats
#   to two. Greys: the continuous Bernoulli, not BCE, whose mass is $\tanh(\ell/2)/\ell$. The test is always the same: does it sum to one?
# - **Say.** Summed squared error + KL is a Normal with $\sigma^2 = \frac12$; the pixel mean makes it $D/2$.
# - **Tell.** The joint is Gaussian if and only if $f$ is affine and $g$ constant. Bent decoders can have densities that no
#   Gaussian has, and one integral computes them, as long as $z$ has few dimensions.
#
# **Sources.** D. P. Kingma & M. Welling (2014), Auto-Encoding Variational Bayes, appendix C (Bernoulli and Gaussian decoders; log
# variances). G. Loaiza-Ganem & J. P. Cunningham (2019), The continuous Bernoulli: fixing a pervasive error in variational
# autoencoders. T. Salimans, A. Karpathy, X. Chen & D. P. Kingma (2017), PixelCNN++ (rounded logistic likelihoods). M. E. Tipping &
# C. M. Bishop (1999), Probabilistic principal component analysis. Data: digits (Alpaydin & Kaynak), wine (UCI), Old Faithful
# (Härdle 1991).
#
# **Next.** All pieces are on the table: a prior, a decoder's distribution, an encoder's. [Chapter
# 10](10_the_variational_autoencoder.ipynb) puts them together and counts every nat.

# %% [markdown]
# ## Solutions


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def implied_variance_solution(num_pixels, beta):
    return num_pixels * beta / 2


ch09.implied_variance.check(implied_variance_solution)
print(f"784 pixels, β = 0.00025: σ = {math.sqrt(implied_variance_solution(784, 0.00025)):.2f}")


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def beta_binomial_solution(numbers, counts, total):
    logits, log_concentration = numbers.chunk(2, dim=-1)
    a, b = (log_concentration.exp() * part for part in (logits.sigmoid(), (-logits).sigmoid()))
    n, one = torch.tensor(float(total)), 1.0

    def log_beta(a, b):
        return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)

    coefficient = torch.lgamma(n + one) - torch.lgamma(counts + one) - torch.lgamma(n - counts + one)
    return (coefficient + log_beta(counts + a, n - counts + b) - log_beta(a, b)).sum(-1)


ch09.beta_binomial.check(beta_binomial_solution)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def quadratic_shape_solution(slope, curvature, noise):
    variance = slope**2 + 2 * curvature**2 + noise**2
    third = 6 * slope**2 * curvature + 8 * curvature**3
    fourth_cumulant = 48 * slope**2 * curvature**2 + 48 * curvature**4
    return third / variance**1.5, 3 + fourth_cumulant / variance**2


ch09.quadratic_shape.check(quadratic_shape_solution)

# %% [markdown] tags=["solution", "hide-cell"]
# <details><summary>09.E3, in words</summary>
#
# The joint is Gaussian only for b = 0: otherwise f is not affine. The skewness has the sign of b, since
# 6 a² b + 8 b³ = 2 b (3 a² + 4 b²), so it vanishes only at b = 0. The fourth cumulant (the fourth central moment less three times the
# squared variance) is 48 b² (a² + b²), and noise adds nothing to a cumulant above the second.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def table_of_frequencies_solution(counts, labels, new_counts, new_labels, levels, pseudo):
    tables = []
    for k in range(int(max(labels.max(), new_labels.max())) + 1):
        alike = one_hot(counts[labels == k].long(), levels).double()  # (images, pixels, levels)
        tables.append(((alike.sum(0) + pseudo) / (len(alike) + pseudo * levels)).log())
    log_prob = torch.stack(tables)[new_labels].gather(-1, new_counts.long()[..., None])
    return log_prob.sum((-2, -1)).mean()


ch09.table_of_frequencies.check(table_of_frequencies_solution)
for pseudo in (1.0, 0.3, 0.1, 0.03):
    score = table_of_frequencies_solution(digits.train, labels, digits.test, new_labels, 17, pseudo)
    print(f"pseudo-count {pseudo:4}: {score:.1f} nats per digit")
chances = (
    torch.stack([digits.train[labels == k].sum(0) + 0.5 for k in range(10)]).T / (16 * labels.bincount() + 1)
).T.logit()
print(f"Binomial table: {binomial(chances[new_labels], 16).log_prob(digits.test).mean():.1f}")

# %% [markdown] tags=["solution", "hide-cell"]
# <details><summary>09.E4, in words</summary>
#
# Nearly eighty nats ahead of the Binomial's table and six or seven ahead of the continuous Bernoulli's. Charge it
# $\log 10 = 2.3$ nats for the label that it is told: it is still about level with the rounded Normal's VAE. A network is worth its
# trouble only when it beats rivals like this one.
#
# </details>
