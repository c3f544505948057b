# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 08 · One posterior per datapoint, then one network for all
#
# **Until now one posterior was enough, or a formula gave them all. If every image has a latent of its own, then $n$ images need $n$ means and $n$
# covariances. What does that cost? And when one network gives all of them in a single pass, what do we pay instead, and
# who pays it?**

# %% jupyter={"source_hidden": true} tags=["remove-cell", "setup"]
import importlib.util

from IPython import get_ipython

if (shell := get_ipython()) is not None:
    if importlib.util.find_spec("vi_tutorial") is None:  # on Colab, say
        shell.run_line_magic("pip", "install --quiet git+https://github.com/vi-tutorial/vi_tutorial")
    shell.run_line_magic("matplotlib", "inline")  # figures below their cells, whatever MPLBACKEND says

# %% mystnb={"image": {"alt": "The map of the series: six boxes joined by arrows, KL, ELBO, phi, theta, networks, what breaks. The fifth, networks with an unknown form, is lit."}}
from vi_tutorial import plots

plots.chain("networks")

# %% [markdown]
# You need [chapter 01](01_the_elbo.ipynb) for the bound and [chapter 02](02_a_fixed_gaussian_joint.ipynb) for diagonal and full
# $q$; [chapter 06](06_learning_theta_and_phi.ipynb) helps. Reading takes 30 minutes.
#
# **Afterwards you can**
#
# - *learn* a posterior for each datapoint, and *count* what it costs as the data grow;
# - *replace* the table of posteriors by an encoder, and *say* when nothing is lost;
# - *measure* what an encoder loses, digit by digit, without noise, on training and on new data;
# - *refine* an encoder's answer, and *see* when refining makes it worse.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import stats
from torch import nn
from torch.distributions import kl_divergence
from torch.nn.functional import softplus

from vi_tutorial import checks, data, families, models, quadrature, training
from vi_tutorial.elbo import draw, elbo
from vi_tutorial.evaluation import best_in_family, gap_ledger
from vi_tutorial.exercises import ch08
from vi_tutorial.networks import BernoulliHead, DiagonalNormalHead, FullNormalHead, mlp

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # the matrices are small: to share them out takes longer than the work
_ = torch.manual_seed(0)

# %% [markdown]
# ## A model that gives each image a latent
#
# The data are scikit-learn's handwritten digits, 8 × 8 pixels, each made black or white. We need a model $p_\theta(x, z)$
# of them, and borrow one. Its prior is $p(z) = \mathcal{N}(0, I)$ in the plane, $L = 2$. Its likelihood is a **decoder**:
# a network that takes a latent $z$ and gives 64 **logits**, the log odds that each pixel is black. How to build such a
# network is the matter of the next chapter, and training one from scratch that of
# [chapter 10](10_the_variational_autoencoder.ipynb). Here it is trained in one cell, with an assistant that we throw away, and
# then **θ never moves again**. For as long as it stands still the model is known, as in the first chapters, and we want posteriors.

# %%
digits = data.digits()
train, test = ((counts >= 8).double() for counts in (digits.train, digits.test))
N, D = train.shape


def new_encoder():
    return DiagonalNormalHead(mlp(D, 64, DiagonalNormalHead.num_outputs(2)), 2)


model = models.LatentVariableModel(families.standard_normal(2), BernoulliHead(mlp(2, 64, D), D))
assistant, num_samples = new_encoder(), 1
optimiser = torch.optim.Adam([*model.parameters(), *assistant.parameters()], lr=5e-3)


def one_draw_bound(q):
    return lambda x: elbo(draw(model.given(x), q(x), num_samples).log_weight)


training.fit(one_draw_bound(assistant), optimiser, train, num_steps=1500, batch_size=100)
_ = model.requires_grad_(False)
print(f"{N} training digits, {len(test)} held out, {D} pixels; θ is fixed")

# %% [markdown]
# With two latent dimensions nothing is hidden. Cover the plane with a grid of step $h$; then
#
# $$
# p_\theta(x) = \int p(z)\, p_\theta(x \mid z)\, dz \approx h^2 \sum_g p(z_g)\, p_\theta(x \mid z_g), \qquad
# p_\theta(z \mid x) = \frac{p(z)\, p_\theta(x \mid z)}{p_\theta(x)}. \tag{08.1}
# $$
#
# For a Bernoulli likelihood with logits $f_\theta(z)$, $\log p_\theta(x \mid z) = x^\top f_\theta(z) - \sum_d \log(1 + e^{f_{\theta,d}(z)})$. The digit stands in the
# first term only, so the table of all digits at all grid points is one matrix product.


# %%
step = 1 / 16
axis = torch.linspace(-6, 6, 193)
z_grid = torch.cartesian_prod(axis, axis)


def log_joint_table(x):
    """log p(x, z) for each digit (rows) at each grid point (columns)."""
    logits = model.likelihood.network(z_grid)
    return x @ logits.T + (model.prior().log_prob(z_grid) - softplus(logits).sum(-1))


x = torch.cat([train[::15], test[::3]])  # 100 of the training digits, then 100 held-out ones
seen, new = slice(0, 100), slice(100, 200)
table = log_joint_table(x)
log_evidence = table.logsumexp(-1) + 2 * math.log(step)
log_posterior = table - log_evidence[:, None]  # a log density on the grid

# %% [markdown]
# Every number of this chapter leans on this evidence, so it gets an oracle that shares nothing with it but the decoder's
# weights: rings instead of squares. In polar coordinates $dz = r\, dr\, d\alpha$; NumPy does the network by hand, and
# multiplies probabilities pixel by pixel.

