"""What a job keeps: chosen tables and columns, pseudonyms, and nothing else on any disk."""

from __future__ import annotations

import hmac
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from copy import deepcopy
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from flinks_async import ConfigError, FlinksError, Secret
from flinks_async.bulk import (
    DaskExecutor,
    InputFile,
    Job,
    JobMismatchError,
    JSONLFile,
    JSONLParts,
    Layout,
    LedgerError,
    Place,
    Processes,
    Selection,
    SQLiteStore,
    Store,
    export,
    status,
    verify,
)
from flinks_async.bulk.executors.processes import environment_without
from flinks_async.bulk.executors.worker import Secrets
from flinks_async.bulk.files import crash_points
from flinks_async.bulk.report import report_page
from flinks_async.bulk.selection import FIELDS
from flinks_async.bulk.stores.answer_rows import TABLES
from flinks_async.codec import Codec
from flinks_async.models import Account, Transaction, wire_fields
from flinks_async.testing import FlinksServer
from flinks_async.testing.data import expected_answer
from flinks_async.testing.faults import KINDS

from ..answers import answers, to_bytes
from ..cli_support import cli
from ..support import examples
from .memory_desk import ORIGIN, Desk
from .server_desk import SECRET, a_server
from .server_desk import Desk as ServerDesk

KEY = "0123456789abcdef0123456789abcdef"
ACCOUNT = "7641238990017"
NAME = "Canary Holder"
EMAIL = "canary@example.com"
PHONE = "+1 514 555 0117"
STREET = "1 Canary Street"
HIDDEN = (NAME, EMAIL, PHONE, STREET, "canary")

ANSWER: dict[str, Any] = {
    "GetAccountsDetail": [
        {
            "LoginId": "login-1",
            "Institution": "FlinksCapital",
            "Login": {"Username": EMAIL, "LastRefresh": "2023-04-11T15:04:43.3464411"},
            "Accounts": [
                {
                    "Id": "account-1",
                    "Title": "Chequing",
                    "AccountNumber": ACCOUNT,
                    "Currency": "CAD",
                    "Balance": {"Current": Decimal("12.30"), "OddBalance": NAME},
                    "Holder": {"Name": NAME, "Email": EMAIL, "PhoneNumber": PHONE, "Address": {"CivicAddress": STREET}},
                    "Transactions": [
                        {"Date": "2025-01-31", "Description": "PAYROLL", "Credit": Decimal("1500.250"), "New": EMAIL}
                    ],
                    "OwnerName": NAME,
                }
            ],
            "Links": [{"rel": "x", "href": f"https://x/{EMAIL}"}],
            "Contact": {"canary": EMAIL},
        }
    ],
    "RequestId": "request-1",
    "Opaque": EMAIL,
}


def pseudonym(value: str, key: str = KEY) -> str:
    """As the docs tell users to compute it."""
    return hmac.new(key.encode(), value.encode(), "sha256").hexdigest()


def kept(selection: Selection, answer: Any = ANSWER) -> Any:
    body = answer if isinstance(answer, bytes) else to_bytes(answer)
    return json.loads(selection.function()(body), parse_float=Decimal)


# --- what is kept of an answer ----------------------------------------------------------------------------------------


def test_holders_are_dropped_and_unknown_fields_with_them() -> None:
    expected = deepcopy(ANSWER)
    (detail,) = expected["GetAccountsDetail"]
    (account,) = detail["Accounts"]
    del account["Holder"], account["OwnerName"], account["Balance"]["OddBalance"], account["Transactions"][0]["New"]
    del detail["Links"], detail["Contact"], detail["Login"]["Username"], expected["Opaque"]
    assert kept(Selection(drop="holders")) == expected


def test_numbers_keep_their_digits() -> None:
    body = b'{"GetAccountsDetail":[{"Accounts":[{"Balance":{"Current":12.30,"Limit":1E5,"Available":100000000000000000000}}]}]}'
    assert Selection().function()(body) == body


def test_only_chosen_columns_are_kept() -> None:
    found = kept(Selection(columns=["accounts.balance_current", "transactions.credit", "fetches.line"]))
    assert found == {
        "GetAccountsDetail": [
            {
                "Accounts": [
                    {"Balance": {"Current": Decimal("12.30")}, "Transactions": [{"Credit": Decimal("1500.250")}]}
                ]
            }
        ]
    }


