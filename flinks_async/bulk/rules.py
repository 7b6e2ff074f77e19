"""Why a run of a job stops before every token has an outcome, and what the failure of a single token means.

A run stops by itself for one of these reasons. Tokens without an outcome are left to the next run.

1. *One error that every token would meet*: a wrong setting, an invalid certificate, a proxy that wants credentials, a
   lasting shortage of file descriptors. The first such error stops the run, and its token does not count as failed.
   `meets_every_token` decides.
2. *The same doubtful answer to several different tokens in a row*, with no success between (`Rules.refused_after`,
   default 5): the AuthSecret is refused, a redirect, a page instead of JSON, a 5xx that is not retried. One such answer
   may concern its token alone; five in a row do not. `doubt_about` decides which answers are doubtful; the tokens wait in
   `DoubtfulTokens` until a success shows that their errors were their own, and then count as failed. At the end of the
   input, fewer than five mean the same if no token has ever succeeded (`Fetcher._finish_the_rest`).
3. *Too many failed tokens*: `Rules.max_failures` and `Rules.max_failure_share`. `Rules.broken_by` decides.
4. *Time*: `Rules.max_duration` (`Run._stop_after`).
5. *An instance that has never answered*: `Rules.unreachable_after`. `Rules.unreachable` decides. An instance that has
   answered before is waited for, however long its outage is.
6. *Somebody asked for it*: `Job.stop`, a signal.

To add a reason: if one answer is enough, extend `meets_every_token` or `doubt_about`; if it is about counts or times, add a
field to `Rules` and decide in a method of it that `Run._watch` or `Fetcher` calls. Everything ends in `stop(reason)`: no
more tokens are taken, what is on the wire has `Rules.drain` seconds to end, and everything else is cancelled.

Errors that are not about tokens (a full disk, a changed input) do not stop a run but break it off: they are raised.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, Final, Generic, Literal, TypeVar

from attrs import evolve, field, frozen
from attrs.validators import optional

from ..checks import at_once, count, not_negative, positive_or_none, share, whole
from ..classify import classify_error, classify_response
from ..errors import (
    AuthenticationError,
    CertificateError,
    CircuitOpenError,
    ConfigError,
    DeadlineExceededError,
    FlinksError,
    InvalidTokenError,
    JSONLimitError,
    NotJSONError,
    PendingError,
    ProxyError,
    QuotaExhaustedError,
    RedirectError,
    ServerError,
    ShortageError,
)
from ..verdict import Envelope, Kind
from .counters import InstanceTrouble
from .records import Failure, FailureKind

NEVER_ANSWERED: Final = "has never answered"
"""The end of the reason of a run that stopped because of `Rules.unreachable_after`."""

FEWEST_FOR_A_SHARE: Final = 100
"""Tokens that must be done before a share of failures means anything."""


@frozen(kw_only=True)
class Rules:
    """How a run of a job works, and when it stops by itself. None: never.

    Attributes:
        concurrency: tokens in flight, up to 100,000; None for the most that the client's limits may ever allow, for each
            instance.
        open_shards: shards under way at once (default 16). A shard whose last token is slow keeps its place, and
            after a kill, the shards under way are fetched again: at most `open_shards * shard_size` requests.
        refused_after: distinct tokens in a row, with no success between, that are answered that the AuthSecret is
            refused, before the run stops (default 5). The same for redirects, for pages instead of JSON, and for 5xx
            that are not retried.
        max_failures: stop when more tokens than this have failed in this run.
        max_failure_share: stop when a larger share than this (0 to 1) of this run's tokens has failed; looked at after
            100 tokens.
        max_duration: seconds after which no more tokens are taken.
        unreachable_after: seconds after which a run stops if an instance has never answered, and its requests have failed
            (default 120). A request that waits for its answer has not failed before its timeout (230 s with
            `config.bulk()`). Jobs with one instance remember that it has answered an earlier run.
        drain: seconds that requests on the wire have to end once a run stops (default 20); what has not ended then is
            fetched by the next run. The default fits into the 30 s that Kubernetes gives a terminated container.
    """

    concurrency: int | None = field(default=None, validator=optional(at_once))
    open_shards: int = field(default=16, validator=count)
    refused_after: int = field(default=5, validator=count)
    max_failures: int | None = field(default=None, validator=optional(whole))
    max_failure_share: float | None = field(default=None, validator=optional(share))
    max_duration: float | None = field(default=None, validator=positive_or_none)
    unreachable_after: float | None = field(default=120.0, validator=positive_or_none)
    drain: float = field(default=20.0, validator=not_negative)

    def part(self, place: int, places: int) -> Rules:
        """The rules of one of several workers, without those that the job watches.

        Raises:
            ConfigError: the concurrency is lower than the number of workers.
        """
        if self.concurrency is not None:
            refuse_too_few(self.concurrency, places)
        return evolve(
            self,
            concurrency=None if self.concurrency is None else part(self.concurrency, place, places),
            open_shards=part(self.open_shards, place, places),
            max_failures=None,
            max_failure_share=None,
            max_duration=None,
            unreachable_after=None,
        )

    def broken_by(self, failed: int, done: int) -> str | None:
        """Why these numbers of tokens stop a run; None if they do not."""
        if self.max_failures is not None and failed > self.max_failures:
            return f"{failed:,} tokens failed, more than the {self.max_failures:,} allowed"
        limit = self.max_failure_share
        if limit is not None and done >= FEWEST_FOR_A_SHARE and failed > limit * done:
            return f"{failed:,} of {done:,} tokens failed, more than the {100 * limit:g}% allowed"
        return None

    def unreachable(self, trouble: InstanceTrouble, *, answered: bool) -> str | None:
        """Why the trouble of an instance stops a run; None if it does not.

        Args:
            answered: the instance has answered before.
        """
        if answered or self.unreachable_after is None or trouble.seconds < self.unreachable_after:
            return None
        return f"{trouble.without_next_try}; {trouble.host} {NEVER_ANSWERED}"


def part(whole: int, place: int, places: int) -> int:
    """One worker's part of a number, at least 1. If the number is at least `places`, the parts add up to it."""
    return max(1, whole // places + (place < whole % places))


def refuse_too_few(concurrency: int, places: int) -> None:
    """Raises ConfigError if workers would be without a request."""
    if concurrency < places:
        raise ConfigError(f"{places} processes need a concurrency of at least {places} in all, not {concurrency}")


def meets_every_token(error: FlinksError) -> bool:
    """Whether every token would meet this error: it is about settings or the connection, not about what was sent.

    A proxy that is down is an outage and is waited for; a proxy that wants credentials always wants them.
    """
    return isinstance(error, (ConfigError, CertificateError, ShortageError)) or (
        isinstance(error, ProxyError) and error.status == 407
    )


Doubt = Literal["refused", "redirect", "not JSON", "5xx"]


def doubt_about(error: FlinksError) -> Doubt | None:
    """The kind of a doubtful answer: one that may concern its token alone, or every token. None for other errors.

    Other 4xx than 401 and 403 concern one token: what an expired token is answered is not documented, and a file may begin
    with many of them.
    """
    if isinstance(error, AuthenticationError):
        return "refused"
    if isinstance(error, RedirectError):
        return "redirect"
    if isinstance(error, NotJSONError) and not isinstance(error, JSONLimitError):
        return "not JSON"
    if isinstance(error, ServerError) and error.status is not None:
        verdict = classify_response(error.status, Envelope(flinks_code=error.flinks_code))
        return "5xx" if verdict.kind is Kind.FINAL else None
    return None


T = TypeVar("T")


class DoubtfulTokens(Generic[T]):
    """Tokens of one instance that got doubtful answers, until it is known whether their errors are their own.

    Attributes:
        added: how many there have ever been.
        any_success: the instance has answered some token with success.
    """

    def __init__(self) -> None:
        self.added = 0
        self.any_success = False
        self._waiting: deque[tuple[int, T]] = deque()
        self._in_a_row = Counter[Doubt]()
        self._last: tuple[FlinksError, int] | None = None

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, token: T, doubt: Doubt, error: FlinksError) -> int:
        """Adds a token; returns how many tokens in a row have got this kind of answer."""
        self._waiting.append((self.added, token))
        self.added += 1
        self._in_a_row[doubt] += 1
        self._last = error.with_traceback(None), self._in_a_row[doubt]
        return self._in_a_row[doubt]

    def succeeded(self, added_before: int) -> list[T]:
        """A request succeeded: takes out the tokens whose errors were therefore their own.

        Args:
            added_before: `added` when that request began. Later tokens may have failed after the server had answered it:
                a slow answer says nothing about them.
        """
        self.any_success = True
        self._in_a_row.clear()
        return self.take(added_before)

    def take(self, added_before: int | None = None) -> list[T]:
        """Takes out the tokens that were added before, or all."""
        taken: list[T] = []
        while self._waiting and (added_before is None or self._waiting[0][0] < added_before):
            taken.append(self._waiting.popleft()[1])
        return taken

    def reason(self, instance: str | None) -> tuple[Literal["refused", "stopped"], str]:
        """How and why a run stops for these tokens."""
        assert self._last is not None
        error, tokens = self._last
        reason = reason_for_row(error, instance, tokens)
        return ("refused" if isinstance(error, AuthenticationError) else "stopped"), reason


