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
# **From here on nobody tells us θ. There is an algorithm from 1977 that finds it without a gradient and without a
# step size, and that never takes a step down. Why does it work?**

# %% [markdown]
# *Before this:* [chapter 01](01_the_elbo.ipynb) (the ELBO, the gap) and the idea of coordinate ascent from [chapter
# 02](02_a_fixed_gaussian_joint.ipynb). *Reading time:* 30 minutes; the cells run in about fifteen seconds.
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
from vi_tutorial.elbo import draw, elbo, elbo_enumerated
from vi_tutorial.evaluation import gap_ledger
from vi_tutorial.exercises import ch05

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # the matrices are small: to share them out takes longer than the work
_ = threadpool_limits(1)
_ = torch.manual_seed(0)
plots.chain("theta")

# %% [markdown]
# ## A hill that gradients dislike
#
# Old Faithful is a geyser. For 272 eruptions we know how long each lasted and how long the wait for the next one was,
# both in minutes. There seem to be two kinds, short and long. Nobody wrote down which eruption was of which kind.
#
# So we say: each eruption has a hidden label $z$, and each label its own normal distribution. Call all unknowns θ:
# two weights, two means, two covariance matrices. Their likelihood has a gradient. Let us climb it in the plainest
# way, with three step sizes, 200 steps each; and beside it this chapter's method, from the same start.
#
# How many steps do you expect gradient ascent to need?

# %%
x = data.old_faithful()
num_data = len(x)


def start(seed=0, num_components=2):
    """Means at random eruptions, everything else equal."""
    return models.gaussian_mixture(x, num_components, torch.Generator().manual_seed(seed))


climbs = {}
for step_size in (0.03, 0.3, 1.0):
    model = start()
    history = training.fit(model.log_evidence, SGD(model.parameters(), lr=step_size), x, num_steps=200)
    climbs[step_size] = num_data * np.array(history.bound)  # totals over the data set, in nats

best = start()
em_history = em.em(best, x)
top = em_history.log_evidence[-1]
assert all(climb.max() < top - 50 for climb in climbs.values())
assert np.diff(climbs[1.0]).min() < -1  # the largest step size also goes down
print(f"EM: log p(x) = {top:.5f} nats after {len(em_history.after_m_step)} steps")
print("gradient ascent, 200 steps: more than 50 nats short at every one of the three step sizes")

# %% mystnb={"image": {"alt": "Left: 272 eruptions, waiting time against duration, in two elongated clouds, a short one at about 2 minutes and 54, a long one at 4.3 and 80. Right: total log likelihood over 200 steps. Two curves of gradient ascent creep up to about minus 1240 and minus 1260, a third leaps wildly up and down below minus 1200; EM goes straight up to minus 1130 within a few steps."}}
with plots.style():
    fig, (left, right) = plt.subplots(1, 2, width_ratios=(1, 1.3))
    left.plot(*x.T, "o", color=plots.COLOURS.data, markersize=3.5, alpha=0.6)
    left.set(xlabel="duration (min)", ylabel="wait for the next (min)")
    left.set_title("272 eruptions")
    for (step_size, climb), linestyle in zip(climbs.items(), (":", "--", "-"), strict=True):
        right.plot(climb, color=plots.COLOURS.muted, linestyle=linestyle, linewidth=1, label=f"gradient, {step_size}")
    right.plot(em_history.log_evidence, color=plots.COLOURS.theta, marker="o", markersize=4, label="EM")
    right.axhline(top, color=plots.COLOURS.evidence, linewidth=1, linestyle=":")
    right.set(xlabel="step", ylabel=r"$\log p_\theta(x)$ (nats)", ylim=(-1395, -1110))
    right.legend(loc=(0.5, 0.53))
    right.set_title("No step size, and there first")

