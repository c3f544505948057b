# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · EM is coordinate ascent on the ELBO
#
# **From here on nobody tells us θ. There is an algorithm, named in 1977, that finds it without a gradient and without a
# step size, and that never takes a step down. Why does it work?**

# %% jupyter={"source_hidden": true} tags=["remove-cell", "setup"]
import importlib.util

from IPython import get_ipython

if (shell := get_ipython()) is not None:
    if importlib.util.find_spec("vi_tutorial") is None:  # on Colab, say
        shell.run_line_magic("pip", "install --quiet git+https://github.com/vi-tutorial/vi_tutorial")
    shell.run_line_magic("matplotlib", "inline")  # figures below their cells, whatever MPLBACKEND says

# %% [markdown]
# *Before this:* [chapter 01](01_the_elbo.ipynb) (the ELBO, the gap) and the idea of coordinate ascent from [chapter
# 02](02_a_fixed_gaussian_joint.ipynb). *Reading time:* 40 minutes; the cells run in about fifteen seconds.
#
# **You will be able to**
#
# - **derive** both steps of EM from one bound, and **write** them in fifteen lines;
# - **prove**, in one line, that EM never lowers the likelihood, and **test** an EM that might be wrong;
# - **predict** how fast it converges, from the information that is missing;
# - **bend** it (partial steps, one datapoint at a time, hard labels), and **say** what each bend keeps and loses;
# - **recognise** its two failures: a local maximum, and a likelihood without a maximum.

# %% mystnb={"image": {"alt": "The map of the series: six boxes joined by arrows, KL, ELBO, phi, theta, networks, what breaks. The fourth, theta with its form known, is lit."}}
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from scipy import integrate, stats
from sklearn.mixture import GaussianMixture as SklearnMixture
from threadpoolctl import threadpool_limits
from torch.distributions import Categorical, MultivariateNormal
from torch.optim import LBFGS, SGD

from vi_tutorial import checks, data, em, models, plots, training
from vi_tutorial.elbo import draw, elbo
from vi_tutorial.evaluation import gap_ledger
from vi_tutorial.exercises import ch05

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # the matrices are small: to share them out takes longer than the work
_ = threadpool_limits(1)
_ = torch.manual_seed(0)
plots.chain("theta")

# %% [markdown]
# ## A hill, and the length of a step
#
# Old Faithful is a geyser. For 272 eruptions we know how long each lasted and how long the wait for the next one was,
# both in minutes. There seem to be two kinds, short and long. Nobody wrote down which eruption was of which kind.
#
# So we say: each eruption has a hidden label $z$, and each label its own normal distribution. Call all unknowns θ:
# two weights, two means, two covariance matrices. Their likelihood has a gradient. Let us climb it in the plainest
# way, with three step sizes, 200 steps each; and beside it this chapter's method, from the same start. Then once more
# with both columns in units of their standard deviation.
#
# Which of these choices, step size and unit, will matter to gradient ascent? Which to EM?

# %%
x = data.old_faithful()
num_data = len(x)


def start(seed=0, num_components=2):
    """Means at random eruptions, everything else equal."""
    return models.gaussian_mixture(x, num_components, torch.Generator().manual_seed(seed))


def climb(x, step_size):
    """200 steps of gradient ascent on the mean log-likelihood per eruption; totals over the data set, in nats."""
    model = models.gaussian_mixture(x, 2, torch.Generator().manual_seed(0))
    history = training.fit(model.log_evidence, SGD(model.parameters(), lr=step_size), x, num_steps=200)
    return num_data * np.array(history.bound)


sd = x.std(0, correction=0)
standard, shift = (x - x.mean(0)) / sd, num_data * sd.log().sum().item()  # log p in minutes = in units of sd − shift
climbs = {f"gradient, {step_size}": climb(x, step_size) for step_size in (0.03, 0.3, 1.0)}
in_sd = climb(standard, 0.1) - shift

best = start()
em_history = em.em(best, x)
top = em_history.log_evidence[-1]
em_in_sd = em.em(models.gaussian_mixture(standard, 2, torch.Generator().manual_seed(0)), standard)
assert all(values.max() < top - 50 for values in climbs.values())
assert top - 1 < in_sd[-1] < top + 1e-6
first = int(np.argmax(in_sd > top - 1))
assert 80 < first < 150
print(f"EM: log p(x) = {top:.5f} nats after {len(em_history.after_m_step)} steps")
print("gradient ascent in minutes, 200 steps: more than 50 nats short at every one of the three step sizes")
print("gradient ascent in units of the sd, step size 0.1: within 1 nat of the top after some hundred steps")
checks.exact(
    "05.6",
    "EM does not see units: log p(x) along its path shifts by N Σ log sd, and nothing else",
    np.array(em_history.log_evidence)[:12],
    np.array(em_in_sd.log_evidence)[:12] - shift,
    wrong={"no shift": np.array(em_in_sd.log_evidence)[:12]},
)

# %% mystnb={"image": {"alt": "Left: 272 eruptions, waiting time against duration, in two elongated clouds, a short one at about 2 minutes and 54, a long one at 4.3 and 80. Right: total log likelihood over 200 steps. In minutes, two curves of gradient ascent creep up to about minus 1240 and minus 1260, and a third leaps wildly up and down below minus 1200. In units of the standard deviation gradient ascent reaches minus 1130 after about a hundred steps; EM goes straight up to it within a few."}}
with plots.style():
    fig, (left, right) = plt.subplots(1, 2, width_ratios=(1, 1.3))
    left.plot(*x.T, "o", color=plots.COLOURS.data, markersize=3.5, alpha=0.6)
    left.set(xlabel="duration (min)", ylabel="wait for the next (min)")
    left.set_title("272 eruptions")
    for (label, values), linestyle in zip(climbs.items(), (":", "--", "-"), strict=True):
        right.plot(values, color=plots.COLOURS.muted, linestyle=linestyle, linewidth=1, label=label)
    right.plot(in_sd, color=plots.COLOURS.data, linestyle="-.", label="gradient, 0.1, in sd")
    right.plot(em_history.log_evidence, color=plots.COLOURS.theta, marker="o", markersize=4, label="EM")
    right.axhline(top, color=plots.COLOURS.evidence, linewidth=1, linestyle=":")
    right.set(xlabel="step", ylabel=r"$\log p_\theta(x)$ (nats)", ylim=(-1395, -1110))
    right.legend(loc="upper right", bbox_to_anchor=(1, 0.9), fontsize=8, framealpha=1)
    right.set_title("EM needs no step size")

# %% [markdown]
# In minutes the smallest step size crawls, the middle one begins to shake, the largest leaps up and down without end
# (the axis cuts off how deep it falls). A step of gradient ascent is the step size times a slope, and how long it may be
# depends on the *curvature*: about one over a variance, so 6 per square minute for durations and 0.03 for waits. One
# step size must do for both. In units of the standard deviation it can, and gradient ascent arrives, after some
# hundred steps. EM takes the same steps in any unit (check 05.6), and there is nothing to set.
#
# (A check is numbered by its claim, an equation by its place: "check 05.6" has nothing to do with "equation (05.6)".)
#
# ## The trouble is a sum inside a logarithm
#
# The model. There are $C$ **components**, here 2 ($K$ stays the number of samples):
#
# $$p(z = c) = \pi_c, \qquad p_\theta(x \mid z = c) = \mathcal{N}(x \mid \mu_c, \Sigma_c), \qquad
#   \theta = (\pi_c, \mu_c, \Sigma_c)_{c = 1, \dots, C}. \tag{05.1}$$
#
# (For this one model the prior has parameters too.) We do not see $z$, so it is summed out:
#
# $$\log p_\theta(x_1, \dots, x_N) = \sum_{n=1}^N \log \sum_{c=1}^C \pi_c \, \mathcal{N}(x_n \mid \mu_c, \Sigma_c). \tag{05.2}$$
#
# If the labels were known there would be no inner sum. The logarithm would meet the normal density, and the best
# $\mu_c$ would be the mean of the eruptions with label $c$: two lines of code. The inner sum blocks the way. Set the
# derivative in $\mu_c$ to zero and you find
#
# $$\sum_n r_{nc} \, \Sigma_c^{-1} (x_n - \mu_c) = 0, \qquad
#   r_{nc} = \frac{\pi_c \, \mathcal{N}(x_n \mid \mu_c, \Sigma_c)}{\sum_j \pi_j \, \mathcal{N}(x_n \mid \mu_j, \Sigma_j)}
#   = p_\theta(z_n = c \mid x_n). \tag{05.3}$$
#
# That looks like a weighted mean, but the weights $r_{nc}$, the **responsibilities**, contain $\mu_c$ again. The
# equation runs in a circle. EM runs with it: compute the weights, solve for θ as if they were constants, repeat.
#
# Why should that get anywhere? "It looks plausible" is no reason. The ELBO gives one.

