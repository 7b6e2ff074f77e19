"""The simulator's answer for a token: a pure function, so that tests can compute what must arrive.

All values derive from (seed, token) with BLAKE2b: they are the same in every process, platform and Python. Most of an answer
comes from a few prepared blocks with the token's own ids and amounts, so an answer takes microseconds and still differs for
each token.
"""

from __future__ import annotations

import datetime as dt
import json
import random
from decimal import Decimal
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, Literal, get_args

Size = Literal["small", "medium", "large"]
Shape = Literal["list", "object", "null"]

SIZES: Final[tuple[Size, ...]] = get_args(Size)
SHAPES: Final[tuple[Shape, ...]] = get_args(Shape)

_ACCOUNTS_AND_TRANSACTIONS: Final[dict[Size, tuple[int, int]]] = {
    "small": (0, 0),
    "medium": (2, 60),
    "large": (5, 2000),
}

# Placeholders for the token's ids and amounts in a prepared block.
_ID: Final = b"@OWN_ID@"
_NUMBER: Final = b"@NUMBER"
_BALANCE: Final = b'"@BALANCE"'


def digest(*parts: object, size: int = 16) -> bytes:
    """Bytes that depend only on the parts."""
    text = "\0".join(map(str, parts))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()


def uniform(*parts: object) -> float:
    """A number in [0, 1) that depends only on the parts."""
    return (int.from_bytes(digest(*parts, size=8), "big") >> 11) / (1 << 53)


def expected_body(token: str, *, size: Size = "medium", shape: Shape = "list", seed: int = 0) -> bytes:
    """The exact body of `FlinksServer`'s answer for a token.

    Args:
        size: `small` is the documented example (an entry with LoginId and CustomerId), `medium` has 2 accounts of 60
            transactions (about 22 KB), `large` 5 of 2,000 (about 1.7 MB).
        shape: JSON type of `GetAccountsDetail`.
        seed: another seed gives other data.
    """
    own = digest(seed, token, size=32).hex()
    request_id = _guid(own[32:])
    if shape == "null":
        return b'{"GetAccountsDetail":null,"RequestId":"%b"}' % request_id
    detail = b'{"LoginId":"%b","CustomerId":"%b"}' % (_guid(own), _guid(own[16:]))
    count, transactions = _ACCOUNTS_AND_TRANSACTIONS[size]
    if count:
        detail = _full_detail(own, detail, count, transactions)
    if shape == "list":
        detail = b"[%b]" % detail
    return b'{"GetAccountsDetail":%b,"RequestId":"%b"}' % (detail, request_id)


def expected_answer(token: str, *, size: Size = "medium", shape: Shape = "list", seed: int = 0) -> dict[str, Any]:
    """The expected `answer.to_dict()` for a token; amounts are `Decimal`. For the arguments see `expected_body`."""
    answer: dict[str, Any] = json.loads(expected_body(token, size=size, shape=shape, seed=seed), parse_float=Decimal)
    return answer


def _guid(hexadecimal: str) -> bytes:
    h = hexadecimal
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:32]}".encode()


def _full_detail(own: str, short: bytes, accounts: int, transactions: int) -> bytes:
    variants = 16 if transactions <= 100 else 2  # large blocks need memory, so keep few
    pick = int(own[:4], 16)
    number = int(own[4:12], 16)
    id8 = own[:8].encode()
    blocks = []
    for index in range(accounts):
        moves, rest = _account(pick % variants, index, transactions)
        rest = rest.replace(_ID, id8).replace(_NUMBER, b"%07d" % (number % 10_000_000))
        rest = rest.replace(_BALANCE, b"%d.%02d" % (number % 99_991, number % 100))
        blocks.append(b'{"Transactions":[%b],%b' % (id8.join(moves), rest[1:]))
    login = b'{"Username":"user-%b","Type":"Personal","Id":"%b","IsScheduledRefresh":%b,"LastRefresh":"%b"}' % (
        own[:6].encode(),
        _guid(own),
        b"true" if pick % 2 else b"false",
        b"2025-01-31T15:04:43.%07d" % (number % 10_000_000),
    )
    return (
        b'{"HttpStatusCode":200,"Accounts":[%b],"Login":%b,"Institution":"FlinksCapital",'
        b'"InstitutionName":"Flinks Capital","InstitutionId":14,"Links":[{"rel":"self","href":"/partneraccess",'
        b'"example":null}],"Tag":null,%b' % (b",".join(blocks), login, short[1:])
    )


@lru_cache(maxsize=128)
def _account(variant: int, index: int, transactions: int) -> tuple[list[bytes], bytes]:
    """An account's transactions, split at the token's id, and the JSON of its other fields."""
    rng = random.Random(f"flinks-async {variant} {index}")
    serial = f"{variant:02x}{index:02x}"
    account: dict[str, Any] = {
        "Balance": {"Available": "@BALANCE", "Current": "@BALANCE", "Limit": None},
        "Holder": _holder(variant, index),
        "Id": f"@OWN_ID@-{serial}-4000-8000-{index:012x}",
        "Title": "Savings" if index % 2 else "Chequing CAD",
        "AccountNumber": "@NUMBER",
        "LastFourDigits": f"{variant:02}{index:02}",
        "TransitNumber": f"{index:05}",
        "InstitutionNumber": "077",
        "Category": "Operations",
        "Type": "Savings" if index % 2 else "Chequing",
        "Currency": "USD" if index % 4 == 3 else "CAD",
        "AccountType": (None, "Personal", "Business")[variant % 3],
        "OverdraftLimit": None,
    }
    moves = ",".join(_transaction(rng, serial, number) for number in range(transactions))
    return moves.encode().split(_ID), json.dumps(account, separators=(",", ":")).encode()


def _holder(variant: int, index: int) -> dict[str, Any] | None:
    if index == 1 and variant % 4 == 0:
        return None
    holder: dict[str, Any] = {
        "Name": ("Ada Lovelace", "Élise Tremblay", "王小明", "John Doe")[variant % 4],
        "Address": {
            "CivicAddress": f"{variant + 1} york street",
            "City": "TOR",
            "Province": "ON",
            "PostalCode": "M5J 2V5",
            "POBox": None,
            "Country": "CA",
        },
        "Email": f"holder{variant}@example.com",
    }
    if variant % 3:  # otherwise the field is missing
        holder["PhoneNumber"] = None if variant % 2 else "(514) 555-0100"
    return holder


_LAST_DAY: Final = dt.date(2025, 1, 31).toordinal()
_WHAT: Final = (
    "PAYROLL - Stripe Paycheck",
    "INTERAC e-Transfer",
    "LOYER / RENT",
    "Café \\u0022Olé\\u0022",
    "HYDRO BILL",
)


def _transaction(rng: random.Random, serial: str, number: int) -> str:
    cents = int(rng.random() * 250_000)
    amount, balance = _money(cents), _money(int(rng.random() * 2_000_000) - 200_000)
    debit, credit = (amount, "null") if cents % 3 else ("null", amount)
    return (
        f'{{"Date":"{dt.date.fromordinal(_LAST_DAY - number // 2).isoformat()}","Code":null,'
        f'"Description":"{_WHAT[cents % len(_WHAT)]}","Debit":{debit},"Credit":{credit},"Balance":{balance},'
        f'"Id":"@OWN_ID@-{serial}-4000-9000-{number:012x}"}}'
    )


def _money(cents: int) -> str:
    return f"{'-' if cents < 0 else ''}{abs(cents) // 100}.{abs(cents) % 100:02}"
