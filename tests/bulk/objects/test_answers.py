"""Answers in object storage: jobs from beginning to end, with a real S3 server; the command line and a cluster."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import closing
from pathlib import Path

import pytest
from attrs import evolve

from flinks_async.bulk import (
    DaskExecutor,
    Executor,
    InProcess,
    JSONLParts,
    Processes,
    Rules,
    StoreError,
    export,
    export_files,
    purge,
    status,
    verify,
)
from flinks_async.bulk.job import place_of
from flinks_async.bulk.ledger import Ledger
from flinks_async.bulk.objects import Folder, place_at
from flinks_async.bulk.stores import from_description
from flinks_async.testing import Latency

from ...cli_support import cli
from ..server_desk import SECRET, Desk, a_server
from .s3 import S3
from .support import csv_of, job_at, names, put_tokens, run

pytest.importorskip("obstore")


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


@pytest.mark.parametrize(
    ("kind", "executor"), [("parquet", InProcess()), ("jsonl", Processes(2))], ids=["here", "processes"]
)
async def test_a_large_job_is_verified_and_copied_on_an_executor(
    desk: Desk, bucket: str, s3: S3, kind: str, executor: Executor, tmp_path: Path
) -> None:
    """To another URL, and to a folder."""
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    desk.write(60)
    description = {"kind": "parquet"} if kind == "parquet" else {"kind": "jsonl-parts"}
    await run(desk, from_description({**description, "url": f"{bucket}/out"}))
    s3.asked.clear()
    assert await asyncio.to_thread(verify, desk.directory, executor=executor) == []
    assert {asked.method for asked in s3.asked} == {"HEAD", "GET"}
    copy = f"{bucket}/a copy"
    found = await asyncio.to_thread(export_files, desk.directory, copy, executor=executor)
    folder = (tmp_path / "copy").as_uri()
    assert await asyncio.to_thread(export_files, desk.directory, folder, executor=executor) == found
    for name in (*found, "_SUCCESS"):
        original = b"".join(place_at(f"{bucket}/out", Path()).at(name).open("rb"))
        assert b"".join(place_at(copy, Path()).at(name).open("rb")) == original
        assert (tmp_path / "copy" / name).read_bytes() == original
    s3.fault = lambda asked: 403 if asked.method == "PUT" else None
    with pytest.raises(StoreError, match=f"{copy}.* cannot be written: permission is denied"):
        await asyncio.to_thread(export_files, desk.directory, copy, executor=executor)
    s3.fault = lambda asked: None
    place_at(f"{bucket}/out", Path()).put(found[3], b"{}")
    (problem,) = await asyncio.to_thread(verify, desk.directory, executor=executor)
    assert problem.where == f"{bucket}/out/{found[3]}"
    with pytest.raises(StoreError, match=f"{found[3]} differs from what the job wrote: it has 2 bytes"):
        await asyncio.to_thread(export_files, desk.directory, copy, executor=executor)


async def test_a_machine_without_the_directory_of_the_job_reads_and_writes_at_a_url(
    desk: Desk, bucket: str, tmp_path: Path
) -> None:
    """A worker of a cluster whose machines share no disk."""
    await run(desk, JSONLParts(url=bucket))
    place = evolve(place_of(desk.directory, status(desk.directory).manifest), folder=tmp_path / "elsewhere")
    worker = JSONLParts(url=bucket)
    worker.open(place, existing=True)
    with closing(Ledger(desk.directory / "ledger.sqlite", look=True)) as ledger:
        assert list(worker.verify(ledger.commits())) == []
    worker.close()


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
