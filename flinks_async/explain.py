"""Describes the effective settings and the retry schedule as text without secrets, for people and for bug reports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import attrs

from . import config
from .client_options import ClientOptions
from .config import Adaptive, Settings, ShareQuota, TokenBucketQuota
from .endpoint import Endpoint
from .limits.rate import LearnedLimit
from .limits.shared import RedisRateLimiter
from .secret import MASK, Secret

ROWS: Final = 20
"""The number of attempts that have a line each."""


def explain(options: ClientOptions, endpoint: Endpoint, learned: LearnedLimit | None = None) -> str:
    """Describes what a client with these options will do.

    Args:
        learned: the limit of the instance, as far as the client knows it.
    """
    settings = options.settings
    lines = [
        f"instance: {endpoint.host} (auth_scheme {endpoint.auth_scheme}, secret {MASK})",
        f"headers: {', '.join(sorted(endpoint.headers))}",
        "",
        "retries:",
        *(f"  {line}" for line in schedule(settings.retry)),
        *(f"  {line}" for line in _bounds(settings, learned)),
        "",
        "settings:",
    ]
    for record in (settings.retry, settings.timeouts, settings.limits, settings.connection):
        lines += [f"  {name} = {value}" for name, value in _fields(record)]
    others = [(name, value) for name in ("hedge", "coalesce", "poll_pending") if (value := getattr(options, name))]
    if others:
        lines += ["", "also:", *(f"  {name} = {_shown(value)}" for name, value in others)]
    return "\n".join(lines)


def schedule(retry: config.Retry) -> Iterator[str]:
    """One line for each of the first attempts, with the range of its delay, and one line for all later attempts."""
    yield "attempt 1: at once"
    for number in range(2, min(retry.attempts, ROWS) + 1):
        longest, throttled = _longest(retry, number)
        yield (
            f"attempt {number}: after a random 0 to {longest:g} s (0 to {throttled:g} s if throttled), "
            f"or Retry-After if that is longer"
        )
    if retry.attempts > ROWS:
        usual, slowed_down = (
            f"{first:g} s" if first == last else f"{first:g} s, growing to {last:g} s"
            for first, last in zip(_longest(retry, ROWS + 1), _longest(retry, retry.attempts), strict=True)
        )
        yield (
            f"{retry.attempts - ROWS:,} more attempts: each after a random 0 to {usual} (0 to {slowed_down} if throttled), "
            f"or Retry-After if that is longer"
        )


def _longest(retry: config.Retry, number: int) -> tuple[float, float]:
    """The longest delay before an attempt in seconds, usually and after a throttled attempt."""
    grown = 2.0 ** min(number - 2, 1000)
    return min(retry.cap, retry.base * grown), min(retry.cap, retry.throttled_base * grown)


def _bounds(settings: Settings, learned: LearnedLimit | None) -> Iterator[str]:
    retry, limits = settings.retry, settings.limits
    above = "all calls pause" if limits.waits else "the call ends, with retry_after set"
    yield f"a Retry-After above {retry.retry_after_cap:g} s: {above}"
    match retry.quota:
        case TokenBucketQuota() as quota:
            yield (
                f"quota: {quota.capacity} tokens, {quota.transient_cost} a retry, {quota.throttled_cost} after throttling: "
                f"{quota.capacity // quota.transient_cost} retries in a row without a success"
            )
        case ShareQuota() as quota:
            yield f"quota: {quota.share:.0%} of the requests of the last {quota.window:g} s, and {quota.minimum:g} per second"
        case None:
            yield "quota: none"
    if limits.breaker is None:
        yield "instance down: not detected (no breaker)"
    else:
        then = "calls wait and lose no attempt" if limits.waits else "calls fail at once with CircuitOpenError"
        breaker = limits.breaker
        yield (
            f"instance down ({breaker.ratio:.0%} of {breaker.volume} to {breaker.window} outcomes, or {breaker.in_a_row} "
            f"in a row, failed): {then}"
        )
    if isinstance(limits.concurrency, Adaptive):
        bounds = limits.concurrency
        yield f"requests at once: {bounds.minimum} to {bounds.maximum}, from {bounds.initial}, by the time to the first byte"
    else:
        yield f"requests at once: {limits.concurrency}"
    ceiling = "" if limits.rate is None else f", at most {limits.rate:g}"
    if isinstance(limits.rate_limiter, RedisRateLimiter):
        ceiling = f", {limits.rate_limiter.state}"
    yield f"requests per second: {learned or 'no limit learned so far'}{ceiling}"


def _fields(record: Any) -> Iterator[tuple[str, str]]:
    for attribute in attrs.fields(type(record)):
        yield f"{type(record).__name__}.{attribute.name}", _shown(getattr(record, attribute.name))


def _shown(value: Any) -> str:
    if isinstance(value, Secret):
        return MASK
    if value is None or isinstance(value, (bool, int, float, str)):
        return str(value)
    if isinstance(value, frozenset):
        return ", ".join(map(str, sorted(value)))
    if attrs.has(type(value)) and type(value).__module__.startswith("flinks_async."):
        inside = ", ".join(f"{a.name}={_shown(getattr(value, a.name))}" for a in attrs.fields(type(value)))
        return f"{type(value).__name__}({inside})"
    return f"<{type(value).__name__}>"  # its repr may contain a secret