# %%
radius, radius_weight = np.polynomial.legendre.leggauss(200)
radius, radius_weight = 3.5 * (radius + 1), 3.5 * radius_weight  # from [−1, 1] to [0, 7]
angle = 2 * np.pi * np.arange(300) / 300
ring = radius[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
w1, b1, w2, b2 = (p.numpy() for p in model.likelihood.network.parameters())
black = 1 / (1 + np.exp(-(np.tanh(ring @ w1.T + b1) @ w2.T + b2)))


def by_rings(digit, jacobian=True, prior=True):
    value = np.where(digit.numpy() == 1, black, 1 - black).prod(-1).mean(-1) * 2 * np.pi  # over the angle
    value = value * (np.exp(-(radius**2) / 2) / (2 * np.pi) if prior else 1)
    return np.log((radius_weight * value * (radius if jacobian else 1)).sum())


checks.quadrature(
    "08.5",
    "log p(x) on a square grid = log p(x) on rings, for 10 digits",
    log_evidence[::20],
    [by_rings(digit) for digit in x[::20]],
    wrong={
        "the area of a cell left out": table[::20].logsumexp(-1),
        "the factor r of polar coordinates left out": [by_rings(digit, jacobian=False) for digit in x[::20]],
        "the prior left out": [by_rings(digit, prior=False) for digit in x[::20]],
    },
    tolerance=1e-5,
)
package = quadrature.posterior_on_grid(model, x[:10], side=193, bound=6.0)
assert torch.allclose(package.log_evidence, log_evidence[:10])

# %% [markdown]
# The last two lines are the package's version, `posterior_on_grid`; it agrees. So we can look at exact posteriors. Before you
# look: two zeros, will they have the same posterior? Will all be round?

# %% mystnb={"image": {"alt": "Six panels of the latent plane, each with the contours of one digit's exact posterior and the digit itself in a corner. The posteriors lie in different places and have different sizes; some are slanted ellipses, one is in two pieces."}}
labels = torch.cat([digits.train_labels[::15], digits.test_labels[::3]])
mass = log_posterior.exp() * step**2
means = mass @ z_grid
spread = torch.einsum("ng,ngi,ngj->nij", mass, z_grid - means[:, None], z_grid - means[:, None])
width = torch.linalg.eigvalsh(spread).sqrt()  # smallest and largest standard deviation of each posterior
zeros = torch.nonzero(labels[seen] == 0)[:2, 0].tolist()
shown = [*zeros, int(width[:, 0].argmin()), int((width[:, 1] / width[:, 0]).argmax()), 20, 41]
assert (means[zeros[0]] - means[zeros[1]]).norm() > width[zeros].max()  # two zeros, two places
assert width.max() / width.min() > 10
with plots.style():
    fig, axes = plt.subplots(2, 3, figsize=(7, 4.9))
    for ax, n in zip(axes.flat, shown, strict=True):
        plots.density_contours(log_posterior[n].reshape(193, 193).T, axis, axis, ax, masses=[0.5, 0.95])
        inset = ax.inset_axes([0.72, 0.72, 0.28, 0.28])
        plots.images(x[n : n + 1], inset, vmin=0, vmax=1)
        ax.set(xlim=(-3.6, 3.6), ylim=(-3.6, 3.6), aspect="equal")
    fig.suptitle(
        "Each digit has a posterior of its own: place, size and shape", x=0.01, ha="left", weight="bold", size=12
    )
    fig.supxlabel("$z_1$", size=10)
    fig.supylabel("$z_2$", size=10)
print(f"posterior standard deviations: from {width.min():.2f} to {width.max():.1f}")

# %% [markdown]
# The contours hold 50 % and 95 % of the mass. Neither the same nor round: the two zeros are neighbours, each with its own place and width, and one of the six is torn in two. The
# prior has one width; among the posteriors the widths differ by more than a factor of ten.
# One $q$ for all, as in chapter 02, has nothing to be.
#
# ## $n$ means and $n$ covariances
#
# So each datapoint gets its own parameters. Let $\phi_n = (\mu_n, \log \sigma_n)$ and $q_{\phi_n}(z) = \mathcal{N}(z \mid \mu_n, \operatorname{diag} \sigma_n^2)$. The objective is a sum
# in which each term has parameters that no other term has, so the best of the sum is the sum of the bests:
#
# $$
# \max_{\phi_1, \dots, \phi_N} \sum_{n=1}^{N} \mathcal{L}(x_n; \theta, \phi_n) = \sum_{n=1}^{N} \max_{\phi_n} \mathcal{L}(x_n; \theta, \phi_n). \tag{08.2}
# $$
#
# $N$ small problems, not one big one. For two latents we can even take the expectation in $\mathcal{L}$ without a draw. **Gauss–Hermite
# quadrature** replaces $\mathbb{E} f(\epsilon)$, $\epsilon \sim \mathcal{N}(0, 1)$, by $\sum_k w_k f(\epsilon_k)$ with well-chosen points; in the plane one takes all pairs of
# them. The number of points along an axis is the rule's **order**. In the open:


# %%
def expected_elbo(x, numbers, order=8):
    """𝓛 of each digit, for the rows (μ₁, μ₂, log σ₁, log σ₂) of a table of numbers."""
    point, weight = (torch.tensor(values) for values in np.polynomial.hermite_e.hermegauss(order))
    epsilon = torch.cartesian_prod(point, point)[:, None]  # (order², 1, 2)
    weight = torch.outer(weight, weight).flatten() / (2 * math.pi)
    mean, log_scale = numbers.chunk(2, dim=-1)
    z = mean + log_scale.exp() * epsilon
    entropy = log_scale.sum(-1) + 1 + math.log(2 * math.pi)
    return weight @ model.given(x)(z) + entropy


def climb(x, start, num_steps, step_size=0.1, order=6):
    """Adam on a table of numbers; what it went through, (steps, N, 4), and the 𝓛 on the way, (steps, N)."""
    numbers = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([numbers], lr=step_size, maximize=True)
    path, values = [], []
    for _ in range(num_steps):
        bound = expected_elbo(x, numbers, order)
        path.append(numbers.detach().clone())
        values.append(bound.detach())
        optimiser.zero_grad()
        bound.sum().backward()  # the sum over digits of (08.2)
        optimiser.step()
    return torch.stack(path), torch.stack(values)


cold = torch.zeros(200, 4)  # every q starts as the prior
path, values = climb(x, cold, num_steps=100)
for t in (0, 10, 30, 99):
    print(f"after {t:2d} steps: mean ELBO {values[t].mean():6.1f}   (mean log p(x) {log_evidence.mean():.1f})")

# %% [markdown]
# That is all there is to it: a table with a row per datapoint, and a gradient. In the package the table is
# `families.PerDatapoint`, and a `head` says what a row means. A head is the part of an encoder after its network: four
# numbers in, a distribution out.
#
# First-order steps come close; to call something *the best* we want better. `best_in_family` takes Newton steps, with a
# damping for each datapoint. It finds a local optimum, and a posterior can have two peaks; so each digit starts at the better
# of two places, Adam's last point and the grid's highest point. The result is scored with a finer rule than the one climbed.

# %%
head = new_encoder()  # only its way of reading a row is used
at_peak = torch.cat([z_grid[table.argmax(-1)], torch.full((200, 2), math.log(0.2))], -1)


def score(q, order=32):
    with torch.no_grad():
        return quadrature.expected_elbo(model.given(x), q, order)


at_peak_is_better = score(head.distribution(at_peak), 8) > score(head.distribution(path[-1]), 8)
family = families.PerDatapoint(head, torch.where(at_peak_is_better[:, None], at_peak, path[-1]))
best_in_family(lambda q: quadrature.expected_elbo(model.given(x), q, 6), family, num_steps=10)
diagonal_numbers, optimum = family.numbers.detach(), score(family(x))
assert torch.allclose(expected_elbo(x, diagonal_numbers, 8), score(family(x), 8))  # in the open = the package
gap = log_evidence - optimum
print(f"gap of the best diagonal q: median {gap.median():.2f}, mean {gap.mean():.2f}, largest {gap.max():.1f} nats")

# %% [markdown]
# The table is excellent: typically within a tenth of a nat of the evidence. What remains is the **approximation gap**, what
# the *family* cannot do. It would be there with unlimited computing.
#
# ## The bill
#
# Now the price. It has three items, and only one of them is what people expect.
#
# **1. Memory.** $2L$ numbers per datapoint, $4N$ here, and as many again twice over for Adam's averages.
#
# **2. What a step touches.** In minibatches of $B$, an epoch is $N/B$ steps, and each datapoint is in one of them. So one expects
# an epoch to write $N$ rows. Guess, then count, with Adam and the package's other pieces as everybody uses them:


# %%
def rows_written(num_data, batch_size=100, optimiser=torch.optim.Adam):
    """How many rows of the table change in the second epoch, added up over its steps."""
    numbers = nn.Parameter(torch.zeros(num_data, 4))
    stepper, order = optimiser([numbers], lr=0.05), torch.Generator().manual_seed(0)
    for _ in range(2):
        written = 0
        for rows in torch.randperm(num_data, generator=order).split(batch_size):
            before = numbers.detach().clone()
            q = head.distribution(numbers[rows])
            loss = -elbo(draw(model.given(train[rows]), q, num_samples).log_weight).mean()
            stepper.zero_grad()
            loss.backward()
            stepper.step()
            written += int((numbers != before).any(-1).sum())
    return written


sizes = [200, 400, 800]
counted = {
    kind.__name__: [rows_written(n, optimiser=kind) for n in sizes] for kind in (torch.optim.Adam, torch.optim.SGD)
}
for kind, rows in counted.items():
    print(f"{kind:<5}", "  ".join(f"N = {n}: {count:5d} rows" for n, count in zip(sizes, rows, strict=True)))
checks.enumeration(
    "08.4a",
    "from the second epoch on, Adam writes N²/B rows of a table per epoch, plain gradient steps N",
    [counted["Adam"], counted["SGD"]],
    [[n**2 / 100 for n in sizes], sizes],
    wrong={
        "a row is written only when its datapoint is drawn": [sizes, sizes],
        "every step writes every row, whatever the optimiser": [[n**2 / 100 for n in sizes]] * 2,
    },
)

# %% [markdown]
# Four times the data, sixteen times the writing. Adam keeps a running mean of each number's gradients, so a row that is *not*
# in the minibatch still moves, on its old momentum. That is wasted work, and those rows move without having been asked.
# (Plain gradient steps leave them alone. `torch.optim.SparseAdam`, with an embedding for the table, is made for this case.)
#
# **3. New data.** A new digit has no row. It needs an optimisation of its own, decoder and all. Let us count in a currency that
# does not depend on the machine: **evaluations of the log joint**, one image at one $z$. Each step of `climb` costs
# $6^2 = 36$ of them. How many until a digit is within 0.01 nats of the best that is known for it?
#
# And beside the three prices there is a trap. Nothing ties row $n$ to image $n$ except the *order*. Read the table with a data set
# that was shuffled, and each digit meets the row of another. What does that cost?


# %%
def steps_needed(values, target):
    """The first step whose 𝓛 is within 0.01 nats of the target; infinity if none is."""
    there = values > target - 0.01
    return torch.where(there.any(0), there.double().argmax(0).double(), torch.inf)


target = expected_elbo(x, diagonal_numbers, 6)  # by the rule that climb uses
from_prior = steps_needed(values, target)
alone = climb(x[new][:25], cold[:25], num_steps=100)[1]
assert torch.allclose(alone, values[:, new][:, :25], atol=1e-5)  # 25 digits without the other 175
print(
    f"from the prior, the median digit needs {from_prior.median():.0f} steps, or {36 * from_prior.median():.0f} evaluations"
)
print(f"not there after 100 steps: {100 * from_prior.isinf().double().mean():.0f} % of the digits")
stranger = torch.randperm(200, generator=torch.Generator().manual_seed(0))
misread = score(head.distribution(diagonal_numbers[stranger]), 16)
print(f"mean ELBO, each digit with its own row:   {optimum.mean():6.1f}")
print(f"mean ELBO, each with a stranger's row:    {misread.mean():6.1f}")
print(f"the score of a fair coin for each pixel:  {-D * math.log(2):6.1f}")
assert misread.mean() < optimum.mean() - 15
assert abs(misread.mean() + D * math.log(2)) < 4

# %% [markdown]
# The first assertion says that a digit's climb is the same whoever else is in the table: that is (08.2) again. So for new data the
# bill is a plain sum, and grows with $n$ without end.
#
# A stranger's row is hardly better than tossing a coin for each pixel, and no error is raised: the shapes fit. (`PerDatapoint`
# counts rows, and refuses another number of them; it cannot know whose they are.)
#
# ## One network for all
#
# What is a row of the table? A function of the image: $x_n \mapsto \phi_n^*$. Alike images have alike posteriors. So learn the
# *function*, with weights $\phi$ that all images share:
#
# $$
# q_\phi(z \mid x) = \mathcal{N}\big(z \mid \mu_\phi(x), \operatorname{diag} \sigma_\phi(x)^2\big), \qquad
# \max_\phi \; \mathbb{E}_{p_D(x)}\big[\mathcal{L}(x; \theta, \phi)\big]. \tag{08.3}
# $$
#
# The function is called an **encoder**. Inference is **amortised**: paid once, by
# training, and then nearly free. Note what is *not* there: no table of best rows to imitate. The encoder climbs the same
# bounds, and the gradient of each row is passed on to the weights. One draw per digit and step is enough.

# %%
q = new_encoder()  # from scratch: it owes nothing to the assistant
optimiser = torch.optim.Adam(q.parameters(), lr=3e-3)
order = torch.Generator().manual_seed(0)
film = {}
for steps in (50, 50, 100, 200, 400, 800, 1600):
    training.fit(one_draw_bound(q), optimiser, train, num_steps=steps, batch_size=100, generator=order)
    film[sum([steps, *([max(film)] if film else [])])] = score(q(x), 16)
_ = q.requires_grad_(False)
print(f"{sum(p.numel() for p in q.parameters())} weights; a table for the training digits has {4 * N} numbers")

# %% [markdown]
# It is already smaller than the table, and it does not grow. An epoch now writes $N/B$ times the same 4,420 weights: linear in
# $N$. And what does a new digit cost? A counter on the decoder tells. Three ways to get a $q$ for $n$ new digits: 100 steps of
# `climb`, the encoder, and the encoder followed by one gradient step with 20 draws (a remedy that we meet again below).


# %%
def evaluations(work):
    """How many pairs of an image and a z the decoder is asked about while `work` runs."""
    seen_by_decoder = []
    hook = model.likelihood.register_forward_hook(lambda _, args, out: seen_by_decoder.append(out.batch_shape.numel()))
    work()
    hook.remove()
    return sum(seen_by_decoder)


one_step = families.SemiAmortised(q, model.given, num_steps=1, step_size=0.01, num_samples=20)


def bill_of(n):
    """Evaluations: a table, the encoder, one step more. Then numbers in the table, and weights."""
    few, table = x[new][:n], families.PerDatapoint(head, cold[:n])
    asked = [evaluations(work) for work in (lambda: climb(few, cold[:n], 100), lambda: q(few), lambda: one_step(few))]
    return [*asked, table.numbers.numel(), sum(p.numel() for p in q.parameters())]


bill = [bill_of(n) for n in (10, 20, 40)]
for n, (of_table, of_encoder, of_step, *_) in zip((10, 20, 40), bill, strict=True):
    print(f"n = {n}: {of_table:7,d} evaluations for a table, {of_encoder} for the encoder, {of_step} with one step")
weights = (D + 1) * 64 + (64 + 1) * 4
checks.enumeration(
    "08.4b",
    "n new digits: 6² · 100 n, 0 and 20 n evaluations; 4 n numbers in a table, and 4,420 weights for any n",
    bill,
    [[6**2 * 100 * n, 0, 20 * n, 4 * n, weights] for n in (10, 20, 40)],
    wrong={
        "a step counted as one evaluation": [[100 * n, 0, n, 4 * n, weights] for n in (10, 20, 40)],
        "the encoder's pass counted as one": [[6**2 * 100 * n, n, 21 * n, 4 * n, weights] for n in (10, 20, 40)],
        "one log joint for all n digits": [[6**2 * 100, 0, 20, 4 * n, weights] for n in (10, 20, 40)],
        "the biases left out": [[6**2 * 100 * n, 0, 20 * n, 4 * n, D * 64 + 64 * 4] for n in (10, 20, 40)],
    },
)

# %% [markdown]
# A table pays for each digit, the encoder has paid already. What have we lost? Let $q^*$ be the best member of the family for a digit. Then
#
# $$
# \log p_\theta(x) = \mathcal{L}(q_\phi)
# + \underbrace{\mathcal{L}(q^*) - \mathcal{L}(q_\phi)}_{\text{amortisation gap}}
# + \underbrace{\log p_\theta(x) - \mathcal{L}(q^*)}_{\text{approximation gap}}. \tag{08.4}
# $$
#
# The names are from Cremer, Li & Duvenaud (2018). Both are at least zero for *every* digit, if $q^*$ is really the best. Newton finds
# local optima; so it starts once more at the encoder's answer, and $q^*$ is the best that we know. (Were there a better one,
# it would move some nats from the approximation gap to the amortisation gap, and leave their sum.)

# %%
family = families.PerDatapoint(q, q.parameters_at(x))  # warm start
best_in_family(lambda q: quadrature.expected_elbo(model.given(x), q, 6), family, num_steps=8)
from_encoder = score(family(x))
better = from_encoder > optimum
optimum = torch.maximum(optimum, from_encoder)
diagonal_numbers = torch.where(better[:, None], family.numbers.detach(), diagonal_numbers)
amortised = score(q(x))
one_draw = elbo(draw(model.given(x), q(x), num_samples).log_weight)
checks.inequality(
    "08.1",
    "amortised ≤ best of the family ≤ log p(x), for each of 100 training and 100 held-out digits",
    torch.stack([amortised, optimum]),
    torch.stack([optimum, log_evidence]),
    wrong={
        "one draw taken for the expectation": torch.stack([one_draw, optimum]),
        "KL(q‖p(z)) averaged over the latent dimensions": torch.stack(
            [amortised + kl_divergence(q(x), model.prior()) / 2, optimum]
        ),
    },
)

# %% [markdown]
# The two gaps have a second definition, as divergences from the posterior, and the grid can sum those without a bound anywhere:
# $\mathcal{L}(q) = \log p_\theta(x) - \mathrm{KL}(q \,\|\, p_\theta(z \mid x))$. So the amortisation gap is a *difference of two KLs to the posterior*. It is not
# $\mathrm{KL}(q_\phi \,\|\, q^*)$, the distance from the encoder's answer to the best one, which is often taken for it.


# %%
def kl_on_grid(q):
    """KL(q ‖ p(z | x)) of each digit, summed over the cells."""
    log_q = q.log_prob(z_grid[:, None]).T
    return (log_q.exp() * (log_q - log_posterior)).sum(-1) * step**2


best = head.distribution(diagonal_numbers)
amortisation, approximation = optimum - amortised, log_evidence - optimum
kl_of_q, kl_of_best = kl_on_grid(q(x)), kl_on_grid(best)
checks.quadrature(
    "08.3",
    "amortisation gap = KL(q‖p(z|x)) − KL(q*‖p(z|x)), approximation gap = KL(q*‖p(z|x)), digit by digit",
    torch.stack([amortisation, approximation]),
    torch.stack([kl_of_q - kl_of_best, kl_of_best]),
    wrong={
        "KL(q‖q*) for the amortisation gap": torch.stack([kl_divergence(q(x), best), kl_of_best]),
        "the whole of KL(q‖p(z|x))": torch.stack([kl_of_q, kl_of_best]),
        "KL(q‖p(z)) for KL(q‖p(z|x))": torch.stack(
            [kl_divergence(q(x), model.prior()) - kl_divergence(best, model.prior()), kl_of_best]
        ),
    },
    tolerance=2e-3,
)

# %% [markdown]
# So the ledger. Before you look: which gap is larger, and by how much on digits that the encoder has never seen?

# %% mystnb={"image": {"alt": "Two gap ledgers as bars, from the ELBO up to the log evidence in nats. For training digits and for held-out digits the approximation gap is about a tenth of a nat; the amortisation gap is larger, and larger for held-out digits than for training digits."}}
ledgers = {
    "training": gap_ledger(amortised[seen], optimum[seen], log_evidence[seen]),
    "held out": gap_ledger(amortised[new], optimum[new], log_evidence[new]),
}
for name, ledger in ledgers.items():
    print(
        f"{name:<9} ELBO {ledger.elbo:.2f}  + amortisation {ledger.amortisation_gap:.2f}  "
        f"+ approximation {ledger.approximation_gap:.2f}  = log evidence {ledger.log_evidence:.2f}"
    )
assert ledgers["held out"].amortisation_gap > ledgers["training"].amortisation_gap > 0.15
assert max(ledger.approximation_gap for ledger in ledgers.values()) < 0.15
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 2.6))
    plots.ledger_bars(list(ledgers.values()), list(ledgers), ax)
    ax.set_title("The encoder loses more than the family, and most on new digits")

