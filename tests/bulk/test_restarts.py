"""Dead workers are replaced as long as workers finish shards, and no shard is lost with one that ends, in every executor with
workers.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import shutil
from itertools import count
from pathlib import Path

import pytest

from flinks_async.bulk import WorkerError
from flinks_async.bulk.counters import Counters
from flinks_async.bulk.directory import empty
from flinks_async.bulk.executors import Work
from flinks_async.bulk.executors.dispatch import WorkerHandle, WorkersExecution, starts_of
from flinks_async.bulk.executors.protocol import Task
from flinks_async.bulk.executors.worker import Assigned, Next, Report, Start, Stored
from flinks_async.bulk.records import Finished, Shard, Written
from flinks_async.testing import run_virtual


class Mortal(WorkerHandle):
    """A worker that dies with its next shard in its hands once it has finished some. A shard takes a second."""

    name = "a worker"

    def __init__(self, finishes: int) -> None:
        super().__init__()
        self._left = finishes
        self._inbox.put_nowait(Next())

    def send(self, message: object) -> None:
        match message:
            case Assigned(None, _):
                self._inbox.put_nowait(Report(Counters(), over=True))
            case Assigned(task, _) if self._left:
                assert task is not None
                self._left -= 1
                asyncio.get_running_loop().call_later(1.0, self._inbox.put_nowait, finished(task.shard.id))
            case Assigned():
                self._inbox.put_nowait(None)
            case Stored(_, then):
                self._inbox.put_nowait(Next()) if then is None else self.send(then)

    def kill(self) -> None:
        self._inbox.put_nowait(None)

    async def end(self) -> str:
        return "a lost connection"


class FakeExecution(WorkersExecution):
    """An execution of workers that a test makes, with numbered shards.

    Args:
        last: seconds until it is known that there are no more shards.
        storing: seconds until a shard is stored.
    """

    def __init__(self, folder: Path, shards: int, places: int, last: float = 0.0, storing: float = 0.0) -> None:
        given = count()

        async def next_task() -> Task | None:
            if (number := next(given)) < shards:
                return task_of(number)
            await asyncio.sleep(last)
            return None

        async def take(one: Finished) -> None:
            await asyncio.sleep(storing)
            self.finished.append(one.shard.id)

        work = Work.of_function(abs, folder, logging.getLogger("test"), 4)  # type: ignore[arg-type]
        super().__init__(work, next_task, take, restarts=10, grace=1.0)
        self.finished: list[int] = []
        self._places = places

    async def _prepare(self) -> list[Start]:
        return starts_of(self._work, self._places)[0]


def task_of(number: int) -> Task:
    return Task(Shard(number, 0, 0, 0, 1, ""))


def finished(number: int) -> Finished:
    return Finished(task_of(number).shard, Path(), Written(0, 0, ""), (), ())  # an empty one counts, too


class MortalExecution(FakeExecution):
    """Its first place has workers that finish some shards each; each of the others has one that finishes all."""

    def __init__(self, folder: Path, finishes: int, places: int) -> None:
        super().__init__(folder, 60, places)
        self._finishes, self._begun = finishes, 0

    async def _start(self, start: Start) -> WorkerHandle:
        self._begun += 1
        return Mortal(1000 if 1 < self._begun <= self._places else self._finishes)


@pytest.mark.parametrize("race", [FileNotFoundError(errno.ENOENT, "gone"), OSError(errno.ENOTEMPTY, "not empty")])
def test_the_folder_of_a_worker_that_still_writes_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, race: OSError
) -> None:
    folder, races, remove = tmp_path / "worker", [race, race], shutil.rmtree
    folder.mkdir()
    (folder / "1.spool").touch()

    def remove_or_lose(path: Path) -> None:
        if races:
            raise races.pop()
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", remove_or_lose)
    empty(folder)
    assert not folder.exists()
    empty(folder)


@pytest.mark.parametrize("places", [1, 3])
def test_workers_that_have_finished_a_shard_are_replaced_however_many_die(tmp_path: Path, places: int) -> None:
    execution = MortalExecution(tmp_path, 1, places)
    run_virtual(execution.go())
    assert sorted(execution.finished) == list(range(60))
    assert len([one for one in execution.counters().workers if one.note]) > 10


@pytest.mark.parametrize("places", [1, 3])
def test_workers_that_die_in_a_row_before_they_finish_a_shard_end_the_run(tmp_path: Path, places: int) -> None:
    """Also while others work: the run can be resumed without what kills them."""
    told = r"keep crashing, the last one by a lost connection: 11 in a row before they finished a shard\. The answers"
    with pytest.raises(WorkerError, match=told):
        run_virtual(MortalExecution(tmp_path, 0, places).go())


# --- a worker that ends -----------------------------------------------------------------------------------------------


class Spoken(WorkerHandle):
    """A worker for which the test speaks.

    Attributes:
        given: the numbers of its shards; None where it was told that there are no more. After that a worker takes none.
    """

    name = "a worker"

    def __init__(self, *said: object) -> None:
        super().__init__()
        self.given: list[int | None] = []
        self.says(*said)

    def says(self, *messages: object) -> None:
        for message in messages:
            self._inbox.put_nowait(message)

    def send(self, message: object) -> None:
        match message:
            case Assigned(task, _) | Stored(_, Assigned(task, _)):
                self.given.append(None if task is None else task.shard.id)

    def kill(self) -> None:
        self.says(None)

    async def end(self) -> str:
        return "a lost connection"


OVER = Report(Counters(), over=True)


class SpokenExecution(FakeExecution):
    """Two workers, each with a shard of two; their successors come after 10 s."""

    def __init__(self, folder: Path, last: float = 0.0, storing: float = 0.0) -> None:
        super().__init__(folder, 2, 2, last, storing)
        self.workers: list[Spoken] = []

    async def _start(self, start: Start) -> WorkerHandle:
        if len(self.workers) >= 2:
            await asyncio.sleep(10.0)
        self.workers.append(Spoken(Next()))
        return self.workers[-1]


@pytest.mark.parametrize("last", [0.0, 5.0], ids=["before", "meanwhile"])
def test_a_worker_that_was_told_that_there_are_no_more_shards_gets_none_with_its_last_one(
    tmp_path: Path, last: float
) -> None:
    """It would end without it. Here another worker dies, so that there is one again: the successor gets it."""

    async def main() -> None:
        execution = SpokenExecution(tmp_path, last, storing=3.0)
        running = asyncio.create_task(execution.go())
        await asyncio.sleep(1.0)
        ends, dies = execution.workers
        ends.says(finished(0), Next())
        await asyncio.sleep(1.0)
        dies.says(None)
        await asyncio.sleep(11.0)
        assert ends.given == [0, None]
        ends.says(OVER)
        successor = execution.workers[2]
        assert successor.given == [1]
        successor.says(finished(1), Next(), OVER)
        await running
        assert execution.finished == [0, 1]

    run_virtual(main())


def test_a_worker_that_dies_while_its_shard_is_stored_gets_no_other_one(tmp_path: Path) -> None:
    async def main() -> None:
        execution = SpokenExecution(tmp_path, storing=5.0)
        running = asyncio.create_task(execution.go())
        await asyncio.sleep(1.0)
        ends, dies = execution.workers
        dies.says(None)
        await asyncio.sleep(1.0)
        ends.says(finished(0), None)
        await asyncio.sleep(6.0)
        assert ends.given == [0]
        await asyncio.sleep(10.0)
        successor = execution.workers[2]
        successor.says(finished(1), Next(), OVER)
        execution.workers[3].says(OVER)
        await running
        assert execution.finished == [0, 1]
        assert sorted(one.reassigned for one in execution.counters().workers if one.note) == [0, 1]

    run_virtual(main())