# %% [markdown]
# ## Two coordinates of one function
#
# Take any distribution over the labels, $q(z_n = c) = q_{nc}$. Here φ is nothing but this table of $N \times C$
# numbers: a free posterior for every datapoint. The ELBO is an expectation over $z$, and with two states an
# expectation is a sum:
#
# $$\mathcal{L}(q, \theta) = \sum_{n=1}^N \sum_{c=1}^C q_{nc} \big[ \log \pi_c + \log \mathcal{N}(x_n \mid \mu_c, \Sigma_c)
#   - \log q_{nc} \big] \;\le\; \log p_\theta(x). \tag{05.4}$$
#
# Compare with (05.2). **The logarithm has moved inside the sum.** That is all Jensen's inequality ever did for us, and
# it is what makes θ easy: for fixed $q$, (05.4) is a log-likelihood with known, if fractional, labels.
#
# So we have one function of two things, and each alone is easy. Coordinate ascent, then, as in chapter 02.
#
# **E-step: the best $q$ for a fixed θ.** Chapter 01 has done it. The gap is a KL,
#
# $$\log p_\theta(x) - \mathcal{L}(q, \theta) = \sum_n \mathrm{KL}\big(q_n \,\|\, p_\theta(z_n \mid x_n)\big), \tag{05.5}$$
#
# and it is zero where $q$ is the posterior: $q_{nc} = r_{nc}$. We can afford the posterior here: it is (05.3), a
# division by a sum of two terms. ("E" is for *expectation*, since with this $q$ one takes the expectation in equation
# 05.4.) In code θ is a tuple of three tensors. All functions allow leading dimensions, so that later we can run forty
# EMs at once.


# %%
def log_joint(theta, x):
    """log p(x, z = c) for every datapoint and component, shape (..., N, C): the bracket of (05.4) without q."""
    probs, loc, covariance = theta
    normals = MultivariateNormal(
        loc.unsqueeze(-3), covariance.unsqueeze(-4), validate_args=False
    )  # (..., 1, C, D), (..., 1, C, D, D)
    return probs.log().unsqueeze(-2) + normals.log_prob(x[:, None])  # x[:, None] is (N, 1, D)


def e_step(theta, x):
    return log_joint(theta, x).softmax(-1)  # (05.3)


def bound(q, theta, x):
    return torch.where(q > 0, q * (log_joint(theta, x) - q.log()), 0).sum((-2, -1))  # (05.4), with 0 log 0 = 0


# %% [markdown]
# **M-step: the best θ for a fixed $q$** ("M" is for *maximisation*). Write $N_c = \sum_n q_{nc}$ for the number of
# eruptions that component $c$ owns. The entropy of $q$ does not depend on θ, and the rest falls into parts, one for
# each parameter:
#
# - *Weights.* $\sum_c N_c \log \pi_c = N \sum_c \frac{N_c}{N} \log \frac{N_c}{N} - N \, \mathrm{KL}\big(\tfrac{N_c}{N}
#   \,\big\|\, \pi_c\big)$. Only the KL contains π. It is smallest, zero, at $\pi_c = N_c / N$. No derivative, no
#   Lagrange multiplier.
# - *Means.* Write $\lVert v \rVert^2_A = v^\top A v$ and $\bar x_c = \frac{1}{N_c} \sum_n q_{nc} x_n$. The weighted sum of
#   squares splits, since the cross term contains $\sum_n q_{nc} (x_n - \bar x_c) = 0$: $\sum_n q_{nc} \lVert x_n - \mu_c
#   \rVert^2_{\Sigma_c^{-1}} = \sum_n q_{nc} \lVert x_n - \bar x_c \rVert^2_{\Sigma_c^{-1}} + N_c \lVert \bar x_c - \mu_c
#   \rVert^2_{\Sigma_c^{-1}}$. The best $\mu_c$ is $\bar x_c$, **whatever $\Sigma_c$ is**. (Half of the last term is
#   $N_c \, \mathrm{KL}(\mathcal{N}(\bar x_c, \Sigma_c) \,\|\, \mathcal{N}(\mu_c, \Sigma_c))$: a KL here too.)
# - *Covariances.* With $S_c$ the weighted covariance around $\bar x_c$, what is left is $-\frac{N_c}{2} \big[ \log\det
#   \Sigma_c + \operatorname{tr}(\Sigma_c^{-1} S_c) \big]$. Compare $\mathrm{KL}(\mathcal{N}(0, S) \,\|\, \mathcal{N}(0,
#   \Sigma)) = \frac12 [\operatorname{tr}(\Sigma^{-1} S) - D + \log\det \Sigma - \log\det S]$: it is $-N_c$ times this
#   KL, and terms without θ. Again zero at equality: $\Sigma_c = S_c$.
#
# $$\pi_c = \frac{N_c}{N}, \qquad \mu_c = \frac{1}{N_c} \sum_n q_{nc} \, x_n, \qquad
#   \Sigma_c = \frac{1}{N_c} \sum_n q_{nc} (x_n - \mu_c)(x_n - \mu_c)^\top. \tag{05.6}$$
#
# Proportion, mean, covariance: what one would do with known labels, weighted. Both steps minimise KLs, and both do it
# completely. There is nothing left for a step size to decide.
# Fifteen lines in all. Take turns, and compare with the package's `em.em(model, x)`, step by step.


# %%
def m_step(q, x):
    count = q.sum(-2)
    loc = q.mT @ x / count[..., None]
    deviation = x[:, None] - loc.unsqueeze(-3)
    spread = torch.einsum("...nc,...ncd,...nce->...cde", q, deviation, deviation)  # Σ_n q_nc (x−μ)(x−μ)ᵀ
    return count / len(x), loc, spread / count[..., None, None]  # (05.6)


def theta_of(model):
    return tuple(value.detach().clone() for value in (model.probs, model.loc, model.covariance_matrix))


theta, path, staircase = theta_of(start()), [], []
for _ in range(14):
    q = e_step(theta, x)
    staircase.append(bound(q, theta, x).item())
    path.append((theta, q))
    theta = m_step(q, x)
    staircase.append(bound(q, theta, x).item())

package = [b for pair in zip(em_history.after_e_step, em_history.after_m_step, strict=True) for b in pair]
steps = min(len(package), len(staircase))
assert np.allclose(package[:steps], staircase[:steps], rtol=0, atol=1e-8)  # the package's em.em, step by step
for name, value in zip(("weights", "means", "sds"), theta, strict=True):
    value = value.diagonal(dim1=-2, dim2=-1).sqrt() if value.ndim == 3 else value
    print(f"{name:<8}", np.round(value.numpy(), 2).tolist())

# %% [markdown]
# Two kinds indeed: 64 % long eruptions of 4.3 minutes, followed by a wait of 80; 36 % short ones of 2 minutes, followed
# by 54. The package's `em.em(model, x)` took the same steps.
#
# Each frame of the film is half a step. In an E-step the colours change and the ellipses stay; in an M-step the other
# way round. (Colour is $q$: orange for "surely short", blue for "surely long". Ellipses at one and two sds are θ.)

# %% mystnb={"image": {"alt": "Animation of 15 frames. Eruptions coloured by responsibility under two ellipses, which start wide and overlapping, and in seven steps shrink onto the two clouds while the colours part into orange for the short cloud and blue for the long one. The title counts the ELBO up from minus 1324 to minus 1130."}} tags=["nbval-ignore-output"]
shades = LinearSegmentedColormap.from_list("q", [plots.COLOURS.theta, "#DDDDDD", plots.COLOURS.q])