_WHAT_TO_DO: Final[tuple[tuple[type[FlinksError], str], ...]] = (
    (CertificateError, "Have it renewed or corrected; for a certificate authority of your own, set Connection.ca_file"),
    (ProxyError, "Give the proxy the credentials that it wants"),
    (ConfigError, "Nothing can be sent until this is corrected"),
    (ShortageError, "Raise the limit, or lower the concurrency"),
)


def reason_for_all(error: FlinksError, instance: str | None) -> str:
    """Why a run stops for an error that every token would meet."""
    advice = next((f". {text}" for kind, text in _WHAT_TO_DO if isinstance(error, kind)), "")
    return f"{_prefix(instance)}{error.message}{advice}"


def reason_for_row(error: FlinksError, instance: str | None, tokens: int) -> str:
    """Why a run stops for the last of several doubtful answers in a row."""
    row = f"({tokens} different tokens in a row)"
    if not isinstance(error, AuthenticationError):
        return f"{_prefix(instance)}{error.message} {row}"
    of = "" if instance is None else f" of the instance {instance!r}"
    why = "" if error.provider_problem is None else f", and {error.provider_problem}"
    return f"the AuthSecret{of} is refused {row}{why}"


def _prefix(instance: str | None) -> str:
    return "" if instance is None else f"instance {instance!r}: "


