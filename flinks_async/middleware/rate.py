"""Former module of `GCRA`, kept because its import path is documented; see `flinks_async.limits.rate`."""

from ..limits.rate import GCRA

__all__ = ["GCRA"]
