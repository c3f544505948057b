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

# %% mystnb={"image": {"alt": "The map of the series: six boxes joined by arrows, KL, ELBO, phi, theta, networks, what breaks. The fourth, theta with its form known, is lit."}}
from vi_tutorial import plots

plots.chain("theta")

# %% [markdown]
# You need [chapter 01](01_the_elbo.ipynb) for the bound, [chapter 02](02_a_fixed_gaussian_joint.ipynb) for a fixed
# Gaussian joint, chapter 03 for gradients from samples, and chapter 05 for EM. Reading takes 30 minutes.
#
# **Afterwards you can**
#
# - *learn* a model and an approximate posterior together, and *say* when the result is maximum likelihood;
# - *build* a step that raises the ELBO and makes the model worse, and *say* which step never can;
# - *tell* from a gap ledger whether θ or φ is to blame;
# - *check* a learned model against a closed form, against another library, and on held-out data.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import integrate, linalg, stats
from sklearn.decomposition import PCA, FactorAnalysis
from threadpoolctl import threadpool_limits
from torch import nn
from torch.distributions import MultivariateNormal, constraints, kl_divergence, transform_to
from torch.optim import LBFGS, Adam

from vi_tutorial import checks, data, models, training
from vi_tutorial.distributions import full_normal
from vi_tutorial.elbo import draw, elbo, elbo_sticking_the_landing
from vi_tutorial.evaluation import gap_ledger
from vi_tutorial.exercises import ch06

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # the matrices are small: to share them out takes longer than the work
_ = threadpool_limits(1)  # the same for NumPy, SciPy and scikit-learn
_ = torch.manual_seed(0)

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
# Ours is the simplest: a mean that is linear in $x$, and one covariance for all $x$,
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
# In code it is the line of every chapter, unchanged. We also want it without sampling noise. With
# $z \sim \mathcal{N}(m, S)$, a squared error has the mean
# $\mathbb{E}\lVert x - b - W z \rVert^2 = \lVert x - b - W m \rVert^2 + \operatorname{tr}(W S W^\top)$. So the
# average over $q$ is the log-likelihood at the mean of $q$, less what the spread of $q$ costs, less the KL divergence
# to the prior:
#
# $$\mathcal{L} = \log \mathcal{N}(x \mid W m + b, \sigma^2 I) - \tfrac{1}{2\sigma^2} \operatorname{tr}(W S W^\top)
#   - \mathrm{KL}(q_\phi(z \mid x) \,\|\, p(z)), \qquad m = A x + a. \tag{06.4}$$


# %%
def expected_elbo(model, q, x):
    """Equation 06.4: the ELBO without sampling noise, one number per datapoint, for a linear encoder."""
    noise_scale = model.noise_scale.expand(len(model.loc))  # one σ, or one per pixel
    spread = (model.weight @ q.scale_tril / noise_scale[:, None]).square().sum()
    posterior = q(x)
    return model.likelihood(posterior.mean).log_prob(x) - spread / 2 - kl_divergence(posterior, model.prior())


best = models.probabilistic_pca_mle(x, latent_dim=2)  # the best θ
model, q, three = best, LinearEncoder(64, 2), x[:3]
log_weight = draw(model.given(three), q(three), 4000).log_weight
at_mean = expected_elbo(model, q, three) + (model.weight / model.noise_scale).square().sum() / 2
checks.monte_carlo(
    "06.7",
    "equation 06.4 is the mean of the log weights",
    log_weight,
    expected_elbo(model, q, three),
    wrong={"the spread of q forgotten": at_mean, "log p(x)": model.log_evidence(three)},
)

# %% [markdown]
# Now an experiment that looks too easy. **θ starts at the very best, $\hat\theta$. φ starts untrained**, at the
# prior. Then an optimiser moves both, up the ELBO. The exact $\log p_\theta(x)$ is watched from outside.
#
# Before you look, decide: will $\log p_\theta(x)$ stay where it is, rise, or fall? The ELBO will rise. And θ has no
# better place to go.

# %%
model, q = models.probabilistic_pca_mle(x, latent_dim=2), LinearEncoder(64, 2)
optimiser = Adam([*model.parameters(), *q.parameters()], lr=0.01)
evidence, ledgers = [], {}
reference = best.log_evidence(x).detach()


def watched(x):
    bound, log_evidence = expected_elbo(model, q, x), model.log_evidence(x).detach()
    if len(evidence) in (8, 24, 199):
        ledgers[f"step {len(evidence)}"] = gap_ledger(bound, log_evidence, log_evidence, reference)
    evidence.append(log_evidence.mean().item())
    return bound


history = training.fit(watched, optimiser, x, num_steps=200)
bound, evidence = np.array(history.bound), np.array(evidence)
lowest = evidence.argmin()
assert (np.diff(bound) > 0).all()  # the ELBO rose at every step, to the very last
print(
    f"first {lowest} steps: ELBO up by {bound[lowest] - bound[0]:.2f}, log p(x) down by {evidence[0] - evidence[lowest]:.2f}"
)
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
# ## What exactly is being maximised?
#
# First the average. $p_D(x)$ is the **data distribution**: whatever the digits come from. We do not have it. We have
# $N$ draws, so $\mathbb{E}_{p_D}$ becomes their mean; a **minibatch** of $B$ of them gives an unbiased estimate of
# that mean (chapter 03); and held-out draws tell whether what is good for the draws is good for $p_D$ too.
#
# One often reads that maximum likelihood minimises $\mathrm{KL}(p_D \,\|\, p_\theta)$. It follows from
#
# $$\mathrm{KL}(p_D \,\|\, p_\theta) = -\mathbb{E}_{p_D}[\log p_\theta(x)] - \mathrm{H}(p_D), \tag{06.5}$$
#
# since the entropy $\mathrm{H}(p_D)$ does not depend on θ. For a $p_D$ with a density that is fine. But replace $p_D$
# by our $N$ draws, and for continuous $x$ both sides break: a sum of $N$ spikes has no density, the KL to any smooth
# $p_\theta$ is $+\infty$ whatever θ is, and the entropy of spikes is $-\infty$. What survives is everything *up to
# the entropy constant*: differences between one θ and another.
#
# To see it, let the spikes have a width ε. Take three numbers with mean zero, and a model with one parameter,
# $p_\theta(x) = \mathcal{N}(x \mid \theta, 2)$. (Both will serve us again below.)

# %%
x_toy = torch.tensor([-1.5, 0.5, 1.0])
grid = np.linspace(-12, 12, 12_001)
thetas = np.linspace(-2, 2, 21)


