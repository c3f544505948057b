"""Which gradient trains a VAE of eight bits? Seven ways and a codebook, judged by enumeration, over five seeds.

The VAE of chapter 17, 256 states, trained with the exact gradient and with six estimators of four draws. For one seed
all start with the same networks and see the same minibatches, so what is compared is the difference to the exact
gradient for each seed. The KL term: in closed form where the gradient is pathwise, since a sampled log q adds noise and
nothing else there; sampled with the rest of log w for the score function and leave one out, where log q cancels a part
of the spread of log p. Beside them the VQ-VAE with 256 codes, from two starts, with the uniform prior and with a prior
fitted to the use of its codes. Everything is measured after 200 and after 800 steps, at three rates of Adam.

    python benchmarks/discrete.py              # about five minutes on one thread; writes results/discrete.json
"""

from __future__ import annotations

import itertools
import json
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, kl_divergence
from torch.nn.functional import softplus

from vi_tutorial import data, training
from vi_tutorial.distributions import bernoulli
from vi_tutorial.elbo import draw, elbo, elbo_leave_one_out, elbo_score_function
from vi_tutorial.families import Fixed
from vi_tutorial.models import LatentVariableModel
from vi_tutorial.networks import BernoulliHead, mlp
from vi_tutorial.objectives import relaxed_objective

PIXELS, BITS, HIDDEN, DRAWS, CODES = 64, 8, 64, 4, 256
SEEDS, STEPS, BATCH_SIZE, RATE, OTHER_RATES = range(5), (200, 800), 50, 1e-2, (3e-3, 3e-2)
COMMITMENT, SMOOTHING = 0.25, 0.1
STATES = torch.tensor(list(itertools.product((0.0, 1.0), repeat=BITS)), dtype=torch.float64)
RESULTS = Path(__file__).parent / "results" / "discrete.json"

Objective = Callable[[LatentVariableModel, Tensor, Tensor], Tensor]


class StraightThrough(Bernoulli):
    """A hard bit with the made-up derivative ∂z/∂p = 1."""

    has_rsample = True

    def made_up(self, z: Tensor) -> Tensor:
        """∂z/∂p."""
        return torch.ones_like(z)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """The value of a hard draw, a slope in p."""
        z = self.sample(torch.Size(sample_shape))
        p = self.probs.expand_as(z)
        return z + self.made_up(z) * (p - p.detach())


class ReinMax(StraightThrough):
    """The same with ∂z/∂p = 1 / 2q(z): for one bit, ReinMax of Liu et al. (2023)."""

    def made_up(self, z: Tensor) -> Tensor:
        """∂z/∂p."""
        p = self.probs.detach()
        return 0.5 / torch.where(z == 1, p, 1 - p)


def log_joint_table(model: LatentVariableModel, x: Tensor) -> Tensor:
    """log p(x, z) for each digit and state, (N, 256)."""
    pixels = model.likelihood.network(STATES)
    return x @ pixels.T - softplus(pixels).sum(-1) - BITS * math.log(2)


def exact_elbo(model: LatentVariableModel, x: Tensor, logits: Tensor) -> Tensor:
    """The ELBO as a sum over all states."""
    log_q = logits @ STATES.T - softplus(logits).sum(-1, keepdim=True)
    return (log_q.exp() * (log_joint_table(model, x) - log_q)).sum(-1)


def made_up(bit: type[StraightThrough]) -> Objective:
    """The mean log likelihood of hard draws with a made-up slope, minus the KL in closed form."""

    def objective(model: LatentVariableModel, x: Tensor, logits: Tensor) -> Tensor:
        draws = draw(model.log_likelihood(x), Independent(bit(logits=logits), 1), DRAWS)
        return elbo(draws.log_joint) - kl_divergence(bernoulli(logits), model.prior().expand(logits.shape[:1]))

    return objective


def soft(temperature: float) -> Objective:
    """Gumbel-softmax at one temperature."""
    return lambda model, x, logits: relaxed_objective(model, x, bernoulli(logits), temperature, DRAWS)


METHODS: dict[str, Objective] = {
    "exact": exact_elbo,
    "score function": lambda model, x, logits: elbo_score_function(model.given(x), bernoulli(logits), DRAWS),
    "leave one out": lambda model, x, logits: elbo_leave_one_out(model.given(x), bernoulli(logits), DRAWS),
    "straight-through": made_up(StraightThrough),
    "ReinMax": made_up(ReinMax),
    "Gumbel, τ = 1": soft(1.0),
    "Gumbel, τ = 0.1": soft(0.1),
}
SOFT = {"Gumbel, τ = 1": 1.0, "Gumbel, τ = 0.1": 0.1}
STARTS = ("box", "digits")


def train(
    objective: Callable[[Tensor], Tensor],
    parameters: list[nn.Parameter],
    x: Tensor,
    seed: int,
    rate: float,
    measure: Callable[[], dict[str, float]],
) -> dict[int, dict[str, float]]:
    """Adam over minibatches; what is measured after each of STEPS."""
    found: dict[int, dict[str, float]] = {}

    def look(step: int) -> None:
        if step in STEPS:
            with torch.no_grad(), torch.random.fork_rng():
                found[step] = measure()

    training.fit(
        objective,
        torch.optim.Adam(parameters, lr=rate),
        x,
        num_steps=STEPS[-1],
        batch_size=BATCH_SIZE,
        generator=torch.Generator().manual_seed(seed),
        callback=look,
    )
    return found


