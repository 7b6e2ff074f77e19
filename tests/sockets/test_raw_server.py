"""The raw server, as a user's test would use it."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from tests.raw_server import Close, Hang, RawServer, ReadHead, Repeat, Reset, Respond, Send
from tests.support import until

from ..support import turns
from .support import BODY, HEALTHY, client_for


async def test_each_connection_follows_its_script_and_the_last_one_is_repeated() -> None:
    async with RawServer([ReadHead(), Reset()], [ReadHead(), Close()], HEALTHY) as server, client_for(server) as client:
        await client.partner_access("t")
        await client.partner_access("t")
        assert (server.connections, server.requests, len(server.heads)) == (3, 4, 4)


async def test_a_step_may_be_a_function() -> None:
    async def by_token(connection: Any) -> None:
        head = await connection.read_head()
        await connection.send(Respond(200, BODY).message if b"/good " in head else Respond(404).message)

    async with RawServer([Repeat(by_token)]) as server, client_for(server) as client:
        assert (await client.partner_access_raw("good")).status == 200
        assert (await client.partner_access_raw("bad")).status == 404


async def test_a_mistake_in_a_step_is_raised_at_the_end() -> None:
    async def mistaken(connection: Any) -> None:
        raise LookupError("a mistake of the test")

    with pytest.raises(LookupError):
        async with RawServer([mistaken]) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            await until(lambda: server.connections and not server.open)
            writer.close()


async def test_it_can_be_stopped_and_started_on_the_same_port() -> None:
    server = RawServer(HEALTHY)
    await server.start()
    port = server.port
    await server.stop()
    await server.stop()
    async with server, client_for(server) as client:
        assert server.port == port
        await client.partner_access("t")


def test_a_response_can_have_any_header_status_and_reason() -> None:
    message = Respond(299, b"x", [("A", "1"), ("A", "2"), ("content-length", "7")], reason="Odd").message
    assert (
        message == b"HTTP/1.1 299 Odd\r\nContent-Type: application/json\r\nA: 1\r\nA: 2\r\ncontent-length: 7\r\n\r\nx"
    )
    assert Respond(299).message.startswith(b"HTTP/1.1 299 Unknown\r\n")


def test_a_server_needs_a_script() -> None:
    with pytest.raises(ValueError, match="script"):
        RawServer()


async def test_a_client_that_leaves_ends_the_script() -> None:
    async with RawServer([Repeat(Send(b"x" * 100_000))]) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.transport.abort()
        async with asyncio.timeout(5):
            await until(lambda: server.connections and not server.open)
        assert server.connections == 1


async def test_a_connection_accepted_in_the_moment_of_stopping_is_closed() -> None:
    async with RawServer([Hang()]) as server:
        listener = server._listener
        assert listener is not None
        await turns()  # it waits for a connection
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            while not listener.fresh:  # it is accepted, and the server's task has not heard of it
                await asyncio.sleep(0)
            await server.stop_listening()
            assert server.connections == 0
            assert client.recv(1) == b""
