"""Token files of the command line: read piece by piece, each token once."""

from __future__ import annotations

import asyncio
import errno
import io
from contextlib import aclosing, closing
from pathlib import Path

from flinks_async.bulk.inputs import Layout, Row, SkippedLine, Token
from flinks_async.bulk.inputs.rows import TextParser
from flinks_async.bulk.inputs.source import Content
from flinks_async.cli.dedup import SeenTokens
from flinks_async.cli.source import check
from flinks_async.cli.token_files import TokenFile, open_tokens
from flinks_async.secret import Secret


def plain(rows: list[Row]) -> list[tuple[object, ...]]:
    """(line, token) or (line, kind of note)."""
    return [(row.line, row.kind if isinstance(row, SkippedLine) else row.token.reveal()) for row in rows]


class TestSeen:
    def test_a_duplicate_keeps_its_key(self) -> None:
        seen = SeenTokens()
        assert isinstance(check(Token(1, Secret("one"), "a"), seen), Token)
        assert check(Token(2, Secret("one"), "b"), seen) == SkippedLine(2, "duplicate", key="b")

    def test_many_tokens_are_each_new_once(self) -> None:
        seen = SeenTokens()
        assert all(seen.add(Secret(f"token-{n}")) for n in range(20_000))
        assert not any(seen.add(Secret(f"token-{n}")) for n in range(20_000))

    def test_it_takes_little_memory(self) -> None:
        seen = SeenTokens()
        for n in range(100_000):
            seen.add(Secret(f"token-{n}"))
        assert sum(table.itemsize * len(table) for table in seen._tables) < 25 * 100_000


class TestTokenFile:
    async def test_its_position_follows_the_rows_that_were_given_out(self, tmp_path: Path) -> None:
        (tmp_path / "t.txt").write_text("".join(f"{n:03}\n" for n in range(100)))
        with closing(open_tokens(str(tmp_path / "t.txt"), Layout())) as file:
            assert (file.size, file.position) == (400, 0)
            positions = [file.position async for _ in file.rows(asyncio.Event())]
        assert positions == list(range(4, 404, 4))

    async def test_reading_that_breaks_off_is_told(self, tmp_path: Path) -> None:
        pieces = iter([b"one\ntwo\nthr", OSError(errno.EIO, "Input/output error")])

        class Broken(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                piece = next(pieces)
                if isinstance(piece, OSError):
                    raise piece
                return piece

        file = TokenFile(None, Content(Broken()), lambda: None, TextParser())
        file.begin()
        assert plain([row async for row in file.rows(asyncio.Event())]) == [(1, "one"), (2, "two")]
        assert file.error == "Input/output error"

    async def test_it_stops_between_two_rows(self, tmp_path: Path) -> None:
        (tmp_path / "t.txt").write_text("one\ntwo\n")
        stop = asyncio.Event()
        with closing(open_tokens(str(tmp_path / "t.txt"), Layout())) as file:
            async with aclosing(file.rows(stop)) as rows:
                assert plain([await anext(rows)]) == [(1, "one")]
                stop.set()
                assert [row async for row in rows] == []
