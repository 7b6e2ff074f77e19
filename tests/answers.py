"""Answers for tests: the documented example, generated ones, and payloads of three sizes.

The wire names are repeated here on purpose, because the models are checked against them.
"""

from __future__ import annotations

import datetime as dt
import json
import random
from collections.abc import Generator
from decimal import Decimal
from typing import Any, Literal, TypeVar

import msgspec
from hypothesis import strategies as st

T = TypeVar("T")

WIRE: dict[str, dict[str, str]] = {
    "PartnerAccessResponse": {"GetAccountsDetail": "[AccountsDetail]?", "RequestId": "text"},
    "AccountsDetail": {
        "HttpStatusCode": "int",
        "LoginId": "text",
        "CustomerId": "text",
        "Accounts": "[Account]",
        "Login": "Login",
        "Institution": "text",
        "InstitutionName": "text",
        "InstitutionId": "int",
        "Links": "[Link]",
        "Tag": "text",
        "RequestId": "text",
    },
    "Account": {
        "Transactions": "[Transaction]",
        "Balance": "Balance",
        "Holder": "Holder",
        "Id": "text",
        "Title": "text",
        "AccountNumber": "text",
        "LastFourDigits": "text",
        "TransitNumber": "text",
        "InstitutionNumber": "text",
        "Category": "text",
        "Type": "text",
        "Currency": "text",
        "AccountType": "text",
        "OverdraftLimit": "money",
        "EftEligibleRatio": "money",
        "ETransferEligibleRatio": "money",
    },
    "Transaction": {
        "Date": "date",
        "Code": "text",
        "Description": "text",
        "Debit": "money",
        "Credit": "money",
        "Balance": "money",
        "Id": "text",
    },
    "Balance": {"Available": "money", "Current": "money", "Limit": "money"},
    "Holder": {"Name": "text", "Email": "text", "PhoneNumber": "text", "Address": "Address"},
    "Address": {
        "CivicAddress": "text",
        "City": "text",
        "Province": "text",
        "PostalCode": "text",
        "POBox": "text",
        "Country": "text",
    },
    "Login": {
        "Username": "text",
        "Type": "text",
        "Id": "text",
        "IsScheduledRefresh": "flag",
        "LastRefresh": "timestamp",
    },
    "Link": {"rel": "text", "href": "text", "example": "text"},
}

DOCUMENTED: dict[str, Any] = {
    "GetAccountsDetail": [
        {
            "HttpStatusCode": 200,
            "Accounts": [
                {
                    "Transactions": [
                        {
                            "Date": "2025-01-31",
                            "Code": None,
                            "Description": "PAYROLL - Stripe Paycheck",
                            "Debit": Decimal("1000.4"),
                            "Credit": Decimal("1500.25"),
                            "Balance": Decimal("5105.6"),
                            "Id": "d9b2d63d-a233-4123-847a-7090d5c0f4a1",
                        }
                    ],
                    "TransitNumber": "12347",
                    "InstitutionNumber": "777",
                    "OverdraftLimit": 0,
                    "Title": "Chequing CAD",
                    "AccountNumber": "7641238",
                    "LastFourDigits": None,
                    "Balance": {
                        "Available": Decimal("5405.5"),
                        "Current": Decimal("5105.5"),
                        "Limit": Decimal("5105.5"),
                    },
                    "Category": "Operations",
                    "Type": "Chequing",
                    "Currency": "CAD",
                    "Holder": {
                        "Name": "John Doe",
                        "Address": {
                            "CivicAddress": "25 york street",
                            "City": "TOR",
                            "Province": "ON",
                            "PostalCode": "M5J 2V5",
                            "POBox": None,
                            "Country": "CA",
                        },
                        "Email": "johndoe@example.com",
                        "PhoneNumber": "(514) 333-7777",
                    },
                    "AccountType": "Personal",
                    "Id": "2fc8c3a5-c7a5-4b14-b5c4-b1e8d3a3a0d1",
                }
            ],
            "Login": {
                "Username": "Greatday",
                "IsScheduledRefresh": False,
                "LastRefresh": "2023-04-11T15:04:43.3464411",
                "Type": "Personal",
                "Id": "5e115eac-1209-4f19-641c-08d6d484e2fe",
            },
            "Institution": "FlinksCapital",
            "InstitutionName": "Flinks Capital",
            "InstitutionId": 14,
            "Links": [{"rel": "AccountsSummary", "href": "/GetAccountsSummary", "example": None}],
            "Tag": "",
        }
    ],
    "RequestId": "1243d6fb-6f43-4f3d-8b8b-5a3a3a0d1243",
}

to_bytes = msgspec.json.Encoder(decimal_format="number").encode


def from_bytes(body: bytes) -> Any:
    """JSON read by the standard library with exact numbers, to compare with what the server sent."""
    return json.loads(body, parse_float=Decimal)


# --- generated answers ---------------------------------------------------------------------------------------------

