# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · Learning θ and φ together
#
# **Nobody tells us the model's parameters, and nobody tells us the posterior. Can one number teach both at once? And
# when that number has gone up, is the model better?**
#
# You need [chapter 01](01_the_elbo.ipynb) for the bound, [chapter 02](02_a_fixed_gaussian_joint.ipynb) for a fixed
# Gaussian joint, [chapter 03](03_gradients_from_samples.ipynb) for gradients from samples, and [chapter
# 05](05_em_is_coordinate_ascent.ipynb) for EM. Reading takes about 35 minutes, without the exercises.
#
# **Afterwards you can**
#
# - *learn* a model and an approximate posterior together, and *say* when the result is maximum likelihood;
# - *build* a step that raises the ELBO and makes the model worse, and *say* which step never can;
# - *tell* from a gap ledger whether θ or φ is to blame;
# - *check* a learned model against a closed form, against another library, and on held-out data.
#
# A number in brackets, as in equation (06.4), is an equation. A number after a ✓, as in check 06.4a, is a check. The
# two are counted separately.

# %% jupyter={"source_hidden": true} tags=["remove-cell", "setup"]
import importlib.util

from IPython import get_ipython

if (shell := get_ipython()) is not None:
    if importlib.util.find_spec("vi_tutorial") is None:  # on Colab, say
        shell.run_line_magic("pip", "install --quiet git+https://github.com/vi-tutorial/vi_tutorial")
    shell.run_line_magic("matplotlib", "inline")  # figures below their cells, whatever MPLBACKEND says

# %% mystnb={"image": {"alt": "The map of the series: six boxes joined by arrows, KL, ELBO, phi, theta, networks, what breaks. The fourth, theta with its form known, is lit."}}
import copy

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import integrate, linalg, stats
from sklearn.decomposition import PCA, FactorAnalysis
from threadpoolctl import threadpool_limits
from torch import nn
from torch.distributions import constraints, kl_divergence, transform_to
from torch.optim import LBFGS, Adam

from vi_tutorial import checks, data, em, models, plots, training
from vi_tutorial.distributions import full_normal
from vi_tutorial.elbo import draw, elbo, elbo_sticking_the_landing
from vi_tutorial.evaluation import gap_ledger
from vi_tutorial.exercises import ch06

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # the matrices are small: to share them out takes longer than the work
_ = threadpool_limits(1)  # the same for NumPy, SciPy and scikit-learn
_ = torch.manual_seed(0)
plots.chain("theta")

# %% [markdown]
# ## The best model there is, made worse
#
# The data are small pictures of handwritten digits: 64 pixels, each a count from 0 to 16. Every sixth picture is
# **held out**: we learn from the others and look at these only to judge. We subtract each pixel's training mean and
# measure in units of 4 counts, so that a typical pixel has a standard deviation near one. (The held-out pictures lose
# the *training* mean: they must not have a say in anything.)
#
# The form of the model is given: a few hidden numbers $z$, a linear map, the same noise on every pixel. This is
# **probabilistic PCA**,
#
# $$z \sim \mathcal{N}(0, I), \qquad x \mid z \sim \mathcal{N}(W z + b,\; \sigma^2 I), \qquad \theta = (W, b, \sigma). \tag{06.1}$$
#
# Its parameters are unknown, but for this one family there is a formula for the best of them; we shall come to it.
# `probabilistic_pca_mle` knows it. Call it $\hat\theta$: no θ gives the training data a higher likelihood.
#
# For the posterior we want one small machine that reads $x$ and answers with a distribution over $z$, an **encoder**.
# Ours is the simplest: a mean that is linear in $x$, and one covariance for all $x$:
#
# $$q_\phi(z \mid x) = \mathcal{N}(z \mid A x + a,\; S), \qquad \phi = (A, a, S). \tag{06.2}$$

# %%
images = data.digits()
centre, unit = images.train.mean(0), 4.0
x, x_test = (images.train - centre) / unit, (images.test - centre) / unit


class LinearEncoder(nn.Module):
    """q(z | x) = N(A x + a, S): a mean linear in x, one full covariance. Untrained, it is the prior N(0, I)."""

    def __init__(self, data_dim, latent_dim):
        super().__init__()
        self.linear = nn.Linear(data_dim, latent_dim)
        self.unconstrained_tril = nn.Parameter(torch.zeros(latent_dim, latent_dim))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @property
    def scale_tril(self):
        return transform_to(constraints.lower_cholesky)(self.unconstrained_tril)

    def forward(self, x):
        return full_normal(self.linear(x), self.scale_tril)


print(f"{len(x)} training digits, {len(x_test)} held out; rms deviation of a pixel {x.square().mean().sqrt():.2f}")

# %% [markdown]
# The objective is the ELBO, averaged over the data, now with two sets of parameters,
#
# $$\max_{\phi} \max_{\theta} \; \mathbb{E}_{p_D(x)}[\mathcal{L}], \qquad
#   \mathcal{L} = \mathbb{E}_{q_\phi(z \mid x)}[\log p_\theta(x, z) - \log q_\phi(z \mid x)]. \tag{06.3}$$
#
# In code it is the line of every chapter, unchanged. We also want it without sampling noise, so that nothing we are
# going to see can be blamed on noise. With $z \sim \mathcal{N}(m, S)$, a squared error has the mean
# $\mathbb{E}\lVert x - b - W z \rVert^2 = \lVert x - b - W m \rVert^2 + \operatorname{tr}(W S W^\top)$. So the
# average over $q$ is the log-likelihood at the mean of $q$, less what the spread of $q$ costs, less the KL divergence
# to the prior:
#
# $$\mathcal{L} = \underbrace{\log \mathcal{N}(x \mid W m + b, \sigma^2 I)}_{\text{at the mean}}
#   - \underbrace{\tfrac{1}{2\sigma^2} \operatorname{tr}(W S W^\top)}_{\text{spread}}
#   - \mathrm{KL}(q_\phi(z \mid x) \,\|\, p(z)), \qquad m = A x + a. \tag{06.4}$$
#
# The function below returns the three terms in this order. Its check takes an encoder with random numbers in it: at an
# untrained one, the KL is zero and a forgotten KL would pass. The package has the same as `model.elbo(x, q(x))`, which
# we use from then on.


# %%
def expected_elbo(model, q, x):
    """Equation (06.4), its three terms one after the other: one number per datapoint."""
    posterior, noise_scale = q(x), model.noise_scale.expand(len(model.loc))
    at_mean = model.likelihood(posterior.mean).log_prob(x)
    spread = (model.weight @ q.scale_tril / noise_scale[:, None]).square().sum() / 2  # tr(W S Wᵀ) / 2σ²
    return at_mean - spread - kl_divergence(posterior, model.prior())


best = models.probabilistic_pca_mle(x, latent_dim=2)  # the best θ
model, q, three = best, LinearEncoder(64, 2), x[:3]
for parameter in q.parameters():
    _ = nn.init.normal_(parameter, std=0.2)
exact, kl = expected_elbo(model, q, three), kl_divergence(q(three), model.prior())
no_a = copy.deepcopy(q)
_ = nn.init.zeros_(no_a.linear.bias)
checks.monte_carlo(
    "06.7",
    "equation (06.4) is the mean of the log weights, for three digits and a random encoder",
    draw(model.given(three), q(three), 20_000).log_weight,
    exact,
    wrong={
        "the spread of q forgotten": exact + (model.weight @ q.scale_tril / model.noise_scale).square().sum() / 2,
        "KL forgotten": exact + kl,
        "KL added": exact + 2 * kl,
        "m without a": expected_elbo(model, no_a, three),
    },
)
assert torch.allclose(expected_elbo(model, q, x), model.elbo(x, q(x)), atol=1e-9)  # the package agrees

# %% [markdown]
# Now an experiment that looks too easy. **θ starts at the very best, $\hat\theta$. φ starts untrained**, at the
# prior. Then an optimiser moves both, up the ELBO. The exact $\log p_\theta(x)$ is watched from outside.
#
# Before you look, decide: will $\log p_\theta(x)$ stay where it is, rise, or fall? The ELBO will rise. And θ has no
# better place to go.

# %%
model, q = models.probabilistic_pca_mle(x, latent_dim=2), LinearEncoder(64, 2)
optimiser = Adam([*model.parameters(), *q.parameters()], lr=0.01)
evidence, kept = [], {}


def watched(x):
    evidence.append(model.log_evidence(x).mean().item())  # looked at, not optimised
    return model.elbo(x, q(x))


def keep(step):
    if step in (8, 24, 200):
        kept[f"step {step}"] = copy.deepcopy((model, q))


history = training.fit(watched, optimiser, x, num_steps=200, callback=keep)
bound, evidence = np.array(history.bound), np.array(evidence)
lowest = evidence.argmin()
assert (np.diff(bound) > 0).all()  # the ELBO rose at every step, to the very last
up, down = bound[lowest] - bound[0], evidence[0] - evidence[lowest]
print(f"first {lowest} steps: ELBO up by {up:.2f}, log p(x) down by {down:.2f}")
now, then = slice(0, lowest), slice(1, lowest + 1)
checks.inequality(
    "06.5d",
    "on digits, in each of these steps, log p(x) falls and the ELBO rises",
    [evidence[then], bound[now]],
    [evidence[now], bound[then]],
    wrong={"raising the ELBO raises log p(x) as much": [evidence[now] + bound[then] - bound[now], bound[now]]},
)

