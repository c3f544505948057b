# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 19 · At scale
#
# **What has to change when the data no longer fit into a minute, into memory, or onto one machine?**

# %% jupyter={"source_hidden": true} tags=["remove-cell", "setup"]
import importlib.util

from IPython import get_ipython

if (shell := get_ipython()) is not None:
    if importlib.util.find_spec("vi_tutorial") is None:  # on Colab, say
        shell.run_line_magic("pip", "install --quiet git+https://github.com/vi-tutorial/vi_tutorial")
    shell.run_line_magic("matplotlib", "inline")  # figures below their cells, whatever MPLBACKEND says

# %% mystnb={"image": {"alt": "The map of the series: six boxes joined by arrows, KL, ELBO, phi, theta, networks, what breaks. The fifth, networks, is lit."}}
from vi_tutorial import plots

plots.chain("networks")

# %% [markdown]
# You need [chapter 10](10_the_variational_autoencoder.ipynb) for the VAE and [chapter 12](12_how_good_is_the_model.ipynb) for its score. Reading takes 25 minutes.
#
# **Afterwards you can**
#
# - *average* a bound over blocks, shards and machines without changing it;
# - *say* what a checkpoint must hold so that a run killed in mid-step ends as if nothing had happened;
# - *choose* which numbers may be rounded coarsely, and which may not;
# - *read* a table of published likelihoods for what it says and what it does not.

# %%
import copy
import dataclasses
import itertools
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from safetensors.torch import save_file
from torch.distributions import Bernoulli

from vi_tutorial import checkpoint, checks, data, quadrature, runs
from vi_tutorial.elbo import draw, elbo
from vi_tutorial.exercises import ch19
from vi_tutorial.files import memory_mapped
from vi_tutorial.runs.loop import Trainer
from vi_tutorial.runs.processes import Place

torch.set_num_threads(1)
_ = torch.manual_seed(0)
scratch = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A run is a folder
#
# So far a model lived as long as its notebook. A long run needs a life of its own. From a terminal:
#
# ```sh
# vi-tutorial train runs/first --data digits --latents 2 --hidden 32 --precision float64
# vi-tutorial evaluate runs/first
# ```
#
# The folder keeps what was asked for, what happened, and a checkpoint to go on from. The same from Python, on the 8 × 8 digits, which take seconds where MNIST takes hours:

# %%
config = runs.Config(hidden=(32,), latents=2, precision="float64", epochs=12, learning_rate=3e-3)
last = runs.train(config, scratch / "first")
print(*sorted(path.name for path in (scratch / "first").glob("[a-z]*")), sep="\n")
assert last["epoch"] == 12
assert last["held_out_bound"] > -24.5

# %% [markdown]
# What comes back is a model and its $q$, as in every chapter. The line that measures them is the line of [chapter 01](01_the_elbo.ipynb). And since the latent has two dimensions, quadrature can look over its shoulder.

# %%
run = runs.load(scratch / "first")
model, q, num_samples = run.model, run.q, 400
torch.set_default_dtype(torch.float64)  # from here on, in the notebook too
x = (data.digits().test > 8).double()
bound = elbo(draw(model.given(x), q(x), num_samples).log_weight)
exact = quadrature.expected_elbo(model.given(x), q(x), order=20)
spread = draw(model.given(x), q(x), num_samples).log_weight.std(0) / math.sqrt(num_samples)
z_score = ((bound - exact) / spread).abs().mean().item()  # 0.8 on average for a standard Normal
assert 0.6 < z_score < 1.0
print(f"mean |ELBO − quadrature| in standard errors: about 0.8: {0.6 < z_score < 1.0}")

# %% [markdown]
# ## Data larger than memory
#
# A pass over the data needs one minibatch at a time. So the rows can stay on the disk: a **memory-mapped** file looks like an array, and the system fetches the pages that are touched. Any `.npy` file will do; so will an `.npz` file that is not compressed.

# %%
rows = (data.digits().train > 8).float().numpy()
np.save(scratch / "digits.npy", rows)
on_disk = memory_mapped(scratch / "digits.npy")
print(tuple(on_disk.shape), on_disk.dtype)

