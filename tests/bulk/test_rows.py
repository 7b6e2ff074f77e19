"""Token files: bytes to lines, lines to rows, rows that are worth sending."""

from __future__ import annotations

from itertools import accumulate

import pytest

from flinks_async.bulk.errors import InputError
from flinks_async.bulk.inputs.formats import CSVParser, JSONLParser, Layout
from flinks_async.bulk.inputs.rows import (
    MAX_LINE,
    NO_KEY,
    TOO_LONG,
    Line,
    Lines,
    Row,
    RowParser,
    SkippedLine,
    TextParser,
    Token,
    check,
)
from flinks_async.secret import Secret

from ..support import traced


def lines_of(*pieces: bytes, position: int = 0, max_line: int = MAX_LINE) -> Lines:
    left = iter(pieces)
    return Lines(lambda: next(left, b""), position, max_line)


def split(*pieces: bytes) -> list[Line]:
    return list(lines_of(*pieces))


def rows_of(parser: RowParser, text: str | bytes, first: int = 1) -> list[Row]:
    return list(parser.rows(lines_of(text.encode() if isinstance(text, str) else text), first))


def plain(rows: list[Row]) -> list[tuple[object, ...]]:
    """(line, token), (line, token, key) or (line, kind of note)."""
    return [
        (row.line, row.kind)
        if isinstance(row, SkippedLine)
        else (row.line, row.token.reveal(), *(() if row.key is NO_KEY else (row.key,)))
        for row in rows
    ]


class TestLines:
    def test_lf_and_crlf_and_no_end_at_all(self) -> None:
        assert split(b"a\r\nb\n\nc") == ["a", "b", "", "c"]

    def test_only_one_cr_belongs_to_the_end_of_a_line(self) -> None:
        assert split(b"a\r\r\n\rb\r") == ["a\r", "\rb"]

    @pytest.mark.parametrize("size", [1, 2, 3, 5])
    def test_lines_do_not_depend_on_the_chunks(self, size: int) -> None:
        data = b"first\r\nsecond\n\r\n\xc3\xa9\n\xff\nlast"
        assert split(*(data[i : i + size] for i in range(0, len(data), size))) == split(data)

    def test_a_huge_line_is_reported_without_being_held(self) -> None:
        with traced() as memory:
            assert split(*[b"x" * MAX_LINE] * 64, b"x\nnext\n") == [TOO_LONG, "next"]
        assert memory.peak < 8 * MAX_LINE

    def test_a_huge_last_line_is_reported_too(self) -> None:
        assert split(b"x" * (MAX_LINE + 1)) == [TOO_LONG]

    def test_the_longest_line_is_still_a_line(self) -> None:
        assert split(b"x" * MAX_LINE + b"\n") == ["x" * MAX_LINE]

    def test_other_line_ends_of_unicode_are_part_of_the_line(self) -> None:
        text = "a\x0bb\x0c\x1c\u2028c\x85"
        assert split(text.encode()) == [text]

    @pytest.mark.parametrize("size", [1, 4, 100])
    def test_sizes_and_offsets_are_those_of_the_bytes(self, size: int) -> None:
        data = b"a\r\n\n\xc3\xa9\n" + b"x" * 20 + b"\nlast"
        lines = lines_of(*(data[i : i + size] for i in range(0, len(data), size)), position=3, max_line=10)
        assert list(lines) == ["a", "", "é", TOO_LONG, "last"]
        assert list(lines.starts) == list(accumulate((3, 1, 3, 21), initial=3))
        assert (lines.count, lines.position) == (5, len(data) + 3)

    @pytest.mark.parametrize("size", [1, 4, 100])
    def test_lines_that_are_skipped(self, size: int) -> None:
        data = b"one\ntwo\ntree\nfour\n"
        lines = lines_of(*(data[i : i + size] for i in range(0, len(data), size)))
        assert next(iter(lines)) == "one"
        lines.skip_to(8)
        assert list(lines) == ["tree", "four"]
        assert lines.position == len(data)


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
        assert isinstance(check(row), SkippedLine)


