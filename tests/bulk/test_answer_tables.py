"""Spools as Arrow tables: the same values as the rows of `answer_rows`, by which path they may be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from decimal import Decimal
from functools import partial
from itertools import chain
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory
from threading import enumerate as enumerate_threads
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from flinks_async.bulk.errors import StoreError, UnfitAnswerError
from flinks_async.bulk.records import Commit, Shard, Written
from flinks_async.bulk.spool import read_spool
from flinks_async.bulk.stores import answer_tables
from flinks_async.bulk.stores.answer_rows import (
    TABLES,
    RowBatch,
    ShardDigest,
    add_rows,
    as_texts,
    decoded,
    does_not_fit,
)
from flinks_async.bulk.stores.answer_tables import read_tables
from flinks_async.tables import arrow_table
from flinks_async.testing.data import Size, expected_body

from ..answers import DOCUMENTED, answers, answers_perhaps_wrong, payload, to_bytes
from ..support import examples
from .tables_support import decodes

pa = pytest.importorskip("pyarrow")

SHARD = Shard(4, 1, 1000, 0, 1000, "d", round=2)

Rows = list[list[dict[str, Any]]]


def spool(folder: Path, bodies: Sequence[bytes], keys: Sequence[Any] = ()) -> tuple[Path, Commit]:
    path = folder / "spool"
    lines = []
    for number, body in enumerate(bodies, 1):
        key = b',"key":%b' % to_bytes(keys[number - 1]) if keys else b""
        meta = b'{"status":200,"attempts":%d}' % number
        lines.append(b'{"line":%d%b,"response":%b,"meta":%b}\n' % (number, key, body, meta))
    path.write_bytes(b"".join(lines))
    return path, Commit(SHARD, Written(len(bodies), 0, ""))


def by_arrow(folder: Path, bodies: Sequence[bytes], keys: Sequence[Any] = (), *, texts: bool = False) -> Rows:
    found: Rows = [[] for _ in TABLES]
    digest = ShardDigest()
    for tables in read_tables(*spool(folder, bodies, keys), "out", texts=texts):
        for number, (table, rows) in enumerate(zip(TABLES, tables, strict=True)):
            assert not isinstance(rows, list)
            rows.validate(full=True)
            digest.add(table, rows)
            found[number] += rows.to_pylist()
    if texts:
        assert digest.hexdigest() == digest_of(found)
    return found


def digest_of(found: Rows) -> str:
    digest = ShardDigest()
    for table, rows in zip(TABLES, found, strict=True):
        if rows:
            digest.add(table, [tuple(row.values()) for row in rows])
    return digest.hexdigest()


def by_rows(folder: Path, bodies: Sequence[bytes], keys: Sequence[Any] = (), *, texts: bool = False) -> Rows:
    """By the path that defines the result."""
    path, commit = spool(folder, bodies, keys)
    batch = RowBatch()
    for number, line in chain.from_iterable(read_spool(path, commit.written.lines, 1000)):
        add_rows(batch, *decoded(path, number, line), SHARD)
    found: Rows = []
    for table in TABLES:
        rows = batch.of(table)
        if texts:
            rows = as_texts("out", table, rows)
            found.append([dict(zip(table.names, row, strict=True)) for row in rows])
        else:
            found.append(arrow_table(table, rows, partial(does_not_fit, "out", table)).to_pylist() if rows else [])
    return found


def unfit(folder: Path, body: bytes) -> str | None:
    try:
        by_rows(folder, [body])
    except UnfitAnswerError as error:
        return error.message
    return None


_KEYS = st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=3), st.integers(), st.just([1, "x"]))


@examples(25)
@given(st.lists(st.tuples(st.one_of(answers, answers_perhaps_wrong), _KEYS), min_size=1, max_size=3))
def test_both_paths_give_the_same_values(generated: list[tuple[Any, Any]]) -> None:
    """In the same order, and with the same digest."""
    items = [(body, key) for answer, key in generated if decodes(body := to_bytes(answer))]
    with TemporaryDirectory() as name:
        folder = Path(name)
        fit = [(body, key) for body, key in items if unfit(folder, body) is None]
        bodies, keys = [body for body, _ in fit], [key for _, key in fit]
        assert by_arrow(folder, bodies, keys) == by_rows(folder, bodies, keys)
        for some in (items, fit):
            bodies, keys = [body for body, _ in some], [key for _, key in some]
            assert by_arrow(folder, bodies, keys, texts=True) == by_rows(folder, bodies, keys, texts=True)
        for body, _ in items:
            message = unfit(folder, body)
            if message is not None:
                with pytest.raises(UnfitAnswerError) as raised:
                    by_arrow(folder, [body])
                assert raised.value.message == message


NUMBERS = [
    "0", "-0", "-0.00", "0e7", "1.10", "1E+3", "1e-18", "0.1e1", "99999999999999999999", "12345678901234567.1000",
    "12345678901234567890.123456789012345678", "100000000000000000000", "170141183460469231731.7", "1e-19", "1e28",
    "1.0000000000000000000", "99999999999999999999999999999", "0.1234567890123456789012345678", "1" * 30, "0." + "1" * 30,
    "0." + "0" * 40, "0.0000001", "-0.0000000000000000010", "-99999999999999999999.999999999999999999", "340282366920938463463.4",
]  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS)
def test_amounts_are_exact_or_refused(tmp_path: Path, number: str) -> None:
    body = b'{"GetAccountsDetail":[{"Accounts":[{"Transactions":[{"Debit":%b}]}]}]}' % number.encode()
    as_texts = by_arrow(tmp_path, [body], texts=True)
    assert as_texts == by_rows(tmp_path, [body], texts=True)
    assert as_texts[2][0]["debit"] in (number, f"{Decimal(number):f}", number.removeprefix("-"), None)
    message = unfit(tmp_path, body)
    if message is None:
        assert by_arrow(tmp_path, [body]) == by_rows(tmp_path, [body])
        return
    with pytest.raises(UnfitAnswerError, match=r"Transactions\[0\].Debit") as raised:
        by_arrow(tmp_path, [body])
    assert raised.value.message == message


@pytest.mark.parametrize(
    "body",
    [
        b'{"GetAccountsDetail":[null]}',
        b'{"GetAccountsDetail":[{"Accounts":[null]}]}',
        b'{"GetAccountsDetail":[{"Accounts":[{"Transactions":[null]}]}]}',
        b'{"GetAccountsDetail":[{"Accounts":[{"Transactions":[{"Date":"0000-01-01"}]}]}]}',
        b'{"GetAccountsDetail":[{"Accounts":[{"Transactions":[{"Debit":"x"}]}]}]}',
        b'{"GetAccountsDetail":[{"Accounts":[{"Transactions":[{"Debit":"5"},{"Credit" : "5"}]}]}]}',
        b'{"GetAccountsDetail":[{"Accounts":[{"Balance":{"Limit":"5"},"OverdraftLimit": "1.10"}]}]}',
        b'{"GetAccountsDetail":[{"Accounts":[{"Balance":7,"Title":[1]}]}]}',
        b'{"GetAccountsDetail":3}',
    ],
)
def test_values_of_a_wrong_type_are_kept_as_the_codec_keeps_them(
    tmp_path: Path, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    bodies = [to_bytes(DOCUMENTED), body]
    for texts in (False, True):
        assert by_arrow(tmp_path, bodies, texts=texts) == by_rows(tmp_path, bodies, texts=texts)
    assert caplog.messages == [], "the client has logged them"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"GetAccountsDetail":[{"Accounts":[{"Title":"\xff"}]}]}', "not valid UTF-8"),
        (b'{"GetAccountsDetail":[{"Tag":"\\ud800"}]}', "not a line of a spool"),
        (b"null", "null"),
        (b"7", "expected an object"),
    ],
)
def test_what_the_codec_refuses_is_named_by_its_line(tmp_path: Path, body: bytes, why: str) -> None:
    with pytest.raises(StoreError, match=rf"line 2: .*{why}"):
        by_arrow(tmp_path, [to_bytes(DOCUMENTED), body])


@pytest.mark.parametrize(
    "body",
    [
        {
            "Title": '"Debit":5',
            "Id": 'x","Debit":5',
            "Transactions": [{"Description": 'a"Balance": -1.50', "Debit": 1}],
        },
        {'a"Limit': 5, "b": {"Limit": 5, "Debit": [1.50, "2"]}, "Balance": {"Limit": 5}},
        {"Title": "\\", "Limit": 7, "Transactions": [{"Code": '\\"Credit":1', "Credit": 1}]},
        {"Transactions": [{"Debit" + " ": 5, "Debit": 5, "Credit": None, "Balance": -0.5}]},
    ],
)
@pytest.mark.parametrize("spaced", [False, True])
def test_texts_that_look_like_amounts_are_left_alone(tmp_path: Path, body: dict[str, Any], spaced: bool) -> None:
    answer = {"GetAccountsDetail": [{"Accounts": [body]}]}
    bodies = [json.dumps(answer, separators=None if spaced else (",", ":")).encode(), to_bytes(DOCUMENTED)]
    assert by_arrow(tmp_path, bodies, texts=True) == by_rows(tmp_path, bodies, texts=True)


def _lines_of(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """The lines of the spool that a function of the module is called with from now on."""
    seen: list[int] = []
    function: Callable[..., Any] = getattr(answer_tables, name)

    def noted(path: Path, number: int, line: bytes) -> Any:
        seen.append(number)
        return function(path, number, line)

    monkeypatch.setattr(answer_tables, name, noted)
    return seen


@pytest.mark.parametrize(
    "text", ["", "never", "2023-04-11T15:04:43.3464411", "2023-04-11T15:04:43+02:00", "0001-01-01"]
)
def test_timestamps_are_read_as_the_models_read_them(tmp_path: Path, text: str) -> None:
    body = to_bytes({"GetAccountsDetail": [{"Login": {"LastRefresh": text}, "Accounts": [{}, {}]}]})
    assert by_arrow(tmp_path, [body]) == by_rows(tmp_path, [body])


@pytest.mark.parametrize("size", ["small", "medium"])
@pytest.mark.parametrize("shape", ["list", "object", "null"])
def test_usual_answers_never_become_python_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: Any, size: Size
) -> None:
    seen = _lines_of(monkeypatch, "decoded")
    bodies = [expected_body(f"t-{number}", size=size, shape=shape) for number in range(30)]
    keys = [number if number % 2 else "text" for number in range(30)]
    for texts in (False, True):
        found = by_arrow(tmp_path, bodies, keys, texts=texts)
        assert seen == []
        assert found == by_rows(tmp_path, bodies, keys, texts=texts)


ODD = payload((1, 2)).replace(b'"Code"', b'"Code":null,"Code"', 1)


@pytest.mark.parametrize("odd", [ODD, payload((1, 2)).replace(b'"Debit"', b'"":0,"Debit"', 1)])
def test_an_odd_answer_costs_its_neighbours_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: bytes) -> None:
    seen = _lines_of(monkeypatch, "decoded")
    bodies = [payload((1, 2), seed=number) for number in range(500)]
    bodies[321] = odd
    assert by_arrow(tmp_path, bodies) == by_rows(tmp_path, bodies)
    assert 322 in seen
    assert len(seen) <= 64


def test_a_new_field_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later answers that have it are decoded once, and those without it not at all."""
    bodies = [payload((1, 2), seed=number) for number in range(200)]
    for number in range(0, 200, 40):
        bodies[number] = bodies[number].replace(b'"Debit":', b'"Learned": {"x": 1.50}, "Debit":')
    by_arrow(tmp_path, bodies)
    seen = _lines_of(monkeypatch, "decoded")
    found = by_arrow(tmp_path, bodies)
    assert seen == [1, 41, 81, 121, 161]
    assert found == by_rows(tmp_path, bodies)
    assert found[2][0]["extra"] == '{"Learned":{"x":1.50}}'


