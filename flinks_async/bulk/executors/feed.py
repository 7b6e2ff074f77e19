"""Tokens for a fetcher: the next shard is read while the one before it is fetched."""

from __future__ import annotations

import asyncio

from ..errors import InputChangedError
from ..fetching import Loaded
from ..inputs import InputFile, ShardReader, Token
from ..thread import Worker
from .protocol import NextTask, Task

# [flinks_async.bulk.tasks] What an executor is given to do: rows of the input, never tokens.


class Feed:
    """Reads the tokens of shards, one ahead.

    Args:
        tasks: gives the next shard, or None.
        source: the file of tokens.
        key: of the digests of shards.
        reading: does the blocking work; it is closed with this object.
    """

    def __init__(self, tasks: NextTask, source: InputFile, key: bytes, reading: Worker) -> None:
        self._tasks = tasks
        self._source = source
        self._key = key
        self._reading = reading
        self._reader: ShardReader | None = None
        self._ahead: asyncio.Future[Loaded | None] | None = None

    async def load(self) -> Loaded | None:
        """The next shard with its tokens, or None.

        Raises:
            InputError: the file of tokens is gone, or not the same any more.
        """
        loaded = await (self._ahead or self._next())
        self._ahead = None if loaded is None else asyncio.ensure_future(self._next())
        return loaded

    def close(self) -> None:
        """Reads no more."""
        if self._ahead is not None and not self._ahead.cancel() and not self._ahead.cancelled():
            self._ahead.exception()  # seen, so that asyncio does not warn
        self._reading.close()
        if self._reader is not None:
            self._reader.close()

    async def _next(self) -> Loaded | None:
        task = await self._tasks()
        return None if task is None else await self._reading.do(self._read, task)

    def _read(self, task: Task) -> Loaded:
        """In the reading thread."""
        if self._reader is None:
            self._reader = ShardReader(self._source, self._key)
        return task.shard, read_tokens(task, self._reader)


def read_tokens(task: Task, reader: ShardReader) -> list[Token]:
    """The tokens of a task. Blocking.

    Raises:
        InputChangedError: the file does not hold the tokens that it held when the job began.
        InputError: it cannot be read.
    """
    shard, tokens = task.shard, []
    only = None if shard.only is None else set(shard.only)
    for cut in task.cuts:
        for token in reader.read(cut):
            line = token.line
            if shard.first <= line <= shard.last and line not in task.duplicates and (only is None or line in only):
                tokens.append(token)
    if len(tokens) != shard.tokens:
        raise InputChangedError(
            f"lines {shard.first} to {shard.last} of the file of tokens have {len(tokens)} tokens, "
            f"and had {shard.tokens} when the job began"
        )
    return tokens