# %% [markdown]
# The smallest step size crawls, the middle one begins to shake, the largest leaps up and down without end. The reason
# is in the numbers: a mean waiting time is 80, a weight lies between 0 and 1, and one step size must do for both.
# Better optimisers do better, as we shall see, and each has something to set. EM has nothing to set.
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
#
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
# division by a sum of two terms. ("E" is for *expectation*, since with this $q$ one takes the expectation in 05.4.)
#
# **M-step: the best θ for a fixed $q$** ("M" is for *maximisation*). Write $N_c = \sum_n q_{nc}$ for the number of
# eruptions that component $c$ owns. The entropy of $q$ does not depend on θ, and the rest falls into parts, one for
# each parameter:
#
# - *Weights.* $\sum_c N_c \log \pi_c = N \sum_c \frac{N_c}{N} \log \frac{N_c}{N} - N \, \mathrm{KL}\big(\tfrac{N_c}{N}
#   \,\big\|\, \pi_c\big)$. Only the KL contains π. It is smallest, zero, at $\pi_c = N_c / N$. No derivative, no
#   Lagrange multiplier.
# - *Means.* With $\bar x_c = \frac{1}{N_c} \sum_n q_{nc} x_n$, the weighted sum of squares splits: $\sum_n q_{nc}
#   \lVert x_n - \mu_c \rVert^2_{\Sigma_c^{-1}} = \sum_n q_{nc} \lVert x_n - \bar x_c \rVert^2_{\Sigma_c^{-1}} + N_c
#   \lVert \bar x_c - \mu_c \rVert^2_{\Sigma_c^{-1}}$. The best $\mu_c$ is $\bar x_c$, **whatever $\Sigma_c$ is**.
# - *Covariances.* With $S_c$ the weighted covariance around $\bar x_c$, what is left is $-\frac{N_c}{2} \big[ \log\det
#   \Sigma_c + \operatorname{tr}(\Sigma_c^{-1} S_c) \big]$. Up to a constant this is $-N_c$ times the KL from
#   $\mathcal{N}(0, S_c)$ to $\mathcal{N}(0, \Sigma_c)$. Again a KL, again zero at equality: $\Sigma_c = S_c$.
#
# $$\pi_c = \frac{N_c}{N}, \qquad \mu_c = \frac{1}{N_c} \sum_n q_{nc} \, x_n, \qquad
#   \Sigma_c = \frac{1}{N_c} \sum_n q_{nc} (x_n - \mu_c)(x_n - \mu_c)^\top. \tag{05.6}$$
#
# Proportion, mean, covariance: what one would do with known labels, weighted. Both steps minimise KLs, and both do it
# completely. There is nothing left for a step size to decide.
#
# ## Fifteen lines
#
# θ is a tuple of three tensors. All functions allow leading dimensions, so that later we can run forty EMs at once.


# %%
def log_joint(theta, x):
    """log p(x, z = c) for every datapoint and component, shape (..., N, C): the bracket of (05.4) without q."""
    probs, loc, covariance = theta
    normals = MultivariateNormal(loc.unsqueeze(-3), covariance.unsqueeze(-4), validate_args=False)
    return probs.log().unsqueeze(-2) + normals.log_prob(x[:, None])


def e_step(theta, x):
    return log_joint(theta, x).softmax(-1)  # (05.3)


def m_step(q, x):
    count = q.sum(-2)
    loc = q.mT @ x / count[..., None]
    deviation = x[:, None] - loc.unsqueeze(-3)
    spread = torch.einsum("...nc,...ncd,...nce->...cde", q, deviation, deviation)
    return count / len(x), loc, spread / count[..., None, None]  # (05.6)


def bound(q, theta, x):
    return torch.where(q > 0, q * (log_joint(theta, x) - q.log()), 0).sum((-2, -1))  # (05.4), with 0 log 0 = 0


# %%
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
    "05.6",
    "the M-step (05.6) = L-BFGS on the ELBO in θ, q held fixed",
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
# That is the whole proof. See it on the geyser: go from $\theta_0$ to $\theta_1$ in a straight line, on to
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
# The equality at the touching points, checked with SciPy's densities, which know neither $q$ nor $\mathcal{L}$:

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

# %% [markdown]
# ### A test that catches, and a test that does not
#
# "It never goes down" is also the textbook's advice for finding bugs: print the likelihood, and if it ever falls, there
# is a mistake. Try it on three versions of EM that real programs contain: $\pi$ forgotten in the E-step; $N_c - 1$ in
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
from_start = {name: -np.diff(run(theta_of(start()), 12, **mistake)).min() for name, mistake in mistakes.items()}
from_top = {name: -np.diff(run(theta_of(best), 12, **mistake)).min() for name, mistake in mistakes.items()}
print("largest fall in a half-step (nats)   from the start   from the top")
for name in mistakes:
    print(f"{name:<36} {max(from_start[name], 0) + 0.0:14.3f} {from_top[name]:14.3f}")

right = max(-np.diff(run(theta, 12)).min() for theta in (theta_of(start()), theta_of(best)))
checks.inequality(
    "05.2",
    "no half-step of EM lowers 𝓛, from the start and from the top (largest fall ≤ 0)",
    right,
    0.0,
    wrong={f"{name} (from the top)": fall for name, fall in from_top.items()},
    slack=1e-9,
)

