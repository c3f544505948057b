"""MNIST from a folder and from mirrors: what is not right byte by byte is refused, and never kept."""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from vi_tutorial import mnist as module
from vi_tutorial.mnist import DataFileError, binarise, mnist

NAMES = list(module.HASHES)


def idx(*shape: int) -> bytes:
    """An IDX file: two zeros, the code of bytes, the number of dimensions, their sizes, then 0, 1, 2, …"""
    size = 1
    for length in shape:
        size *= length
    header = bytes([0, 0, 8, len(shape)]) + b"".join(length.to_bytes(4, "big") for length in shape)
    return header + bytes(k % 251 for k in range(size))


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A mirror that serves a small MNIST: a folder, to spoil its files in."""
    served = tmp_path / "served"
    served.mkdir()
    contents = dict(zip(NAMES, (idx(6, 2, 3), idx(6), idx(4, 2, 3), idx(4)), strict=True))
    for name, content in contents.items():
        (served / f"{name}.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(module, "HASHES", {n: hashlib.sha256(c).hexdigest() for n, c in contents.items()})

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setattr(module, "MIRRORS", (address + "nowhere/", address))
    monkeypatch.setenv("VI_TUTORIAL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("VI_TUTORIAL_PROGRESS", "off")
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_second_mirror_serves_when_the_first_does_not(published: Path, tmp_path: Path) -> None:
    images = mnist()
    assert images.train.shape == (6, 6)
    assert images.test.shape == (4, 6)
    assert images.train.dtype == torch.uint8
    assert images.train[1].tolist() == [6, 7, 8, 9, 10, 11]
    assert images.test_labels.tolist() == [0, 1, 2, 3]
    folder = tmp_path / "data" / "mnist"
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.gz" for name in NAMES)
    for path in published.iterdir():
        path.unlink()
    assert torch.equal(mnist().train, images.train)  # from the folder


def test_files_without_compression_will_do(published: Path, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).write_bytes(gzip.decompress((published / f"{name}.gz").read_bytes()))
    assert mnist(tmp_path, download=False).train.shape == (6, 6)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda raw: raw[:-9], "cannot be read"),
        (lambda raw: b"<html>Not found</html>", "cannot be read"),
        (lambda raw: gzip.compress(gzip.decompress(raw)[:-1]), "not the published file"),
        (lambda raw: gzip.compress(b"\1" + gzip.decompress(raw)[1:]), "not the published file"),
        (lambda raw: b"", "not the published file"),
    ],
    ids=["cut off", "a web page", "a byte short", "a byte altered", "empty"],
)
def test_a_bad_download_is_refused_and_not_kept(published: Path, tmp_path: Path, spoil: object, reason: str) -> None:
    bad = published / f"{NAMES[2]}.gz"
    bad.write_bytes(spoil(bad.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataFileError, match=rf"{NAMES[2]} is not in .*{reason}.*VI_TUTORIAL_DATA"):
        mnist()
    kept = sorted(path.name for path in (tmp_path / "data" / "mnist").iterdir())
    assert kept == sorted(f"{name}.gz" for name in NAMES[:2])


def test_a_bad_file_is_named_and_replaced_only_by_a_right_one(published: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    bad = folder / f"{NAMES[0]}.gz"
    bad.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(DataFileError, match=rf"{NAMES[0]}.gz is not the published file: its 14 bytes.*expected"):
        mnist(folder, download=False)
    assert gzip.decompress(bad.read_bytes()) == b"something else"
    assert mnist(folder).train.shape == (6, 6)
    assert len(gzip.decompress(bad.read_bytes())) == 16 + 36


def test_without_a_network_the_message_says_what_to_do(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIRRORS", ("http://127.0.0.1:9/",))
    with pytest.raises(
        DataFileError, match=r"could not be downloaded \(http://127.0.0.1:9/: Connection.*put .*gz into"
    ):
        mnist(tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())
    with pytest.raises(DataFileError, match=r"is not in .*none\. Call mnist\(\) where there is a network"):
        mnist(tmp_path / "none", download=False)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not hold for root")
def test_a_folder_that_cannot_be_written_is_said(published: Path, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    with pytest.raises(DataFileError, match="Permission denied"):
        mnist(folder)


def test_coins_fall_as_often_as_the_pixel_is_grey() -> None:
    greys = torch.tensor([[0, 51, 255]], dtype=torch.uint8).expand(40_000, 3)
    tossed = binarise(greys, torch.Generator().manual_seed(0))
    assert tossed.dtype == torch.get_default_dtype()
    assert tossed[:, 0].sum() == 0
    assert tossed[:, 2].sum() == 40_000
    assert tossed[:, 1].mean().item() == pytest.approx(0.2, abs=0.01)
    assert not torch.equal(binarise(greys), binarise(greys))
    assert torch.equal(tossed, binarise(greys, torch.Generator().manual_seed(0)))
    with pytest.raises(TypeError, match=r"greys must be a tensor of bytes, torch.uint8; received dtype torch.float32"):
        binarise(torch.zeros(3))


DATA = Path(os.environ.get("VI_TUTORIAL_DATA", "/nowhere"))


@pytest.mark.skipif(not (DATA / "mnist").is_dir(), reason="MNIST is not in the folder named by VI_TUTORIAL_DATA")
def test_the_published_set() -> None:
    images = mnist(download=False)
    assert (images.train.shape, images.test.shape) == ((60_000, 784), (10_000, 784))
    assert images.train.double().mean().item() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert images.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert torch.bincount(images.test_labels.int()).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
