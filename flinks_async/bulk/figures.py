"""How far a run is, as counts that can be added up."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import evolve, field, frozen

from ..stats import ClientStats
from .histogram import Histogram


@frozen
class Figures:
    """Counts of one fetcher, or the sum of several. Plain data, so it may go anywhere.

    Attributes:
        fetched, failed: tokens.
        again: those of them that had failed in an earlier round.
        size: bytes of answers, as they came.
        requests, retries, throttled, in_flight, limit, held_back: as in `ClientStats`.
        times: seconds from sending to the last byte, lately.
    """

    fetched: int = 0
    failed: int = 0
    again: int = 0
    size: int = 0
    requests: int = 0
    retries: int = 0
    throttled: int = 0
    in_flight: int = 0
    limit: int = 0
    held_back: float = 0.0
    times: Histogram = field(factory=Histogram)

    def with_stats(self, clients: Iterable[ClientStats]) -> Figures:
        """The same with the counts of clients."""
        stats = list(clients)
        return evolve(
            self,
            requests=sum(one.requests for one in stats),
            retries=sum(one.retries for one in stats),
            throttled=sum(one.throttled for one in stats),
            in_flight=sum(one.requests_in_flight for one in stats),
            limit=sum(one.limit for one in stats),
            held_back=max((one.held_back for one in stats), default=0.0),
        )


def sum_of(parts: Iterable[Figures]) -> Figures:
    """All of them together; held back is as long as the longest."""
    all_ = list(parts)
    return Figures(
        fetched=sum(one.fetched for one in all_),
        failed=sum(one.failed for one in all_),
        again=sum(one.again for one in all_),
        size=sum(one.size for one in all_),
        requests=sum(one.requests for one in all_),
        retries=sum(one.retries for one in all_),
        throttled=sum(one.throttled for one in all_),
        in_flight=sum(one.in_flight for one in all_),
        limit=sum(one.limit for one in all_),
        held_back=max((one.held_back for one in all_), default=0.0),
        times=Histogram.sum_of(one.times for one in all_),
    )
