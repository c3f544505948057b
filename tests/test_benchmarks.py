"""What benchmarks/README.md says is what was measured."""

from __future__ import annotations

import importlib
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vi_tutorial.data import digits

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def test_the_table_of_posteriors_is_the_stored_result() -> None:
    report = json.loads((FOLDER / "results" / "posteriors.json").read_text(encoding="utf-8"))
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert len(report["rows"]) == 3
    for row in report["rows"]:
        ours, pyro = row["fit_posterior"], row["best_of_pyro"]
        assert row["ratio"] == pyro["seconds"] / ours["seconds"]
        assert row["ratio_is_a_lower_bound"] is not any(run["reached"] for run in row["pyro"])
        sign = "≥ " if row["ratio_is_a_lower_bound"] else ""
        line = (
            f"| {row['problem']} | {ours['seconds']:.2f} s | {ours['gap']:.0e} | {pyro['seconds']:.0f} s "
            f"| {pyro['gap']:.2f} | {sign}{row['ratio']:.0f} |"
        )
        assert line in text


def test_the_table_of_encoders_is_the_stored_result() -> None:
    report = json.loads((FOLDER / "results" / "encoders.json").read_text(encoding="utf-8"))
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for words, name in (("log p(x)", "log_evidence_held_out"), ("ELBO", "elbo_held_out")):
        cells = []
        for kind in ("diagonal", "full", "difference"):
            numbers = np.array(seeds(report, name, kind))
            assert np.isclose(numbers.mean(), report["summary"][name][kind]["mean"])
            assert np.isclose(numbers.std(ddof=1), report["summary"][name][kind]["sd"])
            cells.append(f"{numbers.mean():.2f} ± {numbers.std(ddof=1):.2f}")
        assert f"| {words}, held out | {' | '.join(cells)} |" in text


def test_chapter_10_quotes_the_stored_encoders() -> None:
    report = json.loads((FOLDER / "results" / "encoders.json").read_text(encoding="utf-8"))
    twin = FOLDER.parent / "notebooks" / "src" / "10_the_variational_autoencoder.py"
    text = twin.read_text(encoding="utf-8")
    for words, name in (("log p(x)", "log_evidence_held_out"), ("ELBO", "elbo_held_out")):
        for kind in ("diagonal", "full"):
            numbers = ", ".join(f"{value:.4f}" for value in seeds(report, name, kind))
            assert f'"{kind}, {words}": [{numbers}],' in text
    ahead, spread = (
        [report["summary"][n]["difference"][what] for n in ("log_evidence_held_out", "elbo_held_out")]
        for what in ("mean", "sd")
    )
    prose = " ".join(text.replace("\n#", " ").split())
    assert f"is {ahead[0]:.2f} nats ahead in $\\log p_\\theta(x)$ and {ahead[1]:.2f} in the ELBO" in prose
    assert f"with standard deviations over seeds of {spread[0]:.2f} and {spread[1]:.2f}" in prose


def test_the_table_of_richer_families_is_the_stored_result() -> None:
    report = richer()
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = {(row["kind"], row["seed"]): row for row in report["rows"]}
    assert len(rows) == 30

    def over_seeds(name: str, kind: str) -> Any:
        if name.startswith("gap"):
            log_p, bound = (over_seeds(name.replace("gap", what), kind) for what in ("log_evidence", "elbo"))
            return log_p - bound
        return np.array([rows[kind, seed][name] for seed in range(5)])

    for kind in dict.fromkeys(kind for kind, _ in rows):
        cells = []
        for name in ("log_evidence_held_out", "elbo_held_out", "gap_held_out", "gap_training"):
            numbers = over_seeds(name, kind)
            stored = report["summary"][name][kind]["value"]
            assert np.allclose([numbers.mean(), numbers.std(ddof=1)], [stored["mean"], stored["sd"]])
            cells.append(f"{stored['mean']:.2f} ± {stored['sd']:.2f}")
        for name in ("elbo_held_out", "log_evidence_held_out"):
            paired = over_seeds(name, kind) - over_seeds(name, "diagonal")
            stored = report["summary"][name][kind]["difference"]
            assert np.allclose([paired.mean(), paired.std(ddof=1)], [stored["mean"], stored["sd"]])
            cells.append("" if kind == "diagonal" else f"{stored['mean']:.2f} ± {stored['sd']:.2f}")
        assert f"| {kind} | {' | '.join(cells)} |" in text
    assert max(row["elbo_held_out_standard_error"] for row in report["rows"]) < 0.0045
    assert max(abs(row["moved_by_a_finer_wider_grid"]) for row in report["rows"]) < 1e-5
    for kind in ("planar", "spline", "vamp"):
        assert (over_seeds("elbo_held_out", kind) > over_seeds("elbo_held_out", "diagonal")).all()