def draw_em(fig, frame):
    ax = fig.subplots()
    t = frame // 2
    theta, q = path[(frame + 1) // 2][0], path[t][1]
    ax.scatter(*x.T, c=q[:, 1], cmap=shades, vmin=0, vmax=1, s=16, edgecolors="#666666", linewidths=0.3)
    for c in range(2):
        plots.normal_ellipse(theta[1][c], theta[2][c], ax, colour="#222222", linestyle=("-", "--")[c])
    ax.set(xlabel="duration (min)", ylabel="wait (min)", xlim=(0.8, 6.2), ylim=(35, 103))
    what = "q follows θ" if frame % 2 == 0 else "θ follows q"
    ax.set_title(f"step {t}, {'EM'[frame % 2]}: {what}, ELBO {staircase[frame]:.1f}".replace("-", "−"))


alt = "EM on Old Faithful: responsibilities and ellipses in turn, and the ELBO in the title."
plots.animate(draw_em, 15, alt, name="em on old faithful", figsize=(5.2, 3.6), interval_ms=500)

# %% [markdown]
# Now to the proofs. First the pieces: the responsibilities by visiting every eruption and every label with ordinary
# arithmetic; and the M-step by asking an optimiser, which knows none of (05.6), for the best θ at a fixed, half-way $q$.

# %%
theta_mid, q_mid = path[3]  # after three steps: nothing special about it


def by_hand(theta, weighted=True):
    """p(z = c | x) for each eruption: densities written out, one number at a time."""
    table = []
    for a, b in x.tolist():
        joint = []
        for weight, (m, n), ((s, c), (_, t)) in zip(*(v.tolist() for v in theta), strict=True):
            det, u, v = s * t - c * c, a - m, b - n
            distance = (t * u * u - 2 * c * u * v + s * v * v) / det
            joint.append((weight if weighted else 1.0) * np.exp(-distance / 2) / (2 * np.pi * np.sqrt(det)))
        table.append([value / sum(joint) for value in joint])
    return np.array(table)


hard = torch.eye(2)[q_mid.argmax(1)]
checks.enumeration(
    "05.5",
    "responsibilities: 272 eruptions × 2 labels, one at a time",
    e_step(theta_mid, x),
    by_hand(theta_mid),
    wrong={"the weights π left out": by_hand(theta_mid, weighted=False), "hard labels": hard},
)

# %%
model = models.GaussianMixture(*theta_mid)
q = Categorical(probs=q_mid)
optimiser = LBFGS(
    model.parameters(), line_search_fn="strong_wolfe", max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-16
)
_ = training.fit(lambda x: model.elbo(x, q), optimiser, x, num_steps=5)


def flat(theta):
    return torch.cat([value.flatten() for value in theta])


probs, loc, covariance = m_step(q_mid, x)
count = num_data * probs[:, None, None]
around_old = covariance + torch.einsum("cd,ce->cde", loc - theta_mid[1], loc - theta_mid[1])
checks.independent(
    "05.7",
    "the M-step of equation (05.6) = L-BFGS on the ELBO in θ, q held fixed",
    flat((probs, loc, covariance)),
    flat(theta_of(model)),
    wrong={
        "N_c − 1 in place of N_c": flat((probs, loc, covariance * count / (count - 1))),
        "deviations from the old means": flat((probs, loc, around_old)),
        "hard labels": flat(m_step(hard, x)),
    },
    tolerance=1e-5,
)

# %% [markdown]
# ## Why it never steps down
#
# Put the two steps in a row. After the E-step the bound *is* the log-likelihood; the M-step can only raise the bound;
# and the new log-likelihood lies above it, since the bound is a bound:
#
# $$\log p_{\theta_t}(x) \;\overset{\text{E}}{=}\; \mathcal{L}(q_t, \theta_t) \;\overset{\text{M}}{\le}\;
#   \mathcal{L}(q_t, \theta_{t+1}) \;\le\; \log p_{\theta_{t+1}}(x). \tag{05.7}$$
#
# That is the whole proof. Mind what it does *not* say. Ascent is not arrival: EM's limits are points where it stands
# still, and these can be saddles (Wu 1983, who also mended the original proof of convergence). Two identical
# components, for example, have $r_{n1} = r_{n2}$ for ever and never part. And nothing in (05.7) said that $z$ is a
# label: the two steps are the same for any latent variable.
#
# See the proof on the geyser: go from $\theta_0$ to $\theta_1$ in a straight line, on to
# $\theta_2$, and so on. All along compute the exact log-likelihood, and the bound with the $q$ of the last E-step.

# %% mystnb={"image": {"alt": "The log likelihood rises along the path of EM from minus 1324 to minus 1130 over seven steps. Under it hang seven dashed arcs of the bound. Each starts on the curve and ends, flat, one step later below it, where the next arc starts on the curve again. The gaps are largest, about 20 nats, in the first two steps."}}
fractions = torch.linspace(0, 1, 21)


def along(t):
    """log p and the bound with q_t, on the straight line from θ_t to θ_{t+1}."""
    (here, q), (there, _) = path[t], path[t + 1]
    points = [tuple((1 - s) * a + s * b for a, b in zip(here, there, strict=True)) for s in fractions]
    log_p = [log_joint(point, x).logsumexp(1).sum().item() for point in points]
    return np.array(log_p), np.array([bound(q, point, x).item() for point in points])


arcs = [along(t) for t in range(7)]
for log_p, lower in arcs:
    assert abs(lower[0] - log_p[0]) < 1e-9  # E: they touch
    assert lower.argmax() == 20  # M: to the top of the bound
    assert (lower <= log_p + 1e-9).all()

with plots.style():
    fig, ax = plt.subplots()
    for t, (log_p, lower) in enumerate(arcs):
        label = {"evidence": r"$\log p_\theta(x)$", "q": r"$\mathcal{L}(q_t, \theta)$"} if t == 0 else {}
        ax.plot(t + fractions, log_p, color=plots.COLOURS.evidence, label=label.get("evidence"))
        ax.plot(t + fractions, lower, color=plots.COLOURS.q, linestyle="--", label=label.get("q"))
        ax.plot([t + 1, t + 1], [lower[-1], log_p[-1]], color=plots.COLOURS.q, linewidth=1)
        ax.plot(t, log_p[0], "o", color=plots.COLOURS.theta, markersize=6)
    ax.set(xlabel="step of EM, θ between steps on a straight line", ylabel="nats")
    ax.legend(loc="lower right")
    ax.set_title("E: touch the curve.  M: climb the arc.  The curve is above")

# %% [markdown]
# At each blue point the E-step has just made the dashed arc touch the curve. The M-step climbs to the end of the arc.
# The curve lies above it, so the likelihood has risen by *more* than the bound. The thin vertical line is the gap that
# opened meanwhile: $q$ has gone stale. The next E-step closes it, and that is free ascent for $\mathcal{L}$.
#
# The equality at the touching points, checked with SciPy's densities, which know neither $q$ nor $\mathcal{L}$. And with
# $q$ the posterior the log weight is the same for *every* $z$, so that one sample gives the ELBO without any noise. For
# this let $z$ be a number, not a label, in probabilistic PCA: $z \sim \mathcal{N}(0, 1)$ and $x \mid z \sim \mathcal{N}(W
# z + b, \sigma^2 I)$, with the posterior of chapter 02. Chapter 06 will train it; `em.em` takes it as it is.

# %%
thetas = [theta for theta, _ in path]
after_e, after_m = np.array(staircase[::2]), np.array(staircase[1::2])


def log_likelihood(theta):
    """(05.2) by SciPy."""
    parts = zip(*(v.numpy() for v in theta), strict=True)
    return np.log(sum(p * stats.multivariate_normal(m, s).pdf(x.numpy()) for p, m, s in parts)).sum()


no_entropy = [(q * log_joint(theta, x)).sum().item() for theta, q in path[:6]]
checks.independent(
    "05.1",
    "after each E-step 𝓛 = log p(x), by SciPy's densities",
    after_e[:6],
    [log_likelihood(theta) for theta in thetas[:6]],
    wrong={
        "q one step old": np.r_[after_e[0], after_m[:5]],
        "the entropy of q left out": no_entropy,
        "hard labels": [bound(torch.eye(2)[q.argmax(1)], theta, x).item() for theta, q in path[:6]],
    },
    tolerance=1e-10,
)


# %%
def one_sample_bound(model, q, x, num_samples=1):
    return elbo(draw(model.given(x), q(x), num_samples).log_weight).detach()


pca, other = (models.probabilistic_pca(2, 1, torch.Generator().manual_seed(seed)) for seed in (0, 1))
_ = em.em(pca, standard, num_steps=3)
W, b, noise = (v.detach().numpy() for v in (pca.weight, pca.loc, pca.noise_scale))
checks.independent(
    "05.8",
    "probabilistic PCA: after the E-step one sample of log w is log p(x), for each of 272 eruptions",
    one_sample_bound(pca, pca.posterior, standard),
    stats.multivariate_normal(b, W @ W.T + noise**2 * np.eye(2)).logpdf(standard.numpy()),
    wrong={"q from another θ": one_sample_bound(pca, other.posterior, standard)},
    tolerance=1e-9,
)

# The warning about saddles: two identical components.
twins = tuple(torch.stack([v] * 2) for v in (torch.tensor(0.5), x.mean(0), torch.cov(x.mT, correction=0)))
for _ in range(100):
    twins = m_step(e_step(twins, x), x)
print(f"two identical components, 100 steps: {log_joint(twins, x).logsumexp(1).sum():.2f} nats, one normal for all")
assert torch.allclose(twins[1][0], twins[1][1])

# %% [markdown]
# ### A test that catches, and a test that does not
#
# "It never goes down" is also the textbook's advice for finding bugs: print the likelihood, and if it ever falls, there
# is a mistake. (We watch $\mathcal{L}$ at every half-step, which is stricter.) Try it on three versions of EM that real programs contain: $\pi$ forgotten in the E-step; $N_c - 1$ in
# place of $N_c$; a constant added to each variance "for stability". Which of them will be seen to fall?


# %%
def run(theta, num_steps, e_step=e_step, m_step=m_step):
    """The ELBO after every half-step."""
    out = [log_joint(theta, x).logsumexp(1).sum().item()]
    for _ in range(num_steps):
        q = e_step(theta, x)
        out.append(bound(q, theta, x).item())
        theta = m_step(q, x)
        out.append(bound(q, theta, x).item())
    return np.array(out)


def no_weights(theta, x):
    return (log_joint(theta, x) - theta[0].log()).softmax(-1)


def unbiased(q, x):
    probs, loc, covariance = m_step(q, x)
    count = len(x) * probs[:, None, None]
    return probs, loc, covariance * count / (count - 1)


def padded(q, x):
    probs, loc, covariance = m_step(q, x)
    return probs, loc, covariance + 0.1 * torch.eye(2)


# %%
mistakes = {"π forgotten": {"e_step": no_weights}, "N_c − 1": {"m_step": unbiased}, "0.1 added": {"m_step": padded}}


def falls(theta):
    """The largest fall of 𝓛 in a half-step, for each mistake; 0 if there is none."""
    return [max(0.0, -np.diff(run(theta, 12, **mistake)).min()) + 0.0 for mistake in mistakes.values()]


from_start = np.array([falls(theta_of(start(seed))) for seed in range(4)])
from_top = np.array(falls(theta_of(best)))
print("largest fall in a half-step (nats)     seed 0  seed 1  seed 2  seed 3   top")
for name, at_start, at_top in zip(mistakes, from_start.T, from_top, strict=True):
    print(f"{name:<36}" + "".join(f"{fall:8.2f}" for fall in at_start) + f"{at_top:9.3f}")
assert (from_start[:3] < 1e-9).all()
assert from_start[3, 1] < 1e-9
assert (from_start[3, [0, 2]] > 2).all()

right = max(-np.diff(run(theta, 12)).min() for theta in (*(theta_of(start(seed)) for seed in range(4)), theta_of(best)))
checks.inequality(
    "05.2",
    "no half-step of EM lowers 𝓛, from four starts and from the top (largest fall ≤ 0)",
    right,
    0.0,
    wrong={f"{name} (from the top)": fall for name, fall in zip(mistakes, from_top, strict=True)},
    slack=1e-9,
)

# %% [markdown]
# From three starts of four **none of the mistakes is caught**; from the fourth, two are; $N_c - 1$ never. There is so
# much to gain that even a wrong step gains. They rise, and stop at the wrong place.
#
# The remedy is to **start at the top**. At a maximum a right step stands still. A step that stands still elsewhere has
# nowhere to go but down. (No maximum at hand? Run your program until it stops, then start a second, trusted one there.)
#
# ## What the gradient says
#
# EM never computes a gradient. Yet at the touching point its bound has the *same* gradient as the log-likelihood:
# two curves that touch, one above the other, have a common tangent. In formulas this is **Fisher's identity**,
#
# $$\nabla_\theta \log p_\theta(x) = \mathbb{E}_{p_\theta(z \mid x)}\big[ \nabla_\theta \log p_\theta(x, z) \big]
#   = \nabla_\theta \mathcal{L}(q, \theta) \Big|_{q = p_\theta(z \mid x)}, \tag{05.8}$$
#
# where $q$ is held fixed while θ is differentiated. (One line proves it: $\nabla p_\theta(x) / p_\theta(x) = \sum_z
# \nabla p_\theta(x, z) / p_\theta(x) = \sum_z p_\theta(z \mid x) \nabla \log p_\theta(x, z)$.) So the awkward gradient
# of a log of a sum is an average of easy ones.


# %%
def gradient(value, leaves):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, leaves, retain_graph=True)])


