"""How long to wait before the next attempt: exponential backoff with full jitter.

Source: AWS Architecture Blog, "Exponential Backoff And Jitter" (2015, updated 2023): of the variants compared there,
full jitter needs the fewest calls under contention.
"""

from __future__ import annotations


def full_jitter(retry: int, *, base: float, cap: float, random: float) -> float:
    """`random * min(cap, base * 2**(retry - 1))` seconds.

    Args:
        retry: 1 for the wait before the first retry.
        base, cap: seconds.
        random: in [0, 1).
    """
    # 2**1023 is the largest power of two that a float holds.
    return random * min(cap, base * 2.0 ** min(retry - 1, 1000))
