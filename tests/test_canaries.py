"""Planted secrets and personal data must not appear in any channel that people read, log or send on."""

from __future__ import annotations

import asyncio
import copy
import io
import logging
import pickle
import traceback
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest.mock import AsyncMock, create_autospec

import pytest

from flinks_async import ConfigError, ConnectError, FlinksClient, FlinksError, Response, Retry, Secret, Timeouts, config
from flinks_async.config import Connection
from flinks_async.models import Holder
from flinks_async.testing import KINDS, FakeClock, FlinksServer, InMemoryTransport
from tests.raw_server import Hang, RawServer, ReadHead, Send

from .sockets.support import use_sessions
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
    """Everything that any library logs, at DEBUG: the texts and all attributes of the records."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(lambda record: bool(stream.write(f"{vars(record)!r}\n")))
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
            await flinks.partner_access(TOKEN, headers={"X-Key": SECRET})
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


async def test_a_server_that_names_its_headers_and_fields_after_what_it_was_told_is_masked() -> None:
    headers = {TOKEN: "1", SECRET: "1", f"X-{SECRET}": "1", "content-type": "application/json", "Retry-After-Ms": "1"}
    transport = InMemoryTransport(default=Response(200, headers, b'{"%s": 1}' % TOKEN.encode()))
    async with FlinksClient(auth_secret=SECRET, transport=transport) as flinks:
        raw = await flinks.partner_access_raw(TOKEN)
        answer = await flinks.partner_access(TOKEN)
    assert "headers=<Content-Type, Retry-After-Ms, 3 more>" in repr(raw)
    assert "headers=<Content-Type>" in repr(Response(200, {"Content-Type": "x", "CONTENT-TYPE": "y"}))
    assert "headers=<>" in repr(Response(200))
    assert TOKEN in answer.extra
    shows_nothing(raw, answer, answer.wire_state, [answer])


async def test_a_cancelled_error_that_passes_through_carries_no_secret(server: FlinksServer, logs: io.StringIO) -> None:
    server.script(TOKEN, [KINDS["hang"]])
    async with FlinksClient(auth_secret=SECRET, base_url=server.base_url) as flinks:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.05):
                await flinks.partner_access(Secret(TOKEN))
        cancelled = caught.value.__cause__ or caught.value.__context__  # 3.11.2 sets only the latter
        assert isinstance(cancelled, asyncio.CancelledError)
        shows_nothing(own_frames(cancelled), logs.getvalue())


def _of(callable_: Any, *args: Any, **options: Any) -> Any:
    async def call(client: FlinksClient) -> None:
        found = callable_(client, *args, **options)
        if asyncio.iscoroutine(found):
            await found

    return call


async def _many(client: FlinksClient) -> None:
    tokens = client.partner_access_many([TOKEN])
    await client.close()
    async for _ in tokens:
        pass


PROXY: dict[str, Any] = {"proxy": f"http://u:{SECRET}@proxy.example"}
MISTAKES: dict[str, Any] = {
    "a token with a line break": _of(FlinksClient.partner_access, TOKEN + "\n"),
    "a token as bytes": _of(FlinksClient.partner_access, TOKEN.encode()),
    "a raw call with a line break": _of(FlinksClient.partner_access_raw, TOKEN + "\n"),
    "a timeout of 0": _of(FlinksClient.partner_access, TOKEN, timeout=0),
    "one token instead of many": _of(FlinksClient.partner_access_many, TOKEN),
    "many tokens, and no worker": _of(FlinksClient.partner_access_many, [TOKEN], concurrency=0),
    "many tokens, and the client is closed": _many,
    "a secret with a line break": lambda client: _of(FlinksClient, auth_secret=SECRET + "\n")("toolbox"),
    "a secret as bytes": lambda client: _of(FlinksClient, auth_secret=SECRET.encode())("toolbox"),
    "a derived secret with a line break": _of(FlinksClient.with_options, auth_secret=SECRET + "\n"),
    "a derived secret, and an unknown option": _of(FlinksClient.with_options, auth_secret=SECRET, nonsense=1),
    "a secret, and a wrong instance": lambda client: _of(FlinksClient, auth_secret=SECRET)("not an instance"),
    "a proxy, and a wrong instance": lambda client: _of(
        FlinksClient, auth_secret="x", connection={"proxy": f"http://u:{SECRET}@proxy.example"}
    )("not an instance"),
    "a proxy that is none": lambda client: _of(
        FlinksClient, auth_secret="x", connection={"proxy": f"ftp://u:{SECRET}@proxy.example"}
    )("toolbox"),
    "a secret of the environment, and a wrong instance": lambda client: _of(FlinksClient.from_env)(
        {"FLINKS_AUTH_SECRET": SECRET, "FLINKS_INSTANCE": "not an instance"}
    ),
    "a base_url of the environment with a password": lambda client: _of(FlinksClient.from_env, auth_secret="x")(
        {"FLINKS_BASE_URL": f"https://u:{SECRET}@h"}
    ),
    "a proxy beside the environment, and a wrong instance": lambda client: _of(
        FlinksClient.from_env, auth_secret="x", connection=PROXY
    )({"FLINKS_INSTANCE": "not an instance"}),
    "a proxy beside the environment, and no secret": lambda client: _of(FlinksClient.from_env, connection=PROXY)({}),
    "a proxy for a derived client": _of(FlinksClient.with_options, connection=PROXY),
    "a base_url with a password": lambda client: _of(FlinksClient, auth_secret="x", base_url=f"https://u:{SECRET}@h")(
        "toolbox"
    ),
    "a base_url with a password, and a port that is none": lambda client: _of(
        FlinksClient, auth_secret="x", base_url=f"https://u:{SECRET}@h:x"
    )("toolbox"),
    "a base_url with a key": lambda client: _of(FlinksClient, auth_secret="x", base_url=f"https://h?key={SECRET}")(
        "toolbox"
    ),
    "a base_url as bytes": lambda client: _of(FlinksClient, auth_secret="x", base_url=f"https://u:{SECRET}@h".encode())(
        "toolbox"
    ),
    "a derived base_url with a password": _of(FlinksClient.with_options, base_url=f"https://u:{SECRET}@h"),
    "a header, and one with a wrong name": lambda client: _of(
        FlinksClient, auth_secret="x", headers={"X-Key": SECRET, "b\n": "x"}
    )("toolbox"),
    "a header with a line break": lambda client: _of(FlinksClient, auth_secret="x", headers={"X-Key": SECRET + "\n"})(
        "toolbox"
    ),
    "headers as a list": lambda client: _of(FlinksClient, auth_secret="x", headers=[("X-Key", SECRET)])("toolbox"),
    "headers as bytes": lambda client: _of(FlinksClient, auth_secret="x", headers={"X-Key": SECRET.encode()})(
        "toolbox"
    ),
    "headers of a call, and a wrong name": _of(FlinksClient.partner_access, "t", headers={"X-Key": SECRET, "b\n": "x"}),
    "headers of a raw call, as a list": _of(FlinksClient.partner_access_raw, "t", headers=[("X-Key", SECRET)]),
    "headers of many calls, and a wrong name": _of(
        FlinksClient.partner_access_many, ["t"], headers={"X-Key": SECRET, "b\n": "x"}
    ),
    "derived headers": _of(FlinksClient.with_options, headers={"X-Key": SECRET, "b\n": "x"}),
    "a record with a proxy, and a wrong number": _of(lambda client: Connection(**PROXY, keepalive=-1)),
    "a secret beside the environment, and a wrong instance": lambda client: _of(
        FlinksClient.from_env, auth_secret=SECRET
    )({"FLINKS_INSTANCE": "not an instance"}),
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_mistake_of_the_caller_leaves_no_secret_in_our_frames(mistake: str) -> None:
    async with FlinksClient(auth_secret=SECRET, transport=InMemoryTransport()) as flinks:
        with pytest.raises(FlinksError) as caught:
            await MISTAKES[mistake](flinks)
        shows_nothing(caught.value, own_frames(caught.value))


@pytest.mark.parametrize("url", [f"http://u:{SECRET}@[bad", f"socks5://u:{SECRET}@host:1"])
def test_a_wrong_proxy_of_the_environment_is_in_no_frame_of_ours(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", url)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError) as caught:
        FlinksClient(auth_secret="x", connection=Connection(trust_env=True))
    shows_nothing(caught.value, own_frames(caught.value))


async def test_a_timeout_around_a_fan_out_leaves_no_token_in_our_frames() -> None:
    async def hang(request: Any) -> Any:
        await asyncio.Event().wait()

    async with FlinksClient(auth_secret=SECRET, transport=InMemoryTransport(default=hang)) as flinks:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.02):
                async for _ in flinks.partner_access_many([TOKEN]):
                    pass
    cancelled = caught.value.__cause__ or caught.value.__context__
    assert isinstance(cancelled, asyncio.CancelledError)
    shows_nothing(own_frames(cancelled))


@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("call", ["partner_access", "partner_access_raw"])
async def test_headers_of_a_call_are_in_no_frame_of_ours(call: str, coalesce: bool) -> None:
    async def hang(request: Any) -> Any:
        await asyncio.Event().wait()

    async with FlinksClient(
        auth_secret="s", transport=InMemoryTransport({"slow": hang}, default=ConnectError("no")), coalesce=coalesce
    ) as flinks:
        for step in range(5):  # cancelled before its first step, and in later ones
            task = asyncio.ensure_future(getattr(flinks, call)("slow", headers={"X-Key": SECRET}))
            await turns(step)
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            shows_nothing(own_frames(caught.value))
        with pytest.raises(ConnectError) as failed:
            await getattr(flinks, call)("t", headers={"X-Key": SECRET})
        shows_nothing(own_frames(failed.value), failed.value)


@pytest.mark.parametrize("call", ["partner_access", "partner_access_raw"])
async def test_a_call_cancelled_before_its_first_step_leaves_no_token_in_our_frames(call: str) -> None:
    async with FlinksClient(auth_secret=SECRET, transport=InMemoryTransport()) as flinks:
        method = getattr(flinks, call)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # since Python 3.14, to be removed in 3.16
            assert asyncio.iscoroutinefunction(method)
        assert isinstance(create_autospec(flinks).partner_access, AsyncMock)
        for given in ((TOKEN,), ()):
            task = asyncio.ensure_future(method(*given, **({} if given else {"token": TOKEN})))
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            assert "partner_access" in own_frames(caught.value)
            shows_nothing(own_frames(caught.value))
        with pytest.raises(TypeError) as wrong:
            method(TOKEN, wrong=1)
        frames = traceback.extract_tb(wrong.value.__traceback__)
        assert all(frame.filename.endswith("test_canaries.py") for frame in frames)  # none of ours


async def test_a_call_cancelled_while_it_decodes_leaves_no_data_in_our_frames() -> None:
    detail: dict[str, Any] = PERSONAL["GetAccountsDetail"][0]
    large = {"GetAccountsDetail": [{**detail, "Accounts": detail["Accounts"] * 1000}]}
    async with FlinksClient(auth_secret=SECRET, transport=InMemoryTransport({TOKEN: large})) as flinks:
        call = asyncio.ensure_future(flinks.partner_access(TOKEN))
        await turns(5)
        call.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await call
    assert "decode_async" in own_frames(caught.value)
    shows_nothing(own_frames(caught.value))


async def test_a_redirect_to_a_host_named_after_a_secret_is_masked() -> None:
    transport = InMemoryTransport(default=Response(302, {"Location": f"https://{SECRET}.example"}))
    async with FlinksClient(auth_secret=SECRET, transport=transport) as flinks:
        with pytest.raises(FlinksError) as caught:
            await flinks.partner_access(TOKEN)
        shows_nothing(caught.value, own_frames(caught.value))


@pytest.mark.parametrize("way", ["own connection", "session"])
async def test_a_call_cancelled_in_a_body_leaves_no_url_in_our_frames(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "session":
        use_sessions(monkeypatch)
    begun = Send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
    async with RawServer([ReadHead(), begun, Hang()]) as server:
        async with FlinksClient(auth_secret=SECRET, base_url=server.base_url) as flinks:
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.1):
                    await flinks.partner_access(TOKEN)
    cancelled = caught.value.__cause__ or caught.value.__context__
    assert isinstance(cancelled, asyncio.CancelledError)
    shows_nothing(own_frames(cancelled))


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


class Stopped(BaseException):
    """As a signal handler raises it."""


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, Stopped, RuntimeError, TimeoutError])
@pytest.mark.parametrize("place", ["connecting", "session", "body", "decoding", "large body", "middleware"])
async def test_what_a_signal_handler_raises_carries_no_secret_and_no_data(
    place: str, kind: type[BaseException], server: FlinksServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    detail: dict[str, Any] = PERSONAL["GetAccountsDetail"][0]
    large = {"GetAccountsDetail": [{**detail, "Accounts": detail["Accounts"] * (1000 if place == "large body" else 1)}]}
    server.script(TOKEN, [large])
    options: dict[str, Any] = {}
    if place == "session":
        use_sessions(monkeypatch)

    def stop(*_: Any, **__: Any) -> Any:
        raise kind

    if place == "middleware":

        async def middleware(request: Any, call_next: Any) -> Any:
            await call_next(request)
            stop()

        options["middleware"] = [middleware]
    async with FlinksClient(auth_secret=SECRET, base_url=server.base_url, **options) as flinks:
        target = {
            "connecting": "flinks_async.transport.http1.ConnectionPool.connect",
            "session": "aiohttp.client_reqrep.ClientRequest.send",
            "body": "flinks_async.transport.http1.HTTPConnection.check",
            "decoding": "flinks_async.codec.compiled.AMOUNT",
            "large body": "flinks_async.codec.steps.count_steps",
        }.get(place)
        if place == "decoding":
            flinks.options.codec.converter.register_structure_hook(Holder, stop)
        elif target is not None:
            monkeypatch.setattr(target, stop)
        with pytest.raises(BaseException) as caught:
            await flinks.partner_access(TOKEN)
        if place in ("large body", "middleware") or not issubclass(kind, Exception):
            assert type(caught.value) is kind
        shows_nothing(own_frames(caught.value))
        if place == "middleware":  # the frames of the user's own code stay
            assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "stop"
        assert flinks.stats().calls_in_flight == flinks.stats().requests_in_flight == 0
