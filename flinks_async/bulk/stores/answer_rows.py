"""The tables of a spool, the rows of an answer, and the digest of rows for `verify`.

- `fetches`: one row for each answer;
- `accounts`, `transactions`, `holders`: the columns of `flinks_async.tables`.

Each row begins with the line of the input and its key, so that tables can be joined by `line`, `detail`, `account` and
`transaction`, and with the user's tables by `key`. Usually Arrow makes these tables (`answer_tables`). The rows here define
the result, and are made for answers that Arrow cannot read, or if pyarrow is not installed.
"""

from __future__ import annotations

import datetime as dt
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from functools import cache, partial
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from sys import byteorder
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec
from attrs import define, field, frozen

from ... import tables as flat
from ...checks import optional_import
from ...codec import Codec
from ...codec.parse import EXACT, decode_any
from ...errors import DecodeError
from ...models import SCHEMA, Model, PartnerAccessResponse
from ...tables import Column, ColumnType, Row, Table, extra_of, flatten, to_json
from ..errors import StoreError, UnfitAnswerError
from ..records import Shard
from ..spool import SpoolLine, SpoolMeta, read_spool_line

if TYPE_CHECKING:
    import pyarrow

Rows: TypeAlias = "list[Row] | pyarrow.Table"
"""Rows of a table: an Arrow table, or tuples if pyarrow is not installed or the database returns them."""

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


class _Codec(Codec):
    """Keeps values of a wrong type, as the client did, which has logged them."""

    def _tell(self, cls: type[Model], wire: str, problem: str) -> None:
        """Logs nothing."""


@cache
def _codec() -> Codec:
    return _Codec(wrong_types="extra")


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


_OTHER_KEY: Final = re.compile(rb'\{"line":[0-9]+,"key":(?=[^"n\s])')


def with_text_as_key(line: bytes) -> bytes:
    """A line whose key is a text or null: another value becomes its JSON, because a column has one type."""
    found = _OTHER_KEY.match(line)
    if found is None:
        return line
    try:
        key = bytes(read_spool_line(line).key)
        return b"".join((found[0], to_json(key.decode()), line[found.end() + len(key) :]))
    except ValueError:  # `decoded` names what is wrong
        return line


def add_rows(rows: RowBatch, read: SpoolLine, answer: PartnerAccessResponse, shard: Shard) -> None:
    """Adds the rows of an answer."""
    place = (read.line, _key(read.key))
    empty = [number for number, detail in enumerate(answer.details) if not detail.accounts]
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
            without_accounts(read, empty) if empty else None,
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


class _Response(msgspec.Struct):
    GetAccountsDetail: msgspec.Raw


_read_response: Final = msgspec.json.Decoder(_Response).decode
_read_items: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


def without_accounts(read: SpoolLine, entries: Iterable[int]) -> str:
    """The column of this name.

    Args:
        entries: the positions of the entries without accounts; at least one.

    Raises:
        ValueError: the answer is not JSON.
    """
    details = bytes(_read_response(read.response).GetAccountsDetail)
    items = _read_items(details) if details.startswith(b"[") else [msgspec.Raw(details)]
    return (b"[%b]" % b",".join([items[number] for number in entries])).decode()


@frozen
class Extras:
    """The unknown fields of answers as JSON, in the order of the rows. `holders` has an item for each account."""

    answers: list[str | None] = field(factory=list)
    details: list[str | None] = field(factory=list)
    accounts: list[str | None] = field(factory=list)
    transactions: list[str | None] = field(factory=list)
    holders: list[str | None] = field(factory=list)

    def add(self, answer: PartnerAccessResponse) -> None:
        accounts, holders = answer.accounts, [account.holder for account in answer.accounts]
        self.answers.append(extra_of(answer))
        self.details.extend(extra_of(detail, Login=detail.login) for detail in answer.details)
        self.accounts.extend(extra_of(account, Balance=account.balance) for account in accounts)
        self.transactions.extend(extra_of(move) for account in accounts for move in account.transactions)
        self.holders.extend(None if holder is None else extra_of(holder, Address=holder.address) for holder in holders)


# --- rows without decimals and dates ----------------------------------------------------------------------------------


def as_texts(where: Path | str, table: Table, rows: Iterable[Row]) -> list[Row]:
    """Rows as SQLite and PostgreSQL take them: amounts with all their digits, dates and points in time as ISO 8601.

    Args:
        where: the name of the store, for the error.

    Raises:
        UnfitAnswerError: an integer has more than 64 bits.
    """
    convert = [(number, _AS_TEXT[c.type]) for number, c in enumerate(table.columns) if c.type in _AS_TEXT]
    integers = [(number, c) for number, c in enumerate(table.columns) if c.type == "integer"]
    converted = []
    for row in rows:
        values = list(row)
        for number, function in convert:
            if values[number] is not None:
                values[number] = function(values[number])
        for number, column in integers:
            if values[number] is not None and values[number] not in _INT64:
                raise does_not_fit(where, table, column, row, "integer (64 bits)")
        converted.append(tuple(values))
    return converted


def _utc(value: dt.datetime) -> str:
    return value.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


_INT64: Final = range(-(2**63), 2**63)

_AS_TEXT: Final[dict[ColumnType, Callable[[Any], Any]]] = {
    "amount": "{:f}".format,
    "date": dt.date.isoformat,
    "instant": _utc,
}


# --- the digest of rows -----------------------------------------------------------------------------------------------


