"""The errors of this package; `flinks_async.bulk` has more for jobs.

    FlinksError
    ├── ConfigError                 a setting is wrong or missing; nothing was sent
    ├── ClientClosedError           the client was closed before or during the call
    ├── InvalidTokenError           the token is empty, too long or would change the URL; nothing was sent
    ├── TransportError              the connection failed; `sent` says whether the request may have arrived
    │   ├── ConnectError            the connection could not be made: refused, DNS, TLS
    │   │   ├── ConnectTimeoutError     no connection within `Timeouts.connect`
    │   │   ├── CertificateError        the server's certificate is invalid; never retried
    │   │   ├── ProxyError              the proxy refused or could not be reached
    │   │   └── ShortageError           this process is short of file descriptors, threads or memory
    │   ├── ReadError               the connection broke before the whole response had arrived
    │   │   └── StaleConnectionError    a kept-alive connection was already closed; retried at once
    │   └── AttemptTimeoutError     one attempt took longer than `Timeouts.attempt`
    ├── ProtocolError               the server sent something that is not valid HTTP
    ├── ResponseTooLargeError       the decompressed body is larger than `Limits.max_body`
    ├── DecodeError                 the body of the response cannot be decoded
    │   ├── EmptyBodyError              a successful response without a body
    │   ├── NotJSONError                HTML, or malformed JSON
    │   │   └── JSONLimitError              too deep, too many values, a number out of range, NaN; never retried
    │   └── WrongTypeError              well-formed JSON with a value of the wrong type; `path` says where
    ├── DeadlineExceededError       the call took, or would take, longer than its deadline
    ├── QuotaExhaustedError         a retry was due, but the retry quota is used up
    ├── CircuitOpenError            not sent, because the instance is down
    ├── RedirectError               a redirect (3xx); redirects are never followed
    ├── PendingError                the data is not ready yet (202, OPERATION_PENDING); see `poll_pending`
    └── APIStatusError              the server refused the request or failed
        ├── BadRequestError             400, and other refusals of this token that a retry cannot change
        ├── AuthenticationError         the AuthSecret or the form of its header was refused
        ├── NotFoundError               404, 410
        ├── RateLimitedError            throttled (429, or any status with TOO_MANY_REQUESTS)
        └── ServerError                 5xx, and FlinksCodes that mean "try again later"

Errors are plain data: you can pickle, copy and log them, or send them to another process. They hold no token, secret or
URL, and no unmasked text from the server.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from types import TracebackType
from typing import Any, Final

import attrs

__all__ = [
    "APIStatusError",
    "AttemptTimeoutError",
    "AuthenticationError",
    "BadRequestError",
    "CertificateError",
    "CircuitOpenError",
    "ClientClosedError",
    "ConfigError",
    "ConnectError",
    "ConnectTimeoutError",
    "DeadlineExceededError",
    "DecodeError",
    "EmptyBodyError",
    "FlinksError",
    "InvalidTokenError",
    "JSONLimitError",
    "NotFoundError",
    "NotJSONError",
    "PendingError",
    "ProtocolError",
    "ProxyError",
    "QuotaExhaustedError",
    "RateLimitedError",
    "ReadError",
    "RedirectError",
    "ResponseTooLargeError",
    "ServerError",
    "ShortageError",
    "StaleConnectionError",
    "TransportError",
    "WrongTypeError",
]

_IN_TEXT = ("status", "flinks_code", "request_id", "attempts", "elapsed", "retry_after", "token_fingerprint")


@attrs.define(slots=False, eq=False, repr=False, auto_exc=False)
class FlinksError(Exception):
    """Base class of all errors of this package.

    Attributes (None if the error does not have one):
        message: what went wrong, in words; for an `APIStatusError` see also `server_message`.
        status: the HTTP status that the server sent.
        flinks_code: the body's `FlinksCode`, for example `TOO_MANY_REQUESTS`.
        server_message: the body's `Message`, with secrets and personal data masked, at most 200 characters.
        request_id: the body's `RequestId`; quote it when you report a problem to Flinks.
        attempts: the number of attempts, including the failed one.
        elapsed: seconds since the start of the call.
        host: the instance's host, with its port if that is not the default.
        retry_after: seconds that the server asked to wait, or until the next probe of an open breaker.
        token_fingerprint: identifies the access token without revealing it (see `flinks_async.fingerprint`).
        call_id: identifies the call, in the events, log records and spans of all its attempts.
    """

    message: str = attrs.field(default="")
    status: int | None = attrs.field(default=None, kw_only=True)
    flinks_code: str | None = attrs.field(default=None, kw_only=True)
    request_id: str | None = attrs.field(default=None, kw_only=True)
    attempts: int | None = attrs.field(default=None, kw_only=True)
    elapsed: float | None = attrs.field(default=None, kw_only=True)
    retry_after: float | None = attrs.field(default=None, kw_only=True)
    token_fingerprint: str | None = attrs.field(default=None, kw_only=True)
    call_id: str | None = attrs.field(default=None, kw_only=True)
    host: str | None = attrs.field(default=None, kw_only=True)
    server_message: str | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        self.args = (self.message,)

    def fields(self) -> dict[str, Any]:
        """The class and all attributes as plain data, for a log record or a report."""
        values = {attribute.name: getattr(self, attribute.name) for attribute in attrs.fields(type(self))}
        return {"class": type(self).__name__, **values}

    def __str__(self) -> str:
        known = [f"{name}={_rounded(value)}" for name in _IN_TEXT if (value := getattr(self, name)) is not None]
        return f"{self.message} [{' '.join(known)}]" if known else self.message

    def __repr__(self) -> str:
        _, _, *values = self.fields().items()  # without class and message
        known = "".join(f", {name}={_rounded(value)!r}" for name, value in values if value is not None)
        return f"{type(self).__name__}({self.message!r}{known})"

    def __reduce__(self) -> tuple[Any, ...]:
        # `__init__` is not called again, because a subclass may have one of its own. The state includes notes.
        return _rebuild, (type(self), self.args, dict(vars(self)))

    def __copy__(self) -> FlinksError:
        made = _rebuild(type(self), self.args, vars(self))
        made.__cause__, made.__context__ = self.__cause__, self.__context__
        made.__suppress_context__ = self.__suppress_context__
        return made.with_traceback(self.__traceback__)


def _rounded(value: object) -> object:
    """Seconds as a person reads them: to the millisecond."""
    return round(value, 3) if isinstance(value, float) else value


def _rebuild(cls: type[FlinksError], args: tuple[Any, ...], state: dict[str, Any]) -> FlinksError:
    error = cls.__new__(cls, *args)
    error.args = args
    vars(error).update(state)
    if "__notes__" in state:
        error.__notes__ = list(state["__notes__"])
    return error


def drop_internal_frames(error: FlinksError) -> None:
    """Internal. Drops the frames and the chain of an error that this package raised, because they may hold secrets and do
    not help a user. An error of a user's middleware keeps both, from the user's first frame on.
    """
    if not _is_users(error):
        error.__traceback__ = error.__context__ = error.__cause__ = None
        return
    frames = error.__traceback__
    while frames is not None and _is_ours(frames.tb_frame.f_globals.get("__name__", "")):
        frames = frames.tb_next
    error.__traceback__ = frames
    seen: set[int] = {id(error)}
    chain = [error.__cause__, error.__context__]
    while chain:
        link = chain.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        chain += [link.__cause__, link.__context__]
        if isinstance(link, FlinksError) and not _is_users(link):
            link.__traceback__ = None


_INTERNAL = frozenset({__name__.partition(".")[0], "aiohttp", "cattrs"})


def keep_users_frames(error: BaseException) -> None:
    """Internal. Drops the frames of this package and of its libraries from an error of users' code that interrupted them, such
    as a signal handler, because the variables of these frames hold tokens and data.
    """
    kept: list[TracebackType] = []
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_globals.get("__name__", "").partition(".")[0] not in _INTERNAL:
            kept.append(step)
        step = step.tb_next
    for frame, following in zip(kept, (*kept[1:], None), strict=False):
        frame.tb_next = following
    error.__traceback__ = kept[0] if kept else None


def _is_users(error: FlinksError) -> bool:
    """Whether a user's code raised the error, or defined its class."""
    if not _is_ours(type(error).__module__):
        return True
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and not _is_ours(last.tb_frame.f_globals.get("__name__", ""))


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == __name__.partition(".")[0]