# %% [markdown]
# The mean over all rows comes from the blocks, one after another. The last block is shorter, and that is where programs go wrong: the mean of the blocks' means is not the mean of the rows. Each block counts by its length:
#
# $$\frac1N \sum_{n=1}^N \mathcal{L}_n = \sum_b \frac{N_b}{N} \bar{\mathcal{L}}_b. \tag{19.1}$$


# %%
def exact_bound(x):
    """No noise: whatever differs is a mistake."""
    return quadrature.expected_elbo(model.given(x.double()), q(x.double()), order=10)


blocks = on_disk.split(400)
sums = [exact_bound(block).sum() for block in blocks]
streamed = sum(sums) / len(on_disk)
in_memory = exact_bound(torch.from_numpy(rows)).mean()
by_columns = torch.from_numpy(np.ascontiguousarray(rows.T).reshape(rows.shape))
checks.exact(
    "19.2",
    "the mean bound over a mapped file, block by block, is that of the array in memory",
    streamed,
    in_memory,
    wrong={
        "the mean of the blocks' means": torch.stack([exact_bound(block).mean() for block in blocks]).mean(),
        "columns read as rows": exact_bound(by_columns).mean(),
    },
    tolerance=1e-10,
)
print([len(block) for block in blocks])

# %% [markdown]
# The mean of the means is off in the second decimal here. Nobody would notice it in a loss curve; in a table it could change a ranking.
#
# ## Many machines
#
# Now let $R$ processes take a share each of every minibatch. Each computes the gradient of *its* mean bound, and then the gradients are averaged, an operation called **all-reduce**. When is that the gradient of the whole minibatch? By (19.1), when each share counts by its size:
#
# $$\nabla \bar{\mathcal{L}} = \frac1R \sum_{r=1}^R \underbrace{\frac{R\, B_r}{B}}_{\text{weight}} \nabla \bar{\mathcal{L}}_r. \tag{19.2}$$
#
# The $1/R$ is what all-reduce does. The weight is ours to give, and is one only if all shares are alike. Split 101 rows for two processes, 51 and 50: predict whether anyone could see the difference.

# %%
parameters = [*model.parameters(), *q.parameters()]
for parameter in parameters:
    parameter.requires_grad_(True)
batch = x[:101]
shares = batch.tensor_split(2)


def gradient(x, weight=1.0):
    return torch.cat([g.flatten() for g in torch.autograd.grad(weight * exact_bound(x).mean(), parameters)])


weights = [2 * len(share) / len(batch) for share in shares]
reduced = sum(gradient(share, weight) for share, weight in zip(shares, weights, strict=True)) / 2
unweighted = sum(gradient(share) for share in shares) / 2

# %% [markdown]
# The oracle knows no shares and no automatic differentiation: it moves all parameters a little along a direction, forwards and backwards, and looks at the mean bound of all 101 rows.

# %%
directions = torch.randn(5, len(reduced)) / len(reduced) ** 0.5
start = torch.nn.utils.parameters_to_vector(parameters).detach()
step = 1e-4


def at(vector):
    torch.nn.utils.vector_to_parameters(vector, parameters)
    with torch.no_grad():
        return exact_bound(batch).mean()


differences = torch.stack([(at(start + step * d) - at(start - step * d)) / (2 * step) for d in directions])
_ = at(start)
checks.exact(
    "19.1",
    "all-reduced gradients of weighted shares are the whole minibatch's",
    directions @ reduced,
    differences,
    wrong={
        "shares of 51 and 50 weighted alike": directions @ unweighted,
        "summed where they are averaged": directions @ reduced * 2,
        "one share's gradient alone": directions @ gradient(shares[0]),
    },
    tolerance=1e-6,
)

# %% [markdown]
# Off by a fraction of a percent, wherever the shares are uneven: too little to notice, and wrong. In `vi-tutorial train` the weights are in place, and each process has its own noise; the repository's tests hold two real processes against one. The command, for two on this machine:
#
# ```sh
# torchrun --nproc-per-node 2 --module vi_tutorial train runs/second --data mnist
# ```
#
# Who takes which rows? The order comes from the seed and the epoch alone. So every process knows it, and takes its share without a word to the others. Here is the package's order for one epoch, as three processes would share it.