def test_a_table_and_its_columns() -> None:
    assert kept(Selection(tables=["transactions"])) == {
        "GetAccountsDetail": [
            {
                "Accounts": [
                    {
                        "Id": "account-1",
                        "Currency": "CAD",
                        "Transactions": [
                            {"Date": "2025-01-31", "Description": "PAYROLL", "Credit": Decimal("1500.250")}
                        ],
                    }
                ]
            }
        ]
    }
    assert kept(Selection(tables=["fetches"])) == {"GetAccountsDetail": [{"Accounts": [{}]}], "RequestId": "request-1"}
    narrowed = Selection(tables=["accounts", "holders"], columns=["accounts.title"])
    assert narrowed.kept_tables == {"fetches", "accounts", "holders"}
    (account,) = kept(narrowed)["GetAccountsDetail"][0]["Accounts"]
    assert account == {
        "Id": "account-1",
        "Title": "Chequing",
        "Holder": ANSWER["GetAccountsDetail"][0]["Accounts"][0]["Holder"],
    }


def test_unknown_fields_are_kept_where_their_column_is_named() -> None:
    found = kept(Selection(columns=["accounts.extra", "fetches.extra"]))
    assert found == {
        "GetAccountsDetail": [{"Accounts": [{"Balance": {"OddBalance": NAME}, "OwnerName": NAME}]}],
        "Opaque": EMAIL,
    }


def test_a_dropped_field_is_gone_from_every_column() -> None:
    (account,) = kept(Selection(drop=["accounts.id"]))["GetAccountsDetail"][0]["Accounts"]
    assert "Id" not in account


def test_equal_values_get_equal_pseudonyms() -> None:
    selection = Selection(pseudonyms=["accounts.account_number", "holders.email"], pseudonym_key=KEY)
    (account,) = kept(selection)["GetAccountsDetail"][0]["Accounts"]
    assert account["AccountNumber"] == pseudonym(ACCOUNT)
    assert account["Holder"]["Email"] == pseudonym(EMAIL)
    assert kept(selection, {"GetAccountsDetail": {"Accounts": [{"AccountNumber": int(ACCOUNT)}]}}) == {
        "GetAccountsDetail": {"Accounts": [{"AccountNumber": pseudonym(ACCOUNT)}]}
    }
    assert kept(selection, {"GetAccountsDetail": [{"Accounts": [{"AccountNumber": None}]}]}) == {
        "GetAccountsDetail": [{"Accounts": [{"AccountNumber": None}]}]
    }


@pytest.mark.parametrize(
    "wrong", [{"Name": NAME}, [NAME], [[NAME]], [{"x": NAME}]], ids=["object", "array", "arrays", "objects"]
)
@pytest.mark.parametrize("selection", [Selection(), Selection(pseudonyms="accounts.title", pseudonym_key=KEY)])
def test_an_object_or_array_in_place_of_a_text_is_left_out(wrong: Any, selection: Selection) -> None:
    for place in ("Title", "Balance", "Transactions", "Holder"):
        answer = {"GetAccountsDetail": [{"Accounts": [{place: wrong, "Id": "a"}]}]}
        found = json.dumps(kept(selection, answer))
        assert ("Holder" in place and "Name" in wrong) or NAME not in found, place
    for place in ("Balance", "Holder", "Transactions"):
        assert kept(selection, {"GetAccountsDetail": [{"Accounts": [{place: NAME}]}]}) == {
            "GetAccountsDetail": [{"Accounts": [{}]}]
        }


