"""Answers and tokens in object storage: a real S3 server, faults, and two drivers at one place."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import pickle
import random
import shutil
import signal
import sys
import threading
import time
import traceback
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flinks_async import ConfigError
from flinks_async.bulk import (
    Commit,
    DaskExecutor,
    InputBytes,
    InputChangedError,
    InputError,
    InputFile,
    Job,
    JobLockedError,
    JobMismatchError,
    JSONLFile,
    JSONLParts,
    Layout,
    Processes,
    Result,
    Rules,
    Shard,
    SQLiteStore,
    Store,
    StoreError,
    StoreMissingError,
    Written,
    export,
    purge,
    scan,
    status,
    verify,
)
from flinks_async.bulk import objects as module
from flinks_async.bulk.inputs import ShardReader
from flinks_async.bulk.inputs import parquet as parquet_input
from flinks_async.bulk.inputs import source as source_module
from flinks_async.bulk.job import place_of
from flinks_async.bulk.objects import Bucket, Folder, Found, place_at
from flinks_async.bulk.stores import from_description, shard_files
from flinks_async.testing import Latency

from ..cli_support import cli
from .object_storage import KEY_ID, S3, SECRET_KEY, Asked, running
from .server_desk import SECRET, Desk, a_server

pytest.importorskip("obstore")


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with running() as s3:
        yield s3


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "_RETRY", {"max_retries": 1, "backoff": {"init_backoff": timedelta(milliseconds=1)}})
    server.fault = lambda asked: None
    server.asked.clear()
    return server


@pytest.fixture
def bucket(s3: S3) -> str:
    """The URL of a new bucket."""
    name = f"b-{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{s3.port}/{name}", method="PUT")).close()
    s3.asked.clear()
    return f"s3://{name}"


def names(url: str, *folders: str) -> list[str]:
    """Everything at a place."""
    return sorted(found.name for folder in folders or ("",) for found in place_at(url, Path()).list(folder))


def job_at(desk: Desk, store: Store, tokens: str | None = None, shard_size: int = 10) -> Job:
    source = InputFile(tokens or desk.path, Layout(column="token", key_column="user"))
    return Job.start(desk.directory, source, store, {"": "here"}, shard_size=shard_size)


async def run(desk: Desk, store: Store, tokens: str | None = None, shard_size: int = 10, **options: Any) -> Result:
    with job_at(desk, store, tokens, shard_size) as job:
        async with desk.client() as client:
            return await job.run(client, **options)


# --- a job ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", [None, Processes(2)], ids=["here", "processes"])
async def test_jsonl_parts_at_a_url(desk: Desk, bucket: str, executor: Processes | None, s3: S3) -> None:
    url = f"{bucket}/a é%41/out"
    result = await run(desk, JSONLParts("gzip", f"{url}/"), executor=executor)
    assert (result.state, result.totals.fetched) == ("complete", 200)
    parts = [name for name in names(url) if name.startswith("answers-")]
    assert len(parts) == 20
    assert names(url) == sorted(["_SUCCESS", *parts])
    success = json.loads(b"".join(place_at(url, Path()).at("_SUCCESS").open("rb")))
    assert success == {"job": status(desk.directory).manifest.job, "files": parts}
    assert set(desk.answers) == set(range(2, 202))
    assert verify(desk.directory) == []
    assert not any("uploads" in asked.path for asked in s3.asked), "no multipart upload"
    assert not (desk.directory / "parts").exists()
    (removed, *_) = purge(desk.directory)
    assert removed == f"20 files of answers in {url}"
    assert names(url, "", "_flinks") == []


@pytest.mark.parametrize("executor", [None, Processes(2)], ids=["here", "processes"])
async def test_parquet_at_a_url(desk: Desk, bucket: str, executor: Processes | None) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    from flinks_async.bulk.stores.parquet import ParquetStore

    await run(desk, ParquetStore(url=bucket), executor=executor)
    assert verify(desk.directory) == []
    place = place_at(bucket, Path())
    rows = [pq.read_table(place.at(name).open("rb")).num_rows for name in names(bucket, "fetches")]
    assert rows == [10] * 20
    with pytest.raises(StoreError, match=f"Query {bucket}"):
        list(export(desk.directory))
    purge(desk.directory)
    assert names(bucket, "", "_flinks", "fetches", "accounts") == []


async def test_partitions_at_a_url(desk: Desk, bucket: str) -> None:
    pytest.importorskip("pyarrow")
    from flinks_async.bulk.stores.parquet import ParquetStore

    await run(desk, ParquetStore(url=bucket, fetched_on="2026-11-28"))
    assert verify(desk.directory) == []
    assert len(names(bucket, "fetches/fetched_on=2026-11-28")) == 20
    purge(desk.directory)
    assert names(bucket, "", "_flinks", "fetches/fetched_on=2026-11-28") == []


def test_a_file_that_vanishes_while_a_folder_is_listed_hides_no_other(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}").write_bytes(b"")
    order = [entry.name for entry in os.scandir(tmp_path)]
    listing = Folder(tmp_path).list("")
    assert next(listing).name == order[0]
    (tmp_path / order[1]).unlink()
    assert [found.name for found in listing] == order[2:]


async def test_a_shared_folder(desk: Desk, tmp_path: Path) -> None:
    url = (tmp_path / "shared with blank").as_uri()
    await run(desk, JSONLParts(url=url), executor=Processes(2))
    assert len(desk.answers) == 200
    assert verify(desk.directory) == []
    found = list((tmp_path / "shared with blank").glob("answers-*.jsonl"))
    assert len(found) == 20
    assert {path.stat().st_mode & 0o777 for path in found} == {0o600}


async def test_verify_finds_what_is_missing_changed_or_too_much(desk: Desk, bucket: str) -> None:
    await run(desk, JSONLParts(url=bucket))
    place = place_at(bucket, Path())
    first, second, third, *_ = names(bucket)[1:]
    place.delete([first])
    place.put(second, b"{}\n")
    place.put(third.replace("000002", "000077"), b"")
    place.put("of-others.jsonl", b"")
    found = {problem.where.rpartition("/")[2]: problem.what for problem in verify(desk.directory)}
    assert "there is no such object" in found[first]
    assert found[second].startswith("it has 3 bytes, but")
    assert "the ledger does not know it" in found[third.replace("000002", "000077")]
    assert len(found) == 3
    with pytest.raises(StoreError, match="Nothing was removed"):
        purge(desk.directory)
    purge(desk.directory, forget_answers=True)
    assert names(bucket, "", "_flinks") == ["of-others.jsonl"]


# --- faults -----------------------------------------------------------------------------------------------------------


FAULTS = {
    "refused": 403,
    "broken": 500,
    "lost": "lost",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("method", ["PUT", "GET", "POST", "HEAD"])
async def test_a_store_that_fails_at_any_request_ends_the_run_and_the_next_one_goes_on(
    desk: Desk, bucket: str, s3: S3, method: str, fault: int | str
) -> None:
    """From the nth request of a kind on, each one fails."""
    desk.write(40)
    for number in range(200):
        desk.directory = desk.directory.with_name(f"job-{number}")
        url = f"{bucket}/{number}"
        seen = iter(range(number))

        def broken(asked: Asked, seen: Iterator[int] = seen) -> int | str | None:
            return fault if asked.method == method and next(seen, None) is None else None

        s3.fault = broken
        failed = False
        try:
            result = await run(desk, JSONLParts(url=url), shard_size=10)
        except StoreError as error:
            failed = True
            assert url in error.message
            if method == "PUT" and (desk.directory / "manifest.json").exists():
                assert verify(desk.directory) == [], "no orphan at rest, although the answer was lost"
            assert KEY_ID not in str(error) and "<" not in str(error)
        finally:
            s3.fault = lambda asked: None
        if not failed and next(seen, None) is not None:
            break  # no request was left to fail
        result = await run(desk, JSONLParts(url=url), shard_size=10)
        assert result.state == "complete"
        assert set(desk.answers) == set(range(2, 42))
        assert verify(desk.directory) == [], "no orphan"
        assert len(names(url)) == 5
    else:
        pytest.fail("it never ended")


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


DRIVER = """
import asyncio, os, signal, sys
from flinks_async import FlinksClient, config
from flinks_async.bulk import InputFile, Job, JSONLParts, Layout
from flinks_async.bulk.files import crash_points
from flinks_async.bulk.stores import from_description
import msgspec