leaves = [value.clone().requires_grad_() for value in theta_mid]
with_q = {name: (q * log_joint(leaves, x)).sum() for name, q in (("E", q_mid), ("stale", path[2][1]), ("hard", hard))}
log_p = log_joint(leaves, x).logsumexp(1).sum()


def log_p_by_hand(v):
    """(05.2) from 14 numbers, π, μ and Σ, in NumPy: inverse and determinant written out, Σ need not be symmetric."""
    total = 0
    for weight, m, s in zip(v[:2], v[2:6].reshape(2, 2), v[6:].reshape(2, 2, 2), strict=True):
        a, b = (x.numpy() - m).T
        det = s[0, 0] * s[1, 1] - s[0, 1] * s[1, 0]
        square = (s[1, 1] * a * a - (s[0, 1] + s[1, 0]) * a * b + s[0, 0] * b * b) / det
        total = total + weight * np.exp(-square / 2) / (2 * np.pi * np.sqrt(det))
    return np.log(total).sum()


def even(gradient):
    """Only the symmetric part of a slope in Σ has a meaning."""
    sigma = gradient[6:].reshape(2, 2, 2)
    return torch.cat([gradient[:6], ((sigma + sigma.mT) / 2).flatten()])


# %%
v, h = flat(theta_mid).numpy(), 1e-5
differences = [(log_p_by_hand(v + e) - log_p_by_hand(v - e)) / (2 * h) for e in h * np.eye(14)]
checks.independent(
    "05.3",
    "Fisher's identity: ∇θ 𝓛 with q exact and fixed = ∇θ log p(x), in π, μ and Σ",
    even(gradient(with_q["E"], leaves)),
    even(torch.tensor(differences)),
    wrong={
        "q one step old": even(gradient(with_q["stale"], leaves)),
        "hard labels": even(gradient(with_q["hard"], leaves)),
    },
    tolerance=1e-5,
)

# %% [markdown]
# Now compare where they *go*. Take the M-step for a mean, $\mu_c^{\text{new}} = \frac{1}{N_c} \sum_n r_{nc} x_n$, and
# subtract the old mean. By equation (05.3) the gradient in $\mu_c$ is $\Sigma_c^{-1} \sum_n r_{nc} (x_n - \mu_c)$, and
# the one in $\pi_c$ is $N_c / \pi_c$. So
#
# $$\mu_c^{\text{new}} - \mu_c = \frac{\Sigma_c}{N_c} \, \nabla_{\mu_c} \log p_\theta(x), \qquad
#   \pi^{\text{new}} - \pi = \tfrac{1}{N} \big( \operatorname{diag}(\pi) - \pi \pi^\top \big) \nabla_\pi \log p_\theta(x). \tag{05.9}$$
#
# (Xu & Jordan 1996; the covariances obey a similar rule.) **An EM step is a gradient step in disguise, with a matrix
# for a step size**: minutes squared for a mean in minutes, long steps where a component is wide or owns little. The
# matrix is what the three runs of the opening lacked.

# %%
g_probs, g_loc, _ = torch.autograd.grad(log_p, leaves, retain_graph=True)
probs, loc, covariance = theta_mid
count = q_mid.sum(0)
checks.exact(
    "05.9",
    "EM's step in π and μ = a matrix times ∇ log p(x)",
    flat([new - old for new, old in zip(m_step(q_mid, x)[:2], theta_mid[:2], strict=True)]),
    flat(
        [
            (probs.diag() - probs.outer(probs)) @ g_probs / num_data,
            (covariance @ g_loc[..., None])[..., 0] / count[:, None],
        ]
    ),
    wrong={
        "the same step size for all": flat([g_probs / num_data, g_loc / num_data]),
        "N for N_c": flat(
            [
                (probs.diag() - probs.outer(probs)) @ g_probs / num_data,
                (covariance @ g_loc[..., None])[..., 0] / num_data,
            ]
        ),
    },
    tolerance=1e-8,
)

# %% [markdown]
# ### Three roads to one top
#
# Be fair to gradients: with a good optimiser they get there too. We give L-BFGS the ELBO with a fresh E-step *inside*
# the objective, $q$ held fixed (`em.e_step` returns a $q$ without gradient); by equation (05.8) it then has the gradient of $\log p_\theta(x)$. And we ask scikit-learn, whose
# EM is somebody else's. It needs two requests: by default it stops early, and it adds $10^{-6}$ to each variance. How
# many evaluations will L-BFGS need, against EM's 14 steps?

# %%
model = start()
optimiser = LBFGS(
    model.parameters(), line_search_fn="strong_wolfe", max_iter=20, tolerance_grad=1e-10, tolerance_change=1e-14
)
seen = []


def fresh_bound(x):
    value = model.elbo(x, em.e_step(model, x))
    seen.append(value.sum().item())
    return value


_ = training.fit(fresh_bound, optimiser, x, num_steps=15)
by_gradient = model.log_evidence(x).sum().item()
needed = int(np.argmax(np.array(seen) > top - 1e-3))
assert 20 < needed < 200
print(f"L-BFGS is within 0.001 nats after {'more' if needed > 13 else 'fewer'} evaluations than EM takes steps")

begin = [value.numpy() for value in theta_of(start())]
setting = {"weights_init": begin[0], "means_init": begin[1], "precisions_init": np.linalg.inv(begin[2])}
theirs = SklearnMixture(2, reg_covar=0, tol=1e-13, max_iter=2000, **setting).fit(x.numpy())
theirs_value = num_data * theirs.score(x.numpy())
defaults = num_data * SklearnMixture(2, **setting).fit(x.numpy()).score(x.numpy())

