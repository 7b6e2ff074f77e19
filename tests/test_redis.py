"""A rate, a pause and a learned limit for processes that share nothing but a Redis server: a real one."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Awaitable, Iterator
from contextlib import closing
from heapq import heappop, heappush
from pathlib import Path

import pytest

from flinks_async import ConfigError, FlinksClient, Limits, RedisRateLimiter, config
from flinks_async.bulk import Job
from flinks_async.clock import SystemClock
from flinks_async.limits import shared
from flinks_async.limits.governor import Governor
from flinks_async.limits.rate import PaceState
from flinks_async.testing import Fault, FlinksServer, Latency
from tests.cli_support import cli
from tests.support import until

from .bulk.server_desk import SECRET, Desk

from_url = pytest.importorskip("redis.asyncio").from_url

PASSWORD = "canary-password-7f3a"
KEY = "flinks/acme"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no redis-server"),
]


class Redis:
    """A server that can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = {"port": self.port, "bind": "127.0.0.1", "requirepass": PASSWORD, "save": "", "dir": self.folder}
        arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        self.process = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise TimeoutError

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is slow for a second is no failure of Redis."""
    for option in ("socket_timeout", "socket_connect_timeout"):
        monkeypatch.setitem(shared._OPTIONS, option, 60.0)


@pytest.fixture
def redis(tmp_path: Path, patient: None) -> Iterator[Redis]:
    server = Redis(tmp_path)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Clock:
    """The time of the limiters in this process and of Redis. It passes only when a test says so, whatever the machine does."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    async def permits(self, redis: Redis, limiters: list[RedisRateLimiter], seconds: float) -> list[list[float]]:
        """When processes that send as soon as they may have sent. Redis answers in no time, or not at all."""
        sent: list[list[float]] = [[] for _ in limiters]
        due, end = [(self.now, number) for number in range(len(limiters))], self.now + seconds
        async with from_url(redis.url) as client:
            while due:
                self.now, number = heappop(due)
                if redis.process is not None:
                    await client.set("clock", repr(self.now))
                reserved = limiters[number].reserve(self.now)
                at = self.now + (reserved if isinstance(reserved, float) else await reserved)
                await until(lambda: not limiters[number]._link.permits._asked)  # noqa: B023 - it is awaited here
                if at < end:
                    sent[number].append(at)
                    heappush(due, (at, number))
        return sent


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, patient: None) -> Clock:
    clock = Clock()
    ours = shared._SCRIPT.replace("redis.call('TIME')", "{redis.call('GET', 'clock') or 0, 0}")
    assert ours != shared._SCRIPT
    monkeypatch.setattr(shared, "_SCRIPT", ours)
    monkeypatch.setattr(shared, "time", clock)
    return clock


async def test_three_that_share_a_key_keep_one_rate_and_another_key_is_another_rate(redis: Redis, clock: Clock) -> None:
    three = [RedisRateLimiter(redis.url, KEY, rate=200.0, burst=1) for _ in range(3)]
    other = RedisRateLimiter(redis.url, "another", rate=50.0, burst=1)
    *together, alone = await clock.permits(redis, [*three, other], 3.0)
    everything = sorted(at for sent in together for at in sent)
    assert 0.93 * 600 <= len(everything) <= 601
    assert all(len(sent) > 60 for sent in together), "nobody gets all"
    assert max(sum(start <= at < start + 1 for at in everything) for start in everything) <= 200 * 1.2
    assert 0.93 * 150 <= len(alone) <= 151
    assert three[0].state == "200/s by Redis, shared by 3"
    for limiter in (*three, other):
        await limiter.close()


