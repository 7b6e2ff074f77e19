"""How a job works, and when it ends before its end."""

from __future__ import annotations

from typing import Final

from attrs import field, frozen
from attrs.validators import optional

from ..checks import at_once, count, not_negative, positive_or_none, share, whole

FEWEST_FOR_A_SHARE: Final = 100
"""Tokens that must be done before a share of failures means anything."""


@frozen(kw_only=True)
class Rules:
    """How a run of a job works, and when it stops by itself. None: never.

    Attributes:
        concurrency: tokens in flight, up to 100,000; None for as many as the client's limits may ever allow, for each instance.
        open_shards: shards under way at once (default 16). A shard whose last token is slow keeps its place, and
            after a kill, the shards under way are fetched again: at most `open_shards * shard_size` requests.
        refused_after: distinct tokens in a row, with no success between, that are answered that the AuthSecret is
            refused, before that is believed (default 5). The same for redirects, for pages where JSON should be, and for
            5xx that are not retried: none of these need be one token's matter.
        max_failures: stop when more tokens than this have failed in this run.
        max_failure_share: stop when a larger share than this (0 to 1) of this run's tokens has failed; looked at after
            100 tokens.
        max_duration: seconds after which no more tokens are taken.
        drain: seconds that tokens in flight have to end once a run stops (default 20); what has not ended then is
            fetched by the next run. The default fits into the 30 s after which Kubernetes kills what it has
            terminated.
    """

    concurrency: int | None = field(default=None, validator=optional(at_once))
    open_shards: int = field(default=16, validator=count)
    refused_after: int = field(default=5, validator=count)
    max_failures: int | None = field(default=None, validator=optional(whole))
    max_failure_share: float | None = field(default=None, validator=optional(share))
    max_duration: float | None = field(default=None, validator=positive_or_none)
    drain: float = field(default=20.0, validator=not_negative)

    def broken_by(self, failed: int, done: int) -> str | None:
        """Which rule these numbers break, in words."""
        if self.max_failures is not None and failed > self.max_failures:
            return f"{failed:,} tokens failed, and max_failures is {self.max_failures:,}"
        limit = self.max_failure_share
        if limit is not None and done >= FEWEST_FOR_A_SHARE and failed > limit * done:
            return f"{failed:,} of {done:,} tokens failed, and max_failures is {limit:.3%} of them"
        return None
