"""The driver's order and its result, as plain records that are sent through a pipe."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, Final

import msgspec
from attrs import asdict, field, frozen

from flinks_async.testing.data import Size

# As in io_shim.c.
FAIL, SHORT, KILL, CUT, LOSE = range(1, 6)
CREATE, WRITE, SYNC, RENAME, TRUNCATE, UNLINK, MKDIR, RMDIR = (1 << bit for bit in range(8))
KINDS_OF_CALLS: Final = {
    CREATE: "create", WRITE: "write", SYNC: "sync", RENAME: "rename", TRUNCATE: "truncate", UNLINK: "unlink",
    MKDIR: "mkdir", RMDIR: "rmdir",
}  # fmt: skip
TAKES_ROOM: Final = CREATE | WRITE | MKDIR
EVERYTHING: Final = 255


@frozen
class Fault:
    """A fault of the disk.

    Attributes:
        action: FAIL, SHORT, KILL, CUT or LOSE.
        at: the place (see `job_driver.place_of`), and at which reach of it, from 1. None: calls are only counted.
        calls: the kinds of calls that count.
        error: with FAIL and LOSE.
        forever: it meets all later ones too.
        seed: of what CUT keeps; 0 for nothing.
    """

    action: int
    at: tuple[str, int] | None = None
    calls: int = EVERYTHING
    error: int = errno.EIO
    forever: bool = False
    seed: int = 0


@frozen
class Order:
    """A run of a job.

    Attributes:
        output: a name in `OUTPUTS`.
        root: all that the job makes lies below; the job's directory is `root/job`.
        source: the file of tokens, a CSV file.
        base_url: of the server; None for answers from memory.
        secret: for the server.
        shard_size, open_shards, concurrency: of the job.
        retry: take up failed tokens first.
        kill_at: the name of a crash point, and at which reach of it the process kills itself.
        points: a file to write the crash points to that were reached, in order.
        fault: of the disk below `root`; the driver must have been started with the shim.
        grave: a folder beside `root`, for the shim.
        conninfo: of a PostgreSQL server, for that store.
        size: of the answers from memory.
    """

    output: str
    root: str = ""
    source: str = ""
    base_url: str | None = None
    secret: str = field(default="the-auth-secret", repr=False)
    shard_size: int = 100
    open_shards: int = 4
    concurrency: int = 32
    retry: bool = False
    kill_at: tuple[str, int] | None = None
    points: str | None = None
    fault: Fault | None = None
    grave: str = ""
    conninfo: str = ""
    size: Size = "small"

    @property
    def job(self) -> Path:
        return Path(self.root, "job")

    @property
    def window(self) -> int:
        """The requests that a kill may repeat, at most."""
        return self.open_shards * self.shard_size

    def to_json(self) -> bytes:
        return msgspec.json.encode(asdict(self))

    @classmethod
    def from_json(cls, data: bytes | str) -> Order:
        values = msgspec.json.decode(data)
        if fault := values.pop("fault"):
            fault["at"] = fault["at"] and tuple(fault["at"])
            values["fault"] = Fault(**fault)
        kill_at = values.pop("kill_at")
        return cls(**values, kill_at=kill_at and tuple(kill_at))


@frozen
class Ended:
    """How a run ended.

    Attributes:
        code: exit code; negative: killed by that signal.
        result: `{"state": ..., "totals": ...}`, or `{"error": name of its class, "message": ...}`; None if killed.
        places: with a fault, the places that were reached, and how often.
        met: the fault was met.
    """

    code: int
    result: dict[str, Any] | None
    places: dict[str, int] = field(factory=dict)
    met: bool = False

    @property
    def killed(self) -> bool:
        return self.code < 0

    @property
    def state(self) -> str | None:
        return None if self.result is None else self.result.get("state")

    @property
    def error(self) -> str | None:
        return None if self.result is None else self.result.get("error")