# %%
alone = Place(rank=0, world=1, device=torch.device("cpu"))
minibatches = list(Trainer(config, scratch / "order", alone).minibatches(epoch=0))
taken = [[batch.tensor_split(3)[rank] for batch in minibatches] for rank in range(3)]
everything = torch.cat([share for rank in taken for share in rank])
assert everything.sort().values.equal(torch.arange(len(rows)))
print("every row once:", len(everything) == len(everything.unique()) == len(rows))

# %% [markdown]
# ## Pull the plug
#
# Long runs end early: a power cut, a queue's limit, a colleague. What does a run need to remember, so that it can go on *as if nothing had happened*? Think before you read on: which of these can be left out?
#
# - the weights;
# - Adam's running means of the gradient and its square;
# - how many steps were taken, in which epoch, and how many minibatches of it are done;
# - the state of the random numbers.
#
# Let us really do it. One run is left in peace. Another is started as a process of its own, and killed without warning as soon as it has written a checkpoint.

# %%
config = dataclasses.replace(config, epochs=30, save_seconds=0.2)
_ = runs.train(config, scratch / "in peace")
words = "--hidden 32 --latents 2 --precision float64 --epochs 30 --learning-rate 0.003 --save-seconds 0.2 --seed 0"
killed = subprocess.Popen(
    [sys.executable, "-m", "vi_tutorial", "train", str(scratch / "killed"), *words.split()],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
)
deadline = time.monotonic() + 60
while not (scratch / "killed" / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
    time.sleep(0.02)
killed.kill()
_ = killed.wait()
shutil.copytree(scratch / "killed", scratch / "as it lay")
_ = runs.train(config, scratch / "killed", resume=True)


# %% [markdown]
# A checkpoint is one file of named tensors. Looking into it runs no code, which cannot be said of a pickle. Here is what it holds:


# %%
def tensors(folder):
    return checkpoint.read(scratch / folder / "checkpoint.safetensors").tensors


def final_weights(folder):
    return torch.cat([t.flatten() for name, t in sorted(tensors(folder).items()) if name.startswith("weights/")])


kinds = {}
for name, tensor in tensors("killed").items():
    kind = {"optimiser": name.split("/")[-1]}.get(name.split("/")[0], name.split("/")[0])
    kinds[kind] = kinds.get(kind, 0) + tensor.numel()
for kind in ("weights", "exp_avg", "exp_avg_sq"):
    print(f"{kind:<11}{kinds[kind]:>6,} numbers")
print("and:", *sorted(kinds.keys() - {"weights", "exp_avg", "exp_avg_sq"}))

# %% [markdown]
# So Adam's memory is twice as large as the model (whose four more numbers are the prior's, which nobody learns). Can one save it? To find out, take the folder as it lay after the kill, lose one thing, and go on.


# %%
def resumed_without(lost):
    """The end of the killed run, had its checkpoint lacked something."""
    folder = scratch / f"without {lost}"
    shutil.copytree(scratch / "as it lay", folder)
    found = checkpoint.read(folder / "checkpoint.safetensors")
    kept = dict(found.tensors)
    for name, tensor in found.tensors.items():
        if lost == "moments" and name.startswith("optimiser/"):
            kept[name] = torch.zeros_like(tensor)
        if lost == "noise" and name == "extra/random/0":
            kept[name] = torch.Generator().manual_seed(1).get_state()
    save_file(kept, folder / "checkpoint.safetensors", metadata=found.words)
    _ = runs.train(config, folder, resume=True)
    return final_weights(folder.name)


checks.exact(
    "19.3",
    "killed and resumed, a run ends with the weights of one left in peace, bit for bit",
    final_weights("killed"),
    final_weights("in peace"),
    wrong={"Adam's moments not saved": resumed_without("moments"), "noise not saved": resumed_without("noise")},
    tolerance=1e-300,
)

# %% [markdown]
# A tolerance of $10^{-300}$ is a way to say *equal*. (On one machine: another processor, thread count or number of processes adds in another order, and the last digits go their own way.) Each loss leads elsewhere. Here not to a *worse* place, as the curves show: in thirty short epochs Adam's memory is soon made anew. Do not rely on it: what is lost at a small
# rate, late in a long run, can take long to come back, and a step counter that starts again starts a falling rate again. If you want to
# tell whether a change in the code changed the result, or to have a sceptic rerun you, you need all of it.


# %%
def curve(folder):
    import csv

    with (scratch / folder / "history.csv").open() as file:
        return [float(row["held_out_bound"]) for row in csv.DictReader(file)]


curves = {folder: curve(folder) for folder in ("in peace", "killed", "without moments", "without noise")}
assert curves["killed"] == curves["in peace"]
assert curves["without noise"] != curves["in peace"] != curves["without moments"]
ends = [values[-1] for values in curves.values()]
assert max(ends) - min(ends) < 0.5
print("at the end all four held-out bounds lie within half a nat:", max(ends) - min(ends) < 0.5)

# %% mystnb={"image": {"alt": "Held-out ELBO against epoch. A blue line climbs; orange dots follow it, stop where the process is killed, and go on along the very same line after it is resumed."}} tags=["nbval-ignore-output"]
steps_done = int(checkpoint.read(scratch / "as it lay" / "checkpoint.safetensors").words["epoch"])
words = "Held-out ELBO against epoch: a line climbs; dots follow it, stop where the process is killed, and go on along the very same line."


def scene(fig, frame):
    ax = fig.subplots()
    epochs = np.arange(1, 31)
    until = round(30 * (frame + 1) / 15)
    ax.plot(epochs, curves["in peace"], color=plots.COLOURS.evidence, label="left in peace")
    ax.plot(epochs[:until], curves["killed"][:until], "o", color=plots.COLOURS.q, label="killed and resumed")
    if until > steps_done:
        ax.axvline(steps_done + 0.5, color="0.4", ls=":", label="killed here")
    ax.set(
        xlabel="epoch", ylabel="held-out ELBO (nats)", xlim=(0, 31), ylim=(min(curves["in peace"]) - 1, max(ends) + 1)
    )
    ax.set_title("The dots land on the line, before the kill and after")
    ax.legend(loc="lower right")


plots.animate(scene, 15, words, name="killed and resumed", figsize=(6.6, 3.2))

# %% [markdown]
# ## Coarse numbers
#
# Graphics processors multiply much faster in 16 bits. **bfloat16** keeps the range of float32, and of its 24 significant bits it keeps 8: two to three decimal digits. Where may a VAE be so coarse? The bound is a sum of 64 log probabilities, 784 for MNIST, whose sum is near a hundred nats. One number near a hundred, to 8 bits, is known to
# half a nat. So what may be rounded: the networks, the log densities of the pixels, the sums? The same weights and noise, on the same held-out digits. Predict which of the three costs most.

# %%
noise = torch.randn(25, len(x), 2)


def bounds(networks, densities, sums):
    """The ELBO of each held-out digit; each part of the way in its own precision."""
    encoder, decoder = (copy.deepcopy(part).to(networks) for part in (q.network, model.likelihood.network))
    mean, log_scale = encoder(x.to(networks)).to(densities).detach().chunk(2, dim=-1)
    e = noise.to(densities)
    z = mean + log_scale.exp() * e
    logits = decoder(z.to(networks)).to(densities).detach()
    fit = Bernoulli(logits=logits).log_prob(x.to(densities).expand_as(logits))  # log p(x_d | z), for each pixel
    code = log_scale + (e**2 - z**2) / 2  # log p(z_l) − log q(z_l | x), for each latent
    return (fit.to(sums).sum(-1) + code.to(sums).sum(-1)).double().mean(0)


double, single, coarse = torch.float64, torch.float32, torch.bfloat16
truth = bounds(double, double, double)
ways = {
    "nothing: float32": bounds(single, single, single),
    "the networks": bounds(coarse, single, single),
    "networks and sums": bounds(coarse, single, coarse),
    "networks and densities": bounds(coarse, coarse, single),
}
errors = {name: (value - truth).abs().mean().item() for name, value in ways.items()}
for name, error in errors.items():
    print(f"in bfloat16: {name:<24} mean |error| of a digit's ELBO {error:.0e} nats")
too_high = (ways["networks and densities"] - truth).mean().item()
print(f"with the densities: {too_high:.2f} nats too high on average")
assert too_high > 0.95 * errors["networks and densities"]  # all to one side
small, networks_only, with_sums, with_densities = errors.values()
assert small < 1e-5
assert networks_only < with_sums < 0.5 * with_densities
checks.inequality(
    "19.4",
    "networks in bfloat16 move a digit's ELBO, on average, by less than 0.01 nats",
    networks_only,
    0.01,
    wrong={"sums in bfloat16 too": with_sums, "log densities in bfloat16 too": with_densities},
)

# %% mystnb={"image": {"alt": "Histograms on a logarithmic axis of the error of each held-out digit's ELBO: float32 near a millionth of a nat; networks in bfloat16 near five thousandths; with the sums too about twice that; with the log densities near a twentieth of a nat."}}
with plots.style():
    fig, axes = plt.subplots(4, 1, figsize=(7, 3.6), sharex=True)
    bins = np.geomspace(1e-8, 1, 60)
    for ax, (name, value) in zip(axes, ways.items(), strict=True):
        ax.hist((value - truth).abs().clamp_min(1e-8).numpy(), bins, color=plots.COLOURS.q)
        ax.text(2e-8, ax.get_ylim()[1] * 0.55, name)
        ax.set(xscale="log", yticks=[])
        ax.grid(False, axis="y")
    ax.set_xlabel("|error| of a held-out digit's ELBO (nats)")
    axes[0].set_title("Round inside the networks, not the densities")

# %% [markdown]
# The sums are the lesser evil: torch adds bfloat16 numbers up in float32 and rounds each sum once, and 25 draws average that out. What costs is to *compute* the log densities coarsely, and the errors all have one sign. A pixel that the decoder is sure of, with a logit of 5, has log probability
# $-\log(1 + e^{-5}) = -0.0067$. Torch computes it as a difference, $5 - 5.0067$; in 8 bits the two are equal, and the surprise of every sure pixel is lost. The bound comes out too *high*: for once an ELBO that is no lower bound, through no fault of the mathematics. A cast to float32 just before
# the sum comes too late. (The line at 0.01 nats is our choice, between the second row and the third.)
#
# `--precision bfloat16` therefore rounds inside the networks and nowhere else. Whether it is *faster* depends on the machine: graphics processors and some recent processors have circuits for it, others imitate them.
#
# ## What it costs
#
# The rest of this chapter shows numbers that took longer than a chapter may. They were measured by the scripts in `benchmarks/`, stored in `benchmarks/results/`, and are only read here.


# %%
def stored(name):
    """A stored result; None where the chapter is read without the repository, or the script has not been run."""
    path = Path("../benchmarks/results") / name
    return json.loads(path.read_text()) if path.exists() else None


scale, peers, table = stored("scale.json"), stored("peers.json"), stored("table1.json")

# %%
if scale:
    print(f"{scale['machine']}, torch {scale['versions']['torch']}")
    print(f"a pass over N rows costs N to the power {scale['slope']:.2f}")
    for entry in scale["memory"]:
        print(f"{entry['file_megabytes']:6.0f} MB on the disk: {entry['megabytes']:4.0f} MB of memory")
    one, two = (entry["rows_per_second"] for entry in scale["processes"])
    print(f"two processes: {two / one:.2f} times the rows per second of one")
    for entry in scale["precision"]:
        print(f"{entry['precision']:<9}{entry['rows_per_second']:7.0f} rows per second")
    draws = {entry["k"]: entry["seconds"] / scale["draws"][0]["seconds"] for entry in scale["draws"]}
    print("a step's time against one draw's:", *(f"{draws[k]:.1f} for K = {k}" for k in (2, 10, 50, 500)), sep="  ")
    speed = {entry["precision"]: entry["rows_per_second"] for entry in scale["precision"]}
    assert abs(scale["slope"] - 1) < 0.05
    assert scale["memory"][-1]["megabytes"] < 1.2 * scale["memory"][0]["megabytes"]
    assert two < one
    assert speed["bfloat16"] < speed["float64"] < speed["float32"]
    assert draws[10] < 5
    assert draws[50] < 20

# %% [markdown]
# Read it line by line. The cost of a pass grows in proportion to the rows. The memory hardly grows with the file: what grows is the shuffled list of row numbers, four bytes for each row. Two processes were *slower* than one here: for networks this small, on two cores that share one memory, telling each other the gradients costs more
# than sharing the work saves. Processes pay when a step is long, or the machines are many. And bfloat16 was several times slower than float32, since this processor has no circuits for it and imitates them.
#
# The draws are the other axis. A minibatch of $B$ rows with $K$ draws is one matrix product with $BK$ rows, beside a fixed cost, the bookkeeping and the optimiser. So the first draws are the dearest: ten cost two to three times as much as one, not ten times. Past fifty a draw gets dearer again, as the step's numbers
# no longer fit where the processor keeps what it needs soon.

# %% mystnb={"image": {"alt": "Two panels. Left: seconds per pass against rows on logarithmic axes, a straight line. Right: microseconds per row and draw against the number of draws K, falling from 170 to 30 at fifty draws, then rising to 40."}}
if scale:
    with plots.style():
        fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
        count, seconds = ([entry[name] for entry in scale["rows"]] for name in ("rows", "seconds"))
        left.loglog(count, seconds, "o-", color=plots.COLOURS.evidence)
        left.set(xlabel="rows N", ylabel="seconds for a pass", title="Cost is proportional to N")
        k, seconds = (np.array([entry[name] for entry in scale["draws"]]) for name in ("k", "seconds"))
        right.loglog(k, 1e6 * seconds / k / 20, "o-", color=plots.COLOURS.q)
        right.set(xlabel="draws K", ylabel="µs for a row and draw", title="The first draws are the dearest")

# %% [markdown]
# How does the step compare with others' code? All of these in one run, in turns, with the same shapes and data. *Compiled* means `--compile`: the whole line, from draws to bound and back, becomes one program, at the price of looking at no values on the way, which the uncompiled step does. Left of the line is faster than the peer. The uncompiled step is behind three of its four peers, and the compiled one behind NumPyro alone, by less than a tenth.

# %% mystnb={"image": {"alt": "Dots on a logarithmic axis: seconds of this package's training step divided by each peer's, for the eager and the compiled step, around a line at one."}}
if peers:
    shown = [row for row in peers["rows"] if row["work"] == "train-step"]
    behind = {(row["mode"], row["peer"]) for row in shown if row["ratio"] > 1 and row["peer"] != "matmul"}
    assert {mode for mode, _ in behind} == {"eager", "compiled"}
    assert [name for mode, name in behind if mode == "compiled"] == ["numpyro"]
    assert sum(mode == "eager" for mode, _ in behind) == 3
    with plots.style():
        fig, ax = plt.subplots(figsize=(7, 3))
        names = list(dict.fromkeys(row["peer"] for row in shown))
        for mode, colour, shift in (("eager", plots.COLOURS.evidence, 0.12), ("compiled", plots.COLOURS.q, -0.12)):
            mine = {row["peer"]: row["ratio"] for row in shown if row["mode"] == mode}
            ax.plot([mine[name] for name in names], np.arange(len(names)) + shift, "o", color=colour, label=mode)
        ax.set_yticks(range(len(names)), names)
        ax.axvline(1, color="0.5", lw=1)
        ax.set(
            xscale="log", xlabel="seconds of a training step, ours / peer's", title="A training step beside the peers'"
        )
        ax.set_xticks([0.5, 0.7, 1, 1.5, 2], ["0.5", "0.7", "1", "1.5", "2"])
        ax.minorticks_off()
        ax.legend()

# %% [markdown]
# *matmul* is no library: it is the bare matrix products of one step. Nobody can be faster without other products; how far a step is above them is the price of everything else.
#
# ## The published table
#
# [Chapter 12](12_how_good_is_the_model.ipynb) said how to score a model. The usual yardstick is table 1 of Burda, Grosse & Salakhutdinov (2016): binarised MNIST, a fresh binarisation at every visit, one stochastic layer of 50 latents, 5,000 importance samples
# for each of 10,000 test images, 3,280 epochs. The scripts in `benchmarks/` run the same schedule, for as many epochs as there is time; a later objective, DReG (chapter 14), stands beside it.

# %%
published = {("vae", 1): 86.76, ("vae", 5): 86.47, ("vae", 50): 86.35}  # negative log-likelihood, nats
published |= {("iwae", 1): 86.76, ("iwae", 5): 85.54, ("iwae", 50): 84.78}  # at K = 1 the two are one
rerun = {("dreg", 5): 84.90, ("dreg", 50): 84.32}  # not theirs: a later public re-run, with 100 latents
ours = {(row["bound"], row["k"]): row for row in (table["rows"] if table else [])}
print("bound    K   published, 3,280 epochs   ours, with its epochs")
for bound, k in [*published, *rerun]:
    paper = f"{published[bound, k]:.2f}" if (bound, k) in published else f"{rerun[bound, k]:.2f}, 100 latents"
    row = ours.get((bound, k))
    mine = f"{row['nll']:.2f} ± {row['stderr']:.2f}, {row['epochs']:,} epochs" if row else "not run"
    print(f"{bound:<6}{k:>4}   {paper:<24}  {mine}")

# %% mystnb={"image": {"alt": "Negative log-likelihood against the number of draws K in training: the published values of two bounds after 3,280 epochs, open dots, and above them the stored runs after few epochs, filled."}}
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 3))
    for bound, colour in (("vae", plots.COLOURS.evidence), ("iwae", plots.COLOURS.q), ("dreg", plots.COLOURS.p)):
        for values, style, fill in (
            (published, "o--", "white"),
            ({pair: row["nll"] for pair, row in ours.items()}, "o-", colour),
        ):
            pairs = sorted(pair for pair in values if pair[0] == bound)
            if pairs:
                ax.plot([k for _, k in pairs], [values[pair] for pair in pairs], style, color=colour, mfc=fill)
        ax.plot([], [], "o", color=colour, label=bound)
    ax.set(xscale="log", xlabel="draws K in training", ylabel="held-out NLL (nats)")
    ax.set_xticks([1, 5, 50], ["1", "5", "50"])
    ax.set_title("Open: published, all epochs. Filled: ours, the first few")
    ax.legend(ncols=3)

