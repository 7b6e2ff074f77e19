"""Every row of the table of faults, on real sockets."""

from __future__ import annotations

import asyncio
import pickle
import sys
from typing import Any

import pytest

from flinks_async import (
    AttemptTimeoutError,
    Connection,
    ConnectTimeoutError,
    FlinksError,
    PartnerAccessResponse,
)
from tests.raw_server import RawConnection, RawServer, ReadHead

from .fault_table import Row, all_rows
from .support import OK, SECRET, Authority, assert_clean, client_for, unused_port, use_sessions

TOKEN = "0e4c7a55-token-PLANTED"


class Scene:
    """A server that does what a row says until it is healed, and the client's way to it."""

    def __init__(self, row: Row, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
        self.healed = False
        self._healed = asyncio.Event()
        self.options = dict(row.options)
        self._row = row
        self._monkeypatch = monkeypatch
        self._tls = None if row.tls is None else (row.tls(authority), authority.context())
        self.server = RawServer([self._converse], port=0 if row.listening else unused_port())
        self.server.ssl_context = None if self._tls is None else self._tls[0]
        if row.tls is not None:
            self.options["connection"] = Connection(ca_file=authority.file)

    async def _converse(self, connection: RawConnection) -> None:
        if not self.healed:
            for step in self._row.accept:
                await step(connection)
        while True:
            await ReadHead()(connection)
            for step in (OK,) if self.healed else self._row.turn:
                await step(connection)

    @property
    def base_url(self) -> str:
        if self._row.resolve is not None:
            return f"http://flinks.test:{self.server.port}"
        if self._tls is not None:
            return f"https://localhost:{self.server.port}"
        return self.server.base_url

    async def __aenter__(self) -> Scene:
        if self._row.listening:
            await self.server.start()
        if self._row.resolve is not None:
            self._monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self._resolve, raising=False)
        return self

    async def heal(self) -> None:
        self.healed = True
        self._healed.set()
        self.server.ssl_context = None if self._tls is None else self._tls[1]
        if not self._row.listening:
            await self.server.start()

    async def _resolve(self, host: Any, port: int, **kwargs: Any) -> Any:
        assert self._row.resolve is not None
        if not self.healed:
            found = self._row.resolve(host, port, **kwargs)
            if found is not None:
                return await found if asyncio.iscoroutine(found) else found
            await self._healed.wait()  # a lookup that takes long answers in the end
        loop = asyncio.get_running_loop()
        return await type(loop).getaddrinfo(loop, "127.0.0.1", port, **kwargs)

    async def __aexit__(self, *exc_info: object) -> None:
        await self.server.stop()


async def outcome_of(call: Any) -> PartnerAccessResponse | FlinksError:
    try:
        answer: PartnerAccessResponse = await call
    except FlinksError as error:
        return error
    return answer


WAYS = ("own connection", "session")


def _cases() -> list[Any]:
    cases = []
    for row in all_rows():
        marks = (
            [pytest.mark.xfail(reason=row.open, strict=True)] if row.open and sys.version_info >= row.open_since else []
        )
        # Waiting costs the same on both paths.
        ways = WAYS[:1] if row.outcome in (AttemptTimeoutError, ConnectTimeoutError) else WAYS
        name = row.name.replace(" ", "_")
        cases += [pytest.param(row, way, id=f"{name}-{way.replace(' ', '_')}", marks=marks) for way in ways]
    return cases


@pytest.mark.parametrize(("row", "way"), _cases())
async def test_the_outcome_of(row: Row, way: str, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "session":
        use_sessions(monkeypatch)
    async with Scene(row, authority, monkeypatch) as scene:
        client = client_for(scene.base_url, allow_http=True, **scene.options)
        async with client:
            outcome = await outcome_of(client.partner_access(TOKEN))

            expected = PartnerAccessResponse if row.outcome is None else row.outcome
            assert type(outcome) is expected, repr(outcome)
            assert (scene.server.requests, client.stats().requests) == (row.requests, row.attempts)
            if isinstance(outcome, FlinksError):
                assert (outcome.status, outcome.attempts) == (row.status, row.attempts)
                assert_fit_for_logs(outcome)
            else:
                assert outcome.meta.attempts == row.attempts
            if row.check is not None:
                row.check(outcome)
            await assert_clean(client)

            await scene.heal()
            before = scene.server.connections
            answer = await client.partner_access("the-next-one")
            assert answer.request_id == "r-1"
            if row.reused is not None:
                assert scene.server.connections == before + (not row.reused)
            await assert_clean(client)
        assert client.stats().connections.open == 0


def assert_fit_for_logs(error: FlinksError) -> None:
    """No secret and no URL in it, nothing chained to it, and it survives pickling."""
    assert error.__cause__ is None
    assert error.__context__ is None
    shown = f"{error}{error!r}{error.args}{error.fields()}"
    assert TOKEN not in shown
    assert SECRET not in shown
    assert "partneraccess" not in shown
    assert repr(pickle.loads(pickle.dumps(error))) == repr(error)
