"""The decoder as a generator of small steps. Synchronous code runs all of them; asynchronous code yields between them.

The compiled path cuts a large body at its largest arrays. If it cannot decode one of the pieces, the reference path reads
that piece. If a piece contains an error, the reference path reads the whole body again, so that the error is the same as
without cutting.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

import msgspec
from cattrs import Converter

from ..errors import DecodeError, EmptyBodyError, WrongTypeError
from ..models import SCHEMA, Account, AccountsDetail, Link, Meta, Model, PartnerAccessResponse, Transaction
from . import reference
from .compiled import FALLBACK_ERRORS, Compiler, DecoderPair, Fallback, RawClasses
from .observed import Difference, ObservedFields
from .on_access import whole_on_access
from .parse import (
    PARSE_ERRORS,
    PIECE_SIZE,
    batches,
    count_steps,
    decode_any,
    json_array,
    json_error,
    parse_steps,
    without_bom,
)

Steps = Generator[None, None, PartnerAccessResponse]

TRANSACTIONS_PER_STEP: Final = 200
"""Transactions that the compiled path decodes in one step."""

OBJECTS_PER_STEP: Final = 50
"""Objects that the reference path structures in one step."""

SCANNED_PER_STEP: Final = 5000
"""Objects that the reference path searches for large arrays in one step."""

MAX_ONE_STEP: Final = 16 * PIECE_SIZE
"""Bytes of transactions or accounts, however few, that the compiled path decodes in one step."""

MAX_OTHER_MODELS: Final = 2000
"""Models other than transactions and cut accounts that the compiled path builds in one step."""

MANY_ACCOUNTS: Final = 64
"""A body with more accounts than this is cut at its accounts, others at their transactions."""


def _field_of(cls: type[Model], item: type[Model]) -> tuple[str, str]:
    """The name, and the wire name, of the field of `cls` that holds objects of the class `item`."""
    return next((field.name, field.wire) for field in SCHEMA[cls] if field.model is item)


_DETAILS, DETAILS = _field_of(PartnerAccessResponse, AccountsDetail)
_ACCOUNTS, ACCOUNTS = _field_of(AccountsDetail, Account)
_TRANSACTIONS, TRANSACTIONS = _field_of(Account, Transaction)
_LINKS, LINKS = _field_of(AccountsDetail, Link)
_RAW_TRANSACTIONS: Final[RawClasses] = frozenset({Transaction})
_RAW_ACCOUNTS: Final[RawClasses] = frozenset({Account})


def _not_compiled(*_: object) -> Any:
    raise Fallback


class Decoder:
    """Both paths, with the hooks of one converter.

    Attributes:
        whole: the compiled path for a whole body: bytes to structs, and (structs, meta) to an answer.
        on_access: whether transactions are decoded when they are first read, if the compiled path knows the answer's fields.
        observed: what the answers have.
    """

    def __init__(self, converter: Converter, on_access: bool = False, tell: reference.Tell | None = None) -> None:
        self.on_access = on_access
        self.observed = ObservedFields()
        self._converter = converter
        self._compiler: Compiler | None = None  # until the first answer, so that users can register hooks until then
        self.whole: DecoderPair = (_not_compiled, _not_compiled)
        reference.register(converter, self.observed.record, tell)

    def counted(self, steps: Steps) -> Steps:
        """The steps of one answer, which is counted at their end. Others may be decoded between the steps."""
        found: set[Difference] = set()
        try:
            while True:
                next(steps)
                found |= self.observed.take()
                yield
        except StopIteration as finished:
            answer: PartnerAccessResponse = finished.value
        except WrongTypeError as error:
            self.observed.wrong_type(error.path or "")
            self.observed.end(found | self.observed.take())
            raise
        except DecodeError:
            self.observed.take()
            raise
        self.observed.end(found | self.observed.take())
        return answer

    def compiled(self, body: bytes, meta: Meta) -> PartnerAccessResponse | None:
        """The answer by the compiled path, in one step, counted. None means that the reference path must decide."""
        answer = self._compiled(body, meta)
        if answer is not None:
            self.ended()
        return answer

    def _compiled(self, body: bytes, meta: Meta) -> PartnerAccessResponse | None:
        self._current()
        try:
            decode, build = self.whole
            answer: PartnerAccessResponse = build(decode(body), meta)
        except FALLBACK_ERRORS:
            return None
        return answer

    def ended(self) -> None:
        """Counts an answer that was decoded in one step."""
        observed = self.observed
        if observed.odd:
            observed.end(observed.take())
        else:
            observed.answers += 1

    def compiled_steps(
        self, body: bytes, meta: Meta, *, counted: bool = False
    ) -> Generator[None, None, PartnerAccessResponse | None]:
        """The same in steps.

        Args:
            counted: whether the values of the body were already counted.
        """
        try:
            if not counted:
                yield from count_steps(body)
            return (yield from self._decode_in_pieces(body, meta))
        except FALLBACK_ERRORS:
            return None

    def fallback_steps(self, body: bytes, meta: Meta, tried: DecoderPair) -> Steps:
        """The answer after the compiled path `tried` has failed: by a newer compiled path if there is one, or by reference."""
        self._current()
        answer = None if self.whole is tried else self._compiled(body, meta)
        return (yield from self.reference_steps(body, meta)) if answer is None else answer

    def reference_steps(self, body: bytes, meta: Meta) -> Steps:
        """The answer by the reference path. Raises the errors of `Codec.decode`."""
        failure: DecodeError
        body = without_bom(body)
        try:
            yield from count_steps(body)
            data = yield from parse_steps(body, len(body), cls=PartnerAccessResponse)
            if data is None:
                failure = EmptyBodyError("the body is null")
            else:
                yield from self._read_large_arrays(data)
                answer: PartnerAccessResponse = reference.reader(self._converter, PartnerAccessResponse)(data)
                return _with_meta(answer, meta)
        except reference.StructureError as error:
            failure = error.final()
        except PARSE_ERRORS as error:
            failure = json_error(body, error)
        # Raised outside of `except` and after these names are cleared, because the context and the frame may hold data.
        body, data = b"", None
        raise failure

    # --- the compiled path ---

    def _current(self) -> Compiler:
        compiler = self._compiler
        if compiler is None or compiler.version != self.observed.version:
            compiler = self._compiler = Compiler(self._converter, self.observed)
            try:
                if self.on_access:
                    later = Compiler(self._converter, self.observed, self._read_transactions)
                    self.whole = whole_on_access(*later.pair(PartnerAccessResponse))
                else:
                    self.whole = compiler.pair(PartnerAccessResponse)
            except Fallback:
                self.whole = (_not_compiled, _not_compiled)
        return compiler

    def _decode_in_pieces(self, body: bytes, meta: Meta) -> Steps:
        raw = _RAW_ACCOUNTS if body.count(b'"Transactions"') > MANY_ACCOUNTS else _RAW_TRANSACTIONS
        decode, build = self._current().pair(PartnerAccessResponse, raw)
        answer = decode(body)
        yield
        details = getattr(answer, _DETAILS)
        left = MAX_OTHER_MODELS
        for detail in details if type(details) is tuple else [details]:
            accounts, links = getattr(detail, _ACCOUNTS, None), getattr(detail, _LINKS, None)
            left -= 1
            if type(accounts) is tuple:
                left -= len(accounts)
            if type(links) is tuple:
                left -= len(links)
            if left < 0:
                raise Fallback  # the reference path reads such arrays in steps
            if type(accounts) is list:
                setattr(detail, _ACCOUNTS, (yield from self._build_accounts(accounts)))
            elif type(accounts) is tuple:
                for account in accounts:
                    yield from self._build_transactions(account)
        built: PartnerAccessResponse = build(answer, meta)
        return built

    def _build_accounts(self, pieces: list[msgspec.Raw]) -> Generator[None, None, tuple[Any, ...]]:
        accounts: list[Any] = []
        for batch in batches(pieces):
            if len(batch) > 1 or not reference.has_default_hook(self._converter, Account):
                accounts += yield from self._build_batch(Account, batch)
            else:
                decode, build = self._current().pair(Account, _RAW_TRANSACTIONS)
                account = decode(batch[0])
                yield from self._build_transactions(account)
                accounts.append(build(account))
            yield
        return tuple(accounts)

    def _build_transactions(self, account: Any) -> Generator[None, None, None]:
        pieces = getattr(account, _TRANSACTIONS)
        if type(pieces) is list:
            transactions: list[Any] = []
            for start in range(0, len(pieces), TRANSACTIONS_PER_STEP):
                batch = pieces[start : start + TRANSACTIONS_PER_STEP]
                transactions += yield from self._build_batch(Transaction, batch)
                yield
            setattr(account, _TRANSACTIONS, tuple(transactions))

    def _build_batch(self, cls: type[Model], pieces: list[msgspec.Raw]) -> Generator[None, None, tuple[Any, ...]]:
        array = json_array(pieces)
        values: list[Any]
        if len(array) > MAX_ONE_STEP:
            values = yield from parse_steps(array, len(array), cls=cls)
        else:
            try:
                decode, build = self._current().pair(cls, many=True)
                built: tuple[Any, ...] = build(decode(array))
                return built
            except FALLBACK_ERRORS:
                pass
            values = decode_any(array)
        read = reference.reader(self._converter, cls)
        result: list[Any] = []
        for start in range(0, len(values), OBJECTS_PER_STEP):
            yield
            result += reference.read_items(values[start : start + OBJECTS_PER_STEP], read)
        return tuple(result)

    def _read_transactions(self, array: bytes, place: str) -> tuple[Any, ...]:
        failure: DecodeError
        try:
            try:
                decode, build = self._current().pair(Transaction, many=True)
                built: tuple[Any, ...] = build(decode(array))
                return built
            except FALLBACK_ERRORS:
                return tuple(reference.read_items(decode_any(array), reference.reader(self._converter, Transaction)))
        except reference.StructureError as error:
            error.prepend(place)
            failure = error.final()
        except PARSE_ERRORS as error:
            failure = json_error(array, error)
        array = b""  # the frame must not hold data
        raise failure

    # --- the reference path ---

    def _read_large_arrays(self, data: Any) -> Generator[None, None, None]:
        """Replaces large arrays in `data` by `reference.PartlyRead`, a few items in a step, up to the first wrong item."""
        if not self._all_default(PartnerAccessResponse, AccountsDetail) or type(data) is not dict:
            return
        details = data.get(DETAILS)
        default, scanned = self._all_default(Account), 0
        for detail in details if type(details) is list else [details]:
            scanned += 1
            if scanned % SCANNED_PER_STEP == 0:
                yield
            if type(detail) is not dict:
                continue
            accounts = detail.get(ACCOUNTS)
            if type(accounts) is list and default:
                for account in accounts:
                    scanned += 1
                    if scanned % SCANNED_PER_STEP == 0:
                        yield
                    if type(account) is dict:
                        yield from self._read_array(account, TRANSACTIONS, Transaction)
            yield from self._read_array(detail, ACCOUNTS, Account)
            yield from self._read_array(detail, LINKS, Link)
        yield from self._read_array(data, DETAILS, AccountsDetail)

    def _read_array(self, owner: dict[str, Any], key: str, cls: type[Model]) -> Generator[None, None, None]:
        values = owner.get(key)
        if type(values) is not list or len(values) <= OBJECTS_PER_STEP:
            return
        read = reference.reader(self._converter, cls)
        models: list[Any] = []
        try:
            while len(models) < len(values):
                models += reference.read_items(values[len(models) : len(models) + OBJECTS_PER_STEP], read)
                yield
        except reference.StructureError:
            pass  # raised again, with the whole path, when the answer is read
        owner[key] = reference.PartlyRead(models, values[len(models) :])

    def _all_default(self, *classes: type[Model]) -> bool:
        return all(reference.has_default_hook(self._converter, cls) for cls in classes)


def _with_meta(answer: PartnerAccessResponse, meta: Meta) -> PartnerAccessResponse:
    # A user's hook may have replaced the answer by an object without `meta`.
    return answer.with_meta(meta) if isinstance(answer, PartnerAccessResponse) else answer