@examples(150)
@given(answers, st.sets(st.sampled_from(sorted(FIELDS)), min_size=1), st.booleans())
def test_no_value_comes_from_a_field_that_is_not_kept(answer: Any, names: set[str], drop: bool) -> None:
    """The answer that is kept is a part of the whole one, can be decoded, and stays the same if it is selected again."""
    names = {name for name in names if FIELDS[name]}
    selection = Selection(drop=names) if drop else Selection(columns=names or ["fetches.line"])
    body = to_bytes(answer)
    chosen = selection.function()(body)

    def is_part_of(value: Any, source: Any) -> bool:
        if isinstance(value, dict):
            return all(key in source and is_part_of(item, source[key]) for key, item in value.items())
        if isinstance(value, list):
            return len(value) == len(source) and all(map(is_part_of, value, source))
        return bool(value == source)

    assert is_part_of(json.loads(chosen), json.loads(body))
    before, after = Codec().decode(body), Codec().decode(chosen)
    assert len(after.accounts) == len(before.accounts)
    for cls, models in ((Account, after.accounts), (Transaction, [t for a in after.accounts for t in a.transactions])):
        for model in models:
            for name, wire in wire_fields(cls):
                if (cls, wire) not in selection.fields and name not in ("transactions", "balance", "holder"):
                    assert getattr(model, name) is None
            assert not model.extra or (cls, "*") in selection.fields
    kept_already = selection.function()(chosen)
    assert kept_already == chosen


def test_every_column_has_its_field() -> None:
    """Choosing one column fills it, and no column of another field."""
    for table in TABLES:
        for column in table.columns:
            name = f"{table.name}.{column.name}"
            others = {one for one, fields in FIELDS.items() if set(fields) & set(FIELDS[name])}
            left = set(Selection(columns=[name]).left_out)
            assert not left & ({name} | {o for o in others if o.partition(".")[0] == table.name}), name


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"drop": "holdres"},
            r"^drop: there is no such table or column; the tables are fetches, accounts, transactions, hold",
        ),
        ({"drop": ["holders.nam"]}, r"^drop: there is no such column; holders has line, key, .*, name, email, "),
        ({"tables": ["holders.name"]}, r"^tables: there is no such "),
        ({"columns": ["holders"]}, r"^columns: there is no such column; .* such as accounts\.title$"),
        ({"drop": "fetches"}, r"always kept"),
        ({"drop": "accounts.line"}, r"always kept"),
        ({"pseudonyms": "accounts.balance_current", "pseudonym_key": KEY}, r"it is no text"),
        ({"pseudonyms": "accounts.last_refresh_text", "pseudonym_key": KEY}, r"it is no text"),
        ({"pseudonyms": "accounts.key", "pseudonym_key": KEY}, r"it is no text"),
        ({"pseudonyms": "holders.name", "drop": "holders", "pseudonym_key": KEY}, r"is left out"),
        ({"pseudonyms": "accounts.id"}, r"pseudonym_key is missing"),
        ({"pseudonyms": "accounts.id", "pseudonym_key": "canary-short"}, r"at least 32 characters"),
        ({"pseudonyms": "accounts.id", "pseudonym_key": 7}, r"must be a text"),
        ({"tables": 7}, r"takes names"),
        ({"columns": [7]}, r"takes names"),
    ],
)
def test_a_wrong_choice_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        Selection(**options)
    assert not any(word in str(raised.value) for word in ("holdres", "canary"))


def test_the_key_is_shown_nowhere() -> None:
    selection = Selection(pseudonyms="accounts.id", pseudonym_key=KEY)
    assert KEY not in repr(selection)
    assert KEY not in json.dumps(selection.describe())
    again = Selection.from_description(selection.describe())
    assert again.with_key(KEY) == selection
    with pytest.raises(ConfigError, match=r"another key \(fingerprint [0-9a-f]{16}\) than that of the job"):
        again.with_key("f" * 32)


# --- a job ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = Desk(tmp_path, tokens=6)
    desk.transport.default = ANSWER
    return desk


@pytest.fixture
def seen() -> Iterator[list[bytes]]:
    """Everything that is in the job's directory at any step of a commit."""
    found: list[bytes] = []
    yield found
    crash_points.hook = None


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]


def parquet() -> Store:
    pytest.importorskip("pyarrow")
    from flinks_async.bulk.stores.parquet import ParquetStore

    return ParquetStore("none")


def duckdb() -> Store:
    pytest.importorskip("duckdb")
    from flinks_async.bulk.stores.duckdb import DuckDBStore

    return DuckDBStore()


PLAIN = Selection(drop=["holders"], pseudonyms=["accounts.account_number"], pseudonym_key=KEY)


