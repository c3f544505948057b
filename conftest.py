"""What holds for every test, the notebooks' kernels included: they inherit this environment."""

import os

# Progress bars write to stderr, which nbval compares.
os.environ["VI_TUTORIAL_PROGRESS"] = "off"

# Several processes at a time share the cores, rather than each claiming all of them.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))