# %% [markdown]
# What a column of such a table says: after the same passes over the data, which objective led to the better density, as judged by one and the same score. What it does not say: how much of the difference another seed would make, since each cell is one run; what it costs, since a step with 50
# draws takes about nine times as long as one with a single draw; and how far the score itself is from $\log p_\theta(x)$, since it is a bound under each model's own $q$. And a short run is a different experiment from a long one: it ranks by speed of learning, not by where learning ends.
#
# ## A mistake people make
#
# A mean of means, a checkpoint without the optimiser, log densities in 16 bits: each is one line, each still trains, each gives another result. So does a learning rate multiplied by the number of processes where the minibatch is *split* among them, as here; the rule belongs to minibatches that *grow* with the processes (Goyal et al. 2017). What protects you is the comparison that
# this chapter makes four times: *the same thing, computed another way*.
#
# ## Exercises
#
# **19.E1 (recall).** `gradients` (R, D) holds each share's mean gradient, `sizes` (R,) the numbers of rows. Return the mean gradient of the minibatch, (D,).
#
# <details><summary>Hint</summary>Equation (19.2) with all-reduce's 1/R multiplied in.</details>


# %%
def mean_gradient(gradients, sizes): ...  # your code


ch19.mean_gradient.check(mean_gradient)

# %% [markdown]
# **19.E2 · The score in pieces.** 5,000 draws for each image do not fit into memory. `pieces` is a list of NumPy arrays of log weights, of unequal lengths. Return the log of the mean weight over all of them, using of each piece two numbers only. Log weights may be near −1200.
#
# <details><summary>Hint</summary>The logarithm of each piece's sum, and its length. Then once more.</details>


