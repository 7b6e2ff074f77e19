"""Tokens in object storage, read by ranges."""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flinks_async import ConfigError
from flinks_async.bulk import (
    InputChangedError,
    InputError,
    InputFile,
    Job,
    JobMismatchError,
    JSONLParts,
    Processes,
    Shard,
    scan,
    status,
)
from flinks_async.bulk.inputs import ShardReader
from flinks_async.bulk.inputs import rows as rows_module
from flinks_async.bulk.inputs import source as source_module
from flinks_async.bulk.objects import place_at

from ..server_desk import Desk
from .s3 import S3, Asked
from .support import COLUMNS, csv_of, job_at, parquet_of, put_tokens, run

pytest.importorskip("obstore")


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
    plain = rows_module._plain
    monkeypatch.setattr(rows_module, "_plain", lambda batch: decoded.append(batch.num_rows) or plain(batch))
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
@pytest.mark.parametrize(
    ("format_", "numbers"),
    [
        ("csv", range(0, 100, 3)),
        ("parquet", range(1, 100, 3)),
        *(pytest.param(format_, range(100), marks=pytest.mark.torture) for format_ in ("csv", "parquet")),
    ],
)
async def test_a_storage_that_fails_while_tokens_are_read(
    desk: Desk, bucket: str, s3: S3, tmp_path: Path, format_: str, numbers: range
) -> None:
    """No failure is taken for a change, and the next run goes on. In torture, each request fails, otherwise every third."""
    data = parquet_of(tmp_path, 200, 30) if format_ == "parquet" else csv_of(200)
    url = put_tokens(f"{bucket}/tokens.{format_}", data)
    for number in numbers:
        desk.directory = tmp_path / f"job-{number}"
        seen = iter(range(number))

        def broken(asked: Asked, seen: Iterator[int] = seen) -> int | None:
            return 403 if next(seen, None) is None else None

        s3.fault, failed = broken, False
        try:
            await run(desk, JSONLParts(), url, shard_size=50)
        except InputError as error:
            failed = True
            assert type(error) is InputError
            assert "permission is denied" in error.message
        finally:
            s3.fault = lambda asked: None
        if not failed:
            break
        assert (await run(desk, JSONLParts(), url, shard_size=50)).state == "complete"
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