base_url, secret, tokens, directory, store, point, number = sys.argv[1:]
left = iter(range(int(number)))

def crash(name):
    if name == point and next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    crash_points.hook = crash
    source = InputFile(tokens, Layout(column="token", key_column="user"))
    with Job.start(directory, source, from_description(msgspec.json.decode(store)), {"": "here"}, shard_size=10) as job:
        async with FlinksClient(auth_secret=secret, base_url=base_url, settings=config.bulk()) as client:
            await job.run(client)

asyncio.run(main())
"""


async def start_driver(
    desk: Desk, store: dict[str, str], point: str = "", number: int = 0
) -> asyncio.subprocess.Process:
    """A job in a process of its own, which kills itself at a point."""
    driver = desk.path.with_name("driver.py")
    driver.write_text(DRIVER)
    arguments = (desk.server.base_url, SECRET, desk.path, desk.directory, json.dumps(store), point, number)
    return await asyncio.create_subprocess_exec(sys.executable, *map(str, (driver, *arguments)))


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
    store = {"kind": kind, "compression": "none", "url": bucket}
    process = await start_driver(desk, store, point, number)
    assert await process.wait() == -signal.SIGKILL
    result = await run(desk, from_description(store))
    assert (result.state, result.totals.fetched) == ("complete", 200)
    assert verify(desk.directory) == [], "an orphan, or an answer is not there"
    files = [name for name in names(bucket, "", "fetches") if name != "_SUCCESS"]
    assert len(files) == 20
    assert names(bucket, "_flinks") == [f"_flinks/job-{status(desk.directory).manifest.job}"]
    if kind == "jsonl-parts":
        assert set(desk.answers) == set(range(2, 202))
    assert desk.server.stats.requests <= 200 + 16 * 10


# --- one job and one driver at a place --------------------------------------------------------------------------------


class Memory:
    """A place whose clock is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.files: dict[str, float] = {}

    def prepare(self, folders: Iterable[str]) -> None:
        pass

    def put(self, name: str, source: Path | bytes) -> None:
        self.files[name] = self.now

    def at(self, name: str) -> Any:
        raise NotImplementedError

    def find(self, name: str) -> Found | None:
        return Found(name, 0, self.files[name], "") if name in self.files else None

    def list(self, folder: str) -> Iterator[Found]:
        for name in sorted(self.files):
            if name.rpartition("/")[0] == folder:
                yield Found(name, 0, self.files[name], "")

    def delete(self, names: Iterable[str]) -> None:
        for name in [*names]:
            self.files.pop(name, None)

    def __str__(self) -> str:
        return "s3://there"

    def hold(self, job: str = "a" * 32, driver: str = "1") -> shard_files.Hold:
        def has_files(job: str) -> bool:
            return any(job[:8] in name for name in self.files if not name.startswith("_"))

        return shard_files.Hold(self, job, driver, has_files, clock=lambda: self.now)


