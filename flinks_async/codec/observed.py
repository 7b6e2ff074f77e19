"""What answers look like lately: unknown keys and missing fields, by class, learned from the answers that had them.

The fast path is compiled for the documented shape. An answer of another shape is decoded by the careful path, which
notes here what was new; the fast path is then compiled again, and the next answer of that shape is fast.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from ..models import MODELS, Account, AccountsDetail, Model, PartnerAccessResponse, Transaction
from ..schema import SCHEMA

MAX_UNKNOWN: Final = 16
"""Unknown keys learned for one class. Beyond, answers that have more of them stay on the careful path."""

_USUAL_KEY: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .:/-]{0,63}")

USUALLY_ABSENT: Final[dict[type[Model], frozenset[str]]] = {
    # The documented example of PartnerAccess has nothing else.
    AccountsDetail: frozenset(field.wire for field in SCHEMA[AccountsDetail]) - {"LoginId", "CustomerId"},
    # Seen in another payload only.
    Account: frozenset({"EftEligibleRatio", "ETransferEligibleRatio"}),
}
"""Fields that the fast path looks for together, since an object usually has none of them."""

_NONE: Final[frozenset[str]] = frozenset()

EXPECTED: Final[dict[type[Model], frozenset[str]]] = {
    PartnerAccessResponse: frozenset({"GetAccountsDetail", "RequestId"}),
    AccountsDetail: frozenset({"LoginId", "CustomerId"}),
    Transaction: frozenset(field.wire for field in SCHEMA[Transaction]),
}
"""Fields that the fast path does not check for, until an object without one of them is seen."""


class Shapes:
    """Attributes: version, which changes when something new was learned."""

    __slots__ = ("_optional", "_unknown", "version")

    def __init__(self) -> None:
        self.version = 0
        self._optional = {
            cls: frozenset(field.wire for field in SCHEMA[cls]) - EXPECTED.get(cls, _NONE) for cls in MODELS
        }
        self._unknown: dict[type[Model], tuple[str, ...]] = dict.fromkeys(MODELS, ())

    def optional(self, cls: type[Model]) -> frozenset[str]:
        """Wire names of documented fields that may be missing."""
        return self._optional[cls]

    def unknown(self, cls: type[Model]) -> tuple[str, ...]:
        """Keys that were seen and are not documented."""
        return self._unknown[cls]

    def note(self, cls: type[Model], unknown: Iterable[str], absent: Iterable[str]) -> None:
        """One object had these keys and lacked these fields."""
        optional = self._optional[cls]
        if not optional.issuperset(absent):
            self._optional[cls] = optional.union(absent)
            self.version += 1
        for key in unknown:
            seen = self._unknown[cls]
            if key not in seen and len(seen) < MAX_UNKNOWN and _USUAL_KEY.fullmatch(key):
                self._unknown[cls] = (*seen, key)
                self.version += 1
