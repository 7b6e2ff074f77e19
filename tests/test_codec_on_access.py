"""Transactions on access: the same answers and errors as with the answer, at the first read of the transactions."""

from __future__ import annotations

import asyncio
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flinks_async import Codec, ConfigError, FlinksClient
from flinks_async.codec import COUNTED_SIZE
from flinks_async.codec import on_access as on_access_module
from flinks_async.codec.on_access import _SLOT, OnAccessAccount
from flinks_async.errors import DecodeError, NotJSONError, WrongTypeError
from flinks_async.models import Account, Meta, PartnerAccessResponse, Transaction
from flinks_async.tables import to_arrow
from flinks_async.testing import InMemoryTransport

from .answers import answers, from_bytes, payload, run_steps, to_bytes
from .support import examples
from .test_codec_compiled import BROKEN, META, WRONG, _places, by_reference, outcome
from .test_codec_compiled import used as eager

BODY = payload((2, 3))


def codec_for(body: bytes = BODY) -> Codec:
    """A codec that has seen an answer with the fields of `body`."""
    codec = Codec(transactions="on access")
    codec.decode(body)
    return codec


def pending(answer: PartnerAccessResponse) -> list[bool]:
    return [type(account) is OnAccessAccount for account in answer.accounts]


def read(answer: PartnerAccessResponse) -> PartnerAccessResponse:
    for account in answer.accounts:
        _ = account.transactions
    return answer


on_access = codec_for()


@examples(40)
@given(answers)
def test_generated_answers(data: dict[str, Any]) -> None:
    body = to_bytes(data)
    assert outcome(lambda: read(on_access.decode(body, META))) == by_reference(body)


@examples(60)
@given(st.data())
def test_a_wrong_value_in_any_place_has_the_same_error_at_the_latest_when_it_is_read(draw: st.DataObject) -> None:
    data = from_bytes(payload((2, 3), unknown=draw.draw(st.booleans())))
    owner, key, place = draw.draw(st.sampled_from(list(_places(data))))
    owner[key] = copy.deepcopy(draw.draw(st.sampled_from(WRONG)))
    body = to_bytes(data)
    expected = by_reference(body)
    assert outcome(lambda: read(on_access.decode(body, META))) == expected
    if (
        issubclass(expected[0] if isinstance(expected[0], type) else object, DecodeError)
        and ".Transactions" not in place
    ):
        with pytest.raises(DecodeError):
            on_access.decode(body)


@pytest.mark.parametrize("broken", [*BROKEN, b'"\xff"', b'"\xed\xa0\x80"'], ids=lambda broken: repr(broken[:8]))
@pytest.mark.parametrize("key", [b'"Debit":', b'"Unknown":', b'"RequestId":', b'"Transactions":', b'"Title":'])
def test_broken_json_in_any_place(broken: bytes, key: bytes) -> None:
    before, _, after = BODY.replace(b'"Code":null', b'"Code":null,"Unknown":null').rpartition(key)
    body = before + key + broken + after[min(at for at in (after.find(b","), after.find(b"}")) if at >= 0) :]
    assert issubclass(by_reference(body)[0], NotJSONError)
    with pytest.raises(NotJSONError):
        read(on_access.decode(body))
    in_a_transaction = key in (b'"Debit":', b'"Unknown":')
    if not (in_a_transaction and broken in (BROKEN[2], BROKEN[3])):  # valid JSON, but a number out of range
        with pytest.raises(NotJSONError):
            on_access.decode(body)


def test_transactions_wait_for_the_first_read() -> None:
    answer = codec_for().decode(BODY)
    first, second = answer.accounts
    assert pending(answer) == [True, True]
    assert isinstance(first, Account)
    assert first.balance is not None
    assert first.transactions == eager.decode(BODY).accounts[0].transactions
    assert first.transactions is first.transactions
    assert pending(answer) == [False, True]
    assert type(second) is OnAccessAccount


def test_repr_counts_them_without_reading_them() -> None:
    answer = codec_for().decode(BODY)
    assert (repr(answer), repr(answer.accounts[0])) == (repr(eager.decode(BODY)), repr(eager.decode(BODY).accounts[0]))
    assert pending(answer) == [True, True]


@pytest.mark.parametrize(
    "use",
    [
        lambda answer: answer.to_dict(),
        lambda answer: answer.to_json(missing="null"),
        lambda answer: pickle.loads(pickle.dumps(answer)),
        copy.deepcopy,
        lambda answer: copy.copy(answer.accounts[0]),
        hash,
        attrs.asdict,
        lambda answer: attrs.evolve(answer.accounts[0], title="new"),
        lambda answer: answer.with_meta(Meta(attempts=2)),
        lambda answer: to_arrow([answer]),
        lambda answer: [type(account) for account in map(copy.deepcopy, answer.accounts)],
    ],
)
def test_every_use_gives_what_it_gives_with_the_answer(use: Any) -> None:
    assert use(codec_for().decode(BODY)) == use(eager.decode(BODY))


def test_both_sides_of_a_comparison_may_wait() -> None:
    codec = codec_for()
    assert codec.decode(BODY) == codec.decode(BODY)
    assert eager.decode(BODY) == codec.decode(BODY)
    assert codec.decode(BODY) != codec.decode(BODY.replace(b'"Code":null', b'"Code":"x"', 1))


