"""`flinks-async demo`: the whole way on this machine, with faults, and a check that nothing was lost."""

from __future__ import annotations

import random
import secrets
import tempfile
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from .. import bulk
from ..bulk import Rules
from ..bulk.files import MANIFEST
from .console import debug_option, say
from .demo_check import Check, check
from .demo_fetch import DemoFetch
from .exit_codes import Exit, epilog
from .options import concurrency_option
from .output import OutputError


@click.command(epilog=epilog())
@click.option("--tokens", type=click.IntRange(1, 1_000_000), default=10_000, show_default=True, help="How many.")
@click.option("--faults", type=click.FloatRange(0, 1), default=0.03, show_default=True, help="Share that meets faults.")
@click.option("--seed", type=int, help="Decides tokens, faults and answers [a new one, which is shown].")
@concurrency_option
@click.option("--crash", is_flag=True, help="Kill the fetch in the middle (SIGKILL), and go on with it.")
@click.option("--dir", "directory", metavar="DIR", help="Keep the files there [a temporary folder].")
@debug_option
def demo(
    tokens: int, faults: float, seed: int | None, concurrency: int | None, crash: bool, directory: str | None
) -> int:
    """Fetch 10,000 made-up tokens from a simulated Flinks that fails now and then, and check the result.

    The server runs in a process of its own on this machine; nothing leaves it. The exit code is 0 only if every
    token that can be fetched arrived, once, with the right answer.
    """
    from ..testing import DemoFaults, ServeOptions, ServerProcess, expected_answer

    seed = secrets.randbelow(1_000_000) if seed is None else seed
    plan = DemoFaults(share=faults, seed=seed)
    made_up = _make_up(tokens, seed)
    with ExitStack() as stack:
        folder = _folder(directory, stack)
        file = _write_tokens(folder / "demo-tokens.txt", made_up)
        job = _new_job(folder / "demo-job")
        server = stack.enter_context(
            ServerProcess(ServeOptions(demo=True, faults=faults, unfetchable=plan.unfetchable, seed=seed))
        )
        say(f"Simulated Flinks at {server.base_url}, seed {seed}: {faults:.3g} of {tokens:,} tokens meet faults.")
        fetch = DemoFetch(
            str(file), str(job), server.base_url, server.auth_secret, concurrency, shard_size=_shard_size(tokens)
        )
        if crash and not _crashed(fetch, tokens):
            return Exit.FAILED
        ended = fetch.run()
        stats = server.stats()
        say(_on_the_wire(stats))
        if ended not in (Exit.OK, Exit.FAILED):
            return ended
        if crash:
            say(_repeated(stats, bulk.status(job)))
        if directory is None:
            say("The folder of these files is removed now; --dir keeps it.")
        result = check(
            made_up,
            bulk.export(job),
            lambda token: plan.plan(token).fetchable,
            lambda token: expected_answer(token, seed=seed),
        )
    return _verdict(result)


def _shard_size(tokens: int) -> int:
    """Small, so that there is something to be killed in the middle of."""
    return min(bulk.SHARD_SIZE, max(1, tokens // 100))


def _new_job(directory: Path) -> Path:
    """A directory without a job; that of an earlier demo is emptied."""
    if (directory / MANIFEST).exists():
        bulk.purge(directory)
    return directory


def _crashed(fetch: DemoFetch, tokens: int) -> bool:
    """Lets the fetch kill itself half-way; whether it did."""
    shards = -(-tokens // fetch.shard_size)
    if not fetch.run_and_crash(after=-(-shards // 2)):
        say("WRONG: the fetch was to be killed in the middle, and was not.")
        return False
    totals = bulk.status(fetch.directory).totals
    say(f"Killed (SIGKILL) with {totals.fetched + totals.failed:,} of {tokens:,} tokens done. The job goes on:")
    return True


def _repeated(stats: dict[str, Any], status: bulk.Status) -> str:
    window = Rules().open_shards * status.manifest.shard_size
    repeated = stats["answered"] - status.totals.fetched
    return f"{repeated:,} tokens had to be fetched again, since they were under way when it was killed (at most {window:,})."


def _make_up(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(count)]


def _folder(directory: str | None, stack: ExitStack) -> Path:
    try:
        if directory is None:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flinks-async-demo-")))
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(f"the folder of the demo cannot be made: {getattr(error, 'strerror', error)}") from None
    return folder


def _write_tokens(path: Path, tokens: list[str]) -> Path:
    try:
        path.write_text("".join(f"{token}\n" for token in tokens), encoding="ascii")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None
    return path


def _on_the_wire(stats: dict[str, Any]) -> str:
    faults = sum(stats["faults"].values())
    return (
        f"On the wire, as the server counted: {stats['requests']:,} requests on {stats['connections']:,} connections, "
        f"{stats['answered']:,} answered, {faults:,} faults of {len(stats['faults'])} kinds, "
        f"at most {stats['max_in_flight']:,} at once."
    )


def _verdict(result: Check) -> int:
    say(result.text())
    return Exit.OK if result.passed else Exit.FAILED