class ConfigError(FlinksError, ValueError):
    """A setting is wrong or missing, or a callable that you passed (such as `auth_secret`) failed."""


class ClientClosedError(FlinksError):
    """The client was closed before or during the call."""


class InvalidTokenError(FlinksError, ValueError):
    """The access token is not a str, is empty, is too long, or would change the URL. Nothing was sent."""


@attrs.define(slots=False, eq=False, repr=False, auto_exc=False)
class TransportError(FlinksError):
    """The connection failed.

    Attributes:
        sent: False if the request cannot have reached the server, True if it may have.
    """

    sent: bool = attrs.field(default=True, kw_only=True)


@attrs.define(slots=False, eq=False, repr=False, auto_exc=False)
class ConnectError(TransportError):
    """The connection could not be made: refused, unreachable, unknown host, TLS failure. Nothing was sent."""

    sent: bool = attrs.field(default=False, kw_only=True)


class ConnectTimeoutError(ConnectError):
    """The connection was not made within `Timeouts.connect` seconds (DNS, TCP and TLS together)."""


class CertificateError(ConnectError):
    """The server's certificate is expired, for another host, or from an unknown authority. Never retried."""


class ProxyError(ConnectError):
    """The proxy could not be reached, or it refused the connection."""


class ShortageError(ConnectError):
    """This process or this machine is short of file descriptors, threads or memory. It says nothing about the server, so the
    breaker, the concurrency and the retry quota do not count it.
    """


class ReadError(TransportError):
    """The connection broke before the whole response had arrived."""


