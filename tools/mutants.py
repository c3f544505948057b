"""Break the package on purpose, one small change at a time, and count which changes the tests notice.

``python tools/mutants.py elbo distributions`` makes the mutants of these modules and runs the unit tests on each;
``--domain`` takes the mistakes of the field in mutants.toml instead, and ``--chapters`` runs the chapters alone on
those. A mutant lives in a forked process's memory: it is never written to a file. Progress is kept in
build/mutants.json, so that an interrupted run goes on where it was; ``--report`` writes benchmarks/results/proof.json
and mutants.json from it. A mutant is run against the tests that execute its lines, the quickest first.
"""

from __future__ import annotations

import ast
import copy
import gc
import hashlib
import importlib.util
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Annotated, Any

import pytest
import typer

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "tools" / "mutants.toml"
RESULTS = ROOT / "benchmarks" / "results"

# Which tests speak for a module besides tests/test_<module>.py, its examples and test_bad_input.py.
TESTS = {
    "elbo": ["gradients"],
    "models": ["gradients"],
    "families": [],
    "networks": [],
    "checks": [],
    "evaluation": [],
    "distributions": [],
    "exercises": [],
}
WHOLE = {"elbo", "distributions"}  # every mutant; of the other modules a seeded sample
SAMPLE = 60
_NOT_THERE = 99  # an exit status


# --- Mutants --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """One change: where, what was there and what is there now."""

    id: str
    function: str
    lines: tuple[int, int]
    was: str
    becomes: str
    number: int
    source: str = field(repr=False)

    @property
    def tree(self) -> ast.Module:
        """What compiles to the changed module."""
        tree = ast.parse(self.source)
        parent, name, index, _, new, _, _ = next(itertools.islice(_changes(tree), self.number, None))
        _put(parent, name, index, new)
        return ast.fix_missing_locations(tree)


_BINARY = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_COMPARE = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_NAMES = {
    "sum": "mean",
    "mean": "sum",
    "exp": "expm1",
    "log": "log1p",
    "log1p": "log",
    "amax": "amin",
    "amin": "amax",
    "zeros_like": "ones_like",
    "ones_like": "zeros_like",
    "zeros": "ones",
    "ones": "zeros",
    "logsumexp": "sum",
    "softmax": "log_softmax",
    "any": "all",
    "all": "any",
}


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of a node: one replacement for each way to be wrong."""
    new: Any = copy.deepcopy(node)
    match node:
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in _BINARY:
            new.op = _BINARY[type(op)]()
            yield new
        case ast.Compare(ops=ops):
            for index, op in enumerate(ops):
                new = copy.deepcopy(node)
                new.ops[index] = _COMPARE[type(op)]()
                yield new
        case ast.BoolOp(op=op):
            new.op = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield new
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.Call(func=ast.Attribute(value=value, attr="detach")):
            yield value
        case ast.Call(func=ast.Attribute(attr=name)) if name in _NAMES:
            new.func.attr = _NAMES[name]
            yield new
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.If(test=test) | ast.IfExp(test=test) if isinstance(test, ast.Call | ast.Name | ast.Attribute):
            new.test = ast.UnaryOp(ast.Not(), copy.deepcopy(test))
            yield new


def _places(node: ast.AST, statement: ast.AST, function: str) -> Iterator[tuple[ast.AST, str, Any, ast.AST, str]]:
    """Every (parent, name, index, innermost statement, function) whose child may change; no annotation, no message."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or isinstance(node, ast.Raise):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST):
                continue
            inner = child if isinstance(child, ast.stmt) else statement
            yield node, name, index, inner, function
            named = isinstance(child, ast.FunctionDef | ast.ClassDef)
            yield from _places(child, inner, f"{function}.{child.name}".lstrip(".") if named else function)


def _put(parent: ast.AST, name: str, index: int | None, child: ast.AST) -> None:
    if index is None:
        setattr(parent, name, child)
    else:
        getattr(parent, name)[index] = child


