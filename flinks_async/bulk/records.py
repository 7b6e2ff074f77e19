"""Plain records of shards, failures and commits. None holds a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal, Self

import msgspec
from attrs import field, frozen

FailureKind = Literal["invalid", "final", "exhausted"]
"""`invalid`: nothing was sent. `final`: another try will fail too. `exhausted`: another try may succeed."""

RunState = Literal["complete", "stopped", "refused"]
"""`complete`: every token has an outcome. `stopped`: not yet, run the job again. `refused`: the AuthSecret is refused."""


class ExactNumber(float):
    """A number of JSON that keeps its text, because a key must not change: `1.10` is written as `1.10`, not as `1.1`."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> Self:
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __repr__(self) -> str:
        return self.text

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        return type(self), (self.text,)


def _exact(value: Any) -> msgspec.Raw:
    if isinstance(value, ExactNumber):
        return msgspec.Raw(value.text.encode())
    raise NotImplementedError


from_json: Final = msgspec.json.Decoder(float_hook=ExactNumber).decode
"""JSON with keys of the user's: fractions become `ExactNumber`."""


def key_from_json(text: bytes | msgspec.Raw) -> Any:
    """A key; `-0` too is an `ExactNumber`, because a Python int has no negative zero."""
    return ExactNumber("-0") if bytes(text) == b"-0" else from_json(text)


to_json: Final = msgspec.json.Encoder(enc_hook=_exact).encode
"""The JSON of values from `from_json`."""


@frozen
class Shard:
    """A piece of the input that is committed as a whole. It names rows, never tokens, so it may be stored or sent anywhere.

    Attributes:
        id: from 0, in the order in which shards were made.
        first: line of its first row, from 1.
        last: line of its last row, inclusive.
        offset: bytes of the (decompressed) input before its first row.
        tokens: how many tokens are to be fetched for it (duplicates are not).
        digest: keyed digest of all sendable tokens in it; shows whether the input has changed.
        round: 0 at first; each retry of failed tokens adds 1.
        only: the rows to fetch, ascending; None for all. Set for a shard that was left half done, and for a retry.
    """

    id: int
    first: int
    last: int
    offset: int
    tokens: int
    digest: str
    round: int = 0
    only: tuple[int, ...] | None = None


@frozen
class Failure:
    """A row without an answer, as in `failed.jsonl`.

    Attributes:
        line: its line in the input, from 1.
        kind: see `FailureKind`.
        error: class of the error, such as `ServerError`.
        message: in words, without token or secret.
        key: value of the key column, if there is one.
        token_fingerprint: keyed per job; None if no token could be read.
        flinks_code, status, attempts: as in `FlinksError`.
        instance: value of the instance column, if there is one.
    """

    line: int
    kind: FailureKind
    error: str
    message: str
    key: Any = None
    token_fingerprint: str | None = None
    flinks_code: str | None = None
    status: int | None = None
    attempts: int = 0
    instance: str | None = None


@frozen
class Written:
    """A finished file of answers.

    Attributes:
        lines: answers in it.
        size: bytes of the file.
        sha256: of the file's bytes, hexadecimal; empty for a spool that is not kept.
    """

    lines: int
    size: int
    sha256: str


@frozen
class Finished:
    """A shard whose answers are in a synced file.

    Attributes:
        shard: the shard.
        spool: the file.
        written: size and checksum of the file.
        failures: rows without an answer.
        left: rows without an outcome, ascending.
        receipt: of the store, once it has the answers.
    """

    shard: Shard
    spool: Path
    written: Written
    failures: tuple[Failure, ...]
    left: tuple[int, ...]
    receipt: dict[str, Any] | None = None

    @property
    def commit(self) -> Commit:
        """As the ledger gets it."""
        return Commit(self.shard, self.written, self.failures, self.left, self.receipt or {})


@frozen
class Commit:
    """A shard whose answers are in the store, and the outcome of its rows.

    Attributes:
        shard: the shard.
        written: its answers, as they were handed to the store.
        failures: its rows without an answer.
        left: rows without an outcome, ascending; they go into another shard.
        receipt: where the store put the answers: plain JSON that only this store reads.
    """

    shard: Shard
    written: Written
    failures: tuple[Failure, ...] = ()
    left: tuple[int, ...] = ()
    receipt: dict[str, Any] = field(factory=dict)