async def test_a_pause_and_a_learned_limit_reach_all_at_once(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    limiters = [RedisRateLimiter(redis.url, KEY) for _ in range(2)]
    governors = [Governor(Limits(rate_limiter=one), SystemClock(), "host") for one in limiters]
    for governor in governors:
        await governor.acquire()
    async with from_url(redis.url) as client:
        while [listening for _, listening in await client.pubsub_numsub(f"{{{KEY}}}:told")] != [2]:
            await asyncio.sleep(0.02)
    assert governors[0].on_pace is not None
    with monkeypatch.context() as patch:
        patch.setattr(shared, "MEMBER", 1e9)  # nobody asks
        governors[0].on_pace(PaceState(120.0, time.monotonic() + 60.0))
        await until(lambda: governors[1].held_back)
    assert 40 < governors[1].held_back <= 60
    assert governors[1].pace.limit == 120.0
    late = RedisRateLimiter(redis.url, KEY)
    governor = Governor(Limits(rate_limiter=late), SystemClock(), "host")
    await governor.acquire()
    await until(lambda: governor.held_back)
    assert governor.held_back > 20, "who comes later hears of it too"
    for limiter in (*limiters, late):
        await limiter.close()


async def test_without_redis_each_keeps_its_part_and_says_so_until_it_is_back(
    redis: Redis, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "flinks_async")
    two = [RedisRateLimiter(redis.url, KEY, rate=100.0, burst=1) for _ in range(2)]
    await clock.permits(redis, two, 0.5)
    redis.stop()
    for sent in await clock.permits(redis, two, 3.0):
        assert 0.8 * 150 <= len(sent) <= 160
    assert "without Redis for" in two[0].state
    assert "50/s, this process's part of 100/s" in two[0].state
    warnings = [record.getMessage() for record in caplog.records]
    assert len([line for line in warnings if "Each of the 2 processes" in line]) == 2, "once a process"
    redis.start()
    await until(lambda: two[0].state.startswith("100/s by Redis"))
    assert any("Redis answers again" in record.getMessage() for record in caplog.records)
    assert PASSWORD not in caplog.text
    for limiter in two:
        await limiter.close()


async def test_a_client_uses_it_and_tells_how_it_stands(redis: Redis) -> None:
    async with FlinksServer() as server:
        server.script("token-3", [Fault.reply(429, {}, retry_after=0.5)])
        limiter = RedisRateLimiter(redis.url, KEY, rate=100.0, burst=1)
        limits = {"rate_limiter": limiter}
        async with FlinksClient(
            auth_secret=server.auth_secret, base_url=server.base_url, settings=config.bulk(), limits=limits
        ) as client:
            began = time.monotonic()
            outcomes = [one async for one in client.partner_access_many([f"token-{n}" for n in range(50)])]
            assert len(outcomes) == 50
            assert time.monotonic() - began > 0.49
            assert "100/s by Redis, shared by 1" in client.explain()
            assert "100/s by Redis" in client.stats().why_held
            for text in (client.explain(), repr(limiter), str(client), repr(client.stats())):
                assert PASSWORD not in text
        await limiter.close()


def test_the_url_is_in_no_repr_and_no_pickle_and_wrong_arguments_are_named() -> None:
    limiter = RedisRateLimiter(f"rediss://user:{PASSWORD}@redis.example:6379", KEY, rate=10.0)
    assert repr(limiter) == "RedisRateLimiter(key='flinks/acme', rate=10.0)"
    assert PASSWORD not in repr(Limits(rate_limiter=limiter)) + repr(vars(limiter))
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(limiter)
    for wrong, message in (
        ({"url": f"http://{PASSWORD}"}, "must begin with redis://"),
        ({"url": f"redis://:{PASSWORD}/x@redis.example:6379"}, "cannot be used"),
        ({"url": "redis://h?no_such_option=1"}, "only options that redis-py knows"),
        ({"rate": 0}, "rate must be"),
        ({"rate": float("nan")}, "rate must be"),
        ({"burst": 0}, "burst"),
        ({"key": 3}, "key"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            RedisRateLimiter(**{"url": "redis://h", "key": KEY, **wrong})
        assert PASSWORD not in str(error.value)


async def test_a_request_that_waits_for_its_turn_gets_it_although_the_limiter_is_closed(clock: Clock) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        limiter = RedisRateLimiter(f"redis://127.0.0.1:{silent.getsockname()[1]}", KEY, rate=10.0)
        reserved = limiter.reserve(clock.now)
        assert isinstance(reserved, Awaitable)
        waiting = asyncio.ensure_future(reserved)
        await asyncio.sleep(0.1)
        await limiter.close()
        assert await asyncio.wait_for(waiting, 60) == 0.0


async def test_an_answer_of_redis_that_makes_no_sense_counts_as_none(
    redis: Redis, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with from_url(redis.url) as client:
        await client.set(f"{{{KEY}}}:learned", "much")
    limiter = RedisRateLimiter(redis.url, KEY, rate=10.0)
    reserved = limiter.reserve(clock.now)
    assert isinstance(reserved, Awaitable)
    assert await asyncio.wait_for(reserved, 60) == 0.0
    assert "Redis does not answer (ValueError)" in caplog.text
    await limiter.close()


@pytest.mark.parametrize("option", ["max_connections=1", "decode_responses=no", "protocol=3", "encoding=utf-16"])
async def test_options_of_the_url_change_nothing_on_which_the_limiter_relies(
    redis: Redis, clock: Clock, option: str
) -> None:
    limiter = RedisRateLimiter(f"{redis.url}?{option}&client_name=a%2Bb", KEY, rate=100.0, burst=1)
    await clock.permits(redis, [limiter], 0.5)
    assert limiter.state == "100/s by Redis, shared by 1"
    async with from_url(redis.url) as client:
        assert "a+b" in {one["name"] for one in await client.client_list()}
    await limiter.close()


async def test_a_timeout_in_the_url_does_not_keep_requests_waiting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}?socket_timeout=60&socket_connect_timeout=60"
        limiter = RedisRateLimiter(url, KEY, rate=10.0)
        reserved = limiter.reserve(time.monotonic())
        assert isinstance(reserved, Awaitable)
        assert await asyncio.wait_for(reserved, 30) < 10.0
        await limiter.close()


async def test_the_doctor_does_what_the_limiter_does(redis: Redis) -> None:
    async def redis_of(url: str) -> dict[str, str]:
        result = await cli("doctor", "--json", "--redis", REDIS_URL=url)
        assert PASSWORD not in result.output
        (found,) = [one for one in json.loads(result.stdout)["findings"] if one["check"] == "redis"]
        return {name: str(text) for name, text in found.items()}

    assert (await redis_of(redis.url))["state"] == "ok"
    user = from_url(redis.url)
    await user.execute_command("ACL", "SETUSER", "narrow", "on", f">{PASSWORD}", "~*", "+eval", "+zadd", "+pexpire")
    await user.aclose()
    for url in (redis.url.replace(f":{PASSWORD}", f"narrow:{PASSWORD}"), redis.url.replace(PASSWORD, "wrong")):
        found = await redis_of(url)
        assert found["state"] == "problem"
        assert "PUBLISH" in found["advice"]


async def test_a_job_tells_that_redis_does_not_answer(tmp_path: Path) -> None:
    async with FlinksServer(auth_secret=SECRET, latency=Latency.fixed(0.1)) as server:
        desk = Desk(tmp_path, server)
        limiter = RedisRateLimiter("redis://127.0.0.1:1", KEY, rate=1000.0)
        told: list[str] = []

        async def look(job: Job) -> None:
            while not told and (progress := job.progress()) is not None:
                told.extend(map(str, progress.troubles))
                await asyncio.sleep(0.1)

        desk.write(400)
        await desk.run(during=look, limits={"concurrency": 8, "rate_limiter": limiter})
        await limiter.close()
    assert re.fullmatch(r"Redis does not answer, so the rate is not shared for (less than )?\d+ s", told[0])
