"""Which tokens were seen before, in little memory and without the tokens."""

from __future__ import annotations

import secrets
from array import array
from hashlib import blake2b
from typing import Final

from ..secret import Secret

_SHARDS: Final = 256


class SeenTokens:
    """A set of 8-byte keyed hashes of tokens, about 20 bytes each.

    Open addressing with linear probing, in 256 tables, so that growing one never takes long. Two of a million tokens
    have the same hash with a probability of 1 : 37 million (n² / 2⁶⁵), and the second would count as a duplicate.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(16)
        self._tables = [array("Q", bytes(8 * 8)) for _ in range(_SHARDS)]
        self._counts = [0] * _SHARDS

    def add(self, token: Secret) -> bool:
        """Adds a token; False if it was there."""
        digest = blake2b(token.reveal().encode("utf-8", "surrogatepass"), key=self._key, digest_size=8).digest()
        value = int.from_bytes(digest, "little") or 1  # 0 marks a free place
        shard = digest[0]
        if not _insert(self._tables[shard], value):
            return False
        self._counts[shard] += 1
        if self._counts[shard] * 4 > len(self._tables[shard]) * 3:
            self._grow(shard)
        return True

    def _grow(self, shard: int) -> None:
        old = self._tables[shard]
        new = array("Q", bytes(8 * 2 * len(old)))
        for value in old:
            if value:
                _insert(new, value)
        self._tables[shard] = new


def _insert(table: array[int], value: int) -> bool:
    mask = len(table) - 1
    place = (value >> 8) & mask  # the lowest byte chose the table
    while table[place]:
        if table[place] == value:
            return False
        place = (place + 1) & mask
    table[place] = value
    return True
