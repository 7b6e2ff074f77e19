"""A real S3 server."""

from __future__ import annotations

import urllib.request
import uuid
from collections.abc import Iterator
from datetime import timedelta

import pytest

from flinks_async.bulk import objects as module

from .s3 import S3, running


@pytest.fixture(scope="session")
def server() -> Iterator[S3]:
    with running() as s3:
        yield s3


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "_RETRY", {"max_retries": 1, "backoff": {"init_backoff": timedelta(milliseconds=1)}})
    server.fault = lambda asked: None
    server.before = server.after = None
    server.asked.clear()
    return server


@pytest.fixture
def bucket(s3: S3) -> str:
    """The URL of a new bucket."""
    name = f"b-{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{s3.port}/{name}", method="PUT")).close()
    s3.asked.clear()
    return f"s3://{name}"
