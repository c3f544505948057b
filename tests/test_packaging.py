"""Packaging says everything once: what is needed in pyproject.toml, which versions in constraints.txt."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import vi_tutorial

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONSTRAINTS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
PINS = {canonicalize_name(pin.name): pin.specifier for pin in CONSTRAINTS}


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(text) for texts in [PROJECT["dependencies"], *extras] for text in texts]


def test_every_constraint_is_a_pin():
    assert [str(pin) for pin in CONSTRAINTS if not re.fullmatch(r"==[\w.]+", str(pin.specifier))] == []


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_dependency_has_a_pin_that_suits_it(requirement):
    name = canonicalize_name(requirement.name)
    assert name in PINS, f"{requirement.name} has no pin in constraints.txt"
    (pin,) = PINS[name]
    assert requirement.specifier.contains(pin.version)


def test_pins_are_what_is_installed():
    different = []
    for name, pin in PINS.items():
        try:
            installed = Version(metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
        if not pin.contains(installed.public):
            different.append(f"{name}: {installed} is installed, {pin} is pinned")
    assert different == []


def test_versions_are_pinned_in_one_place():
    elsewhere = ["Makefile", "pyproject.toml", "environment.yml", ".pre-commit-config.yaml", "README.md", ".ci/run"]
    files = [ROOT / name for name in elsewhere] + [*(ROOT / ".github").rglob("*.yml")]
    pins = {
        f"{path.name}: {pin}"
        for path in files
        if path.exists()
        for pin in re.findall(r"[\w-]+==[\d.]*\d", path.read_text(encoding="utf-8"))
    }
    (torch,) = PINS["torch"]
    assert pins <= {f"README.md: torch=={torch.version}"}, "pin versions in constraints.txt only"


def test_conda_users_get_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, from_pip = environment["dependencies"]
    assert environment["name"] == PROJECT["name"]
    assert python == f"python{PROJECT['requires-python']}"
    assert pip == "pip"
    assert from_pip == {"pip": ["-c constraints.txt", "-e .[dev]"]}
    assert "dev" in PROJECT["optional-dependencies"]


def test_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == PROJECT["version"] == vi_tutorial.__version__
    assert " AND ".join(citation["license"]) == PROJECT["license"]
    assert PROJECT["version"] in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_what_is_imported_is_declared():
    """By the package and the chapters: who installs with pip alone gets all of it. Peers and widgets are optional."""
    declared = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    optional = {"jax", "numpyro", "ipywidgets"}
    owners = metadata.packages_distributions()
    missing = set()
    for path in [*(ROOT / "vi_tutorial").rglob("*.py"), *(ROOT / "notebooks" / "src").glob("*.py")]:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
        for name in {name.split(".")[0] for name in names}:
            own = name == "vi_tutorial" or name in sys.stdlib_module_names or name in optional
            if not own and not declared & {canonicalize_name(owner) for owner in owners.get(name, [])}:
                missing.add(f"{path.name}: {name}")
    assert missing == set()


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = ZipFile(wheel).namelist()
    package = ROOT / "vi_tutorial"
    expected = [*package.rglob("*.py"), *package.glob("datasets/*.csv"), package / "py.typed"]
    inside = {name for name in names if not name.startswith(f"vi_tutorial-{PROJECT['version']}.dist-info/")}
    assert inside == {path.relative_to(ROOT).as_posix() for path in expected}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_oldest_versions_are_the_lower_bounds():
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    oldest = {pin.name: str(pin.specifier) for pin in map(Requirement, lines[1:])}
    for text in PROJECT["dependencies"]:
        needed = Requirement(text)
        (bound,) = needed.specifier
        if needed.name != "torch":
            assert Version(oldest[needed.name].removeprefix("==")) == Version(bound.version), needed.name
    assert oldest["torch"] == str(PINS["torch"])
    assert set(oldest) <= {requirement.name for requirement in requirements()} | {"pytest-xdist"}
