"""The fields that answers really have: unknown keys and missing fields, by class, learned from the answers so far.

The compiled path is generated for the fields recorded here. The reference path decodes an answer with other fields and
records them. The compiled path is then generated again, so that the next answer with these fields is decoded fast.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from ..models import MODELS, Account, AccountsDetail, Model, PartnerAccessResponse, Transaction
from ..schema import SCHEMA

MAX_UNKNOWN_KEYS: Final = 16
"""Unknown keys that are learned for one class. Answers with others stay on the reference path."""

_LEARNABLE_KEY: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .:/-]{0,63}")

USUALLY_ABSENT: Final[dict[type[Model], frozenset[str]]] = {
    # The documented example of PartnerAccess has no other fields.
    AccountsDetail: frozenset(field.wire for field in SCHEMA[AccountsDetail]) - {"LoginId", "CustomerId"},
    # Documented for another endpoint only.
    Account: frozenset({"EftEligibleRatio", "ETransferEligibleRatio"}),
}
"""Fields that the compiled path checks with one condition, because most objects have none of them."""

REQUIRED_AT_FIRST: Final[dict[type[Model], frozenset[str]]] = {
    PartnerAccessResponse: frozenset({"GetAccountsDetail", "RequestId"}),
    AccountsDetail: frozenset({"LoginId", "CustomerId"}),
    Transaction: frozenset(field.wire for field in SCHEMA[Transaction]),
}
"""Fields that the compiled path expects in every object, until an object lacks one."""

_NONE: Final[frozenset[str]] = frozenset()


class ObservedFields:
    """The fields observed so far.

    Attributes:
        version: changes whenever something new is recorded.
    """

    __slots__ = ("_optional", "_unknown", "version")

    def __init__(self) -> None:
        self.version = 0
        self._optional = {
            cls: frozenset(field.wire for field in SCHEMA[cls]) - REQUIRED_AT_FIRST.get(cls, _NONE) for cls in MODELS
        }
        self._unknown: dict[type[Model], tuple[str, ...]] = dict.fromkeys(MODELS, ())

    def optional(self, cls: type[Model]) -> frozenset[str]:
        """Wire names of the documented fields that may be missing."""
        return self._optional[cls]

    def unknown(self, cls: type[Model]) -> tuple[str, ...]:
        """The undocumented keys, in the order in which they were first seen."""
        return self._unknown[cls]

    def record(self, cls: type[Model], unknown: Iterable[str], absent: Iterable[str]) -> None:
        """Records one object: its unknown keys and its absent fields."""
        optional = self._optional[cls]
        if not optional.issuperset(absent):
            self._optional[cls] = optional.union(absent)
            self.version += 1
        for key in unknown:
            seen = self._unknown[cls]
            if key not in seen and len(seen) < MAX_UNKNOWN_KEYS and _LEARNABLE_KEY.fullmatch(key):
                self._unknown[cls] = (*seen, key)
                self.version += 1
