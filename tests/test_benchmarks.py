"""What benchmarks/README.md says is what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

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


def seeds(report: dict[str, Any], name: str, kind: str) -> list[float]:
    """One quantity over the seeds: of an encoder, or the difference of the two."""
    if kind == "difference":
        pairs = zip(seeds(report, name, "diagonal"), seeds(report, name, "full"), strict=True)
        return [full - diagonal for diagonal, full in pairs]
    return [row[name] for row in sorted(report["rows"], key=lambda row: row["seed"]) if row["encoder"] == kind]
