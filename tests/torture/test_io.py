"""The disk fails, fills up, lies or loses its power: the errors are clear, and the job can be resumed.

The faults are made below Python by a preloaded library (`io_shim.c`), so SQLite and every other library meet them too.

A *place* is a kind of call, a file, and the lines of the package that led there; a small job reaches 85 to 125 of them with
150 to 500 calls. By default each fault meets each place, where it is reached first, in the middle and last, and a random
eighth of the other calls, which another run chooses anew. These are nearly all calls but for databases: one commit of
SQLite writes many pages from one place. FLINKS_TORTURE_EVERY=1 makes each fault meet every call.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import evolve

from flinks_async import bulk
from flinks_async.bulk import files

from .driver import Driver
from .expected import Tokens, check, make_tokens
from .order import (
    CUT,
    EVERYTHING,
    FAIL,
    KILL,
    LOSE,
    SHORT,
    SYNC,
    TAKES_ROOM,
    WRITE,
    Ended,
    Fault,
    Order,
)
from .outputs import OUTPUTS

NewRoot = Callable[[], Path]

FAULTS = {
    "full-disk": Fault(FAIL, calls=TAKES_ROOM, error=errno.ENOSPC, forever=True),
    "full-for-a-moment": Fault(FAIL, calls=TAKES_ROOM, error=errno.ENOSPC),
    "one-error": Fault(FAIL, calls=EVERYTHING, error=errno.EIO),
    "dead-disk": Fault(FAIL, calls=EVERYTHING, error=errno.EIO, forever=True),
    "short-write": Fault(SHORT, calls=WRITE),
    "lost-by-a-failed-sync": Fault(LOSE, calls=SYNC, error=errno.EIO),
    "kill": Fault(KILL, calls=EVERYTHING),
    "power-cut": Fault(CUT, calls=EVERYTHING),
    "power-cut-keeps-some": Fault(CUT, calls=EVERYTHING),
}
KEEPS_SOME = "power-cut-keeps-some"
SHARE = 1 / 8
"""Of the calls that `test_at_every_place` chooses at random."""


class Torture:
    """Runs small jobs on a bad disk."""

    def __init__(self, breaker: Driver, tokens: Tokens, order: Order, grave: Path) -> None:
        self._breaker = breaker
        self._tokens = tokens
        self._points = grave / "points"
        self._order = evolve(
            order, source=str(tokens.source), shard_size=6, open_shards=2, concurrency=4, grave=str(grave), size="medium",
            points=str(self._points),
        )  # fmt: skip

    def meets(self, root: Path, fault: Fault) -> bool:
        """Whether a job meets the fault; it then says so, or is right all the same, and the next run completes it."""
        order = evolve(self._order, root=str(root))
        self._points.unlink(missing_ok=True)
        ended = self._breaker.run(evolve(order, fault=fault))
        self._check_end(order, ended, fault)
        if not ended.killed and not ended.met:
            return False
        assert self._committed(order) >= self._confirmed(), "a shard that was done is not done any more"
        ended = self._breaker.run(order)
        check(order, self._tokens, ended)
        return True

    def places(self, root: Path, fault: Fault) -> dict[str, int]:
        """The places where a job could meet it, and how often the job reaches them."""
        order = evolve(self._order, root=str(root), fault=fault)
        return self._breaker.run(order).places

    def _check_end(self, order: Order, ended: Ended, fault: Fault) -> None:
        if fault.action in (KILL, CUT):
            assert ended.killed or not ended.met, ended
        elif ended.error is not None:
            assert (ended.code, ended.met) == (5, True), ended
            assert ended.error in ("StoreError", "LedgerError"), (fault, ended)
        else:
            check(order, self._tokens, ended, tidy=not ended.met)  # a file that could not be removed

    def _confirmed(self) -> int:
        """Number of shards whose commit was confirmed to the job."""
        reached = self._points.read_text().splitlines() if self._points.exists() else []
        stored, confirmed = False, 0
        for point in reached:
            confirmed += stored and point == "ledger committed"
            # A commit after "broken off" is not that of the shard: the run records how it ended.
            stored = point == "stored" or (stored and point not in ("ledger committed", "broken off"))
        return confirmed

    def _committed(self, order: Order) -> int:
        """Shards that are."""
        return bulk.status(order.job).totals.shards_done if (order.job / files.MANIFEST).exists() else 0


@pytest.fixture
def grave(new_root: NewRoot) -> Iterator[Path]:
    """On the same file system as the jobs."""
    folder = new_root().parent / "grave"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("output", ["jsonl"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_job_on_a_bad_disk_says_so_and_goes_on_later(
    fault: str, order: Order, breaker: Driver, new_root: NewRoot, tmp_path: Path, grave: Path
) -> None:
    """The short form: three of the places."""
    torture = Torture(breaker, make_tokens(tmp_path / "tokens.csv", 14, failing=True), order, grave)
    places = torture.places(new_root(), FAULTS[fault])
    assert len(places) > 10
    for place in random.sample(sorted(places), 3):
        seed = random.randrange(1, 1_000_000) if fault == KEEPS_SOME else 0
        assert torture.meets(new_root(), evolve(FAULTS[fault], at=(place, 1), seed=seed)), place


def reaches(places: dict[str, int], rng: random.Random) -> Iterator[tuple[str, int]]:
    """The first, the middle and the last reach of each place, and some of the others."""
    every = bool(os.environ.get("FLINKS_TORTURE_EVERY"))
    for place, count in places.items():
        matter = {1, (count + 1) // 2, count}
        yield from ((place, nth) for nth in range(1, count + 1) if every or nth in matter or rng.random() < SHARE)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("output", OUTPUTS)
def test_at_every_place(
    fault: str, order: Order, breaker: Driver, new_root: NewRoot, tmp_path: Path, grave: Path, seed: int
) -> None:
    rng = random.Random(f"{seed} {order.output} {fault}")
    torture = Torture(breaker, make_tokens(tmp_path / "tokens.csv", 14, failing=True), order, grave)
    places = torture.places(new_root(), FAULTS[fault])
    met: Counter[str] = Counter()
    for at in reaches(places, rng):
        met[at[0]] += torture.meets(
            new_root(), evolve(FAULTS[fault], at=at, seed=rng.randrange(1, 1_000_000) if fault == KEEPS_SOME else 0)
        )
    print(
        f"\n{order.output}, {fault}: {met.total()} of {sum(places.values())} calls, {len(+met)} of {len(places)} places,"
        f" FLINKS_TORTURE_SEED={seed}"
    )
    assert len(places) > 10
    assert met.keys() - (+met).keys() == set(), "these places did not meet the fault"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many KB."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"disk-{size}"
        folder.mkdir()
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", folder], check=False, capture_output=True
        )
        if made.returncode:
            pytest.skip("a small file system cannot be mounted here: it needs root")
        mounted.append(folder)
        return folder

    try:
        yield mount
    finally:
        for folder in mounted:
            subprocess.run(["umount", folder], check=True)


@pytest.mark.torture
@pytest.mark.parametrize("output", ["jsonl", "file", "sqlite"])
def test_a_file_system_that_is_full_and_then_has_room(
    order: Order, driver: Driver, small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    tokens = make_tokens(tmp_path / "tokens.csv", 3000, failing=True)
    size = (
        6000 if order.output == "sqlite" else 2000
    )  # two journals of SQLite, of up to 1,000 pages, or files and spools
    disk = small_disk(size)
    for room in range(size - 40, 0, -size * 7 // 100):
        (disk / "ballast").write_bytes(bytes(room * 1024))
        (disk / "root").mkdir()
        order = evolve(order, root=str(disk / "root"), source=str(tokens.source), shard_size=50)
        ended = driver.run(order)
        if ended.state is None:
            assert (ended.code, ended.error) == (5, "StoreError"), ended
            assert "No space left" in str(ended.result) or "full" in str(ended.result), ended
        (disk / "ballast").unlink()
        check(order, tokens, driver.run(order))
        shutil.rmtree(disk / "root")
