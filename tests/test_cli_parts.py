"""The parts of the command line that can be tried alone: output files, progress, threads."""

from __future__ import annotations

import asyncio
import errno
import gc
import io
import json
import logging
import os
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flinks_async import cli, errors
from flinks_async.bulk.failures import failure_kind
from flinks_async.bulk.inputs import SkippedLine
from flinks_async.bulk.progress import Histogram, Rate
from flinks_async.cli import output as output_module
from flinks_async.cli.console import log_to_stderr, printable, say
from flinks_async.cli.daemon import DaemonThread
from flinks_async.cli.exit_codes import Exit
from flinks_async.cli.metrics import Metrics, duration
from flinks_async.cli.outcome_writer import Books, Counts, Place
from flinks_async.cli.output import LineFile, OutputError
from flinks_async.cli.progress import Bar, PlainLines, View, Watched, choose_display, shown
from flinks_async.cli.run import run
from flinks_async.observe import AttemptFinished, RetryScheduled
from flinks_async.verdict import OK, Kind, Verdict


class TestLineFile:
    def test_it_has_its_name_only_when_it_is_whole(self, tmp_path: Path) -> None:
        file = LineFile(tmp_path / "out.jsonl", force=False)
        file.write_now(b"1\n")
        assert os.listdir(tmp_path) == ["out.jsonl.part"]
        file.finish()
        assert os.listdir(tmp_path) == ["out.jsonl"]
        assert file.finished

    @pytest.mark.parametrize("written", [0, 3])
    def test_a_full_disk_leaves_whole_lines(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
    ) -> None:
        file = LineFile(tmp_path / "out.jsonl", force=False)
        file.write_now(b'{"line":1}\n')
        write = os.write

        def full(number: int, data: Any) -> int:
            monkeypatch.setattr(os, "write", no_space)
            return write(number, bytes(data)[:written])

        def no_space(number: int, data: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(output_module.os, "write", full)
        with pytest.raises(OutputError, match=r"out\.jsonl\.part cannot be written: No space left"):
            file.write_now(b'{"line":2}\n')
        assert file.abandon() == tmp_path / "out.jsonl.part"
        assert (tmp_path / "out.jsonl.part").read_bytes() == b'{"line":1}\n'

    def test_a_file_that_came_into_being_meanwhile_is_not_overwritten(self, tmp_path: Path) -> None:
        file = LineFile(tmp_path / "out.jsonl", force=False)
        file.write_now(b"1\n")
        (tmp_path / "out.jsonl").write_text("precious")
        with pytest.raises(OutputError, match="come into being"):
            file.finish()
        assert (tmp_path / "out.jsonl").read_text() == "precious"
        assert (tmp_path / "out.jsonl.part").read_text() == "1\n"

    def test_a_folder_that_is_deleted_meanwhile(self, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        file = LineFile(folder / "out.jsonl", force=False)
        file.write_now(b"1\n")
        if os.name != "nt":  # Windows does not delete what is open
            (folder / "out.jsonl.part").unlink()
            folder.rmdir()
            with pytest.raises(OutputError, match="No such file"):
                file.finish()
        file.abandon()

    @pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
    def test_a_planted_link_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "victim").write_text("precious")
        (tmp_path / "out.jsonl.part").symlink_to(tmp_path / "victim")
        file = LineFile(tmp_path / "out.jsonl", force=True)
        file.write_now(b"1\n")
        file.finish()
        assert (tmp_path / "victim").read_text() == "precious"


class TestBeforeThereIsALoop:
    def test_an_interruption_leaves_no_coroutine_behind(
        self, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
    ) -> None:
        def interrupted() -> None:
            raise KeyboardInterrupt

        async def main() -> None:
            pytest.fail("it is not begun")

        monkeypatch.setattr("flinks_async.cli.run.fast_loop", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(main)
        gc.collect()
        assert not recwarn.list

    def test_an_interruption_of_the_imports_has_no_traceback(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        class Importing(ModuleType):
            def __getattr__(self, name: str) -> Any:
                raise KeyboardInterrupt if name == "app" else AttributeError(name)

        monkeypatch.setitem(sys.modules, "flinks_async.cli.app", Importing("flinks_async.cli.app"))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == Exit.SIGINT
        assert capsys.readouterr().err == "Interrupted.\n"


class Lines:
    def __init__(self) -> None:
        self.lines: list[bytes] = []

    async def write(self, line: bytes) -> None:
        self.lines.append(line)


class TestBooks:
    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (errors.ServerError(status=503), "exhausted"),
            (errors.ServerError(status=501), "final"),
            (errors.RateLimitedError(status=401, flinks_code="TOO_MANY_REQUESTS"), "exhausted"),
            (errors.AuthenticationError(status=401), "final"),
            (errors.BadRequestError(status=400), "final"),
            (errors.ConnectTimeoutError(), "exhausted"),
            (errors.CertificateError(), "exhausted"),
            (errors.ConfigError(), "exhausted"),
            (errors.ProxyError(status=407), "exhausted"),
            (errors.ProtocolError(), "exhausted"),
            (errors.EmptyBodyError(), "exhausted"),
            (errors.WrongTypeError(), "final"),
            (errors.ResponseTooLargeError(), "final"),
            (errors.DeadlineExceededError(), "exhausted"),
            (errors.QuotaExhaustedError(), "exhausted"),
            (errors.CircuitOpenError(), "exhausted"),
            (errors.PendingError(status=202), "exhausted"),
            (errors.RedirectError(status=302), "final"),
        ],
    )
    def test_what_another_run_may_get_is_exhausted_and_what_it_will_not_is_final(
        self, error: errors.FlinksError, kind: str
    ) -> None:
        assert failure_kind(error) == kind

    async def test_the_numbers_add_up(self) -> None:
        out, failed, skipped = Lines(), Lines(), Lines()
        books = Books(out, failed, skipped)
        for kind in ("header", "blank", "duplicate", "continued", "invalid"):
            await books.note(SkippedLine(1, kind, "why"))  # type: ignore[arg-type]
        for _ in range(3):
            books.take()
        await books.failed(Place(2), errors.BadRequestError("no"))
        counts = books.counts
        assert (counts.lines, counts.done, counts.unfinished, counts.invalid) == (8, 1, 2, 1)
        assert (len(out.lines), len(failed.lines), len(skipped.lines)) == (0, 2, 2)
        assert json.loads(failed.lines[0])["message"] == "why"


def finished(wire_time: float, kind: Kind = Kind.OK, status: int | None = 200) -> AttemptFinished:
    return AttemptFinished("host", 1, "f", OK if kind is Kind.OK else Verdict(kind, "x"), status, 0.0, wire_time, 0)


class TestMetrics:
    def test_percentiles_are_right_to_a_twentieth(self) -> None:
        histogram = Histogram()
        for milliseconds in range(1, 1001):
            histogram.add(milliseconds / 1000)
        for share, right in [(0.5, 0.5), (0.95, 0.95), (0.99, 0.99)]:
            found = histogram.percentile(share)
            assert found is not None
            assert right <= found <= right * 1.05

    @pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-9, 1e6])
    def test_odd_times(self, seconds: float) -> None:
        histogram = Histogram()
        histogram.add(seconds)
        assert histogram.percentile(0.99) is not None

    def test_events_are_counted(self) -> None:
        metrics = Metrics()
        assert metrics.percentiles(0.5) == ""
        metrics(finished(0.1))
        metrics(finished(0.1, Kind.THROTTLED, 401))
        metrics(RetryScheduled("host", 1, "f", Verdict(Kind.THROTTLED, "x"), 1.0))
        metrics(finished(9.0, Kind.TRANSIENT, None))  # a time-out is no response time
        assert (metrics.attempts, metrics.retried, metrics.throttled) == (3, 1, 1)
        assert metrics.percentiles(0.5, 0.99) == "p50 102 ms, p99 102 ms"

    def test_durations(self) -> None:
        assert [duration(s) for s in (0.0123, 1.25, 119, 3725)] == ["12.3 ms", "1.2 s", "119.0 s", "62 min 5 s"]
        assert duration(100_000) == "27 h 46 min"