def smoothed_kl(theta, width):
    """KL from the draws, each widened to a normal of this width, to p_θ: on a grid."""
    p_data = stats.norm.pdf(grid[:, None], x_toy.numpy(), width).mean(1)
    inside = p_data > 0
    ratio = np.log(p_data[inside]) - stats.norm.logpdf(grid[inside], theta, np.sqrt(2))
    return integrate.trapezoid(p_data[inside] * ratio, grid[inside])


curves = {width: np.array([smoothed_kl(theta, width) for theta in thetas]) for width in (1.0, 0.1, 0.01)}
log_likelihood = stats.norm.logpdf(x_toy.numpy(), thetas[:, None], np.sqrt(2)).mean(1)
rises = log_likelihood.max() - log_likelihood
checks.quadrature(
    "06.8",
    "KL(p_D‖p_θ) = a constant − the mean log-likelihood, for draws of width 1, 0.1 and 0.01",
    np.stack([rises] * 3),
    np.stack([curve - curve.min() for curve in curves.values()]),
    wrong={"the sum over the draws": np.stack([3 * rises] * 3), "variance 1: z forgotten": np.stack([2 * rises] * 3)},
)

# %% mystnb={"image": {"alt": "Three parabolas over theta, for spikes of width 1, 0.1 and 0.01. They have the same shape and the same lowest point, theta equal to zero, and lie 1.3 and then 2.3 nats above one another."}}
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 3))
    for (width, curve), linestyle in zip(curves.items(), ("-", "--", ":"), strict=True):
        assert thetas[curve.argmin()] == 0
        ax.plot(thetas, curve, color=plots.COLOURS.theta, linestyle=linestyle)
        ax.plot(0, curve.min(), "o", color=plots.COLOURS.theta)
        ax.text(2.05, curve[-1], f"ε = {width:g}", va="center", size=10)
    ax.set(xlabel="θ", ylabel=r"KL$(p_D \parallel p_\theta)$ (nats)", xlim=(-2, 2.5), xticks=(-2, -1, 0, 1, 2))
    ax.set_title("Narrower spikes lift the KL without end, and leave its shape alone")

# %% [markdown]
# As ε shrinks the curve goes to $+\infty$ like $\log(1/ε)$. Its shape, and so its lowest point, stays. That is the
# precise sense of "maximum likelihood minimises $\mathrm{KL}(p_D \,\|\, p_\theta)$" on data.
#
# (A model whose noise is learned would also see the ε: widened data have a larger variance. There the shapes agree in
# the limit only.)
#
# For a *Gaussian* model there is a second way to make it finite. The average of $\log p_\theta$, a quadratic, sees of
# the data only the mean $\bar x$ and the covariance $C$. So nothing changes if $p_D$ is replaced by
# $\mathcal{N}(\bar x, C)$, and (06.5) holds with every term finite, if $C$ has an inverse. On the digits it has one
# once the three pixels that never vary are left out.

# %%
varies = x.std(0) > 0
pixels = x[:, varies]
summary = MultivariateNormal(pixels.mean(0), torch.cov(pixels.mT, correction=0))
some_model = models.probabilistic_pca_mle(pixels, 10)
p_model = MultivariateNormal(some_model.loc, some_model.marginal().covariance_matrix)
checks.exact(
    "06.9",
    "mean log p(x) = −KL(N(x̄, C)‖p_θ) − H(N(x̄, C)) for a Gaussian model of the digits",
    some_model.log_evidence(pixels).mean(),
    -kl_divergence(summary, p_model) - summary.entropy(),
    wrong={
        "the entropy forgotten": -kl_divergence(summary, p_model),
        "the other KL": -kl_divergence(p_model, summary) - summary.entropy(),
    },
    tolerance=1e-8,
)

# %% [markdown]
# ## Why up can be down
#
# Now the bound. For any θ and φ, $\log p_\theta(x) = \mathcal{L} + \mathrm{KL}(q_\phi \,\|\, p_\theta(z \mid x))$.
# Write that before and after a step, and subtract:
#
# $$\Delta \log p_\theta(x) = \Delta\mathcal{L} + \Delta\mathrm{KL}. \tag{06.6}$$
#
# The optimiser sees to $\Delta\mathcal{L} > 0$. Nobody looks after $\Delta\mathrm{KL}$. If the step makes $q$ fit so
# much better that the KL falls by more than the bound rises, then the evidence falls. There are two ways to a higher
# bound: to explain the data better, or to **move towards a model whose posterior $q$ happens to have**.
#
# The smallest case has one number for each. One hidden number, one observed,
#
# $$z \sim \mathcal{N}(0, 1), \quad x \mid z \sim \mathcal{N}(\theta + z, 1), \qquad
#   q_\phi(z \mid x) = \mathcal{N}\!\big(z \mid \tfrac12 (x - \phi), \tfrac12\big). \tag{06.7}$$
#
# The exact posterior has the same form with θ in place of φ. So φ is *what the encoder believes θ to be*. The
# evidence is $\mathcal{N}(x \mid \theta, 2)$, and two short calculations give, for data with mean $\bar x$,
#
# $$\mathrm{KL} = \tfrac14 (\theta - \phi)^2, \qquad
#   \mathbb{E}_{p_D}[\log p_\theta(x)] = \text{const} - \tfrac14 (\theta - \bar x)^2. \tag{06.8}$$
#
# Put θ at the maximum of the likelihood, $\theta = \bar x = 0$, and let the encoder hold a stale belief, $\phi = 4$.
# One step in θ with φ fixed goes to the best place for the *bound*, halfway: $\theta = \frac12(\bar x + \phi) = 2$.
# Equation (06.8) says what that does: the KL falls from 4 to 1, the log evidence by 1, and so the bound **rises by
# 2**. Check it without any of these formulas, by integrals over $z$.


# %%
def toy(theta, phi):
    """Equation 06.7 in the words of this chapter: one pixel, one latent, a linear encoder."""
    model, q = models.LinearGaussian(torch.ones(1, 1), torch.tensor([theta]), torch.tensor(1.0)), LinearEncoder(1, 1)
    with torch.no_grad():
        q.linear.weight.fill_(0.5)
        q.linear.bias.fill_(-phi / 2)
        q.unconstrained_tril.fill_(np.log(np.sqrt(0.5)))
    return model, q


def by_quadrature(theta, phi):
    """Mean ELBO and mean log evidence of the toy data, by integrals over z."""
    node = np.linspace(-12, 12, 4001)
    x = x_toy.numpy()[:, None]
    log_joint = stats.norm.logpdf(node) + stats.norm.logpdf(x, theta + node, 1)
    log_q = stats.norm.logpdf(node, (x - phi) / 2, np.sqrt(0.5))
    bound = integrate.simpson(np.exp(log_q) * (log_joint - log_q), x=node)
    evidence = np.log(integrate.simpson(np.exp(log_joint), x=node))
    return bound.mean(), evidence.mean()


