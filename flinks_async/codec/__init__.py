"""Decoding: bytes to models. msgspec reads the JSON, and cattrs keeps the hooks by which users change the result.

parse       bytes to plain Python, within limits; every way in which a body is not JSON, as an error; the code, message and
            request id of an answer
reference   plain Python to models; defines the result of decoding
compiled    bytes to models with the same result, by generated structs and functions
on_access   transactions that are decoded when they are first read
observed    the fields that answers really have, for which `compiled` generates its code, and drift
steps       both paths in small steps
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator
from typing import Final, Literal, TypeVar, get_args

from cattrs import Converter

from ..errors import ConfigError
from ..limits.notices import log_fields
from ..models import MODELS, NO_META, Meta, Model, PartnerAccessResponse
from .compiled import FALLBACK_ERRORS
from .observed import PLACES, Drift
from .parse import COUNTED_SIZE, MAX_VALUES, count_steps, envelope_of, read_envelope
from .steps import Decoder, Steps

__all__ = ["DIRECT_SIZE", "Codec", "Drift", "envelope_of", "read_envelope"]

DIRECT_SIZE: Final = 64 * 1024
"""A body of up to this many bytes is decoded in one step, with its transactions."""

MAX_TOLD: Final = 100
"""Warnings about values of the wrong type that one codec logs."""

Transactions = Literal["with the answer", "on access"]

WrongTypes = Literal["error", "extra"]

_log = logging.getLogger("flinks_async")

T = TypeVar("T")


class Codec:
    """Decodes answers.

    Args:
        transactions: "with the answer", or "on access": accounts, balances and holders are decoded, and an account's
            transactions when you first read `account.transactions`. That is faster if you do not read them, and keeps the
            steps of the event loop short. JSON errors are still found at once. A value of a wrong type, a number out of
            range or deep nesting inside a transaction is found when you read the transactions: as a `DecodeError` whose
            `path` is the place in the whole answer. `==`, `to_dict()`, `to_json()` and pickling read them; `repr` only
            counts them. An answer is decoded with its transactions if it has other fields than the answers before, and in a
            client if it is larger than 2 MiB.
        wrong_types: what to do with a value of the wrong type, such as a date that is none: "error" raises a `WrongTypeError`;
            "extra" keeps the answer: the field has its default (None, or no items), the value is in the object's `extra`,
            and the log `flinks_async` has one warning for each field.

    Attributes:
        converter: the cattrs converter with the hooks of the models. Before the first answer is decoded, you may register
            a structure hook for one of them, or for `str`, `Decimal`, `int`, `bool` or `date`; other values stay fast. A hook
            may run twice for one value, so it should be a pure function.
        transactions, wrong_types: the arguments.
    """

    def __init__(
        self,
        converter: Converter | None = None,
        *,
        transactions: Transactions = "with the answer",
        wrong_types: WrongTypes = "error",
    ) -> None:
        for name, value, choices in (
            ("transactions", transactions, Transactions),
            ("wrong_types", wrong_types, WrongTypes),
        ):
            if value not in get_args(choices):
                raise ConfigError(f"Codec: {name} must be one of {', '.join(map(repr, get_args(choices)))}")
        self.converter = Converter() if converter is None else converter
        self.transactions: Transactions = transactions
        self.wrong_types: WrongTypes = wrong_types
        self._told: set[str] = set()
        tell = None if wrong_types == "error" else self._tell
        self._decoder = Decoder(self.converter, on_access=transactions == "on access", tell=tell)

    def _tell(self, cls: type[Model], wire: str, problem: str) -> None:
        self._decoder.observed.wrong_type(PLACES[cls] + wire)
        problem = f"{cls.__name__}.{problem}"
        field = problem.partition(":")[0]
        if field not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(field)
            text = "an answer has a value of the wrong type, which is kept in extra: %s"
            _log.warning(text, problem, extra=log_fields("ValueKept", reason=problem))

    @property
    def unknown_keys(self) -> frozenset[str]:
        """Undocumented keys that answers have had: at most 16 for each class."""
        observed = self._decoder.observed
        return frozenset(key for cls in MODELS for key in observed.unknown[cls])

    def drift(self) -> tuple[Drift, ...]:
        """How the answers so far differ from the documentation, the most frequent differences first. Transactions that are
        decoded when they are first read count with the answer that is decoded next.
        """
        return self._decoder.observed.drift()

    def decode(self, body: bytes, meta: Meta = NO_META) -> PartnerAccessResponse:
        """The answer in a body.

        Raises:
            EmptyBodyError: the body is empty or null.
            NotJSONError: the body is not JSON. The subclass JSONLimitError: it exceeds a limit for account data.
            WrongTypeError: a value has the wrong type. `path` is its place.
        """
        decoder, observed = self._decoder, self._decoder.observed
        whole = decoder.whole
        try:
            if len(body) > COUNTED_SIZE and _run(count_steps(body)) > MAX_VALUES:
                return _run(decoder.counted(self._large_steps(body, meta, counted=True)))
            read, build = whole
            answer: PartnerAccessResponse = build(read(body), meta)
        except FALLBACK_ERRORS:
            pass
        else:
            if observed.odd:
                decoder.ended()
            else:
                observed.answers += 1
            return answer
        return _run(decoder.counted(decoder.fallback_steps(body, meta, whole)))

    def decode_steps(self, body: bytes, meta: Meta = NO_META) -> Steps:
        """`decode` as a generator of small steps, which returns the answer."""
        decoder = self._decoder
        if len(body) > (COUNTED_SIZE if decoder.on_access else DIRECT_SIZE):
            steps = self._large_steps(body, meta)
        elif (answer := decoder.compiled(body, meta)) is not None:
            return answer
        else:
            steps = decoder.reference_steps(body, meta)
        body = b""  # an error passes this frame, which must not hold the data
        return (yield from decoder.counted(steps))

    def _large_steps(self, body: bytes, meta: Meta, *, counted: bool = False) -> Steps:
        answer = yield from self._decoder.compiled_steps(body, meta, counted=counted)
        if answer is not None:
            return answer
        steps = self._decoder.reference_steps(body, meta)
        body = b""  # an error passes this frame, which must not hold the data
        return (yield from steps)

    async def decode_async(self, body: bytes, meta: Meta, lock: asyncio.Lock) -> PartnerAccessResponse:
        """`decode` without blocking the event loop.

        Args:
            lock: one for each event loop. Large bodies are decoded one after the other, with other tasks between the steps.
        """
        if len(body) <= DIRECT_SIZE:
            found = self._decoder.compiled(body, meta)
            if found is not None:
                return found
            steps = self._decoder.counted(self._decoder.reference_steps(body, meta))
        else:
            steps = self.decode_steps(body, meta)
        body = b""  # a cancellation passes this frame, which must not hold the data
        async with lock:
            while True:
                await asyncio.sleep(0)  # first, so that answers of a single step do not follow each other in one turn
                try:
                    next(steps)
                except StopIteration as finished:
                    answer: PartnerAccessResponse = finished.value
                    break
        return answer


def _run(steps: Generator[None, None, T]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as finished:
            result: T = finished.value
            return result