class TestCSV:
    def test_the_usual_name_of_the_column_is_found(self) -> None:
        assert plain(rows_of(CSVParser(Layout()), "id,Access_Token\n7,one\n8,two\n")) == [
            (1, "header"),
            (2, "one"),
            (3, "two"),
        ]

    def test_a_column_and_a_key_column_by_name(self) -> None:
        parser = CSVParser(Layout(column="t", key_column="id", delimiter=";"))
        assert plain(rows_of(parser, 'id;t\n7;one\n"8;x";two\n')) == [(1, "header"), (2, "one", "7"), (3, "two", "8;x")]

    def test_the_only_column_needs_no_name(self) -> None:
        assert plain(rows_of(CSVParser(Layout()), "whatever\none\n")) == [(1, "header"), (2, "one")]

    def test_ragged_rows_are_reported_and_nothing_is_taken_from_them(self) -> None:
        rows = rows_of(CSVParser(Layout(column="t")), "id,t\n7\n8,two,x\n9,tree\n")
        assert plain(rows) == [(1, "header"), (2, "invalid"), (3, "invalid"), (4, "tree")]
        assert isinstance(rows[1], SkippedLine)
        assert rows[1].message == "the row has 1 fields, the header has 2"

    @pytest.mark.parametrize("row", [",", ",,", " ,\t,", '"",', '"","",""', "\t"])
    def test_a_row_of_separators_only_is_blank(self, row: str) -> None:
        *_, found = rows_of(CSVParser(Layout(column="token", key_column="user")), f"token,user\nt-1,u\n{row}\n")
        assert found == SkippedLine(3, "blank")

    def test_a_row_with_a_key_and_no_token_is_not_blank(self) -> None:
        *_, found = rows_of(CSVParser(Layout(column="token", key_column="user")), "token,user\nt-1,u\n,u-2\n")
        assert not isinstance(check(found), Token)
        assert found != SkippedLine(3, "blank")

    def test_blank_lines_before_and_after_the_header(self) -> None:
        assert plain(rows_of(CSVParser(Layout(column="t")), "\nt\n\none\n")) == [
            (1, "blank"),
            (2, "header"),
            (3, "blank"),
            (4, "one"),
        ]

    def test_quoted_line_breaks_belong_to_their_row(self) -> None:
        rows = rows_of(CSVParser(Layout(column="t", key_column="id")), 'id,t\n"a\nb ""c""",zero\n7,one\n')
        assert plain(rows) == [(1, "header"), (2, "zero", 'a\nb "c"'), (3, "continued"), (4, "one", "7")]

    def test_a_quote_that_never_ends_costs_one_line(self) -> None:
        lines = ["id,t", "1,one", '"2,two', *(f"{n},token-{n}" for n in range(3, 500))]
        rows = rows_of(CSVParser(Layout(column="t")), "\n".join(lines))
        assert plain(rows[:3]) == [(1, "header"), (2, "one"), (3, "invalid")]
        assert plain(rows[3:]) == [(n + 1, f"token-{n}") for n in range(3, 500)]

    def test_every_line_comes_out_once_whatever_the_quotes(self) -> None:
        text = 'id,t\n"1,a\n2,b\n"3,c\n4,"\n5,"x"y"\n"",""\n"\n\n"6",f\n'
        rows = rows_of(CSVParser(Layout(column="t")), text)
        assert sorted(row.line for row in rows) == list(range(1, text.count("\n") + 1))

    def test_a_broken_line_inside_of_quotes_ends_them(self) -> None:
        rows = rows_of(CSVParser(Layout(column="t")), b'id,t\n"1,a\n2,b\n\xff\n3,c\n')
        assert plain(rows) == [(1, "header"), (2, "invalid"), (3, "b"), (4, "invalid"), (5, "c")]

    def test_a_field_that_the_csv_module_finds_too_large(self) -> None:
        rows = rows_of(CSVParser(Layout(column="t")), 'id,t\n"' + "x" * 200_000 + '",a\n2,b\n')
        assert plain(rows) == [(1, "header"), (2, "invalid"), (3, "b")]

    def test_a_missing_column_is_wrong_usage_that_lists_the_columns(self) -> None:
        with pytest.raises(InputError, match=r"no column 'tok'.*'id', 'token'"):
            rows_of(CSVParser(Layout(column="tok")), "id,token\n")

    def test_a_first_row_that_is_data_is_not_shown(self) -> None:
        token = "8d0a3f52-1a4e-4c6b-9f0e-3b1f2d4c5a69"
        with pytest.raises(InputError) as raised:
            rows_of(CSVParser(Layout(column="token")), f"7,{token}\n")
        assert token not in str(raised.value)

    def test_two_columns_of_that_name_are_ambiguous(self) -> None:
        with pytest.raises(InputError, match="More than one"):
            rows_of(CSVParser(Layout(column="t")), "t,t\n")

    @pytest.mark.parametrize("text", ["", "\n\n", '"id,t\n', b"\xff,t\n"])
    def test_no_header_row(self, text: str | bytes) -> None:
        with pytest.raises(InputError, match="header row"):
            rows_of(CSVParser(Layout(column="t")), text)