class File:
    size: int | None = 1000
    position = 250


@pytest.fixture
def watched() -> Watched:
    counts, times = Counts(), iter([0.0, 2.0])
    watched = Watched(counts, Metrics(), File(), now=lambda: next(times))
    counts.taken, counts.fetched = 1200, 1000
    return watched


class TestProgress:
    def test_a_rate_over_the_last_seconds(self) -> None:
        rate = Rate(5.0)
        assert rate.at(0.0, 0) == 0.0
        assert rate.at(1.0, 10) == 10.0
        assert rate.at(10.0, 110) == pytest.approx(100 / 9)
        assert rate.at(15.0, 110) == 0.0

    def test_plain_lines(self, watched: Watched, capsys: pytest.CaptureFixture[str]) -> None:
        PlainLines().show(watched.view())
        assert (
            capsys.readouterr().err == "25% read · 1,000 done · 500/s · 6.0 s left · 1,000 ok · 0 failed · 0 retried\n"
        )

    async def test_it_is_shown_again_and_again(self) -> None:
        views: list[View] = []
        twice = asyncio.Event()

        class Display:
            interval = 0.0
            closed = False

            def show(self, view: View) -> None:
                views.append(view)
                if len(views) == 2:
                    twice.set()

            def close(self) -> None:
                self.closed = True

        display = Display()
        async with shown(lambda: View("x"), display):
            await twice.wait()
        assert display.closed

    def test_a_bar_on_a_terminal(self, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
        terminal = io.StringIO()
        terminal.isatty = lambda: True  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "80")
        threads = set(threading.enumerate())
        display = choose_display()
        assert isinstance(display, Bar)
        display.show(watched.view())
        assert not set(threading.enumerate()) - threads, "rich would refresh in a thread"
        display.close()
        assert "25%" in terminal.getvalue()
        assert "1,000 done · 500/s" in terminal.getvalue()
        assert "1,000 ok · 0 failed · 0 retried" in terminal.getvalue()
        assert isinstance(choose_display(beside_answers=True), PlainLines)
        assert isinstance(choose_display("plain"), PlainLines)

    def test_what_is_chosen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert choose_display("none") is None
        assert isinstance(choose_display(), PlainLines)
        monkeypatch.setattr(sys, "stderr", None)
        assert isinstance(choose_display(), PlainLines)


