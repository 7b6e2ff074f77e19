"""What a job refuses: another job, files of others, an input that is gone or changed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flinks_async import ConfigError
from flinks_async.bulk import (
    InputChangedError,
    InputError,
    Job,
    JobLockedError,
    JobMismatchError,
    JSONLFile,
    JSONLParts,
    LedgerError,
    purge,
    status,
    verify,
)

from .memory_desk import ORIGIN, Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_another_job_in_the_same_directory_is_refused_and_told_what_differs(desk: Desk) -> None:
    desk.job().close()
    before = (desk.directory / "manifest.json").read_bytes()
    with pytest.raises(JobMismatchError, match="`key_column` was user and is now not set"):
        Job.start(desk.directory, desk.source(key_column=None), JSONLParts(), ORIGIN)
    with pytest.raises(JobMismatchError, match="store"):
        Job.start(desk.directory, desk.source(), JSONLParts("gzip"), ORIGIN)
    with pytest.raises(JobMismatchError, match=r"the host was toolbox-api\.private\.fin\.ag and is now evil"):
        Job.start(desk.directory, desk.source(), JSONLParts(), {"": "evil"})
    desk.write(["another"])
    with pytest.raises(JobMismatchError, match="the file of tokens has changed"):
        desk.job()
    with pytest.raises(InputChangedError, match="has changed since the job was started"):
        Job.resume(desk.directory)
    assert (desk.directory / "manifest.json").read_bytes() == before


def test_a_file_of_tokens_that_moved_is_found_by_its_content(desk: Desk) -> None:
    desk.job().close()
    moved = desk.path.rename(desk.path.with_name("moved.csv"))
    with Job.resume(desk.directory, path=moved) as job:
        assert desk.run(job).state == "complete"


def test_a_file_of_tokens_may_have_another_name_later(desk: Desk) -> None:
    desk.job().close()
    moved = desk.path.rename(desk.path.with_name("moved.bak"))
    with Job.resume(desk.directory, path=moved) as job:
        assert desk.run(job).state == "complete"
    assert len(desk.answers) == 25


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8")
def test_a_name_that_is_not_text_is_refused_before_anything_is_made(desk: Desk) -> None:
    name = os.fsdecode(b"\xff.csv")
    with pytest.raises(InputError, match="is not UTF-8"):
        Job.start(desk.directory, desk.source(), JSONLFile(desk.path.with_name(name)), ORIGIN)
    desk.path = desk.path.rename(desk.path.with_name(name))
    with pytest.raises(InputError, match="is not UTF-8"):
        desk.job()
    assert not desk.directory.exists()


def test_a_file_of_tokens_that_is_gone_is_named(desk: Desk) -> None:
    desk.job().close()
    desk.path.unlink()
    with pytest.raises(
        InputError, match=r"was started with .*tokens\.csv; if that file was moved, give its new `path`"
    ):
        Job.resume(desk.directory)


@pytest.mark.parametrize("instance_column", [None, "user"])
def test_clients_that_do_not_fit_the_input_are_refused_before_every_token_fails(
    desk: Desk, instance_column: str | None
) -> None:
    source = desk.source(key_column=None, instance_column=instance_column)
    wrong: Any = desk.client() if instance_column else {"u-2": desk.client()}
    with Job.start(desk.directory, source, JSONLParts(), ORIGIN) as job:
        for clients in (wrong, {}):
            with pytest.raises(ConfigError, match="run the job with"):
                asyncio.run(job.run(clients))
        assert job.totals.pending == 25


def test_a_folder_of_other_things_is_not_touched(desk: Desk) -> None:
    desk.directory.mkdir()
    (desk.directory / "holiday.jpg").write_text("x")
    with pytest.raises(JobMismatchError, match=r"not empty: it holds holiday.jpg"):
        desk.job()
    assert os.listdir(desk.directory) == ["holiday.jpg"]
    for look in (status, verify, purge, Job.resume):
        with pytest.raises(JobMismatchError, match=r"has no manifest.json"):
            look(desk.directory)


@pytest.mark.parametrize("name", ["failed.jsonl", "report.json", "ledger.sqlite", "duplicates.jsonl", "spools/answers"])
def test_answers_cannot_go_where_the_job_writes_something_else(desk: Desk, name: str) -> None:
    path = desk.directory / name
    with pytest.raises(ConfigError, match="is a name that the job uses itself"):
        Job.start(desk.directory, desk.source(), JSONLFile(path), ORIGIN)
    assert not desk.directory.exists()
    with Job.start(desk.directory, desk.source(), JSONLFile(desk.directory / "mine.jsonl"), ORIGIN) as job:
        assert desk.run(job).state == "complete"


def test_two_processes_cannot_have_the_same_job(desk: Desk) -> None:
    program = (
        "import sys; from flinks_async.bulk import *\n"
        "try: Job.resume(sys.argv[1])\n"
        "except JobLockedError as error: print(error)"
    )
    with desk.job():
        with pytest.raises(JobLockedError):
            desk.job()
        ran = subprocess.run(
            [sys.executable, "-c", program, desk.directory], capture_output=True, encoding="utf-8", check=True
        )
    assert "another process works on the job" in ran.stdout
    desk.job().close()


def test_a_job_without_its_ledger_is_never_begun_anew(desk: Desk) -> None:
    desk.complete()
    for file in desk.directory.glob("ledger*"):
        file.unlink()
    for again in (desk.job, lambda: Job.resume(desk.directory), lambda: verify(desk.directory)):
        with pytest.raises(LedgerError, match="missing"):
            again()
    assert list((desk.directory / "parts").iterdir())


def test_a_ledger_of_another_job_is_refused(desk: Desk, tmp_path: Path) -> None:
    desk.job().close()
    other = Desk(tmp_path / "other") if (tmp_path / "other").mkdir() is None else desk
    other.job().close()
    (other.directory / "ledger.sqlite").replace(desk.directory / "ledger.sqlite")
    with pytest.raises(JobMismatchError, match="is not the ledger of"):
        desk.job()


def test_a_broken_manifest_is_refused(desk: Desk) -> None:
    desk.job().close()
    (desk.directory / "manifest.json").write_text("{")
    with pytest.raises(LedgerError, match="broken"):
        desk.job()
    (desk.directory / "manifest.json").write_text('{"version": 99}')
    with pytest.raises(LedgerError, match="newer version"):
        desk.job()


@pytest.mark.parametrize(
    "change",
    [
        {"layout": []}, {"layout": {"column": 5}}, {"store": 5}, {"origin": []}, {"size": "1"}, {"job": "../../x"},
        {"path": None}, {"shard_size": "x"}, {"created": 5},
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_that_somebody_edited_is_refused(desk: Desk, change: dict[str, Any]) -> None:
    desk.job().close()
    path = desk.directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for use in (desk.job, lambda: Job.resume(desk.directory), lambda: status(desk.directory)):
        with pytest.raises(LedgerError, match=r"manifest\.json is broken"):
            use()


def test_a_file_is_no_directory_of_a_job(desk: Desk) -> None:
    desk.directory.write_text("mine")
    with pytest.raises(JobMismatchError, match="is a file, but a job needs a directory"):
        desk.job()
    with pytest.raises(JobMismatchError, match="is not the directory of a job"):
        status(desk.directory)


def test_an_input_that_changes_while_it_is_fetched_ends_the_run(desk: Desk) -> None:
    with desk.job() as job:
        desk.write([f"other-{number}" for number in range(25)])
        with pytest.raises(InputChangedError, match="Lines 2 to 11"):
            desk.run(job)
    assert desk.transport.requests == []
