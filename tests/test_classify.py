"""The meaning of each status, FlinksCode and error."""

from __future__ import annotations

from typing import cast

import pytest

from flinks_async import errors as e
from flinks_async.classify import classify_error, classify_response, error_from, verdict_of
from flinks_async.endpoint import make_endpoint
from flinks_async.messages import Call, Request, Response
from flinks_async.runtime import LoopState
from flinks_async.secret import Secret
from flinks_async.testing import FakeClock
from flinks_async.verdict import Envelope, Kind


def error_of(response: Response) -> e.FlinksError:
    call = Call(0.0, cast(LoopState, None))
    endpoint = make_endpoint(
        "x",
        auth_scheme="bearer",
        base_url="https://host",
        allow_http=False,
        app_name=None,
        headers=None,
        user_agent="test",
    )
    request = Request(endpoint, Secret("canary"), call)
    return error_from(request, response, verdict_of(response), FakeClock())


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (200, Kind.OK, None),
        (101, Kind.FINAL, e.APIStatusError),
        (202, Kind.PENDING, e.PendingError),
        (204, Kind.FINAL, e.APIStatusError),
        (206, Kind.FINAL, e.APIStatusError),
        (299, Kind.FINAL, e.APIStatusError),
        (300, Kind.FINAL, e.RedirectError),
        (301, Kind.FINAL, e.RedirectError),
        (308, Kind.FINAL, e.RedirectError),
        (399, Kind.FINAL, e.RedirectError),
        (400, Kind.FINAL, e.BadRequestError),
        (401, Kind.REFUSED, e.AuthenticationError),
        (402, Kind.FINAL, e.BadRequestError),
        (403, Kind.REFUSED, e.AuthenticationError),
        (404, Kind.FINAL, e.NotFoundError),
        (405, Kind.FINAL, e.BadRequestError),
        (407, Kind.FINAL, e.ProxyError),
        (408, Kind.TRANSIENT, e.ServerError),
        (410, Kind.FINAL, e.NotFoundError),
        (425, Kind.TRANSIENT, e.ServerError),
        (429, Kind.THROTTLED, e.RateLimitedError),
        (499, Kind.FINAL, e.BadRequestError),
        (500, Kind.TRANSIENT, e.ServerError),
        (501, Kind.FINAL, e.ServerError),
        (502, Kind.TRANSIENT, e.ServerError),
        (503, Kind.TRANSIENT, e.ServerError),
        (504, Kind.TRANSIENT, e.ServerError),
        (505, Kind.FINAL, e.ServerError),
        (511, Kind.FINAL, e.ServerError),
        (519, Kind.FINAL, e.ServerError),
        (520, Kind.TRANSIENT, e.ServerError),
        (526, Kind.TRANSIENT, e.ServerError),
        (527, Kind.FINAL, e.ServerError),
        (599, Kind.FINAL, e.ServerError),
        (600, Kind.FINAL, e.APIStatusError),
        (999, Kind.FINAL, e.APIStatusError),
    ],
)
def test_without_a_code_the_status_decides(status: int, kind: Kind, error: type[e.FlinksError] | None) -> None:
    verdict = classify_response(status)
    assert (verdict.kind, verdict.error) == (kind, error)
    assert verdict.reason == ("ok" if status == 200 else f"http_{status}")


@pytest.mark.parametrize(
    ("status", "code", "kind", "error"),
    [
        (401, "TOO_MANY_REQUESTS", Kind.THROTTLED, e.RateLimitedError),
        (403, "TOO_MANY_REQUESTS", Kind.THROTTLED, e.RateLimitedError),
        (401, "too_many_requests", Kind.THROTTLED, e.RateLimitedError),
        (401, "RETRY_LATER", Kind.TRANSIENT, e.ServerError),
        (400, "CARD_IN_USE", Kind.TRANSIENT, e.ServerError),
        (500, "AGGREGATION_ERROR", Kind.TRANSIENT, e.ServerError),
        (202, "OPERATION_PENDING", Kind.PENDING, e.PendingError),
        (200, "OPERATION_DISPATCHED", Kind.PENDING, e.PendingError),
        (400, "UNAUTHORIZED", Kind.REFUSED, e.AuthenticationError),
        (401, "SESSION_NONEXISTENT", Kind.FINAL, e.BadRequestError),
        (401, "DISABLED_LOGIN", Kind.FINAL, e.BadRequestError),
        (405, "DISABLED_INSTITUTION", Kind.FINAL, e.BadRequestError),
        (503, "SOMETHING_NEW", Kind.TRANSIENT, e.ServerError),
        (401, "SOMETHING_NEW", Kind.REFUSED, e.AuthenticationError),
        (200, "SOMETHING_NEW", Kind.FINAL, e.BadRequestError),
        (429, "SOMETHING_NEW", Kind.THROTTLED, e.RateLimitedError),
        (429, "SESSION_EXPIRED", Kind.FINAL, e.BadRequestError),
    ],
)
def test_a_code_comes_before_the_status(status: int, code: str, kind: Kind, error: type[e.FlinksError]) -> None:
    verdict = classify_response(status, Envelope(flinks_code=code))
    assert (verdict.kind, verdict.error) == (kind, error)
    assert verdict.reason.upper() == code.upper()


