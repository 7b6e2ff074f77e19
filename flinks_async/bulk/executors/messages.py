"""What a job and its worker processes say to each other. No message holds a token; the secrets go by themselves."""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from ..compression import Compression
from ..figures import Figures
from ..inputs import Layout
from ..records import State
from ..rules import Rules
from ..tasks import Task
from .clients import Description

# --- from the job ---


@frozen
class Start:
    """The first message: how to work. Attributes as in `Work`, where not told otherwise.

    Attributes:
        path: of the file of tokens.
        layout: how to read it.
        clients: how to make them. The other messages name them by their place here, from 0.
        names: number of the client by name of the instance.
        rates: a file for each client with a rate limit, which all processes share, by the client's number.
        spools: a folder of this worker's own.
        rules: this worker's own.
    """

    path: Path
    layout: Layout
    key: bytes = field(repr=False)
    clients: tuple[Description, ...]
    names: dict[str | None, int]
    rates: dict[int, Path]
    spools: Path
    compression: Compression
    rules: Rules


@frozen
class Assigned:
    """The answer to `Next`.

    Attributes:
        task: the shard; None when there are no more.
        secret_is_good: the AuthSecret has worked, as far as it is known.
    """

    task: Task | None
    secret_is_good: bool


@frozen
class Stored:
    """A finished shard is in store and ledger."""

    shard: int


@frozen
class Stop:
    """Take no more tokens."""

    reason: str
    state: State


# --- from a worker ---


@frozen
class Next:
    """There is room for another shard."""


@frozen
class Report:
    """How far it is.

    Attributes:
        figures: the counts.
        stopped: how and why it takes no more tokens; None while it does.
        over: everything is done; the last message.
    """

    figures: Figures
    stopped: tuple[State, str] | None = None
    over: bool = False


@frozen
class Broken:
    """It cannot go on."""

    error: Exception


# --- both ways ---


@frozen
class Paused:
    """An instance asked for a pause.

    Attributes:
        client: which.
        until: on the machine's monotonic clock.
        in_a_row: how many pauses there were without a success between.
    """

    client: int
    until: float
    in_a_row: int
