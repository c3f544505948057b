"""What does a step cost, and how does that grow? Rows, draws, precision, processes, memory.

rows: seconds for a pass over a memory-mapped file of bytes, 64 columns, at 10^3 to 10^6 rows, and its slope on
logarithmic axes; the process's own memory while it takes 300 steps on files of up to 10^7 rows. draws: seconds of a
step at K draws, a minibatch of 20 and the networks of Burda et al. (2016). precision, processes: rows per second of the
same networks at K = 1 and a minibatch of 200.

    python benchmarks/scale.py      # about four minutes; writes results/scale.json
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap

from vi_tutorial import runs
from vi_tutorial._atomic import write_atomically
from vi_tutorial.runs.loop import Trainer
from vi_tutorial.runs.processes import Place, placed

RESULTS = Path(__file__).parent / "results" / "scale.json"
ALONE = Place(0, 1, torch.device("cpu"))
COLUMNS = 64


def file_of(folder: Path, rows: int, columns: int = COLUMNS) -> str:
    """Random bytes on the disk; a tenth more, at most 10,000, to be held out."""
    path = folder / f"{rows}x{columns}.npy"
    if not path.exists():
        total = rows + min(rows // 9, 10_000)
        array = open_memmap(path, mode="w+", dtype=np.uint8, shape=(total, columns))
        generator = np.random.default_rng(0)
        for start in range(0, total, 100_000):
            part = array[start : start + 100_000]
            part[:] = generator.integers(0, 256, part.shape, dtype=np.uint8)
        array.flush()
    return str(path)


def trainer(config: runs.Config, place: Place = ALONE) -> Trainer:
    """Ready to step; nothing is written."""
    return Trainer(config, Path("unused"), place)


def seconds_of_steps(config: runs.Config, num_steps: int, repetitions: int = 5) -> float:
    """Median seconds of a step; several repetitions after one that warms up."""
    made = trainer(config)
    batches = [batch for _, batch in zip(range(num_steps), made.minibatches(0), strict=False)]
    seconds = []
    for _ in range(repetitions + 1):
        started = time.perf_counter()
        for batch in batches:
            made._take_step(made.climb, batch, [False, False])
        seconds.append((time.perf_counter() - started) / len(batches))
    return statistics.median(seconds[1:])


def rows(folder: Path) -> list[dict[str, Any]]:
    """Seconds of a pass over files of growing length."""
    found = []
    for count in (10**3, 10**4, 10**5, 10**6):
        config = runs.Config(data=file_of(folder, count), hidden=(64,), latents=8, batch_size=500)
        made = trainer(config)
        passes, started = 0, time.perf_counter()
        while passes < 2 or time.perf_counter() - started < 3:
            if passes == 1:  # the first pass brings the file into the cache
                started = time.perf_counter()
            for batch in made.minibatches(passes):
                made._take_step(made.climb, batch, [False, False])
            passes += 1
        found.append({"rows": count, "seconds": (time.perf_counter() - started) / (passes - 1)})
        print(found[-1], flush=True)
    return found


def memory(path: str, answer: Any) -> None:
    """In a fresh process: its own memory, without the file's pages that the system may drop, at its largest."""
    torch.set_num_threads(1)
    made = trainer(runs.Config(data=path, hidden=(64,), latents=8, batch_size=500))
    most = 0
    for _, batch in zip(range(300), made.minibatches(0), strict=False):
        made._take_step(made.climb, batch, [False, False])
        status = Path("/proc/self/status").read_text(encoding="ascii")
        most = max(most, int(status.split("RssAnon:")[1].split()[0]))
    answer.put(most / 1024)


def draws() -> list[dict[str, Any]]:
    """Seconds of a step at K draws."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        data = file_of(Path(folder), 2000, 784)
        for k in (1, 2, 5, 10, 20, 50, 100, 200, 500):
            config = runs.Config(data=data, bound="iwae", num_samples=k, batch_size=20)
            found.append({"k": k, "seconds": seconds_of_steps(config, 100 if k < 20 else 10)})
            print(found[-1], flush=True)
    return found


def precision() -> list[dict[str, Any]]:
    """Rows per second in three precisions, eager and compiled."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        data = file_of(Path(folder), 20_000, 784)
        for name in ("float64", "float32", "bfloat16"):
            config = runs.Config(data=data, batch_size=200, precision=name)
            found.append({"precision": name, "rows_per_second": 200 / seconds_of_steps(config, 50)})
            print(found[-1], flush=True)
    return found


def worker(rank: int, world: int, data: str, answer: Any) -> None:
    """One of several processes, each with one thread and its share of every minibatch."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29541"}
    torch.set_num_threads(1)
    with placed("cpu") as place:
        made = trainer(runs.Config(data=data, batch_size=200), place)
        for number, batch in enumerate(made.minibatches(0)):
            if number == 10:
                started = time.perf_counter()
            made._take_step(made.climb, batch, [False, False])
        if rank == 0:
            answer.put(200 * (number - 9) / (time.perf_counter() - started))


def processes() -> list[dict[str, Any]]:
    """Rows per second of one process with one thread, and of two."""
    found = []
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        data = file_of(Path(folder), 20_000, 784)
        for world in (1, 2):
            answer = context.Queue()
            workers = [context.Process(target=worker, args=(rank, world, data, answer)) for rank in range(world)]
            for process in workers:
                process.start()
            found.append({"processes": world, "rows_per_second": answer.get(timeout=120)})
            for process in workers:
                process.join()
            print(found[-1], flush=True)
    return found


def main() -> None:
    """Measure everything and write it."""
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        passes = rows(folder)
        held = []
        for count in (10**5, 10**6, 10**7):
            answer = context.Queue()
            process = context.Process(target=memory, args=(file_of(folder, count), answer))
            process.start()
            held.append({"rows": count, "megabytes": answer.get(timeout=300), "file_megabytes": count * COLUMNS / 1e6})
            process.join()
            print(held[-1], flush=True)
    slope = np.polyfit(*(np.log([entry[name] for entry in passes]) for name in ("rows", "seconds")), 1)[0]
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    report = {
        "commit": git.stdout.strip(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}; one thread a process",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rows": passes,
        "slope": float(slope),
        "memory": held,
        "draws": draws(),
        "precision": precision(),
        "processes": processes(),
    }
    write_atomically(RESULTS, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