@pytest.mark.parametrize("make", [JSONLParts, JSONLFile, SQLiteStore, parquet, duckdb])
@pytest.mark.usefixtures("closed_databases")
def test_what_is_left_out_is_in_no_file_at_any_moment(desk: Desk, seen: list[bytes], make: Callable[[], Store]) -> None:
    crash_points.hook = lambda _: seen.extend(contents(desk.directory))
    desk.transport.answers["token-3"] = {
        "status": 401,
        "GetAccountsDetail": {"Accounts": [{"Balance": {"Current": "x"}}]},
    }
    with Job.start(desk.directory, desk.source(), make(), ORIGIN, shard_size=3, selection=PLAIN) as job:
        result = desk.run(job)
    assert result.totals.fetched >= 5
    assert verify(desk.directory) == []
    everything = b"\n".join([*seen, *contents(desk.directory)])
    assert len(seen) > 10
    for hidden in (*HIDDEN, ACCOUNT, KEY):
        assert hidden.encode().lower() not in everything.lower(), hidden
    assert pseudonym(ACCOUNT).encode() in everything
    assert b"<dt>pseudonyms</dt><dd>accounts.account_number</dd>" in report_page(desk.directory)
    manifest = json.loads((desk.directory / "manifest.json").read_bytes())
    assert manifest["version"] == 2
    assert "holders" in manifest["selection"]["left_out"]
    assert manifest["selection"]["key_fingerprint"] == PLAIN.key_fingerprint


def test_without_a_selection_everything_is_kept(desk: Desk) -> None:
    desk.complete()
    assert json.loads((desk.directory / "manifest.json").read_bytes())["version"] == 1
    assert ACCOUNT.encode() in b"".join(contents(desk.directory))
    assert NAME in json.dumps(desk.answers[2])


@pytest.mark.usefixtures("closed_databases")
def test_a_table_that_is_left_out_is_empty(desk: Desk) -> None:
    selection = Selection(tables=["transactions"])
    with Job.start(desk.directory, desk.source(), SQLiteStore(), ORIGIN, selection=selection) as job:
        desk.run(job)
    assert verify(desk.directory) == []
    with closing(sqlite3.connect(desk.directory / "answers.sqlite")) as db:
        count = {table.name: db.execute(f"SELECT count(*) FROM {table.name}").fetchone()[0] for table in TABLES}
        row = db.execute("SELECT account_id, currency, description, credit, extra FROM transactions").fetchone()
        fetch = db.execute("SELECT request_id, accounts, without_accounts, extra FROM fetches").fetchone()
    assert count == {"fetches": 6, "accounts": 0, "transactions": 6, "holders": 0}
    assert row == ("account-1", "CAD", "PAYROLL", "1500.250", None)
    assert fetch == (None, 1, None, None)


def test_pseudonyms_join_two_nights_with_one_key(tmp_path: Path) -> None:
    found = []
    for night, key in (("1", KEY), ("2", KEY), ("3", KEY[::-1])):
        (tmp_path / night).mkdir()
        desk = Desk(tmp_path / night, tokens=2)
        desk.transport.default = ANSWER
        with desk.job(selection=evolve(PLAIN, pseudonym_key=key, key_fingerprint=None)) as job:
            desk.run(job)
        found.append(desk.answers[2]["response"]["GetAccountsDetail"][0]["Accounts"][0]["AccountNumber"])
    assert found[0] == found[1] == pseudonym(ACCOUNT)
    assert found[2] == pseudonym(ACCOUNT, KEY[::-1])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (None, r"`drop` was holders and is now not set; `pseudonyms` was accounts.account_number and is now not set"),
        (Selection(drop=["holders", "accounts.title"]), r"`drop` was holders and is now accounts.title, holders"),
        (
            evolve(PLAIN, pseudonym_key=KEY[::-1], key_fingerprint=None),
            r"the fingerprint of the key of pseudonyms was [0-9a-f]{16} and is now [0-9a-f]{16}",
        ),
        (evolve(PLAIN, tables=("accounts",)), r"`tables` was not set and is now accounts"),
    ],
)
def test_a_resume_with_another_choice_is_refused(desk: Desk, asked: Selection | None, message: str) -> None:
    desk.job(selection=PLAIN).close()
    with pytest.raises(JobMismatchError, match=message):
        desk.job(selection=asked)
    desk.job(selection=PLAIN).close()


