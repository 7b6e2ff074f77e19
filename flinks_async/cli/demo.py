"""`flinks-async demo` and `flinks-async simulate`: a job against the simulator with faults, and the simulator alone.

With `--crash` the fetch runs in a process that kills itself. `python -m flinks_async.cli.demo` is that process: it reads its
orders from the first line of standard input, so that no argument and no environment variable holds the secret.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec
from attrs import define, field, frozen

from .. import bulk
from ..bulk import InProcess, InputFile, Job, JSONLParts, Progress, Rules
from ..bulk.files import MANIFEST, crash_points
from ..checks import counted, duration
from ..client import FlinksClient
from ..config import AUTH_SCHEMES, AuthScheme
from . import Exit, epilog
from .access import Clients, read_secret
from .console import OutputError, UsageError, debug_option, say
from .display import choose_display
from .job_run import JobRun, OnScan, run
from .options import bulk_settings, concurrency_option, file_name, positive, whole
from .output import Command, to_stdout

if TYPE_CHECKING:
    from ..testing import FlinksServer
    from ..testing.data import Size


_SHOWN: Final = 5
_BURST: Final = 0.25
"""Seconds of the rate limit that the simulator accepts at once."""


_share: Final = partial(click.option, type=click.FloatRange(0, 1), metavar="SHARE")


@click.command(cls=Command, epilog=epilog())
@whole("--tokens", most=1_000_000, default=10_000, help="Number of tokens.")
@_share("--faults", default=0.03, help="Share of tokens that meet faults.")
@click.option(
    "--rate-limit",
    type=click.FloatRange(min=1),
    metavar="N",
    default=1500,
    help="Requests per second that the simulator accepts. The client has to find this out.",
)
@positive("--latency", "SECONDS", default=0.05, help="Median response time of the simulator (log-normal).")
@click.option(
    "--seed", type=int, metavar="N", help="Seed of tokens, faults and answers [a random one, which is printed]."
)
@concurrency_option
@click.option("--crash", is_flag=True, help="Kill the fetch in the middle (SIGKILL), and resume it.")
@file_name("--dir", "directory", metavar="DIR", help="Folder for the files, which are kept [a temporary folder].")
@debug_option
def demo(
    tokens: int,
    faults: float,
    rate_limit: float,
    latency: float,
    seed: int | None,
    concurrency: int | None,
    crash: bool,
    directory: str | None,
) -> int:
    """Fetch made-up tokens from a simulated Flinks with faults.

    The simulator is a separate process on this machine, with a rate limit that the client is not told, and with faults. The
    answers are checked: the exit code is 0 only if every fetchable token has exactly one answer, and the right one.
    """
    from ..testing import DemoFaults, ServeOptions, ServerProcess, expected_answer

    seed = secrets.randbelow(1_000_000) if seed is None else seed
    plan = DemoFaults(share=faults, seed=seed)
    rng = random.Random(seed)
    made_up = [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(tokens)]
    options = ServeOptions(
        demo=True,
        faults=faults,
        unfetchable=plan.unfetchable,
        seed=seed,
        rate=rate_limit,
        burst=max(1.0, rate_limit * _BURST),
        latency=("lognormal", latency, 0.5),
    )
    with ExitStack() as stack:
        file, job = _prepare(directory, made_up, stack)
        server = stack.enter_context(ServerProcess(options))
        say(
            f"Simulated Flinks at {server.base_url}, seed {seed}: {100 * faults:.3g} % of the {tokens:,} tokens meet faults. "
            f"Answers take {duration(latency)} (median). The client is not told the rate limit."
        )
        shard_size = min(bulk.SHARD_SIZE, max(1, tokens // 100))  # small: the fetch can be killed between two shards
        fetch = DemoFetch(str(file), str(job), server.base_url, server.auth_secret, concurrency, shard_size)
        if crash and not _crashed(fetch, tokens):
            return Exit.FAILED
        code, progress = fetch.run()
        stats = server.stats()
        say(_on_the_wire(stats))
        if code not in (Exit.OK, Exit.FAILED):
            return code
        if progress is not None:
            say(_found_out(rate_limit, stats, progress))
        if crash:
            say(_repeated(stats, bulk.status(job)))
        if directory is None:
            say("The temporary folder is removed now; --dir keeps the files.")
        result = check(
            made_up,
            bulk.export(job),
            lambda token: plan.plan(token).fetchable,
            lambda token: expected_answer(token, seed=seed),
        )
    say(*result.lines())
    return Exit.OK if result.passed else Exit.FAILED


def _prepare(directory: str | None, tokens: list[str], stack: ExitStack) -> tuple[Path, Path]:
    """Writes the file of tokens, and purges the job of an earlier demo. Returns the file and the directory for the job."""
    try:
        folder = Path(directory or stack.enter_context(tempfile.TemporaryDirectory(prefix="flinks-async-demo-")))
        folder.mkdir(parents=True, exist_ok=True)
        file, job = folder / "demo-tokens.txt", folder / "demo-job"
        file.write_text("".join(f"{token}\n" for token in tokens), encoding="ascii")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise OutputError(f"the file of tokens cannot be written to the folder of the demo: {reason}") from None
    if (job / MANIFEST).exists():
        bulk.purge(job)
    return file, job


def _crashed(fetch: DemoFetch, tokens: int) -> bool:
    """Lets the fetch kill itself halfway. False if it did not."""
    shards = -(-tokens // fetch.shard_size)
    if not fetch.run_and_crash(after=-(-shards // 2)):
        say("WRONG: the fetch should have been killed in the middle, and was not.")
        return False
    totals = bulk.status(fetch.directory).totals
    say(f"Killed (SIGKILL) with {totals.fetched + totals.failed:,} of {tokens:,} tokens done. The job is resumed:")
    return True


def _repeated(stats: dict[str, Any], status: bulk.Status) -> str:
    window = Rules().open_shards * status.manifest.shard_size
    repeated = stats["answered"] - status.totals.fetched
    return f"{repeated:,} tokens were fetched again, because their shards were in progress at the kill (at most {window:,})."


def _on_the_wire(stats: dict[str, Any]) -> str:
    faults = sum(stats["faults"].values())
    return (
        f"On the wire, as the server counted: {stats['requests']:,} requests on {stats['connections']:,} connections, "
        f"{stats['answered']:,} answered, {faults:,} faults of {len(stats['faults'])} kinds, "
        f"at most {stats['max_in_flight']:,} at once."
    )


def _found_out(rate_limit: float, stats: dict[str, Any], progress: Progress) -> str:
    """What the client found out about the rate limit, and what it was worth.

    Args:
        progress: the last one of the run. With `--crash`, `stats` covers more requests.
    """
    learned = "did not meet this limit" if progress.learned_rate is None else f"learned {progress.learned_rate:,.0f}/s"
    return (
        f"The server accepts {rate_limit:,.0f} requests per second. The client {learned}, and made "
        f"{progress.requests / progress.seconds:,.0f}/s on average, with its start. "
        f"One after the other, the {stats['requests']:,} requests would have taken {duration(stats['seconds'])}."
    )


# --- the fetch -------------------------------------------------------------------------------------------------------

KILL: Final[int] = getattr(signal, "SIGKILL", signal.SIGTERM)
"""The signal of the kill, which cannot be caught."""


@frozen
class DemoFetch:
    """The fetch of a demo.

    Attributes:
        tokens: file with one token a line.
        directory: of the job.
        base_url, auth_secret: of the simulator.
        concurrency: requests in flight; None as in the preset.
        shard_size: tokens in a shard.
    """

    tokens: str
    directory: str
    base_url: str
    auth_secret: str = field(repr=False)
    concurrency: int | None
    shard_size: int

    def run(self) -> tuple[int, Progress | None]:
        """Starts the job or resumes it; the exit code and the last progress."""
        client = FlinksClient(
            auth_secret=self.auth_secret, base_url=self.base_url, settings=bulk_settings(self.concurrency)
        )
        job_run = JobRun(self._open, Clients(client), Rules(), InProcess(), choose_display("auto"), resume="")
        code = run(job_run.go)
        return code, None if job_run.ended is None else job_run.ended.progress

    def run_and_crash(self, after: int) -> bool:
        """Does the same in a process that kills itself. False if it did not.

        Args:
            after: shards that reach the store before the kill. The last one is not in the ledger yet, which is the worst moment.
        """
        orders = msgspec.json.encode((after, self))
        ended = subprocess.run([sys.executable, "-m", "flinks_async.cli.demo"], input=orders, check=False)
        return abs(ended.returncode) == KILL

    def _open(self, source: InputFile | None, on_scan: OnScan) -> Job:
        tokens, origin = InputFile(Path(self.tokens)), {"": self.base_url}
        return Job.start(self.directory, tokens, JSONLParts(), origin, shard_size=self.shard_size, on_scan=on_scan)


# --- the check -------------------------------------------------------------------------------------------------------


@define
class Check:
    """The answers that arrived, compared with the expected ones.

    Attributes:
        tokens: number of tokens.
        unfetchable: how many of them are always refused.
        lost: lines of fetchable tokens without an answer.
        wrong: lines with the answer of another token, or with two answers.
        unexpected: lines of unfetchable tokens that have an answer.
    """

    tokens: int
    unfetchable: int = 0
    lost: list[int] = field(factory=list)
    wrong: list[int] = field(factory=list)
    unexpected: list[int] = field(factory=list)

    @property
    def passed(self) -> bool:
        return not (self.lost or self.wrong or self.unexpected)

    def lines(self) -> list[str]:
        if self.passed:
            return [
                f"Checked: all {self.tokens - self.unfetchable:,} fetchable tokens arrived, each with its own answer. "
                f"The other {self.unfetchable:,} are always refused, and have no answer."
            ]
        problems = (
            ("fetchable tokens were lost", self.lost),
            ("answers are not those of their tokens", self.wrong),
            ("tokens that cannot be fetched have an answer", self.unexpected),
        )
        return [f"WRONG: {len(lines):,} {what}: {_some(lines)}" for what, lines in problems if lines]


def _some(lines: Sequence[int]) -> str:
    more = f" and {len(lines) - _SHOWN:,} more" if len(lines) > _SHOWN else ""
    return f"line {', '.join(map(str, lines[:_SHOWN]))}{more}"


def check(
    tokens: Sequence[str],
    answers: Iterable[bytes],
    fetchable: Callable[[str], bool],
    expected: Callable[[str], dict[str, Any]],
) -> Check:
    """Compares every answer with the expected one, to the last digit.

    Args:
        tokens: of lines 1, 2, ...
        answers: lines of the output.
        fetchable: whether a token must have an answer.
        expected: the answer of a token.
    """
    result = Check(len(tokens))
    arrived: set[int] = set()
    for record in (json.loads(answer, parse_float=Decimal) for answer in answers):
        line: int = record["line"]
        if line in arrived or not 1 <= line <= len(tokens):
            result.wrong.append(line)
        elif not fetchable(tokens[line - 1]):
            result.unexpected.append(line)
        elif record["response"] != expected(tokens[line - 1]):
            result.wrong.append(line)
        arrived.add(line)
    for line, token in enumerate(tokens, start=1):
        if not fetchable(token):
            result.unfetchable += 1
        elif line not in arrived:
            result.lost.append(line)
    return result


# --- the simulator alone ---------------------------------------------------------------------------------------------


@click.command(cls=Command)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="N",
    default=0,
    show_default=False,
    help="Port to listen on [any free one].",
)
@click.option("--size", type=click.Choice(["small", "medium", "large"]), default="medium", help="Size of the answers.")
@click.option("--seed", type=int, metavar="N", default=0, help="Seed of the data, the faults and the latency.")
@_share("--faults-share", default=0.0, help="Share of requests that fail, with faults of all kinds.")
@positive("--rate-limit", help="Maximum requests per second.")
@click.option("--latency", type=click.FloatRange(min=0), metavar="SECONDS", help="Median response time (log-normal).")
@click.option("--auth-scheme", type=click.Choice(AUTH_SCHEMES), help="Only form of the header to accept [any].")
@file_name("--secret-file", help="File with the AuthSecret to accept, '-' for standard input.")
@debug_option
def simulate(
    port: int,
    size: Size,
    seed: int,
    faults_share: float,
    rate_limit: float | None,
    latency: float | None,
    auth_scheme: AuthScheme | None,
    secret_file: str | None,
) -> int:
    """Run a simulated Flinks on this machine until Ctrl-C.

    It accepts every access token and one AuthSecret: from --secret-file, else from FLINKS_AUTH_SECRET, else a new one, which
    is printed.
    """
    from ..testing import ServeOptions, serve_forever  # not needed by the other commands

    generated = secret_file is None and not os.environ.get("FLINKS_AUTH_SECRET", "").strip()
    secret = str(uuid.uuid4()) if generated else read_secret(secret_file).reveal()
    options = ServeOptions(
        auth_secret=secret,
        auth_scheme=auth_scheme,
        port=port,
        size=size,
        seed=seed,
        faults=faults_share,
        rate=rate_limit,
        latency=("lognormal", latency, 0.5) if latency else None,
    )

    def on_ready(server: FlinksServer) -> None:
        source = "FLINKS_AUTH_SECRET" if secret_file is None else "--secret-file"
        shown = f"AuthSecret (of this simulator only): {secret}" if generated else f"AuthSecret: from {source}"
        to_stdout(f"Simulated Flinks at {server.base_url}\n{shown}\nPress Ctrl-C to stop.\n".encode())

    try:
        server = run(lambda: serve_forever(options, on_ready=on_ready))
    except OSError as error:
        raise UsageError(f"Cannot listen on port {port}: {error.strerror or type(error).__name__}.") from None
    stats = server.stats
    say(f"{counted(stats.requests, 'request')}, {stats.answered:,} answered, {stats.throttled:,} throttled")
    return Exit.OK


# --- the process that kills itself -----------------------------------------------------------------------------------


def main() -> None:
    """Reads the orders, and kills itself after so many shards."""
    after, fetch = msgspec.json.decode(sys.stdin.readline(), type=tuple[int, DemoFetch])
    stored = 0

    def die_at(name: str) -> None:
        nonlocal stored
        stored += name == "stored"
        if stored == after:
            os.kill(os.getpid(), KILL)

    crash_points.hook = die_at
    sys.exit(fetch.run()[0])


if __name__ == "__main__":
    main()
