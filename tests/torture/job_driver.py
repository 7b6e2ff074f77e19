"""Runs jobs on order, each in a forked child, so that a test may kill a thousand of them without a thousand starts.

Reads an `Order` a line from standard input, and answers each with lines of JSON: `{"pid": 7}` when the child begins,
what became of the job (unless it was killed), and at last `{"code": 0}`.

    python -m tests.torture.job_driver
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

from flinks_async import FlinksClient, FlinksError, config
from flinks_async.bulk import InputFile, Job, Layout, Rules, crash_points
from flinks_async.bulk import run as job_run
from flinks_async.messages import Request
from flinks_async.testing import InMemoryTransport
from flinks_async.testing.data import Size, expected_body
from flinks_async.testing.faults import KINDS

from .order import Fault, Order
from .outputs import OUTPUTS

LAYOUT = Layout(column="token", key_column="user")
FINAL, EXHAUSTED = "final-", "exhausted-"
"""How tokens begin that the transport in memory lets fail."""
NEVER = 1e6


def say(line: dict[str, Any]) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")


def main() -> None:
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


def obey(order: Order) -> int:
    if order.points is not None or order.kill_at is not None:
        crash_points.hook = hook(order)
        job_run.SAMPLE_EVERY = NEVER  # samples come by the clock, and would make the count vary
    shim = None if order.fault is None else arm(order, order.fault)
    result: dict[str, Any]
    try:
        state, totals = asyncio.run(run(order))
        result, code = {"state": state, "totals": totals}, 0
    except FlinksError as error:
        result, code = {"error": type(error).__name__, "message": error.message}, 5
    if shim is not None:
        result |= {"calls": shim.io_shim_calls(), "met": bool(shim.io_shim_fired())}
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


def arm(order: Order, fault: Fault) -> ctypes.CDLL:
    shim = ctypes.CDLL(None)
    text, number, whole = ctypes.c_char_p, ctypes.c_ulong, ctypes.c_int
    shim.io_shim_arm.argtypes = [text, text, whole, number, whole, whole, whole, number]
    shim.io_shim_arm(
        order.root.encode(), order.grave.encode(), fault.action, fault.at, fault.calls, fault.error, fault.forever,
        fault.seed,
    )  # fmt: skip
    return shim


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