# %%
data_toy = x_toy[:, None]
before, after = toy(0.0, 4.0), toy(2.0, 4.0)
rise = (expected_elbo(*after, data_toy) - expected_elbo(*before, data_toy)).mean()
kl_before, kl_after = (kl_divergence(q(data_toy), model.posterior(data_toy)).mean() for model, q in (before, after))
(bound_0, evidence_0), (bound_1, evidence_1) = by_quadrature(0.0, 4.0), by_quadrature(2.0, 4.0)
checks.quadrature(
    "06.5a",
    "this step in θ raises the ELBO by 2 nats",
    rise,
    bound_1 - bound_0,
    wrong={"the change of log p(x)": evidence_1 - evidence_0, "the fall of the KL": kl_before - kl_after},
)
checks.quadrature(
    "06.5b",
    "the same step lowers log p(x) by 1 nat: ΔELBO + ΔKL = 2 − 3",
    rise + kl_after - kl_before,
    evidence_1 - evidence_0,
    wrong={"raising the ELBO raises log p(x)": rise, "the KL's fall added": rise + kl_before - kl_after},
)

# %% [markdown]
# ELBO up by 2, evidence down by 1, both exact.
#
# ### The step that cannot fail
#
# EM never does this, and (06.6) says why in one line. EM first moves φ to the exact posterior, the **E-step**: now
# $\mathrm{KL} = 0$. A KL cannot fall below zero, so whatever the step in θ does, $\Delta\mathrm{KL} \ge 0$ and
#
# $$\mathrm{KL}_{\text{before}} = 0 \quad\Longrightarrow\quad \Delta\log p_\theta(x) \;\ge\; \Delta\mathcal{L}. \tag{06.9}$$
#
# After an exact E-step, **every** step in θ that raises the bound raises the evidence at least as much. It need not
# be the best step, nor even a good one. Same data, 81 steps in θ, with the belief made exact first and left stale:

# %%
theta_0, proposals = 1.0, torch.linspace(-3, 5, 81).tolist()


def changes(phi):
    """What every proposed θ would do to the ELBO and to log p(x), starting from theta_0."""
    models_and_q = [toy(theta, phi) for theta in (theta_0, *proposals)]
    bounds = torch.stack([expected_elbo(model, q, data_toy).mean() for model, q in models_and_q]).detach()
    evidences = torch.stack([model.log_evidence(data_toy).mean() for model, _ in models_and_q]).detach()
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
# the belief is right and the bound touches the evidence. **In the grey wedge up is down**: there a step in θ that
# raises the ELBO lowers the evidence.
#
# *EM* alternates: straight to the diagonal (E), then sideways (M). *Joint ascent* follows the gradient of both
# numbers at once. Both start in the wedge. What will each of them do?


# %%
def height(theta):
    return -(theta**2) / 4  # mean log p(x), less its maximum


def bound_at(theta, phi):
    return height(theta) - (theta - phi) ** 2 / 4


em_path, joint_path = [(0.5, 4.0)], [(0.5, 4.0)]
for step in range(11):
    theta, phi = em_path[-1]
    em_path.append((theta, theta) if step % 2 == 0 else (phi / 2, phi))  # E-step, M-step; the data's mean is 0
    theta, phi = joint_path[-1]
    joint_path.append((theta + 0.5 * (-theta / 2 - (theta - phi) / 2), phi + 0.5 * (theta - phi) / 2))

paths = {"EM": np.array(em_path), "joint ascent": np.array(joint_path)}
for path in paths.values():
    assert (np.diff(bound_at(*path.T)) >= 0).all()  # both raise the ELBO at every step
assert (np.diff(height(paths["EM"][:, 0])) >= 0).all()
falls = int((np.diff(height(paths["joint ascent"][:, 0])) < 0).sum())
print(f"log p(x) falls in {falls} steps of joint ascent and in no step of EM")


# %% mystnb={"image": {"alt": "Animation, two panels. Left, the plane of theta and phi with height lines of the ELBO, a dotted diagonal and a grey wedge: EM goes straight to the diagonal and then down it in steps, joint ascent first moves right through the wedge, turns, and ends at the origin too. Right, the two points on the parabola of the log evidence: EM only climbs, joint ascent first slides down."}} tags=["nbval-ignore-output"]
def draw_paths(fig, frame):
    plane, curve = fig.subplots(1, 2, width_ratios=(1.1, 1))
    axis = np.linspace(-1, 4.5, 56)
    heights = bound_at(axis, axis[:, None])
    plane.contour(axis, axis, heights, 7, colors=plots.COLOURS.muted, linewidths=0.8, linestyles="-")
    plane.fill_betweenx([0, 4.5], [0, 0], [0, 2.25], color="#DDDDDD", zorder=0)
    plane.plot(axis, axis, color=plots.COLOURS.p, linewidth=1, linestyle=":")
    plane.text(3.05, 2.55, "φ = θ", color=plots.COLOURS.p, size=10)
    plane.text(1.2, 4.1, "wedge", size=10)
    plane.set(xlabel="θ", ylabel="φ, the encoder's belief", xlim=(-1, 4.5), ylim=(-1, 4.5))
    curve.plot(axis, height(axis), color=plots.COLOURS.evidence, linewidth=1.5)
    styles = {"EM": (plots.COLOURS.theta, "s"), "joint ascent": (plots.COLOURS.q, "o")}
    for name, path in paths.items():
        colour, marker = styles[name]
        theta, phi = path[frame]
        plane.plot(*path[: frame + 1].T, color=colour, marker=marker, markersize=4, linewidth=1.5)
        curve.plot([theta, theta], [bound_at(theta, phi), height(theta)], color=colour, linewidth=3, alpha=0.5)
        curve.plot(theta, height(theta), marker, color=colour, markersize=8, label=name)
    curve.set(xlabel="θ", ylabel="nats, maximum = 0", xlim=(-1, 4.5), ylim=(-3.4, 0.3))
    curve.text(2.6, -1.1, r"$\log p_\theta(x)$", size=11)
    curve.legend(loc="upper right")
    sinks = frame > 0 and height(paths["joint ascent"][frame, 0]) < height(paths["joint ascent"][frame - 1, 0])
    verdict = f"joint ascent has the ELBO up and the evidence {'DOWN' if sinks else 'up'}"
    fig.suptitle(f"Step {frame}: {verdict if frame else 'the start'}", x=0.01, ha="left", weight="bold", size=12)


plots.animate(
    draw_paths,
    12,
    "EM and joint ascent over theta and phi, and where they are on the log evidence. Joint ascent first moves through "
    "the wedge and slides down the evidence, then both climb to the maximum.",
    name="up is down",
    figsize=(7.0, 3.5),
    interval_ms=600,
)

