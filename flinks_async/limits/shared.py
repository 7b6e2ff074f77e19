"""A rate that several processes share: each takes permits in blocks from whoever keeps the rate.

A permit allows one request, at a time of its own.

In a job with workers, the job's program keeps it. Processes that know nothing of each other share it by Redis, with
`Limits(rate_limiter=RedisRateLimiter(url, key, rate=1000))`: services on several machines, or several jobs with one AuthSecret.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from inspect import isawaitable
from math import ceil
from typing import Any, Final, NoReturn, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit
from weakref import WeakKeyDictionary, WeakSet

from .. import checks
from ..config import RateLimiter
from ..errors import ConfigError
from ..secret import Secret
from .notices import log_fields
from .rate import GCRA, PaceState

LATE: Final = 0.2
"""Seconds for which a permit can be used after its time. Older ones, as after a pause, are dropped, so that none come in a burst."""


class PermitBuffer:
    """A `RateLimiter` that asks for permits in blocks, and for the next block when half of one is used.

    A process that cannot use its permits in time asks for fewer, so that others get them.

    Args:
        ask: asks for that many permits. `grant` takes the answer.
        most: permits in a block; may be changed.
        now: the clock of `reserve`.
    """

    def __init__(self, ask: Callable[[int], object], most: int, now: Callable[[], float]) -> None:
        self._ask = ask
        self.most = self._block = most
        self._now = now
        self._permits = deque[float]()
        self._asked = False
        self._granted = asyncio.Event()

    def reserve(self, now: float, /) -> float | Awaitable[float]:
        if self._permits and self._permits[0] < now - LATE:
            self._block = max(1, self._block // 2)
            while self._permits and self._permits[0] < now - LATE:
                self._permits.popleft()
        elif not self._permits:
            self._block = min(self.most, 2 * self._block)
        if len(self._permits) <= self._block // 2:
            self._want()
        return max(0.0, self._permits.popleft() - now) if self._permits else self._wait(now)

    def grant(self, waits: Sequence[float]) -> None:
        """Takes permits, as seconds from now."""
        now = self._now()
        self._permits.extend(now + wait for wait in waits)
        if len(self._permits) > len(waits):  # a block may begin before the last one ends
            self._permits = deque(sorted(self._permits))
        self._asked = False
        self._granted.set()

    async def _wait(self, now: float) -> float:
        while not self._permits:
            self._granted.clear()
            self._want()
            await self._granted.wait()
        return self._permits.popleft() - now

    def _want(self) -> None:
        if not self._asked:
            self._asked = True
            self._ask(self._block)


class PermitSource:
    """Gives the permits of a limiter in blocks to several that use `PermitBuffer`.

    Args:
        limiter: whose permits they are.
        now: the clock.
        recent: seconds after which one that has not asked again counts as gone.
    """

    def __init__(self, limiter: RateLimiter, now: Callable[[], float], recent: float) -> None:
        self._limiter = limiter
        self._now = now
        self._recent = recent
        self._asked: dict[object, float] = {}
        self._lock = asyncio.Lock()

    async def take(self, who: object, count: int) -> list[float]:
        """The next permits, as seconds from now."""
        began = self._now()
        self._asked = {one: at for one, at in self._asked.items() if at > began - self._recent} | {who: began}
        waits = list[float]()
        async with self._lock:
            began = self._now()
            for _ in range(count):
                reserved = self._limiter.reserve(began)
                waits.append(await reserved if isawaitable(reserved) else reserved)
        return [wait - (self._now() - began) for wait in spread(waits, len(self._asked))]


def spread(waits: Sequence[float], among: int) -> list[float]:
    """A block of permits, moved apart for one of several that take them at the same time, so that each sends evenly."""
    return [waits[0] + (wait - waits[0]) * among for wait in waits]


# --- Redis ------------------------------------------------------------------------------------------------------------

BLOCK: Final = 0.1
"""Seconds for which a process takes permits at once."""

TIMEOUT: Final = 1.0
"""Seconds after which Redis counts as failed, and between two looks whether it is back."""

MEMBER: Final = 10.0
"""Seconds for which a process that was not heard of counts as one that shares the rate."""

_OPTIONS: Final = {
    "socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT, "retry": None, "retry_on_timeout": False,
    "decode_responses": True, "encoding": "utf-8", "protocol": 2, "max_connections": 16,
}  # fmt: skip
"""Options of redis-py on which the limiter relies."""

_log = logging.getLogger("flinks_async")

# GCRA (see `rate`), the pause, and what was learned, by the clock of Redis in microseconds. KEYS: the next arrival, the end of
# the pause, what was learned, the members. ARGV: permits, interval, burst tolerance, this member, the channel, and what this
# member tells (as it is published): seconds of a pause, and its estimate or nothing. Returns the first permit and the pause as
# seconds from now, the number of members, and the latest estimate.
_SCRIPT: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local keep = 86400000
redis.call('ZADD', KEYS[4], now, ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now - 10000000)
redis.call('PEXPIRE', KEYS[4], keep)
if ARGV[6] ~= '' then
    local pause = math.floor(now + ARGV[6] * 1000000)
    if pause > now and pause > tonumber(redis.call('GET', KEYS[2]) or '0') then
        redis.call('SET', KEYS[2], string.format('%.0f', pause), 'PX', keep)
    end
    if ARGV[7] ~= '' then redis.call('SET', KEYS[3], ARGV[7], 'PX', 600000) end
    redis.call('PUBLISH', ARGV[5], ARGV[4] .. ' ' .. ARGV[6] .. ' ' .. ARGV[7])
end
local pause = tonumber(redis.call('GET', KEYS[2]) or '0')
local first = math.max(now, pause, tonumber(redis.call('GET', KEYS[1]) or '0'))
local count = tonumber(ARGV[1])
if count > 0 then
    redis.call('SET', KEYS[1], string.format('%.0f', first + count * ARGV[2]), 'PX', keep)
end
return {tostring((first - now - ARGV[3]) / 1000000), tostring(math.max(0, pause - now) / 1000000),
        redis.call('ZCARD', KEYS[4]), redis.call('GET', KEYS[3]) or ''}
"""


