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
from attrs import evolve

from flinks_async import bulk, cli, errors
from flinks_async.bulk import Progress
from flinks_async.bulk.counters import Histogram, InstanceTrouble
from flinks_async.bulk.rules import failure_kind
from flinks_async.bulk.run import Rate
from flinks_async.checks import duration
from flinks_async.cli import Exit
from flinks_async.cli.console import OutputError, described, log_to_stderr, printable, say
from flinks_async.cli.display import choose_display
from flinks_async.cli.job_run import run
from flinks_async.cli.output import LINES, whole_file
from flinks_async.cli.status import _figures
from flinks_async.limits.notices import log_fields
from flinks_async.runtime import in_daemon_thread, repeated


class TestWholeFile:
    @pytest.fixture
    def job(self, tmp_path: Path) -> str:
        (tmp_path / "t.txt").write_text("one\n")
        with bulk.Job.start(tmp_path / "job", bulk.InputFile(tmp_path / "t.txt"), bulk.JSONLParts()):
            pass
        return str(tmp_path / "job")

    def test_it_has_its_name_only_when_it_is_whole(self, tmp_path: Path, job: str) -> None:
        with whole_file(str(tmp_path / "out"), job, LINES, force=False) as write:
            write(b"1\n")
            assert not (tmp_path / "out").exists()
        assert (tmp_path / "out").read_bytes() == b"1\n"

    @pytest.mark.parametrize("before", [b"precious", None])
    def test_a_full_disk_changes_nothing(
        self, tmp_path: Path, job: str, monkeypatch: pytest.MonkeyPatch, before: bytes | None
    ) -> None:
        def no_space(number: int, data: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        out = tmp_path / "out"
        if before is not None:
            out.write_bytes(before)
        with pytest.raises(bulk.StoreError, match="out cannot be written: No space left"):
            with whole_file(str(out), job, LINES, force=True) as write:
                write(b"1\n")
                monkeypatch.setattr(os, "write", no_space)
                write(b"2\n")
        assert sorted(os.listdir(tmp_path)) == ["job", *(["out"] if before else []), "t.txt"]
        assert before is None or out.read_bytes() == before

    def test_a_file_that_came_into_being_meanwhile_is_not_overwritten(self, tmp_path: Path, job: str) -> None:
        out = tmp_path / "out"
        with pytest.raises(OutputError, match="made by another program"):
            with whole_file(str(out), job, LINES, force=False) as write:
                write(b"1\n")
                out.write_text("precious")
        assert out.read_text() == "precious"
        assert not (tmp_path / "out.tmp").exists()

    @pytest.mark.skipif(os.name == "nt", reason="Windows does not delete what is open")
    def test_a_folder_that_is_deleted_meanwhile(self, tmp_path: Path, job: str) -> None:
        (tmp_path / "folder").mkdir()
        with pytest.raises(bulk.StoreError, match="No such file"):
            with whole_file(str(tmp_path / "folder" / "out"), job, LINES, force=False) as write:
                write(b"1\n")
                (tmp_path / "folder" / "out.tmp").unlink()
                (tmp_path / "folder").rmdir()

    @pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
    def test_a_planted_link_is_not_followed(self, tmp_path: Path, job: str) -> None:
        (tmp_path / "victim").write_text("precious")
        (tmp_path / "out.tmp").symlink_to(tmp_path / "victim")
        with whole_file(str(tmp_path / "out"), job, LINES, force=True) as write:
            write(b"1\n")
        assert (tmp_path / "victim").read_text() == "precious"


class TestBeforeThereIsALoop:
    def test_an_interruption_leaves_no_coroutine_behind(
        self, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
    ) -> None:
        def interrupted() -> None:
            raise KeyboardInterrupt

        async def main() -> None:
            pytest.fail("it is not begun")

        monkeypatch.setattr("flinks_async.cli.job_run.fast_loop", interrupted)
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


class TestFailureKinds:
    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (errors.ServerError(status=503), "exhausted"),
            (errors.ServerError(status=501), "final"),
            (errors.RateLimitedError(status=401, flinks_code="TOO_MANY_REQUESTS"), "exhausted"),
            (errors.RateLimitedError(status=403), "exhausted"),  # with throttle_statuses={403, 429}
            (errors.ServerError(status=200, flinks_code="NEW_CODE"), "exhausted"),  # HttpStatusCode in the body: 500
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


class TestTimes:
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

    def test_durations(self) -> None:
        assert [duration(s) for s in (0.0123, 1.25, 119, 3725)] == ["12.3 ms", "1.25 s", "1 min 59 s", "1 h 2 min"]
        assert duration(100_000) == "1 d 3 h"


@pytest.fixture
def progress() -> Progress:
    return Progress(
        phase="fetching", total=4000, fetched=990, failed=10, requests=1030, retries=30, throttled=0, in_flight=3, limit=20,
        held_back=0.0, p50=0.0102, p95=0.0204, rate=500.0, eta=6.0, seconds=2.0, size=1,
    )  # fmt: skip


LINE = (
    "25% · 1,000 of 4,000 done · 500/s · 6 s left · 990 ok · 10 failed · 30 retried · p50 10.2 ms, p95 20.4 ms"
    " · 3 of 20 in flight"
)


class TestProgress:
    def test_a_rate_over_the_last_seconds(self) -> None:
        rate = Rate(5.0)
        assert rate.at(0.0, 0) == 0.0
        assert rate.at(1.0, 10) == 10.0
        assert rate.at(10.0, 110) == pytest.approx(100 / 9)
        assert rate.at(15.0, 110) == 0.0

    def test_plain_lines(self, progress: Progress, capsys: pytest.CaptureFixture[str]) -> None:
        choose_display("plain").progress(progress)
        assert capsys.readouterr().err == f"{LINE}\n"

    def test_the_reason_of_a_wait(self, progress: Progress, capsys: pytest.CaptureFixture[str]) -> None:
        trouble = InstanceTrouble("flinks.example", "flinks.example cannot be looked up", 14, 12.2, 8.4)
        choose_display("plain").progress(evolve(progress, troubles=(trouble,), held_back=8.4, eta=None))
        shown = capsys.readouterr().err
        assert (
            "time left unknown · flinks.example cannot be looked up, 14 attempts in 12 s, next try in 8 s · 990 ok"
            in shown
        )
        assert "paused" not in shown, "that is told already"

    def test_the_learned_limit(self, progress: Progress, capsys: pytest.CaptureFixture[str]) -> None:
        limit = "1,470/s learned: refused at 1,520/s 12 s ago"
        choose_display("plain").progress(evolve(progress, learned=(limit,)))
        assert capsys.readouterr().err == f"{LINE} · {limit}\n"

    def test_while_the_input_is_read(self, capsys: pytest.CaptureFixture[str]) -> None:
        choose_display("plain").planning(1, 4)
        assert capsys.readouterr().err == "25% read · reading the tokens\n"

    async def test_it_is_shown_again_and_again(self) -> None:
        times, twice = 0, asyncio.Event()

        def show() -> None:
            nonlocal times
            times += 1
            if times == 2:
                twice.set()

        async with repeated(0.0, show):
            await twice.wait()
        seen = times
        await asyncio.sleep(0.01)
        assert times == seen, "not after the block"

    def test_a_bar_on_a_terminal(self, progress: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
        terminal = io.StringIO()
        terminal.isatty = lambda: True
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "80")
        threads = set(threading.enumerate())
        display = choose_display("auto")
        display.progress(progress)
        assert not set(threading.enumerate()) - threads, "rich would refresh in a thread"
        display.close()
        assert "25%" in terminal.getvalue()
        assert "1,000 of 4,000 done · 500/s" in terminal.getvalue()
        assert "990 ok · 10 failed · 30 retried" in terminal.getvalue()
        choose_display("auto", beside_answers=True).progress(progress)
        assert terminal.getvalue().endswith(f"{LINE}\n"), "no bar beside answers"

    def test_what_is_chosen(
        self, progress: Progress, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        choose_display("none").progress(progress)
        assert capsys.readouterr().err == ""
        choose_display("auto").progress(progress)
        assert capsys.readouterr().err == f"{LINE}\n", "no bar without a terminal"
        monkeypatch.setattr(sys, "stderr", None)
        choose_display("auto").progress(progress)


class TestDaemonThread:
    async def test_results_and_errors_come_back(self) -> None:
        assert await in_daemon_thread(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await in_daemon_thread(lambda: 1 / 0)

    async def test_nobody_has_to_wait(self) -> None:
        gate = threading.Event()
        task = asyncio.ensure_future(in_daemon_thread(gate.wait))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert all(thread.daemon for thread in threading.enumerate() if thread.name == "flinks-async-input")
        gate.set()


class TestConsole:
    def test_control_characters_do_not_reach_the_terminal(self) -> None:
        assert printable("a\x1b[2Jb\x9bc\u202ed\r\n\té", "e") == "a\ufffd[2Jb\ufffdc\ufffdd\ufffd\ufffd\té\ne"

    def test_a_closed_standard_error_does_not_end_the_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        closed = io.StringIO()
        closed.close()
        for stderr in (None, closed):
            monkeypatch.setattr(sys, "stderr", stderr)
            say("anything")
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        say("it runs on")
        assert sys.stderr.getvalue() == "it runs on\n"

    def test_the_log_is_events_beside_json_progress(self, capsys: pytest.CaptureFixture[str]) -> None:
        with log_to_stderr():
            choose_display("json")
            logging.getLogger("aiohttp").warning("odd")
            logging.getLogger("flinks_async").warning("odd", extra=log_fields("LoopBlocked", seconds=1.5))
        plain, ours = map(json.loads, capsys.readouterr().err.splitlines())
        assert plain == {"event": "log", "text": "WARNING: aiohttp: odd"}
        fields = {"flinks_event": "LoopBlocked", "flinks_seconds": 1.5}
        assert ours == {"event": "log", "text": "WARNING: flinks_async: odd", **fields}
        with log_to_stderr():
            logging.getLogger("aiohttp").warning("odd")
        assert capsys.readouterr().err == "WARNING: aiohttp: odd\n", "the next command decides again"

    def test_status_tells_a_trouble_with_its_count_and_time(self) -> None:
        trouble = {"host": "h", "reason": "h answered 503", "attempts": 14, "seconds": 12.0, "next_try": 8.0}
        numbers = {"rate": 0.0, "in_flight": 0, "limit": 9, "p50": None, "p95": None, "held_back": 8.0, "eta": None}
        assert _figures({**numbers, "troubles": [trouble]}).endswith(
            "h answered 503, 14 attempts in 12 s, next try in 8 s"
        )

    def test_the_log_of_other_libraries_is_masked(self, capsys: pytest.CaptureFixture[str]) -> None:
        with log_to_stderr():
            logging.getLogger("aiohttp").warning("GET https://h/partneraccess/%s", "canary-token")
        assert capsys.readouterr().err == "WARNING: aiohttp: GET https://h/partneraccess/***\n"


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("can't start new thread"), OSError(errno.ENOMEM, "x"), OSError(errno.EMFILE, "x")],
)
def test_a_shortage_of_this_process_is_told_and_no_unexpected_error(error: Exception) -> None:
    text, code = described(error)
    assert code is Exit.STOPPED
    assert text.startswith("this process is short of memory, threads or files (")
    assert described(RuntimeError("x")) == ("unexpected RuntimeError", Exit.UNEXPECTED)
