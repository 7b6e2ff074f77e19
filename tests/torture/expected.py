"""A file of tokens, and everything that a finished job over it must have left."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from attrs import field, frozen

from flinks_async import bulk
from flinks_async.bulk import files
from flinks_async.testing.data import Size, expected_answer

from .job_driver import EXHAUSTED, FINAL
from .order import Ended, Order
from .outputs import OUTPUTS

LEFT_BEHIND = frozenset(
    {
        files.MANIFEST, files.LEDGER, files.LOCK, files.LOG, files.FAILED, files.DUPLICATES, files.REPORT,
        files.SPOOLS, "parts",
    }
)  # fmt: skip


@frozen
class Tokens:
    """A CSV file of tokens with keys.

    Attributes:
        source: the file.
        good: tokens that are answered, by line.
        failing: lines whose token fails, and the kind of failure.
        duplicates: lines, and where their token came first.
    """

    source: Path
    good: dict[int, str] = field(factory=dict)
    failing: dict[int, str] = field(factory=dict)
    duplicates: dict[int, int] = field(factory=dict)

    @property
    def count(self) -> int:
        """Tokens to fetch."""
        return len(self.good) + sum(kind != "invalid" for kind in self.failing.values())

    @property
    def failed(self) -> int:
        return self.count - len(self.good)


def make_tokens(source: Path, count: int, *, failing: bool = False) -> Tokens:
    """Writes a file with `count` good tokens, one invalid one and one that is there twice.

    Args:
        failing: adds two tokens that the driver's in-memory transport lets fail: one permanently, one that may be retried.
    """
    rows = [f"token-{number}" for number in range(count)]
    rows[count // 2 : count // 2] = [f"{FINAL}1", f"{EXHAUSTED}1"] if failing else []
    rows[count // 3 : count // 3] = [".."]
    rows.insert(count // 4 * 3, rows[1])
    tokens = Tokens(source)
    first: dict[str, int] = {}
    for line, token in enumerate(rows, 2):
        if first.setdefault(token, line) != line:
            tokens.duplicates[line] = first[token]
        elif token.startswith((FINAL, EXHAUSTED, "..")):
            tokens.failing[line] = "invalid" if token == ".." else token.partition("-")[0]
        else:
            tokens.good[line] = token
    source.write_text("\n".join(["token,user", *(f"{token},user-{line}" for line, token in enumerate(rows, 2))]) + "\n")
    return tokens


def check(order: Order, tokens: Tokens, ended: Ended, *, tidy: bool = True) -> None:
    """Everything that is to be said of a job that is complete.

    Args:
        tidy: no file is left over.
    """
    assert (ended.code, ended.state) == (0, "complete"), ended
    assert ended.result is not None
    assert ended.result["totals"] == {
        "tokens": tokens.count, "fetched": len(tokens.good), "failed": tokens.failed, "pending": 0,
    }  # fmt: skip
    output = OUTPUTS[order.output]
    assert bulk.verify(order.job, output.make(order)) == []
    if output.tables:
        check_tables(output.read(order), tokens, order.size)
    else:
        check_answers(bulk.export(order.job, output.make(order)), tokens, order.size)
        check_answers(output.read(order), tokens, order.size)
    check_outcome(order.job, tokens)
    if tidy:
        check_files(order.job, output.notes)


def check_answers(lines: Iterable[bytes], tokens: Tokens, size: Size = "small") -> None:
    """Each answer is there once, and is what the server says."""
    for record in _once(lines, tokens):
        assert record["key"] == f"user-{record['line']}"
        assert record["response"] == expected_answer(tokens.good[record["line"]], size=size)


def check_tables(lines: Iterable[bytes], tokens: Tokens, size: Size) -> None:
    """Each answer is in the tables once. (That all values are what was written, `verify` has found out.)"""
    for record in _once(lines, tokens):
        line = record["line"]
        answer = expected_answer(tokens.good[line], size=size)
        details = answer["GetAccountsDetail"]
        accounts = [account for detail in details for account in detail.get("Accounts", ())]
        assert record == {
            "line": line,
            "key": f"user-{line}",
            "request_id": answer["RequestId"],
            "entries": [detail for detail in details if "Accounts" not in detail] or None,
            "transactions": sorted(move["Id"] for account in accounts for move in account["Transactions"]),
        }


def _once(lines: Iterable[bytes], tokens: Tokens) -> Iterator[dict[str, Any]]:
    seen: set[int] = set()
    for line in lines:
        record = json.loads(line, parse_float=Decimal)
        assert record["line"] not in seen, f"line {record['line']} is in the output twice"
        seen.add(record["line"])
        yield record
    assert seen == tokens.good.keys(), f"missing: {sorted(tokens.good.keys() - seen)[:10]}"


def check_outcome(job: Path, tokens: Tokens) -> None:
    """failed.jsonl, duplicates.jsonl and report.json."""
    failed = [json.loads(line) for line in (job / files.FAILED).read_text().splitlines()]
    assert {row["line"]: row["kind"] for row in failed} == tokens.failing
    assert len(failed) == len(tokens.failing)
    duplicates = [json.loads(line) for line in (job / files.DUPLICATES).read_text().splitlines()]
    assert {row["line"]: row["first"] for row in duplicates} == tokens.duplicates
    assert len(duplicates) == len(tokens.duplicates)
    outcome = json.loads((job / files.REPORT).read_text())["outcome"]
    assert (outcome["tokens"], outcome["fetched"], outcome["failed"], outcome["pending"]) == (
        tokens.count, len(tokens.good), tokens.failed, 0,
    )  # fmt: skip


def check_files(job: Path, notes: frozenset[str]) -> None:
    """Nothing is left over."""
    assert {entry.name for entry in job.iterdir()} - notes - LEFT_BEHIND == set()
    assert list((job / files.SPOOLS).iterdir()) == []
    if (job / "parts").exists():
        known = json.dumps([commit.receipt for commit in _commits(job)])
        parts = [path for path in (job / "parts").rglob("*") if path.is_file()]
        assert [path for path in parts if f'{path.name}"' not in known] == []


def _commits(job: Path) -> list[bulk.Commit]:
    from flinks_async.bulk.ledger import Ledger

    ledger = Ledger(job / files.LEDGER)
    try:
        return list(ledger.commits())
    finally:
        ledger.close()
