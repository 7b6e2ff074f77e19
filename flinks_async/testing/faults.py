"""How the simulator behaves: faults by name, which requests meet them, how long replies take, and how many it accepts.

    server.script(token, ["http_503", "reset", Fault.reply(418, {"Message": "teapot"})])

`KINDS` has all faults. `clears` names the class of a fault, in the words of `flinks_async.verdict.Kind`. All decisions are
pure functions of (seed, token, number of the request) or of the time that is passed in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from email.utils import formatdate
from statistics import NormalDist
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol

from attrs import define, evolve, field, frozen

from .data import uniform

Clears = Literal["transient", "throttled", "malformed", "broken", "refused", "final", "none"]
Mode = Literal[
    "reply", "answer", "raw", "reset", "close", "reset_body", "close_body", "hang", "truncated_json", "truncated_gzip"
]

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


@frozen(kw_only=True)
class Fault:
    """A fault, or another reply, for one request.

    Attributes:
        name: key in `server.stats.faults`.
        mode: `reply` sends status, headers and body below; `answer` sends the normal answer, after `delay`;
            `raw` writes the body to the socket and closes it; `reset` (TCP RST) and `close` (FIN) end the
            connection before the headers, `reset_body` and `close_body` in the middle of the answer's body; `hang`
            sends nothing, until `server.release()`; `truncated_json` and `truncated_gzip` are the normal answer cut
            short inside a correct HTTP message.
        status: for `reply`.
        headers: for `reply`, in addition to the content type.
        body: for `reply` and `raw`.
        content_type: for `reply`.
        retry_after: seconds for a `Retry-After` header; None for no header.
        retry_after_date: send `Retry-After` as an HTTP date.
        delay: seconds before the fault.
        hang_for: seconds after which a `hang` closes the connection; None for never.
        clears: class of the fault.
    """

    name: str
    mode: Mode = "reply"
    status: int = 200
    headers: Mapping[str, str] = field(default=_NOTHING, hash=False)
    body: bytes = field(default=b"", repr=lambda body: f"<{len(body)} bytes>")
    content_type: str = "application/json; charset=utf-8"
    retry_after: float | None = None
    retry_after_date: bool = False
    delay: float = 0.0
    hang_for: float | None = None
    clears: Clears = "final"

    @classmethod
    def reply(cls, status: int, body: Any = b"", *, name: str | None = None, **fields: Any) -> Fault:
        """A reply. A body that is neither bytes nor text is sent as JSON."""
        if isinstance(body, str):
            body = body.encode()
        elif not isinstance(body, bytes):
            body = json.dumps(body).encode()
        return cls(name=name or f"http_{status}", status=status, body=body, **fields)

    @classmethod
    def envelope(cls, status: int, code: str, *, inside: int | None = None, **fields: Any) -> Fault:
        """Flinks' error body.

        Args:
            status: HTTP status.
            code: the `FlinksCode`.
            inside: `HttpStatusCode` in the body, if it differs from `status`.
        """
        body = {"HttpStatusCode": inside or status, "FlinksCode": code, "Message": f"Simulated {code}."}
        return cls.reply(status, body, **{"name": code.lower(), **fields})

    def evolve(self, **changes: Any) -> Fault:
        """A copy with some fields changed, for example `KINDS["http_503"].evolve(delay=0.5)`."""
        return evolve(self, **changes)


_HTML: Final = "<!DOCTYPE html><html><head><title>Maintenance</title></head><body>We will be back soon.</body></html>"
_GARBAGE: Final = b"\x16\x03\x01\x02\x00 this is not HTTP\r\n\r\n"
_TWO_LENGTHS: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}}"

_ALL: Final = (
    *(Fault.reply(status, b"", clears="transient") for status in (408, 500, 502, 503, 504)),
    Fault.reply(503, _HTML, name="html_503", content_type="text/html", clears="transient"),
    Fault.envelope(500, "INTERNAL_ERROR", name="envelope_500", clears="transient"),
    Fault.envelope(401, "RETRY_LATER", clears="transient"),
    Fault.envelope(500, "AGGREGATION_ERROR", clears="transient"),
    Fault.envelope(400, "CARD_IN_USE", clears="transient"),
    Fault.envelope(200, "AGGREGATION_ERROR", inside=500, name="envelope_200", clears="transient"),
    Fault(name="reset", mode="reset", clears="transient"),
    Fault(name="close", mode="close", clears="transient"),
    Fault(name="reset_body", mode="reset_body", clears="transient"),
    Fault(name="close_body", mode="close_body", clears="transient"),
    Fault(name="truncated_gzip", mode="truncated_gzip", clears="transient"),
    Fault(name="hang", mode="hang", clears="transient"),
    Fault.reply(429, b"", clears="throttled"),
    Fault.reply(429, b"", name="http_429_seconds", retry_after=1, clears="throttled"),
    Fault.reply(429, b"", name="http_429_date", retry_after=1, retry_after_date=True, clears="throttled"),
    Fault.envelope(401, "TOO_MANY_REQUESTS", clears="throttled"),
    Fault.envelope(403, "TOO_MANY_REQUESTS", name="too_many_requests_403", clears="throttled"),
    Fault.reply(200, b"", name="empty_200", clears="malformed"),
    Fault.reply(200, _HTML, name="html_200", content_type="text/html", clears="malformed"),
    Fault(name="truncated_json", mode="truncated_json", clears="malformed"),
    Fault(name="garbage", mode="raw", body=_GARBAGE, clears="broken"),
    Fault(name="two_lengths", mode="raw", body=_TWO_LENGTHS, clears="broken"),
    Fault.envelope(401, "UNAUTHORIZED", clears="refused"),
    Fault.reply(400, {}, name="bad_request", clears="final"),
    Fault.envelope(401, "SESSION_NONEXISTENT", clears="final"),
    Fault.envelope(202, "OPERATION_PENDING", clears="final"),
    Fault(name="slow", mode="answer", delay=0.25, clears="none"),
)

KINDS: Final[Mapping[str, Fault]] = MappingProxyType({fault.name: fault for fault in _ALL})
"""All faults by name."""


def fault(kind: str | Fault) -> Fault:
    """A fault, looked up in `KINDS` if it is a name.

    Raises:
        ValueError: the name is unknown.
    """
    if isinstance(kind, Fault):
        return kind
    try:
        return KINDS[kind]
    except KeyError:
        raise ValueError(f"unknown fault {kind!r}; known faults: {', '.join(KINDS)}") from None


def _that_clear(*clears: Clears) -> tuple[Fault, ...]:
    """The faults of these classes."""
    return tuple(kind for kind in KINDS.values() if kind.clears in clears)


def reply_headers(fault: Fault, now: float | None = None) -> dict[str, str]:
    """The headers of a `reply`.

    Args:
        now: seconds since 1970, for a `Retry-After` that is a date; None to send seconds instead.
    """
    headers = {"Content-Type": fault.content_type, **fault.headers}
    if fault.retry_after is not None:
        headers["Retry-After"] = f"{fault.retry_after:g}"
        if fault.retry_after_date and now is not None:
            headers["Retry-After"] = formatdate(now + fault.retry_after, usegmt=True)
    return headers


def faults(kinds: Iterable[str | Fault]) -> tuple[Fault, ...]:
    """`fault` for each item."""
    return tuple(fault(kind) for kind in kinds)


# --- when they happen --------------------------------------------------------------------------------------------------


class Plan(Protocol):
    """Chooses the faults. It must be a pure function of its arguments, so that a run can be repeated."""

    def for_request(self, token: str, number: int, /) -> Fault | None:
        """The fault for the `number`-th request (from 1) of a token; None for a normal answer."""
        ...


# Without `hang`, which needs a client with short timeouts.
_DEFAULT_KINDS: Final = tuple(
    kind for kind in _that_clear("transient", "throttled", "malformed", "broken", "none") if kind.mode != "hang"
)


@frozen(kw_only=True)
class Faults:
    """A share of all *requests* fails, independently of each other; one token may fail several times in a row.

    Attributes:
        share: share of the requests, 0 to 1.
        kinds: faults or names in `KINDS`, with equal chances; default: all that a retry clears.
        seed: another seed selects other requests.
    """

    share: float
    kinds: tuple[Fault, ...] = field(default=_DEFAULT_KINDS, converter=faults)
    seed: int = 0

    def for_request(self, token: str, number: int, /) -> Fault | None:
        if uniform(self.seed, "fails", token, number) >= self.share:
            return None
        return _pick(self.kinds, self.seed, "kind", token, number)

    @staticmethod
    def demo(share: float = 0.03, seed: int = 0, unfetchable: float = 0.002) -> DemoFaults:
        """Faults of every kind. Retries clear all of them, except for the share `unfetchable` of the tokens."""
        return DemoFaults(share=share, seed=seed, unfetchable=unfetchable)


@frozen
class TokenPlan:
    """The planned outcome of a token.

    Attributes:
        fetchable: whether it can be fetched. If not, its last fault answers all further requests.
        faults: the answers to its first requests.
    """

    fetchable: bool
    faults: tuple[Fault, ...] = ()


_NO_FAULT: Final = TokenPlan(True)

# `hang` ends by itself, because the bulk preset waits 230 s for an attempt.
_TRANSIENT: Final = tuple(
    kind.evolve(hang_for=0.5) if kind.mode == "hang" else kind for kind in _that_clear("transient")
)
_THROTTLED: Final = _that_clear("throttled")
_ONCE: Final = _that_clear("malformed", "broken", "none")
_FINAL: Final = _that_clear("final")


@frozen(kw_only=True)
class DemoFaults:
    """A share of all *tokens* gets faults, and the outcome of each token is known in advance (`plan`).

    A transient fault comes at most twice in a row, any other once, so three attempts clear each. One fault in twenty
    throttles, which pauses the whole client for a second.

    Attributes:
        share: share of the tokens, 0 to 1.
        seed: another seed selects other tokens.
        unfetchable: share of the tokens that are always refused (400 `{}`, 401 SESSION_NONEXISTENT, pending).
    """

    share: float = 0.03
    seed: int = 0
    unfetchable: float = 0.002

    def plan(self, token: str) -> TokenPlan:
        """The planned outcome of a token. It is pure, so a test can compute which tokens must arrive."""
        chance = uniform(self.seed, "fate", token)
        if chance < self.unfetchable:
            return TokenPlan(False, (_pick(_FINAL, self.seed, "final", token),))
        if chance >= self.unfetchable + self.share:
            return _NO_FAULT
        family = uniform(self.seed, "family", token)
        if family < 0.05:
            return TokenPlan(True, (_pick(_THROTTLED, self.seed, "kind", token),))
        if family < 0.25:
            return TokenPlan(True, (_pick(_ONCE, self.seed, "kind", token),))
        first = _pick(_TRANSIENT, self.seed, "kind", token)
        if family < 0.75:
            return TokenPlan(True, (first,))
        return TokenPlan(True, (first, _pick(_TRANSIENT, self.seed, "second kind", token)))

    def for_request(self, token: str, number: int, /) -> Fault | None:
        plan = self.plan(token)
        if number <= len(plan.faults):
            return plan.faults[number - 1]
        return None if plan.fetchable else plan.faults[-1]


def _pick(kinds: tuple[Fault, ...], *parts: object) -> Fault:
    return kinds[int(uniform(*parts) * len(kinds))]


Distribution = Literal["fixed", "uniform", "lognormal"]

_NORMAL: Final = NormalDist()


class Throttle(Protocol):
    """Accepts a request (None), or returns the fault that answers it."""

    def take(self, now: float, /) -> Fault | None: ...


@frozen
class Latency:
    """The time before a reply, in seconds. Use one of the three class methods.

    Attributes:
        distribution: name of the distribution.
        a: the fixed time, the minimum, or the median.
        b: the maximum, or sigma of the logarithm.
    """

    distribution: Distribution
    a: float
    b: float = 0.0

    @classmethod
    def fixed(cls, seconds: float) -> Latency:
        return cls("fixed", seconds)

    @classmethod
    def uniform(cls, low: float, high: float) -> Latency:
        return cls("uniform", low, high)

    @classmethod
    def lognormal(cls, median: float, sigma: float = 0.5) -> Latency:
        """Like many real services: most answers near the median, and a long tail. With `sigma` 0.5, p99 is 3.2 medians."""
        return cls("lognormal", median, sigma)

    def seconds(self, chance: float) -> float:
        """The latency for a random number `chance` in [0, 1)."""
        if self.distribution == "fixed":
            return self.a
        if self.distribution == "uniform":
            return self.a + (self.b - self.a) * chance
        return self.a * math.exp(self.b * _NORMAL.inv_cdf(min(max(chance, 1e-9), 1 - 1e-9)))


@define
class RateLimit:
    """A token bucket: `burst` requests at once, refilled at `rate` per second.

    Attributes:
        rate: requests per second.
        burst: size of the bucket.
        answer: reply to a request above the limit; default 401 TOO_MANY_REQUESTS, as documented.
            `RateLimit.status_429()` replies with 429 instead.
    """

    rate: float
    burst: float = 1.0
    answer: Fault = KINDS["too_many_requests"]
    _level: float = field(init=False)
    _at: float | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._level = self.burst

    @classmethod
    def status_429(cls, rate: float, burst: float = 1.0, retry_after: float | None = 1) -> RateLimit:
        """A limit that replies with 429 and `Retry-After` in seconds (None: no such header)."""
        return cls(rate, burst, KINDS["http_429"].evolve(retry_after=retry_after))

    def take(self, now: float, /) -> Fault | None:
        """Counts one request at `now` (monotonic seconds)."""
        if self._at is not None:
            self._level = min(self.burst, self._level + (now - self._at) * self.rate)
        self._at = now
        if self._level < 1.0:
            return self.answer
        self._level -= 1.0
        return None
