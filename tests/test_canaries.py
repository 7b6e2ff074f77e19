"""Planted secrets and personal data must not appear in any channel that people read, log or send on."""

from __future__ import annotations

import asyncio
import copy
import io
import logging
import pickle
import traceback
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from flinks_async import FlinksClient, FlinksError, Response, Retry, Secret, Timeouts, config
from flinks_async.config import Connection
from flinks_async.testing import KINDS, FakeClock, FlinksServer, InMemoryTransport

from .support import turns

TOKEN = "canary-token-77e1/x"
ENCODED = "canary-token-77e1%2Fx"
SECRET = "canary-secret-90aa"
ACCOUNT = "canary-account-7641238"
NAME = "Canary Holder"
EMAIL = "canary@example.com"
CANARIES = (TOKEN, ENCODED, SECRET, ACCOUNT, NAME, EMAIL, "canary")

PERSONAL = {
    "GetAccountsDetail": [
        {
            "Accounts": [
                {
                    "AccountNumber": ACCOUNT,
                    "Holder": {"Name": NAME, "Email": EMAIL, "Address": {"CivicAddress": "1 canary street"}},
                    "Transactions": [{"Description": f"E-TRANSFER {NAME}", "Debit": 1.5}],
                    "Unknown": ACCOUNT,
                }
            ],
            "Login": {"Username": EMAIL},
            "Links": [{"href": f"https://x/{TOKEN}"}],
        }
    ],
    "RequestId": "r",
}


def shows_nothing(*texts: object) -> None:
    for text in texts:
        shown = text if isinstance(text, str) else text.decode("latin-1") if isinstance(text, bytes) else repr(text)
        for canary in CANARIES:
            assert canary.lower() not in shown.lower()


@pytest.fixture
def logs() -> Iterator[io.StringIO]:
    """Everything that any library logs, at DEBUG."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
async def server() -> AsyncIterator[FlinksServer]:
    async with FlinksServer(auth_secret=SECRET) as running:
        yield running


def own_frames(error: BaseException) -> str:
    """The traceback with the variables of its frames, without those of this test."""
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    told.stack[:] = [frame for frame in told.stack if not frame.filename.endswith("test_canaries.py")]
    assert told.stack
    return "".join(told.format())


FAILURES: list[Any] = [
    "http_503",
    "bad_request",
    "unauthorized",
    "html_200",
    "truncated_json",
    "reset",
    "close_body",
    "hang",
]


@pytest.mark.parametrize("fault", FAILURES)
async def test_errors_show_nothing_in_any_form(server: FlinksServer, logs: io.StringIO, fault: str) -> None:
    server.script(TOKEN, [KINDS[fault]] * 5)
    events: list[Any] = []
    async with FlinksClient(
        auth_secret=SECRET,
        base_url=server.base_url,
        clock=FakeClock(),
        timeouts=Timeouts(attempt=0.2),
        observers=[events.append],
    ) as flinks:
        with pytest.raises(FlinksError) as caught:
            await flinks.partner_access(TOKEN)
        error = caught.value
        shows_nothing(error, str(error), error.args, error.fields(), pickle.dumps(error), vars(error))
        shows_nothing(own_frames(error), flinks, flinks.stats(), events, logs.getvalue())
        assert error.__cause__ is error.__context__ is None


async def test_a_server_that_repeats_what_it_was_told_is_masked() -> None:
    body = {"FlinksCode": "X", "Message": f"token {TOKEN} of {EMAIL} with {SECRET}", "RequestId": TOKEN}
    transport = InMemoryTransport(
        default=Response(400, {"Location": f"https://{SECRET}.example"}, repr(body).replace("'", '"').encode())
    )
    async with FlinksClient(auth_secret=SECRET, transport=transport) as flinks:
        with pytest.raises(FlinksError) as caught:
            await flinks.partner_access(TOKEN)
        shows_nothing(caught.value, own_frames(caught.value))
        raw = await flinks.partner_access_raw(TOKEN)
        shows_nothing(raw)


async def test_a_cancelled_error_that_passes_through_carries_no_secret(server: FlinksServer, logs: io.StringIO) -> None:
    server.script(TOKEN, [KINDS["hang"]])
    async with FlinksClient(auth_secret=SECRET, base_url=server.base_url) as flinks:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.05):
                await flinks.partner_access(Secret(TOKEN))
        cancelled = caught.value.__cause__ or caught.value.__context__  # 3.11.2 sets only the latter
        assert isinstance(cancelled, asyncio.CancelledError)
        shows_nothing(own_frames(cancelled), logs.getvalue())


async def test_answers_and_outcomes_mask_personal_data(logs: io.StringIO) -> None:
    async with FlinksClient(auth_secret=SECRET, transport=InMemoryTransport({TOKEN: PERSONAL})) as flinks:
        outcomes = [outcome async for outcome in flinks.partner_access_many([(1, TOKEN), (2, "..")])]
        answer = outcomes[0].unwrap() if outcomes[0].key == 1 else outcomes[1].unwrap()
    assert answer.accounts[0].account_number == ACCOUNT
    shows_nothing(
        *outcomes, answer, answer.accounts, answer.accounts[0].holder, answer.details[0].login, logs.getvalue()
    )


async def test_a_debug_loop_says_nothing_either(server: FlinksServer, logs: io.StringIO) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0.0
    async with FlinksClient(auth_secret=SECRET, base_url=server.base_url, retry=Retry(attempts=1)) as flinks:
        await flinks.partner_access("canary-token-77e1")
        task = asyncio.ensure_future(flinks.partner_access("canary-token-77e1"))
        await turns(3)
        task.cancel()
        await asyncio.wait([task])
    loop.set_debug(False)
    ours = [
        line for line in logs.getvalue().splitlines() if "GET /partneraccess" not in line
    ]  # the server's access log
    assert ours
    shows_nothing("\n".join(ours))


def test_settings_show_and_pickle_nothing() -> None:
    connection = Connection(proxy=Secret(f"http://u:{SECRET}@proxy.example:1"))
    flinks = FlinksClient(auth_secret=SECRET, connection=connection, headers={"X-Key": SECRET})
    shows_nothing(connection, flinks, flinks._endpoint, config.from_env({"FLINKS_AUTH_SECRET": SECRET}))
    for holder in (Secret(SECRET), connection, flinks):
        with pytest.raises(TypeError, match="refuses to be pickled"):
            pickle.dumps(holder)
    assert copy.deepcopy(connection) == connection