# %% [markdown]
# From an ordinary start **none of the three is caught**. There is so much to gain that even a wrong step gains. They
# rise at every step, and stop at the wrong place.
#
# The remedy is to **start at the top**. At a maximum a right step stands still. A wrong one has nowhere to go but down.
# (No maximum at hand? Run your program until it stops, then hand the result to another one.)
#
# ## Watch it
#
# Each frame is half a step. In an E-step the colours change and the ellipses stay; in an M-step the other way round.
# (Colour is $q$: dark for "surely short". Ellipses at one and two standard deviations are θ.)

# %% mystnb={"image": {"alt": "Animation of 15 frames. Left, eruptions shaded by responsibility under two ellipses, which start wide and overlapping, and in seven steps shrink onto the two clouds while the shades part into dark and pale. Right, the ELBO climbs like a staircase from minus 1324 to minus 1130; the log likelihood is above it after each M-step and meets it after each E-step."}} tags=["nbval-ignore-output"]
shades = LinearSegmentedColormap.from_list("q", ["#FBE9DC", plots.COLOURS.q])
climb_l = staircase[:15]
climb_p = [log_joint(theta, x).logsumexp(1).sum().item() for theta in thetas[:8]]


def draw_em(fig, frame):
    left, right = fig.subplots(1, 2, width_ratios=(1.15, 1))
    t = frame // 2
    theta, q = thetas[(frame + 1) // 2], path[t][1]
    left.scatter(*x.T, c=q[:, 1], cmap=shades, vmin=0, vmax=1, s=12, edgecolors="#999999", linewidths=0.3)
    for c in range(2):
        plots.normal_ellipse(theta[1][c], theta[2][c], left, colour=plots.COLOURS.theta, linestyle=("-", "--")[c])
    left.set(xlabel="duration (min)", ylabel="wait (min)", xlim=(0.8, 6.2), ylim=(35, 103))
    what = "q follows θ" if frame % 2 == 0 else "θ follows q"
    left.set_title(f"step {t}, {'EM'[frame % 2]}: {what}")
    right.plot(np.arange(frame + 1) / 2, climb_l[: frame + 1], "-o", color=plots.COLOURS.q, markersize=4, label="ELBO")
    here = np.arange((frame + 1) // 2 + 1)
    right.plot(
        here, [climb_p[k] for k in here], "D", color=plots.COLOURS.evidence, markersize=5, mfc="none", label="log p(x)"
    )
    right.set(xlabel="step", ylabel="nats", xlim=(-0.4, 7.4), ylim=(-1335, -1120))
    right.legend(loc="lower right")
    right.set_title(f"ELBO {climb_l[frame]:.1f}".replace("-", "−"))


assert np.allclose(climb_l[::2], climb_p)  # after an E-step the two meet
alt = "EM on Old Faithful: responsibilities and ellipses in turn, and the ELBO climbing to the log likelihood."
plots.animate(draw_em, 15, alt, name="em on old faithful", figsize=(6.6, 3.0), interval_ms=500)

# %% [markdown]
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
checks.exact(
    "05.3",
    "Fisher's identity: ∇θ 𝓛 with q exact and fixed = ∇θ log p(x), in π, μ and Σ",
    gradient(with_q["E"], leaves),
    gradient(log_p, leaves),
    wrong={"q one step old": gradient(with_q["stale"], leaves), "hard labels": gradient(with_q["hard"], leaves)},
    tolerance=1e-8,
)

# %% [markdown]
# Now compare where they *go*. Take the M-step for a mean, $\mu_c^{\text{new}} = \frac{1}{N_c} \sum_n r_{nc} x_n$, and
# subtract the old mean. By (05.3) the gradient in $\mu_c$ is $\Sigma_c^{-1} \sum_n r_{nc} (x_n - \mu_c)$, so
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
    "05.8",
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
# the objective, $q$ held fixed; by (05.8) it then has the gradient of $\log p_\theta(x)$. And we ask scikit-learn, whose
# EM is somebody else's. It needs two requests: by default it stops early, and it adds $10^{-6}$ to each variance.

# %%
model = start()
optimiser = LBFGS(
    model.parameters(), line_search_fn="strong_wolfe", max_iter=20, tolerance_grad=1e-10, tolerance_change=1e-14
)
_ = training.fit(lambda x: model.elbo(x, em.e_step(model, x)), optimiser, x, num_steps=15)
by_gradient = model.log_evidence(x).sum().item()

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
# A road that looks natural is missing: hand $q$'s logits and θ to one optimiser as equals. $\mathcal{L}$ would rise,
# and any optimiser takes it. Look at one eruption and one logit. If $\phi$ is the log-odds in $q$, and $\ell$ the
# posterior's, then
#
# $$\frac{\partial \mathcal{L}}{\partial \phi} = q (1 - q)(\ell - \phi). \tag{05.10}$$
#
# For a *surely* wrong $q$ the last factor is large, and the first two kill it. The worse the mistake, the fainter the
# call for help.

# %%
log_odds = torch.tensor(6.0)  # the posterior is sure of label 1
phi = torch.tensor([-5.0, -20.0, -40.0], requires_grad=True)
q = Categorical(logits=torch.stack([torch.zeros(3), phi], -1))
log_p_both = torch.stack([torch.zeros(3), log_odds.expand(3)])  # log p(x, z) up to a constant
value = elbo_enumerated(lambda z: log_p_both.gather(0, z), q)
(slope,) = torch.autograd.grad(value.sum(), phi)
p_wrong = 1 / (1 + np.exp(-phi.detach().numpy()))
checks.exact(
    "05.14",
    "the slope of 𝓛 in a logit is q(1 − q)(ℓ − φ): it dies where q is most wrong",
    slope,
    p_wrong * (1 - p_wrong) * (6.0 - phi.detach().numpy()),
    wrong={"ℓ − φ": 6.0 - phi.detach(), "r − q, as in logistic regression": 1 / (1 + np.exp(-6.0)) - p_wrong},
)
gap = log_odds.exp().add(1).log() - value.detach()
for a, b, c in zip(phi.tolist(), gap.tolist(), slope.tolist(), strict=True):
    print(f"φ = {a:4.0f}: {b:.1f} nats below the top, slope {c:.0e}")

# %% [markdown]
# At $\phi = -40$ a single datapoint holds the bound 6 nats down and pulls with a force of $10^{-16}$. One overshooting
# step is enough to put it there. The E-step does not care: it does not follow slopes, it goes to the answer. **Where
# an exact E-step is affordable, take it.** Chapter 06 is about what to do when it is not.
#
# ## How fast? As fast as little is missing
#
# Near the top, each step of EM leaves the same share ρ of the error: it converges *linearly*. Dempster, Laird and
# Rubin found what ρ is. Ask how much the data would tell about θ if the labels were known: the **complete
# information**, minus the second derivative of $\mathbb{E}_q[\log p_\theta(x, z)]$. Part of it is lost, since the
# labels are not known (Louis 1982):
#
# $$I_{\text{observed}} = I_{\text{complete}} - I_{\text{missing}}, \qquad
#   \rho = \text{largest eigenvalue of } I_{\text{complete}}^{-1} \, I_{\text{missing}}. \tag{05.11}$$
#
# EM climbs a bound that is more sharply curved than the likelihood, by just the missing information. So it is too
# cautious, in proportion. And with two labels, $I_{\text{missing}}$ is a sum with a plain meaning,
#
# $$I_{\text{missing}} = \sum_n r_{n1} r_{n2} \, d_n d_n^\top, \qquad
#   d_n = \nabla_\theta \log \frac{p_\theta(x_n, z = 1)}{p_\theta(x_n, z = 2)}: \tag{05.12}$$
#
# the variance of each unknown label, times what hangs on it. For second derivatives we need θ as a list of free
# numbers, 11 of them.


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
    "05.9",
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
    "05.10",
    "each step leaves ρ² of the gap in log p(x), ρ the largest share of missing information",
    steady,
    [rate**2] * 3,
    wrong={"ρ, the share of the error in θ": [rate] * 3, "1 − ρ": [1 - rate] * 3},
    tolerance=2e-3,
)
doubtful = doubt.topk(2).indices
two = torch.einsum("n,ni,nj->ij", doubt[doubtful], d[doubtful], d[doubtful])
print(f"ρ = {rate:.3f}, so each step leaves {100 * rate**2:.1f} % of the gap")
print(
    f"eruptions whose label is less than 99 % sure: {int((responsibilities.max(1).values < 0.99).sum())} of {num_data}"
)
print(f"ρ from these two alone: {slowest(complete, two):.3f}")

# %% [markdown]
# The clouds hardly overlap, so hardly anything is missing, and EM is quick: 94 % of what is left is gained at each
# step. Of 272 eruptions **two** have a doubtful label, and these two make nine tenths of ρ.
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
assert typical.diff()[20:120].max() < 0.02  # the plateau
gap_3 = (typical[-1] - typical).numpy()
begin = [value.numpy() for value in starts[0]]
setting = {"weights_init": begin[0], "means_init": begin[1], "precisions_init": np.linalg.inv(begin[2])}
early = SklearnMixture(3, **setting).fit(x.numpy())
print(f"first start: {typical[-1]:.1f}; scikit-learn's default stops early, ", end="")
print(f"{typical[-1].item() - num_data * early.score(x.numpy()):.1f} nats below")

# %% mystnb={"image": {"alt": "Gap to the end point on a logarithmic axis over 200 steps. With two components it drops almost vertically below one billionth of a nat within 13 steps; with three it stays on a plateau, about one nat below, for 150 steps, and then falls along a long straight slope. Dotted lines show that the predicted slopes, rho squared per step, are parallel to the ends of both curves."}}
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
        (late - 100, gap_3[late - 100], rates[found[1].item()], 90),
    ):
        t = np.arange(length)
        ax.semilogy(begin_at + t, 3 * value * r ** (2 * t), ":", color=plots.COLOURS.evidence, linewidth=2)
    ax.semilogy([], [], ":", color=plots.COLOURS.evidence, label="predicted slope")
    ax.set(xlabel="step of EM", ylabel="gap to its end (nats)", ylim=(1e-10, 1e3), xlim=(-5, late + 60))
    ax.legend(loc="upper right")
    ax.set_title("The more of the labels is missing, the slower EM climbs")

