"""Tables mapped from files: the rows as NumPy wrote them, and refusals of everything that is not such a file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from vi_tutorial.files import memory_mapped

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_rows_come_as_written(tmp_path: Path, dtype: str, order: str) -> None:
    rows = np.array(ROWS.astype(dtype), order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "a.npy", rows)
    found = memory_mapped(tmp_path / "a.npy")
    assert str(found.dtype) == f"torch.{dtype}"
    assert np.array_equal(found.numpy(), rows)


def test_npz_arrays_are_chosen_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train=ROWS, labels=ROWS[:, 0].astype(np.uint8))
    assert np.array_equal(memory_mapped(tmp_path / "a.npz", "train").numpy(), ROWS)
    assert memory_mapped(tmp_path / "a.npz", "labels").tolist() == [0, 3, 6, 9]
    with pytest.raises(ValueError, match="key must be one of train, labels; received None"):
        memory_mapped(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", ROWS)
    assert np.array_equal(memory_mapped(tmp_path / "b.npz").numpy(), ROWS)


def test_the_file_is_never_changed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    before = (tmp_path / "a.npy").read_bytes()
    memory_mapped(tmp_path / "a.npy")[0, 0] = 99
    assert (tmp_path / "a.npy").read_bytes() == before
    assert memory_mapped(tmp_path / "a.npy")[0, 0] == 0


def test_a_file_larger_than_what_is_touched_costs_no_memory(tmp_path: Path) -> None:
    """A hole of 4 GiB with a header: mapped at once, one row read."""
    path = tmp_path / "large.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file,
            {"descr": "|u1", "fortran_order": False, "shape": (2**26, 64)},  # type: ignore[no-untyped-call]
        )
        file.truncate(file.tell() + 2**32)
    found = memory_mapped(path)
    assert found.shape == (2**26, 64)
    assert found[torch.tensor([0, 2**26 - 1])].sum() == 0


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("unpickled",))


def write(path: Path, case: str) -> None:
    if case == "objects":
        np.save(path.with_suffix(".npy"), np.array([Trap()], dtype=object), allow_pickle=True)
        path.with_suffix(".npy").rename(path)
    elif case == "cut off":
        np.save(path, ROWS)
        path.write_bytes(path.read_bytes()[:-1])
    elif case == "text":
        path.write_text("a,b\n1,2\n")
    elif case == "nothing":
        path.write_bytes(b"")
    elif case == "no rows":
        np.save(path, ROWS[:0])
    elif case == "one number":
        np.save(path, np.float32(1))
    elif case == "integers":
        np.save(path, ROWS.astype(np.int64))
    elif case == "other end first":
        np.save(path, ROWS.astype(">f4"))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("objects", "a.npy holds object"),
        ("cut off", r"must hold 176 bytes for shape \(4, 3\); .*a.npy is cut off at 175"),
        ("text", r"must be a .npy file, or a .npz file without compression; .*a.npy"),
        ("nothing", "must be a .npy file"),
        ("no rows", r"at least one row; .* holds shape \(0, 3\)"),
        ("one number", r"at least one row; .* holds shape \(\)"),
        ("integers", "uint8, float32, float64 .* holds int64"),
        ("other end first", "byte order; .* holds >f4"),
    ],
)
def test_anything_else_is_refused_and_nothing_is_run(tmp_path: Path, case: str, message: str) -> None:
    write(tmp_path / "a.npy", case)
    with pytest.raises(ValueError, match=message):
        memory_mapped(tmp_path / "a.npy")


def test_archives_that_cannot_be_mapped_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=ROWS)
    with pytest.raises(ValueError, match=r"x is compressed.*write it with numpy.savez"):
        memory_mapped(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(b"PK not really")
    with pytest.raises(ValueError, match=r"b.npz: File is not a zip file"):
        memory_mapped(tmp_path / "b.npz")
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("x.npy", b"no array")
    with pytest.raises(ValueError, match="without compression"):
        memory_mapped(tmp_path / "c.npz")
    with pytest.raises(FileNotFoundError, match=r"nowhere.npy, which is not there"):
        memory_mapped(tmp_path / "nowhere.npy")
    np.save(tmp_path / "d.npy", ROWS)
    with pytest.raises(ValueError, match=r"key chooses an array of a .npz file; received 'x'"):
        memory_mapped(tmp_path / "d.npy", "x")