class SharesPace(Protocol):
    """Tells and hears about pauses and limits: a `Governor`, or a job with workers."""

    on_pace: Callable[[PaceState], object] | None

    def join(self, state: PaceState, /) -> object: ...


class RedisRateLimiter:
    """A `RateLimiter` for all processes with the same key. They also share pauses and what they learn from refusals.

    While Redis cannot be reached, each process keeps its part: the rate divided by the number of processes that shared it at
    last. The log warns, and `stats().why_held` and `explain()` say so. The URL is never shown, and the limiter refuses to be
    pickled.

    Args:
        url: `redis://`, `rediss://` (TLS) or `unix://`, perhaps with user, password and options of redis-py such as
            `?ssl_ca_certs=/etc/ca.pem`. Its options for timeouts, retries and encoding are ignored.
        key: begins the names of four keys, which all processes with one AuthSecret share.
        rate: requests per second of all together, the same in all processes; None to share only pauses and what is learned.
        burst: requests at once; None for a tenth of `rate`, at least 1.

    Raises:
        ConfigError: an argument is wrong, or the extra `redis` is not installed.
    """

    def __init__(self, url: str | Secret, key: str, *, rate: float | None = None, burst: int | None = None) -> None:
        self._url = url if isinstance(url, Secret) else Secret(str(url))
        if not self._url.reveal().startswith(("redis://", "rediss://", "unix://")):
            raise ConfigError("the URL of Redis must begin with redis://, rediss:// or unix:// (it is not shown)")
        checks.kind("key", key, str)
        if rate is not None and not (checks.is_number(rate) and 0 < rate < 1e9):
            raise ConfigError("rate must be a number of requests per second above 0, or None")
        checks.integer("burst", 1 if burst is None else burst, 1)
        self._library = checks.optional_import("redis.asyncio", extra="redis")
        self._check_url()
        self.key = key
        self.rate = rate
        self.burst = burst
        self._links: WeakKeyDictionary[asyncio.AbstractEventLoop, _Link] = WeakKeyDictionary()
        self._sharers: WeakSet[SharesPace] = WeakSet()

    def __repr__(self) -> str:
        return f"RedisRateLimiter(key={self.key!r}, rate={self.rate})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a RedisRateLimiter holds a URL that may have a password, so it cannot be pickled")

    def _check_url(self) -> None:
        with suppress(Exception):  # its text may hold a part of the password
            self._pool().make_connection()
            return
        raise ConfigError(
            "the URL of Redis cannot be used (it is not shown). Percent-encode the special characters of its password, and "
            "give only options that redis-py knows"
        )

    def _pool(self) -> Any:
        """Connections, with our options in the place of those of the URL, which would win."""
        parts = urlsplit(self._url.reveal())
        others = [(name, value) for name, value in parse_qsl(parts.query) if name not in _OPTIONS]
        return self._library.ConnectionPool.from_url(parts._replace(query=urlencode(others)).geturl(), **_OPTIONS)

    def attach(self, sharer: SharesPace) -> None:
        """Shares pauses and limits with it."""
        self._sharers.add(sharer)
        sharer.on_pace = self._tell

    def reserve(self, now: float, /) -> float | Awaitable[float]:
        link = self._link
        return 0.0 if self.rate is None else link.permits.reserve(now)

    def _tell(self, state: PaceState) -> None:
        self._link.tell(state)

    async def close(self) -> None:
        """Closes the connections of the running event loop. The end of the loop does the same."""
        if (link := self._links.pop(asyncio.get_running_loop(), None)) is not None:
            await link.close()

    @property
    def without_redis(self) -> float:
        """Seconds for which Redis has not answered; 0 if it does."""
        down = [link.down_since for link in self._links.values() if link.down_since is not None]
        return time.monotonic() - min(down) if down else 0.0

    @property
    def state(self) -> str:
        """How it works now, in words."""
        members = max((link.members for link in self._links.values()), default=1)
        whole = "pauses and limits" if self.rate is None else f"{self.rate:g}/s"
        if not (seconds := self.without_redis):
            return f"{whole} by Redis, shared by {members}"
        part = "" if self.rate is None else f": {self.rate / members:.4g}/s, this process's part of {whole}"
        return f"without Redis for {seconds:.0f} s{part}"

    @property
    def _link(self) -> _Link:
        loop = asyncio.get_running_loop()
        if (link := self._links.get(loop)) is None:
            link = self._links[loop] = _Link(self, self._library.Redis.from_pool(self._pool()), self._sharers)
        return link


