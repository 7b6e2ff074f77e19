"""`flinks-async demo`: the whole way on this machine, with faults, and a check that nothing was lost."""

from __future__ import annotations

import random
import secrets
import tempfile
import uuid
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attrs import evolve

from ..config import Settings
from ..policies import Pause
from ..secret import Secret
from .console import debug_option, say
from .demo_check import Check, check
from .exit_codes import Exit, epilog
from .fetch import bulk_settings, run_and_tell
from .fetch_run import FetchRun, Outputs
from .metrics import Metrics
from .options import Access
from .output import LineFile, OutputError
from .token_files import Layout, TokenFile, open_tokens

if TYPE_CHECKING:
    from ..testing import ServerProcess


@click.command(epilog=epilog())
@click.option("--tokens", type=click.IntRange(1, 1_000_000), default=10_000, show_default=True, help="How many.")
@click.option("--faults", type=click.FloatRange(0, 1), default=0.03, show_default=True, help="Share that meets faults.")
@click.option("--seed", type=int, help="Decides tokens, faults and answers [a new one, which is shown].")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1000),
    metavar="N",
    help="Requests at once, a fixed number [as the bulk preset].",
)
@click.option("--dir", "directory", metavar="DIR", help="Keep the files there [a temporary folder].")
@debug_option
def demo(tokens: int, faults: float, seed: int | None, concurrency: int | None, directory: str | None) -> int:
    """Fetch 10,000 made-up tokens from a simulated Flinks that fails now and then, and check the result.

    The server runs in a process of its own on this machine; nothing leaves it. The exit code is 0 only if every
    token that can be fetched arrived, each with the right answer.
    """
    from ..testing import DemoFaults, ServeOptions, ServerProcess, expected_answer

    seed = secrets.randbelow(1_000_000) if seed is None else seed
    plan = DemoFaults(share=faults, seed=seed)
    made_up = _make_up(tokens, seed)
    with ExitStack() as stack:
        folder = _folder(directory, stack)
        outputs = _outputs(folder)
        file = stack.enter_context(closing(_token_file(folder / "demo-tokens.txt", made_up)))
        outputs.open()
        server = stack.enter_context(
            ServerProcess(ServeOptions(demo=True, faults=faults, unfetchable=plan.unfetchable, seed=seed))
        )
        say(f"Simulated Flinks at {server.base_url}, seed {seed}: {faults:.3g} of {tokens:,} tokens meet faults.")
        metrics = Metrics()
        access = Access(base_url=server.base_url, auth_scheme="flinks-auth-key")
        client = access.client(_settings(concurrency), metrics, secret=Secret(server.auth_secret))
        job = FetchRun(client, file, outputs, metrics, concurrency)
        ended = run_and_tell(job)
        say(_on_the_wire(server))
        if ended not in (Exit.OK, Exit.FAILED):
            return ended
        if directory is None:
            say("The folder of these files is removed now; --dir keeps it.")
        result = check(
            made_up,
            folder / "demo-answers.jsonl",
            lambda token: plan.fate(token).fetchable,
            lambda token: expected_answer(token, seed=seed),
        )
    return _verdict(result)


def _settings(concurrency: int | None) -> Settings:
    """The bulk preset but for its pauses, so that the demo takes no minutes: here a throttled answer is made up for one
    token, while in earnest it speaks for all, and the preset then comes back slowly, and more so each time.
    """
    settings = bulk_settings(concurrency)
    return evolve(settings, limits=evolve(settings.limits, pause=Pause(base=0.5, cap=0.5, ramp=0.5)))


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


def _token_file(path: Path, tokens: list[str]) -> TokenFile:
    try:
        path.write_text("".join(f"{token}\n" for token in tokens), encoding="ascii")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None
    return open_tokens(str(path), Layout())


def _outputs(folder: Path) -> Outputs:
    # Names that nobody else uses: what a demo before left there is overwritten.
    return Outputs(
        LineFile(folder / "demo-answers.jsonl", force=True),
        LineFile(folder / "demo-answers.failed.jsonl", force=True),
        LineFile(folder / "demo-answers.skipped.jsonl", force=True),
    )


def _on_the_wire(server: ServerProcess) -> str:
    stats: dict[str, Any] = server.stats()
    faults = sum(stats["faults"].values())
    return (
        f"On the wire, as the server counted: {stats['requests']:,} requests on {stats['connections']:,} connections, "
        f"{stats['answered']:,} answered, {faults:,} faults of {len(stats['faults'])} kinds, "
        f"at most {stats['max_in_flight']:,} at once."
    )


def _verdict(result: Check) -> int:
    say(result.text())
    return Exit.OK if result.passed else Exit.FAILED