# %% [markdown]
# The bars in the right panel are the KL, from the bound at the lower end up to the evidence at the marker. Joint
# ascent trades height on the curve for a shorter bar. Once the belief has caught up, nothing is left to trade, and
# both end at the maximum.
#
# The digits did the same, with 193 numbers in θ. Their **gap ledger** says so: $\log p_\theta(x)$ is the ELBO and
# what $q$ loses; below it stands what θ loses against $\hat\theta$.

# %% mystnb={"image": {"alt": "Three stacked bars for steps 8, 24 and 199. The ELBO and the evidence approach each other as the amortisation gap shrinks from several nats to a tenth. The thin theta bar is longest at step 24, at 1.07 nats, and short at the end."}}
assert ledgers["step 24"].theta_gap == max(ledger.theta_gap for ledger in ledgers.values())
assert all(abs(ledger.approximation_gap) < 1e-9 for ledger in ledgers.values())
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 4.6))
    plots.ledger_bars(list(ledgers.values()), list(ledgers), ax)
    ax.set_title("First θ pays for q's gap, then q closes it and θ comes home")

# %% [markdown]
# There is no *approximation* gap: some linear encoder is exact for this model, as we shall see. All that $q$ loses is
# **amortisation gap**, here in its simplest form: $q$ is not trained yet.
#
# ## What the gradient says
#
# The same in derivatives. The gradient of the ELBO in θ averages over $q$; the gradient of the evidence averages over
# the exact posterior (Fisher's identity, chapter 05):
#
# $$\nabla_\theta \mathcal{L} = \mathbb{E}_{q_\phi(z \mid x)}[\nabla_\theta \log p_\theta(x, z)], \qquad
#   \nabla_\theta \log p_\theta(x) = \mathbb{E}_{p_\theta(z \mid x)}[\nabla_\theta \log p_\theta(x, z)]. \tag{06.10}$$
#
# Where $q$ is exact they are the same vector, although $\mathcal{L}$ and $\log p_\theta$ are different functions. To
# see it, we need an exact E-step for our encoder. The posterior of (06.1) is normal, with a mean linear in $x$ and
# one covariance for all $x$; it *is* a linear encoder, with
#
# $$S = \sigma^2 M^{-1}, \qquad A = M^{-1} W^\top, \qquad a = -A b, \qquad M = W^\top W + \sigma^2 I. \tag{06.11}$$


# %%
def e_step(model, q):
    """Move φ to the exact posterior of the model: equation 06.11, in a form that also allows one σ per pixel."""
    with torch.no_grad():
        covariance = torch.linalg.inv(model.posterior_precision())
        weight = covariance @ (model.weight / model.noise_scale.square().expand(len(model.loc))[:, None]).mT
        q.linear.weight.copy_(weight)
        q.linear.bias.copy_(-weight @ model.loc)
        q.unconstrained_tril.copy_(transform_to(constraints.lower_cholesky).inv(torch.linalg.cholesky(covariance)))


def gradient(value, module):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(module.parameters()))])


# %% [markdown]
# Two claims at once. At some θ, with an exact $q$, the two gradients agree. And at $\hat\theta$ with an exact $q$ the
# ELBO does not pull at θ at all: had φ made one exact E-step first, θ would have stood still in the opening.