# %%
one_kind = MultivariateNormal(x.mean(0), torch.cov(x.mT, correction=0)).log_prob(x).sum().item()
for claim, road, value in (("05.4a", "EM", top), ("05.4b", "gradient ascent on the ELBO", by_gradient)):
    checks.independent(
        claim,
        f"{road} ends at log p(x) = −1130.26396, as scikit-learn does",
        [value, value],
        [theirs_value, -1130.26396],
        wrong={"scikit-learn as it comes": [defaults] * 2, "one kind of eruption only": [one_kind] * 2},
        tolerance=1e-8,  # relative: 1e-5 nats
    )
_ = em.em(best, x, tolerance=0)  # to the last digit
responsibilities = e_step(theta_of(best), x)
checks.independent(
    "05.4c",
    "and both EMs end with the same responsibilities",
    responsibilities,
    theirs.predict_proba(x.numpy()),
    wrong={"hard labels": torch.eye(2)[responsibilities.argmax(1)], "half-way": q_mid},
    tolerance=1e-6,
)

# %% [markdown]
# −1130.26396 is the best *local* maximum of this model that we know. That it is local is a promise for later.
#
# Why not hand $q$'s logits and θ to one optimiser as equals? It would work on the same $\mathcal{L}$, but the E-step
# need not follow slopes: it goes to the answer. **Where an exact E-step is affordable, take it.** Chapter 06 is about
# what to do when it is not.
#
# ## How fast? As fast as little is missing
#
# Near the top, each step of EM leaves the same share ρ of the error in θ: it converges *linearly*. Dempster, Laird and
# Rubin found what ρ is. Ask how much the data would tell about θ if the labels were known: the **complete
# information**, minus the second derivative of $\mathbb{E}_q[\log p_\theta(x, z)]$. Part of it is lost, since the
# labels are not known (Louis 1982):
#
# $$I_{\text{observed}} = I_{\text{complete}} - I_{\text{missing}}, \qquad
#   \rho = \text{largest eigenvalue of } I_{\text{complete}}^{-1} \, I_{\text{missing}}. \tag{05.11}$$
#
# Here is why. Near the top θ\* the M-step is a Newton step on the bound: it has the likelihood's gradient (by equation
# 05.8), $-I_{\text{observed}} (\theta - \theta^*)$, and the bound's curvature, $I_{\text{complete}}$. So one step turns
# the error into $(I - I_{\text{complete}}^{-1} I_{\text{observed}})(\theta - \theta^*) = I_{\text{complete}}^{-1}
# I_{\text{missing}} (\theta - \theta^*)$. The bound is more sharply curved than the likelihood, so EM is too cautious, in
# proportion. At a maximum the height is quadratic in the error: the gap in nats shrinks by $\rho^2$.
#
# With two labels $I_{\text{missing}}$ has a plain meaning. Differentiate $\log \sum_c e^{a_c}$ twice: the mean of the
# second derivatives, plus the variance of the first ones under $r$. A two-valued label has the variance $r_1 r_2$:
#
# $$I_{\text{missing}} = \sum_n r_{n1} r_{n2} \, d_n d_n^\top, \qquad
#   d_n = \nabla_\theta \log \frac{p_\theta(x_n, z = 1)}{p_\theta(x_n, z = 2)}: \tag{05.12}$$
#
# the variance of each unknown label, times what hangs on it. For second derivatives we need θ as a list of free
# numbers: $6C - 1$ with two columns, so 11. (`pack` and `unpack` do only that.)


# %%
def pack(theta):
    """θ as free numbers: log-odds of the weights, means, and Cholesky factors with log diagonals."""
    probs, loc, covariance = theta
    a, b, c = torch.linalg.cholesky(covariance)[:, [0, 1, 1], [0, 0, 1]].T
    return torch.cat([(probs[:-1] / probs[-1]).log(), loc.flatten(), a.log(), b, c.log()])


def unpack(v):
    size = (len(v) + 1) // 6  # components
    odds, loc, (a, b, c) = torch.cat([v[: size - 1], v.new_zeros(1)]), v[size - 1 : -3 * size], v[-3 * size :].chunk(3)
    tril = torch.stack([a.exp(), torch.zeros_like(a), b, c.exp()], -1).reshape(size, 2, 2)
    return odds.softmax(0), loc.reshape(size, 2), tril @ tril.mT


def information(theta):
    """Complete and observed information at θ: minus the Hessians of E_q[log p(x, z)] and of log p(x)."""
    v, q = pack(theta), e_step(theta, x)
    hessian = torch.autograd.functional.hessian
    complete = -hessian(lambda v: (q * log_joint(unpack(v), x)).sum(), v)
    return complete, -hessian(lambda v: log_joint(unpack(v), x).logsumexp(1).sum(), v)


def slowest(complete, missing):
    return torch.linalg.eigvals(torch.linalg.solve(complete, missing)).real.max().item()


# %%
complete, observed = information(theta_of(best))
jacobian = torch.autograd.functional.jacobian(lambda v: log_joint(unpack(v), x), pack(theta_of(best)))
d, doubt = jacobian[:, 0] - jacobian[:, 1], responsibilities.prod(1)
missing = torch.einsum("n,ni,nj->ij", doubt, d, d)
checks.exact(
    "05.10",
    "what the labels would add: complete − observed information = Σ r₁ r₂ d dᵀ",
    complete - observed,
    missing,
    wrong={"r in place of r₁ r₂": torch.einsum("n,ni,nj->ij", responsibilities[:, 0], d, d), "complete": complete},
    tolerance=1e-6,
)
rate = slowest(complete, missing)
errors = em_history.log_evidence[-1] - np.array(em_history.log_evidence)
steady = errors[9:12] / errors[8:11]
checks.independent(
    "05.11a",
    "each step leaves ρ² of the gap in log p(x), ρ the largest share of missing information",
    steady,
    [rate**2] * 3,
    wrong={"ρ, the share of the error in θ": [rate] * 3, "1 − ρ": [1 - rate] * 3},
    tolerance=2e-3,
)
least = int(doubt.argmax())
one = doubt[least] * torch.outer(d[least], d[least])
share = slowest(complete, one) / rate
assert 0.8 < share < 0.85
print(f"ρ = {rate:.3f}, so each step leaves {100 * rate**2:.1f} % of the gap")
print(
    f"the most doubtful eruption: {x[least, 0]:.1f} min, wait {x[least, 1]:.0f}, {100 * responsibilities[least].max():.0f} % sure"
)
print(f"this one alone gives {100 * share:.0f} % of ρ")

# %% [markdown]
# The clouds hardly overlap, so hardly anything is missing, and EM is quick: 94 % of what is left is gained at each
# step. Of 272 eruptions **one**, between the clouds and 80 % sure, makes four fifths of ρ.
#
# Then a third component should slow EM down, since it must share a cloud with another. We shall need many runs with
# three components anyway. Our functions take them all at once: forty random starts, 450 steps.

# %%
starts = [theta_of(start(seed, 3)) for seed in range(40)]
forty = tuple(torch.stack(parts) for parts in zip(*starts, strict=True))
heights = []
for _ in range(450):
    joint = log_joint(forty, x)
    heights.append(joint.logsumexp(-1).sum(-1))
    forty = m_step(joint.softmax(-1), x)
heights = torch.stack(heights)  # (450, 40)
ends = heights[-1].round(decimals=1)
found, times = ends.unique(return_counts=True)
assert (heights.diff(dim=0) > -1e-8).all()  # forty runs, and not one step down
for end, number in zip(found.tolist(), times.tolist(), strict=True):
    print(f"log p(x) = {end:.1f}: {number} of 40 starts")

solutions = [tuple(part[(ends == end).nonzero()[0, 0]] for part in forty) for end in found]
rates = {}
for end, theta in zip(found.tolist(), solutions, strict=True):
    complete_3, observed_3 = information(theta)
    rates[end] = slowest(complete_3, complete_3 - observed_3)
print("ρ with two components:", f"{rate:.2f};", "with three:", ", ".join(f"{r:.2f}" for r in rates.values()))
typical = heights[:, 0]  # the first start
assert ends[0] == found[1]
assert typical.diff()[20:120].max() < 0.015  # the plateau
assert 0.4 < typical[120] - typical[20] < 0.7
gap_3 = (typical[-1] - typical).numpy()
begin = [value.numpy() for value in starts[0]]
setting = {"weights_init": begin[0], "means_init": begin[1], "precisions_init": np.linalg.inv(begin[2])}
early = SklearnMixture(3, **setting).fit(x.numpy())
assert typical[-1].item() - num_data * early.score(x.numpy()) > 1.5
print(f"first start: {typical[-1]:.1f}; scikit-learn's default stops early, more than 1.5 nats below")
checks.independent(
    "05.11b",
    "three components, steps 230 to 250: each leaves ρ² of the gap too",
    (gap_3[250] / gap_3[230]) ** (1 / 20),
    rates[found[1].item()] ** 2,
    wrong={"ρ": rates[found[1].item()], "ρ with two components": rate**2},
    tolerance=2e-3,
)

