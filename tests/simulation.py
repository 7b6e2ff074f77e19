"""An instance in virtual time, with trouble by the clock: what the simulated hour and the storm tests talk to."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from flinks_async import FlinksClient, Settings
from flinks_async.errors import ConnectError
from flinks_async.messages import Request, Response
from flinks_async.testing import VirtualClock
from flinks_async.testing.in_memory import make_response

ANSWER = {"GetAccountsDetail": [], "RequestId": "r"}


class Instance:
    """A transport: answers after a random time, unless it is down at that moment.

    Args:
        is_up: by the virtual time in seconds.
        latency: mean seconds to an answer (exponential, with a floor).
        failure: what it does while it is down: "503" at once, "refused" at once.
    """

    def __init__(
        self, is_up: Callable[[float], bool], *, latency: float = 0.2, failure: str = "503", seed: int = 1
    ) -> None:
        self._is_up = is_up
        self._latency = latency
        self._failure = failure
        self._random = random.Random(seed)
        self.sent: Counter[str] = Counter()
        self.times: list[float] = []
        self.in_flight = self.most_in_flight = 0

    async def send(self, request: Request, /) -> Response:
        loop = asyncio.get_running_loop()
        self.sent[request.token.reveal()] += 1
        self.times.append(loop.time())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self._is_up(loop.time()):
                await asyncio.sleep(self._latency * (0.5 + self._random.expovariate(2.0)))
            else:
                await asyncio.sleep(0.01)
            if self._is_up(loop.time()):
                return make_response(ANSWER)
            if self._failure == "refused":
                raise ConnectError("no connection to the instance")
            return make_response({}, status=503)
        finally:
            self.in_flight -= 1

    async def close(self) -> None:
        pass

    def sent_between(self, start: float, end: float) -> int:
        return sum(start <= time < end for time in self.times)


def client_of(instance: Instance, settings: Settings, *, seed: int = 7, **options: Any) -> FlinksClient:
    """A client of the instance, in virtual time."""
    clock = VirtualClock(seed=seed)
    return FlinksClient(auth_secret="s", transport=instance, settings=settings, clock=clock, **options)