def test_a_job_that_keeps_everything_does_not_resume_with_less(desk: Desk) -> None:
    desk.job().close()
    with pytest.raises(JobMismatchError, match="`drop` was not set and is now holders"):
        desk.job(selection=Selection(drop="holders"))


def test_resume_takes_the_choice_of_the_job_and_needs_its_key(desk: Desk) -> None:
    desk.transport.answers["token-2"] = KINDS["http_503"]
    with desk.job(selection=PLAIN) as job:
        desk.run(job)
    for key in (None, "", "f" * 32):
        with pytest.raises(ConfigError, match="pseudonym_key"):
            Job.resume(desk.directory, pseudonym_key=key)
    with Job.resume(desk.directory, pseudonym_key=KEY) as job:
        desk.transport.answers["token-2"] = ANSWER
        assert job.retry() == 1
        desk.run(job)
        assert job.totals.fetched == 6
    numbers = {
        line["response"]["GetAccountsDetail"][0]["Accounts"][0]["AccountNumber"]
        for line in map(json.loads, export(desk.directory))
    }
    assert numbers == {pseudonym(ACCOUNT)}


def test_a_manifest_that_lost_its_selection_is_broken(desk: Desk) -> None:
    desk.job(selection=PLAIN).close()
    path = desk.directory / "manifest.json"
    manifest = json.loads(path.read_bytes())
    for broken in (
        {**manifest, "selection": None},
        {**manifest, "version": 1},
        {**manifest, "selection": {**manifest["selection"], "drop": ["holdres"]}},
        {**manifest, "selection": {**manifest["selection"], "mask": []}},
        {**manifest, "selection": {"drop": 7}},
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(LedgerError, match="is broken"):
            status(desk.directory)


# --- in worker processes, and on a cluster ----------------------------------------------------------------------------


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[ServerDesk]:
    async with a_server() as server:
        desk = ServerDesk(tmp_path, server)
        desk.write(20)
        yield desk


def of_server(token: str) -> tuple[set[str], set[str]]:
    """The account numbers, and the names and addresses, of the simulator's answer."""
    accounts = expected_answer(token)["GetAccountsDetail"][0]["Accounts"]
    holders = [account["Holder"] for account in accounts if account["Holder"]]
    return {a["AccountNumber"] for a in accounts}, {h[name] for h in holders for name in ("Name", "Email")}


class Watched(JSONLParts):
    """Keeps what is in the spools of workers."""

    spools: list[bytes]

    def put(self, commit: Any, spool: Path) -> dict[str, Any]:
        self.spools.append(spool.read_bytes())
        return super().put(commit, spool)


async def kept_by_workers(desk: ServerDesk, executor: Any) -> None:
    store = Watched()
    store.spools = []
    source = InputFile(desk.path, Layout(column="token", key_column="user"))
    with Job.start(desk.directory, source, store, {"": "here"}, shard_size=5, selection=PLAIN) as job:
        async with desk.client() as client:
            result = await job.run(client, executor=executor)
    assert (result.state, result.totals.fetched) == ("complete", 20)
    everything = b"".join([*store.spools, *contents(desk.directory)])
    assert len(store.spools) == 4
    for number in range(1, 21):
        accounts, holders = of_server(f"token-{number}")
        for hidden in holders:
            assert hidden.encode() not in everything
        found = {a["AccountNumber"] for a in desk.answers[number + 1]["response"]["GetAccountsDetail"][0]["Accounts"]}
        assert found == {pseudonym(account) for account in accounts}
    assert KEY.encode() not in everything
    assert verify(desk.directory) == []


async def test_worker_processes_keep_the_same(processes: ServerDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLINKS_PSEUDONYM_KEY", "f" * 32)  # not the job's
    monkeypatch.setenv("OTHER", f"x{KEY}")
    environment = environment_without([Secrets(Secret(SECRET)), Secrets(Secret(KEY))])
    assert not {"FLINKS_PSEUDONYM_KEY", "OTHER"} & environment.keys()
    await kept_by_workers(processes, Processes(2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
@pytest.mark.parametrize("key", [KEY, None, "f" * 32], ids=["the key", "no key", "another key"])
async def test_workers_of_a_cluster_find_the_key_themselves(processes: ServerDesk, key: str | None) -> None:
    distributed = pytest.importorskip("distributed")
    env = {"TEST_SECRET": SECRET} | ({} if key is None else {"FLINKS_PSEUDONYM_KEY": key})
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, security=True, host="127.0.0.1", dashboard_address="127.0.0.1:0",
        silence_logs=60, env=env,
    ) as cluster:  # fmt: skip
        cluster.wait_for_workers(1, timeout=60)
        executor = DaskExecutor(cluster, workers=1, secret_env="TEST_SECRET")
        if key == KEY:
            await kept_by_workers(processes, executor)
            return
        with pytest.raises(FlinksError, match="FLINKS_PSEUDONYM_KEY" if key is None else "is another key"):
            await kept_by_workers(processes, executor)


# --- the command line -------------------------------------------------------------------------------------------------


async def test_the_command_line_keeps_only_what_was_chosen(tmp_path: Path) -> None:
    tokens, key_file, job = tmp_path / "tokens.txt", tmp_path / "key.txt", tmp_path / "job"
    tokens.write_text("token-1\ntoken-2\n")
    key_file.write_text(f"{KEY}\n")
    chosen = ("--drop", "holders,accounts.title", "--pseudonyms", "accounts.account_number")
    async with FlinksServer(auth_secret="s-canary-1") as server:
        result = await cli("fetch", tokens, "--job", job, *chosen, "--pseudonym-key-file", key_file, server=server)
        assert result.exit_code == 0, result.output
        again = await cli("fetch", tokens, "--job", job, *chosen, server=server, FLINKS_PSEUDONYM_KEY=KEY)
        assert again.exit_code == 0, again.output
        other = await cli("fetch", tokens, "--job", job, "--drop", "holders", server=server)
        assert other.exit_code == 2, other.output
        assert "`drop` was accounts.title, holders and is now holders" in other.output
        missing = await cli("fetch", tokens, "--job", job, *chosen, server=server)
        assert missing.exit_code == 2
        assert "FLINKS_PSEUDONYM_KEY" in missing.output
        typo = await cli("fetch", tokens, "--job", tmp_path / "other", "--drop", "holdres", server=server)
        assert typo.exit_code == 2
        assert "the tables are fetches, accounts, transactions, holders" in typo.output
        assert not (tmp_path / "other").exists()
        alone = await cli("fetch", tokens, "--job", job, "--pseudonym-key-file", key_file, server=server)
        assert (alone.exit_code, "--pseudonyms" in alone.output) == (2, True)
        retried = await cli("retry", job, "--class", "all", server=server)
        assert retried.exit_code == 2
        assert "pseudonym_key" in retried.output
        assert (
            await cli("retry", job, "--class", "all", "--pseudonym-key-file", key_file, server=server)
        ).exit_code == 0
        printed = await cli("fetch", tokens, "--out", "-", "--tables", "accounts", server=server)
    told = (await cli("status", job)).output
    assert "left out: " in told
    assert "accounts.title" in told
    assert "replaced by pseudonyms: accounts.account_number" in told
    assert json.loads((await cli("status", job, "--json")).output)["selection"]["drop"] == ["accounts.title", "holders"]
    everything = b"".join(contents(job))
    for token in ("token-1", "token-2"):
        accounts, holders = of_server(token)
        assert not any(f'"{value}"'.encode() in everything for value in (*accounts, *holders))
        assert all(pseudonym(account).encode() in everything for account in accounts)
        assert not any(value in printed.output for value in holders)
        assert all(account in printed.output for account in accounts)
    assert KEY.encode() not in everything


def test_a_place_names_the_tables_that_get_rows(desk: Desk) -> None:
    places: list[Place] = []

    class Noting(JSONLParts):
        def open(self, place: Place, *, existing: bool = False) -> None:
            places.append(place)
            super().open(place, existing=existing)

    with Job.start(desk.directory, desk.source(), Noting(), ORIGIN, selection=Selection(tables=["accounts"])):
        pass
    assert places[0].tables == {"fetches", "accounts"}
