"""The simulated Flinks in the foreground: what `flinks-async simulate` and `python -m flinks_async.testing` run."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType

from attrs import asdict, field, frozen

from ..config import AuthScheme
from ..runtime.event_loop import fast_loop
from .data import Shape, Size
from .fault_plan import Faults, Plan
from .latency import Distribution, Latency, RateLimit
from .server import FlinksServer


@frozen(kw_only=True)
class ServeOptions:
    """How to run the server, as plain data that fits through a pipe.

    Attributes:
        auth_secret: the AuthSecret to accept; default a new GUID.
        auth_scheme: the only header form to accept; default any.
        host, port: where to listen; port 0 (default) takes any free one.
        size, shape, seed: of the data; see `expected_body`.
        faults: share of requests that fail, or of tokens with `demo`; default 0.
        kinds: which faults; default all that clear. Not used with `demo`.
        demo: plan the faults by token with `Faults.demo`: each clears, and what is fetchable is known.
        unfetchable: with `demo`, share of tokens that are refused for ever.
        latency: distribution and its one or two numbers in seconds, such as `("lognormal", 0.2, 0.5)`.
        rate: requests a second before 401 TOO_MANY_REQUESTS; default no limit.
        burst: requests at once before that.
        retry_after: answer 429 with this `Retry-After` (seconds) instead.
        compress: gzip answers for clients that accept it.
        cert_file, key_file: PEM files, for https.
    """

    auth_secret: str | None = field(default=None, repr=False)
    auth_scheme: AuthScheme | None = None
    host: str = "127.0.0.1"
    port: int = 0
    size: Size = "small"
    shape: Shape = "list"
    seed: int = 0
    faults: float = 0.0
    kinds: tuple[str, ...] | None = None
    demo: bool = False
    unfetchable: float = 0.002
    latency: tuple[Distribution, float, float] | None = None
    rate: float | None = None
    burst: float = 1.0
    retry_after: float | None = None
    compress: bool = False
    cert_file: str | None = None
    key_file: str | None = None

    def to_json(self) -> str:
        """One line. Holds the secret: for a pipe, not for arguments or a log."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ServeOptions:
        given = json.loads(text)
        for name in ("kinds", "latency"):
            if given.get(name) is not None:
                given[name] = tuple(given[name])
        return cls(**given)

    def plan(self) -> Plan | None:
        """The faults."""
        if self.demo:
            return Faults.demo(self.faults, self.seed, self.unfetchable)
        if not self.faults:
            return None
        if self.kinds is None:
            return Faults(share=self.faults, seed=self.seed)
        return Faults(share=self.faults, kinds=self.kinds, seed=self.seed)

    def server(self) -> FlinksServer:
        """A server like that, not started, which tells its counts under `/_sim/stats`."""
        context = None
        if self.cert_file is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self.cert_file, self.key_file)
        limit = None
        if self.rate is not None:
            limit = (
                RateLimit(self.rate, self.burst)
                if self.retry_after is None
                else RateLimit.status_429(self.rate, self.burst, self.retry_after)
            )
        return FlinksServer(
            auth_secret=self.auth_secret,
            auth_scheme=self.auth_scheme,
            size=self.size,
            shape=self.shape,
            seed=self.seed,
            faults=self.plan(),
            latency=None if self.latency is None else Latency(*self.latency),
            rate_limit=limit,
            compress=self.compress,
            admin=True,
            host=self.host,
            port=self.port,
            ssl_context=context,
        )


def _print_ready(server: FlinksServer) -> None:
    print(json.dumps({"base_url": server.base_url}), flush=True)


async def serve_forever(
    options: ServeOptions | None = None,
    *,
    on_ready: Callable[[FlinksServer], None] = _print_ready,
    stop: asyncio.Event | None = None,
) -> FlinksServer:
    """Runs the server until SIGINT or SIGTERM, or until `stop` is set.

    Args:
        on_ready: called once when it listens; default prints one line of JSON with `base_url`.
        stop: ends it as a signal does.

    Returns:
        The stopped server, for its `stats`.
    """
    stop = asyncio.Event() if stop is None else stop
    restore = _on_signals(stop.set)
    try:
        async with (options or ServeOptions()).server() as server:
            on_ready(server)
            await stop.wait()
    finally:
        restore()
    return server


def _on_signals(end: Callable[[], None]) -> Callable[[], None]:
    """Calls `end` on SIGINT and SIGTERM. Returns what undoes that."""
    loop = asyncio.get_running_loop()
    undo: list[Callable[[], object]] = []

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(end)

    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        with suppress(ValueError):  # not the main thread: signals are not ours
            try:
                loop.add_signal_handler(number, end)
                undo.append(partial(loop.remove_signal_handler, number))
            except (NotImplementedError, RuntimeError):  # Windows
                signal.signal(number, handle)
            undo.append(partial(signal.signal, number, before))

    def restore() -> None:
        for step in undo:
            step()

    return restore


def main() -> None:
    """Serves with the options in the first line of standard input (JSON; may be empty) until that input ends.

    The input is a pipe to the parent: the server ends with it, however that happens.
    """
    options = ServeOptions.from_json(sys.stdin.readline().strip() or "{}")
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        runner.run(_serve_until_input_ends(options))


async def _serve_until_input_ends(options: ServeOptions) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    source = sys.stdin.fileno()

    def watch() -> None:
        with suppress(ValueError, OSError):
            while os.read(source, 4096):  # not sys.stdin.read(): its lock breaks the end of the interpreter
                pass
        with suppress(RuntimeError):  # the loop has ended before
            loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=watch, name="flinks-simulator-input", daemon=True).start()
    await serve_forever(options, stop=stop)
