"""Times in little memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

_SMALLEST: Final = 1e-4
_GROWTH: Final = math.log(1.05)
_PER_BUCKET: Final = 1 / _GROWTH
_log = math.log


class Histogram:
    """Times in buckets that are 5 % apart, so that a million of them take no memory."""

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}

    def add(self, seconds: float) -> None:
        bucket = int(_log(seconds / _SMALLEST) * _PER_BUCKET) + 1 if seconds > _SMALLEST else 0
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1

    @classmethod
    def sum_of(cls, parts: Iterable[Histogram]) -> Histogram:
        """All their times in one."""
        whole = cls()
        for part in parts:
            for bucket, count in part._buckets.items():
                whole._buckets[bucket] = whole._buckets.get(bucket, 0) + count
        return whole

    def percentile(self, share: float) -> float | None:
        """The time that this share of all stays under; the upper end of its bucket. None without any."""
        rank = math.ceil(share * sum(self._buckets.values()))
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return _SMALLEST * math.exp(bucket * _GROWTH)
        return None
