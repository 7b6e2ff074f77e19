"""`verify` and `export_files` on executors: the same findings as in one process, whatever is killed."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from flinks_async import ConfigError
from flinks_async.bulk import (
    Executor,
    InProcess,
    InstanceTrouble,
    JobMismatchError,
    JSONLFile,
    JSONLParts,
    Processes,
    Progress,
    Rules,
    SQLiteStore,
    StoreError,
    WorkerError,
    export_files,
    status,
    verify,
)
from flinks_async.bulk.counters import Counters
from flinks_async.bulk.executors.protocol import Task
from flinks_async.bulk.job import place_of
from flinks_async.bulk.ledger import Ledger
from flinks_async.bulk.reading import ReadShard
from flinks_async.bulk.records import Finished

from ..cli_support import cli, said, start
from ..support import until
from .objects.support import run
from .server_desk import Desk, workers

EXECUTORS = [None, InProcess(), Processes(2)]
IDS = ["here", "threads", "processes"]


def parquet(**options: Any) -> Any:
    pytest.importorskip("pyarrow")
    from flinks_async.bulk.stores.parquet import ParquetStore

    return ParquetStore(**options)


STORES: dict[str, Callable[[], Any]] = {
    "jsonl": JSONLParts,
    "jsonl.gz": lambda: JSONLParts("gzip"),
    "parquet": parquet,
    "partition": lambda: parquet(fetched_on="2026-11-28"),
}

CASES = [
    ("jsonl", None),
    ("jsonl.gz", InProcess()),
    ("parquet", InProcess()),
    ("partition", None),
    ("jsonl", Processes(2)),
]


def parts(desk: Desk) -> list[Path]:
    return sorted(path for path in (desk.directory / "parts").rglob("*") if path.is_file())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def with_a_pipe(desk: Desk, act: Callable[[], Awaitable[None]], call: Callable[[list[Progress]], Any]) -> Any:
    """Calls something that reads a job, of which one part is a pipe without a writer until all others are read. Then `act`s,
    with the part in its place.
    """
    part, beside = parts(desk)[7], desk.directory / "beside"
    part.rename(beside)
    os.mkfifo(part)
    told: list[Progress] = []
    reading = asyncio.create_task(asyncio.to_thread(call, told))
    try:
        await until(lambda: reading.done() or (told and told[-1].total - told[-1].done == 10))
        beside.rename(part)
        await act()
        return await reading
    finally:
        if beside.exists():
            beside.rename(part)


# --- verify -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("store", "executor"), CASES)
async def test_verify_finds_the_same_on_every_executor(desk: Desk, store: str, executor: Executor | None) -> None:
    await run(desk, STORES[store]())
    before = contents(desk.directory)
    assert await asyncio.to_thread(verify, desk.directory, executor=executor) == []
    files = parts(desk)
    files[3].write_bytes(files[3].read_bytes()[:-7])
    files[11].unlink()
    files[-1].write_bytes(b"x" + files[-1].read_bytes()[1:])
    (files[0].parent / files[0].name.replace("000000", "000077")).write_bytes(b"")
    found = await asyncio.to_thread(verify, desk.directory, executor=executor)
    assert found == verify(desk.directory)
    assert len(found) == 4
    assert contents(desk.directory).keys() ^ before.keys() == {
        str(path.relative_to(desk.directory)) for path in (files[11], Path(found[-1].where))
    }, "nothing else is changed"


async def test_what_a_killed_worker_had_is_read_again_and_counts_once(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    await run(desk, JSONLParts())
    first = parts(desk)[0]
    first.write_bytes(b"{}\n")

    async def kill() -> None:
        for pid in workers():
            os.kill(pid, signal.SIGKILL)

    def call(told: list[Progress]) -> Any:
        return verify(desk.directory, executor=Processes(2), on_progress=told.append)

    (problem,) = await with_a_pipe(desk, kill, call)
    assert problem.where == str(first)
    assert "died by signal SIGKILL" in caplog.text
    assert workers() == []
    assert verify(desk.directory) == [problem]


async def test_workers_that_keep_crashing_end_it_with_an_error(desk: Desk) -> None:
    await run(desk, JSONLParts())
    for part in parts(desk):
        part.unlink()
        os.mkfifo(part)  # nobody writes to it, so no worker finishes a shard

    def all_are_killed() -> bool:
        for pid in workers():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return reading.done()

    reading = asyncio.create_task(asyncio.to_thread(verify, desk.directory, executor=Processes(2, restarts=1)))
    await until(all_are_killed)
    with pytest.raises(WorkerError, match="workers keep crashing"):
        await reading
    assert workers() == []


@pytest.mark.parametrize("executor", EXECUTORS[:2], ids=IDS[:2])
async def test_progress_tells_how_much_is_read(desk: Desk, executor: Executor | None, monkeypatch: Any) -> None:
    monkeypatch.setattr("flinks_async.bulk.reading._TELL_EVERY", 0.0)
    await run(desk, JSONLParts())
    told: list[Progress] = []
    await asyncio.to_thread(verify, desk.directory, executor=executor, on_progress=told.append)
    assert told
    assert {one.total for one in told} == {200}
    assert [one.done for one in told] == sorted(one.done for one in told)
    if executor is None:
        assert (told[-1].done, told[-1].size) == (200, sum(path.stat().st_size for path in parts(desk)))


async def test_what_workers_wait_for_is_in_progress_and_log(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flinks_async.bulk.reading._TELL_EVERY", 0.0)
    wait = InstanceTrouble("s3://b", "still no answer from s3://b", 1, 12.0, gives_up=288.0)

    class Waiting(InProcess):
        def map_shards(self, *arguments: Any) -> Any:
            execution: Any = super().map_shards(*arguments)
            execution.counters = lambda: Counters(waits=(wait,))
            return execution

    await run(desk, JSONLParts())
    told: list[Progress] = []
    await asyncio.to_thread(verify, desk.directory, executor=Waiting(), on_progress=told.append)
    assert told[0].troubles == (wait,)
    assert caplog.text.count(f"waiting: {wait}") == 1


@pytest.mark.parametrize("make", [JSONLFile, SQLiteStore])
async def test_answers_that_one_process_reads_are_refused_with_the_reason(desk: Desk, make: Any) -> None:
    await run(desk, make())
    with pytest.raises(ConfigError, match=r"An executor needs files for each shard, as JSONL parts and Parquet have"):
        await asyncio.to_thread(verify, desk.directory, executor=Processes(2))
    with pytest.raises(ConfigError, match="An export to a URL needs files for each shard"):
        export_files(desk.directory, desk.directory.with_name("out").as_uri())
    told: list[Progress] = []
    assert verify(desk.directory, on_progress=told.append) == []


async def test_an_event_loop_is_told_to_use_a_thread(desk: Desk) -> None:
    await run(desk, JSONLParts())
    with pytest.raises(ConfigError, match=r"needs an event loop of its own: call this with asyncio\.to_thread"):
        verify(desk.directory, executor=InProcess())


async def test_a_machine_that_does_not_see_the_answers_is_named(desk: Desk, tmp_path: Path) -> None:
    await run(desk, JSONLParts())
    manifest = status(desk.directory).manifest
    read = pickle.loads(pickle.dumps(ReadShard(manifest.store, place_of(tmp_path / "elsewhere", manifest))))
    with closing(Ledger(desk.directory / "ledger.sqlite", look=True)) as ledger:
        commit = next(ledger.commits())
    with pytest.raises(
        ConfigError, match=r"does not see .*elsewhere/parts\. The answers must be at the same path on all"
    ):
        read.problems(commit, tmp_path)


async def test_neither_tokens_nor_keys_are_sent_to_workers(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    await run(desk, JSONLParts())
    sent: list[bytes] = []
    plain = ReadShard.__call__

    def call(self: ReadShard, task: Task, scratch: Path) -> Finished:
        finished = plain(self, task, scratch)
        sent.append(pickle.dumps((self, task, finished)))
        return finished

    monkeypatch.setattr(ReadShard, "__call__", call)
    await asyncio.to_thread(verify, desk.directory, executor=InProcess())
    assert len(sent) == 20
    assert not any(b"token-" in data or b"u-1" in data for data in sent)


# --- export of files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("store", "executor"), CASES)
async def test_files_are_copied_as_they_are(
    desk: Desk, tmp_path: Path, store: str, executor: Executor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("TMPDIR", str(scratch))
    await run(desk, STORES[store]())
    out = tmp_path / "out" / "a b"
    for _ in range(2):
        names = await asyncio.to_thread(export_files, desk.directory, f"{out.as_uri()}/", executor=executor)
        copied = contents(out)
        success = json.loads(copied.pop("_SUCCESS"))
        assert success == {"job": status(desk.directory).manifest.job, "files": names}
        assert copied == contents(desk.directory / "parts")
        assert sorted(copied) == sorted(names)
    assert {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()} == {0o600}
    assert list(scratch.iterdir()) == []


async def test_a_worker_that_is_killed_while_it_copies_leaves_nothing_half_and_nothing_twice(
    desk: Desk, tmp_path: Path
) -> None:
    await run(desk, JSONLParts())
    out = tmp_path / "out"

    async def kill() -> None:
        assert not (out / "_SUCCESS").exists()
        for pid in workers():
            os.kill(pid, signal.SIGKILL)

    await with_a_pipe(
        desk,
        kill,
        lambda told: export_files(desk.directory, out.as_uri(), executor=Processes(2), on_progress=told.append),
    )
    copied = contents(out)
    del copied["_SUCCESS"]
    assert copied == contents(desk.directory / "parts")


@pytest.mark.parametrize("executor", EXECUTORS[:2], ids=IDS[:2])
async def test_answers_that_were_changed_are_not_copied(desk: Desk, tmp_path: Path, executor: Executor | None) -> None:
    await run(desk, JSONLParts())
    out, changed = tmp_path / "out", parts(desk)[5]
    await asyncio.to_thread(export_files, desk.directory, out.as_uri())
    changed.write_bytes(changed.read_bytes().replace(b"line", b"eniL", 1))
    before = (out / changed.name).read_bytes()
    with pytest.raises(StoreError, match=rf"{changed} differs from what the job wrote: its content was changed"):
        await asyncio.to_thread(export_files, desk.directory, out.as_uri(), executor=executor)
    assert (out / changed.name).read_bytes() == before
    assert not (out / "_SUCCESS").exists(), "readers wait for it"
    changed.unlink()
    with pytest.raises(StoreError, match=rf"{changed} cannot be read: No such file"):
        await asyncio.to_thread(export_files, desk.directory, out.as_uri(), executor=executor)


async def test_a_job_that_is_not_done_gets_no_success(desk: Desk, tmp_path: Path) -> None:
    out = tmp_path / "out"
    await run(desk, JSONLParts(), rules=Rules(max_failures=5))
    desk.directory = tmp_path / "second"
    desk.server.script_all(["bad_request"] * 30)
    assert (await run(desk, JSONLParts(), rules=Rules(max_failures=5))).state == "stopped"
    export_files(desk.directory, out.as_uri())
    assert not (out / "_SUCCESS").exists()
    assert (await run(desk, JSONLParts())).state == "complete"
    names = export_files(desk.directory, out.as_uri())
    assert sorted(path.name for path in out.iterdir()) == sorted(["_SUCCESS", *names])


async def test_places_that_are_refused(desk: Desk, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    await run(desk, JSONLParts(url=shared.as_uri()))
    own = contents(shared)
    (tmp_path / "link").symlink_to(shared)
    for name in ("shared", "link"):
        with pytest.raises(ConfigError, match=r"is where the job's answers are"):
            export_files(desk.directory, (tmp_path / name).as_uri())
    with pytest.raises(ConfigError, match="is in the directory of the job"):
        export_files(desk.directory, (desk.directory / "out").as_uri())
    with pytest.raises(ConfigError, match=r"unknown scheme|url must be"):
        export_files(desk.directory, str(tmp_path / "out"))
    for content in (b"", b'{"job": "' + b"0" * 32 + b'", "files": []}'):
        other = tmp_path / f"other-{len(content)}"
        other.mkdir(mode=0o700)
        (other / "_SUCCESS").write_bytes(content)
        with pytest.raises(JobMismatchError, match="holds the output of another job or program"):
            export_files(desk.directory, other.as_uri())
        assert contents(other) == {"_SUCCESS": content}
    assert contents(shared) == own


# --- the command line -------------------------------------------------------------------------------------------------


async def test_the_commands_read_in_processes_with_progress_and_events(desk: Desk, tmp_path: Path) -> None:
    await run(desk, JSONLParts())
    done = await cli("verify", desk.directory, "--processes", 2)
    assert (done.exit_code, done.stdout) == (0, "")
    assert "No problem found." in done.stderr
    out = tmp_path / "out"
    done = await cli("export", desk.directory, "--out", f"{out.as_uri()}/", "--processes", 2, "--progress", "json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == {
        "event": "end",
        "state": "complete",
        "reason": "",
        "exit_code": 0,
    }
    assert len(list(out.iterdir())) == 21
    done = await cli("export", desk.directory, "--out", f"{out.as_uri()}/")
    assert f"20 files written to {out.as_uri()}/" in done.stderr
    missing = parts(desk)[2]
    missing.unlink()
    for options in ([], ["--processes", 2]):
        done = await cli("verify", desk.directory, *options)
        assert (done.exit_code, done.stdout) == (1, f"{missing}: {missing} cannot be read: No such file or directory\n")
        assert "1 problem found." in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "--out", "a.jsonl", "--processes", "2"], "One file is written by one process"),
        (["export", "--out", "-", "--executor", "dask://127.0.0.1:1"], "One file is written by one process"),
        (["verify", "--executor", "dask://h:1", "--processes", "2"], "--executor does not go with --processes"),
        (["verify", "--executor", "h:1"], "--executor must be dask://HOST:PORT"),
        (["verify", "--workers", "2"], "need --executor"),
    ],
)
async def test_options_that_are_refused(desk: Desk, arguments: list[str], words: str) -> None:
    with desk.job():
        pass
    command, *options = arguments
    done = await cli(command, desk.directory, *options)
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())


async def test_a_cluster_of_the_environment_is_only_for_fetching(desk: Desk) -> None:
    await run(desk, JSONLParts())
    assert (await cli("verify", desk.directory, FLINKS_EXECUTOR="dask://127.0.0.1:1")).exit_code == 0


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs POSIX signals")
@pytest.mark.parametrize(
    ("command", "number"), [("verify", signal.SIGINT), ("export", signal.SIGTERM), ("export", signal.SIGHUP)]
)
async def test_a_signal_ends_it_at_once_with_its_exit_code_and_nothing_is_left(
    desk: Desk, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    await run(desk, JSONLParts())
    part, scratch, out = parts(desk)[7], tmp_path / "scratch", tmp_path / "out"
    part.unlink()
    os.mkfifo(part)  # nobody writes to it
    scratch.mkdir()
    options = ["--out", out.as_uri()] if command == "export" else []
    process = await start(
        command, desk.directory, *options, "--processes", 2, "--progress", "json", env={"TMPDIR": str(scratch)}
    )
    await said(process, b'"done":190')
    process.send_signal(number)
    _, stderr = await process.communicate()
    assert process.returncode == 128 + number
    end = json.loads(stderr.splitlines()[-1])
    assert (end["event"], end["state"], end["exit_code"]) == ("end", "interrupted", 128 + number)
    assert workers(process.pid) == []
    assert list(scratch.iterdir()) == []
    assert not (out / "_SUCCESS").exists()
