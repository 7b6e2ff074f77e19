"""Where the client's processor time of one request goes: `python benchmarks/profile_request.py [--short]`.

The parts are measured separately and without a profiler, in interleaved rounds: aiohttp as it is usually used, our
transport, the chain around a transport that responds at once, and decoding. With --profile, Python's profiler then runs a
whole request; it makes small functions look more expensive than they are.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import io
import os
import pstats
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from clients import Target, bare_aiohttp, in_workers, ours
from figures import machine, spread, table, versions
from servers import SECRET, Server, cores, plain

from flinks_async import FlinksClient
from flinks_async.codec import Codec
from flinks_async.config import Limits
from flinks_async.messages import Request, Response
from flinks_async.models import Meta
from flinks_async.secret import Secret

Work = Callable[[int], Awaitable[None]]

TOKENS = [f"{number:08x}-1243-4b8d-9c1e-764123800000" for number in range(1000)]


class AtOnce:
    """A transport that costs nothing: it answers at once, always with the same response."""

    def __init__(self, body: bytes, headers: Any) -> None:
        self._response = Response(200, headers, body)

    async def send(self, request: Request, /) -> Response:
        return self._response

    async def close(self) -> None: ...


class Kept:
    """An attempt middleware that keeps the innermost transport's request, to send it again without the chain."""

    request: Request | None = None

    async def __call__(self, request: Request, call_next: Any) -> Response:
        self.request = request
        response: Response = await call_next(request)
        return response


