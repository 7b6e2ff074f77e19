"""Counts of the simulator: requests, replies, faults."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from attrs import define, field, fields, frozen

_KEPT = 10_000


@frozen
class RecordedRequest:
    """One request as sent. It contains secrets: for tests only."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]

    def header(self, name: str) -> str | None:
        """The first header with this name; case does not matter."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


@define
class ServerStats:
    """Counts since the server started, or since `reset()`.

    Attributes:
        requests: complete request heads, except those for `/_sim/`.
        per_token: requests with an accepted secret, by token.
        statuses: replies by status.
        faults: faults by name.
        answered: normal answers.
        connections: TCP connections opened.
        in_flight: requests being handled now.
        max_in_flight: maximum of `in_flight`.
        missing_secret: requests without any authentication header.
        refused_secret: requests with a wrong secret or header form.
        throttled: requests refused by the rate limit.
        paths: the last 10,000 request targets, as sent.
    """

    requests: int = 0
    per_token: Counter[str] = field(factory=Counter, repr=lambda kept: str(len(kept)))
    statuses: Counter[int] = field(factory=Counter)
    faults: Counter[str] = field(factory=Counter)
    answered: int = 0
    connections: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    missing_secret: int = 0
    refused_secret: int = 0
    throttled: int = 0
    paths: deque[str] = field(factory=lambda: deque(maxlen=_KEPT), repr=lambda kept: str(len(kept)))

    def begin(self, path: str) -> None:
        self.requests += 1
        self.paths.append(path)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def end(self) -> None:
        self.in_flight -= 1

    def reset(self) -> None:
        """Resets all counts, except of requests being handled. The numbers of a token's requests start at 1 again."""
        fresh = ServerStats(in_flight=self.in_flight, max_in_flight=self.in_flight)
        for attribute in fields(ServerStats):
            setattr(self, attribute.name, getattr(fresh, attribute.name))

    def as_dict(self) -> dict[str, Any]:
        """The counts without tokens and paths, for `/_sim/stats`."""
        return {
            "requests": self.requests,
            "tokens": len(self.per_token),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "faults": dict(sorted(self.faults.items())),
            "answered": self.answered,
            "connections": self.connections,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "missing_secret": self.missing_secret,
            "refused_secret": self.refused_secret,
            "throttled": self.throttled,
        }