# %%
def log_mean_weight(pieces): ...  # your code


ch19.log_mean_weight.check(log_mean_weight)

# %% [markdown]
# **19.E3 · A falling rate.** The published schedule has eight stages. Stage $i$, from 0 to 7, lasts $3^i$ epochs at the rate $10^{-3} \cdot 10^{-i/7}$. Return the rate in a given epoch, counted from 0.
#
# <details><summary>Hint</summary>After stage i, (3^(i+1) − 1) / 2 epochs are over.</details>


# %%
def rate_at(epoch): ...  # your code


ch19.rate_at.check(rate_at)

# %% [markdown]
# **19.E4 · What to save.** `sizes` are the layers' widths of a perceptron, such as (784, 200, 200, 100). How many bytes hold it, and what Adam remembers of it, in float32?
#
# <details><summary>Hint</summary>Count biases too. Adam keeps two numbers for each parameter.</details>


# %%
def bytes_of_a_checkpoint(sizes): ...  # your code


ch19.bytes_of_a_checkpoint.check(bytes_of_a_checkpoint)

# %% [markdown]
# **19.E5 (a small study).** Train the digits with `bound="iwae"` and `num_samples` 1, 5 and 50 for the same number of epochs, then for the same number of *seconds* (`minutes=...`). Score all with `runs.evaluate`. Which comparison would you print in a paper, and what would you print beside it?
#
# ## Summary
#
# - *Averages.* Blocks, shards and machines count by their rows. Then the bound, and its gradient, are those of the whole (19.1, 19.2).
# - *Checkpoints.* Weights, moments, place and random state: with all four a killed run ends, on the same machine, bit for bit as if nothing had happened.
# - *Precision.* The networks may be coarse; the log densities may not.
# - *Tables.* A cell is one run, read with its epochs, its seed, its standard error over images, and a score that is itself a bound.
#
# So, what has to change at scale? Everything around the line. Not the line.
#
# **Sources.** Y. Burda, R. Grosse & R. Salakhutdinov (2016), *Importance weighted autoencoders*, ICLR. G. Tucker, D. Lawson, S. Gu & C. J. Maddison (2019), *Doubly reparameterized gradient estimators for Monte Carlo objectives*, ICLR. D. P. Kingma & J. Ba (2015), *Adam: a method for stochastic optimization*, ICLR. P. Micikevicius et al. (2018), *Mixed precision training*, ICLR. P. Goyal et al. (2017), *Accurate, large minibatch SGD: training ImageNet in 1 hour*, arXiv:1706.02677.
#
# **Next.** Every bound so far was computed by code that could have been wrong. What do the mistakes look like? [Chapter 20](20_the_bug_museum.ipynb): *The bug museum*.