_OUT_OF_TIME: Final = (DeadlineExceededError, QuotaExhaustedError, CircuitOpenError, PendingError)

_WILL_NOT_CHANGE: Final = (Kind.FINAL, Kind.REFUSED)


def failure_kind(error: FlinksError) -> FailureKind:
    """`exhausted` if another run may succeed, `final` if it will not, `invalid` if nothing can be sent."""
    if isinstance(error, InvalidTokenError):
        return "invalid"
    if isinstance(error, _OUT_OF_TIME) or meets_every_token(error):
        return "exhausted"
    verdict = classify_error(error)  # by its class, because `Retry.throttle_statuses` are not known here
    if (
        isinstance(error, ServerError) and error.status is not None and error.status >= 500
    ):  # a 501 is final, a 503 is not
        verdict = classify_response(error.status, Envelope(flinks_code=error.flinks_code))
    return "final" if verdict.kind in _WILL_NOT_CHANGE else "exhausted"


def failure_of(
    error: FlinksError, line: int, *, key: Any = None, instance: str | None = None, token_fingerprint: str | None = None
) -> Failure:
    """A failed token as a record."""
    return Failure(
        line,
        failure_kind(error),
        type(error).__name__,
        error.message,
        key=key,
        token_fingerprint=token_fingerprint,
        flinks_code=error.flinks_code,
        status=error.status,
        attempts=error.attempts or 0,
        instance=instance,
    )