# %% mystnb={"image": {"alt": "Gap to the end point on a logarithmic axis over 300 steps. With two components it drops almost vertically below one billionth of a nat within 13 steps; with three it stays on a plateau, one to two nats below, for 150 steps, and then falls along a long straight slope. Dotted lines just above the straight parts show that the predicted slopes, rho squared per step, are parallel to both."}}
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 3.2))
    kept = errors > 1e-10
    ax.semilogy(
        np.arange(len(errors))[kept], errors[kept], "o-", color=plots.COLOURS.theta, markersize=4, label="2 components"
    )
    ax.semilogy(
        np.arange(len(gap_3))[gap_3 > 1e-10], gap_3[gap_3 > 1e-10], "--", color=plots.COLOURS.q, label="3 components"
    )
    late = int((gap_3 > 1e-6).sum())
    for begin_at, value, r, length in (
        (9, errors[9], rate, 4),
        (200, gap_3[200], rates[found[1].item()], 90),
    ):
        t = np.arange(length)
        ax.semilogy(begin_at + t, 3 * value * r ** (2 * t), ":", color=plots.COLOURS.evidence, linewidth=2)
    ax.semilogy([], [], ":", color=plots.COLOURS.evidence, label="predicted slope")
    ax.set(xlabel="step of EM", ylabel="gap to its own end (nats)", ylim=(1e-10, 1e3), xlim=(-5, late + 60))
    ax.legend(loc="upper right")
    ax.set_title("The more doubtful the labels, the slower EM climbs")

# %% [markdown]
# With $\rho = 0.94$ a step gains an eighth of what is left. That is when people reach for L-BFGS, or use a few steps
# of EM to get close and a second-order method to finish.
#
# The plateau before it is a surprise that ρ says nothing of, since ρ is about the neighbourhood of the top. For over a
# hundred steps EM gains about half a hundredth of a nat each. A stopping rule sees the end there: scikit-learn's default
# stops when a step gains less than 0.001 nats per datapoint, 0.27 in all. **A small step is not a small distance.**
#
# ## Bending the steps
#
# The proof (05.7) asks for surprisingly little, and each thing it does not ask for is a variant of EM.
#
# **Generalised EM: a partial M-step.** The middle sign in (05.7) is ≤. The M-step need not *maximise*: any θ with a
# higher bound will do. So one may move the means now and the covariances next time (`training.frozen` holds the others
# still), or take a single gradient step. In that light the opening's gradient ascent *was* an EM with a lazy M-step, at
# least where its steps raised the bound. With the step size 1.0 not all did.

# %%
model, turn = start(), {"step": 0}


def half_m_step(model, x, q):
    """Weights and means at even steps, weights and covariances at odd ones."""
    turn["step"] += 1
    with training.frozen(model.likelihood):
        (model.likelihood.loc if turn["step"] % 2 else model.likelihood.unconstrained_tril).requires_grad_(True)
        em.m_step(model, x, q)


lazy = em.em(model, x, m_step=half_m_step, tolerance=1e-7)
model = models.GaussianMixture(*theta_mid)
before = model.log_evidence(x).sum().item()
_ = training.fit(model.log_evidence, SGD(model.parameters(), lr=10.0), x, num_steps=1)
too_far = before - model.log_evidence(x).sum().item()
lazy_falls = -np.diff([b for pair in zip(lazy.after_e_step, lazy.after_m_step, strict=True) for b in pair])
checks.inequality(
    "05.12",
    "generalised EM, half an M-step at a time, never lowers 𝓛 (falls ≤ 0)",
    lazy_falls.max(),
    0.0,
    wrong={"one gradient step of size 10 for an M-step": too_far},
    slack=1e-9,
)
assert abs(lazy.log_evidence[-1] - top) < 1e-4
print(f"the same top, in {len(lazy.after_m_step)} steps in place of {len(em_history.after_m_step)}")

# %% [markdown]
# **Incremental EM: a partial E-step** (Neal & Hinton 1998). Renew $q$ for *one* eruption, then do the M-step at once
# with the new label and 271 old ones. This costs little, because the M-step sees the data only through three sums per
# component, $\sum_n q_{nc}$, $\sum_n q_{nc} x_n$ and $\sum_n q_{nc} x_n x_n^\top$: take out one eruption's old share,
# put in its new one.
#
# Both halves are still coordinate ascent, so **$\mathcal{L}$ never falls**. But the first sign in (05.7) is gone: $q$ is
# never exact for all data at once. What does that leave of the promise about $\log p_\theta(x)$?


# %%
def sums(q, x):
    return q.sum(0), q.mT @ x, torch.einsum("nc,nd,ne->cde", q, x, x)


def theta_from(count, first, second):
    loc = first / count[:, None]
    return count / count.sum(), loc, second / count[:, None, None] - torch.einsum("cd,ce->cde", loc, loc)


theta = theta_of(start())
q = e_step(theta, x)  # one full step, so that every eruption has a label to renew
theta, totals, num_passes = theta_from(*sums(q, x)), sums(q, x), 4
bounds, evidences, order = [], [], torch.Generator().manual_seed(1)
joint = log_joint(theta, x)
for n in torch.cat([torch.randperm(num_data, generator=order) for _ in range(num_passes)]).tolist():
    row = slice(n, n + 1)
    new = joint[row].softmax(1)
    changes = zip(totals, sums(new, x[row]), sums(q[row], x[row]), strict=True)
    totals = [total + plus - minus for total, plus, minus in changes]
    q[row] = new
    bounds.append((q * joint - torch.xlogy(q, q)).sum().item())  # after the partial E-step
    theta = theta_from(*totals)
    joint = log_joint(theta, x)
    bounds.append((q * joint - torch.xlogy(q, q)).sum().item())  # after the M-step
    evidences.append(joint.logsumexp(1).sum().item())

# %%
bounds, evidences = np.array(bounds), np.array(evidences)
fall_of_evidence = -np.diff(evidences)
checks.inequality(
    "05.13",
    "incremental EM never lowers 𝓛 (falls ≤ 0)",
    -np.diff(bounds).min(),
    0.0,
    wrong={"the same promise for log p(x)": fall_of_evidence.max()},
    slack=1e-8,
)
worst = int(fall_of_evidence.argmax())
assert (bounds[1::2] <= evidences + 1e-9).all()
print(
    f"log p(x) falls by more than 0.001 nats at {(fall_of_evidence > 1e-3).sum()} visits, at most by {fall_of_evidence[worst]:.2f}"
)
for p in range(num_passes):
    batch, single = em_history.log_evidence[p + 2], evidences[(p + 1) * num_data - 1]
    assert single > batch
    print(f"after {p + 2} passes over the data: incremental {single:.1f}, ordinary EM {batch:.1f}")

# %% mystnb={"image": {"alt": "Two panels. Left, log likelihood over five passes through the data: incremental EM, a fine line, is above the points of ordinary EM from the second pass on. Right, sixteen visits around the largest fall, in two panels of the same scale, in nats relative to the first log likelihood shown: the log likelihood drops by a fifth of a nat at the marked visit, while the ELBO, some 16 nats below it, never drops."}}
window = np.arange(worst - 7, worst + 9)
with plots.style():
    fig, axes = plt.subplot_mosaic([["left", "upper"], ["left", "lower"]], layout="constrained")
    left = axes["left"]
    left.plot(
        1 + np.arange(1, len(evidences) + 1) / num_data, evidences, color=plots.COLOURS.theta, label="incremental"
    )
    left.plot(range(1, 6), em_history.log_evidence[1:6], "o--", color=plots.COLOURS.muted, label="ordinary EM")
    left.set(xlabel="passes over the data", ylabel=r"$\log p_\theta(x)$ (nats)")
    left.legend(loc="lower right")
    left.set_title("It learns during the pass")
    zero = evidences[window][0]
    for ax, values, colour, look, label in (
        (axes["upper"], evidences[window] - zero, plots.COLOURS.evidence, "o-", r"$\log p_\theta(x)$"),
        (axes["lower"], bounds[1::2][window] - zero, plots.COLOURS.q, "s--", r"$\mathcal{L}$"),
    ):
        ax.plot(window, values, look, color=colour, markersize=4)
        ax.axvspan(worst, worst + 1, color="#E4E4E4")
        ax.set(ylabel=f"{label} (nats)", ylim=(values.min() - 0.1, values.min() + 1.8))
    axes["lower"].set_xlabel("visit (nats above the first log p shown)")
    axes["upper"].set_title("and may lower log p(x)")