@pytest.mark.parametrize(
    ("inner", "kind"), [(200, Kind.OK), (500, Kind.TRANSIENT), (401, Kind.REFUSED), (429, Kind.THROTTLED)]
)
def test_an_error_inside_a_success_is_an_error(inner: int, kind: Kind) -> None:
    assert classify_response(200, Envelope(http_status_code=inner)).kind is kind


def test_throttle_statuses_can_be_configured() -> None:
    assert classify_response(403, throttle_statuses=frozenset({403})).kind is Kind.THROTTLED
    assert classify_response(403, Envelope(flinks_code="ACCESS_DENIED"), frozenset({403})).kind is Kind.REFUSED


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (e.ConnectError(), Kind.TRANSIENT),
        (e.ConnectTimeoutError(), Kind.TRANSIENT),
        (e.CertificateError(), Kind.FINAL),
        (e.ProxyError(status=502), Kind.TRANSIENT),
        (e.ProxyError(status=407), Kind.FINAL),
        (e.ReadError(), Kind.TRANSIENT),
        (e.StaleConnectionError(), Kind.STALE),
        (e.AttemptTimeoutError(), Kind.TRANSIENT),
        (e.ProtocolError(), Kind.BROKEN),
        (e.ResponseTooLargeError(), Kind.FINAL),
        (e.EmptyBodyError(), Kind.MALFORMED),
        (e.NotJSONError(), Kind.MALFORMED),
        (e.JSONLimitError(), Kind.FINAL),
        (e.WrongTypeError(), Kind.FINAL),
        (e.DeadlineExceededError(), Kind.FINAL),
        (e.ClientClosedError(), Kind.FINAL),
        (e.ConfigError(), Kind.FINAL),
    ],
)
def test_every_raised_error_has_a_verdict(error: e.FlinksError, kind: Kind) -> None:
    verdict = classify_error(error)
    assert (verdict.kind, verdict.reason, verdict.error) == (kind, type(error).__name__, type(error))


def test_a_response_of_a_middleware_is_classified_by_its_status() -> None:
    assert verdict_of(Response(503)).kind is Kind.TRANSIENT
    assert verdict_of(Response(429)).kind is Kind.THROTTLED


def test_the_error_of_a_refused_secret_names_its_source_and_other_header_forms() -> None:
    error = error_of(Response(401))
    assert isinstance(error, e.AuthenticationError)
    assert "customer" in error.message
    assert "'flinks-auth-key-raw'" in error.message
    assert "'bearer'" in error.message


@pytest.mark.parametrize(
    ("status", "envelope", "message"),
    [
        (500, Envelope(), "host answered 500"),
        (500, Envelope("RETRY_LATER", message="busy"), "host answered 500 RETRY_LATER: busy"),
        (202, Envelope(), "host answered 202: accepted, but there is no data yet; ask again later"),
        (302, Envelope(), "host answered 302, a redirect to nowhere; redirects are not followed (is base_url right?)"),
        (407, Envelope(), "host answered 407: the proxy wants credentials (Connection.proxy may hold them)"),
    ],
)
def test_an_error_names_host_status_and_next_step(status: int, envelope: Envelope, message: str) -> None:
    assert error_of(Response(status, envelope=envelope)).message == message


@pytest.mark.parametrize(
    ("location", "host"),
    [
        ("https://evil.example/partneraccess/canary", "evil.example"),
        (f"https://{'a' * 100}/", "a" * 100),
        (f"https://{'a' * 101}/", "a" * 99 + "…"),
        ("/login", None),
        ("http://[broken", None),
        ("", None),
    ],
)
def test_a_redirect_names_only_the_host_it_pointed_to(location: str, host: str | None) -> None:
    error = error_of(Response(302, {"Location": location}))
    assert isinstance(error, e.RedirectError)
    assert error.location_host == host
    assert "canary" not in repr(error)


def test_retry_after_is_read_once_for_each_response() -> None:
    class Headers(dict[str, str]):
        reads = 0

        def __getitem__(self, name: str) -> str:
            self.reads += name == "Retry-After"
            return super().__getitem__(name)

    headers = Headers({"Retry-After": "7"})
    response = Response(503, headers)
    assert error_of(response).retry_after == response.retry_after(FakeClock()) == 7.0
    assert headers.reads == 1
    assert error_of(response.evolve(headers={"Retry-After": "9"})).retry_after == 9.0
    assert error_of(response.evolve(headers={})).retry_after is None
