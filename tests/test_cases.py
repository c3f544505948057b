"""The tool that counts cases: every name it counts has a test."""

from __future__ import annotations

import cases
import pytest


def test_cases_are_counted_by_name_and_a_name_without_a_test_is_said() -> None:
    collected = "tests/a.py::test_one[x]\ntests/a.py::test_one[y]\ntests/a.py::test_one_more\n"
    assert cases.count(collected, ("tests/a.py::test_one",)) == 2
    assert cases.count(collected, ("tests/a.py::test_",)) == 3
    with pytest.raises(ValueError, match="test_two names no test"):
        cases.count(collected, ("tests/a.py::test_two",))
    for name in cases.BAD_INPUT + cases.FAULTS:
        file, test = name.split("::")
        assert f"def {test}" in (cases.ROOT / file).read_text(encoding="utf-8")