# %% [markdown]
# ### Who pays?
#
# A mean says little about a gap with a long tail. So print medians, with standard errors (by the bootstrap: the spread of the
# median over resampled digits). And which digits pay most? A guess: those that resemble no training digit. As a distance, take the
# number of pixels in which a digit differs from its nearest neighbour in the training data.

# %%
resample = torch.randint(100, (2000, 100), generator=torch.Generator().manual_seed(0))
ratio = [reduce(amortisation[new]) / reduce(amortisation[seen]) for reduce in (torch.mean, torch.median)]
assert 2.5 < ratio[0] < 3.5
assert 1.3 < ratio[1] < 1.8
curves = {
    "approximation, held out": approximation[new],
    "amortisation, training": amortisation[seen],
    "amortisation, held out": amortisation[new],
}
for name, values_of in curves.items():
    error = values_of[resample].median(-1).values.std()
    tail = 100 * values_of.sort().values[-5:].sum() / values_of.sum()
    print(
        f"{name:<24} median {values_of.median():.2f} ± {error:.2f}, mean {values_of.mean():.2f} "
        f"± {values_of.std() / 10:.2f}; the worst five digits have {tail:.0f} % of it"
    )
assert tail > 50
distance = torch.cdist(x[new], train, p=0).amin(-1)
rank = stats.spearmanr(distance, amortisation[new])
family_rank = stats.spearmanr(distance, approximation[new])
print(f"distance and amortisation gap: rank correlation {rank.statistic:.1f} (p < 0.001: {rank.pvalue < 0.001})")
print(f"distance and approximation gap: below 0.1 in size: {abs(family_rank.statistic) < 0.1}")
assert rank.statistic > 0.25