def _header(statement: ast.AST) -> str:
    """A statement's text, without the block that it leads."""
    if not hasattr(statement, "body") or isinstance(statement, ast.Lambda):
        return ast.unparse(statement)
    shallow: Any = copy.copy(statement)
    shallow.body = []
    shallow.__dict__.update({name: [] for name in ("orelse", "decorator_list") if hasattr(statement, name)})
    return ast.unparse(shallow).strip()


def _lines(statement: Any) -> tuple[int, int]:
    if not hasattr(statement, "lineno"):
        return 1, 1
    last = statement.body[0].lineno - 1 if isinstance(getattr(statement, "body", None), list) else statement.end_lineno
    return statement.lineno, max(last, statement.lineno)


def _changes(tree: ast.Module) -> Iterator[tuple[ast.AST, str, int | None, ast.AST, ast.AST, ast.AST, str]]:
    for parent, name, index, statement, function in list(_places(tree, tree, "")):
        child = getattr(parent, name) if index is None else getattr(parent, name)[index]
        for new in _replacements(child):
            yield parent, name, index, child, ast.copy_location(copy.copy(new), child), statement, function


def generate(source: str) -> list[Mutant]:
    """Every mutant of a module's source, in its order."""
    mutants: list[Mutant] = []
    seen: dict[str, int] = {}
    for number, (parent, place, index, child, new, statement, function) in enumerate(_changes(ast.parse(source))):
        was = _header(statement)
        _put(parent, place, index, new)
        becomes = _header(new if child is statement else statement)
        _put(parent, place, index, child)
        key = f"{function}: {was} -> {becomes}"
        seen[key] = seen.get(key, 0) + 1
        name = hashlib.sha256(f"{key} #{seen[key]}".encode()).hexdigest()[:10]
        mutants.append(Mutant(name, function or "module", _lines(statement), was, becomes, number, source))
    return mutants


def path_of(module: str, root: Path = ROOT) -> Path:
    folder = root / "vi_tutorial" / module.replace(".", "/")
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def chosen(module: str) -> list[Mutant]:
    """All mutants of a module, or its seeded sample."""
    mutants = generate(path_of(module).read_text(encoding="utf-8"))
    if module in WHOLE or len(mutants) <= SAMPLE:
        return mutants
    return random.Random(module).sample(mutants, SAMPLE)


def domain() -> list[dict[str, Any]]:
    """The mistakes of the field: name, module, was, becomes, and the chapters that use what it breaks."""
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))["domain"]


def equivalent() -> dict[str, str]:
    """The mutants that no test can notice, by id, with the reason."""
    return {entry["id"]: entry["reason"] for entry in tomllib.loads(TABLE.read_text(encoding="utf-8"))["equivalent"]}


def changed_source(entry: dict[str, Any], source: str) -> tuple[str, tuple[int, int]]:
    """The module with one text in the place of another, which must stand there exactly once; and its lines."""
    if source.count(entry["was"]) != 1:
        raise ValueError(f"{entry['name']}: found {source.count(entry['was'])} times in {entry['module']}, expected 1")
    first = source[: source.index(entry["was"])].count("\n") + 1
    return source.replace(entry["was"], entry["becomes"]), (first, first + entry["was"].count("\n"))


# --- Runs in a forked process ---------------------------------------------------------------------


class _Mutated(SourceFileLoader):
    """A module whose code is given, not read."""

    def __init__(self, name: str, path: str, code: CodeType) -> None:
        super().__init__(name, path)
        self.code = code

    def get_code(self, fullname: str) -> CodeType:
        return self.code


class _Finder:
    def __init__(self, module: str, code: CodeType) -> None:
        self.name, self.path, self.code = f"vi_tutorial.{module}", path_of(module, Path.cwd()), code

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name != self.name:
            return None
        package = [str(self.path.parent)] if self.path.name == "__init__.py" else None
        loader = _Mutated(name, str(self.path), self.code)
        return importlib.util.spec_from_file_location(
            name, self.path, loader=loader, submodule_search_locations=package
        )