# %% [markdown]
# With $\rho = 0.94$ a step gains an eighth of what is left. That is when people reach for L-BFGS, or use a few steps
# of EM to get close and a second-order method to finish.
#
# The plateau before it is a surprise that ρ says nothing of, since ρ is about the neighbourhood of the top. For over a
# hundred steps EM gains about a hundredth of a nat each. A stopping rule sees the end there: scikit-learn's default
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
lazy_falls = -np.diff([b for pair in zip(lazy.after_e_step, lazy.after_m_step, strict=True) for b in pair])
checks.inequality(
    "05.7",
    "generalised EM, half an M-step at a time, never lowers 𝓛 (falls ≤ 0)",
    lazy_falls.max(),
    0.0,
    wrong={"one gradient step of size 1 for an M-step": -np.diff(climbs[1.0]).min()},
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
    "05.11",
    "incremental EM never lowers 𝓛 (falls ≤ 0)",
    -np.diff(bounds).min(),
    0.0,
    wrong={"the same promise for log p(x)": fall_of_evidence.max()},
    slack=1e-8,
)
worst = int(fall_of_evidence.argmax())
print(
    f"log p(x) falls by more than 0.001 nats at {(fall_of_evidence > 1e-3).sum()} visits, at most by {fall_of_evidence[worst]:.2f}"
)
for p in range(num_passes):
    batch, single = em_history.log_evidence[p + 2], evidences[(p + 1) * num_data - 1]
    print(f"after {p + 2} passes over the data: incremental {single:.1f}, ordinary EM {batch:.1f}")

