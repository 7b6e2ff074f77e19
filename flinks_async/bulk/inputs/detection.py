"""Recognizes from its beginning what a file holds, so that nothing but tokens is ever sent.

A table that is read as text would put names and e-mail addresses into URLs. So a file whose content does not agree with
its format is refused before anything is sent: an InputError says what was seen, in which line, and names the field of
`Layout` to set. Messages show no content of the file except single special characters.
"""

from __future__ import annotations

import base64
import binascii
import csv
import re
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from ..errors import InputError

SAMPLE: Final = 64 * 1024
"""Bytes at the beginning of a file that are looked at."""

_USUAL_NAMES: Final = frozenset({"token", "accesstoken", "flinksaccesstoken"})

DELIMITERS: Final = (",", ";", "\t", "|")

_NAMES: Final = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}
_ONE_A_LINE: Final = "A text file holds one token a line, and nothing else."
_AS_TABLE: Final = "If it is a table, set `format` to csv."

_EXPORT: Final = "export the tokens as CSV or text"

_MAGIC: Final = {
    b"PAR1": "a Parquet file; set `format` to parquet",
    b"PK\x03\x04": "a ZIP archive or a spreadsheet; export it as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word document; export it as CSV",
    b"%PDF": f"a PDF document; {_EXPORT}",
    b"{\\rtf": "an RTF document; save it as plain text",
    b"SQLite format 3": "an SQLite database; export the tokens as CSV",
    b"Obj\x01": "an Avro file; convert it to Parquet, CSV or JSON Lines",
    b"ORC": "an ORC file; convert it to Parquet, CSV or JSON Lines",
    b"ARROW1": "an Arrow file; convert it to Parquet, CSV or JSON Lines",
    b"FEA1": "a Feather file; convert it to Parquet, CSV or JSON Lines",
    b"BZh": "compressed with bzip2; compress it with gzip or Zstandard, or not at all",
    b"\xfd7zXZ": "compressed with xz; compress it with gzip or Zstandard, or not at all",
    b"\x04\x22\x4d\x18": "compressed with LZ4; compress it with gzip or Zstandard, or not at all",
    b"\x1f\x9d": "compressed with compress; compress it with gzip or Zstandard, or not at all",
    b"\x89HDF": "an HDF5 file; convert it to Parquet, CSV or JSON Lines",
    b"%!PS": f"a PostScript document; {_EXPORT}",
    b"7z\xbc\xaf": "a 7-Zip archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"\x89PNG": f"an image; {_EXPORT}",
    b"\xff\xd8\xff": f"an image; {_EXPORT}",
    b"GIF8": f"an image; {_EXPORT}",
    b"\x7fELF": f"a program; {_EXPORT}",
    b"Salted__": "encrypted; decrypt it",
    b"age-encryption.org": "encrypted; decrypt it",
    b"-----BEGIN": "an encrypted message, a certificate or a key, not tokens",
}  # fmt: skip
_NOT_TEXT: Final = re.compile(rb"[\x00-\x08\x0e-\x1f\x80-\xff]")
_ENCODINGS: Final = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}  # the longer ones first


def refuse_magic(head: bytes) -> None:
    """Refuses a file by its first bytes."""
    for mark, encoding in _ENCODINGS.items():
        if head.startswith(mark):
            raise InputError(
                f"The file of tokens is {encoding.upper()} text. Set `encoding` to {encoding}, or save it as UTF-8.",
                field="encoding",
            )
    for mark, what in _MAGIC.items():
        # A token may begin with letters such as "FEA1", but no text holds such bytes.
        if head.startswith(mark) and (mark == b"PAR1" or not mark.isalnum() or _NOT_TEXT.search(head[:64])):
            raise InputError(f"The file of tokens is {what}.", field="format" if "`format`" in what else None)
    if head[257:262] == b"ustar":
        raise InputError("The file of tokens is a tar archive; unpack it.")


def first_lines(sample: bytes) -> list[tuple[int, str]]:
    """The first lines that are not blank, each with its number.

    Args:
        sample: the beginning of a file, whose last line may be incomplete.
    """
    whole = sample.rpartition(b"\n")[0]
    lines = (whole if len(sample) >= SAMPLE and whole else sample).decode("utf-8", "replace").split("\n")
    found = [(number, line.removesuffix("\r")) for number, line in enumerate(lines, 1) if line.strip(" \t\r")]
    if found:
        _refuse_ebcdic(sample)
        _refuse_binary(*found[0])
    return found


