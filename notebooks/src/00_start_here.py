# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · Start here
#
# **How do variational autoencoders really work?** This series answers in small steps. Each step is a page that you
# can run, and each formula on it is tested in the cell below it, by a second computation that shares nothing with
# the first. If a formula were wrong, its page would not run to the end.
#
# The whole story is a chain of six links. Every chapter opens with it, and lights the link that it forges.

# %% jupyter={"source_hidden": true} tags=["remove-cell", "setup"]
import importlib.util

from IPython import get_ipython

if (shell := get_ipython()) is not None:
    if importlib.util.find_spec("vi_tutorial") is None:  # on Colab, say
        shell.run_line_magic("pip", "install --quiet git+https://github.com/vi-tutorial/vi_tutorial")
    shell.run_line_magic("matplotlib", "inline")  # figures below their cells, whatever MPLBACKEND says

# %% mystnb={"image": {"alt": "Six boxes joined by arrows: KL divergence, ELBO lower bound, phi with the model known, theta with its form known, networks where the form is unknown, and what breaks and mends. None is lit."}}
from vi_tutorial import plots

plots.chain()

# %% [markdown]
# Five words first. We observe data, $x$. A **model** says how they came about: from something hidden, $z$, the **latent**.
# Which hidden values are plausible, now that we have seen $x$? That distribution is the **posterior** $p(z \mid x)$. How
# probable are the data under the model, whatever $z$ was? That number is the **evidence** $p(x)$. We always take its
# natural logarithm, and the unit of a natural logarithm is the **nat**: one nat more makes the data $e \approx 2.7$ times
# as probable. A posterior and its evidence both need a sum over all hidden values, and that is the trouble.
#
# Now read the chain from the left.
#
# - We want the posterior and cannot compute it, so we look for the nearest distribution that we can handle, $q$. The
#   **KL** divergence says what *near* means.
# - That divergence contains the posterior, so it cannot be computed either. A lower bound on the log evidence can: the
#   **ELBO**. The two add up to the log evidence, so pushing the bound up pulls the divergence down.
# - While the model is known we push with **φ**, the parameters of $q$.
# - When only the form of the model is known, we push with **θ** too, the parameters of the model. That is maximum
#   likelihood, nearly; the *nearly* is worth a chapter.
# - When not even the form is known, **networks** take the place of both. That is a variational autoencoder.
# - Then things **break**, each in its own way, and there is a remedy for each.
#
# All along, one line of code computes the bound. It never changes:
#
# ```python
# elbo(draw(model.given(x), q(x), num_samples).log_weight)
# ```
#
# Read it from the inside.
#
# - `model.given(x)` is the logarithm of the **joint density** $p(x, z) = p(z) \, p(x \mid z)$ for the $x$ that we saw, as a
#   function of $z$.
# - `q(x)` is the approximate posterior, a distribution of `torch.distributions`.
# - `draw` takes `num_samples` samples $z$ from it, and computes $\log p(x, z)$ and $\log q(z)$ at each.
# - `.log_weight` is their difference, one number per sample.
# - `elbo` is the mean of those numbers.

# %% [markdown]
# ## A taste, in five lines
#
# Somebody draws a number $z$ from a standard normal distribution, adds standard normal noise, and tells you only the
# sum: $x = 2$. What was $z$? Before you heard the sum you knew the **prior**, $p(z) = \mathcal{N}(0, 1)$. What you know
# now, the posterior, is $\mathcal{N}(1, \frac12)$: here there is a formula, so we can watch the method find it.
#
# `models.conjugate_normal(num_data=1)` is that story as a model: one observation, the normal prior, the normal noise. `q` is
# a normal distribution that starts at the prior, $\mathcal{N}(0, 1)$: at the wrong place, with the wrong width. The ELBO
# of $q$ is an average over its samples,
#
# $$\mathcal{L}(q) = \mathbb{E}_{z \sim q}\left[ \log p(x, z) - \log q(z) \right]. \tag{00.1}$$
#
# We let an optimiser raise it: `training.fit` evaluates the line, follows its gradient one step uphill, and does so 300
# times. Then we hold the curve against the **log evidence** $\log p(x) = \log \int p(x, z) \, dz$, which the optimiser
# never sees.

# %%
import torch
from torch.optim import Adam

from vi_tutorial import families, models, training
from vi_tutorial.elbo import draw, elbo

