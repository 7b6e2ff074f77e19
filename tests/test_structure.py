"""The structure that CONTRIBUTING.md draws: layers without circles, one name for one thing, and files that exist."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "flinks_async"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

SIBLINGS = {"protocol.py", "parquet.py", "errors.py"}
"""Base names that several folders may have, because the files are of one kind."""

SHIMS = {"flinks_async.columns", "flinks_async.middleware.rate"}
"""Former places of public names."""

UPWARD = {("flinks_async.models", "flinks_async.tables"): "`answer.to_arrow()` is a method, and pyarrow is optional"}
"""Imports inside functions that run against the layers, with the reason."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name: str, *, inside_functions: bool) -> set[str]:
    """The modules of the package that a module imports, for type checking too."""
    path = MODULES[name]
    tree = ast.parse(path.read_text(encoding="utf-8"))
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
