"""`flinks-async fetch --dry-run`: what a file of tokens holds, without a secret, a network, or a job."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path

from attrs import define, field

from ..bulk import Failure, InputFile, Scanned, Shard, scan
from .metrics import duration

_SHOWN = 5


@define
class _Looked:
    """Keeps the first bad lines; a `PlanSink`."""

    bad: list[Failure] = field(factory=list)

    def shard(self, shard: Shard, /) -> None:
        pass

    def duplicate(self, line: int, first: int, /) -> None:
        pass

    def invalid(self, failure: Failure, /) -> None:
        if len(self.bad) < _SHOWN:
            self.bad.append(failure)


def dry_run(source: InputFile, shard_size: int, rate: float | None) -> str:
    """Reads the file through, and says what a job would do. Duplicates are found with the help of temporary files, which
    hold no tokens and are removed.

    Args:
        rate: tokens a second, for an estimate of the time.

    Raises:
        InputError, StoreError: as `scan`.
    """
    looked = _Looked()
    with tempfile.TemporaryDirectory(prefix="flinks-async-") as scratch:
        scanned = scan(source, key=secrets.token_bytes(32), shard_size=shard_size, scratch=Path(scratch), sink=looked)
    return "\n".join([*_counted(scanned), *_bad(looked.bad, scanned), _time(scanned.tokens, rate)])


def _counted(scanned: Scanned) -> list[str]:
    rows = (
        ("tokens", scanned.tokens, "would be fetched"),
        ("duplicates", scanned.duplicates, "of tokens in lines before"),
        ("invalid", scanned.invalid, "nothing can be sent"),
        ("blank", scanned.blank, ""),
        ("header", scanned.header, ""),
        ("continued", scanned.continued, "line breaks inside of quotes"),
        ("shards", scanned.shards, ""),
        *((f"  {name}", count, "tokens of this instance") for name, count in scanned.instances.items()),
    )
    title = f"{scanned.lines:,} lines, {scanned.size:,} bytes"
    return [
        title,
        *(
            f"  {name:<10} {count:>13,}" + (f"  ({remark})" if remark and count else "")
            for name, count, remark in rows
            if count or name in ("tokens", "shards")
        ),
    ]


def _bad(failures: list[Failure], scanned: Scanned) -> list[str]:
    lines = [f"  line {failure.line}: {failure.message}" for failure in failures]
    more = scanned.invalid - len(failures)
    return [*lines, f"  and {more:,} more"] if more else lines


def _time(tokens: int, rate: float | None) -> str:
    if rate is None:
        return "For an estimate of the time, add --rate or --assume-rate."
    return f"At {rate:g} tokens a second, it takes at least {duration(tokens / rate)}."
