"""Differences between answers and their documentation are counted by path, never with values."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flinks_async import FlinksClient, WrongTypeError
from flinks_async.bulk import InputFile, Job, JSONLParts, Layout, Processes, Rules, Selection, status
from flinks_async.bulk.counters import Counters, Histogram
from flinks_async.bulk.report import json_report, report_page
from flinks_async.codec import Codec
from flinks_async.codec.observed import Drift, ObservedFields, from_json, joined
from flinks_async.models import Account, Meta, Transaction
from flinks_async.testing import FlinksServer, InMemoryTransport
from flinks_async.testing.data import expected_body

from .answers import to_bytes
from .bulk.memory_desk import Desk
from .bulk.server_desk import Desk as ServerDesk
from .bulk.server_desk import a_server
from .cli_support import cli

ACCOUNTS = "GetAccountsDetail[].Accounts[]."


def answer(account: dict[str, Any] | None = None, transaction: dict[str, Any] | None = None, **top: Any) -> bytes:
    """An answer in which nothing is missing, and what is given."""
    whole: dict[str, Any] = json.loads(expected_body("t", size="medium"))
    (detail,) = whole["GetAccountsDetail"]
    detail["Accounts"] = detail["Accounts"][:1]
    (first,) = detail["Accounts"]
    first["Transactions"] = [{**one, **(transaction or {})} for one in first["Transactions"][:3]]
    first |= account or {}
    return to_bytes({**whole, **top})


def without(name: str) -> bytes:
    whole = json.loads(answer())
    del whole["GetAccountsDetail"][0]["Accounts"][0][name]
    return to_bytes(whole)


def told(codec: Codec) -> dict[tuple[str, str], tuple[int, int]]:
    return {(one.kind, one.path): (one.answers, one.of) for one in codec.drift()}


def test_answers_as_documented_have_no_drift() -> None:
    codec = Codec()
    for _ in range(3):
        codec.decode(expected_body("t", size="small"))
        codec.decode(answer())
    assert codec.drift() == ()


def test_an_unknown_field_is_counted_once_in_each_answer() -> None:
    codec = Codec()
    codec.decode(answer())
    for number in range(10):
        codec.decode(answer({"Foo": "secret"}, {"Bar": number}))
    codec.decode(answer())
    assert told(codec) == {
        ("unknown field", f"{ACCOUNTS}Foo"): (10, 11),
        ("unknown field", f"{ACCOUNTS}Transactions[].Bar"): (10, 11),
    }
    assert "secret" not in repr(codec.drift())


@pytest.mark.parametrize("data", [b"", b'"GetAccountsDetail": null, "RequestId": "r", '])
def test_the_documented_fields_of_an_error_are_no_drift(data: bytes) -> None:
    codec = Codec()
    for name in (b"FlinksCode", b"flinksCode"):
        codec.decode(b'{%s"%s": "RETRY_LATER", "HttpStatusCode": 200, "Message": "m", "Foo": 1}' % (data, name))
    assert [(one.kind, one.path) for one in codec.drift()] == [("unknown field", "Foo")]


def test_a_missing_field_is_counted() -> None:
    codec = Codec()
    for _ in range(2):
        codec.decode(without("AccountNumber"))
        codec.decode(answer())
    assert told(codec) == {("missing field", f"{ACCOUNTS}AccountNumber"): (2, 4)}


def test_a_field_that_transactions_begin_to_lack_is_counted() -> None:
    codec = Codec()
    codec.decode(answer())
    lacking = json.loads(answer())
    for move in lacking["GetAccountsDetail"][0]["Accounts"][0]["Transactions"]:
        del move["Code"], move["Id"]
    for _ in range(3):
        codec.decode(to_bytes(lacking))
    assert told(codec) == {
        ("missing field", f"{ACCOUNTS}Transactions[].Code"): (3, 3),
        ("missing field", f"{ACCOUNTS}Transactions[].Id"): (3, 3),
    }


def test_fields_that_are_usually_absent_are_no_drift() -> None:
    codec = Codec()
    for _ in range(2):
        codec.decode(b'{"GetAccountsDetail":[{"LoginId":"l","CustomerId":"c"}],"RequestId":"r"}')
    assert codec.drift() == ()
    codec.decode(b'{"GetAccountsDetail":[{"LoginId":"l","CustomerId":"c"}],"RequestId":"r","New":1}')
    assert told(codec) == {("unknown field", "New"): (1, 1)}


@pytest.mark.parametrize("shape", ["array", "object"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "refused"])
def test_a_wrong_type_is_counted_whether_the_answer_is_kept_or_not(shape: str, kept: bool) -> None:
    codec = Codec(wrong_types="extra" if kept else "error")
    whole = json.loads(answer({"Balance": {"Available": 1, "Current": "canary", "Limit": None}}))
    if shape == "object":
        whole["GetAccountsDetail"] = whole["GetAccountsDetail"][0]
    for _ in range(2):
        if kept:
            codec.decode(to_bytes(whole))
        else:
            with pytest.raises(WrongTypeError):
                codec.decode(to_bytes(whole))
    codec.decode(answer())
    assert told(codec) == {("wrong type", f"{ACCOUNTS}Balance.Current"): (2, 3)}


def test_a_wrong_item_of_an_array_is_counted_at_the_array() -> None:
    codec = Codec(wrong_types="extra")
    codec.decode(answer({"Transactions": ["canary"]}))
    assert told(codec) == {("wrong type", f"{ACCOUNTS}Transactions"): (1, 1)}


@pytest.mark.parametrize("field", ["Type", "Category", "Currency", "AccountType"])
def test_a_new_value_of_an_open_set_is_counted_without_the_value(field: str) -> None:
    codec = Codec()
    for number in range(1000):
        codec.decode(answer({field: f"known-{number % 7}"}))
    assert codec.drift() == ()
    for _ in range(3):
        codec.decode(answer({field: "canary"}))
    assert told(codec) == {("new value", f"{ACCOUNTS}{field}"): (1, 3)}
    codec.decode(answer({field: "canary-2"}))
    codec.decode(answer({field: None}))
    assert told(codec) == {("new value", f"{ACCOUNTS}{field}"): (2, 5)}
    assert "canary" not in repr(codec.drift())


def test_values_of_open_sets_need_bounded_memory() -> None:
    observed = ObservedFields()
    known, new = observed.known_values(Account, "type")
    for number in range(10_000):
        new(f"value-{number}")
    new("x" * 1000)
    assert len(known) <= 257
    assert "x" * 1000 not in known


@pytest.mark.parametrize(
    "name",
    ["7641238", "jane@example.com", "a" * 65, "\x1b[31m", "1 514 555 0117", "id-7641238-1", "", "\u202e", "ключ"],
)
def test_a_name_that_may_be_data_is_not_shown(name: str) -> None:
    codec = Codec()
    for _ in range(2):
        codec.decode(answer({name: 1}))
    assert told(codec) == {("unknown field", f"{ACCOUNTS}*"): (2, 2)}


def test_a_map_with_data_as_keys_does_not_flood() -> None:
    codec = Codec()
    for number in range(50):
        codec.decode(answer({f"K{chr(65 + number % 26)}{chr(97 + key)}": 1 for key in range(26)}))
    names = [one.path for one in codec.drift()]
    assert len(names) == 17
    assert f"{ACCOUNTS}*" in names
    assert len(codec._decoder.observed._drift) == 17


def test_the_share_and_the_time_are_in_the_text() -> None:
    observed = ObservedFields(time=lambda: 1_795_831_800.0)
    for number in range(100):
        observed.record(Account, ["Foo"] if number not in (7, 8) else [], [])
        observed.end(observed.take())
    (drift,) = observed.drift()
    assert str(drift) == f"{ACCOUNTS}Foo: unknown field in 98 % of answers since 2026-11-28 02:10 UTC"
    shares = {
        (9_999, 10_000): "over 99 %",
        (7, 7): "100 %",
        (1, 3): "33 %",
        (1, 2000): "0.05 %",
        (1, 10**6): "under 0.01 %",
    }
    for (answers, of), share in shares.items():
        assert Drift("unknown field", "x", answers, of, 0.0).share == share


def test_differences_of_several_processes_add_up() -> None:
    one = Drift("unknown field", "Foo", 5, 10, 100.0)
    other = Drift("unknown field", "Foo", 2, 30, 90.0)
    third = Drift("missing field", "Bar", 50, 50, 1.0)
    assert joined([[one, third], [other]]) == (Drift("unknown field", "Foo", 7, 40, 90.0), third)
    counters = [Counters(drift=(one,)), Counters(drift=(other, third))]
    assert Counters.sum_of(counters).drift == joined([[one, third], [other]])


@pytest.mark.parametrize("data", [None, 1, "x", [1], [{"kind": "x"}], [{"kind": 1, "path": 2}], {"a": 1}])
def test_samples_that_somebody_edited_have_no_drift(data: object) -> None:
    assert from_json(data) == ()


async def test_answers_that_are_decoded_in_steps_and_between_them_are_counted_apart() -> None:
    """A large answer with a new field is decoded while small ones without it come and go."""
    odd, small = answer(None, {"Foo": 1}), answer()
    whole = json.loads(odd)
    (account,) = whole["GetAccountsDetail"][0]["Accounts"]
    account["Transactions"] = account["Transactions"] * 2000
    codec, lock = Codec(), asyncio.Lock()
    codec.decode(odd)
    done = asyncio.ensure_future(codec.decode_async(to_bytes(whole), Meta(), lock))
    others = 0
    while not done.done():
        codec.decode(small)
        others += 1
        await asyncio.sleep(0)
    assert others > 10
    assert told(codec) == {("unknown field", f"{ACCOUNTS}Transactions[].Foo"): (2, 2 + others)}


def test_threads_may_share_a_codec() -> None:
    codec = Codec()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(codec.decode, [answer({"Foo": 1}, {"Bar": 2})] * 400))
    counts = told(codec)
    assert set(counts) == {("unknown field", f"{ACCOUNTS}Foo"), ("unknown field", f"{ACCOUNTS}Transactions[].Bar")}


def test_transactions_on_access_count_with_the_next_answer() -> None:
    codec = Codec(transactions="on access")
    codec.decode(answer())  # the fields that it lacks are observed
    first = codec.decode(answer(None, {"Bar": 1}))
    assert len(first.accounts[0].transactions) == 3
    assert codec.drift() == ()
    codec.decode(answer())
    assert told(codec) == {("unknown field", f"{ACCOUNTS}Transactions[].Bar"): (1, 1)}


def test_hooks_of_users_are_left_alone() -> None:
    codec = Codec()
    codec.converter.register_structure_hook(str, lambda value, _: [value])
    for _ in range(3):
        codec.decode(answer())
    codec = Codec()
    codec.converter.register_structure_hook(Transaction, lambda value, _: value)
    for _ in range(3):
        codec.decode(answer({"Foo": 1}))
    assert told(codec) == {("unknown field", f"{ACCOUNTS}Foo"): (3, 3)}


# --- client, job, command line ----------------------------------------------------------------------------------------


async def test_the_statistics_of_a_client_have_it() -> None:
    transport = InMemoryTransport({}, default=answer({"Foo": "canary"}))
    async with FlinksClient(auth_secret="s", transport=transport) as flinks:
        await flinks.partner_access("token-1")
        (drift,) = flinks.stats().drift
        assert (drift.kind, drift.path, drift.answers, drift.of) == ("unknown field", f"{ACCOUNTS}Foo", 1, 1)
        derived = flinks.with_options(app_name="x")
        assert derived.stats().drift == (drift,)
        assert Counters().with_clients([flinks, derived], Histogram()).drift == (drift,), "they share a codec"


@pytest.mark.parametrize("selection", [None, Selection(columns="accounts.extra")])
def test_a_job_tells_it_in_log_status_and_report(tmp_path: Path, selection: Selection | None) -> None:
    desk = Desk(tmp_path, tokens=12)

    async def slow(request: Any) -> bytes:
        await asyncio.sleep(2)
        return answer({"Foo": "canary", "7641238": "canary"})

    desk.transport.default = slow
    with desk.job(selection=selection) as job:
        result = desk.run(job, Rules(concurrency=2))
    assert [(one.path, one.answers, one.of) for one in result.progress.drift] == [
        (f"{ACCOUNTS}*", 12, 12),
        (f"{ACCOUNTS}Foo", 12, 12),
    ]
    latest = status(desk.directory).latest
    assert latest is not None
    assert [one["path"] for one in latest["drift"]] == [f"{ACCOUNTS}*", f"{ACCOUNTS}Foo"]
    log = (desk.directory / "job.log").read_text()
    assert log.count(f"answers differ from their documentation: {ACCOUNTS}Foo: unknown field in ") == 1
    page = report_page(desk.directory).decode()
    assert "How answers differ from their documentation" in page
    assert f"<td>{ACCOUNTS}Foo</td>" in page
    assert json_report(desk.directory).count(f"{ACCOUNTS}Foo".encode()) == 1
    for text in (log, page, str(latest)):
        assert "canary" not in text
        assert "7641238" not in text


async def test_the_command_line_shows_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path, tokens=3)
    desk.transport.default = answer({f"New{name}": 1 for name in "ABCDEF"})

    def work() -> None:
        with desk.job() as job:
            desk.run(job)

    await asyncio.to_thread(work)
    shown = (await cli("status", desk.directory)).output
    assert "Answers differ from their documentation:\n" in shown
    assert f"  {ACCOUNTS}NewA: unknown field in 100 % of answers since " in shown
    assert shown.rstrip().endswith("  and 1 more")


async def test_worker_processes_add_up(tmp_path: Path) -> None:
    async with a_server() as server:
        desk = ServerDesk(tmp_path, server)
        desk.write(60)
        for number in range(1, 41):
            server.set_answer(f"token-{number}", answer({"Foo": "canary"}))
        source = InputFile(desk.path, Layout(column="token", key_column="user"))
        with Job.start(tmp_path / "job", source, JSONLParts(), {"": "here"}, shard_size=5) as job:
            async with desk.client() as client:
                result = await job.run(client, executor=Processes(2))
    foo = next(one for one in result.progress.drift if one.path == f"{ACCOUNTS}Foo")
    assert (foo.kind, foo.answers) == ("unknown field", 40)
    assert 40 <= foo.of <= 60


async def test_the_summary_of_a_run_tells_unknown_fields_and_no_missing_ones(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("token-1\ntoken-2\n")
    async with FlinksServer(auth_secret="s-1") as server:
        server.set_answer("token-1", answer({"Foo": "canary"}))
        server.set_answer("token-2", without("AccountNumber"))
        result = await cli("fetch", tokens, "--job", tmp_path / "job", "--concurrency", "1", server=server)
    assert result.exit_code == 0
    assert f"  {ACCOUNTS}Foo: unknown field in 50 % of answers since " in result.output
    assert "missing field" not in result.output
    assert "canary" not in result.output


def test_a_selection_hides_the_names_of_unknown_fields_that_it_leaves_out() -> None:
    found = (
        Drift("unknown field", f"{ACCOUNTS}John Smith", 5, 10, 1.0),
        Drift("unknown field", f"{ACCOUNTS}GetAccountsDetail[].x", 7, 10, 2.0),
        Drift("unknown field", f"{ACCOUNTS}Transactions[].Jane Doe", 3, 10, 1.0),
        Drift("unknown field", "GetAccountsDetail[]. Jane", 1, 10, 1.0),
        Drift("unknown field", "John", 2, 10, 1.0),
        Drift("missing field", f"{ACCOUNTS}Title", 10, 10, 1.0),
        Drift("wrong type", f"{ACCOUNTS}Holder.Name", 1, 10, 1.0),
    )
    hidden = {(one.path, one.answers, one.of) for one in Selection(tables="accounts").drift(found)}
    assert hidden == {
        (f"{ACCOUNTS}*", 7, 10), (f"{ACCOUNTS}Transactions[].*", 3, 10), ("GetAccountsDetail[].*", 1, 10), ("*", 2, 10),
        (f"{ACCOUNTS}Title", 10, 10), (f"{ACCOUNTS}Holder.Name", 1, 10),
    }  # fmt: skip
    shown = {one.path for one in Selection(columns=["accounts.extra", "fetches.extra"]).drift(found)}
    assert shown >= {f"{ACCOUNTS}John Smith", f"{ACCOUNTS}GetAccountsDetail[].x", "John"}
    assert {path for path in shown if "Jane" in path} == set()


async def test_no_file_of_a_job_with_a_selection_has_the_name_of_an_unknown_field(tmp_path: Path) -> None:
    """Not its log, samples, reports or failed rows, with and without worker processes."""
    for executor in (None, Processes(2)):
        async with a_server() as server:
            (tmp_path / repr(executor is None)).mkdir()
            desk = ServerDesk(tmp_path / repr(executor is None), server)
            desk.write(20)
            for number in range(20):
                server.set_answer(f"token-{number}", answer({"John Smith": 1}, {"Jane Doe": 2}, Jack=3))
            source = InputFile(desk.path, Layout(column="token", key_column="user"))
            with Job.start(desk.directory, source, JSONLParts(), selection=Selection(drop="holders")) as job:
                async with desk.client() as client:
                    result = await job.run(client, executor=executor)
            assert {one.path for one in result.progress.drift if one.kind == "unknown field"} == {
                f"{ACCOUNTS}*", f"{ACCOUNTS}Transactions[].*", "*",
            }  # fmt: skip
            report_page(desk.directory)
        for path in desk.directory.rglob("*"):
            for name in (b"John", b"Jane", b"Jack"):
                assert path.is_dir() or name not in path.read_bytes(), path
