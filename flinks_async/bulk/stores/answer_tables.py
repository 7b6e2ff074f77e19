"""Spools as Arrow tables: Arrow reads the JSON into columns, so that no row becomes a Python object.

Arrow reads with a schema made from `flinks_async.schema`, amounts exactly from their digits; what the schema does not
foresee is an error. For SQLite and PostgreSQL, which keep zeros at the end of an amount, amounts are put in quotes before,
so that Arrow reads their digits as texts. An answer that Arrow refuses is found by halving its block:

- If it has unknown fields, Arrow reads it without them, and the codec decodes it for the columns `extra`. Later answers
  with such a field are read in this way at once.
- Otherwise (a key twice in an object, an integer such as `7.0`, a value that does not fit its column) `answer_rows` reads
  it, which defines the result.

The client has accepted every answer of a spool, perhaps with values of a wrong type, which the codec keeps in `extra`.
"""

from __future__ import annotations

import datetime as dt
import os
from array import array
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from re import compile as pattern
from typing import TYPE_CHECKING, Any, Final

from attrs import define, evolve, field, frozen

from ...checks import optional_import
from ...errors import ConfigError
from ...models import SCHEMA, Model, PartnerAccessResponse, Timestamp
from ...schema import FieldKind
from ...tables import COLUMN_TYPES, Row, Table, arrow_table, arrow_types, schema_of
from ..records import Commit, Shard
from ..spool import read_spool, read_spool_line
from .answer_rows import (
    ACCOUNTS,
    FETCHES,
    HOLDERS,
    TABLES,
    TRANSACTIONS,
    Extras,
    RowBatch,
    Rows,
    add_rows,
    as_text_array,
    as_texts,
    decoded,
    does_not_fit,
    unknown_keys,
    with_text_as_key,
    without_accounts,
)

if TYPE_CHECKING:
    import pyarrow

BLOCK: Final = 4 * 1024 * 1024
"""Bytes of answers that are read at once. A block may have more, because an answer is not split."""

FEW: Final = 16
"""Refused answers of which the codec decodes all, instead of halving them once more."""

Lines = Sequence[tuple[int, bytes]]
"""Lines of a spool with their numbers, from 1."""


def read_tables(
    path: Path,
    commit: Commit,
    where: Path | str,
    *,
    texts: bool = False,
    prepare: Callable[[Table, Rows], Rows] = lambda _, rows: rows,
) -> Generator[tuple[Rows, ...], None, None]:
    """The tables of a spool, block by block, in the order of `answer_rows.TABLES`. Their rows are in the order of their
    positions. A thread reads the next block while the store writes one, so memory is that of two blocks.

    Args:
        where: the name of the store, for the error.
        texts: amounts, dates and points in time as texts, as `answer_rows.as_texts` makes them. Without pyarrow, such
            tables are lists of rows.
        prepare: changes each table in the thread that reads.

    Raises:
        ConfigError: pyarrow is not installed, and `texts` is false.
        UnfitAnswerError: a value does not fit its column.
        StoreError: the spool is damaged, an answer in it cannot be read, or it does not have as many answers as `commit`
            says.
    """
    if _has_arrow() and not os.environ.get("ARROW_DEFAULT_MEMORY_POOL"):
        arrow = _arrow()[0]
        if arrow.default_memory_pool().backend_name == "mimalloc":  # which keeps 40 MB more of what is freed
            arrow.set_memory_pool(arrow.system_memory_pool())
    reader = _Reader(path, commit.shard, where, texts)
    blocks = read_spool(path, commit.written.lines, BLOCK)

    def read(block: Lines) -> tuple[Rows, ...]:
        return tuple(map(prepare, TABLES, reader.read(block)))

    block = next(blocks, None)
    found = None if block is None else read(block)
    with ThreadPoolExecutor(1, thread_name_prefix="flinks-async-tables") as thread:
        while found is not None:
            block = next(blocks, None)
            ahead = None if block is None else thread.submit(read, block)
            yield found
            found = None if ahead is None else ahead.result()


_SHAPE: Final = pattern(rb'"GetAccountsDetail"\s*:\s*(.)')


