"""Large answers are decoded in steps, between which other tasks run."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

import pytest

from flinks_async import codec as codec_module
from flinks_async.codec import Codec, steps
from flinks_async.errors import DecodeError, EmptyBodyError, NotJSONError
from flinks_async.models import Meta, Transaction

from .answers import from_bytes, payload, run_steps, to_bytes
from .test_codec_compiled import META


@pytest.mark.parametrize(
    ("size", "unknown", "count"),
    [
        ("medium", False, 0),
        ((1, 4000), False, 1 + 4000 // steps.TRANSACTIONS_PER_STEP),
        (
            (1, 4000),
            True,
            1 + 4000 // steps.TRANSACTIONS_PER_STEP + steps.TRANSACTIONS_PER_STEP // steps.OBJECTS_PER_STEP,
        ),  # the field is observed in the first batch
        ((3, 300), False, 1 + 3 * 2),
        ((steps.MANY_ACCOUNTS, 8), False, 1 + steps.MANY_ACCOUNTS),
        ((300, 10), False, 1 + 10),  # by 64 KB
    ],
)
def test_the_steps_of_the_compiled_path(size: Any, unknown: bool, count: int) -> None:
    codec = Codec()
    codec.decode(payload((1, 1)))  # observes the fields
    assert run_steps(codec.decode_steps(payload(size, unknown=unknown), META))[1] == count


def test_a_large_account_among_many_has_steps_of_its_own() -> None:
    data = from_bytes(payload((steps.MANY_ACCOUNTS + 1, 1)))
    data["GetAccountsDetail"][0]["Accounts"][7]["Transactions"] *= 600
    codec = Codec()
    codec.decode(payload((1, 1)))
    answer, count = run_steps(codec.decode_steps(to_bytes(data), META))
    assert [len(account.transactions) for account in answer.accounts] == [1] * 7 + [600] + [1] * 57
    assert count == 1 + 1 + (600 // steps.TRANSACTIONS_PER_STEP + 1) + 1


@pytest.mark.parametrize(
    ("detail", "count"),
    [
        ({"Links": [{}] * steps.OBJECTS_PER_STEP}, 0),
        ({"Links": [{}] * (steps.OBJECTS_PER_STEP + 1)}, 2),
        ({"Links": [{}] * 1000}, 20),
        ({"Accounts": [{}] * 1000}, 20),
        ({"Accounts": [{}, {"Transactions": [{}] * 1000}] * 2, "Links": [{}] * 100}, 42),
    ],
)
def test_the_steps_of_the_reference_path(detail: Any, count: int) -> None:
    def turns(details: Any) -> int:
        return run_steps(Codec()._decoder.reference_steps(to_bytes({"GetAccountsDetail": details}), META))[1]

    assert turns(detail) == turns([detail]) == count
    assert turns([{"Accounts": None}, detail, *[{}] * 98, detail]) == 2 * count + 3


def test_items_that_were_read_in_steps_are_not_read_again() -> None:
    codec, seen = Codec(), []
    codec.converter.register_structure_hook(Transaction, lambda value, _: seen.append(value["Id"]))
    moves = [{"Id": str(number)} for number in range(3 * steps.OBJECTS_PER_STEP - 1)]
    body = to_bytes({"GetAccountsDetail": {"Accounts": [{"Transactions": moves}]}})
    run_steps(codec._decoder.reference_steps(body, META))
    assert seen == [move["Id"] for move in moves]


@pytest.mark.parametrize("cut", [True, False])
def test_many_entries_accounts_or_links_have_steps(cut: bool) -> None:
    more = [{"Accounts": [{"Transactions": []}] * (steps.MANY_ACCOUNTS + 1)}] if cut else []
    entry = {"LoginId": "a", "CustomerId": "b"}
    each = steps.MAX_OTHER_MODELS // 4
    for extra, few in ((0, True), (1, False)):
        details = [
            *([entry] * (each - len(more))),
            *more,
            {"Links": [{}] * (each - (not cut) + extra)},
            *([] if cut else [{"Accounts": [{"Id": "a"}] * (each - 1)}]),
            *([entry] * (each + cut * (each - 1))),
        ]
        codec, body = Codec(), to_bytes({"GetAccountsDetail": details}).ljust(codec_module.DIRECT_SIZE + 1)
        codec.decode(body)  # observes the fields
        answer, count = run_steps(codec._decoder.compiled_steps(body, META))
        assert (answer is not None) == few
        answer, count = run_steps(codec.decode_steps(body, META))
        assert (answer.meta, answer.to_dict()) == (META, from_bytes(body))
        assert (count > each // steps.OBJECTS_PER_STEP) == (not few)


def test_many_entries_are_scanned_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    body = to_bytes({"GetAccountsDetail": [{"Accounts": [{}] * 9}] * 5})
    turns = []
    for scanned in (1, 5, 50, 51):
        monkeypatch.setattr(steps, "SCANNED_PER_STEP", scanned)
        turns.append(run_steps(Codec()._decoder.reference_steps(body, META))[1])
    assert turns == [50, 10, 1, 0]


@pytest.mark.parametrize("observed", [False, True])
def test_transactions_of_much_data_have_steps(observed: bool) -> None:
    whole = {
        "Date": "2024-01-01",
        "Code": None,
        "Description": "d",
        "Debit": 1,
        "Credit": None,
        "Balance": 2,
        "Id": "i",
    }
    for items, more in ((255, False), (265, True)):
        codec, first = Codec(), {**whole, "X": 1} if observed else whole
        codec.decode(to_bytes({"GetAccountsDetail": [{"Accounts": [{"Transactions": [first]}]}]}))
        fields = [{**whole, "X": ["a" * 1000] * items}] * 4
        detail = {"LoginId": "", "CustomerId": "", "Accounts": [{"Transactions": fields}]}
        body = to_bytes({"GetAccountsDetail": [detail], "RequestId": ""})
        assert (len(body) > steps.MAX_ONE_STEP) == more
        answer, count = run_steps(codec.decode_steps(body, META))
        assert answer.to_dict() == from_bytes(body)
        assert (count > 10) == more


@pytest.mark.slow
@pytest.mark.parametrize("top", [pytest.param(False, marks=pytest.mark.torture), True])
def test_an_answer_of_more_than_a_million_values_is_read(top: bool) -> None:
    body = payload((2, 70_000), unknown=True)
    if top:
        body = b'{"New":[1,{"a":[]}],' + body[1:]
    assert body.count(b",") > 1_000_000
    codec = Codec()
    first = codec.decode(body)
    again = run_steps(codec.decode_steps(body))[0]
    assert first == again == run_steps(Codec().decode_steps(body))[0]
    assert sum(len(account.transactions) for account in again.accounts) == 140_000
    assert again.to_json() == first.to_json()
    assert from_bytes(first.to_json()) == from_bytes(body)


async def test_large_answers_take_turns_with_other_tasks() -> None:
    codec, lock = Codec(), asyncio.Lock()
    body = payload((1, 3000))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    decoded = await asyncio.gather(*(codec.decode_async(body, Meta(attempts=n), lock) for n in range(4)))
    task.cancel()
    assert turns > 20
    assert [answer.meta.attempts for answer in decoded] == [0, 1, 2, 3]
    assert all(answer == decoded[0] for answer in decoded)
    assert not lock.locked()


async def test_a_small_answer_does_not_wait_for_the_lock() -> None:
    codec, lock = Codec(), asyncio.Lock()
    codec.decode(payload("small"))
    async with lock:
        answer = await codec.decode_async(payload("small"), META, lock)
    assert answer.meta == META


@pytest.mark.parametrize(("size", "at_once"), [(64 * 1024, True), (64 * 1024 + 1, False)])
async def test_up_to_64_kb_are_decoded_in_one_step(size: int, at_once: bool) -> None:
    codec, lock = Codec(), asyncio.Lock()
    codec.decode(payload("small"))
    body = payload("small").ljust(size)
    assert (run_steps(codec.decode_steps(body, META))[1] == 0) is at_once
    async with lock:
        task = asyncio.create_task(codec.decode_async(body, META, lock))
        for _ in range(10):
            await asyncio.sleep(0)
        assert task.done() is at_once
    assert (await task).meta == META


async def test_errors_and_cancelling_release_the_lock() -> None:
    codec, lock = Codec(), asyncio.Lock()
    with pytest.raises(EmptyBodyError):
        await codec.decode_async(b"", META, lock)
    with pytest.raises(NotJSONError) as caught:
        await codec.decode_async(payload((1, 1000))[:-1], META, lock)
    assert caught.value.__context__ is None
    assert not lock.locked()
    tasks = [asyncio.create_task(codec.decode_async(payload((1, 2000)), META, lock)) for _ in range(3)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(task.cancelled() for task in tasks)
    assert not lock.locked()
    assert (await codec.decode_async(payload((1, 1000)), META, lock)).meta == META


@pytest.mark.parametrize("spaces", [0, 70_000])
@pytest.mark.parametrize("body", [b'{"RequestId":{"CANARY":1}%s}', b'{"CANARY":1%s', b'{"CANARY":1%s}]'])
async def test_an_error_leaves_no_body_in_its_frames(body: bytes, spaces: int) -> None:
    with pytest.raises(DecodeError) as caught:
        await Codec().decode_async(body % (b" " * spaces), META, asyncio.Lock())
    frames = [frame for frame, _ in traceback.walk_tb(caught.tb)][1:]  # without this one
    assert "CANARY" not in repr([frame.f_locals for frame in frames])


async def test_cancelled_in_the_queue_it_leaves_no_body_in_its_frame() -> None:
    codec, lock = Codec(), asyncio.Lock()
    async with lock:
        task = asyncio.create_task(codec.decode_async(payload((1, 2000)), META, lock))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
    frames = [frame for frame, _ in traceback.walk_tb(caught.tb) if frame.f_code.co_name == "decode_async"]
    assert [frame.f_locals["body"] for frame in frames] == [b""]