# %% [markdown]
# ## Solutions


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def mean_gradient_solution(gradients, sizes):
    return (sizes / sizes.sum()) @ gradients


ch19.mean_gradient.check(mean_gradient_solution)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def log_mean_weight_solution(pieces):
    totals = np.array([np.logaddexp.reduce(piece) for piece in pieces])
    return np.logaddexp.reduce(totals) - math.log(sum(len(piece) for piece in pieces))


ch19.log_mean_weight.check(log_mean_weight_solution)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def rate_at_solution(epoch):
    stage = 0
    while epoch >= (3 ** (stage + 1) - 1) // 2:
        stage += 1
    return 10 ** (-3 - stage / 7)


ch19.rate_at.check(rate_at_solution)


# %% jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
def bytes_of_a_checkpoint_solution(sizes):
    parameters = sum((inputs + 1) * outputs for inputs, outputs in itertools.pairwise(sizes))
    return 3 * 4 * parameters


ch19.bytes_of_a_checkpoint.check(bytes_of_a_checkpoint_solution)

# %% [markdown] jupyter={"source_hidden": true} tags=["solution", "hide-cell"]
# <details><summary>19.E5: what to look for</summary>
#
# For the same epochs more draws win; for the same seconds the order can turn round, since a step with 50 draws costs several times as much. Both are fair answers to different questions. Beside either print the other axis, the number of seeds, and the standard error over images.
#
# </details>