@define
class _Reader:
    """Reads the blocks of a spool.

    Attributes:
        path: the spool.
        where: the name of the store.
        texts: whether amounts, dates and points in time are texts.
    """

    path: Path
    shard: Shard
    where: Path | str
    texts: bool
    _unknown: tuple[bytes, ...] = field(factory=unknown_keys, init=False)

    def read(self, block: Lines) -> tuple[Rows, ...]:
        """The tables of a block. Answers of different forms are read apart."""
        if self.texts and not _has_arrow():
            return self._rows(block)
        groups: dict[tuple[bool, bool], list[tuple[int, bytes]]] = {}
        for number, text in block:
            line = with_text_as_key(text)
            shape = _SHAPE.search(line)
            is_object = shape is not None and shape[1] == b"{"
            groups.setdefault((is_object, any(key in line for key in self._unknown)), []).append((number, line))
        pieces = [piece for form, lines in groups.items() for piece in self._read(lines, *form)]
        if len(pieces) == 1:
            return pieces[0]
        pa = optional_import("pyarrow", extra="arrow")
        return tuple(
            pa.concat_tables(parts).sort_by([(name, "ascending") for name in table.identity])
            for table, parts in zip(TABLES, zip(*pieces, strict=True), strict=True)
        )

    def _read(self, lines: Lines, is_object: bool, unknown: bool) -> Iterator[tuple[Rows, ...]]:
        """
        Args:
            is_object: whether `GetAccountsDetail` is an object, not an array.
            unknown: whether most of the answers have unknown fields.
        """
        found = None if unknown else self._columns(lines, is_object, None)
        if found is None and (unknown or len(lines) <= FEW):
            extras = Extras()
            for number, line in lines:
                extras.add(decoded(self.path, number, line)[1])
            self._unknown = unknown_keys()
            found = self._columns(lines, is_object, extras)
        if found is not None:
            yield found
        elif len(lines) == 1:
            yield tuple(
                arrow_table(_as_stored(table, self.texts), rows, partial(does_not_fit, self.where, table))
                for table, rows in zip(TABLES, self._rows(lines), strict=True)
            )
        else:
            half = len(lines) // 2
            yield from self._read(lines[:half], is_object, unknown)
            yield from self._read(lines[half:], is_object, unknown)

    def _rows(self, lines: Lines) -> tuple[list[Row], ...]:
        """Answers by the path that defines the result."""
        rows = RowBatch()
        for number, line in lines:
            add_rows(rows, *decoded(self.path, number, line), self.shard)
        found = tuple(map(rows.of, TABLES))
        return tuple(map(partial(as_texts, self.where), TABLES, found)) if self.texts else found

    def _columns(self, lines: Lines, is_object: bool, extras: Extras | None) -> tuple[Rows, ...] | None:
        """Answers by Arrow; None if it refuses one of them. Its own error is dropped, because it shows the value.

        Args:
            extras: their unknown fields; None reads only answers without any.

        Raises:
            MemoryError: there is not enough memory.
        """
        pa = optional_import("pyarrow", extra="arrow")
        try:
            return self._flat(_read_json(lines, is_object, self.texts, unknown=extras is not None), lines, extras)
        except MemoryError:
            raise
        except (pa.ArrowException, _Refused):
            return None

    def _flat(self, read: Mapping[str, Any], lines: Lines, extras: Extras | None) -> tuple[Rows, ...]:
        pa, pc = _arrow()
        response = read["response"]
        details = _items(pc.struct_field(response, "GetAccountsDetail"))
        accounts = _items(pc.struct_field(details.items, "Accounts"))
        transactions = _items(pc.struct_field(accounts.items, "Transactions"))
        holder = pc.struct_field(accounts.items, "Holder")
        held = pc.indices_nonzero(pc.is_valid(holder))
        answer = pc.take(details.owner, accounts.owner)
        extra = Extras() if extras is None else extras
        answer_extra = _texts(extra.answers, len(lines))
        request_id, request_id_of_detail = (pc.struct_field(o, "RequestId") for o in (response, details.items))
        refresh = pc.struct_field(details.items, ["Login", "LastRefresh"])

        of_details = {
            "request_id": pc.coalesce(pc.take(request_id, details.owner), request_id_of_detail),
            "last_refresh": _instants(refresh, self.texts),
            "last_refresh_text": pc.if_else(pc.equal(refresh, ""), None, refresh),
            "detail_extra": _texts(extra.details, len(details.items)),
            "answer_extra": pc.take(answer_extra, details.owner),
        }
        for column in ACCOUNTS.columns:
            if column.wire.startswith("^") and column.name not in of_details:
                of_details[column.name] = pc.struct_field(details.items, column.wire[1:].split("."))
        before = pa.concat_arrays([pa.array([0], pa.int64()), accounts.ends])  # accounts before each entry
        first = pc.if_else(pc.equal(details.starts, details.ends), None, details.starts)
        of_answers = {
            **{name: read[name] for name in ("line", "key", "instance")},
            "request_id": pc.coalesce(request_id, pc.take(request_id_of_detail, first)),
            **{name: pc.struct_field(read["meta"], name) for name in ("status", "attempts")},
            "accounts": pc.subtract(pc.take(before, details.ends), pc.take(before, details.starts)),
            "shard": pa.repeat(pa.scalar(self.shard.id, pa.int64()), len(lines)),
            "round": pa.repeat(pa.scalar(self.shard.round, pa.int64()), len(lines)),
            "without_accounts": _without_accounts(lines, details, accounts),
            "extra": answer_extra,
        }
        # The columns that the rows of an account, of its transactions and of its holder share.
        shared = {
            "line": pc.take(read["line"], answer),
            "key": pc.take(read["key"], answer),
            "detail": pc.take(details.position, accounts.owner),
            "account": accounts.position,
            "account_id": pc.struct_field(accounts.items, "Id"),
            "currency": pc.struct_field(accounts.items, "Currency"),
        }
        of_accounts = {
            **shared,
            **_take(of_details, accounts.owner),
            "extra": _texts(extra.accounts, len(accounts.items)),
        }
        of_transactions = {
            **_take(shared, transactions.owner),
            "transaction": transactions.position,
            "extra": _texts(extra.transactions, len(transactions.items)),
        }
        of_holders = _take({**shared, "extra": _texts(extra.holders, len(accounts.items))}, held)
        return (
            self._table(FETCHES, of_answers, response),
            self._table(ACCOUNTS, of_accounts, accounts.items),
            self._table(TRANSACTIONS, of_transactions, transactions.items),
            self._table(HOLDERS, of_holders, pc.take(holder, held)),
        )

    def _table(self, table: Table, known: Mapping[str, Any], objects: Any) -> pyarrow.Table:
        """A table.

        Args:
            known: columns by name; others are read from `objects`.
        """
        pa, pc = _arrow()
        columns = []
        for column in table.columns:
            values = known.get(column.name)
            if values is None:
                values = pc.struct_field(objects, column.wire.split("."))
                if column.type == "date":
                    days = pc.cast(values, arrow_types()["date"])
                    if pc.any(pc.less(days, dt.date.min)).as_py():
                        raise _Refused
                    values = values if self.texts else days
                elif column.type == "amount" and self.texts:
                    if (pc.max(pc.utf8_length(values)).as_py() or 0) > _DIGITS:
                        raise _Refused
                    values = pc.if_else(pc.equal(values, "-0"), "0", values)  # an integer of the codec
            columns.append(values)
        return pa.Table.from_arrays(columns, schema=schema_of(_as_stored(table, self.texts)))


