"""Shards through a fetcher: what is finished, what is left, and when it stops. In virtual time, without threads."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from flinks_async import CertificateError, FlinksClient, ProxyError, config
from flinks_async.bulk import spool
from flinks_async.bulk.counters import Counters
from flinks_async.bulk.errors import StoreError
from flinks_async.bulk.fetching import Fetcher, NoThread
from flinks_async.bulk.inputs import Token
from flinks_async.bulk.records import Finished, Shard
from flinks_async.bulk.rules import Rules
from flinks_async.secret import Secret
from flinks_async.testing import InMemoryTransport, VirtualClock, run_virtual
from flinks_async.testing.faults import KINDS
from flinks_async.testing.in_memory import make_response

OK = {"GetAccountsDetail": [], "RequestId": "r"}
REFUSED = KINDS["unauthorized"]


class Bench:
    """A fetcher over made-up shards: line n has the token `t-n`."""

    def __init__(
        self,
        folder: Path,
        answer: Any,
        *,
        shards: int = 3,
        size: int = 4,
        rules: Rules | None = None,
        secret_is_good: bool = False,
        store: Callable[[Finished], object] | None = None,
        only: dict[int, tuple[int, ...]] | None = None,
        auth_secret: Any = "s",
        **options: Any,
    ) -> None:
        self.folder = folder
        self.auth_secret = auth_secret
        self.options = {"retry": {"attempts": 1}, **options}
        self.transport = InMemoryTransport({}, default=answer)
        self.finished: list[Finished] = []
        self.lines: dict[int, dict[str, Any]] = {}
        self.loads = iter(self._shards(shards, size, only or {}))
        self.rules = rules or Rules(concurrency=3)
        self.secret_is_good = secret_is_good
        self.store = store or self._keep
        self.fetcher: Fetcher
        self.counters: Counters

    def _shards(self, shards: int, size: int, only: dict[int, tuple[int, ...]]) -> Iterable[tuple[Shard, list[Token]]]:
        for number in range(shards):
            first = number * size + 1
            rows = only.get(number) or tuple(range(first, first + size))
            tokens = [Token(line, Secret(f"t-{line}"), key=f"k-{line}") for line in rows]
            yield Shard(number, first, first + size - 1, 0, len(tokens), ""), tokens

    def _keep(self, finished: Finished) -> None:
        self.finished.append(finished)
        for line in finished.spool.read_bytes().splitlines():
            record = json.loads(line)
            assert record["line"] not in self.lines, "an answer came twice"
            self.lines[record["line"]] = record
        finished.spool.unlink()

    async def _take(self, finished: Finished) -> None:
        self.store(finished)

    async def _load(self) -> Any:
        item = next(self.loads, None)
        if isinstance(item, Exception):
            raise item
        return item

    async def main(self, during: Callable[[Bench], Any] | None = None) -> None:
        client = FlinksClient(
            auth_secret=self.auth_secret,
            transport=self.transport,
            settings=config.bulk(),
            clock=VirtualClock(),
            **self.options,
        )
        async with client:
            self.fetcher = Fetcher(
                self._load, self._take, {None: client}, b"k" * 16, self.folder, "none", self.rules,
                secret_is_good=self.secret_is_good, clock=VirtualClock(), writing=NoThread(),
            )  # fmt: skip
            beside = None if during is None else asyncio.ensure_future(during(self))
            try:
                await self.fetcher.go()
            finally:
                self.counters = self.fetcher.counters()
                if beside is not None:
                    beside.cancel()

    def run(self, during: Callable[[Bench], Any] | None = None) -> Bench:
        run_virtual(self.main(during))
        assert not list(self.folder.iterdir()), "a spool was left over"
        return self

    @property
    def failures(self) -> dict[int, str]:
        return {failure.line: failure.error for one in self.finished for failure in one.failures}

    @property
    def left(self) -> list[int]:
        return [line for one in self.finished for line in one.left]


@pytest.mark.parametrize("step", ["create", "write", "sync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EIO])
def test_a_spool_that_cannot_be_written_costs_its_own_shard_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    """Also if the disk has room again a moment later: a spool must not be finished without its first answers."""
    broken: list[int] = []
    originals = {"create": spool.create, "write": spool.write_all, "sync": os.fsync}

    def create(path: Path) -> int:
        file = originals["create"](path)
        if path.name == "000001.spool" and not broken:
            broken.append(file)
            if step == "create":
                os.close(file)
                path.unlink()
                raise OSError(number, os.strerror(number))
        return file

    def fail(file: int, *data: Any) -> None:
        if broken == [file]:
            broken.append(-1)
            raise OSError(number, os.strerror(number))
        originals[step](file, *data)

    monkeypatch.setattr(spool, "create", create)
    if step != "create":
        monkeypatch.setattr(spool if step == "write" else os, {"write": "write_all", "sync": "fsync"}[step], fail)
    bench = Bench(tmp_path, answers(lambda line: make_response(OK if line % 4 else {"x": "y" * 300_000})), shards=4)
    with pytest.raises(StoreError, match=f"000001.spool cannot be written: {os.strerror(number)}"):
        bench.run()
    done = {one.shard.id: one.written.lines + len(one.left) for one in bench.finished}
    assert done.pop(0) == 4
    assert 1 not in done
    assert set(done.values()) <= {4}
    assert not list(tmp_path.iterdir())


def answers(by_line: Callable[[int], Any]) -> Callable[[Any], Any]:
    return lambda request: by_line(int(request.token.reveal()[2:]))


def test_every_shard_is_finished_once_and_holds_its_rows(tmp_path: Path) -> None:
    bench = Bench(tmp_path, OK).run()
    assert sorted(bench.lines) == list(range(1, 13))
    assert [one.shard.id for one in bench.finished] == [0, 1, 2]
    assert all(one.written.lines == 4 and not one.left and not one.failures for one in bench.finished)
    assert bench.lines[7] == {"line": 7, "key": "k-7", "response": OK, "meta": {"status": 200, "attempts": 1}}
    assert bench.fetcher.stopped is None


def test_no_more_than_the_allowed_shards_are_open(tmp_path: Path) -> None:
    seen = 0

    async def answer(request: Any) -> Any:
        nonlocal seen
        line = int(request.token.reveal()[2:])
        seen = max(seen, (line - 1) // 4)
        if line in (1, 5):
            await asyncio.sleep(50)
            assert seen == 1, "the third shard was begun while two had an open row"
            await asyncio.sleep(50)
        return OK

    Bench(tmp_path, answer, rules=Rules(concurrency=4, open_shards=2)).run()
    assert seen == 2


def test_a_body_of_many_lines_becomes_one_line(tmp_path: Path) -> None:
    body = b'\xef\xbb\xbf{\r\n "GetAccountsDetail" : [ ],\n "RequestId":"a\\nb", "New": 1.50}'
    bench = Bench(tmp_path, body, shards=1, size=1)
    raw: list[bytes] = []
    bench.store = lambda finished: (raw.append(finished.spool.read_bytes()), bench._keep(finished))
    bench.run()
    assert raw[0].count(b"\n") == 1
    assert b'"New":1.50' in raw[0]
    assert bench.lines[1]["response"]["RequestId"] == "a\nb"


def test_failed_tokens_are_told_by_class_and_never_by_token(tmp_path: Path) -> None:
    fates = {2: KINDS["http_503"], 5: KINDS["bad_request"]}
    bench = Bench(tmp_path, answers(lambda line: fates.get(line, OK))).run()
    assert bench.failures == {2: "ServerError", 5: "BadRequestError"}
    kinds = {failure.line: failure.kind for one in bench.finished for failure in one.failures}
    assert kinds == {2: "exhausted", 5: "final"}
    assert all("t-" not in repr(one.failures) for one in bench.finished)
    assert len(bench.lines) == 10
    assert (bench.counters.fetched, bench.counters.failed) == (10, 2)


def test_one_dead_token_does_not_stop_a_job(tmp_path: Path) -> None:
    dead = {3, 4, 5, 6, 9}
    bench = Bench(tmp_path, answers(lambda line: REFUSED if line in dead else OK), rules=Rules(concurrency=1)).run()
    assert bench.fetcher.stopped is None
    assert set(bench.failures) == dead
    assert not bench.left


def test_a_refused_secret_stops_and_its_tokens_are_left_to_the_next_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path, answers(lambda line: OK if line < 6 else REFUSED), rules=Rules(concurrency=1)).run()
    assert bench.fetcher.stopped is not None
    assert bench.fetcher.stopped[0] == "refused"
    assert "5 different tokens" in bench.fetcher.stopped[1]
    assert not bench.failures
    assert sorted(bench.lines) == [1, 2, 3, 4, 5]
    assert bench.left == [6, 7, 8]  # the third shard was not begun: nothing to finish
    assert len(bench.transport.requests) == 10


def test_a_few_refused_tokens_and_no_success_at_all_mean_a_refused_secret(tmp_path: Path) -> None:
    bench = Bench(tmp_path, REFUSED, shards=1, size=3).run()
    assert bench.fetcher.stopped == ("refused", "the AuthSecret is refused (3 different tokens in a row)")
    assert not bench.finished


def test_the_same_when_the_secret_has_worked_before(tmp_path: Path) -> None:
    bench = Bench(tmp_path, REFUSED, shards=1, size=3, secret_is_good=True).run()
    assert bench.fetcher.stopped is None
    assert set(bench.failures) == {1, 2, 3}


def test_suspects_do_not_block_a_job_whose_other_tokens_fail(tmp_path: Path) -> None:
    fate = answers(lambda line: REFUSED if line in (1, 5) else KINDS["bad_request"])
    rules = Rules(concurrency=2, open_shards=1)
    bench = Bench(tmp_path, fate, rules=rules, secret_is_good=True).run()
    assert set(bench.failures) == set(range(1, 13))


@pytest.mark.parametrize("rules", [Rules(concurrency=2, open_shards=1), Rules(concurrency=9, open_shards=4)])
def test_a_refused_secret_is_found_out_with_fewer_tokens_under_way_than_it_takes(tmp_path: Path, rules: Rules) -> None:
    bench = Bench(tmp_path, REFUSED, shards=20, size=1, rules=rules).run()
    assert bench.fetcher.stopped == ("refused", "the AuthSecret is refused (5 different tokens in a row)")
    assert not bench.failures, "nobody knows yet what is wrong with them"


def test_a_token_is_not_given_up_for_an_answer_that_was_on_its_way_when_the_secret_went_bad(tmp_path: Path) -> None:
    async def answer(request: Any) -> Any:
        line = int(request.token.reveal()[2:])
        await asyncio.sleep(100 if line == 1 else line)
        return OK if line == 1 else REFUSED

    bench = Bench(tmp_path, answer, shards=1, size=6, rules=Rules(concurrency=6, drain=1000)).run()
    assert bench.fetcher.stopped is not None
    assert bench.fetcher.stopped[0] == "refused"
    assert (list(bench.lines), bench.failures, bench.left) == ([1], {}, [2, 3, 4, 5, 6])


def test_a_vault_that_is_down_while_the_secret_is_replaced_costs_no_token(tmp_path: Path) -> None:
    asked = 0

    async def vault() -> str:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise OSError("down")
        return "old"

    fate = answers(lambda line: OK if line < 6 else REFUSED)
    bench = Bench(tmp_path, fate, rules=Rules(concurrency=1), auth_secret=vault).run()
    assert bench.fetcher.stopped == (
        "refused",
        "the AuthSecret is refused (5 different tokens in a row), and the auth_secret callable raised OSError",
    )
    assert (sorted(bench.lines), bench.failures, asked) == ([1, 2, 3, 4, 5], {}, 2)


def test_a_vault_that_is_down_from_the_beginning_stops_at_once(tmp_path: Path) -> None:
    async def vault() -> str:
        raise OSError("down")

    bench = Bench(tmp_path, OK, auth_secret=vault).run()
    assert bench.fetcher.stopped == (
        "stopped",
        "the auth_secret callable raised OSError. Nothing can be sent until this is corrected",
    )
    assert not bench.finished


NO_TRUST = CertificateError("the certificate of the.example is not valid")


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        (NO_TRUST, "the certificate of the.example is not valid. Have it renewed or corrected"),
        (ProxyError("the proxy answered 407", status=407), "the proxy answered 407. Give the proxy the credentials"),
        (make_response(b"", status=407), "the proxy wants credentials"),
    ],
)
def test_what_concerns_every_token_stops_at_the_first_and_gives_up_none(
    tmp_path: Path, problem: Any, says: str
) -> None:
    fate = answers(lambda line: OK if line < 6 else problem)
    bench = Bench(tmp_path, fate, rules=Rules(concurrency=1)).run()
    assert bench.fetcher.stopped is not None
    state, reason = bench.fetcher.stopped
    assert state == "stopped"
    assert says in reason
    assert (sorted(bench.lines), bench.failures, bench.left) == ([1, 2, 3, 4, 5], {}, [6, 7, 8])
    assert len(bench.transport.requests) == 6


def test_a_proxy_that_is_down_is_an_outage(tmp_path: Path) -> None:
    bench = Bench(tmp_path, answers(lambda line: ProxyError("down") if line == 3 else OK)).run()
    assert bench.fetcher.stopped is None
    ((failure,),) = (one.failures for one in bench.finished if one.failures)
    assert (failure.line, failure.kind) == (3, "exhausted")


LOGIN = make_response(b"", status=302, headers={"Location": "https://login.example/"})
PAGE = make_response(b"<html>log in</html>")
OF_ALL = [(LOGIN, "a redirect to login.example"), (PAGE, "not JSON"), (make_response(b"", status=501), "answered 501")]


@pytest.mark.parametrize(("answer", "says"), OF_ALL)
def test_what_several_tokens_in_a_row_are_answered_is_not_one_tokens_matter(
    tmp_path: Path, answer: Any, says: str
) -> None:
    fate = answers(lambda line: OK if line < 6 else answer)
    bench = Bench(tmp_path, fate, rules=Rules(concurrency=1, refused_after=4)).run()
    assert bench.fetcher.stopped is not None
    state, reason = bench.fetcher.stopped
    assert state == "stopped"
    assert says in reason
    assert "(4 different tokens in a row)" in reason
    assert (bench.failures, bench.left) == ({}, [6, 7, 8])


@pytest.mark.parametrize("answer", [answer for answer, _ in OF_ALL])
def test_what_few_tokens_are_answered_is_their_own(tmp_path: Path, answer: Any) -> None:
    dead = {1, 3, 4, 9}
    fate = answers(lambda line: answer if line in dead else OK)
    bench = Bench(tmp_path, fate, rules=Rules(concurrency=1)).run()
    assert bench.fetcher.stopped is None
    assert set(bench.failures) == dead


def test_different_answers_are_different_rows(tmp_path: Path) -> None:
    fate = answers(lambda line: OK if line > 8 else LOGIN if line % 2 else REFUSED)
    bench = Bench(tmp_path, fate, rules=Rules(concurrency=1)).run()
    assert bench.fetcher.stopped is None
    assert set(bench.failures) == set(range(1, 9))


@pytest.mark.parametrize("status", [400, 404, 405, 410, 451])
def test_a_file_that_begins_with_dead_tokens_is_gone_through(tmp_path: Path, status: int) -> None:
    dead = make_response(b"", status=status)
    bench = Bench(tmp_path, answers(lambda line: OK if line > 9 else dead), rules=Rules(concurrency=1)).run()
    assert bench.fetcher.stopped is None
    assert {failure.kind for one in bench.finished for failure in one.failures} == {"final"}
    assert set(bench.failures) == set(range(1, 10))


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (Rules(concurrency=1, max_failures=1), "2 tokens failed, more than the 1 allowed"),
        (Rules(concurrency=1, max_failure_share=0.5), "100 of 100 tokens failed, more than the 50% allowed"),
    ],
)
def test_too_many_failures_stop(tmp_path: Path, rules: Rules, words: str) -> None:
    bench = Bench(tmp_path, KINDS["bad_request"], shards=50, rules=rules).run()
    assert bench.fetcher.stopped == ("stopped", words)
    assert len(bench.failures) == int(words.split()[0])


def test_a_stop_lets_what_is_in_flight_end_and_names_what_is_left(tmp_path: Path) -> None:
    async def answer(request: Any) -> Any:
        await asyncio.sleep(10)
        return OK

    async def stop(bench: Bench) -> None:
        await asyncio.sleep(15)
        bench.fetcher.stop("enough")

    bench = Bench(tmp_path, answer, rules=Rules(concurrency=3)).run(stop)
    assert sorted(bench.lines) == [1, 2, 3, 4, 5, 6]
    assert bench.left == [7, 8]
    assert len(bench.transport.requests) == 6


def test_what_does_not_end_within_the_drain_is_left(tmp_path: Path) -> None:
    async def answer(request: Any) -> Any:
        await asyncio.sleep(1000 if request.token.reveal() == "t-2" else 10)
        return OK

    async def stop(bench: Bench) -> None:
        await asyncio.sleep(15)
        bench.fetcher.stop("enough")

    bench = Bench(tmp_path, answer, rules=Rules(concurrency=3, drain=30)).run(stop)
    assert sorted(bench.lines) == [1, 3, 4, 5]
    assert bench.left == [2, 6, 7, 8]


def test_a_stop_sends_nothing_for_tokens_that_wait_for_a_place(tmp_path: Path) -> None:
    async def answer(request: Any) -> Any:
        await asyncio.sleep(10)
        return OK

    async def stop(bench: Bench) -> None:
        await asyncio.sleep(5)
        bench.fetcher.stop("enough")

    bench = Bench(tmp_path, answer, size=20, rules=Rules(concurrency=50), limits={"concurrency": 4}).run(stop)
    assert len(bench.transport.requests) == 4
    assert (sorted(bench.lines), len(bench.left)) == ([1, 2, 3, 4], 16)


def test_a_refused_secret_costs_few_requests_beyond_those_on_the_wire(tmp_path: Path) -> None:
    async def answer(request: Any) -> Any:
        await asyncio.sleep(1)
        return REFUSED

    bench = Bench(tmp_path, answer, shards=3, size=100, rules=Rules(concurrency=200), limits={"concurrency": 20}).run()
    assert bench.fetcher.stopped is not None
    assert bench.fetcher.stopped[0] == "refused"
    assert len(bench.transport.requests) <= 20 + 5


@pytest.mark.parametrize("failure", [KINDS["http_503"], make_response(b"", status=429)])
def test_a_stop_ends_at_once_while_nothing_is_on_the_wire_and_retries_nothing(tmp_path: Path, failure: Any) -> None:
    async def stop(bench: Bench) -> None:
        await asyncio.sleep(30)
        nonlocal began
        began, _ = asyncio.get_running_loop().time(), bench.fetcher.stop("enough")

    async def main() -> float:
        await bench.main(stop)
        return asyncio.get_running_loop().time()

    began = 0.0
    bench = Bench(tmp_path, failure, rules=Rules(concurrency=12), retry={"attempts": 1000})
    assert run_virtual(main()) == began == 30.0
    assert (bench.lines, bench.failures) == ({}, {})


def test_what_is_on_the_wire_at_a_stop_is_not_retried_and_its_token_is_left(tmp_path: Path) -> None:
    async def answer(request: Any) -> Any:
        await asyncio.sleep(10)
        return OK if request.token.reveal() == "t-2" else KINDS["http_503"]

    async def stop(bench: Bench) -> None:
        await asyncio.sleep(5)
        bench.fetcher.stop("enough")

    async def main() -> float:
        await bench.main(stop)
        return asyncio.get_running_loop().time()

    retry = {"attempts": 5, "base": 60.0, "cap": 60.0}
    bench = Bench(tmp_path, answer, rules=Rules(concurrency=3), retry=retry)
    assert run_virtual(main()) == 10.0, "it did not wait for a retry"
    assert len(bench.transport.requests) == 3
    assert (sorted(bench.lines), bench.failures, bench.left) == ([2], {}, [1, 3, 4])


def test_a_middleware_that_repeats_requests_sends_nothing_more_after_a_stop(tmp_path: Path) -> None:
    async def answer(request: Any) -> Any:
        await asyncio.sleep(10)
        return OK

    async def thrice(request: Any, call_next: Any) -> Any:
        for _ in range(2):
            await call_next(request)
        return await call_next(request)

    async def stop(bench: Bench) -> None:
        await asyncio.sleep(5)
        bench.fetcher.stop("enough")

    bench = Bench(tmp_path, answer, rules=Rules(concurrency=3), middleware=[thrice]).run(stop)
    assert (len(bench.transport.requests), bench.lines, bench.failures) == (3, {}, {})


def test_a_store_that_fails_ends_it_at_once(tmp_path: Path) -> None:
    def full(finished: Finished) -> None:
        finished.spool.unlink()
        raise StoreError("the disk is full")

    bench = Bench(tmp_path, OK, shards=500, store=full)
    with pytest.raises(StoreError, match="full"):
        run_virtual(bench.main())
    assert len(bench.transport.requests) < 100
    assert not list(tmp_path.iterdir())


def test_an_input_that_fails_ends_it_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, OK)
    first = next(bench.loads)
    bench.loads = iter([first, RuntimeError("gone")])
    with pytest.raises(RuntimeError, match="gone"):
        run_virtual(bench.main())
    assert not list(tmp_path.iterdir())


def test_a_cancellation_leaves_no_task_and_no_file(tmp_path: Path) -> None:
    async def answer(request: Any) -> Any:
        await asyncio.sleep(10)
        return OK

    async def main() -> None:
        bench = Bench(tmp_path, answer)
        before = asyncio.all_tasks()
        running = asyncio.ensure_future(bench.main())
        await asyncio.sleep(15)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
        assert not bench.finished

    run_virtual(main())
    assert not list(tmp_path.iterdir())


def test_a_name_without_settings_is_a_failure_that_can_be_retried(tmp_path: Path) -> None:
    bench = Bench(tmp_path, OK, shards=1, size=1)
    bench.loads = iter([(Shard(0, 1, 1, 0, 1, ""), [Token(1, Secret("t-1"), instance="acme")])])
    bench.run()
    ((failure,),) = (one.failures for one in bench.finished)
    assert (failure.error, failure.kind, failure.instance) == ("ConfigError", "exhausted", "acme")
    assert "acme" in failure.message
