"""The models that users receive."""

from __future__ import annotations

import copy
import datetime as dt
import gc
import inspect
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

import attrs
import cattrs
import msgspec
import pytest
from attrs import evolve
from attrs.exceptions import FrozenInstanceError
from cattrs.preconf.msgspec import make_converter

from flinks_async import AttemptStarted, ConnectionStats, Fetched, Retry, Verdict
from flinks_async.codec import Codec
from flinks_async.models import (
    MODELS,
    Account,
    AccountsDetail,
    Address,
    Balance,
    Holder,
    Link,
    Login,
    Meta,
    Model,
    PartnerAccessResponse,
    Timestamp,
    Transaction,
    wire_fields,
)
from flinks_async.schema import DEFAULT_WIRE_STATE, WireState
from flinks_async.testing.in_memory import make_response

from .answers import DOCUMENTED, WIRE, from_bytes, payload, to_bytes

ANSWER = Codec().decode(to_bytes(DOCUMENTED))
DETAIL = ANSWER.details[0]
ACCOUNT = ANSWER.accounts[0]
ONE_OF_EACH = [
    ANSWER,
    DETAIL,
    ACCOUNT,
    ACCOUNT.transactions[0],
    ACCOUNT.balance,
    ACCOUNT.holder,
    DETAIL.login,
    DETAIL.links[0],
]
EVERYTHING: list[Any] = [*ONE_OF_EACH, ACCOUNT.holder.address if ACCOUNT.holder else None]


def test_wire_names_are_the_documented_ones() -> None:
    assert {cls.__name__: [wire for _, wire in wire_fields(cls)] for cls in MODELS} == {
        name: list(fields_) for name, fields_ in WIRE.items()
    }


@pytest.mark.parametrize("cls", MODELS)
def test_every_field_is_optional(cls: type[Model]) -> None:
    empty = cls()
    assert empty.wire_state is DEFAULT_WIRE_STATE
    assert empty.to_dict().keys() == set(WIRE[cls.__name__])
    assert not hasattr(empty, "__dict__")
    with pytest.raises(FrozenInstanceError):
        empty.wire_state = WireState()


