"""Many tokens: N workers share one iterator, and outcomes are values.

Memory does not grow with the number of tokens: there are at most N calls in flight and 2 N outcomes that the consumer
has not taken. A slow consumer slows the workers. This module takes a callable and knows no client.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import aclosing
from copy import copy
from typing import Any, Generic, NoReturn, TypeVar

from attrs import frozen

from .checks import integer, optional_import
from .endpoint import check_token
from .errors import ClientClosedError, FlinksError, InvalidTokenError
from .models import PartnerAccessResponse, Tables
from .runtime import mark_retrieved, until_done
from .schema import Record, maker
from .secret import Secret

K = TypeVar("K")

K_co = TypeVar("K_co", covariant=True)


@frozen(weakref_slot=False, eq=False, repr=False)
class Fetched(Record, Generic[K_co]):
    """A token whose data was fetched.

    Attributes:
        key: the key that came with the token, or the token's position (from 0).
        response: the answer.
    """

    key: K_co
    response: PartnerAccessResponse

    def unwrap(self) -> PartnerAccessResponse:
        """Returns the answer."""
        return self.response


_new_fetched = maker(Fetched)


@frozen(eq=False, repr=False)
class Failed(Record, Generic[K_co]):
    """A token whose call failed.

    Attributes:
        key: the key that came with the token, or the token's position (from 0).
        error: the error of the call.
    """

    key: K_co
    error: FlinksError

    def unwrap(self) -> NoReturn:
        """Raises the error."""
        raise copy(self.error)  # each raise adds frames to an error


Outcome = Fetched[K_co] | Failed[K_co]
"""The outcome of one token of `partner_access_many`."""


@frozen(eq=False, repr=False)
class TableBatch(Record, Generic[K]):
    """The outcomes of some tokens.

    Attributes:
        tables: the answers, as of `flinks_async.tables.to_arrow`. `key` is the key of the token as a text; `answer` counts
            the answers of all batches, from 0.
        failed: the tokens whose call failed.
    """

    tables: Tables
    failed: tuple[Failed[K], ...]


async def table_batches(
    outcomes: AsyncGenerator[Outcome[K], None], *, size: int = 100
) -> AsyncGenerator[TableBatch[K]]:
    """The outcomes of `partner_access_many` as Arrow tables, batch by batch. Memory is that of one batch.

    A thread converts a batch, so that the event loop goes on; the next tokens are taken afterwards.

    Args:
        outcomes: of `client.partner_access_many(tokens)`. It is closed at the end, or if you leave the loop early and close
            this generator (`contextlib.aclosing`).
        size: outcomes in a batch; the last one may have fewer.

    Raises:
        ConfigError: pyarrow is not installed, or `size` is not a positive integer.
        WrongTypeError: as in `flinks_async.tables.to_arrow`.
        Exception: any exception of `outcomes`, after a batch of the outcomes before it.
    """
    integer("size", size, 1)
    optional_import("pyarrow", extra="arrow")
    from .tables import tables_of  # `import flinks_async` does not load it

    count, batch = 0, list[Outcome[K]]()

    async def convert() -> TableBatch[K]:
        fetched = [(str(outcome.key), outcome.response) for outcome in batch if isinstance(outcome, Fetched)]
        tables = await asyncio.to_thread(tables_of, fetched, True, count)
        return TableBatch(tables, tuple(outcome for outcome in batch if isinstance(outcome, Failed)))

    end: Exception | None = None
    async with aclosing(outcomes):
        while end is None:
            try:
                batch.append(await anext(outcomes))
            except Exception as error:
                end = error
            if len(batch) == size or (batch and end is not None):
                yield await convert()
                count += sum(isinstance(outcome, Fetched) for outcome in batch)
                batch.clear()
    if not isinstance(end, StopAsyncIteration):
        raise end


async def fan_out(
    items: TokenSource | Iterable[Any] | AsyncIterable[Any],
    call: Callable[[Secret], Awaitable[PartnerAccessResponse]],
    *,
    concurrency: int,
    ordered: bool = False,
) -> AsyncGenerator[Outcome[Any], None]:
    """Calls for each token and yields the outcomes as they complete, or in the order of the tokens.

    Args:
        items: tokens or (key, token) pairs.
        call: fetches one token; raises a `FlinksError`.
        concurrency: number of workers.
        ordered: yield the outcomes in the order of the items; a slow first one holds back at most 2 N others.

    Raises:
        ClientClosedError: the client was closed before all tokens were taken.
        Exception: any exception from iterating over `items`, after the outcomes of the tokens taken before it.
    """
    source = items if isinstance(items, TokenSource) else TokenSource(items)
    del items  # this frame is in the traceback of any error that ends the loop, and must not show tokens
    run = _Run(source, call, window=2 * concurrency, ordered=ordered)
    run.working = concurrency  # set before the tasks are made, because an eager task runs at once, perhaps to its end
    workers = [asyncio.ensure_future(run.work()) for _ in range(concurrency)]
    try:
        while await run.more():
            while (outcome := run.take()) is not None:
                yield outcome
    finally:
        for worker in workers:
            worker.cancel()
        try:
            await until_done(workers)
        finally:
            for worker in workers:
                mark_retrieved(worker)  # `ready` raises it, or the consumer has left
            await source.close()


class _Run:
    """One fan-out. At most `window` items are taken from the source and not yet yielded to the consumer."""

    def __init__(
        self,
        source: TokenSource,
        call: Callable[[Secret], Awaitable[PartnerAccessResponse]],
        *,
        window: int,
        ordered: bool,
    ) -> None:
        self.source = source
        self.working = 0
        self._call = call
        self._window = window
        self._ordered = ordered
        self._yielded = 0
        self._completed = 0
        self._outcomes: dict[int, Outcome[Any]] = {}  # by the place in which they are yielded
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._consumer: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None

    async def work(self) -> None:
        try:
            while True:
                while self.source.taken - self._yielded >= self._window:
                    await self._room()
                if (item := await self.source.take()) is None:
                    return
                position, key, token = item
                if isinstance(token, InvalidTokenError):
                    self._put(position, Failed(key, token))
                    continue
                try:
                    response = await self._call(token)
                except asyncio.CancelledError:
                    self._put(position, Failed(key, FlinksError(_CANCELLED)))
                    if _is_cancelled():
                        raise
                except FlinksError as error:
                    error.__traceback__ = None  # its frames would live as long as the outcome
                    self._put(position, Failed(key, error))
                    if isinstance(error, ClientClosedError):  # no token after this one can be fetched
                        self._stop(ClientClosedError("the client was closed before all tokens were taken"))
                        return
                else:
                    self._put(position, _new_fetched(key, response))
        except asyncio.CancelledError:
            self._stop(FlinksError(_CANCELLED))
            raise
        except BaseException as error:
            self._stop(error)
            raise
        finally:
            self.working -= 1
            self._wake()

    async def more(self) -> bool:
        """Waits until a worker has an outcome or has ended. Returns False when all outcomes have been taken."""
        if self._yielded in self._outcomes:
            return True
        if self.working == 0:
            if self._failure is not None:
                raise self._failure
            return False
        self._consumer = asyncio.get_running_loop().create_future()
        try:
            await self._consumer
        finally:
            self._consumer = None
        return True

    def take(self) -> Outcome[Any] | None:
        """The next outcome; None if it is not there yet."""
        outcome = self._outcomes.pop(self._yielded, None)
        if outcome is not None:
            self._yielded += 1
            self._let_in()
        return outcome

    def _put(self, position: int, outcome: Outcome[Any]) -> None:
        self._outcomes[position if self._ordered else self._completed] = outcome
        self._completed += 1
        self._wake()

    def _stop(self, failure: BaseException) -> None:
        """Ends the source for all workers; calls in flight are finished."""
        if self._failure is None:
            self._failure = failure
        self.source.end()
        while self._waiting:
            self._let_in()

    def _wake(self) -> None:
        if self._consumer is not None and not self._consumer.done():
            self._consumer.set_result(None)

    async def _room(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    def _let_in(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


_CANCELLED = "cancelled by a middleware, an observer or the iterator of tokens, and not by the caller"


def _is_cancelled() -> bool:
    """Whether the running task was cancelled; if not, something that it called raised a `CancelledError` itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