_ = torch.manual_seed(0)
x = torch.tensor([2.0], dtype=torch.float64)
num_samples = 64

# %%
model = models.conjugate_normal(num_data=1)
q = families.FullRankNormal(1, dtype=torch.float64)
optimiser = Adam(q.parameters(), lr=0.02)
history = training.fit(lambda x: elbo(draw(model.given(x), q(x), num_samples).log_weight), optimiser, x, num_steps=300)

# %% [markdown]
# Before you look at the picture, guess: where will the curve stop? And why should its jitter die down, although every
# step draws fresh samples?

# %% mystnb={"image": {"alt": "The ELBO in nats over 300 optimisation steps: a jagged curve rises from about minus 3.8, becomes nearly smooth, and stops at the horizontal line of the log evidence at minus 2.27."}}
import matplotlib.pyplot as plt

with plots.style():
    fig, ax = plt.subplots()
    plots.history(history, ax, evidence=model.log_evidence(x).item())
    ax.set_title("The ELBO climbs to the log evidence, and stops there")

# %% [markdown]
# The curve *cannot pass* the line, because what separates them is a divergence, and a divergence is never negative:
#
# $$\log p(x) = \mathcal{L}(q) + \mathrm{KL}\big(q \,\|\, p(z \mid x)\big), \qquad \mathrm{KL} \ge 0. \tag{00.2}$$
#
# (The drawn curve does peep over it here and there. Each of its points is a mean of only 64 samples, an *estimate* of
# $\mathcal{L}(q)$. A bound holds in expectation.)
#
# It *reaches* the line because here the posterior is a normal distribution, and $q$ may be any normal distribution. When
# $q$ is the posterior the divergence is zero, nothing is left to gain, and the climb is over. (A family that lacks the
# posterior would stop below the line. By how much is the question of chapter 02.)
#
# And the jitter all but dies because at the posterior $\log p(x, z) - \log q(z)$ is the same number for every $z$, so it no
# longer matters which samples are drawn. That difference, the **log weight**, is the one object of this series.
# [Chapter 01](01_the_elbo.ipynb) takes it apart, and proves equation (00.2).

# %% [markdown]
# ## How to read a check
#
# "It stops at the log evidence" is a claim. So it has a number, check 00.1, and meets an **oracle**: a second way to the
# same value. Here that is SciPy's normal density, since a sum of two independent standard normals is $\mathcal{N}(0, 2)$.
# (Equations and checks are counted apart: check 00.1 is not about equation (00.1).)
#
# A check also takes answers that are *wrong*, the mistakes that people make. We name two: the height of the joint density at
# its best $z$, where nothing was integrated; and the ELBO of the $q$ that we started from. The last line below is what a
# check prints.

# %%
import numpy as np
from scipy import stats

from vi_tutorial import checks

fitted = elbo(draw(model.given(x), q(x), 10_000).log_weight)
log_evidence = stats.norm(0, np.sqrt(2)).logpdf(2.0)
peak = stats.norm.logpdf(1.0) + stats.norm(1.0, 1).logpdf(2.0)  # log p(z) + log p(x | z) at z = 1
bound_before = model.elbo(x, model.prior())  # in closed form
checks.independent(
    "00.1",
    "the ELBO of the fitted q is the log evidence",
    fitted,
    log_evidence,
    wrong={"log p(x, z) at its peak, nothing integrated": peak, "the ELBO of the prior": bound_before},
    tolerance=1e-2,
)

# %% [markdown]
# From left to right: the verdict; the number of the claim; the claim; the kind of proof with its tolerance; and the
# **wrong answers that this very check would have rejected**. The kinds, strongest first:
#
# | kind | the oracle |
# |---|---|
# | exact | another closed form, in double precision |
# | quadrature | numerical integration |
# | enumeration | a sum over every state |
# | independent | somebody else's implementation |
# | monte-carlo | the exact value, within four standard errors of the samples' mean |
# | inequality | the other side of a bound |
#
# A check that fails stops the page. So that you can see two failures and still read on, the folded cell below defines
# `staged`, which runs a check that is meant to fail, and prints why it did.

# %% jupyter={"source_hidden": true} tags=["hide-cell"]
from IPython.utils.capture import capture_output


def staged(*claim, **settings):
    """Run a check that is meant to fail; say why it did, and keep it out of the page's record."""
    with capture_output():
        try:
            checks.independent(*claim, **settings)
        except checks.CheckFailedError as error:
            verdict = str(error)
        else:
            raise AssertionError("the check passed")
    print(verdict.split(". ")[0])