def _refuse_ebcdic(sample: bytes) -> None:
    """Refuses text of a mainframe, of which neither letters nor digits are ASCII bytes."""
    text = "".join(sample.decode("cp037").splitlines())
    if max(sample) > 0x80 and text.isascii() and text.isprintable():
        raise InputError("The file of tokens is EBCDIC text. Convert it to UTF-8.", field="encoding")


def _refuse_binary(number: int, line: str) -> None:
    for encoding, zeros, characters in (("utf-16-be", line[::2], line[1::2]), ("utf-16-le", line[1::2], line[::2])):
        if zeros and not zeros.strip("\0") and "\0" not in characters:
            raise InputError(
                "The file of tokens is UTF-16 text without a byte-order mark. "
                f"Set `encoding` to {encoding}, or save it as UTF-8.",
                field="encoding",
            )
    if any(c < " " and c not in "\t\r" for c in line):
        raise InputError(
            f"The file of tokens is binary: line {number} holds control characters. Export the tokens as CSV or text."
        )
    if "\ufffd" in line:
        raise InputError(
            f"Line {number} of the file of tokens is not valid UTF-8. Set `encoding`, such as cp1252, or save it as UTF-8.",
            field="encoding",
        )
    if "\r" in line.rstrip("\r"):
        raise InputError("The lines of the file of tokens end with CR alone. Save it with LF or CR LF.")


def is_usual_name(name: str) -> bool:
    """Whether a column of this name holds the tokens, unless another one is named."""
    return name.lower().replace("_", "").replace(" ", "") in _USUAL_NAMES


def looks_like_data(name: str) -> bool:
    """Whether this is more likely a value, perhaps a token, than the name of a column. It is then never shown."""
    return len(name) > 40 or not name.isprintable() or sum(map(str.isdigit, name)) >= 5


# --- text -------------------------------------------------------------------------------------------------------------

_MISSING: Final = "null|none|nan|undefined"
_ROUNDED: Final = r"[0-9](?:[.,][0-9]+)?E\+[0-9]+"
_plain: Final = re.compile(
    rf"(?!(?:{_MISSING}|{_ROUNDED})$)[A-Za-z0-9](?:[A-Za-z0-9._~+/%]*|[A-Za-z0-9._-]*)={{0,2}}", re.IGNORECASE
).fullmatch
"""Accepts nearly every token at once; `_PROBLEMS` judge the others, and the beginning of a file."""

_GUID: Final = "[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
_is_guid: Final = re.compile(_GUID).fullmatch
_is_pair: Final = re.compile(f"{_GUID}:{_GUID}").fullmatch
_EMAIL: Final = "looks like an e-mail address"
_PATH: Final = "looks like the path of a file"
_OTHER_LETTERS: Final = (
    "\u0370-\u058f\u13a0-\u13ff\u1f00-\u1fff\u2100-\u214f\u2160-\u2188\u2460-\u24ff\u2c80-\u2cff\ua4d0-\ua4ff\ua640-\ua69f"
    "\uab70-\uabbf\uff10-\uff5a\U0001d400-\U0001d7ff"
)
"""Greek, Cyrillic and others whose letters look like Latin ones; letters in circles, fullwidth and mathematical ones."""
_PROBLEMS_OF_VALUES: Final = (
    (re.compile(rf"(?i:{_MISSING}|#?n/a|#ref!|\\n)"), "stands for a missing value"),
    (re.compile(_ROUNDED), "is a number that a spreadsheet rounded"),
    (
        re.compile(rf"(?:.*[^\w-]|-|.*%[0-9A-Fa-f]{{2}}){_GUID}.*|.*{_GUID}[^\w-].*"),
        "holds a GUID with something before or after it",
    ),
    (
        re.compile(rf".*(?:[A-Za-z0-9].*[{_OTHER_LETTERS}]|[{_OTHER_LETTERS}].*[A-Za-z0-9]).*"),
        "mixes Latin letters or digits with letters of another alphabet, which may look the same",
    ),
)
"""What is no token even in a column or a field that is said to hold tokens."""
_PROBLEMS: Final = (
    *_PROBLEMS_OF_VALUES[:2],
    (re.compile(r"(?i:bearer)\s.*"), "begins with 'Bearer '"),
    (re.compile(r".*[<>].*"), "holds '<' or '>', as in markup"),
    (re.compile(r"=.*|[@+-][^=]*\(.*"), "looks like a spreadsheet's formula"),
    (re.compile(r"(?:#|//|--).*"), "looks like a comment"),
    (re.compile(r".*(?:://|partneraccess/).*|\?.*=.*"), "looks like a URL"),
    (re.compile(r".*[\"'`\u2018-\u201f\u00ab\u00bb].*"), "holds a quotation mark"),
    (re.compile(r".*[{}\[\]()].*"), "holds a bracket or a brace, as in JSON or a program"),
    (re.compile(r".*[\r\x0b\x0c\x85\u2028\u2029].*"), "holds a line break other than LF and CR LF"),
    (re.compile(r".*(?:\.\.\.|\u2026|\*\*).*"), "holds an ellipsis or asterisks, as a shortened or masked value does"),
    (re.compile(r".*[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff].*"), "holds an invisible character"),
    (re.compile(r".*[\u2010-\u2015\u2022\u2212\uff01-\uff5e].*"), "holds a typographic character, such as a long dash"),
    (re.compile(r".*\t.*"), "holds a tab, as in a table"),
    (re.compile(r".*,.*"), "holds a comma, as in a table"),
    (re.compile(r".*;.*"), "holds a semicolon, as in a table"),
    (re.compile(r".*\|.*"), "holds a vertical bar, as in a table"),
    (re.compile(r"[^@\s]+@[^@\s]+\.[A-Za-z]{2,}"), _EMAIL),
    (re.compile(r"[A-Za-z]:[/\\].*|\\\\.*"), _PATH),
    (re.compile(r"[A-Za-z_][\w.-]*[ \t]*(?::|={1,2}[^=]).*"), "looks like a name with a value, as in settings"),
    (re.compile(r".*\s.*"), "holds a blank"),
    (re.compile(r"\.{0,2}[/\\].*\.[A-Za-z0-9]{1,5}"), _PATH),
    *_PROBLEMS_OF_VALUES[2:],
    (re.compile(r"[:$@^\\!&*?].*"), "begins with a punctuation mark"),
    (re.compile(r"[^\w.%]+"), "holds neither letters nor digits"),
)


