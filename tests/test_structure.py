"""The structure that CONTRIBUTING.md draws: layers without circles, one name for one thing, and files that exist."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections import Counter
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

import flinks_async

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "flinks_async"
CONTRIBUTING_FILE = ROOT / "CONTRIBUTING.md"
CONTRIBUTING = CONTRIBUTING_FILE.read_text(encoding="utf-8")

SIBLINGS = {"protocol.py", "errors.py"}
"""Base names that several folders may have, because the files are of one kind."""

SHIMS = {"flinks_async.columns", "flinks_async.middleware.rate"}
"""Former places of public names."""

UPWARD = {("flinks_async.models", "flinks_async.tables"): "`answer.to_arrow()` is a method, and pyarrow is optional"}
"""Imports inside functions that run against the layers, with the reason."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports_of(name: str, *, inside_functions: bool) -> set[str]:
    """The modules of the package that a module imports, for type checking too."""
    path = MODULES[name]
    tree = tree_of(path)
    later = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or (node in later) is not inside_functions:
            continue
        base = package[: len(package) - node.level + 1] if node.level else []
        source = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            submodule = f"{source}.{alias.name}"
            found.add(submodule if submodule in MODULES else source)
    return {module for module in found if module in MODULES} - {name}


def layers() -> dict[str, int]:
    (block,) = re.findall(r"```layers\n(.*?)```", CONTRIBUTING, re.DOTALL)
    return {room: number for number, line in enumerate(block.splitlines()) for room in line.split()}


def test_no_imports_form_a_circle() -> None:
    graph = {name: imports_of(name, inside_functions=False) for name in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_every_module_has_its_layer() -> None:
    rooms = {name.split(".")[1] for name in MODULES if "." in name}
    assert rooms == set(layers())


@pytest.mark.parametrize("inside_functions", [False, True])
def test_imports_follow_the_layers(inside_functions: bool) -> None:
    layer = layers()
    upward = {
        (name, imported)
        for name in MODULES
        if "." in name
        for imported in imports_of(name, inside_functions=inside_functions)
        if "." not in imported or layer[imported.split(".")[1]] > layer[name.split(".")[1]]
    }
    assert upward == (set(UPWARD) if inside_functions else set())


def test_only_the_transport_imports_aiohttp() -> None:
    importers = {
        name
        for name, path in MODULES.items()
        if re.search(r"^\s*(?:import|from) aiohttp\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    allowed = {name for name in MODULES if name.startswith(("flinks_async.transport", "flinks_async.testing"))}
    assert importers - allowed <= {"flinks_async.client", "flinks_async.client_options"}  # the type of `session=`


def test_the_files_that_contributing_names_exist() -> None:
    named = set(re.findall(r"`([\w./]+(?:\.py|\.md|\.toml|/))`", CONTRIBUTING))
    assert len(named) > 30
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_the_modules_and_tests_of_the_mutation_run_exist() -> None:
    source = (ROOT / "tests/mutation/__main__.py").read_text(encoding="utf-8")  # its imports are those of developers
    _, table, _ = re.split(r"^TESTS = \{$|^\}$", source, maxsplit=2, flags=re.MULTILINE)
    modules = re.findall(r'^    "([\w/]+)":', table, re.MULTILINE)
    assert len(modules) > 15
    assert set(modules) >= tomllib.loads((ROOT / "tests/mutation/explained.toml").read_text()).keys()
    rows = re.findall(r'(?:: |^CODEC = )"([\w/ ]+)",?$', source, re.MULTILINE)
    tests = {name for names in rows for name in names.split()}
    files = [f"flinks_async/{module}.py" for module in modules] + [
        re.sub(r"(\w+)$", r"test_\1.py", f"tests/{name}") for name in tests
    ]
    assert [path for path in files if not (ROOT / path).exists()] == []


# --- public names -----------------------------------------------------------------------------------------------------

PUBLIC = re.findall(r"^    (flinks_async[\w.]*)", flinks_async.__doc__ or "", re.MULTILINE)


@cache
def documented_assignments() -> set[str]:
    """Names of the package that are assigned and then described by a string, as constants and type aliases are."""
    found = set()
    for path in MODULES.values():
        for first, second in pairwise(tree_of(path).body):
            if isinstance(second, ast.Expr) and isinstance(second.value, ast.Constant):
                target = first.targets[0] if isinstance(first, ast.Assign) else getattr(first, "target", None)
                found |= {target.id} if isinstance(target, ast.Name) else set()
    return found


@pytest.mark.parametrize("name", PUBLIC)
def test_each_name_of_a_public_module_exists_and_is_documented(name: str) -> None:
    module, described = import_module(name), documented_assignments()
    assert len(set(module.__all__)) == len(module.__all__) > 0
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isclass(value):
            assert vars(value).get("__doc__"), public  # its own, not inherited
        elif inspect.isroutine(value) or inspect.ismodule(value):
            assert value.__doc__, public
        else:
            assert public in described, public


def test_documents_import_public_names_only() -> None:
    documents = [ROOT / "README.md", CONTRIBUTING_FILE, *(ROOT / "docs").glob("*.md")]
    found = 0
    for document in documents:
        for block in re.findall(
            r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        ):
            for node in ast.walk(ast.parse(block)):
                assert not isinstance(node, ast.Import) or not any(a.name.startswith("flinks") for a in node.names)
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flinks_async"):
                    assert node.module in PUBLIC, document.name
                    public = import_module(node.module).__all__
                    assert [alias.name for alias in node.names if alias.name not in public] == [], document.name
                    found += 1
    assert found > 20


def test_no_two_files_share_a_name() -> None:
    files = [path for name, path in MODULES.items() if name not in SHIMS and not path.name.startswith("__")]
    shared = {name for name, count in Counter(path.name for path in files).items() if count > 1}
    assert shared - SIBLINGS == set()


def test_no_two_classes_of_the_package_share_a_name() -> None:
    classes = Counter(
        node.name
        for path in MODULES.values()
        for node in tree_of(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert {name for name, count in classes.items() if count > 1} == set()


@pytest.mark.once
def test_the_number_of_generated_examples_can_be_chosen() -> None:
    """And no test fails because a busy machine takes longer than hypothesis' deadline of 200 ms."""
    paths = [path for path in (ROOT / "tests").rglob("test_*.py") if "@given" in path.read_text(encoding="utf-8")]
    assert len(paths) > 10
    for path in paths:
        for function in ast.walk(tree_of(path)):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [ast.unparse(one).partition("(")[0] for one in function.decorator_list]
                assert "given" not in names or {"examples", "relaxed"} & {*names}, f"{path.name}: {function.name}"


def test_the_workflow_tests_every_python_that_the_package_names() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', pyproject)
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    (tested,) = re.findall(r"python: \[(.*)\]", workflow)
    assert re.findall(r'"([\d.]+)"', tested) == named
    sessions = set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(encoding="utf-8"), re.MULTILINE))
    (steps,) = re.findall(r"nox -s ([\w ]+)$", workflow, re.MULTILINE)
    (matrix,) = re.findall(r"session: \[(.*)\]", workflow)
    assert {*steps.split(), *matrix.split(", ")} <= sessions