def test_chapter_16_quotes_the_stored_families(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    report = richer()
    text = (FOLDER.parent / "notebooks" / "src" / "16_richer_posteriors_and_priors.py").read_text(encoding="utf-8")
    prose = " ".join(text.replace("\n#", " ").split())
    rows = {(row["kind"], row["seed"]): row for row in report["rows"]}

    def over_seeds(name: str, kind: str) -> Any:
        return np.array([rows[kind, seed][name] for seed in range(5)])

    def gap(where: str, kind: str) -> Any:
        return over_seeds(f"log_evidence_{where}", kind) - over_seeds(f"elbo_{where}", kind)

    def gain(name: str, kind: str) -> Any:
        return over_seeds(name, kind) - over_seeds(name, "diagonal")

    change = {
        (where, kind): np.array([paired.mean(), paired.std(ddof=1)])
        for where in ("held_out", "training")
        for kind in ("planar", "spline")
        for paired in [gap(where, kind) - gap(where, "diagonal")]
    }
    said = {key: f"{abs(mean):.2f} ± {sd:.2f}" for key, (mean, sd) in change.items()}
    assert (
        f"held out smaller by {said['held_out', 'planar']} (planar) and {said['held_out', 'spline']} (spline)" in prose
    )
    assert f"larger by {said['training', 'planar']} and {said['training', 'spline']}" in prose
    assert all((mean < 0) == (where == "held_out") for (where, _), (mean, _) in change.items())
    assert all(abs(mean) < 2.78 * sd / 5**0.5 for mean, sd in change.values())  # Student's t, 4 degrees of freedom
    elbo, better = (
        {kind: gain(f"{what}_held_out", kind) for kind in ("planar", "spline", "vamp")}
        for what in ("elbo", "log_evidence")
    )
    assert all(abs(elbo[kind].mean() - 1 / 3) < 0.05 for kind in elbo)
    assert f"(the least: {min(elbo[kind].min() for kind in ('planar', 'spline')):.2f})" in prose
    shares = {kind: better[kind].mean() / elbo[kind].mean() for kind in elbo}
    assert [round(shares[kind], 2) for kind in ("planar", "spline")] == [0.75, 0.6]  # three quarters, three fifths
    vamp = elbo["vamp"]
    spread = f"{vamp.mean():.2f} ± {vamp.std(ddof=1):.2f} nats (five seeds: {vamp.min():.2f} to {vamp.max():.2f})"
    assert f"In the table it gains {spread}" in prose
    growth = {kind: gap("held_out", kind) - gap("training", kind) for kind in ("diagonal", "planar", "spline")}
    means = {kind: f"{numbers.mean():.2f}" for kind, numbers in growth.items()}
    assert f"grows by {means['diagonal']} nats, that of the planar flow by {means['planar']}" in prose
    assert f"of the spline flow by {means['spline']}" in prose
    assert all((growth[kind] < growth["diagonal"]).all() for kind in ("planar", "spline"))
    make_q = importlib.import_module("richer").make_q
    sizes = [
        f"{sum(number.numel() for number in make_q(kind).parameters()):,}"
        for kind in ("diagonal", "full", "mixture", "planar", "spline")
    ]
    words = "{} weights for the diagonal $q$, {} full, {} mixture, {} planar, {} spline".format(*sizes)
    assert words in prose
    reach = [row["reach"] for row in report["rows"] if row["kind"] == "vamp"]
    assert f"from ±{min(reach):.0f} to ±{max(reach):.0f}" in prose


def test_the_planar_flow_of_the_benchmark_has_the_density_of_its_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    flow = (
        importlib.import_module("richer")
        .PlanarHead(torch.nn.Identity(), 2)
        .distribution(torch.randn(1, 34, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    )
    torch.manual_seed(0)
    log_q = flow.log_prob(flow.rsample())
    torch.manual_seed(0)
    y = flow.base.rsample()

    def bent(draw: torch.Tensor) -> torch.Tensor:
        flow.base.rsample = lambda shape: draw
        return flow.rsample()[0]

    jacobian = torch.autograd.functional.jacobian(bent, y)[:, 0]
    assert torch.allclose(log_q, flow.base.log_prob(y) - torch.linalg.slogdet(jacobian).logabsdet)
    with pytest.raises(NotImplementedError, match="last draws"):
        flow.log_prob(torch.zeros(1, 2).double())


def test_the_table_of_collapses_is_the_stored_result() -> None:
    report = collapse()
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert len(report["rows"]) == 70
    for problem, kinds in report["summary"].items():
        for kind, stored in kinds.items():
            rows = [row for row in report["rows"] if row["problem"] == problem and row["kind"] == kind]
            cells = []
            for name in ("rate", "elbo", "log_evidence", "active", "accuracy"):
                numbers = np.array([row[name] for row in rows])
                assert np.allclose([numbers.mean(), numbers.std(ddof=1)], [stored[name]["mean"], stored[name]["sd"]])
                cells.append(f"{stored[name]['mean']:.2f} ± {stored[name]['sd']:.2f}")
            where = "fixed σ" if problem == "variance" else "strong decoder"
            assert f"| {where} | {kind} | {' | '.join(cells)} |" in text
    worst = [row["effective_samples"] for row in report["rows"] if row["kind"] == "β = 0.05"]
    assert max(worst) < 10


def test_chapter_15_quotes_the_stored_collapses() -> None:
    text = (FOLDER.parent / "notebooks" / "src" / "15_posterior_collapse.py").read_text(encoding="utf-8")
    prose = " ".join(text.replace("\n#", " ").split()).replace("−", "-")
    variance, decoder = (
        {kind: {name: value["mean"] for name, value in row.items()} for kind, row in kinds.items()}
        for kinds in collapse()["summary"].values()
    )
    objectives = ("free bits", "normalised means", "β = 0.05")
    said = [f"{variance[kind]['rate']:.1f}" for kind in objectives]
    assert f"rates of {said[0]}, {said[1]} and {said[2]} nats" in prose
    told = [f"{100 * variance[kind]['accuracy']:.0f}" for kind in objectives]
    assert f"in {told[0]}, {told[1]} and {told[2]} % of the cases" in prose
    assert f"at a rate of {variance['annealing']['rate']:.2f} nats" in prose
    base, learned = variance["no latent"]["log_evidence"], variance["σ learned"]
    assert f"*without any latent*, {base:.2f}." in prose
    assert f"{learned['log_evidence']:.1f} nats, {learned['log_evidence'] - base:.0f} nats more" in prose
    assert f"with {100 * learned['accuracy']:.0f} % told" in prose
    train, test = digits().train / 16, digits().test / 16
    alone = torch.distributions.Normal(train.mean(0), train.var(0, correction=0).mean().sqrt()).log_prob(test)
    without = alone.sum(-1).mean().item()
    assert f"{without - base:.0f} to σ alone" in prose
    assert f"{learned['log_evidence'] - without:.0f} to the latents" in prose
    assert all(variance[kind]["log_evidence"] < base - 0.1 for kind in objectives)
    mended = ("annealing", "free bits", "normalised means")
    log_p = {
        (row["kind"], row["seed"]): row["log_evidence"] for row in collapse()["rows"] if row["problem"] == "decoder"
    }
    paired = {kind: [log_p[kind, s] - log_p["no latent", s] for s in range(5)] for kind in decoder}
    mean = {kind: statistics.fmean(change) for kind, change in paired.items()}
    assert f"nats), and loses {-mean['strong decoder']:.2f} nats by it" in prose
    assert all(abs(mean[kind]) < statistics.stdev(paired[kind]) for kind in ("annealing", "normalised means"))
    assert f"free bits lie {-mean['free bits']:.2f} below in every seed" in prose
    assert max(paired["free bits"]) < 0
    lower = [decoder["strong decoder"]["elbo"] - decoder[kind]["elbo"] for kind in mended]
    assert 0.15 < min(lower) < max(lower) < 0.45
    told = [f"{100 * decoder[kind]['accuracy']:.0f}" for kind in (*mended, "strong decoder", "weak decoder", "β = ½")]
    assert f"in {told[0]}, {told[1]} and {told[2]} % of cases instead of {told[3]}" in prose
    assert f"β = ½ tells {told[5]} % and pays {-mean['β = ½']:.1f} nats of evidence" in prose
    assert f"the weak decoder, a change of the model, tells {told[4]} % and pays {-mean['weak decoder']:.1f}." in prose
    strong = [row["elbo_training"] - row["elbo"] for kind, row in decoder.items() if kind != "weak decoder"]
    assert 2.5 < min(strong) < max(strong) < 3.0
    assert f"here, at {decoder['annealing']['rate']:.1f} nats" in prose


def test_the_context_of_the_benchmark_sees_earlier_pixels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    context = importlib.import_module("collapse").Earlier()
    jacobian = torch.autograd.functional.jacobian(context, torch.rand(64, generator=torch.Generator().manual_seed(0)))
    assert (jacobian.triu() == 0).all()
    assert (jacobian.tril(-1) != 0).float().mean() > 0.3


def test_the_table_of_discrete_gradients_is_the_stored_result() -> None:
    report = json.loads((FOLDER / "results" / "discrete.json").read_text(encoding="utf-8"))
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = {(row["rate"], row["steps"], row["method"], row["seed"]): row for row in report["rows"]}
    table = {(row["steps"], row["method"]): row for row in report["summary"] if row["rate"] == 0.01}
    assert len(rows) == 2 * 5 * (3 * 7 + 2)
    for method in dict.fromkeys(method for _, method in table):
        for suffix, words in (("", ""), ("_usage", ", usage π")):
            if f"elbo{suffix}" not in table[800, method]:
                continue
            cells = []
            for steps, name in ((200, "elbo"), (200, ""), (800, "elbo"), (800, ""), (800, "log_evidence")):
                numbers = np.array([rows[0.01, steps, method, s][f"{name or 'elbo'}{suffix}"] for s in range(5)])
                if not name:
                    numbers = numbers - [rows[0.01, steps, "exact", s]["elbo"] for s in range(5)]
                stored = table[steps, method][f"{name}{suffix}" if name else f"elbo{suffix}_minus_exact"]
                assert np.allclose([numbers.mean(), numbers.std(ddof=1)], [stored["mean"], stored["sd"]])
                cells.append("" if not name and method == "exact" else f"{stored['mean']:.2f} ± {stored['sd']:.2f}")
            assert f"| {method}{words} | {' | '.join(cells)} |" in text


def richer() -> Any:
    return json.loads((FOLDER / "results" / "richer.json").read_text(encoding="utf-8"))


def collapse() -> Any:
    return json.loads((FOLDER / "results" / "collapse.json").read_text(encoding="utf-8"))


def seeds(report: dict[str, Any], name: str, kind: str) -> list[float]:
    """One quantity over the seeds: of an encoder, or the difference of the two."""
    if kind == "difference":
        pairs = zip(seeds(report, name, "diagonal"), seeds(report, name, "full"), strict=True)
        return [full - diagonal for diagonal, full in pairs]
    return [row[name] for row in sorted(report["rows"], key=lambda row: row["seed"]) if row["encoder"] == kind]
