"""Spools as Arrow tables: the same values as the rows of `answer_rows`, by which path they may be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pa = pytest.importorskip("pyarrow")

from flinks_async.bulk.errors import StoreError, UnfitAnswerError  # noqa: E402
from flinks_async.bulk.records import Commit, Shard, Written  # noqa: E402
from flinks_async.bulk.stores import answer_tables  # noqa: E402
from flinks_async.bulk.stores.answer_rows import TABLES, does_not_fit, read_spool  # noqa: E402
from flinks_async.bulk.stores.answer_tables import read_tables  # noqa: E402
from flinks_async.codec import Codec  # noqa: E402
from flinks_async.errors import DecodeError  # noqa: E402
from flinks_async.tables import arrow_table  # noqa: E402
from flinks_async.testing.data import expected_body  # noqa: E402

from ..answers import DOCUMENTED, answers, answers_perhaps_wrong, payload, to_bytes  # noqa: E402

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


def by_arrow(folder: Path, bodies: Sequence[bytes], keys: Sequence[Any] = ()) -> Rows:
    found: Rows = [[] for _ in TABLES]
    for tables in read_tables(*_order(spool(folder, bodies, keys)), "out"):
        for number, table in enumerate(tables):
            table.validate(full=True)
            found[number] += table.to_pylist()
    return _sorted(found)


def by_rows(folder: Path, bodies: Sequence[bytes], keys: Sequence[Any] = ()) -> Rows:
    found: Rows = [[] for _ in TABLES]
    for batch in read_spool(*_order(spool(folder, bodies, keys))):
        for number, table in enumerate(TABLES):
            if rows := batch.of(table):
                found[number] += arrow_table(table, rows, partial(does_not_fit, "out", table)).to_pylist()
    return _sorted(found)


def _order(made: tuple[Path, Commit]) -> tuple[Path, Any, Commit]:
    return made[0], "none", made[1]


def _sorted(found: Rows) -> Rows:
    return [
        sorted(rows, key=lambda row, table=table: tuple(row[name] for name in table.identity))  # type: ignore[misc]
        for rows, table in zip(found, TABLES, strict=True)
    ]


def unfit(folder: Path, body: bytes) -> str | None:
    try:
        by_rows(folder, [body])
    except UnfitAnswerError as error:
        return error.message
    return None


def decodes(body: bytes) -> bool:
    try:
        Codec(wrong_types="extra").decode(body)
    except DecodeError:
        return False
    return True


_KEYS = st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=3), st.integers(), st.just([1, "x"]))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(st.tuples(st.one_of(answers, answers_perhaps_wrong), _KEYS), min_size=1, max_size=3))
def test_both_paths_give_the_same_values(generated: list[tuple[Any, Any]]) -> None:
    items = [(body, key) for answer, key in generated if decodes(body := to_bytes(answer))]
    with TemporaryDirectory() as name:
        folder = Path(name)
        fit = [(body, key) for body, key in items if unfit(folder, body) is None]
        bodies, keys = [body for body, _ in fit], [key for _, key in fit]
        assert by_arrow(folder, bodies, keys) == by_rows(folder, bodies, keys)
        for body, _ in items:
            message = unfit(folder, body)
            if message is not None:
                with pytest.raises(UnfitAnswerError) as raised:
                    by_arrow(folder, [body])
                assert raised.value.message == message


NUMBERS = [
    "0", "-0", "-0.00", "0e7", "1.10", "1E+3", "1e-18", "0.1e1", "99999999999999999999", "12345678901234567.1000",
    "12345678901234567890.123456789012345678", "100000000000000000000", "170141183460469231731.7", "1e-19", "1e28",
    "1.0000000000000000000", "-99999999999999999999.999999999999999999", "340282366920938463463.4",
]  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS)
def test_amounts_are_exact_or_refused(tmp_path: Path, number: str) -> None:
    body = b'{"GetAccountsDetail":[{"Accounts":[{"Transactions":[{"Debit":%b}]}]}]}' % number.encode()
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
def test_values_of_a_wrong_type_are_kept_as_the_codec_keeps_them(tmp_path: Path, body: bytes) -> None:
    bodies = [to_bytes(DOCUMENTED), body]
    assert by_arrow(tmp_path, bodies) == by_rows(tmp_path, bodies)


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


@pytest.mark.parametrize("shape", ["list", "object", "null"])
def test_usual_answers_never_become_python_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: Any) -> None:
    seen = _lines_of(monkeypatch, "decoded")
    bodies = [expected_body(f"t-{number}", size="medium", shape=shape) for number in range(30)]
    keys = [number if number % 2 else "text" for number in range(30)]
    found = by_arrow(tmp_path, bodies, keys)
    assert seen == []
    assert found == by_rows(tmp_path, bodies, keys)


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
    found = list(read_tables(*_order(spool(tmp_path, [large] * 5)), "out"))
    assert [tables[0].num_rows for tables in found] == [2, 2, 1]


def test_a_spool_that_lacks_answers_is_refused_at_its_end(tmp_path: Path) -> None:
    path, _ = spool(tmp_path, [to_bytes(DOCUMENTED)])
    with pytest.raises(StoreError, match="has 1 answers, not 2"):
        list(read_tables(path, "none", Commit(SHARD, Written(2, 0, "")), "out"))