# %% mystnb={"image": {"alt": "Left, cumulative shares of digits against gap in nats on a logarithmic axis: the approximation gap ends below one nat, the amortisation gap of training digits lies to its right, that of held-out digits further right with a tail beyond ten nats. Right, a scatter of the held-out digits, pixels that differ from the nearest training digit, 0 to 9, against amortisation gap, 0.02 to 20 nats: a wide cloud that rises a little to the right."}}
with plots.style():
    fig, (share, cloud) = plt.subplots(1, 2, figsize=(7.2, 3.3), layout="constrained")
    looks = [(plots.COLOURS.p, ":"), (plots.COLOURS.q, "--"), (plots.COLOURS.q, "-")]
    for (name, values_of), (colour, line) in zip(curves.items(), looks, strict=True):
        share.step(
            values_of.sort().values, torch.arange(1, 101), color=colour, linestyle=line, label=name, where="post"
        )
    share.set(xscale="log", xlabel="gap (nats)", ylabel="digits with at most that (%)", xlim=(3e-3, 30), ylim=(0, 150))
    share.set_yticks([0, 25, 50, 75, 100])
    share.legend(loc="upper left")
    jitter = 0.5 * torch.rand(100, generator=torch.Generator().manual_seed(0)) - 0.25
    cloud.semilogy(distance + jitter, amortisation[new], "o", color=plots.COLOURS.q, alpha=0.6, markersize=5)
    cloud.set(xlabel="pixels unlike the nearest training digit", ylabel="amortisation gap, held out (nats)")
    fig.suptitle("Most digits pay little; five new ones pay more than half", x=0.01, ha="left", weight="bold", size=12)

