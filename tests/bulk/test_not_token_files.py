"""Files that are no files of tokens: refused before anything is sent, with what was seen and what to do."""

from __future__ import annotations

import base64
import bz2
import io
import lzma
import pickle
import sqlite3
import tarfile
import zipfile
from contextlib import closing
from pathlib import Path

import pytest
from attrs import field, frozen

from flinks_async.bulk.errors import InputError
from flinks_async.bulk.inputs import InputFile, Layout

from .input_support import plain, read_all, scanned, write

TOKEN = "8d0a3f52-1a4e-4c6b-9f0e-3b1f2d4c5a69"
OTHER = "1b7e6c90-77aa-4d0b-8f65-0a9c3e5d7b21"
TEXT = "A text file holds one token a line, and nothing else."


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("tokens.txt"), io.BytesIO())
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tokens.txt", TOKEN)
    return file.getvalue()


def database() -> bytes:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t (token TEXT)")
        return connection.serialize()


@frozen
class Wrong:
    """A file.

    Attributes:
        name: of the file.
        content: of the file.
        says: what is said of it, in full.
        about: the field of `Layout` that the error names.
        layout: given with the file.
    """

    name: str
    content: bytes | str
    says: str
    about: str | None = "format"
    layout: Layout = field(factory=Layout)


MIXED = "mixes Latin letters or digits with letters of another alphabet, which may look the same"
MARK = "begins with a punctuation mark"
NUMBERS = "numbers, dates, IP addresses or phone numbers"
PAIR = base64.b64encode(f"{OTHER}:{TOKEN}".encode()).decode()
TABLE = "If it is a table, set `format` to csv."
OBJECTS = "Write one object a line, as `jq -c '.[]'` does, and set `format` to jsonl."
BESIDE = "holds a GUID with something before or after it"
SEEMS = "The file of tokens seems to hold {}. If these are the tokens, write the line `access_token` above them, and set `format` to csv."
ONLY = "The only column of the CSV file seems to hold {}. If these are the tokens, name it with `column`."
HEADERLESS = (
    "The first row of the CSV file looks like data, not like a header row. If there is no header row, use "
    "`header=False`; if this is the name of the column, give it as `column`."
)

