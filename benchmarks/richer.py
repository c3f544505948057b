"""What do richer posteriors and a richer prior buy? Five families and a VampPrior on the digits, over five seeds.

The two-latent VAE of chapter 10, trained from scratch with each, by the same line: one draw, the mean log weight. For
one seed all start with the same decoder and see the same minibatches, so what is compared is the difference for each
seed. Measured as in encoders.py: log p(x) by a sum over a grid; the ELBO by Gauss-Hermite quadrature where q is a
Normal or a mixture, and by many draws, with their standard error, where q is a flow.

    python benchmarks/richer.py              # about ten minutes on one thread; writes results/richer.json
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any, ClassVar

import torch
import zuko
from encoders import HIDDEN, LATENTS, MEASURED, NUM_STEPS, SEEDS, log_evidence
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, constraints
from torch.nn.functional import softplus

from vi_tutorial import data, families, quadrature, training
from vi_tutorial.elbo import draw, elbo
from vi_tutorial.models import LatentVariableModel
from vi_tutorial.networks import BernoulliHead, DiagonalNormalHead, FullNormalHead, Head, MixtureNormalHead, mlp

Distribution.set_default_validate_args(True)  # zuko turns torch's checks of arguments off as it is imported

KINDS = ("diagonal", "full", "mixture", "planar", "spline", "vamp")
PIXELS, COMPONENTS, LAYERS, PSEUDO_INPUTS = 64, 3, 6, 50
RESULTS = Path(__file__).parent / "results" / "richer.json"


class Planar(Distribution):
    r"""A Normal bent by planar layers, y + u tanh(w·y + b); the density of its own draws."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(self, base: Distribution, u: Tensor, w: Tensor, b: Tensor) -> None:
        self.base, self.w, self.b = base, w, b  # u and w: (*batch, layers, dim), b: (*batch, layers)
        along = (w * u).sum(-1, keepdim=True)
        allowed = softplus(along + math.log(math.e - 1)) - 1  # above -1, where a layer stops being invertible
        self.u = u + (allowed - along) * w / w.square().sum(-1, keepdim=True)
        self.last: tuple[Tensor, Tensor] | None = None
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw from the base and bend; the density of the draws is kept, as it comes for nothing."""
        z = self.base.rsample(sample_shape)
        log_q = self.base.log_prob(z)
        for u, w, b in zip(self.u.unbind(-2), self.w.unbind(-2), self.b.unbind(-1), strict=True):
            height = ((w * z).sum(-1) + b).tanh()
            log_q = log_q - (1 + (1 - height.square()) * (w * u).sum(-1)).log()
            z = z + u * height.unsqueeze(-1)
        self.last = z, log_q
        return z

    def log_prob(self, z: Tensor) -> Tensor:
        """Of the last draws; anything else would need the inverse."""
        if self.last is None or self.last[0] is not z:
            raise NotImplementedError("only of the last draws")
        return self.last[1]


class PlanarHead(Head):
    """A diagonal Normal and planar layers, all of whose numbers a network gives."""

    @staticmethod
    def num_outputs(dim: int) -> int:
        """A mean and a log scale for the base; u, w and b for each layer."""
        return 2 * dim + LAYERS * (2 * dim + 1)

    def distribution(self, numbers: Tensor) -> Distribution:
        """The flow with these numbers."""
        layers = (*numbers.shape[:-1], LAYERS, self.dim)
        size = LAYERS * self.dim
        loc, log_scale, u, w, b = numbers.split([self.dim, self.dim, size, size, LAYERS], -1)
        return Planar(Independent(Normal(loc, log_scale.exp()), 1), u.reshape(layers), w.reshape(layers), b)


def make_q(kind: str) -> nn.Module:
    """An encoder of one family, with one hidden layer of the same width."""
    if kind == "spline":
        flow = zuko.flows.NSF(LATENTS, PIXELS, transforms=2, hidden_features=(HIDDEN,), activation=nn.Tanh)
        return zuko.flows.Flow(flow.transform.inv, flow.base)  # turned round: the cheap direction is the draw
    if kind == "mixture":
        size = MixtureNormalHead.num_outputs(LATENTS, COMPONENTS)
        return MixtureNormalHead(mlp(PIXELS, HIDDEN, size), LATENTS, COMPONENTS)
    head = {"full": FullNormalHead, "planar": PlanarHead}.get(kind, DiagonalNormalHead)
    return head(mlp(PIXELS, HIDDEN, head.num_outputs(LATENTS)), LATENTS)


def log_weight(model: LatentVariableModel, x: Tensor, q: Distribution, num_draws: int) -> Tensor:
    """That of vi_tutorial.elbo.draw; a flow from zuko gives draws and density together, without inverting itself."""
    if isinstance(q, zuko.distributions.NormalizingFlow):
        z, log_q = q.rsample_and_log_prob((num_draws,))
        return model.given(x)(z) - log_q
    return draw(model.given(x), q, num_draws).log_weight


def train_vae(x: Tensor, kind: str, seed: int, num_steps: int = NUM_STEPS) -> tuple[LatentVariableModel, nn.Module]:
    """A decoder and an encoder of one kind, trained together; the pseudo-inputs of a VampPrior start at digits."""
    torch.manual_seed(seed)
    model = LatentVariableModel(families.standard_normal(LATENTS), BernoulliHead(mlp(LATENTS, HIDDEN, PIXELS), PIXELS))
    q = make_q(kind)
    if kind == "vamp":
        model.prior = families.VampPrior(q, x[torch.randperm(len(x))[:PSEUDO_INPUTS]])
    training.fit(
        lambda x: elbo(log_weight(model, x, q(x), 1)),
        torch.optim.Adam(list(dict.fromkeys([*model.parameters(), *q.parameters()])), lr=5e-3),
        x,
        num_steps=num_steps,
        batch_size=100,
        generator=torch.Generator().manual_seed(seed),
    )
    return model, q


@torch.no_grad()
def mean_elbo(model: LatentVariableModel, x: Tensor, q: nn.Module, num_draws: int) -> tuple[float, float]:
    """The mean ELBO in nats per digit and its standard error: zero where q is a Normal or a mixture, by quadrature."""
    bounds, variances = [], []
    for rows in x.split(100):
        encoded = q(rows)
        if isinstance(encoded, (Planar, zuko.distributions.NormalizingFlow)):
            weights = log_weight(model, rows, encoded, num_draws)
            bounds.append(weights.mean(0))
            variances.append(weights.var(0) / num_draws)
        else:
            bounds.append(quadrature.expected_elbo(model.given(rows), encoded, order=12))
            variances.append(torch.zeros(len(rows)))
    return torch.cat(bounds).mean().item(), torch.cat(variances).sum().sqrt().item() / len(x)


def measure(seen: Tensor, held_out: Tensor, kind: str, seed: int) -> dict[str, Any]:
    """Train one VAE and give its mean log evidence and ELBO on both sets, in nats per digit."""
    started = time.perf_counter()
    model, q = train_vae(seen, kind, seed)
    grid = {"step": 1 / 16, "reach": 6.0}
    if kind == "vamp":  # nothing ties its codes to the origin: the grid follows them
        with torch.no_grad():
            farthest = max((q(x).mean.abs() + 6 * q(x).stddev).max().item() for x in (held_out, seen))
        grid = {"step": 1 / 8, "reach": float(math.ceil(farthest))}
    row: dict[str, Any] = {"kind": kind, "seed": seed, "training_seconds": time.perf_counter() - started}
    for where, x, num_draws in (("held_out", held_out, 500), ("training", seen, 100)):
        bound, error = mean_elbo(model, x, q, num_draws)
        row |= {f"log_evidence_{where}": log_evidence(model, x, **grid).mean().item(), f"elbo_{where}": bound}
        row |= {f"elbo_{where}_standard_error": error}
    finer = log_evidence(model, held_out, step=grid["step"] / 1.5, reach=grid["reach"] + 3).mean().item()
    return row | {"reach": grid["reach"], "moved_by_a_finer_wider_grid": finer - row["log_evidence_held_out"]}


def values(rows: list[dict[str, Any]], name: str, kind: str) -> list[float]:
    """One quantity over the seeds; the gap is what the ELBO lacks of log p(x)."""
    chosen = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["seed"])
    if name.startswith("gap_"):
        where = name.removeprefix("gap_")
        return [row[f"log_evidence_{where}"] - row[f"elbo_{where}"] for row in chosen]
    return [row[name] for row in chosen]


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """For every quantity and kind, mean and standard deviation over seeds: of it, and of its difference to diagonal."""
    table: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for name in (*MEASURED, "gap_held_out", "gap_training"):
        reference = values(rows, name, "diagonal")
        table[name] = {}
        for kind in KINDS:
            of_kind = values(rows, name, kind)
            paired = [one - other for one, other in zip(of_kind, reference, strict=True)]
            table[name][kind] = {
                what: {"mean": statistics.fmean(v), "sd": statistics.stdev(v)}
                for what, v in (("value", of_kind), ("difference", paired))
            }
    return table


def main() -> None:
    """Train thirty VAEs and write what was measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    digits = data.digits()
    seen, held_out = ((counts >= 8).double() for counts in (digits.train, digits.test))
    rows = []
    for seed in SEEDS:
        for kind in KINDS:
            rows.append(measure(seen, held_out, kind, seed))
            print({k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    report = {
        "what": "mean log p(x) and ELBO in nats per binary digit; two latents; five posterior families and a VampPrior",
        "commit": commit.stdout.strip(),
        "machine": f"{platform.system()} {platform.machine()}, one thread",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "zuko": zuko.__version__},
        "num_held_out": len(held_out),
        "num_training": len(seen),
        "rows": rows,
        "summary": summary(rows),
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
