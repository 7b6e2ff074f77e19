"""All benchmarks, one Markdown file: `python benchmarks/run.py [--short] [--output FILE]`.

They run one after the other, each in a process of its own. The file also lists measurements that are not possible on this
machine. The exit code is 1 if a benchmark failed: an answer was wrong, or a limit was exceeded.
"""

from __future__ import annotations

import argparse
import datetime as dt
import subprocess
import sys
import time
from pathlib import Path

from figures import machine, versions

HERE = Path(__file__).parent
BENCHMARKS = {
    "decode": "Decoding",
    "fetch": "Fetching",
    "fanout": "Many tokens",
    "stall": "Stalls of the event loop",
    "import_time": "Import",
    "profile_request": "Where one request's time goes",
    "overhead": "Cost of the protections",
    "job": "Jobs and stores",
    "processes": "Several processes",
}
COMPARED = (
    "flinks-async", "aiohttp", "attrs", "cattrs", "httptools", "msgspec", "multidict", "yarl", "uvloop", "aiohttp-retry", "httpx",
    "niquests", "orjson", "pydantic", "pyreqwest", "pyarrow", "duckdb", "psycopg", "backports.zstd",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="the short form of each; about two minutes")
    parser.add_argument("--output", type=Path, default=Path("benchmarks.md"), help="default: %(default)s")
    parser.add_argument("--only", nargs="*", default=list(BENCHMARKS), choices=list(BENCHMARKS), metavar="NAME")
    options = parser.parse_args()
    form = ["--short"] if options.short else []
    started = time.monotonic()
    parts, failed = [], []
    for name in options.only:
        print(f"{name} ...", end=" ", flush=True)
        begun = time.monotonic()
        command = [sys.executable, HERE / f"{name}.py", *form]
        ran = subprocess.run(command, check=False, capture_output=True, encoding="utf-8")
        print(f"{'failed' if ran.returncode else 'done'} in {time.monotonic() - begun:.0f} s", flush=True)
        part = (
            f"## {BENCHMARKS[name]}\n\n`python benchmarks/{' '.join([f'{name}.py', *form])}`\n\n{ran.stdout.strip()}\n"
        )
        if ran.returncode:
            failed.append(name)
            part += f"\n**Failed** (exit code {ran.returncode}): {last_line(ran.stderr)}\n"
        parts.append(part)
    took = dt.timedelta(seconds=round(time.monotonic() - started))
    head = (
        f"# Benchmarks{', short form' if options.short else ''}\n\n"
        f"{machine()}; it took {took}.\n\n{versions(COMPARED)}.\n\n"
        f"{'Failed: ' + ', '.join(failed) if failed else 'All answers were the right ones.'}\n"
    )
    options.output.write_text("\n".join([head, *parts]), encoding="utf-8")
    print(f"Written: {options.output}")
    return 1 if failed else 0


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it wrote nothing"])[-1]


if __name__ == "__main__":
    sys.exit(main())