class TestJSONL:
    def test_fields_of_objects(self) -> None:
        text = '{"id": 7, "t": "one"}\n\n{"id": [8], "t": "two", "x": null}\n'
        assert plain(rows_of(JSONLParser(Layout(column="t", key_column="id")), text)) == [
            (1, "one", 7),
            (2, "blank"),
            (3, "two", [8]),
        ]

    def test_plain_strings(self) -> None:
        assert plain(rows_of(JSONLParser(Layout()), '"one"\n"two"\n')) == [(1, "one"), (2, "two")]

    @pytest.mark.parametrize(
        "line",
        ["{", "[1]", "7", '{"x": "one"}', '{"t": 7}', '{"t": null}', '"one"', "[" * 100_000, '{"t": "\\ud800"}', "NaN"],
    )
    def test_lines_that_hold_no_token_cost_only_themselves(self, line: str) -> None:
        text = f'{{"t": "one"}}\n{line}\n{{"t": "two"}}\n'
        assert plain(rows_of(JSONLParser(Layout(column="t")), text)) == [(1, "one"), (2, "invalid"), (3, "two")]

    def test_a_missing_field_in_the_first_object_is_wrong_usage(self) -> None:
        with pytest.raises(InputError, match=r"no column 'tok'.*'id', 'token'"):
            rows_of(JSONLParser(Layout(column="tok")), '{"id": 1, "token": "one"}\n')


