"""Dead workers are replaced as long as workers finish shards, by every executor with workers."""

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
        self._inbox = asyncio.Queue[object]()
        self._inbox.put_nowait(Next())

    def send(self, message: object) -> None:
        match message:
            case Assigned(None, _):
                self._inbox.put_nowait(Report(Counters(), over=True))
            case Assigned(task, _) if self._left:
                assert task is not None
                self._left -= 1
                done = Finished(task.shard, Path(), Written(0, 0, ""), (), ())  # an empty one counts, too
                asyncio.get_running_loop().call_later(1.0, self._inbox.put_nowait, done)
            case Assigned():
                self._inbox.put_nowait(None)
            case Stored(_, then):
                self._inbox.put_nowait(Next()) if then is None else self.send(then)

    async def receive(self) -> object:
        return await self._inbox.get()

    def kill(self) -> None:
        self._inbox.put_nowait(None)

    async def end(self) -> str:
        return "a lost connection"


class MortalExecution(WorkersExecution):
    """Its first place has workers that finish some shards each; each of the others has one that finishes all."""

    def __init__(self, folder: Path, finishes: int, places: int) -> None:
        given = count()

        async def next_task() -> Task | None:
            number = next(given)
            return Task(Shard(number, 0, 0, 0, 1, "")) if number < 60 else None

        async def take(one: Finished) -> None:
            self.finished.append(one.shard.id)

        work = Work.of_function(abs, folder, logging.getLogger("test"), 4)  # type: ignore[arg-type]
        super().__init__(work, next_task, take, restarts=10, grace=1.0)
        self.finished: list[int] = []
        self._finishes, self._places, self._begun = finishes, places, 0

    async def _prepare(self) -> list[Start]:
        return starts_of(self._work, self._places)[0]

    async def _start(self, start: Start) -> WorkerHandle:
        self._begun += 1
        return Mortal(1000 if 1 < self._begun <= self._places else self._finishes)

    async def _clean_up(self) -> None:
        pass


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
