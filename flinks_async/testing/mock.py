"""`aioresponses` for current versions of aiohttp. Needs the package aioresponses.

    from flinks_async.testing import aioresponses

    with aioresponses() as mocked:
        mocked.get("https://toolbox-api.private.fin.ag/partneraccess/token-1", payload={"RequestId": "r-1"})

aioresponses 0.7.9 does not pass the argument `stream_writer` that `aiohttp.ClientResponse` requires since aiohttp 3.14. The
subclass here uses a response class that does not require it, and is otherwise unchanged.
"""

from __future__ import annotations

import inspect
from re import Pattern
from typing import Any
from unittest.mock import Mock

import aiohttp
from aioresponses import aioresponses as _Original
from yarl import URL

_NEEDS_WRITER = "stream_writer" in inspect.signature(aiohttp.ClientResponse.__init__).parameters


class _ClientResponse(aiohttp.ClientResponse):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("stream_writer", Mock(output_size=0))
        super().__init__(*args, **kwargs)


class aioresponses(_Original):
    """As `aioresponses.aioresponses`."""

    def add(self, url: URL | str | Pattern[str], *args: Any, **kwargs: Any) -> None:
        if _NEEDS_WRITER:
            kwargs.setdefault("response_class", _ClientResponse)
        super().add(url, *args, **kwargs)
