"""The decoder as a generator of small steps: synchronous code runs it out, asynchronous code takes turns.

A large body is cut at the arrays that make it large. Each piece is decoded fast, or carefully if the fast path is in
doubt; an error found in a piece sends the whole body down the careful path, so the error that comes out is the same
as without cutting.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Final

import msgspec
from cattrs import Converter

from ..errors import DecodeError, EmptyBodyError
from ..models import Account, AccountsDetail, Link, Meta, Model, PartnerAccessResponse, Transaction
from ..schema import SCHEMA
from . import reference
from .compiled import DOUBTS, NOT_SLICED, Compiler, Doubt, Sliced
from .observed import Shapes
from .parse import BROKEN, PIECE, batches, count_steps, decode_any, joined, parse_steps, why_not_json, without_bom

Steps = Generator[None, None, PartnerAccessResponse]

SLICE: Final = 200
"""Transactions that the fast path makes in one step."""

TURN: Final = 50
"""Objects that the careful path makes in one step."""

LOOK: Final = 5000
"""Objects that are looked through in one step."""

WHOLE: Final = 16 * PIECE
"""Pieces that are larger together are not decoded in one step, whatever their number."""

FEW: Final = 2000
"""Models, but for transactions and many accounts, that the fast path makes in one step."""

MANY_ACCOUNTS: Final = 64
"""With more accounts than this, accounts are what a body is cut into."""


def _member(cls: type[Model], items: type[Model]) -> tuple[str, str]:
    """The struct's member, and the wire name, of the field of a class that holds objects of another."""
    return next((f"f{number}", field.wire) for number, field in enumerate(SCHEMA[cls]) if field.model is items)


_DETAILS, DETAILS = _member(PartnerAccessResponse, AccountsDetail)
_ACCOUNTS, ACCOUNTS = _member(AccountsDetail, Account)
_TRANSACTIONS, TRANSACTIONS = _member(Account, Transaction)
_LINKS, LINKS = _member(AccountsDetail, Link)
_CUT_AT_TRANSACTIONS: Final[Sliced] = frozenset({Transaction})
_CUT_AT_ACCOUNTS: Final[Sliced] = frozenset({Account})


Pair = tuple[Callable[[Any], Any], Callable[..., Any]]
"""What makes structs of bytes, and what makes models of structs."""


def _not_yet(*_: object) -> Any:
    raise Doubt


class _Compiled:
    """The fast path for the shapes of one moment. Other threads may use it while the next one is made."""

    def __init__(self, converter: Converter, shapes: Shapes) -> None:
        self.version = shapes.version
        self._converter = converter
        self._compiler = Compiler(converter, shapes)
        self._pairs: dict[tuple[type[Model], Sliced, bool], Pair] = {}

    def pair(self, cls: type[Model], sliced: Sliced = NOT_SLICED, many: bool = False) -> Pair:
        """For a class, or for arrays of it. Raises Doubt if a user has a hook for it."""
        key = (cls, sliced, many)
        found = self._pairs.get(key)
        if found is None:
            if not reference.is_ours(self._converter, cls):
                raise Doubt
            part = self._compiler.part(cls, sliced)
            found = (part.list_decoder(), part.many) if many else (part.decoder(), part.one)
            self._pairs[key] = found
        return found