@pytest.mark.parametrize("model", EVERYTHING, ids=lambda model: type(model).__name__)
def test_models_are_plain_data(model: Model) -> None:
    for copied in (
        *(pickle.loads(pickle.dumps(model, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
        copy.copy(model),
        copy.deepcopy(model),
        evolve(model),
    ):
        assert type(copied) is type(model)
        assert copied == model
        assert hash(copied) == hash(model)
        assert repr(copied) == repr(model)
        assert copied.to_dict() == model.to_dict()
        assert copied.wire_state == model.wire_state
    assert model != object()
    assert b"msgspec" not in pickle.dumps(model)  # other versions must read it


@pytest.mark.parametrize("model", EVERYTHING, ids=lambda model: type(model).__name__)
def test_a_changed_field_makes_another_value(model: Model) -> None:
    name, _ = wire_fields(type(model))[0]
    other = evolve(model, **{name: "changed"})
    assert other != model
    assert other.to_dict() != model.to_dict()


def test_unknown_fields_are_part_of_equality() -> None:
    for state in (WireState({"New": 1}), WireState(MappingProxyType({"New": 1}))):
        other = evolve(ACCOUNT, wire_state=state)
        assert other != ACCOUNT
        assert other == evolve(ACCOUNT, wire_state=WireState({"New": 1}))
        assert hash(other) == hash(evolve(ACCOUNT, wire_state=WireState({"New": 1})))
    first, second = (Codec().decode(b'{"GetAccountsDetail":[{"Accounts":[{"New":%d}]}]}' % n) for n in (1, 2))
    assert first != second
    assert first == Codec().decode(first.to_json())


def test_whether_a_field_was_absent_or_null_is_not_part_of_equality() -> None:
    assert Codec().decode(b'{"RequestId":null}') == Codec().decode(b"{}")
    assert Codec().decode(b'{"GetAccountsDetail":{"Links":null}}') == Codec().decode(
        b'{"GetAccountsDetail":{"Links":[]}}'
    )


def test_how_an_answer_was_obtained_is_not_part_of_equality() -> None:
    assert ANSWER.with_meta(Meta(attempts=9)) == ANSWER
    assert ANSWER.with_meta(Meta(attempts=9)).meta.attempts == 9


PERSONAL = {
    Transaction: ("date", "code", "description", "debit", "credit", "balance"),
    Balance: ("available", "current", "limit"),
    Address: ("civic_address", "city", "postal_code", "po_box"),
    Holder: ("name", "email", "phone_number"),
    Account: (
        "title",
        "account_number",
        "last_four_digits",
        "transit_number",
        "overdraft_limit",
        "eft_eligible_ratio",
        "e_transfer_eligible_ratio",
    ),
    Login: ("username", "id", "last_refresh"),
    Link: ("href", "example"),
    AccountsDetail: ("login_id", "customer_id", "tag"),
}


@pytest.mark.parametrize(("cls", "names"), PERSONAL.items())
def test_personal_data_is_masked(cls: type[Model], names: tuple[str, ...]) -> None:
    shown = repr(cls(**dict.fromkeys(names, "CANARY")))
    assert "CANARY" not in shown
    assert shown.count("***") == len(names)
    assert f"{names[0]}=None" in repr(cls())


@pytest.mark.parametrize("cls", MODELS)
def test_amounts_and_dates_are_masked_in_every_class(cls: type[Model]) -> None:
    for name, kind in WIRE[cls.__name__].items():
        if kind in ("money", "date", "timestamp"):
            (attribute,) = (attribute for attribute, wire in wire_fields(cls) if wire == name)
            assert f"{attribute}=***" in repr(cls(**{attribute: "CANARY"}))


def test_the_repr_of_an_answer_is_one_short_line() -> None:
    request_id = DOCUMENTED["RequestId"]
    assert repr(ANSWER) == f"<PartnerAccessResponse request_id='{request_id}', 1 account, 1 transaction>"
    many = Codec().decode(payload((2, 60)))
    assert repr(many) == f"<PartnerAccessResponse request_id='{many.request_id}', 2 accounts, 120 transactions>"
    assert repr(PartnerAccessResponse()) == "<PartnerAccessResponse request_id=None, 0 accounts, 0 transactions>"
    assert len(repr(PartnerAccessResponse(request_id="r" * 10_000))) < 150


def test_the_repr_of_an_array_is_its_length() -> None:
    account = Codec().decode(payload((1, 60))).accounts[0]
    assert repr(account).startswith("Account(transactions=<60>, balance=Balance(available=***,")
    assert "accounts=<1>" in repr(DETAIL)
    assert "links=<1>" in repr(DETAIL)


def test_no_personal_data_in_any_repr() -> None:
    shown = " ".join(f"{model!r} {model} {[model]} {model:}" for model in EVERYTHING)
    for value in (
        "7641238",
        "12347",
        "John",
        "johndoe",
        "333-7777",
        "york",
        "TOR",
        "M5J",
        "Greatday",
        "5e115eac",
        "Chequing CAD",
        "PAYROLL",
        "/GetAccounts",
        "1000.4",
        "5405.5",
        "2025",
        "2023",
        "_wire",
    ):
        assert value not in shown
    assert "id='d9b2d63d-a233-4123-847a-7090d5c0f4a1'" in shown  # tells one transaction from another


@pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
def test_an_answer_with_objects_of_a_hook_has_a_repr(cls: type[Model]) -> None:
    codec = Codec()
    codec.converter.register_structure_hook(cls, lambda value, _: ("hooked", len(value)))
    assert repr(codec.decode(to_bytes(DOCUMENTED)))


def test_neither_names_nor_values_of_unknown_fields_are_shown() -> None:
    body = b'{"CANARY-1":"CANARY","CANARY-2":1,"GetAccountsDetail":[{"Accounts":[{"Holder":{"CANARY":{"Name":"CANARY"}}}]}]}'
    answer = Codec().decode(body)
    assert answer.extra.keys() == {"CANARY-1", "CANARY-2"}
    holder = answer.accounts[0].holder
    assert holder is not None
    for shown in (answer, holder, answer.wire_state, holder.wire_state):
        assert "CANARY" not in repr(shown)
    assert "2 unknown fields" in repr(answer)
    assert "1 unknown field)" in repr(holder)
    assert "2 unknown fields" in repr(answer.wire_state)


def test_missing_fields_are_left_out_or_null() -> None:
    answer = Codec().decode(b'{"GetAccountsDetail":[{"LoginId":"a","Accounts":[{}]}],"New":1}')
    assert answer.to_dict() == {"GetAccountsDetail": [{"LoginId": "a", "Accounts": [{}]}], "New": 1}
    whole = answer.to_dict(missing="null")
    assert whole["RequestId"] is None
    assert whole["New"] == 1
    (detail,) = whole["GetAccountsDetail"]
    assert detail.keys() == set(WIRE["AccountsDetail"])
    assert detail["Accounts"] == [dict.fromkeys(WIRE["Account"])]
    assert detail["Links"] is None
    assert from_bytes(answer.to_json(missing="null")) == whole


CHANGES: list[Callable[..., Any]] = [
    evolve,
    *([copy.replace] if sys.version_info >= (3, 13) and hasattr(Balance, "__replace__") else []),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_value_is_written_even_if_the_field_was_absent_or_null(change: Callable[..., Any]) -> None:
    (account,) = Codec().decode(b'{"GetAccountsDetail":{"Accounts":[{"Balance":{"Current":5.10}}]}}').accounts
    assert account.balance is not None
    balance = change(account.balance, available=Decimal("7.00"))
    assert balance.to_json() == b'{"Available":7.00,"Current":5.10}'
    assert change(balance, available=None).to_json() == b'{"Current":5.10}'
    assert change(account, title="New").to_json() == b'{"Balance":{"Current":5.10},"Title":"New"}'
    for came in (b'{"Accounts":null}', b"{}"):
        detail = Codec().decode(b'{"GetAccountsDetail":%b}' % came).details[0]
        assert detail.to_json() == came
        assert change(detail, accounts=(Account(wire_state=account.wire_state),)).to_json() == (
            b'{"Accounts":[{"Balance":null}]}'
        )
    assert change(Codec().decode(b"{}"), get_accounts_detail=()).to_json() == b'{"GetAccountsDetail":[]}'


def test_a_frozen_answer_shares_no_data_that_can_change() -> None:
    body = b'{"New":{"a":[1]},"GetAccountsDetail":{"New":{"a":[1]}}}'
    answer = Codec().decode(body)
    (detail,) = answer.details
    before = answer.to_json()
    whole = answer.to_dict()
    whole["New"]["a"].append(2)
    whole["GetAccountsDetail"]["New"]["b"] = 2
    for model in (answer, detail):
        model.to_dict()["New"]["a"].append(2)
        model.extra["New"]["a"].append(2)
        model.wire_state.extra["New"]["a"].append(2)
        with pytest.raises(TypeError):
            model.wire_state.extra["New"] = 2
    assert answer.to_json() == before


def test_to_dict_shares_no_data_with_objects_of_a_hook() -> None:
    codec = Codec()
    codec.converter.register_structure_hook(Transaction, lambda value, _: value)
    answer = codec.decode(b'{"GetAccountsDetail":{"Accounts":[{"Transactions":[{"Id":"a"}]}]}}')
    before = answer.to_json()
    answer.to_dict()["GetAccountsDetail"]["Accounts"][0]["Transactions"][0]["Id"] = "b"
    assert answer.to_json() == before


def test_a_model_made_by_hand_can_be_written() -> None:
    made = PartnerAccessResponse(
        get_accounts_detail=(DETAIL,),
        request_id="a",
    )
    assert made.to_dict()["GetAccountsDetail"] == DOCUMENTED["GetAccountsDetail"]
    assert Balance(current=Decimal("12.30")).to_json() == b'{"Available":null,"Current":12.30,"Limit":null}'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2023-04-11T15:04:43.3464411Z", dt.datetime(2023, 4, 11, 15, 4, 43, 346441, tzinfo=dt.UTC)),
        ("2023-05-12T19:09:02.9650245Z", dt.datetime(2023, 5, 12, 19, 9, 2, 965024, tzinfo=dt.UTC)),
        ("2023-04-11T15:04:43", dt.datetime(2023, 4, 11, 15, 4, 43, tzinfo=dt.UTC)),
        ("2023-04-11T15:04:43.3464411-04:00", dt.datetime(2023, 4, 11, 19, 4, 43, 346441, tzinfo=dt.UTC)),
        ("0001-01-01T00:00:00", dt.datetime(1, 1, 1, tzinfo=dt.UTC)),
        ("0001-01-01T00:00:00+14:00", None),
        ("9999-12-31T23:59:59-14:00", None),
        ("2023-02-30T00:00:00", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_timestamps_keep_their_text_and_know_their_time(text: str, value: dt.datetime | None) -> None:
    timestamp = Timestamp.parse(text)
    assert timestamp == Timestamp(text, value)
    assert timestamp.text == text
    assert timestamp.value is None or timestamp.value.utcoffset() == dt.timedelta(0)
    assert pickle.loads(pickle.dumps(timestamp)) == timestamp


def test_wire_state_pickles() -> None:
    state = WireState(MappingProxyType({"a": [Decimal("1.0")]}), frozenset({"B"}), frozenset({"C"}))
    assert pickle.loads(pickle.dumps(state)) == state
    assert copy.deepcopy(state) == state


CANARY = "Canary Holder 7641238"


COMPARISONS = (
    "ONE == OTHER",
    "Fetched(1, ONE) == Fetched(1, OTHER)",
    "account(ONE) == Account()",
    "account(ONE).holder == Holder(name='x')",
    "account(ONE).balance == Balance(current=Decimal(2))",
    "account(ONE).transactions == (Transaction(),)",
    "ONE.details[0] == AccountsDetail()",
    "ONE.details[0].login == Login()",
    "account(ONE).wire_state == Account().wire_state",
    "{1: ONE} == {1: OTHER}",
)


def test_the_diff_of_a_failed_assertion_shows_no_personal_data(tmp_path: Path) -> None:
    """Looks at what pytest says of objects that differ."""
    test = tmp_path / "test_it.py"
    tests = "".join(f"def test_{n}():\n    assert {c}\n\n" for n, c in enumerate(COMPARISONS))
    test.write_text(
        f"""
from decimal import Decimal
from flinks_async import Fetched
from flinks_async import AttemptStarted, ConnectionStats, Fetched, Retry, Verdict
from flinks_async.codec import Codec
from flinks_async.models import *

ONE = Codec().decode(b'{{"GetAccountsDetail": [{{"LoginId": "%s", "Tag": "%s", "Accounts": [{{"Title": "%s", "X": "%s",'
    b' "Balance": {{"Current": 7641238}}, "Holder": {{"Name": "%s"}}, "Transactions": [{{"Description": "%s"}}]}}],'
    b' "Login": {{"Id": "%s"}}}}]}}'.replace(b"%s", b"{CANARY}"))
OTHER = Codec().decode(b"{{}}")

def account(answer): return answer.accounts[0]

{tests}"""
    )
    command = [sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider", "-p", "no:randomly", str(test)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)
    assert f"{len(COMPARISONS)} failed" in run.stdout, run.stdout + run.stderr
    (_, failures) = run.stdout.split("= FAILURES =")
    told = [line for line in failures.splitlines() if line.startswith("E")]
    assert sum(bool(re.match(r"E +(AssertionError: )?assert ", line)) for line in told) == len(COMPARISONS)
    assert not any("Canary" in line or "7641238" in line for line in told)


def test_the_repr_of_tables_shows_no_personal_data() -> None:
    pytest.importorskip("pyarrow")
    answer = Codec().decode(b'{"GetAccountsDetail": [{"Accounts": [{"Title": "Canary"}]}]}')
    assert repr(answer.to_arrow()) == "Tables(accounts=<1 row>, transactions=<0 rows>, holders=<0 rows>)"


@pytest.mark.parametrize("module", ["", ".config", ".models", ".errors", ".client_options", ".messages", ".observe"])
def test_tools_can_read_the_annotations_of_every_record(module: str) -> None:
    for cls in vars(import_module(f"flinks_async{module}")).values():
        if inspect.isclass(cls) and attrs.has(cls):
            assert get_type_hints(cls).keys() >= {field.name for field in attrs.fields(cls)}


def test_records_can_be_turned_into_dictionaries() -> None:
    response = make_response({"RequestId": "r"})
    for plain in (attrs.asdict(response), cattrs.unstructure(response), cattrs.Converter().unstructure(response)):
        assert plain["status"] == 200
        assert "RequestId" in str(plain["body"])


def test_equal_answers_have_one_hash_and_unknown_fields_count() -> None:
    one, same, other = (
        Codec().decode(body) for body in (b'{"RequestId":"r"}', b'{"RequestId":"r"}', b'{"RequestId":"r","X":1}')
    )
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != object()
    assert Balance() != Login()


@pytest.mark.parametrize("cls", [Retry, Timestamp, AttemptStarted, Verdict, Fetched, ConnectionStats])
def test_a_record_compares_hashes_and_shows_itself_as_attrs_would_make_it(cls: Any) -> None:
    """`Record` spares the import to compile these methods for each class."""
    specified = {a.name: attrs.field(default=1, eq=a.eq, repr=a.repr) for a in attrs.fields(cls)}
    generated: Any = attrs.make_class(cls.__name__, specified, frozen=True)
    names = [a.name for a in attrs.fields(cls)]

    def made(base: Any, *values: object) -> Any:
        record = object.__new__(base)
        for name, value in zip(names, values, strict=False):
            object.__setattr__(record, name, value)
        return record

    values = tuple(range(len(names)))
    assert repr(made(cls, *values)) == repr(made(generated, *values))
    assert made(cls, *values) == made(cls, *values)
    assert made(cls, *values) != made(generated, *values)
    assert hash(made(cls, *values)) == hash(made(cls, *values))
    for number in range(len(names)):
        others = (*values[:number], -7, *values[number + 1 :])
        assert made(cls, *others) != made(cls, *values)
    assert repr(made(cls)) == f"{cls.__name__}()"  # in a traceback of `__init__`


@pytest.mark.parametrize("cls", MODELS)
def test_tools_see_a_model_as_a_frozen_attrs_class(cls: type[Model]) -> None:
    names = [name for name, _ in wire_fields(cls)]
    attributes = attrs.fields_dict(attrs.resolve_types(cls))  # type: ignore[type-var]
    assert [name for name in attributes if name not in ("_wire", "meta")] == names
    assert all(attributes[name].type == get_type_hints(cls)[name] for name in names)
    parameters = inspect.signature(cls).parameters
    assert list(parameters)[: len(names)] == names
    assert {attribute.alias: attribute.default for attribute in attributes.values()} == {
        name: parameter.default for name, parameter in parameters.items()
    }
    empty = cls()
    with pytest.raises(FrozenInstanceError):
        setattr(empty, names[0], None)
    with pytest.raises(FrozenInstanceError):
        delattr(empty, names[0])
    with pytest.raises(TypeError):
        cls(unheard="of")  # type: ignore[call-arg]


@pytest.mark.parametrize("model", EVERYTHING, ids=lambda model: type(model).__name__)
def test_msgspec_and_cattrs_write_the_documented_fields(model: Model) -> None:
    names = {a.name for a in attrs.fields(type(model)) if a.name != "_wire"}  # type: ignore[arg-type]
    model = evolve(model, wire_state=WireState({"Unknown": 1}, frozenset({"Id"})))
    written = msgspec.json.encode(model)
    assert msgspec.json.decode(written).keys() == msgspec.to_builtins(model).keys() == names
    assert make_converter().dumps(model) == written
    read = msgspec.json.decode(written, type=type(model))
    assert read == evolve(model, wire_state=DEFAULT_WIRE_STATE)
    assert read.wire_state is DEFAULT_WIRE_STATE
    assert make_converter().loads(written, type(model)) == read


@pytest.mark.parametrize("cls", MODELS)
def test_equal_models_are_not_unequal(cls: type[Model]) -> None:
    assert not cls() != cls()  # noqa: SIM202 - `!=` has code of its own
    assert cls() != object()
    assert cls(wire_state=WireState({"A": 1})) != cls()  # type: ignore[call-arg]


def test_tools_see_how_a_model_is_made() -> None:
    assert (
        inspect.signature(Balance.__init__).parameters.keys() - {"self"} == inspect.signature(Balance).parameters.keys()
    )
    properties: Any = vars(Balance).get("__attrs_props__")  # of attrs 25.4 and later
    assert properties is None or (properties.is_frozen, properties.is_slotted) == (True, True)
    names = {a.name for a in attrs.fields(Balance)}
    assert Balance.__annotations__.keys() == get_type_hints(Balance).keys() == names


def test_the_garbage_collector_does_not_walk_answers() -> None:
    body = payload((2, 3), unknown=True)
    codec = Codec()
    for answer in (codec.decode(body), codec.decode(body), copy.deepcopy(codec.decode(body))):
        models = [answer, *answer.details, *answer.accounts, *answer.accounts[0].transactions]
        assert not any(map(gc.is_tracked, models))


@pytest.mark.parametrize("width", [20, 500])
def test_rich_shows_no_personal_data(width: int) -> None:
    pretty = pytest.importorskip("rich.pretty")
    answer = Codec().decode(
        b'{"GetAccountsDetail":[{"LoginId":"CANARY","Accounts":[{"Title":"CANARY","CANARY":"CANARY",'
        b'"Transactions":[{"Description":"CANARY","Debit":90210.5,"X":"CANARY"}]}]}]}'
    )
    move = answer.accounts[0].transactions[0]
    for model in (answer.details[0], answer.accounts[0], move, evolve(move, code="CANARY")):
        shown = pretty.pretty_repr(model, max_width=width)
        assert "CANARY" not in shown
        assert "90210" not in shown