# %% [markdown]
# Suppose someone forgets the integral, and takes the peak of the joint density for the evidence:

# %%
staged(
    "00.2",
    "the ELBO is log p(x, z) at its peak",
    fitted,
    peak,
    wrong={"the ELBO of the prior": bound_before},
    tolerance=1e-2,
)

# %% [markdown]
# And a check that *could not* fail cannot be written. Here the tolerance is so wide that the mistake would pass too:

# %%
staged("00.3", "the ELBO is log p(x)", fitted, log_evidence, wrong={"the peak": peak}, tolerance=1.0)

# %% [markdown]
# So a green page means more than "it ran". Change a formula, run the cell below it, and see.

# %% [markdown]
# ## How to read a gap ledger
#
# The evidence is what we would like to have; the ELBO is what we get. The **gap ledger** says where the difference
# went, in nats, always against an exact $\log p_\theta(x)$:
#
# $$
# \log p_\theta(x) \;=\; \mathcal{L}(q) \;+\; \underbrace{\mathcal{L}(q^*) - \mathcal{L}(q)}_{\text{amortisation gap}}
# \;+\; \underbrace{\log p_\theta(x) - \mathcal{L}(q^*)}_{\text{approximation gap}} \tag{00.3}
# $$
#
# where $q^*$ is the best member of $q$'s family for this $x$. The first gap is what this $q$ leaves undone: the optimiser's
# fault here, and later that of encoders, which have to serve all datapoints at once and gave it its name. The second is
# what the whole family cannot reach.
#
# `gap_ledger` takes the three numbers that the equation subtracts, in this order: the ELBO of the $q$ at hand; the ELBO of
# the best $q$ in its family; the log evidence. (Each has one entry per datapoint, and the ledger shows means.) Here is the
# ledger of our taste *before* a single step. Then $q$ was still the prior. The family holds the posterior, so the best
# ELBO *is* the log evidence, and the second number equals the third.

# %%
from vi_tutorial import evaluation

log_evidence = model.log_evidence(x)
print(evaluation.gap_ledger(bound_before, log_evidence, log_evidence))

# %% [markdown]
# All of the difference can be won by optimising $q$; nothing is lost to the family. In later chapters both gaps are
# open, and there may be a fourth number, the log evidence under other parameters $\theta$ that serve as a reference. Then
# the ledger has one more row: what the *model* loses against them.

# %% [markdown]
# ## The chapters
#
# | | chapter | its question |
# |---|---|---|
# | 00 | Start here | What is this, and how do I read it? |
# | | **Part I: the model is known** | |
# | 01 | [The ELBO](01_the_elbo.ipynb) | What do we maximise when the posterior is out of reach, and why is it a bound? |
# | 02 | [A fixed Gaussian joint](02_a_fixed_gaussian_joint.ipynb) | What does an approximation that ignores correlation get right, and what wrong? |
# | 03 | [Gradients from samples](03_gradients_from_samples.ipynb) | How do we climb a bound that we can only sample, and which way is steadiest? |
# | 04 | [VI on your own model](04_vi_on_your_own_model.ipynb) | How do I fit my own model, and when should I not trust the answer? |
# | | **Part II: its form is known, its parameters are not** | |
# | 05 | [EM is coordinate ascent](05_em_is_coordinate_ascent.ipynb) | How can an algorithm with no gradient and no step size find θ, and never take a step down? |
# | 06 | [Learning θ and φ together](06_learning_theta_and_phi.ipynb) | Does raising the ELBO raise the likelihood? |
# | 07 | [When q is too simple, θ is wrong](07_when_q_is_too_simple.ipynb) | What does a poor posterior do to the parameters? |
# | | **Part III: the form is unknown** | |
# | 08 | [One posterior per datapoint, then one network for all](08_one_posterior_per_datapoint.ipynb) | Can one network replace n optimisations, and who pays for it? |
# | 09 | [Distributions from neural networks](09_distributions_from_networks.ipynb) | How does a network describe a distribution, and which one should it be? |
# | 10 | [The variational autoencoder](10_the_variational_autoencoder.ipynb) | How do VAEs really work? |
# | 11 | [Gaussian likelihoods and the variance trap](11_the_variance_trap.ipynb) | What does a learned variance do to the bound, and what keeps it honest? |
# | 12 | [How good is the model?](12_how_good_is_the_model.ipynb) | How do we measure log p(x) where no grid can reach, and know the error? |
# | | **Part IV: what breaks, and what mends it** | |
# | 13 | [When supports do not match](13_when_supports_do_not_match.ipynb) | Where q has mass and the model none, what breaks, and which remedy mends which? |
# | 14 | [Tighter bounds](14_tighter_bounds.ipynb) | What does a tighter bound buy, and what does it cost the encoder? |
# | 15 | [Posterior collapse](15_posterior_collapse.ipynb) | Which latents die, who kills them, and which remedy mends what? |
# | 16 | [Richer posteriors and priors](16_richer_posteriors_and_priors.ipynb) | What does a richer q buy, what a richer prior, and how would we know? |
# | 17 | [Discrete latents](17_discrete_latents.ipynb) | How does one climb the ELBO when the draw has no derivative? |
# | 18 | [From VAEs to diffusion](18_from_vaes_to_diffusion.ipynb) | What is left of a VAE when its latent is a long path into noise? |
# | 19 | [At scale](19_at_scale.ipynb) | What has to change when the data outgrow a minute, memory, or a machine? |
# | 20 | [The bug museum](20_the_bug_museum.ipynb) | How do you find an error that makes no noise? |
#
# **For whom.** You know calculus, the normal distribution and a little PyTorch; you have not met variational
# inference. If you teach: each chapter fills about 90 minutes. If you doubt: change a line, and run the check below it.
#
# **How to run.** In a clone of the repository, `make lab` opens a copy of these pages that is yours to edit. `make run`
# executes all chapters and prints a table of what was verified. Each chapter reads in 30 to 45 minutes and runs in
# well under one. Nothing is downloaded.
#
# **Exercises.** Each chapter ends with three to five. Write your answer into the stub and run the cell: it is compared
# with an oracle, and the usual mistakes are recognised by name. Solutions stand folded at the end.