def test_a_second_driver_is_refused_until_the_first_has_ended() -> None:
    place = Memory()
    first, second = place.hold(), place.hold(driver="2")
    first.take()
    place.now += 45
    with pytest.raises(JobLockedError, match=r"writes to s3://there\. If it was killed, run this again in 15 s"):
        second.take()
    first.check()  # renews
    place.now += 45
    with pytest.raises(JobLockedError, match="in 15 s"):
        second.take()
    assert set(place.files) == {"_flinks/job-" + "a" * 32, "_flinks/driver-1"}, "what was refused leaves nothing"
    first.release()
    second.take()
    second.check()


def test_a_driver_that_was_killed_is_followed_at_once_in_the_same_directory_and_after_a_minute_elsewhere() -> None:
    place = Memory()
    place.hold().take()
    place.now += 1
    place.hold().take()
    place.now += 61
    place.hold(driver="2").take()
    assert "_flinks/driver-1" not in place.files


def test_a_renewal_that_comes_with_the_end_leaves_no_mark() -> None:
    place = Memory()
    hold = place.hold()
    hold.take()
    hold.release()
    hold.renew()
    assert set(place.files) == {"_flinks/job-" + "a" * 32}


async def test_the_end_does_not_wait_for_a_storage_that_is_silent(
    desk: Desk, bucket: str, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_files, "RELEASE", 0.05)
    job = job_at(desk, JSONLParts(url=bucket))
    silent = threading.Event()
    s3.fault = lambda asked: silent.wait(30) and None
    try:
        began = time.monotonic()
        job.close()
        assert time.monotonic() - began < 5
    finally:
        silent.set()


