"""Every error that this package raises.

    FlinksError
    ├── ConfigError                 a setting is wrong or missing; nothing was sent
    ├── ClientClosedError           the client was closed before or during the call
    ├── InvalidTokenError           the token cannot be sent as given; nothing was sent
    ├── TransportError              the connection failed (`sent` says whether the request may have arrived)
    │   ├── ConnectError            no connection: refused, DNS, TLS
    │   │   ├── ConnectTimeoutError     no connection within `Timeouts.connect`
    │   │   ├── CertificateError        the server's certificate is not valid; never retried
    │   │   └── ProxyError              the proxy refused or could not be reached
    │   ├── ReadError               the connection broke before the answer was whole
    │   │   └── StaleConnectionError    a kept-alive connection was already dead; tried again at once
    │   └── AttemptTimeoutError     one attempt took longer than `Timeouts.attempt`
    ├── ProtocolError               what came back is not HTTP
    ├── ResponseTooLargeError       the (inflated) body is larger than `Limits.max_body`
    ├── DecodeError                 an HTTP answer whose body cannot be understood
    │   ├── EmptyBodyError              nothing where JSON should be
    │   ├── NotJSONError                HTML, or broken JSON
    │   │   └── JSONLimitError              nested too deeply, too many values, a number out of range, NaN; never retried
    │   └── WrongTypeError              JSON of another shape; `path` names the place
    ├── DeadlineExceededError       the whole call took longer than its deadline
    ├── QuotaExhaustedError         a retry was due, but the retry quota is used up
    ├── CircuitOpenError            not sent: the instance is down at the moment
    ├── RedirectError               a redirect; they are never followed
    ├── PendingError                accepted, no data yet (202, OPERATION_PENDING); never retried by the retry
    └── APIStatusError              an answer that says no
        ├── BadRequestError             400 and other final refusals of this token
        ├── AuthenticationError         the AuthSecret, or the form of its header, is refused
        ├── NotFoundError               404, 410
        ├── RateLimitedError            throttled (429, or 401/403 with TOO_MANY_REQUESTS)
        └── ServerError                 5xx, and codes that ask to come back later

None of them holds a token, a secret, a URL or a server's raw text: they are plain data, so they can be pickled,
copied, logged and sent to another process.
"""

from __future__ import annotations

from typing import Any, ClassVar

_NUMBERS = ("status", "flinks_code", "request_id", "attempts", "elapsed", "retry_after", "token_fingerprint")


class FlinksError(Exception):
    """The base of every error.

    Attributes (None where the error does not have one):
        message: what went wrong, in words; for an `APIStatusError` see also `server_message`.
        status: the HTTP status that the server sent, as an integer.
        flinks_code: the body's `FlinksCode`, for example `TOO_MANY_REQUESTS`.
        server_message: the body's `Message`, with secrets and personal data masked, at most 200 characters.
        request_id: the body's `RequestId`, to quote to Flinks.
        attempts: how many attempts were made, this one included.
        elapsed: seconds from the start of the call.
        retry_after: seconds that the server asked to wait.
        token_fingerprint: stands for the access token (see `flinks_async.fingerprint`).
    """

    _extra_fields: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        message: str = "",
        *,
        status: int | None = None,
        flinks_code: str | None = None,
        server_message: str | None = None,
        request_id: str | None = None,
        attempts: int | None = None,
        elapsed: float | None = None,
        retry_after: float | None = None,
        token_fingerprint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.flinks_code = flinks_code
        self.server_message = server_message
        self.request_id = request_id
        self.attempts = attempts
        self.elapsed = elapsed
        self.retry_after = retry_after
        self.token_fingerprint = token_fingerprint

    def fields(self) -> dict[str, Any]:
        """Every attribute but the message, as plain data (for a log record or a report)."""
        return {name: getattr(self, name) for name in (*_NUMBERS, "server_message", *self._extra_fields)}

    def __str__(self) -> str:
        known = [f"{name}={value}" for name in _NUMBERS if (value := getattr(self, name)) is not None]
        return f"{self.message} [{' '.join(known)}]" if known else self.message

    def __repr__(self) -> str:
        given = "".join(f", {name}={value!r}" for name, value in self.fields().items() if value is not None)
        return f"{type(self).__name__}({self.message!r}{given})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.fields())


