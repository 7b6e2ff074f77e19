"""Runs jobs on order, each in a forked child, so that a test may kill a thousand of them without a thousand starts.

Imports everything before the first fork: with pyarrow, the imports take several times as long as a small job.

Reads an `Order` a line from standard input, and answers each with lines of JSON: `{"pid": 7}` when the child begins,
what became of the job (unless it was killed), and at last `{"code": 0}`.

    python -m tests.torture.job_driver
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib
import json
import os
import re
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import flinks_async
from flinks_async import FlinksClient, FlinksError, config
from flinks_async.bulk import InputFile, Job, Layout, Rules
from flinks_async.bulk import run as job_run
from flinks_async.bulk.files import crash_points
from flinks_async.messages import Request
from flinks_async.testing import InMemoryTransport
from flinks_async.testing.data import Size, expected_body
from flinks_async.testing.faults import KINDS

from .order import KINDS_OF_CALLS, Fault, Order
from .outputs import OUTPUTS

LAYOUT = Layout(column="token", key_column="user")
FINAL, EXHAUSTED = "final-", "exhausted-"
"""How tokens begin that the transport in memory lets fail."""
NEVER = 1e6
LIBRARIES = [
    "backports.zstd",
    "dateutil.relativedelta",
    "duckdb",
    "filelock",
    "psycopg",
    "pyarrow.compute",
    "pyarrow.csv",
    "pyarrow.json",
]
STORES = ["parquet", "duckdb", "postgresql"]
PACKAGE = f"{Path(flinks_async.__file__).parent}/"
NUMBER = re.compile("[0-9a-f]*[0-9][0-9a-f]*")


def say(line: dict[str, Any]) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")


def main() -> None:
    warm_up()
    for line in sys.stdin:
        order = Order.from_json(line)
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(tell)
            os.read(told, 1)  # until its number was said, so that no result comes before it
            os.close(told)
            code = 1
            try:
                code = obey(order)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(told)
        say({"pid": child})
        os.close(tell)
        _, status = os.waitpid(child, 0)
        say({"code": os.waitstatus_to_exitcode(status)})


def warm_up() -> None:
    """Imports, and compiles the decoder, so that no child need do it."""
    for name in (*LIBRARIES, "pyarrow.parquet", *(f"flinks_async.bulk.stores.{store}" for store in STORES)):
        with contextlib.suppress(ImportError):  # the tests of what is missing are skipped
            importlib.import_module(name)

    async def fetch() -> None:
        async with client_of(Order(output="jsonl")) as client:
            await client.partner_access("token")

    asyncio.run(fetch())
    gc.collect()
    gc.freeze()  # a collection in a child would copy all pages


def obey(order: Order) -> int:
    if order.points is not None or order.kill_at is not None:
        crash_points.hook = hook(order)
        job_run.SAMPLE_EVERY = NEVER  # samples come by the clock, and would make the count vary
    disk = None if order.fault is None else BadDisk(order, order.fault)
    result: dict[str, Any]
    try:
        state, totals = asyncio.run(run(order))
        result, code = {"state": state, "totals": totals}, 0
    except FlinksError as error:
        result, code = {"error": type(error).__name__, "message": error.message}, 5
    if disk is not None:
        result |= {"places": disk.reached, "met": disk.met}
    say(result)
    return code


def hook(order: Order) -> Any:
    reached: Counter[str] = Counter()
    points = None if order.points is None else os.open(order.points, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def reach(name: str) -> None:
        reached[name] += 1
        if points is not None:
            os.write(points, f"{name}\n".encode())
        if order.kill_at == (name, reached[name]):
            os.kill(os.getpid(), signal.SIGKILL)

    return reach


class BadDisk:
    """Tells the shim which of the calls on files below the job's root meets the fault.

    Attributes:
        reached: the places that made such calls, and how often.
        met: the fault was met.
    """

    def __init__(self, order: Order, fault: Fault) -> None:
        self.reached: Counter[str] = Counter()
        self.met = False
        self._fault = fault
        self._root = order.root
        whole, text, number = ctypes.c_int, ctypes.c_char_p, ctypes.c_ulong
        choose = ctypes.CFUNCTYPE(whole, whole, text)
        self._choose = choose(self._meets)  # a reference, since C has none
        arm = ctypes.CDLL(None).io_shim_arm
        arm.argtypes = [text, text, whole, whole, number, choose]
        arm(order.root.encode(), order.grave.encode(), fault.action, fault.error, fault.seed, self._choose)

    def _meets(self, kind: int, path: bytes) -> bool:
        """Called by the shim, in the thread that makes the call."""
        if not kind & self._fault.calls:
            return False
        place = place_of(kind, path.decode().removeprefix(self._root))
        self.reached[place] += 1
        if (place, self.reached[place]) == self._fault.at:
            self.met = True
            return True
        return self.met and self._fault.forever


def place_of(kind: int, path: str) -> str:
    """Names a place of the code: the kind of the call, its file (without numbers), and the lines of our code that led to it."""
    lines = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            lines.append(f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno}")
        frame = frame.f_back
    return f"{KINDS_OF_CALLS[kind]} {NUMBER.sub('N', path)} by {' < '.join(lines)}"


async def run(order: Order) -> tuple[str, dict[str, Any]]:
    with Job.start(
        order.job, InputFile(order.source, LAYOUT), OUTPUTS[order.output].make(order), {"": "instance"},
        shard_size=order.shard_size,
    ) as job:  # fmt: skip
        if order.retry:
            job.retry()
        async with client_of(order) as client:
            result = await job.run(client, Rules(open_shards=order.open_shards, concurrency=order.concurrency))
        totals = result.totals
        return result.state, {name: getattr(totals, name) for name in ("tokens", "fetched", "failed", "pending")}


def client_of(order: Order) -> FlinksClient:
    if order.base_url is not None:
        return FlinksClient(auth_secret=order.secret, base_url=order.base_url, settings=config.bulk())
    return FlinksClient(
        auth_secret=order.secret, transport=InMemoryTransport(default=answers(order.size)), settings=config.bulk(),
        retry={"attempts": 1},
    )  # fmt: skip


def answers(size: Size) -> Callable[[Request], Any]:
    def answer(request: Request) -> Any:
        token = request.token.reveal()
        if token.startswith(FINAL):
            return KINDS["bad_request"]
        if token.startswith(EXHAUSTED):
            return KINDS["http_503"]
        return expected_body(token, size=size)

    return answer


if __name__ == "__main__":
    main()
