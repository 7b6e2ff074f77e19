"""What an executor is given to do: rows of the input, never tokens."""

from __future__ import annotations

from attrs import frozen

from .errors import InputChangedError
from .inputs import ShardReader, Token
from .records import Shard


@frozen
class Task:
    """A shard to be fetched, and where its rows are. Plain data, so it may go anywhere.

    Attributes:
        shard: which.
        cuts: the pieces of the plan that hold its rows.
        duplicates: lines among them whose token came before.
    """

    shard: Shard
    cuts: tuple[Shard, ...]
    duplicates: frozenset[int] = frozenset()


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