class _Chosen:
    """Puts the mutant in its place, runs the chosen tests in their order and tells the first that fails."""

    def __init__(self, finder: _Finder, order: list[str], tell: Callable[[Any], None]) -> None:
        self.finder, self.order, self.tell, self.told = finder, order, tell, False

    def pytest_sessionstart(self) -> None:
        sys.meta_path.insert(0, self.finder)  # type: ignore[arg-type]  # before pytest's own, which reads the file

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        place = {name: index for index, name in enumerate(self.order)}
        items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.told:
            self.told = True
            self.tell(report.nodeid)


class _Watch:
    """Which lines of one file each test executes, and how long it takes."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines, self.tests, self.failed = str(path), set[int](), dict[str, Any](), set[str]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)

    def _local(self, frame: Any, event: str, _: object) -> Any:
        self.lines.add(frame.f_lineno)
        return self._local

    def _global(self, frame: Any, event: str, _: object) -> Any:
        return self._local if frame.f_code.co_filename == self.path else None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self.lines.clear()
        start = time.perf_counter()
        sys.settrace(self._global)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.tests[item.nodeid] = {"seconds": time.perf_counter() - start, "lines": sorted(self.lines)}


def in_fork(body: Callable[[Callable[[Any], None]], int], timeout: float) -> tuple[int | None, Any, float]:
    """Run ``body`` in a child: its exit status (None after the time-out), what it told, and the seconds it took."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        told, log = Path(folder, "told"), Path(folder, "log")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setsid()
                resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
                sink = os.open(log, os.O_CREAT | os.O_WRONLY)
                os.dup2(sink, 1)
                os.dup2(sink, 2)
                status = body(lambda value: _write(told, value))
            except BaseException as error:
                told.write_text(json.dumps(f"{type(error).__name__}: {error}"[:300]), encoding="utf-8")
            finally:
                os._exit(status)
        while True:
            done, result = os.waitpid(child, os.WNOHANG)
            seconds = time.perf_counter() - start
            if done:
                break
            if seconds > timeout:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return None, None, seconds
            time.sleep(0.01)
        value = json.loads(told.read_text(encoding="utf-8")) if told.exists() else None
        if os.waitstatus_to_exitcode(result) and value is None:
            value = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        return os.waitstatus_to_exitcode(result), value, seconds


def _files(module: str) -> list[str]:
    names = [module, "bad_input", *TESTS.get(module, [])]
    tests = [f"tests/test_{name}.py" for name in names if (ROOT / "tests" / f"test_{name}.py").exists()]
    return [str(path_of(module, Path())), *tests]


def _pytest(files: list[str], plugin: object, stop: str = "-x") -> int:
    from hypothesis import Phase, settings

    settings.register_profile("mutants", phases=(Phase.explicit, Phase.generate))  # no time for a smaller example
    settings.load_profile("mutants")
    quick = ["--assert=plain", "-p", "no:unraisableexception", "-p", "no:cacheprovider"]
    return int(pytest.main([stop, "-q", "--tb=line", *quick, "--doctest-modules", *files], plugins=[plugin]))


def baseline(module: str) -> dict[str, Any]:
    """What each test executes of the unchanged module. A test that fails there can kill nothing: it is left out."""

    def body(tell: Callable[[Any], None]) -> int:
        watch = _Watch(path_of(module, Path.cwd()))
        status = _pytest(_files(module), watch, "--maxfail=100")
        passed = {name: test for name, test in watch.tests.items() if name not in watch.failed}
        tell({"passed": passed, "failed": sorted(watch.failed)})
        return 0 if status in (0, 1) else 1

    status, told, _ = in_fork(body, 900)
    if status != 0 or not told["passed"]:
        raise RuntimeError(f"the tests of the unchanged {module} do not run: {told}")
    for name in told["failed"]:
        print(f"left out, for it fails without a mutant: {name}", flush=True)
    return told["passed"]