# %% mystnb={"image": {"alt": "Two curves over 200 steps, in nats relative to the best model. The ELBO rises from below the picture towards zero. The log evidence starts at zero, dives to minus 1.1 at step 24, and comes back slowly. The ELBO stays below the log evidence."}}
with plots.style():
    fig, ax = plt.subplots()
    top = evidence[0]
    ax.axhline(0, color=plots.COLOURS.muted, linewidth=1)
    ax.plot(evidence - top, color=plots.COLOURS.evidence, label=r"log evidence, $\log p_\theta(x)$")
    ax.plot(bound - top, color=plots.COLOURS.q, linestyle="--", label=r"ELBO, $\mathcal{L}$")
    ax.plot(lowest, evidence[lowest] - top, "o", color=plots.COLOURS.evidence)
    ax.annotate(
        f"{evidence[lowest] - top:.2f} nats after {lowest} steps".replace("-", "−"),
        (lowest, evidence[lowest] - top),
        (lowest + 38, evidence[lowest] - top - 1.6),
        arrowprops={"arrowstyle": "-", "color": plots.COLOURS.data},
    )
    ax.set(xlabel="step", ylabel="nats per digit, best model = 0", ylim=(-5, 0.5))
    ax.legend(loc="lower right")
    ax.set_title("The ELBO rises at every step, and the model gets worse first")

# %% [markdown]
# The bound rose at every single step. For the first 24 of them the model got worse at every single step. Nothing is
# broken: the code is right, the optimiser is right, the gradients are exact. **Raising the ELBO is not the same as
# improving the model.** The rest of the chapter says when it is, when it is not, and what to do.
#
# ## Why up can be down
#
# For any θ and φ, $\log p_\theta(x) = \mathcal{L} + \mathrm{KL}(q_\phi(z \mid x) \,\|\, p_\theta(z \mid x))$. Write
# that before and after a step, and subtract:
#
# $$\Delta \log p_\theta(x) = \Delta\mathcal{L} + \Delta\mathrm{KL}. \tag{06.5}$$
#
# The optimiser sees to $\Delta\mathcal{L} > 0$. Nobody looks after $\Delta\mathrm{KL}$. If the step makes $q$ fit so
# much better that the KL falls by more than the bound rises, then the evidence falls. There are two ways to a higher
# bound: to explain the data better, or to **move towards a model whose posterior $q$ happens to have**.
#
# The smallest case has one number for each. One hidden number, one observed,
#
# $$z \sim \mathcal{N}(0, 1), \quad x \mid z \sim \mathcal{N}(\theta + z, 1), \qquad
#   q_\phi(z \mid x) = \mathcal{N}\!\big(z \mid \tfrac12 (x - \phi), \tfrac12\big). \tag{06.6}$$
#
# The exact posterior has the same form with θ in place of φ. So φ is *what the encoder believes θ to be*. Integrate
# $z$ out and its variance adds to that of the noise: the evidence is $\mathcal{N}(x \mid \theta, 2)$. Two short
# calculations give, for data with mean $\bar x$,
#
# $$\mathrm{KL} = \tfrac14 (\theta - \phi)^2, \qquad
#   \mathbb{E}_{p_D(x)}[\log p_\theta(x)] = \text{const} - \tfrac14 (\theta - \bar x)^2. \tag{06.7}$$
#
# Put θ at the maximum of the likelihood, $\theta = \bar x = 0$, and let the encoder hold a stale belief, $\phi = 4$.
# Move θ with φ fixed to the best place for the *bound*: halfway, $\theta = \frac12(\bar x + \phi) = 2$. Equation (06.7)
# says what that does: the KL falls from 4 to 1, the log evidence by 1, and so the bound **rises by 2**. Check it
# without any of these formulas, by integrals over $z$, on three numbers with mean zero.

# %%
x_toy = torch.tensor([-1.5, 0.5, 1.0])[:, None]


def toy(theta, phi):
    """Equation (06.6) in the words of this chapter: one pixel, one latent, a linear encoder."""
    model, q = models.LinearGaussian(torch.ones(1, 1), torch.tensor([theta]), torch.tensor(1.0)), LinearEncoder(1, 1)
    for parameter, value in zip(q.parameters(), (np.log(np.sqrt(0.5)), 0.5, -phi / 2), strict=True):
        _ = nn.init.constant_(parameter, value)  # log scale, A, a
    return model, q


def by_quadrature(theta, phi):
    """Mean ELBO and mean log evidence of the toy data, by integrals over z."""
    node, x = np.linspace(-12, 12, 4001), x_toy.numpy()
    log_joint = stats.norm.logpdf(node) + stats.norm.logpdf(x, theta + node, 1)
    log_q = stats.norm.logpdf(node, (x - phi) / 2, np.sqrt(0.5))
    bound = integrate.simpson(np.exp(log_q) * (log_joint - log_q), x=node)
    return bound.mean(), np.log(integrate.simpson(np.exp(log_joint), x=node)).mean()


(model_0, q_0), (model_1, q_1) = toy(0.0, 4.0), toy(2.0, 4.0)
rise = (model_1.elbo(x_toy, q_1(x_toy)) - model_0.elbo(x_toy, q_0(x_toy))).mean().item()
kl_0, kl_1 = (kl_divergence(q_0(x_toy), model.posterior(x_toy)).mean().item() for model in (model_0, model_1))
change_of_bound, change_of_evidence = np.subtract(by_quadrature(2.0, 4.0), by_quadrature(0.0, 4.0))
checks.quadrature(
    "06.5a",
    "this step in θ raises the ELBO by 2 nats",
    [rise, 2.0],
    [change_of_bound] * 2,
    wrong={"the change of log p(x)": [change_of_evidence] * 2, "the fall of the KL": [kl_0 - kl_1] * 2},
)
checks.quadrature(
    "06.5b",
    "the same step lowers log p(x) by 1 nat: ΔELBO + ΔKL = 2 − 3",
    [rise + kl_1 - kl_0, 2.0 - 3.0],
    [change_of_evidence] * 2,
    wrong={"raising the ELBO raises log p(x)": [rise] * 2, "the KL's fall added": [rise + kl_0 - kl_1] * 2},
)

# %% [markdown]
# ELBO up by 2, evidence down by 1, both exact.
#
# ### The step that cannot fail
#
# [Chapter 05](05_em_is_coordinate_ascent.ipynb) climbs the same ELBO in two moves, in turns. Its **E-step** puts $q$ at
# the exact posterior, which is the best φ for the θ of the moment. Its **M-step** then puts θ where the ELBO is highest
# for that $q$. That is **EM**, and it never makes a model worse. Equation (06.5) says why: after the E-step
# $\mathrm{KL} = 0$, a KL cannot fall below zero, so whatever the step in θ does, $\Delta\mathrm{KL} \ge 0$ and
#
# $$\mathrm{KL}_{\text{before}} = 0 \quad\Longrightarrow\quad \Delta\log p_\theta(x) \;\ge\; \Delta\mathcal{L}. \tag{06.8}$$
#
# After an exact E-step, **every** step in θ that raises the bound raises the evidence at least as much. It need not
# be the best step, nor even a good one. Same data, 81 steps in θ, with the belief made exact first and left stale:

# %%
theta_0, proposals = 1.0, torch.linspace(-3, 5, 81).tolist()


def changes(phi):
    """What every proposed θ would do to the ELBO and to log p(x), starting from theta_0."""
    models_and_q = [toy(theta, phi) for theta in (theta_0, *proposals)]
    bounds = torch.stack([model.elbo(x_toy, q(x_toy)).mean() for model, q in models_and_q]).detach()
    evidences = torch.stack([model.log_evidence(x_toy).mean() for model, _ in models_and_q]).detach()
    return bounds[1:] - bounds[0], evidences[1:] - evidences[0]


exact_bound, exact_evidence = changes(phi=theta_0)  # E-step first: the belief is right
stale_bound, _ = changes(phi=4.0)
checks.inequality(
    "06.5c",
    "after an exact E-step, log p(x) rises at least as much as the ELBO, whatever the step in θ",
    exact_bound,
    exact_evidence,
    wrong={"no E-step, a stale q": stale_bound},
    slack=1e-12,
)

# %% [markdown]
# The picture shows the plane of θ and φ. Lines are heights of the ELBO, best at the origin. On the dotted diagonal
# the belief is right and the bound touches the evidence. **In the two grey wedges up is down**: there a small step in θ
# that raises the ELBO lowers the evidence.
#
# *EM* alternates: straight to the diagonal (E), then sideways (M). *Joint ascent* follows the gradient in both numbers
# at once, as the opening did; later frames skip some of its steps. Both start in a wedge. What will each of them do?


# %%
def height(theta):
    return -(theta**2) / 4  # mean log p(x), less its maximum: equation (06.7)


def bound_at(theta, phi):
    return height(theta) - (theta - phi) ** 2 / 4


em_path, joint_path = [(0.5, 4.0)], [(0.5, 4.0)]
shown = (0, 1, 2, 3, 4, 6, 8, 11, 14, 18, 22, 27, 33, 40)  # these steps of joint ascent, one move of EM for each
for frame in range(len(shown) - 1):
    theta, phi = em_path[-1]
    em_path.append((theta, theta) if frame % 2 == 0 else (phi / 2, phi))  # E-step, M-step; the data's mean is 0
for _ in range(shown[-1]):
    theta, phi = joint_path[-1]
    joint_path.append((theta + 0.5 * (-theta / 2 - (theta - phi) / 2), phi + 0.5 * (theta - phi) / 2))

paths = {"EM": (np.array(em_path), range(len(shown))), "joint ascent": (np.array(joint_path), shown)}
top = by_quadrature(0.0, 0.0)[1]
for path, _ in paths.values():
    integrals = np.array([by_quadrature(*point) for point in path[:8]]) - top
    assert np.allclose(integrals, np.stack([bound_at(*path[:8].T), height(path[:8, 0])], 1), atol=1e-8)
    assert (np.diff(bound_at(*path.T)) >= 0).all()  # both raise the ELBO at every step
    assert np.abs(path[-1]).max() < 0.1  # both end at the maximum
