"""Load: many calls in flight for a long time, against a simulator that misbehaves. Takes minutes: `-m torture`."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from flinks_async import Failed, FlinksClient, config
from flinks_async.testing import ServeOptions, ServerProcess

IN_FLIGHT = 2000
KINDS = ("http_500", "http_502", "http_503", "retry_later", "card_in_use", "reset", "close", "reset_body", "close_body")


def resident() -> float:
    """Memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.torture
@pytest.mark.timeout(400)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_two_thousand_in_flight_for_two_minutes() -> None:
    seconds = float(os.environ.get("FLINKS_LOAD_SECONDS", "120"))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        taken = 0
        end = loop.time() + seconds

        def tokens() -> Iterator[str]:
            nonlocal taken
            while loop.time() < end:
                yield f"token-{taken}"
                taken += 1

        # Half a second each, so that two thousand are in flight; no throttles, which would rightly slow everybody down.
        options = ServeOptions(faults=0.03, kinds=KINDS, seed=7, latency=("lognormal", 0.4, 0.5))
        with ServerProcess(options) as server:
            async with FlinksClient(
                auth_secret=server.auth_secret,
                base_url=server.base_url,
                settings=config.bulk(),
                limits={"concurrency": IN_FLIGHT},
            ) as flinks:
                outcomes: Counter[str] = Counter()
                memory: list[float] = []
                most = 0
                async with aclosing(flinks.partner_access_many(tokens(), concurrency=IN_FLIGHT)) as many:
                    async for outcome in many:
                        outcomes[type(outcome.error).__name__ if isinstance(outcome, Failed) else "fetched"] += 1
                        if outcomes.total() % 5000 == 0:
                            memory.append(resident())
                            most = max(most, flinks.stats().requests_in_flight)
                stats = flinks.stats()
            told = server.stats()
            assert outcomes == {"fetched": taken}
            assert (stats.calls_in_flight, stats.requests_in_flight, stats.queued) == (0, 0, 0)
            assert stats.requests >= told["requests"] >= taken
            assert most > IN_FLIGHT * 0.9
            # Flat: the second half of the run needs no more than the first did.
            half = len(memory) // 2
            assert max(memory[half:]) - max(memory[:half]) < 15
            print(
                f"\n{taken} tokens, {stats.requests} requests, memory {memory[0]:.0f}..{max(memory):.0f} MiB, {outcomes}"
            )
        gc.collect()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
