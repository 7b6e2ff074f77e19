"""The order of system calls, which a killed process cannot show: the kernel keeps what a power cut would take."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import evolve

from flinks_async.bulk import Commit, files
from flinks_async.bulk.ledger import Ledger

from .driver import Driver
from .expected import check, make_tokens
from .order import Order
from .outputs import OUTPUTS
from .trace import RENAMES, SYNCS, WRITES, Call, read_trace, tracer

MADE_FOR_THE_MOMENT = (files.LOG, files.LOCK, "-shm", ".tmp")
"""Ends of names of files that nothing depends on, or that get another name when they are synced."""


class Trace:
    """The system calls of a job on its files."""

    def __init__(self, calls: list[Call], order: Order) -> None:
        self.root = order.root
        self.job = order.job
        self.wal = f"{self.job / files.LEDGER}-wal"
        self.calls = calls

    def last(self, names: frozenset[str], path: Path | str, *, before: Call | None = None) -> Call:
        """The last of such calls on a path that ended before another one began."""
        found = [
            call for call in self.calls
            if call.name in names and call.path == str(path) and (before is None or call.ended < before.begun)
        ]  # fmt: skip
        assert found, f"no {'/'.join(sorted(names))} of {path}{f' before {before}' if before else ''}"
        return found[-1]

    def commit_of(self, commit: Commit) -> Call:
        """The first write to the ledger that says that a shard is done: the checksum of its answers or rows is in it."""
        checksum = re.search("[0-9a-f]{32,64}", f"{commit.written.sha256} {commit.receipt}")
        assert checksum is not None
        found = [
            call for call in self.calls
            if call.path.startswith(str(self.job / files.LEDGER)) and call.name in WRITES and checksum[0] in call.text
        ]  # fmt: skip
        assert found[0].path == self.wal
        return min(found, key=lambda call: call.begun)

    def check_spool(self, commit: Commit, ledger: Call) -> None:
        """write < ledger's write < ledger's fsync; a spool that becomes the output is synced before the ledger's write."""
        spool = self.job / files.SPOOLS / f"{commit.shard.id:06d}.spool"
        written = self.last(WRITES, spool)
        assert written.ended < ledger.begun
        assert any(call.name in SYNCS and call.path == self.wal and ledger.ended < call.begun for call in self.calls)
        if not commit.written.sha256:  # a store has read it, and made the rows durable
            return
        synced = self.last(SYNCS, spool)
        assert written.ended < synced.begun
        assert synced.ended < ledger.begun
        renamed = [call for call in self.calls if call.name in RENAMES and call.path == str(spool)]
        for rename in renamed:
            assert synced.ended < rename.begun
            assert rename.ended < self.last(SYNCS, Path(rename.to).parent, before=ledger).begun

    def check_nothing_is_unsynced(self, ledger: Call) -> None:
        """Everything that the store wrote or renamed before the ledger's commit is synced by then."""
        dirty: dict[str, Call] = {}
        for call in self.calls:
            if call.begun >= ledger.begun:
                continue
            if call.name in SYNCS:
                dirty.pop(call.path, None)
            elif call.name in RENAMES and call.to.startswith(self.root):
                dirty[str(Path(call.to).parent)] = call
            elif call.name in WRITES and self._matters(call.path):
                dirty[call.path] = call
        for call in self.calls:  # a sync that had begun and not ended is none
            assert not (call.name in SYNCS and call.begun < ledger.begun < call.ended and self._matters(call.path))
        assert dirty == {}

    def _matters(self, path: str) -> bool:
        return (
            path.startswith(self.root)
            and not path.endswith(MADE_FOR_THE_MOMENT)
            and not path.startswith((str(self.job / files.LEDGER), str(self.job / files.SPOOLS)))
            and Path(path).is_file()
        )


@pytest.fixture
def traced(tmp_path: Path, order: Order) -> tuple[Trace, list[Commit]]:
    """A job of four shards under strace."""
    if not sys.platform.startswith("linux") or shutil.which("strace") is None:
        pytest.skip("no strace: install it (Debian: apt install strace)")
    probe = subprocess.run(["strace", "-f", "-o", tmp_path / "probe", "true"], check=False, capture_output=True)
    if probe.returncode:
        pytest.skip(f"strace may not trace here: {probe.stderr.decode(errors='replace').strip()[:200]}")
    tokens = make_tokens(tmp_path / "tokens.csv", 20, failing=True)
    root = tmp_path / "root"
    root.mkdir()
    order = evolve(order, root=str(root), source=str(tokens.source), shard_size=6, open_shards=2)
    with Driver(tmp_path / "errors", tracer=tracer(tmp_path / "trace")) as driver:
        check(order, tokens, driver.run(order))
    ledger = Ledger(order.job / files.LEDGER)
    commits = list(ledger.commits())
    ledger.close()
    assert len(commits) == 4
    return Trace(read_trace(tmp_path / "trace"), order), commits


def check_order(trace: Trace, commits: list[Commit]) -> None:
    for commit in commits:
        ledger = trace.commit_of(commit)
        trace.check_spool(commit, ledger)
        trace.check_nothing_is_unsynced(ledger)


@pytest.mark.parametrize("output", ["jsonl"])
def test_parts_and_manifest(traced: tuple[Trace, list[Commit]]) -> None:
    """write < fsync < rename < fsync of the folder < ledger"""
    trace, commits = traced
    check_order(trace, commits)
    spools = str(trace.job / files.SPOOLS)
    parts = [call for call in trace.calls if call.name in RENAMES and call.path.startswith(spools)]
    assert len(parts) == len(commits)
    (manifest,) = [call for call in trace.calls if call.name in RENAMES and call.to == str(trace.job / files.MANIFEST)]
    for rename in (*parts, manifest):
        assert trace.last(WRITES, rename.path).ended < trace.last(SYNCS, rename.path, before=rename).begun
        folder = [call for call in trace.calls if call.name in SYNCS and call.path == str(Path(rename.to).parent)]
        assert any(rename.ended < call.begun for call in folder)


@pytest.mark.parametrize("output", ["file"])
def test_the_single_file(traced: tuple[Trace, list[Commit]]) -> None:
    """append < fsync < ledger"""
    trace, commits = traced
    check_order(trace, commits)
    file = Path(trace.root) / "all.jsonl"
    for commit in commits:
        ledger = trace.commit_of(commit)
        appended = trace.last(WRITES, file, before=ledger)
        assert trace.last(SYNCS, trace.job / files.SPOOLS / f"{commit.shard.id:06d}.spool").ended < appended.begun
        assert appended.ended < trace.last(SYNCS, file, before=ledger).begun


@pytest.mark.torture
@pytest.mark.parametrize("output", [output for output in OUTPUTS if output not in ("jsonl", "file")])
def test_every_other_store(traced: tuple[Trace, list[Commit]]) -> None:
    """The store's writes < their fsync < ledger."""
    check_order(*traced)
