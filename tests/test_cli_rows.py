"""Token files: bytes to lines, lines to rows."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from contextlib import aclosing, closing
from pathlib import Path

import pytest

from flinks_async.cli.lines import MAX_LINE, Line, LineSplitter
from flinks_async.cli.rows import NO_KEY, Note, Row, RowParser, TextParser, Token
from flinks_async.cli.rows_csv import CSVParser
from flinks_async.cli.rows_jsonl import JSONLParser
from flinks_async.cli.seen import SeenTokens
from flinks_async.cli.source import check
from flinks_async.cli.token_files import Layout, TokenFile, open_tokens
from flinks_async.cli.usage import Wrong
from flinks_async.secret import Secret


def split(*chunks: bytes) -> list[tuple[int, bytes, bool]]:
    splitter = LineSplitter()
    return [(line.number, line.data, line.too_long) for chunk in (*chunks, b"") for line in splitter.feed(chunk)]


def rows_of(parser: RowParser, text: str | bytes) -> list[Row]:
    data = text.encode() if isinstance(text, str) else text

    def rows() -> Iterator[Row]:
        splitter = LineSplitter()
        for chunk in (data, b""):
            for line in splitter.feed(chunk):
                yield from parser.feed(line)
        yield from parser.finish()

    return list(rows())


def plain(rows: list[Row]) -> list[tuple[object, ...]]:
    """(line, token), (line, token, key) or (line, kind of note)."""
    return [
        (row.line, row.kind)
        if isinstance(row, Note)
        else (row.line, row.token.reveal(), *(() if row.key is NO_KEY else (row.key,)))
        for row in rows
    ]


class TestLines:
    def test_lf_and_crlf_and_no_end_at_all(self) -> None:
        assert split(b"a\r\nb\n\nc") == [(1, b"a", False), (2, b"b", False), (3, b"", False), (4, b"c", False)]

    @pytest.mark.parametrize("size", [1, 2, 3, 5])
    def test_lines_do_not_depend_on_the_chunks(self, size: int) -> None:
        data = b"first\r\nsecond\n\r\n\xc3\xa9"
        assert split(*(data[i : i + size] for i in range(0, len(data), size))) == split(data)

    def test_a_huge_line_is_reported_without_being_held(self) -> None:
        splitter = LineSplitter()
        for _ in range(64):
            assert list(splitter.feed(b"x" * MAX_LINE)) == []
            assert len(splitter._rest) <= MAX_LINE
        assert list(splitter.feed(b"x\nnext\n")) == [Line(1, b"", True), Line(2, b"next")]

    def test_a_huge_last_line_is_reported_too(self) -> None:
        assert split(b"x" * (MAX_LINE + 1)) == [(1, b"", True)]

    def test_the_longest_line_is_still_a_line(self) -> None:
        assert split(b"x" * MAX_LINE + b"\n") == [(1, b"x" * MAX_LINE, False)]


class TestText:
    def test_one_token_a_line(self) -> None:
        assert plain(rows_of(TextParser(), "one\n  two \t\n\n \ntree")) == [
            (1, "one"),
            (2, "two"),
            (3, "blank"),
            (4, "blank"),
            (5, "tree"),
        ]

    def test_invalid_utf_8_costs_its_line_only(self) -> None:
        assert plain(rows_of(TextParser(), b"one\n\xff\xfe\ntwo")) == [(1, "one"), (2, "invalid"), (3, "two")]

    def test_other_white_space_than_spaces_stays_and_is_refused_later(self) -> None:
        (row,) = rows_of(TextParser(), "\x0btoken")
        assert isinstance(check(row, SeenTokens()), Note)


class TestCSV:
    def test_the_usual_name_of_the_column_is_found(self) -> None:
        assert plain(rows_of(CSVParser(None, None), "id,Access_Token\n7,one\n8,two\n")) == [
            (1, "header"),
            (2, "one"),
            (3, "two"),
        ]

    def test_a_column_and_a_key_column_by_name(self) -> None:
        parser = CSVParser("t", "id", ";")
        assert plain(rows_of(parser, 'id;t\n7;one\n"8;x";two\n')) == [(1, "header"), (2, "one", "7"), (3, "two", "8;x")]

    def test_the_only_column_needs_no_name(self) -> None:
        assert plain(rows_of(CSVParser(None, None), "whatever\none\n")) == [(1, "header"), (2, "one")]

    def test_ragged_rows_are_reported_and_nothing_is_taken_from_them(self) -> None:
        rows = rows_of(CSVParser("t", None), "id,t\n7\n8,two,x\n9,tree\n")
        assert plain(rows) == [(1, "header"), (2, "invalid"), (3, "invalid"), (4, "tree")]
        assert isinstance(rows[1], Note)
        assert rows[1].message == "the row has 1 fields, the header has 2"

    def test_blank_lines_before_and_after_the_header(self) -> None:
        assert plain(rows_of(CSVParser("t", None), "\nt\n\none\n")) == [
            (1, "blank"),
            (2, "header"),
            (3, "blank"),
            (4, "one"),
        ]

    def test_quoted_line_breaks_belong_to_their_row(self) -> None:
        rows = rows_of(CSVParser("t", "id"), 'id,t\n"a\nb ""c""",zero\n7,one\n')
        assert plain(rows) == [(1, "header"), (2, "zero", 'a\nb "c"'), (3, "continued"), (4, "one", "7")]

    def test_a_quote_that_never_ends_costs_one_line(self) -> None:
        lines = ["id,t", "1,one", '"2,two', *(f"{n},token-{n}" for n in range(3, 500))]
        rows = rows_of(CSVParser("t", None), "\n".join(lines))
        assert plain(rows[:3]) == [(1, "header"), (2, "one"), (3, "invalid")]
        assert plain(rows[3:]) == [(n + 1, f"token-{n}") for n in range(3, 500)]

    def test_every_line_comes_out_once_whatever_the_quotes(self) -> None:
        text = 'id,t\n"1,a\n2,b\n"3,c\n4,"\n5,"x"y"\n"",""\n"\n\n"6",f\n'
        rows = rows_of(CSVParser("t", None), text)
        assert sorted(row.line for row in rows) == list(range(1, text.count("\n") + 1))

    def test_a_broken_line_inside_of_quotes_ends_them(self) -> None:
        rows = rows_of(CSVParser("t", None), b'id,t\n"1,a\n2,b\n\xff\n3,c\n')
        assert plain(rows) == [(1, "header"), (2, "invalid"), (3, "b"), (4, "invalid"), (5, "c")]

    def test_a_field_that_the_csv_module_finds_too_large(self) -> None:
        rows = rows_of(CSVParser("t", None), 'id,t\n"' + "x" * 200_000 + '",a\n2,b\n')
        assert plain(rows) == [(1, "header"), (2, "invalid"), (3, "b")]

    def test_a_missing_column_is_wrong_usage_that_lists_the_columns(self) -> None:
        with pytest.raises(Wrong, match=r"no column 'tok'.*'id', 'token'"):
            rows_of(CSVParser("tok", None), "id,token\n")

    def test_a_first_row_that_is_data_is_not_shown(self) -> None:
        token = "8d0a3f52-1a4e-4c6b-9f0e-3b1f2d4c5a69"
        with pytest.raises(Wrong) as raised:
            rows_of(CSVParser("token", None), f"7,{token}\n")
        assert token not in str(raised.value)

    def test_two_columns_of_that_name_are_ambiguous(self) -> None:
        with pytest.raises(Wrong, match="More than one"):
            rows_of(CSVParser("t", None), "t,t\n")

    @pytest.mark.parametrize("text", ["", "\n\n", '"id,t\n', b"\xff,t\n"])
    def test_no_header_row(self, text: str | bytes) -> None:
        with pytest.raises(Wrong, match="header row"):
            rows_of(CSVParser("t", None), text)