def _is_iban(text: str) -> bool:
    """Whether this is an account number of ISO 13616, whose check digits are right."""
    if not re.fullmatch(r"[A-Za-z]{2}[0-9]{2}[A-Za-z0-9]{11,30}", text):
        return False
    return int("".join(str(int(character, 36)) for character in text[4:] + text[:4])) % 97 == 1


# What a whole file can hold, while a single line like this may be an opaque token.
_OTHER_COLUMNS: Final[tuple[tuple[Callable[[str], object], str], ...]] = (
    (
        re.compile(
            r"[-+(v]?[0-9][0-9.,:()+/-]{0,30}(?:T[0-9:.]+)?Z?(?:e[+-]?[0-9]+)?[%$\u00a3\u00a5\u20ac]?"
            r"|0x[0-9A-Fa-f]+|[0-9]{1,2}[-./][A-Za-z]{3,9}[-./][0-9]{2,4}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}"
        ).fullmatch,
        "numbers, dates, IP addresses or phone numbers",
    ),
    (re.compile(r"(?:[A-Z][0-9]){3}").fullmatch, "postal codes"),
    (re.compile(r"(?i:true|false|yes|no|on|off)").fullmatch, "the words true and false, or yes and no"),
    (
        re.compile(r"[^/\\]+\.(?:txt|csv|tsv|jsonl?|md|xml|xlsx?|ods|pdf|zip|gz|zst|log|parquet)").fullmatch,
        "names of files",
    ),
    (re.compile(r"[xX0]+(?:-[xX0]+)+").fullmatch, "placeholders"),
    (_is_iban, "account numbers (IBAN)"),
)
_WORD: Final = re.compile(r"[^\W\d_]{2,20}(?:[-.][^\W\d_]{2,20})*")
_FOLDER: Final = re.compile(r"(?:/[\w. -]+)+/?")
_WRAPPED: Final = (64, 76)
"""Characters in a full line of Base64 in PEM and in e-mail."""


def problem_of_text(line: str) -> str | None:
    """Why a line of a text file cannot be a token; None if it can. The line has no blanks around it."""
    return _problem_of_pair(line) if _plain(line) else _first_problem(line, _PROBLEMS)


def problem_of_value(value: str) -> str | None:
    """Why the value of a column or field of tokens cannot be a token; None if it can. Nearly any opaque text can."""
    return _problem_of_pair(value) if _plain(value) else _first_problem(value, _PROBLEMS_OF_VALUES)