class _Link:
    """The connection of one event loop to Redis. It ends with the loop."""

    def __init__(self, limiter: RedisRateLimiter, client: Any, sharers: WeakSet[SharesPace]) -> None:
        self.members = 1
        self.down_since: float | None = None
        self.permits = PermitBuffer(self._want, 1, time.monotonic)
        self._client = client
        self._script = client.register_script(_SCRIPT)
        self._keys = [f"{{{limiter.key}}}:{name}" for name in ("next", "pause", "learned", "members", "told")]
        self._name = os.urandom(16).hex()
        self._rate = limiter.rate or 1.0
        self._burst = limiter.burst
        self._local = GCRA(self._rate)
        self._sharers = sharers
        self._asked = self._until = 0.0
        self._has_learned = False
        self._calls: set[asyncio.Task[Any]] = set()
        self._call(self._listen())

    def tell(self, state: PaceState) -> None:
        """Tells the others."""
        pause = max(0.0, state.until - time.monotonic())
        self._call(self._ask(0, f"{pause:.6f}", "" if state.estimate is None else repr(state.estimate)))

    async def close(self) -> None:
        self.down_since, self._local = time.monotonic(), GCRA(self._rate / self.members)
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        self._take_locally(self.permits.most)  # for requests that wait for a cancelled call

    def _call(self, call: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def _want(self, count: int) -> None:
        if self.down_since is None:
            self._call(self._take(count))
        else:
            self._take_locally(count)

    async def _take(self, count: int) -> None:
        if (first := await self._ask(count)) is None:
            self._take_locally(count)
        else:
            self.permits.grant(spread([max(0.0, first + number / self._rate) for number in range(count)], self.members))

    def _take_locally(self, count: int) -> None:
        now = time.monotonic()
        self.permits.grant([self._local.reserve(now) for _ in range(count)])

    async def _ask(self, count: int, pause: str = "", estimate: str = "") -> float | None:
        """Runs the script. Returns the seconds to the first permit, before it for a burst; None while Redis fails."""
        self._asked = time.monotonic()
        burst = self._burst or max(1, int(self._rate / 10))
        numbers = (count, f"{1e6 / self._rate:.3f}", f"{1e6 / self._rate * (burst - 1):.3f}")
        try:
            reply = await self._script(keys=self._keys[:4], args=[*numbers, self._name, self._keys[4], pause, estimate])
            first, paused, members = float(reply[0]), float(reply[1]), int(reply[2])
            learned = float(reply[3]) if reply[3] else None
        except Exception as error:  # redis-py raises of many kinds, and a socket too
            self._failed(type(error).__name__)
            return None
        if self.down_since is not None:
            self.down_since = None
            fields = log_fields("RedisBack", processes=members)
            _log.warning("Redis answers again: %d processes share the rate", members, extra=fields)
        self.members = members
        self.permits.most = ceil(self._rate / members * BLOCK)
        self._hear(paused, None if self._has_learned else learned)
        self._has_learned = True
        return first

    def _failed(self, problem: str) -> None:
        if self.down_since is None:
            self.down_since = time.monotonic()
            self._local = GCRA(self._rate / self.members)
            _log.warning(
                "Redis does not answer (%s). Each of the %d processes that shared the rate keeps its part of it, and pauses "
                "are not shared until Redis answers again", problem, self.members,
                extra=log_fields("RedisDown", reason=problem, processes=self.members),
            )  # fmt: skip

    def _hear(self, pause: float, estimate: float | None) -> None:
        """Tells the sharers of this process, if it is new."""
        until = time.monotonic() + pause if pause > 0 else 0.0
        if estimate is not None or until > self._until + 0.05:
            self._until = max(self._until, until)
            for sharer in self._sharers:
                sharer.join(PaceState(estimate, until))

    async def _listen(self) -> None:
        """Hears what others tell, and looks whether Redis is back."""
        try:
            while True:
                try:
                    async with self._client.pubsub() as told:
                        await told.subscribe(self._keys[4])
                        while True:
                            message = await told.get_message(ignore_subscribe_messages=True, timeout=TIMEOUT)
                            if message is not None:
                                name, pause, estimate = message["data"].split(" ")
                                if name != self._name:
                                    self._hear(float(pause), float(estimate) if estimate else None)
                            if self.down_since is not None or time.monotonic() - self._asked > MEMBER / 3:
                                await self._ask(0)
                except Exception as error:
                    self._failed(type(error).__name__)
                await asyncio.sleep(TIMEOUT)
        finally:
            with suppress(Exception):
                await self._client.aclose()
