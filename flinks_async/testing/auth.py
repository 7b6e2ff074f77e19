"""Whether a request carries the AuthSecret, in one of the three forms (see `Endpoint.auth_header`)."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Final

from ..config import AuthScheme

_FORMS: Final[tuple[tuple[AuthScheme, str, str], ...]] = (
    ("flinks-auth-key", "flinks-auth-key", "Bearer "),
    ("flinks-auth-key-raw", "flinks-auth-key", ""),
    ("bearer", "Authorization", "Bearer "),
)


def accepts(headers: Mapping[str, str], secret: str, scheme: AuthScheme | None) -> bool:
    """Whether the headers hold the secret in the form of the scheme, or in any form if that is None."""
    return any(
        scheme in (None, form) and _same(headers.get(name, ""), prefix + secret) for form, name, prefix in _FORMS
    )


def has_secret(headers: Mapping[str, str]) -> bool:
    """Whether there is an authentication header at all."""
    return any(name in headers for _, name, _ in _FORMS)


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "surrogateescape"), other.encode("utf-8", "surrogateescape"))
