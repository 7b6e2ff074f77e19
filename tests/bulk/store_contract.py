"""The contract of every store: inherit `StoreContract` in a test class, and define how the store is made and read."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import msgspec
import pytest
from attrs import evolve

from flinks_async.bulk.errors import StoreError, StoreMissingError
from flinks_async.bulk.files import crash_points
from flinks_async.bulk.records import Commit, Failure, Shard
from flinks_async.bulk.spool import Spool
from flinks_async.bulk.stores import Place, Problem, Store, from_description
from flinks_async.bulk.stores.protocol import keeps_spools
from flinks_async.errors import ConfigError
from flinks_async.testing.data import expected_body

JOB = "0123456789abcdef" * 2
OTHER_JOB = "fedcba9876543210" * 2

Bodies = Mapping[int, bytes]

SHARDS: tuple[Bodies, ...] = (
    {
        2: expected_body("t-2", size="medium"),
        1: expected_body("t-1", size="small"),
        3: expected_body("t-3", shape="null"),
    },
    {5: expected_body("t-5", size="medium", shape="object"), 4: expected_body("t-4", size="medium")},
    {},
    {9: expected_body("t-9", size="medium")},
)
"""Answers of each shard by line, in the order in which they came. No token of the third one had an answer."""


class Summary(NamedTuple):
    """The parts of an answer that must be found in the store."""

    key: str | None
    request_id: str | None
    accounts: int
    transactions: int
    total: Decimal

    @classmethod
    @cache
    def of(cls, key: str | None, body: bytes) -> Summary:
        """`total` is that of the balances of all transactions."""
        answer = json.loads(body, parse_float=Decimal, parse_int=Decimal)
        details = answer["GetAccountsDetail"] or []
        accounts = [a for d in ([details] if isinstance(details, dict) else details) for a in d.get("Accounts", ())]
        moves = [move for account in accounts for move in account["Transactions"]]
        total = sum((move["Balance"] for move in moves), Decimal())
        return cls(key, answer["RequestId"], len(accounts), len(moves), total)


Summaries = dict[int, Summary]


def expected(*shards: int) -> Summaries:
    return {line: Summary.of(f"k-{line}", body) for shard in shards for line, body in SHARDS[shard].items()}


def spool_lines(bodies: Bodies) -> list[bytes]:
    """As a job writes them."""
    return [
        b'{"line":%d,"key":"k-%d","response":%b,"meta":{"status":200,"attempts":1}}\n' % (line, line, body)
        for line, body in bodies.items()
    ]


MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where that can be, since some stores sync by themselves."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


ODD_NAMES = (
    "a?b", "a#b", "a%41b", "a;b", "a'b", 'a"b', "a\nb", "-a", "a*[b]", " a ", "é😀", "a\\b", "~a", "$HOME", ":memory:",
    "file:a?mode=memory", "a\udcffb", "{a}", "a&b=c", "..a", "\u202eab",
)  # fmt: skip


class Crash(BaseException):
    """Stands for the end of the process."""


@contextmanager
def at_points(hook: Callable[[str], object]) -> Iterator[None]:
    crash_points.hook = hook
    try:
        yield
    finally:
        crash_points.hook = None


class Bench:
    """A job's directory, and the part of the ledger that matters here."""

    def __init__(self, folder: Path, make: Callable[[], Store], job: str = JOB) -> None:
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.place = Place(job, folder, keyed=True)
        self.commits: dict[int, Commit] = {}
        self._make = make
        self.store = make()

    def start(self) -> Bench:
        """Opens the store as a job does."""
        self.store.close()
        self.store = self._make()
        self.store.open(self.place)
        receipts = {shard: commit.receipt for shard, commit in self.commits.items()}
        for commit in self.store.recover(receipts):
            assert commit.shard.id not in receipts, "the ledger has it"
            self.commits[commit.shard.id] = commit
        return self

    def handed(self, shard: int, bodies: Bodies | None = None) -> tuple[Commit, Path]:
        """A finished spool, as it is handed over."""
        answers = SHARDS[shard] if bodies is None else bodies
        path = self.folder / "spools" / f"{shard:06d}.spool"
        path.parent.mkdir(exist_ok=True)
        spool = Spool(path, self.store.spool_compression, kept=keeps_spools(self.store))
        spool.write(spool_lines(answers))
        first = 3 * shard + 1
        failures = tuple(
            Failure(line, "final", "NotFoundError", "no such token", key=f"k-{line}", attempts=1)
            for line in range(first, first + 3)
            if line not in answers
        )
        return Commit(Shard(shard, first, first + 2, 0, 3, "d"), spool.finish(), failures), path

    def put(self, shard: int, bodies: Bodies | None = None) -> Commit:
        """Hands a shard over."""
        return self.take(*self.handed(shard, bodies))

    def take(self, commit: Commit, spool: Path) -> Commit:
        """Hands a spool over, and notes its shard in the ledger."""
        receipt = self.store.put(commit, spool)
        assert msgspec.json.decode(msgspec.json.encode(receipt)) == receipt, "plain JSON"
        spool.unlink(missing_ok=True)
        self.commits[commit.shard.id] = evolve(commit, receipt=receipt)
        return self.commits[commit.shard.id]

    def put_missing(self, *shards: int) -> None:
        for shard in shards:
            if shard not in self.commits:
                self.put(shard)

    def problems(self) -> list[Problem]:
        """As `verify` in a process of its own; the ledger's commits come without their failures."""
        self.look()
        return list(self.store.verify(evolve(self.commits[shard], failures=()) for shard in sorted(self.commits)))

    def missing(self) -> list[int | None]:
        """Shards whose answers are not there, as `purge` sees it in a process of its own."""
        self.look()
        commits = [evolve(commit, failures=()) for commit in self.commits.values() if commit.written.lines]
        return [problem.shard for problem in self.store.missing(commits)]

    def look(self) -> None:
        """Opens what is there, in a process of its own."""
        self.store.close()
        self.store = self._make()
        self.store.open(self.place, existing=True)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Makes a folder a read-only disk, where the system lets us."""
    try:
        subprocess.run(["mount", "--bind", folder, folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root can mount a folder")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True, capture_output=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def as_somebody_else(folder: Path) -> Iterator[None]:
    """Takes all rights at a folder away, from root too."""
    folder.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o700)


class StoreContract:
    """Tests that every store must pass."""

    tmp_path = tmp_path

    os_calls: tuple[str, ...] = ("write", "fsync", "replace")
    """Functions of `os` that the store calls."""

    def make(self, folder: Path) -> Store:
        """A new store, for the job in a folder."""
        raise NotImplementedError

    def read(self, bench: Bench) -> Summaries:
        """The content of the output, read as a user would read it."""
        raise NotImplementedError

    def damages(self, bench: Bench) -> Mapping[str, Callable[[], object]]:
        """By name: ways to damage the output, each of which `verify` must find."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _fast_disk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A sync takes milliseconds; whether it is called is another test's question, with a trace of system calls."""
        monkeypatch.setattr(os, "fsync", lambda file: None)

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Bench]:
        folder = tmp_path / "job"
        bench = Bench(folder, lambda: self.make(folder))
        yield bench
        bench.store.close()

    def test_its_description_makes_it_again(self, bench: Bench) -> None:
        description = bench.store.describe()
        again = from_description(msgspec.json.decode(msgspec.json.encode(description)))
        assert type(again) is type(bench.store)
        assert again.describe() == description

    def test_answers_are_in_the_output_and_nothing_is_wrong(self, bench: Bench) -> None:
        bench.start().put_missing(0, 1, 2, 3)
        assert bench.problems() == []
        assert self.read(bench) == expected(0, 1, 3)

    def test_a_job_goes_on(self, bench: Bench) -> None:
        bench.start().put_missing(0, 1)
        bench.store.close()
        bench.store.close()
        bench.start().put_missing(2, 3)
        assert bench.problems() == []
        assert self.read(bench) == expected(0, 1, 3)

    def test_no_answers_at_all(self, bench: Bench) -> None:
        bench.start().put_missing(2)
        assert bench.problems() == []
        assert self.read(bench) == {}
        bench.start().put_missing(0)
        assert self.read(bench) == expected(0)

    def test_a_crash_between_store_and_ledger(self, bench: Bench) -> None:
        bench.start().put_missing(0)
        bench.store.put(*bench.handed(1))
        bench.store.close()
        bench.start().put_missing(1, 3)
        assert self.read(bench) == expected(0, 1, 3)
        assert bench.problems() == []

    def test_a_crash_at_every_point(self, tmp_path: Path) -> None:
        points = self._points(tmp_path / "all")
        assert points, "a store says where it is"
        for number, name in enumerate(points):
            if name.startswith("spool"):  # before the store has it
                continue
            folder = tmp_path / str(number)
            bench = Bench(folder, lambda folder=folder: self.make(folder))
            left = iter(range(number))

            def crash(_: str, left: Iterator[int] = left) -> None:
                if next(left, None) is None:
                    raise Crash

            with at_points(crash), pytest.raises(Crash):
                bench.start().put_missing(0, 1)
            bench.store.close()
            bench.start().put_missing(0, 1, 3)
            assert self.read(bench) == expected(0, 1, 3), name
            assert bench.problems() == [], name
            bench.store.close()

    def _points(self, folder: Path) -> list[str]:
        points: list[str] = []
        bench = Bench(folder, lambda: self.make(folder))
        with at_points(points.append):
            bench.start().put_missing(0, 1)
        bench.store.close()
        return points

    @pytest.mark.parametrize("error", [errno.ENOSPC, pytest.param(errno.EIO, marks=pytest.mark.slow)])
    def test_each_call_of_the_system_fails_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
    ) -> None:
        for name in self.os_calls:
            for number in range(1000):
                folder = tmp_path / f"{name}-{number}"
                bench = Bench(folder, lambda folder=folder: self.make(folder))
                spools = [bench.handed(0), bench.handed(1)]
                with monkeypatch.context() as patch:
                    failed = _fail(patch, name, number, error)
                    try:
                        bench.start()
                        for commit, spool in spools:
                            bench.take(commit, spool)
                    except StoreError as caught:
                        assert os.strerror(error) in str(caught)
                        assert str(folder) in str(caught)
                    else:
                        assert not failed, f"os.{name} failed and nobody noticed"
                bench.store.close()
                bench.start().put_missing(0, 1, 3)
                assert self.read(bench) == expected(0, 1, 3)
                assert bench.problems() == []
                bench.store.close()
                if not failed:
                    break

    def test_files_of_others_stay(self, bench: Bench) -> None:
        bench.start().put_missing(0)
        parts = bench.place.parts
        parts.mkdir(exist_ok=True)
        for path in (
            bench.folder / "notes.txt",
            parts / "notes.jsonl",
            parts / f"answers-000000-{OTHER_JOB[:8]}.jsonl",
        ):
            path.write_bytes(b"not yours\n")
        bench.store.close()
        bench.start().put_missing(1)
        assert bench.problems() == []
        bench.store.purge()
        assert [data for data in snapshot(bench.folder).values() if data == b"not yours\n"] == [b"not yours\n"] * 3

    def test_damage_is_found(self, tmp_path: Path) -> None:
        names: list[str] = []
        while True:
            folder = tmp_path / str(len(names))
            bench = Bench(folder, lambda folder=folder: self.make(folder))
            bench.start().put_missing(0, 1, 2)
            assert bench.problems() == []
            bench.store.close()
            todo = {name: damage for name, damage in self.damages(bench).items() if name not in names}
            if not todo:
                break
            name, damage = next(iter(todo.items()))
            damage()
            names.append(name)
            try:
                found = bench.problems()
            except StoreError as error:  # it cannot even be opened
                found = [Problem(str(folder), error.message)]
            assert found, f"verify did not find: {name}"
            assert all(problem.what and problem.where for problem in found)
            bench.store.close()
        assert names

    def test_a_look_makes_nothing(self, bench: Bench) -> None:
        before = sorted(bench.folder.parent.rglob("*"))
        for _ in range(2):
            with pytest.raises(StoreMissingError, match="is missing") as raised:
                bench.look()
            assert raised.value.message == f"{raised.value.where} is missing"
        assert sorted(bench.folder.parent.rglob("*")) == before

    def test_a_look_changes_nothing(self, bench: Bench) -> None:
        bench.start().put_missing(0, 2)
        bench.store.close()
        before = snapshot(bench.folder)
        assert bench.problems() == []
        bench.store.close()
        assert snapshot(bench.folder) == before

    def copy(self, folder: Path, to: Path) -> None:
        """Copies a job with its output, while the store is open: as a crash leaves it."""
        shutil.copytree(folder, to)
        for path in folder.parent.glob(f"{folder.name}?*"):  # an output of the user's choice
            shutil.copy2(path, to.with_name(path.name.replace(folder.name, to.name)))

    @pytest.fixture
    def crashed(self, bench: Bench, tmp_path: Path) -> Iterator[Bench]:
        """A job that a crash has ended."""
        bench.start().put_missing(0, 2)
        folder = tmp_path / "crashed"
        self.copy(bench.folder, folder)
        bench.store.close()
        crashed = Bench(folder, lambda: self.make(folder))
        crashed.commits = bench.commits
        yield crashed
        crashed.store.close()

    def test_a_look_after_a_crash_changes_nothing(self, crashed: Bench) -> None:
        before = snapshot(crashed.folder.parent)
        assert crashed.problems() == []
        assert crashed.missing() == []
        crashed.store.close()
        assert snapshot(crashed.folder.parent) == before
        crashed.start().put_missing(1)
        assert self.read(crashed) == expected(0, 1)

    @pytest.mark.parametrize("state", ["crashed", "closed"])
    def test_a_look_at_a_read_only_disk(self, bench: Bench, request: pytest.FixtureRequest, state: str) -> None:
        if state == "crashed":
            bench = request.getfixturevalue("crashed")
        else:
            bench.start().put_missing(0, 2)
            bench.store.close()
        with read_only(bench.folder.parent):
            assert bench.problems() == []
            assert bench.missing() == []
            bench.store.close()

    def test_purge_after_a_look_at_what_a_crash_has_left(self, crashed: Bench) -> None:
        assert crashed.missing() == []
        assert crashed.store.purge()
        crashed.store.close()
        assert not [name for name in snapshot(crashed.folder) if not name.startswith("spools")]

    def test_a_folder_that_may_not_be_read_is_not_missing(self, bench: Bench) -> None:
        if not self.os_calls:
            pytest.skip("its output is not in files")
        bench.start().put_missing(0)
        bench.store.close()
        for folder in (bench.folder, bench.place.parts):
            if folder.exists():
                with as_somebody_else(folder):
                    try:
                        found = [problem.what for problem in bench.problems()]
                        bench.store.close()
                        assert bench.missing() == []
                    except StoreError as error:
                        assert not isinstance(error, StoreMissingError)
                        found = [error.message]
                assert found
                assert all("Permission denied" in text for text in found), found

    def refuses(self, name: str) -> bool:
        """Whether the store refuses a path with this name in it, with a reason."""
        return False

    def test_odd_names(self, tmp_path: Path) -> None:
        for name in ODD_NAMES:
            folder = tmp_path / name
            bench = Bench(folder, lambda folder=folder: self.make(folder))
            if self.refuses(name):
                with pytest.raises(ConfigError, match="path must be"):
                    bench.start()
                continue
            bench.start().put_missing(0)
            readable = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_mode & 0o77]
            assert [path for path in readable if "spools" not in path.parts] == [], ascii(name)
            assert bench.problems() == [], ascii(name)
            bench.store.purge()
            bench.store.close()

    def test_answers_that_are_gone_are_missed(self, bench: Bench) -> None:
        bench.start().put_missing(0, 1, 2)
        assert bench.missing() == []
        bench.store.purge()
        try:
            found = bench.missing()
        except StoreMissingError:
            return
        assert found == [0, 1]

    def test_purge_removes_what_it_says(self, bench: Bench) -> None:
        empty = snapshot(bench.folder)
        bench.start().put_missing(0, 1)
        bench.store.close()
        bench.store.open(bench.place)
        removed = bench.store.purge()
        bench.store.close()
        assert removed
        assert all(isinstance(text, str) for text in removed)
        left = snapshot(bench.folder)
        left.pop("spools/000000.spool", None)
        left.pop("spools/000001.spool", None)
        assert left == empty


def _fail(patch: pytest.MonkeyPatch, name: str, number: int, error: int) -> list[Any]:
    """Lets the n-th call of a function of `os` fail; the list is empty until it has."""
    original = getattr(os, name)
    left = iter(range(number))
    failed: list[Any] = []

    def call(*args: Any, **options: Any) -> Any:
        if not failed and next(left, None) is None:
            failed.append(args)
            raise OSError(error, os.strerror(error), str(args[0]))
        return original(*args, **options)

    patch.setattr(os, name, call)
    return failed


def flip(path: Path, position: int = -10) -> None:
    """Changes one bit of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def truncate(path: Path, size: int = 1) -> None:
    """Cuts some bytes off."""
    path.write_bytes(path.read_bytes()[:-size])


def append(path: Path, data: bytes = b"\n") -> None:
    path.write_bytes(path.read_bytes() + data)