# %% [markdown]
# The typical new digit loses a fifth of a nat. The mean is several times that: it is carried by a handful of digits,
# and that is also why its standard error is so large. New digits pay three times as much as training digits in the mean, and
# about one and a half times in the median.
#
# The guess holds as a tendency: digits unlike all training digits tend to pay more, and one of the dearest is quite ordinary. For the
# *approximation* gap distance says nothing. (The points are spread a little sideways, so that they do not hide each other.)
#
# Does more training mend it? The film that we kept during training knows. It has the encoder's gap to the same best $q$, on the
# same digits.

# %% mystnb={"image": {"alt": "Mean amortisation gap in nats against training steps on logarithmic axes, for training and held-out digits. Both start near 2.5 nats and fall; then the curves part, the training curve keeps falling and the held-out curve flattens at three times its height."}}
steps = list(film)
course = torch.stack([optimum - bound for bound in film.values()])
course = torch.stack([course[:, seen].mean(-1), course[:, new].mean(-1)])
assert course[1, 0] < 1.2 * course[0, 0]
assert course[1, -1] > 2 * course[0, -1]
assert course[0, -3] - course[0, -1] > 2 * (course[1, -3] - course[1, -1])
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 2.8))
    ax.loglog(steps, course[0], "o--", color=plots.COLOURS.q, label="training digits")
    ax.loglog(steps, course[1], "o-", color=plots.COLOURS.q, label="held-out digits")
    ax.set(xlabel="training steps of the encoder (θ fixed)", ylabel="mean amortisation gap (nats)")
    ax.set_yticks([0.2, 0.5, 1, 2], ["0.2", "0.5", "1", "2"])
    ax.minorticks_off()
    ax.legend()
    ax.set_title("Late in training it is the training digits that gain most")
for step_count, (inside, outside) in zip(steps, course.T.tolist(), strict=True):
    print(f"{step_count:5d} steps: training {inside:5.2f}, held out {outside:5.2f} nats")

# %% [markdown]
# At 50 steps the two groups pay nearly the same; then their *gaps* part. The evidence cannot be the reason: both gaps are measured below each digit's own best $q$. (That the model, too, does better on the digits that it was
# trained on, is another matter, and stands in the ledger's last column.) The encoder is a regression, learned from $N$ images, and it does better where
# it has seen data. A ledger on training digits alone would have called it good. Does more training mend it? A little still on held-out digits; the last doubling of the steps gains them less than half of what it gains the others.
#
# ## When nothing is lost
#
# Is there always something to pay? The map $x \mapsto \phi^*$ has to be one that the network can represent. Take the linear model of
# chapter 06, **probabilistic PCA**: $x \mid z \sim \mathcal{N}(W z + b, \sigma^2 I)$. The exponent of $p(z)\,p_\theta(x \mid z)$ is quadratic in $z$, with second-order term
# $-\frac12 z^\top (I + W^\top W / \sigma^2) z$ and first-order term $z^\top W^\top (x - b) / \sigma^2$. Completing the square gives
#
# $$
# p_\theta(z \mid x) = \mathcal{N}\big(A (x - b),\, S\big), \qquad S = \big(I + W^\top W / \sigma^2\big)^{-1}, \qquad A = S W^\top / \sigma^2. \tag{08.5}
# $$
#
# The mean is affine in $x$ and the covariance does not depend on $x$. So an encoder with one *linear layer* and a full covariance
# contains the exact posterior of every datapoint, seen or not. We use the digits' grey levels, without the pixels that never
# vary, and turn $W$ so that its posterior is correlated (at maximum likelihood $W^\top W$ can be, and by the usual recipe is, diagonal, and a diagonal $q$ would do).

# %%
grey, new_grey = digits.train.double()[::5] / 16, digits.test.double() / 16
varies = grey.std(0) > 0
grey, new_grey = grey[:, varies], new_grey[:, varies]
turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
with torch.no_grad():
    pca = models.probabilistic_pca_mle(grey, 2)
    linear = models.LinearGaussian(pca.weight @ turn, pca.loc, pca.noise_scale).requires_grad_(False)

full_head = FullNormalHead(nn.Identity(), 2)  # means, log scales, and what stands below the Cholesky diagonal
learned = families.PerDatapoint(full_head, torch.zeros(len(grey), 5))
reached = best_in_family(lambda q: linear.elbo(grey, q), learned, num_steps=60, tolerance=1e-16)
numbers = learned.numbers.detach()

W, b, variance = linear.weight.numpy(), linear.loc.numpy(), float(linear.noise_scale) ** 2
S = np.linalg.inv(np.eye(2) + W.T @ W / variance)  # (08.5), written out
tril = np.linalg.cholesky(S)
row = np.r_[np.log(np.diag(tril)), tril[1, 0]]
by_hand = np.column_stack([(grey.numpy() - b) @ W @ S / variance, np.tile(row, (len(grey), 1))])
least_squares = np.column_stack([np.linalg.lstsq(W, (grey.numpy() - b).T)[0].T, by_hand[:, 2:]])
checks.exact(
    "08.2a",
    "learned one by one, 300 posteriors of a linear model are those of (08.5)",
    numbers,
    by_hand,
    wrong={
        "least squares, as if there were no prior": least_squares,
        "variances for standard deviations": np.column_stack([by_hand[:, :2], by_hand[:, 2:4] * 2, by_hand[:, 4:]]),
        "marginal scales √S_ii on the Cholesky diagonal": np.column_stack(
            [by_hand[:, :2], np.tile(np.log(np.diag(S)) / 2, (len(grey), 1)), by_hand[:, 4:]]
        ),
    },
    tolerance=1e-8,
)

# %% [markdown]
# Nobody told the table that its rows are an affine function of the images. Ask by regression: fit an affine map to the 300 learned
# rows by least squares, and use it as the encoder for the 299 digits that it has not seen.


# %%
def ones(data):
    """A column of ones for the constant."""
    return np.column_stack([data, np.ones(len(data))])


affine = np.linalg.lstsq(ones(grey.numpy()), numbers.numpy(), rcond=None)[0]
q_affine = full_head.distribution(torch.tensor(ones(new_grey.numpy()) @ affine))
q_constant = full_head.distribution(numbers.mean(0).expand(len(new_grey), 5))
no_noise = full_head.distribution(
    torch.tensor(np.column_stack([(new_grey.numpy() - b) @ np.linalg.pinv(W).T, np.tile(row, (299, 1))]))
)
checks.independent(
    "08.2b",
    "that affine encoder's ELBO on 299 new digits is log N(x | b, W Wᵀ + σ² I): no gap of any kind",
    linear.elbo(new_grey, q_affine),
    stats.multivariate_normal(b, W @ W.T + variance * np.eye(len(b))).logpdf(new_grey.numpy()),
    wrong={
        "one q for all digits": linear.elbo(new_grey, q_constant),
        "the pseudo-inverse of W as encoder": linear.elbo(new_grey, no_noise),
    },
    tolerance=1e-8,
)