falls = {name: int((np.diff(height(path[:, 0])) < 0).sum()) for name, (path, _) in paths.items()}
print(f"log p(x) falls in {falls['joint ascent']} steps of joint ascent, in {falls['EM']} of EM")


# %% mystnb={"image": {"alt": "Animation, two panels. Left, the plane of theta and phi with height lines of the ELBO, a dotted diagonal and two grey wedges: EM goes straight to the diagonal and then down it in steps, joint ascent first moves right through the wedge, turns, and ends at the origin too. Right, the two points on the parabola of the log evidence: EM only climbs, joint ascent first slides down."}} tags=["nbval-ignore-output"]
def draw_paths(fig, frame):
    plane, curve = fig.subplots(1, 2, width_ratios=(1.1, 1))
    axis = np.linspace(-1, 4.5, 56)
    heights = bound_at(axis, axis[:, None])  # rows: φ
    plane.contour(axis, axis, heights, 7, colors=plots.COLOURS.muted, linewidths=0.8, linestyles="-")
    plane.fill_betweenx([0, 4.5], [0, 0], [0, 2.25], color="#DDDDDD", zorder=0)
    plane.fill_betweenx([-1, 0], [-0.5, 0], [0, 0], color="#DDDDDD", zorder=0)
    plane.plot(axis, axis, color=plots.COLOURS.p, linewidth=1, linestyle=":")
    plane.text(3.05, 2.55, "φ = θ", color=plots.COLOURS.p, size=10)
    plane.text(1.2, 4.1, "wedge", size=10)
    plane.set(xlabel="θ", ylabel="φ, the encoder's belief", xlim=(-1, 4.5), ylim=(-1, 4.5))
    curve.plot(axis, height(axis), color=plots.COLOURS.evidence, linewidth=1.5)
    styles = {"EM": (plots.COLOURS.theta, "s"), "joint ascent": (plots.COLOURS.q, "o")}
    for name, (path, steps) in paths.items():
        colour, marker = styles[name]
        theta, phi = path[steps[frame]]
        plane.plot(*path[: steps[frame] + 1].T, color=colour, marker=marker, markersize=4, linewidth=1.5)
        curve.plot([theta, theta], [bound_at(theta, phi), height(theta)], color=colour, linewidth=3, alpha=0.5)
        curve.plot(theta, height(theta), marker, color=colour, markersize=8, label=name)
    curve.set(xlabel="θ", ylabel="nats, maximum = 0", xlim=(-1, 4.5), ylim=(-3.4, 0.3))
    curve.text(2.6, -1.1, r"$\log p_\theta(x)$", size=11)
    curve.legend(loc="upper right")
    joint = height(paths["joint ascent"][0][:, 0])
    sinks = frame > 0 and joint[shown[frame]] < joint[shown[frame - 1]]
    title = f"Joint ascent: the ELBO goes up, the evidence {'DOWN' if sinks else 'up'}"
    ends = {0: "The start: q believes in a stale θ", len(shown) - 1: "Both at the maximum; only EM never went down"}
    fig.suptitle(ends.get(frame, title), x=0.01, ha="left", weight="bold", size=12)


plots.animate(
    draw_paths,
    len(shown),
    "EM and joint ascent over theta and phi, and where they are on the log evidence. Joint ascent first moves through "
    "the wedge and slides down the evidence, then both climb to the maximum.",
    name="up is down",
    figsize=(7.0, 3.5),
    interval_ms=450,
)

# %% [markdown]
# The bars in the right panel are the KL, from the bound at the lower end up to the evidence at the marker. Joint
# ascent trades height on the curve for a shorter bar. Once the belief has caught up, nothing is left to trade.
#
# The digits did the same, with 193 numbers in θ. To see who lost what, we need the best $q$ for each θ on the way: an
# E-step for our encoder. The posterior of (06.1) is normal, with a mean linear in $x$ and one covariance for all $x$
# ([chapter 02](02_a_fixed_gaussian_joint.ipynb)). So it *is* a linear encoder, the one with
#
# $$S = \sigma^2 M^{-1}, \qquad A = M^{-1} W^\top, \qquad a = -A b, \qquad M = W^\top W + \sigma^2 I. \tag{06.9}$$
#
# The package's `em.e_step(model, x)` gives the same posterior; the code compares them. Then the **gap ledger**:
# $\log p_\theta(x)$ is the ELBO and what $q$ loses; below it stands what θ loses against $\hat\theta$.


# %% mystnb={"image": {"alt": "Three stacked bars for steps 8, 24 and 200. The ELBO and the evidence approach each other as the amortisation gap shrinks from several nats to a tenth. The thin theta bar is longest at step 24, at 1.07 nats, and short at the end."}}
def e_step(model, q):
    """Move φ to the exact posterior: equation (06.9), in a form that also allows one σ per pixel."""
    with torch.no_grad():
        covariance = torch.linalg.inv(model.posterior_precision())  # σ² M⁻¹
        weight = covariance @ (model.weight / model.noise_scale.square().expand(len(model.loc))[:, None]).mT
        q.linear.weight.copy_(weight)
        q.linear.bias.copy_(-weight @ model.loc)
        q.unconstrained_tril.copy_(transform_to(constraints.lower_cholesky).inv(torch.linalg.cholesky(covariance)))


exact_q, ledgers, reference = LinearEncoder(64, 2), {}, best.log_evidence(x)
for name, (model, q) in kept.items():
    e_step(model, exact_q)
    assert kl_divergence(exact_q(x), em.e_step(model, x)).abs().max() < 1e-9  # the package agrees
    bounds = (model.elbo(x, encoder(x)) for encoder in (q, exact_q))
    ledgers[name] = gap_ledger(*bounds, model.log_evidence(x), reference)
    assert abs(ledgers[name].approximation_gap) < 1e-9  # so some linear encoder is exact
amortisation, theta = (
    [getattr(ledger, gap) for ledger in ledgers.values()] for gap in ("amortisation_gap", "theta_gap")
)
assert amortisation == sorted(amortisation, reverse=True)
assert theta[1] == max(theta)
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 6.4))
    plots.ledger_bars(list(ledgers.values()), list(ledgers), ax)
    ax.set_title("While q catches up, θ pays; then θ comes home")

# %% [markdown]
# There is no *approximation* gap: some linear encoder is exact. All that $q$ loses is **amortisation gap**, here in its
# simplest form: $q$ is not trained yet.
#
# ## What the gradient says
#
# The same in derivatives. The gradient of the ELBO in θ averages over $q$; the gradient of the evidence averages over
# the exact posterior (Fisher's identity, chapter 05):
#
# $$\nabla_\theta \mathcal{L} = \mathbb{E}_{q_\phi(z \mid x)}[\nabla_\theta \log p_\theta(x, z)], \qquad
#   \nabla_\theta \log p_\theta(x) = \mathbb{E}_{p_\theta(z \mid x)}[\nabla_\theta \log p_\theta(x, z)]. \tag{06.10}$$
#
# Where $q$ is exact they are the same vector, although $\mathcal{L}$ and $\log p_\theta$ are different functions. Two
# claims at once: at some θ, with an exact $q$, the two gradients agree. And at $\hat\theta$ with an exact $q$ the ELBO
# does not pull at θ at all. Had φ made one E-step first, θ would have stood still in the opening.


# %%
def gradient(value, module):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(module.parameters()))])


model, q = models.probabilistic_pca(64, 2, torch.Generator().manual_seed(1)), LinearEncoder(64, 2)
untrained = gradient(model.elbo(x, q(x)).mean(), model)
e_step(model, q)
plugged_in = gradient(model.given(x)(q(x).mean.detach()[None]).mean(), model)
checks.exact(
    "06.6",
    "with an exact q, ∇θ of the ELBO is ∇θ of log p(x): two functions, two automatic derivatives",
    gradient(expected_elbo(model, q, x).mean(), model),
    gradient(model.log_evidence(x).mean(), model),
    wrong={"an untrained q": untrained, "E[z | x] put in for z": plugged_in},
    tolerance=1e-8,
)
q = LinearEncoder(64, 2)
pulled = gradient(best.elbo(x, q(x)).mean(), best)
e_step(best, q)
checks.exact(
    "06.10",
    "at the best θ, with an exact q, the ELBO does not pull at θ",
    gradient(best.elbo(x, q(x)).mean(), best),
    torch.zeros_like(pulled),
    wrong={"the untrained q of the opening": pulled},
    tolerance=1e-8,
)

# %% [markdown]
# One of the wrong answers is a favourite: "fill in the best guess of $z$, then fit θ as if $z$ had been seen". It
# forgets that $z$ is uncertain.
#
# ## Four switches
#
# `model.requires_grad_(False)` freezes a module: no optimiser moves it. (The package's `with training.frozen(model):`
# does so for a block and then puts the switch back; we shall use it below.) With one switch for θ and one for φ there
# are four ways to climb. All start at the same place: a small random $W$, an untrained $q$.
#
# Predict the two that are less familiar. If only **φ** learns, where does the ELBO stop? And if only **θ** learns,
# while $q$ stays at the prior for ever, what will become of $W$?


# %%
def climb(phases):
    """Each phase says which of "θ" and "φ" learn, and for how many steps."""
    model, q = models.probabilistic_pca(64, 2, torch.Generator().manual_seed(3)), LinearEncoder(64, 2)
    optimiser = Adam([*model.parameters(), *q.parameters()], lr=0.02)
    bound, evidence = [], []

    def watched(x):
        evidence.append(model.log_evidence(x).mean().item())
        return model.elbo(x, q(x))

    for learning, num_steps in phases:
        model.requires_grad_("θ" in learning)
        q.requires_grad_("φ" in learning)
        bound += training.fit(watched, optimiser, x, num_steps=num_steps).bound
    return np.array(bound), np.array(evidence), model, q


