"""Rows of stores with tables, as users read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from flinks_async import Codec, DecodeError

from .store_contract import Summaries, Summary

Record = Mapping[str, Any]


def summaries(fetches: Iterable[Record], transactions: Iterable[Record]) -> Summaries:
    """The summaries that the contract compares."""
    moves: dict[int, list[Decimal]] = {}
    for move in transactions:
        moves.setdefault(move["line"], []).append(move["balance"])
    found: Summaries = {}
    for fetch in fetches:
        line = fetch["line"]
        assert line not in found, "twice in the output"
        balances = moves.pop(line, [])
        found[line] = Summary(
            fetch["key"], fetch["request_id"], fetch["accounts"], len(balances), sum(balances, Decimal())
        )
    assert not moves, "transactions of no answer"
    return found


def decodes(body: bytes) -> bool:
    """Whether a body is an answer, perhaps with values of a wrong type."""
    try:
        Codec(wrong_types="extra").decode(body)
    except DecodeError:
        return False
    return True
