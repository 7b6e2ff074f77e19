"""`flinks-async get`: fetches one token and prints its answer."""

from __future__ import annotations

import click
import msgspec

from .. import config
from ..bulk.inputs import STDIN
from ..client import FlinksClient
from ..models import PartnerAccessResponse
from ..secret import Secret
from . import Exit, epilog
from .access import Access, access_options
from .console import UsageError, debug_option
from .options import path_name, timeout_option
from .output import Command, stdout_is_terminal, to_stdout
from .secret_input import read_token
from .signals import run


@click.command(cls=Command, epilog=epilog())
@click.option(
    "--token-file",
    metavar="FILE",
    callback=path_name,
    help="File with the access token, '-' for standard input [FLINKS_ACCESS_TOKEN, else a hidden prompt].",
)
@click.option("--pretty/--compact", default=None, help="Indented, or on one line [indented on a terminal].")
@access_options
@timeout_option
@debug_option
def get(access: Access, timeout: float | None, token_file: str | None, pretty: bool | None) -> int:
    """Fetch the data behind one access token and print it as JSON, with every field and digit of the answer."""
    if token_file == STDIN and access.secret_file == STDIN:
        raise UsageError("--token-file and --secret-file cannot both be '-'.")
    client = access.client(config.service())
    token = read_token(token_file)
    answer = run(lambda: _ask(client, token, timeout)).to_json()
    if stdout_is_terminal() if pretty is None else pretty:
        answer = msgspec.json.format(answer, indent=2)
    to_stdout(answer + b"\n")
    return Exit.OK


async def _ask(client: FlinksClient, token: Secret, timeout: float | None) -> PartnerAccessResponse:
    async with client:
        if timeout is None:
            return await client.partner_access(token)
        return await client.partner_access(token, timeout=timeout)