# %% mystnb={"image": {"alt": "Two panels. Left, log likelihood over five passes through the data: incremental EM, a fine line, is above the points of ordinary EM from the second pass on. Right, sixteen visits around the largest fall, in nats relative to the start of the window: the log likelihood drops by a fifth of a nat at the marked visit, while the ELBO never drops."}}
window = np.arange(worst - 7, worst + 9)
with plots.style():
    fig, (left, right) = plt.subplots(1, 2)
    left.plot(
        1 + np.arange(1, len(evidences) + 1) / num_data, evidences, color=plots.COLOURS.theta, label="incremental"
    )
    left.plot(range(1, 6), em_history.log_evidence[1:6], "o--", color=plots.COLOURS.muted, label="ordinary EM")
    left.set(xlabel="passes over the data", ylabel=r"$\log p_\theta(x)$ (nats)")
    left.legend(loc="lower right")
    left.set_title("It learns during the pass")
    for values, colour, look, label in (
        (evidences[window], plots.COLOURS.evidence, "o-", r"$\log p_\theta(x)$"),
        (bounds[1::2][window], plots.COLOURS.q, "s--", r"$\mathcal{L}$"),
    ):
        right.plot(window, values - values[0], look, color=colour, markersize=4, label=label)
    right.axvspan(worst, worst + 1, color="#E4E4E4")
    right.set(xlabel="visit", ylabel="nats, start of the window = 0")
    right.legend(loc="upper left")
    right.set_title("and may lower log p(x)")

# %% [markdown]
# Both are true at once. A pass of incremental EM gains more, since later eruptions meet a θ that earlier ones have
# already improved. And the likelihood did fall. What cannot fall is the function it climbs, and that is $\mathcal{L}$.
# **Once the E-step is not exact, the promise is about $\mathcal{L}$ alone.** All of chapter 06 hangs on this sentence.
#
# **Hard EM: a restricted $q$.** Give each eruption its most probable label and no doubt, $q_{nc} \in \{0, 1\}$. That
# is the best $q$ in the family of point masses: its entropy is zero, and the gap has a closed form,
#
# $$\log p_\theta(x_n) - \mathcal{L}_n = -\log \max_c \, p_\theta(z_n = c \mid x_n). \tag{05.13}$$
#
# It is coordinate ascent as well, so its $\mathcal{L}$ never falls. With equal weights and one common spherical
# covariance it is k-means. What does it lose on the geyser, where only two labels are in doubt? And what if one starts
# badly?