class ShardDigest:
    """A checksum of the rows of a shard. It does not depend on the order of answers, nor on versions of libraries.

    The rows of a table come in the order of their positions. Each value counts as bytes: a position as a 64-bit integer;
    other values as text in UTF-8, with integers in decimal digits, dates as `YYYY-MM-DD`, points in time as
    `YYYY-MM-DDTHH:MM:SS.ffffffZ`, and JSON with sorted keys; amounts with the digits that the database keeps, or, if it keeps
    decimals of a fixed size, as 128-bit integers that count units of 1e-18. Each column has two BLAKE2b digests of 16 bytes:
    of the lengths of its values (32-bit integers, -1 for null; none for positions), and of its values, one after another.
    The checksum is the digest of the names and the two digests of all columns. A column without a value does not count, so
    that columns may be added later. Integers are in the machine's byte order.

    Attributes:
        rows: number of rows by table.
    """

    def __init__(self) -> None:
        self.rows = {table.name: 0 for table in TABLES}
        self._columns = {
            table.name: [_ColumnDigest(f"{table.name}.{c.name}", c.type) for c in table.columns] for table in TABLES
        }

    def add(self, table: Table, rows: Rows) -> None:
        """Adds rows: an Arrow table, or rows with the values of `as_texts`."""
        self.rows[table.name] += len(rows)
        columns = zip(*rows, strict=True) if isinstance(rows, list) else rows.columns
        read = _read_list if isinstance(rows, list) else _read_array
        for column, values in zip(self._columns[table.name], columns, strict=True):
            for lengths, found in read(column.type, values):
                column.lengths.update(lengths)
                if found is not None:
                    column.used = True
                    column.values.update(found)

    def hexdigest(self) -> str:
        found = _hash()
        for column in chain.from_iterable(self._columns.values()):
            if column.used:
                found.update(column.name.encode() + column.lengths.digest() + column.values.digest())
        return found.hexdigest()


_hash: Final = partial(blake2b, digest_size=16)


@define
class _ColumnDigest:
    name: str
    type: ColumnType
    lengths: blake2b = field(factory=_hash, init=False)
    values: blake2b = field(factory=_hash, init=False)
    used: bool = field(default=False, init=False)


def _read_list(type_: ColumnType, values: Sequence[Any]) -> Iterator[tuple[array[int], bytes | None]]:
    """The lengths of values, and the values one after another, or None if all are null."""
    if type_ == "position" and None not in values:  # it may be missing in a database that somebody has changed
        yield array("i"), array("q", values).tobytes()
        return
    convert = _AS_BYTES.get(type_, str.encode)
    converted = [None if value is None else convert(value) for value in values]
    there = [value for value in converted if value is not None]
    yield array("i", [-1 if value is None else len(value) for value in converted]), b"".join(there) if there else None


def _read_array(
    type_: ColumnType, values: pyarrow.ChunkedArray
) -> Iterator[tuple[array[int] | memoryview, memoryview | None]]:
    """As `_read_list`, chunk by chunk, without Python objects."""
    pc = optional_import("pyarrow.compute", extra="arrow")
    for chunk in values.chunks:
        if chunk.null_count == len(chunk):  # perhaps 0
            yield array("i", [-1]) * len(chunk), None
        elif type_ == "position":
            yield array("i"), _integers(chunk, "q", len(chunk))
        else:
            texts = as_text_array(type_, chunk)
            there = texts.drop_null()
            ends = _integers(there, "i", len(there) + 1)
            lengths = pc.fill_null(pc.binary_length(texts), -1)
            yield _integers(lengths, "i", len(texts)), memoryview(there.buffers()[2])[ends[0] : ends[-1]]


def _integers(values: pyarrow.Array, size: Literal["i", "q"], count: int) -> memoryview:
    """The integers of an array; of texts or bytes, their ends, one more than there are texts."""
    return memoryview(values.buffers()[1]).cast("B").cast(size)[values.offset : values.offset + count]


def joined(texts: pyarrow.Array) -> pyarrow.Array:
    """The bytes of all texts as an array of one value, without a copy: a search in it costs much less than in each text."""
    pa = optional_import("pyarrow", extra="arrow")
    ends = _integers(texts, "i", len(texts) + 1) if len(texts) else [0]
    return pa.Array.from_buffers(
        pa.binary(), 1, [None, pa.py_buffer(array("i", (ends[0], ends[-1]))), texts.buffers()[2]]
    )


def as_text_array(type_: ColumnType, values: pyarrow.Array) -> pyarrow.Array:
    """Values as texts, and decimals as bytes, as `ShardDigest` describes them."""
    pa, pc = optional_import("pyarrow", extra="arrow"), optional_import("pyarrow.compute", extra="arrow")
    if type_ == "json":
        different = values.dictionary_encode()
        return pa.array(map(_json, different.dictionary.to_pylist()), pa.binary()).take(different.indices)
    if pa.types.is_decimal(values.type):
        bytes_ = pa.Array.from_buffers(pa.binary(16), len(values), values.buffers(), values.null_count, values.offset)
        return bytes_.cast(pa.binary())
    if pa.types.is_timestamp(values.type):
        return pc.strftime(values.cast(pa.timestamp("us")), format="%Y-%m-%dT%H:%M:%SZ")
    return (values.cast(pa.int8()) if type_ == "flag" else values).cast(pa.string())


def _amount(value: str | int) -> bytes:
    return value.encode() if isinstance(value, str) else value.to_bytes(16, byteorder, signed=True)


def _json(text: str) -> bytes:
    return to_json(_sorted(decode_any(text.encode())))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
        number = Decimal(value).normalize(EXACT)
        return ["number", str(number) if number else "0"]  # PostgreSQL has no negative zero
    return value


_AS_BYTES: Final[dict[ColumnType, Callable[[Any], bytes]]] = {
    "amount": _amount,
    "integer": b"%d".__mod__,
    "position": b"%d".__mod__,
    "flag": b"%d".__mod__,
    "json": _json,
}