WRONG = {
    # tables
    "a CSV file named .txt": Wrong("t.txt", f"id,token\n1,{TOKEN}\n", f"Line 1 of the file of tokens holds a comma, as in a table. {TABLE}"),
    "Excel's CSV named .txt": Wrong("t.txt", f"name;email;access_token\nA;a@b.ca;{TOKEN}\n", f"Line 1 of the file of tokens holds a semicolon, as in a table. {TABLE}"),
    "columns copied from a spreadsheet": Wrong("t.txt", f"1\t{TOKEN}\n2\t{OTHER}\n", f"Line 1 of the file of tokens holds a tab, as in a table. {TABLE}"),
    "the output of psql": Wrong("t.txt", f"id|token\n1|{TOKEN}\n(1 row)\n", f"Line 1 of the file of tokens holds a vertical bar, as in a table. {TABLE}"),
    "a Markdown table": Wrong("t.md", f"| id | token |\n|---|---|\n| 1 | {TOKEN} |\n", f"Line 1 of the file of tokens holds a vertical bar, as in a table. {TABLE}"),
    "a table below one token": Wrong("t.txt", f"{TOKEN}\nname,email\nA,a@b.ca\n", f"Line 2 of the file of tokens holds a comma, as in a table. {TABLE}"),
    "a column with its name, as text": Wrong("t.txt", f"access_token\n{TOKEN}\n", "Line 1 of the file of tokens is the name of a column, not a token. Set `format` to csv."),
    "quoted tokens": Wrong("t.txt", f'"{TOKEN}"\n"{OTHER}"\n', f"Line 1 of the file of tokens holds a quotation mark. {TABLE}"),
    "a column of spreadsheet formulas": Wrong("t.txt", f'=CONCAT("a";"{TOKEN}")\n', f"Line 1 of the file of tokens holds a quotation mark. {TABLE}".replace("holds a quotation mark. " + TABLE, f"looks like a spreadsheet's formula. {TEXT}")),
    "columns of fixed width": Wrong("t.txt", f"1   {TOKEN}\n2   {OTHER}\n", f"Line 1 of the file of tokens holds a blank. {TEXT}"),
    # CSV that is not what it seems
    "one column without a header": Wrong("t.csv", f"{TOKEN}\n{OTHER}\n", HEADERLESS, "header"),
    "one column of short tokens without a header": Wrong("t.csv", "token-1\ntoken-2\n", HEADERLESS, "header"),
    "a column of e-mail addresses": Wrong("t.csv", "ann@example.com\nbob@example.com\n", HEADERLESS, "header"),
    "two columns without a header": Wrong("t.csv", f"7,{TOKEN}\n", "Which column holds the tokens? Name it with `column`. The first row looks like data; if the file has no header row, use `header=False`. The columns are: '7', (a name of 36 characters that looks like data).", "column"),
    "a header with two delimiters": Wrong("t.csv", "a,b;c\n1,2;3\n", "The header row of the CSV file holds a comma and a semicolon. Name the right one with `delimiter`.", "delimiter"),
    "the wrong delimiter": Wrong("t.csv", f"name;token\nA;{TOKEN}\n", "The first row of the CSV file is one column that holds a semicolon. Set `delimiter` to it.", "delimiter", Layout(delimiter=",")),
    "an instruction for Excel": Wrong("t.csv", f"sep=;\nid;token\n1;{TOKEN}\n", "Line 1 of the CSV file is an instruction for Excel ('sep='). Delete it.", None),
    "a title above the header": Wrong("t.csv", f"Customers of May\nid,token\n1,{TOKEN}\n", "The first row of the CSV file (line 1) has one field, and the next one has more. Delete what precedes the header row, or name its `delimiter`.", None),
    "an empty CSV file": Wrong("t.csv", "", "The CSV file is empty: it has no header row.", None),
    "JSON Lines named .csv": Wrong("t.csv", f'{{"token":"{TOKEN}"}}\n', "The file of tokens holds JSON, one object a line. Set `format` to jsonl."),
    "a web page named .csv": Wrong("t.csv", "<!doctype html>\n<title>Sign in</title>\n", "The file of tokens is markup (HTML or XML), not CSV. Export it as CSV."),
    # JSON
    "JSON Lines named .json": Wrong("t.json", f'{{"token":"{TOKEN}"}}\n{{"token":"{OTHER}"}}\n', "The file of tokens holds JSON, one object a line. Set `format` to jsonl."),
    "a JSON list": Wrong("t.json", f'["{TOKEN}"]\n', f"The file of tokens is a JSON document. {OBJECTS}"),
    "a JSON list named .jsonl": Wrong("t.jsonl", f'[{{"token":"{TOKEN}"}}]\n', f"The file of tokens is a JSON document. {OBJECTS}"),
    "a JSON document over several lines": Wrong("t.jsonl", f'{{\n  "token": "{TOKEN}"\n}}\n', f"The file of tokens is one JSON document over several lines. {OBJECTS}"),
    "tokens named .jsonl": Wrong("t.jsonl", f"{TOKEN}\n", "Line 1 of the file of tokens is not JSON. Set `format` to text or csv, if it is one of these."),
    "a list in Python": Wrong("t.txt", f"{TOKEN!r},\n{OTHER!r},\n", f"Line 1 of the file of tokens holds a quotation mark. {TABLE}"),
    # markup, settings, programs
    "XML": Wrong("t.xml", f"<tokens><t>{TOKEN}</t></tokens>\n", f"Line 1 of the file of tokens holds '<' or '>', as in markup. {TEXT}"),
    "YAML": Wrong("t.yaml", f"tokens:\n  - {TOKEN}\n", f"Line 1 of the file of tokens looks like a name with a value, as in settings. {TEXT}"),
    "a list in YAML": Wrong("t.yaml", f"- {TOKEN}\n- {OTHER}\n", f"Line 1 of the file of tokens holds a blank. {TEXT}"),
    "settings": Wrong("t.env", f"FLINKS_TOKEN={TOKEN}\n", f"Line 1 of the file of tokens looks like a name with a value, as in settings. {TEXT}"),
    "sections of settings": Wrong("t.ini", f"[tokens]\na = {TOKEN}\n", f"Line 1 of the file of tokens holds a bracket or a brace, as in JSON or a program. {TEXT}"),
    "HTTP headers": Wrong("t.txt", f"Authorization: Bearer {TOKEN}\n", f"Line 1 of the file of tokens looks like a name with a value, as in settings. {TEXT}"),
    "tokens with their scheme": Wrong("t.txt", f"Bearer {TOKEN}\n", f"Line 1 of the file of tokens begins with 'Bearer '. {TEXT}"),
    "SQL": Wrong("t.sql", f"INSERT INTO t VALUES ('{TOKEN}');\n", f"Line 1 of the file of tokens holds a quotation mark. {TABLE}"),
    "a program with a comment": Wrong("t.py", "#!/usr/bin/env python\n", f"Line 1 of the file of tokens looks like a comment. {TEXT}"),
    "a log": Wrong("t.log", f"2026-05-01T12:00:00Z INFO fetched {TOKEN}\n", f"Line 1 of the file of tokens holds a blank. {TEXT}"),
    "URLs": Wrong("t.txt", f"https://example.com/{TOKEN}\n", f"Line 1 of the file of tokens looks like a URL. {TEXT}"),
    "e-mail addresses": Wrong("t.txt", "ann@example.com\nbob@example.com\n", f"Line 1 of the file of tokens looks like an e-mail address. {TEXT}"),
    "names of files": Wrong("t.txt", "./answers/a.json\n./answers/b.json\n", f"Line 1 of the file of tokens looks like the path of a file. {TEXT}"),
    "a private key": Wrong("t.pem", "-----BEGIN PRIVATE KEY-----\nMIIE\n", "The file of tokens is an encrypted message, a certificate or a key, not tokens.", None),
    # a token with something beside it
    "a caret between columns": Wrong("t.txt", f"ann^{TOKEN}\n", f"Line 1 of the file of tokens {BESIDE}. {TEXT}"),
    "numbered tokens": Wrong("t.txt", f"1.{TOKEN}\n2.{OTHER}\n", f"Line 1 of the file of tokens {BESIDE}. {TEXT}"),
    "a patch": Wrong("t.txt", f"+{TOKEN}\n-{OTHER}\n", f"Line 1 of the file of tokens {BESIDE}. {TEXT}"),
    "tokens with a percent-encoded blank": Wrong("t.txt", f"%20{TOKEN}\n", f"Line 1 of the file of tokens {BESIDE}. {TEXT}"),
    "one CSV column with another delimiter": Wrong("t.csv", f"e-mail~token\na@b.ca~{TOKEN}\n", f"Line 2 of the CSV file {BESIDE}, so it is not a token. Correct or delete it.", None),
    "one CSV column of two columns": Wrong("t.csv", f"name token\nAnn {TOKEN}\n", "Line 2 of the CSV file holds a blank, so it is not a token. Correct or delete it.", None),
    "paths of URLs": Wrong("t.txt", f"/partneraccess/{TOKEN}\n", f"Line 1 of the file of tokens looks like a URL. {TEXT}"),
    "queries of URLs": Wrong("t.txt", f"?token={TOKEN}\n", f"Line 1 of the file of tokens looks like a URL. {TEXT}"),
    "a header of another name": Wrong("t.txt", f"LoginId\n{TOKEN}\n{OTHER}\n", "Line 1 of the file of tokens is unlike the others, which are GUIDs. If it is a header, set `format` to csv; if it is not, delete it."),
    # values of other kinds
    "names of people": Wrong("t.txt", "Ann\nBob\nJean-Luc\n", SEEMS.format("words or names")),
    "dates": Wrong("t.txt", "2026-01-31T10:00:00Z\n2026-02-01\n", SEEMS.format(NUMBERS)),
    "phone numbers": Wrong("t.txt", "+15145550100\n514-555-0101\n", SEEMS.format(NUMBERS)),
    "card numbers": Wrong("t.txt", "4111111111111111\n5500005555555559\n", SEEMS.format(NUMBERS)),
    "a listing of files": Wrong("t.txt", "tokens.csv\nREADME.md\n", SEEMS.format("names of files")),
    "placeholders": Wrong("t.txt", "XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX\n", SEEMS.format("placeholders")),
    "an attachment": Wrong("t.txt", f"{'QUJD' * 19}\n{'REVG' * 19}\nQUJD\n", SEEMS.format("Base64 data on several lines")),
    "amounts": Wrong("t.txt", "-25.00\n1000\u20ac\n12.5%\n1.5e-7\n", SEEMS.format(NUMBERS)),
    "dates with the name of the month": Wrong("t.txt", "31-Jan-2026\n1.February.2026\n", SEEMS.format(NUMBERS)),
    "numbers in hexadecimal": Wrong("t.txt", "0x1F\n0x52908400098527886E0F7030069857D2E4169EE7\n", SEEMS.format(NUMBERS)),
    "versions": Wrong("t.txt", "v1.2.3\n2.0.0\n", SEEMS.format(NUMBERS)),
    "addresses of network cards": Wrong("t.txt", "00:1A:2B:3C:4D:5E\n2001:db8::1\n", SEEMS.format(NUMBERS)),
    "postal codes": Wrong("t.txt", "M5J2V5\nH2Y1C6\n", SEEMS.format("postal codes")),
    "true and false": Wrong("t.txt", "true\nfalse\n", SEEMS.format("the words true and false, or yes and no")),
    "folders": Wrong("t.txt", "/var/lib\n/srv/data/\n", SEEMS.format("paths of files or folders")),
    "a short attachment": Wrong("t.txt", f"{'QUJD' * 19}\n{'REVG' * 9}\n", SEEMS.format("Base64 data on several lines")),
    "amounts with a currency": Wrong("t.txt", "$25.00\n", f"Line 1 of the file of tokens {MARK}. {TEXT}"),
    "names of users": Wrong("t.txt", "@ann\n@bob\n", f"Line 1 of the file of tokens {MARK}. {TEXT}"),
    "messages of SWIFT": Wrong("t.sta", ":20:STARTUMSE\n:25:10020030/1234567\n", f"Line 1 of the file of tokens {MARK}. {TEXT}"),
    "Quicken": Wrong("t.qif", "!Type:Bank\nD01/31'26\n^\n", f"Line 1 of the file of tokens {MARK}. {TEXT}"),
    "paths of Windows": Wrong("t.txt", "C:\\Users\\Ann\nD:/data\n", f"Line 1 of the file of tokens looks like the path of a file. {TEXT}"),
    "shares of Windows": Wrong("t.txt", "\\\\server\\tokens\n", f"Line 1 of the file of tokens looks like the path of a file. {TEXT}"),
    "requirements of Python": Wrong("t.txt", "aiohttp==3.14.4\n", f"Line 1 of the file of tokens looks like a name with a value, as in settings. {TEXT}"),
    "tokens without line breaks": Wrong("t.txt", f"{TOKEN}{OTHER}\n", f"Line 1 of the file of tokens is two GUIDs without anything between them. {TEXT}"),
    "missing values": Wrong("t.txt", f"null\n{TOKEN}\n", f"Line 1 of the file of tokens stands for a missing value. {TEXT}"),
    "numbers that Excel rounded": Wrong("t.csv", "token\n1.23E+15\n", "Line 2 of the CSV file is a number that a spreadsheet rounded, so it is not a token. Correct or delete it.", None),
    "masked tokens": Wrong("t.txt", "8d0a...5a69\n", f"Line 1 of the file of tokens holds an ellipsis or asterisks, as a shortened or masked value does. {TEXT}"),
    "a word processor's dashes": Wrong("t.txt", TOKEN.replace("-", "\u2011"), f"Line 1 of the file of tokens holds a typographic character, such as a long dash. {TEXT}"),
    "an invisible character": Wrong("t.txt", f"\u200b{TOKEN}\n", f"Line 1 of the file of tokens holds an invisible character. {TEXT}"),
    "line separators of Unicode": Wrong("t.txt", f"{TOKEN}\u2028{OTHER}", f"Line 1 of the file of tokens holds a line break other than LF and CR LF. {TEXT}"),
    "an old pickle": Wrong("t.pkl", pickle.dumps([TOKEN], 0), f"Line 1 of the file of tokens holds a bracket or a brace, as in JSON or a program. {TEXT}"),
    "letters of another alphabet": Wrong("t.txt", TOKEN.replace("a", "\u0430"), f"Line 1 of the file of tokens {MIXED}. {TEXT}"),
    "a capital letter of another alphabet": Wrong("t.txt", "tokenA-\u0391\n", f"Line 1 of the file of tokens {MIXED}. {TEXT}"),
    "one CSV column with mathematical letters": Wrong("t.csv", f"token\n{TOKEN.replace('d', chr(0x1D41D))}\n", f"Line 2 of the CSV file {MIXED}, so it is not a token. Correct or delete it.", None),
    "pairs of secret and token": Wrong("t.txt", f"{PAIR}\n", f"Line 1 of the file of tokens is Base64 of two GUIDs, such as an AuthSecret and an access token. {TEXT}"),
    "account numbers": Wrong("t.txt", "DE89370400440532013000\nGB29NWBK60161331926819\n", SEEMS.format("account numbers (IBAN)")),
    "one account number": Wrong("t.txt", "fr1420041010050500013m02606\n", SEEMS.format("account numbers (IBAN)")),
    "a CSV column of account numbers": Wrong("t.csv", "iban\nDE89370400440532013000\n", ONLY.format("account numbers (IBAN)"), "column"),
    "a CSV column of customer numbers": Wrong("t.csv", "customer_id\n1001\n1002\n", ONLY.format(NUMBERS), "column"),
    "account numbers with a header": Wrong("t.txt", "iban\nDE89370400440532013000\nGB29NWBK60161331926819\n", SEEMS.format("account numbers (IBAN)")),
    "numbers with a header": Wrong("t.txt", "customer_id\n1001\n1002\n", SEEMS.format(NUMBERS)),
    "numbers in JSON Lines": Wrong("t.jsonl", "1\n2\n", "Line 1 of the file of tokens is neither a JSON object nor a JSON string. Set `format` to text or csv, if it is one of these."),
    "age": Wrong("t.age", "age-encryption.org/v1\n-> X25519 abc\n", "The file of tokens is encrypted; decrypt it.", None),
    # other encodings
    "UTF-16 with its mark": Wrong("t.txt", f"{TOKEN}\n".encode("utf-16"), "The file of tokens is UTF-16 text. Set `encoding` to utf-16, or save it as UTF-8.", "encoding"),
    "UTF-16 without its mark": Wrong("t.txt", f"{TOKEN}\n".encode("utf-16-le"), "The file of tokens is UTF-16 text without a byte-order mark. Set `encoding` to utf-16-le, or save it as UTF-8.", "encoding"),
    "UTF-16, big end first": Wrong("t.csv", f"token\n{TOKEN}\n".encode("utf-16-be"), "The file of tokens is UTF-16 text without a byte-order mark. Set `encoding` to utf-16-be, or save it as UTF-8.", "encoding"),
    "UTF-32": Wrong("t.txt", f"{TOKEN}\n".encode("utf-32"), "The file of tokens is UTF-32 text. Set `encoding` to utf-32, or save it as UTF-8.", "encoding"),
    "a header in Windows-1252": Wrong("t.csv", f"clé;token\n1;{TOKEN}\n".encode("cp1252"), "Line 1 of the file of tokens is not valid UTF-8. Set `encoding`, such as cp1252, or save it as UTF-8.", "encoding"),
    "EBCDIC": Wrong("t.txt", f"{TOKEN}\n{OTHER}\n".encode("cp037"), "The file of tokens is EBCDIC text. Convert it to UTF-8.", "encoding"),
    "EBCDIC with its own line ends": Wrong("t.txt", f"{TOKEN}\x85{OTHER}\x85".encode("cp037"), "The file of tokens is EBCDIC text. Convert it to UTF-8.", "encoding"),
    "the line ends of an old Mac": Wrong("t.txt", f"{TOKEN}\r{OTHER}\r", "The lines of the file of tokens end with CR alone. Save it with LF or CR LF.", None),
    # binary
    "a spreadsheet": Wrong("t.xlsx", zipped(), "The file of tokens is a ZIP archive or a spreadsheet; export it as CSV.", None),
    "an old spreadsheet": Wrong("t.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504), "The file of tokens is an old Excel or Word document; export it as CSV.", None),
    "a PDF": Wrong("t.pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "The file of tokens is a PDF document; export the tokens as CSV or text.", None),
    "rich text": Wrong("t.rtf", "{\\rtf1\\ansi tokens}", "The file of tokens is an RTF document; save it as plain text.", None),
    "a database": Wrong("t.db", database(), "The file of tokens is an SQLite database; export the tokens as CSV.", None),
    "bzip2": Wrong("t.txt.bz2", bz2.compress(TOKEN.encode()), "The file of tokens is compressed with bzip2; compress it with gzip or Zstandard, or not at all.", None),
    "xz": Wrong("t.txt.xz", lzma.compress(TOKEN.encode()), "The file of tokens is compressed with xz; compress it with gzip or Zstandard, or not at all.", None),
    "a tar archive": Wrong("t.tar", tar(), "The file of tokens is a tar archive; unpack it.", None),
    "Avro": Wrong("t.avro", b"Obj\x01\x04\x14avro.codec", "The file of tokens is an Avro file; convert it to Parquet, CSV or JSON Lines.", None),
    "an image": Wrong("t.png", b"\x89PNG\r\n\x1a\n\x00\x00", "The file of tokens is an image; export the tokens as CSV or text.", None),
    "HDF5": Wrong("t.h5", b"\x89HDF\r\n\x1a\n", "The file of tokens is an HDF5 file; convert it to Parquet, CSV or JSON Lines.", None),
    "PostScript": Wrong("t.ps", "%!PS-Adobe-3.0\n", "The file of tokens is a PostScript document; export the tokens as CSV or text.", None),
    "a program": Wrong("t", b"\x7fELF\x02\x01\x01", "The file of tokens is a program; export the tokens as CSV or text.", None),
    "a pickle": Wrong("t.pickle", pickle.dumps([TOKEN]), "The file of tokens is binary: line 1 holds control characters. Export the tokens as CSV or text.", None),
    "zeros": Wrong("t.txt", bytes(1000), "The file of tokens is binary: line 1 holds control characters. Export the tokens as CSV or text.", None),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_said(kind: str, tmp_path: Path) -> None:
    wrong = WRONG[kind]
    with pytest.raises(InputError) as raised:
        InputFile(write(tmp_path / wrong.name, wrong.content), wrong.layout)
    assert (raised.value.message, raised.value.field) == (wrong.says, wrong.about)
    for content in (TOKEN, OTHER, "example.com", "a@b.ca"):
        assert content not in str(raised.value)


@pytest.mark.parametrize("kind", [kind for kind, wrong in WRONG.items() if wrong.says.startswith("Line")])
def test_it_is_found_behind_blank_lines_and_in_compressed_files_too(kind: str, tmp_path: Path) -> None:
    wrong = WRONG[kind]
    content = wrong.content.encode() if isinstance(wrong.content, str) else wrong.content
    with pytest.raises(InputError) as raised:
        InputFile(write(tmp_path / wrong.name, b"\n \n" + content, "gzip"), wrong.layout)
    number = int(wrong.says.split(" ")[1])
    assert raised.value.message == wrong.says.replace(f"Line {number}", f"Line {number + 2}").replace(
        f"line {number} ", f"line {number + 2} "
    )


@pytest.mark.parametrize(
    ("name", "content", "layout"),
    [
        ("t.txt", f"{TOKEN}\n{OTHER}\n", Layout()),
        ("t.txt", f"{TOKEN}\r\n{OTHER}\r\n", Layout()),
        ("t.csv", f"name;email;access_token\nA;a@b.ca;{TOKEN}\nB;b@b.ca;{OTHER}\n", Layout()),
        ("t.csv", f"id\ttoken\n1\t{TOKEN}\n2\t{OTHER}\n", Layout()),
        ("t.tsv", f"token,of\tid\n{TOKEN}\t1\n{OTHER}\t2\n", Layout(column="token,of")),
        ("t.csv", f"Token;Amount (a, b)\n{TOKEN};1,5\n{OTHER};2,5\n", Layout()),
        ("t.csv", f"{TOKEN}\n{OTHER}\n", Layout(header=False)),
        ("t.csv", f"7,{TOKEN}\n8,{OTHER}\n", Layout(header=False, column="2")),
        ("t.csv", f"token-7\n{TOKEN}\n{OTHER}\n", Layout(header=True)),
        ("t.txt", f"{TOKEN}\n{OTHER}\n".encode("utf-16"), Layout(encoding="utf-16")),
        ("t.txt", f"{TOKEN}\n{OTHER}\n".encode("utf-16-le"), Layout(encoding="UTF-16LE")),
        ("t.csv", f"clé;token\né;{TOKEN}\nè;{OTHER}\n".encode("cp1252"), Layout(encoding="cp1252", key_column="clé")),
        ("t.json", f'{{"token":"{TOKEN}"}}\n{{"token":"{OTHER}"}}\n', Layout("jsonl")),
        ("t.bin", f'"{TOKEN}"\n"{OTHER}"\n', Layout("jsonl")),
    ],
)
@pytest.mark.parametrize("kind", ["none", "zstd"])
def test_what_was_right_or_was_put_right(
    tmp_path: Path, name: str, content: str | bytes, layout: Layout, kind: str
) -> None:
    file = InputFile(write(tmp_path / name, content, kind), layout)
    _, sink = scanned(file, tmp_path, shard_size=1)
    sink.shards.reverse()  # each is found by its offset
    assert [token for _, token in plain(read_all(file, sink))] == [OTHER, TOKEN]
    again = InputFile(file.path, file.layout)
    assert again.layout == file.layout, "a job knows its file again"


@pytest.mark.parametrize(
    "line",
    [
        "nan",
        "1.5E+15",
        f"ann^{OTHER}",
        OTHER.replace("c", "\u0441"),
        PAIR,
        "name,email",
        "a;b",
        f"{TOKEN}\r{OTHER}",
        f"{TOKEN}{OTHER}",
        ":20:a",
        "a\tb",
        "two words",
        '"quoted"',
        "=1+1",
        "<b>",
        "x://y",
        "a@b.ca",
        "key=value",
        "--",
        "# a",
    ],
)
def test_a_single_line_that_is_no_token_is_invalid_and_says_why(tmp_path: Path, line: str) -> None:
    result, sink = scanned(InputFile(write(tmp_path / "t.txt", f"{TOKEN}\n{line}\n{OTHER}\n")), tmp_path)
    assert (result.tokens, result.invalid) == (2, 1)
    (failure,) = sink.failures
    assert failure.line == 2
    assert failure.message.startswith("the line ")
    assert line not in failure.message


@pytest.mark.parametrize(
    "token",
    [
        TOKEN,
        "a",
        "A.b~c_d-e",
        "a+b/c==",
        "100%",
        "%41",
        "ünïcode",
        "токен",
        "DE89370400440532013001",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        base64.b64encode(f"user:{TOKEN}".encode()).decode(),
        "ORCA",
        "FEA1",
        "BZhello",
        "a/b?c#d",
        "-x",
        "_",
        "0",
    ],
)
def test_opaque_tokens_stay_tokens(tmp_path: Path, token: str) -> None:
    assert scanned(InputFile(write(tmp_path / "t.txt", f"{token}\n{TOKEN}\n")), tmp_path)[0].tokens == len(
        {token, TOKEN}
    )


@pytest.mark.parametrize(
    ("layout", "says", "field"),
    [
        (Layout(encoding="no such"), "`encoding` is not a text encoding that Python knows", "encoding"),
        (Layout(encoding="base64"), "`encoding` is not a text encoding that Python knows", "encoding"),
        (Layout("csv", delimiter=";;"), "`delimiter` must be one character", "delimiter"),
        (Layout(header=False), "Only CSV files have a header row", "header"),
        (Layout("csv", header=False), "The columns are: '1', '2'", "column"),
        (Layout(encoding="ascii"), "the text is not valid ascii", None),
    ],
)
def test_fields_that_cannot_be_right(tmp_path: Path, layout: Layout, says: str, field: str | None) -> None:
    path = write(tmp_path / "t", f"a,é\n1,{TOKEN}\n")
    with pytest.raises(InputError, match=says) as raised:
        InputFile(path, layout)
    assert raised.value.field == field


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_an_empty_file_says_so(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    assert scanned(InputFile(write(tmp_path / "t.txt", content)), tmp_path)[0].tokens == 0
    assert [record.getMessage() for record in caplog.records] == ["The file of tokens holds no tokens."]


@pytest.mark.parametrize(
    "value",
    [
        "null",
        "NaN",
        "None",
        "undefined",
        "#N/A",
        r"\N",
        "1.5E+15",
        f"a@b.ca^{OTHER}",
        f"{OTHER}{OTHER}",
        OTHER.replace("e", "\u0435"),
        PAIR,
    ],
)
@pytest.mark.parametrize(
    ("name", "form"), [("t.csv", "x,token\n1,{}\n1,{}\n"), ("t.jsonl", '{{"token":"{}"}}\n{{"token":"{}"}}\n')]
)
def test_a_value_that_is_never_a_token_is_invalid_in_every_format(
    tmp_path: Path, name: str, form: str, value: str
) -> None:
    content = form.format(TOKEN, value.replace("\\", "\\\\") if name == "t.jsonl" else value)
    result, sink = scanned(InputFile(write(tmp_path / name, content)), tmp_path)
    assert (result.tokens, result.invalid) == (1, 1)
    assert sink.failures[0].message.startswith("the access token ")


def test_one_column_of_csv_is_as_strict_as_text(tmp_path: Path) -> None:
    content = f"token\n{TOKEN}\n{OTHER}\nTotal: 2\n(2 rows affected)\n"
    result, sink = scanned(InputFile(write(tmp_path / "t.csv", content)), tmp_path)
    assert (result.tokens, result.invalid) == (2, 2)
    assert [failure.line for failure in sink.failures] == [4, 5]


@pytest.mark.parametrize(
    ("header", "layout"), [("access_token", Layout()), ("customer_id", Layout(column="customer_id"))]
)
def test_words_and_numbers_can_be_tokens_below_a_header(tmp_path: Path, header: str, layout: Layout) -> None:
    for content in ("alpha\nbeta\n4111111111111111\n", "1001\n1002\n1003\n"):
        source = InputFile(write(tmp_path / "t.csv", f"{header}\n{content}"), layout)
        assert scanned(source, tmp_path)[0].tokens == 3