Item = tuple[int, Any, Secret | InvalidTokenError]  # position, key, token


class TokenSource:
    """An (async) iterator of tokens that many workers share. It reads an item only when a worker asks for one.

    An async iterator is advanced and closed by one task, because a timeout or task group that it holds across a `yield`
    belongs to the task that entered it.

    Attributes:
        taken: items taken so far.
        problem: why the items cannot be iterated over as tokens; None if they can.
    """

    def __init__(self, items: Iterable[Any] | AsyncIterable[Any]) -> None:
        self.taken = 0
        self._ended = False
        self._failure: BaseException | None = None
        self._sync: Iterator[Any] | None = None
        self._async: AsyncIterator[Any] | None = None
        self.problem: str | None = None  # not raised here: a traceback would show the tokens in this frame
        if isinstance(items, Mapping):
            self.problem = "tokens must not be a mapping, whose keys would be sent: pass its items(), or its values()"
        elif isinstance(items, AsyncIterable):
            self._async = aiter(items)
        elif isinstance(items, Iterable) and not isinstance(items, (str, bytes, Secret)):
            self._sync = iter(items)
        else:
            self.problem = "tokens must be an iterable of tokens or (key, token) pairs; for one, use partner_access"
        self._reader: asyncio.Task[None] | None = None
        self._closing = False
        self._asking: deque[asyncio.Future[Item | None]] = deque()
        self._asked = asyncio.Event()

    async def take(self) -> Item | None:
        """The next item; None at the end.

        Raises:
            Exception: the exception of the iterator, once; afterwards the source is at its end.
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
        """Advances the async iterator when an item is asked for, and closes it."""
        assert self._async is not None
        try:
            while not self._ended:
                if self._asking:
                    # Split at once, so that neither this frame nor a future holds an unwrapped token.
                    self._answer(self._split(await anext(self._async, _END)))
                else:
                    self._asked.clear()
                    await self._asked.wait()
        except asyncio.CancelledError:
            if not self._ended:
                self._failure = FlinksError("the iterator of tokens raised CancelledError, but it was not cancelled")
            raise
        except BaseException as error:
            self._failure = error  # `take` raises it
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
        """Takes no more items, and wakes the workers that wait for one."""
        self._ended = True
        while self._asking:
            self._answer(None)

    async def close(self) -> None:
        """Ends the source and closes a generator, so that its `finally` runs now.

        Raises:
            Exception: the exception of that `finally`.
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