# %% [markdown]
# A gap of zero, to eight digits, on images that nobody has seen, from a regression on 300. **Amortisation costs nothing where the
# map from data to posterior lies in the encoder's class, and the data suffice to find it.** With a network as
# decoder neither is promised, and the ledger has to tell.
#
# ## Two remedies
#
# ### A richer family
#
# Against the *approximation* gap: let $q$ be correlated, with a full covariance. Its row has a fifth number, what stands below the
# Cholesky diagonal. With a zero there it is the same diagonal $q$, so we start from the best of those, and Newton never goes down.

# %%
full = families.PerDatapoint(full_head, torch.cat([diagonal_numbers, torch.zeros(200, 1)], -1))
best_in_family(lambda q: quadrature.expected_elbo(model.given(x), q, 6), full, num_steps=10)
best_full = score(full(x))
cold_full = families.PerDatapoint(full_head, torch.zeros(200, 5))
best_in_family(lambda q: quadrature.expected_elbo(model.given(x), q, 4), cold_full, num_steps=10)
cold_start = score(cold_full(x))
one_draw = elbo(draw(model.given(x), full(x), num_samples).log_weight)
checks.inequality(
    "08.6",
    "from the best diagonal q on: diagonal ≤ full ≤ log p(x), for each of 200 digits",
    torch.stack([-best_full, best_full]),
    torch.stack([-optimum, log_evidence]),
    wrong={
        "the full q started at the prior: some get stuck": torch.stack([-cold_start, cold_start]),
        "one draw taken for the expectation": torch.stack([-one_draw, one_draw]),
    },
    slack=1e-4,
)
for name, part in (("training", seen), ("held out", new)):
    before, after = approximation[part].mean(), (log_evidence - best_full)[part].mean()
    print(f"{name:<9} mean approximation gap: diagonal {before:.2f}, full {after:.2f} nats")

# %% [markdown]
# It takes away about half of a small thing. In two dimensions a correlation is all that a full covariance can add. What is left
# is the shape that no Normal has. (And θ was trained beside an assistant with a diagonal $q$; it may have grown to suit it, as in chapter 07.)
#
# ### A few steps from a good start
#
# Against the *amortisation* gap: use the encoder's answer as a start, and climb each digit's own ELBO. This is the table again, with
# rows that begin nearly right. It needs no new idea, only `climb` with another start. Here is the held-out digit that gains most.

# %%
warm_path, warm = climb(x, q.parameters_at(x), num_steps=100)
from_the_encoder = steps_needed(warm, target)
print(f"from the prior:    median {from_prior[new].median():.0f} steps for a new digit")
print(f"from the encoder:  median {from_the_encoder[new].median():.0f} steps")
assert from_the_encoder[new].median() < from_prior[new].median() / 3

gained = torch.where(from_the_encoder.isfinite(), warm[-1] - warm[0], 0.0)
gained[seen] = 0.0
hero = int(gained.argmax())
final = expected_elbo(x[hero : hero + 1], warm_path[-1, hero : hero + 1], 24)
assert log_evidence[hero] - final < 1.5
assert log_evidence[hero] - amortised[hero] > 4

# %% mystnb={"image": {"alt": "Thirteen frames. Left, the latent plane with the contours of one digit's exact posterior and an ellipse, the q of the encoder, which starts away from them, moves over and settles on the posterior. Right, its ELBO in nats rises, with one dip, to just below the line of the log evidence."}} tags=["nbval-ignore-output"]
moments = [0, 1, 2, 3, 4, 6, 8, 10, 13, 18, 25, 40, 99]
route = warm_path[:, hero]
with torch.no_grad():
    height = torch.stack([expected_elbo(x[hero : hero + 1], route[t : t + 1], 24)[0] for t in moments])


def scene(fig, frame):
    plane, curve = fig.subplots(1, 2, width_ratios=[1, 1.1])
    t = moments[frame]
    left, bottom = ((route[0, :2] + route[-1, :2]) / 2 - 1.8).tolist()
    plane.set(xlim=(left, left + 3.6), ylim=(bottom, bottom + 3.6), aspect="equal", xlabel="$z_1$", ylabel="$z_2$")
    plots.density_contours(log_posterior[hero].reshape(193, 193).T, axis, axis, plane, masses=[0.5, 0.95])
    plane.plot(*route[: t + 1, :2].T, color=plots.COLOURS.q, linewidth=1, alpha=0.6)
    plots.normal_ellipse(route[t, :2], (2 * route[t, 2:]).exp().diag(), plane, [1.0, 2.0])
    plane.set_title(f"q after {t} steps")
    curve.axhline(log_evidence[hero], color=plots.COLOURS.evidence)
    curve.plot(moments[: frame + 1], height[: frame + 1], "o-", color=plots.COLOURS.q, markersize=4)
    curve.set(xscale="symlog", xlim=(0, 110), ylim=(height.min() - 1, log_evidence[hero] + 1))
    curve.set(xlabel="step", ylabel="ELBO (nats)")
    curve.set_title("to just below the evidence")


plots.animate(
    scene, len(moments), "An encoder's q for one digit moves to its exact posterior", name="refined", figsize=(7, 3.3)
)

# %% mystnb={"image": {"alt": "Evaluations of the log joint against number of new digits, up to 300. The line of the table from the prior climbs steepest and crosses the encoder's horizontal line of 320,000 at about 140 digits; the line of encoder plus refinement starts at 320,000 and climbs slowly."}}
training_cost = 100 * max(film)
per_digit = {
    name: 36 * taken[new][taken[new].isfinite()].mean()
    for name, taken in (("from the prior", from_prior), ("from the encoder", from_the_encoder))
}
count = torch.arange(0, 301)
crossing = training_cost / per_digit["from the prior"]
refined_too = training_cost / (per_digit["from the prior"] - per_digit["from the encoder"])
with_gap, without = (10 * round(number.item() / 10) for number in (crossing, refined_too))
assert 100 < with_gap < without < 250
assert per_digit["from the encoder"] < per_digit["from the prior"] / 2
print(f"paid for itself, to the nearest ten: with its gap after {with_gap} digits, refined after {without}")
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 2.9))
    lines = [
        ("a row per digit, from the prior", count * per_digit["from the prior"], "-", plots.COLOURS.data),
        ("encoder, then refined", training_cost + count * per_digit["from the encoder"], "--", plots.COLOURS.q),
        ("encoder alone: with its gap", torch.full((301,), training_cost), "-", plots.COLOURS.q),
    ]
    for label, evaluated, line, colour in lines:
        ax.plot(count, evaluated / 1000, line, color=colour, label=label)
    ax.set(xlabel="new digits", ylabel="evaluations (thousands)", ylim=(0, None), xlim=(0, 300))
    ax.legend(loc="upper left")
    ax.set_title(f"Paid for itself after {with_gap} digits with its gap, {without} without")