# %%
def hard_e_step(model, x):
    return Categorical(probs=torch.eye(len(model.loc))[em.e_step(model, x).probs.argmax(1)])


lucky, unlucky = start(0), start(3)
for model in (lucky, unlucky):
    hard_history = em.em(model, x, e_step=hard_e_step)
    assert np.diff(hard_history.after_m_step).min() > -1e-9
rescued = start(3)
_ = em.em(rescued, x)
assert abs(rescued.log_evidence(x).sum().item() - top) < 1e-4  # soft EM, from the unlucky start
checks.exact(
    "05.12",
    "hard EM's gap at each eruption is −log of the largest responsibility",
    unlucky.log_evidence(x) - unlucky.elbo(x, hard_e_step(unlucky, x)),
    -np.log(by_hand(theta_of(unlucky)).max(1)),
    wrong={
        "the entropy of the responsibilities": em.e_step(unlucky, x).entropy(),
        "1 − the largest": 1 - by_hand(theta_of(unlucky)).max(1),
    },
    tolerance=1e-9,
)

# %% [markdown]
# The gap ledger tells the cases apart. Its rows are means per eruption; *θ* is compared with the best one. For the point
# masses no optimiser is to blame, the family is: an *approximation* gap. For EM stopped after an M-step nothing but a
# stale $q$ is: what the ledger calls *amortisation* gap is work not done yet.

# %% mystnb={"image": {"alt": "Four horizontal bars in nats per eruption. Hard EM from a bad start has an approximation gap of about 0.08 and a theta gap of about 0.6. EM after its fourth M-step has an amortisation gap of about 0.02 and a theta gap of 0.05. Hard EM from a good start and EM have no visible gaps."}}
reference = best.log_evidence(x).detach()


def ledger(model, q, best_q):
    bounds = [model.elbo(x, one).detach() for one in (q, best_q)]
    return gap_ledger(*bounds, model.log_evidence(x).detach(), reference)


stale = models.GaussianMixture(*thetas[4])
ledgers = {
    "hard, bad start": ledger(unlucky, hard_e_step(unlucky, x), hard_e_step(unlucky, x)),
    "EM, 4th M-step": ledger(stale, Categorical(probs=path[3][1]), em.e_step(stale, x)),
    "hard, good start": ledger(lucky, hard_e_step(lucky, x), hard_e_step(lucky, x)),
    "EM": ledger(best, em.e_step(best, x), em.e_step(best, x)),
}
print(ledgers["hard, bad start"])
print("\nhard, good start\n" + str(ledgers["hard, good start"]))
assert ledgers["EM"].elbo == max(one.elbo for one in ledgers.values())

with plots.style():
    fig, ax = plt.subplots(figsize=(7, 4.6))
    plots.ledger_bars(list(ledgers.values()), list(ledgers), ax)
    ax.set_title("The family, the optimiser, or θ: the ledger says who is to blame")

# %% [markdown]
# From a good start hard EM loses next to nothing here: hardly a label is in doubt, so a $q$ without doubt is nearly exact.
# From the bad start it stops 162 nats below the top, where soft EM, *from the same start*, gets to the top, if slowly.
# A hard label is a rash decision, and it is hard to undo: small changes of θ do not flip it.
#
# And where labels *are* in doubt, hard EM is wrong even with all the data in the world. Two standard normals at −1
# and 1, so that they overlap; only the distance is unknown; infinitely many data, by quadrature. EM has its fixed
# point at the truth. Hard EM?

# %%
grid = np.linspace(-12, 14, 20_001)
density = 0.5 * stats.norm.pdf(grid, 1) + 0.5 * stats.norm.pdf(grid, -1)


def fixed_point(label, num_steps=200):
    """Means ±m of two unit normals: m ← E[label(x, m) x], where the label is the expected sign of z."""
    m = 1.5
    for _ in range(num_steps):
        m = integrate.simpson(density * label(grid, m) * grid, x=grid)
    return m


soft, hard_m = (fixed_point(label) for label in (lambda x, m: np.tanh(m * x), lambda x, m: np.sign(x)))
folded = stats.foldnorm(1).mean()  # E|x|
checks.quadrature(
    "05.13",
    "two unit normals at ±1: EM ends at 1, hard EM at E|x| = 1.1666",
    [soft, hard_m],
    [1.0, folded],
    wrong={"hard EM is right too": [1.0, 1.0], "hard EM's means too close": [1.0, 2 - folded]},
)

