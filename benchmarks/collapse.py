"""Which remedies mend which collapse? Two VAEs that collapse for two reasons, six remedies, five seeds.

The first has a Normal decoder whose σ is fixed at 1, on pixels between 0 and 1; the second a decoder that sees all
earlier pixels, on binary pixels. For one seed all variants of one VAE start with the same networks and see the same
minibatches. Every variant is measured by the ELBO and its two terms, by importance sampling with 1,000 draws, and by
how well a digit can be told from one draw of its code; whatever it was trained on.

    python benchmarks/collapse.py              # about five minutes on one thread; writes results/collapse.json
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.nn.functional import binary_cross_entropy_with_logits

from vi_tutorial import data, evaluation, families, objectives, training
from vi_tutorial.distributions import diagonal_normal
from vi_tutorial.elbo import draw, elbo
from vi_tutorial.models import LatentVariableModel
from vi_tutorial.networks import DiagonalNormalHead, NormalHead, mlp

PIXELS, LATENTS, HIDDEN, CONTEXT = 64, 8, 64, 256
SEEDS, NUM_STEPS = range(5), 1000
FLOOR = 0.25  # nats for each latent: of free bits, and, by γ² / 2, of the normalised means
KINDS = {
    "variance": ("σ = 1", "annealing", "free bits", "normalised means", "β = 0.05", "σ learned", "no latent"),
    "decoder": ("strong decoder", "annealing", "free bits", "normalised means", "β = ½", "weak decoder", "no latent"),
}
RESULTS = Path(__file__).parent / "results" / "collapse.json"


class Earlier(nn.Module):
    """For each pixel a number that depends on the pixels before it: a masked network with one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.outputs = nn.Linear(PIXELS, CONTEXT), nn.Linear(CONTEXT, PIXELS)
        pixel, seen = torch.arange(PIXELS), torch.arange(CONTEXT) % (PIXELS - 1)  # a unit sees pixels up to this one
        self.register_buffer("into", (pixel <= seen[:, None]).to(self.hidden.weight))
        self.register_buffer("out_of", (seen < pixel[:, None]).to(self.hidden.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Shape of ``x``: ``(*batch, PIXELS)``."""
        hidden = nn.functional.linear(x, self.hidden.weight * self.into, self.hidden.bias).relu()
        return nn.functional.linear(hidden, self.outputs.weight * self.out_of, self.outputs.bias)


class Autoregressive(Distribution):
    """Binary pixels, each given those before it: its logit is the code's number plus the context's."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, logits: Tensor, context: Callable[[Tensor], Tensor]) -> None:
        self.logits, self.context = logits, context
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=False)

    def log_prob(self, x: Tensor) -> Tensor:
        """Sum over the pixels of log p(x_d | x_<d, z)."""
        logits = self.logits + self.context(x)
        return -binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


class AutoregressiveHead(nn.Module):
    """A decoder that adds what the code says to what the earlier pixels say."""

    def __init__(self, context: nn.Module) -> None:
        super().__init__()
        self.network, self.context = mlp(LATENTS, HIDDEN, PIXELS), context

    def forward(self, z: Tensor) -> Autoregressive:
        """The distribution at ``z``."""
        return Autoregressive(self.network(z), self.context)


class Blind(nn.Module):
    """A context that sees no pixel: what is left is a decoder of independent pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of the shape of ``x``."""
        return torch.zeros_like(x)


class NormalisedMeans(nn.Module):
    """An encoder whose means are batch-normalised to mean 0 and standard deviation γ: BN-VAE."""

    def __init__(self, encoder: nn.Module, gamma: float) -> None:
        super().__init__()
        self.encoder, self.gamma = encoder, gamma
        self.normalise = nn.BatchNorm1d(LATENTS, affine=False, momentum=0.02)

    def forward(self, x: Tensor) -> Distribution:
        """The posteriors; in training mode the batch's own statistics, else the running ones."""
        q = self.encoder(x)
        return diagonal_normal(self.gamma * self.normalise(q.mean), q.stddev)


class Prior(nn.Module):
    """The prior, for every datapoint."""

    def forward(self, x: Tensor) -> Distribution:
        """A standard Normal for each row."""
        return diagonal_normal(torch.zeros(len(x), LATENTS), torch.ones(()))


def objective(kind: str, model: LatentVariableModel, q: nn.Module) -> Callable[[Tensor], Tensor]:
    """What one variant maximises."""
    beta = {"annealing": objectives.linear_schedule(NUM_STEPS // 2), "β = 0.05": lambda _: 0.05, "β = ½": lambda _: 0.5}
    done = iter(range(10**9))
    if kind in beta:
        return lambda x: objectives.beta_objective(model, x, q(x), beta[kind](next(done)))
    if kind == "free bits":
        return lambda x: objectives.free_bits_objective(model, x, q(x), FLOOR)
    return lambda x: elbo(draw(model.given(x), q(x), 1).log_weight)


def build(problem: str, kind: str, seed: int) -> tuple[LatentVariableModel, nn.Module]:
    """A decoder and an encoder; for one seed and problem the same networks, whatever the kind."""
    torch.manual_seed(seed)
    q: nn.Module = DiagonalNormalHead(mlp(PIXELS, HIDDEN, 2 * LATENTS), LATENTS)
    likelihood: nn.Module
    if problem == "variance":
        likelihood = NormalHead(mlp(LATENTS, HIDDEN, PIXELS), PIXELS, scale=torch.ones(()))
        likelihood.log_scale.requires_grad_(kind == "σ learned")
    else:
        likelihood = AutoregressiveHead(Blind() if kind == "weak decoder" else Earlier())
    if kind == "normalised means":
        q = NormalisedMeans(q, (2 * FLOOR) ** 0.5)
    if kind == "no latent":  # q is the prior, and the decoder cannot look at z
        q = Prior()
        with torch.no_grad():
            likelihood.network[0].weight.zero_().requires_grad_(False)
    return LatentVariableModel(families.standard_normal(LATENTS), likelihood), q


def train_vae(problem: str, kind: str, seed: int, x: Tensor) -> tuple[LatentVariableModel, nn.Module]:
    """One variant, trained; in evaluation mode."""
    model, q = build(problem, kind, seed)
    learned = [p for p in (*model.parameters(), *q.parameters()) if p.requires_grad]
    training.fit(
        objective(kind, model, q),
        torch.optim.Adam(learned, lr=5e-3),
        x,
        num_steps=NUM_STEPS,
        batch_size=100,
        generator=torch.Generator().manual_seed(seed),
    )
    return model.eval(), q.eval()


@torch.no_grad()
def measure(model: LatentVariableModel, q: nn.Module, digits: data.Images, seen: Tensor, new: Tensor) -> dict[str, Any]:
    """The ledger of held-out digits in nats, the latents in use, and how often the digit is told from its code."""
    codes, terms = q(new), evaluation.rate_distortion(model, new, q(new), num_samples=50)
    estimate = evaluation.importance_sampling(model.given(new), codes, num_samples=1000, chunk_size=100)
    by_code = KNeighborsClassifier(15).fit(q(seen).sample(), digits.train_labels)
    training_terms = evaluation.rate_distortion(model, seen, q(seen), num_samples=10)
    return {
        "rate": terms.rate.mean().item(),
        "elbo": -(terms.rate + terms.distortion).mean().item(),
        "log_evidence": estimate.log_evidence.mean().item(),
        "effective_samples": estimate.effective_sample_size.median().item(),
        "active": int(evaluation.active_units(codes).active.sum()),
        "accuracy": by_code.score(codes.sample(), digits.test_labels),
        "elbo_training": -(training_terms.rate + training_terms.distortion).mean().item(),
        "rate_of_each_latent": objectives.kl_per_latent(codes, model.prior()).mean(0).tolist(),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """For each problem, variant and quantity, the mean and the standard deviation over the seeds."""
    table: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for problem, kinds in KINDS.items():
        table[problem] = {}
        for kind in kinds:
            chosen = [row for row in rows if row["problem"] == problem and row["kind"] == kind]
            table[problem][kind] = {
                name: {"mean": statistics.fmean(values), "sd": statistics.stdev(values)}
                for name in ("rate", "elbo", "log_evidence", "active", "accuracy", "elbo_training")
                for values in [[row[name] for row in chosen]]
            }
    return table


def main() -> None:
    """Train every variant from every seed and write what was measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    digits = data.digits()
    sets = {
        "variance": (digits.train / 16, digits.test / 16),
        "decoder": ((digits.train >= 8).double(), (digits.test >= 8).double()),
    }
    rows = []
    for seed in SEEDS:
        for problem, kinds in KINDS.items():
            for kind in kinds:
                started = time.perf_counter()
                torch.manual_seed(seed)
                model, q = train_vae(problem, kind, seed, sets[problem][0])
                seconds = time.perf_counter() - started
                rows.append({"problem": problem, "kind": kind, "seed": seed, "training_seconds": seconds})
                rows[-1] |= measure(model, q, digits, *sets[problem])
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    report = {
        "what": "rate, ELBO and log p(x) in nats per held-out digit; two VAEs that collapse, and what is done about it",
        "commit": commit.stdout.strip(),
        "machine": f"{platform.system()} {platform.machine()}, one thread",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "latents": LATENTS,
        "floor_per_latent": FLOOR,
        "rows": rows,
        "summary": summary(rows),
    }
    RESULTS.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
