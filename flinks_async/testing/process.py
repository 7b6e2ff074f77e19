"""The simulator in its own process, so that it does not share the event loop and the processor of the client."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
import threading
import urllib.request
import uuid
from types import TracebackType
from typing import IO, Any

from attrs import evolve

from .serve import ServeOptions

# Ctrl-C must not reach the simulator, because the client finishes its requests first.
_DETACHED: dict[str, Any]
if sys.platform == "win32":
    _DETACHED = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
else:
    _DETACHED = {"start_new_session": True}


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
        self._errors: list[str] = []
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """Starts the server and waits until it listens; does nothing if it runs."""
        if self._process is not None:
            return
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "flinks_async.testing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            **_DETACHED,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._errors = []
        self._reader = threading.Thread(target=_keep_lines, args=(process.stderr, self._errors), daemon=True)
        self._reader.start()
        too_late = threading.Timer(self._timeout, process.kill)
        too_late.start()
        try:
            process.stdin.write(self.options.to_json() + "\n")
            process.stdin.flush()
            self.base_url = json.loads(process.stdout.readline())["base_url"]
        except (OSError, ValueError, KeyError):
            self.stop()
            raise RuntimeError(f"the simulator did not start: {''.join(self._errors)[-2000:].strip()}") from None
        finally:
            too_late.cancel()
            too_late.join()

    def stop(self) -> None:
        """Stops the server; does nothing if it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.communicate(timeout=0 if process.poll() is not None else 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            if self._reader is not None:
                self._reader.join()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> ServerProcess:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)


def _keep_lines(stream: IO[str], lines: list[str]) -> None:
    for line in stream:
        lines.append(line)
        del lines[:-100]
