"""MNIST, on request: found in a folder or downloaded from public mirrors, checked byte by byte, binarised.

The folder is the one that the environment variable ``VI_TUTORIAL_DATA`` names, or the user's cache folder; in it,
``mnist/`` holds the four files, as they are or compressed by gzip. What does not have the right SHA-256, taken of the
bytes without compression, is never used and never written.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["DataFileError", "Greys", "binarise", "mnist"]

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
HASHES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""SHA-256 of the uncompressed files: the headers that gzip writes differ from mirror to mirror."""


class DataFileError(RuntimeError):
    """A data file is missing, cut off or altered, and could not be had elsewhere.

    Example:
        >>> raise DataFileError("no such file")
        Traceback (most recent call last):
        vi_tutorial.mnist.DataFileError: no such file
    """


class Greys(NamedTuple):
    """Grey images as rows of bytes, ``(N, 784)``, training and test, with their labels ``(N,)``; all ``torch.uint8``.

    Example:
        >>> Greys(*(torch.zeros(1, dtype=torch.uint8) for _ in range(4))).test_labels
        tensor([0], dtype=torch.uint8)
    """

    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor


def mnist(folder: Path | str | None = None, download: bool = True) -> Greys:
    """70,000 handwritten digits of 28 × 28 grey levels, 60,000 of them for training.

    Args:
        folder: Where the files are, or are to be; the data folder's ``mnist`` if not given.
        download: Whether to fetch what is not there.

    Returns:
        :class:`Greys`, bytes from 0 to 255, as published.

    Raises:
        DataFileError: If a file is not there and cannot be had, or is not what was published; the message says which,
            what was expected, and what to do. Only a file with the right bytes ever takes the place of another.

    Source:
        LeCun, Cortes & Burges, The MNIST Database of Handwritten Digits, CC BY-SA 3.0.

    Example:
        >>> try:
        ...     mnist("no such folder", download=False)
        ... except DataFileError as error:
        ...     print(str(error).split(". ")[0])
        train-images-idx3-ubyte is not in no such folder
    """
    folder = _folder() / "mnist" if folder is None else Path(folder)
    images, labels, test_images, test_labels = (_array(name, folder, download) for name in HASHES)
    return Greys(images.reshape(len(images), -1), test_images.reshape(len(test_images), -1), labels, test_labels)


def binarise(greys: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Toss a coin for each pixel: 1 with probability grey / 255.

    Called anew for each visit of an image this is *dynamic* binarisation, which no model can learn by heart; called
    once, with a stated seed, it gives a *static* set, on which held-out numbers can be compared.

    Args:
        greys: Bytes, ``torch.uint8``, any shape.
        generator: Source of the coins; torch's global one if not given.

    Returns:
        Zeros and ones of torch's default floating-point type, of the same shape and on the same device.

    Raises:
        TypeError: If ``greys`` is not a tensor of bytes.

    Source:
        Salakhutdinov & Murray (2008), On the Quantitative Analysis of Deep Belief Networks.

    Example:
        >>> binarise(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([0., 1.])
    """
    if not isinstance(greys, Tensor) or greys.dtype != torch.uint8:
        received = f"dtype {greys.dtype}" if isinstance(greys, Tensor) else type(greys).__name__
        raise TypeError(f"greys must be a tensor of bytes, torch.uint8; received {received}")
    coins = torch.rand(greys.shape, generator=generator, device=greys.device)
    return (coins * 255 < greys).to(torch.get_default_dtype())


def _folder() -> Path:
    import pooch

    chosen = os.environ.get("VI_TUTORIAL_DATA")
    return Path(chosen) if chosen else Path(pooch.os_cache("vi_tutorial"))


def _array(name: str, folder: Path, download: bool) -> Tensor:
    """The verified file as a tensor of bytes, in the shape that its header gives."""
    content, complaint = _read(name, folder)
    if content is None:
        if not download:
            raise DataFileError(f"{complaint}. Call mnist() where there is a network, or put the right file there")
        content = _fetch(name, folder, complaint)
    num_dims = content[3]
    shape = np.frombuffer(content, dtype=">u4", count=num_dims, offset=4)
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * num_dims)
    return torch.from_numpy(values.reshape(tuple(int(size) for size in shape)).copy())


def _read(name: str, folder: Path) -> tuple[bytes | None, str]:
    """The right bytes; or none, and what is wrong."""
    complaint = f"{name} is not in {folder}"
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            try:
                content = path.read_bytes()
                content = gzip.decompress(content) if path.suffix == ".gz" else content
            except (OSError, EOFError, zlib.error) as error:
                complaint = f"{path} cannot be read ({error})"
                continue
            found = hashlib.sha256(content).hexdigest()
            if found == HASHES[name]:
                return content, ""
            complaint = (
                f"{path} is not the published file: its {len(content)} bytes have SHA-256 {found[:12]}…, "
                f"expected {HASHES[name][:12]}…"
            )
    return None, complaint


def _fetch(name: str, folder: Path, complaint: str) -> bytes:
    """From the first mirror that has the right bytes; they reach the folder whole or not at all."""
    import pooch

    reasons = []
    show = os.environ.get("VI_TUTORIAL_PROGRESS") != "off"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as partial:
            for mirror in MIRRORS:
                archive = Path(partial) / f"{name}.gz"
                try:
                    pooch.HTTPDownloader(progressbar=show, timeout=30)(f"{mirror}{name}.gz", str(archive), None)
                except (OSError, ValueError) as error:  # what requests raises is an OSError
                    reasons.append(f"{mirror}: {type(error).__name__}")
                    continue
                content, wrong = _read(name, Path(partial))
                if content is not None:
                    os.replace(archive, folder / archive.name)
                    return content
                reasons.append(f"{mirror}: {wrong.split(' ', 1)[1]}")
    except OSError as error:
        reasons.append(f"{folder}: {error.strerror or error}")
    raise DataFileError(
        f"{complaint}, and it could not be downloaded ({'; '.join(reasons)}). Try again later, set VI_TUTORIAL_DATA to "
        f"a folder whose mnist/ holds it, or put {name}.gz into {folder}"
    )