def _rebuild(cls: type[FlinksError], message: str, fields: dict[str, Any]) -> FlinksError:
    return cls(message, **fields)


class ConfigError(FlinksError, ValueError):
    """A setting is wrong or missing. Raised when it is set, before anything is sent."""


class ClientClosedError(FlinksError):
    """The client was closed, before the call or while it was under way."""


class InvalidTokenError(FlinksError, ValueError):
    """The access token is empty, not a text, too long, or would change the URL. Nothing was sent."""


class TransportError(FlinksError):
    """The connection failed.

    Attributes:
        sent: False when the request certainly did not reach the server, True when it may have.
    """

    _extra_fields = ("sent",)

    def __init__(self, message: str = "", *, sent: bool = True, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.sent = sent


class ConnectError(TransportError):
    """No connection could be made: refused, unreachable, unknown host, TLS failure. Nothing was sent."""

    def __init__(self, message: str = "", *, sent: bool = False, **fields: Any) -> None:
        super().__init__(message, sent=sent, **fields)


class ConnectTimeoutError(ConnectError):
    """No connection within `Timeouts.connect` seconds (DNS, TCP and TLS together)."""


class CertificateError(ConnectError):
    """The server's certificate is expired, for another host, or from an unknown authority. Never retried."""


class ProxyError(ConnectError):
    """The proxy could not be reached, or refused."""


class ReadError(TransportError):
    """The connection broke before the answer was whole."""


class StaleConnectionError(ReadError):
    """A kept-alive connection turned out to be closed when it was used again."""


class AttemptTimeoutError(TransportError):
    """One attempt took longer than `Timeouts.attempt` seconds. Its time in the queue does not count."""


class ProtocolError(FlinksError):
    """What came back is not HTTP that can be understood. Its status is nobody's, so `status` is None."""


class ResponseTooLargeError(FlinksError):
    """The body, inflated, is larger than `Limits.max_body` bytes."""


class DecodeError(FlinksError):
    """The body of an answer cannot be understood.

    Attributes:
        path: the place in the JSON, such as `GetAccountsDetail[0].Accounts[2].Balance.Current`; None for the whole.
    """

    _extra_fields = ("path",)

    def __init__(self, message: str = "", *, path: str | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.path = path


class EmptyBodyError(DecodeError):
    """A success without a body."""


class NotJSONError(DecodeError):
    """The body is not JSON: an HTML page (maintenance, login, firewall), or JSON that is broken."""


class JSONLimitError(NotJSONError):
    """JSON beyond what is taken: nested too deeply, too many values, a number out of range, NaN or Infinity. Never retried."""


class WrongTypeError(DecodeError):
    """Well-formed JSON with a value of another type than documented. The message names the place, never the value."""


class DeadlineExceededError(FlinksError):
    """The call took longer than its deadline: `timeout=`, or `Timeouts.deadline`."""


class QuotaExhaustedError(FlinksError):
    """A retry was due, but the retry quota is used up."""


class CircuitOpenError(FlinksError):
    """Not sent: too many recent requests to this instance failed. It is probed from time to time."""


class RedirectError(FlinksError):
    """A redirect (3xx). They are never followed, since they would carry the secret to another place.

    Attributes:
        location_host: the host that it pointed to, if it named one.
    """

    _extra_fields = ("location_host",)

    def __init__(self, message: str = "", *, location_host: str | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.location_host = location_host


class PendingError(FlinksError):
    """The request was accepted and has no data yet (202, OPERATION_PENDING, OPERATION_DISPATCHED)."""


class APIStatusError(FlinksError):
    """The server answered, and the answer is no."""


class BadRequestError(APIStatusError):
    """400 and other refusals that will not change for this token."""


class AuthenticationError(APIStatusError):
    """The AuthSecret, or the form of the header that carries it, is refused (401, 403).

    Attributes:
        provider_problem: why the `auth_secret` callable, asked for another secret, had none to give; None if it had the
            same one, or if there is no such callable.
    """

    _extra_fields = ("provider_problem",)

    def __init__(self, message: str = "", *, provider_problem: str | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.provider_problem = provider_problem


class NotFoundError(APIStatusError):
    """404 or 410."""


class RateLimitedError(APIStatusError):
    """Throttled: 429, or 401/403 with the FlinksCode TOO_MANY_REQUESTS."""


class ServerError(APIStatusError):
    """5xx, and FlinksCodes that ask to come back later."""
