"""What the tests share: fixed seeds, one thread, and float64 wherever an identity is claimed."""

from __future__ import annotations

import os
from collections.abc import Iterator

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
