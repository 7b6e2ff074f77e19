"""All benchmarks, one Markdown file: `python benchmarks/run.py [--short] [--resume] [--output FILE]`.

They run one after the other, each in a process of its own. The file is written after each of them, so that you may interrupt the run:
with `--resume`, the next one keeps what the file has. The file also lists measurements that are not possible on this machine. The
exit code is 1 if a benchmark failed: an answer was wrong, or a limit was exceeded.
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
    "Decoding": "decode.py",
    "Fetching": "fetch.py --tls no --concurrency 64",
    "Fetching with TLS": "fetch.py --tls yes --concurrency 64 --rounds 3",
    "Fetching with 1, 16 and 256 in flight": "fetch.py --tls no --concurrency 1 16 256 --rounds 3",
    "Fetching with asyncio's own loop": "fetch.py --tls no --concurrency 64 --loops asyncio --rounds 3",
    "Many tokens": "fanout.py",
    "Stalls of the event loop": "stall.py",
    "Import": "import_time.py",
    "Where one request's time goes": "profile_request.py",
    "Cost of the protections": "overhead.py",
    "Jobs and stores": "job.py",
    "Several processes": "processes.py",
}
"""Commands by title. Each takes less than ten minutes, but for the last three."""

COMPARED = (
    "flinks-async", "aiohttp", "attrs", "cattrs", "httptools", "msgspec", "multidict", "yarl", "uvloop", "aiohttp-retry", "httpx",
    "niquests", "orjson", "pydantic", "pyreqwest", "pyarrow", "duckdb", "psycopg", "backports.zstd",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="the short form of each; about two minutes")
    names = sorted({command.partition(".")[0] for command in BENCHMARKS.values()})
    parser.add_argument("--output", type=Path, default=Path("benchmarks.md"), help="default: %(default)s")
    parser.add_argument("--only", nargs="*", default=names, choices=names, metavar="NAME")
    parser.add_argument(
        "--resume", action="store_true", help="keep the results that the file has, with the same versions"
    )
    options = parser.parse_args()
    head = f"# Benchmarks{', short form' if options.short else ''}\n\n{machine()}.\n\n{versions(COMPARED)}.\n\n"
    before = options.output.read_text(encoding="utf-8") if options.resume and options.output.exists() else ""
    kept = before.split("\n## ")[1:] if versions(COMPARED) in before else []
    parts = {part.partition("\n")[0]: f"## {part.rstrip()}\n" for part in kept if "**Failed**" not in part}
    failed = []
    for title, command in BENCHMARKS.items():
        script, *arguments = command.split()
        name = script.removesuffix(".py")
        if options.short:
            arguments = ["--short"]
        if name not in options.only or title in parts or (options.short and title.startswith("Fetching ")):
            continue
        print(f"{title} ...", end=" ", flush=True)
        begun = time.monotonic()
        ran = subprocess.run(
            [sys.executable, HERE / script, *arguments], check=False, capture_output=True, encoding="utf-8"
        )
        took = dt.timedelta(seconds=round(time.monotonic() - begun))
        print(f"{'failed' if ran.returncode else 'done'} in {took}", flush=True)
        part = f"`python benchmarks/{' '.join([script, *arguments])}`, {dt.date.today()}, in {took}"
        part = f"## {title}\n\n{part}\n\n{ran.stdout.strip()}\n"
        if ran.returncode:
            failed.append(name)
            part += f"\n**Failed** (exit code {ran.returncode}): {last_line(ran.stderr)}\n"
        parts[title] = part
        result = "Failed: " + ", ".join(failed) if failed else "All answers were the right ones."
        ordered = [parts[title] for title in BENCHMARKS if title in parts]
        options.output.write_text("\n".join([f"{head}{result}\n", *ordered]), encoding="utf-8")
    print(f"Written: {options.output}")
    return 1 if failed else 0


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it wrote nothing"])[-1]


if __name__ == "__main__":
    sys.exit(main())