def _without_accounts(lines: Lines, details: _Items, accounts: _Items) -> Any:
    """The column of this name: the JSON of the entries, as it came."""
    pa, pc = _arrow()
    texts: list[str | None] = [None] * len(lines)
    empty = pc.indices_nonzero(pc.equal(accounts.starts, accounts.ends))
    owners, positions = (pc.take(values, empty).to_pylist() for values in (details.owner, details.position))
    try:
        for number, entries in groupby(zip(owners, positions, strict=True), itemgetter(0)):
            texts[number] = without_accounts(read_spool_line(lines[number][1]), [place for _, place in entries])
    except (ValueError, RecursionError):
        raise _Refused from None
    return pa.array(texts, pa.string())


@cache
def _as_stored(table: Table, texts: bool) -> Table:
    """The table with the types of its columns in Arrow."""
    as_texts = {"amount", "date", "instant"} if texts else set[str]()
    return evolve(table, columns=tuple(evolve(c, type="text") if c.type in as_texts else c for c in table.columns))


_AMOUNTS: Final = "|".join(sorted({f.wire for fields in SCHEMA.values() for f in fields if f.kind is FieldKind.AMOUNT}))

_DIGITS: Final = 28
"""The longest text of an amount that is certainly in the range of `schema.AMOUNT`."""


def _json_of(lines: Lines, texts: bool) -> pyarrow.Buffer:
    """The JSON of lines; with `texts` it has amounts in quotes, digit by digit. One with an exponent becomes an error of
    syntax.

    Raises:
        _Refused: an amount may be a text, which Arrow reads as a number and the codec does not.
    """
    pa, pc = _arrow()
    data = b"".join([line for _, line in lines])
    ends = array("i", [0, len(data)])
    text = pa.Array.from_buffers(pa.binary(), 1, [None, pa.py_buffer(ends), pa.py_buffer(data)])  # without a copy
    if pc.match_substring_regex(text, rf'"(?:{_AMOUNTS})"\s*:\s*"')[0].as_py():
        raise _Refused
    if texts:
        text = pc.replace_substring_regex(text, rf'"({_AMOUNTS})"\s*:\s*(-?[0-9][0-9.]*)', r'"\1":"\2"')
    return text[0].as_buffer()


class _Refused(Exception):
    """A value that Arrow accepts and the codec refuses."""


