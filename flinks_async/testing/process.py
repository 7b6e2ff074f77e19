"""Runs the simulator: in the foreground, or in its own process, which does not share the client's event loop.

`python -m flinks_async.testing.process` is that process.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
import tempfile
import threading
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
from attrs import evolve, field, frozen

from ..config import AuthScheme
from ..runtime import fast_loop, handled_signals
from .data import Shape, Size
from .faults import Distribution, Faults, Latency, Plan, RateLimit
from .server import FlinksServer


@frozen(kw_only=True)
class ServeOptions:
    """Options of the simulator as plain data that can be sent through a pipe.

    Attributes:
        auth_secret: the AuthSecret to accept; default a new GUID.
        auth_scheme: the one header form to accept; default all.
        host, port: address to listen on; port 0 (default) takes a free port.
        size, shape, seed: see `expected_body`.
        faults: share of requests that fail, or of tokens with `demo`; default 0.
        kinds: the faults; default: all that retries clear. Not used with `demo`.
        demo: plan faults by token with `Faults.demo`: retries clear them, and the outcome of each token is known.
        unfetchable: with `demo`, share of tokens that are always refused.
        latency: name of the distribution and its parameters in seconds, such as `("lognormal", 0.2, 0.5)`.
        rate: requests per second, above which the reply is 401 TOO_MANY_REQUESTS; default no limit.
        burst: requests allowed at once above the rate.
        retry_after: reply with 429 and this `Retry-After` (seconds) instead.
        compress: gzip answers for clients that accept it.
        cert_file, key_file: PEM files, for https.
    """

    auth_secret: str | None = field(default=None, repr=False)
    auth_scheme: AuthScheme | None = None
    host: str = "127.0.0.1"
    port: int = 0
    size: Size = "medium"
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
        """One line of JSON. It contains the secret: send it through a pipe, not in arguments or logs."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> ServeOptions:
        return msgspec.json.decode(text, type=cls)

    def plan(self) -> Plan | None:
        """The plan of the faults."""
        if self.demo:
            return Faults.demo(self.faults, self.seed, self.unfetchable)
        kinds = {} if self.kinds is None else {"kinds": self.kinds}
        return Faults(share=self.faults, seed=self.seed, **kinds) if self.faults else None

    def server(self) -> FlinksServer:
        """A server with these options, not started. It serves its counts at `/_sim/stats`."""
        context = None
        if self.cert_file is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self.cert_file, self.key_file)
        limit = None if self.rate is None else RateLimit(self.rate, self.burst)
        if limit is not None and self.retry_after is not None:
            limit = RateLimit.status_429(limit.rate, limit.burst, self.retry_after)
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
        on_ready: called when the server listens; default prints one line of JSON with `base_url`.
        stop: set it to stop the server.

    Returns:
        the stopped server with its `stats`.
    """
    stop = stop or asyncio.Event()
    with handled_signals(lambda _: stop.set(), "SIGINT", "SIGTERM"):
        async with (options or ServeOptions()).server() as server:
            on_ready(server)
            await stop.wait()
    return server


def main() -> None:
    """Serves until standard input ends. Its first line has the options as JSON, or is empty.

    The input is a pipe from the parent process, so the server ends when the parent ends.
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
            while os.read(source, 4096):  # sys.stdin.read() would hold a lock while the interpreter shuts down
                pass
        with suppress(RuntimeError):  # the loop has already ended
            loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=watch, name="flinks-simulator-input", daemon=True).start()
    await serve_forever(options, stop=stop)


# Ctrl-C must not reach the simulator, because the client finishes its requests first.
_DETACHED: dict[str, Any] = {"start_new_session": True}
if sys.platform == "win32":
    _DETACHED = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}


class ServerProcess:
    """Runs the simulator in a subprocess. A context manager, sync or async.

        async with ServerProcess(ServeOptions(demo=True, faults=0.03)) as server:
            FlinksClient(auth_secret=server.auth_secret, base_url=server.base_url)

    Options are sent through a pipe, so the secret is in no arguments and no environment. The server ends with this
    process, even if this process is killed.

    Args:
        options: options of the server.
        timeout: seconds until it must listen.

    Attributes:
        auth_secret: the AuthSecret that it accepts.
        base_url: URL for the client, known after the start.

    Raises:
        RuntimeError: by `start()`, if it does not listen in time. The message has its standard error.
    """

    def __init__(self, options: ServeOptions | None = None, *, timeout: float = 30.0) -> None:
        options = options or ServeOptions()
        self.auth_secret = options.auth_secret or str(uuid.uuid4())
        self.options = evolve(options, auth_secret=self.auth_secret)
        self.base_url = ""
        self._timeout = timeout
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Starts the server and waits until it listens; does nothing if it runs."""
        if self._process is not None:
            return
        with tempfile.TemporaryFile() as errors:
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", "flinks_async.testing.process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                **_DETACHED,
            )
            assert process.stdin is not None
            assert process.stdout is not None
            too_late = threading.Timer(self._timeout, process.kill)
            too_late.start()
            try:
                process.stdin.write(self.options.to_json() + "\n")
                process.stdin.flush()
                self.base_url = json.loads(process.stdout.readline())["base_url"]
            except (OSError, ValueError, KeyError):
                self.stop()
                errors.seek(0)
                reason = errors.read().decode("utf-8", "replace")[-2000:].strip()
                raise RuntimeError(f"the simulator did not start: {reason}") from None
            finally:
                too_late.cancel()
                too_late.join()

    def stop(self) -> None:
        """Stops the server; does nothing if it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        with process:  # closes its pipes, and waits
            try:
                process.communicate(timeout=0 if process.poll() is not None else 10)
            except subprocess.TimeoutExpired:
                process.kill()

    @property
    def returncode(self) -> int | None:
        """Exit code of the process; None before the start and while it runs."""
        return None if self._process is None else self._process.poll()

    def stats(self) -> dict[str, Any]:
        """The server's counts (`ServerStats.as_dict`), by a blocking HTTP request."""
        context = None
        if self.base_url.startswith("https"):  # our own process on loopback
            context = ssl.create_default_context(cafile=self.options.cert_file)
            context.check_hostname = False
        request = urllib.request.Request(
            f"{self.base_url}/_sim/stats", headers={"flinks-auth-key": self.auth_secret, "Connection": "close"}
        )
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(request, timeout=self._timeout) as answer:
            stats: dict[str, Any] = json.load(answer)
        return stats

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> ServerProcess:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.stop)


if __name__ == "__main__":
    main()
