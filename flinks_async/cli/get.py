"""`flinks-async get`: one token, its answer on standard output."""

from __future__ import annotations

import re
import sys

import click
import msgspec

from .. import config
from ..client import FlinksClient
from ..models import PartnerAccessResponse
from ..secret import Secret
from .console import debug_option
from .exit_codes import Exit, epilog
from .options import Access, access_options, timeout_option
from .output import to_stdout
from .run import run
from .secret_input import STDIN, read_token
from .usage import UsageError

# C1 controls, and the marks that turn the direction of text: harmless in a file, not on a terminal.
_TERMINAL = re.compile("[\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@click.command(epilog=epilog())
@click.option(
    "--token-file",
    metavar="FILE",
    help="File with the access token, '-' for standard input. Without it: FLINKS_ACCESS_TOKEN, else a hidden prompt.",
)
@click.option("--pretty/--compact", default=None, help="Indented, or on one line [indented on a terminal].")
@access_options
@timeout_option
@debug_option
def get(access: Access, timeout: float | None, token_file: str | None, pretty: bool | None) -> int:
    """Fetch the data behind one access token and print it as JSON, with every digit as it came."""
    if token_file == STDIN and access.secret_file == STDIN:
        raise UsageError("--token-file and --secret-file cannot both be '-'.")
    client = access.client(config.service())
    token = read_token(token_file)
    answer = run(lambda: _ask(client, token, timeout))
    terminal = _stdout_is_terminal()
    text = _as_text(answer.to_json(), terminal if pretty is None else pretty)
    to_stdout((_safe_for_terminal(text) if terminal else text) + b"\n")
    return Exit.OK


async def _ask(client: FlinksClient, token: Secret, timeout: float | None) -> PartnerAccessResponse:
    async with client:
        if timeout is None:
            return await client.partner_access(token)
        return await client.partner_access(token, timeout=timeout)


def _as_text(answer: bytes, pretty: bool) -> bytes:
    return msgspec.json.format(answer, indent=2) if pretty else answer


def _safe_for_terminal(text: bytes) -> bytes:
    """The same JSON, with the characters that could steer a terminal as escapes (they only occur inside strings)."""
    return _TERMINAL.sub(lambda c: f"\\u{ord(c[0]):04x}", text.decode()).encode()


def _stdout_is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()
