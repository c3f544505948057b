"""How long until a posterior? ``fit_posterior`` beside Pyro's SVI, in one run.

Three posteriors of Part I, each with a full-rank Normal in the same unconstrained coordinates, from the same start
(zeros), on one thread each. Pyro has its ``AutoMultivariateNormal`` and Adam, at three learning rates, of which the
best counts; its clock runs during the steps only, not while we look how far it has come. The distance to the family's
own optimum is exact for the regression (the Kullback-Leibler divergence of two Normals); for the other two it is the
frozen ELBO over 32,768 draws that neither saw.

    python -m pip install -c constraints.txt -e '.[bench]'
    python benchmarks/posteriors.py            # up to twelve minutes; writes benchmarks/results/posteriors.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import Bernoulli, HalfCauchy, Normal
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor
from torch.distributions import MultivariateNormal, constraints, kl_divergence

from vi_tutorial import data, models
from vi_tutorial.frozen import reparameterise, standardised_noise
from vi_tutorial.inference import Latent, fit_posterior
from vi_tutorial.latents import Space, unconstrained

RATES = (0.003, 0.01, 0.03)
CHUNK = 200
CLOSE = 1e-2
"""How near to the optimum, in nats, Pyro is asked to come."""
RESULTS = Path(__file__).parent / "results" / "posteriors.json"


class Problem(NamedTuple):
    """One posterior, written for both libraries, and how far a q is from the family's optimum, in nats."""

    name: str
    log_joint: Callable[[dict[str, Tensor]], Tensor]
    latents: dict[str, Any]
    pyro_model: Callable[[], None]
    gap: Callable[[MultivariateNormal], float]


def diabetes() -> Problem:
    """Linear regression with known noise: ten coefficients, collinear columns; the posterior is Normal."""
    table = data.diabetes()
    design = (table.x - table.x.mean(0)) / table.x.std(0)
    response = table.y - table.y.mean()
    model = models.linear_regression(design, prior_scale=30.0, noise_scale=54.0)
    posterior = model.posterior(response)

    def pyro_model() -> None:
        z = pyro.sample("z", Normal(0.0, 30.0).expand([10]).to_event(1))
        pyro.sample("x", Normal(design @ z, 54.0).to_event(1), obs=response)

    given = model.given(response)
    return Problem(
        "diabetes",
        lambda z: given(z["z"]),
        {"z": Latent(constraints.real, (10,))},
        pyro_model,
        lambda q: kl_divergence(q, posterior).item(),
    )


def eight_schools() -> Problem:
    """The hierarchical model, non-centred."""
    schools = data.eight_schools()

    def log_joint(z: dict[str, Tensor]) -> Tensor:
        effect = z["mu"][:, None] + z["tau"][:, None] * z["standardised"]
        return (
            Normal(0.0, 5.0).log_prob(z["mu"])
            + HalfCauchy(5.0).log_prob(z["tau"])
            + Normal(0.0, 1.0).log_prob(z["standardised"]).sum(-1)
            + Normal(effect, schools.standard_error).log_prob(schools.effect).sum(-1)
        )

    def pyro_model() -> None:
        mu = pyro.sample("mu", Normal(0.0, 5.0))
        tau = pyro.sample("tau", HalfCauchy(5.0))
        standardised = pyro.sample("standardised", Normal(0.0, 1.0).expand([8]).to_event(1))
        pyro.sample("x", Normal(mu + tau * standardised, schools.standard_error).to_event(1), obs=schools.effect)

    latents = {"mu": constraints.real, "tau": constraints.positive, "standardised": Latent(constraints.real, (8,))}
    return _with_frozen_gap("eight schools", log_joint, latents, pyro_model)


