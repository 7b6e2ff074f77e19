"""kill -9 at every crash point and at random moments: the output is exactly the expected set, each answer once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve

from flinks_async.testing import ServerProcess

from .driver import Driver
from .expected import Tokens, check, make_tokens
from .order import Order
from .outputs import OUTPUTS

MANY, SHARD = 8_000, 100
RANDOM_KILLS = 50
NewRoot = Callable[[], Path]


class Torture:
    """Kills jobs of one output, resumes them, and checks their output.

    Args:
        again: kill the resumed run too.

    Attributes:
        kills: so far.
    """

    def __init__(self, driver: Driver, server: ServerProcess, tokens: Tokens, order: Order) -> None:
        self.kills = 0
        self._driver = driver
        self._server = server
        self._tokens = tokens
        self._order = evolve(order, source=str(tokens.source), base_url=server.base_url, secret=server.auth_secret)

    def points(self, root: Path, *, resumed_after: str | None = None) -> Counter[str]:
        """The crash points that a run reaches, and how often: of a whole run, or of one that resumes."""
        order = evolve(self._order, root=str(root))
        if resumed_after is not None:
            assert self._driver.run(evolve(order, kill_at=(resumed_after, 1))).killed
        seen = root / "points"
        check(order, self._tokens, self._driver.run(evolve(order, points=str(seen))))
        return Counter(seen.read_text().split("\n")[:-1])

    def kill_at(self, root: Path, *points: tuple[str, int]) -> None:
        """Kills a new job at a point, its resumed run at the next one, and so on; then lets it end."""
        order = evolve(self._order, root=str(root))
        before = self._requests()
        for point in points:
            ended = self._driver.run(evolve(order, kill_at=point))
            assert ended.killed, f"{point} was not reached: {ended}"
        self._finish(order, before, len(points))

    def kill_after(self, root: Path, rng: random.Random, most: int, seconds: float) -> int:
        """Kills a new job again and again until it is complete all the same. Gives the number of kills."""
        order = evolve(self._order, root=str(root))
        before, kills = self._requests(), 0
        while kills < most:
            if not self._driver.run(order, kill_after=rng.uniform(0, seconds)).killed:
                break
            kills += 1
        self._finish(order, before, kills)
        return kills

    def _finish(self, order: Order, before: int, kills: int) -> None:
        check(order, self._tokens, self._driver.run(order))
        made = self._requests() - before
        assert len(self._tokens.good) <= made <= len(self._tokens.good) + kills * order.window
        self.kills += kills

    def _requests(self) -> int:
        requests: int = self._server.stats()["requests"]
        return requests


def reaches(points: Counter[str]) -> list[tuple[str, int]]:
    """The first, a middle and the last reach of each."""
    return [(name, nth) for name, count in points.items() for nth in sorted({1, (count + 1) // 2, count})]


@pytest.mark.parametrize(
    "output", ["jsonl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("file", "sqlite"))]
)
def test_a_job_survives_a_kill_at_every_crash_point(
    order: Order, driver: Driver, server: ServerProcess, new_root: NewRoot, tmp_path: Path
) -> None:
    torture = Torture(driver, server, make_tokens(tmp_path / "tokens.csv", 60), evolve(order, shard_size=10))
    points = torture.points(new_root())
    assert {"spool written", "spool finished", "stored", "ledger written", "ledger committed"} <= points.keys()
    for name, count in points.items():
        torture.kill_at(new_root(), (name, (count + 1) // 2))


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("output", OUTPUTS)
def test_every_reach_that_matters_of_every_crash_point(
    order: Order, driver: Driver, server: ServerProcess, new_root: NewRoot, tmp_path: Path
) -> None:
    torture = Torture(driver, server, make_tokens(tmp_path / "tokens.csv", MANY), evolve(order, shard_size=SHARD))
    points = torture.points(new_root())
    for case in reaches(points):
        torture.kill_at(new_root(), case)
    resumed = torture.points(new_root(), resumed_after="stored")
    for name in resumed:  # a second kill while it recovers or continues
        torture.kill_at(new_root(), ("stored", 2), (name, 1), (name, 1))
    print(f"\n{order.output}: {torture.kills} kills at {len(points)} points: {dict(points)}; resumed: {dict(resumed)}")


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("output", OUTPUTS)
def test_random_moments(
    order: Order, driver: Driver, server: ServerProcess, new_root: NewRoot, tmp_path: Path, seed: int
) -> None:
    print(f"\n{order.output}: FLINKS_TORTURE_SEED={seed}")
    rng = random.Random(f"{seed} {order.output}")
    torture = Torture(driver, server, make_tokens(tmp_path / "tokens.csv", MANY), evolve(order, shard_size=SHARD))
    jobs = 0
    while torture.kills < RANDOM_KILLS:
        # Some jobs are killed while they begin, the others anywhere.
        torture.kill_after(new_root(), rng, RANDOM_KILLS - torture.kills, 0.3 if jobs % 3 == 2 else 2.0)
        jobs += 1
    print(f"{torture.kills} kills of {jobs} jobs")
