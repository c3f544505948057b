"""The package is a house: a module imports from its own floor or below, and never in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vi_tutorial

PACKAGE = Path(vi_tutorial.__file__).parent
FLOORS = {
    "__init__": 0,
    "_validation": 0,
    "_atomic": 0,
    "_stable": 0,
    "distributions": 0,
    "softened": 0,
    "data": 0,
    "mnist": 0,
    "files": 0,
    "elbo": 1,
    "frozen": 1,
    "latents": 1,
    "networks": 1,
    "families": 1,
    "models": 1,
    "quadrature": 2,
    "objectives": 2,
    "diffusion": 2,
    "batch_and_match": 2,
    "annealed": 2,
    "em": 2,
    "training": 2,
    "checkpoint": 2,
    "_climb": 2,
    "posterior": 2,
    "inference": 2,
    "evaluation": 2,
    "checks": 3,
    "checkers": 3,
    "exercises": 3,
    "museum": 3,
    "_style": 3,
    "_motion": 3,
    "plots": 3,
    "runs": 4,
    "_execute": 4,
    "cli": 4,
    "__main__": 4,
}


def dotted(path: Path) -> str:
    """``vi_tutorial/exercises/chapter_01.py`` -> ``exercises.chapter_01``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path, nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The package's own modules that these statements import."""
    package = ["vi_tutorial", *path.relative_to(PACKAGE).parent.parts]
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            names = [f"{origin}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            root, *rest = name.split(".")
            if root == "vi_tutorial":
                while rest and ".".join(rest) not in MODULES:
                    rest.pop()  # a name in the module, rather than a module
                yield ".".join(rest) or "__init__"


def floor(module: str) -> int:
    name = module.split(".")[0]
    assert name in FLOORS, f"{name} is new: give it a floor"
    return FLOORS[name]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_its_floor_or_below(module):
    path = MODULES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = floor(module)
    above = {name for name in imported(path, ast.walk(tree)) if floor(name) > own}
    assert not above, f"{module} is on floor {own}, below {', '.join(sorted(above))}"


def test_imports_never_run_in_a_circle():
    graph = {}
    for module, path in MODULES.items():
        body = ast.parse(path.read_text(encoding="utf-8")).body
        graph[module] = set(imported(path, body)) - {module}
    TopologicalSorter(graph).prepare()