def test_a_driver_that_slept_finds_that_another_one_has_taken_over() -> None:
    place = Memory()
    first, second = place.hold(), place.hold(driver="2")
    first.take()
    place.now += 61
    second.take()
    for _ in range(2):
        with pytest.raises(JobLockedError, match="another program has taken over s3://there"):
            first.check()
    first.release()
    second.check()
    assert "_flinks/driver-2" in place.files


@pytest.mark.parametrize("step", range(5))
def test_two_that_begin_at_the_same_moment_do_not_both_go_on(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one begins before each step of the first."""
    place = Memory()
    first, second = place.hold(), place.hold(driver="2")
    taken, left = list[shard_files.Hold](), iter(range(step))
    for name in ("find", "put", "list", "delete"):

        def late(do: Any, *arguments: Any) -> Any:
            if next(left, None) is None:
                monkeypatch.undo()
                with suppress(JobLockedError):
                    second.take()
                    taken.append(second)
            return do(*arguments)

        monkeypatch.setattr(place, name, partial(late, getattr(place, name)))
    with suppress(JobLockedError):
        first.take()
        taken.append(first)
    assert len(taken) <= 1


def test_another_job_is_refused_unless_the_first_one_wrote_nothing() -> None:
    place = Memory()
    first, second = place.hold(), place.hold("b" * 32, "2")
    first.take()
    with pytest.raises(JobMismatchError, match=f"belongs to the job {'a' * 32}"):
        second.take()
    first.release()
    place.put(f"answers-000000-{'a' * 8}-12345678.jsonl", b"")
    with pytest.raises(JobMismatchError, match="Choose another URL, or purge that job first"):
        second.take()
    place.delete([f"answers-000000-{'a' * 8}-12345678.jsonl"])
    second.take()


async def test_a_job_at_a_place_of_another_job(desk: Desk, bucket: str, tmp_path: Path) -> None:
    await run(desk, JSONLParts(url=bucket))
    before = names(bucket, "", "_flinks")
    desk.directory = tmp_path / "second"
    with pytest.raises(JobMismatchError, match=f"{bucket} belongs to the job"):
        await run(desk, JSONLParts(url=bucket))
    assert names(bucket, "", "_flinks") == before
    assert not (desk.directory / "manifest.json").exists()


async def test_a_job_is_found_after_another_one_with_files_of_other_names_came_to_its_place(
    desk: Desk, bucket: str, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    from flinks_async.bulk.stores.parquet import ParquetStore

    first, second = desk.directory, tmp_path / "second"
    await run(desk, JSONLParts(url=bucket))
    desk.directory = second
    await run(desk, ParquetStore(url=bucket))
    assert verify(first) == verify(second) == []
    assert any(line.startswith("20 files of answers") for line in purge(first))
    assert verify(second) == []


async def test_a_copy_of_a_directory_waits_for_the_first_driver_and_then_goes_on(
    desk: Desk, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = job_at(desk, JSONLParts(url=bucket))
    copy = tmp_path / "copy"
    shutil.copytree(desk.directory, copy)
    with pytest.raises(JobLockedError, match="another program works on this job"):
        Job.resume(copy)
    monkeypatch.setattr(shard_files, "EXPIRES", 0.0)
    async with desk.client() as client:
        with Job.resume(copy) as second:
            assert (await second.run(client)).totals.fetched == 200
            with pytest.raises(JobLockedError, match="taken over"):
                await first.run(client)
    first.close()
    desk.directory = copy
    assert len(desk.answers) == 200
    assert verify(copy) == []


async def test_the_output_is_gone(desk: Desk, bucket: str) -> None:
    await run(desk, JSONLParts(url=bucket))
    place_at(bucket, Path()).delete(names(bucket, "", "_flinks"))
    (problem,) = verify(desk.directory)
    assert (problem.where, problem.what) == (bucket, "it is missing")
    with pytest.raises(StoreMissingError, match=f"{bucket} is missing"):
        list(export(desk.directory))


# --- URLs, credentials, errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "s3://user:hunter2@bucket/out", "s3://hunter2@bucket", "s3://bucket/out?aws_secret_access_key=hunter2", "s3://",
        "s3:///hunter2", "s3://bucket/a//hunter2", "s3://bucket/../hunter2", "https://hunter2.s3.amazonaws.com/x", "hunter2",
        "file://hunter2/x", "file:///", "S3://bucket/hunter2", 7, Path("/hunter2"),
    ],
)  # fmt: skip
def test_urls_that_are_refused(url: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        JSONLParts(url=url)
    assert "hunter2" not in str(caught.value)
    assert str(caught.value)


@pytest.mark.parametrize("make", [JSONLFile, SQLiteStore, InputFile, status, verify])
def test_what_grows_cannot_be_at_a_url(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if make is InputFile:
        with pytest.raises(ConfigError, match="must be on a disk, not at a URL"):
            Job.start("s3://bucket/job", InputBytes(b"token-1\n"), JSONLParts())
    else:
        with pytest.raises(ConfigError, match="must be on a disk, not at a URL"):
            make("s3://bucket/answers")
    assert list(tmp_path.iterdir()) == []


async def test_no_credential_is_shown_or_kept(
    desk: Desk, bucket: str, s3: S3, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(0)
    store = JSONLParts(url=bucket)
    await run(desk, store, executor=Processes(2))
    place = place_at(bucket, Path())
    shown = [repr(store), str(vars(store)), repr(place), pickle.dumps(store.describe()).decode("latin-1"), caplog.text]
    shown += [path.read_bytes().decode("latin-1") for path in desk.directory.rglob("*") if path.is_file()]
    for status_code, text in ((403, "403"), (404, "is missing"), (301, "which AWS_REGION must name"), (500, "500")):
        s3.fault = lambda asked, code=status_code: code
        with pytest.raises(StoreError, match=text) as caught:
            list(export(desk.directory))
        shown += [str(caught.value), repr(caught.value), "".join(traceback.format_exception(caught.value))]
        assert caught.value.__context__ is None or isinstance(caught.value.__context__, OSError)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="there is no connection") as caught:
        verify(desk.directory)
    shown.append("".join(traceback.format_exception(caught.value)))
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(StoreError, match="not https, and AWS_ALLOW_HTTP is not true") as caught:
        verify(desk.directory)
    shown.append("".join(traceback.format_exception(caught.value)))
    for text in shown:
        assert SECRET_KEY not in text
        assert KEY_ID not in text


def test_credentials_of_a_profile(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_PROFILE", "work")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(
        f"[work]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    place = place_at(bucket, Path())
    place.put("a", b"1")
    assert [found.name for found in place.list("")] == ["a"]
    monkeypatch.setenv("AWS_PROFILE", "missing")
    with pytest.raises(ConfigError, match=r"the profile of AWS_PROFILE cannot be used \(ProfileNotFound\)"):
        place_at(bucket, Path())


@pytest.mark.parametrize("store", ["memory", "folder", "s3"])
def test_a_place(store: str, bucket: str, tmp_path: Path) -> None:
    """What every place does."""
    from obstore.store import MemoryStore

    places = {
        "memory": Bucket("s3://memory", MemoryStore()),
        "folder": Folder(tmp_path),
        "s3": place_at(bucket, Path()),
    }
    place = places[store]
    place.prepare(["", "sub"])
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 1000)
    place.put("sub/ä b?", source)
    place.put("top", b"one")
    place.put("top", b"two!")
    assert {found.name for found in place.list("sub")} == {"sub/ä b?"}
    assert "top" in {found.name for found in place.list("")}
    found = place.find("sub/ä b?")
    assert found is not None
    assert found.size == 256_000
    assert abs(found.modified - time.time()) < 60
    assert place.find("nothing") is None
    assert list(place.list("nothing")) == []
    with place.at("sub/ä b?").open("rb") as file:
        assert file.read(3) == b"\0\1\2"
        assert file.seek(255_990) == 255_990
        assert file.read() == bytes(range(246, 256))
        assert file.read(10) == b""
        file.seek(-5, 2)
        assert file.read(100) == bytes(range(251, 256))
        file.seek(0)
        assert b"".join(iter(lambda: file.read(1000), b"")) == bytes(range(256)) * 1000
    with pytest.raises(FileNotFoundError):
        place.at("nothing").open("rb")
    place.delete(["nothing", "top"])
    assert place.find("top") is None
    place.delete([])


def test_an_object_that_changes_while_it_is_read(bucket: str) -> None:
    place = place_at(bucket, Path())
    place.put("a", b"x" * 200_000)
    with place.at("a").open("rb") as file:
        assert file.read(10) == b"x" * 10
        place.put("a", b"y" * 200_000)
        assert file.read(10) == b"x" * 10, "already there"
        with pytest.raises(OSError, match="the object was changed"):
            file.read(100_000)


# --- tokens -----------------------------------------------------------------------------------------------------------


def put_tokens(url: str, data: bytes) -> str:
    place_at(url.rpartition("/")[0], Path()).put(url.rpartition("/")[2], data)
    return url


def csv_of(count: int, name: str = "token") -> bytes:
    return b"user,token\n" + b"".join(b"u-%07d,%s-%07d-%s\n" % (n, name.encode(), n, b"x" * 20) for n in range(count))


def parquet_of(tmp_path: Path, count: int, rows: int = 10_000) -> bytes:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    columns = {"user": [f"u-{n}" for n in range(count)], "token": [f"{uuid.UUID(int=n * 7919)}" for n in range(count)]}
    pq.write_table(pa.table({**columns, "other": ["y" * 50] * count}), tmp_path / "t.parquet", row_group_size=rows)
    return (tmp_path / "t.parquet").read_bytes()


COLUMNS = Layout(column="token", key_column="user")


class Plan:
    """A `PlanSink` that keeps the shards."""

    def __init__(self, source: InputFile, tmp_path: Path, size: int = 1000) -> None:
        self.shards: list[Shard] = []
        scan(source, key=b"k", shard_size=size, scratch=tmp_path / "scratch", sink=self)

    def shard(self, shard: Shard) -> None:
        self.shards.append(shard)

    def invalid(self, failure: Any) -> None:
        raise AssertionError(failure)

    def duplicate(self, line: int, first: int) -> None:
        raise AssertionError(line)


@pytest.mark.parametrize("format_", ["csv", "parquet", "csv.gz"])
@pytest.mark.parametrize("executor", [None, Processes(2)], ids=["here", "processes"])
async def test_tokens_at_a_url(
    desk: Desk, bucket: str, tmp_path: Path, format_: str, executor: Processes | None
) -> None:
    data = parquet_of(tmp_path, 200, 30) if format_ == "parquet" else csv_of(200)
    url = put_tokens(f"{bucket}/in/my tokens.{format_}", gzip.compress(data) if format_ == "csv.gz" else data)
    result = await run(desk, JSONLParts(url=f"{bucket}/out"), url, executor=executor)
    assert (result.state, result.totals.fetched) == ("complete", 200)
    assert status(desk.directory).manifest.path == url
    assert len(desk.answers) == 200
    assert len(desk.server.stats.per_token) == 200


@pytest.mark.parametrize("format_", ["csv", "parquet"])
def test_a_shard_reads_about_what_it_needs(bucket: str, s3: S3, tmp_path: Path, format_: str) -> None:
    count = 100_000
    data = parquet_of(tmp_path, count) if format_ == "parquet" else csv_of(count)
    source = InputFile(put_tokens(f"{bucket}/tokens.{format_}", data), COLUMNS)
    shards = Plan(source, tmp_path).shards
    assert len(shards) == 100
    reader = ShardReader(source, b"k")
    reader.read(shards[3])  # the footer of Parquet
    for number, most in ((70, 1), (20, 1), (99, 1)):
        s3.asked.clear()
        assert [token.line for token in reader.read(shards[number])] == list(
            range(shards[number].first, shards[number].last + 1)
        )
        read = sum(
            int(b) - int(a) + 1
            for a, b in (one.range.removeprefix("bytes=").split("-") for one in s3.asked if one.range)
        )
        assert len(s3.asked) <= (most if format_ == "csv" else 6)
        assert read <= (65_536 if format_ == "csv" else 800_000), f"of {len(data):,}"
    reader.close()


def test_going_through_all_shards_reads_each_byte_about_once(bucket: str, s3: S3, tmp_path: Path) -> None:
    data = csv_of(100_000)
    source = InputFile(put_tokens(f"{bucket}/tokens.csv", data), COLUMNS)
    shards = Plan(source, tmp_path).shards
    s3.asked.clear()
    reader = ShardReader(source, b"k")
    assert sum(len(reader.read(shard)) for shard in shards) == 100_000
    assert sum(one.range is not None for one in s3.asked) <= 2 * len(data) // 65_536


@pytest.mark.parametrize("rows", [1, 7, 100, 1000, 5000])
def test_shards_of_parquet_in_any_order(tmp_path: Path, rows: int) -> None:
    """The same on a disk: no shard begins at the beginning of the file."""
    path = tmp_path / "tokens.parquet"
    path.write_bytes(parquet_of(tmp_path, 2500, rows))
    source = InputFile(path, COLUMNS)
    shards = Plan(source, tmp_path, 100).shards
    order = random.Random(rows).sample(shards, len(shards)) + shards + shards[::-1]
    reader = ShardReader(source, b"k")
    for shard in order:
        tokens = reader.read(shard)  # which compares a digest
        assert [token.line for token in tokens] == list(range(shard.first, shard.last + 1))
        assert tokens[0].key == f"u-{shard.first - 1}"
    reader.close()


def test_a_shard_of_parquet_on_a_disk_does_not_read_what_is_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokens.parquet"
    path.write_bytes(parquet_of(tmp_path, 50_000, 5000))
    source = InputFile(path, COLUMNS)
    shards = Plan(source, tmp_path).shards
    decoded: list[int] = []
    plain = parquet_input._plain
    monkeypatch.setattr(parquet_input, "_plain", lambda batch: decoded.append(batch.num_rows) or plain(batch))
    reader = ShardReader(source, b"k")
    reader.read(shards[42])
    reader.close()
    assert sum(decoded) <= 3000


async def test_an_object_that_was_changed_is_refused(desk: Desk, bucket: str) -> None:
    url = put_tokens(f"{bucket}/tokens.csv", csv_of(200))
    with job_at(desk, JSONLParts(), url):
        pass
    put_tokens(url, csv_of(200, "other"))
    with pytest.raises(InputChangedError, match=f"{url} has changed since the job was started"):
        Job.resume(desk.directory)
    with pytest.raises(JobMismatchError, match="compared by ETag"):
        job_at(desk, JSONLParts(), url)
    put_tokens(url, csv_of(200))
    with Job.resume(desk.directory) as job:
        put_tokens(url, csv_of(200, "other"))
        async with desk.client() as client:
            with pytest.raises(InputChangedError):
                await job.run(client)
    assert desk.server.stats.requests == 0


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["csv", "parquet"])
async def test_a_storage_that_fails_while_tokens_are_read(
    desk: Desk, bucket: str, s3: S3, tmp_path: Path, format_: str
) -> None:
    """No failure is taken for a change, and the next run goes on."""
    data = parquet_of(tmp_path, 200, 30) if format_ == "parquet" else csv_of(200)
    url = put_tokens(f"{bucket}/tokens.{format_}", data)
    for number in range(100):
        desk.directory = tmp_path / f"job-{number}"
        seen = iter(range(number))

        def broken(asked: Asked, seen: Iterator[int] = seen) -> int | None:
            return 403 if next(seen, None) is None else None

        s3.fault, failed = broken, False
        try:
            await run(desk, JSONLParts(), url)
        except InputError as error:
            failed = True
            assert type(error) is InputError
            assert "permission is denied" in error.message
        finally:
            s3.fault = lambda asked: None
        if not failed:
            break
        assert (await run(desk, JSONLParts(), url)).state == "complete"
        assert len(desk.answers) == 200
    assert number > 3


@pytest.mark.parametrize("times", [1, 1000])
def test_an_answer_that_breaks_off(bucket: str, s3: S3, times: int) -> None:
    """Once, it is asked for again. For good, it is an error, and never half of the data."""
    put_tokens(f"{bucket}/a", bytes(100_000))
    left = iter(range(times))
    s3.fault = lambda asked: "cut" if asked.method == "GET" and next(left, None) is not None else None
    with place_at(bucket, Path()).at("a").open("rb") as file:
        if times == 1:
            assert len(file.read()) == 100_000
        else:
            with pytest.raises(OSError, match=r"object storage|no connection"):
                file.read()


def test_inputs_that_are_refused(bucket: str, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="there is no such object"):
        InputFile(f"{bucket}/nothing.csv")
    with pytest.raises(ConfigError, match="names a bucket, but no object"):
        InputFile(bucket)
    with pytest.raises(ConfigError, match="must hold no user"):
        InputFile("s3://user:hunter2@bucket/tokens.csv")
    monkeypatch.setattr(source_module, "MOST_READ_WHOLE", 100)
    packed = put_tokens(f"{bucket}/tokens.csv.gz", gzip.compress(csv_of(200)))
    with pytest.raises(InputError, match=r"is compressed or in another encoding .* store it plain, or as Parquet"):
        InputFile(packed, COLUMNS)
    InputFile(put_tokens(f"{bucket}/tokens.csv", csv_of(200)), COLUMNS)


# --- the command line, and a cluster ----------------------------------------------------------------------------------


async def test_fetch_from_and_to_a_url(desk: Desk, bucket: str, tmp_path: Path) -> None:
    tokens = put_tokens(f"{bucket}/in/tokens.csv", csv_of(30))
    directory, out = tmp_path / "job", f"{bucket}/out/"
    fetch = ["fetch", tokens, "--column", "token", "--out", out, "--job", directory]
    done = await cli(*fetch, server=desk.server)
    assert done.exit_code == 0, done.stderr
    assert f"Answers go to {out}. The job is in {directory}" in done.stderr
    assert "To resume on another machine, copy this directory there." in done.stderr
    assert f"answers: {bucket}/out (JSONL" in done.stderr
    assert len(names(f"{bucket}/out")) == 2
    assert (await cli(*fetch, server=desk.server)).exit_code == 0, "again"
    shown = await cli("status", directory)
    assert tokens in shown.stdout
    assert f"{bucket}/out (JSONL" in shown.stdout
    assert (await cli("verify", directory)).exit_code == 0
    exported = await cli("export", directory, "--out", "-")
    assert len(exported.stdout.splitlines()) == 30
    purged = await cli("purge", directory, "--yes")
    assert f"1 files of answers in {bucket}/out" in purged.stdout + purged.stderr
    assert names(f"{bucket}/out", "", "_flinks") == []
    assert (await cli("fetch", tokens, "--column", "token", "--dry-run")).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fetch", "t.csv", "--out", "s3://b/out/"], "With a URL, name --job DIR"),
        (["fetch", "s3://b/t.csv"], "With a URL, name --job DIR"),
        (["fetch", "t.csv", "--job", "j", "--out", "s3://b/answers.jsonl"], "an object cannot grow"),
        (["fetch", "t.csv", "--job", "j", "--out", "s3://b/out/", "--store", "sqlite"], "a database needs a disk"),
        (["fetch", "t.csv", "--job", "j", "--out", "s3://b/out/", "--store", "duckdb"], "a database needs a disk"),
        (["fetch", "t.csv", "--job", "j", "--out", "s3://b/out/", "--store", "postgresql"], "a database needs a disk"),
        (["fetch", "t.csv", "--job", "j", "--out", "s3://u:hunter2@b/out/"], "must hold no user"),
        (["fetch", "t.csv", "--job", "j", "--out", "ftp://hunter2/out/"], "unknown scheme"),
        (["fetch", "t.csv", "--job", "s3://b/j"], "must be on a disk"),
        (["fetch", "s3://u:hunter2@b/t.csv", "--job", "j"], "must hold no user"),
        (["status", "s3://b/j"], "DIR must be on a disk"),
        (["export", "j", "--out", "s3://b/answers.jsonl"], "use --out - and pipe it to another tool"),
    ],
)
async def test_commands_that_are_refused(
    desk: Desk, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_bytes(csv_of(3))
    if arguments[0] == "export":
        desk.directory = tmp_path / "j"
        await run(desk, JSONLParts())
    done = await cli(*arguments, server=desk.server)
    assert done.exit_code in (2, 5), done.stderr
    assert words in " ".join(done.stderr.split())
    assert "hunter2" not in done.stderr
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("s3:")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
async def test_dask_workers_write_their_parts_and_one_is_killed(bucket: str, s3: S3, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    import dask

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    env = {**s3.environment, "TEST_SECRET": SECRET, "TMPDIR": str(scratch)}
    async with a_server(latency=Latency.fixed(0.02)) as server:
        desk = Desk(tmp_path, server)
        desk.write(200)
        with dask.config.set({"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}):
            with distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=60, env=env,
            ) as cluster:  # fmt: skip
                put_tokens(f"{bucket}/tokens.csv", desk.path.read_bytes())
                executor = DaskExecutor(cluster, workers=2, secret_env="TEST_SECRET")
                with job_at(desk, JSONLParts(url=f"{bucket}/out"), f"{bucket}/tokens.csv") as job:
                    async with desk.client() as client:
                        running = asyncio.create_task(job.run(client, Rules(open_shards=4), executor=executor))
                        await server.received(60)
                        os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
                        result = await running
        assert (result.state, result.totals.fetched) == ("complete", 200)
        assert set(desk.answers) == set(range(2, 202))
        assert verify(desk.directory) == []
        assert len(names(f"{bucket}/out")) == 21
        assert server.stats.requests <= 200 + 4 * 10
    assert list((desk.directory / "spools").rglob("*.spool")) == []
