"""Every module's examples run, and every public name has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from types import ModuleType

import pytest

import vi_tutorial

NAMES = sorted(
    name for _, name, _ in pkgutil.walk_packages(vi_tutorial.__path__, "vi_tutorial.") if not name.endswith("__main__")
)
FINDER = doctest.DocTestFinder(exclude_empty=True)


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


PUBLIC = [
    (module, name)
    for module in NAMES
    for name in getattr(load(module), "__all__", [])
    if not isinstance(getattr(load(module), name), (str, int, float, dict, tuple))
    and (inspect.isroutine(getattr(load(module), name)) or inspect.isclass(getattr(load(module), name)))
]


def over(names: list[tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("module", "name"), names, ids=[f"{m[12:]}.{n}" for m, n in names])


every_public = over(PUBLIC)
every_function = over([(m, n) for m, n in PUBLIC if inspect.isfunction(getattr(load(m), n))])
every_class = over([(m, n) for m, n in PUBLIC if inspect.isclass(getattr(load(m), n))])


@pytest.mark.parametrize("module", NAMES)
def test_examples(module: str) -> None:
    result = doctest.testmod(load(module), report=True)
    assert result.failed == 0


@pytest.mark.parametrize("module", NAMES)
def test_every_module_says_what_it_is_for(module: str) -> None:
    assert (load(module).__doc__ or "").strip()


@pytest.mark.parametrize("module", [m for m in NAMES if hasattr(load(m), "__all__")])
def test_all_lists_what_the_module_defines_in_order(module: str) -> None:
    loaded = load(module)
    assert list(loaded.__all__) == sorted(loaded.__all__, key=lambda n: (not n.isupper(), n))
    public = {
        name
        for name, value in vars(loaded).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == loaded.__name__
    }
    assert public <= set(loaded.__all__), f"public, but not in __all__: {public - set(loaded.__all__)}"


@every_public
def test_every_public_name_has_a_docstring_with_an_example(module: str, name: str) -> None:
    value = getattr(load(module), name)
    text = inspect.getdoc(value) or ""
    assert re.match(r"\S.*\.", text, re.DOTALL), "starts with a sentence"
    assert FINDER.find(value, name), "no doctest in it"


def _has_arguments(value: object) -> bool:
    return bool([p for p in inspect.signature(value).parameters if p != "self"])  # type: ignore[arg-type]


@every_function
def test_functions_state_arguments_and_what_they_return_or_raise(module: str, name: str) -> None:
    value = getattr(load(module), name)
    text = inspect.getdoc(value) or ""
    referred = "as for :func:" in text  # the sections stand with the function it refers to
    if _has_arguments(value) and not referred:
        assert "Args:" in text
        described = text[text.index("Args:") :]
        for argument in inspect.signature(value).parameters:
            assert re.search(rf"^    \*{{0,2}}{argument}:", described, re.MULTILINE), f"{argument} is not described"
    annotation = str(inspect.signature(value).return_annotation)
    gives_nothing = annotation in ("None", "<class 'NoneType'>") or "Iterator[" in annotation  # a context manager
    assert gives_nothing or referred or "Returns:" in text


@every_function
def test_signatures_are_annotated(module: str, name: str) -> None:
    value = getattr(load(module), name)
    signature = inspect.signature(value)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter.name


@every_class
def test_methods_of_a_class_have_docstrings(module: str, name: str) -> None:
    value = getattr(load(module), name)
    for method, member in vars(value).items():
        if not method.startswith("_") and (inspect.isfunction(member) or isinstance(member, (property, staticmethod))):
            assert inspect.getdoc(getattr(value, method)), f"{name}.{method} has no docstring"
