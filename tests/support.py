"""Small things that several test files need."""

from __future__ import annotations

import asyncio
from typing import Any

from flinks_async import FlinksClient
from flinks_async.testing import FakeClock, InMemoryTransport

SECRET = "the-auth-secret"
DOCUMENTED = {
    "GetAccountsDetail": [{"LoginId": "5e115eac-1209-4f19-641c-08d6d484e2fe", "CustomerId": "c-1"}],
    "RequestId": "r-1",
}


def client_of(transport: InMemoryTransport, **options: Any) -> FlinksClient:
    """A client without network and without waiting; `random` is 1, so that waits are the longest possible."""
    options.setdefault("clock", FakeClock(random=1.0))
    return FlinksClient(auth_secret=options.pop("auth_secret", SECRET), transport=transport, **options)


async def turns(number: int = 20) -> None:
    """Lets other tasks run."""
    for _ in range(number):
        await asyncio.sleep(0)