# %% [markdown]
# The animation first: the encoder had put its $q$ beside the posterior, and Adam brings it back, overshooting a little on the way.
#
# Then the three prices in one picture: evaluations of the log joint, added up over new digits as they come. The encoder starts with
# what its training has cost, 3,200 steps of 100 digits with one draw each. The other two pay 36 per step, up to each digit's last
# (digits that did not arrive in 100 steps are left out of the averages). The crossing depends on the protocol. The shape does
# not: one line starts at zero and grows with $n$; the other starts with a debt and stays level. And they do not buy the same: the level
# line comes with an amortisation gap, the dashed one mostly without, so like is compared with like where the dashed line crosses the grey one. (What the
# encoder's own passes cost is counted in none of them: the currency is the decoder.)
#
# An encoder that ends in a few such steps is called **semi-amortised** (Kim and co-authors, 2018). The package's `SemiAmortised` takes
# them with plain gradient steps and a few draws, so that the whole can be trained. Plain steps have a catch, and it is worth a
# prediction. Which step size is better for twenty steps, 0.01 or 0.05?

# %%
refined = {}
for step_size in (0.01, 0.05):
    _ = torch.manual_seed(1)
    with torch.no_grad():
        q_refined = families.SemiAmortised(q, model.given, num_steps=20, step_size=step_size, num_samples=20)(x)
    refined[step_size] = score(q_refined)
    worse = 100 * (refined[step_size] < amortised - 0.01).double().mean()
    print(f"step size {step_size:.2f}: now worse than the encoder by over 0.01 nats: {worse:.0f} % of the digits")
narrow, thrown = width[:, 0] ** 2 < 0.05 / 2, (refined[0.05] < amortised - 0.01).double()
print(
    f"  of those with a narrow posterior {100 * thrown[narrow].mean():.0f} %, of the others {100 * thrown[~narrow].mean():.0f} %"
)
assert thrown[narrow].mean() > 2 * thrown[~narrow].mean()
for name, part in (("training", seen), ("held out", new)):
    ledger = gap_ledger(refined[0.01][part], torch.maximum(optimum, refined[0.01])[part], log_evidence[part])
    print(
        f"{name:<9} mean amortisation gap {amortisation[part].mean():.2f}, after twenty steps of 0.01 {ledger.amortisation_gap:.2f}"
    )

# %% [markdown]
# The larger step *throws away* a good start for many digits. Take a normal posterior with mean $m$ and covariance $S$, and let $\mu$ be the mean of $q$. Of $\mathcal{L}$ only
# $-\frac12 (\mu - m)^\top S^{-1} (\mu - m)$ depends on $\mu$, so the gradient is $-S^{-1}(\mu - m)$. A step of size $\eta$ therefore multiplies the error along an eigenvector of $S$ with variance
# $s_i^2$ by a fixed factor, and $T$ steps by
#
# $$
# (1 - \eta / s_i^2)^T, \qquad \text{which shrinks only if } \eta < 2 s_i^2. \tag{08.6}
# $$
#
# The *narrowest* posterior sets the limit for all. Ours have standard deviations down to a tenth, so $2 s^2 \approx 0.02$: between our two
# step sizes. "Narrow" in the printed line means $0.05 > 2 s^2$, with $s$ the smallest standard deviation of the digit's exact posterior.
# Some digits that are not narrow end lower too: (08.6) is about means alone, and here the scales take steps as well, along gradients of twenty draws. The check uses the linear model, where $\mathcal{L}$ and its gradient are exact.

# %%
exact_posterior = linear.posterior(grey[:50])
loc = exact_posterior.mean + torch.tensor([1.0, -0.5])  # every mean is wrong by the same vector
eta, T = 0.01, 12
for _ in range(T):
    loc = loc.detach().requires_grad_()
    bound = linear.elbo(grey[:50], torch.distributions.MultivariateNormal(loc, exact_posterior.covariance_matrix))
    loc = loc + eta * torch.autograd.grad(bound.sum(), loc)[0]

s2, U = np.linalg.eigh(S)


def error_after(factor):
    return np.tile(U @ (factor * (U.T @ [1.0, -0.5])), (50, 1))


checks.exact(
    "08.7",
    "T gradient steps on the mean multiply its error by (1 − η/s²)^T along each eigenvector",
    loc - exact_posterior.mean,
    error_after((1 - eta / s2) ** T),
    wrong={
        "the posterior's width ignored": error_after((1 - eta) ** T * np.ones(2)),
        "multiplied by the variance, not divided": error_after((1 - eta * s2) ** T),
        "the gradient flow's exponential": error_after(np.exp(-eta * T / s2)),
    },
    tolerance=1e-9,
)

# %% [markdown]
# ## A mistake people make: a gap from single draws
#
# The amortisation gap of a digit is $\mathcal{L}(q^*) - \mathcal{L}(q)$. So why not estimate both with a draw each, and subtract?

# %%
best_new = head.distribution(diagonal_numbers[new])
of_best, of_encoder = (draw(model.given(x[new]), family, 400).log_weight for family in (best_new, q(x[new])))
difference = of_best - of_encoder  # 400 estimates for each of 100 digits
same_noise = []
for family in (best_new, q(x[new])):
    _ = torch.manual_seed(0)
    same_noise.append(draw(model.given(x[new]), family, 400).log_weight)
same_noise = same_noise[0] - same_noise[1]
print(f"median over digits: the gap                    {amortisation[new].median():.2f} nats")
print(f"  spread of an estimate from a draw each        {difference.std(0).median():.1f}")
print(f"  ... with the same ε for both                  {same_noise.std(0).median():.1f}")
print(f"estimates with the wrong sign: {100 * (difference < 0).double().mean():.0f} %")
needed = ((4 * difference.std(0) / amortisation[new]) ** 2).median()
assert needed > 100  # draws for a gap of four standard errors, at the median digit
assert (difference < 0).double().mean() > 0.25
assert difference.std(0).median() > 3 * amortisation[new].median()

# %% [markdown]
# Two estimates in five have the wrong sign. The spread of one draw is several times the gap, since a gap is a small difference
# between two noisy numbers; to use the same $\epsilon$ for both helps only a little. A negative "gap" is a sign of noise (or of a
# "best" that is not the best), never a discovery. What catches it: the inequality of check 08.1, which rejects a single draw. Where
# quadrature cannot go, in many dimensions, take hundreds of draws per digit (more than a hundred for a
# gap of four standard errors, says an assertion), and print the errors.
#
# ## Exercises
#
# **Exercise 1 (recall).** From how many datapoints on does a table have *more* numbers than an encoder? Diagonal Normals over
# $L$ latents; the encoder has one hidden layer of $H$ units, with biases, and $D$ inputs. Return the smallest such $N$.
#
# <details><summary>Hint</summary>
#
# A layer from $a$ to $b$ units has $(a + 1) b$ weights. "More" is strict.
#
# </details>


# %%
def outgrown(data_dim, hidden, latent_dim): ...  # your code


ch08.outgrown.check(outgrown)

# %% [markdown]
# **Exercise 2 (derive, then code).** Let each pixel have its own noise: $x \mid z \sim \mathcal{N}(W z + b, \operatorname{diag}(\sigma_1^2, \dots, \sigma_D^2))$. Is
# the posterior mean still affine in $x$? Write it as $A x + c$ and return the matrix $(A, c)$, of shape $(L, D + 1)$. `noise_scale` is
# one number, or one for each pixel.
#
# <details><summary>Hint</summary>
#
# Complete the square as for (08.5). Each pixel's row of $W$ is divided by that pixel's own variance. And mind where $b$ goes.
#
# </details>


