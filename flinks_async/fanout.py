"""Many tokens: N workers that share one iterator, and outcomes that are values.

Memory does not grow with the number of tokens: at any time there are at most N calls in flight and 2 N outcomes that
nobody has taken yet. A slow consumer slows the workers. This module takes a callable and knows no client.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, Generic, NoReturn, TypeVar

from attrs import frozen

from .errors import FlinksError
from .models import PartnerAccessResponse

K = TypeVar("K")
K_co = TypeVar("K_co", covariant=True)
T = TypeVar("T")


@frozen
class Fetched(Generic[K_co]):
    """A token that was answered.

    Attributes:
        key: the key that came with the token, or the token's position (from 0).
        response: the answer.
    """

    key: K_co
    response: PartnerAccessResponse

    def unwrap(self) -> PartnerAccessResponse:
        """The answer."""
        return self.response


@frozen
class Failed(Generic[K_co]):
    """A token that was not answered.

    Attributes:
        key: the key that came with the token, or the token's position (from 0).
        error: why.
    """

    key: K_co
    error: FlinksError

    def unwrap(self) -> NoReturn:
        """Raises the error."""
        raise self.error


Outcome = Fetched[K_co] | Failed[K_co]
Call = Callable[[T], Awaitable[PartnerAccessResponse]]


class _Source(Generic[T]):
    """One (async) iterator shared by many workers, which numbers what it gives."""

    def __init__(self, items: Iterable[T] | AsyncIterable[T]) -> None:
        self._sync: Iterator[T] | None = None
        self._async: AsyncIterator[T] | None = None
        if isinstance(items, AsyncIterable):
            self._async = aiter(items)
            self._turn = asyncio.Lock()
        else:
            self._sync = iter(items)
        self._count = 0
        self._ended = False

    async def next(self) -> tuple[int, T] | None:
        if self._sync is not None:
            return self._number(next(self._sync, _END))
        async with self._turn:  # an async generator cannot be advanced by two at once
            assert self._async is not None
            return None if self._ended else self._number(await anext(self._async, _END))

    def _number(self, item: T | _End) -> tuple[int, T] | None:
        if isinstance(item, _End):
            self._ended = True
            return None
        self._count += 1
        return self._count - 1, item

    async def close(self) -> None:
        """Ends an async generator that was left early, so that its `finally` runs now."""
        if isinstance(self._async, AsyncGenerator) and not self._ended:
            await self._async.aclose()


class _End:
    pass


_END = _End()