# %%
model, q = models.probabilistic_pca(64, 2, torch.Generator().manual_seed(1)), LinearEncoder(64, 2)
untrained = gradient(expected_elbo(model, q, x).mean(), model)
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
pulled = gradient(expected_elbo(best, q, x).mean(), best)
e_step(best, q)
checks.exact(
    "06.10",
    "at the best θ, with an exact q, the ELBO does not pull at θ",
    gradient(expected_elbo(best, q, x).mean(), best),
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
# `requires_grad_(False)` freezes a module. With one switch for θ and one for φ there are four ways to climb. All
# start at the same place: a small random $W$, an untrained $q$.
#
# Predict the two that are less familiar. If only **φ** learns, where does the ELBO stop? And if only **θ** learns,
# while $q$ stays at the prior for ever, what will become of $W$?


# %%
def climb(phases):
    """Each phase says whether θ learns, whether φ learns, and for how many steps."""
    model, q = models.probabilistic_pca(64, 2, torch.Generator().manual_seed(3)), LinearEncoder(64, 2)
    optimiser = Adam([*model.parameters(), *q.parameters()], lr=0.05)
    bound, evidence = [], []

    def watched(x):
        evidence.append(model.log_evidence(x).mean().item())
        return expected_elbo(model, q, x)

    for theta_learns, phi_learns, num_steps in phases:
        model.requires_grad_(theta_learns)
        q.requires_grad_(phi_learns)
        bound += training.fit(watched, optimiser, x, num_steps=num_steps).bound
    return np.array(bound), np.array(evidence), model, q


# %%
switches = {
    "only φ learns": climb([(False, True, 90)]),
    "only θ learns, q = prior": climb([(True, False, 90)]),
    "in turns, 15 steps each": climb([(False, True, 15), (True, False, 15)] * 3),
    "both learn": climb([(True, True, 90)]),
}
ceiling = best.log_evidence(x).mean().item()
bounds, evidences = ({name: run[part] for name, run in switches.items()} for part in (0, 1))
for name in switches:
    print(f"{name:<26} ELBO {bounds[name][-1]:.1f}   log p(x) {evidences[name][-1]:.1f}")
print(f"{'the best there is':<26} {'':>10}   log p(x) {ceiling:.1f}")
isotropic = stats.norm(0, x.square().mean().sqrt().item()).logpdf(x.numpy()).sum(1).mean()
checks.exact(
    "06.11",
    "with q kept at the prior, the best θ for the ELBO has W = 0: one isotropic normal",
    bounds["only θ learns, q = prior"][-1],
    isotropic,
    wrong={"the best model, W included": ceiling, "where it started": bounds["only θ learns, q = prior"][0]},
    tolerance=1e-5,
)

# %% mystnb={"image": {"alt": "Four panels with the ELBO, dashed, and the log evidence, solid, over 90 steps. Only phi: the ELBO rises to a flat evidence. Only theta: both meet at minus 95.8, far below the best. In turns: a staircase, the evidence moves in every second flight only. Both: both curves reach the best, minus 88.4."}}
assert np.ptp(evidences["only φ learns"]) < 1e-12  # θ is frozen, so is the evidence
flight = slice(15, 31)  # the first in which θ learns
up_and_down, up = (part["in turns, 15 steps each"][flight] for part in (evidences, bounds))
assert up_and_down[0] < up_and_down[-1] < up_and_down.max()
assert up[up_and_down.argmax()] < up[-1]  # and the ELBO went on climbing
with plots.style():
    fig, axes = plt.subplots(2, 2, figsize=(7, 4.6), sharex=True, sharey="row")
    for ax, name in zip(axes.flat, switches, strict=True):
        ax.axhline(ceiling, color=plots.COLOURS.muted, linewidth=1)
        ax.plot(evidences[name], color=plots.COLOURS.evidence, label="log evidence")
        ax.plot(bounds[name], color=plots.COLOURS.q, linestyle="--", label="ELBO")
        ax.set_title(name, size=11)
    axes[0, 0].set_ylim(-97.1, -95.3)
    axes[1, 0].set_ylim(-98, -87)
    axes[0, 0].text(
        89, -95.35, f"the best, {ceiling:.1f}, is far above".replace("-", "−"), ha="right", va="top", size=10
    )
    axes[1, 0].legend(loc="lower right")
    axes[1, 1].text(89, ceiling - 0.4, "the best there is", ha="right", va="top", size=10)
    fig.supxlabel("step", size=11)
    fig.supylabel("nats per digit", size=11)
    fig.suptitle("θ moves the evidence, φ moves the bound towards it", x=0.01, ha="left", weight="bold", size=12)

# %% [markdown]
# - **Only φ**: chapter 02, for all datapoints at once. The model does not move. The ELBO rises until it touches
#   $\log p_\theta(x)$, and stops there.
# - **Only θ**: the model has to live with a $q$ that says nothing about $x$. The best it can do is not to use $z$ at
#   all: $W \to 0$. Then the posterior *is* the prior, so $q$ is exact and the gap is zero. **A tight bound, and a bad
#   model.**
# - **In turns**: a staircase. The evidence moves in θ's flights only. And look at the end of the first one: the
#   evidence turns *down* while the ELBO still climbs. Fifteen steps are enough for $q$ to go stale.
# - **Both**: the fastest here. It found the best model, though nothing in (06.6) promised that it would.
#
# And the order? In (06.3) it means nothing: two maxima can be exchanged. The order of your *steps* does: φ first is
# the safe one. People who train encoders for larger models take several φ-steps for each θ-step for this reason (He
# et al. 2019).
#
# ## The answer in closed form
#
# Does joint ascent end at maximum likelihood, not just near it? Probabilistic PCA lets us ask, since Tipping and
# Bishop (1999) solved it. Let $\lambda_1 \ge \dots \ge \lambda_D$ be the eigenvalues of the covariance of the data
# (divided by $N$) and $U_L$ the first $L$ eigenvectors. Then, up to a rotation of the latent,
#
# $$\hat b = \bar x, \qquad \hat\sigma^2 = \frac{1}{D - L} \sum_{i > L} \lambda_i, \qquad
#   \hat W = U_L (\Lambda_L - \hat\sigma^2 I)^{1/2}. \tag{06.12}$$
#
# The noise is the *mean of the discarded eigenvalues*: the directions that the latent does not take share what is
# left. The likelihood at the top follows, since the model's covariance has the eigenvalues
# $\lambda_1, \dots, \lambda_L, \hat\sigma^2, \dots, \hat\sigma^2$, and the squared distances average to $D$:
#
# $$\mathbb{E}_{p_D}[\log p_{\hat\theta}(x)] = -\tfrac12 \Big( D \log 2\pi + \sum_{i \le L} \log \lambda_i
#   + (D - L) \log \hat\sigma^2 + D \Big). \tag{06.13}$$
#
# From here on we use ten latent dimensions.

# %%
latent_dim, (num_data, data_dim) = 10, x.shape
eigenvalues = torch.linalg.eigvalsh((x - x.mean(0)).mT @ (x - x.mean(0)) / num_data).flip(0)
noise_variance = eigenvalues[latent_dim:].mean()
log_det = eigenvalues[:latent_dim].log().sum() + (data_dim - latent_dim) * noise_variance.log()
best_log_likelihood = -0.5 * (data_dim * np.log(2 * np.pi) + log_det + data_dim)

best = models.probabilistic_pca_mle(x, latent_dim)  # the package's version of 06.12
assert abs(best.noise_scale.item() ** 2 - noise_variance.item()) < 1e-12
assert abs(best.log_evidence(x).mean().item() - best_log_likelihood.item()) < 1e-10

# %% [markdown]
# scikit-learn's PCA has the same model inside. One trap: it divides by $N - 1$. So its noise variance needs the
# factor $(N-1)/N$, and its `score`, the mean log-likelihood, is not quite the maximum until its variances have that
# factor too.

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
# ## Joint ascent on real digits
#
# Now train as one would train anything larger: both together, from a random start, one sample of $z$ per digit,
# minibatches of 100, the held-out digits scored along the way. The objective is the line. Will it reach the ceiling?
# There are two kinds of noise in each step.

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
    validate=lambda: expected_elbo(model, q, x_test),
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
# found at once; for the last, $W$ has to leave a place where the gradient is nearly zero, a saddle. The likelihood
# has many such saddles, and no local maximum besides the global one (Tipping & Bishop 1999).
#
# Two questions. Who loses the missing nats? The ledger knows, on both sets of digits. And what keeps the run from
# landing? Put θ and φ at the optimum, where the exact gradient is zero, and look at the noisy gradient there. Chapter
# 03's *sticking the landing* should be free of noise at an exact $q$.

# %%
exact_q = LinearEncoder(64, latent_dim)
e_step(model, exact_q)  # the best member of q's family, for every digit at once
for name, digits in (("training", x), ("held out", x_test)):
    two_bounds = [expected_elbo(model, encoder, digits) for encoder in (q, exact_q)]
    print(f"{name}\n{gap_ledger(*two_bounds, model.log_evidence(digits), best.log_evidence(digits))}\n")
noisy_bound = expected_elbo(model, q, x).mean().item()

e_step(best, exact_q)
total = gradient(elbo(draw(best.given(x), exact_q(x), num_samples).log_weight).mean(), exact_q)
landing = gradient(elbo_sticking_the_landing(best.given(x), exact_q(x), num_samples).mean(), exact_q)
of_theta = gradient(elbo_sticking_the_landing(best.given(x), exact_q(x), num_samples).mean(), best)
for name, g in (("φ, total derivative", total), ("φ, sticking the landing", landing), ("θ", of_theta)):
    print(f"length of the noisy gradient at the optimum: {name:<24} {g.norm():.2f}")
checks.exact(
    "06.12",
    "at an exact q the sticking-the-landing gradient of φ is zero with a single sample",
    landing,
    torch.zeros_like(landing),
    wrong={"the total derivative": total},
    tolerance=1e-8,
)

# %% [markdown]
# Most of what is lost is φ's: the amortisation gap. θ is nearly there. (Training and held out differ by about a nat,
# for the best model and for ours alike: 660 free numbers (705, less the 45 that only rotate the latent) were fitted to 1,498 digits, and the held-out digits had no
# say.)
#
# Sticking the landing lands φ. It does nothing for θ, whose gradient at one $z$ is
# $\nabla_\theta \log p_\theta(x, z)$: zero only *on average* over the posterior. So with samples θ keeps dancing, and
# φ has to follow it, unless the steps get shorter and shorter. Here we can do better. Equation (06.4) has no sampling
# noise, 1,498 digits fit in one batch, and an objective without noise suits L-BFGS, which builds up curvature as it
# goes.


# %%
def ascend(model, q, x, max_iter=200):
    """Joint ascent of the exact ELBO on all data, in whatever of θ and φ is not frozen."""
    parameters = [p for p in (*model.parameters(), *q.parameters()) if p.requires_grad]
    optimiser = LBFGS(
        parameters, max_iter=max_iter, history_size=50, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )
    return training.fit(lambda x: expected_elbo(model, q, x), optimiser, x, num_steps=1)


def random_start(latent_dim):
    return models.probabilistic_pca(64, latent_dim, torch.Generator().manual_seed(2))


model, q = random_start(latent_dim), LinearEncoder(64, latent_dim)
_ = ascend(model, q, x)
reached = torch.stack([expected_elbo(model, q, x).mean(), model.log_evidence(x).mean()])
checks.exact(
    "06.3a",
    "joint ascent reaches the maximum likelihood: nats per digit that 𝓛 and log p(x) fall short of it",
    best_log_likelihood - reached,
    [0.0, 0.0],
    wrong={"samples and minibatches": [best_log_likelihood - noisy_bound] * 2},
    tolerance=1e-3,
)

# %% [markdown]
# To a thousandth of a nat per digit, for both. And the parameters? The noise can be compared as it is. $W$ cannot,
# since any rotation of the latent is as good. What can be compared is the space that its columns span.


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
    wrong={"mean of all eigenvalues": eigenvalues.mean(), "where it started": 1.0},
    tolerance=1e-4,
)
checks.independent(
    "06.3c",
    "the learned columns of W span the space of scikit-learn's first ten components",
    projection(model.weight),
    pca.components_.T @ pca.components_,
    wrong={
        "the random start": projection(random_start(latent_dim).weight),
        "nine of the ten": projection(model.weight[:, :9]),
    },
    tolerance=1e-3,
)

