"""Spools as rows of four tables, and as Arrow tables: the input of all stores that write tables.

- `fetches`: one row for each answer;
- `accounts`, `transactions`, `holders`: the columns of `flinks_async.tables`.

Each row begins with the line of the input and its key, so that tables can be joined by `line`, `detail`, `account` and
`transaction`, and with the user's tables by `key`. The rows are the same for every store; each store chooses its types.
`RowDigest` is a checksum that does not depend on the order of rows, nor on how a database formats their values.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec
from attrs import field, frozen

from ... import tables as flat
from ...codec import Codec
from ...codec.parse import EXACT, decode_any
from ...errors import DecodeError
from ...models import SCHEMA, PartnerAccessResponse
from ...tables import Column, ColumnType, Row, Table, extra_of, flatten, to_json
from ..compression import Compression
from ..errors import StoreError, UnfitAnswerError
from ..records import Commit, Shard
from ..spool import SpoolLine, SpoolMeta, read_spool_line
from .answer_files import read_lines

BATCH: Final = 10_000
"""Rows after which a batch ends. It may have more, because an answer is not split."""

_SIZE: Final = 32 * 1024 * 1024
"""Bytes of answers after which a batch ends."""

_LINE: Final = (Column("line", "position"), Column("key", "text"))


def _of_job(table: Table) -> Table:
    return Table(table.name, (*_LINE, *table.columns), table.within)


FETCHES: Final = Table(
    "fetches",
    (
        *_LINE,
        Column("instance", "text"),
        Column("request_id", "text", "RequestId"),
        Column("status", "integer"),
        Column("attempts", "integer"),
        Column("accounts", "integer"),
        Column("shard", "integer"),
        Column("round", "integer"),
        Column("without_accounts", "json", "GetAccountsDetail"),
        Column("extra", "json"),
    ),
)
"""`accounts` is the number of accounts. `without_accounts` has the entries of `GetAccountsDetail` without accounts, which
have no row in the other tables, as a JSON array; null if there are none."""

ACCOUNTS: Final = _of_job(flat.ACCOUNTS)

TRANSACTIONS: Final = _of_job(flat.TRANSACTIONS)

HOLDERS: Final = _of_job(flat.HOLDERS)

TABLES: Final = (FETCHES, ACCOUNTS, TRANSACTIONS, HOLDERS)


@frozen
class RowBatch:
    """The rows of some answers."""

    fetches: list[Row] = field(factory=list)
    accounts: list[Row] = field(factory=list)
    transactions: list[Row] = field(factory=list)
    holders: list[Row] = field(factory=list)

    def of(self, table: Table) -> list[Row]:
        """The rows of one of `TABLES`."""
        rows: list[Row] = getattr(self, table.name)
        return rows

    def __len__(self) -> int:
        return len(self.fetches) + len(self.accounts) + len(self.transactions) + len(self.holders)


def read_spool(path: Path, compression: Compression, commit: Commit, *, batch: int = BATCH) -> Iterator[RowBatch]:
    """The rows of a spool, in its order. Memory is that of one batch and one answer.

    Args:
        batch: rows after which a batch ends.

    Raises:
        StoreError: the spool is damaged, an answer in it cannot be read, or it does not have as many answers as `commit`
            says (at the end).
    """
    rows, size, number = RowBatch(), 0, 0
    for number, text in enumerate(read_lines(path, compression), 1):
        read, answer = decoded(path, number, text)
        add_rows(rows, read, answer, commit.shard)
        size += len(text)
        if len(rows) >= batch or size >= _SIZE:
            yield rows
            rows, size = RowBatch(), 0
    if rows.fetches:
        yield rows
    if number != commit.written.lines:
        raise StoreError(f"{path} has {number:,} answers, not {commit.written.lines:,}")


def does_not_fit(path: Path | str, table: Table, column: Column, row: Row, type_: str) -> UnfitAnswerError:
    """The error for a value that a store's column cannot hold. It names the place, never the value.

    Args:
        path: the name of the store.
        row: a row of the table.
        type_: the store's type of the column.
    """
    line = int(row[0])
    where = f"line {line} of the input, {table.path(column, row)}"
    return UnfitAnswerError(
        f"{path} cannot be written: {where}: the value does not fit a column of type {type_}", line=line
    )


def cannot_export(where: object) -> StoreError:
    """The error for an export from a store with tables."""
    return StoreError(
        "answers in tables cannot be exported, because tables do not keep the complete answers. "
        f"Query {where}, or run the job with a JSONL store"
    )


@cache
def _codec() -> Codec:
    return Codec(wrong_types="extra")  # the client has accepted it


_DOCUMENTED: Final = frozenset(field.wire for fields in SCHEMA.values() for field in fields)


def unknown_keys() -> tuple[bytes, ...]:
    """Undocumented keys that answers have had, as in their JSON, except those that some documented object has."""
    names = (
        _codec().unknown_keys
        - _DOCUMENTED
        - {f.name for s in (SpoolLine, SpoolMeta) for f in msgspec.structs.fields(s)}
    )
    return tuple(to_json(name) for name in sorted(names))


def decoded(path: Path, number: int, text: bytes) -> tuple[SpoolLine, PartnerAccessResponse]:
    """An answer of a spool.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        read = read_spool_line(text)
        return read, _codec().decode(bytes(read.response))
    except DecodeError as error:
        problem = str(error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        problem = "it is not a line of a spool"
    raise StoreError(f"{path}, line {number}: {problem}")


def add_rows(rows: RowBatch, read: SpoolLine, answer: PartnerAccessResponse, shard: Shard) -> None:
    """Adds the rows of an answer."""
    place = (read.line, _key(read.key))
    accounts = 0
    for account in flatten(answer, place):
        accounts += 1
        rows.accounts.append(account.account)
        rows.transactions.extend(account.transactions)
        if account.holder is not None:
            rows.holders.append(account.holder)
    rows.fetches.append(
        (
            *place,
            read.instance,
            _request_id(answer),
            read.meta.status,
            read.meta.attempts,
            accounts,
            shard.id,
            shard.round,
            without_accounts(answer),
            extra_of(answer),
        )
    )


def _key(raw: msgspec.Raw) -> str | None:
    key = msgspec.json.decode(raw)
    return key if key is None or isinstance(key, str) else bytes(raw).decode()


def _request_id(answer: PartnerAccessResponse) -> str | None:
    if answer.request_id is not None or not answer.details:
        return answer.request_id
    return answer.details[0].request_id


def without_accounts(answer: PartnerAccessResponse) -> str | None:
    """The column of this name."""
    bare = [detail.to_dict() for detail in answer.details if not detail.accounts]
    return to_json(bare).decode() if bare else None


_DIGEST_SIZE: Final = 16

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

_MICROSECOND: Final = dt.timedelta(microseconds=1)

_encode: Final = msgspec.msgpack.encode


class RowDigest:
    """The sum, modulo 2^128, of the BLAKE2b digests of all rows. Nulls are left out, so that columns may be added later.

    Attributes:
        rows: number of rows by table.
    """

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self._sum = 0

    def add(self, table: Table, rows: Iterable[Row]) -> None:
        """Adds rows with their values as they are stored: texts, integers, nulls."""
        names = table.names
        empty = blake2b(digest_size=_DIGEST_SIZE, person=table.name.encode())
        total = count = 0
        for row in rows:
            digest = empty.copy()
            digest.update(_encode(_named(names, row)))
            total += int.from_bytes(digest.digest(), "big")
            count += 1
        self.rows[table.name] += count
        self._sum = (self._sum + total) % (1 << 8 * _DIGEST_SIZE)

    def hexdigest(self) -> str:
        return f"{self._sum:0{2 * _DIGEST_SIZE}x}"


def _named(names: tuple[str, ...], row: Row) -> dict[str, Any]:
    return {name: value for name, value in zip(names, row, strict=True) if value is not None}


def comparable(table: Table, rows: Iterable[Row]) -> Iterator[Row]:
    """Rows in a form that all databases agree on: amounts without trailing zeros, dates as ISO 8601, points in time as
    microseconds since 1970, JSON with sorted keys; other values are unchanged."""
    converters = [(number, _CONVERT[c.type]) for number, c in enumerate(table.columns) if c.type in _CONVERT]
    for row in rows:
        values = list(row)
        for number, convert in converters:
            if values[number] is not None:
                values[number] = convert(values[number])
        yield tuple(values)


def _amount(value: Decimal) -> str:
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _instant(value: dt.datetime | int) -> int:
    return value if isinstance(value, int) else (value - _EPOCH) // _MICROSECOND


def _json(text: str) -> Any:
    return _sorted(decode_any(text.encode()))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
        number = Decimal(value).normalize(EXACT)
        return ["number", str(number) if number else "0"]  # PostgreSQL has no negative zero
    return value


_CONVERT: Final[dict[ColumnType, Callable[[Any], Any]]] = {
    "amount": _amount,
    "date": dt.date.isoformat,
    "instant": _instant,
    "json": _json,
}
