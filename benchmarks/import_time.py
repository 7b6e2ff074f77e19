"""The cost of `import flinks_async`: `python benchmarks/import_time.py [--short]`.

New processes import the dependencies and then the package; the processor time of the second step is compared with that of
the first. The exit code is 1 if the ratio is over the limit, or if something optional was imported. The limit is a ratio,
because on a shared machine the same processes may take twice as long an hour later.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from figures import machine, spread, versions

# 40 ms was the aim where the dependencies take 170 ms; the rest is for what differs from process to process.
LIMIT = 0.26
DEPENDENCIES = ("aiohappyeyeballs", "aiohttp", "attrs", "cattrs", "httptools", "msgspec", "multidict", "yarl")
# Everything that an extra, a test or a comparison may bring, and the parts of the package that need it.
OPTIONAL = (
    "click", "rich", "uvloop", "pyarrow", "pandas", "polars", "opentelemetry", "redis", "duckdb", "dask", "distributed", "ray",
    "obstore", "psycopg", "filelock", "jinja2", "matplotlib", "pytest", "orjson", "pydantic", "httpx", "requests",
    "flinks_async.testing", "flinks_async.cli", "flinks_async.tables",
)  # fmt: skip

# The dependencies' own optional imports (cattrs and aiohttp try a few) are not ours: they are subtracted.
PROGRAM = f"""
import sys, time, json
begun = time.process_time()
import {", ".join(DEPENDENCIES)}
before, middle = set(sys.modules), time.process_time()
import flinks_async
ended = time.process_time()
optional = {OPTIONAL!r}
print(json.dumps({{
    "dependencies": (middle - begun) * 1000, "own": (ended - middle) * 1000, "modules": len(set(sys.modules) - before),
    "optional": sorted({{name for name in optional if name in sys.modules and name not in before}}),
}}))
"""


def one(bytecode: str) -> dict[str, Any]:
    """One new process.

    Args:
        bytecode: a folder for compiled modules, since an installed package is compiled but a checkout may not be.
    """
    environ = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
    ran = subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, check=True, env=environ)
    result: dict[str, Any] = json.loads(ran.stdout)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer processes")
    short = parser.parse_args().short
    with tempfile.TemporaryDirectory() as bytecode:
        one(bytecode)
        runs = [one(bytecode) for _ in range(7 if short else 31)]
    own, dependencies = [run["own"] for run in runs], [run["dependencies"] for run in runs]
    optional = sorted({name for run in runs for name in run["optional"]})
    print(f"{machine()}.\n{versions(DEPENDENCIES)}. Median of {len(runs)} processes.\n")
    share = statistics.median(one / other for one, other in zip(own, dependencies, strict=True))
    print(
        f"`import flinks_async` takes {statistics.median(own):.1f} ms (± {spread(own):.0%}, the fastest "
        f"{min(own):.1f} ms) over its dependencies, which take {statistics.median(dependencies):.0f} ms "
        f"(± {spread(dependencies):.0%}): {share:.2f} of them; the limit is {LIMIT:.2f}. "
        f"It loads {runs[0]['modules']} modules."
    )
    print(f"Optional modules imported: {', '.join(optional) or 'none'}.")
    return 1 if optional or share > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