# %% [markdown]
# So yes: when the encoder's family contains the posterior of the best model, the joint maximum *is* maximum
# likelihood. At the top, both gaps close together.
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
# Most variational autoencoders have encoders with *diagonal* covariances. What would that cost here? The posterior's
# precision is, by (06.11), $\Lambda = M / \sigma^2$ with $M = W^\top W + \sigma^2 I$. Chapter 02 knows the best
# diagonal $q$: the right mean, variances $1/\Lambda_{ii}$, and a gap of
#
# $$\tfrac12 \Big( \sum_i \log \Lambda_{ii} - \log\det \Lambda \Big)
#   = \tfrac12 \Big( \sum_i \log M_{ii} - \log\det M \Big) \tag{06.14}$$
#
# for every $x$ alike; the $\sigma^2$ cancels. It is zero exactly when $M$ is diagonal: when the **columns of $W$ are
# orthogonal**. In (06.12) they are. But turn the latent by any rotation $R$. Then $\hat W R$ has the same $W W^\top$,
# hence the same likelihood for every $x$, and columns that lean on each other. Same model, another posterior.


# %%
class DiagonalLinearEncoder(LinearEncoder):
    """As above, with a diagonal covariance."""

    @property
    def scale_tril(self):
        return torch.diag(self.unconstrained_tril.diagonal().exp())


