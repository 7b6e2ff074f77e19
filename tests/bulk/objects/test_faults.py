"""Object storage that fails, loses answers, or whose users are killed."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flinks_async.bulk import (
    Commit,
    Job,
    JSONLParts,
    Shard,
    StoreError,
    Written,
    purge,
    status,
    verify,
)
from flinks_async.bulk.job import place_of
from flinks_async.bulk.stores import from_description
from flinks_async.testing import Latency

from ..server_desk import Desk, a_server
from .s3 import KEY_ID, S3, Asked
from .support import csv_of, names, put_tokens, run, start_driver

pytest.importorskip("obstore")


Sweep = tuple[str, int | str, bool]

SWEEPS: dict[str, Sweep] = {
    **{f"{method} {name}": (method, fault, False) for method in ("PUT", "GET", "POST", "HEAD")
       for name, fault in (("refused", 403), ("broken", 500), ("lost", "lost"))},
    **{f"{method} {name} once": (method, fault, True) for method in ("PUT", "GET", "POST")
       for name, fault in (("refused", 403), ("lost", "lost"), ("dropped", "dropped"))},
}  # fmt: skip
"""A kind of requests, what happens to one of them, and whether that is all. GET lists, POST deletes."""

TEMPORARY = ("lost", "dropped")
"""Faults that the next attempt of the same request mends, if they come once."""


def sweeps(step: int, *names: str) -> list[Any]:
    """Sweeps in which the first request fails, and then every `step`th, from another one on in each sweep. In torture, each
    request.
    """
    chosen = {name: SWEEPS[name] for name in names or SWEEPS}
    few = [
        pytest.param(sweep, sorted({0, *range(number % step, 200, step)}), id=name)
        for number, (name, sweep) in enumerate(chosen.items())
    ]
    each = [
        pytest.param(sweep, range(200), id=f"{name}, each", marks=pytest.mark.torture) for name, sweep in chosen.items()
    ]
    return few + each


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("sweep", "numbers"), sweeps(6))
async def test_a_store_that_fails_at_any_request_ends_the_run_and_the_next_one_goes_on(
    desk: Desk, bucket: str, s3: S3, sweep: Sweep, numbers: Sequence[int]
) -> None:
    """The nth request of a kind fails, and perhaps all after it."""
    await check_failing_requests(desk, bucket, s3, {"kind": "jsonl-parts", "compression": "none"}, sweep, numbers)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("sweep", "numbers"), sweeps(9, "PUT refused", "PUT lost", "PUT dropped once"))
async def test_files_of_one_shard_are_never_from_two_attempts(
    desk: Desk, bucket: str, s3: S3, sweep: Sweep, numbers: Sequence[int]
) -> None:
    pytest.importorskip("pyarrow")
    await check_failing_requests(desk, bucket, s3, {"kind": "parquet", "compression": "zstd"}, sweep, numbers)


async def check_failing_requests(
    desk: Desk, bucket: str, s3: S3, store: dict[str, Any], sweep: Sweep, numbers: Sequence[int]
) -> None:
    method, fault, once = sweep
    desk.write(40)
    for number in numbers:
        desk.directory = desk.directory.with_name(f"job-{number}")
        store["url"] = url = f"{bucket}/{number}"
        asked_before = 0

        def broken(asked: Asked, number: int = number) -> int | str | None:
            nonlocal asked_before
            if asked.method != method:
                return None
            asked_before += 1
            return fault if asked_before - 1 == number or (asked_before > number and not once) else None

        s3.fault = broken
        failed = False
        try:
            result = await run(desk, from_description(store), shard_size=10)
        except StoreError as error:
            failed = True
            assert url in error.message
            assert not (once and fault in TEMPORARY), "the next attempt would have done it"
            if method == "PUT" and (desk.directory / "manifest.json").exists():
                assert verify(desk.directory) == [], "no orphan at rest, although the answer was lost"
            assert KEY_ID not in str(error) and "<" not in str(error)
        finally:
            s3.fault = lambda asked: None
        if asked_before <= number:
            assert not failed
            return  # no request was left to fail
        result = await run(desk, from_description(store), shard_size=10)
        assert result.state == "complete"
        if store["kind"] == "jsonl-parts":
            assert set(desk.answers) == set(range(2, 42))
        assert verify(desk.directory) == [], "no orphan"
        folders = from_description(store).folders
        files = [name for name in names(url, *folders) if name != "_SUCCESS"]
        shards = {name.rpartition("-")[0] for name in files}  # a run that was broken off may have cut a shard in two
        assert len(files) == len(shards) >= 4 * len(folders)
    pytest.fail("it never ended")


async def test_no_request_has_a_condition_so_a_storage_may_ignore_them(desk: Desk, bucket: str, s3: S3) -> None:
    """Two products that speak S3 overwrite in spite of `If-None-Match`."""
    tokens = put_tokens(f"{bucket}/in/tokens.csv", csv_of(40))
    await run(desk, JSONLParts(url=f"{bucket}/out"), tokens)
    assert verify(desk.directory) == []
    purge(desk.directory)
    assert {asked.method for asked in s3.asked} >= {"PUT", "GET", "HEAD", "POST"}
    assert [asked for asked in s3.asked if asked.conditions] == []


async def test_a_worker_whose_part_was_not_taken_over_leaves_an_orphan_that_the_next_start_sweeps(
    desk: Desk, bucket: str
) -> None:
    """As a worker does that was given up, or was killed after its part was written."""
    await run(desk, JSONLParts(url=bucket))
    before = names(bucket)
    with Job.resume(desk.directory) as job:
        worker = JSONLParts(url=bucket)
        worker.open(place_of(desk.directory, job.manifest), existing=True)
        spool = desk.directory / "late.spool"
        spool.write_bytes(b'{"line":2}\n')
        worker.put(Commit(Shard(0, 2, 11, 0, 10, "d"), Written(1, 11, "x")), spool)
        worker.close()
        assert len(names(bucket)) == len(before) + 1
        async with desk.client() as client:
            await job.run(client)
        assert names(bucket) == before


@pytest.mark.torture
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["jsonl-parts", "parquet"])
async def test_kill_9_at_random_moments(bucket: str, s3: S3, tmp_path: Path, kind: str) -> None:
    """50 moments in all; each driver is killed up to three times."""
    store = {"kind": kind, "compression": "none", "url": ""}
    for round_ in range(25):
        random_ = random.Random(round_)
        async with a_server(latency=Latency.fixed(0.02)) as server:
            (tmp_path / str(round_)).mkdir()
            desk = Desk(tmp_path / str(round_), server)
            store["url"] = f"{bucket}/{round_}"
            for _ in range(3):
                process = await start_driver(desk, store)
                with suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), random_.uniform(0.8, 2.0))
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            assert (await run(desk, from_description(store))).state == "complete"
            assert verify(desk.directory) == []
            assert len([name for name in names(store["url"], "", "fetches") if name != "_SUCCESS"]) == 20


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
@pytest.mark.parametrize(
    ("kind", "point", "number"),
    [
        ("jsonl-parts", "part written", 9),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("jsonl-parts", "part written", 0), ("jsonl-parts", "part written", 1), ("jsonl-parts", "stored", 3),
                ("jsonl-parts", "ledger written", 4), ("jsonl-parts", "ledger committed", 5), ("parquet", "part written", 7),
                ("parquet", "tables synced", 2),
            )
        ),
    ],
)  # fmt: skip
async def test_kill_9_of_the_driver(desk: Desk, bucket: str, s3: S3, kind: str, point: str, number: int) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    desk.write(120)
    store = {"kind": kind, "compression": "none", "url": bucket}
    process = await start_driver(desk, store, point, number)
    assert await process.wait() == -signal.SIGKILL
    result = await run(desk, from_description(store))
    assert (result.state, result.totals.fetched) == ("complete", 120)
    assert verify(desk.directory) == [], "an orphan, or an answer is not there"
    files = [name for name in names(bucket, "", "fetches") if name != "_SUCCESS"]
    assert len(files) == 12
    assert names(bucket, "_flinks") == [f"_flinks/job-{status(desk.directory).manifest.job}"]
    if kind == "jsonl-parts":
        assert set(desk.answers) == set(range(2, 122))
    assert desk.server.stats.requests <= 120 + 16 * 10