def _has_arrow() -> bool:
    try:
        _arrow()
    except ConfigError:
        return False
    return True


def _arrow() -> tuple[Any, Any]:
    """The modules `pyarrow` and `pyarrow.compute`."""
    return optional_import("pyarrow", extra="arrow"), optional_import("pyarrow.compute", extra="arrow")


def _texts(texts: list[str | None], count: int) -> Any:
    """Texts as Arrow; nulls if there are no texts."""
    pa, _ = _arrow()
    return pa.array(texts, pa.string()) if texts else pa.nulls(count, pa.string())


def _take(columns: Mapping[str, Any], numbers: Any) -> dict[str, Any]:
    _, pc = _arrow()
    return {name: pc.take(values, numbers) for name, values in columns.items()}


@frozen
class _Items:
    """The objects in the arrays of other objects, their owners.

    Attributes:
        items: the objects, in the order of their owners.
        owner: the number of each object's owner.
        position: its index in the owner's array.
        starts, ends: of each owner: the range of its objects in `items`.
    """

    items: Any
    owner: Any
    position: Any
    starts: Any
    ends: Any


def _items(values: Any) -> _Items:
    """The items of arrays. An object in place of an array counts as an array of one."""
    pa, pc = _arrow()
    if pa.types.is_list(values.type):
        items, owner = pc.list_flatten(values), pc.list_parent_indices(values)
        counts = pc.fill_null(pc.list_value_length(values), 0)
    else:
        there = pc.is_valid(values)
        items, owner, counts = pc.drop_null(values), pc.indices_nonzero(there), there.cast(pa.int8())
    if items.null_count:
        raise _Refused
    ends = pc.cumulative_sum(counts.cast(pa.int64()))
    starts = pc.subtract(ends, counts)
    number = pc.cumulative_sum(pa.repeat(pa.scalar(1, pa.int64()), len(items)), start=-1)
    return _Items(items, owner, pc.subtract(number, pc.take(starts, owner)), starts, ends)


def _instants(timestamps: Any, texts: bool) -> Any:
    """Timestamps as points in time, by the rules of the models."""
    pa, _ = _arrow()
    values = [None if text is None else Timestamp.parse(text).value for text in timestamps.to_pylist()]
    found = pa.array(values, arrow_types()["instant"])
    return as_text_array("instant", found) if texts else found


def _read_json(lines: Lines, is_object: bool, texts: bool, *, unknown: bool) -> Mapping[str, Any]:
    """Lines of a spool as columns, which do not refer to their text.

    Args:
        is_object: whether `GetAccountsDetail` is an object, not an array.
        texts: whether amounts are texts.
        unknown: whether unknown fields are ignored; otherwise they are errors.

    Raises:
        _Refused, ArrowException: Arrow would not read them as the codec does.
    """
    data = _json_of(lines, texts)
    pa, json = optional_import("pyarrow", extra="arrow"), optional_import("pyarrow.json", extra="arrow")
    read = json.read_json(
        pa.BufferReader(data),
        read_options=json.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=json.ParseOptions(
            explicit_schema=_schema_of_lines(is_object, texts),
            unexpected_field_behavior="ignore" if unknown else "error",
        ),
    )
    read.validate(full=True)  # broken UTF-8, and numbers of 39 digits, which read_json lets pass
    columns = {name: read[name].combine_chunks() for name in read.column_names}
    if len(read) != len(lines) or any(columns[name].null_count for name in ("line", "response", "meta")):
        raise _Refused
    return columns


@cache
def _schema_of_lines(is_object: bool, texts: bool) -> Any:
    pa, _ = _arrow()
    integer, text = arrow_types()["integer"], arrow_types()["text"]
    return pa.schema(
        {
            "line": integer,
            "key": text,
            "instance": text,
            "response": _struct_of(PartnerAccessResponse, is_object, texts),
            "meta": pa.struct({"status": integer, "attempts": integer}),
        }
    )


def _struct_of(cls: type[Model], is_object: bool, texts: bool) -> Any:
    pa, _ = _arrow()
    members = {}
    for member in SCHEMA[cls]:
        if member.model is None:
            # Dates and timestamps are texts in JSON; `_table` and `_instants` convert them.
            is_text = member.kind in (FieldKind.DATE, FieldKind.TIMESTAMP) or (
                texts and member.kind is FieldKind.AMOUNT
            )
            type_ = arrow_types()["text" if is_text else COLUMN_TYPES[member.kind]]
        else:
            type_ = _struct_of(member.model, is_object, texts)
            if member.kind is FieldKind.ARRAY or (member.kind is FieldKind.ONE_OR_MANY and not is_object):
                type_ = pa.list_(type_)
        members[member.wire] = type_
    return pa.struct(members)