class Decoder:
    """Both paths over the hooks of one converter.

    Attributes:
        whole: the fast path for a body at once: bytes to structs, and (structs, meta) to an answer.
    """

    def __init__(self, converter: Converter) -> None:
        self._converter = converter
        self._shapes = Shapes()
        self._compiled: _Compiled | None = None  # until the first answer, since hooks may still be registered
        self.whole: Pair = (_not_yet, _not_yet)
        reference.register(converter, self._shapes.note)

    def fast(self, body: bytes, meta: Meta) -> PartnerAccessResponse | None:
        """The answer at once, or None if the fast path is in doubt."""
        self._refresh()
        try:
            decode, build = self.whole
            answer: PartnerAccessResponse = build(decode(body), meta)
        except DOUBTS:
            return None
        return answer

    def fast_steps(
        self, body: bytes, meta: Meta, *, counted: bool = False
    ) -> Generator[None, None, PartnerAccessResponse | None]:
        """The same in steps. The values of a body that was `counted` are not counted again."""
        try:
            if not counted:
                yield from count_steps(body)
            return (yield from self._cut(body, meta))
        except DOUBTS:
            return None

    def after_doubt(self, body: bytes, meta: Meta, tried: Pair) -> Steps:
        """What is left when `whole` was in doubt: the fast path of today, if that was one of yesterday; the careful one."""
        self._refresh()
        answer = None if self.whole is tried else self.fast(body, meta)
        return (yield from self.careful_steps(body, meta)) if answer is None else answer

    def careful_steps(self, body: bytes, meta: Meta) -> Steps:
        """The answer as the careful path sees it. Raises the errors of `Codec.decode`."""
        failure: DecodeError
        body = without_bom(body)
        try:
            yield from count_steps(body)
            data = yield from parse_steps(body, len(body), cls=PartnerAccessResponse)
            if data is None:
                failure = EmptyBodyError("the body is null")
            else:
                yield from self._prepare(data)
                answer: PartnerAccessResponse = reference.reader(self._converter, PartnerAccessResponse)(data)
                return _with_meta(answer, meta)
        except reference.StructureError as error:
            failure = error.final()
        except BROKEN as error:
            failure = why_not_json(body, error)
        # Raised outside of `except`, and without what these names hold, since both may hold the body's data.
        body, data = b"", None
        raise failure

    # --- the fast path ---

    def _refresh(self) -> _Compiled:
        compiled = self._compiled
        if compiled is None or compiled.version != self._shapes.version:
            compiled = self._compiled = _Compiled(self._converter, self._shapes)
            try:
                self.whole = compiled.pair(PartnerAccessResponse)
            except Doubt:
                self.whole = (_not_yet, _not_yet)
        return compiled

    def _pair(self, cls: type[Model], sliced: Sliced = NOT_SLICED, *, many: bool = False) -> Pair:
        return self._refresh().pair(cls, sliced, many)

    def _cut(self, body: bytes, meta: Meta) -> Steps:
        cut = _CUT_AT_ACCOUNTS if body.count(b'"Transactions"') > MANY_ACCOUNTS else _CUT_AT_TRANSACTIONS
        decode, build = self._pair(PartnerAccessResponse, cut)
        answer = decode(body)
        yield
        details = getattr(answer, _DETAILS)
        left = FEW
        for detail in details if type(details) is list else [details]:
            accounts, links = getattr(detail, _ACCOUNTS, None), getattr(detail, _LINKS, None)
            left -= 1
            if cut is _CUT_AT_TRANSACTIONS and type(accounts) is list:
                left -= len(accounts)
            if type(links) is list:
                left -= len(links)
            if left < 0:
                raise Doubt  # the careful path has steps for all of them
            if type(accounts) is not list:
                continue
            if cut is _CUT_AT_ACCOUNTS:
                setattr(detail, _ACCOUNTS, (yield from self._accounts(accounts)))
            else:
                for account in accounts:
                    yield from self._transactions(account)
        built: PartnerAccessResponse = build(answer, meta)
        return built

    def _accounts(self, pieces: list[msgspec.Raw]) -> Generator[None, None, tuple[Any, ...]]:
        accounts: list[Any] = []
        for batch in batches(pieces):
            if len(batch) > 1 or not reference.is_ours(self._converter, Account):
                accounts += yield from self._slice(Account, batch)
            else:
                decode, build = self._pair(Account, _CUT_AT_TRANSACTIONS)
                account = decode(batch[0])
                yield from self._transactions(account)
                accounts.append(build(account))
            yield
        return tuple(accounts)

    def _transactions(self, account: Any) -> Generator[None, None, None]:
        pieces = getattr(account, _TRANSACTIONS)
        if type(pieces) is list:
            made: list[Any] = []
            for start in range(0, len(pieces), SLICE):
                made += yield from self._slice(Transaction, pieces[start : start + SLICE])
                yield
            setattr(account, _TRANSACTIONS, tuple(made))

    def _slice(self, cls: type[Model], pieces: list[msgspec.Raw]) -> Generator[None, None, tuple[Any, ...]]:
        array = joined(pieces)
        values: list[Any]
        if len(array) > WHOLE:
            values = yield from parse_steps(array, len(array), cls=cls)
        else:
            try:
                decode, build = self._pair(cls, many=True)
                made: tuple[Any, ...] = build(decode(array))
                return made
            except DOUBTS:
                pass
            values = decode_any(array)
        read = reference.reader(self._converter, cls)
        result: list[Any] = []
        for start in range(0, len(values), TURN):
            yield
            result += reference.items(values[start : start + TURN], read)
        return tuple(result)

    # --- the careful path ---

    def _prepare(self, data: Any) -> Generator[None, None, None]:
        """Replaces large arrays by `careful.Ready` ones, a few items in a step, up to the first wrong item."""
        if not self._all_ours(PartnerAccessResponse, AccountsDetail) or type(data) is not dict:
            return
        details = data.get(DETAILS)
        ours, looked = self._all_ours(Account), 0
        for detail in details if type(details) is list else [details]:
            looked += 1
            if looked % LOOK == 0:
                yield
            if type(detail) is not dict:
                continue
            accounts = detail.get(ACCOUNTS)
            if type(accounts) is list and ours:
                for account in accounts:
                    looked += 1
                    if looked % LOOK == 0:
                        yield
                    if type(account) is dict:
                        yield from self._prepare_array(account, TRANSACTIONS, Transaction)
            yield from self._prepare_array(detail, ACCOUNTS, Account)
            yield from self._prepare_array(detail, LINKS, Link)
        yield from self._prepare_array(data, DETAILS, AccountsDetail)

    def _prepare_array(self, owner: dict[str, Any], key: str, cls: type[Model]) -> Generator[None, None, None]:
        values = owner.get(key)
        if type(values) is not list or len(values) <= TURN:
            return
        read = reference.reader(self._converter, cls)
        done: list[Any] = []
        try:
            while len(done) < len(values):
                done += reference.items(values[len(done) : len(done) + TURN], read)
                yield
        except reference.StructureError:
            pass  # found again, and in its turn, when the whole is read
        owner[key] = reference.Ready(done, values[len(done) :])

    def _all_ours(self, *classes: type[Model]) -> bool:
        return all(reference.is_ours(self._converter, cls) for cls in classes)


def _with_meta(answer: PartnerAccessResponse, meta: Meta) -> PartnerAccessResponse:
    # A hook of a user may have put something else in the place of the answer; that has no `meta`.
    return answer.with_meta(meta) if isinstance(answer, PartnerAccessResponse) else answer
