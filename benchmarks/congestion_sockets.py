"""Rows of benchmarks/congestion.py on real sockets, and the time that the package adds to a call.

    python benchmarks/congestion_sockets.py            # three and a half minutes
    python benchmarks/congestion_sockets.py --short    # 20 seconds, only to see that it works

The limits are those of `limited_servers.SHAPES`, in a process of its own on 127.0.0.1. The virtual share is that of the same
number of seconds. Calls at a steady rate are made in turn by bare aiohttp and by `config.service()`, in this process.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiohttp
from congestion import BULK, MOST, Client, simulate
from figures import machine, table, versions
from limited_servers import SHAPES, Bucket, Server
from servers import SECRET

from flinks_async import FlinksClient, config
from flinks_async.testing.data import expected_body

ROWS = {
    "bucket 100/s, burst 20": SHAPES["bucket 100/s, burst 20"],
    "bucket 1,000/s, burst 20": Server([Bucket(1000, 20)]),
    "1,000 in each 10 s": SHAPES["1,000 in each 10 s"],
}
CALLS = 500  # a second
STEADY = Server(latency=0.02, spread=0.0)
OK, REFUSED = 0, 1


class Answering(asyncio.Protocol):
    """HTTP/1.1 just enough: one answer for each request, as the simulated server decides."""

    def __init__(self, server: Server, counts: Any) -> None:
        self._server, self._counts = server, counts
        self._loop = asyncio.get_running_loop()
        self._ok = _response("200 OK", expected_body("a", size="small"))
        self._refused = _response("401 Unauthorized", b'{"FlinksCode": "TOO_MANY_REQUESTS"}')

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            _, _, self._received = self._received.partition(b"\r\n\r\n")
            reply = self._server.arrive(time.time())
            self._loop.call_later(reply.delay, self._answer, reply.ok)

    def _answer(self, ok: bool) -> None:
        if ok:
            self._server.left(time.time())
        self._counts[OK if ok else REFUSED] += 1
        self._transport.write(self._ok if ok else self._refused)


def _response(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def _serve(server: Server, counts: Any, port: Any) -> None:
    async def main() -> None:
        listening = await asyncio.get_running_loop().create_server(lambda: Answering(server, counts), "127.0.0.1", 0)
        port.send(listening.sockets[0].getsockname()[1])
        await listening.serve_forever()

    asyncio.run(main())


@contextmanager
def serving(server: Server) -> Iterator[tuple[str, Any]]:
    """A server in its own process: its address, and the numbers of its answers and refusals."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    counts = context.Array("l", 2, lock=False)
    process = context.Process(target=_serve, args=(server, counts, there), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}", counts
    finally:
        process.kill()
        process.join()


def client_of(url: str, settings: config.Settings) -> FlinksClient:
    return FlinksClient(auth_secret=SECRET, base_url=url, settings=settings)


async def _used(url: str, seconds: float) -> None:
    async def fetch() -> None:
        async with client_of(url, config.bulk()) as client:
            async for _ in client.partner_access_many(f"{number:032x}" for number in range(10**9)):
                pass

    task = asyncio.create_task(fetch())
    await asyncio.wait([task], timeout=seconds)
    if task.done():
        await task
    task.cancel()


def real(shape: Server, seconds: float) -> tuple[float, float]:
    """The share of what the limit allowed, and requests for each answer."""
    with serving(shape.seeded(0)) as (url, counts):
        time.sleep(10.0 - time.time() % 10.0 if seconds >= 10 else 0.0)  # a window begins
        asyncio.run(_used(url, seconds))
        ok, refused = counts
    return ok / shape.seeded(0).best(0.0, seconds, MOST), (ok + refused) / max(1, ok)


def virtual(shape: Server, seconds: float) -> tuple[float, float]:
    client, server = Client(BULK), shape.seeded(0)
    simulate(server, [client], seconds)
    return client.done / server.best(0.0, seconds, MOST), (client.done + client.refused) / max(1, client.done)


# --- calls at a steady rate ---

Call = Callable[[str], Awaitable[object]]


@asynccontextmanager
async def bare_aiohttp(url: str) -> AsyncIterator[Call]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def call(token: str) -> object:
            async with session.get(f"{url}/partneraccess/{token}", headers={"flinks-auth-key": SECRET}) as response:
                return await response.read()

        yield call


@asynccontextmanager
async def service(url: str) -> AsyncIterator[Call]:
    async with client_of(url, config.service()) as client:
        yield client.partner_access


async def _times(call: Call, seconds: float) -> list[float]:
    """Seconds of each call. They begin at fixed times, also if earlier ones are late."""
    loop, times, tasks = asyncio.get_running_loop(), list[float](), set[asyncio.Task[None]]()

    async def one(number: int, due: float) -> None:
        await call(f"{number:032x}")
        times.append(loop.time() - due)

    begun = loop.time() + 0.1
    for number in range(int(CALLS * seconds)):
        due = begun + number / CALLS
        await asyncio.sleep(max(0.0, due - loop.time()))
        task = asyncio.create_task(one(number, due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return times[CALLS // 2 :]  # without the first connections


async def _steady(url: str, rounds: int, seconds: float) -> dict[str, list[list[float]]]:
    found: dict[str, list[list[float]]] = {"bare aiohttp": [], "config.service()": []}
    for _ in range(rounds):
        for name, opened in (("bare aiohttp", bare_aiohttp), ("config.service()", service)):
            async with opened(url) as call:
                found[name].append(await _times(call, seconds))
    return found


def steady(rounds: int, seconds: float) -> str:
    with serving(STEADY.seeded(1)) as (url, _):
        found = asyncio.run(_steady(url, rounds, seconds))
    rows = []
    for name, all_rounds in found.items():
        p50, p99 = (
            statistics.median(1e3 * statistics.quantiles(one, n=100)[percent - 1] for one in all_rounds)
            for percent in (50, 99)
        )
        rows.append([name, f"{p50:.2f} ms", f"{p99:.2f} ms"])
    return table((f"{CALLS} calls a second, answers in 20 ms", "p50", "p99"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a few seconds of each")
    options = parser.parse_args()
    print(f"{machine()}.\n{versions(['flinks-async', 'aiohttp'])}.\n", flush=True)
    rows = []
    for name, shape in ROWS.items():
        seconds = 3.0 if options.short else 40.0
        row = [f"{share:.2f}, {requests:.3f}" for share, requests in (virtual(shape, seconds), real(shape, seconds))]
        rows.append([name, *row])
        print(name, *row, sep="; ", file=sys.stderr, flush=True)
    print(table(("server", "virtual time", "real sockets"), rows), flush=True)
    print(f"\n{steady(1, 2.0) if options.short else steady(3, 8.0)}")


if __name__ == "__main__":
    main()
