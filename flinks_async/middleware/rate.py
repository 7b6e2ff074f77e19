"""The former place of `flinks_async.limits.rate`, kept for code that imports `GCRA` from here."""

from ..limits.rate import GCRA

__all__ = ["GCRA"]
