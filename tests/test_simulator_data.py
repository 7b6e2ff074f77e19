"""The simulated Flinks gives the same answer for the same token on every machine."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest

from flinks_async.codec import Codec
from flinks_async.testing import expected_answer, expected_body

TOKENS = ["5e115eac-1209-4f19-641c-08d6d484e2fe", "a/b ?#%25é王", "\udcff", "x" * 1024]


def test_the_data_is_the_same_for_ever() -> None:
    """If this fails, seeds that people have written down mean something else now."""
    body = expected_body("5e115eac-1209-4f19-641c-08d6d484e2fe", size="medium")
    assert hashlib.sha256(body).hexdigest() == "ec6b1e18a12bf623835516f65815013d9104a90a078c0fba2910e29f1d1ad98f"


def test_another_process_with_another_hash_seed_gives_the_same_data() -> None:
    code = "import sys; from flinks_async.testing import expected_body; sys.stdout.buffer.write(expected_body('t', size='medium'))"
    for seed in ("1", "2"):
        made = subprocess.run([sys.executable, "-c", code], env=_environment(seed), capture_output=True, check=True)
        assert made.stdout == expected_body("t", size="medium")


def _environment(seed: str) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("size", ["small", "medium"])
def test_other_tokens_and_other_seeds_have_other_data(token: str, size: Any) -> None:
    assert expected_body(token, size=size) == expected_body(token, size=size)
    assert expected_body(token, size=size) != expected_body(token + "x", size=size)
    assert expected_body(token, size=size) != expected_body(token, size=size, seed=1)


def test_small_is_the_documented_example() -> None:
    answer = expected_answer("t", size="small")
    (detail,) = answer["GetAccountsDetail"]
    assert set(detail) == {"LoginId", "CustomerId"}
    assert set(answer) == {"GetAccountsDetail", "RequestId"}


@pytest.mark.parametrize(
    ("size", "accounts", "transactions", "kilobytes"), [("medium", 2, 60, 20), ("large", 5, 2000, 1570)]
)
def test_sizes(size: Any, accounts: int, transactions: int, kilobytes: int) -> None:
    body = expected_body("t", size=size)
    assert len(body) // 1024 == pytest.approx(kilobytes, rel=0.1)
    (detail,) = expected_answer("t", size=size)["GetAccountsDetail"]
    assert [len(account["Transactions"]) for account in detail["Accounts"]] == [transactions] * accounts
    ids = [move["Id"] for account in detail["Accounts"] for move in account["Transactions"]]
    assert len(set(ids)) == accounts * transactions


def test_nothing_of_a_token_is_in_the_accounts_of_another() -> None:
    def ids(token: str) -> set[str]:
        (detail,) = expected_answer(token, size="medium")["GetAccountsDetail"]
        accounts = detail["Accounts"]
        return {account["Id"] for account in accounts} | {m["Id"] for a in accounts for m in a["Transactions"]}

    assert not set.intersection(ids("one"), ids("two"))


def test_shapes() -> None:
    as_list, as_object = expected_answer("t"), expected_answer("t", shape="object")
    assert as_list["GetAccountsDetail"] == [as_object["GetAccountsDetail"]]
    assert expected_answer("t", shape="null")["GetAccountsDetail"] is None


def test_money_has_two_digits_on_the_wire() -> None:
    numbers: list[str] = []
    for number in range(20):
        json.loads(expected_body(f"t{number}", size="medium"), parse_float=numbers.append)
    assert all(len(text.partition(".")[2]) == 2 for text in numbers)
    assert any(text.endswith("0") for text in numbers)
    assert any(text.startswith("-") for text in numbers)


@pytest.mark.parametrize("shape", ["list", "object", "null"])
@pytest.mark.parametrize("size", ["small", "medium"])
def test_the_package_decodes_it_to_the_same(size: Any, shape: Any) -> None:
    answer = Codec().decode(expected_body("t", size=size, shape=shape))
    assert answer.to_dict() == expected_answer("t", size=size, shape=shape)
    assert not any(detail.extra for detail in answer.details), "only documented fields"


def test_holders_are_null_missing_and_full() -> None:
    holders = [
        account["Holder"]
        for number in range(100)
        for account in expected_answer(f"t{number}", size="medium")["GetAccountsDetail"][0]["Accounts"]
    ]
    assert any(holder is None for holder in holders)
    assert any(holder is not None and "PhoneNumber" not in holder for holder in holders)
    assert any(holder is not None and holder.get("PhoneNumber") for holder in holders)


def test_amounts_are_decimals() -> None:
    (detail,) = expected_answer("t", size="medium")["GetAccountsDetail"]
    assert isinstance(detail["Accounts"][0]["Balance"]["Current"], Decimal)