# %%
switches = {
    "only φ learns": climb([("φ", 180)]),
    "only θ learns, q = prior": climb([("θ", 180)]),
    "in turns, 30 steps each": climb([("φ", 30), ("θ", 30)] * 3),
    "both learn": climb([("θφ", 180)]),
}
ceiling = best.log_evidence(x).mean().item()
bounds, evidences = ({name: run[part] for name, run in switches.items()} for part in (0, 1))
for name in switches:
    print(f"{name:<26} ELBO {bounds[name][-1]:.1f}   log p(x) {evidences[name][-1]:.1f}")
print(f"{'the best there is':<26} {'':>10}   log p(x) {ceiling:.1f}")
isotropic = stats.norm(0, x.square().mean().sqrt().item()).logpdf(x.numpy()).sum(1).mean()
only_theta = switches["only θ learns, q = prior"]
with_noise_of_best = stats.norm(0, best.noise_scale.item()).logpdf(x.numpy()).sum(1).mean()
checks.exact(
    "06.11",
    "with q kept at the prior θ ends at W = 0: ELBO, log p(x) of one isotropic normal, and W = 0",
    [only_theta[0][-1], only_theta[1][-1], only_theta[2].weight.abs().max().item()],
    [isotropic, isotropic, 0.0],
    wrong={
        "σ² of the best model, with W = 0": [with_noise_of_best, with_noise_of_best, 0.0],
        "the W it started from": [isotropic, isotropic, switches["only φ learns"][2].weight.abs().max().item()],
    },
    tolerance=1e-3,
)

# %% mystnb={"image": {"alt": "Four panels on one scale, with the ELBO, dashed, and the log evidence, solid, over 180 steps. Only phi: the ELBO rises a little to a flat evidence at minus 96. Only theta: both meet at minus 95.8, far below the best. In turns: a staircase, the evidence moves in every second flight only. Both: both curves reach the best, minus 88.4."}}
assert np.ptp(evidences["only φ learns"]) < 1e-12  # θ is frozen, so is the evidence
flight = slice(30, 61)  # the first in which θ learns
up_and_down, up = (part["in turns, 30 steps each"][flight] for part in (evidences, bounds))
assert up_and_down[0] < up_and_down[-1] < up_and_down.max() - 0.05
assert up[up_and_down.argmax()] < up[-1]  # and the ELBO went on climbing
assert abs(bounds["both learn"][-1] - ceiling) < 0.01
with plots.style():
    fig, axes = plt.subplots(2, 2, figsize=(7, 4.8), sharex=True, sharey=True)
    for ax, name in zip(axes.flat, switches, strict=True):
        ax.axhline(ceiling, color=plots.COLOURS.muted, linewidth=1)
        ax.plot(evidences[name], color=plots.COLOURS.evidence, label="log evidence")
        ax.plot(bounds[name], color=plots.COLOURS.q, linestyle="--", label="ELBO")
        ax.set_title(name, size=11)
    axes[0, 0].set(ylim=(-99, -87), xticks=(0, 60, 120, 180))
    axes[0, 0].text(179, ceiling - 0.3, "the best there is", ha="right", va="top", size=10)
    axes[1, 1].legend(loc="lower right")
    fig.supxlabel("step", size=11)
    fig.supylabel("nats per digit", size=11)
    fig.suptitle("θ moves the evidence, φ moves the bound towards it", x=0.01, ha="left", weight="bold", size=12)

# %% [markdown]
# - **Only φ**: chapter 02, for all datapoints at once. The model does not move. The ELBO rises until it touches
#   $\log p_\theta(x)$, and stops there.
# - **Only θ**: the model has to live with a $q$ that says nothing about $x$. The best it can do is not to use $z$ at
#   all: $W \to 0$. In (06.4) with $m = 0$ and $S = I$ the error is $\lVert x - b \rVert^2 + \operatorname{tr}(W
#   W^\top)$: a $z$ that knows nothing of $x$ can only add error. Once $W = 0$ the posterior *is* the prior, so $q$ is
#   exact and the gap is zero. **A tight bound, and a bad model.**
# - **In turns**: a staircase. The evidence moves in θ's flights only. And look at the end of the first one: the
#   evidence turns *down* while the ELBO still climbs. Thirty steps are enough for $q$ to go stale.
# - **Both**: the fastest per step, since each step moves both. It reached the best model, though (06.5) promised
#   nothing. (If a curve seems to ripple: Adam has momentum, and may overshoot by a little even without noise.)
#
# And the order? In (06.3) it means nothing: two maxima can be exchanged. The order of your *steps* does: φ first is
# the safe one. With larger models a lagging encoder can do lasting harm. He et al. (2019) blame it for *posterior
# collapse*, a decoder that learns to ignore $z$, and answer with several φ-steps for each θ-step early in training.
#
# ## What exactly is being maximised?
#
# The two inner letters of (06.3), θ and φ, have had their turn. Now the average outside. $p_D(x)$ is the **data
# distribution**: whatever the digits come from. We do not have it. We have $N$ draws, so
# $\mathbb{E}_{p_D(x)}$ becomes their mean; a **minibatch** of $B$ of them gives an unbiased estimate of that mean
# (chapter 03); and held-out draws tell whether what is good for the draws is good for $p_D(x)$ too. Ours are held-out
# *pictures*, not held-out *hands*: the same 13 people wrote both parts, and $p_D(x)$ is their writing.
#
# One often reads that maximum likelihood minimises $\mathrm{KL}(p_D \,\|\, p_\theta)$. It follows from
#
# $$\mathrm{KL}(p_D \,\|\, p_\theta) = -\mathbb{E}_{p_D(x)}[\log p_\theta(x)] - \mathrm{H}(p_D), \tag{06.11}$$
#
# since the entropy $\mathrm{H}(p_D)$ does not depend on θ. For a $p_D(x)$ with a density that is fine. But $N$ draws
# are $N$ spikes, without a density. For continuous $x$ the KL from them to any smooth $p_\theta$ is $+\infty$ whatever
# θ is, and their entropy is $-\infty$. What survives are *differences*: how much better one θ is than another. To see
# it, give the spikes of the toy data a width ε, and compute the KL on a grid.

# %%
grid, thetas = np.linspace(-12, 12, 12_001), np.linspace(-2, 2, 21)


def smoothed_kl(theta, width):
    """KL from the draws, each widened to a normal of this width, to p_θ = N(θ, 2): on a grid."""
    p_data = stats.norm.pdf(grid[:, None], x_toy.numpy()[:, 0], width).mean(1)
    inside = p_data > 0
    ratio = np.log(p_data[inside]) - stats.norm.logpdf(grid[inside], theta, np.sqrt(2))
    return integrate.trapezoid(p_data[inside] * ratio, grid[inside])


curves = {width: np.array([smoothed_kl(theta, width) for theta in thetas]) for width in (1.0, 0.1, 0.01)}
squares = ((x_toy.numpy() - thetas) ** 2).mean(0)  # minus the mean log-likelihood is squares / 4 + a constant
below_best = (squares - squares.min()) / 4
print("lowest KL:", ", ".join(f"{curve.min():.1f} nats for ε = {width:g}" for width, curve in curves.items()))
checks.quadrature(
    "06.8",
    "KL(p_D‖p_θ) = a constant − the mean log-likelihood, for draws of width 1, 0.1 and 0.01",
    np.stack([below_best] * 3),
    np.stack([curve - curve.min() for curve in curves.values()]),
    wrong={
        "the sum over the draws": np.stack([3 * below_best] * 3),
        "variance 1: z forgotten": np.stack([2 * below_best] * 3),
    },
)

# %% [markdown]
# The KL grows without end as the spikes get narrow: once they no longer overlap, by $\log 10$ for each factor of ten.
# Its shape, and so its lowest point, stays. That is the precise sense of "maximum likelihood minimises $\mathrm{KL}(p_D \,\|\, p_\theta)$" on data.
# (A model whose noise is learned also sees ε, as a little more variance. There the shapes agree in the limit only.)
#
# ## The answer in closed form
#
# Does joint ascent end at maximum likelihood, not just near it? Probabilistic PCA lets us ask, since Tipping and
# Bishop (1999) solved it. The average log density of a normal sees the data only through their mean and their
# covariance $C$ (divided by $N$). The model's covariance, $W W^\top + \sigma^2 I$, has $L$ eigenvalues that are free,
# and $D - L$ that all equal $\sigma^2$. So the best it can do is to copy the $L$ largest eigenvalues of $C$ with their
# directions, and to give the others one common value: their mean. Let $\lambda_1 \ge \dots \ge \lambda_D$ be the
# eigenvalues of $C$ and the columns of $U$ the first $L$ eigenvectors. Then, up to a rotation of the latent,
#
# $$\hat b = \bar x, \qquad \hat\sigma^2 = \frac{1}{D - L} \sum_{i > L} \lambda_i, \qquad
#   \hat W = U \operatorname{diag}\!\big(\sqrt{\lambda_i - \hat\sigma^2}\big)_{i \le L}. \tag{06.12}$$
#
# In the likelihood, the log determinant is then a sum over these eigenvalues, and the squared distances average to $D$:
#
# $$\mathbb{E}_{p_D(x)}[\log p_{\hat\theta}(x)] = -\tfrac12 \Big( D \log 2\pi + \sum_{i \le L} \log \lambda_i
#   + (D - L) \log \hat\sigma^2 + D \Big). \tag{06.13}$$
#
# From here on we use ten latent dimensions. scikit-learn's PCA has the same model inside, with one trap: it divides by
# $N - 1$. So its noise variance needs the factor $(N-1)/N$, and its `score`, the mean log-likelihood, is not quite the
# maximum until its variances have that factor too.