# %% [markdown]
# 17 % too far apart, for ever. Each tail that reaches over zero is booked on the wrong side, and pushes the means apart.
# The restricted $q$ has bent θ **towards a model whose labels are less in doubt**. Chapter 07 is about this pull.
#
# ## Two ways to fail
#
# **Local maxima.** EM goes up, and up may be a lesser hill. With two components both starts above, the lucky and the
# unlucky one, lead to one top. With three they led to three. Which one of them would you have believed?

# %% mystnb={"image": {"alt": "Three panels with the data and three ellipses each. At minus 1119.6, found by 3 starts of 40, the third component reaches from the short cloud into the gap between the clouds. At minus 1119.2, by 33 starts, it is a long thin ellipse along both clouds. At minus 1114.4, by 4 starts, it is a narrow sliver within the short cloud."}}
assert found.argmax() == 2
assert times.argmax() == 1  # the top most often found is not the highest
with plots.style():
    fig, axes = plt.subplots(1, 3, figsize=(7, 2.9), sharey=True)
    for ax, end, number, theta in zip(axes, found.tolist(), times.tolist(), solutions, strict=True):
        ax.plot(*x.T, "o", color=plots.COLOURS.muted, markersize=2, alpha=0.5)
        for c in range(3):
            plots.normal_ellipse(theta[1][c], theta[2][c], ax, levels=[2.0], colour=plots.COLOURS.theta)
        ax.set(xlabel="duration (min)", xlim=(1, 6), ylim=(38, 102))
        ax.set_title(f"{number} starts:\n{end:.1f} nats".replace("-", "−"), size=11)
    axes[0].set_ylabel("wait (min)")

# %% [markdown]
# (Curves at two standard deviations.) Five nats apart, and the most popular end is not the highest. So: **several
# starts, keep the best**, and report how many agreed. Nothing says that the best of forty is the best of all.
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
# bound. "The maximum-likelihood mixture" does not exist**; what EM finds are local maxima, and −1130.26 is a good one
# because it is *not* the global one.
#
# What protects? Luck, mostly: from wide starts EM seldom falls into such a hole. But from nearby it does, in a few
# steps. The package then stops and says so. A floor under the variances takes the hole away: the M-step becomes the
# maximum under that constraint. (A prior on Σ does the same more gracefully.) It takes away the infinity, though, not
# the bad start: look at where EM ends.

# %%
from functools import partial


def near_a_hole():
    narrow = torch.stack([1e-4 * S, S])
    return models.GaussianMixture(torch.tensor([0.1, 0.9]), torch.stack([x[0], x.mean(0)]), narrow)


try:
    em.em(near_a_hole(), x)
except ValueError as error:
    print("without a floor:", str(error)[:96], "…")
model = near_a_hole()
guarded = em.em(model, x, m_step=partial(em.m_step, min_variance=0.01))
smallest = torch.linalg.eigvalsh(model.covariance_matrix.detach()).min().item()
assert smallest > 0.01 - 1e-9
print(f"with a floor of 0.01 min²: ends at {guarded.log_evidence[-1]:.1f} nats, smallest variance {smallest:.3f} min²")

# %% [markdown]
# ## The same two steps when $z$ is a number
#
# Nothing in (05.7) said that $z$ has two states. Let each eruption have a hidden *number* instead: long and short by
# degrees, $z \sim \mathcal{N}(0, 1)$ and $x \mid z \sim \mathcal{N}(W z + b, \sigma^2 I)$. This is probabilistic PCA,
# with a normal posterior that chapter 02 derived. The E-step is that posterior. The M-step is a regression of $x$ on
# an uncertain $z$. `em.em` does not change, and the sum over labels becomes an expectation again: the line of every
# chapter. (Both columns in units of their standard deviation, since one σ serves both.)
#
# With one hidden and two observed numbers this model is a full normal distribution in disguise. So we know where EM
# must stop. And a detail of the E-step becomes visible: with $q$ the posterior the log weight is the same for *every*
# sample. How many samples does the ELBO need?

# %%
x = (x - x.mean(0)) / x.std(0, correction=0)
model = models.probabilistic_pca(2, 1, torch.Generator().manual_seed(0))
continuous = em.em(model, x)
single_normal = stats.multivariate_normal(x.mean(0), np.cov(x.T, ddof=0)).logpdf(x.numpy()).sum()
checks.independent(
    "05.15",
    "EM for probabilistic PCA, 1 latent for 2 columns, ends at the best single normal",
    continuous.log_evidence[-1],
    single_normal,
    wrong={"where it started": continuous.log_evidence[0], "independent columns": stats.norm.logpdf(x.numpy()).sum()},
    tolerance=1e-8,
)

