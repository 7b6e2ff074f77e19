"""What other users of the machine may do to a job: nothing."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from flinks_async import ConfigError
from flinks_async.bulk import Job, JSONLFile, SQLiteStore, StoreError, export, purge, status, verify
from flinks_async.bulk.files import create, write_durably
from flinks_async.bulk.stores.answer_files import OwnedFile

from .test_job import Desk

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


def refused(desk: Desk, at: Path, why: str) -> None:
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
        refused(desk, desk.directory, f"belongs to another user ({OTHER})")

    @as_root
    def test_with_a_parent_of_another_user_is_refused(self, desk: Desk, tmp_path: Path) -> None:
        desk.directory = tmp_path / "theirs" / "ours" / "job"
        desk.directory.parent.mkdir(parents=True)
        give_away(tmp_path / "theirs")
        refused(desk, tmp_path / "theirs", "belongs to another user")

    @as_root
    def test_behind_a_link_of_another_user_is_refused(self, desk: Desk, tmp_path: Path) -> None:
        shared, ours = tmp_path / "shared", tmp_path / "ours"
        ours.mkdir(mode=0o700)
        shared.mkdir()
        shared.chmod(0o1777)
        desk.directory = shared / "link"
        desk.directory.symlink_to(ours)
        give_away(desk.directory)
        refused(desk, desk.directory, "belongs to another user")

    @pytest.mark.parametrize("mode", [0o777, 0o757, 0o1777])
    def test_that_others_can_write_to_is_refused(self, desk: Desk, mode: int) -> None:
        desk.directory.mkdir()
        desk.directory.chmod(mode)
        refused(desk, desk.directory, f"can be written by other users (mode {mode:04o})")

    @as_root
    def test_that_a_group_can_write_to_is_refused(self, desk: Desk) -> None:
        desk.directory.mkdir()
        os.chown(desk.directory, 0, OTHER)
        desk.directory.chmod(0o770)
        refused(desk, desk.directory, "can be written by other users (mode 0770)")

    def test_with_a_parent_that_others_can_write_to_is_refused(self, desk: Desk, tmp_path: Path) -> None:
        desk.directory = tmp_path / "shared" / "job"
        desk.directory.parent.mkdir()
        desk.directory.parent.chmod(0o777)
        refused(desk, desk.directory.parent, "can be written by other users")

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
        refused(desk, desk.directory / name, "is a link")
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