# %%
latent_dim, (num_data, data_dim) = 10, x.shape
eigenvalues = torch.linalg.eigvalsh((x - x.mean(0)).mT @ (x - x.mean(0)) / num_data).flip(0)
noise_variance = eigenvalues[latent_dim:].mean()
log_det = eigenvalues[:latent_dim].log().sum() + (data_dim - latent_dim) * noise_variance.log()
best_log_likelihood = -0.5 * (data_dim * np.log(2 * np.pi) + log_det + data_dim)

best = models.probabilistic_pca_mle(x, latent_dim)  # the package's version of equation (06.12)
assert abs(best.noise_scale.item() ** 2 - noise_variance.item()) < 1e-12
assert abs(best.log_evidence(x).mean().item() - best_log_likelihood.item()) < 1e-10

# %%
pca = PCA(latent_dim, svd_solver="full").fit(x.numpy())
unconverted, unconverted_score = pca.noise_variance_, pca.score(x.numpy())
pca.explained_variance_ *= (num_data - 1) / num_data
pca.noise_variance_ *= (num_data - 1) / num_data
checks.independent(
    "06.1",
    "σ² is the mean discarded eigenvalue of the covariance divided by N (scikit-learn, converted)",
    noise_variance,
    pca.noise_variance_,
    wrong={
        "divided by N − 1": unconverted,
        "discarded sum over D": eigenvalues[latent_dim:].sum() / data_dim,
        "mean of all eigenvalues": eigenvalues.mean(),
    },
    tolerance=1e-9,
)
covariance = best.marginal().covariance_matrix.detach().numpy()
checks.independent(
    "06.2",
    "the maximum log-likelihood: by eigenvalues, by SciPy's normal density, by scikit-learn's score (converted)",
    [best_log_likelihood.item()] * 2,
    [stats.multivariate_normal(np.zeros(64), covariance).logpdf(x.numpy()).mean(), pca.score(x.numpy())],
    wrong={
        "the term −D/2 dropped": [best_log_likelihood.item() + data_dim / 2] * 2,
        "scikit-learn as it comes": [unconverted_score] * 2,
    },
    tolerance=1e-8,
)

# %% [markdown]
# The last wrong answer is off by a few millionths of a nat only: near a maximum, a slightly wrong variance costs next
# to nothing.
#
# Now the argument. For every θ and every φ, and averaged over the data,
#
# $$\mathbb{E}_{p_D(x)}[\mathcal{L}] \;\le\; \mathbb{E}_{p_D(x)}[\log p_\theta(x)]
#   \;\le\; \mathbb{E}_{p_D(x)}[\log p_{\hat\theta}(x)]. \tag{06.14}$$
#
# The first is the bound, an equality where $q$ is exact; the second says that $\hat\theta$ is the best, an equality
# there. The encoder (06.9) of $\hat\theta$ makes both equal. So the top of (06.3) has the height of the maximum
# likelihood, and *whoever reaches that height* has a best model and an exact posterior. That is about the top. Whether
# an optimiser gets there is another question; Lucas et al. (2019) show that here the ELBO adds no local maxima to
# those of the likelihood.
#
# ## Joint ascent on real digits
#
# So train as one would train anything larger: both together, from a random start, one sample of $z$ per digit,
# minibatches of 100, the held-out digits scored along the way. The objective is the line. Each step has two kinds of
# noise: which digits, and which $z$. Will it reach the ceiling?

# %%
generator = torch.Generator().manual_seed(0)
model, q = models.probabilistic_pca(64, latent_dim, generator), LinearEncoder(64, latent_dim)
optimiser = Adam([*model.parameters(), *q.parameters()], lr=0.02)
num_samples, angles = 1, []


def watch(step):
    if step % 5 == 0:
        angles.append(linalg.subspace_angles(model.weight.detach().numpy(), pca.components_.T)[::-1])


history = training.fit(
    lambda x: elbo(draw(model.given(x), q(x), num_samples).log_weight),
    optimiser,
    x,
    num_steps=600,
    batch_size=100,
    generator=generator,
    validate=lambda: model.elbo(x_test, q(x_test)),
    validate_every=50,
    callback=watch,
)
angles = np.rad2deg(angles)
assert angles[0].max() > 80
assert angles[-1].max() < 10

# %% mystnb={"image": {"alt": "Left: the training ELBO rises within 100 steps to about a nat and a half below the solid line of the best model's log evidence, minus 71.1, and stays there; the held-out ELBO stays as far below the dashed line of the best model's held-out log evidence, minus 72.2. Right: ten angles between the model's space and PCA's fall one after another from up to 90 degrees to a few degrees."}}
epochs = np.array(history.bound).reshape(-1, 15).mean(1)  # 15 minibatches see every digit once
validated, held_out = np.array(history.validation).T
assert (epochs[-20:] < best_log_likelihood.item() - 0.5).all()  # it stays short of the maximum
with plots.style():
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.6), width_ratios=(1.25, 1))
    for value, linestyle in ((best_log_likelihood.item(), "-"), (best.log_evidence(x_test).mean().item(), "--")):
        left.axhline(value, color=plots.COLOURS.evidence, linewidth=1.2, linestyle=linestyle)
    left.plot(15 * np.arange(1, len(epochs) + 1), epochs, color=plots.COLOURS.q, label="ELBO, training")
    left.plot(
        validated,
        held_out,
        color=plots.COLOURS.accent,
        marker="o",
        markersize=4,
        linestyle="--",
        label="ELBO, held out",
    )
    left.text(600, -71.05, "best model: log evidence, training", ha="right", va="bottom", size=10)
    left.text(600, -72.15, "held out", ha="right", va="bottom", size=10)
    left.set(xlabel="step", ylabel="nats per digit", ylim=(-80, -70))
    left.legend(loc="lower right")
    left.set_title("Training stops short of the maximum…", size=11)
    right.plot(5 * np.arange(1, len(angles) + 1), angles, color=plots.COLOURS.theta, linewidth=1.2)
    right.set(xlabel="step", ylabel="angle to PCA's subspace (°)", yticks=(0, 30, 60, 90), xlim=(0, 300))
    right.set_title("…though the space is found", size=11)

# %% [markdown]
# The right panel shows the ten **principal angles** between the space that $W$ spans and the space of the first ten
# principal components: all zero when the spaces are the same. They fall one after another. The strong directions are
# found at once; for the last, $W$ has to leave a place where the gradient is nearly zero. Any $L$ of the eigenvectors
# give a stationary point of the likelihood, and all but the first $L$ give a saddle (Bishop 2006, equation 12.45 and
# the text after it).
#
# Two questions. Who loses the missing nats? The ledger knows, on both sets of digits. And what keeps the run from
# landing? Put θ and φ at the optimum, where the exact gradient over all digits is zero, and look at the gradients of
# minibatches there: for φ by the plain derivative of the line and by chapter 03's *sticking the landing*, for θ with $z$
# integrated out and with one sample.

# %%
exact_q = LinearEncoder(64, latent_dim)
e_step(model, exact_q)  # the best member of q's family, for every digit at once
for name, digits in (("training", x), ("held out", x_test)):
    two_bounds = [model.elbo(digits, encoder(digits)) for encoder in (q, exact_q)]
    print(f"{name}\n{gap_ledger(*two_bounds, model.log_evidence(digits), best.log_evidence(digits))}\n")
noisy_bound = model.elbo(x, q(x)).mean().item()
spread_held_out = best.log_evidence(x_test).std().item() / np.sqrt(len(x_test))
print(f"standard error of a held-out mean over {len(x_test)} digits: {spread_held_out:.1f} nats")

e_step(best, exact_q)
batches = [x[torch.randperm(num_data, generator=generator)[:100]] for _ in range(20)]
objectives = {
    "φ, the line": (lambda b: elbo(draw(best.given(b), exact_q(b), 1).log_weight), exact_q),
    "φ, sticking the landing": (lambda b: elbo_sticking_the_landing(best.given(b), exact_q(b), 1), exact_q),
    "θ, z integrated out": (lambda b: best.elbo(b, exact_q(b)), best),
    "θ, one sample of z": (lambda b: elbo(draw(best.given(b), exact_q(b), 1).log_weight), best),
}
noise = {name: torch.stack([gradient(f(b).mean(), of) for b in batches]) for name, (f, of) in objectives.items()}
for name, g in noise.items():
    print(f"typical length of a minibatch's gradient at the optimum: {name:<24} {g.square().sum(1).mean().sqrt():.1f}")
checks.exact(
    "06.12",
    "at an exact q the sticking-the-landing gradient of φ is zero, sample by sample",
    noise["φ, sticking the landing"],
    torch.zeros_like(noise["φ, the line"]),
    wrong={"the plain derivative": noise["φ, the line"]},
    tolerance=1e-8,
)