def run_bits(seen: Tensor, held_out: Tensor, method: str, seed: int, rate: float) -> dict[int, dict[str, float]]:
    """One VAE of eight bits."""
    torch.manual_seed(seed)
    model = LatentVariableModel(
        Fixed(bernoulli, logits=torch.zeros(BITS)), BernoulliHead(mlp(BITS, HIDDEN, PIXELS), PIXELS)
    )
    q = BernoulliHead(mlp(PIXELS, HIDDEN, BITS), BITS)

    def measure() -> dict[str, float]:
        logits = q.parameters_at(held_out)
        row = {
            "elbo": exact_elbo(model, held_out, logits).mean().item(),
            "log_evidence": log_joint_table(model, held_out).logsumexp(-1).mean().item(),
        }
        if method in SOFT:
            torch.manual_seed(0)
            reported = relaxed_objective(model, held_out, bernoulli(logits), SOFT[method], 200)
            row["reported"] = reported.mean().item()
        return row

    objective = METHODS[method]
    parameters = [*model.parameters(), *q.parameters()]
    return train(lambda x: objective(model, x, q.parameters_at(x)), parameters, seen, seed, rate, measure)


class Codebook(nn.Module):
    """Code number z, (K, N), to Bernoulli pixels."""

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.codes, self.decoder = nn.Parameter(codes), mlp(2, HIDDEN, PIXELS)

    def forward(self, z: Tensor) -> Independent:
        """The pixels of each code."""
        return bernoulli(self.decoder(self.codes[z.long()]))


def run_codebook(seen: Tensor, held_out: Tensor, start: str, seed: int, rate: float) -> dict[int, dict[str, float]]:
    """One VQ-VAE, with 1/M as prior, and with the use of the codes (each count raised by SMOOTHING) in its place."""
    torch.manual_seed(seed)
    encoder = mlp(PIXELS, HIDDEN, 2)
    some = encoder(seen[torch.randperm(len(seen))[:CODES]]).detach()
    codes = some if start == "digits" else (2 * torch.rand(CODES, 2) - 1) / CODES
    book = Codebook(codes)
    model = LatentVariableModel(Fixed(Categorical, logits=torch.zeros(CODES)), book)

    def nearest(h: Tensor) -> Tensor:
        return torch.cdist(h, book.codes).argmin(-1)

    def objective(x: Tensor) -> Tensor:
        h = encoder(x)
        e = book.codes[nearest(h)]
        pixels = book.decoder(h + (e - h).detach())
        pull = (h.detach() - e).square().sum(-1) + COMMITMENT * (h - e.detach()).square().sum(-1)
        return (x * pixels - softplus(pixels)).sum(-1) - math.log(CODES) - pull

    def measure() -> dict[str, float]:
        counts = torch.bincount(nearest(encoder(seen)), minlength=CODES).double()
        pi = (counts + SMOOTHING) / (counts + SMOOTHING).sum()
        pixels = book.decoder(book.codes)
        log_likelihood = held_out @ pixels.T - softplus(pixels).sum(-1)
        code = nearest(encoder(held_out))
        row = {"used": float((counts > 0).sum()), "held_out_on_unused": float((counts[code] == 0).sum())}
        for suffix, log_prior in (("", torch.full((CODES,), -math.log(CODES))), ("_usage", pi.log())):
            table = log_likelihood + log_prior
            row[f"elbo{suffix}"] = table.gather(1, code[:, None]).mean().item()
            row[f"log_evidence{suffix}"] = table.logsumexp(-1).mean().item()
            row[f"approximation_gap{suffix}"] = (table.logsumexp(-1) - table.amax(-1)).mean().item()
        return row

    return train(objective, [*model.parameters(), *encoder.parameters()], seen, seed, rate, measure)


def spread(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation."""
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values)}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each rate, number of steps and method: mean ± s.d. over the seeds, of it and of its difference to exact."""
    table = []
    for rate, steps, method in dict.fromkeys((row["rate"], row["steps"], row["method"]) for row in rows):
        chosen, exact = (
            {row["seed"]: row for row in rows if (row["rate"], row["steps"], row["method"]) == (rate, steps, name)}
            for name in (method, "exact")
        )
        entry: dict[str, Any] = {"rate": rate, "steps": steps, "method": method}
        for name in [key for key in chosen[0] if key not in ("rate", "steps", "method", "seed", "seconds")]:
            entry[name] = spread([chosen[seed][name] for seed in SEEDS])
        for suffix in ("", "_usage"):
            if f"elbo{suffix}" in chosen[0]:
                paired = [chosen[seed][f"elbo{suffix}"] - exact[seed]["elbo"] for seed in SEEDS]
                entry[f"elbo{suffix}_minus_exact"] = spread(paired)
        table.append(entry)
    return table


def processor() -> str:
    """The name of the processor, where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def main() -> None:
    """Train them all, and write what was measured after each rate."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    digits = data.digits()
    seen, held_out = ((counts >= 8).double() for counts in (digits.train, digits.test))
    rows: list[dict[str, Any]] = []
    for rate in (RATE, *OTHER_RATES):
        for seed in SEEDS:
            for method in (*METHODS, *STARTS):
                if method in STARTS and rate != RATE:
                    continue
                started = time.perf_counter()
                run = run_codebook if method in STARTS else run_bits
                name = f"VQ, {method}" if method in STARTS else method
                found = run(seen, held_out, method, seed, rate)
                seconds = time.perf_counter() - started
                rows += [
                    {"method": name, "seed": seed, "rate": rate, "steps": steps, "seconds": seconds} | row
                    for steps, row in found.items()
                ]
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
        report = {
            "what": "held-out ELBO and log p(x), nats per binary digit, by enumeration; VAEs of 256 states",
            "commit": commit.stdout.strip(),
            "machine": f"{platform.system()} {platform.machine()}, {processor()}, one thread",
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "num_held_out": len(held_out),
            "num_training": len(seen),
            "rows": rows,
            "summary": summary(rows),
        }
        RESULTS.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
