"""What other users of the machine may do to a job: nothing."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from flinks_async import ConfigError
from flinks_async.bulk import (
    Job,
    JSONLFile,
    JSONLParts,
    LedgerError,
    SQLiteStore,
    Store,
    StoreError,
    export,
    purge,
    status,
    verify,
)
from flinks_async.bulk.files import create, write_durably
from flinks_async.bulk.stores.jsonl import OwnedFile

from .memory_desk import Desk
from .test_job_care import parquet

pytestmark = pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX")

OTHER = 54321
"""A user id that no account has."""

as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def give_away(path: Path, mode: int | None = None) -> None:
    os.chown(path, OTHER, OTHER, follow_symlinks=False)
    if mode is not None:
        path.chmod(mode)


def said_by_the_other(function: Callable[[], object]) -> str:
    """What a function says in a process of the other user."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads of other tests
        child = os.fork()
    if not child:
        text = "done"
        try:
            os.setgroups([])
            os.setgid(OTHER)
            os.setuid(OTHER)
            function()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as said:
        text = said.read()
    os.waitpid(child, 0)
    return text


def assert_refused(desk: Desk, at: Path, why: str) -> None:
    """The directory of the job is refused because of `at`, and nothing is written to it."""
    before = sorted(desk.directory.rglob("*"))
    with pytest.raises(ConfigError) as caught:
        desk.job()
    assert caught.value.message.startswith(f"{at} {why}")
    assert sorted(desk.directory.rglob("*")) == before
    assert desk.transport.requests == []