class TestJSONL:
    def test_fields_of_objects(self) -> None:
        text = '{"id": 7, "t": "one"}\n\n{"id": [8], "t": "two", "x": null}\n'
        assert plain(rows_of(JSONLParser("t", "id"), text)) == [(1, "one", 7), (2, "blank"), (3, "two", [8])]

    def test_plain_strings(self) -> None:
        assert plain(rows_of(JSONLParser(None, None), '"one"\n"two"\n')) == [(1, "one"), (2, "two")]

    @pytest.mark.parametrize(
        "line",
        ["{", "[1]", "7", '{"x": "one"}', '{"t": 7}', '{"t": null}', '"one"', "[" * 100_000, '{"t": "\\ud800"}', "NaN"],
    )
    def test_lines_that_hold_no_token_cost_only_themselves(self, line: str) -> None:
        text = f'{{"t": "one"}}\n{line}\n{{"t": "two"}}\n'
        assert plain(rows_of(JSONLParser("t", None), text)) == [(1, "one"), (2, "invalid"), (3, "two")]

    def test_a_missing_field_in_the_first_object_is_wrong_usage(self) -> None:
        with pytest.raises(Wrong, match=r"no column 'tok'.*'id', 'token'"):
            rows_of(JSONLParser("tok", None), '{"id": 1, "token": "one"}\n')


class TestChecks:
    @pytest.mark.parametrize(
        "token", ["", ".", "..", "%2e%2E", "a\x00b", "a\rb", "a\x85b", "x" * 1025, "\ufeffone", "one\u200b", "a\u00a0b"]
    )
    def test_hostile_tokens_become_notes_that_do_not_show_them(self, token: str) -> None:
        note = check(Token(7, Secret(token)), SeenTokens())
        assert isinstance(note, Note)
        assert (note.line, note.kind) == (7, "invalid")
        assert token not in note.message or token in ("", ".", "..")

    @pytest.mark.parametrize("token", ["a/b?c#d", "a b", "100%", "ünïcode", "a+b;c:d@e\\f"])
    def test_strange_tokens_that_can_be_encoded_are_sent(self, token: str) -> None:
        assert isinstance(check(Token(7, Secret(token)), SeenTokens()), Token)

    def test_a_key_that_holds_the_token_is_refused(self) -> None:
        note = check(Token(7, Secret("token-1"), {"of": ["token-1"]}), SeenTokens())
        assert isinstance(note, Note)
        assert (note.kind, note.key) == ("invalid", None)

    def test_a_duplicate_keeps_its_key(self) -> None:
        seen = SeenTokens()
        assert isinstance(check(Token(1, Secret("one"), "a"), seen), Token)
        assert check(Token(2, Secret("one"), "b"), seen) == Note(2, "duplicate", key="b")


class TestSeen:
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

        def read() -> bytes:
            piece = next(pieces)
            if isinstance(piece, OSError):
                raise piece
            return piece

        file = TokenFile(None, read, lambda: None, TextParser())
        file.begin()
        assert plain([row async for row in file.rows(asyncio.Event())]) == [(1, "one"), (2, "two")]
        assert file.error is not None

    async def test_it_stops_between_two_rows(self, tmp_path: Path) -> None:
        (tmp_path / "t.txt").write_text("one\ntwo\n")
        stop = asyncio.Event()
        with closing(open_tokens(str(tmp_path / "t.txt"), Layout())) as file:
            async with aclosing(file.rows(stop)) as rows:
                assert plain([await anext(rows)]) == [(1, "one")]
                stop.set()
                assert [row async for row in rows] == []