def against_tests(module: str, code: CodeType, lines: tuple[int, int], tests: dict[str, Any]) -> dict[str, Any]:
    """Run the tests that execute the lines (none does: all), the quickest first; the module's own before the others."""
    wanted = set(range(lines[0], lines[1] + 1))
    names = [name for name, test in tests.items() if wanted & set(test["lines"])] or list(tests)
    names.sort(key=lambda name: tests[name]["seconds"])
    files, spent = _files(module), 0.0
    for group in (files[:2], files[2:]):
        order = [name for name in names if name.split("::")[0] in group]
        if not order:
            continue

        def body(tell: Callable[[Any], None], group: list[str] = group, order: list[str] = order) -> int:
            status = _pytest(group, _Chosen(_Finder(module, code), order, tell))
            loaded = sys.modules.get(f"vi_tutorial.{module}")
            return status if loaded is None or isinstance(loaded.__loader__, _Mutated) else _NOT_THERE

        limit = min(120, 15 + 5 * sum(tests[name]["seconds"] for name in order))
        status, told, seconds = in_fork(body, limit)
        spent = round(spent + seconds, 2)
        if status == _NOT_THERE:
            raise RuntimeError(f"the tests ran with {module} as it is, not with the mutant")
        if status is None:
            return {"outcome": "timeout", "by": None, "seconds": spent}
        if status not in (0, 5):  # 5: none of them is there
            return {"outcome": "killed", "by": str(told)[:200], "seconds": spent}
    return {"outcome": "survived", "by": None, "seconds": spent}


def _twin(chapter: str) -> Path:
    (twin,) = Path("notebooks", "src").glob(f"{chapter}_*.py")
    return twin


def against_chapter(chapter: str, module: str | None, code: CodeType | None, timeout: float) -> dict[str, Any]:
    """Execute a chapter's cells with the mutated module, up to the first that fails."""
    twin = _twin(chapter)

    def body(tell: Callable[[Any], None]) -> int:
        import jupytext

        if module is not None and code is not None:
            sys.meta_path.insert(0, _Finder(module, code))  # type: ignore[arg-type]
        os.chdir("notebooks")
        space: dict[str, Any] = {"__name__": "__main__"}
        for number, cell in enumerate(jupytext.read(Path("..", twin)).cells):
            if cell.cell_type != "code":
                continue
            try:
                exec(compile(cell.source, f"cell {number}", "exec"), space)
            except BaseException as error:
                first = (str(error).strip().splitlines() or [""])[0]
                tell({"cell": number, "error": type(error).__name__, "message": first[:200]})
                return 1
        return 0

    status, told, seconds = in_fork(body, timeout)
    outcome = "timeout" if status is None else "passed" if status == 0 else "caught"
    return {"outcome": outcome, "told": told, "seconds": round(seconds, 1)}


# --- The state, and the report --------------------------------------------------------------------


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(fresh, path)


def _digest(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths if path.exists())).hexdigest()[:12]


