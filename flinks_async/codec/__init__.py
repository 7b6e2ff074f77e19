"""Bytes to models and back. cattrs is the registry of hooks, msgspec reads the JSON.

plan, shapes    what the classes document, and what answers look like lately
parse           bytes to plain Python, and every way in which a body is not JSON
careful         plain Python to models: the meaning of "decode"
fast, source    the same result, by generated structs and functions
steps           both paths in small steps
envelope        what an answer says about itself
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Final, TypeVar

from cattrs import Converter

from ..models import Meta, PartnerAccessResponse
from .compiled import DOUBTS
from .envelope import envelope_of, read_envelope
from .parse import COUNTED, MANY_VALUES, count_steps
from .steps import Decoder, Steps

__all__ = ["DIRECT", "Codec", "envelope_of", "read_envelope"]

DIRECT: Final = 64 * 1024
"""A body of up to this size is decoded in one step."""

T = TypeVar("T")

_NO_META: Final = Meta()


class Codec:
    """Decodes answers.

    Attributes:
        converter: the cattrs converter that the classes' hooks live on. A hook registered for one of our classes,
            before the first answer is decoded, changes what `decode` returns; the other classes stay fast. An answer
            that the fast path leaves to the careful one runs through a hook again, so let hooks be pure.
    """

    def __init__(self, converter: Converter | None = None) -> None:
        self.converter = Converter() if converter is None else converter
        self._decoder = Decoder(self.converter)

    def decode(self, body: bytes, meta: Meta = _NO_META) -> PartnerAccessResponse:
        """The answer in a body.

        Raises:
            EmptyBodyError: there is nothing, or only `null`.
            NotJSONError: it is not JSON; as a JSONLimitError, it has more values or keys than account data can have.
            WrongTypeError: it is JSON of another shape; its `path` names the place.
        """
        whole = self._decoder.whole
        try:
            if len(body) > COUNTED and _run_out(count_steps(body)) > MANY_VALUES:
                found = _run_out(self._decoder.fast_steps(body, meta, counted=True))
                return _run_out(self._decoder.careful_steps(body, meta)) if found is None else found
            read, build = whole
            answer: PartnerAccessResponse = build(read(body), meta)
            return answer
        except DOUBTS:
            pass
        return _run_out(self._decoder.after_doubt(body, meta, whole))

    def decode_steps(self, body: bytes, meta: Meta = _NO_META) -> Steps:
        """The same as a generator of small steps, which returns the answer."""
        if len(body) <= DIRECT:
            answer = self._decoder.fast(body, meta)
        else:
            answer = yield from self._decoder.fast_steps(body, meta)
        if answer is not None:
            return answer
        steps = self._decoder.careful_steps(body, meta)
        body = b""  # an error passes this frame, which must not hold the data
        return (yield from steps)

    async def decode_async(self, body: bytes, meta: Meta, lock: asyncio.Lock) -> PartnerAccessResponse:
        """The same without stalling the event loop.

        Args:
            lock: one for each event loop: large bodies are decoded one after the other, a step at a time.
        """
        if len(body) <= DIRECT:
            found = self._decoder.fast(body, meta)
            if found is not None:
                return found
            steps = self._decoder.careful_steps(body, meta)
        else:
            steps = self.decode_steps(body, meta)
        body = b""  # a cancellation passes this frame, which must not hold the data
        async with lock:
            while True:
                try:
                    next(steps)
                except StopIteration as finished:
                    answer: PartnerAccessResponse = finished.value
                    break
                await asyncio.sleep(0)
        return answer


def _run_out(steps: Generator[None, None, T]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as finished:
            result: T = finished.value
            return result
