"""Does a full-covariance encoder help? Diagonal against full, on the binary digits, over five seeds.

The two-latent VAE of chapter 10, trained from scratch with either encoder, and both measured without Monte Carlo noise
on the digits held out: log p(x) by a sum over a grid, the ELBO by Gauss-Hermite quadrature. For one seed both start
with the same decoder and see the same minibatches; what is compared is the difference for each seed.

    python benchmarks/encoders.py              # up to six minutes on one thread; writes results/encoders.json
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, kl_divergence
from torch.nn.functional import softplus

from vi_tutorial import data, families, training
from vi_tutorial.elbo import elbo_analytic_kl
from vi_tutorial.models import LatentVariableModel
from vi_tutorial.networks import BernoulliHead, DiagonalNormalHead, FullNormalHead, mlp

SEEDS = (0, 1, 2, 3, 4)
ENCODERS = {"diagonal": DiagonalNormalHead, "full": FullNormalHead}
MEASURED = ("log_evidence_held_out", "elbo_held_out", "log_evidence_training", "elbo_training")
NUM_STEPS, HIDDEN, LATENTS = 2250, 64, 2
RESULTS = Path(__file__).parent / "results" / "encoders.json"


def train_vae(x: Tensor, kind: str, seed: int) -> tuple[LatentVariableModel, torch.nn.Module]:
    """A decoder and an encoder of one kind, trained together; the closed-form KL, one draw for the rest."""
    torch.manual_seed(seed)
    model = LatentVariableModel(families.standard_normal(LATENTS), BernoulliHead(mlp(LATENTS, HIDDEN, 64), 64))
    head = ENCODERS[kind]
    q = head(mlp(64, HIDDEN, head.num_outputs(LATENTS)), LATENTS)
    training.fit(
        lambda x: elbo_analytic_kl(lambda z: model.likelihood(z).log_prob(x), q(x), model.prior()),
        torch.optim.Adam([*model.parameters(), *q.parameters()], lr=5e-3),
        x,
        num_steps=NUM_STEPS,
        batch_size=100,
        generator=torch.Generator().manual_seed(seed),
    )
    return model, q


def _placed(q: Distribution, noise: Tensor) -> Tensor:
    """mean + C·noise; noise has the shape (*samples, 1, L)."""
    if isinstance(q, MultivariateNormal):
        return q.mean + (q.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
    return q.mean + q.stddev * noise


@torch.no_grad()
def log_evidence(model: LatentVariableModel, x: Tensor, step: float = 1 / 16, reach: float = 6.0) -> Tensor:
    """log p(x), one number per digit: the sum over the cells of a grid, as one matrix product."""
    axis = torch.linspace(-reach, reach, round(2 * reach / step) + 1)
    z = torch.cartesian_prod(axis, axis)
    logits = model.likelihood.parameters_at(z)
    offset = model.prior().log_prob(z) - softplus(logits).sum(-1) + 2 * math.log(step)
    return torch.cat([(rows @ logits.mT + offset).logsumexp(-1) for rows in x.split(100)])


@torch.no_grad()
def expected_elbo(model: LatentVariableModel, x: Tensor, q: torch.nn.Module, order: int = 24) -> Tensor:
    """The ELBO, one number per digit, its expectation over q by Gauss-Hermite quadrature."""
    node, weight = (torch.as_tensor(values) for values in np.polynomial.hermite_e.hermegauss(order))
    nodes, weights = torch.cartesian_prod(node, node), torch.outer(weight, weight).flatten() / weight.sum() ** 2
    bounds = []
    for rows in x.split(100):
        encoded = q(rows)
        log_likelihood = model.likelihood(_placed(encoded, nodes[:, None])).log_prob(rows)
        bounds.append(weights @ log_likelihood - kl_divergence(encoded, model.prior()))
    return torch.cat(bounds)


def measure(seen: Tensor, held_out: Tensor, kind: str, seed: int) -> dict[str, Any]:
    """Train one VAE and give its mean log evidence and ELBO on both sets, in nats per digit."""
    started = time.perf_counter()
    model, q = train_vae(seen, kind, seed)
    numbers = [
        measured.mean().item()
        for x in (held_out, seen)
        for measured in (log_evidence(model, x), expected_elbo(model, x, q))
    ]
    row = {"encoder": kind, "seed": seed, **dict(zip(MEASURED, numbers, strict=True))}
    return row | {"seconds": time.perf_counter() - started}


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """For every quantity, the mean and the standard deviation over seeds: of each encoder, and of full − diagonal."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name in MEASURED:
        values = {kind: [row[name] for row in rows if row["encoder"] == kind] for kind in ENCODERS}
        values["difference"] = [full - diagonal for diagonal, full in zip(*values.values(), strict=True)]
        table[name] = {k: {"mean": statistics.fmean(v), "sd": statistics.stdev(v)} for k, v in values.items()}
    return table


def main() -> None:
    """Train ten VAEs and write what was measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    digits = data.digits()
    seen, held_out = ((counts >= 8).double() for counts in (digits.train, digits.test))
    rows = []
    for seed in SEEDS:
        for kind in ENCODERS:
            rows.append(measure(seen, held_out, kind, seed))
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    report = {
        "what": "mean log p(x) and ELBO in nats per binary digit; two latents; diagonal and full-covariance encoders",
        "commit": commit.stdout.strip(),
        "machine": f"{platform.system()} {platform.machine()}, one thread",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "num_held_out": len(held_out),
        "num_training": len(seen),
        "rows": rows,
        "summary": summary(rows),
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
