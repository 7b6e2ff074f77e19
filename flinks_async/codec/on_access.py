"""Transactions that are decoded when they are first read.

The account of such an answer is an `OnAccessAccount`, which looks like an `Account` in every way. Its slot for the transactions
has a `PendingArray` with the JSON. The first read replaces it by the models, and turns the object into a plain `Account`.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock
from typing import Any, Final, cast

import msgspec

from ..models import Account, AccountsDetail, Meta, PartnerAccessResponse, Transaction

_SLOT: Final[Any] = Account.transactions
_CLASS: Final[Any] = object.__dict__["__class__"]
_items: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_lock: Final = RLock()  # a user's hook may read another account

ReadArray = Callable[[bytes, str], tuple[Any, ...]]
"""Decodes the JSON of an array of transactions. The text is its place in the answer, for errors."""


class PendingArray:
    """The JSON of an array of transactions. `len()` counts them without decoding them.

    Attributes:
        place: of the array in the answer, as (index of the entry or None, index of the account).
    """

    __slots__ = ("_json", "_read", "place")

    def __init__(self, json: bytes, read: ReadArray) -> None:
        self._json = json
        self._read = read
        self.place: tuple[int | None, int] = (None, 0)

    def __len__(self) -> int:
        return len(_items(self._json))

    def decode(self) -> tuple[Any, ...]:
        detail, account = self.place
        entry = "GetAccountsDetail" if detail is None else f"GetAccountsDetail[{detail}]"
        return self._read(self._json, f"{entry}.Accounts[{account}].Transactions")


class OnAccessAccount(Account, gc=False):  # type: ignore[call-arg] # an option of structs
    """An `Account` whose transactions are decoded when they are first read."""

    # For attrs, `==`, isinstance and users, the object is an `Account` from the beginning.
    __class__ = property(lambda self: Account)  # pyright: ignore[reportIncompatibleMethodOverride]

    @property
    def transactions(self) -> tuple[Transaction, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """
        Raises:
            DecodeError: a transaction is wrong. `path` is the place in the whole answer. The next read raises it again.
        """
        found = _SLOT.__get__(self)
        if type(found) is PendingArray:
            with _lock:  # two threads get the same tuple
                found = _SLOT.__get__(self)
                if type(found) is PendingArray:
                    found = found.decode()
                    _SLOT.__set__(self, found)
                    _CLASS.__set__(self, Account)
        return cast("tuple[Transaction, ...]", found)

    def _peek(self, name: str) -> Any:
        value = _SLOT.__get__(self) if name == "transactions" else getattr(self, name)
        return range(len(value)) if type(value) is PendingArray else value

    def __reduce_ex__(self, protocol: Any) -> Any:
        _ = self.transactions  # now it is a plain `Account`
        return object.__reduce_ex__(self, protocol)


def pending_or_none(read: ReadArray, piece: msgspec.Raw) -> PendingArray | None:
    """The array in a piece of JSON; None for null.

    Raises:
        ValueError: the piece is neither.
    """
    json = bytes(piece)  # a copy, because the piece would keep the whole body
    if json == b"null":
        return None
    if not json.startswith(b"["):
        raise ValueError
    return PendingArray(json, read)


def locate(answer: PartnerAccessResponse) -> None:
    """Tells the pending arrays of a new answer where they are. Accounts without one become plain `Account`s."""
    found = answer.get_accounts_detail
    for index, detail in enumerate(answer.details):
        if type(detail) is not AccountsDetail:
            continue  # made by a user's hook
        for number, account in enumerate(detail.accounts):
            if type(account) is OnAccessAccount:
                pending = _SLOT.__get__(account)
                if type(pending) is PendingArray:
                    pending.place = (index if isinstance(found, tuple) else None, number)
                else:
                    _CLASS.__set__(account, Account)


def whole_on_access(
    decode: Callable[[Any], Any], build: Callable[..., Any]
) -> tuple[Callable[[Any], Any], Callable[..., Any]]:
    """The two functions of the compiled path, for answers with pending arrays."""

    def checked(body: bytes) -> Any:
        if not body.isascii():
            body.decode()  # msgspec does not check the encoding of JSON that it keeps
        return decode(body)

    def located(structs: Any, meta: Meta) -> Any:
        answer = build(structs, meta)
        locate(answer)
        return answer

    return checked, located