_text = st.text(st.characters(codec="utf-8"), max_size=8)
_money = st.one_of(
    st.decimals(min_value=-(10**12), max_value=10**12, places=2),
    st.decimals(min_value=Decimal("-1E+20"), max_value=Decimal("1E+20"), allow_nan=False, allow_infinity=False).filter(
        lambda amount: -28 <= amount.adjusted() <= 28
    ),
    st.integers(-(10**20), 10**20),
)
_leaves: dict[str, st.SearchStrategy[Any]] = {
    "text": _text,
    "money": _money,
    "int": st.integers(-(2**70), 2**70),
    "flag": st.booleans(),
    "date": st.dates().map(dt.date.isoformat),
    "timestamp": st.one_of(st.datetimes().map(dt.datetime.isoformat), st.just("2023-04-11T15:04:43.3464411Z"), _text),
}
_anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**80), 2**80), _text, _money),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_text, inner, max_size=3)),
    max_leaves=4,
)
_UNKNOWN = st.sampled_from(["NewField", "transactions", "date", "Extra Key", "", "é", "wire_state", "extra"])


def _value(kind: str, wrong: bool) -> st.SearchStrategy[Any]:
    good: st.SearchStrategy[Any]
    if kind in _leaves:
        good = _leaves[kind]
    elif kind.startswith("["):
        name, either = kind.strip("[]?"), kind.endswith("?")
        good = st.lists(objects(name, wrong), max_size=2)
        good = st.one_of(good, objects(name, wrong)) if either else good
    else:
        good = objects(kind, wrong)
    good = st.one_of(good, good, st.none())
    return st.one_of(good, good, good, good, good, good, _anything) if wrong else good


def objects(name: str, wrong: bool = False) -> st.SearchStrategy[dict[str, Any]]:
    """Objects of one class as a server may send them: with missing, null and unknown fields, in any order.

    Args:
        wrong: whether values may have a wrong type.
    """
    known = st.fixed_dictionaries({}, optional={wire: _value(kind, wrong) for wire, kind in WIRE[name].items()})
    unknown = st.one_of(st.just({}), st.dictionaries(_UNKNOWN, _anything, max_size=2))
    return st.tuples(known, unknown, st.randoms(use_true_random=False)).map(_shuffled)


def _shuffled(parts: tuple[dict[str, Any], dict[str, Any], random.Random]) -> dict[str, Any]:
    known, unknown, rng = parts
    entries = [*{**unknown, **known}.items()]
    rng.shuffle(entries)
    return dict(entries)


answers = objects("PartnerAccessResponse")
answers_perhaps_wrong = objects("PartnerAccessResponse", wrong=True)


# --- payloads of three sizes ---------------------------------------------------------------------------------------

SIZES = {"small": (0, 0), "medium": (2, 60), "large": (5, 2000)}


def payload(
    size: Literal["small", "medium", "large"] | tuple[int, int],
    *,
    unknown: bool = False,
    seed: int = 0,
) -> bytes:
    """An answer of about 0.35 KB, 22 KB or 1.7 MB, or of (accounts, transactions in each).

    Args:
        unknown: whether each transaction has an unknown field.
    """
    accounts, transactions = SIZES[size] if isinstance(size, str) else size
    rng = random.Random(seed)
    if not accounts:
        details: list[Any] = [{"LoginId": _guid(rng), "CustomerId": _guid(rng)} for _ in range(3)]
    else:
        (full,) = DOCUMENTED["GetAccountsDetail"]
        (account,) = full["Accounts"]
        details = [{**full, "Accounts": [_account(rng, account, transactions, unknown) for _ in range(accounts)]}]
    return to_bytes({"GetAccountsDetail": details, "RequestId": _guid(rng)})


def _account(rng: random.Random, account: dict[str, Any], transactions: int, unknown: bool) -> dict[str, Any]:
    day = dt.date(2025, 1, 31)
    moves = [_move(rng, day - dt.timedelta(number // 4), unknown) for number in range(transactions)]
    return {**account, "Id": _guid(rng), "AccountNumber": f"{rng.randrange(10**7):07}", "Transactions": moves}


def _move(rng: random.Random, day: dt.date, unknown: bool) -> dict[str, Any]:
    cents = rng.randrange(1, 250_000)
    amount, out = Decimal(cents).scaleb(-2), cents % 3 != 0
    move: dict[str, Any] = {
        "Date": day.isoformat(),
        "Code": None,
        "Description": ("PAYROLL - Stripe Paycheck", "INTERAC e-Transfer", "LOYER / RENT", "HYDRO BILL")[cents % 4],
        "Debit": amount if out else None,
        "Credit": None if out else amount,
        "Balance": Decimal(rng.randrange(-200_000, 1_800_000)).scaleb(-2),
        "Id": _guid(rng),
    }
    if unknown:
        move["Enrichment"] = "groceries"
    return move


def _guid(rng: random.Random) -> str:
    digits = f"{rng.getrandbits(128):032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def run_steps(steps: Generator[None, None, T]) -> tuple[T, int]:
    """The result of a generator of steps, and the number of its steps."""
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as finished:
            return finished.value, count
        count += 1