@pytest.mark.parametrize("details", [[{}], {}])
def test_the_path_is_the_place_in_the_whole_answer(details: Any) -> None:
    accounts = [{"Id": "a", "Transactions": [{}]}, {"Transactions": [{}, {"Debit": "x"}]}, {"Transactions": None}, {}]
    one = {"Accounts": accounts}
    body = to_bytes({"GetAccountsDetail": one if details == {} else [{}, one]})
    codec = codec_for(body.replace(b'"x"', b"1"))
    answer = codec.decode(body)
    assert len(answer.accounts[0].transactions) == 1
    where = "GetAccountsDetail" if details == {} else "GetAccountsDetail[1]"
    for _ in range(2):
        with pytest.raises(WrongTypeError) as caught:
            _ = answer.accounts[1].transactions
        assert caught.value.path == f"{where}.Accounts[1].Transactions[1].Debit"
        assert caught.value.__context__ is None
    assert "<2>" in repr(answer.accounts[1]), "a wrong value does not break the repr"
    assert [type(account) for account in answer.accounts[2:]] == [Account, Account]
    assert [account.transactions for account in answer.accounts[2:]] == [(), ()]


@pytest.mark.parametrize("wrong", [b"3", b'"x"', b"{}", b"true"])
def test_what_is_no_array_is_wrong_at_once(wrong: bytes) -> None:
    body = b'{"GetAccountsDetail":[{"Accounts":[{"Transactions":%b}]}]}'
    with pytest.raises(WrongTypeError) as caught:
        codec_for(body % b"[{}]").decode(body % wrong)
    assert caught.value.path == "GetAccountsDetail[0].Accounts[0].Transactions"


def test_two_threads_do_not_decode_at_the_same_time() -> None:
    codec, free = Codec(transactions="on access"), []

    def another_thread_gets_the_lock() -> bool:
        got = on_access_module._lock.acquire(blocking=False)
        if got:
            on_access_module._lock.release()
        return got

    def hook(value: Any, _: Any) -> str:
        with ThreadPoolExecutor() as pool:
            free.append(pool.submit(another_thread_gets_the_lock).result())
        return str(value["Id"])

    codec.converter.register_structure_hook(Transaction, hook)
    codec.decode(BODY)
    free.clear()
    assert len(codec.decode(BODY).accounts[0].transactions) == 3
    assert free == [False] * 3


def test_hooks_of_users() -> None:
    codec = Codec(transactions="on access")
    codec.converter.register_structure_hook(Transaction, lambda value, _: ("hooked", value["Id"]))
    codec.decode(BODY)
    assert [one[0] for one in codec.decode(BODY).accounts[0].transactions] == ["hooked"] * 3
    codec = Codec(transactions="on access")
    codec.converter.register_structure_hook(Account, lambda value, _: value["Id"])
    codec.decode(BODY)
    assert [type(account) for account in codec.decode(BODY).accounts] == [str, str]


async def test_a_large_answer_is_one_step_and_a_huge_one_is_decoded_as_a_whole() -> None:
    body = payload((3, 2000))
    assert 64 * 1024 < len(body) < COUNTED_SIZE
    codec = codec_for()
    answer, count = run_steps(codec.decode_steps(body))
    assert (pending(answer), count) == ([True] * 3, 0)
    assert pending(await codec.decode_async(body, META, asyncio.Lock())) == [True] * 3
    huge = payload((80, 400))
    assert len(huge) > COUNTED_SIZE
    assert all(pending(codec.decode(huge)))
    decoded = run_steps(codec.decode_steps(huge))[0]
    assert not any(pending(decoded))
    assert decoded == codec.decode(huge)


async def test_one_turn_of_the_event_loop_decodes_one_large_answer() -> None:
    codec, lock, body, turn = codec_for(), asyncio.Lock(), payload((3, 2000)), 0

    async def decode() -> int:
        assert all(pending(await codec.decode_async(body, META, lock)))
        return turn

    tasks = [asyncio.ensure_future(decode()) for _ in range(5)]
    while not all(task.done() for task in tasks):
        turn += 1
        await asyncio.sleep(0)
    assert len({task.result() for task in tasks}) == 5


def test_an_answer_keeps_only_its_transactions_not_the_body() -> None:
    body = payload((1, 1)).replace(b'"Transactions"', b" " * 100_000 + b'"Transactions"')
    answer = codec_for().decode(body)
    assert pending(answer) == [True]
    waiting = _SLOT.__get__(answer.accounts[0])
    assert len(waiting._json) < 1000


async def test_a_client_with_such_a_codec() -> None:
    transport = InMemoryTransport(default=BODY)
    async with FlinksClient(auth_secret="s", transport=transport, codec=Codec(transactions="on access")) as client:
        await client.partner_access("token-1")
        answer = await client.partner_access("token-1")
    assert pending(answer) == [True, True]
    assert answer.accounts[0].transactions == eager.decode(BODY).accounts[0].transactions


@pytest.mark.parametrize("value", ["on-access", "", None, True])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="Codec: transactions must be one of 'with the answer', 'on access'"):
        Codec(transactions=value)
