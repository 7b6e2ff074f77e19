"""`flinks-async simulate`: runs a simulated Flinks in the foreground, to try things out."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

import click

from ..config import AUTH_SCHEMES, AuthScheme
from .console import UsageError, counted, debug_option, say
from .exit_codes import Exit
from .output import Command, to_stdout
from .secret_input import read_secret
from .signals import run

if TYPE_CHECKING:
    from ..testing import FlinksServer
    from ..testing.data import Size


@click.command(cls=Command)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port to listen on [any free one].")
@click.option("--size", type=click.Choice(["small", "medium", "large"]), default="small", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the data, the faults and the latency.")
@click.option(
    "--faults-share",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of requests that fail, with faults of all kinds.",
)
@click.option(
    "--rate-limit", type=click.FloatRange(min=0, min_open=True), metavar="N", help="Maximum requests per second."
)
@click.option("--latency", type=click.FloatRange(min=0), metavar="SECONDS", help="Median response time (log-normal).")
@click.option("--auth-scheme", type=click.Choice(AUTH_SCHEMES), help="Only form of the header to accept [any].")
@click.option("--secret-file", metavar="FILE", help="File with the AuthSecret to accept, '-' for standard input.")
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
