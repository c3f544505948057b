"""A reader's own table, from a ``.npy`` or ``.npz`` file, mapped into memory: it may be larger than the machine's."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

__all__ = ["memory_mapped"]

TYPES = ("uint8", "float32", "float64")


def memory_mapped(path: Path | str, key: str | None = None) -> Tensor:
    """The rows of a file as a tensor whose pages are read when they are asked for, and dropped when memory is short.

    Args:
        path: A ``.npy`` file, or a ``.npz`` file written without compression (``numpy.savez``).
        key: Which array of a ``.npz`` file; not needed where there is one.

    Returns:
        Shape ``(N, …)``, ``torch.uint8``, ``float32`` or ``float64`` as in the file. Writing to it changes a private
        copy of the page, never the file.

    Raises:
        TypeError: If ``path`` is no path.
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file, cut off, compressed, empty, or holds another type. Nothing is unpickled.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/rows.npy", np.arange(6, dtype=np.float32).reshape(3, 2))
        ...     memory_mapped(f"{folder}/rows.npy")[1]
        tensor([2., 3.])
    """
    if not isinstance(path, str | Path):
        raise TypeError(f"path must be a str or a Path; received {type(path).__name__}")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path must be a .npy or .npz file; received {path}, which is not there")
    try:
        with path.open("rb") as file:
            if path.suffix == ".npz":
                _seek_member(file, path, key)
            elif key is not None:
                raise ValueError(f"key chooses an array of a .npz file; received {key!r} for {path}")
            version = npy.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"its format {version} is unknown")
            read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, by_columns, dtype = read_header(file)
            start = file.tell()
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"path must be a .npy file, or a .npz file without compression; {path}: {error}") from error
    if dtype.name not in TYPES or not dtype.isnative:
        raise ValueError(f"path must hold {', '.join(TYPES)} in this machine's byte order; {path} holds {dtype}")
    if min(shape, default=0) < 1:
        raise ValueError(f"path must hold at least one row; {path} holds shape {shape}")
    size = start + dtype.itemsize * int(np.prod(shape, dtype=object))
    if path.stat().st_size < size:
        raise ValueError(f"path must hold {size} bytes for shape {shape}; {path} is cut off at {path.stat().st_size}")
    mapped = np.memmap(path, dtype=dtype, mode="c", offset=start, shape=shape, order="F" if by_columns else "C")
    return torch.from_numpy(mapped)


def _seek_member(file: BinaryIO, path: Path, key: str | None) -> None:
    """Go to where the array begins: a .npz file is a zip archive of .npy files."""
    with zipfile.ZipFile(file) as archive:
        members = {name.removesuffix(".npy"): archive.getinfo(name) for name in archive.namelist()}
        if key is None and len(members) == 1:
            (key,) = members
        if key not in members:
            raise ValueError(f"key must be one of {', '.join(members)}; received {key}")
        member = members[key]
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{key} is compressed, and a compressed array cannot be mapped: write it with numpy.savez")
    file.seek(member.header_offset + 26)
    lengths = np.frombuffer(file.read(4), dtype="<u2")  # of the member's name and of its extra field
    file.seek(int(lengths.sum()), 1)
