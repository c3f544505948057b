"""What benchmarks/README.md says is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

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