def test_blocks_are_bounded(tmp_path: Path) -> None:
    large = b'{"GetAccountsDetail":{"Accounts":[{"Title":"%b"}]}}' % (b"x" * (answer_tables.BLOCK // 2))
    found = list(read_tables(*spool(tmp_path, [large] * 5), "out"))
    assert [len(tables[0]) for tables in found] == [2, 2, 1]


def test_the_next_block_is_read_while_one_is_written_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_tables, "BLOCK", 1)  # one answer at a time
    read, begun = answer_tables._Reader.read, Queue[int]()

    def watched(reader: Any, block: Any) -> Any:
        begun.put(block[0][0])
        return read(reader, block)

    monkeypatch.setattr(answer_tables._Reader, "read", watched)
    with closing(read_tables(*spool(tmp_path, [to_bytes(DOCUMENTED)] * 4), "out")) as blocks:
        next(blocks)
        assert [begun.get(timeout=10), begun.get(timeout=10)] == [1, 2]
        assert begun.empty()
    assert not [thread.name for thread in enumerate_threads() if thread.name.startswith("flinks-async-tables")]


@pytest.mark.parametrize(("named", "used"), [("", "system"), ("mimalloc", "mimalloc")])
def test_arrow_allocates_with_malloc_unless_the_environment_names_a_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, used: str
) -> None:
    before = pa.default_memory_pool()
    monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", named)
    try:
        pa.set_memory_pool(pa.mimalloc_memory_pool())
        list(read_tables(*spool(tmp_path, [to_bytes(DOCUMENTED)]), "out"))
        assert pa.default_memory_pool().backend_name == used
    finally:
        pa.set_memory_pool(before)


def test_a_spool_that_lacks_answers_is_refused(tmp_path: Path) -> None:
    path, commit = spool(tmp_path, [to_bytes(DOCUMENTED)])
    with pytest.raises(StoreError, match="has 1 answers, not 2"):
        list(read_tables(path, evolve(commit, written=Written(2, 0, "")), "out"))