# %% [markdown]
# Both are true at once. Pass for pass incremental EM is *ahead*, here by about one pass, since later eruptions meet a θ
# that earlier ones have already improved. And the likelihood did fall: $\mathcal{L}$ rose all the same, because the gap
# shrank by more. What cannot fall is the function it climbs, and that is $\mathcal{L}$.
# **Once the E-step is not exact, the promise is about $\mathcal{L}$ alone.** All of chapter 06 hangs on this sentence.
#
# **Hard EM: a restricted $q$.** Give each eruption its most probable label and no doubt, $q_{nc} \in \{0, 1\}$. That
# is the best $q$ in the family of point masses: its entropy is zero, and the gap has a closed form,
#
# $$\log p_\theta(x_n) - \mathcal{L}_n = -\log \max_c \, p_\theta(z_n = c \mid x_n). \tag{05.13}$$
#
# It is coordinate ascent as well, so its $\mathcal{L}$ never falls. With equal weights and one common spherical
# covariance it is k-means: the nearest mean takes the eruption. What does it lose on the geyser, where hardly a label is
# in doubt? And what from start 3, which puts both means on *long* eruptions? The gap ledger tells, in means per
# eruption. We hand it the best $q$ of the family, the point mass on the likeliest label, so all of the gap is an
# *approximation* gap; θ is compared with the best one.


# %%
def hard_e_step(model, x):
    return Categorical(probs=torch.eye(len(model.loc))[em.e_step(model, x).probs.argmax(1)])


lucky, unlucky = start(0), start(3)
for model in (lucky, unlucky):
    hard_history = em.em(model, x, e_step=hard_e_step)
    assert np.diff(hard_history.after_m_step).min() > -1e-9
rescued = start(3)
rescue = em.em(rescued, x)
assert abs(rescued.log_evidence(x).sum().item() - top) < 1e-4  # soft EM, from the unlucky start
checks.exact(
    "05.14",
    "hard EM's gap at each eruption is −log of the largest responsibility",
    unlucky.log_evidence(x) - unlucky.elbo(x, hard_e_step(unlucky, x)),
    -np.log(by_hand(theta_of(unlucky)).max(1)),
    wrong={
        "the entropy of the responsibilities": em.e_step(unlucky, x).entropy(),
        "1 − the largest": 1 - by_hand(theta_of(unlucky)).max(1),
    },
    tolerance=1e-9,
)

for name, model in (("start 0", lucky), ("start 3", unlucky)):
    hard = model.elbo(x, hard_e_step(model, x)).detach()
    ledger = gap_ledger(hard, hard, model.log_evidence(x).detach(), best.log_evidence(x).detach())
    print(f"hard EM, {name}: ELBO {ledger.elbo:.3f} + approximation gap {ledger.approximation_gap:.3f}", end=" ")
    print(f"+ what θ loses {ledger.theta_gap:.3f} = {ledger.elbo + ledger.approximation_gap + ledger.theta_gap:.3f}")
loses = top - unlucky.log_evidence(x).sum().item()
print(
    f"start 3, total: hard EM ends {loses:.0f} nats below the top, soft EM at it, after {len(rescue.after_m_step)} steps"
)

# %% [markdown]
# From a good start hard EM loses next to nothing here: hardly a label is in doubt, so a $q$ without doubt is nearly exact.
# From the bad start it stops 162 nats below the top, where soft EM, *from the same start*, gets to the top, in 36 steps in place of 14.
# A hard label is a rash decision, and it is hard to undo: small changes of θ do not flip it.
#
# And where labels *are* in doubt, hard EM is wrong even with all the data in the world. Two standard normals at −1
# and 1, so that they overlap; only the distance is unknown; infinitely many data, by quadrature. For means $\pm m$ and
# equal weights equation (05.3) gives $r_1 - r_2 = \tanh(m x)$; a hard label makes a sign of it. EM has its fixed point
# at the truth. Hard EM?

# %%
grid = np.linspace(-12, 14, 20_001)
density = 0.5 * stats.norm.pdf(grid, 1) + 0.5 * stats.norm.pdf(grid, -1)


def fixed_point(label, num_steps=200):
    """Means ±m of two unit normals: m ← E[label(x, m) x], with label = r₁ − r₂."""
    m = 1.5
    for _ in range(num_steps):
        m = integrate.simpson(density * label(grid, m) * grid, x=grid)
    return m


soft, hard_m = (fixed_point(label) for label in (lambda x, m: np.tanh(m * x), lambda x, m: np.sign(x)))
folded = stats.foldnorm(1).mean()  # E|x|
checks.quadrature(
    "05.15",
    "two unit normals at ±1: EM ends at 1, hard EM at E|x| = 1.1666",
    [soft, hard_m],
    [1.0, folded],
    wrong={
        "hard EM is right too": [1.0, 1.0],
        "the other normal's tail forgotten": [1.0, stats.truncnorm(-1, np.inf, loc=1).mean()],
    },
)

# %% [markdown]
# 17 % too far apart, for ever. Each tail that reaches over zero is booked on the wrong side, and pushes the means apart.
# The restricted $q$ has bent θ **towards a model whose labels are less in doubt**. Chapter 07 is about this pull.
#
# ## Two ways to fail
#
# **Local maxima.** EM goes up, and up may be a lesser hill. With two components most starts lead to one top. Start 18
# does not. With three components forty starts led to three tops. Which would you have believed?

# %% mystnb={"image": {"alt": "Three panels with the data and ellipses. Two components from start 18, at minus 1285.3: both ellipses lie along the whole cloud. Three components at minus 1119.2, found by 33 starts of 40: the third is a long thin ellipse along both clouds. At minus 1114.4, by 4 starts: it is a narrow sliver within the short cloud."}}
lesser = start(18)
low = em.em(lesser, x, tolerance=1e-7).log_evidence[-1]
assert abs(low - -1285.31) < 0.01
shown = [("two, start 18", low, theta_of(lesser))]
shown += [
    (f"three, {n} starts", end, theta) for end, n, theta in zip(found.tolist(), times.tolist(), solutions, strict=True)
][1:]
sliver = torch.linalg.eigvalsh(solutions[2][2]).min().sqrt().item()
assert 0.055 < sliver < 0.065  # minutes
assert found.argmax() == 2
assert times.argmax() == 1  # the top most often found is not the highest
with plots.style():
    fig, axes = plt.subplots(1, 3, figsize=(7, 2.9), sharey=True)
    for ax, (label, end, theta) in zip(axes, shown, strict=True):
        ax.plot(*x.T, "o", color=plots.COLOURS.muted, markersize=2, alpha=0.5)
        for c in range(len(theta[0])):
            plots.normal_ellipse(theta[1][c], theta[2][c], ax, levels=[2.0], colour=plots.COLOURS.theta)
        ax.set(xlabel="duration (min)", xlim=(1, 6), ylim=(38, 102))
        ax.set_title(f"{label}:\n{end:.1f} nats".replace("-", "−"), size=10)
    axes[0].set_ylabel("wait (min)")

# %% [markdown]
# (Curves at two standard deviations.) Start 18 ends 155 nats below the top, for ever, with two ellipses along everything.
# With three components the most popular end is not the highest. But look at the highest: its sliver is 0.06 minutes
# wide, under four seconds. Higher is not truer. So: **several starts, keep the best that has not collapsed**, and
# report how many agreed. Nothing says that the best of forty is the best of all.
#
# **No maximum at all.** It is worse. Put one component on a single eruption, give it the weight $1/N$, and shrink it:
# its covariance is $w^2 S$, with $S$ that of the data. What happens to the likelihood as $w \to 0$?

# %%
S = torch.cov(x.mT, correction=0)


def on_a_point(width, where=x[0]):
    weights = torch.tensor([1 / num_data, 1 - 1 / num_data])
    covariances = torch.stack([width**2 * S, S])
    return models.GaussianMixture(weights, torch.stack([where, x.mean(0)]), covariances).log_evidence(x).sum().item()


for width in (1e-1, 1e-5, 1e-20, 1e-40, 1e-80):
    print(
        f"w = {width:.0e}:  on an eruption {on_a_point(width):8.1f}   a minute beside it {on_a_point(width, x[0] + 1):8.1f}"
    )
checks.exact(
    "05.4d",
    "a component on one eruption: w → w · 10⁻²⁰ adds 2 log 10²⁰ = 92.1 nats, without end",
    on_a_point(1e-60) - on_a_point(1e-40),
    2 * np.log(1e20),
    wrong={
        "log 10²⁰, as in one dimension": np.log(1e20),
        "beside an eruption": on_a_point(1e-60, x[0] + 1) - on_a_point(1e-40, x[0] + 1),
    },
)
assert on_a_point(1e-80) > top

# %% [markdown]
# A component $10^{-80}$ times as wide as the data beats our best fit by 200 nats, and says nothing about geysers. The
# density on the point grows like $1/w^2$; all other eruptions are looked after by the other component. **The likelihood has no upper
# bound. "The maximum-likelihood mixture" does not exist**; what we look for is a good local maximum, and −1130.26 is one
# because it is *not* the global one.
#
# (A minute beside the eruption the narrow component serves nobody: the value levels off at the other one's.)
#
# What protects? The width of the start: from wide starts EM seldom falls into such a hole. From nearby it does. The
# package then stops. A floor under the variances takes the infinity away: the M-step becomes the maximum under that
# constraint. (A prior on Σ does the same more gracefully.) But not the bad start: look at where EM ends.