# %%
def affine_encoder(weight, loc, noise_scale): ...  # your code


ch08.affine_encoder.check(affine_encoder)

# %% [markdown]
# **Exercise 3 (derive).** The posterior of a datapoint is $\mathcal{N}(m, \Lambda^{-1})$, with a precision matrix $\Lambda$ that is not
# diagonal; an encoder answers with a diagonal $\mathcal{N}(\mu, \operatorname{diag} \sigma^2)$. Write its *amortisation* gap, without the family's share.
# Shapes: $(N, L)$ and, for the precision, $(N, L, L)$; return $(N,)$. Before you start: does a wrong mean cost the same in each
# direction?
#
# <details><summary>Hint</summary>
#
# Chapter 02 has the best diagonal $q$: mean $m$, variances $1/\Lambda_{ii}$. Subtract two KLs; the determinant of $\Lambda$ cancels.
#
# </details>


# %%
def amortisation_gap(mean, scale, posterior_mean, precision): ...  # your code


ch08.amortisation_gap.check(amortisation_gap)

# %% [markdown]
# **Exercise 4 (a small study).** An encoder that does not see everything: $z \sim \mathcal{N}(0, I)$, $x \mid z \sim \mathcal{N}(Wz, \sigma^2 I)$, and the encoder
# gets only the pixels `visible` (a Boolean mask), with unlimited weights and any Normal $q$. Its target is still (08.3), the mean
# ELBO of *whole* images. What is its mean amortisation gap? Then feed it `linear`, and find out how many of
# the pixels, dropped at random, it may lose for a tenth of a nat. A question to think about first: will it answer with a *wider* $q$ for what it cannot see?
#
# <details><summary>Hint</summary>
#
# Fix what is seen, and average $\mathrm{KL}(q \,\|\, p_\theta(z \mid x))$ over what is not. All those posteriors have one covariance, $S$. The law of
# total variance gives the covariance of their means: $S_{\text{visible}} - S$.
#
# </details>


# %%
def blind_gap(weight, noise_scale, visible): ...  # your code


ch08.blind_gap.check(blind_gap)

# %% [markdown]
# ## Summary
#
# *What do $n$ means and $n$ covariances cost, and what do we pay for one network instead?*
#
# - **Learn and count.** A row per datapoint comes within about a tenth of a nat of the evidence. Its numbers grow like $N$, the
#   rows that Adam writes per epoch like $N^2/B$, and each new datapoint costs thousands of evaluations of the log joint.
# - **Replace.** An encoder has as many weights for any $N$, and asks the decoder nothing about a new datapoint. It loses nothing
#   if the map from data to posterior lies in its class and has been found: in the linear model, eight digits agree.
# - **Measure.** $\log p_\theta(x) = \mathcal{L}(q_\phi)$ + amortisation gap + approximation gap. Here the encoder's share is the larger one, and
#   in the mean three times larger on new digits than on training digits; a handful of digits carry most of it. A mean alone hides that.
# - **Refine.** A full covariance halves the small gap, a few steps from the encoder's answer take away most of the large one. The step
#   has to fit the narrowest posterior: $\eta < 2 s^2$.
#
# These sizes are of one decoder, one encoder and small images. The ledger is the method; measure your own.
#
# **Sources.** C. Cremer, X. Li & D. Duvenaud (2018), Inference suboptimality in variational autoencoders: the two gaps.
# Y. Kim, S. Wiseman, A. Miller, D. Sontag & A. Rush (2018), Semi-amortized variational autoencoders. M. D. Hoffman, D. M. Blei, C. Wang
# & J. Paisley (2013), Stochastic variational inference: a local posterior for each datapoint. D. P. Kingma & M. Welling (2014),
# Auto-encoding variational Bayes: the encoder. C. C. Margossian & D. M. Blei (2024), Amortized variational inference: when and why?:
# when the amortisation gap can be closed. E. Alpaydin & C. Kaynak (1998), the digits (UCI repository).
#
# **Next.** The decoder and the encoder were networks whose outputs *became* distributions, and we took that on trust. How does a
# row of real numbers turn into a Normal, a Bernoulli, a count, and what goes wrong there? Chapter 09: *Distributions from neural
# networks*.

# %% [markdown]
# ## Solutions


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def outgrown_solution(data_dim, hidden, latent_dim):
    size = (data_dim + 1) * hidden + (hidden + 1) * 2 * latent_dim
    return size // (2 * latent_dim) + 1


ch08.outgrown.check(outgrown_solution)
print(f"our encoder: a table outgrows it at N = {outgrown_solution(D, 64, 2):,}")


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def affine_encoder_solution(weight, loc, noise_scale):
    scaled = weight.mT / noise_scale**2
    A = torch.linalg.solve(torch.eye(weight.shape[1]) + scaled @ weight, scaled)
    return torch.cat([A, -(A @ loc)[:, None]], -1)


ch08.affine_encoder.check(affine_encoder_solution)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def amortisation_gap_solution(mean, scale, posterior_mean, precision):
    apart = mean - posterior_mean
    ratio = scale**2 * precision.diagonal(dim1=-2, dim2=-1)
    return 0.5 * (torch.einsum("ni,nij,nj->n", apart, precision, apart) + (ratio - 1 - ratio.log()).sum(-1))


ch08.amortisation_gap.check(amortisation_gap_solution)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def blind_gap_solution(weight, noise_scale, visible):
    whole = torch.eye(weight.shape[1]) + weight.mT @ weight / noise_scale**2
    part = torch.eye(weight.shape[1]) + weight[visible].mT @ weight[visible] / noise_scale**2
    return 0.5 * (torch.linalg.solve(part, whole).trace() - weight.shape[1])


ch08.blind_gap.check(blind_gap_solution)
shuffled = torch.randperm(len(linear.weight), generator=torch.Generator().manual_seed(0))
for share in (0.95, 0.9, 0.75, 0.5, 0.25):
    visible = torch.zeros(len(shuffled), dtype=torch.bool)
    visible[shuffled[: round(share * len(shuffled))]] = True
    print(
        f"{100 * share:.0f} % of the pixels: gap {blind_gap_solution(linear.weight, linear.noise_scale, visible):.2f} nats"
    )

# %% [markdown] jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
# <details><summary>08.E2, 08.E3 and 08.E4, in words</summary>
#
# *E2.* Yes: $A = (I + \sum_d w_d w_d^\top / \sigma_d^2)^{-1} W^\top \operatorname{diag}(\sigma^{-2})$ and $c = -A b$, with $w_d$ the $d$-th row of $W$. Any diagonal noise will do; what matters is that the log joint is quadratic in $z$.
#
# *E3.* $\frac12 (\mu - m)^\top \Lambda (\mu - m) + \frac12 \sum_i (\sigma_i^2 \Lambda_{ii} - 1 - \log \sigma_i^2 \Lambda_{ii})$. A wrong mean costs most in
# the direction in which the posterior is narrowest.
#
# *E4.* $\frac12 \big(\operatorname{tr} S^{-1} S_{\text{visible}} - L\big)$, with the best mean $\mathbb{E}[z \mid x_{\text{visible}}]$. The surprise: the best $q$ keeps the covariance $S$ of
# one who sees everything. The mean of $\mathrm{KL}(q \,\|\, \cdot)$ over the possible posteriors rewards it for being as narrow as each of them, not as wide as
# all of them together. So in this model the width of an amortised $q$ says nothing of what the encoder does not know.
#
# </details>