# %% [markdown]
# **Who loses?** Most of it is φ's: the amortisation gap. θ is nearly there. Training and held out differ by about a
# nat, for the best model and for ours alike. Do not read too much into that: the held-out mean alone has a standard error
# of 0.7. If the form of the model were right, fitting 660 free numbers (705, less the 45 that only rotate the latent) to
# 1,498 digits would explain about $660 / 1498 \approx 0.4$ of it.
#
# **What keeps it from landing?** Not φ, if we choose well. At an exact $q$ the log weight is $\log p_\theta(x)$ for
# every $z$: it does not move with the sample. The plain derivative is noisy there only through the score of $q$, whose
# mean is zero (chapter 03). Sticking the landing leaves the score out, and what remains is zero for each sample. But θ
# keeps dancing. Even with $z$ integrated out a minibatch pulls: the gradient of $\log p_\theta(x)$ is zero on average
# *over all digits*, not for a hundred of them. One sample of $z$ adds little to that. And as θ moves, $q$ is exact no
# longer, so φ has to follow. Smaller and smaller steps would calm this; here we can do better. Equation (06.4) has no
# sampling noise, 1,498 digits fit in one batch, and an objective without noise suits L-BFGS, which builds up curvature
# as it goes.
#
# Then compare height and parameters. The noise can be compared as it is. $W$ cannot, since any rotation of the latent is
# as good; the space that its columns span can.


# %%
def ascend(model, q, x, max_iter=200):
    """Joint ascent of the exact ELBO on all data, in whatever of θ and φ is not frozen."""
    parameters = [p for p in (*model.parameters(), *q.parameters()) if p.requires_grad]
    optimiser = LBFGS(
        parameters, max_iter=max_iter, history_size=50, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )
    return training.fit(lambda x: model.elbo(x, q(x)), optimiser, x, num_steps=1)


def heights(max_iter):
    """From a random start: the model, and its mean ELBO and log evidence after so many iterations."""
    model, q = models.probabilistic_pca(64, latent_dim, torch.Generator().manual_seed(2)), LinearEncoder(64, latent_dim)
    _ = ascend(model, q, x, max_iter)
    return model, q, torch.stack([model.elbo(x, q(x)).mean(), model.log_evidence(x).mean()]).detach()


model, q, reached = heights(max_iter=200)
checks.exact(
    "06.3a",
    "joint ascent reaches the maximum likelihood: nats per digit that 𝓛 and log p(x) fall short of it",
    best_log_likelihood - reached,
    [0.0, 0.0],
    wrong={
        "samples and minibatches": [best_log_likelihood - noisy_bound] * 2,
        "stopped after 20 iterations": best_log_likelihood - heights(max_iter=20)[2],
    },
    tolerance=1e-5,
)


# %%
def projection(columns):
    """The orthogonal projection on the span of the columns: the same for every basis of it."""
    orthonormal = np.linalg.qr(columns.detach().numpy())[0]
    return orthonormal @ orthonormal.T


checks.independent(
    "06.3b",
    "the learned σ² is scikit-learn's, converted",
    model.noise_scale**2,
    pca.noise_variance_,
    wrong={"divided by N − 1": unconverted, "stopped after 20 iterations": heights(20)[0].noise_scale ** 2},
    tolerance=1e-5,
)
checks.independent(
    "06.3c",
    "the learned columns of W span the space of scikit-learn's first ten components",
    projection(model.weight),
    pca.components_.T @ pca.components_,
    wrong={
        "stopped after 20 iterations": projection(heights(20)[0].weight),
        "nine of the ten": projection(model.weight[:, :9]),
    },
    tolerance=1e-3,
)

# %% [markdown]
# So yes: when the encoder's family contains the posterior of the best model, the joint maximum *is* maximum
# likelihood, and this run got there, to a hundred-thousandth of a nat. At the top, both gaps close together.
#
# And how good is the best model? Look at it, and mind the difference between a **mean** and a **draw**.
# $p_\theta(x \mid z)$ is a distribution. Its mean is a smooth picture, and not what the model says a digit looks
# like.

# %% mystnb={"image": {"alt": "Five rows of ten small digits. Data; their reconstructions by the mean, smooth and readable; their reconstructions by a draw, the same with grain; means at random z, blurred shapes that are not quite digits; draws at random z, the same with grain."}}
generator = torch.Generator().manual_seed(4)
with torch.no_grad():
    z = torch.cat([q(x_test[:10]).mean, torch.randn(10, latent_dim, generator=generator)])
    mean = model.likelihood(z).mean
    noisy = mean + model.noise_scale * torch.randn(mean.shape, generator=generator)
    rows = torch.cat([x_test[:10], mean[:10], noisy[:10], mean[10:], noisy[10:]]) * unit + centre
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 3.5))
    labels = ["held-out digit", "its mean", "its draw", "mean at z ~ p(z)", "draw at z ~ p(z)"]
    plots.images(rows, ax, vmin=0, vmax=16, num_cols=10, row_labels=labels)
    fig.suptitle("Ten numbers keep a digit; ten random ones rarely make one", x=0.01, ha="left", weight="bold", size=12)

# %% [markdown]
# The last row is what this model believes digits to be. A Gaussian cannot keep the shapes that are digits apart from
# all the shapes between them. No θ can, so no better optimiser would help: the *form* is wrong. Part III replaces it.
#
# ## A q that is too simple, and a θ that helps it
#
# Most variational autoencoders have encoders with *diagonal* covariances. What would that cost here? By (06.9) the
# posterior's precision is $\Lambda = M / \sigma^2$ with $M = W^\top W + \sigma^2 I$. Chapter 02 knows the best
# diagonal $q$: the right mean, variances $1/\Lambda_{ii}$, and a gap of
#
# $$\tfrac12 \Big( \sum_i \log \Lambda_{ii} - \log\det \Lambda \Big)
#   = \tfrac12 \Big( \sum_i \log M_{ii} - \log\det M \Big) \tag{06.15}$$
#
# for every $x$ alike; the $\sigma^2$ cancels. It is zero exactly when $M$ is diagonal: when the **columns of $W$ are
# orthogonal**. In (06.12) they are. But turn the latent by any rotation $R$. Then $\hat W R$ has the same $W W^\top$,
# hence the same likelihood for every $x$, and columns that lean on each other. Same model, another posterior.
#
# We turn the plane of the first and the last dimension, by several angles. The oracle for (06.15) knows nothing of it:
# it freezes θ, and lets an optimiser find the best diagonal encoder.


# %%
class DiagonalLinearEncoder(LinearEncoder):
    """As above, with a diagonal covariance."""

    @property
    def scale_tril(self):
        return torch.diag(self.unconstrained_tril.diagonal().exp())


