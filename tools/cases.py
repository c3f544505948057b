"""Count the cases of bad input and of faults that pytest collects, for benchmarks/results/proof.json.

``python tools/cases.py`` writes the keys ``bad_input_cases`` and ``faults`` and leaves the others as they are.
"""

from __future__ import annotations

import re
import subprocess
import sys

from mutants import ROOT, merge

BAD_INPUT = ("tests/test_bad_input.py::test_bad_input_is_named",)
FAULTS = (
    "tests/test_faults.py::test_",
    "tests/test_checkpoint.py::test_a_disk_that_fails_leaves_the_one_before",
    "tests/test_checkpoint.py::test_what_is_no_whole_checkpoint_is_refused",
    "tests/test_checkpoint.py::test_a_missing_file_is_named",
    "tests/test_checkpoint.py::test_another_model_is_refused_and_left_as_it_was",
    "tests/test_checkpoint.py::test_another_optimiser_is_refused",
    "tests/test_cli.py::test_failures_stay_in_their_chapter",
    "tests/test_cli.py::test_a_kernel_that_does_not_start",
    "tests/test_cli.py::test_ctrl_c_shuts_the_kernels_down",
    "tests/test_files.py::test_anything_else_is_refused_and_nothing_is_run",
    "tests/test_files.py::test_archives_that_cannot_be_mapped_are_refused",
    "tests/test_mnist.py::test_a_bad_download_is_refused_and_not_kept",
    "tests/test_mnist.py::test_a_bad_file_is_named_and_replaced_only_by_a_right_one",
    "tests/test_mnist.py::test_without_a_network_the_message_says_what_to_do",
    "tests/test_mnist.py::test_a_folder_that_cannot_be_written_is_said",
    "tests/test_runs.py::test_killed_ten_times_at_random_steps_and_resumed_it_ends_as_if_nothing_had_happened",
    "tests/test_runs.py::test_a_run_killed_before_its_first_checkpoint_starts_again",
    "tests/test_runs.py::test_asked_to_stop_it_saves_first",
    "tests/test_runs.py::test_a_worker_that_dies_ends_the_run_with_a_clear_error_and_the_run_resumes",
    "tests/test_runs.py::test_one_folder_holds_one_run",
    "tests/test_runs.py::test_a_damaged_run_is_refused",
    "tests/test_runs.py::test_a_full_disk_leaves_the_checkpoint_from_before",
)
"""The beginnings of the names of the tests that count."""


def count(collected: str, beginnings: tuple[str, ...]) -> int:
    """How many of the collected tests have one of these names.

    Raises:
        ValueError: If a name has no test (any more).
    """
    total = 0
    for beginning in beginnings:
        end = "" if beginning.endswith("_") else r"(?=\[|$)"
        found = len(re.findall(f"^{re.escape(beginning)}{end}", collected, re.MULTILINE))
        if not found:
            raise ValueError(f"{beginning} names no test")
        total += found
    return total


def collect() -> str:
    """One line per test of the files that count."""
    files = sorted({beginning.split("::")[0] for beginning in BAD_INPUT + FAULTS})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    tests = collect()
    counts = {"bad_input_cases": count(tests, BAD_INPUT), "faults": count(tests, FAULTS)}
    merge(ROOT / "benchmarks" / "results" / "proof.json", counts)
    print(counts)