def rotated(degrees):
    """The best model, its latent turned in the plane of the first and the last dimension."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    weight = best.weight.detach().clone()
    first, last = weight[:, 0].clone(), weight[:, -1].clone()
    weight[:, 0], weight[:, -1] = cos * first + sin * last, cos * last - sin * first
    return models.LinearGaussian(weight, best.loc, best.noise_scale).requires_grad_(False)


def gap(model, noise_variance=None):
    noise_variance = model.noise_scale**2 if noise_variance is None else noise_variance
    matrix = model.weight.mT @ model.weight + noise_variance * torch.eye(latent_dim)
    return 0.5 * (matrix.diagonal().log().sum() - torch.logdet(matrix)).item()


# %% [markdown]
# The oracle for (06.14) knows nothing of it: freeze θ, and let an optimiser find the best diagonal encoder.

# %%
degrees, found = (0, 20, 45, 70, 90), []
for angle in degrees:
    turned, q = rotated(angle), DiagonalLinearEncoder(64, latent_dim)
    _ = ascend(turned, q, x)
    found.append((turned.log_evidence(x) - expected_elbo(turned, q, x)).mean().item())
formula = np.array([gap(rotated(angle)) for angle in degrees])
checks.independent(
    "06.4a",
    "the best diagonal linear encoder: no gap for orthogonal columns, equation 06.14 for turned ones",
    formula,
    found,
    wrong={
        "the factor ½ dropped": 2 * formula,
        "WᵀW without σ²I": [gap(rotated(angle), noise_variance=0.0) for angle in degrees],
        "no gap, since the model is the same": np.zeros(len(degrees)),
    },
    tolerance=1e-5,
)
turned, full_q = rotated(45), LinearEncoder(64, latent_dim)
e_step(turned, full_q)
checks.exact(
    "06.4b",
    "a full linear encoder stays exact, turned or not: its ELBO is the maximum log-likelihood",
    expected_elbo(turned, full_q, x).mean(),
    best_log_likelihood,
    wrong={"the diagonal one": best_log_likelihood - found[2]},
)

# %% [markdown]
# Now let θ go free again, from a random start, with the diagonal encoder. Will it end below the maximum, since its
# $q$ is too poor? We take two latent dimensions, so that we can look at $W$.

# %%
pca_2 = PCA(2, svd_solver="full").fit(x.numpy())
diagonal_model, diagonal_q = random_start(2), DiagonalLinearEncoder(64, 2)
_ = ascend(diagonal_model, diagonal_q, x, max_iter=600)  # the slope that turns W is gentle
full_model = switches["both learn"][2]


def directions(model):
    """The columns of W as unit vectors, the longest first, signs as in PCA: a (2, 64) tensor."""
    columns = model.weight.detach().mT
    columns = (columns / columns.norm(dim=1, keepdim=True))[columns.norm(dim=1).argsort(descending=True)]
    return columns * (columns * torch.as_tensor(pca_2.components_)).sum(1, keepdim=True).sign()


checks.exact(
    "06.4c",
    "joint ascent with a diagonal encoder loses nothing: nats per digit that 𝓛 falls short of the maximum",
    ceiling - expected_elbo(diagonal_model, diagonal_q, x).mean(),
    0.0,
    wrong={"an isotropic normal": ceiling - isotropic},
    tolerance=1e-3,
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
    left.plot(fine, [gap(rotated(angle)) for angle in fine], color=plots.COLOURS.q, label="equation 06.14")
    left.plot(degrees, found, "o", color=plots.COLOURS.p, label="best q found")
    left.set(xlabel="rotation of the latent (°)", ylabel="approximation gap (nats)", xticks=degrees, ylim=(-0.02, 0.36))
    left.set_title("Same model, another gap…", size=11)
    left.legend(loc="upper left")
    pictures = torch.cat([torch.as_tensor(pca_2.components_), directions(diagonal_model), directions(full_model)])
    plots.images(pictures, right, vmin=-0.35, vmax=0.35, num_cols=2, row_labels=["PCA", "diagonal q", "full q"])
    right.set_title("…so a diagonal q turns θ", size=11)

# %% [markdown]
# A surprise: the poorer $q$ cost nothing, *and* taught us more. Among all the models that are equally good, the ELBO
# with a diagonal $q$ prefers the one whose posterior is diagonal, and, unless two eigenvalues are equal, its columns
# are the principal components (Lucas et al. 2019; Rolínek et al. 2019). With a full $q$ nothing prefers one rotation
# to another.
#
# It is the opening's effect, for once to our advantage: **θ moves towards models whose posterior $q$ can represent.**
# Here θ had room to do so without losing likelihood. Chapter 07 takes the room away.
#
# ## Factor analysis: no closed form, and a trap
#
# One σ for all pixels is crude: pixels in the corners hardly vary, those in the middle do. **Factor analysis** gives
# each pixel its own $\sigma_d$. The code does not change, `noise_scale` gets 64 numbers; but no formula for the
# maximum is known.
#
# There is worse. Take the best probabilistic PCA and let only one pixel have a noise of its own. Two pixels are
# interesting: one is never lit in the training digits, one is lit in a single digit. What does the likelihood say as
# their σ goes to zero?

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
assert never_lit.argmax() == len(scales) - 1  # still rising at the last σ
assert 0 < lit_once.argmax() < len(scales) - 1

# %% [markdown]
# For the first the likelihood has **no upper bound**. The pixel is always at its mean, so the narrower its density,
# the higher. There is no maximum to reach, and one useless pixel outbids all the others. The remedy is to look: the
# three pixels that never vary tell nothing about digits, so we drop them. A pixel that is lit only once is harmless
# here, its likelihood turns around. (A latent dimension could still serve that one pixel alone and drive its σ to
# zero; then the likelihood stays finite, since the covariance of the data has an inverse.)
#
# For the other 61 pixels we divide by each pixel's standard deviation. Factor analysis does not care: units just pass
# into $W$ and $\sigma_d$. The optimiser does.

# %%
spread = x[:, varies].std(0, correction=0)
y, y_test = x[:, varies] / spread, x_test[:, varies] / spread
ppca = models.probabilistic_pca_mle(y, latent_dim)
factors = models.LinearGaussian(ppca.weight, ppca.loc, ppca.noise_scale.expand(len(spread)))  # start at equal σ's
_ = ascend(factors, LinearEncoder(len(spread), latent_dim), y, max_iter=400)

theirs = FactorAnalysis(latent_dim, svd_method="lapack", tol=1e-6, max_iter=5000).fit(y.numpy())
checks.independent(
    "06.14a",
    "joint ascent on factor analysis reaches the log-likelihood of scikit-learn's EM",
    factors.log_evidence(y).mean(),
    theirs.score(y.numpy()),
    wrong={"probabilistic PCA, where it started": ppca.log_evidence(y).mean()},
    tolerance=1e-5,
)
checks.independent(
    "06.14b",
    "and the same noise variance for each of the 61 pixels",
    factors.noise_scale**2,
    theirs.noise_variance_,
    wrong={"standard deviations": factors.noise_scale, "one for all": torch.full((61,), ppca.noise_scale.item() ** 2)},
    tolerance=1e-3,
)

# %% mystnb={"image": {"alt": "Left: mean log-likelihood against the noise scale of one pixel. For the pixel never lit it is a straight line up without end as sigma shrinks; for the pixel lit once it rises, turns at about 0.006 and plunges. Right: a map of the 64 pixels; noise share is low in the middle strokes, high at the left and right borders; three border pixels are crossed out."}}
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
    share = torch.full((64,), torch.nan)
    share[varies] = factors.noise_scale.detach() ** 2
    picture = right.imshow(share.reshape(8, 8), cmap="cividis", vmin=0, vmax=1)
    for pixel in (~varies).nonzero().flatten().tolist():
        right.text(pixel % 8, pixel // 8, "×", ha="center", va="center", size=14)
    right.set(xticks=[], yticks=[])
    right.grid(False)
    fig.colorbar(picture, ax=right, label="share of noise in the variance", shrink=0.85)
    right.set_title("What is noise, pixel by pixel", size=11)

# %% [markdown]
# ## Nats have units
#
# How much better is factor analysis? A mistake waits in that question. A log density belongs to the units of $x$:
# measure a pixel in a unit that is $u$ times as large and its density is $u$ times as high. So our $-71.1$ nats for
# digits "in units of 4 counts" are not what someone finds who left them in counts, and neither is better.

# %%
in_counts = models.probabilistic_pca_mle(images.train, latent_dim).log_evidence(images.train).mean()
checks.exact(
    "06.15",
    "log p per count = log p per 4 counts − 64 log 4",
    in_counts,
    best_log_likelihood - 64 * np.log(4),
    wrong={"units do not matter": best_log_likelihood, "one log 4 for all pixels": best_log_likelihood - np.log(4)},
)
raw = models.probabilistic_pca_mle(x[:, varies], latent_dim)
change = spread.log().sum()  # from x to y, so that all three lines are nats per standardised digit
print("nats per digit of 61 standardised pixels     training   held out")
for name, model, shift, digits in (
    ("probabilistic PCA of the pixels as they were", raw, change, (x[:, varies], x_test[:, varies])),
    ("probabilistic PCA of standardised pixels", ppca, 0.0, (y, y_test)),
    ("factor analysis", factors, 0.0, (y, y_test)),
):
    scores = [(model.log_evidence(part).mean() + shift).item() for part in digits]
    print(f"{name:<44} {scores[0]:8.1f} {scores[1]:10.1f}")
worst = factors.log_evidence(y_test).argsort()[:3]
scores = ", ".join(f"{score:.0f}" for score in factors.log_evidence(y_test)[worst].tolist())
rarest = [int(lit[images.test[digit] > 0].min()) for digit in worst]  # lit in so many training digits
print(f"its three worst held-out digits: {scores} nats; each has a pixel lit in only {rarest} of 1,498 training digits")

# %% [markdown]
# In the same units: probabilistic PCA depends strongly on the units its pixels came in, since it insists on one σ for
# all; standardising gains 29 nats. Factor analysis gains 2 more on top, and would have got there from either.
#
# The last line is a warning that the mean hides. Three of 299 held-out digits cost hundreds of nats each: they light
# a pixel that was almost never lit in training. Its standard deviation there was tiny, and after division by it the
# pixel stands some twenty standard deviations out. What is harmless on the training data need not be on new data.
# Chapter 11 returns to this.
#
# ## Exercises
#
# **06.E1 (recall).** In the toy model (06.7), let the data have mean $\bar x$ (`mean_x`), θ be at its maximum
# $\bar x$, and the belief be stale, φ. Return an array of three numbers: the θ that maximises the ELBO with φ fixed,
# the change of the ELBO on the way there, and the change of the log evidence.
#
# <details><summary>Hint</summary>
#
# Equation (06.8) gives both changes. The best θ for the sum of two equal parabolas lies halfway between their
# centres.
#
# </details>


# %%
def stale_theta_step(mean_x, phi): ...  # your code


ch06.stale_theta_step.check(stale_theta_step)

# %% [markdown]
# **06.E2.** Write the M-step for $W$. The data `x` $(N, D)$ are centred and $b = 0$. For each datapoint $q$ has a
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
# **06.E3.** Return, as a number, the approximation gap of the best diagonal $q$ in probabilistic PCA with the given
# `weight` $(D, L)$, a tensor, and `noise_scale`, a float (σ, not σ²).
#
# <details><summary>Hint</summary>
#
# Equation (06.14); `torch.logdet`.
#
# </details>


# %%
def diagonal_gap(weight, noise_scale): ...  # your code


ch06.diagonal_gap.check(diagonal_gap)

# %% [markdown]
# **06.E4 (a small study).** How many latent dimensions? Return the one among `candidates` whose probabilistic PCA,
# fitted to `train`, gives `held_out` the highest mean log-likelihood. Then try it on `x[:100]` and on all of `x`,
# with the candidates 1 to 50. On one of them the answer is a warning. Which, and why?
#
# <details><summary>Hint</summary>
#
# `models.probabilistic_pca_mle` and `log_evidence`. For the warning, look at the noise variance.
#
# </details>


# %%
def chosen_latent_dim(train, held_out, candidates): ...  # your code


ch06.chosen_latent_dim.check(chosen_latent_dim)

# %% [markdown]
# ## Summary
#
# - *Learn both.* The objective $\max_{\phi, \theta} \mathbb{E}_{p_D}[\mathcal{L}]$ is the old line of code with θ
#   unfrozen. If the encoder's family contains the posterior of the best model, its maximum is maximum likelihood: on
#   digits, joint ascent met the closed form of probabilistic PCA and scikit-learn's factor analysis.
# - *Up can be down.* $\Delta\log p_\theta = \Delta\mathcal{L} + \Delta\mathrm{KL}$. A step in θ with a stale $q$
#   raised the ELBO by 2 nats and lowered the evidence by 1; on digits it did so 24 times in a row. After an exact
#   E-step it cannot happen.
# - *Read the ledger.* A small gap does not mean a good model: the model that ignored $z$ had no gap at all. The gap
#   is φ's, the distance to a reference is θ's.
# - *Check against others.* Convert $N - 1$ to $N$, compare nats in the same units only, look for likelihoods without
#   an upper bound, and score digits that had no vote.
#
# **Sources.** M. E. Tipping & C. M. Bishop (1999), Probabilistic principal component analysis, *J. Royal Statistical
# Society B* 61(3): the maximum in closed form (their equations 7 and 8), the saddles. R. M. Neal & G. E. Hinton
# (1998), A view of the EM algorithm that justifies incremental, sparse, and other variants: EM as ascent of one
# function of θ and $q$. D. B. Rubin & D. T. Thayer (1982), EM algorithms for ML factor analysis, *Psychometrika* 47.
# G. Roeder, Y. Wu & D. Duvenaud (2017), Sticking the landing. J. He, D. Spokoyny, G. Neubig & T. Berg-Kirkpatrick
# (2019), Lagging inference networks and posterior collapse in variational autoencoders: several φ-steps for each
# θ-step. J. Lucas, G. Tucker, R. Grosse & M. Norouzi (2019), Don't blame the ELBO!, and M. Rolínek, D. Zietlow & G.
# Martius (2019), Variational autoencoders pursue PCA directions (by accident): why a diagonal $q$ finds the axes.
# Digits: E. Alpaydin & C. Kaynak (1998), UCI Machine Learning Repository.
#
# **Next.** Here θ could always find a best model that suited $q$. What if it cannot, and must choose between being
# right and being easy to approximate? Chapter 07: *When q is too simple, θ is wrong*.

# %% [markdown]
# ## Solutions


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def stale_theta_step_solution(mean_x, phi):
    distance = phi - mean_x
    return np.array([mean_x + distance / 2, distance**2 / 8, -(distance**2) / 16])


ch06.stale_theta_step.check(stale_theta_step_solution)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def m_step_weight_solution(x, means, covariance):
    second_moment = means.mT @ means + len(x) * covariance
    return torch.linalg.solve(second_moment, means.mT @ x).mT


ch06.m_step_weight.check(m_step_weight_solution)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def diagonal_gap_solution(weight, noise_scale):
    matrix = weight.mT @ weight + noise_scale**2 * torch.eye(weight.shape[1])
    return 0.5 * (matrix.diagonal().log().sum() - torch.logdet(matrix)).item()


ch06.diagonal_gap.check(diagonal_gap_solution)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def chosen_latent_dim_solution(train, held_out, candidates):
    def score(latent_dim):
        return models.probabilistic_pca_mle(train, latent_dim).log_evidence(held_out).mean().item()

    return max(candidates, key=score)


ch06.chosen_latent_dim.check(chosen_latent_dim_solution)
print("100 digits:  ", chosen_latent_dim_solution(x[:100], x_test, range(1, 51)))
print("1,498 digits:", chosen_latent_dim_solution(x, x_test, range(1, 51)))

# %% [markdown] tags=["solution", "hide-cell"]
# <details><summary>06.E4, in words</summary>
#
# With 100 digits the choice is 6: more dimensions describe those hundred better and new ones worse. With all 1,498
# the held-out likelihood rises to the last candidate, 50, and beyond. That is the trap of the dead pixels again.
# Three pixels never vary, in the held-out digits either, and a few hardly do; the discarded eigenvalues go to zero,
# σ² with them, and the density of the dead pixels to infinity. The held-out digits cannot object, since those pixels
# are dead there too. A held-out likelihood protects against noise in the choice of the data, not against a density
# that has no upper bound.
#
# </details>