class TestDaemonThread:
    async def test_results_and_errors_come_back_in_turn(self) -> None:
        thread = DaemonThread("test")
        assert await asyncio.gather(*(thread.call(lambda n=n: n) for n in range(5))) == [0, 1, 2, 3, 4]  # type: ignore[misc]
        with pytest.raises(ZeroDivisionError):
            await thread.call(lambda: 1 / 0)
        thread.close()

    async def test_nobody_has_to_wait(self) -> None:
        thread, gate = DaemonThread("test"), threading.Event()
        thread.call(gate.wait).cancel()
        after = thread.call(lambda: "after")
        gate.set()
        assert await after == "after"
        thread.close()


class TestConsole:
    def test_control_characters_do_not_reach_the_terminal(self) -> None:
        assert printable("a\x1b[2Jb\x9bc\u202ed\n\té") == "a\ufffd[2Jb\ufffdc\ufffdd\n\té"

    def test_a_closed_standard_error_does_not_end_the_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        closed = io.StringIO()
        closed.close()
        for stderr in (None, closed):
            monkeypatch.setattr(sys, "stderr", stderr)
            say("anything")

    def test_the_log_of_other_libraries_is_masked(self, capsys: pytest.CaptureFixture[str]) -> None:
        with log_to_stderr():
            logging.getLogger("aiohttp").warning("GET https://h/partneraccess/%s", "canary-token")
        assert capsys.readouterr().err == "WARNING: aiohttp: GET https://h/partneraccess/***\n"