# %%
from functools import partial


def near_a_hole(width, weight):
    narrow = torch.stack([width**2 * S, S])
    return models.GaussianMixture(torch.tensor([weight, 1 - weight]), torch.stack([x[0], x.mean(0)]), narrow)


steps = []
try:
    em.em(near_a_hole(0.05, 0.05), x, callback=steps.append)
except ValueError:
    print(f"without a floor, width 0.05: {len(steps)} steps, then the package stops: a singular covariance")
model = near_a_hole(0.01, 0.1)
guarded = em.em(model, x, m_step=partial(em.m_step, min_variance=0.01))
smallest, where = torch.linalg.eigvalsh(model.covariance_matrix.detach())[0, 0].item(), model.loc[0].tolist()
assert smallest > 0.01 - 1e-9
print(
    f"with a floor of 0.01 min², width 0.01: ends at {guarded.log_evidence[-1]:.1f} nats, {top - guarded.log_evidence[-1]:.0f} below the top"
)
print(
    f"mean of the narrow component: {where[0]:.2f} min, wait {where[1]:.2f}; its smallest variance {smallest:.3f} min²"
)
print("eruptions whose wait was noted as 79 min:", int((x[:, 1] == 79).sum()))

# %% [markdown]
# The floor has turned a hole into a bad local maximum: restart. And the hole was no point. Waits were noted in whole
# minutes, so ten eruptions lie on one *line*, and a component that is flat on it is a hole too. With rounded data a
# floor below the unit of rounding is little protection.
#
# ## Exercises
#
# **05.E1 (recall).** The E-step in one dimension: responsibilities, shape `(N, C)`, from `x` $(N)$, weights `probs`,
# means `loc` and *standard deviations* `scale`, each $(C)$. One of the data is 60 standard deviations or more
# away from everything.
#
# <details><summary>Hint</summary>
#
# Write the quotient of equation (05.3) first, and see what it gives at the far point. Which operation underflows?
#
# </details>


# %%
def responsibilities_of(x, probs, loc, scale): ...  # your code


ch05.responsibilities.check(responsibilities_of)

# %% [markdown]
# **05.E2.** The M-step of another model: all components have **one common covariance**. Return it, shape $(D, D)$,
# from `x` $(N, D)$ and the responsibilities `q` $(N, C)$.
#
# <details><summary>Hint</summary>
#
# Collect what contains Σ in equation (05.4).
#
# </details>


# %%
def shared_covariance(x, q): ...  # your code


ch05.shared_covariance.check(shared_covariance)

# %% [markdown]
# **05.E3.** The first example of Dempster, Laird and Rubin. 197 animals fall into four classes with probabilities
# $\frac12 + \frac{\theta}{4}$, $\frac{1-\theta}{4}$, $\frac{1-\theta}{4}$, $\frac{\theta}{4}$; the `counts` are 125,
# 18, 20, 34. Find θ by EM. The first class is a union of two, with probabilities $\frac12$ and $\frac{\theta}{4}$: how
# its animals divide was not seen. (So $z$ is the part that an animal of the first class belongs to, and $q$ is one
# number, the same for all 125.)
#
# <details><summary>Hint</summary>
#
# E-step: the expected number of the first class that belongs to its second part. M-step: with all five counts known, θ
# is a proportion. Of what?
#
# </details>


# %%
def linkage(counts): ...  # your code


ch05.genetic_linkage.check(linkage)

# %% [markdown]
# **05.E4 (a small study).** How does overlap slow EM down? Take two unit normals at ±`distance`, with equal weights
# and infinitely many data, and EM for the mean $m$ alone. Return the share ρ of the error $m - \text{distance}$ that
# one step leaves, close to the fixed point, *without taking a step*: from the missing information (05.12). Then print
# ρ for distances 0.5, 1, 2 and 3. How many steps for a digit, at each? Compare with the steps of `fixed_point`.
#
# <details><summary>Hint</summary>
#
# Per datapoint the complete information about $m$ is 1. What is $d_n$, the slope in $m$ of the difference of two log
# densities?
#
# </details>


# %%
def em_rate(distance): ...  # your code


ch05.em_rate.check(em_rate)

# %% [markdown]
# ## Summary
#
# - *One bound, two coordinates.* EM is coordinate ascent on $\mathcal{L}(q, \theta)$. The E-step sets a KL to zero,
#   the M-step sets three (of weights, means, covariances); neither needs a step size. In disguise it is gradient ascent on $\log p_\theta(x)$, with a
#   matrix for a step size.
# - *Never down.* Touch, climb, and the curve is above (05.7). As a test of a program it is weak from below and strong
#   from the top.
# - *As fast as little is missing.* The rate is the largest share of missing information: 0.24 for the geyser, mostly
#   due to one eruption; 0.84 to 0.96 with a third component.
# - *What may bend.* A partial M-step keeps every promise. A partial E-step keeps the one for $\mathcal{L}$ and loses
#   the one for $\log p_\theta(x)$. A restricted $q$ also moves θ.
# - *What fails.* Lesser hills: start often. A likelihood without a top: put a floor under the variances, and trust no
#   "global maximum".
#
# So the answer to the opening question: EM works because the ELBO, unlike the likelihood, can be maximised exactly in
# each of its two arguments; and it never steps down because after an exact E-step the ELBO *is* the likelihood.
#
# **Sources.** A. P. Dempster, N. M. Laird & D. B. Rubin (1977), Maximum likelihood from incomplete data via the EM
# algorithm, *J. Royal Statistical Society B* 39, 1–38: the name, the ascent, generalised EM, the rate, the linkage example.
# R. M. Neal & G. E. Hinton (1998), A view of the EM algorithm that justifies incremental, sparse, and other variants,
# in M. I. Jordan (ed.), *Learning in Graphical Models*, Kluwer, 355–368: EM as coordinate ascent, incremental EM. L. Xu & M. I. Jordan (1996), On convergence properties of the EM algorithm
# for Gaussian mixtures, *Neural Computation* 8: EM as a gradient step times a matrix. C. F. J. Wu (1983), On the convergence properties of the
# EM algorithm, *Annals of Statistics* 11, 95–103: where it converges to. T. A. Louis (1982), Finding the
# observed information matrix when using the EM algorithm, *J. Royal Statistical Society B* 44. C. M. Bishop (2006),
# *Pattern Recognition and Machine Learning*, chapter 9. The eruptions: W. Härdle (1991), *Smoothing Techniques with
# Implementation in S*.
#
# **Next.** EM needs the posterior itself. With a network in the model there is no formula for it, and all we can have
# is a $q$ that runs after it. Is raising the ELBO still the same as improving the model? [Chapter
# 06](06_learning_theta_and_phi.ipynb): *Learning θ and φ together*.

# %% [markdown]
# ## Solutions


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def responsibilities_solution(x, probs, loc, scale):
    log_density = -0.5 * ((x[:, None] - loc) / scale) ** 2 - scale.log()
    return (probs.log() + log_density).softmax(1)


ch05.responsibilities.check(responsibilities_solution)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def shared_covariance_solution(x, q):
    loc = q.mT @ x / q.sum(0)[:, None]
    deviation = x[:, None] - loc
    return torch.einsum("nc,ncd,nce->de", q, deviation, deviation) / len(x)


ch05.shared_covariance.check(shared_covariance_solution)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def linkage_solution(counts):
    a, b, c, d = counts
    theta = 0.5
    for _ in range(200):
        hidden = a * (theta / 4) / (1 / 2 + theta / 4)  # E: the unseen part of the first class
        theta = (hidden + d) / (hidden + b + c + d)  # M: a proportion
    return theta


ch05.genetic_linkage.check(linkage_solution)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def em_rate_solution(distance):
    grid = np.linspace(-distance - 12, distance + 12, 20_001)
    density = 0.5 * stats.norm.pdf(grid, distance) + 0.5 * stats.norm.pdf(grid, -distance)
    r = 1 / (1 + np.exp(-2 * distance * grid))
    d = 2 * grid  # the slope in m of −(x − m)²/2 + (x + m)²/2
    return integrate.simpson(density * r * (1 - r) * d**2, x=grid)  # (05.12), with I_complete = 1


ch05.em_rate.check(em_rate_solution)
for distance in (0.5, 1.0, 2.0, 3.0):
    share = em_rate_solution(distance)
    print(f"distance {distance}: ρ = {share:.3f}, {np.log(10) / -np.log(share):.1f} steps for a digit")

# %% [markdown] tags=["solution", "hide-cell"]
# <details><summary>05.E4, in words</summary>
#
# ρ is the share of information that the missing labels take away. At a distance of 3 the labels are all but known and
# EM gains a digit in less than a step. At 0.5 the two normals look like one, hardly anything in the data says which
# label is whose, and EM needs half a dozen steps for a digit. In the limit of distance zero ρ goes to one: EM then
# creeps slower than any geometric series.
#
# </details>