def _state(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _tests_of(state: dict[str, Any], module: str) -> dict[str, Any]:
    """The baseline, kept while the module stands; when its tests change, what they killed before stays killed."""
    paths = [ROOT / name for name in _files(module)[1:]]
    source, tests = _digest(path_of(module)), _digest(path_of(module), *paths)
    part = state.get(module)
    if part is None or part["source"] != source:
        part = {"source": source, "mutants": {}}
    if part.get("tests") != tests:
        part["mutants"] = {name: m for name, m in part["mutants"].items() if m["outcome"] == "killed"}
        part |= {"tests": tests, "baseline": baseline(module)}
    state[module] = part
    return part


def _copied(folder: Path) -> None:
    """The repository as it is now, in another place: what a mutant's tests write stays there."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in names.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)


def _prepare(folder: Path) -> None:
    """A clean process with the slow imports done: each mutant's process starts as its copy."""
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "VI_TUTORIAL_PROGRESS": "off",
        "MPLBACKEND": "agg",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    sys.dont_write_bytecode = True
    _copied(folder)
    os.chdir(folder)
    sys.path[:0] = [str(folder), str(folder / "tools")]
    for name in (
        "torch",
        "hypothesis",
        "scipy.stats",
        "sklearn.datasets",
        "matplotlib.pyplot",
        "jupytext",
        "arviz_stats",
    ):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    torch.broadcast_shapes((1,), (1,))  # its first call imports much
    gc.collect()
    gc.freeze()


def run_modules(modules: list[str], path: Path) -> None:
    """The generated mutants of each module against its tests."""
    for module in modules:
        state = _state(path)
        part = _tests_of(state, module)
        _write(path, state)
        known = equivalent()
        todo = [m for m in chosen(module) if m.id not in part["mutants"] and m.id not in known]
        for count, mutant in enumerate(todo):
            code = compile(mutant.tree, str(path_of(module, Path.cwd())), "exec")
            result = against_tests(module, code, mutant.lines, part["baseline"])
            part["mutants"][mutant.id] = result
            if result["outcome"] != "killed":
                print(f"{result['outcome']} {mutant.id} {module}:{mutant.lines[0]} {mutant.function}")
                print(f"    {mutant.was}\n    {mutant.becomes}", flush=True)
            if count % 10 == 9 or count == len(todo) - 1:
                _write(path, state)
        found = [part["mutants"].get(m.id, {"outcome": "equivalent"})["outcome"] for m in chosen(module)]
        print(module, {name: found.count(name) for name in sorted(set(found))}, flush=True)


def run_domain(path: Path) -> None:
    """The mistakes of the field against the unit tests."""
    state = _state(path)
    for entry in domain():
        source = path_of(entry["module"]).read_text(encoding="utf-8")
        text, lines = changed_source(entry, source)
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        part = state.setdefault("domain", {})
        if part.get(entry["name"], {}).get("key") == key and part[entry["name"]]["outcome"] == "killed":
            continue
        if entry["module"] not in state or "baseline" not in state[entry["module"]]:
            _tests_of(state, entry["module"])
        code = compile(text, str(path_of(entry["module"], Path.cwd())), "exec")
        result = against_tests(entry["module"], code, lines, state[entry["module"]]["baseline"])
        part[entry["name"]] = {"key": key, **result}
        if result["outcome"] != "killed":
            print(f"{result['outcome']}: {entry['name']}", flush=True)
        _write(path, state)


def run_chapters(path: Path) -> None:
    """The mistakes of the field against the chapters alone, up to the first that catches each."""
    state = _state(path)
    unchanged, parts = state.setdefault("unchanged", {}), state.setdefault("chapters", {})
    for entry in domain():
        text, _ = changed_source(entry, path_of(entry["module"]).read_text(encoding="utf-8"))
        code = compile(text, str(path_of(entry["module"], Path.cwd())), "exec")
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        if parts.get(entry["name"], {}).get("key") != key:
            parts[entry["name"]] = {"key": key, "runs": {}}
        runs = parts[entry["name"]]["runs"]
        for chapter in entry["chapters"].split():
            if chapter in runs and runs[chapter]["of"] != _digest(_twin(chapter)):
                del runs[chapter]  # the chapter is another one now
        for chapter in entry["chapters"].split():
            if any(run["outcome"] == "caught" for run in runs.values()):
                break
            if chapter not in runs:
                runs[chapter] = against_chapter(chapter, entry["module"], code, 300) | {"of": _digest(_twin(chapter))}
                print(f"{entry['name']}: {chapter} {runs[chapter]}", flush=True)
                _write(path, state)
    # A catch counts where the chapter passes unchanged in the same way; passing with some mutant shows that too.
    passed = {c for part in parts.values() for c, run in part["runs"].items() if run["outcome"] == "passed"}
    for chapter in sorted({c for part in parts.values() for c in part["runs"]} - passed - set(unchanged)):
        unchanged[chapter] = against_chapter(chapter, None, None, 300)
        print(f"unchanged: {chapter} {unchanged[chapter]}", flush=True)
        _write(path, state)


def report(path: Path, chapters_path: Path) -> None:
    """Write proof.json, whose other parts stay as they are, and mutants.json with everything by name."""
    state, known = _state(path), equivalent()
    parts: dict[str, Any] = {}
    survivors: list[dict[str, Any]] = []
    for module in TESTS:
        if not state.get(module, {}).get("mutants"):
            continue
        results = state[module]["mutants"]
        mutants = [m for m in chosen(module) if m.id in results or m.id in known]
        outcomes = {m.id: "equivalent" if m.id in known else results[m.id]["outcome"] for m in mutants}
        count = list(outcomes.values()).count
        parts[module] = {name: count(name) for name in ("killed", "timeout", "equivalent")} | {"total": len(mutants)}
        survivors += [
            {"module": module, "id": m.id, "function": m.function, "line": m.lines[0], "was": m.was}
            | {"becomes": m.becomes, "outcome": outcomes[m.id], "reason": known.get(m.id)}
            for m in mutants
            if outcomes[m.id] != "killed"
        ]
    chapters = {"chapters": {}, "unchanged": {}} | _state(chapters_path)
    runs, tests = chapters["chapters"], state.get("domain", {})
    table = []
    for entry in domain():
        tried = runs.get(entry["name"], {}).get("runs", {})
        tried = {
            c: r for c, r in tried.items() if chapters["unchanged"].get(c, {"outcome": "passed"})["outcome"] == "passed"
        }
        caught = next(({"chapter": c} | r["told"] for c, r in tried.items() if r["outcome"] == "caught"), None)
        test = tests.get(entry["name"], {})
        table.append(
            {name: entry[name] for name in ("name", "module", "was", "becomes")}
            | {"killed_by": test.get("by") if test.get("outcome") == "killed" else None}
            | {"chapters_run": sorted(tried), "caught_by": caught}
        )
    totals = {
        "total": len(table),
        "killed_by_tests": sum(row["killed_by"] is not None for row in table),
        "killed_by_chapters": sum(row["caught_by"] is not None for row in table),
    }
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    merge(RESULTS / "proof.json", {"commit": commit.stdout.strip(), "mutants": parts, "domain_mutants": totals})
    _write(RESULTS / "mutants.json", {"survivors": survivors, "domain": table})
    for module, part in parts.items():
        share = part["killed"] / max(1, part["total"] - part["equivalent"])
        print(f"{module:14} {part} {share:.1%}")
    print(totals)


def merge(path: Path, parts: dict[str, Any]) -> None:
    """Write these keys of a JSON file and leave the others as they are."""
    _write(path, _state(path) | parts)


def main(
    modules: Annotated[list[str] | None, typer.Argument(help="Modules of the package.", show_default="all")] = None,
    take_domain: Annotated[bool, typer.Option("--domain", help="The mistakes of mutants.toml, unit tests.")] = False,
    chapters: Annotated[bool, typer.Option("--chapters", help="The same mistakes, chapters alone.")] = False,
    only_report: Annotated[bool, typer.Option("--report", help="Write the results found so far.")] = False,
    state: Annotated[Path, typer.Option(help="Where the progress is kept.")] = ROOT / "build" / "mutants.json",
) -> None:
    """Count which mutants the tests notice."""
    state = state.resolve()
    chapters_state = state.with_name(state.stem + "_chapters.json")  # chapters and tests can run at the same time
    if only_report:
        report(state, chapters_state)
        return
    with tempfile.TemporaryDirectory() as folder:
        _prepare(Path(folder).resolve())
        if chapters:
            run_chapters(chapters_state)
        elif take_domain:
            run_domain(state)
        else:
            run_modules(modules or list(TESTS), state)
        os.chdir(ROOT)


if __name__ == "__main__":
    typer.run(main)