# %% [markdown]
# ## Notation
#
# The same everywhere. In code the symbols are words.
#
# | symbol | meaning | in code |
# |---|---|---|
# | $x$ | data, observed | `x` |
# | $z$ | latent, not observed | `z` |
# | $\theta$ | parameters of the model | `model` |
# | $\phi$ | parameters of the approximation | `q` |
# | $p_\theta(x, z)$ | the joint | `model.given(x)` is its logarithm as a function of `z` |
# | $p(z)$ | the prior | `model.prior()` |
# | $p_\theta(x \mid z)$ | the likelihood | `model.likelihood(z)` |
# | $p_\theta(z \mid x)$ | the posterior | `model.posterior(x)`, where it is known |
# | $p_\theta(x)$ | the evidence, or marginal likelihood | `model.log_evidence(x)`, where it is known |
# | $q_\phi(z)$ or $q_\phi(z \mid x)$ | the approximate posterior | `q(x)` |
# | $w = p_\theta(x, z) / q_\phi(z \mid x)$ | the weight of a sample $z \sim q$ | `draw(...).log_weight` |
# | $\mathcal{L}$ | the ELBO, $\mathbb{E}_q[\log w]$ | `elbo(log_weight)` |
# | $\mathrm{KL}(q \,\|\, p)$ | the divergence from $q$ to $p$, an expectation under $q$ | `kl_divergence(q, p)` |
# | $p_D(x)$ | the distribution of the data | |
# | $K$ | number of samples | `num_samples` |
# | $N$, $B$ | number of datapoints, size of a minibatch | `num_data`, `batch_size` |
# | $D$, $L$ | dimension of the data, of the latent | `data_dim`, `latent_dim` |
#
# Two conventions prevent the field's most common mistakes. A bound is **one number per datapoint, in nats**, summed
# over pixels and latent dimensions and never averaged. And **larger is better**: the only minus sign that turns a
# bound into a loss stands inside `training.fit`.

# %% [markdown]
# ## Where this page was run
#
# Everything above is the same on every machine; what follows is not, and is left out when outputs are compared.

# %% tags=["nbval-ignore-output"]
import platform
from importlib.metadata import version

for name in ("vi_tutorial", "torch", "numpy", "scipy", "scikit-learn", "matplotlib"):
    print(f"{name:<14}{version(name)}")
print(f"{'python':<14}{platform.python_version()}")

# %% [markdown]
# **Next:** [01 · The ELBO](01_the_elbo.ipynb). Why is there an integral, and what do we do when we cannot do it?
