"""Whether everything arrived that had to: the answers of a demo against what its seed decides."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any, Final

from attrs import define, field

_SHOWN: Final = 5


@define
class Check:
    """What arrived, against what had to.

    Attributes:
        tokens: how many were asked for.
        unfetchable: how many of them are refused for ever.
        lost: lines of tokens that had to arrive and did not.
        wrong: lines whose answer is not the token's, or that came twice.
        unexpected: lines of unfetchable tokens that have an answer.
    """

    tokens: int
    unfetchable: int = 0
    lost: list[int] = field(factory=list)
    wrong: list[int] = field(factory=list)
    unexpected: list[int] = field(factory=list)

    @property
    def passed(self) -> bool:
        return not (self.lost or self.wrong or self.unexpected)

    def text(self) -> str:
        if self.passed:
            return (
                f"Checked: all {self.tokens - self.unfetchable:,} fetchable tokens arrived, each with its own answer. "
                f"The other {self.unfetchable:,} are refused for ever, and none of them has an answer."
            )
        problems = (
            ("fetchable tokens were lost", self.lost),
            ("answers are not those of their tokens", self.wrong),
            ("tokens that cannot be fetched have an answer", self.unexpected),
        )
        return "\n".join(f"WRONG: {len(lines):,} {what}: {_some(lines)}" for what, lines in problems if lines)


def _some(lines: Sequence[int]) -> str:
    more = f" and {len(lines) - _SHOWN:,} more" if len(lines) > _SHOWN else ""
    return f"line {', '.join(map(str, lines[:_SHOWN]))}{more}"


def check(
    tokens: Sequence[str],
    answers: Iterable[bytes],
    fetchable: Callable[[str], bool],
    expected: Callable[[str], dict[str, Any]],
) -> Check:
    """Compares every answer, to the last digit.

    Args:
        tokens: of lines 1, 2, ...
        answers: lines of the output.
        fetchable: whether a token must arrive.
        expected: its answer.
    """
    result = Check(len(tokens))
    arrived: set[int] = set()
    for line, answer in map(_read, answers):
        if line in arrived or not 1 <= line <= len(tokens):
            result.wrong.append(line)
        elif not fetchable(tokens[line - 1]):
            result.unexpected.append(line)
        elif answer != expected(tokens[line - 1]):
            result.wrong.append(line)
        arrived.add(line)
    for line, token in enumerate(tokens, start=1):
        if not fetchable(token):
            result.unfetchable += 1
        elif line not in arrived:
            result.lost.append(line)
    return result


def _read(answer: bytes) -> tuple[int, Any]:
    record = json.loads(answer, parse_float=Decimal)
    return record["line"], record["response"]