def tokens(count: int) -> list[str]:
    return (TOKENS * (count // len(TOKENS) + 1))[:count]


async def parts_of(server: Server, concurrency: int, stack: AsyncExitStack) -> dict[str, Work]:
    """The measured parts, by name."""
    target = Target(server.base_url, SECRET, None, concurrency, server.body)
    aiohttp_fetch = await stack.enter_async_context(bare_aiohttp(target))
    whole_fetch = await stack.enter_async_context(ours("with the answer")(target))

    kept = Kept()
    limits = Limits(concurrency=concurrency)
    flinks = await stack.enter_async_context(
        FlinksClient(auth_secret=SECRET, base_url=server.base_url, limits=limits, attempt_middleware=[kept])
    )
    response = await flinks.partner_access_raw("first")
    assert kept.request is not None
    send, requests = transport_of(flinks).send, {token: kept.request.evolve(token=Secret(token)) for token in TOKENS}
    chain = await stack.enter_async_context(
        FlinksClient(
            auth_secret=SECRET, limits=limits, base_url=server.base_url, transport=AtOnce(server.body, response.headers)
        )
    )
    decode, meta = Codec().decode, Meta()

    async def send_one(token: str) -> None:
        await send(requests[token])

    async def through_the_chain(token: str) -> None:
        await chain.partner_access(token)

    async def decoded(_: str) -> None:
        decode(server.body, meta)

    async def nothing(_: str) -> None:
        pass

    def at_the_same_time(one: Callable[[str], Awaitable[None]]) -> Work:
        fetch = in_workers(one)
        return lambda count: fetch(tokens(count), concurrency)

    return {
        "aiohttp, default session, get() and read()": lambda count: aiohttp_fetch(tokens(count), concurrency),
        "flinks_async, whole": lambda count: whole_fetch(tokens(count), concurrency),
        "- its transport": at_the_same_time(send_one),
        "- its chain and decoding, with a transport that answers at once": at_the_same_time(through_the_chain),
        "- of which decoding": at_the_same_time(decoded),
        "the workers of this measurement": at_the_same_time(nothing),
    }


def transport_of(client: FlinksClient) -> Any:
    """The transport that a client has made for itself."""
    from flinks_async.transport.aiohttp import AiohttpTransport

    return AiohttpTransport(client._pool.sessions, client._settings.timeouts, client._settings.limits.max_body)  # type: ignore[arg-type]


async def measure(parts: dict[str, Work], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Microseconds of this process' processor time for one request, by part and round."""
    counts = {}
    for name, work in parts.items():
        await work(200)
        started = time.perf_counter()
        await work(200)
        counts[name] = max(200, int(200 * seconds / (time.perf_counter() - started)))
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name in random.sample(list(parts), len(parts)):
            started = time.process_time()
            await parts[name](counts[name])
            times[name].append((time.process_time() - started) / counts[name] * 1e6)
    return times


async def profiled(work: Work, count: int) -> pstats.Stats:
    await work(count // 10)
    profile = cProfile.Profile()
    profile.enable()
    await work(count)
    profile.disable()
    return pstats.Stats(profile)


def place_of(where: tuple[str, int, str]) -> str:
    """The part that a profiled function belongs to."""
    file, _, name = where
    path = Path(file)
    if file == "~":
        builtins = {
            "socket": "sockets", "uvloop": "event loop", "msgspec": "decoding", "multidict": "aiohttp and its parts",
            "_contextvars": "aiohttp and its parts", "yarl": "aiohttp and its parts", "aiohttp": "aiohttp and its parts",
            "httptools": "parser",
        }  # fmt: skip
        return next((part for word, part in builtins.items() if word in name), "built-in functions")
    if "flinks_async" in path.parts:
        inner = path.parts[len(path.parts) - path.parts[::-1].index("flinks_async") :]
        if inner[0] == "codec" or inner[-1] == "models.py":
            return "decoding"
        return "transport" if inner[0] == "transport" else "chain"
    if file.startswith("<"):
        return "decoding" if "flinks" in file else "generated by attrs"
    if any(part in path.parts for part in ("aiohttp", "yarl", "multidict", "propcache", "frozenlist", "aiosignal")):
        return "aiohttp and its parts"
    return "event loop" if "asyncio" in path.parts or "uvloop" in path.parts else "standard library"


def by_part(stats: pstats.Stats, count: int) -> str:
    sums: dict[str, float] = {}
    for where, (_, _, own, _, _) in stats.stats.items():  # type: ignore[attr-defined]
        part = place_of(where)
        sums[part] = sums.get(part, 0.0) + own
    total = sum(sums.values())
    ordered = sorted(sums.items(), key=lambda item: -item[1])
    return table(
        ["part", "µs, profiled", "share"],
        [[part, f"{own / count * 1e6:.1f}", f"{own / total:.0%}"] for part, own in ordered],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="few rounds")
    parser.add_argument("--size", default="small", choices=["small", "medium", "large"])
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--profile", type=int, default=0, metavar="LINES", help="also show the dearest functions")
    options = parser.parse_args()
    rounds, seconds = (5, 0.1) if options.short else (31, 0.2)
    place = cores()
    if place is not None:
        os.sched_setaffinity(0, {place[0]})

    async def work(server: Server) -> None:
        async with AsyncExitStack() as stack:
            parts = await parts_of(server, options.concurrency, stack)
            times = await measure(parts, rounds, seconds)
            own = [[name, f"{statistics.median(each):.1f} ± {spread(each):.0%}"] for name, each in times.items()]
            print(table(["one request", "client CPU µs"], own))
            if options.profile:
                for name in list(parts)[:2]:
                    count = max(200, int(2e6 / statistics.median(times[name])))
                    stats = await profiled(parts[name], count)
                    print(f"\nProfile of: {name}\n\n{by_part(stats, count)}\n")
                    text = io.StringIO()
                    stats.stream = text  # type: ignore[attr-defined]
                    stats.strip_dirs().sort_stats("tottime").print_stats(options.profile)
                    print(text.getvalue())

    with plain(options.size, place[1] if place else None) as server:
        size = len(server.body) / 1000
        print(f"{machine()}.\n{versions(['aiohttp', 'uvloop', 'msgspec'])}. Server: {server.kind}, {size:.2f} KB.")
        print(f"{options.concurrency} in flight, median of {rounds} rounds ± half the distance of the quartiles.\n")
        try:
            import uvloop
        except ImportError:
            asyncio.run(work(server))
        else:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(work(server))


if __name__ == "__main__":
    sys.exit(main())