class TestChecks:
    @pytest.mark.parametrize(
        "token", ["", ".", "..", "%2e%2E", "a\x00b", "a\rb", "a\x85b", "x" * 1025, "\ufeffone", "one\u200b", "a\u00a0b"]
    )
    def test_hostile_tokens_become_notes_that_do_not_show_them(self, token: str) -> None:
        note = check(Token(7, Secret(token)))
        assert isinstance(note, SkippedLine)
        assert (note.line, note.kind) == (7, "invalid")
        assert token not in note.message or token in ("", ".", "..")

    @pytest.mark.parametrize("token", ["a/b?c#d", "a b", "100%", "ünïcode", "a+b;c:d@e\\f"])
    def test_strange_tokens_that_can_be_encoded_are_sent(self, token: str) -> None:
        assert isinstance(check(Token(7, Secret(token))), Token)

    def test_a_key_that_holds_the_token_is_refused(self) -> None:
        note = check(Token(7, Secret("token-1"), {"of": ["token-1"]}))
        assert isinstance(note, SkippedLine)
        assert (note.kind, note.key) == ("invalid", None)

    @pytest.mark.parametrize(
        "key", ["u-token-1", ["x", {"token-1": 1}], {"a": {"b": ["token-1"]}}, {"token-1": None}, ["\\token-1"]]
    )
    def test_a_key_may_not_hold_it_anywhere(self, key: object) -> None:
        note = check(Token(7, Secret("token-1"), key))
        assert isinstance(note, SkippedLine)
        assert "token-1" not in f"{note!r}"

    def test_nor_as_a_number(self) -> None:
        assert isinstance(check(Token(7, Secret("12345"), 12345)), SkippedLine)
        (row,) = rows_of(JSONLParser(Layout(column="t", key_column="k")), '{"t": 12345, "k": "u-12345"}')
        assert isinstance(row, SkippedLine)
        assert row.key is None

    def test_nor_a_deep_one(self) -> None:
        key: object = "token-1"
        for _ in range(5000):
            key = [key]
        assert isinstance(check(Token(7, Secret("token-1"), key)), SkippedLine)

    def test_a_token_with_a_backslash_in_a_nested_key(self) -> None:
        assert isinstance(check(Token(7, Secret("a\\b'c"), ["a\\b'c"])), SkippedLine)

    @pytest.mark.parametrize("name", ["toolbox", "Acme-2", "a", "x" * 59])
    def test_names_of_instances(self, name: str) -> None:
        row = Token(7, Secret("token-1"), instance=name)
        assert check(row) == row

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("", "the instance is missing"),
            ("no name", "does not hold the name of an instance"),
            ("x" * 60, "does not hold the name of an instance"),
            ("-a", "does not hold the name of an instance"),
            ("a.evil.example/", "does not hold the name of an instance"),
            ("acme\n", "does not hold the name of an instance"),
            ("token-1", "the instance column holds the access token"),
        ],
    )
    def test_what_is_no_instance_is_not_shown(self, name: str, says: str) -> None:
        note = check(Token(7, Secret("token-1"), "u-1", name))
        assert isinstance(note, SkippedLine)
        assert says in note.message
        assert (note.kind, note.key, note.instance) == ("invalid", "u-1", None)


class TestInstances:
    def test_a_column_of_csv(self) -> None:
        parser = CSVParser(Layout(column="t", key_column="id", instance_column="at"))
        rows = rows_of(parser, "at,t,id\n acme ,one,1\n,two,2\n")
        assert [(row.instance, check(row).line) for row in rows if isinstance(row, Token)] == [("acme", 2), ("", 3)]

    def test_a_field_of_jsonl(self) -> None:
        lines = ['"acme"', '""', "null", "7"]
        text = "".join(f'{{"t": "one", "at": {value}}}\n' for value in lines) + '{"t": "two"}\n"three"\n'
        rows = [check(row) for row in rows_of(JSONLParser(Layout(column="t", instance_column="at")), text)]
        assert isinstance(rows[0], Token)
        assert rows[0].instance == "acme"
        assert [row.message for row in rows if isinstance(row, SkippedLine)] == [
            *["the instance is missing"] * 4,
            "the line is not a JSON object",
        ]

    @pytest.mark.parametrize(
        "parser",
        [CSVParser(Layout(column="t", instance_column="at")), JSONLParser(Layout(column="t", instance_column="at"))],
    )
    def test_a_column_that_is_not_there(self, parser: RowParser) -> None:
        with pytest.raises(InputError, match=r"no column 'at' \(`instance_column`\).*'t'"):
            rows_of(parser, "t\none\n" if isinstance(parser, CSVParser) else '{"t": "one"}\n')


class TestInTheMiddle:
    """A parser that begins at the first line of any row gives the rows that the first one gave."""

    @pytest.mark.parametrize(
        ("parser", "text"),
        [
            (TextParser(), "one\n\ntwo\ntree\n"),
            (CSVParser(Layout(column="t", key_column="id")), 'id,t\n1,one\n"2\n2",two\n"3,tree\n4,"four"\n5,five\n'),
            (JSONLParser(Layout(column="t")), '{"t": "one"}\n{"x": 1}\n{"t": "two"}\n'),
        ],
    )
    def test_it_is_the_same(self, parser: RowParser, text: str) -> None:
        rows = rows_of(parser, text)
        lines = text.splitlines(keepends=True)
        for place, row in enumerate(rows):
            if isinstance(row, Token):
                again = rows_of(parser, "".join(lines[row.line - 1 :]), row.line)
                assert again == rows[place:]
