"""What the stores with tables write: spools as rows of four tables.

- `fetches`: one row for each answer;
- `accounts`, `transactions`, `holders`: the columns of `flinks_async.tables`.

Each row begins with the line of the input and its key, so tables can be joined by `line`, `detail`, `account` and
`transaction`, and with the user's own by `key`. The rows are the same for every store; how a value is stored is the
store's own affair.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import msgspec
from attrs import field, frozen

from ... import tables as flat
from ...codec import Codec
from ...errors import DecodeError
from ...models import PartnerAccessResponse
from ...tables import Column, ColumnType, Row, Table, extra_of, flatten, to_json
from ..compression import Compression
from ..errors import StoreError, UnfitAnswerError
from ..records import Shard
from .answer_files import read_lines

__all__ = [
    "ACCOUNTS",
    "BATCH",
    "FETCHES",
    "HOLDERS",
    "TABLES",
    "TRANSACTIONS",
    "Batch",
    "Column",
    "ColumnType",
    "Row",
    "Table",
    "does_not_fit",
    "read_spool",
]

BATCH: Final = 10_000
"""Rows in a batch, about: an answer is not cut."""

_SIZE: Final = 32 * 1024 * 1024
"""Bytes of answers in a batch, at which it ends before it has so many rows."""

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
"""`accounts` is how many there are. `without_accounts` has the entries of `GetAccountsDetail` that have none, and so no
row in the other tables, as a JSON array; null without such."""

ACCOUNTS: Final = _of_job(flat.ACCOUNTS)

TRANSACTIONS: Final = _of_job(flat.TRANSACTIONS)

HOLDERS: Final = _of_job(flat.HOLDERS)

TABLES: Final = (FETCHES, ACCOUNTS, TRANSACTIONS, HOLDERS)


@frozen
class Batch:
    """Rows of whole answers."""

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


def read_spool(path: Path, compression: Compression, shard: Shard, *, batch: int = BATCH) -> Iterator[Batch]:
    """The rows of a spool, in its order. Memory is that of one batch and one answer.

    Args:
        batch: rows after which a batch is given.

    Raises:
        StoreError: the spool is damaged, or an answer in it cannot be read.
    """
    rows, size = Batch(), 0
    for number, text in enumerate(read_lines(path, compression), 1):
        read, answer = _decoded(path, number, text)
        _add(rows, read, answer, shard)
        size += len(text)
        if len(rows) >= batch or size >= _SIZE:
            yield rows
            rows, size = Batch(), 0
    if rows.fetches:
        yield rows


def does_not_fit(path: Path | str, table: Table, column: Column, row: Row, type_: str) -> UnfitAnswerError:
    """The error for a value that a store's column cannot hold. It names the place, never the value.

    Args:
        path: of the store.
        row: of the table, with line and key.
        type_: of the column, in the store's words.
    """
    line = int(row[0])
    where = f"line {line} of the input, {table.path(column, row)}"
    return UnfitAnswerError(
        f"{path} cannot be written: {where}: the value does not fit a column of type {type_}", line=line
    )


class _Meta(msgspec.Struct):
    status: int
    attempts: int


class _Line(msgspec.Struct):
    line: int
    response: msgspec.Raw
    meta: _Meta
    key: msgspec.Raw = msgspec.Raw(b"null")
    instance: str | None = None


_read: Final = msgspec.json.Decoder(_Line).decode


@cache
def _codec() -> Codec:
    return Codec()


def _decoded(path: Path, number: int, text: bytes) -> tuple[_Line, PartnerAccessResponse]:
    try:
        read = _read(text)
        return read, _codec().decode(bytes(read.response))
    except DecodeError as error:
        problem = str(error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        problem = "it is not a line of a spool"
    raise StoreError(f"{path}, line {number}: {problem}")


def _add(rows: Batch, read: _Line, answer: PartnerAccessResponse, shard: Shard) -> None:
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
            _without_accounts(answer),
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


def _without_accounts(answer: PartnerAccessResponse) -> str | None:
    bare = [detail.to_dict() for detail in answer.details if not detail.accounts]
    return to_json(bare).decode() if bare else None
