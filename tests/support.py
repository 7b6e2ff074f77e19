"""Small things that several test files need."""

from __future__ import annotations

import asyncio
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings

from flinks_async import FlinksClient
from flinks_async.bulk import export
from flinks_async.limits.governor import Governor
from flinks_async.limits.pace import AttemptRecord
from flinks_async.testing import FakeClock, InMemoryTransport
from flinks_async.verdict import Verdict

SECRET = "the-auth-secret"
DOCUMENTED = {
    "GetAccountsDetail": [{"LoginId": "5e115eac-1209-4f19-641c-08d6d484e2fe", "CustomerId": "c-1"}],
    "RequestId": "r-1",
}


TIMES = float(os.environ.get("FLINKS_EXAMPLES", "1"))


def examples(number: int, **options: Any) -> settings:
    """Settings of hypothesis for a test with this many examples, times `FLINKS_EXAMPLES`: 10 in .ci/torture, a fifth on the
    other Pythons in .ci/run.
    """
    return settings(
        max_examples=max(1, round(number * TIMES)), deadline=None, suppress_health_check=list(HealthCheck), **options
    )


def client_of(transport: InMemoryTransport, **options: Any) -> FlinksClient:
    """A client without network and without waiting; `random` is 1, so that waits are the longest possible."""
    options.setdefault("clock", FakeClock(random=1.0))
    return FlinksClient(auth_secret=options.pop("auth_secret", SECRET), transport=transport, **options)


def answers_of(job: Path) -> dict[int, dict[str, Any]]:
    """The answers of a job by line."""
    lines = [json.loads(line) for line in export(job)]
    assert len({line["line"] for line in lines}) == len(lines), "an answer is there twice"
    return {line["line"]: line for line in lines}


async def turns(number: int = 20) -> None:
    """Lets other tasks run."""
    for _ in range(number):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Waits for something that a socket, a thread or another process does."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


class Traced:
    """The result of `traced`: the peak of Python's memory in bytes."""

    peak = 0


@contextmanager
def traced() -> Iterator[Traced]:
    """Measures the memory of what runs inside.

    A test allows itself two measurements, of which one must be small enough: in a long run the interpreter
    sometimes resizes its table of interned strings, which takes 8 MB at an unpredictable moment.
    """
    result = Traced()
    tracemalloc.start()
    try:
        yield result
        result.peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def record(governor: Governor, verdict: Verdict, **fields: Any) -> bool:
    """Reports an attempt that ends now to a governor; the fields are those of `AttemptRecord`."""
    return governor.record(AttemptRecord(verdict=verdict, ended=governor._clock.now(), **fields))
