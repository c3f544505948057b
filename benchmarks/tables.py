"""The one-layer rows of table 1 of Burda, Grosse & Salakhutdinov (2016), with the doubly reparameterised gradient.

MNIST binarised anew at every visit; encoder and decoder tanh 200-200, 50 latents, minibatches of 20, Adam with
ε = 1e-4, eight stages of falling rates, output biases at the logits of the pixels' means. Test images are binarised
once, from a stated seed; NLL by importance samples on all of them. The full schedule has 3,280 epochs, 9.8 million
steps a cell; a shorter run is its beginning, named by its epochs, and can be gone on with.

    python benchmarks/tables.py --epochs 13 --folder runs/table1       # 13 epochs: the first three stages
    python benchmarks/tables.py --epochs 40 --folder runs/table1 --cells iwae-50 dreg-50

Each cell that is done goes into results/table1.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import subprocess
import warnings
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from vi_tutorial import runs
from vi_tutorial._atomic import write_atomically

FULL = 3280
PUBLISHED = {"vae-1": 86.76, "vae-5": 86.47, "vae-50": 86.35, "iwae-1": 86.76, "iwae-5": 85.54, "iwae-50": 84.78}
CELLS = (*PUBLISHED, "dreg-5", "dreg-50")
BOUNDS = {"vae": "elbo", "iwae": "iwae", "dreg": "dreg"}
RESULTS = Path(__file__).parent / "results" / "table1.json"


def cell(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one cell, or go on with it, and measure it."""
    bound, k = name.split("-")
    folder = arguments.folder / name
    config = runs.Config(
        data="mnist",
        bound=BOUNDS[bound],
        num_samples=int(k),
        batch_size=20,
        epochs=arguments.epochs,
        schedule="stages",
        seed=arguments.seed,
        compile=arguments.compile,
    )
    runs.train(config, folder, resume=(folder / "config.json").exists())
    report = runs.evaluate(folder, num_samples=arguments.importance_samples, seed=arguments.seed)
    with (folder / "history.csv").open(encoding="utf-8", newline="") as file:
        seconds = float(list(csv.DictReader(file))[-1]["seconds"])
    return {
        "bound": bound,
        "k": int(k),
        "nll": round(report["nll"], 3),
        "stderr": round(report["nll_stderr"], 3),
        "published": PUBLISHED.get(name),
        "epochs": arguments.epochs,
        "full_schedule": arguments.epochs == FULL,
        "importance_samples": report["importance_samples"],
        "test_images": report["test_rows"],
        "seconds": round(seconds),
        "hardware": f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)",
        "seed": arguments.seed,
        "commit": commit(),
        "share_with_k_above_0.7": round(report["share_with_k_above_0.7"], 4),
        "active_latents": report["active_latents"],
        "versions": {"torch": torch.__version__},
    }


def commit() -> str:
    """Of the code that ran."""
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


def keep(row: dict[str, Any]) -> None:
    """In place of the same cell, if it is there; several processes may do so."""
    with FileLock(str(RESULTS.with_suffix(".lock"))):
        rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else []
        rows = [old for old in rows if (old["bound"], old["k"]) != (row["bound"], row["k"])] + [row]
        order = [tuple(name.split("-")) for name in CELLS]
        rows.sort(key=lambda kept: order.index((kept["bound"], str(kept["k"]))))
        write_atomically(RESULTS, json.dumps({"rows": rows}, indent=1) + "\n")


def main() -> None:
    """Fill the cells asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--epochs", type=int, default=FULL)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--importance-samples", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("default")
    for name in arguments.cells:
        row = cell(name, arguments)
        keep(row)
        print(name, row["nll"], "±", row["stderr"], f"{row['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