class TestTheDirectory:
    @as_root
    @pytest.mark.parametrize("mode", [0o700, 0o755, 0o777])
    def test_of_another_user_is_refused(self, desk: Desk, mode: int) -> None:
        desk.directory.mkdir()
        give_away(desk.directory, mode)
        assert_refused(desk, desk.directory, f"belongs to another user ({OTHER})")

    @as_root
    def test_with_a_parent_of_another_user_is_refused(self, desk: Desk, tmp_path: Path) -> None:
        desk.directory = tmp_path / "theirs" / "ours" / "job"
        desk.directory.parent.mkdir(parents=True)
        give_away(tmp_path / "theirs")
        assert_refused(desk, tmp_path / "theirs", "belongs to another user")

    @as_root
    def test_behind_a_link_of_another_user_is_refused(self, desk: Desk, tmp_path: Path) -> None:
        shared, ours = tmp_path / "shared", tmp_path / "ours"
        ours.mkdir(mode=0o700)
        shared.mkdir()
        shared.chmod(0o1777)
        desk.directory = shared / "link"
        desk.directory.symlink_to(ours)
        give_away(desk.directory)
        assert_refused(desk, desk.directory, "belongs to another user")

    @pytest.mark.parametrize("mode", [0o777, 0o757, 0o1777])
    def test_that_others_can_write_to_is_refused(self, desk: Desk, mode: int) -> None:
        desk.directory.mkdir()
        desk.directory.chmod(mode)
        assert_refused(desk, desk.directory, f"can be written by other users (mode {mode:04o})")

    @as_root
    def test_that_a_group_can_write_to_is_refused(self, desk: Desk) -> None:
        desk.directory.mkdir()
        os.chown(desk.directory, 0, OTHER)
        desk.directory.chmod(0o770)
        assert_refused(desk, desk.directory, "can be written by other users (mode 0770)")

    def test_with_a_parent_that_others_can_write_to_is_refused(self, desk: Desk, tmp_path: Path) -> None:
        desk.directory = tmp_path / "shared" / "job"
        desk.directory.parent.mkdir()
        desk.directory.parent.chmod(0o777)
        assert_refused(desk, desk.directory.parent, "can be written by other users")

    def test_in_a_parent_with_the_sticky_bit_is_accepted(self, desk: Desk, tmp_path: Path) -> None:
        desk.directory = tmp_path / "tmp" / "job"
        desk.directory.parent.mkdir()
        desk.directory.parent.chmod(0o1777)
        assert desk.complete().state == "complete"

    def test_behind_a_circle_of_links_is_refused(self, desk: Desk, tmp_path: Path) -> None:
        desk.directory = tmp_path / "a"
        desk.directory.symlink_to(tmp_path / "b")
        (tmp_path / "b").symlink_to(desk.directory)
        with pytest.raises((StoreError, ConfigError)):
            desk.job()

    @pytest.mark.parametrize("mode", [0o755, 0o750, 0o711])
    def test_that_others_can_read_becomes_private(self, desk: Desk, mode: int) -> None:
        desk.directory.mkdir()
        desk.directory.chmod(mode)
        desk.complete()
        assert stat.S_IMODE(desk.directory.stat().st_mode) == 0o700

    def test_of_a_job_that_others_can_read_becomes_private(self, desk: Desk) -> None:
        desk.job().close()
        for folder in (desk.directory, desk.directory / "parts"):
            folder.chmod(0o755)
        desk.complete()
        for folder in (desk.directory, desk.directory / "parts"):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    def test_of_other_things_stays_as_it_is(self, desk: Desk) -> None:
        desk.directory.mkdir()
        desk.directory.chmod(0o755)
        (desk.directory / "notes.txt").touch()
        with pytest.raises(Exception, match=r"not empty: it holds notes\.txt"):
            desk.job()
        assert stat.S_IMODE(desk.directory.stat().st_mode) == 0o755

    @pytest.mark.parametrize(
        "look",
        [
            status,
            verify,
            purge,
            Job.resume,
            lambda folder: list(export(folder)),
        ],
    )
    def test_is_refused_by_every_function(self, desk: Desk, look: Callable[[Path], object]) -> None:
        desk.complete()
        desk.directory.chmod(0o777)
        with pytest.raises(ConfigError, match="can be written by other users"):
            look(desk.directory)
        desk.directory.chmod(0o700)
        assert status(desk.directory).totals.fetched == 25

    def test_of_users_who_are_trusted_is_accepted(
        self, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk.directory = tmp_path / "shared" / "job"
        desk.directory.parent.mkdir()
        desk.directory.parent.chmod(0o777)
        monkeypatch.setenv("FLINKS_TRUSTED_FOLDERS", f"/elsewhere{os.pathsep}{desk.directory.parent}")
        assert desk.complete().state == "complete"
        monkeypatch.setenv("FLINKS_TRUSTED_FOLDERS", str(tmp_path / "share"))  # a prefix of the name only
        with pytest.raises(ConfigError, match="FLINKS_TRUSTED_FOLDERS"):
            status(desk.directory)

    @as_root
    def test_of_root_is_trusted_and_of_a_third_user_is_refused(self) -> None:
        """The same from the other side, by a user who is not root."""
        with TemporaryDirectory(dir="/tmp") as folder:
            desk = Desk(Path(folder))
            for path in (desk.directory.parent, desk.directory):
                path.mkdir(exist_ok=True)
                path.chmod(0o755)
            assert "it has no manifest.json" in said_by_the_other(lambda: status(desk.directory))
            os.chown(desk.directory, OTHER + 1, OTHER)
            assert "belongs to another user" in said_by_the_other(lambda: status(desk.directory))
            give_away(desk.directory)
            assert said_by_the_other(lambda: desk.job().close()) == "done"
            assert (desk.directory / "ledger.sqlite").stat().st_uid == OTHER
            with pytest.raises(ConfigError, match="belongs to another user"):  # root is no exception
                status(desk.directory)


class TestFilesInTheDirectory:
    @pytest.mark.parametrize("name", ["job.log", "failed.jsonl.tmp", "manifest.json.tmp", "ledger.sqlite", "spools"])
    def test_a_planted_link_is_refused_and_not_followed(self, desk: Desk, tmp_path: Path, name: str) -> None:
        victim = tmp_path / "victim"
        victim.write_text("precious")
        desk.directory.mkdir(mode=0o700)
        (desk.directory / name).symlink_to(victim)
        assert_refused(desk, desk.directory / name, "is a link")
        assert victim.read_text() == "precious"

    @as_root
    @pytest.mark.parametrize("name", ["manifest.json", "ledger.sqlite", "job.log", "job.lock", "report.json"])
    def test_a_file_of_another_user_is_refused(self, desk: Desk, name: str) -> None:
        desk.complete()
        give_away(desk.directory / name, 0o666)
        for use in (status, verify, purge, lambda folder: desk.job()):
            with pytest.raises(ConfigError, match=rf"{name} belongs to another user"):
                use(desk.directory)

    @pytest.mark.parametrize("name", ["manifest.json", "ledger.sqlite", "job.log"])
    def test_a_file_that_others_can_write_to_is_refused(self, desk: Desk, name: str) -> None:
        desk.complete()
        (desk.directory / name).chmod(0o666)
        with pytest.raises(ConfigError, match=rf"{name} can be written by other users \(mode 0666\)"):
            desk.job()

    def test_a_folder_of_answers_that_others_can_write_to_is_refused(self, desk: Desk) -> None:
        desk.job().close()
        (desk.directory / "parts").chmod(0o777)
        with pytest.raises(ConfigError, match="parts can be written by other users"):
            desk.job()

    def test_a_new_file_takes_the_place_of_a_link(self, tmp_path: Path) -> None:
        victim = tmp_path / "victim"
        victim.write_text("precious")
        for name in ("new", "file.tmp"):
            (tmp_path / name).symlink_to(victim)
        os.close(create(tmp_path / "new"))
        write_durably(tmp_path / "file", b"text")
        assert victim.read_text() == "precious"
        assert not (tmp_path / "new").is_symlink()
        assert (tmp_path / "file").read_bytes() == b"text"

    def test_a_new_file_is_private_even_if_a_readable_one_was_there(self, tmp_path: Path) -> None:
        (tmp_path / "new").touch(mode=0o666)
        held = os.open(tmp_path / "new", os.O_RDONLY)  # of somebody who opened it before
        file = create(tmp_path / "new")
        os.write(file, b"secret")
        assert os.read(held, 10) == b""
        assert stat.S_IMODE(os.fstat(file).st_mode) == 0o600
        os.close(file)
        os.close(held)


class TestTheOutput:
    @as_root
    def test_an_empty_file_of_another_user_is_not_taken_for_the_own(self, tmp_path: Path) -> None:
        out = tmp_path / "out.jsonl"
        file = OwnedFile(out, tmp_path / "note.json")
        file._write(None)  # as a crash leaves it, just before the file is created
        out.touch()
        give_away(out, 0o666)
        with pytest.raises(StoreError, match="exists already and is not this job's"):
            file.create()

    @as_root
    def test_an_empty_file_of_another_user_is_no_database(self, desk: Desk, tmp_path: Path) -> None:
        out = tmp_path / "out.sqlite"
        out.touch()
        give_away(out, 0o666)
        with pytest.raises(StoreError, match="is an empty file of another user"):
            Job.start(desk.directory, desk.source(), SQLiteStore(out))
        assert out.read_bytes() == b""

    def test_an_empty_file_that_a_crash_has_left_is_replaced_by_a_private_one(self, tmp_path: Path) -> None:
        out = tmp_path / "out.jsonl"
        file = OwnedFile(out, tmp_path / "note.json")
        file._write(None)
        out.touch()
        out.chmod(0o644)
        file.create()
        assert stat.S_IMODE(out.stat().st_mode) == 0o600
        assert file.is_ours()

    def test_a_file_that_became_a_link_is_not_written_to(self, desk: Desk, tmp_path: Path) -> None:
        out, victim = tmp_path / "out.jsonl", tmp_path / "victim"
        victim.touch()

        def swap(job: Job) -> None:
            out.unlink()
            out.symlink_to(victim)

        with (
            Job.start(desk.directory, desk.source(), JSONLFile(out), shard_size=10) as job,
            pytest.raises(StoreError),
        ):
            swap(job)
            desk.run(job)
        assert victim.read_bytes() == b""

    def test_parts_are_private_whatever_was_planted(self, desk: Desk, tmp_path: Path) -> None:
        victim = tmp_path / "victim"
        victim.write_text("precious")
        with desk.job() as job:
            for shard in range(3):
                (desk.directory / "parts" / f"answers-{shard:06d}-{job.manifest.job[:8]}.jsonl").symlink_to(victim)
            assert desk.run(job).state == "complete"
        assert victim.read_text() == "precious"
        assert verify(desk.directory) == []


PRECIOUS = b"precious\n" * 100


STORES: dict[str, Callable[[], Store]] = {
    "parts": JSONLParts, "file": JSONLFile, "sqlite": SQLiteStore, "parquet": parquet,
}  # fmt: skip


def edit_receipts(desk: Desk, receipt: Any) -> None:
    with closing(sqlite3.connect(desk.directory / "ledger.sqlite")) as db, db:
        db.execute("UPDATE shards SET receipt = ?", (json.dumps(receipt).encode(),))


class TestAnEditedJob:
    """Its directory came from somebody else, or somebody edited it: it must not reach files that are not the job's."""

    @pytest.fixture
    def victim(self, desk: Desk, tmp_path: Path) -> Path:
        """A foreign file that the manifest calls the output, with its true inode."""
        with Job.start(desk.directory, desk.source(), JSONLFile(tmp_path / "out.jsonl"), shard_size=10) as job:
            desk.run(job)
        victim = tmp_path / "victim"
        victim.write_bytes(PRECIOUS)
        manifest = json.loads((desk.directory / "manifest.json").read_text())
        manifest["store"]["path"] = str(victim)
        (desk.directory / "manifest.json").write_text(json.dumps(manifest))
        found = victim.stat()
        (desk.directory / "out.json").write_text(
            json.dumps({"path": str(victim), "file": [found.st_dev, found.st_ino]})
        )
        return victim

    def forget_shards(self, desk: Desk) -> None:
        with closing(sqlite3.connect(desk.directory / "ledger.sqlite")) as db, db:
            db.execute("UPDATE shards SET done_at = NULL, receipt = NULL, lines = NULL")

    def test_with_the_inode_of_a_foreign_file_does_not_remove_it(self, desk: Desk, victim: Path) -> None:
        self.forget_shards(desk)
        assert f"left, because it is not the file that the job created: {victim}" in purge(desk.directory)
        assert victim.read_bytes() == PRECIOUS

    def test_with_the_inode_of_a_foreign_file_does_not_cut_it(self, desk: Desk, victim: Path) -> None:
        self.forget_shards(desk)
        with pytest.raises(StoreError, match="is not the file that the job created"):
            Job.resume(desk.directory)
        assert victim.read_bytes() == PRECIOUS

    @pytest.mark.parametrize("forget", [False, True])
    def test_with_the_checksum_of_a_foreign_file_neither_cuts_nor_removes_it(
        self, desk: Desk, victim: Path, forget: bool
    ) -> None:
        edit_receipts(desk, {"offset": 0, "size": 9, "sha256": sha256(b"precious\n").hexdigest()})
        with pytest.raises(StoreError, match="does not hold what the job wrote to it"):
            Job.resume(desk.directory)
        with pytest.raises(StoreError, match="lines that are not answers"):
            list(export(desk.directory))
        if forget:
            purge(desk.directory, forget_answers=True)
        else:
            with pytest.raises(StoreError, match="Nothing was removed"):
                purge(desk.directory)
        assert victim.read_bytes() == PRECIOUS

    @pytest.mark.parametrize("content", [b"{", b'{"line":1,"resp', b"\0" * 5000, b""])
    def test_and_what_a_crash_leaves_of_the_first_shard_is_still_cut(
        self, desk: Desk, victim: Path, content: bytes
    ) -> None:
        self.forget_shards(desk)
        with open(victim, "r+b") as file:  # the inode stays
            file.truncate()
            file.write(content)
        with Job.resume(desk.directory) as job:
            assert victim.stat().st_size == 0
            assert desk.run(job).state == "complete"
        assert verify(desk.directory) == []

    @pytest.mark.parametrize(
        "name", ["../../victim", "/etc/passwd", "..", "", "parts", "\0", "answers-000000-{job}.jsonl/.."]
    )
    def test_with_the_name_of_a_foreign_file_in_a_receipt_does_not_show_it(
        self, desk: Desk, tmp_path: Path, name: str
    ) -> None:
        (tmp_path / "victim").write_bytes(b'{"line":1}\n')
        with desk.job() as job:
            desk.run(job)
        edit_receipts(desk, {"file": name.format(job=job.manifest.job[:8]), "size": 11, "sha256": "0" * 64})
        before = sorted(desk.directory.glob("parts/**/*"))
        uses: list[Callable[[], object]] = [
            lambda: list(export(desk.directory)), lambda: verify(desk.directory), lambda: Job.resume(desk.directory),
        ]  # fmt: skip
        for use in uses:
            with pytest.raises(LedgerError, match="which is not of this job"):
                use()
        assert sorted(desk.directory.glob("parts/**/*")) == before, "what the job has made was removed"
        purge(desk.directory)
        assert not desk.directory.exists()
        assert (tmp_path / "victim").exists()

    def test_with_a_link_in_place_of_a_part_does_not_show_its_target(self, desk: Desk, tmp_path: Path) -> None:
        (tmp_path / "victim").write_bytes(b'{"line":1,"secret":2}\n')
        desk.complete()
        part = min((desk.directory / "parts").iterdir())
        part.unlink()
        part.symlink_to(tmp_path / "victim")
        with pytest.raises(LedgerError):
            list(export(desk.directory))
        purge(desk.directory, forget_answers=True)
        assert (tmp_path / "victim").exists()

    @pytest.mark.parametrize("name", ["../../victim", "fetches/../../../victim", "accounts/000000-{job}.parquet"])
    def test_with_the_name_of_a_foreign_table_in_a_receipt_does_not_read_it(self, desk: Desk, name: str) -> None:
        with Job.start(desk.directory, desk.source(), parquet(), shard_size=10) as job:
            desk.run(job)
        named = {"name": name.format(job=job.manifest.job[:8]), "rows": 1, "size": 1, "sha256": ""}
        edit_receipts(desk, {"version": 1, "files": [named] * 4})
        before = sorted(desk.directory.glob("parts/**/*"))
        uses: list[Callable[[], object]] = [lambda: verify(desk.directory), lambda: Job.resume(desk.directory)]
        for use in uses:
            with pytest.raises(LedgerError, match=r"names the file .*, which is not of this job"):
                use()
        assert sorted(desk.directory.glob("parts/**/*")) == before

    @pytest.mark.parametrize(
        "receipt", [[], {}, None, "x", 5, {"file": 5}, {"rows": []}, {"files": [{}]}, {"offset": -1}]
    )
    @pytest.mark.parametrize("kind", STORES)
    def test_with_any_receipt_is_broken_and_can_be_purged(self, desk: Desk, kind: str, receipt: Any) -> None:
        with Job.start(desk.directory, desk.source(), STORES[kind](), shard_size=10) as job:
            desk.run(job)
        edit_receipts(desk, receipt)
        with pytest.raises(LedgerError):
            verify(desk.directory)
        if isinstance(receipt, Mapping) and kind != "sqlite":  # its commit marks tell, not the receipts
            with pytest.raises(LedgerError):
                Job.resume(desk.directory)
        purge(desk.directory)
        assert not desk.directory.exists()


@pytest.mark.parametrize("value", [".", "data", "/tmp:data", "~"])
def test_trusted_folders_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("FLINKS_TRUSTED_FOLDERS", value)
    with pytest.raises(ConfigError, match="FLINKS_TRUSTED_FOLDERS must hold absolute paths"):
        status(tmp_path)