def breast_cancer() -> Problem:
    """Logistic regression on thirty standardised columns and an intercept."""
    table = data.breast_cancer()
    design = (table.x - table.x.mean(0)) / table.x.std(0)

    def log_joint(z: dict[str, Tensor]) -> Tensor:
        logits = z["intercept"][:, None] + z["slope"] @ design.mT
        return (
            Normal(0.0, 1.0).log_prob(z["intercept"])
            + Normal(0.0, 1.0).log_prob(z["slope"]).sum(-1)
            + Bernoulli(logits=logits).log_prob(table.y).sum(-1)
        )

    def pyro_model() -> None:
        intercept = pyro.sample("intercept", Normal(0.0, 1.0))
        slope = pyro.sample("slope", Normal(0.0, 1.0).expand([30]).to_event(1))
        pyro.sample("x", Bernoulli(logits=intercept + design @ slope).to_event(1), obs=table.y)

    latents = {"intercept": constraints.real, "slope": Latent(constraints.real, (30,))}
    return _with_frozen_gap("breast cancer", log_joint, latents, pyro_model)


def _with_frozen_gap(
    name: str, log_joint: Callable[..., Tensor], latents: dict[str, Any], pyro_model: Callable[[], None]
) -> Problem:
    space = Space(latents)
    log_target = unconstrained(log_joint, space)
    noise = standardised_noise(32_768, space.dim, seed=12345)

    def frozen_elbo(q: MultivariateNormal) -> float:
        with torch.no_grad():
            return (log_target(reparameterise(q, noise)).mean() + q.entropy()).item()

    optimum = frozen_elbo(fit_posterior(log_joint, latents, num_draws=2048, seed=1).q)
    return Problem(name, log_joint, latents, pyro_model, lambda q: optimum - frozen_elbo(q))


def ours(problem: Problem, repeats: int) -> dict[str, Any]:
    """Seconds of several cold starts, and the gap that is left."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        posterior = fit_posterior(problem.log_joint, problem.latents)
        seconds.append(time.perf_counter() - started)
    return {"seconds": statistics.median(seconds), "seconds_of_each": seconds, "gap": problem.gap(posterior.q)}


def pyros(problem: Problem, rate: float, budget: float) -> dict[str, Any]:
    """Seconds and steps until the gap is below :data:`CLOSE`, or what was left when the budget was spent."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoMultivariateNormal(problem.pyro_model, init_loc_fn=pyro.infer.autoguide.init_to_median)
    svi = SVI(problem.pyro_model, guide, pyro.optim.Adam({"lr": rate}), Trace_ELBO())
    svi.step()
    spent, steps, gap = 0.0, 1, float("inf")
    while spent < budget and gap > CLOSE:
        started = time.perf_counter()
        for _ in range(CHUNK):
            svi.step()
        spent += time.perf_counter() - started
        steps += CHUNK
        with torch.no_grad():
            q = guide.get_posterior()
        gap = problem.gap(MultivariateNormal(q.loc, scale_tril=q.scale_tril))
    return {"learning_rate": rate, "seconds": spent, "steps": steps, "gap": gap, "reached": gap <= CLOSE}


def main() -> None:
    """Run all three and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=75.0, help="seconds of Pyro's own steps per learning rate")
    parser.add_argument("--repeats", type=int, default=5, help="cold starts of fit_posterior")
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    rows = []
    for make in (diabetes, eight_schools, breast_cancer):
        problem = make()
        mine = ours(problem, options.repeats)
        theirs = [pyros(problem, rate, options.budget) for rate in RATES]
        best = min(theirs, key=lambda run: (not run["reached"], run["seconds"] if run["reached"] else run["gap"]))
        rows.append(
            {
                "problem": problem.name,
                "fit_posterior": mine,
                "pyro": theirs,
                "best_of_pyro": best,
                "ratio": best["seconds"] / mine["seconds"],
                "ratio_is_a_lower_bound": not best["reached"],
            }
        )
        print(
            f"{problem.name}: fit_posterior {mine['seconds']:.2f} s, {mine['gap']:.1e} nats from the optimum; Pyro "
            f"(learning rate {best['learning_rate']}) {best['seconds']:.1f} s, {best['gap']:.1e} nats; ratio "
            f"{'at least ' if not best['reached'] else ''}{rows[-1]['ratio']:.0f}",
            flush=True,
        )
    report = {
        "what": "seconds from a cold start: fit_posterior to its end, Pyro's SVI to within 1e-2 nats of the optimum",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "pyro": pyro.__version__},
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
