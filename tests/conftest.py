"""What the tests share: fixed seeds, one thread, and float64 wherever an identity is claimed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import threadpoolctl
import torch

os.environ.setdefault("VI_TUTORIAL_PROGRESS", "off")
torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """For NumPy and SciPy too, in this process alone: neighbours under ``pytest -n`` have the other cores."""
    with threadpoolctl.threadpool_limits(limits=1):
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20240229)


@pytest.fixture(autouse=True, scope="module")
def _validation_stays_on() -> Iterator[None]:
    """Some libraries turn the checks of torch's distributions off, for everybody, as they are imported."""
    yield
    assert torch.distributions.Distribution._validate_args


@pytest.fixture
def _float64() -> Iterator[None]:
    """Float64 as torch's default; modules whose tests claim identities use it throughout."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """What a package index would hand out."""
    root, folder = Path(__file__).resolve().parents[1], tmp_path_factory.mktemp("wheel")
    project = folder / "project"  # setuptools leaves its own build folders behind
    project.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, project)
    for name in ("vi_tutorial", "tests"):
        shutil.copytree(root / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(project)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def browser():
    """A Chromium without a window. Of a module, not of the session: an event loop runs while it is open."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium on this machine")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=[*quiet, "--disable-component-update", "--disable-sync"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def serve():
    """A function that serves a folder on this machine and gives its address."""
    servers = {}

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    def serve(folder):
        if folder not in servers:
            servers[folder] = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
            threading.Thread(target=servers[folder].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[folder].server_port}/"

    yield serve
    for server in servers.values():
        server.shutdown()
        server.server_close()


@pytest.fixture
def browser_tab(browser):
    """A function that opens a page without a network; what went wrong in it is in its ``troubles``."""
    contexts = []

    def open_page(url, size=None, scheme="light"):
        size = size or {"width": 1280, "height": 900}
        if not contexts or contexts[-1].asked != (size, scheme):
            contexts.append(browser.new_context(viewport=size, color_scheme=scheme))
            contexts[-1].asked = (size, scheme)
            contexts[-1].set_default_timeout(90_000)  # a busy machine is not a fault
            near = ("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:")
            contexts[-1].route(lambda url: not url.startswith(near), lambda route: route.abort())
        page = contexts[-1].new_page()
        page.troubles = []
        page.on("console", lambda message: message.type == "error" and page.troubles.append(message.text))
        page.on("pageerror", lambda error: page.troubles.append(str(error)))
        page.on("requestfailed", lambda request: page.troubles.append(request.url))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