def _first_problem(text: str, problems: Sequence[tuple[re.Pattern[str], str]]) -> str | None:
    return next((problem for pattern, problem in problems if pattern.fullmatch(text)), _problem_of_pair(text))


def _problem_of_pair(text: str) -> str | None:
    """Why this is no token if it is two GUIDs: joined, or as some partners write a secret and a token, in Base64."""
    if len(text) == 72 and _is_guid(text[:36]) and _is_guid(text[36:]):
        return "is two GUIDs without anything between them"
    if not 98 <= len(text) <= 100:
        return None
    try:
        decoded = base64.b64decode(text.rstrip("=") + "==", validate=True).decode("latin-1")
    except (binascii.Error, ValueError):
        return None
    return "is Base64 of two GUIDs, such as an AuthSecret and an access token" if _is_pair(decoded) else None


def refuse_other_than_text(lines: Sequence[tuple[int, str]]) -> None:
    """Refuses what is no list of tokens: the first line, or most of the lines, cannot be a token."""
    number, first = lines[0]
    stripped = first.strip(" \t")
    _refuse_json(stripped)
    repeated = len(lines) > 1 and lines[1][1] == first
    if (is_usual_name(stripped) or is_usual_name(stripped.removesuffix("s"))) and not repeated:
        raise InputError(
            f"Line {number} of the file of tokens is the name of a column, not a token. Set `format` to csv.",
            field="format",
        )
    found = _worst_line([(number, line.strip(" \t")) for number, line in lines])
    if found is not None:
        number, problem = found
        advice = _AS_TABLE if "table" in problem or "quotation" in problem else _ONE_A_LINE
        raise InputError(f"Line {number} of the file of tokens {problem}. {advice}", field="format")
    texts = [line.strip(" \t") for _, line in lines]
    if len(texts) > 2 and all(map(_is_guid, texts[1:])) and not _is_guid(first.strip(" \t")):
        raise InputError(
            f"Line {number} of the file of tokens is unlike the others, which are GUIDs. If it is a header, set `format` "
            "to csv; if it is not, delete it.",
            field="format",
        )
    if other := _other_column(texts):
        raise InputError(
            f"The file of tokens seems to hold {other}. If these are the tokens, write the line `access_token` above "
            "them, and set `format` to csv.",
            field="format",
        )


def _worst_line(lines: Sequence[tuple[int, str]]) -> tuple[int, str] | None:
    """The number and the problem of the first line if it has one; else of the first one with a problem if most have one."""
    problems = [
        (number, found) for number, text in lines if not _is_guid(text) and (found := _first_problem(text, _PROBLEMS))
    ]
    if problems and (problems[0][0] == lines[0][0] or 2 * len(problems) > len(lines)):
        return problems[0]
    return None


def _other_column(texts: Sequence[str]) -> str | None:
    """What the texts are if all of them are the same kind of thing, which is not a token."""
    for is_other, what in _OTHER_COLUMNS:
        if all(map(is_other, texts)) or (len(texts) > 2 and all(map(is_other, texts[1:]))):  # the first may be a header
            return what
    if len(set(texts)) > 2 and all(map(_WORD.fullmatch, texts)):
        return "words or names"
    if len(texts) > 1 and all(map(_FOLDER.fullmatch, texts)):
        return "paths of files or folders"
    wrapped = _WRAPPED if len(texts) > 2 else _WRAPPED[1:]  # a token may have 64 characters
    if len(texts) > 1 and {len(text) for text in texts[:-1]} <= {*wrapped} and len(texts[-1]) not in _WRAPPED:
        return "Base64 data on several lines"
    return None


# --- JSON -------------------------------------------------------------------------------------------------------------


def refuse_other_than_jsonl(lines: Sequence[tuple[int, str]]) -> None:
    """Raises:
    InputError: the first line is not one value of JSON.
    """
    number, first = lines[0]
    if first.lstrip(" \t")[:1] not in ("{", '"'):
        _refuse_json(first.strip(" \t"))
        what = "neither a JSON object nor a JSON string" if _is_json(first) else "not JSON"
        raise InputError(
            f"Line {number} of the file of tokens is {what}. Set `format` to text or csv, if it is one of these.",
            field="format",
        )
    if not _is_json(first) and len(lines) > 1 and not _is_json(lines[1][1]):
        raise InputError(f"The file of tokens is one JSON document over several lines. {_ONE_OBJECT}", field="format")


_BEGINS_JSON: Final = re.compile(r"[\[{]\s*(?:[\[{\"].*)?")
_ONE_OBJECT: Final = "Write one object a line, as `jq -c '.[]'` does, and set `format` to jsonl."


