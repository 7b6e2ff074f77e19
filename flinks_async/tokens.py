"""The tokens of a fan-out: one (async) iterator that many workers share."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator
from typing import Any

from .config import check_token
from .errors import FlinksError, InvalidTokenError
from .scope import until_done
from .secret import Secret

Item = tuple[int, Any, Secret | InvalidTokenError]  # position, key, token


class Source:
    """Gives one item after the other to whoever asks, and reads no further than it is asked.

    An async iterator is advanced and closed by a task of its own: what it holds over a `yield` (a timeout, a task group)
    belongs to the task that entered it.

    Attributes:
        taken: items taken so far.
        readable: it was given something that can be iterated over, and not one token.
    """

    def __init__(self, items: Iterable[Any] | AsyncIterable[Any]) -> None:
        self.taken = 0
        self._ended = False
        self._failure: BaseException | None = None
        self._sync: Iterator[Any] | None = None
        self._async: AsyncIterator[Any] | None = None
        if isinstance(items, AsyncIterable):
            self._async = aiter(items)
        elif isinstance(items, Iterable) and not isinstance(items, (str, bytes, Secret)):
            self._sync = iter(items)
        self.readable = self._async is not None or self._sync is not None
        self._reader: asyncio.Task[None] | None = None
        self._closing = False
        self._asking: deque[asyncio.Future[Item | None]] = deque()
        self._asked = asyncio.Event()

    async def take(self) -> Item | None:
        """The next item; None at the end.

        Raises:
            Exception: what the iterator raised, once; then it is at its end.
        """
        if not self._ended:
            if self._sync is not None:
                return self._split(next(self._sync, _END))
            answer: asyncio.Future[Item | None] = asyncio.get_running_loop().create_future()
            self._asking.append(answer)
            self._asked.set()
            if self._reader is None:
                self._reader = asyncio.ensure_future(self._read())
            if (item := await answer) is not None:
                return item
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return None

    async def _read(self) -> None:
        """Advances the async iterator as often as it is asked, and closes it."""
        assert self._async is not None
        try:
            while not self._ended:
                if self._asking:
                    # Split at once: neither this frame nor a future holds a bare token.
                    self._answer(self._split(await anext(self._async, _END)))
                else:
                    self._asked.clear()
                    await self._asked.wait()
        except asyncio.CancelledError:
            if not self._ended:
                self._failure = FlinksError("the iterator of tokens was cancelled, though nobody had asked for that")
            raise
        except BaseException as error:
            self._failure = error  # raised where the item was asked for
        finally:
            self._closing = True
            self.end()
            await self._close_async()

    def _answer(self, item: Item | None) -> None:
        while self._asking:
            answer = self._asking.popleft()
            if not answer.done():
                answer.set_result(item)
                return

    def _split(self, item: Any) -> Item | None:
        if item is _END:
            self._ended = True
            return None
        position, self.taken = self.taken, self.taken + 1
        key, token = item if isinstance(item, tuple) and len(item) == 2 else (position, item)
        try:
            return position, key, check_token(token)
        except InvalidTokenError as error:
            refusal = InvalidTokenError(error.message)
        return position, key, refusal

    def end(self) -> None:
        """Nothing more is taken; who waits for an item is told so."""
        self._ended = True
        while self._asking:
            self._answer(None)

    async def close(self) -> None:
        """Ends it, and a generator that was left early too, so that its `finally` runs now.

        Raises:
            Exception: what that `finally` raised.
        """
        self.end()
        if isinstance(self._sync, Generator):
            self._sync.close()
        if self._reader is not None:
            if not self._closing:
                self._reader.cancel()
            await until_done([self._reader])
            if not self._reader.cancelled():
                self._reader.result()
        await self._close_async()

    async def _close_async(self) -> None:
        if isinstance(self._async, AsyncGenerator):
            await self._async.aclose()


_END = object()
