"""`flinks-async simulate` and `flinks-async demo`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from flinks_async import FlinksClient, bulk
from flinks_async.bulk import export
from flinks_async.cli import Exit
from flinks_async.cli.demo import check
from flinks_async.testing import DemoFaults, expected_answer

from .cli_support import by_line, cli, start


class TestSimulate:
    async def test_it_serves_with_the_secret_that_it_shows(self) -> None:
        process = await start("simulate", "--seed", 5, "--size", "medium")
        assert process.stdout is not None
        shown = b"".join([await process.stdout.readline() for _ in range(3)]).decode()
        url = re.search(r"http://\S+", shown)
        secret = re.search(r"only\): (\S+)", shown)
        assert url is not None
        assert secret is not None
        async with FlinksClient(auth_secret=secret[1], base_url=url[0]) as flinks:
            answer = await flinks.partner_access("token")
        assert answer.to_dict() == expected_answer("token", seed=5, size="medium")
        process.terminate()
        _, stderr = await process.communicate()
        assert process.returncode == Exit.OK
        assert b"1 request, 1 answered" in stderr

    async def test_a_port_that_is_taken(self, flinks_server: Any) -> None:
        result = await cli("simulate", "--port", flinks_server.base_url.rpartition(":")[2])
        assert result.exit_code == Exit.USAGE
        assert "Cannot listen on port" in result.stderr


class TestDemo:
    async def test_everything_fetchable_arrives(self, tmp_path: Path) -> None:
        # With this seed, no token is throttled or hangs, so nothing waits for seconds.
        result = await cli("demo", "--tokens", 300, "--faults", 0.1, "--seed", 55, "--dir", tmp_path)
        assert result.exit_code == Exit.OK, result.stderr
        assert "seed 55: 10 % of the 300 tokens meet faults." in result.stderr
        assert "Checked: all " in result.stderr
        tokens = (tmp_path / "demo-tokens.txt").read_text().split()
        plan = DemoFaults(share=0.1, seed=55)
        fetchable = {line for line, token in enumerate(tokens, 1) if plan.plan(token).fetchable}
        job = tmp_path / "demo-job"
        assert sorted(json.loads(line)["line"] for line in bulk.export(job)) == sorted(fetchable)
        assert by_line(job / "failed.jsonl").keys() == {*range(1, 301)} - fetchable
        sent = re.search(r"this run: ([\d,]+) requests in .*, ([\d,]+) retried, ", result.stderr)
        wire = re.search(r"server counted: ([\d,]+) requests", result.stderr)
        assert sent is not None
        assert wire is not None
        assert sent[1] == wire[1], "client and server count the same"
        assert int(sent[2]) == int(sent[1]) - 300

    @pytest.mark.slow
    async def test_it_says_what_was_found_out_about_the_rate_limit(self) -> None:
        # The refusals of the simulator are the only sign of its limit.
        result = await cli("demo", "--tokens", 1500, "--faults", 0, "--rate-limit", 200, "--latency", 0.02)
        assert result.exit_code == Exit.OK, result.stderr
        assert "Answers take 20 ms (median). The client is not told the rate limit." in result.stderr
        found = re.search(
            r"The server accepts 200 requests per second\. The client learned (\d+)/s, and made (\d+)/s on average, with its "
            r"start\. One after the other, the 1,\d{3} requests would have taken ([\d.]+) s\.",
            result.stderr,
        )
        assert found is not None, result.stderr
        assert 100 <= int(found[1]) <= 400
        assert 50 <= int(found[2]) <= 260
        assert float(found[3]) >= 1500 * 0.02

    async def test_a_limit_that_was_not_met_is_not_learned(self) -> None:
        result = await cli("demo", "--tokens", 50, "--faults", 0)
        assert (
            "The server accepts 1,500 requests per second. The client did not meet this limit, and made "
            in result.stderr
        )

    async def test_it_can_be_run_again_in_the_same_folder(self, tmp_path: Path) -> None:
        for _ in range(2):
            result = await cli("demo", "--tokens", 20, "--faults", 0, "--seed", 1, "--dir", tmp_path)
            assert result.exit_code == Exit.OK, result.stderr
        assert len(list(bulk.export(tmp_path / "demo-job"))) == 20

    async def test_a_temporary_folder_is_removed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        assert (await cli("demo", "--tokens", 5, "--faults", 0)).exit_code == Exit.OK
        assert os.listdir(tmp_path) == []

    async def test_killed_in_the_middle_it_goes_on_and_has_everything_once(self, tmp_path: Path) -> None:
        result = await cli(
            "demo", "--tokens", 300, "--faults", 0, "--seed", 5, "--latency", 0.001, "--crash", "--dir", tmp_path
        )
        assert result.exit_code == Exit.OK, result.stderr
        assert "Checked: all 300 fetchable tokens arrived" in result.stderr
        done = re.search(r"Killed \(SIGKILL\) with (\d+) of 300 tokens done", result.stderr)
        again = re.search(r"(\d+) tokens were fetched again, .* \(at most 48\)", result.stderr)
        wire = re.search(r"server counted: (\d+) requests .* (\d+) answered", result.stderr)
        assert done is not None
        assert again is not None
        assert wire is not None
        assert int(done[1]) == 147, "of 100 shards 50 were stored, and the ledger knows all but the last of these"
        assert 3 <= int(again[1]) <= 48
        assert int(wire[2]) == 300 + int(again[1])
        assert int(wire[2]) <= int(wire[1]) <= int(wire[2]) + 48, "a request on the wire at the kill has no answer"

    async def test_a_lost_token_is_told_in_words_and_in_the_exit_code(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bulk, "export", lambda job: list(export(job))[1:])
        result = await cli("demo", "--tokens", 20, "--faults", 0, "--dir", tmp_path, "--seed", 3)
        assert result.exit_code == Exit.FAILED
        assert "WRONG: 1 fetchable tokens were lost: line" in result.stderr


class TestCheck:
    TOKENS = ("a", "b", "never", "c")

    def check(self, *lines: tuple[int, dict[str, Any]]) -> Any:
        answers = [json.dumps({"line": line, "response": answer}).encode() for line, answer in lines]
        return check(self.TOKENS, answers, lambda token: token != "never", lambda token: {"of": token})

    def test_all_well(self) -> None:
        result = self.check((4, {"of": "c"}), (1, {"of": "a"}), (2, {"of": "b"}))
        assert result.passed
        (line,) = result.lines()
        assert line.startswith("Checked: all 3 fetchable tokens arrived")

    def test_lost_wrong_twice_and_unexpected(self) -> None:
        result = self.check((1, {"of": "b"}), (2, {"of": "b"}), (2, {"of": "b"}), (3, {"of": "never"}))
        assert (result.lost, result.wrong, result.unexpected) == ([4], [1, 2], [3])
        assert not result.passed
        assert "WRONG: 2 answers are not those of their tokens: line 1, 2" in result.lines()

    def test_no_answers_at_all(self) -> None:
        assert self.check().lost == [1, 2, 4]