def _refuse_json(line: str) -> None:
    if line.startswith("{") and _is_json(line):
        raise InputError("The file of tokens holds JSON, one object a line. Set `format` to jsonl.", field="format")
    if line.startswith(("{", "[")) and (_is_json(line) or _BEGINS_JSON.fullmatch(line)):
        raise InputError(f"The file of tokens is a JSON document. {_ONE_OBJECT}", field="format")


def _is_json(line: str) -> bool:
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


# --- CSV --------------------------------------------------------------------------------------------------------------


def delimiter_of(lines: Sequence[tuple[int, str]], column: str | None, default: str) -> str:
    """The delimiter of a CSV file: the only one in its header row, or the only one that makes sense of it.

    Args:
        column: that holds the tokens, if its name is known.
        default: of a header row with one column.
    """
    widths = {delimiter: [len(fields_of(line, delimiter)) for _, line in lines[:20]] for delimiter in DELIMITERS}
    found = [delimiter for delimiter in DELIMITERS if widths[delimiter][0] > 1]
    if len(found) > 1:
        named = [d for d in found if _has_column(fields_of(lines[0][1], d), column)]
        found = named or found
    if len(found) > 1:
        found = [d for d in found if len(set(widths[d])) == 1] or found
    if len(found) > 1:
        listed = " and ".join(_NAMES[delimiter] for delimiter in found)
        raise InputError(
            f"The header row of the CSV file holds {listed}. Name the right one with `delimiter`.", field="delimiter"
        )
    return found[0] if found else default


def fields_of(line: str, delimiter: str) -> list[str]:
    """The fields of a row on one line, without blanks around them."""
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return [line]


def _has_column(names: Sequence[str], column: str | None) -> bool:
    return any(is_usual_name(name) for name in names) if column is None else column in names


def refuse_other_than_csv(
    lines: Sequence[tuple[int, str]], delimiter: str, column: str | None, *, has_header: bool | None
) -> None:
    """Refuses what is no table, and a table whose first row is not a header.

    Args:
        has_header: whether the first row is one; None if it is not known.
    """
    number, first = lines[0]
    if first.lstrip().startswith("<"):
        raise InputError("The file of tokens is markup (HTML or XML), not CSV. Export it as CSV.", field="format")
    _refuse_json(first.strip(" \t"))
    if re.match(r'"?sep=.', first, re.IGNORECASE):
        raise InputError(f"Line {number} of the CSV file is an instruction for Excel ('sep='). Delete it.")
    names = fields_of(first, delimiter)
    if len(names) == 1:
        others = [d for d in DELIMITERS if d in names[0] and '"' not in first]
        if others:
            raise InputError(
                f"The first row of the CSV file is one column that holds {_NAMES[others[0]]}. Set `delimiter` to it.",
                field="delimiter",
            )
        if len(lines) > 1 and len(fields_of(lines[1][1], delimiter_of(lines[1:2], None, delimiter))) > 1:
            raise InputError(
                f"The first row of the CSV file (line {number}) has one field, and the next one has more. Delete what "
                "precedes the header row, or name its `delimiter`."
            )
    if len(names) != 1:
        return
    if has_header is None and not _has_column(names, column):
        _refuse_data(names[0], [line for _, line in lines[1:]])
    values = [(number, field) for number, line in lines[1:] if (field := "".join(fields_of(line, delimiter)))]
    if found := values and _worst_line(values):
        raise InputError(f"Line {found[0]} of the CSV file {found[1]}, so it is not a token. Correct or delete it.")
    unnamed = has_header is not False and not _has_column(names, column)
    if unnamed and values and (other := _other_column([value for _, value in values])):
        raise InputError(
            f"The only column of the CSV file seems to hold {other}. If these are the tokens, name it with `column`.",
            field="column",
        )


def _refuse_data(name: str, values: Sequence[str]) -> None:
    shape = _shape(name)
    alike = bool(values) and all(_shape(value.strip('" ')) == shape for value in values)
    if (
        looks_like_data(name)
        or (alike and (re.search(r"\d", name) or len(name) >= 16))
        or problem_of_text(name) == _EMAIL
    ):
        raise InputError(
            "The first row of the CSV file looks like data, not like a header row. If there is no header row, use "
            "`header=False`; if this is the name of the column, give it as `column`.",
            field="header",
        )


def _shape(text: str) -> str:
    return re.sub(r"[0-9]+", "9", re.sub(r"[A-Za-z]+", "a", text))
