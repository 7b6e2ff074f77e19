"""The mutation run: each small change (mutant) of a module in `TESTS` must make a test fail, or be explained in `explained.toml`.

python3 dev.py nox -s mutate                          all modules: about 8,000 mutants
python3 dev.py nox -s mutate -- quota codec/steps     those whose path has one of these in it
python3 dev.py nox -s mutate -- limits retry ledger   what guarantees are made of

Each processor runs one module at a time. A mutant takes about a third of a second of it.

A mutant has one change: an operator of cosmic-ray (without those that only make noise: every operator replaced by every
other one, decorators, names), or one statement removed. Texts, annotations and asserts are not changed, and no file is: a
mutant exists in the memory of a forked process, which runs the tests of its module.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import io
import multiprocessing
import os
import sys
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import hypothesis
import parso
import pytest
from cosmic_ray.mutating import MutationVisitor
from cosmic_ray.operators.operator import Operator
from cosmic_ray.operators.provider import OperatorProvider

ROOT = Path(__file__).resolve().parents[2]
EXPLAINED = Path(__file__).with_name("explained.toml")
EXAMPLES = 40  # that a test with generated examples takes at most
MEMORY = 4 * 1024**3  # bytes that a mutant may have

# For each module, the tests that must notice a mutant; those that notice most come first.
CODEC = "codec_parse codec codec_compiled codec_hooks codec_turns"
TESTS = {
    "limits/breaker": "breaker",
    "limits/concurrency": "concurrency_rules concurrency",
    "limits/estimate": "pace",
    "limits/slow_start": "pace",
    "limits/governor": "governor breaker rate quota",
    "limits/pace": "pace governor",
    "limits/quota": "quota",
    "limits/rate": "rate retry_after",
    "limits/reopening": "pace governor",
    "middleware/hedge": "hedge",
    "middleware/retry": "retry retry_after quota breaker",
    "classify": "classify retry quota governor breaker pending client",
    "transport/inflate": "inflate",
    "bulk/ledger": "bulk/ledger",
    "codec/__init__": CODEC,
    "codec/reference": CODEC,
    "codec/observed": "drift codec_compiled codec_hooks codec_turns",
    "codec/compiled": CODEC,
    "codec/parse": f"{CODEC} codec_envelope",
    "schema": CODEC,
    "codec/steps": CODEC,
}

PYTEST = [
    *("-x", "-q", "-n0", "-mnot torture", "--assert=plain", "--timeout=15"),
    *("-pno:randomly", "-pno:cacheprovider", "-pno:schemathesis"),
]

BINARY = (
    "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Div Mod_Mul Pow_Mul LShift_RShift RShift_LShift BitOr_BitAnd BitAnd_BitOr"
)
COMPARISON = "Eq_NotEq NotEq_Eq Lt_LtE LtE_Lt Gt_GtE GtE_Gt Is_IsNot IsNot_Is"
OPERATORS = [
    *(f"ReplaceBinaryOperator_{name}" for name in BINARY.split()),
    *(f"ReplaceComparisonOperator_{name}" for name in COMPARISON.split()),
    *("ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_USub", "AddNot"),
    *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd", "NumberReplacer"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop", "ExceptionReplacer"),
]


class LeaveOut(Operator):
    """Leaves out a statement of a function; cosmic-ray has nothing like it."""

    KEPT = frozenset({"string", "strings", "assert_stmt", "import_name", "import_from", "nonlocal_stmt", "global_stmt"})

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if node.type == "simple_stmt" and parso.tree.search_ancestor(node, "funcdef"):
            first = node.children[0]
            if first.type not in self.KEPT and first.get_code().strip() not in ("pass", "..."):
                yield first.start_pos, first.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        first = node.children[0]
        text = first.get_code(include_prefix=False).partition("\n")[0]
        node.children = [
            parso.python.tree.Name(f"pass  # {text}\n", first.start_pos, prefix=first.get_first_leaf().prefix)
        ]
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


class Meaning(ast.NodeTransformer):
    """Reduces a module to its behaviour: without annotations and without kinds of parameters."""

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        node.args = [ast.arg(arg.arg) for arg in (*node.posonlyargs, *node.args, *node.kwonlyargs)]
        node.defaults = [self.visit(default) for default in (*node.defaults, *node.kw_defaults) if default]
        node.posonlyargs, node.kwonlyargs, node.kw_defaults = [], [], []
        for rest in filter(None, (node.vararg, node.kwarg)):
            rest.annotation = None
        return node

    def visit_FunctionDef(self, node: Any) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)


def meaning(code: str) -> str:
    return ast.dump(Meaning().visit(ast.parse(code)))


def mutants(code: str) -> Iterator[tuple[int, str, str]]:
    """Yields for each mutant of a module: the number of the line, its function and new text, and the whole code."""
    usual, provider, tree = meaning(code), OperatorProvider(), ast.parse(code)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for operator in [*(provider[name]() for name in OPERATORS), LeaveOut()]:
        for occurrence in range(sys.maxsize):
            mutant = MutationVisitor.mutate_code(code, operator, occurrence)
            if mutant is None:
                break
            try:
                if meaning(mutant) == usual:
                    continue
            except SyntaxError:
                continue
            after = mutant.splitlines()
            line = next(n for n, (old, new) in enumerate(zip(code.splitlines(), after, strict=False), 1) if old != new)
            inside = [node.name for node in functions if node.lineno <= line <= (node.end_lineno or 0)]
            yield line, ": ".join([*inside[-1:], after[line - 1].strip()]), mutant


def warm_up(tests: list[str]) -> None:
    """Imports what the forks then need not import again, which is everything but our own code."""
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main([*PYTEST, "--collect-only", *tests])
    for name in [name for name in sys.modules if name.partition(".")[0] in ("flinks_async", "tests")]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()


class FewExamples:
    """A pytest plugin, so that mutants cost less: few generated examples, and only after all that is in tables."""

    @staticmethod
    def pytest_collection_modifyitems(items: list[Any]) -> None:
        for item in items:
            usual = getattr(item.obj, "_hypothesis_internal_use_settings", None)
            if usual is not None:
                few = hypothesis.settings(usual, max_examples=min(usual.max_examples, EXAMPLES))
                getattr(item.obj, "__func__", item.obj)._hypothesis_internal_use_settings = few
        items.sort(key=lambda item: hasattr(item.obj, "hypothesis"))


def run_tests(path: Path, code: str, tests: list[str]) -> None:
    """In a fork: the tests of a module, as if its file held this code."""
    import resource

    usual = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, name: str) -> Any:
        return compile(code, path, "exec", dont_inherit=True) if self.path == str(path) else usual(self, name)

    SourceFileLoader.get_code = get_code
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    # The same examples for all mutants, and no time spent on nice ones.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutation", derandomize=True, deadline=None, database=None, phases=phases)
    hypothesis.settings.load_profile("mutation")
    os._exit(pytest.main([*PYTEST, *tests], plugins=[FewExamples()]))


def outcome(path: Path, code: str, tests: list[str], limit: float | None = None) -> str:
    """`survived`, `killed`, or `timed out` after `limit` seconds."""
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=(path, code, tests))
    process.start()
    process.join(limit)
    if process.exitcode is None:
        process.kill()
        process.join()
        return "timed out"
    return "killed" if process.exitcode else "survived"


def module_path(name: str) -> Path:
    return ROOT / "flinks_async" / f"{name}.py"


def path_of_tests(name: str) -> Path:
    return Path("tests", name).with_name(f"test_{Path(name).name}.py")


def run_module(name: str) -> int:
    """Prints the outcome of a module's mutants. Returns how many survived without an explanation."""
    os.chdir(ROOT)
    explained = tomllib.loads(EXPLAINED.read_text(encoding="utf-8")).get(name, {})
    path = module_path(name)
    code = path.read_text(encoding="utf-8")
    tests = [str(path_of_tests(test)) for test in TESTS[name].split()]
    warm_up(tests)
    start = time.monotonic()
    if outcome(path, code, tests) != "survived":
        sys.exit(f"{name}: the tests fail without a mutation: {' '.join(tests)}")
    limit = 3 * (time.monotonic() - start) + 3
    counts = {"killed": 0, "timed out": 0, "survived": 0}
    survivors, new = set(), 0
    for line, text, mutant in mutants(code):
        came_of_it = outcome(path, mutant, tests, limit)
        counts[came_of_it] += 1
        if came_of_it == "survived":
            survivors.add(text)
            if text not in explained:
                new += 1
                print(f"  {path.relative_to(ROOT)}:{line}: {text}", flush=True)
    for text in sorted(explained.keys() - survivors):
        print(f"  {name}: explained, but no survivor: {text}", flush=True)
    said = ", ".join(f"{number} {what}" for what, number in counts.items())
    print(f"{name}: {said}, {new} of them not explained ({time.monotonic() - start:.0f} s)", flush=True)
    return new


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py mutate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", nargs="*", help="run the modules whose path contains one of these; default: all")
    wanted = parser.parse_args().part
    explained = tomllib.loads(EXPLAINED.read_text(encoding="utf-8"))
    if missing := [name for name in TESTS if not module_path(name).exists()] + sorted(explained.keys() - TESTS.keys()):
        sys.exit(f"no such module: {', '.join(missing)}. Correct TESTS in {__file__}, or {EXPLAINED.name}")
    names = [name for name in TESTS if not wanted or any(part in f"{name}.py" for part in wanted)]
    names.sort(key=lambda name: module_path(name).stat().st_size, reverse=True)  # so that none is left to run alone
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork")) as pool:
        survivors = sum(pool.map(run_module, names))
    print(
        f"\n{survivors} mutants survived without an explanation." if survivors else "\nNo mutant is left unexplained."
    )
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