q, num_samples = model.posterior, 1  # the E-step
one_sample = elbo(draw(model.given(x), q(x), num_samples).log_weight)
before = elbo(draw(model.given(x), models.probabilistic_pca(2, 1).posterior(x), num_samples).log_weight)
checks.exact(
    "05.16",
    "after the E-step one sample of log w is log p(x), for each of 272 eruptions",
    one_sample,
    model.log_evidence(x),
    wrong={"q from another θ": before},
)

# %% [markdown]
# One sample, no noise, no average. The two labels had this property too: after the E-step both states have the
# same log weight.
#
# ## Exercises
#
# **05.E1 (recall).** The E-step in one dimension: responsibilities, shape `(N, C)`, from `x` $(N)$, weights `probs`,
# means `loc` and *standard deviations* `scale`, each $(C)$. One of the data is 60 standard deviations away from
# everything.
#
# <details><summary>Hint</summary>
#
# $e^{-1800}$ is zero in double precision, and 0/0 is not a number. Stay with logarithms until the last moment:
# `torch.softmax` subtracts the largest one first.
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
# Collect what contains Σ in (05.4). It is $-\frac{N}{2} [\log \det \Sigma + \operatorname{tr}(\Sigma^{-1} S)]$ with
# one $S$. Which?
#
# </details>


# %%
def shared_covariance(x, q): ...  # your code


ch05.shared_covariance.check(shared_covariance)

# %% [markdown]
# **05.E3.** The first example of Dempster, Laird and Rubin. 197 animals fall into four classes with probabilities
# $\frac12 + \frac{\theta}{4}$, $\frac{1-\theta}{4}$, $\frac{1-\theta}{4}$, $\frac{\theta}{4}$; the `counts` are 125,
# 18, 20, 34. Find θ by EM. The first class is a union of two, with probabilities $\frac12$ and $\frac{\theta}{4}$: how
# its animals divide was not seen.
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
# one step leaves, close to the fixed point. Then print ρ for distances 0.5, 1, 2 and 3. How many steps for a digit, at
# each?
#
# <details><summary>Hint</summary>
#
# The step is $m \leftarrow \mathbb{E}[x \tanh(m x)]$, an integral on a grid. Its derivative in $m$ at the fixed point
# is ρ; or start a little off and measure.
#
# </details>


# %%
def em_rate(distance): ...  # your code


ch05.em_rate.check(em_rate)

# %% [markdown]
# ## Summary
#
# - *One bound, two coordinates.* EM is coordinate ascent on $\mathcal{L}(q, \theta)$. The E-step sets a KL to zero,
#   the M-step sets three; neither needs a step size. In disguise it is gradient ascent on $\log p_\theta(x)$, with a
#   matrix for a step size.
# - *Never down.* Touch, climb, and the curve is above (05.7). As a test of a program it is weak from below and strong
#   from the top.
# - *As fast as little is missing.* The rate is the largest share of missing information: 0.24 for the geyser, mostly
#   due to two eruptions; 0.84 to 0.96 with a third component.
# - *What may bend.* A partial M-step keeps every promise. A partial E-step keeps the one for $\mathcal{L}$ and loses
#   the one for $\log p_\theta(x)$. A restricted $q$ also moves θ.
# - *What fails.* Lesser hills: start often. A likelihood without a top: put a floor under the variances, and trust no
#   "global maximum".
#
# So the answer to the opening question: EM works because the ELBO, unlike the likelihood, can be maximised exactly in
# each of its two arguments; and it never steps down because after an exact E-step the ELBO *is* the likelihood.
#
# **Sources.** A. P. Dempster, N. M. Laird & D. B. Rubin (1977), Maximum likelihood from incomplete data via the EM
# algorithm, *J. Royal Statistical Society B* 39: the name, the ascent, generalised EM, the rate, the linkage example.
# R. M. Neal & G. E. Hinton (1998), A view of the EM algorithm that justifies incremental, sparse, and other variants:
# EM as coordinate ascent, incremental EM. L. Xu & M. I. Jordan (1996), On convergence properties of the EM algorithm
# for Gaussian mixtures, *Neural Computation* 8: EM as a gradient step times a matrix. T. A. Louis (1982), Finding the
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
    slope = grid**2 / np.cosh(distance * grid) ** 2  # the derivative of x tanh(m x) in m
    return integrate.simpson(density * slope, x=grid)


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
