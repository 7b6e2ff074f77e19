"""A real S3 server on the loopback interface, with faults between it and its clients."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import pytest
from attrs import define, field

SECRET_KEY = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYCANARYKEY"
KEY_ID = "AKIACANARY7EXAMPLE"


LEAK = f"<Error><Code>Odd</Code><AWSAccessKeyId>{KEY_ID}</AWSAccessKeyId><StringToSign>{SECRET_KEY}</StringToSign></Error>".encode()
"""The answer to a request that is refused: a real storage repeats what was signed."""


@define
class Asked:
    """A request. `range` is its header; `conditions` are the names of those such as `If-Match`."""

    method: str
    path: str
    range: str | None
    size: int
    conditions: tuple[str, ...] = ()


Headers = list[tuple[str, str]]


@define
class Reply:
    """An answer of the server, to be changed.

    Attributes:
        status: with its text, such as `200 OK`.
    """

    status: str
    headers: Headers
    body: bytes


@define
class S3:
    """The server, and what it was asked.

    Attributes:
        fault: gets each request; may return a status to refuse it, also with a code as S3 has them; "lost" to do what it asks
            and answer 500, "dropped" to do it and close the connection, "cut" to send half of the answer, or None.
        before: may change a request, as WSGI has it.
        after: may change the answer to a request.
    """

    port: int
    asked: list[Asked] = field(factory=list)
    fault: Callable[[Asked], int | str | tuple[int, str] | None] = lambda asked: None
    before: Callable[[dict[str, Any]], object] | None = None
    after: Callable[[Asked, Reply], object] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    def count(self, method: str) -> int:
        return sum(one.method == method for one in self.asked)


@contextmanager
def running() -> Iterator[S3]:
    """Starts the server in threads of this process."""
    pytest.importorskip("obstore")
    moto_server = pytest.importorskip("moto.server")
    serving = pytest.importorskip("werkzeug.serving")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = moto_server.DomainDispatcherApplication(moto_server.create_backend_app)
    one_at_a_time = threading.Lock()  # moto is not safe in threads

    def gate(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if s3.before is not None:
            s3.before(environ)
        size = int(environ.get("CONTENT_LENGTH") or 0)
        path = unquote(environ.get("REQUEST_URI", environ["PATH_INFO"]))
        conditions = tuple(name for name in environ if name.startswith("HTTP_IF_"))
        asked = Asked(environ["REQUEST_METHOD"], path, environ.get("HTTP_RANGE"), size, conditions)
        s3.asked.append(asked)
        fault = s3.fault(asked)
        if isinstance(fault, int | tuple):
            status, code = fault if isinstance(fault, tuple) else (fault, "Odd")
            environ["wsgi.input"].read(size)
            start_response(f"{status} Fault", [("Content-Type", "application/xml")])
            return [LEAK.replace(b"Odd", code.encode())]
        with one_at_a_time:
            if fault is None:
                after = s3.after
                if after is None:
                    return list(app(environ, start_response))
                reply = Reply("", [], b"")

                def keep(status: str, headers: Any) -> None:
                    reply.status, reply.headers = status, headers

                reply.body = b"".join(app(environ, keep))
                after(asked, reply)
                start_response(reply.status, reply.headers)
                return [reply.body]
            if fault == "cut":
                body = b"".join(app(environ, start_response))
                return cut(body[: len(body) // 2])
            list(app(environ, lambda *args: None))
        if fault == "dropped":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)  # the server itself would wait for the next request
            raise ConnectionAbortedError
        start_response("500 Lost", [("Content-Length", "0")])
        return [b""]

    def cut(data: bytes) -> Iterator[bytes]:
        yield data
        raise ConnectionAbortedError

    server = serving.make_server("127.0.0.1", 0, gate, threaded=True)
    s3 = S3(server.port)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield s3
    finally:
        server.shutdown()
        server.server_close()
