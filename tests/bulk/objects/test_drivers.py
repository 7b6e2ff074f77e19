"""One job, and one program at a time, at a URL."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flinks_async.bulk import (
    Job,
    JobLockedError,
    JobMismatchError,
    JSONLParts,
    StoreMissingError,
    export,
    purge,
    verify,
)
from flinks_async.bulk.objects import Found, place_at
from flinks_async.bulk.stores import shard_files

from ..server_desk import Desk
from .s3 import S3
from .support import job_at, names, run

pytest.importorskip("obstore")


class Memory:
    """A place whose clock is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.files: dict[str, float] = {}
        self.data: dict[str, bytes] = {}

    def prepare(self, folders: Iterable[str]) -> None:
        pass

    def put(self, name: str, source: Path | bytes) -> None:
        assert isinstance(source, bytes)
        self.files[name], self.data[name] = self.now, source

    def at(self, name: str) -> Any:
        return SimpleNamespace(open=lambda mode: BytesIO(self.data[name]))

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

    def hold(self, job: str = "a" * 32, driver: str = "1", folders: tuple[str, ...] = ("",)) -> shard_files.Hold:
        return shard_files.Hold(self, job, driver, folders, clock=lambda: self.now)


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


@pytest.mark.parametrize("job", ["a" * 32, "b" * 32], ids=["same job", "other job"])
@pytest.mark.parametrize("step", ["put", "list", "delete"])
def test_a_driver_that_is_refused_does_not_end_the_first_one(
    job: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one renews its mark before each step of the second."""
    place = Memory()
    first, second = place.hold(), place.hold(job, "2")
    first.take()
    place.now += 14
    seen: list[set[str]] = []

    def late(do: Any, *arguments: Any) -> Any:
        with monkeypatch.context() as undone:
            undone.setattr(place, step, do)
            seen.append(set(place.files))
            first.renew()
        return do(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(place, step, partial(late, getattr(place, step)))
        with pytest.raises((JobLockedError, JobMismatchError)):
            second.take()
    assert any("_flinks/driver-2" in names for names in seen) or step == "put"
    place.now += 31
    first.check()
    assert set(place.files) == {"_flinks/job-" + "a" * 32, "_flinks/driver-1"}


def test_a_mark_of_a_driver_that_was_killed_while_it_was_refused_ends_nobody() -> None:
    place = Memory()
    first = place.hold()
    first.take()
    place.now += 14
    place.put("_flinks/driver-2", b"")
    place.put("_flinks/job-" + "b" * 32, b"[]")
    for _ in range(100):
        place.now += 15
        first.renew()
        first.check()
    assert "_flinks/driver-1" in place.files


@pytest.mark.parametrize("step", ["list", "put"])
def test_a_driver_that_slept_and_one_that_takes_over_do_not_both_go_on(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one finds the mark expired before a step of the renewal, and removes it at the end of the renewal."""
    place = Memory()
    first, second = place.hold(), place.hold(driver="2")
    first.take()
    place.now += 61
    deleted: list[Any] = []

    def come(do: Any, *arguments: Any) -> Any:
        monkeypatch.undo()
        with monkeypatch.context() as patched:
            patched.setattr(place, "delete", lambda marks: deleted.append([*marks]))
            second.take()
        return do(*arguments)

    monkeypatch.setattr(place, step, partial(come, getattr(place, step)))
    with suppress(JobLockedError):
        first.check()
    assert deleted == [["_flinks/driver-1"]]
    with pytest.raises(JobLockedError, match="taken over"):
        first.check()
    second.check()


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
    place.now += 20
    with pytest.raises(
        JobMismatchError, match=rf"job {'a' * 32}\. .*; if it has ended without any answer, .* in 40 s$"
    ):
        second.take()
    first.release()
    place.put(f"answers-000000-{'a' * 8}-12345678.jsonl", b"")
    with pytest.raises(JobMismatchError, match=r"Choose another URL, or purge that job first$"):
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


@pytest.mark.parametrize("day", [None, "2026-11-28"])
async def test_a_place_belongs_to_one_job_also_if_another_one_would_have_files_of_other_names(
    desk: Desk, bucket: str, tmp_path: Path, day: str | None
) -> None:
    """They would share `_SUCCESS`."""
    pytest.importorskip("pyarrow")
    from flinks_async.bulk.stores.parquet import ParquetStore

    desk.write(40)
    first = desk.directory
    await run(desk, JSONLParts(url=bucket))
    before = names(bucket, "", "_flinks")
    desk.directory = tmp_path / "second"
    with pytest.raises(JobMismatchError, match=f"{bucket} belongs to the job"):
        await run(desk, ParquetStore(url=bucket, fetched_on=day))
    assert names(bucket, "", "_flinks") == before
    assert verify(first) == []
    assert any(line.startswith("4 files of answers") for line in purge(first))
    await run(desk, ParquetStore(url=bucket, fetched_on=day))
    assert verify(desk.directory) == []
    desk.directory = tmp_path / "third"
    with pytest.raises(JobMismatchError, match=f"{bucket} belongs to the job"):
        await run(desk, ParquetStore(url=bucket, fetched_on="2026-11-29"))


async def test_a_job_is_found_without_its_marks(desk: Desk, bucket: str) -> None:
    await run(desk, JSONLParts(url=bucket))
    place_at(bucket, Path()).delete(names(bucket, "_flinks"))
    assert verify(desk.directory) == []


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
