"""System calls of a program, as strace tells them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import define

CALLS: Final = (
    "openat,write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,ftruncate"
)
WRITES: Final = frozenset({"write", "writev", "pwrite64", "pwritev", "pwritev2", "ftruncate"})
SYNCS: Final = frozenset({"fsync", "fdatasync"})
RENAMES: Final = frozenset({"rename", "renameat", "renameat2"})

_LINE: Final = re.compile(r"(\d+)\s+(.*)")
_CALL: Final = re.compile(r"(\w+)\((.*)")
_RESUMED: Final = re.compile(r"<\.\.\. (\w+) resumed>(.*)")
_FILE: Final = re.compile(r"\d+<([^>]*)>")
_NAME: Final = re.compile(r'"([^"]*)"')


@define(eq=False)
class Call:
    """A system call that did not fail.

    Attributes:
        name: of the call.
        path: of its file; of a rename, the old name.
        to: of a rename, the new name.
        text: all of it, with the data that was written.
        begun, ended: places in the trace; two calls of which one ends before the other begins were made in that order.
    """

    name: str
    text: str
    begun: int
    ended: int
    path: str = ""
    to: str = ""


def tracer(output: Path) -> tuple[str, ...]:
    """The command before the program's own."""
    return ("strace", "-f", "-y", "-qq", "-s", "100000", "-e", "signal=none", "-e", f"trace={CALLS}", "-o", str(output))


def read_trace(output: Path) -> list[Call]:
    """The calls in the order in which they ended."""
    return list(_calls(output.read_text(errors="replace").splitlines()))


def _calls(lines: list[str]) -> Iterator[Call]:
    begun: dict[str, Call] = {}
    for place, line in enumerate(lines):
        found = _LINE.match(line)
        if found is None:
            continue
        thread, text = found.groups()
        if resumed := _RESUMED.match(text):
            call = begun.pop(thread)
            call.text += resumed[2]
            call.ended = place
        elif started := _CALL.match(text):
            call = Call(started[1], started[2], place, place)
            if text.endswith("<unfinished ...>"):
                begun[thread] = call
                continue
        else:
            continue
        if " = -1 " in call.text[-200:]:
            continue
        _find_paths(call)
        yield call


def _find_paths(call: Call) -> None:
    if call.name in RENAMES:
        call.path, call.to = _NAME.findall(call.text)[:2]
    elif call.name in ("unlink", "unlinkat"):
        call.path = _NAME.findall(call.text)[0]
    elif call.name == "openat":
        call.path = _FILE.findall(call.text)[-1]
    elif file := _FILE.match(call.text):
        call.path = file[1]