def rotated(model, degrees):
    """The same model, its latent turned in the plane of the first and the last dimension."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    weight = model.weight.detach().clone()
    first, last = weight[:, 0].clone(), weight[:, -1].clone()
    weight[:, 0], weight[:, -1] = cos * first + sin * last, cos * last - sin * first
    return models.LinearGaussian(weight, model.loc, model.noise_scale)


def gap(model, noise_variance=None):
    """Equation (06.15)."""
    noise_variance = model.noise_scale**2 if noise_variance is None else noise_variance
    matrix = model.weight.mT @ model.weight + noise_variance * torch.eye(model.weight.shape[1])
    return 0.5 * (matrix.diagonal().log().sum() - torch.logdet(matrix)).item()


# %%
degrees, found = (0, 20, 45, 70, 90), []
for angle in degrees:
    turned, q = rotated(best, angle), DiagonalLinearEncoder(64, latent_dim)
    with training.frozen(turned):
        _ = ascend(turned, q, x)
    found.append((turned.log_evidence(x) - turned.elbo(x, q(x))).mean().item())
formula = np.array([gap(rotated(best, angle)) for angle in degrees])
checks.independent(
    "06.4a",
    "the best diagonal linear encoder: no gap for orthogonal columns, equation (06.15) for turned ones",
    formula,
    found,
    wrong={
        "the factor ½ dropped": 2 * formula,
        "WᵀW without σ²I": [gap(rotated(best, angle), noise_variance=0.0) for angle in degrees],
        "no gap, since the model is the same": np.zeros(len(degrees)),
    },
    tolerance=1e-5,
)
turned, full_q = rotated(best, 45), LinearEncoder(64, latent_dim)
e_step(turned, full_q)
checks.exact(
    "06.4b",
    "a full linear encoder stays exact, turned or not: its ELBO is the maximum log-likelihood",
    turned.elbo(x, full_q(x)).mean(),
    best_log_likelihood,
    wrong={"the diagonal one": best_log_likelihood - found[2]},
)

# %% [markdown]
# Now let θ go free again, from a random start, with the diagonal encoder. Will it end below the maximum, since its
# $q$ is too poor? We take two latent dimensions, so that we can look at $W$. There even the worst rotation costs only
# one or two thousandths of a nat. So this slope is gentle, the optimiser needs patience, and the check a sharp eye.

# %%
pca_2, best_2 = PCA(2, svd_solver="full").fit(x.numpy()), models.probabilistic_pca_mle(x, 2)
diagonal_model = models.probabilistic_pca(64, 2, torch.Generator().manual_seed(2))
diagonal_q = DiagonalLinearEncoder(64, 2)
_ = ascend(diagonal_model, diagonal_q, x, max_iter=600)
full_model = switches["both learn"][2]


def directions(model):
    """The columns of W as unit vectors, the longest first, signs as in PCA: a (2, 64) tensor."""
    columns = model.weight.detach().mT
    columns = (columns / columns.norm(dim=1, keepdim=True))[columns.norm(dim=1).argsort(descending=True)]
    return columns * (columns * torch.as_tensor(pca_2.components_)).sum(1, keepdim=True).sign()


assert 0.001 < gap(rotated(best_2, 45)) < 0.002
checks.exact(
    "06.4c",
    "joint ascent with a diagonal encoder loses nothing: nats per digit that 𝓛 falls short of the maximum",
    ceiling - diagonal_model.elbo(x, diagonal_q(x)).mean(),
    0.0,
    wrong={"the best model turned by 20°": gap(rotated(best_2, 20)), "W learned with a full q": gap(full_model)},
    tolerance=1e-6,
)
checks.independent(
    "06.4d",
    "and its columns of W are the principal components themselves, not only their span",
    directions(diagonal_model),
    pca_2.components_,
    wrong={"with a full encoder": directions(full_model)},
    tolerance=1e-3,
)

# %% mystnb={"image": {"alt": "Left: the gap against the angle of rotation, zero at 0 and 90 degrees and 0.3 nats at 45 degrees; five dots from an optimiser lie on the formula's curve. Right: pairs of small images. The two principal components; the columns of W with a diagonal q, the same two images; the columns with a full q, two different mixtures of them."}}
fine = np.linspace(0, 90, 46)
with plots.style():
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.6), width_ratios=(1.2, 1))
    left.plot(fine, [gap(rotated(best, angle)) for angle in fine], color=plots.COLOURS.q, label="equation (06.15)")
    left.plot(degrees, found, "o", color=plots.COLOURS.p, label="best q found")
    left.set(xlabel="rotation of the latent (°)", ylabel="approximation gap (nats)", xticks=degrees, ylim=(-0.02, 0.36))
    left.set_title("Ten latents: same model, another gap…", size=11)
    left.legend(loc="upper left")
    pictures = torch.cat([torch.as_tensor(pca_2.components_), directions(diagonal_model), directions(full_model)])
    plots.images(pictures, right, vmin=-0.35, vmax=0.35, num_cols=2, row_labels=["PCA", "diagonal q", "full q"])
    right.set_title("Two: a diagonal q turns θ", size=11)

# %% [markdown]
# A surprise: the poorer $q$ cost nothing, *and* taught us more. Among all the models that are equally good, the ELBO
# with a diagonal $q$ prefers those whose posterior is diagonal. Then the columns of $W$ are the principal components,
# up to order and sign, unless two of the first $L$ eigenvalues are equal (Lucas et al. 2019; Rolínek et al. 2019). With
# a full $q$ nothing prefers one rotation to another.
#
# It is the opening's effect, for once to our advantage: **θ moves towards models whose posterior $q$ can represent.**
# Here θ had room to do so without losing likelihood. [Chapter 07](07_when_q_is_too_simple.ipynb) takes the room away.
#
# ## Factor analysis: no closed form, and a trap
#
# One σ for all pixels is crude: pixels in the corners hardly vary, those in the middle do. **Factor analysis** gives
# each pixel its own,
#
# $$x \mid z \sim \mathcal{N}\big(W z + b,\; \operatorname{diag}(\sigma_1^2, \dots, \sigma_D^2)\big). \tag{06.16}$$
#
# The code does not change: `noise_scale` gets 64 numbers. But no formula for the maximum is known, so now joint ascent
# has work to do. And there is worse. Take the best probabilistic PCA and let only one pixel have a noise of its own. Two
# pixels are interesting: one is never lit in the training digits, one is lit in a single digit. What does the
# likelihood say as their σ goes to zero?

# %%
lit = (images.train > 0).sum(0)
never, once = int((lit == 0).nonzero()[0]), int((lit == 1).nonzero()[0])


def with_own_noise(pixel, noise_scale):
    scales = best.noise_scale.detach().expand(64).clone()
    scales[pixel] = noise_scale
    return models.LinearGaussian(best.weight, best.loc, scales).log_evidence(x).mean().item()


scales = np.logspace(0, -6, 25)
never_lit, lit_once = (np.array([with_own_noise(pixel, s) for s in scales]) for pixel in (never, once))
checks.exact(
    "06.13",
    "a pixel that never varies: each tenfold smaller σ adds log 10 nats per digit, without end",
    with_own_noise(never, 1e-6) - with_own_noise(never, 1e-5),
    np.log(10),
    wrong={
        "½ log 10, as if σ² were divided by ten": np.log(10) / 2,
        "what a pixel lit once does": with_own_noise(once, 1e-6) - with_own_noise(once, 1e-5),
    },
    tolerance=1e-8,
)
assert best.weight[never].abs().max() < 1e-12
assert (x[:, never] == best.loc[never]).all()
assert never_lit.argmax() == len(scales) - 1  # still rising at the last σ
assert 0 < lit_once.argmax() < len(scales) - 1

# %% [markdown]
# For the first the likelihood has **no upper bound**. The pixel always equals its $\hat b_d$, and its row of $\hat W$ is
# zero: the model predicts it perfectly, and the narrower its density, the higher. There is no maximum to reach, and one
# useless pixel outbids all the others. The remedy is to look. The three pixels that never vary tell nothing about
# digits, so we drop them. Then no θ can beat the best single normal, $\mathcal{N}(\bar x, C)$, and that is finite since
# $C$ now has an inverse. The pixel that is lit once is harmless: its likelihood turns around.
#
# For the other 61 pixels we divide by each pixel's standard deviation. Factor analysis does not care: units just pass
# into $W$ and $\sigma_d$. The optimiser does.
#
# Without a closed form, who says that we have arrived? Another library, with another algorithm: scikit-learn's
# `FactorAnalysis` (its default tolerance stops early; we ask for more). We climb by joint ascent, from the best
# probabilistic PCA of the standardised pixels. And since one start proves little, once more by the package's EM, from the
# best probabilistic PCA of the pixels *as they were*, written in standardised units. Same data, same model, two starts:
# will they meet?

# %%
varies = lit > 0
spread = x[:, varies].std(0, correction=0)
y, y_test = x[:, varies] / spread, x_test[:, varies] / spread
ppca, raw = (models.probabilistic_pca_mle(pixels, latent_dim) for pixels in (y, x[:, varies]))
factors = models.LinearGaussian(ppca.weight, ppca.loc, ppca.noise_scale.expand(len(spread)))  # start at equal σ's
_ = ascend(factors, LinearEncoder(len(spread), latent_dim), y, max_iter=400)
second = models.LinearGaussian(raw.weight / spread[:, None], raw.loc / spread, raw.noise_scale / spread)
_ = em.em(second, y, tolerance=1e-4)

theirs, hasty = (
    FactorAnalysis(latent_dim, svd_method="lapack", max_iter=5000, **options).fit(y.numpy())
    for options in ({"tol": 1e-6}, {})
)
checks.independent(
    "06.14a",
    "joint ascent on factor analysis reaches the log-likelihood of scikit-learn's EM",
    factors.log_evidence(y).mean(),
    theirs.score(y.numpy()),
    wrong={
        "scikit-learn's default tolerance": hasty.score(y.numpy()),
        "probabilistic PCA, where it started": ppca.log_evidence(y).mean(),
    },
    tolerance=1e-7,
)
checks.independent(
    "06.14b",
    "from this start, also the same noise variance for each of the 61 pixels",
    factors.noise_scale**2,
    theirs.noise_variance_,
    wrong={"standard deviations": factors.noise_scale, "from the other start": second.noise_scale**2},
    tolerance=1e-3,
)
ends = [model.log_evidence(y).mean().item() for model in (factors, second)]
print(f"nats per digit: first start {ends[0]:.4f}, second start {ends[1]:.4f}")
print(f"a noise variance differs by up to {(factors.noise_scale**2 - second.noise_scale**2).abs().max():.2f}")

# %% mystnb={"image": {"alt": "Left: mean log-likelihood against the noise scale of one pixel. For the pixel never lit it is a straight line up without end as sigma shrinks; for the pixel lit once it rises, turns at about 0.006 and plunges. Right: a map of the 64 pixels; the share of noise is above 0.9 down the left border, below 0.1 at one pixel each of the top and the bottom row, in between elsewhere; three border pixels are crossed out."}}
share = torch.full((64,), torch.nan)
share[varies] = factors.noise_scale.detach() ** 2
share = share.reshape(8, 8)
assert share[1:4, 0].min() > 0.9
assert share[0, 2] < 0.1
assert share[7, 2] < 0.1
with plots.style():
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.5), width_ratios=(1.25, 1))
    for values, pixel, colour, linestyle in (
        (never_lit, "never lit", plots.COLOURS.q, "-"),
        (lit_once, "lit once", plots.COLOURS.theta, "--"),
    ):
        left.plot(scales, values, color=colour, linestyle=linestyle, label=pixel)
    left.set(
        xscale="log", xlim=(1, 1e-6), ylim=(-75, -55), xlabel=r"$\sigma_d$ of one pixel", ylabel="log likelihood (nats)"
    )
    left.legend(loc="lower left")
    left.set_title("No maximum for a dead pixel", size=11)
    picture = right.imshow(share, cmap="cividis", vmin=0, vmax=1)
    for pixel in (~varies).nonzero().flatten().tolist():
        right.text(pixel % 8, pixel // 8, "×", ha="center", va="center", size=14)
    right.set(xticks=[], yticks=[])
    right.grid(False)
    fig.colorbar(picture, ax=right, label="share of noise in the variance", shrink=0.85)
    right.set_title("At the left border, all is noise", size=11)

# %% [markdown]
# Two starts, two stationary points: they differ by two thousandths of a nat and by a fifth in one pixel's noise variance.
# Joint ascent and scikit-learn agree to many digits, and **both missed the higher one**. Agreement with another library
# says that the same point was reached, not that it is the top. Factor analysis can have several maxima; try several
# starts, and report the best.
#
# In the map, most pixels down the left border are nearly all noise: no stroke predicts them. Two pixels, one in the top
# row and one in the bottom row, are almost no noise: their neighbours predict them. The closer such a share comes to
# zero, the closer to a *Heywood case*, as statisticians call a $\sigma_d$ that the fit drives to zero.
#
# ### Nats have units
#
# How much better is factor analysis? A mistake waits in that question. A log density belongs to the units of $x$:
# measure a pixel in a unit that is $u$ times as large, and its density is $u$ times as high. So our $-71.1$ nats for
# digits "in units of 4 counts" are not what someone finds who left them in counts, and neither is better. We compare in
# the units of $y$ only.

# %%
in_counts = models.probabilistic_pca_mle(images.train, latent_dim).log_evidence(images.train).mean()
checks.exact(
    "06.15",
    "log p per count = log p per 4 counts − 64 log 4",
    in_counts,
    best_log_likelihood - 64 * np.log(4),
    wrong={"units do not matter": best_log_likelihood, "one log 4 for all pixels": best_log_likelihood - np.log(4)},
)
change = spread.log().sum()  # from x to y, so that all three lines are nats per standardised digit
print("nats per digit of 61 standardised pixels     training    held out ± s.e.   without the worst three")
worst = factors.log_evidence(y_test).argsort()[:3]
others = torch.ones(len(y_test), dtype=torch.bool).index_fill(0, worst, False)
for name, model, shift, train, test in (
    ("probabilistic PCA of the pixels as they were", raw, change, x[:, varies], x_test[:, varies]),
    ("probabilistic PCA of standardised pixels", ppca, 0.0, y, y_test),
    ("factor analysis", factors, 0.0, y, y_test),
):
    scores, train_score = (model.log_evidence(test) + shift).detach(), model.log_evidence(train).mean() + shift
    error = scores.std() / np.sqrt(len(scores))
    print(f"{name:<44} {train_score:8.1f} {scores.mean():11.1f} ± {error:.1f} {scores[others].mean():16.1f}")
precision = torch.linalg.inv(factors.marginal().covariance_matrix.detach())
for digit in worst.tolist():
    residual = y_test[digit] - factors.loc.detach()
    pixel = (residual * (precision @ residual)).argmax()  # where most of the squared distance comes from
    assert residual[pixel] > 20
    score, count = factors.log_evidence(y_test)[digit], int(lit[varies][pixel])
    print(
        f"{score:.0f} nats: a pixel lit {count} times in training, here {residual[pixel]:.0f} standard deviations out"
    )

# %% [markdown]
# Probabilistic PCA depends strongly on the units its pixels came in, since it insists on one σ for all; standardising
# gains 29 nats in training and 30 held out. Factor analysis gains 2.5 more in training and 2.0 held out, next to a standard error of 2 to
# 3. Why so large an error? The last lines tell what the mean hides. Three of 299 held-out digits cost hundreds of nats
# each. Each lights a pixel that was hardly ever lit in training, and stands twenty standard deviations out there. A
# Gaussian with a tiny variance in a direction stakes everything on it, and training data do not object. Probabilistic PCA
# loses even more on them; without the three the two models are 0.3 nats apart. Chapter 11 returns to this.
#
# ## Exercises
#
# **06.E1.** Write the M-step for $W$. The data `x` $(N, D)$ are centred and $b = 0$. For each datapoint $q$ has a
# mean, a row of `means` $(N, L)$, and all share one `covariance` $(L, L)$. Return the $W$, shape $(D, L)$, that
# maximises the ELBO.
#
# <details><summary>Hint</summary>
#
# $W$ enters through $\sum_n \mathbb{E}_q \lVert x_n - W z_n \rVert^2$. Set the derivative to zero: you need
# $\sum_n x_n \mathbb{E}_q[z_n]^\top$ and $\sum_n \mathbb{E}_q[z_n z_n^\top]$. The second is not the sum of the outer
# products of the means.
#
# </details>


# %%
def m_step_weight(x, means, covariance): ...  # your code


ch06.m_step_weight.check(m_step_weight)

# %% [markdown]
# **06.E2.** Equation (06.15) is for one σ. Return, as a number, the approximation gap of the best diagonal $q$ in *factor
# analysis*, with the given `weight` $(D, L)$ and `noise_scale` $(D,)$, tensors (σ's, not σ²'s).
#
# <details><summary>Hint</summary>
#
# Start from the left side of (06.15). The precision of the posterior is
# $\Lambda = I + W^\top \operatorname{diag}(\sigma_d^{-2})\, W$, and no σ cancels. `torch.logdet`.
#
# </details>


# %%
def diagonal_gap(weight, noise_scale): ...  # your code


ch06.diagonal_gap.check(diagonal_gap)

# %% [markdown]
# **06.E3 (a small study).** How many latent dimensions? Return the one among `candidates` whose probabilistic PCA,
# fitted to `train`, gives `held_out` the highest mean log-likelihood. Then try the candidates 1 to 50 on `x[:100]`, on all of
# `x`, and on the 61 standardised pixels `y` (held out: `x_test` and `y_test`). Before you believe the last two, look at
# *how much* each gains from 7 to 50 dimensions.
#
# <details><summary>Hint</summary>
#
# `models.probabilistic_pca_mle` and `log_evidence`. For the last question, compare the noise variances.
#
# </details>


# %%
def chosen_latent_dim(train, held_out, candidates): ...  # your code


ch06.chosen_latent_dim.check(chosen_latent_dim)

# %% [markdown]
# ## Summary
#
# - *Learn both.* The objective $\max_{\phi} \max_{\theta} \mathbb{E}_{p_D(x)}[\mathcal{L}]$ is the old line of code with θ
#   unfrozen. If the encoder's family contains the posterior of the best model, its maximum is maximum likelihood: on
#   digits, joint ascent met the closed form of probabilistic PCA. Factor analysis has none, and more than one place to end.
# - *Up can be down.* $\Delta\log p_\theta(x) = \Delta\mathcal{L} + \Delta\mathrm{KL}$. A step in θ with a stale $q$
#   raised the ELBO by 2 nats and lowered the evidence by 1; on digits it did so 24 times in a row. After an exact
#   E-step it cannot happen.
# - *Read the ledger.* A small gap does not mean a good model: the model that ignored $z$ had no gap at all. The gap
#   is φ's, the distance to a reference is θ's.
# - *Check against others.* Convert $N - 1$ to $N$, compare nats in the same units only, look for likelihoods without
#   an upper bound, start more than once, and score digits that had no vote.
#
# **Sources.** M. E. Tipping & C. M. Bishop (1999), Probabilistic principal component analysis, *J. Royal Statistical
# Society B* 61(3): the maximum in closed form. C. M. Bishop (2006), *Pattern Recognition and Machine Learning*, p. 574:
# the likelihood and its stationary points (equations 12.44 and 12.45). R. M. Neal & G. E. Hinton (1998), A view of the EM
# algorithm that justifies incremental, sparse, and other variants: EM as ascent of one function of θ and $q$. D. B. Rubin
# & D. T. Thayer (1982), EM algorithms for ML factor analysis, *Psychometrika* 47: the EM of check 06.14. G. Roeder, Y. Wu
# & D. Duvenaud (2017), Sticking the landing. J. He, D. Spokoyny, G. Neubig & T. Berg-Kirkpatrick (2019), Lagging inference
# networks and posterior collapse in variational autoencoders, ICLR. J. Lucas, G. Tucker, R. Grosse & M. Norouzi (2019),
# Don't blame the ELBO!, and M. Rolínek, D. Zietlow & G. Martius (2019), Variational autoencoders pursue PCA directions
# (by accident): why a diagonal $q$ finds the axes. Digits: E. Alpaydin & C. Kaynak (1998), UCI Machine Learning
# Repository.
#
# **Next.** Here θ could always find a best model that suited $q$. What if it cannot, and must choose between being
# right and being easy to approximate? [Chapter 07](07_when_q_is_too_simple.ipynb): *When q is too simple, θ is wrong*.

# %% [markdown]
# ## Solutions


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def m_step_weight_solution(x, means, covariance):
    second_moment = means.mT @ means + len(x) * covariance
    return torch.linalg.solve(second_moment, means.mT @ x).mT


ch06.m_step_weight.check(m_step_weight_solution)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def diagonal_gap_solution(weight, noise_scale):
    precision = torch.eye(weight.shape[1]) + weight.mT @ (weight / noise_scale[:, None] ** 2)
    return 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)).item()


ch06.diagonal_gap.check(diagonal_gap_solution)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def chosen_latent_dim_solution(train, held_out, candidates):
    def score(latent_dim):
        return models.probabilistic_pca_mle(train, latent_dim).log_evidence(held_out).mean().item()

    return max(candidates, key=score)


ch06.chosen_latent_dim.check(chosen_latent_dim_solution)
for name, train, held_out in (
    ("100 digits", x[:100], x_test),
    ("1,498 digits, 64 pixels", x, x_test),
    ("1,498 digits, 61 standardised pixels", y, y_test),
):
    few, many = (models.probabilistic_pca_mle(train, latent_dim) for latent_dim in (7, 50))
    gain = (many.log_evidence(held_out) - few.log_evidence(held_out)).mean()
    choice = chosen_latent_dim_solution(train, held_out, range(1, 51))
    print(f"{name:<37} choice {choice:>2}, held-out gain from 7 to 50: {gain:.0f} nats, σ² = {many.noise_scale**2:.4f}")

# %% [markdown] tags=["solution", "hide-cell"]
# <details><summary>06.E3, in words</summary>
#
# With 100 digits the choice is 6: more dimensions describe those hundred better and new ones worse. With all 1,498 it is
# the last candidate, with dead pixels and without: that many digits are enough for a nearly full covariance, and held-out
# digits say that it pays. What dead and nearly dead pixels fake is the *size* of the gain. With them in the data, σ² falls to a
# few thousandths and their density soars, in the held-out digits too, since those pixels are dead there as well: four times
# the gain of the standardised pixels. A held-out likelihood protects against luck in the choice of the data, not against
# a density that has no upper bound.
#
# </details>