class StaleConnectionError(ReadError):
    """A kept-alive connection was already closed when it was used again. Retried at once on a new connection."""


class AttemptTimeoutError(TransportError):
    """One attempt took longer than `Timeouts.attempt` seconds, not counting its time in the queue."""


class ProtocolError(FlinksError):
    """The server sent something that is not valid HTTP. `status` is None, because a status in invalid HTTP cannot be trusted."""


class ResponseTooLargeError(FlinksError):
    """The decompressed body is larger than `Limits.max_body` bytes."""


@attrs.define(slots=False, eq=False, repr=False, auto_exc=False)
class DecodeError(FlinksError):
    """The body of the response cannot be decoded.

    Attributes:
        path: the place in the JSON, such as `GetAccountsDetail[0].Accounts[2].Balance.Current`; None for the whole body.
    """

    path: str | None = attrs.field(default=None, kw_only=True)


class EmptyBodyError(DecodeError):
    """A successful response without a body."""


class NotJSONError(DecodeError):
    """The body is not JSON: an HTML page (maintenance, login, firewall), or malformed JSON."""


class JSONLimitError(NotJSONError):
    """The JSON exceeds a limit: nesting, number of values, range of a number; or contains NaN or Infinity. Never retried."""


class WrongTypeError(DecodeError):
    """Well-formed JSON with a value of the wrong type. The message says where, and never shows the value."""


class DeadlineExceededError(FlinksError):
    """The call took longer than its deadline (`timeout=`, or `Timeouts.deadline`), or would exceed it during the next wait.
    Its `__cause__` is the error of the last attempt, if one failed.
    """


class QuotaExhaustedError(FlinksError):
    """A retry was due, but the retry quota is used up. Its `__cause__` is the error of the last attempt."""


class CircuitOpenError(FlinksError):
    """Not sent, because too many recent requests to this instance failed. Probes detect when it is up again."""


@attrs.define(slots=False, eq=False, repr=False, auto_exc=False)
class RedirectError(FlinksError):
    """A redirect (3xx). Redirects are never followed, because they would send the secret to another host.

    Attributes:
        location_host: the host in the `Location` header, if there is one.
    """

    location_host: str | None = attrs.field(default=None, kw_only=True)


class PendingError(FlinksError):
    """The request was accepted, but the data is not ready yet (202, OPERATION_PENDING, OPERATION_DISPATCHED).

    It is not retried. `FlinksClient(poll_pending=...)` polls until the data is ready.
    """


class APIStatusError(FlinksError):
    """The server refused the request or failed."""


class BadRequestError(APIStatusError):
    """400, and other refusals of this token that a retry cannot change."""


@attrs.define(slots=False, eq=False, repr=False, auto_exc=False)
class AuthenticationError(APIStatusError):
    """The AuthSecret or the form of its header was refused (401, 403).

    Attributes:
        provider_problem: why the `auth_secret` callable could not return another secret; None if it returned the same
            one, or if `auth_secret` is not a callable.
    """

    provider_problem: str | None = attrs.field(default=None, kw_only=True)


class NotFoundError(APIStatusError):
    """404 or 410."""


class RateLimitedError(APIStatusError):
    """The server throttled the request: 429, or any status with the FlinksCode TOO_MANY_REQUESTS."""


class ServerError(APIStatusError):
    """5xx, and FlinksCodes that mean "try again later"."""


def os_reason(error: BaseException | None) -> str:
    """The operating system's text for an error number, in brackets; it contains no data of the request."""
    inner = getattr(error, "os_error", error)
    number = getattr(inner, "errno", None)
    if isinstance(inner, ssl.SSLError):
        if inner.reason == "WRONG_VERSION_NUMBER":
            return " (the answer is not TLS; the server may expect http://)"
        return f" ({inner.reason})" if inner.reason else ""
    return f" ({os.strerror(number)})" if isinstance(number, int) and number > 0 else ""


# A shortage of the process or the machine: it passes, unlike a wrong certificate file.
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN})


def shortage(error: BaseException) -> str | None:
    """The shortage that caused an error, in words; None if none did."""
    inner = getattr(error, "os_error", error)
    if isinstance(inner, MemoryError):
        return os.strerror(errno.ENOMEM)
    if isinstance(inner, RuntimeError) and "start new thread" in str(inner):
        return "no thread can be started"
    if not isinstance(inner, OSError) or isinstance(inner, ssl.SSLError):  # whose numbers are OpenSSL's own
        return None
    number = inner.errno
    if isinstance(inner, socket.gaierror):  # without a descriptor, a name cannot be looked up, and seems unknown
        number = _opening_a_file()
    if number is None or number not in _SHORTAGES:
        return None
    return os.strerror(number) + (f"; this process may open {_open_files()}" if number == errno.EMFILE else "")


def _opening_a_file() -> int | None:
    """The error number of opening a file now; None if it can be opened."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno
    return None


def _open_files() -> str:
    try:
        import resource
    except ImportError:  # on Windows
        return "no more files"
    return f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,} files at once (ulimit -n)"
